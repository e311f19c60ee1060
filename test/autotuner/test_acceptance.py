"""What the tuner promises, as a user meets it: other processes, other sizes, many searches."""

from __future__ import annotations

import gc
import json
import os
import pathlib

import pytest
import torch

import torch_helion as helion
from test.autotuner.saboteurs import KINDS, problem
from test.autotuner.test_safety import left_behind, require_nothing_more_than
from test.frontend import programs
from torch_helion import settings
from torch_helion._testing import output_of
from torch_helion.autotuner import runner
from torch_helion.autotuner.search import SEARCHES, FiniteSearch
from torch_helion.config import Config

PROGRAM = """
    import json, sys
    import torch
    import torch_helion as helion
    from test.frontend import programs as p
    from torch_helion import exc
    from torch_helion.autotuner import bench, search

    torch.set_num_threads(1)
    name, sizes, budget = {name!r}, {sizes!r}, {budget!r}
    args = tuple(torch.randn(size) for size in sizes)
    kernel = helion.kernel(getattr(p, name), ignore_warnings=[exc.BaseWarning])
    benches = []
    original = bench.Bench.__init__
    def counted(self, *args, **kwargs):
        benches.append(1)
        original(self, *args, **kwargs)
    bench.Bench.__init__ = counted
    if {tune!r}:
        helion.tune(kernel, *args, budget=budget)
        kernel = helion.kernel(kernel.fn, ignore_warnings=[exc.BaseWarning])
        benches.clear()
    kernel(*args)
    used, ratio = kernel._bound_for(args)._config, 1.0
    assert not benches, "a call has searched"
    if {compare!r}:
        bound = kernel.bind(args)
        found = search.PatternSearch(bound, args, budget=budget).autotune()
        measured = bench.Bench(bound.tuning_problem(args), check=False)
        measured.best = measured.admit(found)
        mine = measured.admit(used or bound.default_config())
        ratio = measured.contest([mine], rounds=21).get(mine, 1.0)
        measured.close()
    print(json.dumps([None if used is None else used.to_json(), ratio]))
"""


def in_process(
    name: str,
    sizes: list[tuple[int, ...]],
    budget: float,
    tune: bool = False,
    compare: bool = False,
) -> tuple[str | None, float]:
    """The config that a process uses without a search; its time by that of a search's winner."""
    values = {"name": name, "sizes": sizes, "budget": budget, "tune": tune, "compare": compare}
    folder = settings.current().cache_dir
    text = PROGRAM.format(**values)
    environment = {"TORCH_HELION_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
    used, ratio = json.loads(output_of(text, env={**os.environ, **environment}).splitlines()[-1])
    return used, ratio


ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_another_process_at_another_batch_size_does_not_search(tmp_path: pathlib.Path) -> None:
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        tuned, _ = in_process("softmax_two_pass", [(64, 512)], 0.4, tune=True)
        other, _ = in_process("softmax_two_pass", [(200, 512)], 0.4)
        far, _ = in_process("softmax_two_pass", [(64, 512 * 32)], 0.4)
    assert other == tuned
    assert far is None


CASES = (
    ("softmax_two_pass", [(64, 512)], [(300, 512)]),
    ("long_sum", [(128, 4096)], [(512, 4096)]),
    ("matmul", [(64, 256), (256, 512)], [(256, 256), (256, 512)]),
    ("add", [(64, 2048), (64, 2048)], [(256, 2048), (256, 2048)]),
)


@pytest.mark.slow
@pytest.mark.parametrize("name, here, there", CASES)
def test_what_was_tuned_elsewhere_is_nearly_as_fast(
    name: str, here: list[tuple[int, ...]], there: list[tuple[int, ...]], tmp_path: pathlib.Path
) -> None:
    with settings.patch(cache_dir=str(tmp_path / "cache")):
        in_process(name, here, 5.0, tune=True)
        ratios = [in_process(name, there, 5.0, compare=True)[1] for _ in range(2)]
    assert min(ratios) <= 1.05


@pytest.mark.slow
def test_a_hundred_searches_of_all_kinds_leave_nothing() -> None:
    """Every strategy, candidates that fail in every way, and kernels of the language."""
    torch.set_num_threads(1)
    runner.server().start()
    x = torch.randn(64, 200)
    kernel = helion.kernel(programs.softmax_two_pass, autotune_log_level=0)
    FiniteSearch(problem(["right", "again"])[0], (), [Config(kind=k) for k in ("right", "again")],
                 budget=1.0).autotune()  # fmt: skip
    kernel.autotune((x,), budget=0.2)
    gc.collect()
    before = left_behind()
    kinds = [k for k in KINDS if k != "right"]
    strategies = [s for n, s in SEARCHES.items() if n != "FiniteSearch"]
    for number in range(100):
        if number % 4 == 3:
            kernel.autotune((x,), budget=0.3)
            continue
        bad = kinds[number % len(kinds)]
        made, given, out = problem(["right", bad, "again"], autotune_compile_timeout=20)
        strategies[number % len(strategies)](made, budget=0.4 if bad == "hang" else 1.5).autotune()
        assert torch.equal(given, torch.arange(given.numel(), dtype=torch.float32))
        assert out.isnan().all()
    del made, given, out
    require_nothing_more_than(before)
