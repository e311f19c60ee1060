"""How fast weights load, against the `safetensors` package: fresh processes, in turn, minima.

What flows in: options. What flows out: one line per question with the bound it must keep, and exit
status 1 if one is missed. Files are made in a temporary folder and removed at the end (5 GB for the
default size).

    python benchmarks/weights.py                 # a 1 GB file of 200 bfloat16 tensors
    python benchmarks/weights.py --megabytes 200 --turns 2 --only read,verify

Each measurement is a process of its own that imports everything first; the candidates of a question
take turns. Medians on a machine that others use measure the others: minima are compared.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

PRELUDE = """
import os, sys, time, torch
import safetensors, safetensors.torch as theirs
import torch_helion.weights as ours
path = sys.argv[1]

def seconds(call):
    began = time.perf_counter()
    kept = call()
    return time.perf_counter() - began

def touch(tensors):
    return sum(int(t.view(torch.int64).sum()) for t in tensors.values())

def peak_mb():
    status = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))

def cold():
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
"""

CALLS = {
    "read": 'print(seconds(lambda: ours.load_file(path, mode="read")))',
    "their pread": 'print(seconds(lambda: theirs.load_file(path, backend="pread")))',
    "views": 'print(seconds(lambda: ours.load_file(path, mode="mmap")))',
    "their views": "print(seconds(lambda: theirs.load_file(path)))",
    "verify": "print(seconds(lambda: ours.load_file(path, verify=True)))",
    "header": "print(seconds(lambda: ours.read_header(path)))",
    "cold read": 'cold(); print(seconds(lambda: ours.load_file(path, mode="read", threads=4)))',
    "cold mmap": "cold(); print(seconds(lambda: touch(theirs.load_file(path))))",
    "convert": 'ours.convert(path, path + ".out"); print(peak_mb())',
}

MAKE = """
import json, struct, sys, torch
import torch_helion.weights as ours
from torch_helion.weights.cli import main
folder, count = sys.argv[1], int(sys.argv[2])
tensors = {f"layers.{i}.w": torch.randn(count // 2 // 1000, 1000).to(torch.bfloat16)
           for i in range(200)}
import safetensors.torch
safetensors.torch.save_file(tensors, folder + "/big.safetensors")
main(["manifest", folder + "/big.safetensors"])
torch.save(tensors, folder + "/big.pt")
torch.save({"a": torch.ones(3)}, folder + "/tiny.pt")
many = {f"layers.{i}.mlp.w": {"dtype": "F32", "shape": [4, 4],
         "data_offsets": [64 * i, 64 * i + 64]}
        for i in range(20_000)}
text = json.dumps(many).encode()
with open(folder + "/many.safetensors", "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text + bytes(64 * 20_000))
"""

# question: (candidate, its file), (peer, its file), and what the two results must keep
QUESTIONS = {
    "read": (("read", "big.safetensors"), ("their pread", "big.safetensors")),
    "views": (("views", "big.safetensors"), ("their views", "big.safetensors")),
    "verify": (("verify", "big.safetensors"), None),
    "header": (("header", "many.safetensors"), None),
    "cold": (("cold read", "big.safetensors"), ("cold mmap", "big.safetensors")),
    "convert": (("convert", "big.pt"), ("convert", "tiny.pt")),
}


def measure(call: str, path: pathlib.Path) -> float:
    """One fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + CALLS[call], str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"{call}: {done.stderr}")
    return float(done.stdout.split()[-1])


def verdict(question: str, ours: float, peer: float, gigabytes: float) -> tuple[str, bool]:
    """The sentence for a question, and whether its bound is kept."""
    if question == "read":
        good = peer / ours >= 2.5
        return (
            f"{ours * 1e3:.0f} ms, safetensors pread {peer * 1e3:.0f} ms: {peer / ours:.2f}x",
            good,
        )
    if question == "views":
        return f"{ours * 1e3:.2f} ms, safetensors load_file {peer * 1e3:.2f} ms", ours <= peer
    if question == "verify":
        return f"{ours:.3f} s: {ours / gigabytes:.3f} s per GB", ours / gigabytes <= 0.7
    if question == "header":
        return f"{ours * 1e3:.1f} ms for 20,000 tensors", ours <= 0.06
    if question == "cold":
        text = f"{ours * 1e3:.0f} ms, mmap and touch {peer * 1e3:.0f} ms: {peer / ours:.2f}x"
        return text, peer / ours >= 1.5
    return f"peak {ours:.0f} MB, of a tiny file {peer:.0f} MB", ours - peer < 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions, comma-separated")
    parser.add_argument("--folder", help="where the files are made (default: temporary)")
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weights_bench_", dir=args.folder))
    good = True
    try:
        count = args.megabytes * 1_000_000 // 200
        command = [sys.executable, "-c", MAKE, str(folder), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        for question in args.only.split(","):
            first, second = QUESTIONS[question]
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(args.turns):
                times[0].append(measure(first[0], folder / first[1]))
                if second is not None:
                    times[1].append(measure(second[0], folder / second[1]))
            text, kept = verdict(
                question, min(times[0]), min(times[1], default=0), args.megabytes / 1000
            )
            if question == "cold":
                ratio = statistics.median(times[1]) / statistics.median(times[0])
                text += f" (medians: {ratio:.2f}x)"
            good = good and kept
            print(f"{question:8} {text}  {'ok' if kept else 'MISSED'}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
