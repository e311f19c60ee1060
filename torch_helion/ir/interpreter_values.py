"""Rows of the interpreter: arithmetic, views of tiles, random numbers.

In: a `Machine` and an op. Out: the tensors of the op's results. Used by `interpreter.py`, and by
`interpreter_joins.py` for the arithmetic of combine regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from torch_helion import exc
from torch_helion.ir import philox
from torch_helion.ir.graph import Op
from torch_helion.ir.interpreter_state import Machine, Results, align, bits
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS
from torch_helion.ir.types import Axis

# -- arithmetic ---------------------------------------------------------------------------------


def pointwise_of(m: Machine, op: Op, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """The function of a pointwise op on tensors that broadcast."""
    fn, dtype = op.attrs["fn"], op.operands[-1].type.dtype
    if m.precise and dtype.is_floating_point:
        if fn == "nextafter":  # a neighbour in the program's dtype, not in float64
            return torch.nextafter(*(x.to(dtype) for x in operands)).to(torch.float64)
        if fn == "fma":  # float64 stands for exact arithmetic here
            return operands[0] * operands[1] + operands[2]
    if fn == "where":
        condition, yes, no = operands
        return torch.where(condition, bits(yes), bits(no)).view(yes.dtype)
    return POINTWISE_FUNCTIONS[fn](*operands)


def bitcast_of(m: Machine, op: Op, tensor: torch.Tensor) -> torch.Tensor:
    source, target = op.operands[0].type.dtype, op.attrs["dtype"]
    return tensor.to(source).contiguous().view(target).to(m.held(target))


def _pointwise(m: Machine, op: Op) -> Results:
    return (pointwise_of(m, op, [m.aligned(v, op.result.type.axes) for v in op.operands]),)


def _cast(m: Machine, op: Op) -> Results:
    return (m.convert(m.values[op.operands[0]], op.attrs["dtype"]),)


def _bitcast(m: Machine, op: Op) -> Results:
    return (bitcast_of(m, op, m.values[op.operands[0]]),)


def const(m: Machine, op: Op) -> Results:
    value, dtype = op.attrs["value"], op.attrs["dtype"]
    if dtype.is_floating_point:
        return (m.convert(torch.tensor(float(value), dtype=torch.float64), dtype),)
    return (torch.tensor(value, dtype=dtype),)


def size(m: Machine, op: Op) -> Results:
    return (torch.tensor(m.evaluate(op.attrs["expr"]), dtype=torch.int64),)


def _iota(m: Machine, op: Op) -> Results:
    (axis,) = op.result.type.axes
    return (m.positions(axis),)


def _rng(m: Machine, op: Op) -> Results:
    seed, index, *bounds = (m.values[v] for v in op.operands)
    axes = op.result.type.axes
    shape = [m.extent(a) for a in axes]
    index = m.aligned(op.operands[1], axes).expand(shape)
    fn, dtype, word = op.attrs["fn"], op.result.type.dtype, op.attrs.get("word", 0)
    if fn == "randint":
        low, high = (int(b) for b in bounds)
        return (philox.randint(int(seed), index, low, high, word),)
    numbers = {"rand": philox.uniform, "randn": philox.normal}[fn](int(seed), index, word)
    return (m.convert(numbers, dtype),)


# -- views --------------------------------------------------------------------------------------


def _expand(m: Machine, op: Op) -> Results:
    axes = op.result.type.axes
    return (m.aligned(op.operands[0], axes).expand([m.extent(a) for a in axes]),)


def _reaxis(m: Machine, op: Op) -> Results:
    (value,) = op.operands
    new = dict(op.attrs["axes"])
    axes = [new.get(a.name, a) for a in value.type.axes]
    tensor = m.values[value]
    if [m.extent(a) for a in axes] != list(tensor.shape):
        raise exc.VerifierError(f"reaxis between axes of different extents: {op}")
    return (align(tensor, axes, op.result.type.axes),)


def _reshape(m: Machine, op: Op) -> Results:
    (value,) = op.operands
    names, target = op.attrs["source"], op.attrs["target"]
    by_name = {a.name: a for a in value.type.axes}
    source = [by_name[n] for n in names]
    kept = [a for a in value.type.axes if a.name not in names]
    tensor = _whole_blocks(m, m.aligned(value, [*kept, *source]), source)
    counts = [_count(m, a) for a in target]
    lead = tensor.shape[: len(kept)]
    if math.prod(counts) != math.prod(tensor.shape[len(kept) :]):
        raise exc.VerifierError(f"reshape of {list(tensor.shape)} to {counts}: {op}")
    tensor = tensor.reshape(*lead, *counts)
    for dim, axis in enumerate(target, len(kept)):
        tensor = tensor.narrow(dim, 0, m.extent(axis))  # lanes beyond the tile are cut
    return (align(tensor, [*kept, *target], op.result.type.axes),)


def _count(m: Machine, axis: Axis) -> int:
    """Positions in a reshape: a block axis counts as its whole block."""
    return m.tile(axis).block if axis.kind == "block" else m.evaluate(axis.size)


def _whole_blocks(m: Machine, tensor: torch.Tensor, last: Sequence[Axis]) -> torch.Tensor:
    """The tensor with zeros beyond the tiles of its last axes."""
    first = tensor.dim() - len(last)
    shape = [*tensor.shape[:first], *(_count(m, a) for a in last)]
    if shape == list(tensor.shape):
        return tensor
    whole = torch.zeros(shape, dtype=tensor.dtype)
    whole[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return whole


VALUE_ROWS: Mapping[str, Callable[[Machine, Op], Results]] = {
    "pointwise": _pointwise,
    "cast": _cast,
    "bitcast": _bitcast,
    "const": const,
    "size": size,
    "iota": _iota,
    "rng": _rng,
    "expand": _expand,
    "reaxis": _reaxis,
    "reshape": _reshape,
}
