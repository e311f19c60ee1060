"""Mapping and reading: equal bytes whatever the mode, and every fault of a file system handled."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from test.weights.weight_files import (
    ROOT,
    assert_all_same,
    assert_same,
    entry,
    many_tensors,
    raw_file,
)
from torch_helion import weights
from torch_helion.weights import file as weight_file
from torch_helion.weights import filesystem, reading
from torch_helion.weights.load import choose_mode
from torch_helion.weights.source import Source

MODES = ("mmap", "read")


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file of ours with every dtype."""
    path = tmp_path / "all.safetensors"
    weights.save_file(many_tensors(), path)
    return path


@pytest.fixture
def big(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, torch.Tensor]]:
    """Over several chunks: tensors longer than a chunk, and many short ones."""
    tensors = {f"w{i}": torch.randn(1000 + i, 300) for i in range(40)}
    tensors |= {"long": torch.randn(5_000_003), "short": torch.arange(3)}
    path = tmp_path / "big.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path, tensors


@pytest.mark.parametrize("mode", MODES)
def test_every_dtype(saved: pathlib.Path, mode: str) -> None:
    assert_all_same(weights.load_file(saved, mode=mode), many_tensors())
    with weights.safe_open(saved, mode=mode) as opened:
        assert opened.keys() == sorted(many_tensors())
        assert_all_same({name: opened.get_tensor(name) for name in many_tensors()}, many_tensors())
        assert_all_same(opened.get_tensors(), many_tensors())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_many_chunks(big: tuple[pathlib.Path, dict], mode: str, threads: int | None) -> None:
    path, tensors = big
    assert_all_same(weights.load_file(path, mode=mode, threads=threads), tensors)


def test_files_of_the_reference(tmp_path: pathlib.Path) -> None:
    tensors = {k: v for k, v in many_tensors().items() if "F4" not in k}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"k": "v"})
    assert_all_same(weights.load_file(tmp_path / "theirs.safetensors"), tensors)
    path = tmp_path / "theirs.safetensors"
    with weights.safe_open(path) as ours, safetensors.safe_open(path, "pt") as theirs:
        assert ours.keys() == sorted(theirs.keys())
        assert ours.offset_keys() == list(theirs.offset_keys())
        assert ours.metadata() == theirs.metadata() == {"k": "v"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pad", range(9))
def test_data_at_odd_places(tmp_path: pathlib.Path, mode: str, pad: int) -> None:
    want = torch.linspace(-1, 1, 9, dtype=torch.float64)
    header = {"v": entry("F64", [9], 0, 72), "c": entry("C64", [1], 72, 80)}
    path = raw_file(tmp_path / "odd", header, want.numpy().tobytes() + bytes(8), pad)
    found = weights.load_file(path, mode=mode)
    assert_same(found["v"], want)
    assert found["v"].data_ptr() % 8 == 0 and found["c"].data_ptr() % 4 == 0


def test_read_memory_is_aligned_and_own(tmp_path: pathlib.Path) -> None:
    path = raw_file(
        tmp_path / "x", {"a": entry("U8", [3], 0, 3), "b": entry("U8", [5], 3, 8)}, b"abcdefgh"
    )
    found = weights.load_file(path, mode="read")
    assert all(t.data_ptr() % 64 == 0 for t in found.values())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in found.values())


@pytest.mark.parametrize("mode", MODES)
def test_writing_to_a_tensor_leaves_the_file_alone(saved: pathlib.Path, mode: str) -> None:
    before = saved.read_bytes()
    tensor = weights.load_file(saved, mode=mode)["row"]
    tensor.fill_(3)
    assert tensor.tolist() == [3] * 7
    assert saved.read_bytes() == before


def test_tensors_outlive_the_handle(saved: pathlib.Path) -> None:
    for mode in MODES:
        with weights.safe_open(saved, mode=mode) as opened:
            tensor = opened.get_tensor("row")
        assert_same(tensor, many_tensors()["row"])


def test_meta_device(saved: pathlib.Path) -> None:
    found = weights.load_file(saved, device="meta")
    assert {n: (t.shape, t.dtype, t.device.type) for n, t in found.items()} == {
        n: (t.shape, t.dtype, "meta") for n, t in many_tensors().items()
    }


def test_wrong_arguments(saved: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="mode"):
        weights.load_file(saved, mode="pread")
    with pytest.raises(ValueError, match="framework"):
        weights.safe_open(saved, framework="np")
    with pytest.raises(ValueError, match="threads"):
        weights.load_file(saved, mode="read", threads=0)
    with weights.safe_open(saved) as opened, pytest.raises(weights.WeightsError, match="'nope'"):
        opened.get_tensor("nope")


# ---------------------------------------------------------------------- which way


