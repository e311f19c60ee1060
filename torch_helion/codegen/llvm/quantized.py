"""Products whose weight is made of bytes in registers: finds them, calls `dot_quantized.py`.

In: a dot of a phase whose second operand is computed as `lowering/quantized.py` computes it:

    (integer of the bytes at [n, place of k] - zero[n, group of k]) * scale[n, group of k]

Out: a `Weight`, or None; and the call of the product's function. Such an operand is read where it
lies: nothing of it is stored. Everything else about the dot is as in `products.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from torch_helion.codegen.llvm import dot_quantized, memory
from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.dot_quantized import NUMBERS, QuantizedSpec
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Affine, Gather
from torch_helion.lowering.quantized import NIBBLE, Packing

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BYTES = (torch.int8, torch.uint8)
WIDE = (torch.int64, torch.int32, torch.float32)
MOST_ROWS = 64
"""Of a tile: with more, a weight that is computed once is read from cache more often."""


@dataclass(frozen=True)
class Weight:
    """The operands of a product with a quantised weight."""

    a: Op
    """Loads rows."""
    bytes: Op
    packing: Packing
    k: str
    length: int
    group: int
    scale: Op | None = None
    zero: Op | None = None


@dataclass(frozen=True)
class _Numbers:
    """A load of one number for each n, or each n and group."""

    load: Op
    group: int | None


def weight(program: Program, op: Op) -> Weight | None:
    """What a dot's function needs to know; None where it is another product."""
    key = (op, "quantized")
    if key not in program.recognised:
        program.recognised[key] = _weight(program, op)
    return program.recognised[key]


def _weight(program: Program, op: Op) -> Weight | None:
    if len(op.operands) > 2 or op.result.type.dtype is not torch.float32:
        return None
    k = op.attrs["k"]
    axis = program.axes[k]
    b = op.operands[1]
    names = [n for n in b.type.axis_names if n != k]
    if k in program.blocks or not isinstance(axis.size, int) or len(names) != 1:
        return None
    search = _Search(program, k, names[0], axis.size)
    a = search.rows(op.operands[0])
    found = search.weight(b)
    if a is None or found is None:
        return None
    found = replace(found, a=a)
    spec = _spec(program, found, program.blocks.get(search.row or "", 1))
    if spec.m > MOST_ROWS or not dot_quantized.supports(spec, program.machine):
        return None
    return found


