"""How good default configs are: default against a short search against a long one.

    python benchmarks/tuning_study.py                        # everything (20 minutes)
    python benchmarks/tuning_study.py --seconds 40           # as many cases as that holds; again
                                                             # and again until all are there
    python benchmarks/tuning_study.py --only matmul,add:large --again
    python benchmarks/tuning_study.py --below                # what was not good enough, again
    python benchmarks/tuning_study.py --table docs/tuning.md # write what was measured

What flows in: kernels of the language at three sizes each. What flows out: a table, and a JSON file
that later runs add to: cases that it has are left out unless `--again` or `--below` say otherwise.
For each case: `PatternSearch` with the usual budget, then a longer search that tries all configs
where there are few and otherwise starts from the best of earlier runs and from many random ones; at
last the default and both winners take turns, and the fastest of them counts as the best there is.
The exit status says whether the defaults and the search are as good as they are promised to be.

One thread unless told otherwise: on a machine that others use, two threads measure the scheduler.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import torch_helion  # noqa: E402
import torch_helion.language as hl  # noqa: E402
from test.frontend import programs as p  # noqa: E402
from torch_helion import exc  # noqa: E402
from torch_helion.autotuner.bench import Bench  # noqa: E402
from torch_helion.autotuner.results import machine_class  # noqa: E402
from torch_helion.autotuner.search import PatternSearch  # noqa: E402
from torch_helion.config import Config  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "tuning_study.json"
BEGIN, END = "<!-- study: begin -->", "<!-- study: end -->"
SIZES = ("small", "medium", "large")
PROMISED = {"default": (0.9, 0.7), "search": (0.97, 0.7)}
"""Share of the best speed: in the mean, and at worst."""
BESIDE = 4.0
"""Seconds of a case beyond its searches."""
rand, ints = p.rand, p.ints


def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for t in hl.tile(x.size(0)):
        row = x[t, :]
        out[t, :] = row * torch.sigmoid(row @ w[:, :])
    return out


def _jagged(rows: int, mean: int, width: int) -> tuple[Any, ...]:
    ends = torch.randint(0, 2 * mean, (rows,), generator=torch.Generator().manual_seed(1)).cumsum(0)
    return rand(int(ends[-1]), width), torch.cat([torch.zeros(1, dtype=torch.int64), ends])


def _scores(m: int, n: int) -> tuple[Any, ...]:
    return rand(m, n), ints(n, m)


def _bias(n: int) -> Callable[..., Any]:
    bias = rand(n)
    return lambda acc, tile: torch.relu(acc + bias[tile[1]])


Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
PLAIN: Sizes = ((64, 256), (512, 1024), (4096, 2048))
ROWS: Sizes = ((64, 256), (1024, 1024), (512, 16384))
PRODUCT: Sizes = ((64, 64, 64), (512, 512, 512), (1024, 1024, 1024))
CASES: dict[str, tuple[Callable[..., Any], Sizes, Callable[..., tuple[Any, ...]]]] = {
    "add": (p.add, PLAIN, lambda m, n: (rand(m, n), rand(m, n))),
    "strided": (p.strided, PLAIN, lambda m, n: (rand(n, m).t(),)),
    "functions": (p.functions, PLAIN, lambda m, n: (rand(m, n),)),
    "scalars": (p.scalars, ((5000,), (500_000,), (8_000_000,)), lambda n: (rand(n), 3, 0.5)),
    "shifted": (p.shifted, ((5000,), (500_000,), (4_000_000,)), lambda n: (rand(n),)),
    "row_sum": (p.row_sum, ROWS, lambda m, n: (rand(m, n),)),
    "softmax": (p.softmax, ROWS, lambda m, n: (rand(m, n, dtype=torch.bfloat16),)),
    "softmax_decomposed": (p.softmax_decomposed, ROWS, lambda m, n: (rand(m, n),)),
    "softmax_two_pass": (p.softmax_two_pass, ROWS, lambda m, n: (rand(m, n),)),
    "layer_norm": (p.layer_norm, ROWS, lambda m, n: (rand(m, n), rand(n), rand(n))),
    "long_sum": (p.long_sum, ROWS, lambda m, n: (rand(m, n),)),
    "cross_entropy": (p.cross_entropy, ROWS, _scores),
    "columns": (p.columns, PLAIN, lambda m, n: (rand(m, n),)),
    "partials": (p.partials, PLAIN, lambda m, n: (rand(m, n), rand(m, n), rand(m))),
    "matmul": (p.matmul, PRODUCT, lambda m, n, k: (rand(m, k), rand(k, n))),
    "matmul_epilogue": (p.matmul_epilogue, PRODUCT,
                        lambda m, n, k: (rand(m, k), rand(k, n), _bias(n))),
    "split_k": (p.split_k, ((32, 32, 1024), (64, 64, 8192), (128, 128, 16384)),
                lambda m, n, k: (rand(m, k), rand(k, n))),
    "bmm": (p.bmm, ((4, 32, 32), (16, 128, 64), (16, 256, 256)),
            lambda b, m, k: (rand(b, m, k), rand(b, k, m))),
    "gated": (gated, ((64, 64), (512, 256), (2048, 512)), lambda m, n: (rand(m, n), rand(n, n))),
    "attention": (p.attention, ((2, 64, 32), (4, 256, 64), (8, 1024, 64)),
                  lambda b, n, d: tuple(rand(1, b, n, d) for _ in range(3))),
    "attention_causal": (p.attention_causal, ((2, 64, 32), (4, 256, 64), (8, 1024, 64)),
                         lambda b, n, d: tuple(rand(b, n, d) for _ in range(3))),
    "embedding": (p.embedding, ((64, 64), (2048, 256), (16384, 512)),
                  lambda m, n: (ints(1000, m, 1), rand(1000, n))),
    "jagged_mean": (p.jagged_mean, ((8, 10, 32), (64, 40, 64), (256, 100, 128)), _jagged),
    "segments": (p.segments, ((200, 16), (4000, 32), (40_000, 64)),
                 lambda n, d: (torch.sort(ints(5, n)).values, rand(n, d))),
    "last_of_each_chunk": (p.last_of_each_chunk, PLAIN, lambda m, n: (rand(m, n), 8)),
}  # fmt: skip


class LongSearch(PatternSearch):
    """Everything where that is little; else climbs from many random configs."""

    ALL = 96

    def search(self) -> None:
        if self.space.size <= self.ALL:
            self.measure([self.problem.default])
            self.measure_points(list(self.space.points()))
            return
        self.measure([self.problem.default])
        self.measure(self.seeds())
        self._seen = set()
        while self._step():
            pass
        while not self.bench.is_over:
            self.measure_points([self.space.random(self.rng) for _ in range(6)])
            while self._step():
                pass


def study(
    name: str, size: str, budget: float, longer: float, earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """One case: seconds of the default config and the winners of both searches. ``earlier``: what
    the last run found.
    """
    fn, sizes, make = CASES[name]
    args = make(*sizes[SIZES.index(size)])
    kernel = torch_helion.kernel(fn, ignore_warnings=[exc.BaseWarning], autotune_random_seed=1,
                                 autotune_log_level=0)  # fmt: skip
    kernel(*args)
    bound = kernel.bind(args)
    started = time.perf_counter()
    short = PatternSearch(bound, args, budget=budget)
    found = short.autotune()
    spent = time.perf_counter() - started
    known = [Config.from_dict(earlier["best_config"])] if earlier else []
    long = LongSearch(bound, args, known, budget=longer)
    best = long.autotune()
    assert short.result is not None and long.result is not None
    bench = Bench(bound.tuning_problem(args), check=False)
    try:
        default = bench.admit(bound.default_config())
        assert default is not None
        bench.best = default
        found, best = (short.space.config(short.space.point(c)) for c in (found, best))
        pair = [bench.admit(found), bench.admit(best)]
        ratios = bench.contest([c for c in pair if c is not None], rounds=15)
        seconds = statistics.median(default.samples) if default.samples else default.first
    finally:
        bench.close()
    shares = [1.0, *(ratios.get(c, 1.0) if c is not None else 1.0 for c in pair)]
    leader = (bound.default_config(), found, best)[shares.index(min(shares))]
    return {
        "name": name,
        "size": size,
        "shape": list(sizes[SIZES.index(size)]),
        "seconds": seconds,
        "default": min(shares) / shares[0],
        "search": min(shares) / min(shares[:2]),
        "spent": spent,
        "tried": [short.result.tried, long.result.tried],
        "space": short.space.size,
        "rejected": [f"{c}: {why}" for c, why in (*short.result.rejected, *long.result.rejected)],
        "default_config": bound.default_config().config,
        "best_config": leader.config,
        "when": round(time.time()),
    }


def table(rows: list[dict[str, Any]], machine: str) -> str:
    """Markdown, worst default first."""
    lines = [
        f"Machine: {machine}. Share of the best speed found, in per cent; worst default first.",
        "",
        "| kernel | size | default, µs | default | search | searched s | tried | best config |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: r["default"]):
        shape = "×".join(map(str, row["shape"]))
        changed = {k: v for k, v in row["best_config"].items() if row["default_config"].get(k) != v}
        config = ", ".join(f"{k}={v}" for k, v in changed.items()) or "the default"
        cells = (
            row["name"],
            shape,
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['default'] * 100:.0f}",
            f"{row['search'] * 100:.0f}",
            f"{row['spent']:.1f}",
            f"{row['tried'][0]} of {row['space']}",
            config,
        )
        lines.append(f"| {' | '.join(cells)} |")
    for key in PROMISED:
        lines.append(f"\n{summary(rows, key)}")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]], key: str) -> str:
    """One sentence on the defaults or the searches."""
    least = PROMISED[key][0]
    below, worst = sum(r[key] < least for r in rows), min(r[key] for r in rows)
    return (
        f"{key}: geometric mean {_mean(rows, key) * 100:.1f} %, worst {worst * 100:.0f} %, "
        f"{below} of {len(rows)} below {least * 100:.0f} %."
    )


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return math.exp(statistics.fmean(math.log(r[key]) for r in rows))


def keeps_promises(rows: list[dict[str, Any]]) -> bool:
    """Whether defaults and searches are as good as they should be."""
    means = all(_mean(rows, key) >= mean for key, (mean, _) in PROMISED.items())
    return means and all(r[key] >= worst for r in rows for key, (_, worst) in PROMISED.items())


def text_of(rows: dict[str, Any], machine: str) -> str:
    """The file of results: a row on each line."""
    lines = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items()]
    inner = ",\n".join(lines)
    return f'{{"machine": {json.dumps(machine)}, "rows": {{\n{inner}\n}}}}\n'


def wanted(given: argparse.Namespace, rows: dict[str, Any]) -> list[tuple[str, str]]:
    """The cases to measure now: new ones, then those that were measured longest ago."""
    found = []
    for one in given.only.split(",") if given.only else CASES:
        name, _, chosen = one.partition(":")
        if name not in CASES or chosen not in ("", *SIZES):
            raise SystemExit(f"--only {one}: the kernels are {', '.join(CASES)}; sizes {SIZES}")
        for size in (chosen,) if chosen else SIZES:
            row = rows.get(f"{name} {size}")
            weak = row is not None and any(row[k] < least for k, (least, _) in PROMISED.items())
            if row is None or given.again or (given.below and weak):
                found.append((name, size))
    return sorted(found, key=lambda case: rows.get(" ".join(case), {}).get("when", 0.0))


def line_of(row: dict[str, Any]) -> str:
    """What is printed of a case."""
    return (
        f"{row['name']:20} {row['size']:7} {row['seconds'] * 1e6:10.1f} us  default "
        f"{row['default'] * 100:4.0f} %  search {row['search'] * 100:4.0f} %  "
        f"{row['tried']} of {row['space']}  {len(row['rejected'])} rejected  "
        f"{row['default_config']} -> {row['best_config']}"
    )


def write_table(page: pathlib.Path, saved: dict[str, Any]) -> None:
    """Put the table into a page, between its marks."""
    head, _, rest = page.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    body = table(list(saved["rows"].values()), saved["machine"])
    page.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="kernels, or kernel:size, with commas")
    parser.add_argument("--again", action="store_true", help="also cases that were measured")
    parser.add_argument("--below", action="store_true", help="also those not good enough")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start none that ends later"
    )
    parser.add_argument("--budget", type=float, default=5.0, help="seconds of the short search")
    parser.add_argument("--longer", type=float, default=8.0, help="seconds of the long one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--earlier", type=pathlib.Path, default=RESULTS, help="configs to try")
    parser.add_argument("--table", type=pathlib.Path, help="write the table there, measure nothing")
    given = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(given.threads)
    saved = json.loads(given.results.read_text()) if given.results.exists() else {"rows": {}}
    if given.table:
        write_table(given.table, saved)
        return 0
    if saved.get("machine", machine_class()) != machine_class():
        raise SystemExit(f"{given.results} is of another machine: {saved['machine']}")
    rows = saved["rows"]
    other = json.loads(given.earlier.read_text())["rows"] if given.earlier.exists() else {}
    cases = wanted(given, rows)
    each = given.budget + given.longer + BESIDE
    for done, (name, size) in enumerate(cases):
        if done and time.perf_counter() - start + each > given.seconds:
            print(f"{len(cases) - done} cases are left")
            return 0
        key = f"{name} {size}"
        row = rows[key] = study(
            name, size, given.budget, given.longer, rows.get(key, other.get(key))
        )
        print(line_of(row), *row["rejected"][:3], sep="\n     ", flush=True)
        given.results.write_text(text_of(rows, machine_class()))
    for key in PROMISED:
        print(summary(list(rows.values()), key))
    return 0 if keeps_promises(list(rows.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
