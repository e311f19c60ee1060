"""Default block sizes of programs with structure: from their products first, then from their rows.

In: a kernel, typical sizes, a machine. Out: a block size for each tunable name, a power of two.
A product over a looped k gets the blocks that its register tiles want; a product whose result has
a looped axis (attention's scores) long tiles of that axis under some rows of the grid; what is left
is cut so that a step works on what L1 holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy

from torch_helion import _hardware
from torch_helion.codegen.llvm.dot import default_blocks
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.linear import makers
from torch_helion.codegen.llvm.products import below_conversion
from torch_helion.codegen.llvm.ranks import across_axis, axis_ranks
from torch_helion.codegen.llvm.regions import nested_ops
from torch_helion.codegen.llvm.schedule import score_access
from torch_helion.ir.graph import Kernel, Op, Value, loop_blocks
from torch_helion.ir.types import Axis, Buffer, Size, begin_symbol, block_symbol

SCORE_ROWS = 128
"""Rows of a tile of scores: its statistics, and the tile itself in L2."""
SCORE_COLUMNS = 512
CAUSAL_ROWS, CAUSAL_TILES = 64, 4
"""Least rows where scores end with the row (what a tile computes beyond is thrown away), and the
tiles that rows are cut into at least, unless these are fewer.
"""
INNER_SCORES = (128, 256)
"""Rows and columns where both are in loops, as in attention's backward."""
LOOP_TILE = 4096
"""Elements of a tile along the vector axis of an inner loop."""
CARRIED_TILE, CARRIED_SHORT, CARRIED_LONG = 64, 4096, 128
"""The same where values of its length are carried around the loop: what registers hold; where the
loop is longer than so many elements, and memory the limit, more loads at a time.
"""
LOOP_LINES, LINE_ELEMENTS = 32, 256
"""Tiles of inner loops along other axes; fewer lines of long rows."""
PARTS, LEAST_PART = 32, 64
"""Parts that a reduction is cut into, each a step of the grid with a loop of its own over its tile;
and the least positions of one.
"""
STEP_ELEMENTS = 4096
"""Elements of one grid step that has no inner loop."""
GRID_VECTOR = 256
"""Least elements along a vector axis of the grid."""
STREAM_VECTOR, STREAM_BYTES = 2048, 16 << 20
"""The same where a loop inside goes through more memory than caches hold (longer pieces of a row
are fetched ahead), or has few lines (less of its time is the loop's own).
"""
TRANSPOSED_LENGTH, TRANSPOSED_LANES = 128, 256
"""Of a tile of a transposition: along the contiguous axis of one side, and at most along the vector
axis, that of the other.
"""
WAYS = 8
"""Of L1."""
SPLITS, SPLIT_K = 8, 512
"""Parts of a k that the grid is over, and the least elements of one."""
PARTS_A_THREAD = 2
"""Parts of a k that a loop in each step runs over: each adds a whole tile to the result."""
UNKNOWN = 4096


@dataclass
class _Facts:
    """One phase, with typical extents."""

    phase: Op
    kernel: Kernel
    machine: Machine
    hints: Mapping[sympy.Symbol, int]
    blocks: dict[str, int]
    """Chosen so far, by name."""
    names: dict[str, str] = field(default_factory=dict)
    """The tunable name of an axis's block."""
    fixed: dict[str, int] = field(default_factory=dict)
    """Block sizes that the program gives, by axis."""
    grid: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()
    axes: dict[str, Axis] = field(default_factory=dict)

    def extent(self, name: str) -> int:
        return estimate(self.axes[name].size, self.hints)

    def choose(self, name: str, size: int) -> None:
        """Give an axis's block its size, unless it has one."""
        block = self.names.get(name)
        if block is not None and block not in self.blocks:
            whole = 1 << max(0, self.extent(name) - 1).bit_length()
            self.blocks[block] = max(1, min(size, whole))

    def block(self, name: str) -> int | None:
        """Elements of a tile; None: not chosen yet."""
        if name in self.fixed:
            return self.fixed[name]
        if name in self.names:
            return self.blocks.get(self.names[name])
        return self.extent(name)


def estimate(size: Size, hints: Mapping[sympy.Symbol, int]) -> int:
    """A typical value of a size expression; `UNKNOWN` stands for symbols without a hint. A tile is
    taken to be the first one.
    """
    if isinstance(size, int):
        return size
    value = size.xreplace({s: sympy.Integer(hints.get(s, _typical(s))) for s in size.free_symbols})
    try:
        number = max(0, int(value))
    except TypeError:
        return UNKNOWN
    unknown = any(s not in hints and _typical(s) == UNKNOWN for s in size.free_symbols)
    return UNKNOWN if unknown and number <= 1 else number  # what is left of a typical size


