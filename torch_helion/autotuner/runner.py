"""Running candidates where they can do no harm: in a process that can be killed.

In: kernel texts and arenas. Out: seconds; or :class:`Failed`, which says how a candidate failed.
:class:`ChildRunner` talks to the processes of :mod:`torch_helion.autotuner.worker`; what it has
loaded comes back by itself when a candidate has taken the process with it. :class:`LocalRunner`
does the same in this process, for systems without `fork` and for kernels that need its memory.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import torch

from torch_helion import _logging
from torch_helion.autotuner import wire
from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.worker import Host, Memory

log = _logging.get_logger("tune")

START_SECONDS = 60.0
"""A server that is not there by then will not come."""


class Failed(Exception):
    """A candidate failed; the text says how."""


class Unavailable(Exception):
    """The measuring process does not start; the text says why."""


class Hangs(Failed):
    """A candidate took longer than it was given."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A kernel with its arguments, as a runner knows it."""

    number: int
    text: str
    arena: int
    ints: tuple[int, ...]


def _wait(sock: socket.socket, timeout: float) -> None:
    """Until there is something to read. In short waits: a signal that comes just before one does
    not end it, and Ctrl-C would have to wait as long as a candidate that hangs.
    """
    deadline = time.monotonic() + timeout
    while not select.select([sock], [], [], 0.1)[0]:
        if time.monotonic() > deadline:
            raise TimeoutError


class ChildRunner:
    """A process for one search."""

    def __init__(self) -> None:
        self.arenas: dict[int, Arena] = {}
        self.jobs: dict[int, Job] = {}
        self._there: set[int] = set()
        self._attached: set[int] = set()
        self._sock: socket.socket | None = None
        self._pid = 0
        self.starting = 0.0
        """seconds that went into starting processes"""

    # -- what a search does -----------------------------------------------------------------------

    def attach(self, number: int, arena: Arena) -> None:
        """Give arguments a number."""
        self.arenas[number] = arena

    def load(self, job: Job, timeout: float) -> None:
        """Compile a candidate."""
        self.jobs[job.number] = job
        self._ready(job, timeout)

    def run(self, number: int, timeout: float) -> float:
        """One run whose results are kept in the arena; seconds."""
        self._ready(self.jobs[number], timeout)
        return float(self._ask({"do": "run", "number": number}, timeout)["seconds"])

    def time(self, number: int, count: int, fresh: bool, timeout: float) -> float:
        """Seconds of a call."""
        self._ready(self.jobs[number], timeout)
        message = {"do": "time", "number": number, "count": count, "fresh": fresh}
        return float(self._ask(message, timeout)["seconds"])

    def drop(self, numbers: Sequence[int], arenas: Sequence[int] = ()) -> None:
        """Forget candidates and arenas."""
        for number in numbers:
            self.jobs.pop(number, None)
            self._there.discard(number)
        for number in arenas:
            self.arenas.pop(number).close()
            self._attached.discard(number)
        if self._sock is not None:
            with contextlib.suppress(Failed):
                message = {"do": "drop", "kernels": list(numbers), "arenas": list(arenas)}
                self._ask(message, 30.0)

    def close(self) -> None:
        """End the process and let go of the memory."""
        self._end()
        for arena in self.arenas.values():
            arena.close()
        self.arenas.clear()

    # -- the process ------------------------------------------------------------------------------

    def _ready(self, job: Job, timeout: float) -> None:
        """Have the process, its arenas and this kernel in it."""
        if self._sock is None:
            self._start()
        if job.arena not in self._attached:
            arena = self.arenas[job.arena]
            attach = {"do": "attach", "number": job.arena, "layout": arena.layout.to_json()}
            self._ask(attach, START_SECONDS, arena.files)
            self._attached.add(job.arena)
        if job.number not in self._there:
            message = {"do": "load", "number": job.number, "text": job.text, "arena": job.arena}
            self._ask({**message, "ints": list(job.ints)}, timeout)
            self._there.add(job.number)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        start = time.perf_counter()
        with theirs:
            try:
                self._pid = server().fork(theirs.fileno(), torch.get_num_threads())
            except BaseException:
                ours.close()
                raise
        self._sock = ours
        self.starting += time.perf_counter() - start

    def _ask(
        self, message: dict[str, Any], timeout: float, files: Sequence[int] = ()
    ) -> dict[str, Any]:
        assert self._sock is not None
        self._sock.settimeout(timeout)
        try:
            wire.send(self._sock, message, files)
            _wait(self._sock, timeout)
            answer, _ = wire.receive(self._sock)
        except TimeoutError:
            self._end()
            raise Hangs(f"hangs: stopped after {timeout:.1f} s") from None
        except (wire.Closed, wire.Malformed) as error:
            raise Failed(_death(self._end(), error)) from None
        except BaseException:  # an interruption: the answer would be taken for the next one's
            self._end()
            raise
        if "error" in answer:
            raise Failed(str(answer["error"]))
        return answer

    def _end(self) -> int:
        sock, self._sock = self._sock, None
        self._there.clear()
        self._attached.clear()
        if sock is None:
            return 0
        sock.close()
        return server().end(self._pid)


