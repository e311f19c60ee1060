"""Loops: tiles and counters of ranges, and the barrier between two loops of one launch.

The functions have a meaning in the `for` of a kernel only (`exc.LoopFunctionNotInFor` elsewhere in
one, `exc.NotInsideKernel` outside).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch_helion.language.context import device_only, loop_only


def tile(
    begin_or_end: Any, end_or_none: Any = None, /, block_size: Any = None, **options: Any
) -> Iterator[Any]:
    """Loop over the blocks of a range.

    `hl.tile(n)` gives one `Tile` a step, `hl.tile([m, n])` a tuple of tiles (of one for a list of
    one). Ranges begin at 0, or at the first argument where two are given. Bounds are integers,
    sizes, `tile.begin`/`tile.end`, or rank-0 integer tensors of the device (then the range depends
    on data). `block_size`: an int, a registered block size, None (the config says), or a list.

    The outermost loop is the grid: its steps run in any order and in parallel. Loops inside run one
    step after another, and names assigned in them carry values from step to step.

    Errors: `exc.TileOfTile`, `exc.InvalidTileRange`, `exc.IncorrectTileUsage`.
    """
    raise loop_only("tile")


def grid(begin_or_end: Any, end_or_none: Any = None, /, step: Any = None) -> Iterator[Any]:
    """Like `tile`, with an integer a step (a tuple of integers for lists) in the place of a block.

    `step`: an int, or a list of one for each range.
    """
    raise loop_only("grid")


def static_range(
    begin_or_end: int, end_or_none: int | None = None, /, step: int = 1
) -> Iterator[int]:
    """A loop with constant bounds that is unrolled: the counter is a constant."""
    raise loop_only("static_range")


def jagged_tile(parent: Any) -> Iterator[Any]:
    """Loop over blocks of [0, max(parent)) where lane i of the enclosing tiles ends at parent[i].

    `parent`: a device tensor of integers whose dimensions are tiles of loops around this. Accesses
    that are indexed with this tile and with the parent's tiles skip what lies beyond; reductions
    over it do not see it. Errors: `exc.InvalidJaggedTileUsage`.
    """
    raise loop_only("jagged_tile")


def barrier() -> None:
    """Between two outermost loops: all steps of the first have finished and their stores are seen.

    Errors: `exc.BarrierOnlyAllowedAtTopLevel` inside a loop.
    """
    raise device_only("barrier")


def tile_index(tile: Any) -> Any:
    """`tile.index`: the positions, a vector of int64."""
    raise device_only("tile_index")


def tile_begin(tile: Any) -> Any:
    """`tile.begin`: the first position."""
    raise device_only("tile_begin")


def tile_end(tile: Any) -> Any:
    """`tile.end`: one past the last position, never beyond the range."""
    raise device_only("tile_end")


def tile_id(tile: Any) -> Any:
    """`tile.id`: the number of the tile in its range."""
    raise device_only("tile_id")


def tile_block_size(tile: Any) -> Any:
    """`tile.block_size`: positions in a whole tile."""
    raise device_only("tile_block_size")


def tile_count(tile: Any) -> Any:
    """`tile.count`: how many tiles the range has."""
    raise device_only("tile_count")
