"""Typed construction of kernels: every method checks its operands and returns a `Value`.

In: axes, buffers, values. Out: a verified-by-construction `Kernel`. Used by lowering, capture and
the front end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.graph import Kernel, Op, Origin, Region, Value
from torch_helion.ir.ops import POINTWISE, REDUCTIONS, RNG, in_domain
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    BufferRole,
    Gather,
    IndexExpr,
    Size,
    TileType,
    size_symbol,
)


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

    # -- declarations ---------------------------------------------------------------------------

    def size(self, name: str) -> sympy.Symbol:
        """Declare a run-time size argument."""
        symbol = size_symbol(name)
        if symbol not in self._sizes:
            self._sizes.append(symbol)
        return symbol

    def axis(self, name: str, size: Size, kind: str = "block") -> Axis:
        if name in self._axes:
            raise exc.VerifierError(f"axis {name!r} is declared twice")
        axis = Axis(name, size, kind)  # type: ignore[arg-type]
        self._axes[name] = axis
        return axis

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

    @contextmanager
    def grid(self, *axes: Axis) -> Iterator[None]:
        """One phase: a grid loop over the block axes `axes` (none: a single step)."""
        if self._ops is not self._body:
            raise exc.VerifierError("a grid loop cannot stand inside another loop")
        if any(op.kind == "loop" for op in self._body):
            self._body.append(Op("barrier"))
        self._ops, self._constants = [], {}
        yield
        ops, self._ops = self._ops, self._body
        self._body.append(
            Op("loop", (), {"kind": "grid", "axes": tuple(axes)}, (), (Region((), tuple(ops)),))
        )

    def build(self) -> Kernel:
        return Kernel(
            self.name, tuple(self._buffers), tuple(self._sizes), Region((), tuple(self._body))
        )

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
    ) -> Value:
        """Read a tile. `checked`: gathered indices out of [0, size) end the kernel with an error
        status.
        """
        self._check_access(buffer, index, gathered, mask)
        operands = [*gathered, *([mask] if mask is not None else [])]
        axes = self._join(operands, self._index_axes(index))
        attrs = {
            "buffer": buffer.name,
            "index": tuple(index),
            "masked": mask is not None,
            "other": other,
            "checked": checked,
        }
        return self._emit(
            "load", operands, attrs, TileType(buffer.dtype, axes), hint or buffer.name
        )

    def store(
        self,
        buffer: Buffer,
        index: Sequence[IndexExpr],
        value: Value,
        gathered: Sequence[Value] = (),
        mask: Value | None = None,
        checked: bool = False,
    ) -> None:
        self._check_access(buffer, index, gathered, mask)
        if value.type.dtype != buffer.dtype:
            raise exc.VerifierError(
                f"store of {value.type} into {buffer.dtype} buffer {buffer.name}"
            )
        operands = [value, *gathered, *([mask] if mask is not None else [])]
        attrs = {
            "buffer": buffer.name,
            "index": tuple(index),
            "masked": mask is not None,
            "checked": checked,
        }
        self._emit("store", operands, attrs, None)

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
        return self._constants[key]

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

    def rng(
        self, fn: str, seed: Value, index: Value, *bounds: Value, dtype: torch.dtype = torch.float32
    ) -> Value:
        """Philox4x32-10 keyed by (seed, logical index): the same numbers for every block size."""
        if fn not in RNG or any(v.type.dtype != torch.int64 for v in (seed, index, *bounds)):
            raise exc.VerifierError(f"rng {fn!r}: seed, index and bounds are int64")
        dtype = torch.int64 if fn == "randint" else dtype
        operands = (seed, index, *bounds)
        return self._emit("rng", operands, {"fn": fn}, TileType(dtype, self._join(operands)), fn)
