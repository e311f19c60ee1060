"""The state of one run of the interpreter: sizes, memory, current tiles, values.

In: a kernel and what it is run with. Out: `Machine`, which the rows of the interpreter's table read
and change. Used by the modules of the interpreter only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.graph import Kernel, Op, Region, Value, loop_blocks
from torch_helion.ir.ops import FLOAT8, HALF
from torch_helion.ir.size_value import size_value
from torch_helion.ir.types import Axis, Buffer, Size, begin_symbol, block_symbol, id_symbol

Blocks = Mapping[str, int] | int | None
Precise = bool | Literal["all"]
Results = Sequence[torch.Tensor]

_UNKNOWN_BLOCK = 64
"""For a block that nobody chose and whose loops have no size before the kernel runs."""


@dataclass(frozen=True)
class Memory:
    """A buffer bound to storage: the flat storage, where the buffer begins, sizes and strides."""

    buffer: Buffer
    flat: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """What a step of a loop covers of one block axis: [start, stop), cut from a block."""

    number: int
    start: int
    stop: int
    block: int


@dataclass
class Machine:
    """The state of one run."""

    kernel: Kernel
    axes: Mapping[str, Axis]
    sizes: dict[sympy.Symbol, int]
    """Numbers that hold for the whole run: sizes and blocks."""
    precise: Precise
    rows: Mapping[str, Callable[[Machine, Op], Results]]
    """What each op kind does."""
    unique_stores: bool = False
    """Whether lanes of one store may not go to one place."""
    memory: dict[str, Memory] = field(default_factory=dict)
    tiles: dict[str, Tile] = field(default_factory=dict)
    values: dict[Value, torch.Tensor] = field(default_factory=dict)
    current: dict[sympy.Symbol, int] = field(default_factory=dict)
    """Numbers that hold here: begins and numbers of tiles, counters, bound values."""
    _evaluated: dict[Any, int] = field(default_factory=dict)

    # -- binding --------------------------------------------------------------------------------

    def bind_blocks(self, blocks: Blocks) -> None:
        """Give every block symbol its number: what was asked for, else the longest axis."""
        longest: dict[str, int] = dict.fromkeys(self.kernel.blocks, 0)
        for op in self.kernel.body.walk():
            for axis, block in _loop_axes(op):
                name = str(block).removeprefix("block_")
                if block == block_symbol(name):
                    longest[name] = max(longest.get(name, 0), self._size_before(axis))
        for name, size in longest.items():
            whole = max(size, 1) if size else _UNKNOWN_BLOCK
            block = blocks.get(name, whole) if isinstance(blocks, Mapping) else blocks
            self.sizes[block_symbol(name)] = number = whole if block is None else int(block)
            if number < 1:
                raise exc.InvalidValue(f"block size of {name}", block, "at least 1")

    def _size_before(self, axis: Axis) -> int:
        """The axis's size as far as it is known before the kernel runs."""
        try:
            return max(self.evaluate(axis.size), 1)
        except exc.VerifierError:
            return 0

    def bind_buffers(self, tensors: Sequence[torch.Tensor]) -> None:
        arguments = self.kernel.arguments
        if len(tensors) != len(arguments):
            raise exc.InvalidValue("tensors", f"{len(tensors)} tensors", f"{len(arguments)}")
        given = dict(zip((b.name for b in arguments), tensors, strict=True))
        for buffer in self.kernel.buffers:
            shape = tuple(self.evaluate(s) for s in buffer.shape)
            strides = tuple(self.evaluate(s) for s in buffer.strides)
            if buffer.role == "workspace":
                flat, offset = self._workspace(buffer, shape, strides), 0
            else:
                tensor = given[buffer.name]
                self._check_argument(buffer, tensor, shape, strides)
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                flat = torch.as_strided(tensor.detach(), (elements,), (1,), 0)
                offset = int(tensor.storage_offset())
            self.memory[buffer.name] = Memory(buffer, flat, offset, shape, strides)

    def _workspace(
        self, buffer: Buffer, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> torch.Tensor:
        """Fresh memory full of a value that spoils every result which uses it unwritten."""
        dtype = self.held(buffer.dtype)
        poison: Any = True if dtype is torch.bool else float("nan")
        if not dtype.is_floating_point and dtype is not torch.bool:
            poison = torch.iinfo(dtype).max
        return torch.full((extent_of(shape, strides),), poison, dtype=dtype)

    def _check_argument(
        self,
        buffer: Buffer,
        tensor: torch.Tensor,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        wide = self.precise and buffer.dtype.is_floating_point and tensor.dtype is torch.float64
        if tensor.dtype != buffer.dtype and not wide:
            raise exc.InvalidValue(f"tensor {buffer.name}", tensor.dtype, str(buffer.dtype))
        if tensor.device.type != "cpu":
            raise exc.InvalidValue(f"tensor {buffer.name}", str(tensor.device), "a CPU tensor")
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.storage_offset() + extent_of(shape, strides) > elements:
            raise exc.InvalidValue(
                f"tensor {buffer.name}",
                (tuple(tensor.shape), tensor.stride()),
                f"storage for sizes {shape} with strides {strides}",
            )

    # -- sizes, axes, values --------------------------------------------------------------------

    def evaluate(self, expr: Size) -> int:
        """The number that a size expression stands for at this place of the run."""
        if isinstance(expr, int):
            return expr
        if expr in self._evaluated:
            return self._evaluated[expr]
        symbols = expr.free_symbols
        if symbols <= self.sizes.keys():
            self._evaluated[expr] = number = size_value(expr, self.sizes)
            return number
        here = {s: self.current.get(s, self.sizes.get(s)) for s in symbols}
        unknown = sorted(str(s) for s, number in here.items() if number is None)
        if unknown:
            raise exc.VerifierError(f"size {expr}: {', '.join(unknown)} has no value here")
        return size_value(expr, here)  # type: ignore[arg-type]

    def extent(self, axis: Axis) -> int:
        """How many positions of `axis` a value of this step holds."""
        if axis.kind != "block":
            return self.evaluate(axis.size)
        tile = self.tile(axis)
        return tile.stop - tile.start

    def start(self, axis: Axis) -> int:
        """The first position of `axis` that a value of this step holds."""
        return self.tile(axis).start if axis.kind == "block" else 0

    def positions(self, axis: Axis) -> torch.Tensor:
        start = self.start(axis)
        return torch.arange(start, start + self.extent(axis))

    def tile(self, axis: Axis) -> Tile:
        if axis.tile_name not in self.tiles:
            raise exc.VerifierError(f"{axis.name!r} is no block axis of a loop around this use")
        return self.tiles[axis.tile_name]

    def held(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the tensors that stand for values of `dtype`."""
        return torch.float64 if self.precise and dtype.is_floating_point else dtype

    def convert(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """PyTorch's conversion to `dtype`, in the form in which this run holds such values."""
        rounds = self.precise != "all" and dtype in (*HALF, *FLOAT8)
        if not self.precise or rounds or not dtype.is_floating_point:
            tensor = tensor.to(dtype)
        return tensor.to(self.held(dtype))

    def aligned(self, value: Value, axes: Sequence[Axis]) -> torch.Tensor:
        """The tensor of `value` with one dimension for each of `axes`, of size 1 where absent."""
        return align(self.values[value], value.type.axes, axes)

    # -- control --------------------------------------------------------------------------------

    def run_region(self, region: Region) -> tuple[torch.Tensor, ...]:
        """Run the region's ops; the operands of its final yield, if there is one."""
        for op in region.ops:
            if op.kind == "yield":
                return tuple(self.values[v] for v in op.operands)
            row = self.rows.get(op.kind)
            if row is None:
                raise exc.TargetIncomplete("interpreter", [op.kind])
            for value, tensor in zip(op.results, row(self, op), strict=True):
                self.values[value] = tensor
        return ()

    def steps(self, op: Op) -> Iterator[None]:
        """Every step of a loop; `tiles` and `current` say which one it is."""
        if op.attrs["kind"] == "sequential":
            yield from self._counted(op)
            return
        axes: tuple[Axis, ...] = op.attrs["axes"]
        for tiles in itertools.product(*(self._tiles(*pair) for pair in _loop_axes(op))):
            for axis, tile in zip(axes, tiles, strict=True):
                self.tiles[axis.name] = tile
                self.current[begin_symbol(axis)] = tile.start
                self.current[id_symbol(axis)] = tile.number
            yield
        for axis in axes:
            self.tiles.pop(axis.name, None)
            self.current.pop(begin_symbol(axis), None)
            self.current.pop(id_symbol(axis), None)

    def _counted(self, op: Op) -> Iterator[None]:
        begin, end, step = (self.evaluate(op.attrs[name]) for name in ("begin", "end", "step"))
        if step < 1:
            raise exc.InvalidValue("step of a loop", step, "at least 1")
        for number in range(begin, end, step):
            self.current[op.attrs["symbol"]] = number
            yield
        self.current.pop(op.attrs["symbol"], None)

    def _tiles(self, axis: Axis, size: Size) -> list[Tile]:
        extent, block = self.evaluate(axis.size), self.evaluate(size)
        if block < 1:
            raise exc.InvalidValue(f"block size of {axis.name}", block, "at least 1")
        starts = range(0, extent, block)
        return [Tile(i, start, min(start + block, extent), block) for i, start in enumerate(starts)]


def _loop_axes(op: Op) -> list[tuple[Axis, Size]]:
    """Each axis of a loop with its block size."""
    if op.kind != "loop":
        return []
    return list(zip(op.attrs["axes"], loop_blocks(op), strict=True))


def extent_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to one past the last of a strided buffer."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def align(tensor: torch.Tensor, have: Sequence[Axis], want: Sequence[Axis]) -> torch.Tensor:
    """`tensor` with one dimension for each axis of `want`; an absent one has size 1."""
    names = [a.name for a in have]
    order = [names.index(a.name) for a in want if a.name in names]
    tensor = tensor.permute(order)
    for dim, axis in enumerate(want):
        if axis.name not in names:
            tensor = tensor.unsqueeze(dim)
    return tensor


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, seen in a dtype that PyTorch can index and select."""
    return tensor.view(_SEEN_AS.get(tensor.dtype, tensor.dtype))


_SEEN_AS = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    **dict.fromkeys(FLOAT8, torch.uint8),
}
