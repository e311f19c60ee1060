"""Gradients of kernels that nobody wrote a backward for."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
from test.kernel.kernels import add, inc, make, rowsum, scale
from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Affine
from torch_helion.kernel import functional


def gradients_of(function, *args):
    leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    out = function(*leaves)
    weights = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weights).sum().backward()
    return [a.grad for a in leaves if isinstance(a, torch.Tensor)]


CASES = [
    (add, lambda x, y: x + y, lambda: (torch.randn(7), torch.randn(7))),
    (scale, lambda x, s: x.sin() * s, lambda: (torch.randn(5), 3.0)),
    (rowsum, lambda x: x.sum(-1), lambda: (torch.randn(4, 6),)),
    (add, lambda x, y: x + y, lambda: (torch.randn(0), torch.randn(0))),
]


@pytest.mark.parametrize(("fn", "eager", "make_args"), CASES)
def test_gradients_are_those_of_eager(fn, eager, make_args) -> None:
    args = make_args()
    kernel = make(fn)
    for got, want in zip(gradients_of(kernel, *args), gradients_of(eager, *args), strict=True):
        torch.testing.assert_close(got, want)


def test_a_number_of_the_call_is_not_baked_in() -> None:
    kernel = make(scale)
    x = torch.randn(6)
    for s in (2.0, 3.0, 2.0, *range(1, 12)):
        (got,) = gradients_of(kernel, x, float(s))
        (want,) = gradients_of(lambda x, s: x.sin() * s, x, float(s))
        torch.testing.assert_close(got, want)


def test_only_what_is_asked_for() -> None:
    x, y = torch.randn(5, requires_grad=True), torch.randn(5)
    out = make(add)(x, y)
    assert out.requires_grad
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones(5)) and y.grad is None
    with torch.no_grad():
        assert not make(add)(x, y).requires_grad


def test_gradcheck() -> None:
    kernel = make(scale)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kernel(x, 1.5), (x,))


def test_storing_into_what_requires_grad_is_refused() -> None:
    leaf = torch.zeros(4, requires_grad=True)
    for x in (leaf, leaf * 2):
        with pytest.raises(exc.AutodiffNotSupported, match="stores into its argument 'x'"):
            make(inc)(x)
    with torch.no_grad():
        assert torch.equal(make(inc)(leaf).detach(), torch.ones(4))


def test_the_backward_as_a_function() -> None:
    kernel = make(scale)
    x = torch.randn(6)
    with pytest.raises(exc.AutodiffKernelNotCalled, match="scale"):
        helion.experimental.backward(kernel, torch.ones(6), x, 2.0)
    kernel(x, 2.0)
    grad = helion.experimental.backward(kernel, torch.ones(6), x, 2.0)
    torch.testing.assert_close(grad, x.cos() * 2)


# The evaluation behind it, on programs made by hand.


def test_what_has_no_derivative_is_named() -> None:
    b = Builder("noise")
    n = b.size("n")
    axis = b.axis("i", n)
    out = b.buffer("out", torch.float32, (n,), (1,), "out")
    with b.grid(axis):
        value = b.rng("rand", b.const(1, torch.int64), b.iota(axis))
        b.store(out, [Affine.of(axis)], value)
    kernel = b.build()
    op = functional.why_not(kernel)
    assert op is not None
    error = functional.refuse(kernel, op)
    assert isinstance(error, exc.AutodiffNotSupported)
    assert "no derivative of rng" in str(error) and "autograd.Function" in str(error)


@pytest.mark.parametrize("offset", [0, 1])
def test_shifted_and_masked_accesses(offset: int) -> None:
    """out[i] = x[i + offset] * 2 where i is even."""
    b = Builder("shifted")
    n = b.size("n")
    axis = b.axis("i", n)
    x = b.buffer("x", torch.float64, (n + offset,), (1,))
    out = b.buffer("out", torch.float64, (n,), (1,), "inout")
    with b.grid(axis):
        two = b.const(2, torch.int64)
        even = b.pointwise(
            "eq", b.pointwise("remainder", b.iota(axis), two), b.const(0, torch.int64)
        )
        value = b.load(x, [Affine.of(axis, offset=offset)], mask=even, other=7.0)
        value = b.pointwise("mul", value, b.const(2.0, torch.float64))
        b.store(out, [Affine.of(axis)], value, mask=even)
    kernel = b.build()
    data = torch.randn(6 + offset, dtype=torch.float64, requires_grad=True)
    old = torch.full((6,), -1.0, dtype=torch.float64)
    (new,) = functional.evaluate(kernel, [data, old], [6]).values()
    want = old.clone()
    want[::2] = data.detach()[offset:][::2] * 2
    assert torch.equal(new.detach(), want)
    new.sum().backward()
    grad = torch.zeros(6 + offset, dtype=torch.float64)
    grad[offset:][::2] = 2
    assert torch.equal(data.grad, grad)
