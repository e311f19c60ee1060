"""The tile IR evaluated in ATen without writing in place: what autograd can differentiate.

In: a kernel, its tensors, its sizes. Out: the new contents of the tensors that it writes. The
arithmetic is the interpreter's; loads and stores are replaced by indexing that has a gradient. Each
tile is as large as its range, so that most kernels become a straight line of whole-tensor ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion import exc
from torch_helion.ir.graph import Kernel, Op, Value
from torch_helion.ir.interpreter import _OPS
from torch_helion.ir.interpreter_state import Machine, Results, align
from torch_helion.ir.ops import CUSTOM
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS
from torch_helion.ir.types import Affine, Axis, Gather

DIFFERENTIABLE = frozenset(
    {
        *("loop", "yield", "if", "bind", "barrier", "assert"),
        *("load", "store", "atomic", "const", "size", "iota"),
        *("pointwise", "cast", "reduce", "scan", "dot", "sort", "take"),
        *("expand", "reaxis", "reshape"),
    }
)
"""Op kinds whose evaluation has a gradient, or needs none."""


def why_not(kernel: Kernel) -> Op | None:
    """The first op without a derivative, if there is one."""
    used = {value for op in kernel.body.walk() for value in op.operands}
    return next((op for op in kernel.body.walk() if not _is_differentiable(op, used)), None)


def _is_differentiable(op: Op, used: set[Value]) -> bool:
    if op.attrs.get("stacked", False):
        return False
    if op.kind == "bitcast":  # the bits of an integer (a number that the caller gave) need none
        return not op.operands[0].type.dtype.is_floating_point
    if op.kind == "atomic":  # one sum for all lanes; what a lane finds depends on their order
        return op.attrs["fn"] == "add" and not used.intersection(op.results)
    return op.kind in DIFFERENTIABLE


@dataclass
class _Cell:
    """The contents of one buffer, by logical index."""

    tensor: torch.Tensor


def evaluate(
    kernel: Kernel,
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int],
    blocks: Mapping[str, int] | None = None,
) -> dict[int, torch.Tensor]:
    """New contents of the tensors that the kernel writes, by number of the argument."""
    numbers = {s: int(n) for s, n in zip(kernel.sizes, sizes, strict=True)}
    m = Machine(kernel, kernel.axes(), numbers, False, _ROWS)
    m.bind_blocks(blocks)
    cells: dict[str, Any] = {}
    arguments = iter(tensors)
    for buffer in kernel.buffers:
        shape = [m.evaluate(s) for s in buffer.shape]
        if buffer.role == "workspace":
            cells[buffer.name] = _Cell(torch.zeros(shape, dtype=buffer.dtype))
        else:
            cells[buffer.name] = _Cell(next(arguments))
    m.memory = cells
    m.run_region(kernel.body)
    return {
        number: cells[buffer.name].tensor
        for number, buffer in enumerate(kernel.arguments)
        if buffer.is_output
    }


# ---------------------------------------------------------------------- memory


def _load(m: Machine, op: Op) -> Results:
    axes = op.result.type.axes
    tensor = m.memory[op.attrs["buffer"]].tensor  # type: ignore[attr-defined]
    shape = [m.extent(a) for a in axes]
    plain = _plain_axes(m, op, tuple(tensor.shape))
    if plain is not None:
        view, have = _selected(m, op, tensor, plain)
        tile = align(view, have, axes).expand(shape)
    else:
        index = _indices(m, op, axes, tensor.shape, shape)
        tile = tensor[index] if index else tensor.expand(shape)
    if op.access.mask is not None:
        mask = m.aligned(op.access.mask, axes).expand(shape)
        tile = torch.where(mask, tile, torch.full((), op.attrs["other"], dtype=tile.dtype))
    return (tile,)


def _store(m: Machine, op: Op) -> Results:
    axes = _store_axes(m, op)
    cell: Any = m.memory[op.attrs["buffer"]]
    shape = [m.extent(a) for a in axes]
    tile = m.aligned(op.operands[0], axes).expand(shape).to(cell.tensor.dtype)
    mask = op.access.mask
    plain = _plain_axes(m, op, tuple(cell.tensor.shape))
    covers = plain is not None and all(axis is not None for axis in plain)
    if covers and mask is None and len(plain or ()) == len(axes):
        cell.tensor = align(tile, axes, [a for a in plain or () if a is not None])
        return ()
    index = _indices(m, op, axes, cell.tensor.shape, shape)
    if not index:
        cell.tensor = tile
        return ()
    if mask is not None:
        lanes = m.aligned(mask, axes).expand(shape)
        index = tuple(i.expand(shape)[lanes] for i in index)
        tile = tile[lanes]
    else:
        index = tuple(i.expand(shape) for i in index)
    cell.tensor = cell.tensor.index_put(index, tile)
    return ()


def _atomic(m: Machine, op: Op) -> Results:
    axes = _store_axes(m, op)
    cell: Any = m.memory[op.attrs["buffer"]]
    shape = [m.extent(a) for a in axes]
    (value,) = op.access.values
    tile = m.aligned(value, axes).expand(shape).to(cell.tensor.dtype)
    index = [i.expand(shape) for i in _indices(m, op, axes, cell.tensor.shape, shape)]
    if op.access.mask is not None:
        tile = torch.where(m.aligned(op.access.mask, axes).expand(shape), tile, 0)
    if index:
        cell.tensor = cell.tensor.index_put(tuple(index), tile, accumulate=True)
    else:
        cell.tensor = cell.tensor + tile.sum()
    return [torch.zeros(()) for _ in op.results]  # nobody reads them


def _plain_axes(m: Machine, op: Op, sizes: tuple[int, ...]) -> list[Axis | None] | None:
    """The axis of each dimension if each index is a whole axis or a constant (None), else None."""
    found: list[Axis | None] = []
    for expr, size in zip(op.attrs["index"], sizes, strict=True):
        if isinstance(expr, Gather):
            return None
        if not expr.terms:
            found.append(None)
            continue
        axis = m.axes.get(expr.terms[0][0])
        whole = (
            len(expr.terms) == 1
            and axis is not None
            and axis not in found
            and m.evaluate(expr.terms[0][1]) == 1
            and m.evaluate(expr.offset) == 0
            and m.start(axis) == 0
            and m.extent(axis) == size
        )
        if not whole:
            return None
        found.append(axis)
    return found


def _selected(
    m: Machine, op: Op, tensor: torch.Tensor, plain: list[Axis | None]
) -> tuple[torch.Tensor, list[Axis]]:
    """The tensor with constant indices applied, and the axes that are left."""
    for dim in reversed(range(len(plain))):
        if plain[dim] is None:
            tensor = tensor.select(dim, m.evaluate(op.attrs["index"][dim].offset))
    return tensor, [a for a in plain if a is not None]


def _indices(
    m: Machine, op: Op, axes: Sequence[Axis], sizes: Sequence[int], shape: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """One index tensor a dimension; lanes outside of the buffer are masked off or an error."""
    found = []
    for expr, size in zip(op.attrs["index"], sizes, strict=True):
        if isinstance(expr, Gather):
            index = m.aligned(op.access.gathered[expr.operand], axes)
        else:
            index = _affine(m, expr, axes)
        if op.access.mask is not None:
            index = index.clamp(0, max(size - 1, 0))
        found.append(index.expand(shape))
    return tuple(found)


def _affine(m: Machine, expr: Affine, axes: Sequence[Axis]) -> torch.Tensor:
    index = torch.full((1,) * len(axes), m.evaluate(expr.offset), dtype=torch.int64)
    by_name = {a.name: a for a in axes}
    for name, coefficient in expr.terms:
        if name in by_name:
            term = align(m.positions(by_name[name]), (by_name[name],), axes)
        else:
            term = torch.tensor(m.tile(m.axes[name.removesuffix(".id")]).number)
        index = index + term * m.evaluate(coefficient)
    return index


def _store_axes(m: Machine, op: Op) -> tuple[Axis, ...]:
    names = [n for v in op.operands for n in v.type.axis_names]
    names += [n for e in op.attrs["index"] if not isinstance(e, Gather) for n in e.axis_names]
    return tuple(m.axes[n] for n in dict.fromkeys(names) if n in m.axes)


# ---------------------------------------------------------------------- rows without bit tricks


def _pointwise(m: Machine, op: Op) -> Results:
    operands = [m.aligned(v, op.result.type.axes) for v in op.operands]
    if op.attrs["fn"] == "fma":
        return (operands[0] * operands[1] + operands[2],)
    return (POINTWISE_FUNCTIONS[op.attrs["fn"]](*operands),)


def _reduce(m: Machine, op: Op) -> Results:
    if op.attrs["fn"] != CUSTOM:
        return _OPS["reduce"](m, op)
    kept = op.results[0].type.axes
    values = []
    for operand in op.operands:
        gone = tuple(a for a in operand.type.axes if a.name in op.attrs["axes"])
        values.append(m.aligned(operand, kept + gone).flatten(len(kept)))
    if values[0].shape[-1] == 0:
        return _OPS["reduce"](m, op)
    while values[0].shape[-1] > 1:  # neighbours in pairs
        pairs = values[0].shape[-1] // 2
        left = [x[..., : 2 * pairs : 2] for x in values]
        joined = _combine(m, op, left, [x[..., 1 : 2 * pairs : 2] for x in values])
        values = [
            torch.cat([j, x[..., 2 * pairs :]], -1) for j, x in zip(joined, values, strict=True)
        ]
    return [x[..., 0] for x in values]


def _scan(m: Machine, op: Op) -> Results:
    if op.attrs["fn"] != CUSTOM:
        return _OPS["scan"](m, op)
    axes, reverse = op.results[0].type.axes, op.attrs["reverse"]
    along = [a for a in axes if a.name == op.attrs["axis"]]
    order = [*(a for a in axes if a.name != op.attrs["axis"]), *along]
    values = [m.aligned(v, order) for v in op.operands]
    values = [x.flip(-1) if reverse else x for x in values]
    distance = 1
    while distance < values[0].shape[-1]:
        before = [x[..., :-distance] for x in values]
        joined = _combine(m, op, before, [x[..., distance:] for x in values])
        values = [
            torch.cat([x[..., :distance], j], -1) for x, j in zip(values, joined, strict=True)
        ]
        distance *= 2
    values = [x.flip(-1) if reverse else x for x in values]
    return [align(x, order, axes) for x in values]


def _combine(
    m: Machine, op: Op, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The op's combine region on tensors of equal shape."""
    (region,) = op.regions
    found = dict(zip(region.args, (*left, *right), strict=True))
    for inner in region.ops:
        operands = [found[v] for v in inner.operands]
        if inner.kind == "yield":
            return [t.expand(left[0].shape) for t in operands]
        if inner.kind == "pointwise":
            found[inner.result] = POINTWISE_FUNCTIONS[inner.attrs["fn"]](*operands)
        elif inner.kind == "cast":
            found[inner.result] = m.convert(operands[0], inner.attrs["dtype"])
        elif inner.kind == "expand":
            found[inner.result] = operands[0]
        else:  # a constant, or bits of one
            m.values.update(zip(inner.operands, operands, strict=True))
            (found[inner.result],) = _OPS[inner.kind](m, inner)
    raise exc.VerifierError("a combine region yields nothing")


