"""What the printer's text asks of the language beyond Helion's names, and what it found wrong."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.frontend.read_back import normal_form, read_back
from torch_helion import exc
from torch_helion.ir import philox
from torch_helion.ir.builder import Builder
from torch_helion.ir.printer import to_source
from torch_helion.ir.types import Affine, Gather


def test_each_lane_of_an_atomic_counts() -> None:
    """Also where an index does not move, and where the target has no dimension."""

    @helion.kernel(config=helion.Config(block_sizes=[4]))
    def count(total: torch.Tensor, bins: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for tile in hl.tile(x.size(0)):
            hl.atomic_add(total, [], x[tile])
            hl.atomic_add(bins, [hl.full([tile], 1, dtype=torch.int64)], 1)
        return bins

    total, bins = torch.zeros([]), torch.zeros(3, dtype=torch.int64)
    count(total, bins, torch.arange(11.0))
    assert total == 55 and bins.tolist() == [0, 11, 0]


def test_atomics_leave_masked_lanes_out() -> None:
    @helion.kernel(config=helion.Config(block_sizes=[4]))
    def count(bins: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for tile in hl.tile(x.size(0)):
            hl.atomic_add(bins, [x[tile]], 1, extra_mask=x[tile] < 2)
        return bins

    got = count(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2, 2, 1, 1]))
    assert got.tolist() == [1, 3, 0]


@pytest.mark.parametrize("reverse", [False, True])
def test_exclusive_scans(reverse: bool) -> None:
    @helion.kernel(config=helion.Config(block_sizes=[2]))
    def scans(x: torch.Tensor, reverse: hl.constexpr) -> tuple[torch.Tensor, torch.Tensor]:
        sums, least = torch.empty_like(x), torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            sums[tile, :] = hl.cumsum(x[tile, :], 1, reverse=reverse, exclusive=True)
            least[tile, :] = hl.associative_scan(
                torch.minimum, x[tile, :], 1, reverse=reverse, exclusive=True
            )
        return sums, least

    x = torch.randn(3, 9)
    way = x.flip(1) if reverse else x
    want = [way.cumsum(1), way.cummin(1).values]
    first = [torch.zeros(3, 1), torch.full((3, 1), float("inf"))]
    want = [torch.cat([f, w[:, :-1]], 1) for f, w in zip(first, want, strict=True)]
    torch.testing.assert_close(list(scans(x, reverse)), [w.flip(1) if reverse else w for w in want])


def test_an_exclusive_scan_needs_an_identity() -> None:
    @helion.kernel
    def scan(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            out[tile, :] = hl.associative_scan(torch.hypot, x[tile, :], 1, exclusive=True)
        return out

    with pytest.raises(exc.TypeInferenceError, match="exclusive=True needs"):
        scan(torch.ones(2, 3))


def test_random_numbers_at_given_places() -> None:
    @helion.kernel(config=helion.Config(block_sizes=[4]))
    def draw(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normal, whole = torch.empty_like(x), torch.empty_like(x, dtype=torch.int64)
        for tile in hl.tile(x.size(0)):
            places = tile.index * 3
            normal[tile] = hl.randn([tile], seed=5, offsets=places)
            whole[tile] = hl.randint([tile], -3, 9, seed=5, offsets=places, dtype=torch.int64)
        return normal, whole

    places = torch.arange(7) * 3
    normal, whole = draw(torch.empty(7))
    torch.testing.assert_close(normal, philox.normal(5, places))
    assert torch.equal(whole, philox.randint(5, places, -3, 9))


def test_fma_rounds_once() -> None:
    @helion.kernel
    def fma(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(a)
        for tile in hl.tile(a.size(0)):
            out[tile] = hl.fma(a[tile], b[tile], -1.0)
        return out

    a = torch.full([5], 1 + 2.0**-12)
    want = (a.double() * a.double() - 1).float()
    assert torch.equal(fma(a, a), want) and not torch.equal(a * a - 1, want)


@pytest.mark.parametrize(
    "error, raised", [("index out of range", IndexError), ("division by zero", RuntimeError)]
)
def test_assertions(error: str, raised: type[Exception]) -> None:
    @helion.kernel
    def positive(x: torch.Tensor, error: hl.constexpr) -> torch.Tensor:
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            hl.device_assert(x[tile] > 0, error)
            out[tile] = x[tile]
        return out

    x = torch.tensor([1.0, 2.0])
    assert torch.equal(positive(x, error), x)
    with pytest.raises(raised):
        positive(-x, error)
    with pytest.raises(exc.InvalidAPIUsage, match="the error is"):
        positive(x, "another one")


def test_a_position_in_each_row() -> None:
    """x[m, index[m]]: vectors would span a product, so the text gives them one more dimension."""
    b = Builder("pick")
    n = b.size("n")
    x = b.buffer("x", torch.float32, (n, 7), (7, 1), "in")
    index = b.buffer("index", torch.int64, (n,), (1,), "in")
    out = b.buffer("out", torch.float32, (n,), (1,), "out")
    m = b.axis("m", n)
    with b.grid(m):
        at = b.load(index, [Affine.of(m)])
        b.store(out, [Affine.of(m)], b.load(x, [Affine.of(m), Gather(0)], [at], checked=True))
    kernel = b.build()
    assert "x[tile_m.index[:, None], index0[:, None]].squeeze(-1)" in to_source(kernel)
    assert normal_form(read_back(kernel)) == normal_form(kernel)


def test_a_tile_of_a_dimension_of_size_one_under_a_mask() -> None:
    """The one place is written if the one lane is not masked off."""

    @helion.kernel(static_shapes=True)
    def keep(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for i, j in hl.tile([out.size(0), x.size(0)]):
            hl.store(out, [i, j], x[j][None, :], extra_mask=x[j][None, :] > 0)
        return out

    assert keep(torch.zeros(3, 1), torch.ones(1)).tolist() == [[1.0]] * 3
    assert keep(torch.zeros(3, 1), -torch.ones(1)).tolist() == [[0.0]] * 3
