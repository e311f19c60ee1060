"""Source of loads, stores and atomics: subscripts.

In: a `Printer` and an op. Out: lines, or an expression. Used by `printer.py` only.

A subscript item is a tile, `:`, a slice, a number, or an index tensor. Where two index tensors
share an axis, or one has several, all items are written as tensors that broadcast together. Vectors
next to each other would span a product instead: they get one more dimension, of size 1, which the
result loses again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from torch_helion.ir.graph import Op, Value
from torch_helion.ir.printer_state import Printer, Row, with_axes
from torch_helion.ir.source_text import ATOM, Expr, number_expr, sum_expr
from torch_helion.ir.types import Affine, Axis, Gather, IndexExpr, Size


@dataclass(frozen=True)
class _Item:
    """One subscript: its text, the axes it brings in, what stands for it among index tensors."""

    text: str
    axes: tuple[str, ...]
    tensor: Expr
    is_tensor: bool = False

    @property
    def argument(self) -> str:
        """The text as an element of a list, where a slice has no colons."""
        if ":" not in self.text or self.is_tensor:
            return self.text
        begin, stop, *step = (part or "None" for part in self.text.split(":"))
        parts = [stop] if begin == "None" and not step else [begin, stop, *step]
        return f"slice({', '.join(parts)})"


@dataclass(frozen=True)
class _Place:
    """What an access subscripts, with what, and the dimensions that this has."""

    target: str
    items: Sequence[_Item]
    axes: tuple[str, ...]
    thick: bool = False
    """Whether it has one more dimension at its end, of size 1."""

    @property
    def subscript(self) -> str:
        return ", ".join(item.text for item in self.items) or "()"

    @property
    def list(self) -> str:
        return f"[{', '.join(item.argument for item in self.items)}]"


def _place(p: Printer, op: Op, lanes: Sequence[str]) -> _Place:
    """`lanes`: axes that the access has besides those of its index."""
    access = op.access
    items = [_item(p, e, d, op) for d, e in enumerate(op.attrs["index"])]
    target, stack = op.attrs["buffer"], tuple[str, ...]()
    if access.pointer is not None:
        stack = p.canonical(access.pointer)
        target = f"hl.stacktensor_like({target}, {p.tensor(access.pointer).text})"
    here = [n for item in items for n in item.axes]
    more, thick = set(lanes) - set(here) - set(stack), False
    if not _in_place(items) or more:
        want = p.layout([*here, *more])
        thick = len(want) == 1 and len(items) > 1
        items = _broadcast(p, items, (*want, *([""] if thick else [])), more)
        here = list(want)
    return _Place(target, items, (*stack, *here), thick)


def _in_place(items: Sequence[_Item]) -> bool:
    """Whether the result has each item's dimensions in the item's place."""
    axes = [n for item in items for n in item.axes]
    tensors = [item for item in items if item.is_tensor]
    return len(set(axes)) == len(axes) and len(tensors) <= 1


def _broadcast(
    p: Printer, items: Sequence[_Item], axes: Sequence[str], more: set[str]
) -> list[_Item]:
    """The items as tensors that broadcast together to dimensions `axes`."""
    found: list[_Item] = []
    moving = [place for place, item in enumerate(items) if item.axes]
    for place, item in enumerate(items):
        tensor = with_axes(item.tensor, item.axes, axes)
        if moving and moving[0] < place < moving[-1] and tensor.literal:  # no gap between tensors
            tensor = Expr(f"hl.full([], {tensor.text}, dtype=torch.int64)")
        if more and not found:  # no item has these: the first one is repeated along them
            shown = item.tensor
            if shown.literal:
                shown = Expr(f"hl.full([], {shown.text}, dtype=torch.int64)")
            shown = with_axes(shown, item.axes, axes, every=bool(item.axes))
            extents = ["1" if name == "" else p.extent(name) for name in axes]
            tensor = Expr(f"{shown.at(ATOM)}.expand({', '.join(extents)})")
        found.append(_Item(tensor.text, item.axes, tensor, bool(item.axes) or bool(more)))
    return found


def _item(p: Printer, expr: IndexExpr, dim: int, op: Op) -> _Item:
    """The subscript of one dimension."""
    if isinstance(expr, Gather):
        value = op.access.gathered[expr.operand]
        axes = p.canonical(value)
        return _Item(p.values[value].text, axes, p.values[value], bool(axes))
    axes = p.layout(n for n in expr.axis_names if n in p.axes)
    terms = [(_term(p, name, axes), c) for name, c in expr.terms]
    tensor = sum_expr(terms, expr.offset, p.symbols)
    if len(axes) == 1 and len(terms) == 1:
        short = _short(p, expr, p.axes[axes[0]], op, dim)
        if short:
            return _Item(short, axes, tensor)
    return _Item(tensor.text, axes, tensor, bool(axes))


def _short(p: Printer, expr: Affine, axis: Axis, op: Op, dim: int) -> str:
    """A tile, `:` or a slice, where one of them says it."""
    buffer = p.kernel.buffer(op.attrs["buffer"])
    ((_, step),) = expr.terms
    start = expr.offset
    if axis.kind == "block":
        if step != 1:
            return ""
        return sum_expr([(Expr(p.tiles[axis.tile_name]), 1)], start, p.symbols).text
    if step == 1 and start == 0 and axis.size == buffer.shape[dim]:
        return ":"
    # A slice is cut at the ends of its dimension and counts negative numbers from the end: it
    # says the same only where no lane is outside.
    if op.attrs["masked"] or not _at_least(start, 0) or not _at_least(step, 1):
        return ""
    stop = start + (axis.size - 1) * step + 1
    begin = p.size(start) if start != 0 else ""
    return f"{begin}:{p.size(stop)}" + (f":{p.size(step)}" if step != 1 else "")


def _at_least(size: Size, least: int) -> bool:
    return bool(sympy.sympify(size - least).is_nonnegative)


def _term(p: Printer, name: str, axes: Sequence[str]) -> Expr:
    """One term of an index map as a tensor over `axes`."""
    if name in p.axes:
        return with_axes(p.positions(p.axes[name]), (name,), axes)
    return Expr(f"{p.tiles[p.axes[name.removesuffix('.id')].tile_name]}.id")


def _lanes(op: Op) -> list[str]:
    return [n for v in op.operands for n in v.type.axis_names]


# -- the rows -----------------------------------------------------------------------------------


def _load(p: Printer, op: Op) -> None:
    want, mask = p.canonical(op.result), op.access.mask
    place = _place(p, op, want)
    if mask is None:
        text = f"{place.target}[{place.subscript}]"
    else:
        shown = _stored(p, mask, place)
        text = f"hl.load({place.target}, {place.list}, extra_mask={shown})"
    text += ".squeeze(-1)" if place.thick else ""
    bare, text = text, _permuted(text, place.axes, want)
    if mask is not None and op.attrs["other"] != 0:
        other = number_expr(op.attrs["other"], op.result.type.dtype)
        bare = text = f"torch.where({p.fitted(mask, want).text}, {text}, {other.text})"
        place = replace(place, axes=want)
    p.define(op, Expr(text))
    if op.result not in p.owners:
        p.loads[op.result] = bare, place.axes


def _permuted(text: str, have: Sequence[str], want: Sequence[str]) -> str:
    if tuple(have) == tuple(want):
        return text
    return f"{text}.permute({', '.join(str(list(have).index(name)) for name in want)})"


def _store(p: Printer, op: Op) -> None:
    place, mask = _place(p, op, ()), op.access.mask
    text = _stored(p, op.operands[0], place)
    if mask is None:
        p.line(f"{place.target}[{place.subscript}] = {text}", p.note(op))
        return
    shown = _stored(p, mask, place)
    p.line(f"hl.store({place.target}, {place.list}, {text}, extra_mask={shown})", p.note(op))


def _atomic(p: Printer, op: Op) -> None:
    place, access = _place(p, op, _lanes(op)), op.access
    arguments = [place.target, place.list, *(_stored(p, v, place) for v in access.values)]
    if access.mask is not None:
        arguments.append(f"extra_mask={_stored(p, access.mask, place)}")
    call = f"hl.atomic_{op.attrs['fn']}({', '.join(arguments)})"
    call += ".squeeze(-1)" if place.thick and op.results else ""
    if op.results:
        p.define(op, Expr(_permuted(call, place.axes, p.canonical(op.result))))
    else:
        p.line(call, p.note(op))


def _stored(p: Printer, value: Value, place: _Place) -> str:
    expr = p.arranged(value, place.axes)
    if place.thick and value.type.axes:
        return f"{expr.at(ATOM)}[:, None]"
    return expr.text


MEMORY_ROWS: Mapping[str, Row] = {"load": _load, "store": _store, "atomic": _atomic}
