"""Rules of the verifier: reductions, scans, dots, sorts, takes.

In: a `Scope` and an op. Out: nothing, or an error through the scope. Used by `verifier.py` only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import (
    COMBINE_KINDS,
    CUSTOM,
    FLOAT8,
    REDUCTIONS,
    SCANS,
    WIDE_UNSIGNED,
    accumulators,
)
from torch_helion.ir.types import Axis, TileType
from torch_helion.ir.verifier_scope import (
    Rules,
    Scope,
    axis_names,
    check_computes,
    check_domain,
    counts,
    fits,
    has_type,
)

# -- reductions and scans -----------------------------------------------------------------------


def _check_reduce(s: Scope, op: Op) -> None:
    names = op.attrs["axes"]
    s.require(names and len(set(names)) == len(names), f"reduction over axes {names}")
    if op.attrs["fn"] == CUSTOM:
        _check_custom_reduce(s, op)
        return
    counts(s, op, 1, 1)
    row = REDUCTIONS.get(op.attrs["fn"])
    if row is None:
        s.fail(f"no reduction {op.attrs['fn']!r}")
    s.require(not op.regions, "only a custom reduction has a region")
    (value,) = op.operands
    _has_axes(s, value, names)
    s.require(row.result != "index" or len(names) == 1, f"{row.name} over more than one axis")
    check_domain(s, row.name, value.type.dtype, row.domain)
    check_computes(s, value.type.dtype, row.name)
    dtype = torch.int64 if row.result == "index" else value.type.dtype
    has_type(s, op.result, dtype, set(value.type.axis_names) - set(names))


def _has_axes(s: Scope, value: Value, names: tuple[str, ...]) -> None:
    absent = [n for n in names if n not in value.type.axis_names]
    s.require(not absent, f"the operand has no axis {absent}")


def _check_custom_reduce(s: Scope, op: Op) -> None:
    _check_combine(s, op, op.attrs["axes"])
    identity = op.attrs.get("identity", ())
    s.require(len(identity) == len(op.operands), "a custom reduction has an identity an operand")
    for value, number in zip(op.operands, identity, strict=True):
        fits(s, number, value.type.dtype, "the identity")
    for value, result in zip(op.operands, op.results, strict=True):
        names = set(value.type.axis_names) - set(op.attrs["axes"])
        has_type(s, result, value.type.dtype, names)


def _check_combine(s: Scope, op: Op, names: tuple[str, ...]) -> None:
    """n operands of equal axes, n results, a closed region from 2n values to n."""
    count = len(op.operands)
    s.require(count and len(op.results) == count, "as many results as operands, at least one")
    s.require(len(op.regions) == 1, "a custom function has one region")
    axes = op.operands[0].type.axes
    s.require(all(v.type.axes == axes for v in op.operands), "operands of different axes")
    _has_axes(s, op.operands[0], names)
    kept = tuple(a for a in axes if a.name not in names)
    types = [TileType(v.type.dtype, kept) for v in op.operands]
    (region,) = op.regions
    args = [a.type for a in region.args]
    s.require(args == types * 2, "the region takes all left values, then all right ones")
    for inner in region.ops:
        allowed = inner.kind in COMBINE_KINDS
        s.require(allowed, f"a combine region holds no {inner.kind}")
    outside, s.defined = s.defined, set()  # nothing comes in but the arguments
    s.check_region(region, [Value(t) for t in types])
    s.defined, s.op = outside, op


def _check_scan(s: Scope, op: Op) -> None:
    name, fn = op.attrs["axis"], op.attrs["fn"]
    if fn == CUSTOM:
        s.require(not op.attrs["exclusive"], "a custom scan is inclusive")
        _check_combine(s, op, (name,))
    else:
        counts(s, op, 1, 1)
        s.require(fn in SCANS, f"no scan {fn!r}")
        s.require(not op.regions, "only a custom scan has a region")
        (value,) = op.operands
        _has_axes(s, value, (name,))
        check_domain(s, fn, value.type.dtype, REDUCTIONS[fn].domain)
        check_computes(s, value.type.dtype, fn)
    for value, result in zip(op.operands, op.results, strict=True):
        has_type(s, result, value.type.dtype, value.type.axis_names)


# -- products, order, selection -----------------------------------------------------------------


def _check_dot(s: Scope, op: Op) -> None:
    s.require(len(op.operands) in (2, 3) and len(op.results) == 1, "two or three operands")
    a, b, *rest = op.operands
    k, acc = op.attrs["k"], op.attrs["acc"]
    for value in (a, b):
        if k not in value.type.axis_names:
            s.fail(f"{value!r} has no axis {k!r}")
    if acc not in accumulators(a.type.dtype, b.type.dtype):
        s.fail(f"no dot of {a.type.dtype} and {b.type.dtype} in {acc}")
    has_type(s, op.result, acc, axis_names((a, b)) - {k})
    for value in rest:
        same = value.type.dtype is acc and set(value.type.axes) == set(op.result.type.axes)
        s.require(same, f"the accumulator is {value.type}, the result {op.result.type}")


def _check_sort(s: Scope, op: Op) -> None:
    s.require(len(op.operands) == 1 and len(op.results) == 2, "one operand, values and indices")
    (value,) = op.operands
    name, k, out = op.attrs["axis"], op.attrs["k"], op.attrs["out_axis"]
    _has_axes(s, value, (name,))
    s.require(isinstance(out, Axis), f"out_axis is {out!r}")
    (along,) = (a for a in value.type.axes if a.name == name)
    if k is None:
        s.require(out == along, "a whole sort keeps its axis")
    else:
        s.require(isinstance(k, int) and k > 0, f"the first {k!r}")
        s.require(out.kind != "block" and out.size == k, f"{out} has not the size {k}")
        s.require(not isinstance(along.size, int) or k <= along.size, f"{k} of {along.size}")
    dtype = value.type.dtype
    s.require(dtype not in (*FLOAT8, *WIDE_UNSIGNED), f"no order of {dtype}")
    names = (set(value.type.axis_names) - {name}) | {out.name}
    for result, expected in zip(op.results, (dtype, torch.int64), strict=True):
        has_type(s, result, expected, names)


def _check_take(s: Scope, op: Op) -> None:
    counts(s, op, 2, 1)
    value, index = op.operands
    name = op.attrs["axis"]
    _has_axes(s, value, (name,))
    if index.type.dtype is not torch.int64:
        s.fail(f"the index {index!r} is no int64")
    names = (set(value.type.axis_names) - {name}) | set(index.type.axis_names)
    has_type(s, op.result, value.type.dtype, names)


JOIN_RULES: Rules = {
    "reduce": _check_reduce,
    "scan": _check_scan,
    "dot": _check_dot,
    "sort": _check_sort,
    "take": _check_take,
}

JOIN_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "reduce": ("fn", "axes"),
    "scan": ("fn", "axis", "reverse", "exclusive"),
    "dot": ("k", "acc"),
    "sort": ("axis", "descending", "stable", "k", "out_axis"),
    "take": ("axis",),
}
