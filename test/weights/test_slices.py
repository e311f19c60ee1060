"""``get_slice`` and plans against what torch's own indexing gives, and the bytes that are read."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import pytest
import torch

from test.weights.weight_files import assert_same
from torch_helion import weights
from torch_helion.weights import file as weight_file
from torch_helion.weights import strided
from torch_helion.weights.strided import parts_of, plan_gather

SHAPES = [(), (7,), (1,), (0,), (6, 5), (3, 0, 2), (4, 3, 5), (2, 3, 2, 4)]


def random_index(random_: random.Random, shape: tuple[int, ...]) -> Any:
    items: list[Any] = []
    for size in shape:
        kind = random_.randrange(4)
        if kind == 0 and size:
            items.append(random_.randrange(-size, size))
        elif kind == 1:
            items.append(slice(None))
        else:
            ends = [None, *range(-size - 2, size + 3)]
            step = random_.choice([None, 1, 2, 3])
            items.append(slice(random_.choice(ends), random_.choice(ends), step))
    cut = random_.randrange(len(items) + 1)
    if random_.random() < 0.3:
        back = random_.randrange(cut, len(items) + 1)
        return (*items[:cut], ..., *items[back:])
    return tuple(items[:cut])


@pytest.mark.parametrize("mode", ["mmap", "read"])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_indices(tmp_path: pathlib.Path, mode: str, shape: tuple[int, ...]) -> None:
    random_ = random.Random(str(shape))
    tensor = torch.randn(shape, dtype=torch.float64)
    path = tmp_path / "t.safetensors"
    weights.save_file({"pad": torch.zeros(3), "t": tensor}, path)
    with weights.safe_open(path, mode=mode) as opened:
        part = opened.get_slice("t")
        assert part.get_shape() == list(shape) and part.get_dtype() == "F64"
        for _ in range(60):
            index = random_index(random_, shape)
            got = part[index]
            assert_same(got, tensor[index])
            assert got.is_contiguous()
            planned = weights.load_file(path, mode="read", plan={"t": index})
            assert list(planned) == ["t"]
            assert_same(planned["t"], tensor[index])


def test_wrong_indices_raise_as_tensors_do(tmp_path: pathlib.Path) -> None:
    weights.save_file({"t": torch.zeros(4, 3)}, tmp_path / "t")
    with weights.safe_open(tmp_path / "t") as opened:
        part = opened.get_slice("t")
        for index in (4, -5, (0, 3), (0, 0, 0), (..., ...)):
            with pytest.raises(IndexError):
                part[index]
        for index in (slice(None, None, -1), slice(None, None, 0)):
            with pytest.raises(ValueError, match="step"):
                part[index]
        for index in ("a", 1.5, True, None, [0, 1]):
            with pytest.raises(TypeError):
                part[index]
    with pytest.raises(weights.WeightsError, match="the plan names 'gone'"):
        weights.load_file(tmp_path / "t", plan={"gone": None})


def test_packed_dtypes_are_indexed_as_torch_has_them(tmp_path: pathlib.Path) -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no 4-bit floats")
    raw = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    weights.save_file({"q": raw.view(torch.float4_e2m1fn_x2)}, tmp_path / "q")
    assert weights.read_header(tmp_path / "q").tensors["q"].shape == (4, 12)
    with weights.safe_open(tmp_path / "q", mode="read") as opened:
        part = opened.get_slice("q")[1:3, 2:4]
    assert part.view(torch.uint8).tolist() == raw[1:3, 2:4].tolist()


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read asked for."""
    real, counts = weight_file.os.preadv, []

    def counted(descriptor: int, views: list[memoryview], offset: int, *flags: int) -> int:
        if not flags:  # those only ask whether a byte is in memory
            counts.append(sum(map(len, views)))
        return real(descriptor, views, offset, *flags)

    monkeypatch.setattr(weight_file.os, "preadv", counted)
    return counts


@pytest.mark.parametrize("index", [slice(10, 20), (slice(None), slice(1024, 2048)), (3, slice(5))])
def test_only_its_bytes_are_read(tmp_path: pathlib.Path, bytes_read: list[int], index: Any) -> None:
    tensor = torch.randn(64, 4096)
    weights.save_file({"t": tensor}, tmp_path / "t")
    bytes_read.clear()
    got = weights.load_file(tmp_path / "t", mode="read", plan={"t": index})["t"]
    assert_same(got, tensor[index])
    header = 4096
    assert sum(bytes_read) - header == got.nbytes


def test_gaps_shorter_than_a_page_are_read_along(
    tmp_path: pathlib.Path, bytes_read: list[int]
) -> None:
    tensor = torch.randn(1000, 100)
    weights.save_file({"t": tensor}, tmp_path / "t")
    bytes_read.clear()
    assert_same(
        weights.load_file(tmp_path / "t", mode="read", plan={"t": (..., 3)})["t"], tensor[:, 3]
    )
    assert len(bytes_read) <= 4, "not a thousand reads"


def test_wide_selections_are_read_in_parts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of a tensor larger than the buffer that may hold gaps."""
    monkeypatch.setattr(strided, "_COVER_LIMIT", 1 << 16)
    monkeypatch.setattr("torch_helion.weights.load._PART", 1 << 16)
    tensor = torch.randn(3000, 100)
    weights.save_file({"t": tensor}, tmp_path / "t")
    for index in ((..., 3), (slice(None, None, 2), slice(None, None, 7)), (slice(1, -1), 5)):
        got = weights.load_file(tmp_path / "t", mode="read", plan={"t": index})["t"]
        assert_same(got, tensor[index])
        with weights.safe_open(tmp_path / "t", mode="read") as opened:
            assert_same(opened.get_slice("t")[index], tensor[index])


def test_gathers_of_any_strides() -> None:
    """Runs and strides together name exactly the elements of the view, also overlapping ones."""
    random_ = random.Random(1)
    memory = torch.arange(40_000, dtype=torch.int32)
    for _ in range(300):
        rank = random_.randrange(1, 4)
        counts = [random_.randrange(1, 6) for _ in range(rank)]
        strides = [random_.choice([0, 1, 2, 5, 30, 1100, 1500]) for _ in range(rank)]
        want = memory.as_strided(counts, strides)
        gather = plan_gather(counts, [4 * s for s in strides], 4)
        runs = [memory[r // 4 : (r + gather.span) // 4] for r in gather.runs()]
        flat = torch.cat(runs)
        assert flat.nbytes == gather.nbytes
        got = flat.as_strided(counts, [s // 4 for s in gather.strides])
        assert torch.equal(got, want), (counts, strides)
        boxes = list(parts_of(counts, [4 * s for s in strides], 4, 64))
        parts = [want[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))] for box in boxes]
        assert torch.cat([p.reshape(-1) for p in parts]).tolist() == want.reshape(-1).tolist()
