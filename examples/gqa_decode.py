"""One decoding step of attention with grouped heads, on a cache filled to a different length each.

The queries that share a head of the cache are the rows of one product, so that each key is read
once for all of them; the loop over keys ends at the sequence's own length.
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
def gqa_decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """``q``: batch, heads, width; ``k``, ``v``: batch, groups of heads, positions, width."""
    batch, groups = k.size(0), k.size(1)
    width = hl.specialize(q.size(-1))
    shared = hl.specialize(q.size(1) // k.size(1))
    queries = q.view([batch, groups, shared, width])
    out = torch.empty_like(queries)
    scale = 1.0 / math.sqrt(width)
    for b, g in hl.grid([batch, groups]):
        query = queries[b, g, :, :]
        top = hl.full([shared], float("-inf"), dtype=torch.float32)
        total = hl.zeros([shared], dtype=torch.float32)
        acc = hl.zeros([shared, width], dtype=torch.float32)
        for tile_n in hl.tile(lengths[b]):
            scores = hl.dot(query, k[b, g, tile_n, :].transpose(0, 1)) * scale
            higher = torch.maximum(top, torch.amax(scores, dim=-1))
            weights = torch.exp(scores - higher[:, None])
            shrink = torch.exp(top - higher)
            total = total * shrink + torch.sum(weights, dim=-1)
            acc = acc * shrink[:, None]
            acc = hl.dot(weights.to(v.dtype), v[b, g, tile_n, :], acc=acc)
            top = higher
        out[b, g, :, :] = (acc / total[:, None]).to(out.dtype)
    return out.view(q.size())


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    real = torch.arange(k.size(2))[None, :] < lengths[:, None]
    out = F.scaled_dot_product_attention(
        q[:, :, None, :], k, v, attn_mask=real[:, None, None, :], enable_gqa=True
    )
    return out[:, :, 0, :].contiguous()


def inputs(batch: int, heads: int, groups: int, positions: int, width: int) -> tuple:
    lengths = torch.randint(1, positions + 1, (batch,))
    k, v = torch.randn(2, batch, groups, positions, width)
    return tuple(t.to(DEVICE) for t in (torch.randn(batch, heads, width), k, v, lengths))


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1, 1, 1), (3, 6, 2, 37, 16), (2, 8, 2, 64, 32)):
        yield gqa_decode, reference, inputs(*shape)


def main(size: int = 4096) -> None:
    run_example(gqa_decode, reference, inputs(8, 32, 8, size, 64))


if __name__ == "__main__":
    main()
