"""Strategies on a landscape that is known; what a search tries, keeps and says."""

from __future__ import annotations

import itertools
import logging
import math
import random
import sys
from typing import Any

import pytest

from test.autotuner.saboteurs import problem
from torch_helion import exc
from torch_helion.autotuner import search as searches
from torch_helion.autotuner.bench import Candidate
from torch_helion.autotuner.problem import Problem
from torch_helion.autotuner.search import SEARCHES, BaseSearch, FiniteSearch
from torch_helion.autotuner.space import Space
from torch_helion.autotuner.surrogate import Neighbours, Trees
from torch_helion.config import Config
from torch_helion.config_spec import BlockSizeSpec, ConfigSpec
from torch_helion.settings import Settings

SPEC = ConfigSpec([BlockSizeSpec("m", 4096), BlockSizeSpec("n", 4096), BlockSizeSpec("k", 1024)])
DEFAULT = Config(block_sizes=[8, 16, 4], unroll=4, pid_type="flat")
KNOBS = {"unroll": (1, 2, 4, 8), "pid_type": ("flat", "persistent_interleaved")}


def seconds_of(config: Config) -> float:
    """A bowl with a ridge across it, and some configs that fail."""
    m, n, k = (math.log2(b) for b in config.block_sizes)
    ridge = abs(m + n - 13)
    time = 1 + 0.15 * ridge + 0.03 * (n - 9) ** 2 + 0.05 * abs(k - 7)
    time += 0.1 * (config["unroll"] != 2) + 0.2 * (config["pid_type"] == "flat")
    return time


class Landscape:
    """In the place of a bench: times are computed."""

    def __init__(self, problem: Problem, deadline: float, check: bool) -> None:
        self.problem, self.deadline = problem, deadline
        self.candidates: dict[Config, Candidate] = {}
        self.rejected: dict[Config, str] = {}
        self.best: Any = None
        self.seconds, self.noise = 1.0, 0.0
        self.is_at_limit = False
        self.most = 90

    @property
    def is_over(self) -> bool:
        return len(self.candidates) + len(self.rejected) >= self.most

    def measure(self, configs: Any, strict: bool = False) -> dict[Config, float]:
        found = {}
        for config in configs:
            if self.best is not None and self.is_over:
                break
            if math.prod(config.block_sizes) > 1 << 26:
                self.rejected[config] = "too large"
                continue
            if config not in self.candidates:
                unused: Any = None
                made = Candidate(0, config, "", unused, 0)
                made.score = seconds_of(config) / seconds_of(DEFAULT)
                self.candidates[config] = made
            found[config] = self.candidates[config].score
            if self.best is None or found[config] < self.best.score:
                self.best = self.candidates[config]
        return found

    def confirm(self) -> float:
        return 1.0

    def close(self) -> None:
        pass


