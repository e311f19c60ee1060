"""What a search shows while it runs: a live line where there is a terminal, a log everywhere.

In: the state of a search. Out: text on standard error (by `rich`, where it is installed) and
records of the logger ``torch_helion.tune``.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from torch_helion import _logging
from torch_helion.autotuner.bench import Bench
from torch_helion.settings import Settings

log = _logging.get_logger("tune")


class Progress:
    """Shows one search: a context manager."""

    def __init__(self, bench: Bench, chosen: Settings, seconds: float) -> None:
        self.bench, self.seconds = bench, seconds
        self.start = time.perf_counter()
        self._live: Any = None
        wanted = chosen.autotune_progress_bar and chosen.autotune_log_level
        if wanted and sys.stderr is not None and sys.stderr.isatty():
            self._live = _live_line()

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._live is not None:
            self._live.update(self.text())
            self._live.stop()

    def update(self) -> None:
        """Something was measured."""
        text = self.text()
        if self._live is not None:
            self._live.update(text)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s", text)

    def text(self) -> str:
        """One line: how far, how many, the best so far."""
        bench, best = self.bench, self.bench.best
        elapsed = time.perf_counter() - self.start
        limit = "" if math.isinf(self.seconds) else f"/{self.seconds:.1f}"
        tried = f"{len(bench.candidates)} tried, {len(bench.rejected)} rejected"
        said = f"tuning {bench.problem.name} {elapsed:.1f}{limit} s: {tried}"
        if best is None:
            return said
        seconds = bench.seconds * best.score
        return f"{said}; best {seconds * 1e6:.1f} us ({1 / best.score:.2f}x) {best.config}"


def _live_line() -> Any:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    return Live(console=Console(stderr=True), refresh_per_second=8, transient=False)
