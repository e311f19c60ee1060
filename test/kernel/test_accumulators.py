"""Accumulators of a block's length, `acc += x[rows, columns]`: any extents, dtypes, values; and
loops from the begin to the end of a tile, whose places need no checks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion import exc

QUIET = [exc.TensorOperationInWrapper]


@helion.kernel(ignore_warnings=QUIET)
def row_sums(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([m], dtype=x.dtype)
    block = hl.register_block_size(n)
    for rows in hl.tile(m):
        acc = hl.zeros([rows, block], dtype=torch.float32)
        for columns in hl.tile(n, block_size=block):
            acc += x[rows, columns].to(torch.float32)
        out[rows] = acc.sum(-1).to(x.dtype)
    return out


@helion.kernel(ignore_warnings=QUIET)
def column_sums(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([n], dtype=x.dtype)
    block = hl.register_block_size(m)
    for columns in hl.tile(n):
        acc = hl.zeros([block, columns], dtype=torch.float32)
        for rows in hl.tile(m, block_size=block):
            acc += x[rows, columns] * rows.index[:, None]
        out[columns] = acc.sum(0)
    return out


@helion.kernel(ignore_warnings=QUIET)
def centered_squares(x: torch.Tensor) -> torch.Tensor:
    """What is added is computed from a reduction: it is not computed along the other axis."""
    m, n = x.size()
    out = torch.empty([m], dtype=torch.float32)
    block = hl.register_block_size(n)
    for rows in hl.tile(m):
        acc = hl.zeros([rows, block], dtype=torch.float32)
        for columns in hl.tile(n, block_size=block):
            piece = x[rows, columns]
            acc += piece - torch.amax(piece, dim=1)[:, None]
        out[rows] = acc.sum(-1)
    return out


@helion.kernel(ignore_warnings=QUIET)
def any_positive(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty([m], dtype=torch.bool)
    block = hl.register_block_size(n)
    for rows in hl.tile(m):
        found = hl.zeros([rows, block], dtype=torch.bool)
        for columns in hl.tile(n, block_size=block):
            found = found | ~(x[rows, columns] <= 0)
        out[rows] = found.to(torch.int32).sum(-1) > 0
    return out


@pytest.mark.parametrize("block", [1, 4, 32, 64])
@pytest.mark.parametrize("shape", [(3, 64), (5, 37), (1, 1), (2, 100), (4, 0)])
def test_sums_of_blocks(shape: tuple[int, int], block: int) -> None:
    x = torch.randn(shape)
    if x.numel() > 40:
        x[0, 3], x[1, 5] = float("nan"), float("inf")
    config = helion.Config(block_sizes=[block, 2])
    for dtype in (torch.float32, torch.bfloat16):
        got = helion.kernel(row_sums.fn, config=config)(x.to(dtype))
        want = x.to(dtype).float().sum(-1).to(dtype)
        torch.testing.assert_close(got, want, equal_nan=True)
    got = helion.kernel(column_sums.fn, config=config)(x)
    want = (x * torch.arange(shape[0])[:, None]).sum(0)
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("block", [4, 32, 64])
def test_lanes_beyond_the_end_are_nothing(block: int) -> None:
    """Neither `-inf <= 0` negated nor a difference of what is not there counts."""
    x = -torch.rand(5, 37)
    config = helion.Config(block_sizes=[block, 2])
    assert not helion.kernel(any_positive.fn, config=config)(x).any()
    x[2, 36], x[4, 0] = float("nan"), 1
    got = helion.kernel(any_positive.fn, config=config)(x)
    assert got.tolist() == [False, False, True, False, True]
    x = torch.randn(5, 37)
    got = helion.kernel(centered_squares.fn, config=config)(x)
    want = sum((p - p.amax(1, keepdim=True)).sum(1) for p in x.split(block, 1))
    torch.testing.assert_close(got, want)


def test_no_element_is_copied() -> None:
    def text(kernel: Any) -> str:
        bound = kernel.bind((torch.randn(4, 4096),))
        return str(bound.to_code(helion.Config(block_sizes=[1024, 1])))

    assert "reshape" not in text(row_sums).split("define")[0]
    assert "srem" not in text(centered_squares)


@helion.kernel(ignore_warnings=QUIET)
def parts(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    n = hl.specialize(n)
    block = hl.register_block_size(m)
    sums = torch.empty([helion.cdiv(m, block), n])
    for outer in hl.tile(m, block_size=block):
        acc = hl.zeros([n], dtype=torch.float32)
        for rows in hl.tile(outer.begin, outer.end):
            acc += x[rows, :].sum(0)
        sums[outer.id, :] = acc
    return sums.sum(0)


@pytest.mark.parametrize("blocks", [[32, 1], [8, 4], [16, 64]])
def test_places_inside_of_a_tile_are_not_checked(blocks: list[int]) -> None:
    x = torch.randn(75, 300)
    kernel = helion.kernel(parts.fn, config=helion.Config(block_sizes=blocks))
    torch.testing.assert_close(kernel(x), x.sum(0))
    code = kernel.bind((x,)).to_code(helion.Config(block_sizes=blocks))
    plan = code.split("define")[0]
    assert plan.count("assert") == plan.count(";   assert") == 1, plan  # of the number of a tile
