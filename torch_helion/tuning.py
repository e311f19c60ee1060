"""``torch_helion.tune``: search for the configs of all kernels that a call uses; files of configs.

In: a kernel, a function or a module, and arguments. Out: a :class:`TuneReport`. What is found is
used from then on, in this process and in later ones; :func:`save_configs` writes it to a file that
goes with a model, :func:`load_configs` reads such a file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torch_helion import exc, settings
from torch_helion.autotuner import results
from torch_helion.autotuner.search import Result, seconds_of
from torch_helion.kernel import decorator
from torch_helion.kernel.decorator import Kernel


@dataclasses.dataclass(frozen=True)
class TuneReport:
    """What a call of :func:`tune` found."""

    rows: tuple[tuple[str, Result], ...]
    """a kernel's name, and the result of its search"""

    def __str__(self) -> str:
        if not self.rows:
            return "nothing was tuned: no kernel was called that has a choice"
        head = f"{'kernel':32} {'default':>12} {'best':>12} {'speedup':>8}  config"
        lines = [_line(name, result) for name, result in self.rows]
        return "\n".join([head, *lines])


def _line(name: str, result: Result) -> str:
    before, after = (f"{s * 1e6:.1f} us" for s in (result.default_seconds, result.seconds))
    return f"{name[:32]:32} {before:>12} {after:>12} {result.speedup:>7.2f}x  {result.config}"


def tune(fn: Callable[..., Any], *args: Any, budget: float = 5.0, **kwargs: Any) -> TuneReport:
    """Search for the best config of every kernel that ``fn(*args)`` uses.

    ``fn`` is a kernel, or anything that ``torch.compile`` takes: it is compiled and called once.
    ``budget``: seconds for each kernel.
    """
    if not seconds_of(budget) > 0:
        raise exc.InvalidValue("budget", budget, "seconds, more than 0")
    if not callable(fn):
        raise exc.InvalidAPIUsage(f"tune(fn, *args) takes a function or module, got {fn!r}")
    if isinstance(fn, Kernel):
        _check_arguments(fn, args)
        fn.autotune(fn.normalize_args(*args, **kwargs), budget=budget)
        return TuneReport(((fn.name, fn.last_search),) if fn.last_search else ())
    from torch_helion.capture import inductor_compat, tuning  # these import Inductor

    original = getattr(fn, "_torchdynamo_orig_callable", fn)
    original = getattr(original, "_orig_mod", original)
    first = len(tuning.found)
    with _all_kernels_tune(budget) as before, settings.patch(tune_budget=float(budget)):
        torch.compiler.reset()
        with inductor_compat.without_caches(), tuning.searching_anew():
            torch.compile(original, backend="helion", mode="max-autotune")(*args, **kwargs)
        torch.compiler.reset()  # what was compiled before has the configs of before
        mine = [(k.name, k.last_search) for k in _kernels() if k.last_search is not before.get(k)]
    return TuneReport((*tuning.found[first:], *mine))


def _check_arguments(kernel: Kernel, args: tuple[Any, ...]) -> None:
    """The mistake that :meth:`Kernel.autotune` invites to, which does take a tuple."""
    first = next(iter(kernel.signature.parameters.values()), None)
    wants_tensor = first is not None and first.annotation in (torch.Tensor, "torch.Tensor")
    if args and isinstance(args[0], list | tuple) and wants_tensor:
        raise exc.InvalidAPIUsage(
            f"tune takes the arguments one by one, not in a {type(args[0]).__name__}: "
            f"tune({kernel.name}, *args)"
        )


@contextmanager
def _all_kernels_tune(budget: float) -> Iterator[dict[Kernel, Any]]:
    """Every kernel that is called inside is tuned first; gives their last searches until now."""
    kernels = _kernels()
    before = {k: k.last_search for k in kernels}
    budgets = {k: (k.tuning_budget, k.tunes_anew) for k in kernels}
    for kernel in kernels:
        kernel.tune_at_next_call(budget, anew=True)
    try:
        yield before
    finally:
        for kernel in kernels:
            kernel.tuning_budget, kernel.tunes_anew = budgets[kernel]


def _kernels() -> list[Kernel]:
    return sorted(decorator.all_kernels, key=lambda k: k.name)


def save_configs(path: str | os.PathLike[str]) -> int:
    """Write the tuned configs that this process found or loaded to a file of JSON; how many."""
    return results.save(path)


def load_configs(path: str | os.PathLike[str]) -> list[str]:
    """Read a file that :func:`save_configs` wrote; names of the kernels that it is about.

    Kernels that run with their default config look again when they are called next. A config whose
    kernel has other code by now is not used, which a warning says.
    """
    names = results.load(path)
    for kernel in _kernels():
        kernel.results_changed()
        for bound in kernel._bound.values():
            bound.choose_again()
    return names
