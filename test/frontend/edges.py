"""Kernels at the edges of the language: ragged tiles, loops without rounds, merged variables."""

from __future__ import annotations

from typing import Any

import torch

import torch_helion.language as hl
from test.frontend.kernels import kernel, rand


def _chunks(x: torch.Tensor, fn: Any) -> torch.Tensor:
    return torch.stack([fn(x[:, k : k + 4]) for k in range(0, x.size(1), 4)], 1)


def _facts(x: Any) -> Any:
    """Per chunk of four columns: what a reduction over a ragged tile gives."""
    return (
        _chunks(x, lambda c: c.mean(1)),
        _chunks(x, lambda c: c.exp().amin(1)),
        _chunks(x, lambda c: c.argmax(1)),
        _chunks(x, lambda c: c.var(1, correction=0)),
        _chunks(x, lambda c: torch.softmax(c, 1).amax(1)),
        _chunks(x, lambda c: c.cumsum(1).amax(1)),
        _chunks(x, lambda c: (c + 1).prod(1)),
        _chunks(x, lambda c: torch.sort(c, 1)[0].sum(1)),
    )


@kernel(-rand(5, 11).abs() - 1, expect=_facts)
def ragged(x: torch.Tensor) -> Any:
    n = (x.size(1) + 3) // 4
    a, b, d, e, f, g, h = (torch.empty(x.size(0), n) for _ in range(7))
    c = torch.empty(x.size(0), n, dtype=torch.int64)
    for tile in hl.tile(x.size(0)):
        for part in hl.tile(x.size(1), block_size=4):
            v = x[tile, part]
            a[tile, part.id] = v.mean(1)
            b[tile, part.id] = v.exp().amin(1)
            c[tile, part.id] = v.argmax(1)
            d[tile, part.id] = v.var(1, correction=0)
            e[tile, part.id] = torch.softmax(v, 1).amax(1)
            f[tile, part.id] = v.cumsum(1).amax(1)
            g[tile, part.id] = (v + 1).prod(1)
            h[tile, part.id] = torch.sort(v, 1)[0].sum(1)
    return a, b, c, d, e, f, g, h


@kernel(rand(6), 3, expect=lambda x, n: torch.where(x > 0, x + 3, x * 2 + 1))
def merged(x: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.empty_like(x)
    for i in hl.grid(x.size(0)):
        v = x[i]
        name, count = "a", 0
        if v > 0:
            w = v + n
            count = 2
            if n > 100:
                w = w * 50
        else:
            w = v * 2
            count = count + 1
        if count == 1:
            w = w + count
        if name == "a":
            out[i] = w
    return out


@kernel(
    rand(7),
    torch.tensor([0, 2, 5]),
    expect=lambda x, k: torch.stack([x[:n].sum() * 1 + n for n in (0, 2, 5)]),
)
def maybe_no_rounds(x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    out = torch.empty(3)
    for i in hl.grid(3):
        total = 0.0
        rounds = 0
        for j in range(counts[i]):
            total = total + x[j]
            rounds += 1
        for _ in hl.tile(counts[i]):
            last = total
            total = last * 1
        out[i] = total + rounds
    return out


def _indexed(x: Any) -> Any:
    return x[-1], x[1:4:2], x[x.size(0) - 2, 1], x[:, -2:], x[2][None, :]


@kernel(rand(6, 5), expect=_indexed)
def constant_indices(x: torch.Tensor) -> Any:
    a, b, c = torch.empty(5), torch.empty(2, 5), torch.empty(())
    d, e = torch.empty(6, 2), torch.empty(1, 5)
    for _ in hl.grid(1):
        a[:] = x[-1, :]
        b[:, :] = x[1:4:2, :]
        c[()] = x[x.size(0) - 2, 1]
        d[:, :] = x[:, -2:]
        e[:, :] = x[2, None, :]
    return a, b, c, d, e


def _stored(x: Any) -> Any:
    flags = x > 0
    return torch.full_like(x, 3), x.sum(1, keepdim=True).expand(4, 6), flags, x[:, :1] * 1, x.half()


@kernel(rand(4, 6), expect=_stored)
def stores(x: torch.Tensor) -> Any:
    a, b, h = torch.empty_like(x), torch.empty_like(x), torch.empty(4, 6, dtype=torch.float16)
    c, d = torch.empty(4, 6, dtype=torch.bool), torch.empty(4, 1)
    for i, j in hl.tile([4, 6], block_size=[None, 6]):
        a[i, j] = 3
        b[i, j] = x[i, j].sum(1, keepdim=True)
        c[i, j] = x[i, j] > 0
        d[i, :] = x[i, 0][:, None]
        h[i, j] = x[i, j]
    return a, b, c, d, h


def _gram(x: Any) -> Any:
    g = x @ x.T
    return g.amax(1), (x[:, None, :] - x[None, :, :]).abs().sum(2).amin(1), torch.tril(g).sum(1)


@kernel(rand(7, 3), expect=_gram)
def twice_one_tile(x: torch.Tensor) -> Any:
    a, b, c = torch.empty(7), torch.empty(7), torch.empty(7)
    for tile in hl.tile(7, block_size=8):
        v = x[tile, :]
        g = v @ v.T
        a[tile] = g.amax(1)
        b[tile] = (v[:, None, :] - v[None, :, :]).abs().sum(2).amin(1)
        lower = tile.index[:, None] >= tile.index[None, :]
        c[tile] = torch.where(lower, g, 0.0).sum(1)
    return a, b, c


@kernel(rand(9, 5), expect=lambda x: (x.sum(0), x.amax(0), x[::2].sum(0)), tolerance=1e-4)
def carried_pairs(x: torch.Tensor) -> Any:
    a, b, c = torch.empty(5), torch.empty(5), torch.empty(5)
    for tile in hl.tile(5):
        state = (hl.zeros([tile]), hl.full([tile], float("-inf")))
        even = hl.zeros([tile])
        row, other = 0, hl.zeros([tile])
        while row < x.size(0):
            total, top = state
            state = (total + x[row, tile], torch.maximum(top, x[row, tile]))
            row += 1
        for k in hl.tile(x.size(0)):
            v = x[k, tile]
            even, other = even + torch.where((k.index % 2 == 0)[:, None], v, 0.0).sum(0), even
        a[tile] = state[0]
        b[tile] = state[1]
        c[tile] = even + other * 0
    return a, b, c


@kernel(rand(12), expect=lambda x: (x * 2, (x * 2).sum() + 12))
def phases(x: torch.Tensor) -> Any:
    a, b = torch.empty_like(x), torch.empty(1)
    for tile in hl.tile(12):
        a[tile] = x[tile] * 2
    hl.barrier()
    for i in hl.grid(1):
        total = 0.0
        for tile in hl.tile(12):
            total += a[tile].sum() + (tile.end - tile.begin)
        b[i] = total
    return a, b[0]
