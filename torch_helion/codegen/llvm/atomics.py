"""Atomic read-modify-write of buffer elements, lane by lane.

In: an atomic operation and the emitter. Out: lines of LLVM text; the previous values where they are
asked for. Integers and float sums are `atomicrmw`; float maxima and minima (NaN wins, as in
`maximum`) and all of half types are loops around `cmpxchg`. Lanes masked off work on a slot of the
function's own, so that no branch is needed. Vectors of float sums that change nothing (zeros, as
programs add them for lanes that do not count) are seen before: an addition is a loop on most CPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_helion import exc
from torch_helion.codegen.llvm import compute, memory
from torch_helion.codegen.llvm.registers import Reg, Scope
from torch_helion.codegen.llvm.text import is_bits_only, is_signed, register_type, storage_type
from torch_helion.ir.graph import Op

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

ORDER = "monotonic"
_INTEGER = {"add": "add", "and": "and", "or": "or", "xor": "xor", "xchg": "xchg"}
_COMPUTE = {"add": "add", "max": "maximum", "min": "minimum"}


def atomic(em: PhaseEmitter, op: Op, scope: Scope) -> Reg:
    """Print the operation; the registers of what was there before."""
    access = op.access
    buffer = em.buffers[op.attrs["buffer"]]
    vector = em.in_vector_scope(scope) and em.piece is not None
    piece = em.piece if vector else None
    values = [em.get(v) for v in access.values]
    mask = em.get(access.mask) if access.mask is not None else None
    if piece is None:
        guard = mask.names[0] if mask is not None else None
        pointer = memory.address(em, op, access.gathered, scope, [guard]).pointer
        names = [_one(em, op, pointer, [v.names[0] for v in values], guard)]
        return Reg(tuple(names), buffer.dtype)
    masks = em.widen(mask, scope) if mask is not None else None
    guards = [memory._lane_mask(em, masks, u) for u in range(piece.count)]
    where = memory.address(em, op, access.gathered, scope, guards)
    columns = [em.widen(v, scope) for v in values]
    out = []
    for u in range(piece.count):
        row = [c[u] for c in columns]
        if piece.width == 1:
            pointer = memory._element_pointer(em, storage_type(buffer.dtype), where, u)
            out.append(_one(em, op, pointer, row, where.guards[u]))
        elif op.attrs["fn"] == "add" and not op.results and _is_float(buffer.dtype):
            _changing_lanes(em, op, where, u, row, where.guards[u])
        else:
            pointers = memory._lane_pointers(em, storage_type(buffer.dtype), where, u)
            out.append(_lanes(em, op, pointers, row, where.guards[u]))
    return Reg(tuple(out), buffer.dtype, True)


def _is_float(dtype: torch.dtype) -> bool:
    return storage_type(dtype) in ("float", "double")


def _changing_lanes(
    em: PhaseEmitter, op: Op, where: memory.Address, u: int, row: list[str], mask: str | None
) -> None:
    """The lanes of one vector whose sum is another number, to the bit, than what is there; none of
    them is the usual case in a program that adds zeros. What is there is read as it is at some
    moment: an addition at that moment changes nothing either.
    """
    assert em.piece is not None
    buffer, width = em.buffers[op.attrs["buffer"]], em.piece.width
    dtype, type = buffer.dtype, register_type(buffer.dtype, width)
    old = memory._vector_load(em, buffer, where, u, mask, 0)
    pointers = memory._lane_pointers(em, storage_type(dtype), where, u)
    new = em.let(f"fadd {type} {old}, {row[0]}", "sum")
    bits = f"<{width} x {_bits(dtype)}>"
    before, after = (em.let(f"bitcast {type} {v} to {bits}") for v in (old, new))
    changed = em.let(f"icmp ne {bits} {before}, {after}", "changed")
    if mask is not None:
        changed = em.let(f"and <{width} x i1> {changed}, {mask}", "changed")
    any_changed = em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (f"<{width} x i1>", changed))
    some, done = (em.names.fresh(f"atomic_{part}") for part in ("some", "done"))
    em.line(f"br i1 {any_changed}, label {some}, label {done}")
    em.current.code.append(f"{some[1:]}:")
    _lanes(em, op, pointers, row, changed)
    em.line(f"br label {done}")
    em.current.code.append(f"{done[1:]}:")


def _lanes(em: PhaseEmitter, op: Op, pointers: str, row: list[str], mask: str | None) -> str:
    """One vector, element by element, in order."""
    assert em.piece is not None
    dtype, width = em.buffers[op.attrs["buffer"]].dtype, em.piece.width
    type, result = register_type(dtype, width), "poison"
    for lane in range(width):
        pointer = em.let(f"extractelement <{width} x ptr> {pointers}, i64 {lane}", "p")
        guard = None
        if mask is not None:
            guard = em.let(f"extractelement <{width} x i1> {mask}, i64 {lane}", "on")
        scalars = [em.let(f"extractelement {type} {v}, i64 {lane}") for v in row]
        old = _one(em, op, pointer, scalars, guard)
        if op.results:
            result = em.let(
                f"insertelement {type} {result}, {register_type(dtype)} {old}, i64 {lane}"
            )
    return result


def _one(em: PhaseEmitter, op: Op, pointer: str, values: list[str], guard: str | None) -> str:
    """One element; the previous value."""
    dtype, fn = em.buffers[op.attrs["buffer"]].dtype, op.attrs["fn"]
    if guard is not None:
        pointer = em.let(f"select i1 {guard}, ptr {pointer}, ptr %nowhere", "p")
    if dtype is torch.bool:
        values = [em.let(f"zext i1 {v} to i8") for v in values]
        old = _rmw(em, torch.uint8, fn, pointer, values)
        return em.let(f"icmp ne i8 {old}, 0")
    return _rmw(em, dtype, fn, pointer, values)


def _rmw(em: PhaseEmitter, dtype: torch.dtype, fn: str, pointer: str, values: list[str]) -> str:
    type = storage_type(dtype)
    if fn == "cas":
        return _compare_exchange(em, dtype, pointer, *values)
    if not dtype.is_floating_point:
        name = _INTEGER.get(fn) or (fn if is_signed(dtype) else f"u{fn}")
        return em.let(f"atomicrmw {name} ptr {pointer}, {type} {values[0]} {ORDER}", "old")
    if fn == "xchg":
        return em.let(f"atomicrmw xchg ptr {pointer}, {type} {values[0]} {ORDER}", "old")
    if fn == "add" and type in ("float", "double"):
        return em.let(f"atomicrmw fadd ptr {pointer}, {type} {values[0]} {ORDER}", "old")
    if fn not in _COMPUTE:
        raise exc.CodegenError(f"llvm: atomic {fn} of {dtype}")
    return _loop(em, dtype, fn, pointer, values[0])


def _bits(dtype: torch.dtype) -> str:
    return f"i{dtype.itemsize * 8}"


def _to_bits(em: PhaseEmitter, dtype: torch.dtype, name: str) -> str:
    type = storage_type(dtype)
    return name if type == _bits(dtype) else em.let(f"bitcast {type} {name} to {_bits(dtype)}")


def _from_bits(em: PhaseEmitter, dtype: torch.dtype, name: str) -> str:
    type = storage_type(dtype)
    return name if type == _bits(dtype) else em.let(f"bitcast {_bits(dtype)} {name} to {type}")


def _exchange(em: PhaseEmitter, bits: str, pointer: str, old: str, new: str) -> tuple[str, str]:
    """cmpxchg: (what was there, whether it was `old`)."""
    pair = em.let(f"cmpxchg ptr {pointer}, {bits} {old}, {bits} {new} {ORDER} {ORDER}", "pair")
    found = em.let(f"extractvalue {{ {bits}, i1 }} {pair}, 0", "found")
    return found, em.let(f"extractvalue {{ {bits}, i1 }} {pair}, 1", "done")


def _compare_exchange(
    em: PhaseEmitter, dtype: torch.dtype, pointer: str, expected: str, value: str
) -> str:
    bits = _bits(dtype)
    old, new = _to_bits(em, dtype, expected), _to_bits(em, dtype, value)
    return _from_bits(em, dtype, _exchange(em, bits, pointer, old, new)[0])


def _loop(em: PhaseEmitter, dtype: torch.dtype, fn: str, pointer: str, value: str) -> str:
    """Compute and exchange until nobody else came between."""
    bits, slot = _bits(dtype), em.slot(_bits(dtype), "seen")
    head, done = em.names.fresh("again"), em.names.fresh("settled")
    first = em.let(f"load atomic {bits}, ptr {pointer} {ORDER}, align {dtype.itemsize}")
    em.line(f"store {bits} {first}, ptr {slot}")
    em.line(f"br label {head}")
    em.current.code.append(f"{head[1:]}:")
    old = em.let(f"load {bits}, ptr {slot}", "old")
    new = _combine(em, dtype, fn, old, value)
    found, ok = _exchange(em, bits, pointer, old, new)
    em.line(f"store {bits} {found}, ptr {slot}")
    em.line(f"br i1 {ok}, label {done}, label {head}")
    em.current.code.append(f"{done[1:]}:")
    return _from_bits(em, dtype, old)


def _combine(em: PhaseEmitter, dtype: torch.dtype, fn: str, old: str, value: str) -> str:
    row = compute.POINTWISE_ROWS[_COMPUTE[fn]]
    if not is_bits_only(dtype):
        return _to_bits(em, dtype, row(em, dtype, 1, _from_bits(em, dtype, old), value))
    wide = torch.float32
    a, b = (compute.convert(em, v, dtype, wide, 1) for v in (old, value))
    return compute.convert(em, row(em, wide, 1, a, b), wide, dtype, 1)
