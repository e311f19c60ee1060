"""Pairs of axes that merge, and each reason for which they must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline

from torch_helion.ir.builder import Builder
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, block_symbol, contiguous_strides
from torch_helion.ir.verifier import verify
from torch_helion.passes.collapse_axes import collapse_axes

F32, I64 = torch.float32, torch.int64
SIZES = {"n0": 3, "n1": 4}


class Parts:
    """Three-dimensional x and out over grid axes a, b and a full axis n."""

    def __init__(self, strides: Callable[..., Any] | None = None) -> None:
        b = self.b = Builder("three")
        self.a, self.s = b.axis("a", b.size("n0")), b.axis("s", b.size("n1"))
        self.n = b.axis("n", 6, "full")
        self.shape = (self.a.size, self.s.size, 6)
        self.strides = strides(*self.shape) if strides else contiguous_strides(self.shape)
        self.x = b.buffer("x", F32, self.shape, self.strides)
        self.out = b.buffer("out", F32, self.shape, contiguous_strides(self.shape), "out")
        self.at = [Affine.of(axis) for axis in (self.a, self.s, self.n)]

    def kernel(self, body: Callable[[Parts, Value], Value]) -> Kernel:
        with self.b.grid(self.a, self.s):
            value = body(self, self.b.load(self.x, self.at))
            self.b.store(self.out, self.at, self.b.expand(value, [self.a, self.s, self.n]))
        return self.b.build()


def axes(kernel: Kernel) -> list[str]:
    return list(kernel.axes())


def tensors(kernel: Kernel) -> list[torch.Tensor]:
    result = []
    for number, buffer in enumerate(kernel.arguments):
        generator = torch.Generator().manual_seed(number)
        count = 400
        flat = torch.randint(-9, 9, (count,), generator=generator).to(buffer.dtype)
        result.append(flat)
    return result


def same(before: Kernel, after: Kernel, sizes: dict[str, int] | None = None) -> None:
    """Equal outputs on flat tensors that are long enough for every layout here."""
    results = []
    for kernel in (before, after):
        verify(kernel)
        results.append(tensors(before))
        run(kernel, results[-1], sizes or SIZES)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def merged(kernel: Kernel, expected: list[str]) -> Kernel:
    after = collapse_axes(kernel)
    assert axes(after) == expected
    assert [b.name for b in after.arguments] == [b.name for b in kernel.arguments]
    assert after.sizes == kernel.sizes
    for sizes in (SIZES, {"n0": 1, "n1": 7}, {"n0": 0, "n1": 4}, {"n0": 5, "n1": 1}):
        same(kernel, after, sizes)
    return after


def scaled(p: Parts, x: Value) -> Value:
    """x * sum(x) over n + a row of n."""
    weight = p.b.buffer("weight", F32, [6], [1])
    product = p.b.pointwise("mul", x, p.b.reduce("sum", x, [p.n]))
    return p.b.pointwise("add", product, p.b.load(weight, [Affine.of(p.n)]))


def test_grid_axes_merge() -> None:
    after = merged(Parts().kernel(scaled), ["a_s", "n"])
    assert_expected_inline(
        dump(after),
        """\
kernel three(n0, n1)
  in x: float32[n0*n1, 6] strides [6, 1]
  out out: float32[n0*n1, 6] strides [6, 1]
  in weight: float32[6] strides [1]
  axis a_s: block n0*n1
  axis n: full 6
  grid (a_s):
    %x: float32[a_s, n] = load x[a_s, n]
    %sum: float32[a_s] = reduce sum %x over (n)
    %mul: float32[a_s, n] = mul(%x, %sum)
    %weight: float32[n] = load weight[n]
    %add: float32[a_s, n] = add(%mul, %weight)
    store out[a_s, n] = %add
