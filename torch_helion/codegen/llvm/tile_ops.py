"""Operations on whole tiles in scratch: reductions and scans by a function, reshapes, prints.

In: a structured operation whose operands are arrays, the frame. Out: loops of LLVM text that fill
the arrays of its results. `sorting.py` holds sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from torch_helion.codegen.llvm import compute
from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.regions import RegionPlan
from torch_helion.codegen.llvm.registers import Reg
from torch_helion.codegen.llvm.sweeps import SweepEmitter
from torch_helion.codegen.llvm.text import is_bits_only, register_type, storage_type
from torch_helion.ir.graph import Op, Region, Value
from torch_helion.ir.ops import identity_of

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program

_DIVIDES = ("truncdiv", "floordiv", "remainder", "fmod")
_COMBINE = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}
PICOSECONDS_PER_ELEMENT = 1000

Join = Callable[[Sequence[str], Sequence[str], int], list[str]]


# -- elements of arrays ---------------------------------------------------------------------------


def pointer_at(em: SweepEmitter, array: Array, at: dict[str, str]) -> str:
    """The element at these positions (counted within the tile; missing ones are 0)."""
    pointer = array.pointer
    for axis, stride in array.strides:
        place = at.get(axis, "0")
        if place == "0":
            continue
        step = place if stride == "1" else em.let(f"mul nsw i64 {place}, {stride}", "at")
        pointer = em.let(
            f"getelementptr {storage_type(array.dtype)}, ptr {pointer}, i64 {step}", "p"
        )
    return pointer


def read(em: SweepEmitter, pointer: str, dtype: torch.dtype, width: int = 1) -> str:
    element = storage_type(dtype)
    type = element if width == 1 else f"<{width} x {element}>"
    name = em.let(f"load {type}, ptr {pointer}, align {dtype.itemsize}", "x")
    if dtype is torch.bool:
        name = em.let(f"icmp ne {type} {name}, {'zeroinitializer' if width > 1 else '0'}")
    return name


def write(em: SweepEmitter, pointer: str, name: str, dtype: torch.dtype, width: int = 1) -> None:
    element = storage_type(dtype)
    type = element if width == 1 else f"<{width} x {element}>"
    if dtype is torch.bool:
        name = em.let(f"zext {register_type(dtype, width)} {name} to {type}")
    em.line(f"store {type} {name}, ptr {pointer}, align {dtype.itemsize}")


@contextmanager
def nest(em: SweepEmitter, loops: Sequence[tuple[str, str, str]]) -> Iterator[dict[str, str]]:
    """Loops (axis, extent, step); gives the positions."""
    at: dict[str, str] = {}
    with ExitStack() as stack:
        for axis, extent, step in loops:
            at[axis] = stack.enter_context(
                em.loop(em.slot("i64", f"at_{axis}"), "0", extent, step, None, axis)
            )
        yield at


def result_array(program: Program, frame: Frame, value: Value) -> Array:
    aim = program.targets.get(value)
    if aim is not None:
        return aim
    axes = program.sorted_axes(program.looped_axes(value))
    return program.allocate(frame, axes, value.type.dtype, value.hint)


# -- functions of regions -------------------------------------------------------------------------


def combine(
    em: SweepEmitter, region: Region, left: Sequence[str], right: Sequence[str], width: int
) -> list[str]:
    """The region's function on registers of one width."""
    found: dict[Value, str] = dict(zip(region.args, (*left, *right), strict=True))
    for op in region.ops:
        operands = [found[v] for v in op.operands]
        if op.kind == "yield":
            return operands
        dtype = op.result.type.dtype
        source = op.operands[-1].type.dtype if op.operands else dtype
        if op.kind == "const":
            name = compute.number(op.attrs["value"], dtype, width)
        elif op.kind == "size":
            name = _splat(em, em.sizes(op.attrs["expr"]), dtype, width)
        elif op.kind == "cast":
            name = compute.convert(em, operands[0], source, dtype, width)
        elif op.kind == "bitcast":
            name = compute._bitcast(em, op, width, tuple(operands))
        elif op.kind == "expand":
            name = operands[0]
        else:
            name = compute.POINTWISE_ROWS[op.attrs["fn"]](em, source, width, *operands)
        found[op.result] = name
    raise AssertionError("a combine region yields nothing")


