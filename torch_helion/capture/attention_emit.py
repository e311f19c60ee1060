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

A row whose scores so far are all -inf has no maximum to subtract: 0 stands for it, so that its p
and c are 0 and what follows is right. At the end 0 / 0 is the NaN that a softmax gives for it (or
0, where the graph or ATen's operator says so).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.attention_masks import CAUSAL, EVERYTHING, Band, Masks
from torch_helion.capture.attention_match import Attention
from torch_helion.capture.attention_space import Roles, roles_of
from torch_helion.capture.axes import Atom, refusal
from torch_helion.capture.collapse import reachable
from torch_helion.capture.emit import CollapseError, Emitted, Emitter, Phase
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import hint_of
from torch_helion.capture.template import Template
from torch_helion.capture.trace import Gathered, Instance, Trace
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Axis, Buffer, Size, begin_symbol, contiguous_strides

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
    """The kernel; raises `exc.LoweringError` where a value is read at other places than its own."""
    facts = Facts(lowerings, owned=attention.outputs, inside=attention.nodes)
    roles = roles_of(facts, attention)
    try:
        return AttentionEmitter(facts, attention, roles, hints).emit_kernel()
    except CollapseError:
        raise refusal(attention.first, "an axis is needed that the kernel has not") from None
    except (exc.VerifierError, RecursionError) as error:
        raise refusal(attention.first, str(error)) from error


def _trace(
    facts: Facts, attention: Attention, roles: Roles, hints: Mapping[sympy.Symbol, int]
) -> Trace:
    softmax = attention.softmax
    apart = {attention.first, attention.second, *(softmax.nodes if softmax else ())}
    apart |= set(attention.first.users) if attention.flash else set()
    nodes = [n for n in attention.nodes if n not in apart]
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
        self.extents: dict[Atom, Size] = {}
        self.band = EVERYTHING
        self.flagged: list[str] = []
        """The heads that have a flag."""
        self.whole: sympy.Symbol | None = None
        """1 where no key may be passed over."""

    # -- the kernel -------------------------------------------------------------------------------

    def emit_kernel(self) -> Emitted:
        self._check_weights()
        grid, blocks = self._declare_axes()
        self.band = self._visible()
        flags = self._flag_phase() if self.band and self.attention.mask_matters else None
        with self.b.grid(*grid, blocks=blocks):
            self._read_flag(flags)
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
        self.extents[atom] = size
        return size

    def _few_rows(self) -> bool:
        if self.roles.row is None:
            return True
        rows = hint_of(self.roles.space.extents[self.roles.row], self.hints)
        return rows is not None and rows <= FEW_ROWS

    # -- places and values ----------------------------------------------------------------------

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

    # -- the loop over the keys -----------------------------------------------------------------

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
        self.shift, size = self._range()
        key = self.b.axis("n", size)
        with self._keys(key), b.tile_loop([key], state, [b.block("n")]) as loop:
            loop.finish(self._tile(queries, key, loop.args))
        return list(loop.results)

    # -- keys that no query of a tile sees --------------------------------------------------------

    def _visible(self) -> Band:
        """What the graph proves about which keys a query sees."""
        flash, roles = self.attention.flash, self.roles
        row = None if roles.row is None else self.trace.name(roles.row)
        masks = Masks(row, self.trace.name(roles.key))
        if flash is None:
            return masks.visible(self._scores())
        band = CAUSAL if flash.causal else EVERYTHING
        if flash.mask is not None:
            band = band & masks.visible(self._use((self.attention.first, flash.mask)))
        return band

    def _range(self) -> tuple[Size, Size]:
        """The first key of the loop, and how many there are."""
        first, last = sympy.Integer(0), sympy.Integer(0)
        if self.roles.row is not None:
            row = self.phase.axes[self.trace.name(self.roles.row)]
            first = begin_symbol(row)
            last = sympy.Min(row.size, first + self.b.block("m")) - 1
        begin, end = sympy.Integer(0), sympy.sympify(self.key_size)
        for diagonal, constant in self.band.lows:
            begin = sympy.Max(begin, self.final(constant) + (first if diagonal else 0))
        for diagonal, constant in self.band.highs:
            end = sympy.Min(end, self.final(constant) + 1 + (last if diagonal else 0))
        size = end if begin == 0 else sympy.Max(0, end - begin)
        if self.whole is not None:
            begin, size = begin * (1 - self.whole), sympy.Max(size, self.key_size * self.whole)
        return begin, size

    def _flag_phase(self) -> Buffer:
        """Which heads have a key or value that is not finite: 0 times it is NaN, and the graph has
        that NaN for keys that nobody sees. In such heads no key is passed over.
        """
        b, roles, outer = self.b, self.roles, self.phase
        has = {*roles.space.atoms(roles.keys), *roles.space.atoms(roles.values)}
        self.phase = Phase(0, {}, {})
        for number, atom in enumerate(a for a in roles.outer if a in has):
            axis = b.axis(f"g{number}", self.extents[atom])
            self.phase.axes[self.trace.name(atom)] = axis
        grid = list(self.phase.axes.values())
        self.flagged = list(self.phase.axes)
        for whole, name in ((roles.depth, "gd"), (roles.width, "ge")):
            if whole is not None:
                axis = b.axis(name, roles.space.extents[whole], "full")
                self.phase.axes[self.trace.name(whole)] = axis
        shape = tuple(a.size for a in grid)
        flags = b.buffer("flags", torch.int64, shape, contiguous_strides(shape), "workspace")
        with b.grid(*grid, blocks=[1] * len(grid)):
            key = b.axis("gn", self.key_size)
            start = b.expand(b.const(0.0, self.acc_dtype), grid)
            with self._keys(key), b.tile_loop([key], [start], [b.block("n")]) as loop:
                total = loop.args[0]
                for use in (roles.keys, roles.values):
                    value = b.cast(self.value(self._use(use)), self.acc_dtype)
                    value = b.pointwise("mul", value, b.const(0.0, self.acc_dtype))
                    axes = [a for a in value.type.axes if a not in grid]
                    total = b.pointwise("add", total, b.reduce("sum", value, axes))
                loop.finish([b.expand(total, grid)])
            finite = b.pointwise("eq", loop.results[0], b.const(0.0, self.acc_dtype))
            numbers = (b.const(n, torch.int64) for n in (0, 1))
            flag = b.pointwise("where", finite, *numbers)
            b.store(flags, [Affine.of(a) for a in grid], b.expand(flag, grid))
        self.phase = outer
        return flags

    def _read_flag(self, flags: Buffer | None) -> None:
        if flags is not None:
            axes = [self.phase.axes[name] for name in self.flagged]
            index = [Affine((), begin_symbol(a)) for a in axes]
            self.whole = self.b.bind(self.b.load(flags, index), "whole")

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
            below = any(part in moving for part in instance.parts())
            if below or instance.node is self.attention.first or _mentions(places, name):
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
            place = self.position(Affine.of(self.trace.name(self.roles.key)))
            seen = b.pointwise("ge", b.iota(row), place)
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
