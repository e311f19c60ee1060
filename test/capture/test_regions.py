"""Which nodes become regions: growth, limits, and what is refused with which reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from region_testing import check_compiled, check_graph, check_traced, traced
from torch import fx

from torch_helion.capture.regions import Limits, find_regions
from torch_helion.capture.units import Units
from torch_helion.lowering.rows import graph_lowerings

aten = torch.ops.aten


def names(nodes: Any) -> list[str]:
    return [n.name for n in nodes]


# -- what grows together ----------------------------------------------------------------------


def test_a_chain_is_one_region() -> None:
    outcome = check_traced(lambda x: (x * 2 + 1).exp().neg(), torch.randn(4, 5))
    (region,) = outcome.regions
    assert names(region.nodes) == ["mul", "add", "exp", "neg"]
    assert names(region.outputs) == ["neg"]
    assert outcome.left() == []


def test_a_product_of_matrices_separates_regions() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.mm(x.exp() * 2, w).sigmoid() + 1

    outcome = check_traced(fn, torch.randn(4, 5), torch.randn(5, 6))
    assert [names(r.outputs) for r in outcome.regions] == [["mul"], ["add"]]
    assert outcome.reason(aten.mm.default) == "no lowering for aten.mm.default"


def test_no_region_closes_a_cycle_through_the_host() -> None:
    """x feeds mm, and what mm gives meets x again: x and the sum cannot be one kernel."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return torch.mm(y, w) + y

    outcome = check_traced(fn, torch.randn(5, 5), torch.randn(5, 5))
    assert [names(r.nodes) for r in outcome.regions] == [["exp"], ["add"]]


def test_values_used_outside_are_outputs() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x * 2
        z = y.exp()
        return torch.mm(y, w), z

    outcome = check_traced(fn, torch.randn(4, 5), torch.randn(5, 6))
    (region,) = outcome.regions
    assert names(region.outputs) == ["mul", "exp"]


def test_views_at_the_rim_stay_outside() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x.view(20, 3).exp() * 2).view(4, 15)

    outcome = check_traced(fn, torch.randn(4, 5, 3))
    (region,) = outcome.regions
    assert names(region.inputs) == ["view"]
    assert names(region.nodes) == ["exp", "mul"]


def test_a_view_that_is_used_inside_and_outside_stays_in_the_graph() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.exp().view(20, 3)
        return torch.mm(y, w), y.neg()

    outcome = check_traced(fn, torch.randn(4, 5, 3), torch.randn(3, 2))
    (region,) = outcome.regions
    assert names(region.outputs) == ["exp", "neg"]
    assert "view" in names(region.nodes)


def test_constants_are_made_again_in_every_region() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(5)[:, None] >= torch.arange(5)[None, :]
        y = torch.where(mask, x, 0.0)
        return torch.where(mask, torch.mm(y, w), 1.0)

    outcome = check_traced(fn, torch.randn(5, 5), torch.randn(5, 5))
    assert [names(r.inputs) for r in outcome.regions] == [["x_1"], ["mm"]]


def test_siblings_that_read_one_tensor_join() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.exp(), x.sin() * 2

    outcome = check_traced(fn, torch.randn(4, 5))
    (region,) = outcome.regions
    assert names(region.outputs) == ["exp", "mul"]


def test_rows_and_columns_of_one_tensor_are_one_region() -> None:
    outcome = check_traced(
        lambda x: (x.softmax(-1), (x * 2).sum(0)),
        torch.randn(40, 6),
        limits=Limits(max_single_step=0),
    )
    assert len(outcome.regions) == 1
    assert len(outcome.kernel.phases) == 2


def test_unrelated_shapes_stay_apart() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.exp(), y.exp()

    outcome = check_traced(fn, torch.randn(4, 5), torch.randn(7))
    assert len(outcome.regions) == 2


# -- what keeps nodes apart -------------------------------------------------------------------


def test_one_axis_twice_is_cut() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y[:, None] - y[None, :]

    outcome = check_traced(fn, torch.randn(7))
    assert [names(r.outputs) for r in outcome.regions] == [["exp"], ["sub"]]


def test_a_reduction_is_not_computed_at_other_places() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        total = x.sum(-1)
        return total[1:] - total[:-1]

    outcome = check_traced(fn, torch.randn(6, 4))
    assert ["sub"] in [names(r.outputs) for r in outcome.regions]
    assert all("sum_1" not in names(r.nodes) or len(r.nodes) == 1 for r in outcome.regions)


