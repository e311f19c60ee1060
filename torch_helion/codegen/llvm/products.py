"""Products of tiles inside a phase: finds operands, accumulator and loops for `dot.py`.

In: a dot, the frame. Out: a call of the product's function. An operand is a view of its buffer
where its load allows it, else its array in scratch. The accumulator is the result's own array; the
product is turned around (C^T = B^T · A^T) where the array's rows are the other way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_helion import exc
from torch_helion.codegen.llvm import finish, memory, quantized
from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.dot import (
    Accumulator,
    Batch,
    DotSpec,
    Operand,
    emit_dot,
    scratch_bytes,
)
from torch_helion.codegen.llvm.dot_plan import INTEGERS
from torch_helion.codegen.llvm.dot_plan import plan as plan_of
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.regions import RegionPlan
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.text import storage_type
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Size

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program

UNKNOWN_EXTENT = 1 << 20
PICOSECONDS_PER_PRODUCT = 17
EXACT_FOR_BYTES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Floats that hold every integer of eight bits."""


@dataclass(frozen=True)
class View:
    """Where an operand lies: pointer to its first valid element, stride of each looped axis."""

    pointer: str
    strides: dict[str, str]
    dtype: torch.dtype

    def stride(self, axis: str | None) -> str:
        return self.strides.get(axis or "", "0")


def below_conversion(producer: Callable[[Value], Op | None], value: Value) -> Value:
    """The bytes that a floating value is converted from, exactly; else the value itself."""
    inner = value
    while inner.type.dtype in EXACT_FOR_BYTES:
        op = producer(inner)
        if op is None or op.kind != "cast":
            break
        (inner,) = op.operands
    return inner if inner.type.dtype in INTEGERS else value


def view(program: Program, frame: Frame, op: Op, value: Value) -> View:
    """An operand of a dot."""
    dtype = value.type.dtype
    if value in program.homes:
        array = program.homes[value]
        return View(array.pointer, dict(array.strides), dtype)
    if not program.looped_axes(value) and not program.direct(op, value):
        slot = program.names.fresh("operand")
        program.slots.append(f"  {slot} = alloca {storage_type(dtype)}")
        frame.line(f"store {storage_type(dtype)} {program.scalar(frame, value)}, ptr {slot}")
        return View(slot, {}, dtype)
    value = program.loaded(op, value)
    load, dtype = program.producer[value], value.type.dtype
    em = program.emitter(frame)
    for name in program.looped_axes(value):
        em.index.setdefault(name, "0")
    pointer = memory.address(em, load, load.access.gathered, frame.scope, [None]).pointer
    terms, _ = memory.linear_terms(program.buffers[load.attrs["buffer"]], load.attrs["index"])
    strides = {n: frame.sizes(c) for n, c in terms.items() if program.looped(n)}
    return View(pointer, strides, dtype)


def dot(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """acc + a · b over k."""
    rest, result = op.operands[2:], op.result
    axes = program.looped_axes(result)
    if axes:
        out = _result_array(program, frame, op)
    else:
        slot = program.names.fresh("product")
        program.slots.append(f"  {slot} = alloca {storage_type(result.type.dtype)}, align 64")
        out = Array(slot, result.type.dtype, (), "1")
    if rest:
        _start(program, frame, rest[0], out)
    mark = program.space.mark()
    _product(program, frame, op, out, "false" if rest else "true")
    program.space.release(mark)
    if axes:
        program.settle(result, out, None, frame)
    else:
        type = storage_type(result.type.dtype)
        name = frame.let(f"load {type}, ptr {out.pointer}", result.hint)
        program.settle(result, None, Reg((name,), result.type.dtype), frame)
    frame.cost = frame.cost + _cost(program, op)


def _result_array(program: Program, frame: Frame, op: Op) -> Array:
    """The target, the accumulator's own array where nobody needs its old content, or a new one."""
    value = op.result
    if value in program.targets:
        return program.targets[value]
    axes = program.sorted_axes(program.looped_axes(value))
    return program.allocate(frame, axes, value.type.dtype, value.hint)


def _start(program: Program, frame: Frame, value: Value, out: Array) -> None:
    if not out.strides:
        type = storage_type(out.dtype)
        frame.line(f"store {type} {program.scalar(frame, value)}, ptr {out.pointer}")
    elif program.homes.get(value) != out:
        program.copy(frame, value, out)


def _product(program: Program, frame: Frame, op: Op, out: Array, zero: str) -> None:
    found = quantized.weight(program, op)
    if found is not None:
        quantized.emit(program, frame, op, out, found, zero)
        return
    a, b = (view(program, frame, op, v) for v in op.operands[:2])
    mine, other = (set(program.looped_axes(v)) for v in op.operands[:2])
    k = op.attrs["k"] if program.looped(op.attrs["k"]) else None
    inner = next((n for n, s in reversed(out.strides) if s == "1"), None)
    if inner is not None and inner in mine and inner not in other:
        a, b, mine, other = b, a, other, mine
    rows = [n for n, _ in out.strides if n in mine and n not in other]
    columns = [n for n, _ in out.strides if n in other and n not in mine]
    n_axis = inner if inner in columns else None
    m_axis = max(rows, key=lambda n: _known(program, n), default=None)
    if n_axis is None and m_axis is None and columns:
        m_axis, a, b = columns[-1], b, a  # rows of the result are those of b, one column
    loops = [n for n, _ in out.strides if n not in (m_axis, n_axis)]
    maxima = tuple(_known(program, n) if n else 1 for n in (m_axis, n_axis, k))
    spec = DotSpec.of(
        a.dtype,
        b.dtype,
        out.dtype,
        (maxima[0], maxima[1], maxima[2]),
        (a.stride(m_axis), a.stride(k) if k else "1"),
        (b.stride(k), b.stride(n_axis) if n_axis else "1"),
    )
    extents = tuple(program.tile_extent(frame, n) if n else "1" for n in (m_axis, n_axis, k))
    done = None
    sweep = program.finishes.get(op)
    tiled = plan_of(spec, program.machine).form in ("panels", "direct")
    if sweep is not None and tiled and m_axis is not None and n_axis is not None and not loops:
        with contextlib.suppress(exc.CodegenError):  # then the sweep is done for the whole tile
            done = finish.finish(program, frame, sweep, op.result, out, (m_axis, n_axis))
    if done is not None:
        del program.finishes[op]
    scratch = program.static(frame, scratch_bytes(spec, program.machine), "packed")
    em = program.emitter(frame)
    batch = [
        Batch(program.tile_extent(frame, n), a.stride(n), b.stride(n), out.stride(n) or "0")
        for n in loops
    ]
    emit_dot(
        em,
        program.settings.dots,
        spec,
        Operand(a.pointer, a.stride(m_axis), a.stride(k) if k else "1"),
        Operand(b.pointer, b.stride(n_axis) if n_axis else "1", b.stride(k)),
        Accumulator(out.pointer, (out.stride(m_axis) if m_axis else None) or "0"),
        (extents[0], extents[1], extents[2]),
        zero,
        scratch,
        batch,
        done,
    )


def _known(program: Program, name: str) -> int:
    """The most elements of an axis, or a large number."""
    if name in program.blocks:
        return program.blocks[name]
    size = program.axes[name].size
    return size if isinstance(size, int) else UNKNOWN_EXTENT


def _cost(program: Program, op: Op) -> Size:
    names = {n for v in op.operands[:2] for n in program.looped_axes(v)}
    total: Size = PICOSECONDS_PER_PRODUCT
    for name in sorted(names):
        total = total * program.known_size(program.loop_axis(name).extent)
    return total
