"""What the verifier knows at one place of a program, and the helpers of its rules.

In: a kernel. Out: `Scope`, which the rules of the verifier read. Used by its modules only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.dump import op_text
from torch_helion.ir.graph import Kernel, Op, Region, Value, loop_blocks
from torch_helion.ir.ops import OP_KINDS, STORAGE_ONLY, in_domain
from torch_helion.ir.types import Axis, Buffer, Size

# Types that are only stored are moved, never computed in: a cast to a wider one comes first.
_MOVING_FUNCTIONS = ("where",)


@dataclass
class Scope:
    """What is known at one place of the program."""

    kernel: Kernel
    rules: Mapping[str, Rule]
    attributes: Mapping[str, tuple[str, ...]]
    op: Op | None = None
    buffers: dict[str, Buffer] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    """Every axis seen so far, by name: one name, one axis."""
    loops: list[Op] = field(default_factory=list)
    """The loops around this place, outermost first."""
    defined: set[Value] = field(default_factory=set)
    fixed: frozenset[sympy.Symbol] = frozenset()
    """Symbols with one number in the whole call: sizes and blocks."""
    symbols: frozenset[sympy.Symbol] = frozenset()
    """Symbols with a number here: also begins and ids of tiles, counters, bound values."""
    pending: set[str] = field(default_factory=set)
    """Buffers stored to since the last barrier, by loops before this one."""
    written: set[str] = field(default_factory=set)
    """Buffers stored to by the current phase."""
    complete: set[str] = field(default_factory=set)
    """Buffers with a store before the last barrier."""

    def fail(self, why: str) -> NoReturn:
        where = f"\n  in: {op_text(self.op)}" if self.op is not None else ""
        origin = f"\n  from: {self.op.origin}" if self.op and str(self.op.origin) else ""
        raise exc.VerifierError(f"kernel {self.kernel.name}: {why}{where}{origin}")

    def require(self, condition: object, why: str) -> None:
        if not condition:
            self.fail(why)

    def block_axes(self) -> dict[str, Axis]:
        """Block axes with a tile here."""
        return {a.name: a for loop in self.loops for a in loop.attrs["axes"]}

    def block_of(self, axis: Axis) -> Size:
        """The block size of a block axis with a tile here."""
        for loop in self.loops:
            for other, block in zip(loop.attrs["axes"], loop_blocks(loop), strict=True):
                if other.name == axis.tile_name:
                    return block
        self.fail(f"no loop over {axis.name!r} around this")

    def check_size(self, size: Size, what: str, fixed: bool = False) -> None:
        """`fixed`: the same in the whole call."""
        symbols: set[Any] = getattr(size, "free_symbols", set())
        # Texts of sizes are slow to make: only for an error.
        known = self.fixed if fixed else self.symbols
        if not symbols <= known:
            names = ", ".join(sorted(str(s) for s in symbols - known))
            self.fail(f"{what} {size}: {names} is no size or block of this kernel")
        if not isinstance(size, int | sympy.Expr) or isinstance(size, bool):
            self.fail(f"{what} {size!r} is no size expression")

    def check_axis(self, axis: Axis) -> None:
        known = self.axes.setdefault(axis.name, axis)
        if known != axis:
            self.fail(f"two axes are named {axis.name!r}: {known} and {axis}")
        self.check_size(axis.size, "axis size")
        if axis.kind == "block":
            around = self.block_axes().get(axis.tile_name)
            self.require(around is not None, f"no loop over {axis.tile_name!r} around this")
            if axis.of:
                same = around is not None and around.size == axis.size
                self.require(same, f"{axis.name!r} has not the size of {axis.of!r}")

    def add_symbol(self, symbol: Any) -> None:
        """A symbol that has a number from here on."""
        if not isinstance(symbol, sympy.Symbol) or not symbol.is_integer:
            self.fail(f"{symbol!r} is no integer symbol")
        same = symbol in self.symbols or any(s.name == symbol.name for s in self.symbols)
        taken = same or symbol.name in self.buffers
        self.require(not taken, f"the name {symbol.name!r} is used twice")
        self.symbols |= {symbol}

    # -- programs -------------------------------------------------------------------------------

    def check_region(self, region: Region, results: Sequence[Value] | None) -> None:
        """`results`: what the region's yield must give; None where it ends without one."""
        defined, symbols = set(self.defined), self.symbols
        for arg in region.args:
            self.require(arg not in self.defined, f"{arg!r} is defined twice")
            self.defined.add(arg)
        for op in region.ops:
            self.op = op
            self.require(op.kind != "yield" or op is region.ops[-1], "a yield ends its region")
            self.check_op(op)
        if results is not None:
            given = [v.type for v in region.yielded]
            self.require(given == [v.type for v in results], "what the region yields")
        else:
            yields = region.ops and region.ops[-1].kind == "yield"
            self.require(not yields, "this region yields nothing")
        self.defined, self.symbols = defined, symbols

    def check_op(self, op: Op) -> None:
        self.op = op
        self.require(op.kind in OP_KINDS, f"unknown kind {op.kind!r}")
        for operand in op.operands:
            if operand not in self.defined:
                self.fail(f"{operand!r} is used before its definition")
        missing = [name for name in self.attributes.get(op.kind, ()) if name not in op.attrs]
        self.require(not missing, f"attributes {missing} are missing")
        if not OP_KINDS[op.kind].has_region:
            self.require(not op.regions, "an op of this kind has no regions")
        for result in op.results:
            names = result.type.axis_names
            if len(set(names)) != len(names):
                self.fail(f"an axis occurs twice in {result.type}")
            for axis in result.type.axes:
                self.check_axis(axis)
        self.rules[op.kind](self, op)
        self.op = op
        for result in op.results:
            if result in self.defined:
                self.fail(f"{result!r} is defined twice")
            self.defined.add(result)