def run(kind: type[BaseSearch], monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> BaseSearch:
    monkeypatch.setattr(searches, "Bench", Landscape)
    monkeypatch.setattr(searches.runner.server(), "start", lambda: None)
    options = Settings(autotune_random_seed=3, autotune_log_level=0, **chosen)
    made = Problem("bowl", Space(SPEC, DEFAULT, KNOBS), options, lambda config: None)  # type: ignore[arg-type,return-value]
    search = kind(made, configs=[] if kind is not FiniteSearch else list(CONFIGS))
    search.autotune()
    return search


CONFIGS = [Config(block_sizes=[8, n, 4], unroll=2, pid_type="flat") for n in (32, 512, 4096)]
BEST = 1.0
"""At (16, 512, 128), unroll 2, interleaved."""
SLACK = {"RandomSearch": 1.7, "DifferentialEvolutionSearch": 1.3, "DESurrogateHybrid": 1.2}


@pytest.mark.parametrize("name", [n for n in SEARCHES if n != "FiniteSearch"])
def test_each_strategy_finds_a_good_config(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search = run(SEARCHES[name], monkeypatch)
    result = search.result
    assert result is not None
    assert result.tried + len(result.rejected) <= 100, "of 23000"
    assert BEST <= seconds_of(result.config) <= SLACK.get(name, 1.08) * BEST
    assert DEFAULT in search.bench.candidates


def test_strategies_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {n: list(run(k, monkeypatch).bench.candidates) for n, k in SEARCHES.items()}
    for (a, first), (b, second) in itertools.combinations(orders.items(), 2):
        assert first != second, f"{a} and {b} try the same"


def test_a_finite_search_tries_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    search = run(FiniteSearch, monkeypatch)
    assert list(search.bench.candidates) == CONFIGS
    assert search.result is not None
    assert search.result.config == min(CONFIGS, key=seconds_of)


def test_settings_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = SEARCHES["PatternSearch"]
    search = run(kind, monkeypatch, autotune_max_generations=1)
    assert len(search.bench.candidates) < 40
    search = run(kind, monkeypatch, autotune_config_overrides={"unroll": 1})
    assert {c["unroll"] for c in search.bench.candidates} == {1}
    search = run(kind, monkeypatch, autotune_config_filter=lambda c: c.block_sizes[2] == 4)
    assert {c.block_sizes[2] for c in search.bench.candidates} == {4}
    seed = Config(block_sizes=[16, 512, 128], unroll=2, pid_type="persistent_interleaved")
    search = run(kind, monkeypatch, autotune_seed_configs=[seed], autotune_max_generations=0)
    assert list(search.bench.candidates) == [DEFAULT, seed]


def test_models_tell_good_from_bad() -> None:
    rng = random.Random(1)
    rows = [[rng.random(), rng.random()] for _ in range(60)]
    scores = [1 + (x > 0.5) + 0.1 * y for x, y in rows]
    for model in (Neighbours(rows, scores), Trees(rows, scores, rng)):
        assert model.predict([0.2, 0.5]) < 1.4
        assert model.predict([0.8, 0.5]) > 1.6


def test_an_unknown_search_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELION_AUTOTUNER", "PatternSerch")
    with pytest.raises(exc.InvalidOption, match="PatternSearch"):
        searches.search_named()


def test_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made, _, _ = problem(["right", "wrong", "again"], autotune_log_search_space=True)
    with caplog.at_level(logging.INFO, "torch_helion.tune"):
        searches.PatternSearch(made, budget=10.0).autotune()
    assert "twice: rejected: Config(kind='wrong'): wrong results: error" in caplog.text
    assert "kind: right, wrong, again" in caplog.text
    assert "times the default's speed" in caplog.text
    assert "1 rejected" in caplog.text


def test_a_line_shows_the_state() -> None:
    made, _, _ = problem(["right", "wrong"])
    search = searches.PatternSearch(made, budget=10.0)
    search.autotune()
    text = search.progress.text()
    assert text.startswith("tuning twice ")
    assert "1 tried, 1 rejected; best " in text
    assert "(1.00x) Config(kind='right')" in text


def test_a_live_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    made, _, _ = problem(["right", "again"])
    made.settings.autotune_log_level = 20
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    searches.PatternSearch(made, budget=10.0).autotune()
    assert "tuning twice " in capsys.readouterr().err
    made.settings.autotune_progress_bar = False
    searches.PatternSearch(made, budget=10.0).autotune()
    assert capsys.readouterr().err == ""


def test_results_without_a_check() -> None:
    made, _, _ = problem(["right", "wrong"], autotune_accuracy_check=False)
    search = searches.PatternSearch(made, budget=10.0)
    search.autotune()
    assert search.result is not None
    assert search.result.rejected == ()


def test_in_this_process() -> None:
    made, _, out = problem(["right", "wrong", "behind"], autotune_benchmark_subprocess=False)
    search = searches.PatternSearch(made, budget=10.0)
    assert search.autotune() == Config(kind="right")
    assert search.result is not None
    first, second = (why for _, why in search.result.rejected)
    assert first.startswith("wrong results")
    assert second.startswith("writes outside of its buffers")
    assert out.isnan().all()
