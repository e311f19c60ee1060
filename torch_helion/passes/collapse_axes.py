"""Merges two axes that the kernel always walks as one.

    grid (b, s):                                     grid (b_s):
      %x: f32[b, s, n] = load x[b, s, n]      ->       %x: f32[b_s, n] = load x[b_s, n]
      store out[b, s, n] = %x                          store out[b_s, n] = %x

where x and out are contiguous over the first two dimensions: their stride along b is the size of s
times their stride along s. One long axis gives blocks of any size, longer vectors and fewer loops.

A pair (outer, inner) merges if, in the whole kernel,

- every loop, value and reduction has both, side by side and outer first, or neither;
- nothing asks for a position along one of them (iota, scan, sort), for the number or the begin of a
  tile, or for one of the two block sizes;
- every access that uses them addresses memory as a function of `outer * size(inner) + inner`.

A buffer whose two dimensions merge gets one dimension in their place. If it is accessed elsewhere
through two other axes, those must merge as well: pairs are therefore found as a set. The kernel's
arguments and sizes stay what they are: a merged size is a product.

A kernel with loops or branches inside its grid, with block sizes of its own or with serial steps is
left as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    IndexExpr,
    Size,
    TileType,
    begin_symbol,
    block_symbol,
    id_symbol,
)
from torch_helion.passes.pass_manager import Pass

_Pair = tuple[str, str]


def collapse_axes(kernel: Kernel) -> Kernel:
    if kernel.blocks or any(_structured(phase) for phase in kernel.phases):
        return kernel
    while True:
        merged = _first_merge(kernel)
        if merged is None:
            return kernel
        kernel = merged


COLLAPSE_AXES = Pass("collapse_axes", collapse_axes)


def _structured(phase: Op) -> bool:
    """Whether the phase is more than a straight line over tiles that a config may choose freely."""
    own = phase.attrs.get("serial") or phase.attrs.get("blocks")
    return bool(own) or any(op.regions for op in phase.regions[0].ops)


def _first_merge(kernel: Kernel) -> Kernel | None:
    """The kernel after one merge, or None if no pair of axes can merge."""
    uses = _uses(kernel)
    for pair in _candidates(kernel):
        plan = _Plan(kernel, kernel.axes(), uses)
        if plan.include(pair):
            return _Rewriter(plan).kernel()
    return None


def _candidates(kernel: Kernel) -> list[_Pair]:
    """Pairs of axes that stand side by side in a loop (block axes) or in a type (full axes)."""
    found: dict[_Pair, None] = {}
    for op in kernel.body.walk():
        rows: list[tuple[Axis, ...]] = [value.type.axes for value in op.results]
        rows += [op.attrs["axes"]] if op.kind == "loop" else []
        for axes in rows:
            for outer, inner in itertools.pairwise(axes):
                if outer.kind == inner.kind:
                    found.setdefault((outer.name, inner.name))
    return list(found)


# -- what the kernel does with its axes ---------------------------------------------------------


@dataclass(frozen=True)
class _Uses:
    """Everything a decision needs, gathered once a round."""

    rows: frozenset[tuple[str, ...]]
    """Axis names of every loop, value and expand, in order."""
    asked: frozenset[str]
    """Axes whose positions, tile numbers or block sizes something asks for."""
    accesses: tuple[Op, ...]


def _uses(kernel: Kernel) -> _Uses:
    rows: set[tuple[str, ...]] = set()
    asked: set[str] = set()
    accesses = []
    for op in kernel.body.walk():
        rows.update(value.type.axis_names for value in _defined(op))
        asked |= _asked(op)
        if "buffer" in op.attrs:
            accesses.append(op)
        if op.kind == "loop":
            rows.add(tuple(a.name for a in op.attrs["axes"]))
    symbols = set[Any]().union(*map(_symbols, _sizes(kernel)))
    for axis in kernel.axes().values():
        if symbols & {block_symbol(axis.name), begin_symbol(axis), id_symbol(axis)}:
            asked.add(axis.name)
        if axis.of:  # its tile is that of another axis
            asked |= {axis.name, axis.of}
    return _Uses(frozenset(rows), frozenset(asked), tuple(accesses))


def _defined(op: Op) -> Iterator[Value]:
    yield from op.results
    for region in op.regions:
        yield from region.args


def _asked(op: Op) -> set[str]:
    """Axes along which the op is more than one computation a lane."""
    names: set[str] = set()
    if op.kind in ("iota", "scan"):
        names.add(op.attrs["axis"])
    if op.kind in ("dot", "reshape", "reaxis", "sort", "take", "print"):
        names.update(n for v in (*op.operands, *op.results) for n in v.type.axis_names)
    for expr in _affine(op):
        names.update(n.removesuffix(".id") for n in expr.axis_names if n.endswith(".id"))
    return names


def _affine(op: Op) -> list[Affine]:
    return [e for e in op.attrs.get("index", ()) if isinstance(e, Affine)]


def _sizes(kernel: Kernel) -> Iterator[Size]:
    """Every size expression of the kernel."""
    for buffer in kernel.buffers:
        yield from (*buffer.shape, *buffer.strides)
    for axis in kernel.axes().values():
        yield axis.size
    for op in kernel.body.walk():
        if op.kind == "size":
            yield op.attrs["expr"]
        for expr in _affine(op):
            yield from (expr.offset, *(c for _, c in expr.terms))


def _symbols(size: Size) -> set[Any]:
    return getattr(size, "free_symbols", set())


# -- deciding -----------------------------------------------------------------------------------


@dataclass
class _Plan:
    """A set of pairs that merge together, and the dimensions of buffers that merge with them."""

    before: Kernel
    axes: Mapping[str, Axis]
    uses: _Uses
    pairs: list[_Pair] = field(default_factory=list)
    dims: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Buffer name -> (outer, inner) dimension that become one."""

    def include(self, pair: _Pair) -> bool:
        """Add `pair` and every pair that it drags along; False if one of them cannot merge."""
        if pair in self.pairs:
            return True
        taken = {name for other in self.pairs for name in other}
        if taken & set(pair) or not self._together(pair):
            return False
        self.pairs.append(pair)
        return all(self._include_access(op, pair) for op in self.uses.accesses)

    def _together(self, pair: _Pair) -> bool:
        outer, inner = pair
        if self.axes[outer].kind != self.axes[inner].kind or self.uses.asked & set(pair):
            return False
        return all(_side_by_side(row, pair) for row in self.uses.rows)

    def _include_access(self, op: Op, pair: _Pair) -> bool:
        """Whether the access still has a meaning after the merge."""
        index = op.attrs["index"]
        outer, inner = (_places(index, name) for name in pair)
        if not outer and not inner:
            return True
        if len(outer) != 1 or len(inner) != 1:
            return False
        if outer == inner:
            return _flat_term(index[outer[0]], pair, self.axes[pair[1]].size) is not None
        return self._include_dims(op.attrs["buffer"], (outer[0], inner[0]), pair)

    def _include_dims(self, name: str, dims: tuple[int, int], pair: _Pair) -> bool:
        buffer = self.before.buffer(name)
        if name in self.dims:
            return self.dims[name] == dims
        self.dims[name] = dims
        size = self.axes[pair[1]].size
        contiguous = _equal(buffer.strides[dims[0]], size * buffer.strides[dims[1]])
        if not contiguous or not _equal(buffer.shape[dims[1]], size):
            return False
        # All accesses of the buffer, not only this one, must go on with one dimension less.
        accesses = [op for op in self.uses.accesses if op.attrs["buffer"] == name]
        return all(self._include_dims_of(op, dims, size) for op in accesses)

    def _include_dims_of(self, op: Op, dims: tuple[int, int], size: Size) -> bool:
        outer, inner = (op.attrs["index"][d] for d in dims)
        if not _is_axis(outer, any_offset=True) or not _is_axis(inner):
            return False
        (pair,) = zip(outer.axis_names, inner.axis_names, strict=True)
        if not set(pair) <= set(self.axes) or not _equal(self.axes[pair[1]].size, size):
            return False
        return self.include(pair)


