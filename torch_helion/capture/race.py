"""A region's kernel against ATen on the same numbers, with ``mode="max-autotune"``.

In: a region, its kernel and the kernel's text. Out: why the region should stay as it is, or None.
Both run in turn at the graph's sizes in this process, a fraction of a second for each kernel. What
was measured is kept beside tuned configs, for other sizes and for later compilations in any mode.

The other runner is ATen, operator by operator: what Inductor calls for products and attention, and
slower than its loops for the rest. Inductor's own kernel would take seconds of a C++ compiler each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from torch_helion import _logging
from torch_helion.autotuner import results
from torch_helion.autotuner.results import KernelId
from torch_helion.capture import check, small_instance
from torch_helion.capture.small_instance import CannotShrink
from torch_helion.compiler import load_kernel
from torch_helion.config import Config

log = _logging.get_logger("tune")

NAME = "region against ATen"
LOSES = 1.05
"""A kernel that takes longer by this factor is left to ATen: by less, the others may be noise."""
SECONDS = 0.2
LEAST_TURNS, MOST_TURNS = 5, 200
LEAST_SAMPLE = 2e-4
"""Seconds of one sample: shorter calls are repeated."""
NEAR = 1.0
"""Doublings of the sizes, beyond which another may win."""
TOO_MANY = 1 << 27
"""Elements over all operators, above which a race is not worth its time."""


def lost(
    region: Any, made: Any, text: str, kernel: KernelId, measure: bool, anew: bool = False
) -> str | None:
    """Why ATen should keep a region: what an earlier race says, or one that is held now.

    ``anew``: whatever an earlier one says.
    """
    sizes = tuple(int(made.hints.get(s, 1)) for s in made.kernel.sizes)
    if not measure and not results.family_state(NAME):
        return None
    mine = KernelId(f"{NAME}: {kernel.code}", kernel.code, kernel.kind, NAME)
    found = [] if measure and anew else results.nearest(mine, sizes)[:1]
    for known in found:
        if results.distance(known.sizes, sizes) <= NEAR:
            return verdict(known.seconds, known.default_seconds)
    if not measure:
        return None
    try:
        times = hold(region, made, text)
    except (CannotShrink, RuntimeError, MemoryError) as error:
        log.info("%s: no race against ATen: %s", made.kernel.name, error)
        return None
    if times is None:
        return None
    log.info("%s: %.1f us, ATen %.1f us", made.kernel.name, times[0] * 1e6, times[1] * 1e6)
    results.keep(mine, sizes, Config(), *times)
    return verdict(*times)


def verdict(ours: float, aten: float) -> str | None:
    """What two times say."""
    if ours <= LOSES * aten:
        return None
    return f"ATen is faster: {aten * 1e6:.1f} us against {ours * 1e6:.1f} us, measured"


def hold(region: Any, made: Any, text: str) -> tuple[float, float] | None:
    """Seconds of the kernel and of ATen; None where it would take too long."""
    lowerings = check.lowerings_of(region)
    instance = small_instance.make(region, made, lowerings, real=True)
    if instance.elements > TOO_MANY:
        return None
    generator = torch.Generator().manual_seed(20)
    arguments, nodes = small_instance.fill(
        instance, generator, True, 0, check.index_limit(instance)
    )
    outputs = set(region.outputs)
    inputs = {n: v.clone() for n, v in nodes.items() if n not in outputs}
    kernel, sizes = load_kernel(text), instance.sizes
    with torch.no_grad():
        return in_turn(
            lambda: kernel(*arguments, *sizes),
            lambda: instance.program.run(inputs, precise=False),
        )


def in_turn(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of two functions that take turns: low samples, what else runs shall not decide."""
    counts = [max(1, int(LEAST_SAMPLE / max(_seconds(f, 1), 1e-7))) for f in (first, second)]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and time.perf_counter() > end:
            break
        for function, count, found in zip((first, second), counts, times, strict=True):
            found.append(_seconds(function, count))
    first_seconds, second_seconds = (sorted(found)[len(found) // 4] for found in times)
    return first_seconds, second_seconds


def _seconds(function: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count
