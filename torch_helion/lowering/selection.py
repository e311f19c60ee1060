"""Comparisons, bounds, truth and bits, selections, casts, element by element.

In: one call (registry.Context). Out: tile values. Signs of zero and NaN follow ATen: a bound that
equals an element leaves the element, a NaN on either side wins.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.lowering.elementwise import Formula, call_of, family, rows
from torch_helion.lowering.promotion import (
    ALWAYS_BOOL,
    DEFAULT,
    Argument,
    Number,
    Term,
    bind,
    check_supported,
    constant,
    convert,
    promote,
    results,
)
from torch_helion.lowering.registry import Context, Lowering, Rule

aten = torch.ops.aten
prims = torch.ops.prims


# -- order ------------------------------------------------------------------------------------


def fmax(x: Term, y: Term) -> Term:
    return (y.ne(y) | (y < x)).where(x, y) if x.is_float else x.call("maximum", y)


def fmin(x: Term, y: Term) -> Term:
    return (y.ne(y) | (y > x)).where(x, y) if x.is_float else x.call("minimum", y)


def limit(x: Term, fn: str, bound: Term, known: bool = False) -> Term:
    """x, or `bound` where x is beyond it (fn: lt, gt).

    A NaN on either side wins; -0 against 0 leaves x. `known`: the bound is a number that is no NaN.
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


