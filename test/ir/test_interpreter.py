"""The oracle itself: against PyTorch, exact arithmetic, and by hand where both are silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import sympy
import torch

from test.ir import random_kernels
from torch_helion import exc
from torch_helion.ir import interpreter, ops
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.interpreter_joins import REDUCTION_FUNCTIONS, SCAN_FUNCTIONS
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS
from torch_helion.ir.types import Affine, Gather, block_symbol, contiguous_strides

NAN, INF = float("nan"), float("inf")
F32, I64 = torch.float32, torch.int64


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def elementwise(
    build: Callable[..., Value], dtypes: Sequence[torch.dtype], out: torch.dtype
) -> Kernel:
    """out[m] = build(b, x0[m], x1[m], ...)"""
    b = Builder("elementwise")
    m = b.axis("m", b.size("n0"))
    at = [Affine.of(m)]
    inputs = [b.buffer(f"x{i}", d, [m.size], [1]) for i, d in enumerate(dtypes)]
    result = b.buffer("out", out, [m.size], [1], "out")
    with b.grid(m):
        b.store(result, at, build(b, *(b.load(x, at) for x in inputs)))
    return b.build()


def pointwise(fn: str, *operands: torch.Tensor) -> torch.Tensor:
    """One row of the table, run as a kernel."""
    row = ops.POINTWISE[fn]
    out = operands[-1].dtype if row.result != "bool" else torch.bool
    kernel = elementwise(lambda b, *v: b.pointwise(fn, *v), [x.dtype for x in operands], out)
    result = torch.empty(len(operands[0]), dtype=out)
    run(kernel, [*operands, result], [len(operands[0])])
    return result


def reduction(
    fn: str, x: torch.Tensor, dims: Sequence[int], block: int | None = None
) -> torch.Tensor:
    """`fn` of a kernel's full axes, one for each of x's dimensions; rows are a block axis."""
    b = Builder("reduction")
    m, k, n = (
        b.axis("m", x.shape[0]),
        b.axis("k", x.shape[1], "full"),
        b.axis("n", x.shape[2], "full"),
    )
    axes = [m, k, n]
    source = b.buffer("x", x.dtype, x.shape, contiguous_strides(tuple(x.shape)))
    kept = [a for d, a in enumerate(axes) if d not in dims]
    dtype = torch.int64 if fn.startswith("arg") else x.dtype
    shape = tuple(int(a.size) for a in kept)
    out = b.buffer("out", dtype, shape, contiguous_strides(shape), "out")
    with b.grid(m):
        value = b.reduce(fn, b.load(source, [Affine.of(a) for a in axes]), [axes[d] for d in dims])
        b.store(out, [Affine.of(a) for a in kept], value)
    result = torch.empty(shape, dtype=dtype)
    run(b.build(), [x.contiguous(), result], {}, block)
    return result


# -- tables -------------------------------------------------------------------------------------


def test_every_row_has_a_meaning() -> None:
    assert set(POINTWISE_FUNCTIONS) == set(ops.POINTWISE)
    assert set(interpreter._OPS) == set(ops.OP_KINDS) - {"yield"}
    assert set(REDUCTION_FUNCTIONS) == set(ops.REDUCTIONS)
    assert set(SCAN_FUNCTIONS) == set(ops.SCANS)


@pytest.mark.parametrize("fn", [n for n, row in ops.POINTWISE.items() if row.domain == "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_functions_run(fn: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, -0.0, 0.0, 1.0, -2.5, NAN, INF, -INF], dtype=dtype)
    result = pointwise(fn, *[x.roll(i) for i in range(ops.POINTWISE[fn].arity)])
    assert len(result) == len(x)
    if ops.POINTWISE[fn].arity == 1:
        known = {"i0e": torch.special.i0e, "i1": torch.special.i1, "i1e": torch.special.i1e}
        equal(result, (known[fn] if fn in known else getattr(torch, fn))(x))


def test_minimum_and_maximum_pass_nan_on() -> None:
    a, b = torch.tensor([1.0, NAN, 2.0]), torch.tensor([NAN, 1.0, 3.0])
    equal(pointwise("maximum", a, b), torch.tensor([NAN, NAN, 3.0]))
    equal(pointwise("minimum", a, b), torch.tensor([NAN, NAN, 2.0]))
    yes, no = torch.tensor([True, True]), torch.tensor([True, False])
    equal(pointwise("minimum", yes, no), no)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_wrap(dtype: torch.dtype) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    a, b = (
        torch.tensor([high, low, low, low], dtype=dtype),
        torch.tensor([1, -1, -1, 1], dtype=dtype),
    )
    equal(pointwise("add", a, b), torch.tensor([low, high, high, low + 1], dtype=dtype))
    equal(pointwise("truncdiv", a, b), torch.tensor([high, low, low, low], dtype=dtype))
    equal(pointwise("floordiv", a, b), torch.tensor([high, low, low, low], dtype=dtype))
    equal(pointwise("remainder", a, b), torch.zeros(4, dtype=dtype))
    equal(pointwise("fmod", a, b), torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
def test_wide_unsigned_integers_wrap(dtype: torch.dtype) -> None:
    high = 2 ** (8 * dtype.itemsize) - 1
    a, b = torch.tensor([high, 1, 7], dtype=dtype), torch.tensor([1, 2, 7], dtype=dtype)
    assert pointwise("add", a, b).tolist() == [0, 3, 14]
    assert pointwise("sub", a, b).tolist() == [high - 1, high, 0]
    assert pointwise("lt", a, b).tolist() == [False, True, False]


def test_divisions_round_as_pytorch_does() -> None:
    a = torch.tensor([7, -7, 7, -7])
    b = torch.tensor([2, 2, -2, -2])
    assert pointwise("truncdiv", a, b).tolist() == [3, -3, -3, 3]
    assert pointwise("floordiv", a, b).tolist() == [3, -4, -4, 3]
    assert pointwise("remainder", a, b).tolist() == [1, 1, -1, -1]
    assert pointwise("fmod", a, b).tolist() == [1, -1, 1, -1]
    x, y = torch.tensor([7.5, -7.5, INF, 1.0, 0.0]), torch.tensor([2.0, 2.0, 2.0, INF, 0.0])
    equal(pointwise("floordiv", x, y), torch.floor_divide(x, y))
    equal(pointwise("remainder", x, y), torch.remainder(x, y))
    equal(pointwise("fmod", x, y), torch.fmod(x, y))


@pytest.mark.parametrize("fn", ["truncdiv", "floordiv", "remainder", "fmod"])
def test_integer_division_by_zero_raises(fn: str) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        pointwise(fn, torch.tensor([1, 2]), torch.tensor([1, 0]))
    assert pointwise(fn, torch.tensor([], dtype=I64), torch.tensor([], dtype=I64)).tolist() == []


def test_fma_rounds_once() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b, c = (torch.randn(4000, generator=generator) for _ in range(3))
    c = torch.where(torch.arange(4000) % 2 == 0, -(a * b), c)  # cancels down to the product's error
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z)
        for x, y, z in zip(*(t.tolist() for t in (a, b, c)), strict=True)
    ]
    got = pointwise("fma", a, b, c)
    for value, wanted in zip(got.tolist(), exact, strict=True):
        near = torch.tensor(value)
        error = abs(Fraction(value) - wanted)
        for side in (INF, -INF):
            neighbour = float(torch.nextafter(near, torch.tensor(side)))
            assert error <= abs(Fraction(neighbour) - wanted)


def test_fma_has_no_second_rounding() -> None:
    """The product lies half way between two float32 numbers; c is below float64's last bit."""
    a = torch.full((3,), 1 + 2.0**-12)
    c = torch.tensor([2.0**-80, 0.0, -(2.0**-80)])
    low = 1 + 2.0**-11
    assert pointwise("fma", a, a, c).tolist() == [low + 2.0**-23, low, low]
    assert pointwise("fma", -a, a, -c).tolist() == [-(low + 2.0**-23), -low, -low]


