"""The gated delta rule, step by step: a memory that fades, and that each key corrects.

The state maps keys to values; before a value is stored, what the memory already answers for its
key is taken off. The columns of the state are independent and are what the grid is made of.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def gated_delta_rule(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """``q``, ``k``: heads, time, keys; ``v``: heads, time, values; ``gate``, ``beta``: heads,
    time."""
    heads, time, values = v.size()
    keys = hl.specialize(k.size(-1))
    out = torch.empty_like(v)
    for tile_h, tile_v in hl.tile([heads, values], block_size=[1, None]):
        h = tile_h.begin
        state = hl.zeros([keys, tile_v], dtype=torch.float32)
        for t in hl.grid(time):
            key = k[h, t, :][:, None]
            state = state * torch.exp(gate[h, t])
            known = (key * state).sum(0)
            change = (v[h, t, tile_v] - known) * beta[h, t]
            state = state + key * change[None, :]
            out[h, t, tile_v] = (q[h, t, :][:, None] * state).sum(0)
    return out


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    state = v.new_zeros([v.size(0), k.size(-1), v.size(-1)])
    rows = []
    for t in range(v.size(1)):
        key = k[:, t, :, None]
        state = state * gate[:, t].exp()[:, None, None]
        change = (v[:, t] - (key * state).sum(1)) * beta[:, t, None]
        state = state + key * change[:, None, :]
        rows.append((q[:, t, :, None] * state).sum(1))
    return torch.stack(rows, 1)


def inputs(heads: int, time: int, keys: int, values: int) -> tuple[torch.Tensor, ...]:
    q, k = F.normalize(torch.randn(2, heads, time, keys), dim=-1)
    gate, beta = torch.rand(2, heads, time)
    found = (q, k, torch.randn(heads, time, values), -gate, beta)
    return tuple(t.to(DEVICE) for t in found)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1, 1), (3, 19, 7, 37), (2, 16, 16, 32)):
        yield gated_delta_rule, reference, inputs(*shape)


def main(size: int = 512) -> None:
    run_example(gated_delta_rule, reference, inputs(8, size, 64, 64))


if __name__ == "__main__":
    main()
