"""Random numbers by seed and row-major number; dropout that draws nothing."""

from __future__ import annotations

import pytest
import torch

from test.lowering.eager_check import Call, build, call_of, check, run_built
from torch_helion import exc

aten = torch.ops.aten
prims = torch.ops.prims


def drawn(call: Call, blocks: int | None, cut: dict[int, int] | None = None) -> torch.Tensor:
    pytest.importorskip("torch_helion.ir.philox")
    (result,) = run_built(build(call, cut), call.outputs, blocks)
    return result


@pytest.mark.parametrize("mode", ["rand", "randn"])
def test_numbers_do_not_depend_on_blocks(mode: str) -> None:
    seed = torch.tensor(1234567890123)
    call = call_of(prims.inductor_random.default, [6, 10], seed, mode)
    first = drawn(call, None)
    for blocks, cut in ((3, None), (1, None), (4, {1: 2}), (None, {0: 3})):
        assert torch.equal(first, drawn(call, blocks, cut))
    other = call_of(prims.inductor_random.default, [6, 10], seed + 1, mode)
    assert not torch.equal(first, drawn(other, None))
    assert first.unique().numel() == 60


def test_distributions() -> None:
    seed = torch.tensor(5)
    uniform = drawn(call_of(prims.inductor_random.default, [200, 50], seed, "rand"), None)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    normal = drawn(call_of(prims.inductor_random.default, [200, 50], seed, "randn"), None)
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    whole = drawn(call_of(prims.inductor_randint.default, -3, 9, [50, 20], seed), None)
    assert whole.dtype is torch.int64 and sorted(whole.unique().tolist()) == list(range(-3, 9))


def test_structure() -> None:
    call = call_of(prims.inductor_random.default, [6, 10], torch.tensor(1), "rand")
    ops = [op for op in build(call).kernel.body.walk() if op.kind == "rng"]
    assert [op.attrs["fn"] for op in ops] == ["rand"]


def test_refusals() -> None:
    call = call_of(prims.inductor_random.default, [6], torch.tensor(1), "rand")
    wrong = Call(call.overload, ([6], torch.tensor(1), "exponential"), {}, call.outputs)
    with pytest.raises(exc.LoweringError, match="does not exist"):
        build(wrong)
    x = torch.ones(4)
    active = Call(aten.native_dropout.default, (x, 0.5, True), {}, (x, x > 0))
    with pytest.raises(exc.LoweringError, match="generator"):
        build(active)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_that_draws_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(5, 4).to(dtype)
    check(call_of(aten.native_dropout.default, x, 0.5, False), exact=True)
    check(call_of(aten.native_dropout.default, x, 1.0, True), exact=False)
    check(call_of(aten.dropout.default, x, 0.5, False), exact=True)
    check(call_of(aten.native_dropout_backward.default, x, x > 0, 1.25))
