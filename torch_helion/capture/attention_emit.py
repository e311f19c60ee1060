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
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion import _hardware, exc
from torch_helion.capture.attention_backward import BackwardEmitter
from torch_helion.capture.attention_base import TileEmitter
from torch_helion.capture.attention_gradients import GradientsEmitter
from torch_helion.capture.attention_masks import (
    CAUSAL,
    EVERYTHING,
    FACTOR,
    LARGEST_ELEMENT,
    Masks,
)
from torch_helion.capture.attention_match import ADDED as ADDING
from torch_helion.capture.attention_match import Attention
from torch_helion.capture.attention_seen import Seen, mentions
from torch_helion.capture.attention_space import Roles, roles_of
from torch_helion.capture.axes import Atom, refusal
from torch_helion.capture.collapse import reachable
from torch_helion.capture.emit import CollapseError, Emitted, Phase
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import hint_of
from torch_helion.capture.trace import Instance
from torch_helion.ir.graph import Value
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    IndexExpr,
    Size,
    begin_symbol,
    contiguous_strides,
)

F32, F64 = torch.float32, torch.float64
CASTS = frozenset({
    torch.ops.prims.convert_element_type.default,
    torch.ops.aten._to_copy.default,
})  # fmt: skip
FEW_ROWS = 8
"""With as few queries, heads that share keys are rows of one tile."""
PART = 512
"""Least keys of a part, where several steps share the keys of a head."""


def build(
    attention: Attention, lowerings: Mapping[Any, Any], hints: Mapping[sympy.Symbol, int]
) -> Emitted:
    """The kernel; raises `exc.LoweringError` where a value is read at other places than its own."""
    facts = Facts(lowerings, owned=attention.outputs, inside=attention.nodes)
    roles = roles_of(facts, attention)
    try:
        backward = attention.flash is not None and attention.flash.backward
        emitter: Any = BackwardEmitter if backward else AttentionEmitter
        if attention.gradients is not None:
            emitter = GradientsEmitter
        return emitter(facts, attention, roles, hints).emit_kernel()
    except CollapseError:
        raise refusal(attention.first, "an axis is needed that the kernel has not") from None
    except (exc.VerifierError, RecursionError) as error:
        raise refusal(attention.first, str(error)) from error


