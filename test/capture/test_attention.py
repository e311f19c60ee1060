"""Attention in graphs: what is matched, what only looks like it, and that the numbers are right."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_helion
from torch_helion import _testing
from torch_helion.capture import attention, attention_emit
from torch_helion.capture.backend import register
from torch_helion.explain import ExplainReport

INF = math.inf
Tensor = torch.Tensor
pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def qkv(
    batch: int = 2, heads: int = 3, rows: int = 70, keys: int = 70, depth: int = 16,
    dtype: torch.dtype = torch.float32, shared: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    q = torch.randn(batch, heads, rows, depth).to(dtype)
    k, v = (torch.randn(batch, shared or heads, keys, depth).to(dtype) for _ in "kv")
    return q, k, v


def double(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_float else value


def run(fn: Callable[..., Any], *args: Any, matched: bool = True, **options: Any) -> ExplainReport:
    """The report; the program's output is right, and an attention became a kernel (or did not)."""
    torch._dynamo.reset()  # else sizes that differ from an earlier call's are dynamic
    report = torch_helion.explain(fn, *args, compile_options=options)
    names = [r.name for r in report.regions if r.name.startswith("attention")]
    assert bool(names) is matched, (names, [(d.target, d.reason) for d in report.declined])
    assert not report.fallbacks
    _testing.assert_right(report.output, fn(*args), fn(*map(double, args)))
    return report


def why(report: ExplainReport) -> str:
    return "; ".join(d.reason for d in report.declined)


sdpa = F.scaled_dot_product_attention


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores(q, k), -1) @ v


# -- ATen's operator ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_operator(dtype: torch.dtype, causal: bool) -> None:
    run(lambda q, k, v: sdpa(q, k, v, is_causal=causal), *qkv(dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        {"rows": 1, "keys": 300},
        {"rows": 5, "keys": 1200},
        {"rows": 300, "keys": 7},
        {"batch": 1, "heads": 1, "rows": 129, "keys": 513, "depth": 24},
        {"heads": 6, "shared": 2, "rows": 40},
        {"heads": 6, "shared": 1, "rows": 1},
        {"heads": 6, "shared": 3, "rows": 3, "keys": 600},
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_operator_sizes(sizes: dict[str, Any], causal: bool) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, is_causal=causal, enable_gqa="shared" in sizes)

    run(fn, *qkv(**sizes))


def test_one_key_and_no_head_size() -> None:
    q, k, v = qkv(keys=1)
    run(sdpa, q, k, v, matched=False)
    q, k, v = qkv(rows=0)
    run(sdpa, q, k, v, matched=False)


def test_operator_with_a_mask() -> None:
    q, k, v = qkv(rows=40)
    mask = torch.randn(40, 70)
    run(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m, scale=0.3), q, k, v, mask)
    run(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), q, k, v, torch.randn(2, 1, 1, 70))
    run(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m > 0.5), q, k, v, mask)


def test_rows_that_a_mask_hides_wholly_are_zero() -> None:
    q, k, v = qkv(rows=40)
    mask = torch.randn(40, 70) > 0
    mask[3] = False
    report = run(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), q, k, v, mask)
    assert report.output[:, :, 3].eq(0).all()


def test_operator_in_parts() -> None:
    """With values of another width the operator is decomposed; rows without a key are 0 there."""
    q, k, v = qkv(rows=40)
    mask = torch.randn(40, 70) > 0
    mask[3] = False
    run(lambda q, k, v: sdpa(q, k, v[..., :5]), q, k, v)
    report = run(lambda q, k, v, m: sdpa(q, k, v[..., :5], attn_mask=m), q, k, v, mask)
    assert report.output[:, :, 3].eq(0).all()


