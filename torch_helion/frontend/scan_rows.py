"""Scans, reductions with the user's functions, random numbers.

In: arguments of a call. Out: values. Random numbers are those of Philox, keyed by a seed and the
place of an element in the product of whole ranges: block sizes change nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from torch_helion import exc, language
from torch_helion.frontend.builtin_rows import scalar
from torch_helion.frontend.calls import Calls, as_value, rule
from torch_helion.frontend.functions import TORCH, Interpreter, Row, is_kernel, row
from torch_helion.frontend.language_rows import dims_of
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Dim, Function, Inline, Tensor, describe, is_number
from torch_helion.frontend.views import scanned
from torch_helion.ir.graph import Value
from torch_helion.ir.types import begin_symbol

aten = torch.ops.aten

# -- scans --------------------------------------------------------------------------------------


def _cumulative(fn: str) -> Row:
    def call(
        i: Interpreter,
        x: Any,
        dim: Any,
        reverse: bool = False,
        exclusive: bool = False,
        dtype: Any = None,
        **ignored: Any,
    ) -> Tensor:
        _tensor(x, f"cum{fn}")
        place(x, dim)
        dtype = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
        return scanned(Calls(i.p), fn, x, dim, dtype, reverse, exclusive)

    return call


@row(language.cumsum)
def _cumsum(
    i: Interpreter, input_tensor: Any, dim: Any, reverse: bool = False, exclusive: bool = False
) -> Tensor:
    return _cumulative("sum")(i, input_tensor, dim, reverse, exclusive)


@row(language.cumprod)
def _cumprod(
    i: Interpreter, input_tensor: Any, dim: Any, reverse: bool = False, exclusive: bool = False
) -> Tensor:
    return _cumulative("prod")(i, input_tensor, dim, reverse, exclusive)


TORCH["cumsum"], TORCH["cumprod"] = _cumulative("sum"), _cumulative("prod")


def _tensor(x: Any, name: str) -> None:
    if not isinstance(x, Tensor):
        raise exc.TypeInferenceError(f"hl.{name} needs a tensor of the device, got {describe(x)}")


def place(x: Tensor, dim: Any) -> int:
    """A dimension as a number from 0."""
    if isinstance(dim, list | tuple) and len(dim) == 1:
        (dim,) = dim
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise exc.InvalidReductionDim(dim)
    if not -x.rank <= dim < x.rank:
        raise exc.ReductionDimInvalidForShape(dim, repr(x))
    return dim % x.rank


# -- the user's functions -------------------------------------------------------------------------


@row(language.reduce)
def reduce(
    i: Interpreter,
    combine_fn: Any,
    input_tensor: Any,
    dim: Any = None,
    other: Any = 0,
    keep_dims: bool = False,
) -> Any:
    fn, x = combine_fn, input_tensor
    xs = list(x) if isinstance(x, tuple | list) else [x]
    for one in xs:
        _tensor(one, "reduce")
    p = i.p
    dims = p.axes.joined([t.dims for t in xs])
    values = [p.axes.put(t.value, t.dims, dims) for t in xs]
    gone = range(len(dims)) if dim is None else (place(Tensor(values[0], dims), dim),)
    others = list(other) if isinstance(other, tuple | list) else [other] * len(xs)
    if len(others) != len(xs):
        raise exc.TypeInferenceError(f"hl.reduce: {len(others)} values of other for {len(xs)}")
    kept = tuple(d for n, d in enumerate(dims) if n not in gone)
    axes = [d for n, d in enumerate(dims) if n in gone and d is not None]
    if axes:
        combine = _combine(i, fn, isinstance(x, tuple | list), len(xs), kept)
        values = [p.b.expand(v, axes) for v in values]
        values = p.b.custom_reduce(values, axes, others, combine)
    if keep_dims:
        kept = tuple(None if n in gone else d for n, d in enumerate(dims))
    results = [Tensor(v, kept) for v in values]
    return tuple(results) if isinstance(x, tuple | list) else results[0]


_KNOWN = {torch.add: "sum", torch.mul: "prod", torch.maximum: "max", torch.minimum: "min"}
"""Functions whose scans the tile IR has by name."""


@row(language.associative_scan)
def associative_scan(
    i: Interpreter,
    combine_fn: Any,
    input_tensor: Any,
    dim: Any,
    reverse: bool = False,
    exclusive: bool = False,
) -> Any:
    fn, x = combine_fn, input_tensor
    xs = list(x) if isinstance(x, tuple | list) else [x]
    for one in xs:
        _tensor(one, "associative_scan")
    p = i.p
    known = _known_scan(fn, x)
    if known:
        place(x, dim)
        return scanned(Calls(p), known, x, dim, x.dtype, reverse, exclusive)
    if exclusive:
        raise exc.TypeInferenceError(
            "hl.associative_scan: exclusive=True needs one value and torch.add, torch.mul, "
            "torch.maximum or torch.minimum"
        )
    dims = p.axes.joined([t.dims for t in xs])
    values = [p.axes.put(t.value, t.dims, dims) for t in xs]
    at = place(Tensor(values[0], dims), dim)
    axis = dims[at]
    if axis is not None:
        rest = (*dims[:at], *dims[at + 1 :])
        combine = _combine(i, fn, isinstance(x, tuple | list), len(xs), rest)
        values = [p.b.expand(v, [axis]) for v in values]
        values = p.b.custom_scan(values, axis, combine, reverse)
    results = [Tensor(v, dims) for v in values]
    return tuple(results) if isinstance(x, tuple | list) else results[0]


def _known_scan(fn: Any, x: Any) -> str | None:
    """The name of the scan; none for half types, where a sum would round at other places."""
    try:
        name = _KNOWN.get(fn)
    except TypeError:  # unhashable
        return None
    single = isinstance(x, Tensor) and x.dtype not in (torch.float16, torch.bfloat16)
    return name if single and x.dtype is not torch.bool else None


def _torch_scan(
    i: Interpreter, combine_fn: Any, xs: Any, dim: Any, reverse: bool = False, **ignored: Any
) -> Any:
    return associative_scan(i, combine_fn, xs, dim, reverse)


TORCH["associative_scan"] = _torch_scan


def _combine(
    i: Interpreter, fn: Any, several: bool, count: int, dims: tuple[Dim, ...]
) -> Callable[..., Sequence[Value]]:
    """The user's function as a function of IR values."""
    plain = fn.fn if is_kernel(fn) else fn
    spread = several and count * 2 == _parameters(plain) and count * 2 != 2

    def combine(builder: Any, left: list[Value], right: list[Value]) -> list[Value]:
        a, b = ([Tensor(v, dims) for v in side] for side in (left, right))
        with i.p.region():
            if not several:
                result = i.call(plain, [a[0], b[0]], {})
            elif spread:
                result = i.call(plain, [*a, *b], {})
            else:
                result = i.call(plain, [tuple(a), tuple(b)], {})
        results = list(result) if several else [result]
        if len(results) != count:
            raise exc.TypeInferenceError(f"the function gives {len(results)} values for {count}")
        return [_value(i.p, r, v, dims) for r, v in zip(results, left, strict=True)]

    return combine


