"""Gather rules: results whose elements are read at places that an index tensor holds.

In and out as in view.py; a place that comes from memory is an `Indirect`. Numbers out of range
end the kernel with an error, as in eager mode; negative ones count from the end only where ATen
says so.
"""

from __future__ import annotations

import torch

from torch_helion.ir.types import Size
from torch_helion.lowering.registry import Context, Lowering
from torch_helion.lowering.view import (
    ZERO,
    Index,
    Indirect,
    Place,
    Read,
    Source,
    arguments,
    dimension,
    input_shape,
    input_spec,
    is_one,
    replaced,
)

aten = torch.ops.aten


def check_index(cx: Context, argument: int, item: int | None = None) -> None:
    dtype = input_spec(cx, argument, item).dtype
    if dtype not in (torch.int64, torch.int32):
        raise cx.refuse(f"an index of dtype {dtype}")


def embedding(cx: Context, index: Index) -> tuple[Source, ...]:
    check_index(cx, 1)
    row = Indirect(Read(1, index[:-1]), input_shape(cx, 0)[0], wrap=False)
    return (Read(0, (row, index[-1])),)


def index_select(cx: Context, index: Index) -> tuple[Source, ...]:
    check_index(cx, 2)
    shape = input_shape(cx, 0)
    if not shape:
        raise cx.refuse("index_select of a scalar")
    dim = dimension(cx, arguments(cx)["dim"])
    rank = len(input_shape(cx, 2))
    place = Indirect(Read(2, (index[dim],) if rank else ()), shape[dim], wrap=False)
    return (Read(0, replaced(index, dim, place)),)


def gather(cx: Context, index: Index) -> tuple[Source, ...]:
    check_index(cx, 2)
    shape = input_shape(cx, 0)
    if not shape or not input_shape(cx, 2):
        raise cx.refuse("gather of a scalar")
    dim = dimension(cx, arguments(cx)["dim"])
    place = Indirect(Read(2, index), shape[dim], wrap=False)
    return (Read(0, replaced(index, dim, place)),)


def advanced(cx: Context, index: Index) -> tuple[Source, ...]:
    """x[i, :, j]: the index tensors broadcast; their dimensions stand where they are if they
    are adjacent.
    """
    shape = input_shape(cx, 0)
    given = [d for d, tensor in enumerate(arguments(cx)["indices"]) if tensor is not None]
    if not given:
        raise cx.refuse("no index tensor")
    for d in given:
        check_index(cx, 1, d)
    rank = max(len(input_shape(cx, 1, d)) for d in given)
    adjacent = given == list(range(given[0], given[0] + len(given)))
    first = given[0] if adjacent else 0
    common = index[first : first + rank]
    rest = iter((*index[:first], *index[first + rank :]))
    places: list[Place] = []
    for d, size in enumerate(shape):
        if d in given:
            read = Read(1, _broadcast(input_shape(cx, 1, d), common), item=d)
            places.append(Indirect(read, size, wrap=True))
        else:
            places.append(next(rest))
    return (Read(0, tuple(places)),)


def _broadcast(shape: tuple[Size, ...], index: Index) -> Index:
    tail = index[len(index) - len(shape) :]
    return tuple(ZERO if is_one(n) else p for n, p in zip(shape, tail, strict=True))


GATHERS: tuple[Lowering, ...] = tuple(
    Lowering(overload, "gather", rule)
    for rule, overloads in (
        (embedding, (aten.embedding.default,)),
        (index_select, (aten.index_select.default,)),
        (gather, (aten.gather.default,)),
        (advanced, (aten.index.Tensor, aten._unsafe_index.Tensor)),
    )
    for overload in overloads
)
