"""Axis inference: which dimensions of a region's tensors are the same iteration axis.

In: nodes with their rows. Out: a `Space`: for every value, and for every use of an operand,
each dimension as a row-major product of atomic axes. Built node by node, joined where regions
merge; `Conflict` says why two things cannot stand in one iteration space.

- An elementwise operation unifies dimensions as broadcasting aligns them; a dimension of extent
  1 is the empty product.
- A reduction's kept dimensions unify with its operand's; the folded ones stay the operand's.
- A view or gather unifies a dimension of its result with one of an operand where its index rule
  reads the operand at exactly the result's position. So slices, pads and flips leave the
  dimension that they change apart, without a list of what changes what.
- A reshape aligns factors from the innermost: an axis of extent 12 that meets (3, 4) is split
  for everything that has it.
- Every use of an operand has dimensions of its own. They unify with those of the operand's
  producer when both are in one region; an input that is used twice keeps two readings of it
  apart where they differ.
- A value in which one axis would occur twice (x[:, None] - x[None, :]) is a conflict.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.node_facts import Facts, Path, is_tensor
from torch_helion.capture.sizes import host_size, shape_of
from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Affine, Size
from torch_helion.lowering import view as view_rules
from torch_helion.lowering.registry import Context, Lowering, TensorSpec
from torch_helion.lowering.view import Indirect, Read, quotient, same

Atom = int
Atoms = tuple[Atom, ...]
Dims = tuple[Atoms, ...]
Use = tuple[fx.Node, Path]
Key = Any
"""A value (its node) or a use of an operand (node and path)."""

_numbers = itertools.count()


class Conflict(Exception):
    """Two dimensions that cannot be one axis."""


class Space:
    """A union-find over atomic axes in which an atom may be split into a product of two."""

    def __init__(self) -> None:
        self.extents: dict[Atom, Size] = {}
        self.dims: dict[Key, Dims] = {}
        self.folded: dict[fx.Node, Atoms] = {}
        """Atoms that a reduction folds (before splitting)."""
        self._parent: dict[Atom, Atom] = {}
        self._parts: dict[Atom, tuple[Atom, Atom]] = {}
        self._atoms: dict[Key, Atoms] = {}
        """Answers of `atoms` since the last change."""

    def join(self, *others: Space) -> Space:
        """A copy of all side by side: nothing is unified yet."""
        joined = Space()
        for space in (self, *others):
            joined.update(space)
        return joined

    def update(self, other: Space) -> None:
        self.extents.update(other.extents)
        self.dims.update(other.dims)
        self.folded.update(other.folded)
        self._parent.update(other._parent)
        self._parts.update(other._parts)
        self._atoms = {}

    def fresh(self, extent: Size) -> Atom:
        atom = next(_numbers)
        self.extents[atom] = extent
        return atom

    def fresh_dims(self, shape: Sequence[Size]) -> Dims:
        return tuple(() if view_rules.is_one(n) else (self.fresh(n),) for n in shape)

    def find(self, atom: Atom) -> Atom:
        parent = self._parent
        root = atom
        while root in parent:
            root = parent[root]
        while atom != root:
            parent[atom], atom = root, parent[atom]
        return root

    def leaves(self, atoms: Iterable[Atom]) -> Atoms:
        """The unsplit atoms of a product, outer to inner."""
        parent, parts = self._parent, self._parts
        out: list[Atom] = []
        work = list(atoms)[::-1]
        while work:
            atom = work.pop()
            if atom in parent:
                atom = self.find(atom)
            if atom in parts:
                work += parts[atom][::-1]
            else:
                out.append(atom)
        return tuple(out)

    def of(self, key: Key) -> Dims:
        """The dimensions of a value or use."""
        return tuple(self.leaves(atoms) if atoms else () for atoms in self.dims[key])

    def atoms(self, key: Key) -> Atoms:
        """All atoms of a value or use, outer to inner."""
        found = self._atoms.get(key)
        if found is None:
            found = self.leaves(itertools.chain.from_iterable(self.dims[key]))
            self._atoms[key] = found
        return found

    # -- unification ----------------------------------------------------------------------------

    def unify(self, a: Iterable[Atom], b: Iterable[Atom]) -> None:
        """Make two products one, splitting atoms where their factors divide."""
        left, right = list(a), list(b)
        self._atoms = {}
        while left and right:
            p, q = self._last(left), self._last(right)
            if p == q:
                continue
            if same(self.extents[p], self.extents[q]):
                self._parent[p] = q
            elif (rest := quotient(self.extents[p], self.extents[q])) is not None:
                left.append(self._split(p, rest, q))
            elif (rest := quotient(self.extents[q], self.extents[p])) is not None:
                right.append(self._split(q, rest, p))
            else:
                raise Conflict(f"extents {self.extents[p]} and {self.extents[q]} share no factor")
        if left or right:
            raise Conflict("products of different extents")

    def _last(self, atoms: list[Atom]) -> Atom:
        leaves = self.leaves((atoms.pop(),))
        atoms += leaves[:-1]
        return leaves[-1]

    def _split(self, atom: Atom, outer: Size, inner: Atom) -> Atom:
        """Split `atom` into a new outer part and `inner`; gives the outer part."""
        part = self.fresh(outer)
        self._parts[atom] = (part, inner)
        return part

    def unify_dims(self, a: Key, b: Key) -> None:
        for x, y in zip(self.dims[a], self.dims[b], strict=True):
            if x != y:
                self.unify(x, y)

    def check_distinct(self) -> None:
        """No value may have one axis twice."""
        for key in self.dims:
            if isinstance(key, fx.Node):
                atoms = self.atoms(key)
                if len(set(atoms)) != len(atoms):
                    raise Conflict(f"one axis would stand twice in {key.name}")


# -- one node -----------------------------------------------------------------------------------


def space_of(facts: Facts, node: fx.Node) -> Space:
    """The space of one call with all its items."""
    space = Space()
    row = facts.row(node)
    if row.kind in ("view", "gather"):
        _relate_reads(space, facts, node, row)
    elif row.kind == "product":
        _relate_product(space, facts, node)
    elif row.whole is not None:
        _relate_reduction(space, facts, node, row)
    else:
        _relate_elementwise(space, facts, node)
    space.check_distinct()
    return space


def outputs_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that hold the results of a call: itself, or its items."""
    if is_tensor(node):
        return [node]
    return [user for user in node.users if is_tensor(user)]


