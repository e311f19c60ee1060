"""Loading a checkpoint into tensors: mapped, or read; whole, or the slices of a plan.

What flows in: a path (file, index or folder) and how. What flows out: tensors by name. This file
decides the way and plans the memory; ``reading`` moves the bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from torch_helion.weights import manifest as manifests
from torch_helion.weights import staging
from torch_helion.weights.dtypes import DTYPES, torch_dtype, torch_shape
from torch_helion.weights.errors import WeightsError, listed
from torch_helion.weights.memory import Arena, padded, plain, tensor_over
from torch_helion.weights.reading import (
    HostSink,
    Job,
    Piece,
    Progress,
    Sink,
    new_digest,
    plan_jobs,
    read_all,
)
from torch_helion.weights.selection import Index, Selection, byte_strides, select
from torch_helion.weights.source import Source, Stored
from torch_helion.weights.strided import Gather, parts_of, plan_gather

MODES = ("auto", "mmap", "read")
_PART = 32 << 20  # bytes of one part of a selection that is read in parts
Plan = Mapping[str, Index | None]
Verify = bool | str | os.PathLike[str] | None


def load_file(
    path_or_index: str | os.PathLike[str],
    device: str | torch.device | int = "cpu",
    *,
    mode: str = "auto",
    threads: int | None = None,
    verify: Verify = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Every tensor of a file or of the shards of an index, by name.

    ``mode="mmap"`` gives views of a private mapping (instant, read on first touch); ``"read"``
    gives memory of its own, filled by several threads. ``"auto"`` maps local files and reads when
    verifying, from network and FUSE file systems, for other devices, and where the file's places
    do not suit its dtypes. ``verify`` names a manifest (True: the one beside the file): then the
    sha256 of exactly the bytes that land is compared. ``plan`` (name → index, None for the whole
    tensor) loads only these names, and of each only these bytes.
    """
    where = torch.device(device)
    with Source(path_or_index) as source:
        expected = manifests.expected_for(source, verify)
        wanted = wanted_of(source, plan)
        if where.type == "meta":
            return {w.name: w.empty("meta") for w in wanted}
        if choose_mode(source, mode, expected is not None, where) == "mmap":
            return {name: t.to(where) for name, t in _mapped(wanted).items()}
        return read_tensors(source, wanted, where, threads, expected, progress)


class Wanted(NamedTuple):
    """One tensor to load, or a selection of it."""

    stored: Stored
    dtype: torch.dtype
    full_shape: tuple[int, ...]
    selection: Selection | None

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.full_shape if self.selection is None else self.selection.shape

    def empty(self, device: str | torch.device) -> torch.Tensor:
        """A tensor of this shape and dtype, not filled."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)

    def chosen(self, whole: torch.Tensor) -> torch.Tensor:
        """The selection of the whole tensor, contiguous."""
        s = self.selection
        if s is None:
            return whole
        strides = [st * step for st, step in zip(whole.stride(), s.steps, strict=True)]
        start = sum(int(st) * n for st, n in zip(whole.stride(), s.starts, strict=True))
        if 0 in s.counts:
            return self.empty(whole.device)
        start += int(whole.storage_offset())
        return plain(whole.as_strided(s.counts, strides, start).reshape(s.shape))


def want(stored: Stored, index: Index | None = None) -> Wanted:
    """Resolve an index for a stored tensor; a dtype that torch lacks is refused here."""
    name, info, file = stored
    dtype = torch_dtype(info.dtype, file.path, name)
    shape = torch_shape(info.dtype, info.shape, file.path, name)
    if index is None:
        return Wanted(stored, dtype, shape, None)
    selection = select(index, shape)
    return Wanted(stored, dtype, shape, None if selection.is_whole(shape) else selection)


def wanted_of(source: Source, plan: Plan | None) -> list[Wanted]:
    """What to load, in the order of the files; names that are not there are refused at once."""
    if plan is None:
        return [want(stored) for stored in source.tensors.values()]
    if missing := sorted(set(plan) - source.tensors.keys()):
        raise WeightsError(f"the plan names {listed(missing)}, not there", source.path, missing[0])
    return [want(stored, plan[name]) for name, stored in source.tensors.items() if name in plan]


def choose_mode(source: Source, mode: str, verifying: bool, device: torch.device) -> str:
    """``"mmap"`` or ``"read"``."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "mmap" and verifying:
        raise ValueError(
            "mode='mmap' cannot be verified: a mapped file may change after it was hashed"
        )
    if mode != "auto":
        return mode
    files = source.files.values()
    if verifying or device.type != "cpu" or any(f.header.alignment == "none" for f in files):
        return "read"
    return "read" if any(file.remote_kind() for file in files) else "mmap"


