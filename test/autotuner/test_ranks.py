"""One rank of a distributed job searches, the others take what it has found."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from test.autotuner.saboteurs import problem
from test.kernel.kernels import make, scale
from torch_helion import exc
from torch_helion.autotuner import ranks
from torch_helion.autotuner.results import KernelId
from torch_helion.autotuner.search import FiniteSearch, Result
from torch_helion.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNEL = KernelId("m.twice", "c0de", "float32[0]")
PROGRAM = """
    import json, os, sys, time
    import torch, torch.distributed as dist
    import torch_helion as helion
    from torch_helion import settings
    from torch_helion.autotuner import bench, results
    from test.kernel.kernels import make, add, scale

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    searches = []
    original = bench.Bench.measure
    def measure(self, configs, strict=False):
        searches.append(self.problem.name)
        return original(self, configs, strict)
    bench.Bench.measure = measure
    x = torch.randn(3000)
    norm = lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])
    with settings.patch(cache_dir=f"{folder}/cache{rank}", tune_budget=0.5):
        plain, given = make(add), make(scale, configs=[{"block_sizes": [n]} for n in (64, 512)])
        order = [0, 1] if rank else [1, 0]  # searches in another order
        for turn in order:
            if turn:
                plain.autotune((x, x), budget=0.5)
            else:
                given(x, 2.0)
        assert torch.equal(plain(x, x), 2 * x)
        if rank == 1:  # a kernel that one rank alone calls
            make(add).autotune((x[:100], x[:100]), budget=0.3)
        with torch.no_grad():
            torch.compile(norm, backend="helion", mode="max-autotune")(torch.randn(64, 300))
        configs = [k.last_search.config.to_json() for k in (plain, given)]
        names = [n for n in results._session if n.startswith("region of a graph: ")]
        regions = sorted(v.config.to_json() for n in names for v in results.all_of(n))
    print(json.dumps([sorted(set(searches)), configs, regions]), flush=True)
    dist.barrier()
    dist.destroy_process_group()
"""


def test_two_ranks_search_once(tmp_path: pathlib.Path) -> None:
    program = textwrap.dedent(PROGRAM)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "GLOO_SOCKET_IFNAME": "lo",
                # A folder each: else the second one finds the program of the first.
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"inductor{rank}"),
            },
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=280)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [p.returncode for p in started] == [0, 0]
    (mine, configs, regions), (others, same, alike) = (json.loads(text) for text in said)
    assert configs == same
    assert regions == alike and len(regions) == 1
    assert sorted([*mine, *others]).count("scale") == 1
    assert "add" in others, "rank 1 alone calls it with other sizes"
    assert sum(name.startswith("fused") for name in (*mine, *others)) == 1


# -- in one process: the second rank is the second to come to the store ---------------------------


class Store:
    """What ranks need of one."""

    def __init__(self) -> None:
        self.inner = dist.HashStore()
        self.add, self.set, self.get = self.inner.add, self.inner.set, self.inner.get
        self.check = self.inner.check


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = Store()
    monkeypatch.setattr(ranks, "_store", lambda: made)
    monkeypatch.setattr(ranks, "_turns", ranks.collections.Counter())
    yield made


def search(*kinds: str) -> FiniteSearch:
    made, _, _ = problem(list(kinds))
    return FiniteSearch(made, (), [Config(kind=k) for k in kinds], budget=5.0)


def as_next_rank() -> None:
    ranks._turns.clear()


def test_the_second_takes_what_the_first_found(store: Any) -> None:
    first = ranks.run(search("right", "wrong"), KERNEL, (3,))
    as_next_rank()
    second = search("right", "wrong")
    assert ranks.run(second, KERNEL, (3,)) == first == second.result
    assert not hasattr(second, "bench"), "nothing was measured"
    again = search("right", "again")
    assert ranks.run(again, KERNEL, (3,)).tried == 2, "another search of the same kernel"
    other = search("right", "again")
    assert ranks.run(other, KERNEL, (4,)).tried == 2
    nameless = search("right", "again")
    assert ranks.run(nameless, None, (3,)).tried == 2


def test_a_search_that_fails_keeps_nobody_waiting(store: Any) -> None:
    with pytest.raises(exc.NoConfigFound):
        ranks.run(search("crash", "wrong"), KERNEL, (3,))
    as_next_rank()
    with pytest.raises(exc.NoResultFromRank, match="has failed"):
        ranks.run(search("crash", "wrong"), KERNEL, (3,))


def test_waiting_ends(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LONGEST", 0.2)
    store.add(f"{ranks._key(KERNEL, (3,))}/claim", 1)
    as_next_rank()
    with pytest.raises(exc.NoResultFromRank, match="has not answered"):
        ranks.run(search("right", "again"), KERNEL, (3,))


def test_a_call_goes_on_without_the_result(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_wait", _no_answer)
    monkeypatch.setattr(store, "add", lambda *unused: 2)
    x = torch.randn(100)
    given = make(scale, configs=[Config(block_sizes=[n]) for n in (8, 32)])
    assert torch.allclose(given(x), torch.sin(x) * 2)
    assert given._bound_for((x, 2.0))._config == Config(block_sizes=[8])
    told = make(scale)
    told.tune_at_next_call(1.0)
    assert torch.allclose(told(x), torch.sin(x) * 2)


def _no_answer(*unused: Any) -> Any:
    raise exc.NoResultFromRank("has not answered")


def test_results_go_round() -> None:
    rejected = ((Config(block_sizes=[3]), "crashes: SIGSEGV"),)
    found = Result(Config(block_sizes=[4], unroll=2), 1e-6, 2e-6, 7, rejected, 0.01, True)
    assert ranks.from_json(json.loads(json.dumps(ranks.to_json(found)))) == found


def test_alone_there_is_no_store() -> None:
    assert not dist.is_initialized()
    assert ranks._store() is None
    assert torch.distributed.is_available()
