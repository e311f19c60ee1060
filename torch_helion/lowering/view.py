"""View rules: no code, only where each element of the result is read from.

In: one place per dimension of the result (an `Affine` over axes, or something opaque that a
gather made). Out: `Read`s of the operands, in the order in which they are tried, each with the
condition under which it holds, and at most one `Fill` at the end. Capture pulls values through
these rules; the front end lowers its view calls through them. Copying ops whose result is only
moved data (cat, pad, flip, roll) stand here too.

A rule uses three things of its context: `args`/`kwargs` as PyTorch sees them (with sizes as
expressions), the shapes in `inputs`, `facts["items"]` and `outputs`, and these facts:

`fits`      fits(place, size) -> bool: whether 0 <= place < size is known (needed to split a
dimension).
`output`    which result of an op with several (split, unbind) is asked for.

Sizes are ints or sympy expressions, in whatever symbols the caller uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._ops import OpOverload

from torch_helion.ir.types import Affine, Size
from torch_helion.lowering.registry import Context, Lowering, TensorSpec

aten = torch.ops.aten
prims = torch.ops.prims

ZERO = Affine()
"""The place in a dimension of extent 1."""


@dataclass(frozen=True)
class Within:
    """The condition low <= place < high."""

    place: Affine
    low: Size
    high: Size


@dataclass(frozen=True)
class Read:
    """One operand at one place per dimension. `argument` is a position, `item` the number in a
    list there.

    The read holds where every condition of `where` does. `guarded`: elsewhere the place may be
    outside.
    """

    argument: int
    index: tuple[Place, ...]
    where: tuple[Within, ...] = ()
    item: int | None = None
    guarded: bool = True


@dataclass(frozen=True)
class Fill:
    """The number that the result holds where no read does."""

    value: float | int | bool


@dataclass(frozen=True)
class Indirect:
    """A place that is itself read from an integer tensor. `size`: extent of the dimension that
    it indexes.

    `wrap`: negative numbers count from the end.
    """

    read: Read
    size: Size
    wrap: bool


Place = Affine | Indirect | Any
Index = tuple[Place, ...]
Source = Read | Fill
ViewRule = Callable[[Context, Index], tuple[Source, ...]]


# -- places ---------------------------------------------------------------------------------------


def is_one(size: Size) -> bool:
    return bool(size == 1)


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or sympy.expand(sympy.sympify(a) - sympy.sympify(b)) == 0


def quotient(a: Size, b: Size) -> Size | None:
    """a / b where that is a whole number whatever the symbols are, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if sympy.denom(ratio) != 1 or ratio.has(sympy.zoo, sympy.nan):
        return None
    return int(ratio) if ratio.is_Integer else ratio


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def plus(a: Affine, b: Affine) -> Affine:
    """The sum, terms of one axis joined."""
    terms = dict(a.terms)
    for name, coefficient in b.terms:
        terms[name] = terms[name] + coefficient if name in terms else coefficient
    return Affine(tuple((n, c) for n, c in terms.items() if c != 0), a.offset + b.offset)


def times(a: Affine, factor: Size) -> Affine:
    return Affine(tuple((n, c * factor) for n, c in a.terms), a.offset * factor)


def shifted(cx: Context, place: Place, offset: Size) -> Place:
    if not isinstance(place, Affine):
        if offset == 0:
            return place
        raise cx.refuse("arithmetic on an index that is read from memory")
    return Affine(place.terms, place.offset + offset)


def scaled(cx: Context, place: Place, factor: Size) -> Place:
    if not isinstance(place, Affine):
        if factor == 1:
            return place
        raise cx.refuse("arithmetic on an index that is read from memory")
    return times(place, factor)


# -- arguments ------------------------------------------------------------------------------------


def arguments(cx: Context) -> dict[str, Any]:
    """The call's arguments by the names of the schema, defaults filled in."""
    schema = cx.overload._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update(zip((a.name for a in schema), cx.args, strict=False))
    values.update(cx.kwargs)
    return values


def input_spec(cx: Context, argument: int = 0, item: int | None = None) -> TensorSpec:
    if item is not None:
        spec: TensorSpec = cx.facts["items"][argument, item]
        return spec
    found = cx.inputs[argument]
    assert found is not None, f"argument {argument} of {cx.overload} is not a tensor"
    return found


def input_shape(cx: Context, argument: int = 0, item: int | None = None) -> tuple[Size, ...]:
    return input_spec(cx, argument, item).shape


def output_shape(cx: Context) -> tuple[Size, ...]:
    return cx.outputs[0].shape


def dimension(cx: Context, dim: Any, rank: int | None = None) -> int:
    rank = len(input_shape(cx)) if rank is None else rank
    return int(dim) % rank if rank else 0


def replaced(index: Index, dim: int, place: Place) -> Index:
    return (*index[:dim], place, *index[dim + 1 :])


