"""One opened safetensors file: checked when opened, then read at any place by any thread.

What flows in: a path. What flows out: a :class:`WeightFile`: its header, exact reads into given
memory, and a private mapping. All reads come from the one descriptor whose header was checked, so a
file that is replaced meanwhile is no danger; one that is cut short is a :class:`WeightsError`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from torch_helion.weights import filesystem
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.header import Header, parse_header, parse_length

Self = TypeVar("Self", bound="RegularFile")
_IOV_MAX = 1024
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe in the file's place must not block; files never do
)


class RegularFile:
    """A regular file, opened for positional reads."""

    def __init__(self, path: str | os.PathLike[str], follow_links: bool = True) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        nofollow = 0 if follow_links else getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(self.path, _FLAGS | nofollow)
        try:
            status = os.fstat(self._descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
            if not stat.S_ISREG(status.st_mode):
                raise WeightsError("is no regular file", self.path)
        except BaseException:
            self.close()
            raise
        self.size = status.st_size
        self.device = status.st_dev

    def read_exact(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views`` one after another with the bytes from ``offset`` on."""
        left = [view for view in views if len(view)]
        while left:
            try:
                got = self._read_some(offset, left[:_IOV_MAX])
            except InterruptedError:
                continue
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), self.path) from error
            if got == 0:
                raise WeightsError(
                    f"ended at byte {offset} while it was read, it had {self.size} bytes when it "
                    "was opened",
                    self.path,
                )
            offset += got
            left = _behind(left, got)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on; the caller has compared both with ``size``."""
        buffer = bytearray(count)
        self.read_exact(offset, [memoryview(buffer)])
        return bytes(buffer)

    def is_cached(self, offset: int) -> bool:
        """Whether the system says that it holds the byte there in memory."""
        if not (hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")):
            return False
        try:
            return os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:  # it would have to wait, or cannot tell
            return False

    def will_need(self, offset: int, count: int) -> None:
        """Let the disk begin with bytes that are not in memory, while pages for them are made."""
        if hasattr(os, "posix_fadvise") and not self.is_cached(offset):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_WILLNEED)

    def map(self) -> mmap.mmap:
        """A private mapping: writes to it stay in this process, and never reach the file."""
        return mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_COPY)

    def remote_kind(self) -> str | None:
        """The kind of network or user-space file system that this file lies on, if it does."""
        return filesystem.remote_kind(self.device)

    def close(self) -> None:
        """Give the descriptor back; mappings live on."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _read_some(self, offset: int, views: list[memoryview]) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, views, offset)
        with self._lock:  # systems without positional reads
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(views[0]))
        views[0][: len(data)] = data
        return len(data)


class WeightFile(RegularFile):
    """A safetensors file with a good header."""

    def __init__(self, path: str | os.PathLike[str], follow_links: bool = True) -> None:
        super().__init__(path, follow_links)
        try:
            first = self.read_bytes(0, min(8, self.size))
            length = parse_length(first, self.size, self.path)
            text = self.read_bytes(8, length)
            self.header: Header = parse_header(text, self.size - 8 - length, self.path)
            self.header_bytes = first + text
        except BaseException:
            self.close()
            raise


def read_header(path: str | os.PathLike[str]) -> Header:
    """Check a file's header and return it; the data are not read."""
    with WeightFile(path) as file:
        return file.header


def _behind(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``views`` behind their first ``count`` bytes."""
    for place, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[place + 1 :]]
        count -= len(view)
    return []
