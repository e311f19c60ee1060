"""Idioms of the language's public documentation, one small kernel each, beside what they compute.

Each row: the function, its arguments, what eager mode gives, a tolerance (None: that of the dtype).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl

Row = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any], float | None]
IDIOMS: dict[str, Row] = {}


def idiom(*args: Any, expect: Callable[..., Any], tolerance: float | None = None) -> Any:
    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        IDIOMS[fn.__name__] = (fn, args, expect, tolerance)
        return fn

    return register


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(n * 31**i for i, n in enumerate(shape)))
    return torch.randn(shape, generator=generator).to(dtype)


def ints(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(high + len(shape))
    return torch.randint(0, high, shape, generator=generator).to(dtype)


# -- loops ----------------------------------------------------------------------------------------


@idiom(rand(70), expect=lambda x: x * 2)
def begin_end_block(x):
    out = torch.zeros_like(x)
    for tile in hl.tile(0, x.size(0), block_size=16):
        out[tile] = x[tile] * 2
    return out


@idiom(rand(9, 10), expect=lambda x: F.pad(x[2:7, 3:9], (3, 1, 2, 2)))
def begins_ends(x):
    out = torch.zeros_like(x)
    for i, j in hl.tile([2, 3], [7, 9], block_size=[2, None]):
        out[i, j] = x[i, j]
    return out


@idiom(rand(6, 5), expect=lambda x: x + 1)
def list_of_one(x):
    out = torch.empty_like(x)
    for (tile,) in hl.tile([x.size(0)]):
        out[tile, :] = x[tile, :] + 1
    return out


@idiom(rand(4, 6, 5), expect=lambda x: x * 3)
def rank_of_any(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] * 3
    return out


@idiom(rand(37), expect=lambda x: torch.arange(0.0, 37.0).to(x.dtype))
def block_arange(x):
    out = torch.empty_like(x)
    size = hl.register_block_size(x.size(0))
    for tile in hl.tile(x.size(0), block_size=size):
        out[tile] = (tile.begin + hl.arange(tile.block_size)).to(x.dtype)
    return out


@idiom(rand(37), expect=lambda x: x.view(-1) + 4)
def begin_plus_arange(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0), block_size=8):
        idx = tile.begin + hl.arange(tile.block_size)
        keep = idx < x.size(0)
        v = hl.load(x, [idx], extra_mask=keep)
        hl.store(out, [idx], v + 4, extra_mask=keep)
    return out


@idiom(rand(40, 12), expect=lambda x: x.sum(0))
def partial_sums(x):
    size = hl.register_block_size(x.size(0))
    parts = torch.zeros([helion.cdiv(x.size(0), size), x.size(1)])
    for tile in hl.tile(x.size(0), block_size=size):
        parts[tile.id, :] = x[tile, :].sum(0)
    return parts.sum(0)


@idiom(rand(20, 33), expect=lambda x: x.sum(-1))
def tile_of_tile_range(x):
    out = x.new_empty(x.size(0))
    outer = hl.register_block_size(8, 32)
    for m in hl.tile(x.size(0), block_size=outer):
        for mm in hl.tile(m.begin, m.end):
            acc = hl.zeros([mm], dtype=torch.float32)
            for n in hl.tile(x.size(1)):
                acc += x[mm, n].sum(-1)
            out[mm] = acc
    return out


@idiom(rand(20), expect=lambda x: (x, torch.tensor([0, 8, 16]), torch.tensor([8, 16, 20])))
def tile_functions(x):
    out = torch.empty_like(x)
    begins = torch.empty([3], dtype=torch.int64)
    ends = torch.empty([3], dtype=torch.int64)
    for tile in hl.tile(x.size(0), block_size=8):
        out[hl.tile_index(tile)] = x[tile]
        begins[hl.tile_id(tile)] = hl.tile_begin(tile)
        ends[tile.id] = hl.tile_end(tile)
    return out, begins, ends


@idiom(rand(20), expect=lambda x: x + 3 + 8)
def tile_count(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0), block_size=8):
        out[tile] = x[tile] + hl.tile_count(tile) + hl.tile_block_size(tile)
    return out


@idiom(rand(5, 6, 7), expect=lambda x: x.sum(-1))
def grid_then_tile(x):
    out = x.new_empty(x.shape[:2])
    for i in hl.grid(x.size(0)):
        for tile in hl.tile(x.size(1)):
            out[i, tile] = x[i, tile, :].sum(-1)
    return out


@idiom(rand(24), expect=lambda x: torch.where(torch.arange(24) % 3 == 0, x, 0))
def grid_step(x):
    out = torch.zeros_like(x)
    for i in hl.grid(0, x.size(0), step=3):
        out[i] = x[i]
    return out


@idiom(rand(6, 9), expect=lambda x: x[:, 1:9:2].sum(-1))
def range_step(x):
    out = x.new_empty(x.size(0))
    for tile in hl.tile(x.size(0)):
        acc = hl.zeros([tile])
        for j in range(1, 9, 2):
            acc += x[tile, j]
        out[tile] = acc
    return out


@idiom(rand(6, 4), expect=lambda x: (x * torch.arange(4.0)).sum(-1))
def static_ranges(x):
    out = x.new_empty(x.size(0))
    for tile in hl.tile(x.size(0)):
        acc = hl.zeros([tile])
        for j in hl.static_range(0, 4, 1):
            acc = acc + x[tile, j] * j
        out[tile] = acc
    return out


@idiom(rand(30), torch.tensor([7, 21]), expect=lambda x, r: x[7:21].sum())
def bounds_of_data(x, r):
    out = x.new_zeros([1])
    for _ in hl.grid(1):
        begin = r[0]
        end = r[1]
        acc = hl.zeros([], dtype=torch.float32)
        for tile in hl.tile(begin, end):
            acc = acc + x[tile].sum()
        out[0] = acc
    return out[0]


@idiom(
    rand(12, 9),
    torch.tensor([9, 0, 4] * 4),
    expect=lambda x, n: torch.stack([r[:k].sum() for r, k in zip(x, n.tolist(), strict=True)]),
)
def jagged_rows(x, lengths):
    out = x.new_zeros([lengths.size(0)])
    for b in hl.tile(lengths.size(0)):
        acc = hl.zeros([b], dtype=x.dtype)
        for k in hl.jagged_tile(lengths[b]):
            acc = acc + x[b, k].sum(dim=1)
        out[b] = acc
    return out


@idiom(
    rand(12, 9),
    torch.tensor([9, 0, 4] * 4),
    expect=lambda x, n: torch.stack([r[:k].sum() for r, k in zip(x, n.tolist(), strict=True)]),
)
def jagged_by_mask(x, lengths):
    out = x.new_zeros([lengths.size(0)])
    for b in hl.tile(lengths.size(0)):
        n = lengths[b]
        most = n.amax()
        acc = hl.zeros([b], dtype=x.dtype)
        for k in hl.tile(most):
            keep = k.index[None, :] < n[:, None]
            acc = acc + hl.load(x, [b, k], extra_mask=keep).sum(dim=1)
        out[b] = acc
    return out


@idiom(rand(32), expect=lambda x: (x * 2, x * 2 + 1))
def two_phases(x):
    a, b = torch.empty_like(x), torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        a[tile] = x[tile] * 2
    hl.barrier()
    for tile in hl.tile(x.size(0)):
        b[tile] = a[tile] + 1
    return a, b


# -- subscripts -----------------------------------------------------------------------------------


@idiom(rand(10, 12), expect=lambda x: x.t())
def transposed(x):
    out = x.new_empty([x.size(1), x.size(0)])
    for i, j in hl.tile(x.shape):
        out[j, i] = x[i, j].T
    return out


@idiom(rand(10, 12), rand(12), expect=lambda x, b: x + b)
def bias_row(x, b):
    out = torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        out[i, j] = x[i, j] + b[None, j]
    return out


@idiom(rand(10, 12), expect=torch.tril)
def triangle(x):
    out = torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        out[i, j] = torch.where(i.index[:, None] >= j.index[None, :], x[i, j], 0.0)
    return out


@idiom(rand(20), expect=lambda x: x.flip(0))
def flipped(x):
    out = torch.empty_like(x)
    n = x.size(0)
    for tile in hl.tile(n):
        out[n - 1 - tile.index] = x[tile]
    return out


@idiom(rand(20), expect=lambda x: torch.cat([x[1:], x.new_zeros(1)]))
def neighbour(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = hl.load(x, [tile + 1], extra_mask=tile.index + 1 < x.size(0))
    return out


@idiom(rand(12, 8), ints(12, 5), expect=lambda w, i: w[i])
def rows_by_index(w, idx):
    out = w.new_empty([idx.size(0), w.size(1)])
    for tile in hl.tile(idx.size(0)):
        out[tile, :] = w[idx[tile], :]
    return out


@idiom(rand(12, 8), ints(8, 12), expect=lambda x, i: x.gather(1, i[:, None])[:, 0])
def picked(x, idx):
    flat = x.view(-1)
    out = x.new_empty(x.size(0))
    for tile in hl.tile(x.size(0)):
        out[tile] = hl.load(flat, [tile.index * x.size(1) + idx[tile]])
    return out


@idiom(rand(6, 16), expect=lambda x: x[:, 0::2] + x[:, 1::2])
def even_and_odd(x):
    out = x.new_empty([x.size(0), x.size(1) // 2])
    for i, j in hl.tile(out.shape):
        out[i, j] = x[i, j.index * 2] + x[i, j.index * 2 + 1]
    return out


@idiom(rand(6, 16), expect=lambda x: torch.cat([-x[:, 8:], x[:, :8]], -1))
def halves_swapped(x):
    out = torch.empty_like(x)
    half = x.size(1) // 2
    for tile in hl.tile(x.size(0)):
        row = x[tile, :]
        out[tile, :] = torch.cat([-row[:, half:], row[:, :half]], dim=-1)
    return out


@idiom(rand(6, 16), expect=lambda x: torch.cat([x[:, 1::3], x[:, -2:], x[:, 4:5]], -1))
def parts_end_to_end(x):
    out = x.new_empty([x.size(0), 8])
    for tile in hl.tile(x.size(0)):
        row = x[tile, :]
        out[tile, :] = torch.cat([row[:, 1::3], row[..., -2:], row[:, 4:5]], 1)
    return out


@idiom(rand(5, 3, 4), expect=lambda x: x[:, 1] - x[:, 2])
def number_in_value(x):
    out = x.new_empty([5, 4])
    for tile in hl.tile(5):
        v = x[tile, :, :]
        out[tile, :] = v[:, 1] - v[:, 2, :]
    return out


@idiom(
    rand(5, 8),
    ints(8, 5, 3),
    expect=lambda x, i: (torch.zeros(5, 8).scatter(1, i.sort(1)[0], 1.0), x.gather(1, i)),
)
def scatter_and_gather(x, idx):
    out, got = torch.empty_like(x), x.new_empty(idx.shape)
    for tile in hl.tile(x.size(0)):
        i = idx[tile, :]
        out[tile, :] = torch.zeros_like(x[tile, :]).scatter(1, i, 1.0)
        got[tile, :] = torch.gather(x[tile, :], 1, i)
    return out, got


@idiom(
    rand(5, 8),
    ints(8, 5, 6),
    rand(5, 6),
    expect=lambda x, i, s: x.scatter_add(1, i, s),
    tolerance=1e-5,
)
def scatter_add(x, idx, s):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = x[tile, :].scatter_add(1, idx[tile, :], s[tile, :])
    return out


@idiom(rand(4, 9, 5), expect=lambda x: x[:, 3])
def fixed_middle(x):
    out = x.new_empty([4, 5])
    for i, j in hl.tile([4, 5]):
        out[i, j] = x[i, 3, j]
    return out


@idiom(rand(1, 7), rand(6, 7), expect=lambda x, y: x + y)
def size_one_broadcasts(x, y):
    out = torch.empty_like(y)
    for i, j in hl.tile(y.shape):
        out[i, j] = x[i, j] + y[i, j]
    return out


@idiom(rand(6, 7), torch.tensor(2.5), expect=lambda x, s: x * s + s)
def scalar_tensor(x, s):
    out = torch.empty_like(x)
    for tile in hl.tile(x.shape):
        out[tile] = x[tile] * s[()] + s
    return out


@idiom(rand(6, 8), expect=lambda x: x[..., :4] + x[..., 4:])
def slices_of_host(x):
    out = x.new_empty([6, 4])
    for tile in hl.tile(6):
        out[tile, :] = x[tile, 0:4] + x[tile, 4:]
    return out


# -- helpers, arguments ---------------------------------------------------------------------------


def _relu_scaled(x, scale=2.0):
    if scale == 0:
        return x
    y = torch.relu(x)
    return y * scale


@idiom(rand(10), expect=lambda x: torch.relu(x) * 3 + torch.relu(x) * 2)
def helper_functions(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        v = x[tile]
        out[tile] = _relu_scaled(v, scale=3.0) + _relu_scaled(v)
    return out


SCALE = 1.5
TABLE = torch.arange(8, dtype=torch.float32)


@idiom(rand(8), expect=lambda x: x * 1.5 + torch.arange(8.0))
def module_globals(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * SCALE + TABLE[tile]
    return out


@idiom(rand(8), rand(8), lambda v, tile: torch.tanh(v), expect=lambda x, y, f: torch.tanh(x + y))
def epilogue_argument(x, y, epilogue):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = epilogue(x[tile] + y[tile], tile)
    return out


def _closing(bias, scale):
    def epilogue(v, tile):
        return v * scale + bias[tile]

    return epilogue


@idiom(rand(8), _closing(rand(8), 3.0), expect=lambda x, f: x * 3.0 + rand(8))
def closure_argument(x, epilogue):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = epilogue(x[tile], tile)
    return out


@idiom(
    rand(8),
    functools.partial(torch.clamp, min=-0.5, max=0.5),
    expect=lambda x, f: x.clamp(-0.5, 0.5),
)
def partial_argument(x, f):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = f(x[tile])
    return out


class Weights(NamedTuple):
    w: torch.Tensor
    b: torch.Tensor


@dataclasses.dataclass
class Options:
    scale: float
    shift: torch.Tensor


@idiom(
    rand(8),
    Weights(rand(8), rand(8) + 1),
    Options(2.0, rand(8)),
    expect=lambda x, p, o: (x * p.w + p.b) * 2.0 + o.shift,
)
def structured_arguments(x, p, o):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = (x[tile] * p.w[tile] + p.b[tile]) * o.scale + o.shift[tile]
    return out


@idiom(
    rand(8, 4),
    torch.float64,
    torch.device("cpu"),
    None,
    "mean",
    True,
    expect=lambda x, *a: x.double().mean(-1),
)
def kinds_of_arguments(x, dtype, device, nothing, mode, flag):
    out = torch.empty(x.size(0), dtype=dtype, device=device)
    for tile in hl.tile(x.size(0)):
        row = x[tile, :].to(dtype)
        if nothing is None and mode == "mean" and flag:
            out[tile] = row.mean(-1)
        else:
            out[tile] = row.sum(-1)
    return out


@idiom(rand(10, 6), expect=lambda x: x @ x.T.contiguous())
def constexpr_and_specialize(x, block: hl.constexpr = 4):
    n, k = x.size(0), hl.specialize(x.size(1))
    out = x.new_empty([n, n])
    for i, j in hl.tile([n, n], block_size=[block, None]):
        acc = hl.zeros([i, j])
        for c in hl.static_range(k):
            acc += x[i, c][:, None] * x[j, c][None, :]
        out[i, j] = acc
    return out


@idiom(rand(8, 8), expect=lambda x: x + x.t() * 2)
def views_on_the_host(x):
    y = x.t()
    flat = x.reshape(-1).view(8, 8)
    out = torch.empty_strided(x.shape, (1, 8), dtype=x.dtype)
    for i, j in hl.tile(x.shape):
        out[i, j] = flat[i, j] + y[i, j] * 2
    return out