@pytest.mark.parametrize("mask", [False, True])
def test_logsumexp_is_what_the_backward_expects(mask: bool) -> None:
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    q, k, v = qkv(rows=40)
    hidden = torch.where(torch.rand(40, 70) > 0.5, 0.0, -INF)
    hidden[7] = -INF

    def fn(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Any:
        return op(q, k, v, 0.0, not mask, attn_mask=m if mask else None)

    run(fn, q, k, v, hidden)


def gradients_of(fn: Callable[..., Tensor], args: list[Tensor], weight: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in args]
    return list(torch.autograd.grad((fn(*leaves) * weight).sum(), leaves))


def check_gradients(fn: Callable[..., Tensor], args: list[Tensor]) -> list[str]:
    """Compare gradients by the accuracy rule; the names of the kernels that made them."""
    weight = torch.randn(fn(*args).shape).to(args[0].dtype)
    compiled = torch.compile(fn, backend="helion")
    with _testing.recorded_graphs() as records:
        got = gradients_of(compiled, args, weight)
    truth = gradients_of(fn, [x.double() for x in args], weight.double())
    _testing.assert_right(got, gradients_of(fn, args, weight), truth)
    return [region.name for record in records for region in record.regions]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(causal: bool, dtype: torch.dtype) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, is_causal=causal, enable_gqa=True)

    names = check_gradients(fn, list(qkv(heads=4, shared=2, rows=150, keys=150, dtype=dtype)))
    assert {"attention", "attention_backward"} <= set(names)


@pytest.mark.parametrize(
    "sizes",
    [
        {"rows": 5, "keys": 300},
        {"rows": 300, "keys": 5},
        {"heads": 4, "shared": 1, "batch": 4},
        {"batch": 1, "heads": 2, "rows": 129, "keys": 257, "depth": 24},
    ],
    ids=str,
)
def test_gradients_of_sizes(sizes: dict[str, Any]) -> None:
    for causal in (False, True):

        def fn(q: Tensor, k: Tensor, v: Tensor, causal: bool = causal) -> Tensor:
            return sdpa(q, k, v, is_causal=causal, enable_gqa="shared" in sizes)

        assert "attention_backward" in check_gradients(fn, list(qkv(**sizes)))


def test_gradients_with_a_mask_and_in_other_layouts() -> None:
    hidden = torch.where(torch.rand(70, 70) > 0.5, 0.0, -INF)
    hidden[7] = -INF
    hidden = hidden + torch.randn(70, 70)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, k, v, attn_mask=hidden.to(q.dtype))

    def joined(x: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in x.unbind(2))
        return sdpa(q, k, v).transpose(1, 2).reshape(2, 70, 48)

    assert "attention_backward" in check_gradients(masked, list(qkv()))
    assert "attention_backward" in check_gradients(joined, [torch.randn(2, 70, 3, 3, 16)])


def test_one_gradient_of_a_single_query_is_left() -> None:
    names = check_gradients(sdpa, list(qkv(rows=1)))
    assert "attention" in names and "attention_backward" not in names


def test_layouts() -> None:
    """Heads inside of rows, rows cut out of longer ones, keys as columns, strides of 0."""
    x = torch.randn(2, 70, 3, 3, 16)
    run(lambda x: sdpa(*(t.transpose(1, 2) for t in x.unbind(2))), x)
    q, k, v = qkv(keys=90)
    run(sdpa, q, k[:, :, 5:80], v[:, :, 5:80])
    columns = k.transpose(-1, -2).contiguous().transpose(-1, -2)
    run(sdpa, q, columns, v)
    run(sdpa, q, k[:1].expand(2, -1, -1, -1), v[:, :1].expand(-1, 3, -1, -1))


def test_dynamic_lengths() -> None:
    fn = torch.compile(lambda q, k, v: sdpa(q, k, v, is_causal=True), backend="helion")
    with _testing.recorded_graphs() as records:
        for rows in (64, 77, 200, 5):
            args = qkv(rows=rows, keys=rows)
            for x in args:
                torch._dynamo.mark_dynamic(x, 2)
            _testing.assert_right(fn(*args), sdpa(*args, is_causal=True))
    assert len(records) == 1 and records[0].regions


def test_a_growing_cache() -> None:
    """One query, one more key at each call: one graph."""
    torch._dynamo.reset()
    fn = torch.compile(plain, backend="helion")
    with _testing.recorded_graphs() as records:
        for keys in (100, 101, 102, 700):
            q, k, v = qkv(rows=1, keys=keys)
            for x in (k, v):
                torch._dynamo.mark_dynamic(x, 2)
            _testing.assert_right(fn(q, k, v), plain(q, k, v))
    assert [r.name for record in records for r in record.regions] == ["attention"]


