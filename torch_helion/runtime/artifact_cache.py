"""Content-addressed directory of compiled artefacts: bytes by kind and key, nothing executable.

What flows in: bytes, and the key that the caller made of everything they depend on (hex sha256).
What flows out: the same bytes, in this or another process, or None. Floor 2: whoever compiles or
tunes may use it; it imports only floor 0.

Rules of the house:

- *Private.* The folder belongs to the user and nobody else may write to it, else it is not used at
  all; an entry that somebody else could have written is not read.
- *Checked.* An entry carries its length and a hash over kind, key and bytes: what is truncated,
  altered or moved is deleted and counts as a miss. Nothing is unpickled.
- *Never in the way.* Whatever is wrong with the folder (full disk, read-only, removed meanwhile) is
  logged once and answered with a miss; only a malformed kind or key raises.
- *Shared.* Entries appear whole (written aside, then renamed); any number of processes may use one
  folder. Above the size limit the entries that were not used for longest go.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import re
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch_helion import _logging, settings

_LOG = _logging.get_logger("cache")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)

# magic with the format's version, length of the data, hash over kind, key and data
_HEADER = struct.Struct("<8sQ32s")
_MAGIC = b"THCACHE1"

_TEMPORARY = ".tmp-"
_MARKER = ".last_prune"
_TEMPORARY_MAX_AGE = 3600.0  # older ones are left over from a process that died
_TOUCH_AFTER = 60.0  # how old a use may look before a read renews it
_PRUNE_EVERY = 600.0  # seconds between two looks at the whole folder, over all processes
_PRUNE_TO = 0.8  # of the limit


@dataclass(frozen=True)
class CacheStats:
    """What is in the folder, and what this process did with it."""

    root: str
    disabled: str | None
    """why the cache is not used, or None"""
    entries: int
    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    writes: int
    corrupt: int
    errors: int


class ArtifactCache:
    """One cache folder (none at all for an empty ``root``). Any thread may call any method."""

    def __init__(self, root: str | os.PathLike[str], limit_bytes: int = 1 << 30) -> None:
        self.root = pathlib.Path(root)
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("hits", "misses", "writes", "corrupt", "errors"), 0)
        self._written_bytes = 0
        self._prune_due = True  # by the age of the marker, at the first write
        self._disabled = None if os.fspath(root) else "no folder is set"
        self._checked = self._disabled is not None

    # ------------------------------------------------------------------ use

    def get(self, kind: str, key: str) -> bytes | None:
        """The bytes stored under this kind and key, or None."""
        path = self._path(kind, key)
        data = self._read(path, kind, key) if self._usable(create=False) else None
        self._count("misses" if data is None else "hits")
        return data

    def put(self, kind: str, key: str, data: bytes) -> bool:
        """Store ``data``; False if that was not possible."""
        path = self._path(kind, key)
        if not self._usable(create=True):
            return False
        entry = _HEADER.pack(_MAGIC, len(data), _digest(kind, key, data))
        try:
            self._write(path, entry, data)
        except OSError as error:
            self._trouble("write", error)
            return False
        self._count("writes")
        self._after_write(len(entry) + len(data))
        return True

    def clear(self) -> int:
        """Remove every entry (and nothing else that may lie in the folder); how many went."""
        removed = 0
        if not self._usable(create=False):
            return removed
        for entry in self._entries():
            removed += self._remove(entry.path)
        for kind in self._folders(self.root, _KIND):
            for shard in self._folders(kind, _SHARD):
                _remove_folder(shard)
            _remove_folder(kind)
        return removed

    def stats(self) -> CacheStats:
        """Sizes (looked up now) and counters (of this process)."""
        sizes = [entry.size for entry in self._entries()] if self._usable(create=False) else []
        with self._lock:
            return CacheStats(
                root=str(self.root),
                disabled=self._disabled,
                entries=len(sizes),
                bytes=sum(sizes),
                limit_bytes=self.limit_bytes,
                **self._counts,
            )

    # ------------------------------------------------------------------ the folder

    def _usable(self, create: bool) -> bool:
        """Whether the folder is there (or was made) and is ours alone."""
        if self._checked:
            return self._disabled is None
        try:
            if create and not os.path.exists(self.root):
                _make_private(self.root)
            status = os.stat(self.root)
            is_folder = stat.S_ISDIR(status.st_mode)
            reason = _why_not_private(status) if is_folder else "it is no folder"
        except FileNotFoundError:
            return False  # nothing stored yet
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = str(error)
        with self._lock:
            self._checked = True
            self._disabled = reason
        if reason is not None:
            _logging.warn_once(
                _LOG, ("disabled", self.root), "cache %s is not used: %s", self.root, reason
            )
        return reason is None

    def _path(self, kind: str, key: str) -> pathlib.Path:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise ValueError(f"artifact cache: kind must match {_KIND.pattern}, got {kind!r}")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"artifact cache: key must be a hex sha256, got {key!r}")
        return self.root / kind / key[:2] / key

    def _folders(self, parent: str | os.PathLike[str], name: re.Pattern[str]) -> list[str]:
        return [e.path for e in _scan(parent) if name.fullmatch(e.name) and _is_folder(e)]

    def _entries(self) -> Iterator[_Entry]:
        """Every entry now in the folder; leftovers of dead writers are removed on the way."""
        for kind in self._folders(self.root, _KIND):
            for shard in self._folders(kind, _SHARD):
                for found in _scan(shard):
                    if entry := _entry_of(found):
                        yield entry

    # ------------------------------------------------------------------ reading

    def _read(self, path: pathlib.Path, kind: str, key: str) -> bytes | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW | _CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._trouble("read", error)
            return None
        try:
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or _why_not_private(status):
                    self._trouble("read", PermissionError(f"{path} may not be ours"))
                    return None
                data = _checked_data(file.read(), kind, key)
                if data is not None and time.time() - status.st_mtime > _TOUCH_AFTER:
                    _touch(path)
        except OSError as error:
            self._trouble("read", error)
            return None
        if data is None:
            self._count("corrupt")
            _LOG.debug("entry %s is damaged: removed", path)
            self._remove(path)
        return data

    # ------------------------------------------------------------------ writing

    def _write(self, path: pathlib.Path, header: bytes, data: bytes) -> None:
        temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{next(_serial)}-{path.name[:8]}"
        try:
            descriptor = _create(temporary)
        except FileNotFoundError:  # the first of its shard, or the folder was removed meanwhile
            _make_private(path.parent)
            descriptor = _create(temporary)
        try:
            with open(descriptor, "wb") as file:
                file.write(header)
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            self._remove(temporary)
            raise

    def _after_write(self, size: int) -> None:
        """Prune now and then: after a sixteenth of the limit, or when nobody did for long."""
        with self._lock:
            self._written_bytes += size
            full = self._written_bytes * 16 > self.limit_bytes
            look, self._prune_due = self._prune_due, False
            if full:
                self._written_bytes = 0
        if full or (look and self._marker_age() > _PRUNE_EVERY):
            self.prune()

    def prune(self) -> int:
        """Remove the entries unused for longest while the folder is over its limit; how many."""
        try:
            _touch(self.root / _MARKER, create=True)
        except OSError as error:
            self._trouble("write", error)
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        size = sum(entry.size for entry in entries)
        if size <= self.limit_bytes:
            return 0
        removed = 0
        for entry in entries:
            if size <= self.limit_bytes * _PRUNE_TO:
                break
            size -= entry.size
            removed += self._remove(entry.path)
        _LOG.info("cache %s over its limit: %d entries removed", self.root, removed)
        return removed

    def _marker_age(self) -> float:
        try:
            return abs(time.time() - os.stat(self.root / _MARKER).st_mtime)
        except OSError:
            return float("inf")

    # ------------------------------------------------------------------ bookkeeping

    def _remove(self, path: str | os.PathLike[str]) -> bool:
        try:
            os.unlink(path)
            return True
        except OSError:
            return False

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _trouble(self, what: str, error: OSError) -> None:
        self._count("errors")
        _logging.warn_once(
            _LOG,
            (what, self.root, error.errno),
            "cache %s: cannot %s an entry: %s",
            self.root,
            what,
            error,
        )


# ---------------------------------------------------------------------- the process's cache


def default_cache() -> ArtifactCache:
    """The cache that the settings in force name (one object per folder and limit)."""
    now = settings.current()
    name = (now.cache_dir, now.cache_limit_mb)
    cache = _caches.get(name)
    if cache is None:
        root = now.cache_dir and os.path.abspath(os.path.expanduser(now.cache_dir))
        cache = _caches.setdefault(name, ArtifactCache(root, now.cache_limit_mb << 20))
    return cache


def get(kind: str, key: str) -> bytes | None:
    """:meth:`ArtifactCache.get` of the process's cache."""
    return default_cache().get(kind, key)


