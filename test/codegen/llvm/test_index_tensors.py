"""Index tensors that move in step with the vector axis: read as whole vectors, checked and masked
lane by lane; and atomic additions through them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from test.codegen.llvm.test_programs import call, same_as_interpreter
from test.ir.programs import Program, program
from torch_helion import compiler
from torch_helion.codegen.llvm.linear import linear, makers
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.types import Affine, Gather

F32, I64 = torch.float32, torch.int64
ROWS, COLUMNS = 5, 37
STARTS = torch.tensor([3, 40, 0, 11, 77])
LENGTHS = torch.tensor([37, 20, 0, 36, 1])

Place = Callable[[Program, Value, Value], Value]
PLACES: dict[str, Place] = {
    "start + i": lambda p, start, i: p.op("add", start, i),
    "i + start": lambda p, start, i: p.op("add", i, start),
    "i - (7 - start)": lambda p, start, i: p.op("sub", i, p.op("sub", p.const(7, I64), start)),
    "start + 2 i - i": lambda p, start, i: p.op(
        "sub", p.op("add", start, p.op("mul", i, p.const(2, I64))), i
    ),
    "start + 3 i": lambda p, start, i: p.op("add", start, p.op("mul", p.const(3, I64), i)),
    "start - i": lambda p, start, i: p.op("sub", start, i),
    "start i": lambda p, start, i: p.op("mul", start, i),
}
IN_STEP = list(PLACES)[:4]


def reads(name: str, masked: bool) -> Callable[[Program], None]:
    """y[m, n] = x[place(start[m], n)], where n < length[m]."""

    def body(p: Program) -> None:
        m, n = p.axis("m", ROWS), p.axis("n", COLUMNS)
        with p.b.grid(m, n):
            place = PLACES[name](p, p.load("start", m), p.b.iota(n))
            near = p.op("lt", p.b.iota(n), p.load("length", m)) if masked else None
            x = p.buffer("x", "in")
            value = p.b.load(x, [Gather(0)], [place], near, other=-1.0, checked=True)
            p.out("y", value, m, n)

    return body


def inputs(size: int = 200) -> dict[str, torch.Tensor]:
    return {"start": STARTS, "length": LENGTHS, "x": torch.randn(size)}


@pytest.mark.parametrize("machine", ["host", "narrow"])
@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize("name", PLACES)
def test_vectors_of_neighbours(name: str, block: int, machine: str) -> None:
    """With a mask, some places of lanes that do not count lie outside."""
    masked = name in IN_STEP
    given = inputs(78 if name == "start + i" else 4000)
    if name in ("start - i", "i - (7 - start)"):
        given["start"] = STARTS + 40
    same_as_interpreter(reads(name, masked), given, block=block, machine=machine)


def test_neighbours_are_no_gathers() -> None:
    for name in PLACES:
        kernel, _ = program(reads(name, True), inputs())
        text = compiler.compile_kernel(kernel)
        found = re.search(r"@llvm.masked.gather.v\d+f32", text) is not None
        assert found == (name not in IN_STEP), name


@pytest.mark.parametrize("first", [0, 20, 36])
def test_an_index_of_all_lanes_is_checked_if_one_of_them_counts(first: int) -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", ROWS), p.axis("n", COLUMNS)
        with p.b.grid(m, n):
            late = p.op("ge", p.b.iota(n), p.const(first, I64))
            x = p.buffer("x", "in")
            value = p.b.load(x, [Gather(0), Affine.of(n)], [p.load("start", m)], late, checked=True)
            p.out("y", value, m, n)

    given = {"start": torch.tensor([0, 3, 1, 4, 2]), "x": torch.randn(5, COLUMNS)}
    same_as_interpreter(body, given, block=64)
    kernel, p = program(body, {**given, "start": given["start"] + 1})
    with pytest.raises(IndexError):
        call(kernel, [p.tensors[b.name] for b in kernel.arguments], block_sizes=[4, 64])


@pytest.mark.parametrize("name", ["start + i", "start + 3 i"])
@pytest.mark.parametrize("row, start", [(1, -1), (3, 4000 - 3), (0, -(2**63)), (0, 2**63 - 1)])
def test_places_outside_are_errors(name: str, row: int, start: int) -> None:
    given = inputs(4000)
    given["start"] = STARTS.clone()
    given["start"][row] = start
    kernel, p = program(reads(name, True), given)
    args = [p.tensors[b.name] for b in kernel.arguments]
    for block in (2, 64):
        with pytest.raises(IndexError):
            call(kernel, args, block_sizes=[block, block])


def test_stores_and_atomics_of_neighbours() -> None:
    def body(p: Program) -> None:
        m, n = p.axis("m", ROWS), p.axis("n", COLUMNS)
        with p.b.grid(m, n):
            place = p.op("add", p.load("start", m), p.b.iota(n))
            near = p.op("lt", p.b.iota(n), p.load("length", m))
            value = p.load("z", m, n)
            p.b.atomic("add", p.buffer("sums", "inout"), [Gather(0)], value, [place], near)

    given = {**inputs(), "z": torch.randn(ROWS, COLUMNS), "sums": torch.randn(90)}
    del given["x"]
    same_as_interpreter(body, given, block=64)


def adds(sums: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """sums[n] += value[n], atomically."""
    b = Builder("adds")
    size = value.numel()
    n = b.axis("n", size)
    x = b.buffer("x", F32, (size,), (1,))
    y = b.buffer("y", F32, (size,), (1,), "inout")
    with b.grid(n, blocks=[b.block("n")]):
        b.atomic("add", y, [Affine.of(n)], b.load(x, [Affine.of(n)]))
    return call(b.build(), [value, sums], block_sizes=[64])[1]


def test_sums_that_change_nothing_keep_their_bits() -> None:
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e30, 1e-45, 2.5])
    sums = special.repeat_interleave(7).repeat(3)
    for value in (special.repeat(21), torch.zeros(147), -torch.zeros(147)):
        want = sums + value
        got = adds(sums.clone(), value)
        assert torch.equal(torch.signbit(got), torch.signbit(want) | (want.isnan() & got.signbit()))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_linear_forms() -> None:
    def form_of(make: Callable[[Builder, Value, Value], Value]) -> tuple[int, int] | None:
        b = Builder("form")
        m, n = b.axis("m", 3), b.axis("n", 5)
        x = b.buffer("x", I64, (3,), (1,))
        out = b.buffer("out", I64, (3, 5), (5, 1), "out")
        with b.grid(m, n):
            value = make(b, b.load(x, [Affine.of(m)]), b.iota(n))
            b.store(out, [Affine.of(m), Affine.of(n)], b.expand(value, [m, n]))
        kernel: Kernel = b.build()
        (phase,) = kernel.phases
        form = linear(value, "n", makers(phase))
        return None if form is None else (form.step, len(form.rest))

    assert form_of(lambda b, x, i: b.pointwise("add", x, i)) == (1, 1)
    assert form_of(lambda b, x, i: b.pointwise("sub", x, i)) == (-1, 1)
    assert form_of(lambda b, x, i: x) == (0, 1)
    assert form_of(lambda b, x, i: b.pointwise("mul", i, b.const(4, I64))) == (4, 0)
    assert form_of(lambda b, x, i: b.pointwise("mul", i, x)) is None
    assert form_of(lambda b, x, i: b.pointwise("abs", i)) is None
