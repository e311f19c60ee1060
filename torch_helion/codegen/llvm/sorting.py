"""Sorts and top-k of lines in scratch: a stable merge sort, printed once a module and dtype.

In: a sort, the frame. Out: a call of the sorting function for each line. The function orders pairs
(key, position): half types sort by float32 keys, so that NaN is last (first when descending) and
equal values keep their order; the values themselves are fetched by position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_helion.codegen.llvm import compute
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.regions import RegionPlan
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.text import is_bits_only, is_signed, storage_type
from torch_helion.codegen.llvm.tile_ops import nest, pointer_at, read, result_array, write
from torch_helion.ir.graph import Op
from torch_helion.ir.types import Axis

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program

PICOSECONDS_PER_STEP = 3000


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype is torch.bool:
        return torch.uint8
    return torch.float32 if is_bits_only(dtype) else dtype


def sort(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """Values and positions in order along an axis."""
    (value,) = op.operands
    axis, out_axis = op.attrs["axis"], op.attrs["out_axis"] or program.axes[op.attrs["axis"]]
    results = op.results
    if not program.looped(axis):
        _sort_of_one(program, frame, op, out_axis)
        return
    em = program.emitter(frame)
    source, dtype = program.homes[value], value.type.dtype
    key = key_dtype(dtype)
    looped = [r for r in results if program.looped_axes(r)]
    outs = [result_array(program, frame, r) for r in looped]
    mark = program.space.mark()
    line = [program.loop_axis(axis)]
    keys = [program.allocate(frame, line, key, "keys") for _ in range(2)]
    orders = [program.allocate(frame, line, torch.int64, "order") for _ in range(2)]
    others = [n for n in program.looped_axes(value) if n != axis]
    extent = program.tile_extent(frame, axis)
    symbol = program.sorter(key, op.attrs["descending"])
    with nest(em, [(n, program.tile_extent(frame, n), "1") for n in others]) as at:
        with nest(em, [(axis, extent, "1")]) as here:
            x = read(em, pointer_at(em, source, {**at, **here}), dtype)
            if dtype is torch.bool:
                x = em.let(f"zext i1 {x} to i8")
            elif dtype is not key:
                x = compute.convert(em, x, dtype, key, 1)
            write(em, pointer_at(em, keys[0], here), x, key)
            write(em, pointer_at(em, orders[0], here), here[axis], torch.int64)
        arrays = ", ".join(f"ptr {a.pointer}" for a in (*keys, *orders))
        best = em.let(f"call ptr {symbol}({arrays}, i64 {extent})", "best")
        count = extent if op.attrs["k"] is None else str(op.attrs["k"])
        with nest(em, [(out_axis.name, count, "1")]) as here:
            place = em.let(f"getelementptr i64, ptr {best}, i64 {here[out_axis.name]}", "p")
            order = read(em, place, torch.int64)
            x = read(em, pointer_at(em, source, {**at, axis: order}), dtype)
            names = [x, order]
            if outs:
                for out, name in zip(outs, names, strict=True):
                    write(em, pointer_at(em, out, {**at, **here}), name, out.dtype)
            else:
                slots = [em.slot(storage_type(r.type.dtype), "first") for r in results]
                for slot, name, result in zip(slots, names, results, strict=True):
                    write(em, slot, name, result.type.dtype)
    program.space.release(mark)
    for index, result in enumerate(results):
        if outs:
            program.settle(result, outs[index], None, frame)
        else:
            name = read(em, slots[index], result.type.dtype)
            program.settle(result, None, Reg((name,), result.type.dtype), frame)
    total = PICOSECONDS_PER_STEP * 10
    for name in program.looped_axes(value):
        total = total * program.known_size(program.loop_axis(name).extent)  # type: ignore[assignment]
    frame.cost = frame.cost + total


def _sort_of_one(program: Program, frame: Frame, op: Op, out_axis: Axis) -> None:
    """Tiles of one element are in order; where `k` is 0, nothing is left of them."""
    (value,), (values, order) = op.operands, op.results
    em = program.emitter(frame)
    if program.looped(out_axis.name):  # an axis of extent 1 (or 0) of its own
        outs = [result_array(program, frame, r) for r in (values, order)]
        names = program.looped_axes(values)
        with nest(em, [(n, program.tile_extent(frame, n), "1") for n in names]) as at:
            if program.looped_axes(value):
                x = read(em, pointer_at(em, program.homes[value], at), value.type.dtype)
            else:
                x = program.scalar(frame, value)
            write(em, pointer_at(em, outs[0], at), x, value.type.dtype)
            write(em, pointer_at(em, outs[1], at), "0", torch.int64)
        program.settle(values, outs[0], None, frame)
        program.settle(order, outs[1], None, frame)
        return
    if not program.looped_axes(value):
        name = program.scalar(frame, value)
        program.settle(values, None, Reg((name,), value.type.dtype), frame)
        program.settle(order, None, Reg(("0",), torch.int64), frame)
        return
    program.settle(values, program.homes[value], None, frame)
    out = result_array(program, frame, order)
    with nest(
        em, [(n, program.tile_extent(frame, n), "1") for n in program.looped_axes(order)]
    ) as at:
        write(em, pointer_at(em, out, at), "0", torch.int64)
    program.settle(order, out, None, frame)


def sort_function(symbol: str, dtype: torch.dtype, descending: bool) -> str:
    """Bottom-up merge sort of n (key, position) pairs; gives the array that holds the positions.

    Runs of 1, 2, 4, … elements are merged from one pair of arrays into the other. The right one of
    two heads goes first only where it is strictly before the left one.
    """
    type = storage_type(dtype)
    return f"""\
