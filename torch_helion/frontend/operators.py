"""Python's operators on values of the device.

In: an operator's name and operands. Out: values; numbers stay numbers, tensors go through PyTorch.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.frontend import calls, indexing, numbers, products
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import (
    DEVICE,
    HostTensor,
    Number,
    Offset,
    Stack,
    Tensor,
    Tile,
    describe,
    holds,
    is_number,
)
from torch_helion.ir.types import Affine

BINARY: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv),
    ast.FloorDiv: ("floordiv", operator.floordiv),
    ast.Mod: ("mod", operator.mod),
    ast.Pow: ("pow", operator.pow),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.LShift: ("lshift", operator.lshift),
    ast.RShift: ("rshift", operator.rshift),
    ast.MatMult: ("matmul", operator.matmul),
}

UNARY: dict[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}

COMPARE: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("lt", operator.lt),
    ast.LtE: ("le", operator.le),
    ast.Gt: ("gt", operator.gt),
    ast.GtE: ("ge", operator.ge),
    ast.Eq: ("eq", operator.eq),
    ast.NotEq: ("ne", operator.ne),
}


def as_operand(p: Program, x: Any, op: str = "scalar") -> Any:
    """Host scalars are read; tiles, stacks and whole host tensors are no operands."""
    if isinstance(x, HostTensor):
        if x.tensor.dim() == 0:
            return indexing.load(p, x, ())
        raise exc.HostTensorDirectUsage(x.name, op)
    if isinstance(x, Tile | Offset | Stack):
        raise exc.IncorrectTileUsage(f"{describe(x)} as an operand")
    return x


def binary(p: Program, kind: type, a: Any, b: Any) -> Any:
    name, fn = BINARY[kind]
    if kind in (ast.Add, ast.Sub) and isinstance(a, Tile | Offset) and is_number(b):
        return _shifted(p, a, b, kind is ast.Sub)
    if kind is ast.Add and isinstance(b, Tile | Offset) and is_number(a):
        return _shifted(p, b, a, False)
    if not holds((a, b), DEVICE):
        return fn(a, b)
    if isinstance(a, list | tuple) or isinstance(b, list | tuple):
        return fn(a, b)
    a, b = as_operand(p, a, name), as_operand(p, b, name)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if kind is ast.MatMult:
            return products.matmul(p, a, b)
        result = calls.call(p, fn, [a, b], {})
        return _placed(p, name, a, b, result)
    if is_number(a) and is_number(b):
        return numbers.binary(p, name, a, b)
    raise exc.TypeInferenceError(f"unsupported operands: {describe(a)} and {describe(b)}")


def _shifted(p: Program, tile: Any, number: Any, minus: bool) -> Offset:
    size = p.size(number)
    size = -size if minus else size
    if isinstance(tile, Offset):
        return Offset(tile.tile, plain(tile.offset + size))
    return Offset(tile, size)


def _placed(p: Program, name: str, a: Any, b: Any, result: Tensor) -> Tensor:
    """Keep track of integers that are linear functions of positions."""
    x, y = _place(a), _place(b)
    if x is None or y is None or result.dtype is not torch.int64:
        return result
    place = None
    if name in ("add", "sub"):
        place = _sum(x, y, 1 if name == "add" else -1)
    elif name == "mul" and not x.terms:
        place = _times(y, x.offset)
    elif name == "mul" and not y.terms:
        place = _times(x, y.offset)
    names = {d.name for d in result.dims if d is not None}
    if place is not None and set(place.axis_names) <= names:
        return Tensor(result.value, result.dims, place)
    return result


def _place(x: Any) -> Affine | None:
    if isinstance(x, Tensor):
        return x.place
    if isinstance(x, bool | float):
        return None
    if isinstance(x, Number):
        return Affine((), x.size) if x.kind is int and x.size is not None else None
    return Affine((), x) if isinstance(x, int) else None


def _sum(x: Affine, y: Affine, sign: int) -> Affine:
    terms = dict(x.terms)
    for name, coefficient in y.terms:
        terms[name] = plain(sympy.sympify(terms.get(name, 0)) + sign * coefficient)
    kept = tuple((n, c) for n, c in terms.items() if c != 0)
    return Affine(kept, plain(sympy.sympify(x.offset) + sign * y.offset))


def _times(x: Affine, factor: Any) -> Affine | None:
    if factor == 0:
        return None
    terms = tuple((n, plain(sympy.sympify(c) * factor)) for n, c in x.terms)
    return Affine(terms, plain(sympy.sympify(x.offset) * factor))


def unary(p: Program, kind: type, a: Any) -> Any:
    if kind is ast.Not:
        return invert(p, a)
    fn = UNARY[kind]
    if not holds(a, DEVICE):
        return fn(a)
    a = as_operand(p, a, fn.__name__)
    if isinstance(a, Tensor):
        result = calls.call(p, fn, [a], {})
        return _placed(p, "mul", a, -1, result) if kind is ast.USub else result
    if kind is ast.USub:
        return numbers.negative(p, a)
    if kind is ast.UAdd:
        return a
    if a.kind is bool:
        return numbers.invert(p, a)
    return numbers.binary(p, "sub", -1, a)


def compare(p: Program, kind: type, a: Any, b: Any) -> Any:
    if kind in (ast.Is, ast.IsNot):
        same = a is b
        return same if kind is ast.Is else not same
    if kind in (ast.In, ast.NotIn):
        if holds(a, DEVICE) or holds(b, DEVICE):
            raise exc.TypeInferenceError("`in` needs values that are known when tracing")
        return (a in b) if kind is ast.In else (a not in b)
    name, fn = COMPARE[kind]
    if not holds((a, b), DEVICE) or a is None or b is None:
        return fn(a, b)
    a, b = as_operand(p, a, name), as_operand(p, b, name)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return calls.call(p, fn, [a, b], {})
    if is_number(a) and is_number(b):
        return numbers.compare(p, name, a, b)
    if kind in (ast.Eq, ast.NotEq):
        return kind is ast.NotEq
    raise exc.TypeInferenceError(f"cannot compare {describe(a)} and {describe(b)}")


def truth(p: Program, a: Any) -> Any:
    """bool(a): a Python bool, or a Number of kind bool."""
    if isinstance(a, HostTensor):
        a = as_operand(p, a)
    if isinstance(a, Tensor):
        if any(p.axes.stand_in(d) != 1 for d in a.dims):
            raise exc.TypeInferenceError(
                f"the truth of {a!r}, which has more than one element, is ambiguous"
            )
        return numbers.truth(p, p.number_of(Tensor(a.value)))
    if isinstance(a, Number):
        return numbers.truth(p, a)
    if isinstance(a, Tile | Stack | Offset):
        raise exc.IncorrectTileUsage("it as a condition")
    return bool(a)


def invert(p: Program, a: Any) -> Any:
    return numbers.invert(p, truth(p, a))


def both(p: Program, name: str, a: Any, b: Any) -> Any:
    """a and b, a or b, where at least one is only known at run time."""
    if (isinstance(a, Tensor) and a.dims) or (isinstance(b, Tensor) and b.dims):
        fn = torch.logical_and if name == "and" else torch.logical_or
        return calls.call(p, fn, [as_operand(p, a), as_operand(p, b)], {})
    x, y = truth(p, a), truth(p, b)
    if isinstance(x, bool) and isinstance(y, bool):
        return (x and y) if name == "and" else (x or y)
    for known, other in ((x, y), (y, x)):
        if isinstance(known, bool):
            return other if known is (name == "and") else known
    return numbers.binary(p, name, x, y)
