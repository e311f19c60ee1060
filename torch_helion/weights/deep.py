"""A look at the values: what no rule of the format forbids, yet seldom is meant.

What flows in: an opened checkpoint. What flows out: one sentence per oddity: NaN and infinity,
bools that are neither 0 nor 1, tensors that are zero throughout (a download that left holes).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_helion.weights.dtypes import DTYPES
from torch_helion.weights.errors import quoted
from torch_helion.weights.memory import Arena
from torch_helion.weights.reading import Progress
from torch_helion.weights.source import Source, Stored

_BLOCK = 16 << 20
_SEVERAL = 1 << 10  # bytes from which a tensor of zeros is worth a word


def oddities(source: Source, progress: Progress | None = None) -> Iterator[tuple[str, str]]:
    """(name, sentence) of each oddity."""
    arena = Arena(_BLOCK)
    for stored in source.tensors.values():
        counts = _counts(stored, arena, progress)
        for what in ("NaN", "infinity", "bools that are neither 0 nor 1"):
            if counts.get(what):
                yield stored.name, f"{quoted(stored.name)}: {counts[what]} values: {what}"
        if counts["nonzero"] == 0 and stored.info.nbytes >= _SEVERAL:
            yield stored.name, f"{quoted(stored.name)}: all of its {stored.info.nbytes} bytes are 0"


def _counts(stored: Stored, arena: Arena, progress: Progress | None) -> dict[str, int]:
    row = DTYPES[stored.info.dtype]
    counts = {"nonzero": 0}
    at, end = stored.position, stored.position + stored.info.nbytes
    while at < end:
        count = min(_BLOCK, end - at)
        stored.file.read_exact(at, [arena.view(0, count)])
        raw = arena.tensor(0, torch.uint8, (count,))
        _add(counts, "nonzero", raw != 0)
        if row.name == "BOOL":
            _add(counts, "bools that are neither 0 nor 1", raw > 1)
        elif row.torch is not None and row.packed == 1 and _may_be_odd(row.torch):
            values = raw.view(row.torch)
            values = values.float() if row.torch.itemsize == 1 else values
            _add(counts, "NaN", values.isnan())
            _add(counts, "infinity", values.isinf())
        at += count
        if progress is not None:
            progress(count)
    return counts


def _may_be_odd(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _add(counts: dict[str, int], what: str, mask: torch.Tensor) -> None:
    counts[what] = counts.get(what, 0) + int(mask.sum())
