"""What a graph changes in place, and which reads are therefore not ours to move.

In: a graph. Out: reasons. A kernel replaces nodes at the place of one of them; a read of memory
that the graph changes could end up on the wrong side of the change. A mutated value is read by
a region only where it is read by itself (not through a view) and every change stands after all
other nodes, as functionalised graphs have it.
"""

from __future__ import annotations

import operator

from torch import fx
from torch._ops import OpOverload

from torch_helion.capture.node_facts import is_tensor


class Mutations:
    def __init__(self, graph: fx.Graph) -> None:
        self._bases: dict[fx.Node, fx.Node] = {}
        self._late: dict[fx.Node, bool] = {}
        """Mutated values, and whether all their changes stand at the end of the graph."""
        nodes = list(graph.nodes)
        at_end = True
        for node in reversed(nodes):
            if node.op != "call_function":
                continue
            changed = _changed(node)
            for value in changed:
                base = self.base(value)
                self._late[base] = self._late.get(base, True) and at_end
            at_end = at_end and bool(changed)

    def base(self, node: fx.Node) -> fx.Node:
        """The node whose memory a value lies in."""
        if node not in self._bases:
            source = _aliased(node)
            self._bases[node] = node if source is None else self.base(source)
        return self._bases[node]

    def forbids(self, node: fx.Node) -> str | None:
        """Why a region must not read the operands of `node`; None if it may."""
        if not self._late:
            return None
        for operand in node.all_input_nodes:
            base = self.base(operand)
            if base in self._late:
                if base is not operand:
                    return f"{operand.name} is a view of {base.name}, which the graph changes"
                if not self._late[base]:
                    return f"{base.name} is changed before the end of the graph"
        return None


def _changed(node: fx.Node) -> list[fx.Node]:
    """The arguments that a call writes to."""
    if not isinstance(node.target, OpOverload):
        return _changed_by_other(node)
    if not node.target._schema.is_mutable:
        return []
    found = []
    for i, formal in enumerate(node.target._schema.arguments):
        if formal.alias_info is not None and formal.alias_info.is_write:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(formal.name)
            items = given if isinstance(given, list | tuple) else [given]
            found += [n for n in items if isinstance(n, fx.Node)]
    return found


def _changed_by_other(node: fx.Node) -> list[fx.Node]:
    """A higher-order call that writes may write to every tensor that it is given."""
    if not getattr(node.target, "__name__", "").endswith("_mutation"):
        return []
    return [n for n in node.all_input_nodes if is_tensor(n)]


def _aliased(node: fx.Node) -> fx.Node | None:
    """The operand whose memory the first result shares, by the schema."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, fx.Node) else None
    if not isinstance(node.target, OpOverload):
        return None
    schema = node.target._schema
    if not schema.returns or schema.returns[0].alias_info is None:
        return None
    for i, formal in enumerate(schema.arguments):
        if formal.alias_info is not None and i < len(node.args):
            given = node.args[i]
            return given if isinstance(given, fx.Node) else None
    return None
