"""How every benchmark of this folder measures, prints and saves.

What flows in: cases (a function, its arguments, the traffic it cannot avoid) and command line
options. What flows out: a table and a JSON file under ``results/``: times of eager, Inductor and
helion, the machine's limit for the case, and the ratio to the better peer, worst first.

The protocol: all candidates of a case run in turn (a, b, c, a, b, c, ...) on the same random data
after a warm-up; a sample is long enough for the clock; the median is reported, and ratios are
medians of ratios within a turn, so that a slow moment of the machine hits all candidates.
(``--low`` takes tenth percentiles instead: on a machine that others use, a median on two threads is
a time of waiting.) The process starts itself again with an allocator that keeps its pages
(`with_kept_pages`), so that no candidate is measured by the page faults of its fresh outputs;
``--default-malloc`` leaves the allocator alone. Outputs are compared with eager's before anything
is timed: a wrong kernel has no speed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import math
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

# As the C library reads them: no block of its own mapping, nothing given back, one arena.
KEPT_PAGES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",
}


def with_kept_pages() -> None:
    """Start this program again with an allocator that keeps its pages; returns in the new one."""
    if "--default-malloc" in sys.argv or platform.system() != "Linux":
        return
    if any(os.environ.get(name) != value for name, value in KEPT_PAGES.items()):
        environment = {**os.environ, **KEPT_PAGES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


if __name__ != "__main__" and "pytest" not in sys.modules:
    with_kept_pages()  # before torch is imported: nothing is done twice

import torch  # noqa: E402
from limits import limits_of  # noqa: E402

from torch_helion import _hardware  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": (2e-4, 2e-4), "bfloat16": (4e-2, 4e-2)}  # loose: correctness has tests


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure. `make` returns a function and its arguments."""

    name: str
    size: str  # "large", "small", ...
    dtype: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    read: int = 0  # bytes that must be read, each once
    written: int = 0  # bytes that must be written
    flops: float = 0.0
    train: bool = False  # time forward and backward of the sum of the first output
    check: bool = True  # False where outputs are random, or inputs are changed
    peer: Callable[..., Any] | None = None  # a better eager form, measured as eager
    kernel: Callable[..., Any] | None = None  # a kernel of the language, measured as helion

    @property
    def label(self) -> str:
        return f"{self.name} {self.size} {self.dtype}"


