"""Rules of the verifier: arithmetic, constants, views of tiles, random numbers.

In: a `Scope` and an op. Out: nothing, or an error through the scope. Used by `verifier.py` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
import torch

from torch_helion.ir.graph import Op
from torch_helion.ir.ops import POINTWISE, RNG
from torch_helion.ir.types import Axis, Size
from torch_helion.ir.verifier_scope import (
    Rules,
    Scope,
    axis_names,
    check_computes,
    check_domain,
    counts,
    fits,
    has_type,
    is_scalar,
)


def _check_pointwise(s: Scope, op: Op) -> None:
    row = POINTWISE.get(op.attrs["fn"])
    if row is None:
        s.fail(f"no pointwise function {op.attrs['fn']!r}")
    counts(s, op, row.arity, 1)
    typed = op.operands
    if row.result == "where":
        condition, typed = op.operands[0], op.operands[1:]
        if condition.type.dtype is not torch.bool:
            s.fail(f"the condition is {condition.type}")
    dtypes = {v.type.dtype for v in typed}
    if len(dtypes) != 1:
        s.fail(f"operands of different dtypes: {[str(v.type) for v in typed]}")
    (dtype,) = dtypes
    check_domain(s, row.name, dtype, row.domain)
    check_computes(s, dtype, row.name)
    out = torch.bool if row.result == "bool" else dtype
    has_type(s, op.result, out, axis_names(op.operands))


def _check_cast(s: Scope, op: Op) -> None:
    counts(s, op, 1, 1)
    has_type(s, op.result, op.attrs["dtype"], op.operands[0].type.axis_names)


def _check_bitcast(s: Scope, op: Op) -> None:
    _check_cast(s, op)
    width = op.operands[0].type.dtype.itemsize
    s.require(width == op.attrs["dtype"].itemsize, "a bitcast keeps the width")


def _check_const(s: Scope, op: Op) -> None:
    counts(s, op, 0, 1)
    has_type(s, op.result, op.attrs["dtype"], ())
    fits(s, op.attrs["value"], op.attrs["dtype"], "the constant")


def _check_size(s: Scope, op: Op) -> None:
    counts(s, op, 0, 1)
    s.check_size(op.attrs["expr"], "size")
    has_type(s, op.result, torch.int64, ())


def _check_iota(s: Scope, op: Op) -> None:
    counts(s, op, 0, 1)
    has_type(s, op.result, torch.int64, (op.attrs["axis"],))


def _check_rng(s: Scope, op: Op) -> None:
    fn = op.attrs["fn"]
    s.require(fn in RNG, f"no random function {fn!r}")
    s.require(op.attrs.get("word", 0) in range(4), f"no word {op.attrs.get('word')!r}")
    counts(s, op, 4 if fn == "randint" else 2, 1)
    for value in op.operands:
        if value.type.dtype is not torch.int64:
            s.fail(f"{value!r} is no int64")
    for value in (op.operands[0], *op.operands[2:]):
        is_scalar(s, value, torch.int64)
    dtype = op.result.type.dtype
    right = dtype is torch.int64 if fn == "randint" else dtype.is_floating_point
    s.require(right, f"{fn} of dtype {dtype}")
    has_type(s, op.result, dtype, axis_names(op.operands))


# -- views --------------------------------------------------------------------------------------


def _check_expand(s: Scope, op: Op) -> None:
    counts(s, op, 1, 1)
    (value,) = op.operands
    for axis in op.attrs["axes"]:
        s.check_axis(axis)
    names = {a.name for a in op.attrs["axes"]} | set(value.type.axis_names)
    has_type(s, op.result, value.type.dtype, names)


def _check_reaxis(s: Scope, op: Op) -> None:
    counts(s, op, 1, 1)
    (value,) = op.operands
    new = dict(op.attrs["axes"])
    by_name = {a.name: a for a in value.type.axes}
    for name, axis in new.items():
        s.require(name in by_name, f"the operand has no axis {name!r}")
        _check_same_positions(s, by_name[name], axis)
    names = [new[n].name if n in new else n for n in by_name]
    s.require(len(set(names)) == len(names), f"an axis occurs twice in {names}")
    has_type(s, op.result, value.type.dtype, names)


def _check_same_positions(s: Scope, old: Axis, new: Axis) -> None:
    if old.kind == "block" or new.kind == "block":
        same = old.kind == new.kind and old.tile_name == new.tile_name
    else:
        same = sympy.expand(old.size - new.size) == 0
    s.require(same, f"{old} and {new} have not the same positions")


def _check_reshape(s: Scope, op: Op) -> None:
    counts(s, op, 1, 1)
    (value,) = op.operands
    names, target = op.attrs["source"], op.attrs["target"]
    by_name = {a.name: a for a in value.type.axes}
    absent = [n for n in names if n not in by_name]
    s.require(not absent, f"the operand has no axis {absent}")
    s.require(len(set(names)) == len(names), f"an axis occurs twice in {names}")
    for axis in target:
        s.check_axis(axis)
    kept = [n for n in by_name if n not in names]
    new = [*kept, *(a.name for a in target)]
    s.require(len(set(new)) == len(new), f"an axis occurs twice in {new}")
    has_type(s, op.result, value.type.dtype, new)
    before, after = _elements(s, [by_name[n] for n in names]), _elements(s, target)
    # Expressions whose equality is not plain to see are compared when the kernel runs.
    difference = sympy.expand(before - after)
    s.require(difference == 0 or difference.free_symbols, f"{before} elements become {after}")


def _elements(s: Scope, axes: Sequence[Axis]) -> sympy.Expr:
    """How many there are when block axes count as their whole blocks."""
    sizes: list[Size] = [s.block_of(a) if a.kind == "block" else a.size for a in axes]
    return sympy.prod(sizes)


VALUE_RULES: Rules = {
    "pointwise": _check_pointwise,
    "cast": _check_cast,
    "bitcast": _check_bitcast,
    "const": _check_const,
    "size": _check_size,
    "iota": _check_iota,
    "rng": _check_rng,
    "expand": _check_expand,
    "reaxis": _check_reaxis,
    "reshape": _check_reshape,
}

VALUE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "pointwise": ("fn",),
    "cast": ("dtype",),
    "bitcast": ("dtype",),
    "const": ("value", "dtype"),
    "size": ("expr",),
    "iota": ("axis",),
    "rng": ("fn",),
    "expand": ("axes",),
    "reaxis": ("axes",),
    "reshape": ("source", "target"),
}
