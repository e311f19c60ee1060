"""``torch_helion.experimental``: the backward of a kernel as a function, ahead-of-time kernels.

In: kernels and their arguments. Out: gradients; kernels that fall back to the default config.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import exc
from torch_helion.autotuner.search import FiniteSearch
from torch_helion.config import Config
from torch_helion.kernel import arguments, derivative, tuning
from torch_helion.kernel.decorator import Kernel, kernel

__all__ = ["aot_kernel", "backward", "from_cache"]


def backward(
    kernel: Kernel,
    grad_out: Any,
    *inputs: Any,
    return_code: bool = False,
    autotune: bool = False,
    autotune_effort: str | None = None,
) -> Any:
    """Gradients of a kernel's tensor inputs for the gradient of its result (or a tuple of them).

    The kernel must have been called before. One gradient is returned as it is, several as a tuple;
    with ``return_code`` the result is a pair with the text of what was differentiated.
    """
    if not isinstance(kernel, Kernel):
        raise exc.InvalidAPIUsage(f"backward takes a kernel, got {type(kernel).__name__}")
    args = kernel.normalize_args(*inputs)
    if not kernel.is_bound(args):
        raise exc.AutodiffKernelNotCalled(kernel.name)
    tensors = arguments.tensors_of(args)
    wanted = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    grads = [g for g in pytree.tree_leaves(grad_out) if isinstance(g, torch.Tensor)]
    found = tuple(derivative.gradients(kernel, args, wanted, grads))
    result: Any = found[0] if len(found) == 1 else found
    return (result, str(kernel.bind(args).ir)) if return_code else result


def aot_kernel(
    fn: Any = None,
    *,
    config: Any = None,
    configs: Sequence[Any] | None = None,
    batched: Any = None,
    collect_fn: Callable[..., Any] | None = None,
    measure_fn: Callable[..., Any] | None = None,
    key: Callable[..., Any] | None = None,
    **settings: Any,
) -> Any:
    """A kernel whose configs were tuned ahead of time.

    Where no tuned choice lies beside the source, that is said once and the given configs, else the
    default config, are used.
    """
    if fn is None:
        return lambda fn: aot_kernel(
            fn,
            config=config,
            configs=configs,
            batched=batched,
            collect_fn=collect_fn,
            measure_fn=measure_fn,
            key=key,
            **settings,
        )
    made = kernel(fn, config=config, configs=configs, key=key, **settings)
    if config is None and not configs and not _heuristics(made):
        exc.warn(exc.NoAOTHeuristicWarning(made.name), made.settings.ignore_warnings)
    return made


def _heuristics(made: Kernel) -> list[pathlib.Path]:
    source = pathlib.Path(made.fn.__code__.co_filename)
    return list(source.parent.glob(f"_helion_aot_{source.stem}_*.py"))


def from_cache(max_configs: int | None = None, configs: Sequence[Any] = ()) -> Callable[..., Any]:
    """An ``autotuner_fn`` that measures the default, given configs and those that searches have
    found for this kernel, and never searches.
    """

    def make(bound: Any, args: Sequence[Any], **options: Any) -> Any:
        known = tuning.nearest(bound, args)
        chosen = [bound.default_config(), *map(Config.from_dict, configs), *known]
        chosen = list(dict.fromkeys(chosen))[: max_configs or len(chosen)]
        return FiniteSearch(bound, args, chosen) if len(chosen) > 1 else _Only(chosen[0])

    return make


class _Only:
    def __init__(self, config: Config) -> None:
        self.config = config

    def autotune(self, *, skip_cache: bool = False) -> Config:
        return self.config
