"""Terms, numbers and symbolic sizes as operands."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch

from test.lowering.eager_check import LOWERINGS
from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine
from torch_helion.lowering.promotion import converted
from torch_helion.lowering.registry import Context, TensorSpec

aten = torch.ops.aten


def with_size(
    overload: Any, x: torch.Tensor, out: torch.Tensor, *rest: Any, **kwargs: Any
) -> torch.Tensor:
    """overload(x, *rest); callables in `rest` make an argument of the size symbol n = len(x)."""
    b = Builder("k")
    n = b.size("n")
    i = b.axis("i", n)
    source = b.buffer("x", x.dtype, (n,), (1,))
    target = b.buffer("y", out.dtype, (n,), (1,), "out")
    given = [r(n) if callable(r) else r for r in rest]
    with b.grid(i):
        value = b.load(source, (Affine.of(i),))
        spec = TensorSpec(x.dtype, (n,), ((i,),))
        cx = Context(
            b,
            overload,
            (x, *given),
            kwargs,
            (spec, *(None for _ in given)),
            (TensorSpec(out.dtype, (n,), ((i,),)),),
        )
        result = LOWERINGS[overload].rule(cx, value, *given, **kwargs)
        assert isinstance(result, Value)
        b.store(target, (Affine.of(i),), b.expand(result, [i]))
    run(b.build(), [x, out], [len(x)], 4)
    return out


def test_sizes_as_operands() -> None:
    x = torch.randn(10)
    assert torch.equal(with_size(aten.mul.Tensor, x, torch.empty(10), lambda n: n), x * 10)
    assert torch.equal(with_size(aten.div.Tensor, x, torch.empty(10), lambda n: n + 1), x / 11)
    whole = torch.arange(10)
    got = with_size(aten.sub.Tensor, whole, torch.empty(10, dtype=torch.int64), lambda n: 2 * n)
    assert torch.equal(got, whole - 20)
    half = x.to(torch.bfloat16)
    got = with_size(aten.div.Tensor, half, torch.empty(10, dtype=torch.bfloat16), lambda n: n)
    assert torch.equal(got, half / 10)
    got = with_size(aten.pow.Tensor_Scalar, x.abs(), torch.empty(10), lambda n: n)
    assert torch.allclose(got, x.abs() ** 10)


def test_fractional_expressions_are_refused() -> None:
    with pytest.raises(exc.LoweringError, match="not an integer expression"):
        with_size(aten.mul.Tensor, torch.randn(4), torch.empty(4), lambda n: sympy.sqrt(n))


def test_symbolic_attributes_are_refused() -> None:
    with pytest.raises(exc.LoweringError, match="alpha is an expression"):
        b = Builder("k")
        n = b.size("n")
        i = b.axis("i", n)
        x = torch.empty(4)
        spec = TensorSpec(x.dtype, (n,), ((i,),))
        cx = Context(b, aten.add.Tensor, (x, x), {"alpha": n}, (spec, spec), (spec,))
        with b.grid(i):
            one = b.const(1.0, torch.float32)
            LOWERINGS[aten.add.Tensor].rule(cx, one, one, alpha=n)


def test_converted_numbers() -> None:
    assert converted(300, torch.uint8) == 44
    assert converted(0.1, torch.float32) == 0.10000000149011612
    assert converted(1e300, torch.float32) == float("inf")
    assert converted(2**24 + 1, torch.float32) == 2**24
    assert converted(True, torch.int64) == 1


def test_half_types_never_compute() -> None:
    """No arithmetic on a half type: only loads, stores, casts and selections."""
    b = Builder("k")
    i = b.axis("i", 8)
    source = b.buffer("x", torch.bfloat16, (8,), (1,))
    x = torch.empty(8, dtype=torch.bfloat16)
    spec = TensorSpec(x.dtype, (8,), ((i,),))
    with b.grid(i):
        value = b.load(source, (Affine.of(i),))
        for overload, row in LOWERINGS.items():
            formals = overload._schema.arguments
            if row.kind != "pointwise" or any("Tensor" not in str(f.type) for f in formals):
                continue
            args = [value] * len(formals)
            fakes = [x] * len(formals)
            specs = tuple(spec for _ in formals)
            outputs = tuple(spec for _ in overload._schema.returns)
            try:
                row.rule(Context(b, overload, tuple(fakes), {}, specs, outputs), *args)
            except exc.LoweringError:
                continue
    ops = [op for op in b.build().body.walk() if op.kind in ("pointwise", "reduce", "const")]
    assert len(ops) > 100
    for op in ops:
        allowed = op.kind == "pointwise" and op.attrs["fn"] == "where"
        assert allowed or op.result.type.dtype is not torch.bfloat16, op


def test_refusals_name_the_overload_and_the_dtype() -> None:
    with pytest.raises(
        exc.LoweringError, match=r"aten\.bitwise_and\.Tensor \(torch\.float32\).*and"
    ):
        with_size(aten.bitwise_and.Tensor, torch.randn(4), torch.empty(4), lambda n: n)
    with pytest.raises(exc.LoweringError, match="does not exist"):
        kwargs = {"rounding_mode": "up"}
        with_size(aten.div.Tensor_mode, torch.randn(4), torch.empty(4), 2, **kwargs)
