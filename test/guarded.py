"""Tensors that end (or begin) at an unmapped page, with NaN-filled padding on the other side.

A kernel that touches one byte beyond its buffer faults; one that reads padding inside of the page
sees NaN (floats) or an extreme integer and gives a wrong number.
"""

from __future__ import annotations

import ctypes
import mmap

import torch

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Arena:
    """Pages between two unmapped ones."""

    def __init__(self, size: int) -> None:
        pages = max(1, -(-size // PAGE)) + 2
        self.map = mmap.mmap(-1, pages * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.inner = self.address + PAGE
        self.length = (pages - 2) * PAGE
        for end in (self.address, self.inner + self.length):
            if _libc.mprotect(end, PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype is torch.bool:
        return True
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def guarded_empty(
    size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, side: str = "end"
) -> torch.Tensor:
    """A tensor whose last (side "end") or first (side "start") element touches an unmapped page."""
    count = 0 if 0 in size else 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    needed = count * dtype.itemsize
    arena = _Arena(needed)
    memory = (ctypes.c_char * arena.length).from_address(arena.inner)
    memory.arena = arena  # type: ignore[attr-defined]  # lives as long as the storage
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    full = arena.length // dtype.itemsize
    storage = (
        whole[: full * dtype.itemsize]
        if side == "start"
        else whole[arena.length - full * dtype.itemsize :]
    )
    storage = storage.view(dtype)
    storage.fill_(_poison(dtype))
    offset = 0 if side == "start" else full - count
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


def guarded(tensor: torch.Tensor, side: str = "end") -> torch.Tensor:
    """A copy of `tensor`, with its sizes and strides, at the edge of a page."""
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        return tensor
    copy = guarded_empty(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, side)
    with torch.no_grad():
        copy.copy_(tensor)
    return copy