class _Search:
    """Reads the operations behind the operands of one dot."""

    def __init__(self, program: Program, k: str, n: str, length: int) -> None:
        self.program = program
        self.k, self.n, self.length = k, n, length
        self.row: str | None = None

    def producer(self, value: Value) -> Op | None:
        return self.program.producer.get(value)

    # -- operands ----------------------------------------------------------------

    def rows(self, value: Value) -> Op | None:
        """The load of A behind its conversion: rows along k, side by side."""
        load = self._load(value, FLOATS)
        if load is None or load.access.gathered:
            return None
        terms, _ = memory.linear_terms(self._buffer(load), load.attrs["index"])
        names = [n for n in load.result.type.axis_names if n != self.k]
        if len(names) > 1 or self.n in names or terms.get(self.k) != 1:
            return None
        self.row = names[0] if names else None
        return load

    def weight(self, value: Value) -> Weight | None:
        scale = zero = None
        parts = self._numbers_of("mul", value)
        if parts is not None:
            value, scale = parts
        parts = self._numbers_of("sub", value)
        if parts is not None:
            value, zero = parts
        groups = {x.group for x in (scale, zero) if x is not None and x.group is not None}
        read = self._integers(value)
        if len(groups) > 1 or read is None:
            return None
        bytes, packing = read
        group = groups.pop() if groups else self.length
        if any(x is not None and x.group is None for x in (scale, zero)) and group < self.length:
            return None  # one for each n beside one for each group
        return Weight(
            bytes,
            bytes,
            packing,
            self.k,
            self.length,
            group,
            scale.load if scale is not None else None,
            zero.load if zero is not None else None,
        )

    def _numbers_of(self, fn: str, value: Value) -> tuple[Value, _Numbers] | None:
        """A value as another one, multiplied with (or less) one number for each n and group."""
        op = self.producer(value)
        if op is None or op.kind != "pointwise" or op.attrs["fn"] != fn:
            return None
        left, right = op.operands
        for inner, number in ((left, right), (right, left))[: 2 if fn == "mul" else 1]:
            numbers = self._numbers(number)
            if numbers is not None and self.k in inner.type.axis_names:
                return inner, numbers
        return None

    def _numbers(self, value: Value) -> _Numbers | None:
        load = self._load(value, NUMBERS)
        if load is None or self.n not in load.result.type.axis_names:
            return None
        if not set(load.result.type.axis_names) <= {self.n, self.k}:
            return None
        group: int | None = None
        for index in load.attrs["index"]:
            if isinstance(index, Affine):
                if any(name != self.n for name, _ in index.terms):
                    return None
            else:
                match self.form(load.access.gathered[index.operand]):
                    case ("shr", "k", int(bits)):
                        mine = 1 << bits
                    case ("floordiv", "k", int(mine)):
                        pass
                    case _:
                        return None
                if group is not None:
                    return None
                group = mine
        return _Numbers(load, group)

    def _load(self, value: Value, dtypes: tuple[torch.dtype, ...]) -> Op | None:
        """The load behind a value of float32, and behind the one conversion to that."""
        op = self.producer(value)
        if op is not None and op.kind == "cast":
            (value,) = op.operands
            op = self.producer(value)
        return op if op is not None and self._is_plain(op, dtypes) else None

    def _is_plain(self, op: Op, dtypes: tuple[torch.dtype, ...]) -> bool:
        if op.kind != "load" or op.result.type.dtype not in dtypes:
            return False
        if op.attrs["buffer"] in self.program.mutable or op.attrs.get("stacked"):
            return False
        return not op.attrs["masked"] and not op.attrs["checked"]

    def _buffer(self, load: Op) -> Any:
        return self.program.buffers[load.attrs["buffer"]]

    # -- integers ----------------------------------------------------------------

    def _integers(self, value: Value) -> tuple[Op, Packing] | None:
        """The load of the bytes behind a tile of integers, and how they lie."""
        match self.form(value):
            case ("load", bytes):
                return self._whole(bytes, 0)
            case ("sub", ("load", bytes), float(offset)) if offset.is_integer():
                return self._whole(bytes, int(offset))
            case ("sub", integers, float(offset)) if offset.is_integer():
                pass
            case integers:
                offset = 0.0
        signed = False
        match integers:
            case ("sub", ("xor", inner, 8), 8):
                integers, signed = inner, True
        match integers:
            case ("and", ("shr", ("load", bytes), shift), int(mask)) if mask == NIBBLE:
                return self._nibbles(bytes, shift, signed, int(offset))
        return None

    def _whole(self, bytes: Op, offset: int) -> tuple[Op, Packing] | None:
        """One integer a byte."""
        terms, _ = memory.linear_terms(self._buffer(bytes), bytes.attrs["index"])
        plain = not bytes.access.gathered and set(terms) <= {self.n, self.k}
        if not plain or terms.get(self.k) != 1:
            return None
        return bytes, Packing(offset=offset)

    def _nibbles(
        self, bytes: Op, shift: Any, signed: bool, offset: int
    ) -> tuple[Op, Packing] | None:
        """Two integers a byte, at a place and a shift that say which way."""
        gathered = bytes.access.gathered
        buffer, index = self._buffer(bytes), bytes.attrs["index"]
        terms, _ = memory.linear_terms(buffer, index)
        steps = [s for s, e in zip(buffer.strides, index, strict=True) if isinstance(e, Gather)]
        if len(gathered) != 1 or steps != [1] or set(terms) - {self.n}:
            return None
        half = self.length // 2
        order: tuple[bool, bool] | None = None
        match self.form(gathered[0]), shift:
            case ("shr", "k", 1), ("shl", ("and", "k", 1), 2):
                order = False, False
            case ("shr", "k", 1), ("shl", ("xor", ("and", "k", 1), 1), 2):
                order = False, True
            case (
                ("where", ("ge", "k", int(at)), ("sub", "k", int(start)), "k"),
                ("where", ("ge", "k", int(again)), int(second), int(first)),
            ) if at == start == again == half and {first, second} == {0, 4}:
                order = True, first == 4
        if order is None or self.length % 2:
            return None
        return bytes, Packing(4, *order, signed, offset)

    def form(self, value: Value) -> Any:
        """An expression over positions along k, numbers and loads of bytes, as nested tuples.

        Conversions between integers that hold every value of the bytes are left out.
        """
        op = self.producer(value)
        if op is None:
            return None
        if op.kind == "iota":
            return "k" if op.attrs["axis"] == self.k else None
        if op.kind == "const":
            return op.attrs["value"]
        if op.kind == "cast" and op.attrs["dtype"] in WIDE:
            return self.form(op.operands[0])
        if op.kind == "load":
            return ("load", op) if self._is_plain(op, BYTES) else None
        if op.kind == "pointwise":
            if op.attrs["fn"] == "sub" and op.result.type.dtype not in WIDE:
                return None  # it might wrap
            return (op.attrs["fn"], *(self.form(v) for v in op.operands))
        return None


