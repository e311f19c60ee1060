"""One kernel that breaks each rule, and the sentence that says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch

from test.ir import random_kernels
from torch_helion import exc
from torch_helion.ir import ops, verifier
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Op, Origin, Region, Value
from torch_helion.ir.types import Affine, Axis, Gather, TileType, block_symbol, size_symbol
from torch_helion.ir.verifier import verify

F32, BF16, I64, BOOL = torch.float32, torch.bfloat16, torch.int64, torch.bool


class Parts:
    """A builder with buffers of every role, two grid axes m and n, and a full axis k."""

    def __init__(self) -> None:
        b = self.b = Builder("broken")
        self.m, self.n = b.axis("m", b.size("n0")), b.axis("n", b.size("n1"))
        self.k = b.axis("k", 8, "full")
        shape, strides = [self.m.size, self.n.size], [self.n.size, 1]
        self.x = b.buffer("x", F32, shape, strides)
        self.i = b.buffer("i", I64, [self.m.size], [1])
        self.out = b.buffer("out", F32, shape, strides, "out")
        self.ws = b.buffer("ws", F32, shape, strides, "workspace")
        self.io = b.buffer("io", F32, shape, strides, "inout")
        self.at = [Affine.of(self.m), Affine.of(self.n)]

    def emit(
        self, kind: str, operands: tuple[Value, ...], result: TileType | None, **attrs: Any
    ) -> Value:
        """An op past the builder's own checks."""
        value = Value(result or TileType(F32))
        op = Op(kind, operands, attrs, (value,) if result else (), (), self.b.origin)
        self.b._ops.append(op)
        return value

    def load(
        self, buffer: str, index: list[Any], axes: list[Axis], *operands: Value, **attrs: Any
    ) -> Value:
        attrs = {
            "buffer": buffer,
            "index": tuple(index),
            "masked": False,
            "checked": False,
            "other": 0,
        } | attrs
        return self.emit("load", operands, TileType(F32, tuple(axes)), **attrs)


Body = Callable[[Parts], Any]


def build(body: Body) -> Kernel:
    parts = Parts()
    with parts.b.grid(parts.m, parts.n):
        body(parts)
    return parts.b.build()


def copy(p: Parts) -> None:
    p.b.store(p.out, p.at, p.b.load(p.x, p.at))


def used_before_definition(p: Parts) -> None:
    x = p.b.load(p.x, p.at)
    p.b.store(p.out, p.at, x)
    p.b._ops.reverse()


def defined_twice(p: Parts) -> None:
    p.b.load(p.x, p.at)
    p.b._ops.append(p.b._ops[-1])


def reads_workspace_first(p: Parts) -> None:
    p.b.store(p.out, p.at, p.b.load(p.ws, p.at))


def reads_what_other_steps_store(p: Parts) -> None:
    p.b.store(p.io, p.at, p.b.load(p.x, p.at))
    p.b.load(p.io, [Affine.of(p.m), Affine((), 0)])


def pointwise(fn: str, *dtypes: torch.dtype, out: torch.dtype, axes: str = "m") -> Body:
    def body(p: Parts) -> None:
        operands = tuple(p.b.cast(p.b.load(p.i, [Affine.of(p.m)]), d) for d in dtypes)
        p.emit("pointwise", operands, TileType(out, tuple(getattr(p, a) for a in axes)), fn=fn)

    return body


def reduce(
    fn: str, names: tuple[str, ...], out: TileType | None = None, dtype: torch.dtype = F32
) -> Body:
    def body(p: Parts) -> None:
        value = p.b.cast(p.b.load(p.x, p.at), dtype)
        p.emit("reduce", (value,), out or TileType(dtype, (p.m,)), fn=fn, axes=names)

    return body


def store(index: Callable[[Parts], list[Any]], value: Callable[[Parts], Value]) -> Body:
    return lambda p: p.b.store(p.out, index(p), value(p))


def loaded(p: Parts) -> Value:
    return p.b.load(p.x, p.at)


def scalar(p: Parts) -> Value:
    return p.b.const(1.0, F32)


def full_row(p: Parts) -> Value:
    return p.b.cast(p.b.iota(p.k), F32)


UNKNOWN = size_symbol("unknown")

