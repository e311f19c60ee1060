"""Rows of the interpreter: what joins lanes along an axis. Reductions, scans, dots, sorts, takes.

In: a `Machine` and an op. Out: the tensors of the op's results. Used by `interpreter.py` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from torch_helion import exc
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.interpreter_state import Machine, Results, align, bits
from torch_helion.ir.interpreter_values import bitcast_of, const, pointwise_of, size
from torch_helion.ir.ops import CUSTOM, identity_of
from torch_helion.ir.pointwise_functions import wide_integer
from torch_helion.ir.types import Axis

# -- reductions ---------------------------------------------------------------------------------


def _first_extreme(x: torch.Tensor, extreme: torch.Tensor) -> torch.Tensor:
    """Position of the first lane that is NaN, else of the first that equals `extreme`."""
    hit = x == extreme.unsqueeze(-1)
    if x.dtype.is_floating_point:
        nan = x.isnan()
        hit = torch.where(nan.any(-1, keepdim=True), nan, hit)
    places = torch.arange(x.shape[-1]).expand(x.shape)
    return torch.where(hit, places, x.shape[-1]).amin(-1)


REDUCTION_FUNCTIONS: Mapping[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "sum": lambda x, wide: x.sum(-1, dtype=wide),
    "prod": lambda x, wide: x.prod(-1, dtype=wide),
    "max": lambda x, _: x.amax(-1),
    "min": lambda x, _: x.amin(-1),
    "any": lambda x, _: x.any(-1),
    "all": lambda x, _: x.all(-1),
    "argmax": lambda x, _: _first_extreme(x, x.amax(-1)),
    "argmin": lambda x, _: _first_extreme(x, x.amin(-1)),
}


def _reduce(m: Machine, op: Op) -> Results:
    if op.attrs["fn"] == CUSTOM:
        return _custom_reduce(m, op)
    (value,) = op.operands
    fn = op.attrs["fn"]
    x, gone = _gone_last(m, op, value)
    positional = fn in ("argmax", "argmin")
    if x.shape[-1] == 0:
        dtype = torch.int64 if positional else x.dtype
        nothing = 0 if positional else identity_of(fn, value.type.dtype)
        return (torch.full(x.shape[:-1], nothing, dtype=dtype),)
    if x.numel() == 0:
        return (torch.empty(x.shape[:-1], dtype=torch.int64 if positional else x.dtype),)
    wide = wide_integer(x.dtype)
    result = REDUCTION_FUNCTIONS[fn](x.to(wide), wide)
    return (result + m.start(gone[0]) if positional else result.to(x.dtype),)


def _gone_last(m: Machine, op: Op, value: Value) -> tuple[torch.Tensor, tuple[Axis, ...]]:
    """The operand with the axes of the reduction as one last dimension."""
    kept = op.results[0].type.axes
    gone = tuple(a for a in value.type.axes if a.name in op.attrs["axes"])
    x = m.aligned(value, kept + gone)
    x = x.reshape(*x.shape[: len(kept)], -1) if x.numel() else x.flatten(len(kept))
    return x, gone


def _custom_reduce(m: Machine, op: Op) -> Results:
    values = [_gone_last(m, op, v)[0] for v in op.operands]
    if values[0].shape[-1] == 0:
        rows = zip(values, op.operands, op.attrs["identity"], strict=True)
        return [_filled(m, x.shape[:-1], v.type.dtype, number) for x, v, number in rows]
    while values[0].shape[-1] > 1:  # neighbours in pairs: only associativity is used
        left, right = ([x[..., i::2] for x in values] for i in (0, 1))
        whole = right[0].shape[-1]
        joined = _combine(m, op, [x[..., :whole] for x in left], right)
        rest = [x[..., whole:] for x in left]
        values = [torch.cat(pair, -1) for pair in zip(joined, rest, strict=True)]
    return [x[..., 0] for x in values]


def _filled(
    m: Machine, shape: Sequence[int], dtype: torch.dtype, number: float | int | bool
) -> torch.Tensor:
    wide = torch.float64 if dtype.is_floating_point else dtype
    return m.convert(torch.full(list(shape), number, dtype=wide), dtype)


def _combine(
    m: Machine, op: Op, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The op's combine region on tensors of equal shape, whatever their dimensions are."""
    (region,) = op.regions
    shape = left[0].shape
    found = dict(zip(region.args, (*left, *right), strict=True))
    for inner in region.ops:
        operands = [found[v] for v in inner.operands]
        if inner.kind == "yield":
            return [t.expand(shape) for t in operands]
        found[inner.result] = _COMBINE_ROWS[inner.kind](m, inner, operands)
    raise exc.VerifierError("a combine region yields nothing")


