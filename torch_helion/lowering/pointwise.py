"""Elementwise ATen and prims overloads: arithmetic, comparisons, bits, casts, selections.

In: one call (registry.Context). Out: tile values. A formula is written once over `Term`s; a table says which
overloads it serves and by which of PyTorch's promotion kinds their operands meet. Activations and their
backward formulas are in activation.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.inductor_prims  # registers prims.fma and the random prims
from torch._ops import OpOverload

from torch_helion.lowering.promotion import (
    ALWAYS_BOOL,
    BOOL_TO_LONG,
    DEFAULT,
    HALF_TYPES,
    INT_TO_FLOAT,
    Argument,
    Number,
    PromotionKind,
    Term,
    bind,
    check_supported,
    common_dtype,
    constant,
    convert,
    converted,
    promote,
    results,
    wide,
)
from torch_helion.lowering.registry import Context, Lowering, Rule

aten = torch.ops.aten
prims = torch.ops.prims

Formula = Callable[..., Any]

# Arguments that say where a result lives, not what it holds.
PLACEMENT = frozenset(
    ("layout", "pin_memory", "non_blocking", "memory_format", "requires_grad", "copy", "device", "keepdim")
)


# -- rules from formulas ----------------------------------------------------------------------------


def call_of(fn: str) -> Formula:
    """The formula that is the pointwise function `fn` itself."""

    def formula(x: Term, *others: Term) -> Term:
        return x.call(fn, *others)

    formula.__name__ = fn
    return formula


def accepted(cx: Context, formula: Formula, rest: dict[str, Argument]) -> dict[str, Any]:
    """The arguments that the formula has parameters for; the others must hold their defaults."""
    parameters = inspect.signature(formula).parameters
    defaults = {formal.name: formal.default_value for formal in cx.overload._schema.arguments}
    for name, argument in rest.items():
        if name not in parameters and name not in PLACEMENT and argument.given != defaults[name]:
            raise cx.refuse(f"argument {name}={argument.given} has no meaning here")
    return {name: argument.given for name, argument in rest.items() if name in parameters}


def elementwise(formula: Formula, operands: int, kind: PromotionKind = DEFAULT,
                exact_scalars: Sequence[int] = (), move: bool = False) -> Rule:
    """A rule: promote the first `operands` arguments together, hand the rest to `formula` by name."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        names = list(bound)
        terms = promote(cx, [bound[n] for n in names[:operands]], kind, exact_scalars, move)
        rest = accepted(cx, formula, {n: bound[n] for n in names[operands:]})
        return results(cx, formula(*terms, **rest))

    rule.__name__ = formula.__name__
    return rule


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(overload, "pointwise", rule) for overload in overloads)


def family(formula: Formula, operands: int, kind: PromotionKind, *overloads: OpOverload,
           exact_scalars: Sequence[int] = ()) -> tuple[Lowering, ...]:
    return rows(elementwise(formula, operands, kind, exact_scalars), *overloads)


# -- arithmetic -------------------------------------------------------------------------------------


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


def unchanged_for_integers(fn: str) -> Formula:
    def formula(x: Term) -> Term:
        return x.call(fn) if x.is_float else x

    formula.__name__ = fn
    return formula


def round_decimals(x: Term, decimals: int) -> Term:
    if not x.is_float or decimals == 0:
        return unchanged_for_integers("round")(x)
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


def nan_to_num(x: Term, nan: float | None = None, posinf: float | None = None,
               neginf: float | None = None) -> Term:
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


# -- powers -----------------------------------------------------------------------------------------


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


# -- order ------------------------------------------------------------------------------------------


def fmax(x: Term, y: Term) -> Term:
    return (y.ne(y) | (y < x)).where(x, y) if x.is_float else x.call("maximum", y)


def fmin(x: Term, y: Term) -> Term:
    return (y.ne(y) | (y > x)).where(x, y) if x.is_float else x.call("minimum", y)


