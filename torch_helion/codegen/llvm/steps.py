"""The function of a phase that has structure: from its number of a step to the tile it works on.

In: a phase, what a config chose. Out: the function's lines, and what the plan function says of it:
steps, cost of a step, scratch. A serial phase is one step that runs all of its tiles in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sympy

from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.memory import linear_terms
from torch_helion.codegen.llvm.program import RESERVED, Program, Settings, ceil_div
from torch_helion.codegen.llvm.schedule import PICOSECONDS_PER_STEP
from torch_helion.codegen.llvm.structure import counted
from torch_helion.codegen.llvm.text import Names, SizeEmitter
from torch_helion.ir.graph import Op
from torch_helion.ir.types import Axis, Size, begin_symbol, id_symbol

PARTS = 64
"""Parts of the grid that interleaved steps take turns in."""


@dataclass
class StructuredPhase:
    """What is known of a phase after it was printed."""

    program: Program
    tiles: Sequence[Size]
    cost: Size
    serial: bool

    def text(self) -> list[str]:
        """What a person reads: loops, sweeps, structured operations."""
        program = self.program
        head = ", ".join(f"{a.name}/{program.blocks[a.name]}" for a in program.phase.attrs["axes"])
        serial = " serial" if self.serial else ""
        return [f"grid [{head}]{serial}", *program.plans]

    def steps(self, sizes: SizeEmitter) -> str:
        if self.serial:
            return "1"
        return self._product(sizes)

    def _product(self, sizes: SizeEmitter) -> str:
        total = "1"
        for count in self.tiles:
            total = sizes.mul(total, sizes(count))
        return total

    def step_cost(self, sizes: SizeEmitter) -> str:
        one = sizes(self.cost)
        return sizes.mul(one, self._product(sizes)) if self.serial else one

    def streamable(self, names: Iterable[str]) -> frozenset[str]:
        """Those buffers whose every vector store is aligned when the buffer is."""
        return frozenset(n for n in names if self._is_aligned(n))

    def _is_aligned(self, name: str) -> bool:
        program = self.program
        ops = [
            op
            for op in program.phase.regions[0].walk()
            if op.kind in ("store", "atomic", "load") and op.attrs["buffer"] == name
        ]
        buffer = program.buffers[name]
        for op in ops:
            if op.kind != "store" or op.attrs["masked"] or op.attrs.get("stacked"):
                return False
            terms, constant = linear_terms(buffer, op.attrs["index"])
            own = [n for n in terms if program.looped(n)]
            if not own or op.access.gathered:
                return False
            vector = max(own, key=program.rank.__getitem__)
            if terms.pop(vector) != 1 or program.blocks.get(vector, program.width) % program.width:
                return False
            for step in (*terms.values(), constant):
                if sympy.sympify(step) * buffer.dtype.itemsize % 64 != 0:
                    return False
        return bool(ops)

    def scratch(self, sizes: SizeEmitter) -> str:
        return self.program.space.total(sizes)


def names_of_phase() -> Names:
    return Names(dict.fromkeys(RESERVED.split(), 1))


def print_structured(
    settings: Settings,
    phase: Op,
    order: Sequence[int] | None,
    grouping: int,
    root: Frame,
    pointers: Mapping[str, str],
    streaming: frozenset[str] = frozenset(),
) -> tuple[list[str], StructuredPhase]:
    """The lines of the function's body, and the phase's measures."""
    program = Program(settings, phase, root.sizes.names, root)
    program.pointers = dict(pointers)
    program.streaming = streaming
    axes: tuple[Axis, ...] = phase.attrs["axes"]
    tiles = [ceil_div(a.size, program.blocks[a.name]) for a in axes]
    counts = [root.sizes(t) for t in tiles]
    serial = bool(phase.attrs.get("serial"))
    lo, hi = "%begin", "%end"
    if serial:
        lo, hi = "0", "1"
        for count in counts:
            hi = root.sizes.mul(hi, count)
    interleaved = settings.options.get("pid_type") == "persistent_interleaved" and not serial
    groups = _interleaving(root, counts) if interleaved else None
    with counted(program, root, lo, hi, "1", "step") as (frame, step):
        if groups is not None:
            step = _interleaved(frame, step, *groups)
        numbers = _decode(frame, axes, counts, step, order, 1 if serial else grouping)
        for axis in axes:
            number, block = numbers[axis.name], program.blocks[axis.name]
            begin = number
            if block != 1:
                begin = frame.let(f"mul nsw i64 {number}, {block}", f"first_{axis.name}")
            program.enter_axis(frame, axis.name, begin, number)
            frame.sizes.known[begin_symbol(axis)] = begin
            frame.sizes.known[id_symbol(axis)] = number
        program.region(frame, phase.regions[0].ops, ())
        root.line(f"%static = getelementptr i8, ptr %scratch, i64 {program.space.static_offset()}")
    cost = PICOSECONDS_PER_STEP + program.known_size(frame.cost)
    lines = [*program.slots, "  store i64 0, ptr %status", *root.code]
    return lines, StructuredPhase(program, tiles, cost, serial)


def _interleaving(root: Frame, counts: Sequence[str]) -> tuple[str, str]:
    """(tiles of one of the parts, tiles of all of them); a few at the end stay where they are."""
    total = "1"
    for count in counts:
        total = root.sizes.mul(total, count)
    part = root.let(f"udiv i64 {total}, {PARTS}", "part")
    return part, root.let(f"mul nsw i64 {part}, {PARTS}", "parts")


def _interleaved(frame: Frame, step: str, part: str, all: str) -> str:
    """Neighbouring steps work far apart: a thread's run of steps then has something of each part,
    and so as much work as any other.
    """
    number = frame.let(f"urem i64 {step}, {PARTS}", "part_number")
    first = frame.let(f"mul nsw i64 {number}, {part}", "first")
    within = frame.let(f"udiv i64 {step}, {PARTS}", "within")
    moved = frame.let(f"add nsw i64 {first}, {within}", "moved")
    inside = frame.let(f"icmp slt i64 {step}, {all}", "inside")
    return frame.let(f"select i1 {inside}, i64 {moved}, i64 {step}", "step")


def _decode(
    frame: Frame,
    axes: Sequence[Axis],
    counts: Sequence[str],
    step: str,
    order: Sequence[int] | None,
    grouping: int,
) -> dict[str, str]:
    """The number of the tile of each axis in a step. `order`: axes from the slowest one;
    `grouping`: so many tiles of the slowest but one axis are walked before the last axis moves on.
    """
    places = list(order) if order and len(order) == len(axes) else list(range(len(axes)))
    numbers: dict[str, str] = {}
    rest = step
    if grouping > 1 and len(places) >= 2:
        rest = _grouped(frame, axes, counts, places, step, grouping, numbers)
        places = places[:-2]
    for position, place in enumerate(reversed(places)):
        if position == len(places) - 1:
            numbers[axes[place].name] = rest
            break
        name, count = axes[place].name, counts[place]
        numbers[name] = frame.let(f"urem i64 {rest}, {count}", f"id_{name}")
        rest = frame.let(f"udiv i64 {rest}, {count}", "rest")
    return numbers


def _grouped(
    frame: Frame,
    axes: Sequence[Axis],
    counts: Sequence[str],
    places: Sequence[int],
    step: str,
    grouping: int,
    numbers: dict[str, str],
) -> str:
    """The last two axes, the outer one of them in groups: it moves fastest within a group."""
    outer, inner = places[-2:]
    both = frame.let(f"mul nsw i64 {counts[outer]}, {counts[inner]}", "plane")
    rest = frame.let(f"udiv i64 {step}, {both}", "rest")
    within = frame.let(f"urem i64 {step}, {both}", "within")
    span = frame.let(f"mul nsw i64 {counts[inner]}, {grouping}", "span")
    group = frame.let(f"udiv i64 {within}, {span}", "group")
    first = frame.let(f"mul nsw i64 {group}, {grouping}", "first")
    left = frame.let(f"sub nsw i64 {counts[outer]}, {first}", "left")
    few = frame.let(f"icmp slt i64 {left}, {grouping}")
    size = frame.let(f"select i1 {few}, i64 {left}, i64 {grouping}", "size")
    place = frame.let(f"urem i64 {within}, {span}", "place")
    row = frame.let(f"urem i64 {place}, {size}", "row")
    numbers[axes[outer].name] = frame.let(f"add nsw i64 {first}, {row}", "id_outer")
    numbers[axes[inner].name] = frame.let(f"udiv i64 {place}, {size}", "id_inner")
    return rest
