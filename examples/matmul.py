"""A product with an epilogue that the caller brings along: a closure over tensors of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example

Epilogue = Callable[[torch.Tensor, tuple], torch.Tensor]


@helion.kernel
def matmul(
    x: torch.Tensor, y: torch.Tensor, epilogue: Epilogue = lambda acc, tiles: acc
) -> torch.Tensor:
    """``epilogue`` maps the accumulator of a tile, given the tile's place, to the result."""
    m, k = x.size()
    k2, n = y.size()
    assert k == k2, f"size mismatch: {k} and {k2}"
    out = torch.empty([m, n], dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = epilogue(acc, (tile_m, tile_n)).to(out.dtype)
    return out


def bias_relu(bias: torch.Tensor) -> Epilogue:
    return lambda acc, tiles: torch.relu(acc + bias[tiles[1]])


def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ y


def reference_bias_relu(bias: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda x, y, *_: torch.relu(x @ y + bias)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for m, k, n in ((1, 1, 1), (33, 65, 17), (64, 32, 48)):
        x, y, bias = torch.randn(m, k), torch.randn(k, n), torch.randn(n)
        yield matmul, reference, (x, y)
        yield matmul, reference_bias_relu(bias), (x, y, bias_relu(bias))


def main(size: int = 1024) -> None:
    x, y = torch.randn(2, size, size, device=DEVICE)
    bias = torch.randn(size, device=DEVICE)
    fused = functools.partial(matmul, epilogue=bias_relu(bias))
    run_example(fused, reference_bias_relu(bias), (x, y))


if __name__ == "__main__":
    main()
