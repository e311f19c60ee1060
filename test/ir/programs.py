"""Running small programs in tests: inputs by name, outputs made to measure.

def body(p: Program) -> None:
    p.out("y", p.b.scan("sum", p.load("x", m, n), n), m, n)

y = run_program(body, {"x": x}, blocks=2)["y"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, Axis, Buffer, IndexExpr, Size, contiguous_strides
from torch_helion.ir.verifier import verify


class Program:
    """A builder with the tensors of one call. Axes are made on first sight, of constant size."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.b = Builder("program")
        self.tensors = dict(tensors)
        self.buffers: dict[str, Buffer] = {}
        self.results: dict[str, torch.Tensor] = {}

    def axis(self, name: str, size: Size, kind: str = "block") -> Axis:
        return self.b.axis_named(name) or self.b.axis(name, size, kind)

    def buffer(self, name: str, role: str = "in") -> Buffer:
        if name not in self.buffers:
            x = self.tensors[name]
            shape = tuple(x.shape)
            buffer = self.b.buffer(name, x.dtype, shape, contiguous_strides(shape), role)  # type: ignore
            self.buffers[name] = buffer
        return self.buffers[name]

    def load(self, name: str, *index: Axis | Size | IndexExpr, **options: Any) -> Value:
        return self.b.load(self.buffer(name), place(index), **options)

    def out(self, name: str, value: Value, *index: Axis | Size | IndexExpr, **options: Any) -> None:
        """Store to an output whose shape the axes of the index give (or the options `shape`)."""
        if name not in self.buffers:
            shape = options.pop("shape", None) or [_extent(e) for e in index]
            self.results[name] = torch.full(shape, 77).to(value.type.dtype)
            self.tensors[name] = self.results[name]
        options.pop("shape", None)
        axes = [e for e in index if isinstance(e, Axis)]
        self.b.store(self.buffer(name, "out"), place(index), self.b.expand(value, axes), **options)

    def const(self, number: float | int | bool, dtype: torch.dtype = torch.float32) -> Value:
        return self.b.const(number, dtype)

    def op(self, fn: str, *operands: Value) -> Value:
        return self.b.pointwise(fn, *operands)


def place(index: Sequence[Axis | Size | IndexExpr]) -> list[IndexExpr]:
    """An axis, a size expression, or an index expression for each dimension."""
    found: list[IndexExpr] = []
    for item in index:
        if isinstance(item, Axis):
            found.append(Affine.of(item))
        elif isinstance(item, Affine) or hasattr(item, "operand"):
            found.append(item)  # type: ignore[arg-type]
        else:
            found.append(Affine((), item))  # type: ignore[arg-type]
    return found


def _extent(item: Any) -> int:
    if not isinstance(item, Axis):
        raise ValueError(f"an output indexed by {item} needs shape=")
    return int(item.size)


def program(
    body: Callable[[Program], None], tensors: Mapping[str, torch.Tensor]
) -> tuple[Kernel, Program]:
    p = Program(tensors)
    body(p)
    kernel = p.b.build()
    verify(kernel)
    return kernel, p


def run_program(
    body: Callable[[Program], None],
    tensors: Mapping[str, torch.Tensor],
    blocks: Any = None,
    precise: Any = False,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, torch.Tensor]:
    """What the program leaves in its outputs (and in copies of the tensors that it changes)."""
    copies = {name: x.clone() for name, x in tensors.items()}
    kernel, p = program(body, copies)
    arguments = [p.tensors[b.name] for b in kernel.arguments]
    run(kernel, arguments, sizes or {}, blocks, precise)
    changed = {b.name: p.tensors[b.name] for b in kernel.buffers if b.role == "inout"}
    return {**p.results, **changed}
