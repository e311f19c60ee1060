"""Default block sizes of whole programs: what the structure of a program asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_helion.language as hl
from test.frontend import programs
from test.frontend.programs import rand
from test.kernel.kernels import make
from test.kernel.test_accumulators import row_sums
from torch_helion import exc
from torch_helion.codegen.llvm.engine import host_machine
from torch_helion.codegen.llvm.program_defaults import strided_lanes


def blocks(fn: Callable[..., Any], *args: Any) -> list[int]:
    kernel = make(fn, ignore_warnings=[exc.BaseWarning])
    return kernel.bind(args).default_config().block_sizes


STRIDES = [(2048, 4, 32), (256, 32, 256), (4000, 64, 256)]


@pytest.mark.parametrize(("stride", "least", "most"), STRIDES)
def test_strided_vectors_keep_their_lines(stride: int, least: int, most: int) -> None:
    assert least <= strided_lanes(stride, host_machine()) <= most


def test_a_transposition_has_narrow_and_long_tiles() -> None:
    m, n = blocks(programs.strided, rand(1024, 512).t())
    assert m == 128
    assert n <= 32, "512 floats apart: few sets of L1"
    m, n = blocks(programs.strided, rand(1000, 777).t())
    assert (m, n) == (128, 256)
    m, n = blocks(programs.add, rand(512, 1024), rand(512, 1024))
    assert n == 1024, "no transposition"


def test_loops_over_a_piece_of_the_grid() -> None:
    m, n, k = blocks(programs.split_k, rand(32, 1024), rand(1024, 32))
    assert k >= 256, "the piece is not taken to be empty"
    outer, inner = blocks(programs.partials, rand(4096, 2048), rand(4096, 2048), rand(4096))
    assert outer == 128
    assert inner == 1, "long rows"
    assert m == n == 32


def split_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    n = y.size(1)
    out = torch.zeros([m, n], dtype=torch.float32)
    block = hl.register_block_size(4096)
    for tile_m, tile_n, part in hl.tile([m, n, k], block_size=[None, None, block]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(part.begin, part.end):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        hl.atomic_add(out, [tile_m, tile_n], acc)
    return out


def test_a_product_in_parts_has_few_of_them_and_each_in_one_piece() -> None:
    part, m, n, inner = blocks(split_product, rand(64, 16384), rand(16384, 64))
    assert (m, n) == (64, 64), "the parts fill the threads, not the tiles"
    assert part >= 2048, "each part adds a whole tile to the result"
    assert inner >= part, "a part is one product"


def test_a_causal_loop_is_no_piece() -> None:
    rows, _ = blocks(programs.attention_causal, *(rand(4, 1024, 64) for _ in range(3)))
    assert rows == 128
    rows, _ = blocks(programs.attention_causal, *(rand(4, 256, 64) for _ in range(3)))
    assert rows == 64, "of few tiles much lies beyond the diagonal"
    _, rows, _ = blocks(programs.attention, *(rand(1, 4, 256, 64) for _ in range(3)))
    assert rows == 128, "nothing is masked"


def test_small_products_are_not_packed() -> None:
    assert blocks(programs.matmul, rand(64, 64), rand(64, 64)) == [4, 64, 64]
    rows, _, _ = blocks(programs.matmul, rand(64, 64).bfloat16(), rand(64, 64).bfloat16())
    assert rows >= 32, "there are instructions that want tiles"
    rows, _, _ = blocks(programs.matmul, rand(512, 64), rand(64, 64))
    assert rows >= 32


def test_lines_of_jagged_loops_are_few() -> None:
    offsets = torch.tensor([0, 90, 200, 290])
    rows, width, lines = blocks(programs.jagged_mean, rand(290, 128), offsets)
    assert (rows, width, lines) == (1, 128, 2)


def two_passes(x: torch.Tensor) -> torch.Tensor:
    m, n = x.size()
    out = torch.empty_like(x)
    for rows in hl.tile(m):
        total = hl.zeros([rows], dtype=torch.float32)
        for columns in hl.tile(n):
            total += x[rows, columns].sum(-1)
        for columns in hl.tile(n):
            out[rows, columns] = x[rows, columns] / total[:, None]
    return out


def test_loops_after_one_another_walk_memory_alike() -> None:
    _, first, second = blocks(two_passes, rand(64, 4096))
    assert first == second == 4096


def test_accumulators_of_a_block_are_a_few_registers() -> None:
    n, m = blocks(row_sums.fn, rand(64, 1 << 16))
    assert (m, n) == (1, 128)
    n, m = blocks(row_sums.fn, rand(64, 1 << 10))
    assert (m, n) == (1, 64)
