"""Kernels of regions against eager evaluation, on the graphs that Inductor hands to a pass.

`check_compiled` compares every kernel of every graph with eager evaluation; what is asserted
here is the shape of what was found: how many kernels, which grid, which phases, what is a
constant and what a size argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from region_testing import Outcome, check_compiled, check_traced, traced
from torch import nn

from torch_helion import exc
from torch_helion.capture.region_to_kernel import Region, kernel_name, region_to_kernel
from torch_helion.ir.graph import Kernel
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Gather
from torch_helion.lowering.rows import graph_lowerings

aten = torch.ops.aten

Tensor = torch.Tensor


def grids(kernel: Kernel) -> list[int]:
    """How many grid axes each phase has."""
    return [len(phase.attrs["axes"]) for phase in kernel.phases]


def axes(kernel: Kernel) -> dict[str, str]:
    return {name: f"{axis.kind} {axis.size}" for name, axis in kernel.axes().items()}


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def only_kernels(outcomes: list[Outcome], *counts: int) -> None:
    """Each graph has that many kernels, and nothing that computes is left to the host."""
    assert [len(o.regions) for o in outcomes] == list(counts)
    assert [o.left() for o in outcomes] == [[] for _ in counts]


# -- the families -----------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    p = p * (1 - 1e-3 * 0.01)
    m = m * 0.9 + g * 0.1
    v = v * 0.999 + g * g * 0.001
    return p - 1e-3 * (m / 0.1) / ((v / 0.001).sqrt() + 1e-8), m, v


def one_row_axis(kernel: Kernel) -> None:
    assert grids(kernel) == [1]
    assert [a.kind for a in kernel.axes().values()] == ["block", "full"]


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]], bool, list[int]]] = {
    "softmax": (lambda x: F.softmax(x, -1), lambda: (leaf(4, 8, 16),), True, [1, 1]),
    "log_softmax": (lambda x: F.log_softmax(x, -1), lambda: (leaf(4, 8, 16),), True, [1, 1]),
    "softmax of columns": (lambda x: F.softmax(x, 0), lambda: (leaf(40, 16),), True, [1, 1]),
    "rms norm bf16": (
        rms_norm,
        lambda: (leaf(4, 8, 16, dtype=torch.bfloat16), leaf(16, dtype=torch.bfloat16)),
        True,
        [1, 1],
    ),
    "bias gelu over a view": (
        lambda x, b: F.gelu(x.view(4, 8, 16) + b, approximate="tanh").view(32, 16),
        lambda: (leaf(32, 16), leaf(16)),
        True,
        [1, 1],
    ),
    "rope": (
        rotate,
        lambda: (torch.randn(2, 5, 3, 8).transpose(1, 2), torch.randn(5, 8), torch.randn(5, 8)),
        False,
        [1],
    ),
    "adamw": (adamw, lambda: tuple(torch.rand(40, 7) for _ in range(4)), False, [1]),
    "column sum": (lambda x: (x * 2).sum(0), lambda: (torch.randn(100, 16),), False, [1]),
    "mean": (lambda x: (x * x).mean(), lambda: (torch.randn(40, 33),), False, [1]),
    "mean of the middle": (lambda x: x.mean(1) * 2, lambda: (torch.randn(4, 50, 16),), False, [1]),
    "cross entropy": (
        lambda x, t: F.cross_entropy(x.view(-1, 16), t),
        lambda: (leaf(4, 8, 16), torch.randint(0, 16, (32,))),
        True,
        [1, 1],
    ),
    "argmax and max": (
        lambda x: (x.argmax(-1), x.max(-1)),
        lambda: (torch.randn(5, 6, 7),),
        False,
        [1],
    ),
    "integers": (
        lambda x: ((x * 3 + 1) % 7).sum(-1, keepdim=True) // 2 - x,
        lambda: (torch.randint(0, 100, (5, 60)),),
        False,
        [1],
    ),
    "triangular mask": (
        lambda x: x.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), float("-inf")).softmax(
            -1
        ),
        lambda: (torch.randn(2, 3, 6, 6),),
        False,
        [1],
    ),
    "pad, cat, roll, flip": (
        lambda x, y: torch.cat([F.pad(x * 2, (1, 2)).exp(), y.roll(2, -1), y.flip(-1)], -1) + 1,
        lambda: (torch.randn(3, 7), torch.randn(3, 6)),
        False,
        [1],
    ),
    "indexing": (
        lambda x, i, j: (x * 2)[i, :, j].sin() + x[i].sum(-1).sum(-1)[:, None],
        lambda: (torch.randn(5, 6, 7), torch.tensor([1, -2, 3]), torch.tensor([-1, 0, 3])),
        False,
        [1],
    ),
    "channels last": (
        lambda x: F.relu(x * 2 + 1).mean((2, 3)),
        lambda: (torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last),),
        False,
        [1],
    ),
    "batch of one step": (
        lambda x: (x - x.mean()) / x.std(),
        lambda: (torch.randn(50, 60),),
        False,
        [1],
    ),
    "scalars": (
        lambda x, y: (x + 1) * y,
        lambda: (torch.tensor(2.0), torch.tensor(3.0)),
        False,
        [1],
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    fn, make, grad, counts = FAMILIES[name]
    only_kernels(check_compiled(fn, *make(), grad=grad), *counts)


@pytest.mark.parametrize("name", ["softmax", "rms norm bf16", "cross entropy", "column sum"])
def test_families_with_dynamic_sizes(name: str) -> None:
    fn, make, grad, counts = FAMILIES[name]
    outcomes = check_compiled(fn, *make(), grad=grad, dynamic=True)
    only_kernels(outcomes, *counts)


def test_layer_norm_with_residual_and_gelu_and_its_backward() -> None:
    norm = nn.LayerNorm(16)
    outcomes = check_compiled(
        lambda x, y: F.gelu(norm(x + y)), leaf(4, 8, 16), leaf(4, 8, 16), grad=True
    )
    only_kernels(outcomes, 1, 1)
    forward, backward = (o.kernel for o in outcomes)
    one_row_axis(forward)
    # dx by rows in phase 1, the weight's and the bias's gradient in phase 2.
    assert grids(backward) == [1, 1]
    assert [b.role for b in backward.buffers].count("workspace") == 2


def test_group_norm_with_silu_is_one_kernel() -> None:
    norm = nn.GroupNorm(2, 4)
    outcomes = check_compiled(lambda x: F.silu(norm(x)), leaf(2, 4, 6, 6), grad=True)
    only_kernels(outcomes, 1, 1)
    # A step is one sample's group: [C/G, H * W] elements, whole.
    assert axes(outcomes[0].kernel) == {
        "i0": "block n0",
        "i1": "block n1",
        "r0": "full 2",
        "r1": "full 36",
    }


def test_batch_norm_in_training() -> None:
    norm = nn.BatchNorm2d(4)
    forward, backward = check_compiled(lambda x: F.relu(norm(x)), leaf(4, 4, 6, 6), grad=True)
    assert len(backward.regions) == 1
    assert max(len(r.nodes) for r in forward.regions) > 15
    assert set(forward.left()) == {"aten.copy_.default"}


def test_dropout_uses_numbers_of_our_own() -> None:
    outcomes = check_compiled(lambda x: F.dropout(x, 0.3), leaf(4, 8, 16), grad=True)
    assert [len(o.regions) for o in outcomes] == [1, 1]
    assert outcomes[0].left() == ["prims.inductor_seeds.default"]
    assert grids(outcomes[0].kernel) == [1]


def test_embedding_add_layer_norm() -> None:
    table, norm = nn.Embedding(10, 16), nn.LayerNorm(16)
    forward, backward = check_compiled(
        lambda i, p: norm(table(i) + p), torch.randint(0, 10, (4, 8)), torch.randn(8, 16), grad=True
    )
    assert len(forward.regions) == 1 and forward.left() == []
    loads = [op for op in forward.kernel.body.walk() if op.kind == "load"]
    gathers = [op for op in loads if any(isinstance(e, Gather) for e in op.attrs["index"])]
    assert len(gathers) == 1 and gathers[0].attrs["checked"]
    assert backward.left() == ["aten._unsafe_masked_index_put_accumulate.default"]


# -- the shape of a kernel --------------------------------------------------------------------


def test_outer_extents_are_arguments_and_folded_ones_constants() -> None:
    outcome = check_traced(lambda x: x.softmax(-1), torch.randn(3, 5, 7))
    assert axes(outcome.kernel) == {"i0": "block n0", "r0": "full 7"}
    assert outcome.kernels[0].sizes == (15,)
    assert outcome.kernels[0].hints == {sympy.Symbol("n0", integer=True, nonnegative=True): 15}


def test_one_kernel_for_every_batch() -> None:
    texts = set()
    for batch in (3, 4):
        outcome = check_traced(lambda x: x.softmax(-1) * 2, torch.randn(batch, 7))
        texts.add(str(outcome.kernel.buffers))
    assert len(texts) == 1


def test_contiguous_axes_run_together() -> None:
    outcome = check_traced(lambda x, y: x * y + 1, torch.randn(3, 5, 7), torch.randn(3, 5, 7))
    assert axes(outcome.kernel) == {"i0": "block n0"}
    broadcast = check_traced(lambda x, y: x * y + 1, torch.randn(3, 5, 7), torch.randn(5, 1))
    assert axes(broadcast.kernel) == {"i0": "block n0", "i1": "block n1", "i2": "block n2"}
    bias = check_traced(lambda x, y: x * y + 1, torch.randn(3, 5, 7), torch.randn(7))
    assert axes(bias.kernel) == {"i0": "block n0", "i1": "block n1"}


def test_grid_axes_follow_memory() -> None:
    """A transposed output: the axis with the longest step in memory is the outer one."""
    x = torch.randn(3, 5).t()
    outcome = check_traced(lambda x, w: x.exp() * w, x, torch.randn(3))
    (region,) = [r for r in outcome.regions if len(r.nodes) == 2]
    kernel = outcome.kernels[outcome.regions.index(region)].kernel
    (out,) = [b for b in kernel.buffers if b.role == "out"]
    assert [str(s) for s in out.strides] == ["1", "n1"]


def test_strides_that_leave_gaps_are_arguments() -> None:
    x = torch.randn(6, 20)[:, :8]
    outcome = check_traced(lambda x: x.softmax(-1), x)
    (kernel,) = outcome.kernels
    assert [s.name for s in kernel.kernel.sizes] == ["n0", "stride_arg0_0"]
    assert kernel.sizes == (6, 20)


def test_expanded_inputs_are_read_once() -> None:
    outcome = check_traced(lambda x: x.exp() + 1, torch.randn(3, 1).expand(3, 4))
    (buffer,) = [b for b in outcome.kernel.buffers if b.role == "in"]
    assert len(buffer.shape) == 1


def test_column_sums_have_two_phases_and_a_workspace() -> None:
    outcome = check_traced(lambda x: (x * 2).sum((0, 1)), torch.randn(20, 5, 16))
    kernel = outcome.kernel
    assert grids(kernel) == [2, 1]
    (partial,) = [b for b in kernel.buffers if b.role == "workspace"]
    n0, block = sympy.symbols("n0 block_i0")
    text = str(partial.shape[0])
    assert text == str(sympy.ceiling(n0 / block))


def test_a_few_rows_are_summed_in_one_phase() -> None:
    outcome = check_traced(lambda x: (x * 2).sum(0), torch.randn(4, 500))
    assert grids(outcome.kernel) == [1]


def test_a_mean_over_leading_axes_that_are_not_one() -> None:
    """[B, S, H] with a gap between batches: B and S cannot be one axis."""
    x = torch.randn(40, 6, 8)[:, :5]
    outcome = check_traced(lambda x: (x * x).mean((0, 1)), x)
    assert grids(outcome.kernel) == [2, 1]


def test_index_tensors_that_are_ranges_need_no_gather() -> None:
    def fn(x: Tensor) -> Tensor:
        return x[torch.arange(3)[:, None], torch.arange(2) + 1] * 2

    outcome = check_traced(fn, torch.randn(4, 5))
    loads = [op for op in outcome.kernel.body.walk() if op.kind == "load"]
    assert len(loads) == 1
    assert not any(isinstance(e, Gather) for e in loads[0].attrs["index"])


def test_names() -> None:
    outcome = check_traced(lambda x: x.exp().neg().exp().sin().cos().tan(), torch.randn(4, 5))
    assert outcome.kernel.name == "fused_exp_neg_sin_cos"
    assert [b.name for b in outcome.kernel.arguments] == ["arg0", "out0"]


# -- values -----------------------------------------------------------------------------------


SPECIAL = torch.tensor(
    [
        [float("nan"), float("inf"), -float("inf"), 0.0],
        [-0.0, 1.0, -1.0, 3e38],
        [1.0, 2.0, 3.0, 4.0],
    ]
)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.softmax(-1),
        lambda x: (x * 2).amax(0),
        lambda x: (x * 2).sum(0),
        lambda x: torch.cat([x * 2, -x], 1).flip(0),
        lambda x: F.pad(x + 1, (1, 1), value=-1.0) * 2,
        lambda x: (x * 2)[:, 1:] - (x * 2)[:, :-1],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_special_values(fn: Callable[..., Any], dtype: torch.dtype) -> None:
    check_traced(fn, SPECIAL.to(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (33, 65)])
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.softmax(-1),
        lambda x: (x - x.mean(0)) * 2,
        lambda x: F.layer_norm(x, x.shape[-1:]) + x.sum(),
        lambda x: torch.cat([x, x * 2], -1).reshape(-1) + 1,
    ],
)
def test_small_and_ragged_shapes(fn: Callable[..., Any], shape: tuple[int, ...]) -> None:
    check_traced(fn, torch.randn(shape))
    check_traced(fn, torch.randn(shape), symbolic=True)


def test_no_rows() -> None:
    """A kernel made for some rows runs on none."""
    outcome = check_traced(lambda x: ((x * 2).sum(0), x.exp()), torch.randn(40, 5), symbolic=True)
    (built,) = outcome.kernels
    sizes = [0 if value == 40 else value for value in built.hints.values()]
    exp, total = torch.empty(0, 5), torch.full((5,), 7.0)
    tensors = {"exp": exp, "sum_1": total}
    run(built.kernel, [tensors.get(n.name, torch.empty(0, 5)) for n in built.tensors], sizes, 2)
    assert total.tolist() == [0.0] * 5


def test_an_index_out_of_range_is_an_error() -> None:
    def fn(w: Tensor, i: Tensor) -> Tensor:
        return F.embedding(i, w) * 2

    outcome = check_traced(fn, torch.randn(4, 5), torch.tensor([0, 3]))
    (built,) = outcome.kernels
    values = {"w_1": torch.randn(4, 5), "i_1": torch.tensor([0, 4]), "mul": torch.empty(2, 5)}
    tensors = [values[n.name] for n in built.tensors]
    with pytest.raises(IndexError):
        run(built.kernel, tensors, [int(n) for n in built.sizes])


def test_integer_division_behind_a_condition_is_refused() -> None:
    """The lanes of the other part would divide by what masked loads hold: zero."""

    def fn(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x // y, x], 0) + 1

    outcome = check_traced(fn, torch.tensor([7, 8]), torch.tensor([2, 3]))
    assert len(outcome.regions) >= 1
    assert all(not {"div", "cat"} <= {n.name for n in region.nodes} for region in outcome.regions)


# -- refusals ---------------------------------------------------------------------------------


def whole_region(graph: torch.fx.Graph) -> Region:
    nodes = tuple(n for n in graph.nodes if n.op == "call_function")
    inputs = tuple(n for n in graph.nodes if n.op == "placeholder")
    (output,) = [n for n in graph.nodes if n.op == "output"]
    outputs = output.args[0] if isinstance(output.args[0], tuple | list) else (output.args[0],)
    return Region(nodes, inputs, tuple(outputs), kernel_name(nodes))


def refuse(fn: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(exc.LoweringError) as error:
        region_to_kernel(whole_region(traced(fn, *args)), graph_lowerings())
    return str(error.value)


def test_region_of_unrelated_outputs() -> None:
    why = refuse(lambda x, y: (x.exp(), y.exp()), torch.randn(4, 5), torch.randn(7))
    assert "lacks an axis" in why


def test_region_with_one_axis_twice() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x.exp()
        return y[:, None] - y[None, :]

    assert "twice" in refuse(fn, torch.randn(5))


def test_region_that_needs_a_column_sum_for_every_element() -> None:
    why = refuse(lambda x: (x.softmax(-1), x - (x * 2).sum(0)), torch.randn(300, 400))
    assert "long together" in why or "second phase" in why or "every element" in why


def test_region_that_reduces_at_other_places() -> None:
    def fn(x: Tensor) -> Tensor:
        total = x.sum(-1)
        return total[1:] - total[:-1]

    assert "lacks an axis" in refuse(fn, torch.randn(6, 4))


def test_region_with_outputs_that_overlap() -> None:
    graph = traced(lambda x: x.exp(), torch.randn(4, 5))
    region = whole_region(graph)
    (exp,) = region.nodes
    exp.meta["val"] = exp.meta["val"].as_strided((4, 5), (1, 1))
    with pytest.raises(exc.LoweringError, match="gaps or overlap"):
        region_to_kernel(region, graph_lowerings())


# -- symbolic sizes ---------------------------------------------------------------------------


SYMBOLIC: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "a size as a number": (
        lambda x: x * x.shape[0] + torch.arange(x.shape[1]),
        (torch.randn(5, 6),),
    ),
    "cat of two sizes": (
        lambda x, y: torch.cat([x.exp(), y], 0) * 2,
        (torch.randn(5, 6), torch.randn(7, 6)),
    ),
    "pad by a size": (lambda x: F.pad(x * 2, (0, x.shape[0])) + 1, (torch.randn(5, 6),)),
    "half of a size": (
        lambda x: x.reshape(x.shape[0], 2, x.shape[1] // 2).softmax(-1),
        (torch.randn(9, 6),),
    ),
    "roll and flip": (lambda x: (x * 2).roll(1, 0) + x.flip(0, 1), (torch.randn(9, 6),)),
    "windows": (lambda x: x.unfold(1, 3, 2) * 2, (torch.randn(4, 9),)),
    "norm, then rope": (
        lambda x, w, c, s: rotate((rms_norm(x, w)).transpose(1, 2), c, s),
        (torch.randn(2, 5, 4, 6), torch.randn(6), torch.randn(5, 6), torch.randn(5, 6)),
    ),
    "scatter into a slice": (
        lambda x, y: torch.slice_scatter(x, y * 2, 1, 2, 4) + 1,
        (torch.randn(9, 6), torch.randn(9, 2)),
    ),
    "gather of rows": (
        lambda x, t: -x.log_softmax(-1).gather(1, t[:, None])[:, 0].mean(),
        (torch.randn(40, 7), torch.randint(0, 7, (40,))),
    ),
}


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes(name: str, symbolic: bool) -> None:
    fn, args = SYMBOLIC[name]
    outcome = check_traced(fn, *args, symbolic=symbolic)
    assert len(outcome.regions) == 1 and outcome.left() == []
