"""The register tile of a product: rows × vectors of accumulators in registers over a block of k.

In: a `DotPlan`. Out: the text of two functions: `tile`, which is handed a full tile's pointers and
needs no bounds, and `edge`, which runs it on a small array for tiles that the extents cut.

One step of k loads a row of a panel of B (`vectors` registers) and multiplies it with one unit of
each row of A, broadcast. A tile of A is either rows (a run-time distance apart, units side by side)
or a panel (the rows' units side by side); a panel of B is contiguous, B in place has a run-time row
distance.
"""

from __future__ import annotations

from torch_helion.codegen.llvm.dot_pack import PackText, side_b
from torch_helion.codegen.llvm.dot_plan import Arithmetic, DotPlan
from torch_helion.codegen.llvm.dot_text import FunctionText, lanes_below, masked_where, vector
from torch_helion.codegen.llvm.vector_math import MathLibrary

PREFETCH_ROWS = 32
"""How far ahead rows of B in place are fetched, to the second cache: neighbouring rows lie on
different pages."""


def multiply_add(f: FunctionText, how: Arithmetic, acc: str, a: str, b: str) -> str:
    """acc + a * b, lane by lane; a and b are vectors of units."""
    lanes, type = how.lanes, vector(how.lane, how.lanes)
    units = vector(how.unit, lanes)
    if how.kind == "fma":
        suffix = "f64" if how.lane == "double" else "f32"
        return f.call(type, f"@llvm.fmuladd.v{lanes}{suffix}", (type, a), (type, b), (type, acc))
    if how.kind == "bf16":
        pairs = vector("bfloat", 2 * lanes)
        a, b = (f.let(f"bitcast {units} {x} to {pairs}") for x in (a, b))
        symbol = "@llvm.x86.avx512bf16.dpbf16ps.512"
        return f.call(type, symbol, (type, acc), (pairs, a), (pairs, b))
    if how.kind == "vnni":
        quads = vector("i8", 4 * lanes)
        a, b = (f.let(f"bitcast {units} {x} to {quads}") for x in (a, b))
        return f.call(type, "@llvm.x86.avx512.vpdpbusd.512", (type, acc), (quads, a), (quads, b))
    if how.kind == "madd":
        pairs = vector("i16", 2 * lanes)
        a, b = (f.let(f"bitcast {units} {x} to {pairs}") for x in (a, b))
        symbol = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[lanes]
        b = f.call(type, f"@llvm.x86.{symbol}", (pairs, a), (pairs, b))
    else:
        b = f.let(f"mul {type} {a}, {b}")
    return f.let(f"add {type} {acc}, {b}")


TILE_PARAMETERS = (
    ("ptr noalias readonly", "a"),
    ("i64", "a_row"),
    ("ptr noalias readonly", "b"),
    ("i64", "b_row"),
    ("ptr noalias", "c"),
    ("i64", "c_row"),
    ("i64", "units"),
    ("i1", "zero"),
    ("ptr", "sums"),
    ("i64", "depth"),
    ("i64", "columns"),
)
"""Of `tile`; distances in bytes. `zero`: start at zero, not at C. `sums`: only with `offset_a`.
`depth` (elements of k) and `columns` that exist: only for B in place."""


