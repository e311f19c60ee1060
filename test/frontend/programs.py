"""Kernels of every family of the language, beside what they must compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl

Program = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any], float | None]
PROGRAMS: dict[str, Program] = {}


def program(*args: Any, expect: Callable[..., Any], tolerance: float | None = None) -> Any:
    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[fn.__name__] = (fn, args, expect, tolerance)
        return fn

    return register


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(n * 31**i for i, n in enumerate(shape)))
    return torch.randn(shape, generator=generator).to(dtype)


def ints(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(high)
    return torch.randint(0, high, shape, generator=generator).to(dtype)


# -- elementwise ----------------------------------------------------------------------------------


@program(rand(37, 21), rand(37, 21), expect=torch.add)
def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = torch.broadcast_tensors(x, y)
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] + y[tile]
    return out


@program(rand(19, 23).t(), expect=lambda x: torch.exp(x * 2).to(torch.bfloat16))
def strided(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    for tile_m, tile_n in hl.tile(x.shape):
        out[tile_m, tile_n] = torch.exp(x[tile_m, tile_n] * 2)
    return out


@program(
    rand(33, dtype=torch.bfloat16),
    rand(33, dtype=torch.float16),
    expect=lambda x, y: (x * y, x / 3 + 1),
)
def halves(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.empty(33, dtype=torch.float32)
    b = torch.empty_like(x)
    for tile in hl.tile(33):
        a[tile] = x[tile] * y[tile]
        b[tile] = x[tile] / 3 + 1
    return a, b


@program(rand(5, 7), rand(7), rand(5, 1), expect=lambda x, r, c: x * r + c)
def broadcast(x: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for i, j in hl.tile([5, 7]):
        out[i, j] = x[i, j] * row[j] + column[i, j]
    return out


@program(
    rand(10, 12),
    expect=lambda x: torch.where(x > 0, F.gelu(x), F.silu(x)).clamp(-0.1, 2) + F.softplus(x),
)
def functions(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        v = x[tile]
        v2 = torch.where(v > 0, F.gelu(v), F.silu(v))
        out[tile] = v2.clamp(-0.1, 2) + F.softplus(v)
    return out


@program(rand(9), 3, 0.5, expect=lambda x, n, s: x * n + s - n // 2)
def scalars(x: torch.Tensor, n: int, s: float) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * n + s - n // 2
    return out


@program(ints(100, 20, dtype=torch.int32), expect=lambda x: ((x // 3) % 4 << 2 | 1) ^ (x >> 1))
def integers(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(20):
        v = x[tile]
        out[tile] = ((v // 3) % 4 << 2 | 1) ^ (v >> 1)
    return out


@program([rand(8), rand(8)], {"w": rand(8)}, expect=lambda xs, p: xs[0] + xs[1] * p["w"])
def containers(xs: list[torch.Tensor], params: dict[str, torch.Tensor]) -> torch.Tensor:
    out = torch.empty_like(xs[0])
    for tile in hl.tile(8):
        a, b = xs
        out[tile] = a[tile] + b[tile] * params["w"][tile]
    return out


@program([rand(8), rand(8), rand(8)], expect=lambda xs: sum(xs) + 3)
def unrolled(xs: list[torch.Tensor]) -> torch.Tensor:
    out = torch.empty_like(xs[0])
    for tile in hl.tile(8):
        total = hl.zeros([tile])
        for i, x in enumerate(xs):
            total = total + x[tile] + i
        out[tile] = total
    return out


@program(rand(8, 3), expect=lambda x: x[:, 0] + 2 * x[:, 1] + 3 * x[:, 2])
def static(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(8)
    for tile in hl.tile(8):
        total = hl.zeros([tile])
        for i in hl.static_range(3):
            total += x[tile, i] * (i + 1)
        out[tile] = total
    return out


# -- reductions over whole rows -------------------------------------------------------------------


@program(rand(13, 37), expect=lambda x: x.sum(-1))
def row_sum(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.size(0), dtype=x.dtype)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile, :].sum(-1)
    return out


@program(rand(13, 37, dtype=torch.bfloat16), expect=lambda x: F.softmax(x, -1), tolerance=1e-2)
def softmax(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = F.softmax(x[tile, :], dim=-1)
    return out


@program(rand(13, 37), expect=lambda x: F.softmax(x, -1))
def softmax_decomposed(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        values = x[tile, :]
        amax = torch.amax(values, dim=1, keepdim=True)
        exp = torch.exp(values - amax)
        out[tile, :] = exp / torch.sum(exp, dim=1, keepdim=True)
    return out


@program(rand(13, 37), expect=lambda x: F.softmax(x, -1))
def softmax_two_pass(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty_like(x)
    block_m = hl.register_block_size(m)
    block_n = hl.register_block_size(n)
    for tile_m in hl.tile(m, block_size=block_m):
        mi = hl.full([tile_m], float("-inf"), dtype=torch.float32)
        di = hl.zeros([tile_m], dtype=torch.float32)
        for tile_n in hl.tile(n, block_size=block_n):
            values = x[tile_m, tile_n]
            local = torch.amax(values, dim=1)
            mi_next = torch.maximum(mi, local)
            di = di * torch.exp(mi - mi_next) + torch.exp(values - mi_next[:, None]).sum(dim=1)
            mi = mi_next
        for tile_n in hl.tile(n, block_size=block_n):
            values = x[tile_m, tile_n]
            out[tile_m, tile_n] = torch.exp(values - mi[:, None]) / di[:, None]
    return out


@program(
    rand(6, 40),
    rand(40),
    rand(40),
    expect=lambda x, w, b: F.layer_norm(x, [40], w, b),
)
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        acc = x[tile, :].to(torch.float32)
        mean = torch.mean(acc, dim=-1)
        centered = acc - mean[:, None]
        var = (centered * centered).mean(-1)
        y = centered * torch.rsqrt(var + 1e-5)[:, None]
        out[tile, :] = (y * weight[:] + bias[None, :]).to(x.dtype)
    return out


@program(rand(6, 40), rand(40), rand(40), expect=lambda x, w, b: F.layer_norm(x, [40], w, b))
def layer_norm_direct(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = F.layer_norm(x[tile, :], [40], weight[:], bias[:])
    return out


@program(
    rand(7, 11), expect=lambda x: (x.argmax(-1), x.amin(-1), x.var(-1), torch.logsumexp(x, -1))
)
def rows(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a = torch.empty(7, dtype=torch.int64)
    b, c, d = torch.empty(7), torch.empty(7), torch.empty(7)
    for tile in hl.tile(7):
        v = x[tile, :]
        a[tile] = v.argmax(-1)
        b[tile] = v.amin(-1)
        c[tile] = torch.var(v, -1)
        d[tile] = torch.logsumexp(v, -1)
    return a, b, c, d


@program(rand(13, 70), expect=lambda x: x.sum(-1))
def long_sum(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([m], dtype=x.dtype)
    block_m, block_n = hl.register_block_size(m), hl.register_block_size(n)
    for tile_m in hl.tile(m, block_size=block_m):
        acc = hl.zeros([tile_m, block_n], dtype=x.dtype)
        for tile_n in hl.tile(n, block_size=block_n):
            acc += x[tile_m, tile_n]
        out[tile_m] = acc.sum(-1)
    return out


@program(
    rand(12, 50),
    ints(50, 12),
    expect=lambda x, y: F.cross_entropy(x, y),
)
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    n, v = logits.shape
    losses = torch.zeros([n], dtype=logits.dtype)
    flat = logits.view(-1)
    for tile in hl.tile(n):
        label = labels[tile]
        picked = hl.load(flat, [tile.index * v + label])
        rows_ = logits[tile, :]
        top = torch.amax(rows_, dim=-1, keepdim=True)
        log_sum = top.squeeze(-1) + torch.log(torch.exp(rows_ - top).sum(-1))
        losses[tile] = log_sum - picked
    return losses.mean()


# -- reductions over tiles ------------------------------------------------------------------------


@program(rand(21, 18), expect=lambda x: (x.sum(0), x.amax(0)))
def columns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    m, n = x.shape
    out, top = torch.empty(n), torch.empty(n)
    for tile_n in hl.tile(n):
        acc = hl.zeros([tile_n])
        best = hl.full([tile_n], -math.inf)
        for tile_m in hl.tile(m):
            acc = acc + (x[tile_m, tile_n] + 1).sum(0)
            best = torch.maximum(best, (x[tile_m, tile_n] - 5).amax(0))
        out[tile_n] = acc - m
        top[tile_n] = best + 5
    return out, top


@program(rand(45, 20), rand(45, 20), rand(45), expect=lambda dy, x, r: (dy * x * r[:, None]).sum(0))
def partials(dy: torch.Tensor, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    n = hl.specialize(n)
    block = hl.register_block_size(m)
    parts = torch.zeros([(m + block - 1) // block, n], dtype=torch.float32)
    for outer in hl.tile(m, block_size=block):
        acc = hl.zeros([n], dtype=torch.float32)
        for t in hl.tile(outer.begin, outer.end):
            acc = acc + (dy[t, :] * x[t, :] * r[t].unsqueeze(-1)).sum(0)
        parts[outer.id, :] = acc
    return parts.sum(0)


# -- products -------------------------------------------------------------------------------------


@program(rand(33, 20), rand(20, 17), expect=lambda x, y: x @ y)
def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=torch.promote_types(x.dtype, y.dtype))
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = acc
    return out


def _biased(bias: torch.Tensor) -> Callable[..., Any]:
    return lambda acc, tile: torch.relu(acc + bias[tile[1]])


@program(
    rand(33, 20),
    rand(20, 17),
    _biased(rand(17)),
    expect=lambda x, y, e: torch.relu(x @ y + rand(17)),
)
def matmul_epilogue(x: torch.Tensor, y: torch.Tensor, epilogue: Callable[..., Any]) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=torch.promote_types(x.dtype, y.dtype))
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = hl.dot(x[tile_m, tile_k], y[tile_k, tile_n], acc=acc)
        out[tile_m, tile_n] = epilogue(acc, (tile_m, tile_n))
    return out


@program(
    rand(16, 32, dtype=torch.bfloat16),
    rand(32, 16, dtype=torch.bfloat16),
    expect=lambda x, y: (x.float() @ y.float()).to(x.dtype),
    tolerance=5e-2,
)
def matmul_half(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty([16, 16], dtype=x.dtype)
    for tile_m, tile_n in hl.tile([16, 16]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(32):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = acc
    return out


@program(rand(3, 10, 8), rand(3, 8, 9), expect=torch.bmm)
def bmm(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    b, m, k = x.shape
    n = y.size(2)
    out = torch.empty([b, m, n])
    for tile_b, tile_m, tile_n in hl.tile([b, m, n]):
        acc = hl.zeros([tile_b, tile_m, tile_n])
        for tile_k in hl.tile(k):
            acc = torch.baddbmm(acc, x[tile_b, tile_m, tile_k], y[tile_b, tile_k, tile_n])
        out[tile_b, tile_m, tile_n] = acc
    return out


@program(rand(33, 40), rand(40, 18), expect=lambda x, y: x @ y)
def split_k(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    n = y.size(1)
    out = torch.zeros([m, n])
    block_k = helion.next_power_of_2(helion.cdiv(k, 3))
    for tile_m, tile_n, outer in hl.tile([m, n, k], block_size=[None, None, block_k]):
        acc = hl.zeros([tile_m, tile_n])
        for inner in hl.tile(outer.begin, outer.end):
            acc = torch.addmm(acc, x[tile_m, inner], y[inner, tile_n])
        hl.atomic_add(out, [tile_m, tile_n], acc)
    return out


@program(
    ints(100, 9, 16, dtype=torch.int8),
    ints(50, 16, 7, dtype=torch.int8),
    expect=lambda x, y: x.int() @ y.int(),
)
def int8_dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty([9, 7], dtype=torch.int32)
    for tile_m, tile_n in hl.tile([9, 7]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.int32)
        for tile_k in hl.tile(16):
            acc = hl.dot(x[tile_m, tile_k], y[tile_k, tile_n], acc=acc)
        out[tile_m, tile_n] = acc
    return out


@program(rand(21, 32), rand(32, 32), expect=lambda x, w: x * torch.sigmoid(x @ w))
def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for t in hl.tile(21):
        row = x[t, :]
        out[t, :] = row * torch.sigmoid(row @ w[:, :])
    return out


@program(rand(12, 8), expect=lambda x: x @ x.t())
def gram(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty([12, 12])
    for tile in hl.tile(12):
        out[tile, :] = x[tile, :] @ x[:, :].T
    return out


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@program(rand(2, 3, 19, 8), rand(2, 3, 21, 8), rand(2, 3, 21, 8), expect=_attention)
def attention(q_in: torch.Tensor, k_in: torch.Tensor, v_in: torch.Tensor) -> torch.Tensor:
    m_dim, n_dim = q_in.size(-2), k_in.size(-2)
    head = hl.specialize(q_in.size(-1))
    q_view = q_in.reshape([-1, m_dim, head])
    v_view = v_in.reshape([-1, n_dim, head])
    k_view = k_in.reshape([-1, n_dim, head]).transpose(1, 2)
    out = torch.empty_like(q_view)
    qk_scale = 1.0 / math.sqrt(head) * 1.44269504
    for tile_b, tile_m in hl.tile([q_view.size(0), m_dim]):
        m_i = hl.full([tile_b, tile_m], float("-inf"), dtype=torch.float32)
        l_i = torch.full_like(m_i, 1.0)
        acc = hl.zeros([tile_b, tile_m, head], dtype=torch.float32)
        q = q_view[tile_b, tile_m, :]
        l_i = l_i * 0.0
        for tile_n in hl.tile(n_dim):
            k = k_view[tile_b, :, tile_n]
            qk = torch.bmm(q, k)
            m_ij = torch.maximum(m_i, torch.amax(qk, -1) * qk_scale)
            qk = qk * qk_scale - m_ij[:, :, None]
            p = torch.exp2(qk)
            l_ij = torch.sum(p, -1)
            alpha = torch.exp2(m_i - m_ij)
            l_i = l_i * alpha + l_ij
            acc = acc * alpha[:, :, None]
            v = v_view[tile_b, tile_n, :]
            acc = torch.baddbmm(acc, p.to(v.dtype), v)
            m_i = m_ij
        acc = acc / l_i[:, :, None]
        out[tile_b, tile_m, :] = acc.to(out.dtype)
    return out.view(q_in.size())


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@program(rand(2, 19, 8), rand(2, 19, 8), rand(2, 19, 8), expect=_causal)
def attention_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    b, n, d = q.shape
    d = hl.specialize(d)
    out = torch.empty_like(q)
    for tile_b, tile_m in hl.tile([b, n], block_size=[1, None]):
        query = q[tile_b.begin, tile_m, :] / math.sqrt(d)
        top = hl.full([tile_m], float("-inf"))
        total = hl.zeros([tile_m])
        acc = hl.zeros([tile_m, d])
        for tile_n in hl.tile(0, tile_m.end):
            scores = query @ k[tile_b.begin, tile_n, :].transpose(0, 1)
            seen = tile_m.index[:, None] >= tile_n.index[None, :]
            scores = torch.where(seen, scores, float("-inf"))
            new = torch.maximum(top, scores.amax(-1))
            p = torch.exp(scores - new[:, None])
            scale = torch.exp(top - new)
            total = total * scale + p.sum(-1)
            acc = acc * scale[:, None] + p @ v[tile_b.begin, tile_n, :]
            top = new
        out[tile_b.begin, tile_m, :] = acc / total[:, None]
    return out


# -- memory ---------------------------------------------------------------------------------------


@program(ints(30, 4, 6), rand(30, 12), expect=lambda i, w: F.embedding(i, w))
def embedding(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(-1)
    _, width = weight.size()
    out = torch.empty([flat.size(0), width], dtype=weight.dtype)
    for tile_b, tile_e in hl.tile([flat.size(0), width]):
        out[tile_b, tile_e] = weight[flat[tile_b], tile_e]
    return out.view(*x.size(), width)


@program(
    rand(5, 6),
    torch.stack([torch.tensor([7, 1, 3, 0, 19, 4]) + i for i in range(5)]) % 20,
    20,
    expect=lambda dy, idx, n: torch.zeros(5, n).scatter(1, idx, dy),
)
def scatter_rows(dy: torch.Tensor, idx: torch.Tensor, width: int) -> torch.Tensor:
    dx = dy.new_zeros([dy.size(0), width])
    for t in hl.tile(dy.size(0)):
        dx[t.index[:, None], idx[t, :]] = dy[t, :]
    return dx


def _three(x: torch.Tensor, rows_: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    keep = rows_ < 6
    out[rows_[keep].long()] = x[keep] * 2
    return out


@program(rand(7, 5, 8), torch.tensor([6, 2, 0, 5, 1, 3, 4], dtype=torch.int32), expect=_three)
def store_three_axes(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    n, h, d = x.size()
    d = hl.specialize(d)
    out = torch.zeros_like(x)
    for tn, th in hl.tile([n, h]):
        where = rows[tn]
        mask = (where < 6)[:, None, None]
        hl.store(out, [where, th.index, hl.arange(d)], x[tn, th, :] * 2, extra_mask=mask)
    return out


@program(rand(20), expect=lambda x: x.roll(-1) + F.pad(x, (1, 0))[:20])
def shifted(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    n = x.size(0)
    for tile in hl.tile(n):
        after = (tile.index + 1) % n
        before = hl.load(x, [tile + -1], extra_mask=tile.index > 0)
        out[tile] = x[after] + before
    return out


@program(rand(6, 10), expect=lambda x: (x[:, 2:8:2], x[3, :] + x[-1, :], x[:, None, :].sum(1)))
def slices(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a, b, c = torch.empty(6, 3), torch.empty(10), torch.empty(6, 10)
    for i in hl.tile(6):
        a[i, :] = x[i, 2:8:2]
        c[i, :] = x[i, None, :].sum(1)
    for j in hl.tile(10):
        b[j] = x[3, j] + x[-1, j]
    return a, b, c


@program(
    rand(21, 6),
    8,
    expect=lambda g, c: g - g[torch.tensor([min(i // 8 * 8 + 8, 21) - 1 for i in range(21)])],
)
def last_of_each_chunk(g: torch.Tensor, chunk: int) -> torch.Tensor:
    n, d = g.size()
    out = torch.empty_like(g)
    for td in hl.tile(d):
        for t in hl.tile(n, block_size=8):
            last = min(t.begin + chunk, n) - 1
            out[t, td] = g[t, td] - g[last, td][None, :]
    return out


@program(rand(5, 6), expect=lambda x: (x + 1, x.sum()))
def grids(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, total = torch.empty_like(x), torch.zeros(())
    m, n = x.shape
    for i, j in hl.grid([m, n]):
        out[i, j] = x[i, j] + 1
        hl.atomic_add(total, [], x[i, j])
    return out, total


@program(rand(5, 6), expect=lambda x: x.cumsum(0))
def counted(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(6):
        total = hl.zeros([tile])
        for i in range(5):
            total = total + x[i, tile]
            out[i, tile] = total
    return out


@program(
    ints(4, 30, dtype=torch.int32),
    expect=lambda x: torch.bincount(x, minlength=4).to(torch.int32),
)
def histogram(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(4, dtype=torch.int32)
    for tile in hl.tile(30):
        hl.atomic_add(out, [x[tile]], 1)
    return out


# -- control flow ---------------------------------------------------------------------------------


@program(rand(12), ints(2, 12), expect=lambda x, f: torch.where(f == 1, x * 2, x - 1))
def branches(x: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for i in hl.grid(12):
        if flags[i] == 1:
            y = x[i] * 2
        else:
            y = x[i] - 1
        out[i] = y
    return out


@program(ints(9, 10), expect=lambda n: torch.tensor([max(int(v), 1).bit_length() for v in n]))
def whiles(n: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(n)
    for i in hl.grid(10):
        v = n[i]
        count = 1
        while v > 1:
            v = v // 2
            count = count + 1
        out[i] = count
    return out


@program(
    rand(6, 12),
    ints(12, 6),
    expect=lambda x, n: torch.stack([x[i, : int(n[i])].sum() for i in range(6)]),
)
def data_dependent(x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    out = torch.empty(6)
    for i in hl.grid(6):
        acc = hl.zeros([1])
        for tile in hl.tile(ends[i]):
            acc = acc + x[i, tile].sum()
        out[i] = acc.sum()
    return out


def _jagged_mean(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return torch.stack([x[a:b].sum(0) / max(b - a, 1) for a, b in pairs])


@program(rand(17, 6), torch.tensor([0, 3, 3, 10, 17]), expect=_jagged_mean)
def jagged_mean(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    rows_, width = offsets.size(0) - 1, x.size(1)
    out = torch.zeros([rows_, width])
    flat = x.view(-1)
    for tile_b in hl.tile(rows_):
        starts = offsets[tile_b]
        lengths = offsets[tile_b.index + 1] - starts
        for tile_m in hl.tile(width):
            acc = hl.zeros([tile_b, tile_m])
            for tile_k in hl.jagged_tile(lengths):
                place = (starts[:, None] + tile_k.index[None, :])[:, :, None] * width
                values = hl.load(flat, [place + tile_m.index[None, None, :]])
                acc = acc + (values + 0.5).sum(1)
            many = lengths.to(torch.float32)[:, None]
            out[tile_b, tile_m] = torch.where(many > 0, acc / many - 0.5, 0.0)
    return out


# -- scans, reductions of one's own, order --------------------------------------------------------


def combine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left * 0.0 + torch.maximum(left, right)


@program(
    rand(6, 15), expect=lambda x: (x.cumsum(1), x.cummax(1).values, x.flip(1).cumsum(1).flip(1))
)
def scans(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a, b, c = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    for tile in hl.tile(6):
        a[tile, :] = hl.cumsum(x[tile, :], dim=1)
        b[tile, :] = hl.associative_scan(combine, x[tile, :], dim=1)
        c[tile, :] = hl.cumsum(x[tile, :], dim=1, reverse=True)
    return a, b, c


def segment_step(
    left_value: torch.Tensor, left_id: torch.Tensor, value: torch.Tensor, here: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.where(left_id == here, left_value + value, value), here


@program(
    torch.sort(ints(5, 20)).values,
    rand(20, 3),
    expect=lambda i, x: torch.zeros(5, 3).index_add(0, i, x),
)
def segments(indices: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros([5, x.size(1)])
    n = indices.size(0)
    for tile_e, tile_f in hl.tile(x.shape):
        values = x[tile_e, tile_f]
        ids = indices[tile_e].float().unsqueeze(1).expand_as(values)
        sums, _ = hl.associative_scan(segment_step, (values, ids), dim=0)
        last = tile_e.index == tile_e.end - 1
        following = hl.load(indices, [torch.minimum(tile_e.index + 1, tile_e.index * 0 + n - 1)])
        ends = last | (indices[tile_e] != following)
        hl.atomic_add(out, [indices[tile_e], tile_f], torch.where(ends[:, None], sums, 0.0))
    return out


def larger(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return torch.where(first, a[0], b[0]), torch.where(first, a[1], b[1])


@program(rand(7, 13), expect=lambda x: (x.amax(1), x.argmax(1).to(torch.int32)))
def own_argmax(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = torch.empty(7), torch.empty(7, dtype=torch.int32)
    for tile in hl.tile(7):
        row = x[tile, :]
        at = hl.arange(13, dtype=torch.int32)[None, :].expand_as(row)
        a, b = hl.reduce(larger, (row, at), dim=1, other=(float("-inf"), 0))
        values[tile] = a
        places[tile] = b
    return values, places


@program(rand(5, 9), expect=lambda x: (x.sort(-1, descending=True).values, x.topk(3, -1).values))
def orders(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty(5, 9), torch.empty(5, 3)
    for tile in hl.tile(5):
        values, _ = torch.sort(x[tile, :], dim=-1, descending=True)
        a[tile, :] = values
        top, places = torch.topk(x[tile, :], 3, dim=-1)
        b[tile, :] = torch.gather(x[tile, :], 1, places) + top * 0
    return a, b


# -- views ----------------------------------------------------------------------------------------


def _unpack(x: torch.Tensor) -> torch.Tensor:
    low, high = (x << 4) >> 4, x >> 4
    return torch.stack([low, high], -1).reshape(x.shape[0], -1)


@program(ints(200, 4, 8).to(torch.int8), expect=_unpack)
def int4(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(4, 16, dtype=torch.int8)
    for tile in hl.tile(4):
        packed = x[tile, :]
        low, high = (packed << 4) >> 4, packed >> 4
        out[tile, :] = torch.stack([low, high], dim=-1).reshape(tile.block_size, 16)
    return out


@program(rand(6, 2, 5), expect=lambda x: (x[:, 0] - x[:, 1], x.permute(2, 0, 1)))
def views(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty(6, 5), torch.empty(5, 6, 2)
    for tile in hl.tile(6):
        lo, hi = hl.split(x[tile, :, :].permute(0, 2, 1))
        a[tile, :] = lo - hi
        b[:, tile, :] = hl.join(lo, hi).transpose(0, 1)
    return a, b


@program(rand(8, 12), expect=lambda x: (x.view(8, 3, 4).sum(-1), x.t()))
def reshapes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.empty(8, 3), torch.empty(12, 8)
    for tile in hl.tile(8):
        a[tile, :] = x[tile, :].reshape(tile, 3, 4).sum(-1)
        b[:, tile] = x[tile, :].T
    return a, b


@program(rand(5, 7), expect=lambda x: (x[:, :, None] < x[:, None, :]).sum(-1))
def ranks(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(5, 7, dtype=torch.int64)
    for tile in hl.tile(5):
        row = x[tile, :]
        out[tile, :] = (row[:, :, None] < row[:, None, :]).sum(-1)
    return out
