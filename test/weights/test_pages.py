"""Pages come before the copy; huge ones are given up where they are slow."""

from __future__ import annotations

import errno
import mmap

import pytest
import torch

from torch_helion.weights import pages
from torch_helion.weights.memory import Arena, bytes_of, plain

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="only Linux brings pages in by advice"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Every advice that was given; answered with success."""
    found: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_can_populate", True)
    monkeypatch.setattr(
        pages, "_call", lambda begin, size, advice: found.append((begin, size, advice)) or 0
    )
    return found


def test_whole_pages_around_the_view(calls: list[tuple[int, int, int]]) -> None:
    arena = Arena(16 << 20)
    view = arena.view(100, 1 << 20)
    pages.prefault(view)
    ((begin, size, advice),) = calls
    address = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
    assert begin % pages.PAGE == size % pages.PAGE == 0
    assert begin <= address and address + len(view) <= begin + size < address + len(view) + 8192
    assert advice == pages._POPULATE_WRITE
    pages.prefault(arena.view(0, 1000))
    assert len(calls) == 1, "not worth a call"


def test_slow_huge_pages_are_given_up_once(
    calls: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    arena, other = Arena(16 << 20), Arena(16 << 20)
    monkeypatch.setattr(pages, "_SLOW", -1.0)
    for place in (0, 4 << 20, 8 << 20):
        pages.prefault(arena.view(place, 4 << 20))
    given_up = [call for call in calls if call[2] == mmap.MADV_NOHUGEPAGE]
    assert len(given_up) == 1
    assert pages._regions[arena._map].huge is False
    assert pages._regions[other._map].huge is True


def test_fast_huge_pages_are_kept(
    calls: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_SLOW", 1.0)
    arena = Arena(16 << 20)
    pages.prefault(arena.view(0, 8 << 20))
    assert pages._regions[arena._map].huge is True
    assert [call[2] for call in calls] == [pages._POPULATE_WRITE]


def test_an_old_kernel_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pages, "_can_populate", True)
    monkeypatch.setattr(pages, "_call", lambda *_: asked.append(1) or errno.EINVAL)
    arena = Arena(8 << 20)
    for _ in range(3):
        pages.prefault(arena.view(0, 1 << 20))
    assert len(asked) == 1
    assert pages._can_populate is False


def test_for_real() -> None:
    arena = Arena(12 << 20)
    view = arena.view(0, 8 << 20)
    view[5:9] = b"kept"
    pages.prefault(view)
    assert bytes(view[4:10]) == b"\0kept\0"
    tensor = torch.arange(1 << 20)
    pages.prefault(bytes_of(tensor))
    assert tensor[-1] == (1 << 20) - 1


def test_regions_are_forgotten_with_their_memory() -> None:
    before = len(pages._regions)
    arena = Arena(8 << 20)
    tensor = arena.tensor(arena.take(1 << 20), torch.float32, (4, 1 << 16))
    assert len(pages._regions) == before + 1
    del arena
    assert len(pages._regions) == before + 1, "the tensor holds the mapping"
    del tensor
    assert len(pages._regions) == before


def test_plain_strides() -> None:
    odd = torch.arange(10.0).as_strided((1, 2), (45, 1))
    assert plain(odd).stride() == (2, 1) and plain(odd).tolist() == [[0.0, 1.0]]
