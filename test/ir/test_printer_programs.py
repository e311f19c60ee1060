"""The source of loops, branches and joins: one canonical program for each form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from expecttest import assert_expected_inline

from test.ir.programs import Program, place, program
from torch_helion.ir.builder import Builder
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.printer import to_source
from torch_helion.ir.types import Affine, Gather, begin_symbol

F32, F64, F16, I64 = torch.float32, torch.float64, torch.float16, torch.int64


def source(body: Callable[[Program], None], tensors: Mapping[str, torch.Tensor]) -> str:
    """The device part: what stands between the outputs and the return."""
    lines = to_source(program(body, tensors)[0]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    for "))
    end = next((i for i, line in enumerate(lines[start:], start) if "return" in line), None)
    helpers = lines[: next(i for i, line in enumerate(lines) if line.startswith("@"))]
    return "\n".join([*helpers, *(line[4:] for line in lines[start:end])]) + "\n"


def matmul() -> Kernel:
    b = Builder("matmul")
    rows, inner, columns = b.size("m"), b.size("k"), b.size("n")
    x = b.buffer("x", F16, [rows, inner], [inner, 1])
    y = b.buffer("y", F16, [inner, columns], [columns, 1])
    bias = b.buffer("bias", F32, [columns], [1])
    out = b.buffer("out", F16, [rows, columns], [columns, 1], "out")
    scale = b.scalar("scale")
    m, n, k = b.axis("m", rows), b.axis("n", columns), b.axis("k", inner)
    blocks = [b.block(name) for name in ("m", "n", "k")]
    with b.grid(m, n, blocks=blocks[:2]):
        with b.tile_loop(k, [b.expand(b.const(0.0, F32), [m, n])], blocks[2:]) as loop:
            left = b.load(x, [Affine.of(m), Affine.of(k)])
            right = b.load(y, [Affine.of(k), Affine.of(n)])
            loop.finish([b.dot(left, right, k, F32, loop.args[0])])
        factor = b.cast(b.bitcast(b.size_value(scale), F64), F32)
        scaled = b.pointwise("mul", loop.results[0], factor)
        total = b.pointwise("add", scaled, b.load(bias, [Affine.of(n)]))
        b.store(out, [Affine.of(m), Affine.of(n)], b.cast(total, F16))
    return b.build()


def test_matmul() -> None:
    assert_expected_inline(
        to_source(matmul()),
        """\
