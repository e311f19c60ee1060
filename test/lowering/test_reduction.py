"""Reductions against eager: dtypes, dimensions, NaN, empty and one-element axes, positions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from test.lowering.eager_check import LOWERINGS, build, call_of, check
from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.lowering.reduction import ASSOCIATIVE, REDUCTION
from torch_helion.lowering.registry import Context, TensorSpec

aten = torch.ops.aten
prims = torch.ops.prims

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.bool)
DIMS = ([0], [1], [-1], [0, 2], [2, 0], [0, 1, 2])


def sample(dtype: torch.dtype, shape: tuple[int, ...] = (3, 5, 4)) -> torch.Tensor:
    x = torch.randn(shape) * 3
    return (
        x > 0 if dtype is torch.bool else x.abs().to(dtype) if dtype is torch.uint8 else x.to(dtype)
    )


def with_specials(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[0, 0, 1], x[1, 2, 3], x[1, 3, 0], x[2, 4, 2] = math.nan, math.inf, -math.inf, -0.0
    return x


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("keepdim", [True, False])
def test_sums_and_extremes(dtype: torch.dtype, keepdim: bool) -> None:
    x = sample(dtype)
    variants = [x, with_specials(x)] if dtype.is_floating_point else [x]
    for y, dims in itertools.product(variants, DIMS):
        check(call_of(aten.sum.dim_IntList, y, dims, keepdim))
        check(call_of(aten.amax.default, y, dims, keepdim))
        check(call_of(aten.amin.default, y, dims, keepdim))
        check(call_of(aten.any.dims, y, dims, keepdim))
        check(call_of(aten.all.dims, y, dims, keepdim))
        if dtype.is_floating_point:
            check(call_of(aten.mean.dim, y, dims, keepdim))
            check(call_of(aten.nansum.default, y, dims, keepdim))
            check(call_of(aten.logsumexp.default, y, dims, keepdim))
        if not keepdim:
            check(call_of(aten.count_nonzero.dim_IntList, y, dims))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_whole_tensors(dtype: torch.dtype) -> None:
    for x in (sample(dtype), sample(dtype, ()), sample(dtype, (1,)), sample(dtype, (1, 4, 1))):
        for overload in (
            aten.sum.default,
            aten.prod.default,
            aten.max.default,
            aten.min.default,
            aten.any.default,
            aten.all.default,
            aten.count_nonzero.default,
        ):
            check(call_of(overload, x))
        check(
            call_of(aten.argmax.default, x)
            if dtype is not torch.bool
            else call_of(aten.any.default, x)
        )
        check(call_of(aten.aminmax.default, x))


def test_result_dtypes() -> None:
    x = torch.randn(3, 5) * 100
    check(call_of(aten.sum.dim_IntList, x, [1], dtype=torch.float64))
    check(call_of(aten.sum.dim_IntList, x, [1], dtype=torch.bfloat16))
    check(call_of(aten.sum.dim_IntList, x.to(torch.int32), [1], dtype=torch.float32))
    check(call_of(aten.sum.dim_IntList, x.to(torch.int32), [1], dtype=torch.int32))
    check(call_of(aten.mean.dim, x.to(torch.int64), [1], dtype=torch.float32))
    check(call_of(aten.mean.dim, x, [1], dtype=torch.bfloat16))
    check(call_of(aten.prod.dim_int, x.to(torch.uint8), 1))
    check(call_of(aten.prod.dim_int, x, 1, dtype=torch.float64))
    assert call_of(aten.any.dim, x.to(torch.uint8), 1).outputs[0].dtype is torch.uint8
    check(call_of(aten.any.dim, x.to(torch.uint8), 1))
    check(call_of(aten.all.dim, x.to(torch.uint8), 1, True))


def test_half_sums_accumulate_wide() -> None:
    x = torch.ones(2, 5000, dtype=torch.bfloat16)
    check(call_of(aten.sum.dim_IntList, x, [1]), exact=True)
    check(call_of(aten.mean.dim, x, [1]), exact=True)


def test_integers_wrap() -> None:
    x = torch.full((2, 40), torch.iinfo(torch.int64).max)
    check(call_of(aten.sum.dim_IntList, x, [1]))
    check(call_of(aten.prod.dim_int, x, 1))
    small = torch.full((2, 40), 200, dtype=torch.uint8)
    check(call_of(aten.sum.dim_IntList, small, [1]))


def test_empty_axes() -> None:
    x = torch.empty(3, 0)
    for overload in (aten.sum.dim_IntList, aten.mean.dim, aten.any.dims, aten.all.dims):
        check(call_of(overload, x, [1]))
        check(call_of(overload, x, [0]))
    check(call_of(aten.prod.dim_int, x, 1))
    check(call_of(aten.var.correction, x, [1]))
    check(call_of(aten.linalg_vector_norm.default, x, 2, [1]))
    check(call_of(aten.amax.default, x, [0]))
    check(call_of(aten.logsumexp.default, x, [1]))


# -- positions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_positions(dtype: torch.dtype, dim: int | None) -> None:
    x = sample(dtype)
    variants = [x, with_specials(x), torch.zeros_like(x)] if dtype.is_floating_point else [x]
    for y in variants:
        if dtype is not torch.bool:
            for overload in (aten.argmax.default, aten.argmin.default):
                check(call_of(overload, y, dim))
                if dim is not None:
                    check(call_of(overload, y, dim, True))
        if dim is not None:
            # Eager gives any of several equal extremes: keep them apart.
            first = y.clone() if dtype is torch.bool or not y.any() else y
            for overload in (aten.max.dim, aten.min.dim):
                check(call_of(overload, first, dim))
                check(call_of(overload, first, dim, True))


def test_first_of_equal_extremes() -> None:
    x = torch.tensor([[2.0, 5.0, 5.0, 1.0, 1.0], [math.nan, 3.0, math.nan, 9.0, -1.0]])
    for overload in (aten.argmax.default, aten.argmin.default):
        check(call_of(overload, x, 1))
        check(call_of(overload, x))
    check(call_of(aten.argmax.default, torch.zeros(3, 4, 2)))


def test_position_over_axes_of_one_dimension() -> None:
    """A dimension that stands as two axes counts row-major."""
    x = torch.randn(12, 5)
    for overload in (aten.argmax.default, aten.argmin.default):
        call = call_of(overload, x)
        check(call, cut=None)
        built = build(call)
        assert (
            sum(op.attrs.get("fn") in ("argmax", "argmin") for op in built.kernel.body.walk()) == 2
        )


# -- moments and norms ------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [None, 0, 1, 2, 0.5, 7])
@pytest.mark.parametrize("dtype", FLOATS)
def test_variance(dtype: torch.dtype, correction: float | None) -> None:
    for x in (sample(dtype), sample(dtype, (4, 1, 1)), sample(dtype) + 1000):
        for dims in (None, [0], [1, 2]):
            for overload in (
                aten.var.correction,
                aten.std.correction,
                aten.var_mean.correction,
                aten.std_mean.correction,
            ):
                check(call_of(overload, x, dims, correction=correction))
                check(call_of(overload, x, dims, correction=correction, keepdim=True))


def test_older_forms_of_variance() -> None:
    x = torch.randn(4, 6)
    for packet in (aten.var, aten.std, aten.var_mean, aten.std_mean):
        for unbiased in (True, False):
            check(call_of(packet.default, x, unbiased))
            check(call_of(packet.dim, x, [1], unbiased, True))
    check(call_of(prims.var.default, x, [1], 1.0))


def test_variance_is_two_pass() -> None:
    """Rows whose mean dwarfs their spread keep the accuracy of the deviations."""
    x = torch.randn(8, 1025) * 0.5 + 2000
    call = call_of(aten.var.correction, x, [1], correction=1)
    check(call)
    truth = x.double().var(1)
    assert bool(((call.outputs[0].double() - truth).abs() / truth < 1e-4).all())


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, 3, -1, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms(dtype: torch.dtype, order: float) -> None:
    for x in (sample(dtype), with_specials(sample(dtype))):
        for dims in (None, [1], [0, 2]):
            check(call_of(aten.linalg_vector_norm.default, x, order, dims))
        check(call_of(aten.norm.ScalarOpt_dim, x, order, [1]))
        check(call_of(aten.norm.Scalar, x, order))


def test_norm_dtypes() -> None:
    x = sample(torch.float32)
    check(call_of(aten.linalg_vector_norm.default, x, 2, [1], dtype=torch.float64))
    check(call_of(aten.norm.ScalarOpt_dtype, x, 2, dtype=torch.float64))
    check(call_of(aten.norm.ScalarOpt_dim_dtype, x, None, [1], True, dtype=torch.float64))


def test_prims() -> None:
    x = sample(torch.float32)
    for overload in (prims.sum.default, prims.prod.default, prims.amax.default, prims.amin.default):
        check(call_of(overload, x, [0, 2]))


# -- contracts --------------------------------------------------------------------------------


def test_blocked_axes_are_refused() -> None:
    b = Builder("k")
    axis = b.axis("i", 10)
    buffer = b.buffer("x", torch.float32, (10,), (1,))
    with b.grid(axis), pytest.raises(exc.LoweringError, match="cut into blocks"):
        from torch_helion.ir.types import Affine

        value = b.load(buffer, (Affine.of(axis),))
        x = torch.empty(10)
        cx = Context(
            b,
            aten.sum.default,
            (x,),
            {},
            (TensorSpec(x.dtype, (10,), ((axis,),)),),
            (TensorSpec(x.dtype, ()),),
        )
        LOWERINGS[aten.sum.default].rule(cx, value)


def test_constant_operands_count_along_their_axes() -> None:
    """The sum of a broadcast operand is its value times the extent."""
    b = Builder("k")
    axis = b.axis("i", 10, "full")
    with b.grid():
        x = torch.empty(10)
        cx = Context(
            b,
            aten.sum.default,
            (x,),
            {},
            (TensorSpec(x.dtype, (10,), ((axis,),)),),
            (TensorSpec(x.dtype, ()),),
        )
        LOWERINGS[aten.sum.default].rule(cx, b.const(1.0, torch.float32))
    kinds = [op.kind for op in b.build().body.walk()]
    assert kinds.count("expand") == 1 and kinds.count("reduce") == 1


def test_whole_dimensions() -> None:
    def whole(overload: torch._ops.OpOverload, *args: object, **kwargs: object) -> tuple[int, ...]:
        function = LOWERINGS[overload].whole
        assert function is not None
        return function(3, *args, **kwargs)

    assert whole(aten.sum.default, None) == (0, 1, 2)
    assert whole(aten.sum.dim_IntList, None, [-1, 0]) == (0, 2)
    assert whole(aten.sum.dim_IntList, None, None) == (0, 1, 2)
    assert whole(aten.argmax.default, None, dim=1) == (1,)
    assert whole(aten._softmax.default, None, -1, False) == (2,)
    assert whole(aten.native_layer_norm.default, None, [4, 5]) == (1, 2)
    assert all(row.whole for row in REDUCTION)


def test_associative_rows_name_real_reductions() -> None:
    from torch_helion.ir.ops import REDUCTIONS

    for overload, steps in ASSOCIATIVE.items():
        assert steps.fold_name({}) in REDUCTIONS, overload
        assert overload in LOWERINGS