def test_fma_special_values_and_float64() -> None:
    a, b, c = (
        torch.tensor([INF, 0.0, -0.0, 1e30, 2.0]),
        torch.tensor([1.0, INF, 1.0, 1e30, 3.0]),
        torch.tensor([-INF, 1.0, -0.0, -INF, NAN]),
    )
    wide = pointwise("fma", *(t.double() for t in (a, b, c)))
    for got in (pointwise("fma", a, b, c).double(), wide):
        assert got[:2].isnan().all() and got[3] == -INF and got[4].isnan()
        assert got[2] == 0 and math.copysign(1, got[2]) == -1
    tiny = 2.0**-53
    x = torch.tensor([1 + 2 * tiny], dtype=torch.float64)
    got = pointwise("fma", x, x, torch.tensor([-(1 + 4 * tiny)], dtype=torch.float64))
    assert Fraction(float(got)) == 4 * Fraction(tiny) ** 2


# -- reductions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", ["sum", "prod", "max", "min", "argmax", "argmin"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int32, torch.uint8, torch.int64]
)
def test_reductions_match_pytorch(fn: str, dtype: torch.dtype) -> None:
    x = torch.randint(0, 5, (3, 4, 5)).to(dtype)
    like = {"max": torch.amax, "min": torch.amin}.get(fn, getattr(torch, fn))
    kind = {"dtype": dtype} if fn in ("sum", "prod") else {}
    equal(reduction(fn, x, [2]), like(x, 2, **kind))
    equal(reduction(fn, x, [1], block=2), like(x, 1, **kind))
    if fn in ("sum", "max"):
        equal(reduction(fn, x, [1, 2]), like(x, (1, 2), **kind))


