"""Hand-built kernels of each map-reduce family, with what they must compute, for tests of the llvm
target.
"""

from __future__ import annotations

import sympy
import torch

from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    Gather,
    Size,
    block_symbol,
    contiguous_strides,
)

F32 = torch.float32
at = Affine.of


def buffer(
    b: Builder, name: str, shape: tuple[Size, ...], dtype: torch.dtype = F32, role: str = "in"
) -> Buffer:
    return b.buffer(name, dtype, shape, contiguous_strides(shape), role)  # type: ignore[arg-type]


def softmax(columns: int | None = None, dtype: torch.dtype = F32) -> Kernel:
    b = Builder("softmax")
    m = b.size("m")
    n = columns or b.size("n")
    x, out = buffer(b, "x", (m, n), dtype), buffer(b, "out", (m, n), dtype, "out")
    am, an = b.axis("m", m), b.axis("n", n, "full")
    with b.grid(am):
        value = b.cast(b.load(x, [at(am), at(an)]), F32)
        row_max = b.reduce("max", value, [an], hint="row_max")
        e = b.pointwise("exp", b.pointwise("sub", value, row_max))
        result = b.pointwise("div", e, b.reduce("sum", e, [an], hint="row_sum"))
        b.store(out, [at(am), at(an)], b.cast(result, dtype))
    return b.build()


