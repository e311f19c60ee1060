"""Which axes an attention has: heads, queries, keys, and what its products sum over.

What flows in: an `Attention` and the lowering table. What flows out: `Roles`: the axis space of all
of its nodes and the part that each axis plays; and the region's program for the check on a small
instance, which knows the extents that a kernel of this kind must be tried at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion.capture import small_instance
from torch_helion.capture.attention_match import (
    ADDED,
    BACKWARD,
    FLASH,
    PRODUCTS,
    Attention,
    factors,
    operand_at,
)
from torch_helion.capture.axes import (
    Atom,
    Atoms,
    Conflict,
    Dims,
    Space,
    Use,
    connect,
    refusal,
    space_of,
)
from torch_helion.capture.node_facts import Facts, is_tensor
from torch_helion.capture.sizes import shape_of
from torch_helion.ir.types import Size

aten = torch.ops.aten


@dataclass(frozen=True)
class Roles:
    """The axes of an attention. A dimension of extent 1 has none."""

    space: Space
    outer: Atoms
    """of the grid: batch, heads (and all but the last axis of the queries)"""
    shared: Atoms
    """those of `outer` that the keys lack: heads that share them"""
    row: Atom | None
    """along the queries, in tiles"""
    key: Atom
    """along the keys"""
    depth: Atom
    """what the first product sums over"""
    width: Atom | None
    """columns of the values"""
    queries: Use
    keys: Use
    values: Use
    more: Atoms = ()
    """Of gradients: the columns of their products, which are whole."""

    @property
    def outer_names(self) -> list[str]:
        """Names of the axes of `outer` in the kernel."""
        return [f"h{number}" for number in range(len(self.outer))]

    def sizes(self) -> dict[str, Atom]:
        """The kernel's size arguments that are extents."""
        found = {f"n_{name}": a for name, a in zip(self.outer_names, self.outer, strict=True)}
        row = {} if self.row is None else {"n_m": self.row}
        return {**found, **row, "n_n": self.key}


def roles_of(facts: Facts, attention: Attention) -> Roles:
    """Infer the axes; raises `exc.LoweringError` where they are not those of an attention."""
    try:
        space = space_of_attention(facts, attention)
    except Conflict as error:
        raise refusal(attention.first, str(error)) from None
    if attention.flash is not None:
        return _of_flash(space, attention)
    if attention.gradients is not None:
        return _of_gradients(space, attention)
    return _of_products(facts, space, attention)


def space_of_attention(facts: Facts, attention: Attention) -> Space:
    space = Space()
    for node in attention.nodes:
        if node.target in (FLASH, BACKWARD):
            _relate_flash(space, attention)
        elif node.target in (*PRODUCTS, ADDED):
            _relate_product(space, node)
        elif facts.kind(node) != "constant" and is_tensor(node) and node not in space.dims:
            space.update(space_of(facts, node))
    connect(space, facts, attention.nodes, set(space.dims) & set(attention.nodes))
    space.check_distinct()
    return space


def _relate_product(space: Space, node: fx.Node) -> None:
    left, right = factors(node)
    a, b = (shape_of(operand_at(node, path)) for path in (left, right))
    batch = space.fresh_dims(a[:-2])
    m, k = space.fresh_dims(a[-2:])
    (n,) = space.fresh_dims(b[-1:])
    space.dims[node, left] = (*batch, m, k)
    space.dims[node, right] = (*batch, k, n)
    space.dims[node] = (*batch, m, n)
    if node.target is ADDED:
        added = shape_of(operand_at(node, (0,)))
        space.dims[node, (0,)] = _broadcast(added, shape_of(node), space.dims[node])


