"""From tiles to loops: which loops a phase has, what each sweep computes, what is kept between
sweeps.

In: one phase of a tile-IR kernel with its block sizes applied. Out: a `PhasePlan`: a tree of loops
whose leaves are *sinks* (stores and reduction updates), the reductions' accumulators, and the
values kept in scratch between sweeps. Printing LLVM from it is mechanical (emit.py). `str(plan)` is
the text in which a person sees why a kernel is fast or slow.

Only sinks are scheduled. Every other value is computed on demand at the shallowest loop where its
axes are known, so loop-invariant code needs no pass of its own.

    softmax over n                       for m in tile:
      m0 = reduce max  x                   for n: max m0
      s  = reduce sum  e = exp(x - m0)     for n: sum s          (keeps e)
      store e / s                          for n: store          (reads e)

A loop is split where a later sink needs a finished reduction: the sweeps of one loop are as few as
the chain of reductions allows. A reduction whose outermost reduced loop encloses loops that it
keeps (column sums: rows outside, columns inside) accumulates in an array in scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch

from torch_helion import exc
from torch_helion.codegen.llvm.linear import linear
from torch_helion.codegen.llvm.text import is_bits_only
from torch_helion.ir.graph import Kernel, Op, Value
from torch_helion.ir.ops import POINTWISE
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, Size, begin_symbol, id_symbol

SEQUENTIAL_FLOAT32_LIMIT = 64
"""Float32 sums that add more terms than this (or unbounded many) one after the other are kept in
float64.
"""

PICOSECONDS_PER_OPERATION = 150
PICOSECONDS_PER_STEP = 3000
"""What the plan functions tell the launcher of a vector operation and of a grid step."""

SPILL_COST = 8
"""A value needed by two sweeps is kept in scratch when computing it again costs this much (vector
ops).
"""


@dataclass(frozen=True)
class LoopAxis:
    """One loop inside a grid step: a whole full axis, or the elements of a block axis's tile."""

    axis: Axis
    block: int | None = None

    @property
    def name(self) -> str:
        return self.axis.name

    @property
    def extent(self) -> Size:
        """Upper bound of the iterations in one grid step."""
        return self.axis.size if self.block is None else self.block


@dataclass
class Sink:
    """A store, an assertion, or the update of a reduction's accumulator."""

    op: Op


@dataclass
class Loop:
    """One sweep over `axis`. `reductions` start before it and are finished after it."""

    axis: LoopAxis
    body: list[Node] = field(default_factory=list)
    reductions: list[Op] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)
    """Values that this sweep writes to scratch for later sweeps."""


Node = Sink | Loop


@dataclass
class PhasePlan:
    """Everything that printing a phase needs."""

    grid: tuple[Axis, ...]
    blocks: Mapping[str, int]
    loops: tuple[LoopAxis, ...]
    vector: str | None
    nodes: list[Node]
    producer: Mapping[Value, Op]
    arrays: dict[Value, tuple[LoopAxis, ...]]
    """Reduction results and kept values that live in scratch, with their array axes (outer to
    inner).
    """
    carried: frozenset[Value]
    """Of those, finished reductions that loops other than their own read."""
    weight: dict[Op, int]
    """Rough vector operations of one element of each sink."""

    def __str__(self) -> str:
        head = ", ".join(f"{a.name}/{self.blocks[a.name]}" for a in self.grid)
        return "\n".join([f"grid [{head}] vector {self.vector}", *_render(self.nodes, "  ")])


def _render(nodes: Iterable[Node], pad: str) -> list[str]:
    lines = []
    for node in nodes:
        if isinstance(node, Sink):
            op = node.op
            what = op.attrs.get("buffer", "")
            if op.kind == "reduce":
                what = f"{op.attrs['fn']} -> {op.result.hint}"
            elif op.kind in ("keep", "assign"):
                what = op.operands[0].hint
            lines.append(f"{pad}{op.kind} {what}".rstrip())
        else:
            kept = f"  keeps {', '.join(v.hint for v in node.kept)}" if node.kept else ""
            lines.append(f"{pad}for {node.axis.name}:{kept}")
            lines += _render(node.body, pad + "  ")
    return lines


_PLAIN = {
    *("load", "store", "assert", "pointwise", "cast", "bitcast", "reduce", "expand"),
    *("iota", "const", "size", "rng"),
}


