"""Checks a kernel against the rules of the tile IR; run at the pipeline's ends and after passes.

In: a kernel. Out: nothing, or `exc.VerifierError` that quotes the operation. The rules are tables:
one list for the kernel as a whole, one row per op kind. A rule is a small function that raises
through `scope.fail`. `docs/tile-ir.md` lists them in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch_helion.ir.graph import Kernel, Op
from torch_helion.ir.overlap import step_overlap
from torch_helion.ir.types import block_symbol
from torch_helion.ir.verifier_control import CONTROL_ATTRIBUTES, CONTROL_RULES
from torch_helion.ir.verifier_joins import JOIN_ATTRIBUTES, JOIN_RULES
from torch_helion.ir.verifier_memory import MEMORY_ATTRIBUTES, MEMORY_RULES
from torch_helion.ir.verifier_scope import Rule, Scope
from torch_helion.ir.verifier_values import VALUE_ATTRIBUTES, VALUE_RULES


def verify(kernel: Kernel) -> None:
    """Raise `exc.VerifierError` if the kernel breaks a rule."""
    scope = Scope(kernel, _RULES, _ATTRIBUTES)
    for rule in _KERNEL_RULES:
        rule(scope)
    _check_phases(scope)


# -- the kernel as a whole ----------------------------------------------------------------------


def _loops(kernel: Kernel) -> Iterable[Op]:
    return (op for op in kernel.body.walk() if op.kind == "loop")


def _check_symbols(s: Scope) -> None:
    sizes = [symbol.name for symbol in s.kernel.sizes]
    s.require(len(set(sizes)) == len(sizes), f"a size is declared twice: {sizes}")
    blocks = s.kernel.blocks
    s.require(len(set(blocks)) == len(blocks), f"a block is declared twice: {blocks}")
    open_axes = [
        a for op in _loops(s.kernel) if not op.attrs.get("blocks") for a in op.attrs.get("axes", ())
    ]
    for axis in open_axes if blocks else ():
        s.require(axis.name in blocks, f"axis {axis.name!r} has no block size of the kernel's")
    names = {*blocks, *(a.name for a in open_axes if a.kind == "block")}
    s.fixed = s.symbols = frozenset({*s.kernel.sizes, *map(block_symbol, names)})


def _check_buffers(s: Scope) -> None:
    taken = {symbol.name for symbol in s.kernel.sizes}
    for buffer in s.kernel.buffers:
        s.require(buffer.name not in taken, f"the name {buffer.name!r} is used twice")
        taken.add(buffer.name)
        s.buffers[buffer.name] = buffer
        s.require(len(buffer.shape) == len(buffer.strides), f"{buffer.name}: sizes and strides")
        for size, stride in zip(buffer.shape, buffer.strides, strict=True):
            s.check_size(size, f"size of {buffer.name}")
            s.check_size(stride, f"stride of {buffer.name}")
            if buffer.role != "in" and stride == 0 and 0 not in buffer.shape:
                s.require(size in (0, 1), f"{buffer.name} is written through a stride of 0")


_KERNEL_RULES: tuple[Callable[[Scope], None], ...] = (_check_symbols, _check_buffers)


def _check_phases(s: Scope) -> None:
    for op in s.kernel.body.ops:
        s.op = op
        s.require(op.kind in ("loop", "barrier"), "only grid loops and barriers stand at the top")
        if op.kind == "loop":
            s.require(op.attrs.get("kind") == "grid", "a loop at the top is a grid loop")
            s.require(not op.operands and not op.results, "a grid loop carries no values")
        s.check_op(op)
        if op.kind == "barrier":
            s.complete |= s.pending
            s.pending = set()
        else:
            _check_steps_apart(s, op)
            s.pending |= s.written
            s.written = set()


def _check_steps_apart(s: Scope, loop: Op) -> None:
    overlap = None if loop.attrs.get("serial") else step_overlap(loop)
    if overlap is not None:
        s.op = overlap.op
        s.fail(overlap.why)


# -- the tables ---------------------------------------------------------------------------------

_RULES: Mapping[str, Rule] = {**CONTROL_RULES, **MEMORY_RULES, **VALUE_RULES, **JOIN_RULES}

_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    **CONTROL_ATTRIBUTES,
    **MEMORY_ATTRIBUTES,
    **VALUE_ATTRIBUTES,
    **JOIN_ATTRIBUTES,
}
