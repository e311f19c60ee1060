"""Migration of a pickle checkpoint to safetensors: nothing in it is executed, little is in memory.

What flows in: the checkpoint's path and that of the new file. What flows out: the file, written
tensor by tensor, and a report of everything the checkpoint named and of everything that is not in
the new file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch

from torch_helion.weights.atomic import replacing
from torch_helion.weights.convert.checkpoint import Checkpoint, read_checkpoint
from torch_helion.weights.convert.tensors import Resolver, StoredTensor
from torch_helion.weights.convert.walk import Found, Walk
from torch_helion.weights.dtypes import NAME_OF, format_shape
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.file import RegularFile
from torch_helion.weights.layout import Entry, build_header, order_of
from torch_helion.weights.memory import Arena, bytes_of
from torch_helion.weights.reading import Progress
from torch_helion.weights.strided import parts_of, plan_gather

_BLOCK = 8 << 20
_PART = 16 << 20
_MOST_GROWTH = 16  # how many times the checkpoint's size the new file may have
_SMALL = 1 << 30


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    report: str | os.PathLike[str] | None = None,
    allow_lost: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the tensors of a pickle checkpoint to a safetensors file; returns the report.

    A tensor that has no place in the new file (sparse, quantised, out of its storage's bounds, ...)
    refuses the conversion, unless ``allow_lost``: then it is listed under "lost". Objects that are
    no tensors are passed over and listed under "skipped".
    """
    if os.path.exists(target) and os.path.samefile(source, target):
        raise WeightsError("the new file cannot be the checkpoint itself", os.fspath(target))
    with RegularFile(source) as file:
        checkpoint = read_checkpoint(file)
        found = Walk(Resolver(checkpoint.find_storage), file.path).run(checkpoint.root)
        checkpoint.root = None
        described = _describe(file, os.fspath(target), checkpoint, found)
        if report is not None:
            with replacing(report) as out:
                text = json.dumps(described, indent=1, ensure_ascii=True, sort_keys=True)
                out.write(text.encode() + b"\n")
        _refuse(file, found, allow_lost)
        _write(file, checkpoint, found.tensors, os.fspath(target), progress)
    return described


def _refuse(file: RegularFile, found: Found, allow_lost: bool) -> None:
    if found.lost and not allow_lost:
        words = "; ".join(f"{name}: {why}" for name, why in found.lost[:20])
        raise WeightsError(
            f"tensors that cannot be converted: {words}", file.path, found.lost[0][0]
        )
    if not found.tensors:
        raise WeightsError("no tensors were found in it", file.path)
    total = sum(tensor.nbytes for tensor in found.tensors.values())
    if total > max(_SMALL, _MOST_GROWTH * file.size):
        raise WeightsError(f"its views would grow {file.size} bytes to {total}: refused", file.path)


def _describe(
    file: RegularFile, target: str, checkpoint: Checkpoint, found: Found
) -> dict[str, Any]:
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, t in found.tensors.items():
        key = (t.storage.key, t.dtype, t.offset, t.shape, t.strides, t.conj, t.neg)
        if t.nbytes:
            groups.setdefault(key, []).append(name)
    return {
        "input": file.path,
        "output": target,
        "format": checkpoint.format,
        "tensors": {
            name: {"dtype": NAME_OF[t.dtype], "shape": list(t.shape), "storage": t.storage.key}
            for name, t in found.tensors.items()
        },
        "tied": [names for names in groups.values() if len(names) > 1],
        "globals": sorted(map(str, checkpoint.globals)),
        "skipped": [{"name": name, "what": what} for name, what in found.skipped],
        "lost": [{"name": name, "why": why} for name, why in found.lost],
    }


# ---------------------------------------------------------------------- streaming


def _write(
    file: RegularFile,
    checkpoint: Checkpoint,
    tensors: dict[str, StoredTensor],
    target: str,
    progress: Progress | None,
) -> None:
    entries = [
        Entry(name, NAME_OF[t.dtype], format_shape(t.dtype, t.shape), t.nbytes)
        for name, t in tensors.items()
    ]
    ordered = order_of(entries, 64)
    header = build_header(ordered, {"format": "pt"}, target)
    with replacing(target) as out:
        out.write(header)
        for entry in ordered:
            tensor = tensors[entry.name]
            if tensor.nbytes == 0:
                continue
            checkpoint.check(file, tensor.storage)
            for block in _blocks(file, tensor):
                out.write(block)
                if progress is not None:
                    progress(len(block))


def _blocks(file: RegularFile, t: StoredTensor) -> Iterator[memoryview]:
    """The tensor's bytes in row-major order."""
    size = t.dtype.itemsize
    begin = t.storage.offset + t.offset * size
    if t.is_plain:
        buffer = memoryview(bytearray(min(_BLOCK, t.nbytes)))
        for at in range(0, t.nbytes, _BLOCK):
            view = buffer[: min(_BLOCK, t.nbytes - at)]
            file.read_exact(begin + at, [view])
            yield view
        return
    strides = [stride * size for stride in t.strides]
    for starts, counts in parts_of(t.shape, strides, size, _PART):
        first = begin + sum(a * s for a, s in zip(starts, strides, strict=True))
        part = _gathered(file, first, counts, strides, t.dtype)
        part = part.conj_physical() if t.conj else part
        yield bytes_of((part.neg() if t.neg else part).contiguous())


def _gathered(
    file: RegularFile, first: int, counts: tuple[int, ...], strides: list[int], dtype: torch.dtype
) -> torch.Tensor:
    gather = plan_gather(counts, strides, dtype.itemsize)
    arena = Arena(gather.nbytes)
    place = arena.take(gather.nbytes)
    view = arena.view(place, gather.nbytes)
    span = gather.span
    for n, run in enumerate(gather.runs()):
        file.read_exact(first + run, [view[n * span : (n + 1) * span]])
    # Strides are whole elements: those of the storage are, and runs are made of elements.
    flat = arena.tensor(place, dtype, (gather.nbytes // dtype.itemsize,))
    return flat.as_strided(counts, [s // dtype.itemsize for s in gather.strides]).contiguous()
