"""Programs with structure inside of the grid, on the llvm target: against the interpreter and
PyTorch, at ragged sizes, on page-guarded buffers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline

from test.codegen.llvm import tile_programs
from test.codegen.llvm.test_random_kernels import target_for
from test.guarded import guarded
from test.ir import random_programs
from test.ir.programs import Program, program, run_program
from torch_helion import compiler
from torch_helion.config import Config
from torch_helion.ir import philox
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.types import Affine, Gather, begin_symbol, contiguous_strides, id_symbol

F32, F64, I32, I64 = torch.float32, torch.float64, torch.int32, torch.int64
HALVES = (torch.float16, torch.bfloat16)
at = Affine.of
SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.5, -2.5]


def call(
    kernel: Kernel,
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int] = (),
    side: str = "end",
    machine: str = "host",
    **config: Any,
) -> list[torch.Tensor]:
    """Run on page-guarded copies of the tensors; returns them."""
    target = target_for(machine)
    chosen = Config(**config) if config else None
    hints = dict(zip(kernel.sizes, sizes, strict=True))
    text = compiler.compile_kernel(kernel, hints, chosen, target)
    copies = [guarded(t, side) for t in tensors]
    compiler.load_kernel(text, target)(*copies, *sizes)
    return copies


def same_as_interpreter(
    body: Callable[[Program], None],
    tensors: Mapping[str, torch.Tensor],
    block: int = 4,
    machine: str = "host",
    **tolerance: float,
) -> dict[str, torch.Tensor]:
    """Outputs of a small program, equal to what the interpreter gives."""
    want = run_program(body, tensors, blocks=block)
    kernel, p = program(body, {n: t.clone() for n, t in tensors.items()})
    names = [b.name for b in kernel.arguments]
    got = call(
        kernel,
        [p.tensors[n] for n in names],
        machine=machine,
        block_sizes=[block] * len(kernel.block_names),
        unroll=2,
    )
    results = dict(zip(names, got, strict=True))
    for name, tensor in want.items():
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            results[name], tensor = results[name].float(), tensor.float()
        torch.testing.assert_close(results[name], tensor, equal_nan=True, **tolerance)
    return {n: results[n] for n in want}


# -- random programs ------------------------------------------------------------------------------


def run_random(seed: int, machine: str) -> None:
    case = random_programs.make(seed)
    rng = random.Random(seed)
    sizes = [rng.choice((case.blocks[n], 1, 2, 5, 16, 64)) for n in case.kernel.block_names]
    args = case.make_args(seed)
    want = case.expected(args)
    got = call(
        case.kernel,
        args,
        [case.sizes[s] for s in case.kernel.sizes],
        ("start", "end")[seed % 2],
        machine,
        block_sizes=sizes,
        unroll=rng.choice((1, 2, 4)),
    )
    case.check(got, want)


@pytest.mark.parametrize("machine", ["host", "narrow"])
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_matches_interpreter(first: int, machine: str) -> None:
    for seed in range(first, first + 10):
        if machine == "host" or seed % 4 == 0:
            run_random(seed, machine)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 1000, 20))
def test_matches_interpreter_more(first: int) -> None:
    for seed in range(first, first + 20):
        run_random(seed, ("host", "narrow")[seed // 2 % 2])


# -- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 5), (70, 50, 300), (64, 128, 256)])
def test_matmul(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    x, y, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n, dtype=dtype)
    x, y = x.to(dtype), y.to(dtype)
    want = (x.double() @ y.double()).to(dtype)
    for config in ({}, {"block_sizes": [16, 32, 64]}, {"block_sizes": [1, 8, 16]}):
        *_, got = call(tile_programs.matmul(m, n, k, dtype), [x, y, out], **config)
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype in HALVES else 1e-4, atol=1e-2)


def test_matmul_of_dynamic_sizes_with_an_epilogue() -> None:
    b = Builder("sizes")
    m, n, k = b.size("m"), b.size("n"), b.size("k")
    kernel = tile_programs.matmul(m, n, k, epilogue=tile_programs.bias_gelu(n), transposed=True)
    for sizes in ((3, 40, 17), (130, 20, 300), (0, 4, 4), (4, 4, 0)):
        rows, columns, depth = sizes
        x, y, bias = torch.randn(rows, depth), torch.randn(columns, depth), torch.randn(columns)
        out = torch.empty(rows, columns)
        got = call(kernel, [x, y, out, bias], sizes)[2]
        h = x @ y.t() + bias
        torch.testing.assert_close(got, h * torch.sigmoid(1.702 * h), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
@pytest.mark.parametrize("causal, short", [(False, False), (True, False), (True, True)])
def test_attention(causal: bool, short: bool, dtype: torch.dtype) -> None:
    shape = (3, 70, 40)
    q, k, v = (torch.randn(shape).to(dtype) for _ in range(3))
    want = F.scaled_dot_product_attention(
        q[None].float(), k[None].float(), v[None].float(), is_causal=causal
    )[0]
    for config in ({}, {"block_sizes": [16, 32]}, {"block_sizes": [1, 1]}):
        kernel = tile_programs.attention(3, 70, 70, 40, dtype, causal, short)
        *_, got = call(kernel, [q, k, v, torch.empty(shape, dtype=dtype)], **config)
        tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)


def test_softmax_in_tiles() -> None:
    x = torch.randn(9, 133)
    x[1, 5], x[2, 7], x[3] = float("nan"), float("inf"), -1e30
    for config in ({}, {"block_sizes": [4, 32]}, {"block_sizes": [2, 1]}):
        _, got = call(tile_programs.softmax_two_pass(9, 133), [x, torch.empty_like(x)], **config)
        torch.testing.assert_close(got, x.softmax(-1), equal_nan=True)


def test_layer_norm_of_whole_rows() -> None:
    x, w = torch.randn(13, 200), torch.randn(200)
    *_, got = call(tile_programs.layer_norm(13, 200), [x, w, torch.empty_like(x)])
    torch.testing.assert_close(got, F.layer_norm(x, [200], w))


def test_cross_entropy_and_its_index_errors() -> None:
    x, labels = torch.randn(11, 300), torch.randint(0, 300, (11,))
    kernel, out = tile_programs.cross_entropy(11, 300), torch.empty(11)
    *_, got = call(kernel, [x, labels, out])
    torch.testing.assert_close(got, F.cross_entropy(x, labels, reduction="none"))
    labels[4] = 300
    with pytest.raises(IndexError):
        call(kernel, [x, labels, out])


@pytest.mark.parametrize("blocks", [[64, 32], [4, 1], [1, 8]])
def test_loops_whose_size_is_data(blocks: list[int]) -> None:
    starts = torch.tensor([0, 0, 3, 40, 40, 100])
    table = torch.randn(100, 50)
    kernel = tile_programs.ragged_sums(5, 50, 100)
    *_, got = call(kernel, [starts, table, torch.empty(5, 50)], block_sizes=blocks)
    want = torch.stack([table[a:b].sum(0) for a, b in itertools.pairwise(starts)])
    torch.testing.assert_close(got, want)


def test_steps_add_atomically() -> None:
    """Many steps, on all threads, add to the same elements."""
    x, y = torch.randint(-3, 4, (8, 5000)).float(), torch.randint(-3, 4, (5000, 24)).float()
    out = torch.ones(8, 24)
    config = {"block_sizes": [8, 8, 16]}
    *_, got = call(tile_programs.split_k(8, 24, 5000), [x, y, out], **config)
    assert torch.equal(got, 1 + x @ y)


def test_attention_plan() -> None:
    """Products read q, k, v in place; the rest of a turn is two sweeps; nothing is copied."""
    text = compiler.compile_kernel(
        tile_programs.attention(2, 64, 64, 64), config=Config(block_sizes=[32, 64])
    )
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("; grid"))
    last = next(i for i, line in enumerate(lines) if line.startswith("define"))
    assert_expected_inline(
        "\n".join(lines[first:last]),
        """\