def is_plain(kernel: Kernel, phase: Op) -> bool:
    """Whether a phase is a straight line that one plan holds, in the terms of capture's kernels."""
    if kernel.blocks or "blocks" in phase.attrs or phase.attrs.get("serial"):
        return False
    if not _lanes_only(phase):
        return False
    tiles = {s(a) for a in phase.attrs["axes"] for s in (begin_symbol, id_symbol)}
    return all(
        op.kind in _PLAIN
        and op.attrs.get("fn") != "custom"
        and not op.attrs.get("stacked")
        and not _symbols(op) & tiles
        for op in phase.regions[0].ops
    )


def _lanes_only(phase: Op) -> bool:
    """Whether each buffer is stored to once, and loaded from before in the same places only: then
    the order of loads and stores is that of every lane by itself.
    """
    stores: dict[str, Op] = {}
    loads: dict[str, list[Op]] = {}
    for op in phase.regions[0].ops:
        if op.kind == "store":
            if op.attrs["buffer"] in stores:
                return False
            stores[op.attrs["buffer"]] = op
        elif op.kind == "load":
            if op.attrs["buffer"] in stores:
                return False
            loads.setdefault(op.attrs["buffer"], []).append(op)
    return all(
        load.attrs["index"] == store.attrs["index"]
        for name, store in stores.items()
        for load in loads.get(name, ())
    )


def _symbols(op: Op) -> set[sympy.Basic]:
    """Symbols in the sizes of an operation's attributes."""
    sizes: list[Size] = [op.attrs["expr"]] if op.kind == "size" else []
    for index in op.attrs.get("index", ()):
        if isinstance(index, Affine):
            sizes += [index.offset, *(c for _, c in index.terms)]
    return {x for s in sizes if not isinstance(s, int) for x in s.free_symbols}


def plan_phase(phase: Op, buffers: Mapping[str, Buffer], blocks: Mapping[str, int]) -> PhasePlan:
    """Schedule one grid loop. `blocks` gives the block size of each of its axes."""
    ops = phase.regions[0].ops
    grid: tuple[Axis, ...] = phase.attrs["axes"]
    producer = {r: op for op in ops for r in op.results}
    vector = choose_vector_axis(ops, buffers)
    loops = _order_loops(ops, grid, blocks, vector)
    if vector is not None and (not loops or loops[-1].name != vector):
        vector = None
    planner = _Planner(loops, producer)
    sinks = [op for op in ops if op.kind in ("store", "assert") or planner.is_loop_reduce(op)]
    sinks = planner.live(sinks)
    nodes = planner.build(sinks, 0)
    planner.place_accumulators(nodes)
    planner.carry_results(nodes)
    planner.keep_between_sweeps(nodes, 0)
    weight = {s: 2 + sum(planner.cost(o) + 2 for o in s.operands) for s in sinks}
    return PhasePlan(
        grid,
        dict(blocks),
        loops,
        vector,
        nodes,
        producer,
        planner.arrays,
        frozenset(planner.carried),
        weight,
    )


def accumulator_dtype(op: Op, sequential: bool) -> torch.dtype:
    """dtype that a reduction accumulates in. `sequential`: term by term, not in vectors along the
    reduced axis.
    """
    dtype = op.operands[0].type.dtype
    if is_bits_only(dtype):
        raise exc.CodegenError(
            f"llvm: {op.attrs['fn']} of {dtype}: half types are reduced in float32"
        )
    if not (sequential and op.attrs["fn"] == "sum" and dtype is torch.float32):
        return dtype
    extent = 1
    for axis in op.operands[0].type.axes:
        if axis.name in op.attrs["axes"]:
            if axis.kind == "block":
                continue  # a tile: a partial sum over at most a block, finished by the next phase
            if not isinstance(axis.size, int):
                return torch.float64
            extent *= axis.size
    return torch.float64 if extent > SEQUENTIAL_FLOAT32_LIMIT else dtype


# -- axes ---------------------------------------------------------------------------------------


def choose_vector_axis(ops: Sequence[Op], buffers: Mapping[str, Buffer]) -> str | None:
    """The axis along which most accesses are contiguous; the innermost one on a tie."""
    score: dict[str, float] = {}
    for op in ops:
        if op.kind not in ("load", "store"):
            continue
        score_access(op, buffers, score, lambda name: not name.endswith(".id"))
    for op in ops:
        for value in op.results:
            for axis in value.type.axes:
                score.setdefault(axis.name, 0.0)
    if not score:
        return None
    order = list(score)
    return max(order, key=lambda name: (score[name], _position(name, ops)))


