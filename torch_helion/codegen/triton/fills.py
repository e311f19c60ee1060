"""What the lanes of a tile hold that lie outside of an axis.

A load gives them a known number, and functions of known numbers give known numbers; where a
reduction finds its identity there already, no `tl.where` is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from torch_helion.codegen.triton.dtypes import Number
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import HALF
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS

_FLOATS = (torch.float32, torch.float64, *HALF)
_DEPTH = 8

Printed = Callable[[Value], tuple[str, ...]]
"""The dimensions with which a value was printed."""


def holds(
    made: Mapping[Value, Op], printed: Printed, value: Value, axis: str, number: Number
) -> bool:
    """Whether the lanes outside of `axis` hold `number` (zeros of both signs are one)."""
    found = _held(made, printed, value, axis, _DEPTH)
    return found is not None and not math.isnan(found) and found == number


def _held(
    made: Mapping[Value, Op], printed: Printed, value: Value, axis: str, depth: int
) -> Number | None:
    op = made.get(value)
    if op is None or depth == 0:
        return None
    if op.kind == "const":
        return op.attrs["value"]
    if axis not in printed(value):
        return None
    if op.kind == "load":
        return op.attrs["other"]
    if op.kind == "expand":
        return _held(made, printed, op.operands[0], axis, depth - 1)
    if op.kind == "cast":
        found = _held(made, printed, op.operands[0], axis, depth - 1)
        exact = found is not None and found in (0, 1, -1, math.inf, -math.inf)
        floats = {op.attrs["dtype"], op.operands[0].type.dtype} <= {*_FLOATS, torch.bool}
        return found if exact and floats and op.attrs["dtype"] is not torch.bool else None
    if op.kind != "pointwise":
        return None
    numbers = []
    for operand in op.operands:
        found = _held(made, printed, operand, axis, depth - 1)
        if found is None:
            return None
        numbers.append(torch.tensor(found, dtype=operand.type.dtype))
    try:
        return POINTWISE_FUNCTIONS[op.attrs["fn"]](*numbers).item()
    except RuntimeError:  # a division by zero
        return None
