"""Vector math for kernels: functions as LLVM text, printed only where a kernel uses them.

In: names of functions, element kinds and widths, asked for while a kernel is printed.  Out: the
text of their definitions, to stand in the same module.  Called by the llvm target's op printers.

    library = MathLibrary(16, machine)
    line = "%y = " + library.call("exp", "f32", ["%x"])
    module = [kernel_text, *library.definitions()]

A function is written once, as a formula over an ``Emitter`` (``vector_math_exponential``,
``_trigonometric``, ``_special``, ``_arithmetic``, ``_random``), and serves f32 and f64, every
width and every machine.  None carries a fast-math flag; NaN, inf, signed zeros and subnormal
numbers have IEEE's meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch_helion.codegen.llvm import vector_math_arithmetic as arithmetic
from torch_helion.codegen.llvm import vector_math_exponential as exponential
from torch_helion.codegen.llvm import vector_math_random as random
from torch_helion.codegen.llvm import vector_math_special as special
from torch_helion.codegen.llvm import vector_math_trigonometric as trigonometric
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.vector_math_emitter import (
    Emitter,
    Value,
    lane_call_text,
    vector_type,
)


@dataclass(frozen=True)
class MathFunction:
    """One function: its formula and the kinds of its operands and result ("T": f32 or f64)."""

    name: str
    formula: Callable[..., Value]
    operands: tuple[str, ...] = ("T",)
    result: str = "T"
    inline: bool = True

    def kinds(self, dtype: str) -> tuple[tuple[str, ...], str]:
        """Kinds of operands and result for ``dtype``; a function without T takes only f32."""
        if "T" not in (*self.operands, self.result) and dtype != "f32":
            raise ValueError(f"{self.name} is defined for f32 only")
        operands = tuple(dtype if kind == "T" else kind for kind in self.operands)
        return operands, dtype if self.result == "T" else self.result


def _rows(module: object, names: str, arity: int = 1, inline: bool = True) -> list[MathFunction]:
    """Rows of one module's functions; "pow" is the module's ``pow_``."""
    return [
        MathFunction(n, getattr(module, n, None) or getattr(module, n + "_"), ("T",) * arity,
                     inline=inline)
        for n in names.split()
    ]  # fmt: skip


_RANDOM = ("i64", "i64")  # seed, index


def _random_rows(word: int) -> list[MathFunction]:
    """Random numbers from one word of the Philox block: "rand", and "rand1" to "rand3"."""
    bounds = (*_RANDOM, "i64", "i64")
    end = str(word or "")
    return [
        MathFunction(f"rand{end}", partial(random.rand, word=word), _RANDOM, "f32"),
        MathFunction(f"randn{end}", partial(random.randn, word=word), _RANDOM, "f32"),
        MathFunction(f"randint{end}", partial(random.randint, word=word), bounds, "i64"),
    ]


def _rows_of_bf16() -> list[MathFunction]:
    """Rounding to bfloat16, for any number and (``_plain``) where NaNs need no care."""
    rows = []
    for end, plain in (("", False), ("_plain", True)):
        above = partial(arithmetic.bf16_above, plain=plain)
        narrow = partial(arithmetic.f32_to_bf16, plain=plain)
        rows.append(MathFunction(f"bf16_above{end}", above, ("f32",), "i32"))
        rows.append(MathFunction(f"f32_to_bf16{end}", narrow, ("f32",), "i16"))
    return rows


FUNCTIONS: dict[str, MathFunction] = {
    row.name: row
    for row in (
        *_rows(exponential, "exp exp_fast exp2 expm1 log log2 log10 log1p sigmoid tanh"),
        *_rows(exponential, "sinh cosh asinh acosh atanh"),
        *_rows(exponential, "pow", 2),
        *_rows(trigonometric, "sin cos tan sinc asin acos atan"),
        *_rows(trigonometric, "atan2", 2),
        *_rows(special, "erf erfc"),
        *_rows(special, "erfinv lgamma digamma i0 i0e i1 i1e", inline=False),
        *_rows(arithmetic, "rsqrt"),
        *_rows(arithmetic, "hypot fmod remainder floordiv nextafter", 2),
        *_rows_of_bf16(),
        MathFunction("sigmoid_short", exponential.sigmoid_short, ("f32",), "f32"),
        MathFunction("one_plus_erf_short", special.one_plus_erf_short, ("f32",), "f32"),
        MathFunction("bf16_to_f32", arithmetic.bf16_to_f32, ("i16",), "f32"),
        MathFunction("round_to_bf16", arithmetic.round_to_bf16, ("f32",), "f32"),
        MathFunction("f32_to_f16", arithmetic.f32_to_f16, ("f32",), "i16"),
        MathFunction("f16_to_f32", arithmetic.f16_to_f32, ("i16",), "f32"),
        MathFunction("round_to_f16", arithmetic.round_to_f16, ("f32",), "f32"),
        MathFunction("f32_to_e4m3fn", arithmetic.f32_to_e4m3fn, ("f32",), "i8"),
        MathFunction("e4m3fn_to_f32", arithmetic.e4m3fn_to_f32, ("i8",), "f32"),
        MathFunction("f32_to_e5m2", arithmetic.f32_to_e5m2, ("f32",), "i8"),
        MathFunction("e5m2_to_f32", arithmetic.e5m2_to_f32, ("i8",), "f32"),
        *(row for word in range(4) for row in _random_rows(word)),
    )
}


class MathLibrary:
    """The math functions of one module: gives symbols, remembers them, prints them."""

    def __init__(self, width: int, machine: Machine, inline: bool = True) -> None:
        """``width``: lanes when a call does not say (1 is a scalar); ``inline``: as LLVM must."""
        self.width = width
        self.machine = machine
        self.inline = inline
        self._texts: dict[str, list[str]] = {}  # symbol: lines
        self._declares: set[str] = set()

    def use(self, name: str, dtype: str, width: int | None = None) -> str:
        """The symbol of a function, "@th_exp_f32_v16", whose definition will be printed."""
        lanes = self.width if width is None else width
        if lanes < 1 or lanes & (lanes - 1) or lanes > 64:
            raise ValueError(f"{name}: width {lanes} is not a power of two up to 64")
        function = FUNCTIONS[name]
        symbol = f"@th_{name}_{dtype}_v{lanes}"
        if symbol not in self._texts:
            self._texts[symbol] = self._define(function, symbol, dtype, lanes)
        return symbol

    def call(self, name: str, dtype: str, operands: Sequence[str], width: int | None = None) -> str:
        """The call itself, without a result name: "call <16 x float> @th_exp_f32_v16(…)"."""
        symbol = self.use(name, dtype, width)
        lanes = self.width if width is None else width
        kinds, result = FUNCTIONS[name].kinds(dtype)
        arguments = ", ".join(
            f"{vector_type(kind, lanes)} {operand}"
            for kind, operand in zip(kinds, operands, strict=True)
        )
        return f"call {vector_type(result, lanes)} {symbol}({arguments})"

    def definitions(self) -> list[str]:
        """Declarations and definitions of everything used, one string each, in a fixed order.

        LLVM declares its own intrinsics; what is declared here are functions of libm.
        """
        functions = ["\n".join(lines) for _, lines in sorted(self._texts.items())]
        return self.declarations() + functions

    def declarations(self) -> list[str]:
        """The libm functions that definitions call (part of ``definitions``)."""
        return sorted(self._declares)

    def _define(self, function: MathFunction, symbol: str, dtype: str, width: int) -> list[str]:
        emitter = Emitter(width, self.machine, self._need_lane_calls)
        kinds, result_kind = function.kinds(dtype)
        operands = [Value(emitter, kind, f"%x{i}") for i, kind in enumerate(kinds)]
        result = function.formula(emitter, *operands)
        if result.kind != result_kind:
            raise TypeError(f"{symbol} returns {result.kind}, not {result_kind}")
        head = ", ".join(emitter.typed(v) for v in operands)
        attribute = "alwaysinline" if self.inline and function.inline else "noinline"
        return [
            f"define internal {emitter.type(result_kind)} {symbol}({head}) {attribute} nounwind {{",
            "entry:",
            *emitter.lines,
            f"  ret {emitter.typed(result)}",
            "}",
        ]

    def _need_lane_calls(self, libm: str, kind: str, width: int) -> str:
        symbol = f"@th_lanes_{libm}_{kind}_v{width}"
        arity = 2 if libm in ("fmod", "pow", "atan2") else 1
        parameters = ", ".join(["double"] * arity)
        self._declares.add(f"declare double @{libm}({parameters})")
        if symbol not in self._texts:
            self._texts[symbol] = lane_call_text(symbol, libm, kind, width, arity)
        return symbol
