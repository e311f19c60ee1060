"""Index tensors of loads and stores: checks of their range, and those that read neighbours.

In: indices in registers, or how they are computed. Out: lines of LLVM text: the indices inside of
their dimension (the others are reported), and where an index moves in step with the vector axis, a
pointer and the lanes that are accessed, so that a vector is read as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from torch_helion.codegen.llvm.linear import Linear, linear
from torch_helion.codegen.llvm.registers import Reg, Scope
from torch_helion.codegen.llvm.text import register_type, storage_type
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Gather, Size

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter


def check_range(em: PhaseEmitter, reg: Reg, limit: str, guards: Sequence[str | None]) -> Reg:
    """Indices with those out of [0, limit) replaced by 0 and reported."""
    vector = reg.vector
    width = em.piece.width if vector and em.piece else 1
    type, flags = register_type(torch.int64, width), register_type(torch.bool, width)
    wide = em.broadcast(limit, torch.int64) if width > 1 else limit
    zero = "zeroinitializer" if width > 1 else "0"
    safe = []
    if not vector:
        guards = [_any_lane(em, guards)]
    for name, guard in zip(reg.names, guards, strict=True):
        bad = em.let(f"icmp uge {type} {name}, {wide}", "bad")
        counted = bad if guard is None else em.let(f"and {flags} {bad}, {guard}")
        any_bad = (
            em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (flags, counted))
            if width > 1
            else counted
        )
        em.set_status(1, any_bad)
        safe.append(em.let(f"select {flags} {bad}, {type} {zero}, {type} {name}", "index"))
    return Reg(tuple(safe), reg.dtype, vector)


def _any_lane(em: PhaseEmitter, guards: Sequence[str | None]) -> str | None:
    """Whether any lane of the piece counts, for an index that all of them have; None: yes."""
    known = [g for g in guards if g is not None]
    if len(known) < len(guards):
        return None
    width = em.piece.width if em.piece is not None else 1
    flags = register_type(torch.bool, width)
    total = known[0]
    for guard in known[1:]:
        total = em.let(f"or {flags} {total}, {guard}")
    if width == 1:
        return total
    return em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (flags, total))


def neighbours(
    em: PhaseEmitter, op: Op, gathered: Sequence[Value], step: Size, scope: Scope
) -> dict[int, Linear]:
    """By dimension, gathers that together read one element after the other; else none."""
    axis, piece = em.plan.vector, em.piece
    if axis is None or piece is None or piece.width == 1 or not em.in_vector_scope(scope):
        return {}
    buffer, forms = em.buffers[op.attrs["buffer"]], {}
    for dim, expr in enumerate(op.attrs["index"]):
        if isinstance(expr, Gather):
            form = linear(gathered[expr.operand], axis, em.plan.producer)
            if form is None:
                return {}
            forms[dim] = form
            step = step + buffer.strides[dim] * form.step
    moving = [f for f in forms.values() if f.step]
    return forms if moving and step == 1 and all(f.step == 1 for f in moving) else {}


def in_step(
    em: PhaseEmitter,
    op: Op,
    pointer: str,
    forms: Mapping[int, Linear],
    guards: Sequence[str | None],
) -> tuple[str, Sequence[str | None]]:
    """The pointer, and the lanes that count, where each index is a number that moves with the
    vector axis, or stays.
    """
    buffer = em.buffers[op.attrs["buffer"]]
    for dim, form in forms.items():
        total = str(form.constant)
        for factor, value in form.rest:
            name = em.get(value).names[0]
            if factor != 1:
                name = em.let(f"mul i64 {name}, {factor}", "off")
            total = name if total == "0" else em.let(f"add i64 {total}, {name}", "off")
        if op.attrs["checked"]:
            limit = em.sizes(buffer.shape[dim])
            if form.step:
                guards = _lanes_inside(em, total, limit, guards)
            else:
                reg = check_range(em, Reg((total,), torch.int64), limit, guards)
                total = reg.names[0]
        distance = em.let(f"mul i64 {total}, {em.sizes(buffer.strides[dim])}", "row")
        element = storage_type(buffer.dtype)
        pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {distance}", "p")
    return pointer, guards


def _lanes_inside(
    em: PhaseEmitter, base: str, limit: str, guards: Sequence[str | None]
) -> list[str | None]:
    """Lanes that count and whose index (base + position) is in [0, limit); others are reported."""
    assert em.piece is not None and em.plan.vector is not None
    width = em.piece.width
    found: list[str | None] = []
    flags = register_type(torch.bool, width)
    for u, guard in enumerate(guards):
        first = em.let(f"add i64 {base}, {em.index[em.plan.vector]}", "first")
        first = first if u == 0 else em.let(f"add i64 {first}, {u * width}", "first")
        low = _lane_number(em, em.let(f"sub i64 0, {first}"))
        high = _lane_number(em, em.let(f"sub i64 {limit}, {first}"))
        lanes = f"<{', '.join(f'i32 {i}' for i in range(width))}>"
        above = em.let(f"icmp sge <{width} x i32> {lanes}, {low}")
        below = em.let(f"icmp slt <{width} x i32> {lanes}, {high}")
        inside = em.let(f"and {flags} {above}, {below}", "inside")
        bad = em.let(f"xor {flags} {inside}, splat (i1 true)", "bad")
        if guard is not None:
            bad = em.let(f"and {flags} {bad}, {guard}", "bad")
            inside = em.let(f"and {flags} {inside}, {guard}", "inside")
        em.set_status(1, em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (flags, bad)))
        found.append(inside)
    return found


def _lane_number(em: PhaseEmitter, number: str) -> str:
    """An i64, at least 0 and at most the number of lanes, in all lanes as i32."""
    assert em.piece is not None
    width = em.piece.width
    number = em.call("i64", "llvm.smax.i64", ("i64", number), ("i64", "0"))
    number = em.call("i64", "llvm.smin.i64", ("i64", number), ("i64", str(width)))
    number = em.let(f"trunc i64 {number} to i32")
    one = em.let(f"insertelement <{width} x i32> poison, i32 {number}, i64 0")
    zeros = f"<{width} x i32> zeroinitializer"
    return em.let(f"shufflevector <{width} x i32> {one}, <{width} x i32> poison, {zeros}")