def test_auto_maps_local_files(saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with Source(saved) as source:
        device = source.files["all.safetensors"].device
        assert choose_mode(source, "auto", False, cpu) == "mmap"
        assert choose_mode(source, "auto", True, cpu) == "read"
        assert choose_mode(source, "auto", False, torch.device("cuda")) == "read"
        for kind, want in [("nfs4", "read"), ("fuse.sshfs", "read"), ("lustre", "read"),
                           ("ext4", "mmap"), ("overlay", "mmap"), ("fuse", "read")]:  # fmt: skip
            mounts = saved.parent / "mountinfo"
            place = f"{os.major(device)}:{os.minor(device)}"
            mounts.write_text(
                "21 1 0:99 / /other rw - nfs4 server rw\n"
                f"36 35 {place} / /mnt rw,noatime master:1 - {kind} /dev/root rw\n"
            )
            monkeypatch.setattr(filesystem, "MOUNTS", mounts)
            assert choose_mode(source, "auto", False, cpu) == want, kind


def test_auto_reads_what_would_need_copies(tmp_path: pathlib.Path) -> None:
    path = raw_file(tmp_path / "odd", {"v": entry("F64", [1], 0, 8)}, bytes(8), 1)
    with Source(path) as source:
        assert choose_mode(source, "auto", False, torch.device("cpu")) == "read"


# ---------------------------------------------------------------------- faults


def test_short_reads_and_interrupts(
    big: tuple[pathlib.Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = big
    real, calls = os.preadv, [0]

    def stingy(descriptor: int, views: list[memoryview], offset: int, *flags: int) -> int:
        if flags:
            return real(descriptor, views, offset, *flags)
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(descriptor, [views[0][: 1 + calls[0] * 7919 % 1_000_000]], offset)

    monkeypatch.setattr(weight_file.os, "preadv", stingy)
    assert_all_same(weights.load_file(path, mode="read"), tensors)
    assert calls[0] > 50


def test_systems_without_positional_reads(
    big: tuple[pathlib.Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = big
    monkeypatch.delattr(weight_file.os, "preadv")
    assert_all_same(weights.load_file(path, mode="read"), tensors)


def test_truncation_while_reading(
    big: tuple[pathlib.Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = big
    real, calls = os.preadv, [0]

    def cut(descriptor: int, views: list[memoryview], offset: int, *flags: int) -> int:
        calls[0] += 1
        if calls[0] == 5:
            os.truncate(path, 1_000_000)
        return real(descriptor, views, offset, *flags)

    monkeypatch.setattr(weight_file.os, "preadv", cut)
    with pytest.raises(weights.WeightsError, match=r"big\.safetensors.*while it was read"):
        weights.load_file(path, mode="read")


TRUNCATE = """
import os, sys, threading
from torch_helion import weights
path = sys.argv[1]
handle = weights.load_file
size = os.path.getsize(path)
timer = threading.Timer(0.002, os.truncate, (path, 5000))
timer.start()
try:
    for _ in range(1000):
        weights.load_file(path, mode="read")
except weights.WeightsError as error:
    assert "while it was read" in str(error) or "cut short" in str(error), error
    print("refused")
"""


def test_truncation_by_another_is_no_fatal_signal(big: tuple[pathlib.Path, dict]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATE, str(big[0])],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != -signal.SIGBUS
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_io_errors_name_the_file(
    big: tuple[pathlib.Path, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = big
    with Source(path) as source:

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "broken disk")

        monkeypatch.setattr(weight_file.os, "preadv", broken)
        with pytest.raises(OSError, match=r"big\.safetensors") as caught:
            source.files["big.safetensors"].read_bytes(0, 10)
    assert caught.value.errno == errno.EIO


def test_files_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        weights.load_file(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="folder without"):
        weights.load_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(weights.WeightsError, match="no regular file"):
        weights.load_file(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(saved: pathlib.Path) -> None:
    saved.chmod(0)
    with pytest.raises(PermissionError):
        weights.load_file(saved)


def test_permission_denied_is_told_apart(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(saved))

    monkeypatch.setattr(weight_file.os, "open", denied)
    with pytest.raises(PermissionError, match=r"all\.safetensors"):
        weights.load_file(saved)


def test_a_replaced_file_is_no_danger(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    weights.save_file({"a": torch.zeros(1000)}, path)
    with weights.safe_open(path, mode="read") as opened:
        weights.save_file({"a": torch.ones(2000)}, path)
        assert_same(opened.get_tensor("a"), torch.zeros(1000))


def test_descriptors_are_given_back(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    bad = raw_file(tmp_path / "bad", b"[]")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        for mode in MODES:
            weights.load_file(saved, mode=mode)
        with pytest.raises(weights.WeightsError):
            weights.load_file(bad)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_an_error_of_one_thread_ends_the_others() -> None:
    done = []

    def work(item: int) -> None:
        if item == 3:
            raise KeyError("three")
        done.append(item)

    with pytest.raises(KeyError, match="three"):
        reading.run_threads(list(range(10_000)), lambda: (work, lambda: None), 3)
    assert len(done) < 10_000