def _take(m: Machine, op: Op) -> Results:
    value, index = op.operands
    axes = op.result.type.axes
    along = Axis("(taken)", 0)
    have = [along if a.name == op.attrs["axis"] else a for a in value.type.axes]
    x = align(m.values[value], have, [*axes, along])
    shape = [m.extent(a) for a in axes]
    places = m.aligned(index, axes).expand(shape).unsqueeze(-1)
    return (x.expand(*shape, x.shape[-1]).gather(-1, places).squeeze(-1),)


def _nothing(m: Machine, op: Op) -> Results:
    return ()  # checked by the forward run


_ROWS = {
    **_OPS,
    "load": _load,
    "store": _store,
    "atomic": _atomic,
    "pointwise": _pointwise,
    "reduce": _reduce,
    "scan": _scan,
    "take": _take,
    "assert": _nothing,
}


def refuse(kernel: Kernel, op: Op) -> exc.AutodiffNotSupported:
    """The error for an op without a derivative, with the user's line."""
    name = op.attrs.get("fn") if op.kind in ("pointwise", "reduce", "scan", "atomic") else ""
    what = f"{op.kind} {name}".strip()
    error = exc.AutodiffNotSupported(f"kernel {kernel.name!r}", f"no derivative of {what}")
    origin = op.origin
    if origin.file:
        error.at(exc.SourceLocation(origin.file, origin.line))
    return error
