"""Size expressions as text: inside of a kernel (device) and in its launcher (host).

In: an int or a sympy expression without block symbols, and a name for each symbol. Out: Python text
that gives the number. Triton's `//` and `%` truncate as C's do, Python's floor: where a sign is not
known, the device text calls a helper that floors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy

from torch_helion import exc
from torch_helion.ir.types import Size

_SUM, _PRODUCT, _ATOM = range(3)


@dataclass(frozen=True)
class SizeText:
    """A printer of sizes. `helper` is told the helper functions that the text calls."""

    name: Callable[[sympy.Symbol], str]
    device: bool = True
    helper: Callable[[str], str] = str

    def __call__(self, size: Size, level: int = _SUM) -> str:
        expr = sympy.sympify(size)
        if expr.is_Integer:
            return str(int(expr))
        if expr.is_Symbol:
            return self.name(expr)
        row = {
            sympy.Add: self._sum,
            sympy.Mul: self._product,
            sympy.Pow: self._power,
            sympy.floor: self._floor,
            sympy.ceiling: self._ceiling,
            sympy.Min: self._extreme,
            sympy.Max: self._extreme,
            sympy.Mod: self._remainder,
            sympy.Abs: self._absolute,
        }.get(expr.func)
        if row is None:
            raise exc.CodegenError(f"triton: no text for the size {expr}")
        text, own = row(expr)
        return f"({text})" if own < level else text

    def factor(self, size: Size) -> str:
        """The text as an operand of a product."""
        return self(size, _ATOM)

    def _whole(self, expr: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        return sympy.fraction(sympy.together(expr))

    def _quotient(self, top: sympy.Expr, bottom: sympy.Expr) -> tuple[str, int]:
        return f"{self(top, _ATOM)} // {self(bottom, _ATOM)}", _PRODUCT

    def _sum(self, expr: sympy.Expr) -> tuple[str, int]:
        top, bottom = self._whole(expr)
        if bottom != 1:  # a whole number by construction
            return self._quotient(top, bottom)
        text = ""
        terms = sorted(expr.args, key=lambda t: (t.is_number, t.could_extract_minus_sign()))
        for term in terms:
            minus = term.could_extract_minus_sign()
            sign = (" - " if minus else " + ") if text else ("-" if minus else "")
            text += sign + self(-term if minus else term, _PRODUCT)
        return text, _SUM

    def _product(self, expr: sympy.Expr) -> tuple[str, int]:
        top, bottom = self._whole(expr)
        if bottom != 1:
            return self._quotient(top, bottom)
        numbers = [a for a in expr.args if a.is_number]
        others = [a for a in expr.args if not a.is_number]
        return " * ".join(self(a, _ATOM) for a in (*others, *numbers)), _PRODUCT

    def _power(self, expr: sympy.Expr) -> tuple[str, int]:
        base, exponent = expr.args
        if not (exponent.is_Integer and exponent > 0):
            raise exc.CodegenError(f"triton: no text for the size {expr}")
        return " * ".join([self(base, _ATOM)] * int(exponent)), _PRODUCT

    def _floor(self, expr: sympy.Expr) -> tuple[str, int]:
        top, bottom = self._whole(expr.args[0])
        if not self.device or (top.is_nonnegative and bottom.is_positive):
            return self._quotient(top, bottom)
        return f"{self.helper('_floordiv')}({self(top)}, {self(bottom)})", _ATOM

    def _ceiling(self, expr: sympy.Expr) -> tuple[str, int]:
        top, bottom = self._whole(expr.args[0])
        if not self.device or (top.is_nonnegative and bottom.is_positive):
            cdiv = "tl.cdiv" if self.device else "triton.cdiv"
            return f"{cdiv}({self(top)}, {self(bottom)})", _ATOM
        return f"-{self.helper('_floordiv')}({self(-top)}, {self(bottom)})", _SUM

    def _extreme(self, expr: sympy.Expr) -> tuple[str, int]:
        least = expr.func is sympy.Min
        host, device = ("min", "tl.minimum") if least else ("max", "tl.maximum")
        first, *rest = expr.args
        text = self(first)
        for other in rest:
            text = f"{device if self.device else host}({text}, {self(other)})"
        return text, _ATOM

    def _remainder(self, expr: sympy.Expr) -> tuple[str, int]:
        top, bottom = expr.args
        if not self.device or (top.is_nonnegative and bottom.is_positive):
            return f"{self(top, _ATOM)} % {self(bottom, _ATOM)}", _PRODUCT
        return f"{self.helper('_remainder')}({self(top)}, {self(bottom)})", _ATOM

    def _absolute(self, expr: sympy.Expr) -> tuple[str, int]:
        return f"{'tl.abs' if self.device else 'abs'}({self(expr.args[0])})", _ATOM
