"""What masks in memory let a tile see, found when a kernel runs: bounds for its loops.

What flows in: the `Test`s of an attention's masks, an emitter. What flows out: a phase before the
products that stores, for each position along one axis of the scores, the first and the last
position along the other that some mask does not hide; and those of a tile, bound to symbols.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch

from torch_helion.capture.attention_base import TileEmitter
from torch_helion.capture.attention_masks import ADDED, Test
from torch_helion.capture.axes import Atom
from torch_helion.capture.collapse import reachable
from torch_helion.capture.emit import Phase
from torch_helion.capture.sizes import hint_of
from torch_helion.capture.trace import Gathered
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

LEAST_SHARED = 4
"""Heads that share a mask, if it is looked through before the products."""


class Seen:
    """The masks of one kernel."""

    def __init__(
        self, emitter: TileEmitter, tests: Sequence[Test], along: Atom | None, over: Atom
    ) -> None:
        """`along`: the axis whose positions get bounds (None: there is one position); `over`: the
        axis that the bounds are of.
        """
        self.emitter = emitter
        self.along = along
        self.over = over
        names = self._names(tests)
        trace, outer = emitter.trace, emitter.roles.outer
        self.heads = [a for a in outer if trace.name(a) in names]
        self.by_position = along is not None and trace.name(along) in names
        others = [a for a in outer if a not in self.heads]
        shared = math.prod(
            hint_of(emitter.roles.space.extents[a], emitter.hints) or 1 for a in others
        )
        over_named = trace.name(over) in names
        whole = self.by_position and over_named
        self.tests = list(tests) if over_named and (not whole or shared >= LEAST_SHARED) else []
        """None where looking through them would cost much against the products."""
        self.buffers: list[Buffer] = []

    def __bool__(self) -> bool:
        return bool(self.tests)

    def _names(self, tests: Sequence[Test]) -> set[str]:
        """The axes of the masks."""
        emitter = self.emitter
        places = [p for i in reachable(t.at for t in tests) for p in i.index]
        atoms = [*emitter.roles.outer, self.over, *([] if self.along is None else [self.along])]
        return {n for a in atoms if mentions(places, n := emitter.trace.name(a))}

    def emit_phase(self, block: Size, step: Size) -> None:
        """`block`: of a tile of positions; `step`: of what is looked through at once."""
        e, b = self.emitter, self.emitter.b
        outer, e.phase = e.phase, Phase(0, {}, {})
        grid = [e.set_axis(a, f"w{number}") for number, a in enumerate(self.heads)]
        blocks: list[Size] = [1] * len(grid)
        if self.by_position and self.along is not None:
            grid.append(e.set_axis(self.along, "wm"))
            blocks.append(block)
        shape = tuple(a.size for a in grid)
        self.buffers = [
            b.buffer(name, torch.int64, shape, contiguous_strides(shape), "workspace")
            for name in ("firsts", "lasts")
        ]
        extent = e.extents[self.over]
        with b.grid(*grid, blocks=blocks):
            axis = b.axis("wn", extent)
            ends = (b.size_value(extent), b.const(-1, torch.int64))
            start = [b.expand(end, grid) for end in ends]
            inside = e.inside({self.over: axis})
            with inside, b.tile_loop([axis], start, [step]) as loop:
                loop.finish(self._look(loop.args, ends, [*grid, axis], axis))
            for buffer, value in zip(self.buffers, loop.results, strict=True):
                b.store(buffer, [Affine.of(a) for a in grid], value)
        e.phase = outer

    def _look(
        self, state: Sequence[Value], ends: Sequence[Value], axes: Sequence[Axis], axis: Axis
    ) -> list[Value]:
        e, b = self.emitter, self.emitter.b
        hidden: Value | None = None
        for test in self.tests:
            value = e.value(test.at)
            if test.wanted is None:
                value = b.pointwise("le", b.cast(value, e.acc_dtype), e.number(ADDED))
            elif not test.wanted:
                value = b.pointwise("not", value)
            hidden = value if hidden is None else b.pointwise("or", hidden, value)
        assert hidden is not None
        place = e.place_of(self.over)
        found = []
        for old, end, fn in zip(state, ends, ("min", "max"), strict=True):
            seen = b.expand(b.pointwise("where", hidden, end, place), axes)
            found.append(b.pointwise(f"{fn}imum", old, b.reduce(fn, seen, [axis])))
        return found

    def read(self) -> list[sympy.Symbol]:
        """The first and the last position that the current tile sees."""
        e, b = self.emitter, self.emitter.b
        found = []
        for buffer, fn in zip(self.buffers, ("min", "max"), strict=True):
            index: list[IndexExpr] = [
                Affine((), begin_symbol(e.axis_of(atom))) for atom in self.heads
            ]
            if self.by_position and self.along is not None:
                index.append(e.affine(Affine.of(e.trace.name(self.along))))
            value = b.load(buffer, index)
            if value.type.axes:
                value = b.reduce(fn, value, value.type.axes)
            found.append(b.bind(value, "seen"))
        return found


def mentions(places: Iterable[Any], name: str) -> bool:
    """Whether one of the places lies along an axis."""
    for place in places:
        if isinstance(place, Gathered):
            if mentions(place.index.index, name):
                return True
        elif name in place.axis_names:
            return True
    return False
