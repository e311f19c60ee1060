"""Work that follows a product, done on parts of its tile: any extents, dtypes, several operands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from test.codegen.llvm.kernels import F32, at, buffer
from torch_helion import _testing
from torch_helion.compiler import compile_kernel, load_kernel
from torch_helion.config import Config
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.types import Axis

BF16 = torch.bfloat16
Epilogue = Callable[[Builder, Value, Axis, Axis], Value]


def product(dtype: torch.dtype, follow: Epilogue, both: bool = False) -> Kernel:
    """out = follow(x @ y) over run-time sizes; `both`: (x @ y) * (x @ z)."""
    b = Builder("product")
    m, n, k = (b.size(name) for name in "mnk")
    x, y = buffer(b, "x", (m, k), dtype), buffer(b, "y", (n, k), dtype)
    z = buffer(b, "z", (n, k), dtype) if both else None
    am, an, ak = b.axis("m", m), b.axis("n", n), b.axis("k", k, "full")
    with b.grid(am, an):
        left = b.load(x, [at(am), at(ak)])
        value = b.dot(left, b.load(y, [at(an), at(ak)]), ak, F32)
        if z is not None:
            other = b.dot(left, b.load(z, [at(an), at(ak)]), ak, F32)
            value = b.pointwise("mul", value, other)
        value = follow(b, value, am, an)
        out = buffer(b, "out", (m, n), dtype, "out")
        b.store(out, [at(am), at(an)], b.cast(value, dtype))
    return b.build()


def bias_residual(b: Builder, value: Value, am: Axis, an: Axis) -> Value:
    dtype = F32
    bias = buffer(b, "bias", (an.size,), dtype)
    residual = buffer(b, "residual", (am.size, an.size), dtype)
    value = b.pointwise("add", value, b.load(bias, [at(an)]))
    return b.pointwise("add", b.pointwise("tanh", value), b.load(residual, [at(am), at(an)]))


def positions(b: Builder, value: Value, am: Axis, an: Axis) -> Value:
    """Zero above the diagonal: what is asked is where an element lies in the whole result."""
    below = b.pointwise("ge", b.iota(am), b.iota(an))
    return b.pointwise("where", below, value, b.const(0.0, F32))


def nothing(b: Builder, value: Value, am: Axis, an: Axis) -> Value:
    return value


EXTENTS = [
    (1, 1, 1),
    (5, 40, 7),
    (64, 64, 64),
    (65, 129, 700),
    (130, 257, 33),
    (0, 9, 3),
    (9, 9, 0),
]


@pytest.mark.parametrize("blocks", [(64, 64), (128, 32), (512, 256)])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", ["bias_residual", "positions", "nothing", "both"])
def test_any_extents(name: str, dtype: torch.dtype, blocks: tuple[int, int]) -> None:
    follow = globals().get(name, nothing)
    kernel = product(dtype, follow, both=name == "both")
    text = compile_kernel(kernel, config=Config(block_sizes=list(blocks)))
    assert "@finish" in text
    run = load_kernel(text)
    for m, n, k in EXTENTS:
        x, y, z = (torch.randn(s).to(dtype) * 0.3 for s in ((m, k), (n, k), (n, k)))
        bias, residual = torch.randn(n), torch.randn(m, n)
        out = torch.full((m, n), float("nan"), dtype=dtype)
        others = {"bias_residual": (bias, residual), "both": (z,)}.get(name, ())
        run(*_in_order(kernel, x, y, *others, out), *_sizes(kernel, m, n, k))
        exact = x.double() @ y.double().t()
        plain = x.float() @ y.float().t()
        want = [
            _reference(name, v, z.to(v.dtype), x.to(v.dtype), bias, residual)
            for v in (plain, exact)
        ]
        _testing.assert_right(out, want[0].to(dtype), want[1])


def _in_order(kernel: Kernel, *tensors: torch.Tensor) -> list[torch.Tensor]:
    names = {3: "x y out", 4: "x y z out", 5: "x y bias residual out"}
    given = dict(zip(names[len(tensors)].split(), tensors, strict=True))
    return [given[b.name] for b in kernel.arguments]


def _sizes(kernel: Kernel, m: int, n: int, k: int) -> list[int]:
    return [{"m": m, "n": n, "k": k}[str(s)] for s in kernel.sizes]


def _reference(
    name: str,
    value: torch.Tensor,
    z: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    if name == "both":
        return value * (x @ z.t())
    if name == "positions":
        return value.tril()
    if name == "bias_residual":
        return torch.tanh(value + bias) + residual
    return value


def test_a_reduction_of_the_product_is_not_done_in_parts() -> None:
    b = Builder("norms")
    m, n, k = (b.size(name) for name in "mnk")
    x, y = buffer(b, "x", (m, k)), buffer(b, "y", (n, k))
    out = buffer(b, "out", (m,), F32, "out")
    am, an, ak = b.axis("m", m), b.axis("n", 40, "full"), b.axis("k", k, "full")
    with b.grid(am):
        value = b.dot(b.load(x, [at(am), at(ak)]), b.load(y, [at(an), at(ak)]), ak, F32)
        b.store(out, [at(am)], b.reduce("max", value, [an]))
    text = compile_kernel(b.build(), config=Config(block_sizes=[16]))
    assert "@finish" not in text
    a, c, got = torch.randn(33, 20), torch.randn(40, 20), torch.empty(33)
    load_kernel(text)(a, c, got, 33, 40, 20)
    torch.testing.assert_close(got, (a @ c.t()).amax(1), rtol=1e-4, atol=1e-4)