def put(kind: str, key: str, data: bytes) -> bool:
    """:meth:`ArtifactCache.put` of the process's cache."""
    return default_cache().put(kind, key, data)


def clear() -> int:
    """:meth:`ArtifactCache.clear` of the process's cache."""
    return default_cache().clear()


def stats() -> CacheStats:
    """:meth:`ArtifactCache.stats` of the process's cache."""
    return default_cache().stats()


# ---------------------------------------------------------------------- details

_SHARD = re.compile(r"[0-9a-f]{2}", re.ASCII)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_serial = itertools.count()
_caches: dict[tuple[str, int], ArtifactCache] = {}


@dataclass(frozen=True)
class _Entry:
    path: str
    size: int
    used: float


def _digest(kind: str, key: str, data: bytes) -> bytes:
    digest = hashlib.sha256(f"{kind}\0{key}\0".encode())
    digest.update(data)
    return digest.digest()


def _checked_data(entry: bytes, kind: str, key: str) -> bytes | None:
    """The data of an entry, None if it is not exactly what was stored under kind and key."""
    if len(entry) < _HEADER.size:
        return None
    magic, length, digest = _HEADER.unpack_from(entry)
    data = entry[_HEADER.size :]
    if magic != _MAGIC or length != len(data) or digest != _digest(kind, key, data):
        return None
    return data


