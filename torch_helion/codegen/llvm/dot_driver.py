"""The loops around register tiles: blocks of k, n and m, packing, edges.

In: a `DotPlan` and the names of its functions. Out: the text of the one function that a phase calls
for a product. For each block of k and of n: B's block is packed once (it stays in L2), then every
row tile of A (it stays in L1) meets all panels of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch_helion.codegen.llvm.dot_few import FewRows
from torch_helion.codegen.llvm.dot_pack import PACK_PARAMETERS, PackText, side_a, side_b
from torch_helion.codegen.llvm.dot_plan import HEIGHT, DotPlan
from torch_helion.codegen.llvm.dot_text import FunctionText, vector
from torch_helion.codegen.llvm.dot_tile import ANY_PARAMETERS, any_tile, copy, multiply_add, tile
from torch_helion.codegen.llvm.vector_math import MathLibrary

DOT_PARAMETERS = (
    ("ptr noalias readonly", "a"),
    ("i64", "a_m"),
    ("i64", "a_k"),
    ("ptr noalias readonly", "b"),
    ("i64", "b_k"),
    ("i64", "b_n"),
    ("ptr noalias", "c"),
    ("i64", "c_row"),
    ("i64", "m"),
    ("i64", "n"),
    ("i64", "k"),
    ("i1", "zero"),
    ("ptr noalias", "scratch"),
    ("ptr", "finish"),
    ("ptr", "environment"),
    ("i1", "strip"),
)
"""Of a product's function; distances in bytes. The last three: see `dot.Finish`, or null."""


def call_finish(f: FunctionText, test: str, *extents: str) -> None:
    """Call what was handed on, if anything was, for (first row, rows, first column, columns)."""
    given = f.let("icmp ne ptr %finish, null", "given")
    with f.when(f.let(f"and i1 {given}, {test}")):
        words = ", ".join(f"i64 {x}" for x in extents)
        f.line(f"call void %finish(ptr %environment, {words})")


@dataclass
class _Block:
    """One block of k and of n: operands, extents, whether C begins at zero here and is complete."""

    a: str
    b: str
    c: str
    depth: str
    width: str
    zero: str
    column: str
    last: str
    units: str = ""
    height: str = ""
    row: str = "0"


