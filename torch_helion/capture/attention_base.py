"""What the kernels of an attention share: axes by their roles, sizes, positions, ATen's masks.

What flows in: a region, its `Roles`. What flows out: an emitter whose axes are those of the roles,
and whose positions along an axis may count from where a loop begins. `attention_emit.py` makes
forward kernels of it, `attention_backward.py` backward ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion.capture.attention_match import Flash
from torch_helion.capture.attention_space import Roles
from torch_helion.capture.axes import Atom, Use
from torch_helion.capture.emit import Emitted, Emitter
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.template import Template
from torch_helion.capture.trace import Instance, Trace
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Axis, Size, begin_symbol

F32, F64 = torch.float32, torch.float64


class TileEmitter(Emitter):
    """Builds one kernel over tiles of queries and keys."""

    def __init__(
        self,
        facts: Facts,
        name: str,
        roles: Roles,
        nodes: Sequence[fx.Node],
        hints: Mapping[sympy.Symbol, int],
    ) -> None:
        """`nodes`: those that are evaluated where they are needed."""
        some = [*roles.outer, roles.row, roles.key, roles.depth, roles.width, *roles.more]
        atoms = list(dict.fromkeys(a for a in some if a is not None))
        full = frozenset(a for a in atoms if a in (roles.depth, roles.width, *roles.more))
        template = Template(frozenset(atoms) - full, full)
        trace = Trace(facts, roles.space, nodes, template, hints)
        super().__init__(trace, name, [(a,) for a in atoms])
        self.roles = roles
        self.hints = hints
        self.extents: dict[Atom, Size] = {}
        self.shifts: dict[str, Size] = {}
        """Axis of the kernel → the position of its first element."""
        self.points: set[str] = set()
        """Axes of loops over single positions: values do not have them."""
        queries = dict(facts.operands(roles.queries[0]))[roles.queries[1]]
        self.acc_dtype = F64 if queries.meta["val"].dtype is F64 else F32

    def emitted(self) -> Emitted:
        kernel = self.b.build()
        outer = tuple(self.sizes.values[s] for s in kernel.sizes)
        order = {b.name: n for b, n in zip(self._arguments(), self.tensors, strict=True)}
        tensors = tuple(order[b.name] for b in kernel.arguments)
        return Emitted(kernel, tensors, outer, self.sizes.hints())

    # -- axes -------------------------------------------------------------------------------------

    def declare_sizes(self) -> None:
        """All size arguments that are extents, in the order of the roles."""
        for name, atom in self.roles.sizes().items():
            self._size(atom, name)

    def _size(self, atom: Atom, name: str) -> None:
        """The extent of an axis: a size argument, or the number of heads that share keys."""
        host = self.roles.space.extents[atom]
        shared = atom in self.roles.shared and isinstance(host, int)
        size = host if shared else self.sizes.declare(self.b, host, name)
        extent = self.trace.size(atom)
        if isinstance(extent, sympy.Symbol):
            self.sizes.bind(extent, size)
        self.extents[atom] = size

    def set_axis(self, atom: Atom, name: str, size: Size | None = None) -> Axis:
        """Declare an axis, and let it be what the atom is from here on."""
        whole = atom in (self.roles.depth, self.roles.width, *self.roles.more)
        extent = self.roles.space.extents[atom] if whole else self.extents[atom]
        axis = self.b.axis(name, extent if size is None else size, "full" if whole else "block")
        self.phase.axes[self.trace.name(atom)] = axis
        return axis

    def axis_of(self, atom: Atom) -> Axis:
        return self.phase.axes[self.trace.name(atom)]

    @contextmanager
    def inside(self, axes: Mapping[Atom, Axis], shifts: Mapping[Atom, Size] | None = None) -> Any:
        """Within a loop: atoms are these axes; values made here are not known outside."""
        outer, values = dict(self.phase.axes), self.phase.values
        for atom, axis in axes.items():
            self.phase.axes[self.trace.name(atom)] = axis
            self.shifts[axis.name] = (shifts or {}).get(atom, 0)
        self.phase.values = dict(values)
        yield
        self.phase.axes, self.phase.values = outer, values

    # -- places and values ------------------------------------------------------------------------

    def affine(self, place: Affine) -> Affine:
        """A place over the kernel's axes, which may begin elsewhere than at 0."""
        found = super().affine(place)
        moved = sum((c * self.shifts.get(n, 0) for n, c in found.terms), sympy.Integer(0))
        moved += sum(c * begin_symbol(n) for n, c in found.terms if n in self.points)
        if moved == 0:
            return found
        terms = tuple((n, c) for n, c in found.terms if n not in self.points)
        return Affine(terms, found.offset + moved)

    def place_of(self, atom: Atom) -> Value:
        """Positions along an atom's axis."""
        return self.position(Affine.of(self.trace.name(atom)))

    def use(self, use: Use) -> Instance:
        node, path = use
        return self.trace.operand(node, path, self.trace.canonical(use), ())

    def number(self, x: float) -> Value:
        return self.b.const(x, self.acc_dtype)

    # -- scores of ATen's operators ---------------------------------------------------------------

    def flash_score(self, product: Value, node: fx.Node, flash: Flash) -> Value:
        """What ATen's operator does to a product of a query and a key."""
        b, row = self.b, self.roles.row
        x = b.pointwise("mul", product, self.number(flash.scale))
        if flash.mask is not None:
            mask = self.value(self.use((node, flash.mask)))
            x = b.pointwise("add", x, b.cast(mask, self.acc_dtype))
        if flash.causal:
            mine = b.const(0, torch.int64) if row is None else self.place_of(row)
            seen = b.pointwise("ge", mine, self.place_of(self.roles.key))
            x = b.pointwise("where", seen, x, self.number(-math.inf))
        return x