def tile(plan: DotPlan, name: str, math: MathLibrary) -> str:
    """The function of a full tile."""
    f = FunctionText(name, TILE_PARAMETERS, "noinline")
    how, vectors = plan.how, plan.vectors
    type = vector(how.lane, how.lanes)
    c_rows = [f.at("%c", f.mul("%c_row", i), "c") for i in range(plan.rows)]
    places = [f.at(c, how.vector_bytes * v) for c in c_rows for v in range(vectors)]
    for place in places[:: max(1, 64 // how.vector_bytes)]:
        f.prefetch(place, write=True)  # is here when the loop over k ends
    totals = _steps(f, plan, math, ["zeroinitializer"] * len(places))
    if how.offset_a:
        totals = _take_back(f, plan, totals)

    def added(place: str, total: str) -> str:
        return add(f, how, f.load(type, place, how.unit_bytes), total, how.lanes)

    last = f.choose(
        "%zero",
        lambda: totals,
        lambda: [added(p, t) for p, t in zip(places, totals, strict=True)],
        type,
    )
    for place, value in zip(places, last, strict=True):
        f.store(type, value, place, how.unit_bytes)
    return f.text(f"{plan.rows} rows x {vectors} vectors of {how.kind}")


def add(f: FunctionText, how: Arithmetic, a: str, b: str, width: int) -> str:
    """The sum of accumulator lanes."""
    word = "add" if how.lane == "i32" else "fadd"
    return f.let(f"{word} {vector(how.lane, width)} {a}, {b}")


def _take_back(f: FunctionText, plan: DotPlan, totals: list[str]) -> list[str]:
    """Subtract what A's offset adds: 128 times the sum of B's column."""
    type = vector(plan.how.lane, plan.how.lanes)
    sums = [f.load(type, f.at("%sums", 4 * plan.how.lanes * v), 4) for v in range(plan.vectors)]
    return [f.let(f"sub {type} {c}, {sums[i % plan.vectors]}") for i, c in enumerate(totals)]


def _steps(f: FunctionText, plan: DotPlan, math: MathLibrary, first: list[str]) -> list[str]:
    """The loop over units of k."""
    how, vectors = plan.how, plan.vectors
    type, bytes = vector(how.lane, how.lanes), how.unit_bytes
    in_place = _BInPlace(f, plan, math) if plan.form == "direct" else None
    a_rows = [f.at("%a", f.mul("%a_row", i), "a") for i in range(plan.rows)]
    with f.loop("0", "%units", 1, [(type, c) for c in first], "u") as at:
        b = in_place.row(at.index) if in_place else _packed_row(f, plan, at.index)
        for i in range(plan.rows):
            if plan.a_form == "panels":
                here = f.at(f.at("%a", f.mul(at.index, plan.rows * bytes), "a"), i * bytes)
            else:
                here = f.at(a_rows[i], f.mul(at.index, bytes), "a")
            scalar = f.load(how.unit, here, 1 if how.group > 1 else bytes, "a")
            a = f.splat(scalar, how.unit, how.lanes, "a")
            for v in range(vectors):
                at.next.append(multiply_add(f, how, at.values[i * vectors + v], a, b[v]))
        if plan.a_form == "direct":
            _fetch_ahead(f, plan, at.index)
    return at.values


def _fetch_ahead(f: FunctionText, plan: DotPlan, unit: str) -> None:
    """Fetch a line of A's next row tile: of one row in each step, of all rows within a line."""
    line = 64 // plan.how.unit_bytes
    row = f.min(f.let(f"and i64 {unit}, {line - 1}"), plan.rows - 1)
    tile = f.at("%a", f.mul(f.add(row, plan.rows), "%a_row"))
    f.prefetch(f.at(tile, f.mul(f.round_down(unit, line), plan.how.unit_bytes)))


def _packed_row(f: FunctionText, plan: DotPlan, unit: str) -> list[str]:
    how = plan.how
    line = f.at("%b", f.mul(unit, plan.vectors * how.vector_bytes), "b")
    units = vector(how.unit, how.lanes)
    places = (f.at(line, v * how.vector_bytes) for v in range(plan.vectors))
    return [f.load(units, place, how.unit_bytes) for place in places]


class _BInPlace:
    """Reads units of B from its rows: what does not exist is masked off."""

    def __init__(self, f: FunctionText, plan: DotPlan, math: MathLibrary) -> None:
        self.f = f
        self.plan = plan
        self.pack = PackText(side_b(plan), "", math)
        lanes = plan.how.lanes
        self.masks = []
        for v in range(plan.vectors):
            left = f.min(f.sub("%columns", v * lanes), lanes)
            left = f.call("i64", "@llvm.smax.i64", ("i64", left), ("i64", "0"))
            self.masks.append(lanes_below(f, left, lanes))

    def row(self, unit: str) -> list[str]:
        """All vectors of one unit of k."""
        f, group, lanes = self.f, self.plan.how.group, self.plan.how.lanes
        size = self.plan.spec.b.itemsize
        parts: list[list[str]] = [[] for _ in self.masks]
        for t in range(group):
            k = f.add(f.mul(unit, group), t)
            line = f.at("%b", f.mul(k, "%b_row"), "b")
            ahead = f.at(line, f.mul("%b_row", PREFETCH_ROWS))
            for offset in range(0, self.plan.columns * size, 64):
                f.prefetch(f.at(ahead, offset), level=2)
            exists = f.compare("slt", k, "%depth") if t else ""
            for v, mask in enumerate(self.masks):
                if exists:
                    mask = masked_where(f, mask, lanes, exists)
                place = f.at(line, v * lanes * size)
                parts[v].append(self.pack.elements(f, place, lanes, mask))
        return [self.pack.interleave(f, rows, lanes) for rows in parts]


ANY_PARAMETERS = (*TILE_PARAMETERS, ("i64", "rows"), ("ptr noalias", "room"))
"""Of `any_tile`: `rows` that exist; `room`: a tile of accumulators in scratch."""


def any_tile(plan: DotPlan, name: str, tile_name: str, copy: str) -> str:
    """A tile that the extents may cut: then it is computed in `room` and copied."""
    f = FunctionText(name, ANY_PARAMETERS, "noinline")
    row = str(plan.columns * plan.how.unit_bytes)
    enough = f.compare("eq", "%rows", plan.rows)
    wide = f.compare("eq", "%columns", plan.columns)
    whole = f.let(f"and i1 {enough}, {wide}", "whole")
    cut = f.let(f"xor i1 {whole}, true", "cut")
    extents = [("i64", "%rows"), ("i64", "%columns")]
    whole_c, room = [("ptr", "%c"), ("i64", "%c_row")], [("ptr", "%room"), ("i64", row)]
    with f.when(f.select("%zero", "i1", "false", cut)):
        f.call("void", copy, *whole_c, *extents, *room)
    c, c_row = f.select(cut, "ptr", "%room", "%c", "c"), f.select(cut, "i64", row, "%c_row", "row")
    arguments = [(t.split()[0], f"%{n}") for t, n in TILE_PARAMETERS]
    arguments[4:6] = [("ptr", c), ("i64", c_row)]
    f.call("void", tile_name, *arguments)
    with f.when(cut):
        f.call("void", copy, *room, *extents, *whole_c)
    return f.text("a tile that the extents may cut")


COPY_PARAMETERS = (
    ("ptr noalias readonly", "from"),
    ("i64", "from_row"),
    ("i64", "rows"),
    ("i64", "columns"),
    ("ptr noalias", "to"),
    ("i64", "to_row"),
)


def copy(how: Arithmetic, name: str) -> str:
    """Rows of accumulators (or of A's elements as wide) from one array to another."""
    f = FunctionText(name, COPY_PARAMETERS, "noinline")
    with f.loop("0", "%rows", 1) as row:
        source = f.at("%from", f.mul(row.index, "%from_row"))
        target = f.at("%to", f.mul(row.index, "%to_row"))
        f.copy_bytes(target, source, f.mul("%columns", how.unit_bytes))
    return f.text()


def clear(how: Arithmetic, name: str) -> str:
    """Zero rows of accumulators."""
    f = FunctionText(name, COPY_PARAMETERS[2:], "noinline")
    with f.loop("0", "%rows", 1) as row:
        target = f.at("%to", f.mul(row.index, "%to_row"))
        f.clear_bytes(target, f.mul("%columns", how.unit_bytes))
    return f.text()
