"""Whole rows cut into chunks: a full axis becomes loops that carry its reductions.

Before: `%s = reduce sum %x over (n)` with `n` whole inside of a step.
After:  `%s = tile (n_0) blocks (1024) carrying 0` of `%acc + reduce sum %x over (n_0)`.

A row is gone over several times: once for each reduction that waits for another one, and once more
for what is stored along it. Each time computes again what it needs of the row. A region is left as
it is where that cannot be: scans, sorts, and selections along the axis, nested regions that use it,
a buffer that is stored to before it is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import CUSTOM, identity_of
from torch_helion.ir.types import Affine, Axis, IndexExpr, TileType

_JOINS = {
    "sum": "add",
    "prod": "mul",
    "max": "maximum",
    "min": "minimum",
    "any": "or",
    "all": "and",
}
_RIGID = ("scan", "sort", "take", "reaxis", "reshape", "assert", "print")
"""Ops that need the whole axis at once (or must not happen twice)."""


def rollable_axes(kernel: Kernel) -> list[Axis]:
    """The full axes that something is reduced over, in program order: what the entries of a
    config's `reduction_loops` stand for."""
    found: dict[str, Axis] = {}
    for op in kernel.body.walk():
        names = {"reduce": lambda op: op.attrs["axes"], "dot": lambda op: [op.attrs["k"]]}
        for name in names[op.kind](op) if op.kind in names else ():
            axes = {a.name: a for v in op.operands for a in v.type.axes}
            if axes[name].kind == "full" and not axes[name].of:
                found.setdefault(name, axes[name])
    return list(found.values())


def roll_reductions(kernel: Kernel, chunks: Sequence[int | None]) -> Kernel:
    """`chunks`: for each of `rollable_axes` the positions of a chunk, or None to keep it whole.

    Entries for axes that the passes have removed have nothing to act on.
    """
    axes = rollable_axes(kernel)
    phases = list(kernel.body.ops)
    taken = set(kernel.axes())
    for axis, chunk in zip(axes, chunks, strict=False):
        if chunk is None or (isinstance(axis.size, int) and axis.size <= chunk):
            continue
        for place, phase in enumerate(phases):
            if phase.kind == "loop":
                body = _Roller(phase.regions[0], axis, int(chunk), taken).rolled()
                phases[place] = replace(phase, regions=(body,))
    return replace(kernel, body=Region((), tuple(phases)))


@dataclass
class _Sum:
    """A reduction as a loop carries it: its start, and how a chunk's result joins it."""

    op: Op
    start: list[Value]


