"""A mixture of experts: each token's row times the matrix of the expert that it chose.

The host sorts the tokens by expert; a grid position takes one expert and loops over its tokens,
whose number only the data knows. Rows are gathered on the way in and scattered on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def grouped_gemm(
    x: torch.Tensor, weights: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """``order``: the tokens by expert; those of expert e start at offsets[e]."""
    tokens, k = x.size()
    experts, _, n = weights.size()
    out = torch.empty([tokens, n], dtype=x.dtype, device=x.device)
    for e in hl.grid(experts):
        start = offsets[e]
        count = offsets[e + 1] - start
        for tile_t, tile_n in hl.tile([count, n]):
            rows = order[start + tile_t.index]
            acc = hl.zeros([tile_t, tile_n], dtype=torch.float32)
            for tile_k in hl.tile(k):
                acc = torch.addmm(acc, x[rows, tile_k], weights[e, tile_k, tile_n])
            out[rows, tile_n] = acc.to(x.dtype)
    return out


def moe(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return grouped_gemm(x, weights, *by_expert(chosen, weights.size(0)))


def by_expert(chosen: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.bincount(chosen, minlength=experts)
    return torch.argsort(chosen), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def reference(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    out = x.new_empty([x.size(0), weights.size(2)])
    for e in range(weights.size(0)):
        rows = torch.nonzero(chosen == e).view(-1)
        out[rows] = x[rows] @ weights[e]
    return out


def reference_grouped(
    x: torch.Tensor, weights: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    chosen = torch.empty_like(order)
    chosen[order] = torch.arange(weights.size(0)).repeat_interleave(offsets.diff())
    return reference(x, weights, chosen)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for tokens, experts, k, n in ((1, 1, 1, 1), (37, 5, 33, 17), (8, 16, 16, 32)):
        routed = by_expert(torch.randint(experts, (tokens,)), experts)
        x, weights = torch.randn(tokens, k), torch.randn(experts, k, n)
        yield grouped_gemm, reference_grouped, (x, weights, *routed)


def main(size: int = 1024) -> None:
    x = torch.randn(size, 256, device=DEVICE)
    weights = torch.randn(8, 256, 512, device=DEVICE)
    run_example(moe, reference, (x, weights, torch.randint(8, (size,), device=DEVICE)))


if __name__ == "__main__":
    main()
