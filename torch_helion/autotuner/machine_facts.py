"""What this machine can do at most: measured once, kept on disk, and what that says of a kernel.

In: nothing. Out: :func:`facts`: bytes a second from memory and multiply-adds a second, of as many
threads as torch has now. Measured (a quarter of a second) when a search or a cost rule first asks,
never at import; kept in the private artifact cache for machines of this class.

The loops are texts of the llvm target: a stream of vector loads, a copy with streaming stores,
independent chains of multiply-adds. A sum or a copy of a library would measure the library.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_helion import _hardware, _logging, compiler
from torch_helion.autotuner.results import machine_class
from torch_helion.runtime import artifact_cache

log = _logging.get_logger("tune")

KIND, VERSION = "machine", 1
SECONDS = 0.06
"""of each of the three loops"""
LEAST_TURNS = 4
LEAST_BYTES, MOST_BYTES = 64 << 20, 512 << 20
"""Of a tensor that no cache holds."""
BLOCK = 1 << 14
"""Floats of one step of the loops over memory."""
CHAINS, FMA_TURNS = 12, 20_000
"""Independent sums of the arithmetic (latency 4, two units, and some to spare); steps of each."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Rates of all threads together."""

    read: float
    """bytes a second that are loaded from memory"""
    copy: float
    """bytes a second that are loaded and stored"""
    fma: float
    """operations a second on float32; a multiply-add counts two"""
    threads: int
    cores: int
    l1d: int
    l2: int
    llc: int

    def seconds(self, loaded: float, stored: float, operations: float = 0.0) -> float:
        """The least time for what comes from memory, goes there and is computed in between."""
        storing = 1 / max(2 / self.copy - 1 / self.read, 0.5 / self.copy)
        return max(loaded / self.read + stored / storing, operations / self.fma)

    def describe(self) -> str:
        """In one line."""
        return (
            f"{self.threads} threads: {self.read / 1e9:.1f} GB/s read, {self.copy / 1e9:.1f} GB/s "
            f"copied, {self.fma / 1e9:.0f} GFLOP/s of float32"
        )


def facts() -> Facts:
    """This machine's, with as many threads as torch has now."""
    return _facts(machine_class())


@functools.cache
def _facts(machine: str) -> Facts:
    key = hashlib.sha256(f"{VERSION}\0{machine}\0{_hardware.cores()}".encode()).hexdigest()
    data = artifact_cache.get(KIND, key)
    known = None if data is None else read(data)
    if known is None:
        known = measure()
        artifact_cache.put(KIND, key, json.dumps(dataclasses.asdict(known)).encode())
    return known


def read(data: bytes) -> Facts | None:
    """What was stored; None if that is no such record."""
    try:
        values = json.loads(data)
        numbers = [float(v) for v in values.values()]
        return Facts(**values) if all(math.isfinite(n) and n > 0 for n in numbers) else None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        log.debug("stored facts of the machine cannot be read: %s", error)
        return None


