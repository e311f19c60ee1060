"""Prints a phase that has structure inside of its grid: loops, branches, products, scans.

In: one phase of a kernel, what a config chose. Out: the text of the phase's function, its measures
(steps, cost, scratch). `regions.py` cuts a region into sweeps and structured operations,
`sweeps.py` prints sweeps, `structure.py` loops and branches, `tile_ops.py` and `products.py` the
rest; this file holds what they share: frames, scratch, homes of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.codegen.llvm import finish, products, quantized, sorting, structure, tile_ops
from torch_helion.codegen.llvm.arrays import Array, Extent, ScratchSpace
from torch_helion.codegen.llvm.dot import DotLibrary
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.ranks import axis_ranks
from torch_helion.codegen.llvm.regions import (
    Facts,
    RegionPlan,
    RegionPlanner,
    Structured,
    Sweep,
)
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.schedule import (
    PICOSECONDS_PER_OPERATION,
    Loop,
    LoopAxis,
    Node,
    PhasePlan,
    Sink,
)
from torch_helion.codegen.llvm.sweeps import (
    OverwrittenError,
    SweepEmitter,
    plan_sweep,
    pulled_values,
)
from torch_helion.codegen.llvm.text import Names, SizeEmitter
from torch_helion.codegen.llvm.vector_math import MathLibrary
from torch_helion.ir.graph import Kernel, Op, Value, loop_blocks
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, Size, begin_symbol, block_symbol

UNKNOWN_TRIPS = 16
RESERVED = "args begin end scratch workspace status nowhere result static steps_begin steps_end"


@dataclass(frozen=True)
class Settings:
    """What the phases of one module share."""

    kernel: Kernel
    blocks: Mapping[str, int]
    """Sizes of the tunable blocks, by name."""
    width: int
    unroll: int
    math: MathLibrary
    dots: DotLibrary
    machine: Machine
    declares: set[str]
    globals: dict[str, str]
    """Constants and functions of the module beside its phases, by what they hold."""
    options: Mapping[str, Any]
    function: Callable[[Names, SizeEmitter], tuple[dict[sympy.Symbol, str], dict[str, str]]] | None
    """Loads sizes and pointers of tensors from `%args`, in another function than the phase's."""


