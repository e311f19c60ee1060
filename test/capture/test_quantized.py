"""Weights of integers in graphs: what is read in registers, what is right, what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_helion import _testing
from torch_helion.capture import contraction, inductor_compat
from torch_helion.capture.graph_pass import GraphRecord

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
I8, U8 = torch.int8, torch.uint8
N, K, GROUP = 83, 256, 64
Weight = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch, strict: None) -> Iterator[None]:
    """Every product that can be a kernel is one; small sizes would be the library's."""
    monkeypatch.setattr(contraction, "library_is_as_fast", lambda tiles: None)
    with inductor_compat.without_caches():
        yield
    torch._dynamo.reset()


def bytes_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    low, high = (-128, 128) if dtype is I8 else (0, 256)
    return torch.randint(low, high, shape).to(dtype)


def numbers(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return (torch.rand(shape) * 0.01 + 0.001).to(dtype)


def double(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def run(fn: Callable[..., Any], *args: Any) -> list[GraphRecord]:
    """Compiled, eager and in float64; what was done with the graphs."""
    with torch.no_grad(), _testing.recorded_graphs() as graphs:
        got = torch.compile(fn, backend="helion")(*args)
        _testing.assert_right(got, fn(*args), fn(*map(double, args)))
    return graphs


def byte_kernels(graphs: list[GraphRecord]) -> list[Any]:
    """Kernels of products that read bytes."""
    found = []
    for region in (r for g in graphs for r in g.regions):
        product = any(op.startswith(("aten.mm", "aten.addmm")) for op in region.nodes)
        if product and {b.dtype for b in region.kernel.arguments} & {I8, U8}:
            found.append(region)
    return found


def reads_in_place(region: Any) -> bool:
    """Whether the code makes the weight in registers."""
    return "] += A · " in region.text


# -- spellings ----------------------------------------------------------------


def grouped(w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (w.view(N, K // GROUP, GROUP) * s[:, :, None]).view(N, K)


EIGHT_BITS: dict[str, tuple[torch.dtype, tuple[int, ...], Weight]] = {
    "less a number only": (I8, (N,), lambda q, s, dt: q.to(dt) - 3),
    "of each output": (I8, (N,), lambda q, s, dt: q.to(dt) * s[:, None]),
    "scale first": (I8, (N, 1), lambda q, s, dt: s * q.to(dt)),
    "less a number": (U8, (N,), lambda q, s, dt: (q.to(dt) - 128) * s.unsqueeze(1)),
    "wide difference": (U8, (N,), lambda q, s, dt: (q.to(torch.int32) - 128).to(dt) * s[:, None]),
    "of each group": (I8, (N, K // GROUP), lambda q, s, dt: grouped(q.to(dt), s)),
    "viewed first": (
        I8,
        (N, K // GROUP, 1),
        lambda q, s, dt: (q.view(N, -1, GROUP).to(dt) * s).reshape(N, K),
    ),
    "groups side by side": (
        U8,
        (K // GROUP, N),
        lambda q, s, dt: (q.to(dt).view(N, -1, GROUP) * s.t().unsqueeze(-1)).flatten(1),
    ),
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_a_byte_each(name: str, dtype: torch.dtype) -> None:
    small, shape, weight = EIGHT_BITS[name]
    q, s = bytes_of(small, N, K), numbers(*shape, dtype=dtype)
    rows = 1 if dtype is BF16 else 5
    graphs = run(
        lambda x, q, s: F.linear(x, weight(q, s, x.dtype)), torch.randn(rows, K).to(dtype), q, s
    )
    (region,) = byte_kernels(graphs)
    assert reads_in_place(region)
    assert not any(g.left for g in graphs)


def neighbours(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return torch.stack([low, high], -1).view(N, K)


FOUR_BITS: dict[str, tuple[torch.dtype, Weight]] = {
    "neighbours": (U8, lambda p: neighbours(p & 0xF, p >> 4).to(I8) - 8),
    "converted before": (U8, lambda p: neighbours((p & 15).to(I8) - 8, (p >> 4).to(I8) - 8)),
    "high first": (U8, lambda p: neighbours(p >> 4, p & 15).to(I8) - 8),
    "halves": (U8, lambda p: torch.cat([p & 15, p >> 4], 1).to(I8) - 8),
    "high half first": (U8, lambda p: torch.cat([p >> 4, p & 15], 1).to(torch.int32) - 8),
    "signed": (I8, lambda p: neighbours((p << 4) >> 4, p >> 4)),
    "signed bytes, masked": (I8, lambda p: neighbours(p & 15, (p >> 4) & 15) - 8),
    "divided": (U8, lambda p: neighbours(p % 16, p // 16).to(I8) - 8),
    "without an offset": (U8, lambda p: neighbours(p & 15, p >> 4)),
    "a difference that wraps back": (U8, lambda p: (neighbours(p & 15, p >> 4) - 8).to(I8)),
    "a concatenation of columns": (
        U8,
        lambda p: torch.cat([(p & 15)[..., None], (p >> 4)[..., None]], 2).reshape(N, K).to(I8) - 8,
    ),
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("name", FOUR_BITS)
def test_two_in_a_byte(name: str, dtype: torch.dtype) -> None:
    small, integers = FOUR_BITS[name]
    p, s = bytes_of(small, N, K // 2), numbers(N, K // GROUP, dtype=dtype)

    def fn(x: torch.Tensor, p: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x @ grouped(integers(p).to(x.dtype), s).t()

    rows = 1 if dtype is F32 else 3
    (region,) = byte_kernels(run(fn, torch.randn(rows, K).to(dtype), p, s))
    assert reads_in_place(region)


@pytest.mark.parametrize("length", [32, 64, 128, 256])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("zeros", ["none", "float", "bytes"])
def test_groups_and_zeros(length: int, halves: bool, zeros: str) -> None:
    p, s = bytes_of(U8, N, K // 2), numbers(N, K // length)
    z = torch.randint(0, 16, (N, K // length)).to(U8 if zeros == "bytes" else F32)

    def fn(x, p, s, z):  # type: ignore[no-untyped-def]
        low, high = p & 15, p >> 4
        q = torch.cat([low, high], 1) if halves else torch.stack([low, high], 2)
        q = q.view(N, -1, length)
        if zeros == "float":
            q = q.to(x.dtype) - z[..., None]
        elif zeros == "bytes":
            q = q.to(torch.int16) - z.to(torch.int16)[..., None]
        w = q.to(x.dtype) * s[..., None]
        return torch.mm(x, w.view(N, K).t())

    (region,) = byte_kernels(run(fn, torch.randn(2, K), p, s, z))
    assert reads_in_place(region)


# -- what stands around ----------------------------------------------------------------


def test_bias_and_activation_are_in_the_kernel() -> None:
    p, s, b = bytes_of(U8, N, K // 2), numbers(N, K // GROUP, dtype=BF16), torch.randn(N).to(BF16)

    def fn(x, p, s, b, r):  # type: ignore[no-untyped-def]
        w = grouped((neighbours(p & 15, p >> 4).to(I8) - 8).to(x.dtype), s)
        return F.gelu(F.linear(x, w, b)) + r

    graphs = run(fn, torch.randn(1, 3, K).to(BF16), p, s, b, torch.randn(1, 3, N).to(BF16))
    (region,) = byte_kernels(graphs)
    assert [len(g.regions) for g in graphs] == [1] and reads_in_place(region)


def test_a_gated_unit_of_two_quantised_weights() -> None:
    def fn(x, q, s, p, t):  # type: ignore[no-untyped-def]
        gate = F.linear(x, q.to(x.dtype) * s[:, None])
        return F.silu(gate) * F.linear(x, p.to(x.dtype) * t[:, None])

    q, p = bytes_of(I8, N, K), bytes_of(I8, N, K)
    (region,) = byte_kernels(run(fn, torch.randn(1, K), q, numbers(N), p, numbers(N)))
    assert [b.dtype for b in region.kernel.arguments].count(I8) == 2


def test_many_rows_store_the_weight_once() -> None:
    q, s = bytes_of(I8, N, K), numbers(N)
    graphs = run(lambda x, q, s: F.linear(x, q.to(x.dtype) * s[:, None]), torch.randn(200, K), q, s)
    assert byte_kernels(graphs) == []


def test_buffers_of_a_module() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", bytes_of(U8, N, K // 2))
            self.register_buffer("scale", numbers(N, K // GROUP))
            self.bias = nn.Parameter(torch.randn(N))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = neighbours(self.packed & 15, self.packed >> 4).to(x.dtype) - 8
            return F.linear(x, grouped(q, self.scale), self.bias)

    net, x = Linear(), torch.randn(1, K)
    compiled = torch.compile(net, backend="helion")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
            net.packed.data.fill_(0x5A)  # nothing is kept of a weight between calls
            net.scale = net.scale * 2


def test_training_gives_the_gradient_of_the_input() -> None:
    q, s = bytes_of(I8, N, K), numbers(N)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, q.to(x.dtype) * s[:, None].to(x.dtype)).square().sum()

    grads = []
    for f, dtype in ((torch.compile(fn, backend="helion"), F32), (fn, F32), (fn, torch.float64)):
        torch.manual_seed(1)
        x = torch.randn(2, K).to(dtype).requires_grad_()
        f(x).backward()
        grads.append(x.grad)
    _testing.assert_right(*grads)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 32])
def test_rows_and_ragged_inputs(rows: int) -> None:
    for inputs in (34, 70, 250):
        p, s = bytes_of(U8, 37, inputs // 2), numbers(37)

        def fn(x, p, s):  # type: ignore[no-untyped-def]
            w = torch.stack([p & 15, p >> 4], -1).flatten(1)
            return F.linear(x, (w.to(x.dtype) - 8) * s[:, None])

        (region,) = byte_kernels(run(fn, torch.randn(rows, inputs), p, s))
        assert reads_in_place(region)
        torch._dynamo.reset()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), -0.0])
@pytest.mark.parametrize("where", ["input", "scale"])
def test_what_is_no_number_goes_where_it_goes_eagerly(bad: float, where: str) -> None:
    p, s, x = bytes_of(U8, N, K // 2), numbers(N, K // GROUP), torch.randn(2, K)
    p[:, 7] = 0x99  # no input is multiplied with 0
    p[p == 0x88] = 0x11
    (x if where == "input" else s)[1, 2] = bad

    def fn(x, p, s):  # type: ignore[no-untyped-def]
        return F.linear(x, grouped((neighbours(p & 15, p >> 4).to(I8) - 8).to(x.dtype), s))

    with torch.no_grad():
        got, want = torch.compile(fn, backend="helion")(x, p, s), fn(x, p, s)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)


# -- near misses ----------------------------------------------------------------

NO_WEIGHT: dict[str, Callable[..., Any]] = {
    "a scale of each input": lambda x, q, s: x @ (q.to(x.dtype) * s[0].repeat(GROUP)[None]).t(),
    "groups of outputs": lambda x, q, s: (
        x @ (q[:80].to(x.dtype).view(8, 10, K) * s[:8, :1, None]).view(80, K).t()
    ),
    "wide integers": lambda x, q, s: x @ (q.to(torch.int32) * 3).to(x.dtype).t(),
    "needed twice": lambda x, q, s: (lambda w: (x @ w.t(), w * 2))(q.to(x.dtype) * s[:, :1]),
    "on the left": lambda x, q, s: q.to(x.dtype) @ x.t(),
    "along the outputs": lambda x, q, s: x[:, :N] @ (q.to(x.dtype) * s[:, :1]),
    "groups that cut across": lambda x, q, s: (
        x[:, :96] @ (q[:, :96].to(x.dtype).reshape(N, 4, 24) * s[:, :, None]).reshape(N, 96).t()
    ),
    "scaled twice": lambda x, q, s: x @ (q.to(x.dtype) * s[:, :1] * s[:, 1:2]).t(),
    "an exponent": lambda x, q, s: x @ (q.to(x.dtype) * s[:, :1]).exp().t(),
}


@pytest.mark.parametrize("name", NO_WEIGHT)
def test_other_weights_of_bytes(name: str) -> None:
    q, s = bytes_of(I8, N, K), numbers(N, K // GROUP)
    graphs = run(NO_WEIGHT[name], torch.randn(2, K), q, s)
    assert not any(reads_in_place(r) for g in graphs for r in g.regions)


NO_NIBBLES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "another shift": lambda p: neighbours(p & 15, p >> 3),
    "another mask": lambda p: neighbours(p & 7, p >> 4),
    "both the low ones": lambda p: neighbours(p & 15, p & 15),
    "a difference that wraps": lambda p: neighbours(p & 15, p >> 4) - 8,
    "quarters": lambda p: torch.cat(
        [p[:, :64] & 15, p[:, :64] >> 4, p[:, 64:] & 15, p[:, 64:] >> 4], 1
    ),
    "different offsets": lambda p: neighbours((p & 15).to(I8) - 8, (p >> 4).to(I8) - 7),
    "halves of groups": lambda p: torch.cat(
        [(p & 15).view(N, 8, 16), (p >> 4).view(N, 8, 16)], 2
    ).view(N, K),
    "other bytes": lambda p: neighbours(p & 15, p.flip(1) >> 4),
}


@pytest.mark.parametrize("name", NO_NIBBLES)
def test_other_uses_of_nibbles(name: str) -> None:
    p, s = bytes_of(U8, N, K // 2), numbers(N, K // GROUP)

    def fn(x, p, s):  # type: ignore[no-untyped-def]
        return x @ grouped(NO_NIBBLES[name](p).to(x.dtype), s).t()

    graphs = run(fn, torch.randn(2, K), p, s)
    assert not any(reads_in_place(r) for g in graphs for r in g.regions)


def test_signed_bytes_shifted_only() -> None:
    """The high integer is signed, the low one is not."""
    p, s = bytes_of(I8, N, K // 2), numbers(N, K // GROUP)
    graphs = run(
        lambda x, p, s: x @ grouped(neighbours(p & 15, p >> 4).to(x.dtype), s).t(),
        torch.randn(2, K), p, s,
    )  # fmt: skip
    assert not any(reads_in_place(r) for g in graphs for r in g.regions)


CHANGED: dict[str, Callable[..., Any]] = {
    "bytes": lambda x, q, s: (q.add_(1), x @ (q.to(x.dtype) * s).t(), q.add_(1)),
    "scales": lambda x, q, s: (x @ (q.to(x.dtype) * s).t(), s.mul_(2), x @ (q.to(x.dtype) * s).t()),
    "the input": lambda x, q, s: (
        x @ (q.to(x.dtype) * s).t(),
        x.mul_(2),
        x @ (q.to(x.dtype) * s).t(),
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_the_graph_changes_in_between(name: str) -> None:
    q, s, x = bytes_of(I8, N, K) // 2, numbers(N, 1), torch.randn(2, K)
    mine, theirs = [[t.clone() for t in (x, q, s)] for _ in range(2)]
    fn = CHANGED[name]
    with torch.no_grad():
        got, want = torch.compile(fn, backend="helion")(*mine), fn(*theirs)
    for a, b in zip((*got, *mine), (*want, *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_float16_scales_and_inputs() -> None:
    """A product of float16 is the library's; scales of float16 may stand beside float32."""
    q, s = bytes_of(I8, N, K), numbers(N, dtype=F16)
    graphs = run(
        lambda x, q, s: F.linear(x, q.to(x.dtype) * s[:, None].to(x.dtype)), torch.randn(1, K), q, s
    )
    assert len(byte_kernels(graphs)) == 1
