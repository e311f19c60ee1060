"""A whole kernel as the text of one LLVM module.

In: a tile-IR kernel, its config, a machine. Out: text whose first line is the header that the
loader reads (format in runtime/launcher.py), with one function a phase and one `plan` function: the
launcher asks it how many grid steps each phase has, what a step costs, and how much scratch and
workspace they need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.codegen.llvm.dot import DotLibrary
from torch_helion.codegen.llvm.emit import PhaseEmitter
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.frames import Frame
from torch_helion.codegen.llvm.legalize import legalize
from torch_helion.codegen.llvm.memory import linear_terms
from torch_helion.codegen.llvm.program import Settings
from torch_helion.codegen.llvm.schedule import (
    PICOSECONDS_PER_OPERATION,
    PICOSECONDS_PER_STEP,
    Loop,
    Node,
    PhasePlan,
    Sink,
    is_plain,
    plan_phase,
)
from torch_helion.codegen.llvm.steps import StructuredPhase, names_of_phase, print_structured
from torch_helion.codegen.llvm.text import Names, SizeEmitter
from torch_helion.codegen.llvm.vector_math import MathLibrary
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel, Op
from torch_helion.ir.types import Size, block_symbol

FORMAT = 1


@dataclass(frozen=True)
class Choices:
    """A config read for one kernel: block sizes by axis, and how the vector loop is made."""

    blocks: Mapping[str, int]
    width: int
    unroll: int
    streaming: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Everything in the config."""


def grid_axes(kernel: Kernel) -> list[str]:
    """The tunable tile dimensions in program order: what `block_sizes` has one entry for."""
    return list(kernel.block_names)


