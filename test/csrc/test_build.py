"""The build of the extension, where it can go wrong on somebody else's machine."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists() or os.name != "posix", reason="needs the sources and a shell"
)


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """What the build needs, copied, so that nothing it writes lands in the real one."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    (copy / "README.md").touch()
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    (copy / "torch_helion").mkdir()
    (copy / "torch_helion" / "__init__.py").touch()
    return copy


def program(folder: pathlib.Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def build(checkout: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def fake_torch(folder: pathlib.Path, text: str) -> str:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(text)
    return str(folder)


def test_without_torch_the_message_says_what_to_do(checkout, tmp_path):
    path = fake_torch(tmp_path / "fake", "raise ImportError(\"No module named 'torch'\")")
    done = build(checkout, PYTHONPATH=path)
    assert done.returncode != 0
    assert "pip install torch==2.13.0" in done.stdout
    assert "--no-build-isolation" in done.stdout
    assert "Traceback" not in done.stdout


def test_an_old_torch_is_named(checkout, tmp_path):
    path = fake_torch(tmp_path / "fake", "__version__ = '2.9.1'")
    done = build(checkout, PYTHONPATH=path)
    assert done.returncode != 0
    assert "needs torch >= 2.11, found 2.9.1" in done.stdout
    assert "Traceback" not in done.stdout


def test_without_a_compiler_the_message_says_what_to_do(checkout, tmp_path):
    # No CMake either: the path that drives the compiler itself.
    empty = tmp_path / "empty"
    program(empty, "cmake", "exit 1")
    environment = {"PATH": str(empty), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = build(checkout, CXX="", **environment)
    assert done.returncode != 0
    assert "No C++ compiler was found" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_builds_without_cmake(checkout, tmp_path):
    broken = tmp_path / "broken"
    program(broken, "cmake", "exit 1")
    done = build(checkout, PATH=f"{broken}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout
    assert not (checkout / "build" / "CMakeCache.txt").exists()
    code = "import torch; from torch_helion import _C; print(_C.__file__, _C.parallel_info())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(checkout))
    if torch.backends.openmp.is_available():
        assert "'openmp': True" in done.stdout
