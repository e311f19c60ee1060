"""Manifests: the sha256 of each file, header and tensor, as canonical JSON that anyone can sign.

What flows in: a checkpoint, or a manifest's path. What flows out: the manifest's text, or the
digests that a load compares with what it read. A manifest holds no secret and proves no origin by
itself: sign it as a file (``model_signing`` does), then everything it lists is covered.

    {"files": {"model.safetensors": {"alignment": "64", "data_start": 4096, "header_sha256": ...,
      "sha256": ..., "size": ..., "tensors": {"w": {"alignment": 4096, "dtype": "BF16",
      "sha256": ..., "shape": [4, 4]}}}}, "format": "torch_helion.weights.manifest", "version": 1}
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch_helion.weights.errors import WeightsError, listed, quoted
from torch_helion.weights.file import RegularFile, WeightFile
from torch_helion.weights.header import MAX_HEADER, TensorInfo, address_alignment
from torch_helion.weights.memory import Arena
from torch_helion.weights.reading import Progress, new_digest, run_threads
from torch_helion.weights.source import Source
from torch_helion.weights.strict_json import Duplicated, kind_of, parse_json

FORMAT = "torch_helion.weights.manifest"
VERSION = 1
FOLDER_NAME = "torch_helion.manifest.json"
SUFFIX = ".manifest.json"
_HEX = re.compile("[0-9a-f]{64}")
_BLOCK = 1 << 20  # read and hashed at once: it stays in the core's own cache


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says about one file; an index has a size and a digest only."""

    size: int
    sha256: str
    header_sha256: str
    tensors: dict[str, dict[str, Any]]


Manifest = dict[str, FileRecord]


def default_path(source: str) -> str:
    """Where the manifest of a file or an index lies: beside it."""
    if source.lower().endswith(".json"):
        return os.path.join(os.path.dirname(source), FOLDER_NAME)
    return source + SUFFIX


# ---------------------------------------------------------------------- making


def make_manifest(
    source: Source, threads: int | None = None, progress: Progress | None = None
) -> str:
    """The text of the manifest of everything in ``source``."""
    digests = digest_everything(source, threads, progress)
    files: dict[str, Any] = {}
    for shard, file in source.files.items():
        whole, tensors = digests[shard]
        files[shard] = {
            "alignment": file.header.alignment,
            "data_start": file.header.data_start,
            "header_sha256": sha256(file.header_bytes),
            "sha256": whole,
            "size": file.size,
            "tensors": {
                name: _record(info, file.header.data_start, tensors[name])
                for name, info in file.header.tensors.items()
            },
        }
    if source.index is not None:
        name = os.path.basename(source.path)
        files[name] = {"sha256": sha256(source.index), "size": len(source.index)}
    return canonical({"files": files, "format": FORMAT, "version": VERSION})


def canonical(value: Any) -> str:
    """Keys sorted, no blanks, UTF-8, one newline at the end: equal contents are equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text + "\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _record(info: TensorInfo, data_start: int, digest: str) -> dict[str, Any]:
    return {
        "alignment": address_alignment(data_start + info.begin),
        "dtype": info.dtype,
        "sha256": digest,
        "shape": list(info.shape),
    }


def digest_everything(
    source: Source,
    threads: int | None = None,
    progress: Progress | None = None,
    whole: bool = True,
) -> dict[str, tuple[str, dict[str, str]]]:
    """Per file: the digest of all its bytes ("" if not ``whole``), and that of each tensor."""
    parts: dict[str, dict[str, str]] = {shard: {} for shard in source.files}
    wholes = dict.fromkeys(source.files, "")
    items: list[tuple[int, Callable[[memoryview], None]]] = []
    for shard, file in source.files.items():
        if whole:
            items.append((file.size, _whole_item(wholes, shard, file, progress)))
        for name, info in file.header.tensors.items():
            items.append((info.nbytes, _tensor_item(parts[shard], name, file, info, progress)))
    items.sort(key=lambda item: -item[0])  # the long ones first, so that none is left at the end
    run_threads(items, _digest_worker, threads or os.cpu_count() or 1)
    return {shard: (wholes[shard], parts[shard]) for shard in source.files}


def _digest_worker() -> tuple[Callable[[Any], None], Callable[[], None]]:
    scratch = Arena(_BLOCK)
    view = scratch.view(0, _BLOCK)
    return (lambda item: item[1](view)), (lambda: None)


def _whole_item(
    wholes: dict[str, str], shard: str, file: WeightFile, progress: Progress | None
) -> Callable[[memoryview], None]:
    def work(scratch: memoryview) -> None:
        wholes[shard] = _digest(file, 0, file.size, scratch, progress)

    return work


def _tensor_item(
    parts: dict[str, str],
    name: str,
    file: WeightFile,
    info: TensorInfo,
    progress: Progress | None,
) -> Callable[[memoryview], None]:
    def work(scratch: memoryview) -> None:
        position = file.header.data_start + info.begin
        parts[name] = _digest(file, position, info.nbytes, scratch, progress)

    return work


def _digest(
    file: RegularFile, at: int, count: int, scratch: memoryview, progress: Progress | None
) -> str:
    digest = new_digest()
    end = at + count
    while at < end:
        view = scratch[: min(len(scratch), end - at)]
        file.read_exact(at, [view])
        digest.update(view)
        at += len(view)
        if progress is not None:
            progress(len(view))
    return str(digest.hexdigest())


# ---------------------------------------------------------------------- reading


def read_manifest(path: str) -> Manifest:
    """A manifest's records, strictly parsed."""
    with RegularFile(path) as file:
        if file.size > 8 * MAX_HEADER:
            raise WeightsError(f"a manifest of {file.size} bytes is refused", path)
        text = file.read_bytes(0, file.size)
    root = _object(parse_json(text, path, "the manifest"), "the manifest", path)
    if root.get("format") != FORMAT or root.get("version") != VERSION:
        raise WeightsError(f"is no manifest of version {VERSION} (format {FORMAT!r})", path)
    records = _object(root.get("files"), "files", path)
    return {name: _file_record(name, raw, path) for name, raw in records.items()}