; grid [h/1, m/32]
;   for m:
;     assign c
;     assign c
;   for m:
;     for e:
;       assign c
;   loop n -> c, c, c
;     dot d -> dot
;     for m:
;       for n:
;         reduce max -> max
;       keep maximum
;       keep exp
;       for n:
;         reduce sum -> sum
;         keep exp
;       keep add
;     for m:
;       for e:
;         keep mul
;     dot n -> dot
;   for m:
;     for e:
;       store out""",
    )


# -- control --------------------------------------------------------------------------------------


def test_carried_values_that_change_places() -> None:
    """(a, b) becomes (b, a + b) in each turn: neither may be overwritten before it is read."""

    def body(p: Program) -> None:
        m, n = p.axis("m", 5), p.axis("n", 20, "full")
        with p.b.grid(m):
            x, y = p.load("x", m, n), p.load("y", m, n)
            with p.b.sequential_loop("i", 0, 7, 1, [x, y]) as loop:
                a, b = loop.args
                loop.finish([b, p.op("add", a, b)])
            p.out("a", loop.results[0], m, n)
            p.out("b", loop.results[1], m, n)

    inputs = {"x": torch.randn(5, 20), "y": torch.randn(5, 20)}
    same_as_interpreter(body, inputs)


def test_an_old_value_that_is_read_after_the_new_one_is_made() -> None:
    def body(p: Program) -> None:
        m, n, o = p.axis("m", 6), p.axis("n", 18, "full"), p.axis("o", 18, "full")
        with p.b.grid(m):
            with p.b.sequential_loop("i", 0, 3, 1, [p.load("x", m, n)]) as loop:
                (c,) = loop.args
                new = p.op("mul", c, p.const(0.5))
                total = p.b.reduce("sum", p.op("exp", new), [n])
                turned = p.b.reaxis(c, {n: o})
                top = p.b.reduce("max", p.op("sub", turned, total), [o])
                loop.finish([p.op("add", p.op("exp", new), top)])
            p.out("y", loop.results[0], m, n)

    same_as_interpreter(body, {"x": torch.randn(6, 18)})


def test_an_old_value_that_is_read_under_another_name() -> None:
    """The renamed value lies in the carried array itself."""

    def body(p: Program) -> None:
        m, n, o = p.axis("m", 6), p.axis("n", 18, "full"), p.axis("o", 18, "full")
        with p.b.grid(m):
            with p.b.sequential_loop("i", 0, 3, 1, [p.load("x", m, n)]) as loop:
                (c,) = loop.args
                turned = p.b.reaxis(c, {n: o})
                new = p.op("exp", p.op("mul", c, p.const(-0.5)))
                p.out("scan", p.b.scan("sum", new, n), m, n)
                p.out("turned", p.op("sub", turned, p.b.reduce("max", new, [n])), m, o)
                loop.finish([new])
            p.out("y", loop.results[0], m, n)

    same_as_interpreter(body, {"x": torch.randn(6, 18)})


def test_branches_and_whiles() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 9), p.axis("n", 7, "full")
        with p.b.grid(m, blocks=[1]):
            x = p.load("x", m, n)
            count = p.b.reduce("max", p.load("count", m), [m])
            big = p.op("gt", count, p.const(3, I64))
            branch = p.b.if_(big)
            with branch.then():
                branch.finish([p.op("neg", x)])
            with branch.otherwise():
                branch.finish([x])
            loop = p.b.while_([count, branch.results[0]])
            with loop.condition():
                loop.finish([p.op("gt", loop.args[0], p.const(0, I64))])
            with loop.body():
                less = p.op("sub", loop.args[0], p.const(1, I64))
                loop.finish([less, p.op("add", loop.args[1], p.const(1.0))])
            p.out("y", loop.results[1], m, n)

    inputs = {"x": torch.randn(9, 7), "count": torch.tensor([0, 1, 2, 3, 4, 5, 0, 9, 1])}
    same_as_interpreter(body, inputs)


def test_a_store_is_seen_by_later_loads() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 6), p.axis("n", 20, "full")
        with p.b.grid(m):
            y = p.buffer("y", "inout")
            index = [at(m), at(n)]
            back = [at(m), at(n, -1, 19)]
            p.b.store(y, index, p.op("add", p.b.load(y, index), p.load("x", m, n)))
            turned = p.b.load(y, back)
            p.b.store(y, index, p.op("mul", turned, p.const(2.0)))
            p.out("z", p.b.load(y, back), m, n)

    same_as_interpreter(body, {"x": torch.randn(6, 20), "y": torch.randn(6, 20)})


def test_serial_steps_run_in_order() -> None:
    """The last writer wins."""
    b = Builder("serial")
    x = b.buffer("x", F32, (1000,), (1,))
    out = b.buffer("out", F32, (1,), (1,), "out")
    m = b.axis("m", 1000)
    with b.grid(m, blocks=[1], serial=True):
        b.store(out, [Affine((), 0)], b.reduce("sum", b.load(x, [at(m)]), [m]))
    x_value = torch.randn(1000)
    _, got = call(b.build(), [x_value, torch.empty(1)])
    assert got[0] == x_value[-1]


def test_begin_and_number_of_tiles_in_sizes() -> None:
    b = Builder("positions")
    out = b.buffer("out", I64, (10, 3), (3, 1), "out")
    m, n = b.axis("m", 10), b.axis("n", 3)
    with b.grid(m, n, blocks=[b.block("m"), b.block("n")]):
        value = b.size_value(begin_symbol(m) * 100 + id_symbol(m) * 10 + begin_symbol(n))
        b.store(out, [at(m), at(n)], b.expand(value, [m, n]))
    rows, columns = torch.arange(10)[:, None], torch.arange(3)[None]
    (got,) = call(b.build(), [torch.empty(10, 3, dtype=I64)], block_sizes=[4, 2])
    assert torch.equal(got, rows // 4 * 4 * 100 + rows // 4 * 10 + columns // 2 * 2)


@pytest.mark.parametrize(
    "options",
    [
        {"loop_orders": [[1, 0, 2]]},
        {"l2_groupings": [3]},
        {"pid_type": "persistent_interleaved"},
        {"pid_type": "persistent_interleaved", "l2_groupings": [2], "loop_orders": [[2, 1, 0]]},
    ],
)
def test_other_orders_of_steps_cover_the_same_tiles(options: dict[str, Any]) -> None:
    b = Builder("order")
    out = b.buffer("out", F32, (5, 11, 7), (77, 7, 1), "out")
    axes = [b.axis(name, size) for name, size in (("m", 5), ("n", 11), ("o", 7))]
    with b.grid(*axes, blocks=[b.block(a.name) for a in axes]):
        places = [b.cast(b.iota(a), F32) for a in axes]
        value = b.pointwise("add", b.pointwise("mul", places[0], b.const(100.0, F32)), places[1])
        value = b.pointwise("add", value, b.pointwise("mul", places[2], b.const(0.125, F32)))
        b.store(out, [at(a) for a in axes], value)
    m, n, o = (torch.arange(k, dtype=F32) for k in (5, 11, 7))
    want = m[:, None, None] * 100 + n[:, None] + o * 0.125
    for blocks in ([2, 2, 4], [1, 1, 2], [8, 16, 8]):
        (got,) = call(b.build(), [torch.empty(5, 11, 7)], block_sizes=blocks, **options)
        assert torch.equal(got, want)


# -- joins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["host", "narrow"])
@pytest.mark.parametrize("fn", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, F64, I32, I64, torch.int8])
def test_scans(dtype: torch.dtype, fn: str, machine: str) -> None:
    size = 37
    x = torch.randint(-2, 3, (5, size)).to(dtype)
    if dtype.is_floating_point and fn in ("max", "min"):
        x[1, 10], x[2, 4] = float("nan"), float("inf")

    def body(p: Program) -> None:
        m, n = p.axis("m", 5), p.axis("n", size, "full")
        with p.b.grid(m):
            value = p.load("x", m, n)
            for reverse in (False, True):
                for exclusive in (False, True):
                    scanned = p.b.scan(fn, value, n, reverse, exclusive)
                    p.out(f"y{reverse}{exclusive}", scanned, m, n)
            p.out("down", p.b.scan(fn, value, m), m, n)

    same_as_interpreter(body, {"x": x}, machine=machine)


def _larger(b: Builder, left: list[Value], right: list[Value]) -> list[Value]:
    """The larger value and its index."""
    wins = b.pointwise("gt", right[0], left[0])
    return [b.pointwise("where", wins, r, x) for x, r in zip(left, right, strict=True)]


def test_functions_of_the_program_as_reductions_and_scans() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 6), p.axis("n", 23, "full")
        with p.b.grid(m):
            x = p.load("x", m, n)
            index = p.b.expand(p.b.iota(n), [m, n])
            values = p.b.custom_reduce([x, index], [n], [float("-inf"), -1], _larger)
            p.out("top", values[0], m)
            p.out("where", values[1], m)
            down = p.b.custom_reduce([x, index], [m], [float("-inf"), -1], _larger)
            p.out("scan", p.b.custom_scan([x, index], n, _larger)[0], m, n)
            p.out("back", p.b.custom_scan([x, index], n, _larger, reverse=True)[1], m, n)
            p.out("across", p.b.custom_scan([x, index], m, _larger)[1], m, n)
            p.out("sum", p.op("add", x, down[0]), m, n)

    same_as_interpreter(body, {"x": torch.randn(6, 23)}, block=8)


@pytest.mark.parametrize(
    "dtype", [F32, F64, *HALVES, I64, I32, torch.int8, torch.uint8, torch.bool]
)
def test_sorts(dtype: torch.dtype) -> None:
    x = torch.randint(-4, 5, (5, 33)).to(dtype)
    if dtype.is_floating_point:
        x[2, :7] = torch.tensor(SPECIAL).to(dtype)
        x[3] = torch.randn(33).to(dtype)

    def body(p: Program) -> None:
        m, n, k = p.axis("m", 5), p.axis("n", 33, "full"), p.axis("k", 4, "full")
        with p.b.grid(m):
            value = p.load("x", m, n)
            for name, down in (("up", False), ("down", True)):
                values, order = p.b.sort(value, n, down)
                p.out(f"{name}_values", values, m, n)
                p.out(f"{name}_order", order, m, n)
            values, order = p.b.sort(value, n, True, 4, k)
            p.out("top", values, m, k)
            p.out("top_order", order, m, k)

    same_as_interpreter(body, {"x": x})


def test_takes_and_their_index_errors() -> None:
    def body(p: Program) -> None:
        m, n, k = p.axis("m", 5), p.axis("n", 20, "full"), p.axis("k", 9, "full")
        with p.b.grid(m):
            value = p.op("exp", p.load("x", m, n))
            index = p.load("index", m, k)
            p.out("y", p.b.take(value, index, n), m, k)
            one = p.b.load(p.buffer("index"), [at(m), Affine((), 0)])
            p.out("z", p.b.take(value, one, n), m)

    inputs = {"x": torch.randn(5, 20), "index": torch.randint(0, 20, (5, 9))}
    same_as_interpreter(body, inputs)
    for wrong in (20, -1):
        inputs["index"][3, 8] = wrong
        with pytest.raises(IndexError):
            same_as_interpreter(body, inputs)
        kernel, p = program(body, inputs)
        with pytest.raises(IndexError):
            call(kernel, [p.tensors[b.name] for b in kernel.arguments], block_sizes=[2])


def test_reshapes_of_whole_and_cut_tiles() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 7), p.axis("n", 6, "full")
        flat, two, three = (
            p.axis(name, size, "full") for name, size in (("f", 24), ("two", 2), ("three", 3))
        )
        with p.b.grid(m):
            value = p.load("x", m, n)
            split = p.b.reshape(value, [n], [two, three])
            p.out("split", split, m, two, three)
            p.out("turned", p.b.reshape(split, [three, two], [n]), m, n)
            joined = p.b.reshape(value, [m, n], [flat])
            p.out("sums", p.b.reduce("sum", joined, [flat]), Affine.of("m.id"), shape=[2])

    same_as_interpreter(body, {"x": torch.randn(7, 6)})


@pytest.mark.parametrize(
    "dtypes",
    [
        (F32, F32),
        (F64, F64),
        (F32, F64),
        (torch.bfloat16, F32),
        (torch.float16, F32),
        (torch.int8, I32),
        (torch.uint8, I32),
        (torch.float8_e4m3fn, F32),
        (torch.float8_e5m2, F32),
    ],
)
def test_dots(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Batches, missing rows or columns, computed operands, accumulators used twice."""
    dtype, acc = dtypes
    low = 0 if dtype is torch.uint8 else -4

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(low, 5, shape).to(dtype)

    def body(p: Program) -> None:
        h, m = p.axis("h", 3), p.axis("m", 9)
        n, k = p.axis("n", 21, "full"), p.axis("k", 30, "full")
        with p.b.grid(h, m):
            a, b, v = p.load("a", h, m, k), p.load("b", h, n, k), p.load("v", k)
            product = p.b.dot(a, b, k, acc)
            p.out("batched", product, h, m, n)
            more = p.b.dot(a, b, k, acc, product)
            p.out("twice", p.op("add", more, product), h, m, n)
            p.out("rows", p.b.dot(a, v, k, acc), h, m)
            columns = p.op("add", p.b.dot(v, b, k, acc), p.b.cast(p.b.iota(m), acc))
            p.out("columns", columns, h, m, n)
            scalar = p.op("add", p.b.dot(v, v, k, acc), p.b.cast(p.b.iota(m), acc))
            p.out("scalar", scalar, h, m)

    inputs = {"a": numbers(3, 9, 30), "b": numbers(3, 21, 30), "v": numbers(30)}
    same_as_interpreter(body, inputs)


