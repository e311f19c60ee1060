"""The program: kernels, regions, operations and values. Immutable; rewriting makes new objects.

In: types and op names. Out: `Kernel`, what every stage after the builder reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy

from torch_helion.ir.types import Axis, Buffer, TileType


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

    def __repr__(self) -> str:
        results = ", ".join(f"%{r.hint}" for r in self.results)
        operands = ", ".join(f"%{o.hint}" for o in self.operands)
        return f"{results} = {self.kind}({operands}) {dict(self.attrs)}"


@dataclass(frozen=True, eq=False)
class Region:
    """A straight line of operations; `args` are the values that the owner binds on entry."""

    args: tuple[Value, ...] = ()
    ops: tuple[Op, ...] = ()

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

    `body.ops` are grid loops with `barrier`s between them. `specialised` names sizes that were
    constants when the kernel was made (they appear as ints inside, and are not arguments).
    """

    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[sympy.Symbol, ...]
    body: Region

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

    def axes(self) -> dict[str, Axis]:
        """Every axis that occurs in the kernel, by name."""
        found: dict[str, Axis] = {}
        for op in self.body.walk():
            for axis in op.attrs.get("axes", ()) if op.kind == "loop" else ():
                found.setdefault(axis.name, axis)
            for value in op.results:
                for axis in value.type.axes:
                    found.setdefault(axis.name, axis)
        return found
