"""The measuring processes: a server that holds torch and LLVM, and a fork of it for each search.

In: messages (:mod:`torch_helion.autotuner.wire`): texts of kernels, layouts of tensors, files with
their bytes. Out: seconds, or what went wrong. No object of the user's, and no code but kernels,
comes here; what a kernel does to this process, nobody else sees.

    tuner ── server (one for a process, ends when idle or when the tuner ends)
                └─ runner (a fork: 10 ms; killed at the end of a search, or when it hangs)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from torch_helion import compiler
from torch_helion.autotuner import wire
from torch_helion.autotuner.arena import Layout, map_file

IDLE_SECONDS = 20.0
"""A server without runners ends after this time."""


class Host:
    """Loaded kernels and their memory, wherever they run: in a runner, or in the tuner itself."""

    def __init__(self) -> None:
        self.arenas: dict[int, Memory] = {}
        self.kernels: dict[int, Loaded] = {}

    def attach(self, number: int, memory: Memory) -> None:
        """Give arguments a number."""
        self.arenas[number] = memory

    def load(self, number: int, text: str, arena: int, ints: Sequence[int]) -> None:
        """Compile a kernel for the arguments in an arena."""
        self.kernels[number] = Loaded(compiler.build_kernel(text), self.arenas[arena], list(ints))

    def run(self, number: int) -> float:
        """One run from the image, everything that it did left in the results; seconds."""
        loaded = self.kernels[number]
        loaded.memory.reset()
        seconds = loaded.seconds(1)
        loaded.memory.results.copy_(loaded.memory.work)
        return seconds

    def time(self, number: int, count: int, fresh: bool) -> float:
        """Seconds of a call, over ``count`` calls; ``fresh``: each on memory as it was."""
        loaded = self.kernels[number]
        if not fresh:
            return loaded.seconds(count)
        total = 0.0
        for _ in range(count):
            loaded.memory.reset()
            total += loaded.seconds(1)
        return total / count

    def drop(self, kernels: Sequence[int], arenas: Sequence[int]) -> None:
        """Forget them."""
        for number in kernels:
            self.kernels.pop(number, None)
        for number in arenas:
            self.arenas.pop(number, None)


class Memory:
    """The image of a kernel's arguments, private memory to work on, and the place for results."""

    def __init__(self, layout: Layout, image: torch.Tensor, results: torch.Tensor) -> None:
        self.image, self.results = image, results
        self.work = torch.empty(layout.size, dtype=torch.uint8)
        self.tensors = [view.of(self.work) for view in layout.views]
        self.reset()

    def reset(self) -> None:
        """The image again."""
        self.work.copy_(self.image)


class Loaded:
    """A kernel with its arguments."""

    def __init__(self, kernel: Any, memory: Memory, ints: list[int]) -> None:
        self.kernel, self.memory = kernel, memory
        self.arguments = (*memory.tensors, *ints)

    def seconds(self, count: int) -> float:
        """Mean seconds of so many calls in a row."""
        kernel, arguments = self.kernel, self.arguments
        start = time.perf_counter()
        for _ in range(count):
            kernel(*arguments)
        return (time.perf_counter() - start) / count


# ---------------------------------------------------------------------- a runner


def serve(sock: socket.socket) -> None:
    """Answer one search until it ends."""
    host = Host()
    while True:
        try:
            message, files = wire.receive(sock, files=2)
        except (wire.Closed, wire.Malformed):
            return
        try:
            answer = _answer(host, message, files)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            for file in files:
                os.close(file)
        try:
            wire.send(sock, answer)
        except wire.Closed:
            return


def _answer(host: Host, message: dict[str, Any], files: list[int]) -> dict[str, Any]:
    what = message.pop("do")
    if what == "attach":
        layout = Layout.from_json(message["layout"])
        image = map_file(files[0], layout.size, writable=False)
        results = map_file(files[1], layout.size)
        host.attach(message["number"], Memory(layout, image, results))
        return {}
    method: Any = getattr(host, what) if what in ("load", "run", "time", "drop") else None
    found = method(**message)
    return {} if found is None else {"seconds": found}


def _become_runner(sock: socket.socket, threads: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux: go when the server goes
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with contextlib.suppress(OSError):  # where memory runs out because of a candidate, it goes
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(threads)
    serve(sock)


# ---------------------------------------------------------------------- the server


class Server:
    """Forks runners and ends them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.runners: set[int] = set()

    def serve(self) -> None:
        """Until the tuner is gone, or has not asked for anything for some time."""
        while True:
            self.sock.settimeout(None if self.runners else IDLE_SECONDS)
            try:
                message, files = wire.receive(self.sock, files=1)
                if message["do"] == "fork":
                    answer = {"pid": self._fork(files.pop(), message["threads"])}
                else:
                    answer = {"status": self._end(message["pid"])}
                wire.send(self.sock, answer)
            except (wire.Closed, wire.Malformed, TimeoutError):
                break
        for pid in list(self.runners):
            self._end(pid)

    def _fork(self, file: int, threads: int) -> int:
        pid = os.fork()
        if pid:
            os.close(file)
            self.runners.add(pid)
            return pid
        try:
            self.sock.close()
            _become_runner(socket.socket(fileno=file), threads)
        finally:
            os._exit(0)

    def _end(self, pid: int) -> int:
        """Kill a runner; how it ended, if it had done so before."""
        if pid not in self.runners:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.runners.discard(pid)
        return os.waitstatus_to_exitcode(status)


def main(file: int) -> None:
    """The server's program."""
    warnings.simplefilter("ignore")
    sock = socket.socket(fileno=file)
    from torch_helion.codegen.llvm.target import LLVM  # loaded before forks, not after each

    LLVM.machine()
    try:
        wire.send(sock, {"ready": os.getpid()})
        Server(sock).serve()
    except wire.Closed:
        pass
    os._exit(0)  # nothing to clean up, and no half a second to do it
