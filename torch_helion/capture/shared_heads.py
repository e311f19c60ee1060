"""Keys and values that are repeated over the heads of the queries: attention reads them once.

In: a post-grad graph. Out: the same graph, where a call of ATen's attention whose keys and values
are copies of fewer heads is given those heads themselves.

    wide = expand(unsqueeze(k, 2), [b, few, groups, n, d])
    k_many = view(clone(wide), [b, few * groups, n, d])
    attention(q, k_many, v_many)     →     attention(q, k, v)

The operator takes fewer heads of keys than of queries, head i of the queries reading head
i // groups. The copies are as large as a cache of keys, and are made for every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from torch_helion.capture.mutation import Mutations

aten = torch.ops.aten

_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
_JOINS = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})


def share_heads(graph: Graph) -> int:
    """Rewrite what can be; returns how many calls of attention were."""
    calls = [n for n in graph.find_nodes(op="call_function", target=_ATTENTION) if len(n.args) > 2]
    if not calls:
        return 0
    mutations = Mutations(graph)
    changed = 0
    for node in calls:
        key, value = (_repeated(a, mutations) for a in node.args[1:3])
        if key is None or value is None or _shape(key)[1] != _shape(value)[1]:
            continue
        query, _, _, *rest = node.args
        given = node.args[1:3]
        node.args = (query, key, value, *rest)
        for unused in given:
            _erase_chain(graph, unused)
        changed += 1
    return changed


def _repeated(node: Any, mutations: Mutations) -> Node | None:
    """What `node` repeats: [b, few, n, d] for its [b, few * groups, n, d]; not if the graph changes
    that before the attention would read it.
    """
    if not isinstance(node, Node) or node.target not in _JOINS:
        return None
    inner = node.args[0]
    if isinstance(inner, Node) and inner.target is aten.clone.default:
        inner = inner.args[0]
    if not isinstance(inner, Node) or inner.target is not aten.expand.default:
        return None
    single = inner.args[0]
    if not isinstance(single, Node) or single.target is not aten.unsqueeze.default:
        return None
    source = single.args[0]
    if not isinstance(source, Node) or mutations.forbids(single) is not None:
        return None
    small, wide, many = _shape(source), _shape(inner), _shape(node)
    if len(small) != 4 or len(wide) != 5 or len(many) != 4 or single.args[1] not in (2, -3):
        return None
    batch, few, length, depth = small
    groups = wide[2]
    if not isinstance(few, int) or not isinstance(groups, int):
        return None
    if wide != (batch, few, groups, length, depth) or many != (batch, few * groups, length, depth):
        return None
    return source


def _shape(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _erase_chain(graph: Graph, node: Any) -> None:
    while isinstance(node, Node) and node.op == "call_function" and not node.users:
        source = node.args[0] if node.target in _CHAIN else None
        if source is None:
            return
        graph.erase_node(node)
        node = source


_CHAIN = _JOINS | {aten.clone.default, aten.expand.default, aten.unsqueeze.default}
