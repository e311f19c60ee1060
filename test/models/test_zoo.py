"""Whole models: forward and one training step agree with eager by the accuracy rule, with no
exception.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from test.models import zoo

FACTOR = {torch.float32: 2, torch.bfloat16: 3}
TOLERANCE = {torch.float32: (1.3e-6, 1e-5), torch.bfloat16: (1.6e-2, 1e-2)}
# In the default run; the others, in the other precision or mode, are marked slow.
CORE = {"bert", "gpt2", "llama", "vit", "t5", "mamba", "qwen3_moe"}


def cases() -> list[Any]:
    rows = []
    for name in zoo.ZOO:
        for dtype in FACTOR:
            for train in (False, True):
                quick = (name in CORE and dtype is torch.float32) or name == "llama"
                marks = [] if quick else [pytest.mark.slow]
                id = f"{name}-{str(dtype)[6:]}-{'train' if train else 'infer'}"
                rows.append(pytest.param(name, dtype, train, id=id, marks=marks))
    return rows


def step(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], train: bool
) -> list[torch.Tensor]:
    """Loss and logits; in training the gradients of all parameters too."""
    with torch.set_grad_enabled(train):
        out = model(**inputs)
    results = [out.loss.detach(), out.logits.detach()]
    if train:
        out.loss.backward()
        results += [p.grad for p in model.parameters() if p.grad is not None]
    return results


def assert_as_good(got: torch.Tensor, want: torch.Tensor, exact: torch.Tensor, where: str) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, where
    rtol, atol = TOLERANCE[want.dtype]
    if torch.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
        return
    finite = want.isfinite()
    assert torch.equal(finite, got.isfinite()), f"{where}: finite elsewhere"

    def error(value: torch.Tensor) -> float:
        return float((value.double() - exact)[finite].square().mean().sqrt())

    limit = FACTOR[want.dtype] * error(want) + atol / 10
    assert error(got) <= limit, f"{where}: error {error(got):.3g}, at most {limit:.3g}"


@pytest.mark.parametrize("name,dtype,train", cases())
def test_model(name: str, dtype: torch.dtype, train: bool) -> None:
    torch._dynamo.reset()
    model, inputs = zoo.make(name, dtype, train)
    want = step(model, inputs, train)
    model.zero_grad()
    exact_model, exact_inputs = zoo.make(name, dtype, train)
    exact_inputs = {k: v.double() if v.is_floating_point() else v for k, v in exact_inputs.items()}
    exact = step(exact_model.double(), exact_inputs, train)
    got = step(torch.compile(model, backend="helion"), inputs, train)
    assert len(got) == len(want)
    for i, (g, w, e) in enumerate(zip(got, want, exact, strict=True)):
        assert_as_good(g, w, e.double(), f"{name} result {i}")
