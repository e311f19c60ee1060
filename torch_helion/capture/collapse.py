"""Which axes of a traced region run together, and in which order its axes stand.

In: a `Trace` with the instances of its outputs. Out: runs of atoms, outer to inner: each run is
one kernel axis. Two neighbouring axes are one where every value depends on both or on neither,
every access moves along them as along one contiguous dimension, and nothing looks at one of
them alone. Fewer axes mean less index arithmetic, longer loops, and one grid for [B, S]
whatever B and S are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from torch_helion.capture.axes import Atom, Atoms
from torch_helion.capture.sizes import hint_of, shape_of, strides_of
from torch_helion.capture.trace import Gathered, Index, Instance, Trace
from torch_helion.ir.types import Affine, Size
from torch_helion.lowering.reduction import ASSOCIATIVE
from torch_helion.lowering.view import plus, same, times

aten = torch.ops.aten
prims = torch.ops.prims

# Creations whose value is the same everywhere.
UNIFORM = frozenset(
    (
        aten.full.default,
        aten.scalar_tensor.default,
        aten.zeros.default,
        aten.ones.default,
        aten.empty.memory_format,
        aten.empty_strided.default,
        aten.empty_permuted.default,
        prims.full.default,
        prims.scalar_tensor.default,
        prims.empty_strided.default,
    )
)


@dataclass(frozen=True)
class Dimension:
    """One dimension of an access that moves through memory."""

    place: Affine | Gathered
    host: Size
    extent: Size
    stride: Size
    """Host stride."""


@dataclass(frozen=True)
class Access:
    """A load or store: its dimensions of extent and stride other than 1 and 0."""

    node: fx.Node
    dimensions: tuple[Dimension, ...]


def access_of(trace: Trace, node: fx.Node, key: object, index: Index) -> Access:
    found = []
    for place, host, extent, stride in zip(
        index, shape_of(node), trace.shape(key), strides_of(node), strict=True
    ):
        if host == 1 or (stride == 0 and isinstance(place, Affine)):
            continue
        found.append(Dimension(place, host, extent, stride))
    return Access(node, tuple(found))


@dataclass
class Region:
    """Everything that bears on which axes may be one."""

    trace: Trace
    stores: dict[fx.Node, Instance]
    folds: dict[fx.Node, Instance]
    """Reductions: the instances of their calls."""
    instances: tuple[Instance, ...]

    @staticmethod
    def of(trace: Trace, stores: dict[fx.Node, Instance], others: Iterable[Instance]) -> Region:
        instances = reachable([*stores.values(), *others])
        folds = {
            i.node: i for i in instances if i.node in trace.space.folded and i.kind == "compute"
        }
        return Region(trace, stores, folds, instances)

    def accesses(self) -> list[Access]:
        found = [
            access_of(self.trace, i.node, i.use, i.index)
            for i in self.instances
            if i.kind == "load"
        ]
        found += [access_of(self.trace, node, node, i.index) for node, i in self._stored()]
        return found

    def _stored(self) -> Iterable[tuple[fx.Node, Instance]]:
        for node in self.stores:
            canonical = Instance("load", node, self.trace.canonical(node))
            yield node, canonical


def reachable(roots: Iterable[Instance]) -> tuple[Instance, ...]:
    """Every instance below `roots`, operands first."""
    order: dict[Instance, None] = {}
    work: list[tuple[Instance, bool]] = [(root, False) for root in reversed(list(roots))]
    while work:
        instance, is_done = work.pop()
        if is_done:
            order[instance] = None
        elif instance not in order:
            work.append((instance, True))
            work += [(part, False) for part in reversed(instance.parts())]
    return tuple(order)


# -- order ----------------------------------------------------------------------------------------


def ordered_atoms(region: Region, atoms: frozenset[Atom]) -> Atoms:
    """`atoms` from the one with the longest step in memory to the one with the shortest.

    The access that moves along most of them decides, stores before loads.
    """
    trace = region.trace
    accesses = [access_of(trace, n, n, trace.canonical(n)) for n in region.stores]
    accesses += [
        access_of(trace, i.node, i.use, i.index) for i in region.instances if i.kind == "load"
    ]
    order: list[Atom] = []
    left = set(atoms)
    while left:
        steps = max((_steps(region, a, left) for a in accesses), key=len, default={})
        if not steps:
            order += sorted(left)
            break
        order += sorted(steps, key=lambda atom: (-steps[atom][0], steps[atom][1]))
        left -= set(steps)
    return tuple(order)


def _steps(region: Region, access: Access, atoms: set[Atom]) -> dict[Atom, tuple[int, int]]:
    """Likely distance in memory of neighbours along each atom, and its logical position."""
    trace = region.trace
    found: dict[Atom, tuple[int, int]] = {}
    for dimension in access.dimensions:
        if not isinstance(dimension.place, Affine):
            continue
        for name, coefficient in dimension.place.terms:
            atom = trace.atoms[name]
            step = trace.sizes.to_host(coefficient) * dimension.stride
            number = hint_of(step, trace.sizes.graph_hints)
            if atom in atoms:
                found[atom] = (abs(number) if number is not None else 0, len(found))
    return found


# -- runs -----------------------------------------------------------------------------------------


def runs_of(region: Region, atoms: Atoms, together: Callable[[Atom, Atom], bool]) -> list[Atoms]:
    """Neighbours of `atoms` joined into runs where they may be one axis; `together`: same role."""
    dependencies = {i: _dependencies(region, i) for i in region.instances}
    known: dict[Instance, frozenset[Atom]] = {}
    for instance in region.instances:
        known[instance] = dependencies[instance](known)
    accesses = region.accesses()
    runs: list[Atoms] = []
    for atom in atoms:
        if (
            runs
            and together(runs[-1][-1], atom)
            and _one(region, accesses, known, runs[-1][-1], atom)
        ):
            runs[-1] = (*runs[-1], atom)
        else:
            runs.append((atom,))
    return runs


def _dependencies(
    region: Region, instance: Instance
) -> Callable[[dict[Instance, frozenset[Atom]]], frozenset[Atom]]:
    trace = region.trace

    def affine(places: Iterable[object]) -> set[Atom]:
        return {trace.atoms[n] for p in places if isinstance(p, Affine) for n in p.axis_names}

    def find(known: dict[Instance, frozenset[Atom]]) -> frozenset[Atom]:
        below = set().union(*(known[part] for part in instance.parts()))
        if instance.kind == "load":
            access = access_of(trace, instance.node, instance.use, instance.index)
            below |= affine(d.place for d in access.dimensions)
            below |= affine(g.place for g in instance.guards)
        elif instance.kind == "select":
            below |= affine(c.place for where, _ in instance.branches for c in where)
        elif _reads_positions(region, instance):
            below |= affine(instance.index)
        if instance.kind == "compute" and instance.node in trace.space.folded:
            below -= set(trace.space.leaves(trace.space.folded[instance.node]))
        return frozenset(below)

    return find


def _one(
    region: Region,
    accesses: Sequence[Access],
    known: dict[Instance, frozenset[Atom]],
    a: Atom,
    b: Atom,
) -> bool:
    """Whether atoms a (outer) and b may be one axis."""
    trace = region.trace
    if any((a in atoms) != (b in atoms) for atoms in known.values()):
        return False
    for node in region.folds:
        folded = trace.space.leaves(trace.space.folded[node])
        if (a in folded) != (b in folded):
            return False
        if a in folded and node.target not in ASSOCIATIVE and not _adjacent(region, node, a, b):
            return False
    if not all(_access_allows(trace, access, a, b) for access in accesses):
        return False
    return all(_place_allows(trace, place, a, b) for place in _single_places(region))


def _adjacent(region: Region, fold: fx.Node, a: Atom, b: Atom) -> bool:
    """Whether b follows a in the row-major order of a reduction's operand."""
    (path, _), *_ = region.trace.facts.operands(fold)
    atoms = region.trace.space.atoms((fold, path))
    return a in atoms and atoms[atoms.index(a) + 1 : atoms.index(a) + 2] == (b,)


