"""How a kernel gets its config: given, measured, default, forbidden."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import torch_helion as helion
from test.kernel.kernels import add, inc, make, partials, scale, tuned
from torch_helion import exc
from torch_helion.autotuner import FiniteSearch, PatternSearch, RandomSearch

X = torch.randn(300)


def block_of(kernel: helion.Kernel) -> list[int]:
    (bound,) = kernel._bound.values()
    return bound._config.block_sizes


def test_the_only_config_is_used() -> None:
    kernel = make(add, config=helion.Config(block_sizes=[64]))
    kernel(X, X)
    assert block_of(kernel) == [64]
    assert "i/64" in kernel.bind((X, X)).to_code() or "64" in kernel.bind((X, X)).to_code()


def test_configs_change_code_and_not_results() -> None:
    bound = make(scale).bind((X, 2.0))
    texts = set()
    for size in (1, 16, 64, 512):
        config = helion.Config(block_sizes=[size])
        torch.testing.assert_close(bound.compile_config(config)(X, 2.0), X.sin() * 2)
        texts.add(bound.to_code(config))
    assert len(texts) == 4
    assert "@triton.jit" in bound.to_triton_code(helion.Config(block_sizes=[16]))


def test_set_config_holds_for_later_calls() -> None:
    kernel = make(add)
    kernel(X, X)
    kernel(X, X)
    bound = kernel.bind((X, X))
    bound.set_config(helion.Config(block_sizes=[32]))
    assert torch.equal(kernel(X, X), 2 * X)
    assert block_of(kernel) == [32]


def test_the_best_of_several_is_kept() -> None:
    configs = [helion.Config(block_sizes=[n]) for n in (16, 64, 256)]
    times = iter([3.0, 1.0, 2.0])
    seconds: dict[int, float] = {}

    def measured(functions: list[Callable[[], object]]) -> list[float]:
        """One function has always the same time."""
        numbers = [f.__closure__[0].cell_contents.number for f in functions]
        return [seconds[n] if n in seconds else seconds.setdefault(n, next(times)) for n in numbers]

    kernel = make(add, configs=configs, autotune_benchmark_fn=measured)
    assert torch.equal(kernel(X, X), 2 * X)
    assert block_of(kernel) == [64]


def test_measuring_changes_no_argument() -> None:
    kernel = make(inc, configs=[helion.Config(block_sizes=[n]) for n in (16, 64)])
    x = torch.zeros(300)
    kernel(x)
    assert torch.equal(x, torch.ones(300))


def test_wrong_candidates_are_left_out() -> None:
    bound = make(add).bind((X, X))
    configs = [helion.Config(block_sizes=[n]) for n in (16, 64)]
    bound.settings.autotune_baseline_fn = lambda x, y: x - y
    with pytest.raises(exc.NoConfigFound, match="wrong results"):
        FiniteSearch(bound, (X, X), configs).autotune()


def test_a_finite_search_needs_two() -> None:
    bound = make(add).bind((X, X))
    with pytest.raises(exc.NotEnoughConfigs, match="got 1"):
        FiniteSearch(bound, (X, X), [helion.Config(block_sizes=[16])])


@pytest.mark.parametrize("kind", [PatternSearch, RandomSearch])
def test_searches_end_with_a_config_that_works(kind: type) -> None:
    kernel = make(add, autotune_budget_seconds=0, autotune_random_seed=1)
    best = kind(kernel.bind((X, X)), (X, X)).autotune()
    assert torch.equal(kernel.bind((X, X)).compile_config(best)(X, X), 2 * X)


def test_autotune_installs_what_it_finds() -> None:
    kernel = make(add, autotune_budget_seconds=0)
    best = kernel.autotune((X, X))
    assert block_of(kernel) == best.block_sizes
    multi = kernel.autotune_multi([(X, X), (X[:100], X[:100])])
    assert isinstance(multi, helion.Config)


def test_a_users_own_search() -> None:
    class Mine:
        def autotune(self) -> helion.Config:
            return helion.Config(block_sizes=[128])

    kernel = make(add, autotuner_fn=lambda bound, args, **options: Mine())
    kernel(X, X)
    assert block_of(kernel) == [128]


def test_effort_none_says_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    make(add, autotune_effort="none")(X, X)
    said = capsys.readouterr().err
    assert "Using default config: @helion.kernel(config=helion.Config(block_sizes=[" in said
    make(add, autotune_effort="none", autotune_log_level=0)(X, X)
    assert capsys.readouterr().err == ""


def test_searching_may_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELION_DISALLOW_AUTOTUNING", "1")
    with pytest.raises(exc.AutotuningDisallowedInEnvironment):
        make(add)(X, X)
    make(add, config=helion.Config(block_sizes=[16]))(X, X)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"block_sizes": [3]}, "power of two"),
        ({"block_sizes": [16, 16]}, "expected 1 entry, got 2"),
        ({"block_size": 0}, "power of two"),
        ({"blok_sizes": [16]}, "did you mean 'block_sizes'"),
        ({"waves_per_eu": 2}, "other hardware"),
        ({"pid_type": "spiral"}, "pid_type"),
        ({"num_warps": 3}, "num_warps"),
    ],
)
def test_configs_that_do_not_fit(config: dict[str, object], says: str) -> None:
    bound = make(add).bind((X, X))
    with pytest.raises(exc.InvalidConfig, match=says):
        bound.compile_config(config)
    kernel = make(add, config=config)
    with pytest.raises(exc.InvalidConfig, match=says):
        kernel(X, X)


def test_keys_of_other_targets_are_ignored() -> None:
    config = helion.Config(
        block_sizes=[64], num_warps=8, num_stages=3, indexing="block_ptr", range_flattens=[True]
    )
    bound = make(add).bind((X, X))
    assert bound.to_code(config) == bound.to_code(helion.Config(block_sizes=[64]))


def test_large_blocks_are_clamped() -> None:
    bound = make(add).bind((X, X))
    assert bound.config_spec.normalize({"block_sizes": [4096]})["block_sizes"] == [512]


def test_from_cache_tries_what_it_is_given() -> None:
    kernel = make(add, autotuner_fn=helion.from_cache(configs=[helion.Config(block_sizes=[16])]))
    assert torch.equal(kernel(X, X), 2 * X)


def test_ahead_of_time_kernels_fall_back(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = helion.aot_kernel(add)
    assert torch.equal(kernel(X, X), 2 * X)
    assert "NoAOTHeuristicWarning" in capsys.readouterr().err


def test_block_sizes_that_the_host_part_knows() -> None:
    kernel = make(partials)
    torch.testing.assert_close(kernel(X), X.sum())
    bound = kernel.bind((X,))
    for size in (1, 16, 64, 512):
        config = helion.Config(block_sizes=[size])
        torch.testing.assert_close(bound.compile_config(config)(X), X.sum())
    torch.testing.assert_close(bound.run_ref(X), X.sum())
    torch.testing.assert_close(make(partials, ref_mode=helion.RefMode.EAGER)(X), X.sum())
    leaf = X.clone().requires_grad_()
    kernel(leaf).backward()
    torch.testing.assert_close(leaf.grad, torch.ones_like(X))


def test_tunables_of_the_kernels_own() -> None:
    kernel = make(tuned)
    assert torch.equal(kernel(X), X * 2)
    bound = kernel.bind((X,))
    for times in (1, 4, 8):
        config = helion.Config(block_sizes=[64], times=times)
        assert torch.equal(bound.compile_config(config)(X), X * times)
    with pytest.raises(exc.InvalidConfig, match="times"):
        bound.compile_config(helion.Config(times=3))
    assert bound.config_spec.user_defined_tunables["times"].default() == 2
