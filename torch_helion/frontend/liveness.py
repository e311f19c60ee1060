"""Which variables are read later: what loops must carry and branches must merge.

In: statements. Out: names.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from torch_helion.frontend.source import assigned_names, read_names


def live_before(statements: Sequence[ast.stmt], after: frozenset[str]) -> frozenset[str]:
    """Names whose values are read in the statements, or behind them, before they are assigned."""
    live = after
    for statement in reversed(statements):
        live = _before(statement, live)
    return live


def _before(node: ast.stmt, after: frozenset[str]) -> frozenset[str]:
    if isinstance(node, ast.If):
        arms = live_before(node.body, after) | live_before(node.orelse, after)
        return arms | _reads(node.test)
    if isinstance(node, ast.For | ast.While):
        return loop_entry(node, after) | _reads(
            node.iter if isinstance(node, ast.For) else node.test
        )
    if isinstance(node, ast.Return):
        return _reads(node)
    killed = set()
    if isinstance(node, ast.Assign):
        killed = {n for t in node.targets for n in _plain_targets(t)}
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        killed = set(_plain_targets(node.target))
    return (after - killed) | _reads(node)


def loop_entry(node: ast.For | ast.While, after: frozenset[str]) -> frozenset[str]:
    """Names live where a round of the loop begins, or where it has ended."""
    targets = set(assigned_names([node.target])) if isinstance(node, ast.For) else set()
    test = _reads(node.test) if isinstance(node, ast.While) else frozenset()
    entry = after | test
    while True:
        inside = (live_before(node.body, entry) - targets) | test
        if inside <= entry:
            return entry
        entry = entry | inside


def _reads(node: ast.AST) -> frozenset[str]:
    return frozenset(read_names([node]))


def _plain_targets(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple | ast.List):
        return [n for item in target.elts for n in _plain_targets(item)]
    return []
