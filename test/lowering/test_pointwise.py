"""Every elementwise overload against eager: all pairs of special values, in every dtype."""

from __future__ import annotations

import math

import pytest
import torch

from test.lowering.eager_check import LOWERINGS, Call, call_of, check, special_calls
from torch_helion import exc

aten = torch.ops.aten
prims = torch.ops.prims

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
)

ELEMENTWISE = [str(o) for o, row in LOWERINGS.items() if row.kind == "pointwise"]
BY_NAME = {str(o): o for o in LOWERINGS}

# What may be refused on special values, by a word of the sentence.
REFUSED = {
    "aten.nextafter.default": "half type",
    "prims.nextafter.default": "half type",
    "aten.isclose.default": "another dtype",
    "aten.threshold.default": "does not fit",
    "aten.threshold_backward.default": "does not fit",
    "prims.fma.default": "not defined for torch.bool",
    "aten.view.dtype": "width",
    "aten.view_copy.dtype": "width",
}


def is_eager_flaw(call: Call, dtype: torch.dtype) -> bool:
    """Calls for which eager itself gives different numbers in its vector and scalar loops."""
    name = str(call.overload)
    if "fmod" in name or "remainder" in name:
        return dtype.is_floating_point  # NaN for ratios beyond 2**64: see test_remainder
    scaled_half = call.kwargs.get("alpha", 1) not in (1, 2, 0) and dtype is torch.float16
    return scaled_half or ("logit_backward" in name and dtype is torch.float64)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_special_values(name: str) -> None:
    overload = BY_NAME[name]
    if "batch_norm" in name:
        pytest.skip("not all tensors broadcast: see test_composite")
    ran = 0
    for dtype in DTYPES:
        for call in special_calls(overload, dtype):
            if is_eager_flaw(call, dtype):
                continue
            try:
                check(call, blocks=None)
            except exc.LoweringError as refusal:
                assert REFUSED.get(name, "nothing") in str(refusal), str(refusal)
            except RuntimeError as error:
                assert str(error) == "ZeroDivisionError", error
            ran += 1
    assert ran or "fmod" in name or "remainder" in name


# -- numbers beside half types ----------------------------------------------------------------

HALF_SCALARS = [0.1, 1 / 3, 3.7, -0.77]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", HALF_SCALARS)
def test_half_scalars(dtype: torch.dtype, number: float) -> None:
    """Which operations round a number to the half type is ATen's choice, operation by operation."""
    x = (torch.randn(512) * 3).to(dtype)
    y = (torch.randn(512) * 3).to(dtype)
    for overload in (
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.rsub.Scalar,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.gt.Scalar,
        aten.eq.Scalar,
        aten.maximum.default,
    ):
        other = torch.tensor(number) if overload is aten.maximum.default else number
        check(call_of(overload, x, other), blocks=None, exact=True)
    for overload in (aten.add.Tensor, aten.sub.Tensor):
        check(call_of(overload, x, y, alpha=number), blocks=None)
    for mode in ("floor", "trunc"):
        check(call_of(aten.div.Tensor_mode, x, number, rounding_mode=mode), blocks=None, exact=True)
    check(call_of(aten.leaky_relu.default, x, number), blocks=None, exact=True)
    check(call_of(aten.lerp.Scalar, x, y, number), blocks=None)
    check(call_of(aten.addcmul.default, x, y, x, value=number), blocks=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_tensors_of_one_element(dtype: torch.dtype) -> None:
    x = (torch.randn(64) * 3).to(dtype)
    check(call_of(aten.mul.Tensor, x, torch.tensor(0.1)), exact=True)
    check(call_of(aten.mul.Tensor, torch.tensor(0.1), x), exact=True)
    check(call_of(aten.add.Tensor, x, torch.tensor(0.1)), exact=True)
    check(call_of(aten.mul.Tensor, x, torch.tensor([257])), exact=True)
    check(call_of(aten.mul.Tensor, x, torch.full((64,), 257)), exact=True)


def test_half_exact_thresholds() -> None:
    x = torch.tensor([0.1, 1 / 3, 3.7, -0.77] * 16).to(torch.bfloat16)
    for number in (0.1, 1 / 3):
        check(call_of(aten.hardshrink.default, x, number), blocks=None, exact=True)
        check(call_of(aten.threshold.default, x, number, 5.0), blocks=None, exact=True)


# -- exactness --------------------------------------------------------------------------------


def specials() -> torch.Tensor:
    return torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 2.5, -3.5] * 4)


