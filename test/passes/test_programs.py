"""The passes on loops, branches and combine functions: before, after, and what must stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from expecttest import assert_expected_inline

from test.ir.programs import Program, program
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, Gather, begin_symbol
from torch_helion.ir.verifier import verify
from torch_helion.passes.canonicalize import canonicalize
from torch_helion.passes.collapse_axes import collapse_axes
from torch_helion.passes.eliminate_dead_code import eliminate_dead_code

F32, I64, BOOL = torch.float32, torch.int64, torch.bool

Rewrite = Callable[[Kernel], Kernel]
X = torch.arange(20.0).reshape(4, 5)


def after(
    rewrite: Rewrite, body: Callable[[Program], None], tensors: Mapping[str, torch.Tensor]
) -> Kernel:
    """The kernel after the pass, which gives the same results for any blocks."""
    kernel, p = program(body, tensors)
    before = [x.clone() for x in (p.tensors[b.name] for b in kernel.arguments)]
    result = rewrite(kernel)
    verify(result)
    for blocks in (None, 2):
        both = []
        for k in (kernel, result):
            copies = [x.clone() for x in before]
            run(k, copies, {}, blocks)
            both.append(copies)
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return result


def ops(kernel: Kernel) -> list[str]:
    return [op.attrs.get("fn", op.kind) for op in kernel.body.walk()]


# -- dead code ----------------------------------------------------------------------------------


def two_sums(p: Program, kept: int) -> None:
    m, n = p.axis("m", 4), p.axis("n", 5)
    with p.b.grid(m):
        zero = p.b.expand(p.const(0.0), [m])
        with p.b.tile_loop(n, [zero, zero]) as loop:
            tile = p.load("x", m, n)
            total = p.op("add", loop.args[0], p.b.reduce("sum", tile, [n]))
            top = p.op("maximum", loop.args[1], p.b.reduce("max", p.op("exp", tile), [n]))
            loop.finish([total, top])
        p.out("out", loop.results[kept], m)


def test_a_loop_loses_what_nobody_uses() -> None:
    kernel = after(eliminate_dead_code, lambda p: two_sums(p, 0), {"x": X})
    assert_expected_inline(
        dump(kernel),
        """\
kernel program()
  in x: float32[4, 5] strides [5, 1]
  out out: float32[4] strides [1]
  axis m: block 4
  axis n: block 5
  grid (m):
    %c: float32[] = const 0.0
    %c.1: float32[m] = expand %c axes=(m)
    %c.2: float32[m] = tile (n) carrying %c.1:
      region(%c.3: float32[m])
      %x: float32[m, n] = load x[m, n]
      %sum: float32[m] = reduce sum %x over (n)
      %add: float32[m] = add(%c.3, %sum)
      yield %add
    store out[m] = %c.2
