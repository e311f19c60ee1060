"""Loops, branches and joins of the tile IR, run by the interpreter, against eager PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch

from test.ir.programs import Program, program, run_program
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, begin_symbol, id_symbol

NAN, INF = float("nan"), float("inf")
F32, F64, I64, I32, BOOL = torch.float32, torch.float64, torch.int64, torch.int32, torch.bool
BLOCKS = pytest.mark.parametrize("blocks", [None, 1, 2, 3, 100])


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, equal_nan=True)


# -- loops --------------------------------------------------------------------------------------


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    """softmax(q k') v with running maximum and sum, as a program."""

    def body(p: Program) -> None:
        b = p.b
        m, n = p.axis("m", q.shape[0]), p.axis("n", k.shape[0])
        d, e = p.axis("d", q.shape[1], "full"), p.axis("e", v.shape[1], "full")
        with b.grid(m):
            query = p.load("q", m, d)
            start = [
                b.expand(p.const(-INF), [m]),
                b.expand(p.const(0.0), [m]),
                b.expand(p.const(0.0), [m, e]),
            ]
            with b.tile_loop(n, start) as loop:
                top, total, acc = loop.args
                scores = b.dot(query, p.load("k", n, d), d, F32)
                new_top = p.op("maximum", top, b.reduce("max", scores, [n]))
                weights = p.op("exp", p.op("sub", scores, new_top))
                shrink = p.op("exp", p.op("sub", top, new_top))
                total = p.op("add", p.op("mul", total, shrink), b.reduce("sum", weights, [n]))
                rest = p.op("mul", acc, shrink)
                acc = b.dot(b.cast(weights, v.dtype), p.load("v", n, e), n, F32, rest)
                loop.finish([new_top, total, acc])
            _, total, acc = loop.results
            p.out("out", p.op("div", acc, total), m, e)

    return body


@BLOCKS
@pytest.mark.parametrize("dtype", [F32, torch.float16, torch.bfloat16])
def test_attention(blocks: int | None, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(n, 8).to(dtype) for n in (7, 11, 11))
    got = run_program(attention(q, k, v), {"q": q, "k": k, "v": v}, blocks)["out"]
    scores = (q.float() @ k.float().T).softmax(-1)
    tolerance = 1e-5 if dtype is F32 else 2e-2
    torch.testing.assert_close(got, scores @ v.float(), rtol=tolerance, atol=tolerance)


@BLOCKS
@pytest.mark.parametrize("rows, columns", [(5, 7), (1, 1), (0, 3), (3, 0)])
def test_a_tile_loop_sums_rows(blocks: int | None, rows: int, columns: int) -> None:
    x = torch.randint(-9, 9, (rows, columns))

    def body(p: Program) -> None:
        m, n = p.axis("m", rows), p.axis("n", columns)
        with p.b.grid(m):
            zero = p.b.expand(p.const(0, I64), [m])
            with p.b.tile_loop(n, [zero, zero]) as loop:
                tile = p.load("x", m, n)
                total = p.op("add", loop.args[0], p.b.reduce("sum", tile, [n]))
                loop.finish([total, p.op("add", loop.args[1], p.const(1, I64))])
            p.out("sum", loop.results[0], m)
            p.out("tiles", loop.results[1], m)

    got = run_program(body, {"x": x}, blocks)
    equal(got["sum"], x.sum(1))
    turns = -(-columns // (blocks or max(columns, 1)))
    equal(got["tiles"], torch.full((rows,), turns))


def test_tiles_of_two_axes_go_row_major() -> None:
    def body(p: Program) -> None:
        i, j = p.axis("i", 5), p.axis("j", 3)
        with p.b.grid():
            with p.b.tile_loop([i, j], [p.const(0, I64)]) as loop:
                step = p.op("mul", loop.args[0], p.const(10, I64))
                number = p.b.size_value(3 * id_symbol(i) + id_symbol(j) + 1)
                loop.finish([p.op("add", step, number)])
            p.out("out", loop.results[0])

    got = run_program(body, {}, {"i": 3, "j": 2})["out"]
    assert got.item() == 1245  # tiles (0,0) (0,1) (1,0) (1,1)


def test_begins_ids_and_blocks_are_sizes() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 7)
        block = p.b.block("rows")
        with p.b.grid(m, blocks=[block]):
            for name, size in (("begin", begin_symbol(m)), ("id", id_symbol(m)), ("block", block)):
                p.out(name, p.b.expand(p.b.size_value(size), [m]), m)

    got = run_program(body, {}, {"rows": 3})
    assert got["begin"].tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert got["id"].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert got["block"].tolist() == [3] * 7


def test_blocks_are_shared_fixed_or_expressions() -> None:
    seen: list[str] = []

    def body(p: Program) -> None:
        m, n, k = p.axis("m", 8), p.axis("n", 8), p.axis("k", 8)
        size = p.b.block("size")
        with p.b.grid(m, blocks=[size]):
            counts = []
            for axis, block in ((n, size * 2), (k, 3)):
                with p.b.tile_loop(axis, [p.const(0, I64)], [block]) as loop:
                    loop.finish([p.op("add", loop.args[0], p.const(1, I64))])
                counts.append(loop.results[0])
            p.out("n", counts[0], m)
            p.out("k", counts[1], m)

    kernel, _ = program(body, {})
    seen.extend(kernel.block_names)
    assert seen == ["size"]
    got = run_program(body, {}, {"size": 2})
    assert got["n"].tolist() == [2] * 8 and got["k"].tolist() == [3] * 8


@pytest.mark.parametrize("begin, end, step", [(0, 5, 1), (1, 5, 2), (3, 3, 1), (4, 2, 1)])
def test_a_counted_loop(begin: int, end: int, step: int) -> None:
    x = torch.randn(4, 6)

    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            zero = p.b.expand(p.const(0.0), [m])
            with p.b.sequential_loop("i", begin, end, step, [zero]) as loop:
                column = p.load("x", m, loop.symbol)
                loop.finish([p.op("sub", column, loop.args[0])])
            p.out("out", loop.results[0], m)

    want = torch.zeros(4)
    for i in range(begin, end, step):
        want = x[:, i] - want
    equal(run_program(body, {"x": x}, 3)["out"], want)


def test_loops_with_sizes_from_memory() -> None:
    """Rows of different lengths: the length is bound, the loop runs to it."""
    lengths = torch.tensor([3, 0, 5, 1])
    x = torch.randint(-9, 9, (4, 5))

    def body(p: Program) -> None:
        g = p.axis("g", 4)
        with p.b.grid(g, blocks=[1]):
            row = begin_symbol(g)
            length = p.b.bind(p.load("lengths", row), "length")
            j = p.b.axis("j", length)
            with p.b.tile_loop(j, [p.const(0, I64)], [2]) as loop:
                part = p.b.reduce("sum", p.load("x", row, j), [j])
                loop.finish([p.op("add", loop.args[0], part)])
            p.out("out", loop.results[0], row, shape=[4])

    got = run_program(body, {"x": x, "lengths": lengths})["out"]
    assert got.tolist() == [int(x[i, :n].sum()) for i, n in enumerate(lengths.tolist())]


def test_an_inner_loop_over_the_outer_tile() -> None:
    x = torch.randn(7)

    def body(p: Program) -> None:
        m = p.axis("m", 7)
        begin, block = begin_symbol(m), p.b.block("m")
        inner = p.b.axis("inner", sympy.Min(block, 7 - begin))
        with p.b.grid(m, blocks=[block]), p.b.tile_loop(inner, (), [2]):
            at = Affine.of(inner, 1, begin)
            p.out("out", p.op("neg", p.load("x", at)), at, shape=[7])

    for block in (1, 3, 7):
        equal(run_program(body, {"x": x}, {"m": block})["out"], -x)


def test_steps_in_order_may_overlap() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 7)
        with p.b.grid(m, serial=True):
            p.out("last", p.b.size_value(begin_symbol(m)))

    assert run_program(body, {}, 3)["last"].item() == 6


