"""Products of bfloat16 with a weight of nibbles, by the instruction that multiplies pairs of them.

In: a `QuantizedSpec` whose rows of A are bfloat16. Out: the functions of `dot_quantized.py`, with
another tile. 64 bytes of a row of B are 32 words of four nibbles; the word, shifted by a multiple
of four bits, is the index of a table of 32 halves (the sixteen values twice: the fifth bit does not
matter), so three shifts, four look-ups and four products of pairs are 128 weights. A lies in the
order that this makes: element `l` of its vector `t` meets nibble `t` of word `l`.

The values of the table are exact in bfloat16, or rounded as the graph rounds the difference of an
integer and a zero. The scale is applied to the sums of its group, in float32. Groups shorter than
64 bytes are some lanes of a vector, whose scale has a number for each lane.
"""

from __future__ import annotations

import torch

from torch_helion.codegen.llvm.dot_quantized import QuantizedSpec, QuantizedText
from torch_helion.codegen.llvm.dot_text import FunctionText, vector
from torch_helion.codegen.llvm.engine import Machine

CHUNK = 64
"""Bytes of a row of B that are looked up at a time."""
WORDS, LANES = vector("i16", 32), vector("float", 16)
TURNS = 4


def fits(spec: QuantizedSpec, machine: Machine) -> bool:
    """Whether these functions are for this product."""
    if spec.bits != 4 or spec.a is not torch.bfloat16 or spec.row_bytes % CHUNK:
        return False
    if not machine.has("avx512bf16") or machine.vector_bits != 512:
        return False
    if max(map(abs, spec.values)) > 256:
        return False
    whole = spec.group_bytes % CHUNK == 0
    return whole or (not spec.halves and spec.zero is None and CHUNK % spec.group_bytes == 0)


