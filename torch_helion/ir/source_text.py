"""Pieces of tile-language source: expressions with their precedence, sizes, one form per function.

In: texts of operands. Out: texts. Used by `printer.py` only, which knows the kernel.
"""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import sympy
import torch
from sympy.printing.str import StrPrinter

from torch_helion.ir.types import Size

# How tightly an expression binds, in Python's order.
COMPARE, OR, XOR, AND, SHIFT, ADD, MUL, UNARY, ATOM = range(9)


@dataclass(frozen=True)
class Expr:
    """A piece of source. `literal`: a Python number, which has no methods."""

    text: str
    level: int = ATOM
    literal: bool = False

    def at(self, level: int) -> str:
        """The text, in parentheses if it binds less tightly than `level`."""
        return self.text if self.level >= level else f"({self.text})"


class Identifiers:
    """Unique Python names, from hints: `x`, then `x0`, `x1`. Python's own names are never taken."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {"torch", "torch_helion", "hl", *dir(builtins), *taken}

    def new(self, hint: str) -> str:
        base = re.sub(r"\W", "_", hint) or "v"
        base = f"v{base}" if base[0].isdigit() or keyword.iskeyword(base) else base
        stem = f"{base}_" if base[-1].isdigit() else base
        name, number = base, 0
        while name in self._taken:
            name, number = f"{stem}{number}", number + 1
        self._taken.add(name)
        return name


def wrapped(line: str, width: int) -> list[str]:
    """A statement that is too long and ends in a call: one argument of the call a line."""
    start = _last_call(line)
    if len(line) <= width or start is None:
        return [line]
    arguments = _split(line[start:-1])
    return [line[:start], *(f"    {argument}," for argument in arguments), ")"]


def _last_call(line: str) -> int | None:
    """Where the arguments begin of the call that the line ends with."""
    depth = 0
    for place in range(len(line) - 1, -1, -1):
        depth += (line[place] in ")]") - (line[place] in "([")
        if depth == 0:
            called = line.endswith(")") and line[place] == "(" and line[place - 1 : place].isalnum()
            return place + 1 if called else None
    return None


def _split(arguments: str) -> list[str]:
    """At the commas that are in no parentheses."""
    parts, depth = [""], 0
    for char in arguments:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


# -- sizes and numbers --------------------------------------------------------------------------


class _SizePrinter(StrPrinter):
    """Size expressions as Python: integer division for floor, `cdiv` for ceiling."""

    def __init__(self, names: Mapping[sympy.Symbol, str]) -> None:
        super().__init__()
        self._texts = names

    def _print_Symbol(self, expr: sympy.Symbol) -> str:
        return self._texts.get(expr, expr.name)

    def _print_Min(self, expr: sympy.Min) -> str:
        return f"min({', '.join(map(self._print, expr.args))})"

    def _print_Max(self, expr: sympy.Max) -> str:
        return f"max({', '.join(map(self._print, expr.args))})"

    def _print_Mod(self, expr: sympy.Mod) -> str:
        return "(" + " % ".join(self.parenthesize(arg, 60) for arg in expr.args) + ")"

    def _print_floor(self, expr: sympy.Expr) -> str:
        above, below = sympy.fraction(sympy.together(expr.args[0]))
        return f"({self.parenthesize(above, 50)} // {self.parenthesize(below, 60)})"

    def _print_ceiling(self, expr: sympy.Expr) -> str:
        above, below = sympy.fraction(sympy.together(expr.args[0]))
        return f"torch_helion.cdiv({self._print(above)}, {self._print(below)})"


Names = Mapping[sympy.Symbol, str]
"""Texts of symbols that are not written by their own names."""


def size_text(size: Size, names: Names = MappingProxyType({})) -> str:
    return str(size) if isinstance(size, int) else _SizePrinter(names).doprint(size)


def size_expr(size: Size, names: Names = MappingProxyType({})) -> Expr:
    text = size_text(size, names)
    if re.fullmatch(r"[\w.]+|(torch_helion\.cdiv|min|max)\([^()]*\)", text):
        return Expr(text, ATOM, literal=True)
    return Expr(text, ADD if getattr(size, "is_Add", False) else COMPARE, literal=True)


def number_expr(value: float | int | bool, dtype: torch.dtype) -> Expr:
    """A constant of `dtype` as a Python number."""
    if dtype is torch.bool:
        return Expr(str(bool(value)), literal=True)
    if not dtype.is_floating_point:
        return Expr(str(int(value)), UNARY if value < 0 else ATOM, literal=True)
    value = float(value)
    if not math.isfinite(value):
        return Expr(f'float("{value}")', literal=True)
    text = str(int(value)) + ".0" if value == int(value) and abs(value) < 1e6 else repr(value)
    text = "-0.0" if value == 0 and math.copysign(1, value) < 0 else text
    return Expr(text, UNARY if text.startswith("-") else ATOM, literal=True)


def sum_expr(
    terms: Sequence[tuple[Expr, Size]], offset: Size, names: Names = MappingProxyType({})
) -> Expr:
    """offset + sum(coefficient * term), what is subtracted last."""
    signed = [(c == -1, _product(term, c, names)) for term, c in terms]
    signed.sort(key=lambda part: part[0])
    if signed and signed[0][0]:  # all are subtracted: the offset goes first
        signed.insert(0, (False, size_expr(offset, names)))
    elif offset != 0 or not signed:
        negative = isinstance(offset, int) and offset < 0 and signed
        size = size_expr(-offset if negative else offset, names)
        signed.append((bool(negative), size))
    if len(signed) == 1:
        return replace(signed[0][1], literal=not terms)
    text = signed[0][1].at(ADD)
    for minus, part in signed[1:]:
        text += f" - {part.at(MUL)}" if minus else f" + {part.at(MUL)}"
    return Expr(text, ADD, literal=not terms)


def _product(term: Expr, coefficient: Size, names: Names) -> Expr:
    if coefficient in (1, -1):
        return term
    return Expr(f"{term.at(MUL)} * {size_expr(coefficient, names).at(ATOM)}", MUL)


DTYPE_SHORT = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def annotation(dtype: torch.dtype, shape: Sequence[Size]) -> str:
    """`"f32[n0, 768]"`, quotes included."""
    short = DTYPE_SHORT.get(dtype, str(dtype).removeprefix("torch."))
    return f'"{short}[{", ".join(map(size_text, shape))}]"'


# -- one form per pointwise function ------------------------------------------------------------

_BINARY = {
    "add": ("+", ADD),
    "sub": ("-", ADD),
    "mul": ("*", MUL),
    "div": ("/", MUL),
    "floordiv": ("//", MUL),
    "remainder": ("%", MUL),
    "and": ("&", AND),
    "or": ("|", OR),
    "xor": ("^", XOR),
    "shl": ("<<", SHIFT),
    "shr": (">>", SHIFT),
    "eq": ("==", COMPARE),
    "ne": ("!=", COMPARE),
    "lt": ("<", COMPARE),
    "le": ("<=", COMPARE),
    "gt": (">", COMPARE),
    "ge": (">=", COMPARE),
}
_UNARY = {"neg": "-", "not": "~"}
_CALLS = {
    "truncdiv": 'torch.div({}, {}, rounding_mode="trunc")',
    "ipow": "torch.pow({}, {})",
    "fma": "hl.fma({}, {}, {})",
    "i0": "torch.special.i0({})",
    "i0e": "torch.special.i0e({})",
    "i1": "torch.special.i1({})",
    "i1e": "torch.special.i1e({})",
}
_TENSORS_ONLY = frozenset(("minimum", "maximum", "atan2", "hypot", "nextafter", "copysign"))


def pointwise_expr(fn: str, operands: Sequence[Expr], dtype: torch.dtype) -> Expr:
    """`fn` of operands that broadcast as they are. `dtype`: that of the operands."""
    literal = [o.literal for o in operands]
    if all(literal[1:] if fn == "where" else literal) or fn in _TENSORS_ONLY:
        first = 1 if fn == "where" else 0
        operands = [*operands[:first], *(as_tensor(o, dtype) for o in operands[first:])]
    if fn in _BINARY:
        symbol, level = _BINARY[fn]
        # Comparisons do not chain, and the right operand of the others binds tighter.
        left = operands[0].at(level + 1 if level == COMPARE else level)
        return Expr(f"{left} {symbol} {operands[1].at(level + 1)}", level)
    if fn in _UNARY:
        return Expr(f"{_UNARY[fn]}{operands[0].at(UNARY)}", UNARY)
    form = _CALLS.get(fn, f"torch.{fn}({', '.join('{}' for _ in operands)})")
    return Expr(form.format(*(o.text for o in operands)))


def as_tensor(value: Expr, dtype: torch.dtype) -> Expr:
    """`value` as something that has methods and a dtype."""
    return Expr(f"hl.full([], {value.text}, dtype={dtype})") if value.literal else value


def reduction_expr(
    fn: str, value: Expr, dims: Sequence[int], rank: int, dtype: torch.dtype
) -> Expr:
    """`fn` over the dimensions `dims` of a tensor of `rank` dimensions."""
    method = {"max": "amax", "min": "amin"}.get(fn, fn)
    text = value.at(ATOM)
    narrow = not dtype.is_floating_point and dtype is not torch.int64
    keyword_ = f", dtype={dtype}" if narrow and fn in ("sum", "prod") else ""
    if len(dims) == rank and len(dims) > 1 and fn not in ("prod", "argmax", "argmin"):
        return Expr(f"{text}.{method}({keyword_.removeprefix(', ')})")
    for dim in sorted(dims, reverse=True):  # one dimension a call
        text, rank = f"{text}.{method}({dim - rank}{keyword_})", rank - 1
    return Expr(text)