# -- branches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
def test_an_if_takes_one_arm(number: int) -> None:
    x = torch.randn(5)

    def body(p: Program) -> None:
        m = p.axis("m", 5)
        with p.b.grid(m):
            tile = p.load("x", m)
            flag = p.op("ne", p.load("flag"), p.const(0, I64))
            branch = p.b.if_(flag)
            with branch.then():
                p.out("taken", tile, m)
                branch.finish([p.op("neg", tile), p.const(1, I64)])
            with branch.otherwise():
                branch.finish([tile, p.const(2, I64)])
            p.out("out", branch.results[0], m)
            p.out("which", branch.results[1], m)

    got = run_program(body, {"x": x, "flag": torch.tensor(number)}, 2)
    equal(got["out"], -x if number else x)
    equal(got["taken"], x if number else torch.full((5,), 77.0))
    assert got["which"].tolist() == [1 if number else 2] * 5


def test_an_if_of_one_arm() -> None:
    def body(p: Program) -> None:
        with p.b.grid(), p.b.if_(p.op("eq", p.load("flag"), p.const(1, I64))).then():
            p.out("out", p.const(5, I64))

    assert run_program(body, {"flag": torch.tensor(1)})["out"].item() == 5
    assert run_program(body, {"flag": torch.tensor(0)})["out"].item() == 77