# -- memory ---------------------------------------------------------------------------------------

ATOMICS = [
    *((fn, d) for fn in ("add", "max", "min", "xchg", "cas") for d in (F32, F64, I32, I64)),
    *((fn, d) for fn in ("add", "max", "min", "xchg", "cas") for d in HALVES),
    *((fn, d) for fn in ("and", "or", "xor") for d in (I32, I64)),
]


@pytest.mark.parametrize("fn, dtype", ATOMICS)
def test_atomics(fn: str, dtype: torch.dtype) -> None:
    """Lanes of one step act in their order: with results and without, masked, gathered."""

    def body(p: Program) -> None:
        n = p.axis("n", 40)
        with p.b.grid(n):
            value, place = p.load("x", n), p.load("place", n)
            expected = p.b.expand(p.const(2, dtype), [n]) if fn == "cas" else None
            mask = p.op("ne", place, p.const(5, I64))
            y, z = p.buffer("y", "inout"), p.buffer("z", "inout")
            p.b.atomic(fn, y, [Gather(0)], value, [place], mask, expected)
            old = p.b.atomic(fn, z, [Gather(0)], value, [place], mask, expected, want_result=True)
            assert old is not None
            p.out("old", p.op("where", mask, old, p.b.expand(p.const(0, dtype), [n])), n)

    inputs = {
        "x": torch.randint(-3, 4, (40,)).to(dtype),
        "y": torch.arange(6).to(dtype),
        "z": torch.arange(6).to(dtype),
        "place": torch.randint(0, 6, (40,)),
    }
    same_as_interpreter(body, inputs, block=64)