def _relate_elementwise(space: Space, facts: Facts, node: fx.Node) -> None:
    outputs = outputs_of(node)
    shape = shape_of(outputs[0])
    dims = space.fresh_dims(shape)
    for output in outputs:
        if shape_of(output) != shape:
            raise Conflict("results of different shapes from an elementwise operation")
        space.dims[output] = dims
    for path, operand in facts.operands(node):
        space.dims[node, path] = _broadcast(space, shape, dims, shape_of(operand))


def _broadcast(space: Space, shape: Sequence[Size], dims: Dims, operand: Sequence[Size]) -> Dims:
    """Dimensions of an operand that broadcasts to `shape`."""
    if len(operand) > len(shape):
        raise Conflict(f"an operand of {len(operand)} dimensions for {len(shape)}")
    start = len(shape) - len(operand)
    out: list[Atoms] = []
    for n, whole, atoms in zip(operand, shape[start:], dims[start:], strict=True):
        if view_rules.is_one(n):
            out.append(())
        elif same(n, whole):
            out.append(atoms)
        else:
            raise Conflict(f"sizes {n} and {whole} are not known to be equal")
    return tuple(out)


def _relate_reduction(space: Space, facts: Facts, node: fx.Node, row: Lowering) -> None:
    """The first operand has all axes; results lose the folded ones, or keep them (softmax)."""
    (first, operand), *others = facts.operands(node)
    shape = shape_of(operand)
    dims = space.fresh_dims(shape)
    space.dims[node, first] = dims
    folded = whole_dims(row, node, len(shape))
    space.folded[node] = tuple(a for d in folded for a in dims[d])
    for output in outputs_of(node):
        space.dims[output] = _reduced(space, shape, dims, folded, shape_of(output))
    for path, other in others:
        space.dims[node, path] = _broadcast(space, shape, dims, shape_of(other))


def _relate_product(space: Space, facts: Facts, node: fx.Node) -> None:
    """Rows of the last but one operand, columns of the last; what they share is folded."""
    *others, (left, _), (right, b) = facts.operands(node)
    shape = shape_of(node)
    rows, columns = space.fresh_dims(shape)
    (inner,) = space.fresh_dims(shape_of(b)[:1])
    space.dims[node] = (rows, columns)
    space.dims[node, left], space.dims[node, right] = (rows, inner), (inner, columns)
    space.folded[node] = inner
    for path, other in others:
        space.dims[node, path] = _broadcast(space, shape, (rows, columns), shape_of(other))


def whole_dims(row: Lowering, node: fx.Node, rank: int) -> tuple[int, ...]:
    assert row.whole is not None
    return tuple(
        sorted({d % rank for d in row.whole(rank, *node.args, **node.kwargs)} if rank else ())
    )


def _reduced(
    space: Space, shape: Sequence[Size], dims: Dims, folded: Sequence[int], out: Sequence[Size]
) -> Dims:
    kept = [d for d in range(len(shape)) if d not in folded]
    if len(out) == len(shape):
        pairs: list[int] = list(range(len(shape)))
    elif len(out) == len(kept):
        pairs = kept
    else:
        raise Conflict(
            f"a result of {len(out)} dimensions from {len(shape)} with {len(folded)} folded"
        )
    result: list[Atoms] = []
    for n, d in zip(out, pairs, strict=True):
        if view_rules.is_one(n):
            result.append(())
        elif same(n, shape[d]):
            result.append(dims[d])
        else:
            raise Conflict(f"a result's size {n} where the operand has {shape[d]}")
    return tuple(result)


