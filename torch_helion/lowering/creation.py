"""Tensors out of nothing: constants, ranges, identities, triangles.

In: one call; positions come from the axes (or index expressions) of the result's dimensions. Out:
tile values; a constant has no axes, its users repeat it. What memory from `empty` holds is nobody's
business: it is zero here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch._ops import OpOverload

from torch_helion.ir.types import Size
from torch_helion.lowering.promotion import (
    Term,
    bind,
    check_supported,
    convert,
    results,
    size,
    wide,
)
from torch_helion.lowering.registry import Context, Lowering, Rule, TensorSpec
from torch_helion.lowering.selection import filled

aten = torch.ops.aten
prims = torch.ops.prims


# -- positions --------------------------------------------------------------------------------


def position(cx: Context, spec: TensorSpec, dim: int) -> Term:
    """Where along dimension `dim` of `spec` each element lies, int64."""
    if spec.index:
        index = spec.index[dim]
        total = size(cx, index.offset)
        for name, coefficient in index.terms:
            total = total + named_position(cx, name) * size(cx, coefficient)
        return total
    total, stride = size(cx, 0), 1
    started = False
    for axis in reversed(spec.dims[dim]):
        step = Term(cx, cx.b.iota(axis))
        step = step if isinstance(stride, int) and stride == 1 else step * size(cx, stride)
        total = total + step if started else step
        started, stride = True, stride * axis.size
    return total


def named_position(cx: Context, name: str) -> Term:
    axis = cx.b.axis_named(name)
    if axis is None:
        raise cx.refuse(f"positions along {name} are not those of an axis")
    return Term(cx, cx.b.iota(axis))


def row_major(cx: Context, spec: TensorSpec) -> Term:
    """The number of each element in row-major order: what random numbers are keyed by."""
    total, stride = size(cx, 0), size(cx, 1)
    for dim in reversed(range(len(spec.shape))):
        total = total + position(cx, spec, dim) * stride
        stride = stride * size(cx, spec.shape[dim])
    return total


# -- constants --------------------------------------------------------------------------------


def constant_rule(number: int) -> Rule:
    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        return results(cx, filled(cx, number))

    rule.__name__ = f"full_{number}"
    return rule


def argument_rule(name: str) -> Rule:
    """A constant that is the argument `name` of the call."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        return results(cx, filled(cx, bind(cx, args, kwargs)[name].given))

    rule.__name__ = "full"
    return rule


# -- ranges -----------------------------------------------------------------------------------


def arange(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """start + step * i: in int64 where all three are integers, else in float64 and rounded once."""
    bound = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
    start, step = bound.get("start", 0), bound.get("step", 1)
    whole = all(isinstance(n, (int, sympy.Integer)) or is_size(n) for n in (start, step))
    if not whole and not cx.dtype.is_floating_point:
        raise cx.refuse("an integer range with fractional bounds")
    return results(cx, ramp(cx, start, step, torch.int64 if whole else torch.float64))


def ramp(cx: Context, start: Any, step: Any, dtype: torch.dtype) -> Term:
    check_supported(cx, cx.dtype)
    i = position(cx, cx.outputs[0], 0).to(dtype)
    scaled = i if step == 1 else i * convert(cx, step, dtype)
    return scaled if start == 0 else convert(cx, start, dtype) + scaled


def is_size(number: Any) -> bool:
    return isinstance(number, sympy.Expr) and bool(number.is_integer)


def iota(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
    return results(cx, ramp(cx, bound["start"], bound["step"], torch.int64))


def linspace(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """From both ends towards the middle, as ATen does, so that the ends are exact."""
    bound = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
    start, end, steps = bound["start"], bound["end"], bound["steps"]
    if not cx.dtype.is_floating_point:
        raise cx.refuse("an integer linspace truncates between its points")
    dtype = wide(cx.dtype)
    first, last = convert(cx, start, dtype), convert(cx, end, dtype)
    if isinstance(steps, int) and steps == 1:
        return results(cx, first)
    count: Size = steps
    step = (last - first) / size(cx, count - 1, dtype)
    i = position(cx, cx.outputs[0], 0)
    from_end = size(cx, count - 1) - i
    low = first + step * i.to(dtype)
    high = last - step * from_end.to(dtype)
    return results(cx, (i < half_of(cx, count)).where(low, high))


def half_of(cx: Context, count: Size) -> Term:
    return size(cx, count).call("shr", 1)


# -- diagonals --------------------------------------------------------------------------------


def eye(cx: Context, *args: Any, **kwargs: Any) -> Any:
    spec = cx.outputs[0]
    return results(cx, position(cx, spec, 0).eq(position(cx, spec, 1)))


def triangle(keeps: Callable[[Term, Term], Term], name: str) -> Rule:
    """Elements whose column - row, against `diagonal`, satisfies `keeps`; zero elsewhere."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        x = convert(cx, bound["self"].given, cx.dtype)
        spec = cx.outputs[0]
        rank = len(spec.shape)
        across = position(cx, spec, rank - 1) - position(cx, spec, rank - 2)
        inside = keeps(across, convert(cx, bound["diagonal"].given, torch.int64))
        return results(cx, inside.where(x, 0))

    rule.__name__ = name
    return rule


# -- rows -------------------------------------------------------------------------------------


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(overload, "creation", rule) for overload in overloads)


CREATION: tuple[Lowering, ...] = (
    *rows(
        constant_rule(0),
        aten.zeros.default,
        aten.zeros_like.default,
        aten.new_zeros.default,
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.empty_strided.default,
        aten.new_empty_strided.default,
        aten.empty_permuted.default,
        prims.empty_strided.default,
    ),
    *rows(constant_rule(1), aten.ones.default, aten.ones_like.default, aten.new_ones.default),
    *rows(
        argument_rule("fill_value"),
        aten.full.default,
        aten.full_like.default,
        aten.new_full.default,
        prims.full.default,
        prims.full_like.default,
    ),
    *rows(argument_rule("s"), aten.scalar_tensor.default, prims.scalar_tensor.default),
    *rows(arange, aten.arange.default, aten.arange.start, aten.arange.start_step),
    *rows(iota, prims.iota.default),
    *rows(linspace, aten.linspace.default),
    *rows(eye, aten.eye.default, aten.eye.m),
    *rows(triangle(lambda across, diagonal: across <= diagonal, "tril"), aten.tril.default),
    *rows(triangle(lambda across, diagonal: across >= diagonal, "triu"), aten.triu.default),
)
