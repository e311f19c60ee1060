"""The artifact cache: what is stored comes back whole or not at all, and trouble is a miss."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pathlib
import stat
import subprocess
import sys
import threading
import time

import pytest

from torch_helion import _logging, settings
from torch_helion.runtime import artifact_cache
from torch_helion.runtime.artifact_cache import ArtifactCache

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
not_root = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


KEY = key_of("a kernel")


@pytest.fixture
def cache(tmp_path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "cache")


@pytest.fixture
def warnings(caplog):
    """Texts of the warnings that the cache has logged."""
    _logging._warned.clear()
    caplog.set_level(logging.WARNING, logger="torch_helion.cache")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def file_of(cache: ArtifactCache, key: str = KEY, kind: str = "object") -> pathlib.Path:
    return cache.root / kind / key[:2] / key


# ---------------------------------------------------------------------- use


@pytest.mark.parametrize("data", [b"", b"\0", b"code" * 1000, os.urandom(1 << 20)])
def test_round_trip(cache, data):
    assert cache.get("object", KEY) is None
    assert cache.put("object", KEY, data) is True
    assert cache.get("object", KEY) == data
    assert ArtifactCache(cache.root).get("object", KEY) == data
    assert cache.get("text", KEY) is None
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.writes, stats.entries) == (1, 2, 1, 1)
    assert stats.disabled is None and stats.errors == stats.corrupt == 0
    assert len(data) < stats.bytes < len(data) + 100


def test_a_second_put_replaces(cache):
    cache.put("object", KEY, b"one")
    cache.put("object", KEY, b"two")
    assert cache.get("object", KEY) == b"two"
    assert cache.stats().entries == 1


def test_nothing_is_made_before_the_first_put(cache):
    cache.get("object", KEY)
    assert cache.stats().entries == 0 and cache.clear() == 0
    assert not cache.root.exists()


@pytest.mark.parametrize("kind", ["", "Object", "a/b", "..", "a b", "x" * 33, "a\n", 3])
def test_wrong_kinds_raise(cache, kind):
    for call in (lambda: cache.get(kind, KEY), lambda: cache.put(kind, KEY, b"")):
        with pytest.raises(ValueError, match="kind must match"):
            call()


@pytest.mark.parametrize("key", ["", "abc", KEY.upper(), KEY + "\n", "../" + KEY[3:], None])
def test_wrong_keys_raise(cache, key):
    for call in (lambda: cache.get("object", key), lambda: cache.put("object", key, b"")):
        with pytest.raises(ValueError, match="key must be a hex sha256"):
            call()


def test_clear_removes_entries_and_nothing_else(cache):
    for i in range(5):
        cache.put("object", key_of(str(i)), b"x")
    cache.put("text", KEY, b"x")
    (cache.root / "notes.txt").write_text("mine")
    (cache.root / "object" / "deep").mkdir()
    (cache.root / "object" / "deep" / KEY).write_text("mine")
    assert cache.clear() == 6
    assert cache.stats().entries == 0
    assert sorted(p.name for p in cache.root.rglob("*") if p.is_file() and p.name[0] != ".") == [
        KEY,
        "notes.txt",
    ]
    assert not (cache.root / "text").exists()
    assert cache.put("text", KEY, b"y") and cache.get("text", KEY) == b"y"


# ---------------------------------------------------------------------- damage


def damage_truncate(raw: bytes) -> bytes:
    return raw[:-1]


DAMAGES = {
    "empty": lambda raw: b"",
    "header cut": lambda raw: raw[:20],
    "cut": damage_truncate,
    "longer": lambda raw: raw + b"\0",
    "bit of data": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "bit of hash": lambda raw: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
    "bit of length": lambda raw: raw[:8] + bytes([raw[8] ^ 1]) + raw[9:],
    "other version": lambda raw: b"THCACHE0" + raw[8:],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entries_are_removed_and_miss(cache, damage):
    cache.put("object", KEY, b"machine code")
    path = file_of(cache)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert cache.get("object", KEY) is None
    assert not path.exists()
    assert cache.stats().corrupt == 1
    assert cache.put("object", KEY, b"again") and cache.get("object", KEY) == b"again"


def test_an_entry_moved_to_another_name_misses(cache):
    other = key_of("another")
    cache.put("object", KEY, b"code")
    cache.put("object", other, b"other")
    file_of(cache).replace(file_of(cache, other))
    assert cache.get("object", other) is None
    cache.put("object", KEY, b"code")
    file_of(cache, kind="text").parent.mkdir(parents=True)
    file_of(cache).replace(file_of(cache, kind="text"))
    assert cache.get("text", KEY) is None


def test_a_folder_in_place_of_an_entry_misses(cache):
    cache.put("object", KEY, b"code")
    file_of(cache).unlink()
    file_of(cache).mkdir()
    assert cache.get("object", KEY) is None
    assert cache.put("object", KEY, b"code") is False


# ---------------------------------------------------------------------- privacy


@posix
def test_modes_are_private(cache):
    before = os.umask(0)
    try:
        cache.put("object", KEY, b"code")
    finally:
        os.umask(before)
    folder = file_of(cache)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o600
    while folder != cache.root:
        folder = folder.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_not_used(cache, mode, warnings):
    cache.root.mkdir()
    cache.root.chmod(mode)
    assert cache.put("object", KEY, b"code") is False
    assert cache.get("object", KEY) is None
    assert list(cache.root.iterdir()) == []
    assert "others may write" in cache.stats().disabled
    assert len(warnings()) == 1 and "others may write" in warnings()[0]


@posix
def test_a_folder_that_others_may_read_is_used(cache, warnings):
    cache.root.mkdir()
    cache.root.chmod(0o755)
    assert cache.put("object", KEY, b"code") and cache.get("object", KEY) == b"code"
    assert warnings() == []


class OtherOwner:
    """A status that belongs to somebody else."""

    def __init__(self, status: os.stat_result) -> None:
        self._status = status

    def __getattr__(self, name: str) -> object:
        value = getattr(self._status, name)
        return value + 1 if name == "st_uid" else value


@posix
def test_a_folder_of_another_user_is_not_used(cache, warnings, monkeypatch):
    cache.root.mkdir(mode=0o700)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kw: OtherOwner(real(*args, **kw)))
    assert cache.put("object", KEY, b"code") is False
    assert cache.get("object", KEY) is None
    monkeypatch.undo()
    assert list(cache.root.iterdir()) == []
    assert "belongs to user" in cache.stats().disabled
    assert len(warnings()) == 1


@posix
def test_an_entry_of_another_user_is_not_read(cache, warnings, monkeypatch):
    cache.put("object", KEY, b"code")
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda *args: OtherOwner(real(*args)))
    assert cache.get("object", KEY) is None
    monkeypatch.undo()
    assert cache.get("object", KEY) == b"code"
    assert len(warnings()) == 1


@posix
def test_an_entry_that_others_may_write_is_not_read(cache):
    cache.put("object", KEY, b"code")
    file_of(cache).chmod(0o666)
    assert cache.get("object", KEY) is None


@posix
def test_links_are_not_followed(cache, tmp_path):
    cache.put("object", KEY, b"code")
    elsewhere = tmp_path / "elsewhere"
    file_of(cache).rename(elsewhere)
    file_of(cache).symlink_to(elsewhere)
    assert cache.get("object", KEY) is None
    assert cache.put("object", KEY, b"new") and cache.get("object", KEY) == b"new"
    assert elsewhere.exists() and not file_of(cache).is_symlink()


@posix
def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    cache = ArtifactCache(tmp_path / "link")
    assert cache.put("object", KEY, b"code") and cache.get("object", KEY) == b"code"


# ---------------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    "call, code",
    [
        ("open", errno.ENOSPC),
        ("open", errno.EROFS),
        ("open", errno.EACCES),
        ("open", errno.EMFILE),
        ("replace", errno.ENOSPC),
        ("replace", errno.EIO),
        ("mkdir", errno.EROFS),
    ],
)
def test_trouble_while_writing(cache, warnings, monkeypatch, call, code):
    cache.root.mkdir(mode=0o700)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    for i in range(3):
        assert cache.put("object", key_of(str(i)), b"code") is False
    monkeypatch.undo()
    assert [p for p in cache.root.rglob("*") if p.is_file()] == []
    assert len(warnings()) == 1 and os.strerror(code) in warnings()[0]
    assert cache.stats().errors == 3
    assert cache.put("object", KEY, b"code") and cache.get("object", KEY) == b"code"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing_behind(cache, warnings, monkeypatch):
    cache.put("object", key_of("first"), b"code")
    real = os.open

    def open_full(path, flags, *args, **kwargs):
        descriptor = real(path, flags, *args, **kwargs)
        if flags & os.O_WRONLY:
            full = real("/dev/full", os.O_WRONLY)
            os.dup2(full, descriptor)
            os.close(full)
        return descriptor

    monkeypatch.setattr(os, "open", open_full)
    for data in (b"short", b"long" * 100_000):
        assert cache.put("object", KEY, data) is False
    monkeypatch.undo()
    assert not file_of(cache).exists()
    assert list(cache.root.rglob(".tmp-*")) == []
    assert len(warnings()) == 1 and "No space left" in warnings()[0]


def test_an_interrupted_write_leaves_nothing_behind(cache, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put("object", KEY, b"code")
    monkeypatch.undo()
    assert list(cache.root.rglob(".tmp-*")) == [] and cache.get("object", KEY) is None


def test_trouble_while_reading(cache, warnings, monkeypatch):
    cache.put("object", KEY, b"code")

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(os, "open", fail)
    assert cache.get("object", KEY) is None
    assert cache.get("object", KEY) is None
    monkeypatch.undo()
    assert len(warnings()) == 1 and "bad disk" in warnings()[0]
    assert cache.get("object", KEY) == b"code"


@pytest.mark.parametrize("place", ["a file", "a file/below", "null\0character"])
def test_impossible_folders(tmp_path, warnings, place):
    (tmp_path / "a file").write_text("")
    cache = ArtifactCache(tmp_path / place)
    assert cache.put("object", KEY, b"code") is False
    assert cache.get("object", KEY) is None
    assert cache.clear() == 0 and cache.stats().disabled
    assert len(warnings()) == 1


@posix
@not_root
def test_a_folder_without_write_permission(tmp_path, warnings):
    tmp_path.chmod(0o500)
    cache = ArtifactCache(tmp_path / "cache")
    assert cache.put("object", KEY, b"code") is False
    tmp_path.chmod(0o700)
    assert len(warnings()) == 1


@posix
def test_a_folder_without_write_permission_as_a_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("the test above does it")
    # Root becomes somebody else in a process of its own.
    root = tmp_path / "cache"
    root.mkdir(mode=0o700)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent != pathlib.Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    os.chown(root, 12345, 12345)
    root.chmod(0o500)
    done = run(
        f"""
