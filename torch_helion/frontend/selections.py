"""Parts of values of the device, values end to end, and scatters into a value.

In: ATen calls on meta tensors, caught by `calls`; subscripts. Out: the same for values. All of them
pick positions along one axis, which must be whole: of a tile, only the config knows how long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend.calls import Calls, rule
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Dim, Tensor
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Axis

aten = torch.ops.aten
SLICE = "slice"


def length(p: Program, dim: Dim, what: str) -> int:
    """The extent of a dimension, which must be a constant."""
    extent = p.axes.extent(dim)
    if isinstance(extent, int) and (dim is None or dim.kind != "block"):
        return extent
    tile = dim is not None and dim.kind == "block"
    why = f"the length of {dim.name if dim else ''} is known to the config only" if tile else ""
    why = why or f"its length {extent} is no constant (see hl.specialize)"
    if what == SLICE:
        raise exc.InvalidIndexingType(f"a slice of a value along a dimension: {why}")
    raise exc.TorchOpTracingError(f"torch.{what}", f"along a dimension: {why}")


# -- slices -------------------------------------------------------------------------------------


def sliced(p: Program, x: Tensor, d: int, part: slice) -> Tensor:
    """x[..., part, ...] along dimension d."""
    if not all(n is None or isinstance(n, int) for n in (part.start, part.stop, part.step)):
        raise exc.InvalidIndexingType("a slice with a bound that is no constant")
    if (part.step or 1) < 1:
        raise exc.InvalidIndexingType("a slice whose step is not positive")
    if (part.start or 0) == 0 and part.stop is None and (part.step or 1) == 1:
        return x
    dim = x.dims[d]
    extent = length(p, dim, SLICE)
    places = range(*part.indices(extent))
    if len(places) == extent:
        return x
    dims = [*x.dims[:d], *x.dims[d + 1 :]]
    out = p.axes.dim_of(len(places), [*dims, dim])
    value = x.value
    if dim is not None and dim.name in value.type.axis_names:
        value = p.b.take(value, _places(p, out, places), dim)
    return Tensor(value, (*x.dims[:d], out, *x.dims[d + 1 :]))


def _places(p: Program, out: Dim, places: range) -> Value:
    """start + step * position along an axis."""
    start = p.b.const(places.start, torch.int64)
    if out is None:
        return start
    found = p.b.iota(out)
    if places.step != 1:
        found = p.b.pointwise("mul", found, p.b.const(places.step, torch.int64))
    return p.b.pointwise("add", found, start) if places.start else found


@rule(aten.slice.Tensor)
def slice_(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake = func(*args, **kwargs)
    given = dict(zip(("dim", "start", "end", "step"), args[1:], strict=False)) | kwargs
    x = calls.of(args[0])
    d = given.get("dim", 0) % x.rank
    if fake.shape == args[0].shape and given.get("step", 1) == 1:
        return calls.stand(fake, x)
    part = slice(given.get("start"), given.get("end"), given.get("step"))
    return calls.stand(fake, sliced(calls.p, x, d, part))


# -- end to end ---------------------------------------------------------------------------------


@rule(aten.cat.default)
def cat(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake = func(*args, **kwargs)
    p = calls.p
    tensors = [t for t in map(calls.of, args[0]) if t.rank]
    d = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % fake.dim()
    lengths = [length(p, t.dims[d], "cat") for t in tensors]
    parts = [(t, n) for t, n in zip(tensors, lengths, strict=True) if n]
    kept = [(*t.dims[:d], None, *t.dims[d + 1 :]) for t, _ in parts]
    dims = list(p.axes.joined(kept))
    dims[d] = p.axes.dim_of(sum(lengths), [*dims, *(t.dims[d] for t, _ in parts)])
    value, begin = None, 0
    for tensor, extent in parts:
        mine = _moved(p, tensor, d, dims, begin, extent)
        mine = p.b.cast(mine, fake.dtype)
        value = mine if value is None else _from(p, dims[d], begin, value, mine)
        begin += extent
    if value is None:
        value = p.constant(0, fake.dtype)
    return calls.stand(fake, Tensor(value, tuple(dims)))


def _moved(p: Program, x: Tensor, d: int, dims: Sequence[Dim], begin: int, extent: int) -> Value:
    """A part where it stands in the whole; its ends are repeated outside of it."""
    source, out = x.dims[d], dims[d]
    rest = (*x.dims[:d], None, *x.dims[d + 1 :])
    target = (*dims[:d], None, *dims[d + 1 :])
    if source is None or source.name not in x.value.type.axis_names:
        return p.axes.put(x.value, rest, target)
    assert out is not None
    place = p.b.pointwise("sub", p.b.iota(out), p.b.const(begin, torch.int64))
    value = p.b.take(x.value, _within(p, place, extent), source)
    return p.axes.put(value, rest, target)


def _within(p: Program, place: Value, extent: int) -> Value:
    low = p.b.pointwise("maximum", place, p.b.const(0, torch.int64))
    return p.b.pointwise("minimum", low, p.b.const(extent - 1, torch.int64))


def _from(p: Program, axis: Dim, begin: int, before: Value, after: Value) -> Value:
    """`before` up to a position, `after` from there on."""
    assert axis is not None
    there = p.b.pointwise("ge", p.b.iota(axis), p.b.const(begin, torch.int64))
    return p.b.pointwise("where", there, after, before)


# -- other orders -------------------------------------------------------------------------------


@rule(aten.flip.default)
def flip(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, p, x = func(*args, **kwargs), calls.p, calls.of(args[0])
    for d in (d % x.rank for d in args[1]):
        extent = length(p, x.dims[d], "flip")
        x = _picked(p, x, d, range(extent - 1, -1, -1))
    return calls.stand(fake, x)


def _picked(p: Program, x: Tensor, d: int, places: range) -> Tensor:
    """As many positions along a dimension as it has, in another order."""
    dim = x.dims[d]
    if dim is None or dim.name not in x.value.type.axis_names:
        return x
    out = p.axes.free(dim, x.dims)
    value = p.b.take(x.value, _places(p, out, places), dim)
    return Tensor(value, (*x.dims[:d], out, *x.dims[d + 1 :]))


@rule(aten.index.Tensor, aten.index_select.default)
def index(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Positions along one dimension, in a tensor of any rank."""
    fake, p, x = func(*args, **kwargs), calls.p, calls.of(args[0])
    if func is aten.index_select.default:
        given = {args[1] % x.rank: args[2]}
    else:
        given = {d: i for d, i in enumerate(args[1]) if i is not None}
    if len(given) != 1:
        raise exc.InductorLoweringError("several index tensors in a value of the device")
    ((d, found),) = given.items()
    picks = calls.of(found)
    if picks.dtype is torch.bool:
        raise exc.DataDependentOutputShapeNotSupported("indexing with a bool tensor")
    extent = length(p, x.dims[d], "index")
    dims: list[Dim] = [*x.dims[:d], *x.dims[d + 1 :]]
    fresh = [None if a is None else p.axes.free(a, [*x.dims, *picks.dims]) for a in picks.dims]
    own = [f if a in dims or a is x.dims[d] else a for a, f in zip(picks.dims, fresh, strict=True)]
    place = p.b.cast(p.axes.put(picks.value, picks.dims, own), torch.int64)
    below = p.b.pointwise("lt", place, p.b.const(0, torch.int64))
    wrapped = p.b.pointwise("add", place, p.b.const(extent, torch.int64))
    place = p.b.pointwise("where", below, wrapped, place)
    value, dim = x.value, x.dims[d]
    if dim is not None and dim.name in value.type.axis_names:
        value = p.b.take(value, place, dim)
    else:
        _in_range(p, place, extent)
    return calls.stand(fake, Tensor(value, (*dims[:d], *own, *dims[d:])))


