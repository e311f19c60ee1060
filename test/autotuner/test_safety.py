"""Candidates that crash, hang, compute wrong numbers or write where they may not."""

from __future__ import annotations

import gc
import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest
import torch

import torch_helion as helion
from test.autotuner.saboteurs import COUNT, problem
from test.kernel.kernels import add
from torch_helion import exc
from torch_helion.autotuner import arena, runner
from torch_helion.autotuner.search import FiniteSearch, PatternSearch
from torch_helion.config import Config

REASONS = {
    "wrong": "wrong results: error",
    "nearly": "wrong results: error",
    "half": "wrong results: infinities or NaNs",
    "behind": "writes outside of its buffers, . bytes behind 'out'",
    "before": "writes outside of its buffers, 64 bytes before 'out'",
    "input": "writes into 'x'",
    "crash": "crashes: SIGSEGV",
    "trap": "crashes: SIG",
    "hang": "hangs: stopped after",
    "status": "IndexError",
    "text": "CodegenError: ",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_candidate_is_named_and_costs_nothing_else(kind: str) -> None:
    made, x, out = problem(["right", kind, "again"])
    search = PatternSearch(made, budget=20.0)
    assert search.autotune()["kind"] in ("right", "again")
    result = search.result
    assert result is not None
    ((config, why),) = result.rejected
    assert config == Config(kind=kind)
    assert re.match(REASONS[kind], why)
    assert result.tried == 2
    assert torch.equal(x, torch.arange(COUNT, dtype=torch.float32))
    assert out.isnan().all()


def test_the_first_candidate_may_be_bad() -> None:
    made, _, _ = problem(["crash", "wrong", "right"])
    search = PatternSearch(made, budget=20.0)
    assert search.autotune() == Config(kind="right")
    assert search.result is not None
    assert len(search.result.rejected) == 2


def test_a_hang_takes_a_part_of_the_budget() -> None:
    made, _, _ = problem(["right", "hang", "again"])
    runner.server().start()
    start = time.perf_counter()
    PatternSearch(made, budget=8.0).autotune()
    assert time.perf_counter() - start < 12  # server and all


def test_one_process_is_left_by_no_number_of_searches() -> None:
    """The server stays for the next search, for a while; nothing else does."""
    runner.server().start()
    made, _, _ = problem(["right", "wrong", "behind"])
    FiniteSearch(made, (), [Config(kind="right"), Config(kind="wrong")]).autotune()
    before = left_behind()
    for number in range(100):
        kinds = ("right", "crash") if number % 20 == 0 else ("right", "again")
        budget = 2.0 if number % 10 == 0 else 0.0  # 0: the first config and no more
        FiniteSearch(made, (), [Config(kind=k) for k in kinds], budget=budget).autotune()
    require_nothing_more_than(before)


def left_behind() -> tuple[object, ...]:
    """What is open, mapped, running or lying about."""
    temporary = pathlib.Path(os.environ.get("TMPDIR", "/tmp"))
    return (
        len(os.listdir("/proc/self/fd")),
        children(os.getpid()),
        sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else [],
        sum("torch_helion_arena" in line for line in open("/proc/self/maps")) == 0,
        sorted(p.name for p in temporary.glob("*torch_helion_arena*")),
    )


def require_nothing_more_than(before: tuple[object, ...]) -> None:
    """Nothing is left behind but the server, and that goes when it is told to."""
    gc.collect()
    assert left_behind() == before
    server = runner.server()._process
    assert server is not None
    assert children(server.pid) == []
    runner.server().stop()
    assert server.poll() is not None
    assert server.pid not in children(os.getpid())


def children(pid: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        found += [int(p) for p in (task / "children").read_text().split()]
    return sorted(found)


def test_the_server_ends_with_its_parent_and_takes_runners_along() -> None:
    from torch_helion._testing import output_of

    code = """
        import os, time
        from test.autotuner.saboteurs import problem, text_of
        from torch_helion.autotuner import runner
        from torch_helion.autotuner.arena import Arena
        made, x, out = problem(["right"])
        child = runner.ChildRunner()
        child.attach(0, Arena([x, out], [1]))
        child.load(runner.Job(1, text_of("hang"), 0, ()), 20.0)
        child._sock.settimeout(0.2)
        from torch_helion.autotuner import wire
        wire.send(child._sock, {"do": "run", "number": 1})
        time.sleep(0.2)
        print(runner.server()._process.pid, child._pid, flush=True)
        os._exit(0)
    """
    pids = [int(p) for p in output_of(code).split()]
    deadline = time.perf_counter() + 10
    while any(map(_is_alive, pids)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, pids))


def _is_alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_an_interruption_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = problem(["right", "again", "wrong"])
    search = PatternSearch(made, budget=20.0)
    original = search.measure_points

    def interrupted(points: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        original(points[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "measure_points", interrupted)
    assert search.autotune()["kind"] in ("right", "again")
    assert search.result is not None
    assert search.result.interrupted
    child = search.bench.runner
    assert isinstance(child, runner.ChildRunner)
    assert child._sock is None


def test_ctrl_c_ends_a_candidate_that_hangs() -> None:
    made, _, _ = problem(["right", "hang"], autotune_adaptive_timeout=False)
    search = PatternSearch(made, budget=60.0)
    runner.server().start()

    def interrupt() -> None:
        while "right" not in str(list(getattr(search, "bench", made_empty).candidates)):
            time.sleep(0.05)
        time.sleep(0.3)
        # Python drops an interruption that meets a destructor or a callback of its collector: as a
        # user would, press again.
        os.kill(os.getpid(), signal.SIGINT)
        while not done.wait(10):
            os.kill(os.getpid(), signal.SIGINT)

    done = threading.Event()
    made_empty = type("NoBench", (), {"candidates": {}})
    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.perf_counter()
    try:
        assert search.autotune() == Config(kind="right")
    finally:
        done.set()
    thread.join()
    assert time.perf_counter() - start < 45, "the budget is 60 s, a hang alone 30 s"
    assert search.result is not None
    assert search.result.interrupted
    server = runner.server()._process
    assert server is not None and server.poll() is None, "it was not for the server"
    assert children(server.pid) == []


def test_where_no_process_starts_this_one_measures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner.server().stop()
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    made, _, _ = problem(["right", "wrong"])
    search = PatternSearch(made, budget=20.0)
    with caplog.at_level("WARNING", "torch_helion.tune"):
        assert search.autotune() == Config(kind="right")
    assert "measured in this process: the measuring process does not start" in caplog.text
    assert "No module named" in caplog.text, "its last words"
    assert search.result is not None
    assert len(search.result.rejected) == 1
    monkeypatch.delenv("PYTHONHOME")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert PatternSearch(made, budget=20.0).autotune() == Config(kind="right")


def test_large_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "SHARE_OF_MEMORY", 1 << 30)
    made, _, _ = problem(["right", "again"])
    with pytest.raises(exc.TooLargeToTune, match="too much to measure on copies"):
        PatternSearch(made, budget=5.0).autotune()
    configs = [helion.Config(block_sizes=[n]) for n in (16, 64)]
    kernel = helion.kernel(add, configs=configs)
    x = torch.randn(100)
    assert torch.equal(kernel(x, x), 2 * x), "a call goes on"