class AttentionEmitter(TileEmitter):
    """Builds a forward kernel."""

    def __init__(
        self,
        facts: Facts,
        attention: Attention,
        roles: Roles,
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        softmax = attention.softmax
        apart = {attention.first, attention.second, *(softmax.nodes if softmax else ())}
        apart |= set(attention.first.users) if attention.flash else set()
        nodes = [n for n in attention.nodes if n not in apart]
        super().__init__(facts, attention.name, roles, nodes, hints)
        self.attention = attention
        self.given: dict[fx.Node, Value] = {}
        """Values of the products, where they are known."""
        self.band = EVERYTHING
        self.masks: Masks
        self.seen: Seen
        """Masks in memory that are looked through before the products."""
        self.limits: list[sympy.Symbol] = []
        """The first and the last key that those let a tile of queries see."""
        self.flagged: list[Atom] = []
        """The heads that have a flag."""
        self.whole: sympy.Symbol | None = None
        """1 where no key may be passed over."""

    # -- the kernel -------------------------------------------------------------------------------

    def emit_kernel(self) -> Emitted:
        self._check_weights()
        grid, blocks = self._declare_axes()
        parts = self._parts()
        self._find_hidden(parts == 1)
        some = bool(self.band or self.seen)
        if self.seen:
            self.seen.emit_phase(self.b.block("m"), self.b.block("n"))
        flags = self._flag_phase() if some and self.attention.mask_matters else None
        split = [self.b.axis("s", parts)] if parts > 1 else []
        with self.b.grid(*grid, *split, blocks=[*blocks, *[1 for _ in split]]):
            self._read_flag(flags)
            self.limits = self.seen.read() if self.seen else []
            queries = self.value(self.use(self.roles.queries))
            self._require_small(queries)
            state = self._over_keys(queries, parts)
            if not split:
                self._finish_rows(state)
            else:
                kept = self._keep(state, split[0])
        if split:
            self._join(kept, parts)
        return self.emitted()

    def _declare_axes(self) -> tuple[list[Axis], list[Size]]:
        roles = self.roles
        self.declare_sizes()
        grid: list[Axis] = []
        blocks: list[Size] = []
        together = self._few_rows()
        for atom, name in zip(roles.outer, roles.outer_names, strict=True):
            axis = self.set_axis(atom, name)
            grid.append(axis)
            whole = together and atom in roles.shared and isinstance(axis.size, int)
            blocks.append(axis.size if whole else 1)
        if roles.row is not None:
            grid.append(self.set_axis(roles.row, "m"))
            blocks.append(self.b.block("m"))
        self.set_axis(roles.depth, "d")
        if roles.width is not None:
            self.set_axis(roles.width, "e")
        return grid, blocks

    def _few_rows(self) -> bool:
        if self.roles.row is None:
            return True
        rows = hint_of(self.roles.space.extents[self.roles.row], self.hints)
        return rows is not None and rows <= FEW_ROWS

    # -- keys in parts ----------------------------------------------------------------------------

    def _parts(self) -> int:
        """How many grid steps share the keys of a head: several where heads are too few for the
        threads and a head has few queries.
        """
        if not self._few_rows():
            return 1
        space, shared = self.roles.space, self.roles.shared
        counts = [
            hint_of(space.extents[a], self.hints) for a in self.roles.outer if a not in shared
        ]
        keys = hint_of(space.extents[self.roles.key], self.hints)
        if keys is None or any(n is None for n in counts):
            return 1
        steps, cores = math.prod(n for n in counts if n), _hardware.cores()
        if steps >= cores:
            return 1
        return max(1, min(-(-2 * cores // max(1, steps)), keys // PART))

    def _keep(self, state: list[Value], split: Axis) -> list[Buffer]:
        """Store what one part of the keys gave."""
        b, buffers = self.b, []
        for name, value in zip(("tops", "totals", "accs"), state, strict=True):
            more = self.columns if name == "accs" else []
            shape = tuple(a.size for a in (*self.rows, split, *more))
            strides = contiguous_strides(shape)
            buffers.append(b.buffer(name, self.acc_dtype, shape, strides, "workspace"))
            index: list[IndexExpr] = [Affine.of(a) for a in self.rows]
            index += [Affine((), begin_symbol(split)), *(Affine.of(a) for a in more)]
            b.store(buffers[-1], index, value)
        return buffers

    def _join(self, kept: list[Buffer], parts: int) -> None:
        """A second phase: the parts of each row together."""
        b, roles = self.b, self.roles
        self.phase = Phase(1, {}, {})
        grid = [self.set_axis(atom, f"o{number}") for number, atom in enumerate(roles.outer)]
        blocks: list[Size] = [1] * len(grid)
        if roles.row is not None:
            grid.append(self.set_axis(roles.row, "om"))
            blocks.append(FEW_ROWS)
        if roles.width is not None:
            self.set_axis(roles.width, "oe")
        split = b.axis("parts", parts, "full")
        with b.grid(*grid, blocks=blocks):
            index = [Affine.of(a) for a in (*self.rows, split)]
            tops, totals = (b.load(buffer, index) for buffer in kept[:2])
            accs = b.load(kept[2], [*index, *(Affine.of(a) for a in self.columns)])
            top = b.reduce("max", tops, [split], hint="top")
            scale = b.pointwise("exp", b.pointwise("sub", tops, self._base(top)))
            total, acc = (
                b.reduce("sum", b.pointwise("mul", value, scale), [split])
                for value in (totals, accs)
            )
            self._finish_rows([top, total, acc])

    # -- places and values ----------------------------------------------------------------------

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
        at = self.use((second, self.attention.weights))
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
        row = self.roles.row
        return [self.axis_of(a) for a in (*self.roles.outer, *([] if row is None else [row]))]

    @property
    def columns(self) -> list[Axis]:
        width = self.roles.width
        return [] if width is None else [self.axis_of(width)]

    def _over_keys(self, queries: Value, parts: int) -> list[Value]:
        """top, total, acc after all tiles."""
        b = self.b
        state = [
            b.expand(self.number(-math.inf), self.rows),
            b.expand(self.number(0.0), self.rows),
            b.expand(self.number(0.0), [*self.rows, *self.columns]),
        ]
        self._before_loop()
        begin, size = self._range()
        if parts > 1:
            each = sympy.ceiling(size / sympy.Integer(parts))
            begin = begin + each * begin_symbol("s")
            size = sympy.Max(0, sympy.Min(each, size - each * begin_symbol("s")))
        if self.masks.floor == -math.inf:
            return self._loop(queries, begin, size, state)
        return self._twice(queries, begin, size, state)

    def _loop(
        self, queries: Value, begin: Size, size: Size, state: list[Value], name: str = "n"
    ) -> list[Value]:
        """All tiles of the keys from `begin` on."""
        b = self.b
        key = b.axis(name, size)
        inside = self.inside({self.roles.key: key}, {self.roles.key: begin})
        with inside, b.tile_loop([key], state, [b.block("n")]) as loop:
            loop.finish(self._tile(queries, key, loop.args))
        return list(loop.results)

    def _twice(self, queries: Value, begin: Size, size: Size, start: list[Value]) -> list[Value]:
        """The keys that are seen; and where some row has no score that is no mask's number, all
        keys from the start: there, hidden ones have weights.
        """
        b = self.b
        met = self._loop(queries, begin, size, start)
        none = b.pointwise("le", met[0], self.number(self.masks.floor))
        numbers = (b.const(n, torch.int64) for n in (1, 0))
        none = b.reduce("max", b.pointwise("where", none, *numbers), self.rows)
        lost = b.bind(none, "lost")
        again = b.pointwise("gt", none, b.const(0, torch.int64))
        state = [b.pointwise("where", again, *pair) for pair in zip(start, met, strict=True)]
        every = self.extents[self.roles.key]
        return self._loop(queries, sympy.Integer(0), every * lost, state, "every")

    # -- keys that no query of a tile sees --------------------------------------------------------

    def _find_hidden(self, finite: bool) -> None:
        """What the graph proves about which keys a query sees; `finite`: large negative numbers
        hide, too.
        """
        flash, roles, first = self.attention.flash, self.roles, self.attention.first
        row = None if roles.row is None else self.trace.name(roles.row)
        self.masks = masks = Masks(row, self.trace.name(roles.key), first, finite=finite)
        if flash is None:
            masks.added = first.meta["val"].dtype is not torch.float16
            self.band = masks.visible(self._scores())
        else:
            self.band = CAUSAL if flash.causal else EVERYTHING
            if flash.mask is not None:
                masks.finite = finite and abs(flash.scale) <= FACTOR
                self.band = self.band & masks.added_mask(self.use((first, flash.mask)))
        self.seen = Seen(self, masks.tests, roles.row, roles.key)
        if not self.seen and not self.band:
            masks.floor = -math.inf  # nothing is passed over

    def _require_small(self, queries: Value) -> None:
        """Where a mask is added, queries that are large may make scores that it does not hide."""
        if self.whole is None or not self.masks.adds:
            return
        b = self.b
        size = b.pointwise("abs", b.cast(queries, self.acc_dtype))
        size = b.reduce("max", size, size.type.axes)
        large = b.pointwise("gt", size, self.number(LARGEST_ELEMENT))
        ones = (b.const(n, torch.int64) for n in (1, 0))
        flag = b.pointwise("maximum", b.size_value(self.whole), b.pointwise("where", large, *ones))
        self.whole = b.bind(flag, "whole")

    def _range(self) -> tuple[Size, Size]:
        """The first key of the loop, and how many there are."""
        first, last = sympy.Integer(0), sympy.Integer(0)
        if self.roles.row is not None:
            row = self.axis_of(self.roles.row)
            first = begin_symbol(row)
            last = sympy.Min(row.size, first + self.b.block("m")) - 1
        begin, end = sympy.Integer(0), sympy.sympify(self.extents[self.roles.key])
        for diagonal, constant in self.band.lows:
            begin = sympy.Max(begin, self.final(constant) + (first if diagonal else 0))
        for diagonal, constant in self.band.highs:
            end = sympy.Min(end, self.final(constant) + 1 + (last if diagonal else 0))
        if self.limits:
            first, last = self.limits
            begin, end = sympy.Max(begin, first), sympy.Min(end, last + 1)
        size = end if begin == 0 else sympy.Max(0, end - begin)
        if self.whole is not None:
            begin = begin * (1 - self.whole)
            size = sympy.Max(size, self.extents[self.roles.key] * self.whole)
        return begin, size

    def _flag_phase(self) -> Buffer:
        """Which heads have a key or value that is not finite: 0 times it is NaN, and the graph has
        that NaN for keys that nobody sees. In such heads no key is passed over.
        """
        b, roles, outer = self.b, self.roles, self.phase
        has = {*roles.space.atoms(roles.keys), *roles.space.atoms(roles.values)}
        self.phase = Phase(0, {}, {})
        self.flagged = [a for a in roles.outer if a in has]
        grid = [self.set_axis(atom, f"g{number}") for number, atom in enumerate(self.flagged)]
        self.set_axis(roles.depth, "gd")
        if roles.width is not None:
            self.set_axis(roles.width, "ge")
        shape = tuple(a.size for a in grid)
        flags = b.buffer("flags", torch.int64, shape, contiguous_strides(shape), "workspace")
        with b.grid(*grid, blocks=[1] * len(grid)):
            key = b.axis("gn", self.extents[roles.key])
            start = b.expand(self.number(0.0), grid)
            inside = self.inside({roles.key: key})
            with inside, b.tile_loop([key], [start], [b.block("n")]) as loop:
                total = loop.args[0]
                for use in (roles.keys, roles.values):
                    value = b.cast(self.value(self.use(use)), self.acc_dtype)
                    if use is roles.keys and self.masks.adds:  # a large one counts as inf
                        size = b.pointwise("abs", value)
                        large = b.pointwise("gt", size, self.number(LARGEST_ELEMENT))
                        value = b.pointwise("where", large, self.number(math.inf), value)
                    value = b.pointwise("mul", value, self.number(0.0))
                    axes = [a for a in value.type.axes if a not in grid]
                    total = b.pointwise("add", total, b.reduce("sum", value, axes))
                loop.finish([b.expand(total, grid)])
            finite = b.pointwise("eq", loop.results[0], self.number(0.0))
            numbers = (b.const(n, torch.int64) for n in (0, 1))
            flag = b.pointwise("where", finite, *numbers)
            b.store(flags, [Affine.of(a) for a in grid], b.expand(flag, grid))
        self.phase = outer
        return flags

    def _read_flag(self, flags: Buffer | None) -> None:
        if flags is not None:
            index = [Affine((), begin_symbol(self.axis_of(a))) for a in self.flagged]
            self.whole = self.b.bind(self.b.load(flags, index), "whole")

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
            if below or instance.node is self.attention.first or mentions(places, name):
                moving.add(instance)
            elif instance.kind == "load" and instance.node not in self.given:
                self.value(instance)

    def _scores(self) -> Instance:
        """What the softmax is taken of, as its maximum reads it."""
        assert self.attention.softmax is not None
        return self.use((self.attention.softmax.nodes[0], (0,)))

    def _tile(self, queries: Value, key: Axis, state: list[Value]) -> list[Value]:
        b, roles = self.b, self.roles
        top, total, acc = state
        depth = self.axis_of(roles.depth)
        keys = self.value(self.use(roles.keys))
        x = self._score(b.dot(queries, keys, depth, self.acc_dtype, hint="scores"))
        x = b.expand(x, [*self.rows, key])
        new_top = b.pointwise("maximum", top, b.reduce("max", x, [key]), hint="top")
        base = self._base(new_top)
        p = b.pointwise("exp", b.pointwise("sub", x, base), hint="p")
        scale = b.pointwise("exp", b.pointwise("sub", top, base), hint="c")
        new_total = b.pointwise("mul", total, scale)
        new_total = b.pointwise("add", new_total, b.reduce("sum", p, [key]), hint="total")
        values = self.value(self.use(roles.values))
        acc = b.pointwise("mul", acc, scale)
        acc = b.dot(b.cast(p, values.type.dtype), values, key, self.acc_dtype, acc, hint="acc")
        return [new_top, new_total, acc]

    def _base(self, top: Value) -> Value:
        """What is subtracted: the maximum, 0 while there is none."""
        none = self.b.pointwise("eq", top, self.number(-math.inf))
        return self.b.pointwise("where", none, self.number(0.0), top)

    def _score(self, product: Value) -> Value:
        flash, first = self.attention.flash, self.attention.first
        if flash is not None:
            return self.flash_score(product, first, flash)
        if first.target is ADDING:
            product = self._added(first, product)
        self.given[first] = self.b.cast(product, first.meta["val"].dtype)
        return self.b.cast(self.value(self._scores()), self.acc_dtype)

    def _added(self, first: fx.Node, product: Value) -> Value:
        """beta · input + alpha · product"""
        b = self.b
        beta, alpha = (first.kwargs.get(name, 1) for name in ("beta", "alpha"))
        if not all(isinstance(x, int | float) for x in (beta, alpha)):
            raise refusal(first, "its factors are not known when compiling")
        if beta == 0:
            raise refusal(first, "what it adds is not read")
        product = b.pointwise("mul", product, self.number(float(alpha)))  # type: ignore[arg-type]
        added = b.cast(self.value(self.use((first, (0,)))), self.acc_dtype)
        added = b.pointwise("mul", added, self.number(float(beta)))  # type: ignore[arg-type]
        return b.pointwise("add", added, product)

    # -- results ----------------------------------------------------------------------------------

    def _finish_rows(self, state: list[Value]) -> None:
        b, attention = self.b, self.attention
        top, total, acc = state
        if attention.flash is not None or (attention.softmax and attention.softmax.safe):
            none = b.pointwise("eq", total, self.number(0.0))
            total = b.pointwise("where", none, self.number(1.0), total)
        result = b.pointwise("div", acc, total, hint="result")
        if attention.flash is None:
            dtype = attention.second.meta["val"].dtype
            self.given[attention.second] = value = b.cast(result, dtype)
            output = attention.outputs[0]
            if output is not attention.second:
                value = self.value(self.trace.output(output))
            self.store_value(output, value)
            softmax = attention.softmax
            assert softmax is not None
            for number in attention.outputs[1:]:  # a backward graph computes the weights again
                kept = top
                if number is softmax.nodes[3]:
                    none = b.pointwise("eq", top, self.number(-math.inf))
                    kept = b.pointwise("where", none, self.number(math.nan), state[1])
                self.store_value(number, b.cast(kept, number.meta["val"].dtype))
            return
        output = attention.outputs[0]
        self.store_value(output, b.cast(result, output.meta["val"].dtype))
        for output in attention.outputs[1:]:
            logsumexp = b.pointwise("add", self._base(top), b.pointwise("log", total))
            self.store_value(output, b.cast(logsumexp, output.meta["val"].dtype))
