"""A whole kernel as Python text: helper functions, one `@triton.jit` function a phase, a launcher.

In: a kernel, a config, a machine. Out: the text of a module. `launch(*tensors, *sizes)` allocates
the workspaces and starts the phases one after another; a stream keeps their order.
"""

from __future__ import annotations

import json
from typing import Any

import sympy

from torch_helion import exc
from torch_helion.codegen.triton.control import CONTROL_ROWS
from torch_helion.codegen.triton.helpers import helper_texts
from torch_helion.codegen.triton.joins import JOIN_ROWS
from torch_helion.codegen.triton.layout import Layout, make_layout
from torch_helion.codegen.triton.machine import Machine
from torch_helion.codegen.triton.memory import MEMORY_ROWS, shared_buffers
from torch_helion.codegen.triton.roll_reductions import roll_reductions
from torch_helion.codegen.triton.sizes import SizeText
from torch_helion.codegen.triton.state import Printer
from torch_helion.codegen.triton.values import VALUE_ROWS
from torch_helion.codegen.triton.writer import Names
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel, Op
from torch_helion.ir.types import Axis, Buffer, Size, begin_symbol, block_symbol, id_symbol

ROWS = {**CONTROL_ROWS, **MEMORY_ROWS, **VALUE_ROWS, **JOIN_ROWS}

HOST = SizeText(lambda symbol: symbol.name, device=False)


def print_kernel(kernel: Kernel, config: Config, machine: Machine) -> str:
    """The text of `kernel` with the choices of `config`."""
    blocks = block_numbers(kernel, config)
    kernel = roll_reductions(kernel, config.get("reduction_loops") or ())
    layout = make_layout(kernel, blocks)
    names = Names()
    for name in (*(b.name for b in kernel.buffers), *(s.name for s in kernel.sizes)):
        if names.fresh(name) != name:
            raise exc.CodegenError(f"triton: an argument cannot have the name {name!r}")
    helpers: set[str] = set()
    functions: list[str] = []
    phases = []
    for number, loop in enumerate(kernel.phases):
        stem = kernel.name if len(kernel.phases) == 1 else f"{kernel.name}_phase{number}"
        name = names.fresh(stem)
        printer = Printer(kernel, layout, names.copy(), helpers, functions, ROWS, machine.backend)
        printer.shared = shared_buffers(loop)
        phases.append(_Phase(printer, loop, name))
    bodies = [phase.text() for phase in phases]
    launcher = _launcher(kernel, layout, config, phases)
    parts = [*helper_texts(helpers), *functions, *bodies, launcher]
    return "\n\n\n".join([_head(kernel, parts), *parts]) + "\n"


def block_numbers(kernel: Kernel, config: Config) -> dict[sympy.Symbol, int]:
    """The number of each block symbol."""
    names = kernel.block_names
    given = config.get("block_sizes") or []
    if len(given) != len(names):
        raise exc.InvalidConfig(
            why=f"block_sizes: {len(given)} entries for {len(names)} block sizes ({names})"
        )
    return {block_symbol(n): int(number) for n, number in zip(names, given, strict=True)}


def _head(kernel: Kernel, parts: list[str]) -> str:
    header = {
        "name": kernel.name,
        "tensors": [str(b.dtype).removeprefix("torch.") for b in kernel.arguments],
        "ints": len(kernel.sizes),
        "phases": len(kernel.phases),
        "format": 1,
    }
    lines = [f"# torch_helion kernel {json.dumps(header)}"]
    lines += ["import torch"] if any("torch." in part for part in parts[-1:]) else []
    lines += ["import triton", "import triton.language as tl"]
    if any("libdevice." in part for part in parts):
        lines.append("from triton.language.extra import libdevice")
    return "\n".join(lines)