# ---------------------------------------------------------------------- mapped


def _mapped(wanted: list[Wanted]) -> dict[str, torch.Tensor]:
    maps: dict[int, Any] = {}
    found = {}
    for w in wanted:
        file = w.stored.file
        if (mapping := maps.get(id(file))) is None:
            mapping = maps[id(file)] = file.map()
        found[w.name] = mapped_tensor(mapping, w)
    return found


def mapped_tensor(mapping: Any, w: Wanted) -> torch.Tensor:
    """A view of the mapping; a copy where the tensor lies at a place that its dtype cannot take."""
    stored = w.stored
    position = stored.position
    if position % DTYPES[stored.info.dtype].alignment:
        return read_one(w)
    return w.chosen(tensor_over(mapping, position, w.dtype, w.full_shape))


# ---------------------------------------------------------------------- read


class _Landing(NamedTuple):
    """Where one tensor's bytes land, and how they become the tensor."""

    pieces: list[Piece]
    finish: Callable[[], torch.Tensor]


def read_tensors(
    source: Source,
    wanted: list[Wanted],
    device: torch.device,
    threads: int | None = None,
    expected: manifests.Expected | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Read into fresh memory of the device; compare digests before anything is handed out."""
    ops = staging.ops_for(device)
    landings: dict[str, _Landing] = {}
    digests: dict[str, Any] = {}
    jobs: list[Job] = []
    by_file: dict[int, list[Wanted]] = {}
    for w in wanted:
        by_file.setdefault(id(w.stored.file), []).append(w)
    for group in by_file.values():
        pieces: list[Piece] = []
        arena = Arena(sum(padded(_room(w, ops, expected)) for w in group))
        for w in group:
            digest = new_digest() if expected is not None else None
            if digest is not None:
                digests[w.name] = digest
            landing = landings[w.name] = _land(w, arena, ops, digest)
            pieces += landing.pieces
        jobs += plan_jobs(group[0].stored.file, pieces)
    run_jobs(jobs, threads, ops, progress)
    if expected is not None:
        expected.compare({name: d.hexdigest() for name, d in digests.items()}, source)
    tensors = {name: landing.finish() for name, landing in landings.items()}
    return {name: t if t.device == device else t.to(device) for name, t in tensors.items()}


def run_jobs(
    jobs: list[Job],
    threads: int | None,
    ops: staging.DeviceOps | None,
    progress: Progress | None = None,
) -> None:
    """Jobs for the ring go through it, the others straight to memory."""
    host = [j for j in jobs if not isinstance(j.chunks[0][0].target, torch.Tensor)]
    ring = [j for j in jobs if isinstance(j.chunks[0][0].target, torch.Tensor)]
    if host:
        read_all(host, threads, HostSink, progress)
    if ring:
        assert ops is not None

        def make_sink() -> Sink:
            return staging.StagingSink(ops)

        read_all(ring, threads, make_sink, progress)


def _gather(w: Wanted) -> Gather | None:
    """How to read a selection with few bytes around; None if it is empty or needs parts."""
    s = w.selection
    assert s is not None
    if 0 in s.counts:
        return None
    strides = selection_strides(w)
    gather = plan_gather(s.counts, strides, w.dtype.itemsize)
    room = 2 * math.prod(s.counts) * w.dtype.itemsize + _PART
    return None if gather.cut or gather.nbytes > room else gather


def selection_strides(w: Wanted) -> list[int]:
    """Byte strides in the file of a selection's dimensions."""
    assert w.selection is not None
    strides = byte_strides(w.full_shape, w.dtype.itemsize)
    return [stride * step for stride, step in zip(strides, w.selection.steps, strict=True)]


def _room(w: Wanted, ops: staging.DeviceOps | None, expected: object) -> int:
    """Bytes of the arena that a tensor takes."""
    if w.selection is None or expected is not None:
        staged = ops is not None and w.selection is None
        return 0 if staged else w.stored.info.nbytes
    gather = _gather(w)
    return gather.nbytes if gather is not None else 0


def _land(w: Wanted, arena: Arena, ops: staging.DeviceOps | None, digest: Any) -> _Landing:
    nbytes = w.stored.info.nbytes
    if w.selection is None and ops is not None:
        flat = ops.empty(nbytes)
        piece = Piece(w.stored.position, flat, nbytes, digest)
        return _Landing([piece], lambda: flat.view(w.dtype).reshape(w.shape))
    if w.selection is None or digest is not None:  # a digest is of the whole tensor
        place = arena.take(nbytes)
        piece = Piece(w.stored.position, arena.view(place, nbytes), nbytes, digest)
        return _Landing([piece], lambda: w.chosen(arena.tensor(place, w.dtype, w.full_shape)))
    gather = _gather(w)
    if gather is None:
        return _Landing([], lambda: read_one(w))
    place = arena.take(gather.nbytes)
    pieces = _gather_pieces(w, gather, arena.view(place, gather.nbytes))
    return _Landing(pieces, lambda: _gathered(w, gather, arena, place))


def _gather_pieces(w: Wanted, gather: Gather, view: memoryview) -> list[Piece]:
    assert w.selection is not None
    strides = byte_strides(w.full_shape, w.dtype.itemsize)
    first = w.stored.position + sum(map(int.__mul__, strides, w.selection.starts))
    span = gather.span
    return [
        Piece(first + run, view[n * span : (n + 1) * span], span)
        for n, run in enumerate(gather.runs())
    ]


def _gathered(w: Wanted, gather: Gather, arena: Arena, place: int) -> torch.Tensor:
    assert w.selection is not None
    size = w.dtype.itemsize
    flat = arena.tensor(place, w.dtype, (gather.nbytes // size,))
    strides = [stride // size for stride in gather.strides]
    return plain(flat.as_strided(w.selection.counts, strides).reshape(w.shape))


def read_one(w: Wanted) -> torch.Tensor:
    """One tensor or selection by reads of this thread, whatever its size and strides."""
    s = w.selection
    if s is None or 0 in s.counts:
        arena = Arena(padded(w.stored.info.nbytes) if s is None else 0)
        if s is not None:
            return w.empty("cpu")
        return _read_landing(w, arena)
    if (gather := _gather(w)) is not None:
        return _read_landing(w, Arena(padded(gather.nbytes)))
    whole = torch.empty(s.counts, dtype=w.dtype)
    for starts, counts in parts_of(s.counts, selection_strides(w), w.dtype.itemsize, _PART):
        inside = zip(s.starts, starts, s.steps, strict=True)
        part = Selection(
            tuple(a + b * step for a, b, step in inside), s.steps, tuple(counts), tuple(counts)
        )
        box = tuple(slice(a, a + n) for a, n in zip(starts, counts, strict=True))
        whole[box].copy_(_read_part(w._replace(selection=part)))
    return whole.reshape(s.shape)


def _read_landing(w: Wanted, arena: Arena) -> torch.Tensor:
    landing = _land(w, arena, None, None)
    read_all(plan_jobs(w.stored.file, landing.pieces), 1)
    return landing.finish()


def _read_part(w: Wanted) -> torch.Tensor:
    """A part that parts_of found to be small enough."""
    assert w.selection is not None
    gather = plan_gather(w.selection.counts, selection_strides(w), w.dtype.itemsize)
    arena = Arena(padded(gather.nbytes))
    place = arena.take(gather.nbytes)
    pieces = _gather_pieces(w, gather, arena.view(place, gather.nbytes))
    read_all(plan_jobs(w.stored.file, pieces), 1)
    return _gathered(w, gather, arena, place)
