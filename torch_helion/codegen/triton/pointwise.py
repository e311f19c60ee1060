"""The rows of the pointwise table: how each function is written in Triton.

In: the texts of aligned operands and a `Site`. Out: the text of the result. Meanings are those of
`ir/pointwise_functions.py`; what Triton lacks comes from libdevice, which both vendors have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from torch_helion.codegen.triton.dtypes import Number, dtype_name


@dataclass(frozen=True)
class Site:
    """Where a row is used."""

    dtype: torch.dtype
    """Of the operands (of the last one, for `where`)."""
    helper: Callable[[str], str]
    """Ask for a helper function (or for libdevice); its name."""
    numbers: tuple[Number | None, ...] = ()
    """Operands that are numbers."""
    nonzero: Callable[[str], None] = lambda text: None
    """Demand that a divisor is not zero in any lane."""

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point


Row = Callable[..., str]


def _binary(sign: str) -> Row:
    return lambda site, a, b: f"{a} {sign} {b}"


def _call(function: str) -> Row:
    return lambda site, *operands: f"{function}({', '.join(operands)})"


def _device(function: str) -> Row:
    def row(site: Site, *operands: str) -> str:
        return f"{site.helper('libdevice')}.{function}({', '.join(operands)})"

    return row


def _extreme(function: str, sign: str) -> Row:
    def row(site: Site, a: str, b: str) -> str:
        if site.dtype is torch.bool:
            return f"{a} {sign} {b}"
        nan = ", propagate_nan=tl.PropagateNan.ALL" if site.floating else ""
        return f"tl.{function}({a}, {b}{nan})"

    return row


def _neg(site: Site, a: str) -> str:
    # `-x` is 0 - x, which loses the sign of zero
    return f"{a} * -1.0" if site.floating else f"-{a}"


def _sign(site: Site, a: str) -> str:
    if site.dtype is torch.bool:
        return a
    name = dtype_name(site.dtype)
    positive = f"({a} > 0).to({name})"
    return positive if site.dtype is torch.uint8 else f"{positive} - ({a} < 0).to({name})"


def _div(site: Site, a: str, b: str) -> str:
    # `/` is an approximation in float32
    return f"tl.div_rn({a}, {b})" if site.dtype is torch.float32 else f"{a} / {b}"


def _sqrt(site: Site, a: str) -> str:
    return f"tl.sqrt_rn({a})" if site.dtype is torch.float32 else f"tl.sqrt({a})"


def _integer_division(sign: str, helper: str, floating: str = "") -> Row:
    """`sign`: what gives the same for operands of one sign by a positive number."""

    def row(site: Site, a: str, b: str) -> str:
        if site.floating:
            double = site.dtype is torch.float64 and floating == "_floordiv_float"
            if floating == "_fmod_float":
                return f"{site.helper('libdevice')}.fmod({a}, {b})"
            return f"{site.helper('_floordiv_double' if double else floating)}({a}, {b})"
        divisor = site.numbers[1] if len(site.numbers) > 1 else None
        if not divisor:
            site.nonzero(b)
        plain = divisor not in (None, 0, -1) and helper in ("_truncdiv", "_fmod")
        if plain or site.dtype is torch.uint8:
            return f"{a} {sign} {b}"
        return f"{site.helper(helper)}({a}, {b})"

    return row


def _shift(sign: str) -> Row:
    def row(site: Site, a: str, b: str) -> str:
        width = site.dtype.itemsize * 8
        amount = site.numbers[1] if len(site.numbers) > 1 else None
        if amount is not None and 0 <= amount < width:
            return f"{a} {sign} {b}"
        inside = f"({b} >= 0) & ({b} < {width})"
        if sign == "<<":
            return f"tl.where({inside}, {a} << tl.where({inside}, {b}, 0), 0 * {a})"
        if site.dtype is torch.uint8:
            return f"tl.where({inside}, {a} >> tl.where({inside}, {b}, 0), 0 * {a})"
        return f"{a} >> tl.where({inside}, {b}, {width - 1})"

    return row


def _ipow(site: Site, a: str, b: str) -> str:
    exponent = site.numbers[1] if len(site.numbers) > 1 else None
    if exponent is not None and 1 <= exponent <= 4:
        return " * ".join([a] * int(exponent))
    return f"{site.helper('_ipow')}({a}, {b})"


def _isinf(site: Site, a: str) -> str:
    return f'tl.abs({a}) == float("inf")'


def _isfinite(site: Site, a: str) -> str:
    return f'tl.abs({a}) < float("inf")'


def _signbit(site: Site, a: str) -> str:
    if not site.floating:
        return f"{a} < 0"
    bits = "tl.int32" if site.dtype is torch.float32 else "tl.int64"
    return f"{a}.to({bits}, bitcast=True) < 0"


_LIBDEVICE = """
trunc expm1 log10 log1p tan tanh sinh cosh asin acos atan asinh acosh atanh erfc erfinv lgamma pow
atan2 hypot copysign nextafter
"""
_TL = "rsqrt floor ceil exp exp2 log log2 sigmoid sin cos erf abs fma where"
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

POINTWISE_ROWS: Mapping[str, Row] = {
    **{name: _binary(sign) for name, sign in (_SIGNS | _COMPARISONS).items()},
    **{name: _call(f"tl.{name}") for name in _TL.split()},
    **{name: _device(name) for name in _LIBDEVICE.split()},
    "minimum": _extreme("minimum", "&"),
    "maximum": _extreme("maximum", "|"),
    "neg": _neg,
    "sign": _sign,
    "div": _div,
    "sqrt": _sqrt,
    "round": _device("nearbyint"),
    "i0": _device("cyl_bessel_i0"),
    "i1": _device("cyl_bessel_i1"),
    "truncdiv": _integer_division("//", "_truncdiv"),
    "floordiv": _integer_division("//", "_floordiv", "_floordiv_float"),
    "remainder": _integer_division("%", "_remainder", "_remainder_float"),
    "fmod": _integer_division("%", "_fmod", "_fmod_float"),
    "ipow": _ipow,
    "isnan": lambda site, a: f"{a} != {a}",
    "isinf": _isinf,
    "isfinite": _isfinite,
    "signbit": _signbit,
    "not": lambda site, a: f"~{a}",
    "shl": _shift("<<"),
    "shr": _shift(">>"),
}

UNSUPPORTED = frozenset(("digamma", "i0e", "i1e"))
"""Functions that neither Triton nor libdevice has."""
