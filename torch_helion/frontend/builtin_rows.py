"""Python's builtins and functions of `math` on the device, and PyTorch's with a meaning of our own.

In: arguments of a call. Out: values.
"""

from __future__ import annotations

import ast
import builtins
import math
from typing import Any

import torch

from torch_helion import exc, language
from torch_helion.frontend import attributes, calls, numbers, operators
from torch_helion.frontend.functions import ROWS, TORCH, Interpreter, Row, row
from torch_helion.frontend.values import (
    DEVICE,
    HostTensor,
    Number,
    Record,
    Tensor,
    Tile,
    describe,
    holds,
)
from torch_helion.ir.interpreter_control import BREAKPOINT
from torch_helion.language.values import Tile as PublicTile
from torch_helion.settings import RefMode

# -- numbers ------------------------------------------------------------------------------------


@row(len)
def _len(i: Interpreter, x: Any) -> Any:
    if isinstance(x, HostTensor | Tensor):
        shape = attributes.get(i.p, x, "shape")
        if not shape:
            raise exc.TypeInferenceError("len() of a 0-d tensor")
        return shape[0]
    if isinstance(x, DEVICE):
        raise exc.TypeInferenceError(f"object of type {describe(x)} has no len()")
    return len(x)


def _extreme(name: str) -> Row:
    python = getattr(builtins, name)

    def fn(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
        single = len(args) == 1 and isinstance(args[0], list | tuple)
        items = [operators.as_operand(i.p, a) for a in (args[0] if single else args)]
        if not holds(items, DEVICE) or kwargs:
            return python(items, **kwargs)
        values = [scalar(i, x) for x in items]
        result = values[0]
        for item in values[1:]:
            result = numbers.binary(i.p, name, result, item)
        return result

    return fn


def scalar(i: Interpreter, x: Any) -> Any:
    """A tensor of one element as a number; a number as it is."""
    x = operators.as_operand(i.p, x) if isinstance(x, HostTensor) else x
    if not isinstance(x, Tensor):
        return x
    if any(i.p.axes.stand_in(d) != 1 for d in x.dims):
        raise exc.TypeInferenceError(f"a number is needed, got {x!r}")
    return i.p.number_of(Tensor(x.value))


def _conversion(kind: type) -> Row:
    def fn(i: Interpreter, x: Any = 0) -> Any:
        if kind is bool:
            return operators.truth(i.p, x)
        x = scalar(i, x)
        return numbers.convert(i.p, x, kind)

    return fn


@row(abs)
def _abs(i: Interpreter, x: Any) -> Any:
    if isinstance(x, Tensor):
        return calls.call(i.p, torch.abs, [x], {})
    return numbers.absolute(i.p, operators.as_operand(i.p, x))


@row(sum)
def _sum(i: Interpreter, items: Any, start: Any = 0) -> Any:
    result = start
    for item in i.iterate(items):
        result = operators.binary(i.p, ast.Add, result, item)
    return result


@row(pow)
def _pow(i: Interpreter, a: Any, b: Any) -> Any:
    return operators.binary(i.p, ast.Pow, a, b)


def _all(name: str) -> Row:
    def fn(i: Interpreter, items: Any) -> Any:
        result: Any = name == "and"
        for item in i.iterate(items):
            result = operators.both(i.p, name, result, item)
        return result

    return fn


def _math(name: str) -> Row:
    python = getattr(math, name)

    def fn(i: Interpreter, x: Any, *rest: Any) -> Any:
        x = scalar(i, x)
        if not isinstance(x, Number):
            return python(x, *rest)
        if rest:
            raise exc.TypeInferenceError(f"math.{name} of a number that is known at run time only")
        return numbers.function(i.p, name, x)

    return fn


ROWS[min], ROWS[max] = _extreme("min"), _extreme("max")
ROWS[int], ROWS[float], ROWS[bool] = (_conversion(k) for k in (int, float, bool))
ROWS[all], ROWS[any] = _all("and"), _all("or")
_MATH = "sqrt exp exp2 log log2 log10 log1p sin cos tan tanh floor ceil trunc erf"
for _name in _MATH.split():
    if hasattr(math, _name):
        ROWS[getattr(math, _name)] = _math(_name)


# -- containers ---------------------------------------------------------------------------------


@row(zip)
def _zip(i: Interpreter, *items: Any, **kwargs: Any) -> Any:
    return list(zip(*(i.iterate(x) for x in items), strict=kwargs.get("strict", False)))


@row(enumerate)
def _enumerate(i: Interpreter, items: Any, start: int = 0) -> Any:
    return list(enumerate(i.iterate(items), start))


@row(reversed)
def _reversed(i: Interpreter, items: Any) -> Any:
    return list(reversed(i.iterate(items)))


@row(list)
def _list(i: Interpreter, items: Any = ()) -> Any:
    return list(i.iterate(items))


@row(tuple)
def _tuple(i: Interpreter, items: Any = ()) -> Any:
    return tuple(i.iterate(items))


@row(range)
def _range(i: Interpreter, *args: Any) -> Any:
    if holds(list(args), DEVICE):
        raise exc.LoopFunctionNotInFor("range")
    return range(*args)


@row(getattr)
def _getattr(i: Interpreter, x: Any, name: str, *default: Any) -> Any:
    try:
        return attributes.get(i.p, x, name)
    except (AttributeError, exc.CantReadOnDevice):
        if default:
            return default[0]
        raise


@row(isinstance)
def _isinstance(i: Interpreter, x: Any, kinds: Any) -> bool:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    seen: dict[type, Any] = {Tensor: torch.Tensor, HostTensor: torch.Tensor, Tile: PublicTile}
    kind = seen.get(type(x))
    if isinstance(x, Number | Record):
        kind = x.kind
    return isinstance(x, kinds) if kind is None else any(issubclass(kind, k) for k in kinds)


# -- prints -------------------------------------------------------------------------------------


@row(print)
def _print(i: Interpreter, *values: Any, **kwargs: Any) -> None:
    text = " ".join(str(v) for v in values if not isinstance(v, DEVICE))
    device_print(i, text, *(v for v in values if isinstance(v, DEVICE)))


def device_print(i: Interpreter, prefix: Any, *values: Any) -> None:
    """hl.device_print."""
    found = []
    for x in values:
        x = operators.as_operand(i.p, x)
        found.append(calls.as_value(i.p, x) if isinstance(x, Tensor) else i.p.value(x))
    i.p.b.print(str(prefix), *found)
    i.p.effects += 1


@row(breakpoint, language.breakpoint)
def _breakpoint(i: Interpreter) -> None:
    """Stops where the interpreter comes by; compiled code cannot."""
    if getattr(i.p.settings, "ref_mode", None) is not RefMode.EAGER:
        raise exc.BreakpointInDeviceLoopRequiresInterpret()
    i.p.b.print(BREAKPOINT)
    i.p.effects += 1


# -- PyTorch ------------------------------------------------------------------------------------


def _matmul(i: Interpreter, a: Any, b: Any, **kwargs: Any) -> Any:
    return operators.binary(i.p, ast.MatMult, a, b)


def _refused(name: str) -> Row:
    def fn(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
        raise exc.UnsupportedSplitOperation(f"torch.{name}")

    return fn


def _data_dependent(name: str) -> Row:
    def fn(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
        raise exc.DataDependentOutputShapeNotSupported(f"torch.{name}")

    return fn


TORCH["matmul"] = TORCH["__matmul__"] = _matmul
for _name in ("chunk", "split", "unbind", "tensor_split"):
    TORCH[_name] = _refused(_name)
for _name in ("nonzero", "masked_select", "unique", "argwhere"):
    TORCH[_name] = _data_dependent(_name)
