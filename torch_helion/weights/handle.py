"""``safe_open``: a checkpoint kept open, tensors and slices on demand.

What flows in: a path, a framework (only torch), a device. What flows out: a :class:`SafeOpen` with
the methods that users of the reference know, for single files and for indexes alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from torch_helion.weights.errors import WeightsError
from torch_helion.weights.load import choose_mode, mapped_tensor, read_one, read_tensors, want
from torch_helion.weights.selection import Index
from torch_helion.weights.source import Source, Stored


def safe_open(
    path_or_index: str | os.PathLike[str],
    framework: str = "pt",
    device: str | torch.device | int = "cpu",
    *,
    mode: str = "auto",
) -> SafeOpen:
    """Open a file or an index; its headers are checked at once, data are read when asked for."""
    if framework not in ("pt", "torch", "pytorch"):
        raise ValueError(f"framework must be 'pt', not {framework!r}")
    return SafeOpen(Source(path_or_index), torch.device(device), mode)


class SafeOpen:
    """An opened checkpoint. Tensors that it gave out live on when it is closed."""

    def __init__(self, source: Source, device: torch.device, mode: str) -> None:
        self._source = source
        self._device = device
        self._maps: dict[int, Any] = {}
        self._mode = choose_mode(source, mode, False, torch.device("cpu"))

    def keys(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._source.tensors)

    def offset_keys(self) -> list[str]:
        """All names in the order of their data (of an index: shard by shard)."""
        return list(self._source.tensors)

    def metadata(self) -> dict[str, str] | None:
        """The files' metadata; None if there are none."""
        return self._source.metadata or None

    def get_tensor(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self._get(self._stored(name), None)

    def get_tensors(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Several tensors (default: all), read side by side."""
        stored = [self._stored(name) for name in (self.offset_keys() if names is None else names)]
        if self._mode == "mmap":
            return {s.name: self._get(s, None) for s in stored}
        ordered = sorted(stored, key=lambda s: (s.file.path, s.info.begin))
        found = read_tensors(self._source, [want(s) for s in ordered], self._device)
        return {s.name: found[s.name] for s in stored}

    def get_slice(self, name: str) -> Slice:
        """A tensor to be indexed: ``get_slice("w")[:, 3:7]`` reads only these bytes."""
        return Slice(self, self._stored(name))

    def __enter__(self) -> SafeOpen:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the files back."""
        self._maps.clear()
        self._source.close()

    def _stored(self, name: str) -> Stored:
        try:
            return self._source.tensors[name]
        except KeyError:
            raise WeightsError("there is no such tensor", self._source.path, name) from None

    def _get(self, stored: Stored, index: Index | None) -> torch.Tensor:
        w = want(stored, index)
        if self._device.type == "meta":
            return w.empty("meta")
        if self._mode != "mmap":
            return read_one(w).to(self._device)
        mapping = self._maps.get(id(stored.file))
        if mapping is None:
            mapping = self._maps[id(stored.file)] = stored.file.map()
        return mapped_tensor(mapping, w).to(self._device)


class Slice:
    """One tensor of an opened checkpoint, not read yet."""

    def __init__(self, opened: SafeOpen, stored: Stored) -> None:
        self._opened = opened
        self._stored = stored

    def get_shape(self) -> list[int]:
        """The shape as torch has it."""
        return list(want(self._stored).full_shape)

    def get_dtype(self) -> str:
        """The dtype's name in the format."""
        return self._stored.info.dtype

    def __getitem__(self, index: Index) -> torch.Tensor:
        return self._opened._get(self._stored, index if isinstance(index, tuple) else (index,))