def test_checked_places_outside_are_errors_and_touch_nothing() -> None:
    def kernel(shift: int) -> Kernel:
        b = Builder("shifted")
        n = b.size("n")
        x = b.buffer("x", F32, (n,), (1,))
        out = b.buffer("out", F32, (20,), (1,), "out")
        a = b.axis("a", 20)
        with b.grid(a, blocks=[b.block("a")]):
            near = b.pointwise("lt", b.iota(a), b.const(15, I64))
            masked = b.load(x, [at(a, 1, shift)], mask=near, other=7.0, checked=True)
            b.store(out, [at(a)], masked)
        return b.build()

    x, out = torch.randn(20), torch.empty(20)
    got = call(kernel(5), [x, out], [20], block_sizes=[8])[1]
    assert torch.equal(got, torch.cat([x[5:20], torch.full((5,), 7.0)]))
    for shift, side in ((6, "end"), (-1, "start")):
        with pytest.raises(IndexError):
            call(kernel(shift), [x, out], [20], side, block_sizes=[8])


def test_stacked_tensors() -> None:
    """Addresses take the place of a buffer's own: along the vector axis and across it."""
    tensors = [guarded(torch.randn(21)) for _ in range(5)]
    outs = [guarded(torch.zeros(21)) for _ in range(5)]
    addresses = [torch.tensor([t.data_ptr() for t in ts]) for ts in (tensors, outs)]
    for blocks in ([1, 32], [4, 16], [8, 1]):
        b = Builder("stacked")
        pointers = [b.buffer(name, I64, (5,), (1,)) for name in ("xs", "ys")]
        x = b.buffer("x", F32, (21,), (1,))
        y = b.buffer("y", F32, (21,), (1,), "inout")
        t, n = b.axis("t", 5), b.axis("n", 21)
        with b.grid(t, n, blocks=[b.block("t"), b.block("n")]):
            value = b.load(x, [at(n)], pointer=b.load(pointers[0], [at(t)]))
            value = b.pointwise("mul", value, b.const(2.0, F32))
            b.store(y, [at(n)], value, pointer=b.load(pointers[1], [at(t)]))
        for out in outs:
            out.zero_()
        call(b.build(), [*addresses, tensors[0], outs[0].clone()], block_sizes=blocks)
        for tensor, out in zip(tensors, outs, strict=True):
            assert torch.equal(out, tensor * 2)


