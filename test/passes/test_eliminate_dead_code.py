"""What no output needs goes; what can end the kernel with an error stays."""

from __future__ import annotations

import pytest
import torch

from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.types import Affine, Axis, Gather, TileType
from torch_helion.ir.verifier import verify
from torch_helion.passes.eliminate_dead_code import eliminate_dead_code

F32, I64 = torch.float32, torch.int64


class Parts:
    def __init__(self) -> None:
        b = self.b = Builder("dead")
        self.m = b.axis("m", 8)
        self.at = [Affine.of(self.m)]
        self.x = b.buffer("x", F32, [8], [1])
        self.i = b.buffer("i", I64, [8], [1])
        self.out = b.buffer("out", F32, [8], [1], "out")

    def workspace(self, name: str) -> None:
        self.b.buffer(name, F32, [8], [1], "workspace")

    def move(self, source: str, target: str) -> None:
        """One phase that copies."""
        with self.b.grid(self.m):
            value = self.b.load(self.b._buffers[self.place(source)], self.at)
            self.b.store(self.b._buffers[self.place(target)], self.at, value)

    def place(self, name: str) -> int:
        return [b.name for b in self.b._buffers].index(name)


def kinds(kernel: Kernel) -> list[list[str]]:
    verify(kernel)
    return [[op.attrs.get("fn", op.kind) for op in p.regions[0].ops] for p in kernel.phases]


def test_unused_values_go() -> None:
    p = Parts()
    with p.b.grid(p.m):
        value = p.b.load(p.x, p.at)
        unused = p.b.pointwise("exp", value)
        p.b.pointwise("add", unused, unused)
        p.b.load(p.i, p.at)
        p.b.iota(p.m)
        p.b.store(p.out, p.at, p.b.pointwise("neg", value))
    kernel = eliminate_dead_code(p.b.build())
    assert kinds(kernel) == [["load", "neg", "store"]]
    assert [b.name for b in kernel.buffers] == ["x", "i", "out"]  # arguments stay arguments


def test_workspaces_that_nobody_reads_go_with_their_phases() -> None:
    p = Parts()
    for name in ("a", "b"):
        p.workspace(name)
    p.move("x", "a")
    p.move("x", "out")
    p.move("a", "b")
    kernel = eliminate_dead_code(p.b.build())
    assert kinds(kernel) == [["load", "store"]]
    assert [op.kind for op in kernel.body.ops] == ["loop"]
    assert [b.name for b in kernel.buffers] == ["x", "i", "out"]


def test_workspaces_that_are_read_stay() -> None:
    p = Parts()
    p.workspace("a")
    p.move("x", "a")
    p.move("a", "out")
    kernel = eliminate_dead_code(p.b.build())
    assert [op.kind for op in kernel.body.ops] == ["loop", "barrier", "loop"]
    assert kinds(kernel) == [["load", "store"], ["load", "store"]]


def test_a_kernel_without_outputs_becomes_empty() -> None:
    p = Parts()
    with p.b.grid(p.m):
        p.b.load(p.x, p.at)
    assert eliminate_dead_code(p.b.build()).body.ops == ()


@pytest.mark.parametrize(
    "fn, divisor, stays",
    [
        ("truncdiv", None, True),
        ("remainder", None, True),
        ("floordiv", 0, True),
        ("floordiv", 3, False),
        ("fmod", -1, False),
        ("add", None, False),
    ],
)
def test_what_may_fail_stays(fn: str, divisor: int | None, stays: bool) -> None:
    p = Parts()
    with p.b.grid(p.m):
        i = p.b.load(p.i, p.at)
        p.b.pointwise(fn, i, i if divisor is None else p.b.const(divisor, I64))
        p.b.store(p.out, p.at, p.b.load(p.x, p.at))
    (names,) = kinds(eliminate_dead_code(p.b.build()))
    assert (fn in names) == stays
    assert names[-2:] == ["load", "store"]


def test_float_divisions_do_not_fail() -> None:
    p = Parts()
    with p.b.grid(p.m):
        x = p.b.load(p.x, p.at)
        p.b.pointwise("floordiv", x, x)
        p.b.store(p.out, p.at, x)
    assert kinds(eliminate_dead_code(p.b.build())) == [["load", "store"]]


@pytest.mark.parametrize("checked", [True, False])
def test_checked_loads_stay(checked: bool) -> None:
    p = Parts()
    with p.b.grid(p.m):
        p.b.load(p.x, [Gather(0)], [p.b.load(p.i, p.at)], checked=checked)
        p.b.store(p.out, p.at, p.b.load(p.x, p.at))
    (names,) = kinds(eliminate_dead_code(p.b.build()))
    assert names == (["load"] * 3 if checked else ["load"]) + ["store"]


def test_inner_loops_go_and_stay_whole() -> None:
    for used in (True, False):
        p = Parts()
        with p.b.grid(p.m):
            start = p.b.const(0.0, F32)
            carried, result, tile, new = (Value(TileType(F32)) for _ in range(4))
            body = (
                Op("const", (), {"value": 1.0, "dtype": F32}, (tile,)),
                Op("pointwise", (carried, tile), {"fn": "add"}, (new,)),
                Op("yield", (new,)),
            )
            attrs = {"kind": "tile", "axes": (Axis("j", 4),)}
            p.b._ops.append(Op("loop", (start,), attrs, (result,), (Region((carried,), body),)))
            p.b.store(p.out, p.at, p.b.expand(result if used else p.b.const(2.0, F32), [p.m]))
        (names,) = kinds(eliminate_dead_code(p.b.build()))
        assert names == ["const", *(["loop"] if used else []), "expand", "store"]
