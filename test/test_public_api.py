"""The public names, pinned; and what importing the package must not do."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import torch_helion

PUBLIC = [
    "Config",
    "Kernel",
    "OutputCodeOptions",
    "RefMode",
    "Settings",
    "__version__",
    "aot_kernel",
    "autotuner",
    "cdiv",
    "empty_cache",
    "exc",
    "experimental",
    "explain",
    "from_cache",
    "jit",
    "kernel",
    "language",
    "load_configs",
    "next_power_of_2",
    "runtime",
    "save_configs",
    "settings",
    "testing",
    "tune",
    "weights",
]


def run_python(code: str) -> str:
    """Run ``code`` in a fresh process and return what it printed on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_list_is_pinned() -> None:
    assert torch_helion.__all__ == PUBLIC
    assert dir(torch_helion) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves(name: str) -> None:
    assert getattr(torch_helion, name) is not None


def test_functions_win_over_modules_of_the_same_name() -> None:
    assert (
        run_python(
            "import torch_helion.explain, torch_helion\n"
            "assert callable(torch_helion.explain), torch_helion.explain\n"
            "from torch_helion import explain, settings\n"
            "assert explain is torch_helion.explain and settings.current()"
        )
        == ""
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'kernels'"):
        torch_helion.kernels  # noqa: B018


def test_importing_is_light_and_silent() -> None:
    code = (
        "import sys, torch_helion, torch_helion.exc, torch_helion.settings, torch_helion._logging,"
        " torch_helion._hardware\n"
        "heavy = {'torch', 'llvmlite', 'sympy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert run_python(code) == ""


def test_torch_finds_the_backend_by_its_entry_point() -> None:
    try:
        importlib.metadata.distribution("torch-helion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the distribution is not installed")
    group = importlib.metadata.entry_points(group="torch_dynamo_backends")
    values = {e.name: e.value for e in group if e.name in ("helion", "torch_helion")}
    assert values == dict.fromkeys(
        ("helion", "torch_helion"), "torch_helion.capture.backend:helion"
    )


def test_versions_agree() -> None:
    try:
        installed = importlib.metadata.version("torch-helion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the distribution is not installed")
    assert installed == torch_helion.__version__
