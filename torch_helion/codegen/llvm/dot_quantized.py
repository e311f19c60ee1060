"""Products with a weight that is stored in bytes: widened, shifted and scaled in registers.

In: a `QuantizedSpec`: how the integers of B lie in bytes, what they are scaled by. Out: the text of
one function (and its tile), C[m, n] (+)= A[m, k] · W[k, n], where row n of the stored weight is a
stream of bytes along k and W = (integer - zero) * scale, zero and scale being numbers for each n,
or for each n and each group of neighbours along k.

A is converted to float32 once a call, in the order in which the integers come out of the bytes: of
nibbles the low halves of a vector of bytes are one vector, the high halves the next. A tile of rows
and columns keeps a vector of partial sums for each of its elements. A byte is widened by the load.
A nibble is the index of a table of sixteen floats, which is one instruction where a vector has
sixteen lanes: zero and scale are then applied to the table, once a group, not to the elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_helion.codegen.llvm.dot_few import sum_lanes
from torch_helion.codegen.llvm.dot_pack import PackText, Side
from torch_helion.codegen.llvm.dot_plan import Arithmetic, round_up
from torch_helion.codegen.llvm.dot_text import (
    FunctionText,
    lanes_below,
    masked_load,
    pointers_to,
    vector,
)
from torch_helion.codegen.llvm.dot_tile import multiply_add
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.text import storage_type
from torch_helion.codegen.llvm.vector_math import MathLibrary

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32)
"""Dtypes of scales and zeros."""
STEP = 16
"""Bytes of a row of B that are widened at once (fewer where vectors are shorter)."""
UNROLL = 4
"""Such vectors of a row in the body of a loop."""
COLUMNS = 4
"""Of a tile with one row: as many streams of B, and each vector of A meets as many."""
CHAINS = 8
"""Partial sums that go on side by side while each waits for its last product."""
ROOM = 256 << 10
"""Bytes of converted A that lie in the second cache beside the stream of B."""
MOST_ROOM = 4 << 20
"""Of one group, which is converted as a whole."""
PREFETCH_BYTES = 1024
"""How far ahead B is fetched along each of its rows: they are many streams, and the machine's own
prefetching stops at every page."""


@dataclass(frozen=True)
class QuantizedSpec:
    """What is known of a product when its kernel is printed."""

    a: torch.dtype
    b: torch.dtype
    """int8 or uint8."""
    m: int
    """The most rows."""
    k: int
    group: int
    """Neighbours along k that share zero and scale; k: all of them."""
    scale: torch.dtype | None
    zero: torch.dtype | None
    bits: int = 8
    halves: bool = False
    """Of nibbles: one of a byte belongs to the first half of a row, one to the second."""
    high_first: bool = False
    offset: float = 0.0
    """Of whole bytes: what is subtracted from each."""
    values: tuple[float, ...] = ()
    """Of nibbles: what each of the sixteen stands for."""

    @property
    def row_bytes(self) -> int:
        return self.k * self.bits // 8

    @property
    def grouped(self) -> bool:
        return self.group < self.k

    @property
    def group_bytes(self) -> int:
        """Bytes of a row between two changes of zero or scale."""
        if not self.grouped:
            return self.row_bytes
        return self.group if self.bits == 8 or self.halves else self.group // 2

    @property
    def vectors(self) -> int:
        """Vectors of integers that come out of one of bytes."""
        return 8 // self.bits

    def __str__(self) -> str:
        name = str(self.b).removeprefix("torch.")
        order = "halves" if self.halves else "high first" if self.high_first else "neighbours"
        bits = name if self.bits == 8 else f"nibbles of {name}, {order}"
        each = f"groups of {self.group}" if self.grouped else "rows"
        words = [w for w, d in (("zero", self.zero), ("scale", self.scale)) if d is not None]
        return f"[{self.m}, n] += A · {bits} over k {self.k}; {each}: {', '.join(words) or 'none'}"


def lanes_of(machine: Machine) -> int:
    return machine.vector_bits // 32


def supports(spec: QuantizedSpec, machine: Machine) -> bool:
    """Whether groups are whole vectors of bytes, and A fits beside them."""
    step = lanes_of(machine)
    if spec.grouped:
        whole = spec.group_bytes % step == 0 and spec.k % spec.group == 0
        if not whole or (spec.halves and spec.row_bytes % spec.group):
            return False
    if spec.bits == 4 and spec.k % 2:
        return False
    return spec.m * spec.group_bytes * spec.vectors * 4 <= MOST_ROOM


def block_bytes(spec: QuantizedSpec, machine: Machine) -> int:
    """Bytes of each row of B that one block of k has: whole groups."""
    whole = 4 * spec.m * spec.vectors * spec.row_bytes
    if whole <= ROOM or not spec.grouped:
        return spec.row_bytes
    return max(1, ROOM // (4 * spec.m * spec.vectors) // spec.group_bytes) * spec.group_bytes


def room_row(spec: QuantizedSpec, machine: Machine) -> int:
    """Bytes of a row of converted A."""
    step = lanes_of(machine)
    return round_up(block_bytes(spec, machine), step) * spec.vectors * 4 + 64


def scratch_bytes(spec: QuantizedSpec, machine: Machine) -> int:
    return 64 + round_up(spec.m, 4) * room_row(spec, machine)


PARAMETERS = (
    ("ptr noalias readonly", "a"),
    ("i64", "a_m"),
    ("ptr noalias readonly", "b"),
    ("i64", "b_n"),
    ("ptr noalias readonly", "scale"),
    ("i64", "scale_n"),
    ("i64", "scale_g"),
    ("ptr noalias readonly", "shift"),
    ("i64", "shift_n"),
    ("i64", "shift_g"),
    ("ptr noalias", "c"),
    ("i64", "c_m"),
    ("i64", "c_n"),
    ("i64", "m"),
    ("i64", "n"),
    ("i1", "zero"),
    ("ptr noalias", "scratch"),
)
"""Of the product's function; distances in bytes. `shift` is what is subtracted."""
TILE_PARAMETERS = (
    ("ptr noalias readonly", "a"),
    *PARAMETERS[2:13],
    ("i1", "first"),
    ("i64", "rows"),
    ("i64", "columns"),
    ("i64", "groups"),
    ("ptr noalias", "room"),
)
"""Of a tile: `a` is converted."""


