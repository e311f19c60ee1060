"""Loops, branches and joins that break a rule, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch

from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.overlap import serialised, step_overlap
from torch_helion.ir.types import (
    Affine,
    Axis,
    Gather,
    TileType,
    begin_symbol,
    block_symbol,
    scalar_symbol,
)
from torch_helion.ir.verifier import verify

F32, F16, I64, I32, BOOL = torch.float32, torch.float16, torch.int64, torch.int32, torch.bool


class Parts:
    """A grid over m; an inner axis j, full axes k and r of 8; x[m, 8] of several dtypes."""

    def __init__(self) -> None:
        b = self.b = Builder("broken")
        self.n0 = b.size("n0")
        self.m = b.axis("m", self.n0)
        self.j, self.other = b.axis("j", 8), b.axis("other", 5)
        self.k, self.r = b.axis("k", 8, "full"), b.axis("r", 8, "full")
        self.five = b.axis("five", 5, "full")
        self.two = b.axis("two", 2, "full")
        self.m1 = b.alias(self.m)
        self.x = b.buffer("x", F32, [self.n0, 8], [8, 1])
        self.h = b.buffer("h", F16, [self.n0, 8], [8, 1])
        self.i = b.buffer("i", I64, [self.n0], [1])
        self.out = b.buffer("out", F32, [self.n0, 8], [8, 1], "out")
        self.y = b.buffer("y", F32, [self.n0, 8], [8, 1], "inout")
        self.u = b.buffer("u", torch.int8, [self.n0, 8], [8, 1], "inout")

    @property
    def row(self) -> Value:
        return self.b.load(self.x, [Affine.of(self.m), Affine.of(self.k)])

    @property
    def half(self) -> Value:
        return self.b.load(self.h, [Affine.of(self.m), Affine.of(self.k)])

    def zero(self, dtype: torch.dtype = F32) -> Value:
        return self.b.const(0, dtype)

    def emit(
        self,
        kind: str,
        operands: tuple[Value, ...],
        results: tuple[TileType, ...],
        regions: tuple[Region, ...] = (),
        /,
        **attrs: Any,
    ) -> tuple[Value, ...]:
        """An op past the builder's own checks."""
        values = tuple(Value(t) for t in results)
        self.b.ops.append(Op(kind, operands, attrs, values, regions))
        return values

    def type(self, *axes: Axis, dtype: torch.dtype = F32) -> TileType:
        return TileType(dtype, axes)


def build(body: Callable[[Parts], Any], **options: Any) -> Kernel:
    parts = Parts()
    with parts.b.grid(parts.m, **options):
        body(parts)
    return parts.b.build()


def loop(p: Parts, **attrs: Any) -> None:
    p.emit("loop", (), (), (Region(),), **({"kind": "tile", "axes": (p.j,)} | attrs))


def counted(p: Parts, **attrs: Any) -> None:
    fine = {"symbol": scalar_symbol("c"), "begin": 0, "end": 3, "step": 1}
    loop(p, **({"kind": "sequential", "axes": ()} | fine | attrs))


def size_of(p: Parts, expr: sympy.Expr) -> None:
    p.emit("size", (), (TileType(I64),), expr=expr)


def after_the_loop(p: Parts) -> None:
    with p.b.tile_loop(p.j):
        pass
    size_of(p, begin_symbol(p.j))


def after_the_branch(p: Parts) -> None:
    with p.b.if_(p.b.const(True, BOOL)).then():
        bound = p.b.bind(p.zero(I64), "bound")
    size_of(p, bound)


def bound_twice(p: Parts) -> None:
    for _ in range(2):
        p.emit("bind", (p.zero(I64),), (), symbol=scalar_symbol("same"))


def inner_value_outside(p: Parts) -> None:
    with p.b.tile_loop(p.j):
        value = p.zero()
    p.b.store(p.out, [Affine.of(p.m), Affine.of(p.k)], p.b.expand(value, [p.m, p.k]))


def carried_axis_of_the_loop(p: Parts) -> None:
    value = TileType(F32, (p.j,))
    arg, result = Value(value), Value(value)
    body = Region((arg,), (Op("yield", (arg,)),))
    start = p.emit("expand", (p.zero(),), (value,), axes=(p.j,))
    p.b.ops.append(Op("loop", start, {"kind": "tile", "axes": (p.j,)}, (result,), (body,)))


def reduce_custom(p: Parts, **changes: Any) -> None:
    """A custom sum over k, with parts of it replaced."""
    kept = p.type(p.m)
    left, right, total = Value(kept), Value(kept), Value(kept)
    add = Op("pointwise", (left, right), {"fn": "add"}, (total,))
    fine: dict[str, Any] = {
        "operands": (p.row,),
        "results": (kept,),
        "region": Region((left, right), (add, Op("yield", (total,)))),
        "attrs": {"fn": "custom", "axes": ("k",), "identity": (0.0,)},
        "kind": "reduce",
    }
    fine |= changes
    p.emit(fine["kind"], fine["operands"], fine["results"], (fine["region"],), **fine["attrs"])


