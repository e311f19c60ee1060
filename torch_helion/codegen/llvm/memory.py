"""Addresses, loads, stores and scratch arrays.

In: load/store operations and the emitter. Out: lines of LLVM text. An address is the buffer's
pointer plus one term per axis; each term is added in the scope of its axis, so everything but the
vector axis's own step is outside of the vector loop. Along the vector axis an access is contiguous,
constant (a scalar), or a gather/scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_helion.codegen.llvm import bfloat, prefetch
from torch_helion.codegen.llvm.indices import check_range, in_step, neighbours
from torch_helion.codegen.llvm.registers import Reg, Scope
from torch_helion.codegen.llvm.schedule import LoopAxis, PhasePlan, accumulator_dtype
from torch_helion.codegen.llvm.text import literal, register_type, splat, storage_type
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Affine, Buffer, Gather, Size

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter


@dataclass(frozen=True)
class Address:
    """Pointer at the scalar part, element step along the vector axis, vectors of further element
    offsets.
    """

    pointer: str
    step: Size
    guards: tuple[str | None, ...]
    """Lanes that are accessed, by vector; None: all."""
    offsets: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    """Pointers of each lane that take the place of `pointer` (stacked accesses)."""

    @property
    def contiguous(self) -> bool:
        return bool(self.step == 1) and not self.offsets and not self.bases


def _is_zero(size: Size) -> bool:
    return bool(size == 0)


def linear_terms(buffer: Buffer, index: Sequence[Affine | Gather]) -> tuple[dict[str, Size], Size]:
    """Element offset of an access as {axis or tile-id name: coefficient} and a constant."""
    terms: dict[str, Size] = {}
    constant: Size = 0
    for stride, expr in zip(buffer.strides, index, strict=True):
        if isinstance(expr, Affine):
            for name, coefficient in expr.terms:
                terms[name] = terms.get(name, 0) + stride * coefficient
            constant = constant + stride * expr.offset
    return {n: c for n, c in terms.items() if not _is_zero(c)}, constant


def address(
    em: PhaseEmitter, op: Op, gathered: Sequence[Value], scope: Scope, guards: Sequence[str | None]
) -> Address:
    """The address of a load or store; `guards` are the lanes that count, for index checks (None:
    all).
    """
    buffer = em.buffers[op.attrs["buffer"]]
    index = op.attrs["index"]
    terms, constant = linear_terms(buffer, index)
    step = terms.pop(em.plan.vector, 0) if em.in_vector_scope(scope) and em.plan.vector else 0
    bases: tuple[str, ...] = ()
    if op.attrs.get("stacked"):
        pointer, bases = _stacked_pointer(em, op, buffer, terms, constant, scope)
    else:
        pointer = scalar_pointer(em, buffer, terms, constant)
        forms = neighbours(em, op, gathered, step, scope)
        if forms:
            pointer, guards = in_step(em, op, pointer, forms, guards)
            return Address(pointer, 1, tuple(guards))
    offsets: tuple[str, ...] = ()
    for dim, expr in enumerate(index):
        if isinstance(expr, Gather):
            reg = em.get(gathered[expr.operand])
            if op.attrs["checked"]:
                reg = check_range(em, reg, em.sizes(buffer.shape[dim]), guards)
            stride = em.sizes(buffer.strides[dim])
            if reg.vector:
                scaled = _scale(em, em.widen(reg, scope), stride)
                offsets = _add_offsets(em, offsets, scaled)
            else:
                distance = em.let(f"mul i64 {reg.names[0]}, {stride}", "row")
                pointer = em.let(
                    f"getelementptr {storage_type(buffer.dtype)}, ptr {pointer}, i64 {distance}",
                    "p",
                )
                if bases:
                    one = em.piece is None or em.piece.width == 1
                    wide = distance if one else em.broadcast(distance, torch.int64)
                    bases = tuple(_move_lanes(em, buffer, base, wide) for base in bases)
    return Address(pointer, step, tuple(guards), offsets, bases)


def _stacked_pointer(
    em: PhaseEmitter,
    op: Op,
    buffer: Buffer,
    terms: dict[str, Size],
    constant: Size,
    scope: Scope,
) -> tuple[str, tuple[str, ...]]:
    """Where an access begins whose operand 0 holds addresses: one pointer, or one each lane."""
    value = op.access.pointer
    assert value is not None
    reg = em.get(value)
    distance = em.sizes(constant)
    for name, coefficient in terms.items():
        step = em.let(f"mul nsw i64 {em.index[name]}, {em.sizes(coefficient)}", "off")
        distance = em.let(f"add nsw i64 {distance}, {step}", "off")
    element = storage_type(buffer.dtype)
    if not reg.vector:
        pointer = em.let(f"inttoptr i64 {reg.names[0]} to ptr", "p")
        return em.let(f"getelementptr {element}, ptr {pointer}, i64 {distance}", "p"), ()
    assert em.piece is not None
    width = em.piece.width
    if width == 1:
        bases = tuple(em.let(f"inttoptr i64 {n} to ptr", "p") for n in reg.names)
    else:
        type = f"<{width} x i64>"
        bases = tuple(em.let(f"inttoptr {type} {n} to <{width} x ptr>", "ps") for n in reg.names)
    wide = distance if width == 1 else em.broadcast(distance, torch.int64)
    return "%nowhere", tuple(_move_lanes(em, buffer, base, wide) for base in bases)


def _move_lanes(em: PhaseEmitter, buffer: Buffer, base: str, distance: str) -> str:
    """Pointers of the lanes, `distance` elements further."""
    assert em.piece is not None
    element, width = storage_type(buffer.dtype), em.piece.width
    if width == 1:
        return em.let(f"getelementptr {element}, ptr {base}, i64 {distance}", "p")
    return em.let(
        f"getelementptr {element}, <{width} x ptr> {base}, <{width} x i64> {distance}", "ps"
    )


def scalar_pointer(em: PhaseEmitter, buffer: Buffer, terms: dict[str, Size], constant: Size) -> str:
    """Base pointer + scalar terms, each added in its own axis's scope (outer first)."""
    element = storage_type(buffer.dtype)
    pointer, key = em.pointers[buffer.name], (buffer.name,)
    depth = {s.axis: i for i, s in enumerate(em.scopes) if s.axis is not None}
    ordered = sorted(terms.items(), key=lambda t: (depth.get(t[0], 1), t[0]))
    steps: list[tuple[Scope, object, Size, str | None]] = []
    if not _is_zero(constant):
        steps.append((em.scopes[0], ("const", constant), constant, None))
    for name, coefficient in ordered:
        scope = em.scopes[depth.get(name, 1)]
        steps.append((scope, (name, coefficient, em.index[name]), coefficient, em.index[name]))
    for scope, mark, coefficient, index in steps:
        key = (*key, mark)  # type: ignore[assignment]
        if key not in scope.memo:
            factor = em.sizes(coefficient)
            with em.at(scope):
                distance = (
                    factor
                    if index is None
                    else (
                        index if factor == "1" else em.let(f"mul nsw i64 {index}, {factor}", "off")
                    )
                )
                scope.memo[key] = em.let(
                    f"getelementptr {element}, ptr {pointer}, i64 {distance}", "p"
                )
        pointer = scope.memo[key]
    return pointer