def _object(value: Any, what: str, path: str) -> dict[str, Any]:
    if isinstance(value, Duplicated):
        raise WeightsError(f"{what}: the key {quoted(value.key)} comes twice", path)
    if not isinstance(value, dict):
        raise WeightsError(f"{what} must be an object, not {kind_of(value)}", path)
    return value


def _file_record(name: str, raw: Any, path: str) -> FileRecord:
    what = f"file {quoted(name)}"
    record = _object(raw, what, path)
    size = record.get("size")
    if type(size) is not int:
        raise WeightsError(f"{what}: size must be an integer, not {kind_of(size)}", path)
    whole = _hex(record.get("sha256"), what, path)
    if "tensors" not in record:
        return FileRecord(size, whole, "", {})
    header = _hex(record.get("header_sha256"), what, path)
    tensors = _object(record["tensors"], f"{what}: tensors", path)
    for tensor, entry in tensors.items():
        _hex(_object(entry, tensor, path).get("sha256"), f"tensor {quoted(tensor)}", path)
    return FileRecord(size, whole, header, tensors)


def _hex(value: Any, what: str, path: str) -> str:
    if type(value) is not str or not _HEX.fullmatch(value):
        raise WeightsError(f"{what}: its sha256 must be 64 hexadecimal digits", path)
    return value


# ---------------------------------------------------------------------- comparing


class Expected:
    """The digests that the tensors of one source must have."""

    def __init__(self, source: Source, path: str) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        if source.index is not None:
            self._compare_index(source)
        self._of: dict[str, str] = {}
        for shard, file in source.files.items():
            self._compare_header(shard, file)

    def compare(self, digests: dict[str, str], source: Source) -> None:
        """Refuse if any tensor's bytes have another digest; every one of them is named."""
        wrong = [name for name, digest in digests.items() if self._of[name] != digest]
        if wrong:
            raise WeightsError(
                f"sha256 of the bytes differs from the manifest's ({self.path}): {listed(wrong)}",
                source.tensors[wrong[0]].file.path,
                wrong[0],
            )

    def _compare_index(self, source: Source) -> None:
        assert source.index is not None
        name = os.path.basename(source.path)
        record = self.manifest.get(name)
        if record is None:
            raise WeightsError(
                f"the manifest {self.path} does not list {quoted(name)}", source.path
            )
        if record.sha256 != sha256(source.index):
            raise WeightsError(f"sha256 differs from the manifest's ({self.path})", source.path)

    def _compare_header(self, shard: str, file: WeightFile) -> None:
        record = self.manifest.get(shard)
        if record is None or not record.header_sha256:
            raise WeightsError(f"the manifest {self.path} does not list {quoted(shard)}", file.path)
        if record.size != file.size:
            rule = f"has {file.size} bytes, the manifest {self.path} says {record.size}"
            raise WeightsError(rule, file.path)
        if fault := _fault_of_entries(record, file):
            raise WeightsError(f"{fault[1]} ({self.path})", file.path, fault[0])
        if record.header_sha256 != sha256(file.header_bytes):
            rule = f"sha256 of the header differs from the manifest's ({self.path})"
            raise WeightsError(rule, file.path)
        self._of |= {name: str(entry["sha256"]) for name, entry in record.tensors.items()}


def _fault_of_entries(record: FileRecord, file: WeightFile) -> tuple[str, str] | None:
    """The first tensor on which header and manifest do not agree, and how."""
    tensors = file.header.tensors
    for name in sorted(tensors.keys() ^ record.tensors.keys()):
        where = "file" if name in tensors else "manifest"
        return name, f"is in the {where} only"
    for name, info in tensors.items():
        entry = record.tensors[name]
        expected = _record(info, file.header.data_start, entry["sha256"])
        if entry != expected:
            return name, "dtype, shape or alignment differ from the manifest's"
    return None


def expected_for(source: Source, verify: bool | str | os.PathLike[str] | None) -> Expected | None:
    """What ``verify=`` asks for. A manifest that is not there is an error, never silence."""
    if verify is None or verify is False:
        return None
    path = default_path(source.path) if verify is True else os.fspath(verify)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{source.path}: its manifest {path} is not there")
    return Expected(source, path)


def verify_source(
    source: Source,
    manifest: str,
    threads: int | None = None,
    progress: Progress | None = None,
    deep: bool = False,
) -> list[str]:
    """Compare every header and tensor with a manifest: together they are every byte of a file.

    ``deep`` compares the digest of the file as a whole, too: it tells a manifest that contradicts
    itself, and costs as much again. One sentence per file.
    """
    expected = Expected(source, manifest)
    digests = digest_everything(source, threads, progress, whole=deep)
    for _, tensors in digests.values():
        expected.compare(tensors, source)
    for shard, (whole, _) in digests.items():
        if deep and expected.manifest[shard].sha256 != whole:
            rule = f"sha256 of the whole file differs from the manifest's ({manifest})"
            raise WeightsError(rule, source.files[shard].path)
    return [f"{shard}: header and {len(t)} tensors agree" for shard, (_, t) in digests.items()]
