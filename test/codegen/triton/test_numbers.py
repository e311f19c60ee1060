"""Generated kernels compute what the interpreter of the IR does, by the interpreter of Triton.

Each test is a process: Triton decides at its import whether it compiles or interprets.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from test.codegen.triton.families import FAMILIES

pytest.importorskip("triton")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def run_module(name: str, *arguments: str, cache: pathlib.Path | None = None) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("TRITON_INTERPRET", None)
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", f"test.codegen.triton.{name}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


def test_families() -> None:
    run_module("check", "families", *FAMILIES)


def test_random_kernels() -> None:
    run_module("check", "kernels", "0", "120")


def test_random_programs() -> None:
    run_module("check", "programs", "0", "120")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(120, 1200, 120))
def test_more_random_kernels(first: int) -> None:
    run_module("check", "kernels", str(first), str(first + 120))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(120, 1200, 120))
def test_more_random_programs(first: int) -> None:
    run_module("check", "programs", str(first), str(first + 120))


@pytest.mark.parametrize("target", ("sm_90", "gfx942"))
def test_families_compile(target: str, tmp_path: pathlib.Path) -> None:
    run_module("ahead", "families", target, *FAMILIES, cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ("sm_90", "gfx942"))
def test_random_programs_compile(target: str, tmp_path: pathlib.Path) -> None:
    run_module("ahead", "programs", target, *map(str, range(60)), cache=tmp_path)