import os
from torch_helion.runtime.artifact_cache import ArtifactCache
os.setuid(12345)
cache = ArtifactCache({str(root)!r})
print(cache.put("object", "0" * 64, b"x"), cache.get("object", "0" * 64), cache.stats().errors)
"""
    )
    assert done == "False None 1"


def test_the_folder_may_vanish_while_in_use(cache):
    import shutil

    assert cache.put("object", KEY, b"code")
    shutil.rmtree(cache.root)
    assert cache.get("object", KEY) is None
    assert cache.stats().entries == 0
    assert cache.put("object", KEY, b"code") and cache.get("object", KEY) == b"code"
    assert cache.stats().errors == 0


def test_an_empty_root_means_no_cache(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with settings.patch(cache_dir=""):
        assert artifact_cache.put("object", KEY, b"code") is False
        assert artifact_cache.get("object", KEY) is None
        assert artifact_cache.stats().disabled == "no folder is set"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- size


def fill(cache: ArtifactCache, count: int, size: int = 1000) -> list[str]:
    keys = [key_of(str(i)) for i in range(count)]
    for i, key in enumerate(keys):
        cache.put("object", key, bytes(size))
        used = time.time() - 1000 + i
        if file_of(cache, key).exists():
            os.utime(file_of(cache, key), (used, used))
    return keys


def test_the_folder_stays_below_its_limit(tmp_path):
    cache = ArtifactCache(tmp_path / "cache", limit_bytes=20_000)
    for i in range(200):
        cache.put("object", key_of(str(i)), bytes(1000))
    assert 10_000 < cache.stats().bytes <= 20_000 + 20_000 // 16 + 1048
    assert cache.get("object", key_of("199")) is not None


def test_the_longest_unused_go_first(tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    keys = fill(cache, 10)
    assert cache.get("object", keys[0]) is not None  # used just now
    cache.limit_bytes = 5_500
    assert cache.prune() == 6
    left = [i for i, key in enumerate(keys) if file_of(cache, key).exists()]
    assert left == [0, 7, 8, 9]
    assert cache.prune() == 0


def test_processes_take_turns_to_look(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(ArtifactCache, "prune", lambda self: looks.append(self))
    root = tmp_path / "cache"
    ArtifactCache(root).put("object", KEY, b"x")
    assert len(looks) == 1
    (root / ".last_prune").touch()
    ArtifactCache(root).put("object", KEY, b"x")
    assert len(looks) == 1
    os.utime(root / ".last_prune", (0, 0))
    cache = ArtifactCache(root)
    cache.put("object", KEY, b"x")
    cache.put("object", KEY, b"x")
    assert len(looks) == 2


def test_leftovers_of_dead_writers_are_removed(cache):
    cache.put("object", KEY, b"code")
    old = file_of(cache).parent / ".tmp-1-2-old"
    young = file_of(cache).parent / ".tmp-1-3-young"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    cache.prune()
    assert not old.exists() and young.exists()
    assert cache.stats().entries == 1


def test_entries_may_vanish_while_pruning(tmp_path, monkeypatch):
    cache = ArtifactCache(tmp_path / "cache")
    fill(cache, 10)
    cache.limit_bytes = 3_000
    real = os.unlink

    def unlink_twice(path, *args, **kwargs):  # another process was faster
        real(path, *args, **kwargs)
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", unlink_twice)
    cache.prune()
    monkeypatch.undo()
    assert cache.stats().bytes <= 3_000


# ---------------------------------------------------------------------- threads and processes


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads(tmp_path):
    cache = ArtifactCache(tmp_path / "cache", limit_bytes=100_000)
    wrong = []

    def work(seed: int) -> None:
        for i in range(50):
            name = str((seed + i) % 10)
            cache.put("object", key_of(name), name.encode() * 2000)
            data = cache.get("object", key_of(name))
            if data is not None and data != name.encode() * 2000:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = cache.stats()
    assert not wrong and (stats.corrupt, stats.errors) == (0, 0)


PROCESS = """
import hashlib, sys
from torch_helion.runtime.artifact_cache import ArtifactCache
cache = ArtifactCache(sys.argv[1], limit_bytes=200_000)
hits = 0
for i in range(300):
    name = str(i % 7)
    key = hashlib.sha256(name.encode()).hexdigest()
    expected = name.encode() * 20_000
    data = cache.get("object", key)
    assert data is None or data == expected
    hits += data is not None
    cache.put("object", key, expected)
    if i % 100 == 99:
        cache.clear()
stats = cache.stats()
assert (stats.corrupt, stats.errors) == (0, 0), stats
"""


def test_two_processes(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_importing_it_needs_no_torch():
    assert (
        run("import sys; import torch_helion.runtime.artifact_cache; print('torch' in sys.modules)")
        == "False"
    )


# ---------------------------------------------------------------------- the process's cache


def test_the_process_s_cache_follows_the_settings(tmp_path):
    with settings.patch(cache_dir=str(tmp_path / "one"), cache_limit_mb=3):
        assert artifact_cache.put("object", KEY, b"one")
        assert artifact_cache.stats().limit_bytes == 3 << 20
        assert artifact_cache.default_cache() is artifact_cache.default_cache()
        with settings.patch(cache_dir=str(tmp_path / "two")):
            assert artifact_cache.get("object", KEY) is None
        assert artifact_cache.get("object", KEY) == b"one"
        assert artifact_cache.clear() == 1
    assert (tmp_path / "one").exists()


def test_the_user_s_home_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with settings.patch(cache_dir="~/c"):
        assert artifact_cache.put("object", KEY, b"x")
    assert (tmp_path / "c" / "object").is_dir()