def open_region(p: Parts) -> Region:
    kept = p.type(p.m)
    outside = p.b.expand(p.zero(), [p.m])
    return Region((Value(kept), Value(kept)), (Op("yield", (outside,)),))


def region_with(p: Parts, kind: str) -> Region:
    kept = p.type(p.m)
    left, right, new = Value(kept), Value(kept), Value(TileType(F32, (p.m,)))
    inner = Op(kind, (), {"axis": "m"}, (new,))
    return Region((left, right), (inner, Op("yield", (left,))))


BROKEN: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "loop kind": (lambda p: loop(p, kind="jagged"), "loop of kind 'jagged'"),
    "serial inner loop": (lambda p: loop(p, serial=True), "only a grid loop is serial"),
    "blocks count": (lambda p: loop(p, blocks=(1, 2)), "2 block sizes for 1 axes"),
    "block of zero": (lambda p: loop(p, blocks=(0,)), "a block size of 0"),
    "block of a begin": (
        lambda p: loop(p, blocks=(begin_symbol(p.m),)),
        "begin_m is no size or block",
    ),
    "loop over an alias": (lambda p: loop(p, axes=(p.m1,)), "no loop of its own"),
    "sequential axes": (lambda p: counted(p, axes=(p.j,)), "a counter, no axes"),
    "sequential step": (lambda p: counted(p, step=0), "a step of 0"),
    "sequential symbol": (lambda p: counted(p, symbol="c"), "no integer symbol"),
    "sequential name": (lambda p: counted(p, symbol=p.n0), "'n0' is used twice"),
    "sequential attrs": (
        lambda p: loop(p, kind="sequential", axes=()),
        r"attributes \['symbol', 'begin', 'end', 'step'\] are missing",
    ),
    "begin outside": (after_the_loop, "begin_j is no size"),
    "bound outside": (after_the_branch, "bound is no size"),
    "bound twice": (bound_twice, "the name 'same' is used twice"),
    "bound tile": (
        lambda p: p.emit("bind", (p.b.iota(p.k),), (), symbol=scalar_symbol("c")),
        "must be a rank-0",
    ),
    "value of a loop outside": (inner_value_outside, "used before its definition"),
    "carried axis": (carried_axis_of_the_loop, "no loop over 'j' around this"),
    "if of a tile": (
        lambda p: p.emit("if", (p.b.pointwise("lt", p.row, p.zero()),), (), (Region(), Region())),
        "must be a rank-0",
    ),
    "while without condition": (
        lambda p: p.emit("while", (), (), (Region(), Region())),
        "the condition yields one value",
    ),
    "while of an int": (
        lambda p: p.emit("while", (), (), (Region((), (Op("yield", (p.zero(I64),)),)), Region())),
        "must be a rank-0",
    ),
    "alias of another size": (
        lambda p: p.emit("iota", (), (TileType(I64, (Axis("q", 3, "block", "m"),)),), axis="q"),
        "'q' has not the size of 'm'",
    ),
    "alias without its loop": (
        lambda p: p.emit("iota", (), (TileType(I64, (Axis("q", 8, "block", "j"),)),), axis="q"),
        "no loop over 'j' around this",
    ),
    "dot dtypes": (
        lambda p: p.emit("dot", (p.row, p.half), (p.type(p.m),), k="k", acc=F32),
        "no dot of torch.float32 and torch.float16",
    ),
    "dot of ints": (
        lambda p: p.emit(
            "dot", (p.b.cast(p.row, I64),) * 2, (p.type(p.m, dtype=I64),), k="k", acc=I64
        ),
        "no dot of torch.int64",
    ),
    "dot in half": (
        lambda p: p.emit("dot", (p.half,) * 2, (p.type(p.m, dtype=F16),), k="k", acc=F16),
        "in torch.float16",
    ),
    "dot accumulator": (
        lambda p: p.emit("dot", (p.row, p.row, p.zero()), (p.type(p.m),), k="k", acc=F32),
        "the accumulator is",
    ),
    "scan fn": (
        lambda p: p.emit(
            "scan",
            (p.row,),
            (p.type(p.m, p.k),),
            fn="any",
            axis="k",
            reverse=False,
            exclusive=False,
        ),
        "no scan 'any'",
    ),
    "scan of half": (
        lambda p: p.emit(
            "scan",
            (p.half,),
            (p.type(p.m, p.k, dtype=F16),),
            fn="sum",
            axis="k",
            reverse=False,
            exclusive=False,
        ),
        "computes in torch.float16",
    ),
    "custom without region": (
        lambda p: p.emit(
            "reduce", (p.row,), (p.type(p.m),), fn="custom", axes=("k",), identity=(0.0,)
        ),
        "a custom function has one region",
    ),
    "custom identity": (
        lambda p: reduce_custom(p, attrs={"fn": "custom", "axes": ("k",), "identity": ()}),
        "an identity an operand",
    ),
    "custom args": (
        lambda p: reduce_custom(p, region=Region((), (Op("yield", ()),))),
        "all left values, then all right ones",
    ),
    "custom results": (lambda p: reduce_custom(p, results=()), "as many results as operands"),
    "custom outside": (
        lambda p: reduce_custom(p, region=open_region(p)),
        "used before its definition",
    ),
    "custom kinds": (
        lambda p: reduce_custom(p, region=region_with(p, "iota")),
        "a combine region holds no iota",
    ),
    "custom exclusive": (
        lambda p: reduce_custom(
            p,
            kind="scan",
            results=(p.type(p.m, p.k),),
            attrs={"fn": "custom", "axis": "k", "reverse": False, "exclusive": True},
        ),
        "a custom scan is inclusive",
    ),
    "sum with a region": (
        lambda p: reduce_custom(p, attrs={"fn": "sum", "axes": ("k",)}),
        "only a custom reduction has a region",
    ),
    "sort keeps its axis": (
        lambda p: p.emit(
            "sort",
            (p.row,),
            (p.type(p.m, p.r), p.type(p.m, p.r, dtype=I64)),
            axis="k",
            descending=False,
            stable=True,
            k=None,
            out_axis=p.r,
        ),
        "a whole sort keeps its axis",
    ),
    "sort of too many": (
        lambda p: p.emit(
            "sort",
            (p.row,),
            (p.type(p.m, p.r), p.type(p.m, p.r, dtype=I64)),
            axis="k",
            descending=False,
            stable=True,
            k=5,
            out_axis=p.r,
        ),
        "has not the size 5",
    ),
    "take index": (
        lambda p: p.emit("take", (p.row, p.zero(I32)), (p.type(p.m),), axis="k"),
        "is no int64",
    ),
    "take axis": (
        lambda p: p.emit("take", (p.row, p.zero(I64)), (p.type(p.m),), axis="r"),
        r"no axis \['r'\]",
    ),
    "reaxis sizes": (
        lambda p: p.emit("reaxis", (p.row,), (p.type(p.m, p.five),), axes=(("k", p.five),)),
        "have not the same positions",
    ),
    "reaxis block to full": (
        lambda p: p.emit("reaxis", (p.row,), (p.type(p.r, p.k),), axes=(("m", p.r),)),
        "have not the same positions",
    ),
    "reaxis twice": (
        lambda p: p.emit("reaxis", (p.row,), (p.type(p.m, p.k),), axes=(("m", p.k),)),
        "have not the same positions",
    ),
    "reshape of a block": (
        lambda p: p.emit("reshape", (p.row,), (p.type(p.two),), source=("k",), target=(p.two,)),
        r"axes \['m', 'two'\] expected",
    ),
    "reshape count": (
        lambda p: p.emit(
            "reshape", (p.row,), (p.type(p.m, p.two),), source=("k",), target=(p.two,)
        ),
        "8 elements become 2",
    ),
    "atomic fn": (
        lambda p: p.emit(
            "atomic",
            (p.row,),
            (),
            fn="nand",
            buffer="y",
            index=(Affine.of(p.m), Affine.of(p.k)),
            masked=False,
            checked=False,
        ),
        "no atomic 'nand'",
    ),
    "atomic of a byte": (
        lambda p: p.b.atomic(
            "add", p.u, [Affine.of(p.m), Affine.of(p.k)], p.b.cast(p.row, torch.int8)
        ),
        "no atomic add of torch.int8",
    ),
    "atomic of float bits": (
        lambda p: p.b.atomic("xor", p.y, [Affine.of(p.m), Affine.of(p.k)], p.row),
        "no atomic xor of torch.float32",
    ),
    "atomic on an output": (
        lambda p: p.b.atomic("add", p.out, [Affine.of(p.m), Affine.of(p.k)], p.row),
        "an atomic reads it, too",
    ),
    "stacked without addresses": (
        lambda p: p.emit(
            "load",
            (p.row,),
            (p.type(p.m, p.k),),
            buffer="x",
            index=(Affine(), Affine()),
            masked=False,
            checked=False,
            other=0,
            stacked=True,
        ),
        "the addresses are no int64",
    ),
    "pointwise of uint32": (
        lambda p: p.b.pointwise("neg", p.b.cast(p.zero(I64), torch.uint32)),
        "computes in torch.uint32",
    ),
    "rng word": (
        lambda p: p.emit("rng", (p.zero(I64), p.zero(I64)), (TileType(F32),), fn="rand", word=4),
        "no word 4",
    ),
    "print text": (lambda p: p.emit("print", (), (), text=3), "is no text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_programs_are_refused(name: str) -> None:
    body, why = BROKEN[name]
    with pytest.raises(exc.VerifierError, match=why):
        verify(build(body))


def test_the_pieces_are_fine_unbroken() -> None:
    verify(build(loop))
    verify(build(counted))
    verify(build(reduce_custom))


def test_blocks_of_a_kernel() -> None:
    def body(p: Parts) -> None:
        with p.b.tile_loop(p.j, blocks=[block_symbol("m") * 2]):
            size_of(p, block_symbol("m"))

    kernel = build(body, blocks=[block_symbol("m")])
    verify(replace(kernel, blocks=("m",)))
    with pytest.raises(exc.VerifierError, match="block_m is no size or block"):
        verify(replace(kernel, blocks=("z",)))
    with pytest.raises(exc.VerifierError, match="a block is declared twice"):
        verify(replace(kernel, blocks=("m", "m")))
    open_loop = build(body)
    with pytest.raises(exc.VerifierError, match="axis 'm' has no block size"):
        verify(replace(open_loop, blocks=("z",)))


# -- steps that meet in memory ------------------------------------------------------------------


def store_at(p: Parts, index: list[Any], *gathered: Value) -> None:
    value = p.b.expand(p.zero(), [p.k])
    p.b.store(p.out, [*index, Affine.of(p.k)], value, gathered, checked=True)


def in_a_bound_row(p: Parts) -> None:
    row = p.b.load(p.i, [Affine((), begin_symbol(p.m))])
    store_at(p, [Affine((), p.b.bind(row, "row"))])


def in_a_gathered_row(p: Parts) -> None:
    store_at(p, [Gather(0)], p.b.load(p.i, [Affine((), begin_symbol(p.m))]))


def in_a_carried_row(p: Parts) -> None:
    start = p.b.load(p.i, [Affine((), begin_symbol(p.m))])
    with p.b.tile_loop(p.j, [start]) as inner:
        store_at(p, [Gather(0)], inner.args[0])
        inner.finish([inner.args[0]])


def through_an_alias(p: Parts) -> None:
    value = p.b.expand(p.zero(), [p.m1, p.k])
    p.b.store(p.out, [Affine.of(p.m1), Affine.of(p.k)], value)


def in_place(p: Parts) -> None:
    at = [Affine((), begin_symbol(p.m)), Affine.of(p.k)]
    p.b.store(p.y, at, p.b.load(p.y, at))


def in_a_gathered_place(p: Parts) -> None:
    row = p.b.load(p.i, [Affine((), begin_symbol(p.m))])
    at = [Gather(0), Affine.of(p.k)]
    p.b.store(p.y, at, p.b.load(p.y, at, [row]), [row])


def addressed(p: Parts) -> None:
    address = p.b.load(p.i, [Affine((), begin_symbol(p.m))])
    value = p.b.expand(p.zero(), [p.k])
    p.b.store(p.y, [Affine(), Affine.of(p.k)], value, pointer=address)


APART = (
    in_a_bound_row, in_a_gathered_row, in_a_carried_row, through_an_alias, in_place,
    in_a_gathered_place, addressed,
)  # fmt: skip


def in_row_zero(p: Parts) -> None:
    store_at(p, [Affine()])


def in_a_row_from_memory(p: Parts) -> None:
    store_at(p, [Gather(0)], p.b.load(p.i, [Affine()]))


def of_the_next_row(p: Parts) -> None:
    at = [Affine((), begin_symbol(p.m)), Affine.of(p.k)]
    p.b.store(p.y, at, p.b.load(p.y, [Affine(), Affine.of(p.k)]))


MEETING = {
    in_row_zero: "all steps along 'm' write the same place",
    in_a_row_from_memory: "all steps along 'm' write the same place",
    of_the_next_row: "other steps along 'm' store to what this reads",
}


@pytest.mark.parametrize("body", APART, ids=lambda f: f.__name__)
def test_steps_apart(body: Callable[[Parts], None]) -> None:
    kernel = build(body)
    verify(kernel)
    assert step_overlap(kernel.phases[0]) is None
    assert serialised(kernel).phases == kernel.phases


@pytest.mark.parametrize("body", MEETING, ids=lambda f: f.__name__)
def test_steps_that_meet(body: Callable[[Parts], None]) -> None:
    kernel = build(body)
    with pytest.raises(exc.VerifierError, match=MEETING[body]):
        verify(kernel)
    verify(build(body, serial=True))
    in_order = serialised(kernel)
    verify(in_order)
    assert in_order.phases[0].attrs["serial"]