def test_a_while_doubles_until_it_is_enough() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 3)
        with p.b.grid(m):
            start = p.load("start")
            loop = p.b.while_([start, p.load("x", m)])
            with loop.condition():
                loop.finish([p.op("lt", loop.args[0], p.const(100, I64))])
            with loop.body():
                number, tile = loop.args
                loop.finish([p.op("add", number, number), p.op("neg", tile)])
            p.out("out", loop.results[0], m)
            p.out("x_out", loop.results[1], m)

    x = torch.randn(3)
    got = run_program(body, {"start": torch.tensor(3), "x": x}, 2)
    assert got["out"].tolist() == [192] * 3
    equal(got["x_out"], x)  # six turns
    got = run_program(body, {"start": torch.tensor(100), "x": x}, 2)
    equal(got["x_out"], x)  # none


def test_control_nests() -> None:
    """The Collatz steps of each row, up to a limit from memory."""
    x = torch.tensor([6, 1, 7])

    def body(p: Program) -> None:
        g = p.axis("g", 3)
        with p.b.grid(g, blocks=[1]):
            row = begin_symbol(g)
            loop = p.b.while_([p.load("x", row), p.const(0, I64)])
            with loop.condition():
                loop.finish([p.op("gt", loop.args[0], p.const(1, I64))])
            with loop.body():
                n, steps = loop.args
                two = p.const(2, I64)
                odd = p.op("eq", p.op("remainder", n, two), p.const(1, I64))
                branch = p.b.if_(odd)
                with branch.then():
                    triple = p.op("mul", n, p.const(3, I64))
                    branch.finish([p.op("add", triple, p.const(1, I64))])
                with branch.otherwise():
                    branch.finish([p.op("floordiv", n, two)])
                loop.finish([branch.results[0], p.op("add", steps, p.const(1, I64))])
            p.out("out", loop.results[1], row, shape=[3])

    assert run_program(body, {"x": x})["out"].tolist() == [8, 0, 16]


# -- dots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, acc",
    [
        (F32, F32),
        (F64, F64),
        (torch.float16, F32),
        (torch.bfloat16, F32),
        (torch.int8, I32),
        (torch.uint8, I32),
        (torch.float8_e4m3fn, F32),
        (torch.float8_e5m2, F32),
    ],
)
def test_dots(dtype: torch.dtype, acc: torch.dtype) -> None:
    a, b = torch.randint(0, 5, (2, 3, 6)), torch.randint(0, 5, (2, 6, 4))

    def body(p: Program) -> None:
        g, m = p.axis("g", 2), p.axis("m", 3)
        k, n = p.axis("k", 6, "full"), p.axis("n", 4, "full")
        with p.b.grid(g, m):
            product = p.b.dot(p.load("a", g, m, k), p.load("b", g, k, n), k, acc)
            p.out("out", product, g, m, n)
            p.out(
                "more",
                p.b.dot(p.load("a", g, m, k), p.load("b", g, k, n), k, acc, product),
                n,
                m,
                g,
            )

    got = run_program(body, {"a": a.to(dtype), "b": b.to(dtype)}, 2)
    want = torch.einsum("gmk,gkn->gmn", a, b).to(acc)
    equal(got["out"], want)
    equal(got["more"], 2 * want.permute(2, 1, 0))


