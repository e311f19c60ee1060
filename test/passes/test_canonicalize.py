"""Each rule on one value, bit for bit; each tempting rule that must not exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expecttest import assert_expected_inline

from torch_helion.ir.builder import Builder
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, Axis
from torch_helion.ir.verifier import verify
from torch_helion.passes.canonicalize import canonicalize
from torch_helion.passes.eliminate_dead_code import eliminate_dead_code

F32, F64, BF16, F16, BOOL = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool
I8, U8, I32, I64 = torch.int8, torch.uint8, torch.int32, torch.int64
NAN, INF = float("nan"), float("inf")

Build = Callable[[Builder, Value], Value]


def kernel_of(build: Build, dtype: torch.dtype) -> Kernel:
    """out[m, n] = build(x[m, n])"""
    b = Builder("one")
    m, n = b.axis("m", 8), b.axis("n", 2, "full")
    at = [Affine.of(m), Affine.of(n)]
    x = b.buffer("x", dtype, [8, 2], [2, 1])
    with b.grid(m):
        value = b.expand(build(b, b.load(x, at)), [m, n])
        out = b.buffer("out", value.type.dtype, [8, 2], [2, 1], "out")
        b.store(out, at, value)
    return b.build()


def special(dtype: torch.dtype) -> torch.Tensor:
    numbers = torch.tensor(
        [0.0, -0.0, 1.0, -2.5, NAN, INF, -INF, 1e-40, 3.0, 1e9, -1, 7, 127, 2, 5, 6]
    )
    if dtype.is_floating_point:
        return numbers.to(dtype).reshape(8, 2)
    return numbers.nan_to_num(0, 9, -9).clamp(-100, 100).to(I64).to(dtype).reshape(8, 2)


def bits(kernel: Kernel) -> torch.Tensor:
    """The result to the bit; which NaN it is does not count."""
    x, out = kernel.arguments
    result = torch.empty(8, 2, dtype=out.dtype)
    run(kernel, [special(x.dtype), result], {})
    if out.dtype.is_floating_point:
        result[result.isnan()] = NAN
    return result.view(torch.uint8)


def after(kernel: Kernel) -> list[Op]:
    """What is left between the load and the store; checked to compute the same."""
    small = eliminate_dead_code(canonicalize(kernel))
    verify(small)
    assert torch.equal(bits(kernel), bits(small))
    ops = small.phases[0].regions[0].ops
    return [op for op in ops if op.kind not in ("load", "store")]


def c(b: Builder, x: Value, number: float | int | bool) -> Value:
    return b.const(number, x.type.dtype)


def binary(fn: str, number: float | int | bool, left: bool = False) -> Build:
    def build(b: Builder, x: Value) -> Value:
        operands = (c(b, x, number), x) if left else (x, c(b, x, number))
        return b.pointwise(fn, *operands)

    return build


def twice(fn: str) -> Build:
    return lambda b, x: b.pointwise(fn, b.pointwise(fn, x))


def with_itself(fn: str) -> Build:
    return lambda b, x: b.pointwise(fn, x, x)


def casts(*dtypes: torch.dtype) -> Build:
    def build(b: Builder, x: Value) -> Value:
        for dtype in dtypes:
            x = b.cast(x, dtype)
        return x

    return build


VANISHES: list[tuple[Build, torch.dtype]] = [
    (binary("mul", 1.0), F32),
    (binary("mul", 1.0, left=True), F64),
    (binary("div", 1.0), F32),
    (binary("add", -0.0), F32),
    (binary("add", -0.0, left=True), F32),
    (binary("sub", 0.0), F32),
    (binary("maximum", -INF), F32),
    (binary("minimum", INF, left=True), F32),
    (binary("add", 0), I32),
    (binary("sub", 0), I32),
    (binary("mul", 1, left=True), I64),
    (binary("truncdiv", 1), I32),
    (binary("floordiv", 1), I32),
    (binary("or", 0), I32),
    (binary("xor", 0), I32),
    (binary("and", -1), I32),
    (binary("and", 255), U8),
    (binary("and", True), BOOL),
    (binary("or", False), BOOL),
    (binary("shl", 0), I32),
    (binary("shr", 0), I32),
    (binary("maximum", -128), I8),
    (binary("minimum", 255), U8),
    (with_itself("maximum"), F32),
    (with_itself("minimum"), F32),
    (with_itself("and"), BOOL),
    (with_itself("or"), I32),
    (twice("neg"), F32),
    (twice("neg"), I32),
    (twice("not"), BOOL),
    (casts(F32, BF16), BF16),
    (casts(F32, F16), F16),
    (casts(F64, F32), F32),
    (casts(I64, I32), I32),
    (casts(F32, I8), I8),
    (casts(F64, I32), I32),
    (casts(F32, BOOL), BOOL),
    (lambda b, x: b.bitcast(b.bitcast(x, I32), F32), F32),
    (lambda b, x: b.pointwise("where", b.pointwise("isnan", x), x, x), F32),
    (lambda b, x: b.pointwise("where", b.const(True, BOOL), x, b.pointwise("neg", x)), F32),
    (lambda b, x: b.pointwise("where", b.const(False, BOOL), b.pointwise("neg", x), x), F32),
    (lambda b, x: binary("mul", 1.0)(b, binary("sub", 0.0)(b, twice("neg")(b, x))), F32),
]


@pytest.mark.parametrize("number", range(len(VANISHES)))
def test_vanishes(number: int) -> None:
    build, dtype = VANISHES[number]
    assert after(kernel_of(build, dtype)) == []


@pytest.mark.parametrize("fn", ["abs", "floor", "ceil", "trunc", "round"])
def test_once_is_enough(fn: str) -> None:
    (op,) = after(kernel_of(twice(fn), F32))
    assert op.attrs["fn"] == fn


STAYS: list[tuple[Build, torch.dtype]] = [
    (binary("add", 0.0), F32),  # -0.0 + 0.0 is 0.0
    (binary("add", 0.0, left=True), F32),
    (binary("sub", -0.0), F32),
    (binary("sub", 0.0, left=True), F32),
    (binary("mul", 0.0), F32),  # NaN, infinities, signs
    (binary("mul", -1.0), F32),
    (binary("div", 1.0, left=True), F32),
    (binary("floordiv", 1.0), F32),  # rounds
    (binary("maximum", INF), F32),
    (binary("minimum", -INF), F32),
    (binary("maximum", 0), I8),
    (binary("and", 1), I32),
    (binary("sub", 0, left=True), I32),
    (with_itself("sub"), F32),
    (with_itself("xor"), I32),
    (with_itself("eq"), F32),  # false for NaN
    (twice("sqrt"), F32),
    (twice("sign"), F32),
    (casts(BF16, F32), F32),  # rounds
    (casts(F16, BF16), BF16),
    (casts(BF16, F16), F16),
    (casts(F32, I32), I32),
    (casts(I32, I64), I64),
    (casts(I8, U8), U8),
    (casts(BOOL, I32), I32),
    (casts(BOOL, F32), F32),
    (lambda b, x: b.bitcast(b.bitcast(x, I32), torch.uint32), F32),
    (lambda b, x: b.pointwise("where", b.pointwise("isnan", x), x, c(b, x, 0.0)), F32),
    # A constant of rank 0 does not stand for a row of them.
    (lambda b, x: b.pointwise("where", b.const(False, BOOL), x, c(b, x, 2.0)), F32),
    (lambda b, x: b.pointwise("where", b.const(True, BOOL), b.reduce("max", x, ["n"]), x), F32),
]


@pytest.mark.parametrize("number", range(len(STAYS)))
def test_stays(number: int) -> None:
    build, dtype = STAYS[number]
    kernel = kernel_of(build, dtype)
    before = [op for op in kernel.phases[0].regions[0].ops if op.kind not in ("load", "store")]
    assert [op.kind for op in after(kernel)] == [op.kind for op in before]


def test_repeated_work_is_done_once() -> None:
    def build(b: Builder, x: Value) -> Value:
        one, other = (b.pointwise("exp", b.pointwise("mul", x, b.const(1.0, F32))) for _ in "ab")
        swapped = b.pointwise("mul", other, x), b.pointwise("mul", x, one)
        return b.pointwise("add", b.pointwise("sub", *swapped), one)

    assert_expected_inline(
        dump(eliminate_dead_code(canonicalize(kernel_of(build, F32)))),
        """\
