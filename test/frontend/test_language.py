"""Parts of the language one by one: random numbers, atomics, stacks, loops, values of the host."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.frontend.harness import check, run, traced
from torch_helion import exc

TABLE = torch.arange(10.0)
FACTOR = 3


# -- random numbers -----------------------------------------------------------------------------


def uniform(x: torch.Tensor, seed: int) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile_m, tile_n in hl.tile(x.size()):
        out[tile_m, tile_n] = hl.rand([tile_m, tile_n], seed=seed)
    return out


def test_rand_does_not_depend_on_blocks() -> None:
    x = torch.empty(13, 21)
    first = run(uniform, x, 5)
    assert ((first >= 0) & (first < 1)).all() and first.unique().numel() > 250
    for blocks in (1, 4, 16):
        torch.testing.assert_close(run(uniform, x, 5, blocks=blocks), first, rtol=0, atol=0)
    assert not torch.equal(run(uniform, x, 6), first)
    compiled = helion.kernel(uniform)(x, 5)
    torch.testing.assert_close(compiled, first, rtol=0, atol=0)


def uniform_at(x: torch.Tensor, seed: int) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        for other in hl.tile(x.size(1)):
            places = tile.index[:, None] * x.size(1) + other.index[None, :]
            out[tile, other] = hl.rand([tile, other], seed=seed, offsets=places)
    return out


def test_rand_at_given_places() -> None:
    x = torch.empty(7, 9)
    torch.testing.assert_close(run(uniform_at, x, 5, blocks=4), run(uniform, x, 5))


def whole_numbers(x: torch.Tensor, seed: int) -> torch.Tensor:
    out = torch.empty(x.size(0), dtype=torch.int32)
    for tile in hl.tile(x.size(0)):
        out[tile] = hl.randint([tile], low=3, high=8, seed=seed)
    return out


def test_randint() -> None:
    out = run(whole_numbers, torch.empty(300), 1, blocks=16)
    assert set(out.tolist()) == {3, 4, 5, 6, 7}
    assert torch.equal(out, run(whole_numbers, torch.empty(300), 1, blocks=7))


def four(x: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    a, b, c, d = (torch.empty_like(x) for _ in range(4))
    for tile in hl.tile(x.size(0)):
        parts = hl.rand4x(seed, tile.index)
        a[tile] = parts[0]
        b[tile] = parts[1]
        c[tile] = parts[2]
        d[tile] = parts[3]
    return a, b, c, d


def test_rand4x() -> None:
    parts = run(four, torch.empty(50), 9, blocks=8)
    assert len({tuple(p.tolist()) for p in parts}) == 4
    for mine, other in zip(parts, run(four, torch.empty(50), 9), strict=True):
        assert torch.equal(mine, other)


def noise(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = torch.rand_like(x[tile]) + torch.nn.functional.dropout(x[tile], 0.5)
    return out


def test_torch_rand_follows_the_seed() -> None:
    kernel, x = helion.kernel(noise), torch.ones(64)
    torch.manual_seed(1)
    first, second = kernel(x), kernel(x)
    torch.manual_seed(1)
    assert torch.equal(kernel(x), first) and not torch.equal(first, second)


def noise_in_loops(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.size(0), 4)
    for tile in hl.tile(x.size(0)):
        for k in hl.tile(2, block_size=1):
            out[tile, k.id] = torch.rand_like(x[tile])
        for i in hl.grid(2):
            out[tile, 2 + i] = torch.rand_like(x[tile])
    return out


def test_torch_rand_differs_from_round_to_round() -> None:
    out = run(noise_in_loops, torch.empty(20), blocks=4)
    assert out.unique().numel() == 80


# -- memory -------------------------------------------------------------------------------------


def atomics(x: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, ...]:
    added, most = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    least = torch.full((4,), 99)
    bits = torch.zeros(4, dtype=torch.int64)
    for tile in hl.tile(x.size(0)):
        hl.atomic_add(added, [at[tile]], x[tile])
        hl.atomic_max(most, [at[tile]], x[tile], sem="relaxed")
        hl.atomic_min(least, [at[tile]], x[tile])
        hl.atomic_or(bits, [at[tile]], x[tile])
    return added, most, least, bits


def test_atomics() -> None:
    x, at = torch.arange(1, 20), torch.arange(19) % 4
    added = torch.zeros(4, dtype=torch.int64).index_add(0, at, x)
    most = torch.stack([x[at == k].amax() for k in range(4)])
    least = torch.stack([x[at == k].amin() for k in range(4)])
    bits = torch.zeros(4, dtype=torch.int64)
    for n, k in zip(x.tolist(), at.tolist(), strict=True):
        bits[k] |= n
    check(atomics, (x, at), (added, most, least, bits))
    torch.testing.assert_close(helion.kernel(atomics)(x, at), (added, most, least, bits))


def swaps(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        old = hl.atomic_cas(x, [tile], 3, 7)
        before[tile] = old
    return x, before


def test_cas() -> None:
    x = torch.tensor([3, 1, 3, 4])
    wanted = (torch.tensor([7, 1, 7, 4]), x.clone())
    check(swaps, (x,), wanted)


def stacked(like: torch.Tensor, pointers: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(like)
    for tile_m, tile_n in hl.tile(like.size()):
        stack = hl.stacktensor_like(like, pointers[:])
        out[tile_m, tile_n] = stack[tile_m, tile_n].sum(0)
    return out


def test_stack_of_tensors() -> None:
    a, b = torch.randn(6, 10), torch.randn(6, 10)
    pointers = torch.tensor([a.data_ptr(), b.data_ptr()])
    torch.testing.assert_close(run(stacked, a, pointers, blocks=4), a + b)
    torch.testing.assert_close(helion.kernel(stacked)(a, pointers), a + b)


def masked(x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, -1)
    for tile in hl.tile(x.size(0)):
        late = hl.load(x, [tile.index + 2], extra_mask=tile.index + 2 < x.size(0))
        hl.store(out, [tile], late, extra_mask=tile.index % 2 == 0)
    return out


def test_masks_of_loads_and_stores() -> None:
    def expect(x: torch.Tensor) -> torch.Tensor:
        moved = torch.cat([x[2:], torch.zeros(2)])
        return torch.where(torch.arange(x.numel()) % 2 == 0, moved, -1)

    check(masked, (torch.randn(11),), expect)


def out_of_range(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile.index + 1]
    return out


def test_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError):
        run(out_of_range, torch.randn(8))
    with pytest.raises(IndexError):
        helion.kernel(out_of_range)(torch.randn(8))


# -- loops and tiles ----------------------------------------------------------------------------


def tile_facts(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(2, x.size(0), block_size=4):
        out[tile.id, 0] = tile.begin
        out[tile.id, 1] = tile.end
        out[tile.id, 2] = tile.count
        out[tile.id, 3] = tile.block_size
        out[tile.id, 4] = x[tile].sum()
        out[tile.id, 5] = hl.tile_index(tile).amax()
    return out


def test_facts_of_tiles() -> None:
    x = torch.arange(11.0)
    rows = [[2, 6, 3, 4, 14, 5], [6, 10, 3, 4, 30, 9], [10, 11, 3, 4, 10, 10]]
    check(tile_facts, (x, torch.zeros(3, 6)), (torch.tensor(rows, dtype=torch.float)))
    got = helion.kernel(tile_facts)(x, torch.zeros(3, 6))
    torch.testing.assert_close(got, torch.tensor(rows, dtype=torch.float))


def many_loops(x: torch.Tensor, n: int) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        total = x[tile] * 0
        count = 0
        for a in range(1, n, 2):
            for b, c in hl.grid([2, n]):
                total = total + a * b - c
                count += 1
        for d in hl.static_range(3):
            total = total + d
        for k, (scale, name) in enumerate(zip([1, 2], ("a", "b"), strict=True)):
            if name == "b":
                total += scale * k
        out[tile] = total + count
    return out


def test_loops_inside() -> None:
    def expect(x: torch.Tensor, n: int) -> torch.Tensor:
        total = count = 0
        for a in range(1, n, 2):
            for b in range(2):
                for c in range(n):
                    total, count = total + a * b - c, count + 1
        return torch.full_like(x, total + 3 + 2 + count)

    for n in (0, 1, 6):
        check(many_loops, (torch.zeros(5), n), expect)
    kernel = helion.kernel(many_loops)
    for n in (4, 7):
        torch.testing.assert_close(kernel(torch.zeros(5), n), expect(torch.zeros(5), n))


def tuple_of_tiles(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tiles in hl.tile(x.size()):
        out[tiles] = x[tiles] + 1
    return out


def test_tuple_of_tiles_is_an_index() -> None:
    check(tuple_of_tiles, (torch.randn(3, 5, 4),), lambda x: x + 1)


def nothing_to_do(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for tile in hl.tile(x.size(0)):
        acc = hl.zeros([tile])
        for k in hl.tile(x.size(1)):
            acc += x[tile, k].sum(-1)
        out[tile, :] = acc[:, None] + x[tile, :]
    return out


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (3, 5)])
def test_empty_ranges(shape: tuple[int, int]) -> None:
    check(nothing_to_do, (torch.ones(shape),), lambda x: x.sum(-1, keepdim=True) + x)
    got = helion.kernel(nothing_to_do)(torch.ones(shape))
    torch.testing.assert_close(got, torch.ones(shape).sum(-1, keepdim=True) + torch.ones(shape))


# -- values of the host ---------------------------------------------------------------------------


@dataclasses.dataclass
class Options:
    scale: float
    bias: torch.Tensor
    name: str = "plain"


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def of_the_host(x: torch.Tensor, o: Options, pair: Pair, more: dict[str, Any]) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        value = x[tile] * o.scale + o.bias[tile]
        if o.name == "plain":
            value += pair.left[tile] * more["weights"][0] - pair.right[tile] * more["weights"][1]
        out[tile] = value + TABLE[tile] * FACTOR
    return out


def test_structures_as_arguments_and_globals() -> None:
    x, bias, left, right = (torch.randn(10) for _ in range(4))
    args = (x, Options(0.5, bias), Pair(left, right), {"weights": [2.0, 3.0]})
    wanted = x * 0.5 + bias + left * 2 - right * 3 + TABLE * FACTOR
    check(of_the_host, args, wanted)
    torch.testing.assert_close(helion.kernel(of_the_host)(*args), wanted)


def numbers(x: torch.Tensor, n: int, f: float, flag: bool, how: hl.constexpr) -> torch.Tensor:  # type: ignore[valid-type]
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        value = x[tile] * f + n
        if flag:
            value = -value
        if n > 3:
            value = value * 2
        out[tile] = value + how
    return out


def test_numbers_as_arguments() -> None:
    kernel = helion.kernel(numbers)
    x = torch.randn(6)
    for n, f, flag, how in [(1, 0.5, True, 2), (5, -1.25, True, 2), (4, 0.1, False, 3)]:
        wanted = (x * f + n) * (-1 if flag else 1) * (2 if n > 3 else 1) + how
        torch.testing.assert_close(kernel(x, n, f, flag, how), wanted)


def first_positive(x: Any, y: Any) -> Any:
    """A helper with returns in its branches."""
    if isinstance(y, float):
        return torch.where(x > 0, x, y)
    return y


def helped(x: torch.Tensor, limit: int) -> torch.Tensor:
    def local(v: Any, k: int = 2) -> Any:
        if limit > 3:
            return v * k
        return v + k

    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        parts = [first_positive(x[tile], n) for n in (0.5, 0.25)]
        out[tile] = local(sum(parts)) + max(limit, 2)
    return out


def test_helpers() -> None:
    def expect(x: torch.Tensor, limit: int) -> torch.Tensor:
        total = torch.where(x > 0, x, 0.5) + torch.where(x > 0, x, 0.25)
        return (total * 2 if limit > 3 else total + 2) + max(limit, 2)

    for limit in (1, 5):
        check(helped, (torch.randn(9), limit), expect)
    kernel, x = helion.kernel(helped), torch.randn(9)
    for limit in (1, 5):
        torch.testing.assert_close(kernel(x, limit), expect(x, limit))


def same_tensor_twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        x[tile] = x[tile] + 1
        y[tile] = y[tile] * 2
    return x


def test_a_tensor_under_two_names() -> None:
    x = torch.arange(5.0)
    torch.testing.assert_close(run(same_tensor_twice, x, x), (torch.arange(5.0) + 1) * 2)
    kernel, plain = helion.kernel(same_tensor_twice), torch.arange(5.0)
    for _ in range(2):
        x, y = plain.clone(), plain.clone()
        kernel(x, x)
        torch.testing.assert_close(x, (plain + 1) * 2)
        x = plain.clone()
        kernel(x, y)
        torch.testing.assert_close((x, y), (plain + 1, plain * 2))


# -- what a trace tells ---------------------------------------------------------------------------


def tuned(x: torch.Tensor) -> torch.Tensor:
    block = hl.register_block_size(4, 64)
    out = torch.empty_like(x)
    for tile_m, tile_n in hl.tile(x.size(), block_size=[None, block]):
        out[tile_m, tile_n] = x[tile_m, tile_n]
    return out


def test_block_sizes_of_a_trace() -> None:
    found = traced(tuned, torch.randn(20, 30))
    registered, tile = found.config_spec.block_sizes
    assert (registered.min_size, registered.max_size, tile.name) == (4, 64, "tile_m")
    assert found.kernel.blocks == (registered.name, tile.name)
    assert found.config_spec.loop_orders == [2]


def prints(x: torch.Tensor) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        hl.device_print("tile", x[tile], tile.begin)
        x[tile] = x[tile]
    return x


def test_device_print(capfd: pytest.CaptureFixture[str]) -> None:
    run(prints, torch.arange(3.0))
    text = "".join(capfd.readouterr())
    assert "tile" in text and "2" in text


def half_products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y * torch.exp(y).sum()
    out = torch.empty(x.size(0), y.size(1))
    for tile_m, tile_n in hl.tile(out.size()):
        acc = hl.zeros([tile_m, tile_n])
        for tile_k in hl.tile(x.size(1)):
            acc += x[tile_m, tile_k] @ y[tile_k, tile_n]
        out[tile_m, tile_n] = acc
    return out


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(4, 4, dtype=torch.float16)
    run(half_products, x, x)
    text = capsys.readouterr().err
    assert "TensorOperationInWrapper" in text and "(exp)" in text and "y = y * torch.exp" in text
    assert "TiledKMatmulAccumulationWarning" in text
    run(half_products, x, x, ignore_warnings=[exc.BaseWarning])
    assert capsys.readouterr().err == ""


def test_refused_functions() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        for tile in hl.tile(4):
            x[tile] = hl.dot_scaled(x[tile], x[tile], "e4m3", x[tile], x[tile], "e4m3")
        return x

    with pytest.raises(exc.BackendUnsupported, match="dot_scaled"):
        run(scaled, torch.ones(4))


@helion.kernel(config=helion.Config(block_sizes=[4]))
def count_pairs(places: torch.Tensor, rows: int) -> torch.Tensor:
    counts = torch.zeros(3, dtype=torch.int64)
    block = hl.register_block_size(rows)
    for tile_r in hl.tile(rows, block_size=block):
        for tile_p in hl.tile(places.size(0), block_size=block):
            pairs = places[tile_p][None, :].expand(tile_r, tile_p)
            hl.atomic_add(counts, [pairs], 1)
    return counts


def test_tiles_of_one_block_size_are_told_apart() -> None:
    """7 rows and 5 places in blocks of 4: the lanes beyond each tile are its own."""
    places = torch.tensor([0, 1, 1, 2, 2])
    assert count_pairs(places, 7).tolist() == [7, 14, 14]
