"""Loops, branches and sizes bound at run time, around the sweeps of a phase.

In: a structured operation, the frame that it stands in. Out: lines of LLVM text there. Carried
values live in slots (without axes; LLVM makes registers of them) or in arrays in scratch. An array
is written in place when the plan shows that nobody reads its old content any more; else the new
value gets an array of its own and is copied at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.regions import RegionPlan, Sweep, free_values
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.text import register_type
from torch_helion.ir.graph import Op, Region, Value
from torch_helion.ir.types import begin_symbol, id_symbol

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program


@dataclass(frozen=True)
class Aim:
    """Where a value of a region should end up, and the carried value that is there before."""

    value: Value
    array: Array
    old: Value | None


# -- where values are written ---------------------------------------------------------------------


def choose_targets(program: Program, plan: RegionPlan, aims: Sequence[Aim]) -> None:
    """Let values be made where they have to end up, where nobody still reads what is there."""
    taken: set[Value] = set()
    for aim in aims:
        own = program.producer[aim.value].kind == "home"
        if aim.value not in taken and not own:
            taken.add(aim.value)
            _aim(program, plan, aim)


def _last_read(plan: RegionPlan, value: Value | None) -> int:
    return max(plan.reads.get(value, {-1}), default=-1) if value is not None else -1


def _aim(program: Program, plan: RegionPlan, aim: Aim) -> None:
    place = plan.place.get(aim.value)
    if place is None:
        return
    item = plan.items[place]
    last = _last_read(plan, aim.old)
    if isinstance(item, Sweep):
        if last <= place:
            program.targets[aim.value] = aim.array
        return
    op = item.op
    if op.kind == "dot":
        _aim_dot(program, plan, aim, op, place, last)
    elif op.kind in ("loop", "while"):
        _aim_loop(program, plan, aim, op, place, last)
    elif op.kind == "if" and last <= place:
        program.arms[op, op.results.index(aim.value)] = aim


def _only_read_by(plan: RegionPlan, value: Value, place: int) -> bool:
    return value in plan.place and plan.reads.get(value, set()) <= {place}


def _aim_dot(program: Program, plan: RegionPlan, aim: Aim, op: Op, place: int, last: int) -> None:
    a, b, *rest = op.operands
    in_place = bool(rest) and rest[0] is aim.old and aim.old not in (a, b)
    if last < place or (last == place and in_place):
        program.targets[aim.value] = aim.array
    else:
        return
    start = rest[0] if rest else aim.old
    other = start is not None and start is not aim.old and start not in (a, b)
    if other and start is not None and _only_read_by(plan, start, place):
        _aim(program, plan, Aim(start, aim.array, aim.old))


def _aim_loop(program: Program, plan: RegionPlan, aim: Aim, op: Op, place: int, last: int) -> None:
    number = op.results.index(aim.value)
    start = op.operands[number]
    free = free_values(op)
    once = op.operands.count(start) == 1 and start not in free
    if not (last < place or (last == place and start is aim.old and once)):
        return
    program.carried[op, number] = aim.array
    if start is not aim.old and once and _only_read_by(plan, start, place):
        _aim(program, plan, Aim(start, aim.array, aim.old))


def scalars_needed(program: Program, op: Op) -> list[Value]:
    """Values without axes that regions of the operation read: computed once, in front of it."""
    return [
        v
        for v in free_values(op)
        if not program.looped_axes(v) and program.producer[v].kind != "home"
    ]


# -- carried values -------------------------------------------------------------------------------


def carried_array(program: Program, frame: Frame, op: Op, number: int) -> Array:
    """The array of a carried value (or of a branch's result)."""
    key = (op, number)
    if key not in program.carried:
        value = op.results[number]
        axes = program.sorted_axes(program.looped_axes(value))
        program.carried[key] = program.allocate(frame, axes, value.type.dtype, value.hint)
    return program.carried[key]


class Carried:
    """What goes around a loop, or out of a branch: slots and arrays for an op's results."""

    def __init__(self, program: Program, frame: Frame, op: Op) -> None:
        self.program, self.frame, self.op = program, frame, op
        self.homes: list[Array | str] = []
        for number, value in enumerate(op.results):
            if program.looped_axes(value):
                self.homes.append(carried_array(program, frame, op, number))
            else:
                slot = program.names.fresh(f"carried_{value.hint}")
                program.slots.append(f"  {slot} = alloca {register_type(value.type.dtype)}")
                self.homes.append(slot)

    def start(self, values: Sequence[Value]) -> None:
        """The first values of slots (arrays were assigned before)."""
        self._store(self.frame, values)

    def _store(self, frame: Frame, values: Sequence[Value]) -> None:
        regs = [
            self.program.scalar(frame, v) if isinstance(home, str) else ""
            for v, home in zip(values, self.homes, strict=True)
        ]
        for value, home, reg in zip(values, self.homes, regs, strict=True):
            if isinstance(home, str):
                frame.line(f"store {register_type(value.type.dtype)} {reg}, ptr {home}")

    def enter(self, frame: Frame, args: Sequence[Value]) -> None:
        """Let the values be known in a frame."""
        for value, home in zip(args, self.homes, strict=True):
            if isinstance(home, str):
                dtype = value.type.dtype
                name = frame.let(f"load {register_type(dtype)}, ptr {home}", value.hint)
                self.program.settle(value, None, Reg((name,), dtype), frame)
            else:
                self.program.settle(value, home, None, frame)

    def aims(self, region: Region, olds: Sequence[Value | None]) -> list[Aim]:
        pairs = zip(region.yielded, self.homes, olds, strict=True)
        return [Aim(v, home, old) for v, home, old in pairs if isinstance(home, Array)]

    def leave(self, frame: Frame, values: Sequence[Value]) -> None:
        """Put new values where the next turn (or what follows) finds them."""
        self._store(frame, values)
        pairs = [(v, h) for v, h in zip(values, self.homes, strict=True) if isinstance(h, Array)]
        moves = [(v, h) for v, h in pairs if self.program.homes[v] != h]
        targets = [h.pointer for _, h in moves]
        ready = []
        for value, home in moves:
            if self.program.homes[value].pointer in targets:  # may be overwritten by another move
                value = self.program.duplicate(frame, value)
            ready.append((value, home))
        for value, home in ready:
            self.program.copy(frame, value, home)


# -- control --------------------------------------------------------------------------------------


@contextmanager
def counted(
    program: Program, frame: Frame, lo: str, hi: str, step: str, hint: str
) -> Iterator[tuple[Frame, str]]:
    """A loop from lo to hi; its body is the frame that this gives."""
    counter = program.names.fresh(f"at_{hint}")
    program.slots.append(f"  {counter} = alloca i64")
    index, more, following = (program.names.fresh(n) for n in (hint, "more", "next"))
    head, body, done = (program.names.fresh(f"{hint}_{part}") for part in ("head", "body", "done"))
    inner = frame.child()
    yield inner, index
    frame.line(f"store i64 {lo}, ptr {counter}")
    frame.line(f"br label {head}")
    frame.label(head)
    frame.line(f"{index} = load i64, ptr {counter}")
    frame.line(f"{more} = icmp slt i64 {index}, {hi}")
    frame.line(f"br i1 {more}, label {body}, label {done}")
    frame.label(body)
    frame.code.extend(inner.code)
    frame.line(f"{following} = add nsw i64 {index}, {step}")
    frame.line(f"store i64 {following}, ptr {counter}")
    frame.line(f"br label {head}")
    frame.label(done)


def loop(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A tile or sequential loop."""
    carried = Carried(program, frame, op)
    carried.start(op.operands)
    with program.inner():
        if op.attrs["kind"] == "sequential":
            _sequential(program, frame, op, carried)
        else:
            _tiles(program, frame, op, list(op.attrs["axes"]), carried)
    carried.enter(frame, op.results)


def _turn(program: Program, frame: Frame, op: Op, carried: Carried) -> None:
    (body,) = op.regions
    carried.enter(frame, body.args)
    program.region(frame, body.ops, body.yielded, carried.aims(body, body.args))
    carried.leave(frame, body.yielded)


def _sequential(program: Program, frame: Frame, op: Op, carried: Carried) -> None:
    symbol = op.attrs["symbol"]
    lo, hi, step = (frame.sizes(op.attrs[n]) for n in ("begin", "end", "step"))
    with counted(program, frame, lo, hi, step, str(symbol)) as (inner, index):
        inner.sizes.known[symbol] = index
        _turn(program, inner, op, carried)
    trips = program.known_size((op.attrs["end"] - op.attrs["begin"]) // op.attrs["step"])
    frame.cost = frame.cost + trips * inner.cost


def _tiles(program: Program, frame: Frame, op: Op, axes: list, carried: Carried) -> None:  # type: ignore[type-arg]
    if not axes:
        _turn(program, frame, op, carried)
        return
    axis, block = axes[0], program.blocks[axes[0].name]
    size = frame.sizes(axis.size)
    with counted(program, frame, "0", size, str(block), axis.name) as (inner, begin):
        tile = begin if block == 1 else inner.let(f"udiv i64 {begin}, {block}", f"id_{axis.name}")
        program.enter_axis(inner, axis.name, begin, tile)
        inner.sizes.known[begin_symbol(axis)] = begin
        inner.sizes.known[id_symbol(axis)] = tile
        _tiles(program, inner, op, axes[1:], carried)
    frame.cost = frame.cost + program.trips(axis) * inner.cost


def branch(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """An if."""
    condition = program.scalar(frame, op.operands[0])
    olds: dict[int, Aim] = {}
    for place in range(len(op.results)):
        aim = program.arms.get((op, place))
        if aim is not None:
            program.carried[op, place] = aim.array
            olds[place] = aim
    carried = Carried(program, frame, op)
    names = [program.names.fresh(f"if_{part}") for part in ("then", "else", "done")]
    arms = []
    for region in op.regions:
        arm = frame.child()
        before = [olds[p].old if p in olds else None for p in range(len(op.results))]
        with program.inner():
            program.region(arm, region.ops, region.yielded, carried.aims(region, before))
            carried.leave(arm, region.yielded)
        arms.append(arm)
    frame.line(f"br i1 {condition}, label {names[0]}, label {names[1]}")
    for name, arm in zip(names, arms, strict=False):
        frame.label(name)
        frame.code.extend(arm.code)
        frame.line(f"br label {names[2]}")
        frame.cost = frame.cost + arm.cost
    frame.label(names[2])
    carried.enter(frame, op.results)


def while_loop(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A while: the condition, then the body, until the condition does not hold."""
    carried = Carried(program, frame, op)
    carried.start(op.operands)
    condition, body = op.regions
    head, turn, done = (program.names.fresh(f"while_{p}") for p in ("head", "body", "done"))
    test = frame.child()
    with program.inner():
        carried.enter(test, condition.args)
        program.region(test, condition.ops, condition.yielded, [])
        proceed = program.scalar(test, condition.yielded[0])
    inner = frame.child()
    with program.inner():
        carried.enter(inner, body.args)
        program.region(inner, body.ops, body.yielded, carried.aims(body, body.args))
        carried.leave(inner, body.yielded)
    frame.line(f"br label {head}")
    frame.label(head)
    frame.code.extend(test.code)
    frame.line(f"br i1 {proceed}, label {turn}, label {done}")
    frame.label(turn)
    frame.code.extend(inner.code)
    frame.line(f"br label {head}")
    frame.label(done)
    frame.cost = frame.cost + program.unknown_trips * (test.cost + inner.cost)
    carried.enter(frame, op.results)


def bind(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A value as a symbol of sizes."""
    frame.sizes.known[op.attrs["symbol"]] = program.scalar(frame, op.operands[0])
