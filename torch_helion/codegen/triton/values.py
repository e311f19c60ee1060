"""Rows of the triton target: arithmetic, conversions, views, positions, random numbers.

In: a `Printer` and an op. Out: lines of the kernel and the tiles of the op's results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from torch_helion import exc
from torch_helion.codegen.triton.dtypes import dtype_name, plain
from torch_helion.codegen.triton.pointwise import POINTWISE_ROWS, UNSUPPORTED, Site
from torch_helion.codegen.triton.state import Printer, Tile, align
from torch_helion.ir.graph import Op
from torch_helion.ir.types import Axis, begin_symbol


def _pointwise(p: Printer, op: Op) -> None:
    fn = op.attrs["fn"]
    if fn in UNSUPPORTED:
        raise exc.CodegenError(f"triton: {fn} is not supported: there is no device function of it")
    tiles = [p.tile(v) for v in op.operands]
    dims = p.union(op.result, *tiles)
    texts = p.operands(tiles, dims)
    typed = tiles[1:] if fn == "where" else tiles
    if all(t.number is not None for t in typed):  # nothing else says what they are
        texts[-1] = p.typed(tiles[-1])
        if fn != "where":
            texts[0] = p.typed(tiles[0])
    if fn == "where" and tiles[0].number is not None:
        texts[0] = p.typed(tiles[0])
    site = Site(
        tiles[-1].dtype,
        p.helper,
        tuple(t.number for t in tiles),
        lambda text: _check_divisor(p, op, dims),
    )
    p.define(op.result, POINTWISE_ROWS[fn](site, *texts), dims)


def _check_divisor(p: Printer, op: Op, dims: tuple[str, ...]) -> None:
    """Division by zero ends a kernel that is compiled with `debug`."""
    divisor = p.tile(op.operands[1])
    check_lanes(p, f"{p.typed(divisor)} != 0", divisor.axes, "integer division by zero")


def check_lanes(p: Printer, condition: str, dims: tuple[str, ...], text: str, *masks: str) -> None:
    """An assertion over the lanes inside; acts in kernels that are compiled with `debug`."""
    mask = p.mask(dims, *masks)
    p.line(f'tl.device_assert({condition}, "{text}"{f", mask={mask}" if mask else ""})')


def _cast(p: Printer, op: Op) -> None:
    tile, dtype = p.tile(op.operands[0]), op.attrs["dtype"]
    text = p.typed(tile)
    if dtype is torch.bool:
        if tile.dtype.is_floating_point and tile.dtype.itemsize < 4:
            text = f"{text}.to(tl.float32)"
        p.define(op.result, f"{text} != 0", tile.axes)
    else:
        p.define(op.result, f"{text}.to({dtype_name(dtype)})", tile.axes)


def _bitcast(p: Printer, op: Op) -> None:
    tile = p.tile(op.operands[0])
    text = f"{p.typed(tile)}.to({dtype_name(op.attrs['dtype'])}, bitcast=True)"
    p.define(op.result, text, tile.axes)


def _const(p: Printer, op: Op) -> None:
    number, dtype = op.attrs["value"], op.attrs["dtype"]
    p.tiles[op.result] = Tile(plain(number, dtype), dtype, (), number)


def _size(p: Printer, op: Op) -> None:
    expr = p.layout.bound(op.attrs["expr"])
    if expr.is_Integer:
        p.tiles[op.result] = Tile(str(int(expr)), torch.int64, (), int(expr))
    elif expr.is_Symbol:
        p.tiles[op.result] = Tile(p.size(expr), torch.int64)
    else:
        p.define(op.result, p.size(expr), ())


def positions(p: Printer, axis: Axis) -> Tile:
    """The positions along an axis, as a tile or a scalar."""
    if not p.layout.is_unit(axis.name):
        return Tile(p.position(axis.name), torch.int64, (axis.name,))
    base = p.layout.base(axis.name)
    if base.kind != "block":
        return Tile("0", torch.int64, (), 0)
    return Tile(p.size(begin_symbol(base)), torch.int64)


def _iota(p: Printer, op: Op) -> None:
    p.tiles[op.result] = positions(p, op.result.type.axes[0])


def _expand(p: Printer, op: Op) -> None:
    p.tiles[op.result] = p.tile(op.operands[0])


def _reaxis(p: Printer, op: Op) -> None:
    tile, new = p.tile(op.operands[0]), {old: axis.name for old, axis in op.attrs["axes"]}
    axes = tuple(new.get(n, n) for n in tile.axes)
    dims = p.union(op.result, replace(tile, axes=axes))
    text = align(replace(tile, axes=axes), dims)
    if text == tile.text:
        p.tiles[op.result] = replace(tile, axes=axes)
    else:
        p.define(op.result, text, dims)


# -- reshape ------------------------------------------------------------------------------------


def _count(p: Printer, axis: Axis) -> str:
    """Positions of an axis in a reshape: a block axis counts as its whole block."""
    base = p.layout.base(axis.name)
    if base.kind == "block":
        return str(p.layout.block(base))
    return p.size(axis.size, factor=True)


def _is_dense(p: Printer, axis: Axis) -> bool:
    """Whether the lanes are just the positions that a reshape counts."""
    base, lanes = p.layout.base(axis.name), p.layout.lanes[axis.name].known
    if base.kind == "block":
        return lanes == p.layout.block(base)
    return lanes is not None and p.layout.size(axis) == lanes


def _reshape(p: Printer, op: Op) -> None:
    (value,) = op.operands
    by_name = {a.name: a for a in value.type.axes}
    source = [by_name[n] for n in op.attrs["source"]]
    target = list(op.attrs["target"])
    tile = p.full_tile(value)
    blocks = [a.name for a in source if p.layout.base(a.name).kind == "block"]
    tile = p.filled(value, tile, blocks, 0)
    kept = tuple(n for n in tile.axes if n not in op.attrs["source"])
    order = (*kept, *p.dims(a.name for a in target))
    text = align(tile, (*kept, *p.dims(a.name for a in source)))
    if not all(_is_dense(p, a) for a in (*source, *target)):
        text = _gathered(p, text, tile.dtype, kept, source, target)
    if order:
        text = f"tl.reshape({text}, {p.shape(order)})"
    elif text != tile.text:
        text = scalar_of(text, tile.dtype)
    dims = p.dims(op.result.type.axis_names)
    if order != dims:
        text = align(p.temporary(value.hint, text, tile.dtype, order), dims)
    p.define(op.result, text, dims)


def _gathered(
    p: Printer,
    text: str,
    dtype: torch.dtype,
    kept: tuple[str, ...],
    source: list[Axis],
    target: list[Axis],
) -> str:
    """Lane by lane: the positions of an axis that is no power of two lie apart in the lanes.

    The result has the lanes of all targets in one dimension.
    """
    places = p.dims(a.name for a in target)
    index = p.temporary("lane_of", _lane_of(p, source, target, places), torch.int64, places)
    lanes = " * ".join(p.lane_count(n) for n in p.dims(a.name for a in source)) or "1"
    count = " * ".join(p.lane_count(n) for n in places) or "1"
    outer = [p.lane_count(n) for n in kept]
    clamped = f"tl.minimum(tl.maximum({index.text}, 0), {lanes} - 1)"
    where = (
        f"tl.reshape({clamped}, [{count}])" if places else f"tl.full([1], 0, tl.int64) + {clamped}"
    )
    if kept:
        lead = "None, " * len(kept)
        where = f"tl.broadcast_to(({where})[{lead}:], [{', '.join([*outer, count])}])"
    if kept or p.dims(a.name for a in source):
        flat = f"tl.reshape({text}, [{', '.join([*outer, lanes])}])"
    else:
        flat = f"tl.full([1], {text}, {dtype_name(dtype)})"
    return gather(p, flat, where, len(kept), dtype)


def _lane_of(p: Printer, source: list[Axis], target: list[Axis], places: tuple[str, ...]) -> str:
    """For each lane of the targets the lane of the sources with the same row-major number."""
    number = ""
    for axis in target:
        number = f"({number}) * {_count(p, axis)}" if number else ""
        if not p.layout.is_unit(axis.name):
            lanes = f"tl.arange(0, {p.lane_count(axis.name)})"
            lane = p.temporary("lane", lanes, torch.int64, (axis.name,))
            number = f"{number} + {align(lane, places)}" if number else align(lane, places)
    rest = p.temporary("number", number or "tl.cast(0, tl.int64)", torch.int64, places).text
    positions_: list[str] = []
    for axis in reversed(source[1:]):
        positions_.insert(0, f"{rest} % {_count(p, axis)}")
        rest = f"{rest} // {_count(p, axis)}"
    text = rest
    for axis, position in zip(source[1:], positions_, strict=True):
        text = f"({text}) * {p.lane_count(axis.name)} + {position}"
    return text


def scalar_of(text: str, dtype: torch.dtype) -> str:
    """The only lane of a tile."""
    if dtype is torch.bool:
        return f"tl.max(({text}).to(tl.int32), axis=0) != 0"
    return f"tl.sum({text}, axis=0).to({dtype_name(dtype)})"


def gather(p: Printer, source: str, index: str, axis: int, dtype: torch.dtype) -> str:
    """Lanes of a tile by number along an axis."""
    if dtype is torch.bool:
        return f"(tl.gather({source}.to(tl.int8), {index}, {axis}) != 0)"
    return f"tl.gather({source}, {index}, {axis})"


# -- random numbers -----------------------------------------------------------------------------


def _rng(p: Printer, op: Op) -> None:
    seed, index, *bounds = (p.tile(v) for v in op.operands)
    fn, word = op.attrs["fn"], op.attrs.get("word", 0)
    call = f"{p.helper('_philox')}({p.typed(seed)}, {p.typed(index)})"
    words = [p.names.fresh(f"word{i}") for i in range(4)]
    p.line(f"{', '.join(words)} = {call}")
    first, second = words[word], words[(word + 1) % 4]
    if fn == "rand":
        text = f"{p.helper('_uniform')}({first})"
    elif fn == "randn":
        text = f"{p.helper('_normal')}({first}, {second})"
    else:
        low, high = (p.typed(b) for b in bounds)
        text = f"{p.helper('_randint')}({first}, {second}, {low}, {high})"
    if op.result.type.dtype not in (torch.float32, torch.int64):
        text = f"{text}.to({dtype_name(op.result.type.dtype)})"
    p.define(op.result, text, p.union(op.result, index))


VALUE_ROWS: Mapping[str, Callable[[Printer, Op], None]] = {
    "pointwise": _pointwise,
    "cast": _cast,
    "bitcast": _bitcast,
    "const": _const,
    "size": _size,
    "iota": _iota,
    "expand": _expand,
    "reaxis": _reaxis,
    "reshape": _reshape,
    "rng": _rng,
}
