"""Rows of the triton target: loads, stores, atomics.

In: a `Printer` and an op. Out: lines of the kernel. A lane takes part where it lies inside of all
its axes, the op's own mask is true, and, in a checked access, the index is inside of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sympy
import torch

from torch_helion import exc
from torch_helion.codegen.triton.dtypes import dtype_name, is_bare, plain, typed
from torch_helion.codegen.triton.state import Printer, Tile, align, unique
from torch_helion.codegen.triton.values import check_lanes
from torch_helion.ir.graph import Op
from torch_helion.ir.ops import HALF
from torch_helion.ir.types import Affine, Gather, IndexExpr, begin_symbol, id_symbol


@dataclass(frozen=True)
class _Place:
    """The index along one dimension: tiles times coefficients, plus a scalar."""

    terms: tuple[tuple[Tile, sympy.Expr], ...]
    scalar: sympy.Expr

    def text(self, p: Printer, dims: tuple[str, ...], stride: sympy.Expr) -> list[str]:
        parts = []
        scalar = sympy.expand(self.scalar * stride)
        if scalar != 0:
            parts.append(p.size(scalar))
        for tile, coefficient in self.terms:
            factor = coefficient * stride
            by = "" if factor == 1 else f" * {p.size(factor, factor=True)}"
            parts.append(f"{align(tile, dims)}{by}")
        return parts


def _place(p: Printer, op: Op, expr: IndexExpr) -> _Place:
    if isinstance(expr, Gather):
        tile = p.tile(op.access.gathered[expr.operand])
        if tile.number is not None:
            return _Place((), sympy.Integer(int(tile.number)))
        return _Place(((tile, sympy.Integer(1)),), sympy.Integer(0))
    scalar, terms = p.layout.bound(expr.offset), []
    for name, coefficient in expr.terms:
        factor = p.layout.bound(coefficient)
        if name.endswith(".id"):
            scalar += factor * id_symbol(p.layout.base(name.removesuffix(".id")))
        elif not p.layout.is_unit(name):
            terms.append((Tile(p.position(name), torch.int64, (name,)), factor))
        elif p.layout.base(name).kind == "block":
            scalar += factor * begin_symbol(p.layout.base(name))
    return _Place(tuple(terms), scalar)


@dataclass(frozen=True)
class _Lanes:
    pointer: str
    mask: str
    dims: tuple[str, ...]


def _lanes(p: Printer, op: Op, order: tuple[str, ...], every: bool) -> _Lanes:
    """Pointers over `order` as far as the access varies along it, or (`every`) all of it."""
    access = op.access
    buffer = p.kernel.buffer(op.attrs["buffer"])
    places = [_place(p, op, e) for e in op.attrs["index"]]
    pointed = [t for place in places for t, _ in place.terms]
    pointed += [p.tile(access.pointer)] if access.pointer is not None else []
    masks = [p.tile(access.mask)] if access.mask is not None else []
    have = {n for t in pointed for n in t.axes}
    dims = order if every else tuple(n for n in order if any(n in t.axes for t in pointed + masks))
    strides = [p.layout.bound(s) for s in buffer.strides]
    sums = [
        text for place, s in zip(places, strides, strict=True) for text in place.text(p, dims, s)
    ]
    p.layout.check(dims, f"an access of {buffer.name}")
    if access.pointer is not None:
        element = f"tl.pointer_type({dtype_name(buffer.dtype)})"
        pointer = f"{align(p.tile(access.pointer), dims)}.to({element})"
    else:
        pointer = p.buffer(buffer.name)
    pointer = " + ".join([pointer, *sums])
    if set(dims) - have:
        shape = p.shape(dims)
        spread = f"tl.broadcast_to({pointer}, {shape})"
        pointer = spread if have else f"{pointer} + tl.full({shape}, 0, tl.int32)"
    parts = [p.typed(t) if t.number is not None else align(t, dims) for t in masks]
    if op.attrs["checked"]:
        parts += _checked(p, op, places, dims, parts)
    return _Lanes(pointer, p.mask(dims, *parts), dims)


def _checked(
    p: Printer, op: Op, places: list[_Place], dims: tuple[str, ...], masks: list[str]
) -> list[str]:
    """Lanes outside of a dimension touch nothing, and end a kernel that is compiled to check."""
    buffer, found = p.kernel.buffer(op.attrs["buffer"]), []
    for number, (place, size) in enumerate(zip(places, buffer.shape, strict=True)):
        if _always_inside(p, op.attrs["index"][number], p.layout.bound(size)):
            continue
        axes = tuple(n for n in dims if any(n in t.axes for t, _ in place.terms))
        index = " + ".join(place.text(p, axes, sympy.Integer(1))) or "0"
        if len(place.terms) != 1 or index != place.terms[0][0].text:
            zero = "" if place.terms else "tl.cast(0, tl.int64) + "
            index = p.temporary("index", f"{zero}{index}", torch.int64, axes).text
        text = f"({index} >= 0) & ({index} < {p.size(size)})"
        valid = p.temporary("valid", text, torch.bool, axes)
        whole = align(valid, dims)
        check_lanes(
            p, whole, dims, f"index out of range for dimension {number} of {buffer.name}", *masks
        )
        found.append(whole)
    return found


def _always_inside(p: Printer, expr: IndexExpr, size: sympy.Expr) -> bool:
    """Whether an index is a number that fits, or the position along an axis of the same size."""
    if not isinstance(expr, Affine):
        return False
    offset = p.layout.bound(expr.offset)
    if not expr.terms:
        return bool(offset.is_Integer and size.is_Integer and 0 <= offset < size)
    ((name, coefficient),) = expr.terms if len(expr.terms) == 1 else (("", 0),)
    axis = p.layout.axes.get(name)
    return axis is not None and coefficient == 1 and offset == 0 and p.layout.size(axis) == size


def _load(p: Printer, op: Op) -> None:
    lanes = _lanes(p, op, p.dims(op.result.type.axis_names), False)
    text = f"tl.load({lanes.pointer}"
    if lanes.mask:
        dtype, other = op.result.type.dtype, op.attrs["other"]
        simple = other == 0 or is_bare(other, dtype)
        text += f", mask={lanes.mask}, other="
        text += plain(other, dtype) if simple else typed(other, dtype)
    hint = op.result.hint
    hint = f"{hint}_tile" if hint == op.attrs["buffer"] else hint
    p.define(op.result, f"{text})", lanes.dims, hint)


def _axes(p: Printer, op: Op) -> tuple[str, ...]:
    """The axes of a store's lanes, in the order of the value's, then as they come."""
    names = [n for v in (*op.access.values, *op.operands) for n in v.type.axis_names]
    names += [n for e in op.attrs["index"] if isinstance(e, Affine) for n in e.axis_names]
    return p.dims(n for n in unique(names) if not n.endswith(".id"))


def _store(p: Printer, op: Op) -> None:
    lanes = _lanes(p, op, _axes(p, op), False)
    tile = p.tile(op.access.values[0])
    if set(tile.axes) - set(lanes.dims):
        raise exc.CodegenError(f"triton: a value that varies along {tile.axes} is stored to {op}")
    text = p.typed(tile) if tile.number is not None else align(tile, lanes.dims)
    mask = f", mask={lanes.mask}" if lanes.mask else ""
    _wait(p, op)
    p.line(f"tl.store({lanes.pointer}, {text}{mask})")
    if op.attrs["buffer"] in p.shared or _may_overlap(p, op):
        p.line(BARRIER)


BARRIER = "tl.debug_barrier()"
"""The threads of a program wait for each other: what one has stored, another one may read."""


def shared_buffers(phase: Op) -> set[str]:
    """Buffers of which one lane may meet what another one has read or stored before."""
    ops = list(phase.regions[0].walk())
    changed = [op.attrs["buffer"] for op in ops if op.kind in ("store", "atomic")]
    loaded = {op.attrs["buffer"] for op in ops if op.kind == "load"}
    serial = phase.attrs.get("serial")
    return {b for b in changed if serial or b in loaded or changed.count(b) > 1}


def _may_overlap(p: Printer, op: Op) -> bool:
    """Whether a later turn of a loop may store to the place of another lane of this one."""
    if p.writer.depth == 1:
        return False
    for expr in op.attrs["index"]:
        if isinstance(expr, Gather):
            return bool(p.tile(op.access.gathered[expr.operand]).axes)
        lanes = any(n in p.layout.axes and not p.layout.is_unit(n) for n in expr.axis_names)
        symbols = p.layout.bound(expr.offset).free_symbols - set(p.kernel.sizes)
        if lanes and symbols:
            return True
    return False


def _atomic(p: Printer, op: Op) -> None:
    fn, dims = op.attrs["fn"], _axes(p, op)
    buffer = p.kernel.buffer(op.attrs["buffer"])
    if buffer.dtype in HALF and fn != "add":
        raise exc.CodegenError(f"triton: atomic {fn} of {buffer.dtype} is not supported")
    if op.results:
        dims = p.dims(op.result.type.axis_names)
    lanes = _lanes(p, op, dims, True)
    values = [p.full(p.tile(v), dims) for v in op.access.values]
    _wait(p, op)
    text = _exchange(p, op, lanes, values) if fn == "cas" else _update(p, op, lanes, values[0])
    if not op.results:
        p.line(text)
        _wait(p, op)
        return
    tile = p.define(op.result, text, dims)
    if lanes.mask:  # lanes that did nothing found nothing
        zero = plain(0, tile.dtype) if is_bare(0, tile.dtype) else typed(0, tile.dtype)
        p.define(op.result, f"tl.where({lanes.mask}, {tile.text}, {zero})", dims)
    _wait(p, op)


def _wait(p: Printer, op: Op) -> None:
    if op.attrs["buffer"] in p.shared:
        p.line(BARRIER)


def _update(p: Printer, op: Op, lanes: _Lanes, value: str) -> str:
    fn, dtype = op.attrs["fn"], op.access.values[0].type.dtype
    if fn in ("max", "min") and dtype.is_floating_point:
        # Floats are compared as integers there: this NaN is the most extreme of them.
        bits = torch.int32 if dtype is torch.float32 else torch.int64
        number = typed(torch.iinfo(bits).max if fn == "max" else -1, bits)
        mask = lanes.mask or f"tl.full({p.shape(lanes.dims)}, True, tl.int1)"
        return f"{p.helper(f'_atomic_{fn}')}({lanes.pointer}, {value}, {number}, {mask})"
    mask = f", mask={lanes.mask}" if lanes.mask else ""
    return f"tl.atomic_{fn}({lanes.pointer}, {value}{mask})"


def _exchange(p: Printer, op: Op, lanes: _Lanes, values: list[str]) -> str:
    if lanes.mask:
        raise exc.CodegenError(
            "triton: atomic cas has no mask: its lanes must be whole tiles or scalars"
        )
    dtype = op.access.values[0].type.dtype
    if not dtype.is_floating_point:
        return f"tl.atomic_cas({lanes.pointer}, {', '.join(values)})"
    bits = "tl.int32" if dtype is torch.float32 else "tl.int64"
    pointer = f"({lanes.pointer}).to(tl.pointer_type({bits}), bitcast=True)"
    cast = [f"({v}).to({bits}, bitcast=True)" for v in values]
    return f"tl.atomic_cas({pointer}, {', '.join(cast)}).to({dtype_name(dtype)}, bitcast=True)"


MEMORY_ROWS: Mapping[str, Callable[[Printer, Op], None]] = {
    "load": _load,
    "store": _store,
    "atomic": _atomic,
}