def test_bool_reductions() -> None:
    x = torch.rand(3, 4, 5) < 0.7
    equal(reduction("any", x, [2]), x.any(2))
    equal(reduction("all", x, [2]), x.all(2))
    equal(reduction("max", x, [2]), x.any(2))
    equal(reduction("argmax", x, [2]), x.to(torch.uint8).argmax(2))


def test_extremes_meet_nan() -> None:
    x = torch.tensor([[[3.0, NAN, 5.0, NAN], [2.0, 7.0, 7.0, -INF]]])
    equal(reduction("max", x, [2]), torch.tensor([[NAN, 7.0]]))
    assert reduction("argmax", x, [2]).tolist() == [[1, 1]]
    assert reduction("argmin", x, [2]).tolist() == [[1, 3]]


def test_reductions_over_nothing() -> None:
    x = torch.empty(2, 3, 0)
    equal(reduction("sum", x, [2]), torch.zeros(2, 3))
    equal(reduction("prod", x, [2]), torch.ones(2, 3))
    equal(reduction("max", x, [2]), torch.full((2, 3), -INF))
    equal(reduction("min", x, [1, 2]), torch.full((2,), INF))
    assert reduction("max", torch.empty(1, 1, 0, dtype=torch.int8), [2]).tolist() == [[-128]]
    assert reduction("sum", torch.empty(0, 3, 4), [2]).shape == (0, 3)


# -- kernels ------------------------------------------------------------------------------------


def column_sum() -> Kernel:
    """Two phases: partial sums of tiles of rows, then their sum."""
    b = Builder("column_sum")
    m, n = b.axis("m", b.size("n0")), b.axis("n", b.size("n1"))
    x = b.buffer("x", F32, [m.size, n.size], [n.size, 1])
    tiles = sympy.ceiling(m.size / block_symbol("m"))
    ws = b.buffer("ws", F32, [tiles, n.size], [n.size, 1], "workspace")
    out = b.buffer("out", F32, [n.size], [1], "out")
    t = b.axis("t", tiles, "full")
    with b.grid(m, n):
        part = b.reduce("sum", b.load(x, [Affine.of(m), Affine.of(n)]), [m])
        b.store(ws, [Affine.of(m.id_name), Affine.of(n)], part)
    with b.grid(n):
        b.store(out, [Affine.of(n)], b.reduce("sum", b.load(ws, [Affine.of(t), Affine.of(n)]), [t]))
    return b.build()


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("blocks", [None, 1, 3, {"m": 2, "n": 4}, {"n": 1}])
def test_two_phases(rows: int, blocks: interpreter.Blocks) -> None:
    x, out = torch.randn(rows, 5), torch.empty(5)
    run(column_sum(), [x, out], {"n0": rows, "n1": 5}, blocks)
    torch.testing.assert_close(out, x.sum(0))


