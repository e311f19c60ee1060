"""Local algebra and removal of repeated work, exact for every value: NaN, infinities, -0, overflow.

    %a = mul(%x, 1.0)
    %b = exp(%a)            ->      %b = exp(%x)
    %c = exp(%x)                    %d = add(%b, %b)
    %d = add(%b, %c)

What is not exact is not here: `x + 0.0` is not `x` for -0.0, `x * 0` is not 0 for NaN. A rule
gives the value that stands for the result; the driver takes it only where dtype and axes are the
same, for a rank-0 constant does not stand for a row of constants. What becomes unused stays for
`eliminate_dead_code`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import OP_KINDS, identity_of
from torch_helion.passes.pass_manager import Pass


def canonicalize(kernel: Kernel) -> Kernel:
    phases = []
    for op in kernel.body.ops:
        inner = [o for region in op.regions for o in region.walk()]
        stores = [o for o in inner if o.kind in ("store", "atomic")]
        stored = {o.attrs["buffer"] for o in stores}
        if any(o.attrs.get("stacked") for o in stores):  # to addresses that may be any buffer's
            stored = {b.name for b in kernel.buffers}
        state = _State(frozenset(stored))
        phases.append(replace(op, regions=tuple(state.region(r) for r in op.regions)))
    return replace(kernel, body=replace(kernel.body, ops=tuple(phases)))


CANONICALIZE = Pass("canonicalize", canonicalize)


@dataclass
class _State:
    """One phase: what stands for each value, who made it, and what has been computed already."""

    stored: frozenset[str]
    """Buffers that the phase stores to: two loads of one may differ."""
    stands: dict[Value, Value] = field(default_factory=dict)
    makers: dict[Value, Op] = field(default_factory=dict)
    known: dict[Hashable, tuple[Value, ...]] = field(default_factory=dict)

    def region(self, region: Region, closed: bool = False) -> Region:
        """`closed`: nothing outside may stand for a value inside."""
        outer = self.known
        self.known = {} if closed else dict(outer)
        ops = [new for op in region.ops if (new := self.op(op)) is not None]
        self.known = outer  # a value of this region is not there outside it
        return replace(region, ops=tuple(ops))

    def op(self, op: Op) -> Op | None:
        """The op with simpler operands, or None where an older value stands for its result."""
        op = replace(op, operands=tuple(self.stands.get(v, v) for v in op.operands))
        if op.regions:
            closed = op.kind in ("reduce", "scan")
            return replace(op, regions=tuple(self.region(r, closed) for r in op.regions))
        op_or_none = _simpler_access(self, op)
        if op_or_none is None:
            return None
        op = op_or_none
        value = self.rewritten(op)
        if value is not None:
            self.stands[op.result] = value
            return None
        key = self.key(op)
        if key is not None:
            if key in self.known:
                self.stands.update(zip(op.results, self.known[key], strict=True))
                return None
            self.known[key] = op.results
        self.makers.update(dict.fromkeys(op.results, op))
        return op

    def rewritten(self, op: Op) -> Value | None:
        rules = _FUNCTION_RULES.get(op.attrs["fn"], ()) if op.kind == "pointwise" else ()
        for rule in (*rules, *_KIND_RULES.get(op.kind, ())):
            value = rule(self, op)
            if value is not None and _same_type(value, op.result):
                return value
        return None

    def key(self, op: Op) -> Hashable | None:
        """Equal for ops that give equal results; None for ops that must not be merged."""
        if not OP_KINDS[op.kind].pure or not op.results:
            return None
        if op.attrs.get("buffer") in self.stored or op.attrs.get("stacked"):
            return None
        operands = [id(v) for v in op.operands]
        if op.attrs.get("fn") in _COMMUTATIVE and op.kind == "pointwise":
            operands.sort()
        attrs = tuple(sorted((k, _hashable(v)) for k, v in op.attrs.items()))
        return (op.kind, tuple(operands), attrs, tuple(str(r.type) for r in op.results))

    def maker(self, value: Value, kind: str, fn: str = "") -> Op | None:
        """The op that made `value`, if it is of this kind (and function)."""
        op = self.makers.get(value)
        fits = op is not None and op.kind == kind and (not fn or op.attrs["fn"] == fn)
        return op if fits else None

    def constant(self, value: Value) -> Any:
        """The Python number that `value` holds everywhere, or None."""
        op = self.makers.get(value)
        while op is not None and op.kind == "expand":
            op = self.makers.get(op.operands[0])
        return op.attrs["value"] if op is not None and op.kind == "const" else None


def _same_type(a: Value, b: Value) -> bool:
    return a.type.dtype == b.type.dtype and a.type.axes == b.type.axes


def _hashable(value: Any) -> Hashable:
    # 0.0 and -0.0 compare equal, as do True and 1: the text keeps them apart.
    return repr(value) if isinstance(value, float | int) else value


# -- constants as operands ----------------------------------------------------------------------

_COMMUTATIVE = frozenset(("add", "mul", "eq", "ne", "and", "or", "xor"))


def _is(number: Any, wanted: float | int | bool) -> bool:
    """Equal, the sign of zero included."""
    if number is None or number != wanted:
        return False
    return math.copysign(1.0, number) == math.copysign(1.0, wanted)


def _neutral(fn: str, dtype: torch.dtype) -> float | int | bool | None:
    """The right operand that leaves every left one as it is."""
    if fn in ("mul", "div", "truncdiv"):
        return 1
    if fn == "floordiv":
        return None if dtype.is_floating_point else 1
    if fn == "add":
        return -0.0 if dtype.is_floating_point else 0
    if fn in ("sub", "or", "xor", "shl", "shr"):
        return 0
    if fn == "and":
        return _all_ones(dtype)
    return identity_of({"maximum": "max", "minimum": "min"}[fn], dtype)


def _all_ones(dtype: torch.dtype) -> int:
    if dtype is torch.bool:
        return 1
    info = torch.iinfo(dtype)
    return info.max if info.min == 0 else -1


def _neutral_right(s: _State, op: Op) -> Value | None:
    left, right = op.operands
    wanted = _neutral(op.attrs["fn"], left.type.dtype)
    return left if wanted is not None and _is(s.constant(right), wanted) else None


def _neutral_left(s: _State, op: Op) -> Value | None:
    left, right = op.operands
    wanted = _neutral(op.attrs["fn"], left.type.dtype)
    return right if wanted is not None and _is(s.constant(left), wanted) else None


# -- operands that repeat or undo one another ---------------------------------------------------


def _same_operands(s: _State, op: Op) -> Value | None:
    left, right = op.operands
    return left if left is right else None


def _undone(s: _State, op: Op) -> Value | None:
    """neg(neg(x)), not(not(x))."""
    inner = s.maker(op.operands[0], "pointwise", op.attrs["fn"])
    return inner.operands[0] if inner else None


def _repeated(s: _State, op: Op) -> Value | None:
    """abs(abs(x)), floor(floor(x)): the inner one stands for both."""
    return op.operands[0] if s.maker(op.operands[0], "pointwise", op.attrs["fn"]) else None


def _where_constant(s: _State, op: Op) -> Value | None:
    condition, yes, no = op.operands
    number = s.constant(condition)
    if number is None:
        return yes if yes is no else None
    return yes if number else no


# -- conversions --------------------------------------------------------------------------------

_MANTISSA = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def _lossless(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of `source` is one of `target`."""
    if source == target or source is torch.bool:
        return True
    if target is torch.bool:
        return False
    if source.is_floating_point:
        # bfloat16 has a larger range than float16, and fewer digits: neither holds the other.
        known = source in _MANTISSA and target in _MANTISSA
        return known and source.itemsize < target.itemsize
    low, high = torch.iinfo(source).min, torch.iinfo(source).max
    if target.is_floating_point:
        return target in _MANTISSA and high <= 2 ** _MANTISSA[target] and target.itemsize >= 4
    info = torch.iinfo(target)
    return info.min <= low and high <= info.max


