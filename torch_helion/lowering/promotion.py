"""How a call's operands become tiles of one dtype, and the notation that formulas are written in.

In: the arguments of one call (tile values, Python numbers, sizes) beside the fakes that PyTorch's
own type promotion reads. Out: `Term`s in the dtype that the operation computes in, and results
rounded once to the dtype that PyTorch gives. Used by every family of `lowering/`.

Half types compute in float32. An operand of another dtype is first rounded to the common dtype, as
ATen's TensorIterator does; so are Python numbers, except where ATen's CPU kernels read them in
float32 (`exact_scalars`: the second operand of mul and div; test_half_scalars holds what was
measured, operation by operation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from torch_helion.ir.graph import Value
from torch_helion.ir.ops import POINTWISE, in_domain
from torch_helion.ir.types import Axis, Size
from torch_helion.lowering.registry import Context

PromotionKind = ELEMENTWISE_TYPE_PROMOTION_KIND
DEFAULT = PromotionKind.DEFAULT
INT_TO_FLOAT = PromotionKind.INT_TO_FLOAT
ALWAYS_BOOL = PromotionKind.ALWAYS_BOOL
BOOL_TO_LONG = PromotionKind.BOOL_TO_LONG

HALF_TYPES = (torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SUPPORTED = frozenset((*HALF_TYPES, torch.float32, torch.float64, *INTEGERS, torch.bool))

Number = bool | int | float


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of `dtype` are computed in."""
    return torch.float32 if dtype in HALF_TYPES else dtype


# -- terms -------------------------------------------------------------------------------------


