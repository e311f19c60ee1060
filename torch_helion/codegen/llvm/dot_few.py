"""Products with few rows: B is read once, from where it lies.

In: a `DotPlan` of form "inner" or "rows". Out: the text of the product's function and its helpers.

*inner*: A and B both have k side by side. A tile of rows × columns keeps one vector of partial sums
an element, steps along k through all its rows of A and B at once, and sums the lanes at the end:
as many partial sums as a vector has lanes become one vector of results.

*rows*: B's columns lie side by side. Some rows of B at a time are scaled by their elements of A and
added to all rows of C, which stay in L1; B's rows are long sequential streams.

Both are meant for products that memory bounds: loads, not multiplications, set the time.
"""

from __future__ import annotations

from torch_helion.codegen.llvm.dot_pack import PackText, Side
from torch_helion.codegen.llvm.dot_plan import Arithmetic, DotPlan
from torch_helion.codegen.llvm.dot_text import (
    FunctionText,
    lanes_below,
    masked_load,
    masked_store,
    pointers_to,
    vector,
)
from torch_helion.codegen.llvm.dot_tile import add, clear, multiply_add
from torch_helion.codegen.llvm.vector_math import MathLibrary

ROWS_AT_ONCE = 8
"""Rows of B that form "rows" reads side by side; half of that for three and four rows of A."""


PREFETCH_BYTES = 512
"""How far ahead B is fetched along each of its rows where a single row of A meets it: the rows are
many short streams, and the machine's own prefetching stops at every page. Where several rows of A
meet it, the next tile's rows are fetched. Both to the second cache: in the first one, rows a power
of two apart would drive out those in use."""


