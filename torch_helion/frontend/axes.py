"""Which axes a kernel has, and how positional dimensions of several values become common axes.

In: ranges of loops, sizes of slices, block sizes in shapes. Out: axes of the IR; for each a
*stand-in*, a number that is its size in the meta tensors that PyTorch's own shape rules run on (no
two axes have the same unless they are known to be equally long).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sympy

from torch_helion import exc
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.values import Dim
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Axis, Size, begin_symbol

FIRST_STAND_INS = (10_007, 1_009, 31_013)
"""Stand-ins are primes from here on, so that a product of sizes tells its factors. The later ones
are for programs that the first do not fit: tensors of many dimensions, sizes that are stand-ins.
"""


def positive(size: Size) -> Size:
    """max(size, 0), left out where it is known."""
    if isinstance(size, int):
        return max(size, 0)
    return size if size.is_nonnegative else sympy.Max(size, 0)


class Axes:
    """The axes of one kernel."""

    def __init__(self, builder: Builder, first: int = FIRST_STAND_INS[0]) -> None:
        self.b = builder
        self.first = first
        self.blocks: dict[str, Size] = {}
        """block size of each loop axis, by name"""
        self.open: list[Axis] = []
        """axes of the loops around the place that is being traced"""
        self._whole: dict[Size, Axis] = {}
        self._lanes: dict[Size, Axis] = {}
        self._aliases: dict[str, list[Axis]] = {}
        self._stand_ins: dict[Size, int] = {}
        self._sizes: dict[int, Size] = {}
        self._names: dict[str, int] = {}
        self.preferred: dict[Size, list[Axis]] = {}
        """for a size, the tiles of it that the call being traced was given, in order"""

    # -- declaring --------------------------------------------------------------------------------

    def name(self, wanted: str) -> str:
        number = self._names.get(wanted, 0)
        while True:
            name = wanted if number == 0 else f"{wanted}{number}"
            number += 1
            self._names[wanted] = number
            if self.b.axis_named(name) is None:
                return name

    def loop(self, name: str, size: Size, block: Size | None) -> Axis:
        """A new axis of a loop; block None: the config says how large its tiles are."""
        axis = self.b.axis(self.name(name), plain(size))
        if block is not None:
            self.blocks[axis.name] = plain(block)
        return axis

    def whole(self, size: Size) -> Axis:
        """The axis of everything of this size that is never cut."""
        size = plain(size)
        if size not in self._whole:
            self._whole[size] = self.b.axis(self.name("r"), size, "full")
        return self._whole[size]

    def lanes(self, block: Size) -> Axis:
        """The positions of a block whose tile is not that of a loop around here."""
        if isinstance(block, int):
            return self.whole(block)
        if block not in self._lanes:
            self._lanes[block] = self.b.axis(self.name("lanes"), block, "full")
        return self._lanes[block]

    def numbered(self, axis: Axis, number: int) -> Axis:
        """Alias `number` of an axis; 0 is the axis itself."""
        if number == 0:
            return axis
        aliases = self._aliases.setdefault(axis.name, [])
        while len(aliases) < number:
            aliases.append(self.b.alias(axis))
        return aliases[number - 1]

    def root(self, axis: Axis) -> Axis:
        if not axis.of:
            return axis
        root = self.b.axis_named(axis.of)
        assert root is not None
        return root

    def free(self, axis: Axis, taken: Sequence[Dim]) -> Axis:
        """`axis`, or the first alias of it that is not among `taken`."""
        root, number = self.root(axis), 0
        names = {a.name for a in taken if a is not None}
        while self.numbered(root, number).name in names:
            number += 1
        return self.numbered(root, number)

    # -- extents ----------------------------------------------------------------------------------

    def block(self, axis: Axis) -> Size:
        """The block size of a loop axis."""
        return self.blocks[self.root(axis).name]

    def extent(self, dim: Dim) -> Size:
        """How many positions a dimension has in the program's eyes: whole blocks."""
        if dim is None:
            return 1
        return self.block(dim) if dim.kind == "block" else dim.size

    def count(self, dim: Dim) -> Size:
        """How many positions of a dimension are real."""
        if dim is None or dim.kind != "block":
            return self.extent(dim)
        root = self.root(dim)
        if self.block(dim) == 1:
            return 1
        return sympy.Min(self.block(dim), root.size - begin_symbol(root))

    def stand_in(self, dim: Dim) -> int:
        """The size of a dimension in meta tensors."""
        return self.size_stand_in(self.extent(dim))

    def size_stand_in(self, size: Size) -> int:
        """The number that stands for a size: itself if it is constant."""
        size = plain(size)
        if isinstance(size, int):
            if size in self._sizes and self._sizes[size] != size:
                raise exc.InternalError("Axes", f"the size {size} is taken")
            return size
        if size.is_Symbol:
            return self._numbered_stand_in(size)
        numbers = {s: self.size_stand_in(s) for s in size.free_symbols}
        value = size.subs(numbers)
        if not value.is_Integer:
            raise exc.ShapeSpecializingAllocation(f" ({size})")
        number = int(value)
        self._sizes.setdefault(number, size)
        return number

    def _numbered_stand_in(self, size: Size) -> int:
        if size not in self._stand_ins:
            last = max(self._stand_ins.values(), default=self.first - 1)
            number = int(sympy.nextprime(last))
            self._stand_ins[size] = number
            self._sizes[number] = size
        return self._stand_ins[size]

    def size_of(self, number: int) -> Size:
        """The size that a number in a meta tensor's shape stands for."""
        if number in self._sizes or number < self.first:
            return self._sizes.get(number, number)
        size: Size = 1
        for symbol, factor in self._stand_ins.items():
            while number % factor == 0:
                size, number = size * symbol, number // factor
        return size * number

    def readable(self, text: str) -> str:
        """A text of PyTorch's with sizes in the place of their stand-ins."""

        def size(found: re.Match[str]) -> str:
            number = int(found[0])
            return str(self.size_of(number)) if number >= self.first else found[0]

        return re.sub(r"\d+", size, text)

    def block_axis(self, block: Size) -> Axis:
        """The axis that a block size in a shape means: the innermost open tile of that size."""
        for axis in reversed(self.open):
            if axis.kind == "block" and self.blocks.get(axis.name) == block:
                return axis
        return self.lanes(block)

    def dim_of(self, size: Size, taken: Sequence[Dim] = ()) -> Dim:
        """The dimension of a new tensor of this size; no axis among `taken`."""
        size = plain(size)
        if size == 1:
            return None
        if size in self.preferred:  # tiles may share a block size: each stands once, in order
            tiles = self.preferred[size]
            axis = next((a for a in tiles if a not in taken), tiles[0])
        elif isinstance(size, int):
            axis = self.whole(size)
        elif any(str(s).startswith("block_") for s in size.free_symbols):
            axis = self.block_axis(size)
        else:
            axis = self.whole(size)
        return self.free(axis, taken)

    # -- joining ----------------------------------------------------------------------------------

    def joined(self, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
        """The dimensions of the broadcast of several shapes; one axis never stands twice."""
        rank = max((len(s) for s in shapes), default=0)
        result: list[Dim] = []
        for place in range(rank):
            found: list[Axis] = []
            for shape in shapes:
                at = place - (rank - len(shape))
                dim = shape[at] if at >= 0 else None
                if dim is not None and dim not in found:
                    found.append(dim)
            axis = self._common(found)
            if axis is not None and axis in result:
                axis = self.free(axis, result)
            result.append(axis)
        return tuple(result)

    def _common(self, found: list[Axis]) -> Dim:
        """One axis for dimensions that meet."""
        if not found:
            return None
        found = [a for a in found if self.extent(a) != 1] or found
        # A block that is not that of a loop keeps all of its lanes: tiles are narrower at the end.
        whole = [a for a in found if a.kind != "block"]
        chosen = whole[0] if whole else found[0]
        for axis in found:
            if not self.matches(axis, chosen):
                raise exc.ShapeMismatch(self.shape_text(axis), self.shape_text(chosen))
        return chosen

    def shape_text(self, dim: Dim) -> str:
        if dim is None:
            return "1"
        extent = self.extent(dim)
        return f"{extent} ({dim.name})" if dim.kind == "block" else str(extent)

    def matches(self, a: Axis, b: Axis) -> bool:
        """Whether two axes may be the same dimension."""
        if a is b or self.root(a) is self.root(b):
            return True
        if a.kind == "block" and b.kind == "block":
            # Different loops over blocks of one registered size line up lane by lane.
            block = self.block(a)
            return block == self.block(b) and not isinstance(block, int)
        return plain(self.extent(a)) == plain(self.extent(b))

    def put(self, value: Value, dims: Sequence[Dim], target: Sequence[Dim]) -> Value:
        """The value of a tensor with `dims` along the axes `target` (broadcast from the right)."""
        shift = len(target) - len(dims)
        renamed: dict[str, Axis] = {}
        moved: list[tuple[Axis, Axis]] = []
        for place, dim in enumerate(dims):
            if dim is None or dim.name not in value.type.axis_names:
                continue
            goal = target[place + shift]
            if goal is None:
                raise exc.ShapeMismatch(self.shape_text(dim), "1")
            if goal.name == dim.name:
                continue
            same = self.root(goal) is self.root(dim)
            plain_axes = goal.kind != "block" and dim.kind != "block"
            if same or plain_axes:
                renamed[dim.name] = goal
            else:
                moved.append((dim, goal))
        for dim, goal in moved:
            value = self._moved(value, dim, goal)
        return self.b.reaxis(value, renamed) if renamed else value

    def _moved(self, value: Value, dim: Axis, goal: Axis) -> Value:
        """Lane by lane from one axis to another, one of which is a loop's."""
        if goal.name in value.type.axis_names:
            raise exc.ShapeMismatch(self.shape_text(dim), self.shape_text(goal))
        return self.b.reshape(value, [dim], [goal])
