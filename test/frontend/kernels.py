"""Whole kernels, as users write them: norms and their backwards, losses, attention, products, ...

Each is a row of `KERNELS`: the function, its arguments, what eager mode gives, a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl

Row = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., Any], "float | None"]
KERNELS: dict[str, Row] = {}
GENERATOR = torch.Generator().manual_seed(7)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=GENERATOR)


def kernel(*args: Any, expect: Callable[..., Any], tolerance: float | None = 1e-4) -> Any:
    def register(fn: Any) -> Any:
        KERNELS[fn.__name__] = (fn, args, expect, tolerance)
        return fn

    return register


# -- products -----------------------------------------------------------------------------------


@kernel(
    rand(33, 20),
    rand(20, 17),
    lambda acc, tile: torch.relu(acc),
    expect=lambda x, y, e: torch.relu(x @ y),
)
def matmul_lambda(x: torch.Tensor, y: torch.Tensor, epilogue: Any) -> torch.Tensor:
    m, k = x.size()
    k2, n = y.size()
    assert k == k2, f"size mismatch {k} != {k2}"
    out = torch.empty([m, n], dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = epilogue(acc, (tile_m, tile_n))
    return out


def _with_bias(bias: torch.Tensor) -> Any:
    return lambda acc, tile: acc + bias[tile[1]]


@kernel(
    rand(12, 20, dtype=torch.float16),
    rand(20, 17, dtype=torch.float16),
    _with_bias(torch.ones(17, dtype=torch.float16)),
    expect=lambda x, y, e: ((x.float() @ y.float()) + 1).half(),
    tolerance=2e-2,
)
def matmul_closure(x: torch.Tensor, y: torch.Tensor, epilogue: Any) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = hl.dot(x[tile_m, tile_k], y[tile_k, tile_n], acc=acc)
        out[tile_m, tile_n] = epilogue(acc, (tile_m, tile_n)).to(x.dtype)
    return out


@kernel(rand(16, 64), rand(64, 24), expect=lambda x, y: x @ y)
def split_k_atomic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.zeros([m, n], dtype=torch.promote_types(x.dtype, y.dtype), device=x.device)
    block_k = hl.register_block_size(helion.next_power_of_2(helion.cdiv(k, 4)))
    for tile_m, tile_n, outer_k in hl.tile([m, n, k], block_size=[None, None, block_k]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for inner_k in hl.tile(outer_k.begin, outer_k.end):
            acc = torch.addmm(acc, x[tile_m, inner_k], y[inner_k, tile_n])
        hl.atomic_add(out, [tile_m, tile_n], acc)
    return out


@kernel(rand(4, 9, 12), rand(12, 7), expect=lambda x, y: x @ y)
def broadcast_matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    b, m, k = x.size()
    _, n = y.size()
    out = torch.empty([b, m, n], dtype=x.dtype, device=x.device)
    for tile_b, tile_m, tile_n in hl.tile([b, m, n]):
        acc = hl.zeros([tile_b, tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.baddbmm(
                acc,
                x[tile_b, tile_m, tile_k],
                y[tile_k, tile_n].unsqueeze(0).expand(tile_b, tile_k, tile_n),
            )
        out[tile_b, tile_m, tile_n] = acc
    return out


@kernel(
    rand(20, 12),
    rand(3, 12, 8),
    torch.tensor([0, 7, 7, 20]),
    expect=lambda a, b, o: torch.cat([a[o[g] : o[g + 1]] @ b[g] for g in range(3)]),
)
def grouped_gemm(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    total, k = a.size()
    groups, _, n = b.size()
    out = torch.empty(total, n, dtype=a.dtype, device=a.device)
    for g in hl.grid(groups):
        start = offsets[g]
        end = offsets[g + 1]
        size = end - start
        if size != 0:
            for tile_m, tile_n in hl.tile([size, n]):
                acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
                for tile_k in hl.tile(k):
                    acc = torch.addmm(acc, a[start + tile_m.index, tile_k], b[g, tile_k, tile_n])
                out[start + tile_m.index, tile_n] = acc.to(out.dtype)
    return out


@kernel(
    rand(12, 16, dtype=torch.float8_e4m3fn),
    rand(16, 10, dtype=torch.float8_e4m3fn),
    expect=lambda x, y: x.float() @ y.float(),
    tolerance=1e-2,
)
def fp8_gemm(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=torch.float32, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = hl.dot(x[tile_m, tile_k], y[tile_k, tile_n], acc=acc)
        out[tile_m, tile_n] = acc
    return out


# -- attention ----------------------------------------------------------------------------------


@kernel(
    rand(2, 3, 21, 16),
    rand(2, 3, 27, 16),
    rand(2, 3, 27, 16),
    expect=lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
)
def flash_attention(q_in: torch.Tensor, k_in: torch.Tensor, v_in: torch.Tensor) -> torch.Tensor:
    m_dim = q_in.size(-2)
    n_dim = k_in.size(-2)
    assert n_dim == v_in.size(-2)
    head_dim = hl.specialize(q_in.size(-1))
    q_view = q_in.reshape([-1, m_dim, head_dim])
    v_view = v_in.reshape([-1, n_dim, head_dim])
    k_view = k_in.reshape([-1, n_dim, head_dim]).transpose(1, 2)
    out = torch.empty_like(q_view)
    sm_scale = 1.0 / math.sqrt(head_dim)
    qk_scale = sm_scale * 1.44269504
    for tile_b, tile_m in hl.tile([q_view.size(0), m_dim]):
        m_i = hl.full([tile_b, tile_m], float("-inf"), dtype=torch.float32)
        l_i = torch.full_like(m_i, 1.0)
        acc = hl.zeros([tile_b, tile_m, head_dim], dtype=torch.float32)
        q = q_view[tile_b, tile_m, :]
        for tile_n in hl.tile(v_view.size(1)):
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
            p = p.to(v.dtype)
            acc = torch.baddbmm(acc, p, v)
            m_i = m_ij
        m_i += torch.log2(l_i)
        acc = acc / l_i[:, :, None]
        out[tile_b, tile_m, :] = acc.to(out.dtype)
    return out.view(q_in.size())


# -- norms --------------------------------------------------------------------------------------


@kernel(rand(10, 24), rand(24), expect=lambda x, w: F.rms_norm(x, (24,), w, 1e-5))
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    m, n = x.size()
    assert weight.size(0) == n
    out = torch.empty_like(x)
    inv_rms = torch.empty([m, 1], dtype=x.dtype, device=x.device)
    for tile_m in hl.tile(m):
        x_tile = x[tile_m, :].to(torch.float32)
        mean_x_squared = torch.mean(x_tile * x_tile, dim=-1)
        inv = torch.rsqrt(mean_x_squared + eps)
        normalized = x_tile * inv[:, None]
        out[tile_m, :] = (normalized * weight[:].to(torch.float32)).to(out.dtype)
        inv_rms[tile_m, :] = inv.to(out.dtype).reshape(-1, 1)
    return out


def _layer_norm_grads(dy: Any, x: Any, w: Any, eps: float = 1e-5) -> Any:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    b = torch.zeros_like(w).requires_grad_()
    F.layer_norm(x, (x.size(1),), w, b, eps).backward(dy)
    return x.grad, w.grad, b.grad


@kernel(rand(37, 24), rand(37, 24), rand(24), expect=_layer_norm_grads)
def layer_norm_backward(dy: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> Any:
    m_block = hl.register_block_size(x.size(0))
    n = hl.specialize(x.size(1))
    grad_x = torch.empty_like(x)
    num_blocks = (x.size(0) + m_block - 1) // m_block
    grad_w_blocks = x.new_empty([num_blocks, n], dtype=torch.float32)
    grad_b_blocks = x.new_empty([num_blocks, n], dtype=torch.float32)
    for mb_cta in hl.tile(x.size(0), block_size=m_block):
        grad_w_acc = w.new_zeros(n, dtype=torch.float32)
        grad_b_acc = w.new_zeros(n, dtype=torch.float32)
        w_cta = w[None, :].to(torch.float32)
        for mb in hl.tile(mb_cta.begin, mb_cta.end):
            x_mb = x[mb, :].to(torch.float32)
            dy_mb = dy[mb, :].to(torch.float32)
            mean = torch.mean(x_mb, dim=-1)
            centered = x_mb - mean[:, None]
            rstd = torch.rsqrt(torch.mean(centered * centered, dim=-1) + 1e-5)
            x_hat = centered * rstd[:, None]
            grad_w_acc += torch.sum(dy_mb * x_hat, dim=0)
            grad_b_acc += torch.sum(dy_mb, dim=0)
            wdy = w_cta * dy_mb
            c1 = torch.sum(x_hat * wdy, dim=-1) / n
            c2 = torch.sum(wdy, dim=-1) / n
            dx = (wdy - (x_hat * c1[:, None] + c2[:, None])) * rstd[:, None]
            grad_x[mb, :] = dx.to(x.dtype)
        grad_w_blocks[mb_cta.id, :] = grad_w_acc
        grad_b_blocks[mb_cta.id, :] = grad_b_acc
    return grad_x, grad_w_blocks.sum(0).to(x.dtype), grad_b_blocks.sum(0).to(x.dtype)


@kernel(rand(9, 33), rand(33), rand(33), expect=lambda x, w, b: F.layer_norm(x, (33,), w, b))
def welford(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m in hl.tile(m):
        acc_cnt = torch.zeros_like(x[tile_m, 0], dtype=torch.float32)
        acc_mean = torch.zeros_like(acc_cnt)
        acc_m2 = torch.zeros_like(acc_cnt)
        for tile_n in hl.tile(n):
            chunk = x[tile_m, tile_n]
            tn = tile_n.end - tile_n.begin
            sum_x = torch.sum(chunk, dim=-1)
            sum_x2 = torch.sum(chunk * chunk, dim=-1)
            mean_c = sum_x / tn
            m2_c = sum_x2 - (sum_x * sum_x) / tn
            delta = mean_c - acc_mean
            new_cnt = acc_cnt + tn
            new_mean = acc_mean + delta * (tn / new_cnt)
            acc_m2 = acc_m2 + m2_c + delta * delta * (acc_cnt * tn / new_cnt)
            acc_mean, acc_cnt = new_mean, new_cnt
        rstd = torch.rsqrt(acc_m2 / acc_cnt + 1e-5)
        for tile_n in hl.tile(n):
            y = (x[tile_m, tile_n] - acc_mean[:, None]) * rstd[:, None]
            out[tile_m, tile_n] = y * weight[tile_n] + bias[tile_n]
    return out


@kernel(rand(12, 50), expect=lambda x: torch.softmax(x, 1))
def online_softmax(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty_like(x)
    block_size_m = hl.register_block_size(m)
    block_size_n = hl.register_block_size(n)
    for tile_m in hl.tile(m, block_size=block_size_m):
        mi = hl.full([tile_m], float("-inf"), dtype=torch.float32)
        di = hl.zeros([tile_m], dtype=torch.float32)
        for tile_n in hl.tile(n, block_size=block_size_n):
            values = x[tile_m, tile_n]
            local_amax = torch.amax(values, dim=1)
            mi_next = torch.maximum(mi, local_amax)
            di = di * torch.exp(mi - mi_next) + torch.exp(values - mi_next[:, None]).sum(dim=1)
            mi = mi_next
        for tile_n in hl.tile(n, block_size=block_size_n):
            values = x[tile_m, tile_n]
            out[tile_m, tile_n] = torch.exp(values - mi[:, None]) / di[:, None]
    return out


# -- losses -------------------------------------------------------------------------------------


@kernel(rand(13, 40), integers(40, 13), expect=lambda x, y: F.cross_entropy(x, y))
def cross_entropy_flat(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    n, v = logits.shape
    losses = torch.zeros([n], dtype=logits.dtype, device=logits.device)
    logits_flat = logits.view(-1)
    for tile_n in hl.tile(n):
        labels_tile = labels[tile_n]
        base = tile_n.index * v
        flat = base + labels_tile
        at_target = hl.load(logits_flat, [flat])
        rows = logits[tile_n, :]
        top = torch.amax(rows, dim=-1, keepdim=True)
        shifted = rows - top
        log_sum = torch.log(torch.sum(torch.exp(shifted), dim=-1, keepdim=True))
        losses[tile_n] = top.squeeze(-1) + log_sum.squeeze(-1) - at_target
    return losses.mean()


@kernel(
    F.log_softmax(rand(9, 30), -1),
    F.softmax(rand(9, 30), -1),
    expect=lambda x, y: F.kl_div(x, y, reduction="batchmean"),
)
def kl_div(
    y_pred: torch.Tensor, y_true: torch.Tensor, log_target: bool = False, eps: float = 1e-10
) -> torch.Tensor:
    bt, v = y_pred.shape
    loss = torch.zeros((bt,), dtype=torch.float32, device=y_pred.device)
    block_n = hl.register_block_size(v)
    block_m = hl.register_block_size(bt)
    for tile_bt in hl.tile(bt, block_size=block_m):
        loss_sum = hl.zeros([tile_bt, block_n], dtype=torch.float32)
        for tile_v in hl.tile(v, block_size=block_n):
            pred = y_pred[tile_bt, tile_v]
            true = y_true[tile_bt, tile_v]
            if log_target:
                kl = torch.exp(true) * (true - pred)
            else:
                kl = true * (torch.log(torch.clamp(true, min=eps)) - pred)
            loss_sum += kl
        loss[tile_bt] = loss_sum.sum(dim=-1)
    return torch.sum(loss) / bt


# -- pointwise ----------------------------------------------------------------------------------


@kernel(rand(70), rand(70), expect=lambda a, b: F.silu(a) * b)
def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(a, dtype=torch.promote_types(a.dtype, b.dtype))
    total = a.numel()
    a_flat, b_flat, out_flat = a.view(-1), b.view(-1), out.view(-1)
    for tile_idx in hl.tile(total):
        a_vals = a_flat[tile_idx].to(torch.float32)
        sigmoid = torch.sigmoid(a_vals)
        silu = a_vals * sigmoid
        out_flat[tile_idx] = silu.to(b.dtype) * b_flat[tile_idx]
    return out


@kernel(rand(5, 11), rand(5, 7), expect=lambda x, y: torch.cat([x, y], 1))
def concatenate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert x.size(0) == y.size(0)
    out = torch.empty([x.size(0), x.size(1) + y.size(1)], dtype=x.dtype, device=x.device)
    for tile0, tile1 in hl.tile(out.size()):
        x_part = hl.load(x, [tile0, tile1], extra_mask=(tile1.index < x.size(1))[None, :])
        y_part = hl.load(
            y,
            [tile0, tile1.index - x.size(1)],
            extra_mask=(tile1.index >= x.size(1))[None, :],
        )
        out[tile0, tile1] = torch.where((tile1.index < x.size(1))[None, :], x_part, y_part)
    return out


@kernel(integers(20, 6, 5), rand(20, 12), expect=lambda i, w: w[i])
def embedding_flat(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    _, dim = weight.size()
    x_flat = x.reshape(-1)
    out = torch.empty([x_flat.size(0), dim], dtype=weight.dtype, device=weight.device)
    for tile_b, tile_e in hl.tile([x_flat.size(0), dim]):
        out[tile_b, tile_e] = weight[x_flat[tile_b], tile_e]
    return out.view(*x.size(), dim)


# -- jagged -------------------------------------------------------------------------------------

_OFFSETS = torch.tensor([0, 3, 3, 10, 14])
_LENGTHS = [3, 0, 7, 4]


def _jagged_dense(data: Any, offsets: Any, dense: Any) -> Any:
    out = dense.clone()
    for row in range(offsets.numel() - 1):
        part = data[offsets[row] : offsets[row + 1]]
        out[row, : part.numel()] += part
    return out


@kernel(rand(14), _OFFSETS, rand(4, 9), expect=_jagged_dense)
def jagged_dense_add(
    x_data: torch.Tensor, x_offsets: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    num_rows = y.size(0)
    out = torch.zeros_like(y)
    for tile0 in hl.tile(num_rows):
        starts = x_offsets[tile0]
        ends = x_offsets[tile0.index + 1]
        nnz = ends - starts
        max_nnz = nnz.amax()
        for tile1 in hl.tile(0, max_nnz):
            x_slice = hl.load(
                x_data,
                [starts[:, None] + tile1.index[None, :]],
                extra_mask=tile1.index[None, :] < nnz[:, None],
            )
            out[tile0, tile1] = y[tile0, tile1] + x_slice
        for tile1 in hl.tile(max_nnz, out.size(1)):
            out[tile0, tile1] = y[tile0, tile1]
    return out


def _jagged_softmax(data: Any, offsets: Any) -> Any:
    parts = [
        torch.softmax(data[offsets[r] : offsets[r + 1]], 0) for r in range(offsets.numel() - 1)
    ]
    return torch.cat(parts)


@kernel(rand(14, 6), _OFFSETS, expect=_jagged_softmax)
def jagged_softmax(x_data: torch.Tensor, x_offsets: torch.Tensor) -> torch.Tensor:
    n = x_offsets.size(0) - 1
    total, m = x_data.size()
    out = torch.zeros(total * m, dtype=x_data.dtype, device=x_data.device)
    flat = x_data.view(-1)
    for tile_b in hl.tile(n):
        starts = x_offsets[tile_b]
        lengths = x_offsets[tile_b.index + 1] - starts
        longest = lengths.amax()
        for tile_m in hl.tile(m):
            row_max = hl.full([tile_b, tile_m], float("-inf"), dtype=torch.float32)
            row_sum = hl.full([tile_b, tile_m], 0.0, dtype=torch.float32)
            for tile_k in hl.tile(longest):
                base = starts[:, None] + tile_k.index[None, :]
                index = base[:, :, None] * m + tile_m.index[None, None, :]
                mask = (tile_k.index[None, :] < lengths[:, None])[:, :, None]
                values = hl.load(flat, [index], extra_mask=mask)
                values = torch.where(mask, values, float("-inf"))
                top = torch.maximum(row_max, values.amax(dim=1))
                safe = torch.where(top == float("-inf"), 0.0, top)
                row_sum = row_sum * torch.exp(row_max - safe) + torch.where(
                    mask, torch.exp(values - safe[:, None, :]), 0.0
                ).sum(dim=1)
                row_max = top
            for tile_k in hl.tile(longest):
                base = starts[:, None] + tile_k.index[None, :]
                index = base[:, :, None] * m + tile_m.index[None, None, :]
                mask = (tile_k.index[None, :] < lengths[:, None])[:, :, None]
                values = hl.load(flat, [index], extra_mask=mask)
                result = torch.exp(values - row_max[:, None, :]) / row_sum[:, None, :]
                hl.store(out, [index], result, extra_mask=mask)
    return out.reshape([total, m])


# -- masks --------------------------------------------------------------------------------------


@kernel(rand(40), expect=lambda x: torch.where(x > 0, x, 0) * 2)
def masked_scale(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        keep = x[tile] > 0
        scaled = x[tile] * 2
        out[tile] = torch.where(keep, scaled, 0.0)
    return out


# -- state space ----------------------------------------------------------------------------------


def _delta(q: Any, k: Any, v: Any) -> Any:
    state = torch.zeros(k.size(1), v.size(1))
    out = []
    for i in range(q.size(0)):
        state = state + k[i][:, None] * v[i][None, :]
        out.append(q[i] @ state)
    return torch.stack(out)


@kernel(rand(9, 4), rand(9, 4), rand(9, 6), expect=_delta)
def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    t, d = q.size()
    d = hl.specialize(d)
    e = v.size(1)
    out = torch.empty([t, e], dtype=v.dtype)
    for tile_e in hl.tile(e):
        state = hl.zeros([d, tile_e], dtype=torch.float32)
        for i in hl.grid(t):
            state = state + k[i, :][:, None] * v[i, tile_e][None, :]
            out[i, tile_e] = (q[i, :][:, None] * state).sum(0)
    return out


@kernel(rand(4, 6, 5), expect=lambda x: x.mean(-1))
def squeeze(x: torch.Tensor) -> torch.Tensor:
    b, c, _ = x.shape
    out = torch.empty(b, c)
    for tile_b, tile_c in hl.tile([b, c]):
        out[tile_b, tile_c] = x[tile_b, tile_c, :].mean(dim=2)
    return out


@kernel(rand(11, 6), expect=lambda x: torch.var(x, 0))
def column_variance(x: torch.Tensor) -> torch.Tensor:
    _, m = x.shape
    out = torch.empty(m)
    for tile in hl.tile(m):
        out[tile] = torch.var(x[:, tile], dim=0)
    return out


# -- packed integers ------------------------------------------------------------------------------


def _unpacked(a: Any, b: Any) -> Any:
    low, high = (b << 4) >> 4, b >> 4
    whole = torch.stack([low, high], 1).reshape(b.size(0) * 2, b.size(1))
    return (a.float() @ whole.float()).to(a.dtype)


@kernel(
    rand(9, 20),
    torch.randint(-128, 128, (10, 7), generator=GENERATOR, dtype=torch.int8),
    expect=_unpacked,
)
def int4_gemm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    m, _ = a.shape
    _, n = b.shape
    out = torch.zeros(m, n, dtype=a.dtype, device=a.device)
    block_k = hl.register_block_size(b.size(0))
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(b.size(0), block_size=block_k):
            packed = b[tile_k, tile_n]
            begin = tile_k.begin * 2
            a_tile = a[tile_m, begin : (begin + tile_k.block_size * 2)].to(torch.float32)
            low = (packed << 4) >> 4
            high = packed >> 4
            stacked = torch.stack([low, high], dim=1)
            whole = stacked.reshape(tile_k.block_size * 2, tile_n.block_size).to(torch.float32)
            acc = acc + (a_tile.unsqueeze(2) * whole.unsqueeze(0)).sum(dim=1)
        out[tile_m, tile_n] = acc.to(a.dtype)
    return out


# -- more examples --------------------------------------------------------------------------------


def _rotated(x: Any, cos: Any, sin: Any) -> Any:
    half = x.size(-1) // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


@kernel(rand(9, 3, 8), rand(9, 8), rand(9, 8), expect=_rotated)
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    half = hl.specialize(x.size(-1)) // 2
    for tile_t, tile_h in hl.tile([x.size(0), x.size(1)]):
        left = x[tile_t, tile_h, 0:half]
        right = x[tile_t, tile_h, half : 2 * half]
        c0, c1 = cos[tile_t, 0:half][:, None, :], cos[tile_t, half : 2 * half][:, None, :]
        s0, s1 = sin[tile_t, 0:half][:, None, :], sin[tile_t, half : 2 * half][:, None, :]
        out[tile_t, tile_h, 0:half] = left * c0 - right * s0
        out[tile_t, tile_h, half : 2 * half] = right * c1 + left * s1
    return out


@kernel(
    rand(14, 10),
    rand(3, 10, 6),
    integers(3, 14),
    expect=lambda x, w, e: torch.stack([x[i] @ w[e[i]] for i in range(14)]),
)
def moe(x: torch.Tensor, w: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    order = torch.argsort(expert, stable=True)
    counts = torch.bincount(expert, minlength=w.size(0))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    most = int(counts.max().item())
    t, k = x.size()
    experts, _, n = w.size()
    out = torch.zeros(t, n, dtype=x.dtype)
    for e in hl.grid(experts):
        start = starts[e]
        count = counts[e]
        for tile_t, tile_n in hl.tile([most, n]):
            real = tile_t.index < count
            places = torch.where(real, start + tile_t.index, 0)
            rows = order[places]
            acc = hl.zeros([tile_t, tile_n], dtype=torch.float32)
            for tile_k in hl.tile(k):
                acc = torch.addmm(acc, x[rows, tile_k], w[e, tile_k, tile_n])
            before = out[rows, tile_n]
            block = torch.where(real[:, None], acc.to(out.dtype), before)
            hl.store(out, [rows, tile_n], block, extra_mask=real[:, None])
    return out


def _gelu_layer(x: Any, w: Any) -> Any:
    y = x @ w
    return F.layer_norm(y, (y.size(1),))


@kernel(rand(13, 12), rand(12, 20), expect=_gelu_layer)
def matmul_layer_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    n = hl.specialize(w.size(1))
    out = torch.empty([m, n], dtype=x.dtype)
    for tile_m in hl.tile(m):
        acc = hl.zeros([tile_m, n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], w[tile_k, :])
        variance, mean = torch.var_mean(acc, dim=-1, keepdim=True, correction=0)
        out[tile_m, :] = (acc - mean) * torch.rsqrt(variance + 1e-5)
    return out


def _scored(q: Any, k: Any, v: Any, score: Any) -> Any:
    i = torch.arange(q.size(1))
    logits = torch.einsum("bid,bjd->bij", q, k)
    logits = score(logits, i[None, :, None], torch.arange(k.size(1))[None, None, :])
    return torch.softmax(logits, -1) @ v


@kernel(
    rand(2, 17, 8),
    rand(2, 17, 8),
    rand(2, 17, 8),
    lambda s, i, j: torch.where(i >= j, s - 0.1 * (i - j), float("-inf")),
    expect=_scored,
)
def flex_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: Any) -> torch.Tensor:
    b, m, d = q.size()
    n = k.size(1)
    out = torch.empty_like(q)
    for tile_b, tile_m in hl.tile([b, m], block_size=[1, None]):
        top = hl.full([tile_b, tile_m], float("-inf"))
        total = hl.zeros([tile_b, tile_m])
        acc = hl.zeros([tile_b, tile_m, d])
        for tile_n in hl.tile(n):
            s = torch.bmm(q[tile_b, tile_m, :], k[tile_b, tile_n, :].transpose(1, 2))
            s = score(s, tile_m.index[None, :, None], tile_n.index[None, None, :])
            new_top = torch.maximum(top, s.amax(-1))
            safe = torch.where(new_top == float("-inf"), 0.0, new_top)
            p = torch.exp(s - safe[:, :, None])
            alpha = torch.exp(top - safe)
            total = total * alpha + p.sum(-1)
            acc = acc * alpha[:, :, None] + torch.bmm(p, v[tile_b, tile_n, :])
            top = new_top
        out[tile_b, tile_m, :] = acc / total[:, :, None]
    return out


@kernel(rand(3, 12), rand(12, 9), expect=lambda x, w: x @ w)
def gemv(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    b, k = x.size()
    n = w.size(1)
    out = torch.empty(b, n)
    for i in hl.grid(b):
        for tile_n in hl.tile(n):
            acc = hl.zeros([tile_n])
            for tile_k in hl.tile(k):
                acc += (x[i, tile_k][:, None] * w[tile_k, tile_n]).sum(0)
            out[i, tile_n] = acc
    return out


@kernel(rand(2, 3, 10), expect=lambda x: torch.softmax(x, -1))
def batch_softmax(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile_b, tile_m in hl.tile([x.size(0), x.size(1)]):
        values = x[tile_b, tile_m, :]
        amax = torch.amax(values, dim=-1, keepdim=True)
        e = torch.exp(values - amax)
        out[tile_b, tile_m, :] = e / torch.sum(e, dim=-1, keepdim=True)
    return out


def _chunked(x: Any, decay: Any) -> Any:
    state, out = torch.zeros(x.size(1)), []
    for i in range(x.size(0)):
        state = state * torch.exp(decay[i]) + x[i]
        out.append(state)
    return torch.stack(out)


@kernel(rand(11, 5), -rand(11).abs(), expect=_chunked)
def decayed_sum(x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    def combine(left: Any, right: Any) -> Any:
        (a, x0), (b, x1) = left, right
        return a * b, x0 * b + x1

    t, n = x.size()
    out = torch.empty_like(x)
    for tile_n in hl.tile(n):
        state = hl.zeros([tile_n])
        for tile_t in hl.tile(t):
            rate = torch.exp(decay[tile_t])[:, None].expand(tile_t, tile_n)
            rates, sums = hl.associative_scan(combine, (rate, x[tile_t, tile_n]), dim=0)
            result = sums + rates * state[None, :]
            out[tile_t, tile_n] = result
            last = tile_t.index == tile_t.end - 1
            state = torch.where(last[:, None], result, 0.0).sum(0)
    return out
