"""Results on disk and in files: found by size, refused when the code changed, read strictly."""

from __future__ import annotations

import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from torch_helion import exc, settings
from torch_helion.autotuner import results
from torch_helion.autotuner.results import KernelId
from torch_helion.config import Config

ADD = KernelId("m.add", "c0de", "float32[0]")


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    results.forget()
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        yield tmp_path
    results.forget()


def keep(sizes: tuple[int, ...], block: int, kernel: KernelId = ADD) -> None:
    results.keep(kernel, sizes, Config(block_sizes=[block]), 1e-5, 2e-5)


def block(sizes: tuple[int, ...], kernel: KernelId = ADD) -> int | None:
    found = results.choose(kernel, sizes)
    return None if found is None else found.config.block_sizes[0]


@pytest.mark.parametrize("fresh", [False, True])
def test_the_nearest_sizes_count(fresh: bool) -> None:
    keep((64, 512), 1)
    keep((4096, 512), 2)
    keep((4096, 64), 3)
    if fresh:
        results.forget()
    assert block((64, 512)) == 1
    assert block((100, 600)) == 1
    assert block((3000, 512)) == 2
    assert block((4096, 100)) == 3
    assert block((4096, 1 << 20)) is None, "too far"
    assert block((4096,)) is None
    assert block((64, 512), KernelId("m.add", "c0de", "float64[0]")) is None
    assert block((64, 512), KernelId("m.sub", "c0de", "float32[0]")) is None


def test_one_result_for_each_class_of_sizes() -> None:
    keep((100,), 1)
    keep((120,), 2)
    keep((200,), 3)
    assert block((100,)) == 2
    results.forget()
    assert [v.sizes for v in results.all_of("m.add")] == [(120,), (200,)]


def test_other_code_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    keep((64,), 1)
    results.forget()
    changed = KernelId("m.add", "new", "float32[0]")
    with caplog.at_level("WARNING", "torch_helion.tune"):
        assert block((64,), changed) is None
        assert block((64,), changed) is None
    assert caplog.text.count("they were found for other code") == 1
    keep((64,), 2, changed)
    results.forget()
    assert block((64,), changed) == 2
    assert [v.code for v in results.all_of("m.add")] == ["new"], "old code's results go"


def test_results_of_a_family_are_told_apart_and_looked_after_together() -> None:
    one, two = (KernelId(f"region: {c}", c, "k", "region") for c in ("a1", "b2"))
    states = [results.family_state("region")]
    keep((64,), 1, one)
    states.append(results.family_state("region"))
    keep((64,), 2, two)
    states.append(results.family_state("region"))
    results.forget()
    assert (block((64,), one), block((64,), two)) == (1, 2), "one does not push the other out"
    states.append(results.family_state("region"))
    keep((64,), 3, one)
    states.append(results.family_state("region"))
    assert states[0] == ""
    assert len(set(states)) == len(states)
    assert results.family_state("regi") == ""


def test_the_folder_is_private(folder: pathlib.Path) -> None:
    keep((64,), 1)
    assert stat.S_IMODE(os.stat(folder / "cache").st_mode) == 0o700
    (entry,) = [p for p in (folder / "cache" / "tuned").rglob("*") if p.is_file()]
    assert stat.S_IMODE(entry.stat().st_mode) & 0o077 == 0
    entry.write_bytes(entry.read_bytes()[:-3])
    results.forget()
    assert block((64,)) is None, "damaged"


def test_the_cache_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    keep((64,), 1)
    monkeypatch.setenv("HELION_SKIP_CACHE", "1")
    assert block((64,)) == 1, "of this process"
    results.forget()
    assert block((64,)) is None


def test_files_go_round(folder: pathlib.Path) -> None:
    keep((64, 512), 1)
    keep((4096, 512), 2)
    path = folder / "configs.json"
    assert results.save(path) == 2
    results.forget()
    with settings.patch(cache_dir=str(folder / "other")):
        assert block((64, 512)) is None
        assert results.load(path) == ["m.add"]
        assert block((64, 512)) == 1
        assert block((4096, 512)) == 2
    assert json.loads(path.read_text())["machine"] == results.machine_class()
    assert sorted(p.name for p in folder.iterdir()) == ["cache", "configs.json"]


GOOD: dict[str, Any] = {
    "code": "c0de",
    "kind": "k",
    "sizes": [64],
    "config": {"block_sizes": [16]},
    "seconds": 1e-5,
    "default_seconds": 2e-5,
}


def file_of(variant: Any) -> str:
    kernels = [{"kernel": "m.add", "variants": [variant]}]
    values = {"format": results.FORMAT, "version": 1, "machine": "m", "kernels": kernels}
    return json.dumps(values)


BAD = {
    "text": "no JSON",
    "deep": "[" * 100_000,
    "list": "[]",
    "format": '{"format": "pickle"}',
    "version": json.dumps({"format": results.FORMAT, "version": 99}),
    "kernels": json.dumps({"format": results.FORMAT, "version": 1, "kernels": 3}),
    "row": file_of(3),
    "more": file_of({**GOOD, "code_to_run": "x"}),
    "less": file_of({k: v for k, v in GOOD.items() if k != "kind"}),
    "sizes": file_of({**GOOD, "sizes": [-1]}),
    "huge": file_of({**GOOD, "sizes": [1 << 70]}),
    "boolean": file_of({**GOOD, "sizes": [True]}),
    "config": file_of({**GOOD, "config": [1]}),
    "time": file_of({**GOOD, "seconds": float("nan")}),
    "code": file_of({**GOOD, "code": 3}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, folder: pathlib.Path) -> None:
    path = folder / "bad.json"
    path.write_text(BAD[name])
    with pytest.raises(exc.InvalidConfig):
        results.load(path)
    assert results.all_of("m.add") == []
    path.write_text(file_of(GOOD))
    assert results.load(path) == ["m.add"]
