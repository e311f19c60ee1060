"""A vector times a matrix of 4-bit weights, two in a byte, that have a scale for each group.

The low half of a byte is the weight of the even input, the high half that of the odd one; both are
stored with 8 added. Rows of ``weight`` are read once, as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example

GROUP = 32
"""Neighbouring weights that share a scale."""


@helion.kernel
def int4_gemv(
    even: torch.Tensor, odd: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """``even``, ``odd``: every second input, by groups; ``weight``: outputs, groups, bytes."""
    n, groups, _ = weight.size()
    out = torch.empty([n], dtype=even.dtype, device=even.device)
    for tile_n in hl.tile(n):
        total = hl.zeros([tile_n], dtype=torch.float32)
        for group in hl.grid(groups):
            packed = weight[tile_n, group, :].to(torch.int32)
            low = ((packed & 15) - 8).to(torch.float32) * even[group, :].to(torch.float32)
            high = ((packed >> 4) - 8).to(torch.float32) * odd[group, :].to(torch.float32)
            total = total + (low + high).sum(-1) * scale[tile_n, group]
        out[tile_n] = total.to(even.dtype)
    return out


def reference(
    even: torch.Tensor, odd: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    low, high = (weight & 15).to(even.dtype) - 8, (weight >> 4).to(even.dtype) - 8
    return ((low * even + high * odd).sum(-1) * scale).sum(-1)


def inputs(n: int, k: int) -> tuple[torch.Tensor, ...]:
    groups = k // GROUP
    x = torch.randn(groups, GROUP // 2, 2, device=DEVICE)
    weight = torch.randint(0, 256, (n, groups, GROUP // 2), dtype=torch.uint8, device=DEVICE)
    scale = torch.rand(n, groups, device=DEVICE) / 8
    return x[..., 0].contiguous(), x[..., 1].contiguous(), weight, scale


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for n, k in ((1, GROUP), (37, 5 * GROUP), (64, 2 * GROUP)):
        yield int4_gemv, reference, inputs(n, k)


def main(size: int = 4096) -> None:
    run_example(int4_gemv, reference, inputs(size, size))


if __name__ == "__main__":
    main()
