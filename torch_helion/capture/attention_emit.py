"""The kernel of an attention: tiles of queries against tiles of keys, with an online softmax.

What flows in: an `Attention` and its `Roles`. What flows out: the kernel with the graph's nodes for
its tensors, as `emit.py` gives it for other regions. What stands between the products is evaluated
by the emitter of regions, at the positions of a tile of scores; so are the operands of the products
and what follows them. Per grid step (one head, one tile of queries):

    for each tile of keys:                     top, total, acc = -inf, 0, 0 at first
        x = f(q · kᵀ)                          what the graph does to a score
        top' = max(top, max x);  p = exp(x - top');  c = exp(top - top')
        total = total · c + sum p;  acc = acc · c + p · v
    out = acc / total

A row whose scores so far are all -inf has no maximum to subtract: 0 stands for it, so that its p and
c are 0 and what follows is right. At the end 0 / 0 is the NaN that a softmax gives for it (or 0,
where the graph or ATen's operator says so).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion.capture.attention_match import Attention
from torch_helion.capture.attention_space import Roles, roles_of
from torch_helion.capture.axes import Atom, refusal
from torch_helion.capture.collapse import reachable
from torch_helion.capture.emit import Emitted, Emitter
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import hint_of
from torch_helion.capture.template import Template
from torch_helion.capture.trace import Gathered, Instance, Trace
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Axis, Size, begin_symbol

F32, F64 = torch.float32, torch.float64
CASTS = frozenset({
    torch.ops.prims.convert_element_type.default,
    torch.ops.aten._to_copy.default,
})  # fmt: skip
FEW_ROWS = 8
"""With as few queries, heads that share keys are rows of one tile."""
DTYPES = (F32, F64, torch.bfloat16, torch.float16)


def build(
    attention: Attention, lowerings: Mapping[Any, Any], hints: Mapping[sympy.Symbol, int]
) -> Emitted:
    """The kernel; raises `exc.LoweringError` where something is read at other places than its own."""
    facts = Facts(lowerings, owned=attention.outputs, inside=attention.nodes)
    roles = roles_of(facts, attention)
    return AttentionEmitter(facts, attention, roles, hints).emit_kernel()


def _trace(
    facts: Facts, attention: Attention, roles: Roles, hints: Mapping[sympy.Symbol, int]
) -> Trace:
    softmax = attention.softmax
    apart = {attention.first, attention.second, *(softmax.nodes if softmax else ())}
    nodes = [n for n in attention.nodes if n not in apart and attention.flash is None]
    grid = frozenset({*roles.outer, roles.key, *([roles.row] if roles.row is not None else [])})
    full = frozenset({roles.depth, *([roles.width] if roles.width is not None else [])})
    return Trace(facts, roles.space, nodes, Template(grid, full), hints)


class AttentionEmitter(Emitter):
    """Builds one kernel."""

    def __init__(
        self,
        facts: Facts,
        attention: Attention,
        roles: Roles,
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        trace = _trace(facts, attention, roles, hints)
        atoms = [*roles.outer, roles.row, roles.key, roles.depth, roles.width]
        super().__init__(trace, attention.name, [(a,) for a in atoms if a is not None])
        self.attention = attention
        self.roles = roles
        self.hints = hints
        self.given: dict[fx.Node, Value] = {}
        """Values of the products, where they are known."""
        self.shift: Size = 0
        """The position of the first key of the loop that is open."""
        self.acc_dtype = F64 if attention.first.args[0].meta["val"].dtype is F64 else F32  # type: ignore[union-attr]
        self.key_size: Size = 0

    # -- the kernel -------------------------------------------------------------------------------

    def emit_kernel(self) -> Emitted:
        self._check_weights()
        grid, blocks = self._declare_axes()
        with self.b.grid(*grid, blocks=blocks):
            queries = self.value(self._use(self.roles.queries))
            state = self._over_keys(queries)
            self._finish_rows(state)
        return self._emitted()

    def _emitted(self) -> Emitted:
        kernel = self.b.build()
        outer = tuple(self.sizes.values[s] for s in kernel.sizes)
        order = {b.name: n for b, n in zip(self._arguments(), self.tensors, strict=True)}
        tensors = tuple(order[b.name] for b in kernel.arguments)
        return Emitted(kernel, tensors, outer, self.sizes.hints())

    def _declare_axes(self) -> tuple[list[Axis], list[Size]]:
        roles = self.roles
        grid: list[Axis] = []
        blocks: list[Size] = []
        together = self._few_rows()
        for atom, name in zip(roles.outer, roles.outer_names, strict=True):
            axis = self._axis(atom, name)
            grid.append(axis)
            whole = together and atom in roles.shared and isinstance(axis.size, int)
            blocks.append(axis.size if whole else 1)
        if roles.row is not None:
            grid.append(self._axis(roles.row, "m"))
            blocks.append(self.b.block("m"))
        self.key_size = self._size(roles.key, "n")
        self._axis(roles.depth, "d", "full")
        if roles.width is not None:
            self._axis(roles.width, "e", "full")
        return grid, blocks

    def _axis(self, atom: Atom, name: str, kind: str = "block") -> Axis:
        size = self.roles.space.extents[atom] if kind == "full" else self._size(atom, name)
        axis = self.b.axis(name, size, kind)
        self.phase.axes[self.trace.name(atom)] = axis
        return axis

    def _size(self, atom: Atom, name: str) -> Size:
        """The extent of an axis: a size argument, or the number of heads that share keys."""
        host = self.roles.space.extents[atom]
        shared = atom in self.roles.shared and isinstance(host, int)
        size = host if shared else self.sizes.declare(self.b, host, f"n_{name}")
        extent = self.trace.size(atom)
        if isinstance(extent, sympy.Symbol):
            self.sizes.bind(extent, size)
        return size

    def _few_rows(self) -> bool:
        if self.roles.row is None:
            return True
        rows = hint_of(self.roles.space.extents[self.roles.row], self.hints)
        return rows is not None and rows <= FEW_ROWS

    # -- places and values --------------------------------------------------------------------------

    def affine(self, place: Affine) -> Affine:
        """A place over the kernel's axes; keys count from where their loop begins."""
        found = super().affine(place)
        name = self.trace.names.get(self.roles.key)
        if self.shift == 0 or name is None or name not in self.phase.axes:
            return found
        key = self.phase.axes[name].name
        moved = sum((c * self.shift for n, c in found.terms if n == key), sympy.Integer(0))
        return Affine(found.terms, found.offset + moved)

    def _use(self, use: Any) -> Instance:
        node, path = use
        return self.trace.operand(node, path, self.trace.canonical(use), ())

    def _load(self, instance: Instance) -> Value:
        if instance.node not in self.given:
            if instance.node in (self.attention.first, self.attention.second):
                raise refusal(instance.node, "a product is read before it is computed")
            return super()._load(instance)
        if instance.index != self.trace.canonical(instance.node) or instance.guards:
            raise refusal(instance.node, "scores are read at other places than their own")
        return self.given[instance.node]

    def _check_weights(self) -> None:
        """The weights are read where they are made, and changed by casts only."""
        softmax, second = self.attention.softmax, self.attention.second
        if softmax is None:
            return
        at = self._use((second, self.attention.weights))
        while at.kind == "compute" and at.node.target in CASTS:
            (at,) = at.operands.values()
        canonical = self.trace.canonical(softmax.weights)
        if at.node is not softmax.weights or at.index != canonical or at.guards:
            raise refusal(second, "the weights are read at other places than their own")
        if softmax.nodes[1].meta["val"].dtype not in (F32, F64):
            raise refusal(softmax.nodes[1], "a softmax in a half type")

    # -- the loop over the keys -----------------------------------------------------------------------

    @property
    def rows(self) -> list[Axis]:
        """Axes of what is kept for each query."""
        names = [self.trace.name(a) for a in self.roles.outer]
        if self.roles.row is not None:
            names.append(self.trace.name(self.roles.row))
        return [self.phase.axes[n] for n in names]

    @property
    def columns(self) -> list[Axis]:
        width = self.roles.width
        return [] if width is None else [self.phase.axes[self.trace.name(width)]]

    def _over_keys(self, queries: Value) -> list[Value]:
        """top, total, acc after all tiles."""
        b, zero = self.b, self.b.const(0.0, self.acc_dtype)
        state = [
            b.expand(b.const(-math.inf, self.acc_dtype), self.rows),
            b.expand(zero, self.rows),
            b.expand(zero, [*self.rows, *self.columns]),
        ]
        self._before_loop()
        size: Size = self.key_size
        flash = self.attention.flash
        if flash is not None and flash.causal and self.roles.row is not None:
            row = self.phase.axes[self.trace.name(self.roles.row)]
            size = sympy.Min(size, begin_symbol(row) + self.b.block("m"))
        elif flash is not None and flash.causal:
            size = sympy.Min(size, 1)
        key = self.b.axis("n", size)
        with self._keys(key), b.tile_loop([key], state, [b.block("n")]) as loop:
            loop.finish(self._tile(queries, key, loop.args))
        return list(loop.results)

    @contextmanager
    def _keys(self, axis: Axis) -> Any:
        """Inside, the axis of the keys is `axis`."""
        name, values = self.trace.name(self.roles.key), self.phase.values
        self.phase.axes[name], self.phase.values = axis, dict(values)
        yield
        del self.phase.axes[name]
        self.phase.values = values

    def _before_loop(self) -> None:
        """Compute what does not depend on the key once."""
        if self.attention.softmax is None:
            return
        name = self.trace.name(self.roles.key)
        moving: set[Instance] = set()
        for instance in reachable([self._scores()]):
            places = [*instance.index, *(g.place for g in instance.guards)]
            places += [c.place for where, _ in instance.branches for c in where]
            if instance.node is self.attention.first or _mentions(places, name):
                moving.add(instance)
            elif any(part in moving for part in instance.parts()):
                moving.add(instance)
            elif instance.kind == "load" and instance.node not in self.given:
                self.value(instance)

    def _scores(self) -> Instance:
        assert self.attention.softmax is not None
        scores = self.attention.softmax.scores
        return self.trace.pull(scores, self.trace.canonical(scores), ())

    def _tile(self, queries: Value, key: Axis, state: list[Value]) -> list[Value]:
        b, roles = self.b, self.roles
        top, total, acc = state
        depth = self.phase.axes[self.trace.name(roles.depth)]
        keys = self.value(self._use(roles.keys))
        x = self._score(b.dot(queries, keys, depth, self.acc_dtype, hint="scores"), key)
        x = b.expand(x, [*self.rows, key])
        new_top = b.pointwise("maximum", top, b.reduce("max", x, [key]), hint="top")
        base = self._base(new_top)
        p = b.pointwise("exp", b.pointwise("sub", x, base), hint="p")
        scale = b.pointwise("exp", b.pointwise("sub", top, base), hint="c")
        new_total = b.pointwise("mul", total, scale)
        new_total = b.pointwise("add", new_total, b.reduce("sum", p, [key]), hint="total")
        values = self.value(self._use(roles.values))
        acc = b.pointwise("mul", acc, scale)
        acc = b.dot(b.cast(p, values.type.dtype), values, key, self.acc_dtype, acc, hint="acc")
        return [new_top, new_total, acc]

    def _base(self, top: Value) -> Value:
        """What is subtracted: the maximum, 0 while there is none."""
        none = self.b.const(-math.inf, self.acc_dtype)
        zero = self.b.const(0.0, self.acc_dtype)
        return self.b.pointwise("where", self.b.pointwise("eq", top, none), zero, top)

    def _score(self, product: Value, key: Axis) -> Value:
        flash = self.attention.flash
        if flash is not None:
            return self._flash_score(product, key)
        first = self.attention.first
        self.given[first] = self.b.cast(product, first.meta["val"].dtype)
        return self.b.cast(self.value(self._scores()), self.acc_dtype)

    def _flash_score(self, product: Value, key: Axis) -> Value:
        b, flash = self.b, self.attention.flash
        assert flash is not None
        x = b.pointwise("mul", product, b.const(flash.scale, self.acc_dtype))
        if flash.mask is not None:
            mask = self.value(self._use((self.attention.first, flash.mask)))
            x = b.pointwise("add", x, b.cast(mask, self.acc_dtype))
        if flash.causal and self.roles.row is not None:
            row = self.phase.axes[self.trace.name(self.roles.row)]
            seen = b.pointwise("ge", b.iota(row), b.iota(key))
            x = b.pointwise("where", seen, x, b.const(-math.inf, self.acc_dtype))
        return x

    # -- results ----------------------------------------------------------------------------------

    def _finish_rows(self, state: list[Value]) -> None:
        b, attention = self.b, self.attention
        top, total, acc = state
        zero, one = (b.const(x, self.acc_dtype) for x in (0.0, 1.0))
        if attention.flash is not None or (attention.softmax and attention.softmax.safe):
            total = b.pointwise("where", b.pointwise("eq", total, zero), one, total)
        result = b.pointwise("div", acc, total, hint="result")
        if attention.flash is None:
            dtype = attention.second.meta["val"].dtype
            self.given[attention.second] = value = b.cast(result, dtype)
            (output,) = attention.outputs
            if output is not attention.second:
                value = self.value(self.trace.output(output))
            self.store_value(output, value)
            return
        output = attention.outputs[0]
        self.store_value(output, b.cast(result, output.meta["val"].dtype))
        for output in attention.outputs[1:]:
            logsumexp = b.pointwise("add", self._base(top), b.pointwise("log", total))
            self.store_value(output, b.cast(logsumexp, output.meta["val"].dtype))


def _mentions(places: Iterable[Any], name: str) -> bool:
    for place in places:
        if isinstance(place, Gathered):
            if _mentions(place.index.index, name):
                return True
        elif name in place.axis_names:
            return True
    return False