def _typical(symbol: sympy.Symbol) -> int:
    """Where no hint says it: of begins and numbers of tiles that of the first, else `UNKNOWN`."""
    return 0 if symbol.name.startswith(("begin_", "id_")) else UNKNOWN


def strided_lanes(stride: int, machine: Machine) -> int:
    """How many elements at this distance in bytes a tile should have.

    Each of them is in a line of its own, which must stay in L1 until the tile has used all of it;
    multiples of large powers of two share few of its sets.
    """
    hardware = _hardware.probe()
    sets = max(1, hardware.l1d // (WAYS * hardware.line))
    apart = max(1, stride // hardware.line) if stride % hardware.line == 0 else 1
    lines = sets // math.gcd(sets, apart) * WAYS
    return max(4, machine.vector_bits // 32, min(TRANSPOSED_LANES, power_of_two(lines // 2)))


def power_of_two(number: int) -> int:
    """The largest power of two that is not above `number` (at least 1)."""
    return 1 << max(0, int(number).bit_length() - 1)


def program_blocks(
    kernel: Kernel, hints: Mapping[sympy.Symbol, int], machine: Machine
) -> list[int]:
    """Block sizes in the order of `kernel.block_names`."""
    blocks: dict[str, int] = {}
    phases = [_facts(kernel, p, hints, machine, blocks) for p in kernel.phases]
    for facts in phases:
        for op in facts.phase.regions[0].walk():
            if op.kind == "dot":
                _product(facts, op)
    for facts in phases:
        _rows(facts)
    return [blocks.get(name, 32) for name in kernel.block_names]


def _facts(
    kernel: Kernel,
    phase: Op,
    hints: Mapping[sympy.Symbol, int],
    machine: Machine,
    blocks: dict[str, int],
) -> _Facts:
    facts = _Facts(phase, kernel, machine, hints, blocks)
    tunable = {block_symbol(n): n for n in kernel.block_names}
    loops = [op for op in phase.regions[0].walk() if op.kind == "loop"]
    for op in (phase, *loops):
        for axis, size in zip(op.attrs["axes"], loop_blocks(op), strict=True):
            facts.axes[axis.name] = axis
            if size in tunable:
                facts.names[axis.name] = tunable[size]  # type: ignore[index]
            elif isinstance(size, int):
                facts.fixed[axis.name] = size
    facts.grid = tuple(a.name for a in phase.attrs["axes"])
    facts.loops = tuple(a.name for op in loops for a in op.attrs["axes"])
    for op in phase.regions[0].walk():
        for value in (*op.operands, *op.results):
            for axis in value.type.axes:
                facts.axes.setdefault(axis.name, axis)
                if axis.of in facts.names:
                    facts.names[axis.name] = facts.names[axis.of]
                elif axis.of in facts.fixed:
                    facts.fixed[axis.name] = facts.fixed[axis.of]
    return facts


# -- products -------------------------------------------------------------------------------------


def _product(facts: _Facts, op: Op) -> None:
    a, b = ([n for n in v.type.axis_names if facts.fixed.get(n) != 1] for v in op.operands[:2])
    k = op.attrs["k"]
    rows, columns = [n for n in a if n not in b], [n for n in b if n not in a]
    if any(n in facts.loops for n in (*rows, *columns)):
        inner = all(any(n in facts.loops for n in side) for side in (rows, columns))
        for name in (*rows, *columns):
            size = SCORE_COLUMNS if name in facts.loops else SCORE_ROWS
            if inner:  # both in loops: several such tiles are kept at once
                size = INNER_SCORES[name in columns]
            elif name not in facts.loops and _ends_with(facts, (*rows, *columns), name):
                size = min(size, max(CAUSAL_ROWS, facts.extent(name) // CAUSAL_TILES))
            facts.choose(name, size)
        return
    if k in facts.loops and not any(n in facts.grid for n in (*rows, *columns)):
        facts.choose(k, SCORE_COLUMNS)
        return
    m, n = (_last(facts, names) for names in (rows, columns))
    sizes = [max(1, facts.extent(x)) if x else 1 for x in (m, n, k)]
    computed = not all(_is_load(facts, v) for v in op.operands[:2])
    left, split = op.operands[0], _split(facts, k)
    found = default_blocks(
        sizes[0],
        sizes[1],
        sizes[2],
        op.operands[0].type.dtype,
        facts.machine,
        a_unit="m" if _is_load(facts, left) and _unit(facts, left, k) != "k" else "k",
        b_unit=_unit(facts, op.operands[1], k),
        computed=computed,
        threads=1 if split else None,  # they share the parts of k
        results=_alike(facts, op),
        batch=math.prod(max(1, facts.extent(x)) for x in facts.grid if x in a and x in b),
    )
    if split is not None:
        tiles = math.prod(-(-size // block) for size, block in zip(sizes[:2], found, strict=False))
        parts = max(1, PARTS_A_THREAD * _hardware.cores() // tiles)
        part = -(-facts.extent(split) // parts)
        facts.choose(split, max(SPLIT_K, 1 << (part - 1).bit_length()))
    for name, size in zip((m, n, k), found, strict=True):
        if name in facts.grid and name == k:
            facts.choose(name, max(SPLIT_K, size // SPLITS))
        elif name is not None:
            facts.choose(name, size)
    for name in (*rows, *columns):
        facts.choose(name, 1)


def _split(facts: _Facts, k: str) -> str | None:
    """The axis of the grid over whose tile a loop over k runs."""
    size = facts.axes[k].size
    begins = {begin_symbol(facts.axes[n]): n for n in facts.grid}
    found = [begins[s] for s in getattr(size, "free_symbols", ()) if s in begins]
    return found[0] if len(found) == 1 and found[0] in _divided(facts) else None


def _ends_with(facts: _Facts, names: Iterable[str], name: str) -> bool:
    """Whether the loop over one of the axes ends where a tile of `name` does, as causal scores."""
    begin = begin_symbol(facts.axes[name])
    sizes = (facts.axes[n].size for n in names if n in facts.loops)
    return any(not isinstance(size, int) and begin in size.free_symbols for size in sizes)


def _alike(facts: _Facts, op: Op) -> int:
    """How many products of a step have the rows and columns of this one."""
    axes = op.result.type.axis_names
    dots = (o for o in facts.phase.regions[0].walk() if o.kind == "dot")
    return sum(o.result.type.axis_names == axes for o in dots)


def _last(facts: _Facts, names: Iterable[str]) -> str | None:
    """The axis of one side that matters: tunable if there is such a one, the longest."""
    return max(names, key=lambda n: (n in facts.names, facts.extent(n)), default=None)


def _producer(facts: _Facts, value: Value) -> Op | None:
    ops = facts.phase.regions[0].walk()
    return next((op for op in ops if value in op.results), None)


def _read(facts: _Facts, value: Value) -> Op | None:
    """What makes an operand of a product, or the bytes that it is converted from."""
    return _producer(facts, below_conversion(lambda v: _producer(facts, v), value))


def _is_load(facts: _Facts, value: Value) -> bool:
    op = _read(facts, value)
    return op is not None and op.kind == "load" and not op.attrs["masked"]


def _unit(facts: _Facts, value: Value, k: str) -> str:
    """Whether an operand's neighbours lie along k or along its other axis."""
    op = _read(facts, value)
    if op is None or op.kind != "load":
        return "n"
    buffer = facts.kernel.buffer(op.attrs["buffer"])
    for stride, index in zip(buffer.strides, op.attrs["index"], strict=True):
        if stride == 1 and k in getattr(index, "axis_names", ()):
            return "k"
    return "n"


# -- rows -----------------------------------------------------------------------------------------


def _rows(facts: _Facts) -> None:
    """What products left open: inner loops first, then the grid around them."""
    buffers = {b.name: b for b in facts.kernel.buffers}
    rank = axis_ranks(facts.phase, buffers, facts.axes, facts.fixed)
    vector = max(rank, key=rank.__getitem__, default=None)
    inner = sorted(facts.loops, key=rank.__getitem__, reverse=True)
    free = vector not in facts.grid and not _has_long_full_axis(facts)
    widest = inner[0] if inner and free else None
    row = math.prod(max(1, facts.extent(n)) for n, a in facts.axes.items() if a.kind == "full")
    lines = power_of_two(min(LOOP_LINES, max(1, LINE_ELEMENTS // row)))
    wide = _contiguous(facts, inner, buffers) if vector in facts.loops else set()
    for name in inner:  # the vector axis first: it has the highest rank
        tile = LOOP_TILE
        if _is_carried(facts, name):
            tile = CARRIED_TILE if facts.extent(name) <= CARRIED_SHORT else CARRIED_LONG
        facts.choose(name, tile if name in (vector, widest, *wide) else lines)
        if name == vector:  # the others repeat it: a line is as long as its tile
            long = min(facts.block(name) or 1, facts.extent(name))
            lines = power_of_two(min(lines, max(1, LINE_ELEMENTS // max(1, long))))
    for name in _divided(facts):
        facts.choose(name, max(LEAST_PART, power_of_two(facts.extent(name) // PARTS)))
    across = across_axis(facts.phase.regions[0].walk(), buffers, vector)
    if across and not facts.loops and vector in facts.grid and _inside(facts) == 1:
        facts.choose(vector, strided_lanes(estimate(across[1], facts.hints), facts.machine))
        facts.choose(across[0], TRANSPOSED_LENGTH)
    budget = max(1, STEP_ELEMENTS // max(1, _inside(facts)))
    for name in sorted(facts.grid, key=rank.__getitem__, reverse=True):
        if facts.block(name) is None:
            size = max(budget, _least_vector(facts, name)) if name == vector else budget
            facts.choose(name, power_of_two(size))
        block = facts.block(name) or 1
        budget = max(1, budget // max(1, min(block, facts.extent(name))))


def _contiguous(facts: _Facts, inner: list[str], buffers: Mapping[str, Buffer]) -> set[str]:
    """Axes of loops along which memory is walked in order: of loops one after the other each one,
    of loops within one another the one of the highest rank.
    """
    score: dict[str, float] = {}
    producer = makers(facts.phase)
    for op in facts.phase.regions[0].walk():
        if op.kind in ("load", "store", "atomic"):
            score_access(op, buffers, score, facts.loops.__contains__, producer)
    found: set[str] = set()
    for name in inner:
        if score.get(name, 0.0) > 0 and not any(_nested(facts, name, n) for n in found):
            found.add(name)
    return found


def _is_carried(facts: _Facts, name: str) -> bool:
    """Whether values have an axis of the length of a tile: what `zeros([..., block])` makes."""
    symbol = block_symbol(facts.names.get(name, name))
    return any(a.kind != "block" and a.size == symbol for a in facts.axes.values())


def _nested(facts: _Facts, one: str, other: str) -> bool:
    """Whether one of two axes is of a loop inside of the other's."""
    for op in facts.phase.regions[0].walk():
        names = {a.name for a in op.attrs["axes"]} if op.kind == "loop" else set()
        if names & {one, other}:
            inside = {a.name for o in nested_ops(op) if o.kind == "loop" for a in o.attrs["axes"]}
            if {one, other} <= names | inside:
                return True
    return False


def _divided(facts: _Facts) -> list[str]:
    """Axes of the grid whose tile a loop inside runs over again: from its begin to its end."""
    found = []
    for name in facts.grid:
        begin = begin_symbol(facts.axes[name])
        for inner in facts.loops:
            size = facts.axes[inner].size
            if not isinstance(size, int) and begin in size.free_symbols:
                one = {s: sympy.Integer(1) for s in size.free_symbols if _is_block(s)}
                early, late = (
                    estimate(size.xreplace({**one, begin: sympy.Integer(at)}), facts.hints)
                    for at in (0, facts.extent(name) // 2)
                )
                if late <= early:  # else it runs from the axis's own beginning
                    found.append(name)
                    break
    return found


def _is_block(symbol: sympy.Symbol) -> bool:
    return symbol.name.startswith("block_")


def _least_vector(facts: _Facts, name: str) -> int:
    """Least elements of the grid's vector axis."""
    if not facts.loops:
        return GRID_VECTOR
    lines = math.prod(facts.block(n) or 1 for n in facts.loops)
    wanted = min(2 * STEP_ELEMENTS // max(1, lines), STREAM_VECTOR // 2)
    wanted = STREAM_VECTOR if _bytes(facts) >= STREAM_BYTES else wanted
    share = power_of_two(facts.extent(name) // _hardware.cores())
    return max(GRID_VECTOR, min(STREAM_VECTOR, power_of_two(wanted), share))


def _bytes(facts: _Facts) -> int:
    """Of all buffers of the kernel."""
    total = 0
    for buffer in facts.kernel.buffers:
        count = buffer.dtype.itemsize
        for extent in buffer.shape:
            count *= max(1, estimate(extent, facts.hints))
        total += count
    return total


def _has_long_full_axis(facts: _Facts) -> bool:
    return any(a.kind == "full" and facts.extent(a.name) >= 64 for a in facts.axes.values())


def _inside(facts: _Facts) -> int:
    """Elements that one point of the grid works on."""
    largest = 1
    for op in facts.phase.regions[0].walk():
        for value in op.results:
            count = 1
            for axis in value.type.axes:
                if axis.tile_name not in facts.grid:
                    count *= max(1, facts.extent(axis.name))
            largest = max(largest, count)
    return largest
