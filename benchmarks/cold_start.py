"""Seconds to the first result: a four-layer encoder in a fresh process, with empty and with full
caches.

What flows in: options. What flows out: a table of seconds per backend, each measured in processes
of its own whose cache and temporary folders are private:

    nothing     empty caches and temporary folder: the first model on a machine
    new model   empty caches; what earlier models left in the temporary folder (precompiled headers)
    is there same model  the second process of the same program

A time starts when the model is built and torch imported, and ends with the first result.

    python benchmarks/cold_start.py --backends aot_eager,inductor,helion
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

STAGES = ("nothing", "new model", "same model")
WIDTH, HEADS, LAYERS, BATCH, LENGTH = 256, 4, 4, 8, 64


def build_model() -> Any:
    """BERT-like layers from plain modules: attention, two norms, a gelu network."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)
            self.up = nn.Linear(WIDTH, 4 * WIDTH)
            self.down = nn.Linear(4 * WIDTH, WIDTH)
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = self.first(x + self.out(mixed))
            return self.second(x + self.down(F.gelu(self.up(x))))

    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(LAYERS))).eval()


def worker(backend: str, threads: int) -> None:
    """In the child: one line of JSON on standard output."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    model = build_model()
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with torch.no_grad():
        expected = model(x)
        started = time.perf_counter()
        compiled = model if backend == "eager" else torch.compile(model, backend=backend)
        result = compiled(x)
        first = time.perf_counter() - started
        started = time.perf_counter()
        compiled(x)
        second = time.perf_counter() - started
    error = float((result - expected).abs().max())
    print(json.dumps({"first": first, "second": second, "error": error}))


def run_child(backend: str, folder: pathlib.Path, threads: int) -> dict[str, Any]:
    """One fresh process; a failure is a result too."""
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCH_HELION_CACHE_DIR": str(folder / "helion"),
        "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent.parent),
    }
    (folder / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--worker", backend, "--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(backend: str, repeats: int, threads: int) -> dict[str, dict[str, Any]]:
    """The stages in order, `repeats` times; of each stage the quickest run is kept."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="cold_start_") as name:
            folder = pathlib.Path(name)
            for stage in STAGES:
                if stage == "new model":
                    for cache in ("inductor", "helion"):
                        shutil.rmtree(folder / cache, ignore_errors=True)
                result = run_child(backend, folder, threads)
                if "first" not in best.get(stage, {}) or (
                    result.get("first", 1e9) < best[stage]["first"]
                ):
                    best[stage] = result
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", default="", help="default: aot_eager, inductor, helion")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.threads)
        return 0

    from harness import facts_text, has_compiler, machine_facts, save

    backends = args.backends.split(",") if args.backends else []
    backends = backends or ["aot_eager", *(["inductor"] if has_compiler() else []), "helion"]
    facts = machine_facts()
    lines = [
        facts_text(facts),
        f"{LAYERS} layers of width {WIDTH}; seconds to the first result",
        f"{'backend':12}" + "".join(f"{stage:>12}" for stage in STAGES) + f"{'next call ms':>14}",
    ]
    print("\n".join(lines), flush=True)
    rows = []
    for backend in backends:
        stages = measure(backend, args.repeats, args.threads)
        cells = "".join(f"{stages[s].get('first', float('nan')):12.2f}" for s in STAGES)
        last = stages[STAGES[-1]]
        lines.append(f"{backend:12}{cells}{last.get('second', float('nan')) * 1e3:14.2f}")
        for stage, result in stages.items():
            if "problem" in result:
                lines.append(f"    {stage}: {result['problem']}")
            elif not result["error"] < 1e-4:
                lines.append(f"    {stage}: WRONG by {result['error']}")
        print("\n".join(lines[3 + len(rows) :]), flush=True)
        rows.append({"backend": backend, "stages": stages})
    if not args.no_save:
        save("cold_start", facts, rows, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
