"""A product of batches, three-dimensional tiles and all."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def batched_matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    b, m, k = x.size()
    _, _, n = y.size()
    out = torch.empty([b, m, n], dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    for tile_b, tile_m, tile_n in hl.tile([b, m, n]):
        acc = hl.zeros([tile_b, tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.baddbmm(acc, x[tile_b, tile_m, tile_k], y[tile_b, tile_k, tile_n])
        out[tile_b, tile_m, tile_n] = acc.to(out.dtype)
    return out


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for b, m, k, n in ((1, 1, 1, 1), (5, 17, 33, 9), (4, 16, 32, 16)):
        yield batched_matmul, torch.bmm, (torch.randn(b, m, k), torch.randn(b, k, n))


def main(size: int = 512) -> None:
    x, y = torch.randn(2, 8, size, size, device=DEVICE)
    run_example(batched_matmul, torch.bmm, (x, y), atol=1.0)


if __name__ == "__main__":
    main()
