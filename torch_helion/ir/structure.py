"""A kernel as a nested tuple: equal for two kernels exactly if every later stage sees the same.

In: a kernel. Out: a hashable key, or None where an attribute has no exact one. Used to do the work
of later stages once for kernels that repeat, as the layers of a model do. Ten times cheaper than
`dump`, whose time goes into printing size expressions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import sympy
import torch

from torch_helion.ir.graph import Kernel, Op, Region, Value


class _NoKey(Exception):
    pass


def structure_of(kernel: Kernel) -> Hashable | None:
    """Names, buffers, sizes, operations with all that they hold; values by order of first sight."""
    numbers: dict[Value, int] = {}
    try:
        head = (kernel.name, kernel.buffers, kernel.sizes, kernel.blocks)
        return _exact(head), _region(kernel.body, numbers)
    except _NoKey:
        return None


def _region(region: Region, numbers: dict[Value, int]) -> Hashable:
    args = tuple(_value(v, numbers) for v in region.args)
    return args, tuple(_op(op, numbers) for op in region.ops)


def _op(op: Op, numbers: dict[Value, int]) -> Hashable:
    operands = tuple(_value(v, numbers) for v in op.operands)
    regions = tuple(_region(r, numbers) for r in op.regions)
    results = tuple(_value(v, numbers) for v in op.results)
    return op.kind, operands, _exact(op.attrs), results, regions, op.origin


def _value(value: Value, numbers: dict[Value, int]) -> Hashable:
    number = numbers.get(value)
    if number is not None:
        return number
    numbers[value] = len(numbers)
    return value.hint, _exact(value.type)


# Compared by `==` alone these are what they say.
_PLAIN = (str, bytes, torch.dtype, sympy.Basic, type(None))


def _exact(value: Any) -> Hashable:
    """`value` such that 1, 1.0 and True differ, and 0.0 and -0.0, and NaN is itself."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return "float", value.hex()
    if isinstance(value, (bool, int)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_exact, value))
    if isinstance(value, Mapping):
        return "map", tuple((_exact(k), _exact(v)) for k, v in value.items())
    if isinstance(value, (frozenset, set)):
        return "set", frozenset(map(_exact, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value), tuple(_exact(getattr(value, f.name)) for f in fields)
    raise _NoKey(type(value).__name__)
