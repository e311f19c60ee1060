"""A product with a long inner dimension, which is split among positions of the grid.

Each position adds its part to the result atomically; how far to split is a block size like others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def split_k_matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.zeros([m, n], dtype=torch.float32, device=x.device)
    block_k = hl.register_block_size(helion.next_power_of_2(helion.cdiv(k, 4)))
    for tile_m, tile_n, part in hl.tile([m, n, k], block_size=[None, None, block_k]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(part.begin, part.end):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        hl.atomic_add(out, [tile_m, tile_n], acc)
    return out


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for m, k, n in ((1, 1, 1), (3, 1000, 17), (16, 256, 32)):
        yield split_k_matmul, torch.matmul, (torch.randn(m, k), torch.randn(k, n))


def main(size: int = 256) -> None:
    x = torch.randn(size // 4, 64 * size, device=DEVICE)
    y = torch.randn(64 * size, size // 4, device=DEVICE)
    run_example(split_k_matmul, torch.matmul, (x, y), atol=1.0)


if __name__ == "__main__":
    main()
