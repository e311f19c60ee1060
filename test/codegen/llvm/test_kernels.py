"""The llvm target on each map-reduce family: ragged sizes, NaN and inf, errors, page-guarded
buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from expecttest import assert_expected_inline

from test.codegen.llvm import kernels
from test.guarded import guarded
from torch_helion import compiler
from torch_helion.codegen.llvm.schedule import plan_phase
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel

SHAPES = [(1, 1), (2, 15), (3, 16), (5, 17), (7, 64), (4, 100), (33, 130), (2, 1000), (300, 3)]


def run(
    kernel: Kernel,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor | Sequence[torch.Tensor],
    sizes: Sequence[int],
    side: str = "end",
) -> list[torch.Tensor]:
    """Compile with the default config and run on page-guarded copies; returns the outputs."""
    outs = [out] if isinstance(out, torch.Tensor) else list(out)
    call = compiler.load_kernel(
        compiler.compile_kernel(kernel, dict(zip(kernel.sizes, sizes, strict=True)))
    )
    results = [guarded(o, side) for o in outs]
    call(*(guarded(t, side) for t in inputs), *results, *sizes)
    return results


def close(got: torch.Tensor, want: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmax(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    x[0, 0] = -math.inf if shape[1] > 1 else 1.0
    (got,) = run(kernels.softmax(dtype=dtype), [x], torch.empty_like(x), shape)
    close(got, x.softmax(-1))


def test_softmax_of_nan_and_masked_rows() -> None:
    x = torch.randn(4, 40)
    x[1, 7], x[2], x[3, 3] = math.nan, -math.inf, math.inf
    (got,) = run(kernels.softmax(40), [x], torch.empty_like(x), [4])
    close(got, x.softmax(-1))


def test_softmax_schedule() -> None:
    kernel = kernels.softmax()
    plan = plan_phase(kernel.phases[0], {b.name: b for b in kernel.buffers}, {"m": 4})
    assert_expected_inline(
        str(plan),
        """\