def _death(status: int, error: Exception) -> str:
    if isinstance(error, wire.Malformed):
        return "crashes: overwrites the memory of its process"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"crashes: {signal.Signals(-status).name}"
    return f"crashes: its process ended with status {status}"


class LocalRunner:
    """The same in this process: a candidate that crashes takes the process with it."""

    def __init__(self) -> None:
        self.host = Host()
        self.arenas: dict[int, Arena] = {}
        self.starting = 0.0

    def attach(self, number: int, arena: Arena) -> None:
        """Give arguments a number."""
        self.arenas[number] = arena
        self.host.attach(number, Memory(arena.layout, arena.image, arena.results))

    def load(self, job: Job, timeout: float) -> None:
        """Compile a candidate."""
        with _failing():
            self.host.load(job.number, job.text, job.arena, job.ints)

    def run(self, number: int, timeout: float) -> float:
        """One run whose results are kept in the arena; seconds."""
        with _failing():
            return self.host.run(number)

    def time(self, number: int, count: int, fresh: bool, timeout: float) -> float:
        """Seconds of a call."""
        with _failing():
            return self.host.time(number, count, fresh)

    def drop(self, numbers: Sequence[int], arenas: Sequence[int] = ()) -> None:
        """Forget candidates and arenas."""
        self.host.drop(numbers, arenas)
        for number in arenas:
            self.arenas.pop(number).close()

    def close(self) -> None:
        """Let go of the memory."""
        self.drop([], list(self.arenas))


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------- the server


class ServerProcess:
    """The process that forks runners, as this process sees it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._said: IO[bytes] | None = None
        self._ready = False
        self._lock = threading.RLock()

    def start(self) -> None:
        """Begin to start it; it takes a second or two, which nobody waits for here."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self.stop()
            ours, theirs = socket.socketpair()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
            package = str(pathlib.Path(__file__).resolve().parents[2])
            program = (
                f"import sys; sys.path.insert(0, {package!r}); "
                f"from torch_helion.autotuner.worker import main; main({theirs.fileno()})"
            )
            self._sock, self._ready = ours, False
            with theirs, contextlib.suppress(OSError):  # without a process, nobody answers
                self._process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c", program],
                    stdin=subprocess.DEVNULL,
                    stdout=self._said,
                    stderr=self._said,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for this process alone
                    # Threads that a library starts at import would not survive the forks.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )

    def fork(self, file: int, threads: int) -> int:
        """A new runner that answers on this socket; its process id."""
        with self._lock:
            try:
                self._wait()
                answer = self._ask({"do": "fork", "threads": threads}, [file])
            except (wire.Closed, ConnectionError):  # it went because it was idle
                self.stop()
                self._wait()
                answer = self._ask({"do": "fork", "threads": threads}, [file])
            return int(answer["pid"])

    def end(self, pid: int) -> int:
        """Kill a runner; how it ended, if it had done so before."""
        with self._lock:
            if self._sock is None:
                return 0
            try:
                return int(self._ask({"do": "end", "pid": pid})["status"])
            except (wire.Closed, wire.Malformed, OSError):
                self.stop()
                return 0

    def stop(self) -> None:
        """End the process and all its runners."""
        with self._lock:
            if self._sock is not None:
                self._sock.close()
            if self._process is not None:
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            if self._said is not None:
                self._said.close()
            self._process = self._sock = self._said = None
            self._ready = False

    def forget(self) -> None:
        """In a fork of this process: the server is the parent's."""
        self._lock = threading.RLock()
        if self._sock is not None:
            self._sock.close()
        self._process = self._sock = self._said = None
        self._ready = False

    def _wait(self) -> None:
        self.start()
        assert self._sock is not None
        if self._ready:
            return
        self._sock.settimeout(START_SECONDS)
        try:
            wire.receive(self._sock)
        except (wire.Closed, wire.Malformed, TimeoutError):
            said = self._last_words()
            self.stop()
            raise Unavailable(f"the measuring process does not start: {said}") from None
        self._ready = True

    def _last_words(self) -> str:
        assert self._said is not None
        self._said.seek(0)
        return self._said.read()[-2000:].decode(errors="replace").strip()

    def _ask(self, message: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        assert self._sock is not None
        self._sock.settimeout(START_SECONDS)
        wire.send(self._sock, message, files)
        return wire.receive(self._sock)[0]


_server = ServerProcess()


def server() -> ServerProcess:
    """The server of this process."""
    return _server


def can_fork() -> bool:
    """Whether this system has what the processes are made of."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds") and bool(sys.executable)


atexit.register(_server.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_server.forget)