@pytest.mark.parametrize("k", [0, 1])
def test_dots_over_little(k: int) -> None:
    a, b = torch.randn(3, k), torch.randn(k, 4)

    def body(p: Program) -> None:
        m, n, axis = p.axis("m", 3), p.axis("n", 4), p.axis("k", k, "full")
        with p.b.grid(m, n):
            p.out("out", p.b.dot(p.load("a", m, axis), p.load("b", axis, n), axis, F32), m, n)

    equal(run_program(body, {"a": a, "b": b}, 2)["out"], a @ b)


def test_a_dot_of_rank_zero_and_with_nan() -> None:
    a, b = torch.tensor([1.0, NAN, 2.0]), torch.tensor([INF, 0.0, 1.0])

    def body(p: Program) -> None:
        k = p.axis("k", 3, "full")
        with p.b.grid():
            p.out("out", p.b.dot(p.load("a", k), p.load("b", k), k, F32))

    assert run_program(body, {"a": a, "b": b})["out"].isnan()


# -- scans and custom functions -----------------------------------------------------------------

EAGER_SCANS = {
    "sum": lambda x: x.cumsum(-1).to(x.dtype),
    "prod": lambda x: x.cumprod(-1).to(x.dtype),
    "max": lambda x: x.cummax(-1).values,
    "min": lambda x: x.cummin(-1).values,
}


@pytest.mark.parametrize("fn", EAGER_SCANS)
@pytest.mark.parametrize("dtype", [F32, I32, torch.int8, F64])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_scans(fn: str, dtype: torch.dtype, length: int) -> None:
    x = torch.randint(-3, 4, (3, length)).to(dtype)

    def body(p: Program) -> None:
        m, n = p.axis("m", 3), p.axis("n", length, "full")
        with p.b.grid(m):
            tile = p.load("x", m, n)
            for reverse in (False, True):
                for exclusive in (False, True):
                    p.out(
                        f"out{reverse}{exclusive}", p.b.scan(fn, tile, n, reverse, exclusive), m, n
                    )

    got = run_program(body, {"x": x}, 2)
    plain, flipped = EAGER_SCANS[fn](x), EAGER_SCANS[fn](x.flip(1)).flip(1)
    equal(got["outFalseFalse"], plain)
    equal(got["outTrueFalse"], flipped)
    if length:
        first = {"sum": 0, "prod": 1}.get(fn)
        if first is None:
            lowest = fn == "max"
            info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
            first = info.min if lowest else info.max
            first = (-INF if lowest else INF) if dtype.is_floating_point else first
        head = torch.full((3, 1), first, dtype=dtype)
        equal(got["outFalseTrue"], torch.cat([head, plain[:, :-1]], 1))
        equal(got["outTrueTrue"], torch.cat([flipped[:, 1:], head], 1))


def test_scans_meet_nan_and_wrap() -> None:
    x = torch.tensor([1.0, NAN, 2.0, -INF])
    y = torch.tensor([100, 100, 1], dtype=torch.int8)

    def body(p: Program) -> None:
        n, k = p.axis("n", 4, "full"), p.axis("k", 3, "full")
        with p.b.grid():
            p.out("max", p.b.scan("max", p.load("x", n), n), n)
            p.out("sum", p.b.scan("sum", p.load("y", k), k), k)

    got = run_program(body, {"x": x, "y": y})
    equal(got["max"], torch.tensor([1.0, NAN, NAN, NAN]))
    assert got["sum"].tolist() == [100, -56, -55]


def test_a_scan_along_a_block_axis_stays_within_the_tile() -> None:
    x = torch.arange(1, 6)

    def body(p: Program) -> None:
        m = p.axis("m", 5)
        with p.b.grid(m):
            p.out("out", p.b.scan("sum", p.load("x", m), m), m)

    assert run_program(body, {"x": x}, 2)["out"].tolist() == [1, 3, 3, 7, 5]


