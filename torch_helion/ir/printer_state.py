"""The source text of a kernel while it is being written: lines, names, how values are laid out.

In: a kernel. Out: `Printer`, which the rows of the printer's tables read and write. Used by the
modules of the printer only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy

from torch_helion.ir.graph import Kernel, Op, Region, Value, loop_blocks
from torch_helion.ir.ops import OP_KINDS
from torch_helion.ir.source_text import (
    ATOM,
    Expr,
    Identifiers,
    as_tensor,
    size_expr,
    size_text,
    wrapped,
)
from torch_helion.ir.types import Affine, Axis, Size, begin_symbol, block_symbol, id_symbol

LONGEST_INLINE = 60
LONGEST_ALONE = 80
WIDTH = 100
_INLINE_KINDS = ("pointwise", "cast", "bitcast", "reduce", "expand", "dot", "scan")
_INTO_KINDS = (
    *_INLINE_KINDS,
    *("store", "atomic", "yield", "if", "loop", "while", "print", "assert", "sort"),
)

Row = Callable[["Printer", Op], None]


@dataclass
class Printer:
    kernel: Kernel
    rows: Mapping[str, Row]
    """How each op kind is written."""
    lines: list[str] = field(default_factory=list)
    depth: int = 0
    helpers: list[str] = field(default_factory=list)
    """Functions that stand before the kernel."""
    origin: str = ""
    carried: list[str] = field(default_factory=list)
    """The variables that a yield sets; a helper function has none and returns."""
    everything_inline: bool = False
    in_helper: bool = False

    def __post_init__(self) -> None:
        kernel = self.kernel
        self.axes = kernel.axes()
        block = [a.name for a in self.axes.values() if a.kind == "block"]
        order = [*block, *(n for n in self.axes if n not in block)]
        self.order = {name: place for place, name in enumerate(order)}
        self.named_blocks = _named_blocks(kernel)
        taken = [*(b.name for b in kernel.buffers), *(s.name for s in kernel.sizes)]
        self.names = Identifiers([*taken, *(str(block_symbol(n)) for n in self.named_blocks)])
        self.symbols: dict[sympy.Symbol, str] = {}
        self.tiles: dict[str, str] = {}
        self._name_tiles()
        self.values: dict[Value, Expr] = {}
        self.owners: set[Value] = set()
        """Values with a variable of their own."""
        self.loads: dict[Value, tuple[str, tuple[str, ...]]] = {}
        """Loads that are written where they are used: their text, and the order of its dimensions
        before they are brought into the canonical one."""
        self.float_arguments: dict[str, list[Op]] = {}
        """Sizes that hold the bits of a float64, with the ops that take them as such."""
        self.float_numbers: set[Value] = set()
        """Values that are float arguments of the host, or casts of one."""
        self._gather_uses()

    def _name_tiles(self) -> None:
        """A variable for each axis of a loop, and texts for its begin and number."""
        self.index_axes = index_axes(self.kernel)
        """Axes whose loops give positions, not tiles."""
        for name, axis in self.axes.items():
            if axis.kind != "block" or axis.of:
                continue
            number = name in self.index_axes
            plain = number or name.startswith("tile")
            variable = self.names.new(name if plain else f"tile_{name}")
            self.tiles[name] = variable
            self.symbols[begin_symbol(axis)] = variable if number else f"{variable}.begin"
            self.symbols[id_symbol(axis)] = variable if number else f"{variable}.id"

    def _gather_uses(self) -> None:
        self.uses: Counter[Value] = Counter()
        self.users: dict[Value, Op] = {}
        self.region_of: dict[Op, Region] = {}
        self.made_in: dict[Value, Region] = {}
        for region in _regions(self.kernel.body):
            self.made_in.update(dict.fromkeys(region.args, region))
            for op in region.ops:
                self.region_of[op] = region
                self.made_in.update(dict.fromkeys(op.results, region))
                self.uses.update(op.operands)
                self.users.update(dict.fromkeys(op.operands, op))

    # -- lines ----------------------------------------------------------------------------------

    def line(self, text: str, comment: str = "") -> None:
        note = f"  # {comment}" if comment else ""
        room = WIDTH - 4 * self.depth
        if len(text + note) > room and note:
            text, note = f"# {comment}\n{text}", ""
        for line in text.split("\n"):
            pieces = [line] if line.startswith("#") else wrapped(line + note, room)
            self.lines += ["    " * self.depth + piece for piece in pieces]

    def note(self, op: Op) -> str:
        """Where the op comes from, said once for a run of statements."""
        origin, self.origin = self.origin, str(op.origin)
        return self.origin if self.origin != origin else ""

    def statement(self, op: Op) -> None:
        self.rows.get(op.kind, call_by_kind)(self, op)

    def body(self, region: Region) -> None:
        self.depth += 1
        before = len(self.lines)
        for op in region.ops:
            self.statement(op)
        if len(self.lines) == before:
            self.line("pass")
        self.depth -= 1

    @contextmanager
    def helper(self, name: str, arguments: Sequence[str]) -> Iterator[None]:
        """What is written inside is a function before the kernel."""
        outer = (self.lines, self.depth, self.carried, self.origin, self.in_helper)
        self.lines, self.depth, self.carried, self.in_helper = [], 0, [], True
        self.line(f"def {name}({', '.join(arguments)}):")
        self.depth = 1
        yield
        self.helpers += [*self.lines, "", ""]
        self.lines, self.depth, self.carried, self.origin, self.in_helper = outer

    # -- sizes ----------------------------------------------------------------------------------

    def size(self, size: Size) -> str:
        return size_text(size, self.symbols)

    def size_expr(self, size: Size) -> Expr:
        return size_expr(size, self.symbols)

    def extent(self, name: str) -> str:
        """What stands for the axis in a list of sizes: a tile is its own block size."""
        axis = self.axes[name]
        return self.tiles.get(axis.tile_name) or self.size(axis.size)

    def positions(self, axis: Axis) -> Expr:
        if axis.kind == "block":
            return Expr(f"{self.tiles[axis.tile_name]}.index")
        return Expr(f"hl.arange({self.size(axis.size)})")

    # -- values ---------------------------------------------------------------------------------

    def layout(self, names: Iterable[str]) -> tuple[str, ...]:
        """Axis names in canonical order."""
        return tuple(sorted(set(names), key=self.order.__getitem__))

    def canonical(self, value: Value) -> tuple[str, ...]:
        return self.layout(value.type.axis_names)

    def fitted(self, value: Value, axes: Sequence[str]) -> Expr:
        """The value, so that it broadcasts to dimensions `axes` (canonical order)."""
        return with_axes(self.values[value], value.type.axis_names, axes)

    def arranged(self, value: Value, axes: Sequence[str]) -> Expr:
        """The value, so that it broadcasts to dimensions `axes` in whatever order they are."""
        canonical = self.layout(axes)
        expr = self.fitted(value, canonical)
        if tuple(axes) == canonical or not value.type.axes:
            return expr
        shown = with_axes(self.values[value], value.type.axis_names, canonical, every=True)
        return Expr(f"{shown.at(ATOM)}.permute({places(axes, canonical)})")

    def settled(self, text: str, have: Sequence[str], want: Sequence[str]) -> str:
        """`text`, an atom with dimensions `have`, with dimensions `want` (the same axes)."""
        if tuple(have) == tuple(want):
            return text
        if len(want) == 2:
            return f"{text}.T"
        return f"{text}.permute({places(want, have)})"

    def ordered(self, value: Value, want: Sequence[str]) -> str:
        """The value with its own axes as dimensions in the order `want`."""
        if value in self.loads:
            text, have = self.loads[value]
            return self.settled(text, have, want)
        return self.settled(self.tensor(value).at(ATOM), self.canonical(value), want)

    def spread(self, value: Value, want: Sequence[str]) -> str:
        """The value with dimensions `want`, repeated along those that it lacks."""
        expr = self.arranged(value, want)
        if set(value.type.axis_names) == set(want):
            return expr.at(ATOM)
        tensor = as_tensor(expr, value.type.dtype).at(ATOM)
        return f"{tensor}.expand({', '.join(map(self.extent, want))})"

    def tensor(self, value: Value) -> Expr:
        return as_tensor(self.values[value], value.type.dtype)

    def bind(self, values: Sequence[Value], names: Sequence[str]) -> None:
        """Variables for values."""
        self.values.update(zip(values, map(Expr, names), strict=True))
        self.owners.update(values)

    def define(self, op: Op, expr: Expr) -> None:
        """Write the value where it is used, or give it a name here."""
        if self.inlines(op, expr):
            self.values[op.result] = expr
            return
        notes = [self.note(op)]
        notes += ["an index outside is an error"] if op.attrs.get("checked") else []
        name = self.names.new(self.hint(op.result))
        self.line(f"{name} = {expr.text}", "; ".join(filter(None, notes)))
        self.bind([op.result], [name])

    def hint(self, value: Value) -> str:
        """A reader's name for the value: a constant that a loop goes on with is no constant."""
        user = self.users.get(value)
        goes_on = value.hint == "c" and user is not None and user.kind in ("loop", "while")
        return "acc" if goes_on else value.hint

    def define_all(self, op: Op, text: str, orders: Sequence[Sequence[str]] = ()) -> None:
        """Names for all results; `orders`: in which order of dimensions the call gives each."""
        names = [self.names.new(r.hint) for r in op.results]
        self.line(f"{', '.join(names)} = {text}", self.note(op))
        self.bind(op.results, names)
        for result, name, have in zip(op.results, names, orders, strict=bool(orders)):
            want = self.canonical(result)
            if tuple(have) != want:
                self.line(f"{name} = {self.settled(name, have, want)}")

    def inlines(self, op: Op, expr: Expr) -> bool:
        if self.everything_inline:
            return True
        value = op.result
        if self.uses[value] != 1:
            return False
        user = self.users[value]
        only = user.kind == "yield" and len(user.operands) == 1  # which has a name for it
        if len(expr.text) > (LONGEST_ALONE if only else LONGEST_INLINE):
            return False
        if self.region_of[user] is not self.region_of[op]:
            return False  # written there, it would be another op of another region
        if op.kind == "load":
            return is_plain_load(self.kernel, op) and user.kind in ("cast", "dot")
        if op.kind not in _INLINE_KINDS or user.kind not in _INTO_KINDS:
            return False
        return only or _default_hint(op)

    def inline_region(self, region: Region) -> Expr | None:
        """The one value that the region yields as an expression; None if it is more than that."""
        ops = region.ops[:-1]
        if len(region.yielded) != 1 or not all(_only_computes(self.kernel, op) for op in ops):
            return None
        self.everything_inline = True
        for op in ops:
            self.statement(op)
        self.everything_inline = False
        return self.values[region.yielded[0]]