class _Phase:
    """One grid loop as a function."""

    def __init__(self, printer: Printer, loop: Op, name: str) -> None:
        self.printer, self.loop, self.name = printer, loop, name
        self.axes: tuple[Axis, ...] = loop.attrs["axes"]
        self.serial = bool(loop.attrs.get("serial"))

    def text(self) -> str:
        p = self.printer
        if self.serial and self.axes:
            pid = p.names.fresh("pid")
            with p.writer.block(f"for turn in tl.range(0, {self._steps()}):"):
                p.line(f"{pid} = tl.cast(turn, tl.int64)")
                self._body(pid)
        elif self.axes:
            pid = p.names.fresh("pid")
            p.line(f"{pid} = tl.program_id(0).to(tl.int64)")
            self._body(pid)
        else:
            self._body("")
        lines = [*p.writer.text()] or ["    pass"]
        return f"@triton.jit\ndef {self.name}({', '.join(self.parameters())}):\n" + "\n".join(lines)

    def parameters(self) -> list[str]:
        p = self.printer
        lanes = [f"{name}: tl.constexpr" for name in p.lanes.values()]
        return [*self._buffers(), *self._sizes(), *lanes]

    def _buffers(self) -> list[str]:
        return [b.name for b in self.printer.kernel.buffers if b.name in self.printer.buffers]

    def _sizes(self) -> list[str]:
        return [s.name for s in self.printer.kernel.sizes if s in self.printer.sizes]

    def _tiles(self, axis: Axis) -> sympy.Expr:
        layout = self.printer.layout
        return sympy.ceiling(layout.size(axis) / layout.block(axis))

    def _steps(self) -> str:
        return self.printer.size(sympy.Mul(*(self._tiles(a) for a in self.axes)))

    def _body(self, pid: str) -> None:
        """Row-major numbers of the tiles of each axis."""
        p, rest = self.printer, pid
        slots = {}
        for place, axis in reversed(list(enumerate(self.axes))):
            number = rest
            if place:
                tiles = p.size(self._tiles(axis), factor=True)
                number, rest = f"{rest} % {tiles}", f"{rest} // {tiles}"
            if number != pid or (not place and len(self.axes) > 1):
                name = p.names.fresh(f"pid_{axis.name}")
                p.line(f"{name} = {number}")
                number = name
            slots[axis] = number
        slot = p.writer.slot()
        for axis in self.axes:
            self._open(axis, slots[axis], slot)
        p.region(self.loop.regions[0])

    def _open(self, axis: Axis, number: str, slot: Any) -> None:
        p = self.printer
        block = p.layout.block(axis)

        def begin() -> str:
            return number if block == 1 else f"{number} * {p.block_size(axis)}"

        p.open_tile(axis, slot, begin)
        p.symbols[id_symbol(axis)] = number
        if block == 1:
            p.symbols[begin_symbol(axis)] = number

    # -- the launch -----------------------------------------------------------------------------

    def launch(self, options: str) -> str:
        p = self.printer
        grid = "1"
        if self.axes and not self.serial:
            grid = HOST(sympy.Mul(*(self._tiles(a) for a in self.axes)))
        lanes = [f"{name}={_lanes(p.layout, axis)}" for axis, name in p.lanes.items()]
        arguments = ", ".join([*self._buffers(), *self._sizes(), *lanes]) + options
        return f"    {self.name}[({grid},)]({arguments})"


def _lanes(layout: Layout, name: str) -> str:
    """The number of lanes of an axis, as the launcher computes it."""
    lanes = layout.lanes[name]
    if lanes.known is not None:
        return str(lanes.known)
    texts = [f"triton.next_power_of_2({HOST(size)})" for size in lanes.sizes]
    texts = [str(lanes.static), *texts]  # also where a size is 0
    return f"max({', '.join(texts)})"


def _launcher(kernel: Kernel, layout: Layout, config: Config, phases: list[_Phase]) -> str:
    arguments = [b.name for b in kernel.arguments] + [s.name for s in kernel.sizes]
    lines = [f"def launch({', '.join(arguments)}):"]
    for buffer in kernel.buffers:
        if buffer.role == "workspace":
            lines.append(_workspace(kernel, layout, buffer))
    options = "".join(
        f", {key}={config[key]}" for key in ("num_warps", "num_stages") if key in config
    )
    lines += [phase.launch(options) for phase in phases] or ["    pass"]
    return "\n".join(lines)


def _workspace(kernel: Kernel, layout: Layout, buffer: Buffer) -> str:
    def text(sizes: tuple[Size, ...]) -> str:
        return f"({''.join(f'{HOST(layout.bound(s))}, ' for s in sizes).strip()})"

    dtype = str(buffer.dtype)
    device = f", device={kernel.arguments[0].name}.device" if kernel.arguments else ""
    made = (
        f"torch.empty_strided({text(buffer.shape)}, {text(buffer.strides)}, dtype={dtype}{device})"
    )
    return f"    {buffer.name} = {made}"