kernel one()
  in x: float32[8, 2] strides [2, 1]
  out out: float32[8, 2] strides [2, 1]
  axis m: block 8
  axis n: full 2
  grid (m):
    %x: float32[m, n] = load x[m, n]
    %exp: float32[m, n] = exp(%x)
    %mul: float32[m, n] = mul(%exp, %x)
    %sub: float32[m, n] = sub(%mul, %mul)
    %add: float32[m, n] = add(%sub, %exp)
    store out[m, n] = %add
""",
    )


def test_constants_that_compare_equal_stay_apart() -> None:
    def build(b: Builder, x: Value) -> Value:
        zeros = b.pointwise("mul", x, b.const(0.0, F32)), b.pointwise("mul", x, b.const(-0.0, F32))
        return b.pointwise("sub", *zeros)

    assert [op.kind for op in after(kernel_of(build, F32))].count("const") == 2


def test_different_order_and_operands_stay_apart() -> None:
    def build(b: Builder, x: Value) -> Value:
        two = b.const(2.0, F32)
        parts = b.pointwise("sub", x, two), b.pointwise("sub", two, x)
        maxima = b.reduce("max", x, ["n"]), b.reduce("min", x, ["n"])
        return b.pointwise("add", b.pointwise("div", *parts), b.pointwise("div", *maxima))

    assert len(after(kernel_of(build, F32))) == 8


def stores_between(role: str) -> Kernel:
    """y = x; x = y + 1; out = x"""
    b = Builder("between")
    m = b.axis("m", 8)
    at = [Affine.of(m)]
    x = b.buffer("x", F32, [8], [1], role)  # type: ignore[arg-type]
    other = b.buffer("other", F32, [8], [1], "out")
    out = b.buffer("out", F32, [8], [1], "out")
    with b.grid(m):
        more = b.pointwise("add", b.load(x, at), b.const(1.0, F32))
        b.store(x if role == "inout" else other, at, more)
        b.store(out, at, b.load(x, at))
    return b.build()


def test_loads_merge_unless_the_phase_stores_there() -> None:
    loads = {}
    for role in ("in", "inout"):
        ops = canonicalize(stores_between(role)).phases[0].regions[0].ops
        loads[role] = sum(op.kind == "load" for op in ops)
    assert loads == {"in": 1, "inout": 2}


def test_phases_share_nothing() -> None:
    b = Builder("phases")
    m = b.axis("m", 8)
    at = [Affine.of(m)]
    x = b.buffer("x", F32, [8], [1])
    for name in ("first", "second"):
        out = b.buffer(name, F32, [8], [1], "out")
        with b.grid(m):
            b.store(out, at, b.pointwise("exp", b.load(x, at)))
    kernel = canonicalize(b.build())
    verify(kernel)
    assert [len(p.regions[0].ops) for p in kernel.phases] == [3, 3]


def test_values_of_an_inner_loop_stay_inside() -> None:
    def build(b: Builder, x: Value) -> Value:
        carried, inner, result = (Value(x.type) for _ in range(3))
        body = (
            Op("pointwise", (x,), {"fn": "exp"}, (inner,)),
            Op("yield", (inner,)),
        )
        attrs = {"kind": "tile", "axes": (Axis("j", 3),)}
        b._ops.append(Op("loop", (x,), attrs, (result,), (Region((carried,), body),)))
        return b.pointwise("add", b.pointwise("exp", x), result)

    assert [op.kind for op in after(kernel_of(build, F32))] == ["loop", "pointwise", "pointwise"]


def masked(value: bool) -> Kernel:
    b = Builder("masked")
    m = b.axis("m", 8)
    at = [Affine.of(m)]
    x, out = b.buffer("x", F32, [8], [1]), b.buffer("out", F32, [8], [1], "out")
    with b.grid(m):
        mask = b.const(value, BOOL)
        b.store(out, at, b.load(x, at, (), mask, 5.0), (), mask)
    return b.build()


def test_constant_masks() -> None:
    for value, stores in ((True, 1), (False, 0)):
        kernel = masked(value)
        small = canonicalize(kernel)
        verify(small)
        accesses = [op for op in small.body.walk() if "buffer" in op.attrs]
        assert sum(op.kind == "store" for op in accesses) == stores
        assert not any(op.attrs["masked"] for op in accesses if value)
        results = []
        for version in (kernel, small):
            results.append(torch.zeros(8))
            run(version, [torch.arange(8.0), results[-1]], {})
        assert torch.equal(*results)


def test_it_ends() -> None:
    kernel = kernel_of(lambda b, x: b.pointwise("exp", x), F32)
    once = canonicalize(kernel)
    assert dump(once) == dump(kernel) == dump(canonicalize(once))
