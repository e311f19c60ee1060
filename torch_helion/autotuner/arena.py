"""Memory that candidates run on: copies of a kernel's tensors with poison between them.

In: the tensors of a launch. Out: an :class:`Arena`: their image (what every run starts from) and
the place where a run leaves everything it did, both of which another process can map. What a
candidate may write is known, so a byte that changed anywhere else is found.

The poison is a NaN in every floating format of two bytes and more: what is read outside of a tensor
spoils the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torch_helion import _hardware, exc

PAGE = 4096
GAP = 2 * PAGE
"""Poisoned bytes around the memory of each tensor."""
SHARE_OF_MEMORY = 8
"""An arena may take this part of the machine's memory."""


@dataclasses.dataclass(frozen=True)
class View:
    """One tensor inside of an arena; ``offset`` in bytes."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, data: torch.Tensor) -> torch.Tensor:
        """The tensor in ``data``, the bytes of an arena."""
        dtype = getattr(torch, self.dtype)
        flat = data.view(dtype)
        return torch.as_strided(flat, self.sizes, self.strides, self.offset // dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tensors of one launch lie."""

    size: int
    views: tuple[View, ...]

    def to_json(self) -> dict[str, Any]:
        """As a message holds it."""
        return {"size": self.size, "views": [dataclasses.astuple(v) for v in self.views]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Layout:
        """What :meth:`to_json` gave."""
        rows = values["views"]
        views = tuple(View(d, tuple(n), tuple(s), int(at)) for d, n, s, at in rows)
        return cls(int(values["size"]), views)


def _poison(number: int) -> int:
    """As int16. A NaN, and a signalling one in most formats: what is computed from it is another.
    Each tensor has its own: what is copied to the next one is seen.
    """
    return 0xFF81 + number % 62 - (1 << 16)


class Arena:
    """The image of a launch's memory, and what the last run made of it."""

    def __init__(self, tensors: Sequence[torch.Tensor], written: Sequence[int]) -> None:
        self.written = tuple(written)
        self.layout, groups = _plan(tensors)
        if 3 * self.layout.size > _hardware.probe().memory // SHARE_OF_MEMORY:
            raise exc.TooLargeToTune(self.layout.size >> 20)
        self.files = [_new_file(self.layout.size) for _ in range(2)]
        self.image, self.results = (map_file(f, self.layout.size) for f in self.files)
        for number, group in enumerate(groups):
            self.image.view(torch.int16)[group.first_gap // 2 :].fill_(_poison(number))
            group.copy_to(self.image)
        self._reset_results()

    def close(self) -> None:
        """Let go of the files; mapped memory goes when its last tensor does."""
        while self.files:
            os.close(self.files.pop())

    def tensors(self, data: torch.Tensor) -> list[torch.Tensor]:
        """The launch's tensors in the image or in the results."""
        return [view.of(data) for view in self.layout.views]

    def outputs(self) -> list[torch.Tensor]:
        """Copies of what the last run left in the tensors that may be written."""
        return [self.layout.views[n].of(self.results).clone() for n in self.written]

    def stray_write(self, names: Sequence[str]) -> str | None:
        """Where the last run wrote though it may not, in words. The results are used up."""
        for number in self.written:
            source, target = (self.layout.views[number].of(d) for d in (self.image, self.results))
            _once_each(target).copy_(_once_each(source))
        if torch.equal(self.image.view(torch.int64), self.results.view(torch.int64)):
            return None
        place = int((self.image != self.results).to(torch.uint8).argmax())
        self._reset_results()
        return self._place(place, names)

    def _reset_results(self) -> None:
        self.results.copy_(self.image)

    def _place(self, byte: int, names: Sequence[str]) -> str:
        best, distance = "", 1 << 62
        for name, view in zip(names, self.layout.views, strict=True):
            start, end = view.offset, view.offset + _bytes_of(view)
            if start <= byte < end:
                return f"writes into {name!r}, which it may only read or has gaps there"
            away = start - byte if byte < start else byte - end + 1
            if away < distance:
                side = "before" if byte < start else "behind"
                best, distance = (
                    f"writes outside of its buffers, {away} bytes {side} {name!r}",
                    away,
                )
        return best


def map_file(file: int, size: int, writable: bool = True) -> torch.Tensor:
    """The bytes of a file as a tensor; the mapping lives as long as the tensor."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return torch.frombuffer(mmap.mmap(file, size, access=access), dtype=torch.uint8)


def _new_file(size: int) -> int:
    """An open file without a name: nothing is left of it when nobody has it open."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("torch_helion_arena", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    with _closed_on_error(file):
        os.ftruncate(file, size)
    return file


@contextlib.contextmanager
def _closed_on_error(file: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(file)
        raise


# -- where what lies ------------------------------------------------------------------------------


@dataclasses.dataclass
class _Group:
    """Tensors of one storage, which keep their places relative to each other."""

    tensors: list[torch.Tensor]
    low: int
    high: int
    offset: int = 0
    """of the byte at address ``low``"""

    @property
    def first_gap(self) -> int:
        """Where the poison before the group begins."""
        return self.offset // PAGE * PAGE - PAGE

    def copy_to(self, image: torch.Tensor) -> None:
        first = self.tensors[0]
        whole = torch.empty(0, dtype=torch.uint8).set_(first.untyped_storage())
        start = self.low - first.untyped_storage().data_ptr()
        place = image[self.offset : self.offset + self.high - self.low]
        gaps = self._gaps()
        if gaps is None:
            place.copy_(whole[start : start + self.high - self.low])
            return
        width = first.element_size()
        source = whole[start : start + self.high - self.low].view(-1, width)
        place.view(-1, width)[~gaps] = source[~gaps]

    def _gaps(self) -> torch.Tensor | None:
        """Elements of the range that belong to no tensor; None: there are none to speak of."""
        widths = {t.element_size() for t in self.tensors}
        most = max(sum(t.numel() * t.element_size() for t in self.tensors), 1)
        if len(widths) > 1 or most >= self.high - self.low:
            return None
        width = widths.pop()
        gaps = torch.ones((self.high - self.low) // width, dtype=torch.bool)
        for t in self.tensors:
            at = (t.data_ptr() - self.low) // width
            _once_each(torch.as_strided(gaps, t.shape, t.stride(), at)).fill_(False)
        return gaps


def _plan(tensors: Sequence[torch.Tensor]) -> tuple[Layout, list[_Group]]:
    groups: dict[int, _Group] = {}
    for t in tensors:
        if t.data_ptr() % t.element_size():
            raise exc.AutotuneError("an argument lies at an address that its dtype does not have")
        if not t.numel():
            continue
        key, low = t.untyped_storage().data_ptr(), t.data_ptr()
        high = low + _extent(t.shape, t.stride()) * t.element_size()
        group = groups.setdefault(key, _Group([], low, high))
        group.tensors.append(t)
        group.low, group.high = min(group.low, low), max(group.high, high)
    cursor = 0
    for group in groups.values():
        group.offset = -(-(cursor + GAP) // PAGE) * PAGE + group.low % 64
        cursor = group.offset + group.high - group.low
    size = -(-(cursor + GAP) // PAGE) * PAGE
    return Layout(size, tuple(_view(t, groups) for t in tensors)), list(groups.values())


def _view(t: torch.Tensor, groups: dict[int, _Group]) -> View:
    offset = 0
    if t.numel():
        group = groups[t.untyped_storage().data_ptr()]
        offset = group.offset + t.data_ptr() - group.low
    name = str(t.dtype).removeprefix("torch.")
    return View(name, tuple(t.shape), tuple(t.stride()), offset)


def _bytes_of(view: View) -> int:
    return _extent(view.sizes, view.strides) * getattr(torch, view.dtype).itemsize


def _extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to one past the last."""
    return 0 if 0 in sizes else 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))


def _once_each(t: torch.Tensor) -> torch.Tensor:
    """The tensor without the repetitions of expanded dimensions."""
    for dim, step in enumerate(t.stride()):
        if step == 0 and t.shape[dim] > 1:
            t = t.narrow(dim, 0, 1)
    return t