def _why_not_private(status: os.stat_result) -> str | None:
    """Why a folder or file could have been written by somebody else, or None."""
    if not hasattr(os, "geteuid"):
        return None  # no such owners and modes on this system
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it (chmod go-w to allow its use)"
    return None


def _make_private(folder: pathlib.Path) -> None:
    """Make the folder and its parents; the folder itself is the user's alone."""
    try:
        os.mkdir(folder, 0o700)
    except FileNotFoundError:
        _make_private(folder.parent)
        _make_private(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"{folder} is no folder") from None


def _create(path: pathlib.Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o600)


def _touch(path: pathlib.Path, create: bool = False) -> None:
    try:
        os.utime(path)
    except FileNotFoundError:
        if create:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _NOFOLLOW | _CLOEXEC, 0o600))


def _scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _entry_of(found: os.DirEntry[str]) -> _Entry | None:
    try:
        if _KEY.fullmatch(found.name):
            status = found.stat(follow_symlinks=False)
            return _Entry(found.path, status.st_size, status.st_mtime)
        if found.name.startswith(_TEMPORARY):
            age = time.time() - found.stat(follow_symlinks=False).st_mtime
            if age > _TEMPORARY_MAX_AGE:
                os.unlink(found.path)
    except OSError:
        pass  # another process was faster
    return None


def _remove_folder(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        pass  # not empty: something was stored meanwhile, or is not ours