define internal ptr {symbol}(ptr %k0, ptr %k1, ptr %o0, ptr %o1, i64 %n) noinline nounwind {{
entry:
  br label %pass
pass:
  %run = phi i64 [ 1, %entry ], [ %run2, %swap ]
  %ka = phi ptr [ %k0, %entry ], [ %kb, %swap ]
  %kb = phi ptr [ %k1, %entry ], [ %ka, %swap ]
  %oa = phi ptr [ %o0, %entry ], [ %ob, %swap ]
  %ob = phi ptr [ %o1, %entry ], [ %oa, %swap ]
  %sorted = icmp sge i64 %run, %n
  br i1 %sorted, label %end, label %pair
end:
  ret ptr %oa
swap:
  %run2 = shl i64 %run, 1
  br label %pass
pair:
  %lo = phi i64 [ 0, %pass ], [ %hi, %merged ]
  %more = icmp slt i64 %lo, %n
  br i1 %more, label %bounds, label %swap
bounds:
  %mid0 = add i64 %lo, %run
  %midless = icmp slt i64 %mid0, %n
  %mid = select i1 %midless, i64 %mid0, i64 %n
  %hi0 = add i64 %mid, %run
  %hiless = icmp slt i64 %hi0, %n
  %hi = select i1 %hiless, i64 %hi0, i64 %n
  br label %step
step:
  %l = phi i64 [ %lo, %bounds ], [ %l1, %put ]
  %r = phi i64 [ %mid, %bounds ], [ %r1, %put ]
  %t = phi i64 [ %lo, %bounds ], [ %t1, %put ]
  %full = icmp sge i64 %t, %hi
  br i1 %full, label %merged, label %look
merged:
  br label %pair
look:
  %lend = icmp sge i64 %l, %mid
  %rend = icmp sge i64 %r, %hi
  %any = or i1 %lend, %rend
  br i1 %any, label %one, label %both
one:
  br label %put
both:
  %pl = getelementptr {type}, ptr %ka, i64 %l
  %pr = getelementptr {type}, ptr %ka, i64 %r
  %kl = load {type}, ptr %pl
  %kr = load {type}, ptr %pr
{_before(dtype, descending)}
  br label %put
put:
  %right = phi i1 [ %lend, %one ], [ %before, %both ]
  %from = select i1 %right, i64 %r, i64 %l
  %step1 = zext i1 %right to i64
  %step0 = sub i64 1, %step1
  %l1 = add i64 %l, %step0
  %r1 = add i64 %r, %step1
  %t1 = add i64 %t, 1
  %src = getelementptr {type}, ptr %ka, i64 %from
  %key = load {type}, ptr %src
  %dst = getelementptr {type}, ptr %kb, i64 %t
  store {type} %key, ptr %dst
  %osrc = getelementptr i64, ptr %oa, i64 %from
  %place = load i64, ptr %osrc
  %odst = getelementptr i64, ptr %ob, i64 %t
  store i64 %place, ptr %odst
  br label %step
}}"""


def _before(dtype: torch.dtype, descending: bool) -> str:
    """Whether the right key is strictly before the left one."""
    type = storage_type(dtype)
    if not dtype.is_floating_point:
        sign = "s" if is_signed(dtype) else "u"
        return f"  %before = icmp {sign}{'gt' if descending else 'lt'} {type} %kr, %kl"
    high, low = ("%kr", "%kl") if descending else ("%kl", "%kr")
    return f"""\
  %less = fcmp {"ogt" if descending else "olt"} {type} %kr, %kl
  %hnan = fcmp uno {type} {high}, 0.0
  %lnum = fcmp ord {type} {low}, 0.0
  %nan = and i1 %hnan, %lnum
  %before = or i1 %less, %nan"""
