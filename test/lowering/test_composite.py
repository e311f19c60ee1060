"""Softmax, normalisations and their backward formulas against eager."""

from __future__ import annotations

import math

import pytest
import torch

from test.lowering.eager_check import Call, call_of, check
from torch_helion import exc

aten = torch.ops.aten
prims = torch.ops.prims

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALVES)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dtype: torch.dtype, dim: int) -> None:
    x = torch.randn(4, 7, 5) * 4
    x[0, 0, 0], x[1, :, 1], x[2, 3, :], x[:, 6, 2] = math.inf, -math.inf, -math.inf, math.nan
    for y in (x.to(dtype), (x * 0 + torch.randn(4, 7, 5)).to(dtype)):
        check(call_of(aten._softmax.default, y, dim, False))
        check(call_of(aten._log_softmax.default, y, dim, False))
        check(call_of(aten._safe_softmax.default, y, dim))
        check(call_of(aten.softmax.int, y, dim))
        check(call_of(aten.log_softmax.int, y, dim))


def test_softmax_dtypes() -> None:
    x = (torch.randn(3, 6) * 3).to(torch.bfloat16)
    check(call_of(aten.softmax.int, x, 1, torch.float32))
    check(call_of(aten.special_softmax.default, x.int(), 1, torch.float32))
    check(call_of(aten.special_log_softmax.default, x, 1, dtype=torch.float64))


def test_softmax_of_huge_scores() -> None:
    x = torch.randn(6, 25) * 7.3e13
    check(call_of(aten._softmax.default, x, 1, False))
    check(call_of(aten._softmax.default, torch.randn(()), 0, False))
    check(call_of(aten._softmax.default, torch.randn(3, 1), 1, False))
    check(call_of(aten._softmax.default, torch.empty(0, 4), 1, False))


def test_prepare_softmax() -> None:
    check(call_of(prims.prepare_softmax_online.default, torch.randn(4, 9), 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, -1])
def test_softmax_backward(dtype: torch.dtype, dim: int) -> None:
    x, grad = torch.randn(5, 8).to(dtype), torch.randn(5, 8).to(dtype)
    check(call_of(aten._softmax_backward_data.default, grad, x.softmax(dim), dim, dtype))
    check(call_of(aten._log_softmax_backward_data.default, grad, x.log_softmax(dim), dim, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [[6], [5, 6], [1, 6]])
def test_layer_norm(dtype: torch.dtype, shape: list[int]) -> None:
    x = torch.randn(3, 5, 6) * 2 + 7
    x = x[:, :1] if shape == [1, 6] else x
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    x = x.to(dtype)
    for parameters in ((weight, bias), (weight, None), (None, None)):
        call = call_of(aten.native_layer_norm.default, x, shape, *parameters, 1e-5)
        check(call)
        check(call_of(aten.layer_norm.default, x, shape, *parameters))
    _, mean, rstd = call.outputs
    grad = torch.randn(x.shape).to(dtype)
    mask = [True, False, False]
    arguments = (grad, x, shape, mean, rstd, weight, bias, mask)
    check(call_of(aten.native_layer_norm_backward.default, *arguments))


def test_layer_norm_parameter_gradients() -> None:
    """Where the outer dimension is whole (extent 1 here) the weight's gradient is a plain fold."""
    x, grad = torch.randn(1, 6), torch.randn(1, 6)
    weight, bias = torch.randn(6), torch.randn(6)
    _, mean, rstd = aten.native_layer_norm.default(x, [6], weight, bias, 1e-5)
    arguments = (grad, x, [6], mean, rstd, weight, bias, [True, True, True])
    check(call_of(aten.native_layer_norm_backward.default, *arguments))
    wide = (
        grad.expand(4, 6).contiguous(),
        x.expand(4, 6).contiguous(),
        [6],
        mean.expand(4, 1).contiguous(),
        rstd.expand(4, 1).contiguous(),
        weight,
        bias,
        [True, True, True],
    )
    with pytest.raises(exc.LoweringError, match="cut into blocks"):
        check(call_of(aten.native_layer_norm_backward.default, *wide))


def test_layer_norm_of_wide_parameters() -> None:
    x = torch.randn(4, 6).to(torch.bfloat16)
    check(call_of(aten.native_layer_norm.default, x, [6], torch.randn(6), torch.randn(6), 1e-5))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_rms_norm(dtype: torch.dtype, eps: float | None) -> None:
    x = (torch.randn(4, 3, 8) * 1e-3).to(dtype)
    weight = torch.randn(8).to(dtype)
    for w in (weight, None):
        check(call_of(aten._fused_rms_norm.default, x, [8], w, eps))
        check(call_of(aten.rms_norm.default, x, [8], w, eps))


def test_rms_norm_backward() -> None:
    """No CPU kernel has this overload: autograd of the formula is what it is compared with."""
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8)
    grad = torch.randn(4, 8)
    rstd = (x * x).mean(1, keepdim=True).add(1e-6).rsqrt()
    for w in (weight, None):
        y = x * rstd if w is None else x * rstd * w
        (want,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        arguments = (grad, x.detach(), [8], rstd.detach(), w, [True, False])
        call = Call(aten._fused_rms_norm_backward.default, arguments, {}, (want, None))
        check(call)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(groups: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(3, 6, 4, 2) * 3 + 1).to(dtype)
        weight, bias = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
        call = call_of(aten.native_group_norm.default, x, weight, bias, 3, 6, 8, groups, 1e-5)
        check(call, cut={1: groups})


def test_group_norm_across_a_border_is_refused() -> None:
    x = torch.randn(3, 6, 4)
    call = call_of(aten.native_group_norm.default, x, None, None, 3, 6, 4, 2, 1e-5)
    with pytest.raises(exc.LoweringError, match="groups' borders"):
        check(call)


def test_batch_norm_inference() -> None:
    x = torch.randn(3, 5, 4)
    weight, bias, mean, variance = (
        torch.randn(5),
        torch.randn(5),
        torch.randn(5),
        torch.rand(5) + 0.1,
    )
    for parameters in ((weight, bias), (None, None)):
        arguments = (x, *parameters, mean, variance, 0.1, 1e-5)
        check(call_of(aten._native_batch_norm_legit_no_training.default, *arguments))
