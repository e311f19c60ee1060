"""Constants, ranges and triangles against eager; positions along dimensions of several axes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from test.lowering.eager_check import Call, build, call_of, check
from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine
from torch_helion.lowering.creation import position, row_major
from torch_helion.lowering.registry import Context, TensorSpec

aten = torch.ops.aten
prims = torch.ops.prims
CPU = torch.device("cpu")


def test_constants() -> None:
    x = torch.randn(3, 4).to(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
        for value in (0, 1, 2.5, True):
            check(call_of(aten.full.default, [3, 4], value, dtype=dtype), exact=True)
        check(call_of(aten.zeros.default, [3, 4], dtype=dtype))
        check(call_of(aten.ones_like.default, x, dtype=dtype))
        check(call_of(aten.scalar_tensor.default, 0.1, dtype=dtype))
    for value in (-0.0, math.inf, -math.inf, math.nan):
        check(call_of(aten.full.default, [5], value), exact=True)
    check(call_of(aten.full.default, [2], -1, dtype=torch.uint8))
    check(call_of(aten.full_like.default, x, 0.1), exact=True)
    check(call_of(aten.new_full.default, x, [2, 0], 7))
    check(call_of(prims.scalar_tensor.default, 0.1, dtype=torch.float32, device=CPU))


def test_constants_that_do_not_fit_are_refused() -> None:
    for value, dtype in (
        (300, torch.uint8),
        (1e300, torch.float32),
        (2**40, torch.int32),
        (math.inf, torch.int64),
    ):
        call = Call(
            aten.full.default, ([3], value), {"dtype": dtype}, (torch.zeros(3, dtype=dtype),)
        )
        with pytest.raises(exc.LoweringError, match="does not fit"):
            check(call)


RANGES: tuple[tuple[Any, ...], ...] = (
    (0, 5),
    (3, 11, 2),
    (10, -3, -3),
    (0, 0),
    (0.0, 1.0, 0.1),
    (-1.5, 4),
    (5, 6),
)


@pytest.mark.parametrize("bounds", RANGES)
def test_arange(bounds: tuple[Any, ...]) -> None:
    overload = aten.arange.start_step if len(bounds) == 3 else aten.arange.start
    for dtype in (None, torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32):
        fractional = any(isinstance(b, float) for b in bounds)
        if fractional and len(bounds) == 3 and dtype in (torch.int64, torch.int32):
            continue  # eager truncates the step to zero and raises
        call = call_of(overload, *bounds, dtype=dtype)
        if fractional and not call.outputs[0].is_floating_point():
            with pytest.raises(exc.LoweringError, match="fractional bounds"):
                check(call)
            continue
        check(call)
        check(call, blocks=None)


def test_iota() -> None:
    options = {"dtype": torch.int64, "device": CPU, "requires_grad": False}
    check(call_of(prims.iota.default, 10, start=3, step=2, **options))
    check(call_of(prims.iota.default, 10, start=0, step=1, **options))
    check(call_of(prims.iota.default, 7, start=3, step=-1, **{**options, "dtype": torch.int32}))


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 10, 33])
def test_linspace(steps: int) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check(call_of(aten.linspace.default, -3, 8.5, steps, dtype=dtype))
        check(call_of(aten.linspace.default, 2, 2, steps, dtype=dtype))


@pytest.mark.parametrize("diagonal", [-7, -2, 0, 1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_triangles(diagonal: int, dtype: torch.dtype) -> None:
    for shape in ((5, 7), (2, 4, 3), (1, 6), (6, 1), (1, 1), (0, 3)):
        x = (torch.randn(shape) * 5).to(dtype)
        if dtype.is_floating_point and x.numel():
            x.view(-1)[0] = math.nan
        check(call_of(aten.tril.default, x, diagonal), exact=True)
        check(call_of(aten.triu.default, x, diagonal), exact=True)


def test_eye() -> None:
    for dtype in (torch.float32, torch.int64, torch.bool):
        check(call_of(aten.eye.default, 5, dtype=dtype))
        check(call_of(aten.eye.m, 4, 7, dtype=dtype))


def test_positions_of_split_dimensions() -> None:
    """A dimension that stands as two axes counts row-major."""
    call = call_of(aten.arange.start, 0, 12)
    for cut in ({0: 3}, {0: 12}, {0: 1}):
        check(call, cut=cut)
    x = torch.randn(6, 6)
    check(call_of(aten.tril.default, x), cut={1: 2})
    assert build(call, {0: 3}).kernel.axes().keys() == {"d0_0", "d0_1"}


def test_positions_given_as_index_expressions() -> None:
    """What a slice or a flip of a range asks for: the position is an expression, not an axis."""
    b = Builder("k")
    axis = b.axis("i", 5)
    out = b.buffer("y", torch.int64, (5,), (1,), "out")
    spec = TensorSpec(torch.int64, (20,), ((axis,),), (Affine.of(axis, -2, 11),))
    with b.grid(axis):
        cx = Context(b, prims.iota.default, (20,), {}, (None,), (spec,))
        b.store(out, (Affine.of(axis),), position(cx, spec, 0).value)
    y = torch.zeros(5, dtype=torch.int64)
    run(b.build(), [y], [], 2)
    assert y.tolist() == [11, 9, 7, 5, 3]


def test_row_major_numbers() -> None:
    b = Builder("k")
    n = b.size("n")
    i, j = b.axis("i", n), b.axis("j", 4)
    out = b.buffer("y", torch.int64, (n, 4), (4, 1), "out")
    spec = TensorSpec(torch.int64, (n, 4), ((i,), (j,)))
    with b.grid(i, j):
        cx = Context(b, prims.iota.default, (20,), {}, (None,), (spec,))
        b.store(out, (Affine.of(i), Affine.of(j)), row_major(cx, spec).value)
    y = torch.zeros(3, 4, dtype=torch.int64)
    run(b.build(), [y], [3], 2)
    assert y.tolist() == torch.arange(12).view(3, 4).tolist()
