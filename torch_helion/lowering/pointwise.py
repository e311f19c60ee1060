"""Arithmetic, elementary functions and powers, element by element.

In: one call (registry.Context). Out: tile values. A formula is written once over `Term`s; a table
says which overloads it serves and by which of PyTorch's promotion kinds their operands meet.
Comparisons, bits, selections and casts are in selection.py, activations in activation.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.lowering.elementwise import Formula, call_of, family, rows
from torch_helion.lowering.promotion import (
    BOOL_TO_LONG,
    DEFAULT,
    HALF_TYPES,
    INT_TO_FLOAT,
    Number,
    PromotionKind,
    Term,
    bind,
    common_dtype,
    constant,
    convert,
    converted,
    promote,
    results,
    wide,
)
from torch_helion.lowering.registry import Context, Lowering
from torch_helion.lowering.selection import clamp_between

aten = torch.ops.aten
prims = torch.ops.prims


# -- arithmetic -------------------------------------------------------------------------------


def add(x: Term, y: Term, alpha: Number = 1) -> Term:
    if x.is_bool:
        return x | y if alpha else x
    return x + y if alpha == 1 else scaled_sum(x, y, alpha)


def sub(x: Term, y: Term, alpha: Number = 1) -> Term:
    if alpha == 1:
        return x - y
    return scaled_sum(x, y, -alpha)


def rsub(x: Term, y: Term, alpha: Number = 1) -> Term:
    return sub(y, x, alpha)


def scaled_sum(x: Term, y: Term, alpha: Number) -> Term:
    """x + alpha * y; ATen rounds alpha to the result's dtype and fuses the multiplication."""
    if not x.is_float:
        return x + y * x.like(convert(x.cx, alpha, x.dtype))
    factor = constant(x.cx, converted(alpha, x.cx.dtype), x.dtype)
    return y.call("fma", factor, x)


def mul(x: Term, y: Term) -> Term:
    return x & y if x.is_bool else x * y


def div(x: Term, y: Term, rounding_mode: str | None = None) -> Term:
    if rounding_mode is None:
        return x / y
    if rounding_mode == "floor":
        return x.call("floordiv", y)
    if rounding_mode == "trunc":
        return (x / y).call("trunc") if x.is_float else x.call("truncdiv", y)
    raise x.cx.refuse(f"rounding mode {rounding_mode!r} does not exist")


