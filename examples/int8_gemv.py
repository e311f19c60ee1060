"""A vector times a matrix of 8-bit weights that have a scale for each output.

The weights are widened as they are read; the scale is applied once, to the sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def int8_gemv(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``x``: inputs; ``weight``: outputs, inputs."""
    n, _ = weight.size()
    out = torch.empty([n], dtype=x.dtype, device=x.device)
    for tile_n in hl.tile(n):
        values = weight[tile_n, :].to(torch.float32) * x[:].to(torch.float32)
        out[tile_n] = (values.sum(-1) * scale[tile_n]).to(x.dtype)
    return out


def reference(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight.to(x.dtype) @ x) * scale


def inputs(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, device=DEVICE)
    return torch.randn(k, device=DEVICE), weight, torch.rand(n, device=DEVICE) / 128


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for n, k in ((1, 1), (37, 129), (64, 64)):
        yield int8_gemv, reference, inputs(n, k)


def main(size: int = 4096) -> None:
    run_example(int8_gemv, reference, inputs(size, size))


if __name__ == "__main__":
    main()
