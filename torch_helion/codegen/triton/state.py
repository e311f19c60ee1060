"""The state of printing one phase: names, tiles, axes, sizes, and what lanes outside hold.

In: a kernel, a layout. Out: `Printer`, which the rows of `values`, `memory`, `joins` and `control`
read and write lines through. Tiles are printed with the dimensions that they really vary along:
`expand` costs nothing until somebody needs the lanes (`full`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy
import torch

from torch_helion import exc
from torch_helion.codegen.triton import fills
from torch_helion.codegen.triton.dtypes import Number, dtype_name, is_bare, plain, typed
from torch_helion.codegen.triton.layout import Layout
from torch_helion.codegen.triton.sizes import SizeText
from torch_helion.codegen.triton.writer import Names, Slot, Writer
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.types import Axis, Size, begin_symbol, id_symbol


@dataclass(frozen=True)
class Tile:
    """A printed value: an atom of text, its dtype, the axes that it has dimensions for."""

    text: str
    dtype: torch.dtype
    axes: tuple[str, ...] = ()
    number: Number | None = None
    """A literal, and which one."""


@dataclass
class _Lazy:
    """A definition that is written when it is first needed."""

    slot: Slot
    hint: str
    make: Callable[[], str]
    name: str = ""
    reserved: bool = False


class Printer:
    """Prints the body of one phase (or of a function that joins two lanes)."""

    def __init__(
        self,
        kernel: Kernel,
        layout: Layout,
        names: Names,
        helpers: set[str],
        functions: list[str],
        rows: Mapping[str, Callable[[Printer, Op], None]],
        backend: str,
    ) -> None:
        self.kernel, self.layout, self.names, self.rows = kernel, layout, names, rows
        self.backend = backend
        """ "cuda" or "hip"."""
        self.helpers = helpers
        self.functions = functions
        """Whole functions that stand in front of the kernels."""
        self.writer = Writer()
        self.tiles: dict[Value, Tile] = {}
        self.made = {v: op for op in kernel.body.walk() for v in op.results}
        self.buffers: dict[str, str] = {}
        """Buffers that are used, with their parameters' names."""
        self.shared: set[str] = set()
        """Buffers whose stores the threads of a program wait for."""
        self.sizes: dict[sympy.Symbol, str] = {}
        """Size arguments that are used."""
        self.lanes: dict[str, str] = {}
        """Parameters for the lanes of axes, by axis."""
        self.blocks: dict[str, str] = {}
        """Parameters for block sizes that differ from the lanes, by axis."""
        self.symbols: dict[sympy.Symbol, str] = {}
        """Symbols that stand for scalars of this place."""
        self.size_text = SizeText(self._symbol, True, self.helper)
        self._lazy: dict[tuple[str, str], _Lazy] = {}
        self.top = self.writer.slot()

    # -- names ----------------------------------------------------------------------------------

    def helper(self, name: str) -> str:
        if name != "libdevice":
            self.helpers.add(name)
        return name

    def line(self, text: str) -> None:
        self.writer.line(text)

    def buffer(self, name: str) -> str:
        return self.buffers.setdefault(name, name)

    def define(self, value: Value, text: str, axes: tuple[str, ...], hint: str = "") -> Tile:
        """A line that gives `value` a name."""
        name = self.names.fresh(hint or value.hint)
        self.line(f"{name} = {text}")
        self.layout.check(axes, f"%{value.hint}")
        self.tiles[value] = tile = Tile(name, value.type.dtype, axes)
        return tile

    def temporary(self, hint: str, text: str, dtype: torch.dtype, axes: tuple[str, ...]) -> Tile:
        name = self.names.fresh(hint)
        self.line(f"{name} = {text}")
        self.layout.check(axes, hint)
        return Tile(name, dtype, axes)

    # -- sizes ----------------------------------------------------------------------------------

    def size(self, size: Size, factor: bool = False) -> str:
        expr = self.layout.bound(size)
        return self.size_text.factor(expr) if factor else self.size_text(expr)

    def _symbol(self, symbol: sympy.Symbol) -> str:
        if symbol in self.symbols:
            return self.symbols[symbol]
        if ("symbol", symbol.name) in self._lazy:
            return self.need("symbol", symbol.name)
        if symbol not in self.kernel.sizes:
            raise exc.CodegenError(f"triton: the size {symbol} has no value here")
        if symbol not in self.sizes:
            self.sizes[symbol] = symbol.name
            # An int argument has 32 bits where it fits; products of sizes may not.
            self.top.lines.append(f"{symbol.name} = tl.cast({symbol.name}, tl.int64)")
        return symbol.name

    # -- axes -----------------------------------------------------------------------------------

    def lazy(self, kind: str, key: str, slot: Slot, hint: str, make: Callable[[], str]) -> None:
        self._lazy[kind, key] = _Lazy(slot, hint, make)

    def _reserve(self, kind: str, key: str) -> None:
        """Give a definition its name before it is needed."""
        lazy = self._lazy[kind, key]
        lazy.hint = self.names.fresh(lazy.hint)
        lazy.reserved = True

    def need(self, kind: str, key: str) -> str:
        """The name of something that is written at the beginning of its tile."""
        lazy = self._lazy[kind, key]
        if not lazy.name:
            text = lazy.make()
            lazy.name = lazy.hint if lazy.reserved else self.names.fresh(lazy.hint)
            lazy.slot.lines.append(f"{lazy.name} = {text}")
        return lazy.name

    def open_axis(self, axis: Axis, slot: Slot) -> None:
        """An axis whose tile begins here: its positions, and which of them are inside."""
        base = self.layout.base(axis.name)
        name = base.name
        self.lazy("position", name, slot, name, lambda: self._positions(base))
        self.lazy("inside", name, slot, f"{name}_inside", lambda: self._inside(base))
        if not self.layout.is_unit(name):
            self._reserve("position", name)

    def _positions(self, axis: Axis) -> str:
        lanes = f"tl.arange(0, {self.lane_count(axis.name)})"
        if axis.kind != "block":
            return f"{lanes}.to(tl.int64)"
        return f"{self.size(begin_symbol(axis))} + {lanes}"

    def _inside(self, axis: Axis) -> str:
        position, size = self.position(axis.name), self.layout.size(axis)
        if axis.kind != "block" or self.layout.block(axis) == self.layout.lanes[axis.name].known:
            return f"{position} < {self.size(size)}"
        end = f"{self.size(begin_symbol(axis), factor=True)} + {self.layout.block(axis)}"
        return f"{position} < tl.minimum({end}, {self.size(size)})"

    def position(self, name: str) -> str:
        """The positions along an axis that has a dimension: one int64 a lane."""
        base = self.layout.base(name)
        if ("position", base.name) not in self._lazy:
            if base.kind == "block":
                raise exc.CodegenError(f"triton: {name!r} is used outside of its loop")
            self.open_axis(base, self.top)
        return self.need("position", base.name)

    def inside(self, name: str) -> str:
        """Which lanes of a padded axis lie inside."""
        self.position(name)
        return self.need("inside", self.layout.base(name).name)

    def lane_count(self, name: str) -> str:
        """The number of lanes of an axis, a power of two: a parameter of the kernel."""
        base = self.layout.base(name)
        if self.layout.lanes[name].known == 1:
            return "1"
        if base.name not in self.lanes:
            block = base.kind == "block" and self.layout.block(base)
            own = not block or block == self.layout.lanes[base.name].known
            hint = f"{'BLOCK' if own else 'LANES'}_{base.name.upper()}"
            self.lanes[base.name] = self.names.fresh(hint)
        return self.lanes[base.name]

    def block_size(self, axis: Axis) -> str:
        """The number of positions in a tile of a loop's axis."""
        block = self.layout.block(axis)
        if block == self.layout.lanes[axis.name].known and block > 1:
            return self.lane_count(axis.name)
        return str(block)

    def dims(self, names: Iterable[str]) -> tuple[str, ...]:
        """The axes of these that have a dimension."""
        return tuple(n for n in names if not self.layout.is_unit(n))

    def shape(self, dims: Sequence[str]) -> str:
        return f"[{', '.join(self.lane_count(n) for n in dims)}]"

    def mask(self, dims: Sequence[str], *more: str, within: Sequence[str] | None = None) -> str:
        """Which lanes of a tile over `within` lie inside along `dims`; `more` are parts as well."""
        within = dims if within is None else within
        parts: dict[str, None] = {}
        for name in dims:
            if self.layout.is_padded(name):
                parts[align(Tile(self.inside(name), torch.bool, (name,)), within)] = None
        parts.update(dict.fromkeys(more))
        return " & ".join(parts)

    # -- tiles ----------------------------------------------------------------------------------

    def tile(self, value: Value) -> Tile:
        return self.tiles[value]

    def union(self, value: Value, *tiles: Tile) -> tuple[str, ...]:
        """The dimensions of a value that some of the tiles have."""
        have = {name for tile in tiles for name in tile.axes}
        return tuple(n for n in value.type.axis_names if n in have)

    def typed(self, tile: Tile) -> str:
        """The text with the dtype of the tile, also where it is a number."""
        return tile.text if tile.number is None else typed(tile.number, tile.dtype)

    def operands(self, tiles: Sequence[Tile], dims: Sequence[str]) -> list[str]:
        """Texts that broadcast over `dims`; one of them at least has its dtype by itself."""
        texts = []
        for tile in tiles:
            bare = tile.number is not None and is_bare(tile.number, tile.dtype)
            texts.append(tile.text if bare else align(replace(tile, text=self.typed(tile)), dims))
        return texts

    def full(self, tile: Tile, dims: tuple[str, ...]) -> str:
        """The text with every lane of `dims`."""
        self.layout.check(dims, tile.text)
        if tile.number is not None:
            return typed(tile.number, tile.dtype, self.shape(dims))
        if tile.axes == dims or not dims:
            return tile.text
        if not tile.axes:
            return f"tl.full({self.shape(dims)}, {tile.text}, {dtype_name(tile.dtype)})"
        text = align(tile, dims)
        return (
            text if set(tile.axes) == set(dims) else f"tl.broadcast_to({text}, {self.shape(dims)})"
        )

    def full_tile(self, value: Value, hint: str = "") -> Tile:
        """The value with all its dimensions, as an atom."""
        tile, dims = self.tile(value), self.dims(value.type.axis_names)
        text = self.full(tile, dims)
        if text == tile.text:
            return tile
        return self.temporary(hint or value.hint, text, tile.dtype, dims)

    def filled(self, value: Value, tile: Tile, axis_names: Iterable[str], number: Number) -> Tile:
        """`tile` (which stands for `value`) with `number` in the lanes outside of these axes."""
        open_ = [
            n
            for n in axis_names
            if n in tile.axes
            and self.layout.is_padded(n)
            and not fills.holds(self.made, lambda v: self.tiles[v].axes, value, n, number)
        ]
        if not open_:
            return tile
        mask = self.mask(open_, within=tile.axes)
        bare = is_bare(number, tile.dtype)
        other = plain(number, tile.dtype) if bare else typed(number, tile.dtype)
        return self.temporary(
            value.hint, f"tl.where({mask}, {tile.text}, {other})", tile.dtype, tile.axes
        )

    # -- programs -------------------------------------------------------------------------------

    def region(self, region: Region) -> tuple[Value, ...]:
        """Print the ops of a region; what it yields."""
        for op in region.ops:
            if op.kind == "yield":
                return op.operands
            row = self.rows.get(op.kind)
            if row is None:
                raise exc.CodegenError(f"triton: {op.kind} is not supported ({op})")
            row(self, op)
        return ()

    def open_tile(self, axis: Axis, slot: Slot, begin: Callable[[], str]) -> None:
        """The current tile of a loop's axis: its begin, its number, its positions."""
        name = axis.name
        self.lazy("symbol", begin_symbol(axis).name, slot, f"begin_{name}", begin)
        self.lazy("symbol", id_symbol(axis).name, slot, f"id_{name}", lambda: self._number(axis))
        self.open_axis(axis, slot)

    def _number(self, axis: Axis) -> str:
        begin = self.size(begin_symbol(axis))
        return begin if self.layout.block(axis) == 1 else f"{begin} // {self.block_size(axis)}"


def align(tile: Tile, dims: Sequence[str]) -> str:
    """The text with a dimension for each of `dims`, of size 1 where the tile has none."""
    if not tile.axes or tile.axes == tuple(dims):
        return tile.text
    order = [n for n in dims if n in tile.axes]
    text = tile.text
    if list(tile.axes) != order:
        if sorted(order) != sorted(tile.axes):
            raise exc.CodegenError(f"triton: {tile.text} over {tile.axes} among {tuple(dims)}")
        text = f"tl.permute({text}, {[tile.axes.index(n) for n in order]})"
    if len(order) == len(dims):
        return text
    return f"{text}[{', '.join(':' if n in tile.axes else 'None' for n in dims)}]"


def unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain(names)))
