"""Helpers for programs that show a kernel: compare it with a baseline, time both, print a table.

In: functions and arguments. Out: milliseconds by name, a table on stderr; ``AssertionError`` where
results differ.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion.autotuner import benchmark
from torch_helion.config import Config
from torch_helion.settings import RefMode

DEVICE = torch.device("cpu")
"""where examples put their tensors"""


HALF_DTYPE = torch.bfloat16
"""the half type that kernels of examples use"""


def code_and_output(kernel: Any, args: Sequence[Any], **config: Any) -> tuple[str, Any]:
    """The text of a kernel for a config (none given: its own or the default), and its result."""
    bound = kernel.bind(tuple(args))
    chosen = Config(**config) if config else None
    eager = bound.settings.ref_mode is RefMode.EAGER
    code = "" if eager else bound.to_triton_code(chosen)
    return code, bound.compile_config(chosen)(*kernel.normalize_args(*args))


def run_example(
    kernel_fn: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    baseline_fn: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    args: Sequence[Any],
    kernel_name: str = "helion",
    baseline_name: str = "torch",
    rtol: float = 1e-2,
    atol: float = 1e-1,
    max_mismatch_pct: float | None = None,
    max_mismatched_abs_diff: float | None = None,
    bwd: bool = False,
    trace_path: str | None = None,
    process_group_name: str | None = None,
    interleaved: bool = True,
) -> dict[str, float]:
    """Check each kernel against the first baseline on copies of ``args``; milliseconds by name."""
    kernels = dict(kernel_fn) if isinstance(kernel_fn, Mapping) else {kernel_name: kernel_fn}
    baselines = (
        dict(baseline_fn) if isinstance(baseline_fn, Mapping) else {baseline_name: baseline_fn}
    )
    limits = (rtol, atol, max_mismatch_pct, max_mismatched_abs_diff)
    first = next(iter(baselines.values()))
    expected = first(*_copies(args))
    for name, function in {**kernels, **baselines}.items():
        if function is not first:
            _compare(name, function(*_copies(args)), expected, *limits)
            if bwd:
                _compare_gradients(name, function, first, args, *limits)
    functions = {**kernels, **baselines}
    calls = [_timed(function, _copies(args), bwd) for function in functions.values()]
    seconds = benchmark.interleaved(calls)
    times = {name: s * 1e3 for name, s in zip(functions, seconds, strict=True)}
    _print_table(times, next(iter(baselines)))
    return times


def _copies(args: Sequence[Any]) -> tuple[Any, ...]:
    def copy(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return benchmark.cloned(x).requires_grad_(x.requires_grad)

    return tuple(pytree.tree_map(copy, tuple(args)))


def _compare(
    name: str,
    got: Any,
    want: Any,
    rtol: float,
    atol: float,
    max_mismatch_pct: float | None,
    max_mismatched_abs_diff: float | None,
) -> None:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(ours) == len(theirs), f"{name}: {len(ours)} results instead of {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b, f"{name}: {a!r} instead of {b!r}"
            continue
        if max_mismatch_pct is None:
            torch.testing.assert_close(
                a.to(torch.float32), b.to(torch.float32), rtol=rtol, atol=atol, msg=_says(name)
            )
            continue
        difference = (a.double() - b.double()).abs()
        wrong = difference > atol + rtol * b.double().abs()
        share = float(wrong.double().mean()) if wrong.numel() else 0.0
        assert share <= max_mismatch_pct, f"{name}: {share:.3%} of the elements differ"
        if max_mismatched_abs_diff is not None and wrong.any():
            largest = float(difference[wrong].max())
            assert largest <= max_mismatched_abs_diff, f"{name}: differs by {largest}"


def _says(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def _compare_gradients(
    name: str, function: Callable[..., Any], first: Callable[..., Any], args: Any, *limits: Any
) -> None:
    _compare(f"{name} (gradients)", _gradients(function, args), _gradients(first, args), *limits)


def _gradients(function: Callable[..., Any], args: Sequence[Any]) -> list[Any]:
    copies = _copies(args)
    results = [r for r in pytree.tree_leaves(function(*copies)) if isinstance(r, torch.Tensor)]
    torch.autograd.backward([results[0]], [torch.ones_like(results[0])])
    leaves = pytree.tree_leaves(copies)
    return [x.grad for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]


def _timed(function: Callable[..., Any], args: Any, bwd: bool) -> Callable[[], Any]:
    if not bwd:
        return functools.partial(function, *args)

    def both() -> None:
        result = pytree.tree_leaves(function(*args))[0]
        torch.autograd.backward([result], [torch.ones_like(result)])

    return both


def _print_table(times: Mapping[str, float], baseline: str) -> None:
    print("\nBenchmark Results", file=sys.stderr)
    print(f"{'Implementation':<20} {'Time (ms)':>12} {'Speedup':>10}", file=sys.stderr)
    for name, milliseconds in times.items():
        speedup = f"{times[baseline] / milliseconds:.2f}x" if name != baseline else "1.00x (ref)"
        print(f"{name:<20} {milliseconds:>12.4f} {speedup:>10}", file=sys.stderr)
