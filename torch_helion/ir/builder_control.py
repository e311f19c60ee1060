"""Regions under construction: loops with carried values, branches, combine functions.

In: a `Builder`, the values that enter. Out: one structured op in the builder's program, and its
results. The builder's methods `tile_loop`, `sequential_loop`, `if_` and `while_` make these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import sympy

from torch_helion import exc
from torch_helion.ir.graph import Op, Origin, Region, Value


class Host(Protocol):
    """What a region asks of its builder."""

    origin: Origin

    @property
    def ops(self) -> list[Op]: ...

    def enter(self) -> tuple[Any, ...]: ...

    def leave(self, outer: tuple[Any, ...]) -> list[Op]: ...


class OpenRegion:
    """A region that ops are being added to. `finish` says what it yields; call it last."""

    def __init__(self, host: Host, args: Sequence[Value] = ()) -> None:
        self.args = list(args)
        self.yielded: tuple[Value, ...] | None = None
        self.region = Region()
        self._host = host

    def finish(self, values: Sequence[Value] = ()) -> None:
        if self.yielded is not None:
            raise exc.VerifierError("a region yields once")
        self.yielded = tuple(values)

    @contextmanager
    def open(self) -> Iterator[None]:
        outer = self._host.enter()
        try:
            yield
        except BaseException:
            self._host.leave(outer)
            raise
        ops = self._host.leave(outer)
        if self.yielded:
            ops.append(Op("yield", self.yielded, origin=self._host.origin))
        self.region = Region(tuple(self.args), tuple(ops))


def _same_types(what: str, given: Sequence[Value], wanted: Sequence[Value]) -> None:
    if [v.type for v in given] != [v.type for v in wanted]:
        got, want = (", ".join(str(v.type) for v in values) for values in (given, wanted))
        raise exc.VerifierError(f"{what}: ({got}), ({want}) expected")


def _fresh(values: Sequence[Value]) -> list[Value]:
    return [Value(v.type, v.hint) for v in values]


class LoopRegion(OpenRegion):
    """The body of a tile or sequential loop; after it, `results` are the carried values' last."""

    def __init__(self, host: Host, carried: Sequence[Value], attrs: dict[str, Any]) -> None:
        super().__init__(host, _fresh(carried))
        self.results = _fresh(carried)
        self._carried = tuple(carried)
        self._attrs = attrs

    @property
    def symbol(self) -> sympy.Symbol:
        """The counter of a sequential loop."""
        return self._attrs["symbol"]

    @contextmanager
    def loop(self) -> Iterator[LoopRegion]:
        with self.open():
            yield self
        _same_types("a loop's carried values", self.yielded or (), self._carried)
        op = Op("loop", self._carried, self._attrs, tuple(self.results), (self.region,))
        self._host.ops.append(_at(op, self._host))


def _at(op: Op, host: Host) -> Op:
    return Op(op.kind, op.operands, op.attrs, op.results, op.regions, host.origin)


class IfRegions:
    """The two arms of an `if`. Either arm may be left out when there are no results."""

    def __init__(self, host: Host, condition: Value) -> None:
        self.results: list[Value] = []
        self._host, self._condition = host, condition
        self._arms = [Region(), Region()]
        self._place: int | None = None
        self._current: OpenRegion | None = None

    def then(self) -> Any:
        return self._arm(0)

    def otherwise(self) -> Any:
        return self._arm(1)

    def finish(self, values: Sequence[Value] = ()) -> None:
        """What the arm yields that is open now."""
        if self._current is None:
            raise exc.VerifierError("no arm of this if is open")
        self._current.finish(values)

    @contextmanager
    def _arm(self, number: int) -> Iterator[OpenRegion]:
        self._current = arm = OpenRegion(self._host)
        with arm.open():
            yield arm
        self._current = None
        yielded = arm.yielded or ()
        if self._place is None:
            self.results = _fresh(yielded)
        _same_types("the arms of an if", yielded, self.results)
        self._arms[number] = arm.region
        op = Op("if", (self._condition,), {}, tuple(self.results), tuple(self._arms))
        self._emit(_at(op, self._host))

    def _emit(self, op: Op) -> None:
        """Once with the first arm, then with both in the same place."""
        ops = self._host.ops
        if self._place is None:
            self._place = len(ops)
            ops.append(op)
        else:
            ops[self._place] = op


class WhileRegions:
    """A `while`: first `with condition()`, then `with body()`."""

    def __init__(self, host: Host, carried: Sequence[Value]) -> None:
        self.results = _fresh(carried)
        self._host, self._carried = host, tuple(carried)
        self._condition = OpenRegion(host, _fresh(carried))
        self._body = OpenRegion(host, _fresh(carried))
        self._current = self._condition

    @property
    def args(self) -> list[Value]:
        """The carried values in the region that is open now."""
        return self._current.args

    def finish(self, values: Sequence[Value] = ()) -> None:
        self._current.finish(values)

    @contextmanager
    def condition(self) -> Iterator[OpenRegion]:
        self._current = self._condition
        with self._condition.open():
            yield self._condition
        if len(self._condition.yielded or ()) != 1:
            raise exc.VerifierError("the condition of a while yields one bool")

    @contextmanager
    def body(self) -> Iterator[OpenRegion]:
        self._current = self._body
        with self._body.open():
            yield self._body
        _same_types("a while's carried values", self._body.yielded or (), self._carried)
        regions = (self._condition.region, self._body.region)
        op = Op("while", self._carried, {}, tuple(self.results), regions)
        self._host.ops.append(_at(op, self._host))
