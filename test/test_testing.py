"""`run_example`: what it compares, what it returns, what it prints."""

from __future__ import annotations

import unittest

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import code_and_output, run_example

X = torch.randn(50)


def test_times_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    times = run_example(lambda x: x + x, lambda x: 2 * x, (X,))
    assert list(times) == ["helion", "torch"] and all(t > 0 for t in times.values())
    said = capsys.readouterr().err
    assert "Benchmark Results" in said and "1.00x (ref)" in said
    several = run_example({"a": torch.neg, "b": lambda x: -x}, {"c": torch.neg}, (X,))
    assert list(several) == ["a", "b", "c"]


def test_wrong_results_are_named() -> None:
    with pytest.raises(AssertionError, match="helion"):
        run_example(lambda x: x + 1, lambda x: x, (X,))
    with pytest.raises(AssertionError, match="2 results"):
        run_example(lambda x: (x, x), lambda x: x, (X,))


def test_few_wrong_elements_may_be_allowed() -> None:
    def nearly(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[0] += 10
        return y

    run_example(nearly, torch.clone, (X,), max_mismatch_pct=0.05)
    with pytest.raises(AssertionError, match="elements differ"):
        run_example(nearly, torch.clone, (X,), max_mismatch_pct=0.001)
    with pytest.raises(AssertionError, match="differs by "):
        run_example(nearly, torch.clone, (X,), max_mismatch_pct=0.05, max_mismatched_abs_diff=1)


def test_arguments_stay_as_they_are() -> None:
    x = X.clone()
    run_example(lambda x: x.add_(1), lambda x: x.add_(1), (x,))
    assert torch.equal(x, X)


def test_gradients() -> None:
    x = X.clone().requires_grad_()
    run_example(torch.sin, lambda x: x.sin(), (x,), bwd=True)

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 3

    with pytest.raises(AssertionError, match="gradients"):
        run_example(Wrong.apply, lambda x: x * 2, (x,), bwd=True)


@helion.kernel(config=helion.Config(block_sizes=[16]))
def doubled(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] * 2
    return out


def test_code_and_output() -> None:
    for options in ({}, {"block_sizes": [8], "num_warps": 8}):
        code, result = code_and_output(doubled, (X,), **options)
        assert "triton" in code and torch.equal(result, X * 2)
    eager = helion.kernel(doubled.fn, ref_mode=helion.RefMode.EAGER)
    code, result = code_and_output(eager, (X,))
    assert code == "" and torch.equal(result, X * 2)


def test_names_of_programs_that_come_from_elsewhere() -> None:
    from torch_helion import _testing, experimental, testing

    assert _testing.run_example is run_example and testing.DEVICE.type == "cpu"
    assert {"backward", "aot_kernel", "from_cache"} <= set(dir(experimental))


def test_helpers_of_tests_from_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    from torch_helion._testing import (
        EXAMPLES_DIR,
        TestCase,
        check_example,
        import_path,
        onlyBackends,
        skipIfNotCUDA,
        skipIfRefEager,
        skipIfRocm,
    )

    @onlyBackends(["triton"])
    class Case(TestCase):
        @skipIfRefEager("counts code")
        def test_sum(self) -> None:
            x, y = torch.randn(100), torch.randn(100)
            code = check_example("vector_add", (x, y), x + y, fn_name="add")
            self.assertExpectedJournal(code)

        @skipIfRocm("slow there")
        def test_wrong(self) -> None:
            x = torch.randn(100)
            with self.assertRaises(AssertionError):
                check_example("vector_add", (x, x), x + 1, fn_name="add", block_sizes=[16])

        @skipIfNotCUDA()
        def test_other_hardware(self) -> None:
            raise AssertionError

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, len(result.skipped)) == (3, 1)
    assert not result.failures and not result.errors, result
    path = EXAMPLES_DIR / "vector_add.py"
    assert import_path(path) is import_path(path)


def test_modules_of_programs_that_come_from_elsewhere() -> None:
    from torch_helion._utils import cdiv
    from torch_helion.autotuner.config_fragment import IntegerFragment
    from torch_helion.runtime.config import Config
    from torch_helion.runtime.kernel import BoundKernel, kernel
    from torch_helion.runtime.settings import Settings

    from torch_helion._compat import requires_torch_version, supports_tensor_descriptor

    assert (cdiv, Config, Settings) == (helion.cdiv, helion.Config, helion.Settings)
    assert kernel is helion.kernel and BoundKernel.__name__ == "BoundKernel"
    assert IntegerFragment is helion.autotuner.IntegerFragment
    assert requires_torch_version("2.11") and not supports_tensor_descriptor()
    assert callable(helion.runtime.kernel)
    assert helion.runtime.settings.RefMode is helion.RefMode
    with pytest.raises(ImportError):
        from torch_helion.runtime.settings import Nothing  # noqa: F401