def read_config(kernel: Kernel, config: Config, machine: Machine) -> Choices:
    axes = grid_axes(kernel)
    sizes = config.get("block_sizes", ())
    if len(sizes) != len(axes):
        raise exc.CodegenError(f"{kernel.name}: {len(sizes)} block sizes for the axes {axes}")
    width = max(4, machine.vector_bits // 32)
    return Choices(
        dict(zip(axes, sizes, strict=True)),
        width,
        config.get("unroll", 4),
        frozenset(config.get("streaming_stores", ())),
        dict(config),
    )


def print_kernel(kernel: Kernel, config: Config, machine: Machine) -> str:
    """The module's text."""
    choices = read_config(kernel, config, machine)
    math = MathLibrary(choices.width, machine)
    declares: set[str] = set()
    dots = DotLibrary(machine)
    shared = Settings(
        kernel, choices.blocks, choices.width, choices.unroll, math, dots, machine, declares, {},
        choices.options, lambda names, sizes: _arguments(kernel, choices, names, sizes),
    )  # fmt: skip
    functions: list[str] = []
    measures: list[PhasePlan | StructuredPhase] = []
    for number, phase in enumerate(kernel.phases):
        if not is_plain(kernel, phase):
            lines, measure = _structured(shared, choices, phase, f"{kernel.name}_phase{number}")
            functions += lines
            measures.append(measure)
            continue
        plan = plan_phase(phase, {b.name: b for b in kernel.buffers}, choices.blocks)
        distances = {b: _stream_distances(kernel, plan, b) for b in choices.streaming}
        streaming = frozenset(b for b, found in distances.items() if found is not None)
        name = f"{kernel.name}_phase{number}"
        if streaming:
            functions += _phase(
                kernel, plan, choices, math, machine, f"{name}_stream", streaming, declares
            )
            functions += _phase(
                kernel, plan, choices, math, machine, f"{name}_plain", frozenset(), declares
            )
            checked = [d for found in distances.values() for d in found or ()]
            functions += _dispatch(kernel, choices, name, streaming, checked)
        else:
            functions += _phase(kernel, plan, choices, math, machine, name, frozenset(), declares)
        measures.append(plan)
    plan_function = _plan_function(kernel, measures, choices, math, machine, declares)
    parts = [
        *_header(kernel),
        *functions,
        *plan_function,
        *shared.globals.values(),
        *dots.declarations(),
        *math.definitions(),
        *sorted(declares),
        "!0 = !{i32 1}",
    ]
    return "\n".join([*_unique_declares(parts), *dots.parts()]) + "\n"


def _structured(
    shared: Settings, choices: Choices, phase: Op, name: str
) -> tuple[list[str], StructuredPhase]:
    """A phase with structure inside, as a function (two, where stores may go past the caches)."""
    kernel = shared.kernel
    number = kernel.phases.index(phase)
    phase = legalize(phase, {b.name: b for b in kernel.buffers}, choices.blocks)
    plain, measure = _structured_lines(shared, choices, phase, number, frozenset())
    streaming = measure.streamable(choices.streaming)
    if not streaming:
        return _function(name, measure.text(), plain, streaming), measure
    comment = measure.text()
    lines, measure = _structured_lines(shared, choices, phase, number, streaming)
    return [
        *_function(f"{name}_stream", measure.text(), lines, streaming),
        *_function(f"{name}_plain", comment, plain, frozenset()),
        *_dispatch(kernel, choices, name, streaming, ()),
    ], measure


def _structured_lines(
    shared: Settings, choices: Choices, phase: Op, number: int, streaming: frozenset[str]
) -> tuple[list[str], StructuredPhase]:
    """The body of the function of phase `number`."""
    kernel = shared.kernel
    names = names_of_phase()
    root = Frame.root(names, {})
    root.sizes.known.update(_symbols(kernel, choices, names, root.code))
    pointers = _pointers(kernel, root.sizes, names)
    several = [n for n, p in enumerate(kernel.phases) if len(p.attrs["axes"]) > 1]
    place = several.index(number) if number in several else -1
    orders, groups = (choices.options.get(k, ()) for k in ("loop_orders", "l2_groupings"))
    order = orders[place] if 0 <= place < len(orders) else None
    grouping = groups[place] if 0 <= place < len(groups) else 1
    return print_structured(shared, phase, order, grouping, root, pointers, streaming)


def _function(
    name: str, comment: Iterable[str], lines: Iterable[str], streaming: frozenset[str]
) -> list[str]:
    """A phase's function around the lines of its body, which begin with its stack slots."""
    internal = "internal " if name.endswith(("_stream", "_plain")) else ""
    return [
        *(f"; {line}" for line in comment),
        f"define {internal}i64 @{name}(ptr noalias %args, i64 %begin, i64 %end, "
        "ptr noalias %scratch, ptr %workspace) nounwind {",
        "entry:",
        "  %nowhere = alloca [64 x i8], align 64",
        "  %status = alloca i64, align 8",
        *lines,
        *(["  fence seq_cst"] if streaming else []),
        "  %result = load i64, ptr %status",
        "  ret i64 %result",
        "}",
        "",
    ]


def _unique_declares(lines: Iterable[str]) -> list[str]:
    """One declaration per symbol (the math library declares what it calls, too)."""
    seen: set[str] = set()
    out = []
    for block in lines:
        kept = []
        for line in block.split("\n"):
            if line.startswith("declare "):
                symbol = line[line.index("@") : line.index("(", line.index("@"))]
                if symbol in seen:
                    continue
                seen.add(symbol)
            kept.append(line)
        out.append("\n".join(kept))
    return out


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _header(kernel: Kernel) -> list[str]:
    arguments = kernel.arguments
    fields = {
        "name": kernel.name,
        "tensors": [_name(b.dtype) for b in arguments],
        "ints": len(kernel.sizes),
        "phases": len(kernel.phases),
        "format": FORMAT,
    }
    signature = [
        f";   {b.name}: {_name(b.dtype)}[{', '.join(map(str, b.shape))}] {b.role}"
        for b in kernel.buffers
    ]
    sizes = f";   sizes: {', '.join(map(str, kernel.sizes)) or 'none'}"
    return [f"; torch_helion kernel {json.dumps(fields)}", *signature, sizes, ""]


def _symbols(
    kernel: Kernel, choices: Choices, names: Names, code: list[str]
) -> dict[sympy.Symbol, str]:
    """Size arguments loaded from `%args`, block symbols as the config's numbers."""
    known: dict[sympy.Symbol, str] = {block_symbol(a): str(b) for a, b in choices.blocks.items()}
    first = len(kernel.arguments)
    for number, symbol in enumerate(kernel.sizes):
        slot, value = names.fresh(f"{symbol}_slot"), names.fresh(str(symbol))
        code.append(f"  {slot} = getelementptr i64, ptr %args, i64 {first + number}")
        code.append(f"  {value} = load i64, ptr {slot}, !invariant.load !1")
        known[symbol] = value
    return known


def _arguments(
    kernel: Kernel, choices: Choices, names: Names, sizes: SizeEmitter
) -> tuple[dict[sympy.Symbol, str], dict[str, str]]:
    """Sizes and pointers of a function that has `%args` and `%workspace`."""
    known = _symbols(kernel, choices, names, sizes.code)
    sizes.known.update(known)
    return known, _pointers(kernel, sizes, names)


def _pointers(kernel: Kernel, sizes: SizeEmitter, names: Names) -> dict[str, str]:
    """Data pointers of the arguments, and of the workspaces inside `%workspace`."""
    pointers: dict[str, str] = {}
    for number, buffer in enumerate(kernel.arguments):
        slot, value = names.fresh(f"{buffer.name}_slot"), names.fresh(buffer.name)
        sizes.code.append(f"  {slot} = getelementptr ptr, ptr %args, i64 {number}")
        sizes.code.append(f"  {value} = load ptr, ptr {slot}, !invariant.load !1")
        pointers[buffer.name] = value
    offset = "0"
    for buffer in kernel.buffers:
        if buffer.role == "workspace":
            value = names.fresh(buffer.name)
            sizes.code.append(f"  {value} = getelementptr i8, ptr %workspace, i64 {offset}")
            pointers[buffer.name] = value
            offset = sizes.add(offset, _bytes(sizes, buffer.shape, buffer.dtype.itemsize))
    return pointers


def _bytes(sizes: SizeEmitter, shape: Iterable[Size], itemsize: int) -> str:
    total = str(itemsize)
    for extent in shape:
        total = sizes.mul(total, sizes(extent))
    return sizes.round_up(total, 64)


def _phase(
    kernel: Kernel,
    plan: PhasePlan,
    choices: Choices,
    math: MathLibrary,
    machine: Machine,
    name: str,
    streaming: frozenset[str],
    declares: set[str],
) -> list[str]:
    em = _emitter(kernel, plan, choices, math, machine, streaming)
    em.run()
    declares |= em.declares
    lines = [*em.slots, "  store i64 0, ptr %status", *em.scopes[0].code]
    return _function(name, str(plan).split("\n"), lines, streaming)


def _emitter(
    kernel: Kernel,
    plan: PhasePlan,
    choices: Choices,
    math: MathLibrary,
    machine: Machine,
    streaming: frozenset[str],
) -> PhaseEmitter:
    names = Names(
        {
            n: 1
            for n in ("args", "begin", "end", "scratch", "workspace", "status", "nowhere", "result")
        }
    )
    code: list[str] = []
    sizes = SizeEmitter(names, code, _symbols(kernel, choices, names, code))
    pointers = _pointers(kernel, sizes, names)
    return PhaseEmitter(
        plan,
        {b.name: b for b in kernel.buffers},
        pointers,
        sizes,
        names,
        math,
        machine,
        choices.width,
        choices.unroll,
        streaming,
    )


# -- streaming ------------------------------------------------------------------------------------


def _stream_distances(kernel: Kernel, plan: PhasePlan, name: str) -> list[Size] | None:
    """Distances in bytes that must be multiples of a vector, as its base must be, for every vector
    store to the buffer to be aligned: those that sizes do not show to be. None: one is not.
    """
    buffer = kernel.buffer(name)
    stores = [s for s in plan.weight if s.kind == "store" and s.attrs["buffer"] == name]
    distances: list[Size] = []
    for op in stores:
        terms, constant = linear_terms(buffer, op.attrs["index"])
        if op.attrs["masked"] or terms.pop(plan.vector or "", 0) != 1:
            return None
        for step in (*terms.values(), constant):
            distance = sympy.sympify(step) * buffer.dtype.itemsize
            rest = distance % 64
            if rest.is_number and rest != 0:
                return None
            if rest != 0 and distance not in distances:
                distances.append(distance)
    return distances if stores else None


def _dispatch(
    kernel: Kernel,
    choices: Choices,
    name: str,
    streaming: frozenset[str],
    distances: Iterable[Size],
) -> list[str]:
    """Streaming stores fault on unaligned addresses: choose by the base pointers and distances."""
    names = Names({n: 1 for n in ("args", "begin", "end", "scratch", "workspace", "low")})
    lines: list[str] = []
    sizes = SizeEmitter(names, lines, _symbols(kernel, choices, names, lines))
    total = "0"
    for number, buffer in enumerate(kernel.arguments):
        if buffer.name in streaming:
            lines += [
                f"  %s{number} = getelementptr i64, ptr %args, i64 {number}",
                f"  %p{number} = load i64, ptr %s{number}",
                f"  %o{number} = or i64 {total}, %p{number}",
            ]
            total = f"%o{number}"
    for distance in distances:
        total = sizes.op(f"or i64 {total}, {sizes(distance)}", "low")
    arguments = "ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %workspace"
    return [
        f"define i64 @{name}({arguments}) nounwind {{",
        *lines,
        f"  %low = and i64 {total}, 63",
        "  %aligned = icmp eq i64 %low, 0",
        "  br i1 %aligned, label %stream, label %plain",
        "stream:",
        f"  %a = call i64 @{name}_stream({arguments})",
        "  ret i64 %a",
        "plain:",
        f"  %b = call i64 @{name}_plain({arguments})",
        "  ret i64 %b",
        "}",
        "",
    ]


# -- the plan function ----------------------------------------------------------------------------


def _plan_function(
    kernel: Kernel,
    plans: list[PhasePlan | StructuredPhase],
    choices: Choices,
    math: MathLibrary,
    machine: Machine,
    declares: set[str],
) -> list[str]:
    names = Names({"args": 1, "out": 1})
    code: list[str] = []
    sizes = SizeEmitter(names, code, _symbols(kernel, choices, names, code))
    workspace = "0"
    for buffer in kernel.buffers:
        if buffer.role == "workspace":
            workspace = sizes.add(workspace, _bytes(sizes, buffer.shape, buffer.dtype.itemsize))
    numbers = [workspace]
    for plan in plans:
        if isinstance(plan, StructuredPhase):
            numbers += [plan.steps(sizes), plan.step_cost(sizes), plan.scratch(sizes)]
            continue
        steps = "1"
        for axis in plan.grid:
            steps = sizes.mul(steps, sizes.ceil_div(axis.size, plan.blocks[axis.name]))
        numbers += [
            steps,
            _step_cost(plan, sizes, choices.width),
            _scratch(kernel, plan, choices, sizes, math, machine),
        ]
    for number, value in enumerate(numbers):
        slot = names.fresh("slot")
        code += [
            f"  {slot} = getelementptr i64, ptr %out, i64 {number}",
            f"  store i64 {value}, ptr {slot}",
        ]
    declares.update(
        f"declare i64 @llvm.s{m}.i64(i64, i64)"
        for m in ("min", "max")
        if f"llvm.s{m}.i64" in "".join(code)
    )
    return [
        f"define void @{kernel.name}_plan(ptr noalias %args, ptr noalias %out) nounwind {{",
        "entry:",
        *code,
        "  ret void",
        "}",
        "",
        "!1 = !{}",
    ]


def _scratch(
    kernel: Kernel,
    plan: PhasePlan,
    choices: Choices,
    sizes: SizeEmitter,
    math: MathLibrary,
    machine: Machine,
) -> str:
    em = PhaseEmitter(
        plan,
        {},
        {},
        SizeEmitter(sizes.names, [], sizes.known),
        sizes.names,
        math,
        machine,
        choices.width,
        choices.unroll,
        frozenset(),
    )
    total = em.layout.place()
    sizes.code += [
        line for line in em.sizes.code if " = getelementptr i8, ptr %scratch" not in line
    ]
    return total


def _step_cost(plan: PhasePlan, sizes: SizeEmitter, width: int) -> str:
    def cost(nodes: list[Node]) -> str:
        total = "0"
        for node in nodes:
            if isinstance(node, Sink):
                total = sizes.add(total, str(PICOSECONDS_PER_OPERATION * plan.weight[node.op]))
            else:
                total = sizes.add(total, _loop_cost(node))
        return total

    def _loop_cost(loop: Loop) -> str:
        trips = sizes(loop.axis.extent)
        if loop.axis.name == plan.vector:
            trips = sizes.ceil_div(loop.axis.extent, width)
        return sizes.mul(trips, cost(loop.body))

    return sizes.add(str(PICOSECONDS_PER_STEP), cost(plan.nodes))
