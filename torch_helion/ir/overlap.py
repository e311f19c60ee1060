"""Which steps of a grid loop may touch one element: whether they may run at the same time.

In: a grid loop, or a kernel. Out: the first access that forbids it and why; or the kernel with
every such loop marked `serial`. Used by the verifier and by whoever builds a kernel from a program
whose stores it has not chosen itself.

The steps are apart where the index of every store moves with each axis of the grid, be it through a
position, the number or the begin of a tile, or a value that depends on one of them; and where a
step loads from a buffer that the loop stores to only what it stores itself. That an index which
moves never comes back to a place is taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import sympy

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.types import Affine, Axis, Gather, IndexExpr, Size, begin_symbol, id_symbol


@dataclass(frozen=True)
class Overlap:
    """An access through which two steps of a loop meet."""

    op: Op
    why: str


def serialised(kernel: Kernel) -> Kernel:
    """The kernel with `serial` set on each grid loop whose steps overlap."""
    ops = []
    for op in kernel.body.ops:
        if op.kind == "loop" and not op.attrs.get("serial") and step_overlap(op) is not None:
            op = replace(op, attrs={**op.attrs, "serial": True})
        ops.append(op)
    return replace(kernel, body=replace(kernel.body, ops=tuple(ops)))


def step_overlap(loop: Op) -> Overlap | None:
    """The first store or load of the grid loop through which its steps meet; None: they do not."""
    grid = [a for a in loop.attrs["axes"] if a.size != 1]
    ops = list(loop.regions[0].walk())
    stores = [op for op in ops if op.kind in ("store", "atomic")]
    moves = _Moves(loop)
    for store in stores:
        still = _still(store, grid, moves) if store.kind == "store" else None
        if still is not None:
            name = f"index by {still.name} or its id"
            why = f"all steps along {still.name!r} write the same place: {name}"
            return Overlap(store, why)
    written = {op.attrs["buffer"] for op in stores}
    for load in (op for op in ops if op.kind == "load" and op.attrs["buffer"] in written):
        for store in (op for op in stores if op.attrs["buffer"] == load.attrs["buffer"]):
            shared = _shared(load, store, moves)
            for axis in grid:
                if axis.name not in shared:
                    why = f"other steps along {axis.name!r} store to what this reads"
                    return Overlap(load, why)
    return None


def _still(store: Op, grid: list[Axis], moves: _Moves) -> Axis | None:
    """The axis of the grid along which the store's place stays the same."""
    covered: set[str] = set()
    for expr in store.attrs["index"]:
        covered |= moves.of_index(store, expr)
    pointer = store.access.pointer
    covered |= moves.of_value(pointer) if pointer is not None else set()
    return next((a for a in grid if a.name not in covered), None)


def _shared(load: Op, store: Op, moves: _Moves) -> set[str]:
    """Axes with which equal indices of both accesses move."""
    found: set[str] = set()
    for mine, other in zip(load.attrs["index"], store.attrs["index"], strict=True):
        if _same_index(load, mine, store, other):
            found |= moves.of_index(load, mine)
    return found


def _same_index(load: Op, mine: IndexExpr, store: Op, other: IndexExpr) -> bool:
    if isinstance(mine, Gather) and isinstance(other, Gather):
        values = load.access.gathered[mine.operand], store.access.gathered[other.operand]
        return values[0] is values[1]
    return mine == other


@dataclass
class _Moves:
    """The axes that values and sizes of a grid loop depend on; values are looked at when asked."""

    loop: Op
    _values: dict[Value, set[str]] | None = None
    _symbols: dict[sympy.Symbol, set[str]] = field(default_factory=dict)
    _roots: dict[str, str] = field(default_factory=dict)
    """Aliases, by name: the axis that they are of."""
    _bound: set[sympy.Symbol] = field(default_factory=set)

    def __post_init__(self) -> None:
        for op in (self.loop, *self.loop.regions[0].walk()):
            for axis in op.attrs["axes"] if op.kind == "loop" else ():
                self._symbols[begin_symbol(axis)] = self._symbols[id_symbol(axis)] = {axis.name}
            if op.kind == "bind":
                self._bound.add(op.attrs["symbol"])
            for value in op.results:
                self._roots.update((a.name, a.of) for a in value.type.axes if a.of)

    def of_index(self, op: Op, expr: IndexExpr) -> set[str]:
        if isinstance(expr, Gather):
            return self.of_value(op.access.gathered[expr.operand])
        return self._of_affine(expr)

    def _of_affine(self, expr: Affine) -> set[str]:
        names = (name.removesuffix(".id") for name, c in expr.terms if c != 0)
        found = {self._roots.get(name, name) for name in names}
        return found.union(*map(self._of_size, (expr.offset, *(c for _, c in expr.terms))))

    def _of_size(self, size: Size) -> set[str]:
        found: set[str] = set()
        for symbol in getattr(size, "free_symbols", ()):
            if symbol in self._bound:
                self._followed()
            found |= self._symbols.get(symbol, set())
        return found

    def of_value(self, value: Value) -> set[str]:
        return self._followed().get(value, set()) | self._axes((value,))

    def _followed(self) -> dict[Value, set[str]]:
        if self._values is None:
            self._values = {}
            self._follow(self.loop.regions[0])
        return self._values

    def _axes(self, values: Iterable[Value]) -> set[str]:
        return {a.tile_name for v in values for a in v.type.axes}

    def _follow(self, region: Region) -> None:
        assert self._values is not None
        for op in region.ops:
            found = set[str]().union(*(self._values.get(v, set()) for v in op.operands))
            found |= self._axes((*op.operands, *op.results))
            for expr in op.attrs.get("index", ()):
                found |= self._of_affine(expr) if isinstance(expr, Affine) else set()
            if op.kind == "size":
                found |= self._of_size(op.attrs["expr"])
            if op.kind == "bind":
                self._symbols[op.attrs["symbol"]] = found
            for inner in op.regions:
                self._values.update((arg, found) for arg in inner.args)
                self._follow(inner)
                found = found.union(*(self._values.get(v, set()) for v in inner.yielded))
            self._values.update((result, found) for result in op.results)
