"""Programs as other people write them: odd combinations of what the documentation names.

In: the registry of `idioms`. Out: more rows of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from test.language.idioms import idiom, ints, rand

HALF = torch.float16

# -- subscripts and loops -------------------------------------------------------------------------


@idiom(rand(33), expect=lambda x: x + 1)
def a_bare_tile_as_the_index(x):
    out = torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        hl.store(out, t, hl.load(x, t) + 1)
    return out


@idiom(rand(33, 7), expect=lambda x: x + 1)
def tuples_as_the_index(x):
    out = torch.empty_like(x)
    for t, s in hl.tile(x.shape):
        hl.store(out, (t, s), hl.load(x, (t, s), eviction_policy="evict_first") + 1)
    return out


@idiom(rand(5, 6), expect=lambda x: torch.stack([x, x * 2]))
def a_number_before_tiles(x):
    out = torch.empty([2, *x.shape], dtype=x.dtype, device=x.device)
    for t in hl.tile([x.size(0), x.size(1)]):
        out[0, t[0], t[1]] = x[t]
        hl.store(out, [1, t[0], t[1]], x[t] * 2)
    return out


@idiom(rand(12, 8), expect=lambda x: x[::3, 1::2].contiguous())
def steps_of_two_grids(x):
    out = x.new_empty(4, 4)
    for i, j in hl.grid([0, 1], [x.size(0), x.size(1)], step=[3, 2]):
        out[i // 3, j // 2] = x[i, j]
    return out


@idiom(rand(8, 16), expect=lambda x: x.cumsum(1), tolerance=1e-5)
def a_store_in_a_loop_of_counters(x):
    out = torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        acc = hl.zeros([t], dtype=x.dtype)
        for j in hl.grid(x.size(1)):
            acc = acc + x[t, j]
            out[t, j] = acc
    return out


@idiom(
    rand(32),
    expect=lambda x: torch.tensor([[8 * i, 8 * i + 8, i, 8, 4] for i in range(4)]),
)
def facts_of_tiles(x):
    out = torch.empty([4, 5], dtype=torch.int64, device=x.device)
    for t in hl.tile(x.size(0), block_size=8):
        out[t.id, 0] = t.begin
        out[t.id, 1] = t.end
        out[t.id, 2] = t.id
        out[t.id, 3] = t.block_size
        out[t.id, 4] = t.count
    return out


@idiom(rand(10), expect=lambda x: F.pad(x, (5, 0)))
def a_store_to_a_moved_tile(x):
    out = x.new_zeros([15])
    for t in hl.tile(x.size(0)):
        hl.store(out, [t + 5], x[t])
    return out


@idiom(rand(10), rand(15, 4), rand(3), expect=lambda x, y, z: (x * 2, y.sum(1), z - 1))
def three_roots(x, y, z):
    a, b, c = torch.empty_like(x), y.new_empty(y.size(0)), torch.empty_like(z)
    for t in hl.tile(x.size(0)):
        a[t] = x[t] * 2
    for t in hl.tile(y.size(0)):
        acc = hl.zeros([t])
        for s in hl.tile(y.size(1)):
            acc = acc + y[t, s].sum(-1)
        b[t] = acc
    for i in hl.grid(z.size(0)):
        c[i] = z[i] - 1
    return a, b, c


@idiom(rand(64, 48), expect=lambda x: x.sum(1), tolerance=1e-4)
def an_accumulator_of_a_registered_block(x):
    m, n = x.size()
    block = hl.register_block_size(2, 64)
    out = x.new_empty(m)
    for t in hl.tile(m):
        acc = hl.zeros([t, block], dtype=torch.float32)
        for s in hl.tile(n, block_size=block):
            acc = acc + x[t, s]
        out[t] = acc.sum(-1)
    return out


@idiom(
    rand(10),
    torch.tensor([0, 3, 3, 10]),
    expect=lambda x, o: torch.stack([x[0:3].sum(), x[3:3].sum(), x[3:10].sum()]),
)
def segments_by_offsets(x, offsets):
    count = offsets.size(0) - 1
    out = x.new_empty(count)
    for g in hl.grid(count):
        acc = hl.zeros([], dtype=torch.float32)
        for t in hl.tile(offsets[g], offsets[g + 1]):
            acc = acc + x[t].sum()
        out[g] = acc
    return out


# -- functions of the language --------------------------------------------------------------------


def _larger(a, i, b, j):
    keep = a > b
    return torch.where(keep, a, b), torch.where(keep, i, j)


def _larger_of_pairs(left, right):
    return _larger(*left, *right)


@idiom(rand(7, 21), expect=lambda x: x.cumprod(1), tolerance=1e-4)
def a_lambda_in_the_call(x):
    out = torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        out[t, :] = hl.associative_scan(lambda a, b: a * b, x[t, :], dim=1)
    return out


@idiom(rand(7, 21), rand(7), expect=lambda x, s: (x.cumsum(1) + 0, x.sum(1)), tolerance=1e-4)
def lambdas_that_read_other_names(x, s):
    out, total = torch.empty_like(x), torch.empty_like(s)
    one = 1.0
    for t in hl.tile(x.size(0)):
        out[t, :] = hl.associative_scan(lambda a, b: a * one + b, x[t, :], dim=1)
        total[t] = hl.reduce(lambda a, b: a + b * one, x[t, :], dim=1)
    return out, total


@idiom(rand(7, 21), expect=lambda x: (x.cummax(1).values, x.cummax(1).indices.float()))
def scans_of_flat_pairs(x):
    out, place = torch.empty_like(x), torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        v = x[t, :]
        i = hl.arange(x.size(1)).to(torch.float32)[None, :].expand_as(v)
        a, b = hl.associative_scan(_larger, (v, i), dim=1)
        out[t, :] = a
        place[t, :] = b
    return out, place


@idiom(
    rand(7, 21),
    expect=lambda x: (x.amax(1, keepdim=True), x.argmax(1, keepdim=True).to(torch.int32)),
)
def reductions_of_pairs_that_keep_dims(x):
    most = x.new_empty(x.size(0), 1)
    place = torch.empty([x.size(0), 1], dtype=torch.int32, device=x.device)
    for t in hl.tile(x.size(0)):
        v = x[t, :]
        i = torch.zeros_like(v, dtype=torch.int32) + hl.arange(x.size(1), dtype=torch.int32)
        m, k = hl.reduce(_larger_of_pairs, (v, i), dim=1, other=(float("-inf"), 0), keep_dims=True)
        most[t, :] = m
        place[t, :] = k
    return most, place


@idiom(rand(21, 6), expect=lambda x: torch.where(torch.arange(21)[:, None] % 2 == 0, x, 0.0))
def a_mask_that_broadcasts(x):
    out = torch.empty_like(x)
    for t, s in hl.tile(x.shape):
        out[t, s] = hl.load(x, [t, s], extra_mask=(t.index % 2 == 0)[:, None])
    return out


@idiom(
    ints(3, 12, dtype=torch.int32),
    expect=lambda x: (torch.where(x == 1, torch.full_like(x, 9), x), x),
)
def exchanges_with_an_order(x):
    new, old = x.clone(), torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        one = hl.full([t], 1, dtype=torch.int32)
        nine = hl.full([t], 9, dtype=torch.int32)
        old[t] = hl.atomic_cas(new, [t], one, nine, sem="acq_rel")
    return new, old


@idiom(
    rand(6, 9),
    ints(9, 6),
    expect=lambda x, n: torch.stack([x[i, : n[i]].sum() for i in range(6)]),
    tolerance=1e-5,
)
def rows_as_long_as_a_host_maximum(x, lengths):
    out = x.new_zeros(x.size(0))
    longest = lengths.amax()
    for t in hl.tile(x.size(0)):
        n = lengths[t]
        acc = hl.zeros([t], dtype=x.dtype)
        for k in hl.tile(longest):
            acc = acc + hl.load(x, [t, k], extra_mask=k.index[None, :] < n[:, None]).sum(dim=1)
        out[t] = acc
    return out


# -- products -------------------------------------------------------------------------------------


@idiom(
    rand(8, 24, dtype=HALF),
    rand(24, 12, dtype=HALF),
    expect=lambda a, b: 3 * (a.float() @ b.float()) + 1,
    tolerance=1e-4,
)
def scaled_products_of_halves(a, b):
    out = torch.empty([a.size(0), b.size(1)])
    for i, j in hl.tile([a.size(0), b.size(1)]):
        acc = hl.full([i, j], 0.5)
        for k in hl.tile(a.size(1), block_size=32):
            acc = torch.addmm(acc, a[i, k], b[k, j], beta=2, alpha=3)
        out[i, j] = acc
    return out


@idiom(
    rand(2, 8, 24, dtype=HALF),
    rand(2, 24, 12, dtype=HALF),
    expect=lambda a, b: (a.float() @ b.float(), a.float() @ b.float()),
    tolerance=1e-4,
)
def batches_of_halves_summed_in_float(a, b):
    shape = [a.size(0), a.size(1), b.size(2)]
    out, again = torch.empty(shape), torch.empty(shape)
    for batch, i, j in hl.tile(shape):
        acc = hl.zeros([batch, i, j])
        wide = hl.zeros([batch, i, j])
        for k in hl.tile(a.size(2)):
            acc = torch.baddbmm(acc, a[batch, i, k], b[batch, k, j])
            wide = wide + torch.bmm(a[batch, i, k], b[batch, k, j], out_dtype=torch.float32)
        out[batch, i, j] = acc
        again[batch, i, j] = wide
    return out, again


@idiom(
    rand(2, 3, 24, 8, dtype=torch.bfloat16),
    rand(2, 3, 30, 8, dtype=torch.bfloat16),
    rand(2, 3, 30, 8, dtype=torch.bfloat16),
    expect=F.scaled_dot_product_attention,
    tolerance=2e-2,
)
def attention_in_halves(q_in, k_in, v_in):
    m, n = q_in.size(-2), k_in.size(-2)
    width = hl.specialize(q_in.size(-1))
    q = q_in.reshape([-1, m, width])
    k = k_in.reshape([-1, n, width]).transpose(1, 2)
    v = v_in.reshape([-1, n, width])
    out = torch.empty_like(q)
    scale = 1.44269504 / width**0.5
    for head, rows in hl.tile([q.size(0), m]):
        most = hl.full([head, rows], float("-inf"), dtype=torch.float32)
        total = torch.full_like(most, 1.0)
        acc = hl.zeros([head, rows, width], dtype=torch.float32)
        for cols in hl.tile(n):
            scores = torch.bmm(q[head, rows, :], k[head, :, cols])
            new = torch.maximum(most, torch.amax(scores, -1) * scale)
            weights = torch.exp2(scores * scale - new[:, :, None])
            shrink = torch.exp2(most - new)
            total = total * shrink + torch.sum(weights, -1)
            acc = acc * shrink[:, :, None]
            acc = torch.baddbmm(acc, weights.to(v.dtype), v[head, cols, :])
            most = new
        out[head, rows, :] = (acc / total[:, :, None]).to(out.dtype)
    return out.view(q_in.size())


# -- arguments, Python ----------------------------------------------------------------------------


@idiom(
    {"x": rand(6), "w": {"y": rand(6)}, "k": 3},
    expect=lambda d: {"r": d["x"] * d["w"]["y"] * 3, "n": [1, (d["x"] + 1,)]},
)
def dicts_in_dicts(d: dict[str, Any]):
    out, other = torch.empty_like(d["x"]), torch.empty_like(d["x"])
    for t in hl.tile(out.size(0)):
        out[t] = d["x"][t] * d["w"]["y"][t] * d["k"]
        other[t] = d["x"][t] + 1
    return {"r": out, "n": [1, (other,)]}


@idiom(ints(50, 10), expect=lambda x: torch.tensor([int(v).bit_count() for v in x]))
def bits_counted_in_a_while(x):
    out = torch.empty_like(x)
    for g in hl.grid(x.size(0)):
        n = x[g]
        count = n * 0
        while n > 0:
            count = count + (n & 1)
            n = n >> 1
        out[g] = count
    return out


@idiom(rand(24, 48), rand(48, 20), expect=torch.mm, tolerance=1e-4)
def products_split_along_k(a, b):
    m, k = a.size()
    out = torch.zeros([m, b.size(1)], dtype=torch.float32, device=a.device)
    parts = hl.register_tunable("split_k", helion.autotuner.PowerOfTwoFragment(1, 8))
    size = helion.next_power_of_2(helion.cdiv(k, parts))
    for rows, cols, outer in hl.tile([m, b.size(1), k], block_size=[None, None, size]):
        acc = hl.zeros([rows, cols], dtype=torch.float32)
        for inner in hl.tile(outer.begin, outer.end):
            acc = torch.addmm(acc, a[rows, inner], b[inner, cols])
        hl.atomic_add(out, [rows, cols], acc)
    return out


# -- views, numbers, creations --------------------------------------------------------------------


@idiom(rand(6, 8), expect=lambda x: x.sum(1), tolerance=1e-5)
def ends_counted_from_behind(x):
    out = x.new_empty(x.size(0))
    for t in hl.tile(x.size(0)):
        out[t] = x[t, :-1].sum(1) + x[t, -1]
    return out


@idiom(
    ints(100, 6, 8),
    expect=lambda x: (x // 7, x % 7, x << 2, x >> 1, x**2, -x, ~x),
)
def operators_of_integers(x):
    a, b, c, d, e, f, g = [torch.empty_like(x) for _ in range(7)]
    for t in hl.tile(x.shape):
        v = x[t]
        a[t] = v // 7
        b[t] = v % 7
        c[t] = v << 2
        d[t] = v >> 1
        e[t] = v**2
        f[t] = -v
        g[t] = ~v
    return a, b, c, d, e, f, g


@idiom(rand(16, 8), 2, expect=lambda x, g: x.view(2, 8, 8).sum(1), tolerance=1e-5)
def groups_by_an_argument(x, groups):
    rows = x.size(0) // groups
    out = x.new_empty(groups, x.size(1))
    for i, c in hl.tile([groups, x.size(1)], block_size=[1, None]):
        acc = hl.zeros([c])
        for r in hl.tile(i.begin * rows, i.begin * rows + rows):
            acc += x[r, c].sum(0)
        out[i.begin, c] = acc
    return out


@idiom(rand(4, 6), expect=lambda x: x.reshape(4, 3, 2).sum(-1), tolerance=1e-5)
def shapes_of_tiles_and_block_sizes(x):
    out = x.new_empty(4, 3)
    for t in hl.tile(x.size(0)):
        pairs = x[t, :].reshape(t, 3, 2) + x[t, :].view(t.block_size, 3, 2)
        out[t, :] = pairs.sum(-1) / 2
    return out


@idiom(rand(6, 8), expect=lambda x: x * 2)
def creations_like_values(x):
    out = torch.empty_like(x)
    for t, s in hl.tile(x.shape):
        zeros = x.new_zeros([t, s]) + torch.zeros([t, s], dtype=x.dtype, device=x.device)
        out[t, s] = zeros + torch.zeros_like(x[t, s]) + 2 * x[t, s]
    return out


@idiom(rand(6, 8), expect=lambda x: x + torch.arange(8) + torch.arange(6)[:, None])
def positions_made_by_arange(x):
    out = torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        rows = torch.arange(i.begin, i.begin + i.block_size)
        columns = j.begin + hl.arange(j.block_size)
        out[i, j] = x[i, j] + rows[:, None] + columns[None, :]
    return out
