"""Names of Helion's test helpers, so that tests which import them run here.

In: tests of programs, on a CPU. Out: a `TestCase`, decorators that skip what needs other hardware,
examples loaded from files. `torch_helion._testing` has them all. Floor 8.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import sys
import types
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from torch_helion.settings import RefMode, Settings
from torch_helion.testing import code_and_output

PROJECT_ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES_DIR = PROJECT_ROOT / "examples"
LONG_INT_TYPE = torch.int64


class TestCase(unittest.TestCase):
    """unittest's, with the comparison of tensors that such tests use."""

    maxDiff = 16384

    def assertExpectedJournal(self, value: str) -> None:
        """Code that Helion's compiler writes is nobody else's: it is text, and that is all."""
        self.assertIsInstance(value, str)


class RefEagerTestBase:
    """A mixin: nothing is counted here."""


class RefEagerTestDisabled:
    """A mixin: its tests are left out in the reference mode."""

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        if Settings().ref_mode is RefMode.EAGER:
            self.skipTest("not in the reference mode")  # type: ignore[attr-defined]


def import_path(path: str | pathlib.Path) -> types.ModuleType:
    """A Python file as a module."""
    path = pathlib.Path(path)
    name = f"torch_helion_file_{path.stem}"
    if name not in sys.modules or sys.modules[name].__file__ != str(path):
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def check_example(
    name: str,
    args: Sequence[Any],
    expected: Any,
    fn_name: str | None = None,
    skip_accuracy: bool = False,
    static_shapes: bool | None = None,
    atol: float = 1e-1,
    rtol: float = 1e-2,
    **config: Any,
) -> str:
    """The code of a kernel of a file of `EXAMPLES_DIR`, whose result must be `expected`."""
    kernel = getattr(import_path(EXAMPLES_DIR / f"{name}.py"), fn_name or name)
    if static_shapes is not None:
        kernel.settings.static_shapes = static_shapes
    code, result = code_and_output(kernel, args, **config)
    if not skip_accuracy:
        got = result[0] if isinstance(result, tuple) and torch.is_tensor(expected) else result
        torch.testing.assert_close(
            got, expected, atol=atol, rtol=rtol, check_dtype=False, equal_nan=True
        )
    return code


def output_only(kernel: Any, args: Sequence[Any], **config: Any) -> Any:
    """The result of a kernel for a config."""
    return code_and_output(kernel, args, **config)[1]


def assert_close_with_mismatch_tolerance(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    atol: float = 1e-4,
    rtol: float = 1e-4,
    max_mismatch_pct: float = 0.01,
    max_abs_diff: float | None = None,
    **ignored: Any,
) -> None:
    """Close but for a share of the elements, which may differ by `max_abs_diff`."""
    difference = (actual.double() - expected.double()).abs()
    wrong = difference > atol + rtol * expected.double().abs()
    share = float(wrong.double().mean()) if wrong.numel() else 0.0
    assert share <= max_mismatch_pct, f"{share:.3%} of the elements differ"
    if max_abs_diff is not None and wrong.any():
        assert float(difference[wrong].max()) <= max_abs_diff


@contextlib.contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def get_test_dot_precision() -> str:
    return "ieee"


def get_nvidia_gpu_model() -> str:
    return ""


def is_cuda() -> bool:
    return False


def is_cpu() -> bool:
    return True


def is_mtia() -> bool:
    return False


def _decorator(skips: Callable[[], bool], name: str) -> Callable[..., Any]:
    """For `@name`, `@name()` and `@name(reason, ...)`."""

    def mark(function: Any) -> Any:
        return unittest.skip(name)(function) if skips() else function

    def decorate(*args: Any, **ignored: Any) -> Any:
        bare = len(args) == 1 and isinstance(args[0], type | types.FunctionType)
        return mark(args[0]) if bare else mark

    return decorate


def onlyBackends(backends: Sequence[str]) -> Callable[[Any], Any]:
    """Tests of Triton's backend are tests of the language; those of others are not for here."""
    return _decorator(lambda: "triton" not in backends, f"for {backends}")()


skipUnlessBackends = onlyBackends


def __getattr__(name: str) -> Any:
    """`skipUnless...` and `skipIfNot...` name hardware that is not here, `skipIf...` and
    `xfailIf...` faults of hardware that is not here."""
    if name == "skipIfRefEager":
        return _decorator(lambda: Settings().ref_mode is RefMode.EAGER, name)
    if name == "skipIfNormalMode":
        return _decorator(lambda: Settings().ref_mode is not RefMode.EAGER, name)
    if name in ("skipIfCpu", "skipIfCPU") or name.startswith(("skipUnless", "skipIfNotCUDA")):
        return _decorator(lambda: True, name)
    if name.startswith(("skipIf", "xfailIf")):
        return _decorator(lambda: False, name)
    raise AttributeError(f"module 'torch_helion._testing' has no attribute {name!r}")