def _regions(region: Region) -> Iterator[Region]:
    yield region
    for op in region.ops:
        for inner in op.regions:
            yield from _regions(inner)


def is_plain_load(kernel: Kernel, op: Op) -> bool:
    """Whether it gives the same whenever it is done."""
    plain = kernel.buffer(op.attrs["buffer"]).role == "in"
    return plain and not op.attrs["checked"] and not op.attrs.get("stacked")


def _only_computes(kernel: Kernel, op: Op) -> bool:
    if op.regions or len(op.results) != 1 or not OP_KINDS[op.kind].pure:
        return False
    return op.kind != "load" or is_plain_load(kernel, op)


def _default_hint(op: Op) -> bool:
    """Whether the value has no name of its own, only that of its function or operand."""
    hint = op.result.hint
    own = (op.attrs.get("fn"), f"cum{op.attrs.get('fn')}", op.kind, "v")
    return hint in own or any(hint == v.hint for v in op.operands)


def call_by_kind(p: Printer, op: Op) -> None:
    """Kinds without a form of their own: a call with all attributes."""
    operands = [p.values[v].text for v in op.operands]
    attrs = [f"{k}={getattr(v, 'name', v)!r}" for k, v in op.attrs.items()]
    call = f"hl.{op.kind}({', '.join([*operands, *attrs])})"
    if op.results:
        p.define_all(op, call)
    else:
        p.line(call, p.note(op))


