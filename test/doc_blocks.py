"""Runs the code blocks of a page: ``python`` and ``shell`` blocks, and what a shell printed.

In: Markdown. Out: nothing, or the error of the first block that fails. Python blocks share one
namespace; each is a file of its own for tracebacks and for those who read sources (kernels do).
"""

from __future__ import annotations

import linecache
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_blocks(text: str, page: str = "page") -> list[str]:
    """Run all blocks, in order, and give their kinds; an ``output`` block is what the last shell
    printed."""
    module = types.ModuleType("blocks_of_a_page")
    sys.modules[module.__name__] = module  # Dynamo finds globals through their module
    kinds, printed = [], ""
    for match in BLOCK.finditer(text):
        kind, body = match.groups()
        kinds.append(kind)
        if kind == "python":
            run_python(body, f"<{page}:{text[: match.start()].count(chr(10)) + 2}>", vars(module))
        elif kind == "shell":
            printed = "".join(run_line(line) for line in body.splitlines() if line)
        elif kind == "output":
            assert printed == body
        else:
            raise AssertionError(f"a block of unknown kind {kind}")
    return kinds


def run_python(body: str, file: str, namespace: dict[str, Any]) -> None:
    linecache.cache[file] = (len(body), None, body.splitlines(True), file)
    exec(compile(body, file, "exec"), namespace)


def run_line(line: str) -> str:
    program, *arguments = shlex.split(line)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
