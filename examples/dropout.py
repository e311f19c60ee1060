"""Dropout that stores no mask: the backward draws the same random numbers again from the same seed.

The generator is keyed by an element's place in the tensor, so that block sizes, threads and the
order of execution leave the numbers as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def dropout(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    out = torch.empty_like(x)
    x_flat, out_flat = x.view(-1), out.view(-1)
    for tile in hl.tile(x.numel()):
        keep = hl.rand([tile], seed=seed) >= p
        scaled = x_flat[tile].to(torch.float32) / (1.0 - p)
        out_flat[tile] = torch.where(keep, scaled, 0.0).to(x.dtype)
    return out


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
        ctx.p, ctx.seed = p, seed
        return dropout(x, p, seed)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return dropout(grad.contiguous(), ctx.p, ctx.seed), None, None


def cases() -> Iterator[tuple]:
    """Kernel, no reference (random numbers are the kernel's own), arguments."""
    for shape in ((1,), (7, 129), (16, 64)):
        yield dropout, None, (torch.randn(shape), 0.3, 1234)


def mean_of_dropped(x: torch.Tensor) -> torch.Tensor:
    return Dropout.apply(x, 0.25, 7).mean()


def mean_of_eager(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.25).mean()


def main(size: int = 4096) -> None:
    run_example(mean_of_dropped, mean_of_eager, (torch.ones(size, size, device=DEVICE),))


if __name__ == "__main__":
    main()
