"""Types of the tile IR: sizes, named axes, tile types, buffers and index expressions.

In: nothing. Out: frozen values used by every stage. Importable by everybody above floor 0.

A tile is a value with *named* axes: two tiles in one operation are aligned by the names of their
axes, never by position, so broadcasting and permutation need no operation of their own. The order
of `TileType.axes` only matters to a reader (the printer) and to the interpreter's memory layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import sympy
import torch

Size: TypeAlias = int | sympy.Expr
"""A number of elements: a constant, or an expression over the kernel's size symbols."""

AxisKind = Literal["block", "full", "const"]


@lru_cache(maxsize=4096)
def size_symbol(name: str) -> sympy.Symbol:
    """The run-time size argument `name` (an int64 >= 0)."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


@lru_cache(maxsize=4096)
def block_symbol(axis: str) -> sympy.Symbol:
    """The block size of block axis `axis`: bound when a config is applied, not before."""
    return sympy.Symbol(f"block_{axis}", integer=True, positive=True)


@lru_cache(maxsize=4096)
def scalar_symbol(name: str) -> sympy.Symbol:
    """An int64 of either sign: an integer argument, a bound value, a sequential loop's counter."""
    return sympy.Symbol(name, integer=True)


def begin_symbol(axis: Axis | str) -> sympy.Symbol:
    """The first position of the current tile of a block axis whose loop is around the use."""
    return size_symbol(f"begin_{_tile_name(axis)}")


def id_symbol(axis: Axis | str) -> sympy.Symbol:
    """The number of the current tile of a block axis whose loop is around the use."""
    return size_symbol(f"id_{_tile_name(axis)}")


@dataclass(frozen=True)
class Axis:
    """One iteration axis of a kernel.

    kind "block": introduced by a loop, cut into tiles of a block size that the config chooses late;
    kind "full": always whole inside a grid step; kind "const": a literal extent (register arrays).
    `size` is the extent of the whole range [0, size). `of` names another axis, of the same size and
    kind: this one has the same positions (of the same tile) as an independent second axis.
    """

    name: str
    size: Size
    kind: AxisKind = "block"
    of: str = ""

    @property
    def id_name(self) -> str:
        """Name under which index expressions read the number of the axis's current tile."""
        return f"{self.name}.id"

    @property
    def tile_name(self) -> str:
        """The axis whose loop sets the tile: itself, or the one that this is an alias of."""
        return self.of or self.name


def _tile_name(axis: Axis | str) -> str:
    return axis if isinstance(axis, str) else axis.tile_name


@dataclass(frozen=True)
class TileType:
    """dtype, axes, and what lanes beyond an axis's range hold (`fill`; None: unknown)."""

    dtype: torch.dtype
    axes: tuple[Axis, ...] = ()
    fill: float | int | bool | None = field(default=None, compare=False)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.axes)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(self.axis_names)}]"


BufferRole = Literal["in", "out", "inout", "workspace"]


@dataclass(frozen=True)
class Buffer:
    """A tensor argument of the kernel. Strides are in elements. `workspace` buffers live in one
    call only.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    role: BufferRole = "in"

    @property
    def is_input(self) -> bool:
        return self.role in ("in", "inout")

    @property
    def is_output(self) -> bool:
        return self.role in ("out", "inout")


@dataclass(frozen=True)
class Affine:
    """offset + sum(coefficient * axis index): the index map of one buffer dimension.

    A term's name is an axis name (the element's position along that axis) or an axis's `id_name`
    (the number of the current tile of a block axis).
    """

    terms: tuple[tuple[str, Size], ...] = ()
    offset: Size = 0

    @staticmethod
    def of(axis: Axis | str, coefficient: Size = 1, offset: Size = 0) -> Affine:
        name = axis if isinstance(axis, str) else axis.name
        return Affine(((name, coefficient),), offset)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.terms)


@dataclass(frozen=True)
class Gather:
    """The index of one buffer dimension is gathered operand number `operand` of the access."""

    operand: int


IndexExpr: TypeAlias = Affine | Gather


def contiguous_strides(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Row-major strides of `shape`, in elements."""
    strides: list[Size] = []
    step: Size = 1
    for extent in reversed(shape):
        strides.append(step)
        step = step * extent
    return tuple(reversed(strides))