def measure() -> Facts:
    """Measure now."""
    hardware, threads = _hardware.probe(), torch.get_num_threads()
    size = min(max(2 * hardware.llc, LEAST_BYTES), MOST_BYTES, hardware.memory // 16)
    lanes = hardware.vector_bytes // 4
    source = torch.ones(size // 4 // BLOCK * BLOCK)
    target = torch.empty_like(source).zero_()  # its pages are there before the clock starts
    steps, small = source.numel() // BLOCK, torch.zeros(64 * lanes)
    reading, copying, adding = (
        compiler.build_kernel(text)
        for text in (_read_text(steps, lanes), _copy_text(steps, lanes), _fma_text(threads, lanes))
    )
    found = Facts(
        read=source.nbytes / _least_seconds(lambda: reading(source, target)),
        copy=2 * source.nbytes / _least_seconds(lambda: copying(source, target)),
        fma=2.0 * threads * FMA_TURNS * CHAINS * lanes
        / _least_seconds(lambda: adding(small, small)),
        threads=threads,
        cores=hardware.cores,
        l1d=hardware.l1d,
        l2=hardware.l2,
        llc=hardware.llc,
    )  # fmt: skip
    log.info("this machine: %s", found.describe())
    return found


def _least_seconds(call: Callable[[], Any]) -> float:
    """The best of some turns: a limit is what is possible, not what is usual when others work."""
    best, turns = math.inf, 0
    end = time.perf_counter() + SECONDS
    while turns < LEAST_TURNS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        turns += 1
    return best


# ---------------------------------------------------------------------- a kernel's limit

AT_LIMIT = (0.9, 1.03)
"""Between these shares of the least time, nothing is left to find; below, a kernel does not touch
all of its arguments, or the machine was busy when it was measured.
"""


def memory_is_the_limit(
    seconds: float, tensors: Sequence[torch.Tensor], written: Sequence[int], updated: bool
) -> bool:
    """Whether a call takes as long as bringing its arguments from memory, and results there."""
    loaded = stored = 0
    for number, tensor in enumerate(tensors):
        once = math.prod(n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s)
        loaded += 0 if number in written and not updated else once * tensor.element_size()
        stored += once * tensor.element_size() if number in written else 0
    if loaded + stored < 4 * _hardware.probe().llc:
        return False
    least, most = AT_LIMIT
    return least <= seconds / facts().seconds(loaded, stored) <= most


# ---------------------------------------------------------------------- the loops

_COST = 100_000_000
"""Of a step, in picoseconds: enough for a step to be worth a thread."""


def _text(name: str, steps: int, body: str, declared: str = "") -> str:
    """A kernel of two tensors whose steps ``%begin`` to ``%end`` the body goes through."""
    header = {"name": name, "tensors": ["float32"] * 2, "ints": 0, "phases": 1, "format": 1}
    return f"""; torch_helion kernel {json.dumps(header)}
define void @{name}_plan(ptr %args, ptr %out) nounwind {{
  store i64 0, ptr %out
  %steps = getelementptr i64, ptr %out, i64 1
  store i64 {steps}, ptr %steps
  %cost = getelementptr i64, ptr %out, i64 2
  store i64 {_COST}, ptr %cost
  %scratch = getelementptr i64, ptr %out, i64 3
  store i64 0, ptr %scratch
  ret void
}}

define i64 @{name}_phase0(ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %space) nounwind {{
entry:
  %source = load ptr, ptr %args
  %slot = getelementptr ptr, ptr %args, i64 1
  %target = load ptr, ptr %slot
{body}
  ret i64 0
}}
{declared}
"""


def _loop(start: str, stop: str, step: int, phis: list[str], body: str) -> str:
    """A loop over ``%i``; each of ``phis`` goes on with the value of its name and ``.next``."""
    heads = "\n".join(
        f"  %{p} = phi <{{n}} x float> [ zeroinitializer, %entry ], [ %{p}.next, %loop ]"
        for p in phis
    )
    return f"""  br label %loop
loop:
  %i = phi i64 [ {start}, %entry ], [ %i.next, %loop ]
{heads}
{body}
  %i.next = add i64 %i, {step}
  %more = icmp slt i64 %i.next, {stop}
  br i1 %more, label %loop, label %done
done:
"""


_SHARE = f"""  %first = mul i64 %begin, {BLOCK}
  %last = mul i64 %end, {BLOCK}
"""
"""The elements of a call."""


def _read_text(steps: int, n: int) -> str:
    """Loads and adds up, eight sums at a time."""
    parts = range(8)
    body = "\n".join(
        f"""  %at{k} = add i64 %i, {k * n}
  %from{k} = getelementptr float, ptr %source, i64 %at{k}
  %x{k} = load <{n} x float>, ptr %from{k}, align 4
  %s{k}.next = fadd <{n} x float> %s{k}, %x{k}"""
        for k in parts
    )
    loop = _loop("%first", "%last", 8 * n, [f"s{k}" for k in parts], body)
    kept = "\n".join(  # a place for each: a sum that nobody sees is not computed
        f"""  %place{k} = add i64 %first, {k * n}
  %to{k} = getelementptr float, ptr %target, i64 %place{k}
  store <{n} x float> %s{k}.next, ptr %to{k}, align 4"""
        for k in parts
    )
    return _text("machine_read", steps, _SHARE + loop.format(n=n) + kept)


def _copy_text(steps: int, n: int) -> str:
    """Loads and stores past the caches."""
    body = "\n".join(
        f"""  %at{k} = add i64 %i, {k * n}
  %from{k} = getelementptr float, ptr %source, i64 %at{k}
  %to{k} = getelementptr float, ptr %target, i64 %at{k}
  %x{k} = load <{n} x float>, ptr %from{k}, align {4 * n}
  store <{n} x float> %x{k}, ptr %to{k}, align {4 * n}, !nontemporal !0"""
        for k in range(4)
    )
    loop = _loop("%first", "%last", 4 * n, [], body)
    return _text("machine_copy", steps, _SHARE + loop, "!0 = !{i32 1}")


def _fma_text(threads: int, n: int) -> str:
    """Multiplies and adds in registers."""
    kind, chains = f"<{n} x float>", range(CHAINS)
    fma = f"@llvm.fma.v{n}f32"
    body = "\n".join(
        f"  %s{k}.next = call {kind} {fma}({kind} %x, {kind} %s{k}, {kind} %x)" for k in chains
    )
    load = f"  %x = load {kind}, ptr %source, align 4\n"
    loop = _loop("0", str(FMA_TURNS), 1, [f"s{k}" for k in chains], body)
    kept = "\n".join(
        f"  %to{k} = getelementptr float, ptr %target, i64 {k * n}\n"
        f"  store {kind} %s{k}.next, ptr %to{k}, align 4"
        for k in chains
    )
    declared = f"declare {kind} {fma}({kind}, {kind}, {kind})"
    return _text("machine_fma", threads, load + loop.format(n=n) + kept, declared)
