"""Sums of runs of rows with the same number, by a scan with a combine function of one's own.

The scan restarts where the number changes; the last row of each run in a tile holds the run's sum
and adds it atomically, since the run may go on in the next tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


def add_within(
    left: torch.Tensor, left_id: torch.Tensor, right: torch.Tensor, right_id: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.where(left_id == right_id, left + right, right), right_id


@helion.kernel
def segment_sum(x: torch.Tensor, ids: torch.Tensor, segments: int) -> torch.Tensor:
    """``x``: rows, features; ``ids``: of each row, ascending."""
    rows, features = x.size()
    out = torch.zeros([segments, features], dtype=torch.float32, device=x.device)
    for tile_r, tile_f in hl.tile([rows, features]):
        values = x[tile_r, tile_f].to(torch.float32)
        here = ids[tile_r]
        wide = here[:, None].expand_as(values)
        sums, _ = hl.associative_scan(add_within, (values, wide), dim=0)
        inner = tile_r.index + 1 < tile_r.end
        following = hl.load(ids, [tile_r + 1], extra_mask=inner)
        ends = ~inner | (following != here)
        hl.atomic_add(out, [here, tile_f], torch.where(ends[:, None], sums, 0.0))
    return out


def reference(x: torch.Tensor, ids: torch.Tensor, segments: int) -> torch.Tensor:
    return x.new_zeros([segments, x.size(1)]).index_add(0, ids, x)


def inputs(rows: int, features: int, segments: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    ids = torch.randint(segments, (rows,)).sort().values
    return torch.randn(rows, features, device=DEVICE), ids.to(DEVICE), segments


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1), (101, 7, 13), (64, 16, 3)):
        yield segment_sum, reference, inputs(*shape)


def main(size: int = 4096) -> None:
    run_example(segment_sum, reference, inputs(16 * size, 64, size))


if __name__ == "__main__":
    main()
