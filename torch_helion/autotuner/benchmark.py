"""Measuring candidates against each other: interleaved, medians, each on its own copies.

In: callables that do the same. Out: seconds of each. The machine's drift hits all candidates alike,
since they take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

ROUNDS = 7
LEAST_SECONDS = 0.002
"""of one measurement: a short call is repeated until it takes that long"""


def interleaved(
    functions: Sequence[Callable[[], Any]],
    rounds: int = ROUNDS,
    deadline: float | None = None,
) -> list[float]:
    """Median seconds of a call of each function; ends early at ``deadline`` (a perf_counter)."""
    repeats = [_repeats(function) for function in functions]
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, count, found in zip(functions, repeats, times, strict=True):
            found.append(_seconds(function, count))
        if deadline is not None and time.perf_counter() > deadline:
            break
    return [statistics.median(found) for found in times]


def do_bench(
    function: Callable[[], Any], warmup: int = 1, rep: int = ROUNDS, **unused: Any
) -> float:
    """Median milliseconds of one call."""
    for _ in range(warmup):
        function()
    return interleaved([function], rounds=rep)[0] * 1e3


def _repeats(function: Callable[[], Any]) -> int:
    function()  # the first call compiles
    once = _seconds(function, 1)
    return max(1, min(1000, int(LEAST_SECONDS / max(once, 1e-7))))


def _seconds(function: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def cloned(value: Any) -> Any:
    """A copy of nested arguments whose tensors have memory of their own, equal strides."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
        return copy.copy_(value.detach())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cloned(v) for v in value))
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(cloned(v) for v in value)
    if isinstance(value, dict):
        return {k: cloned(v) for k, v in value.items()}
    return value