def recurrence(b: Any, left: list[Value], right: list[Value]) -> list[Value]:
    (a, x), (c, y) = left, right
    moved = b.pointwise("add", b.pointwise("mul", c, x), y)
    return [b.pointwise("mul", a, c), moved]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_custom_scan(length: int, reverse: bool) -> None:
    a, x = torch.rand(3, length), torch.randn(3, length)

    def body(p: Program) -> None:
        m, n = p.axis("m", 3), p.axis("n", length, "full")
        with p.b.grid(m):
            values = [p.load("a", m, n), p.load("x", m, n)]
            p.out("out", p.b.custom_scan(values, n, recurrence, reverse)[1], m, n)

    h, want = torch.zeros(3), torch.empty(3, length)
    for i in reversed(range(length)) if reverse else range(length):
        h = a[:, i] * h + x[:, i]
        want[:, i] = h
    close(run_program(body, {"a": a, "x": x}, 2)["out"], want)


def leftmost(b: Any, left: list[Value], right: list[Value]) -> list[Value]:
    """Not commutative: the left value, unless it is the identity 0."""
    zero = b.pointwise("eq", left[0], b.const(0, I64))
    return [b.pointwise("where", zero, right[0], left[0])]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 9])
def test_custom_reductions_keep_the_order(length: int) -> None:
    x = torch.randint(0, 3, (4, length))

    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", length, "full")
        with p.b.grid(m):
            p.out("out", p.b.custom_reduce([p.load("x", m, n)], [n], [0], leftmost)[0], m)

    want = [next((v for v in row if v), 0) for row in x.tolist()]
    assert run_program(body, {"x": x}, 3)["out"].tolist() == want


def welford(b: Any, left: list[Value], right: list[Value]) -> list[Value]:
    (n, mean, m2), (k, other, more) = left, right
    count = b.pointwise("add", n, k)
    safe = b.pointwise("maximum", count, b.const(1.0, F32))
    delta = b.pointwise("sub", other, mean)
    share = b.pointwise("div", k, safe)
    new = b.pointwise("add", mean, b.pointwise("mul", delta, share))
    square = b.pointwise("mul", b.pointwise("mul", delta, delta), b.pointwise("mul", n, share))
    return [count, new, b.pointwise("add", b.pointwise("add", m2, more), square)]


def test_a_custom_reduction_of_several_values_over_several_axes() -> None:
    x = torch.randn(3, 4, 5)

    def body(p: Program) -> None:
        m, i, j = p.axis("m", 3), p.axis("i", 4, "full"), p.axis("j", 5, "full")
        with p.b.grid(m):
            tile = p.load("x", m, i, j)
            values = [p.const(1.0), tile, p.const(0.0)]
            _, mean, m2 = p.b.custom_reduce(values, [i, j], [0.0, 0.0, 0.0], welford)
            p.out("mean", mean, m)
            p.out("m2", m2, m)

    got = run_program(body, {"x": x}, 2)
    close(got["mean"], x.mean((1, 2)))
    close(got["m2"], x.var((1, 2), unbiased=False) * 20)


# -- order and selection ------------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [F32, torch.float16, I64, BOOL])
def test_sorts(descending: bool, dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, -1.0, NAN, 3.0, -0.0], [INF, 2.0, 0.0, -INF, 2.0]])
    x = (x if dtype.is_floating_point else x.nan_to_num(1, 5, -5)).to(dtype)

    def body(p: Program) -> None:
        m, n, k = p.axis("m", 2), p.axis("n", 5, "full"), p.axis("k", 3, "full")
        with p.b.grid(m):
            tile = p.load("x", m, n)
            for name, pair, axis in (
                ("whole", p.b.sort(tile, n, descending), n),
                ("first", p.b.sort(tile, n, descending, 3, k), k),
            ):
                p.out(f"{name}_values", pair[0], m, axis)
                p.out(f"{name}_order", pair[1], m, axis)

    got = run_program(body, {"x": x}, 1)
    values, order = x.sort(dim=1, descending=descending, stable=True)
    equal(got["whole_values"], values)
    equal(got["whole_order"], order)
    equal(got["first_values"], values[:, :3])
    equal(got["first_order"], order[:, :3])


