"""More idioms of the documentation: products, reductions, values, control flow, memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from test.language.idioms import idiom, ints, rand

# -- products -------------------------------------------------------------------------------------


@idiom(rand(33, 20), rand(20, 17), expect=torch.matmul, tolerance=1e-4)
def addmm_loop(x, y):
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n])
    for tm, tn in hl.tile([m, n]):
        acc = hl.zeros([tm, tn], dtype=torch.float32)
        for tk in hl.tile(k):
            acc = torch.addmm(acc, x[tm, tk], y[tk, tn])
        out[tm, tn] = acc
    return out


@idiom(
    rand(33, 20, dtype=torch.bfloat16),
    rand(20, 17, dtype=torch.bfloat16),
    expect=torch.matmul,
    tolerance=2e-2,
)
def dot_with_acc(x, y):
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=x.dtype)
    for tm, tn in hl.tile([m, n]):
        acc = hl.zeros([tm, tn], dtype=torch.float32)
        for tk in hl.tile(k):
            acc = hl.dot(x[tm, tk], y[tk, tn], acc=acc)
        out[tm, tn] = acc.to(x.dtype)
    return out


@idiom(rand(3, 9, 8), rand(3, 8, 7), expect=torch.bmm, tolerance=1e-4)
def baddbmm_loop(a, b):
    n, m, k = a.size()
    out = torch.empty([n, m, b.size(2)])
    for tb, tm, tn in hl.tile([n, m, b.size(2)]):
        acc = hl.zeros([tb, tm, tn], dtype=torch.float32)
        for tk in hl.tile(k):
            acc = torch.baddbmm(acc, a[tb, tm, tk], b[tb, tk, tn])
        out[tb, tm, tn] = acc
    return out


@idiom(rand(24, 64), rand(64, 16), expect=torch.matmul, tolerance=1e-4)
def split_k_tunable(x, y):
    m, k = x.size()
    _, n = y.size()
    out = torch.zeros([m, n])
    split = hl.register_tunable("split_k", helion.autotuner.PowerOfTwoFragment(1, 16, 4))
    block = helion.next_power_of_2(helion.cdiv(k, split))
    for tm, tn, outer in hl.tile([m, n, k], block_size=[None, None, block]):
        acc = hl.zeros([tm, tn])
        for inner in hl.tile(outer.begin, outer.end):
            acc = torch.addmm(acc, x[tm, inner], y[inner, tn])
        hl.atomic_add(out, [tm, tn], acc)
    return out


@idiom(rand(9, 6), rand(4, 6), expect=lambda x, w: F.gelu(F.linear(x, w)), tolerance=1e-4)
def linear_gelu(x, w):
    out = x.new_empty([x.size(0), w.size(0)])
    for i, j in hl.tile(out.shape):
        out[i, j] = F.gelu(x[i, :] @ w[j, :].T)
    return out


# -- reductions, scans ----------------------------------------------------------------------------


@idiom(rand(9, 20), expect=lambda x: F.layer_norm(x, [20]), tolerance=1e-4)
def normalised(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        row = x[tile, :].to(torch.float32)
        var, mean = torch.var_mean(row, dim=-1, keepdim=True, correction=0)
        out[tile, :] = (row - mean) * torch.rsqrt(var + 1e-5)
    return out


@idiom(
    rand(9, 20),
    expect=lambda x: (
        x.amin(-1),
        x.argmax(-1),
        x.prod(-1),
        (x > 1).any(-1),
        (x > -9).all(-1),
        x.std(-1),
        x.norm(dim=-1),
        x.logsumexp(-1),
        x.max(-1)[0],
        x.min(-1)[1],
    ),
    tolerance=1e-4,
)
def many_reductions(x):
    n = x.size(0)
    a, b = x.new_empty(n), torch.empty(n, dtype=torch.int64)
    c, d = x.new_empty(n), torch.empty(n, dtype=torch.bool)
    e, f = torch.empty(n, dtype=torch.bool), x.new_empty(n)
    g, h = x.new_empty(n), x.new_empty(n)
    i, j = x.new_empty(n), torch.empty(n, dtype=torch.int64)
    for tile in hl.tile(n):
        row = x[tile, :]
        a[tile] = row.amin(-1)
        b[tile] = row.argmax(-1)
        c[tile] = torch.prod(row, -1)
        d[tile] = torch.any(row > 1, -1)
        e[tile] = (row > -9).all(dim=-1)
        f[tile] = row.std(-1)
        g[tile] = row.norm(dim=-1)
        h[tile] = torch.logsumexp(row, -1)
        best, _ = row.max(-1)
        i[tile] = best
        _, least = torch.min(row, dim=-1)
        j[tile] = least
    return a, b, c, d, e, f, g, h, i, j


@idiom(rand(30, 20), expect=lambda x: x.sum())
def whole_sum(x):
    out = torch.zeros([1])
    for i, j in hl.tile(x.shape):
        hl.atomic_add(out, [0], x[i, j].sum())
    return out[0]


def _more(a, b):
    return torch.maximum(a, b)


@idiom(rand(9, 20), expect=lambda x: x.amax(-1))
def reduce_own(x):
    out = x.new_empty(x.size(0))
    for tile in hl.tile(x.size(0)):
        out[tile] = hl.reduce(_more, x[tile, :], dim=-1, other=float("-inf"))
    return out


def _best(a, i, b, j):
    return torch.where(a >= b, a, b), torch.where(a >= b, i, j)


@idiom(rand(9, 20), expect=lambda x: (x.amax(-1), x.argmax(-1)))
def reduce_pairs(x):
    top = x.new_empty(x.size(0))
    at = torch.empty(x.size(0), dtype=torch.int64)
    for tile in hl.tile(x.size(0)):
        row = x[tile, :]
        places = hl.arange(20)[None, :].expand(tile, 20)
        v, i = hl.reduce(_best, (row, places), dim=1, other=(float("-inf"), 0))
        top[tile] = v
        at[tile] = i
    return top, at


@idiom(
    rand(9, 20),
    expect=lambda x: (x.cumsum(-1), x.flip(-1).cumsum(-1).flip(-1), x.cumprod(-1)),
    tolerance=1e-4,
)
def cumulative(x):
    a, b, c = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        row = x[tile, :]
        a[tile, :] = hl.cumsum(row, dim=-1)
        b[tile, :] = hl.cumsum(row, dim=-1, reverse=True)
        c[tile, :] = torch.cumprod(row, dim=-1)
    return a, b, c


@idiom(rand(9, 20), expect=lambda x: x.cummax(-1)[0])
def scan_own(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = hl.associative_scan(_more, x[tile, :], dim=1)
    return out


def _step(left, right):
    a1, b1 = left
    a2, b2 = right
    return a1 * a2, b1 * a2 + b2


def _recurrence(a, b):
    h, out = torch.zeros_like(a[:, 0]), []
    for t in range(a.size(1)):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


@idiom(rand(9, 20).sigmoid(), rand(9, 20), expect=_recurrence, tolerance=1e-4)
def scan_tuples(a, b):
    out = torch.empty_like(a)
    for tile in hl.tile(a.size(0)):
        _, h = hl.associative_scan(_step, (a[tile, :], b[tile, :]), dim=1)
        out[tile, :] = h
    return out


@idiom(
    rand(9, 20),
    expect=lambda x: (x.sort(-1, descending=True)[0], x.topk(3, -1)[0], x.topk(3, -1)[1]),
)
def sorted_rows(x):
    a = torch.empty_like(x)
    b, c = x.new_empty([9, 3]), torch.empty([9, 3], dtype=torch.int64)
    for tile in hl.tile(x.size(0)):
        values, _ = torch.sort(x[tile, :], dim=-1, descending=True)
        a[tile, :] = values
        v, i = torch.topk(x[tile, :], 3, dim=-1)
        b[tile, :] = v
        c[tile, :] = i
    return a, b, c


# -- values ---------------------------------------------------------------------------------------


@idiom(rand(6, 8), expect=lambda x: torch.stack([x[:, 0::2], x[:, 1::2]], -1).flatten(1) * 2)
def split_and_join(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        lo, hi = hl.split(x[tile, :].reshape(tile.block_size, 4, 2))
        out[tile, :] = hl.join(lo * 2, hi * 2).reshape(tile.block_size, 8)
    return out


@idiom(rand(6, 8), expect=lambda x: x - x.mean(-1, keepdim=True))
def none_subscripts(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        mean = x[tile, :].mean(-1)
        out[tile, :] = x[tile, :] - hl.subscript(mean, [slice(None), None])
    return out


@idiom(
    ints(256, 6, 8, dtype=torch.uint8),
    expect=lambda x: torch.stack([x & 15, x >> 4], -1).flatten(1).float(),
)
def nibbles(x):
    out = torch.empty([6, 16])
    for tile in hl.tile(6):
        v = x[tile, :]
        both = torch.stack([v & 15, v >> 4], dim=-1)
        out[tile, :] = both.reshape(tile.block_size, 16).to(torch.float32)
    return out


@idiom(rand(12), expect=lambda x: (x.view(torch.int32) & 0x7FFFFFFF).view(torch.float32))
def bitcasts(x):
    out = torch.empty_like(x)
    for tile in hl.tile(12):
        out[tile] = (x[tile].view(torch.int32) & 0x7FFFFFFF).view(torch.float32)
    return out


@idiom(rand(12, 4), expect=lambda x: (x * 0 + 3, x * 0 + 1, x * 0 + 2.5, torch.full_like(x, 7)))
def creations(x):
    a, b = torch.empty_like(x), torch.empty_like(x)
    c, d = torch.empty_like(x), torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        a[i, j] = hl.full([i, j], 3, dtype=x.dtype)
        b[i, j] = torch.ones_like(x[i, j])
        c[i, j] = x.new_full([i, j], 2.5) + x.new_zeros([i, j])
        d[i, j] = torch.full_like(x[i, j], 7.0) + torch.zeros([i, j])
    return a, b, c, d


@idiom(
    rand(9, 5),
    expect=lambda x: (
        torch.addcmul(torch.lerp(x, x * 2, 0.25), x, x).nan_to_num()
        + torch.fmod(x, 2)
        + torch.sign(x) * torch.expm1(x)
        + x.pow(2)
        + torch.exp2(x)
        + F.leaky_relu(x)
        + torch.erf(x)
        + torch.remainder(x, 1.5)
        + F.softplus(x)
        + torch.rsqrt(x.abs() + 1)
        + x.trunc()
        + x.round()
    ),
    tolerance=1e-5,
)
def pointwise_functions(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.shape):
        v = x[tile]
        y = torch.addcmul(torch.lerp(v, v * 2, 0.25), v, v).nan_to_num() + torch.fmod(v, 2)
        y = y + torch.sign(v) * torch.expm1(v) + v.pow(2) + torch.exp2(v) + F.leaky_relu(v)
        y = y + torch.erf(v) + torch.remainder(v, 1.5) + F.softplus(v)
        out[tile] = y + torch.rsqrt(v.abs() + 1) + v.trunc() + v.round()
    return out


@idiom(
    rand(9, 5),
    expect=lambda x: x.softmax(-1).log() + F.log_softmax(x, -1) + F.layer_norm(x, [5]),
    tolerance=1e-4,
)
def composed_functions(x):
    out = torch.empty_like(x)
    for tile in hl.tile(9):
        row = x[tile, :]
        out[tile, :] = (
            torch.log(F.softmax(row, dim=-1)) + row.log_softmax(-1) + F.layer_norm(row, [5])
        )
    return out


@idiom(rand(9), 3, 2, expect=lambda x, a, b: x * max(a, b) + min(a, b) + a // b + a % b + abs(-a))
def python_numbers(x, a, b):
    out = torch.empty_like(x)
    for tile in hl.tile(9):
        out[tile] = x[tile] * max(a, b) + min(a, b) + a // b + a % b + abs(-a)
    return out


# -- control --------------------------------------------------------------------------------------


@idiom(rand(12), torch.tensor(1), expect=lambda x, f: x * 2)
def branch_on_data(x, flag):
    out = torch.empty_like(x)
    for tile in hl.tile(12):
        v = x[tile]
        if flag[()] > 0:
            v = v * 2
        else:
            v = v - 1
        out[tile] = v
    return out


@idiom(rand(12), expect=lambda x: x * torch.where(torch.arange(12) < 4, 10.0, 1.0))
def branch_on_id(x):
    out = torch.empty_like(x)
    for tile in hl.tile(12, block_size=4):
        v = x[tile]
        if tile.id == 0:
            v = v * 10
        out[tile] = v
    return out


@idiom(torch.tensor([40.0, 3.0, 17.0]), expect=lambda x: torch.tensor([0.625, 0.75, 0.53125]))
def while_loop(x):
    out = torch.empty_like(x)
    for i in hl.grid(3):
        v = x[i]
        while v > 1:
            v = v / 2
        out[i] = v
    return out


@idiom(
    [rand(6), rand(6), rand(6)],
    [1.0, 2.0, 3.0],
    expect=lambda xs, w: sum(a * b for a, b in zip(xs, w, strict=True)),
)
def zipped_lists(xs, ws):
    out = torch.empty_like(xs[0])
    for tile in hl.tile(6):
        acc = hl.zeros([tile])
        for x, w in zip(xs, ws, strict=True):
            acc += x[tile] * w
        parts = [x[tile] * 0 for x in xs]
        named = {f: p for f, p in enumerate(parts)}
        out[tile] = acc + named[0] + sum(parts)
    return out


# -- memory ---------------------------------------------------------------------------------------


@idiom(ints(6, 50), expect=lambda i: torch.bincount(i, minlength=6))
def counts(idx):
    out = torch.zeros([6], dtype=torch.int64)
    for tile in hl.tile(idx.size(0)):
        hl.atomic_add(out, [idx[tile]], 1, sem="relaxed")
    return out


@idiom(
    ints(100, 9, dtype=torch.int32),
    expect=lambda x: (x + 5, x, torch.maximum(x, x.new_tensor(50)), x & 6, x | 1, x ^ 3, x * 0 + 9),
)
def atomics(x):
    a, before = x.clone(), torch.empty_like(x)
    b, c, d, e, f = x.clone(), x.clone(), x.clone(), x.clone(), x.clone()
    for tile in hl.tile(9):
        before[tile] = hl.atomic_add(a, [tile], 5)
        hl.atomic_max(b, [tile], 50)
        hl.atomic_and(c, [tile], 6)
        hl.atomic_or(d, [tile], 1)
        hl.atomic_xor(e, [tile], 3)
        hl.atomic_xchg(f, [tile], 9)
    return a, before, b, c, d, e, f


@idiom(ints(3, 9, dtype=torch.int32), expect=lambda x: (torch.where(x == 1, 7, x), x))
def compare_and_swap(x):
    a, before = x.clone(), torch.empty_like(x)
    for tile in hl.tile(9):
        before[tile] = hl.atomic_cas(a, [tile], 1, 7)
    return a, before


def _pointers(*tensors):
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64)


STACK = [rand(7), rand(7) + 1, rand(7) * 2]


@idiom(_pointers(*STACK), STACK[0], expect=lambda p, x: sum(STACK))
def stack_of_tensors(ptrs, like):
    out = torch.empty_like(like)
    for tile in hl.tile(like.size(0)):
        stack = hl.stacktensor_like(like, ptrs[:])
        out[tile] = stack[tile].sum(0)
    return out


@idiom(rand(9, 5), expect=lambda x: (x + 1) * 2)
def in_place(x):
    y = x.clone()
    for tile in hl.tile(y.shape):
        y[tile] += 1
        y[tile] = y[tile] * 2
    return y


@idiom(rand(6, 9), expect=lambda x: x.sum(-1) / math.sqrt(9))
def host_arithmetic(x):
    m, n = x.shape
    scale = 1.0 / math.sqrt(n)
    out = x.new_empty(m)
    for tile in hl.tile(m):
        out[tile] = x[tile, :].sum(-1) * scale
    return out


@idiom(torch.empty(0, 4), expect=lambda x: x + 1)
def empty(x):
    out = torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        out[i, j] = x[i, j] + 1
    return out


@idiom(
    rand(3, 8, 4),
    rand(3, 8, 4),
    rand(3, 8, 4),
    expect=F.scaled_dot_product_attention,
    tolerance=1e-4,
)
def attention_tile(q, k, v):
    out = torch.empty_like(q)
    d = hl.specialize(q.size(-1))
    scale = 1.4426950408889634 / math.sqrt(d)
    for b, m in hl.tile([q.size(0), q.size(1)]):
        top = hl.full([b, m], float("-inf"), dtype=torch.float32)
        total = torch.full_like(top, 1.0)
        acc = hl.zeros([b, m, d], dtype=torch.float32)
        query = q[b, m, :]
        for n in hl.tile(v.size(1)):
            scores = torch.bmm(query, k[b, n, :].transpose(1, 2))
            new = torch.maximum(top, torch.amax(scores, -1) * scale)
            p = torch.exp2(scores * scale - new[:, :, None])
            alpha = torch.exp2(top - new)
            total = total * alpha + p.sum(-1)
            acc = torch.baddbmm(acc * alpha[:, :, None], p.to(v.dtype), v[b, n, :])
            top = new
        out[b, m, :] = acc / total[:, :, None]
    return out