@torch_helion.kernel
def matmul(x: "f16[m, k]", y: "f16[k, n]", bias: "f32[n]", scale: float) -> "f16[m, n]":
    m = x.size(0)
    k = x.size(1)
    n = y.size(1)
    out = torch.empty([m, n], dtype=torch.float16, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.full([tile_m, tile_n], 0.0, dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = hl.dot(x[tile_m, tile_k], y[tile_k, tile_n], acc=acc)
        bias0 = bias[tile_n]
        out[tile_m, tile_n] = (acc * scale + bias0).to(torch.float16)
    return out
""",
    )


def test_dump_of_matmul() -> None:
    assert_expected_inline(
        dump(matmul()),
        """\
kernel matmul(m, k, n, scale)
  in x: float16[m, k] strides [k, 1]
  in y: float16[k, n] strides [n, 1]
  in bias: float32[n] strides [1]
  out out: float16[m, n] strides [n, 1]
  axis m: block m
  axis n: block n
  axis k: block k
  blocks m, n, k
  grid (m, n) blocks (block_m, block_n):
    %c: float32[] = const 0.0
    %c.1: float32[m, n] = expand %c axes=(m, n)
    %c.2: float32[m, n] = tile (k) blocks (block_k) carrying %c.1:
      region(%c.3: float32[m, n])
      %x: float16[m, k] = load x[m, k]
      %y: float16[n, k] = load y[k, n]
      %dot: float32[m, n] = dot %x, %y over k onto %c.3
      yield %dot
    %n: int64[] = size scale
    %n.1: float64[] = bitcast %n
    %n.2: float32[] = cast %n.1
    %mul: float32[m, n] = mul(%c.2, %n.2)
    %bias: float32[n] = load bias[n]
    %add: float32[m, n] = add(%mul, %bias)
    %add.1: float16[m, n] = cast %add
    store out[m, n] = %add.1
""",
    )


def test_blocks_that_are_shared_have_names() -> None:
    b = Builder("shared")
    size = b.size("n0")
    x, out = (b.buffer(n, F32, [size], [1], r) for n, r in (("x", "in"), ("out", "out")))
    m, i, j = b.axis("m", size), b.axis("i", 100), b.axis("j", size)
    block = b.block("rows")
    with b.grid(m, blocks=[block]):
        zero = b.expand(b.const(0.0, F32), [m])
        with b.tile_loop(i, [zero], [block * 2]) as loop:
            loop.finish([b.pointwise("add", loop.args[0], b.load(x, [Affine.of(m)]))])
        with b.tile_loop(j, loop.results, [16]) as again:
            part = b.reduce("sum", b.load(x, [Affine.of(j)]), [j])
            again.finish([b.pointwise("add", again.args[0], part)])
        b.store(out, [Affine.of(m)], again.results[0])
    assert_expected_inline(
        to_source(b.build()),
        """\
@torch_helion.kernel
def shared(x: "f32[n0]") -> "f32[n0]":
    n0 = x.size(0)
    out = torch.empty([n0], dtype=torch.float32, device=x.device)
    block_rows = hl.register_block_size(n0)
    for tile_m in hl.tile(n0, block_size=block_rows):
        acc = hl.full([tile_m], 0.0, dtype=torch.float32)
        for tile_i in hl.tile(100, block_size=2*block_rows):
            x0 = x[tile_m]
            acc = acc + x0
        for tile_j in hl.tile(n0, block_size=16):
            x1 = x[tile_j]
            acc = acc + x1.sum(-1)
        out[tile_m] = acc
    return out
""",
    )


def test_rows_of_different_lengths() -> None:
    def body(p: Program) -> None:
        g = p.axis("g", 4)
        with p.b.grid(g, blocks=[1]):
            row = begin_symbol(g)
            begin = p.b.bind(p.load("offsets", row), "begin")
            end = p.load("offsets", row + 1)
            length = p.b.bind(p.op("sub", end, p.b.size_value(begin)), "length")
            j = p.b.axis("j", length)
            with p.b.tile_loop(j, [p.const(0.0)], [2]) as loop:
                values = p.load("x", Affine.of(j, 1, begin))
                loop.finish([p.op("add", loop.args[0], p.b.reduce("sum", values, [j]))])
            p.out("out", loop.results[0], row, shape=[4])

    assert_expected_inline(
        source(body, {"x": torch.randn(9), "offsets": torch.arange(5)}),
        """\
for g in hl.grid(4):
    offsets0 = offsets[g]
    offsets1 = offsets[g + 1]
    sub = offsets1 - offsets0
    acc = hl.full([], 0.0, dtype=torch.float32)
    for tile_j in hl.tile(sub, block_size=2):
        x0 = x[tile_j + offsets0]
        acc = acc + x0.sum(-1)
    out[g] = acc
""",
    )


def test_branches_and_whiles() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            x = p.load("x", m)
            loop = p.b.while_([p.const(0, I64), x])
            with loop.condition():
                loop.finish([p.op("lt", loop.args[0], p.load("limit"))])
            with loop.body():
                count, tile = loop.args
                branch = p.b.if_(p.op("eq", count, p.const(2, I64)))
                with branch.then():
                    branch.finish([p.op("neg", tile)])
                with branch.otherwise():
                    branch.finish([p.op("exp", tile)])
                loop.finish([p.op("add", count, p.const(1, I64)), branch.results[0]])
            with p.b.if_(p.op("ge", loop.results[0], p.const(1, I64))).then():
                p.out("out", loop.results[1], m)

    assert_expected_inline(
        source(body, {"x": torch.randn(4), "limit": torch.tensor(3)}),
        """\
for tile_m in hl.tile(4):
    x0 = x[tile_m]
    acc = hl.full([], 0, dtype=torch.int64)
    while acc < limit[()]:
        if acc == 2:
            neg = -x0
        else:
            neg = torch.exp(x0)
        acc, x0 = acc + 1, neg
    if acc >= 1:
        out[tile_m] = x0
""",
    )


def test_a_condition_of_many_words_is_asked_twice() -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            loop = p.b.while_([p.const(0, I64)])
            with loop.condition():
                found = p.load("x", Gather(0), gathered=[loop.args[0]], checked=True)
                loop.finish([p.op("gt", found, p.const(0.0))])
            with loop.body():
                loop.finish([p.op("add", loop.args[0], p.const(1, I64))])
            p.out("out", loop.results[0])

    assert_expected_inline(
        source(body, {"x": torch.tensor([1.0, 0.0])}),
        """\
for _ in hl.grid(1):
    acc = hl.full([], 0, dtype=torch.int64)
    x0 = x[acc]  # an index outside is an error
    proceed = x0 > 0.0
    while proceed:
        acc = acc + 1
        x1 = x[acc]  # an index outside is an error
        proceed = x1 > 0.0
    out[()] = acc
""",
    )


def test_scans_and_reductions_with_functions() -> None:
    def recurrence(b: Any, left: list[Value], right: list[Value]) -> list[Value]:
        (a, x), (c, y) = left, right
        moved = b.pointwise("add", b.pointwise("mul", c, x), y, hint="moved")
        return [b.pointwise("mul", a, c), moved]

    def largest(b: Any, left: list[Value], right: list[Value]) -> list[Value]:
        return [b.pointwise("maximum", left[0], right[0])]

    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 8, "full")
        with p.b.grid(m):
            a, x = p.load("a", m, n), p.load("x", m, n)
            p.out("h", p.b.custom_scan([a, x], n, recurrence)[1], m, n)
            p.out("top", p.b.custom_reduce([x], [n], [float("-inf")], largest)[0], m)
            p.out("sums", p.b.scan("sum", x, n, reverse=True), m, n)
            p.out("tops", p.b.scan("max", x, n), m, n)

    x = torch.randn(4, 8)
    assert_expected_inline(
        source(body, {"a": x, "x": x}),
        """\
def combine(a_l, x_l, a_r, x_r):
    moved = a_r * x_l + x_r
    return a_l * a_r, moved


def combine0(x_l0, x_r0):
    return torch.maximum(x_l0, x_r0)


for tile_m in hl.tile(4):
    a0 = a[tile_m, :]
    x0 = x[tile_m, :]
    a1, x1 = hl.associative_scan(combine, (a0, x0), 1)
    h[tile_m, :] = x1
    x2 = hl.reduce(combine0, x0, dim=1, other=float("-inf"))
    top[tile_m] = x2
    sums[tile_m, :] = hl.cumsum(x0, 1, reverse=True)
    tops[tile_m, :] = hl.associative_scan(torch.maximum, x0, 1)
""",
    )


def test_order_and_selection() -> None:
    def body(p: Program) -> None:
        m, n, k = p.axis("m", 4), p.axis("n", 8, "full"), p.axis("k", 2, "full")
        with p.b.grid(m):
            values, order = p.b.sort(p.load("x", m, n), n, True, 2, k)
            p.out("values", values, m, k)
            p.out("taken", p.b.take(p.load("x", m, n), order, n), m, k)
            p.out("table", p.b.take(p.load("t", n), p.load("i", m), n), m)
            p.out("one", p.b.take(p.load("x", m, n), p.const(3, I64), n), m)

    tensors = {"x": torch.randn(4, 8), "t": torch.randn(8), "i": torch.zeros(4, dtype=I64)}
    assert_expected_inline(
        source(body, tensors),
        """\
for tile_m in hl.tile(4):
    x0 = x[tile_m, :]
    sorted0, order = torch.topk(x0, 2, dim=1, largest=True)
    values[tile_m, :] = sorted0
    x1 = x[tile_m, :]
    x2 = torch.gather(x1, 1, order)
    taken[tile_m, :] = x2
    t0 = t[:]
    i0 = i[tile_m]
    t1 = torch.gather(t0, 0, i0)
    table[tile_m] = t1
    x3 = x[tile_m, :]
    index = hl.full([], 3, dtype=torch.int64)[None, None].expand(tile_m, 1)
    x4 = torch.gather(x3, 1, index).squeeze(1)
    one[tile_m] = x4
""",
    )


def test_axes_of_their_own() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 8, "full")
        two, four, flat = (p.axis(*a, "full") for a in (("two", 2), ("four", 4), ("flat", 16)))
        other = p.b.alias(m)
        with p.b.grid(m):
            tile = p.load("x", m)
            smaller = p.op("lt", p.b.reaxis(tile, {m: other}), tile)
            p.out("rank", p.b.reduce("sum", p.b.cast(smaller, I64), [other]), m)
            split = p.b.reshape(p.load("y", m, n), [n], [two, four])
            p.out("sums", p.b.reduce("sum", split, [two]), m, four)
            p.out(
                "twice",
                p.b.reshape(p.b.expand(p.load("y", m, n), [two]), [n, two], [flat]),
                m,
                flat,
            )

    assert_expected_inline(
        source(body, {"x": torch.randn(4), "y": torch.randn(4, 8)}),
        """\
for tile_m in hl.tile(4):
    x0 = x[tile_m]
    rank[tile_m] = (x0 < x0[:, None]).to(torch.int64).sum(-1)
    y0 = y[tile_m, :]
    y1 = y0.reshape(tile_m, 2, 4)
    sums[tile_m, :] = y1.sum(-2)
    y2 = y[tile_m, :]
    y3 = y2[:, :, None].expand(tile_m, 8, 2)
    y4 = y3.reshape(tile_m, 16)
    twice[tile_m, :] = y4
""",
    )


def test_atomics_and_stacks() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 8, "full")
        with p.b.grid(m):
            x, at = p.load("x", m, n), p.load("i", m)
            p.b.atomic("add", p.buffer("y", "inout"), [Gather(0), Affine.of(n)], x, [at])
            y, expected = p.buffer("z", "inout"), p.const(0.0)
            old = p.b.atomic(
                "cas", y, [Affine.of(m)], p.const(1.0), expected=expected, want_result=True
            )
            assert old is not None
            p.out("old", old, m)
            stack = p.b.load(p.buffer("like"), place([n]), pointer=at)
            p.out("stacked", stack, m, n)
            p.b.print("at", at)

    i = torch.zeros(4, dtype=I64)
    tensors = {"x": torch.randn(4, 8), "i": i, "y": torch.randn(5, 8), "z": torch.randn(4)}
    assert_expected_inline(
        source(body, tensors | {"like": torch.randn(8)}),
        """\
for tile_m in hl.tile(4):
    x0 = x[tile_m, :]
    i0 = i[tile_m]
    hl.atomic_add(y, [i0, slice(None)], x0)
    z0 = hl.atomic_cas(z, [tile_m], 0.0, 1.0)
    old[tile_m] = z0
    like0 = hl.stacktensor_like(like, i0)[:]
    stacked[tile_m, :] = like0
    hl.device_print("at", i0)
""",
    )


def test_positions_and_counters() -> None:
    def body(p: Program) -> None:
        g, m = p.axis("g", 2), p.axis("m", 6)
        with p.b.grid(g, m, blocks=[1, 4]):
            row = p.b.size_value(begin_symbol(g) * 6 + begin_symbol(m))
            with p.b.sequential_loop("i", 1, 6, 2, [p.b.cast(row, F32)]) as loop:
                x = p.load("x", begin_symbol(g), loop.symbol)
                loop.finish([p.op("add", loop.args[0], x)])
            p.out("out", loop.results[0], begin_symbol(g), m, shape=[2, 6])

    assert_expected_inline(
        source(body, {"x": torch.randn(2, 6)}),
        """\
for tile_g, tile_m in hl.tile([2, 6], block_size=[1, 4]):
    n = hl.full([], 6*tile_g.begin + tile_m.begin, dtype=torch.int64).to(torch.float32)
    for i in hl.grid(1, 6, 2):
        x0 = x[tile_g.begin, i]
        n = n + x0
    out[tile_g.begin, tile_m] = n.expand(tile_m)
""",
    )


def test_dump_of_everything() -> None:
    def body(p: Program) -> None:
        m, n, k = p.axis("m", 4), p.axis("n", 8, "full"), p.axis("k", 2, "full")
        other, flat = p.b.alias(m), p.axis("flat", 8, "full")
        with p.b.grid(m, serial=True):
            x = p.load("x", m, n)
            count = p.b.bind(p.load("count"), "count")
            with p.b.sequential_loop("i", 0, count, 2, [x]) as loop:
                loop.finish([loop.args[0]])
            joined = p.b.custom_reduce([x], [n], [0.0], lambda b, x, y: [p.op("add", x[0], y[0])])
            _, order = p.b.sort(x, n, k=2, out_axis=k)
            taken = p.b.reaxis(p.b.take(loop.results[0], order, n), {m: other})
            y = p.buffer("y", "inout")
            p.b.atomic("cas", y, [Affine.of(m)], joined[0], expected=p.const(0.0))
            p.out("flat", p.b.reshape(x, [n], [flat]), m, flat)
            p.b.print("taken", taken, p.b.rng("rand", p.const(1, I64), p.b.iota(m), word=2))

    tensors = {"x": torch.randn(4, 8), "count": torch.tensor(3), "y": torch.randn(4)}
    assert_expected_inline(
        dump(program(body, tensors)[0]),
        """\
kernel program()
  in x: float32[4, 8] strides [8, 1]
  in count: int64[] strides []
  inout y: float32[4] strides [1]
  out flat: float32[4, 8] strides [8, 1]
  axis m: block 4
  axis n: full 8
  axis k: full 2
  axis m_1: block 4 of m
  axis flat: full 8
  grid (m) serial:
    %x: float32[m, n] = load x[m, n]
    %count: int64[] = load count[]
    bind count_1 = %count
    %x.1: float32[m, n] = sequential i from 0 to count_1 step 2 carrying %x:
      region(%x.2: float32[m, n])
      yield %x.2
    %x.3: float32[m] = reduce custom %x over (n) identity (0.0):
      region(%x_l: float32[m], %x_r: float32[m])
      %add: float32[m] = add(%x_l, %x_r)
      yield %add
    %sorted: float32[m, k], %order: int64[m, k] = sort %x along n stable first 2 as k
    %x.4: float32[m, k] = take %x.1 at %order along n
    %x.5: float32[k, m_1] = reaxis %x.4 m to m_1
    %c: float32[] = const 0.0
    atomic cas y[m] = %x.3 where %c
    %x.6: float32[m, flat] = reshape %x (n) to (flat)
    store flat[m, flat] = %x.6
    %c.1: int64[] = const 1
    %i_m: int64[m] = iota m
    %rand: float32[m] = rng %c.1, %i_m fn=rand word=2
    print 'taken', %x.5, %rand
""",
    )
