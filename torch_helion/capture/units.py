"""Reachability between parts of a graph that grow: whether joining two would make a cycle.

In: a graph. Out: unit numbers. Each node is a unit at first; joined nodes are one. For every
unit a bitset of the units that can be reached from it is kept right while units join.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx


class Units:
    def __init__(self, graph: fx.Graph) -> None:
        self._number = {node: i for i, node in enumerate(graph.nodes)}
        count = len(self._number)
        self._unit = list(range(count))
        self._members: dict[int, list[fx.Node]] = {i: [n] for n, i in self._number.items()}
        self._mask = {i: 1 << i for i in range(count)}
        self._reach: dict[int, int] = {}
        for node, i in reversed(self._number.items()):
            reach = 0
            for user in node.users:
                j = self._number[user]
                reach |= self._mask[j] | self._reach[j]
            self._reach[i] = reach

    def of(self, node: fx.Node) -> int:
        """The unit that a node belongs to."""
        return self._unit[self._number[node]]

    def would_cycle(self, a: int, b: int) -> bool:
        """Whether a path between units a and b leads through others."""
        return self._path_outside(a, b) or self._path_outside(b, a)

    def _path_outside(self, start: int, end: int) -> bool:
        target = self._mask[end]
        if not self._reach[start] & target:
            return False
        seen = {start, end}
        for node in self._members[start]:
            for user in node.users:
                unit = self._unit[self._number[user]]
                if unit not in seen:
                    seen.add(unit)
                    if self._reach[unit] & target:
                        return True
        return False

    def join(self, nodes: Iterable[fx.Node]) -> int:
        """Make the units of `nodes` one; gives its number."""
        units = list(dict.fromkeys(self._unit[self._number[n]] for n in nodes))
        first, *others = units
        if not others:
            return first
        for unit in others:
            for node in self._members.pop(unit):
                self._unit[self._number[node]] = first
                self._members[first].append(node)
            self._mask[first] |= self._mask.pop(unit)
            self._reach[first] |= self._reach.pop(unit)
        mask = self._mask[first]
        self._reach[first] &= ~mask
        reach = self._reach[first] | mask
        for unit, seen in self._reach.items():
            if unit != first and seen & mask:
                self._reach[unit] = seen | reach
        return first