def test_strides_of_zero() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 6), p.axis("n", 20)
        x = p.b.buffer("x", F32, (6, 20), (1, 0))
        p.buffers["x"] = x
        with p.b.grid(m, n, blocks=[p.b.block("m"), p.b.block("n")]):
            p.out("y", p.op("neg", p.b.load(x, [at(m), at(n)])), m, n)

    x = torch.randn(6)
    kernel, _ = program(body, {"x": x})
    text = compiler.compile_kernel(kernel, config=Config(block_sizes=[4, 8]))
    got, wide = torch.empty(6, 20), guarded(x)[:, None].expand(6, 20)
    compiler.load_kernel(text)(wide, got)
    assert torch.equal(got, -wide)


# -- values ---------------------------------------------------------------------------------------

DTYPES = (
    *(F32, F64, *HALVES, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.int16, I32, I64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool),
)
FLOATS = [
    *(0.0, -0.0, 1, 1.5, 2.5, 0.1, 127, 128, 200, 448, 449, 464, 465, 480, 57344, 61439, 61440),
    *(61441, 65504, 65519, 65520, 1e-3, 1e-8, 2.0**-9, 2.0**-10, 2.0**-17),
]
INTEGERS = [0, 1, 2, 100, 127, 128, 255, 256, 32768, 65535, 2**31, 2**32 - 1, 2**53 + 1, -1, -129]


