"""Products with what follows them as one kernel: what is taken, what is right, what is left.

Sizes are small, so the choice between ours and the library is made by the fixture `ours`; the rules
themselves have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_helion import _hardware, _testing
from torch_helion.capture import (
    contraction,
    contraction_choice,
    contraction_measure,
    inductor_compat,
)
from torch_helion.capture.contraction_choice import Class, Product, Tiles, library_is_as_fast
from torch_helion.capture.contraction_measure import Sample, derive
from torch_helion.capture.graph_pass import GraphRecord
from torch_helion.runtime import artifact_cache

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, strict: None) -> Iterator[None]:
    """Every product that can be a kernel is one."""
    monkeypatch.setattr(contraction, "library_is_as_fast", lambda tiles: None)
    with inductor_compat.without_caches():
        yield


def double(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def compare(fn: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> list[GraphRecord]:
    """Run compiled and eagerly; what was done with the graphs."""
    with torch.no_grad(), _testing.recorded_graphs() as graphs:
        got = torch.compile(fn, backend="helion", dynamic=dynamic)(*args)
        want = fn(*args)
        _testing.assert_right(got, want, fn(*map(double, args)))
    return graphs


def kernels(graphs: list[GraphRecord]) -> list[list[str]]:
    """The products of every kernel."""
    found = []
    for graph in graphs:
        for region in graph.regions:
            names = [op.split(".")[1] for op in region.nodes if op.count(".") == 2]
            found.append([n for n in names if n in ("mm", "addmm")])
    return found


def why(graphs: list[GraphRecord], target: str) -> set[str]:
    return {d.reason for g in graphs for d in g.declined if d.target == f"aten.{target}.default"}


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = F32) -> list[torch.Tensor]:
    return [torch.randn(s).to(dtype) for s in shapes]


# -- what is taken ----------------------------------------------------------------------------

EPILOGUES: dict[str, Callable[..., torch.Tensor]] = {
    "nothing": lambda y, r: y,
    "gelu": lambda y, r: F.gelu(y),
    "gelu_tanh": lambda y, r: F.gelu(y, approximate="tanh"),
    "silu": lambda y, r: F.silu(y),
    "relu": lambda y, r: F.relu(y),
    "residual": lambda y, r: y + r,
    "scale": lambda y, r: y * 0.125,
    "cast": lambda y, r: y.to(BF16 if y.dtype is F32 else F32),
    "row": lambda y, r: y * r[..., :1],
    "mask": lambda y, r: torch.where(r > 0, y, 0.0),
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", EPILOGUES)
def test_a_linear_layer_with_what_follows(ours: None, name: str, dtype: torch.dtype) -> None:
    follow = EPILOGUES[name]
    x, w, b, r = tensors((3, 19, 67), (83, 67), (83,), (3, 19, 83), dtype=dtype)
    graphs = compare(lambda x, w, b, r: follow(F.linear(x, w, b), r), x, w, b, r)
    assert kernels(graphs) == [["addmm"]]


SHAPES = [(1, 67, 83), (2, 300, 40), (16, 67, 83), (49, 530, 70), (130, 33, 257)]


@pytest.mark.parametrize("layout", ["kk", "kn", "mk", "mn"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts_and_extents(ours: None, layout: str, dtype: torch.dtype) -> None:
    for m, k, n in SHAPES:
        (a,) = tensors((m, k) if layout[0] == "k" else (k, m), dtype=dtype)
        (b,) = tensors((k, n) if layout[1] == "n" else (n, k), dtype=dtype)

        def fn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            left = a if layout[0] == "k" else a.t()
            return torch.relu(left @ (b if layout[1] == "n" else b.t())) + 1

        assert kernels(compare(fn, a, b)) == [["mm"]]
        torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_number_of_rows_that_is_not_known(ours: None, dtype: torch.dtype) -> None:
    w, b = tensors((83, 67), (83,), dtype=dtype)
    fn = torch.compile(lambda x: F.gelu(F.linear(x, w, b)), backend="helion", dynamic=True)
    with torch.no_grad(), _testing.recorded_graphs() as graphs:
        for rows in (5, 2, 33, 140, 600):
            x = torch.randn(2, rows, 67).to(dtype)
            want, exact = F.gelu(F.linear(x, w, b)), F.gelu(F.linear(*map(double, (x, w, b))))
            _testing.assert_right(fn(x), want, exact)
    assert kernels(graphs) == [["addmm"]]


def test_a_sliced_operand_and_a_padded_result(ours: None) -> None:
    """Rows further apart than they are long."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x[:, 3:70] @ w[:67].t()[:67])

    compare(fn, *tensors((20, 90), (83, 67)))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (2, 1), (0.5, 0.25), (0, 1)])
