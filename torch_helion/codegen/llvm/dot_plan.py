"""What a product is and how it will be computed: arithmetic, register tile, blocks for the caches.

In: a `DotSpec` (dtypes, largest extents, which strides are one) and a machine. Out: a `DotPlan`, a
value that the printing files read and that `scratch_bytes` sums up. No text is made here.

Units. One lane of a packed operand is a *unit*: `group` neighbours along k that one instruction
multiplies and adds up (1 for fma, 2 for bf16 pairs and 16-bit integers, 4 for bytes). A unit is as
wide as an accumulator lane (4 bytes, 8 in float64), so register tiles do not care what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from torch_helion import exc
from torch_helion.codegen.llvm.engine import Machine

INTEGERS = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class DotSpec:
    """A product as far as it is known when its kernel is printed."""

    a: torch.dtype
    b: torch.dtype
    acc: torch.dtype
    m: int
    n: int
    k: int
    a_unit: str = "k"
    """The axis of A whose stride is one: "k", "m", or "" for neither."""
    b_unit: str = "n"
    """The axis of B whose stride is one: "n", "k", or "" for neither."""

    @staticmethod
    def of(
        a: torch.dtype,
        b: torch.dtype,
        acc: torch.dtype,
        maxima: tuple[int, int, int],
        a_strides: tuple[str, str],
        b_strides: tuple[str, str],
    ) -> DotSpec:
        """The spec of operands with these strides: A's along (m, k), B's along (k, n)."""
        a_unit = "k" if a_strides[1] == "1" else "m" if a_strides[0] == "1" else ""
        b_unit = "n" if b_strides[1] == "1" else "k" if b_strides[0] == "1" else ""
        m, n, k = (max(1, extent) for extent in maxima)
        return DotSpec(a, b, acc, m, n, k, a_unit, b_unit)


@dataclass(frozen=True)
class Arithmetic:
    """How products of units are added to accumulator lanes."""

    kind: str
    """"fma", "bf16" (pairs), "vnni" (unsigned by signed bytes), "madd" (16-bit pairs), "mul"."""
    lane: str
    """LLVM type of an accumulator lane."""
    element: str
    """LLVM type of one packed element."""
    group: int
    lanes: int
    offset_a: bool = False
    """A's bytes are stored with 128 added, and B's column sums are taken back."""
    masked: bool = False
    """Masked loads are one instruction."""

    @property
    def unit(self) -> str:
        """LLVM type of a unit in memory."""
        return self.element if self.group == 1 else "i32"

    @property
    def unit_bytes(self) -> int:
        return 8 if self.lane == "double" else 4

    @property
    def vector_bytes(self) -> int:
        return self.lanes * self.unit_bytes


def arithmetic(spec: DotSpec, machine: Machine) -> Arithmetic:
    """The instructions for these dtypes on this machine."""
    return replace(_arithmetic(spec, machine), masked=machine.vector_bits == 512)


def _arithmetic(spec: DotSpec, machine: Machine) -> Arithmetic:
    bits, form = machine.vector_bits, form_of(spec, machine)
    if spec.acc is torch.float64 and spec.a is spec.b is torch.float64:
        return Arithmetic("fma", "double", "double", 1, bits // 64)
    floats = [d for d in (spec.a, spec.b) if d.is_floating_point]
    if spec.acc is torch.float32 and floats and {spec.a, spec.b} <= {*floats, *INTEGERS}:
        pairs = spec.a is spec.b is torch.bfloat16 and form != "rows"
        if pairs and bits == 512 and machine.has("avx512bf16"):
            return Arithmetic("bf16", "float", "i16", 2, 16)
        if torch.float64 not in (spec.a, spec.b):
            return Arithmetic("fma", "float", "float", 1, bits // 32)
    if spec.acc is torch.int32 and spec.a in INTEGERS and spec.b in INTEGERS:
        return _integer_arithmetic(spec, machine, form)
    raise exc.CodegenError(f"llvm: no product of {spec.a} and {spec.b} in {spec.acc}")


def _integer_arithmetic(spec: DotSpec, machine: Machine, form: str) -> Arithmetic:
    bits = machine.vector_bits
    if form == "rows" or not machine.is_x86:
        return Arithmetic("mul", "i32", "i32", 1, bits // 32)
    if form == "panels" and bits == 512 and machine.has("avx512vnni") and spec.b is torch.int8:
        return Arithmetic("vnni", "i32", "i8", 4, 16, offset_a=spec.a is torch.int8)
    return Arithmetic("madd", "i32", "i16", 2, bits // 32)


@dataclass(frozen=True)
class DotPlan:
    """A spec with everything chosen. Its extents may be larger ones than were asked for, where the
    code is the same: equal plans are one function."""

    spec: DotSpec
    how: Arithmetic
    form: str
    """"panels" (B packed), "direct" (B read in place), "inner" (both along k), "rows" (B's rows
    added up)."""
    rows: int
    """Rows of a register tile."""
    columns: int
    """Columns of a register tile."""
    a_form: str
    """"direct" (in place where possible), "copy" (converted, rows side by side), "panels"."""
    kc: int
    nc: int
    mc: int

    def __str__(self) -> str:
        spec = self.spec
        a, b, acc = (str(d).removeprefix("torch.") for d in (spec.a, spec.b, spec.acc))
        layout = f"stride one: A {spec.a_unit or 'none'}, B {spec.b_unit or 'none'}"
        return f"{acc} += {a} · {b}, {layout}, {self.form}, {self.rows} x {self.columns}"

    @property
    def vectors(self) -> int:
        """Vectors of a row of a register tile."""
        return -(-self.columns // self.how.lanes)

    @property
    def units(self) -> int:
        """Units of a whole block of k."""
        return -(-self.kc // self.how.group)

    @property
    def a_row_bytes(self) -> int:
        """Row stride of copied rows of A; odd multiples of a line, so that rows differ in set."""
        lines = -(-self.units * self.how.unit_bytes // 64)
        return (lines | 1) * 64

    @property
    def strip(self) -> bool:
        """Whether C's rows may be one row tile, used again for each: they are complete at once."""
        return self.form in ("panels", "direct") and self.spec.k <= self.kc

    @property
    def height(self) -> int:
        """Steps of k that a packed panel has room for."""
        return odd_multiple(self.units, HEIGHT)

    def layout(self) -> dict[str, int]:
        """Where each part lies in scratch, and "total"."""
        how, unit = self.how, self.how.unit_bytes
        sizes = {"b": 0, "a": 0, "sums": 0, "tile": how.vector_bytes * self.rows * self.vectors}
        if self.form == "panels":
            sizes["b"] = self.height * round_up(self.nc, self.columns) * unit
            sizes["sums"] = round_up(self.nc, self.columns) * 4 if how.offset_a else 0
        elif self.form == "rows":
            sizes["b"] = self.spec.n * unit if self.rows > 1 else 0
        if self.form in ("panels", "direct"):
            panels = self.height * round_up(self.mc, self.rows) * unit
            sizes["a"] = panels if self.a_form == "panels" else self.rows * self.a_row_bytes
        offsets, total = {}, 0
        for name, size in sizes.items():
            offsets[name] = total
            total += round_up(size, 64)
        return {**offsets, "total": total}


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def odd_multiple(value: int, multiple: int) -> int:
    return (-(-value // multiple) | 1) * multiple


HEIGHT = 8
"""Panels have room for an odd multiple of this many steps of k: whole squares are transposed, and
neighbouring panels, which are written side by side, do not begin in the same set of L1."""
KC_UNITS = 512
"""Units along k of a packed block: a tile of A's rows stays in L1 over all panels."""
PANEL_BYTES = {512: 512 << 10, 256: 192 << 10, 128: 192 << 10}
"""By vector bits, of the packed block of B: it stays in L2 over all rows (1 MiB or more where there
are 512-bit vectors, 256 KiB or more elsewhere)."""
A_BYTES = 256 << 10
"""Of the packed block of A where A is packed whole."""
INNER_ROWS = 32
"""Up to this many rows, two operands that both run along k are multiplied without packing."""
INNER_COLUMNS = 8
"""Or that many columns: a register tile would compute most of its lanes in vain."""
STREAMED_ROWS = 4
"""Up to this many rows, B with its columns side by side is read as a few sequential streams."""
DIRECT_ROWS = 16
"""Up to this many rows, B with its columns side by side is read in place (by masked loads)."""
INNER_UNITS = 1024
"""Units along k of a block in form "inner" with more than one row tile: B's rows stay in L1."""
UNBLOCKED = 1 << 40
MANY = 1 << 20
MANY_ROWS, MANY_COLUMNS = 64, 64
"""From here on, extents do not change the code of panels."""


@lru_cache(maxsize=512)
def plan(spec: DotSpec, machine: Machine) -> DotPlan:
    """All choices for a product."""
    how, form = arithmetic(spec, machine), form_of(spec, machine)
    if form in ("inner", "rows"):
        rows, columns = _inner_tile(spec, how) if form == "inner" else (spec.m, how.lanes)
        kc = INNER_UNITS * how.group if spec.m > rows else UNBLOCKED
        if form == "inner":
            spec = replace(spec, m=rows if spec.m <= rows else INNER_ROWS, n=MANY, k=MANY)
        return DotPlan(spec, how, form, rows, columns, "direct", kc, 0, 0)
    a_form = _a_form(spec, how)
    spec = _likeness(spec, how, a_form)
    rows, vectors = _register_tile(spec, how, machine)
    columns = vectors * how.lanes
    kc = min(round_up(spec.k, how.group), KC_UNITS * how.group * 4 // how.unit_bytes)
    unit_row = -(-kc // how.group) * how.unit_bytes
    nc = max(columns, PANEL_BYTES[machine.vector_bits] // unit_row // columns * columns)
    nc = min(nc, round_up(spec.n, columns))
    mc = round_up(spec.m, rows)
    if a_form == "panels":
        mc = min(mc, max(rows, A_BYTES // unit_row // rows * rows))
    return DotPlan(spec, how, form, rows, columns, a_form, kc, nc, mc)


def _likeness(spec: DotSpec, how: Arithmetic, a_form: str) -> DotSpec:
    """The largest product with the same code: kernels whose tiles only differ in size share it.

    Where k is one block, scratch is only as large as this product needs it.
    """
    many_k = spec.k > KC_UNITS * how.group * 4 // how.unit_bytes
    if spec.m >= MANY_ROWS and (many_k or a_form != "panels"):
        spec = replace(spec, m=MANY)
    if many_k and spec.n >= MANY_COLUMNS and spec.n % 64 == 0:
        spec = replace(spec, n=MANY)
    return replace(spec, k=MANY) if many_k else spec


def form_of(spec: DotSpec, machine: Machine) -> str:
    """Where an element of B meets few rows of A, packing it costs more than it gives."""
    if spec.a_unit == spec.b_unit == "k":
        narrow = spec.n <= INNER_COLUMNS and spec.k >= 8 * INNER_COLUMNS
        if narrow or (spec.m <= INNER_ROWS and spec.k >= 8 * spec.m):
            return "inner"  # for short k, summing the lanes costs more than packing
    if spec.b_unit == "n" and spec.m <= STREAMED_ROWS:
        return "rows"
    in_place = spec.b_unit == "n" and spec.m <= DIRECT_ROWS and spec.acc is not torch.int32
    return "direct" if in_place and machine.vector_bits == 512 else "panels"


def _inner_tile(spec: DotSpec, how: Arithmetic) -> tuple[int, int]:
    """Rows × columns, together as many as a vector has lanes."""
    rows = 1
    while rows < min(spec.m, 4) and rows * rows < how.lanes:
        rows *= 2
    return rows, how.lanes // rows


def _a_form(spec: DotSpec, how: Arithmetic) -> str:
    if spec.a_unit != "k":
        return "panels"
    native = {"float": torch.float32, "double": torch.float64}.get(how.element)
    if spec.a is native or how.kind == "bf16" or (how.kind == "vnni" and not how.offset_a):
        return "direct"
    return "copy"


TILES_OF_32 = ((6, 4), (8, 3), (12, 2), (14, 1))
"""Rows and vectors of register tiles where a program can name 32 vector registers."""
TILES_OF_16 = ((6, 2), (6, 1))
STRIP_ROWS = 0.9
"""What packing a strip of A's columns costs, in rows of register tiles."""
FEW_OF_32 = {1: 8, 2: 8, 3: 8, 4: 6, 5: 4}
"""Vectors of tiles of fewer rows."""
FEW_OF_16 = {1: 4, 2: 4, 3: 3, 4: 3, 5: 2}


def _register_tile(spec: DotSpec, how: Arithmetic, machine: Machine) -> tuple[int, int]:
    """Rows and vectors of a tile: accumulators fill the registers, few are computed in vain."""
    tiles = TILES_OF_32 if machine.registers >= 32 else TILES_OF_16
    few = FEW_OF_32 if machine.registers >= 32 else FEW_OF_16
    needed = -(-spec.n // how.lanes)
    if spec.m in few:
        return spec.m, min(few[spec.m], needed)

    # Read in place, B is converted again for each row tile.
    in_place = form_of(spec, machine) == "direct"

    def cost(tile: tuple[int, int]) -> float:
        rows, vectors = tile
        row_tiles, wide = -(-spec.m // rows), round_up(needed, vectors)
        narrow = 1.2 if vectors == 1 else 1.0
        strips = 1 + STRIP_ROWS / rows if spec.a_unit == "m" else 1.0
        return wide * row_tiles * strips * (rows * narrow + (3 if in_place else 0))

    return min(tiles, key=lambda tile: (cost(tile), -tile[1]))
