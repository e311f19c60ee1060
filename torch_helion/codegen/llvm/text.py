"""Pieces of LLVM text: types, literals, size arithmetic, and the nested code lists of one function.

In: dtypes, Python numbers, size expressions. Out: strings. Used by the emitters of this folder
only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.types import Size

# Half and 8-bit floats are carried as their bits; only casts look inside.
STORAGE: dict[torch.dtype, str] = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "i16",
    torch.float16: "i16",
    torch.float8_e4m3fn: "i8",
    torch.float8_e5m2: "i8",
    torch.bool: "i8",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint16: "i16",
    torch.uint32: "i32",
    torch.uint64: "i64",
}

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def storage_type(dtype: torch.dtype) -> str:
    """LLVM type of an element in memory."""
    try:
        return STORAGE[dtype]
    except KeyError:
        raise exc.CodegenError(f"llvm: no type for {dtype}") from None


def register_type(dtype: torch.dtype, width: int = 1) -> str:
    """LLVM type of a value of `width` elements (1: a scalar)."""
    scalar = "i1" if dtype is torch.bool else storage_type(dtype)
    return scalar if width == 1 else f"<{width} x {scalar}>"


def is_bits_only(dtype: torch.dtype) -> bool:
    """Floats narrower than 32 bits: no arithmetic, only moves and casts."""
    return dtype.is_floating_point and dtype.itemsize < 4


def is_signed(dtype: torch.dtype) -> bool:
    return dtype not in (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool)


def literal(value: float | int | bool, dtype: torch.dtype) -> str:
    """A scalar constant of `dtype`; floats as the hex of a double, which LLVM reads exactly."""
    if dtype is torch.bool:
        return "true" if value else "false"
    if dtype in (torch.float32, torch.float64):
        number = float(value)
        if dtype is torch.float32:
            number = torch.tensor(number, dtype=torch.float64).to(torch.float32).item()
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    if dtype.is_floating_point:
        bits = torch.tensor(float(value), dtype=torch.float64).to(dtype).view(_BITS[dtype.itemsize])
        return str(int(bits))
    number = int(value)
    width = dtype.itemsize * 8
    number &= (1 << width) - 1
    return str(number - (1 << width) if number >= 1 << (width - 1) else number)


def splat(scalar: str, type: str) -> str:
    """A constant vector of `type`'s elements, as an operand text."""
    return f"splat ({type} {scalar})"


@dataclass
class Names:
    """Unique names within a function: role + number."""

    used: dict[str, int] = field(default_factory=dict)

    def fresh(self, hint: str) -> str:
        base = "".join(c if c.isalnum() or c == "_" else "_" for c in hint) or "v"
        number = self.used.get(base, 0)
        self.used[base] = number + 1
        return f"%{base}" if number == 0 and not base[-1].isdigit() else f"%{base}.{number}"


class SizeEmitter:
    """Emits int64 size arithmetic into one code list; equal expressions are computed once."""

    def __init__(self, names: Names, code: list[str], symbols: Mapping[sympy.Symbol, str]) -> None:
        self.names = names
        self.code = code
        self.known: dict[sympy.Expr, str] = dict(symbols)

    def op(self, text: str, hint: str = "n") -> str:
        name = self.names.fresh(hint)
        self.code.append(f"  {name} = {text}")
        return name

    def __call__(self, expr: Size) -> str:
        if isinstance(expr, int):
            return str(expr)
        if expr.is_Integer:
            return str(int(expr))
        if expr not in self.known:
            self.known[expr] = self._emit(expr)
        return self.known[expr]

    def _emit(self, expr: sympy.Expr) -> str:
        name = type(expr).__name__
        if isinstance(expr, sympy.Add):
            return self._fold("add nsw", expr.args)
        if isinstance(expr, sympy.Mul) and all(_integral(a) for a in expr.args):
            return self._fold("mul nsw", expr.args)
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            return self._fold("mul nsw", [expr.base] * int(expr.exp))
        if name in ("FloorDiv", "CleanDiv"):
            return self.div(self(expr.args[0]), self(expr.args[1]))
        if name == "ModularIndexing":
            quotient = self.div(self(expr.args[0]), self(expr.args[1]))
            return self.op(f"srem i64 {quotient}, {self(expr.args[2])}")
        if name in ("PythonMod", "Mod"):
            return self.op(f"srem i64 {self(expr.args[0])}, {self(expr.args[1])}")
        if name in ("Max", "Min"):
            out = self(expr.args[0])
            for arg in expr.args[1:]:
                out = self.op(f"call i64 @llvm.s{name.lower()}.i64(i64 {out}, i64 {self(arg)})")
            return out
        if isinstance(expr, (sympy.ceiling, sympy.floor)) or name in ("CeilToInt", "CeilDiv"):
            numerator, denominator = (
                expr.args if name == "CeilDiv" else expr.args[0].as_numer_denom()
            )
            if isinstance(expr, sympy.floor):
                return self.div(self(numerator), self(denominator))
            return self.ceil_div(numerator, denominator)
        raise exc.CodegenError(f"llvm: no size arithmetic for {name} in {expr}")

    def _fold(self, op: str, args: Sequence[sympy.Expr]) -> str:
        out = self(args[0])
        for arg in args[1:]:
            out = self.op(f"{op} i64 {out}, {self(arg)}")
        return out

    def div(self, a: str, b: str) -> str:
        return self.op(f"sdiv i64 {a}, {b}")

    def ceil_div(self, a: Size, b: Size) -> str:
        """ceil(a / b) for a >= 0, b > 0."""
        if isinstance(a, int) and isinstance(b, int):
            return str(-(-a // b))
        if b == 1:
            return self(a)
        less = self.op(f"add nsw i64 {self(b)}, -1")
        return self.div(self.op(f"add nsw i64 {self(a)}, {less}"), self(b))

    def round_up(self, value: str, multiple: int) -> str:
        """`value` (an operand) to the next multiple of a power of two."""
        if value.isdigit():
            return str(-(-int(value) // multiple) * multiple)
        more = self.op(f"add nsw i64 {value}, {multiple - 1}")
        return self.op(f"and i64 {more}, {-multiple}")

    def mul(self, a: str, b: str) -> str:
        if a.lstrip("-").isdigit() and b.lstrip("-").isdigit():
            return str(int(a) * int(b))
        if a == "1" or b == "1":
            return b if a == "1" else a
        return self.op(f"mul nsw i64 {a}, {b}")

    def add(self, a: str, b: str) -> str:
        if a.lstrip("-").isdigit() and b.lstrip("-").isdigit():
            return str(int(a) + int(b))
        if a == "0" or b == "0":
            return b if a == "0" else a
        return self.op(f"add nsw i64 {a}, {b}")


def _integral(expr: sympy.Expr) -> bool:
    return not (expr.is_Rational and not expr.is_Integer) and not (
        isinstance(expr, sympy.Pow) and not (expr.exp.is_Integer and expr.exp > 0)
    )