@pytest.mark.parametrize("source", DTYPES)
def test_casts(source: torch.dtype) -> None:
    """PyTorch's conversions, wherever they are defined."""
    for target in DTYPES:
        numbers: list[float] = list(FLOATS) if source.is_floating_point else list(INTEGERS)
        if source.is_floating_point and target.is_floating_point:
            numbers += [*SPECIAL, 3.4e38, -3.4e38, -3.0]
        elif source.is_floating_point:
            top = 2 ** (8 * target.itemsize - 1) - 1 if target is not torch.bool else 1e30
            numbers = [x for x in numbers if x <= top]
        wide = torch.float64 if source.is_floating_point else I64
        x = torch.tensor(numbers, dtype=wide).to(source)
        if source.is_floating_point and not target.is_floating_point:
            x = x[x.double().isfinite()]
        b, n = Builder("cast"), len(x)
        bx, bo = b.buffer("x", source, (n,), (1,)), b.buffer("o", target, (n,), (1,), "out")
        a = b.axis("a", n)
        with b.grid(a, blocks=[b.block("a")]):
            b.store(bo, [at(a)], b.cast(b.load(bx, [at(a)]), target))
        _, got = call(b.build(), [x, torch.zeros(n).to(target)], block_sizes=[64])
        want = x.to(target)
        if target.is_floating_point and target.itemsize == 1:
            got, want = got.float(), want.float()
        assert torch.equal(torch.isnan(got.double()), torch.isnan(want.double())), target
        whole = ~torch.isnan(want.double())
        assert got[whole].tolist() == want[whole].tolist(), (source, target)


