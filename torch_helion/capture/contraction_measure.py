"""Measures the products of this machine against its library, for machines without a table.

In: nothing; the machine should have nothing else to do. Out: rules as in `contraction_choice`, kept
in the artifact cache, from where later processes on a machine of this kind take them.

    python -m torch_helion.capture.contraction_measure      # about a minute

Each single product runs in turn with the library's on the same numbers. A class is ours as far as
no product in it was slower: up to so many rows, or up to so large a matrix.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from torch_helion import _logging
from torch_helion.capture import contraction_choice
from torch_helion.capture.contraction_choice import ALL, Class, Key
from torch_helion.compiler import compile_kernel, load_kernel
from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Affine
from torch_helion.lowering.product import DTYPES

log = _logging.get_logger("tune")

ROWS = (1, 4, 16, 48, 256, 1024)
MATRICES = ((256, 256), (768, 768), (768, 3072), (3072, 768))
"""k, n."""
WINS = 1.02
"""By how much ours must be faster, so that noise does not decide."""
SECONDS = 0.15
"""For each product; at least `TURNS` turns."""
TURNS = 5


@dataclass(frozen=True)
class Sample:
    """One product: its sizes, and the library's time by ours."""

    m: int
    k: int
    n: int
    ratio: float


def main() -> int:
    """Measure, print, keep."""
    rules = {key: derive(measure(key)) for key in keys()}
    for (dtype, a, b), found in rules.items():
        sys.stdout.write(f"{dtype} {a}{b}: {found}\n")
    contraction_choice.record(rules)
    return 0


def keys() -> list[Key]:
    """Every dtype and layout."""
    return [(dtype, a, b) for dtype in DTYPES for a in "km" for b in "kn"]


def measure(key: Key) -> list[Sample]:
    """All products of a dtype and layout."""
    dtype, a_unit, b_unit = key
    samples = []
    for m in ROWS:
        for k, n in MATRICES:
            a = torch.randn(m, k) if a_unit == "k" else torch.randn(k, m).t()
            b = torch.randn(k, n) if b_unit == "n" else torch.randn(n, k).t()
            samples.append(Sample(m, k, n, _ratio(a.to(dtype), b.to(dtype))))
            log.debug("%s %s", key, samples[-1])
    return samples


def derive(samples: Iterable[Sample]) -> Class:
    """The largest classes in which ours is always faster."""
    found = list(samples)
    lost = [s for s in found if s.ratio < WINS]
    if not lost:
        return ALL
    rows = max((s.m for s in found if s.m < min(x.m for x in lost)), default=0)
    area = min(x.n * x.k for x in lost)
    matrix = max((s.n * s.k for s in found if s.n * s.k < area), default=0)
    return Class(rows=rows, matrix=matrix)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    """The library's time by ours: low samples, so that what else runs does not decide."""
    out, other = a.new_empty(a.shape[0], b.shape[1]), a.new_empty(a.shape[0], b.shape[1])
    calls = (lambda: torch.mm(a, b, out=other), own_product(a, b, out))
    times: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()
    end = time.perf_counter() + SECONDS
    while len(times[0]) < TURNS or time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    library, ours = (sorted(t)[len(t) // 4] for t in times)
    return library / ours


def own_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    """A call of a kernel of ours that writes a · b to `out`, made as capture makes them."""
    builder = Builder("product")
    m, n, k = (builder.size(name) for name in "mnk")
    left = builder.buffer("a", a.dtype, (m, k), (k, 1) if a.stride(1) == 1 else (1, m))
    right = builder.buffer("b", b.dtype, (k, n), (n, 1) if b.stride(1) == 1 else (1, k))
    target = builder.buffer("out", out.dtype, (m, n), (n, 1), "out")
    i, j, inner = builder.axis("m", m), builder.axis("n", n), builder.axis("k", k, "full")
    at = Affine.of
    with builder.grid(i, j):
        x, y = builder.load(left, [at(i), at(inner)]), builder.load(right, [at(inner), at(j)])
        value = builder.dot(x, y, inner, torch.float32)
        builder.store(target, [at(i), at(j)], builder.cast(value, out.dtype))
    kernel = builder.build()
    sizes: Mapping[str, int] = {"m": a.shape[0], "n": b.shape[1], "k": a.shape[1]}
    run = load_kernel(compile_kernel(kernel, {m: sizes["m"], n: sizes["n"], k: 1024}))
    order = [sizes[str(symbol)] for symbol in kernel.sizes]
    return lambda: run(a, b, out, *order)


if __name__ == "__main__":
    sys.exit(main())