def test_keys_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few heads and queries on many cores: a second phase joins what parts of the keys gave."""
    monkeypatch.setattr(attention_emit._hardware, "cores", lambda: 8)
    attention._built.clear()
    grouped = lambda q, k, v: sdpa(q, k, v, enable_gqa=True)  # noqa: E731
    sizes: dict[str, Any] = {"batch": 1, "keys": 2500, "depth": 32}
    report = run(grouped, *qkv(heads=4, shared=1, rows=1, **sizes))
    assert "hl.barrier" in loop_of(report)
    run(grouped, *qkv(heads=4, shared=2, rows=3, dtype=torch.bfloat16, **sizes))
    run(lambda q, k, v: plain(q, k, v).transpose(1, 2).reshape(1, 5, 96), *qkv(rows=5, **sizes))
    mask = torch.full((3, 2500), -INF)
    mask[1, 7], mask[2, 2400:] = 0, 0
    run(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), *qkv(heads=1, rows=3, **sizes), mask)
    window = lambda q, k, v: (  # noqa: E731
        torch.softmax(scores(q, k).masked_fill(difference(q, k) < -900, -INF), -1) @ v
    )
    report = run(window, *qkv(heads=1, rows=3, **sizes))
    assert "flags" in loop_of(report)
    attention._built.clear()


def test_dropout_is_left() -> None:
    q, k, v = qkv()
    report = torch_helion.explain(lambda q, k, v: sdpa(q, k, v, dropout_p=0.2), q, k, v)
    assert not any(r.name.startswith("attention") for r in report.regions)


# -- plain spellings ------------------------------------------------------------------------------


def repeat(x: Tensor, times: int) -> Tensor:
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, times, s, d).reshape(b, h * times, s, d)


def einsum_half(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k).float() * 0.25, -1)
    return torch.einsum("bhqk,bhkd->bhqd", weights.to(q.dtype), v)


PLAIN: dict[str, Callable[..., Any]] = {
    "plain": plain,
    "scale on the query": lambda q, k, v: torch.softmax((q * 0.3) @ k.mT, -1) @ v,
    "scale on the key": lambda q, k, v: torch.softmax(q @ (k * 0.3).mT, -1) @ v,
    "softcap": lambda q, k, v: torch.softmax(20 * torch.tanh(scores(q, k) / 20), -1) @ v,
    "einsum": lambda q, k, v: torch.einsum("bhqk,bhkd->bqhd", torch.softmax(scores(q, k), -1), v),
    "transposed scores": lambda q, k, v: torch.softmax((k @ q.mT) * 0.2, -2).transpose(-1, -2) @ v,
    "heads joined": lambda q, k, v: plain(q, k, v).transpose(1, 2).reshape(2, 70, 48),
    "shared keys": lambda q, k, v: plain(q, repeat(k[:, :1], 3), repeat(v[:, :1], 3)),
    "narrow values": lambda q, k, v: plain(q, k, v[..., :5]),
    "three dimensions": lambda q, k, v: plain(q[0], k[0], v[0]),
    "nothing between": lambda q, k, v: torch.softmax(torch.bmm(q[0], k[0].mT), -1) @ v[0],
    "two dimensions": lambda q, k, v: plain(q[0, 0], k[0, 0], v[0, 0]),
    "written out": lambda q, k, v: (lambda e: (e / e.sum(-1, keepdim=True)) @ v)(
        (lambda s: torch.exp(s - s.amax(-1, keepdim=True)))(scores(q, k))
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str) -> None:
    run(PLAIN[name], *qkv())


def test_plain_in_half_types() -> None:
    run(plain, *qkv(dtype=torch.bfloat16))
    run(einsum_half, *qkv(dtype=torch.bfloat16))
    run(einsum_half, *qkv(dtype=torch.float16))


def difference(q: Tensor, k: Tensor) -> Tensor:
    return torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])[None, :]


def test_biases() -> None:
    q, k, v = qkv()
    bias = torch.randn(3, 70, 70)
    run(lambda q, k, v, b: torch.softmax(scores(q, k) + b, -1) @ v, q, k, v, bias)
    slopes = torch.rand(3, 1, 1)
    run(
        lambda q, k, v, s: torch.softmax(scores(q, k) - s * difference(q, k), -1) @ v,
        q, k, v, slopes,
    )  # fmt: skip
    padding = torch.randint(0, 2, (2, 1, 1, 70))
    padding[..., 0] = 1
    run(
        lambda q, k, v, p: torch.softmax(scores(q, k).masked_fill(p == 0, -INF), -1) @ v,
        q, k, v, padding,
    )  # fmt: skip


def test_a_product_with_something_added() -> None:
    q, k, v = (x[0] for x in qkv())
    bias = torch.randn(3, 1, 70)
    for beta, alpha in ((1.0, 0.25), (0.5, 1.0), (0, 2.0)):
        run(
            lambda q, k, v, b, beta=beta, alpha=alpha: (
                torch.softmax(torch.baddbmm(b, q, k.mT, beta=beta, alpha=alpha), -1) @ v
            ),
            q, k, v, bias, matched=beta != 0,
        )  # fmt: skip


def test_one_query_and_a_scalar_tensor() -> None:
    q, k, v = qkv(rows=1, keys=600)
    run(plain, q, k, v)
    run(lambda q, k, v, t: torch.softmax((q @ k.mT) / t, -1) @ v, q, k, v, torch.tensor(3.0))


def test_two_attentions_share_a_kernel() -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(plain(q, k, v), k, v)

    report = run(twice, *qkv())
    first, second = (r.code for r in report.regions)
    assert first == second


# -- plain spellings in training ------------------------------------------------------------------


def biased_by_position(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    return torch.softmax(scores(q, k) - slopes[:, None, None] * difference(q, k), -1) @ v


def softcapped_and_joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = 5 * torch.tanh(scores(q, k) / 5)
    s = s.masked_fill(difference(q, k) < 0, -INF)
    return (torch.softmax(s, -1) @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


def in_float(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax((q @ k.mT) * 0.25, -1, dtype=torch.float32)
    return weights.to(q.dtype) @ v


def hidden_in_memory(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = hidden_by_memory("nowhere", 300, 300)
    return torch.softmax(scores(q, k).masked_fill(~seen, LEAST), -1) @ v


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    d = difference(q, k)
    return torch.softmax(torch.where((d >= 0) & (d < 40), scores(q, k), LEAST), -1) @ v


TRAINING: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "softcapped": (softcapped_and_joined, {"rows": 300, "keys": 300}),
    "shared keys": (
        lambda q, k, v: biased_by_position(q, repeat(k, 2), repeat(v, 2)),
        {"heads": 4, "shared": 2, "keys": 90},
    ),
    "half": (in_float, {"dtype": torch.bfloat16, "keys": 90}),
    "window": (window, {"rows": 300, "keys": 300}),
}
MORE_TRAINING: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "plain": (plain, {"rows": 5, "keys": 300}),
    "half": (plain, {"dtype": torch.bfloat16}),
    "hidden in memory": (hidden_in_memory, {"heads": 4, "rows": 300, "keys": 300}),
    "einsum": (PLAIN["einsum"], {}),
    "scaled query": (PLAIN["scale on the query"], {}),
    "three dimensions": (PLAIN["three dimensions"], {}),
    "narrow values": (PLAIN["narrow values"], {}),
}


def check_training(fn: Callable[..., Tensor], args: list[Tensor]) -> None:
    """Gradients are right, and both halves are kernels."""
    names = check_gradients(fn, args)
    assert {"attention", "attention_backward"} <= set(names)


@pytest.mark.parametrize("name", TRAINING)
def test_training(name: str) -> None:
    fn, sizes = TRAINING[name]
    check_training(fn, list(qkv(**sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_TRAINING)
def test_more_training(name: str) -> None:
    fn, sizes = MORE_TRAINING[name]
    check_training(fn, list(qkv(**sizes)))


def test_scores_are_not_saved() -> None:
    saved: list[int] = []
    args = [x.requires_grad_() for x in qkv(rows=64, keys=64)]
    compiled = torch.compile(softcapped_and_joined, backend="helion")

    def keep(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        compiled(*args)
    assert saved and max(saved) < 2 * 3 * 64 * 64


@pytest.mark.slow
def test_training_that_is_left() -> None:
    """Weights that are returned, a bias that is learned, dropped weights: nothing is recomputed."""
    for fn in (
        lambda q, k, v: (lambda w: w @ v + w.sum())(torch.softmax(scores(q, k), -1)),
        lambda q, k, v: torch.softmax(scores(q, k) + q[0, 0] @ v[0, 0].mT, -1) @ v,
    ):
        names = check_gradients(fn, list(qkv()))
        assert "attention_backward" not in names


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_training_with_what_is_not_finite(bad: float) -> None:
    args = list(qkv(heads=2, rows=300, keys=300))
    for place in range(3):
        broken = [x.clone() for x in args]
        broken[place][0, 1, 200, 3] = bad
        weight = torch.ones(2, 300, 32)
        got = gradients_of(torch.compile(softcapped_and_joined, backend="helion"), broken, weight)
        want = gradients_of(softcapped_and_joined, broken, weight)
        for mine, theirs in zip(got, want, strict=True):
            assert torch.equal(mine.isnan(), theirs.isnan())


# -- what only looks like attention ---------------------------------------------------------------


def weights_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = torch.softmax(scores(q, k), -1)
    return weights @ v, weights


def weights_used_twice(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = torch.softmax(scores(q, k), -1)
    return weights @ v + weights @ k


NEAR: dict[str, Callable[..., Any]] = {
    "weights returned": weights_returned,
    "weights used twice": weights_used_twice,
    "scores returned": lambda q, k, v: (lambda s: (torch.softmax(s, -1) @ v, s))(scores(q, k)),
    "softmax over the queries": lambda q, k, v: torch.softmax(scores(q, k), -2) @ v,
    "softmax over the heads": lambda q, k, v: torch.softmax(scores(q, k), 1) @ v,
    "weights transposed": lambda q, k, v: torch.softmax(scores(q, k), -1).transpose(-1, -2) @ v,
    "weights flipped": lambda q, k, v: torch.softmax(scores(q, k), -1).flip(-1) @ v,
    "scores flipped": lambda q, k, v: torch.softmax(scores(q, k).flip(-1), -1) @ v,
    "scores shifted": lambda q, k, v: torch.softmax(scores(q, k).roll(1, -1), -1) @ v,
    "scores of both orders": lambda q, k, v: (
        lambda s: torch.softmax(s + s.transpose(-1, -2), -1) @ v
    )(scores(q, k)),
    "weights scaled": lambda q, k, v: (torch.softmax(scores(q, k), -1) * 2) @ v,
    "heads of the weights moved": lambda q, k, v: (
        torch.softmax(scores(q, k), -1).transpose(0, 1).contiguous() @ v.transpose(0, 1)
    ),
    "keys of another softmax": lambda q, k, v: (
        lambda s: (torch.exp(s - s.amax(-1, keepdim=True))
                   / torch.exp(s - s.amax(-1, keepdim=True)).sum(-2, keepdim=True)) @ v
    )(scores(q, k)),
    "no maximum subtracted": lambda q, k, v: (
        lambda e: (e / e.sum(-1, keepdim=True)) @ v
    )(torch.exp(scores(q, k))),
    "another maximum": lambda q, k, v: (
        lambda e: (e / e.sum(-1, keepdim=True)) @ v
    )((lambda s: torch.exp(s - s.amax(-2, keepdim=True)))(scores(q, k))),
}  # fmt: skip
RIGHT_EITHER_WAY = {"heads of the weights moved", "scores flipped"}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name: str) -> None:
    """Refused with a reason, or matched and right."""
    fn, args = NEAR[name], qkv()
    report = torch_helion.explain(fn, *args)
    matched = any(r.name.startswith("attention") for r in report.regions)
    assert not matched or name in RIGHT_EITHER_WAY
    _testing.assert_right(report.output, fn(*args), fn(*map(double, args)))


def test_a_permuted_key() -> None:
    """A key whose strides would allow another view of it: the shapes agree, the elements do not."""
    q, k, v = qkv(batch=2, heads=2, rows=16, keys=16, depth=16)
    run(lambda q, k, v: torch.softmax(q @ k, -1) @ v, q, k, v)
    run(lambda q, k, v: torch.softmax(q @ k.permute(1, 0, 3, 2), -1) @ v, q, k, v)


# -- what masks prove -----------------------------------------------------------------------------


def loop_of(report: ExplainReport) -> str:
    (region,) = [r for r in report.regions if r.name.startswith("attention")]
    return region.source


CAUSAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "triu": lambda s, d: s.masked_fill(torch.ones_like(s[0, 0], dtype=torch.bool).triu(1), -INF),
    "tril": lambda s, d: s.masked_fill(torch.tril(torch.ones_like(s[0, 0])) == 0, -INF),
    "where": lambda s, d: torch.where(d >= 0, s, -INF),
    "added": lambda s, d: s + torch.where(d >= 0, 0.0, -INF),
    "window": lambda s, d: torch.where((d >= 0) & (d < 20), s, -INF),
    "hidden window": lambda s, d: s.masked_fill((d < 0) | ~(d < 20), -INF),
    "strict": lambda s, d: torch.where(d > 3, s, -INF),
    "ahead": lambda s, d: torch.where(d <= -2, s, -INF),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_masks_by_position(name: str) -> None:
    """Keys that nobody sees are passed over; rows that see none are NaN, as in eager mode."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(CAUSAL[name](scores(q, k), difference(q, k)), -1) @ v

    report = run(fn, *qkv(rows=300, keys=300))
    assert "flags" in loop_of(report), "the mask proves nothing"


