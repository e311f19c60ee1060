"""What expressions of the device part evaluate to, besides plain Python objects.

In: tile values of the IR, size expressions, tensors of the host. Out: `Number`, `Tensor`,
`HostTensor`, `Tile`, `Stack`, `Record`, `Function`,
`Inline`: what the interpreter computes with.

A `Tensor` is positional, as PyTorch's are; `dims` says which axis of the IR each dimension is
(None: its size is 1). The IR value may lack axes: then it is the same along them.
"""

from __future__ import annotations

import ast
import dataclasses
import types
from typing import Any

import sympy
import torch

from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Axis, Buffer, Size

Dim = Axis | None
Path = tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Number:
    """A Python number that is known when the kernel runs. kind: int, float or bool."""

    kind: type
    size: Size | None = None
    """as a size expression (ints only)"""
    value: Value | None = None
    """as a rank-0 value: int64, float64 or bool"""
    bound: tuple[int, Size] | None = None
    """region in which the value was bound, and its symbol"""
    bits: Size | None = None
    """the bits of a float argument"""

    def __repr__(self) -> str:
        if self.bits is not None:
            return f"<float {self.bits}>"
        return f"<{self.kind.__name__} {self.size if self.size is not None else self.value}>"


def integer(size: Size) -> Number | int:
    """A size expression as a number; a constant as an int."""
    if isinstance(size, sympy.Expr):
        return int(size) if size.is_Integer else Number(int, size)
    return size


@dataclasses.dataclass(eq=False)
class Tensor:
    """A tensor of the device."""

    value: Value
    dims: tuple[Dim, ...] = ()
    place: Affine | None = None
    """the value, where it is known to be a linear function of positions"""

    @property
    def dtype(self) -> torch.dtype:
        return self.value.type.dtype

    @property
    def rank(self) -> int:
        return len(self.dims)

    def __repr__(self) -> str:
        names = ", ".join("1" if d is None else d.name for d in self.dims)
        return f"{str(self.dtype).removeprefix('torch.')}[{names}]"


@dataclasses.dataclass(eq=False)
class HostTensor:
    """A tensor of the host, and where a launch finds it."""

    tensor: torch.Tensor
    path: Path
    name: str
    buffer: Buffer | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def __repr__(self) -> str:
        return f"host tensor {self.name}"


@dataclasses.dataclass(eq=False)
class Tile:
    """A tile of a loop. `axis` counts from 0; positions are `begin` + its."""

    axis: Axis
    begin: Size
    block: Size
    end: Size
    """of the whole range"""
    uses: set[str] = dataclasses.field(default_factory=set)
    """properties that the program has read"""

    def __repr__(self) -> str:
        return f"tile {self.axis.name}"


@dataclasses.dataclass(eq=False)
class Offset:
    """tile + int in a subscript."""

    tile: Tile
    offset: Size


@dataclasses.dataclass(eq=False)
class Stack:
    """A stack of tensors at addresses."""

    like: HostTensor
    pointers: Tensor


@dataclasses.dataclass(eq=False)
class Record:
    """A dataclass or other object of the host, seen through its fields."""

    kind: type
    fields: dict[str, Any]
    original: Any


@dataclasses.dataclass(eq=False)
class Function:
    """A Python function whose cells hold values of the device part."""

    fn: types.FunctionType
    cells: dict[str, Any]
    defaults: tuple[Any, ...] | None = None


@dataclasses.dataclass(eq=False)
class Inline:
    """A lambda written in the device part, and the scope that it stands in."""

    node: ast.Lambda
    scope: Any

    @property
    def names(self) -> list[str]:
        return [a.arg for a in self.node.args.args]


@dataclasses.dataclass(eq=False)
class Method:
    """`object.name` before it is called."""

    owner: Any
    name: str


@dataclasses.dataclass(frozen=True)
class TileList:
    """A list or tuple of tiles used as one index."""

    tiles: tuple[Any, ...]


DEVICE = (Number, Tensor, Tile, Offset, HostTensor, Stack)
"""Values that only exist in the kernel."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | Number) and not isinstance(value, torch.dtype)


def kind_of(value: Any) -> type:
    """int, float or bool of a number."""
    if isinstance(value, Number):
        return value.kind
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, float) else int


def holds(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value, or a container's item, is of one of these classes."""
    if isinstance(value, kinds):
        return True
    if isinstance(value, list | tuple):
        return any(holds(v, kinds) for v in value)
    if isinstance(value, dict):
        return any(holds(v, kinds) for v in value.values())
    if isinstance(value, slice):
        return any(holds(v, kinds) for v in (value.start, value.stop, value.step))
    return False


def describe(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor | HostTensor):
        return f"tensor {value!r}"
    if isinstance(value, Number):
        return value.kind.__name__
    return type(value).__name__
