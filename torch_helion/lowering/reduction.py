"""Reductions: sums, extremes, positions, moments, norms.

In: one call whose reduced axes are whole inside a grid step. Out: tile values without those axes.

Half types accumulate in float32, integers and bools in int64, as PyTorch's results are typed. Rows
of `ASSOCIATIVE` are also what a caller needs that reduces in two phases: prepare each element, fold
with one IR reduction (partial results fold again), finish once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.ir.types import Axis, Size
from torch_helion.lowering.promotion import (
    Argument,
    Number,
    Term,
    bind,
    constant,
    convert,
    results,
    size,
    wide,
)
from torch_helion.lowering.registry import Context, Lowering, Rule
from torch_helion.lowering.selection import truth

aten = torch.ops.aten
prims = torch.ops.prims

Bound = dict[str, Argument]


# -- which dimensions -------------------------------------------------------------------------


def given_dims(overload: OpOverload, rank: int, value: Any) -> tuple[int, ...]:
    """Dimensions named by a `dim` argument: None or an empty list means all of them."""
    if value is None or (not isinstance(value, int) and len(value) == 0):
        return tuple(range(rank))
    dims = (value,) if isinstance(value, int) else tuple(value)
    return tuple(sorted(d % rank for d in dims)) if rank else ()


def reduced_dims(overload: OpOverload) -> Callable[..., tuple[int, ...]]:
    """`Lowering.whole` of an overload with an argument `dim` (or `dims`)."""
    formals = overload._schema.arguments
    place = next((i for i, formal in enumerate(formals) if formal.name in ("dim", "dims")), None)

    def whole(rank: int, *args: Any, **kwargs: Any) -> tuple[int, ...]:
        if place is None:
            return tuple(range(rank))
        formal = formals[place]
        value = args[place] if place < len(args) else kwargs.get(formal.name, formal.default_value)
        return given_dims(overload, rank, value)

    return whole


def folded(cx: Context, dims: Sequence[int]) -> tuple[tuple[Axis, ...], Size]:
    """The kernel axes of dimensions `dims` of the first argument, and their element count."""
    spec = cx.inputs[0]
    assert spec is not None
    if not dims or not spec.shape:
        return (), 1
    return whole_axes(cx, cx.reduced_axes(0, dims)), cx.reduced_count(0, dims)


def whole_axes(cx: Context, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """`axes`, refused where one is cut into blocks: a fold would see one block only."""
    for axis in axes:
        if axis.kind == "block":
            raise cx.refuse(f"axis {axis.name} is cut into blocks and reduced")
    return axes


def dims_of(cx: Context, args: Sequence[Any], kwargs: Any) -> tuple[int, ...]:
    spec = cx.inputs[0]
    assert spec is not None
    return reduced_dims(cx.overload)(len(spec.shape), *args, **kwargs)


# -- associative reductions -------------------------------------------------------------------


@dataclass(frozen=True)
class Associative:
    """A reduction as three steps; `fn` names the IR reduction of the middle one.

    prepare(cx, x, options) -> the term to fold; finish(cx, total, count, options) -> the result.
    `options` are the call's other arguments by schema name.
    """

    prepare: Callable[[Context, Term, dict[str, Any]], Term]
    fn: Callable[[dict[str, Any]], str] | str
    finish: Callable[[Context, Term, Size, dict[str, Any]], Term]

    def fold_name(self, options: dict[str, Any]) -> str:
        return self.fn if isinstance(self.fn, str) else self.fn(options)


def associative_rule(overload: OpOverload, steps: Associative) -> Rule:
    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        options = {name: argument.given for name, argument in bound.items()}
        axes, count = folded(cx, dims_of(cx, args, kwargs))
        x = steps.prepare(cx, convert(cx, args[0], args[0].type.dtype), options)
        total = x.fold(steps.fold_name(options), axes)
        return results(cx, steps.finish(cx, total, count, options))

    rule.__name__ = overload._schema.name.split("::")[1]
    return rule


def as_result(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    """Each element in the result's dtype, before it is added up in a wider one."""
    return x.to(cx.dtype).to(wide(cx.dtype))


