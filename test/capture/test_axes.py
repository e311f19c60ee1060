"""Axis inference: what unifies, what splits, what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from region_testing import traced
from torch import fx

from torch_helion.capture.axes import Conflict, Space, infer
from torch_helion.capture.node_facts import Facts
from torch_helion.lowering.rows import graph_lowerings

aten = torch.ops.aten


def space_of_graph(
    fn: Callable[..., Any], *args: Any, symbolic: bool = False
) -> tuple[Space, list[fx.Node]]:
    graph = traced(fn, *args, symbolic=symbolic)
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    nodes = [n for n in nodes if isinstance(n.meta["val"], torch.Tensor | tuple | list)]
    return infer(Facts(graph_lowerings(), inside=nodes), nodes), nodes


def named(nodes: list[fx.Node], name: str) -> fx.Node:
    return next(n for n in nodes if n.name == name)


def extents(space: Space, node: fx.Node) -> list[list[Any]]:
    return [[space.extents[a] for a in atoms] for atoms in space.of(node)]


# -- the union-find ---------------------------------------------------------------------------


def test_equal_extents_are_one_axis() -> None:
    space = Space()
    a, b = space.fresh(6), space.fresh(6)
    space.unify((a,), (b,))
    assert space.leaves((a,)) == space.leaves((b,))


def test_a_product_splits_an_axis_for_everyone() -> None:
    space = Space()
    whole, other, left, right = space.fresh(12), space.fresh(12), space.fresh(3), space.fresh(4)
    space.unify((whole,), (other,))
    space.unify((whole,), (left, right))
    assert space.leaves((other,)) == space.leaves((left, right))


def test_factors_are_refined_from_the_innermost() -> None:
    space = Space()
    a = (space.fresh(4), space.fresh(6))
    b = (space.fresh(8), space.fresh(3))
    space.unify(a, b)
    assert [space.extents[x] for x in space.leaves(a)] == [4, 2, 3]
    assert space.leaves(a) == space.leaves(b)


@pytest.mark.parametrize(("a", "b"), [((6, 4), (4, 6)), ((5,), (7,)), ((4, 3), (3,))])
def test_factors_that_do_not_divide_are_a_conflict(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    space = Space()
    with pytest.raises(Conflict):
        space.unify([space.fresh(n) for n in a], [space.fresh(n) for n in b])


def test_joining_copies() -> None:
    left, right = Space(), Space()
    a, b = left.fresh(6), right.fresh(6)
    joined = left.join(right)
    joined.unify((a,), (b,))
    assert joined.leaves((a,)) == joined.leaves((b,))
    assert left.leaves((a,)) == (a,)


# -- operations -------------------------------------------------------------------------------


def test_broadcasting_aligns_from_the_right() -> None:
    space, nodes = space_of_graph(lambda x, y: x * y, torch.randn(2, 3, 4), torch.randn(3, 1))
    (mul,) = nodes
    batch, row, column = space.of(mul)
    assert space.of((mul, (1,))) == (row, ())
    assert space.of((mul, (0,))) == (batch, row, column)


def test_a_dimension_of_extent_one_has_no_axis() -> None:
    space, (node,) = space_of_graph(lambda x: x.exp(), torch.randn(1, 5))
    assert [len(atoms) for atoms in space.of(node)] == [0, 1]


def test_reductions_fold_the_axes_of_their_operand() -> None:
    space, nodes = space_of_graph(lambda x: (x * 2).sum(1), torch.randn(2, 3, 4))
    mul, total = nodes
    batch, row, column = space.of(mul)
    assert space.of(total) == (batch, column)
    assert space.leaves(space.folded[total]) == row


def test_statistics_broadcast_back_to_their_rows() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True)

    space, nodes = space_of_graph(fn, torch.randn(5, 7))
    mean, sub = nodes
    assert space.of(mean)[0] == space.of(sub)[0]
    assert space.leaves(space.folded[mean]) == space.of(sub)[1]


def test_permute_and_unsqueeze_move_axes() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y.permute(2, 0, 1).unsqueeze(1) * 2

    space, nodes = space_of_graph(fn, torch.randn(2, 3, 4))
    a, b, c = space.of(nodes[0])
    assert space.of(nodes[-1]) == (c, (), a, b)


def test_reshape_merges_dimensions() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.exp().reshape(6, 4) + 1

    space, nodes = space_of_graph(fn, torch.randn(2, 3, 4))
    a, b, c = space.of(nodes[0])
    assert space.of(nodes[-1]) == (a + b, c)


def test_reshape_splits_an_axis_that_was_merged_elsewhere() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y.reshape(2, 3, 4) * y.reshape(2, 3, 4).sum(0)

    space, nodes = space_of_graph(fn, torch.randn(6, 4))
    rows, _ = space.of(nodes[0])
    assert [space.extents[a] for a in rows] == [2, 3]


def test_symbolic_sizes_split_where_they_are_products() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.exp().reshape(x.shape[0] * x.shape[1], x.shape[2]) + 1

    space, nodes = space_of_graph(fn, torch.randn(2, 3, 4), symbolic=True)
    exp, add = (n for n in nodes if n.name in ("exp", "add"))
    a, b, c = space.of(exp)
    assert space.of(add) == (a + b, c)


@pytest.mark.parametrize(
    "changes",
    [
        lambda y: y[:, 1:],
        lambda y: y.flip(1),
        lambda y: torch.constant_pad_nd(y, [1, 2]),
        lambda y: torch.cat([y, y], 1),
        lambda y: y[:, torch.tensor([0, 2])],
    ],
)
def test_what_changes_a_dimension_leaves_it_apart(changes: Callable[..., Any]) -> None:
    space, nodes = space_of_graph(lambda x: changes(x.exp()) * 2, torch.randn(3, 5))
    row, column = space.of(named(nodes, "exp"))
    out_row, out_column = space.of(nodes[-1])
    assert out_row == row
    assert out_column != column


def test_an_axis_twice_in_one_value_is_a_conflict() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y[:, None] - y[None, :]

    with pytest.raises(Conflict, match="twice"):
        space_of_graph(fn, torch.randn(5))


def test_an_input_may_be_read_along_two_axes() -> None:
    space, nodes = space_of_graph(lambda x: x[:, None] - x[None, :], torch.randn(5))
    sub = nodes[-1]
    rows, columns = space.of(sub)
    assert rows != columns


def test_two_views_of_one_input_are_read_in_the_same_axes() -> None:
    """Group norm: statistics over [N, G, C/G * H * W], the result over [N, C, H, W]."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        mean = x.reshape(2, 2, 36).mean(-1)
        return x * mean[:, :, None, None]

    graph = traced(fn, torch.randn(2, 2, 6, 6))
    calls = [n for n in graph.nodes if n.op == "call_function"]
    inside = [n for n in calls if n.target is not aten.view.default]
    space = infer(Facts(graph_lowerings(), inside=inside), inside)
    mean, mul = named(inside, "mean"), named(inside, "mul")
    assert space.atoms((mean, (0,))) == space.atoms(mul)
    assert extents(space, mul) == [[2], [2], [6], [6]]
