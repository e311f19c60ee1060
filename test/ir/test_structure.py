"""Keys of kernels: equal for repetitions, different for everything that a later stage reads."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from test.ir import random_kernels
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Op, Origin, Value
from torch_helion.ir.structure import structure_of
from torch_helion.ir.types import Affine


def scaled(
    value: Any = 1.0,
    dtype: torch.dtype = torch.float32,
    stride: int = 8,
    fn: str = "mul",
    origin: str = "",
    name: str = "scaled",
    hint: str = "v",
    offset: int = 0,
) -> Kernel:
    b = Builder(name)
    m, n = b.axis("m", b.size("n0")), b.axis("n", 8, "full")
    x = b.buffer("x", dtype, [m.size, 8], [stride, 1])
    out = b.buffer("out", dtype, [m.size, 8], [8, 1], "out")
    with b.grid(m):
        b.origin = Origin(origin)
        loaded = b.load(x, [Affine.of(m), Affine.of(n, 1, offset)])
        result = b.pointwise(fn, loaded, b.const(value, dtype), hint=hint)
        b.store(out, [Affine.of(m), Affine.of(n)], result)
    return b.build()


def test_a_kernel_built_twice_has_one_key() -> None:
    assert structure_of(scaled()) == structure_of(scaled())
    hash(structure_of(scaled()))


@pytest.mark.parametrize(
    "change",
    [
        {"value": 2.0}, {"value": -0.0}, {"value": math.nan}, {"dtype": torch.float64},
        {"stride": 16}, {"fn": "add"}, {"origin": "aten.mul"}, {"name": "other"}, {"hint": "w"},
        {"offset": 1},
    ],
    ids=str,
)  # fmt: skip
def test_rejects_what_differs(change: dict[str, Any]) -> None:
    assert structure_of(scaled(**change)) != structure_of(scaled())
    assert structure_of(scaled(**change)) == structure_of(scaled(**change))


def with_constant(value: Any) -> Kernel:
    """A kernel (not a valid one) of one constant."""
    kernel = scaled()
    (first, *_) = kernel.body.ops[0].regions[0].ops
    op = Op("const", attrs={"value": value}, results=(Value(first.results[0].type),))
    return dataclasses.replace(kernel, body=dataclasses.replace(kernel.body, ops=(op,)))


@pytest.mark.parametrize(("left", "right"), [(0.0, -0.0), (1, True), (1, 1.0), (0, False)])
def test_numbers_that_are_equal_but_not_the_same(left: Any, right: Any) -> None:
    assert structure_of(with_constant(left)) != structure_of(with_constant(right))
    assert structure_of(with_constant(left)) == structure_of(with_constant(left))


def test_what_has_no_exact_key_has_none() -> None:
    assert structure_of(with_constant(object())) is None


def test_random_kernels_have_keys_of_their_own() -> None:
    keys = {}
    for seed in range(60):
        kernel = random_kernels.make(seed).kernel
        key = structure_of(kernel)
        assert key is not None
        assert key == structure_of(random_kernels.make(seed).kernel)
        keys[key] = seed
    assert len(keys) >= 55
