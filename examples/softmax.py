"""Softmax of rows: the whole row at once, and online in two passes over chunks of it.

The first form leaves it to the config whether a row is resident or cut into chunks; the second
keeps a running maximum and a running sum, so that it reads the row twice whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def softmax(x: torch.Tensor) -> torch.Tensor:
    m, _ = x.size()
    out = torch.empty_like(x)
    for tile_m in hl.tile(m):
        row = x[tile_m, :].to(torch.float32)
        exponentials = torch.exp(row - torch.amax(row, dim=-1, keepdim=True))
        total = torch.sum(exponentials, dim=-1, keepdim=True)
        out[tile_m, :] = (exponentials / total).to(x.dtype)
    return out


@helion.kernel
def softmax_two_pass(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty_like(x)
    block_m = hl.register_block_size(m)
    block_n = hl.register_block_size(n)
    for tile_m in hl.tile(m, block_size=block_m):
        top = hl.full([tile_m], float("-inf"), dtype=torch.float32)
        total = hl.zeros([tile_m], dtype=torch.float32)
        for tile_n in hl.tile(n, block_size=block_n):
            values = x[tile_m, tile_n].to(torch.float32)
            higher = torch.maximum(top, torch.amax(values, dim=1))
            total = total * torch.exp(top - higher)
            total = total + torch.exp(values - higher[:, None]).sum(dim=1)
            top = higher
        for tile_n in hl.tile(n, block_size=block_n):
            values = x[tile_m, tile_n].to(torch.float32)
            out[tile_m, tile_n] = (torch.exp(values - top[:, None]) / total[:, None]).to(x.dtype)
    return out


def reference(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for kernel in (softmax, softmax_two_pass):
        for shape in ((1, 1), (7, 129), (33, 64)):
            yield kernel, reference, (torch.randn(shape),)
    yield softmax, reference, (torch.randn(5, 200, dtype=torch.bfloat16),)


def main(size: int = 4096) -> None:
    kernels = {"whole row": softmax, "two passes": softmax_two_pass}
    run_example(kernels, reference, (torch.randn(size, size, device=DEVICE),))


if __name__ == "__main__":
    main()
