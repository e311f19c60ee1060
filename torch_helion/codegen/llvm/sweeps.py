"""Prints one sweep of a region: a loop nest planned by schedule.py whose inputs and outputs may lie
in scratch.

In: a `Sweep` of regions.py, the frame (the code around it: positions, sizes, values in registers),
homes of values. Out: lines of LLVM text in the frame, values in their homes. The loops, pieces and
accumulators are those of `PhaseEmitter`; what differs is where values come from and go to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch_helion import exc
from torch_helion.codegen.llvm import atomics, memory
from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.emit import PhaseEmitter
from torch_helion.codegen.llvm.indices import check_range
from torch_helion.codegen.llvm.registers import Reg, Scope
from torch_helion.codegen.llvm.schedule import Loop, LoopAxis, PhasePlan, _Planner
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Affine, Axis

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Frame, Program


class OverwrittenError(Exception):
    """A value is read after the sweep has written another one in its place."""


class SweepPlanner(_Planner):
    """The planner of schedule.py for sinks whose operands may have homes."""

    def domain(self, op: Op) -> frozenset[str]:
        names = {n for v in op.operands for n in v.type.axis_names}
        for index in op.attrs.get("index", ()):
            if isinstance(index, Affine):
                names.update(index.axis_names)
        return frozenset(n for n in names if n in self.depth)


def plan_sweep(
    sinks: Sequence[Op],
    loops: tuple[LoopAxis, ...],
    vector: str | None,
    producer: Mapping[Value, Op],
    arrays: Mapping[Value, tuple[LoopAxis, ...]],
    grid: tuple[Axis, ...],
    blocks: Mapping[str, int],
) -> PhasePlan:
    """Schedule sinks. `arrays`: values that are read from (or kept in) scratch, by axes."""
    planner = SweepPlanner(loops, producer)
    planner.arrays.update(arrays)
    nodes = planner.build(list(sinks), 0)
    planner.place_accumulators(nodes)
    planner.carry_results(nodes)
    planner.keep_between_sweeps(nodes, 0)
    for sink in sinks:
        in_array = sink.kind == "reduce" and sink.result in planner.arrays
        if in_array and sink.result not in planner.carried and vector in sink.attrs["axes"]:
            raise exc.CodegenError(f"llvm: {sink} keeps a loop between two that it reduces")
    weight = {s: 2 + sum(planner.cost(o) + 2 for o in s.operands) for s in sinks}
    carried = frozenset(planner.carried)
    return PhasePlan(grid, blocks, loops, vector, nodes, producer, planner.arrays, carried, weight)


def pulled_values(
    sinks: Iterable[Op], producer: Mapping[Value, Op], stop: Mapping[Value, object]
) -> dict[Value, None]:
    """Everything that the sinks are computed from, down to values with homes."""
    found: dict[Value, None] = {}
    work = [v for s in sinks for v in s.operands]
    while work:
        value = work.pop()
        if value in found:
            continue
        found[value] = None
        if value not in stop:
            work += producer[value].operands
    return found


class SweepLayout(memory.ScratchLayout):
    """Arrays of one sweep: homes, and what only the sweep itself needs."""

    def __init__(self, em: SweepEmitter) -> None:
        super().__init__(em)

    def bind(self, value: Value, array: Array) -> None:
        self.pointer[value, "value"] = array.pointer
        self.strides[value] = dict(array.strides)
        self.length[value] = array.length

    def place_own(self, homes: Mapping[Value, Array]) -> None:
        em = self.em
        assert isinstance(em, SweepEmitter)
        for value, axes in em.plan.arrays.items():
            if value in homes:
                self.bind(value, homes[value])
                continue
            for part, dtype in memory.array_parts(em.plan, em.plan.producer[value]):
                array = em.program.allocate(em.frame, axes, dtype, f"keep_{value.hint}")
                self.strides[value], self.length[value] = dict(array.strides), array.length
                self.pointer[value, part] = array.pointer


class SweepEmitter(PhaseEmitter):
    """`PhaseEmitter` inside a frame of a program."""

    def __init__(
        self, program: Program, frame: Frame, plan: PhasePlan, homes: Mapping[Value, Array]
    ) -> None:
        super().__init__(
            plan,
            program.buffers,
            program.pointers,
            frame.sizes,
            program.names,
            program.math,
            program.machine,
            program.width,
            program.unroll,
            program.streaming,
        )
        self.program = program
        self.frame = frame
        self.declares = program.declares
        self.slots = program.slots
        self.scopes = [frame.scope, frame.scope]
        self.current = frame.scope
        self.index = dict(frame.index)
        self.begin = dict(frame.begin)
        self.homes = homes
        self.filled = {v for v in homes if plan.producer[v].kind == "home"}
        self.layout: SweepLayout = SweepLayout(self)
        self.overwrites: dict[Op, list[Value]] = {}
        self._written: dict[Value, dict[str, tuple[Loop | None, Scope | None]]] = {}
        self._nest: dict[str, Loop] = {}

    def find_short(self) -> dict[Op, tuple[str, Value]]:
        """None: a plan of one sweep does not show every use of a value."""
        return {}

    def run(self) -> None:
        self.layout.place_own(self.homes)
        self.nodes(self.plan.nodes)

    # -- values -----------------------------------------------------------------------------------

    def _produce(self, value: Value, scope: Scope) -> Reg:
        op = self.plan.producer[value]
        if value in self._written:
            self._check_order(value)
        if op.kind == "home" and value not in self.plan.arrays:
            raise exc.CodegenError(f"llvm: {value} has no home here")
        if op.kind in ("keep", "assign"):
            return self.get(op.operands[0])
        if op.kind == "take":
            return self._take(op, scope)
        return super()._produce(value, scope)

    def _take(self, op: Op, scope: Scope) -> Reg:
        """A value at a computed position along one axis."""
        value, index = op.operands
        axis = op.attrs["axis"]
        extent = self.program.tile_extent(self.frame, axis)
        reg = self.get(index)
        if not self.program.looped(axis):
            self._check_single(reg)
            return self.get(value)
        return memory.take(self, value, reg, axis, extent, scope)

    def _check_single(self, reg: Reg) -> None:
        """An index into a tile of one element."""
        guards = [self.piece.mask if self.piece and reg.vector else None] * len(reg.names)
        check_range(self, reg, "1", guards)

    def bounds(self, axis: LoopAxis) -> tuple[str, str]:
        """As for any tile; where no tile is cut, LLVM sees its constant length."""
        size = axis.axis.size
        if axis.block is None or not isinstance(size, int) or size % axis.block:
            return super().bounds(axis)
        lo = self.begin[axis.name]
        memo = self.frame.scope.memo
        key = ("hi", axis.name)
        if key not in memo:
            memo[key] = self.frame.let(f"add nsw i64 {lo}, {axis.block}", f"end_{axis.name}")
        return lo, memo[key]

    # -- sinks ------------------------------------------------------------------------------------

    def _sink(self, op: Op) -> None:
        if op.kind == "atomic":
            self._atomic(op)
        elif op.kind in ("keep", "assign"):
            self._keep(op)
        else:
            super()._sink(op)

    def _atomic(self, op: Op) -> None:
        reg, scope = atomics.atomic(self, op, self.current), self.current
        if not op.results:
            return
        value = op.result
        if value in self.plan.arrays:
            memory.write_part(self, value, "value", value.type.dtype, reg.names, scope)
        else:
            scope.values[value] = reg

    def _keep(self, op: Op) -> None:
        (value,) = op.operands
        reg = self.get(value)
        if op.results[0] not in self.plan.arrays:
            return  # a value without axes stays in its register
        scope = self.current
        memory.write_part(
            self, op.results[0], "value", value.type.dtype, self.widen(reg, scope), scope
        )
        for old in self.overwrites.get(op, ()):
            self._written[old] = self._where(old)

    def _where(self, value: Value) -> dict[str, tuple[Loop | None, Scope | None]]:
        """The loops over a value's axes that are open, and which turn of their pieces this is."""
        open_scopes = {s.axis: s for s in self.scopes[2:]}
        return {
            n: (self._nest.get(n), open_scopes.get(n))
            for n in value.type.axis_names
            if self.program.looped(n)
        }

    def _check_order(self, value: Value) -> None:
        then, now = self._written[value], self._where(value)
        if any(then[n][0] is not now[n][0] for n in then):
            raise OverwrittenError
        if all(then[n][1] is now[n][1] for n in then):
            raise OverwrittenError

    def _sweep(self, loop: Loop) -> None:
        before = self._nest.get(loop.axis.name)
        self._nest[loop.axis.name] = loop
        super()._sweep(loop)
        if before is None:
            self._nest.pop(loop.axis.name)
        else:
            self._nest[loop.axis.name] = before
