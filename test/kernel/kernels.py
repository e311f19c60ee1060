"""Small kernels that the tests of this folder call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.autotuner import PowerOfTwoFragment


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + y[tile]
    return out


def scale(x: torch.Tensor, s: float = 2.0) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = torch.sin(x[tile]) * s
    return out


def inc(x: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        x[tile] = x[tile] + 1
    return x


def rowsum(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.size(0), dtype=x.dtype, device=x.device)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile, :].sum(-1)
    return out


def pair(xs: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    out = torch.empty_like(xs[0])
    for tile in hl.tile(out.size(0)):
        out[tile] = xs[0][tile] + xs[1][tile]
    return out, xs[0].size(0)


def upto(lengths: torch.Tensor) -> torch.Tensor:
    n = int(lengths.max())
    out = torch.zeros(n)
    for tile in hl.tile(n):
        out[tile] = out[tile] + 1.0
    return out


def shifted_into(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + 1
        out[tile] = out[tile] * x[tile]
    return out


def applied(x: torch.Tensor, fn: Callable[[Any], Any]) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = fn(x[tile])
    return out


def partials(x: torch.Tensor) -> torch.Tensor:
    block = hl.register_block_size(x.size(0))
    sums = torch.zeros(helion.cdiv(x.size(0), block), dtype=x.dtype)
    for tile in hl.tile(x.size(0), block_size=block):
        sums[tile.id] = x[tile].sum()
    return sums.sum()


def tuned(x: torch.Tensor) -> torch.Tensor:
    times = hl.register_tunable("times", PowerOfTwoFragment(1, 8, 2))
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * times
    return out


def make(fn: Any, **options: Any) -> helion.Kernel:
    """A fresh kernel of one of the functions above."""
    return helion.kernel(fn, **options)
