"""The target's element types, and numbers as literals of them."""

from __future__ import annotations

import math

import torch

from torch_helion import exc

NAMES: dict[torch.dtype, str] = {
    torch.bool: "tl.int1",
    torch.int8: "tl.int8",
    torch.int16: "tl.int16",
    torch.int32: "tl.int32",
    torch.int64: "tl.int64",
    torch.uint8: "tl.uint8",
    torch.uint16: "tl.uint16",
    torch.uint32: "tl.uint32",
    torch.uint64: "tl.uint64",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32",
    torch.float64: "tl.float64",
    torch.float8_e4m3fn: "tl.float8e4nv",
    torch.float8_e5m2: "tl.float8e5",
}

Number = float | int | bool

# A bare number next to a tensor of these dtypes is taken as one of that dtype.
_BARE = (torch.bool, torch.int32, torch.int64, torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in NAMES:
        raise exc.CodegenError(f"triton: no tiles of {dtype}")
    return NAMES[dtype]


def plain(number: Number, dtype: torch.dtype) -> str:
    """The number as Python writes it."""
    if dtype is torch.bool:
        return str(bool(number))
    if not dtype.is_floating_point:
        return str(int(number))
    value = float(number)
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def is_bare(number: Number, dtype: torch.dtype) -> bool:
    """Whether the plain text keeps its value and dtype wherever another operand has the dtype."""
    if dtype not in _BARE:
        return False
    if dtype is not torch.float32:
        return True
    value = abs(float(number))
    return _normal(value) and not _minus_zero(number)


def _normal(value: float) -> bool:
    return not math.isfinite(value) or value == 0 or 2.0**-126 <= value <= 3.4e38


def _minus_zero(number: Number) -> bool:
    return isinstance(number, float) and number == 0 and math.copysign(1, number) < 0


def typed(number: Number, dtype: torch.dtype, shape: str = "[]") -> str:
    """The number as a tile of its own."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        return f"{typed(number, torch.float32, shape)}.to({dtype_name(dtype)})"
    if dtype.is_floating_point and _minus_zero(number):  # tl.full loses the sign
        bits = torch.int32 if dtype is torch.float32 else torch.int64
        least = typed(torch.iinfo(bits).min, bits, shape)
        return f"{least}.to({dtype_name(dtype)}, bitcast=True)"
    return f"tl.full({shape}, {plain(number, dtype)}, {dtype_name(dtype)})"