def with_axes(expr: Expr, have: Iterable[str], want: Sequence[str], every: bool = False) -> Expr:
    """`expr` with a `None` for each axis of `want` that it lacks (`every`: leading ones, too)."""
    have = set(have)
    if not have and not every:
        return expr
    items = [":" if name in have else "None" for name in want]
    while items and items[0] == "None" and not every:
        items.pop(0)
    if all(item == ":" for item in items):
        return expr
    return Expr(f"{expr.at(ATOM)}[{', '.join(items)}]")


def places(want: Sequence[str], have: Sequence[str]) -> str:
    return ", ".join(str(list(have).index(name)) for name in want)


# -- block sizes --------------------------------------------------------------------------------


def index_axes(kernel: Kernel) -> set[str]:
    """Axes of loops that give positions, not tiles: block size 1, and no value has the axis."""
    found: set[str] = set()
    used: set[str] = set()
    for op in kernel.body.walk():
        for value in (*op.results, *(a for region in op.regions for a in region.args)):
            used |= {n for a in value.type.axes for n in (a.name, a.tile_name)}
        for expr in op.attrs.get("index", ()):
            used |= {n.removesuffix(".id") for n in getattr(expr, "axis_names", ())}
        if op.kind == "loop" and op.attrs["axes"] and all(b == 1 for b in loop_blocks(op)):
            found |= {a.name for a in op.attrs["axes"]}
    for op in kernel.body.walk():  # all axes of a loop are of one sort
        if op.kind == "loop" and used & {a.name for a in op.attrs["axes"]}:
            found -= {a.name for a in op.attrs["axes"]}
    return found


