"""Rewrites a phase into forms that the printers know: done before a structured phase is planned.

In: a phase. Out: an equal phase: checked affine indices become assertions and masks (only where
sizes do not show that they are inside), products in a wider type get casts, renamed axes of cheap
values are renamed at their source, and a tile that becomes an axis of its block's length (what
`acc += x[tile]` does with an accumulator of so many elements) is computed along that axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy
import torch

from torch_helion.codegen.llvm.regions import own_cost
from torch_helion.ir.graph import Op, Region, Value, loop_blocks
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    Gather,
    Size,
    TileType,
    begin_symbol,
    block_symbol,
    id_symbol,
)

RENAMED_COST = 4
"""Values that cost more are kept in scratch and read from there under other names."""


@dataclass(frozen=True)
class _Names:
    """Other axes that a value is computed along."""

    axes: Mapping[str, Axis]
    begins: Mapping[str, Size]
    """Positions at which a tile begins, of axes whose new ones count from there."""
    inside: Value | None = None
    """Lanes of the new axes that the old ones have; None: all."""


def legalize(phase: Op, buffers: Mapping[str, Buffer], blocks: Mapping[str, int]) -> Op:
    """The phase in forms that the printers know. `blocks`: what a config chose, by name."""
    written = {
        op.attrs["buffer"] for op in phase.regions[0].walk() if op.kind in ("store", "atomic")
    }
    axes = {
        a.name: a
        for op in (phase, *phase.regions[0].walk())
        for a in (
            *(op.attrs["axes"] if op.kind == "loop" else ()),
            *(a for v in (*op.results, *op.operands) for a in v.type.axes),
        )
    }
    sizes: dict[str, int] = {}
    symbols = {block_symbol(n): sympy.Integer(b) for n, b in blocks.items()}
    for op in (phase, *phase.regions[0].walk()):
        if op.kind == "loop":
            for axis, block in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                number = sympy.sympify(block).xreplace(symbols)
                if number.is_Integer:
                    sizes[axis.name] = int(number)
    return _Legalizer(buffers, written, axes, sizes, symbols).op(phase)


class _Legalizer:
    def __init__(
        self,
        buffers: Mapping[str, Buffer],
        written: set[str],
        axes: Mapping[str, Axis],
        blocks: Mapping[str, int],
        symbols: Mapping[sympy.Symbol, sympy.Integer],
    ) -> None:
        self.buffers = buffers
        self.written = written
        self.axes = axes
        self.blocks = blocks
        self.symbols = symbols
        self.producer: dict[Value, Op] = {}
        self.new: dict[Value, Value] = {}

    def op(self, op: Op) -> Op:
        return replace(op, regions=tuple(self.region(r) for r in op.regions))

    def region(self, region: Region) -> Region:
        ops: list[Op] = []
        for op in region.ops:
            operands = tuple(self.new.get(v, v) for v in op.operands)
            op = replace(op, operands=operands) if operands != op.operands else op
            if op.kind in ("loop", "if", "while"):
                op = self.op(op)
            if op.kind in ("load", "store", "atomic") and op.attrs["checked"]:
                op = self._checked(op, ops)
            elif op.kind == "dot":
                op = self._dot(op, ops)
            elif op.kind == "reaxis" and self._cheap(op.operands[0]) <= RENAMED_COST:
                names = _Names(dict(op.attrs["axes"]), {})
                self.new[op.result] = self._renamed(op.operands[0], names, {}, ops)
                continue
            elif op.kind == "reshape" and self._is_whole_tile(op):
                self.new[op.result] = self._whole_tile(op, ops)
                continue
            self._add(op, ops)
        return Region(region.args, tuple(ops))

    def _add(self, op: Op, ops: list[Op]) -> None:
        ops.append(op)
        for result in op.results:
            self.producer[result] = op

    def _make(
        self,
        ops: list[Op],
        kind: str,
        operands: Sequence[Value],
        attrs: dict[str, object],
        dtype: torch.dtype,
        axes: tuple[Axis, ...],
    ) -> Value:
        value = Value(TileType(dtype, axes), kind)
        self._add(Op(kind, tuple(operands), attrs, (value,)), ops)
        return value

    def _pointwise(self, ops: list[Op], fn: str, *operands: Value) -> Value:
        axes = {a.name: a for v in operands for a in v.type.axes}
        dtype = torch.bool if fn in ("ge", "lt", "and", "or", "not") else operands[-1].type.dtype
        return self._make(ops, "pointwise", operands, {"fn": fn}, dtype, tuple(axes.values()))

    # -- checked indices --------------------------------------------------------------------------

    def _checked(self, op: Op, ops: list[Op]) -> Op:
        """Checks of affine dimensions as assertions; the access is masked by them."""
        buffer = self.buffers[op.attrs["buffer"]]
        inside: Value | None = None
        for size, index in zip(buffer.shape, op.attrs["index"], strict=True):
            if isinstance(index, Affine) and not self._is_inside(index, size):
                here = self._inside(index, size, ops)
                inside = here if inside is None else self._pointwise(ops, "and", inside, here)
        attrs = dict(op.attrs)
        attrs["checked"] = any(isinstance(e, Gather) for e in op.attrs["index"])
        if inside is None:
            return replace(op, attrs=attrs)
        operands, mask = list(op.operands), inside
        asserted = inside
        if op.attrs["masked"]:
            old = operands.pop()
            asserted = self._pointwise(ops, "or", inside, self._pointwise(ops, "not", old))
            mask = self._pointwise(ops, "and", inside, old)
        ops.append(Op("assert", (asserted,), {"status": 1}))
        attrs["masked"] = True
        return replace(op, operands=(*operands, mask), attrs=attrs)

    def _is_inside(self, index: Affine, size: Size) -> bool:
        """Whether sizes show that the index stays in [0, size)."""
        low: sympy.Expr = sympy.sympify(index.offset)
        high = low
        for name, coefficient in index.terms:
            axis = self.axes.get(name)
            if axis is None or not isinstance(coefficient, int):
                return False
            span = coefficient * (_at_least_one(axis.size) - 1)
            low, high = (low, high + span) if coefficient > 0 else (low + span, high)
        below = (sympy.sympify(size) - 1 - bound for bound in _upper_bounds(high))
        return low.is_nonnegative is True and any(b.is_nonnegative is True for b in below)

    def _inside(self, index: Affine, size: Size, ops: list[Op]) -> Value:
        place = self._size(ops, index.offset)
        for name, coefficient in index.terms:
            owner = name.removesuffix(".id")
            if owner != name:
                number = self._size(ops, coefficient * id_symbol(self.axes[owner]))
                place = self._pointwise(ops, "add", place, number)
                continue
            axis = self.axes[name]
            at = self._make(ops, "iota", (), {"axis": name}, torch.int64, (axis,))
            at = self._pointwise(ops, "mul", at, self._size(ops, coefficient))
            place = self._pointwise(ops, "add", place, at)
        low = self._pointwise(ops, "ge", place, self._size(ops, 0))
        high = self._pointwise(ops, "lt", place, self._size(ops, size))
        return self._pointwise(ops, "and", low, high)

    def _size(self, ops: list[Op], size: Size) -> Value:
        if isinstance(size, int) or size.is_Integer:
            attrs: dict[str, object] = {"value": int(size), "dtype": torch.int64}
            return self._make(ops, "const", (), attrs, torch.int64, ())
        return self._make(ops, "size", (), {"expr": size}, torch.int64, ())

    # -- products ---------------------------------------------------------------------------------

    def _dot(self, op: Op, ops: list[Op]) -> Op:
        acc = op.attrs["acc"]
        if acc is not torch.float64:
            return op
        operands = list(op.operands)
        for place, value in enumerate(operands[:2]):
            if value.type.dtype is not acc:
                operands[place] = self._make(
                    ops, "cast", (value,), {"dtype": acc}, acc, value.type.axes
                )
        return replace(op, operands=tuple(operands))

    # -- renamed axes -----------------------------------------------------------------------------

    def _cheap(self, value: Value) -> int:
        """What it costs to compute the value again; a large number where it cannot be."""
        op = self.producer.get(value)
        plain = ("load", "pointwise", "cast", "bitcast", "const", "size", "iota", "expand")
        if op is None:
            return 0 if not value.type.axes else 1000
        if op.kind not in plain or (op.kind == "load" and op.attrs["buffer"] in self.written):
            return 0 if not value.type.axes else 1000
        return own_cost(op) + sum(self._cheap(v) for v in op.operands)

    def _renamed(
        self, value: Value, names: _Names, done: dict[Value, Value], ops: list[Op]
    ) -> Value:
        """The value computed along other axes."""
        if not any(n in names.axes for n in value.type.axis_names):
            return value
        if value in done:
            return done[value]
        op = self.producer[value]
        operands = [self._renamed(v, names, done, ops) for v in op.operands]
        attrs = dict(op.attrs)
        axes = tuple(names.axes.get(a.name, a) for a in value.type.axes)
        if op.kind == "load":
            attrs["index"] = tuple(_renamed_index(e, names) for e in attrs["index"])
            if names.inside is not None:
                operands, attrs = self._masked(operands, attrs, names.inside, ops)
        elif op.kind == "iota" and attrs["axis"] in names.begins:
            begin = self._size(ops, names.begins[attrs["axis"]])
            at = self._iota(names.axes[attrs["axis"]], ops)
            done[value] = self._pointwise(ops, "add", at, begin)
            return done[value]
        elif op.kind == "iota":
            attrs["axis"] = names.axes[attrs["axis"]].name
        elif op.kind == "expand":
            attrs["axes"] = tuple(names.axes.get(a.name, a) for a in attrs["axes"])
        done[value] = self._make(ops, op.kind, operands, attrs, value.type.dtype, axes)
        return done[value]

    def _iota(self, axis: Axis, ops: list[Op]) -> Value:
        return self._make(ops, "iota", (), {"axis": axis.name}, torch.int64, (axis,))

    def _masked(
        self, operands: list[Value], attrs: dict[str, object], inside: Value, ops: list[Op]
    ) -> tuple[list[Value], dict[str, object]]:
        """A load of fewer lanes."""
        if attrs["masked"]:
            inside = self._pointwise(ops, "and", operands.pop(), inside)
        return [*operands, inside], {**attrs, "masked": True}

    # -- tiles as axes ----------------------------------------------------------------------------

    def _is_whole_tile(self, op: Op) -> bool:
        """Whether a reshape makes one axis of one tile, of the tile's block, and the value can be
        computed along it.
        """
        source, target = op.attrs["source"], op.attrs["target"]
        if len(source) != 1 or len(target) != 1 or self.blocks.get(source[0]) is None:
            return False
        axis = self.axes[source[0]]
        size = sympy.sympify(target[0].size).xreplace(dict(self.symbols))
        if axis.of or size != self.blocks[axis.name] or self._cheap(op.operands[0]) >= 1000:
            return False
        return source[0] in op.operands[0].type.axis_names

    def _whole_tile(self, op: Op, ops: list[Op]) -> Value:
        """The tile computed along the axis; lanes beyond its end are 0."""
        (name,), (axis,) = op.attrs["source"], op.attrs["target"]
        tile, begin = self.axes[name], begin_symbol(self.axes[name])
        inside: Value | None = None
        if not isinstance(tile.size, int) or tile.size % self.blocks[name]:
            left = self._size(ops, sympy.sympify(tile.size) - begin)
            inside = self._pointwise(ops, "lt", self._iota(axis, ops), left)
        names = _Names({name: axis}, {name: begin}, inside)
        (value,) = op.operands
        moved = self._renamed(value, names, {}, ops)
        if inside is None:
            return moved
        dtype = value.type.dtype
        zero: dict[str, object] = {"value": False if dtype is torch.bool else 0, "dtype": dtype}
        nothing = self._make(ops, "const", (), zero, dtype, ())
        return self._pointwise(ops, "where", inside, moved, nothing)


def _at_least_one(size: Size) -> sympy.Expr:
    """The size of an axis where it has a lane: from a begin to an end that may lie before it."""
    size = sympy.sympify(size)
    if isinstance(size, sympy.Max) and len(size.args) == 2 and size.args[0] == 0:
        return size.args[1]
    return size


def _upper_bounds(size: sympy.Expr) -> list[sympy.Expr]:
    """Expressions that are not below a size: a minimum in a sum is not above any of its own."""
    minimum = next((a for a in sympy.Add.make_args(size) if isinstance(a, sympy.Min)), None)
    if minimum is None:
        return [size]
    return [size, *(sympy.expand(size - minimum + a) for a in minimum.args)]


def _renamed_index(index: Affine | Gather, names: _Names) -> Affine | Gather:
    if isinstance(index, Gather):
        return index
    terms = tuple((names.axes[n].name if n in names.axes else n, c) for n, c in index.terms)
    moved = sum((c * names.begins[n] for n, c in index.terms if n in names.begins), sympy.S.Zero)
    return Affine(terms, index.offset + moved if moved != 0 else index.offset)
