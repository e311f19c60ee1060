"""Host memory that files are read into: an arena of huge pages, or what a tensor already owns.

What flows in: sizes, or live tensors. What flows out: writable views of bytes for ``preadv``, and
tensors over the same bytes. How its pages come is the business of ``pages``.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

import torch

from torch_helion.weights.pages import HUGE_PAGE, ask_for_huge

ALIGNMENT = 64


class Arena:
    """One anonymous private mapping, taken piece by piece; tensors in it keep it alive."""

    def __init__(self, size: int) -> None:
        self.size = size
        huge = size >= 2 * HUGE_PAGE
        self._base = 0
        self._next = 0
        self._map: Any = _anonymous(size + HUGE_PAGE if huge else max(size, 1))
        if huge:
            address = address_of(self._map)
            self._base = -address % HUGE_PAGE
            ask_for_huge(self._map, address, size + HUGE_PAGE)
        self._view = memoryview(self._map)

    def take(self, nbytes: int) -> int:
        """The place of ``nbytes`` fresh bytes, aligned for every dtype."""
        place = self._next
        self._next = padded(place + nbytes)
        assert self._next <= padded(self.size), "the arena was planned too small"
        return place

    def view(self, place: int, nbytes: int) -> memoryview:
        """The bytes there, for writing."""
        return self._view[self._base + place : self._base + place + nbytes]

    def tensor(self, place: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A contiguous tensor over the bytes there."""
        return tensor_over(self._map, self._base + place, dtype, shape)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, with the strides of a fresh tensor also where a size of 1 makes them moot."""
    tensor = tensor.contiguous()
    strides, step = [], 1
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= max(size, 1)
    return tensor.as_strided(tensor.shape, strides[::-1])


def padded(nbytes: int) -> int:
    """Rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def tensor_over(buffer: Any, place: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A tensor over the bytes of ``buffer`` from ``place`` on, with a storage of its own."""
    count = 1
    for n in shape:
        count *= n
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=place).view(shape)


def address_of(buffer: Any) -> int:
    """Where a writable buffer lies."""
    return torch.frombuffer(buffer, dtype=torch.uint8, count=1).data_ptr()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, for reading and writing; it is kept alive."""
    assert tensor.device.type == "cpu" and tensor.is_contiguous()
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0:
        return memoryview(bytearray())
    raw = (ctypes.c_char * nbytes).from_address(tensor.data_ptr())
    raw.owner = tensor  # type: ignore[attr-defined]
    return memoryview(raw).cast("B")


def _anonymous(size: int) -> mmap.mmap:
    if hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)
