"""Values that need few bits, because they are rounded to bfloat16 at once.

In: a plan. Out: the operations that a shorter function computes: one that is good to about 13
bits, where every use of the result leads through products into a cast to bfloat16, which keeps
eight. A relative error goes through products unchanged; sums could cancel and enlarge it, so they
end the search. `1 + erf(x)` (gelu) is a function of its own: without the sum's cancellation it is
more precise for negative x than the sum of exact parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from torch_helion.ir.graph import Op, Value

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.schedule import PhasePlan

PRODUCTS = ("mul", "div", "neg", "abs")


def short_functions(plan: PhasePlan) -> dict[Op, tuple[str, Value]]:
    """For operations that have one: their short function and its operand."""
    candidates = {op: short for op in plan.producer.values() if (short := _short(plan, op))}
    if not candidates:
        return {}
    users = _users((*plan.producer.values(), *plan.weight))
    return {op: short for op, short in candidates.items() if _is_rounded(op.result, users)}


def _short(plan: PhasePlan, op: Op) -> tuple[str, Value] | None:
    if op.kind != "pointwise" or op.result.type.dtype is not torch.float32:
        return None
    if op.attrs["fn"] == "sigmoid":
        return "sigmoid_short", op.operands[0]
    if op.attrs["fn"] != "add":
        return None
    for one, other in (op.operands, op.operands[::-1]):
        constant, function = plan.producer.get(one), plan.producer.get(other)
        if constant is None or function is None:
            continue
        is_one = constant.kind == "const" and constant.attrs["value"] == 1.0
        if is_one and function.kind == "pointwise" and function.attrs["fn"] == "erf":
            return "one_plus_erf_short", function.operands[0]
    return None


def _users(ops: Iterable[Op]) -> dict[Value, list[Op]]:
    users: dict[Value, list[Op]] = {}
    for op in ops:
        for value in op.operands:
            users.setdefault(value, []).append(op)
    return users


def _is_rounded(value: Value, users: Mapping[Value, list[Op]]) -> bool:
    """Whether every use of a value ends in a cast to bfloat16."""
    uses = users.get(value, [])
    return bool(uses) and all(_rounds(op, users) for op in uses)


def _rounds(op: Op, users: Mapping[Value, list[Op]]) -> bool:
    if op.kind == "cast":
        return op.result.type.dtype is torch.bfloat16
    product = op.kind == "pointwise" and op.attrs["fn"] in PRODUCTS
    return (product or op.kind == "expand") and _is_rounded(op.result, users)