@rule(aten.constant_pad_nd.default)
def pad(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, p, x = func(*args, **kwargs), calls.p, calls.of(args[0])
    number = args[2] if len(args) > 2 else kwargs.get("value", 0)
    widths = args[1]
    for n in range(len(widths) // 2):
        low, high = widths[2 * n : 2 * n + 2]
        if low or high:
            x = _padded(p, x, x.rank - 1 - n, low, high, number)
    return calls.stand(fake, x)


def _padded(p: Program, x: Tensor, d: int, low: int, high: int, number: Any) -> Tensor:
    """One dimension, longer (or shorter) at both of its ends."""
    dim, b = x.dims[d], p.b
    extent = length(p, dim, "pad")
    out = p.axes.dim_of(extent + low + high, [*x.dims])
    place = _places(p, out, range(-low, extent + high))
    value = x.value
    if not extent:
        value = p.constant(number, x.dtype)
    elif dim is not None and dim.name in value.type.axis_names:
        value = b.take(value, _within(p, place, extent), dim)
    inside = b.pointwise("ge", place, b.const(0, torch.int64))
    inside = b.pointwise("and", inside, b.pointwise("lt", place, b.const(extent, torch.int64)))
    value = b.pointwise("where", inside, value, p.constant(number, x.dtype))
    return Tensor(value, (*x.dims[:d], out, *x.dims[d + 1 :]))


# -- scatters -----------------------------------------------------------------------------------


@rule(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def scatter(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """The last of the elements that go to one place stays there, or their sum is added to it."""
    fake, p = func(*args, **kwargs), calls.p
    x, index = calls.of(args[0]), calls.of(args[2])
    d = args[1] % max(x.rank, 1)
    source = kwargs.get("src", kwargs.get("value", args[3] if len(args) > 3 else None))
    source = calls.of(source) if isinstance(source, torch.Tensor) else source
    _check_scatter(p, x, index, source, d)
    value = _scattered(p, func, x, index, source, d)
    return calls.stand(fake, Tensor(value, x.dims))


def _check_scatter(p: Program, x: Tensor, index: Tensor, source: Any, d: int) -> None:
    others = [t.dims for t in (index, source) if isinstance(t, Tensor)]
    for dims in others:
        rest = [(a, b) for n, (a, b) in enumerate(zip(x.dims, dims, strict=True)) if n != d]
        if any(a is not b for a, b in rest) or dims[d] is not others[0][d]:
            raise exc.ShapeMismatch(repr(x), repr(index))
    for dim in (x.dims[d], index.dims[d]) if x.rank else ():
        length(p, dim, "scatter")


def _scattered(p: Program, func: Any, x: Tensor, index: Tensor, source: Any, d: int) -> Value:
    b, dtype = p.b, x.dtype
    here = x.dims[d] if x.rank else None
    there = index.dims[d] if index.rank else None
    from_axis: Axis | None = None
    places = b.cast(index.value, torch.int64)
    values = p.typed(source, dtype) if not isinstance(source, Tensor) else source.value
    values = b.cast(values, dtype)
    if there is not None:  # along an axis of its own: it meets every position of the target
        from_axis = p.axes.free(there, [*x.dims, *index.dims])
        places = b.expand(b.reaxis(b.expand(places, [there]), {there: from_axis}), [from_axis])
        if there.name in values.type.axis_names:
            values = b.reaxis(values, {there: from_axis})
    _in_range(p, places, length(p, here, "scatter"))
    zero = b.const(0, torch.int64)
    hit = b.pointwise("eq", places, zero if here is None else b.iota(here))
    if func is aten.scatter_add.default:
        return _added(p, x, hit, values, from_axis)
    if from_axis is None:
        return b.pointwise("where", hit, values, x.value)
    last = b.pointwise("where", hit, b.iota(from_axis), b.const(-1, torch.int64))
    last = b.reduce("max", last, [from_axis])
    if from_axis.name in values.type.axis_names:
        values = b.take(values, b.pointwise("maximum", last, zero), from_axis)
    return b.pointwise("where", b.pointwise("ge", last, zero), values, x.value)


def _added(p: Program, x: Tensor, hit: Value, values: Value, axis: Axis | None) -> Value:
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    given = p.b.pointwise("where", hit, p.b.cast(values, wide), p.constant(0, wide))
    total = given if axis is None else p.b.reduce("sum", p.b.expand(given, [axis]), [axis])
    return p.b.cast(p.b.pointwise("add", p.b.cast(x.value, wide), total), x.dtype)


def _in_range(p: Program, places: Value, extent: int) -> None:
    b = p.b
    low = b.pointwise("ge", places, b.const(0, torch.int64))
    b.check(b.pointwise("and", low, b.pointwise("lt", places, b.const(extent, torch.int64))))
