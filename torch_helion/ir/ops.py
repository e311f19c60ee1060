"""The op tables of the tile IR: op kinds, pointwise functions, reductions.

In: nothing. Out: three visible tables of rows. The verifier, the interpreter, the printer and every
target key their own rows by these names; a target that misses a name must list it as a deliberate
gap.

Pointwise functions work on operands of one dtype: promotion and rounding of half types are explicit
`cast`s in the program, so that numerics are those of the graph and never a target's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class OpKind:
    """One kind of operation. `pure`: may be removed when unused and computed again when cheaper."""

    name: str
    about: str
    pure: bool = True
    has_region: bool = False


OP_KINDS: dict[str, OpKind] = {
    k.name: k
    for k in (
        OpKind(
            "loop",
            "attrs kind (grid, tile, sequential), axes, blocks (one Size an axis; absent: "
            "block_symbol of each), serial (grid: steps in order, in one thread); sequential: "
            "symbol, begin, end, step; region args and results are the loop-carried values",
            pure=False,
            has_region=True,
        ),
        OpKind(
            "if",
            "operand: rank-0 bool; two regions; results merge what they yield",
            pure=False,
            has_region=True,
        ),
        OpKind("while", "regions: condition, body; carried values", pure=False, has_region=True),
        OpKind("yield", "ends a region; operands are its results", pure=False),
        OpKind("bind", "operand: rank-0 int64; attr symbol: its name in sizes from here on"),
        OpKind(
            "load",
            "attrs buffer, index (one IndexExpr a dimension), checked, stacked; operands: the "
            "addresses when stacked, gathered indices, then the mask when attr masked; lanes "
            "masked off hold attr other",
        ),
        OpKind(
            "store",
            "like load; the value is operand 0, addresses, gathered indices and mask follow",
            pure=False,
        ),
        OpKind(
            "atomic",
            "attr fn (a row of ATOMICS); like store (cas: expected, value), with "
            "read-modify-write; the optional result is what was there before",
            pure=False,
        ),
        OpKind("pointwise", "attr fn (a row of POINTWISE); operands are aligned by axis name"),
        OpKind("cast", "attr dtype; PyTorch's conversion: round to even, float to int truncates"),
        OpKind("bitcast", "attr dtype of the same width: the same bits"),
        OpKind(
            "reduce",
            "attrs fn (a row of REDUCTIONS, or custom), axes (names that leave the type); custom: "
            "n operands and results, attr identity, a region that joins n left and n right values",
            has_region=True,
        ),
        OpKind(
            "scan",
            "attrs fn (a row of SCANS, or custom), axis, reverse, exclusive; within a tile; custom "
            "as for reduce",
            has_region=True,
        ),
        OpKind(
            "dot",
            "attrs k (axis name), acc (dtype of result and accumulator); operands a, b[, acc] are "
            "joined over the axis k; other common axes are batches",
        ),
        OpKind(
            "reshape",
            "attrs source (axis names, outer to inner), target (axes in their place), row-major; a "
            "block axis counts as its whole block: lanes beyond the tile are 0, or cut",
        ),
        OpKind("reaxis", "attr axes: pairs (old name, new Axis of the same extent)"),
        OpKind(
            "expand",
            "attr axes: the value repeated along more axes; what a reduction over them then counts",
        ),
        OpKind("iota", "attr axis: position along the axis, int64"),
        OpKind("const", "attr value, dtype: rank 0"),
        OpKind("size", "attr expr: a size expression as a rank-0 int64"),
        OpKind(
            "rng",
            "attrs fn (rand, randn, randint), word (0 to 3, of the Philox block); operands: seed, "
            "logical index[, low, high], all int64",
        ),
        OpKind(
            "sort",
            "attrs axis, descending, stable, k (None, or how many to keep), out_axis (of extent k, "
            "or the axis itself); results values, int64 indices, which count within the tile",
        ),
        OpKind(
            "take",
            "operands value, index (int64); attr axis: the value at this position along the axis "
            "(within the tile); an index outside ends the kernel with status 1",
        ),
        OpKind(
            "assert",
            "operand: bool; attr status (1 index, 2 division): false lanes end the kernel with it",
            pure=False,
        ),
        OpKind("print", "attr text; operands: values to show", pure=False),
        OpKind("barrier", "grid loops before it have finished everywhere", pure=False),
    )
}

ATOMICS = ("add", "max", "min", "and", "or", "xor", "xchg", "cas")
SCANS = ("sum", "prod", "max", "min")
ASSERTED = {1: "index out of range", 2: "division by zero"}
"""What an `assert` says that ends a kernel, by its status: an IndexError, a RuntimeError."""

CUSTOM = "custom"
"""The function of a reduce or scan whose region `combine` says what it does."""
COMBINE_KINDS = ("pointwise", "cast", "bitcast", "const", "size", "expand", "yield")
"""What a combine region may hold."""

HALF = (torch.float16, torch.bfloat16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
STORAGE_ONLY = frozenset((*HALF, *FLOAT8, *WIDE_UNSIGNED))
"""Loaded, stored, moved and cast, never computed in."""

Domain = Literal["float", "int", "bool", "number", "bits", "any"]
"""Which dtypes a pointwise function takes: number = float or int, bits = int or bool."""


@dataclass(frozen=True)
class Pointwise:
    """One pointwise function: result "same" as the operands' dtype, "bool", or "where" (operand 0
    is the bool).
    """

    name: str
    arity: int
    domain: Domain
    result: Literal["same", "bool", "where"] = "same"
    cost: int = 1
    """Rough vector operations an element; what a schedule weighs against keeping the value."""


def _rows(
    domain: Domain, arity: int, cost: int, names: str, result: str = "same"
) -> tuple[Pointwise, ...]:
    return tuple(Pointwise(n, arity, domain, result, cost) for n in names.split())  # type: ignore[arg-type]


POINTWISE: dict[str, Pointwise] = {
    p.name: p
    for p in (
        *_rows("number", 2, 1, "add sub mul"),
        *_rows("any", 2, 2, "minimum maximum"),  # NaN wins; bool: and, or
        *_rows("number", 1, 1, "neg abs"),
        *_rows("any", 1, 2, "sign"),
        *_rows("float", 2, 8, "div"),  # correctly rounded quotient
        *_rows("int", 2, 30, "truncdiv"),  # rounds to zero; a zero divisor is an error status
        *_rows(
            "number", 2, 30, "floordiv remainder fmod"
        ),  # Python and C remainders as PyTorch defines them
        *_rows("float", 1, 8, "sqrt rsqrt"),
        *_rows("float", 1, 1, "floor ceil trunc round"),  # round: half to even
        *_rows("float", 1, 15, "exp exp2 expm1 log log2 log10 log1p sigmoid"),
        *_rows("float", 1, 20, "sin cos tan tanh sinh cosh erf"),
        *_rows("float", 1, 30, "asin acos atan asinh acosh atanh erfc erfinv"),
        *_rows("float", 1, 80, "lgamma digamma i0 i0e i1 i1e"),
        *_rows("float", 2, 40, "pow atan2 hypot"),
        *_rows("int", 2, 30, "ipow"),  # exponent >= 0; wraps
        *_rows("float", 2, 2, "copysign nextafter"),
        *_rows("float", 3, 1, "fma"),  # one rounding
        *_rows("float", 1, 1, "isnan isinf isfinite", "bool"),
        *_rows("number", 1, 1, "signbit", "bool"),
        *_rows("any", 2, 1, "eq ne lt le gt ge", "bool"),
        *_rows("bits", 2, 1, "and or xor"),
        *_rows("bits", 1, 1, "not"),
        *_rows("int", 2, 1, "shl shr"),  # shr is arithmetic for signed types
        Pointwise("where", 3, "any", "where", 1),
    )
}


@dataclass(frozen=True)
class Reduction:
    """One associative reduction. Arg reductions give the int64 position of the first extreme (NaN
    is extreme).
    """

    name: str
    domain: Domain
    result: Literal["same", "index"] = "same"


REDUCTIONS: dict[str, Reduction] = {
    r.name: r
    for r in (
        Reduction("sum", "number"),
        Reduction("prod", "number"),
        Reduction("max", "any"),
        Reduction("min", "any"),
        Reduction("any", "bool"),
        Reduction("all", "bool"),
        Reduction("argmax", "any", "index"),
        Reduction("argmin", "any", "index"),
    )
}

RNG = ("rand", "randn", "randint")


def accumulators(a: torch.dtype, b: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes in which a dot of `a` and `b` may be summed; none: there is no such dot."""
    small_ints = (torch.int8, torch.uint8)
    if a in small_ints and b in small_ints:
        return (torch.int32,)
    if a is not b and not (a in FLOAT8 and b in FLOAT8):
        return ()
    if a is torch.float64:
        return (torch.float64,)
    return (torch.float32, torch.float64) if a.is_floating_point else ()


def is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point


def in_domain(dtype: torch.dtype, domain: Domain) -> bool:
    """Whether a pointwise function or reduction of `domain` takes `dtype`."""
    floating, boolean = dtype.is_floating_point, dtype is torch.bool
    return {
        "any": True,
        "float": floating,
        "bool": boolean,
        "int": not floating and not boolean,
        "number": not boolean,
        "bits": not floating,
    }[domain]


def identity_of(fn: str, dtype: torch.dtype) -> float | int | bool:
    """The value that leaves a reduction unchanged."""
    if fn in ("any",):
        return False
    if fn in ("all",):
        return True
    if fn == "sum":
        return 0
    if fn == "prod":
        return 1
    lowest = fn in ("max", "argmax")
    if dtype is torch.bool:
        return not lowest
    if dtype.is_floating_point:
        return float("-inf") if lowest else float("inf")
    info = torch.iinfo(dtype)
    return info.min if lowest else info.max