@pytest.mark.parametrize("seed", range(60))
def test_block_sizes_do_not_matter(seed: int) -> None:
    case = random_kernels.make(seed)
    args = case.make_args()
    case.check(case.expected(args, blocks=case.blocks), case.expected(args))


def test_workspaces_start_poisoned() -> None:
    b = Builder("unwritten")
    m = b.axis("m", 4)
    ws = b.buffer("ws", F32, [4], [1], "workspace")
    out = b.buffer("out", F32, [4], [1], "out")
    with b.grid(m):
        b.store(out, [Affine.of(m)], b.load(ws, [Affine.of(m)]))
    result = torch.zeros(4)
    run(b.build(), [result], {})
    assert result.isnan().all()


def test_strides_offsets_and_untouched_elements() -> None:
    """A transposed view with an offset; what lies between the output's elements stays."""
    b = Builder("copy")
    m, n = b.axis("m", 3), b.axis("n", 4)
    at = [Affine.of(m), Affine.of(n)]
    x = b.buffer("x", F32, [3, 4], [1, 3])
    out = b.buffer("out", F32, [3, 4], [10, 2], "out")
    with b.grid(m, n):
        b.store(out, at, b.load(x, at))
    storage, target = torch.randn(20), torch.zeros(40)
    view = torch.as_strided(storage, (3, 4), (1, 3), 5)
    result = torch.as_strided(target, (3, 4), (10, 2), 1)
    run(b.build(), [view, result], {}, 2)
    equal(result, view)
    assert int((target != 0).sum()) == 12


def gather_kernel(checked: bool, masked: bool = False) -> Kernel:
    b = Builder("gather")
    m = b.axis("m", b.size("n0"))
    at = [Affine.of(m)]
    indices = b.buffer("indices", I64, [m.size], [1])
    table = b.buffer("table", F32, [5], [1])
    out = b.buffer("out", F32, [m.size], [1], "out")
    with b.grid(m):
        i = b.load(indices, at)
        mask = b.pointwise("ge", i, b.const(0, I64)) if masked else None
        b.store(out, at, b.load(table, [Gather(0)], [i], mask, -1.0, checked))
    return b.build()


def test_gathers() -> None:
    table, out = torch.randn(5), torch.empty(3)
    run(gather_kernel(True), [torch.tensor([4, 0, 4]), table, out], [3])
    equal(out, table[[4, 0, 4]])
    for outside in (5, -1):
        with pytest.raises(IndexError, match=f"index {outside} is out of bounds for dimension 0"):
            run(gather_kernel(True), [torch.tensor([4, outside, 0]), table, out], [3])
        with pytest.raises(exc.VerifierError, match="unchecked load"):
            run(gather_kernel(False), [torch.tensor([4, outside, 0]), table, out], [3])
    run(gather_kernel(True, masked=True), [torch.tensor([4, -9, 0]), table, out], [3])
    equal(out, torch.stack([table[4], torch.tensor(-1.0), table[0]]))


def test_affine_index_outside_is_a_fault() -> None:
    b = Builder("shift")
    m = b.axis("m", 4)
    x, out = b.buffer("x", F32, [4], [1]), b.buffer("out", F32, [4], [1], "out")
    with b.grid(m):
        b.store(out, [Affine.of(m)], b.load(x, [Affine.of(m, 1, 1)]))
    with pytest.raises(exc.VerifierError, match="index 4 is out of bounds"):
        run(b.build(), [torch.randn(4), torch.empty(4)], {})


def test_arguments_are_checked() -> None:
    kernel = gather_kernel(True)
    good = [torch.zeros(3, dtype=I64), torch.zeros(5), torch.zeros(3)]
    with pytest.raises(exc.InvalidValue, match="expected 3"):
        run(kernel, good[:2], [3])
    with pytest.raises(exc.InvalidValue, match=r"expected torch\.float32"):
        run(kernel, [good[0], good[1].double(), good[2]], [3])
    with pytest.raises(exc.InvalidValue, match="storage for sizes"):
        run(kernel, good, [4])
    with pytest.raises(exc.InvalidValue, match="expected 1 of them"):
        run(kernel, good, [])
    with pytest.raises(exc.InvalidValue, match="n0"):
        run(kernel, good, {"other": 1})
    with pytest.raises(exc.InvalidValue, match="at least 1"):
        run(kernel, good, [3], 0)
    run(kernel, good, {sympy.Symbol("n0"): 3})


