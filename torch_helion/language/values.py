"""Types that programs of the language name: tiles, stacks of tensors, compile-time constants.

In: nothing. Out: classes for annotations and `isinstance`, and `BlockSize`, the number that a
registered block size is on the host. The values on the device are the front end's.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch


class Tile:
    """A block of positions of a range, as `hl.tile` gives them in a loop.

    `index`: the positions (1-D, int64); `begin`, `end`: the first position and one past the last;
    `id`: the number of the tile; `block_size`; `count`: how many tiles the range has. `tile + n`
    is `tile.index + n` in a subscript. Where a size is expected it stands for its block size.
    """

    index: torch.Tensor
    begin: int
    end: int
    id: int
    block_size: int
    count: int


class ConstExpr(NamedTuple):
    """Annotation of a parameter whose value is a constant of the compiled kernel."""

    value: Any

    def __index__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)


class ProcessGroupName(str):
    """Annotation of the parameter that names a distributed kernel's process group."""


class BlockSize(int):
    """A registered block size: on the host the number that the config chose."""

    number: int
    """which entry of a config's block sizes"""
    least: int
    most: int
    """bounds of the number"""

    @classmethod
    def of(cls, size: int, number: int, least: int, most: int) -> BlockSize:
        block = cls(size)
        block.number, block.least, block.most = number, least, most
        return block


def _with_symbols(name: str) -> Any:
    """An operator of int that also takes torch's symbolic ints (these know exact ints only)."""
    plain = getattr(int, name)

    def method(self: BlockSize, other: Any) -> Any:
        if isinstance(other, torch.SymInt):
            return _applied(self, other, name)
        return plain(self, other)

    method.__name__ = name
    return method


def _applied(block: BlockSize, other: torch.SymInt, name: str) -> Any:
    number, plain = int(block), name.strip("_")
    if plain[0] == "r" and plain[1:] in _OPERATORS:
        return getattr(operator, plain[1:])(other, number)
    return getattr(operator, plain)(number, other)


_OPERATORS = ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow")
for _name in (*_OPERATORS, *(f"r{n}" for n in _OPERATORS), "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(BlockSize, f"__{_name}__", _with_symbols(f"__{_name}__"))
BlockSize.__hash__ = int.__hash__  # type: ignore[method-assign]


class StackTensor(NamedTuple):
    """Tensors of one shape that a tensor of addresses names: indexed like one of them, with the
    dimensions of the addresses in front.

    `tensor_like`: a host tensor with the dtype, sizes and strides of each; `dev_ptrs`: a device
    value of int64 or uint64 addresses. On the device only.
    """

    tensor_like: torch.Tensor
    dev_ptrs: torch.Tensor