def _side_by_side(row: tuple[str, ...], pair: _Pair) -> bool:
    """Both, the outer one directly before the inner one, or neither."""
    outer, inner = pair
    if outer not in row or inner not in row:
        return outer not in row and inner not in row
    return row.index(inner) == row.index(outer) + 1


def _places(index: Iterable[IndexExpr], axis: str) -> list[int]:
    """The dimensions whose index depends on `axis`."""
    return [d for d, e in enumerate(index) if isinstance(e, Affine) and axis in e.axis_names]


def _is_axis(expr: IndexExpr, any_offset: bool = False) -> bool:
    """A position along one axis, as it is (or shifted)."""
    if not isinstance(expr, Affine) or len(expr.terms) != 1:
        return False
    return expr.terms[0][1] == 1 and (any_offset or expr.offset == 0)


def _flat_term(expr: IndexExpr, pair: _Pair, inner_size: Size) -> Size | None:
    """The coefficient of `outer * inner_size + inner` in a map with both; None if it has none."""
    assert isinstance(expr, Affine)
    names = list(expr.axis_names)
    if len(set(names)) != len(names):
        return None
    coefficient = dict(expr.terms)
    outer, inner = pair
    return (
        coefficient[inner] if _equal(coefficient[outer], coefficient[inner] * inner_size) else None
    )


