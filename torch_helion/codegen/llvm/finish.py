"""What follows a product, computed on parts of it while they are in the nearest cache.

In: a dot that a sweep of stores follows, at the end of a grid step. Out: a function of the module
that does the sweep for some rows and columns of the step's tile, and the environment that the
product hands to it after each row of register tiles. Without it the accumulators of a whole tile go
to the second cache and come back.

The function is printed as the phase is: a `Program` over the same operations whose tile is the part
that it is called for. It reads sizes and pointers from the kernel's arguments again; only where the
part lies, its accumulators and scratch memory are handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_helion.codegen.llvm.arrays import Array
from torch_helion.codegen.llvm.dot import Finish
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.regions import RegionPlan, Structured, Sweep
from torch_helion.codegen.llvm.text import Names
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Affine

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.program import Program

_PARAMETERS = "ptr %environment, i64 %row, i64 %rows, i64 %column, i64 %columns"
_NAMES = (
    "environment row rows column columns args begin end scratch workspace status nowhere static"
)
_ARGUMENTS, _WORKSPACE, _STATUS, _SCRATCH, _BEGIN_ROW, _BEGIN_COLUMN, _ARRAYS = range(7)


def sweep_of(program: Program, plan: RegionPlan, results: Sequence[Value]) -> int | None:
    """The number of a plan's last item if the product before it can do it part by part."""
    if program.depth or results or len(plan.items) < 2 or program.settings.function is None:
        return None
    product, sweep = plan.items[-2:]
    if not isinstance(product, Structured) or product.op.kind != "dot":
        return None
    if not isinstance(sweep, Sweep) or any(s.kind != "store" for s in sweep.sinks):
        return None
    value, last = product.op.result, len(plan.items) - 1
    if len(product.op.operands) > 2 or plan.reads.get(value) != {last}:
        return None
    axes = set(program.looped_axes(value))
    if len(axes) != 2 or sweep.axes != axes or any(n not in program.blocks for n in axes):
        return None
    if any(_is_placed(program, op) for op in _computed(program, sweep)):
        return None
    return last


def _computed(program: Program, sweep: Sweep) -> list[Op]:
    """The operations that the sweep does itself."""
    found: dict[Op, None] = {}
    work = list(sweep.sinks)
    while work:
        op = work.pop()
        if op in found or op.kind in ("home", "dot"):
            continue
        found[op] = None
        work += [program.producer[v] for v in op.operands]
    return list(found)


def _is_placed(program: Program, op: Op) -> bool:
    """Whether an operation needs to know more of its step than where it is."""
    if op.kind in ("reduce", "scan", "take", "print", "loop", "if", "while", "bind", "sort"):
        return True
    known = set(program.settings.kernel.sizes)
    for index in op.attrs.get("index", ()):
        if isinstance(index, Affine):
            sizes = [index.offset, *(c for _, c in index.terms)]
            if any(n not in program.axes for n in index.axis_names):
                return True
            if any(not isinstance(s, int) and s.free_symbols - known for s in sizes):
                return True
    size = op.attrs.get("expr", op.attrs.get("size", 0))
    return bool(getattr(size, "free_symbols", set()) - known)


def finish(
    program: Program, frame: Frame, sweep: Sweep, value: Value, out: Array, axes: tuple[str, str]
) -> Finish | None:
    """Print the function for a product's result; None where it cannot be."""
    read = {v for op in _computed(program, sweep) for v in op.operands}
    homes = {v: a for v, a in program.homes.items() if v in read}
    homes[value] = out
    if any(program.producer[v].kind == "home" and v not in homes for v in read):
        return None  # it is in a register of the phase's function
    if not all(_is_static(a, axes) for a in homes.values()):
        return None
    names = Names(dict.fromkeys(_NAMES.split(), 1))
    root = Frame.root(names, {})
    known, pointers = program.settings.function(names, root.sizes)  # type: ignore[misc]
    root.sizes.known.update(known)
    part = type(program)(program.settings, program.phase, names, root)
    part.pointers, part.streaming, part.depth = pointers, program.streaming, program.depth
    slots = _Environment(root)
    _enter(part, root, axes, slots)
    for number, (home, array) in enumerate(homes.items()):
        moved = _moved(root, array, axes, slots.load("ptr", _ARRAYS + number))
        part.settle(home, moved, None, root)
    part.sweep(root, sweep)
    if part.space.dynamic:
        return None
    symbol = _function(program, part, root, names)
    program.plans += part.plans
    frame.cost = frame.cost + root.cost
    scratch = program.static(frame, part.space.peak, "finish")
    words = [
        ("ptr", "%args"), ("ptr", "%workspace"), ("ptr", "%status"), ("ptr", scratch),
        *(("i64", frame.begin[n]) for n in axes),
        *(("ptr", a.pointer) for a in homes.values()),
    ]  # fmt: skip
    return Finish(symbol, _handed_on(program, frame, words))