@pytest.mark.parametrize("word", range(4))
def test_random_words(word: int) -> None:
    b = Builder("random")
    names = ("rand", "randn", "randint")
    outs = [b.buffer(f, I64 if f == "randint" else F32, (50,), (1,), "out") for f in names]
    n = b.axis("n", 50)
    with b.grid(n, blocks=[b.block("n")]):
        seed, bounds = b.const(11, I64), (b.const(-5, I64), b.const(1 << 40, I64))
        for out, fn in zip(outs, names, strict=True):
            more = bounds if fn == "randint" else ()
            b.store(out, [at(n)], b.rng(fn, seed, b.iota(n), *more, word=word))
    empty = [torch.empty(50), torch.empty(50), torch.empty(50, dtype=I64)]
    uniform, normal, integers = call(b.build(), empty, block_sizes=[16])
    index = torch.arange(50)
    assert torch.equal(uniform, philox.uniform(11, index, word))
    torch.testing.assert_close(normal, philox.normal(11, index, word))
    assert torch.equal(integers, philox.randint(11, index, -5, 1 << 40, word))


def test_print(capfd: pytest.CaptureFixture[str]) -> None:
    b = Builder("shows")
    x = b.buffer("x", F32, (3,), (1,))
    m, n = b.axis("m", 1), b.axis("n", 3, "full")
    with b.grid(m, blocks=[1]):
        value = b.load(x, [at(n)])
        total = b.cast(b.reduce("sum", value, [n]), I64)
        b.print('100% of x"\\:', value, total)
        b.print("nothing")
    call(b.build(), [torch.tensor([1.0, 0.5, -3.0])])
    assert capfd.readouterr().out == '100% of x"\\: [1, 0.5, -3] -1\nnothing\n'


