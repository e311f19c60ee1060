"""How many lanes each axis has: a power of two, known when the kernel is launched.

In: a kernel and the numbers of its block symbols. Out: for each axis its lanes, whether lanes can
lie outside of it, and whether it needs a dimension at all. An axis that always has exactly one
position has none: its positions are scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from torch_helion import exc
from torch_helion.config_spec import next_power_of_2
from torch_helion.ir.graph import Kernel, loop_blocks
from torch_helion.ir.types import Axis, Size

MOST_LANES = 1 << 20
"""What Triton allows in one tile."""


@dataclass
class Lanes:
    """Axes that share their lanes: an axis, its aliases, and what it is renamed to."""

    static: int = 1
    """Lanes that are known now; the least number where `sizes` has more."""
    sizes: list[sympy.Expr] = field(default_factory=list)
    """Extents that are known at the launch."""

    @property
    def known(self) -> int | None:
        return None if self.sizes else self.static


@dataclass(frozen=True)
class Layout:
    """The lanes of every axis of a kernel, with block symbols bound."""

    axes: Mapping[str, Axis]
    numbers: Mapping[sympy.Symbol, sympy.Integer]
    """Block symbols."""
    blocks: Mapping[str, int]
    """Block size by name of a loop's axis."""
    lanes: Mapping[str, Lanes]

    def bound(self, size: Size) -> sympy.Expr:
        """A size with the block symbols' numbers in it."""
        return sympy.sympify(size).xreplace(dict(self.numbers))

    def size(self, axis: Axis) -> sympy.Expr:
        return self.bound(axis.size)

    def base(self, name: str) -> Axis:
        """The axis whose positions an axis has."""
        axis = self.axes[name]
        return self.axes.get(axis.tile_name, axis)

    def block(self, axis: Axis) -> int:
        """Positions of a whole tile of a block axis."""
        if axis.tile_name not in self.blocks:
            raise exc.CodegenError(f"triton: no loop over the block axis {axis.name!r}")
        return self.blocks[axis.tile_name]

    def is_unit(self, name: str) -> bool:
        """Whether the axis has exactly one position in every step: no dimension."""
        if self.lanes[name].known != 1:
            return False
        axis = self.base(name)
        return axis.kind == "block" or self.size(axis) == 1

    def is_padded(self, name: str) -> bool:
        """Whether lanes can lie outside of the axis (or of its tile)."""
        lanes, axis = self.lanes[name].known, self.base(name)
        size = self.size(axis)
        if lanes is None:
            return True
        if axis.kind == "block":
            block = self.block(axis)
            return block != lanes or not (size.is_Integer and int(size) % block == 0)
        return size != lanes

    def check(self, dims: tuple[str, ...], what: str) -> None:
        """Refuse tiles that Triton has no room for."""
        total = 1
        for name in dims:
            total *= self.lanes[name].known or self.lanes[name].static
        if total > MOST_LANES:
            raise exc.CodegenError(
                f"triton: {what} needs a tile of {total} lanes over ({', '.join(dims)}), and "
                f"{MOST_LANES} are possible; choose smaller block_sizes or reduction_loops"
            )


def make_layout(kernel: Kernel, blocks: Mapping[sympy.Symbol, int]) -> Layout:
    numbers = {symbol: sympy.Integer(number) for symbol, number in blocks.items()}
    axes = dict(kernel.axes())
    sizes: dict[str, int] = {}
    for op in kernel.body.walk():
        if op.kind == "loop" and op.attrs["axes"]:
            for axis, block in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                number = sympy.sympify(block).xreplace(numbers)
                if not number.is_Integer:
                    raise exc.CodegenError(f"triton: the block size {block} has no number")
                sizes[axis.name] = int(number)
        for axis in op.attrs.get("target", ()) if op.kind == "reshape" else ():
            axes.setdefault(axis.name, axis)
    layout = Layout(axes, numbers, sizes, {})
    groups = _groups(kernel, axes)
    for name, axis in axes.items():
        _count(layout, axis, groups[name], kernel)
    for name, least in _least(kernel).items():
        groups[name].static = max(groups[name].static, least)
    return Layout(axes, numbers, sizes, groups)


def _groups(kernel: Kernel, axes: Mapping[str, Axis]) -> dict[str, Lanes]:
    leader = {name: name for name in axes}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for axis in axes.values():
        if axis.of in leader:
            leader[find(axis.name)] = find(axis.of)
    for op in kernel.body.walk():
        for old, new in op.attrs["axes"] if op.kind == "reaxis" else ():
            leader[find(new.name)] = find(old)
    made = {name: Lanes() for name in axes}
    return {name: made[find(name)] for name in axes}


def _count(layout: Layout, axis: Axis, lanes: Lanes, kernel: Kernel) -> None:
    if axis.kind == "block":
        if axis.tile_name in layout.blocks:
            lanes.static = max(lanes.static, next_power_of_2(layout.block(axis)))
        return
    size = layout.size(axis)
    if size.is_Integer:
        lanes.static = max(lanes.static, next_power_of_2(int(size)))
    elif size.free_symbols <= set(kernel.sizes):
        if size not in lanes.sizes:
            lanes.sizes.append(size)
    else:
        raise exc.CodegenError(
            f"triton: the axis {axis.name!r} of size {size} is whole inside of a step, but its "
            "size is known on the device only; read it in tiles"
        )


def _least(kernel: Kernel) -> dict[str, int]:
    """Lanes that tl.dot asks for along the axis that it sums over."""
    least: dict[str, int] = {}
    for op in kernel.body.walk():
        if op.kind == "dot":
            width = 32 if op.operands[0].type.dtype.itemsize == 1 else 16
            least[op.attrs["k"]] = max(least.get(op.attrs["k"], 1), width)
    return least
