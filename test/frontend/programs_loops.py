"""Kernels with several loops, without any element, or that write to what they read."""

from __future__ import annotations

import torch

import torch_helion.language as hl
from test.frontend.programs import program, rand


@program(rand(9), rand(4), expect=lambda x, y: (x * 2, y + 1))
def two_loops(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty_like(x), torch.empty_like(y)
    for tile in hl.tile(9):
        a[tile] = x[tile] * 2
    for tile in hl.tile(4):
        b[tile] = y[tile] + 1
    return a, b


@program(rand(9), expect=lambda x: x * 2 + (x * 2).flip(0))
def barrier(x: torch.Tensor) -> torch.Tensor:
    a, b = torch.empty_like(x), torch.empty_like(x)
    for tile in hl.tile(9):
        a[tile] = x[tile] * 2
    hl.barrier()
    for tile in hl.tile(9):
        b[tile] = a[tile] + a[8 - tile.index]
    return b


@program(rand(9), expect=lambda x: x + 1)
def in_place(x: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(9):
        x[tile] += 1
    return x


@program(rand(4, 0), expect=lambda x: (x.sum(-1), x + 1))
def nothing(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s, out = torch.empty(4), torch.empty_like(x)
    for tile in hl.tile(4):
        s[tile] = x[tile, :].sum(-1)
        out[tile, :] = x[tile, :] + 1
    return s, out
