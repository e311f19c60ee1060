"""Causal attention: a block of queries against the blocks of keys up to it, with an online softmax.

Blocks of keys that lie behind every query of the block are never read: the inner loop ends where
the block of queries does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``q``, ``k``, ``v``: batch, heads, positions, width."""
    positions, width = q.size(-2), hl.specialize(q.size(-1))
    queries = q.reshape([-1, positions, width])
    keys = k.reshape([-1, positions, width])
    values = v.reshape([-1, positions, width])
    out = torch.empty_like(queries)
    scale = 1.0 / math.sqrt(width) * math.log2(math.e)  # exp2 instead of exp
    for tile_b, tile_m in hl.tile([queries.size(0), positions], block_size=[1, None]):
        top = hl.full([tile_m], float("-inf"), dtype=torch.float32)
        total = hl.zeros([tile_m], dtype=torch.float32)
        acc = hl.zeros([tile_m, width], dtype=torch.float32)
        query = queries[tile_b.begin, tile_m, :]
        for tile_n in hl.tile(0, tile_m.end):
            scores = hl.dot(query, keys[tile_b.begin, tile_n, :].transpose(0, 1)) * scale
            seen = tile_m.index[:, None] >= tile_n.index[None, :]
            scores = torch.where(seen, scores, float("-inf"))
            higher = torch.maximum(top, torch.amax(scores, dim=-1))
            weights = torch.exp2(scores - higher[:, None])
            shrink = torch.exp2(top - higher)
            total = total * shrink + torch.sum(weights, dim=-1)
            acc = acc * shrink[:, None]
            acc = hl.dot(weights.to(v.dtype), values[tile_b.begin, tile_n, :], acc=acc)
            top = higher
        out[tile_b.begin, tile_m, :] = (acc / total[:, None]).to(out.dtype)
    return out.view(q.size())


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1, 1), (2, 3, 37, 16), (1, 2, 64, 32)):
        yield attention, reference, tuple(torch.randn(3, *shape))


def main(size: int = 1024) -> None:
    q, k, v = torch.randn(3, 2, 16, size, 64, device=DEVICE)
    run_example(attention, reference, (q, k, v))


if __name__ == "__main__":
    main()
