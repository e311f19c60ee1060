"""A pickle checkpoint of either format: its root node, its globals, and where its storages lie.

What flows in: an opened file. What flows out: a :class:`Checkpoint`. The newer format is a zip
archive with one pickle and one member per storage; the older one is a row of pickles with the
storages' bytes behind them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch_helion.weights.convert.archive import Member, check_crc, read_members
from torch_helion.weights.convert.nodes import Call, DictNode, Global, Persistent
from torch_helion.weights.convert.opcodes import read_pickle
from torch_helion.weights.convert.tensors import FindStorage, Lost, Resolver, Storage
from torch_helion.weights.errors import WeightsError, quoted
from torch_helion.weights.file import RegularFile

MAX_PICKLE = 256 << 20
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


@dataclass
class Checkpoint:
    """What was found, with nothing of it executed."""

    format: str
    root: Any
    globals: set[Global]
    find_storage: FindStorage
    members: dict[str, Member]
    """storages that carry a CRC, by key"""

    def check(self, file: RegularFile, storage: Storage) -> None:
        """Compare a storage's CRC, once."""
        if (member := self.members.pop(storage.key, None)) is not None:
            check_crc(file, member)


def read_checkpoint(file: RegularFile) -> Checkpoint:
    """Recognise the format by its first bytes, and read everything but the storages."""
    first = file.read_bytes(0, min(16, file.size))
    if not first:
        raise WeightsError("is empty: no checkpoint", file.path)
    if first.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if first[:1] == b"\x80":
        return _read_legacy(file)
    raise WeightsError(f"is no pickle checkpoint{_guess(file, first)}", file.path)


def _guess(file: RegularFile, first: bytes) -> str:
    if first[8:9] == b"{" or int.from_bytes(first[:8], "little") + 8 <= file.size:
        return ": it looks like a safetensors file, which needs no conversion"
    if first.lstrip()[:1] == b"<":
        return ": it looks like an HTML page"
    if first.startswith(b"7z\xbc\xaf"):
        return ": it is a 7z archive"
    if file.size > 262 and file.read_bytes(257, 5) == b"ustar":
        return ": it is a tar archive, of which no tensors are read"
    return ""


# ---------------------------------------------------------------------- zip


def _read_zip(file: RegularFile) -> Checkpoint:
    members = read_members(file)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError("zip: no checkpoint, it holds no single data.pkl", file.path)
    prefix = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{prefix}code/") for name in members):
        raise WeightsError("is a TorchScript archive, which holds code: refused", file.path)
    if order := members.get(f"{prefix}byteorder"):
        text = file.read_bytes(order.offset, min(order.size, 16))
        if text.strip() != b"little":
            raise WeightsError(f"byte order {quoted(text.decode('latin-1'))}: refused", file.path)
    pickle = members[pickles[0]]
    if pickle.size > MAX_PICKLE:
        raise WeightsError(f"data.pkl has {pickle.size} bytes, at most {MAX_PICKLE}", file.path)
    check_crc(file, pickle)
    machine = read_pickle(file.read_bytes(pickle.offset, pickle.size), 0, file.path)
    if machine.at != pickle.size:
        raise WeightsError("data.pkl: bytes behind the end of the pickle", file.path)
    folder = f"{prefix}data/"
    stored = {n.removeprefix(folder): m for n, m in members.items() if n.startswith(folder)}

    def find(key: str, nbytes: int) -> Storage | Lost:
        member = stored.get(key)
        if member is None:
            return Storage(key, 0, 0) if nbytes == 0 else Lost(f"its storage {key!r} is not there")
        if member.size != nbytes:
            return Lost(f"its storage {key!r} has {member.size} bytes, not {nbytes}")
        return Storage(key, member.offset, nbytes)

    return Checkpoint("zip", machine.pop(), machine.globals, find, dict(stored))


# ---------------------------------------------------------------------- legacy


def _read_legacy(file: RegularFile) -> Checkpoint:
    """Magic number, version, system, the object, the keys of its storages; then their bytes."""
    if sys.byteorder != "little":
        raise WeightsError("the older format is read on little-endian machines only", file.path)
    # The pickles stand at the beginning; how far they reach is known only when they were read.
    data = file.read_bytes(0, min(file.size, MAX_PICKLE))
    at, parts, named = 0, [], set()
    for part in range(5):
        if at >= len(data):
            raise WeightsError("ends before the list of its storages", file.path)
        machine = read_pickle(data, at, file.path)
        at = machine.at
        parts.append(machine.pop())
        named |= machine.globals
        if part == 0 and (type(parts[0]) is not int or parts[0] != _MAGIC):
            raise WeightsError("is a pickle, but no checkpoint of torch", file.path)
    _, version, system, root, keys = parts
    if version != _LEGACY_VERSION:
        raise WeightsError("has an unknown version of the older format", file.path)
    if isinstance(system, DictNode) and system.get("little_endian") is False:
        raise WeightsError("was written by a big-endian machine: refused", file.path)
    del data
    storages = _legacy_storages(file, root, keys, at)

    def find(key: str, nbytes: int) -> Storage | Lost:
        found = storages.get(key)
        if found is None:
            return Lost(f"its storage {key!r} is not there")
        if found.nbytes != nbytes:
            return Lost(f"its storage {key!r} has {found.nbytes} bytes, not {nbytes}")
        return found

    return Checkpoint("legacy", root, named, find, {})


def _legacy_storages(file: RegularFile, root: Any, keys: Any, at: int) -> dict[str, Storage]:
    """Each is its count of elements (8 bytes) and its elements, in the order of the keys."""
    if type(keys) is not list or not all(type(key) in (str, int) for key in keys):
        raise WeightsError("the list of its storages is malformed", file.path)
    sizes = _element_sizes(root)
    storages: dict[str, Storage] = {}
    for key in map(str, keys):
        if key in storages:
            raise WeightsError(f"the storage {quoted(key)} comes twice", file.path)
        if key not in sizes:
            raise WeightsError(f"no tensor says what the storage {quoted(key)} holds", file.path)
        if at + 8 > file.size:
            raise WeightsError(f"ends before the storage {quoted(key)}", file.path)
        count = int.from_bytes(file.read_bytes(at, 8), "little", signed=True)
        nbytes = count * sizes[key]
        if count < 0 or at + 8 + nbytes > file.size:
            rule = f"the storage {quoted(key)} of {count} elements does not fit the file"
            raise WeightsError(rule, file.path)
        storages[key] = Storage(key, at + 8, nbytes)
        at += 8 + nbytes
    if at != file.size:
        raise WeightsError(f"{file.size - at} bytes behind the last storage", file.path)
    return storages


def _element_sizes(root: Any) -> dict[str, int]:
    """Bytes per element of each storage that the object refers to."""
    sizes: dict[str, int] = {}

    def note(key: str, nbytes: int) -> Lost:
        sizes[key] = nbytes
        return Lost("")

    resolver = Resolver(note)
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in seen or not isinstance(node, Call | DictNode | Persistent | list | tuple):
            continue
        seen.add(id(node))
        if isinstance(node, Persistent):
            if type(node.id) is tuple and len(node.id) in (5, 6) and type(node.id[4]) is int:
                # Asked for with one element, the resolver's call tells the size of an element.
                one = Persistent((*node.id[:4], 1))
                resolver._storage(one, None)
        elif isinstance(node, DictNode):
            pending += [part for pair in node.pairs for part in pair]
        elif isinstance(node, Call):
            pending += [node.args, node.state, node.items, node.pairs, node.function]
        else:
            pending += node
    return sizes
