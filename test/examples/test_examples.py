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


@pytest.mark.parametrize("name", EXAMPLES)
def test_program_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_helion.autotuner.benchmark.ROUNDS", 1)
    example(name).main(SMALL)
    assert "Speedup" in capsys.readouterr().err
