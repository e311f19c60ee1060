"""Load plans for tensor parallelism: which slice of each tensor belongs to a rank.

What flows in: a checkpoint's header and rules (pattern of names → dimension). What flows out: a
plan (name → index) for ``load_file(plan=...)`` or ``load_model(plan=...)``: each rank then reads
only the bytes of its own part.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping

from torch_helion.weights.dtypes import torch_shape
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.selection import Index
from torch_helion.weights.source import Source


def rank_plan(
    path_or_index: str | os.PathLike[str],
    rules: Mapping[str, int | None],
    rank: int,
    world_size: int,
) -> dict[str, Index | None]:
    """The plan of one rank. Reads headers only.

    The first rule whose pattern (as in ``fnmatch``) matches a name says along which dimension the
    tensor is divided; None, or no rule: every rank holds all of it. Parts are those of
    ``torch.chunk``: equal but for the last ones, which may be shorter or empty.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 to {world_size - 1}, not {rank}")
    plan: dict[str, Index | None] = {}
    with Source(path_or_index) as source:
        for name, stored in source.tensors.items():
            shape = torch_shape(stored.info.dtype, stored.info.shape, stored.file.path, name)
            dim = next((d for p, d in rules.items() if fnmatch.fnmatchcase(name, p)), None)
            if dim is None:
                plan[name] = None
                continue
            if not -len(shape) <= dim < len(shape):
                rule = f"the plan divides dimension {dim} of shape {list(shape)}"
                raise WeightsError(rule, source.path, name)
            plan[name] = part_of(shape, dim % len(shape), rank, world_size)
    return plan


def part_of(shape: tuple[int, ...], dim: int, rank: int, world_size: int) -> Index:
    """The index of one rank's part of a shape divided along ``dim``."""
    each = -(-shape[dim] // world_size)
    begin = min(rank * each, shape[dim])
    part = slice(begin, min(begin + each, shape[dim]))
    return (*(slice(None) for _ in range(dim)), part)
