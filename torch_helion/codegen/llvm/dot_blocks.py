"""Tile sizes for the grid around a product.

In: sizes, dtype, layout, machine. Out: blocks of m, n and k, powers of two. The product's function
blocks for the caches itself (dot_plan.py), so these choose three things only: how often B is packed
(once for each block of m), how much of C one step works on (it should stay in L2 beside B's panel),
and how evenly the steps fill the threads.

Measured on two cores with AVX-512 (GFLOP/s, two threads, peak 233 in float32): 2048 × 1024 × 4096
with blocks 512, 256: 220; 256, 256: 216; 256, 512: 215. 512 × 768 × 3072: 214, 212, 209. One row,
B's rows side by side: 64 columns a step 12, 1024 columns 20 (39 GB/s): long rows stream.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torch_helion import _hardware
from torch_helion.codegen.llvm.dot_plan import INNER_ROWS, PANEL_BYTES, STREAMED_ROWS
from torch_helion.codegen.llvm.engine import Machine

PACK_CYCLES = 20.0
"""To read a vector of B from memory and pack it; a vector of A times a vector of B is one cycle."""
A_CYCLES, PACK_A_CYCLES = 3.0, 12.0
"""To fetch a vector of A into L1, for each block of n; to pack it where its rows lie side by side.
"""
C_CYCLES = 6.0
"""To read and write a vector of C, and to store it as output later."""
STEP_CYCLES = 2000.0
"""Of a grid step, and of what it finds cold."""
UNEVEN = 0.15
"""Of a step: what the last thread to finish waits for, as steps never take equally long."""
STREAM_COLUMNS = 2048
"""Longest tile of a few rows: C's rows stay in L1."""
SMALL_B = 16 << 10
"""A B of so many bytes stays in L1: read in place by a few rows at a time, it needs no packing."""
SMALL_ROWS = 64
"""For more rows of A, packing pays again."""
WHOLE_K = 1 << 14
"""Blocks of k are as long as the axis up to here."""
COMPUTED_K = 512
"""Blocks of k where an operand is computed first: its tile is an array in scratch."""


def default_blocks(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    machine: Machine,
    *,
    a_unit: str = "k",
    b_unit: str = "k",
    computed: bool = False,
    threads: int | None = None,
    results: int = 1,
    batch: int = 1,
) -> tuple[int, int, int]:
    """Blocks of m, n and k for C[m, n] = A[m, k] · B[k, n] in ``dtype``.

    ``a_unit``, ``b_unit``: the axes whose stride is one. ``computed``: an operand is not read in
    place. ``threads``: how many will share the grid (default: all cores). ``results``: how many
    products one step makes. ``batch``: how many such C the grid is over.
    """
    threads = threads or _hardware.cores()
    longest = COMPUTED_K if computed else WHOLE_K
    block_k = min(_power_above(k), longest)
    lanes = machine.vector_bits // 8 // max(4, min(dtype.itemsize, 8))
    if m <= STREAMED_ROWS and b_unit == "n":
        share = _power_above(-(-n // (2 * threads)))
        return _power_above(m), min(max(share, 64), STREAM_COLUMNS, _power_above(n)), block_k
    small = m <= SMALL_ROWS and n * k * dtype.itemsize <= SMALL_B
    if small and b_unit == "n" and dtype is torch.float32 and not computed:
        return STREAMED_ROWS, _power_above(n), block_k
    pack = 0.0 if b_unit == "k" and m <= INNER_ROWS else PACK_CYCLES
    fetch = A_CYCLES if a_unit == "k" else PACK_A_CYCLES

    def cost(blocks: tuple[int, int]) -> float:
        return _cost(m, n, k, *blocks, lanes, threads, (pack, fetch), batch)

    bytes = PANEL_BYTES[machine.vector_bits] // results
    return (*min(_candidates(m, n, bytes), key=cost), block_k)


def _candidates(m: int, n: int, bytes: int) -> Iterator[tuple[int, int]]:
    """Pairs whose tile of C in float32 has no more than `bytes` (it lies in L2 beside as much of
    packed B), largest first (the first of equals is taken).
    """
    for block_m in _powers_down(min(_power_above(m), 512), 32):
        for block_n in _powers_down(min(_power_above(n), 512), 32):
            if block_m * block_n * 4 <= bytes:
                yield block_m, block_n


def _cost(
    m: int,
    n: int,
    k: int,
    block_m: int,
    block_n: int,
    lanes: int,
    threads: int,
    cycles: tuple[float, float],
    batch: int,
) -> float:
    """Cycles of the thread that works longest, for each of the batch; `cycles`: to make a vector of
    B and of A ready.
    """
    rows, columns = -(-m // block_m), -(-n // block_n)
    vectors = max(1, n / lanes)
    multiply = vectors * -(-m // 8) * 8 * k
    pack = cycles[0] * vectors * k * rows
    store = C_CYCLES * vectors * m * max(1, k // 1024)
    steps = rows * columns
    fetch = cycles[1] * m * k / lanes * columns
    total = multiply + pack + fetch + store + STEP_CYCLES * steps
    shares = -(-steps * batch // threads) + (UNEVEN if threads > 1 else 0.0)
    return total * shares / (steps * batch)


def _power_above(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _powers_down(high: int, low: int) -> Iterator[int]:
    size = high
    yield size
    while size > low:
        size //= 2
        yield size