def div_mode(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """Division with a rounding mode: true division makes floats of integers, the others do not."""
    bound = bind(cx, args, kwargs)
    mode = bound["rounding_mode"].given
    kind = INT_TO_FLOAT if mode is None else DEFAULT
    x, y = promote(cx, [bound["self"], bound["other"]], kind, exact_scalars=(1,))
    return results(cx, div(x, y, mode))


def prims_div(x: Term, y: Term) -> Term:
    """prims.div truncates where both are integers (bools make floats)."""
    if x.is_bool:
        return x.to(x.cx.dtype) / y.to(x.cx.dtype)
    return div(x, y, None if x.is_float else "trunc")


def floor_divide(x: Term, y: Term) -> Term:
    return x.call("floordiv", y)


def fma(x: Term, y: Term, z: Term) -> Term:
    return x.call("fma", y, z) if x.is_float else x * y + z


def reciprocal(x: Term) -> Term:
    return 1.0 / x


def square(x: Term) -> Term:
    return x * x


def of_floats(fn: str) -> Formula:
    def formula(x: Term) -> Term:
        return x.call(fn) if x.is_float else x

    formula.__name__ = fn
    return formula


def round_decimals(x: Term, decimals: int) -> Term:
    if not x.is_float or decimals == 0:
        return of_floats("round")(x)
    power = 10.0 ** abs(decimals)
    if decimals > 0:
        return (x * power).call("round") / power
    return (x / power).call("round") * power


def frac(x: Term) -> Term:
    return x - x.call("trunc")


def absolute(x: Term) -> Term:
    return x if x.is_bool or x.dtype is torch.uint8 else x.call("abs")


def sign(x: Term) -> Term:
    return x if x.is_bool else x.call("sign")


def deg2rad(x: Term) -> Term:
    return x * (math.pi / 180)


def rad2deg(x: Term) -> Term:
    return x * (180 / math.pi)


def sinc(x: Term) -> Term:
    turn = x * math.pi
    return x.eq(0).where(1, turn.call("sin") / turn)


def logit(x: Term, eps: float | None = None) -> Term:
    if eps is not None and eps >= 0:
        x = clamp_between(x, eps, 1 - eps)
    return (x / (1 - x)).call("log")


def nan_to_num(
    x: Term, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Term:
    if not x.is_float:
        return x
    largest = torch.finfo(x.cx.dtype).max
    y = x.ne(x).where(0.0 if nan is None else nan, x)
    y = x.eq(math.inf).where(largest if posinf is None else posinf, y)
    return x.eq(-math.inf).where(-largest if neginf is None else neginf, y)


def xlogy(x: Term, y: Term) -> Term:
    return y.ne(y).where(y, x.eq(0).where(0, x * y.call("log")))


def xlog1py(x: Term, y: Term) -> Term:
    return y.ne(y).where(y, x.eq(0).where(0, x * y.call("log1p")))


def entr(x: Term) -> Term:
    positive = -x * (x > 0).where(x, 1).call("log")
    return (x > 0).where(positive, x.eq(0).where(0, x.ne(x).where(x, -math.inf)))


def ndtr(x: Term) -> Term:
    return 0.5 * (x * -math.sqrt(0.5)).call("erfc")


def logaddexp(x: Term, y: Term) -> Term:
    top = x.call("maximum", y)
    joined = top + (-(x - y).call("abs")).call("exp").call("log1p")
    return (x.eq(y) & x.call("isinf")).where(x, joined)


def logaddexp2(x: Term, y: Term) -> Term:
    top = x.call("maximum", y)
    joined = top + (-(x - y).call("abs")).call("exp2").call("log1p") * (1 / math.log(2))
    return (x.eq(y) & x.call("isinf")).where(x, joined)


def ldexp(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """self * 2**other, the power being a value of its own type, as ATen computes it."""
    bound = bind(cx, args, kwargs)
    (exponent,) = promote(cx, [bound["other"]], INT_TO_FLOAT)
    power = exponent.constant(2).call("pow", exponent)
    power = power.to(common_dtype(cx, [bound["other"]], INT_TO_FLOAT))
    (x,) = promote(cx, [bound["self"]])
    target = wide(cx.dtype)
    return results(cx, x.to(cx.dtype).to(target) * power.to(cx.dtype).to(target))


def heaviside(x: Term, values: Term) -> Term:
    return x.eq(0).where(values, (x > 0).to(x.dtype))


def nextafter(x: Term, y: Term) -> Term:
    if x.cx.dtype in HALF_TYPES:
        raise x.cx.refuse("the next value of a half type is not the next float32")
    return x.call("nextafter", y)


def lerp(start: Term, end: Term, weight: Term | Number) -> Term:
    """ATen's two formulas: exact at both ends."""
    span = end - start
    if isinstance(weight, Term):
        low = weight.call("fma", span, start)
        return (weight.call("abs") < 0.5).where(low, (-span).call("fma", 1 - weight, end))
    if abs(weight) < 0.5:
        return span.call("fma", weight, start)
    return (-span).call("fma", 1 - weight, end)


def addcmul(x: Term, y: Term, z: Term, value: Number = 1) -> Term:
    product = y * z if value == 1 else convert(x.cx, value, x.dtype) * y * z
    return x + product


def addcdiv(x: Term, y: Term, z: Term, value: Number = 1) -> Term:
    quotient = y / z if value == 1 else convert(x.cx, value, x.dtype) * y / z
    return x + quotient


# -- powers -----------------------------------------------------------------------------------


def power_of(x: Term, exponent: Number) -> Term:
    """x ** a known exponent, with the shortcuts that ATen takes."""
    if exponent == 0:
        return x.constant(1)
    if exponent == 1:
        return x
    if not x.is_float:
        return integer_power(x, exponent)
    short: dict[float, Callable[[], Term]] = {
        0.5: lambda: x.call("sqrt"),
        -0.5: lambda: x.call("rsqrt"),
        -1.0: lambda: 1.0 / x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        -2.0: lambda: 1.0 / (x * x),
    }
    if float(exponent) in short:
        return short[float(exponent)]()
    return x.call("pow", constant(x.cx, converted(float(exponent), x.cx.dtype), x.dtype))


def integer_power(x: Term, exponent: Number) -> Term:
    if exponent < 0 or exponent != int(exponent):
        raise x.cx.refuse("integers to negative powers are an error")
    if exponent <= 4:
        return (x * x, x * x * x, (x * x) * (x * x))[int(exponent) - 2]
    # Only the exponent's value counts, not its dtype: square and multiply.
    result: Term | None = None
    base, left = x, int(exponent)
    while left:
        if left & 1:
            result = base if result is None else result * base
        base, left = (base * base if left > 1 else base), left >> 1
    assert result is not None
    return result


def power(x: Term, y: Term) -> Term:
    if x.is_float:
        return x.call("pow", y)
    if x.dtype is torch.uint8:
        return x.call("ipow", y)
    # A negative exponent leaves 1 of 1, +-1 of -1, and 0 of all else.
    odd = (y & 1).ne(0)
    unit = x.eq(1).where(1, x.eq(-1).where(odd.where(-1, x.constant(1)), 0 * x))
    return (y < 0).where(unit, x.call("ipow", y.call("maximum", 0)))


def pow_scalar(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    exponent = bound["exponent"].given
    if not isinstance(exponent, (bool, int, float)):
        x, y = promote(cx, [bound["self"], bound["exponent"]], BOOL_TO_LONG)
        return results(cx, power(x, y))
    dtype = common_dtype(cx, [bound["self"], bound["exponent"]], BOOL_TO_LONG)
    return results(cx, power_of(convert(cx, bound["self"].given, dtype, wide(dtype)), exponent))


def float_power(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """Both operands in float64, then pow."""
    bound = bind(cx, args, kwargs)
    x, y = (bound[n].given for n in list(bound)[:2])
    if isinstance(y, (bool, int, float)):
        return results(cx, power_of(convert(cx, x, torch.float64), y))
    return results(cx, power(convert(cx, x, torch.float64), convert(cx, y, torch.float64)))


# -- rows -------------------------------------------------------------------------------------

FLOAT_FUNCTIONS: dict[str, tuple[OpOverload, ...]] = {
    "acos": (aten.acos.default, aten.arccos.default, prims.acos.default),
    "acosh": (aten.acosh.default, aten.arccosh.default, prims.acosh.default),
    "asin": (aten.asin.default, aten.arcsin.default, prims.asin.default),
    "asinh": (aten.asinh.default, aten.arcsinh.default, prims.asinh.default),
    "atan": (aten.atan.default, aten.arctan.default, prims.atan.default),
    "atanh": (aten.atanh.default, aten.arctanh.default, prims.atanh.default),
    "cos": (aten.cos.default, prims.cos.default),
    "cosh": (aten.cosh.default, prims.cosh.default),
    "digamma": (
        aten.digamma.default,
        aten.special_psi.default,
        aten.special_digamma.default,
        prims.digamma.default,
    ),
    "erf": (aten.erf.default, aten.special_erf.default, prims.erf.default),
    "erfc": (aten.erfc.default, aten.special_erfc.default, prims.erfc.default),
    "erfinv": (aten.erfinv.default, aten.special_erfinv.default, prims.erf_inv.default),
    "exp": (aten.exp.default, prims.exp.default),
    "exp2": (aten.exp2.default, aten.special_exp2.default, prims.exp2.default),
    "expm1": (aten.expm1.default, aten.special_expm1.default, prims.expm1.default),
    "i0": (aten.i0.default, aten.special_i0.default, prims.bessel_i0.default),
    "i0e": (aten.special_i0e.default, prims.bessel_i0e.default),
    "i1": (aten.special_i1.default, prims.bessel_i1.default),
    "i1e": (aten.special_i1e.default, prims.bessel_i1e.default),
    "lgamma": (aten.lgamma.default, aten.special_gammaln.default, prims.lgamma.default),
    "log": (aten.log.default, prims.log.default),
    "log10": (aten.log10.default, prims.log10.default),
    "log1p": (aten.log1p.default, aten.special_log1p.default, prims.log1p.default),
    "log2": (aten.log2.default, prims.log2.default),
    "rsqrt": (aten.rsqrt.default, prims.rsqrt.default),
    "sigmoid": (aten.sigmoid.default, aten.special_expit.default),
    "sin": (aten.sin.default, prims.sin.default),
    "sinh": (aten.sinh.default, prims.sinh.default),
    "sqrt": (aten.sqrt.default, prims.sqrt.default),
    "tan": (aten.tan.default, prims.tan.default),
    "tanh": (aten.tanh.default, prims.tanh.default),
}

BINARY_FUNCTIONS: dict[str, tuple[PromotionKind, tuple[OpOverload, ...]]] = {
    "atan2": (INT_TO_FLOAT, (aten.atan2.default, aten.arctan2.default, prims.atan2.default)),
    "hypot": (DEFAULT, (aten.hypot.default, prims.hypot.default)),
    "copysign": (INT_TO_FLOAT, (aten.copysign.Tensor, aten.copysign.Scalar)),
    "fmod": (DEFAULT, (aten.fmod.Tensor, aten.fmod.Scalar, prims.fmod.default)),
    "remainder": (
        DEFAULT,
        (
            aten.remainder.Tensor,
            aten.remainder.Scalar,
            aten.remainder.Scalar_Tensor,
            prims.remainder.default,
        ),
    ),
}

UNARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (absolute, DEFAULT, (aten.abs.default, aten.absolute.default, prims.abs.default)),
    (call_of("neg"), DEFAULT, (aten.neg.default, aten.negative.default, prims.neg.default)),
    (sign, DEFAULT, (aten.sign.default, aten.sgn.default, prims.sign.default)),
    (of_floats("floor"), DEFAULT, (aten.floor.default, prims.floor.default)),
    (of_floats("ceil"), DEFAULT, (aten.ceil.default, prims.ceil.default)),
    (of_floats("trunc"), DEFAULT, (aten.trunc.default, aten.fix.default, prims.trunc.default)),
    (of_floats("round"), DEFAULT, (aten.round.default, prims.round.default)),
    (round_decimals, DEFAULT, (aten.round.decimals, aten.special_round.default)),
    (frac, DEFAULT, (aten.frac.default,)),
    (square, BOOL_TO_LONG, (aten.square.default,)),
    (reciprocal, INT_TO_FLOAT, (aten.reciprocal.default, prims.reciprocal.default)),
    (deg2rad, INT_TO_FLOAT, (aten.deg2rad.default,)),
    (rad2deg, INT_TO_FLOAT, (aten.rad2deg.default,)),
    (sinc, INT_TO_FLOAT, (aten.sinc.default, aten.special_sinc.default)),
    (logit, INT_TO_FLOAT, (aten.logit.default, aten.special_logit.default)),
    (entr, INT_TO_FLOAT, (aten.special_entr.default,)),
    (ndtr, INT_TO_FLOAT, (aten.special_ndtr.default,)),
    (nan_to_num, DEFAULT, (aten.nan_to_num.default,)),
)

BINARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (add, DEFAULT, (aten.add.Tensor, aten.add.Scalar, prims.add.default)),
    (
        sub,
        DEFAULT,
        (
            aten.sub.Tensor,
            aten.sub.Scalar,
            aten.subtract.Tensor,
            aten.subtract.Scalar,
            prims.sub.default,
        ),
    ),
    (rsub, DEFAULT, (aten.rsub.Tensor, aten.rsub.Scalar)),
    (prims_div, DEFAULT, (prims.div.default,)),
    (nextafter, DEFAULT, (aten.nextafter.default, prims.nextafter.default)),
    (heaviside, DEFAULT, (aten.heaviside.default,)),
    (
        xlogy,
        INT_TO_FLOAT,
        (
            aten.xlogy.Tensor,
            aten.xlogy.Scalar_Self,
            aten.xlogy.Scalar_Other,
            aten.special_xlogy.default,
            aten.special_xlogy.self_scalar,
            aten.special_xlogy.other_scalar,
        ),
    ),
    (
        xlog1py,
        INT_TO_FLOAT,
        (
            aten.special_xlog1py.default,
            aten.special_xlog1py.self_scalar,
            aten.special_xlog1py.other_scalar,
        ),
    ),
    (logaddexp, DEFAULT, (aten.logaddexp.default,)),
    (logaddexp2, DEFAULT, (aten.logaddexp2.default,)),
    (power, BOOL_TO_LONG, (aten.pow.Tensor_Tensor, aten.pow.Scalar, prims.pow.default)),
)

# Single elements as second operand stay unrounded beside half types (ATen's CPU kernels, measured).
EXACT_BINARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (
        mul,
        DEFAULT,
        (
            aten.mul.Tensor,
            aten.mul.Scalar,
            aten.multiply.Tensor,
            aten.multiply.Scalar,
            prims.mul.default,
        ),
    ),
    (
        div,
        INT_TO_FLOAT,
        (
            aten.div.Tensor,
            aten.div.Scalar,
            aten.divide.Tensor,
            aten.divide.Scalar,
            aten.true_divide.Tensor,
            aten.true_divide.Scalar,
        ),
    ),
    (floor_divide, DEFAULT, (aten.floor_divide.default, aten.floor_divide.Scalar)),
)

POINTWISE: tuple[Lowering, ...] = (
    *(
        row
        for fn, ops in FLOAT_FUNCTIONS.items()
        for row in family(call_of(fn), 1, INT_TO_FLOAT, *ops)
    ),
    *(
        row
        for fn, (kind, ops) in BINARY_FUNCTIONS.items()
        for row in family(call_of(fn), 2, kind, *ops)
    ),
    *(row for formula, kind, ops in UNARY for row in family(formula, 1, kind, *ops)),
    *(row for formula, kind, ops in BINARY for row in family(formula, 2, kind, *ops)),
    *(
        row
        for formula, kind, ops in EXACT_BINARY
        for row in family(formula, 2, kind, *ops, exact_scalars=(1,))
    ),
    *rows(
        div_mode,
        aten.div.Tensor_mode,
        aten.div.Scalar_mode,
        aten.divide.Tensor_mode,
        aten.divide.Scalar_mode,
    ),
    *rows(pow_scalar, aten.pow.Tensor_Scalar),
    *rows(
        float_power,
        aten.float_power.Tensor_Tensor,
        aten.float_power.Tensor_Scalar,
        aten.float_power.Scalar,
    ),
    *rows(ldexp, aten.ldexp.Tensor),
    *family(lerp, 2, DEFAULT, aten.lerp.Scalar),
    *family(lerp, 3, DEFAULT, aten.lerp.Tensor),
    *family(addcmul, 3, DEFAULT, aten.addcmul.default),
    *family(addcdiv, 3, DEFAULT, aten.addcdiv.default),
)