class FewRows:
    """Writes the body of the function of one product of few rows, and what it calls."""

    def __init__(self, plan: DotPlan, name: str, f: FunctionText, math: MathLibrary) -> None:
        self.plan = plan
        self.name = name
        self.how = plan.how
        self.f = f
        self.a = PackText(Side(plan.how, plan.spec.a, "k", 1, 1), "", math)
        self.b = PackText(Side(plan.how, plan.spec.b, "k", 1, 1), "", math)

    def body(self) -> None:
        """Print the body."""
        if self.plan.form == "rows":
            self._rows()
        else:
            self._tiles()

    def helpers(self) -> list[str]:
        """Texts of the functions that the body calls."""
        texts = [clear(self.how, f"{self.name}_clear")]
        return texts if self.plan.form == "rows" else [*texts, self._tile()]

    def _clear_first(self) -> None:
        """All of C is added to: zero it where the product begins at zero."""
        with self.f.when("%zero"):
            words = [("i64", "%m"), ("i64", "%n"), ("ptr", "%c"), ("i64", "%c_row")]
            self.f.call("void", f"{self.name}_clear", *words)

    # -- both along k ----------------------------------------------------------------------------

    def _tiles(self) -> None:
        """Blocks of k (so that B's rows stay in L1 for all of A's), columns, rows."""
        f, plan = self.f, self.plan
        size_a, size_b = plan.spec.a.itemsize, plan.spec.b.itemsize
        self._clear_first()
        with f.loop("0", "%k", plan.kc, hint="k") as k:
            depth = f.min(f.sub("%k", k.index), plan.kc, "depth")
            with f.loop("0", "%n", plan.columns, hint="j") as j:
                columns = f.min(f.sub("%n", j.index), plan.columns)
                b = f.at(f.at("%b", f.mul(k.index, size_b)), f.mul(j.index, "%b_n"))
                with f.loop("0", "%m", plan.rows, hint="i") as i:
                    rows = f.min(f.sub("%m", i.index), plan.rows)
                    a = f.at(f.at("%a", f.mul(k.index, size_a)), f.mul(i.index, "%a_m"))
                    c = f.at("%c", f.mul(i.index, "%c_row"))
                    c = f.at(c, f.mul(j.index, self.how.unit_bytes))
                    words = [a, "%a_m", b, "%b_n", c, "%c_row", depth, rows, columns, "%scratch"]
                    types = [t.split()[0] for t, _ in INNER_PARAMETERS]
                    f.call("void", f"{self.name}_tile", *zip(types, words, strict=True))

    def _tile(self) -> str:
        """C += A · Bᵀ for up to rows × columns; what does not exist is the last that does."""
        f, plan, how = (
            FunctionText(f"{self.name}_tile", INNER_PARAMETERS, "noinline"),
            self.plan,
            self.how,
        )
        a_rows = pointers_to(f, "%a", "%a_m", "%rows", plan.rows)
        b_rows = pointers_to(f, "%b", "%b_n", "%columns", plan.columns)
        step, type = how.lanes * how.group, vector(how.lane, how.lanes)
        # One row of A with narrow elements of B: a whole line of each row of B at a time, since
        # rows a power of two apart do not stay in L1 together.
        parts = max(1, 64 // (step * plan.spec.b.itemsize)) if plan.rows == 1 else 1
        whole = f.round_down("%k", step * parts)
        start = [(type, "zeroinitializer")] * (plan.rows * plan.columns)
        with f.loop("0", whole, step * parts, start, "k") as k:
            k.next = self._step(f, a_rows, b_rows, k.index, None, k.values, parts)
        carried = [(type, value) for value in k.values]
        with f.loop(whole, "%k", step, carried, "k") as k:
            mask = lanes_below(f, f.min(f.sub("%k", k.index), step), step)
            k.next = self._step(f, a_rows, b_rows, k.index, mask, k.values, 1)
        self._add_to_c(f, sum_lanes(f, how, k.values))
        return f.text(f"{plan.rows} x {plan.columns} sums of products along k")

    def _step(
        self,
        f: FunctionText,
        a_rows: list[str],
        b_rows: list[str],
        k: str,
        mask: str | None,
        values: list[str],
        parts: int,
    ) -> list[str]:
        """Sums after `parts` further vectors along k."""
        how, totals = self.how, list(values)
        a = [
            [self._along(f, self.a, row, k, part, mask) for part in range(parts)] for row in a_rows
        ]
        for j, row in enumerate(b_rows):
            if mask is None:
                self._fetch(f, row, k, parts)
            for part in range(parts):
                b = self._along(f, self.b, row, k, part, mask)
                for i in range(len(a_rows)):
                    at = i * len(b_rows) + j
                    totals[at] = multiply_add(f, how, totals[at], a[i][part], b)
        return totals

    def _fetch(self, f: FunctionText, row: str, k: str, parts: int) -> None:
        """Ask for what a row of B holds further on, or the row that many columns on, by lines."""
        size = self.plan.spec.b.itemsize
        here = f.at(row, f.mul(k, size))
        if self.plan.rows > 1:
            f.prefetch(f.at(here, f.mul("%b_n", self.plan.columns)), level=2)
            return
        step = parts * self.how.lanes * self.how.group * size
        for line in range(0, step, 64):
            f.prefetch(f.at(here, PREFETCH_BYTES + line), level=2)

    def _along(
        self, f: FunctionText, side: PackText, row: str, k: str, part: int, mask: str | None
    ) -> str:
        """A vector of units along k."""
        count = self.how.lanes * self.how.group
        raw, units = vector(self.how.element, count), vector(self.how.unit, self.how.lanes)
        at = f.mul(f.add(k, part * count), side.side.itemsize)
        x = side.elements(f, f.at(row, at), count, mask)
        return f.let(f"bitcast {raw} {x} to {units}") if raw != units else x

    def _add_to_c(self, f: FunctionText, sums: str) -> None:
        plan, how = self.plan, self.how
        bytes, columns = how.unit_bytes, plan.columns
        f.store(vector(how.lane, how.lanes), sums, "%room", bytes)
        enough = f.compare("eq", "%rows", plan.rows)
        wide = f.compare("eq", "%columns", columns)
        whole = f.let(f"and i1 {enough}, {wide}", "whole")
        with f.when(whole):
            part = vector(how.lane, columns)
            for i in range(plan.rows):
                lanes = range(i * columns, (i + 1) * columns)
                x = f.shuffle(vector(how.lane, how.lanes), sums, "poison", lanes)
                x = x if columns > 1 else f.let(f"extractelement <1 x {how.lane}> {x}, i64 0")
                c = f.at("%c", f.mul("%c_row", i))
                f.store(part, add(f, how, f.load(part, c, bytes), x, columns), c, bytes)
        with f.when(f.let(f"xor i1 {whole}, true")), f.loop("0", "%rows", 1) as row:
            source = f.at("%room", f.mul(row.index, columns * bytes))
            target = f.at("%c", f.mul(row.index, "%c_row"))
            with f.loop("0", "%columns", 1) as j:
                off = f.mul(j.index, bytes)
                c = f.at(target, off)
                x = f.load(how.lane, f.at(source, off), bytes)
                f.store(how.lane, add(f, how, f.load(how.lane, c, bytes), x, 1), c, bytes)

    # -- columns side by side --------------------------------------------------------------------

    def _rows(self) -> None:
        """Some rows of B at a time, added to all rows of C."""
        f, plan = self.f, self.plan
        self._clear_first()
        with f.when(f.compare("sgt", "%m", 0)):
            last = f.sub("%m", 1)
            a, c = ["%a"], ["%c"]
            for i in range(1, plan.rows):
                # A row that does not exist is the last one, added up where nobody looks.
                a.append(f.at("%a", f.mul(f.min(last, i), "%a_m")))
                exists = f.compare("sgt", "%m", i)
                c.append(f.select(exists, "ptr", f.at("%c", f.mul("%c_row", i)), "%scratch", "c"))
            at_once = ROWS_AT_ONCE // (1 if plan.rows <= 2 else 2)
            whole = f.round_down("%k", at_once)
            for lo, hi, count in (("0", whole, at_once), (whole, "%k", 1)):
                with f.loop(lo, hi, count, hint="k") as k:
                    self._add_rows(a, c, k.index, count)

    def _add_rows(self, a: list[str], c: list[str], k: str, count: int) -> None:
        """C += A[:, k] · B[k, :] for `count` rows of B."""
        f, how = self.f, self.how
        rows = [f.at("%b", f.mul(f.add(k, t), "%b_k")) for t in range(count)]
        scale = [
            [f.splat(self._scalar(row, f.add(k, t)), how.lane, how.lanes) for t in range(count)]
            for row in a
        ]
        whole = f.round_down("%n", how.lanes)
        bytes, type = how.unit_bytes, vector(how.lane, how.lanes)
        with f.loop("0", whole, how.lanes, hint="j") as j:
            places = [f.at(row, f.mul(j.index, bytes)) for row in c]
            totals = [f.load(type, place, bytes) for place in places]
            self._fetch_rows(rows, j.index)
            totals = self._scaled(rows, scale, j.index, None, totals)
            for place, total in zip(places, totals, strict=True):
                f.store(type, total, place, bytes)
        rest = f.sub("%n", whole)
        with f.when(f.compare("sgt", rest, 0)):
            mask = lanes_below(f, rest, how.lanes)
            places = [f.at(row, f.mul(whole, bytes)) for row in c]
            totals = [masked_load(f, how.lane, how.lanes, p, mask, bytes) for p in places]
            totals = self._scaled(rows, scale, whole, mask, totals)
            for place, total in zip(places, totals, strict=True):
                masked_store(f, how.lane, how.lanes, total, place, mask, bytes)

    def _fetch_rows(self, rows: list[str], j: str) -> None:
        """The same columns of as many rows further on, or what the rows hold further on."""
        f = self.f
        if len(rows) == 1:
            return
        ahead = f.mul("%b_k", len(rows)) if self.plan.rows > 1 else str(PREFETCH_BYTES)
        off = f.add(f.mul(j, self.plan.spec.b.itemsize), ahead)
        for row in rows:
            f.prefetch(f.at(row, off), level=2)

    def _scalar(self, row: str, k: str) -> str:
        return self.a.elements(self.f, self.f.at(row, self.f.mul(k, "%a_k")), 1)

    def _scaled(
        self, rows: list[str], scale: list[list[str]], j: str, mask: str | None, totals: list[str]
    ) -> list[str]:
        f, how = self.f, self.how
        off = f.mul(j, self.plan.spec.b.itemsize)
        for t, row in enumerate(rows):
            b = self.b.elements(f, f.at(row, off), how.lanes, mask)
            totals = [multiply_add(f, how, c, x[t], b) for c, x in zip(totals, scale, strict=True)]
        return totals


INNER_PARAMETERS = (
    ("ptr noalias readonly", "a"),
    ("i64", "a_m"),
    ("ptr noalias readonly", "b"),
    ("i64", "b_n"),
    ("ptr noalias", "c"),
    ("i64", "c_row"),
    ("i64", "k"),
    ("i64", "rows"),
    ("i64", "columns"),
    ("ptr noalias", "room"),
)


def sum_lanes(f: FunctionText, how: Arithmetic, vectors: list[str]) -> str:
    """One vector whose lane i is the sum of all lanes of vector i (missing ones: anything)."""
    type = vector(how.lane, how.lanes)
    while len(vectors) < how.lanes:
        vectors = [*vectors, "zeroinitializer"]
    even, odd = range(0, 2 * how.lanes, 2), range(1, 2 * how.lanes, 2)
    while len(vectors) > 1:
        vectors = [
            add(f, how, f.shuffle(type, a, b, even), f.shuffle(type, a, b, odd), how.lanes)
            if (a, b) != ("zeroinitializer",) * 2
            else a
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]
