"""Which bytes of a file a strided selection needs, and how they lie once they were read.

What flows in: counts and byte strides of a selection (a slice of a tensor, a view of a storage).
What flows out: a :class:`Gather`: runs of bytes to read, and the strides of the selection over the
bytes that were read. Runs are exact where they are long; gaps shorter than a page are read along,
since the disk and the page cache deliver whole pages anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PAGE = 4096
_COVER_LIMIT = 32 << 20  # bytes of one selection's buffer that may be mostly gaps


class Gather(NamedTuple):
    """A selection as reads: for each index of ``outer``, one run of ``span`` bytes."""

    outer: tuple[tuple[int, int], ...]
    """count and byte stride in the file of the dimensions that separate runs, outermost first"""
    span: int
    strides: tuple[int, ...]
    """byte strides of the selection's dimensions over the runs laid side by side"""
    cut: bool
    """runs end at small gaps since one run over them would be too long: better cut in parts"""

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self.span * math.prod(count for count, _ in self.outer)

    def runs(self) -> Iterator[int]:
        """Offset of each run in the file, relative to the selection's first element."""
        steps = [range(0, count * stride, stride) for count, stride in self.outer]
        return map(sum, itertools.product(*steps))


def plan_gather(counts: Sequence[int], strides: Sequence[int], itemsize: int) -> Gather:
    """The reads for a non-empty selection. Strides are not negative; 0 repeats an element."""
    order = sorted(
        (d for d, (n, s) in enumerate(zip(counts, strides, strict=True)) if n > 1 and s),
        key=lambda d: strides[d],
    )
    result = [0] * len(counts)
    span, exact, cut = itemsize, [], False
    for place, d in enumerate(order):
        count, stride = counts[d], strides[d]
        wider = (count - 1) * stride + span
        if stride - span >= PAGE or (stride > span and wider > _COVER_LIMIT):
            exact, cut = order[place:], stride - span < PAGE
            break
        result[d], span = stride, max(wider, span)
    outer = tuple((counts[d], strides[d]) for d in reversed(exact))
    step = span
    for d in exact:
        result[d], step = step, step * counts[d]
    return Gather(outer, span, tuple(result), cut)


def parts_of(
    counts: Sequence[int], strides: Sequence[int], itemsize: int, limit: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a selection into boxes, (starts, counts) each, whose reads fit into ``limit`` bytes.

    Boxes come in the row-major order of the selection, each contiguous in it.
    """
    yield from _halves((0,) * len(counts), tuple(counts), strides, itemsize, limit)


def _halves(
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    strides: Sequence[int],
    itemsize: int,
    limit: int,
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    d = next((d for d, n in enumerate(counts) if n > 1), None)
    plan = plan_gather(counts, strides, itemsize)
    if d is None or (max(itemsize * math.prod(counts), plan.nbytes) <= limit and not plan.cut):
        yield starts, counts
        return
    half = counts[d] // 2
    for begin, count in ((0, half), (half, counts[d] - half)):
        here = (*starts[:d], starts[d] + begin, *starts[d + 1 :])
        yield from _halves(here, (*counts[:d], count, *counts[d + 1 :]), strides, itemsize, limit)
