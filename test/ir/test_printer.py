"""The two texts of a kernel: source for readers, exact SSA."""

from __future__ import annotations

import ast

import sympy
import torch
from expecttest import assert_expected_inline

from test.ir import random_kernels
from torch_helion.ir.builder import Builder
from torch_helion.ir.dump import op_text
from torch_helion.ir.graph import Kernel, Op, Origin, Value
from torch_helion.ir.printer import dump, to_source
from torch_helion.ir.types import Affine, Gather, TileType, block_symbol

F32, BF16, I64 = torch.float32, torch.bfloat16, torch.int64


def layer_norm() -> Kernel:
    b = Builder("layer_norm")
    m, n = b.axis("m", b.size("n0")), b.axis("n", 768, "full")
    row = [Affine.of(m), Affine.of(n)]
    x = b.buffer("x", BF16, [m.size, 768], [768, 1])
    weight = b.buffer("weight", F32, [768], [1])
    out = b.buffer("out", BF16, [m.size, 768], [768, 1], "out")

    def mean(value: Value, hint: str) -> Value:
        return b.pointwise("div", b.reduce("sum", value, [n]), b.const(768.0, F32), hint=hint)

    with b.grid(m):
        b.origin = Origin("layer_norm")
        wide = b.cast(b.load(x, row), F32)
        centered = b.pointwise("sub", wide, mean(wide, "mean"), hint="centered")
        variance = mean(b.pointwise("mul", centered, centered), "variance")
        rstd = b.pointwise("rsqrt", b.pointwise("add", variance, b.const(1e-5, F32)), hint="rstd")
        scaled = b.pointwise("mul", b.pointwise("mul", centered, rstd), b.load(weight, row[1:]))
        b.store(out, row, b.cast(scaled, BF16))
    return b.build()


def test_source_of_layer_norm() -> None:
    assert_expected_inline(
        to_source(layer_norm()),
        """\
@torch_helion.kernel
def layer_norm(x: "bf16[n0, 768]", weight: "f32[768]") -> "bf16[n0, 768]":
    n0 = x.size(0)
    out = torch.empty([n0, 768], dtype=torch.bfloat16, device=x.device)
    for tile_m in hl.tile(n0):
        x0 = x[tile_m, :].to(torch.float32)  # layer_norm
        mean = x0.sum(-1) / 768.0
        centered = x0 - mean[:, None]
        variance = (centered * centered).sum(-1) / 768.0
        rstd = torch.rsqrt(variance + 1e-05)
        weight0 = weight[:]
        out[tile_m, :] = (centered * rstd[:, None] * weight0).to(torch.bfloat16)
    return out
""",
    )


def test_dump_of_layer_norm() -> None:
    assert_expected_inline(
        dump(layer_norm()),
        """\
kernel layer_norm(n0)
  in x: bfloat16[n0, 768] strides [768, 1]
  in weight: float32[768] strides [1]
  out out: bfloat16[n0, 768] strides [768, 1]
  axis m: block n0
  axis n: full 768
  grid (m):
    %x: bfloat16[m, n] = load x[m, n]  # layer_norm
    %x.1: float32[m, n] = cast %x  # layer_norm
    %sum: float32[m] = reduce sum %x.1 over (n)  # layer_norm
    %c: float32[] = const 768.0  # layer_norm
    %mean: float32[m] = div(%sum, %c)  # layer_norm
    %centered: float32[m, n] = sub(%x.1, %mean)  # layer_norm
    %mul: float32[m, n] = mul(%centered, %centered)  # layer_norm
    %sum.1: float32[m] = reduce sum %mul over (n)  # layer_norm
    %variance: float32[m] = div(%sum.1, %c)  # layer_norm
    %c.1: float32[] = const 1e-05  # layer_norm
    %add: float32[m] = add(%variance, %c.1)  # layer_norm
    %rstd: float32[m] = rsqrt(%add)  # layer_norm
    %mul.1: float32[m, n] = mul(%centered, %rstd)  # layer_norm
    %weight: float32[n] = load weight[n]  # layer_norm
    %mul.2: float32[m, n] = mul(%mul.1, %weight)  # layer_norm
    %mul.3: bfloat16[m, n] = cast %mul.2  # layer_norm
    store out[m, n] = %mul.3  # layer_norm
""",
    )


def column_sum() -> Kernel:
    b = Builder("column_sum")
    m, n = b.axis("m", b.size("n0")), b.axis("n", b.size("n1"))
    x = b.buffer("x", F32, [m.size, n.size], [1, m.size])
    tiles = sympy.ceiling(m.size / block_symbol("m"))
    partial = b.buffer("partial", F32, [tiles, n.size], [n.size, 1], "workspace")
    out = b.buffer("out", F32, [n.size], [1], "out")
    t = b.axis("t", tiles, "full")
    with b.grid(m, n):
        part = b.reduce("sum", b.load(x, [Affine.of(m), Affine.of(n)]), [m])
        b.store(partial, [Affine.of(m.id_name), Affine.of(n)], part)
    with b.grid(n):
        parts = b.load(partial, [Affine.of(t), Affine.of(n)])
        b.store(out, [Affine.of(n)], b.reduce("sum", parts, [t]))
    return b.build()