def test_precise_evaluates_in_float64() -> None:
    def build(b: Builder, x: Value) -> Value:
        third = b.pointwise("div", b.cast(x, F32), b.const(3.0, F32))
        return b.cast(b.pointwise("mul", b.cast(b.cast(third, torch.bfloat16), F32), third), F32)

    kernel = elementwise(build, [torch.bfloat16], F32)
    x = torch.tensor([1.0, 2.0, 10.0], dtype=torch.bfloat16)
    out, wide = torch.empty(3), torch.empty(3, dtype=torch.float64)
    run(kernel, [x, out], [3])
    third = x.float() / 3
    equal(out, third.bfloat16().float() * third)
    run(kernel, [x, wide], [3], precise=True)
    exact = x.double() / 3
    equal(wide, exact.bfloat16().double() * exact)
    run(kernel, [x.double(), wide], [3], precise="all")
    equal(wide, exact * exact)
    with pytest.raises(exc.InvalidValue):
        run(kernel, [x, wide], [3])


def test_casts_and_bitcasts() -> None:
    def cast(x: torch.Tensor, *dtypes: torch.dtype) -> torch.Tensor:
        def build(b: Builder, value: Value) -> Value:
            for dtype in dtypes:
                value = b.cast(value, dtype)
            return value

        out = torch.empty(len(x), dtype=dtypes[-1])
        run(elementwise(build, [x.dtype], dtypes[-1]), [x, out], [len(x)])
        return out

    x = torch.tensor([1.5, -2.5, 0.0, -0.0, 3.99])
    assert cast(x, torch.int32).tolist() == [1, -2, 0, 0, 3]
    assert cast(x, torch.bool).tolist() == [True, True, False, False, True]
    equal(cast(x, torch.float16, F32), x.half().float())
    assert cast(torch.tensor([True, False]), F32).tolist() == [1.0, 0.0]
    assert cast(torch.tensor([300, -1]), torch.uint8).tolist() == [44, 255]
    bits = elementwise(lambda b, v: b.bitcast(v, torch.int32), [F32], torch.int32)
    out = torch.empty(5, dtype=torch.int32)
    run(bits, [x, out], [5])
    equal(out, x.view(torch.int32))


@pytest.mark.parametrize("fn", ["rand", "randn", "randint"])
def test_random_numbers_do_not_depend_on_blocks(fn: str) -> None:
    b = Builder("noise")
    m, n = b.axis("m", 5), b.axis("n", 7)
    seed = b.buffer("seed", I64, [], [])
    dtype = I64 if fn == "randint" else F32
    out = b.buffer("out", dtype, [5, 7], [7, 1], "out")
    with b.grid(m, n):
        row = b.pointwise("mul", b.iota(m), b.const(7, I64))
        index = b.pointwise("add", row, b.iota(n))
        bounds = [b.const(-3, I64), b.const(9, I64)] if fn == "randint" else []
        value = b.rng(fn, b.load(seed, []), index, *bounds)
        b.store(out, [Affine.of(m), Affine.of(n)], value)
    results = []
    for number, blocks in ((1, None), (1, {"m": 2, "n": 3}), (2, None)):
        results.append(torch.empty(5, 7, dtype=dtype))
        run(b.build(), [torch.tensor(number), results[-1]], {}, blocks)
    equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    low, high = {"rand": (0, 1), "randn": (-6, 6), "randint": (-3, 8)}[fn]
    assert low <= results[0].min() and results[0].max() <= high


def test_argmax_in_a_tile_counts_along_the_whole_axis() -> None:
    b = Builder("argmax")
    m = b.axis("m", 6)
    x = b.buffer("x", F32, [6], [1])
    out = b.buffer("out", I64, [3], [1], "out")
    with b.grid(m):
        b.store(out, [Affine.of(m.id_name)], b.reduce("argmax", b.load(x, [Affine.of(m)]), [m]))
    out_tensor = torch.empty(3, dtype=I64)
    run(b.build(), [torch.tensor([1.0, 2, 9, 3, 4, 4]), out_tensor], {}, 2)
    assert out_tensor.tolist() == [1, 2, 4]