def _parameters(fn: Any) -> int:
    if isinstance(fn, Inline):
        return len(fn.names)
    fn = fn.fn if isinstance(fn, Function) else fn
    try:
        return len(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return 2


def _value(p: Program, result: Any, like: Value, dims: tuple[Dim, ...]) -> Value:
    if isinstance(result, Tensor):
        return p.b.cast(p.axes.put(result.value, result.dims, dims), like.type.dtype)
    if not is_number(result):
        raise exc.TypeInferenceError(f"the function gives {describe(result)}")
    return p.typed(result, like.type.dtype)


# -- random numbers -------------------------------------------------------------------------------


def logical_index(p: Program, dims: Sequence[Dim]) -> Value:
    """The row-major number of each element in the product of whole ranges."""
    total: Value | None = None
    for dim in dims:
        if dim is None:
            continue
        begin, size = p.ranges.get(p.axes.root(dim).name, (0, dim.size))
        here = p.b.iota(dim)
        if begin != 0:
            here = p.b.pointwise("add", here, p.b.size_value(begin))
        if total is not None:
            here = p.b.pointwise("add", p.b.pointwise("mul", total, p.b.size_value(size)), here)
        total = here
    return p.b.const(0, torch.int64) if total is None else total


def _seed(i: Interpreter, seed: Any) -> Value:
    return i.p.b.cast(i.p.value(scalar(i, i.operand(seed))), torch.int64)


def _place(i: Interpreter, dims: tuple[Dim, ...], offsets: Any) -> Value:
    if offsets is None:
        return logical_index(i.p, dims)
    offsets = i.operand(offsets)
    _tensor(offsets, "rand")
    joint = i.p.axes.joined([offsets.dims, dims])
    if len(joint) > len(dims):
        raise exc.ShapeMismatch(repr(offsets), str(dims))
    return i.p.b.cast(i.p.axes.put(offsets.value, offsets.dims, dims), torch.int64)


def _floats(fn: str) -> Row:
    def call(
        i: Interpreter, shape: Any, seed: Any, device: Any = None, offsets: Any = None
    ) -> Tensor:
        dims = dims_of(i, shape, f"hl.{fn}")
        return Tensor(i.p.b.rng(fn, _seed(i, seed), _place(i, dims, offsets)), dims)

    return call


row(language.rand)(_floats("rand"))
row(language.randn)(_floats("randn"))


@row(language.randint)
def _randint(
    i: Interpreter,
    shape: Any,
    low: Any,
    high: Any,
    seed: Any,
    device: Any = None,
    offsets: Any = None,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    dims = dims_of(i, shape, "hl.randint")
    bounds = [i.p.b.cast(i.p.value(scalar(i, i.operand(x))), torch.int64) for x in (low, high)]
    value = i.p.b.rng("randint", _seed(i, seed), _place(i, dims, offsets), *bounds)
    return Tensor(i.p.b.cast(value, dtype), dims)


@row(language.rand4x)
def _rand4x(i: Interpreter, seed: Any, offsets: Any, device: Any = None) -> Any:
    _tensor(offsets, "rand4x")
    places = i.p.b.cast(as_value(i.p, offsets), torch.int64)
    number = _seed(i, seed)
    return tuple(
        Tensor(i.p.b.rng("rand", number, places, word=word), offsets.dims) for word in range(4)
    )


def _drawn_seed(p: Program, dims: Sequence[Dim]) -> Value:
    """A seed for one place of the program, another one in each round of a loop around it.

    Loops whose tiles are among the dimensions are told apart by the places of the elements.
    """
    p.seed_sites += 1
    seed: sympy.Expr = p.sizes.seed() + 1_000_003 * (p.seed_sites - 1)
    inside = {p.axes.root(d).name for d in dims if d is not None}
    others = [begin_symbol(a) for a in p.axes.open if a.name not in inside]
    for number, counter in enumerate([*p.counters, *others]):
        seed = seed + counter * (7_919 + 2 * number)
    return p.b.size_value(seed)


@rule(
    aten.rand.default,
    aten.randn.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.randint.default,
    aten.randint.low,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
)
def _torch_random(calls: Calls, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    name = func._schema.name.split("::")[1]
    like = name.endswith("_like")
    fake = func(*args, **kwargs)
    dims = calls.of(args[0]).dims if like else calls.new_dims(fake.shape)
    fn, p = name.removesuffix("_like"), calls.p
    bounds: list[Value] = []
    if fn == "randint":
        given = [a for a in args[1 if like else 0 :] if isinstance(a, int)]
        low, high = given if len(given) == 2 else (0, given[0])
        bounds = [p.b.const(low, torch.int64), p.b.const(high, torch.int64)]
    value = p.b.rng(fn, _drawn_seed(p, dims), logical_index(p, dims), *bounds)
    return calls.stand(fake, Tensor(p.b.cast(value, fake.dtype), dims))


def _dropout(i: Interpreter, x: Any, p: float = 0.5, training: bool = True, *rest: Any) -> Any:
    """functional.dropout: zeros with probability p, the rest scaled."""
    _tensor(x, "dropout")
    if not training or p == 0:
        return x
    scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
    uniform = i.call(torch.rand_like, [x], {"dtype": torch.float32})
    kept = i.call(torch.ge, [uniform, p], {})
    scaled = i.call(torch.mul, [x, scale], {})
    return i.call(torch.where, [kept, scaled, 0.0], {})


TORCH["dropout"] = _dropout
