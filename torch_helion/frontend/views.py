"""Views and joins of values of the device: dimensions move, axes stay.

In: ATen calls on meta tensors, caught by `calls`. Out: the same for values. A dimension is an axis,
so permutations, new and dropped dimensions of size 1 and repetitions need no operation at all; only
`reshape` across dimensions and joins of values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend.calls import Calls, as_value, rule
from torch_helion.frontend.values import Dim, Tensor
from torch_helion.ir.graph import Value
from torch_helion.ir.ops import identity_of
from torch_helion.ir.types import Axis

aten = torch.ops.aten


def _viewed(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> tuple[Any, Tensor]:
    return func(*args, **kwargs), calls.of(args[0])


@rule(
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh.default,
)
def same(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    x = calls.of(args[0])
    return calls.stand(torch.empty_like(args[0]), x)


@rule(aten._to_copy.default, aten.to.dtype)
def to_copy(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    return calls.stand(fake, Tensor(calls.p.b.cast(x.value, fake.dtype), x.dims))


@rule(aten.permute.default)
def permute(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    return calls.stand(fake, Tensor(x.value, tuple(x.dims[d] for d in args[1])))


@rule(aten.transpose.int)
def transpose(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    dims = list(x.dims)
    if dims:
        a, b = args[1] % len(dims), args[2] % len(dims)
        dims[a], dims[b] = dims[b], dims[a]
    return calls.stand(fake, Tensor(x.value, tuple(dims)))


@rule(aten.t.default)
def t(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    return calls.stand(fake, Tensor(x.value, x.dims[::-1]))


@rule(aten.unsqueeze.default)
def unsqueeze(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    at = args[1] % (x.rank + 1)
    return calls.stand(fake, Tensor(x.value, (*x.dims[:at], None, *x.dims[at:])))


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    rank = max(x.rank, 1)
    asked: Any = args[1] if len(args) > 1 else range(x.rank)
    asked = {asked % rank} if isinstance(asked, int) else {d % rank for d in asked}
    kept = [d for i, d in enumerate(x.dims) if i not in asked or calls.p.axes.stand_in(d) != 1]
    return calls.stand(fake, Tensor(x.value, tuple(kept)))


@rule(aten.expand.default)
def expand(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    axes = calls.p.axes
    shift = fake.dim() - x.rank
    dims: list[Dim] = [*((None,) * shift), *x.dims]
    for place, number in enumerate(fake.shape):
        if axes.stand_in(dims[place]) != number:
            dims[place] = axes.dim_of(axes.size_of(number), dims)
    return calls.stand(fake, Tensor(x.value, tuple(dims)))


@rule(aten.select.int)
def select(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """x[.., i, ..]: one position along an axis."""
    fake, x = _viewed(calls, func, args, kwargs)
    at = args[1] % x.rank
    dim, b = x.dims[at], calls.p.b
    value = x.value
    if dim is not None and dim.name in value.type.axis_names:
        if dim.kind == "block":
            raise exc.InvalidIndexingType("a number along a tile of a value of the device")
        index = b.const(args[2] % args[0].shape[at], torch.int64)
        value = b.take(value, index, dim)
    return calls.stand(fake, Tensor(value, (*x.dims[:at], *x.dims[at + 1 :])))


@rule(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
)
def refused_split(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    raise exc.UnsupportedSplitOperation(f"torch.{func._schema.name.split('::')[1]}")


# -- reshape ------------------------------------------------------------------------------------


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def reshape(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    return calls.stand(fake, reshaped(calls, x, tuple(fake.shape)))


def reshaped(calls: Calls, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Groups of dimensions with equal products become one another."""
    axes = calls.p.axes
    source = [(d, axes.stand_in(d)) for d in x.dims if axes.stand_in(d) != 1]
    target = [(i, n) for i, n in enumerate(shape) if n != 1]
    dims: list[Dim] = [None] * len(shape)
    value = x.value
    value_dims = [d for d, _ in source if d is not None]
    for old, new in _groups([n for _, n in source], [n for _, n in target]):
        before = [source[i][0] for i in old]
        after = [target[i] for i in new]
        if len(before) == 1 and len(after) == 1:
            dims[after[0][0]] = before[0]
            continue
        taken = [*value_dims, *(d for d in dims if d is not None)]
        made = _target_axes(calls, before, [n for _, n in after], taken)
        for (place, _), axis in zip(after, made, strict=True):
            dims[place] = axis
        value = _regrouped(calls, value, before, made)
    return Tensor(value, tuple(dims))


