"""Wrong answers of the host that must not be ours: a test per guard, and known programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from torch_helion import _testing
from torch_helion.capture import host_faults, inductor_compat
from torch_helion.capture.backend import helion

Arguments = Callable[[], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _no_caches() -> Iterator[None]:
    with inductor_compat.without_caches():
        yield


def compare(
    fn: Callable[..., Any], arguments: Arguments, exact: bool = True, **kwargs: Any
) -> None:
    """Results, and arguments after the call, are those of the plain program."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    ours = arguments()
    got = torch.compile(fn, backend=helion, **kwargs)(*ours)
    torch.manual_seed(0)
    theirs = arguments()
    want = fn(*theirs)
    got, want = (list(torch.utils._pytree.tree_leaves(x)) for x in ((got, ours), (want, theirs)))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if exact or not a.is_floating_point():
            assert torch.equal(torch.nan_to_num(a, 7.5), torch.nan_to_num(b, 7.5))
            if a.is_floating_point():
                assert torch.equal(torch.signbit(a), torch.signbit(b))
        else:
            torch.testing.assert_close(a, b, equal_nan=True)


def needs_guard(name: str, fn: Callable[..., Any], arguments: Arguments, **kwargs: Any) -> None:
    """Right with all guards; without this one it is wrong, or the guard is there for nothing."""
    compare(fn, arguments, **kwargs)
    row = next(row for row in host_faults.OPTION_GUARDS if row.name == name)
    without = {option: not value for option, value in row.options.items()}
    try:
        compare(fn, arguments, options=without, **kwargs)
    except Exception:
        return
    pytest.skip(f"this version of the host does not need the guard {name!r} here")


def without_graph_guard(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = tuple(row for row in host_faults.GRAPH_GUARDS if row.name != name)
    assert len(rows) + 1 == len(host_faults.GRAPH_GUARDS)
    monkeypatch.setattr(host_faults, "GRAPH_GUARDS", rows)


# ---------------------------------------------------------------------- option guards


def test_every_option_exists_and_says_why() -> None:
    for row in host_faults.OPTION_GUARDS:
        assert set(row.options) <= inductor_compat.option_names()
        assert len(row.why) > 20
    names = [row.name for row in (*host_faults.OPTION_GUARDS, *host_faults.GRAPH_GUARDS)]
    assert len(set(names)) == len(names)


def test_patterns() -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.permute(1, 0, 2, 3) / math.sqrt(8)).softmax(-1) @ v

    def arguments() -> tuple[torch.Tensor, ...]:
        q, k, v = (torch.randn(8, 8, 8, 8) for _ in range(3))
        return q, k.permute(1, 0, 2, 3), v

    with torch.no_grad():
        needs_guard("patterns", attention, arguments, exact=False)


def test_constant_folding() -> None:
    needs_guard(
        "constant_folding",
        lambda x: (x + torch.zeros_like(x)).sort().values,
        lambda: (torch.tensor([-0.0, 0.0, -1.0]),),
    )


def test_precision_casts() -> None:
    needs_guard(
        "precision_casts",
        lambda x: x.to(torch.bfloat16).to(torch.float32) * 3 - x,
        lambda: (torch.randn(50),),
    )


def test_layout_optimisation() -> None:
    before = inductor_compat.generated_cpp_kernels()
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        compare(net, lambda: (torch.randn(2, 3, 9, 9),), exact=False)
    assert inductor_compat.generated_cpp_kernels() == before, "no copies between layouts"


# ---------------------------------------------------------------------- program guards


def test_updates_of_halves_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fn, arguments = KNOWN["product_and_sum_of_halves"]
    compare(fn, arguments)
    monkeypatch.setattr(host_faults, "PROGRAM_GUARDS", ())
    try:
        compare(fn, arguments)
    except AssertionError:
        return
    pytest.skip("this version of dynamo does not cut the update")


# ---------------------------------------------------------------------- graph guards


def shift_rows(x: torch.Tensor) -> torch.Tensor:
    x[1:] = x[:-1].clone()
    return x