def test_masks_that_prove_nothing_are_masks() -> None:
    q, k, v = qkv()

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        d = difference(q, k)
        seen = (d >= 0) | (d % 3 == 0)
        return torch.softmax(scores(q, k).masked_fill(~seen, -INF), -1) @ v

    assert "flags" not in loop_of(run(fn, q, k, v))
    small = lambda q, k, v: (  # noqa: E731
        torch.softmax(scores(q, k).masked_fill(difference(q, k) < 0, -1e3), -1) @ v
    )
    assert "flags" not in loop_of(run(small, q, k, v))


LEAST = torch.finfo(torch.float32).min
FINITE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "filled": lambda s, d: s.masked_fill((d < 3) | (d > 40), -1e9),
    "added": lambda s, d: s + torch.where(d >= 3, 0.0, LEAST),
    "added to softcapped": lambda s, d: (
        5 * torch.tanh(s / 5) + torch.full_like(d, LEAST, dtype=s.dtype).triu(-2)
    ),
}


@pytest.mark.parametrize("name", FINITE)
def test_masks_of_large_negative_numbers(name: str) -> None:
    """A row in which all keys are hidden gives the mean of all values (here: the first three)."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(FINITE[name](scores(q, k), difference(q, k)), -1) @ v

    report = run(fn, *qkv(rows=300, keys=300))
    assert "flags" in loop_of(report), "the mask proves nothing"
    q, k, v = qkv(batch=1, heads=2, rows=290, keys=600)
    q[0, 0, 250] = -1e30 if "added" not in name else 1e25  # scores below the mask's number, or over
    k[0, 1, 200, 3] = 1e33
    got, want = torch.compile(fn, backend="helion")(q, k, v), fn(q, k, v)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def hidden_by_memory(kind: str, rows: int, keys: int) -> Tensor:
    """Masks that are read: seen keys lie together, apart, nowhere."""
    seen = torch.ones(rows, keys, dtype=torch.bool).tril()
    if kind == "apart":
        seen = torch.rand(rows, keys) > 0.97
    if kind == "nowhere":
        seen[rows // 2 :] = False
    return seen


@pytest.mark.parametrize(
    "form",
    [
        "operator, added",
        "filled",
        "padding",
        pytest.param("operator", marks=pytest.mark.slow),
        pytest.param("added", marks=pytest.mark.slow),
    ],
)
def test_masks_in_memory(form: str) -> None:
    """Keys that a mask hides from a whole tile of queries are passed over; the rest is as ever."""
    q, k, v = qkv(batch=2, heads=4, rows=260, keys=300)
    fn = MASKED[form]
    compiled = torch.compile(fn, backend="helion")
    for kind in ("together", "apart", "nowhere", "not finite"):
        mask: Tensor = hidden_by_memory(kind, 260, 300)
        if form == "padding":
            mask = mask[[100, 250]]
        elif form.endswith("added"):
            mask = torch.zeros(260, 300).masked_fill(~mask, LEAST)
        if kind == "not finite" and not form.startswith("operator"):  # ATen passes such keys over
            k[0, 1, 280, 3] = math.nan
        with _testing.recorded_graphs() as records:
            got = compiled(q, k, v, mask)
        for region in (r for record in records for r in record.regions):
            assert "firsts" in str(region.kernel), "the mask is not looked through"
        want = fn(q, k, v, mask)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


MASKED: dict[str, Callable[..., Tensor]] = {
    "operator": lambda q, k, v, m: sdpa(q, k, v, attn_mask=m),
    "operator, added": lambda q, k, v, m: sdpa(q, k, v, attn_mask=m),
    "filled": lambda q, k, v, m: torch.softmax(scores(q, k).masked_fill(m == 0, -INF), -1) @ v,
    "added": lambda q, k, v, m: torch.softmax(scores(q, k) + m, -1) @ v,
    "padding": lambda q, k, v, m: (
        torch.softmax(scores(q, k) + (1.0 - m[:, None, None].float()) * LEAST, -1) @ v
    ),
}


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("where", ["k", "v", "q"])
def test_what_is_not_finite(bad: float, where: str) -> None:
    """0 · NaN is NaN: a hidden value that is not finite shows in every row that hides it."""
    args = dict(zip("qkv", qkv(rows=300, keys=300), strict=True))
    args[where][0, 1, 200, 3] = bad
    q, k, v = args.values()
    for fn in (
        plain,
        lambda q, k, v: torch.softmax(CAUSAL["where"](scores(q, k), difference(q, k)), -1) @ v,
        lambda q, k, v: torch.softmax(CAUSAL["added"](scores(q, k), difference(q, k)), -1) @ v,
    ):
        report = torch_helion.explain(fn, q, k, v)
        want = fn(q, k, v)
        assert torch.equal(report.output.isnan(), want.isnan())
        torch.testing.assert_close(report.output, want, equal_nan=True)
        assert any(r.name.startswith("attention") for r in report.regions)


Condition = Callable[[Tensor, Tensor], Tensor]


def random_condition(random: Random, depth: int) -> Condition:
    """A comparison of positions, or logic over some."""
    kind = random.choice(("compare", "not", "and", "or")) if depth else "compare"
    if kind == "compare":
        row, key = random.choice(((1, -1), (-1, 1), (0, 1), (1, 0), (2, -1), (1, 1)))
        test, limit = (
            random.choice((torch.lt, torch.le, torch.gt, torch.ge)),
            random.randint(-60, 60),
        )
        return lambda m, n: test(row * m + key * n, limit)
    left = random_condition(random, depth - 1)
    if kind == "not":
        return lambda m, n: ~left(m, n)
    right = random_condition(random, depth - 1)
    if kind == "and":
        return lambda m, n: left(m, n) & right(m, n)
    return lambda m, n: left(m, n) | right(m, n)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_masks(seed: int) -> None:
    random = Random(seed)
    condition = random_condition(random, random.randint(0, 2))
    form = random.choice(("where", "fill", "add"))
    rows, keys = random.choice(((130, 200), (200, 130), (150, 600), (1, 300), (40, 700)))

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s, hidden = scores(q, k), condition(torch.arange(rows)[:, None], torch.arange(keys)[None])
        if form == "add":
            s = s + torch.where(hidden, -INF, 0.0)
        else:
            s = s.masked_fill(hidden, -INF) if form == "fill" else torch.where(hidden, -INF, s)
        return torch.softmax(s, -1) @ v

    q, k, v = qkv(1, 2, rows, keys)
    if random.random() < 0.3:
        random.choice((k, v))[0, 1, random.randrange(keys), 2] = random.choice((math.nan, INF))
    report = torch_helion.explain(fn, q, k, v)
    assert any(r.name.startswith("attention") for r in report.regions)
    torch.testing.assert_close(report.output, fn(q, k, v), rtol=1e-4, atol=1e-5, equal_nan=True)
