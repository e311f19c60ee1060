"""Products of two tiles, C[m, n] (+)= A[m, k] · B[k, n]: calls of functions that kernels share.

In: where the operands and the accumulator lie (pointers, strides), the largest and the valid
extents. Out: a call in the phase being printed; the called function is declared by a `DotLibrary`
and is a part of the text (`engine.part_text`), compiled once for all kernels that call it.
`dot_tile.py` prints register tiles, `dot_pack.py` packing, `dot_driver.py` the loops around them,
`dot_few.py` the forms for one or few rows. Used by the emitters of this folder and by
`defaults.py`.

How an emitter uses it
----------------------
Once a module: ``dots = DotLibrary(machine)``; after all phases are printed, the module has
``*dots.declarations()`` among its lines and ends in ``*dots.parts()``. Intrinsics need no
declarations.

Once a product: a ``DotSpec`` (what is known at compile time), then

    emit_dot(em, dots, spec, a, b, acc, extents=(m, n, k), zero="false", scratch="%p",
             batch=(), finish=None)

* ``em`` needs ``let(text, hint)``, ``line(text)``, ``slot(type, hint)`` and ``loop(...)`` of
  `PhaseEmitter`.
* ``a`` and ``b`` are `Operand`s: pointer to the tile's first element, and two strides in elements
  as i64 operand texts. Direct views of buffers and arrays in scratch look the same. A stride known
  to be one is the text ``"1"``, and `DotSpec` must say so (`DotSpec.of` does).
* ``acc`` is a `Accumulator`: pointer to element [0, 0] and a row stride in elements (columns lie
  side by side). Rows and columns at and after the valid extents are neither read nor written, so it
  may also be an output buffer of the accumulator's dtype. It must not overlap the operands.
* ``extents`` are the valid m, n, k as i64 operand texts (numbers allowed); at most the spec's. Zero
  is allowed for each. Nothing outside of [0, m) x [0, k) of A and [0, k) x [0, n) of B is read.
* ``zero``: an i1 operand text; true: start at zero instead of at what ``acc`` holds (``"true"`` on
  a first or only block of k, a comparison inside a loop over k).
* ``scratch``: pointer to `scratch_bytes(spec, machine)` bytes, 64-aligned, free to use during the
  call; different products of one phase may share it.
* ``batch``: loops around the product: `Batch(extent, a, b, acc)`, strides in elements (``"0"`` for
  an operand that lacks the axis).
* ``finish``: a function of the module that is called for complete rows of C
  in this call, to convert and store them while they are near: pass it in the last call of a loop
  over k. Where all of k is in one call, `strip_rows` may allow C to be one row tile, in L1.

Any tile size is fine: the function blocks k, n and m itself for the caches, so a product over all
of k in one call is as good as a loop over blocks of k. For the grid's own blocks see
`default_blocks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from torch_helion.codegen.llvm.dot_blocks import default_blocks
from torch_helion.codegen.llvm.dot_driver import DOT_PARAMETERS, Driver
from torch_helion.codegen.llvm.dot_nibbles import NibblesText
from torch_helion.codegen.llvm.dot_nibbles import fits as nibbles_fit
from torch_helion.codegen.llvm.dot_plan import DotPlan, DotSpec, plan
from torch_helion.codegen.llvm.dot_quantized import (
    PARAMETERS,
    QuantizedSpec,
    QuantizedText,
    lanes_of,
)
from torch_helion.codegen.llvm.engine import Machine, part_text
from torch_helion.codegen.llvm.vector_math import MathLibrary

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

__all__ = [
    "Accumulator",
    "Batch",
    "DotLibrary",
    "DotSpec",
    "Finish",
    "Operand",
    "default_blocks",
    "emit_dot",
    "scratch_bytes",
    "strip_rows",
]


@dataclass(frozen=True)
class Operand:
    """A tile of A (outer axis m) or of B (outer axis n): where it lies, strides in elements."""

    pointer: str
    outer: str
    k: str


@dataclass(frozen=True)
class Accumulator:
    """C: pointer to element [0, 0], row distance in elements; columns lie side by side."""

    pointer: str
    row: str


@dataclass(frozen=True)
class Batch:
    """A loop around the product: its extent and what one step adds, in elements."""

    extent: str
    a: str
    b: str
    acc: str


@dataclass(frozen=True)
class Finish:
    """What is called for each part of C that is complete, while it is in the nearest cache.

    ``function``: operand text of a ``void (ptr environment, i64 row, i64 rows, i64 column, i64
    columns)``; ``environment``: its first argument. ``strip`` (only where `strip_rows` is not 0): C
    has that many rows only, and each part of it begins in C's first row again.
    """

    function: str
    environment: str
    strip: bool = False


class DotLibrary:
    """The products of one module: gives symbols, remembers them, declares them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._parts: dict[str, tuple[str, str]] = {}
        """Declaration and text, by symbol."""

    def use(self, spec: DotSpec | QuantizedSpec) -> str:
        """The symbol of a product's function."""
        if isinstance(spec, QuantizedSpec):
            symbol, part = _quantized_part(spec, self.machine)
        else:
            symbol, part = _part(plan(spec, self.machine), self.machine)
        parameters = PARAMETERS if isinstance(spec, QuantizedSpec) else DOT_PARAMETERS
        types = ", ".join(t.split()[0] for t, _ in parameters)
        self._parts[symbol] = f"declare void {symbol}({types})", part
        return symbol

    def declarations(self) -> list[str]:
        """Lines for the module."""
        return [declaration for declaration, _ in self._parts.values()]

    def parts(self) -> list[str]:
        """The texts that define what is used, to stand after the module's."""
        return [part for _, part in self._parts.values()]