@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, math.inf, -math.inf, math.nan])
def test_clamp_keeps_nan_and_signs(number: float) -> None:
    x = specials()
    for overload in (aten.clamp_min.default, aten.clamp_max.default):
        check(call_of(overload, x, number), exact=True)
    check(call_of(aten.clamp.default, x, None, number), exact=True)
    # Eager may take the zero of either side here.
    check(call_of(aten.clamp.Tensor, x, torch.tensor(number), None), exact=number != 0)
    check(call_of(aten.relu.default, x), exact=True)
    check(call_of(aten.hardtanh.default, x, -1, 1), exact=True)


def test_exact_quotients() -> None:
    b = torch.arange(1, 401, dtype=torch.float32)
    a = b * b.flip(0)
    for mode in ("trunc", "floor"):
        check(call_of(aten.div.Tensor_mode, a, b, rounding_mode=mode), exact=True)
    check(call_of(aten.div.Tensor, a, b), exact=True)
    check(call_of(aten.floor_divide.default, a, -b), exact=True)


def test_remainder() -> None:
    a = torch.tensor([1e10, -3e20, 65504.0, 1e8, -7.5, 0.0, -0.0, 5.0, math.inf, math.nan])
    b = torch.tensor([3e-6, 7e3, 6e-8, -0.37, 2.0, -3.0, 3.0, math.inf, 2.0, 1.0])
    for overload in (aten.remainder.Tensor, aten.fmod.Tensor):
        check(call_of(overload, a, b), exact=True)


@pytest.mark.parametrize("name", ["floor_divide.default", "remainder.Tensor", "fmod.Tensor"])
def test_integer_division_by_zero(name: str) -> None:
    packet, overload = name.split(".")
    call = Call(
        getattr(getattr(aten, packet), overload),
        (torch.arange(4), torch.tensor([1, 2, 0, 3])),
        {},
        (torch.arange(4),),
    )
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        check(call)


@pytest.mark.parametrize("exponent", [-3, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 7])
def test_powers(exponent: float) -> None:
    x = torch.cat([specials(), torch.randn(64)])
    check(call_of(aten.pow.Tensor_Scalar, x, exponent))
    check(call_of(aten.pow.Tensor_Scalar, x.to(torch.bfloat16), exponent))
    check(call_of(aten.float_power.Tensor_Scalar, x, exponent))
    if exponent >= 0 and exponent == int(exponent):
        whole = torch.tensor([0, 1, -1, 2, -2, 3, 9, 46341, -70000])
        check(call_of(aten.pow.Tensor_Scalar, whole, int(exponent)))
        check(call_of(aten.pow.Tensor_Scalar, whole.to(torch.int32), int(exponent)))
        check(call_of(aten.pow.Tensor_Scalar, torch.tensor([True, False]), int(exponent)))
    check(call_of(aten.pow.Tensor_Scalar, torch.tensor([1, 2, 3]), float(exponent)))


def test_integer_power_of_tensors() -> None:
    base = torch.tensor([0, 1, -1, 2, -2, 3, 10]).view(-1, 1)
    exponent = torch.tensor([0, 1, 2, 3, 63, 64])
    check(call_of(aten.pow.Tensor_Tensor, base, exponent))
    check(call_of(aten.pow.Tensor_Tensor, base[1:], torch.tensor([-1, -2, -3])))


@pytest.mark.parametrize("decimals", [-2, -1, 0, 1, 3])
def test_round_decimals(decimals: int) -> None:
    x = torch.cat([specials(), torch.randn(64) * 100])
    check(call_of(aten.round.decimals, x, decimals=decimals))


def test_nan_to_num_takes_the_limits_of_the_result() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = specials().to(dtype)
        check(call_of(aten.nan_to_num.default, x), exact=True)
        check(call_of(aten.nan_to_num.default, x, 1.5, 2.0, -7.0), exact=True)


def test_logit() -> None:
    x = torch.cat([specials(), torch.rand(64)])
    for eps in (None, 0.1, -1.0):
        check(call_of(aten.logit.default, x, eps))


