"""A checkpoint as one set of tensors: one file, or the shards of an index.

What flows in: a path. What flows out: a :class:`Source`: its opened files and, by name, which file
holds a tensor. Opening checks everything that can be known without reading data.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from torch_helion.weights.errors import WeightsError, listed, quoted
from torch_helion.weights.file import WeightFile
from torch_helion.weights.header import TensorInfo
from torch_helion.weights.index import is_index, read_index, resolve, shard_path


class Stored(NamedTuple):
    """One tensor and the file that holds it."""

    name: str
    info: TensorInfo
    file: WeightFile

    @property
    def position(self) -> int:
        """Where its bytes begin in the file."""
        return self.file.header.data_start + self.info.begin


class Source:
    """The opened files of one checkpoint. Use it in a ``with`` block."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve(path)
        self.index: bytes | None = None
        self.files: dict[str, WeightFile] = {}
        """by the name in the folder, as a manifest lists them"""
        self.tensors: dict[str, Stored] = {}
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            if is_index(self.path):
                self._open_shards()
            else:
                file = WeightFile(self.path)
                self._add(os.path.basename(self.path), file, file.header.tensors)
            on_error.pop_all()

    @property
    def folder(self) -> str:
        return os.path.dirname(os.path.abspath(self.path))

    @property
    def metadata(self) -> dict[str, str]:
        """The files' metadata; a key on whose value they do not agree is left out."""
        found: dict[str, str] = {}
        disputed: set[str] = set()
        for file in self.files.values():
            for key, value in file.header.metadata.items():
                if found.setdefault(key, value) != value:
                    disputed.add(key)
        return {key: value for key, value in found.items() if key not in disputed}

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add(self, name: str, file: WeightFile, tensors: dict[str, TensorInfo]) -> None:
        self.files[name] = file
        for tensor, info in tensors.items():
            self.tensors[tensor] = Stored(tensor, info, file)

    def _open_shards(self) -> None:
        self.index, shards = read_index(self.path)
        for shard, names in shards.items():
            path = shard_path(self.path, shard)
            try:
                file = WeightFile(path, follow_links=False)
            except FileNotFoundError as error:
                rule = f"the shard {quoted(shard)} is not there"
                raise WeightsError(rule, self.path, names[0]) from error
            self.files[shard] = file  # so that it is closed whatever comes
            _compare(file, shard, names, self.path)
            self._add(shard, file, file.header.tensors)


def _compare(file: WeightFile, shard: str, names: list[str], index: str) -> None:
    """A shard holds exactly what the index says."""
    held, wanted = file.header.tensors.keys(), set(names)
    if absent := sorted(wanted - held):
        rule = f"the index places {listed(absent)} in the shard {quoted(shard)}, which lacks it"
        raise WeightsError(rule, index, absent[0])
    if extra := sorted(held - wanted):
        rule = (
            f"the shard {quoted(shard)} holds {listed(extra)}, which the index does not place there"
        )
        raise WeightsError(rule, index, extra[0])
