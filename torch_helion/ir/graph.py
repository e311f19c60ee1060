"""The program: kernels, regions, operations and values. Immutable; rewriting makes new objects.

In: types and op names. Out: `Kernel`, what every stage after the builder reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from torch_helion.ir.types import Axis, Buffer, Size, TileType, block_symbol


class Value:
    """An SSA value: compared by identity; `hint` is the name a reader should see."""

    __slots__ = ("hint", "type")

    def __init__(self, type: TileType, hint: str = "v") -> None:
        self.type = type
        self.hint = hint

    def __repr__(self) -> str:
        return f"%{self.hint}: {self.type}"


@dataclass(frozen=True)
class Origin:
    """Where an operation comes from: the FX node or the user's line, quoted in errors and generated
    code.
    """

    text: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}".strip(" :0") if self.file else self.text


@dataclass(frozen=True, eq=False)
class Op:
    """One operation: kind (a row of OP_KINDS), operands, attributes, results, regions."""

    kind: str
    operands: tuple[Value, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Value, ...] = ()
    regions: tuple[Region, ...] = ()
    origin: Origin = Origin()

    @property
    def result(self) -> Value:
        (value,) = self.results
        return value

    @property
    def access(self) -> Access:
        """The operands of a load, store or atomic by their roles."""
        return _access_of(self)

    def __repr__(self) -> str:
        results = ", ".join(f"%{r.hint}" for r in self.results)
        operands = ", ".join(f"%{o.hint}" for o in self.operands)
        return f"{results} = {self.kind}({operands}) {dict(self.attrs)}"


@dataclass(frozen=True)
class Access:
    """What the operands of a load, store or atomic are."""

    values: tuple[Value, ...]
    """What is stored; for cas what is expected, then what is stored."""
    pointer: Value | None
    """Addresses that take the place of the buffer's data pointer."""
    gathered: tuple[Value, ...]
    mask: Value | None


def _access_of(op: Op) -> Access:
    count = {"load": 0, "store": 1}.get(op.kind)
    if count is None:
        count = 2 if op.attrs["fn"] == "cas" else 1
    rest = list(op.operands[count:])
    mask = rest.pop() if op.attrs["masked"] else None
    pointer = rest.pop(0) if op.attrs.get("stacked") else None
    return Access(op.operands[:count], pointer, tuple(rest), mask)


@dataclass(frozen=True, eq=False)
class Region:
    """A straight line of operations; `args` are the values that the owner binds on entry."""

    args: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()

    @property
    def yielded(self) -> tuple[Value, ...]:
        """The operands of the yield at its end; none without one."""
        last = self.ops[-1] if self.ops else None
        return last.operands if last is not None and last.kind == "yield" else ()

    def walk(self) -> Iterator[Op]:
        """Every operation, outer before inner, in program order."""
        for op in self.ops:
            yield op
            for region in op.regions:
                yield from region.walk()


@dataclass(frozen=True, eq=False)
class Kernel:
    """A whole kernel: arguments (buffers in call order, then size symbols in call order) and
    phases.

    `body.ops` are grid loops with `barrier`s between them. `blocks` names the tunable block symbols
    (without "block_") in the order of a config; () means the loops' axes, in program order.
    """

    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[sympy.Symbol, ...]
    body: Region
    blocks: tuple[str, ...] = ()

    def buffer(self, name: str) -> Buffer:
        for b in self.buffers:
            if b.name == name:
                return b
        raise KeyError(name)

    @property
    def arguments(self) -> tuple[Buffer, ...]:
        """The buffers that a caller passes (workspaces are the launcher's)."""
        return tuple(b for b in self.buffers if b.role != "workspace")

    @property
    def phases(self) -> tuple[Op, ...]:
        return tuple(op for op in self.body.ops if op.kind == "loop")

    @property
    def block_names(self) -> tuple[str, ...]:
        """The tunable block symbols (without "block_"), one for each entry of a config."""
        if self.blocks:
            return self.blocks
        loops = (op for op in self.body.walk() if op.kind == "loop" and not op.attrs.get("blocks"))
        return tuple(dict.fromkeys(a.name for op in loops for a in op.attrs["axes"]))

    def axes(self) -> dict[str, Axis]:
        """Every axis that occurs in the kernel, by name."""
        found: dict[str, Axis] = {}
        for op in self.body.walk():
            for axis in op.attrs["axes"] if op.kind == "loop" else ():
                found.setdefault(axis.name, axis)
            args = (v for region in op.regions for v in region.args)
            for value in (*op.results, *args):
                for axis in value.type.axes:
                    found.setdefault(axis.name, axis)
        return found


def loop_blocks(loop: Op) -> tuple[Size, ...]:
    """The block size of each axis of a loop: its own, or the symbol that a config binds."""
    axes: tuple[Axis, ...] = loop.attrs["axes"]
    return loop.attrs.get("blocks") or tuple(block_symbol(a.name) for a in axes)
