"""The shape of a region's kernel: what is a grid axis, what is whole inside a step, what needs
a second phase.

In: a region's nodes with their axis space. Out: candidate `Template`s, the best first, or the
reason why there is none. Three forms, decided by the reductions:

1. none: every axis is a grid axis.
2. inner: the folded axes are whole ("full") inside a grid step, the others are grid axes. Chains of
   reductions over the same axes (softmax, norms and the row sums of their backward) are one step.
3. outer: a reduction over grid axes. Phase 1 folds each tile to partial results in a workspace;
   phase 2 folds those and runs what depends on them (column sums, batch statistics, losses).
   Inner and outer reductions may stand in one region (a norm's backward).

A small whole (all extents static, few elements) may be a single step in which every axis is
full; then reductions may follow each other in any manner.

Rules that keep a kernel sound and free of repeated work: everything stored by phase 1 and every
reduction has all grid axes (nothing is stored or folded twice); a node that lacks some is
computed again along them and must be cheap; one root covers the whole iteration space.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
from torch import fx

from torch_helion.capture.axes import Atom, Atoms, Space
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import hint_of
from torch_helion.lowering.reduction import ASSOCIATIVE
from torch_helion.lowering.view import product


@dataclass(frozen=True)
class Limits:
    """What bounds a region. Numbers of the design, not of one machine."""

    max_nodes: int = 64
    max_tensors: int = 20
    max_single_step: int = 16384
    """elements of a static region that may be one grid step with every axis full"""
    max_nested: int = 65536
    """elements of the full axes together where reductions fold different ones of them"""
    short_fold: int = 32
    """a fold over leading axes up to this long needs no second phase"""
    max_repeats: int = 4
    """how often an expensive node may be computed again along grid axes that it lacks"""
    max_repeated_nodes: int = 8
    """cheap nodes that may be computed again along grid axes that they lack"""


@dataclass(frozen=True)
class Template:
    """Roles of atoms and nodes."""

    grid: frozenset[Atom]
    full: frozenset[Atom]
    outer: tuple[fx.Node, ...] = ()
    """Reductions that are finished in phase 2."""
    over: frozenset[Atom] = frozenset()
    """The grid atoms that they fold."""
    finish: tuple[fx.Node, ...] = ()
    """What depends on them: computed in phase 2."""
    kept: frozenset[Atom] = frozenset()
    """Atoms of phase 2."""


@dataclass(frozen=True)
class Fold:
    """A reduction: all atoms of its operand in logical order, those that it folds, those of its
    result.
    """

    node: fx.Node
    atoms: Atoms
    folded: frozenset[Atom]

    @property
    def kept(self) -> Atoms:
        return tuple(a for a in self.atoms if a not in self.folded)

    @property
    def is_inner(self) -> bool:
        """Whether it keeps an outer axis or none of the leading ones: rows, not columns, not
        everything.
        """
        lead = self.atoms[: len(self.folded)]
        return set(lead) != self.folded


@dataclass(frozen=True)
class Shape:
    """What of a region decides its template."""

    facts: Facts
    space: Space
    nodes: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    hints: Mapping[sympy.Symbol, int]
    cost: Callable[[fx.Node], int]
    """Rough vector operations of one element of a node."""

    _atoms: dict[fx.Node, frozenset[Atom]] = field(default_factory=dict)

    def atoms(self, node: fx.Node) -> frozenset[Atom]:
        found = self._atoms.get(node)
        if found is None:
            found = frozenset(self.space.atoms(node)) if node in self.space.dims else frozenset()
            self._atoms[node] = found
        return found

    def extent(self, atoms: Sequence[Atom] | frozenset[Atom]) -> int | None:
        """The likely number of elements of a product of atoms."""
        return hint_of(product(self.space.extents[a] for a in atoms), self.hints)

    @functools.cached_property
    def folds(self) -> list[Fold]:
        found = []
        for node in self.nodes:
            if node in self.space.folded:
                (first, _), *_ = self.facts.operands(node)
                folded = frozenset(self.space.leaves(self.space.folded[node]))
                if folded:
                    found.append(Fold(node, self.space.atoms((node, first)), folded))
        return found


def templates(shape: Shape, limits: Limits) -> tuple[list[Template], str]:
    """Every sound template, the best first; with none, why the last one was refused."""
    found: list[Template] = []
    why = ""
    for template in _candidates(shape, limits):
        reason = template if isinstance(template, str) else check(shape, template, limits)
        if reason is None:
            assert isinstance(template, Template)
            found.append(template)
        else:
            why = why or str(reason)
    return found, why


def _candidates(shape: Shape, limits: Limits) -> Iterator[Template | str]:
    folds = shape.folds
    every: frozenset[Atom] = frozenset().union(
        *(shape.atoms(o) for o in shape.outputs), *(f.atoms for f in folds)
    )
    if not folds:
        yield Template(every, frozenset())
        return
    all_inner = _inner(every, folds)
    if all(f.is_inner for f in folds):
        yield all_inner
    else:
        short = max((shape.extent(f.folded) or 0) for f in folds if not f.is_inner)
        if short <= limits.short_fold and all_inner.grid:
            yield all_inner
        yield from _outer(shape, every, folds)
        yield all_inner
    sizes = [shape.space.extents[a] for a in every]
    whole = any(not f.kept for f in folds)
    if (
        whole
        and all(isinstance(n, int) for n in sizes)
        and int(product(sizes)) <= limits.max_single_step
    ):
        yield Template(frozenset(), every)


def _inner(every: frozenset[Atom], folds: Sequence[Fold]) -> Template:
    full = frozenset().union(*(f.folded for f in folds))
    return Template(every - full, full)


def _outer(shape: Shape, every: frozenset[Atom], folds: Sequence[Fold]) -> Iterator[Template | str]:
    """Column sums and whole sums in two phases; folds over rows inside of the first."""
    full = frozenset().union(*(f.folded for f in folds if f.is_inner))
    outer = [f for f in folds if not f.folded <= full]
    if any(f.is_inner for f in outer) or not outer:
        return
    over = outer[0].folded - full
    if any(f.folded - full != over for f in outer):
        yield "reductions over different leading axes"
        return
    if any(set(f.kept) != set(outer[0].kept) for f in outer):
        yield "reductions over leading axes that keep different ones"
        return
    for f in outer:
        if f.node.target not in ASSOCIATIVE:
            yield f"{f.node.target} cannot be finished in a second phase"
            return
    nodes = tuple(f.node for f in outer)
    finish = _dependents(shape, nodes)
    kept = frozenset(outer[0].kept)
    yield Template(every - full, full, nodes, over, finish, kept)
    lead = [a for a in outer[0].atoms if a in over]
    if len(lead) > 1:
        # They may not be one axis: then only the outermost one is cut.
        rest = frozenset(lead[1:])
        yield Template(every - full - rest, full | rest, nodes, frozenset(lead[:1]), finish, kept)


def _dependents(shape: Shape, sources: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    seen = set(sources)
    out = []
    for node in shape.nodes:
        if node in seen:
            continue
        if any(n in seen for n in node.all_input_nodes):
            seen.add(node)
            if not (shape.facts.kind(node) == "item" and node.args[0] in sources):
                out.append(node)
    return tuple(out)


# -- checks -------------------------------------------------------------------------------------


def check(shape: Shape, t: Template, limits: Limits) -> str | None:
    """Why the region cannot have this template; None if it can."""
    folds = shape.folds
    second = {*t.outer, *t.finish}
    inner = [f for f in folds if f.node not in t.outer]
    if any(f.node in second for f in inner):
        return "a reduction of what is only known in the second phase"
    stored = [o for o in shape.outputs if not _in_second(shape, o, second)]
    roots = [(f.node, f.atoms) for f in folds] + [(o, shape.space.atoms(o)) for o in stored]
    for node, atoms in roots:
        if not t.grid.issubset(atoms):
            return f"{node.name} lacks an axis that other results have"
    whole = t.grid | t.full
    cover = next((atoms for _, atoms in roots if whole.issubset(atoms)), None)
    if cover is None:
        return "no node covers the whole iteration space"
    return (
        _check_folds(shape, t, inner, limits)
        or _check_second(shape, t)
        or _check_repeats(shape, t, cover, second, limits)
    )


def _in_second(shape: Shape, node: fx.Node, second: set[fx.Node]) -> bool:
    return node in second or shape.facts.call(node) in second


def _check_folds(shape: Shape, t: Template, inner: Sequence[Fold], limits: Limits) -> str | None:
    for f in inner:
        if not f.folded <= t.full:
            return f"{f.node.name} reduces grid axes"
    if all(f.folded == t.full for f in inner):
        return None
    size = shape.extent(t.full)
    static = all(isinstance(shape.space.extents[a], int) for a in t.full)
    limit = limits.max_nested if t.grid else limits.max_single_step
    if size is None or size > limit or not (static or t.grid):
        return "reductions over different axes that are long together"
    return None


def _check_second(shape: Shape, t: Template) -> str | None:
    second = {*t.outer, *t.finish}
    for node in t.finish:
        if node in shape.space.dims and not shape.atoms(node) <= t.kept:
            return f"{node.name} needs a finished reduction for every element"
        if node in shape.outputs and shape.atoms(node) != t.kept:
            return f"{node.name} lacks an axis that other results have"
    inside = set(shape.nodes)
    work, seen = list(t.finish), set(t.finish)
    while work:
        for operand in work.pop().all_input_nodes:
            if operand in seen or operand in t.outer or operand not in inside:
                continue
            if operand not in second and operand in shape.space.folded:
                return f"{operand.name} would be reduced again in the second phase"
            if operand in shape.space.dims and not shape.atoms(operand) <= t.kept:
                return f"{operand.name} is needed in both phases"
            seen.add(operand)
            work.append(operand)
    return None


def _check_repeats(
    shape: Shape, t: Template, cover: Atoms, second: set[fx.Node], limits: Limits
) -> str | None:
    """Nodes that lack a grid axis are computed again along it: a few cheap ones only.

    One that only lacks inner axes (a statistic of a row beside the row) is computed once a
    tile: that is free.
    """
    count = 0
    for node in shape.nodes:
        atoms = shape.atoms(node)
        # Axes that are not iterated are those of moved data.
        if not atoms or t.grid <= atoms or not atoms <= t.grid | t.full or node in second:
            continue
        if shape.facts.kind(node) not in ("compute", "move"):
            continue
        missing = t.grid - atoms
        last = max(cover.index(a) for a in atoms)
        if all(cover.index(a) > last for a in missing):
            continue
        count += 1
        repeats = shape.extent(missing)
        if shape.cost(node) >= EXPENSIVE and (repeats is None or repeats > limits.max_repeats):
            return f"{node.name} would be computed {repeats} times"
    if count > limits.max_repeated_nodes:
        return f"{count} nodes would be computed again along axes that they lack"
    return None


EXPENSIVE = 8
"""Vector operations from which a node's value is better stored than computed again."""