""",
    )


def test_all_axes_of_a_pointwise_kernel_merge_into_the_grid() -> None:
    p = Parts()
    n = p.b.axis("j", 6)
    at = [*p.at[:2], Affine.of(n)]
    with p.b.grid(p.a, p.s, n):
        p.b.store(p.out, at, p.b.pointwise("neg", p.b.load(p.x, at)))
    kernel = merged(p.b.build(), ["a_s_j"])
    n0, n1 = kernel.sizes
    assert kernel.buffer("x").shape == (6 * n0 * n1,) and kernel.buffer("x").strides == (1,)


def test_full_axes_merge() -> None:
    b = Builder("rows")
    m, c, h = b.axis("m", b.size("n0")), b.axis("c", 3, "full"), b.axis("h", b.size("n1"), "full")
    x = b.buffer("x", F32, [m.size, 3, h.size], [3 * h.size, h.size, 1])
    out = b.buffer("out", F32, [m.size], [1], "out")
    with b.grid(m):
        value = b.load(x, [Affine.of(axis) for axis in (m, c, h)])
        b.store(out, [Affine.of(m)], b.reduce("sum", value, [c, h]))
    merged(b.build(), ["m", "c_h"])


def test_flat_index_maps_merge() -> None:
    """One dimension of the buffer holds both axes already."""
    p = Parts()
    flat = p.b.buffer("flat", F32, [p.a.size * p.s.size + 1], [1])
    at = [Affine((("a", p.s.size), ("s", 1)), 1)]
    kernel = p.kernel(lambda p, x: p.b.pointwise("add", x, p.b.load(flat, at)))
    after = merged(kernel, ["a_s", "n"])
    loads = [op for op in after.body.walk() if op.attrs.get("buffer") == "flat"]
    assert loads[0].attrs["index"] == (Affine((("a_s", 1),), 1),)


def test_an_offset_of_the_outer_dimension_moves_along() -> None:
    p = Parts()
    y = p.b.buffer("y", F32, (p.a.size + 2, p.s.size), (p.s.size, 1))
    at = [Affine.of(p.a, 1, 2), Affine.of(p.s)]
    merged(p.kernel(lambda p, x: p.b.pointwise("add", x, p.b.load(y, at))), ["a_s", "n"])


def test_two_phases_merge_together() -> None:
    """The workspace ties the axes of the second phase to those of the first."""
    b = Builder("phases")
    pairs = []
    sizes = b.size("n0"), b.size("n1")
    for names in ("ab", "cd"):
        pairs.append([b.axis(name, size) for name, size in zip(names, sizes, strict=True)])
    x = b.buffer("x", F32, sizes, (sizes[1], 1))
    ws = b.buffer("ws", F32, sizes, (sizes[1], 1), "workspace")
    out = b.buffer("out", F32, sizes, (sizes[1], 1), "out")
    for (first, second), source, target in zip(pairs, (x, ws), (ws, out), strict=True):
        with b.grid(first, second):
            at = [Affine.of(first), Affine.of(second)]
            b.store(target, at, b.pointwise("neg", b.load(source, at)))
    after = merged(b.build(), ["a_b", "c_d"])
    assert after.buffer("ws").shape == (sizes[0] * sizes[1],)


# -- rejects ------------------------------------------------------------------------------------


def one_axis_only(p: Parts, x: Value) -> Value:
    bias = p.b.buffer("bias", F32, [p.s.size], [1])
    return p.b.pointwise("add", x, p.b.load(bias, [Affine.of(p.s)]))


def position(p: Parts, x: Value) -> Value:
    return p.b.pointwise("add", x, p.b.cast(p.b.iota(p.a), F32))


def reduce_one(p: Parts, x: Value) -> Value:
    return p.b.pointwise("add", x, p.b.reduce("sum", x, [p.s]))


def tile_number(p: Parts, x: Value) -> Value:
    ws = p.b.buffer("ws", F32, [p.a.size, p.s.size, 6], [6 * p.s.size, 6, 1], "workspace")
    at = [Affine.of(p.a), Affine.of(p.s.id_name), Affine.of(p.n)]
    p.b.store(ws, at, p.b.reduce("sum", x, [p.s]))
    return x


def block_size(p: Parts, x: Value) -> Value:
    return p.b.pointwise("add", x, p.b.cast(p.b.size_value(block_symbol("s")), F32))


def access(
    strides: Callable[..., Any], index: Callable[[Parts], list[Affine]], rank: int = 2
) -> Any:
    def body(p: Parts, x: Value) -> Value:
        shape = (p.a.size + 2, p.s.size + 2, 2)[:rank]
        y = p.b.buffer("y", F32, shape, strides(p.a.size, p.s.size)[:rank])
        return p.b.pointwise("add", x, p.b.load(y, index(p)))

    return body


REJECTS: dict[str, Callable[[Parts, Value], Value]] = {
    "a value along one axis only": one_axis_only,
    "a position along an axis": position,
    "a reduction over one axis": reduce_one,
    "the number of a tile": tile_number,
    "a block size": block_size,
    "rows with a gap": access(lambda a, s: (s + 2, 1), lambda p: p.at[:2]),
    "columns first": access(lambda a, s: (1, a + 2), lambda p: p.at[:2]),
    "an offset of the inner dimension": access(
        lambda a, s: (s + 2, 1), lambda p: [p.at[0], Affine.of(p.s, 1, 1)]
    ),
    "a step": access(
        lambda a, s: (s, 1), lambda p: [Affine.of(p.a), Affine.of(p.s, -1, p.s.size - 1)]
    ),
    "an outer step": access(
        lambda a, s: (s, 1), lambda p: [Affine.of(p.a, -1, p.a.size - 1), Affine.of(p.s)]
    ),
    "swapped dimensions": access(lambda a, s: (s, 1), lambda p: [p.at[1], p.at[0]]),
    "a flat map with another factor": access(
        lambda a, s: (1,), lambda p: [Affine((("a", 2), ("s", 1)))], 1
    ),
    "an axis in two dimensions": access(
        lambda a, s: (s, 1, 1), lambda p: [p.at[0], p.at[1], Affine.of(p.a, 0)], 3
    ),
}


def shorter_axis(p: Parts, x: Value) -> Value:
    """Rows overlap: the inner dimension is longer than the step from row to row."""
    y = p.b.buffer("y", F32, (p.a.size, p.s.size + 2), (p.s.size, 1))
    return p.b.pointwise("add", x, p.b.load(y, p.at[:2]))


REJECTS["an axis shorter than its dimension"] = shorter_axis


@pytest.mark.parametrize("why", REJECTS)
def test_rejects(why: str) -> None:
    kernel = Parts().kernel(REJECTS[why])
    assert dump(collapse_axes(kernel)) == dump(kernel)


def read_twice(one_by_one: bool) -> Kernel:
    """x is read through the grid's axes and, as a whole, through two full ones."""
    p = Parts()
    t, u = p.b.axis("t", p.a.size, "full"), p.b.axis("u", p.s.size, "full")

    def body(p: Parts, x: Value) -> Value:
        whole = p.b.load(p.x, [Affine.of(t), Affine.of(u), Affine((), 0)])
        if one_by_one:
            total = p.b.reduce("max", p.b.reduce("sum", whole, [t]), [u])
        else:
            total = p.b.reduce("sum", whole, [t, u])
        return p.b.pointwise("add", x, total)

    return p.kernel(body)


