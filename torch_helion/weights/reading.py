"""Planned reads: pieces of files into memory, by several threads, hashed on the way.

What flows in: pieces (file, offset, where to, which hash). What flows out: filled memory, or the
first error. Pieces become chunks of about 8 MiB (one ``preadv`` each, scattered over all the pieces
that lie side by side in the file); chunks are taken by threads. What is hashed stays in order: all
pieces of one hash are one thread's job.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch_helion.weights.file import RegularFile
from torch_helion.weights.pages import prefault

CHUNK = 8 << 20
_WORTH_ADVICE = 1 << 20
_MOST_PIECES = 1024  # of one chunk: what one system call takes
Progress = Callable[[int], None]


class Piece(NamedTuple):
    """So many bytes of a file, and where they go."""

    offset: int
    target: Any
    """a memoryview, or what the reader's sink understands"""
    nbytes: int
    digest: Any = None
    """a hash object that is to see the bytes, or None"""


class Sink(Protocol):
    """Where one thread's chunks land: straight in memory, or by way of a staging ring."""

    def land(self, file: RegularFile, chunk: Sequence[Piece]) -> None:
        """Read the pieces, which lie side by side in the file, and deliver them."""

    def finish(self) -> None:
        """Return when everything has been delivered."""


@dataclass
class Job:
    """Chunks of one file that one thread reads one after another."""

    file: RegularFile
    chunks: list[list[Piece]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for chunk in self.chunks for piece in chunk)


class HostSink:
    """Pieces whose targets are views of memory."""

    def land(self, file: RegularFile, chunk: Sequence[Piece]) -> None:
        total = sum(piece.nbytes for piece in chunk)
        if total >= _WORTH_ADVICE:
            file.will_need(chunk[0].offset, total)
        for piece in chunk:
            prefault(piece.target)
        file.read_exact(chunk[0].offset, [piece.target for piece in chunk])
        for piece in chunk:
            if piece.digest is not None:
                piece.digest.update(piece.target)

    def finish(self) -> None:
        pass


def new_digest() -> Any:
    return hashlib.sha256()


def plan_jobs(file: RegularFile, pieces: Iterable[Piece], chunk: int = CHUNK) -> list[Job]:
    """Cut pieces, in the order of their offsets, into jobs."""
    jobs: list[Job] = []
    for group in _chunks(pieces, chunk):
        digest = group[0].digest
        follows = jobs and digest is not None and jobs[-1].chunks[-1][-1].digest is digest
        if follows:
            jobs[-1].chunks.append(group)
        else:
            jobs.append(Job(file, [group]))
    return jobs


def read_all(
    jobs: Sequence[Job],
    threads: int | None = None,
    make_sink: Callable[[], Sink] = HostSink,
    progress: Progress | None = None,
) -> None:
    """Do every job; the first error stops the others and is raised here."""
    # The longest first, so that no thread is left with it at the end; equal ones keep their order.
    order = sorted(jobs, key=lambda job: -job.nbytes)
    count = default_threads(order) if threads is None else threads
    run_threads(order, lambda: _reader(make_sink(), progress), count)


def default_threads(jobs: Sequence[Job]) -> int:
    """One per core; at least four where the disk must be waited for."""
    cores = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    some = jobs[:: max(1, len(jobs) // 8)]
    cached = all(job.file.is_cached(job.chunks[0][0].offset) for job in some)
    return cores if cached else max(4, cores)


def run_threads(
    items: Sequence[Any],
    make_worker: Callable[[], tuple[Callable[[Any], None], Callable[[], None]]],
    threads: int,
) -> None:
    """Each item to some thread's worker; ``make_worker`` gives (work, finish) per thread."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    count = min(threads, len(items))
    shared = _Shared(iter(items))
    others = [
        threading.Thread(target=shared.run, args=(make_worker,), name="weights-reader", daemon=True)
        for _ in range(count - 1)
    ]
    for thread in others:
        thread.start()
    if count:
        shared.run(make_worker)
    for thread in others:
        thread.join()
    if shared.error is not None:
        raise shared.error


class _Shared:
    """What the threads of one call have in common: the items left, and the first error."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items = items
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def take(self) -> Any:
        with self.lock:
            return None if self.error is not None else next(self.items, None)

    def run(self, make_worker: Callable[[], Any]) -> None:
        try:
            work, finish = make_worker()
            while (item := self.take()) is not None:
                work(item)
            finish()
        except BaseException as error:  # raised by the caller's thread
            with self.lock:
                self.error = self.error or error


def _reader(
    sink: Sink, progress: Progress | None
) -> tuple[Callable[[Job], None], Callable[[], None]]:
    def work(job: Job) -> None:
        for chunk in job.chunks:
            sink.land(job.file, chunk)
            if progress is not None:
                progress(sum(piece.nbytes for piece in chunk))

    return work, sink.finish


def _chunks(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Groups of pieces that lie side by side; longer pieces are cut."""
    group: list[Piece] = []
    filled, end = 0, -1
    for piece in pieces:
        for part in _cut(piece, size):
            full = filled + part.nbytes > size or len(group) == _MOST_PIECES
            # A hash that goes on over several chunks shares its job with nothing else.
            apart = (
                bool(group)
                and part.digest is not group[-1].digest
                and (part.nbytes == size or group[-1].nbytes == size)
            )
            if group and (full or apart or part.offset != end):
                yield group
                group, filled = [], 0
            group.append(part)
            filled += part.nbytes
            end = part.offset + part.nbytes
    if group:
        yield group


def _cut(piece: Piece, size: int) -> Iterator[Piece]:
    if piece.nbytes <= size:
        if piece.nbytes:
            yield piece
        return
    for at in range(0, piece.nbytes, size):
        count = min(size, piece.nbytes - at)
        yield Piece(piece.offset + at, piece.target[at : at + count], count, piece.digest)