_NAME = "@th_dot"


@lru_cache(maxsize=256)
def _part(plan: DotPlan, machine: Machine) -> tuple[str, str]:
    """A product's function, named after all its text, and that text."""
    math = MathLibrary(plan.how.lanes, machine)
    return _named([*Driver(plan, _NAME, math).texts(), *math.definitions()])


@lru_cache(maxsize=256)
def _quantized_part(spec: QuantizedSpec, machine: Machine) -> tuple[str, str]:
    """The same for a quantised weight."""
    math = MathLibrary(lanes_of(machine), machine)
    writer = NibblesText if nibbles_fit(spec, machine) else QuantizedText
    texts = writer(spec, _NAME, machine, math).texts()
    return _named([*texts, *math.definitions()])


def _named(texts: Sequence[str]) -> tuple[str, str]:
    text = "\n".join(texts)
    symbol = f"{_NAME}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return symbol, part_text(symbol, [text.replace(f"{_NAME}(", f"{symbol}(")])


def scratch_bytes(spec: DotSpec, machine: Machine) -> int:
    """Bytes of scratch that the product's function needs, a multiple of 64."""
    return plan(spec, machine).layout()["total"]


def strip_rows(spec: DotSpec, machine: Machine) -> int:
    """Rows of C that suffice where one call makes it complete (see `Finish`); 0: all are needed."""
    chosen = plan(spec, machine)
    return chosen.rows if chosen.strip else 0


def emit_dot(
    em: PhaseEmitter,
    dots: DotLibrary,
    spec: DotSpec,
    a: Operand,
    b: Operand,
    acc: Accumulator,
    extents: tuple[str, str, str],
    zero: str,
    scratch: str,
    batch: Sequence[Batch] = (),
    finish: Finish | None = None,
) -> None:
    """Print acc (+)= a · b into the phase; see the module's text."""
    symbol = dots.use(spec)
    sizes = (spec.a.itemsize, spec.b.itemsize, spec.acc.itemsize)
    if batch:
        first, *rest = batch
        with em.loop(em.slot("i64", "batch"), "0", first.extent, "1", None, "batch") as at:
            pa = _moved(em, a.pointer, at, first.a, sizes[0])
            pb = _moved(em, b.pointer, at, first.b, sizes[1])
            pc = _moved(em, acc.pointer, at, first.acc, sizes[2])
            emit_dot(
                em,
                dots,
                spec,
                Operand(pa, a.outer, a.k),
                Operand(pb, b.outer, b.k),
                Accumulator(pc, acc.row),
                extents,
                zero,
                scratch,
                rest,
                finish,
            )
        return
    words = (
        a.pointer,
        _bytes(em, a.outer, sizes[0]),
        _bytes(em, a.k, sizes[0]),
        b.pointer,
        _bytes(em, b.k, sizes[1]),
        _bytes(em, b.outer, sizes[1]),
        acc.pointer,
        _bytes(em, acc.row, sizes[2]),
        *extents,
        zero,
        scratch,
        *_finish_words(finish),
    )
    typed = zip((t.split()[0] for t, _ in DOT_PARAMETERS), words, strict=True)
    em.line(f"call void {symbol}({', '.join(f'{t} {w}' for t, w in typed)})")


def _finish_words(finish: Finish | None) -> tuple[str, str, str]:
    if finish is None:
        return "null", "null", "false"
    return finish.function, finish.environment, "true" if finish.strip else "false"


def _bytes(em: PhaseEmitter, elements: str, size: int) -> str:
    if elements.lstrip("-").isdigit():
        return str(int(elements) * size)
    return elements if size == 1 else em.let(f"mul nsw i64 {elements}, {size}", "bytes")


def _moved(em: PhaseEmitter, pointer: str, index: str, step: str, size: int) -> str:
    if step == "0":
        return pointer
    distance = em.let(f"mul nsw i64 {index}, {_bytes(em, step, size)}", "off")
    return em.let(f"getelementptr i8, ptr {pointer}, i64 {distance}", "p")