def _access_allows(trace: Trace, access: Access, a: Atom, b: Atom) -> bool:
    outer = [(d, c) for d in access.dimensions for c in _coefficients(trace, d, a)]
    inner = [(d, c) for d in access.dimensions for c in _coefficients(trace, d, b)]
    if not outer and not inner:
        return True
    if len(outer) != 1 or len(inner) != 1:
        return False
    (da, ca), (db, cb) = outer[0], inner[0]
    extent = trace.size(b)
    if da is db:
        return same(ca, cb * extent)
    along = same(da.stride, db.stride * db.host)
    return along and same(ca * db.extent, cb * extent)


def _coefficients(trace: Trace, dimension: Dimension, atom: Atom) -> list[Size]:
    if not isinstance(dimension.place, Affine):
        return []
    return [c for name, c in dimension.place.terms if trace.atoms[name] == atom]


def _place_allows(trace: Trace, place: Affine, a: Atom, b: Atom) -> bool:
    terms = {trace.atoms[name]: c for name, c in place.terms}
    if a not in terms and b not in terms:
        return True
    return a in terms and b in terms and same(terms[a], terms[b] * trace.size(b))


def _single_places(region: Region) -> Iterable[Affine]:
    """Places whose number itself is computed: conditions, ranges, the keys of random numbers."""
    for instance in region.instances:
        for guard in instance.guards if instance.kind == "load" else ():
            yield guard.place
        for where, _ in instance.branches:
            yield from (c.place for c in where)
        if is_random(region.trace, instance):
            yield flat_place(region.trace, instance)
        elif _reads_positions(region, instance):
            yield from (p for p in instance.index if isinstance(p, Affine))


def _reads_positions(region: Region, instance: Instance) -> bool:
    """Whether an instance computes with the numbers of its index."""
    if instance.kind == "constant":
        return instance.node.target not in UNIFORM
    row = region.trace.facts.row(instance.node) if instance.kind == "compute" else None
    return row is not None and row.kind in ("creation", "random")


def is_random(trace: Trace, instance: Instance) -> bool:
    """Whether an instance is random numbers, made of a seed and of the number of each element."""
    facts = trace.facts
    if instance.kind != "compute" or facts.row(instance.node).kind != "random":
        return False
    return all(not shape_of(operand) for _, operand in facts.operands(instance.node))


def flat_place(trace: Trace, instance: Instance) -> Affine:
    """The row-major number of an instance's index: what random numbers are keyed by."""
    flat, step = Affine(), trace.sizes.other(1)
    for place, size in zip(
        reversed(instance.index), reversed(trace.shape(instance.node)), strict=True
    ):
        if isinstance(place, Affine):
            flat = plus(times(place, step), flat)
        step = step * size
    return flat
