"""Measuring candidates against each other: interleaved, medians, each on its own copies.

In: callables that do the same. Out: seconds of each. The machine's drift hits all candidates alike,
since they take turns.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

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
    """A copy of nested arguments; tensors that share memory share it in the copy, too."""
    tensors = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
    return pytree.tree_map(copier(tensors), value)


def copier(tensors: Iterable[torch.Tensor]) -> Callable[[Any], Any]:
    """A function that copies each of these tensors, strides and all, and gives back anything else.

    Memory that several of them share, or whose elements a tensor has more than once, is copied as a
    whole, and shared by their copies.
    """
    counts = collections.Counter(t.untyped_storage().data_ptr() for t in tensors)
    storages: dict[int, Any] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach()
        key = leaf.untyped_storage().data_ptr()
        if counts[key] <= 1 and not _overlaps(leaf):
            return torch.empty_strided(
                leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device
            ).copy_(leaf)
        if key not in storages:
            storages[key] = leaf.untyped_storage().clone()
        made = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
        return made.set_(storages[key], leaf.storage_offset(), leaf.shape, leaf.stride())

    return copied


def _overlaps(tensor: torch.Tensor) -> bool:
    return any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
