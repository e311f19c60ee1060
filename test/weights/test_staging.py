"""The ring to a device, with a fake device that copies late and notices reuse that comes early."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import pytest
import torch

from test.weights.weight_files import assert_all_same, many_tensors
from torch_helion import weights
from torch_helion.weights import staging
from torch_helion.weights.cli import main


class FakeDevice:
    """Copies happen when their event is waited for, as late as a device may do them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.buffers: list[torch.Tensor] = []
        self.bytes_copied = 0
        self.allocated = 0

    def empty(self, nbytes: int) -> torch.Tensor:
        self.allocated += nbytes
        return torch.full((nbytes,), 0xAB, dtype=torch.uint8)

    def pinned(self, nbytes: int) -> torch.Tensor:
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        self.buffers.append(buffer)
        return buffer

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with self.lock:
            self.pending.append((target, source))

    def record(self) -> Any:
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        with device.lock:
            self.copies, device.pending = device.pending, []

    def synchronize(self) -> None:
        copies, self.copies = self.copies, []
        for target, source in copies:
            target.copy_(source)
            self.device.bytes_copied += target.numel()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr(staging, "ops_for", lambda _: fake)
    return fake


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, torch.Tensor]]:
    tensors = {**many_tensors(), "long": torch.randn(9_000_001), "wide": torch.randn(300, 4000)}
    path = tmp_path / "x.safetensors"
    weights.save_file(tensors, path)
    return path, tensors


@pytest.mark.parametrize("threads", [1, 3])
def test_everything_arrives(
    saved: tuple[pathlib.Path, dict], device: FakeDevice, threads: int
) -> None:
    path, tensors = saved
    assert_all_same(weights.load_file(path, mode="read", threads=threads), tensors)
    total = sum(t.nbytes for t in tensors.values())
    assert device.bytes_copied == device.allocated == total
    assert len(device.buffers) <= threads * staging.RING, "a ring, not the whole file"


def test_slices_and_verification(saved: tuple[pathlib.Path, dict], device: FakeDevice) -> None:
    path, tensors = saved
    plan = {"wide": (slice(None), slice(100, 200)), "long": None}
    found = weights.load_file(path, mode="read", plan=plan)
    want = {"wide": tensors["wide"][:, 100:200], "long": tensors["long"]}
    assert_all_same(found, want)
    main(["manifest", str(path)])
    assert_all_same(weights.load_file(path, verify=True), tensors)
    assert_all_same(weights.load_file(path, verify=True, plan=plan), want)
    with open(path, "r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x55")
    with pytest.raises(weights.WeightsError, match="sha256"):
        weights.load_file(path, verify=True)


def test_into_live_parameters(tmp_path: pathlib.Path, device: FakeDevice) -> None:
    model, other = torch.nn.Linear(500, 900), torch.nn.Linear(500, 900)
    weights.save_model(model, tmp_path / "x")
    where = other.weight.data_ptr()
    weights.load_model(other, tmp_path / "x")
    assert_all_same(dict(other.state_dict()), dict(model.state_dict()))
    assert other.weight.data_ptr() == where
    assert device.bytes_copied == sum(p.nbytes for p in model.parameters())


def test_the_fake_device_would_notice(saved: tuple[pathlib.Path, dict], device: FakeDevice) -> None:
    """A ring that does not wait before it reuses a buffer loses bytes: the test can fail."""

    class Careless(staging.StagingSink):
        def land(self, file: Any, chunk: Any) -> None:
            kept, self.busy = self.busy, [None] * len(self.slots)
            super().land(file, chunk)
            self.busy = [now or before for now, before in zip(self.busy, kept, strict=True)]

    path, tensors = saved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "StagingSink", Careless)
        found = weights.load_file(path, mode="read", threads=1)
    assert not torch.equal(found["long"], tensors["long"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["auto", "read", "mmap"])
def test_a_real_device(saved: tuple[pathlib.Path, dict], mode: str) -> None:
    path, tensors = saved
    found = weights.load_file(path, device="cuda", mode=mode)
    assert {t.device.type for t in found.values()} == {"cuda"}
    assert_all_same({name: t.cpu() for name, t in found.items()}, tensors)
    model, other = torch.nn.Linear(500, 900), torch.nn.Linear(500, 900).cuda()
    weights.save_model(model, path)
    main(["manifest", str(path)])
    for verify in (None, True):
        weights.load_model(other, path, verify=verify)
        assert_all_same(
            {name: t.cpu() for name, t in other.state_dict().items()}, dict(model.state_dict())
        )
