"""Layer norm of rows too long to keep: mean and variance by chunks, merged by Welford's rule.

A chunk's squares are taken around its own mean, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def welford(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty_like(x)
    block_n = hl.register_block_size(n)
    for tile_m in hl.tile(m):
        count = hl.zeros([tile_m], dtype=torch.float32)
        mean = hl.zeros([tile_m], dtype=torch.float32)
        squares = hl.zeros([tile_m], dtype=torch.float32)
        for tile_n in hl.tile(n, block_size=block_n):
            chunk = x[tile_m, tile_n].to(torch.float32)
            width = tile_n.end - tile_n.begin
            chunk_mean = chunk.sum(-1) / width
            centered = chunk - chunk_mean[:, None]
            delta = chunk_mean - mean
            together = count + width
            squares = squares + (centered * centered).sum(-1)
            squares = squares + delta * delta * (count * width / together)
            mean = mean + delta * (width / together)
            count = together
        rstd = torch.rsqrt(squares / count + eps)
        for tile_n in hl.tile(n, block_size=block_n):
            normal = (x[tile_m, tile_n].to(torch.float32) - mean[:, None]) * rstd[:, None]
            out[tile_m, tile_n] = (normal * weight[tile_n] + bias[tile_n]).to(x.dtype)
    return out


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for m, n in ((1, 1), (9, 133), (16, 64)):
        yield welford, reference, (torch.randn(m, n) + 3, torch.randn(n), torch.randn(n))


def main(size: int = 4096) -> None:
    x, weight, bias = torch.randn(size, size), torch.randn(size), torch.randn(size)
    run_example(welford, reference, tuple(t.to(DEVICE) for t in (x, weight, bias)))


if __name__ == "__main__":
    main()