class _Roller:
    def __init__(self, region: Region, axis: Axis, chunk: int, taken: set[str]) -> None:
        self.region, self.axis, self.chunk, self.taken = region, axis, chunk, taken
        self.made = {v: op for op in region.ops for v in op.results}
        self.levels: dict[Op, int] = {}
        self.ops: list[Op] = []
        self.names: dict[Value, Value] = {}

    def rolled(self) -> Region:
        if not any(self._along(op) for op in self.region.ops) or not self._fits():
            return self.region
        for op in self.region.ops:
            self.levels[op] = self._level(op)
        if not self._rereads():
            return self.region
        for level in range(max(self.levels.values()) + 1):
            self._sweep(level)
        return Region(self.region.args, tuple(self.ops))

    # -- what is there --------------------------------------------------------------------------

    def _has(self, value: Value) -> bool:
        return self.axis.name in value.type.axis_names

    def _along(self, op: Op) -> bool:
        """Whether an op belongs to the row: it varies along the axis, or reduces it."""
        index: Sequence[IndexExpr] = op.attrs.get("index", ())
        names = {n for e in index if isinstance(e, Affine) for n in e.axis_names}
        return self.axis.name in names or any(map(self._has, (*op.operands, *op.results)))

    def _reduces(self, op: Op) -> bool:
        names = [op.attrs["k"]] if op.kind == "dot" else op.attrs.get("axes", ())
        return op.kind in ("reduce", "dot") and self.axis.name in names

    def _fits(self) -> bool:
        for op in self.region.ops:
            nested = [inner for region in op.regions for inner in region.walk()]
            if op.kind not in ("reduce", "scan") and any(map(self._along, nested)):
                return False
            if not self._along(op):
                continue
            one = not self._reduces(op) or op.kind == "dot" or len(op.attrs["axes"]) == 1
            if op.kind in _RIGID or not one or (op.kind == "atomic" and op.results):
                return False
            if self._reduces(op) and op.attrs.get("fn") in ("argmax", "argmin"):
                return False
            aliases = [a.of for v in (*op.operands, *op.results) for a in v.type.axes]
            if self.axis.name in aliases:
                return False
        return True

    def _level(self, op: Op) -> int:
        """The sweep that an op belongs to: after the sweeps of the reductions that it waits for."""
        level = 0
        for operand in op.operands:
            maker = self.made.get(operand)
            if maker is not None:
                level = max(level, self.levels[maker] + (1 if self._reduces(maker) else 0))
        # What a nested region reads counts as well, and effects keep their order.
        for region in op.regions:
            for inner in region.walk():
                for operand in inner.operands:
                    maker = self.made.get(operand)
                    if maker is not None:
                        wait = 1 if self._reduces(maker) else 0
                        level = max(level, self.levels[maker] + wait)
        return level

    def _rereads(self) -> bool:
        """Whether reading again gives the same: what is stored to a buffer that is read goes to
        the very places that were read, in the last sweep."""
        last = max(self.levels.values())
        inside = [
            (inner, self.levels[op])
            for op in self.region.ops
            for inner in (op, *(i for region in op.regions for i in region.walk()))
        ]
        for load, _ in inside:
            if load.kind != "load":
                continue
            for store, level in inside:
                if store.kind not in ("store", "atomic"):
                    continue
                if store.attrs["buffer"] != load.attrs["buffer"]:
                    continue
                same = store.attrs["index"] == load.attrs["index"] and store.kind == "store"
                gathered = load.access.gathered or store.access.gathered
                if not same or gathered or level < last:
                    return False
        return True

    # -- a sweep --------------------------------------------------------------------------------

    def _sweep(self, level: int) -> None:
        """What stands outside of the row at this level, then the row once, if it is needed."""
        mine = [op for op in self.region.ops if self.levels[op] == level]
        for op in mine:
            if not self._along(op):
                self.ops.append(self._renamed(op, self.names))
        row = [op for op in mine if self._along(op)]
        if any(self._reduces(op) or op.kind in ("store", "atomic") for op in row):
            self._loop(level, row)

    def _loop(self, level: int, row: list[Op]) -> None:
        roots = [op for op in row if self._reduces(op) or op.kind in ("store", "atomic")]
        needed = self._needed(roots)
        axis = Axis(self._name(), self.axis.size, "block")
        sums = [_Sum(op, self._starts(op)) for op in roots if self._reduces(op)]
        carried = [v for s in sums for v in s.start]
        args = [Value(v.type, r.hint) for v, r in zip(carried, self._results(sums), strict=True)]
        body = _Body(self, axis, dict(self.names))
        places = iter(args)
        yielded: list[Value] = []
        for op in self.region.ops:
            if op not in needed:
                continue
            if self._reduces(op):
                start = [next(places) for _ in op.results]
                yielded += body.joined(op, start)
            else:
                body.ops.append(body.copy(op))
        if yielded:
            body.ops.append(Op("yield", tuple(yielded)))
        results = [Value(v.type, v.hint) for v in self._results(sums)]
        attrs = {"kind": "tile", "axes": (axis,), "blocks": (self.chunk,)}
        region = Region(tuple(args), tuple(body.ops))
        self.ops.append(Op("loop", tuple(carried), attrs, tuple(results), (region,)))
        self.names.update(zip(self._results(sums), results, strict=True))

    def _results(self, sums: list[_Sum]) -> list[Value]:
        return [v for s in sums for v in s.op.results]

    def _name(self) -> str:
        number = 0
        while f"{self.axis.name}_{number}" in self.taken:
            number += 1
        self.taken.add(f"{self.axis.name}_{number}")
        return f"{self.axis.name}_{number}"

    def _needed(self, roots: list[Op]) -> set[Op]:
        """The ops of the row that the roots depend on, themselves included."""
        found: set[Op] = set()
        waiting = list(roots)
        while waiting:
            op = waiting.pop()
            if op in found:
                continue
            found.add(op)
            makers = [self.made.get(v) for v in op.operands]
            waiting += [m for m in makers if m and self._along(m) and not self._reduces(m)]
        return found

    def _starts(self, op: Op) -> list[Value]:
        """The identity of a reduction, with all axes of its result."""
        if op.kind == "dot":
            if len(op.operands) == 3:
                return [self._renamed_value(op.operands[2])]
            return [self._constant(0, op.result.type)]
        if op.attrs["fn"] == CUSTOM:
            pairs = zip(op.attrs["identity"], op.results, strict=True)
            return [self._constant(number, v.type) for number, v in pairs]
        fn, dtype = op.attrs["fn"], op.operands[0].type.dtype
        start = self._constant(identity_of(fn, dtype), TileType(dtype, op.result.type.axes))
        return [start]

    def _constant(self, number: float | int | bool, type: TileType) -> Value:
        value = Value(TileType(type.dtype), "c")
        self.ops.append(Op("const", (), {"value": number, "dtype": type.dtype}, (value,)))
        if not type.axes:
            return value
        result = Value(type, "c")
        self.ops.append(Op("expand", (value,), {"axes": type.axes}, (result,)))
        return result

    def _renamed_value(self, value: Value) -> Value:
        return self.names.get(value, value)

    def _renamed(self, op: Op, names: dict[Value, Value]) -> Op:
        """The op with the values that reductions have now; nested regions as well."""
        regions = tuple(
            Region(r.args, tuple(self._renamed(inner, names) for inner in r.ops))
            for r in op.regions
        )
        operands = tuple(names.get(v, v) for v in op.operands)
        return replace(op, operands=operands, regions=regions)


