"""The dtypes of the format: bits per element, and the dtype of torch that holds them.

What flows in: a name as a header spells it. What flows out: one :class:`Dtype`. A dtype that this
torch lacks can be listed, hashed and verified, but not loaded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from torch_helion.weights.errors import WeightsError


class Dtype(NamedTuple):
    """One row of the table. ``packed``: elements of the format in one element of torch."""

    name: str
    bits: int
    torch: torch.dtype | None
    packed: int = 1

    @property
    def alignment(self) -> int:
        """What an address of this dtype must be a multiple of (complex: of its parts)."""
        if self.torch is None:
            return 1
        return self.torch.itemsize // 2 if self.torch.is_complex else self.torch.itemsize


def _find(name: str) -> torch.dtype | None:
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None


_ROWS = (
    Dtype("BOOL", 8, torch.bool),
    Dtype("F4", 4, _find("float4_e2m1fn_x2"), packed=2),
    Dtype("F6_E2M3", 6, None),
    Dtype("F6_E3M2", 6, None),
    Dtype("U8", 8, torch.uint8),
    Dtype("I8", 8, torch.int8),
    Dtype("F8_E5M2", 8, torch.float8_e5m2),
    Dtype("F8_E4M3", 8, torch.float8_e4m3fn),
    Dtype("F8_E8M0", 8, _find("float8_e8m0fnu")),
    Dtype("F8_E4M3FNUZ", 8, torch.float8_e4m3fnuz),
    Dtype("F8_E5M2FNUZ", 8, torch.float8_e5m2fnuz),
    Dtype("I16", 16, torch.int16),
    Dtype("U16", 16, torch.uint16),
    Dtype("F16", 16, torch.float16),
    Dtype("BF16", 16, torch.bfloat16),
    Dtype("I32", 32, torch.int32),
    Dtype("U32", 32, torch.uint32),
    Dtype("F32", 32, torch.float32),
    Dtype("C64", 64, torch.complex64),
    Dtype("F64", 64, torch.float64),
    Dtype("I64", 64, torch.int64),
    Dtype("U64", 64, torch.uint64),
)

DTYPES: dict[str, Dtype] = {row.name: row for row in _ROWS}
NAME_OF: dict[torch.dtype, str] = {row.torch: row.name for row in _ROWS if row.torch is not None}


def torch_dtype(name: str, file: str | None = None, tensor: str | None = None) -> torch.dtype:
    """The dtype of torch for a dtype of the format, or a refusal."""
    found = DTYPES[name].torch
    if found is None:
        raise WeightsError(f"torch {torch.__version__} has no dtype for {name}", file, tensor)
    return found


def torch_shape(
    name: str, shape: tuple[int, ...], file: str | None = None, tensor: str | None = None
) -> tuple[int, ...]:
    """The shape in torch's elements: two elements of F4 are one of torch's, along the last axis."""
    packed = DTYPES[name].packed
    if packed == 1:
        return shape
    if not shape or shape[-1] % packed:
        raise WeightsError(
            f"{name} of shape {list(shape)}: torch packs {packed} elements of the last axis in "
            "one, which is odd here",
            file,
            tensor,
        )
    return (*shape[:-1], shape[-1] // packed)


def format_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The inverse: the shape that a header gives to a tensor of torch."""
    packed = DTYPES[NAME_OF[dtype]].packed
    return (*shape[:-1], shape[-1] * packed) if packed > 1 and shape else shape