# -- views and gathers ----------------------------------------------------------------------------


def host_argument(argument: Any) -> Any:
    """An argument as an index rule sees it: fakes for tensors, expressions for symbolic sizes."""
    if isinstance(argument, fx.Node):
        value = argument.meta["val"]
        return host_size(value) if isinstance(value, torch.SymInt | int) else value
    if isinstance(argument, list | tuple):
        return [host_argument(a) for a in argument]
    if isinstance(argument, torch.SymInt):
        return host_size(argument)
    return argument


def index_context(
    facts: Facts,
    node: fx.Node,
    shapes: dict[Path, tuple[Size, ...]],
    out: tuple[Size, ...],
    arguments: Any,
    fits: Any,
) -> Context:
    """The context in which the index rule of `node` runs; `arguments` translates the call's
    arguments.
    """
    call = facts.call(node)
    specs = {
        path: TensorSpec(operand.meta["val"].dtype, shapes[path])
        for path, operand in facts.operands(node)
    }
    return Context(
        Builder("index"),
        call.target,  # type: ignore[arg-type]
        tuple(arguments(a) for a in call.args),
        {name: arguments(a) for name, a in call.kwargs.items()},
        tuple(specs.get((i,)) for i in range(len(call.args))),
        (TensorSpec(node.meta["val"].dtype, out),),
        {
            "items": {path: spec for path, spec in specs.items() if len(path) == 2},
            "output": facts.output_number(node),
            "fits": fits,
        },
    )


def _relate_reads(space: Space, facts: Facts, node: fx.Node, row: Lowering) -> None:
    for output in outputs_of(node):
        shape = shape_of(output)
        shapes = {path: shape_of(operand) for path, operand in facts.operands(node)}
        cx = index_context(facts, output, shapes, shape, host_argument, lambda *_: True)
        if row.overload in view_rules.RESHAPES:
            view_rules.check_reshape(cx)
            _relate_reshape(space, output, shapes, shape)
            continue
        space.dims[output] = space.fresh_dims(shape)
        places = tuple(
            Affine() if view_rules.is_one(n) else Affine.of(f"d{d}") for d, n in enumerate(shape)
        )
        for read in all_reads(row.rule(cx, places)):
            path = (read.argument,) if read.item is None else (read.argument, read.item)
            if (output, path) not in space.dims:
                space.dims[output, path] = _read_dims(space, output, shape, read, shapes[path])
        for path, operand_shape in shapes.items():
            if (output, path) not in space.dims:
                space.dims[output, path] = space.fresh_dims(operand_shape)


def _relate_reshape(
    space: Space, node: fx.Node, shapes: dict[Path, tuple[Size, ...]], shape: tuple[Size, ...]
) -> None:
    ((path, source),) = shapes.items()
    space.dims[node] = space.fresh_dims(shape)
    space.dims[node, path] = space.fresh_dims(source)
    groups = view_rules.dimension_groups(source, shape)
    if groups is None:
        raise Conflict(f"the sizes {source} and {shape} do not match")
    for ins, outs in groups:
        space.unify(
            [a for d in ins for a in space.dims[node, path][d]],
            [a for d in outs for a in space.dims[node][d]],
        )


def all_reads(sources: Iterable[Any]) -> list[Read]:
    """The reads of a rule's answer, with those that its places come from."""
    found: list[Read] = []
    for source in sources:
        if isinstance(source, Read):
            found.append(source)
            found += all_reads(p.read for p in source.index if isinstance(p, Indirect))
    return found


def _read_dims(
    space: Space, node: fx.Node, shape: Sequence[Size], read: Read, source: Sequence[Size]
) -> Dims:
    dims: list[Atoms] = []
    for place, n in zip(read.index, source, strict=True):
        d = _plain_dimension(place)
        if view_rules.is_one(n):
            dims.append(())
        elif d is not None and same(shape[d], n):
            dims.append(space.dims[node][d])
        else:
            dims.append((space.fresh(n),))
    return tuple(dims)


def _plain_dimension(place: Any) -> int | None:
    """The result's dimension at whose position a place is exactly."""
    if isinstance(place, Affine) and place.offset == 0 and len(place.terms) == 1:
        name, coefficient = place.terms[0]
        return int(name[1:]) if coefficient == 1 else None
    return None


# -- several nodes --------------------------------------------------------------------------------