""",
    )
    other = after(eliminate_dead_code, lambda p: two_sums(p, 1), {"x": X})
    assert "exp" in ops(other) and "add" not in ops(other)


def test_what_the_next_turn_needs_is_carried() -> None:
    """The count is no result that anybody uses, but the sum reads it."""

    def body(p: Program) -> None:
        n = p.axis("n", 5)
        with p.b.grid():
            with p.b.tile_loop(n, [p.const(0.0), p.const(0.0), p.const(0.0)]) as loop:
                count = p.op("add", loop.args[1], p.const(1.0))
                total = p.op("add", loop.args[0], loop.args[1])
                unused = p.op("mul", loop.args[2], loop.args[0])
                loop.finish([total, count, unused])
            p.out("out", loop.results[0])

    kernel = after(eliminate_dead_code, body, {})
    (loop,) = (op for op in kernel.body.walk() if op.kind == "loop" and op.results)
    assert len(loop.operands) == len(loop.results) == len(loop.regions[0].args) == 2
    assert "mul" not in ops(kernel)


def test_a_loop_without_use_or_effect_goes() -> None:
    def body(p: Program) -> None:
        n = p.axis("n", 5)
        with p.b.grid():
            with p.b.tile_loop(n, [p.const(0.0)]) as loop:
                loop.finish([p.op("neg", loop.args[0])])
            branch = p.b.if_(p.const(True, BOOL))
            with branch.then():
                p.op("exp", p.const(1.0))
            p.out("out", p.const(2.0))

    assert ops(after(eliminate_dead_code, body, {})) == ["loop", "const", "store"]


def test_branches_lose_results() -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            branch = p.b.if_(p.load("flag"))
            for arm, sign in ((branch.then, 1.0), (branch.otherwise, -1.0)):
                with arm():
                    value = p.const(sign)
                    branch.finish([p.op("exp", value), p.op("neg", value)])
            p.out("out", branch.results[1])

    kernel = after(eliminate_dead_code, body, {"flag": torch.tensor(True)})
    assert ops(kernel) == ["loop", "load", "if", *["const", "neg", "yield"] * 2, "store"]


def test_whiles_keep_what_decides() -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            start = [p.const(0, I64), p.const(1.0), p.const(1.0)]
            loop = p.b.while_(start)
            with loop.condition():
                loop.finish([p.op("lt", loop.args[0], p.const(3, I64))])
            with loop.body():
                count, a, b = loop.args
                new = [p.op("add", a, a), p.op("mul", b, b)]
                loop.finish([p.op("add", count, p.const(1, I64)), *new])
            p.out("out", loop.results[1])

    kernel = after(eliminate_dead_code, body, {})
    (loop,) = (op for op in kernel.body.walk() if op.kind == "while")
    assert len(loop.results) == 2 and "mul" not in ops(kernel)


def test_effects_inside_stay() -> None:
    y = torch.zeros(4)

    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            with p.b.sequential_loop("i", 0, 2), p.b.if_(p.load("flag")).then():
                p.b.atomic("add", p.buffer("y", "inout"), [Affine.of(m)], p.load("x", m))
            with p.b.sequential_loop("i", 0, 1):
                p.b.print("seen", p.b.size_value(begin_symbol(m)))
            p.b.take(p.load("x", m), p.const(0, I64), m)

    kernel = after(
        eliminate_dead_code, body, {"flag": torch.tensor(True), "x": torch.randn(4), "y": y}
    )
    kinds = [op.kind for op in kernel.body.walk()]
    assert all(kind in kinds for kind in ("atomic", "print", "take", "if"))


@pytest.mark.parametrize("used", [True, False])
def test_an_atomic_keeps_its_effect_and_loses_its_result(used: bool) -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            y, x = p.buffer("y", "inout"), p.load("x", m)
            old = p.b.atomic("max", y, [Affine.of(m)], x, want_result=True)
            assert old is not None
            p.out("old", old if used else x, m)

    tensors = {"y": torch.zeros(4), "x": torch.randn(4)}
    kernel = after(eliminate_dead_code, body, tensors)
    (atomic,) = (op for op in kernel.body.walk() if op.kind == "atomic")
    assert len(atomic.results) == used


@pytest.mark.parametrize("used", [True, False])
def test_bound_sizes_stay_while_something_speaks_of_them(used: bool) -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            row = p.b.bind(p.load("i"), "row")
            p.b.bind(p.load("j"), "other")
            at = (m, row) if used else (m, 0)
            p.out("out", p.load("x", *at), m)

    tensors = {"i": torch.tensor(2), "j": torch.tensor(1), "x": X}
    assert ops(after(eliminate_dead_code, body, tensors)).count("bind") == used


def test_a_bound_axis_size_is_a_use() -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            n = p.b.axis("n", p.b.bind(p.load("i"), "count"))
            with p.b.tile_loop(n, [p.const(0.0)]) as loop:
                loop.finish([p.op("add", loop.args[0], p.const(1.0))])
            p.out("out", loop.results[0])

    kernel = after(eliminate_dead_code, body, {"i": torch.tensor(3)})
    assert "bind" in ops(kernel)


def test_combine_functions_lose_dead_ops_only() -> None:
    def combine(b: object, left: list[Value], right: list[Value]) -> list[Value]:
        p.op("exp", left[0])
        return [p.op("add", left[0], right[0])]

    p = Program({"x": X})
    m, n = p.axis("m", 4), p.axis("n", 5, "full")
    with p.b.grid(m):
        p.out("out", p.b.custom_reduce([p.load("x", m, n)], [n], [0.0], combine)[0], m)
    kernel = eliminate_dead_code(p.b.build())
    verify(kernel)
    assert ops(kernel) == ["loop", "load", "custom", "add", "yield", "store"]


# -- canonicalize -------------------------------------------------------------------------------


def test_inner_work_is_that_of_outside() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 5)
        with p.b.grid(m):
            first = p.op("exp", p.load("row", m))
            with p.b.tile_loop(n, [first]) as loop:
                again = p.op("exp", p.load("row", m))
                part = p.b.reduce("sum", p.load("x", m, n), [n])
                loop.finish([p.op("add", loop.args[0], p.op("mul", part, again))])
            p.out("out", p.op("sub", loop.results[0], p.op("exp", p.load("row", m))), m)

    kernel = after(canonicalize, body, {"x": X, "row": X[:, 0].contiguous()})
    assert ops(kernel).count("exp") == 1


def test_the_work_of_an_arm_is_not_there_outside() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            x = p.load("x", m)
            branch = p.b.if_(p.load("flag"))
            with branch.then():
                branch.finish([p.op("exp", x)])
            with branch.otherwise():
                branch.finish([p.op("exp", x)])
            p.out("out", p.op("add", branch.results[0], p.op("exp", x)), m)

    kernel = after(canonicalize, body, {"x": torch.randn(4), "flag": torch.tensor(False)})
    assert ops(kernel).count("exp") == 3


def test_positions_in_two_loops_are_two() -> None:
    """`size(begin_n)` in one loop over n does not stand for that in the next one."""

    def body(p: Program) -> None:
        n = p.axis("n", 5)
        with p.b.grid():
            for name in ("a", "b"):
                with p.b.tile_loop(n, [p.const(0, I64)]) as loop:
                    begin = p.b.size_value(begin_symbol(n))
                    loop.finish([p.op("add", loop.args[0], begin)])
                p.out(name, loop.results[0])

    assert ops(after(canonicalize, body, {})).count("size") == 2


def test_combine_functions_stay_closed() -> None:
    """A constant outside does not take the place of the same one inside."""

    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 5, "full")

        def combine(b: object, left: list[Value], right: list[Value]) -> list[Value]:
            shrunk = p.op("mul", left[0], p.const(0.5))
            kept = p.op("mul", right[0], p.const(1.0))
            return [p.op("add", shrunk, kept)]

        with p.b.grid(m):
            tile = p.op("mul", p.load("x", m, n), p.const(0.5))
            p.out("out", p.b.custom_reduce([tile], [n], [0.0], combine)[0], m)

    kernel = after(canonicalize, body, {"x": X})
    assert ops(kernel).count("const") == 3 and ops(kernel).count("mul") == 2


@pytest.mark.parametrize("kind", ["atomic", "print", "stacked", "stacked store"])
def test_what_is_not_merged(kind: str) -> None:
    x = torch.randn(4)
    addresses = torch.tensor([x.data_ptr()] * 4)

    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            values = []
            for _ in range(2):
                if kind == "atomic":
                    y = p.buffer("y", "inout")
                    old = p.b.atomic("add", y, [Affine.of(m)], p.load("x", m), want_result=True)
                    assert old is not None
                    values.append(old)
                elif kind == "print":
                    p.b.print("x")
                    values.append(p.load("x", m))
                elif kind == "stacked":
                    pointer = p.load("addresses", m)
                    values.append(p.b.load(p.buffer("x"), [Affine.of(m)], pointer=pointer))
                else:
                    values.append(p.load("x", m))
                    pointer = p.load("addresses", m)
                    y = p.buffer("y", "inout")
                    p.b.store(y, [Affine.of(m)], p.load("z", m), pointer=pointer)
            p.out("out", p.op("sub", *values), m)

    tensors = {"x": x, "y": torch.zeros(4), "z": torch.randn(4), "addresses": addresses}
    kernel, _ = program(body, tensors)
    simple = canonicalize(kernel)
    verify(simple)
    found = list(simple.body.walk())
    wanted = {
        "atomic": lambda op: op.kind == "atomic",
        "print": lambda op: op.kind == "print",
        "stacked": lambda op: op.attrs.get("stacked") and op.kind == "load",
        "stacked store": lambda op: op.kind == "load" and op.attrs["buffer"] == "x",
    }[kind]
    assert sum(1 for op in found if wanted(op)) == 2


# -- collapsing ---------------------------------------------------------------------------------

PLAIN = torch.arange(24.0).reshape(2, 3, 4)


def flat(p: Program, change: str = "") -> None:
    a, s, n = p.axis("a", 2), p.axis("s", 3), p.axis("n", 4, "full")
    with p.b.grid(a, s, serial=change == "serial", blocks=[2, 2] if change == "blocks" else None):
        x = p.load("x", a, s, n)
        if change == "loop":
            with p.b.sequential_loop("i", 0, 2, 1, [x]) as loop:
                loop.finish([p.op("neg", loop.args[0])])
            x = loop.results[0]
        elif change == "begin":
            offset = p.b.cast(p.b.size_value(begin_symbol(s)), F32)
            x = p.op("sub", x, p.op("sub", offset, offset))
        elif change == "alias":
            other = p.b.alias(s)
            picked = p.op("eq", p.b.iota(s), p.b.iota(other))
            x = p.op("where", picked, p.b.reaxis(x, {s: other}), p.const(-1.0))
            x = p.b.reduce("max", x, [other])
        elif change == "print":
            p.b.print("x", x)
        elif change == "take":
            x = p.b.take(x, p.b.expand(p.const(1, I64), [a]), n)
        elif change == "custom":
            x = p.b.custom_reduce([x], [n], [0.0], lambda b, x, y: [p.op("add", x[0], y[0])])[0]
        p.out("out", x, *(e for e in (a, s, n) if e in x.type.axes))


def test_a_flat_program_collapses() -> None:
    assert "a_s" in after(collapse_axes, flat, {"x": PLAIN}).axes()


@pytest.mark.parametrize(
    "change", ["serial", "blocks", "loop", "begin", "alias", "print", "take", "custom"]
)
def test_what_keeps_axes_apart(change: str) -> None:
    kernel = after(collapse_axes, lambda p: flat(p, change), {"x": PLAIN})
    assert {"a", "s"} <= set(kernel.axes())


def test_own_blocks_keep_axes_apart() -> None:
    kernel, _ = program(flat, {"x": PLAIN})
    kernel = replace(kernel, blocks=("a", "s"))
    assert collapse_axes(kernel) is kernel


def test_a_gathered_atomic_survives_a_merge() -> None:
    def body(p: Program) -> None:
        a, s = p.axis("a", 2), p.axis("s", 3)
        with p.b.grid(a, s):
            at = p.load("places", a, s)
            p.b.atomic("add", p.buffer("y", "inout"), [Gather(0)], p.load("x", a, s), [at])

    tensors = {
        "places": torch.tensor([[0, 1, 0], [2, 0, 1]]),
        "x": torch.arange(6.0).reshape(2, 3),
        "y": torch.zeros(3),
    }
    assert "a_s" in after(collapse_axes, body, tensors).axes()