def test_pairs_that_share_a_buffer_merge_together_or_not_at_all() -> None:
    merged(read_twice(one_by_one=False), ["a_s", "n", "t_u"])
    kernel = read_twice(one_by_one=True)
    assert dump(collapse_axes(kernel)) == dump(kernel)


@pytest.mark.parametrize(
    "strides",
    [lambda a, s, n: (s * n + 1, n, 1), lambda a, s, n: (n, a * n, 1)],
    ids=["gap", "swap"],
)
def test_rejects_layouts(strides: Callable[..., Any]) -> None:
    kernel = Parts(strides).kernel(scaled)
    assert dump(collapse_axes(kernel)) == dump(kernel)


def test_a_size_that_only_happens_to_fit_does_not_count() -> None:
    """The stride is a size of its own: equal to n1 in one call, not in the next."""
    b = Builder("free")
    a, s = b.axis("a", b.size("n0")), b.axis("s", b.size("n1"))
    x = b.buffer("x", F32, [a.size, s.size], [b.size("step"), 1])
    out = b.buffer("out", F32, [a.size, s.size], [s.size, 1], "out")
    with b.grid(a, s):
        at = [Affine.of(a), Affine.of(s)]
        b.store(out, at, b.load(x, at))
    kernel = b.build()
    assert dump(collapse_axes(kernel)) == dump(kernel)