class Term:
    """A tile value with arithmetic. Numbers beside it become constants of its dtype."""

    __slots__ = ("cx", "value")

    def __init__(self, cx: Context, value: Value) -> None:
        self.cx = cx
        self.value = value

    @property
    def dtype(self) -> torch.dtype:
        return self.value.type.dtype

    @property
    def is_float(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def is_bool(self) -> bool:
        return self.dtype is torch.bool

    def constant(self, number: Number) -> Term:
        """`number` in this term's dtype. A number that the dtype cannot hold is refused."""
        return constant(self.cx, number, self.dtype)

    def like(self, other: Term | Number) -> Term:
        return other if isinstance(other, Term) else self.constant(other)

    def call(self, fn: str, *others: Term | Number) -> Term:
        """The pointwise function `fn` of this term and `others`."""
        domain = POINTWISE[fn].domain
        if POINTWISE[fn].result != "where" and not in_domain(self.dtype, domain):
            raise self.cx.refuse(f"{fn} is not defined for {self.dtype}")
        operands = [self.value, *(self.like(other).value for other in others)]
        return Term(self.cx, self.cx.b.pointwise(fn, *operands))

    def to(self, dtype: torch.dtype) -> Term:
        return Term(self.cx, self.cx.b.cast(self.value, dtype))

    def where(self, yes: Term | Number, no: Term | Number) -> Term:
        """`yes` where this (a bool) holds, else `no`; at least one of the two is a term."""
        typed = yes if isinstance(yes, Term) else no
        assert isinstance(typed, Term), "where needs a term to take the dtype from"
        value = self.cx.b.pointwise(
            "where", self.value, typed.like(yes).value, typed.like(no).value
        )
        return Term(self.cx, value)

    def along(self, axes: Sequence[Axis]) -> Term:
        """This value repeated along those of `axes` that it does not have."""
        return Term(self.cx, self.cx.b.expand(self.value, axes))

    def fold(self, fn: str, axes: Sequence[Axis]) -> Term:
        """The reduction `fn` over `axes`; constant axes count as often as they are long."""
        if not axes:
            return self
        return Term(self.cx, self.cx.b.reduce(fn, self.along(axes).value, axes))

    def __add__(self, other: Term | Number) -> Term:
        return self.call("add", other)

    def __sub__(self, other: Term | Number) -> Term:
        return self.call("sub", other)

    def __mul__(self, other: Term | Number) -> Term:
        return self.call("mul", other)

    def __truediv__(self, other: Term | Number) -> Term:
        return self.call("div", other)

    def __radd__(self, other: Number) -> Term:
        return self.constant(other) + self

    def __rsub__(self, other: Number) -> Term:
        return self.constant(other) - self

    def __rmul__(self, other: Number) -> Term:
        return self.constant(other) * self

    def __rtruediv__(self, other: Number) -> Term:
        return self.constant(other) / self

    def __neg__(self) -> Term:
        return self.call("neg")

    def __lt__(self, other: Term | Number) -> Term:
        return self.call("lt", other)

    def __le__(self, other: Term | Number) -> Term:
        return self.call("le", other)

    def __gt__(self, other: Term | Number) -> Term:
        return self.call("gt", other)

    def __ge__(self, other: Term | Number) -> Term:
        return self.call("ge", other)

    def eq(self, other: Term | Number) -> Term:
        return self.call("eq", other)

    def ne(self, other: Term | Number) -> Term:
        return self.call("ne", other)

    def __and__(self, other: Term | Number) -> Term:
        return self.call("and", other)

    def __or__(self, other: Term | Number) -> Term:
        return self.call("or", other)

    def __invert__(self) -> Term:
        return self.call("not")


def constant(cx: Context, number: Number, dtype: torch.dtype) -> Term:
    """`number` as a constant of `dtype`; refused where the dtype cannot hold it."""
    if isinstance(number, sympy.Expr):
        return size(cx, number, dtype)
    if isinstance(number, complex):
        raise cx.refuse("complex numbers have no tiles")
    if dtype.is_floating_point:
        if math.isfinite(number) and abs(number) > torch.finfo(dtype).max:
            raise cx.refuse(f"{number} does not fit {dtype}")
        # Half types only occur as the result of a cast.
        return Term(cx, cx.b.const(float(number), wide(dtype))).to(dtype)
    if dtype is torch.bool:
        return Term(cx, cx.b.const(bool(number), dtype))
    info = torch.iinfo(dtype)
    whole = math.isfinite(number) and number == int(number)
    if not whole or not info.min <= number <= info.max:
        raise cx.refuse(f"{number} does not fit {dtype}")
    return Term(cx, cx.b.const(int(number), dtype))


def size(cx: Context, extent: Size, dtype: torch.dtype = torch.int64) -> Term:
    """A size expression as a rank-0 term."""
    if isinstance(extent, sympy.Expr) and not extent.is_integer:
        raise cx.refuse(f"{extent} is not an integer expression of the sizes")
    return Term(cx, cx.b.size_value(extent)).to(dtype)


def converted(number: Number, dtype: torch.dtype) -> Number:
    """`number` as ATen's wrapped scalars convert: integers wrap, floats round or become inf."""
    source = torch.float64 if isinstance(number, float) else torch.int64
    return torch.tensor(number, dtype=source).to(dtype).item()


# -- arguments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """One argument of a call: what the rule was given, and the fake that stands for it."""

    given: Any
    fake: Any

    @property
    def is_single(self) -> bool:
        """A number, or a tensor of one element of any rank (a CPU scalar in ATen's kernels)."""
        if not isinstance(self.given, Value):
            return True
        return all(isinstance(extent, int) and extent == 1 for extent in self.fake.shape)


def bind(cx: Context, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Argument]:
    """The arguments by their schema names, defaults filled in."""
    bound: dict[str, Argument] = {}
    for i, formal in enumerate(cx.overload._schema.arguments):
        if i < len(args):
            bound[formal.name] = Argument(args[i], cx.args[i])
        elif formal.name in kwargs:
            bound[formal.name] = Argument(kwargs[formal.name], cx.kwargs[formal.name])
        else:
            bound[formal.name] = Argument(formal.default_value, formal.default_value)
    return bound


def common_dtype(
    cx: Context, operands: Iterable[Argument], kind: PromotionKind = DEFAULT
) -> torch.dtype:
    """PyTorch's promotion of the operands, before any widening of half types."""
    kind = kind if kind in (INT_TO_FLOAT, BOOL_TO_LONG) else DEFAULT
    fakes = [_promoted_as(operand) for operand in operands if operand.given is not None]
    _, dtype = elementwise_dtypes(*fakes, type_promotion_kind=kind)
    if dtype not in SUPPORTED:
        raise cx.refuse(f"{dtype} has no tiles")
    return dtype


def _promoted_as(operand: Argument) -> Any:
    # A symbolic size takes part in promotion as the integer that it will be.
    if isinstance(operand.given, sympy.Expr):
        return 2
    return operand.fake if isinstance(operand.given, Value) else operand.given


def promote(
    cx: Context,
    operands: Sequence[Argument],
    kind: PromotionKind = DEFAULT,
    exact_scalars: Sequence[int] = (),
    move: bool = False,
) -> list[Term]:
    """The operands as terms of the computation dtype (None operands are left out).

    Positions in `exact_scalars` take single elements unrounded into float32 when the common dtype
    is a half type. `move`: half types stay as they are, for operations that only move values.
    """
    dtype = common_dtype(cx, operands, kind)
    target = dtype if move else wide(dtype)
    terms = []
    for i, operand in enumerate(operands):
        if operand.given is None:
            continue
        exact = i in exact_scalars and operand.is_single
        terms.append(convert(cx, operand.given, target if exact else dtype, target))
    return terms


def convert(cx: Context, given: Any, *dtypes: torch.dtype) -> Term:
    """A value, number or size as a term, converted through each of `dtypes` in turn."""
    if isinstance(given, Value):
        check_supported(cx, given.type.dtype)
        term = Term(cx, given)
        for dtype in dtypes:
            term = term.to(dtype)
        return term
    if isinstance(given, sympy.Expr):
        term = size(cx, given)
        for dtype in dtypes:
            term = term.to(dtype)
        return term
    if isinstance(given, complex):
        raise cx.refuse("complex numbers have no tiles")
    if isinstance(given, int) and not -(2**63) <= given < 2**63:
        raise cx.refuse(f"{given} does not fit int64")
    number = converted(given, dtypes[0])
    for dtype in dtypes[1:]:
        number = converted(number, dtype)
    return Term(cx, cx.b.const(number, wide(dtypes[-1]))).to(dtypes[-1])


def check_supported(cx: Context, *dtypes: torch.dtype) -> None:
    """Refuse dtypes that the tile IR does not compute with or convert."""
    for dtype in dtypes:
        if dtype not in SUPPORTED:
            raise cx.refuse(f"{dtype} has no tiles")


def results(cx: Context, result: Any) -> Any:
    """The values of a term or of a tuple of terms, each rounded to the dtype that PyTorch gives.

    Where PyTorch gives None (a gradient that nobody wants) the spec is None, and so is the result.
    """
    check_supported(cx, *(spec.dtype for spec in cx.outputs if spec is not None))
    if isinstance(result, Term):
        return result.to(cx.outputs[0].dtype).value
    return tuple(
        None if spec is None else term.to(spec.dtype).value
        for term, spec in zip(result, cx.outputs, strict=True)
    )