def _equal(a: Size, b: Size) -> bool:
    return bool(sympy.expand(a - b) == 0)


# -- rewriting ----------------------------------------------------------------------------------


class _Rewriter:
    """Builds the merged kernel of a plan."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.values: dict[Value, Value] = {}
        self.merged: dict[str, Axis] = {}
        """The new axis, by the name of either old one."""
        self.outer = {pair[0] for pair in plan.pairs}
        for outer, inner in plan.pairs:
            a, b = plan.axes[outer], plan.axes[inner]
            axis = Axis(self._name(outer, inner), a.size * b.size, a.kind)
            self.merged[outer] = self.merged[inner] = axis

    def _name(self, outer: str, inner: str) -> str:
        name = f"{outer}_{inner}"
        while name in self.plan.axes:
            name += "_"
        return name

    def kernel(self) -> Kernel:
        before = self.plan.before
        buffers = tuple(self.buffer(b) for b in before.buffers)
        return replace(before, buffers=buffers, body=self.region(before.body))

    def buffer(self, buffer: Buffer) -> Buffer:
        dims = self.plan.dims.get(buffer.name)
        if dims is None:
            return buffer
        outer, inner = dims
        shape, strides = list(buffer.shape), list(buffer.strides)
        shape[inner] = shape[outer] * shape[inner]
        del shape[outer], strides[outer]
        return replace(buffer, shape=tuple(shape), strides=tuple(strides))

    def region(self, region: Region) -> Region:
        args = tuple(self.value(v) for v in region.args)
        return Region(args, tuple(self.op(op) for op in region.ops))

    def value(self, value: Value) -> Value:
        """The value's successor: itself where its type stays."""
        if value not in self.values:
            axes = self.axes(value.type.axes)
            kept = axes == value.type.axes
            type = TileType(value.type.dtype, axes, value.type.fill)
            self.values[value] = value if kept else Value(type, value.hint)
        return self.values[value]

    def axes(self, axes: Iterable[Axis]) -> tuple[Axis, ...]:
        return tuple(dict.fromkeys(self.merged.get(a.name, a) for a in axes))

    def op(self, op: Op) -> Op:
        attrs = dict(op.attrs)
        if op.kind in ("loop", "expand"):
            attrs["axes"] = self.axes(attrs["axes"])
        if op.kind == "reduce":
            names = [self.merged[n].name if n in self.merged else n for n in attrs["axes"]]
            attrs["axes"] = tuple(dict.fromkeys(names))
        if "index" in attrs:
            attrs["index"] = self.index(attrs["buffer"], attrs["index"])
        return replace(
            op,
            operands=tuple(self.value(v) for v in op.operands),
            attrs=attrs,
            results=tuple(self.value(v) for v in op.results),
            regions=tuple(self.region(r) for r in op.regions),
        )

    def index(self, buffer: str, index: tuple[IndexExpr, ...]) -> tuple[IndexExpr, ...]:
        new = [self.flat(e) for e in index]
        if buffer in self.plan.dims:
            outer, inner = self.plan.dims[buffer]
            first, second = index[outer], index[inner]
            assert isinstance(first, Affine) and isinstance(second, Affine)
            axis = self.merged[second.axis_names[0]]
            size = self.plan.axes[second.axis_names[0]].size
            new[inner] = Affine.of(axis, 1, first.offset * size)
            del new[outer]
        return tuple(new)

    def flat(self, expr: IndexExpr) -> IndexExpr:
        """`outer * size + inner` in one dimension becomes one term."""
        if not isinstance(expr, Affine):
            return expr
        terms = [
            (self.merged[n].name if n in self.merged else n, c)
            for n, c in expr.terms
            if n not in self.outer
        ]
        return replace(expr, terms=tuple(terms))