def scatter_own_rows(x: torch.Tensor) -> torch.Tensor:
    x[torch.tensor([0, 2, 3])] = x[1:4] + 0.0
    x.index_add_(0, torch.tensor([1, 1]), x[2:4].clone())
    return x


def copy_then_change(dst: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    dst[0:, :] = src[0:, :]
    src.mul_(3)
    return src + 1


def test_overlapping_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Arguments = lambda: (torch.randn(6, 4),)  # noqa: E731
    compare(shift_rows, arguments)
    compare(scatter_own_rows, arguments)
    without_graph_guard(monkeypatch, "overlapping_sources")
    with pytest.raises((AssertionError, RuntimeError)):
        compare(shift_rows, arguments)


def test_sources_written_before(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Arguments = lambda: (torch.zeros(3, 8), torch.randn(3, 8))  # noqa: E731
    compare(copy_then_change, arguments)
    without_graph_guard(monkeypatch, "sources_written_before")
    with pytest.raises(AssertionError):
        compare(copy_then_change, arguments)


def test_promised_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator whose fake implementation tells other strides than it returns."""
    with torch.library._scoped_library("helion_test", "FRAGMENT") as library:
        library.define("transposed(Tensor x) -> Tensor")
        library.impl("transposed", lambda x: x.t().contiguous().t() * 2, "CPU")
        library.impl("transposed", torch.empty_like, "Meta")

        def fn(x: torch.Tensor) -> torch.Tensor:
            return torch.exp(torch.ops.helion_test.transposed(x)) + x

        arguments: Arguments = lambda: (torch.randn(5, 7),)  # noqa: E731
        compare(fn, arguments, exact=False)
        compare(fn, arguments, exact=False, dynamic=True)
        without_graph_guard(monkeypatch, "promised_strides")
        with pytest.raises(AssertionError):
            compare(fn, arguments, exact=False)


def test_graphs_without_a_fault_stay_as_they_are() -> None:
    with _testing.recorded_graphs() as graphs:
        compare(
            lambda x, w: torch.exp(x @ w), lambda: (torch.randn(3, 4), torch.randn(4, 5)), False
        )
    assert graphs[0].faults == []


def test_memory_of_what_was_written_in_place_is_not_reused() -> None:
    """The host takes the result of an in-place operator for a buffer of its own."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(6, 8)
        zeros[[0, 2]] = x
        return (torch.exp(zeros) @ w).relu() + 1

    compare(fn, lambda: (torch.randn(2, 8), torch.randn(8, 8)), exact=False)


def test_in_place_on_views_in_a_chain() -> None:
    def fn(x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.exp(x)
        y[:, 1].add_(1)
        y[rows] = y[rows] * 2
        z = y.t()
        z[0] = 3
        return y + 1, z.sum(0), torch.tanh(x)

    compare(fn, lambda: (torch.randn(5, 4), torch.tensor([1, 3])), exact=False)


# ---------------------------------------------------------------------- input guards


def test_zero_tensors() -> None:
    x = torch.randn(5, requires_grad=True)
    (zero,) = torch.autograd.grad(torch.sgn(x).sum(), x)
    assert zero._is_zerotensor()
    assert host_faults.refusal([zero]) is not None
    assert host_faults.refusal([torch.zeros(5), 3]) is None
    assert torch.compile(lambda t: (t * 2 + 1).sum(), backend=helion)(zero).item() == 5


# ---------------------------------------------------------------------- programs that are known

INT = torch.arange(-14, 14)
KNOWN: dict[str, tuple[Callable[..., Any], Arguments]] = {
    "floor_division_of_a_number": (
        lambda *xs: tuple(torch.div(x, 0.7, rounding_mode="floor") for x in xs),
        lambda: (torch.tensor([-7.0, 7.0, 0.7, -0.7]), torch.tensor([-7, 7, 14])),
    ),
    "any_of_bytes": (
        lambda x: x.any(-1), lambda: (torch.tensor([[0, 2], [0, 0]], dtype=torch.uint8),),
    ),
    "maximum_of_bools": (
        lambda x: x.logical_not().max(-1, keepdim=True), lambda: (torch.rand(4, 5) > 0.5,),
    ),
    "power_of_a_transposed": (
        lambda x: torch.pow(2, x.t()), lambda: (torch.arange(12).reshape(3, 4),),
    ),
    "index_add_on_one_row": (
        lambda x, s: x.index_add(0, torch.tensor([0, 0, 0]), s),
        lambda: (torch.zeros(1, 3), torch.ones(3, 3)),
    ),
    "inactive_dropout_then_mutation": (
        lambda x: _dropout_then_mutate(x), lambda: (torch.randn(4),),
    ),
    "product_and_sum_of_halves": (
        lambda x, a, b: x.addcmul_(a, b, value=0.3).addcdiv_(b, a, value=-0.7).lerp_(b, 0.1),
        lambda: tuple((torch.rand(3, 1000) + 0.5).bfloat16()),
    ),
    "product_of_halves_read_twice": (
        lambda x, a, b: (a.add_(1), x.addcmul_(a, b, value=0.3) + a * b),
        lambda: tuple((torch.rand(3, 100) + 0.5).half()),
    ),
    "bits_read_before_a_write": (lambda x: _bits(x), lambda: (INT.reshape(4, 7).clone(),)),
    "clone_given_to_a_mutation": (
        lambda x: x.clone().index_fill_(0, torch.tensor([1]), 5.0) + x, lambda: (torch.randn(4),),
    ),
    "running_sum_of_a_number": (
        lambda x: torch.cumsum(torch.tensor(3.0), 0) + x, lambda: (torch.randn(3),),
    ),
    "large_positions": (
        lambda x: (torch.arange(3, dtype=torch.int64) + 2**40) * x,
        lambda: (torch.tensor([1, 2, 3]),),
    ),
    "remainder_of_huge_ratios": (
        lambda a, b: (torch.remainder(a, b), a // b, torch.fmod(a, b)),
        lambda: (torch.tensor([1e10, -3e20, -7.5, 5.3]), torch.tensor([3e-12, 7e-3, 2.0, -0.7])),
    ),
    "extremes_of_bytes": (
        lambda u, i: (u.amin(), u.argmin(), i.amax(), i.argmax()),
        lambda: (torch.arange(3, 40, dtype=torch.uint8), -torch.arange(3, 40, dtype=torch.int8)),
    ),
}  # fmt: skip


def _dropout_then_mutate(x: torch.Tensor) -> torch.Tensor:
    y = F.dropout(x, 0.5, training=False)
    y.add_(1)
    return y


def _bits(x: torch.Tensor) -> torch.Tensor:
    y = x.view(torch.int32) ^ 5
    y.add_(2)
    x[:, 1:4] = 9
    return y.view(torch.int64)


@pytest.mark.parametrize("name", KNOWN)
def test_known_programs(name: str) -> None:
    fn, arguments = KNOWN[name]
    with torch.no_grad():
        compare(fn, arguments)


def test_gradient_of_a_key_shared_by_the_heads() -> None:
    heads, d = 4, 8

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        f = (x @ w.t()).view(b, s, heads + 2, d)
        q = f[..., :-2, :].transpose(1, 2).reshape(b, heads, s, d)
        k = f[..., [-2], :].transpose(1, 2).reshape(b, 1, s, d)
        v = f[..., [-1], :].transpose(1, 2).reshape(b, 1, s, d)
        return (q @ k.transpose(-1, -2) / math.sqrt(d)).softmax(-1) @ v

    x = torch.randn(2, 16, heads * d)
    w = (torch.randn((heads + 2) * d, heads * d) * 0.1).requires_grad_()
    ours = torch.autograd.grad(torch.compile(fn, backend=helion)(x, w).square().sum(), w)
    theirs = torch.autograd.grad(fn(x, w).square().sum(), w)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_targets_out_of_range_are_an_error() -> None:
    fn = torch.compile(F.binary_cross_entropy, backend=helion)
    compare(F.binary_cross_entropy, lambda: (torch.rand(5), torch.rand(5)), exact=False)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        fn(torch.tensor([0.5, 1.5]), torch.tensor([0.0, 1.0]))
