"""Index tensors that move in step with an axis: `starts + i` reads neighbours, one after the other.

In: an int64 value that gathers, who makes each value. Out: how far its next element along an axis
lies, and what it is besides. Programs say where a sequence lies by an index tensor that they
compute; read as a gather, each of its elements would cost an access of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch_helion.ir.graph import Op, Value


@dataclass(frozen=True)
class Linear:
    """step × position along an axis + the sum of factor × value + constant."""

    step: int
    rest: tuple[tuple[int, Value], ...] = ()
    constant: int = 0

    def times(self, factor: int) -> Linear:
        rest = tuple((factor * f, v) for f, v in self.rest)
        return Linear(factor * self.step, rest, factor * self.constant)

    def plus(self, other: Linear) -> Linear:
        constant = self.constant + other.constant
        return Linear(self.step + other.step, (*self.rest, *other.rest), constant)


def makers(phase: Op) -> dict[Value, Op]:
    """Who makes each value of a phase."""
    return {r: op for op in phase.regions[0].walk() for r in op.results}


def linear(value: Value, axis: str, producer: Mapping[Value, Op]) -> Linear | None:
    """The value along one axis, if it has this form."""
    if axis not in value.type.axis_names:
        return Linear(0, ((1, value),))
    op = producer.get(value)
    if op is None:
        return None
    if op.kind == "iota":
        return Linear(1)
    if op.kind == "expand":
        return linear(op.operands[0], axis, producer)
    if op.kind != "pointwise" or op.attrs["fn"] not in ("add", "sub", "mul"):
        return None
    if op.attrs["fn"] == "mul":
        return _product(op, axis, producer)
    left, right = (linear(v, axis, producer) for v in op.operands)
    if left is None or right is None:
        return None
    return left.plus(right if op.attrs["fn"] == "add" else right.times(-1))


def _product(op: Op, axis: str, producer: Mapping[Value, Op]) -> Linear | None:
    """By a constant."""
    for value, other in (op.operands, op.operands[::-1]):
        factor = producer.get(other)
        if factor is not None and factor.kind == "const":
            one = linear(value, axis, producer)
            return None if one is None else one.times(int(factor.attrs["value"]))
    return None
