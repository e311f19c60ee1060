"""Kernels of the language through the tuner: searched, stored, chosen for other sizes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.frontend import programs, programs_loops
from test.frontend.programs import PROGRAMS
from test.kernel.kernels import add, inc, make, partials, scale, tuned
from torch_helion import exc, settings
from torch_helion.autotuner import LocalAutotuneCache, PatternSearch, results
from torch_helion.kernel import tuning

assert programs_loops
X = torch.randn(300)


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results.forget()
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        yield tmp_path
    torch.set_num_threads(threads)


def config_of(kernel: helion.Kernel, *args: Any) -> helion.Config | None:
    return kernel._bound_for(kernel.normalize_args(*args))._config


def test_a_search_changes_nothing_but_the_config() -> None:
    kernel = make(inc, autotune_max_generations=1)
    x = torch.zeros(300)
    best = kernel.autotune((x,), budget=30.0)
    assert torch.equal(x, torch.zeros(300))
    result = kernel.last_search
    assert result.tried >= 5
    assert result.rejected == ()
    assert result.config == best
    assert torch.equal(kernel(x), torch.ones(300))


FAMILIES = ("softmax_two_pass", "matmul", "attention", "histogram", "barrier", "embedding",
            "jagged_mean", "scans", "orders", "gated", "int4")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_programs_are_judged_right(name: str) -> None:
    """Every config of a few random ones passes the judge: code and judge agree."""
    fn, args, _, _ = PROGRAMS[name]
    kernel = make(fn, ignore_warnings=[exc.BaseWarning], autotune_random_seed=1,
                  autotune_max_generations=1)  # fmt: skip
    bound = kernel.bind(args)
    search = PatternSearch(bound, args, budget=20.0)
    search.rings = lambda here: [search.space.neighbours(here)[:4]]  # type: ignore[method-assign]
    search.autotune()
    assert search.result is not None
    assert search.result.rejected == ()


def test_all_programs_can_be_judged_by_float64() -> None:
    judged = 0
    for name, (fn, args, _, _) in PROGRAMS.items():
        kernel = make(fn, ignore_warnings=[exc.BaseWarning])
        problem = kernel.bind(args).tuning_problem(args)
        prepared = problem.prepare(problem.default)
        from torch_helion.autotuner.arena import Arena

        arena = Arena(prepared.instance.tensors, prepared.instance.written)
        assert prepared.instance.make_judge is not None
        judged += prepared.instance.make_judge(arena) is not None
        arena.close()
        assert problem.isolated, name
    assert judged >= len(PROGRAMS) - 1


def test_the_host_part_may_depend_on_the_config() -> None:
    kernel = make(partials, ignore_warnings=[exc.BaseWarning], autotune_max_generations=1)
    kernel.autotune((X,), budget=30.0)
    assert kernel.last_search.tried > 3
    assert kernel.last_search.rejected == ()
    torch.testing.assert_close(kernel(X), X.sum())


def noisy(x: torch.Tensor) -> torch.Tensor:
    noise = torch.rand_like(x)
    block = hl.register_block_size(x.size(0))
    sums = torch.zeros(helion.cdiv(x.size(0), block), dtype=x.dtype)
    for tile in hl.tile(x.size(0), block_size=block):
        sums[tile.id] = (x[tile] * noise[tile] + torch.rand_like(x[tile])).sum()
    return sums.sum()


def test_random_numbers_are_the_same_for_all_and_nobody_elses() -> None:
    kernel = make(noisy, ignore_warnings=[exc.BaseWarning], autotune_max_generations=1)
    torch.manual_seed(3)
    kernel(X)
    before = torch.get_rng_state()
    kernel.autotune((X,), budget=30.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert kernel.last_search.rejected == ()
    assert kernel.last_search.tried > 1


def test_tunables_are_searched() -> None:
    """Results that depend on a tunable are those of the default, or wrong."""
    kernel = make(tuned, autotune_max_generations=1)
    kernel.autotune((X,), budget=30.0)
    assert torch.equal(kernel(X), 2 * X)
    assert any("wrong results" in why for _, why in kernel.last_search.rejected)


def test_views_gaps_and_aliases_of_arguments() -> None:
    base = torch.randn(40, 30)
    x, y = base[::2, 3:25], base[1::2, 3:25]
    kernel = make(programs.add)
    kernel.autotune((x, y), budget=2.0)
    assert kernel.last_search.rejected == ()
    assert torch.equal(kernel(x, y), x + y)
    both = make(add)
    both.autotune((X, X), budget=1.0)
    assert both.last_search.rejected == ()
    column = torch.randn(37, 1).expand(37, 21)
    kernel.autotune((column, column), budget=1.0)
    assert kernel.last_search.rejected == ()
    empty = torch.randn(0, 21)
    kernel.autotune((empty, empty), budget=1.0)
    assert kernel.last_search.rejected == ()


def test_nan_and_infinity_in_arguments_are_no_failure() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0] * 30)
    kernel = make(scale)
    kernel.autotune((x, 2.0), budget=1.0)
    assert kernel.last_search.rejected == ()


# -- stored results -------------------------------------------------------------------------------


def stored(kernel: helion.Kernel, args: tuple[Any, ...], block: int) -> None:
    found = tuning.Result(helion.Config(block_sizes=[block]), 1e-5, 2e-5, 3, (), 0.0)
    kernel.bind(args).keep_result(args, found)


def test_a_result_serves_later_processes_and_other_sizes() -> None:
    stored(make(add), (X, X), 64)
    results.forget()
    kernel = make(add)
    for n in (300, 200, 1000):
        x = torch.randn(n)
        assert torch.equal(kernel(x, x), 2 * x)
        config = config_of(kernel, x, x)
        assert config is not None
        assert config.block_sizes == [64]
    far = torch.randn(100_000)
    kernel(far, far)
    assert config_of(kernel, far, far) is None
    assert kernel.last_search is None, "nothing was searched"
    double = X.double()
    kernel(double, double)
    assert config_of(kernel, double, double) is None


def test_several_variants_by_size() -> None:
    kernel = make(add)
    small, large = torch.randn(64), torch.randn(8192)
    stored(kernel, (small, small), 16)
    stored(kernel, (large, large), 2048)
    fresh = make(add)
    for n, block in ((64, 16), (70, 16), (300, 16), (2000, 2048), (8192, 2048)):
        x = torch.randn(n)
        fresh(x, x)
        config = config_of(fresh, x, x)
        assert config is not None
        assert config.block_sizes == [block], n


def test_open_sizes_choose_among_variants_at_each_call() -> None:
    kernel = make(add, static_shapes=False)
    small, large = torch.randn(64), torch.randn(8192)
    kernel(small, small)
    assert len(kernel._bound) == 1
    stored(kernel, (small, small), 16)
    stored(kernel, (large, large), 2048)
    for n, block in ((64, 16), (8192, 2048), (300, 16), (5000, 2048), (90, 16)):
        x = torch.randn(n)
        assert torch.equal(kernel(x, x), 2 * x)
        config = config_of(kernel, x, x)
        assert config is not None
        assert config.block_sizes == [block], n
    assert len(kernel._bound) == 3, "one for each variant, and the first"
    plain = make(scale, static_shapes=False)
    plain(small)
    plain(large)
    assert len(plain._bound) == 1 and plain._recent, "nothing to choose from"


def test_a_given_config_and_no_effort_come_first() -> None:
    stored(make(add), (X, X), 64)
    kernel = make(add, config=helion.Config(block_sizes=[128]))
    kernel(X, X)
    assert config_of(kernel, X, X) == helion.Config(block_sizes=[128])
    kernel = make(add, autotune_effort="none", autotune_log_level=0)
    kernel(X, X)
    assert config_of(kernel, X, X) is None


SOURCE = """
import torch
import torch_helion.language as hl

