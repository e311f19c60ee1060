"""Which scores are hidden, as far as the graph proves it: -inf, or a large negative number.

What flows in: the instances that make a score (`trace.py`), the names of the axes of queries and
keys. What flows out: a `Band`: bounds of the key's position that depend on the query's by a
constant at most; and `Test`s: parts of masks that are read from memory, from which a kernel finds
such bounds when it runs. Keys outside need no product: their weights are 0. Only comparisons of
positions, joined by logic and chosen between by `where`, prove anything; whatever else stands in
the graph counts as visible, and a band is no more than an upper bound of what is: scores inside are
masked as written.

A score that is hidden by a number c has the weight exp(c - top) = 0 as long as its row has a score
above c / 2 (`Masks.floor`): a row that has none must meet all of its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch_helion.capture.collapse import reachable
from torch_helion.capture.trace import Instance
from torch_helion.ir.types import Affine, Size

aten = torch.ops.aten
prims = torch.ops.prims

Bound = tuple[bool, Size]
"""(whether the query's position is added, a constant)"""


@dataclass(frozen=True)
class Band:
    """low <= key <= high for every low and high."""

    lows: tuple[Bound, ...] = ()
    highs: tuple[Bound, ...] = ()

    def __and__(self, other: Band) -> Band:
        return Band(
            tuple(dict.fromkeys((*self.lows, *other.lows))),
            tuple(dict.fromkeys((*self.highs, *other.highs))),
        )

    def __bool__(self) -> bool:
        return bool(self.lows or self.highs)


EVERYTHING = Band()
CAUSAL = Band((), ((True, 0),))


@dataclass(frozen=True)
class Linear:
    """row · a + key · b + constant"""

    row: Size
    key: Size
    constant: Size

    def plus(self, other: Linear, times: int = 1) -> Linear:
        return Linear(
            self.row + times * other.row,
            self.key + times * other.key,
            self.constant + times * other.constant,
        )


FILL = -4096.0
"""A score that is replaced by this or less is hidden: exp(FILL / 2) is 0 in every dtype."""
ADDED = -1e30
"""So is one to which this or less is added, if it is no more than `LARGE` itself."""
LARGE = 1e29
FACTOR = 2.0**20
"""Scores are products times factors of no more than this (see `LARGEST_ELEMENT`)."""
LARGEST_ELEMENT = 1e10
"""Products of elements up to this stay below `LARGE`, whatever they are multiplied by: the kernel
looks for larger ones."""


@dataclass(frozen=True)
class Test:
    """A score is hidden where `at` is `wanted` (of a bool), or is no more than `ADDED`."""

    at: Instance
    wanted: bool | None


class Masks:
    """Reads bands off the instances of one score."""

    def __init__(
        self,
        row: str | None,
        key: str,
        product: fx.Node | None = None,
        added: bool = True,
        finite: bool = False,
    ) -> None:
        """`product`: what scores are made of. `added`: a sum with -inf hides a score; float16
        scores may overflow to inf, and then it does not. `finite`: large negative numbers hide, too
        (whoever asks must see to rows that see nothing else).
        """
        self.row = row
        self.key = key
        self.product = product
        self.added = added
        self.finite = finite
        self.floor = -math.inf
        """A row without a score above it has to meet all of its keys."""
        self.adds = False
        """Whether scores are hidden by a sum: only if they are not large themselves."""
        self.tests: list[Test] = []

    # -- scores -----------------------------------------------------------------------------------

    def visible(self, at: Instance) -> Band:
        """Outside of the band the value is hidden (or NaN, where what is added to -inf is)."""
        if at.kind != "compute":
            return EVERYTHING
        target = at.node.target
        if target is aten.where.self:
            test, yes, no = (at.operands.get((i,)) for i in range(3))
            if test is None or yes is None or no is None:
                return EVERYTHING
            if self._hides(yes, FILL):
                return self.visible(no) & self._where(test, False, yes)
            if self._hides(no, FILL):
                return self.visible(yes) & self._where(test, True, no)
            return EVERYTHING
        if target is aten.add.Tensor and self.added and not at.node.kwargs:
            parts = list(at.operands.values())
            if len(parts) != 2:
                return EVERYTHING
            return self.adding(*parts) & self.adding(*reversed(parts))
        if target in _CASTS and _is_wide(at):
            return self.visible(next(iter(at.operands.values())))
        return EVERYTHING

    def _hides(self, at: Instance, least: float) -> bool:
        number = constant_of(at)
        return number == -math.inf or (self.finite and number is not None and number <= least)

    def _where(self, test: Instance, wanted: bool, fill: Instance) -> Band:
        """A choice between scores and a number: they are scores where the test is `wanted`."""
        band = self.holds(test, wanted)
        number = constant_of(fill)
        assert number is not None
        if self._test(Test(test, not wanted)) or band:
            self.floor = max(self.floor, number / 2)
        return band

    def adding(self, part: Instance, score: Instance) -> Band:
        """What `part` hides, which is added to a score."""
        finite = self.finite and self.bounded(score)
        outer, self.finite = self.finite, False
        try:
            if any(i.node is self.product for i in reachable([part])):
                return self.visible(part)
            self.finite = finite
            return self._added(part)
        finally:
            self.finite = outer

    def added_mask(self, mask: Instance) -> Band:
        """What a mask hides that ATen's operator adds to its scores."""
        return self._added(mask)

    def _added(self, part: Instance) -> Band:
        while part.kind == "compute" and part.node.target in _CASTS and _is_wide(part):
            (part,) = part.operands.values()
        band = EVERYTHING
        if part.kind == "compute" and part.node.target is aten.where.self:
            test, yes, no = (part.operands.get((i,)) for i in range(3))
            for fill, wanted in ((yes, False), (no, True)):
                if test is not None and fill is not None and self._hides(fill, ADDED):
                    band = self.holds(test, wanted)
                    number = constant_of(fill) or -math.inf
                    self.floor = max(self.floor, number / 2 if band else -math.inf)
        if self._test(Test(part, None)):
            self.floor = max(self.floor, ADDED / 2)
        self.adds = self.adds or self.finite
        return band

    def _test(self, test: Test) -> bool:
        """Keep what a kernel can find out when it runs: about values in memory."""
        below = reachable([test.at])
        if not self.finite or any(i.node is self.product for i in below):
            return False
        if not any(i.kind == "load" and self.key in _names(i) for i in below):
            return False
        self.tests.append(test)
        return True

    def bounded(self, at: Instance, factor: float = 1.0) -> bool:
        """Whether a score is no more than `LARGE` if its queries and keys are not large."""
        if at.node is self.product:
            return factor <= FACTOR
        target = at.node.target
        parts = list(at.operands.values())
        if target in (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar):
            number = self._scalar(at, 1)
            if number is None or not parts or not 0 < number < math.inf:
                return False
            size = number if target in (aten.mul.Tensor, aten.mul.Scalar) else 1 / number
            return self.bounded(parts[0], factor * size)
        if target in (aten.tanh.default, aten.sigmoid.default):
            return factor <= LARGE
        if target in _CASTS:
            return _is_wide(at) and self.bounded(parts[0], factor)
        if target is aten.where.self and len(parts) == 3:  # masked already: nothing large
            return all(self.bounded(p, factor) or (constant_of(p) or 1) <= 0 for p in parts[1:])
        return False

    # -- conditions -------------------------------------------------------------------------------

    def holds(self, at: Instance, wanted: bool) -> Band:
        """A band outside of which the condition is not `wanted`."""
        if at.kind != "compute":
            return EVERYTHING
        target = at.node.target
        parts = list(at.operands.values())
        packet = getattr(target, "overloadpacket", None)
        if packet in _NOT and at.node.meta["val"].dtype is torch.bool:
            return self.holds(parts[0], not wanted)
        if packet in (_AND if wanted else _OR) and at.node.meta["val"].dtype is torch.bool:
            found = EVERYTHING
            for part in parts:
                found = found & self.holds(part, wanted)
            return found
        if packet in (_OR if wanted else _AND) and at.node.meta["val"].dtype is torch.bool:
            parts = [p for p in parts if constant_of(p) is None or bool(constant_of(p)) is wanted]
            return self.holds(parts[0], wanted) if len(parts) == 1 else EVERYTHING
        if packet in _COMPARISONS:
            return self._compared(at, packet, wanted)
        if packet in (aten.eq, aten.ne):
            return self._equal(at, wanted is (packet is aten.eq))
        if target is aten.where.self and len(parts) == 3:
            return self._chosen(parts, lambda x: bool(x) is wanted)
        if target in _CASTS and at.node.meta["val"].dtype is torch.bool:
            return self._equal_to(parts[0], 0, not wanted)
        return EVERYTHING

    def _compared(self, at: Instance, packet: Any, wanted: bool) -> Band:
        left, right = (self._linear(at, i) for i in range(2))
        if left is None or right is None:
            return EVERYTHING
        sign, strict = _COMPARISONS[packet]
        if not wanted:
            sign, strict = -sign, not strict
        difference = left.plus(right, -1)  # sign · difference <= 0, or < 0
        row, key, constant = (
            sign * x for x in (difference.row, difference.key, difference.constant)
        )
        constant = constant + (1 if strict else 0)  # integers
        if key == 1 and row in (0, -1):
            return Band((), ((row != 0, -constant),))
        if key == -1 and row in (0, 1):
            return Band(((row != 0, constant),), ())
        return EVERYTHING

    def _equal(self, at: Instance, wanted: bool) -> Band:
        """`x == number` (or not): x may be a choice between numbers, made from a mask."""
        number = self._scalar(at, 1)
        part = at.operands.get((0,))
        if number is None or part is None:
            return EVERYTHING
        return self._equal_to(part, number, wanted)

    def _equal_to(self, part: Instance, number: float, wanted: bool) -> Band:
        while part.kind == "compute" and part.node.target in _CASTS and _keeps_zero(part):
            (part,) = part.operands.values()
        if part.kind == "compute" and part.node.meta["val"].dtype is torch.bool:
            if number == 0:
                return self.holds(part, not wanted)
            return self.holds(part, wanted) if number == 1 else EVERYTHING
        choice = part.kind == "compute" and part.node.target is aten.where.self
        if choice and len(part.operands) == 3:
            parts = list(part.operands.values())
            return self._chosen(parts, lambda x: (x == number) is wanted)
        return EVERYTHING

    def _chosen(self, parts: Sequence[Instance], good: Callable[[float], bool]) -> Band:
        """Where a choice between two numbers is a good one."""
        test, yes, no = parts
        a, b = constant_of(yes), constant_of(no)
        if a is None or b is None or good(a) == good(b):
            return EVERYTHING
        return self.holds(test, good(a))

    # -- positions --------------------------------------------------------------------------------

    def _scalar(self, at: Instance, place: int) -> float | None:
        if (place,) in at.operands:
            return constant_of(at.operands[place,])
        given = at.node.args[place] if place < len(at.node.args) else None
        return given if isinstance(given, int | float) else None

    def _linear(self, at: Instance, place: int) -> Linear | None:
        """An operand as a number that depends on positions."""
        if (place,) in at.operands:
            return self.linear(at.operands[place,])
        given = at.node.args[place] if place < len(at.node.args) else None
        return Linear(0, 0, given) if type(given) is int else None

    def linear(self, at: Instance) -> Linear | None:
        value = at.node.meta["val"]
        if value.dtype not in (torch.int64, torch.int32):
            return None
        target = at.node.target
        if at.kind == "constant":
            return self._of_constant(at)
        if at.kind != "compute" or (at.node.kwargs and target not in _CASTS):
            return None
        if target in (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
            left, right = (self._linear(at, i) for i in range(2))
            if left is None or right is None:
                return None
            return left.plus(right, 1 if target in (aten.add.Tensor, aten.add.Scalar) else -1)
        if target in _CASTS:
            return self._linear(at, 0)
        if target is aten.neg.default:
            found = self._linear(at, 0)
            return None if found is None else Linear(0, 0, 0).plus(found, -1)
        return None

    def _of_constant(self, at: Instance) -> Linear | None:
        number = constant_of(at)
        if number is not None:
            return Linear(0, 0, number) if type(number) is int else None
        if at.node.target is not prims.iota.default:
            return None
        start, step = (at.node.kwargs.get(name) for name in ("start", "step"))
        (place,) = at.index
        if type(start) is not int or type(step) is not int or not isinstance(place, Affine):
            return None
        terms = dict(place.terms)
        row = terms.pop(self.row, 0) if self.row is not None else 0
        key = terms.pop(self.key, 0)
        if terms:
            return None
        return Linear(step * row, step * key, start + step * place.offset)


def _names(at: Instance) -> set[str]:
    """The axes along which an instance is read."""
    return {n for place in at.index if isinstance(place, Affine) for n in place.axis_names}


def constant_of(at: Instance) -> float | int | bool | None:
    """The number that an instance is everywhere; None if it is none."""
    if at.kind == "compute" and at.node.target in _CASTS and _keeps_zero(at):
        (part,) = at.operands.values()
        found = constant_of(part)
        return found if found in (0, 1, -math.inf) else None
    if at.kind != "constant":
        return None
    if at.node.target in (aten.full.default, prims.full.default):
        given: Any = at.node.args[1]
    elif at.node.target in (aten.scalar_tensor.default, prims.scalar_tensor.default):
        given = at.node.args[0]
    else:
        return None
    return given if isinstance(given, int | float) else None


def _is_wide(at: Instance) -> bool:
    """Whether a cast gives a dtype that has -inf."""
    return bool(at.node.meta["val"].dtype.is_floating_point)


def _keeps_zero(at: Instance) -> bool:
    """Whether a cast keeps 0, 1 and -inf apart: all but those from floats to integers do."""
    (part,) = at.operands.values()
    own, source = at.node.meta["val"].dtype, part.node.meta["val"].dtype
    return bool(own.is_floating_point or not source.is_floating_point) and own is not torch.bool


_CASTS = frozenset({prims.convert_element_type.default, aten._to_copy.default})
_NOT = (aten.logical_not, aten.bitwise_not)
_AND = (aten.logical_and, aten.bitwise_and)
_OR = (aten.logical_or, aten.bitwise_or)
_COMPARISONS: dict[Any, tuple[int, bool]] = {
    aten.le: (1, False),
    aten.lt: (1, True),
    aten.ge: (-1, False),
    aten.gt: (-1, True),
}
"""Comparison → (sign, strict): sign · (left - right) <= 0, or < 0."""