BROKEN: dict[str, tuple[Body, str]] = {
    "used before its definition": (used_before_definition, "is used before its definition"),
    "defined twice": (defined_twice, "is defined twice"),
    "unknown kind": (lambda p: p.emit("magic", (), None), "unknown kind 'magic'"),
    "missing attribute": (
        lambda p: p.emit("iota", (), TileType(I64, (p.k,))),
        r"\['axis'\] are missing",
    ),
    "axis twice": (lambda p: p.load("i", [Affine.of(p.m)], [p.m, p.m]), "an axis occurs twice"),
    "axis of two sizes": (
        lambda p: p.emit("iota", (), TileType(I64, (Axis("m", 3),)), axis="m"),
        "two axes are named 'm'",
    ),
    "block axis without loop": (
        lambda p: p.emit("iota", (), TileType(I64, (Axis("q", 3),)), axis="q"),
        "no loop over 'q'",
    ),
    "tile number without loop": (
        lambda p: p.load("i", [Affine.of("q.id")], []),
        "no loop over 'q' around this",
    ),
    "index arity": (lambda p: p.load("x", [Affine.of(p.m)], [p.m]), "1 indices for 2 dimensions"),
    "index kind": (lambda p: p.load("i", [3], []), "an index is Affine or Gather"),
    "unknown buffer": (lambda p: p.load("y", [], []), "no buffer 'y'"),
    "load of an output": (lambda p: p.load("out", p.at, [p.m, p.n]), "out is an output"),
    "load axes": (lambda p: p.load("x", p.at, [p.m]), r"axes \['m', 'n'\] expected"),
    "load dtype": (lambda p: p.load("i", [Affine.of(p.m)], [p.m]), r"torch.int64 expected"),
    "gather without operand": (lambda p: p.load("x", [Gather(0), p.at[1]], [p.n]), "do not match"),
    "gather of floats": (
        lambda p: p.load("x", [Gather(0), p.at[1]], [p.m, p.n], loaded(p)),
        "is no int64",
    ),
    "mask of ints": (
        lambda p: p.load("x", p.at, [p.m, p.n], p.b.iota(p.m), masked=True),
        "the mask is no bool",
    ),
    "other of a wrong kind": (
        lambda p: p.emit(
            "load",
            (),
            TileType(I64, (p.m,)),
            buffer="i",
            index=(Affine.of(p.m),),
            masked=False,
            checked=False,
            other=0.5,
        ),
        "0.5 is no torch.int64",
    ),
    "unknown size": (
        lambda p: p.load("i", [Affine.of(p.m, 1, UNKNOWN)], [p.m]),
        "unknown is no size or block",
    ),
    "block size of no axis": (
        lambda p: p.load("i", [Affine.of(p.m, block_symbol("q"))], [p.m]),
        "block_q is no size",
    ),
    "store to an input": (lambda p: p.b.store(p.x, p.at, loaded(p)), "x is an input"),
    "store of another dtype": (
        lambda p: p.emit(
            "store",
            (p.b.iota(p.m),),
            None,
            buffer="out",
            index=tuple(p.at),
            masked=False,
            checked=False,
        ),
        "is stored into torch.float32 out",
    ),
    "steps collide": (store(lambda p: [p.at[0], Affine((), 0)], scalar), "all steps along 'n'"),
    "steps collide by a factor of 0": (
        store(lambda p: [p.at[0], Affine.of(p.n, 0)], scalar),
        "all steps along 'n'",
    ),
    "lanes collide": (
        store(lambda p: [p.at[0], Affine.of(p.n.id_name)], loaded),
        "lanes along 'n' write the same",
    ),
    "full lanes collide": (store(lambda p: p.at, full_row), "lanes along 'k' write the same place"),
    "index of an axis that the value lacks": (
        store(lambda p: [p.at[0], Affine((("n", 8), ("k", 1)))], scalar),
        "expand the stored value",
    ),
    "workspace never written": (reads_workspace_first, "is read before it is written"),
    "other steps": (reads_what_other_steps_store, "other steps along 'n' store to what this reads"),
    "no such function": (pointwise("frobnicate", I64, out=I64), "no pointwise function"),
    "arity": (pointwise("add", I64, out=I64), "1 operands, 2 expected"),
    "mixed dtypes": (pointwise("add", I64, F32, out=F32), "operands of different dtypes"),
    "domain": (pointwise("exp", I64, out=I64), "exp takes float dtypes, not torch.int64"),
    "half arithmetic": (pointwise("exp", BF16, out=BF16), "computes in torch.bfloat16"),
    "result dtype": (pointwise("lt", I64, I64, out=I64), "torch.bool expected"),
    "result axes": (pointwise("neg", I64, out=I64, axes="mn"), r"axes \['m'\] expected"),
    "where of a number": (pointwise("where", I64, I64, I64, out=I64), "the condition is int64"),
    "reduce absent axis": (reduce("sum", ("k",)), r"the operand has no axis \['k'\]"),
    "reduce no axis": (reduce("sum", ()), "reduction over axes"),
    "reduce unknown": (reduce("median", ("n",)), "no reduction 'median'"),
    "reduce keeps axis": (reduce("sum", ("m", "n")), r"axes \[\] expected"),
    "arg of two axes": (reduce("argmax", ("m", "n"), TileType(I64)), "over more than one axis"),
    "arg dtype": (reduce("argmax", ("n",)), "torch.int64 expected"),
    "reduce domain": (reduce("any", ("n",)), "any takes bool dtypes"),
    "reduce half": (reduce("sum", ("n",), dtype=BF16), "computes in torch.bfloat16"),
    "cast result": (
        lambda p: p.emit("cast", (scalar(p),), TileType(F32), dtype=I64),
        "torch.int64 expected",
    ),
    "bitcast width": (
        lambda p: p.emit("bitcast", (scalar(p),), TileType(I64), dtype=I64),
        "keeps the width",
    ),
    "constant out of range": (
        lambda p: p.emit("const", (), TileType(torch.int8), value=200, dtype=torch.int8),
        "the constant 200 is no torch.int8",
    ),
    "size dtype": (lambda p: p.emit("size", (), TileType(F32), expr=p.m.size), "int64 expected"),
    "expand axes": (
        lambda p: p.emit("expand", (scalar(p),), TileType(F32, (p.m,)), axes=(p.m, p.n)),
        r"axes \['m', 'n'\] expected",
    ),
    "reshape count": (
        lambda p: p.emit(
            "reshape",
            (full_row(p),),
            TileType(F32, (Axis("j", 9, "full"),)),
            source=("k",),
            target=(Axis("j", 9, "full"),),
        ),
        "8 elements become 9",
    ),
    "rng dtype": (
        lambda p: p.emit("rng", (scalar(p), scalar(p)), TileType(F32), fn="rand"),
        "is no int64",
    ),
    "seed of many": (
        lambda p: p.emit("rng", (p.b.iota(p.m), p.b.iota(p.m)), TileType(F32, (p.m,)), fn="rand"),
        "must be a rank-0",
    ),
    "dot without axis": (
        lambda p: p.emit(
            "dot", (loaded(p), full_row(p)), TileType(F32, (p.m, p.n)), k="k", acc=F32
        ),
        "has no axis 'k'",
    ),
    "scan of absent axis": (
        lambda p: p.emit(
            "scan", (scalar(p),), TileType(F32), fn="sum", axis="k", reverse=False, exclusive=False
        ),
        r"the operand has no axis \['k'\]",
    ),
    "yield in a grid loop": (lambda p: p.emit("yield", (), None), "yields nothing"),
    "loop over a full axis": (
        lambda p: p.b._ops.append(
            Op("loop", (), {"kind": "tile", "axes": (p.k,)}, (), (Region(),))
        ),
        "runs over block axes",
    ),
    "loop inside itself": (
        lambda p: p.b._ops.append(
            Op("loop", (), {"kind": "tile", "axes": (p.m,)}, (), (Region(),))
        ),
        "already runs over 'm'",
    ),
    "grid loop inside": (
        lambda p: p.b._ops.append(Op("loop", (), {"kind": "grid", "axes": ()}, (), (Region(),))),
        "a grid loop inside another loop",
    ),
    "barrier inside": (lambda p: p.emit("barrier", (), None), "a barrier inside a loop"),
    "regions on a plain op": (
        lambda p: p.b._ops.append(
            Op("const", (), {"value": 1, "dtype": I64}, (Value(TileType(I64)),), (Region(),))
        ),
        "has no regions",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_refused(name: str) -> None:
    body, why = BROKEN[name]
    with pytest.raises(exc.VerifierError, match=why):
        verify(build(body))


def test_every_kind_has_rules() -> None:
    assert set(verifier._RULES) == set(ops.OP_KINDS)
    assert set(verifier._ATTRIBUTES) <= set(ops.OP_KINDS)


def test_good_kernels_pass() -> None:
    verify(build(copy))
    for seed in range(40):
        verify(random_kernels.make(seed).kernel)


def test_the_message_quotes_the_operation() -> None:
    def body(p: Parts) -> None:
        p.b.origin = Origin("y = x[:, 0]", "norm.py", 12)
        p.load("x", p.at, [p.m])

    with pytest.raises(exc.VerifierError, match=r"in: %v: float32\[m\] = load x\[m, n\]") as error:
        verify(build(body))
    assert "from: norm.py:12 y = x[:, 0]" in str(error.value)


def changed(**fields: Any) -> Kernel:
    return replace(build(copy), **fields)


def test_kernels_as_a_whole() -> None:
    kernel = build(copy)
    n0, _ = kernel.sizes
    x, *others = kernel.buffers
    broken: list[tuple[Kernel, str]] = [
        (changed(buffers=(x, x, *others)), "the name 'x' is used twice"),
        (changed(buffers=(replace(x, name="n0"), *others)), "the name 'n0' is used twice"),
        (changed(sizes=(n0, n0)), "a size is declared twice"),
        (changed(sizes=(n0,)), "n1 is no size"),
        (changed(buffers=(replace(x, role="out", strides=(0, 1)), *others)), "a stride of 0"),
        (
            changed(body=Region((), (Op("const", (), {"value": 1, "dtype": I64}),))),
            "stand at the top",
        ),
        (
            changed(body=Region((), (Op("loop", (), {"kind": "tile", "axes": ()}),))),
            "is a grid loop",
        ),
    ]
    for bad, why in broken:
        with pytest.raises(exc.VerifierError, match=re.escape(why)):
            verify(bad)


def two_phases() -> Kernel:
    p = Parts()
    with p.b.grid(p.m, p.n):
        p.b.store(p.ws, p.at, p.b.load(p.x, p.at))
    with p.b.grid(p.m, p.n):
        p.b.store(p.out, p.at, p.b.load(p.ws, p.at))
    return p.b.build()


def test_a_barrier_stands_between_write_and_read() -> None:
    kernel = two_phases()
    verify(kernel)
    first, _, second = kernel.body.ops
    with pytest.raises(exc.VerifierError, match="a barrier after its writes"):
        verify(replace(kernel, body=Region((), (first, second))))
    with pytest.raises(exc.VerifierError, match="a barrier after its writes"):
        verify(replace(kernel, body=Region((), (second, Op("barrier"), first))))


def test_a_step_may_read_what_it_wrote() -> None:
    p = Parts()
    with p.b.grid(p.m, p.n):
        p.b.store(p.ws, p.at, p.b.load(p.x, p.at))
        p.b.store(p.out, p.at, p.b.load(p.ws, p.at))
    verify(p.b.build())


def test_values_do_not_leave_their_phase() -> None:
    kernel = two_phases()
    first, barrier, second = kernel.body.ops
    value = first.regions[0].ops[0].result
    store = replace(second.regions[0].ops[-1], operands=(value,))
    loop = replace(second, regions=(Region((), (store,)),))
    with pytest.raises(exc.VerifierError, match="is used before its definition"):
        verify(replace(kernel, body=Region((), (first, barrier, loop))))


def test_what_may_be_written_twice() -> None:
    """An axis of one element needs no place in the index; a scatter's indices stand for axes."""
    b = Builder("scatter")
    m, one = b.axis("m", b.size("n0")), b.axis("one", 1)
    i = b.buffer("i", I64, [m.size], [1])
    out = b.buffer("out", F32, [9], [1], "out")
    with b.grid(m, one):
        index = b.load(i, [Affine.of(m)])
        b.store(out, [Gather(0)], b.cast(index, F32), [index], checked=True)
    verify(b.build())


def test_control() -> None:
    scalar = TileType(I64)

    def body(p: Parts, yielded: torch.dtype) -> None:
        start = p.b.const(1, I64)
        flag = p.b.const(True, BOOL)
        result, inner = Value(scalar), Value(TileType(yielded))
        made = Op("const", (), {"value": 1, "dtype": yielded}, (inner,))
        branches = (Region((), (made, Op("yield", (inner,)))), Region((), (Op("yield", (start,)),)))
        p.b._ops.append(Op("if", (flag,), {}, (result,), branches))
        p.b.store(p.out, p.at, p.b.expand(p.b.cast(result, F32), [p.m, p.n]))

    verify(build(lambda p: body(p, I64)))
    with pytest.raises(exc.VerifierError, match="what the region yields"):
        verify(build(lambda p: body(p, F32)))


def test_sizes_are_expressions() -> None:
    kernel = build(copy)
    n0, n1 = kernel.sizes
    x, *others = kernel.buffers
    fine = replace(x, strides=(n1 * 2 + sympy.floor(n0 / block_symbol("m")), 1))
    verify(replace(kernel, buffers=(fine, *others)))
    with pytest.raises(exc.VerifierError, match="is no size expression"):
        verify(replace(kernel, buffers=(replace(x, strides=(True, 1)), *others)))
