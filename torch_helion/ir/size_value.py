"""The number that a size expression stands for, given numbers for its symbols.

In: an int or a sympy expression, numbers by symbol. Out: an int. Exact for sizes of any magnitude,
and much faster than sympy's own substitution. Used by the interpreter and by whoever needs a size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy

from torch_helion import exc
from torch_helion.ir.types import Size

Number = int | Fraction


def size_value(size: Size, numbers: Mapping[sympy.Symbol, int]) -> int:
    """Evaluate `size`; KeyError with the symbol that has no number."""
    if isinstance(size, int):
        return size
    number = _value(size, numbers)
    if number != int(number):
        raise exc.VerifierError(f"size {size} is {number}: no integer in this kernel")
    return int(number)


def _value(expr: sympy.Expr, numbers: Mapping[sympy.Symbol, int]) -> Number:
    if expr.is_Symbol:
        return numbers[expr]
    if expr.is_Rational:
        return Fraction(int(expr.p), int(expr.q)) if expr.q != 1 else int(expr)
    row = _FUNCTIONS.get(expr.func)
    if row is None:
        return _substituted(expr, numbers)
    return row([_value(arg, numbers) for arg in expr.args])


def _substituted(expr: sympy.Expr, numbers: Mapping[sympy.Symbol, int]) -> int:
    """By sympy, for functions that have no row here."""
    number = expr.subs({s: numbers[s] for s in expr.free_symbols})
    if not number.is_Integer:
        raise exc.VerifierError(f"size {expr} is {number}: no integer in this kernel")
    return int(number)


def _power(args: list[Number]) -> Number:
    base, exponent = args
    return Fraction(base) ** int(exponent) if exponent < 0 else base ** int(exponent)


def _absolute(args: list[Number]) -> Number:
    return -args[0] if args[0] < 0 else args[0]


_FUNCTIONS: dict[Any, Callable[[list[Number]], Number]] = {
    sympy.Add: lambda args: sum(args),
    sympy.Mul: math.prod,
    sympy.Pow: _power,
    sympy.floor: lambda args: math.floor(args[0]),
    sympy.ceiling: lambda args: math.ceil(args[0]),
    sympy.Min: lambda args: min(args),
    sympy.Max: lambda args: max(args),
    sympy.Mod: lambda args: args[0] % args[1],
    sympy.Abs: _absolute,
}
