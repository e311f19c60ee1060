"""Rotary position embedding, in the form that turns the two halves of each head."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x``: batch, heads, positions, width; ``cos``, ``sin``: positions, width."""
    batch, heads, positions, width = x.size()
    half = hl.specialize(width) // 2
    out = torch.empty_like(x)
    for tile_b, tile_h, tile_t in hl.tile([batch, heads, positions]):
        first = x[tile_b, tile_h, tile_t, :half].to(torch.float32)
        second = x[tile_b, tile_h, tile_t, half:].to(torch.float32)
        turned = first * cos[tile_t, :half] - second * sin[tile_t, :half]
        out[tile_b, tile_h, tile_t, :half] = turned.to(x.dtype)
        turned = second * cos[tile_t, half:] + first * sin[tile_t, half:]
        out[tile_b, tile_h, tile_t, half:] = turned.to(x.dtype)
    return out


def reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def tables(positions: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles, each half of the width the same."""
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = (torch.arange(positions)[:, None] * rates).repeat(1, 2)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1, 2), (2, 3, 17, 10), (1, 4, 16, 64)):
        yield rope, reference, (torch.randn(shape), *tables(*shape[2:]))


def main(size: int = 2048) -> None:
    x = torch.randn(2, 32, size, 128, device=DEVICE)
    run_example(rope, reference, (x, *tables(size, 128)))


if __name__ == "__main__":
    main()
