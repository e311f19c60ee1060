"""Saving: files that every reader takes, aligned without holes, whole or not there at all."""

from __future__ import annotations

import errno
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from test.weights.weight_files import ROOT, assert_all_same, assert_same, many_tensors
from torch_helion import weights
from torch_helion.weights import atomic


def test_the_reference_reads_it(tmp_path: pathlib.Path) -> None:
    tensors = {k: v for k, v in many_tensors().items() if "F4" not in k}
    weights.save_file(tensors, tmp_path / "x", metadata={"format": "pt", "ü": "☃"})
    assert_all_same(safetensors.torch.load_file(tmp_path / "x"), tensors)
    with safetensors.safe_open(tmp_path / "x", "pt") as theirs:
        assert theirs.metadata() == {"format": "pt", "ü": "☃"}


def test_round_trips_of_random_tensors(tmp_path: pathlib.Path) -> None:
    random_ = random.Random(2)
    dtypes = [torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.bool]
    for _ in range(30):
        tensors = {}
        for n in range(random_.randrange(6)):
            shape = [random_.randrange(9) for _ in range(random_.randrange(4))]
            tensors[f"t{n}"] = (torch.randn(shape) * 9).to(random_.choice(dtypes))
        weights.save_file(tensors, tmp_path / "x", align=random_.choice([1, 16, 64, 4096]))
        for mode in ("mmap", "read"):
            assert_all_same(weights.load_file(tmp_path / "x", mode=mode), tensors)


def test_large_tensors_are_aligned_without_holes(tmp_path: pathlib.Path) -> None:
    tensors = {
        "a.bias": torch.randn(3),
        "b.weight": torch.randn(64, 48).to(torch.bfloat16),
        "c.weight": torch.randn(160, 8),
        "d.step": torch.tensor(3, dtype=torch.int64),
        "e.flag": torch.tensor([True]),
        "f.half": torch.randn(5).half(),
    }
    weights.save_file(tensors, tmp_path / "x")
    header = weights.read_header(tmp_path / "x")
    assert header.data_start == 4096
    assert header.alignment == "element"
    for name in ("b.weight", "c.weight"):
        assert (header.data_start + header.tensors[name].begin) % 64 == 0
    found = weights.load_file(tmp_path / "x", mode="mmap")
    assert found["b.weight"].data_ptr() % 64 == 0
    with pytest.raises(ValueError, match="power of two"):
        weights.save_file(tensors, tmp_path / "x", align=48)


def test_views_are_written_by_value(tmp_path: pathlib.Path) -> None:
    base = torch.randn(50, 60)
    tensors = {
        "t": base.t(),
        "slice": base[3:9, ::7],
        "expanded": base[:1].expand(5, 60),
        "conj": torch.randn(4, dtype=torch.complex64).conj(),
        "neg": torch.randn(4, dtype=torch.complex64).conj().imag,
        "grad": torch.randn(3, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    weights.save_file(tensors, tmp_path / "x")
    assert_all_same(weights.load_file(tmp_path / "x"), tensors)


def test_large_views_are_written_in_blocks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_helion.weights.write._BLOCK", 1000)
    tensor = torch.randn(70, 90).t()
    weights.save_file({"t": tensor, "v": torch.randn(999)[::2]}, tmp_path / "x")
    assert_same(weights.load_file(tmp_path / "x")["t"], tensor)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.eye(3).to_sparse()}, "'a': the format has no sparse"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "no quantised"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "no dtype for torch.complex128"),
        ({"a": torch.ones(2, device="meta")}, "meta tensor"),
        ({"": torch.ones(2)}, "empty name"),
        ({"a\nb": torch.ones(2)}, "control character"),
        ({"\ud800": torch.ones(2)}, "surrogate"),
        ({"__metadata__": torch.ones(2)}, "reserved"),
    ],
)
def test_what_cannot_be_saved(tmp_path: pathlib.Path, tensors: dict, message: str) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(weights.WeightsError, match=message):
        weights.save_file(tensors, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_wrong_types(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match="must be a tensor"):
        weights.save_file({"a": 3}, tmp_path / "x")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="metadata"):
        weights.save_file({}, tmp_path / "x", metadata={"step": 2})  # type: ignore[dict-item]
    with pytest.raises(weights.WeightsError, match="at most 100000000"):
        weights.save_file({}, tmp_path / "x", metadata={"k": "v" * 100_000_001})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_honoured(tmp_path: pathlib.Path, mask: int, mode: int) -> None:
    old = os.umask(mask)
    try:
        weights.save_file({"a": torch.ones(2)}, tmp_path / "x")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_saving_over_the_mapped_file(tmp_path: pathlib.Path, mode: str) -> None:
    path = tmp_path / "m"
    tensors = {"a": torch.randn(5000), "b": torch.arange(9)}
    weights.save_file(tensors, path)
    held = weights.load_file(path, mode=mode)
    weights.save_file({**held, "c": torch.ones(3)}, path)
    assert_all_same(held, tensors)
    assert_all_same(weights.load_file(path), {**tensors, "c": torch.ones(3)})
    assert os.listdir(tmp_path) == ["m"]


