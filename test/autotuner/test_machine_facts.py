"""What the machine can do: measured once, kept on disk, read strictly."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from test.autotuner.saboteurs import problem
from torch_helion import settings
from torch_helion._testing import output_of
from torch_helion.autotuner import machine_facts, search
from torch_helion.autotuner.machine_facts import Facts
from torch_helion.config import Config

GOOD = Facts(read=20e9, copy=30e9, fma=1e11, threads=1, cores=2, l1d=1, l2=2, llc=3)


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    machine_facts._facts.cache_clear()
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        yield tmp_path
    machine_facts._facts.cache_clear()


def test_rates_of_this_machine_are_possible_ones() -> None:
    found = machine_facts.measure()
    assert 1e7 < found.read < 1e12  # the lower ends: on a machine that is very busy
    assert 1e7 < found.copy < 2e12
    assert 1e7 < found.fma < 1e13
    assert found.threads == torch.get_num_threads()
    assert "GB/s read" in found.describe()


def test_measured_once_and_kept(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(machine_facts, "measure", lambda: calls.append(1) or GOOD)
    assert machine_facts.facts() == machine_facts.facts() == GOOD
    machine_facts._facts.cache_clear()  # as in another process
    assert machine_facts.facts() == GOOD
    assert len(calls) == 1
    assert stat.S_IMODE(os.stat(folder / "cache").st_mode) == 0o700
    (entry,) = (p for p in (folder / "cache" / "machine").rglob("*") if p.is_file())
    entry.write_bytes(entry.read_bytes()[:-2])
    machine_facts._facts.cache_clear()
    machine_facts.facts()
    assert len(calls) == 2, "what is damaged is measured again"
    monkeypatch.setattr(machine_facts, "machine_class", lambda: "another machine")
    machine_facts.facts()
    assert len(calls) == 3


VALUES = dataclasses.asdict(GOOD)
BAD = {
    "text": b"no JSON",
    "list": b"[1, 2]",
    "less": json.dumps({k: v for k, v in VALUES.items() if k != "fma"}).encode(),
    "more": json.dumps({**VALUES, "x": 1}).encode(),
    "words": json.dumps({**VALUES, "read": "fast"}).encode(),
    "nan": json.dumps({**VALUES, "read": float("nan")}).encode(),
    "zero": json.dumps({**VALUES, "copy": 0}).encode(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_read_is_checked(name: str) -> None:
    assert machine_facts.read(BAD[name]) is None
    assert machine_facts.read(json.dumps(VALUES).encode()) == GOOD


def test_nothing_is_measured_at_import() -> None:
    code = """
        import torch_helion.autotuner.machine_facts as m
        import torch_helion.autotuner.search, torch_helion.kernel.decorator
        print(m._facts.cache_info().currsize)
    """
    assert output_of(code) == "0"


def test_the_least_time() -> None:
    assert GOOD.seconds(20e9, 0) == pytest.approx(1.0)
    assert GOOD.seconds(15e9, 15e9) == pytest.approx(1.0), "a copy"
    assert GOOD.seconds(0, 0, 1e11) == pytest.approx(1.0)


def test_a_search_ends_where_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_facts, "facts", lambda: GOOD)
    x, out = torch.empty(2, 64).expand(2, 64), torch.empty(64)
    wide = torch.empty(1, 1 << 26, device="meta").expand(3, 1 << 26)
    large = torch.empty(1 << 26, device="meta")
    limit = GOOD.seconds(1 << 28, 1 << 28)
    for share, at in ((0.5, False), (0.95, True), (1.02, True), (1.2, False)):
        given: Any = (share * limit, [wide, large], [1], False)
        assert machine_facts.memory_is_the_limit(*given) is at
    assert not machine_facts.memory_is_the_limit(1e-9, [x, out], [1], False), "in the caches"
    made, _, _ = problem(["right", "again", "wrong"])
    monkeypatch.setattr(machine_facts, "memory_is_the_limit", lambda *unused: True)
    pattern = search.PatternSearch(made, budget=10.0)
    pattern.autotune()
    assert list(pattern.bench.candidates) == [made.default]
    both = [Config(kind="right"), Config(kind="again")]
    finite = search.FiniteSearch(made, (), both, budget=10.0)
    finite.autotune()
    assert list(finite.bench.candidates) == both, "what is asked for is measured"
