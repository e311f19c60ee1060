"""Accumulators: how a reduction starts, takes a value, and finishes.

In: a reduce operation inside a loop, the emitter. Out: lines of LLVM text. Three places to
accumulate: registers over the vector axis (one vector per unrolled vector, combined once), scalar
registers, or an array in scratch for the loops that the reduction keeps (column sums). Float maxima
and minima keep NaNs aside (a compare and an or are cheaper than a NaN-correct maximum); long
float32 sums are flushed into a second accumulator once a block, and arrays of sums over unbounded
loops hold float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_helion import exc
from torch_helion.codegen.llvm import compute, memory
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.schedule import accumulator_dtype
from torch_helion.codegen.llvm.text import register_type
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import identity_of

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

FLUSH_ITERATIONS = 128
"""Iterations of the unrolled vector loop after which a float sum moves to the second accumulator.
"""

COMBINE = {
    "sum": "add",
    "prod": "mul",
    "any": "or",
    "all": "and",
    "max": "maximum",
    "min": "minimum",
}


def start(em: PhaseEmitter, op: Op) -> Accumulator | ArgAccumulator:
    """Open the accumulator in the current scope (before its loop)."""
    if op.attrs["fn"] in ("argmax", "argmin"):
        return ArgAccumulator(em, op)
    return Accumulator(em, op)


class Accumulator:
    """sum, prod, max, min, any, all."""

    def __init__(self, em: PhaseEmitter, op: Op) -> None:
        self.em, self.op, self.fn = em, op, op.attrs["fn"]
        self.axes = None if op.result in em.plan.carried else em.plan.arrays.get(op.result)
        names = op.operands[0].type.axis_names
        self.vector = em.plan.vector in names and em.plan.vector in op.attrs["axes"]
        self.dtype = accumulator_dtype(op, self.axes is not None or not self.vector)
        self.nan_aside = (
            self.fn in ("max", "min") and self.dtype.is_floating_point and self.axes is None
        )
        self.flushes = self._long_float_sum()
        self._open()

    def _long_float_sum(self) -> bool:
        """Whether one register may take so many terms that a float32 sum loses them."""
        if (
            self.fn != "sum"
            or self.dtype is not torch.float32
            or not self.vector
            or self.axes is not None
        ):
            return False
        em = self.em
        reduced = [a for a in em.plan.loops if a.name in self.op.attrs["axes"]]
        if len(reduced) > 1:
            return True
        extent = reduced[0].extent
        return not isinstance(extent, int) or extent > FLUSH_ITERATIONS * em.width * em.unroll

    def _open(self) -> None:
        em = self.em
        identity = identity_of(self.fn, self.dtype)
        if self.axes is not None:
            fill_array(em, self.op, "value", self.dtype, identity)
            return
        width = em.width if self.vector else 1
        count = em.unroll if self.vector else 1
        type = register_type(self.dtype, width)
        start = compute.number(identity, self.dtype, width)
        self.slots = [self._slot(type, start, self.fn) for _ in range(count)]
        self.nans = []
        if self.nan_aside:
            flags = register_type(torch.bool, width)
            self.nans = [
                self._slot(flags, compute.number(False, torch.bool, width), "nan")
                for _ in range(count)
            ]
        self.second = self._slot(type, start, "total") if self.flushes else None

    def _slot(self, type: str, value: str, hint: str) -> str:
        name = self.em.slot(type, hint)
        self.em.line(f"store {type} {value}, ptr {name}")
        return name

    # -- taking a value
    # -----------------------------------------------------------------------------

    def update(self, reg: Reg) -> None:
        em = self.em
        scope = em.current
        if self.axes is not None:
            self._update_array(reg)
            return
        if not self.vector:
            self._take(0, compute.cast(em, reg, self.dtype, scope).names[0], 1)
            return
        assert em.piece is not None
        for u, name in enumerate(em.widen(reg, scope)):
            self._take(u, name, em.piece.width)

    def _take(self, u: int, name: str, width: int) -> None:
        em = self.em
        own = em.width if self.vector else 1
        type = register_type(self.dtype, width)
        if em.piece is not None and em.piece.mask is not None and width > 1:
            rest = compute.number(identity_of(self.fn, self.dtype), self.dtype, width)
            name = compute.select(em, self.dtype, width, em.piece.mask, name, rest)
        if self.dtype is torch.bool:
            op = "or" if self.fn in ("any", "max") else "and"
            self._update_flags(self.slots[u], name, width, op)
            return
        slot = self.slots[u]  # a scalar tail works on lane 0 of the first vector
        old = em.let(
            f"load {type}, ptr {slot}, align {64 if width == own else self.dtype.itemsize}", "acc"
        )
        new = self._join(old, name, width)
        if self.nan_aside:
            is_nan = compute.POINTWISE_ROWS["isnan"](em, self.dtype, width, name)
            self._update_flags(self.nans[u], is_nan, width, "or")
        em.line(
            f"store {type} {new}, ptr {slot}, align {64 if width == own else self.dtype.itemsize}"
        )

    def _update_flags(self, slot: str, value: str, width: int, op: str) -> None:
        """Combine bools into a slot. i1 vectors have no addressable lanes: a scalar tail rebuilds
        lane 0.
        """
        em = self.em
        wide = register_type(torch.bool, em.width if self.vector else 1)
        old = em.let(f"load {wide}, ptr {slot}")
        if width == 1 and self.vector:
            lane = em.let(f"extractelement {wide} {old}, i64 0")
            new = em.let(
                f"insertelement {wide} {old}, i1 {em.let(f'{op} i1 {lane}, {value}')}, i64 0"
            )
        else:
            new = em.let(f"{op} {wide} {old}, {value}")
        em.line(f"store {wide} {new}, ptr {slot}")

    def _join(self, a: str, b: str, width: int) -> str:
        if self.nan_aside:  # one instruction on x86; NaNs are kept aside
            type = register_type(self.dtype, width)
            wins = self.em.let(f"fcmp {'ogt' if self.fn == 'max' else 'olt'} {type} {b}, {a}")
            return compute.select(self.em, self.dtype, width, wins, b, a)
        return compute.POINTWISE_ROWS[COMBINE[self.fn]](self.em, self.dtype, width, a, b)

    def _update_array(self, reg: Reg) -> None:
        em, scope = self.em, self.em.current
        value = self.op.result
        width = em.piece.width if em.in_vector_scope(scope) and em.piece else 1
        old = memory.read_part(em, value, "value", self.dtype, scope)
        reg = compute.cast(em, reg, self.dtype, scope)
        new = [self._join(a, b, width) for a, b in zip(old, em.widen(reg, scope), strict=True)]
        memory.write_part(em, value, "value", self.dtype, new, scope)

    def flush(self) -> None:
        """Move the unrolled accumulators into the second one."""
        em = self.em
        assert self.second is not None
        type = register_type(self.dtype, em.width)
        total = em.let(f"load {type}, ptr {self.second}")
        em.line(f"store {type} {self._join(total, self._tree(type), em.width)}, ptr {self.second}")
        zero = compute.number(0, self.dtype, em.width)
        for slot in self.slots:
            em.line(f"store {type} {zero}, ptr {slot}")

    def _tree(self, type: str) -> str:
        names = [self.em.let(f"load {type}, ptr {s}") for s in self.slots]
        return fold(names, lambda a, b: self._join(a, b, self.em.width))

    # -- finishing
    # ------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Combine what the loop left; the result becomes a value of the current scope."""
        em, value = self.em, self.op.result
        if self.axes is not None:
            em.filled.add(value)
            return
        if not self.vector:
            result = em.let(f"load {register_type(self.dtype)}, ptr {self.slots[0]}", value.hint)
            if self.nan_aside:
                result = self._with_nan(result, em.let(f"load i1, ptr {self.nans[0]}"))
        else:
            result = self._finish_vector()
        reg = compute.cast(em, Reg((result,), self.dtype), value.type.dtype, em.current)
        publish(em, value, reg)

    def _finish_vector(self) -> str:
        em = self.em
        type = register_type(self.dtype, em.width)
        total = self._tree(type)
        if self.second is not None:
            total = self._join(em.let(f"load {type}, ptr {self.second}"), total, em.width)
        result = horizontal(em, total, self.dtype, lambda a, b, w: self._join(a, b, w))
        if self.nan_aside:
            flags = register_type(torch.bool, em.width)
            nans = fold(
                [em.let(f"load {flags}, ptr {n}") for n in self.nans],
                lambda a, b: em.let(f"or {flags} {a}, {b}"),
            )
            result = self._with_nan(
                result, em.call("i1", f"llvm.vector.reduce.or.v{em.width}i1", (flags, nans))
            )
        return result

    def _with_nan(self, result: str, any_nan: str) -> str:
        nan = compute.number(float("nan"), self.dtype, 1)
        return compute.select(self.em, self.dtype, 1, any_nan, nan, result)


