"""What a kernel of the language costs apart from its arithmetic: milliseconds until it has run
once, milliseconds until it has run with another config, microseconds of each call.

What flows in: options. What flows out: a table with a line for each kernel of ``examples/`` (small
arguments: what is measured is the way to the code) and their medians:

    fresh    the first call with an empty cache: bind, trace, compile, load
    config   the first call with other block sizes: compile, load
    again    the first call in another process, which finds the kernel in the cache

and the time of a call of an addition of 64 elements. The first kernel of a process, which pays for
imports, is a line of its own.

    python benchmarks/language_bind.py --threads 2
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

STEPS = ("fresh", "config", "again")
LIMITS = {"fresh": 200.0, "config": 100.0, "again": 10.0, "call": 5.0}
"""What the project promises: milliseconds (medians), and microseconds of a call."""
FIRST = "vector_add"
"""The example whose kernel is the first one of each process."""
CALLS, ROUNDS = 2000, 30


def kernels(names: list[str]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, kernel, arguments) of the examples, each kernel once."""
    from torch_helion.kernel.decorator import Kernel

    paths = sorted((ROOT / "examples").glob("*.py"), key=lambda p: (p.stem != FIRST, p.stem))
    for path in paths:
        if (names and path.stem not in (*names, FIRST)) or "def cases" not in path.read_text():
            continue
        module = importlib.import_module(f"examples.{path.stem}")
        last: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        for kernel, _, args in module.cases():
            if isinstance(kernel, Kernel):
                last[kernel.name] = (kernel, args)
        yield from ((name, kernel, args) for name, (kernel, args) in last.items())


def milliseconds(function: Any, *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return (time.perf_counter() - started) * 1e3


def other_config(config: Any) -> Any:
    """Block sizes of half the size, or 2 where that is none; None: nothing to choose."""
    import torch_helion

    sizes = list(config.get("block_sizes") or ())
    if not sizes:
        return None
    changed = [size // 2 if size > 1 else 2 for size in sizes]
    return torch_helion.Config(**{**config, "block_sizes": changed})


def worker(names: list[str], threads: int, change: bool) -> None:
    """In the child: one line of JSON on standard output."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    for name, kernel, args in kernels(names):
        times = found[name] = {"first call": milliseconds(kernel, *args)}
        bound = kernel.bind(args)
        other = other_config(bound.config_spec.default_config()) if change else None
        if other is not None:
            times["config"] = milliseconds(lambda b=bound, c=other, a=args: b.compile_config(c)(*a))
    print(json.dumps({"kernels": found, "call": call_microseconds() if change else 0.0}))


def call_microseconds() -> float:
    """Of an addition of 64 elements; the quietest of several rounds."""
    import torch

    from examples.vector_add import add

    x, y = torch.randn(64), torch.randn(64)
    add(x, y)
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            add(x, y)
        rounds.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(rounds)


def run_child(folder: str, names: str, threads: int, change: bool) -> dict[str, Any]:
    """One fresh process with the cache in `folder`."""
    environment = {**os.environ, "TORCH_HELION_CACHE_DIR": folder}
    command = [sys.executable, __file__, "--worker", "change" if change else "plain"]
    command += ["--threads", str(threads), "--only", names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(names: str, threads: int) -> tuple[dict[str, dict[str, float]], float]:
    """Milliseconds of each step, by kernel; microseconds of a call."""
    with tempfile.TemporaryDirectory(prefix="language_bind_") as folder:
        fresh = run_child(folder, names, threads, True)
        again = run_child(folder, names, threads, False)
    rows = {}
    for name, times in fresh["kernels"].items():
        rows[name] = {
            "fresh": times["first call"],
            "config": times.get("config", float("nan")),
            "again": again["kernels"][name]["first call"],
        }
    return rows, fresh["call"]


def table(rows: dict[str, dict[str, float]], call: float) -> list[str]:
    """Slowest first; the first kernel of a process apart; medians against what is promised."""
    lines = [f"{'kernel':26}" + "".join(f"{step:>10}" for step in STEPS)]
    first, *rest = rows
    for name in sorted(rest, key=lambda n: -rows[n]["fresh"]):
        lines.append(f"{name:26}" + "".join(f"{rows[name][s]:10.1f}" for s in STEPS))
    lines.append(f"{first + ' (first)':26}" + "".join(f"{rows[first][s]:10.1f}" for s in STEPS))
    for step in STEPS:
        known = [rows[n][step] for n in rest if rows[n][step] == rows[n][step]]
        middle = statistics.median(known) if known else float("nan")
        lines.append(f"median {step}: {middle:.1f} ms (promised: {LIMITS[step]:.0f})")
    lines.append(f"a call of 64 elements: {call:.2f} us (promised: {LIMITS['call']:.0f})")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="names of examples, with commas between them")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--worker", choices=("change", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker([n for n in args.only.split(",") if n], args.threads, args.worker == "change")
        return 0

    from harness import facts_text, machine_facts, save

    facts = machine_facts()
    rows, call = measure(args.only, args.threads)
    lines = [facts_text(facts), f"{args.threads} threads; milliseconds", *table(rows, call)]
    print("\n".join(lines))
    if not args.no_save:
        found = [{"kernel": name, **times} for name, times in rows.items()]
        save("language_bind", facts, found, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
