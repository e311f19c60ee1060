"""One kernel for each family of what the triton target prints, at ragged sizes, with configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from test.codegen.llvm import kernels, tile_programs
from test.codegen.llvm.tile_programs import buffer, zeros
from test.ir.random_kernels import Case
from torch_helion.config import Config
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.ops import FLOAT8, POINTWISE
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, begin_symbol, id_symbol, size_symbol

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
I8, U8, I32, I64 = torch.int8, torch.uint8, torch.int32, torch.int64
at = Affine.of
M, N, K = (size_symbol(s) for s in "mnk")


class _Case(Case):
    def _elements(self, buffer: Buffer, count: int, generator: torch.Generator) -> torch.Tensor:
        if buffer.dtype in FLOAT8:
            wide = super()._elements(replace(buffer, dtype=F32), count, generator)
            return wide.to(buffer.dtype)
        return super()._elements(buffer, count, generator)


@dataclass
class Family:
    name: str
    kernel: Kernel
    sizes: dict[Any, int]
    blocks: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)
    bounds: dict[str, int] = field(default_factory=dict)
    exact: bool = False
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    """What buffers hold that are not random."""
    targets: tuple[str, ...] = ("sm_90", "gfx942")

    @property
    def config(self) -> Config:
        return Config(block_sizes=list(self.blocks), **self.options)

    @property
    def case(self) -> Case:
        outputs = {b.name for b in self.kernel.arguments if b.is_output}
        floats = {b.name for b in self.kernel.arguments if b.dtype.is_floating_point}
        blocks = dict(zip(self.kernel.block_names, self.blocks, strict=True))
        inexact = set() if self.exact else outputs & floats
        by_name = {str(s): n for s, n in self.sizes.items()}
        sizes = {s: by_name[s.name] for s in self.kernel.sizes}
        return _Case(1, self.kernel, sizes, blocks, inexact, False, self.bounds)

    def args(self) -> list[torch.Tensor]:
        found = self.case.make_args()
        for argument, tensor in zip(self.kernel.arguments, found, strict=True):
            if argument.name in self.values:
                tensor.copy_(self.values[argument.name])
        return found


def _steps(name: str, *sizes: sympy.Symbol) -> Builder:
    b = Builder(name)
    for size in sizes:
        b.size(size.name)
    return b


def scaled_add(dtype: torch.dtype) -> Kernel:
    """out = relu(x * scale + y), the scale a float argument."""
    b = _steps("scaled_add", M, N)
    scale = b.scalar("scale")
    x, y = buffer(b, "x", (M, N), dtype), buffer(b, "y", (N,), dtype)
    out = buffer(b, "out", (M, N), dtype, "out")
    m, n = b.axis("m", M), b.axis("n", N)
    with b.grid(m, n):
        factor = b.cast(b.bitcast(b.size_value(scale), F64), F32)
        value = b.pointwise("mul", b.cast(b.load(x, [at(m), at(n)]), F32), factor)
        value = b.pointwise("add", value, b.cast(b.load(y, [at(n)]), F32))
        value = b.pointwise("maximum", value, b.const(0.0, F32))
        b.store(out, [at(m), at(n)], b.cast(value, dtype))
    return b.build()


def casts(sources: Sequence[torch.dtype], targets: Sequence[torch.dtype]) -> Kernel:
    b = _steps("casts", N)
    n = b.axis("n", N)
    loaded = [buffer(b, f"x{i}", (N,), d) for i, d in enumerate(sources)]
    with b.grid(n):
        for i, x in enumerate(loaded):
            value = b.load(x, [at(n)])
            if x.dtype in FLOAT8:
                value = b.cast(value, F32)
            for j, dtype in enumerate(targets):
                out = buffer(b, f"out{i}_{j}", (N,), dtype, "out")
                b.store(out, [at(n)], b.cast(value, dtype))
    return b.build()


def functions(names: Sequence[str], dtype: torch.dtype) -> Kernel:
    """Each pointwise function on one vector, or on two and three."""
    b = _steps("functions", N)
    n = b.axis("n", N)
    xs = [buffer(b, f"x{i}", (N,), dtype) for i in range(3)]
    with b.grid(n):
        loaded = [b.load(x, [at(n)]) for x in xs]
        for name in names:
            row = POINTWISE[name]
            operands = loaded[: row.arity]
            if row.result == "where":
                operands = [b.pointwise("lt", *loaded[:2]), *loaded[1:]]
            value = b.pointwise(name, *operands)
            b.store(buffer(b, f"out_{name}", (N,), value.type.dtype, "out"), [at(n)], value)
    return b.build()


def dropout() -> Kernel:
    """x / (1 - p) where a random number is below 1 - p."""
    b = _steps("dropout", M, N)
    seed = b.scalar("seed")
    x, out = buffer(b, "x", (M, N)), buffer(b, "out", (M, N), F32, "out")
    m, n = b.axis("m", M), b.axis("n", N)
    with b.grid(m, n):
        keep = b.rng("rand", b.size_value(seed), _row_major(b, m, n), word=2)
        keep = b.pointwise("lt", keep, b.const(0.75, F32))
        value = b.pointwise("div", b.load(x, [at(m), at(n)]), b.const(0.75, F32))
        zero = b.const(0.0, F32)
        b.store(out, [at(m), at(n)], b.pointwise("where", keep, value, zero))
    return b.build()


def _row_major(b: Builder, m: Axis, n: Axis) -> Value:
    return b.pointwise("add", b.pointwise("mul", b.iota(m), b.size_value(n.size)), b.iota(n))


def random_numbers() -> Kernel:
    """Numbers of all kinds."""
    b = _steps("random_numbers", M, N)
    seed = b.scalar("seed")
    m, n = b.axis("m", M), b.axis("n", N)
    with b.grid(m, n):
        index, key = _row_major(b, m, n), b.size_value(seed)
        low, high = b.const(-5, I64), b.const(2**40, I64)
        for word in range(4):
            numbers = [
                b.rng("rand", key, index, word=word),
                b.rng("randn", key, index, word=word),
                b.rng("randint", key, index, low, high, word=word),
            ]
            for value in numbers:
                name = f"{value.hint}{word}"
                out = buffer(b, name, (M, N), value.type.dtype, "out")
                b.store(out, [at(m), at(n)], value)
    return b.build()


def histogram() -> Kernel:
    """Counts, a maximum and a minimum for each bin; old values of a cas."""
    b = _steps("histogram", N)
    bins, x = buffer(b, "bins", (N,), I64), buffer(b, "x", (N,))
    counts = buffer(b, "counts", (8,), I32, "inout")
    top, low = buffer(b, "top", (8,), F32, "inout"), buffer(b, "low", (8,), F32, "inout")
    n = b.axis("n", N)
    with b.grid(n):
        where = b.load(bins, [at(n)])
        value = b.load(x, [at(n)])
        one = b.expand(b.const(1, I32), [n])
        b.atomic("add", counts, [Gather(0)], one, [where], checked=True)
        b.atomic("max", top, [Gather(0)], value, [where])
        b.atomic("min", low, [Gather(0)], value, [where])
    return b.build()


def control() -> Kernel:
    """A counted loop, a while and a branch that change a carried tile."""
    b = _steps("control", M)
    x, limits = buffer(b, "x", (M, 4)), buffer(b, "limits", (2,), I64)
    out = buffer(b, "out", (M,), F32, "out")
    m = b.axis("m", M)
    with b.grid(m):
        last = b.bind(b.load(limits, [Affine((), 0)]), "last")
        with b.sequential_loop("i", 0, last, 1, [zeros(b, m)]) as loop:
            value = b.load(x, [at(m), Affine((), loop.symbol)])
            loop.finish([b.pointwise("add", loop.args[0], value)])
        turns = b.load(limits, [Affine((), 1)])
        count = b.const(0, I64)
        again = b.while_([count, loop.results[0]])
        with again.condition():
            again.finish([b.pointwise("lt", again.args[0], turns)])
        with again.body():
            number, tile = again.args
            doubled = b.pointwise("mul", tile, b.const(2.0, F32))
            again.finish([b.pointwise("add", number, b.const(1, I64)), doubled])
        branch = b.if_(b.pointwise("gt", turns, b.const(1, I64)))
        with branch.then():
            branch.finish([b.pointwise("neg", again.results[1])])
        with branch.otherwise():
            branch.finish([zeros(b, m, value=7.0)])
        b.store(out, [at(m)], branch.results[0])
    return b.build()


def scans() -> Kernel:
    """A running sum, what lies before each place, maxima backwards, sums of segments."""
    b = _steps("scans", M, N)
    x, flags = buffer(b, "x", (M, N)), buffer(b, "flags", (M, N), I64)
    outs = [buffer(b, f"out{i}", (M, N), F32, "out") for i in range(4)]
    m, n = b.axis("m", M), b.axis("n", N, "full")
    with b.grid(m):
        value, flag = b.load(x, [at(m), at(n)]), b.load(flags, [at(m), at(n)])
        results = [
            b.scan("sum", value, n),
            b.scan("sum", value, n, exclusive=True),
            b.scan("max", value, n, reverse=True),
            b.custom_scan([flag, value], n, _segment, reverse=True)[1],
        ]
        for result, out in zip(results, outs, strict=True):
            b.store(out, [at(m), at(n)], result)
    return b.build()


def _segment(b: Builder, left: list[Value], right: list[Value]) -> list[Value]:
    """Sums that begin again where the flag is not zero."""
    (f, x), (g, y) = left, right
    begins = b.pointwise("ne", g, b.const(0, I64))
    return [b.pointwise("or", f, g), b.pointwise("where", begins, y, b.pointwise("add", x, y))]


def _latest(b: Builder, left: list[Value], right: list[Value]) -> list[Value]:
    """Composes affine maps: associative, and the order matters."""
    (a, x), (c, y) = left, right
    return [b.pointwise("mul", a, c), b.pointwise("add", b.pointwise("mul", c, x), y)]


def custom_reductions() -> Kernel:
    b = _steps("custom_reductions", M, N)
    x = buffer(b, "x", (M, N), I32)
    outs = [buffer(b, f"out{i}", (M,), I32, "out") for i in range(2)]
    m, n = b.axis("m", M), b.axis("n", N, "full")
    with b.grid(m):
        value = b.load(x, [at(m), at(n)])
        factor = b.pointwise("or", b.pointwise("and", value, b.const(2, I32)), b.const(1, I32))
        pair = b.custom_reduce([factor, value], [n], [1, 0], _latest)
        both = b.custom_reduce([value], [n], [-1], lambda b, x, y: [b.pointwise("and", x[0], y[0])])
        for result, out in zip((pair[1], both[0]), outs, strict=True):
            b.store(out, [at(m)], result)
    return b.build()


def pairs() -> Kernel:
    """How many of a tile are smaller: a tile against itself, by an alias and by a renamed axis."""
    b = _steps("pairs", M)
    x, ranks = buffer(b, "x", (M, 5)), buffer(b, "ranks", (M, 5), I64, "out")
    same = buffer(b, "same", (M,), F32, "out")
    m, k = b.axis("m", M), b.axis("k", 5, "full")
    j = b.axis("j", 5, "full")
    with b.grid(m):
        value = b.load(x, [at(m), at(k)])
        less = b.pointwise("lt", b.reaxis(value, {k: j}), value)
        b.store(ranks, [at(m), at(k)], b.reduce("sum", b.cast(less, I64), [j]))
        other = b.alias(m)
        first = b.reduce("sum", value, [k])
        mirror = b.reaxis(first, {m: other})
        hit = b.pointwise("eq", b.iota(m), b.iota(other))
        picked = b.pointwise("where", hit, mirror, b.const(0.0, F32))
        b.store(same, [at(m)], b.reduce("sum", picked, [other]))
    return b.build()


def selections() -> Kernel:
    """Values at positions of a row; two axes as one; extremes with their positions."""
    b = _steps("selections", M)
    x, places = buffer(b, "x", (M, 3, 5)), buffer(b, "places", (M, 2), I64)
    taken, flat = buffer(b, "taken", (M, 2, 3), F32, "out"), buffer(b, "flat", (M, 15), F32, "out")
    best = buffer(b, "best", (M, 3), I64, "out")
    m, p, r = b.axis("m", M), b.axis("p", 3, "full"), b.axis("r", 5, "full")
    q, f = b.axis("q", 2, "full"), b.axis("f", 15, "full")
    with b.grid(m):
        value = b.load(x, [at(m), at(p), at(r)])
        index = b.load(places, [at(m), at(q)])
        b.store(taken, [at(m), at(q), at(p)], b.take(value, index, r))
        b.store(flat, [at(m), at(f)], b.reshape(value, [p, r], [f]))
        b.store(best, [at(m), at(p)], b.reduce("argmax", value, [r]))
    return b.build()


def tile_numbers() -> Kernel:
    """Positions, begins and numbers of tiles as values."""
    b = _steps("tile_numbers", M)
    out = buffer(b, "out", (M, 3), I64, "out")
    m, begins = b.axis("m", M), []
    with b.grid(m):
        begins = [b.size_value(begin_symbol(m)), b.size_value(id_symbol(m))]
        for place, value in enumerate([b.iota(m), *begins]):
            value = b.expand(value, [m])
            zero = b.pointwise("mul", value, b.const(0 if place else 1, I64))
            b.store(out, [at(m), Affine((), place)], zero)
    return b.build()


def product(dtype: torch.dtype, acc: torch.dtype, batch: bool) -> Kernel:
    """x @ y of a row of batches, summed in `acc`."""
    b = _steps("product", M, N, K)
    lead: list[Axis] = [b.axis("h", 3)] if batch else []
    shape = [a.size for a in lead]
    x, y = buffer(b, "x", (*shape, M, K), dtype), buffer(b, "y", (*shape, K, N), dtype)
    out = buffer(b, "out", (*shape, M, N), acc, "out")
    m, n, k = b.axis("m", M), b.axis("n", N), b.axis("k", K, "full")
    with b.grid(*lead, m, n):
        head = [at(a) for a in lead]
        left, right = b.load(x, [*head, at(m), at(k)]), b.load(y, [*head, at(k), at(n)])
        b.store(out, [*head, at(m), at(n)], b.dot(left, right, k, acc))
    return b.build()


def serial_writes() -> Kernel:
    """Steps that overlap: the last one wins."""
    b = _steps("serial_writes", M)
    x, places = buffer(b, "x", (M,)), buffer(b, "places", (M,), I64)
    out = buffer(b, "out", (4,), F32, "inout")
    m = b.axis("m", M)
    with b.grid(m, blocks=[1], serial=True):
        b.store(out, [Gather(0)], b.load(x, [at(m)]), [b.load(places, [at(m)])])
    return b.build()


_INTEGER_NAMES = """
add sub mul neg abs sign minimum maximum truncdiv floordiv remainder fmod ipow shl shr and or xor
not eq ne lt le gt ge signbit where
"""
_INTEGERS = _INTEGER_NAMES.split()
_UNSIGNED = [n for n in _INTEGERS if n not in ("neg", "signbit")]
_FLOATS = [
    p.name
    for p in POINTWISE.values()
    if p.domain in ("float", "number", "any") and p.name not in ("digamma", "i0e", "i1e")
]


def _number_lines(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Operands of pointwise functions, among them the special ones."""
    if dtype.is_floating_point:
        special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -2.5, 0.5, 1.5, 30.0]
        x0 = torch.tensor([a for a in special for _ in special], dtype=dtype)
        x1 = torch.tensor(special * len(special), dtype=dtype)
        return {"x0": x0, "x1": x1, "x2": x1.flip(0)}
    info = torch.iinfo(dtype)
    top = [info.min, info.min + 1, info.max, 7, 3, 0, 100, 5]
    below = [1, 2, 3, 7, 5, 4, 6, 7] if dtype is U8 else [-1, 2, 3, 7, 5, -2, -7, 1]
    x0 = torch.tensor([a for a in top for _ in below], dtype=dtype)
    x1 = torch.tensor(below * len(top), dtype=dtype)
    return {"x0": x0, "x1": x1, "x2": x1.flip(0)}