def limit(x: Term, fn: str, bound: Term, known: bool = False) -> Term:
    """x, or `bound` where x is beyond it (fn: lt, gt). A NaN on either side wins; -0 against 0 leaves x.

    `known`: the bound is a number that is no NaN.
    """
    beyond = x.call(fn, bound)
    if bound.is_float and not known:
        beyond = beyond | bound.ne(bound)
    return beyond.where(bound, x)


def clamp_between(x: Term, low: Number, high: Number) -> Term:
    return limit(limit(x, "lt", x.constant(low), low == low), "gt", x.constant(high), high == high)


def clamp(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """Every form of clamp: numbers, tensors, one side left out."""
    bound = bind(cx, args, kwargs)
    sides = [(bound[n], fn) for n, fn in (("min", "lt"), ("max", "gt")) if n in bound]
    sides = [(argument, fn) for argument, fn in sides if argument.given is not None]
    x, *bounds = promote(cx, [bound["self"], *(argument for argument, _ in sides)])
    for (argument, fn), term in zip(sides, bounds, strict=True):
        known = isinstance(argument.given, (bool, int, float)) and argument.given == argument.given
        x = limit(x, fn, term, known)
    return results(cx, x)


def isclose(x: Term, y: Term, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Term:
    same = x.eq(y)
    if equal_nan and x.is_float:
        same = same | (x.ne(x) & y.ne(y))
    if rtol == 0 and atol == 0:
        return same
    if not x.is_float:
        raise x.cx.refuse("integers are compared in another dtype")
    distance = (x - y).call("abs")
    return same | (distance.call("isfinite") & (distance <= atol + (rtol * y).call("abs")))


def is_class(fn: str) -> Formula:
    """isnan, isinf: integers are never one of those."""

    def formula(x: Term) -> Term:
        return x.call(fn) if x.is_float else x.ne(x)

    formula.__name__ = fn
    return formula


def isfinite(x: Term) -> Term:
    return x.call("isfinite") if x.is_float else x.eq(x)


def isposinf(x: Term) -> Term:
    return x.eq(math.inf) if x.is_float else x.ne(x)


def isneginf(x: Term) -> Term:
    return x.eq(-math.inf) if x.is_float else x.ne(x)


def signbit(x: Term) -> Term:
    return x.ne(x) if x.is_bool else x.call("signbit")


# -- bits and truth ---------------------------------------------------------------------------------


def truth(x: Term) -> Term:
    return x if x.is_bool else x.ne(0)


def logical(fn: str) -> Rule:
    """Operands become bools one by one: no promotion."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        operands = [promote(cx, [argument])[0] for argument in bind(cx, args, kwargs).values()]
        first, *others = [truth(operand) for operand in operands]
        return results(cx, first.call(fn, *others))

    rule.__name__ = f"logical_{fn}"
    return rule


def left_shift(x: Term, y: Term) -> Term:
    outside = (y < 0) | (y >= 8 * x.dtype.itemsize)
    return outside.where(0, x.call("shl", outside.where(0, y)))


def right_shift(x: Term, y: Term) -> Term:
    bits = 8 * x.dtype.itemsize
    outside = (y < 0) | (y >= bits)
    if not x.dtype.is_signed:
        return outside.where(0, x.call("shr", outside.where(0, y)))
    return x.call("shr", outside.where(bits - 1, y))


# -- selection and casts ----------------------------------------------------------------------------


def where(cx: Context, *args: Any, **kwargs: Any) -> Any:
    condition, yes, no = bind(cx, args, kwargs).values()
    (chosen,) = promote(cx, [condition])
    x, y = promote(cx, [yes, no], move=True)
    return results(cx, truth(chosen).where(x, y))


def masked_fill(cx: Context, *args: Any, **kwargs: Any) -> Any:
    x, mask, value = (argument.given for argument in bind(cx, args, kwargs).values())
    return results(cx, truth(convert(cx, mask, mask.type.dtype)).where(filled(cx, value), convert(cx, x, cx.dtype)))


def filled(cx: Context, value: Any) -> Term:
    """A fill value in the result's dtype: numbers truncate to integers; what does not fit is refused."""
    if not isinstance(value, (bool, int, float)):
        return convert(cx, value, cx.dtype)
    if cx.dtype is torch.bool:
        return constant(cx, value != 0, cx.dtype)
    check_supported(cx, cx.dtype)
    if not cx.dtype.is_floating_point and math.isfinite(value):
        value = int(value)
        if cx.dtype is torch.uint8 and -256 < value < 0:
            value += 256  # as ATen's conversion of scalars lets negatives of unsigned types wrap
    return constant(cx, value, cx.dtype)


def copied(argument: str = "") -> Rule:
    """The named argument (the first one by default) in the result's dtype."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        device = bound.get("device", Argument(None, None)).given
        if device is not None and torch.device(device).type != next(iter(bound.values())).fake.device.type:
            raise cx.refuse("a copy to another device is the host's")
        source = bound[argument or next(iter(bound))].given
        return results(cx, convert(cx, source, cx.dtype))

    rule.__name__ = "copied"
    return rule


def bitcast(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """view(dtype) between dtypes of one width: the same bits."""
    x = bind(cx, args, kwargs)["self"].given
    check_supported(cx, x.type.dtype, cx.dtype)
    if x.type.dtype.itemsize != cx.dtype.itemsize:
        raise cx.refuse("a view as a dtype of another width changes the sizes")
    if torch.bool in (x.type.dtype, cx.dtype) and x.type.dtype != cx.dtype:
        raise cx.refuse("the bits of a bool are not kept")
    return cx.b.bitcast(x, cx.dtype)


def fill(cx: Context, *args: Any, **kwargs: Any) -> Any:
    return results(cx, filled(cx, bind(cx, args, kwargs)["value"].given))


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


# -- tables -----------------------------------------------------------------------------------------

FLOAT_FUNCTIONS: dict[str, tuple[OpOverload, ...]] = {
    "acos": (aten.acos.default, aten.arccos.default, prims.acos.default),
    "acosh": (aten.acosh.default, aten.arccosh.default, prims.acosh.default),
    "asin": (aten.asin.default, aten.arcsin.default, prims.asin.default),
    "asinh": (aten.asinh.default, aten.arcsinh.default, prims.asinh.default),
    "atan": (aten.atan.default, aten.arctan.default, prims.atan.default),
    "atanh": (aten.atanh.default, aten.arctanh.default, prims.atanh.default),
    "cos": (aten.cos.default, prims.cos.default),
    "cosh": (aten.cosh.default, prims.cosh.default),
    "digamma": (aten.digamma.default, aten.special_psi.default, aten.special_digamma.default,
                prims.digamma.default),
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

COMPARISONS: dict[str, tuple[OpOverload, ...]] = {
    "eq": (aten.eq.Tensor, aten.eq.Scalar, prims.eq.default),
    "ne": (aten.ne.Tensor, aten.ne.Scalar, aten.not_equal.Tensor, aten.not_equal.Scalar, prims.ne.default),
    "lt": (aten.lt.Tensor, aten.lt.Scalar, aten.less.Tensor, aten.less.Scalar, prims.lt.default),
    "le": (aten.le.Tensor, aten.le.Scalar, aten.less_equal.Tensor, aten.less_equal.Scalar, prims.le.default),
    "gt": (aten.gt.Tensor, aten.gt.Scalar, aten.greater.Tensor, aten.greater.Scalar, prims.gt.default),
    "ge": (aten.ge.Tensor, aten.ge.Scalar, aten.greater_equal.Tensor, aten.greater_equal.Scalar,
           prims.ge.default),
}

BINARY_FUNCTIONS: dict[str, tuple[PromotionKind, tuple[OpOverload, ...]]] = {
    "atan2": (INT_TO_FLOAT, (aten.atan2.default, aten.arctan2.default, prims.atan2.default)),
    "hypot": (DEFAULT, (aten.hypot.default, prims.hypot.default)),
    "copysign": (INT_TO_FLOAT, (aten.copysign.Tensor, aten.copysign.Scalar)),
    "maximum": (DEFAULT, (aten.maximum.default, aten.max.other, prims.maximum.default)),
    "minimum": (DEFAULT, (aten.minimum.default, aten.min.other, prims.minimum.default)),
    "remainder": (DEFAULT, (aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor,
                            prims.remainder.default)),
    "fmod": (DEFAULT, (aten.fmod.Tensor, aten.fmod.Scalar, prims.fmod.default)),
    "and": (DEFAULT, (aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_and.Scalar_Tensor,
                      aten.__and__.Tensor, aten.__and__.Scalar, prims.bitwise_and.default)),
    "or": (DEFAULT, (aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.bitwise_or.Scalar_Tensor,
                     aten.__or__.Tensor, aten.__or__.Scalar, prims.bitwise_or.default)),
    "xor": (DEFAULT, (aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.bitwise_xor.Scalar_Tensor,
                      aten.__xor__.Tensor, aten.__xor__.Scalar, prims.bitwise_xor.default)),
}

UNARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (absolute, DEFAULT, (aten.abs.default, aten.absolute.default, prims.abs.default)),
    (call_of("neg"), DEFAULT, (aten.neg.default, aten.negative.default, prims.neg.default)),
    (sign, DEFAULT, (aten.sign.default, aten.sgn.default, prims.sign.default)),
    (unchanged_for_integers("floor"), DEFAULT, (aten.floor.default, prims.floor.default)),
    (unchanged_for_integers("ceil"), DEFAULT, (aten.ceil.default, prims.ceil.default)),
    (unchanged_for_integers("trunc"), DEFAULT, (aten.trunc.default, aten.fix.default, prims.trunc.default)),
    (unchanged_for_integers("round"), DEFAULT, (aten.round.default, prims.round.default)),
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
    (is_class("isnan"), ALWAYS_BOOL, (aten.isnan.default,)),
    (is_class("isinf"), ALWAYS_BOOL, (aten.isinf.default,)),
    (isfinite, ALWAYS_BOOL, (aten.isfinite.default, prims.isfinite.default)),
    (isposinf, ALWAYS_BOOL, (aten.isposinf.default,)),
    (isneginf, ALWAYS_BOOL, (aten.isneginf.default,)),
    (signbit, ALWAYS_BOOL, (aten.signbit.default, prims.signbit.default)),
    (call_of("not"), DEFAULT, (aten.bitwise_not.default, prims.bitwise_not.default)),
)

BINARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (add, DEFAULT, (aten.add.Tensor, aten.add.Scalar, prims.add.default)),
    (sub, DEFAULT, (aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor, aten.subtract.Scalar,
                    prims.sub.default)),
    (rsub, DEFAULT, (aten.rsub.Tensor, aten.rsub.Scalar)),
    (prims_div, DEFAULT, (prims.div.default,)),
    (nextafter, DEFAULT, (aten.nextafter.default, prims.nextafter.default)),
    (fmax, DEFAULT, (aten.fmax.default, prims.fmax.default)),
    (fmin, DEFAULT, (aten.fmin.default, prims.fmin.default)),
    (heaviside, DEFAULT, (aten.heaviside.default,)),
    (xlogy, INT_TO_FLOAT, (aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other,
                           aten.special_xlogy.default, aten.special_xlogy.self_scalar,
                           aten.special_xlogy.other_scalar)),
    (xlog1py, INT_TO_FLOAT, (aten.special_xlog1py.default, aten.special_xlog1py.self_scalar,
                             aten.special_xlog1py.other_scalar)),
    (logaddexp, DEFAULT, (aten.logaddexp.default,)),
    (logaddexp2, DEFAULT, (aten.logaddexp2.default,)),
    (power, BOOL_TO_LONG, (aten.pow.Tensor_Tensor, aten.pow.Scalar, prims.pow.default)),
    (isclose, DEFAULT, (aten.isclose.default,)),
    (left_shift, DEFAULT, (aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar,
                           aten.bitwise_left_shift.Scalar_Tensor, aten.__lshift__.Tensor,
                           aten.__lshift__.Scalar, prims.shift_left.default)),
    (right_shift, DEFAULT, (aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar,
                            aten.bitwise_right_shift.Scalar_Tensor, aten.__rshift__.Tensor,
                            aten.__rshift__.Scalar, prims.shift_right_arithmetic.default)),
)

# The second operand's single elements stay unrounded beside half types (ATen's CPU kernels, measured).
EXACT_BINARY: tuple[tuple[Formula, PromotionKind, tuple[OpOverload, ...]], ...] = (
    (mul, DEFAULT, (aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar,
                    prims.mul.default)),
    (div, INT_TO_FLOAT, (aten.div.Tensor, aten.div.Scalar, aten.divide.Tensor, aten.divide.Scalar,
                         aten.true_divide.Tensor, aten.true_divide.Scalar)),
    (floor_divide, DEFAULT, (aten.floor_divide.default, aten.floor_divide.Scalar)),
)

POINTWISE: tuple[Lowering, ...] = (
    *(row for fn, ops in FLOAT_FUNCTIONS.items() for row in family(call_of(fn), 1, INT_TO_FLOAT, *ops)),
    *(row for fn, ops in COMPARISONS.items() for row in family(call_of(fn), 2, ALWAYS_BOOL, *ops)),
    *(row for fn, (kind, ops) in BINARY_FUNCTIONS.items() for row in family(call_of(fn), 2, kind, *ops)),
    *(row for formula, kind, ops in UNARY for row in family(formula, 1, kind, *ops)),
    *(row for formula, kind, ops in BINARY for row in family(formula, 2, kind, *ops)),
    *(row for formula, kind, ops in EXACT_BINARY
      for row in family(formula, 2, kind, *ops, exact_scalars=(1,))),
    *rows(div_mode, aten.div.Tensor_mode, aten.div.Scalar_mode, aten.divide.Tensor_mode,
          aten.divide.Scalar_mode),
    *rows(pow_scalar, aten.pow.Tensor_Scalar),
    *rows(float_power, aten.float_power.Tensor_Tensor, aten.float_power.Tensor_Scalar,
          aten.float_power.Scalar),
    *rows(ldexp, aten.ldexp.Tensor),
    *rows(logical("and"), aten.logical_and.default),
    *rows(logical("or"), aten.logical_or.default),
    *rows(logical("xor"), aten.logical_xor.default),
    *rows(logical("not"), aten.logical_not.default),
    *rows(clamp, aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor,
          aten.clamp_min.default, aten.clamp_min.Tensor, aten.clamp_max.default, aten.clamp_max.Tensor),
    *rows(where, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
          prims.where.default),
    *rows(masked_fill, aten.masked_fill.Scalar, aten.masked_fill.Tensor),
    *family(lerp, 2, DEFAULT, aten.lerp.Scalar),
    *family(lerp, 3, DEFAULT, aten.lerp.Tensor),
    *family(addcmul, 3, DEFAULT, aten.addcmul.default),
    *family(addcdiv, 3, DEFAULT, aten.addcdiv.default),
    *family(fma, 3, DEFAULT, prims.fma.default),
    *rows(copied(), prims.convert_element_type.default, aten._to_copy.default, aten.to.dtype,
          aten.type_as.default, aten.clone.default, aten.contiguous.default,
          aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.positive.default,
          prims.clone.default),
    *rows(copied("src"), aten.copy.default),
    *rows(bitcast, aten.view.dtype, aten.view_copy.dtype),
    *rows(fill, aten.fill.Scalar, aten.fill.Tensor),
)
