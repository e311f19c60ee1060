"""The blocks of ``docs/weights.md`` run, in order, in one folder and one namespace."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from test.weights.weight_files import ROOT

PAGE = ROOT / "docs" / "weights.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(text: str) -> list[str]:
    """Run ``python`` and ``shell`` blocks; an ``output`` block is what the last shell printed."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    kinds, printed = [], ""
    for kind, body in BLOCK.findall(text):
        kinds.append(kind)
        if kind == "python":
            exec(compile(body, str(PAGE), "exec"), namespace)
        elif kind == "shell":
            printed = "".join(run_line(line) for line in body.splitlines() if line)
        elif kind == "output":
            assert printed == body
        else:
            raise AssertionError(f"a block of unknown kind {kind}")
    return kinds


def run_line(line: str) -> str:
    program, *arguments = shlex.split(line)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = run_blocks(PAGE.read_text())
    assert kinds.count("python") >= 8 and kinds.count("shell") == 2 and "output" in kinds


def test_the_runner_can_fail() -> None:
    with pytest.raises(AssertionError):
        run_blocks("```python\nassert False\n```\n")
    with pytest.raises(AssertionError):
        run_blocks('```shell\npython -c "print(1)"\n```\n```output\n2\n```\n')