def _pointwise_family(name: str, functions_: Sequence[str], dtype: torch.dtype) -> Family:
    values = _number_lines(dtype)
    positive = [n for n in functions_ if n not in ("ipow",)] if dtype.is_signed else functions_
    kernel = functions(positive, dtype)
    return Family(
        name,
        kernel,
        {N: values["x0"].numel()},
        [64],
        values=values,
        exact=not dtype.is_floating_point,
    )


def families() -> list[Family]:
    mnk = {M: 37, N: 21, K: 50}
    starts = torch.tensor([0, 3, 3, 11, 12])
    ragged = tile_programs.ragged_sums(M, 9, N)
    bits = int(torch.tensor(1.5, dtype=F64).view(I64))
    matmul = tile_programs.matmul
    found = [
        Family("pointwise", scaled_add(BF16), {M: 13, N: 70, "scale": bits}, [4, 32]),
        Family("softmax", kernels.softmax(), {"m": 5, "n": 77}, [2]),
        Family(
            "softmax_looped", kernels.softmax(), {"m": 5, "n": 77}, [1], {"reduction_loops": [32]}
        ),
        Family("softmax_two_pass", tile_programs.softmax_two_pass(M, N), {M: 7, N: 77}, [4, 16]),
        Family("layer_norm", tile_programs.layer_norm(11, 100, BF16), {}, [4]),
        Family(
            "layer_norm_looped",
            tile_programs.layer_norm(11, 100, BF16),
            {},
            [4],
            {"reduction_loops": [32]},
        ),
        Family("layer_norm_backward", kernels.layer_norm_backward(), {"m": 23, "n": 40}, [4, 8]),
        Family("group_norm", kernels.group_norm(), {"n": 2, "g": 3, "c": 5, "p": 9}, [1, 2]),
        Family("matmul", matmul(M, N, K, F32, tile_programs.bias_gelu(N)), mnk, [16, 32, 16]),
        Family("matmul_half", matmul(M, N, K, F16, transposed=True), mnk, [32, 16, 32]),
        Family("matmul_bf16", matmul(37, 64, 48, BF16), {}, [16, 16, 16]),
        Family("attention", tile_programs.attention(2, 37, 37, 16, F16, True), {}, [16, 16]),
        Family(
            "cross_entropy", tile_programs.cross_entropy(13, 101), {}, [4, 32], {}, {"labels": 101}
        ),
        Family("split_k", tile_programs.split_k(19, 17, 70), {}, [16, 16, 32]),
        Family("ragged_sums", ragged, {M: 4, N: 12}, [16, 4], values={"starts": starts}),
        Family("dropout", dropout(), {M: 6, N: 50, "seed": -(2**40)}, [2, 32]),
        Family("random_numbers", random_numbers(), {M: 6, N: 50, "seed": -(2**40)}, [2, 32]),
        Family("histogram", histogram(), {N: 150}, [32], {}, {"bins": 8}, exact=True),
        Family("control", control(), {M: 10}, [4], {}, {"limits": 4}, exact=True),
        Family("scans", scans(), {M: 5, N: 11}, [2], {}, {"flags": 2}),
        Family("custom_reductions", custom_reductions(), {M: 5, N: 11}, [2], exact=True),
        Family(
            "custom_reductions_looped",
            custom_reductions(),
            {M: 5, N: 11},
            [2],
            {"reduction_loops": [4]},
            exact=True,
        ),
        Family("pairs", pairs(), {M: 9}, [4], exact=True),
        Family("selections", selections(), {M: 9}, [4], {}, {"places": 5}, exact=True),
        Family("tile_numbers", tile_numbers(), {M: 9}, [4], exact=True),
        Family(
            "embedding",
            kernels.embedding_add(),
            {"m": 9, "n": 21, "v": 6},
            [4, 16],
            {},
            {"ids": 6},
            exact=True,
        ),
        Family(
            "concatenate", kernels.concatenate(), {"m": 3, "p": 9, "q": 14}, [2, 16], exact=True
        ),
        Family("serial_writes", serial_writes(), {M: 9}, [], {}, {"places": 4}, exact=True),
        Family("product_int8", product(I8, I32, False), mnk, [16, 16], exact=True),
        Family("product_uint8", product(U8, I32, False), mnk, [16, 16], exact=True),
        Family("product_double", product(F64, F64, True), mnk, [1, 16, 16]),
        Family("product_batch", product(F32, F32, True), mnk, [2, 16, 16]),
        Family(
            "product_fp8", product(torch.float8_e5m2, F32, False), mnk, [16, 16], targets=("sm_90",)
        ),
        Family(
            "casts",
            casts(
                (BF16, F16, F32, F64, I8, I32, I64, torch.bool),
                (BF16, F16, F32, I8, I64, torch.bool),
            ),
            {N: 45},
            [16],
            exact=True,
        ),
        Family(
            "casts_fp8",
            casts((torch.float8_e4m3fn, torch.float8_e5m2, F32), (torch.float8_e5m2, BF16)),
            {N: 45},
            [16],
            exact=True,
            targets=("sm_90",),
        ),
        _pointwise_family("functions_float", _FLOATS, F32),
        _pointwise_family("functions_double", _FLOATS, F64),
        _pointwise_family("functions_int8", _INTEGERS, I8),
        _pointwise_family("functions_uint8", _UNSIGNED, U8),
        _pointwise_family("functions_int32", _INTEGERS, I32),
        _pointwise_family("functions_int64", _INTEGERS, I64),
    ]
    return found


FAMILIES: dict[str, Family] = {f.name: f for f in families()}
