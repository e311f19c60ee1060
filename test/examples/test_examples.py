"""Every example is right at its own shapes with several configs, and its program runs."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import random
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import torch_helion as helion
from torch_helion._testing import assert_right

FOLDER = pathlib.Path(__file__).resolve().parent.parent.parent / "examples"
EXAMPLES = tuple(
    path.stem for path in sorted(FOLDER.glob("*.py")) if "def cases(" in path.read_text()
)
DYNAMIC = ("attention", "matmul", "softmax", "vector_add")  # tried with static_shapes=False as well
SMALL = 64


@functools.cache
def example(name: str) -> types.ModuleType:
    """The example's module, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def configs(bound: Any, count: int = 3) -> list[helion.Config | None]:
    """The default config and others that the kernel allows, the same in every run."""
    found: list[helion.Config | None] = [None]
    chance = random.Random(len(bound.config_spec.block_sizes))
    for _ in range(count - 1):
        sizes = []
        for block in bound.config_spec.block_sizes:
            sizes.append(chance.choice([v for v in block.fragment().values() if v <= 32] or [1]))
        values = {"block_sizes": sizes} if sizes else {}
        found.append(helion.Config.from_dict(bound.config_spec.complete(values)))
    return found


def widened(value: Any) -> Any:
    """A floating tensor in float64."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return value


def check(kernel: helion.Kernel, expected: Callable[..., Any] | None, args: Sequence[Any]) -> None:
    """Right by the accuracy rule; without a reference (random numbers) alike with all configs."""
    bound = kernel.bind(tuple(args))
    results = []
    for config in configs(bound):
        compiled = bound.compile_config(config)
        results.append(compiled(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args)))
    if expected is None:
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=0)
        return
    want = expected(*args)
    truth = expected(*map(widened, args))
    for got in results:
        assert_right(got, want, truth)


@pytest.mark.parametrize("name", EXAMPLES)
def test_right_with_several_configs(name: str) -> None:
    for kernel, expected, args in example(name).cases():
        check(kernel, expected, args)


@pytest.mark.parametrize("name", [n for n in DYNAMIC if n in EXAMPLES])
def test_right_with_dynamic_shapes(name: str) -> None:
    for kernel, expected, args in example(name).cases():
        check(helion.kernel(kernel.fn, static_shapes=False), expected, args)


def test_dropout_keeps_the_share_it_should_and_scales_it() -> None:
    x = torch.randn(1000, 1001)
    out = example("dropout").dropout(x, 0.3, 5)
    kept = out != 0
    assert abs(float(kept.double().mean()) - 0.7) < 0.003
    torch.testing.assert_close(out[kept], x[kept] / (1.0 - 0.3))
    assert not torch.equal(out, example("dropout").dropout(x, 0.3, 6))


def test_dropout_draws_the_same_mask_for_the_gradient() -> None:
    x = torch.ones(37, 11, requires_grad=True)
    out = example("dropout").Dropout.apply(x, 0.5, 3)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())


def test_top_k_sampling_draws_by_weight_from_the_k_likeliest() -> None:
    row = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])
    tokens = example("top_k_sampling").top_k_sample(row.repeat(20000, 1), 3, 1.0, 11)
    share = torch.bincount(tokens, minlength=5).double() / 20000
    expected = torch.zeros(5, dtype=torch.float64)
    expected[[1, 3, 2]] = torch.softmax(torch.tensor([3.0, 2.0, 1.0]).double(), -1)
    assert (share - expected).abs().max() < 0.015


@pytest.mark.parametrize("name", EXAMPLES)
def test_program_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_helion.autotuner.benchmark.ROUNDS", 1)
    example(name).main(SMALL)
    assert "Speedup" in capsys.readouterr().err
