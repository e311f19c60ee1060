"""The default config of a kernel: always valid, close to good, from its structure and typical
sizes.

In: a kernel, hints (typical values of its sizes), a machine. Out: a `Config`. The search starts
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.program_defaults import (
    TRANSPOSED_LENGTH,
    estimate,
    power_of_two,
    program_blocks,
    strided_lanes,
)
from torch_helion.codegen.llvm.ranks import across_axis
from torch_helion.codegen.llvm.schedule import choose_vector_axis, is_plain
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel, Op
from torch_helion.ir.types import Axis

TILE_ELEMENTS = 4096
"""Elements of one grid step: enough to hide the step's own cost, few enough to stay in L1."""
VECTOR_TILE = 256
"""Least elements of a tile along a vector axis of the grid, however much stands inside of it."""
STREAM_BYTES = 24 << 20
"""Outputs larger than this in one call are written past the caches."""
CACHED_BYTES = 12 << 20
"""Smaller outputs are never written past the caches: a search does not see whom that slows down."""
PARTIAL_TILES = 32
"""Tiles that a reduction across grid steps is cut into."""


def default_config(kernel: Kernel, hints: Mapping[sympy.Symbol, int], machine: Machine) -> Config:
    if any(not is_plain(kernel, phase) for phase in kernel.phases):
        return Config(
            block_sizes=program_blocks(kernel, hints, machine),
            unroll=_unroll(kernel, machine),
            streaming_stores=_streaming(kernel, hints),
        )
    sizes: list[int] = []
    for phase in kernel.phases:
        sizes += _blocks(phase, kernel, hints, machine)
    return Config(
        block_sizes=sizes,
        unroll=_unroll(kernel, machine),
        streaming_stores=_streaming(kernel, hints),
    )


def tunables(
    kernel: Kernel, hints: Mapping[sympy.Symbol, int], machine: Machine
) -> dict[str, Sequence[Any]]:
    """What else changes the code of this kernel: key of the config → values worth a try."""
    found: dict[str, Sequence[Any]] = {"unroll": (1, 2, 4, 8)}
    names, size = _outputs(kernel, hints)
    if size >= CACHED_BYTES:
        found["streaming_stores"] = ([], names)
    structured = [p for p in kernel.phases if not is_plain(kernel, p)]
    if structured:
        found["pid_type"] = ("flat", "persistent_interleaved")
    if any(len(p.attrs["axes"]) > 1 for p in structured):
        found["loop_orders"] = found["l2_groupings"] = ()  # what they can be follows from the loops
    return found


def _blocks(
    phase: Op, kernel: Kernel, hints: Mapping[sympy.Symbol, int], machine: Machine
) -> list[int]:
    ops = phase.regions[0].ops
    axes: tuple[Axis, ...] = phase.attrs["axes"]
    partial = {n for op in ops if op.kind == "reduce" for n in op.attrs["axes"]}
    buffers = {b.name: b for b in kernel.buffers}
    vector = choose_vector_axis(ops, buffers)
    inner = _inner_elements(ops, axes, hints)
    blocks = {a.name: 1 for a in axes}
    across = across_axis(ops, buffers, vector) if inner == 1 and not partial else None
    if across and vector in blocks and across[0] in blocks:
        extents = {a.name: power_of_two(2 * estimate(a.size, hints) - 1) for a in axes}
        lanes = strided_lanes(estimate(across[1], hints), machine)
        blocks[vector] = min(lanes, extents[vector])
        blocks[across[0]] = min(TRANSPOSED_LENGTH, extents[across[0]])
        return [blocks[a.name] for a in axes]
    budget = max(1, TILE_ELEMENTS // max(1, inner))
    ordered = sorted(axes, key=lambda a: (a.name == vector, axes.index(a)), reverse=True)
    for axis in ordered:
        extent = estimate(axis.size, hints)
        if axis.name in partial:
            low, high = (4096, 65536) if axis.name == vector else (16, 128)
            blocks[axis.name] = min(max(power_of_two(extent // PARTIAL_TILES), low), high)
            budget = 1
        elif axis.name == vector or budget > 1:
            budget = max(budget, VECTOR_TILE) if axis.name == vector else budget
            blocks[axis.name] = min(budget, 1 << max(0, (extent - 1).bit_length()))
            blocks[axis.name] = power_of_two(blocks[axis.name])
            budget //= max(1, min(extent, blocks[axis.name]))
            if axis.name == vector and extent > blocks[axis.name]:
                budget = 1
    return [blocks[a.name] for a in axes]


def _inner_elements(
    ops: Sequence[Op], grid: Sequence[Axis], hints: Mapping[sympy.Symbol, int]
) -> int:
    """Elements of one point of the grid."""
    names = {a.name for a in grid}
    inner: dict[str, Axis] = {}
    for op in ops:
        for value in op.results:
            inner.update({a.name: a for a in value.type.axes if a.name not in names})
    total = 1
    for axis in inner.values():
        total *= max(1, estimate(axis.size, hints))
    return total


def _unroll(kernel: Kernel, machine: Machine) -> int:
    """Vectors in flight: four for short bodies, two where long formulas fill the registers."""
    operations = sum(1 for op in kernel.body.walk() if op.kind in ("pointwise", "rng"))
    return 4 if operations <= (32 if machine.registers >= 32 else 12) else 2


def _streaming(kernel: Kernel, hints: Mapping[sympy.Symbol, int]) -> list[str]:
    names, size = _outputs(kernel, hints)
    return names if size >= STREAM_BYTES else []


def _outputs(kernel: Kernel, hints: Mapping[sympy.Symbol, int]) -> tuple[list[str], int]:
    """Names of the outputs, and their bytes."""
    total = 0
    names = []
    for buffer in kernel.buffers:
        if buffer.role == "out":
            count = buffer.dtype.itemsize
            for extent in buffer.shape:
                count *= max(1, estimate(extent, hints))
            total += count
            names.append(buffer.name)
    return names, total