def widened(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    return x.to(wide(x.dtype))


def mean_element(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    # Half results round once, after the division, whatever the operand's dtype.
    return x.to(wide(cx.dtype))


def is_true(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    return truth(widened(cx, x, options))


def as_is(cx: Context, total: Term, count: Size, options: dict[str, Any]) -> Term:
    return total


def divided(cx: Context, total: Term, count: Size, options: dict[str, Any]) -> Term:
    return total / size(cx, count, total.dtype)


def count_element(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    return is_true(cx, x, options).to(torch.int64)


def without_nan(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    x = x.to(cx.dtype).to(wide(cx.dtype))
    return x.ne(x).where(0, x) if x.is_float else x


def norm_order(options: dict[str, Any]) -> float:
    order = options.get("ord", options.get("p"))
    return 2.0 if order is None else float(order)


def norm_fold(options: dict[str, Any]) -> str:
    return {math.inf: "max", -math.inf: "min"}.get(norm_order(options), "sum")


def norm_element(cx: Context, x: Term, options: dict[str, Any]) -> Term:
    order = norm_order(options)
    x = x.to(wide(cx.dtype))
    if order == 2:
        return x * x
    if order == 0:
        return x.ne(0).to(x.dtype)
    x = x.call("abs")
    return x if order in (1.0, math.inf, -math.inf) else x.call("pow", order)


def norm_root(cx: Context, total: Term, count: Size, options: dict[str, Any]) -> Term:
    order = norm_order(options)
    if order == 2:
        return total.call("sqrt")
    if order in (0.0, 1.0, math.inf, -math.inf):
        return total
    return total.call("pow", 1.0 / order)


SUM = Associative(as_result, "sum", as_is)
PROD = Associative(as_result, "prod", as_is)
MEAN = Associative(mean_element, "sum", divided)
MAX = Associative(widened, "max", as_is)
MIN = Associative(widened, "min", as_is)
ANY = Associative(is_true, "any", as_is)
ALL = Associative(is_true, "all", as_is)
NORM = Associative(norm_element, norm_fold, norm_root)

ASSOCIATIVE: dict[OpOverload, Associative] = {
    aten.sum.default: SUM,
    aten.sum.dim_IntList: SUM,
    prims.sum.default: SUM,
    aten.prod.default: PROD,
    aten.prod.dim_int: PROD,
    prims.prod.default: PROD,
    aten.mean.default: MEAN,
    aten.mean.dim: MEAN,
    aten.amax.default: MAX,
    aten.max.default: MAX,
    prims.amax.default: MAX,
    aten.amin.default: MIN,
    aten.min.default: MIN,
    prims.amin.default: MIN,
    aten.any.default: ANY,
    aten.any.dim: ANY,
    aten.any.dims: ANY,
    aten.all.default: ALL,
    aten.all.dim: ALL,
    aten.all.dims: ALL,
    aten.count_nonzero.default: Associative(count_element, "sum", as_is),
    aten.count_nonzero.dim_IntList: Associative(count_element, "sum", as_is),
    aten.nansum.default: Associative(without_nan, "sum", as_is),
    aten.linalg_vector_norm.default: NORM,
    aten.norm.Scalar: NORM,
    aten.norm.ScalarOpt_dim: NORM,
    aten.norm.ScalarOpt_dtype: NORM,
    aten.norm.ScalarOpt_dim_dtype: NORM,
}


# -- positions of extremes --------------------------------------------------------------------


def position_of(x: Term, fn: str, axes: Sequence[Axis]) -> Term:
    """Row-major position over `axes` (outer to inner) of the first extreme; fn: max or min.

    Over several axes: positions along the innermost one, then, axis by axis outwards, the position
    that belongs to the best row.
    """
    cx = x.cx
    if not axes:
        return constant(cx, 0, torch.int64)
    *outer, inner = axes
    x = x.along(axes)
    position = x.fold(f"arg{fn}", [inner])
    best, stride = x, size(cx, inner.size)
    previous = inner
    for axis in reversed(outer):
        best = best.fold(fn, [previous])
        row = best.fold(f"arg{fn}", [axis])
        here = Term(cx, cx.b.iota(axis)).eq(row)
        within = here.where(position.along([axis]), -1).fold("max", [axis])
        position = row * stride + within
        stride, previous = stride * size(cx, axis.size), axis
    return position


def arg_extreme(fn: str) -> Rule:
    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        axes, _ = folded(cx, dims_of(cx, args, kwargs))
        x = convert(cx, args[0], args[0].type.dtype, wide(args[0].type.dtype))
        return results(cx, position_of(x, fn, axes))

    rule.__name__ = f"arg{fn}"
    return rule


def extreme_with_position(fn: str) -> Rule:
    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        axes, _ = folded(cx, dims_of(cx, args, kwargs))
        x = convert(cx, args[0], args[0].type.dtype, wide(args[0].type.dtype))
        return results(cx, (x.fold(fn, axes), position_of(x, fn, axes)))

    rule.__name__ = f"{fn}_dim"
    return rule


def aminmax(cx: Context, *args: Any, **kwargs: Any) -> Any:
    axes, _ = folded(cx, dims_of(cx, args, kwargs))
    x = convert(cx, args[0], args[0].type.dtype, wide(args[0].type.dtype))
    return results(cx, (x.fold("min", axes), x.fold("max", axes)))


# -- moments ----------------------------------------------------------------------------------


def mean_of(x: Term, axes: Sequence[Axis], count: Size) -> Term:
    return x.fold("sum", axes) / size(x.cx, count, x.dtype)


def moments(
    x: Term, axes: Sequence[Axis], count: Size, correction: Number = 0
) -> tuple[Term, Term]:
    """Variance and mean in two passes: the mean first, then the squared deviations from it.

    The divisor is max(0, count - correction), so that too few elements give NaN or infinity.
    """
    mean = mean_of(x, axes, count)
    deviation = x.along(axes) - mean
    total = (deviation * deviation).fold("sum", axes)
    divisor = size(x.cx, count, x.dtype)
    if correction:
        divisor = (divisor - correction).call("maximum", 0)
    return total / divisor, mean


def correction_of(options: dict[str, Any]) -> Number:
    """`correction` (1 where it is None), or the older `unbiased`."""
    if "unbiased" in options:
        return int(options["unbiased"])
    correction = options.get("correction")
    return 1 if correction is None else correction


def moment_rule(deviation: bool, with_mean: bool) -> Rule:
    """var, std, var_mean and std_mean."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        options = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
        axes, count = folded(cx, dims_of(cx, args, kwargs))
        x = convert(cx, args[0], args[0].type.dtype, wide(args[0].type.dtype))
        spread, mean = moments(x, axes, count, correction_of(options))
        spread = spread.call("sqrt") if deviation else spread
        return results(cx, (spread, mean) if with_mean else spread)

    rule.__name__ = ("std" if deviation else "var") + ("_mean" if with_mean else "")
    return rule


def log_sum_exp(x: Term, axes: Sequence[Axis]) -> Term:
    """log(sum(exp(x))); a row's infinite maximum is not subtracted."""
    top = x.fold("max", axes)
    top = top.call("abs").eq(math.inf).where(0, top)
    return (x - top).call("exp").fold("sum", axes).call("log") + top


def logsumexp(cx: Context, *args: Any, **kwargs: Any) -> Any:
    axes, _ = folded(cx, dims_of(cx, args, kwargs))
    x = convert(cx, args[0], args[0].type.dtype, wide(cx.dtype))
    return results(cx, log_sum_exp(x, axes))


# -- rows -------------------------------------------------------------------------------------


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(o, "reduction", rule, reduced_dims(o)) for o in overloads)


REDUCTION: tuple[Lowering, ...] = (
    *(
        row
        for overload, steps in ASSOCIATIVE.items()
        for row in rows(associative_rule(overload, steps), overload)
    ),
    *rows(arg_extreme("max"), aten.argmax.default),
    *rows(arg_extreme("min"), aten.argmin.default),
    *rows(extreme_with_position("max"), aten.max.dim),
    *rows(extreme_with_position("min"), aten.min.dim),
    *rows(aminmax, aten.aminmax.default),
    *rows(
        moment_rule(False, False),
        aten.var.default,
        aten.var.dim,
        aten.var.correction,
        prims.var.default,
    ),
    *rows(moment_rule(True, False), aten.std.default, aten.std.dim, aten.std.correction),
    *rows(
        moment_rule(False, True), aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction
    ),
    *rows(
        moment_rule(True, True), aten.std_mean.default, aten.std_mean.dim, aten.std_mean.correction
    ),
    *rows(logsumexp, aten.logsumexp.default, aten.special_logsumexp.default),
)
