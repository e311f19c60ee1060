"""Softmax, normalisations and their backward formulas: reductions with arithmetic on both sides.

In: one call whose normalised axes are whole inside a grid step. Out: tile values; statistics lack
the normalised axes. Statistics of half types are computed in float32, as ATen's are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.ir.types import Axis, Size
from torch_helion.lowering.promotion import (
    Argument,
    Term,
    bind,
    constant,
    convert,
    results,
    size,
    wide,
)
from torch_helion.lowering.reduction import folded, mean_of, moments, reduced_dims, whole_axes
from torch_helion.lowering.registry import Context, Lowering, Rule

aten = torch.ops.aten
prims = torch.ops.prims

Bound = dict[str, Argument]


# -- softmax ----------------------------------------------------------------------------------


def softmax_of(x: Term, axes: Sequence[Axis]) -> Term:
    x = x.along(axes)
    power = (x - x.fold("max", axes)).call("exp")
    return power / power.fold("sum", axes)


def log_softmax_of(x: Term, axes: Sequence[Axis]) -> Term:
    x = x.along(axes)
    shifted = x - x.fold("max", axes)
    return shifted - shifted.call("exp").fold("sum", axes).call("log")


def safe_softmax_of(x: Term, axes: Sequence[Axis]) -> Term:
    """Zero where a row has nothing but -inf."""
    empty = x.eq(-math.inf).fold("all", axes)
    return empty.where(0, softmax_of(x, axes))


def softmax_rule(formula: Callable[[Term, Sequence[Axis]], Term]) -> Rule:
    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        axes, _ = folded(cx, softmax_dims(cx, args, kwargs))
        x = bound["self"].given
        dtype = bound["dtype"].given if "dtype" in bound else None
        # A dtype is converted to first; half_to_float only widens.
        through = (dtype, wide(dtype)) if dtype is not None else (wide(x.type.dtype),)
        return results(cx, formula(convert(cx, x, *through), axes))

    rule.__name__ = formula.__name__.removesuffix("_of")
    return rule


def softmax_dims(cx: Context, args: Sequence[Any], kwargs: Any) -> tuple[int, ...]:
    spec = cx.inputs[0]
    assert spec is not None
    return reduced_dims(cx.overload)(len(spec.shape), *args, **kwargs)


def prepare_softmax(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """The maximum and the sum of exp(x - maximum) along a dimension."""
    axes, _ = folded(cx, softmax_dims(cx, args, kwargs))
    x = convert(cx, args[0], wide(args[0].type.dtype)).along(axes)
    top = x.fold("max", axes)
    return results(cx, (top, (x - top).call("exp").fold("sum", axes)))


def softmax_backward(cx: Context, *args: Any, **kwargs: Any) -> Any:
    grad, y, axes = _grad_and_output(cx, args, kwargs)
    weighted = grad * y
    return results(cx, weighted - y * weighted.fold("sum", axes))


def log_softmax_backward(cx: Context, *args: Any, **kwargs: Any) -> Any:
    grad, y, axes = _grad_and_output(cx, args, kwargs)
    return results(cx, grad - y.call("exp") * grad.fold("sum", axes))


def _grad_and_output(
    cx: Context, args: Sequence[Any], kwargs: Any
) -> tuple[Term, Term, tuple[Axis, ...]]:
    axes, _ = folded(cx, softmax_dims(cx, args, kwargs))
    grad, y = (convert(cx, x, wide(x.type.dtype)).along(axes) for x in args[:2])
    return grad, y.to(grad.dtype), axes


# -- layer norms ------------------------------------------------------------------------------


def trailing(rank: int, normalized_shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(range(rank - len(normalized_shape), rank))


def norm_dims(place: int) -> Callable[..., tuple[int, ...]]:
    """`Lowering.whole` of an overload whose argument number `place` is normalized_shape."""

    def whole(rank: int, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        shape = args[place] if place < len(args) else kwargs["normalized_shape"]
        return trailing(rank, shape)

    return whole


def normalized(cx: Context, bound: Bound) -> tuple[tuple[Axis, ...], Size]:
    """Axes and element count of the trailing dimensions that normalized_shape names.

    They are those of `input`, or of `grad_out`, which has the same sizes.
    """
    spec = cx.inputs[0]
    assert spec is not None
    return folded(cx, trailing(len(spec.shape), bound["normalized_shape"].given))


def affine(cx: Context, x: Term, bound: Bound) -> Term:
    """x * weight + bias, each where it is given."""
    for name, fn in (("weight", "mul"), ("bias", "add")):
        if name in bound and bound[name].given is not None:
            x = x.call(fn, convert(cx, bound[name].given, x.dtype))
    return x


def layer_norm(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    axes, count = normalized(cx, bound)
    x = convert(cx, args[0], wide(args[0].type.dtype))
    variance, mean = moments(x, axes, count)
    rstd = (variance + bound["eps"].given).call("rsqrt")
    y = affine(cx, (x - mean) * rstd, bound)
    return results(cx, (y, mean, rstd) if len(cx.outputs) == 3 else y)


def rms_norm(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    axes, count = normalized(cx, bound)
    dtype = args[0].type.dtype
    x = convert(cx, args[0], wide(dtype))
    eps = bound["eps"].given
    # Without eps: the spacing at 1 of the dtype that is computed in.
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = (mean_of(x * x, axes, count) + eps).call("rsqrt")
    y = affine(cx, x * rstd, bound)
    return results(cx, (y, rstd) if len(cx.outputs) == 2 else y)


def layer_norm_backward(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    axes, count = normalized(cx, bound)
    grad, x, mean, rstd = (
        _wide_argument(cx, bound, n) for n in ("grad_out", "input", "mean", "rstd")
    )
    hat = (x - mean) * rstd
    scaled = affine(cx, grad, {"weight": bound["weight"]}).along(axes)
    total, product = scaled.fold("sum", axes), (scaled * hat).fold("sum", axes)
    n = size(cx, count, x.dtype)
    dx = rstd * (scaled - total / n - hat * (product / n))
    wanted = bound["output_mask"].given
    outer = outer_axes(cx, bound) if wanted[1] or wanted[2] else ()
    nothing = constant(cx, 0, x.dtype)
    parts = (dx, (grad * hat).fold("sum", outer), grad.fold("sum", outer))
    return results(cx, tuple(p if w else nothing for p, w in zip(parts, wanted, strict=True)))


def rms_norm_backward(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    axes, count = normalized(cx, bound)
    grad, x, rstd = (_wide_argument(cx, bound, n) for n in ("grad_out", "input", "rstd"))
    hat = x * rstd
    scaled = affine(cx, grad, {"weight": bound["weight"]})
    product = (scaled * hat).fold("sum", axes) / size(cx, count, x.dtype)
    wanted = bound["output_mask"].given
    outer = outer_axes(cx, bound) if wanted[1] else ()
    parts = (rstd * (scaled - hat * product), (grad * hat).fold("sum", outer))
    nothing = constant(cx, 0, x.dtype)
    return results(cx, tuple(p if w else nothing for p, w in zip(parts, wanted, strict=True)))


def _wide_argument(cx: Context, bound: Bound, name: str) -> Term:
    given = bound[name].given
    return convert(cx, given, wide(given.type.dtype))


def outer_axes(cx: Context, bound: Bound) -> tuple[Axis, ...]:
    """The axes over which the gradients of weight and bias are summed."""
    spec = cx.inputs[0]
    assert spec is not None
    outer = range(len(spec.shape) - len(bound["normalized_shape"].given))
    return whole_axes(cx, cx.reduced_axes(0, tuple(outer))) if outer else ()


# -- group norm -------------------------------------------------------------------------------


def group_axes(cx: Context, groups: int) -> tuple[tuple[Axis, ...], Size]:
    """The axes of one group: those of the channels inside it, and of all dimensions after them.

    The channels must stand as (group, channel in it) axes, as those of one group always do.
    """
    spec = cx.inputs[0]
    assert spec is not None
    channels, before = spec.dims[1], 1
    inner = list(channels)
    while before != groups:
        if not inner:
            raise cx.refuse("the channels are not divided at the groups' borders")
        before = before * inner.pop(0).size
    axes = tuple(inner) + tuple(axis for dim in spec.dims[2:] for axis in dim)
    count: Size = 1
    for axis in axes:
        count = count * axis.size
    return whole_axes(cx, axes), count


def group_norm(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    axes, count = group_axes(cx, bound["group"].given)
    x = convert(cx, args[0], wide(args[0].type.dtype))
    variance, mean = moments(x, axes, count)
    rstd = (variance + bound["eps"].given).call("rsqrt")
    return results(cx, (affine(cx, (x - mean) * rstd, bound), mean, rstd))


def group_dims(rank: int, *args: Any, **kwargs: Any) -> tuple[int, ...]:
    return tuple(range(1, rank))


# -- inference batch norm ---------------------------------------------------------------------


def batch_norm_inference(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """Normalisation by running statistics; the two saved statistics are empty tensors."""
    bound = bind(cx, args, kwargs)
    x = convert(cx, args[0], wide(args[0].type.dtype))
    mean, variance = (convert(cx, bound[n].given, x.dtype) for n in ("running_mean", "running_var"))
    rstd = 1 / (variance + bound["eps"].given).call("sqrt")
    y = affine(cx, (x - mean) * rstd, bound)
    nothing = constant(cx, 0, x.dtype)
    return results(cx, (y, nothing, nothing))


# -- rows -------------------------------------------------------------------------------------


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(o, "reduction", rule, reduced_dims(o)) for o in overloads)


COMPOSITE: tuple[Lowering, ...] = (
    *rows(
        softmax_rule(softmax_of),
        aten._softmax.default,
        aten.softmax.int,
        aten.special_softmax.default,
    ),
    *rows(
        softmax_rule(log_softmax_of),
        aten._log_softmax.default,
        aten.log_softmax.int,
        aten.special_log_softmax.default,
    ),
    *rows(softmax_rule(safe_softmax_of), aten._safe_softmax.default),
    *rows(softmax_backward, aten._softmax_backward_data.default),
    *rows(log_softmax_backward, aten._log_softmax_backward_data.default),
    Lowering(aten.native_layer_norm.default, "reduction", layer_norm, norm_dims(1)),
    Lowering(aten.layer_norm.default, "reduction", layer_norm, norm_dims(1)),
    Lowering(aten._fused_rms_norm.default, "reduction", rms_norm, norm_dims(1)),
    Lowering(aten.rms_norm.default, "reduction", rms_norm, norm_dims(1)),
    Lowering(
        aten.native_layer_norm_backward.default, "reduction", layer_norm_backward, norm_dims(2)
    ),
    Lowering(aten._fused_rms_norm_backward.default, "reduction", rms_norm_backward, norm_dims(2)),
    Lowering(aten.native_group_norm.default, "reduction", group_norm, group_dims),
    Lowering(aten._native_batch_norm_legit_no_training.default, "pointwise", batch_norm_inference),
)
