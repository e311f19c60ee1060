"""What a config has entries for: rows, loops with several dimensions, loops inside of the grid."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion import exc


@helion.kernel
def softmax(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        row = x[tile, :]
        e = torch.exp(row - row.amax(-1, keepdim=True))
        out[tile, :] = e / e.sum(-1, keepdim=True)
    return out


@helion.kernel
def two_rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(x.size(0))
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile, :].sum(-1) + y[tile, :].amax(-1) + x[tile, :].mean(-1)
    return out


@helion.kernel
def row_times_matrix(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = x.new_empty([x.size(0), y.size(1)])
    for m, n in hl.tile([x.size(0), y.size(1)]):
        out[m, n] = x[m, :] @ y[:, n]
    return out


@helion.kernel
def inner_loops(x: torch.Tensor, n: hl.constexpr) -> torch.Tensor:
    out = torch.empty_like(x)
    for i, j in hl.tile(x.shape):
        acc = hl.zeros([i, j])
        for _ in range(n):
            acc += x[i, j]
        for a, b in hl.tile([2, 3]):
            acc += (a.index[:, None] + b.index[None, :]).sum(-1).sum(-1)
        out[i, j] = acc + j.index[None, :]
    for i, j in hl.grid([2, 2]):
        out[i, j] = 0.0
    return out


def config_of(kernel, *args):
    return kernel.bind(args).config_spec.default_config()


def test_a_row_has_one_entry() -> None:
    x = torch.randn(5, 300)
    assert config_of(softmax, x)["reduction_loops"] == [None]
    bound = softmax.bind((x,))
    for chunk in (None, 16, 128, 4096):
        got = bound.compile_config({"block_sizes": [4], "reduction_loops": [chunk]})(x)
        torch.testing.assert_close(got, torch.softmax(x, -1))
    assert bound.config_spec.normalize({"reduction_loop": 512})["reduction_loops"] == [None]
    with pytest.raises(exc.InvalidConfig, match="reduction_loops: expected 1 entry, got 2"):
        bound.compile_config({"reduction_loops": [16, 16]})


def test_rows_of_two_lengths_have_two_entries() -> None:
    x, y = torch.randn(5, 300), torch.randn(5, 70)
    assert config_of(two_rows, x, y)["reduction_loops"] == [None, None]
    want = x.sum(-1) + y.amax(-1) + x.mean(-1)
    compiled = two_rows.bind((x, y)).compile_config({"reduction_loops": [64, 16]})
    torch.testing.assert_close(compiled(x, y), want)


def test_rows_that_are_multiplied_have_none() -> None:
    assert "reduction_loops" not in config_of(
        row_times_matrix, torch.ones(4, 32), torch.ones(32, 4)
    )


def test_chunks_are_loops_of_triton_code() -> None:
    bound = softmax.bind((torch.randn(5, 300),))
    whole = bound.to_triton_code({"block_sizes": [2]})
    rolled = bound.to_triton_code({"block_sizes": [2], "reduction_loops": [64]})
    assert "for " not in whole and rolled.count("for ") == 3


def test_loops() -> None:
    x = torch.randn(6, 5)
    config = config_of(inner_loops, x, 3)
    assert config["loop_orders"] == [[0, 1], [0, 1], [0, 1]]
    assert config["l2_groupings"] == [1, 1], "one for each grid"
    assert "flatten_loops" not in config, "positions of all tiles are read"
    assert config["range_unroll_factors"] == [0, 0] and config["static_ranges"] == [False, False]
    want = x * 3 + 9 + torch.arange(5)
    want[:2, :2] = 0
    bound = inner_loops.bind((x, 3))
    persistent = {"pid_type": "persistent_interleaved", "range_num_stages": [0, 0, 2, 1]}
    for choice in (
        {},
        {"loop_orders": [[1, 0], [1, 0], [0, 1]], "l2_groupings": [2, 1]},
        {"loop_orders": [[0, 1], [1, 0], [1, 0]], "range_unroll_factors": [2, 0]},
        persistent,
    ):
        torch.testing.assert_close(bound.compile_config(choice)(x, 3), want)
    assert len(bound.config_spec.normalize(persistent)["range_flattens"]) == 4


def test_loops_that_can_be_flat() -> None:
    @helion.kernel(config={"block_sizes": [2, 4], "flatten_loops": [True]})
    def add(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        for tile in hl.tile(x.shape):
            out[tile] = x[tile] + 1
        return out

    x = torch.randn(7, 9)
    assert config_of(add, x)["flatten_loops"] == [False]
    torch.testing.assert_close(add(x), x + 1)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"range_unroll_factors": [0, 0, 0, 0, 0]}, "expected 2 entries, got 5"),
        ({"range_num_stages": [-1]}, "range_num_stages"),
        ({"range_multi_buffers": [3]}, "range_multi_buffers"),
        ({"static_ranges": ["x"]}, "static_ranges"),
        ({"load_eviction_policies": ["never"]}, "load_eviction_policies"),
        ({"epilogue_subtile": 3}, "epilogue_subtile"),
    ],
)
def test_entries_that_do_not_fit(config: dict[str, object], says: str) -> None:
    with pytest.raises(exc.InvalidConfig, match=says):
        inner_loops.bind((torch.ones(6, 5), 3)).compile_config(config)


def test_the_default_config_says_what_a_launch_has() -> None:
    config = helion.Config(**config_of(softmax, torch.ones(2, 2)))
    assert (config.num_warps, config.num_stages, config.indexing) == (4, 1, "pointer")
    assert config.pid_type == "flat"
