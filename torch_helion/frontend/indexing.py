"""Subscripts of host tensors on the device: loads, stores, atomics; subscripts of device values.

In: a host tensor and indices (tiles, numbers, slices, None, ..., index tensors). Out: operations on
its buffer. An access that is not proven to lie inside is checked when the kernel runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.frontend import selections
from torch_helion.frontend.axes import positive
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import (
    Dim,
    HostTensor,
    Number,
    Offset,
    Stack,
    Tensor,
    Tile,
    TileList,
    describe,
    is_number,
)
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, IndexExpr, Size, begin_symbol


@dataclasses.dataclass
class Place:
    """Where an access goes: an index for each dimension of the buffer, dimensions of the result."""

    buffer: Buffer
    dims: list[Dim] = dataclasses.field(default_factory=list)
    index: list[IndexExpr] = dataclasses.field(default_factory=list)
    gathered: list[Value] = dataclasses.field(default_factory=list)
    checked: bool = False
    jagged: list[Axis] = dataclasses.field(default_factory=list)
    masks: list[Value] = dataclasses.field(default_factory=list)
    """what of slices lies inside of the tensor"""
    pointer: Value | None = None

    @property
    def axes(self) -> list[Axis]:
        """Axes along which the place moves."""
        return [d for d in self.dims if d is not None]


def expanded(index: Any, rank: int, name: str) -> list[Any]:
    """An index for every dimension (and None for new ones), `...` and what is missing filled in."""
    items: list[Any] = []
    for item in index if isinstance(index, tuple | list) else (index,):
        _check(item)
        items.append(item)
    count = sum(_takes(i) for i in items)
    if count > rank:
        raise exc.RankMismatch(rank, count, f" (tensor {name})")
    dots = [n for n, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise exc.InvalidIndexingType("more than one ...")
    whole = [slice(None)] * (rank - count)
    if dots:
        items[dots[0] : dots[0] + 1] = whole
    else:
        items += whole
    return items


def _takes(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return 1


def _check(item: Any) -> None:
    if isinstance(item, TileList | list | tuple):
        kinds = item.tiles if isinstance(item, TileList) else item
        if not all(isinstance(t, Tile) for t in kinds):
            raise exc.OverpackedTile(type(item).__name__)
        if len(kinds) == 1:
            raise exc.OverpackedTile(f"{type(item).__name__} of one tile")
        return
    if isinstance(item, bool) or (isinstance(item, Number) and item.kind is not int):
        raise exc.InvalidIndexingType(describe(item))
    if isinstance(item, Tensor):
        if item.dtype is torch.bool:
            raise exc.DataDependentOutputShapeNotSupported("indexing with a bool tensor")
        if item.dtype.is_floating_point:
            raise exc.InvalidIndexingType(describe(item))
        return
    if isinstance(item, HostTensor):
        raise exc.HostTensorDirectUsage(item.name, "subscript")
    if not (
        item is None
        or item is Ellipsis
        or is_number(item)
        or isinstance(item, Tile | Offset | slice)
    ) or isinstance(item, float):
        raise exc.InvalidIndexingType(describe(item))


def flat(index: Any) -> list[Any]:
    """A subscript as a list; lists of tiles in it are several indices."""
    if isinstance(index, list) and index and all(isinstance(t, Tile) for t in index):
        return list(index)
    found: list[Any] = []
    for item in index if isinstance(index, tuple | list) else (index,):
        tiles = item.tiles if isinstance(item, TileList) else item
        if (
            isinstance(tiles, list | tuple)
            and len(tiles) > 1
            and all(isinstance(t, Tile) for t in tiles)
        ):
            found += tiles
        else:
            found.append(item)
    return found


class Placing:
    """Turns one subscript into a place."""

    def __init__(self, p: Program, host: HostTensor) -> None:
        self.p, self.host = p, host
        self.place = Place(p.buffer(host))

    def of(self, index: Any) -> Place:
        buffer, place = self.place.buffer, self.place
        items = expanded(flat(index), len(buffer.shape), self.host.name)
        d, n = 0, 0
        while n < len(items):
            item = items[n]
            if item is None:
                place.dims.append(None)
                n += 1
                continue
            group = [item]
            while isinstance(item, Tensor) and n + len(group) < len(items):
                after = items[n + len(group)]
                if not isinstance(after, Tensor):
                    break
                group.append(after)
            if isinstance(item, Tensor):
                self._tensors(group, d)
            else:
                self._one(item, d)
            d, n = d + len(group), n + len(group)
        return place

    # -- one index --------------------------------------------------------------------------------

    def _one(self, item: Any, d: int) -> None:
        extent = self.place.buffer.shape[d]
        if isinstance(item, Tile):
            self._tile(item, 0, extent)
        elif isinstance(item, Offset):
            self._tile(item.tile, item.offset, extent)
        elif isinstance(item, slice):
            self._slice(item, extent)
        else:
            self._number(item, extent)

    def _new(self, axis: Dim) -> Dim:
        """The axis, or another of the same positions if the result has it already."""
        if axis is not None and axis in self.place.dims:
            axis = self.p.axes.free(axis, self.place.dims)
        self.place.dims.append(axis)
        return axis

    def _tile(self, tile: Tile, offset: Size, extent: Size) -> None:
        place, axes = self.place, self.p.axes
        axis = self._new(None if axes.block(tile.axis) == 1 else tile.axis)
        if tile.axis.tile_name in self.p.b.jagged:
            place.jagged.append(tile.axis if axis is None else axis)
        if extent == 1 and offset == 0 and isinstance(extent, int):
            place.index.append(Affine((), 0))
            return
        begin = tile.begin + offset
        if not self._inside(begin, begin + tile.axis.size, extent):
            place.checked = True
        if axis is None:
            place.index.append(Affine((), plain(begin + begin_symbol(tile.axis))))
        else:
            place.index.append(Affine.of(axis, 1, plain(begin)))

    def _slice(self, item: slice, extent: Size) -> None:
        axes, place = self.p.axes, self.place
        step = 1 if item.step is None else self.p.size(item.step)
        if isinstance(step, int) and step <= 0:
            raise exc.InvalidIndexingType("a slice whose step is not positive")
        start = 0 if item.start is None else _from_end(self.p.size(item.start), extent)
        stop = extent if item.stop is None else _from_end(self.p.size(item.stop), extent)
        if item.start is None and item.stop is None and step == 1:
            axis = self._new(None if extent == 1 else axes.whole(extent))
            place.index.append(Affine((), 0) if axis is None else Affine.of(axis))
            return
        if isinstance(stop, int) and isinstance(extent, int):
            stop = min(stop, extent)
            start = min(start, extent) if isinstance(start, int) else start
        length = plain(sympy.ceiling(sympy.sympify(stop - start) / step))
        length = positive(length)
        if not isinstance(length, int) and not all(map(self._fixed, length.free_symbols)):
            raise exc.ShapeSpecializingAllocation(f" (a slice of length {length})")
        inside = self._inside(start, start + (length - 1) * step + 1, extent)
        axis = self._new(None if length == 1 else axes.dim_of(length, place.dims))
        if axis is None:
            place.checked |= not inside
            place.index.append(Affine((), start))
            return
        if axis.kind == "block":  # positions of a loop's axis count along its whole range
            start = plain(start - step * begin_symbol(axis))
        place.index.append(Affine.of(axis, step, start))
        if not inside and (isinstance(start, int) or isinstance(length, int)):
            place.checked = True
        elif not inside:
            place.masks.append(self._before_end(axis, start, step, extent))

    def _fixed(self, symbol: sympy.Symbol) -> bool:
        """Whether a symbol is a size argument, or a block size."""
        return symbol in self.p.sizes.sources or symbol.name.startswith("block_")

    def _before_end(self, axis: Axis, start: Size, step: Size, extent: Size) -> Value:
        """Where the positions of a slice lie before the end of the tensor."""
        b = self.p.b
        place = b.pointwise("mul", b.iota(axis), b.size_value(step)) if step != 1 else b.iota(axis)
        place = b.pointwise("add", place, b.size_value(start))
        return b.pointwise("lt", place, b.size_value(extent))

    def _number(self, item: Any, extent: Size) -> None:
        size = self.p.size(item)
        if isinstance(size, int) and size < 0:
            size = extent + size
        if not self._inside(size, size + 1, extent):
            self.place.checked = True
        self.place.index.append(Affine((), plain(size)))

    # -- index tensors ----------------------------------------------------------------------------

    def _tensors(self, group: Sequence[Tensor], d: int) -> None:
        """Neighbouring index tensors: vectors span a product, others broadcast together."""
        if all(t.rank <= 1 for t in group):
            for number, tensor in enumerate(group):
                dims = [self._new(dim) for dim in tensor.dims]
                self._tensor(tensor, tuple(dims), d + number)
            return
        joint = self.p.axes.joined([t.dims for t in group])
        dims = [self._new(dim) for dim in joint]
        for number, tensor in enumerate(group):
            self._tensor(tensor, tuple(dims), d + number)

    def _tensor(self, tensor: Tensor, dims: tuple[Dim, ...], d: int) -> None:
        p, place = self.p, self.place
        extent = place.buffer.shape[d]
        value = p.axes.put(tensor.value, tensor.dims, dims)
        for axis in tensor.dims:
            if axis is not None and axis.tile_name in p.b.jagged:
                place.jagged.append(axis)
        if tensor.place is not None and value is tensor.value:
            place.index.append(tensor.place)
            if not self._affine_inside(tensor.place, extent):
                place.checked = True
            return
        place.index.append(Gather(len(place.gathered)))
        place.gathered.append(p.b.cast(value, torch.int64))
        place.checked = True

    def _affine_inside(self, expr: Affine, extent: Size) -> bool:
        low = high = expr.offset
        for name, coefficient in expr.terms:
            axis = self.p.b.axis_named(name)
            if axis is None or not isinstance(coefficient, int):
                return False
            reach = coefficient * (axis.size - 1)
            low, high = (low + reach, high) if coefficient < 0 else (low, high + reach)
        return self._inside(low, high + 1, extent)

    # -- inside -----------------------------------------------------------------------------------

    def _inside(self, begin: Size, end: Size, extent: Size) -> bool:
        """Whether [begin, end) is known to lie in [0, extent)."""
        low, high = self._bound(begin, False), self._bound(end, True)
        return _not_negative(low) and _not_negative(extent - high)

    def _bound(self, size: Size, upper: bool) -> Any:
        """The size with the positions of tiles at an end of their range."""
        size = sympy.sympify(size)
        for axis in self.p.axes.open:
            symbol = begin_symbol(axis)
            if not size.has(symbol):
                continue
            rate = size.diff(symbol)
            if not rate.is_Integer:
                continue
            last = axis.size - 1
            size = size.subs(symbol, last if (rate > 0) == upper else 0)
        return sympy.expand(size)


def _not_negative(size: Any) -> bool:
    return size >= 0 if isinstance(size, int) else size.is_nonnegative is True


def _from_end(size: Size, extent: Size) -> Size:
    if isinstance(size, int) and size < 0:
        return positive(extent + size)
    return size


# -- accesses -----------------------------------------------------------------------------------


def place_of(p: Program, host: Any, index: Any) -> Place:
    if isinstance(host, Stack):
        return _stacked(p, host, index)
    return Placing(p, host).of(index)


def _stacked(p: Program, stack: Stack, index: Any) -> Place:
    """The dimensions of the addresses in front of those of one of the tensors."""
    placing = Placing(p, stack.like)
    placing.place.dims += stack.pointers.dims
    place = placing.of(index)
    place.pointer = p.b.expand(
        stack.pointers.value, [d for d in stack.pointers.dims if d is not None]
    )
    return place


def mask_of(p: Program, place: Place, extra: Any) -> Value | None:
    """What masks an access: `extra_mask`, and the ends of jagged tiles."""
    masks = list(place.masks)
    for axis in dict.fromkeys(place.jagged):
        masks.append(p.b.jagged[axis.tile_name]())
    if extra is not None:
        if not isinstance(extra, Tensor):
            masks.append(p.b.cast(p.value(extra), torch.bool))
        else:
            dims = p.axes.joined([extra.dims, tuple(place.dims)])
            if len(dims) > len(place.dims):
                raise exc.ShapeMismatch(repr(extra), _text(p, place.dims))
            value = p.axes.put(extra.value, extra.dims, place.dims)
            if value.type.dtype is not torch.bool:
                zero = p.constant(0, value.type.dtype)
                value = p.b.pointwise("ne", value, zero)
            masks.append(value)
    result: Value | None = None
    for mask in masks:
        result = mask if result is None else p.b.pointwise("and", result, mask)
    return result


def load(p: Program, host: Any, index: Any, extra_mask: Any = None) -> Tensor:
    """host[index] as a value of the device."""
    place = place_of(p, host, index)
    _no_race(p, place.buffer)
    mask = mask_of(p, place, extra_mask)
    value = p.b.load(
        place.buffer,
        place.index,
        place.gathered,
        mask,
        checked=place.checked,
        pointer=place.pointer,
    )
    return Tensor(value, tuple(place.dims))


def store(p: Program, host: Any, index: Any, value: Any, extra_mask: Any = None) -> None:
    """host[index] = value."""
    place = place_of(p, host, index)
    stored = stored_value(p, place, value)
    mask = mask_of(p, place, extra_mask)
    if mask is not None:  # a tile of a dimension of size 1: its one lane may be masked off
        still = [a for a in mask.type.axes if a.name not in _moves(place)]
        mask = p.b.reduce("any", mask, still) if still else mask
    p.b.store(
        place.buffer,
        place.index,
        stored,
        place.gathered,
        mask,
        checked=place.checked,
        pointer=place.pointer,
    )
    wrote(p, place.buffer)


def wrote(p: Program, buffer: Buffer) -> None:
    p.stored.add(buffer.name)
    p.effects += 1


def _no_race(p: Program, buffer: Buffer) -> None:
    if buffer.name in p.written:
        raise exc.LoopDependencyError(buffer.name)


def stored_value(p: Program, place: Place, value: Any) -> Value:
    """A value as it is stored: of lanes that all write one place the last one stays."""
    result, moves = _fitted(p, place, value), _moves(place)
    extra = [a for a in result.type.axes if a.name not in moves]
    for axis in extra:
        last = p.b.size_value(plain(p.axes.count(axis) - 1))
        result = p.b.take(result, last, axis)
    return p.b.expand(result, [a for a in place.axes if a.name in moves])


def _moves(place: Place) -> set[str]:
    """Axes that tell the elements of a place apart."""
    moves = {n for e in place.index if isinstance(e, Affine) for n in e.axis_names}
    values = [*place.gathered, *([] if place.pointer is None else [place.pointer])]
    return moves | {n for v in values for n in v.type.axis_names}


def _fitted(p: Program, place: Place, value: Any) -> Value:
    """A value in the dtype and along the axes of the place that it is stored to."""
    dtype = place.buffer.dtype
    if isinstance(value, Tensor):
        dims = value.dims
        while len(dims) > len(place.dims) and dims[0] is None:
            dims = dims[1:]
        if len(dims) > len(place.dims) or (0 < len(dims) < len(place.dims)):
            raise exc.RankMismatch(len(place.dims), len(dims), " (of the value that is stored)")
        _check_shape(p, dims, place.dims)
        return p.b.cast(p.axes.put(value.value, dims, place.dims), dtype)
    if is_number(value):
        return p.typed(value, dtype)
    if isinstance(value, HostTensor):
        raise exc.HostTensorDirectUsage(value.name, "store")
    raise exc.RequiresTensorInAssignment(describe(value))


def _check_shape(p: Program, dims: Sequence[Dim], target: Sequence[Dim]) -> None:
    for mine, other in zip(reversed(dims), reversed(target), strict=False):
        if mine is None or p.axes.extent(mine) == 1:
            continue
        if other is None or not p.axes.matches(mine, other):
            raise exc.ShapeMismatch(_text(p, dims), _text(p, target))


def _text(p: Program, dims: Sequence[Dim]) -> str:
    return "[" + ", ".join(p.axes.shape_text(d) for d in dims) + "]"


def atomic(
    p: Program,
    fn: str,
    host: Any,
    index: Any,
    value: Any,
    expected: Any = None,
    extra_mask: Any = None,
) -> Tensor | None:
    """One atomic operation a lane, also where several meet; gives what was there before."""
    if not isinstance(host, HostTensor):
        raise exc.AtomicOnDeviceTensor(f"atomic_{fn}")
    place = place_of(p, host, index)
    if not place.index and isinstance(value, Tensor):  # every lane goes to the one element
        place.dims = list(value.dims)
    stored = p.b.expand(_fitted(p, place, value), place.axes)
    before = None if expected is None else p.b.expand(_fitted(p, place, expected), place.axes)
    mask = mask_of(p, place, extra_mask)
    result = p.b.atomic(
        fn,
        place.buffer,
        place.index,
        stored,
        place.gathered,
        mask,
        before,
        place.checked,
        want_result=True,
    )
    wrote(p, place.buffer)
    assert result is not None
    return Tensor(result, tuple(place.dims))


# -- values of the device -----------------------------------------------------------------------


def subscript(p: Program, x: Tensor, index: Any) -> Tensor:
    """x[index] of a value of the device: new dimensions, slices, numbers for short ones."""
    items = expanded(flat(index), x.rank, "of the device")
    d = 0
    for item in items:
        if isinstance(item, slice):
            x = selections.sliced(p, x, d, item)
        d += item is not None
    dims: list[Dim] = []
    value, d = x.value, 0
    for item in items:
        if item is None:
            dims.append(None)
            continue
        dim = x.dims[d]
        d += 1
        if isinstance(item, slice):
            dims.append(dim)
        elif isinstance(item, int) and (dim is None or dim.kind != "block"):
            extent = p.axes.extent(dim)
            if isinstance(extent, int) and not -extent <= item < extent:
                raise exc.InvalidIndexingType(f"{item}, out of range of a dimension of {extent}")
            if dim is not None and dim.name in value.type.axis_names:
                place = p.b.const(item % extent, torch.int64)  # type: ignore[operator]
                value = p.b.take(value, place, dim)
        else:
            raise exc.InvalidIndexingType(f"{describe(item)} in a value of the device")
    return Tensor(value, tuple(dims), x.place if value is x.value else None)
