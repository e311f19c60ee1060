"""Small random programs with loops, branches and all joins of the tile IR, for tests of targets.

    case = random_programs.make(seed)        # a Case, as random_kernels.make gives
    args = case.make_args(0)
    want = case.expected(args)               # by the interpreter: any block sizes give the same
    ... run case.kernel on args some other way, blocks chosen for case.kernel.block_names ...
    case.check(args, want)

A grid step holds straight-line code of `random_kernels` and, nested up to twice: tile loops with
carried tiles and scalars, counted loops, branches, whiles, dots, scans, sorts, takes, reductions by
a function of their own, atomics, axes renamed, aliased, merged and split, sizes read from memory.
No result depends on a block size (sums of floats do in their last bits: compared within a
tolerance). Decisions are made of exact values only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sympy
import torch

from test.ir import random_kernels
from test.ir.random_kernels import Case
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Value
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    Gather,
    IndexExpr,
    Size,
    begin_symbol,
    block_symbol,
    contiguous_strides,
)

CONTROL = frozenset(("tile", "sequential", "if", "while"))
JOINS = frozenset(("dot", "scan", "custom", "sort", "take", "reaxis", "alias", "reshape"))
OTHERS = frozenset(("atomic", "bind", "index_axis", "own_blocks"))
FEATURES = random_kernels.FEATURES | CONTROL | JOINS | OTHERS
"""What a program may hold. A target that is not there yet can ask for less."""

_LARGEST = 20000
F32, I64, I32 = torch.float32, torch.int64, torch.int32
_COUNTED = (F32, I32, I64)


def make(seed: int, features: frozenset[str] = FEATURES) -> Case:
    """The random program number `seed`."""
    return _Maker(seed, features).make()


class _Maker(random_kernels._Maker):
    def __init__(self, seed: int, features: frozenset[str]) -> None:
        super().__init__(seed, features - {"two_phase"}, paired=False)
        self.inner: list[Axis] = []
        """Axes of the tile loops around this place."""
        self.counters: list[tuple[sympy.Symbol, int]] = []
        """Symbols that index by themselves, with how many values each has."""
        self.capacity: dict[str, int] = {}
        """Room for axes whose size is read from memory."""
        self.depth = 0
        self.names = 0

    # -- the whole ------------------------------------------------------------------------------

    def make(self) -> Case:
        self.case.special = self.chance(0.3, "special")
        self.declare_axes()
        grid: list[Axis] = list(self.grid)
        indexed = self.chance(0.3, "index_axis")
        self.own_blocks = indexed or self.chance(0.5, "own_blocks")
        if self.own_blocks:
            self.grid_blocks = [self.b.block(a.name) for a in self.grid]
        blocks: list[Size] = list(self.grid_blocks)
        if indexed:  # a position, as hl.grid gives it: no value has the axis
            extent = self.random.choice((1, 2, 3))
            index = self.b.axis("g", extent)
            grid.insert(0, index)
            blocks.insert(0, 1)
            self.counters.append((begin_symbol(index), extent))
        with self.b.grid(*grid, blocks=blocks if self.own_blocks else None):
            for _ in range(self.random.randint(2, 3)):
                self.input()
            self.body(self.random.randint(3, 6))
            for value in dict.fromkeys([self.values[-1], self.random.choice(self.values)]):
                self.output(value)
        self.case.kernel = self.b.build()
        names = self.case.kernel.block_names
        self.case.blocks = {n: self.case.blocks.get(n, 4) for n in names}
        return self.case

    def declare_axes(self) -> None:
        super().declare_axes()
        self.grid_blocks: list[Size] = [block_symbol(a.name) for a in self.grid]

    def count(self, axes: Sequence[Axis]) -> int:
        """Elements of a value over all tiles."""
        rooms = (self.capacity[a.name] if a.name in self.capacity else self.extent(a) for a in axes)
        return math.prod(rooms)

    def add(self, value: Value, leaf: bool = False) -> Value:
        if self.count(value.type.axes) > _LARGEST:
            return value
        return super().add(value, leaf)

    def reduction(self) -> Value | None:
        """Over any full axes, not only those of inputs."""
        inputs = self.full
        everywhere = (a for v in self.values for a in v.type.axes if a.kind == "full")
        self.full = list(dict.fromkeys(everywhere))
        result = super().reduction()
        self.full = inputs
        return result

    def body(self, count: int) -> None:
        for _ in range(count):
            if self.chance(0.45):
                self.statement()
            else:
                self.operation()

    def statement(self) -> None:
        rows: list[tuple[str, Callable[[], None]]] = [
            ("dot", self.dot),
            ("scan", self.scan),
            ("custom", self.custom),
            ("sort", self.sort),
            ("take", self.take),
            ("reaxis", self.reaxis),
            ("alias", self.alias),
            ("reshape", self.reshape),
            ("atomic", self.atomic),
        ]
        if self.depth < 2:
            control: list[tuple[str, Callable[[], None]]] = [
                ("tile", self.tile_loop),
                ("tile", self.tile_loop),
                ("sequential", self.counted_loop),
                ("if", self.branch),
                ("while", self.repeat),
            ]
            rows += control * 2
        fit = [row for feature, row in rows if feature in self.features]
        if fit:
            self.random.choice(fit)()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A region: what is made in it is not there outside."""
        values, leaves = list(self.values), list(self.leaves)
        self.depth += 1
        yield
        self.depth -= 1
        self.values, self.leaves = values, leaves

    # -- names, axes, buffers -------------------------------------------------------------------

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def extent(self, axis: Axis) -> int:
        return int(sympy.sympify(axis.size).subs(self.case.sizes))

    def room(self, axis: Axis) -> Size:
        return self.capacity.get(axis.name, axis.size)

    def new_axis(self, stem: str, extent: int, kind: str = "full") -> Axis:
        size: Size = extent
        if self.chance(0.4):
            size = self.b.size(self.name("s"))
            self.case.sizes[size] = extent
        return self.b.axis(self.name(stem), size, kind)

    def some_axes(self) -> list[Axis]:
        axes = [a for a in (*self.grid, *self.inner, *self.full) if self.chance(0.75)]
        return axes or [self.random.choice(self.grid)]

    def new_buffer(self, dtype: torch.dtype, shape: Sequence[Size], role: str = "in") -> Buffer:
        stem = {"in": "x", "out": "out", "inout": "y"}[role]
        strides = contiguous_strides(tuple(shape))
        return self.b.buffer(self.name(f"{stem}_"), dtype, shape, strides, role)  # type: ignore

    def read(self, dtype: torch.dtype, axes: Sequence[Axis], bound: int = 0) -> Value:
        """A plain load of a new input. `bound`: integers in [0, bound)."""
        buffer = self.new_buffer(dtype, [self.room(a) for a in axes])
        if bound:
            self.case.bounds[buffer.name] = bound
        return self.b.load(buffer, [Affine.of(a) for a in axes])

    def input(self) -> None:
        if not self.capacity and not self.inner:
            super().input()
            return
        axes = self.some_axes()
        dtype = self.random.choice(self.dtypes)
        if self.counters and self.chance(0.5):  # x[.., i, ..]
            symbol, count = self.random.choice(self.counters)
            place = self.random.randint(0, len(axes))
            shape: list[Size] = [self.room(a) for a in axes]
            index: list[IndexExpr] = [Affine.of(a) for a in axes]
            shape.insert(place, count)
            index.insert(place, Affine((), symbol))
            self.add(self.b.load(self.new_buffer(dtype, shape), index), leaf=True)
        else:
            self.add(self.read(dtype, axes), leaf=True)

    def output(self, value: Value) -> None:
        own = [a for a in value.type.axes if a not in (*self.grid, *self.inner)]
        axes = [*self.grid, *self.inner, *own]
        if self.count(axes) > 3 * _LARGEST:
            return
        value = self.follow([value], self.b.expand(value, axes))
        shape: list[Size] = [n for _, n in self.counters] + [self.room(a) for a in axes]
        index: list[IndexExpr] = [Affine((), symbol) for symbol, _ in self.counters]
        buffer = self.new_buffer(value.type.dtype, shape, "out")
        mask = self.mask(self.random.choice(axes)) if self.chance(0.2, "mask") else None
        self.b.store(buffer, [*index, *(Affine.of(a) for a in axes)], value, (), mask)
        if value in self.inexact:
            self.case.inexact.add(buffer.name)

    def zero(self, dtype: torch.dtype, axes: Sequence[Axis], number: float = 0) -> Value:
        number = float(number) if dtype.is_floating_point else int(number)
        return self.b.expand(self.b.const(number, dtype), axes)

    def of_full(self, kinds: Sequence[torch.dtype], exact: bool = False) -> Value | None:
        """A value with a full axis of at least one position."""
        fit = [
            v
            for v in self.values
            if v.type.dtype in kinds
            and any(a.kind == "full" and self.extent(a) for a in v.type.axes)
            and not (exact and v in self.inexact)
        ]
        return self.random.choice(fit) if fit else None

    def a_full_axis(self, value: Value) -> Axis:
        return self.random.choice(
            [a for a in value.type.axes if a.kind == "full" and self.extent(a)]
        )

    # -- control --------------------------------------------------------------------------------

    def block_of(self, axis: Axis) -> Size:
        """The block size of an inner loop: its own, a number, or that of another axis."""
        kind = self.random.random()
        if kind < 0.3:
            return self.random.choice((1, 4, 8))
        if kind < 0.5:
            return self.random.choice(self.grid_blocks)
        self.case.blocks[axis.name] = self.random.choice((1, 2, 3, 8))
        return self.b.block(axis.name)

    def tile_loop(self) -> None:
        """Carried accumulators over the tiles of one or two axes."""
        axes = []
        for _ in range(2 if self.chance(0.25) else 1):
            sizes = (1, 3, 4) if self.depth or len(self.grid) > 1 else (1, 3, 4, 7, 8, 13, 20)
            extent = 0 if self.chance(0.05) else self.random.choice(sizes)
            if self.chance(0.2, "bind"):  # the size is read from memory
                length = self.read(I64, [], bound=extent + 1)
                axis = self.b.axis(self.name("j"), self.b.bind(length, self.name("len")))
                self.capacity[axis.name] = extent
            else:
                axis = self.new_axis("j", extent, "block")
            axes.append(axis)
        blocks = [self.block_of(a) for a in axes] if self.own_blocks else None
        for axis in axes if blocks is None else ():
            self.case.blocks[axis.name] = self.random.choice((1, 2, 3, 8))
        plans = [self.accumulator() for _ in range(self.random.randint(0, 2))]
        with self.b.tile_loop(axes, [start for start, _ in plans], blocks) as loop, self.inside():
            self.inner += axes
            self.input()
            self.body(self.random.randint(1, 3))
            if not plans or self.chance(0.3):
                self.output(self.values[-1])
            new = [
                self.accumulated(fn, arg, axes)
                for (_, fn), arg in zip(plans, loop.args, strict=True)
            ]
            loop.finish(new)
            self.inner = self.inner[: -len(axes)]
        for value, result in zip(new, loop.results, strict=True):
            self.add(self.follow([value], result))

    def accumulator(self) -> tuple[Value, str]:
        """Where an accumulator starts, and how it goes on."""
        fn = self.random.choice(("sum", "max", "min", "dot", "dot"))
        if fn == "dot" and "dot" not in self.features:
            fn = "sum"
        axes = [a for a in (*self.grid, *self.inner, *self.full) if self.chance(0.6)]
        dtype = F32 if fn == "dot" else self.random.choice((F32, I32, I64))
        if dtype not in self.dtypes:
            dtype = F32
        return self.zero(dtype, axes), fn

    def accumulated(self, fn: str, arg: Value, axes: Sequence[Axis]) -> Value:
        """The accumulator after one more tile."""
        kept, b = list(arg.type.axes), self.b
        if fn == "dot":
            return self.accumulated_dot(arg, axes)
        fit = [
            v
            for v in self.values
            if v.type.dtype is arg.type.dtype
            and set(v.type.axes) & set(axes)
            and set(v.type.axes) <= {*kept, *axes}
        ]
        value, exact = None, True
        if fit and self.chance(0.7):
            value = self.random.choice(fit)
            exact = fn != "sum" or value in self.leaves or value.type.dtype is not F32
        if value is None:
            own = [a for a in kept if self.chance(0.5)]
            value = self.read(arg.type.dtype, [*own, *axes])
        part = b.reduce(fn, b.expand(value, axes), axes)
        join = {"sum": "add", "max": "maximum", "min": "minimum"}[fn]
        return self.follow([value, arg], b.pointwise(join, arg, part), not exact)

    def accumulated_dot(self, arg: Value, axes: Sequence[Axis]) -> Value:
        *others, k = axes
        left, right = [], []
        for axis in arg.type.axes:
            sides = self.random.choice(((left,), (right,), (left, right)))
            for side in sides:
                side.append(axis)
        dtype = self.random.choice((F32, torch.bfloat16, torch.float16))
        dtype = dtype if dtype in self.dtypes else F32
        a, b = self.read(dtype, [*left, *others, k]), self.read(dtype, [*right, k])
        if not others:
            return self.b.dot(a, b, k, F32, arg)
        part = self.b.reduce("sum", self.b.dot(a, b, k, F32), others)
        return self.b.pointwise("add", arg, part)

    def counted_loop(self) -> None:
        """A counter in index maps; carried tiles that each turn changes."""
        count, step = self.random.choice((0, 1, 2, 3, 5)), self.random.choice((1, 1, 2))
        end: Size = count
        if self.chance(0.3, "bind"):
            end = self.b.bind(self.read(I64, [], bound=count + 1), self.name("end"))
        fit = [v for v in self.values if v.type.dtype in _COUNTED]
        carried = self.random.sample(fit, min(len(fit), self.random.randint(0, 2)))
        carried += [self.b.const(0, I64)] if self.chance(0.3) else []
        start = self.random.randint(0, 1)
        with (
            self.b.sequential_loop(self.name("i"), start, end, step, carried) as loop,
            self.inside(),
        ):
            self.counters.append((loop.symbol, max(count, 1)))
            for value, arg in zip(carried, loop.args, strict=True):
                self.add(self.follow([value], arg))
            new = [self.turned(loop.symbol, arg) for arg in loop.args]
            self.body(self.random.randint(0, 2))
            if not carried or self.chance(0.2):
                self.output(self.values[-1])
            loop.finish(new)
            self.counters.pop()
        for value, result in zip(new, loop.results, strict=True):
            self.add(self.follow([value], result))

    def turned(self, symbol: sympy.Symbol, arg: Value) -> Value:
        """A carried value after a turn: joined with x[.., i] or with the counter."""
        fn, dtype = self.random.choice(("add", "sub", "maximum", "minimum")), arg.type.dtype
        axes = list(arg.type.axes)
        if dtype is I64 and self.chance(0.4):
            other = self.b.size_value(symbol)
        else:
            index: list[IndexExpr] = [*(Affine.of(a) for a in axes), Affine((), symbol)]
            count = self.counters[-1][1]
            buffer = self.new_buffer(dtype, [*(self.room(a) for a in axes), count])
            other = self.b.load(buffer, index)
        return self.follow([arg], self.b.pointwise(fn, arg, other))

    def flag(self) -> Value:
        """A rank-0 bool that no block size changes."""
        if self.counters and self.chance(0.5):
            value = self.b.size_value(self.random.choice(self.counters)[0])
        else:
            value = self.read(I64, [], bound=3)
        limit = self.b.const(self.random.randint(0, 2), I64)
        return self.b.pointwise(self.random.choice(("lt", "eq", "ge")), value, limit)

    def branch(self) -> None:
        fit = [v for v in self.values if v.type.dtype in _COUNTED]
        merged = self.random.sample(fit, min(len(fit), self.random.randint(0, 2)))
        branch, results = self.b.if_(self.flag()), []
        for arm in (
            (branch.then, branch.otherwise) if merged or self.chance(0.6) else (branch.then,)
        ):
            with arm(), self.inside():
                self.body(self.random.randint(1, 3))
                if not merged or self.chance(0.2):
                    self.output(self.values[-1])
                branch.finish([self.like(v) for v in merged])
                results.append(branch._current.yielded)  # type: ignore[union-attr]
        for place, result in enumerate(branch.results):
            self.add(self.follow([arm[place] for arm in results], result))

    def like(self, value: Value) -> Value:
        """Some value of the same type that is there now."""
        fit = [v for v in self.values if v.type == value.type]
        chosen = self.random.choice(fit[-3:])
        number = 3.0 if value.type.dtype is F32 else 3
        if self.chance(0.3):
            return self.zero(value.type.dtype, value.type.axes, number)
        return chosen

    def repeat(self) -> None:
        """A while that ends: a counter up to a number from memory, and a tile that follows."""
        limit, zero, one = self.read(I64, [], bound=4), self.b.const(0, I64), self.b.const(1, I64)
        fit = [v for v in self.values if v.type.dtype in (F32, I32)]
        carried = [self.random.choice(fit)] if fit else []
        loop = self.b.while_([zero, *carried])
        with loop.condition():
            loop.finish([self.b.pointwise("lt", loop.args[0], limit)])
        with loop.body(), self.inside():
            count, *rest = loop.args
            for value, arg in zip(carried, rest, strict=True):
                self.add(self.follow([value], arg))
            self.body(self.random.randint(0, 2))
            new = []
            for arg in rest:
                other = self.b.cast(count, arg.type.dtype)
                fn = self.random.choice(("add", "sub", "minimum"))
                new.append(self.follow([arg], self.b.pointwise(fn, arg, other)))
            loop.finish([self.b.pointwise("add", count, one), *new])
        for value, result in zip([zero, *carried], loop.results, strict=True):
            self.add(self.follow([value], result))

    # -- joins ----------------------------------------------------------------------------------

    def dot(self) -> None:
        """Over a full axis; what both sides have besides is a batch."""
        k = self.random.choice(self.full) if self.full and self.chance(0.5) else None
        if k is None:
            k = self.new_axis("k", self.random.choice((1, 2, 5, 8, 16, 17)))
        row, column = [a for a in self.grid if self.chance(0.8)], [*self.inner]
        column += [self.new_axis("n", self.random.choice((1, 3, 4, 16)))]
        column += [a for a in row if self.chance(0.2)]
        kinds = (F32, F32, torch.float16, torch.bfloat16, torch.int8, torch.float64)
        dtype = self.random.choice([d for d in kinds if d in (*self.dtypes, torch.float64)])
        fit = [v for v in self.values if k in v.type.axes and v.type.dtype is dtype]
        left = self.random.choice(fit) if fit else self.read(dtype, [*row, k])
        fresh = left not in self.values
        right = self.read(dtype, [*column, k])
        acc = {torch.int8: I32, torch.float64: torch.float64}.get(dtype, F32)
        value = self.b.dot(left, right, k, acc)
        if acc is torch.float64:
            value = self.follow([value], self.b.cast(value, F32))
        exact = fresh or left in self.leaves or acc is I32
        self.add(self.follow([left], value, inexact=not exact))

    def scan(self) -> None:
        value = self.of_full(_COUNTED)
        if value is None:
            return
        fn = self.random.choice(("sum", "max", "min"))
        reverse, exclusive = self.chance(0.3), self.chance(0.3)
        result = self.b.scan(fn, value, self.a_full_axis(value), reverse, exclusive)
        inexact = fn == "sum" and value.type.dtype is F32 and value not in self.leaves
        self.add(self.follow([value], result, inexact))

    def custom(self) -> None:
        """The extreme with its key, or a linear recurrence."""
        value = self.of_full((F32, I64), exact=True)
        if value is None:
            return
        axis = self.a_full_axis(value)
        if self.chance(0.5):
            values = [value, self.b.iota(axis)]
            low = float("-inf") if value.type.dtype is F32 else -(2**63)
            if self.chance(0.5):
                results = self.b.custom_reduce(values, [axis], [low, -1], _last_extreme)
            else:
                results = self.b.custom_scan(values, axis, _last_extreme, self.chance(0.5))
        else:
            if value.type.dtype is not F32:
                return
            shrunk = self.b.pointwise("minimum", value, self.b.const(1.0, F32))
            shrunk = self.b.pointwise("maximum", shrunk, self.b.const(-1.0, F32))
            results = self.b.custom_scan([shrunk, value], axis, _recurrence, self.chance(0.3))
            for result in results:
                self.inexact.add(result)
        for result in results:
            self.add(result)

    def sort(self) -> None:
        value = self.of_full(_COUNTED, exact=True)
        if value is None:
            return
        axis, k, out = self.a_full_axis(value), None, None
        if self.chance(0.4):
            k = self.random.randint(1, min(self.extent(axis), 3))
            out = self.b.axis(self.name("t"), k, "full")
        for result in self.b.sort(value, axis, self.chance(0.5), k, out):
            self.add(result)

    def take(self) -> None:
        value = self.of_full(_COUNTED)
        if value is None:
            return
        axis = self.a_full_axis(value)
        if self.chance(0.3):  # by an index with the axis itself
            axes = [a for a in value.type.axes if a == axis or self.chance(0.5)]
        else:
            axes = [a for a in (*self.grid, *self.inner) if self.chance(0.5)]
            axes += [self.new_axis("q", self.random.choice((1, 2, 5)))] if self.chance(0.5) else []
        if self.capacity:
            axes = [a for a in axes if a.name not in self.capacity]
        index = self.read(I64, axes, bound=self.extent(axis))
        self.add(self.follow([value], self.b.take(value, index, axis)))

    # -- axes -----------------------------------------------------------------------------------

    def reaxis(self) -> None:
        """x[.., k] against x[.., k'], the new axis reduced."""
        value = self.of_full(_COUNTED, exact=True)
        if value is None:
            return
        axis = self.a_full_axis(value)
        other = self.b.axis(self.name("r"), axis.size, "full")
        renamed = self.b.reaxis(value, {axis: other})
        smaller = self.b.cast(self.b.pointwise("lt", renamed, value), I64)
        self.add(self.b.reduce("sum", smaller, [other]))
        if self.chance(0.3):
            self.add(self.follow([value], renamed))

    def alias(self) -> None:
        """A tile against itself: the lane with the same position is picked out again."""
        axis = self.random.choice(self.grid)
        fit = [v for v in self.values if axis in v.type.axes and v.type.dtype in _COUNTED]
        if not fit:
            return
        value, other = self.random.choice(fit), self.b.alias(axis)
        second = self.b.reaxis(value, {axis: other})
        if self.chance(0.5):
            same = self.b.pointwise("eq", self.b.iota(axis), self.b.iota(other))
            number = float("-inf") if value.type.dtype is F32 else torch.iinfo(value.type.dtype).min
            picked = self.b.pointwise(
                "where", same, second, self.b.const(number, second.type.dtype)
            )
            result = self.b.reduce("max", picked, [other])
        else:
            begin = self.b.size_value(begin_symbol(axis))
            place = self.b.pointwise("sub", self.b.iota(axis), begin)
            result = self.b.take(second, place, other)
        self.add(self.follow([value], result))

    def reshape(self) -> None:
        """Two axes as one and back; over a block axis, the lanes beyond the tile come and go."""
        fit = [
            v
            for v in self.values
            if v.type.dtype in _COUNTED
            and len(v.type.axes) > 1
            and all(a.kind == "full" or a in self.grid for a in v.type.axes)
        ]
        if not fit:
            return
        value = self.random.choice(fit)
        source = self.random.sample(value.type.axes, 2)
        sizes = [self.b_count(a) for a in source]
        flat = self.b.axis(self.name("f"), sizes[0] * sizes[1], "full")
        merged = self.b.reshape(value, source, [flat])
        if value.type.dtype is F32:
            merged = self.b.pointwise("neg", merged)
        self.add(self.follow([value], self.b.reshape(merged, [flat], source)))
        if all(a.kind == "full" for a in source) and self.chance(0.5):
            self.add(self.follow([value], merged))

    def b_count(self, axis: Axis) -> Size:
        if axis.kind == "full":
            return axis.size
        loop = [a.name for a in self.grid].index(axis.name)
        return self.grid_blocks[loop]

    # -- memory ---------------------------------------------------------------------------------

    def atomic(self) -> None:
        """Adds and extremes of exact numbers, into places that many lanes share."""
        fit = [v for v in self.leaves if v.type.dtype in _COUNTED and v.type.axes]
        if not fit:
            return
        # A lane for each position: how often a step runs depends on the blocks.
        value = self.b.expand(self.random.choice(fit), [*self.grid, *self.inner])
        if self.count(value.type.axes) > 3 * _LARGEST:
            return
        axes = [a for a in value.type.axes if self.chance(0.5)]
        fn = self.random.choice(("add", "max", "min"))
        if self.chance(0.5) and "gather" in self.features:
            buffer = self.new_buffer(value.type.dtype, [5, *(self.room(a) for a in axes)], "inout")
            places = self.read(I64, [a for a in value.type.axes if self.chance(0.5)], bound=5)
            index: list[IndexExpr] = [Gather(0), *(Affine.of(a) for a in axes)]
            self.b.atomic(fn, buffer, index, value, [places], checked=self.chance(0.5))
            return
        buffer = self.new_buffer(value.type.dtype, [self.room(a) for a in axes], "inout")
        mask = self.mask(self.random.choice(value.type.axes)) if self.chance(0.3, "mask") else None
        self.b.atomic(fn, buffer, [Affine.of(a) for a in axes], value, (), mask)


def _last_extreme(b: Builder, left: list[Value], right: list[Value]) -> list[Value]:
    """The greater key with its position; of equal ones the later. NaN counts as the greatest."""
    (x, i), (y, j) = left, right
    greater, same = b.pointwise("gt", y, x), b.pointwise("eq", y, x)
    if x.type.dtype is F32:
        x_nan, y_nan = b.pointwise("isnan", x), b.pointwise("isnan", y)
        first = b.pointwise("and", y_nan, b.pointwise("not", x_nan))
        greater = b.pointwise("or", greater, first)
        same = b.pointwise("or", same, b.pointwise("and", x_nan, y_nan))
    place = b.pointwise("where", same, b.pointwise("maximum", i, j), i)
    return [b.pointwise("where", greater, y, x), b.pointwise("where", greater, j, place)]


def _recurrence(b: Builder, left: list[Value], right: list[Value]) -> list[Value]:
    """h = a * h + x as pairs (a, x)."""
    (a, x), (c, y) = left, right
    carried = b.pointwise("add", b.pointwise("mul", c, x), y)
    return [b.pointwise("mul", a, c), carried]
