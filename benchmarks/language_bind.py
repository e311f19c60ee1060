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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from harness import ROOT, facts_text, machine_facts, save

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch

    import torch_helion as helion
    import torch_helion.language as hl

STEPS = ("fresh", "config", "again")
LIMITS = {"fresh": 200.0, "config": 100.0, "again": 10.0, "call": 5.0}
"""What the project promises: milliseconds (medians), and microseconds of a call."""
FIRST = "vector_add"
"""The example whose kernel is the first one of each process."""
CALLS, ROUNDS = 2000, 30


@helion.kernel
def sum_of_two(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + y[tile]
    return out


def kernels(names: list[str]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, kernel, arguments) of the examples, each kernel once."""
    from torch_helion.kernel.decorator import Kernel

    paths = sorted((ROOT / "examples").glob("*.py"), key=lambda p: (p.stem != FIRST, p.stem))
    for path in paths:
        asked = not names or path.stem in (*names, FIRST)
        if not asked or "def cases" not in path.read_text():
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
    sizes = list(config.get("block_sizes") or ())
    if not sizes:
        return None
    changed = [size // 2 if size > 1 else 2 for size in sizes]
    return helion.Config(**{**config, "block_sizes": changed})


def worker(names: list[str], threads: int, change: bool) -> None:
    """In the child: one line of JSON on standard output."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    for name, kernel, args in kernels(names):
        times = found[name] = {"first call": milliseconds(kernel, *args)}
        bound = kernel.bind(args)
        other = other_config(bound.config_spec.default_config()) if change else None
        if other is not None:
            times["config"] = milliseconds(lambda b=bound, c=other, a=args: b.compile_config(c)(*a))
    calls = {}
    if change:
        from examples.vector_add import add

        calls = {"plain": call_microseconds(sum_of_two), "example": call_microseconds(add)}
    print(json.dumps({"kernels": found, "calls": calls}))


def call_microseconds(kernel: Any) -> float:
    """Of an addition of 64 elements."""
    x, y = torch.randn(64), torch.randn(64)
    kernel(x, y)
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            kernel(x, y)
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


def measure(names: str, threads: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Milliseconds of each step, by kernel; microseconds of calls."""
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
    return rows, fresh["calls"]


def table(rows: dict[str, dict[str, float]], calls: dict[str, float]) -> list[str]:
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
    lines.append(f"a call of 64 elements: {calls['plain']:.2f} us (promised: {LIMITS['call']:.0f})")
    lines.append(f"with the host part of the example (it broadcasts): {calls['example']:.2f} us")
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

    facts = machine_facts()
    rows, calls = measure(args.only, args.threads)
    lines = [facts_text(facts), f"{args.threads} threads; milliseconds", *table(rows, calls)]
    print("\n".join(lines))
    if not args.no_save:
        found = [{"kernel": name, **times} for name, times in rows.items()]
        save("language_bind", facts, found, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