class _Body:
    """One sweep's loop body: the row's ops along the loop's own axis."""

    def __init__(self, roller: _Roller, axis: Axis, names: dict[Value, Value]) -> None:
        self.roller, self.axis, self.names = roller, axis, names
        self.ops: list[Op] = []

    def type(self, type: TileType) -> TileType:
        axes = (self.axis if a.name == self.roller.axis.name else a for a in type.axes)
        return replace(type, axes=tuple(axes))

    def copy(self, op: Op) -> Op:
        results = tuple(Value(self.type(v.type), v.hint) for v in op.results)
        operands = tuple(self.names.get(v, v) for v in op.operands)
        self.names.update(zip(op.results, results, strict=True))
        return replace(op, operands=operands, results=results, attrs=self._attrs(op))

    def _attrs(self, op: Op) -> dict[str, object]:
        old, new = self.roller.axis.name, self.axis.name
        attrs = dict(op.attrs)
        if "index" in attrs:
            attrs["index"] = tuple(
                replace(e, terms=tuple((new if n == old else n, c) for n, c in e.terms))
                if isinstance(e, Affine)
                else e
                for e in attrs["index"]
            )
        if attrs.get("axis") == old:
            attrs["axis"] = new
        if attrs.get("k") == old:
            attrs["k"] = new
        if op.kind == "reduce":
            attrs["axes"] = tuple(new if n == old else n for n in attrs["axes"])
        if op.kind == "expand":
            attrs["axes"] = tuple(self.axis if a.name == old else a for a in attrs["axes"])
        return attrs

    def joined(self, op: Op, start: list[Value]) -> list[Value]:
        """The chunk's reduction, joined with what the chunks before it gave."""
        if op.kind == "dot":
            operands = (*op.operands[:2], start[0])
            copied = self.copy(replace(op, operands=operands))
            self.ops.append(copied)
            return [copied.result]
        self.ops.append(self.copy(op))
        chunk = list(self.ops[-1].results)
        if op.attrs["fn"] == CUSTOM:
            return self._combined(op, start, chunk)
        return [self._add("pointwise", (start[0], chunk[0]), _JOINS[op.attrs["fn"]])]

    def _add(self, kind: str, operands: tuple[Value, ...], fn: str) -> Value:
        result = Value(operands[-1].type, operands[-1].hint)
        self.ops.append(Op(kind, operands, {"fn": fn}, (result,)))
        return result

    def _combined(self, op: Op, left: list[Value], right: list[Value]) -> list[Value]:
        """The combine region's ops in place."""
        (region,) = op.regions
        found = dict(zip(region.args, (*left, *right), strict=True))
        for inner in region.ops:
            operands = tuple(found[v] for v in inner.operands)
            if inner.kind == "yield":
                return list(operands)
            results = tuple(Value(v.type, v.hint) for v in inner.results)
            found.update(zip(inner.results, results, strict=True))
            self.ops.append(replace(inner, operands=operands, results=results))
        return []
