"""`dot`: tl.dot where it has the operands' dtypes, a sum of products elsewhere.

In: a `Printer` and the op. Out: lines of the kernel. Axes that both operands have are batches; the
rows are those of the operand whose axes come first in the result. Several axes of a kind are
flattened into one and come back after the product; lanes outside stay where they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_helion.codegen.triton.dtypes import dtype_name
from torch_helion.codegen.triton.state import Printer, Tile, align
from torch_helion.ir.graph import Op, Value

_TENSOR_CORES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def dot(p: Printer, op: Op) -> None:
    a, b, *rest = op.operands
    k, acc = op.attrs["k"], op.attrs["acc"]
    dims = p.dims(op.result.type.axis_names)
    sides = [_side(p, v, k) for v in (a, b)]
    batch = tuple(n for n in dims if n in sides[0].axes and n in sides[1].axes)
    rows = tuple(n for n in dims if n in sides[0].axes and n not in batch)
    columns = tuple(n for n in dims if n in sides[1].axes and n not in batch)
    if rows and columns and dims.index(columns[0]) < dims.index(rows[0]):
        sides, rows, columns = sides[::-1], columns, rows  # the product of the transposes
    if p.layout.is_unit(k) or not _fits(p, a, b, acc):
        _sum_of_products(p, op, sides, dims)
        return
    left = _matrix(p, sides[0], batch, rows, (k,), acc)
    right = _matrix(p, sides[1], batch, (k,), columns, acc)
    order = (*batch, *rows, *columns)
    text = f"{left}, {right}"
    simple = len(batch) <= 1 and len(rows) == 1 and len(columns) == 1
    if rest:
        start = align(p.full_tile(rest[0]), order)
        flat = _flat(p, batch, rows, columns)
        if not order:
            start = f"tl.full({flat}, {start}, {dtype_name(acc)})"
        elif not simple:
            start = f"tl.reshape({start}, {flat})"
        text += f", {start}"
    precision = ', input_precision="ieee"' if a.type.dtype is torch.float32 else ""
    out = "" if acc is torch.float32 else f", out_dtype={dtype_name(acc)}"
    text = f"tl.dot({text}{precision}{out})"
    if not simple and order:
        text = f"tl.reshape({text}, {p.shape(order)})"
    elif not order:
        text = f"tl.sum(tl.reshape({text}, [1]), axis=0)"
    if order != dims:
        text = align(p.temporary("dot", text, acc, order), dims)
    p.define(op.result, text, dims)


def _fits(p: Printer, a: Value, b: Value, acc: torch.dtype) -> bool:
    """Whether tl.dot takes the operands. Triton does not compile one of doubles for AMD."""
    double = acc is torch.float64 and p.backend == "hip"
    return a.type.dtype in _TENSOR_CORES and b.type.dtype in _TENSOR_CORES and not double


def _side(p: Printer, value: Value, k: str) -> Tile:
    """An operand with 0 in the lanes outside of k."""
    tile = p.full_tile(value)
    return p.filled(value, tile, (k,), 0)


def _flat(p: Printer, *groups: Sequence[str]) -> str:
    """The shape in which each group is one dimension (none for an empty batch)."""
    first, *others = [" * ".join(p.lane_count(n) for n in g) for g in groups]
    return f"[{', '.join([first] * bool(first) + [o or '1' for o in others])}]"


def _matrix(
    p: Printer,
    tile: Tile,
    batch: tuple[str, ...],
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    acc: torch.dtype,
) -> str:
    text = align(tile, (*batch, *rows, *columns))
    if len(batch) > 1 or len(rows) != 1 or len(columns) != 1:
        text = f"tl.reshape({text}, {_flat(p, batch, rows, columns)})"
    wide = acc is torch.float64 and tile.dtype is not torch.float64
    return f"{text}.to(tl.float64)" if wide else text


def _sum_of_products(p: Printer, op: Op, sides: list[Tile], dims: tuple[str, ...]) -> None:
    k, acc = op.attrs["k"], op.attrs["acc"]
    names = [n for n in (*dims, k) if any(n in s.axes for s in sides)]
    space = p.dims(names)
    factors = [f"{align(s, space)}.to({dtype_name(acc)})" for s in sides]
    text = " * ".join(factors)
    if not p.layout.is_unit(k):
        text = f"tl.sum({text}, axis={space.index(k)})"
    space = tuple(n for n in space if n != k)
    if len(op.operands) == 3:
        text = f"{text} + {align(p.full_tile(op.operands[2]), dims)}"
        space = dims
    p.define(op.result, text, space)
