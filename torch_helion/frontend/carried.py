"""Variables that cross a region of the IR: carried by loops, merged behind branches.

In: values of the device part (numbers, tensors, tuples of these). Out: what kind each is (`Spec`),
the IR values that stand for it, and the value again from others of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Dim, HostTensor, Number, Tensor, describe, kind_of
from torch_helion.ir.graph import Value

DTYPES = {int: torch.int64, float: torch.float64, bool: torch.bool}


@dataclasses.dataclass(frozen=True)
class Spec:
    """The kind of one variable. kind: tensor, number, sequence, static."""

    kind: str
    dtype: torch.dtype | None = None
    dims: tuple[Dim, ...] = ()
    number: type | None = None
    items: tuple[Spec, ...] = ()
    original: Any = None

    def same(self, other: Spec) -> bool:
        if self.kind != other.kind or len(self.items) != len(other.items):
            return False
        if self.kind == "static":
            return _equal(self.original, other.original)
        mine, theirs = (
            (s.dtype, s.number, tuple(d.name if d else "" for d in s.dims)) for s in (self, other)
        )
        return mine == theirs and all(
            a.same(b) for a, b in zip(self.items, other.items, strict=True)
        )


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, HostTensor | Number | Tensor):
        return False
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # an object that cannot be compared
        return False


def spec_of(value: Any, constants: bool = False) -> Spec:
    """The kind of a value. `constants`: Python's numbers stay what they are."""
    if isinstance(value, Tensor):
        return Spec("tensor", value.dtype, value.dims, original=value)
    if isinstance(value, Number) or (isinstance(value, int | float) and not constants):
        return Spec("number", number=kind_of(value), original=value)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        items = tuple(spec_of(v, constants) for v in value)
        return Spec("sequence", items=items, original=value)
    return Spec("static", original=value)


def unify(p: Program, name: str, a: Spec, b: Spec) -> Spec:
    """The kind that holds values of both kinds."""
    if a.same(b):
        return a
    a, b = (_as_number(s) for s in (a, b))
    if a.kind == b.kind == "sequence" and len(a.items) == len(b.items):
        items = (unify(p, name, x, y) for x, y in zip(a.items, b.items, strict=True))
        return dataclasses.replace(a, items=tuple(items))
    if a.kind == b.kind == "number":
        kinds = {a.number, b.number}
        if kinds == {int, float}:
            return a if a.number is float else b
        if len(kinds) == 1:
            return a
    if {a.kind, b.kind} == {"tensor", "number"}:
        tensor, number = (a, b) if a.kind == "tensor" else (b, a)
        assert tensor.dtype is not None
        wider = number.number is float and not tensor.dtype.is_floating_point
        if not tensor.dims and not wider:
            return tensor
    if a.kind == b.kind == "tensor":
        sizes = [[p.axes.stand_in(d) for d in s.dims] for s in (a, b)]
        if a.dtype != b.dtype or sizes[0] != sizes[1]:
            raise exc.ControlFlowTensorMismatch(name, repr(a.original), repr(b.original))
        return dataclasses.replace(a, dims=p.axes.joined([a.dims, b.dims]))
    raise exc.CantCombineTypesInControlFlow(name, describe(a.original), describe(b.original))


def _as_number(spec: Spec) -> Spec:
    number = spec.kind == "static" and isinstance(spec.original, int | float)
    return spec_of(spec.original) if number else spec


def emit(p: Program, value: Any, spec: Spec) -> list[Value]:
    """The IR values of a value of this kind, along all of its axes."""
    if spec.kind == "static":
        return []
    if spec.kind == "sequence":
        pairs = zip(value, spec.items, strict=True)
        return [v for item, s in pairs for v in emit(p, item, s)]
    if spec.kind == "number":
        assert spec.number is not None
        if isinstance(value, Tensor):
            value = p.number_of(value)
        return [p.b.cast(p.value(value), DTYPES[spec.number])]
    assert spec.dtype is not None
    if isinstance(value, Tensor):
        result = p.b.cast(p.axes.put(value.value, value.dims, spec.dims), spec.dtype)
    else:
        result = p.typed(value, spec.dtype)
    return [p.b.expand(result, [d for d in spec.dims if d is not None])]


def build(spec: Spec, values: Iterator[Value]) -> Any:
    """A value of this kind from IR values."""
    if spec.kind == "static":
        return spec.original
    if spec.kind == "sequence":
        items = [build(s, values) for s in spec.items]
        made = type(spec.original)
        return made(*items) if hasattr(made, "_fields") else made(items)
    if spec.kind == "number":
        assert spec.number is not None
        return Number(spec.number, value=next(values))
    return Tensor(next(values), spec.dims)


class Retry(Exception):
    """A region is traced again, with variables of these kinds."""

    def __init__(self, specs: Sequence[Spec] = (), named: dict[str, Spec] | None = None) -> None:
        super().__init__()
        self.specs = list(specs)
        self.named = named or {}


def checked(p: Program, names: Sequence[str], specs: Sequence[Spec], new: Sequence[Spec]) -> None:
    """Raise `Retry` where a region gives variables other kinds than it was given."""
    joint = [unify(p, n, a, b) for n, a, b in zip(names, specs, new, strict=True)]
    if not all(a.same(b) for a, b in zip(joint, specs, strict=True)):
        raise Retry(joint)