_COMBINE_ROWS: Mapping[str, Callable[[Machine, Op, Sequence[torch.Tensor]], torch.Tensor]] = {
    "pointwise": pointwise_of,
    "cast": lambda m, op, operands: m.convert(operands[0], op.attrs["dtype"]),
    "bitcast": lambda m, op, operands: bitcast_of(m, op, operands[0]),
    "const": lambda m, op, _: const(m, op)[0],
    "size": lambda m, op, _: size(m, op)[0],
    "expand": lambda m, op, operands: operands[0],
}


# -- scans --------------------------------------------------------------------------------------

SCAN_FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda x: x.cumsum(-1, dtype=x.dtype),
    "prod": lambda x: x.cumprod(-1, dtype=x.dtype),
    "max": lambda x: x.cummax(-1).values,
    "min": lambda x: x.cummin(-1).values,
}


def _scan(m: Machine, op: Op) -> Results:
    fn, reverse = op.attrs["fn"], op.attrs["reverse"]
    axes = op.results[0].type.axes
    (along,) = (a for a in axes if a.name == op.attrs["axis"])
    order = [*(a for a in axes if a is not along), along]
    values = [m.aligned(v, order) for v in op.operands]
    values = [x.flip(-1) if reverse else x for x in values]
    if fn == CUSTOM:
        values = _scanned(m, op, values)
    elif values[0].numel():
        values = [_running(fn, values[0], op.attrs["exclusive"], op.operands[0].type.dtype)]
    values = [x.flip(-1) if reverse else x for x in values]
    return [align(x, order, axes) for x in values]


def _running(fn: str, x: torch.Tensor, exclusive: bool, dtype: torch.dtype) -> torch.Tensor:
    if exclusive:
        first = torch.full_like(x[..., :1], identity_of(fn, dtype))
        x = torch.cat([first, x[..., :-1]], -1)
    return SCAN_FUNCTIONS[fn](x)


def _scanned(m: Machine, op: Op, values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pairs are joined, scanned, and then each other lane is one step from a scanned one."""
    count = values[0].shape[-1]
    if count < 2:
        return values
    pairs = _combine(
        m, op, [x[..., : count - 1 : 2] for x in values], [x[..., 1::2] for x in values]
    )
    odd = _scanned(m, op, pairs)
    later = [x[..., 2::2] for x in values]
    before = [x[..., : later[0].shape[-1]] for x in odd]
    even = _combine(m, op, before, later) if later[0].shape[-1] else later
    results = []
    for x, at_even, at_odd in zip(values, even, odd, strict=True):
        result = x.clone()
        result[..., 1::2], result[..., 2::2] = at_odd, at_even
        results.append(result)
    return results


# -- products, order, selection -----------------------------------------------------------------


def _dot(m: Machine, op: Op) -> Results:
    a, b, *rest = op.operands
    acc = m.held(op.attrs["acc"])
    names = dict.fromkeys((*a.type.axis_names, *b.type.axis_names))
    letters = {n: chr(ord("a") + i) for i, n in enumerate(names)}
    spec = ",".join("".join(letters[n] for n in v.type.axis_names) for v in (a, b))
    out = "".join(letters[n] for n in op.result.type.axis_names)
    product = torch.einsum(f"{spec}->{out}", *(m.values[v].to(acc) for v in (a, b)))
    for value in rest:
        product = product + m.aligned(value, op.result.type.axes)
    return (product,)


def _sort(m: Machine, op: Op) -> Results:
    (value,) = op.operands
    name, k, out = op.attrs["axis"], op.attrs["k"], op.attrs["out_axis"]
    dim = value.type.axis_names.index(name)
    x = m.values[value]
    values, places = torch.sort(x, dim=dim, descending=bool(op.attrs["descending"]), stable=True)
    if k is not None:
        if k > x.shape[dim]:
            raise exc.VerifierError(f"the first {k} of {x.shape[dim]}: {op}")
        values, places = (t.narrow(dim, 0, k) for t in (values, places))
    have = [out if a.name == name else a for a in value.type.axes]
    return [align(t, have, r.type.axes) for t, r in zip((values, places), op.results, strict=True)]


def _take(m: Machine, op: Op) -> Results:
    value, index = op.operands
    axes = op.result.type.axes
    # The index may have the axis itself: the value's must not be taken for it.
    along = Axis("(taken)", 0)
    have = [along if a.name == op.attrs["axis"] else a for a in value.type.axes]
    x = bits(align(m.values[value], have, [*axes, along]))
    places, count = m.aligned(index, axes), x.shape[-1]
    if bool(((places < 0) | (places >= count)).any()):
        raise IndexError(f"index out of range for an axis of {count}: {op}")
    shape = [m.extent(a) for a in axes]
    taken = x.expand(*shape, count).gather(-1, places.expand(shape).unsqueeze(-1)).squeeze(-1)
    return (taken.view(m.values[value].dtype),)


JOIN_ROWS: Mapping[str, Callable[[Machine, Op], Results]] = {
    "reduce": _reduce,
    "scan": _scan,
    "dot": _dot,
    "sort": _sort,
    "take": _take,
}