def reduce_rows(fn: str, dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    b = Builder(f"row_{fn}")
    m, n = b.size("m"), b.size("n")
    x, out = buffer(b, "x", (m, n), dtype), buffer(b, "out", (m,), out_dtype, "out")
    am, an = b.axis("m", m), b.axis("n", n, "full")
    with b.grid(am):
        b.store(out, [at(am)], b.reduce(fn, b.load(x, [at(am), at(an)]), [an]))
    return b.build()


def reduce_middle(fn: str, dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    """[p, m, n] reduced over m: the vector axis is kept, so the accumulator is an array."""
    b = Builder(f"middle_{fn}")
    p, m, n = b.size("p"), b.size("m"), b.size("n")
    x, out = buffer(b, "x", (p, m, n), dtype), buffer(b, "out", (p, n), out_dtype, "out")
    ap, am, an = b.axis("p", p), b.axis("m", m, "full"), b.axis("n", n)
    with b.grid(ap, an):
        b.store(out, [at(ap), at(an)], b.reduce(fn, b.load(x, [at(ap), at(am), at(an)]), [am]))
    return b.build()


def finish_partials(
    b: Builder, partials: list[tuple[Buffer, Buffer]], tiles: Axis, columns: Axis
) -> None:
    """A second phase: sums of partials over tiles."""
    with b.grid(columns):
        for part, out in partials:
            b.store(
                out, [at(columns)], b.reduce("sum", b.load(part, [at(tiles), at(columns)]), [tiles])
            )


def layer_norm_backward() -> Kernel:
    """Row sums, column sums and a pointwise result in one pass over the rows."""
    b = Builder("layer_norm_backward")
    m, n = b.size("m"), b.size("n")
    x, dy, w = buffer(b, "x", (m, n)), buffer(b, "dy", (m, n)), buffer(b, "w", (n,))
    mean, rstd = buffer(b, "mean", (m,)), buffer(b, "rstd", (m,))
    dx, dw, db = (
        buffer(b, name, shape, F32, "out")
        for name, shape in (("dx", (m, n)), ("dw", (n,)), ("db", (n,)))
    )
    tiles = sympy.ceiling(m / block_symbol("m"))
    part_w, part_b = (
        buffer(b, "part_w", (tiles, n), F32, "workspace"),
        buffer(b, "part_b", (tiles, n), F32, "workspace"),
    )
    am, an, at_, an2 = (
        b.axis("m", m),
        b.axis("n", n, "full"),
        b.axis("t", tiles, "full"),
        b.axis("k", n),
    )
    with b.grid(am):
        xs, dys, ws = b.load(x, [at(am), at(an)]), b.load(dy, [at(am), at(an)]), b.load(w, [at(an)])
        r = b.load(rstd, [at(am)])
        hat = b.pointwise("mul", b.pointwise("sub", xs, b.load(mean, [at(am)])), r)
        g = b.pointwise("mul", dys, ws)
        count = b.cast(b.size_value(n), F32)
        c1 = b.pointwise("div", b.reduce("sum", g, [an]), count)
        c2 = b.pointwise("div", b.reduce("sum", b.pointwise("mul", g, hat), [an]), count)
        inner = b.pointwise("sub", b.pointwise("sub", g, c1), b.pointwise("mul", hat, c2))
        b.store(dx, [at(am), at(an)], b.pointwise("mul", r, inner))
        b.store(
            part_w, [at(am.id_name), at(an)], b.reduce("sum", b.pointwise("mul", dys, hat), [am])
        )
        b.store(part_b, [at(am.id_name), at(an)], b.reduce("sum", dys, [am]))
    finish_partials(b, [(part_w, dw), (part_b, db)], at_, an2)
    return b.build()


def group_norm(eps: float = 1e-5) -> Kernel:
    """[b, g, c, p]: two reduced axes, weights along one of them."""
    b = Builder("group_norm")
    n, g, c, p = b.size("n"), b.size("g"), b.size("c"), b.size("p")
    x, w = buffer(b, "x", (n, g, c, p)), buffer(b, "w", (g, c))
    out = buffer(b, "out", (n, g, c, p), F32, "out")
    axn, axg, axc, axp = (
        b.axis("n", n),
        b.axis("g", g),
        b.axis("c", c, "full"),
        b.axis("p", p, "full"),
    )
    with b.grid(axn, axg):
        index = [at(axn), at(axg), at(axc), at(axp)]
        value = b.load(x, index)
        count = b.cast(b.size_value(c * p), F32)
        mean = b.pointwise("div", b.reduce("sum", value, [axc, axp]), count)
        d = b.pointwise("sub", value, mean)
        var = b.pointwise("div", b.reduce("sum", b.pointwise("mul", d, d), [axc, axp]), count)
        r = b.pointwise("rsqrt", b.pointwise("add", var, b.const(eps, F32)))
        b.store(
            out, index, b.pointwise("mul", b.pointwise("mul", d, r), b.load(w, [at(axg), at(axc)]))
        )
    return b.build()


def embedding_add() -> Kernel:
    """table[ids] + position: a checked gather of rows."""
    b = Builder("embedding_add")
    m, n, v = b.size("m"), b.size("n"), b.size("v")
    ids, table, out = (
        buffer(b, "ids", (m,), torch.int64),
        buffer(b, "table", (v, n)),
        buffer(b, "out", (m, n), F32, "out"),
    )
    am, an = b.axis("m", m), b.axis("n", n)
    with b.grid(am, an):
        row = b.load(table, [Gather(0), at(an)], [b.load(ids, [at(am)])], checked=True)
        b.store(out, [at(am), at(an)], b.pointwise("add", row, b.cast(b.iota(an), F32)))
    return b.build()


def take_along_columns() -> Kernel:
    """x[i, ids[i, j]]: a checked gather along the vector axis."""
    b = Builder("take_along_columns")
    m, n, k = b.size("m"), b.size("n"), b.size("k")
    x, ids, out = (
        buffer(b, "x", (m, n)),
        buffer(b, "ids", (m, k), torch.int64),
        buffer(b, "out", (m, k), F32, "out"),
    )
    am, ak = b.axis("m", m), b.axis("k", k)
    with b.grid(am, ak):
        index = b.load(ids, [at(am), at(ak)])
        b.store(out, [at(am), at(ak)], b.load(x, [at(am), Gather(0)], [index], checked=True))
    return b.build()


def concatenate() -> Kernel:
    """[x, -y] along the columns by masked loads."""
    b = Builder("concatenate")
    m, p, q = b.size("m"), b.size("p"), b.size("q")
    x, y = buffer(b, "x", (m, p)), buffer(b, "y", (m, q))
    out = buffer(b, "out", (m, p + q), F32, "out")
    am, an = b.axis("m", m), b.axis("n", p + q)
    with b.grid(am, an):
        here = b.pointwise("lt", b.iota(an), b.size_value(p))
        left = b.load(x, [at(am), at(an)], mask=here)
        right = b.load(y, [at(am), at(an, 1, -p)], mask=b.pointwise("not", here))
        b.store(out, [at(am), at(an)], b.pointwise("where", here, left, b.pointwise("neg", right)))
    return b.build()


def transpose_scale() -> Kernel:
    """out[j, i] = 2 * x[i, j]."""
    b = Builder("transpose_scale")
    m, n = b.size("m"), b.size("n")
    x, out = buffer(b, "x", (m, n)), buffer(b, "out", (n, m), F32, "out")
    am, an = b.axis("m", m), b.axis("n", n)
    with b.grid(am, an):
        b.store(
            out,
            [at(an), at(am)],
            b.pointwise("mul", b.load(x, [at(am), at(an)]), b.const(2.0, F32)),
        )
    return b.build()


def divide(fn: str, dtype: torch.dtype) -> Kernel:
    b = Builder(f"divide_{fn}")
    n = b.size("n")
    x, y, out = (
        buffer(b, "x", (n,), dtype),
        buffer(b, "y", (n,), dtype),
        buffer(b, "out", (n,), dtype, "out"),
    )
    an = b.axis("n", n)
    with b.grid(an):
        b.store(out, [at(an)], b.pointwise(fn, b.load(x, [at(an)]), b.load(y, [at(an)])))
    return b.build()


def round_to_bfloat16(dtype: torch.dtype, factor: float | None) -> Kernel:
    """x (times a factor) as bfloat16."""
    b = Builder("round_to_bfloat16")
    n = b.size("n")
    x, out = buffer(b, "x", (n,), dtype), buffer(b, "out", (n,), torch.bfloat16, "out")
    an = b.axis("n", n)
    with b.grid(an):
        value = b.cast(b.load(x, [at(an)]), F32)
        if factor is not None:
            value = b.pointwise("mul", value, b.const(factor, F32))
        b.store(out, [at(an)], b.cast(value, torch.bfloat16))
    return b.build()


def gelu(dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    """x/2 · (1 + erf(x/√2)), and with it x · sigmoid(x) in a second output."""
    b = Builder("gelu")
    n = b.size("n")
    x = buffer(b, "x", (n,), dtype)
    outs = [buffer(b, f"out{i}", (n,), out_dtype, "out") for i in range(2)]
    an = b.axis("n", n)
    with b.grid(an):
        value = b.cast(b.load(x, [at(an)]), F32)
        erf = b.pointwise("erf", b.pointwise("mul", value, b.const(0.5**0.5, F32)))
        half = b.pointwise("mul", value, b.const(0.5, F32))
        gelu = b.pointwise("mul", half, b.pointwise("add", erf, b.const(1.0, F32)))
        silu = b.pointwise("mul", value, b.pointwise("sigmoid", value))
        for out, result in zip(outs, (gelu, silu), strict=True):
            b.store(out, [at(an)], b.cast(result, out_dtype))
    return b.build()


def asserted_positive() -> Kernel:
    """2 * x where every x is positive, else an error."""
    b = Builder("asserted_positive")
    m, n = b.size("m"), b.size("n")
    x, out = buffer(b, "x", (m, n)), buffer(b, "out", (m, n), F32, "out")
    am, an = b.axis("m", m), b.axis("n", n)
    with b.grid(am, an):
        value = b.load(x, [at(am), at(an)])
        b.check(b.pointwise("gt", value, b.const(0.0, F32)))
        b.store(out, [at(am), at(an)], b.pointwise("mul", value, b.const(2.0, F32)))
    return b.build()


def row_statistics() -> Kernel:
    """Several results a row from one matrix."""
    b = Builder("row_statistics")
    m, n = b.size("m"), b.size("n")
    x, bias = buffer(b, "x", (m, n)), buffer(b, "bias", (m,))
    outs = [buffer(b, f"out{i}", (m,), F32, "out") for i in range(3)]
    am, an = b.axis("m", m), b.axis("n", n, "full")
    with b.grid(am):
        value, shift = b.load(x, [at(am), at(an)]), b.load(bias, [at(am)])
        for fn, out in zip(("sum", "max", "min"), outs, strict=True):
            b.store(out, [at(am)], b.pointwise("add", b.reduce(fn, value, [an]), shift))
    return b.build()