def _groups(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs of runs of both lists with equal products."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = [i], [j]
        x = old[i] if i < len(old) else 1
        y = new[j] if j < len(new) else 1
        i, j = i + 1, j + 1
        while x != y:
            if x < y:
                x *= old[i]
                a.append(i)
                i += 1
            else:
                y *= new[j]
                b.append(j)
                j += 1
        found.append(([k for k in a if k < len(old)], [k for k in b if k < len(new)]))
    return found


def _target_axes(
    calls: Calls, before: Sequence[Dim], numbers: Sequence[int], taken: Sequence[Dim]
) -> list[Axis]:
    """Axes for new dimensions; those of old ones where a size is the same."""
    axes = calls.p.axes
    made: list[Axis] = []
    for number in numbers:
        kept = [d for d in before if d is not None and axes.stand_in(d) == number]
        if kept and kept[0] not in made:
            made.append(kept[0])
            continue
        dim = axes.dim_of(axes.size_of(number), [*taken, *made])
        assert dim is not None
        made.append(dim)
    return made


def _regrouped(calls: Calls, value: Value, before: Sequence[Dim], after: list[Axis]) -> Value:
    b = calls.p.b
    source = [d for d in before if d is not None]
    if not any(d.name in value.type.axis_names for d in source):
        return value
    return b.reshape(b.expand(value, source), source, after)


# -- joins --------------------------------------------------------------------------------------


@rule(aten.stack.default)
def stack(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake = func(*args, **kwargs)
    tensors = [calls.of(a) for a in args[0]]
    at = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % fake.dim()
    return calls.stand(fake, stacked(calls, tensors, at, fake.dtype))


def stacked(calls: Calls, tensors: Sequence[Tensor], at: int, dtype: torch.dtype) -> Tensor:
    """Values side by side along a new dimension."""
    p = calls.p
    dims = p.axes.joined([t.dims for t in tensors])
    values = [p.b.cast(p.axes.put(t.value, t.dims, dims), dtype) for t in tensors]
    if len(values) == 1:
        return Tensor(values[0], (*dims[:at], None, *dims[at:]))
    axis = p.axes.free(p.axes.whole(len(values)), dims)
    place = p.b.iota(axis)
    result = values[-1]
    for number in reversed(range(len(values) - 1)):
        here = p.b.pointwise("eq", place, p.b.const(number, torch.int64))
        result = p.b.pointwise("where", here, values[number], result)
    return Tensor(result, (*dims[:at], axis, *dims[at:]))


# -- along one axis -----------------------------------------------------------------------------


def axis_at(calls: Calls, x: Tensor, dim: int) -> tuple[Dim, Value]:
    """The axis of a dimension, and the value along it."""
    axis = x.dims[dim % max(x.rank, 1)] if x.rank else None
    return axis, x.value if axis is None else calls.p.b.expand(x.value, [axis])


@rule(aten.cumsum.default, aten.cumprod.default)
def cumulative(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    fn = "sum" if func is aten.cumsum.default else "prod"
    return calls.stand(fake, scanned(calls, fn, x, args[1], fake.dtype))


def scanned(
    calls: Calls,
    fn: str,
    x: Tensor,
    dim: int,
    dtype: torch.dtype,
    reverse: bool = False,
    exclusive: bool = False,
) -> Tensor:
    b = calls.p.b
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    axis, value = axis_at(calls, x, dim)
    value = b.cast(b.cast(value, dtype), wide)
    if axis is None and exclusive:
        value = b.const(identity_of(fn, wide), wide)
    elif axis is not None:
        value = b.scan(fn, value, axis, reverse, exclusive)
    return Tensor(b.cast(value, dtype), x.dims)


@rule(aten.sort.default, aten.sort.stable)
def sort(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    names = ["dim", "descending"] if func is aten.sort.default else ["stable", "dim", "descending"]
    options = {"dim": -1, "descending": False, **dict(zip(names, args[1:], strict=False)), **kwargs}
    axis, value = axis_at(calls, x, options["dim"])
    if axis is None:
        parts = (value, calls.p.b.const(0, torch.int64))
    else:
        parts = calls.p.b.sort(value, axis, options["descending"])
    for meta, part in zip(fake, parts, strict=True):
        calls.stand(meta, Tensor(part, x.dims))
    return fake


@rule(aten.topk.default)
def topk(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    names = ["k", "dim", "largest", "sorted"]
    options = {"dim": -1, "largest": True, **dict(zip(names, args[1:], strict=False)), **kwargs}
    axis, value = axis_at(calls, x, options["dim"])
    p, k, at = calls.p, options["k"], options["dim"] % max(x.rank, 1)
    if axis is None:
        parts: Any = (value, p.b.const(0, torch.int64))
        dims = x.dims
    else:
        out = p.axes.free(p.axes.whole(k), x.dims)
        parts = p.b.sort(value, axis, options["largest"], k, out)
        if k == 1:
            zero = p.b.const(0, torch.int64)
            parts = [p.b.take(part, zero, out) for part in parts]
        dims = (*x.dims[:at], out if k != 1 else None, *x.dims[at + 1 :])
    for meta, part in zip(fake, parts, strict=True):
        calls.stand(meta, Tensor(part, dims))
    return fake


@rule(aten.gather.default)
def gather(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    fake, x = _viewed(calls, func, args, kwargs)
    index, at, p = calls.of(args[2]), args[1] % max(x.rank, 1), calls.p
    axis, value = axis_at(calls, x, at)
    place = p.b.cast(index.value, torch.int64)
    if axis is not None:
        place, dims = _apart(calls, index, place, axis, at, x)
        value = p.b.take(value, place, axis)
        back = index.dims[at]
        if back is not None and dims is not None:
            value = p.b.reaxis(value, {dims: back}) if dims.name in value.type.axis_names else value
    others = [d for i, d in enumerate(x.dims) if i != at]
    wanted = [d for i, d in enumerate(index.dims) if i != at]
    for mine, other in zip(others, wanted, strict=True):
        if mine is not other:
            raise exc.ShapeMismatch(repr(x), repr(index))
    return calls.stand(fake, Tensor(value, index.dims))


def _apart(
    calls: Calls, index: Tensor, place: Value, axis: Axis, at: int, x: Tensor
) -> tuple[Value, Dim]:
    """Positions along an axis of their own, where the index runs along the axis it picks from."""
    own = index.dims[at]
    if own is None or own.name != axis.name or axis.name not in place.type.axis_names:
        return place, None
    other = calls.p.axes.free(axis, [*x.dims, *index.dims])
    return calls.p.b.reaxis(place, {axis: other}), other


# -- products -----------------------------------------------------------------------------------


@rule(aten.mm.default, aten.bmm.default)
def mm(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    from torch_helion.frontend.products import product

    fake = func(*args, **kwargs)
    a, b = calls.of(args[0]), calls.of(args[1])
    return calls.stand(fake, product(calls.p, a, b, fake.dtype))


@rule(aten.mm.dtype, aten.bmm.dtype, aten.addmm.dtype, aten.baddbmm.dtype)
def mm_wide(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Products with the dtype of the result given: they are not rounded in between."""
    *start, a, b = args[:-1]
    return _product_onto(calls, start, a, b, args[-1], kwargs)


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """beta * c + alpha * (a @ b), rounded once; c may be wider than the factors."""
    c, a, b = args[:3]
    checked = (c, a, b)
    if a.dtype == b.dtype and (c.dtype, a.dtype) in _ONTO_WIDER:
        checked = (torch.empty(c.shape, dtype=a.dtype, device="meta"), a, b)
    func(*checked, **kwargs)  # eager mode's checks
    return _product_onto(calls, [c], a, b, c.dtype, kwargs)


_ONTO_WIDER = [(torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
"""dtypes of sums and factors that eager mode refuses and kernels are written with"""


def _product_onto(
    calls: Calls, start: Sequence[Any], a: Any, b: Any, dtype: torch.dtype, kwargs: Any
) -> Any:
    """beta * start + alpha * (a @ b): a sum of `dtype`."""
    from torch_helion.frontend.products import product

    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    scaled = (alpha, beta) != (1, 1)
    wide = torch.float32 if scaled and dtype in (torch.float16, torch.bfloat16) else dtype
    onto = [] if scaled else [calls.of(x) for x in start]
    result = product(calls.p, calls.of(a), calls.of(b), wide, *onto)
    shape = (*a.shape[:-1], b.shape[-1])
    meta = calls.stand(torch.empty(shape, dtype=wide, device="meta"), result)
    if not scaled:
        return meta
    with calls:
        return sum([x.to(wide) * beta for x in start], meta * alpha).to(dtype)


@rule(aten.mv.default, aten.dot.default)
def mv(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    a, b = args
    with calls:
        return (a * b).sum(-1, dtype=a.dtype)


def whole_value(calls: Calls, x: Tensor) -> Value:
    return as_value(calls.p, x)
