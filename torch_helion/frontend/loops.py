"""`for` on the device: tiles, counters, jagged tiles, loops that are unrolled.

In: the statement, the arguments of the loop's function. Out: grid loops at the top, tile and
sequential loops inside; names for tiles and counters.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.config_spec import BlockSizeSpec
from torch_helion.frontend import carried
from torch_helion.frontend.axes import positive
from torch_helion.frontend.liveness import loop_entry
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.source import static_value
from torch_helion.frontend.statements import Names, Statements
from torch_helion.frontend.values import (
    HostTensor,
    Number,
    Tensor,
    Tile,
    describe,
    holds,
    integer,
    is_number,
)
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Axis, Size, begin_symbol
from torch_helion.language import loops as language

_TYPICAL = 4096
_UNROLLED = 100_000


@dataclasses.dataclass
class Facts:
    """What a config may choose about one loop of the program."""

    dims: int
    inner: bool
    tiles: Sequence[Tile] = ()
    """of hl.tile"""
    constant: bool = False
    """whether its bounds are constants"""

    @property
    def flattens(self) -> bool:
        """Whether the product of its ranges may be gone through as one range."""
        plain_tiles = all(t.begin == 0 and not t.uses - {"block_size"} for t in self.tiles)
        return len(self.tiles) > 1 and plain_tiles


@dataclasses.dataclass
class Ranges:
    """The ranges of one loop."""

    begins: list[Size]
    ends: list[Size]
    blocks: list[Any]
    several: bool
    """whether a tuple is given in each step"""

    def extents(self) -> list[Size]:
        return [plain(e - b) for b, e in zip(self.begins, self.ends, strict=True)]


class Loops(Statements):
    """Executes `for` statements."""

    def __init__(self, program: Any) -> None:
        super().__init__(program)
        self.specs: dict[str, BlockSizeSpec] = {}
        self.registered: dict[str, BlockSizeSpec] = {}
        """Block sizes that the host part chose the bounds of."""
        """block sizes that a config chooses, in order"""
        self.loops: dict[int, Facts] = {}
        """facts of each loop, by the identity of its statement, in program order"""
        self._block_of_site: dict[tuple[int, int], Size] = {}

    # -- which loop -------------------------------------------------------------------------------

    def for_(self, node: ast.For, after: Names) -> None:
        call = node.iter
        fn = self._loop_function(call)
        if fn in (language.tile, language.grid, range, language.jagged_tile):
            if node.orelse:
                raise exc.DeviceLoopElseBlock(getattr(fn, "__name__", "range"))
            assert isinstance(call, ast.Call)
            restore, count = self.p.checkpoint(), len(self.p.b.ops)
            args = [self.eval(a) for a in call.args]
            kwargs = {k.arg or "": self.eval(k.value) for k in call.keywords}
            data = len(self.p.b.ops) > count or holds(args, (HostTensor,))
            if data and not self.p.on_device:  # the range depends on data: one step of a grid
                restore()
                with self.p.b.grid(), self.p.region():
                    self.for_(node, after)
                return
            try:
                self._device_loop(fn, node, args, kwargs, after)
            except exc.Base as error:
                if error.location is None:
                    error.at(self.scope.source.at(call))
                raise
            return
        if node.orelse:
            raise exc.DeviceLoopElseBlock("unrolled")
        if fn is language.static_range:
            items: Any = self._static_range(call)
        else:
            items = self._iterated(node)
        self._unroll(node, items, after)

    def _loop_function(self, call: ast.expr) -> Any:
        if not isinstance(call, ast.Call):
            return None
        fn = call.func
        if isinstance(fn, ast.Name | ast.Attribute):
            found = static_value(fn, self.scope.space)
            if isinstance(fn, ast.Name) and self.scope.knows(fn.id):
                return None
            return range if isinstance(fn, ast.Name) and fn.id == "range" else found
        return None

    def _device_loop(
        self, fn: Any, node: ast.For, args: list[Any], kwargs: dict[str, Any], after: Names
    ) -> None:
        if fn is language.jagged_tile:
            self._jagged(node, args, after)
        elif fn is language.tile:
            self._tiles(node, args, kwargs, after)
        else:
            self._counters(node, args, kwargs, after)

    def _iterated(self, node: ast.For) -> list[Any]:
        try:
            return self.iterate(self.eval(node.iter))
        except exc.Base as error:
            if error.location is None:
                error.at(self.scope.source.at(node.iter))
            raise

    def _static_range(self, call: ast.expr) -> range:
        assert isinstance(call, ast.Call)
        args = [self.eval(a) for a in call.args]
        args += [self.eval(k.value) for k in call.keywords]
        if not all(isinstance(a, int) for a in args):
            raise exc.InvalidDeviceForLoop("static_range of a bound that is no constant").at(
                self.scope.source.at(call)
            )
        return range(*args)

    def _unroll(self, node: ast.For, items: Sequence[Any], after: Names) -> None:
        if len(items) > _UNROLLED:
            raise exc.InvalidDeviceForLoop(f"an unrolled loop of {len(items)} rounds")
        entry = loop_entry(node, after)
        for item in items:
            self.bind_target(node.target, item)
            self.block(node.body, entry)

    # -- ranges -----------------------------------------------------------------------------------

    def ranges(self, args: Sequence[Any], blocks: Any, what: str) -> Ranges:
        """The bounds and block sizes (steps) of a call."""
        if not args or len(args) > 2:
            raise exc.TypeInferenceError(f"hl.{what} takes one or two bounds, got {len(args)}")
        first = args[0]
        if any(isinstance(a, Tile) for a in args):
            raise exc.TileOfTile()
        several = isinstance(first, list | tuple)
        bounds = [list(a) if several and isinstance(a, list | tuple) else [a] for a in args]
        if len(bounds) == 1 or args[1] is None:
            bounds = [[0] * len(bounds[0]), bounds[0]]
        if len(bounds[0]) != len(bounds[1]):
            counts = f"{len(bounds[0])} begins, {len(bounds[1])} ends"
            raise exc.TypeInferenceError(f"hl.{what}: {counts}")
        begins, ends = ([self._bound_of(x) for x in xs] for xs in bounds)
        for begin, end in zip(begins, ends, strict=True):
            if isinstance(begin, int) and isinstance(end, int) and begin > end and what == "tile":
                raise exc.InvalidTileRange(begin, end)
        listed = list(blocks) if isinstance(blocks, list | tuple) else [blocks] * len(begins)
        if len(listed) != len(begins):
            raise exc.TypeInferenceError(
                f"hl.{what}: {len(listed)} block sizes for {len(begins)} ranges"
            )
        return Ranges(begins, ends, listed, several)

    def _bound_of(self, x: Any) -> Size:
        if isinstance(x, Tile):
            raise exc.TileOfTile()
        if isinstance(x, HostTensor) and x.tensor.dim() == 0:
            x = self._read(x)
        if isinstance(x, Tensor):
            x = self.p.number_of(Tensor(x.value, tuple(d for d in x.dims if d is not None)))
        if not is_number(x) or isinstance(x, float | bool):
            raise exc.TypeInferenceError(f"a bound of a loop must be an integer, got {describe(x)}")
        return self.p.size(x)

    def hint(self, size: Size) -> int:
        """A typical value of a size."""
        if isinstance(size, int):
            return size
        numbers = {s: self.p.sizes.hints.get(s, _TYPICAL) for s in size.free_symbols}
        for s in size.free_symbols:
            if s.name.startswith(("begin_", "id_")):
                numbers[s] = 0
            elif s.name.startswith("block_"):
                name = s.name.removeprefix("block_")
                spec = self.specs.get(name, self.registered.get(name))
                numbers[s] = spec.largest if spec else _TYPICAL
        value = size.subs(numbers)
        return int(value) if value.is_Integer and value > 0 else _TYPICAL

    def _block(self, node: ast.For, number: int, given: Any, name: str, extent: Size) -> Size:
        """The block size of one axis of a tile loop."""
        if given is not None:
            return self.p.size(given)
        site = (id(node), number)
        if site not in self._block_of_site:
            unique, n = name, 0
            while unique in self.specs:
                n += 1
                unique = f"{name}{n}"
            self._block_of_site[site] = self.p.b.block(unique)
            self.specs[unique] = BlockSizeSpec(unique, max(self.hint(extent), 1))
        return self._block_of_site[site]

    # -- tiles ------------------------------------------------------------------------------------

    def _tiles(self, node: ast.For, args: list[Any], kwargs: dict[str, Any], after: Names) -> None:
        blocks = kwargs.get("block_size", args.pop() if len(args) == 3 else None)
        ranges = self.ranges(args, blocks, "tile")
        names = self._names(node, len(ranges.begins), "tile")
        extents = [positive(n) for n in ranges.extents()]
        sizes = [
            self._block(node, i, block, name, n)
            for i, (block, name, n) in enumerate(zip(ranges.blocks, names, extents, strict=True))
        ]
        self._check_nested(ranges.blocks, sizes)
        axes = [
            self.p.axes.loop(name, n, block)
            for name, n, block in zip(names, extents, sizes, strict=True)
        ]
        tiles = [
            Tile(axis, begin, block, end)
            for axis, begin, block, end in zip(axes, ranges.begins, sizes, ranges.ends, strict=True)
        ]
        self.p.ranges.update((t.axis.name, (t.begin, t.end)) for t in tiles)
        target = tuple(tiles) if ranges.several else tiles[0]
        self._note(node, ranges, tiles)
        self._loop_over(node, axes, sizes, target, after)

    def _note(self, node: ast.For, ranges: Ranges, tiles: Sequence[Tile] = ()) -> None:
        bounds = (*ranges.begins, *ranges.ends)
        constant = all(isinstance(n, int) for n in bounds)
        self.loops[id(node)] = Facts(len(ranges.begins), self.p.on_device, tiles, constant)

    def _check_nested(self, given: Sequence[Any], sizes: Sequence[Size]) -> None:
        registered = [s for g, s in zip(given, sizes, strict=True) if isinstance(g, Number)]
        if len(set(registered)) != len(registered):
            raise exc.NestedDeviceLoopsConflict()

    def _names(self, node: ast.For, count: int, default: str) -> list[str]:
        target = node.target
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        names = [t.id if isinstance(t, ast.Name) else default for t in parts]
        clean = [n.strip("_") or default for n in names]
        return clean if len(clean) == count else [f"{clean[0]}_{i}" for i in range(count)]

    def _loop_over(
        self, node: ast.For, axes: list[Axis], blocks: list[Size], target: Any, after: Names
    ) -> None:
        """Trace the body once, in a grid loop or in a tile loop."""
        p = self.p
        if not p.on_device:
            with p.b.grid(*axes, blocks=blocks), p.region():
                self._body(node, axes, target, after)
            return
        names = self.carried_names(node, after)

        def run(specs: Sequence[carried.Spec], initial: list[Value]) -> list[Value]:
            with p.b.tile_loop(axes, initial, blocks) as loop, p.region():
                self._bind(names, specs, loop.args)
                self._body(node, axes, target, after)
                loop.finish(self._carried(names, specs))
            return loop.results

        self.loop(node.body, names, run)

    def _body(self, node: ast.For, axes: list[Axis], target: Any, after: Names) -> None:
        self.p.axes.open += axes
        try:
            self.bind_target(node.target, target)
            self.block(node.body, loop_entry(node, after))
        finally:
            del self.p.axes.open[len(self.p.axes.open) - len(axes) :]

    # -- counters ---------------------------------------------------------------------------------

    def _counters(
        self, node: ast.For, args: list[Any], kwargs: dict[str, Any], after: Names
    ) -> None:
        step = kwargs.get("step", args.pop() if len(args) == 3 else None)
        ranges = self.ranges(args, step, "grid")
        steps = [1 if s is None else self.p.size(s) for s in ranges.blocks]
        if any(isinstance(s, int) and s == 0 for s in steps):
            raise exc.InvalidDeviceForLoop("a range with step 0")
        if any(isinstance(s, int) and s < 0 for s in steps):
            self._backwards(node, ranges, steps, after)
            return
        self._note(node, ranges)
        if not self.p.on_device:
            self._grid(node, ranges, steps, after)
            return
        self._sequential(node, ranges, steps, [], after)

    def _backwards(self, node: ast.For, ranges: Ranges, steps: Sequence[Any], after: Names) -> None:
        constant = all(isinstance(n, int) for n in (*ranges.begins, *ranges.ends, *steps))
        if not constant or len(steps) != 1:
            raise exc.InvalidDeviceForLoop("a range that counts down to what is no constant")
        self._unroll(node, range(ranges.begins[0], ranges.ends[0], steps[0]), after)  # type: ignore[arg-type]

    def _grid(self, node: ast.For, ranges: Ranges, steps: Sequence[Size], after: Names) -> None:
        names = self._names(node, len(steps), "i")
        counts = [
            positive(n if s == 1 else plain(sympy.ceiling(sympy.sympify(n) / s)))
            for n, s in zip(ranges.extents(), steps, strict=True)
        ]
        axes = [self.p.axes.loop(n, c, 1) for n, c in zip(names, counts, strict=True)]
        numbers = [
            integer(plain(b + s * begin_symbol(a)))
            for a, b, s in zip(axes, ranges.begins, steps, strict=True)
        ]
        target = tuple(numbers) if ranges.several else numbers[0]
        self._loop_over(node, axes, [1] * len(axes), target, after)

    def _sequential(
        self,
        node: ast.For,
        ranges: Ranges,
        steps: Sequence[Size],
        outer: list[Any],
        after: Names,
    ) -> None:
        """Loops inside one another for the counters of one `for`."""
        p, d = self.p, len(outer)
        names = self.carried_names(node, after)
        target = self._names(node, len(steps), "i")[d]

        def run(specs: Sequence[carried.Spec], initial: list[Value]) -> list[Value]:
            begin, end = ranges.begins[d], ranges.ends[d]
            with (
                p.b.sequential_loop(p.sizes.name(target), begin, end, steps[d], initial) as loop,
                p.region(),
            ):
                self._bind(names, specs, loop.args)
                counters = [*outer, Number(int, size=loop.symbol)]
                if len(counters) < len(steps):
                    self._sequential(node, ranges, steps, counters, after)
                else:
                    p.counters += [loop.symbol]
                    given = tuple(counters) if ranges.several else counters[0]
                    self.bind_target(node.target, given)
                    self.block(node.body, loop_entry(node, after))
                    p.counters.pop()
                loop.finish(self._carried(names, specs))
            return loop.results

        self.loop(node.body, names, run)

    # -- jagged -----------------------------------------------------------------------------------

    def _jagged(self, node: ast.For, args: list[Any], after: Names) -> None:
        if not self.p.on_device:
            raise exc.InvalidJaggedTileUsage("it cannot be the outermost loop")
        if len(args) != 1 or not isinstance(args[0], Tensor):
            raise exc.InvalidJaggedTileUsage("its parent must be a tensor of the device")
        parent, p = args[0], self.p
        if parent.dtype.is_floating_point or parent.dtype is torch.bool or not parent.rank:
            raise exc.InvalidJaggedTileUsage("its parent must hold an integer for each lane")
        if any(d is None or d.kind != "block" for d in parent.dims):
            raise exc.InvalidJaggedTileUsage("its parent's dimensions must be tiles")
        axes = [d for d in parent.dims if d is not None]
        lengths = p.b.cast(p.b.expand(parent.value, axes), torch.int64)
        longest = p.b.pointwise(
            "maximum", p.b.reduce("max", lengths, axes), p.constant(0, torch.int64)
        )
        extent = p.b.bind(longest, p.sizes.name("longest"))
        (name,) = self._names(node, 1, "tile")
        block = self._block(node, 0, None, name, _TYPICAL)
        axis = p.axes.loop(name, extent, block)
        p.b.jagged[axis.name] = lambda: p.b.pointwise("lt", p.b.iota(axis), lengths)
        tile = Tile(axis, 0, block, extent)
        self._note(node, Ranges([0], [extent], [block], False), [tile])
        self._loop_over(node, [axis], [block], tile, after)
