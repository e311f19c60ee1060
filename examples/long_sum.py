"""Sums of long rows: chunk by chunk, each summed into a number that the loop carries."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def long_sum(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([m], dtype=x.dtype, device=x.device)
    block_m = hl.register_block_size(m)
    block_n = hl.register_block_size(n)
    for tile_m in hl.tile(m, block_size=block_m):
        total = hl.zeros([tile_m], dtype=torch.float32)
        for tile_n in hl.tile(n, block_size=block_n):
            total += x[tile_m, tile_n].to(torch.float32).sum(-1)
        out[tile_m] = total.to(x.dtype)
    return out


def reference(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1), (3, 1025), (17, 64)):
        yield long_sum, reference, (torch.randn(shape),)


def main(size: int = 1 << 20) -> None:
    run_example(long_sum, reference, (torch.randn(32, size, device=DEVICE),))


if __name__ == "__main__":
    main()
