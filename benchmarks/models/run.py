"""Whole models: a forward pass, a training step, one token of decoding, against the best peer.

What flows in: the options of ``benchmarks/harness.py`` and a few more. What flows out: a table,
worst first, and files under ``benchmarks/results``: time of every candidate, the roofline of the
step (``work.py``), the peak memory of a call, seconds to the first result.

    python -m benchmarks.models                                   # everything (an hour: compiling)
    python -m benchmarks.models --only gpt2,llama --kind forward --dtype float32
    python -m benchmarks.models --backends eager,inductor,helion --seconds 2 --cold
    python -m benchmarks.models --compare benchmarks/results/OLD.json --no-save

Candidates are ``eager``; ``inductor``; ``inductor-max``, max-autotune with constant weights frozen
in (inference only); ``helion``; ``helion-tuned``, helion in max-autotune mode (on request).
Each is compared with eager first: a wrong one has a problem and no time. Dropout is on while a
training step is timed, and off for the comparison.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import dataclasses
import gc
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import harness  # noqa: E402  (first: it may start this program again)
import torch  # noqa: E402
from harness import Row, Timing, format_time, geomean, make_row, time_interleaved  # noqa: E402
from limits import limits_of  # noqa: E402

from benchmarks.models.work import roofline, work_of  # noqa: E402
from benchmarks.models.zoo import DecodeStep, Model, Unavailable, models, without_dropout  # noqa: E402

FROZEN = {"max_autotune": True, "freezing": True}
COMPILED: dict[str, dict[str, Any]] = {
    "inductor": {"backend": "inductor"},
    "inductor-max": {"backend": "inductor", "options": FROZEN},
    "helion": {"backend": "helion"},
    "helion-tuned": {"backend": "helion", "mode": "max-autotune"},
}
OURS = ("helion", "helion-tuned")


@dataclasses.dataclass
class ModelRow(Row):
    """A row with what only whole models are asked."""

    kind: str = ""
    batch: int = 0
    memory: dict[str, float] = dataclasses.field(default_factory=dict)  # bytes above the weights
    first: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds to the first result
    cold: bool = False  # whether `first` was measured in fresh processes with empty caches


# One step.


def step_of(module: torch.nn.Module, run: Callable[..., Any], inputs: Any, train: bool) -> Any:
    """A call without arguments that runs `run`, the compiled module, once."""
    if train:
        parameters = list(module.parameters())

        def step() -> object:
            loss = run(**inputs)
            loss.backward()
            gradients = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
            return loss.detach(), *gradients

        return step
    if isinstance(module, DecodeStep):

        def decode() -> object:
            module.rewind()
            return run(**inputs)

        return decode
    return lambda: run(**inputs)


def compiled(module: torch.nn.Module, backend: str) -> Any:
    return module if backend == "eager" else torch.compile(module, **COMPILED[backend])


def check(case: Model, result: object, expected: object, exact: Callable[[], object]) -> None:
    """Raise unless close to eager's result, or as near to the float64 result as eager's is."""
    rtol, atol = harness.TOLERANCES[case.dtype]
    try:
        torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)
        return
    except AssertionError as error:
        problem = error
    factor = 2 if case.dtype == "float32" else 3
    values = zip(*map(harness._leaves, (result, expected, exact())), strict=True)
    for ours, eager, true in values:
        bound = factor * harness._distance(eager, true) + atol / 10
        if not harness._distance(ours, true) <= bound:
            raise problem


def exact_result(module: torch.nn.Module, inputs: Any, train: bool) -> object:
    """The step evaluated in float64."""
    double = copy.deepcopy(module).double()
    wide = {k: harness._double(v) for k, v in inputs.items()}
    if isinstance(double, DecodeStep):
        for layer in double.cache.layers:
            layer.keys, layer.values = layer.keys.double(), layer.values.double()
    return step_of(double, double, wide, train)()


# Measuring one case.


@dataclasses.dataclass
class Measured:
    """What one case gave."""

    timings: dict[str, Timing]
    memory: dict[str, float]
    limit: Callable[[Any], float]


def measure(
    case: Model,
    backends: Sequence[str],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    module, inputs = case.make()
    timings = {backend: Timing() for backend in backends}
    calls: dict[str, Callable[[], object]] = {}
    torch._dynamo.reset()
    dropout = case.train and _has_dropout(module)
    with torch.enable_grad() if case.train else torch.no_grad():
        plain = without_dropout(copy.deepcopy(module)) if dropout else module
        eager = step_of(plain, plain, inputs, case.train)
        expected = eager()
        calls_made = work_of(eager)
        exact: list[object] = []

        def lazily_exact() -> object:
            if not exact:
                exact.append(exact_result(plain, inputs, case.train))
            return exact[0]

        for backend in backends:
            timing = timings[backend]
            try:
                call = step_of(module, compiled(module, backend), inputs, case.train)
                started = time.perf_counter()
                result = call()
                timing.first_call = time.perf_counter() - started
                if dropout and backend in OURS:
                    result = step_of(plain, compiled(plain, backend), inputs, True)()
                if backend != "eager" and (backend in OURS or not dropout):
                    check(case, result, expected, lazily_exact)
            except Exception as error:  # a benchmark goes on with the other candidates
                text = str(error).strip().splitlines() or [""]
                timing.problem = f"{type(error).__name__}: {text[0]}"
                continue
            calls[backend] = call
        for backend, samples in time_interleaved(calls, seconds, clock=clock).items():
            timings[backend].samples = samples
        memory = {backend: peak_memory(call) for backend, call in calls.items()}
    return Measured(timings, memory, lambda limits: roofline(calls_made, limits.seconds))


def _has_dropout(module: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in module.modules())


def peak_memory(call: Callable[[], object]) -> float:
    """Bytes of resident memory that a call needs at most above those before it (Linux; else NaN).

    Caches of free pages are emptied before, ours and the C library's, so that all start alike.
    """
    try:
        from torch_helion import _C

        call()
        gc.collect()
        _C.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        result = call()
        peak = _status("VmHWM") - before
        del result
        return float(peak)
    except (OSError, AttributeError):
        return math.nan


def _status(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


# Seconds to the first result, in fresh processes.


def cold_first_call(case: Model, backend: str) -> float:
    """With empty caches and an empty temporary folder, torch and the model being there; or NaN."""
    with tempfile.TemporaryDirectory(prefix="models_cold_") as folder:
        environment = {
            **os.environ,
            "TMPDIR": folder,
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TORCH_HELION_CACHE_DIR": f"{folder}/helion",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, __file__, "--worker", case.label, backend]
        command += ["--threads", str(torch.get_num_threads())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return math.nan
    return float(json.loads(done.stdout.strip().splitlines()[-1])["first"])


def worker(label: str, backend: str, threads: int) -> None:
    """In the child: one line of JSON."""
    torch.set_num_threads(threads)
    case = next(m for m in models() if m.label == label)
    module, inputs = case.make()
    with torch.enable_grad() if case.train else torch.no_grad():
        step_of(module, module, inputs, case.train)()
        call = step_of(module, compiled(module, backend), inputs, case.train)
        started = time.perf_counter()
        call()
        print(json.dumps({"first": time.perf_counter() - started}))


# Tables.


def table(rows: Sequence[ModelRow], backends: Sequence[str]) -> str:
    """Worst first, then the geometric means per kind and dtype."""
    ordered = sorted(rows, key=lambda r: r.ratio if r.ratio == r.ratio else -1.0)
    width = max([len(r.name) for r in rows] + [5])
    head = f"{'model':{width}} {'kind':8} {'b':>3} {'dtype':8} thr"
    head += "".join(f" {b:>12}" for b in backends)
    head += f" {'limit':>8} {'of limit':>8} {'ratio':>6} {'first s':>22} {'MB':>22}"
    lines = [
        "milliseconds; ratio = best peer / helion; first call and memory: " + ", ".join(backends),
        head,
    ]
    for row in ordered:
        line = f"{row.name:{width}} {row.kind:8} {row.batch:3} {row.dtype:8} {row.threads:3}"
        line += "".join(f" {format_time(row.times.get(b, math.nan)):>12}" for b in backends)
        ours = row.times.get("helion", math.nan)
        share = f"{row.limit / ours * 100:.0f} %" if row.limit and ours == ours else "-"
        ratio = f"{row.ratio:.2f}" if row.ratio == row.ratio else "-"
        first = "/".join(f"{row.first.get(b, math.nan):.1f}" for b in backends if b != "eager")
        memory = "/".join(f"{row.memory.get(b, math.nan) / 1e6:.0f}" for b in backends)
        lines.append(
            f"{line} {format_time(row.limit):>8} {share:>8} {ratio:>6} {first:>22} {memory:>22}"
        )
        lines += [f"    {name}: {why[:150]}" for name, why in row.problems.items()]
    return "\n".join([*lines, *summary(rows)])


def summary(rows: Sequence[ModelRow]) -> list[str]:
    groups: dict[str, list[ModelRow]] = {}
    for row in rows:
        for key in (f"{row.kind} {row.dtype}", "all"):
            groups.setdefault(key, []).append(row)
    lines = []
    for name, members in groups.items():
        ratios = [r.ratio for r in members if r.ratio == r.ratio]
        if not ratios:
            continue
        worst = min(members, key=lambda r: r.ratio if r.ratio == r.ratio else math.inf)
        lines.append(
            f"{name}: geomean {geomean(ratios):.3f} over {len(ratios)}, worst {worst.ratio:.2f} "
            f"({worst.name}), {sum(r < 0.98 for r in ratios)} slower, "
            f"{sum(bool(r.problems) for r in members)} with a problem"
        )
    return lines


# The command.


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    made = harness.parser(__doc__.split("\n")[0])
    made.add_argument("--kind", help="forward, training or decode only")
    made.add_argument("--batch", type=int, help="this batch size only")
    made.add_argument("--cold", action="store_true", help="first calls in fresh processes")
    made.add_argument(
        "--processor-time",
        action="store_true",
        help="time what this process computes (one thread, on a machine that others use)",
    )
    made.add_argument("--plot", action="store_true", help="draw the result (needs matplotlib)")
    made.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return made.parse_args(given)


def selected(args: argparse.Namespace) -> list[Model]:
    words = [w for w in args.only.split(",") if w]
    return [
        case
        for case in models()
        if (not words or any(w == case.name or w in case.label for w in words))
        and args.dtype in (None, case.dtype)
        and args.kind in (None, case.kind)
        and args.batch in (None, case.batch)
    ]


def default_backends() -> list[str]:
    peers = ["inductor", "inductor-max"] if harness.has_compiler() else []
    return ["eager", *peers, "helion"]


def run_case(case: Model, backends: Sequence[str], args: argparse.Namespace, threads: int) -> Any:
    """The row, and a function that gives its limit once the machine is measured."""
    usable = [b for b in backends if not (case.train and b == "inductor-max")]
    clock = time.process_time if args.processor_time else time.perf_counter
    measured = measure(case, usable, args.seconds, clock)
    peers = {name: t for name, t in measured.timings.items() if name != "helion-tuned"}
    as_case = harness.Case(case.name, f"{case.kind} {case.batch}", case.dtype, lambda: None)
    base = make_row(as_case, peers, threads, args.low)
    first = {name: t.first_call for name, t in measured.timings.items() if t.first_call}
    if args.cold:
        first = {name: cold_first_call(case, name) for name in usable if name != "eager"}
    row = ModelRow(
        **dataclasses.asdict(base),
        kind=case.kind,
        batch=case.batch,
        memory=measured.memory,
        first=first,
        cold=args.cold,
    )
    if tuned := measured.timings.get("helion-tuned"):
        row.times["helion-tuned"] = tuned.low if args.low else tuned.median
        if tuned.problem:
            row.problems["helion-tuned"] = tuned.problem
    return row, measured.limit


def run_all(cases: Sequence[Model], args: argparse.Namespace) -> tuple[list[ModelRow], list[str]]:
    """Rows of every case at every thread count, and what the machine can do."""
    backends = args.backends.split(",") if args.backends else default_backends()
    counts = args.threads.split(",") if args.threads else [str(torch.get_num_threads())]
    rows: list[ModelRow] = []
    described = []
    for threads in map(int, counts):
        torch.set_num_threads(threads)
        limits = limits_of(threads)
        pending = []
        for case in cases:
            try:
                row, limit = run_case(case, backends, args, threads)
            except Unavailable as reason:
                print(f"  {case.label}: skipped, {reason}", flush=True)
                continue
            pending.append((row, limit))
            times = ", ".join(f"{name} {format_time(t)}" for name, t in row.times.items())
            print(f"  {case.label}: {times} ms; ratio {row.ratio:.2f}", flush=True)
            gc.collect()
        limits = limits.best_with(limits_of(threads))
        for row, limit in pending:
            row.limit = limit(limits)
            rows.append(row)
        described.append(limits.describe())
    return rows, described


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    if args.worker:
        worker(*args.worker, int(args.threads))
        return 0
    cases = selected(args)
    if args.list:
        print("\n".join(case.label for case in cases))
        return 0
    facts = harness.machine_facts()
    print(harness.facts_text(facts), flush=True)
    rows, described = run_all(cases, args)
    backends = args.backends.split(",") if args.backends else default_backends()
    text = "\n".join([harness.facts_text(facts), *described, "", table(rows, backends)])
    print("\n" + text)
    if not args.no_save:
        path = harness.save("models", facts, rows, text)
        print(f"saved {path.relative_to(ROOT)}")
        if args.plot:
            from benchmarks.models.plot import draw

            draw(rows, path.with_suffix(".png"), harness.facts_text(facts)[:120])
    if args.compare:
        print("\n" + harness.compare(rows, args.compare))
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
