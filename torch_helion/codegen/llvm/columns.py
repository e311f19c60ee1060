"""Column reductions in registers: the loop over the rows stands inside of the vector loop.

In: a sweep whose only work is to reduce its rows, lane by lane (`for r: for n: sum`). Out: the
same sums, each strip of columns accumulated in registers down all of its rows, then joined with
the array in scratch. In the order of the plan every element would cost a load and a store of its
accumulator, in float64 where there are many rows: a mean over a middle axis took 1.7 times as
long. Strips are joined with the array once in `schedule.SEQUENTIAL_FLOAT32_LIMIT` rows, so that
long float32 sums keep their precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from torch_helion.codegen.llvm import compute, memory, reductions
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.schedule import SEQUENTIAL_FLOAT32_LIMIT, Loop, Node, Sink
from torch_helion.codegen.llvm.text import register_type
from torch_helion.ir.graph import Op
from torch_helion.ir.ops import identity_of

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

REGISTERS = 16
"""Vectors that the strips of all reductions of a sweep may fill."""
HEAVY = 12
"""Vector operations of an element above which its own values need the registers."""


def fits(em: PhaseEmitter, loop: Loop) -> bool:
    """Whether a sweep does nothing but reduce its rows into arrays over the vector axis."""
    if loop.kept or len(loop.body) != 1 or not isinstance(loop.body[0], Loop):
        return False
    inner = loop.body[0]
    if inner.axis.name != em.plan.vector or inner.reductions or inner.kept:
        return False
    sinks = [n.op for n in inner.body if isinstance(n, Sink)]
    return (
        len(sinks) == len(inner.body)
        and set(sinks) == set(loop.reductions)
        and all(_is_strip(em, op) for op in sinks)
    )


def _is_strip(em: PhaseEmitter, op: Op) -> bool:
    axes = em.plan.arrays.get(op.result)
    return (
        op.attrs["fn"] in ("sum", "prod", "max", "min")
        and op.operands[0].type.dtype is not torch.bool
        and op.result not in em.plan.carried
        and axes is not None
        and [a.name for a in axes] == [em.plan.vector]
    )


def sweep(em: PhaseEmitter, loop: Loop) -> None:
    """Print the sweep; its arrays are complete afterwards."""
    for op in loop.reductions:
        em.accumulators[op] = reductions.start(em, op)
    inner = loop.body[0]
    assert isinstance(inner, Loop)
    weight = max(em.plan.weight[op] for op in loop.reductions)
    vectors = max(1, REGISTERS // len(loop.reductions) // (1 if weight <= HEAVY else 4))
    if isinstance(inner.axis.extent, int):
        vectors = max(1, min(vectors, inner.axis.extent // em.width))
        if inner.axis.block is not None:  # tiles are walked in powers of two
            vectors = 1 << (vectors.bit_length() - 1)
    saved, em.unroll = em.unroll, vectors
    em.vector_sweep(Loop(inner.axis, cast(list[Node], [Rows(loop)])))
    em.unroll = saved
    for op in loop.reductions:
        em.accumulators.pop(op).finish()


@dataclass
class Rows:
    """The loop over the rows for one strip of columns: a node inside of the vector loop."""

    loop: Loop

    def emit(self, em: PhaseEmitter) -> None:
        arrays = {op: em.accumulators[op] for op in self.loop.reductions}
        strips = {op: Strip(em, op) for op in self.loop.reductions}
        em.accumulators.update(strips)
        lo, hi = em.bounds(self.loop.axis)
        extent = self.loop.axis.extent
        if isinstance(extent, int) and extent <= SEQUENTIAL_FLOAT32_LIMIT:
            self._down(em, lo, hi)
        else:
            block = str(SEQUENTIAL_FLOAT32_LIMIT)
            with em.loop(em.slot("i64", "block"), lo, hi, block, None, "block") as first:
                end = em.let(f"add nsw i64 {first}, {block}", "block_end")
                end = em.call("i64", "llvm.smin.i64", ("i64", end), ("i64", hi))
                self._down(em, first, end)
                with em.inline_scope(em.plan.vector):
                    for strip in strips.values():
                        strip.join()
            strips = {}
        for strip in strips.values():
            strip.join()
        em.accumulators.update(arrays)

    def _down(self, em: PhaseEmitter, lo: str, hi: str) -> None:
        name = self.loop.axis.name
        inner = self.loop.body[0]
        assert isinstance(inner, Loop)
        saved, em.down = em.index.get(name), name
        with em.loop(em.slot("i64", f"at_{name}"), lo, hi, "1", name, name) as index:
            em.index[name] = index
            with em.inline_scope(em.plan.vector):
                em.nodes(inner.body)
        em.down = None
        em.restore(name, saved)


class Strip:
    """One reduction's accumulators for the vectors of the current piece."""

    flushes = False

    def __init__(self, em: PhaseEmitter, op: Op) -> None:
        assert em.piece is not None
        self.em, self.op, self.fn = em, op, op.attrs["fn"]
        self.dtype = op.operands[0].type.dtype
        self.type = register_type(self.dtype, em.piece.width)
        self.identity = compute.number(identity_of(self.fn, self.dtype), self.dtype, em.piece.width)
        self.slots = [em.slot(self.type, self.fn) for _ in range(em.piece.count)]
        self._clear()

    def _clear(self) -> None:
        for slot in self.slots:
            self.em.line(f"store {self.type} {self.identity}, ptr {slot}")

    def _combine(self, dtype: torch.dtype, a: str, b: str) -> str:
        assert self.em.piece is not None
        row = compute.POINTWISE_ROWS[reductions.COMBINE[self.fn]]
        return row(self.em, dtype, self.em.piece.width, a, b)

    def update(self, reg: Reg) -> None:
        em = self.em
        for slot, name in zip(self.slots, em.widen(reg, em.current), strict=True):
            old = em.let(f"load {self.type}, ptr {slot}", "acc")
            em.line(f"store {self.type} {self._combine(self.dtype, old, name)}, ptr {slot}")

    def join(self) -> None:
        """Combine the strip with its place in the array, and start anew."""
        em, value = self.em, self.op.result
        ((part, dtype),) = memory.array_parts(em.plan, self.op)
        strip = Reg(
            tuple(em.let(f"load {self.type}, ptr {s}") for s in self.slots), self.dtype, True
        )
        strip = compute.cast(em, strip, dtype, em.current)
        old = memory.read_part(em, value, part, dtype, em.current)
        new = [self._combine(dtype, a, b) for a, b in zip(old, strip.names, strict=True)]
        memory.write_part(em, value, part, dtype, new, em.current)
        self._clear()

    def flush(self) -> None:
        """Nothing: strips are joined with their arrays instead."""

    def finish(self) -> None:
        """Nothing: the array's own accumulator finishes."""
