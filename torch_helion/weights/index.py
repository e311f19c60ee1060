"""The index of a checkpoint in several files, read strictly.

What flows in: an index file (``model.safetensors.index.json``). What flows out: which tensor lies
in which shard, where each shard is a file in the index's own folder. Nothing else is ever opened.
"""

from __future__ import annotations

import os
import re

from torch_helion.weights.errors import WeightsError, quoted
from torch_helion.weights.file import RegularFile
from torch_helion.weights.header import MAX_HEADER
from torch_helion.weights.strict_json import Duplicated, kind_of, parse_json

SUFFIX = ".json"
DEFAULT_NAMES = ("model.safetensors.index.json", "model.safetensors")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\ud800-\udfff]')


def is_index(path: str) -> bool:
    """Whether a path is taken for an index, by its name."""
    return path.lower().endswith(SUFFIX)


def read_index(path: str) -> tuple[bytes, dict[str, list[str]]]:
    """The file's bytes, and per shard, in order of first mention, the names it must hold."""
    with RegularFile(path) as file:
        if file.size > MAX_HEADER:
            raise WeightsError(f"an index of {file.size} bytes: at most {MAX_HEADER}", path)
        text = file.read_bytes(0, file.size)
    root = parse_json(text, path, "the index")
    if not isinstance(root, dict):
        raise WeightsError(f"the index must be a JSON object, not {kind_of(root)}", path)
    if isinstance(root, Duplicated):
        raise WeightsError(f"the index has the key {quoted(root.key)} twice", path)
    weight_map = root.get("weight_map")
    if not isinstance(weight_map, dict):
        found = kind_of(weight_map) if "weight_map" in root else "missing"
        raise WeightsError(f"weight_map must be an object, it is {found}", path)
    if isinstance(weight_map, Duplicated):
        raise WeightsError("weight_map names it twice", path, weight_map.key)
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if type(shard) is not str:
            raise WeightsError(f"its shard must be a string, not {kind_of(shard)}", path, name)
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        if _UNSAFE.search(shard) or shard in ("", ".", "..") or shard != shard.strip(" "):
            rule = f"the shard {quoted(shard)} is no plain file name in the index's folder"
            raise WeightsError(rule, path, names[0])
    return text, shards


def shard_path(index: str, shard: str) -> str:
    """Where a shard really lies; refused if links lead out of the index's own folder.

    A cache that keeps files under their hash links both the index and its shards to one folder:
    the folder in which the index really lies counts as its own, too.
    """
    folder = os.path.dirname(os.path.abspath(index))
    own = {os.path.realpath(folder), os.path.dirname(os.path.realpath(index))}
    path = os.path.join(folder, shard)
    real = os.path.realpath(path)
    if os.path.dirname(real) not in own:
        raise WeightsError(f"the shard {quoted(shard)} is a link out of the index's folder", index)
    return real


def resolve(path: str | os.PathLike[str]) -> str:
    """A file's path; for a folder, that of the index or single file in it with the usual name."""
    found = os.fspath(path)
    if not os.path.isdir(found):
        return found
    for name in DEFAULT_NAMES:
        if os.path.exists(os.path.join(found, name)):
            return os.path.join(found, name)
    raise FileNotFoundError(f"{found}: a folder without {' or '.join(DEFAULT_NAMES)}")
