"""What a kernel must give: its tile IR evaluated by the interpreter, plainly and in float64.

In: a kernel, the image of its arguments, a config. Out: a judge of outputs by the accuracy rule; or
None where the interpreter would take too long.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import sympy
import torch

from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.problem import Judge
from torch_helion.codegen.llvm.program_defaults import estimate
from torch_helion.ir import interpreter
from torch_helion.ir.accuracy import TOLERANCES, compare
from torch_helion.ir.graph import Kernel, Op, loop_blocks
from torch_helion.ir.types import Axis, block_symbol

TILE = 1 << 17
"""Elements of the largest tile: less is slow to interpret, more leaves the caches."""
SECONDS_PER_OP, SECONDS_PER_ACCESS = 30e-6, 120e-6
SECONDS_PER_ELEMENT, SECONDS_PER_LANE = 4e-9, 60e-9
"""Of an element of most ops, and of a masked or gathered one of an access."""
SECONDS_ONE_BY_ONE = 35e-6
"""Of a lane of an atomic that gives what it found."""
CHUNK = 1 << 15
DEFAULT_SLACK = 4.0
"""By how much more the default config's error may exceed that of an evaluation in large tiles."""
LONGEST = 2.0
"""Estimated seconds above which nothing is interpreted."""
REPEATS = 16
"""How often a loop is taken to run whose count only a run can tell."""


def make_judge(
    kernel: Kernel, arena: Arena, ints: Sequence[int], sizes: Mapping[str, int]
) -> Judge | None:
    """A judge of this kernel's outputs; ``sizes``: block sizes of the default config, by name."""
    hints = dict(zip(kernel.sizes, ints, strict=True))
    blocks = blocks_to_interpret(kernel, hints, sizes)
    if blocks is None:
        return None
    plain = _evaluated(kernel, arena, ints, blocks, False)
    precise = _evaluated(kernel, arena, ints, blocks, True)
    names = [b.name for b in kernel.arguments if b.is_output]
    accepted: list[torch.Tensor] = []

    def judge(outputs: Sequence[torch.Tensor]) -> str | None:
        if accepted and all(_same_bits(a, b) for a, b in zip(outputs, accepted, strict=True)):
            return None  # most configs compute the same in another order of elements
        for number, (name, got) in enumerate(zip(names, outputs, strict=True)):
            truth, own = precise[number], plain[number]
            fine = got.dtype == own.dtype and is_close(got, truth)
            wrong = None if fine else compare(got, truth, own)
            if wrong is not None and not accepted:
                # Sums in the tiles of the default config are part of the program as it is written:
                # what runs without a search may be a little worse than sums in one piece.
                wrong = compare(got, truth, _worse(own, truth))
                plain[number] = got
            if wrong is not None:
                return f"{name}: {wrong}"
        accepted[:] = outputs
        return None

    return judge


def blocks_to_interpret(
    kernel: Kernel, hints: Mapping[sympy.Symbol, int], sizes: Mapping[str, int]
) -> dict[str, int] | None:
    """Block sizes for the interpreter, from those of a config; None: it would take too long."""
    blocks = _Blocks(kernel, hints, dict(sizes))
    blocks.grow()
    return blocks.sizes if blocks.seconds() <= LONGEST else None