def _cast_back(s: _State, op: Op) -> Value | None:
    """cast(cast(x, wider), dtype of x)."""
    inner = s.maker(op.operands[0], "cast")
    if inner is None:
        return None
    (source,) = inner.operands
    return source if _lossless(source.type.dtype, inner.attrs["dtype"]) else None


def _cast_to_itself(s: _State, op: Op) -> Value | None:
    return op.operands[0]  # the driver checks that the dtype stays


def _bitcast_back(s: _State, op: Op) -> Value | None:
    inner = s.maker(op.operands[0], "bitcast")
    return inner.operands[0] if inner else None


# -- accesses under a constant mask -------------------------------------------------------------


def _simpler_access(s: _State, op: Op) -> Op | None:
    """Without a mask that is always true; None for a store whose mask is always false."""
    if not op.attrs.get("masked"):
        return op
    mask = op.operands[-1]
    number = s.constant(mask)
    if number is None or (number and mask.type.axes):
        return op
    if number:
        return replace(op, operands=op.operands[:-1], attrs={**op.attrs, "masked": False})
    return op if op.kind == "load" else None


# -- the tables ---------------------------------------------------------------------------------

_Rule = Callable[[_State, Op], Value | None]

_FUNCTION_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "add": (_neutral_right, _neutral_left),
    "mul": (_neutral_right, _neutral_left),
    "sub": (_neutral_right,),
    "div": (_neutral_right,),
    "truncdiv": (_neutral_right,),
    "floordiv": (_neutral_right,),
    "and": (_neutral_right, _neutral_left, _same_operands),
    "or": (_neutral_right, _neutral_left, _same_operands),
    "xor": (_neutral_right, _neutral_left),
    "shl": (_neutral_right,),
    "shr": (_neutral_right,),
    "maximum": (_neutral_right, _neutral_left, _same_operands),
    "minimum": (_neutral_right, _neutral_left, _same_operands),
    "neg": (_undone,),
    "not": (_undone,),
    "abs": (_repeated,),
    "floor": (_repeated,),
    "ceil": (_repeated,),
    "trunc": (_repeated,),
    "round": (_repeated,),
    "where": (_where_constant,),
}

_KIND_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "cast": (_cast_to_itself, _cast_back),
    "bitcast": (_cast_to_itself, _bitcast_back),
    "expand": (_cast_to_itself,),
}
