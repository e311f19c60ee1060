"""Removes what no output depends on: unused values, stores nobody reads, empty phases.

    %a = exp(%x)            ->      store out[m] = %x
    store out[m] = %x

Operations that can end the kernel with an error (a checked load, an integer division by what may be
zero) stay although their results are unused: the error is a result, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import OP_KINDS
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


def _once(kernel: Kernel) -> Kernel:
    ops = list(kernel.body.walk())
    read = {op.attrs["buffer"] for op in ops if op.kind == "load"}
    workspaces = {b.name for b in kernel.buffers if b.role == "workspace"}
    nonzero = {op.result for op in ops if op.kind == "const" and op.attrs["value"] != 0}
    facts = _Facts(frozenset(workspaces - read), frozenset(nonzero))
    body = _live(kernel.body, facts, set())
    body = replace(body, ops=_without_empty_phases(body.ops))
    used = {op.attrs["buffer"] for op in body.walk() if "buffer" in op.attrs}
    buffers = tuple(b for b in kernel.buffers if b.role != "workspace" or b.name in used)
    return replace(kernel, buffers=buffers, body=body)


def _live(region: Region, facts: _Facts, live: set[Value]) -> Region:
    """The region with its live ops only; adds what they use to `live`."""
    kept = []
    for op in reversed(region.ops):
        used = op.kind == "yield" or any(r in live for r in op.results)
        if used or _has_effect(op, facts):
            live.update(op.operands)
            regions = tuple(_live(inner, facts, live) for inner in op.regions)
            kept.append(replace(op, regions=regions) if op.regions else op)
    return replace(region, ops=tuple(reversed(kept)))


def _has_effect(op: Op, facts: _Facts) -> bool:
    if op.regions:
        return any(_has_effect(o, facts) for region in op.regions for o in region.ops)
    if op.kind == "load":
        return bool(op.attrs["checked"])
    if op.kind == "pointwise" and op.attrs["fn"] in _DIVISIONS:
        divisor = op.operands[1]
        return not divisor.type.dtype.is_floating_point and divisor not in facts.nonzero
    if op.kind in ("store", "atomic"):
        return op.attrs["buffer"] not in facts.unread
    return not OP_KINDS[op.kind].pure and op.kind != "yield"


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