def _is_static(array: Array, axes: tuple[str, str]) -> bool:
    return all(n in axes and s.isdigit() for n, s in array.strides)


class _Environment:
    """What is handed to the function, as it reads it."""

    def __init__(self, root: Frame) -> None:
        self.root = root

    def load(self, type: str, slot: int, hint: str = "given") -> str:
        place = self.root.let(f"getelementptr i8, ptr %environment, i64 {8 * slot}", "slot")
        return self.root.let(f"load {type}, ptr {place}, align 8", hint)


def _enter(part: Program, root: Frame, axes: tuple[str, str], slots: _Environment) -> None:
    """The tile of each axis is the part that the function is called for."""
    given = (("%row", "%rows", _BEGIN_ROW), ("%column", "%columns", _BEGIN_COLUMN))
    for name, (first, count, slot) in zip(axes, given, strict=True):
        begin = root.let(f"add nsw i64 {slots.load('i64', slot)}, {first}", f"first_{name}")
        end = root.let(f"add nsw i64 {begin}, {count}", f"end_{name}")
        part.enter_axis(root, name, begin, "poison")
        for axis in part.axes.values():
            if axis.tile_name == name:
                root.scope.memo["hi", axis.name] = end
                root.scope.memo["extent", axis.name] = count


def _moved(root: Frame, array: Array, axes: tuple[str, str], pointer: str) -> Array:
    """An array of the whole tile as one of the part."""
    for name, first in zip(axes, ("%row", "%column"), strict=True):
        stride = array.stride(name)
        if stride is not None:
            bytes = int(stride) * array.dtype.itemsize
            off = root.let(f"mul nsw i64 {first}, {bytes}", "off")
            pointer = root.let(f"getelementptr i8, ptr {pointer}, i64 {off}", "part")
    return Array(pointer, array.dtype, array.strides, array.length)


def _function(program: Program, part: Program, root: Frame, names: Names) -> str:
    texts = program.settings.globals
    symbol = f"@finish{len(texts)}"
    head = []
    for name, slot in (("args", _ARGUMENTS), ("workspace", _WORKSPACE), ("status", _STATUS),
                       ("static", _SCRATCH)):  # fmt: skip
        head.append(f"  %{name}_slot = getelementptr i8, ptr %environment, i64 {8 * slot}")
        head.append(f"  %{name} = load ptr, ptr %{name}_slot, align 8")
    lines = [
        f"define internal void {symbol}({_PARAMETERS}) noinline nounwind {{",
        "entry:",
        "  %nowhere = alloca [64 x i8], align 64",
        *head,
        *part.slots,
        *root.code,
        "  ret void",
        "}",
        "",
    ]
    texts[symbol] = "\n".join(lines)
    return symbol


def _handed_on(program: Program, frame: Frame, words: Sequence[tuple[str, str]]) -> str:
    environment = program.names.fresh("environment")
    program.slots.append(f"  {environment} = alloca [{len(words)} x i64], align 64")
    for number, (type, word) in enumerate(words):
        place = frame.let(f"getelementptr i8, ptr {environment}, i64 {8 * number}", "slot")
        frame.line(f"store {type} {word}, ptr {place}, align 8")
    return environment