Rule = Callable[[Scope, Op], None]
Rules = Mapping[str, Rule]


def counts(s: Scope, op: Op, operands: int, results: int) -> None:
    s.require(len(op.operands) == operands, f"{len(op.operands)} operands, {operands} expected")
    s.require(len(op.results) == results, f"{len(op.results)} results, {results} expected")


def has_type(s: Scope, value: Value, dtype: torch.dtype, axes: Iterable[str]) -> None:
    if value.type.dtype != dtype:
        s.fail(f"the result is {value.type}, {dtype} expected")
    names = set(axes)
    if set(value.type.axis_names) != names:
        s.fail(f"the result is {value.type}, axes {sorted(names)} expected")


def axis_names(values: Iterable[Value]) -> set[str]:
    return {n for v in values for n in v.type.axis_names}


def check_domain(s: Scope, what: str, dtype: torch.dtype, domain: Any) -> None:
    s.require(in_domain(dtype, domain), f"{what} takes {domain} dtypes, not {dtype}")


def check_computes(s: Scope, dtype: torch.dtype, what: str) -> None:
    """Whether `what` may be done with values of `dtype`."""
    allowed = dtype not in STORAGE_ONLY or what in _MOVING_FUNCTIONS
    s.require(allowed, f"{what} computes in {dtype}: cast to a type that is computed in first")


def is_scalar(s: Scope, value: Value, dtype: torch.dtype) -> None:
    if value.type.dtype != dtype or value.type.axes:
        s.fail(f"{value!r} must be a rank-0 {dtype}")


def fits(s: Scope, value: Any, dtype: torch.dtype, what: str) -> None:
    """Whether the Python number `value` is one of `dtype` (floats: up to rounding)."""
    if dtype is torch.bool:
        right = isinstance(value, bool) or value in (0, 1)
    elif dtype.is_floating_point:
        right = isinstance(value, float | int)
    else:
        info = torch.iinfo(dtype)
        right = int(value) == value and info.min <= value <= info.max
    s.require(right, f"{what} {value!r} is no {dtype}")