def _splat(em: SweepEmitter, name: str, dtype: torch.dtype, width: int) -> str:
    if width == 1:
        return name
    type = register_type(dtype, width)
    one = em.let(f"insertelement {type} poison, {register_type(dtype)} {name}, i64 0")
    return em.let(f"shufflevector {type} {one}, {type} poison, <{width} x i32> zeroinitializer")


def _wide_axis(program: Program, op: Op, along: Sequence[str]) -> str | None:
    """The axis of the operands' arrays along which the function works on vectors."""
    arrays = [program.homes[v] for v in op.operands if program.looped_axes(v)]
    if len(arrays) < len(op.operands):
        return None
    inner = {next((n for n, s in a.strides if s == "1"), None) for a in arrays}
    if len(inner) != 1 or None in inner or inner & set(along):
        return None
    for region in op.regions:
        if any(o.attrs.get("fn") in _DIVIDES for o in region.ops):
            return None  # lanes beyond the tile must not report an error
    return inner.pop()


def custom(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A reduction or scan by a region's function."""
    (region,) = op.regions
    axes = op.attrs["axes"] if op.kind == "reduce" else (op.attrs["axis"],)
    em = program.emitter(frame)

    def join(left: Sequence[str], right: Sequence[str], width: int) -> list[str]:
        return combine(em, region, left, right, width)

    if op.kind == "reduce":
        _reduce(program, frame, em, op, list(axes), join)
    else:
        _scan(program, frame, em, op, axes[0], join, None)


def scan(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A running sum, product, maximum or minimum."""
    em = program.emitter(frame)
    dtype, fn = op.result.type.dtype, op.attrs["fn"]
    row = compute.POINTWISE_ROWS[_COMBINE[fn]]

    def join(left: Sequence[str], right: Sequence[str], width: int) -> list[str]:
        return [row(em, dtype, width, left[0], right[0])]

    _scan(program, frame, em, op, op.attrs["axis"], join, identity_of(fn, dtype))


# -- scans ----------------------------------------------------------------------------------------


def _scan(
    program: Program,
    frame: Frame,
    em: SweepEmitter,
    op: Op,
    axis: str,
    join: Join,
    identity: float | int | bool | None,
) -> None:
    values, results = op.operands, op.results
    if not program.looped(axis):
        _scan_of_one(program, frame, em, op, identity)
        return
    arrays = [program.homes[v] for v in values]
    outs = [result_array(program, frame, r) for r in results]
    wide = _wide_axis(program, op, [axis])
    width = program.width if wide else 1
    others = [n for n in program.looped_axes(results[0]) if n != axis]
    loops = [(n, program.tile_extent(frame, n), str(width) if n == wide else "1") for n in others]
    extent = program.tile_extent(frame, axis)
    inline = wide is None and identity is not None and _side_by_side(axis, arrays + outs)
    with nest(em, loops) as at:
        if inline:
            _scan_line(em, op, (arrays[0], outs[0]), (axis, extent), at, join, identity)
        else:
            _scan_steps(em, op, arrays, outs, (axis, extent), at, join, (identity, width))
    for value, out in zip(results, outs, strict=True):
        program.settle(value, out, None, frame)
    _count(program, frame, op)


def _side_by_side(axis: str, arrays: Sequence[Array]) -> bool:
    return all(a.stride(axis) == "1" and a.dtype.itemsize >= 4 for a in arrays)


def _scan_of_one(
    program: Program,
    frame: Frame,
    em: SweepEmitter,
    op: Op,
    identity: float | int | bool | None,
) -> None:
    """Along an axis with tiles of one element."""
    for value, result in zip(op.operands, op.results, strict=True):
        if not program.looped_axes(result):
            dtype = result.type.dtype
            name = program.scalar(frame, value)
            if op.attrs["exclusive"]:
                name = compute.number(identity or 0, dtype, 1)
            program.settle(result, None, Reg((name,), dtype), frame)
        elif op.attrs["exclusive"]:
            out = result_array(program, frame, result)
            fill(program, frame, em, result, out, identity or 0)
            program.settle(result, out, None, frame)
        else:
            program.settle(result, program.homes[value], None, frame)


def fill(
    program: Program,
    frame: Frame,
    em: SweepEmitter,
    value: Value,
    out: Array,
    number: float | int | bool,
) -> None:
    loops = [(n, program.tile_extent(frame, n), "1") for n in program.looped_axes(value)]
    with nest(em, loops) as at:
        constant = compute.number(number, out.dtype, 1)
        write(em, pointer_at(em, out, at), constant, out.dtype)


def _scan_steps(
    em: SweepEmitter,
    op: Op,
    arrays: Sequence[Array],
    outs: Sequence[Array],
    along: tuple[str, str],
    at: dict[str, str],
    join: Join,
    how: tuple[float | int | bool | None, int],
) -> None:
    """Element after element, many lines at a time where they lie side by side."""
    (axis, extent), (identity, width) = along, how
    types = [register_type(a.dtype, width) for a in arrays]
    slots = [em.slot(t, "running") for t in types]
    for slot, type, array in zip(slots, types, arrays, strict=True):
        start = compute.number(0 if identity is None else identity, array.dtype, width)
        em.line(f"store {type} {start}, ptr {slot}")
    with em.loop(em.slot("i64", f"at_{axis}"), "0", extent, "1", None, axis) as step:
        here = _from_end(em, op, step, extent)
        places = {**at, axis: here}
        new = [read(em, pointer_at(em, a, places), a.dtype, width) for a in arrays]
        old = [em.let(f"load {t}, ptr {s}", "run") for t, s in zip(types, slots, strict=True)]
        joined = join(old, new, width)
        if identity is None:  # the first element stands for itself
            first = em.let(f"icmp eq i64 {step}, 0", "first")
            joined = [
                em.let(f"select i1 {first}, {t} {n}, {t} {j}")
                for t, n, j in zip(types, new, joined, strict=True)
            ]
        for index, (slot, type) in enumerate(zip(slots, types, strict=True)):
            em.line(f"store {type} {joined[index]}, ptr {slot}")
            shown = old[index] if op.attrs["exclusive"] else joined[index]
            write(em, pointer_at(em, outs[index], places), shown, outs[index].dtype, width)


def _from_end(em: SweepEmitter, op: Op, step: str, extent: str) -> str:
    if not op.attrs["reverse"]:
        return step
    last = em.let(f"add nsw i64 {extent}, -1", "last")
    return em.let(f"sub nsw i64 {last}, {step}", "at")


def _scan_line(
    em: SweepEmitter,
    op: Op,
    arrays: tuple[Array, Array],
    along: tuple[str, str],
    at: dict[str, str],
    join: Join,
    identity: float | int | bool | None,
) -> None:
    """Along neighbours in memory: each vector is scanned in registers, then joined with what was
    before it.
    """
    (source, out), (axis, extent), width = arrays, along, em.width
    dtype, reverse = source.dtype, op.attrs["reverse"]
    type, scalar = register_type(dtype, width), register_type(dtype)
    start = compute.number(identity or 0, dtype, 1)
    rest = compute.number(identity or 0, dtype, width)
    running = em.slot(scalar, "running")
    em.line(f"store {scalar} {start}, ptr {running}")
    with em.loop(em.slot("i64", f"at_{axis}"), "0", extent, str(width), None, axis) as step:
        first = step
        if reverse:  # whole vectors from the end: the last one, first, may be short
            chunks = em.let(f"add nsw i64 {extent}, -1", "last")
            chunks = em.let(f"and i64 {chunks}, {-width}", "last")
            first = em.let(f"sub nsw i64 {chunks}, {step}", "at")
        places = {**at, axis: first}
        lanes = ", ".join(f"i64 {i}" for i in range(width))
        left = em.let(f"sub nsw i64 {extent}, {first}", "left")
        inside = em.let(
            f"icmp ult <{width} x i64> <{lanes}>, {_splat(em, left, torch.int64, width)}", "in"
        )
        x = read(em, pointer_at(em, source, places), dtype, width)
        x = em.let(f"select <{width} x i1> {inside}, {type} {x}, {type} {rest}")
        distance = 1
        while distance < width:
            moved = _shifted(em, x, rest, type, width, distance, reverse)
            (x,) = join([moved], [x], width)
            distance *= 2
        before = em.let(f"load {scalar}, ptr {running}", "run")
        (y,) = join([_splat(em, before, dtype, width)], [x], width)
        shown = y
        if op.attrs["exclusive"]:
            shown = _shifted(em, y, rest, type, width, 1, reverse)
            edge = width - 1 if reverse else 0
            shown = em.let(f"insertelement {type} {shown}, {scalar} {before}, i64 {edge}")
        write(em, pointer_at(em, out, places), shown, dtype, width)
        carry = em.let(f"extractelement {type} {y}, i64 {0 if reverse else width - 1}", "carry")
        em.line(f"store {scalar} {carry}, ptr {running}")


def _shifted(
    em: SweepEmitter, x: str, rest: str, type: str, width: int, distance: int, reverse: bool
) -> str:
    """Lanes moved away from the side where a scan begins; identities come in."""
    if reverse:
        numbers = [i + distance for i in range(width)]
    else:
        numbers = [i - distance if i >= distance else width for i in range(width)]
    mask = ", ".join(f"i32 {min(n, 2 * width - 1)}" for n in numbers)
    return em.let(f"shufflevector {type} {x}, {type} {rest}, <{width} x i32> <{mask}>", "shift")


# -- reductions -----------------------------------------------------------------------------------


def _reduce(
    program: Program, frame: Frame, em: SweepEmitter, op: Op, axes: list[str], join: Join
) -> None:
    values, results = op.operands, op.results
    reduced = [n for n in values[0].type.axis_names if n in axes and program.looped(n)]
    if not reduced:
        for value, result in zip(values, results, strict=True):
            if program.looped_axes(value):
                program.settle(result, program.homes[value], None, frame)
            else:
                name = program.scalar(frame, value)
                program.settle(result, None, Reg((name,), value.type.dtype), frame)
        return
    kept = program.looped_axes(results[0])
    arrays = [program.homes[v] for v in values]
    outs = [result_array(program, frame, r) for r in results] if kept else []
    wide = _wide_axis(program, op, axes)
    width = program.width if wide else 1
    loops = [(n, program.tile_extent(frame, n), str(width) if n == wide else "1") for n in kept]
    types = [register_type(v.type.dtype, width) for v in values]
    slots = [em.slot(t, "acc") for t in types]
    with nest(em, loops) as at:
        starts = zip(slots, types, values, op.attrs["identity"], strict=True)
        for slot, type, value, identity in starts:
            start = compute.number(identity, value.type.dtype, width)
            em.line(f"store {type} {start}, ptr {slot}")
        inner = [(n, program.tile_extent(frame, n), "1") for n in reduced]
        with nest(em, inner) as places:
            where = {**at, **places}
            new = [read(em, pointer_at(em, a, where), a.dtype, width) for a in arrays]
            old = [em.let(f"load {t}, ptr {s}", "acc") for t, s in zip(types, slots, strict=True)]
            for slot, type, name in zip(slots, types, join(old, new, width), strict=True):
                em.line(f"store {type} {name}, ptr {slot}")
        names = [em.let(f"load {t}, ptr {s}") for t, s in zip(types, slots, strict=True)]
        for out, name in zip(outs, names, strict=False):
            write(em, pointer_at(em, out, at), name, out.dtype, width)
    for index, result in enumerate(results):
        if kept:
            program.settle(result, outs[index], None, frame)
        else:
            program.settle(result, None, Reg((names[index],), result.type.dtype), frame)
    _count(program, frame, op)


def _count(program: Program, frame: Frame, op: Op) -> None:
    names = {n for v in op.operands for n in program.looped_axes(v)}
    total = PICOSECONDS_PER_ELEMENT
    for name in sorted(names):
        total = total * program.known_size(program.loop_axis(name).extent)  # type: ignore[assignment]
    frame.cost = frame.cost + total


# -- axes -----------------------------------------------------------------------------------------


def reaxis(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """Other names for the axes of an array."""
    (value,) = op.operands
    result = op.result
    names = {old: new.name for old, new in op.attrs["axes"]}
    if not program.looped_axes(value):
        reg = Reg((program.scalar(frame, value),), value.type.dtype)
        program.settle(result, None, reg, frame)
        return
    program.settle(result, program.homes[value].renamed(names), None, frame)


def reshape(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """A group of axes becomes another one, element by element."""
    (value,) = op.operands
    result, source, target = op.result, op.attrs["source"], [a.name for a in op.attrs["target"]]
    em = program.emitter(frame)
    if not program.looped_axes(result) and not program.looped_axes(value):
        reg = Reg((program.scalar(frame, value),), value.type.dtype)
        program.settle(result, None, reg, frame)
        return
    if _is_renaming(program, op):
        _renaming(program, frame, op, em)
        return
    looped = program.looped_axes(result)
    out = result_array(program, frame, result) if looped else None
    with nest(em, [(n, program.tile_extent(frame, n), "1") for n in looped]) as at:
        position = "0"
        for name in target:
            position = _mul_add(em, position, _whole(program, frame, name), at.get(name, "0"))
        where, inside = dict(at), "true"
        for name in reversed(source):
            extent = _whole(program, frame, name)
            where[name] = em.let(f"srem i64 {position}, {extent}", "at")
            position = em.let(f"sdiv i64 {position}, {extent}", "rest")
            valid = program.tile_extent(frame, name)
            here = em.let(f"icmp slt i64 {where[name]}, {valid}")
            inside = em.let(f"and i1 {inside}, {here}", "in")
        element = _element_or_zero(program, em, frame, value, where, inside)
        if out is not None:
            write(em, pointer_at(em, out, at), element, out.dtype)
    if out is not None:
        program.settle(result, out, None, frame)
    else:
        program.settle(result, None, Reg((element,), result.type.dtype), frame)
    _count(program, frame, op)


def _is_renaming(program: Program, op: Op) -> bool:
    """Whether a tile becomes an axis of its block's length: the array with zeros at its end."""
    source, target = op.attrs["source"], op.attrs["target"]
    if len(source) != 1 or len(target) != 1 or source[0] not in program.looped_axes(op.operands[0]):
        return False
    whole = program.true_blocks.get(source[0])
    if whole is None or whole != program.blocks[source[0]]:
        return False
    size = target[0].size
    return program.looped(target[0].name) and bool(program.known_size(size) == whole)


def _renaming(program: Program, frame: Frame, op: Op, em: SweepEmitter) -> None:
    (value,), (old,), (new,) = op.operands, op.attrs["source"], op.attrs["target"]
    array = program.homes[value]
    whole, extent = program.true_blocks[old], program.tile_extent(frame, old)
    if extent != str(whole):
        others = [n for n in program.looped_axes(value) if n != old]
        left = em.let(f"sub nsw i64 {whole}, {extent}", "left")
        loops = [*((n, program.tile_extent(frame, n), "1") for n in others), (old, left, "1")]
        with nest(em, loops) as at:
            place = em.let(f"add nsw i64 {at[old]}, {extent}", "at")
            zero = compute.number(0, array.dtype, 1)
            write(em, pointer_at(em, array, {**at, old: place}), zero, array.dtype)
    program.settle(op.result, array.renamed({old: new.name}), None, frame)


def _whole(program: Program, frame: Frame, name: str) -> str:
    """Positions of a tile of an axis, those beyond the end included."""
    if name in program.blocks:
        return str(program.true_blocks[name])
    return frame.sizes(program.axes[name].size)


def _mul_add(em: SweepEmitter, total: str, factor: str, more: str) -> str:
    product = total if total == "0" else em.let(f"mul nsw i64 {total}, {factor}", "at")
    if product == "0":
        return more
    return product if more == "0" else em.let(f"add nsw i64 {product}, {more}", "at")


def _element_or_zero(
    program: Program, em: SweepEmitter, frame: Frame, value: Value, at: dict[str, str], inside: str
) -> str:
    dtype = value.type.dtype
    type, zero = register_type(dtype), compute.number(0, dtype, 1)
    if not program.looped_axes(value):
        name = program.scalar(frame, value)
    else:
        pointer = pointer_at(em, program.homes[value], at)
        pointer = em.let(f"select i1 {inside}, ptr {pointer}, ptr %nowhere", "p")
        name = read(em, pointer, dtype)
    return em.let(f"select i1 {inside}, {type} {name}, {type} {zero}", "x")


def atomic(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """An atomic operation whose previous values are asked for."""
    program.emit_sinks(frame, [op])


# -- print ----------------------------------------------------------------------------------------


def show(program: Program, frame: Frame, op: Op, plan: RegionPlan, number: int) -> None:
    """The text and the values, by the C library, as nested lists."""
    em = program.emitter(frame)
    program.declares.add("declare i32 @printf(ptr, ...)")
    program.declares.add("declare i32 @fflush(ptr)")
    _print(program, em, op.attrs["text"].replace("%", "%%"))
    for value in op.operands:
        _print(program, em, " ")
        axes = [n for n in value.type.axis_names if program.looped(n)]
        _print_part(program, frame, em, value, axes, {})
    _print(program, em, "\n")
    em.line("call i32 @fflush(ptr null)")


def _print(program: Program, em: SweepEmitter, text: str, argument: str = "") -> None:
    symbol = program.text_constant(text)
    em.line(f"call i32 (ptr, ...) @printf(ptr {symbol}{argument})")


def _print_part(
    program: Program,
    frame: Frame,
    em: SweepEmitter,
    value: Value,
    axes: list[str],
    at: dict[str, str],
) -> None:
    dtype = value.type.dtype
    if not axes:
        if program.looped_axes(value):
            name = read(em, pointer_at(em, program.homes[value], at), dtype)
        else:
            name = program.scalar(frame, value)
        _print_number(program, em, name, dtype)
        return
    extent = program.tile_extent(frame, axes[0])
    _print(program, em, "[")
    with nest(em, [(axes[0], extent, "1")]) as here:
        (place,) = here.values()
        comma, empty = program.text_constant(", "), program.text_constant("")
        first = em.let(f"icmp eq i64 {place}, 0")
        between = em.let(f"select i1 {first}, ptr {empty}, ptr {comma}", "between")
        em.line(f"call i32 (ptr, ...) @printf(ptr {between})")
        _print_part(program, frame, em, value, axes[1:], {**at, **here})
    _print(program, em, "]")


def _print_number(program: Program, em: SweepEmitter, name: str, dtype: torch.dtype) -> None:
    if dtype is torch.bool:
        yes, no = program.text_constant("True"), program.text_constant("False")
        word = em.let(f"select i1 {name}, ptr {yes}, ptr {no}", "word")
        em.line(f"call i32 (ptr, ...) @printf(ptr {word})")
        return
    if dtype.is_floating_point:
        digits = 17 if dtype is torch.float64 else 9
        if is_bits_only(dtype):
            name = compute.convert(em, name, dtype, torch.float32, 1)
            dtype = torch.float32
        name = compute.convert(em, name, dtype, torch.float64, 1)
        _print(program, em, f"%.{digits}g", f", double {name}")
        return
    name = compute.convert(em, name, dtype, torch.int64, 1)
    _print(program, em, "%lld" if dtype is not torch.uint64 else "%llu", f", i64 {name}")
