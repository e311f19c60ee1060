"""The blocks of ``docs/tuning.md`` run, in order, in one folder and one namespace."""

from __future__ import annotations

import linecache
import pathlib
import re
from typing import Any

import pytest
import torch

from torch_helion import settings
from torch_helion.autotuner import results

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tuning.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    results.forget()
    namespace: dict[str, Any] = {"__name__": "docs_tuning"}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 9
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        for number, body in enumerate(blocks):
            name = f"<block {number} of {PAGE.name}>"
            linecache.cache[name] = (len(body), None, body.splitlines(keepends=True), name)
            exec(compile(body, name, "exec"), namespace)
    assert (tmp_path / "softmax_configs.json").exists()
    config = namespace["again"]._bound_for((torch.randn(300, 512),))._config
    found = namespace["quick"].last_search.config
    assert config is None or config.block_sizes[0] >= 1
    assert found.block_sizes[0] <= 64