class ArgAccumulator:
    """argmax, argmin: a value and its position; NaN is extreme, ties go to the first position."""

    flushes = False

    def __init__(self, em: PhaseEmitter, op: Op) -> None:
        self.em, self.op, self.fn = em, op, op.attrs["fn"]
        self.axis = op.attrs["axes"][0]
        self.dtype = accumulator_dtype(op, False)
        self.axes = None if op.result in em.plan.carried else em.plan.arrays.get(op.result)
        self.vector = (
            em.plan.vector == self.axis and em.plan.vector in op.operands[0].type.axis_names
        )
        start = identity_of(self.fn, self.dtype)
        if self.axes is not None:
            fill_array(em, op, "value", self.dtype, start)
            fill_array(em, op, "index", torch.int64, torch.iinfo(torch.int64).max)
            return
        width, count = (em.width, em.unroll) if self.vector else (1, 1)
        self.slots = []
        for _ in range(count):
            pair = (
                em.slot(register_type(self.dtype, width), "best"),
                em.slot(register_type(torch.int64, width), "at"),
            )
            em.line(
                f"store {register_type(self.dtype, width)} "
                f"{compute.number(start, self.dtype, width)}, ptr {pair[0]}"
            )
            far = compute.number(torch.iinfo(torch.int64).max, torch.int64, width)
            em.line(f"store {register_type(torch.int64, width)} {far}, ptr {pair[1]}")
            self.slots.append(pair)

    def update(self, reg: Reg) -> None:
        em, scope = self.em, self.em.current
        in_vector = em.in_vector_scope(scope) and em.piece is not None
        width = em.piece.width if in_vector and em.piece else 1
        names = em.widen(reg, scope)
        if self.vector:
            positions = [memory.lane_index(em, u) for u in range(len(names))]
        else:
            here = em.index[self.axis]
            positions = [here if width == 1 else em.broadcast(here, torch.int64)] * len(names)
        if self.axes is not None:
            old = memory.read_part(em, self.op.result, "value", self.dtype, scope)
            old_at = memory.read_part(em, self.op.result, "index", torch.int64, scope)
            new = [
                self._better(a, i, b, j, width)
                for a, i, b, j in zip(old, old_at, names, positions, strict=True)
            ]
            memory.write_part(em, self.op.result, "value", self.dtype, [v for v, _ in new], scope)
            memory.write_part(em, self.op.result, "index", torch.int64, [i for _, i in new], scope)
            return
        for u, (name, position) in enumerate(zip(names, positions, strict=True)):
            self._take(u, name, position, width)

    def _take(self, u: int, name: str, position: str, width: int) -> None:
        em = self.em
        type, itype = register_type(self.dtype, width), register_type(torch.int64, width)
        if self.dtype is torch.bool and self.vector and width == 1:
            raise exc.CodegenError("llvm: argmax of bool needs masked tails")
        best, at = self.slots[u]
        align = self.dtype.itemsize if width == 1 else 64
        old = em.let(f"load {type}, ptr {best}, align {align}")
        old_at = em.let(f"load {itype}, ptr {at}, align 8")
        new, new_at = self._better(old, old_at, name, position, width)
        if em.piece is not None and em.piece.mask is not None and width > 1:
            new = compute.select(em, self.dtype, width, em.piece.mask, new, old)
            new_at = compute.select(em, torch.int64, width, em.piece.mask, new_at, old_at)
        em.line(f"store {type} {new}, ptr {best}, align {align}")
        em.line(f"store {itype} {new_at}, ptr {at}, align 8")

    def _better(self, a: str, i: str, b: str, j: str, width: int) -> tuple[str, str]:
        """The winner of (value a at i) and (value b at j)."""
        em, rows, dtype = self.em, compute.POINTWISE_ROWS, self.dtype
        flags = register_type(torch.bool, width)
        if dtype is torch.bool:  # order bools as numbers
            widened = [
                em.let(f"zext {flags} {v} to {register_type(torch.uint8, width)}") for v in (a, b)
            ]
            wins = rows["gt" if self.fn == "argmax" else "lt"](
                em, torch.uint8, width, widened[1], widened[0]
            )
            same = rows["eq"](em, torch.uint8, width, widened[0], widened[1])
        else:
            wins = rows["gt" if self.fn == "argmax" else "lt"](em, dtype, width, b, a)
            same = rows["eq"](em, dtype, width, a, b)
        if dtype.is_floating_point:
            a_nan, b_nan = rows["isnan"](em, dtype, width, a), rows["isnan"](em, dtype, width, b)
            only_b = em.let(f"and {flags} {rows['not'](em, torch.bool, width, a_nan)}, {b_nan}")
            wins = em.let(f"or {flags} {wins}, {only_b}")
            same = em.let(f"or {flags} {same}, {em.let(f'and {flags} {a_nan}, {b_nan}')}")
        first = em.let(f"and {flags} {same}, {rows['lt'](em, torch.int64, width, j, i)}")
        wins = em.let(f"or {flags} {wins}, {first}")
        return compute.select(em, dtype, width, wins, b, a), compute.select(
            em, torch.int64, width, wins, j, i
        )

    def flush(self) -> None:
        """Nothing: positions do not lose precision."""

    def finish(self) -> None:
        em, value = self.em, self.op.result
        if self.axes is not None:
            em.filled.add(value)
            return
        width = em.width if self.vector else 1
        type, itype = register_type(self.dtype, width), register_type(torch.int64, width)
        pairs = [
            (em.let(f"load {type}, ptr {b}"), em.let(f"load {itype}, ptr {a}"))
            for b, a in self.slots
        ]
        best, at = pairs[0]
        for other, other_at in pairs[1:]:
            best, at = self._better(best, at, other, other_at, width)
        while width > 1:
            half = width // 2
            best, other = _halves(em, best, self.dtype, width)
            at, other_at = _halves(em, at, torch.int64, width)
            best, at = self._better(best, at, other, other_at, half)
            width = half
        publish(em, value, Reg((at,), torch.int64))