def _relate_flash(space: Space, attention: Attention) -> None:
    """out[b, h, m, e] of q[b, h, m, d], k[b, h / groups, n, d], v[b, h / groups, n, e]; backward:
    of the gradient of out, q, k, v, out, logsumexp[b, h, m].
    """
    node, flash = attention.first, attention.flash
    assert flash is not None
    first = int(flash.backward)
    query, key, value = (shape_of(n) for n in node.args[first : first + 3])  # type: ignore[arg-type]
    batch, heads, rows, depth = space.fresh_dims(query)
    few = _heads_of_keys(space, heads, query[1], key[1])
    (keys,) = space.fresh_dims(key[2:3])
    (width,) = space.fresh_dims(value[3:])
    queries, found = (batch, heads, rows, depth), (batch, heads, rows, width)
    of_keys, of_values = (batch, few, keys, depth), (batch, few, keys, width)
    operands: tuple[Dims, ...] = (queries, of_keys, of_values)
    results: tuple[Dims, ...] = (found, found[:3])
    if flash.backward:
        results, operands = operands, (found, *operands, found, found[:3])
    for place, dims in enumerate(operands):
        space.dims[node, (place,)] = dims
    for item in node.users:
        space.dims[item] = results[int(item.args[1])]  # type: ignore[arg-type]
    if flash.mask is not None:
        shape = shape_of(operand_at(node, flash.mask))
        sizes = (*query[:3], key[2])
        space.dims[node, flash.mask] = _broadcast(shape, sizes, (batch, heads, rows, keys))


def _heads_of_keys(space: Space, heads: Atoms, many: Size, few: Size) -> Atoms:
    if few == many:
        return heads
    if few == 1:
        return ()
    share = sympy.sympify(many) / sympy.sympify(few)
    if not share.is_Integer:
        raise Conflict(f"{many} heads for {few} of the keys")
    (found,) = space.fresh_dims((few,))
    space.unify(heads, (*found, space.fresh(int(share))))
    return found


def _broadcast(shape: tuple[Size, ...], sizes: tuple[Size, ...], whole: Dims) -> Dims:
    """The dimensions of a mask."""
    start = len(whole) - len(shape)
    dims: list[Atoms] = []
    for extent, size, atoms in zip(shape, sizes[start:], whole[start:], strict=True):
        if extent not in (1, size):
            raise Conflict(f"a mask of {extent} for {size}")
        dims.append(() if extent == 1 else atoms)
    return tuple(dims)


# -- roles ----------------------------------------------------------------------------------------


def _of_flash(space: Space, attention: Attention) -> Roles:
    node, flash = attention.first, attention.flash
    assert flash is not None
    uses = tuple((node, (int(flash.backward) + place,)) for place in range(3))
    batch, heads, rows, depth = space.of(uses[0])
    _, few, keys, _ = space.of(uses[1])
    width = space.of(uses[2])[3]
    outer, has = (*batch, *heads), {*batch, *few}
    return _roles(space, attention, outer, rows, keys, depth, width, has, uses)  # type: ignore[arg-type]


def _of_products(facts: Facts, space: Space, attention: Attention) -> Roles:
    first, second, softmax = attention.first, attention.second, attention.softmax
    assert softmax is not None
    scores = space.of(softmax.scores)
    keys = scores[softmax.dim]
    values = next(p for p, _ in facts.operands(second) if p != attention.weights)
    *batch, rows, width = space.of(second)
    if attention.weights == (1,):
        rows, width = width, rows
    left, right = factors(first)
    depth = space.of((first, left))[-1]
    if set(keys) & set(space.atoms((first, left))):
        left, right = right, left
    queries, key = (first, left), (first, right)
    outer = tuple(a for dim in batch for a in dim)
    if set(space.atoms((second, attention.weights))) != {*outer, *rows, *keys}:
        raise refusal(second, "the weights are not read as scores of queries and keys")
    if not set(keys) <= set(space.atoms((second, values))):
        raise refusal(second, "the softmax is not taken along the keys")
    if not set(keys) <= set(space.atoms(key)) or set(keys) & set(space.atoms(queries)):
        raise refusal(first, "the softmax is not taken along the keys")
    has = set(space.atoms(key))
    return _roles(
        space, attention, outer, rows, keys, depth, width, has, (queries, key, (second, values))
    )


