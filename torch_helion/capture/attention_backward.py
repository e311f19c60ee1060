"""The backward kernel of ATen's attention: gradients of queries, keys and values in one sweep.

What flows in: an `Attention` (a call of `_scaled_dot_product_flash_attention_for_cpu_backward`) and
its `Roles`. What flows out: the kernel, as `attention_emit.py` gives one. Weights are computed
again from the scores and their logsumexp, tile by tile. A grid step is one head of the keys, so
that all three gradients come from one pass over the scores (five products for each tile, not
seven):

    delta = sum over e of dout · out
    for each tile of keys:
        for each tile of queries (of each head that shares the keys):
            p = exp(f(q · kᵀ) - logsumexp)
            ds = p · (dout · vᵀ - delta)
            dv += pᵀ · dout;  dk += dsᵀ · q;  dq += ds · k        dq in a workspace
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from torch_helion.capture.attention_base import TileEmitter
from torch_helion.capture.attention_match import Attention
from torch_helion.capture.attention_space import Roles
from torch_helion.capture.axes import Atom, refusal
from torch_helion.capture.emit import Emitted
from torch_helion.capture.node_facts import Facts
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

GRADIENT, OUT, LOGSUMEXP = (0,), (4,), (5,)
"""Where the operator has them."""


class BackwardEmitter(TileEmitter):
    """Builds a backward kernel."""

    def __init__(
        self,
        facts: Facts,
        attention: Attention,
        roles: Roles,
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        node = attention.first
        apart = {node, *node.users}
        super().__init__(
            facts, attention.name, roles, [n for n in attention.nodes if n not in apart], hints
        )
        if roles.row is None or roles.width is None:
            raise refusal(node, "a single query, or values of a single column")
        assert attention.flash is not None
        self.node = node
        self.flash = attention.flash
        self.row: Atom = roles.row
        self.width: Atom = roles.width
        self.shared = [a for a in roles.outer if a in roles.shared]
        self.heads = [a for a in roles.outer if a not in roles.shared]
        self.items = {int(u.args[1]): u for u in node.users}  # type: ignore[arg-type]
        self.statistics: list[Buffer] = []
        """delta and logsumexp of each query, side by side"""
        self.loops = 0

    # -- the kernel -------------------------------------------------------------------------------

    def emit_kernel(self) -> Emitted:
        self.declare_sizes()
        names = dict(zip(self.roles.outer, self.roles.outer_names, strict=True))
        grid = [self.set_axis(atom, names[atom]) for atom in self.heads]
        self.set_axis(self.roles.depth, "d")
        self.set_axis(self.width, "e")
        rows = (*self.roles.outer, self.row)
        self.statistics = [self._workspace(name, rows) for name in ("delta", "lse")]
        self.sums = self._workspace("dq", (*rows, self.roles.depth))
        with self.b.grid(*grid, blocks=[1] * len(grid)):
            self._prepare()
            self._over_keys()
            self._store_queries()
        return self.emitted()

    def _workspace(self, name: str, atoms: Sequence[Atom]) -> Buffer:
        found = self.roles.space.extents
        shape = tuple(self.extents.get(a, found[a]) for a in atoms)
        return self.b.buffer(name, self.acc_dtype, shape, contiguous_strides(shape), "workspace")

    def _at(self, *more: Atom) -> list[IndexExpr]:
        """The place of this tile of queries in a workspace."""
        atoms = (*self.roles.outer, self.row, *more)
        return [self.affine(Affine.of(self.trace.name(a))) for a in atoms]

    def _rows(self, carried: Sequence[Value] = (), begin: Size = 0) -> tuple[Any, Any]:
        """A loop over tiles of queries, of each head that shares the keys; what it is inside of."""
        b, end = self.b, f"_{self.loops}" if self.loops else ""
        self.loops += 1
        axes: dict[Atom, Axis] = {}
        for number, atom in enumerate(self.shared):
            axes[atom] = b.axis(f"g{number}{end}", self.extents[atom])
            self.points.add(axes[atom].name)
        blocks: list[Size] = [1] * len(axes)
        size = self.extents[self.row]
        axes[self.row] = b.axis(f"m{end}", size if begin == 0 else sympy.Max(0, size - begin))
        loop = b.tile_loop(list(axes.values()), carried, [*blocks, b.block("m")])
        return self.inside(axes, {self.row: begin}), loop

    def _axes(self, *atoms: Atom) -> list[Axis]:
        return [self.axis_of(a) for a in (*self.heads, *atoms)]

    # -- parts ------------------------------------------------------------------------------------

    def _operand(self, path: tuple[int]) -> Value:
        return self.value(self.use((self.node, path)))

    def _prepare(self) -> None:
        """What is kept for each query: the sum of dout · out, the logsumexp; dq begins at 0."""
        b, depth = self.b, self.roles.depth
        inside, loop = self._rows()
        with inside, loop as rows:
            out, gradient = (b.cast(self._operand(p), self.acc_dtype) for p in (OUT, GRADIENT))
            delta = b.reduce("sum", b.pointwise("mul", gradient, out), [self.axis_of(self.width)])
            lse = b.cast(self._operand(LOGSUMEXP), self.acc_dtype)
            for buffer, value in zip(self.statistics, (delta, lse), strict=True):
                b.store(buffer, self._at(), b.expand(value, self._axes(self.row)))
            zero = b.expand(self.number(0.0), self._axes(self.row, depth))
            b.store(self.sums, self._at(depth), zero)
            rows.finish()

    def _over_keys(self) -> None:
        b, roles = self.b, self.roles
        key = b.axis("n", self.extents[roles.key])
        loop = b.tile_loop([key], [], [b.block("n")])
        with self.inside({roles.key: key}), loop as keys:
            start = [
                b.expand(self.number(0.0), self._axes(roles.key, a))
                for a in (roles.depth, self.width)
            ]
            inside, rows = self._rows(start, begin_symbol(key) if self.flash.causal else 0)
            with inside, rows as region:
                region.finish(self._tile(region.args))
            for number, value in ((1, region.results[0]), (2, region.results[1])):
                item = self.items[number]
                if number == 1:
                    value = b.pointwise("mul", value, self.number(self.flash.scale))
                self.store_value(item, b.cast(value, item.meta["val"].dtype))
            keys.finish()

    def _tile(self, sums: Sequence[Value]) -> list[Value]:
        """New sums of dk and dv."""
        b, roles, acc = self.b, self.roles, self.acc_dtype
        row, depth, width = (self.axis_of(a) for a in (self.row, roles.depth, self.width))
        uses = (roles.queries, roles.keys, roles.values)
        queries, keys, values = (self.value(self.use(u)) for u in uses)
        gradient = self._operand(GRADIENT)
        delta, lse = (b.load(buffer, self._at()) for buffer in self.statistics)
        x = self.flash_score(b.dot(queries, keys, depth, acc, hint="scores"), self.node, self.flash)
        p = b.pointwise("exp", b.pointwise("sub", x, lse), hint="p")
        dp = b.dot(gradient, values, width, acc, hint="dp")
        ds = b.pointwise("mul", p, b.pointwise("sub", dp, delta), hint="ds")
        p, ds = (b.cast(t, keys.type.dtype) for t in (p, ds))
        dq = b.load(self.sums, self._at(roles.depth))
        dq = b.dot(ds, keys, self.axis_of(roles.key), acc, dq, hint="dq")
        b.store(self.sums, self._at(roles.depth), dq)
        dk = b.dot(ds, queries, row, acc, sums[0], hint="dk")
        return [dk, b.dot(p, gradient, row, acc, sums[1], hint="dv")]

    def _store_queries(self) -> None:
        b, item = self.b, self.items[0]
        inside, loop = self._rows()
        with inside, loop as rows:
            dq = b.load(self.sums, self._at(self.roles.depth))
            dq = b.pointwise("mul", dq, self.number(self.flash.scale))
            self.store_value(item, b.cast(dq, item.meta["val"].dtype))
            rows.finish()
