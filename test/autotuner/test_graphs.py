"""`mode="max-autotune"`: kernels of regions and of the language are tuned, and stay tuned."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_helion as helion
from test.kernel.kernels import make, scale
from torch_helion import settings
from torch_helion._testing import recorded_graphs
from torch_helion.autotuner import results
from torch_helion.autotuner.bench import Bench
from torch_helion.capture import graph_pass, inductor_compat, options, race, tuning
from torch_helion.config import Config


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tuning.found.clear()
    with settings.patch(cache_dir=str(tmp_path / "cache"), tune_budget=1.0):
        yield tmp_path
    torch.set_num_threads(threads)


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.gelu(F.layer_norm(x, [x.shape[-1]], w)) + 1


X, W = torch.randn(64, 200), torch.randn(200)


def compiled(mode: str | None, fn: Any = norm, *args: torch.Tensor) -> Any:
    torch.compiler.reset()
    args = args or (X, W)
    with torch.no_grad(), recorded_graphs() as graphs:
        got = torch.compile(fn, backend="helion", mode=mode)(*args)
    torch.testing.assert_close(got, fn(*args), rtol=1e-5, atol=1e-5)
    return [region for graph in graphs for region in graph.regions]


def test_regions_are_searched_once() -> None:
    compiled(None)
    assert tuning.found == []
    compiled("max-autotune")
    ((name, result),) = tuning.found
    assert name.startswith("fused_")
    assert result.tried >= 1
    assert result.rejected == ()
    compiled("max-autotune")
    assert len(tuning.found) == 1, "it is stored"


def two_regions(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return norm(x, w).cumsum(0).tanh().softmax(-1)


def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is searched and raced from now on."""
    begun: list[str] = []
    original, hold = Bench.__init__, race.hold

    def counted(self: Any, problem: Any, *args: Any, **kwargs: Any) -> None:
        begun.append(problem.name)
        original(self, problem, *args, **kwargs)

    def held(*args: Any) -> Any:
        begun.append("race")
        return hold(*args)

    monkeypatch.setattr(Bench, "__init__", counted)
    monkeypatch.setattr(race, "hold", held)
    return begun


def test_another_process_and_another_batch_size_search_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = searches(monkeypatch)
    regions = compiled("max-autotune", two_regions, X, W)
    assert begun.count("race") == len(begun) - begun.count("race") == len(regions) > 1
    results.forget()  # as in another process
    begun.clear()
    with inductor_compat.without_caches():
        again = compiled("max-autotune", two_regions, X, W)
        assert begun == []
        assert [r.text for r in again] == [r.text for r in regions]
        compiled("max-autotune", two_regions, torch.randn(96, 200), W)
        assert begun == []
        with torch.no_grad():
            helion.tune(two_regions, X, W, budget=0.3)
    assert len(begun) == 2 * len(regions), "that asks for it"


def test_a_region_that_loses_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path
) -> None:
    monkeypatch.setattr(race, "hold", lambda *unused: (3e-5, 2e-5))
    torch.compiler.reset()
    with torch.no_grad(), recorded_graphs() as graphs, inductor_compat.without_caches():
        got = torch.compile(norm, backend="helion", mode="max-autotune")(X, W)
        torch.testing.assert_close(got, norm(X, W))
    (graph,) = graphs
    assert graph.regions == []
    assert any("ATen is faster: 20.0 us against 30.0 us" in d.reason for d in graph.declined)
    results.forget()
    monkeypatch.setattr(race, "hold", lambda *unused: None)
    with inductor_compat.without_caches():
        assert compiled(None) == [], "also in other modes"
        assert len(compiled(None, norm, torch.randn(1000, 200), W)) == 1, "for other sizes not"


def test_a_race_is_won_by_the_faster_one() -> None:
    first, second = race.in_turn(lambda: None, lambda: time.sleep(1e-3))
    assert first < second
    assert race.verdict(1.04, 1.0) is None
    assert race.verdict(1.06, 1.0) is not None


def test_what_was_found_is_used_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    (region,) = compiled(None)
    request = options.read(None, None)
    before = graph_pass.HelionPass(request).uuid()

    def found(problem: Any, **unused: Any) -> Any:
        raise AssertionError("no search")

    kernel = region.kernel
    made = type("Made", (), {"kernel": kernel, "hints": dict.fromkeys(kernel.sizes, 64)})
    results.keep(tuning.identity(made), (64,), Config(block_sizes=[2], unroll=1), 1e-5, 2e-5)
    assert graph_pass.HelionPass(request).uuid() != before, "programs of before are not used"
    monkeypatch.setattr(Bench, "measure", found)
    (tuned,) = compiled(None)
    assert tuned.text != region.text
    (near,) = compiled(None, norm, torch.randn(100, 200), W)
    assert near.text == tuned.text, "one kernel for all batch sizes"
    (far,) = compiled(None, norm, torch.randn(6400, 200), W)
    assert far.text == region.text


def test_kernels_of_the_language_are_tuned_when_they_are_called() -> None:
    kernel = make(scale)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return kernel(x + 1, 2.0)

    x = torch.randn(300)
    with inductor_compat.without_caches():
        compiled(None, fn, x)
        assert kernel.last_search is None
        compiled("max-autotune", fn, x)
    assert kernel.last_search is not None


def test_a_search_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no processes left")

    monkeypatch.setattr(Bench, "measure", fail)
    with settings.patch(strict=False):
        (region,) = compiled("max-autotune")
    assert tuning.found == []
    (plain,) = compiled(None)
    assert region.text == plain.text


def test_no_time_no_search() -> None:
    with settings.patch(tune_budget=0.0):
        compiled("max-autotune")
    assert tuning.found == []


def test_tune_reports_regions() -> None:
    with torch.no_grad():
        report = helion.tune(norm, X, W, budget=0.5)
    ((name, _),) = report.rows
    assert name.startswith("fused_")
