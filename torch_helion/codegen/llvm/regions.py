"""What a region of structured control flow becomes: sweeps, and the ops that stand between them.

In: the operations of one region (the body of a loop, an arm of an if, a whole grid step), what is
known of the values around it. Out: a `RegionPlan`: a list of items in the order of execution. An
item is a *sweep* (sinks that one loop nest serves: stores, assertions, reductions, and values that
later items read from scratch) or one *structured* operation (a loop, a dot, a scan, …) that has
code of its own. Values that no item keeps are computed where they are read, again if need be. Pure:
no text is made here.

Sinks go into the first sweep that serves them: one whose vector axis is theirs, after everything
that they must wait for. A value crosses from one item to another in scratch when it is a result of
a reduction, when an operation reads it as an array, or when computing it again costs too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch_helion.codegen.llvm.schedule import SPILL_COST
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import POINTWISE
from torch_helion.ir.types import Affine

NESTED_SPILL_COST = 4
"""A value that an inner loop reads is kept in scratch when computing it costs this much."""

_STRUCTURED = frozenset(
    {"loop", "if", "while", "bind", "dot", "scan", "sort", "reshape", "reaxis", "print"}
)
_SINKS = frozenset({"store", "assert", "atomic", "keep", "assign"})


def is_structured(op: Op) -> bool:
    """Whether the operation has code of its own between sweeps."""
    if op.kind == "atomic":
        return bool(op.results)
    return op.kind in _STRUCTURED or is_custom(op)


def is_custom(op: Op) -> bool:
    return op.kind in ("reduce", "scan") and op.attrs["fn"] == "custom"


def nested_ops(op: Op) -> Iterator[Op]:
    for region in op.regions:
        yield from region.walk()


def free_values(op: Op) -> dict[Value, None]:
    """Values that the regions of `op` read and do not define."""
    inside: set[Value] = set()
    for region in op.regions:
        inside.update(region.args)
    for inner in nested_ops(op):
        inside.update(inner.results)
        for region in inner.regions:
            inside.update(region.args)
    return {v: None for o in nested_ops(op) for v in o.operands if v not in inside}


@dataclass(eq=False)
class Sweep:
    """One loop nest: sinks in program order, vectors along `vector`."""

    sinks: list[Op] = field(default_factory=list)
    vector: str | None = None
    axes: frozenset[str] = frozenset()


@dataclass(eq=False)
class Structured:
    op: Op


Item = Sweep | Structured


@dataclass
class RegionPlan:
    items: list[Item]
    keeps: dict[Value, Op]
    """The sink that keeps a value, by value."""
    reads: dict[Value, set[int]]
    """Items that read a value that lives in scratch or in a register between items."""
    place: dict[Value, int]
    """The item that gives a value its home."""


@dataclass(frozen=True)
class Facts:
    """What the planner asks about the program around it."""

    producer: Mapping[Value, Op]
    homes: Callable[[Value], bool]
    """Whether a value is in scratch or a register already when the region begins."""
    looped: Callable[[str], bool]
    """Whether an axis is a loop inside a step (a tile of one element is not)."""
    rank: Mapping[str, int]
    """Loops nest in this order; the last one of a sweep is its vector axis."""
    mutable: frozenset[str]
    """Buffers that the phase writes to: loads of them keep their place in the program."""
    direct: Callable[[Op, Value], bool]
    """Whether a dot reads the operand from its buffer."""

    def axes(self, value: Value) -> tuple[str, ...]:
        return tuple(n for n in value.type.axis_names if self.looped(n))


def array_operands(op: Op, facts: Facts) -> list[Value]:
    """Operands that the operation reads as arrays in scratch."""
    if op.kind == "dot":
        return [v for v in op.operands[:2] if not facts.direct(op, v)] + list(op.operands[2:])
    if op.kind in ("scan", "sort", "reshape", "reaxis", "print") or is_custom(op):
        return list(op.operands)
    return [op.operands[0]] if op.kind == "take" else []


class RegionPlanner:
    """Plans one region. `results`: what it yields (read as arrays at its end)."""

    def __init__(self, facts: Facts, ops: Sequence[Op], results: Sequence[Value]) -> None:
        self.facts = facts
        self.ops = [op for op in ops if op.kind != "yield"]
        self.results = results
        self.items: list[Item] = []
        self.run = 0  # first item that a new sink may join
        self.keeps: dict[Value, Op] = {}
        self.place: dict[Value, int] = {}
        self.written: dict[str, int] = {}  # buffer -> last item that writes it
        self.read: dict[str, int] = {}
        self.reads: dict[Value, set[int]] = {}
        self._cost: dict[Value, int] = {}
        self._inside = {r for op in self.ops for r in op.results}

    def plan(self) -> RegionPlan:
        live = self._live()
        for op in self.ops:
            if is_structured(op):
                self._structured(op)
            elif op.kind in _SINKS:
                self._sink(op)
            elif self.is_loop_reduce(op):
                if op.result in live:
                    self._sink(op)
            elif op.kind == "load" and op.attrs["buffer"] in self.facts.mutable:
                if op.result in live:
                    self.keep(op.result)
            elif op.kind == "take" and op.result in live:
                self.keep(op.operands[0])
        for value in self.results:
            if self.facts.axes(value):
                self.keep(value, late=True)
        self._cross()
        for value in self.results:
            self._note(value, len(self.items))
        self._drop_unread_loads()
        return RegionPlan(self.items, self.keeps, self.reads, self.place)

    # -- sinks ------------------------------------------------------------------------------------

    def is_loop_reduce(self, op: Op) -> bool:
        return (
            op.kind == "reduce"
            and not is_custom(op)
            and any(self.facts.looped(n) for n in op.attrs["axes"])
        )

    def _live(self) -> set[Value]:
        """Values that something with an effect needs."""
        found: set[Value] = set()
        work = list(self.results)
        for op in self.ops:
            if op.kind in _SINKS or is_structured(op):
                work += [*op.operands, *free_values(op)]
        while work:
            value = work.pop()
            if value not in found:
                found.add(value)
                if value in self._inside:
                    work += self.facts.producer[value].operands
        return found

    def domain(self, op: Op) -> frozenset[str]:
        names = {n for v in op.operands for n in v.type.axis_names}
        for index in op.attrs.get("index", ()):
            if isinstance(index, Affine):
                names.update(index.axis_names)
        return frozenset(n for n in names if n in self.facts.rank and self.facts.looped(n))

    def vector(self, op: Op) -> str | None:
        return max(self.domain(op), key=self.facts.rank.__getitem__, default=None)

    def _sink(self, op: Op, late: bool = False) -> int:
        """Put a sink into a sweep; the number of its item. `late`: the last one that serves it."""
        floor = 0 if op.kind == "keep" and not self._pinned(op.operands[0]) else self.run
        first, joins = self._after(op, floor)
        number = self._choose(op, first, joins, late)
        item = self.items[number]
        assert isinstance(item, Sweep)
        item.sinks.append(op)
        item.axes |= self.domain(op)
        item.vector = max(item.axes, key=self.facts.rank.__getitem__, default=None)
        for result in op.results if op.kind == "reduce" else ():
            self.place[result] = number
        self._touch(op, number)
        return number

    def _choose(self, op: Op, first: int, joins: bool, late: bool) -> int:
        """An existing sweep from `first` on that serves the sink, or a new one."""
        vector, domain = self.vector(op), self.domain(op)
        numbers = range(first, len(self.items))
        for number in reversed(numbers) if late else numbers:
            item = self.items[number]
            if not isinstance(item, Sweep):
                continue
            if item.vector == vector or item.vector is None or vector is None:
                return number
            if joins and number == first and domain <= item.axes - {item.vector}:
                return number
        self.items.append(Sweep())
        return len(self.items) - 1

    def _after(self, op: Op, floor: int) -> tuple[int, bool]:
        """The first item that a sink may stand in, and whether it reads a reduction of that one."""
        first, joins = floor, False
        for value, strict in self._leaves(op.operands).items():
            at = self.place.get(value)
            if at is None or at + strict < floor:
                continue
            later = at + strict
            if later > first:
                first, joins = later, later == at
            elif later == at == first:
                joins = True
        for buffer, writes in self._accesses(op):
            hazards = [self.written, self.read] if writes else [self.written]
            for table in hazards:
                if table.get(buffer, -1) >= first:
                    first, joins = table[buffer] + 1, False
        return first, joins

    def _leaves(self, values: Iterable[Value]) -> dict[Value, bool]:
        """What values of this region are computed from: reductions, arrays (True: a sweep that
        makes it must end first), loads that keep their place.
        """
        found: dict[Value, bool] = {}
        seen: set[Value] = set()
        work = list(values)
        while work:
            value = work.pop()
            if value in seen or value not in self._inside:
                continue
            seen.add(value)
            op = self.facts.producer[value]
            if self.is_loop_reduce(op) or is_structured(op):
                found.setdefault(value, is_structured(op))
                continue
            if op.kind == "take" and op.operands[0] in self.keeps:
                found[op.operands[0]] = True
            if self._pinned(value):
                found.setdefault(value, False)
                continue
            work += op.operands
        return found

    def _accesses(self, op: Op) -> Iterator[tuple[str, bool]]:
        """Buffers that the phase writes to and that a sink touches, and whether it writes them."""
        if op.kind in ("store", "atomic"):
            yield op.attrs["buffer"], True
        elif op.kind == "keep":
            source = self.facts.producer[op.operands[0]]
            if source.kind == "load" and source.attrs["buffer"] in self.facts.mutable:
                yield source.attrs["buffer"], False

    def _touch(self, op: Op, number: int) -> None:
        for buffer, writes in self._accesses(op):
            table = self.written if writes else self.read
            table[buffer] = max(table.get(buffer, -1), number)

    def keep(self, value: Value, late: bool = False) -> None:
        """Make sure that a value is in scratch (or a register) for later items."""
        if self.facts.homes(value) or value in self.keeps:
            return
        op = self.facts.producer[value]
        if is_structured(op) and value in self._inside:
            return
        if not self.facts.axes(value) and not self._pinned(value):
            return
        if self.is_loop_reduce(op) and self.place.get(value, self.run) < self.run:
            self._export(value, self.place[value])
            return
        sink = Op("keep", (value,), {}, (Value(value.type, value.hint),), (), op.origin)
        self.keeps[value] = sink
        number = self._sink(sink, late)
        if not self.is_loop_reduce(op):
            self.place[value] = number

    def _pinned(self, value: Value) -> bool:
        op = self.facts.producer[value]
        return op.kind == "load" and op.attrs["buffer"] in self.facts.mutable

    # -- structured operations --------------------------------------------------------------------

    def _structured(self, op: Op) -> None:
        for value in self._needs(op):
            self.keep(value)
        if op.kind in ("loop", "while"):
            for number, value in enumerate(op.operands):
                if self.facts.axes(value):
                    attrs = {"owner": op, "number": number}
                    self._sink(Op("assign", (value,), attrs, (Value(value.type, value.hint),)))
        number = len(self.items)
        self.items.append(Structured(op))
        self.run = number + 1
        self.place.update(dict.fromkeys(op.results, number))
        for inner in (op, *nested_ops(op)):
            if inner.kind in ("load", "store", "atomic"):
                self._touch_inner(inner, number)

    def _touch_inner(self, op: Op, number: int) -> None:
        buffer = op.attrs["buffer"]
        if buffer in self.facts.mutable:
            (self.read if op.kind == "load" else self.written)[buffer] = number

    def _needs(self, op: Op) -> list[Value]:
        """Values that must be in scratch before a structured operation."""
        needs = array_operands(op, self.facts)
        inside = free_values(op)
        if not inside:
            return needs
        for inner in nested_ops(op):
            needs += [v for v in array_operands(inner, self.facts) if v in inside]
            needs += [v for v in inner.operands if v in inside and inner.kind == "yield"]
        loops = op.kind != "if"
        limit = NESTED_SPILL_COST if loops else SPILL_COST
        needs += [v for v in inside if self.cost(v) >= limit]
        return needs

    # -- what crosses -----------------------------------------------------------------------------

    def _cross(self) -> None:
        """Find what items read of one another, and keep what is dear to compute again."""
        pulled: dict[Value, int] = {}
        for number, item in enumerate(self.items):
            roots = self._roots(item)
            seen: set[Value] = set()
            while roots:
                value = roots.pop()
                if value in seen:
                    continue
                seen.add(value)
                if self._arrives(value, number):
                    self._note(value, number)
                    continue
                earlier = pulled.get(value, number)
                dear = earlier < number and self.cost(value) >= SPILL_COST
                if dear and self._export(value, earlier):
                    self._note(value, number)
                    continue
                pulled.setdefault(value, number)
                roots += self.facts.producer[value].operands

    def _note(self, value: Value, number: int) -> None:
        """Item `number` reads the value, and with it what may lie in the same array."""
        self.reads.setdefault(value, set()).add(number)
        op = self.facts.producer[value]
        shared = op.kind in ("reaxis", "reshape", "scan", "sort") or is_custom(op)
        if value in self._inside and shared:
            for operand in op.operands:
                self._note(operand, number)

    def _roots(self, item: Item) -> list[Value]:
        if isinstance(item, Sweep):
            return [v for s in item.sinks for v in s.operands]
        return [*item.op.operands, *free_values(item.op)]

    def _arrives(self, value: Value, number: int) -> bool:
        """Whether item `number` finds the value made by an earlier one (or from outside)."""
        if self.facts.homes(value):
            return True
        op = self.facts.producer[value]
        at = self.place.get(value)
        if at is not None and is_structured(op):
            return True
        if self.is_loop_reduce(op):
            if at is None:
                raise AssertionError(f"{value} is read but not scheduled")
            if at < number:
                self._export(value, at)
            return at < number
        if value in self.keeps:
            at = self._item_of(self.keeps[value])
            return at < number
        return False

    def _item_of(self, sink: Op) -> int:
        for number, item in enumerate(self.items):
            if isinstance(item, Sweep) and any(s is sink for s in item.sinks):
                return number
        raise AssertionError(sink)

    def _export(self, value: Value, number: int) -> bool:
        """Let a sweep keep a value that it computes; False: nothing to keep or no sweep."""
        item = self.items[number]
        if value in self.keeps or not self.facts.axes(value) or not isinstance(item, Sweep):
            return value in self.keeps
        origin = self.facts.producer[value].origin
        sink = Op("keep", (value,), {}, (Value(value.type, value.hint),), (), origin)
        self.keeps[value] = sink
        item.sinks.append(sink)
        self.place[value] = number
        return True

    def _drop_unread_loads(self) -> None:
        """Loads of written buffers whose every reader is in their own sweep need no array."""
        results = set(self.results)
        for value, sink in list(self.keeps.items()):
            if self._pinned(value) and value not in results and not self.reads.get(value):
                item = self.items[self._item_of(sink)]
                assert isinstance(item, Sweep)
                if len(item.sinks) > 1:
                    item.sinks.remove(sink)
                    del self.keeps[value]

    def cost(self, value: Value) -> int:
        """Vector operations to compute a value from memory and what has a home."""
        if value not in self._cost:
            op = self.facts.producer[value]
            made = value in self._inside and (self.is_loop_reduce(op) or is_structured(op))
            price = 0
            if not made and not self.facts.homes(value) and self.facts.axes(value):
                price = own_cost(op) + sum(self.cost(o) for o in op.operands)
            self._cost[value] = price
        return self._cost[value]


def own_cost(op: Op) -> int:
    """Rough vector operations of one element of the operation itself."""
    if op.kind == "pointwise":
        return POINTWISE[op.attrs["fn"]].cost
    if op.kind == "load":
        return 6 if op.operands else 0
    return {"rng": 60, "cast": 1, "take": 6}.get(op.kind, 0)
