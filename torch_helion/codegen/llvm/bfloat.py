"""float32 to bfloat16: which values need no care for NaN, and pairs of vectors in one store.

In: values of a plan, a store of bfloat16. Out: names of math functions, lines of text.

Rounding adds to the bits of a number, which may turn a NaN into something else: only one whose
lower half holds something. Values that come from bfloat16 and constants by arithmetic have no such
NaN (x86: an instruction gives its own NaN or that of an operand, made quiet), which saves a
quarter of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.text import register_type
from torch_helion.ir.graph import Op, Value

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

PROPAGATES = {
    *("add", "sub", "mul", "div", "fma", "sqrt", "rsqrt", "neg", "abs", "copysign"),
    *("minimum", "maximum", "floor", "ceil", "trunc", "round"),
    *("exp", "exp2", "sigmoid", "tanh", "erf"),
}
"""Functions whose NaNs are an instruction's own, or an operand's with no bit set in its lower
half.
"""
DEPTH = 64
"""Operations back to which a value is followed."""


def is_plain(producer: Mapping[Value, Op], value: Value, depth: int = DEPTH) -> bool:
    """Whether no NaN of a float32 value can have bits in its lower half."""
    op = producer.get(value)
    if op is None or depth == 0:
        return False
    if op.kind == "const":
        return bool(op.attrs["value"] == op.attrs["value"])
    if op.kind == "cast":
        source = op.operands[0].type.dtype
        return source is torch.bfloat16 or not source.is_floating_point
    operands = op.operands
    if op.kind == "pointwise" and op.attrs["fn"] == "where":
        operands = operands[1:]
    elif op.kind != "expand" and not (op.kind == "pointwise" and op.attrs["fn"] in PROPAGATES):
        return False
    return all(is_plain(producer, v, depth - 1) for v in operands)


def rounding(em: PhaseEmitter, value: Value) -> str:
    """The end of the names of the math functions that round this value."""
    return "_plain" if em.machine.is_x86 and is_plain(em.plan.producer, value) else ""


def round_value(em: PhaseEmitter, value: Value) -> Reg:
    """A float32 value as the bits of bfloat16, in the scope of `value`."""
    reg = em.get(value)
    width = em.piece.width if reg.vector and em.piece else 1
    symbol = em.math.use(f"f32_to_bf16{rounding(em, value)}", "f32", width)
    narrow, wide = register_type(torch.bfloat16, width), register_type(torch.float32, width)
    names = tuple(em.let(f"call {narrow} {symbol}({wide} {name})", "h") for name in reg.names)
    return Reg(names, torch.bfloat16, reg.vector)


def can_pair(em: PhaseEmitter, op: Op, guards: Sequence[str | None]) -> bool:
    """Whether a store may write vectors of bfloat16 by two: rounded here, and all lanes written."""
    value, piece = op.operands[0], em.piece
    producer = em.plan.producer.get(value)
    return (
        piece is not None
        and piece.width == 16
        and piece.count % 2 == 0
        and em.machine.vector_bits >= 512
        and not any(guards)
        and value.type.dtype is torch.bfloat16
        and producer is not None
        and producer.kind == "cast"
        and producer.operands[0].type.dtype is torch.float32
        and value not in em.plan.arrays
    )


def pairs(em: PhaseEmitter, value: Value) -> list[str]:
    """A rounded value as vectors of 32 elements: upper halves of two vectors by one permutation."""
    (source,) = em.plan.producer[value].operands
    symbol = em.math.use(f"bf16_above{rounding(em, source)}", "f32", 16)
    wide = register_type(torch.float32, 16)
    halves = [
        em.let(f"bitcast <16 x i32> {bits} to <32 x i16>")
        for name in em.widen(em.get(source), em.current)
        for bits in (em.let(f"call <16 x i32> {symbol}({wide} {name})", "h"),)
    ]
    odd = ", ".join(f"i32 {2 * lane + 1}" for lane in range(32))
    return [
        em.let(f"shufflevector <32 x i16> {a}, <32 x i16> {b}, <32 x i32> <{odd}>", "pair")
        for a, b in zip(halves[::2], halves[1::2], strict=True)
    ]
