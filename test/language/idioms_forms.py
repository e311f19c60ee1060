"""Forms of the same thing: subscripts, views, conversions, functions, as programs write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import torch_helion.language as hl
from test.language.idioms import idiom, ints, rand


@idiom(rand(6, 8), expect=lambda x: x[:, :] * 1, tolerance=1e-4)
def reshape_tiles(x):
    out = torch.empty_like(x)
    for a, b in hl.tile(x.shape):
        v = x[a, b].reshape(a, b).view([a, b]).view(a, b)
        w = v.sum(-1).reshape(a, 1).expand(a, b)
        out[a, b] = v + (w - w)
    return out


@idiom(
    rand(6, 8),
    expect=lambda x: x + x.sum(1, keepdim=True) * 0 + x.amax(0)[None, :] * 0,
    tolerance=1e-4,
)
def expands(x):
    out = torch.empty_like(x)
    for a in hl.tile(6):
        v = x[a, :]
        s = v.sum(1)[:, None].expand(-1, 8)
        s2 = torch.broadcast_to(v.sum(1)[:, None], [a.block_size, 8])
        out[a, :] = v + (s - s2) + v.sum(1).unsqueeze(-1).expand_as(v) * 0
    return out


@idiom(rand(6, 8), expect=lambda x: x**2 + 1 / x + 2**x - (-x), tolerance=1e-4)
def ops(x):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        v = x[tl]
        out[tl] = v**2 + 1 / v + 2**v - (-v)
    return out


@idiom(rand(6, 8), expect=lambda x: x.sum(), tolerance=1e-4)
def zero_d(x):
    out = torch.zeros([])
    for a in hl.tile(6):
        hl.atomic_add(out, [], x[a, :].sum(-1).sum(0))
    return out


@idiom(rand(6, 8), expect=lambda x: x[0, :].sum() * 0 + 3, tolerance=1e-4)
def zero_d_store(x):
    out = torch.zeros([])
    for _a in hl.grid(1):
        out[()] = 3.0
    return out


@idiom(rand(6, 8), expect=lambda x: x[-1] + x[0], tolerance=1e-4)
def neg_index(x):
    out = torch.empty(8)
    for tl in hl.tile(8):
        out[tl] = x[-1, tl] + x[0, tl]
    return out


@idiom(rand(6, 8), expect=lambda x: x, tolerance=1e-4)
def ellipsis(x):
    out = torch.empty_like(x)
    for tl in hl.tile(8):
        out[..., tl] = x[..., tl]
    return out


@idiom(rand(6, 8), ints(6, 3, 4), expect=lambda x, i: x[i], tolerance=1e-4)
def gather2d(x, i):
    out = torch.empty(3, 4, 8)
    for a, b in hl.tile([3, 4]):
        out[a, b, :] = x[i[a, b], :]
    return out


@idiom(rand(6, 8), ints(8, 6), expect=lambda x, i: x[torch.arange(6), i], tolerance=1e-4)
def pick(x, i):
    out = torch.empty(6)
    for a in hl.tile(6):
        out[a] = (x[a, :] * (hl.arange(8)[None, :] == i[a][:, None])).sum(-1)
    return out


@idiom(
    rand(6, 8),
    ints(6, 5),
    ints(8, 4),
    expect=lambda x, i, j: x[i[:, None], j[None, :]],
    tolerance=1e-4,
)
def outer_gather(x, i, j):
    out = torch.empty(5, 4)
    for a, b in hl.tile([5, 4]):
        out[a, b] = x[i[a][:, None], j[b][None, :]]
    return out


@idiom(rand(6, 8), expect=lambda x: torch.cat([x[:, :4] * 2, x[:, 4:] + 0], 1), tolerance=1e-4)
def store_slices(x):
    out = x.clone()
    for a in hl.tile(6):
        out[a, 0:4] = x[a, 0:4] * 2
    return out


@idiom(
    rand(6, 8),
    expect=lambda x: torch.stack([x[:, ::2] + 1, x[:, 1::2]], -1).flatten(1),
    tolerance=1e-4,
)
def store_steps(x):
    out = x.clone()
    for a in hl.tile(6):
        out[a, ::2] = x[a, ::2] + 1
    return out


@idiom(rand(6, 8), expect=lambda x: torch.zeros_like(x), tolerance=1e-4)
def store_scalar(x):
    out = torch.empty_like(x)
    for a in hl.tile(6):
        out[a, :] = 0
    return out


@idiom(rand(6, 8), expect=lambda x: x + 1, tolerance=1e-4)
def aug(x):
    out = x.clone()
    for a, b in hl.tile(x.shape):
        out[a, b] += 1
    return out


@idiom(
    rand(6, 8).half(), rand(8, 4).half(), expect=lambda x, y: x.float() @ y.float(), tolerance=1e-4
)
def mm_out_dtype(x, y):
    out = torch.empty(6, 4)
    for a, b in hl.tile([6, 4]):
        acc = hl.zeros([a, b])
        for k in hl.tile(8):
            acc = acc + torch.mm(x[a, k], y[k, b], out_dtype=torch.float32)
        out[a, b] = acc
    return out


@idiom(rand(2, 6, 8), rand(2, 8, 4), expect=lambda x, y: x @ y, tolerance=1e-4)
def bmm_at(x, y):
    out = torch.empty(2, 6, 4)
    for i, a, b in hl.tile([2, 6, 4]):
        out[i, a, b] = torch.bmm(x[i, a, :], y[i, :, b])
    return out


@idiom(rand(6, 8), expect=lambda x: x.masked_fill(x > 0, float("-inf")), tolerance=1e-4)
def masked(x):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        v = x[tl]
        out[tl] = v.masked_fill(v > 0, float("-inf"))
    return out


@idiom(
    rand(6, 8), expect=lambda x: torch.ops.aten.add(x, x) + torch.ops.aten.relu(x), tolerance=1e-4
)
def aten_ops(x):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        out[tl] = torch.ops.aten.add(x[tl], x[tl]) + torch.ops.aten.relu.default(x[tl])
    return out


@idiom(rand(2, 3, 4), expect=lambda x: x * 2, tolerance=1e-4)
def starred_host(x):
    *b, m, n = x.shape
    out = torch.empty_like(x)
    for i, a, c in hl.tile([*b, m, n]):
        out[i, a, c] = x[i, a, c] * 2
    return out


@idiom(
    rand(6, 8),
    expect=lambda x: x * x.shape[0] + x.numel() + x.ndim + len(x.shape) + x.stride(0),
    tolerance=1e-4,
)
def facts(x):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        out[tl] = x[tl] * x.shape[0] + x.numel() + x.ndim + len(x.shape) + x.stride(0)
    return out


@idiom(rand(6, 8), expect=lambda x: x + 6 + 8, tolerance=1e-4)
def specs(x):
    m, n = hl.specialize(x.shape)
    k = hl.specialize(x.size(1))
    hl.specialize((x.size(0), x.stride(0)))
    out = torch.empty_like(x)
    for a in hl.tile(m):
        out[a, :] = x[a, :] + hl.full([a, n], m, dtype=x.dtype) + k
    return out


@idiom(
    rand(6, 8),
    expect=lambda x: (x.half().float(), x.bfloat16().float(), x.int(), x.bool(), x.double()),
    tolerance=1e-4,
)
def casts(x):
    a = torch.empty_like(x)
    b = torch.empty_like(x)
    c = torch.empty_like(x, dtype=torch.int32)
    d = torch.empty_like(x, dtype=torch.bool)
    e = torch.empty_like(x, dtype=torch.float64)
    for tl in hl.tile(x.shape):
        v = x[tl]
        a[tl] = v.half().float()
        b[tl] = v.bfloat16().to(torch.float32)
        c[tl] = v.int()
        d[tl] = v.bool()
        e[tl] = v.type(torch.float64)
    return a, b, c, d, e


@idiom(rand(6, 8), 3, None, True, expect=lambda x, n, m, f: x * 2 + 1, tolerance=1e-4)
def conds(x, n, mask, flag):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        v = x[tl]
        if mask is not None:
            v = v * mask[tl]
        elif flag and not (mask is None and not flag):
            v = v * 2
        if n > 2:
            v = v + 1
        else:
            v = v - 1
        out[tl] = v
    return out


@idiom(rand(20), expect=lambda x: torch.where(torch.arange(20) < 10, x * 2, x), tolerance=1e-4)
def if_begin(x):
    out = torch.empty_like(x)
    for tl in hl.tile(20, block_size=5):
        v = x[tl]
        if tl.begin < 10:
            v = v * 2
        out[tl] = v
    return out


@idiom(rand(5, 4), expect=lambda x: {"a": x + 1, "b": (x + 2, 3)}, tolerance=1e-4)
def returns_dict(x):
    a = torch.empty_like(x)
    b = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        a[tl] = x[tl] + 1
        b[tl] = x[tl] + 2
    return {"a": a, "b": (b, 3)}


@idiom(rand(5, 40), expect=lambda x: x.sort(-1)[1], tolerance=1e-4)
def sort_idx(x):
    out = torch.empty(5, 40, dtype=torch.int64)
    for a in hl.tile(5):
        _v, i = torch.sort(x[a, :], -1)
        out[a, :] = i
    return out


@idiom(rand(5, 40), expect=lambda x: (x.argsort(-1), x.sum(-1)), tolerance=1e-4)
def argsorts(x):
    out = torch.empty(5, 40, dtype=torch.int64)
    o = torch.empty(5)
    for a in hl.tile(5):
        out[a, :] = torch.argsort(x[a, :], dim=-1)
        o[a] = x[a, :].sum(-1)
    return out, o


@idiom(rand(5, 8), expect=lambda x: x.flip(-1), tolerance=1e-4)
def flips(x):
    out = torch.empty_like(x)
    for a in hl.tile(5):
        out[a, :] = x[a, :].flip(-1)
    return out


@idiom(rand(5, 8), expect=lambda x: x.roll(1, -1), tolerance=1e-4)
def rolls(x):
    out = torch.empty_like(x)
    for a in hl.tile(5):
        out[a, :] = torch.roll(x[a, :], 1, -1)
    return out


@idiom(rand(5, 8), expect=lambda x: x.repeat(1, 2), tolerance=1e-4)
def repeats(x):
    out = torch.empty(5, 16)
    for a in hl.tile(5):
        out[a, :] = x[a, :].repeat(1, 2)
    return out


@idiom(rand(5, 8), expect=lambda x: x.index_select(1, torch.tensor([1, 3])), tolerance=1e-4)
def idxsel(x):
    out = torch.empty(5, 2)
    for a in hl.tile(5):
        i = hl.arange(2) * 2 + 1
        out[a, :] = torch.index_select(x[a, :], 1, i)
    return out


@idiom(
    rand(5, 8),
    expect=lambda x: (
        x.clamp_min(0)
        + x.clip(-1, 1)
        + torch.hypot(x, x)
        + torch.atan2(x, x)
        + torch.logaddexp(x, x)
        + x.square()
        + x.reciprocal()
        + torch.maximum(x, -x)
        + F.hardtanh(x)
        + F.elu(x)
        + F.mish(x)
        + F.relu6(x)
        + F.logsigmoid(x)
        + F.softsign(x)
        + torch.heaviside(x, x)
        + x.frac()
        + torch.copysign(x, -x)
        + torch.sinc(x)
        + torch.deg2rad(x)
        + F.selu(x)
        + F.celu(x)
        + F.hardswish(x)
        + F.hardsigmoid(x)
        + F.threshold(x, 0.1, 2.0)
        + F.softshrink(x)
        + F.tanhshrink(x)
        + x.logit(1e-3) * 0
        + torch.special.expit(x)
        + torch.erfc(x)
        + torch.asinh(x)
        + torch.atan(x)
        + torch.sinh(x)
        + torch.cosh(x)
        + torch.lgamma(x.abs() + 1)
        + torch.xlogy(x.abs(), x.abs() + 1)
        + x.sgn()
        + x.neg()
        + x.positive()
        + torch.floor_divide(x, 2)
        + torch.true_divide(x, 2)
        + x.float_power(2).float()
    ),
    tolerance=1e-4,
)
def manyops(x):
    out = torch.empty_like(x)
    for tl in hl.tile(x.shape):
        v = x[tl]
        r = (
            v.clamp_min(0)
            + v.clip(-1, 1)
            + torch.hypot(v, v)
            + torch.atan2(v, v)
            + torch.logaddexp(v, v)
            + v.square()
            + v.reciprocal()
            + torch.maximum(v, -v)
            + F.hardtanh(v)
            + F.elu(v)
            + F.mish(v)
            + F.relu6(v)
            + F.logsigmoid(v)
            + F.softsign(v)
        )
        r = (
            r
            + torch.heaviside(v, v)
            + v.frac()
            + torch.copysign(v, -v)
            + torch.sinc(v)
            + torch.deg2rad(v)
            + F.selu(v)
            + F.celu(v)
            + F.hardswish(v)
            + F.hardsigmoid(v)
            + F.threshold(v, 0.1, 2.0)
            + F.softshrink(v)
            + F.tanhshrink(v)
            + v.logit(1e-3) * 0
            + torch.special.expit(v)
        )
        r = (
            r
            + torch.erfc(v)
            + torch.asinh(v)
            + torch.atan(v)
            + torch.sinh(v)
            + torch.cosh(v)
            + torch.lgamma(v.abs() + 1)
            + torch.xlogy(v.abs(), v.abs() + 1)
            + v.sgn()
            + v.neg()
            + v.positive()
            + torch.floor_divide(v, 2)
            + torch.true_divide(v, 2)
            + v.float_power(2).float()
        )
        out[tl] = r
    return out


@idiom(
    rand(5, 8),
    expect=lambda x: (
        F.rms_norm(x, [8])
        + F.normalize(x, dim=-1)
        + F.softmin(x, -1)
        + x * torch.sigmoid(x)
        + F.mse_loss(x, x * 2, reduction="none")
        + F.smooth_l1_loss(x, x * 2, reduction="none")
        + F.huber_loss(x, x * 3, reduction="none")
        + F.binary_cross_entropy_with_logits(x, x.sigmoid(), reduction="none")
        + F.kl_div(x, x.exp(), reduction="none")
        + F.leaky_relu(x, 0.2)
    ),
    tolerance=1e-4,
)
def funcs(x):
    out = torch.empty_like(x)
    for a in hl.tile(5):
        v = x[a, :]
        r = F.rms_norm(v, [8]) + F.normalize(v, dim=-1) + F.softmin(v, -1) + v * torch.sigmoid(v)
        r = (
            r
            + F.mse_loss(v, v * 2, reduction="none")
            + F.smooth_l1_loss(v, v * 2, reduction="none")
            + F.huber_loss(v, v * 3, reduction="none")
            + F.binary_cross_entropy_with_logits(v, v.sigmoid(), reduction="none")
            + F.kl_div(v, v.exp(), reduction="none")
            + F.leaky_relu(v, 0.2)
        )
        out[a, :] = r
    return out


@idiom(
    rand(5, 8),
    expect=lambda x: (
        x.sum(0),
        x.mean((0,)),
        x.sum(dim=[0]),
        x.count_nonzero(0),
        x.nansum(0),
        x.aminmax(dim=0)[1],
    ),
    tolerance=1e-4,
)
def redforms(x):
    o = [torch.empty(8) for _ in range(5)]
    c = torch.empty(8, dtype=torch.int64)
    for b in hl.tile(8):
        v = x[:, b]
        o[0][b] = v.sum(0)
        o[1][b] = v.mean((0,))
        o[2][b] = v.sum(dim=[0])
        c[b] = torch.count_nonzero(v, 0)
        o[3][b] = torch.nansum(v, 0)
        o[4][b] = torch.aminmax(v, dim=0)[1]
    return o[0], o[1], o[2], c, o[3], o[4]


@idiom(rand(5, 8), rand(5, 8), expect=lambda x, y: torch.einsum("ij,ij->i", x, y), tolerance=1e-4)
def einsums(x, y):
    out = torch.empty(5)
    for a in hl.tile(5):
        out[a] = torch.einsum("ij,ij->i", x[a, :], y[a, :])
    return out


@idiom(rand(5, 8), rand(8, 4), expect=lambda x, y: torch.einsum("ik,kj->ij", x, y), tolerance=1e-4)
def einsum2(x, y):
    out = torch.empty(5, 4)
    for a in hl.tile(5):
        out[a, :] = torch.einsum("ik,kj->ij", x[a, :], y[:, :])
    return out


@idiom(rand(5, 8), expect=lambda x: F.one_hot(x.argmax(-1), 8).float(), tolerance=1e-4)
def onehot(x):
    out = torch.empty(5, 8)
    for a in hl.tile(5):
        out[a, :] = F.one_hot(x[a, :].argmax(-1), 8).float()
    return out


@idiom(rand(6, 10), expect=lambda x: F.pad(x, (1, 1)), tolerance=1e-4)
def pads(x):
    out = torch.empty(6, 12)
    for a in hl.tile(6):
        out[a, :] = F.pad(x[a, :], (1, 1))
    return out


@idiom(rand(6, 10), expect=lambda x: x.diff(dim=-1), tolerance=1e-4)
def diffs(x):
    out = torch.empty(6, 9)
    for a in hl.tile(6):
        out[a, :] = torch.diff(x[a, :], dim=-1)
    return out


@idiom(rand(6, 10), expect=lambda x: x.tril() + x.triu(), tolerance=1e-4)
def trils(x):
    out = torch.empty(6, 10)
    for _a in hl.grid(1):
        v = x[:, :]
        out[:, :] = v.tril() + v.triu()
    return out


@idiom(
    rand(6, 10),
    expect=lambda x: (x.T.contiguous(), x.permute(1, 0) + 0, x.transpose(-1, -2) + 0, x.flatten()),
    tolerance=1e-4,
)
def views(x):
    a = torch.empty(10, 6)
    b = torch.empty(10, 6)
    c = torch.empty(10, 6)
    d = torch.empty(60)
    for _i in hl.grid(1):
        v = x[:, :]
        a[:, :] = v.T
        b[:, :] = torch.permute(v, [1, 0])
        c[:, :] = v.mT
        d[:] = v.flatten()
    return a, b, c, d


@idiom(rand(6), expect=lambda x: x.new_tensor([x.max(), x.min()]), tolerance=1e-4)
def maxmin(x):
    out = torch.empty(2)
    for _i in hl.grid(1):
        out[0] = torch.max(x[:])
        out[1] = x[:].min()
    return out


@idiom(rand(2, 3, 4, 5, 2), expect=lambda x: x + 1)
def five_dimensions(x):
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] + 1
    return out


@idiom(rand(2, 10007), rand(3, 1009), expect=lambda x, y: (x * x.mean(-1, keepdim=True), y + 1))
def sizes_that_are_primes(x, y):
    a, b = torch.empty_like(x), torch.empty_like(y)
    for tile in hl.tile(2):
        a[tile, :] = x[tile, :] * x[tile, :].mean(-1, keepdim=True)
    for tile in hl.tile(3):
        b[tile, :] = y[tile, :] + 1
    return a, b


@idiom(rand(20), torch.tensor([13]), expect=lambda x, n: F.pad(x[:13] * 2, (0, 7)))
def bound_of_data_at_the_top(x, n):
    out = torch.zeros_like(x)
    for tile in hl.tile(n[0]):
        out[tile] = x[tile] * 2
    return out


@idiom(rand(6, 8), None, expect=lambda x, bias: x)
def tensors_made_on_conditions(x, bias):
    if bias is None:
        bias = torch.zeros(x.size(1))
    out = torch.empty_like(x)
    for a, b in hl.tile(x.shape):
        out[a, b] = x[a, b] + bias[b]
    return out


@idiom(rand(8, 8), expect=lambda x: x.sum())
def counters_that_are_carried(x):
    out = torch.empty(1)
    for _ in hl.grid(1):
        total, n = hl.zeros([]), 0
        for i in range(8):
            total, n = total + x[i, :].sum(), n + 1
        out[0] = total * n / 8
    return out[0]
