"""Every row of `ops.POINTWISE` as a function of eager tensors: what each one means.

In: broadcastable tensors of one dtype. Out: a tensor. Used by the interpreter, and by tests that
check a target's own mathematics. The meaning is PyTorch's wherever PyTorch has the function; what
it leaves undefined (the smallest integer divided by -1) is defined here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

# PyTorch has hardly any arithmetic for these: they are computed in a wider type and wrapped back.
_WIDE_INTEGER = {torch.uint16: torch.int64, torch.uint32: torch.int64}


def wide_integer(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which integer arithmetic of `dtype` is done (itself, with few exceptions)."""
    return _WIDE_INTEGER.get(dtype, dtype)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` for all dtypes, by way of a wider one where PyTorch lacks the narrow one."""

    def call(*operands: Tensor) -> Tensor:
        dtype = operands[0].dtype
        wide = wide_integer(dtype)
        if wide is dtype:
            return function(*operands)
        result = function(*(x.to(wide) for x in operands))
        return result if result.dtype is torch.bool else result.to(dtype)

    return call


# -- integers -----------------------------------------------------------------------------------


def _by_minus_one(divisor: Tensor) -> Tensor:
    """Where the quotient of the smallest integer would overflow (a trap on some processors)."""
    if divisor.dtype.is_floating_point or divisor.dtype is torch.uint8:
        return torch.zeros_like(divisor, dtype=torch.bool)
    return divisor == -1


def _require_nonzero(divisor: Tensor) -> None:
    if not divisor.dtype.is_floating_point and bool((divisor == 0).any()):
        raise RuntimeError("ZeroDivisionError")


def _quotient(a: Tensor, b: Tensor, mode: str) -> Tensor:
    _require_nonzero(b)
    overflows = _by_minus_one(b)
    quotient = torch.div(a, b.masked_fill(overflows, 1), rounding_mode=mode)
    return torch.where(overflows, a.neg(), quotient)


def _truncdiv(a: Tensor, b: Tensor) -> Tensor:
    return _quotient(a, b, "trunc")


def _floordiv(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype.is_floating_point:
        return torch.floor_divide(a, b)
    return _quotient(a, b, "floor")


def _remainder(a: Tensor, b: Tensor) -> Tensor:
    _require_nonzero(b)
    return torch.remainder(a, b.masked_fill(_by_minus_one(b), 1))


def _fmod(a: Tensor, b: Tensor) -> Tensor:
    _require_nonzero(b)
    return torch.fmod(a, b.masked_fill(_by_minus_one(b), 1))


# -- floats -------------------------------------------------------------------------------------


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c with one rounding."""
    if a.dtype is torch.float64:
        return _fma_float64(a, b, c)
    wide = _sum_to_odd(a.double() * b.double(), c.double())  # the product is exact
    return wide.to(a.dtype)


def _sum_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """a + b in float64, inexact results rounded to the neighbour with an odd last bit.

    Rounding that once more to a dtype of at most 51 bits gives what one rounding would have given.
    """
    total = a + b
    from_b = total - a
    error = (a - (total - from_b)) + (b - from_b)
    even = (total.view(torch.int64) & 1) == 0
    inexact = total.isfinite() & error.isfinite() & (error != 0)
    toward = torch.where(error > 0, math.inf, -math.inf).to(torch.float64)
    return torch.where(inexact & even, torch.nextafter(total, toward), total)


def _fma_float64(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    a, b, c = torch.broadcast_tensors(a, b, c)
    rows = zip(a.flatten().tolist(), b.flatten().tolist(), c.flatten().tolist(), strict=True)
    return torch.tensor([_exact_fma(*row) for row in rows], dtype=torch.float64).reshape(a.shape)


def _exact_fma(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        # A finite product that overflows must not meet an infinite c of the other sign.
        return c if math.isfinite(a) and math.isfinite(b) else a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # keeps the sign of zero
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


# -- the table ----------------------------------------------------------------------------------

_ROWS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "div": torch.true_divide,
    "truncdiv": _truncdiv,
    "floordiv": _floordiv,
    "remainder": _remainder,
    "fmod": _fmod,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "i0": torch.special.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "ipow": torch.pow,
    "copysign": torch.copysign,
    "nextafter": torch.nextafter,
    "fma": _fma,
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "signbit": torch.signbit,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "not": torch.bitwise_not,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
    "where": torch.where,
}

POINTWISE_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: function if name == "where" else _plain(function) for name, function in _ROWS.items()
}
