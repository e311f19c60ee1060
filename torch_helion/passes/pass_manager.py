"""What a pass is, and running several: verify, time and dump after each.

In: passes and a kernel. Out: the rewritten kernel. Used by the compiler and by targets, which keep
their passes in visible tuples.

A pass never changes a result: interpreting the kernel before and after gives the same numbers, NaN,
infinities and negative zero included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch_helion import _logging, settings
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel
from torch_helion.ir.verifier import verify

log = _logging.get_logger("passes")


@dataclass(frozen=True)
class Pass:
    """One rewrite. `name` is the file's name and the name of the dump."""

    name: str
    apply: Callable[[Kernel], Kernel]


def run(passes: Sequence[Pass], kernel: Kernel, verify_each: bool | None = None) -> Kernel:
    """Apply `passes` in order. `verify_each`: check after every pass (default: the setting)."""
    if verify_each is None:
        verify_each = settings.current().verify
    for step in passes:
        kernel = _run_one(step, kernel, verify_each)
    return kernel


def _run_one(step: Pass, kernel: Kernel, check: bool) -> Kernel:
    before = _count(kernel)
    start = time.perf_counter()
    kernel = step.apply(kernel)
    took = (time.perf_counter() - start) * 1e3
    header = f"# after {step.name} ({took:.1f} ms, {before} -> {_count(kernel)} ops)\n"
    # Written before the check: the dump of a kernel that fails it is the one that is needed.
    _logging.dump(step.name, lambda: header + dump(kernel))
    log.debug("%s: %s%s", kernel.name, header, _Lazy(kernel))
    if check:
        verify(kernel)
    return kernel


def _count(kernel: Kernel) -> int:
    return sum(1 for _ in kernel.body.walk())


class _Lazy:
    """The dump as text, made only when a log record is printed."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __str__(self) -> str:
        return dump(self._kernel)
