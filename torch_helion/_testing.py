"""Helpers for tests and examples: tolerances, fresh processes, machines without a compiler.

What flows in: tensors to compare, code to run elsewhere. What flows out: assertions with a reason,
printed output. Floor 8; nothing of the package imports it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import settings
from torch_helion.capture import check, graph_pass, inductor_compat
from torch_helion.capture.graph_pass import GraphRecord
from torch_helion.testing import DEVICE as DEVICE  # names that programs import from here
from torch_helion.testing import HALF_DTYPE as HALF_DTYPE
from torch_helion.testing import code_and_output as code_and_output
from torch_helion.testing import run_example as run_example

PACKAGE_FOLDER = pathlib.Path(__file__).resolve().parent.parent


def __getattr__(name: str) -> Any:
    """Names of Helion's test helpers."""
    from torch_helion import _unittest

    return getattr(_unittest, name)


def assert_right(got: Any, want: Any, reference: Any = None) -> None:
    """``got`` is what ``want`` is, by the project's accuracy rule.

    ``reference``: the same computed in float64; without it floats must be close at the dtype's
    tolerance. Structure, dtypes, shapes and strides must agree.
    """
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(ours) == len(theirs), f"{len(ours)} values instead of {len(theirs)}"
    truths = pytree.tree_leaves(reference) if reference is not None else theirs
    for number, (a, b, truth) in enumerate(zip(ours, theirs, truths, strict=True)):
        if not isinstance(b, torch.Tensor):
            assert a == b, f"value {number}: {a!r} instead of {b!r}"
            continue
        assert isinstance(a, torch.Tensor), f"value {number}: no tensor"
        assert a.stride() == b.stride(), f"value {number}: strides {a.stride()}, not {b.stride()}"
        wrong = check.compare(a.detach(), truth.detach(), b.detach())
        assert wrong is None, f"value {number}: {wrong}"


@contextlib.contextmanager
def recorded_graphs() -> Iterator[list[GraphRecord]]:
    """What the graph pass did with each graph that is compiled inside, past all caches."""
    records: list[GraphRecord] = []
    graph_pass.listeners.append(records.append)
    try:
        with inductor_compat.without_caches():
            yield records
    finally:
        graph_pass.listeners.remove(records.append)


@contextlib.contextmanager
def generated_code() -> Iterator[list[str]]:
    """The text of every program that Inductor writes inside."""
    with inductor_compat.without_caches(), inductor_compat.written_programs() as programs:
        yield programs


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Failures of the backend are raised."""
    with settings.patch(strict=True):
        yield


def run_python(
    code: str, *, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh process that can import the package."""
    path = os.pathsep.join([str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")]).rstrip(":")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
    )


def output_of(code: str, **kwargs: Any) -> str:
    """What ``code`` prints in a fresh process, which must succeed."""
    done = run_python(code, **kwargs)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def without_compilers(folder: pathlib.Path) -> dict[str, str]:
    """Environment variables under which no C++ compiler is found. ``folder`` is an empty one."""
    keep = ("sh", "bash", "env", "uname", "ld", "which")
    folder.mkdir(parents=True, exist_ok=True)
    for name in keep:
        for place in os.environ.get("PATH", "").split(os.pathsep):
            if (found := pathlib.Path(place, name)).exists() and not (folder / name).exists():
                (folder / name).symlink_to(found)
    return {"PATH": str(folder), "CXX": "", "CC": ""}