def test_scratch_arrays_of_dynamic_size() -> None:
    """Full axes whose length is known at run time only are kept in scratch as well."""
    b = Builder("dynamic")
    rows, columns = b.size("rows"), b.size("columns")
    shape = (rows, columns)
    x = b.buffer("x", F32, shape, contiguous_strides(shape))
    out = b.buffer("out", F32, shape, contiguous_strides(shape), "out")
    m, n = b.axis("m", rows), b.axis("n", columns, "full")
    with b.grid(m, blocks=[b.block("m")]):
        value = b.pointwise("exp", b.load(x, [at(m), at(n)]))
        value = b.scan("sum", value, n)
        b.store(out, [at(m), at(n)], b.scan("max", b.pointwise("neg", value), n, reverse=True))
    for sizes in ((3, 5), (1, 1), (9, 1000), (0, 3), (3, 0)):
        x_value = torch.randn(sizes)
        _, got = call(b.build(), [x_value, torch.empty(sizes)], sizes, block_sizes=[4])
        want = (-x_value.exp().cumsum(-1)).flip(-1)
        want = want.cummax(-1).values.flip(-1) if want.numel() else want
        torch.testing.assert_close(got, want)


def test_stores_past_the_caches() -> None:
    """Aligned and unaligned outputs: the function chooses by the address."""
    kernel = tile_programs.layer_norm(9, 80)
    config = Config(block_sizes=[4], streaming_stores=["out"])
    text = compiler.compile_kernel(kernel, config=config)
    assert "nontemporal" in text and "_plain" in text
    x, w = torch.randn(9, 80), torch.randn(80)
    storage = torch.empty(9 * 80 + 64)
    first = -storage.data_ptr() % 64 // 4
    for shift in (0, 3):
        out = storage[first + shift :][:720].view(9, 80)
        compiler.load_kernel(text)(x, w, out)
        torch.testing.assert_close(out, F.layer_norm(x, [80], w))
    odd = compiler.compile_kernel(
        tile_programs.layer_norm(9, 81),
        config=Config(block_sizes=[4], streaming_stores=["out"]),
    )
    assert "nontemporal" not in odd