def score_access(
    op: Op,
    buffers: Mapping[str, Buffer],
    score: dict[str, float],
    counts: Callable[[str], bool],
    producer: Mapping[Value, Op] | None = None,
) -> None:
    """Add to the score of each axis of a load or store that counts: more where it is contiguous.
    `producer`: who makes the index tensors, where those count too.
    """
    steps: dict[str, Size] = {}
    strides = buffers[op.attrs["buffer"]].strides
    for stride, index in zip(strides, op.attrs["index"], strict=True):
        if isinstance(index, Gather) and producer is not None:
            value = op.access.gathered[index.operand]
            for name in filter(counts, value.type.axis_names):
                form = linear(value, name, producer)
                if form is not None:
                    steps[name] = steps.get(name, 0) + stride * form.step
        if isinstance(index, Affine):
            for name, coefficient in index.terms:
                if counts(name):
                    steps[name] = steps.get(name, 0) + stride * coefficient
    for name, step in steps.items():
        # An access along more axes touches many more elements: it decides.
        weight = 16.0 ** len(steps) * (1.0 if op.kind == "load" else 1.2)
        score[name] = score.get(name, 0.0) + (weight if step == 1 else -0.5 * weight)


def _position(name: str, ops: Sequence[Op]) -> int:
    """How far inside an axis stands, on average, in the types that have it."""
    best = 0
    for op in ops:
        for value in op.results:
            names = value.type.axis_names
            if name in names:
                best = max(best, names.index(name) + 1)
    return best


def _order_loops(
    ops: Sequence[Op], grid: Sequence[Axis], blocks: Mapping[str, int], vector: str | None
) -> tuple[LoopAxis, ...]:
    used: dict[str, Axis] = {}
    for op in ops:
        for value in (*op.results, *op.operands):
            for axis in value.type.axes:
                used.setdefault(axis.name, axis)
    loops = [LoopAxis(a, blocks[a.name]) for a in grid if blocks[a.name] > 1]
    names = {a.name for a in grid}
    loops += [LoopAxis(a) for a in used.values() if a.name not in names]
    return tuple(sorted(loops, key=lambda a: a.name == vector))


# -- sweeps -------------------------------------------------------------------------------------


