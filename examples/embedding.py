"""Rows of a table by their numbers: an integer tile as an index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    flat = ids.reshape(-1)
    _, width = weight.size()
    out = torch.empty([flat.size(0), width], dtype=weight.dtype, device=weight.device)
    for tile_i, tile_w in hl.tile([flat.size(0), width]):
        out[tile_i, tile_w] = weight[flat[tile_i], tile_w]
    return out.view(*ids.size(), width)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape, rows, width in (((1,), 1, 1), ((3, 7), 50, 33), ((4, 16), 128, 64)):
        yield embedding, F.embedding, (torch.randint(rows, shape), torch.randn(rows, width))


def main(size: int = 4096) -> None:
    ids = torch.randint(8 * size, (4, size), device=DEVICE)
    run_example(embedding, F.embedding, (ids, torch.randn(8 * size, 256, device=DEVICE)))


if __name__ == "__main__":
    main()
