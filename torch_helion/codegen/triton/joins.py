"""Rows of the triton target: reductions, scans, products, selection along an axis.

In: a `Printer` and an op. Out: lines of the kernel. Lanes outside of an axis get the identity
first. `tl.reduce` joins lanes in any order, so a custom reduction goes through it only when its
function is seen to commute; else through a scan, which keeps the order, and its last lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from torch_helion import exc
from torch_helion.codegen.triton.dtypes import Number, dtype_name, plain
from torch_helion.codegen.triton.products import dot
from torch_helion.codegen.triton.state import Printer, Tile, align
from torch_helion.codegen.triton.values import check_lanes, gather, positions, scalar_of
from torch_helion.codegen.triton.writer import Writer
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import CUSTOM, identity_of
from torch_helion.ir.types import begin_symbol

_NARROW = (torch.bool, torch.int8, torch.int16, torch.uint8)


def _without(axes: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in axes if n not in names)


def _wide(tile: Tile) -> tuple[str, str]:
    """A text of at least 32 bits, and what brings the result back."""
    if tile.dtype is torch.bool:
        return f"{tile.text}.to(tl.int32)", " != 0"
    if tile.dtype in _NARROW:
        return f"{tile.text}.to(tl.int32)", f".to({dtype_name(tile.dtype)})"
    return tile.text, ""


# -- reductions ---------------------------------------------------------------------------------


def _reduce(p: Printer, op: Op) -> None:
    fn = op.attrs["fn"]
    if fn == CUSTOM:
        _custom_reduce(p, op)
        return
    (value,) = op.operands
    names = p.dims(n for n in value.type.axis_names if n in op.attrs["axes"])
    if fn in ("argmax", "argmin"):
        _extreme_position(p, op, names)
        return
    tile = _reduced_operand(p, value, names)
    tile = p.filled(value, tile, names, identity_of(fn, value.type.dtype))
    if not names:
        p.tiles[op.result] = tile
        return
    text, back = _wide(tile)
    axes = list(tile.axes)
    for name in sorted(names, key=axes.index, reverse=True):
        text = _one_axis(p, fn, text, tile.dtype, axes.index(name))
    text = f"({text}){back}" if back.startswith(" ") else f"{text}{back}"
    p.define(op.result, text, _without(tile.axes, names))


def _reduced_operand(p: Printer, value: Value, names: Sequence[str]) -> Tile:
    """The operand with all lanes along the axes that are reduced (others may stay away)."""
    tile = p.tile(value)
    dims = p.dims(n for n in value.type.axis_names if n in tile.axes or n in names)
    text = p.full(tile, dims)
    if text == tile.text and tile.number is None:
        return tile
    return p.temporary(value.hint, text, tile.dtype, dims)


def _one_axis(p: Printer, fn: str, text: str, dtype: torch.dtype, axis: int) -> str:
    if fn == "sum":
        return f"tl.sum({text}, axis={axis})"
    if fn == "prod":
        return f"tl.reduce({text}, {axis}, {p.helper('_product')})"
    least = fn in ("min", "all")
    if dtype.is_floating_point:
        return f"tl.reduce({text}, {axis}, {p.helper('_minimum' if least else '_maximum')})"
    return f"tl.{'min' if least else 'max'}({text}, axis={axis})"


def _extreme_position(p: Printer, op: Op, names: tuple[str, ...]) -> None:
    (value,) = op.operands
    (axis,) = (a for a in value.type.axes if a.name in op.attrs["axes"])
    where = positions(p, axis)
    if not names:
        p.tiles[op.result] = where
        return
    tile = _reduced_operand(p, value, names)
    tile = p.filled(value, tile, names, identity_of(op.attrs["fn"], value.type.dtype))
    number = tile.axes.index(axis.name)
    fn = p.helper("_first_max" if op.attrs["fn"] == "argmax" else "_first_min")
    pair = f"({_wide(tile)[0]}, {p.full(where, tile.axes)})"
    best, result = p.names.fresh(f"{value.hint}_best"), p.names.fresh(op.result.hint)
    p.line(f"{best}, {result} = tl.reduce({pair}, {number}, {fn})")
    p.tiles[op.result] = Tile(result, torch.int64, _without(tile.axes, names))


# -- functions that join two lanes --------------------------------------------------------------


def _function(p: Printer, op: Op, guarded: bool = False) -> str:
    """The combine region as a function of its own. `guarded`: with a flag for each side that says
    whether there is a lane at all."""
    (region,) = op.regions
    name = p.names.fresh(f"join_{'_'.join(v.hint for v in op.results)}")
    count = len(op.operands)
    inner = Printer(p.kernel, p.layout, p.names.copy(), p.helpers, p.functions, p.rows, p.backend)
    inner.writer = Writer()
    args = []
    for value in region.args:
        arg = inner.names.fresh(value.hint)
        args.append(arg)
        inner.tiles[value] = Tile(arg, value.type.dtype)
        if value.type.dtype in _NARROW:
            inner.line(f"{arg} = {arg}{_back(value.type.dtype)}")
    results = []
    for place, value in enumerate(inner.region(region)):
        tile = inner.tile(value)
        text = inner.typed(tile)
        if guarded:
            left, right = args[place], args[count + place]
            text = f"tl.where(right_is != 0, tl.where(left_is != 0, {text}, {right}), {left})"
        narrow = tile.dtype in _NARROW
        results.append(f"({text}).to(tl.int32)" if narrow else text)
    if inner.sizes or inner.buffers:
        raise exc.CodegenError(f"triton: a function that joins lanes reads sizes: {op}")
    if guarded:
        args = [*args[:count], "left_is", *args[count:], "right_is"]
        results.append("left_is | right_is")
    lines = [*inner.writer.text(), f"    return {', '.join(results)}"]
    p.functions.append(f"@triton.jit\ndef {name}({', '.join(args)}):\n" + "\n".join(lines))
    return name


def _back(dtype: torch.dtype) -> str:
    return " != 0" if dtype is torch.bool else f".to({dtype_name(dtype)})"


def _commutes(op: Op) -> bool:
    """Whether exchanging both sides gives the same expressions, up to operands that commute."""
    (region,) = op.regions
    count = len(op.operands)
    swapped = [*region.args[count:], *region.args[:count]]

    def forms(args: Sequence[Value]) -> list[str]:
        known = {a: f"arg{i}" for i, a in enumerate(args)}
        for inner in region.ops:
            if inner.kind == "yield":
                return [known[v] for v in inner.operands]
            texts = [known[v] for v in inner.operands]
            if inner.attrs.get("fn") in _COMMUTATIVE:
                texts.sort()
            attrs = sorted((k, str(v)) for k, v in inner.attrs.items())
            known[inner.result] = f"{inner.kind}{attrs}({', '.join(texts)})"
        return []

    return forms(region.args) == forms(swapped)


_COMMUTATIVE = ("add", "mul", "minimum", "maximum", "and", "or", "xor", "eq", "ne")


def _joined_operands(
    p: Printer, op: Op, names: Sequence[str], identity: Sequence[Number] | None
) -> list[Tile]:
    """All operands over the same dimensions."""
    found = []
    for place, value in enumerate(op.operands):
        dims = p.dims(value.type.axis_names)
        text = p.full(p.tile(value), dims)
        tile = p.tile(value)
        if text != tile.text or tile.number is not None:
            tile = p.temporary(value.hint, text, value.type.dtype, dims)
        if identity is not None:
            tile = p.filled(value, tile, names, identity[place])
        found.append(tile)
    return found


def _custom_reduce(p: Printer, op: Op) -> None:
    names = p.dims(n for n in op.operands[0].type.axis_names if n in op.attrs["axes"])
    tiles = _joined_operands(p, op, names, op.attrs["identity"])
    if not names:
        p.tiles.update(zip(op.results, tiles, strict=True))
        return
    name, commutes = _function(p, op), _commutes(op)
    axes = list(tiles[0].axes)
    texts = [_wide(t)[0] for t in tiles]
    # Row-major: the last axis first.
    for axis in sorted(names, key=axes.index, reverse=True):
        number = axes.index(axis)
        joined = [p.names.fresh(v.hint) for v in op.results]
        if commutes:
            p.line(f"{', '.join(joined)} = tl.reduce({_tuple(texts)}, {number}, {name})")
        else:
            p.line(f"{', '.join(joined)} = tl.associative_scan({_tuple(texts)}, {number}, {name})")
            joined = [_last_lane(p, t, tuple(axes), axis) for t in joined]
        axes.remove(axis)
        texts = joined
    for result, text in zip(op.results, texts, strict=True):
        p.tiles[result] = Tile(text, result.type.dtype, tuple(axes))
        if result.type.dtype in _NARROW:
            p.define(result, f"{text}{_back(result.type.dtype)}", tuple(axes))


def _tuple(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _last_lane(p: Printer, text: str, axes: tuple[str, ...], axis: str) -> str:
    """The last lane along an axis, by a sum of which all other terms are 0."""
    count = p.lane_count(axis)
    lane = align(Tile(f"tl.arange(0, {count})", torch.int32, (axis,)), axes)
    name = p.names.fresh(text)
    p.line(f"{name} = tl.sum(tl.where({lane} == {count} - 1, {text}, 0), axis={axes.index(axis)})")
    return name


# -- scans --------------------------------------------------------------------------------------


def _scan(p: Printer, op: Op) -> None:
    axis, fn = op.attrs["axis"], op.attrs["fn"]
    if p.layout.is_unit(axis):
        for value, result in zip(op.operands, op.results, strict=True):
            p.tiles[result] = p.tile(value)
            if op.attrs["exclusive"]:
                number = identity_of(fn, value.type.dtype)
                text = plain(number, value.type.dtype)
                p.tiles[result] = Tile(text, value.type.dtype, (), number)
    elif fn == CUSTOM:
        _custom_scan(p, op, axis)
    else:
        _plain_scan(p, op, axis)


def _plain_scan(p: Printer, op: Op, axis: str) -> None:
    (value,), fn, reverse = op.operands, op.attrs["fn"], op.attrs["reverse"]
    tile = _reduced_operand(p, value, (axis,))
    identity = identity_of(fn, value.type.dtype)
    if reverse:  # what lies outside comes first
        tile = p.filled(value, tile, (axis,), identity)
    text, back = _wide(tile)
    number = tile.axes.index(axis)
    backwards = ", reverse=True" if reverse else ""
    if fn == "sum":
        text = f"tl.cumsum({text}, {number}{backwards})"
    else:
        wanted = {"prod": "_product", "max": "_maximum", "min": "_minimum"}[fn]
        if not tile.dtype.is_floating_point and fn != "prod":
            wanted = f"tl.standard._elementwise_{fn}"
        else:
            p.helper(wanted)
        text = f"tl.associative_scan({text}, {number}, {wanted}{backwards})"
    text = f"({text}){back}" if back.startswith(" ") else f"{text}{back}"
    scanned = p.define(op.result, text, tile.axes)
    if op.attrs["exclusive"]:
        p.define(op.result, _shifted(p, scanned, axis, reverse, identity), tile.axes)


def _shifted(p: Printer, tile: Tile, axis: str, reverse: bool, first: Number) -> str:
    """Each lane what the one before it holds; `first` where there is none."""
    count = p.lane_count(axis)
    lane = p.temporary("lane", f"tl.arange(0, {count})", torch.int32, (axis,))
    if reverse:
        before, has = f"tl.minimum({lane.text} + 1, {count} - 1)", f"{lane.text} < {count} - 1"
    else:
        before, has = f"tl.maximum({lane.text} - 1, 0)", f"{lane.text} > 0"
    place = p.temporary("before", before, torch.int32, (axis,))
    exists = p.temporary("exists", has, torch.bool, (axis,))
    index = p.full(place, tile.axes)
    moved = gather(p, tile.text, index, tile.axes.index(axis), tile.dtype)
    number = plain(first, tile.dtype)
    typed = p.typed(Tile(number, tile.dtype, (), first))
    return f"tl.where({align(exists, tile.axes)}, {moved}, {typed})"


def _custom_scan(p: Printer, op: Op, axis: str) -> None:
    reverse = op.attrs["reverse"]
    tiles = _joined_operands(p, op, (axis,), None)
    axes = tiles[0].axes
    guarded = reverse and p.layout.is_padded(axis)
    name = _function(p, op, guarded)
    texts = [_wide(t)[0] for t in tiles]
    results = [p.names.fresh(v.hint) for v in op.results]
    names = list(results)
    if guarded:  # there is no identity for the lanes outside, which come first
        flag = Tile(f"{p.inside(axis)}.to(tl.int32)", torch.int32, (axis,))
        flag = p.temporary("inside", flag.text, torch.int32, (axis,))
        texts.append(p.full(flag, axes))
        names.append(p.names.fresh("any_inside"))
    backwards = ", reverse=True" if reverse else ""
    call = f"tl.associative_scan({_tuple(texts)}, {axes.index(axis)}, {name}{backwards})"
    p.line(f"{', '.join(names)} = {call}")
    for result, text in zip(op.results, results, strict=True):
        p.tiles[result] = Tile(text, result.type.dtype, axes)
        if result.type.dtype in _NARROW:
            p.define(result, f"{text}{_back(result.type.dtype)}", axes)


# -- selection ----------------------------------------------------------------------------------


def _take(p: Printer, op: Op) -> None:
    value, index = op.operands
    along = op.attrs["axis"]
    place = p.tile(index)
    _check_index(p, op, place, along)
    if p.layout.is_unit(along):
        p.tiles[op.result] = p.tile(value)
        return
    source = _reduced_operand(p, value, (along,))
    kept = _without(source.axes, (along,))
    new = tuple(n for n in place.axes if n not in kept)
    order = (*kept, *new)
    text = p.full(place, order) if order else p.typed(place)
    count = p.lane_count(along)
    text = f"tl.minimum(tl.maximum({text}, 0), {count} - 1)"
    lanes = " * ".join(p.lane_count(n) for n in new) or "1"
    outer = p.shape(kept)[1:-1]
    flat = f"[{outer}, {lanes}]" if kept else f"[{lanes}]"
    if not order:
        text = f"tl.full([1], {text}, tl.int64)"
    elif len(new) != 1:
        text = f"tl.reshape({text}, {flat})"
    arranged = align(source, (*kept, along))
    text = gather(p, arranged, text, len(kept), value.type.dtype)
    if not order:
        p.define(op.result, scalar_of(text, value.type.dtype), ())
        return
    if len(new) != 1:
        text = f"tl.reshape({text}, {p.shape(order)})"
    taken = Tile(text, value.type.dtype, order)
    dims = p.union(op.result, taken)
    if dims != order:
        taken = p.temporary(value.hint, text, taken.dtype, order)
    p.define(op.result, align(taken, dims), dims)


def _check_index(p: Printer, op: Op, place: Tile, along: str) -> None:
    """Positions are counted within the tile."""
    axis = p.layout.base(along)
    count = str(p.layout.block(axis)) if axis.kind == "block" else p.size(axis.size)
    if axis.kind == "block" and p.layout.is_padded(along):
        begin = p.size_text(p.layout.bound(begin_symbol(axis)), 1)
        count = f"tl.minimum({count}, {p.size(axis.size)} - {begin})"
    text = p.typed(place)
    if place.number is not None:
        text = p.temporary("index", text, torch.int64, ()).text
    condition = f"({text} >= 0) & ({text} < {count})"
    check_lanes(p, condition, place.axes, "index out of range")


def _no_sort(p: Printer, op: Op) -> None:
    raise exc.CodegenError("triton: sort is not supported: Triton sorts no pairs and no NaN")


JOIN_ROWS: Mapping[str, Callable[[Printer, Op], None]] = {
    "reduce": _reduce,
    "scan": _scan,
    "dot": dot,
    "take": _take,
    "sort": _no_sort,
}
