"""Products whose weight is made of bytes in registers, against what the interpreter makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from test.guarded import guarded
from torch_helion.codegen.llvm import dot, dot_nibbles, engine
from torch_helion.codegen.llvm.dot import DotLibrary
from torch_helion.codegen.llvm.dot_quantized import QuantizedSpec, supports
from torch_helion.compiler import compile_kernel, load_kernel
from torch_helion.ir import interpreter
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel
from torch_helion.ir.types import Affine, Gather
from torch_helion.lowering import quantized
from torch_helion.lowering.quantized import Packing

F32, BF16, F16, I8, U8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8


WHOLE = Packing()


@dataclasses.dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    a: torch.dtype
    b: torch.dtype
    packing: Packing = WHOLE
    group: int = 0
    scale: torch.dtype | None = None
    zero: torch.dtype | None = None


def build(case: Case) -> Kernel:
    b, at = Builder("quantized"), Affine.of
    m, n = b.size("m"), b.size("n")
    length = case.k * case.packing.bits // 8
    count = case.k // case.group if case.group else 0
    x = b.buffer("x", case.a, (m, case.k), (case.k, 1))
    w = b.buffer("w", case.b, (n, length), (length, 1))
    shape: Any = ((n, count), (count, 1)) if count else ((n,), (1,))
    numbers = {s: b.buffer(s, d, *shape) for s, d in (("s", case.scale), ("z", case.zero)) if d}
    out = b.buffer("out", F32, (m, n), (n, 1), "out")
    i, j, r = b.axis("i", m), b.axis("j", n), b.axis("r", case.k, "full")
    with b.grid(i, j):

        def read(place: Any) -> Any:
            if place is None:
                return b.load(w, [at(j), at(r)])
            return b.load(w, [at(j), Gather(0)], [place])

        def number(name: str) -> Any:
            if name not in numbers:
                return None
            if not count:
                return b.load(numbers[name], [at(j)])
            return b.load(numbers[name], [at(j), Gather(0)], [quantized.group(b, case.group, r)])

        weight = quantized.scaled(
            b, quantized.integers(b, case.packing, read, r), number("z"), number("s")
        )
        rows = b.cast(b.load(x, [at(i), at(r)]), F32)
        b.store(out, [at(i), at(j)], b.dot(rows, weight, r, F32))
    return b.build()


def data(case: Case) -> dict[str, torch.Tensor]:
    low, high = (-128, 128) if case.b is I8 else (0, 256)
    shape = (case.n, case.k // case.group) if case.group else (case.n,)
    found = {
        "x": torch.randn(case.m, case.k).to(case.a),
        "w": torch.randint(low, high, (case.n, case.k * case.packing.bits // 8)).to(case.b),
        "s": (torch.rand(shape) + 0.1).to(case.scale or F32),
        "z": torch.randint(0, 16, shape).to(case.zero or F32),
        "out": torch.full((case.m, case.n), float("nan")),
    }
    return {name: guarded(value, "end") for name, value in found.items()}


NIBBLES, HALVES = Packing(4, offset=8), Packing(4, halves=True, offset=8)
CASES = [
    Case(1, 37, 250, F32, I8),
    Case(1, 37, 256, BF16, I8, group=64, scale=BF16),
    Case(3, 37, 250, BF16, U8, Packing(offset=128), scale=F32),
    Case(5, 21, 96, F32, I8, group=32, scale=F16, zero=F32),
    Case(1, 37, 192, F32, U8, group=96, scale=F32, zero=U8),
    Case(1, 37, 134, F32, U8, NIBBLES, scale=F32),
    Case(2, 37, 256, F32, U8, NIBBLES, group=32, scale=F32, zero=F32),
    Case(7, 37, 256, F32, I8, Packing(4, signed=True, high_first=True), group=64, scale=F32),
    Case(4, 37, 134, F32, U8, HALVES),
    Case(1, 37, 512, F32, U8, dataclasses.replace(HALVES, high_first=True), 64, F32, F32),
    Case(1, 37, 512, BF16, U8, NIBBLES, group=128, scale=F32, zero=U8),
    Case(3, 37, 512, BF16, U8, NIBBLES, group=32, scale=BF16),
    Case(2, 37, 512, BF16, U8, dataclasses.replace(NIBBLES, high_first=True), 64, F32),
    Case(1, 37, 512, BF16, U8, dataclasses.replace(HALVES, high_first=True), 128, F32),
    Case(9, 37, 640, BF16, U8, HALVES, scale=F32),
    Case(1, 37, 1280, BF16, I8, Packing(4, signed=True)),
    Case(1, 3, 512, BF16, U8, Packing(4), group=256, scale=F32, zero=BF16),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_interpreter(case: Case) -> None:
    kernel, tensors = build(case), data(case)
    sizes = {"m": case.m, "n": case.n}
    text = compile_kernel(kernel, {s: sizes[str(s)] for s in kernel.sizes})
    assert "] += A · " in text, "the weight is not made in registers"
    order = [tensors[b.name] for b in kernel.arguments]
    load_kernel(text)(*order, *(sizes[str(s)] for s in kernel.sizes))
    want = exact(case, tensors)
    scale = tensors["x"].double().abs() @ weight_of(case, tensors).abs().t() + 1e-30
    assert ((tensors["out"].double() - want).abs() / scale).max() < 2e-6


def weight_of(case: Case, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """By the interpreter, with rows that pick one input each."""
    plain = dataclasses.replace(case, m=case.k, a=F32)
    kernel = build(plain)
    given = {**tensors, "x": torch.eye(case.k), "out": torch.empty(case.k, case.n)}
    sizes = {"m": case.k, "n": case.n}
    interpreter.run(
        kernel,
        [given[b.name] for b in kernel.arguments],
        [sizes[str(s)] for s in kernel.sizes],
    )
    return given["out"].double().t()


def exact(case: Case, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors["x"].double() @ weight_of(case, tensors).t()


@pytest.mark.parametrize("machine", ["x86-64-v3", "x86-64-v4", "neoverse-v1"])
def test_other_machines_have_code_for_it(machine: str) -> None:
    try:
        target = engine.machine_for(machine)
    except Exception:
        pytest.skip("unknown here")
    library = DotLibrary(target)
    spec = QuantizedSpec(F32, U8, 3, 256, 64, F32, None, 4, values=tuple(range(-8, 8)))
    assert supports(spec, target)
    library.use(spec)
    (part,) = library.parts()
    engine.compile_object(part, target)


def test_groups_that_are_no_whole_vectors_are_not_supported() -> None:
    machine = engine.host_machine()
    spec = QuantizedSpec(F32, U8, 1, 240, 24, F32, None, 4, values=tuple(range(16)))
    assert not supports(spec, machine)
    assert not dot_nibbles.fits(dataclasses.replace(spec, a=F32), machine)
    assert dot.DotSpec is not QuantizedSpec
