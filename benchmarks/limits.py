"""What this machine can do at most: bytes a second at several footprints, multiply-adds a second.

What flows in: thread counts. What flows out: :func:`limits_of`, the numbers that are printed beside
every result, so that a time can be read as a share of what is possible. The loops are LLVM IR of
their own (one stream of vector loads; a copy with streaming stores; independent chains of FMA),
since a library's sum or copy measures the library.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import functools
import statistics
import threading
import time
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np

from torch_helion import _hardware

_TILE = 64 * 16  # bytes one iteration of the read and copy loops handles: 16 vectors of 64 bytes
_CHAINS = 12  # independent accumulators of the FMA loop: latency 4 × 2 units, and some to spare


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates of `threads` threads together. Bandwidths are by footprint, in bytes per second."""

    threads: int
    read: dict[int, float]  # footprint in bytes → bytes read per second
    copy: dict[
        int, float
    ]  # footprint (source and target together) → bytes read plus written per second
    fma_float32: float  # floating point operations per second (a multiply-add counts two)
    fma_bfloat16: float  # 0 where the processor has no such instruction

    def seconds(self, read: int, written: int, flops: float = 0, dtype: str = "float32") -> float:
        """The least time for this traffic and arithmetic, if they overlap perfectly."""
        footprint = read + written
        copy, reading = _nearest(self.copy, footprint), _nearest(self.read, footprint)
        # A copy of n bytes takes n / reading + n / writing: that defines the rate of writing.
        writing = 1 / max(2 / copy - 1 / reading, 0.5 / copy)
        peak = self.fma_bfloat16 if dtype == "bfloat16" and self.fma_bfloat16 else self.fma_float32
        return max(read / reading + written / writing, flops / peak)

    def best_with(self, other: Limits) -> Limits:
        """The better rate of two measurements: whatever disturbed one of them made it lower."""
        return Limits(
            threads=self.threads,
            read={size: max(rate, other.read[size]) for size, rate in self.read.items()},
            copy={size: max(rate, other.copy[size]) for size, rate in self.copy.items()},
            fma_float32=max(self.fma_float32, other.fma_float32),
            fma_bfloat16=max(self.fma_bfloat16, other.fma_bfloat16),
        )

    def describe(self) -> str:
        inner, outer = min(self.copy), max(self.copy)
        rates = [self.read[outer], self.copy[outer], self.read[inner], self.copy[inner]]
        read, copy, inner_read, inner_copy = (f"{rate / 1e9:.0f}" for rate in rates)
        peaks = f"{self.fma_float32 / 1e9:.0f} float32, {self.fma_bfloat16 / 1e9:.0f} bfloat16"
        return (
            f"{self.threads} threads: memory GB/s: read {read}, copy {copy}; in cache "
            f"({inner >> 10} KiB): read {inner_read}, copy {inner_copy}; FMA GFLOP/s: {peaks}"
        )


