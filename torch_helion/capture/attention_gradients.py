"""The backward of a plain attention, found by structure in a backward graph, and its kernel.

What flows in: a backward graph that computes the weights again from queries, keys and two numbers a
row (`attention_joint.py` sees to that). What flows out: an `Attention` with `Gradients`, its
`Roles`, its kernel. Only structure is asked for, no derivative is known here:

    weights = exp(scores(q · kᵀ) - top) / total;  upstream = dout · vᵀ
    pointwise nodes of both, and of numbers of a row
    products of those with anything else, along the keys or along the queries

The nodes between the products are evaluated as they stand, tile by tile. Products along the queries
are summed up in a tile of keys, those along the keys in a workspace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion.capture.attention_base import TileEmitter
from torch_helion.capture.attention_masks import (
    EVERYTHING,
    LARGEST_ELEMENT,
    Band,
    Masks,
    constant_of,
)
from torch_helion.capture.attention_match import (
    CARRIERS,
    PRODUCTS,
    Attention,
    Gradients,
    absorb,
    after_product,
    inputs_of,
    is_carried,
    is_cheap,
    scores_product,
    without_rim_views,
)
from torch_helion.capture.attention_seen import Seen
from torch_helion.capture.attention_space import Roles
from torch_helion.capture.axes import Atom, refusal
from torch_helion.capture.collapse import reachable
from torch_helion.capture.emit import Emitted
from torch_helion.capture.node_facts import Facts, Path
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

aten, prims = torch.ops.aten, torch.ops.prims


# -- matching -------------------------------------------------------------------------------------


@dataclass
class Closure:
    """What follows from a product of scores."""

    inner: set[fx.Node]
    """as large as the scores: pointwise nodes and views"""
    ends: list[tuple[fx.Node, Path]] = field(default_factory=list)
    """products of those, and where they stand in them"""
    sources: set[fx.Node] = field(default_factory=set)
    """other products that they are computed from"""
    others: list[fx.Node] = field(default_factory=list)
    """whatever else uses them"""


def closure_of(facts: Facts, first: fx.Node, ignored: frozenset[fx.Node] = frozenset()) -> Closure:
    """Follow the scores; `ignored` nodes are passed over."""
    found = Closure({first})
    work = [first]
    while work:
        node = work.pop()
        for user in node.users:
            if user in ignored or user in found.inner:
                continue
            if user.target in PRODUCTS:
                found.ends += [(user, p) for p, n in facts.operands(user) if n is node]
            elif _passes(facts, user):
                found.inner.add(user)
                work.append(user)
                for _, operand in facts.operands(user):
                    work += _upstream(facts, operand, found)
            elif user not in found.others:
                found.others.append(user)
    return found


def _passes(facts: Facts, node: fx.Node) -> bool:
    row = facts.lowerings.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    return row is not None and row.kind in ("pointwise", "view")


def _upstream(facts: Facts, operand: fx.Node, found: Closure) -> list[fx.Node]:
    """The product that an operand is a view or a cast of, with the nodes up to it."""
    chain: list[fx.Node] = []
    at = operand
    while at not in found.inner and at.target in CARRIERS:
        chain.append(at)
        at = at.args[0]  # type: ignore[assignment]
    if at in found.inner or at.target not in PRODUCTS:
        return []
    found.sources.add(at)
    found.inner.add(at)
    return [at]


def match_gradients(facts: Facts, div: fx.Node, number: dict[fx.Node, int]) -> Attention | None:
    """The backward around weights that are computed again; None where there is no such thing.

    Raises `exc.LoweringError` where there is, and yet it is none of ours.
    """
    parts = _weights(div)
    if parts is None:
        return None
    sub, scores = parts
    first = scores_product(facts, scores, number)
    if first is None or first.target not in PRODUCTS:
        return None
    closure = closure_of(facts, first)
    if len(closure.sources) != 1 or not closure.ends:
        return None
    (source,) = closure.sources
    ends = tuple(closure.ends)
    if closure.others:
        raise refusal(first, f"{closure.others[0].name} reads what is as large as the scores")
    if len({n for n, _ in ends}) != len(ends) or any(n in closure.inner for n, _ in ends):
        raise refusal(first, "a product of scores with scores")
    core = {*closure.inner, *(n for n, _ in ends)}
    outputs: list[fx.Node] = []
    for end, _ in ends:
        after = after_product(facts, end)
        core |= set(after)
        outputs.append(after[-1] if after else end)
    for node in core - set(outputs):
        if any(user not in core for user in node.users):
            raise refusal(node, f"{node.name} is used elsewhere")
    chains = [n for product in (first, source) for _, n in facts.operands(product)]
    chains += [n for end, path in ends for p, n in facts.operands(end) if p != path]
    taken = absorb(facts, core, chains, number, is_carried)
    inner = [n for node in closure.inner for _, n in facts.operands(node)]
    taken = absorb(facts, taken, inner, number, is_cheap)
    nodes = sorted(without_rim_views(facts, taken, core), key=number.__getitem__)
    gradients = Gradients(div, sub, source, ends)
    return Attention(
        tuple(nodes), inputs_of(facts, nodes), tuple(outputs), "attention_backward",
        first, ends[0][0], (), None, None, gradients=gradients,
    )  # fmt: skip


def _weights(div: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """exp(scores - top) / total: the subtraction, and the scores."""
    if div.target is not aten.div.Tensor or len(div.args) != 2:
        return None
    exp = div.args[0]
    if not isinstance(exp, fx.Node) or exp.target is not aten.exp.default:
        return None
    sub = exp.args[0]
    if not isinstance(sub, fx.Node) or sub.target is not aten.sub.Tensor or sub.kwargs:
        return None
    scores, top = sub.args
    if not isinstance(scores, fx.Node) or not isinstance(top, fx.Node):
        return None
    return sub, scores


# -- the kernel -----------------------------------------------------------------------------------


class GradientsEmitter(TileEmitter):
    """Builds the kernel."""

    def __init__(
        self,
        facts: Facts,
        attention: Attention,
        roles: Roles,
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        gradients = attention.gradients
        assert gradients is not None
        apart = {attention.first, gradients.source, *(n for n, _ in gradients.ends)}
        nodes = [n for n in attention.nodes if n not in apart]
        super().__init__(facts, attention.name, roles, nodes, hints)
        if roles.row is None or roles.width is None:
            raise refusal(attention.first, "a single query, or values of a single column")
        self.attention = attention
        self.gradients = gradients
        self.row: Atom = roles.row
        self.width: Atom = roles.width
        self.given: dict[fx.Node, Value] = {}
        self.columns = dict(zip(gradients.ends, roles.more, strict=True))
        """End → the axis of its result that scores have not."""
        self.along_keys = [end for end in gradients.ends if self._contracts(end) == roles.key]
        self.loops = 0
        self.whole: sympy.Symbol | None = None
        """1 where nothing may be passed over."""
        self.seen: Seen
        self.hides = False

    def _contracts(self, end: tuple[fx.Node, Path]) -> Atom:
        ((atom,),) = self.roles.space.of((end[0], (0,)))[-1:]
        return atom

    def emit_kernel(self) -> Emitted:
        roles, b = self.roles, self.b
        self.declare_sizes()
        grid = [self.set_axis(a, n) for a, n in zip(roles.outer, roles.outer_names, strict=True)]
        self.set_axis(roles.depth, "d")
        self.set_axis(self.width, "e")
        for number, atom in enumerate(dict.fromkeys(roles.more)):
            if atom not in (roles.depth, self.width):
                self.set_axis(atom, f"f{number}")
        self.band = self._visible()
        self.hides = bool(self.band or self.seen)
        if self.seen:
            self.seen.emit_phase(self.b.block("n"), self.b.block("m"))
        self.sums = {end: self._workspace(f"sum{i}", end) for i, end in enumerate(self.along_keys)}
        with b.grid(*grid, blocks=[1] * len(grid)):
            self._prepare()
            self._over_keys()
            self._store_rows()
        return self.emitted()

    def _workspace(self, name: str, end: tuple[fx.Node, Path]) -> Buffer:
        extents = self.roles.space.extents
        atoms = (*self.roles.outer, self.row, self.columns[end])
        shape = tuple(self.extents.get(a, extents[a]) for a in atoms)
        return self.b.buffer(name, self.acc_dtype, shape, contiguous_strides(shape), "workspace")

    # -- values ------------------------------------------------------------------------------------

    def _load(self, instance: Instance) -> Value:
        if instance.node not in self.given:
            if instance.node.target in PRODUCTS and instance.node in self.attention.nodes:
                raise refusal(instance.node, "a product is read before it is computed")
            return super()._load(instance)
        if instance.index != self.trace.canonical(instance.node) or instance.guards:
            raise refusal(instance.node, "scores are read at other places than their own")
        return self.given[instance.node]

    def _call(self, instance: Instance) -> Any:
        if instance.node is not self.gradients.weights or len(instance.operands) != 2:
            return super()._call(instance)
        exp, total = (self.value(part) for part in instance.operands.values())
        one = self.b.pointwise("div", self.b.const(1.0, total.type.dtype), total)
        return self.b.pointwise("mul", exp, one)

    def _inner(self, end: tuple[fx.Node, Path]) -> Instance:
        """What stands in a product along scores."""
        return self.use(end)

    def _other(self, end: tuple[fx.Node, Path]) -> Instance:
        (path,) = {(0,), (1,)} - {end[1]}
        return self.use((end[0], path))  # type: ignore[arg-type]

    def _axes(self, *atoms: Atom) -> list[Axis]:
        return [self.axis_of(a) for a in (*self.roles.outer, *atoms)]

    # -- hidden keys -------------------------------------------------------------------------------

    def _visible(self) -> Band:
        """The band outside of which all weights, and all that is multiplied, are 0."""
        first, roles = self.attention.first, self.roles
        self.masks = Masks(self.trace.name(self.row), self.trace.name(roles.key), first)
        self.masks.finite = True
        self.masks.added = first.meta["val"].dtype is not torch.float16
        band = self.masks.visible(self.use((self.gradients.sub, (0,))))
        zero = all(_vanishes(self._inner(end), self.gradients.weights) for end in self.columns)
        self.seen = Seen(self, self.masks.tests if zero else [], roles.key, self.row)
        return band if zero else EVERYTHING

    def _rows_seen(self, key: Axis) -> tuple[Size, Size]:
        """Which queries see a tile of keys: the first one, and how many."""
        first = begin_symbol(key)
        every = self.extents[self.row]
        last = sympy.Min(key.size, first + self.b.block("n")) - 1
        begin, end = sympy.Integer(0), sympy.sympify(every)
        for diagonal, constant in self.band.highs:
            if diagonal:
                begin = sympy.Max(begin, first - self.final(constant))
        for diagonal, constant in self.band.lows:
            if diagonal:
                end = sympy.Min(end, last - self.final(constant) + 1)
        if self.seen:
            low, high = self.seen.read()
            begin, end = sympy.Max(begin, low), sympy.Min(end, high + 1)
        size = sympy.Max(0, end - begin)
        if self.whole is not None:
            begin = begin * (1 - self.whole)
            size = sympy.Max(size, every * self.whole)
        return begin, size

    # -- parts -------------------------------------------------------------------------------------

    def _loop(
        self,
        atom: Atom,
        name: str,
        carried: Sequence[Value] = (),
        begin: Size = 0,
        size: Size | None = None,
    ) -> Any:
        end = f"_{self.loops}" if self.loops else ""
        self.loops += 1
        axis = self.b.axis(f"{name}{end}", self.extents[atom] if size is None else size)
        loop = self.b.tile_loop([axis], carried, [self.b.block(name)])
        return self.inside({atom: axis}, {atom: begin}), loop, axis

    def _at(self, end: tuple[fx.Node, Path]) -> list[IndexExpr]:
        atoms = (*self.roles.outer, self.row, self.columns[end])
        return [self.affine(Affine.of(self.trace.name(a))) for a in atoms]

    def _prepare(self) -> None:
        """Sums begin at 0; is there a number that would show through a weight of 0?"""
        b, roles = self.b, self.roles
        outer = self._axes()
        start = [b.expand(self.number(0.0), outer)] if self.hides else []
        inside, loop, _ = self._loop(self.row, "m", start)
        with inside, loop as rows:
            for end, buffer in self.sums.items():
                zero = b.expand(self.number(0.0), self._axes(self.row, self.columns[end]))
                b.store(buffer, self._at(end), zero)
            rows.finish([self._bad(rows.args[0], self._of_rows(), outer)] if self.hides else [])
        if not self.hides:
            return
        keys = [self.use(roles.keys), self.use(roles.values)]
        inside, loop, _ = self._loop(roles.key, "n", rows.results)
        with inside, loop as tiles:
            tiles.finish([self._bad(tiles.args[0], keys, outer)])
        good = b.pointwise("eq", tiles.results[0], self.number(0.0))
        numbers = (b.const(n, torch.int64) for n in (0, 1))
        flag = b.pointwise("where", good, *numbers)
        flag = b.reduce("max", flag, flag.type.axes) if flag.type.axes else flag
        self.whole = b.bind(flag, "whole")

    def _of_rows(self) -> list[Instance]:
        """What is read for each query, whatever the key."""
        gradient = self.use(self.gradients_use())
        found = [self.use(self.roles.queries), gradient]
        name = self.trace.name(self.roles.key)
        for instance in reachable(self._inner(end) for end in self.columns):
            places = [p for p in instance.index if isinstance(p, Affine)]
            of_row = instance.kind == "load" and not any(name in p.axis_names for p in places)
            if of_row and instance.node.meta["val"].is_floating_point():
                found.append(instance)
        return found

    def gradients_use(self) -> tuple[fx.Node, Path]:
        """Where the gradient of the result stands in the product with the values."""
        source, values = self.gradients.source, self.roles.values
        (path,) = {(0,), (1,)} - {values[1]}
        return source, path  # type: ignore[return-value]

    def _bad(self, count: Value, instances: Sequence[Instance], outer: Sequence[Axis]) -> Value:
        """Count what is not finite, large, or a row's number that says: it sees nothing."""
        b = self.b
        top, total = self._row_numbers()
        for instance in instances:
            value = b.cast(self.value(instance), self.acc_dtype)
            size = b.pointwise("abs", value)
            fine = b.pointwise("le", size, self.number(LARGEST_ELEMENT))
            if instance.node is total:
                fine = b.pointwise("and", fine, b.pointwise("gt", size, self.number(0.0)))
            if instance.node is top and self.masks.floor > -math.inf:
                seen = b.pointwise("gt", value, self.number(self.masks.floor))
                fine = b.pointwise("and", fine, seen)
            bad = b.pointwise("where", fine, self.number(0.0), self.number(1.0))
            axes = [a for a in bad.type.axes if a not in outer]
            bad = b.reduce("sum", bad, axes) if axes else bad
            count = b.pointwise("add", count, bad)
        return b.expand(count, outer)

    def _row_numbers(self) -> tuple[Any, Any]:
        return self.gradients.sub.args[1], self.gradients.weights.args[1]

    def _over_keys(self) -> None:
        b, roles = self.b, self.roles
        along_rows = [e for e in self.columns if e not in self.along_keys]
        inside, loop, key = self._loop(roles.key, "n")
        with inside, loop as keys:
            start = [
                b.expand(self.number(0.0), self._axes(roles.key, self.columns[e]))
                for e in along_rows
            ]
            begin, size = self._rows_seen(key)
            within, tiles, _ = self._loop(self.row, "m", start, begin, size)
            with within, tiles as region:
                region.finish(self._tile(along_rows, region.args))
            for end, value in zip(along_rows, region.results, strict=True):
                self._store_end(end, value)
            keys.finish()

    def _tile(self, along_rows: list[Any], sums: Sequence[Value]) -> list[Value]:
        b, roles, acc = self.b, self.roles, self.acc_dtype
        first, source = self.attention.first, self.gradients.source
        for product, uses, atom in (
            (first, (roles.queries, roles.keys), roles.depth),
            (source, (self.gradients_use(), roles.values), self.width),
        ):
            left, right = (self.value(self.use(u)) for u in uses)
            scores = b.dot(left, right, self.axis_of(atom), acc, hint="scores")
            self.given[product] = b.cast(scores, product.meta["val"].dtype)
        found = []
        for end in self.columns:
            inner, other = self.value(self._inner(end)), self.value(self._other(end))
            inner = b.expand(inner, self._axes(self.row, roles.key))
            axis = self.axis_of(self._contracts(end))
            if end in self.sums:
                old = b.load(self.sums[end], self._at(end))
                b.store(self.sums[end], self._at(end), b.dot(inner, other, axis, acc, old))
            else:
                found.append(b.dot(inner, other, axis, acc, sums[along_rows.index(end)]))
        self.given.clear()
        return found

    def _store_end(self, end: tuple[fx.Node, Path], value: Value) -> None:
        output = self.attention.outputs[list(self.columns).index(end)]
        value = self.b.cast(value, end[0].meta["val"].dtype)
        if output is not end[0]:
            self.given[end[0]] = value
            value = self.value(self.trace.output(output))
        self.store_value(output, value)

    def _store_rows(self) -> None:
        inside, loop, _ = self._loop(self.row, "m")
        with inside, loop as rows:
            for end, buffer in self.sums.items():
                self._store_end(end, self.b.load(buffer, self._at(end)))
            rows.finish()


def _vanishes(at: Instance, weights: fx.Node) -> bool:
    """Whether a value is 0 where the weight is (and everything else finite)."""
    if at.node is weights:
        return True
    if at.kind == "constant":
        return constant_of(at) == 0
    if at.kind != "compute":
        return False
    target, parts = at.node.target, list(at.operands.values())
    zero = [_vanishes(p, weights) for p in parts]
    if target is aten.mul.Tensor:
        return any(zero)
    if target is aten.div.Tensor:
        return zero[0] and (len(zero) == 1 or not _depends(parts[1], weights))
    if target in (aten.neg.default, prims.convert_element_type.default, aten._to_copy.default):
        return zero[0]
    if target in (aten.add.Tensor, aten.sub.Tensor):
        return len(zero) == 2 and all(zero)
    if target is prims.fma.default and len(zero) == 3:
        return (zero[0] or zero[1]) and zero[2]
    if target is aten.where.self and len(zero) == 3:
        return zero[1] and zero[2]
    return False


def _depends(at: Instance, node: fx.Node) -> bool:
    return any(i.node is node for i in reachable([at]))
