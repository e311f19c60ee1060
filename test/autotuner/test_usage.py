"""The names that users call, and what they are told when they call them wrongly."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import torch_helion as helion
from test.kernel.kernels import make, scale
from torch_helion import autotuner, exc, settings
from torch_helion.autotuner import results

X = torch.randn(300)
ONE, TWO = helion.Config(block_sizes=[8]), helion.Config(block_sizes=[64])


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    results.forget()
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        yield tmp_path


def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


MISTAKES: dict[str, tuple[Callable[[], Any], type[BaseException], str]] = {
    "budget of text": (lambda: helion.tune(make(scale), X, budget="5"), exc.InvalidValue,
                       "budget cannot be '5': expected seconds"),
    "no budget": (lambda: helion.tune(make(scale), X, budget=0), exc.InvalidValue,
                  "seconds, more than 0"),
    "negative budget": (lambda: make(scale).autotune((X,), budget=-1), exc.InvalidValue,
                        "seconds, at least 0"),
    "a number to tune": (lambda: helion.tune(3, X), exc.InvalidAPIUsage,
                         "takes a function or module, got 3"),
    "a tuple for tune": (lambda: helion.tune(make(scale), (X, 2.0)), exc.InvalidAPIUsage,
                         r"one by one, not in a tuple: tune\(scale, \*args\)"),
    "no tuple for autotune": (lambda: make(scale).autotune(X), exc.InvalidAPIUsage,
                              r"a tuple, not a Tensor: scale.autotune\(\(x, ...\)\)"),
    "no tuple for a search": (lambda: autotuner.PatternSearch(make(scale), X), exc.InvalidAPIUsage,
                              r"a tuple, not a Tensor: PatternSearch\(kernel, \(x, ...\)\)"),
    "misspelt option": (lambda: make(scale).autotune((X,), budgt=1), exc.InvalidOption,
                        "'budgt'; did you mean 'budget'"),
    "misspelt search": (lambda: make(scale).autotune((X,), algorithm="Patern"), exc.InvalidOption,
                        "unknown search 'Patern'; did you mean 'PatternSearch'"),
    "misspelt effort": (lambda: make(scale, autotune_effort="fast"), exc.InvalidValue,
                        "'none' or 'quick' or 'full'"),
    "misspelt setting": (lambda: make(scale, autotune_efort="quick"), exc.InvalidOption,
                         "did you mean 'autotune_effort'"),
    "one config of a list": (lambda: helion.kernel(scale, configs={"block_sizes": [8]}),
                             exc.InvalidConfig, "configs: a list of configs, got"),
    "a config that does not fit": (
        lambda: helion.kernel(scale, configs=[ONE, helion.Config(block_sizes=[8, 8])])(X),
        exc.InvalidConfig, "block_sizes: expected 1 entry, got 2"),
    "one config for FiniteSearch": (lambda: autotuner.FiniteSearch(make(scale), (X,), [ONE]),
                                    exc.NotEnoughConfigs, "at least two configs, but got 1"),
    "no search": (lambda: make(scale, autotuner_fn=lambda *a, **k: 3).autotune((X,)),
                  exc.InvalidAPIUsage, "autotuner_fn makes a search.* it has returned 3"),
    "filter": (lambda: make(scale, autotune_config_filter=lambda c: False,
                            autotune_max_generations=0).autotune((X,), budget=20),
               exc.NoConfigFound, "autotune_config_filter allows none of 1 configs"),
    "baseline": (lambda: make(scale, autotune_baseline_fn=lambda x, s: x, configs=[ONE, TWO])(X),
                 exc.NoConfigFound, r"not those of the baseline \(2 configs, the first: Config"),
    "no file": (lambda: helion.load_configs("/no/such/file.json"), FileNotFoundError,
                "/no/such/file.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str) -> None:
    call, kind, text = MISTAKES[name]
    with pytest.raises(kind, match=text):
        call()


def test_searches_take_kernels(caplog: pytest.LogCaptureFixture) -> None:
    search = autotuner.RandomSearch(make(scale), (X,), budget=20.0, max_generations=1)
    search.autotune()
    assert search.result is not None
    assert 1 <= search.result.tried <= 7
    with caplog.at_level(logging.WARNING, "torch_helion.tune"):
        autotuner.PatternSearch(make(scale), (X,), initial_population=3)
    assert "'initial_population' of a search has no effect here" in caplog.text
    both = autotuner.FiniteSearch(make(scale, configs=[ONE, TWO]), (X,))
    assert both.configs == [ONE, TWO]


def test_one_config_stands_for_a_list_of_one(folder: pathlib.Path) -> None:
    kernel = helion.kernel(scale, configs=ONE)
    assert torch.allclose(kernel(X), torch.sin(X) * 2)
    seeded = make(scale, autotune_seed_configs=TWO)
    assert autotuner.PatternSearch(seeded, (X,)).seeds()[1] == TWO


def test_efforts() -> None:
    assert (
        make(scale, autotune_effort="none").autotune((X,))
        == make(scale).bind((X,)).default_config()
    )
    for effort, seconds in (("quick", 2.0), ("full", 5.0)):
        bound = make(scale, autotune_effort=effort).bind((X,))
        assert autotuner.PatternSearch(bound, (X,)).budget == seconds


def test_files_go_where_there_is_no_folder(folder: pathlib.Path) -> None:
    assert helion.save_configs(folder / "new" / "configs.json") == 0
    assert helion.load_configs(folder / "new" / "configs.json") == []
    report = helion.tune(twice, X, budget=0.2)
    assert str(report)