# -- pieces
def publish(em: PhaseEmitter, value: Value, reg: Reg) -> None:
    """A finished reduction: known in this scope, and in scratch where other loops read it."""
    em.current.values[value] = reg
    if value in em.plan.carried:
        memory.write_part(em, value, "value", value.type.dtype, reg.names, em.current)
        em.filled.add(value)


# -----------------------------------------------------------------------------------------


def fold(names: list[str], join) -> str:  # type: ignore[no-untyped-def]
    """Combine pairwise: a balanced tree, whose order does not depend on timing."""
    while len(names) > 1:
        paired = [join(a, b) for a, b in zip(names[::2], names[1::2], strict=False)]
        names = paired + names[len(paired) * 2 :]
    return names[0]


def _halves(em: PhaseEmitter, name: str, dtype: torch.dtype, width: int) -> tuple[str, str]:
    """Lower and upper half of a vector (scalars when it has two lanes)."""
    type = register_type(dtype, width)
    if width == 2:
        return (
            em.let(f"extractelement {type} {name}, i64 0"),
            em.let(f"extractelement {type} {name}, i64 1"),
        )
    half = width // 2

    def part(first: int) -> str:
        numbers = ", ".join(f"i32 {first + i}" for i in range(half))
        return em.let(f"shufflevector {type} {name}, {type} poison, <{half} x i32> <{numbers}>")

    return part(0), part(half)


def horizontal(em: PhaseEmitter, name: str, dtype: torch.dtype, join) -> str:  # type: ignore[no-untyped-def]
    """Combine the lanes of a vector in a fixed tree."""
    width = em.width
    while width > 1:
        low, high = _halves(em, name, dtype, width)
        width //= 2
        name = join(low, high, width)
    return name


def fill_array(
    em: PhaseEmitter, op: Op, part: str, dtype: torch.dtype, value: float | int | bool
) -> None:
    """Set a scratch array to a reduction's identity, in vectors."""
    pointer, length = em.layout.pointer[op.result, part], em.layout.length[op.result]
    width = em.width
    stored = torch.uint8 if dtype is torch.bool else dtype
    type = register_type(stored, width)
    with em.loop(em.slot("i64", "fill"), "0", length, str(width), None, "fill") as index:
        target = em.let(f"getelementptr {register_type(stored)}, ptr {pointer}, i64 {index}", "p")
        em.line(
            f"store {type} {compute.number(value, stored, width)}, ptr {target}, "
            f"align {dtype.itemsize}"
        )