def test_disk_full_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.save_file({"a": torch.zeros(5)}, tmp_path / "x")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        weights.save_file({"a": torch.ones(50)}, tmp_path / "x")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["x"]
    assert_same(weights.load_file(tmp_path / "x")["a"], torch.zeros(5))


def test_a_real_limit_of_file_size(tmp_path: pathlib.Path) -> None:
    """The kernel itself refuses the write in the middle, as a full disk does."""
    weights.save_file({"a": torch.zeros(5)}, tmp_path / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError) as caught:
            weights.save_file({"a": torch.ones(1 << 20)}, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["x"]
    assert_same(weights.load_file(tmp_path / "x")["a"], torch.zeros(5))


def test_permission_denied(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic.os, "open", denied)
    with pytest.raises(PermissionError):
        weights.save_file({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        monkeypatch.undo()
        weights.save_file({"a": torch.ones(2)}, tmp_path / "no folder" / "x")


SAVE_FOREVER = """
import sys, torch
from torch_helion import weights
value = 0
print("ready", flush=True)
while True:
    value += 1
    weights.save_file({"a": torch.full((300_000,), float(value))}, sys.argv[1])
"""


def saver(path: pathlib.Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(path)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_while_saving(tmp_path: pathlib.Path) -> None:
    """Whenever the process dies, the file is one whole version."""
    path = tmp_path / "x.safetensors"
    random_ = random.Random(4)
    for _ in range(4):
        process = saver(path)
        time.sleep(0.02 + random_.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        if path.exists():
            tensor = weights.load_file(path, mode="read")["a"]
            assert len(tensor) == 300_000 and (tensor == tensor[0]).all()


def test_two_processes_save_and_one_reads(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    savers = [saver(path) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for n in range(100):
            tensor = weights.load_file(path, mode="read" if n % 2 else "mmap")["a"]
            assert len(tensor) == 300_000 and (tensor == tensor[0]).all()
    finally:
        for process in savers:
            process.kill()
            process.wait(timeout=60)


# ---------------------------------------------------------------------- models


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(7, 4)
        self.out = torch.nn.Linear(4, 7, bias=False)
        self.out.weight = self.emb.weight


def test_tied_weights_are_written_once(tmp_path: pathlib.Path) -> None:
    a, b = Tied(), Tied()
    weights.save_model(a, tmp_path / "x")
    header = weights.read_header(tmp_path / "x")
    assert list(header.tensors) == ["emb.weight"]
    assert header.metadata == {"out.weight": "emb.weight"}
    assert weights.load_model(b, tmp_path / "x") == ([], [])
    assert_same(b.emb.weight, a.emb.weight)
    assert b.out.weight is b.emb.weight
    safetensors.torch.load_model(Tied(), tmp_path / "x")


def test_tied_weights_fill_a_model_that_is_not(tmp_path: pathlib.Path) -> None:
    a, b = Tied(), Tied()
    b.out.weight = torch.nn.Parameter(torch.zeros(7, 4))
    weights.save_model(a, tmp_path / "x")
    assert weights.load_model(b, tmp_path / "x") == ([], [])
    assert_same(b.out.weight, a.emb.weight)
    assert_same(b.emb.weight, a.emb.weight)


def test_views_of_one_memory_that_differ_are_all_written(tmp_path: pathlib.Path) -> None:
    model = torch.nn.Module()
    base = torch.randn(4, 4)
    model.register_buffer("whole", base)
    model.register_buffer("turned", base.t())
    model.register_buffer("row", base[0])
    weights.save_model(model, tmp_path / "x")
    assert_all_same(weights.load_file(tmp_path / "x"), dict(model.state_dict()))