@BLOCKS
def test_takes(blocks: int | None) -> None:
    x, table = torch.randn(4, 5), torch.randn(6)
    index, along = torch.randint(0, 5, (4, 3)), torch.randint(0, 5, (4, 5))
    rows = torch.randint(0, 6, (4,))

    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 5, "full")
        q, t = p.axis("q", 3, "full"), p.axis("t", 6, "full")
        with p.b.grid(m):
            tile = p.load("x", m, n)
            p.out("gather", p.b.take(tile, p.load("index", m, q), n), m, q)
            p.out("same_axis", p.b.take(tile, p.load("along", m, n), n), m, n)
            p.out("from_table", p.b.take(p.load("table", t), p.load("rows", m), t), m)
            p.out("one", p.b.take(tile, p.const(2, I64), n), m)

    tensors = {"x": x, "table": table, "index": index, "along": along, "rows": rows}
    got = run_program(body, tensors, blocks)
    equal(got["gather"], x.gather(1, index))
    equal(got["same_axis"], x.gather(1, along))
    equal(got["from_table"], table[rows])
    equal(got["one"], x[:, 2])


@pytest.mark.parametrize("bad", [-1, 5])
def test_a_take_outside_is_an_error(bad: int) -> None:
    def body(p: Program) -> None:
        n = p.axis("n", 5, "full")
        with p.b.grid():
            p.out("out", p.b.take(p.load("x", n), p.load("i"), n))

    with pytest.raises(IndexError, match="out of range"):
        run_program(body, {"x": torch.randn(5), "i": torch.tensor(bad)})


# -- axes ---------------------------------------------------------------------------------------


def test_reaxis_and_alias() -> None:
    """How many of a tile's values are smaller; the outer product of a row with itself."""
    x = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0])
    y = torch.randn(2, 4)

    def body(p: Program) -> None:
        m, g = p.axis("m", 5), p.axis("g", 2)
        other = p.b.alias(m)
        k, k2 = p.axis("k", 4, "full"), p.axis("k2", 4, "full")
        with p.b.grid(m):
            tile = p.load("x", m)
            smaller = p.op("lt", p.b.reaxis(tile, {m: other}), tile)
            p.out("rank", p.b.reduce("sum", p.b.cast(smaller, I64), [other]), m)
            p.out("place", p.b.reduce("max", p.load("x", other), [other]), m)
        with p.b.grid(g):
            row = p.load("y", g, k)
            p.out("outer", p.op("mul", row, p.b.reaxis(row, {k: k2})), g, k, k2)
            p.out("swapped", p.b.reaxis(row, {k: k2}), k2, g)

    got = run_program(body, {"x": x, "y": y}, 3)
    assert got["rank"].tolist() == [2, 0, 1, 1, 0]
    assert got["place"].tolist() == [3, 3, 3, 5, 5]
    equal(got["outer"], y[:, :, None] * y[:, None, :])
    equal(got["swapped"], y.T)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 8])
def test_reshapes(block: int) -> None:
    x, y = torch.randn(5, 6, 4), torch.randn(5, 2)

    def body(p: Program) -> None:
        m = p.axis("m", 5)
        j, k = p.axis("j", 6, "full"), p.axis("k", 4, "full")
        jk, a, c = p.axis("jk", 24, "full"), p.axis("a", 3, "full"), p.axis("c", 2, "full")
        two = p.axis("two", 2, "full")
        rows = p.b.block("m")
        flat = p.b.axis("flat", rows * 2, "full")
        with p.b.grid(m, blocks=[rows]):
            tile = p.load("x", m, j, k)
            p.out("merged", p.b.reshape(tile, [k, j], [jk]), m, jk)
            p.out("split", p.b.reshape(tile, [j], [a, c]), m, a, c, k)
            merged = p.b.reshape(p.load("y", m, two), [m, two], [flat])
            p.out("back", p.b.reshape(p.op("neg", merged), [flat], [m, two]), m, two)
            # What lies beyond the tile is 0.
            p.out("sum", p.b.expand(p.b.reduce("sum", merged, [flat]), [m]), m)

    got = run_program(body, {"x": x, "y": y}, {"m": block})
    equal(got["merged"], x.permute(0, 2, 1).reshape(5, 24))
    equal(got["split"], x.reshape(5, 3, 2, 4))
    equal(got["back"], -y)
    sums = [y[i - i % block :][:block].sum() for i in range(5)]
    close(got["sum"], torch.stack(sums))