def infer(facts: Facts, nodes: Sequence[fx.Node]) -> Space:
    """The space of a region, from nothing."""
    space = Space()
    for node in nodes:
        if facts.kind(node) not in ("constant", "item") and _is_owner(node):
            space.update(space_of(facts, node))
    inside = set(space.dims) & set(nodes)
    connect(space, facts, nodes, inside)
    share_inputs(space, facts, readings_of(facts, nodes, inside))
    space.check_distinct()
    return space


def _is_owner(node: fx.Node) -> bool:
    """Whether a space is made for this node (items of a tuple come with their call)."""
    source = node.args[0] if node.args else None
    return not (
        isinstance(source, fx.Node)
        and not is_tensor(source)
        and isinstance(source.meta.get("val"), tuple | list)
    )


def connect(
    space: Space, facts: Facts, consumers: Iterable[fx.Node], producers: set[fx.Node]
) -> None:
    """Unify every use of a value of `producers` by `consumers` with the value."""
    for consumer in consumers:
        for path, operand in facts.operands(consumer):
            if operand in producers and (consumer, path) in space.dims:
                space.unify_dims((consumer, path), operand)


Readings = dict[fx.Node, list[Use]]
"""The uses of each value that is read from outside."""


def readings_of(facts: Facts, nodes: Iterable[fx.Node], inside: set[fx.Node]) -> Readings:
    found: Readings = {}
    for node in nodes:
        for path, operand in facts.operands(node):
            if operand not in inside and facts.kind(operand) != "constant":
                found.setdefault(operand, []).append((node, path))
    return found


def share_inputs(space: Space, facts: Facts, readings: Readings) -> None:
    """Unify the readings of each input where that is possible: two that agree are one load.

    Inputs that are views of one tensor (x and x.view(...)) are read in the same axes as far as
    the views keep them.
    """
    origins: dict[fx.Node, dict[fx.Node, Use]] = {}
    for value, uses in readings.items():
        known = [use for use in uses if use in space.dims]
        for use in known[1:]:
            try_unify(space, [(known[0], use)])
        if known:
            origins.setdefault(origin_of(facts, value), {})[value] = known[0]
    for values in origins.values():
        if len(values) > 1:
            share_origin(space, facts, values)


def share_across(space: Space, facts: Facts, left: Readings, right: Readings) -> None:
    """The same for the readings of two groups, each of which has shared its own already."""
    origins: dict[fx.Node, dict[fx.Node, Use]] = {}
    for value, uses in left.items():
        known = [use for use in uses if use in space.dims]
        if known:
            origins.setdefault(origin_of(facts, value), {})[value] = known[0]
    for value, uses in right.items():
        others = origins.get(origin_of(facts, value))
        known = [use for use in uses if use in space.dims]
        if not others or not known:
            continue
        if value in others:
            try_unify(space, [(others[value], known[0])])
        else:
            first = next(iter(others))
            share_origin(space, facts, {first: others[first], value: known[0]})


def origin_of(facts: Facts, value: fx.Node) -> fx.Node:
    """What a value from outside is a view of, in the end."""
    while facts.is_view(value):
        value = facts.operands(value)[0][1]
    return value


def share_origin(space: Space, facts: Facts, values: dict[fx.Node, Use]) -> None:
    """Unify readings of different views of one tensor, through the axes of the views."""
    pairs: list[tuple[Key, Key]] = []
    related = Space()
    ends: list[Key] = []
    for value, use in values.items():
        key: Key = use
        while facts.is_view(value):
            if value not in facts.view_spaces:
                facts.view_spaces[value] = view_space(facts, value)
            view = facts.view_spaces[value]
            if view is None:
                return
            related.update(view)
            pairs.append((key, value))
            ((path, value),) = facts.operands(value)
            key = (pairs[-1][1], path)
        ends.append(key)
    pairs += [(ends[0], key) for key in ends[1:]]
    try_unify(space, pairs, related)


def view_space(facts: Facts, view: fx.Node) -> Space | None:
    try:
        return space_of(facts, view)
    except (Conflict, exc.LoweringError):
        return None


def try_unify(space: Space, pairs: Sequence[tuple[Key, Key]], more: Space | None = None) -> bool:
    """Unify the dimensions of all pairs, or leave the space as it was. `more` joins the space
    first.
    """
    if all(a in space.dims and b in space.dims and space.of(a) == space.of(b) for a, b in pairs):
        return True
    trial = space.join() if more is None else space.join(more)
    try:
        for a, b in pairs:
            trial.unify_dims(a, b)
        trial.check_distinct()
    except Conflict:
        return False
    space.update(trial)
    return True


def refusal(node: fx.Node, why: str) -> exc.LoweringError:
    """The error for a node or region that cannot become a kernel."""
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", "any dtype")
    error = exc.LoweringError(str(node.target), str(dtype), why)
    error.node = node  # type: ignore[attr-defined]
    return error
