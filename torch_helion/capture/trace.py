"""Pull evaluation: what has to be computed, at which places, to make a region's outputs.

In: a region's nodes, their axis space, a template. Out: a `Trace`: instances of nodes at
indices, from loads to stores, with no code yet. Emission reads it twice: to find axes that may
be one, then to build the kernel.

    pull(node, index)   the value of `node` at `index`, one place per dimension, kept per (node,
    index)

A place is an `Affine` over axis names or `Gathered` (read from memory). Elementwise nodes pull
their operands at the broadcast index; views and moves ask their index rule where to read;
inputs become loads. A reduction exists only at its canonical index, where each dimension runs
over its own axes: nothing is reduced twice.

Reads that may be out of range outside of a condition (the parts of a cat) are pulled under
*guards*. A guard becomes the mask of the loads below it; an index that is in range anyway drops
its guards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.axes import Atom, Key, Space, Use, index_context, refusal
from torch_helion.capture.node_facts import Facts, Path, is_tensor
from torch_helion.capture.sizes import SizeTable, host_size, is_nonnegative, shape_of
from torch_helion.capture.template import Template
from torch_helion.ir.types import Affine, Size
from torch_helion.lowering import view as view_rules
from torch_helion.lowering.view import Fill, Indirect, Read, Within, is_one, plus, product, times

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class Gathered:
    """A place read from an index tensor. `size`: the extent that it indexes; `wrap`: negatives
    count back.
    """

    index: Instance
    size: Size
    wrap: bool


_INDEX = (torch.int64, torch.int32)

Place = Affine | Gathered
Index = tuple[Place, ...]
Guards = tuple[Within, ...]
Branch = tuple[Guards, "Instance | Fill"]


@dataclass(eq=False)
class Instance:
    """A node's value at an index."""

    kind: Literal["load", "compute", "constant", "item", "select", "weight"]
    """`weight`: the quantised second operand of the product `node`."""
    node: fx.Node
    index: Index
    guards: Guards = ()
    operands: dict[Path, Instance] = field(default_factory=dict)
    use: Use | None = None
    """Of a load: the use whose dimensions give the input's sizes."""
    branches: tuple[Branch, ...] = ()
    """Of a select: tried in order; the last one needs no test."""

    def parts(self) -> list[Instance]:
        """The instances that this one is made of."""
        found = list(self.operands.values())
        found += [value for _, value in self.branches if isinstance(value, Instance)]
        found += (
            [p.index for p in self.index if isinstance(p, Gathered)] if self.kind == "load" else []
        )
        return found


