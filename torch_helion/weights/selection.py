"""What stands between the brackets of ``get_slice(name)[...]``, as plain numbers.

What flows in: an index as a tensor takes it (integers, slices with steps, an ellipsis) and a shape.
What flows out: a :class:`Selection` with everything resolved; a wrong index raises what a tensor
raises (IndexError, TypeError, ValueError).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import NamedTuple

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


class Selection(NamedTuple):
    """Per dimension of the tensor: the first place, the distance of places, how many."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    """of the result: without the dimensions that an integer took away"""

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether it is every element of a tensor of this shape."""
        return self.counts == tuple(shape) == self.shape


def select(index: Index, shape: Sequence[int]) -> Selection:
    """Resolve an index for a shape."""
    items = _without_ellipsis(index if isinstance(index, tuple) else (index,), len(shape))
    starts, steps, counts, kept = [], [], [], []
    for dim, (item, size) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            start, step, count = _range(item, size)
            kept.append(count)
        else:
            start, step, count = _place(item, dim, size), 1, 1
        starts.append(start)
        steps.append(step)
        counts.append(count)
    return Selection(tuple(starts), tuple(steps), tuple(counts), tuple(kept))


def _without_ellipsis(items: tuple[object, ...], rank: int) -> list[object]:
    dots = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index may hold one ellipsis only")
    given = len(items) - len(dots)
    if given > rank:
        raise IndexError(f"too many indices: {given} for a tensor of {rank} dimensions")
    rest: list[object] = [slice(None)] * (rank - given)
    if not dots:
        return [*items, *rest]
    return [*items[: dots[0]], *rest, *items[dots[0] + 1 :]]


def _range(item: slice, size: int) -> tuple[int, int, int]:
    if item.step is not None and item.step <= 0:
        raise ValueError("the step of a slice must be greater than zero")
    start, stop, step = item.indices(size)
    return start, step, len(range(start, stop, step))


def _place(item: object, dim: int, size: int) -> int:
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise TypeError(f"an index holds integers, slices and an ellipsis, not {item!r}")
    place = item.__index__()
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for dimension {dim} of size {size}")
    return int(place % size)


def byte_strides(shape: Sequence[int], itemsize: int) -> list[int]:
    """Strides of a contiguous tensor, in bytes."""
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]
