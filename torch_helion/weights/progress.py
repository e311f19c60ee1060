"""A progress bar on standard error, for work that a person waits for.

What flows in: the total, and counts of bytes from any thread. What flows out: one line that is
redrawn; nothing where standard error is no terminal, nothing for work that ends at once.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

_FIRST_AFTER = 0.3  # seconds
_EVERY = 0.1
_WIDTH = 30


class ProgressBar:
    """Call it with the number of bytes that were done."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = max(total, 1)
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._lock = threading.Lock()
        self._done = 0
        self._begin = time.monotonic()
        self._next = self._begin + _FIRST_AFTER
        self._drawn = False

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._shown and now >= self._next:
                self._next = now + _EVERY
                self._draw(now)

    def close(self) -> None:
        """Remove the line."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _draw(self, now: float) -> None:
        part = min(self._done / self._total, 1.0)
        bar = "#" * int(part * _WIDTH)
        rate = self._done / 1e9 / max(now - self._begin, 1e-9)
        self._stream.write(f"\r{self._what} [{bar:{_WIDTH}}] {part:4.0%} {rate:.2f} GB/s\x1b[K")
        self._stream.flush()
        self._drawn = True