class Program:
    """State of printing one phase function."""

    def __init__(self, settings: Settings, phase: Op, names: Names, root: Frame) -> None:
        self.settings = settings
        self.phase = phase
        self.names = names
        self.root = root
        self.math, self.machine = settings.math, settings.machine
        self.width, self.unroll = settings.width, settings.unroll
        self.declares = settings.declares
        self.streaming: frozenset[str] = frozenset()
        self.buffers: dict[str, Buffer] = {b.name: b for b in settings.kernel.buffers}
        self.pointers: dict[str, str] = {}
        self.slots: list[str] = []
        self.plans: list[str] = []
        self.unknown_trips = UNKNOWN_TRIPS
        self.depth = 0
        ops = list(phase.regions[0].walk())
        self.axes = _axes(phase)
        self.blocks = self._blocks(phase, ops)
        self.rank = axis_ranks(phase, self.buffers, self.axes, self.blocks)
        self.mutable = frozenset(o.attrs["buffer"] for o in ops if o.kind in ("store", "atomic"))
        self.space = ScratchSpace(root.sizes, self.width)
        self.producer: dict[Value, Op] = {r: o for o in ops for r in o.results}
        for op in ops:
            for region in op.regions:
                self.producer.update({a: _home(a) for a in region.args})
        self.homes: dict[Value, Array] = {}
        self.targets: dict[Value, Array] = {}
        self.carried: dict[tuple[Op, int], Array] = {}
        self.finishes: dict[Op, Sweep] = {}
        """Sweeps that may be done part by part, by the products that do them."""
        self.recognised: dict[tuple[Op, str], Any] = {}
        """What is known of products with operands that are made of something else."""
        self.arms: dict[tuple[Op, int], structure.Aim] = {}
        """Where results of branches have to end up."""

    # -- axes -------------------------------------------------------------------------------------

    def _blocks(self, phase: Op, ops: Sequence[Op]) -> dict[str, int]:
        """Elements of a tile of each block axis; no more than the axis is known to have."""
        found: dict[str, int] = {}
        self.true_blocks: dict[str, int] = {}
        for op in (phase, *(o for o in ops if o.kind == "loop")):
            for axis, block in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                number = self.block_number(block)
                self.true_blocks[axis.name] = number
                if isinstance(axis.size, int):
                    number = min(number, max(1, axis.size))
                if found.setdefault(axis.name, number) != number:
                    raise exc.CodegenError(f"llvm: two block sizes for the axis {axis.name}")
        for axis in self.axes.values():
            if axis.kind == "block" and axis.name not in found:
                if axis.tile_name not in found:
                    raise exc.CodegenError(f"llvm: no loop over the axis {axis.name}")
                found[axis.name] = found[axis.tile_name]
                self.true_blocks[axis.name] = self.true_blocks[axis.tile_name]
        return found

    def block_number(self, block: Size) -> int:
        if isinstance(block, int):
            return block
        values = {block_symbol(n): s for n, s in self.settings.blocks.items()}
        number = sympy.sympify(block).xreplace({k: sympy.Integer(v) for k, v in values.items()})
        if not number.is_Integer or number < 1:
            raise exc.CodegenError(f"llvm: block size {block} is not known when compiling")
        return int(number)

    def known_size(self, size: Size) -> Size:
        """A size in terms of the kernel's sizes; what only the run tells counts as a few."""
        if isinstance(size, int):
            return size
        known: dict[sympy.Basic, Size] = {
            block_symbol(n): sympy.Integer(s) for n, s in self.settings.blocks.items()
        }
        for axis in self.axes.values():  # on average, half of a loop lies before a tile
            if begin_symbol(axis) in size.free_symbols and begin_symbol(axis) not in known:
                known[begin_symbol(axis)] = sympy.floor(sympy.sympify(axis.size) / 2)
        size = sympy.sympify(size).xreplace(known)
        unknown = size.free_symbols - set(self.settings.kernel.sizes)
        size = size.xreplace({u: sympy.Integer(UNKNOWN_TRIPS) for u in unknown})
        if size.has(sympy.zoo, sympy.nan, sympy.oo):
            return UNKNOWN_TRIPS
        return int(size) if size.is_Integer else sympy.Max(size, 0)

    def trips(self, axis: Axis) -> Size:
        return ceil_div(self.known_size(axis.size), self.blocks[axis.name])

    def looped(self, name: str) -> bool:
        """Whether an axis is a loop inside a step: a tile of one element is not."""
        return name in self.axes and self.blocks.get(name) != 1

    def looped_axes(self, value: Value) -> tuple[str, ...]:
        return tuple(n for n in value.type.axis_names if self.looped(n))

    def loop_axis(self, name: str) -> LoopAxis:
        return LoopAxis(self.axes[name], self.blocks.get(name))

    def sorted_axes(self, names: Sequence[str] | frozenset[str]) -> tuple[LoopAxis, ...]:
        return tuple(self.loop_axis(n) for n in sorted(names, key=self.rank.__getitem__))

    def tile_extent(self, frame: Frame, name: str) -> str:
        """Valid elements of an axis in this tile."""
        key = ("extent", name)
        if key not in frame.scope.memo:
            size = frame.sizes(self.axes[name].size)
            if name in self.blocks:
                block, begin = self.blocks[name], frame.begin[name]
                axis = self.axes[name]
                if isinstance(axis.size, int) and axis.size % block == 0:
                    size = str(block)
                else:
                    left = frame.let(f"sub nsw i64 {size}, {begin}", "left")
                    self.declares.add("declare i64 @llvm.smin.i64(i64, i64)")
                    size = frame.let(
                        f"call i64 @llvm.smin.i64(i64 {left}, i64 {block})", f"n_{name}"
                    )
            frame.scope.memo[key] = size
        return frame.scope.memo[key]

    def enter_axis(self, frame: Frame, name: str, begin: str, number: str) -> None:
        """Let a frame know the tile of a block axis (and of its aliases)."""
        for axis in self.axes.values():
            if axis.tile_name == name:
                frame.begin[axis.name] = frame.index[axis.name] = begin
                frame.index[axis.id_name] = number

    # -- scratch ----------------------------------------------------------------------------------

    def allocate(
        self,
        frame: Frame,
        axes: Sequence[LoopAxis],
        dtype: torch.dtype,
        hint: str,
        unpadded: bool = False,
    ) -> Array:
        extents = [Extent(a.name, self._bound(a)) for a in axes]
        shape = self.space.shape(extents, unpadded)
        pointer, strides, length = self._reserve(frame, shape, dtype.itemsize, hint)
        names = (a.name for a in axes)
        return Array(pointer, dtype, tuple(zip(names, strides, strict=True)), length)

    def _bound(self, axis: LoopAxis) -> Size:
        """The most elements of an axis, from what the kernel's arguments tell."""
        extent = axis.extent
        free = set() if isinstance(extent, int) else extent.free_symbols
        known = set(self.settings.kernel.sizes)
        blocks = {block_symbol(n): sympy.Integer(s) for n, s in self.settings.blocks.items()}
        if free - known:
            extent = sympy.sympify(extent).xreplace(blocks)
            if extent.free_symbols - known:
                raise exc.CodegenError(
                    f"llvm: a tile along {axis.name} of {extent} elements is not kept in scratch"
                )
            return int(extent) if extent.is_Integer else extent
        return extent

    def _reserve(
        self, frame: Frame, shape: tuple[Size, ...], itemsize: int, hint: str
    ) -> tuple[str, list[str], str]:
        """(pointer, strides, length) of an array."""
        if all(isinstance(s, int) for s in shape):
            length, strides = 1, []
            for extent in reversed(shape):
                strides.append(str(length))
                length *= extent
            pointer = self.static(frame, length * itemsize, hint)
            return pointer, strides[::-1], str(length)
        sizes = self.root.sizes
        offset = self.space.dynamic_offset(shape, itemsize)
        step, strides = "1", []
        for extent in reversed(shape):
            strides.append(step)
            step = sizes.mul(step, sizes(extent))
        pointer = self.names.fresh(hint)
        self.root.line(f"{pointer} = getelementptr i8, ptr %scratch, i64 {offset}")
        return pointer, strides[::-1], step

    def static(self, frame: Frame, size: int, hint: str) -> str:
        """A pointer to so many bytes of scratch."""
        offset = self.space.reserve(max(size, 1))
        return frame.let(f"getelementptr i8, ptr %static, i64 {offset}", hint)

    # -- emitting ---------------------------------------------------------------------------------

    def emitter(self, frame: Frame) -> SweepEmitter:
        """An emitter for code that no plan describes."""
        plan = PhasePlan((), {}, (), None, [], self.producer, {}, frozenset(), {})
        return SweepEmitter(self, frame, plan, {})

    def scalar(self, frame: Frame, value: Value) -> str:
        """The register of a value without axes."""
        arrays = self._arrays_of([Op("keep", (value,))])
        axes = {v: self.sorted_axes(self.looped_axes(v)) for v in arrays}
        plan = PhasePlan((), {}, (), None, [], self.producer, axes, frozenset(), {})
        em = SweepEmitter(self, frame, plan, arrays)
        em.layout.place_own(arrays)
        return em.get(value).names[0]

    def facts(self) -> Facts:
        producer = self.producer
        return Facts(
            producer,
            lambda v: producer[v].kind == "home",
            self.looped,
            self.rank,
            self.mutable,
            self.direct,
        )

    def loaded(self, op: Op, value: Value) -> Value:
        """What a dot reads for an operand: bytes below their conversion, which is exact."""
        other = op.operands[1 if value is op.operands[0] else 0]
        inner = products.below_conversion(self.producer.get, value)
        if inner is value or products.below_conversion(self.producer.get, other) is not other:
            return value
        return inner

    def direct(self, op: Op, value: Value) -> bool:
        """Whether a dot can read an operand where its load would."""
        if quantized.weight(self, op) is not None:
            return True
        load = self.producer[self.loaded(op, value)]
        if load.kind != "load" or load.attrs["buffer"] in self.mutable:
            return False
        if load.attrs["masked"] or load.attrs["checked"] or load.attrs.get("stacked"):
            return False
        gathered = load.access.gathered
        return not any(self.looped_axes(v) for v in gathered) and all(
            isinstance(e, (Affine, Gather)) for e in load.attrs["index"]
        )

    @contextmanager
    def inner(self) -> Any:
        """What a nested region keeps ends with it."""
        homes, producer, targets = dict(self.homes), dict(self.producer), dict(self.targets)
        mark = self.space.mark()
        self.depth += 1
        yield
        self.depth -= 1
        self.space.release(mark)
        self.homes, self.producer, self.targets = homes, producer, targets

    def settle(self, value: Value, array: Array | None, reg: Reg | None, frame: Frame) -> None:
        """Give a value its home."""
        if array is not None:
            self.homes[value] = array
        if reg is not None:
            frame.scope.values[value] = reg
        self.producer[value] = _home(value)

    def region(
        self,
        frame: Frame,
        ops: Sequence[Op],
        results: Sequence[Value],
        aims: Sequence[structure.Aim] = (),
    ) -> None:
        """Print the operations of a region; afterwards its results have homes."""
        plan = RegionPlanner(self.facts(), ops, results).plan()
        structure.choose_targets(self, plan, aims)
        last = finish.sweep_of(self, plan, results)
        if last is not None:
            product, sweep = plan.items[last - 1 :]
            assert isinstance(product, Structured) and isinstance(sweep, Sweep)
            self.finishes[product.op] = sweep
        for number, item in enumerate(plan.items):
            if isinstance(item, Sweep):
                if number != last or item in self.finishes.values():  # else it is done
                    self.sweep(frame, item)
            else:
                self.structured(frame, item.op, plan, number)

    def structured(self, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
        for value in structure.scalars_needed(self, op):
            self.scalar(frame, value)
        row = STRUCTURED.get(op.kind if op.kind != "reduce" else "custom")
        if op.kind == "scan" and op.attrs["fn"] == "custom":
            row = STRUCTURED["custom"]
        if row is None:
            raise exc.CodegenError(f"llvm: no code for {op.kind}")
        self.plans.append(f"{'  ' * (self.depth + 1)}{describe(op)}")
        row(self, frame, op, plan, number)

    # -- sweeps -----------------------------------------------------------------------------------

    def sweep(self, frame: Frame, item: Sweep) -> None:
        self.emit_sinks(frame, [s for s in item.sinks if not self._is_there(frame, s)])

    def emit_sinks(self, frame: Frame, sinks: Sequence[Op]) -> None:
        """One loop nest for all, or one for each where one nest cannot hold them."""
        try:
            plan = self._plan(sinks)
        except exc.CodegenError:
            for sink in sinks:
                self._alone(frame, sink)
            return
        self._emit(frame, sinks, plan)

    def _is_there(self, frame: Frame, sink: Op) -> bool:
        """Whether a carried value starts in its own array already."""
        if sink.kind != "assign" or "owner" not in sink.attrs:
            return False
        array = structure.carried_array(self, frame, sink.attrs["owner"], sink.attrs["number"])
        return self.homes.get(sink.operands[0]) == array

    def _alone(self, frame: Frame, sink: Op) -> None:
        """A sink in a loop nest of its own; a reduction's result goes through scratch."""
        sinks = [sink]
        if sink.kind == "reduce" and self.looped_axes(sink.result):
            value = sink.result
            sinks.append(Op("keep", (value,), {}, (Value(value.type, value.hint),)))
        if sink.kind == "keep" and sink.operands[0] in self.homes:
            return
        self._emit(frame, sinks, self._plan(sinks))

    def _plan(self, sinks: Sequence[Op]) -> PhasePlan:
        names = frozenset().union(*(self._domain(s) for s in sinks))
        loops = self._loops(sinks, names)
        vector = loops[-1].name if loops and not _is_short(loops[-1]) else None
        producer = dict(self.producer)
        arrays = {v: self.sorted_axes(self.looped_axes(v)) for v in self._arrays_of(sinks)}
        for sink in sinks:
            if sink.kind in ("keep", "assign", "atomic"):
                for result in sink.results:
                    producer[result] = sink
                    if self.looped_axes(result):
                        arrays[result] = self.sorted_axes(self.looped_axes(result))
        grid: tuple[Axis, ...] = self.phase.attrs["axes"]
        return plan_sweep(sinks, loops, vector, producer, arrays, grid, self.blocks)

    def _loops(self, sinks: Sequence[Op], names: frozenset[str]) -> tuple[LoopAxis, ...]:
        """The loops of a sweep: the vector axis last, axes that are reduced just outside of it."""
        vector = max(names, key=self.rank.__getitem__, default=None)
        reduced = {n for s in sinks if s.kind == "reduce" for n in s.attrs["axes"]}
        order = sorted(names, key=lambda n: (n == vector, n in reduced, self.rank[n]))
        return tuple(self.loop_axis(n) for n in order)

    def _domain(self, sink: Op) -> frozenset[str]:
        names = {n for v in sink.operands for n in v.type.axis_names}
        for index in sink.attrs.get("index", ()):
            if isinstance(index, Affine):
                names.update(index.axis_names)
        return frozenset(n for n in names if self.looped(n))

    def _arrays_of(self, sinks: Sequence[Op]) -> dict[Value, Array]:
        """Homes in scratch that the sinks read."""
        stop = {v: True for v, op in self.producer.items() if op.kind == "home"}
        found = pulled_values(sinks, self.producer, stop)
        return {v: self.homes[v] for v in found if v in self.homes}

    def _emit(self, frame: Frame, sinks: Sequence[Op], plan: PhasePlan) -> None:
        homes = self._arrays_of(sinks)
        kept: dict[Value, Array] = {}
        overwrites: dict[Op, list[Value]] = {}
        for sink in sinks:
            if sink.kind not in ("keep", "assign", "atomic") or not sink.results:
                continue
            value = sink.operands[0] if sink.kind == "keep" else sink.results[0]
            if self.looped_axes(value):
                array, old = self._target(frame, sink, value)
                homes[sink.results[0]] = kept[value] = array
                if old:
                    overwrites[sink] = old
        try:
            self._print(frame, plan, homes, overwrites)
        except OverwrittenError:
            for sink in overwrites:
                value = sink.operands[0]
                self.targets.pop(value, None)
                homes[sink.results[0]] = kept[value] = self.allocate(
                    frame, self.sorted_axes(self.looped_axes(value)), value.type.dtype, value.hint
                )
            self._print(frame, plan, homes, {})
        for sink in sinks:
            if sink.kind == "keep" or (sink.kind == "atomic" and sink.results):
                value = sink.operands[0] if sink.kind == "keep" else sink.results[0]
                self.settle(value, kept.get(value), None, frame)
            elif sink.kind == "reduce" and not self.looped_axes(sink.result):
                self.settle(sink.result, None, None, frame)
        frame.cost = frame.cost + plan_cost(plan, self)

    def _target(self, frame: Frame, sink: Op, value: Value) -> tuple[Array, list[Value]]:
        """Where a sink writes, and the values that it replaces there."""
        if "owner" in sink.attrs:
            owner, number = sink.attrs["owner"], sink.attrs["number"]
            return structure.carried_array(self, frame, owner, number), []
        if sink.kind == "assign":
            return sink.attrs["array"], []
        aim = self.targets.get(value)
        if aim is not None:
            return aim, [v for v, a in self.homes.items() if a.pointer == aim.pointer]
        axes = self.sorted_axes(self.looped_axes(value))
        return self.allocate(frame, axes, value.type.dtype, value.hint), []

    def _print(
        self,
        frame: Frame,
        plan: PhasePlan,
        homes: Mapping[Value, Array],
        overwrites: Mapping[Op, list[Value]],
    ) -> None:
        mark, lines = self.space.mark(), len(frame.code)
        scope = frame.scope
        values, splats, memo = dict(scope.values), dict(scope.splats), dict(scope.memo)
        known = dict(frame.sizes.known)
        em = SweepEmitter(self, frame, plan, homes)
        em.overwrites = dict(overwrites)
        try:
            em.run()
        except OverwrittenError:
            del frame.code[lines:]
            scope.values, scope.splats, scope.memo = values, splats, memo
            frame.sizes.known = known
            raise
        finally:
            self.space.release(mark)
        pad = "  " * self.depth
        self.plans += [f"{pad}{line}" for line in str(plan).split("\n")[1:]]

    def copy(self, frame: Frame, value: Value, array: Array) -> None:
        """Write a value into an array."""
        sink = Op("assign", (value,), {"array": array}, (Value(value.type, value.hint),))
        self._emit(frame, [sink], self._plan([sink]))

    def duplicate(self, frame: Frame, value: Value) -> Value:
        """A value of the same content in an array of its own."""
        axes = self.sorted_axes(self.looped_axes(value))
        array = self.allocate(frame, axes, value.type.dtype, value.hint)
        self.copy(frame, value, array)
        twin = Value(value.type, value.hint)
        self.settle(twin, array, None, frame)
        return twin

    # -- what stands outside of the function ------------------------------------------------------

    def text_constant(self, text: str) -> str:
        """The symbol of a C string."""
        data = text.encode() + b"\0"
        key = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data)
        texts = self.settings.globals
        if key not in texts:
            name = f"@text{len(texts)}"
            texts[key] = f'{name} = private constant [{len(data)} x i8] c"{key}"'
        return texts[key].split(" ")[0]

    def sorter(self, dtype: torch.dtype, descending: bool) -> str:
        """The symbol of a sorting function."""
        way = "down" if descending else "up"
        symbol = f"@sort_{str(dtype).removeprefix('torch.')}_{way}"
        self.settings.globals.setdefault(symbol, sorting.sort_function(symbol, dtype, descending))
        return symbol