@dataclasses.dataclass
class Timing:
    """Samples of one candidate, in seconds per call."""

    samples: list[float] = dataclasses.field(default_factory=list)
    first_call: float = 0.0
    problem: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples) if self.samples else math.nan

    @property
    def low(self) -> float:
        """The tenth percentile: nearer to the truth than the median on a busy machine."""
        return sorted(self.samples)[len(self.samples) // 10] if self.samples else math.nan


def time_interleaved(
    calls: dict[str, Callable[[], object]],
    seconds: float,
    shortest_sample: float = 2e-4,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each, sampled in turn; the order rotates. At least five turns.

    ``clock``: ``time.process_time`` counts what this process computed, whoever else runs; with
    several threads it counts their waiting for one another as well.
    """
    repeats = {name: _repeats(call, shortest_sample) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    deadline = time.perf_counter() + seconds
    turn = 0
    with _no_collection():
        while turn < 5 or time.perf_counter() < deadline:
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call, count = calls[name], repeats[name]
                started = clock()
                for _ in range(count):
                    call()
                samples[name].append((clock() - started) / count)
            turn += 1
    return samples


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios within each turn."""
    if not numerator or not denominator:
        return math.nan
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def geomean(values: Sequence[float]) -> float:
    good = [v for v in values if v > 0]
    return math.exp(statistics.fmean(math.log(v) for v in good)) if good else math.nan


def _repeats(call: Callable[[], object], shortest_sample: float) -> int:
    """Warm up, and say how many calls make a sample that the clock can resolve."""
    call()
    count, elapsed = 1, 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(count):
            call()
        elapsed = time.perf_counter() - started
        if elapsed >= shortest_sample:
            break
        count = min(count * 4, math.ceil(count * 1.5 * shortest_sample / max(elapsed, 1e-7)))
    return count


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Candidates.


def has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return any(name and shutil.which(name) for name in names)


def default_backends() -> list[str]:
    return ["eager", *(["inductor"] if has_compiler() else []), "helion"]


def candidate(
    case: Case, backend: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> Callable[[], object]:
    """A call without arguments that runs the case once by this backend."""
    if backend == "eager":
        run = case.peer or function
    elif backend == "helion" and case.kernel is not None:
        run = case.kernel
    else:
        run = torch.compile(function, backend=backend)
    if not case.train:
        return lambda: run(*args)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]

    def forward_and_backward() -> object:
        out = run(*args)
        first = out[0] if isinstance(out, tuple) else out
        return (out, torch.autograd.grad(first.sum(), leaves))

    return forward_and_backward


def check(
    case: Case,
    result: object,
    expected: object,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Raise unless close to eager's result, or as near to a float64 evaluation as eager's is."""
    rtol, atol = TOLERANCES[case.dtype]
    try:
        torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)
    except AssertionError:
        factor = 2 if case.dtype == "float32" else 3
        exact = candidate(case, "eager", function, torch.utils._pytree.tree_map(_double, args))()
        for ours, eager, true in zip(*map(_leaves, (result, expected, exact)), strict=True):
            bound = factor * _distance(eager, true) + atol / 10
            if not _distance(ours, true) <= bound:
                raise


def _double(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def _leaves(value: object) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())


def measure(case: Case, backends: Sequence[str], seconds: float) -> dict[str, Timing]:
    """Times of one case. A backend that fails or is wrong has a problem instead of samples."""
    torch.manual_seed(0)
    function, args = case.make()
    timings = {backend: Timing() for backend in backends}
    calls: dict[str, Callable[[], object]] = {}
    torch._dynamo.reset()
    with contextlib.nullcontext() if case.train else torch.no_grad():
        expected: object = None
        for backend in ["eager", *(b for b in backends if b != "eager")]:
            timing = timings.get(backend, Timing())
            call = candidate(case, backend, function, args)
            try:
                started = time.perf_counter()
                result = call()
                timing.first_call = time.perf_counter() - started
                expected = result if backend == "eager" else expected
                if case.check:
                    check(case, result, expected, function, args)
            except Exception as error:  # a benchmark goes on with the other cases
                text = str(error).strip().splitlines() or [""]
                timing.problem = f"{type(error).__name__}: {text[0]}"
                continue
            if backend in timings:
                calls[backend] = call
        for backend, samples in time_interleaved(calls, seconds).items():
            timings[backend].samples = samples
    return timings


# Rows, tables, files.


@dataclasses.dataclass
class Row:
    """What is kept of one case at one thread count. Times in seconds, NaN where there is none."""

    name: str
    size: str
    dtype: str
    threads: int
    times: dict[str, float]
    limit: float
    ratio: float  # the better peer's time / helion's time: above 1, helion is faster
    low: dict[str, float] = dataclasses.field(default_factory=dict)  # tenth percentiles
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.name, self.size, self.dtype, self.threads


def make_row(case: Case, timings: dict[str, Timing], threads: int, use_low: bool) -> Row:
    helion = timings.get("helion", Timing())
    peers = [t for name, t in timings.items() if name != "helion" and t.samples]
    best = min(peers, key=lambda t: t.low if use_low else t.median, default=Timing())
    ratio = best.low / helion.low if use_low else paired_ratio(best.samples, helion.samples)
    return Row(
        name=case.name,
        size=case.size,
        dtype=case.dtype,
        threads=threads,
        times={name: t.low if use_low else t.median for name, t in timings.items()},
        limit=math.nan,  # known when the machine has been measured at both ends of the run
        ratio=ratio,
        low={name: t.low for name, t in timings.items()},
        problems={name: t.problem for name, t in timings.items() if t.problem},
    )


def format_time(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:.2f}" if seconds >= 1e-3 else f"{seconds * 1e3:.4f}"


def table(rows: Sequence[Row], backends: Sequence[str]) -> str:
    """Worst first, then the geometric means."""
    ordered = sorted(rows, key=lambda r: r.ratio if r.ratio == r.ratio else -1.0)
    width = max([len(r.name) for r in rows] + [4])
    head = f"{'case':{width}} {'size':6} {'dtype':9} thr"
    head += "".join(f" {b:>10}" for b in backends) + f" {'limit':>10} {'of limit':>9} {'ratio':>7}"
    lines = ["milliseconds; ratio = better peer / helion", head]
    for row in ordered:
        line = f"{row.name:{width}} {row.size:6} {row.dtype:9} {row.threads:3}"
        line += "".join(f" {format_time(row.times.get(b, math.nan)):>10}" for b in backends)
        ours = row.times.get("helion", math.nan)
        share = f"{row.limit / ours * 100:.0f} %" if row.limit and ours == ours else "-"
        ratio = f"{row.ratio:.2f}" if row.ratio == row.ratio else "-"
        lines.append(f"{line} {format_time(row.limit or math.nan):>10} {share:>9} {ratio:>7}")
        lines += [f"    {name}: {why[:140]}" for name, why in row.problems.items()]
    ratios = [r.ratio for r in rows if r.ratio == r.ratio]
    slower = sum(r < 0.98 for r in ratios)
    lines.append(
        f"geomean ratio {geomean(ratios):.2f} over {len(ratios)} cases, {slower} slower than the "
        f"better peer, {sum(bool(r.problems) for r in rows)} with a problem"
    )
    for dtype in DTYPES:
        part = [r.ratio for r in rows if r.dtype == dtype and r.ratio == r.ratio]
        if part and len(part) < len(ratios):
            lines.append(f"    {dtype}: {geomean(part):.2f} over {len(part)}")
    return "\n".join(lines)


def compare(rows: Sequence[Row], old_file: str) -> str:
    """Helion's times then and now, worst first. Only from the same machine do they mean much."""
    saved = json.loads(pathlib.Path(old_file).read_text())
    known = [field.name for field in dataclasses.fields(Row)]
    before_rows = [Row(**{name: r[name] for name in known if name in r}) for r in saved["rows"]]
    old = {row.key: row for row in before_rows}
    pairs = []
    for row in rows:
        if before := old.get(row.key):
            then, now = before.times.get("helion"), row.times.get("helion")
            if then and now and then == then and now == now:
                pairs.append((then / now, row, before))
    lines = [f"compared with {old_file} ({saved['machine']['commit']}, {saved['machine']['cpu']})"]
    for speedup, row, before in sorted(pairs, key=lambda p: p[0]):
        lines.append(
            f"  {speedup:6.2f}x  {' '.join(map(str, row.key))}: "
            f"{format_time(before.times['helion'])} → {format_time(row.times['helion'])} ms"
        )
    lines.append(f"geomean {geomean([p[0] for p in pairs]):.3f} over {len(pairs)} cases")
    return "\n".join(lines)


def machine_facts() -> dict[str, str]:
    """What a number must be read with."""
    import importlib.metadata as metadata

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "-"

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    kept = all(os.environ.get(name) == value for name, value in KEPT_PAGES.items())
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "cpu": _hardware.cpu_name(),
        "cores": str(_hardware.cores()),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
        "allocator": "keeps its pages" if kept else "default",
        "commit": commit + ("+changes" if git("status", "--porcelain") else ""),
        "python": platform.python_version(),
        "torch": version("torch"),
        "llvmlite": version("llvmlite"),
        "torch_helion": version("torch-helion"),
    }


def save(suite: str, facts: dict[str, str], rows: Sequence[object], text: str) -> pathlib.Path:
    """``results/<date>-<suite>-<machine>.json`` and ``.txt``."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", facts["cpu"].lower()).strip("-")
    stem = f"{facts['date'][:10]}-{suite}-{slug}"
    kept: list[Any] = [
        dataclasses.asdict(row)
        if isinstance(row, Row)
        else row  # other suites save their own dicts
        for row in rows
    ]
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({"suite": suite, "machine": facts, "rows": kept}, indent=1) + "\n")
    path.with_suffix(".txt").write_text(text + "\n")
    return path


def facts_text(facts: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in facts.items())


# The command line that suites share.


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--only", default="", help="cases whose name contains this (a,b: any of them)"
    )
    made.add_argument("--dtype", choices=sorted(DTYPES), help="this dtype only")
    made.add_argument("--size", help="this size only (large, small)")
    made.add_argument("--threads", default="", help="counts, as in 1,2 (default: torch's own)")
    made.add_argument("--backends", default="", help="default: eager, inductor if it can, helion")
    made.add_argument("--seconds", type=float, default=1.0, help="time per case for the samples")
    made.add_argument("--low", action="store_true", help="10th percentiles instead of medians")
    made.add_argument("--compare", metavar="FILE", help="an older JSON result")
    made.add_argument("--no-save", action="store_true", help="write nothing under results/")
    made.add_argument("--default-malloc", action="store_true", help="leave the allocator alone")
    made.add_argument("--list", action="store_true", help="print the cases and stop")
    return made


def selected(cases: Sequence[Case], args: argparse.Namespace) -> list[Case]:
    words = [w for w in args.only.split(",") if w]
    return [
        case
        for case in cases
        if (not words or any(w in case.name for w in words))
        and args.dtype in (None, case.dtype)
        and args.size in (None, case.size)
    ]


def run_suite(suite: str, cases: Sequence[Case], args: argparse.Namespace) -> int:
    """Measure, print each case as it comes, then the table; save; compare."""
    chosen = selected(cases, args)
    if args.list:
        print("\n".join(case.label for case in chosen))
        return 0
    backends = args.backends.split(",") if args.backends else default_backends()
    counts = (
        [int(n) for n in args.threads.split(",")] if args.threads else [torch.get_num_threads()]
    )
    facts = machine_facts()
    print(facts_text(facts))
    rows: list[Row] = []
    limit_lines = []
    for threads in counts:
        torch.set_num_threads(threads)
        limits = limits_of(threads)
        print(limits.describe(), flush=True)
        here = []
        for case in chosen:
            row = make_row(case, measure(case, backends, args.seconds), threads, args.low)
            here.append(row)
            times = ", ".join(f"{name} {format_time(t)}" for name, t in row.times.items())
            print(f"  {case.label}: {times} ms; ratio {row.ratio:.2f}", flush=True)
        limits = limits.best_with(limits_of(threads))
        limit_lines.append(limits.describe())
        for case, row in zip(chosen, here, strict=True):
            row.limit = limits.seconds(case.read, case.written, case.flops, case.dtype)
        rows += here
    text = "\n".join([facts_text(facts), *limit_lines, "", table(rows, backends)])
    print("\n" + "\n".join([*limit_lines, table(rows, backends)]))
    if not args.no_save:
        print(f"saved {save(suite, facts, rows, text).relative_to(ROOT)}")
    if args.compare:
        print("\n" + compare(rows, args.compare))
    return 0