def clamped(cx: Context, value: Any, size: Size, default: Size) -> Size:
    """A slice's bound: negative counts from the end, then kept inside [0, size]."""
    if value is None:
        return default
    if isinstance(value, int) and value >= 2**62:
        return size
    if isinstance(value, int) and isinstance(size, int):
        return max(0, min(value + size if value < 0 else value, size))
    if isinstance(value, int):
        return size + value if value < 0 else value
    if not value.is_nonnegative:
        raise cx.refuse(f"a slice from {value}, which might be negative")
    return value


# -- the same elements in other dimensions --------------------------------------------------------


def permute(cx: Context, index: Index) -> tuple[Source, ...]:
    dims = [dimension(cx, d) for d in arguments(cx)["dims"]]
    return (Read(0, tuple(index[dims.index(d)] for d in range(len(dims)))),)


def transpose(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    places = list(index)
    if places:
        a, b = dimension(cx, bound["dim0"]), dimension(cx, bound["dim1"])
        places[a], places[b] = places[b], places[a]
    return (Read(0, tuple(places)),)


def reverse(cx: Context, index: Index) -> tuple[Source, ...]:
    """aten.t"""
    return (Read(0, index[::-1]),)


def unchanged(cx: Context, index: Index) -> tuple[Source, ...]:
    return (Read(0, index),)


def expand(cx: Context, index: Index) -> tuple[Source, ...]:
    shape = input_shape(cx)
    tail = index[len(index) - len(shape) :]
    return (Read(0, tuple(ZERO if is_one(n) else p for n, p in zip(shape, tail, strict=True))),)


def broadcast_in_dim(cx: Context, index: Index) -> tuple[Source, ...]:
    shape, dims = input_shape(cx), arguments(cx)["broadcast_dimensions"]
    places = (ZERO if is_one(n) else index[d] for n, d in zip(shape, dims, strict=True))
    return (Read(0, tuple(places)),)


def dimension_groups(
    inner: Sequence[Size], outer: Sequence[Size]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Dimensions of two shapes of equal element counts, in the smallest groups of equal products.

    Dimensions of extent 1 are in no group. None: the shapes do not match in known sizes.
    """
    a = [d for d, n in enumerate(inner) if not is_one(n)]
    b = [d for d, n in enumerate(outer) if not is_one(n)]
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while a and b:
        left, right = [a.pop()], [b.pop()]
        p, q = inner[left[0]], outer[right[0]]
        while not same(p, q):
            if a and (not b or quotient(q, p) is not None):
                left.append(a.pop())
                p = p * inner[left[-1]]
            elif b and (not a or quotient(p, q) is not None):
                right.append(b.pop())
                q = q * outer[right[-1]]
            elif a and b:
                left.append(a.pop())
                right.append(b.pop())
                p, q = p * inner[left[-1]], q * outer[right[-1]]
            else:
                return None
        groups.append((tuple(reversed(left)), tuple(reversed(right))))
    return None if a or b else groups[::-1]


def divided(cx: Context, place: Affine, size: Size) -> tuple[Affine, Affine]:
    """The exact quotient and remainder of a place by `size`: by terms, never by numbers."""
    high: list[tuple[str, Size]] = []
    low: list[tuple[str, Size]] = []
    for name, coefficient in place.terms:
        q = quotient(coefficient, size)
        (low if q is None else high).append((name, coefficient if q is None else q))
    offset, rest = 0, place.offset
    if isinstance(place.offset, int) and isinstance(size, int):
        offset, rest = divmod(place.offset, size)
    elif place.offset != 0 and (whole := quotient(place.offset, size)) is not None:
        offset, rest = whole, 0
    remainder = Affine(tuple(low), rest)
    if not cx.facts["fits"](remainder, size):
        raise cx.refuse(f"the elements of {place} do not fall into rows of {size}")
    return Affine(tuple(high), offset), remainder


def reshape(cx: Context, index: Index) -> tuple[Source, ...]:
    """Row-major renumbering, group by group: merge the result's places, split them for the
    operand.
    """
    shape, out = input_shape(cx), output_shape(cx)
    groups = dimension_groups(shape, out)
    if groups is None:
        raise cx.refuse(f"cannot match the sizes {shape} and {out}")
    places: list[Place] = [ZERO] * len(shape)
    for ins, outs in groups:
        if len(ins) == len(outs) == 1:
            places[ins[0]] = index[outs[0]]
            continue
        flat = merged(cx, [index[d] for d in outs], [out[d] for d in outs])
        for d in reversed(ins[1:]):
            flat, places[d] = divided(cx, flat, shape[d])
        places[ins[0]] = flat
    return (Read(0, tuple(places)),)


def merged(cx: Context, places: Sequence[Place], sizes: Sequence[Size]) -> Affine:
    """The row-major number of several places."""
    flat, step = ZERO, product(())
    for place, size in zip(reversed(places), reversed(sizes), strict=True):
        if not isinstance(place, Affine):
            raise cx.refuse("arithmetic on an index that is read from memory")
        flat = plus(times(place, step), flat)
        step = step * size
    return flat


def as_strided(cx: Context, index: Index) -> tuple[Source, ...]:
    """Only where both layouts are row-major and begin together: then it is a reshape."""
    check_reshape(cx)
    return reshape(cx, index)


def check_reshape(cx: Context) -> None:
    """Refuse an `as_strided` that is no reshape (the other overloads of `RESHAPES` always are)."""
    if cx.overload is not aten.as_strided.default:
        return
    bound, source = arguments(cx), cx.args[0]
    offset = bound["storage_offset"]
    dense = source.is_contiguous() and offset in (None, source.storage_offset())
    if not (dense and row_major(bound["size"], bound["stride"])):
        raise cx.refuse("as_strided that is no reshape")
    if not same(product(input_shape(cx)), product(output_shape(cx))):
        raise cx.refuse("as_strided of a part")


def row_major(size: Sequence[Any], stride: Sequence[Any]) -> bool:
    step: Any = 1
    for n, s in zip(reversed(size), reversed(stride), strict=True):
        if n != 1 and s != step:
            return False
        step = step * n
    return True


def squeeze_family(cx: Context, index: Index) -> tuple[Source, ...]:
    """Dimensions of extent 1 come or go; the others keep their order."""
    shape, out = input_shape(cx), output_shape(cx)
    rest = iter([p for p, n in zip(index, out, strict=True) if not is_one(n)])
    return (Read(0, tuple(ZERO if is_one(n) else next(rest) for n in shape)),)


# -- parts of a dimension -------------------------------------------------------------------------


def slice_(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim = dimension(cx, bound["dim"])
    start = clamped(cx, bound["start"], input_shape(cx)[dim], 0)
    place = shifted(cx, scaled(cx, index[dim], bound["step"]), start)
    return (Read(0, replaced(index, dim, place)),)


def select(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim = dimension(cx, bound["dim"])
    at = bound["index"]
    if isinstance(at, int) and at < 0:
        at = input_shape(cx)[dim] + at
    return (Read(0, (*index[:dim], Affine((), at), *index[dim:])),)


def unbind(cx: Context, index: Index) -> tuple[Source, ...]:
    dim = dimension(cx, arguments(cx)["dim"])
    return (Read(0, (*index[:dim], Affine((), cx.facts["output"]), *index[dim:])),)


def split(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim, number = dimension(cx, bound["dim"]), cx.facts["output"]
    if "split_size" in bound:
        start: Size = bound["split_size"] * number
    else:
        start = sum(bound["split_sizes"][:number])
    return (Read(0, replaced(index, dim, shifted(cx, index[dim], start))),)


def diagonal(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    a, b = dimension(cx, bound["dim1"]), dimension(cx, bound["dim2"])
    along, offset = index[-1], bound["offset"]
    places = list(index[:-1])
    for dim, place in sorted(
        ((a, shifted(cx, along, max(-offset, 0))), (b, shifted(cx, along, max(offset, 0)))),
        key=lambda pair: pair[0],
    ):
        places.insert(dim, place)
    return (Read(0, tuple(places)),)


def unfold(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim = dimension(cx, bound["dimension"])
    window, within = scaled(cx, index[dim], bound["step"]), index[-1]
    if not (isinstance(window, Affine) and isinstance(within, Affine)):
        raise cx.refuse("arithmetic on an index that is read from memory")
    return (Read(0, replaced(index[:-1], dim, plus(window, within))),)


def lookup_seed(cx: Context, index: Index) -> tuple[Source, ...]:
    """prims.inductor_lookup_seed: one of a tensor of seeds (its row is in inductor_prims.py)."""
    return (Read(0, (Affine((), cx.args[1]),)),)


# -- moved data -----------------------------------------------------------------------------------


def flip(cx: Context, index: Index) -> tuple[Source, ...]:
    shape, places = input_shape(cx), list(index)
    for d in arguments(cx)["dims"]:
        dim = dimension(cx, d)
        places[dim] = shifted(cx, scaled(cx, index[dim], -1), shape[dim] - 1)
    return (Read(0, tuple(places)),)


def roll(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    if len(bound["dims"]) != 1 or len(bound["shifts"]) != 1:
        raise cx.refuse("a roll of one dimension is a pair of slices; others are not")
    dim = dimension(cx, bound["dims"][0])
    size, shift, place = input_shape(cx)[dim], bound["shifts"][0], index[dim]
    if not isinstance(place, Affine) or not isinstance(shift, int):
        raise cx.refuse("roll by an amount or at a place that is not known")
    if isinstance(size, int):
        shift %= size
    elif shift < 0:
        shift = size + shift
    wrapped = (Within(place, 0, shift),)
    return (
        Read(0, replaced(index, dim, shifted(cx, place, size - shift)), wrapped),
        Read(0, replaced(index, dim, shifted(cx, place, -shift)), (Within(place, shift, size),)),
    )


def cat(cx: Context, index: Index) -> tuple[Source, ...]:
    """Each part is read where the place lies in it. ATen skips empty one-dimensional parts."""
    bound = arguments(cx)
    rank = len(index)
    dim = dimension(cx, bound["dim"], rank)
    reads: list[Source] = []
    start: Size = 0
    for item in range(len(bound["tensors"])):
        shape = input_shape(cx, 0, item)
        if len(shape) != rank:
            continue
        end = start + shape[dim]
        place = index[dim]
        if not isinstance(place, Affine):
            raise cx.refuse("cat at an index that is read from memory")
        at = replaced(index, dim, shifted(cx, place, -start))
        reads.append(Read(0, at, (Within(place, start, end),), item))
        start = end
    return tuple(reads)


def constant_pad(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    shape, places = input_shape(cx), list(index)
    where = []
    for number in range(len(bound["pad"]) // 2):
        dim = len(shape) - 1 - number
        before, after = bound["pad"][2 * number : 2 * number + 2]
        if before == 0 and after == 0:
            continue
        place = index[dim]
        if not isinstance(place, Affine):
            raise cx.refuse("padding at an index that is read from memory")
        places[dim] = shifted(cx, place, -before)
        where.append(Within(place, before, before + shape[dim]))
    read = Read(0, tuple(places), tuple(where))
    return (read, Fill(bound["value"])) if where else (read,)


def slice_scatter(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim = dimension(cx, bound["dim"])
    size, place = input_shape(cx)[dim], index[dim]
    start = clamped(cx, bound["start"], size, 0)
    end = clamped(cx, bound["end"], size, size)
    if bound["step"] != 1 or not isinstance(place, Affine):
        raise cx.refuse("slice_scatter with a step, or at an index that is read from memory")
    inside = replaced(index, dim, shifted(cx, place, -start))
    return (
        Read(1, inside, (Within(place, start, end),)),
        Read(0, index, guarded=False),
    )


def select_scatter(cx: Context, index: Index) -> tuple[Source, ...]:
    bound = arguments(cx)
    dim = dimension(cx, bound["dim"])
    at, place = bound["index"], index[dim]
    if not isinstance(place, Affine):
        raise cx.refuse("select_scatter at an index that is read from memory")
    if isinstance(at, int) and at < 0:
        at = input_shape(cx)[dim] + at
    inside = (*index[:dim], *index[dim + 1 :])
    return (
        Read(1, inside, (Within(place, at, at + 1),), guarded=False),
        Read(0, index, guarded=False),
    )


# -- the table ------------------------------------------------------------------------------------

_RULES: tuple[tuple[ViewRule, tuple[OpOverload, ...]], ...] = (
    (reshape, (aten.view.default, aten.reshape.default, aten._unsafe_view.default)),
    (as_strided, (aten.as_strided.default,)),
    (permute, (aten.permute.default,)),
    (transpose, (aten.transpose.int,)),
    (reverse, (aten.t.default,)),
    (unchanged, (aten.alias.default, aten.detach.default)),
    (expand, (aten.expand.default,)),
    (broadcast_in_dim, (prims.broadcast_in_dim.default,)),
    (
        squeeze_family,
        (
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
    ),
    (slice_, (aten.slice.Tensor,)),
    (select, (aten.select.int,)),
    (unbind, (aten.unbind.int,)),
    (split, (aten.split.Tensor, aten.split_with_sizes.default)),
    (diagonal, (aten.diagonal.default,)),
    (unfold, (aten.unfold.default,)),
    (flip, (aten.flip.default, prims.rev.default)),
    (roll, (aten.roll.default,)),
    (cat, (aten.cat.default,)),
    (constant_pad, (aten.constant_pad_nd.default,)),
    (slice_scatter, (aten.slice_scatter.default,)),
    (select_scatter, (aten.select_scatter.default,)),
)

VIEWS: tuple[Lowering, ...] = tuple(
    Lowering(overload, "view", rule) for rule, overloads in _RULES for overload in overloads
)

RESHAPES: frozenset[OpOverload] = frozenset(
    (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.as_strided.default)
)
"""Views that renumber several dimensions together: their axes are matched by factors."""

COPIES: frozenset[OpOverload] = frozenset(
    overload
    for rule, overloads in _RULES
    if rule in (flip, roll, cat, constant_pad, slice_scatter, select_scatter)
    for overload in overloads
)
"""Rows whose result is new memory; the others give views (a reshape: where strides allow)."""