def isclose(
    x: Term, y: Term, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Term:
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


# -- bits and truth ---------------------------------------------------------------------------


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


def _within(x: Term, y: Term) -> bool:
    """Whether a count of bits is a number that needs no care."""
    count = x.cx.b.number_of(y.value)
    return count is not None and 0 <= count < 8 * x.dtype.itemsize


def left_shift(x: Term, y: Term) -> Term:
    if _within(x, y):
        return x.call("shl", y)
    outside = (y < 0) | (y >= 8 * x.dtype.itemsize)
    return outside.where(0, x.call("shl", outside.where(0, y)))


def right_shift(x: Term, y: Term) -> Term:
    if _within(x, y):
        return x.call("shr", y)
    bits = 8 * x.dtype.itemsize
    outside = (y < 0) | (y >= bits)
    if not x.dtype.is_signed:
        return outside.where(0, x.call("shr", outside.where(0, y)))
    return x.call("shr", outside.where(bits - 1, y))


# -- selection and casts ----------------------------------------------------------------------


def where(cx: Context, *args: Any, **kwargs: Any) -> Any:
    condition, yes, no = bind(cx, args, kwargs).values()
    (chosen,) = promote(cx, [condition])
    x, y = promote(cx, [yes, no], move=True)
    return results(cx, truth(chosen).where(x, y))


def masked_fill(cx: Context, *args: Any, **kwargs: Any) -> Any:
    x, mask, value = (argument.given for argument in bind(cx, args, kwargs).values())
    return results(
        cx,
        truth(convert(cx, mask, mask.type.dtype)).where(
            filled(cx, value), convert(cx, x, cx.dtype)
        ),
    )


def filled(cx: Context, value: Any) -> Term:
    """A fill value in the result's dtype: numbers truncate to integers, or are refused."""
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
        if (
            device is not None
            and torch.device(device).type != next(iter(bound.values())).fake.device.type
        ):
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


# -- rows -------------------------------------------------------------------------------------

COMPARISONS: dict[str, tuple[OpOverload, ...]] = {
    "eq": (aten.eq.Tensor, aten.eq.Scalar, prims.eq.default),
    "ne": (
        aten.ne.Tensor,
        aten.ne.Scalar,
        aten.not_equal.Tensor,
        aten.not_equal.Scalar,
        prims.ne.default,
    ),
    "lt": (aten.lt.Tensor, aten.lt.Scalar, aten.less.Tensor, aten.less.Scalar, prims.lt.default),
    "le": (
        aten.le.Tensor,
        aten.le.Scalar,
        aten.less_equal.Tensor,
        aten.less_equal.Scalar,
        prims.le.default,
    ),
    "gt": (
        aten.gt.Tensor,
        aten.gt.Scalar,
        aten.greater.Tensor,
        aten.greater.Scalar,
        prims.gt.default,
    ),
    "ge": (
        aten.ge.Tensor,
        aten.ge.Scalar,
        aten.greater_equal.Tensor,
        aten.greater_equal.Scalar,
        prims.ge.default,
    ),
}

SELECTION: tuple[Lowering, ...] = (
    *(row for fn, ops in COMPARISONS.items() for row in family(call_of(fn), 2, ALWAYS_BOOL, *ops)),
    *family(isclose, 2, DEFAULT, aten.isclose.default),
    *family(is_class("isnan"), 1, ALWAYS_BOOL, aten.isnan.default),
    *family(is_class("isinf"), 1, ALWAYS_BOOL, aten.isinf.default),
    *family(isfinite, 1, ALWAYS_BOOL, aten.isfinite.default, prims.isfinite.default),
    *family(isposinf, 1, ALWAYS_BOOL, aten.isposinf.default),
    *family(isneginf, 1, ALWAYS_BOOL, aten.isneginf.default),
    *family(signbit, 1, ALWAYS_BOOL, aten.signbit.default, prims.signbit.default),
    *family(
        call_of("maximum"), 2, DEFAULT, aten.maximum.default, aten.max.other, prims.maximum.default
    ),
    *family(
        call_of("minimum"), 2, DEFAULT, aten.minimum.default, aten.min.other, prims.minimum.default
    ),
    *family(fmax, 2, DEFAULT, aten.fmax.default, prims.fmax.default),
    *family(fmin, 2, DEFAULT, aten.fmin.default, prims.fmin.default),
    *rows(
        clamp,
        aten.clamp.default,
        aten.clamp.Tensor,
        aten.clip.default,
        aten.clip.Tensor,
        aten.clamp_min.default,
        aten.clamp_min.Tensor,
        aten.clamp_max.default,
        aten.clamp_max.Tensor,
    ),
    *family(
        call_of("and"),
        2,
        DEFAULT,
        aten.bitwise_and.Tensor,
        aten.bitwise_and.Scalar,
        aten.bitwise_and.Scalar_Tensor,
        aten.__and__.Tensor,
        aten.__and__.Scalar,
        prims.bitwise_and.default,
    ),
    *family(
        call_of("or"),
        2,
        DEFAULT,
        aten.bitwise_or.Tensor,
        aten.bitwise_or.Scalar,
        aten.bitwise_or.Scalar_Tensor,
        aten.__or__.Tensor,
        aten.__or__.Scalar,
        prims.bitwise_or.default,
    ),
    *family(
        call_of("xor"),
        2,
        DEFAULT,
        aten.bitwise_xor.Tensor,
        aten.bitwise_xor.Scalar,
        aten.bitwise_xor.Scalar_Tensor,
        aten.__xor__.Tensor,
        aten.__xor__.Scalar,
        prims.bitwise_xor.default,
    ),
    *family(call_of("not"), 1, DEFAULT, aten.bitwise_not.default, prims.bitwise_not.default),
    *family(
        left_shift,
        2,
        DEFAULT,
        aten.bitwise_left_shift.Tensor,
        aten.bitwise_left_shift.Tensor_Scalar,
        aten.bitwise_left_shift.Scalar_Tensor,
        aten.__lshift__.Tensor,
        aten.__lshift__.Scalar,
        prims.shift_left.default,
    ),
    *family(
        right_shift,
        2,
        DEFAULT,
        aten.bitwise_right_shift.Tensor,
        aten.bitwise_right_shift.Tensor_Scalar,
        aten.bitwise_right_shift.Scalar_Tensor,
        aten.__rshift__.Tensor,
        aten.__rshift__.Scalar,
        prims.shift_right_arithmetic.default,
    ),
    *rows(logical("and"), aten.logical_and.default),
    *rows(logical("or"), aten.logical_or.default),
    *rows(logical("xor"), aten.logical_xor.default),
    *rows(logical("not"), aten.logical_not.default),
    *rows(
        where,
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.where.Scalar,
        prims.where.default,
    ),
    *rows(masked_fill, aten.masked_fill.Scalar, aten.masked_fill.Tensor),
    *rows(
        copied(),
        prims.convert_element_type.default,
        aten._to_copy.default,
        aten.to.dtype,
        aten.type_as.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.lift_fresh.default,
        aten.lift_fresh_copy.default,
        aten.positive.default,
        prims.clone.default,
    ),
    *rows(copied("src"), aten.copy.default),
    *rows(bitcast, aten.view.dtype, aten.view_copy.dtype),
    *rows(fill, aten.fill.Scalar, aten.fill.Tensor),
)
