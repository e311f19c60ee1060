"""Rules of the verifier: loops, branches, bound sizes, checks, prints.

In: a `Scope` and an op. Out: nothing, or an error through the scope. Used by `verifier.py` only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_helion.ir.graph import Op
from torch_helion.ir.types import begin_symbol, id_symbol
from torch_helion.ir.verifier_scope import Rules, Scope, counts, is_scalar


def _check_loop(s: Scope, op: Op) -> None:
    s.require(len(op.regions) == 1, "a loop has one region")
    kind = op.attrs["kind"]
    s.require(kind in ("grid", "tile", "sequential"), f"loop of kind {kind!r}")
    s.require(kind == "grid" or not op.attrs.get("serial"), "only a grid loop is serial")
    if s.loops:
        s.require(kind != "grid", "a grid loop inside another loop")
    (body,) = op.regions
    types = [v.type for v in op.operands]
    s.require([a.type for a in body.args] == types, "loop-carried values change their types")
    s.require([r.type for r in op.results] == types, "loop results have other types than carried")
    symbols = s.symbols
    if kind == "sequential":
        _enter_counter(s, op)
    else:
        _enter_tiles(s, op)
    s.loops.append(op)
    for axis in op.attrs["axes"]:
        s.check_axis(axis)
    s.check_region(body, op.results if op.results else None)
    s.loops.pop()
    s.symbols = symbols


def _enter_counter(s: Scope, op: Op) -> None:
    missing = [n for n in ("symbol", "begin", "end", "step") if n not in op.attrs]
    s.require(not missing, f"attributes {missing} are missing")
    s.require(op.attrs["axes"] == (), "a sequential loop has a counter, no axes")
    for name in ("begin", "end", "step"):
        s.check_size(op.attrs[name], name)
    step = op.attrs["step"]
    s.require(not isinstance(step, int) or step > 0, f"a step of {step}")
    s.add_symbol(op.attrs["symbol"])


def _enter_tiles(s: Scope, op: Op) -> None:
    axes, blocks = op.attrs["axes"], op.attrs.get("blocks")
    if blocks is not None:
        s.require(len(blocks) == len(axes), f"{len(blocks)} block sizes for {len(axes)} axes")
        for block in blocks:
            s.check_size(block, "block size", fixed=True)
            s.require(not isinstance(block, int) or block > 0, f"a block size of {block}")
    around = s.block_axes()
    for axis in axes:
        s.require(axis.kind == "block", f"a loop runs over block axes, not over {axis}")
        s.require(axis.name not in around, f"a loop around this already runs over {axis.name!r}")
        s.require(not axis.of, f"{axis.name!r} has the tile of {axis.of!r}: no loop of its own")
        s.check_size(axis.size, "axis size")
    for axis in axes:
        s.add_symbol(begin_symbol(axis))
        s.add_symbol(id_symbol(axis))


def _check_if(s: Scope, op: Op) -> None:
    s.require(len(op.operands) == 1 and len(op.regions) == 2, "one operand and two regions")
    is_scalar(s, op.operands[0], torch.bool)
    for region in op.regions:
        s.require(not region.args, "the regions of an if take no values")
        s.check_region(region, op.results if op.results else None)


def _check_while(s: Scope, op: Op) -> None:
    s.require(len(op.regions) == 2, "a while has two regions, condition and body")
    types = [v.type for v in op.operands]
    s.require([r.type for r in op.results] == types, "results have other types than the operands")
    condition, body = op.regions
    for region in op.regions:
        s.require([a.type for a in region.args] == types, "carried values change their types")
    if len(condition.yielded) != 1:
        s.fail("the condition yields one value")
    is_scalar(s, condition.yielded[0], torch.bool)
    s.check_region(condition, condition.yielded)
    s.check_region(body, op.results if op.results else None)


def _check_yield(s: Scope, op: Op) -> None:
    s.require(not op.results, "a yield has no results")


def _check_bind(s: Scope, op: Op) -> None:
    counts(s, op, 1, 0)
    is_scalar(s, op.operands[0], torch.int64)
    s.add_symbol(op.attrs["symbol"])


def _check_assert(s: Scope, op: Op) -> None:
    counts(s, op, 1, 0)
    if op.operands[0].type.dtype != torch.bool:
        s.fail(f"{op.operands[0]!r} must be a bool")
    s.require(op.attrs["status"] in (1, 2), f"no error status {op.attrs['status']!r}")


def _check_print(s: Scope, op: Op) -> None:
    s.require(not op.results, "a print has no results")
    s.require(isinstance(op.attrs["text"], str), f"{op.attrs['text']!r} is no text")


def _check_barrier(s: Scope, op: Op) -> None:
    s.require(not s.loops, "a barrier inside a loop")
    counts(s, op, 0, 0)


CONTROL_RULES: Rules = {
    "loop": _check_loop,
    "if": _check_if,
    "while": _check_while,
    "yield": _check_yield,
    "bind": _check_bind,
    "assert": _check_assert,
    "print": _check_print,
    "barrier": _check_barrier,
}

CONTROL_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "loop": ("kind", "axes"),
    "bind": ("symbol",),
    "assert": ("status",),
    "print": ("text",),
}
