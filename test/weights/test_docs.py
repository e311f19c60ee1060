"""The blocks of ``docs/weights.md`` run, in order, in one folder and one namespace."""

from __future__ import annotations

import pathlib

import pytest

from test.doc_blocks import DOCS, run_blocks

PAGE = DOCS / "weights.md"


def test_every_block_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = run_blocks(PAGE.read_text())
    assert kinds.count("python") >= 8 and kinds.count("shell") == 2 and "output" in kinds


def test_the_runner_can_fail() -> None:
    with pytest.raises(AssertionError):
        run_blocks("```python\nassert False\n```\n")
    with pytest.raises(AssertionError):
        run_blocks('```shell\npython -c "print(1)"\n```\n```output\n2\n```\n')