class Driver:
    """Writes the functions of one product."""

    def __init__(self, plan: DotPlan, name: str, math: MathLibrary) -> None:
        self.plan = plan
        self.name = name
        self.math = math
        self.f = FunctionText(name, DOT_PARAMETERS, "noinline")

    def texts(self) -> list[str]:
        """Texts of the product's function and of all that it calls."""
        plan, name = self.plan, self.name
        if plan.form in ("inner", "rows"):
            return self._few_rows()
        self._blocks_of_k()
        texts = [
            self.f.text(str(plan), "void"),
            any_tile(plan, f"{name}_any", f"{name}_tile", f"{name}_copy"),
            tile(plan, f"{name}_tile", self.math),
            copy(plan.how, f"{name}_copy"),
        ]
        if plan.form == "panels":
            texts += PackText(side_b(plan), f"{name}_pack_b", self.math).texts()
        pack_a = PackText(side_a(plan), f"{name}_pack_a", self.math)
        if plan.a_form == "panels":
            texts += pack_a.texts()
        elif self._rows == f"{name}_rows":
            texts.append(pack_a.copy_rows(self._rows))
        if plan.how.offset_a:
            texts.append(column_sums(plan, f"{name}_sums"))
        return texts

    def _few_rows(self) -> list[str]:
        few = FewRows(self.plan, self.name, self.f, self.math)
        few.body()
        call_finish(self.f, "true", "0", "%m", "0", "%n")
        return [self.f.text(str(self.plan), "void"), *few.helpers()]

    @property
    def _rows(self) -> str:
        """The function that copies rows of A."""
        plain = self.plan.a_form == "direct" and self.plan.how.group == 1
        return f"{self.name}_copy" if plain else f"{self.name}_rows"

    def _part(self, name: str) -> str:
        return self.f.at("%scratch", self.plan.layout()[name], name)

    # -- blocks ----------------------------------------------------------------------------------

    @contextmanager
    def _blocks(
        self, extent: str, largest: int, block: int, multiple: int, hint: str
    ) -> Iterator[tuple[str, str]]:
        """A loop over even blocks of at most `block`: (first, how many). No loop for one block."""
        f = self.f
        if largest <= block:
            yield "0", extent
            return
        blocks = f.call("i64", "@llvm.smax.i64", ("i64", f.ceil_div(extent, block)), ("i64", "1"))
        size = f.let(f"udiv i64 {f.add(f.sub(extent, 1), blocks)}, {blocks}")
        size = f.mul(f.ceil_div(size, multiple), multiple)
        size = f.call("i64", "@llvm.smax.i64", ("i64", size), ("i64", str(multiple)), hint="block")
        # Once for nothing, too: it makes C zero where there is no k.
        end = f.call("i64", "@llvm.smax.i64", ("i64", extent), ("i64", "1"))
        with f.loop("0", end, size, hint=hint) as at:
            yield at.index, f.min(f.sub(extent, at.index), size)

    def _blocks_of_k(self) -> None:
        f, plan, spec = self.f, self.plan, self.plan.spec
        with self._blocks("%k", spec.k, plan.kc, plan.how.group, "k") as (k, depth):
            zero = f.let(f"and i1 %zero, {f.compare('eq', k, 0)}", "zero")
            with self._blocks("%n", spec.n, plan.nc, plan.columns, "n") as (n, width):
                b = f.at(f.at("%b", f.mul(k, "%b_k")), f.mul(n, "%b_n"))
                a = f.at("%a", f.mul(k, "%a_k"))
                c = f.at("%c", f.mul(n, plan.how.unit_bytes))
                last = f.compare("eq", f.add(k, depth), "%k", "last")
                self._block_of_b(_Block(a, b, c, depth, width, zero, n, last))

    def _block_of_b(self, block: _Block) -> None:
        f, plan = self.f, self.plan
        block.units = units = f.ceil_div(block.depth, plan.how.group, "units")
        block.height = height = f.mul(f.odd(f.ceil_div(units, HEIGHT)), HEIGHT)
        a, c, width = block.a, block.c, block.width
        if plan.form == "panels":
            source, block.b = block.b, self._part("b")
            self._pack("pack_b", source, "%b_k", "%b_n", block, block.b, width)
        if plan.how.offset_a:
            words = [("ptr", block.b), ("i64", units), ("i64", height), ("i64", width)]
            f.call("void", f"{self.name}_sums", *words, ("ptr", self._part("sums")))
        with self._blocks("%m", plan.spec.m, plan.mc, plan.rows, "m") as (m, rows):
            source = f.at(a, f.mul(m, "%a_m"))
            block.a, block.c, block.row = source, f.at(c, self._row_distance(m)), m
            if plan.a_form == "panels":
                block.a = self._part("a")
                self._pack("pack_a", source, "%a_k", "%a_m", block, block.a, rows)
            self._row_tiles(block, rows)

    def _pack(
        self, function: str, source: str, k: str, w: str, block: _Block, to: str, width: str
    ) -> None:
        words = [source, k, w, block.depth, to, block.height, width]
        types = [t.split()[0] for t, _ in PACK_PARAMETERS]
        self.f.call("void", f"{self.name}_{function}", *zip(types, words, strict=True))

    # -- tiles -----------------------------------------------------------------------------------

    def _row_tiles(self, block: _Block, height: str) -> None:
        f, plan = self.f, self.plan
        with f.loop("0", height, plan.rows, hint="i") as i:
            rows = f.min(f.sub(height, i.index), plan.rows, "rows")
            a, a_row = self._tile_of_a(block, i.index, rows)
            c = f.at(block.c, self._row_distance(i.index))
            with f.loop("0", block.width, plan.columns, hint="j") as j:
                self._one_tile(block, a, a_row, c, j.index, rows)
            row = f.add(block.row, i.index)
            call_finish(f, block.last, row, rows, block.column, block.width)

    def _row_distance(self, rows: str) -> str:
        """How far that many rows of C are from its first."""
        distance = self.f.mul(rows, "%c_row")
        if self.plan.strip and distance != "0":
            return self.f.select("%strip", "i64", "0", distance)
        return distance

    def _tile_of_a(self, block: _Block, i: str, rows: str) -> tuple[str, str]:
        """Where a row tile of A is read: pointer and row distance."""
        f, plan = self.f, self.plan
        if plan.a_form == "panels":
            return f.at(block.a, f.mul(f.mul(i, block.height), plan.how.unit_bytes)), "0"
        source = f.at(block.a, f.mul(i, "%a_m"))
        copied, row = self._part("a"), str(plan.a_row_bytes)
        words = [("ptr", source), ("i64", "%a_m"), ("i64", rows), ("i64", block.depth)]
        words += [("ptr", copied), ("i64", row)]
        if plan.a_form == "copy":
            f.call("void", self._rows, *words)
            return copied, row
        cut = f.compare("slt", rows, plan.rows)
        if plan.how.group > 1:
            odd = f.compare("ne", f.round_down(block.depth, plan.how.group), block.depth)
            cut = f.let(f"or i1 {cut}, {odd}", "cut")
        with f.when(cut):
            f.call("void", self._rows, *words)
        return (
            f.select(cut, "ptr", copied, source, "a"),
            f.select(cut, "i64", row, "%a_m", "a_row"),
        )

    def _one_tile(self, block: _Block, a: str, a_row: str, c: str, j: str, rows: str) -> None:
        f, plan, bytes = self.f, self.plan, self.plan.how.unit_bytes
        columns = f.min(f.sub(block.width, j), plan.columns, "columns")
        b = f.at(block.b, f.mul(f.mul(j, block.height), bytes))
        if plan.form == "direct":
            b = f.at(block.b, f.mul(j, plan.spec.b.itemsize))
        sums = f.at(self._part("sums"), f.mul(j, 4)) if plan.how.offset_a else "%scratch"
        words = [a, a_row, b, "%b_k", f.at(c, f.mul(j, bytes)), "%c_row", block.units, block.zero]
        words += [sums, block.depth, columns, rows, self._part("tile")]
        types = [t.split()[0] for t, _ in ANY_PARAMETERS]
        f.call("void", f"{self.name}_any", *zip(types, words, strict=True))


def column_sums(plan: DotPlan, name: str) -> str:
    """128 times the sums over k of packed B's columns."""
    parameters = [("ptr noalias readonly", "b"), ("i64", "units"), ("i64", "height"), ("i64", "n")]
    f = FunctionText(name, [*parameters, ("ptr noalias", "to")], "noinline")
    how, vectors = plan.how, plan.vectors
    type = vector("i32", how.lanes)
    with f.loop("0", "%n", plan.columns, hint="j") as j:
        base = f.at("%b", f.mul(f.mul(j.index, "%height"), how.unit_bytes))
        start = [(type, "zeroinitializer")] * vectors
        with f.loop("0", "%units", 1, start, hint="u") as u:
            row = f.at(base, f.mul(u.index, vectors * how.vector_bytes))
            for v in range(vectors):
                b = f.load(type, f.at(row, v * how.vector_bytes), 4)
                ones = "splat (i32 16843009)"
                u.next.append(multiply_add(f, how, u.values[v], ones, b))
        for v in range(vectors):
            x = f.let(f"shl {type} {u.values[v]}, splat (i32 7)")
            f.store(type, x, f.at("%to", f.mul(f.add(j.index, v * how.lanes), 4)), 4)
    return f.text()