def _worse(own: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Like ``own``, with a multiple of its error."""
    if not own.dtype.is_floating_point:
        return own
    exact, known = truth.double(), own.double()
    worse = exact + DEFAULT_SLACK * (known - exact)
    return torch.where(exact.isfinite() & known.isfinite(), worse, known).to(own.dtype)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not (a.is_contiguous() and b.is_contiguous()):
        return False
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def is_close(got: torch.Tensor, truth: torch.Tensor) -> bool:
    """Whether all floats are close at the dtype's tolerance: the first clause of the rule, chunk by
    chunk, as caches like it. False also where nothing is wrong but a NaN.
    """
    tolerance = TOLERANCES.get(got.dtype)
    if tolerance is None or got.shape != truth.shape:
        return False
    flat, wanted = got.reshape(-1), truth.reshape(-1)
    for a, b in zip(flat.split(CHUNK), wanted.split(CHUNK), strict=True):
        allowed = b.abs().mul_(tolerance.rtol).add_(tolerance.atol)
        if not bool(((a.double() - b).abs_() <= allowed).all()):
            return False
    return True


def _evaluated(
    kernel: Kernel, arena: Arena, ints: Sequence[int], blocks: dict[str, int], precise: bool
) -> list[torch.Tensor]:
    data = arena.image.clone()
    wide: dict[torch.dtype, torch.Tensor] = {}
    tensors = []
    for view in arena.layout.views:
        dtype = getattr(torch, view.dtype)
        if not (precise and dtype.is_floating_point):
            tensors.append(view.of(data))
            continue
        if dtype not in wide:  # same places, counted in elements
            wide[dtype] = data.view(dtype).to(torch.float64)
        at = view.offset // dtype.itemsize
        tensors.append(torch.as_strided(wide[dtype], view.sizes, view.strides, at))
    interpreter.run(kernel, tensors, list(ints), blocks, precise=precise)
    return [tensors[n] for n in arena.written]


@dataclasses.dataclass
class _Blocks:
    """Block sizes for the interpreter: few steps, and tiles that fit into caches."""

    kernel: Kernel
    hints: Mapping[sympy.Symbol, int]
    sizes: dict[str, int]

    def grow(self) -> None:
        """Double all blocks until the largest tile is large enough, or holds everything."""
        longest = max([1, *(self._extent(a) for a in self.kernel.axes().values())])
        for _ in range(longest.bit_length()):
            if self._largest() * 2 > TILE:
                break
            self.sizes = {name: 2 * size for name, size in self.sizes.items()}

    def seconds(self) -> float:
        """Estimated seconds of both evaluations."""
        return 2 * sum(n * self._seconds_of(op) for op, n in self._runs(self.kernel.body.ops, 1.0))

    def _runs(self, ops: Sequence[Op], count: float) -> list[tuple[Op, float]]:
        found: list[tuple[Op, float]] = []
        for op in ops:
            found.append((op, count))
            inner = count * self._steps(op)
            for region in op.regions:
                found += self._runs(region.ops, inner)
        return found

    def _steps(self, op: Op) -> float:
        if op.kind == "while" or (op.kind == "loop" and op.attrs["kind"] == "sequential"):
            return REPEATS
        if op.kind != "loop":
            return 1
        pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
        return math.prod(max(1.0, self._extent(a) / self._block(b)) for a, b in pairs)

    def _seconds_of(self, op: Op) -> float:
        elements = max([1, *(self._elements(v.type.axes) for v in (*op.operands, *op.results))])
        if op.kind == "dot":
            axes = {a.name: a for v in op.operands[:2] for a in v.type.axes}
            elements = max(elements, self._elements(tuple(axes.values())) // 16)
        if op.kind in ("load", "store", "atomic"):
            plain = len(op.operands) == (op.kind == "store") and op.kind != "atomic"
            each = SECONDS_PER_ELEMENT if plain else SECONDS_PER_LANE
            if op.kind == "atomic" and (op.results or op.attrs["fn"] not in ("add", "max", "min")):
                each = SECONDS_ONE_BY_ONE
            return SECONDS_PER_ACCESS + elements * each
        slow = 8 if op.kind in ("sort", "scan", "take") else 1
        return SECONDS_PER_OP + elements * SECONDS_PER_ELEMENT * slow

    def _largest(self) -> int:
        values = (v for op in self.kernel.body.walk() for v in op.results)
        return max([1, *(self._elements(v.type.axes) for v in values)])

    def _elements(self, axes: Sequence[Axis]) -> int:
        return math.prod(max(1, self._tile(a)) for a in axes)

    def _tile(self, axis: Axis) -> int:
        if axis.kind != "block":
            return self._extent(axis)
        size = self.sizes.get(self._names().get(axis.tile_name, axis.tile_name), 0)
        return min(size or self._extent(axis), self._extent(axis))

    def _names(self) -> dict[str, str]:
        """The block of each axis, by name."""
        found = {}
        tunable = {block_symbol(n): n for n in self.kernel.block_names}
        for op in self.kernel.body.walk():
            if op.kind == "loop":
                for axis, size in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                    if size in tunable:
                        found[axis.name] = tunable[size]
        return found

    def _block(self, size: object) -> int:
        if isinstance(size, int):
            return max(1, size)
        name = str(size).removeprefix("block_")
        return max(1, self.sizes.get(name, TILE))

    def _extent(self, axis: Axis) -> int:
        return max(0, estimate(axis.size, self.hints))
