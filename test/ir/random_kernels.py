"""Small random kernels that obey every rule of the tile IR, for tests of whatever reads kernels.

    case = random_kernels.make(seed)
    args = case.make_args(0)                 # one tensor for each of case.kernel.arguments
    want = case.expected(args)               # by the interpreter, on copies
    ... run case.kernel on args some other way ...
    case.check(args, want)                   # outputs only; bit for bit where that can be asked

A kernel has 1 to 3 axes, ragged sizes (now and then 0 or 1), odd layouts, gathers, masks, half
types, reductions and, sometimes, a second phase that finishes partial sums. Functions whose last
bit may differ between targets never feed a decision (a comparison, floor, an integer), so that no
rounding error grows into a different answer; outputs that depend on them are compared within a
tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy
import torch

from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    Gather,
    IndexExpr,
    Size,
    block_symbol,
    contiguous_strides,
)

_NUMERIC = ("half", "int64", "int32", "small_int", "special")
FEATURES = frozenset((*_NUMERIC, "gather", "mask", "reduce", "rng", "two_phase", "layout"))
"""What a kernel may hold. A target that is not there yet can ask for less."""

_SMOOTH = ("sigmoid", "tanh", "erf", "exp", "log", "sqrt", "rsqrt", "div", "sin", "atan")
_SHIFTS = ("shl", "shr")
_DIVISIONS = ("truncdiv", "floordiv", "remainder", "fmod")
_TABLE_ROWS = 6
_SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 20)
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 2e-4, torch.float64: 2e-4}


@dataclass
class Case:
    """One kernel with everything that is needed to run and judge it."""

    seed: int
    kernel: Kernel
    sizes: dict[sympy.Symbol, int]
    blocks: dict[str, int]
    inexact: set[str] = field(default_factory=set)
    """Outputs that are compared within a tolerance."""
    special: bool = False
    bounds: dict[str, int] = field(default_factory=dict)
    """Buffers of indices: values in [0, bound)."""

    def make_args(self, seed: int = 0) -> list[torch.Tensor]:
        """Fresh tensors. Outputs hold a pattern: what a kernel must not touch can be told."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + seed)
        return [self._tensor(b, generator) for b in self.kernel.arguments]

    def expected(self, args: Sequence[torch.Tensor], **options: object) -> list[torch.Tensor]:
        """All arguments after a run of the interpreter on copies of `args`."""
        copies = [copy_of(t) for t in args]
        run(self.kernel, copies, self.sizes, **options)  # type: ignore[arg-type]
        return copies

    def check(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> None:
        """Inputs must be as they were, exact outputs equal, the others within a tolerance."""
        for buffer, a, b in zip(self.kernel.arguments, got, want, strict=True):
            tolerance, scale = 0.0, 0.0
            if buffer.name in self.inexact:
                finite = b[b.isfinite()].double().abs()
                scale = 0.05 * (1.0 + (float(finite.max()) if finite.numel() else 0.0))
                tolerance = _TOLERANCE[buffer.dtype]
            absolute = tolerance * scale
            try:
                torch.testing.assert_close(a, b, rtol=tolerance, atol=absolute, equal_nan=True)
            except AssertionError as error:
                raise AssertionError(f"seed {self.seed}, {buffer.name}: {error}") from None

    def _tensor(self, buffer: Buffer, generator: torch.Generator) -> torch.Tensor:
        shape, strides = (
            [int(sympy.sympify(s).subs(self.sizes)) for s in sizes]
            for sizes in (buffer.shape, buffer.strides)
        )
        steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        # A margin on both sides, so that a target's stray access shows as a changed element.
        count = (0 if 0 in shape else 1 + sum(steps)) + 16
        flat = self._elements(buffer, count, generator)
        return torch.as_strided(flat, shape, strides, 8)

    def _elements(self, buffer: Buffer, count: int, generator: torch.Generator) -> torch.Tensor:
        bound = self.bounds.get(buffer.name)
        if bound is not None:
            return torch.randint(0, bound, (count,), generator=generator)
        numbers = torch.randint(-8, 9, (count,), generator=generator)
        if buffer.dtype is torch.bool:
            return numbers > 0
        if not buffer.dtype.is_floating_point:
            return numbers.to(buffer.dtype)
        values = numbers.to(buffer.dtype) / 2
        if self.special and buffer.is_input:
            places = torch.randint(0, 12, (count,), generator=generator)
            for place, number in enumerate((float("nan"), float("inf"), float("-inf"), -0.0)):
                values[places == place] = number
        return values


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, over a copy of the whole storage."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = torch.as_strided(tensor, (count,), (1,), 0).clone()
    return torch.as_strided(flat, tensor.shape, tensor.stride(), tensor.storage_offset())


def make(seed: int, features: frozenset[str] = FEATURES, paired: bool = False) -> Case:
    """The random kernel number `seed`. `paired`: axes of a kind mostly occur all together."""
    return _Maker(seed, features, paired).make()


class _Maker:
    def __init__(self, seed: int, features: frozenset[str], paired: bool) -> None:
        self.random = random.Random(seed)
        self.features = features - {"mask", "rng", "layout", "two_phase"} if paired else features
        self.paired = paired
        self.b = Builder(f"random{seed}")
        self.case = Case(seed, self.b.build(), {}, {})
        self.inexact: set[Value] = set()
        self.leaves: list[Value] = []
        self.values: list[Value] = []
        self.grid: list[Axis] = []
        self.full: list[Axis] = []
        self.dtypes = [torch.float32, torch.float32, torch.float32, torch.bool]
        self.dtypes += [torch.bfloat16, torch.float16] if "half" in features else []
        self.dtypes += [torch.int64] if "int64" in features else []
        self.dtypes += [torch.int32] if "int32" in features else []
        self.dtypes += [torch.int8, torch.uint8] if "small_int" in features else []

    def chance(self, probability: float, feature: str = "") -> bool:
        drawn = self.random.random() < probability
        return drawn and (not feature or feature in self.features)

    def make(self) -> Case:
        self.case.special = self.chance(0.3, "special")
        self.declare_axes()
        with self.b.grid(*self.grid):
            for _ in range(self.random.randint(2, 4)):
                self.input()
            for _ in range(self.random.randint(4, 12)):
                self.operation()
            outputs = self.random.sample(self.values, min(len(self.values), 3))
            # The newest value depends on most of the others.
            for value in dict.fromkeys([self.values[-1], *outputs]):
                self.output(value)
            partial = self.partial() if self.chance(0.3, "two_phase") else None
        if partial is not None:
            self.finish(*partial)
        self.case.kernel = self.b.build()
        return self.case

    # -- axes, inputs, outputs ------------------------------------------------------------------

    def declare_axes(self) -> None:
        for number in range(2 if self.paired else self.random.randint(1, 2)):
            extent = 0 if self.chance(0.03) else self.random.choice(_SIZES)
            symbol = self.b.size(f"n{number}")
            self.case.sizes[symbol] = extent
            axis = self.b.axis("mb"[number], symbol)
            self.case.blocks[axis.name] = self.random.choice((1, 2, 3, 4, 8, 32))
            self.grid.append(axis)
        for number in range(self.random.randint(0, 2 if self.paired else 3 - len(self.grid))):
            size: Size = self.random.choice(_SIZES)
            if self.chance(0.3):
                symbol = self.b.size(f"k{number}")
                self.case.sizes[symbol], size = int(size), symbol
            self.full.append(self.b.axis("kn"[number], size, "full"))

    def some_axes(self) -> list[Axis]:
        if self.paired and self.chance(0.95):
            groups = [self.grid, *([self.full] if self.chance(0.8) else [])]
            return [a for group in groups if group for a in group]
        axes = [a for a in (*self.grid, *self.full) if self.chance(0.75)]
        return axes or [self.random.choice(self.grid)]

    def buffer(self, dtype: torch.dtype, shape: Sequence[Size], role: str = "in") -> Buffer:
        count = len([b for b in self.b._buffers if b.role == role])
        strides = list(contiguous_strides(tuple(shape)))
        if "layout" in self.features and role != "workspace":
            kind = self.random.random()
            if kind < 0.1:  # column-major
                strides = list(reversed(contiguous_strides(tuple(reversed(shape)))))
            elif kind < 0.2:  # rows with a gap
                strides = [s * 2 for s in strides]
        name = f"{ {'in': 'x', 'out': 'out', 'workspace': 'ws'}[role] }{count}"
        return self.b.buffer(name, dtype, shape, strides, role)  # type: ignore[arg-type]

    def input(self) -> None:
        axes = self.some_axes()
        dtype = self.random.choice(self.dtypes)
        if self.chance(0.25, "gather"):
            value = self.gathered(dtype, axes)
        else:
            index: list[IndexExpr] = [Affine.of(a) for a in axes]
            shape = [a.size for a in axes]
            mask, other = None, 0
            if self.chance(0.3, "mask"):
                mask = self.mask(self.random.choice(axes))
                other = self.random.choice((0, 1) if dtype is torch.bool else (0, 1, 3))
            if self.chance(0.3, "layout"):
                mask = self.odd_index(axes, index, shape, mask)
            value = self.b.load(self.buffer(dtype, shape), index, (), mask, other)
        self.add(value, leaf=True)

    def odd_index(
        self, axes: list[Axis], index: list[IndexExpr], shape: list[Size], mask: Value | None
    ) -> Value | None:
        """Change one dimension: offset, step, reversal, shift under a mask, one more dimension."""
        dim = self.random.randrange(len(axes))
        axis, kind = axes[dim], self.random.choice(("offset", "step", "flip", "shift", "extra"))
        if kind == "offset":
            index[dim], shape[dim] = Affine.of(axis, 1, 2), axis.size + 2
        elif kind == "step":
            index[dim], shape[dim] = Affine.of(axis, 2, 1), axis.size * 2 + 1
        elif kind == "flip":
            index[dim] = Affine.of(axis, -1, axis.size - 1)
        elif kind == "extra":
            index.insert(dim, Affine((), 1))
            shape.insert(dim, 2)
        elif mask is None and "mask" in self.features:
            index[dim] = Affine.of(axis, 1, -1)
            return self.b.pointwise("ge", self.b.iota(axis), self.b.const(1, torch.int64))
        return mask

    def mask(self, axis: Axis) -> Value:
        limit = self.b.const(self.random.randint(0, 9), torch.int64)
        return self.b.pointwise(self.random.choice(("lt", "ge", "ne")), self.b.iota(axis), limit)

    def gathered(self, dtype: torch.dtype, axes: list[Axis]) -> Value:
        """table[indices[...], remaining axis]."""
        split = len(axes) if self.paired else self.random.randint(1, len(axes))
        indices = self.buffer(torch.int64, [a.size for a in axes[:split]])
        self.case.bounds[indices.name] = _TABLE_ROWS
        where = self.b.load(indices, [Affine.of(a) for a in axes[:split]])
        table = self.buffer(dtype, [_TABLE_ROWS, *(a.size for a in axes[split:])])
        index: list[IndexExpr] = [Gather(0), *(Affine.of(a) for a in axes[split:])]
        return self.b.load(table, index, [where], checked=self.chance(0.5))

    def output(self, value: Value) -> None:
        axes = [a for a in (*self.grid, *self.full) if a in value.type.axes or a in self.grid]
        if self.chance(0.15, "layout"):
            axes.reverse()
        value = self.follow([value], self.b.expand(value, axes))
        if value.type.dtype is torch.float32 and self.chance(0.3, "half"):
            half = self.random.choice((torch.bfloat16, torch.float16))
            value = self.follow([value], self.b.cast(value, half))
        buffer = self.buffer(value.type.dtype, [a.size for a in axes], "out")
        mask = self.mask(self.random.choice(axes)) if self.chance(0.2, "mask") else None
        self.b.store(buffer, [Affine.of(a) for a in axes], value, (), mask)
        if value in self.inexact:
            self.case.inexact.add(buffer.name)

    # -- a second phase -------------------------------------------------------------------------

    def partial(self) -> tuple[Buffer, list[Axis], Axis, str] | None:
        """Reduce some value within the tiles of a grid axis; one partial result a tile."""
        axis = self.random.choice(self.grid)
        kinds = (torch.float32, torch.int32, torch.int64)
        fit = [v for v in self.values if axis in v.type.axes and v.type.dtype in kinds]
        if not fit:
            return None
        fn = self.random.choice(("sum", "sum", "max", "min"))
        value = self.random.choice(fit)
        rest = [a for a in (*self.grid, *self.full) if a != axis]
        rest = [a for a in rest if a in value.type.axes or a in self.grid]
        reduced = self.reduced(fn, value, [axis])
        reduced = self.follow([reduced], self.b.expand(reduced, rest))
        tiles = sympy.ceiling(axis.size / block_symbol(axis.name))
        shape = [tiles, *(a.size for a in rest)]
        ws = self.buffer(reduced.type.dtype, shape, "workspace")
        self.b.store(ws, [Affine.of(axis.id_name), *map(Affine.of, rest)], reduced)
        if reduced in self.inexact:
            self.case.inexact.add(ws.name)
        return ws, rest, self.b.axis("t", tiles, "full"), fn

    def finish(self, ws: Buffer, rest: list[Axis], t: Axis, fn: str) -> None:
        grid = [a for a in rest if a.kind == "block"]
        with self.b.grid(*grid):
            value = self.b.load(ws, [Affine.of(t), *map(Affine.of, rest)])
            result = self.b.reduce(fn, value, [t])
            out = self.buffer(result.type.dtype, [a.size for a in rest], "out")
            self.b.store(out, [Affine.of(a) for a in rest], result)
        if ws.name in self.case.inexact:
            self.case.inexact.remove(ws.name)
            self.case.inexact.add(out.name)

    # -- operations -----------------------------------------------------------------------------

    def add(self, value: Value, leaf: bool = False) -> Value:
        """Make the value available to later operations; half types go on as float32."""
        if value.type.dtype in (torch.bfloat16, torch.float16):
            value = self.follow([value], self.b.cast(value, torch.float32))
        self.values.append(value)
        if leaf:
            self.leaves.append(value)
        return value

    def follow(self, operands: Sequence[Value], value: Value, inexact: bool = False) -> Value:
        if inexact or any(o in self.inexact for o in operands):
            self.inexact.add(value)
        return value

    def pick(
        self,
        *,
        floating: bool | None = None,
        exact: bool = False,
        dtype: torch.dtype | None = None,
        leaf: bool = False,
    ) -> Value | None:
        fit = [
            v
            for v in (self.leaves if leaf else self.values)
            if (floating is None or v.type.dtype.is_floating_point == floating)
            and (dtype is None or v.type.dtype is dtype)
            and not (exact and v in self.inexact)
        ]
        # Mostly recent values: chains rather than bushes.
        return self.random.choice(fit[-5:] if self.chance(0.7) else fit) if fit else None

    def operation(self) -> None:
        rows = [
            self.binary,
            self.binary,
            self.unary,
            self.compare,
            self.select,
            self.smooth,
            self.integer,
            self.convert,
            self.logic,
        ]
        rows += [self.reduction, self.reduction] if "reduce" in self.features else []
        rows += [self.noise] if "rng" in self.features else []
        for row in self.random.sample(rows, 4):  # a row without fitting operands gives None
            value = row()
            if value is not None:
                self.add(value)
                return

    def scalar(self, dtype: torch.dtype) -> Value:
        number = self.random.choice((1, 2, 3, 5, 0, -1) if dtype is not torch.uint8 else (1, 2, 3))
        return self.b.const(float(number) / 2 if dtype.is_floating_point else number, dtype)

    def binary(self) -> Value | None:
        left = self.pick(dtype=self.random.choice((torch.float32, torch.int32, torch.int64)))
        if left is None:
            return None
        fn = self.random.choice(("add", "sub", "mul", "minimum", "maximum"))
        # Products only with leaves: numbers stay small.
        right = self.pick(dtype=left.type.dtype, leaf=fn == "mul")
        if right is None or self.chance(0.3):
            right = self.scalar(left.type.dtype)
        return self.follow([left, right], self.b.pointwise(fn, left, right))

    def unary(self) -> Value | None:
        value = self.pick(dtype=self.random.choice((torch.float32, torch.int32, torch.int64)))
        if value is None:
            return None
        fns = ["neg", "abs"]
        if value not in self.inexact:
            fns += ["sign"]
            fns += ["floor", "ceil", "trunc", "round"] if value.type.dtype is torch.float32 else []
        return self.follow([value], self.b.pointwise(self.random.choice(fns), value))

    def smooth(self) -> Value | None:
        """Functions whose last bits may differ, on arguments where that stays small."""
        value = self.pick(dtype=torch.float32)
        if value is None:
            return None
        one, bound = (self.b.const(c, torch.float32) for c in (1.0, 3.0))
        fn = self.random.choice(
            ("sigmoid", "tanh", "erf", "exp", "log", "sqrt", "rsqrt", "div", "sin", "atan")
        )
        if fn == "exp":
            value_in = self.b.pointwise("minimum", value, bound)
        elif fn in ("log", "sqrt", "rsqrt"):
            value_in = self.b.pointwise("add", self.b.pointwise("abs", value), one)
        else:
            value_in = value
        operands = (value_in, bound) if fn == "div" else (value_in,)
        return self.follow([value], self.b.pointwise(fn, *operands), inexact=fn != "div")

    def noise(self) -> Value:
        """Random numbers, keyed by the row-major position along some axes."""
        first, *rest = self.some_axes()
        index = self.b.iota(first)
        for axis in rest:
            index = self.b.pointwise("mul", index, self.b.size_value(axis.size))
            index = self.b.pointwise("add", index, self.b.iota(axis))
        fn = self.random.choice(("rand", "randn", "randint"))
        numbers = (self.random.choice((0, 7, -1, 2**40)), *((-3, 9) if fn == "randint" else ()))
        seed, *bounds = (self.b.const(n, torch.int64) for n in numbers)
        return self.follow([], self.b.rng(fn, seed, index, *bounds), inexact=fn == "randn")

    def compare(self) -> Value | None:
        left = self.pick(exact=True)
        if left is None:
            return None
        fn = self.random.choice(("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite"))
        if fn.startswith("is"):
            return self.b.pointwise(fn, left) if left.type.dtype is torch.float32 else None
        right = self.pick(exact=True, dtype=left.type.dtype)
        if right is None or (self.chance(0.5) and left.type.dtype is not torch.bool):
            right = self.scalar(left.type.dtype)
        return self.b.pointwise(fn, left, right)

    def logic(self) -> Value | None:
        left, right = self.pick(dtype=torch.bool), self.pick(dtype=torch.bool)
        if left is None or right is None:
            return None
        if self.chance(0.3):
            return self.b.pointwise("not", left)
        return self.b.pointwise(self.random.choice(("and", "or", "xor")), left, right)

    def select(self) -> Value | None:
        condition, left = self.pick(dtype=torch.bool), self.pick()
        if condition is None or left is None:
            return None
        right = self.pick(dtype=left.type.dtype)
        if right is None or (self.chance(0.3) and left.type.dtype is not torch.bool):
            right = self.scalar(left.type.dtype)
        return self.follow([left, right], self.b.pointwise("where", condition, left, right))

    def integer(self) -> Value | None:
        left = self.pick(floating=False)
        if left is None or left.type.dtype is torch.bool:
            return None
        dtype = left.type.dtype
        fn = self.random.choice(
            ("and", "or", "xor", "shl", "shr", "truncdiv", "floordiv", "remainder", "fmod", "not")
        )
        if fn == "not":
            return self.b.pointwise(fn, left)
        low = 0 if fn in _SHIFTS else 1
        numbers = (low, 1, 2, 3, 5) if dtype is torch.uint8 or fn in _SHIFTS else (1, -2, 7)
        return self.b.pointwise(fn, left, self.b.const(self.random.choice(numbers), dtype))

    def convert(self) -> Value | None:
        value = self.pick()
        if value is None:
            return None
        if value.type.dtype is not torch.float32:
            return self.follow([value], self.b.cast(value, torch.float32))
        if self.chance(0.5, "half"):  # rounds; comes back as float32
            return self.follow([value], self.b.cast(value, torch.bfloat16))
        kinds = [d for d in (torch.int32, torch.int64) if d in self.dtypes]
        if value in self.inexact or not kinds:
            return None
        # Conversions of NaN and of numbers out of range have no defined result.
        zero, low, high = (self.b.const(c, torch.float32) for c in (0.0, -100.0, 100.0))
        value = self.b.pointwise("where", self.b.pointwise("isnan", value), zero, value)
        value = self.b.pointwise("minimum", self.b.pointwise("maximum", value, low), high)
        return self.b.cast(value, self.random.choice(kinds))

    def reduction(self) -> Value | None:
        fit = [v for v in self.values if any(a in self.full for a in v.type.axes)]
        if not fit:
            return None
        value = self.random.choice(fit)
        axes = [a for a in value.type.axes if a in self.full]
        axes = self.random.sample(
            axes, len(axes) if self.paired else self.random.randint(1, len(axes))
        )
        if value.type.dtype is torch.bool:
            return self.reduced(self.random.choice(("any", "all")), value, axes)
        fns = ["sum", "sum", "max", "min"]
        # PyTorch has no position of an extreme over nothing: such a kernel is never made.
        nonempty = all(sympy.sympify(axes[0].size).subs(self.case.sizes) != 0 for _ in axes)
        if value not in self.inexact and len(axes) == 1 and nonempty:
            fns += ["argmax", "argmin"]
        return self.reduced(self.random.choice(fns), value, axes)

    def reduced(self, fn: str, value: Value, axes: Sequence[Axis]) -> Value:
        sums = fn == "sum" and value.type.dtype.is_floating_point
        return self.follow([value], self.b.reduce(fn, value, axes), inexact=sums)