def limits_of(threads: int) -> Limits:
    """Measure (about two seconds)."""
    hardware = _hardware.probe()
    outside = max(4 * hardware.llc, 128 << 20)
    footprints = (threads * hardware.l2 // 4, hardware.llc // 2, outside)
    bfloat16 = "avx512_bf16" in hardware.flags
    return Limits(
        threads=threads,
        read={size: _read_rate(threads, size) for size in footprints},
        copy={size: _copy_rate(threads, size) for size in footprints},
        fma_float32=_fma_rate(threads, "float32"),
        fma_bfloat16=_fma_rate(threads, "bfloat16") if bfloat16 else 0.0,
    )


def _nearest(rates: dict[int, float], footprint: int) -> float:
    """The rate at the smallest measured footprint that holds this one."""
    fitting = [size for size in sorted(rates) if size >= footprint]
    return rates[fitting[0] if fitting else max(rates)]


def _read_rate(threads: int, footprint: int) -> float:
    data, address = _aligned(footprint)
    share = footprint // threads // _TILE

    def work(thread: int, turns: int) -> None:
        for _ in range(turns):
            _functions().read(address + thread * share * _TILE, share)

    rate = share * threads * _TILE / _seconds_per_turn(threads, work)
    del data
    return rate


def _copy_rate(threads: int, footprint: int) -> float:
    data, address = _aligned(footprint)
    share = footprint // 2 // threads // _TILE
    outside = footprint > _hardware.probe().llc
    copy = _functions().copy_streaming if outside else _functions().copy

    def work(thread: int, turns: int) -> None:
        for _ in range(turns):
            at = address + 2 * thread * share * _TILE
            copy(at, at + share * _TILE, share)

    rate = 2 * share * threads * _TILE / _seconds_per_turn(threads, work)
    del data
    return rate


def _fma_rate(threads: int, dtype: str) -> float:
    function = getattr(_functions(), f"fma_{dtype}")
    count = 20_000
    flops = 2 * count * _CHAINS * (32 if dtype == "bfloat16" else 16)

    def work(thread: int, turns: int) -> None:
        for _ in range(turns):
            function(count)

    return threads * flops / _seconds_per_turn(threads, work)


def _aligned(size: int) -> tuple[np.ndarray, int]:
    """Touched memory at a page boundary, filled with numbers (zero pages are all one page)."""
    data = np.ones(size + 4096, dtype=np.uint8)
    return data, -(-data.ctypes.data // 4096) * 4096


def _seconds_per_turn(threads: int, work: Callable[[int, int], None]) -> float:
    """The best of many short samples: a limit is what is possible, not what is usual when busy.

    Samples of a millisecond often fall between two interruptions; longer ones never do.
    """
    turns = 1
    while (elapsed := _together(threads, work, turns)) < 0.001:
        turns = max(turns * 2, int(turns * 0.0015 / max(elapsed, 1e-6)))
    samples = []
    deadline = time.perf_counter() + 0.2
    while len(samples) < 9 or time.perf_counter() < deadline:
        samples.append(_together(threads, work, turns))
    return statistics.mean(sorted(samples)[:2]) / turns


def _together(threads: int, work: Callable[[int, int], None], turns: int) -> float:
    """Seconds from the common start until the last thread has ended."""
    if threads == 1:
        started = time.perf_counter()
        work(0, turns)
        return time.perf_counter() - started
    barrier = threading.Barrier(threads)

    def one(thread: int) -> tuple[float, float]:
        barrier.wait()
        started = time.perf_counter()
        work(thread, turns)
        return started, time.perf_counter()

    spans = list(_executor(threads).map(one, range(threads)))
    return max(end for _, end in spans) - min(start for start, _ in spans)


@functools.cache
def _executor(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads)


@dataclasses.dataclass(frozen=True)
class _Functions:
    """The compiled loops; ctypes lets go of Python's lock during a call."""

    keep: object
    read: Callable[[int, int], None]
    copy: Callable[[int, int, int], None]
    copy_streaming: Callable[[int, int, int], None]
    fma_float32: Callable[[int], None]
    fma_bfloat16: Callable[[int], None]


@functools.cache
def _functions() -> _Functions:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=_hardware.llvm_cpu(), features=_hardware.llvm_features(), opt=3
    )
    bfloat16 = "avx512_bf16" in _hardware.probe().flags
    text = _read_ir() + _copy_ir("copy", "") + _copy_ir("copy_streaming", ", !nontemporal !0")
    text += _fma_ir("float32", "<16 x float>") + (_bfloat16_ir() if bfloat16 else "")
    module = llvm.parse_assembly(text + "!0 = !{i32 1}\n")
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()

    def function(name: str, arguments: int) -> Callable[..., None]:
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return signature(engine.get_function_address(name))

    return _Functions(
        keep=engine,
        read=function("read", 2),
        copy=function("copy", 3),
        copy_streaming=function("copy_streaming", 3),
        fma_float32=function("fma_float32", 1),
        fma_bfloat16=function("fma_bfloat16", 1) if bfloat16 else function("fma_float32", 1),
    )


def _loop_ir(signature: str, phis: str, body: str, end: str) -> str:
    """A function that runs `body` for %i from 0 to %n - 1."""
    return (
        f"define void @{signature} {{\nentry:\n  br label %loop\nloop:\n"
        "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]\n"
        f"{phis}{body}"
        "  %next = add i64 %i, 1\n  %more = icmp slt i64 %next, %n\n"
        f"  br i1 %more, label %loop, label %end\nend:\n{end}  ret void\n}}\n"
    )


def _read_ir() -> str:
    """16 vector loads an iteration, each added to an accumulator of its own."""
    phis = body = ""
    end = "  %sink = alloca <16 x i32>\n"
    for k in range(16):
        phis += f"  %a{k} = phi <16 x i32> [ zeroinitializer, %entry ], [ %b{k}, %loop ]\n"
        body += f"  %o{k} = add i64 %base, {64 * k}\n  %p{k} = inttoptr i64 %o{k} to ptr\n"
        body += f"  %v{k} = load <16 x i32>, ptr %p{k}, align 64\n"
        body += f"  %b{k} = add <16 x i32> %a{k}, %v{k}\n"
        end += f"  store volatile <16 x i32> %b{k}, ptr %sink\n"
    base = f"  %step = mul i64 %i, {_TILE}\n  %base = add i64 %from, %step\n"
    return _loop_ir("read(i64 %from, i64 %n)", phis, base + body, end)


def _copy_ir(name: str, mark: str) -> str:
    body = f"  %step = mul i64 %i, {_TILE}\n"
    body += "  %source = add i64 %from, %step\n  %target = add i64 %to, %step\n"
    for k in range(16):
        body += f"  %o{k} = add i64 %source, {64 * k}\n  %p{k} = inttoptr i64 %o{k} to ptr\n"
        body += f"  %v{k} = load <16 x i32>, ptr %p{k}, align 64\n"
        body += f"  %r{k} = add i64 %target, {64 * k}\n  %q{k} = inttoptr i64 %r{k} to ptr\n"
        body += f"  store <16 x i32> %v{k}, ptr %q{k}, align 64{mark}\n"
    return _loop_ir(f"{name}(i64 %from, i64 %to, i64 %n)", "", body, "  fence seq_cst\n")


def _fma_ir(name: str, vector: str) -> str:
    phis = body = ""
    end = f"  %sink = alloca {vector}\n"
    for k in range(_CHAINS):
        start = f"splat (float {float(k + 1):.6e})"
        phis += f"  %a{k} = phi {vector} [ {start}, %entry ], [ %b{k}, %loop ]\n"
        body += f"  %b{k} = call {vector} @llvm.fma.v16f32({vector} %a{k}, "
        body += f"{vector} splat (float 0.5), {vector} splat (float 1.0))\n"
        end += f"  store volatile {vector} %b{k}, ptr %sink\n"
    declare = f"declare {vector} @llvm.fma.v16f32({vector}, {vector}, {vector})\n"
    return declare + _loop_ir(f"fma_{name}(i64 %n)", phis, body, end)


def _bfloat16_ir() -> str:
    dot = "@llvm.x86.avx512bf16.dpbf16ps.512"
    phis = body = ""
    end = "  %sink = alloca <16 x float>\n"
    for k in range(_CHAINS):
        phis += f"  %a{k} = phi <16 x float> [ zeroinitializer, %entry ], [ %b{k}, %loop ]\n"
        body += f"  %b{k} = call <16 x float> {dot}(<16 x float> %a{k}, "
        body += "<32 x bfloat> splat (bfloat 0xR3F00), <32 x bfloat> splat (bfloat 0xR3F00))\n"
        end += f"  store volatile <16 x float> %b{k}, ptr %sink\n"
    declare = f"declare <16 x float> {dot}(<16 x float>, <32 x bfloat>, <32 x bfloat>)\n"
    return declare + _loop_ir("fma_bfloat16(i64 %n)", phis, body, end)


if __name__ == "__main__":
    for count in sorted({1, _hardware.cores()}):
        print(limits_of(count).describe())