def test_expensive_values_are_not_computed_again() -> None:
    """exp of a row vector would be computed once for every row of x."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w.exp()

    outcome = check_traced(fn, torch.randn(64, 6), torch.randn(6))
    assert [names(r.outputs) for r in outcome.regions] == [["exp"], ["mul"]]
    cheap = check_traced(lambda x, w: x * (w + 1), torch.randn(64, 6), torch.randn(6))
    assert len(cheap.regions) == 1


def test_limits() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = x * 2
        return x

    x = torch.randn(4, 5)
    outcome = check_traced(fn, x, limits=Limits(max_nodes=4))
    assert [len(r.nodes) for r in outcome.regions] == [4, 4, 2]
    narrow = check_traced(
        lambda *xs: sum(xs[1:], xs[0]),
        *[torch.randn(3) for _ in range(9)],
        limits=Limits(max_tensors=4),
    )
    assert all(len(r.inputs) + len(r.outputs) <= 4 for r in narrow.regions)
    assert len(narrow.regions) > 1


# -- what is left to the host -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (lambda x: x.to(torch.bfloat16), (torch.randn(4, 5),)),
        (lambda x, y: torch.cat([x, y]), (torch.randn(4, 5), torch.randn(2, 5))),
        (lambda x: x.t().clone(memory_format=torch.contiguous_format), (torch.randn(4, 5),)),
        (lambda w, i: F.embedding(i, w), (torch.randn(4, 5), torch.tensor([1, 2]))),
    ],
)
def test_moving_data_alone_is_not_worth_a_kernel(fn: Any, args: Any) -> None:
    outcome = check_traced(fn, *args)
    assert outcome.regions == []
    assert outcome.declined[-1].reason == "only moves or converts data: ATen is as fast"


def test_a_single_sum_is_left_to_aten() -> None:
    outcome = check_traced(lambda x: x.sum(), torch.randn(4, 5))
    assert outcome.regions == []
    assert outcome.reason(aten.sum.default) == "a single call that ATen runs as fast"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.randn(4, 5).to(torch.complex64), "dtype torch.complex64"),
        (lambda: torch.randn(0, 5), "a tensor without elements"),
    ],
)
def test_tensors_that_kernels_do_not_take(make: Any, reason: str) -> None:
    outcome = check_traced(lambda x: x * x, make())
    assert outcome.regions == []
    assert reason in outcome.reason(aten.mul.Tensor)


def test_a_node_without_a_lowering_in_the_middle() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).cumsum(-1).exp()

    outcome = check_traced(fn, torch.randn(4, 5))
    assert [names(r.outputs) for r in outcome.regions] == [["mul"], ["exp"]]
    assert "no lowering" in outcome.reason(aten.cumsum.default)


def test_sizes_that_depend_on_data() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.nonzero().float() * 2

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        (outcome,) = check_compiled(fn, torch.ones(4))
    assert outcome.regions == []
    reasons = {d.reason for d in outcome.declined}
    assert any("a size that depends on data" in reason for reason in reasons)


def test_a_mutated_input_is_read_where_the_change_comes_last() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(y * 2)
        return x.exp()

    (outcome,) = check_compiled(fn, torch.randn(4, 5), torch.randn(4, 5))
    (region,) = outcome.regions
    assert len(region.inputs) == 2


def test_a_view_of_a_mutated_input_is_not_read() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.view(torch.int32) + 1
        x.mul_(2)
        return y

    (outcome,) = check_compiled(fn, torch.randn(4, 5))
    reason = outcome.reason(aten.add.Tensor)
    assert "is a view of" in reason and "which the graph changes" in reason


def test_random_numbers_of_the_host_are_left_to_it() -> None:
    outcome = check_traced(lambda x: torch.rand_like(x) * 2, torch.rand(4, 5))
    assert [names(r.nodes) for r in outcome.regions] == [["mul"]]
    assert len(outcome.left()) == 1


# -- the machinery ----------------------------------------------------------------------------


def test_regions_come_in_topological_order() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.mm(x.tanh() + 1, w)
        return x

    graph = traced(fn, torch.randn(5, 5), torch.randn(5, 5))
    regions, _ = find_regions(graph, graph_lowerings())
    order = {n: i for i, n in enumerate(graph.nodes)}
    lasts = [order[r.nodes[-1]] for r in regions]
    assert len(regions) == 3 and lasts == sorted(lasts)


def test_every_layer_has_the_same_kernel() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.mm(F.gelu(F.layer_norm(x, (8,), g)), w)
        return x

    outcome = check_traced(fn, torch.randn(5, 8), torch.randn(8, 8), torch.randn(8))
    assert len(outcome.kernels) == 3
    assert len({id(k.kernel) for k in outcome.kernels}) == 1


def test_the_graph_is_not_changed() -> None:
    graph = traced(lambda x: x.softmax(-1), torch.randn(4, 5))
    before = str(graph)
    check_graph(graph)
    assert str(graph) == before


def test_units_find_paths_through_joined_parts() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    b = graph.call_function(torch.neg, (a,))
    c = graph.call_function(torch.neg, (b,))
    d = graph.call_function(torch.neg, (a,))
    e = graph.call_function(torch.add, (c, d))
    graph.output(e)
    units = Units(graph)
    first, last = units.join([b]), units.join([e])
    assert units.would_cycle(first, last)  # b → c → e
    assert not units.would_cycle(units.join([d]), last)
    # Once c stands with d, b reaches e through both.
    units.join([c, d])
    assert units.would_cycle(first, last)
    assert not units.would_cycle(first, units.join([c]))


# -- constants that several regions compute ---------------------------------------------------


def positions(x: torch.Tensor) -> torch.Tensor:
    return (torch.arange(x.size(-1)) + 2).unsqueeze(0) + 1


def test_a_constant_may_be_an_output_here_and_a_part_there() -> None:
    def fn(x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = positions(x)
        return at, table[at % 4], (x * at).softmax(-1)

    (outcome,) = check_compiled(fn, torch.randn(3, 8), torch.randn(8, 4))
    first, second = outcome.regions
    assert set(names(first.outputs)) & set(names(second.nodes))


def test_a_region_that_takes_a_constant_along_stands_once() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = positions(x)
        return torch.cumsum(at, -1), (x * at).softmax(-1) @ w, x.sum(0) * at

    (outcome,) = check_compiled(fn, torch.randn(3, 8), torch.randn(8, 4))
    outputs = [name for r in outcome.regions for name in names(r.outputs)]
    assert len(outputs) == len(set(outputs))


def test_shared_constants_compile_as_a_whole() -> None:
    def fn(x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        at = positions(x)
        y = (x * at).softmax(-1) @ table
        return at, torch.cumsum(at, -1), table[at % 4], y.sum(1)[:, None] * at

    args = torch.randn(3, 8), torch.randn(8, 4)
    got = torch.compile(fn, backend="helion")(*args)
    for a, b in zip(got, fn(*args), strict=True):
        torch.testing.assert_close(a, b)