# -- code ----------------------------------------------------------------


def _spec(program: Program, found: Weight, rows: int) -> QuantizedSpec:
    dtypes = [None if x is None else x.result.type.dtype for x in (found.scale, found.zero)]
    packing = found.packing
    return QuantizedSpec(
        found.a.result.type.dtype,
        found.bytes.result.type.dtype,
        rows,
        found.length,
        found.group,
        dtypes[0],
        dtypes[1],
        packing.bits,
        packing.halves,
        packing.high_first,
        float(packing.offset) if packing.bits == 8 else 0.0,
        tuple(packing.value(i) for i in range(16)) if packing.bits == 4 else (),
    )


def emit(program: Program, frame: Frame, op: Op, out: Array, found: Weight, zero: str) -> None:
    """Print the call of the product's function."""
    k, names = found.k, found.a.result.type.axis_names
    n = next(x for x in op.operands[1].type.axis_names if x != k)
    m = next((x for x in names if x != k), None)
    spec = _spec(program, found, program.blocks.get(m, 1) if m is not None else 1)
    a, a_at = _place(program, frame, found.a)
    b, b_at = _place(program, frame, found.bytes)
    words = [("ptr", a), ("i64", a_at.get(m or "", "0")), ("ptr", b), ("i64", b_at[n])]
    for load in (found.scale, found.zero):
        pointer, at = _place(program, frame, load) if load is not None else ("null", {})
        words += [("ptr", pointer), ("i64", at.get(n, "0")), ("i64", at.get("", "0"))]
    strides = [out.stride(name) if name else "0" for name in (m, n)]
    words += [("ptr", out.pointer), *(("i64", str(4 * int(s or 0))) for s in strides)]
    rows, columns = (program.tile_extent(frame, x) if x else "1" for x in (m, n))
    scratch = program.static(frame, dot_quantized.scratch_bytes(spec, program.machine), "widened")
    words += [("i64", rows), ("i64", columns), ("i1", zero), ("ptr", scratch)]
    symbol = program.settings.dots.use(spec)
    frame.line(f"call void {symbol}({', '.join(f'{t} {w}' for t, w in words)})")


def _place(program: Program, frame: Frame, load: Op) -> tuple[str, dict[str, str]]:
    """Where a load begins in this tile; distances in bytes along its axes, "" for groups."""
    em = program.emitter(frame)
    for name in (*program.looped_axes(load.result), *load.result.type.axis_names):
        em.index.setdefault(name, "0")
    buffer, index = program.buffers[load.attrs["buffer"]], load.attrs["index"]
    terms, constant = memory.linear_terms(buffer, index)
    pointer = memory.scalar_pointer(em, buffer, dict(terms), constant)
    size = buffer.dtype.itemsize
    strides = {name: frame.sizes(c * size) for name, c in terms.items()}
    for stride, place in zip(buffer.strides, index, strict=True):
        if isinstance(place, Gather):
            strides[""] = frame.sizes(stride * size)
    return pointer, strides
