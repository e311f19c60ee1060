"""In which order the loops of a phase nest: one order for all of its sweeps.

In: a phase, its buffers. Out: a rank for each axis. The last axis of a sweep is its vector axis, so
axes along which accesses are contiguous come last, short ones first. One order for a whole phase
means that arrays in scratch are contiguous along the vector axis of every sweep that reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch_helion.codegen.llvm.linear import makers
from torch_helion.codegen.llvm.schedule import score_access
from torch_helion.ir.graph import Op
from torch_helion.ir.types import Affine, Axis, Buffer, Size

SHORT = 8


def axis_ranks(
    phase: Op,
    buffers: Mapping[str, Buffer],
    axes: Mapping[str, Axis],
    blocks: Mapping[str, int],
) -> dict[str, int]:
    """The place of each axis in the order, outer first."""
    score = dict.fromkeys(axes, 0.0)
    ops = list(phase.regions[0].walk())
    producer = makers(phase)
    for op in ops:
        if op.kind in ("load", "store", "atomic"):
            score_access(op, buffers, score, lambda n: n in axes and blocks.get(n) != 1, producer)
    for axis in axes.values():  # an alias lies where its axis does, just before it
        if axis.of:
            score[axis.name] = score.get(axis.of, 0.0) - 1.0
    batches = _batches(ops)
    base = {name: place for place, name in enumerate(_first_use(phase, ops, axes))}

    def key(name: str) -> tuple[bool, bool, float, int]:
        short = blocks.get(name, axes[name].size)
        is_long = not (isinstance(short, int) and short < SHORT)
        return is_long, name not in batches, score[name], base[name]

    return {name: place for place, name in enumerate(sorted(axes, key=key))}


def across_axis(
    ops: Iterable[Op], buffers: Mapping[str, Buffer], vector: str | None
) -> tuple[str, Size] | None:
    """The axis along which an access is contiguous that the vector axis strides through, and the
    stride in bytes.
    """
    for op in ops:
        if op.kind not in ("load", "store") or vector is None:
            continue
        buffer = buffers[op.attrs["buffer"]]
        steps: dict[str, Size] = {}
        for stride, index in zip(buffer.strides, op.attrs["index"], strict=True):
            for name, coefficient in index.terms if isinstance(index, Affine) else ():
                steps[name] = steps.get(name, 0) + stride * coefficient
        along = next((n for n, s in steps.items() if s == 1 and n != vector), None)
        if along is not None and steps.get(vector, 1) != 1:
            return along, steps[vector] * buffer.dtype.itemsize
    return None


def _batches(ops: list[Op]) -> set[str]:
    """Axes that both operands of a dot and its result have."""
    found: set[str] = set()
    for op in ops:
        if op.kind == "dot":
            a, b = (set(v.type.axis_names) for v in op.operands[:2])
            found |= (a & b) - {op.attrs["k"]}
    return found


def _first_use(phase: Op, ops: list[Op], axes: Mapping[str, Axis]) -> list[str]:
    """Axes of loops, then others, as the program comes to them."""
    loops = [a.name for op in (phase, *ops) if op.kind == "loop" for a in op.attrs["axes"]]
    used = [n for op in ops for v in (*op.operands, *op.results) for n in v.type.axis_names]
    return list(dict.fromkeys((*loops, *used, *axes)))
