"""Scratch memory of a phase that is cut into sweeps: arrays, and where they lie.

In: types of values, block sizes. Out: `Array`s (pointer, strides by axis) in the thread's scratch.
Arrays of constant size lie at constant offsets and share memory when they do not live at the same
time; arrays of run-time size lie in front of them, each in its own place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_helion.codegen.llvm.text import SizeEmitter
from torch_helion.ir.types import Size

LINE = 64


@dataclass(frozen=True)
class Array:
    """A tile in scratch: element (i, j, …) is at pointer + sum of index × stride."""

    pointer: str
    dtype: torch.dtype
    strides: tuple[tuple[str, str], ...]
    """(axis, stride in elements as an operand text), outer to inner."""
    length: str
    """Elements, padding included."""

    def stride(self, axis: str) -> str | None:
        return dict(self.strides).get(axis)

    def renamed(self, names: dict[str, str]) -> Array:
        strides = tuple((names.get(n, n), s) for n, s in self.strides)
        return Array(self.pointer, self.dtype, strides, self.length)


@dataclass(frozen=True)
class Extent:
    """One axis of an array: its name and the most elements that it can have."""

    axis: str
    size: Size


class ScratchSpace:
    """Hands out scratch memory while a phase is printed, and knows afterwards how much there is."""

    def __init__(self, sizes: SizeEmitter, pad: int) -> None:
        self.sizes = sizes
        self.pad = pad
        self.peak = 0
        self._top = 0
        self.dynamic: list[tuple[tuple[Size, ...], int]] = []
        self._dynamic_bytes = "0"

    def mark(self) -> int:
        return self._top

    def release(self, mark: int) -> None:
        """Give back what was reserved since `mark`."""
        self._top = mark

    def reserve(self, size: int) -> int:
        """The offset, behind `%static`, of so many bytes."""
        offset = self._top
        self._top += -(-size // LINE) * LINE
        self.peak = max(self.peak, self._top)
        return offset

    def shape(self, extents: Sequence[Extent], unpadded: bool = False) -> tuple[Size, ...]:
        """Extents in memory: the innermost one is whole vectors."""
        sizes = [e.size for e in extents]
        if sizes and not unpadded:
            last = sizes[-1]
            if isinstance(last, int):
                sizes[-1] = -(-last // self.pad) * self.pad
            else:
                sizes[-1] = (last + self.pad - 1) // self.pad * self.pad
        return tuple(sizes)

    def dynamic_offset(self, shape: tuple[Size, ...], itemsize: int) -> str:
        """The offset in scratch of an array whose size is known at run time only."""
        offset = self._dynamic_bytes
        self.dynamic.append((shape, itemsize))
        self._dynamic_bytes = self.sizes.add(offset, array_bytes(self.sizes, shape, itemsize))
        return offset

    def static_offset(self) -> str:
        """Where arrays of constant size begin: asked for when all arrays are known."""
        return self._dynamic_bytes

    def total(self, sizes: SizeEmitter) -> str:
        """All bytes, in terms of another emitter (the plan function's)."""
        total = "0"
        for shape, itemsize in self.dynamic:
            total = sizes.add(total, array_bytes(sizes, shape, itemsize))
        return sizes.add(total, str(self.peak))


def array_bytes(sizes: SizeEmitter, shape: Sequence[Size], itemsize: int) -> str:
    total = str(itemsize)
    for extent in shape:
        total = sizes.mul(total, sizes(extent))
    return sizes.round_up(total, LINE)