def _home(value: Value) -> Op:
    return Op("home", (), {}, (value,))


def _axes(phase: Op) -> dict[str, Axis]:
    found: dict[str, Axis] = {a.name: a for a in phase.attrs["axes"]}
    for op in phase.regions[0].walk():
        own = [*(op.attrs["axes"] if op.kind == "loop" else ())]
        args = (v for region in op.regions for v in region.args)
        for value in (*op.results, *op.operands, *args):
            own += value.type.axes
        for axis in own:
            found.setdefault(axis.name, axis)
    return found


def _is_short(axis: LoopAxis) -> bool:
    return isinstance(axis.extent, int) and axis.extent <= 2


def describe(op: Op) -> str:
    """One line about a structured operation for the text of a plan."""
    what = op.attrs.get("fn") or op.attrs.get("k") or op.attrs.get("axis") or ""
    if op.kind == "loop":
        what = ", ".join(a.name for a in op.attrs["axes"]) or str(op.attrs["symbol"])
    results = ", ".join(r.hint for r in op.results)
    return f"{op.kind} {what}{f' -> {results}' if results else ''}".replace("  ", " ")


def plan_cost(plan: PhasePlan, program: Program) -> Size:
    """Picoseconds of one run of a sweep."""

    def cost(nodes: Sequence[Node]) -> Size:
        total: Size = 0
        for node in nodes:
            if isinstance(node, Sink):
                total = total + PICOSECONDS_PER_OPERATION * plan.weight[node.op]
            else:
                total = total + trips(node) * cost(node.body)
        return total

    def trips(loop: Loop) -> Size:
        extent = program.known_size(loop.axis.extent)
        if loop.axis.name != plan.vector:
            return extent
        return ceil_div(extent, program.width)

    return cost(plan.nodes)


def ceil_div(size: Size, number: int) -> Size:
    """How many tiles of `number` elements a size has."""
    if isinstance(size, int):
        return -(-size // number)
    return size if number == 1 else sympy.ceiling(size / number)


STRUCTURED: dict[str, Callable[..., None]] = {
    "loop": structure.loop,
    "if": structure.branch,
    "while": structure.while_loop,
    "bind": structure.bind,
    "dot": products.dot,
    "scan": tile_ops.scan,
    "custom": tile_ops.custom,
    "sort": sorting.sort,
    "reshape": tile_ops.reshape,
    "reaxis": tile_ops.reaxis,
    "print": tile_ops.show,
    "atomic": tile_ops.atomic,
}
