"""Arithmetic on numbers that are only known when the kernel runs: sizes stay expressions.

In: Python numbers and `Number`s. Out: the same. Integers follow Python (// rounds down); what has a
size expression keeps one, so that it can stand in bounds, shapes and index maps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Number, integer, kind_of
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Size


def _floor_division(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return sympy.floor(sympy.sympify(a) / sympy.sympify(b))


def _modulo(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return sympy.Mod(a, b)


_SIZES: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": _floor_division,
    "mod": _modulo,
    "min": lambda a, b: sympy.Min(a, b),
    "max": lambda a, b: sympy.Max(a, b),
}

_PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "div": operator.truediv,
    "pow": operator.pow,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "matmul": operator.matmul,
}

_VALUES = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "floordiv": "floordiv",
    "mod": "remainder",
    "min": "minimum",
    "max": "maximum",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "lshift": "shl",
    "rshift": "shr",
    "div": "div",
    "pow": "pow",
}

_RELATIONS = {
    "lt": sympy.Lt,
    "le": sympy.Le,
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
}

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def binary(p: Program, fn: str, a: Any, b: Any) -> Any:
    """a fn b; at least one of the two is a Number."""
    if not (isinstance(a, Number) or isinstance(b, Number)):
        return _PYTHON[fn](a, b)
    kinds = {kind_of(a), kind_of(b)}
    if kinds == {bool} and fn in ("and", "or", "xor"):
        return Number(bool, value=p.b.pointwise(fn, p.value(a), p.value(b)))
    floating = float in kinds or fn == "div"
    if not floating:
        if fn in _SIZES and _has_size(a) and _has_size(b):
            return integer(plain(_SIZES[fn](_size(a), _size(b))))
        return _integers(p, fn, a, b)
    if fn not in _VALUES or fn in ("and", "or", "xor", "lshift", "rshift"):
        raise exc.TypeInferenceError(f"unsupported operand types for {fn}: {a!r} and {b!r}")
    x, y = (p.b.cast(p.value(v), torch.float64) for v in (a, b))
    if fn == "floordiv":
        return Number(float, value=p.b.pointwise("floor", p.b.pointwise("div", x, y)))
    return Number(float, value=p.b.pointwise(_VALUES[fn], x, y))


def _integers(p: Program, fn: str, a: Any, b: Any) -> Number:
    x, y = (p.b.cast(p.value(v), torch.int64) for v in (a, b))
    name = "ipow" if fn == "pow" else _VALUES[fn]
    return Number(int, value=p.b.pointwise(name, x, y))


def _has_size(x: Any) -> bool:
    return not isinstance(x, Number) or x.size is not None


def _size(x: Any) -> Size:
    if isinstance(x, Number):
        assert x.size is not None
        return x.size
    return int(x)


def compare(p: Program, fn: str, a: Any, b: Any) -> Any:
    """A Python bool where sizes tell, else a Number."""
    if not (isinstance(a, Number) or isinstance(b, Number)):
        return _COMPARE[fn](a, b)
    if float not in (kind_of(a), kind_of(b)) and _has_size(a) and _has_size(b):
        known = _RELATIONS[fn](_size(a), _size(b))
        if known in (sympy.true, sympy.false):
            return bool(known)
    floating = float in (kind_of(a), kind_of(b))
    dtype = torch.float64 if floating else torch.int64
    x, y = (p.b.cast(p.value(v), dtype) for v in (a, b))
    return Number(bool, value=p.b.pointwise(fn, x, y))


def negative(p: Program, a: Number) -> Any:
    if a.kind is float:
        return Number(float, value=p.b.pointwise("neg", p.value(a)))
    return binary(p, "sub", 0, a)


def truth(p: Program, a: Any) -> Any:
    """bool(a)."""
    if not isinstance(a, Number):
        return bool(a)
    if a.kind is bool:
        return a
    return compare(p, "ne", a, 0)


def invert(p: Program, a: Any) -> Any:
    """not a."""
    a = truth(p, a)
    if isinstance(a, bool):
        return not a
    return Number(bool, value=p.b.pointwise("not", p.value(a)))


def convert(p: Program, a: Any, kind: type) -> Any:
    """int(a), float(a) or bool(a)."""
    if not isinstance(a, Number):
        return kind(a)
    if kind is bool:
        return truth(p, a)
    if a.kind is kind:
        return a
    dtype = torch.int64 if kind is int else torch.float64
    return Number(kind, value=p.b.cast(p.value(a), dtype))


def absolute(p: Program, a: Any) -> Any:
    if not isinstance(a, Number):
        return abs(a)
    if a.kind is float:
        return Number(float, value=p.b.pointwise("abs", p.value(a)))
    return binary(p, "max", a, negative(p, a))


def function(p: Program, name: str, a: Any) -> Number:
    """A function of one float (`math.exp` and others)."""
    x: Value = p.b.cast(p.value(a), torch.float64)
    result = p.b.pointwise(name, x)
    if name in ("floor", "ceil", "trunc"):
        return Number(int, value=p.b.cast(result, torch.int64))
    return Number(float, value=result)


def ceiling_division(p: Program, a: Any, b: Any) -> Any:
    """a / b, rounded up."""
    return binary(p, "floordiv", binary(p, "sub", binary(p, "add", a, b), 1), b)
