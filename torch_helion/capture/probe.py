"""Whether a node's lowering rule takes the node, and what it costs: the rule is tried on
made-up tiles.

In: a node with a row. Out: a reason or None, and the rough number of vector operations of one
element. Equal calls (target, dtypes, scalars, which dimensions are 1) are tried once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.axes import Conflict, Key, Space, outputs_of, space_of
from torch_helion.capture.node_facts import Facts, is_tensor
from torch_helion.capture.sizes import shape_of
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import POINTWISE
from torch_helion.ir.types import Axis, Size, TileType, size_symbol
from torch_helion.lowering.registry import Context, TensorSpec

MOVE_COST = 2
_RANDOM_COST = 60


class Probe:
    """Answers for the nodes of one lowering table."""

    def __init__(self) -> None:
        self.costs: dict[fx.Node, int] = {}
        self._known: dict[Any, tuple[str | None, int]] = {}

    def __call__(self, facts: Facts, node: fx.Node) -> str | None:
        key = _signature(node)
        if key not in self._known:
            self._known[key] = _try(facts, node)
        why, self.costs[node] = self._known[key]
        return why


def _signature(node: fx.Node) -> Any:
    def part(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            value = argument.meta.get("val")
            if isinstance(value, torch.Tensor):
                ones = tuple(isinstance(n, int) and n == 1 for n in value.shape)
                return ("tensor", value.dtype, ones, tuple(map(str, value.shape)))
            return ("size", type(value).__name__)
        if isinstance(argument, list | tuple):
            return tuple(part(a) for a in argument)
        return (type(argument).__name__, repr(argument))

    kwargs = tuple((name, part(a)) for name, a in node.kwargs.items())
    return (str(node.target), tuple(part(a) for a in node.args), kwargs)


def _try(facts: Facts, node: fx.Node) -> tuple[str | None, int]:
    try:
        space = space_of(facts, node)
        row = facts.row(node)
        if row.kind in ("view", "gather"):
            return None, MOVE_COST
        caller = _Caller(facts, space, node)
        row.rule(caller.context(), *caller.args(), **caller.kwargs())
        return None, sum(_cost(op) for op in caller.b.emitted)
    except Conflict as error:
        return str(error), 0
    except exc.Base as error:
        return str(getattr(error, "why", None) or error), 0
    except Exception as error:  # a rule that fails in any way leaves its node to the host
        return f"{type(error).__name__}: {error}", 0


def _cost(op: Op) -> int:
    if op.kind == "pointwise":
        return POINTWISE[op.attrs["fn"]].cost
    return _RANDOM_COST if op.kind == "rng" else 0


class _Recorder(Builder):
    @property
    def emitted(self) -> list[Op]:
        return self._ops


class _Caller:
    """Made-up operands for one call: every atom is a full axis."""

    def __init__(self, facts: Facts, space: Space, node: fx.Node) -> None:
        self.facts = facts
        self.space = space
        self.node = node
        self.b = _Recorder("probe")
        self.axes: dict[int, Axis] = {}

    def axis(self, atom: int) -> Axis:
        if atom not in self.axes:
            extent: Size = self.space.extents[atom]
            size = extent if isinstance(extent, int) else size_symbol(f"n{len(self.axes)}")
            self.axes[atom] = self.b.axis(f"r{len(self.axes)}", size, "full")
        return self.axes[atom]

    def spec(self, node: fx.Node, key: Key) -> TensorSpec:
        dims = tuple(tuple(self.axis(a) for a in atoms) for atoms in self.space.of(key))
        return TensorSpec(node.meta["val"].dtype, shape_of(node), dims)

    def value(self, node: fx.Node, path: tuple[Any, ...]) -> Value:
        axes = tuple(self.axis(a) for a in self.space.atoms((self.node, path)))
        return Value(TileType(node.meta["val"].dtype, axes))

    def context(self) -> Context:
        operands = dict(self.facts.operands(self.node))
        inputs = tuple(
            self.spec(operands[(i,)], (self.node, (i,))) if (i,) in operands else None
            for i in range(len(self.node.args))
        )
        return Context(
            self.b,
            self.node.target,  # type: ignore[arg-type]
            tuple(self._argument(a, (i,), True) for i, a in enumerate(self.node.args)),
            {k: self._argument(a, (k,), True) for k, a in self.node.kwargs.items()},
            inputs,
            self._outputs(),
        )

    def _outputs(self) -> tuple[TensorSpec, ...]:
        value = self.node.meta["val"]
        if isinstance(value, torch.Tensor):
            return (self.spec(self.node, self.node),)
        items = {self.facts.output_number(n): n for n in outputs_of(self.node)}
        return tuple(
            self.spec(items[i], items[i])
            if i in items
            else TensorSpec(fake.dtype, tuple(fake.shape))
            for i, fake in enumerate(value)
        )

    def args(self) -> list[Any]:
        return [self._argument(a, (i,), False) for i, a in enumerate(self.node.args)]

    def kwargs(self) -> Mapping[str, Any]:
        return {k: self._argument(a, (k,), False) for k, a in self.node.kwargs.items()}

    def _argument(self, argument: Any, path: tuple[Any, ...], fake: bool) -> Any:
        if isinstance(argument, fx.Node):
            if is_tensor(argument):
                return argument.meta["val"] if fake else self.value(argument, path)
            value = argument.meta["val"]
            return size_symbol(argument.name) if isinstance(value, torch.SymInt) else value
        if isinstance(argument, list | tuple):
            return [self._argument(a, (*path, i), fake) for i, a in enumerate(argument)]
        return argument