class _Planner:
    def __init__(self, loops: tuple[LoopAxis, ...], producer: Mapping[Value, Op]) -> None:
        self.loops = loops
        self.depth = {a.name: i for i, a in enumerate(loops)}
        self.producer = producer
        self.arrays: dict[Value, tuple[LoopAxis, ...]] = {}
        self.carried: set[Value] = set()
        self._sources: dict[Value, frozenset[Op]] = {}
        self._cost: dict[Value, int] = {}

    def is_loop_reduce(self, op: Op) -> bool:
        """Whether the reduction needs a loop (a tile of one element is its own reduction)."""
        return op.kind == "reduce" and any(n in self.depth for n in op.attrs["axes"])

    def domain(self, op: Op) -> frozenset[str]:
        """The loops that a sink stands in."""
        names = {n for v in op.operands for n in v.type.axis_names}
        if op.kind == "store":
            for index in op.attrs["index"]:
                if isinstance(index, Affine):
                    names.update(index.axis_names)
        return frozenset(n for n in names if n in self.depth)

    def sources(self, value: Value) -> frozenset[Op]:
        """The loop reductions that a value is computed from, the nearest ones only."""
        if value not in self._sources:
            op = self.producer[value]
            if self.is_loop_reduce(op):
                self._sources[value] = frozenset((op,))
            else:
                self._sources[value] = frozenset().union(*(self.sources(o) for o in op.operands))
        return self._sources[value]

    def needed(self, sink: Op) -> frozenset[Op]:
        return frozenset().union(*(self.sources(o) for o in sink.operands))

    def live(self, sinks: Sequence[Op]) -> list[Op]:
        """Stores, and the reductions that some store needs."""
        keep: set[Op] = set()
        work = [s for s in sinks if s.kind != "reduce"]
        while work:
            sink = work.pop()
            if sink not in keep:
                keep.add(sink)
                work.extend(self.needed(sink))
        return [s for s in sinks if s in keep]

    def build(self, sinks: Sequence[Op], depth: int) -> list[Node]:
        """Loops from `depth` inward for `sinks` (in program order)."""
        if not sinks:
            return []
        if depth == len(self.loops):
            return [Sink(s) for s in sinks]
        name = self.loops[depth].name
        group: dict[Op, int] = {}
        for sink in sinks:
            inside = name in self.domain(sink)
            level = 0
            for source in self.needed(sink):
                if source in group:
                    same = (
                        inside == (name in self.domain(source)) and name not in source.attrs["axes"]
                    )
                    level = max(level, group[source] + (0 if same else 1))
            group[sink] = level
        nodes: list[Node] = []
        for level in range(max(group.values()) + 1):
            members = [s for s in sinks if group[s] == level]
            inside_loop = [s for s in members if name in self.domain(s)]
            nodes += self.build([s for s in members if name not in self.domain(s)], depth + 1)
            if inside_loop:
                reductions = [
                    s for s in inside_loop if s.kind == "reduce" and self.outermost(s) == depth
                ]
                nodes.append(
                    Loop(self.loops[depth], self.build(inside_loop, depth + 1), reductions)
                )
        return nodes

    def outermost(self, reduce: Op) -> int:
        return min(self.depth[n] for n in reduce.attrs["axes"] if n in self.depth)

    # -- what lives in scratch --------------------------------------------------------------------

    def place_accumulators(self, nodes: Sequence[Node]) -> None:
        """Reductions that keep loops inside of their outermost one accumulate in arrays."""
        for node in nodes:
            if isinstance(node, Loop):
                for op in node.reductions:
                    outer = self.depth[node.axis.name]
                    kept = [
                        a for a in self.loops[outer + 1 :] if a.name in op.result.type.axis_names
                    ]
                    if kept:
                        self.arrays[op.result] = tuple(kept)
                self.place_accumulators(node.body)

    def carry_results(self, nodes: Sequence[Node]) -> None:
        """Reductions read by loops that are not around them hand their results over in arrays."""
        home: dict[Op, tuple[Loop, ...]] = {}
        readers: list[tuple[Op, tuple[Loop, ...]]] = []

        def walk(nodes: Sequence[Node], path: tuple[Loop, ...]) -> None:
            for node in nodes:
                if isinstance(node, Sink):
                    readers.append((node.op, path))
                    continue
                home.update({op: path for op in node.reductions})
                walk(node.body, (*path, node))

        walk(nodes, ())
        for sink, path in readers:
            for source in self.needed(sink):
                own = [n for n in home[source] if not any(n is p for p in path)]
                axes = [n.axis for n in own if n.axis.name in source.result.type.axis_names]
                if not axes:
                    continue
                if source.result in self.arrays and source.result not in self.carried:
                    raise exc.CodegenError(
                        f"llvm: {source} accumulates in an array inside of a loop"
                    )
                known = self.arrays.get(source.result, ())
                every = {a.name for a in (*known, *axes)}
                self.arrays[source.result] = tuple(a for a in self.loops if a.name in every)
                self.carried.add(source.result)

    def keep_between_sweeps(self, nodes: Sequence[Node], depth: int) -> None:
        """Values that a later sweep of the same loop would have to compute again at a price."""
        loops = [n for n in nodes if isinstance(n, Loop)]
        for later_index, later in enumerate(loops):
            for earlier in loops[:later_index]:
                if earlier.axis == later.axis:
                    self._keep(earlier, later)
        for loop in loops:
            self.keep_between_sweeps(loop.body, depth + 1)

    def _keep(self, earlier: Loop, later: Loop) -> None:
        there = self._pulled(earlier)
        outer = self.depth[later.axis.name]
        seen: set[Value] = set()

        def visit(value: Value) -> None:
            if value in seen or value in self.arrays:
                return
            seen.add(value)
            if self.is_loop_reduce(self.producer[value]):
                return
            if (
                value in there
                and later.axis.name in value.type.axis_names
                and self.cost(value) >= SPILL_COST
            ):
                axes = tuple(a for a in self.loops[outer:] if a.name in value.type.axis_names)
                self.arrays[value] = axes
                earlier.kept.append(value)
                return
            for operand in self.producer[value].operands:
                visit(operand)

        for sink in _sinks(later):
            for operand in sink.operands:
                visit(operand)

    def _pulled(self, loop: Loop) -> set[Value]:
        found: set[Value] = set()
        work = [o for s in _sinks(loop) for o in s.operands]
        while work:
            value = work.pop()
            if value in found or value in self.arrays:
                continue
            op = self.producer[value]
            if self.is_loop_reduce(op):
                continue
            found.add(value)
            work.extend(op.operands)
        return found

    def cost(self, value: Value) -> int:
        """Vector operations to compute a value from memory and finished reductions."""
        if value not in self._cost:
            op = self.producer[value]
            own = {
                "pointwise": lambda: POINTWISE[op.attrs["fn"]].cost,
                "rng": lambda: 60,
                "cast": lambda: 1,
            }
            price = (
                own[op.kind]()
                if op.kind in own
                else (6 if op.kind == "load" and op.operands else 0)
            )
            if not self.is_loop_reduce(op) and value.type.axes:
                price += sum(self.cost(o) for o in op.operands)
            elif not value.type.axes:
                price = 0
            self._cost[value] = price
        return self._cost[value]


def _sinks(node: Node) -> list[Op]:
    if isinstance(node, Sink):
        return [node.op]
    return [s for child in node.body for s in _sinks(child)]
