"""Tensors of one call that share memory, one of which is written.

In: the tensors of a launch, which of them are written. Out: pairs whose memory interleaves without
an element in common (a launch may go on, as long as they lie as they do), or that they do meet: the
steps of a kernel that was made for separate tensors may then run in another order than they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Apart = tuple[int, int, int]
"""two numbers of tensors, and how many bytes the second lies behind the first"""

_MOST_RUNS = 1 << 22
"""Pieces of memory of one tensor that are compared one by one."""


def interleaved(
    tensors: Sequence[torch.Tensor], written: Sequence[int]
) -> tuple[Apart, ...] | None:
    """Pairs that interleave with what is written; None if one of them has an element of it."""
    found: list[Apart] = []
    for i in written:
        for j, other in enumerate(tensors):
            if i == j or (j in written and j < i) or not _ranges_meet(tensors[i], other):
                continue
            if _elements_meet(tensors[i], other):
                return None
            found.append((i, j, other.data_ptr() - tensors[i].data_ptr()))
    return tuple(found)


def _ranges_meet(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.numel() == 0 or b.numel() == 0:
        return False
    return a.data_ptr() < b.data_ptr() + _extent(b) and b.data_ptr() < a.data_ptr() + _extent(a)


def _extent(t: torch.Tensor) -> int:
    """Bytes from the first to behind the last element."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def _elements_meet(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a byte belongs to both; taken for granted where there are too many pieces."""
    left, right = _runs(a), _runs(b)
    if left is None or right is None:
        return True
    (starts, length), (others, reach) = left, right
    after = torch.searchsorted(others, starts, right=True)
    before = others[(after - 1).clamp(min=0)]
    next_one = others[after.clamp(max=len(others) - 1)]
    inside = (after > 0) & (before + reach > starts)
    ahead = (after < len(others)) & (next_one < starts + length)
    return bool((inside | ahead).any())


def _runs(t: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Where the pieces of a tensor's memory begin, sorted, and how many bytes each has."""
    size, outer = t.element_size(), []
    length = size
    pairs = zip(t.shape, t.stride(), strict=True)
    for extent, stride in sorted(((n, s) for n, s in pairs if n != 1), key=lambda p: p[1]):
        if stride * size == length:
            length *= extent
        elif stride:
            outer.append((extent, stride * size))
    starts = torch.tensor([t.data_ptr()], dtype=torch.int64)
    for extent, step in outer:
        if starts.numel() * extent > _MOST_RUNS:
            return None
        starts = (starts[:, None] + torch.arange(extent, dtype=torch.int64) * step).reshape(-1)
    return starts.sort().values, length