def factor(x):
    return x * {factor}

def scaled(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = factor(x[tile])
    return out
"""


def test_a_changed_helper_refuses_the_old_config(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    import importlib.util

    def version(factor: int) -> helion.Kernel:
        path = folder / f"version{factor}.py"
        path.write_text(SOURCE.format(factor=factor))
        spec = importlib.util.spec_from_file_location("a_module_of_the_user", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return make(module.scaled)

    stored(version(2), (X,), 64)
    same = version(2)
    same(X)
    assert config_of(same, X) == helion.Config(block_sizes=[64])
    changed = version(3)
    with caplog.at_level("WARNING", "torch_helion.tune"):
        assert torch.equal(changed(X), 3 * X)
    assert config_of(changed, X) is None
    assert "a_module_of_the_user.scaled: its tuned configs are not used" in caplog.text


def test_a_stored_config_that_does_not_fit_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    found = tuning.Result(helion.Config(block_sizes=[64, 64]), 1e-5, 2e-5, 3, (), 0.0)
    make(add).bind((X, X)).keep_result((X, X), found)
    kernel = make(add)
    with caplog.at_level("WARNING", "torch_helion.tune"):
        assert torch.equal(kernel(X, X), 2 * X)
    assert "its tuned config is not used: block_sizes: expected 1 entry, got 2" in caplog.text


def test_the_cache_class_looks_before_it_searches() -> None:
    kernel = make(add)
    bound = kernel.bind((X, X))
    stored(kernel, (X, X), 32)
    search = PatternSearch(bound, (X, X), budget=1.0)
    assert LocalAutotuneCache(search).autotune() == helion.Config(block_sizes=[32])
    assert search.result is None
    LocalAutotuneCache(search).autotune(skip_cache=True)
    assert search.result is not None


def test_a_hit_may_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELION_ASSERT_CACHE_HIT", "1")
    kernel = make(add, configs=[helion.Config(block_sizes=[n]) for n in (16, 64)])
    with pytest.raises(exc.CacheAssertionError, match="add"):
        kernel(X, X)
    stored(kernel, (X, X), 64)
    assert torch.equal(kernel(X, X), 2 * X)


# -- torch_helion.tune and files ------------------------------------------------------------------


def test_tune_a_kernel_and_ship_its_config(folder: pathlib.Path) -> None:
    kernel = make(scale, autotune_max_generations=1)
    report = helion.tune(kernel, X, budget=30.0)
    ((name, result),) = report.rows
    assert name == "scale"
    assert result.tried > 1
    assert "scale" in str(report) and "speedup" in str(report)
    stored(kernel, (X, 2.0), 128)
    assert helion.save_configs(folder / "configs.json") == 1
    results.forget()
    with settings.patch(cache_dir=str(folder / "elsewhere")):
        fresh = make(scale)
        fresh(X)
        assert config_of(fresh, X) is None
        (loaded,) = helion.load_configs(folder / "configs.json")
        assert loaded.endswith("kernels.scale")
        fresh(X)
        assert config_of(fresh, X) == helion.Config(block_sizes=[128])


def test_tune_wants_time() -> None:
    with pytest.raises(exc.InvalidValue, match="budget"):
        helion.tune(make(scale), X, budget=0)


def test_tune_a_function_with_kernels_inside() -> None:
    kernel = make(scale)

    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.layer_norm(x, [x.shape[-1]])
        return kernel(y.sum(-1), 2.0)

    x = torch.randn(300, 64)
    with torch.no_grad():
        report = helion.tune(f, x, budget=0.5)
        names = [name for name, _ in report.rows]
        assert "scale" in names
        assert any(name.startswith("fused_") for name in names)
        assert kernel.tuning_budget is None
        compiled = torch.compile(f, backend="helion")
        torch.testing.assert_close(compiled(x), f(x), rtol=1e-4, atol=1e-4)


@helion.kernel(ignore_warnings=[exc.BaseWarning])
def addresses(pointers: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(example)
    for tile in hl.tile(example.size(0)):
        stack = hl.stacktensor_like(example, pointers[:])
        out[tile] = stack[tile].sum(0)
    return out


def test_kernels_of_addresses_stay_in_this_process() -> None:
    xs = [torch.randn(40) for _ in range(3)]
    pointers = torch.tensor([x.data_ptr() for x in xs])
    problem = addresses.bind((pointers, xs[0])).tuning_problem((pointers, xs[0]))
    assert not problem.isolated
