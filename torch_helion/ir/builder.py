"""Typed construction of kernels: every method checks its operands and returns a `Value`.

In: axes, buffers, values. Out: a verified-by-construction `Kernel`. Used by lowering, capture and
the front end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.builder_control import IfRegions, LoopRegion, OpenRegion, WhileRegions
from torch_helion.ir.graph import Kernel, Op, Origin, Region, Value
from torch_helion.ir.ops import (
    ATOMICS,
    CUSTOM,
    POINTWISE,
    REDUCTIONS,
    RNG,
    SCANS,
    accumulators,
    in_domain,
)
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    BufferRole,
    Gather,
    IndexExpr,
    Size,
    TileType,
    block_symbol,
    scalar_symbol,
    size_symbol,
)

Combine = Callable[["Builder", list[Value], list[Value]], Sequence[Value]]
"""How a custom reduction joins n left and n right values: emits pointwise ops, gives n values."""


class Builder:
    """Builds one kernel. Result types follow the order in which `axis()` declared the axes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origin = Origin()
        self._buffers: list[Buffer] = []
        self._sizes: list[sympy.Symbol] = []
        self._axes: dict[str, Axis] = {}
        self._body: list[Op] = []
        self._ops = self._body
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._numbers: dict[Value, float | int | bool] = {}
        self._blocks: list[str] = []
        self._symbols: set[str] = set()

    # -- declarations ---------------------------------------------------------------------------

    def size(self, name: str) -> sympy.Symbol:
        """Declare a run-time size argument."""
        symbol = size_symbol(name)
        if symbol not in self._sizes:
            self._sizes.append(symbol)
        return symbol

    def scalar(self, name: str) -> sympy.Symbol:
        """Declare a run-time int64 argument that may be negative (or hold a float's bits)."""
        symbol = scalar_symbol(name)
        if symbol not in self._sizes:
            self._sizes.append(symbol)
        return symbol

    def block(self, name: str) -> sympy.Symbol:
        """Declare a tunable block size: the next entry of a config's block sizes."""
        if name not in self._blocks:
            self._blocks.append(name)
        return block_symbol(name)

    def axis(self, name: str, size: Size, kind: str = "block", of: str = "") -> Axis:
        if name in self._axes:
            raise exc.VerifierError(f"axis {name!r} is declared twice")
        axis = Axis(name, size, kind, of)  # type: ignore[arg-type]
        self._axes[name] = axis
        return axis

    def alias(self, axis: Axis) -> Axis:
        """Declare a second axis with the same positions as `axis`, named `<axis>_1` or alike."""
        number = 1
        while f"{axis.tile_name}_{number}" in self._axes:
            number += 1
        return self.axis(f"{axis.tile_name}_{number}", axis.size, axis.kind, axis.tile_name)

    def axis_named(self, name: str) -> Axis | None:
        return self._axes.get(name)

    def buffer(
        self,
        name: str,
        dtype: torch.dtype,
        shape: Sequence[Size],
        strides: Sequence[Size],
        role: BufferRole = "in",
    ) -> Buffer:
        if len(shape) != len(strides):
            raise exc.VerifierError(f"buffer {name}: {len(shape)} sizes but {len(strides)} strides")
        buffer = Buffer(name, dtype, tuple(shape), tuple(strides), role)
        self._buffers.append(buffer)
        return buffer

    def build(self) -> Kernel:
        return Kernel(
            self.name,
            tuple(self._buffers),
            tuple(self._sizes),
            Region((), tuple(self._body)),
            tuple(self._blocks),
        )

    # -- regions --------------------------------------------------------------------------------

    @property
    def ops(self) -> list[Op]:
        """The ops of the region that is open now."""
        return self._ops

    def enter(self) -> tuple[Any, ...]:
        """Open a region; the token is for `leave`. Constants are made once in each region."""
        outer = (self._ops, self._constants)
        self._ops, self._constants = [], {}
        return outer

    def leave(self, outer: tuple[Any, ...]) -> list[Op]:
        """Close the region that is open now; its ops."""
        ops = self._ops
        self._ops, self._constants = outer
        return ops

    @contextmanager
    def grid(
        self, *axes: Axis, blocks: Sequence[Size] | None = None, serial: bool = False
    ) -> Iterator[None]:
        """One phase: a grid loop over the block axes `axes` (none: a single step).

        `serial`: the steps run in order in one thread, so that what they store may overlap.
        """
        if self._ops is not self._body:
            raise exc.VerifierError("a grid loop cannot stand inside another loop")
        if any(op.kind == "loop" for op in self._body):
            self._body.append(Op("barrier"))
        attrs = {**_loop_attrs("grid", axes, blocks), **({"serial": True} if serial else {})}
        outer = self.enter()
        try:
            yield
        finally:
            ops = self.leave(outer)
        self._body.append(Op("loop", (), attrs, (), (Region((), tuple(ops)),)))

    def tile_loop(
        self,
        axes: Axis | Sequence[Axis],
        carried: Sequence[Value] = (),
        blocks: Sequence[Size] | None = None,
    ) -> AbstractContextManager[LoopRegion]:
        """A loop over the tiles of block axes, in order (row-major), inside a grid step.

        with b.tile_loop([k], [zero]) as loop:
            loop.finish([b.pointwise("add", loop.args[0], b.reduce("sum", ..., [k]))])
        total = loop.results[0]
        """
        axes = (axes,) if isinstance(axes, Axis) else tuple(axes)
        self._inside("a tile loop")
        return LoopRegion(self, carried, _loop_attrs("tile", axes, blocks)).loop()

    def sequential_loop(
        self,
        symbol: sympy.Symbol | str,
        begin: Size,
        end: Size,
        step: Size = 1,
        carried: Sequence[Value] = (),
    ) -> AbstractContextManager[LoopRegion]:
        """A loop in which `symbol`, a counter from `begin` to `end`, may stand in sizes."""
        self._inside("a sequential loop")
        symbol = symbol if isinstance(symbol, sympy.Symbol) else self._new_symbol(symbol)
        self._symbols.add(symbol.name)
        attrs = {"kind": "sequential", "axes": (), "symbol": symbol}
        attrs |= {"begin": begin, "end": end, "step": step}
        return LoopRegion(self, carried, attrs).loop()

    def if_(self, condition: Value) -> IfRegions:
        """with branch.then(): ...; branch.finish(values); with branch.otherwise(): ... alike."""
        self._inside("an if")
        self._scalar("the condition of an if", condition, torch.bool)
        return IfRegions(self, condition)

    def while_(self, carried: Sequence[Value]) -> WhileRegions:
        """with w.condition(): w.finish([proceed]); with w.body(): w.finish(values)."""
        self._inside("a while")
        return WhileRegions(self, carried)

    def _inside(self, what: str) -> None:
        if self._ops is self._body:
            raise exc.VerifierError(f"{what} stands inside a grid loop")

    def _scalar(self, what: str, value: Value, dtype: torch.dtype) -> None:
        if value.type.axes or value.type.dtype != dtype:
            raise exc.VerifierError(f"{what} is {value.type}, a rank-0 {dtype} expected")

    def _new_symbol(self, name: str) -> sympy.Symbol:
        """A symbol with a name of its own in this kernel."""
        taken = {s.name for s in self._sizes} | {b.name for b in self._buffers} | self._symbols
        number, new = 0, name
        while new in taken:
            number += 1
            new = f"{name}_{number}"
        self._symbols.add(new)
        return scalar_symbol(new)

    def bind(self, value: Value, name: str) -> sympy.Symbol:
        """The rank-0 int64 `value` as a symbol for sizes, to the end of the current region."""
        self._scalar("what is bound", value, torch.int64)
        symbol = self._new_symbol(name)
        self._emit("bind", (value,), {"symbol": symbol}, None)
        return symbol

    # -- operations -----------------------------------------------------------------------------

    def _emit(
        self,
        kind: str,
        operands: Sequence[Value],
        attrs: dict[str, Any],
        type: TileType | None,
        hint: str = "v",
    ) -> Value:
        results = () if type is None else (Value(type, hint),)
        self._ops.append(Op(kind, tuple(operands), attrs, results, (), self.origin))
        return results[0] if results else None  # type: ignore[return-value]

    def _join(self, values: Sequence[Value], extra: Sequence[str] = ()) -> tuple[Axis, ...]:
        names = {n for v in values for n in v.type.axis_names} | set(extra)
        return tuple(axis for name, axis in self._axes.items() if name in names)

    def _index_axes(self, index: Sequence[IndexExpr]) -> list[str]:
        return [n for e in index if isinstance(e, Affine) for n in e.axis_names if n in self._axes]

    def load(
        self,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        gathered: Sequence[Value] = (),
        mask: Value | None = None,
        other: float | int | bool = 0,
        checked: bool = False,
        hint: str = "",
        pointer: Value | None = None,
    ) -> Value:
        """Read a tile. `checked`: indices out of [0, size) end the kernel with an error status.

        `pointer`: int64 addresses that take the place of the buffer's data pointer.
        """
        attrs, operands = self._access(buffer, index, gathered, mask, checked, pointer)
        attrs["other"] = other
        axes = self._join(operands, self._index_axes(index))
        type = TileType(buffer.dtype, axes)
        return self._emit("load", operands, attrs, type, hint or buffer.name)

    def store(
        self,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        value: Value,
        gathered: Sequence[Value] = (),
        mask: Value | None = None,
        checked: bool = False,
        pointer: Value | None = None,
    ) -> None:
        attrs, operands = self._access(buffer, index, gathered, mask, checked, pointer)
        _stored(buffer, value)
        self._emit("store", (value, *operands), attrs, None)

    def atomic(
        self,
        fn: str,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        value: Value,
        gathered: Sequence[Value] = (),
        mask: Value | None = None,
        expected: Value | None = None,
        checked: bool = False,
        want_result: bool = False,
    ) -> Value | None:
        """Read, combine and write each lane's element as one step; the result is what was there.

        fn: one of ATOMICS; cas stores `value` where `expected` is found.
        """
        if fn not in ATOMICS or (fn == "cas") != (expected is not None):
            raise exc.VerifierError(f"atomic {fn!r} with expected={expected}")
        attrs, operands = self._access(buffer, index, gathered, mask, checked, None)
        values = (value,) if expected is None else (expected, value)
        for stored in values:
            _stored(buffer, stored)
        operands = [*values, *operands]
        axes = self._join(operands, self._index_axes(index))
        type = TileType(buffer.dtype, axes) if want_result else None
        return self._emit("atomic", operands, {"fn": fn, **attrs}, type, buffer.name)

    def _access(
        self,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        gathered: Sequence[Value],
        mask: Value | None,
        checked: bool,
        pointer: Value | None,
    ) -> tuple[dict[str, Any], list[Value]]:
        """Attributes and operands (after stored values) that loads and stores share."""
        self._check_access(buffer, index, gathered, mask)
        attrs = {
            "buffer": buffer.name,
            "index": tuple(index),
            "masked": mask is not None,
            "checked": checked,
        }
        operands = [*gathered, *([mask] if mask is not None else [])]
        if pointer is not None:
            if pointer.type.dtype != torch.int64:
                raise exc.VerifierError(f"{buffer.name}: addresses of type {pointer.type}")
            attrs["stacked"] = True
            operands.insert(0, pointer)
        return attrs, operands

    def _check_access(
        self,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        gathered: Sequence[Value],
        mask: Value | None,
    ) -> None:
        if len(index) != len(buffer.shape):
            raise exc.VerifierError(
                f"{buffer.name}: {len(index)} indices for {len(buffer.shape)} dimensions"
            )
        if sorted(e.operand for e in index if isinstance(e, Gather)) != list(range(len(gathered))):
            raise exc.VerifierError(f"{buffer.name}: gathered indices do not match their operands")
        for value in gathered:
            if value.type.dtype != torch.int64:
                raise exc.VerifierError(
                    f"{buffer.name}: index of type {value.type}, int64 expected"
                )
        if mask is not None and mask.type.dtype != torch.bool:
            raise exc.VerifierError(f"{buffer.name}: mask of type {mask.type}")

    def pointwise(self, fn: str, *operands: Value, hint: str = "") -> Value:
        row = POINTWISE.get(fn)
        if row is None or len(operands) != row.arity:
            raise exc.VerifierError(f"pointwise {fn!r} with {len(operands)} operands")
        typed = operands[1:] if row.result == "where" else operands
        dtype = typed[0].type.dtype
        if any(o.type.dtype != dtype for o in typed) or not in_domain(dtype, row.domain):
            raise exc.VerifierError(f"pointwise {fn} of {', '.join(str(o.type) for o in operands)}")
        if row.result == "where" and operands[0].type.dtype != torch.bool:
            raise exc.VerifierError(f"where needs a bool condition, got {operands[0].type}")
        out = torch.bool if row.result == "bool" else dtype
        return self._emit(
            "pointwise", operands, {"fn": fn}, TileType(out, self._join(operands)), hint or fn
        )

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        if value.type.dtype == dtype:
            return value
        return self._emit(
            "cast", (value,), {"dtype": dtype}, TileType(dtype, value.type.axes), value.hint
        )

    def bitcast(self, value: Value, dtype: torch.dtype) -> Value:
        if value.type.dtype == dtype:
            return value
        if value.type.dtype.itemsize != dtype.itemsize:
            raise exc.VerifierError(f"bitcast of {value.type} to {dtype}: widths differ")
        return self._emit(
            "bitcast", (value,), {"dtype": dtype}, TileType(dtype, value.type.axes), value.hint
        )

    def reduce(self, fn: str, value: Value, axes: Sequence[Axis | str], hint: str = "") -> Value:
        """Reduce over `axes`. An arg reduction takes one axis and gives positions along it."""
        names = tuple(a if isinstance(a, str) else a.name for a in axes)
        row = REDUCTIONS.get(fn)
        if row is None or not in_domain(value.type.dtype, row.domain):
            raise exc.VerifierError(f"reduction {fn!r} of {value.type}")
        if not names or any(n not in value.type.axis_names for n in names):
            raise exc.VerifierError(f"reduction of {value.type} over {names}")
        if row.result == "index" and len(names) != 1:
            raise exc.VerifierError(f"{fn} over {len(names)} axes")
        dtype = torch.int64 if row.result == "index" else value.type.dtype
        kept = tuple(a for a in value.type.axes if a.name not in names)
        return self._emit(
            "reduce", (value,), {"fn": fn, "axes": names}, TileType(dtype, kept), hint or f"{fn}"
        )

    def custom_reduce(
        self,
        values: Sequence[Value],
        axes: Sequence[Axis | str],
        identity: Sequence[float | int | bool],
        combine: Combine,
    ) -> list[Value]:
        """Reduce n values together. `combine` is associative; `identity` leaves it unchanged."""
        names = tuple(a if isinstance(a, str) else a.name for a in axes)
        if len(identity) != len(values) or not names:
            raise exc.VerifierError(f"{len(values)} values, {len(identity)} identities, {names}")
        attrs = {"fn": CUSTOM, "axes": names, "identity": tuple(identity)}
        return self._combined("reduce", values, names, attrs, combine)

    def custom_scan(
        self,
        values: Sequence[Value],
        axis: Axis | str,
        combine: Combine,
        reverse: bool = False,
    ) -> list[Value]:
        """The inclusive scan of n values together, in order along the axis."""
        name = axis if isinstance(axis, str) else axis.name
        attrs = {"fn": CUSTOM, "axis": name, "reverse": reverse, "exclusive": False}
        return self._combined("scan", values, (name,), attrs, combine)

    def _combined(
        self,
        kind: str,
        values: Sequence[Value],
        names: tuple[str, ...],
        attrs: dict[str, Any],
        combine: Combine,
    ) -> list[Value]:
        joint = self._join(values)
        if not values or any(n not in {a.name for a in joint} for n in names):
            raise exc.VerifierError(
                f"custom {kind} of {[str(v.type) for v in values]} over {names}"
            )
        values = [self.expand(v, joint) for v in values]
        kept = tuple(a for a in joint if a.name not in names)
        types = [TileType(v.type.dtype, kept) for v in values]
        args = [Value(t, f"{v.hint}_{s}") for s in "lr" for v, t in zip(values, types, strict=True)]
        region, count = OpenRegion(self, args), len(values)
        with region.open():
            joined = list(combine(self, region.args[:count], region.args[count:]))
            if any(v.type.axes != kept for v in joined):  # a constant, say
                joined = [self.expand(v, kept) for v in joined]
            region.finish(joined)
        if [v.type for v in joined] != types:
            got = ", ".join(str(v.type) for v in joined)
            raise exc.VerifierError(f"combine gives ({got}) for ({', '.join(map(str, types))})")
        results = [
            Value(v.type if kind == "scan" else t, v.hint)
            for v, t in zip(values, types, strict=True)
        ]
        op = Op(kind, tuple(values), attrs, tuple(results), (region.region,), self.origin)
        self._ops.append(op)
        return results

    def scan(
        self,
        fn: str,
        value: Value,
        axis: Axis | str,
        reverse: bool = False,
        exclusive: bool = False,
        hint: str = "",
    ) -> Value:
        """Running results along the axis (within a tile); exclusive: of what lies before."""
        name = axis if isinstance(axis, str) else axis.name
        fits = fn in SCANS and in_domain(value.type.dtype, REDUCTIONS[fn].domain)
        if not fits or name not in value.type.axis_names:
            raise exc.VerifierError(f"scan {fn!r} of {value.type} along {name!r}")
        attrs = {"fn": fn, "axis": name, "reverse": reverse, "exclusive": exclusive}
        return self._emit("scan", (value,), attrs, value.type, hint or f"cum{fn}")

    def dot(
        self,
        a: Value,
        b: Value,
        k: Axis | str,
        acc_dtype: torch.dtype,
        acc: Value | None = None,
        hint: str = "",
    ) -> Value:
        """sum over k of a * b (+ acc), in `acc_dtype`. Other common axes are batches."""
        name = k if isinstance(k, str) else k.name
        if any(name not in v.type.axis_names for v in (a, b)):
            raise exc.VerifierError(f"dot of {a.type} and {b.type} over {name!r}")
        if acc_dtype not in accumulators(a.type.dtype, b.type.dtype):
            raise exc.VerifierError(f"dot of {a.type} and {b.type} in {acc_dtype}")
        axes = tuple(x for x in self._join((a, b)) if x.name != name)
        type = TileType(acc_dtype, axes)
        if acc is not None and acc.type != type:
            raise exc.VerifierError(f"dot adds {type} to {acc.type}")
        operands = (a, b) if acc is None else (a, b, acc)
        attrs = {"k": name, "acc": acc_dtype}
        return self._emit("dot", operands, attrs, type, hint or "dot")

    def sort(
        self,
        value: Value,
        axis: Axis | str,
        descending: bool = False,
        k: int | None = None,
        out_axis: Axis | None = None,
        stable: bool = True,
    ) -> tuple[Value, Value]:
        """Values in order along the axis, and where each was (counted within the tile).

        NaN counts as the greatest. `k`: the first k only, along `out_axis`.
        """
        name = axis if isinstance(axis, str) else axis.name
        if name not in value.type.axis_names or (k is None) != (out_axis is None):
            raise exc.VerifierError(f"sort of {value.type} along {name!r}, k={k} in {out_axis}")
        out = out_axis or self._axes[name]
        kept = [a.name for a in value.type.axes if a.name != name]
        axes = self._join((), [*kept, out.name])
        attrs = {"axis": name, "descending": descending, "stable": stable, "k": k, "out_axis": out}
        results = (
            Value(TileType(value.type.dtype, axes), "sorted"),
            Value(TileType(torch.int64, axes), "order"),
        )
        self._ops.append(Op("sort", (value,), attrs, results, (), self.origin))
        return results

    def take(self, value: Value, index: Value, axis: Axis | str, hint: str = "") -> Value:
        """value[.., index, ..] along the axis; other axes that both have are aligned."""
        name = axis if isinstance(axis, str) else axis.name
        if name not in value.type.axis_names or index.type.dtype != torch.int64:
            raise exc.VerifierError(f"take from {value.type} along {name!r} at {index.type}")
        names = [a.name for a in value.type.axes if a.name != name]
        type = TileType(value.type.dtype, self._join((index,), names))
        return self._emit("take", (value, index), {"axis": name}, type, hint or value.hint)

    def reaxis(self, value: Value, axes: Mapping[Any, Axis]) -> Value:
        """The value with axes renamed: {old: new}, old an Axis or a name; extents are equal."""
        new = {k if isinstance(k, str) else k.name: a for k, a in axes.items()}
        absent = [n for n in new if n not in value.type.axis_names]
        names = [new[a.name].name if a.name in new else a.name for a in value.type.axes]
        if absent or len(set(names)) != len(names):
            raise exc.VerifierError(f"reaxis of {value.type}: {new}")
        pairs = tuple((n, a) for n, a in new.items() if n != a.name)
        if not pairs:
            return value
        type = TileType(value.type.dtype, self._join((), names))
        return self._emit("reaxis", (value,), {"axes": pairs}, type, value.hint)

    def reshape(
        self, value: Value, source: Sequence[Axis | str], target: Sequence[Axis], hint: str = ""
    ) -> Value:
        """The axes `source` (outer to inner) become `target`, row-major; others stay.

        A block axis counts as its whole block: lanes beyond the tile hold 0, or are cut.
        """
        names = tuple(a if isinstance(a, str) else a.name for a in source)
        kept = [a.name for a in value.type.axes if a.name not in names]
        new = [a.name for a in target]
        absent = any(n not in value.type.axis_names for n in names)
        if absent or len(set(names)) != len(names) or set(kept) & set(new):
            raise exc.VerifierError(f"reshape of {value.type}: {names} to {new}")
        type = TileType(value.type.dtype, self._join((), [*kept, *new]))
        attrs = {"source": names, "target": tuple(target)}
        return self._emit("reshape", (value,), attrs, type, hint or value.hint)

    def expand(self, value: Value, axes: Sequence[Axis]) -> Value:
        """The value repeated along `axes` that it does not have yet."""
        if all(a in value.type.axes for a in axes):
            return value
        type = TileType(value.type.dtype, self._join((value,), [a.name for a in axes]))
        return self._emit("expand", (value,), {"axes": tuple(axes)}, type, value.hint)

    def iota(self, axis: Axis) -> Value:
        return self._emit(
            "iota", (), {"axis": axis.name}, TileType(torch.int64, (axis,)), f"i_{axis.name}"
        )

    def const(self, value: float | int | bool, dtype: torch.dtype) -> Value:
        # 0.0 and -0.0 compare equal: the text keeps them apart.
        key = (repr(value), dtype)
        if key not in self._constants:
            self._constants[key] = self._emit(
                "const", (), {"value": value, "dtype": dtype}, TileType(dtype), "c"
            )
            self._numbers[self._constants[key]] = value
        return self._constants[key]

    def number_of(self, value: Value) -> float | int | bool | None:
        """The number that a constant holds; None for any other value."""
        return self._numbers.get(value)

    def size_value(self, expr: Size) -> Value:
        """A size expression as a rank-0 int64 value."""
        if isinstance(expr, int) or expr.is_Integer:
            return self.const(int(expr), torch.int64)
        key = ("size", expr)
        if key not in self._constants:
            self._constants[key] = self._emit(
                "size", (), {"expr": expr}, TileType(torch.int64), "n"
            )
        return self._constants[key]

    def check(self, condition: Value, status: int = 1) -> None:
        """End the kernel with an error status where `condition` (a bool) is false in some lane."""
        if condition.type.dtype != torch.bool:
            raise exc.VerifierError(f"assert of {condition.type}")
        self._emit("assert", (condition,), {"status": status}, None)

    def print(self, text: str, *values: Value) -> None:
        """Show the text and the values when the kernel runs."""
        self._emit("print", values, {"text": text}, None)

    def rng(
        self,
        fn: str,
        seed: Value,
        index: Value,
        *bounds: Value,
        dtype: torch.dtype = torch.float32,
        word: int = 0,
    ) -> Value:
        """Philox4x32-10 keyed by (seed, logical index): the same numbers for every block size.

        `word`: which of the four words of the Philox block is the first one used.
        """
        if fn not in RNG or any(v.type.dtype != torch.int64 for v in (seed, index, *bounds)):
            raise exc.VerifierError(f"rng {fn!r}: seed, index and bounds are int64")
        dtype = torch.int64 if fn == "randint" else dtype
        operands = (seed, index, *bounds)
        attrs = {"fn": fn, "word": word} if word else {"fn": fn}
        return self._emit("rng", operands, attrs, TileType(dtype, self._join(operands)), fn)


def _loop_attrs(kind: str, axes: Sequence[Axis], blocks: Sequence[Size] | None) -> dict[str, Any]:
    if blocks is not None and len(blocks) != len(axes):
        raise exc.VerifierError(f"{len(blocks)} block sizes for {len(axes)} axes")
    attrs: dict[str, Any] = {"kind": kind, "axes": tuple(axes)}
    return attrs if blocks is None else {**attrs, "blocks": tuple(blocks)}


def _stored(buffer: Buffer, value: Value) -> None:
    if value.type.dtype != buffer.dtype:
        raise exc.VerifierError(f"store of {value.type} into {buffer.dtype} buffer {buffer.name}")
