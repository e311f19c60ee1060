"""Which nodes of a graph become kernels: regions grow from single nodes along the edges of the
graph.

In: a post-grad FX graph and the lowering table. Out: `Region`s that `region_to_kernel` is known
to build, and for every other node that does work the reason why it is left to the host.

Nodes are visited in topological order. Each starts alone and joins the groups of its producers,
the nearest first, while the union

- makes no cycle through nodes outside (reachability between units, as bitsets),
- has one iteration space (axes.py) and a sound template (template.py),
- stays within `Limits`, and, where data is moved inside, can be traced (nothing is reduced or
  computed at odd places).

Afterwards groups that read the same main tensor over the same axes join as siblings. Views at
the rim of a group are left outside, where they are free; constants are made again in every
group that uses them.

A group is worth a kernel when it computes something: a lone cast, copy, cat or gather is not
taken, nor a single call in `AS_FAST`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from torch_helion import exc
from torch_helion._logging import get_logger
from torch_helion.capture.axes import (
    Conflict,
    Space,
    connect,
    outputs_of,
    readings_of,
    share_across,
    share_inputs,
    space_of,
)
from torch_helion.capture.mutation import Mutations
from torch_helion.capture.node_facts import Facts, is_tensor
from torch_helion.capture.probe import Probe
from torch_helion.capture.region_to_kernel import (
    Region,
    graph_hints,
    kernel_name,
    region_to_kernel,
    trace_region,
)
from torch_helion.capture.template import Limits, Shape, templates
from torch_helion.capture.units import Units
from torch_helion.lowering.registry import Lowering

__all__ = ["Declined", "Limits", "Region", "find_regions"]

aten = torch.ops.aten
prims = torch.ops.prims
logger = get_logger("fusion")

COPIES_ONLY = frozenset(
    (
        aten.clone.default,
        aten.copy.default,
        aten._to_copy.default,
        aten.lift_fresh_copy.default,
        prims.convert_element_type.default,
        aten.alias.default,
        aten.full_like.default,
        aten.zeros_like.default,
        aten.ones_like.default,
    )
)
"""Calls that compute nothing."""

AS_FAST = frozenset((aten.sum.default,))
"""Single calls that ATen runs as fast as a kernel of ours would."""

# Views after which an index is another one: what they read has to be traced.
_PARTIAL = frozenset(
    (
        aten.slice.Tensor,
        aten.select.int,
        aten.unbind.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.diagonal.default,
        aten.unfold.default,
    )
)
_ATTEMPTS = 4


@dataclass(frozen=True)
class Declined:
    """A node that does work and is left to the host."""

    node: fx.Node
    reason: str


@dataclass(eq=False)
class Group:
    """Nodes that are to be one kernel, in topological order."""

    nodes: tuple[fx.Node, ...]
    space: Space
    unit: int


def find_regions(
    graph: fx.Graph,
    lowerings: Mapping[OpOverload, Lowering],
    *,
    options: Any = None,
    excluded: Collection[fx.Node] = (),
) -> tuple[list[Region], list[Declined]]:
    """The regions of a graph in topological order of their last nodes, and what is left out.

    `excluded`: nodes that belong to something else.
    """
    limits = limits_of(options)
    grower = Grower(graph, lowerings, limits, excluded)
    grower.grow(list(graph.nodes))
    grower.join_siblings()
    regions: list[Region] = []
    for group in sorted(grower.groups(), key=lambda g: grower.number[g.nodes[-1]]):
        regions += grower.finish(group)
    for group in grower.grow_constants(regions):
        members = set(group.nodes)  # it may have joined a group that had its region already
        regions = [r for r in regions if members.isdisjoint(r.outputs)]
        regions += grower.finish(group)
    regions.sort(key=lambda r: grower.number[r.nodes[-1]])
    taken = {n for region in regions for n in region.nodes}
    return regions, grower.declined(taken)


def limits_of(options: Any) -> Limits:
    """Limits as given: a `Limits`, or any of its fields in a mapping; other entries are not
    ours.
    """
    if isinstance(options, Limits):
        return options
    if not isinstance(options, Mapping):
        return Limits()
    names = {f.name for f in fields(Limits)}
    return Limits(**{name: value for name, value in options.items() if name in names})


class Grower:
    """The groups of one graph while they grow."""

    def __init__(
        self,
        graph: fx.Graph,
        lowerings: Mapping[OpOverload, Lowering],
        limits: Limits,
        excluded: Collection[fx.Node] = (),
    ) -> None:
        self.graph = graph
        self.excluded = excluded
        self.lowerings = lowerings
        self.limits = limits
        self.probe = _probe_of(lowerings)
        self.mutations = Mutations(graph)
        self.facts = Facts(lowerings, self._refuses)
        self.hints = graph_hints(graph.nodes)
        self.number = {node: i for i, node in enumerate(graph.nodes)}
        self.units = Units(graph)
        self.group_of: dict[fx.Node, Group] = {}
        self._refused: set[tuple[Group, Group]] = set()
        """Pairs that cannot join; a group never changes, so neither does the answer."""
        self.notes: dict[fx.Node, str] = {}
        """Reasons found after growing."""

    def _refuses(self, facts: Facts, node: fx.Node) -> str | None:
        if node in self.excluded:
            return "a part of a product"
        return self.mutations.forbids(node) or self.probe(facts, node)

    def groups(self) -> list[Group]:
        return list(dict.fromkeys(self.group_of.values()))

    # -- growing --------------------------------------------------------------------------------

    def grow(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            if node in self.group_of or self.facts.kind(node) not in ("compute", "move", "view"):
                continue
            call = self.facts.call(node)
            if call in self.group_of or (call is not node and not is_tensor(node)):
                continue
            group = self._start(call)
            if group is not None:
                self._join_producers(group)
        for group in self.groups():
            # What was refused because a group was still small may be sound now.
            if group in self.groups():
                self._join_producers(group)

    def _join_producers(self, group: Group) -> None:
        """Join a group with those that feed it, as long as one more can join."""
        while True:
            found = (g for g in self._producers(group) if (g, group) not in self._refused)
            producer = next(found, None)
            if producer is None:
                return
            joined = self._try_join(producer, group)
            if isinstance(joined, Group):
                group = joined
            else:
                self._refused.add((producer, group))

    def _start(self, call: fx.Node) -> Group | None:
        try:
            space = space_of(self.facts, call)
            share_inputs(space, self.facts, readings_of(self.facts, [call], set()))
        except (Conflict, exc.LoweringError) as error:
            self.notes[call] = str(error)
            return None
        members = (call,) if is_tensor(call) else (call, *outputs_of(call))
        group = Group(members, space, self.units.join(members))
        self.group_of.update((n, group) for n in members)
        return group

    def _producers(self, group: Group) -> list[Group]:
        """Groups that feed this one, the nearest first."""
        operands = {n for node in group.nodes for _, n in self.facts.operands(node)}
        ordered = sorted(operands, key=lambda n: -self.number[n])
        found = [self.group_of[n] for n in ordered if n in self.group_of]
        return [g for g in dict.fromkeys(found) if g is not group]

    def _try_join(self, a: Group, b: Group) -> Group | str:
        """The union of two groups, registered; or why they stay apart. b reads from a, or both
        from one input.

        Only what b reads at odd places has to be traced: at its own places a group is known to
        be sound.
        """
        if sum(self._counts(n) for g in (a, b) for n in g.nodes) > self.limits.max_nodes:
            return "too many nodes"
        if self.units.would_cycle(a.unit, b.unit):
            return "a path between them leads outside"
        nodes = tuple(sorted((*a.nodes, *b.nodes), key=self.number.__getitem__))
        try:
            space = self._joined_space(a, b)
        except Conflict as error:
            return str(error)
        why = self._unsound(nodes, space, any(self._moves(n) for n in b.nodes))
        if why is not None:
            return why
        group = Group(nodes, space, self.units.join((a.nodes[0], b.nodes[0])))
        self.group_of.update((n, group) for n in nodes)
        return group

    def _counts(self, node: fx.Node) -> bool:
        return self.facts.kind(node) in ("compute", "move")

    def _joined_space(self, a: Group, b: Group) -> Space:
        space = a.space.join(b.space)
        connect(space, self.facts, b.nodes, set(a.nodes))
        connect(space, self.facts, a.nodes, set(b.nodes))
        inside = {*a.nodes, *b.nodes}
        left, right = (readings_of(self.facts, g.nodes, inside) for g in (a, b))
        share_across(space, self.facts, left, right)
        space.check_distinct()
        return space

    def _unsound(self, nodes: tuple[fx.Node, ...], space: Space, moves: bool) -> str | None:
        """Why these nodes are no region. `moves`: some read what others hold at other places."""
        outputs = self.outputs(nodes)
        inputs = self._inputs(nodes)
        if len(inputs) + len(outputs) > self.limits.max_tensors:
            return "too many tensors"
        shape = Shape(self.facts, space, nodes, outputs, self.hints, self._cost)
        choices, why = templates(shape, self.limits)
        if not choices:
            return why
        if not moves and len(choices[0].over) <= 1:
            return None
        region = Region(self._with_constants(nodes), inputs, outputs, "")
        for template in choices:
            try:
                trace_region(self.facts, space, region, template, self.hints, with_runs=False)
                return None
            except exc.LoweringError as error:
                why = str(error)
        return why

    def _cost(self, node: fx.Node) -> int:
        return self.probe.costs.get(node, 0)

    def _moves(self, node: fx.Node) -> bool:
        """Whether a node's value at its own place comes from other places of what it reads."""
        if self._is_moved(node):
            return True
        for _, operand in self.facts.operands(node):
            while self.facts.kind(operand) == "view":
                if self._is_moved(operand):
                    return True
                operand = self.facts.operands(operand)[0][1]
        return False

    def _is_moved(self, node: fx.Node) -> bool:
        return self.facts.kind(node) == "move" or self.facts.call(node).target in _PARTIAL

    # -- the rim of a group -----------------------------------------------------------------------

    def outputs(self, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """What of a group has to be stored: values with users outside, views seen as their
        bases.
        """
        inside = set(nodes)
        found: dict[fx.Node, None] = {}
        for node in nodes:
            if not is_tensor(node) or all(user in inside for user in node.users):
                continue
            base: fx.Node | None = node
            while base in inside and self.facts.kind(base) == "view":
                base = self.facts.operands(base)[0][1]
            if base in inside:
                found[base] = None
        return tuple(sorted(found, key=self.number.__getitem__))

    def _inputs(self, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        inside = set(nodes)
        found = dict.fromkeys(
            operand
            for node in nodes
            for _, operand in self.facts.operands(node)
            if operand not in inside and self.facts.kind(operand) != "constant"
        )
        return tuple(found)

    def _with_constants(self, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
        """The nodes with every constant that they use."""
        found = dict.fromkeys(nodes)
        work = list(nodes)
        while work:
            for _, operand in self.facts.operands(work.pop()):
                if operand not in found and self.facts.kind(operand) == "constant":
                    found[operand] = None
                    work.append(operand)
        return tuple(sorted(found, key=self.number.__getitem__))

    def _trimmed(self, group: Group) -> tuple[fx.Node, ...]:
        """What the outputs need, without views of values from outside."""
        inside = set(group.nodes)
        needed: set[fx.Node] = set()
        work = list(self.outputs(group.nodes))
        while work:
            node = work.pop()
            if node in needed or node not in inside or self._is_rim_view(node, inside):
                continue
            needed.add(node)
            call = self.facts.call(node)
            if call is not node:
                needed.add(call)
            work += [n for _, n in self.facts.operands(node)]
        return self._with_constants([n for n in group.nodes if n in needed])

    def _is_rim_view(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        while node in inside and self.facts.kind(node) == "view":
            node = self.facts.operands(node)[0][1]
        return node not in inside

    def grow_constants(self, regions: Sequence[Region]) -> list[Group]:
        """Groups of what was taken for constants and is needed in memory: host nodes use it."""
        taken = {n for region in regions for n in region.nodes}
        needed = [
            n
            for n in self.number
            if self.facts.kind(n) == "constant"
            and self.facts.operands(n)
            and self.facts.row(n).kind == "pointwise"
            and any(self._is_host(user, taken) for user in n.users)
        ]
        self.facts.own(needed)
        self.grow(needed)
        return list(dict.fromkeys(self.group_of[n] for n in needed if n in self.group_of))

    def _is_host(self, node: fx.Node, taken: set[fx.Node]) -> bool:
        if node in taken:
            return False
        if self.facts.kind(node) != "constant":
            return True
        return any(self._is_host(user, taken) for user in node.users)

    # -- siblings -------------------------------------------------------------------------------

    def join_siblings(self) -> None:
        """Groups that read one tensor over all of their axes become one."""
        readers: dict[fx.Node, list[fx.Node]] = {}
        for group in self.groups():
            for operand in readings_of(self.facts, group.nodes, set(group.nodes)):
                readers.setdefault(operand, []).append(group.nodes[0])
        for operand, firsts in readers.items():
            for left, right in itertools.pairwise(firsts):
                a, b = self.group_of[left], self.group_of[right]
                if a is not b and self._is_main(a, operand) and self._is_main(b, operand):
                    self._try_join(a, b)

    def _is_main(self, group: Group, operand: fx.Node) -> bool:
        uses = readings_of(self.facts, group.nodes, set(group.nodes)).get(operand, [])
        known = [use for use in uses if use in group.space.dims]
        if not known:
            return False
        atoms = set(group.space.atoms(known[0]))
        return bool(atoms) and all(
            set(group.space.atoms(n)) <= atoms for n in group.nodes if n in group.space.dims
        )

    # -- results ----------------------------------------------------------------------------------

    def finish(self, group: Group) -> list[Region]:
        """The regions of a group: one, or what is left when a node turns out to be in the way."""
        groups, found = [group], []
        for _ in range(_ATTEMPTS):
            again: list[Group] = []
            for candidate in groups:
                region = self._region(candidate)
                if region is None:
                    continue
                try:
                    region_to_kernel(region, self.lowerings)
                    found.append(region)
                except exc.LoweringError as error:
                    again += self._without(candidate, region, error)
            groups = again
        for candidate in groups:
            self._note(candidate.nodes, "no kernel could be made of its region")
        return found

    def _region(self, group: Group) -> Region | None:
        nodes = self._trimmed(group)
        why = self._not_worth(nodes)
        if why is not None:
            self._note(nodes, why)
            return None
        outputs = self.outputs(nodes)
        outputs = tuple(o for o in outputs if self.facts.kind(o) != "constant")
        computed = [n for n in nodes if self._counts(n)]
        return Region(nodes, self._inputs(nodes), outputs, kernel_name(computed))

    def _not_worth(self, nodes: Sequence[fx.Node]) -> str | None:
        work = [n for n in nodes if self._counts(n)]
        if not work:
            return "nothing is computed"
        if all(self.facts.kind(n) == "move" or n.target in COPIES_ONLY for n in work):
            return "only moves or converts data: ATen is as fast"
        if len(work) == 1 and work[0].target in AS_FAST:
            return "a single call that ATen runs as fast"
        return None

    def _without(self, group: Group, region: Region, error: exc.LoweringError) -> list[Group]:
        """Give the node that is in the way to the host and grow the rest of its group again."""
        culprit = getattr(error, "node", region.nodes[-1])
        culprit = self.facts.call(culprit) if culprit in set(group.nodes) else region.nodes[-1]
        logger.debug("region %s gives up %s: %s", region.name, culprit.name, error)
        rest = [n for n in group.nodes if n is not culprit]
        self.facts.forget(group.nodes)
        self.facts.exclude(culprit, str(error))
        for node in group.nodes:
            del self.group_of[node]
        self.units = Units(self.graph)
        for other in self.groups():
            other.unit = self.units.join(other.nodes)
        self.grow(rest)
        return list(dict.fromkeys(self.group_of[n] for n in rest if n in self.group_of))

    def _note(self, nodes: Iterable[fx.Node], why: str) -> None:
        for node in nodes:
            if self._counts(node):
                self.notes.setdefault(node, why)

    def declined(self, taken: set[fx.Node]) -> list[Declined]:
        found = []
        for node in self.graph.nodes:
            if node in taken or node.op != "call_function" or _is_size(node):
                continue
            if hasattr(node.target, "_inductor_lowering_function"):  # a kernel already
                continue
            why = self.facts.reasons.get(node) or self.notes.get(node)
            if why is not None:
                found.append(Declined(node, why))
        return found


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


_probes: dict[int, tuple[Any, Probe]] = {}


def _probe_of(lowerings: Mapping[OpOverload, Lowering]) -> Probe:
    """One probe per lowering table: what it has learnt serves every graph."""
    _, probe = _probes.setdefault(id(lowerings), (lowerings, Probe()))
    probe.costs.clear()
    return probe
