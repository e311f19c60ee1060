"""The way to a GPU: chunks land in pinned host memory and go on by asynchronous copies.

What flows in: pieces whose targets are flat byte tensors on a device. What flows out: the same
bytes there, hashed on the way where asked. Each reader thread owns a ring of pinned buffers: while
one is being copied, the next is being read; a buffer is reused only when its copy has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from torch_helion.weights.file import RegularFile
from torch_helion.weights.memory import bytes_of
from torch_helion.weights.reading import CHUNK, Piece

RING = 3


class DeviceOps(Protocol):
    """What the ring needs of a device; a test puts a fake in its place."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """Flat bytes on the device."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Flat bytes on the host that the device can copy from by itself."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin a copy and return."""

    def record(self) -> Any:
        """A mark behind all copies begun so far; its ``synchronize()`` waits for them."""


class CudaOps:
    """One stream of copies for all threads of one load."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # Fresh memory may still be in use by work that was queued before it was freed.
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def empty(self, nbytes: int) -> torch.Tensor:
        made = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return made

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def record(self) -> Any:
        return self.stream.record_event()


def ops_for(device: torch.device) -> DeviceOps | None:
    """The operations for a device that is fed by a ring; None for the host and other devices."""
    if device.type == "cuda" and torch.cuda.is_available():
        return CudaOps(device)
    return None


class StagingSink:
    """One thread's ring."""

    def __init__(self, ops: DeviceOps, slots: int = RING, size: int = CHUNK) -> None:
        self.ops = ops
        self.slots = [ops.pinned(size) for _ in range(slots)]
        self.busy: list[Any] = [None] * slots
        self.next = 0

    def land(self, file: RegularFile, chunk: Sequence[Piece]) -> None:
        slot = self.next
        self.next = (slot + 1) % len(self.slots)
        if self.busy[slot] is not None:
            self.busy[slot].synchronize()
            self.busy[slot] = None
        total = sum(piece.nbytes for piece in chunk)
        view = bytes_of(self.slots[slot])[:total]
        file.read_exact(chunk[0].offset, [view])
        at = 0
        for piece in chunk:
            if piece.digest is not None:
                piece.digest.update(view[at : at + piece.nbytes])
            self.ops.copy(piece.target, self.slots[slot][at : at + piece.nbytes])
            at += piece.nbytes
        self.busy[slot] = self.ops.record()

    def finish(self) -> None:
        for event in self.busy:
            if event is not None:
                event.synchronize()
