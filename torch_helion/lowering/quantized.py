"""The integers of a quantised weight, as tiles: where each lies in its bytes, what it stands for.

In: a `Packing`, an axis along which a row of bytes runs. Out: for each position along the axis, the
byte to read, the integer in it, the group of neighbours that it belongs to; positions are int64
tiles, integers are float32 (which holds them exactly). Targets know the operations that are made
here (`codegen/llvm/quantized.py`): a product with such an operand never stores it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion.ir.types import Axis

NIBBLE = 15


@dataclass(frozen=True)
class Packing:
    """How integers lie in bytes."""

    bits: int = 8
    """8: one a byte, by the byte's own dtype. 4: two a byte."""
    halves: bool = False
    """Of nibbles: one of each byte belongs to the first half of a row, the other to the second;
    else they are neighbours."""
    high_first: bool = False
    """Of nibbles: the one of the four high bits comes first."""
    signed: bool = False
    """Of nibbles: 8 to 15 stand for -8 to -1."""
    offset: int = 0
    """What is subtracted from each."""

    def value(self, integer: int) -> float:
        """What an integer, as it lies in memory, stands for."""
        if self.bits == 4 and self.signed:
            integer = (integer ^ 8) - 8
        return float(integer - self.offset)


def integers(b: Any, packing: Packing, read: Callable[[Any], Any], axis: Axis) -> Any:
    """A float32 tile; `read`: the bytes at these positions along a row (None: at the axis's own).

    The length of the axis is a number.
    """
    if packing.bits == 8:
        number = b.cast(read(None), torch.float32)
    else:
        place, shift = _nibble(b, packing, axis)
        byte = b.cast(read(place), torch.int64)
        nibble = b.pointwise("and", b.pointwise("shr", byte, shift), _integer(b, NIBBLE))
        if packing.signed:
            nibble = b.pointwise("sub", b.pointwise("xor", nibble, _integer(b, 8)), _integer(b, 8))
        number = b.cast(nibble, torch.float32)
    if packing.offset:
        number = b.pointwise("sub", number, b.const(float(packing.offset), torch.float32))
    return number


def _integer(b: Any, value: int) -> Any:
    return b.const(value, torch.int64)


def _nibble(b: Any, packing: Packing, axis: Axis) -> tuple[Any, Any]:
    """Of each position: its byte, and how far its four bits are from the lowest."""
    i = b.iota(axis)
    if packing.halves:
        half = _integer(b, int(axis.size) // 2)
        upper = b.pointwise("ge", i, half)
        place = b.pointwise("where", upper, b.pointwise("sub", i, half), i)
        shifts = [_integer(b, 0), _integer(b, 4)]
        first, second = shifts[::-1] if packing.high_first else shifts
        return place, b.pointwise("where", upper, second, first)
    odd = b.pointwise("and", i, _integer(b, 1))
    if packing.high_first:
        odd = b.pointwise("xor", odd, _integer(b, 1))
    return b.pointwise("shr", i, _integer(b, 1)), b.pointwise("shl", odd, _integer(b, 2))


def group(b: Any, length: int, axis: Axis) -> Any:
    """The number of the group of `length` neighbours that each position belongs to."""
    i = b.iota(axis)
    if length & (length - 1) == 0:
        return b.pointwise("shr", i, _integer(b, length.bit_length() - 1))
    return b.pointwise("floordiv", i, _integer(b, length))


def scaled(b: Any, integer: Any, zero: Any | None, scale: Any | None) -> Any:
    """(integer - zero) * scale in float32; both may be of another dtype."""
    if zero is not None:
        integer = b.pointwise("sub", integer, b.cast(zero, torch.float32))
    if scale is not None:
        integer = b.pointwise("mul", integer, b.cast(scale, torch.float32))
    return integer
