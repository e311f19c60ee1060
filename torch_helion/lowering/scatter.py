"""Scatters that put one element into each row: a choice by position, not a write by address.

In: one call (registry.Context). Out: tile values. `zeros.scatter(1, target, -1)`, as the gradient
of a loss has it, is `where(column == target, -1, zeros)`. An index out of range ends the kernel
with an error, as in eager mode.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_helion.ir.types import Size
from torch_helion.lowering.creation import position
from torch_helion.lowering.promotion import bind, convert, results
from torch_helion.lowering.registry import Context, Lowering
from torch_helion.lowering.selection import filled

aten = torch.ops.aten


def scatter(cx: Context, *args: Any, **kwargs: Any) -> Any:
    """scatter with a number or a tensor, where the index has one element along the dimension."""
    bound = bind(cx, args, kwargs)
    x, index, source = bound["self"], bound["index"], bound.get("value") or bound["src"]
    shape, at = x.fake.shape, index.fake.shape
    if not shape or len(at) != len(shape):
        raise cx.refuse("a scatter of scalars")
    dim = bound["dim"].given % len(shape)
    _require_one_a_row(cx, shape, at, dim)
    if isinstance(source.fake, torch.Tensor) and source.fake.shape != at:
        raise cx.refuse("source and index have different shapes")
    place = convert(cx, index.given, torch.int64)
    extent: Size = cx.outputs[0].shape[dim]
    limit = place.cx.b.size_value(extent)
    valid = (place >= 0) & type(place)(cx, cx.b.pointwise("lt", place.value, limit))
    cx.b.check(valid.value)
    here = position(cx, cx.outputs[0], dim).eq(place)
    return results(cx, here.where(filled(cx, source.given), convert(cx, x.given, cx.dtype)))


def _require_one_a_row(cx: Context, shape: Any, at: Any, dim: int) -> None:
    for d, (whole, part) in enumerate(zip(shape, at, strict=True)):
        if d == dim:
            if not (isinstance(part, int) and part == 1):
                raise cx.refuse("several elements of a row are written")
        elif whole != part:
            raise cx.refuse("the index does not cover the other dimensions")


SCATTER: tuple[Lowering, ...] = tuple(
    Lowering(overload, "creation", scatter)  # it reads positions
    for overload in (aten.scatter.value, aten.scatter.src)
)