def test_factors(ours: None, alpha: float, beta: float) -> None:
    def fn(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.addmm(c, a, b, alpha=alpha, beta=beta).exp()

    a, b = tensors((20, 30), (30, 40))
    for c in tensors((40,), (20, 1), (1, 40), (20, 40)):
        assert kernels(compare(fn, c, a * 0.1, b * 0.1)) == [["addmm"]]
        torch._dynamo.reset()


def test_a_bias_times_nothing_is_not_read(ours: None) -> None:
    def fn(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.addmm(c, a, b, beta=0)

    compare(fn, torch.full((40,), float("nan")), *tensors((20, 30), (30, 40)))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("rows", [1, 9, 60])
def test_what_is_no_number_stays_in_its_row(ours: None, bad: float, rows: int) -> None:
    x, w, b = tensors((rows, 67), (83, 67), (83,))
    x[rows // 2, 5] = bad
    compiled = torch.compile(lambda *a: F.relu(F.linear(*a)), backend="helion")
    with torch.no_grad():
        got, want = compiled(x, w, b), F.relu(F.linear(x, w, b))
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_two_products_of_one_input(ours: None) -> None:
    """A gated unit: neither product is stored."""
    x, w, u = tensors((20, 67), (83, 67), (83, 67))
    graphs = compare(lambda x, w, u: F.silu(x @ w.t()) * (x @ u.t()), x * 0.2, w * 0.2, u)
    assert kernels(graphs) == [["mm", "mm"]]
    (kernel,) = (r.kernel for g in graphs for r in g.regions)
    assert [b.role for b in kernel.arguments].count("out") == 1


def test_a_product_that_others_need_is_stored_too(ours: None) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x @ w.t()
        return torch.tanh(y), y.cumsum(0)

    graphs = compare(fn, *tensors((20, 67), (83, 67)))
    assert kernels(graphs) == [["mm"]]


@pytest.mark.parametrize(
    ("small", "rows", "dtype"),
    [
        (torch.int8, 1, BF16),
        (torch.uint8, 1, F32),
        (torch.int8, 7, F32),
        (torch.uint8, 20, BF16),
        (torch.int8, 60, BF16),
    ],
)
def test_weights_of_bytes_are_read_as_bytes(
    ours: None, small: torch.dtype, rows: int, dtype: torch.dtype
) -> None:
    """Converted where they are multiplied, whichever way the program turns them."""
    (x, scale) = tensors((rows, 67), (83,), dtype=dtype)
    weight = torch.randint(0, 255, (83, 67)).to(small)

    def before(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.linear(x, q.to(x.dtype)) * scale

    def after(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x @ q.t().to(x.dtype)) * scale

    for fn in (before, after):
        graphs = compare(fn, x, weight, scale)
        assert kernels(graphs) == [["mm"]]
        (kernel,) = (r.kernel for g in graphs for r in g.regions)
        assert [b.dtype for b in kernel.arguments].count(small) == 1
        assert not any(g.left for g in graphs)
        torch._dynamo.reset()


NOT_BYTES: dict[str, Callable[..., Any]] = {
    "needed twice": lambda x, q: (x @ q.to(x.dtype), q.to(x.dtype) + 1),
    "wide integers": lambda x, q: x @ q.to(torch.int32).to(x.dtype),
    "scaled first": lambda x, q: x @ (q.to(x.dtype) * 0.5),
    "on the left": lambda x, q: q.to(x.dtype) @ x.t(),
}


@pytest.mark.parametrize("name", NOT_BYTES)
def test_conversions_that_stay_where_they_are(ours: None, name: str) -> None:
    graphs = compare(
        NOT_BYTES[name], torch.randn(9, 40), torch.randint(-9, 9, (40, 40)).to(torch.int8)
    )
    assert kernels([g for g in graphs])[-1:] != []
    for region in (r for g in graphs for r in g.regions if "mm" in r.name):
        assert torch.int8 not in [b.dtype for b in region.kernel.arguments]


def test_layers_share_a_kernel(ours: None) -> None:
    def fn(x: torch.Tensor, *layers: torch.Tensor) -> torch.Tensor:
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            x = F.linear(x, weight, bias)
        return x

    layers = tensors((96, 64), (96,), (64, 96), (64,), (96, 64), (96,))
    graphs = compare(fn, torch.randn(40, 64), *layers)
    assert kernels(graphs) == [["addmm"]] * 3
    first, _, third = (r.text for g in graphs for r in g.regions)
    assert first == third, "the length of the sum and of the rows are arguments"


def test_training(ours: None) -> None:
    net = nn.Sequential(nn.Linear(40, 90), nn.GELU(), nn.Linear(90, 33), nn.SiLU())
    exact = nn.Sequential(nn.Linear(40, 90), nn.GELU(), nn.Linear(90, 33), nn.SiLU()).double()
    exact.load_state_dict(net.state_dict())
    x = torch.randn(6, 11, 40, requires_grad=True)
    gradients = []
    with _testing.recorded_graphs() as graphs:
        for model, value in (
            (torch.compile(net, backend="helion"), x),
            (net, x),
            (exact, x.double()),
        ):
            out = model(value)
            parameters = list(exact.parameters() if model is exact else net.parameters())
            gradients.append([out, *torch.autograd.grad(out.square().sum(), [value, *parameters])])
    _testing.assert_right(*gradients)
    assert sum(len(found) for found in kernels(graphs)) == 6


def test_dropout_after_a_product_drops_the_same_in_the_backward(ours: None) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.linear(x, w), 0.5, training=True)

    x, w = tensors((20, 67), (83, 67))
    w.requires_grad_()
    with _testing.recorded_graphs() as graphs:
        out = torch.compile(fn, backend="helion")(x, w)
        (grad,) = torch.autograd.grad(out.sum(), [w])
    kept = (out != 0).to(F32)
    assert 0.3 < kept.mean() < 0.7
    torch.testing.assert_close(out, F.linear(x, w) * kept * 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad, (2 * kept).t() @ x, rtol=1e-4, atol=1e-4)
    assert kernels(graphs)[0] == ["mm"]


# -- what is left -----------------------------------------------------------------------------

LEFT: dict[str, tuple[Callable[..., Any], list[torch.Tensor], str]] = {
    "float64": (torch.mm, [torch.randn(20, 30).double(), torch.randn(30, 40).double()], "float64"),
    "float16": (torch.mm, [torch.randn(20, 30).half(), torch.randn(30, 40).half()], "float16"),
    "integers": (torch.mm, [torch.ones(20, 30).int(), torch.ones(30, 40).int()], "int32"),
    "a column": (torch.mm, [torch.randn(20, 30), torch.randn(30, 1)], "vector"),
    "an outer product": (torch.mm, [torch.randn(20, 1), torch.randn(1, 40)], "vector"),
    "every second element": (
        lambda a, b: torch.mm(a[:, ::2], b),
        [torch.randn(20, 60), torch.randn(30, 40)],
        "side by side",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_products_that_stay_with_the_library(ours: None, name: str) -> None:
    fn, args, reason = LEFT[name]
    graphs = compare(fn, *args)
    assert kernels(graphs) == []
    (given,) = why(graphs, "mm")
    assert reason in given


FOLLOWED_BY: dict[str, Callable[..., Any]] = {
    "a reduction of its rows": lambda y, r: torch.softmax(y, -1),
    "a reduction of its columns": lambda y, r: (y * 2).sum(0),
    "moved elements": lambda y, r: torch.cat([-y[:, 41:], y[:, :41]], 1) * r,
    "another axis": lambda y, r: y[None] + r[:5, None],
    "its own transpose": lambda y, r: y[:, :20] + y[:, :20].t(),
    "a flip": lambda y, r: y.flip(0) + r,
}


@pytest.mark.parametrize("name", FOLLOWED_BY)
def test_what_is_not_pointwise_stays_apart(ours: None, name: str) -> None:
    """The product is a kernel of its own; what follows is one as before."""
    follow = FOLLOWED_BY[name]

    def fn(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return follow(x @ w.t(), r)

    graphs = compare(fn, *tensors((20, 67), (82, 67), (20, 82)))
    assert [k for k in kernels(graphs) if k] == [["mm"]]
    regions = [r.nodes for g in graphs for r in g.regions if "aten.mm.default" in r.nodes]
    assert [len(operators) for operators in regions] == [1]


def test_a_path_through_the_library_keeps_them_apart(ours: None) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x @ w
        return y + y.cumsum(0)

    graphs = compare(fn, *tensors((20, 30), (30, 40)))
    assert all(len(r.nodes) == 1 for g in graphs for r in g.regions if "mm" in r.name)


def test_a_chain_of_products_is_one_kernel_each(ours: None) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.relu(x @ w) @ w) @ w + x

    assert kernels(compare(fn, *tensors((40, 40), (40, 40)))) == [["mm"]] * 3


def test_an_operand_that_the_graph_changes(ours: None) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        w.mul_(2)
        y = x @ w
        w.add_(1)
        return torch.relu(y @ w)

    x, w = tensors((20, 30), (30, 30))
    other = w.clone()
    with torch.no_grad():
        got = torch.compile(fn, backend="helion")(x, w)
        want = fn(x, other)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(w, other)


def test_a_result_that_is_copied_onto_an_operand(ours: None) -> None:
    """Every row of the operand is read for every column: it must not be written meanwhile."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> None:
        x.copy_(torch.relu(x @ w))

    x, w = tensors((700, 64), (64, 64))
    other = x.clone()
    with torch.no_grad():
        torch.compile(fn, backend="helion")(x, w)
        fn(other, w)
    torch.testing.assert_close(x, other, rtol=1e-4, atol=1e-4)


# -- the choice -------------------------------------------------------------------------------


def tiles(
    m: int, k: int, n: int, dtype: torch.dtype = F32, units: str = "kk", following: int = 0
) -> Tiles:
    return Tiles((Product(dtype, m, n, k, *units),), following)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose products were measured."""
    monkeypatch.setattr(contraction_choice, "_rules", lambda machine: contraction_choice.ZEN4)
    has = contraction_choice.host_machine().has
    if not has("avx512bf16"):
        pytest.skip("no products of bfloat16")


def test_large_products_of_float32_are_ours(measured: None) -> None:
    for m, k, n in ((1, 768, 3072), (16, 768, 3072), (1024, 384, 1536), (2048, 1024, 4096)):
        assert library_is_as_fast(tiles(m, k, n)) is None


def test_bfloat16_is_ours_with_few_rows_or_with_work_behind_it(measured: None) -> None:
    assert library_is_as_fast(tiles(1024, 768, 768, BF16)) is not None
    assert library_is_as_fast(tiles(1024, 768, 768, BF16, following=3)) is None
    for rows in (16, 48, 64):
        assert library_is_as_fast(tiles(rows, 768, 3072, BF16)) is None
    assert library_is_as_fast(tiles(48, 768, 3072, BF16, units="kn")) is not None


def test_bytes_are_ours_with_few_rows(measured: None) -> None:
    few, many = (Product(BF16, m, 768, 768, "k", "k", bytes=True) for m in (1, 512))
    assert library_is_as_fast(Tiles((few,), 1)) is None
    assert library_is_as_fast(Tiles((many,), 1)) is not None


def test_gradients_of_weights_with_long_sums_are_the_librarys(measured: None) -> None:
    assert library_is_as_fast(tiles(768, 4096, 768, units="mn")) is not None
    assert library_is_as_fast(tiles(768, 256, 768, units="mn")) is None


def test_small_products_are_the_librarys(measured: None) -> None:
    assert library_is_as_fast(tiles(16, 64, 64)) == "a small product"


@pytest.mark.parametrize(("name", "precision"), [("medium", "bf16"), ("high", "tf32")])
def test_lower_precision_of_the_library_is_respected(
    measured: None, name: str, precision: str
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        assert precision in str(library_is_as_fast(tiles(512, 768, 768)))
        assert library_is_as_fast(tiles(16, 768, 768, BF16)) is None
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a table, on which nothing was measured yet."""
    monkeypatch.setattr(_hardware, "llvm_cpu", lambda: "another")
    monkeypatch.setattr(contraction_choice, "_machine_key", lambda: "0" * 64)
    contraction_choice.recorded.cache_clear()
    yield
    artifact_cache.put("products", "0" * 64, b"")
    contraction_choice.recorded.cache_clear()


def test_other_machines_leave_products_to_the_library(another: None) -> None:
    assert "not measured" in str(library_is_as_fast(tiles(512, 768, 768)))


def test_what_was_measured_is_remembered(another: None) -> None:
    before = contraction_choice.choice_key()
    contraction_choice.record({(F32, "k", "k"): Class(rows=64), (BF16, "k", "n"): Class(matrix=9)})
    assert library_is_as_fast(tiles(64, 768, 768)) is None
    assert library_is_as_fast(tiles(65, 768, 768)) is not None
    assert library_is_as_fast(tiles(16, 768, 768, units="mn")) is not None, "not measured"
    assert contraction_choice.choice_key() != before


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'[["float32", "k", "k", {"columns": 3}]]'])
def test_rules_that_cannot_be_read_are_none(another: None, data: bytes) -> None:
    artifact_cache.put("products", "0" * 64, data)
    contraction_choice.recorded.cache_clear()
    assert library_is_as_fast(tiles(64, 768, 768)) is not None


def test_rules_from_samples() -> None:
    def samples(*losing: tuple[int, int]) -> list[Sample]:
        sizes = [(m, k, n) for m in (1, 16, 256) for k, n in ((64, 64), (64, 256), (768, 768))]
        return [Sample(m, k, n, 0.9 if (m, k * n) in losing else 1.2) for m, k, n in sizes]

    assert derive(samples()) == contraction_choice.ALL
    assert derive(samples((256, 768 * 768))) == Class(rows=16, matrix=64 * 256)
    assert derive(samples((16, 64 * 256))) == Class(rows=1, matrix=64 * 64)
    assert derive(samples((1, 64 * 64))) == Class()


def test_measuring_runs(monkeypatch: pytest.MonkeyPatch, another: None) -> None:
    monkeypatch.setattr(contraction_measure, "ROWS", (3,))
    monkeypatch.setattr(contraction_measure, "MATRICES", ((40, 24),))
    monkeypatch.setattr(contraction_measure, "SECONDS", 0.0)
    assert contraction_measure.main() == 0
    found = contraction_choice.recorded()
    assert found is not None and set(found) == set(contraction_measure.keys())


@pytest.mark.parametrize("units", ["kk", "kn", "mk", "mn"])
def test_a_product_that_is_measured_is_right(units: str) -> None:
    a = torch.randn(33, 21) if units[0] == "k" else torch.randn(21, 33).t()
    b = torch.randn(21, 18) if units[1] == "n" else torch.randn(18, 21).t()
    out = torch.empty(33, 18)
    contraction_measure.own_product(a, b, out)()
    torch.testing.assert_close(out, a @ b, rtol=1e-4, atol=1e-4)
