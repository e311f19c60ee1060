"""Where code of a program stands: a list of lines with the sizes, positions and values known there.

In: names, symbols. Out: `Frame`s, one for each region of structured control flow. A frame sees what
the frames around it know; what it learns ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from torch_helion.codegen.llvm.registers import Scope
from torch_helion.codegen.llvm.text import Names, SizeEmitter
from torch_helion.ir.types import Size


class RegionSizes(SizeEmitter):
    """Size arithmetic in one region; divisions of numbers that may be negative round down."""

    def _emit(self, expr: sympy.Expr) -> str:
        parts = _quotient(expr)
        if parts is None or (parts[1].is_nonnegative and parts[2].is_positive):
            return super()._emit(expr)
        kind, a, b = parts
        if kind == "ceiling":
            return self.op(f"sub i64 0, {self._floor(self(-a), self(b))}")
        down = self._floor(self(a), self(b))
        if kind == "floor":
            return down
        return self.op(f"sub i64 {self(a)}, {self.op(f'mul i64 {down}, {self(b)}')}")

    def _floor(self, a: str, b: str) -> str:
        quotient, rest = self.op(f"sdiv i64 {a}, {b}"), self.op(f"srem i64 {a}, {b}")
        other = self.op(f"icmp slt i64 {self.op(f'xor i64 {rest}, {b}')}, 0")
        down = self.op(f"and i1 {other}, {self.op(f'icmp ne i64 {rest}, 0')}")
        less = self.op(f"add i64 {quotient}, -1")
        return self.op(f"select i1 {down}, i64 {less}, i64 {quotient}")


def _quotient(expr: sympy.Expr) -> tuple[str, sympy.Expr, sympy.Expr] | None:
    """(floor, ceiling or mod; numerator; denominator) of a division in sizes."""
    name = type(expr).__name__
    if name in ("FloorDiv", "CleanDiv"):
        return "floor", expr.args[0], expr.args[1]
    if name in ("PythonMod", "Mod"):
        return "mod", expr.args[0], expr.args[1]
    if isinstance(expr, (sympy.floor, sympy.ceiling)):
        return (name, *expr.args[0].as_numer_denom())
    return None


@dataclass
class Frame:
    """The code of one region."""

    sizes: RegionSizes
    scope: Scope
    index: dict[str, str] = field(default_factory=dict)
    begin: dict[str, str] = field(default_factory=dict)
    cost: Size = 0
    """Picoseconds of one turn, as far as sizes tell."""

    @property
    def code(self) -> list[str]:
        return self.scope.code

    @staticmethod
    def root(names: Names, symbols: Mapping[sympy.Symbol, str]) -> Frame:
        code: list[str] = []
        return Frame(RegionSizes(names, code, symbols), Scope(None, code))

    def child(self) -> Frame:
        """A frame inside this one; its code is this one's to place."""
        code: list[str] = []
        sizes = RegionSizes(self.sizes.names, code, {})
        sizes.known = dict(self.sizes.known)
        scope = Scope(None, code, dict(self.scope.values), dict(self.scope.splats))
        scope.memo = dict(self.scope.memo)
        return Frame(sizes, scope, dict(self.index), dict(self.begin))

    def line(self, text: str) -> None:
        self.code.append(f"  {text}")

    def label(self, name: str) -> None:
        self.code.append(f"{name[1:]}:")

    def let(self, text: str, hint: str = "v") -> str:
        name = self.sizes.names.fresh(hint)
        self.line(f"{name} = {text}")
        return name