def test_casts() -> None:
    for source in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ):
        x = (torch.randn(50) * 50).to(source)
        for target in (
            torch.float32,
            torch.float16,
            torch.int32,
            torch.int8,
            torch.bool,
            torch.float64,
        ):
            check(call_of(aten._to_copy.default, x, dtype=target), exact=True)
            check(call_of(prims.convert_element_type.default, x, target), exact=True)
    ties = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3.3895e38, 65520.0, math.nan, -0.0])
    check(call_of(aten._to_copy.default, ties, dtype=torch.bfloat16), exact=True)
    check(call_of(aten._to_copy.default, ties, dtype=torch.float16), exact=True)


def test_bits() -> None:
    x = torch.tensor([1.5, -0.0, math.inf, 1e-40])
    check(call_of(aten.view.dtype, x, torch.int32))
    with pytest.raises(exc.LoweringError, match="another width"):
        check(call_of(aten.view.dtype, x, torch.int16))


def test_where_and_fills() -> None:
    condition = torch.tensor([True, False, True])
    half = torch.randn(3).to(torch.bfloat16)
    check(call_of(aten.where.self, condition, half, torch.tensor(0.1)), exact=True)
    check(call_of(aten.where.self, condition, half, torch.tensor([1, 2, 3])), exact=True)
    check(call_of(aten.where.ScalarOther, condition, half, 0.1), exact=True)
    check(call_of(aten.where.self, condition.to(torch.uint8), half, half.flip(0)), exact=True)
    whole = torch.tensor([1, 2, 3], dtype=torch.uint8)
    check(call_of(aten.masked_fill.Scalar, whole, condition, -1))
    check(call_of(aten.masked_fill.Scalar, whole, condition, 2.7))
    check(call_of(aten.masked_fill.Tensor, half, condition, torch.tensor(0.1)), exact=True)
    check(call_of(aten.copy.default, half, torch.tensor([1, 2, 3])), exact=True)


def test_mixed_types_and_shapes() -> None:
    a = torch.tensor([[1], [-2]], dtype=torch.int32)
    b = torch.tensor([1.5, 2.5, 300.0])
    for overload in (
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.lt.Tensor,
        aten.atan2.default,
    ):
        check(call_of(overload, a, b))
        check(call_of(overload, a.to(torch.uint8), b.to(torch.float16)))
        check(call_of(overload, a, torch.tensor(2**40)))
        check(call_of(overload, torch.empty(0, 3), b))
    check(call_of(aten.add.Tensor, torch.tensor([250], dtype=torch.uint8), 300))
    check(call_of(aten.eq.Scalar, torch.tensor([255], dtype=torch.uint8), -1))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    x = torch.cat([specials(), torch.randn(200) * 4])
    for dtype in (torch.float32, torch.bfloat16):
        check(call_of(aten.gelu.default, x.to(dtype), approximate=approximate))
        y = x.to(dtype)
        check(call_of(aten.gelu_backward.default, y.flip(0), y, approximate=approximate))


@pytest.mark.parametrize("is_result", [True, False])
def test_elu_backward(is_result: bool) -> None:
    x = torch.cat([specials(), torch.randn(64)])
    alpha = 1.3 if is_result else -0.7
    check(call_of(aten.elu_backward.default, x.flip(0), alpha, 1.1, 0.9, is_result, x))


def test_softplus_and_its_threshold() -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 9.9, 10.0, 10.1, 100.0, math.inf, -math.inf, math.nan])
    check(call_of(aten.softplus.default, x, 2, 20))
    check(call_of(aten.softplus_backward.default, torch.ones(10), x, 2, 20))


def test_refusals() -> None:
    complex_call = call_of(aten.add.Tensor, torch.tensor([1j]), torch.tensor([1.0]))
    with pytest.raises(exc.LoweringError, match="complex64"):
        check(complex_call)
    with pytest.raises(exc.LoweringError, match="negative"):
        call = Call(aten.pow.Tensor_Scalar, (torch.arange(3), -1), {}, (torch.arange(3),))
        check(call)
    moved = Call(
        aten._to_copy.default, (torch.ones(2),), {"device": torch.device("meta")}, (torch.ones(2),)
    )
    with pytest.raises(exc.LoweringError, match="another device"):
        check(moved)