def _scale(em: PhaseEmitter, names: tuple[str, ...], factor: str) -> tuple[str, ...]:
    assert em.piece is not None
    if factor == "1":
        return names
    type = register_type(torch.int64, em.piece.width)
    wide = factor if em.piece.width == 1 else em.broadcast(factor, torch.int64)
    return tuple(em.let(f"mul {type} {n}, {wide}", "off") for n in names)


def _add_offsets(em: PhaseEmitter, old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    assert em.piece is not None
    if not old:
        return new
    type = register_type(torch.int64, em.piece.width)
    return tuple(em.let(f"add {type} {a}, {b}", "off") for a, b in zip(old, new, strict=True))


# -- loads ----------------------------------------------------------------------------------------


def load(em: PhaseEmitter, op: Op, scope: Scope) -> Reg:
    """The registers of a load."""
    buffer = em.buffers[op.attrs["buffer"]]
    gathered, mask = _split_operands(op, op.operands)
    vector = em.in_vector_scope(scope)
    if not vector or em.piece is None:
        return Reg((_scalar_load(em, op, buffer, gathered, mask, scope),), buffer.dtype)
    if (
        mask is None
        and not any(em.in_vector_scope(em.scope_of(g.type.axis_names)) for g in op.operands)
        and not _has_vector_term(em, op, buffer)
    ):
        # The same element for every lane (a stride of 0 along the vector axis).
        return Reg((_scalar_load(em, op, buffer, gathered, mask, scope),), buffer.dtype)
    masks = em.widen(em.get(mask), scope) if mask is not None else None
    guards = [_lane_mask(em, masks, u) for u in range(em.piece.count)]
    where = address(em, op, gathered, scope, guards)
    names = tuple(
        _vector_load(em, buffer, where, u, g, op.attrs["other"]) for u, g in enumerate(where.guards)
    )
    if where.contiguous and em.down is not None:
        down = linear_terms(buffer, op.attrs["index"])[0].get(em.down, 0)
        if prefetch.is_far(em, down, buffer.dtype.itemsize):
            first = _element_pointer(em, storage_type(buffer.dtype), where, 0)
            prefetch.fetch(em, first, down * prefetch.ROWS_AHEAD, buffer.dtype.itemsize)
    elif where.contiguous and prefetch.is_due(em, op):
        _fetch_next(em, op, where)
    return Reg(names, buffer.dtype, True)


def _fetch_next(em: PhaseEmitter, op: Op, where: Address) -> None:
    """Prefetch what a contiguous load reads in the next row."""
    buffer = em.buffers[op.attrs["buffer"]]
    step = prefetch.next_row(em, linear_terms(buffer, op.attrs["index"])[0])
    if step is not None:
        first = _element_pointer(em, storage_type(buffer.dtype), where, 0)
        prefetch.fetch(em, first, step, buffer.dtype.itemsize)


def _has_vector_term(em: PhaseEmitter, op: Op, buffer: Buffer) -> bool:
    return em.plan.vector in linear_terms(buffer, op.attrs["index"])[0]


def _split_operands(op: Op, operands: Sequence[Value]) -> tuple[Sequence[Value], Value | None]:
    if op.attrs.get("stacked"):
        operands = operands[1:]
    return (operands[:-1], operands[-1]) if op.attrs["masked"] else (operands, None)


def _lane_mask(em: PhaseEmitter, masks: tuple[str, ...] | None, u: int) -> str | None:
    """Lanes that exist and are asked for; None: all."""
    assert em.piece is not None
    if masks is None or em.piece.mask is None:
        return em.piece.mask if masks is None else masks[u]
    return em.let(
        f"and {register_type(torch.bool, em.piece.width)} {masks[u]}, {em.piece.mask}", "mask"
    )


def _scalar_load(
    em: PhaseEmitter,
    op: Op,
    buffer: Buffer,
    gathered: Sequence[Value],
    mask: Value | None,
    scope: Scope,
) -> str:
    element = storage_type(buffer.dtype)
    guard = em.get(mask).names[0] if mask is not None else None
    pointer = address(em, op, gathered, scope, [guard]).pointer
    return _guarded_load(em, buffer.dtype, element, pointer, guard, op.attrs["other"])


def _guarded_load(
    em: PhaseEmitter,
    dtype: torch.dtype,
    element: str,
    pointer: str,
    guard: str | None,
    other: float | int | bool,
) -> str:
    if guard is not None:  # a masked-off lane may point anywhere: read a slot of ours instead
        pointer = em.let(f"select i1 {guard}, ptr {pointer}, ptr %nowhere", "p")
    name = em.let(f"load {element}, ptr {pointer}, align {dtype.itemsize}", "x")
    if dtype is torch.bool:
        name = em.let(f"icmp ne i8 {name}, 0", "x")
    if guard is not None:
        type = register_type(dtype)
        name = em.let(f"select i1 {guard}, {type} {name}, {type} {literal(other, dtype)}", "x")
    return name


def _vector_load(
    em: PhaseEmitter,
    buffer: Buffer,
    where: Address,
    u: int,
    mask: str | None,
    other: float | int | bool,
) -> str:
    assert em.piece is not None
    width, dtype, element = em.piece.width, buffer.dtype, storage_type(buffer.dtype)
    if width == 1:
        pointer = _element_pointer(em, element, where, u)
        return _guarded_load(em, dtype, element, pointer, mask, other)
    type = f"<{width} x {element}>"
    stored_other = literal(other, torch.uint8 if dtype is torch.bool else dtype)
    fallback = splat(stored_other, element)
    if where.contiguous:
        pointer = _element_pointer(em, element, where, u)
        if mask is None:
            name = em.let(f"load {type}, ptr {pointer}, align {dtype.itemsize}", "x")
        else:
            name = em.call(
                type,
                f"llvm.masked.load.v{width}{_suffix(element)}.p0",
                ("ptr", pointer),
                ("i32", str(dtype.itemsize)),
                (f"<{width} x i1>", mask),
                (type, fallback),
                hint="x",
            )
    else:
        pointers = _lane_pointers(em, element, where, u)
        name = _gather_lanes(em, dtype, pointers, mask, fallback, "x")
    if dtype is torch.bool:
        name = em.let(f"icmp ne {type} {name}, zeroinitializer", "x")
    return name


def _suffix(element: str) -> str:
    return {"float": "f32", "double": "f64"}.get(element, element)


def _element_pointer(em: PhaseEmitter, element: str, where: Address, u: int) -> str:
    """Pointer to the first element of vector `u` (width 1: to the element)."""
    assert em.piece is not None and em.plan.vector is not None
    pointer = where.bases[u] if where.bases else where.pointer
    if not _is_zero(where.step):
        factor = em.sizes(where.step)
        index = em.index[em.plan.vector]
        distance = index if factor == "1" else em.let(f"mul nsw i64 {index}, {factor}", "off")
        pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {distance}", "p")
    if where.offsets:
        pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {where.offsets[u]}", "p")
    elif u:
        pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {u * em.piece.width}", "p")
    return pointer


def _lane_pointers(em: PhaseEmitter, element: str, where: Address, u: int) -> str:
    assert em.piece is not None and em.plan.vector is not None
    width = em.piece.width
    offsets = where.offsets[u] if where.offsets else None
    if not _is_zero(where.step):
        index = lane_index(em, u)
        scaled = _scale(em, (index,), em.sizes(where.step))[0]
        offsets = (
            scaled if offsets is None else em.let(f"add <{width} x i64> {offsets}, {scaled}", "off")
        )
    if offsets is None:
        offsets = "zeroinitializer"
    if where.bases:
        return em.let(
            f"getelementptr {element}, <{width} x ptr> {where.bases[u]}, <{width} x i64> {offsets}",
            "ps",
        )
    return em.let(f"getelementptr {element}, ptr {where.pointer}, <{width} x i64> {offsets}", "ps")


def lane_index(em: PhaseEmitter, u: int) -> str:
    """Positions of vector `u`'s lanes along the vector axis, as i64."""
    assert em.piece is not None and em.plan.vector is not None
    base = em.index[em.plan.vector]
    if em.piece.width == 1:
        return base if u == 0 else em.let(f"add nsw i64 {base}, {u}", "i")
    wide = em.broadcast(base, torch.int64)
    numbers = ", ".join(f"i64 {i + u * em.piece.width}" for i in range(em.piece.width))
    return em.let(f"add nsw <{em.piece.width} x i64> {wide}, <{numbers}>", "i")


# -- stores ---------------------------------------------------------------------------------------


def store(em: PhaseEmitter, op: Op, scope: Scope) -> None:
    """Write a value. Streaming stores go past the caches (large buffers, not read soon)."""
    buffer = em.buffers[op.attrs["buffer"]]
    gathered, mask = _split_operands(op, op.operands[1:])
    if not em.in_vector_scope(scope) or em.piece is None:
        value = em.get(op.operands[0])
        guard = em.get(mask).names[0] if mask is not None else None
        pointer = address(em, op, gathered, scope, [guard]).pointer
        _guarded_store(em, buffer.dtype, value.names[0], pointer, guard)
        return
    masks = em.widen(em.get(mask), scope) if mask is not None else None
    guards = [_lane_mask(em, masks, u) for u in range(em.piece.count)]
    where = address(em, op, gathered, scope, guards)
    if where.contiguous and bfloat.can_pair(em, op, where.guards):
        for number, name in enumerate(bfloat.pairs(em, op.operands[0])):
            pointer = _element_pointer(em, "i16", where, 2 * number)
            _whole_store(em, buffer, "<32 x i16>", name, pointer)
    else:
        value = em.get(op.operands[0])
        for u, (name, guard) in enumerate(zip(em.widen(value, scope), where.guards, strict=True)):
            _vector_store(em, buffer, where, u, name, guard)
    for load in prefetch.waiting(em) if where.contiguous else ():
        source = em.buffers[load.attrs["buffer"]]
        if linear_terms(source, load.attrs["index"])[0].keys() <= em.index.keys():
            there = address(em, load, (), scope, [None] * em.piece.count)
            _fetch_next(em, load, there)


def _guarded_store(
    em: PhaseEmitter, dtype: torch.dtype, name: str, pointer: str, guard: str | None
) -> None:
    element = storage_type(dtype)
    if dtype is torch.bool:
        name = em.let(f"zext i1 {name} to i8")
    if guard is not None:
        pointer = em.let(f"select i1 {guard}, ptr {pointer}, ptr %nowhere", "p")
    em.line(f"store {element} {name}, ptr {pointer}, align {dtype.itemsize}")


def _vector_store(
    em: PhaseEmitter, buffer: Buffer, where: Address, u: int, name: str, mask: str | None
) -> None:
    assert em.piece is not None
    width, dtype, element = em.piece.width, buffer.dtype, storage_type(buffer.dtype)
    if width == 1:
        _guarded_store(em, dtype, name, _element_pointer(em, element, where, u), mask)
        return
    type = f"<{width} x {element}>"
    if dtype is torch.bool:
        name = em.let(f"zext <{width} x i1> {name} to {type}")
    if where.contiguous:
        pointer = _element_pointer(em, element, where, u)
        if mask is None:
            _whole_store(em, buffer, type, name, pointer)
        else:
            em.call(
                "void",
                f"llvm.masked.store.v{width}{_suffix(element)}.p0",
                (type, name),
                ("ptr", pointer),
                ("i32", str(dtype.itemsize)),
                (f"<{width} x i1>", mask),
            )
        return
    _scatter_lanes(em, dtype, name, _lane_pointers(em, element, where, u), mask)


def _whole_store(em: PhaseEmitter, buffer: Buffer, type: str, name: str, pointer: str) -> None:
    """All lanes of a vector; past the caches where the buffer is streamed (aligned then)."""
    lanes, itemsize = int(type[1:].split()[0]), buffer.dtype.itemsize
    stream = buffer.name in em.streaming
    tail = ", !nontemporal !0" if stream else ""
    align = lanes * itemsize if stream else itemsize
    em.line(f"store {type} {name}, ptr {pointer}, align {align}{tail}")


def _gather_lanes(
    em: PhaseEmitter, dtype: torch.dtype, pointers: str, mask: str | None, other: str, hint: str
) -> str:
    """Elements (a bool as its byte) at `pointers`; lanes masked off hold `other`."""
    assert em.piece is not None
    width, element = em.piece.width, storage_type(dtype)
    type = f"<{width} x {element}>"
    return em.call(
        type,
        f"llvm.masked.gather.v{width}{_suffix(element)}.v{width}p0",
        (f"<{width} x ptr>", pointers),
        ("i32", str(dtype.itemsize)),
        (f"<{width} x i1>", mask or "splat (i1 true)"),
        (type, other),
        hint=hint,
    )


def _scatter_lanes(
    em: PhaseEmitter, dtype: torch.dtype, name: str, pointers: str, mask: str | None
) -> None:
    """Store elements (a bool as its byte) at `pointers`, except for lanes masked off."""
    assert em.piece is not None
    width, element = em.piece.width, storage_type(dtype)
    em.call(
        "void",
        f"llvm.masked.scatter.v{width}{_suffix(element)}.v{width}p0",
        (f"<{width} x {element}>", name),
        (f"<{width} x ptr>", pointers),
        ("i32", str(dtype.itemsize)),
        (f"<{width} x i1>", mask or "splat (i1 true)"),
    )


# -- scratch arrays -------------------------------------------------------------------------------


class ScratchLayout:
    """Where each array of the phase lies in the thread's scratch memory."""

    def __init__(self, em: PhaseEmitter) -> None:
        self.em = em
        self.pointer: dict[tuple[Value, str], str] = {}
        self.strides: dict[Value, dict[str, str]] = {}
        self.length: dict[Value, str] = {}

    def place(self) -> str:
        """Give every array its pointer (`%scratch` + offset); returns the total of bytes."""
        em, total = self.em, "0"
        for value, axes in em.plan.arrays.items():
            self.strides[value], self.length[value] = self._shape(axes)
            for part, dtype in array_parts(em.plan, em.plan.producer[value]):
                pointer = em.names.fresh(f"keep_{value.hint}")
                em.sizes.code.append(f"  {pointer} = getelementptr i8, ptr %scratch, i64 {total}")
                self.pointer[value, part] = pointer
                bytes = em.sizes.mul(self.length[value], str(dtype.itemsize))
                total = em.sizes.add(total, em.sizes.round_up(bytes, 64))
        return total

    def _shape(self, axes: tuple[LoopAxis, ...]) -> tuple[dict[str, str], str]:
        em = self.em
        strides: dict[str, str] = {}
        step = "1"
        for axis in reversed(axes):
            strides[axis.name] = step
            extent = em.sizes(axis.extent)
            if axis.name == em.plan.vector:
                extent = em.sizes.round_up(extent, em.width * em.unroll)
            step = em.sizes.mul(step, extent)
        return strides, em.sizes.round_up(step, em.width)

    def local(self, name: str) -> str:
        """The position along an axis, counted within the tile."""
        em = self.em
        local = em.index[name]
        if name not in em.begin:
            return local
        if em.begin[name] == local:
            return "0"
        return em.let(f"sub nsw i64 {local}, {em.begin[name]}", "at")

    def element(self, value: Value, part: str, dtype: torch.dtype, u: int) -> str:
        """Pointer to the element (or vector `u`) of the current position."""
        em = self.em
        pointer = self.pointer[value, part]
        element = storage_type(dtype)
        for name, stride in self.strides[value].items():
            local = self.local(name)
            distance = local if stride == "1" else em.let(f"mul nsw i64 {local}, {stride}", "at")
            pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {distance}", "p")
        if u and em.piece is not None:
            pointer = em.let(
                f"getelementptr {element}, ptr {pointer}, i64 {u * em.piece.width}", "p"
            )
        return pointer


def array_parts(plan: PhasePlan, op: Op) -> tuple[tuple[str, torch.dtype], ...]:
    """The arrays behind one scratch value: (part name, dtype in scratch); the last one is read."""
    if op.kind == "reduce" and op.result not in plan.carried:
        value = ("value", accumulator_dtype(op, True))
        return (value, ("index", torch.int64)) if op.attrs["fn"].startswith("arg") else (value,)
    return (("value", op.result.type.dtype),)


def read_part(
    em: PhaseEmitter, value: Value, part: str, dtype: torch.dtype, scope: Scope
) -> tuple[str, ...]:
    """Load one array at the current position, a name per vector (a scalar outside of the vector
    loop).
    """
    vector = em.in_vector_scope(scope) and em.piece is not None
    count = em.piece.count if vector and em.piece else 1
    width = em.piece.width if vector and em.piece else 1
    element = storage_type(dtype)
    type = element if width == 1 else f"<{width} x {element}>"
    names = []
    if vector and width > 1 and _strided(em, value):
        return _read_lanes(em, value, part, dtype)
    for u in range(count):
        name = em.let(
            f"load {type}, ptr {em.layout.element(value, part, dtype, u)}, align {dtype.itemsize}",
            "k",
        )
        if dtype is torch.bool:
            name = em.let(f"icmp ne {type} {name}, {'zeroinitializer' if width > 1 else '0'}")
        names.append(name)
    return tuple(names)


def write_part(
    em: PhaseEmitter,
    value: Value,
    part: str,
    dtype: torch.dtype,
    names: Sequence[str],
    scope: Scope,
) -> None:
    """Store one array at the current position (whole vectors: arrays are padded)."""
    vector = em.in_vector_scope(scope) and em.piece is not None
    width = em.piece.width if vector and em.piece else 1
    element = storage_type(dtype)
    type = element if width == 1 else f"<{width} x {element}>"
    strided = vector and width > 1 and _strided(em, value)
    for u, name in enumerate(names):
        if dtype is torch.bool:
            name = em.let(f"zext {register_type(dtype, width)} {name} to {type}")
        if strided:
            _write_lanes(em, value, part, dtype, name, u)
            continue
        em.line(
            f"store {type} {name}, ptr {em.layout.element(value, part, dtype, u)}, "
            f"align {dtype.itemsize}"
        )


def _strided(em: PhaseEmitter, value: Value) -> bool:
    """Whether neighbours along the vector axis do not lie side by side in the array."""
    return em.layout.strides[value].get(em.plan.vector or "", "1") != "1"


def _array_lanes(em: PhaseEmitter, value: Value, part: str, dtype: torch.dtype, u: int) -> str:
    assert em.piece is not None and em.plan.vector is not None
    width = em.piece.width
    pointer = em.layout.element(value, part, dtype, 0)
    stride = em.broadcast(em.layout.strides[value][em.plan.vector], torch.int64)
    numbers = ", ".join(f"i64 {i + u * width}" for i in range(width))
    offsets = em.let(f"mul <{width} x i64> {stride}, <{numbers}>", "off")
    return em.let(
        f"getelementptr {storage_type(dtype)}, ptr {pointer}, <{width} x i64> {offsets}", "ps"
    )


def _read_lanes(em: PhaseEmitter, value: Value, part: str, dtype: torch.dtype) -> tuple[str, ...]:
    assert em.piece is not None
    return tuple(
        _gather(em, dtype, _array_lanes(em, value, part, dtype, u), em.piece.mask)
        for u in range(em.piece.count)
    )


def _gather(em: PhaseEmitter, dtype: torch.dtype, pointers: str, mask: str | None) -> str:
    """Lanes of scratch at `pointers`; lanes masked off hold zero."""
    assert em.piece is not None
    name = _gather_lanes(em, dtype, pointers, mask, "zeroinitializer", "k")
    type = f"<{em.piece.width} x {storage_type(dtype)}>"
    return em.let(f"icmp ne {type} {name}, zeroinitializer") if dtype is torch.bool else name


def _write_lanes(
    em: PhaseEmitter, value: Value, part: str, dtype: torch.dtype, name: str, u: int
) -> None:
    assert em.piece is not None
    pointers = _array_lanes(em, value, part, dtype, u)
    _scatter_lanes(em, dtype, name, pointers, em.piece.mask)


def take(em: PhaseEmitter, value: Value, index: Reg, axis: str, limit: str, scope: Scope) -> Reg:
    """Elements of an array in scratch at computed positions along one of its axes."""
    dtype, vector = value.type.dtype, em.in_vector_scope(scope) and em.piece is not None
    piece = em.piece if vector else None
    guards = [piece.mask if piece is not None and index.vector else None] * len(index.names)
    index = check_range(em, index, limit, guards)
    strides, element = em.layout.strides[value], storage_type(dtype)
    pointer = em.layout.pointer[value, "value"]
    for name, stride in strides.items():
        if name not in (axis, em.plan.vector if vector else None):
            local = em.layout.local(name)
            step = em.let(f"mul nsw i64 {local}, {stride}", "at")
            pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {step}", "p")
    if piece is None:
        step = em.let(f"mul nsw i64 {index.names[0]}, {strides[axis]}", "at")
        pointer = em.let(f"getelementptr {element}, ptr {pointer}, i64 {step}", "p")
        return Reg((_guarded_load(em, dtype, element, pointer, None, 0),), dtype)
    own = em.plan.vector if em.plan.vector in strides and em.plan.vector != axis else None
    names = []
    for u, position in enumerate(em.widen(index, scope)):
        offsets = _scale(em, (position,), strides[axis])[0]
        if own is not None:
            lane = _local_lanes(em, u)
            offsets = _add_offsets(em, (offsets,), _scale(em, (lane,), strides[own]))[0]
        if piece.width == 1:
            at = em.let(f"getelementptr {element}, ptr {pointer}, i64 {offsets}", "p")
            names.append(_guarded_load(em, dtype, element, at, None, 0))
        else:
            at = em.let(
                f"getelementptr {element}, ptr {pointer}, <{piece.width} x i64> {offsets}", "ps"
            )
            names.append(_gather(em, dtype, at, piece.mask))
    return Reg(tuple(names), dtype, True)


def _local_lanes(em: PhaseEmitter, u: int) -> str:
    """Positions of vector `u`'s lanes along the vector axis, counted within the tile."""
    assert em.piece is not None and em.plan.vector is not None
    lanes, begin = lane_index(em, u), em.begin.get(em.plan.vector)
    if begin is None:
        return lanes
    wide = em.broadcast(begin, torch.int64) if em.piece.width > 1 else begin
    return em.let(f"sub {register_type(torch.int64, em.piece.width)} {lanes}, {wide}", "at")


def store_array(em: PhaseEmitter, value: Value, reg: Reg, scope: Scope) -> None:
    write_part(em, value, "value", value.type.dtype, em.widen(reg, scope), scope)