def _named_blocks(kernel: Kernel) -> list[str]:
    """Names of the block sizes that the text must register, in order."""
    mentioned = _mentioned_blocks(kernel)
    if not kernel.blocks:
        return [n for n in _own_blocks(kernel) if n in mentioned]
    own = _own_blocks(kernel)
    plain = own == list(kernel.blocks) and not mentioned & set(own)
    return [] if plain else list(kernel.blocks)


def _own_blocks(kernel: Kernel) -> list[str]:
    """Axes whose block size is their own symbol, in the order of the loops."""
    found: dict[str, None] = {}
    for op in kernel.body.walk():
        if op.kind == "loop":
            for axis, block in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                if block == block_symbol(axis.name):
                    found.setdefault(axis.name)
    return list(found)


def _mentioned_blocks(kernel: Kernel) -> set[str]:
    """Block sizes that stand anywhere but as the block of their own axis."""
    sizes: list[Any] = [s for b in kernel.buffers for s in (*b.shape, *b.strides)]
    sizes += [a.size for a in kernel.axes().values()]
    for op in kernel.body.walk():
        sizes += [op.attrs[name] for name in ("expr", "begin", "end", "step") if name in op.attrs]
        for expr in op.attrs.get("index", ()):
            if isinstance(expr, Affine):
                sizes += [expr.offset, *(c for _, c in expr.terms)]
        if op.kind == "loop":
            pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
            sizes += [block for axis, block in pairs if block != block_symbol(axis.name)]
    symbols: set[Any] = set().union(*(getattr(s, "free_symbols", set()) for s in sizes))
    return {s.name.removeprefix("block_") for s in symbols if s.name.startswith("block_")}
