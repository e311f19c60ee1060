"""Hand-built programs with loops inside of the grid, as the tile language makes them, for tests of
the llvm target: products, attention, online softmax, sums of ragged rows.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch

from test.codegen.llvm.kernels import F32, at, buffer
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.types import (
    Axis,
    Gather,
    Size,
    begin_symbol,
)


def zeros(b: Builder, *axes: Axis, value: float = 0.0, dtype: torch.dtype = F32) -> Value:
    return b.expand(b.const(value, dtype), axes)


def matmul(
    m: Size,
    n: Size,
    k: Size,
    dtype: torch.dtype = F32,
    epilogue: Callable[[Builder, Value, Axis], Value] | None = None,
    transposed: bool = False,
) -> Kernel:
    """out = epilogue(x @ y): a grid over m and n, a loop over k. `transposed`: y is [n, k]."""
    b = Builder("matmul")
    for size in (m, n, k):
        if not isinstance(size, int):
            b.size(size.name)
    x = buffer(b, "x", (m, k), dtype)
    y = buffer(b, "y", (n, k) if transposed else (k, n), dtype)
    out = buffer(b, "out", (m, n), dtype, "out")
    am, an, ak = b.axis("m", m), b.axis("n", n), b.axis("k", k)
    with b.grid(am, an, blocks=[b.block(a.name) for a in (am, an)]):
        start = zeros(b, am, an)
        with b.tile_loop([ak], [start], [b.block("k")]) as loop:
            right = b.load(y, [at(an), at(ak)] if transposed else [at(ak), at(an)])
            left = b.load(x, [at(am), at(ak)])
            loop.finish([b.dot(left, right, ak, F32, loop.args[0])])
        result = loop.results[0]
        if epilogue is not None:
            result = epilogue(b, result, an)
        b.store(out, [at(am), at(an)], b.cast(result, dtype))
    return b.build()


def bias_gelu(n: Size) -> Callable[[Builder, Value, Axis], Value]:
    """An epilogue: x + bias, then x * sigmoid(1.702 x)."""

    def epilogue(b: Builder, value: Value, an: Axis) -> Value:
        bias = b.load(buffer(b, "bias", (n,)), [at(an)])
        value = b.pointwise("add", value, bias)
        scaled = b.pointwise("mul", value, b.const(1.702, F32))
        return b.pointwise("mul", value, b.pointwise("sigmoid", scaled))

    return epilogue


def attention(
    heads: int,
    rows: int,
    keys: int,
    width: int,
    dtype: torch.dtype = F32,
    causal: bool = False,
    short: bool = False,
) -> Kernel:
    """softmax(q k^T / sqrt(d)) v with an online softmax over blocks of keys. `short`: the loop ends
    where a causal mask hides the rest.
    """
    b = Builder("attention")
    shape, other = (heads, rows, width), (heads, keys, width)
    q, k, v = (buffer(b, s, x, dtype) for s, x in (("q", shape), ("k", other), ("v", other)))
    out = buffer(b, "out", shape, dtype, "out")
    h, m = b.axis("h", heads), b.axis("m", rows)
    block = b.block("m")
    n = b.axis("n", sympy.Min(keys, begin_symbol(m) + block) if short else keys)
    d, e = b.axis("d", width, "full"), b.axis("e", width, "full")
    minus = float("-inf")
    with b.grid(h, m, blocks=[1, block]):
        queries = b.load(q, [at(h), at(m), at(d)])
        starts = [zeros(b, h, m, value=minus), zeros(b, h, m), zeros(b, h, m, e)]
        with b.tile_loop([n], starts, [b.block("n")]) as loop:
            top, total, acc = loop.args
            scores = b.dot(queries, b.load(k, [at(h), at(n), at(d)]), d, F32)
            scores = b.pointwise("mul", scores, b.const(width**-0.5, F32))
            if causal:
                seen = b.pointwise("ge", b.iota(m), b.iota(n))
                scores = b.pointwise("where", seen, scores, b.const(minus, F32))
            new_top = b.pointwise("maximum", top, b.reduce("max", scores, [n]))
            p = b.pointwise("exp", b.pointwise("sub", scores, new_top))
            scale = b.pointwise("exp", b.pointwise("sub", top, new_top))
            new_total = b.pointwise(
                "add", b.pointwise("mul", total, scale), b.reduce("sum", p, [n])
            )
            acc = b.pointwise("mul", acc, scale)
            values = b.load(v, [at(h), at(n), at(e)])
            acc = b.dot(b.cast(p, dtype), values, n, F32, acc)
            loop.finish([new_top, new_total, acc])
        _, total, acc = loop.results
        result = b.pointwise("div", acc, total)
        b.store(out, [at(h), at(m), at(e)], b.cast(result, dtype))
    return b.build()


def softmax_two_pass(rows: Size, columns: Size, dtype: torch.dtype = F32) -> Kernel:
    """Softmax over rows that are read in tiles, twice; maximum and sum are carried online."""
    b = Builder("softmax_two_pass")
    for size in (rows, columns):
        if not isinstance(size, int):
            b.size(size.name)
    x = buffer(b, "x", (rows, columns), dtype)
    out = buffer(b, "out", (rows, columns), dtype, "out")
    m, n, n2 = b.axis("m", rows), b.axis("n", columns), b.axis("n2", columns)
    block = b.block("m"), b.block("n")
    with b.grid(m, blocks=[block[0]]):
        starts = [zeros(b, m, value=float("-inf")), zeros(b, m)]
        with b.tile_loop([n], starts, [block[1]]) as loop:
            top, total = loop.args
            values = b.cast(b.load(x, [at(m), at(n)]), F32)
            new_top = b.pointwise("maximum", top, b.reduce("max", values, [n]))
            scale = b.pointwise("exp", b.pointwise("sub", top, new_top))
            e = b.pointwise("exp", b.pointwise("sub", values, new_top))
            part = b.reduce("sum", e, [n])
            loop.finish([new_top, b.pointwise("add", b.pointwise("mul", total, scale), part)])
        top, total = loop.results
        with b.tile_loop([n2], (), [block[1]]):
            values = b.cast(b.load(x, [at(m), at(n2)]), F32)
            e = b.pointwise("exp", b.pointwise("sub", values, top))
            b.store(out, [at(m), at(n2)], b.cast(b.pointwise("div", e, total), dtype))
    return b.build()


def layer_norm(rows: Size, columns: Size, dtype: torch.dtype = F32, eps: float = 1e-5) -> Kernel:
    """Rows whole inside of a step."""
    b = Builder("layer_norm")
    x, w = buffer(b, "x", (rows, columns), dtype), buffer(b, "w", (columns,), dtype)
    out = buffer(b, "out", (rows, columns), dtype, "out")
    m, n = b.axis("m", rows), b.axis("n", columns, "full")
    with b.grid(m, blocks=[b.block("m")]):
        values = b.cast(b.load(x, [at(m), at(n)]), F32)
        count = b.const(float(columns), F32)
        mean = b.pointwise("div", b.reduce("sum", values, [n]), count)
        centered = b.pointwise("sub", values, mean)
        squares = b.reduce("sum", b.pointwise("mul", centered, centered), [n])
        var = b.pointwise("add", b.pointwise("div", squares, count), b.const(eps, F32))
        weight = b.cast(b.load(w, [at(n)]), F32)
        result = b.pointwise("mul", centered, b.pointwise("rsqrt", var))
        b.store(out, [at(m), at(n)], b.cast(b.pointwise("mul", result, weight), dtype))
    return b.build()


def cross_entropy(rows: Size, classes: int) -> Kernel:
    """logsumexp(logits) - logits[label] of each row, the classes in tiles."""
    b = Builder("cross_entropy")
    logits = buffer(b, "logits", (rows, classes))
    labels = buffer(b, "labels", (rows,), torch.int64)
    out = buffer(b, "out", (rows,), F32, "out")
    m, n = b.axis("m", rows), b.axis("n", classes)
    with b.grid(m, blocks=[b.block("m")]):
        starts = [zeros(b, m, value=float("-inf")), zeros(b, m)]
        with b.tile_loop([n], starts, [b.block("n")]) as loop:
            top, total = loop.args
            values = b.load(logits, [at(m), at(n)])
            new_top = b.pointwise("maximum", top, b.reduce("max", values, [n]))
            scale = b.pointwise("exp", b.pointwise("sub", top, new_top))
            e = b.pointwise("exp", b.pointwise("sub", values, new_top))
            part = b.reduce("sum", e, [n])
            loop.finish([new_top, b.pointwise("add", b.pointwise("mul", total, scale), part)])
        top, total = loop.results
        label = b.load(labels, [at(m)])
        chosen = b.load(logits, [at(m), Gather(0)], [label], checked=True)
        loss = b.pointwise("sub", b.pointwise("add", b.pointwise("log", total), top), chosen)
        b.store(out, [at(m)], loss)
    return b.build()


def ragged_sums(rows: Size, columns: int, count: Size) -> Kernel:
    """Sums over the lines [starts[i], starts[i + 1]) of a table: a loop whose size is data."""
    b = Builder("ragged_sums")
    for size in (rows, count):
        if not isinstance(size, int):
            b.size(size.name)
    starts = buffer(b, "starts", (rows + 1,), torch.int64)
    table = buffer(b, "table", (count, columns))
    out = buffer(b, "out", (rows, columns), F32, "out")
    m, n = b.axis("m", rows), b.axis("n", columns)
    with b.grid(m, n, blocks=[1, b.block("n")]):
        first, last = b.load(starts, [at(m)]), b.load(starts, [at(m, 1, 1)])
        begin = b.bind(b.reduce("max", first, [m]), "begin")
        length = b.bind(b.reduce("max", b.pointwise("sub", last, first), [m]), "length")
        r = b.axis("r", length)
        with b.tile_loop([r], [zeros(b, m, n)], [b.block("r")]) as loop:
            lines = b.load(table, [at(r, 1, begin), at(n)])
            total = b.pointwise("add", loop.args[0], b.reduce("sum", lines, [r]))
            loop.finish([b.expand(total, [m])])
        b.store(out, [at(m), at(n)], loop.results[0])
    return b.build()


def split_k(m: int, n: int, k: int) -> Kernel:
    """out += x @ y with the grid over k as well: steps add their part atomically."""
    b = Builder("split_k")
    x, y = buffer(b, "x", (m, k)), buffer(b, "y", (k, n))
    out = buffer(b, "out", (m, n), F32, "inout")
    am, an, ak = b.axis("m", m), b.axis("n", n), b.axis("k", k)
    with b.grid(am, an, ak, blocks=[b.block(a.name) for a in (am, an, ak)]):
        part = b.dot(b.load(x, [at(am), at(ak)]), b.load(y, [at(ak), at(an)]), ak, F32)
        b.atomic("add", out, [at(am), at(an)], part)
    return b.build()
