"""Packing: a strided block of an operand into panels of units, converted on the way.

In: which side (A's rows or B's columns are the *width*), its dtype and which stride is one. Out:
text of functions. A panel is [step of k][`panel` units], so that a register tile reads one
contiguous stream; panels follow one another, each with room for `height` steps of k. A last unit of
k that is not full is filled up with zeros. Columns beyond the width hold anything: what a tile
computes of them is not kept.

Three ways, by the operand's layout: the width side by side (copied, neighbours along k
interleaved), k side by side (squares transposed in registers), and element by element for all other
strides, and for what is left at the edges where there are no masked loads. Nothing outside is
read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_helion.codegen.llvm.dot_plan import Arithmetic, DotPlan
from torch_helion.codegen.llvm.dot_text import (
    FunctionText,
    lanes_below,
    masked_load,
    masked_where,
    vector,
)
from torch_helion.codegen.llvm.text import storage_type
from torch_helion.codegen.llvm.vector_math import MathLibrary

HALVES = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float8_e4m3fn: "e4m3fn",
    torch.float8_e5m2: "e5m2",
}


ELEMENTS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "i16",
    torch.int8: "i8",
    torch.uint8: "i8",
}
"""Packed elements that are the stored ones."""
CHUNK = 256
"""Columns that are copied at a time: few streams are written, whole lines are read."""
PREFETCH_SQUARES = 2
"""How many squares ahead transposed columns are fetched, to the second cache: each is read as short
pieces of lines, too short for the machine to see what comes next."""
PREFETCH_ROWS = 8
"""How far ahead rows are fetched, to the second cache: neighbouring rows lie on different pages."""


@dataclass(frozen=True)
class Side:
    """One operand for packing."""

    how: Arithmetic
    dtype: torch.dtype
    unit_axis: str
    """"w": stride one along the width; "k": along k; "": neither."""
    panel: int
    strip: int
    """How many columns are copied at a time."""
    offset: bool = False

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def side_a(plan: DotPlan) -> Side:
    unit_axis = {"m": "w", "k": "k"}.get(plan.spec.a_unit, "")
    return Side(plan.how, plan.spec.a, unit_axis, plan.rows, plan.rows, plan.how.offset_a)


def side_b(plan: DotPlan) -> Side:
    unit_axis = {"n": "w", "k": "k"}.get(plan.spec.b_unit, "")
    return Side(plan.how, plan.spec.b, unit_axis, plan.columns, plan.how.lanes)


PACK_PARAMETERS = (
    ("ptr noalias readonly", "from"),
    ("i64", "k_step"),
    ("i64", "w_step"),
    ("i64", "k"),
    ("ptr noalias", "to"),
    ("i64", "height"),
    ("i64", "width"),
)
"""Distances in bytes; `k` and `width` exist; `height` is a multiple of `HEIGHT`."""
EDGE_PARAMETERS = (
    *PACK_PARAMETERS[:6],
    ("i64", "left"),
    ("i64", "right"),
    ("i64", "lo"),
    ("i64", "hi"),
)


class PackText:
    """Writes the packing functions of one operand."""

    def __init__(self, side: Side, name: str, math: MathLibrary) -> None:
        self.side = side
        self.how = side.how
        self.name = name
        self.math = math
        self.block = min(side.how.lanes, 32 // side.how.unit_bytes)
        """Side of a transposed square: 256-bit shuffles, of which most machines do two at a time
        (8 x 8 was as fast as 16 x 16 in 512 bits, and is a third of the code)."""

    # -- elements --------------------------------------------------------------------------------

    def elements(self, f: FunctionText, pointer: str, count: int, mask: str | None = None) -> str:
        """`count` elements that lie side by side (zero where masked off), ready to multiply."""
        dtype, element = self.side.dtype, self.how.element
        stored = storage_type(dtype)
        if mask is None:
            x = f.load(vector(stored, count), pointer, dtype.itemsize)
        else:
            x = masked_load(f, stored, count, pointer, mask, dtype.itemsize)
        target = vector(element, count)
        if dtype in HALVES and element == "float":
            return self._widen(f, x, count)
        if stored == "i8" and element in ("i16", "i32", "float"):
            words = ("sitofp", "uitofp") if element == "float" else ("sext", "zext")
            word = words[dtype is torch.uint8]
            return f.let(f"{word} {vector(stored, count)} {x} to {target}")
        if self.side.offset:
            flip = "-128" if count == 1 else "splat (i8 -128)"
            return f.let(f"xor {target} {x}, {flip}")
        return x

    def _widen(self, f: FunctionText, x: str, count: int) -> str:
        width = 1 << (count - 1).bit_length()  # the library has powers of two
        dtype = self.side.dtype
        stored = storage_type(dtype)
        if width != count:
            lanes = [min(i, count - 1) for i in range(width)]
            x = f.shuffle(vector(stored, count), x, "poison", lanes)
        symbol = self.math.use(f"{HALVES[dtype]}_to_f32", "f32", width)
        x = f.call(vector("float", width), symbol, (vector(stored, width), x))
        if width != count:
            x = f.shuffle(vector("float", width), x, "poison", range(count))
        return x

    def interleave(self, f: FunctionText, rows: list[str], width: int) -> str:
        """Rows of `width` elements, one a step of k, as a vector of units."""
        element, bits = self.how.element, {"i8": 8, "i16": 16}.get(self.how.element, 0)
        while len(rows) > 1:
            order = [x for i in range(width) for x in (i, width + i)]
            type = vector(element, width)
            rows = [
                f.let(
                    f"bitcast {vector(element, 2 * width)} "
                    f"{f.shuffle(type, a, b, order)} to {vector(f'i{2 * bits}', width)}"
                )
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
            element, bits = f"i{2 * bits}", 2 * bits
        return rows[0]

    # -- whole functions -------------------------------------------------------------------------

    def texts(self) -> list[str]:
        """The packing function `name` and, where it is called, its helper for edges."""
        pack = self._pack()
        return [pack, self._edge()] if f"{self.name}_edge(" in pack else [pack]

    def _pack(self) -> str:
        f = FunctionText(self.name, PACK_PARAMETERS, "noinline")
        units = f.ceil_div("%k", self.how.group, "units")
        if self.side.unit_axis == "w" and self.side.strip > 1:
            self._side_by_side(f, units)
        elif self.side.unit_axis == "k" and self.side.panel % self.block == 0:
            self._transposed(f, units)
        else:
            self._by_element(f, "0", "%width", "0", units)
        return f.text(
            f"pack {self.side.dtype}, stride one along {self.side.unit_axis or 'nothing'}"
        )

    def _side_by_side(self, f: FunctionText, units: str) -> None:
        """Some panels at a time: step over k and copy a row of them, strip by strip."""
        side = self.side
        chunk = max(1, CHUNK // side.panel) * side.panel
        columns, steps = "%width", units
        if not self.how.masked:
            columns = f.round_down("%width", side.strip, "columns")
            steps = f.div("%k", self.how.group, "steps")
        with f.loop("0", columns, chunk, hint="p") as p:
            end = f.min(f.add(p.index, chunk), columns)
            with (
                f.loop("0", steps, 1, hint="u") as u,
                f.loop(p.index, end, side.strip, hint="w") as w,
            ):
                self._strip(f, w.index, u.index)
        if not self.how.masked:
            self._by_element(f, columns, "%width", "0", units)
            if self.how.group > 1:
                self._by_element(f, "0", columns, steps, units)

    def _strip(self, f: FunctionText, w: str, u: str) -> None:
        """One unit of k of the strip that begins at column `w`."""
        side, group = self.side, self.how.group
        here = f.at("%from", f.mul(w, side.itemsize))
        mask = None
        if self.how.masked:
            mask = lanes_below(f, f.min(f.sub("%width", w), side.strip), side.strip)
        rows = []
        for t in range(group):
            k = f.add(f.mul(u, group), t)
            place, exists = f.at(here, f.mul(k, "%k_step")), mask
            f.prefetch(f.at(place, f.mul("%k_step", PREFETCH_ROWS)), level=2)
            if t and mask is not None:
                exists = masked_where(f, mask, side.strip, f.compare("slt", k, "%k"))
            rows.append(self.elements(f, place, side.strip, exists))
        to = f.at(self._place(f, w, side.strip), f.mul(u, side.panel * self.how.unit_bytes))
        units = self.interleave(f, rows, side.strip)
        f.store(vector(self.how.unit, side.strip), units, to, self.how.unit_bytes)

    def _place(self, f: FunctionText, w: str, step: int) -> str:
        """Where the first unit of column `w` goes; columns are taken in steps of `step`."""
        bytes, side = self.how.unit_bytes, self.side
        if side.panel == step:
            return f.at("%to", f.mul(f.mul(w, "%height"), bytes))
        panel = f.round_down(w, side.panel, "panel")
        to = f.at("%to", f.mul(f.mul(panel, "%height"), bytes))
        return f.at(to, f.mul(f.sub(w, panel), bytes))

    def _transposed(self, f: FunctionText, units: str) -> None:
        """k side by side: transpose squares of units in registers."""
        size, group = self.block, self.how.group
        whole = f.round_down(f.div("%k", group), size, "whole")
        last = f.sub("%width", 1)
        with f.loop("0", "%width", size, hint="w") as w:
            rows = [  # a column that does not exist is the last one
                f.at("%from", f.mul(f.min(f.add(w.index, i), last), "%w_step")) for i in range(size)
            ]
            to = self._place(f, w.index, size)
            with f.loop("0", units if self.how.masked else whole, size, hint="u") as u:
                mask = None
                if self.how.masked:
                    left = f.min(f.sub("%k", f.mul(u.index, group)), size * group)
                    mask = lanes_below(f, left, size * group)
                self._square(f, rows, u.index, to, mask)
        if not self.how.masked:
            self._by_element(f, "0", "%width", whole, units)

    def _square(self, f: FunctionText, rows: list[str], u: str, to: str, mask: str | None) -> None:
        side, size, bytes = self.side, self.block, self.how.unit_bytes
        count = size * self.how.group
        type, raw = vector(self.how.unit, size), vector(self.how.element, count)
        off = f.mul(u, self.how.group * side.itemsize)
        ahead = f.add(off, f.mul("%w_step", size * PREFETCH_SQUARES))
        for row in rows:
            f.prefetch(f.at(row, ahead), level=2)
        block = [self.elements(f, f.at(r, off), count, mask) for r in rows]
        if raw != type:
            block = [f.let(f"bitcast {raw} {x} to {type}") for x in block]
        place = f.at(to, f.mul(u, side.panel * bytes))
        for i, x in enumerate(transpose(f, type, block)):
            f.store(type, x, f.at(place, i * side.panel * bytes), bytes)

    # -- element by element ----------------------------------------------------------------------

    def _by_element(self, f: FunctionText, left: str, right: str, lo: str, hi: str) -> None:
        """Columns [left, right), units [lo, hi)."""
        names = [n for _, n in EDGE_PARAMETERS[:6]]
        words = [*(f"%{n}" for n in names), left, right, lo, hi]
        types = [t.split()[0] for t, _ in EDGE_PARAMETERS]
        f.call("void", f"{self.name}_edge", *zip(types, words, strict=True))

    def _edge(self) -> str:
        f = FunctionText(f"{self.name}_edge", EDGE_PARAMETERS, "noinline")
        f.allocas += ["  %nothing = alloca i64, align 8", "  store i64 0, ptr %nothing"]
        f.names.fresh("nothing")
        side, bytes = self.side, self.how.unit_bytes
        with f.loop("%left", "%right", 1, hint="w") as w:
            source = f.at("%from", f.mul(w.index, "%w_step"))
            to = self._place(f, w.index, 1)
            with f.loop("%lo", "%hi", 1, hint="u") as u:
                unit = self._unit(f, u.index, source)
                f.store(self.how.unit, unit, f.at(to, f.mul(u.index, side.panel * bytes)), bytes)
        return f.text()

    def _unit(self, f: FunctionText, u: str, source: str) -> str:
        """One unit from up to `group` elements; zero stands for those that do not exist."""
        group, bits = self.how.group, {"i8": 8, "i16": 16}.get(self.how.element, 0)
        unit = ""
        for t in range(group):
            k = f.add(f.mul(u, group), t)
            place = f.at(source, f.mul(k, "%k_step"))
            if t:
                place = f.select(f.compare("slt", k, "%k"), "ptr", place, "%nothing")
            x = self.elements(f, place, 1)
            if group == 1:
                return x
            x = f.let(f"zext {self.how.element} {x} to i32")
            unit = f.let(f"or i32 {unit}, {f.let(f'shl i32 {x}, {bits * t}')}") if t else x
        return unit

    def copy_rows(self, name: str) -> str:
        """Rows with k side by side, converted, the last unit padded with zeros."""
        parameters = [
            ("ptr noalias readonly", "from"),
            ("i64", "w_step"),
            ("i64", "rows"),
            ("i64", "k"),
            ("ptr noalias", "to"),
            ("i64", "to_row"),
        ]
        f = FunctionText(name, parameters, "noinline")
        how, item = self.how, self.side.itemsize
        units = f.ceil_div("%k", how.group)
        plain = how.element == ELEMENTS.get(self.side.dtype) and not self.side.offset
        with f.loop("0", "%rows", 1, hint="row") as r:
            source = f.at("%from", f.mul(r.index, "%w_step"))
            to = f.at("%to", f.mul(r.index, "%to_row"))
            if how.group > 1:
                last = f.mul(f.sub(units, 1), how.unit_bytes)
                f.store("i32", "0", f.at(to, last), 4)
            if plain:
                f.copy_bytes(to, source, f.mul("%k", item))
            else:
                self._converted_row(f, source, to)
        return f.text(f"rows of {self.side.dtype}")

    def _converted_row(self, f: FunctionText, source: str, to: str) -> None:
        how, item = self.how, self.side.itemsize
        bytes = how.unit_bytes // how.group
        whole = f.round_down("%k", how.lanes * how.group)
        for lo, hi, count in (("0", whole, how.lanes * how.group), (whole, "%k", 1)):
            with f.loop(lo, hi, count, hint="k") as k:
                x = self.elements(f, f.at(source, f.mul(k.index, item)), count)
                f.store(vector(how.element, count), x, f.at(to, f.mul(k.index, bytes)), bytes)


def transpose(f: FunctionText, type: str, rows: list[str]) -> list[str]:
    """The transposed square of lanes, by exchanging blocks of half, a quarter, ... of its side."""
    size = len(rows)
    step = size // 2
    while step:
        after = list(rows)
        low = [i if not i & step else i - step + size for i in range(size)]
        high = [i + step if not i & step else i + size for i in range(size)]
        for i in range(size):
            if not i & step:
                after[i] = f.shuffle(type, rows[i], rows[i + step], low)
                after[i + step] = f.shuffle(type, rows[i], rows[i + step], high)
        rows = after
        step //= 2
    return rows