class Trace:
    """The instances of one region under one template."""

    def __init__(
        self,
        facts: Facts,
        space: Space,
        nodes: Sequence[fx.Node],
        template: Template,
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        self.facts = facts
        self.space = space
        self.inside = set(nodes)
        self.template = template
        self.sizes = SizeTable(hints)
        self.names: dict[Atom, str] = {}
        self.atoms: dict[str, Atom] = {}
        self.extents: dict[str, Size] = {}
        """Trace size of each axis name."""
        self._memo: dict[Any, Instance] = {}
        self._canonical: dict[Key, tuple[Affine, ...]] = {}
        self._shapes: dict[Key, tuple[Size, ...]] = {}
        self._limit = 32 + 4 * len(nodes)

    # -- axes and sizes -----------------------------------------------------------------------

    def name(self, atom: Atom) -> str:
        """The axis name of an atom, made at its first use."""
        if atom not in self.names:
            name = f"a{len(self.names)}"
            self.names[atom], self.atoms[name] = name, atom
            host = self.space.extents[atom]
            whole = atom in self.template.full and isinstance(host, int)
            self.extents[name] = host if whole else self.sizes.extent(name, host)
        return self.names[atom]

    def size(self, atom: Atom) -> Size:
        if atom in self.template.grid or atom in self.template.full:
            return self.extents[self.name(atom)]
        return self.sizes.other(self.space.extents[atom])

    def shape(self, key: Key) -> tuple[Size, ...]:
        """Sizes of a value or use over trace symbols."""
        if key not in self._shapes:
            self._shapes[key] = self._shape(key)
        return self._shapes[key]

    def _shape(self, key: Key) -> tuple[Size, ...]:
        if key in self.space.dims:
            return tuple(product(self.size(a) for a in atoms) for atoms in self.space.of(key))
        node = key if isinstance(key, fx.Node) else dict(self.facts.operands(key[0]))[key[1]]
        return tuple(self.sizes.other(n) for n in shape_of(node))

    def canonical(self, key: Key) -> tuple[Affine, ...]:
        """Each dimension at the row-major number of its own axes."""
        if key not in self._canonical:
            places = []
            for atoms in self.space.of(key):
                place, step = Affine(), product(())
                for atom in reversed(atoms):
                    place = plus(Affine.of(self.name(atom), step), place)
                    step = step * self.size(atom)
                places.append(place)
            self._canonical[key] = tuple(places)
        return self._canonical[key]

    # -- what is known of places --------------------------------------------------------------

    def is_nonnegative(self, size: Size) -> bool:
        return is_nonnegative(size, self.sizes.graph_hints)

    def bounds(self, place: Affine) -> tuple[Size, Size] | None:
        """The least and the greatest number, in host sizes; None where a sign is not known."""
        low = high = self.sizes.to_host(place.offset)
        for name, coefficient in place.terms:
            step = self.sizes.to_host(coefficient)
            reach = step * (self.space.extents[self.atoms[name]] - 1)
            if self.is_nonnegative(step):
                high = high + reach
            elif self.is_nonnegative(-step):
                low = low + reach
            else:
                return None
        return low, high

    def fits(self, place: Affine, size: Size) -> bool:
        """Whether 0 <= place < size for every position of its axes."""
        bounds = self.bounds(place)
        if bounds is None:
            return False
        return self.is_nonnegative(bounds[0]) and self.is_nonnegative(
            self.sizes.to_host(size) - 1 - bounds[1]
        )

    def in_range(self, key: Key, index: Index) -> bool:
        if key in self.space.dims and index == self.canonical(key):
            return True
        return all(
            isinstance(p, Affine) and self.fits(p, n)
            for p, n in zip(index, self.shape(key), strict=True)
        )

    def holds(self, condition: Within) -> bool | None:
        """Whether a condition is always (True) or never (False) met, as far as is known."""
        bounds = self.bounds(condition.place)
        if bounds is None:
            return None
        low, high = self.sizes.to_host(condition.low), self.sizes.to_host(condition.high)
        if not any(self.open_ends(condition)):
            return True
        if self.is_nonnegative(low - 1 - bounds[1]) or self.is_nonnegative(bounds[0] - high):
            return False
        return None

    def open_ends(self, condition: Within) -> tuple[bool, bool]:
        """Which of the two ends of a condition has to be tested."""
        bounds = self.bounds(condition.place)
        if bounds is None:
            return True, True
        low, high = self.sizes.to_host(condition.low), self.sizes.to_host(condition.high)
        return (
            not self.is_nonnegative(bounds[0] - low),
            not self.is_nonnegative(high - 1 - bounds[1]),
        )

    def needed_guards(self, key: Key, index: Index, guards: Guards) -> Guards:
        """The guards without which `index` might be out of range."""
        if not guards or self.in_range(key, index):
            return ()
        if isinstance(key, fx.Node) and self.facts.kind(key) == "constant":
            return ()
        names = {n for p in index for n in _names_of(p)}
        return tuple(g for g in guards if names & set(g.place.axis_names))

    # -- pulling ------------------------------------------------------------------------------

    def output(self, node: fx.Node) -> Instance:
        """A region's output at its canonical index."""
        return self.pull(node, self.canonical(node), ())

    def operand(self, consumer: fx.Node, path: Path, index: Index, guards: Guards) -> Instance:
        node = dict(self.facts.operands(consumer))[path]
        if node in self.inside:
            return self.pull(node, index, guards)
        use = (consumer, path)
        guards = self.needed_guards(use, index, guards)
        key = (node, index, guards)
        if key not in self._memo:
            self._memo[key] = Instance("load", node, index, guards, use=use)
        return self._memo[key]

    def pull(self, node: fx.Node, index: Index, guards: Guards) -> Instance:
        guards = self.needed_guards(node, index, guards)
        key = (node, index, guards)
        if key not in self._memo:
            if len(self._memo) > self._limit:
                raise refusal(node, "it is needed at too many different places")
            self._memo[key] = self._evaluate(node, index, guards)
        return self._memo[key]

    def _evaluate(self, node: fx.Node, index: Index, guards: Guards) -> Instance:
        kind = self.facts.kind(node)
        if kind == "item":
            return self._item(node, index, guards)
        if kind in ("view", "move") or self.facts.row(node).kind in ("view", "gather"):
            return self._read(node, index, guards)
        if kind == "constant" and not self.facts.operands(node):
            return Instance("constant", node, index)
        if node in self.space.folded:
            return self._reduction(node, node, index)
        return self._elementwise(node, node, index, guards)

    def _item(self, node: fx.Node, index: Index, guards: Guards) -> Instance:
        call = self.facts.call(node)
        if call in self.space.folded:
            value = self._reduction(call, node, index)
        else:
            value = self._elementwise(call, node, index, guards)
        return Instance("item", node, index, guards, {(): value})

    def _reduction(self, call: fx.Node, output: fx.Node, index: Index) -> Instance:
        if index != self.canonical(output):
            raise refusal(output, "a reduction is needed at other places than its own")
        key = (call, "reduction")
        if key not in self._memo:
            operands = {
                path: self.operand(call, path, self.canonical((call, path)), ())
                for path, _ in self.facts.operands(call)
            }
            self._memo[key] = Instance("compute", call, index, (), operands)
        return self._memo[key]

    def _elementwise(
        self, call: fx.Node, output: fx.Node, index: Index, guards: Guards
    ) -> Instance:
        key = (call, index, guards, "call")
        if key not in self._memo:
            operands = {}
            for path, operand in self.facts.operands(call):
                shape = shape_of(operand)
                tail = index[len(index) - len(shape) :]
                places = tuple(
                    Affine() if is_one(n) else p for n, p in zip(shape, tail, strict=True)
                )
                operands[path] = self.operand(call, path, places, guards)
            self._memo[key] = Instance("compute", call, index, guards, operands)
        return self._memo[key]

    # -- views and moves ------------------------------------------------------------------------

    def _read(self, node: fx.Node, index: Index, guards: Guards) -> Instance:
        row = self.facts.row(node)
        if (
            row.overload in view_rules.RESHAPES
            and node in self.space.dims
            and index == self.canonical(node)
        ):
            ((path, _),) = self.facts.operands(node)
            return self.operand(node, path, self.canonical((node, path)), guards)
        branches: list[Branch] = []
        for source in self._sources(node, index):
            if isinstance(source, Fill):
                branches.append(((), source))
                break
            where = tuple(c for c in source.where if self.holds(c) is not True)
            if any(self.holds(c) is False for c in where):
                continue
            below = guards + where if source.guarded else guards
            branches.append((where, self._resolve(node, source, below)))
            if not where:
                break
        if not branches:
            raise refusal(node, "no part of it is read")
        _, first = branches[0]
        if len(branches) == 1 and isinstance(first, Instance):
            return first
        return Instance("select", node, index, guards, branches=tuple(branches))

    def _sources(self, node: fx.Node, index: Index) -> Sequence[Any]:
        shapes = {path: self.shape((node, path)) for path, _ in self.facts.operands(node)}
        cx = index_context(self.facts, node, shapes, self.shape(node), self._argument, self.fits)
        try:
            sources: Sequence[Any] = self.facts.row(node).rule(cx, index)
        except exc.LoweringError as error:
            error.node = node  # type: ignore[attr-defined]
            raise
        return sources

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            value = argument.meta["val"]
            return (
                self.sizes.argument(host_size(value)) if isinstance(value, torch.SymInt) else value
            )
        if isinstance(argument, list | tuple):
            return [self._argument(a) for a in argument]
        return argument

    def _resolve(self, node: fx.Node, read: Read, guards: Guards) -> Instance:
        path = (read.argument,) if read.item is None else (read.argument, read.item)
        index = tuple(self._place(node, place, guards) for place in read.index)
        return self.operand(node, path, index, guards)

    def _place(self, node: fx.Node, place: Any, guards: Guards) -> Place:
        if not isinstance(place, Indirect):
            return place  # type: ignore[no-any-return]
        read = place.read
        path = (read.argument,) if read.item is None else (read.argument, read.item)
        index = tuple(self._place(node, p, guards) for p in read.index)
        source = dict(self.facts.operands(node))[path]
        known = self.position_of(source, index)
        if known is not None and self.fits(known, place.size):
            return known
        return Gathered(self.operand(node, path, index, guards), place.size, place.wrap)

    # -- index tensors that are positions -------------------------------------------------------

    def position_of(self, node: fx.Node, index: Index) -> Affine | None:
        """An integer tensor's value as an affine map of positions: ranges, and what is added to
        them.
        """
        if node not in self.inside or not is_tensor(node) or node.meta["val"].dtype not in _INDEX:
            return None
        if self.facts.row(node).kind == "view":
            return self._position_of_view(node, index)
        rule = _POSITIONS.get(node.target)
        return rule(self, node, index) if rule is not None else None

    def _position_of_view(self, node: fx.Node, index: Index) -> Affine | None:
        try:
            sources = self._sources(node, index)
        except exc.LoweringError:
            return None
        if len(sources) != 1 or not isinstance(sources[0], Read) or sources[0].where:
            return None
        read = sources[0]
        if read.item is not None:
            return None
        source = dict(self.facts.operands(node))[(read.argument,)]
        places = [p for p in read.index if isinstance(p, Affine)]
        return self.position_of(source, tuple(places)) if len(places) == len(read.index) else None

    def term_of(self, argument: Any, index: Index) -> Affine | None:
        """An operand of integer arithmetic as an affine map."""
        if type(argument) is int:
            return Affine((), argument)
        if not isinstance(argument, fx.Node) or not is_tensor(argument):
            return None
        shape = shape_of(argument)
        tail = index[len(index) - len(shape) :]
        places = tuple(Affine() if is_one(n) else p for n, p in zip(shape, tail, strict=True))
        return self.position_of(argument, places)


def _names_of(place: Place) -> tuple[str, ...]:
    if isinstance(place, Affine):
        return place.axis_names
    return tuple(n for p in place.index.index for n in _names_of(p))


def _position_of_iota(trace: Trace, node: fx.Node, index: Index) -> Affine | None:
    start, step = node.kwargs.get("start"), node.kwargs.get("step")
    return _ramp(index[0], start, step)


def _position_of_arange(trace: Trace, node: fx.Node, index: Index) -> Affine | None:
    start = 0 if node.target is aten.arange.default else node.args[0]
    step = node.args[2] if len(node.args) > 2 else 1
    return _ramp(index[0], start, step)


def _ramp(place: Place, start: Any, step: Any) -> Affine | None:
    if not (isinstance(place, Affine) and type(start) is int and type(step) is int):
        return None
    return plus(times(place, step), Affine((), start))


def _position_of_constant(trace: Trace, node: fx.Node, index: Index) -> Affine | None:
    value = node.args[-1]
    return Affine((), value) if type(value) is int else None


def _position_of_sum(sign: int) -> Any:
    def rule(trace: Trace, node: fx.Node, index: Index) -> Affine | None:
        if node.kwargs:
            return None
        terms = [trace.term_of(argument, index) for argument in node.args]
        if None in terms:
            return None
        return plus(terms[0], times(terms[1], sign))  # type: ignore[arg-type]

    return rule


_POSITIONS: dict[Any, Any] = {
    prims.iota.default: _position_of_iota,
    aten.arange.default: _position_of_arange,
    aten.arange.start: _position_of_arange,
    aten.arange.start_step: _position_of_arange,
    aten.full.default: _position_of_constant,
    aten.scalar_tensor.default: _position_of_constant,
    aten.add.Tensor: _position_of_sum(1),
    aten.sub.Tensor: _position_of_sum(-1),
}