class QuantizedText:
    """Writes the functions of one product."""

    def __init__(self, spec: QuantizedSpec, name: str, machine: Machine, math: MathLibrary) -> None:
        self.spec = spec
        self.name = name
        self.machine = machine
        self.math = math
        self.lanes = lanes_of(machine)
        masked = machine.vector_bits == 512
        self.how = Arithmetic("fma", "float", "float", 1, self.lanes, masked=masked)
        self.table = spec.bits == 4 and self.lanes == 16 and machine.is_x86
        self.rows = 1 if spec.m == 1 else 2 if spec.m == 2 else 4
        self._choose()

    def _choose(self) -> None:
        """Columns of a tile, bytes of a block, of what is between two changes of numbers."""
        spec, machine = self.spec, self.machine
        self.columns = min(COLUMNS if self.rows == 1 else 4, self.lanes // self.rows)
        self.unit = spec.group_bytes
        self.block = block_bytes(spec, machine)
        self.a_row = room_row(spec, machine)
        self.steps = next(
            (
                u
                for u in (UNROLL, 2)
                if spec.group_bytes % (u * self.lanes) == 0 or not spec.grouped
            ),
            1,
        )

    def texts(self) -> list[str]:
        """The product's function first."""
        return [self._driver(), self._tile(), self._convert()]

    # -- loops around tiles ----------------------------------------------------------------

    def _driver(self) -> str:
        f, spec = FunctionText(self.name, PARAMETERS, "noinline"), self.spec
        room = f.at("%scratch", 64)
        size = spec.a.itemsize * (1 if spec.halves else spec.vectors)
        with f.loop("0", str(spec.row_bytes), self.block, hint="k") as k:
            bytes = f.min(f.sub(str(spec.row_bytes), k.index), self.block)
            source = f.at("%a", f.mul(k.index, size))
            words = [("ptr", source), ("i64", "%a_m"), ("i64", "%m"), ("i64", bytes)]
            f.call("void", f"{self.name}_convert", *words, ("ptr", room))
            begins = f.let(f"and i1 %zero, {f.compare('eq', k.index, 0)}", "begins")
            groups = f.div(bytes, self.unit)
            first = f.div(k.index, spec.group_bytes)
            b = f.at("%b", k.index)
            scale = f.at("%scale", f.mul(first, "%scale_g"))
            shift = f.at("%shift", f.mul(first, "%shift_g"))
            with f.loop("0", "%n", self.columns, hint="j") as j:
                columns = f.min(f.sub("%n", j.index), self.columns)
                moved = [
                    (f.at(b, f.mul(j.index, "%b_n")), "%b_n"),
                    (f.at(scale, f.mul(j.index, "%scale_n")), "%scale_n", "%scale_g"),
                    (f.at(shift, f.mul(j.index, "%shift_n")), "%shift_n", "%shift_g"),
                ]
                with f.loop("0", "%m", self.rows, hint="i") as i:
                    rows = f.min(f.sub("%m", i.index), self.rows)
                    a = f.at(room, f.mul(i.index, self.a_row))
                    c = f.at(f.at("%c", f.mul(i.index, "%c_m")), f.mul(j.index, "%c_n"))
                    operands = [a, *(w for part in moved for w in part), c, "%c_m", "%c_n"]
                    operands += [begins, rows, columns, groups, "%scratch"]
                    types = [t.split()[0] for t, _ in TILE_PARAMETERS]
                    f.call("void", f"{self.name}_tile", *zip(types, operands, strict=True))
        return f.text(str(spec), kind="void")

    # -- A ----------------------------------------------------------------

    def _convert(self) -> str:
        """Rows of A as float32, in the order of B's integers, zeros behind the last."""
        parameters = [
            ("ptr noalias readonly", "a"),
            ("i64", "a_m"),
            ("i64", "m"),
            ("i64", "bytes"),
            ("ptr noalias", "to"),
        ]
        f = FunctionText(f"{self.name}_convert", parameters, "noinline")
        with f.loop("0", "%m", 1, hint="i") as i:
            row, to = f.at("%a", f.mul(i.index, "%a_m")), f.at("%to", f.mul(i.index, self.a_row))
            self._convert_rows(f, row, to)
        return f.text("A in the order of B's integers")

    def _convert_rows(self, f: FunctionText, row: str, to: str) -> None:
        """One row."""
        lanes = self.lanes
        whole = f.round_down("%bytes", lanes)
        for lo, hi, masked in (("0", whole, False), (whole, "%bytes", True)):
            with f.loop(lo, hi, lanes, hint="s") as s:
                left = f.sub("%bytes", s.index) if masked else None
                place = f.at(to, f.mul(s.index, 4 * self.spec.vectors))
                for number, x in enumerate(self._ordered(f, row, s.index, left)):
                    f.store(vector("float", lanes), x, f.at(place, 4 * lanes * number), 4)

    def _ordered(self, f: FunctionText, row: str, s: str, left: str | None) -> list[str]:
        """Vectors of A for the integers of the bytes from `s` on (`left`: how many there are)."""
        spec, lanes = self.spec, self.lanes
        size = spec.a.itemsize
        if spec.bits == 8 or spec.halves:
            parts = [f.at(row, f.mul(s, size))]
            if spec.halves:
                parts.append(f.at(parts[0], spec.row_bytes * size))
            return [self._elements(f, p, left) for p in parts[: spec.vectors]]
        start = f.at(row, f.mul(s, 2 * size))
        halves = []
        for part in range(2):
            there = None
            if left is not None:
                there = f.sub(f.mul(left, 2), part * lanes)
                there = f.call("i64", "@llvm.smax.i64", ("i64", there), ("i64", "0"))
            halves.append(self._elements(f, f.at(start, part * lanes * size), there))
        type = vector("float", lanes)
        even, odd = (f.shuffle(type, halves[0], halves[1], range(t, 2 * lanes, 2)) for t in (0, 1))
        return [odd, even] if spec.high_first else [even, odd]

    def _elements(self, f: FunctionText, pointer: str, left: str | None) -> str:
        side = PackText(Side(self.how, self.spec.a, "k", 1, 1), "", self.math)
        mask = None if left is None else lanes_below(f, f.min(left, self.lanes), self.lanes)
        return side.elements(f, pointer, self.lanes, mask)

    # -- a tile ----------------------------------------------------------------

    def _tile(self) -> str:
        f, spec = FunctionText(f"{self.name}_tile", TILE_PARAMETERS, "noinline"), self.spec
        a = pointers_to(f, "%a", str(self.a_row), "%rows", self.rows)
        b = pointers_to(f, "%b", "%b_n", "%columns", self.columns)
        scale = pointers_to(f, "%scale", "%scale_n", "%columns", self.columns)
        shift = pointers_to(f, "%shift", "%shift_n", "%columns", self.columns)
        type = vector("float", self.lanes)
        chains = self._chains
        start = [(type, "zeroinitializer")] * (self.rows * self.columns * chains)
        groups = "%groups" if spec.grouped else "1"
        with f.loop("0", groups, 1, start, "g") as g:
            numbers = self._numbers(f, scale, shift, g.index)
            first = f.mul(g.index, self.unit)
            g.next = self._group(f, a, b, first, numbers, g.values)
        totals = [
            self._added(f, g.values[at : at + chains]) for at in range(0, len(g.values), chains)
        ]
        self._store(f, sum_lanes(f, self.how, totals))
        return f.text(f"{self.rows} x {self.columns} sums along k")

    @property
    def _chains(self) -> int:
        """Partial sums of an element: several where few elements would wait for one another."""
        return 2 if 2 * self.rows * self.columns <= CHAINS else 1

    def _added(self, f: FunctionText, parts: Sequence[str]) -> str:
        if len(parts) == 1:
            return parts[0]
        return f.let(f"fadd {vector('float', self.lanes)} {parts[0]}, {parts[1]}")

    # -- zero and scale ----------------------------------------------------------------

    def _numbers(
        self, f: FunctionText, scale: list[str], shift: list[str], group: str
    ) -> list[list[list[str]]]:
        """For each column and vector of a step: a table, or what to subtract and multiply with."""
        spec, found = self.spec, []
        apart = spec.halves and spec.grouped
        for column in range(self.columns):
            each = []
            for part in range(spec.vectors if apart else 1):
                g = group
                if apart and part:
                    g = f.add(group, spec.row_bytes // spec.group)
                minus = self._number(f, spec.zero, f.at(shift[column], f.mul(g, "%shift_g")))
                times = self._number(f, spec.scale, f.at(scale[column], f.mul(g, "%scale_g")))
                each.append(self._prepared(f, minus, times))
            found.append(each if apart else each * spec.vectors)
        return found

    @property
    def _late(self) -> bool:
        """Whether the scale is applied to the sums of a group: one row has too few products of each
        weight to make up for scaling them all.
        """
        return self.spec.bits == 8 and self.rows == 1 and self.spec.scale is not None

    def _prepared(self, f: FunctionText, minus: str, times: str) -> list[str]:
        if not self.table:
            return [minus, times]
        values = ", ".join(f"float {v:.1f}" for v in self.spec.values)
        return [self._scaled(f, f"<{values}>", [minus, times])]

    def _scaled(self, f: FunctionText, x: str, numbers: Sequence[str]) -> str:
        type = vector("float", self.lanes)
        minus, times = numbers
        times = "" if self._late else times
        if minus:
            x = f.let(f"fsub {type} {x}, {minus}", "shifted")
        return f.let(f"fmul {type} {x}, {times}", "scaled") if times else x

    def _number(self, f: FunctionText, dtype: torch.dtype | None, pointer: str) -> str:
        """One number, in all lanes."""
        if dtype is None:
            return ""
        stored = storage_type(dtype)
        x = f.load(stored, pointer, dtype.itemsize)
        if dtype is torch.bfloat16:
            x = f.let(f"shl i32 {f.let(f'zext i16 {x} to i32')}, 16")
            x = f.let(f"bitcast i32 {x} to float")
        elif dtype is torch.float16:
            x = f.let(f"bitcast i16 {x} to half")
            x = f.let(f"fpext half {x} to float")
        elif not dtype.is_floating_point:
            word = "uitofp" if dtype is torch.uint8 else "sitofp"
            x = f.let(f"{word} {stored} {x} to float")
        return f.splat(x, "float", self.lanes)

    # -- along k ----------------------------------------------------------------

    def _group(
        self,
        f: FunctionText,
        a: list[str],
        b: list[str],
        first: str,
        numbers: list[list[list[str]]],
        totals: list[str],
    ) -> list[str]:
        """The sums after one group, which begins at the byte `first`."""
        spec, step = self.spec, self.steps * self.lanes
        type = vector("float", self.lanes)
        rows_b = [f.at(row, first) for row in b]
        rows_a = [f.at(row, f.mul(first, 4 * spec.vectors)) for row in a]
        end = spec.group_bytes
        whole = end // step * step
        before = totals
        totals = ["zeroinitializer"] * len(before) if self._late else before
        with f.loop("0", str(whole), step, [(type, t) for t in totals], "k") as k:
            now = list(k.values)
            self._fetch(f, b, f.add(first, k.index))
            for u in range(self.steps):
                at = f.add(k.index, u * self.lanes)
                now = self._step(f, rows_a, rows_b, at, numbers, now, u)
            k.next = now
        totals = k.values
        for u, last in enumerate(range(whole, end, self.lanes)):
            left = end - last if end - last < self.lanes else None
            totals = self._step(f, rows_a, rows_b, str(last), numbers, totals, u, left)
        if not self._late:
            return totals
        times = [numbers[at // self._chains][0][1] for at in range(len(totals))]
        return [
            multiply_add(f, self.how, total, part, scale)
            for total, part, scale in zip(before, totals, times, strict=True)
        ]

    def _fetch(self, f: FunctionText, b: list[str], at: str) -> None:
        """Ask for what each row holds further on; behind its end, for the rows of the next tile."""
        ahead = f.add(at, PREFETCH_BYTES)
        length = f.mul("%groups", self.unit)
        next = f.add(f.sub(ahead, length), f.mul("%b_n", self.columns))
        ahead = f.select(f.compare("slt", ahead, length), "i64", ahead, next)
        for row in b:
            f.prefetch(f.at(row, ahead))

    def _step(
        self,
        f: FunctionText,
        a: list[str],
        b: list[str],
        at: str,
        numbers: list[list[list[str]]],
        totals: list[str],
        turn: int,
        left: int | None = None,
    ) -> list[str]:
        """The sums after a further vector of bytes of each column."""
        spec, lanes, chains = self.spec, self.lanes, self._chains
        type, now = vector("float", lanes), list(totals)
        places = [f.at(row, f.mul(at, 4 * spec.vectors)) for row in a]
        xs = [
            [f.load(type, f.at(place, 4 * lanes * part), 4) for part in range(spec.vectors)]
            for place in places
        ]
        for column, row in enumerate(b):
            weights = self._weights(f, f.at(row, at), numbers[column], left)
            for part, w in enumerate(weights):
                for i in range(len(a)):
                    chain = (part if spec.vectors > 1 else turn) % chains
                    place = (i * self.columns + column) * chains + chain
                    now[place] = multiply_add(f, self.how, now[place], xs[i][part], w)
        return now

    def _weights(
        self, f: FunctionText, pointer: str, numbers: list[list[str]], left: int | None
    ) -> list[str]:
        """Vectors of weights out of one vector of bytes (of which `left` exist)."""
        lanes, type = self.lanes, vector("float", self.lanes)
        if left is None:
            raw = f.load(vector("i8", lanes), pointer, 1)
            return self._converted(f, raw, numbers)
        mask = lanes_below(f, str(left), lanes)
        found = self._converted(f, masked_load(f, "i8", lanes, pointer, mask, 1), numbers)
        flags = vector("i1", lanes)
        return [f.let(f"select {flags} {mask}, {type} {w}, {type} zeroinitializer") for w in found]

    def _converted(self, f: FunctionText, raw: str, numbers: list[list[str]]) -> list[str]:
        spec, lanes = self.spec, self.lanes
        bytes, type = vector("i8", lanes), vector("float", lanes)
        if spec.bits == 8:
            x = f.let(f"{'uitofp' if spec.b is torch.uint8 else 'sitofp'} {bytes} {raw} to {type}")
            if spec.offset:
                x = f.let(f"fsub {type} {x}, splat (float {spec.offset:.1f})")
            return [self._scaled(f, x, numbers[0])]
        wide = vector("i32", lanes)
        x = f.let(f"zext {bytes} {raw} to {wide}")
        order = (4, 0) if spec.high_first and spec.halves else (0, 4)
        moved = [f.let(f"lshr {wide} {x}, splat (i32 {n})") if n else x for n in order]
        return [self._looked_up(f, x, numbers[part]) for part, x in enumerate(moved)]

    def _looked_up(self, f: FunctionText, index: str, numbers: list[str]) -> str:
        """What the low four bits of each lane stand for."""
        lanes = self.lanes
        wide, type = vector("i32", lanes), vector("float", lanes)
        if self.table:
            symbol = "@llvm.x86.avx512.permvar.sf.512"  # looks at four bits of each lane only
            return f.call(type, symbol, (type, numbers[0]), (wide, index))
        x = f.let(f"and {wide} {index}, splat (i32 15)")
        low = self.spec.values[0]
        if self.spec.values[8] < low:  # signed: 8 to 15 stand for -8 to -1
            x = f.let(f"xor {wide} {x}, splat (i32 8)")
            low -= 8.0
        x = f.let(f"sitofp {wide} {x} to {type}")
        if low:
            x = f.let(f"fadd {type} {x}, splat (float {low:.1f})")
        return self._scaled(f, x, numbers)

    # -- C ----------------------------------------------------------------

    def _store(self, f: FunctionText, sums: str) -> None:
        """Add the lanes of one vector, row by row, to C."""
        lanes = vector("float", self.lanes)
        f.store(lanes, sums, "%room", 4)
        with f.loop("0", "%rows", 1) as row, f.loop("0", "%columns", 1) as column:
            source = f.at("%room", f.mul(f.add(f.mul(row.index, self.columns), column.index), 4))
            c = f.at(f.at("%c", f.mul(row.index, "%c_m")), f.mul(column.index, "%c_n"))
            before = f.select("%first", "float", "0.0", f.load("float", c, 4))
            f.store("float", f.let(f"fadd float {before}, {f.load('float', source, 4)}"), c, 4)
