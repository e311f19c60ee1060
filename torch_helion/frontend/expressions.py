"""Expressions of the device part: what each node of the syntax tree evaluates to.

In: a syntax tree and a scope. Out: values (`values.py`) or plain Python objects. What is known
while tracing is computed by Python itself.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend import attributes, indexing, operators
from torch_helion.frontend.scope import Scope
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import (
    DEVICE,
    HostTensor,
    Inline,
    Method,
    Number,
    Stack,
    Tensor,
    Tile,
    describe,
    holds,
)

Call = Callable[[Any, list[Any], dict[str, Any]], Any]

NAMES = {
    ast.IfExp: "a if c else b",
    ast.NamedExpr: "walrus (:=)",
    ast.Lambda: "lambda",
    ast.JoinedStr: "f-string",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield from",
    ast.SetComp: "set comprehension",
}


class Expressions:
    """Evaluates expressions in the scope that is current."""

    def __init__(self, program: Program) -> None:
        self.p = program
        self.scope: Scope

    def call(self, fn: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def eval(self, node: ast.expr) -> Any:
        """The value of an expression; errors are said to stand at the innermost one."""
        try:
            return self._eval(node)
        except exc.Base as error:
            if error.location is None:
                error.at(self.scope.source.at(node))
            raise
        except RecursionError:
            raise
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            if type(error) in (TypeError, ValueError) and str(error).startswith("hl."):
                raise  # a mistake for which Python's own classes are promised
            wrapped = exc.TypeInferenceError(f"{type(error).__name__}: {error}")
            raise wrapped.at(self.scope.source.at(node)) from error

    def _eval(self, node: ast.expr) -> Any:
        method = getattr(self, f"_{type(node).__name__}", None)
        if method is None:
            raise self.not_allowed(NAMES.get(type(node), type(node).__name__))
        return method(node)

    def not_allowed(self, name: str) -> exc.Base:
        if self.scope.is_helper:
            return exc.NotAllowedInHelperFunction(name)
        return exc.NotAllowedOnDevice(name)

    # -- leaves and containers --------------------------------------------------------------------

    def _Constant(self, node: ast.Constant) -> Any:
        return node.value

    def _Name(self, node: ast.Name) -> Any:
        return self.scope.get(node.id)

    def _Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _List(self, node: ast.List) -> Any:
        return list(self._items(node.elts))

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                found += self.iterate(self.eval(node.value))
            else:
                found.append(self.eval(node))
        return found

    def _Dict(self, node: ast.Dict) -> Any:
        found: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                found.update(self.eval(value))
            else:
                found[self.eval(key)] = self.eval(value)
        return found

    def _Slice(self, node: ast.Slice) -> Any:
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if n is None else self._bound(n) for n in parts))

    def _bound(self, node: ast.expr) -> Any:
        value = self.eval(node)
        return self.p.number_of(value) if isinstance(value, Tensor) else value

    def _ListComp(self, node: ast.ListComp) -> Any:
        return self._comprehension(node.generators, lambda: self.eval(node.elt))

    def _GeneratorExp(self, node: ast.GeneratorExp) -> Any:
        return self._comprehension(node.generators, lambda: self.eval(node.elt))

    def _DictComp(self, node: ast.DictComp) -> Any:
        return dict(
            self._comprehension(
                node.generators, lambda: (self.eval(node.key), self.eval(node.value))
            )
        )

    def _comprehension(self, generators: list[ast.comprehension], make: Callable[[], Any]) -> Any:
        generator, *rest = generators
        found: list[Any] = []
        saved = dict(self.scope.names)
        for item in self.iterate(self.eval(generator.iter)):
            self.bind_target(generator.target, item)
            tests = [operators.truth(self.p, self.eval(test)) for test in generator.ifs]
            if any(not isinstance(t, bool) for t in tests):
                raise exc.TypeInferenceError("a comprehension's `if` must be known when tracing")
            if all(tests):
                found += self._comprehension(rest, make) if rest else [make()]
        self.scope.names = saved
        return found

    def iterate(self, value: Any) -> list[Any]:
        """The items of something that is unrolled."""
        if isinstance(value, Tensor | HostTensor | Tile | Number | Stack):
            raise exc.InvalidDeviceForLoop(describe(value))
        try:
            return list(value)
        except TypeError:
            raise exc.InvalidDeviceForLoop(describe(value)) from None

    def bind_target(self, target: ast.expr, value: Any) -> None:
        """Give the names of a target the parts of a value."""
        if isinstance(target, ast.Name):
            self.scope.set(target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value)
        else:
            raise exc.InvalidAssignment().at(self.scope.source.at(target))

    def _unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        if isinstance(value, Tile):
            raise exc.FailedToUnpackTile().at(self.scope.source.at(target))
        count = len(target.elts)
        if isinstance(value, Tensor | HostTensor | Number | Stack) or not hasattr(
            value, "__iter__"
        ):
            error = exc.FailedToUnpackTupleAssign(count, describe(value))
            raise error.at(self.scope.source.at(target))
        items = list(value)
        if any(isinstance(t, ast.Starred) for t in target.elts):
            raise self.not_allowed("starred assignment").at(self.scope.source.at(target))
        if len(items) != count:
            error = exc.FailedToUnpackTupleAssign(count, len(items))
            raise error.at(self.scope.source.at(target))
        for part, item in zip(target.elts, items, strict=True):
            self.bind_target(part, item)

    # -- operators --------------------------------------------------------------------------------

    def _BinOp(self, node: ast.BinOp) -> Any:
        return operators.binary(self.p, type(node.op), self.eval(node.left), self.eval(node.right))

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:
        return operators.unary(self.p, type(node.op), self.eval(node.operand))

    def _BoolOp(self, node: ast.BoolOp) -> Any:
        name = "and" if isinstance(node.op, ast.And) else "or"
        result = self.eval(node.values[0])
        for other in node.values[1:]:
            if not holds(result, DEVICE):
                if bool(result) is (name == "or"):
                    return result
                result = self.eval(other)
                continue
            value = self.eval(other)
            result = operators.both(self.p, name, result, value)
        return result

    def _Compare(self, node: ast.Compare) -> Any:
        left = self.eval(node.left)
        result: Any = None
        for op, other in zip(node.ops, node.comparators, strict=True):
            right = self.eval(other)
            one = operators.compare(self.p, type(op), left, right)
            result = one if result is None else operators.both(self.p, "and", result, one)
            left = right
        return result

    def _IfExp(self, node: ast.IfExp) -> Any:
        test = operators.truth(self.p, self.eval(node.test))
        if isinstance(test, bool):
            return self.eval(node.body if test else node.orelse)
        raise self.not_allowed("a if c else b")

    # -- parts ------------------------------------------------------------------------------------

    def _Attribute(self, node: ast.Attribute) -> Any:
        return attributes.get(self.p, self.eval(node.value), node.attr)

    def _Subscript(self, node: ast.Subscript) -> Any:
        owner, index = self.eval(node.value), self.eval(node.slice)
        if isinstance(owner, HostTensor | Stack):
            return indexing.load(self.p, owner, self.index(index))
        if isinstance(owner, Tensor):
            return indexing.subscript(self.p, owner, index)
        if isinstance(owner, Method):
            raise exc.InvalidSequenceSubscription(describe(index))
        if holds(index, DEVICE):
            raise exc.InvalidSequenceSubscription(describe(index))
        return owner[index]

    def index(self, index: Any) -> Any:
        """A subscript in which 0-D host tensors are read."""
        if isinstance(index, tuple):
            return tuple(self.index(i) for i in index)
        if isinstance(index, HostTensor) and index.tensor.dim() == 0:
            return indexing.load(self.p, index, ())
        if isinstance(index, torch.Tensor):
            raise exc.HostTensorDirectUsage(describe(index), "subscript")
        return index

    def _inline_lambda(self, node: ast.Lambda, fn: Any) -> Inline:
        """A lambda that stands among a call's arguments: the function that is called calls it."""
        if not isinstance(fn, types.FunctionType) or node.args.defaults or node.args.kwonlyargs:
            raise self.not_allowed("lambda").at(self.scope.source.at(node))
        return Inline(node, self.scope)

    def _Call(self, node: ast.Call) -> Any:
        fn = self.eval(node.func)
        args: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                if not self.scope.is_helper:
                    raise exc.StarredArgsNotSupportedOnDevice().at(self.scope.source.at(argument))
                args += self.iterate(self.eval(argument.value))
            elif isinstance(argument, ast.Lambda):
                args.append(self._inline_lambda(argument, fn))
            else:
                args.append(self.eval(argument))
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                if not self.scope.is_helper:
                    raise exc.StarredArgsNotSupportedOnDevice().at(self.scope.source.at(node))
                kwargs.update(self.eval(keyword.value))
            else:
                kwargs[keyword.arg] = self.eval(keyword.value)
        return self.call(fn, args, kwargs)
