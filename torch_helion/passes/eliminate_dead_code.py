"""Removes what no output depends on: unused values, stores nobody reads, empty phases.

    %a = exp(%x)            ->      store out[m] = %x
    store out[m] = %x

A loop or branch loses the results that nobody uses, with what only they need:

    %s, %n = tile (k) carrying %a, %b:      ->      %s = tile (k) carrying %a:
      region(%s0, %n0)                                region(%s0)
      ...                                             ...
      yield %s1, %n1                                  yield %s1

Operations that can end the kernel with an error (a checked load, an integer division by what may be
zero) stay although their results are unused: the error is a result, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import OP_KINDS
from torch_helion.ir.types import Affine, Axis, Size
from torch_helion.passes.pass_manager import Pass

_DIVISIONS = ("truncdiv", "floordiv", "remainder", "fmod")


def eliminate_dead_code(kernel: Kernel) -> Kernel:
    while True:
        smaller = _once(kernel)
        if sum(1 for _ in smaller.body.walk()) == sum(1 for _ in kernel.body.walk()):
            return smaller
        kernel = smaller  # a phase that is gone may have been the only reader of a workspace


ELIMINATE_DEAD_CODE = Pass("eliminate_dead_code", eliminate_dead_code)


@dataclass(frozen=True)
class _Facts:
    """What the whole kernel says about its parts."""

    unread: frozenset[str]
    """Workspaces that nothing loads from."""
    nonzero: frozenset[Value]
    """Constants other than zero."""


@dataclass
class _Live:
    """What the ops after a place, in the order of the program, need from before it."""

    values: set[Value] = field(default_factory=set)
    symbols: set[Any] = field(default_factory=set)

    def use(self, op: Op) -> None:
        self.values.update(op.operands)
        for size in _sizes(op):
            self.symbols |= getattr(size, "free_symbols", set())


def _once(kernel: Kernel) -> Kernel:
    ops = list(kernel.body.walk())
    read = {op.attrs["buffer"] for op in ops if op.kind == "load" or _reads(op)}
    workspaces = {b.name for b in kernel.buffers if b.role == "workspace"}
    nonzero = {op.result for op in ops if op.kind == "const" and op.attrs["value"] != 0}
    facts = _Facts(frozenset(workspaces - read), frozenset(nonzero))
    body = _live(kernel.body, facts, _Live())
    body = replace(body, ops=_without_empty_phases(body.ops))
    used = {op.attrs["buffer"] for op in body.walk() if "buffer" in op.attrs}
    buffers = tuple(b for b in kernel.buffers if b.role != "workspace" or b.name in used)
    return replace(kernel, buffers=buffers, body=body)


def _reads(op: Op) -> bool:
    return op.kind == "atomic" and bool(op.results)


# -- what is alive ------------------------------------------------------------------------------


def _live(region: Region, facts: _Facts, live: _Live) -> Region:
    """The region with its live ops only; adds what they use to `live`."""
    kept: list[Op] = []
    for op in reversed(region.ops):
        if not _is_live(op, facts, live):
            continue
        if op.kind in ("loop", "while", "if"):
            op = _live_structure(op, facts, live)
        elif op.regions:  # a combine function: all that it yields is needed
            op = replace(op, regions=tuple(_live(r, facts, live) for r in op.regions))
        elif _reads(op) and op.result not in live.values:
            op = replace(op, results=())
        live.use(op)
        kept.append(op)
    return replace(region, ops=tuple(reversed(kept)))


def _is_live(op: Op, facts: _Facts, live: _Live) -> bool:
    if op.kind == "yield" or any(r in live.values for r in op.results):
        return True
    if op.kind == "bind":
        return op.attrs["symbol"] in live.symbols
    return _has_effect(op, facts)


def _live_structure(op: Op, facts: _Facts, live: _Live) -> Op:
    """The loop or branch with only the results that are used, here or by its own next turn."""
    results = {i for i, r in enumerate(op.results) if r in live.values}
    while True:
        inside = _Live(set(live.values), set(live.symbols))
        kept = sorted(results)
        regions = tuple(
            _live(_with_results(r, kept, op, number), facts, inside)
            for number, r in enumerate(op.regions)
        )
        # What a turn of a loop takes from the one before must be carried.
        args = {i for r in op.regions for i, a in enumerate(r.args) if a in inside.values}
        if args <= results:
            live.values |= inside.values
            live.symbols |= inside.symbols
            return _with_kept(op, kept, regions)
        results |= args


def _with_results(region: Region, kept: Sequence[int], op: Op, number: int) -> Region:
    """The region where it yields only the results `kept`."""
    if op.kind == "while" and number == 0:  # its condition yields something else
        return region
    if not region.yielded:
        return region
    *ops, end = region.ops
    end = replace(end, operands=_chosen(end.operands, kept))
    return replace(region, ops=(*ops, end) if end.operands else tuple(ops))


def _with_kept(op: Op, kept: Sequence[int], regions: Iterable[Region]) -> Op:
    carries = op.kind != "if"
    return replace(
        op,
        operands=_chosen(op.operands, kept) if carries else op.operands,
        results=_chosen(op.results, kept),
        regions=tuple(replace(r, args=_chosen(r.args, kept)) for r in regions),
    )


def _chosen(values: Sequence[Value], kept: Sequence[int]) -> tuple[Value, ...]:
    return tuple(values[i] for i in kept if i < len(values))


def _has_effect(op: Op, facts: _Facts) -> bool:
    if op.regions:
        return any(_has_effect(o, facts) for region in op.regions for o in region.ops)
    if op.kind == "load":
        return bool(op.attrs["checked"])
    if op.kind == "take":
        return True  # an index outside ends the kernel
    if op.kind == "pointwise" and op.attrs["fn"] in _DIVISIONS:
        divisor = op.operands[1]
        return not divisor.type.dtype.is_floating_point and divisor not in facts.nonzero
    if op.kind in ("store", "atomic"):
        return op.attrs["buffer"] not in facts.unread or bool(op.attrs["checked"])
    return not OP_KINDS[op.kind].pure and op.kind != "yield"


# -- sizes that an op speaks of -----------------------------------------------------------------


def _sizes(op: Op) -> Iterator[Size | sympy.Symbol]:
    for name in ("expr", "begin", "end", "step"):
        if name in op.attrs:
            yield op.attrs[name]
    for expr in op.attrs.get("index", ()):
        if isinstance(expr, Affine):
            yield from (expr.offset, *(c for _, c in expr.terms))
    for axis in _axes(op):
        yield axis.size


def _axes(op: Op) -> Iterator[Axis]:
    if op.kind == "loop":
        yield from op.attrs["axes"]
    for value in (*op.operands, *op.results):
        yield from value.type.axes


# -- phases -------------------------------------------------------------------------------------


def _without_empty_phases(ops: Iterable[Op]) -> tuple[Op, ...]:
    """Drop loops without a body, and the barriers that then separate nothing."""
    kept: list[Op] = []
    for op in ops:
        if op.kind == "loop" and not op.regions[0].ops:
            continue
        if op.kind == "barrier" and (not kept or kept[-1].kind == "barrier"):
            continue
        kept.append(op)
    if kept and kept[-1].kind == "barrier":
        kept.pop()
    return tuple(kept)