def test_source_of_two_phases() -> None:
    assert_expected_inline(
        to_source(column_sum()),
        """\
@torch_helion.kernel
def column_sum(x: "f32[n0, n1]") -> "f32[n1]":
    # x has strides (1, n0)
    n0 = x.size(0)
    n1 = x.size(1)
    out = torch.empty([n1], dtype=torch.float32, device=x.device)
    block_m = hl.register_block_size(n0)
    # workspace of this call
    partial = torch.empty(
        [torch_helion.cdiv(n0, block_m), n1],
        dtype=torch.float32,
        device=x.device,
    )
    for tile_m, tile_n in hl.tile([n0, n1], block_size=[block_m, None]):
        x0 = x[tile_m, tile_n]
        partial[tile_m.id, tile_n] = x0.sum(-2)
    hl.barrier()
    for tile_n in hl.tile(n1):
        partial0 = partial[:, tile_n].permute(1, 0)
        out[tile_n] = partial0.sum(-1)
    return out
""",
    )


def odd_accesses() -> Kernel:
    b = Builder("odd")
    m, n = b.axis("m", b.size("n0")), b.axis("n", 8, "full")
    table = b.buffer("table", F32, [100, 8], [8, 1])
    idx = b.buffer("idx", I64, [m.size], [1])
    x = b.buffer("x", F32, [8, m.size], [m.size, 1])
    y = b.buffer("y", F32, [m.size * 2 + 1, 10], [10, 1])
    out = b.buffer("out", F32, [m.size, 8], [8, 1], "out")
    with b.grid(m):
        i = b.load(idx, [Affine.of(m)])
        e = b.load(table, [Gather(0), Affine.of(n)], [i], checked=True)
        xt = b.load(x, [Affine.of(n), Affine.of(m)])
        inside = b.pointwise("lt", b.iota(n), b.const(7, I64), hint="inside")
        y1 = b.load(y, [Affine.of(m, 2), Affine.of(n, 1, 1)], (), inside, -1.0)
        y2 = b.load(y, [Affine.of(m, -1, m.size - 1), Affine.of(n, 1, 2)])
        y3 = b.load(y, [Affine.of(m), Gather(0)], [b.pointwise("mul", i, b.iota(n))])
        total = e
        for value in (xt, y1, y2, y3):
            total = b.pointwise("add", total, value)
        total = b.pointwise("maximum", total, b.const(float("-inf"), F32))
        b.store(out, [Affine.of(m), Affine.of(n)], total, (), inside)
    return b.build()


def test_source_of_odd_accesses() -> None:
    assert_expected_inline(
        to_source(odd_accesses()),
        """\
@torch_helion.kernel
def odd(
    table: "f32[100, 8]",
    idx: "i64[n0]",
    x: "f32[8, n0]",
    y: "f32[2*n0 + 1, 10]",
) -> "f32[n0, 8]":
    n0 = idx.size(0)
    out = torch.empty([n0, 8], dtype=torch.float32, device=table.device)
    for tile_m in hl.tile(n0):
        idx0 = idx[tile_m]
        table0 = table[idx0, :]  # an index outside is an error
        x0 = x[:, tile_m].permute(1, 0)
        inside = hl.arange(8) < 7
        y0 = torch.where(
            inside,
            hl.load(y, [(tile_m.index * 2)[:, None], hl.arange(8) + 1], extra_mask=inside),
            -1.0,
        )
        y1 = y[n0 - 1 - tile_m.index, 2:10]
        mul = idx0[:, None] * hl.arange(8)
        y2 = y[tile_m.index[:, None], mul]
        maximum = torch.maximum(
            table0 + x0 + y0 + y1 + y2,
            hl.full([], float("-inf"), dtype=torch.float32),
        )
        hl.store(out, [tile_m, slice(None)], maximum, extra_mask=inside)
    return out
""",
    )


def test_precedence() -> None:
    b = Builder("precedence")
    m = b.axis("m", 4)
    x = b.buffer("x", F32, [4], [1])
    out = b.buffer("out", F32, [4], [1], "out")
    with b.grid(m):
        v = b.load(x, [Affine.of(m)])
        one, two = b.const(-1.0, F32), b.const(2.0, F32)
        low = b.pointwise("sub", v, b.pointwise("sub", v, one))
        high = b.pointwise("mul", b.pointwise("neg", b.pointwise("add", v, two)), v)
        b.store(out, [Affine.of(m)], b.pointwise("div", high, b.pointwise("mul", low, v)))
    line = to_source(b.build()).splitlines()[-2].strip()
    assert line == "out[tile_m] = -(x0 + 2.0) * x0 / ((x0 - (x0 - -1.0)) * x0)"


def test_names_are_unique_and_no_keywords() -> None:
    b = Builder("names")
    m = b.axis("m", 4)
    x, out = b.buffer("x", F32, [4], [1]), b.buffer("out", F32, [4], [1], "out")
    with b.grid(m):
        v = b.load(x, [Affine.of(m)], hint="tile_m")
        for hint in ("not", "sum", "torch", "a-b", "7", "out", "x"):
            v = b.pointwise("neg", b.pointwise("add", v, v), hint=hint)
        b.store(out, [Affine.of(m)], v)
    source = to_source(b.build())
    ast.parse(source)
    for name in ("tile_m0", "vnot", "sum0", "torch0", "a_b", "v7", "out0", "x0"):
        assert f" {name} = " in source


def test_both_texts_are_the_same_every_time() -> None:
    for seed in range(20):
        first, second = random_kernels.make(seed).kernel, random_kernels.make(seed).kernel
        assert dump(first) == dump(second)
        assert to_source(first) == to_source(second)


def test_an_op_that_is_broken_still_prints() -> None:
    assert op_text(Op("load", (), {"buffer": "x", "index": (3,)})) == "load buffer=x index=(3)"
    assert op_text(Op("iota", (), {}, (Value(TileType(I64), "i"),))) == "%i: int64[] = iota"