grid [m/4] vector n
  for m:
    for n:
      reduce max -> row_max
    for n:  keeps exp
      reduce sum -> row_sum
    for n:
      store out""",
    )


def test_the_vector_axis_is_that_of_the_largest_accesses() -> None:
    """Many small accesses along the rows do not outvote one load of the whole matrix."""
    kernel = kernels.row_statistics()
    plan = plan_phase(kernel.phases[0], {b.name: b for b in kernel.buffers}, {"m": 4})
    assert plan.vector == "n"


EAGER: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
    "argmax": torch.argmax,
    "argmin": torch.argmin,
    "any": torch.any,
    "all": torch.all,
    "prod": torch.prod,
}


def sample(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0 if dtype is torch.uint8 else -100, 100, shape).to(dtype)


CASES = [
    *(
        (fn, d)
        for fn in ("max", "min", "argmax", "argmin")
        for d in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8)
    ),
    *((fn, d) for fn in ("sum", "prod") for d in (torch.float32, torch.float64, torch.int64)),
    *((fn, torch.bool) for fn in ("any", "all")),
]


def shapes_of(fn: str, dtype: torch.dtype) -> list[tuple[int, int]]:
    """Every shape in float32; every second one otherwise, others for the next dtype and function
    (a kernel is compiled for each)."""
    return SHAPES if dtype is torch.float32 else SHAPES[CASES.index((fn, dtype)) % 2 :: 2]


@pytest.mark.parametrize("fn,dtype", CASES)
def test_row_reductions(fn: str, dtype: torch.dtype) -> None:
    check_row_reduction(fn, dtype, shapes_of(fn, dtype))


@pytest.mark.parametrize("fn,dtype", CASES)
def test_middle_reductions(fn: str, dtype: torch.dtype) -> None:
    check_middle_reduction(fn, dtype, shapes_of(fn, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("fn,dtype", CASES)
def test_reductions_of_every_shape(fn: str, dtype: torch.dtype) -> None:
    check_row_reduction(fn, dtype, SHAPES)
    check_middle_reduction(fn, dtype, SHAPES)


def check_row_reduction(fn: str, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> None:
    out = torch.int64 if fn.startswith("arg") else dtype
    for shape in shapes:
        x = sample(shape, dtype) if fn != "prod" else sample(shape, dtype).sign()
        want = EAGER[fn](x, 1).to(out)
        (got,) = run(kernels.reduce_rows(fn, dtype, out), [x], torch.empty_like(want), shape)
        close(got, want)


def check_middle_reduction(fn: str, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> None:
    out = torch.int64 if fn.startswith("arg") else dtype
    for rows, columns in shapes:
        x = (
            sample((2, rows, columns), dtype)
            if fn != "prod"
            else sample((2, rows, columns), dtype).sign()
        )
        want = EAGER[fn](x, 1).to(out)
        (got,) = run(
            kernels.reduce_middle(fn, dtype, out),
            [x],
            torch.empty_like(want),
            (2, rows, columns),
            "start",
        )
        close(got, want)


@pytest.mark.parametrize("fn", ["max", "min", "argmax", "argmin"])
def test_nan_is_extreme(fn: str) -> None:
    x = torch.randn(6, 70)
    x[1, 69] = x[2, 0] = x[3, 20] = x[3, 50] = math.nan
    x[4] = -math.inf
    x[5] = math.inf
    out = torch.int64 if fn.startswith("arg") else torch.float32
    (got,) = run(
        kernels.reduce_rows(fn, torch.float32, out), [x], torch.empty(6, dtype=out), (6, 70)
    )
    close(got, EAGER[fn](x, 1))


def test_long_sums_do_not_stagnate() -> None:
    x = torch.rand(1, 3_000_000) + 0.5
    (got,) = run(
        kernels.reduce_rows("sum", torch.float32, torch.float32),
        [x],
        torch.empty(1),
        (1, 3_000_000),
    )
    close(got, x.double().sum(1).float())
    y = torch.rand(1, 200_000, 3) + 0.5
    (got,) = run(
        kernels.reduce_middle("sum", torch.float32, torch.float32), [y], torch.empty(1, 3), y.shape
    )
    close(got, y.double().sum(1).float())


def test_empty_reductions_give_the_identity() -> None:
    for fn, want in (("sum", 0.0), ("prod", 1.0)):
        x = torch.empty(3, 0)
        (got,) = run(
            kernels.reduce_rows(fn, torch.float32, torch.float32), [x], torch.empty(3), (3, 0)
        )
        close(got, torch.full((3,), want))
    run(kernels.softmax(), [torch.empty(0, 5)], torch.empty(0, 5), (0, 5))


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_backward(shape: tuple[int, int]) -> None:
    m, n = shape
    x, dy, w = torch.randn(m, n), torch.randn(m, n), torch.randn(n)
    _, mean, rstd = torch.native_layer_norm(x, [n], w, w, 1e-5)
    want = torch.ops.aten.native_layer_norm_backward(dy, x, [n], mean, rstd, w, w, [True] * 3)
    outs = [torch.empty(m, n), torch.empty(n), torch.empty(n)]
    got = run(kernels.layer_norm_backward(), [x, dy, w, mean.view(-1), rstd.view(-1)], outs, shape)
    for a, b in zip(got, want, strict=True):
        close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 4, 17), (2, 2, 5, 100), (3, 1, 2, 16)])
def test_group_norm(shape: tuple[int, int, int, int]) -> None:
    n, g, c, p = shape
    x, w = torch.randn(n, g, c, p) + 30, torch.randn(g, c)
    want = torch.nn.functional.group_norm(x.view(n, g * c, p), g, w.view(-1)).view(shape)
    (got,) = run(kernels.group_norm(), [x, w], torch.empty(shape), shape)
    close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gathers(shape: tuple[int, int]) -> None:
    m, n = shape
    table, ids = torch.randn(11, n), torch.randint(0, 11, (m,))
    (got,) = run(kernels.embedding_add(), [ids, table], torch.empty(m, n), (m, n, 11))
    close(got, table[ids] + torch.arange(n, dtype=torch.float32))
    x, columns = torch.randn(m, n), torch.randint(0, n, (m, 19))
    (got,) = run(kernels.take_along_columns(), [x, columns], torch.empty(m, 19), (m, n, 19))
    close(got, x.gather(1, columns))


@pytest.mark.parametrize("bad", [-1, 11, 2**40])
def test_index_out_of_range_is_an_error(bad: int) -> None:
    ids = torch.tensor([3, bad, 0])
    with pytest.raises(IndexError):
        run(kernels.embedding_add(), [ids, torch.randn(11, 20)], torch.empty(3, 20), (3, 20, 11))
    with pytest.raises(IndexError):
        run(
            kernels.take_along_columns(),
            [torch.randn(1, 11), ids.view(1, 3)],
            torch.empty(1, 3),
            (1, 11, 3),
        )


@pytest.mark.parametrize("p,q", [(1, 1), (16, 16), (5, 40), (33, 2)])
def test_concatenate(p: int, q: int) -> None:
    x, y = torch.randn(3, p), torch.randn(3, q)
    for side in ("start", "end"):
        (got,) = run(kernels.concatenate(), [x, y], torch.empty(3, p + q), (3, p, q), side)
        close(got, torch.cat([x, -y], 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_transpose(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    (got,) = run(kernels.transpose_scale(), [x], torch.empty(shape[1], shape[0]), shape)
    close(got, x.t() * 2)


DIVIDE = {
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "floordiv": torch.floor_divide,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("fn", DIVIDE)
def test_integer_division(fn: str, dtype: torch.dtype) -> None:
    x, y = sample((300,), dtype), sample((300,), dtype)
    y[y == 0] = 3
    x[0], y[0] = torch.iinfo(dtype).min, -1 if dtype is not torch.uint8 else 1
    if dtype is not torch.uint8 and dtype.itemsize >= 4:
        x[0] = 5  # the most negative number over -1 traps in eager
    (got,) = run(kernels.divide(fn, dtype), [x, y], torch.empty_like(x), [300])
    close(got, DIVIDE[fn](x, y))
    y[299] = 0
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run(kernels.divide(fn, dtype), [x, y], torch.empty_like(x), [300])


@pytest.mark.parametrize("fn", ["floordiv", "remainder", "fmod"])
def test_float_division(fn: str) -> None:
    special = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e30, -3e-12, 7.5, 0.37, 5e-324, 3.0]
    )
    x, y = (t.reshape(-1).contiguous() for t in torch.meshgrid(special, special, indexing="ij"))
    (got,) = run(kernels.divide(fn, torch.float32), [x, y], torch.empty_like(x), [x.numel()])
    # One element at a time: eager's vectors lose quotients beyond 2**127 that its scalars have.
    want = torch.stack([DIVIDE[fn](a, b) for a, b in zip(x, y, strict=True)])
    close(got, want, rtol=0, atol=0)
    ordered = ~want.isnan()
    assert torch.equal(torch.signbit(got[ordered]), torch.signbit(want[ordered]))


@pytest.mark.parametrize("shape", SHAPES)
def test_assertions(shape: tuple[int, int]) -> None:
    """A false lane ends the kernel with its status; lanes beyond the range do not count."""
    kernel = kernels.asserted_positive()
    x = torch.rand(shape) + 0.1
    (got,) = run(kernel, [x], torch.empty(shape), shape)
    close(got, x * 2)
    x[-1, -1] = -1.0
    with pytest.raises(IndexError):
        run(kernel, [x], torch.empty(shape), shape)


def _numbers(dtype: torch.dtype) -> torch.Tensor:
    """Every number of a 16-bit type; of float32 every exponent, ties, and what is next to ties."""
    if dtype.itemsize == 2:
        return torch.arange(2**16).to(torch.int16).view(dtype)
    bits = torch.arange(0, 2**32, 65537) - 2**31
    ties = (torch.arange(2**16) << 16) + 0x8000 - 2**31
    bits = torch.cat([bits, ties - 1, ties, ties + 1, torch.randint(-(2**31), 2**31, (9999,))])
    return bits.to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [None, 1.0, 1.0 + 2.0**-9, 1e-38, 1e30, math.nan])
def test_rounding_to_bfloat16_is_that_of_pytorch(dtype: torch.dtype, factor: float | None) -> None:
    """Subnormal numbers, ties, inf, and NaN of any payload: in pairs of vectors and in the rest."""
    x = _numbers(dtype)
    kernel = kernels.round_to_bfloat16(dtype, factor)
    (got,) = run(kernel, [x], torch.empty(x.shape, dtype=torch.bfloat16), [len(x)])
    want = (x.float() if factor is None else x.float() * factor).to(torch.bfloat16)
    number = ~want.isnan()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[number].view(torch.int16), want[number].view(torch.int16))


def test_short_functions_where_results_are_rounded_to_bfloat16() -> None:
    """Every bfloat16: hardly more than half a step from the exact result; right at the ends."""
    x = _numbers(torch.bfloat16)
    kernel = kernels.gelu(torch.bfloat16, torch.bfloat16)
    assert "one_plus_erf_short" in compiler.compile_kernel(kernel, {kernel.sizes[0]: len(x)})
    outs = [torch.empty_like(x), torch.empty_like(x)]
    gelu, silu = run(kernel, [x], outs, [len(x)])
    exact = x.double()
    with_tails = exact * torch.special.ndtr(exact)
    for got, want, low in ((gelu, with_tails, -5.5), (silu, exact * exact.sigmoid(), -80.0)):
        inside = (exact > low) & exact.isfinite()
        error = (got.double() - want).abs()[inside]
        assert (error <= 2.0**-8 * 1.03 * want.abs()[inside] + 2.0**-134 * 1.01).all()
        assert (got[(exact <= low) & exact.isfinite()].abs() <= 2e-7).all()
        assert torch.equal(got.isnan(), x.isnan() | (x == -math.inf))
        assert got[x == math.inf].isposinf().all()
        zero = x == 0
        assert torch.equal(got[zero].signbit(), x[zero].signbit())


def test_long_functions_where_more_bits_are_kept() -> None:
    for dtype in (torch.float32, torch.float16):
        kernel = kernels.gelu(torch.bfloat16, dtype)
        assert "_short" not in compiler.compile_kernel(kernel, {kernel.sizes[0]: 1000})


@pytest.mark.parametrize("columns", [48, 50, 64, 1000, 1008])
def test_streaming_stores_where_rows_turn_out_to_be_aligned(columns: int) -> None:
    """The length of a row is an argument: whether its rows are aligned is seen when it runs."""
    kernel = kernels.asserted_positive()
    hints = dict(zip(kernel.sizes, (5, columns), strict=True))
    config = Config(block_sizes=[1, 512], streaming_stores=["out"])
    compiled = compiler.compile_kernel(kernel, hints, config)
    assert "!nontemporal" in compiled
    x = torch.rand(5, columns) + 0.1
    for place in (0, 1):
        got = torch.empty(5 * columns + 64)[place : place + 5 * columns].view(5, columns)
        compiler.load_kernel(compiled)(x, got, 5, columns)
        close(got, x * 2)