def _of_gradients(space: Space, attention: Attention) -> Roles:
    first, gradients = attention.first, attention.gradients
    assert gradients is not None
    whole, tops = (space.of((gradients.sub, (place,))) for place in (0, 1))
    of_rows = {a for dim in tops for a in dim}
    keys = tuple(a for dim in whole for a in dim if a not in of_rows)
    *batch, one, other = space.of(first)
    rows = one if set(keys) & set(other) else other
    outer = tuple(a for dim in batch for a in dim)
    depth, width = (space.of((n, (0,)))[-1] for n in (first, gradients.source))
    uses: list[Use] = []
    for product in (first, gradients.source):
        left, right = ((product, (place,)) for place in (0, 1))
        if set(keys) & set(space.atoms(left)):
            left, right = right, left
        if set(keys) & set(space.atoms(left)) or not set(keys) <= set(space.atoms(right)):
            raise refusal(product, "the softmax is not taken along the keys")
        uses += [left, right]
    more: list[Atom] = []
    for end, path in gradients.ends:
        inner, result = space.atoms((end, path)), space.atoms(end)
        columns = [a for a in result if a not in inner]
        summed = space.of((end, (0,)))[-1]
        if set(inner) != {*outer, *rows, *keys} or len(columns) != 1:
            raise refusal(end, "it is no product of scores with queries, keys or values")
        if len(summed) != 1 or summed[0] not in (*rows[-1:], *keys) or len(rows) != 1:
            raise refusal(end, "it does not sum over the keys or the queries")
        if not isinstance(space.extents[columns[0]], int):
            raise refusal(end, "its head size is not known when compiling")
        more += columns
    queries, key, _, values = uses
    found = _roles(
        space, attention, outer, rows, keys, depth, width, set(outer), (queries, key, values)
    )
    every = [*found.outer, *rows, *keys, *{*depth, *width, *more}]
    if len(set(every)) != len(every):
        raise refusal(first, "one axis stands in two places")
    return replace(found, shared=(), more=tuple(more))


def _roles(
    space: Space,
    attention: Attention,
    outer: Atoms,
    rows: Atoms,
    keys: Atoms,
    depth: Atoms,
    width: Atoms,
    of_keys: set[Atom],
    uses: tuple[Use, Use, Use],
) -> Roles:
    for what, atoms, least in (("keys", keys, 1), ("head size", depth, 1), ("values", width, 0)):
        if not least <= len(atoms) <= 1:
            raise refusal(attention.first, f"{len(atoms)} axes along its {what}")
    for atoms in (depth, width):
        if any(not isinstance(space.extents[a], int) for a in atoms):
            raise refusal(attention.first, "its head size is not known when compiling")
    outer = (*outer, *rows[:-1])
    every = [*outer, *rows[-1:], *keys, *depth, *width]
    if len(set(every)) != len(every):
        raise refusal(attention.first, "one axis stands in two places")
    shared = tuple(a for a in outer if a not in of_keys and a not in rows)
    row = rows[-1] if rows else None
    return Roles(space, outer, shared, row, keys[0], depth[0], width[0] if width else None, *uses)


# -- the check's program --------------------------------------------------------------------------

CHECKED_KEYS = 600
CHECKED_ROWS = 140
"""More than a tile of each: what is carried from tile to tile is tried."""
CHECKED_FEW = (2, 1)


class Program(small_instance.Program):
    """The operators of an attention at the sizes of a small instance."""

    def __post_init__(self) -> None:
        self.facts = Facts(self.lowerings, owned=self.region.outputs, inside=self.region.nodes)
        try:
            self.roles = roles_of(self.facts, self.region)
        except Exception as error:
            raise small_instance.CannotShrink(str(error)) from error
        self.space = self.roles.space
        self.find_uses()

    def wanted(self, atom: int, usual: int, free: int) -> int:
        if atom == self.roles.key:
            return CHECKED_KEYS
        if atom == self.roles.row:
            return CHECKED_ROWS
        if atom in (self.roles.depth, self.roles.width, *self.roles.more):
            extent = self.space.extents[atom]
            assert isinstance(extent, int)
            return extent
        return CHECKED_FEW[free % len(CHECKED_FEW)]

    def size_arguments(self, small: small_instance.Sizes) -> dict[str, int]:
        return {name: small.atoms[atom] for name, atom in self.roles.sizes().items()}

    def has_rule(self, node: fx.Node) -> bool:
        return self.facts.call(node).target not in (FLASH, BACKWARD, ADDED, *PRODUCTS)

    def _run(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any], precise: bool) -> Any:
        if not self.has_rule(node):
            target: Any = node.target
            return target(*args, **kwargs)
        return super()._run(node, args, kwargs, precise)