class NibblesText(QuantizedText):
    """Writes the functions of one product."""

    def _choose(self) -> None:
        super()._choose()
        self.columns = 4 if self.rows <= 2 else 2
        self.unit = max(CHUNK, self.spec.group_bytes)
        self.block = max(self.unit, self.block // self.unit * self.unit)

    # -- A ----------------------------------------------------------------

    def _convert_rows(self, f: FunctionText, row: str, to: str) -> None:
        with f.loop("0", "%bytes", CHUNK, hint="s") as s:
            place = f.at(to, f.mul(s.index, TURNS))
            for turn, x in enumerate(self._turns(f, row, s.index)):
                f.store(WORDS, x, f.at(place, CHUNK * turn), 2)

    def _turns(self, f: FunctionText, row: str, s: str) -> list[str]:
        """For each nibble of a word, the elements of A that it meets."""
        spec = self.spec
        if not spec.halves:
            wide = vector("i64", 32)
            x = f.load(wide, f.at(row, f.mul(s, 4)), 2)
            found = [self._part(f, x, wide, 16 * turn) for turn in range(TURNS)]
            return [found[turn ^ int(spec.high_first)] for turn in range(TURNS)]
        wide = vector("i32", 32)
        first = f.at(row, f.mul(s, 2))
        parts = [f.load(wide, f.at(first, at), 2) for at in (0, 2 * spec.row_bytes)]
        parts = parts[::-1] if spec.high_first else parts
        return [self._part(f, parts[t & 1], wide, 16 * (t >> 1)) for t in range(TURNS)]

    def _part(self, f: FunctionText, x: str, wide: str, shift: int) -> str:
        if shift:
            element = wide.split()[-1][:-1]
            x = f.let(f"lshr {wide} {x}, splat ({element} {shift})")
        return f.let(f"trunc {wide} {x} to {WORDS}")

    # -- a tile ----------------------------------------------------------------

    @property
    def _chains(self) -> int:
        return 1

    def _numbers(  # type: ignore[override]
        self, f: FunctionText, scale: list[str], shift: list[str], group: str
    ) -> list[tuple[list[str], list[str]]]:
        """For each column: tables and scales of low and of high nibbles."""
        spec = self.spec
        apart = spec.halves and spec.grouped
        found = []
        for column in range(self.columns):
            tables, scales = [], []
            for part in range(2 if apart else 1):
                first = f.mul(group, self.unit // spec.group_bytes)
                if apart and part != int(spec.high_first):
                    first = f.add(first, spec.row_bytes // spec.group)
                minus = self._number(f, spec.zero, f.at(shift[column], f.mul(first, "%shift_g")))
                tables.append(self._table(f, minus))
                scales.append(self._scale(f, scale[column], first))
            found.append((tables * 2, scales * 2) if not apart else (tables, scales))
        return found

    def _table(self, f: FunctionText, minus: str) -> str:
        values = ", ".join(f"float {v:.1f}" for v in self.spec.values)
        x = f"<{values}>"
        if minus:
            x = f.let(f"fsub {LANES} {x}, {minus}")
        halves = f.let(f"fptrunc {LANES} {x} to <16 x bfloat>")
        halves = f.let(f"bitcast <16 x bfloat> {halves} to <16 x i16>")
        return f.shuffle("<16 x i16>", halves, "poison", [*range(16), *range(16)])

    def _scale(self, f: FunctionText, base: str, first: str) -> str:
        """What multiplies the sums of a chunk, lane by lane."""
        dtype, count = self.spec.scale, self.unit // self.spec.group_bytes
        found = ""
        for i in range(count if dtype is not None else 0):
            place = f.at(base, f.mul(f.add(first, i), "%scale_g"))
            x = self._number(f, dtype, place)
            if not i:
                found = x
                continue
            lanes = ", ".join(f"i1 {int(lane >= i * 16 // count)}" for lane in range(16))
            found = f.let(f"select <16 x i1> <{lanes}>, {LANES} {x}, {LANES} {found}")
        return found

    def _group(  # type: ignore[override]
        self,
        f: FunctionText,
        a: list[str],
        b: list[str],
        first: str,
        numbers: list[tuple[list[str], list[str]]],
        totals: list[str],
    ) -> list[str]:
        """The sums after one group, which begins at the byte `first`."""
        rows_b = [f.at(row, first) for row in b]
        rows_a = [f.at(row, f.mul(first, TURNS)) for row in a]
        start = [(LANES, "zeroinitializer")] * (2 * len(totals))
        with f.loop("0", str(self.unit), CHUNK, start, "k") as k:
            self._fetch(f, b, f.add(first, k.index))
            now = list(k.values)
            places = [f.at(row, f.mul(k.index, TURNS)) for row in rows_a]
            xs = [[f.load(WORDS, f.at(p, CHUNK * t), 2) for t in range(TURNS)] for p in places]
            for column, row in enumerate(rows_b):
                word = f.load(WORDS, f.at(row, k.index), 1)
                for turn in range(TURNS):
                    w = self._look_up(f, word, turn, numbers[column][0][turn & 1])
                    for i in range(len(a)):
                        at = 2 * (i * self.columns + column) + (turn & 1)
                        now[at] = self._pairs(f, now[at], xs[i][turn], w)
            k.next = now
        for at in range(len(totals)):
            scales = numbers[at % self.columns][1]
            for part in range(2):
                totals = [*totals]
                totals[at] = self._scaled_sum(f, k.values[2 * at + part], scales[part], totals[at])
        return totals

    def _scaled_sum(self, f: FunctionText, x: str, scale: str, total: str) -> str:
        if not scale:
            return f.let(f"fadd {LANES} {total}, {x}")
        words = ((LANES, x), (LANES, scale), (LANES, total))
        return f.call(LANES, "@llvm.fmuladd.v16f32", *words)

    def _look_up(self, f: FunctionText, word: str, turn: int, table: str) -> str:
        if turn:
            word = f.let(f"lshr {WORDS} {word}, splat (i16 {4 * turn})")
        return f.call(WORDS, "@llvm.x86.avx512.permvar.hi.512", (WORDS, table), (WORDS, word))

    def _pairs(self, f: FunctionText, total: str, a: str, b: str) -> str:
        pairs = vector("bfloat", 32)
        a, b = (f.let(f"bitcast {WORDS} {x} to {pairs}") for x in (a, b))
        symbol = "@llvm.x86.avx512bf16.dpbf16ps.512"
        return f.call(LANES, symbol, (LANES, total), (pairs, a), (pairs, b))
