"""Rules of the verifier: loads, stores, atomics.

In: a `Scope` and an op. Out: nothing, or an error through the scope. Used by `verifier.py` only.
Whether steps of a grid meet in memory is `overlap.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_helion.ir.graph import Op
from torch_helion.ir.ops import ATOMICS, HALF
from torch_helion.ir.types import Affine, Gather
from torch_helion.ir.verifier_scope import Rules, Scope, axis_names, fits, has_type

_ATOMIC_FLOATS = (torch.float32, torch.float64, *HALF)
_ATOMIC_INTS = (torch.int32, torch.int64)


def _stored_count(op: Op) -> int:
    if op.kind == "load":
        return 0
    return 2 if op.attrs.get("fn") == "cas" else 1


def _check_access(s: Scope, op: Op) -> set[str]:
    """Rules of loads and stores alike. Gives the axes of which the index is a function."""
    buffer = s.buffers.get(op.attrs["buffer"])
    if buffer is None:
        s.fail(f"no buffer {op.attrs['buffer']!r}")
    index = op.attrs["index"]
    rank = len(buffer.shape)
    s.require(len(index) == rank, f"{len(index)} indices for {rank} dimensions")
    s.require(all(isinstance(e, Affine | Gather) for e in index), "an index is Affine or Gather")
    rest = op.operands[_stored_count(op) :]
    if op.attrs["masked"]:
        s.require(rest and rest[-1].type.dtype is torch.bool, "the mask is no bool")
        rest = rest[:-1]
    if op.attrs.get("stacked"):
        s.require(rest and rest[0].type.dtype is torch.int64, "the addresses are no int64")
        rest = rest[1:]
    used = sorted(e.operand for e in index if isinstance(e, Gather))
    s.require(used == list(range(len(rest))), "gathered indices do not match their operands")
    for value in rest:
        if value.type.dtype is not torch.int64:
            s.fail(f"gathered index {value!r} is no int64")
    axes = axis_names(rest)
    for expr in index:
        if isinstance(expr, Affine):
            axes |= _check_affine(s, expr)
    return axes


def _check_affine(s: Scope, expr: Affine) -> set[str]:
    """Axes of the map's terms; a term on the number of a tile gives none."""
    s.check_size(expr.offset, "offset")
    axes = set()
    for name, coefficient in expr.terms:
        s.check_size(coefficient, f"coefficient of {name}")
        owner = name.removesuffix(".id")
        if owner != name:
            known = s.axes.get(owner)
            owner = known.tile_name if known is not None else owner
            s.require(owner in s.block_axes(), f"no loop over {owner!r} around this")
        else:
            axes.add(name)
    return axes


def _check_load(s: Scope, op: Op) -> None:
    s.require(len(op.results) == 1, "a load has one result")
    axes = _check_access(s, op) | axis_names(op.operands)
    buffer = s.buffers[op.attrs["buffer"]]
    has_type(s, op.result, buffer.dtype, axes)
    fits(s, op.attrs["other"], buffer.dtype, "what masked-off lanes hold")
    s.require(buffer.role != "out", f"{buffer.name} is an output: nothing to load")
    if buffer.role == "workspace":
        s.require(
            buffer.name in s.complete or buffer.name in s.written,  # by this step itself
            f"workspace {buffer.name} is read before it is written"
            ", with a barrier after its writes",
        )
    s.require(buffer.name not in s.pending, f"no barrier since {buffer.name} was written")


def _check_stored(s: Scope, op: Op) -> set[str]:
    """Rules of stores and atomics alike. Gives the axes of which the index is a function."""
    index_axes = _check_access(s, op)
    buffer = s.buffers[op.attrs["buffer"]]
    for value in op.operands[: _stored_count(op)]:
        if value.type.dtype != buffer.dtype:
            s.fail(f"{value!r} is stored into {buffer.dtype} {buffer.name}")
    s.require(buffer.role != "in", f"{buffer.name} is an input: nothing may be stored to it")
    here = {**s.block_axes(), **{a.name: a for v in op.operands for a in v.type.axes}}
    for name in sorted(index_axes):
        s.require(name in here, f"the index has axis {name!r}: expand the stored value along it")
    s.written.add(buffer.name)
    return index_axes


def _check_store(s: Scope, op: Op) -> None:
    s.require(op.operands and not op.results, "a store has a value and no results")
    index_axes = _check_stored(s, op)
    _check_lanes_apart(s, op, index_axes)


def _check_lanes_apart(s: Scope, op: Op, index_axes: set[str]) -> None:
    """No two lanes of a step write the same place."""
    affine = [e for e in op.attrs["index"] if isinstance(e, Affine)]
    moving = {name for e in affine for name, c in e.terms if c != 0}
    gathered = axis_names(op.operands[1:]) & index_axes
    if op.attrs.get("stacked"):
        gathered |= set(op.operands[1].type.axis_names)
    for name in sorted(axis_names(op.operands) - moving - gathered):
        one = s.axes[name].size == 1
        s.require(one, f"lanes along {name!r} write the same place: reduce it or index by it")


def _check_atomic(s: Scope, op: Op) -> None:
    fn = op.attrs["fn"]
    s.require(fn in ATOMICS, f"no atomic {fn!r}")
    s.require(len(op.operands) >= _stored_count(op), "operands are missing")
    s.require(len(op.results) < 2, "an atomic has one result, or none")
    index_axes = _check_stored(s, op)
    buffer = s.buffers[op.attrs["buffer"]]
    s.require(buffer.role != "out", f"{buffer.name} is an output: an atomic reads it, too")
    bits = fn in ("and", "or", "xor")
    right = buffer.dtype in (_ATOMIC_INTS if bits else (*_ATOMIC_INTS, *_ATOMIC_FLOATS))
    s.require(right, f"no atomic {fn} of {buffer.dtype}")
    if op.results:
        has_type(s, op.result, buffer.dtype, axis_names(op.operands) | index_axes)


MEMORY_RULES: Rules = {
    "load": _check_load,
    "store": _check_store,
    "atomic": _check_atomic,
}

_ACCESS = ("buffer", "index", "masked", "checked")
MEMORY_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "load": (*_ACCESS, "other"),
    "store": _ACCESS,
    "atomic": ("fn", *_ACCESS),
}
