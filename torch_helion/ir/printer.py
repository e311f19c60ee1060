"""A kernel as tile-language source: `to_source`; as exact SSA text: `dump` (from `dump.py`).

In: a kernel. Out: text for people (explain, export, dumps). What the text does where the IR has no
positions:

- Tensors in the text have their dimensions in one order everywhere, the *canonical* one: block axes
  in the order of the loops, then the others in the order of their first use. An operand that lacks
  an axis gets a `None` in its place; `.permute` stands only at a load or store whose buffer has
  another order.
- A subscript item is a tile, `:`, a slice, a number, or an index tensor. Where two index tensors
  share an axis, or one has several, all items are written as tensors that broadcast together.
- A value that is used once and has no name of its own is written where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sympy

from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.source_text import (
    ADD,
    ATOM,
    Expr,
    Identifiers,
    annotation,
    as_tensor,
    number_expr,
    pointwise_expr,
    reduction_expr,
    size_expr,
    size_text,
    sum_expr,
    wrapped,
)
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

__all__ = ["HEADER", "dump", "to_source"]

HEADER = "import torch\nimport torch_helion\nimport torch_helion.language as hl\n"
"""What the text of kernels needs in front of it."""

_LONGEST_INLINE = 60
_INLINE_KINDS = ("pointwise", "cast", "bitcast", "reduce", "expand")
_INTO_KINDS = (*_INLINE_KINDS, "store")
_WIDTH = 100


def to_source(kernel: Kernel) -> str:
    """The kernel as one function of the tile language (without imports, see `HEADER`)."""
    printer = _Printer(kernel)
    printer.signature()
    printer.host()
    for op in kernel.body.ops:
        printer.statement(op)
    printer.results()
    return "\n".join(printer.lines) + "\n"


@dataclass(frozen=True)
class _Item:
    """One subscript: its text, the axes it brings in, what stands for it among index tensors."""

    text: str
    axes: tuple[str, ...]
    tensor: Expr
    is_tensor: bool = False

    @property
    def argument(self) -> str:
        """The text as an element of a list, where a slice has no colons."""
        if ":" not in self.text or self.is_tensor:
            return self.text
        begin, stop, *step = (part or "None" for part in self.text.split(":"))
        parts = [stop] if begin == "None" and not step else [begin, stop, *step]
        return f"slice({', '.join(parts)})"


@dataclass
class _Printer:
    kernel: Kernel
    lines: list[str] = field(default_factory=list)
    depth: int = 0

    def __post_init__(self) -> None:
        kernel = self.kernel
        self.axes = kernel.axes()
        block = [a.name for a in self.axes.values() if a.kind == "block"]
        order = [*block, *(n for n in self.axes if n not in block)]
        self.order = {name: place for place, name in enumerate(order)}
        self.names = Identifiers(
            [*(b.name for b in kernel.buffers), *(s.name for s in kernel.sizes)]
        )
        self.tiles = {name: self.names.new(f"tile_{name}") for name in block}
        self.values: dict[Value, Expr] = {}
        self.uses = Counter(v for op in kernel.body.walk() for v in op.operands)
        self.users = {v: op for op in kernel.body.walk() for v in op.operands}
        self.carried: list[str] = []
        self.origin = ""

    # -- lines ----------------------------------------------------------------------------------

    def line(self, text: str, comment: str = "") -> None:
        note = f"  # {comment}" if comment else ""
        room = _WIDTH - 4 * self.depth
        if len(text + note) > room and note:
            text, note = f"# {comment}\n{text}", ""
        for line in text.split("\n"):
            for piece in wrapped(line + note, room):
                self.lines.append("    " * self.depth + piece)

    def note(self, op: Op) -> str:
        """Where the op comes from, said once for a run of statements."""
        origin, self.origin = self.origin, str(op.origin)
        return self.origin if self.origin != origin else ""

    # -- the host part --------------------------------------------------------------------------

    def signature(self) -> None:
        inputs = [b for b in self.kernel.arguments if b.is_input]
        arguments = [f"{b.name}: {annotation(b.dtype, b.shape)}" for b in inputs]
        self.given = {
            name: text for name, text in map(self._size_source, self.size_names()) if text
        }
        arguments += [f"{n}: int" for n in self.size_names() if n not in self.given]
        outputs = [annotation(b.dtype, b.shape) for b in self.outputs()]
        result = f"tuple[{', '.join(outputs)}]" if len(outputs) > 1 else (outputs or ["None"])[0]
        self.line("@torch_helion.kernel")
        text = f"def {self.kernel.name}({', '.join(arguments)}) -> {result}:"
        if len(text) <= _WIDTH:
            self.line(text)
        else:
            self.line(f"def {self.kernel.name}(")
            for argument in arguments:
                self.line(f"    {argument},")
            self.line(f") -> {result}:")
        self.depth = 1

    def size_names(self) -> list[str]:
        return [s.name for s in self.kernel.sizes]

    def outputs(self) -> list[Buffer]:
        return [b for b in self.kernel.arguments if b.role == "out"]

    def _size_source(self, name: str) -> tuple[str, str]:
        """Where an argument shows the size: `x.size(0)`, `x.stride(1)`, or nowhere."""
        for method in ("size", "stride"):
            for buffer in self.kernel.arguments:
                sizes = buffer.shape if method == "size" else buffer.strides
                for dim, size in enumerate(sizes if buffer.is_input else ()):
                    if str(size) == name:
                        return name, f"{buffer.name}.{method}({dim})"
        return name, ""

    def host(self) -> None:
        """Sizes, outputs, block sizes that have names, workspaces."""
        for buffer in self.kernel.arguments:
            if buffer.is_input and buffer.strides != contiguous_strides(buffer.shape):
                strides = ", ".join(map(size_text, buffer.strides))
                self.line(f"# {buffer.name} has strides ({strides})")
            if buffer.role == "inout":
                self.line(f"# {buffer.name} is written in place")
        for name, text in self.given.items():
            self.line(f"{name} = {text}")
        for buffer in self.outputs():
            self.line(f"{buffer.name} = {self.new_tensor(buffer)}")
        for axis in self.axes.values():
            if self.block_is_named(axis):
                size = size_text(axis.size)
                self.line(f"{block_symbol(axis.name)} = hl.register_block_size({size})")
        for buffer in self.kernel.buffers:
            if buffer.role == "workspace":
                self.line(f"{buffer.name} = {self.new_tensor(buffer)}", "workspace of this call")

    def new_tensor(self, buffer: Buffer) -> str:
        shape = ", ".join(map(size_text, buffer.shape))
        device = next(
            (f", device={b.name}.device" for b in self.kernel.arguments if b.is_input), ""
        )
        tail = f"dtype={buffer.dtype}{device})"
        if buffer.strides == contiguous_strides(buffer.shape):
            return f"torch.empty([{shape}], {tail}"
        strides = ", ".join(map(size_text, buffer.strides))
        return f"torch.empty_strided([{shape}], [{strides}], {tail}"

    def block_is_named(self, axis: Axis) -> bool:
        """Whether some size of the kernel speaks of the axis's block size."""
        symbol = block_symbol(axis.name)
        sizes = [s for b in self.kernel.buffers for s in (*b.shape, *b.strides)]
        sizes += [a.size for a in self.axes.values()]
        for op in self.kernel.body.walk():
            sizes += [op.attrs["expr"]] if op.kind == "size" else []
            for expr in op.attrs.get("index", ()):
                if isinstance(expr, Affine):
                    sizes += [expr.offset, *(c for _, c in expr.terms)]
        return any(symbol in getattr(size, "free_symbols", ()) for size in sizes)

    def results(self) -> None:
        names = [b.name for b in self.outputs()]
        if names:
            self.line(f"return {', '.join(names)}")

    # -- values ---------------------------------------------------------------------------------

    def layout(self, names: Iterable[str]) -> tuple[str, ...]:
        """Axis names in canonical order."""
        return tuple(sorted(set(names), key=self.order.__getitem__))

    def fitted(self, value: Value, axes: Sequence[str]) -> Expr:
        """The value, so that it broadcasts to dimensions `axes` (canonical order)."""
        expr, have = self.values[value], value.type.axis_names
        return _with_axes(expr, have, axes)

    def arranged(self, value: Value, axes: Sequence[str]) -> Expr:
        """The value, so that it broadcasts to dimensions `axes` in whatever order they are."""
        canonical = self.layout(axes)
        expr = self.fitted(value, canonical)
        if tuple(axes) == canonical or not value.type.axes:
            return expr
        shown = _with_axes(self.values[value], value.type.axis_names, canonical, every=True)
        return Expr(f"{shown.at(ATOM)}.permute({_places(axes, canonical)})")

    def tensor(self, value: Value) -> Expr:
        return as_tensor(self.values[value], value.type.dtype)

    def extent(self, name: str) -> str:
        """What stands for the axis in a list of sizes: a tile is its own block size."""
        return self.tiles.get(name) or size_text(self.axes[name].size)

    def define(self, op: Op, expr: Expr) -> None:
        """Write the value where it is used, or give it a name here."""
        if self.inlines(op, expr):
            self.values[op.result] = expr
        else:
            notes = [self.note(op)]
            notes += ["an index outside is an error"] if op.attrs.get("checked") else []
            name = self.names.new(op.result.hint)
            self.line(f"{name} = {expr.text}", "; ".join(filter(None, notes)))
            self.values[op.result] = Expr(name)

    def inlines(self, op: Op, expr: Expr) -> bool:
        value = op.result
        if self.uses[value] != 1 or len(expr.text) > _LONGEST_INLINE:
            return False
        user = self.users[value]
        if op.kind == "load":
            plain = self.kernel.buffer(op.attrs["buffer"]).role != "inout"
            return plain and not op.attrs["checked"] and user.kind == "cast"
        return op.kind in _INLINE_KINDS and user.kind in _INTO_KINDS and _default_hint(op)

    # -- statements -----------------------------------------------------------------------------

    def statement(self, op: Op) -> None:
        row = getattr(self, f"_{op.kind}", None)
        if row is not None:
            row(op)
        else:
            self._other(op)

    def body(self, region: Region) -> None:
        self.depth += 1
        for op in region.ops:
            self.statement(op)
        if not region.ops:
            self.line("pass")
        self.depth -= 1

    def _assert(self, op: Op) -> None:
        error = "index out of range" if op.attrs["status"] == 1 else "division by zero"
        self.line(f"hl.device_assert({self.values[op.operands[0]].text}, {error!r})")

    def _barrier(self, op: Op) -> None:
        self.line("hl.barrier()")

    def _loop(self, op: Op) -> None:
        axes: tuple[Axis, ...] = op.attrs["axes"]
        (region,) = op.regions
        names = self.carry(op.operands, region.args)
        tiles = ", ".join(self.tiles[a.name] for a in axes)
        sizes = [size_text(a.size) for a in axes]
        blocks = [str(block_symbol(a.name)) if self.block_is_named(a) else "None" for a in axes]
        one = len(axes) == 1
        extents, block = (x[0] if one else f"[{', '.join(x)}]" for x in (sizes, blocks))
        block = f", block_size={block}" if any(b != "None" for b in blocks) else ""
        if axes:
            kind = "grid" if op.attrs["kind"] == "sequential" else "tile"
            self.line(f"for {tiles} in hl.{kind}({extents}{block}):")
        else:
            self.line("for _ in hl.grid(1):")
        self.origin = ""
        self.inside(region, names)
        self.bind(op.results, names)

    def carry(self, operands: Sequence[Value], args: Sequence[Value]) -> list[str]:
        """Variables for loop-carried values, set to where they start."""
        names = [self.names.new(a.hint) for a in args]
        for name, operand in zip(names, operands, strict=True):
            self.line(f"{name} = {self.tensor(operand).text}")
        self.bind(args, names)
        return names

    def bind(self, values: Sequence[Value], names: Sequence[str]) -> None:
        self.values.update(zip(values, map(Expr, names), strict=True))

    def inside(self, region: Region, names: list[str]) -> None:
        """A region whose yield sets the variables `names`."""
        outer, self.carried = self.carried, names
        self.body(region)
        self.carried = outer

    def _if(self, op: Op) -> None:
        names = [self.names.new(r.hint) for r in op.results]
        self.line(f"if {self.values[op.operands[0]].text}:")
        self.inside(op.regions[0], names)
        self.line("else:")
        self.inside(op.regions[1], names)
        self.bind(op.results, names)

    def _while(self, op: Op) -> None:
        condition, body = op.regions
        names = self.carry(op.operands, condition.args)
        self.bind(body.args, names)
        proceed = self.names.new("proceed")
        self.line("while True:")
        self.inside(condition, [proceed])
        self.depth += 1
        self.line(f"if not {proceed}:")
        self.line("    break")
        self.depth -= 1
        self.inside(body, names)
        self.bind(op.results, names)

    def _yield(self, op: Op) -> None:
        if op.operands:
            values = ", ".join(self.tensor(v).text for v in op.operands)
            self.line(f"{', '.join(self.carried)} = {values}")

    def _other(self, op: Op) -> None:
        """Kinds without a form of their own: a call with all attributes."""
        operands = [self.values[v].text for v in op.operands]
        attrs = [f"{k}={getattr(v, 'name', v)!r}" for k, v in op.attrs.items()]
        names = [self.names.new(r.hint) for r in op.results]
        self.line(f"{', '.join(names)} = hl.{op.kind}({', '.join([*operands, *attrs])})")
        self.bind(op.results, names)

    # -- memory ---------------------------------------------------------------------------------

    def _load(self, op: Op) -> None:
        items = [self.item(e, d, op, 0) for d, e in enumerate(op.attrs["index"])]
        here = [n for item in items for n in item.axes]
        want = self.layout(op.result.type.axis_names)
        mask = op.operands[-1] if op.attrs["masked"] else None
        if not _in_place(items) or set(here) != set(want):
            items, here = self.broadcast(items, want), list(want)
        name = op.attrs["buffer"]
        if mask is None:
            text = f"{name}[{_subscript(items)}]"
        else:
            index = ", ".join(i.argument for i in items)
            text = f"hl.load({name}, [{index}], extra_mask={self.arranged(mask, here).text})"
        if tuple(here) != want:
            text += f".permute({_places(want, here)})"
        if mask is not None and op.attrs["other"] != 0:
            other = number_expr(op.attrs["other"], op.result.type.dtype)
            text = f"torch.where({self.fitted(mask, want).text}, {text}, {other.text})"
        self.define(op, Expr(text))

    def _store(self, op: Op) -> None:
        value = op.operands[0]
        items = [self.item(e, d, op, 1) for d, e in enumerate(op.attrs["index"])]
        here = [n for item in items for n in item.axes]
        if not _in_place(items):
            want = self.layout(here)
            items, here = self.broadcast(items, want), list(want)
        name, text = op.attrs["buffer"], self.arranged(value, here).text
        if op.attrs["masked"]:
            index = ", ".join(i.argument for i in items)
            mask = self.arranged(op.operands[-1], here).text
            self.line(f"hl.store({name}, [{index}], {text}, extra_mask={mask})", self.note(op))
        else:
            self.line(f"{name}[{_subscript(items)}] = {text}", self.note(op))

    def item(self, expr: IndexExpr, dim: int, op: Op, first: int) -> _Item:
        """The subscript of one dimension. Gathered indices begin at operand `first`."""
        if isinstance(expr, Gather):
            value = op.operands[first + expr.operand]
            axes = self.layout(value.type.axis_names)
            return _Item(self.values[value].text, axes, self.values[value], bool(axes))
        axes = self.layout(n for n in expr.axis_names if n in self.axes)
        terms = [(self.term(name, axes), c) for name, c in expr.terms]
        tensor = sum_expr(terms, expr.offset)
        if len(axes) == 1 and len(terms) == 1:
            short = self.short(expr, self.axes[axes[0]], op, dim)
            if short:
                return _Item(short, axes, tensor)
        return _Item(tensor.text, axes, tensor, bool(axes))

    def short(self, expr: Affine, axis: Axis, op: Op, dim: int) -> str:
        """A tile, `:` or a slice, where one of them says it."""
        buffer = self.kernel.buffer(op.attrs["buffer"])
        ((_, step),) = expr.terms
        start = expr.offset
        if axis.kind == "block":
            if step != 1:
                return ""
            tile = Expr(self.tiles[axis.name])
            return sum_expr([(tile, 1)], start).text
        if step == 1 and start == 0 and axis.size == buffer.shape[dim]:
            return ":"
        # A slice is cut at the ends of its dimension and counts negative numbers from the end: it
        # says the same only where no lane is outside.
        if op.attrs["masked"] or not _at_least(start, 0) or not _at_least(step, 1):
            return ""
        stop = start + (axis.size - 1) * step + 1
        begin = size_text(start) if start != 0 else ""
        return f"{begin}:{size_text(stop)}" + (f":{size_text(step)}" if step != 1 else "")

    def term(self, name: str, axes: Sequence[str]) -> Expr:
        """One term of an index map as a tensor over `axes`."""
        if name in self.axes:
            return _with_axes(self.positions(self.axes[name]), (name,), axes)
        return Expr(f"{self.tiles[name.removesuffix('.id')]}.id")

    def positions(self, axis: Axis) -> Expr:
        if axis.kind == "block":
            return Expr(f"{self.tiles[axis.name]}.index")
        return Expr(f"hl.arange({size_text(axis.size)})")

    def broadcast(self, items: Sequence[_Item], axes: Sequence[str]) -> list[_Item]:
        """The items as tensors that broadcast together to dimensions `axes`."""
        tensors = [_with_axes(i.tensor, i.axes, axes) for i in items]
        return [_Item(t.text, i.axes, t, bool(i.axes)) for t, i in zip(tensors, items, strict=True)]

    # -- values, one row a kind -----------------------------------------------------------------

    def _const(self, op: Op) -> None:
        self.values[op.result] = number_expr(op.attrs["value"], op.attrs["dtype"])

    def _size(self, op: Op) -> None:
        self.values[op.result] = size_expr(op.attrs["expr"])

    def _iota(self, op: Op) -> None:
        self.values[op.result] = self.positions(self.axes[op.attrs["axis"]])

    def _pointwise(self, op: Op) -> None:
        axes = self.layout(op.result.type.axis_names)
        operands = [self.fitted(v, axes) for v in op.operands]
        dtype = op.operands[-1].type.dtype
        self.define(op, pointwise_expr(op.attrs["fn"], operands, dtype))

    def _cast(self, op: Op) -> None:
        receiver = self.tensor(op.operands[0]).at(ATOM)
        self.define(op, Expr(f"{receiver}.to({op.attrs['dtype']})"))

    def _bitcast(self, op: Op) -> None:
        receiver = self.tensor(op.operands[0]).at(ATOM)
        self.define(op, Expr(f"{receiver}.view({op.attrs['dtype']})"))

    def _reduce(self, op: Op) -> None:
        (value,) = op.operands
        have = self.layout(value.type.axis_names)
        dims = [have.index(n) for n in op.attrs["axes"]]
        fn = op.attrs["fn"]
        expr = reduction_expr(fn, self.tensor(value), dims, len(have), value.type.dtype)
        tile = self.tiles.get(op.attrs["axes"][0])
        if fn in ("argmax", "argmin") and tile:  # positions count along the whole axis
            expr = Expr(f"{expr.text} + {tile}.begin", ADD)
        self.define(op, expr)

    def _expand(self, op: Op) -> None:
        (value,) = op.operands
        axes = self.layout(op.result.type.axis_names)
        extents = ", ".join(map(self.extent, axes))
        if self.values[value].literal:
            text = f"hl.full([{extents}], {self.values[value].text}, dtype={value.type.dtype})"
        else:
            text = f"{self.fitted(value, axes).at(ATOM)}.expand({extents})"
        self.define(op, Expr(text))

    def _reshape(self, op: Op) -> None:
        extents = ", ".join(self.extent(a.name) for a in op.result.type.axes)
        self.define(op, Expr(f"{self.tensor(op.operands[0]).at(ATOM)}.reshape({extents})"))

    def _rng(self, op: Op) -> None:
        seed, index, *bounds = (self.values[v].text for v in op.operands)
        axes = self.layout(op.result.type.axis_names)
        shape = ", ".join(map(self.extent, axes))
        arguments = [f"[{shape}]", *bounds, f"seed={seed}", f"offsets={index}"]
        self.define(op, Expr(f"hl.{op.attrs['fn']}({', '.join(arguments)})"))


def _with_axes(expr: Expr, have: Iterable[str], want: Sequence[str], every: bool = False) -> Expr:
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


def _at_least(size: Size, least: int) -> bool:
    return bool(sympy.sympify(size - least).is_nonnegative)


def _subscript(items: Sequence[_Item]) -> str:
    return ", ".join(item.text for item in items) or "()"


def _places(want: Sequence[str], have: Sequence[str]) -> str:
    return ", ".join(str(list(have).index(name)) for name in want)


def _in_place(items: Sequence[_Item]) -> bool:
    """Whether the result has each item's dimensions in the item's place."""
    axes = [n for item in items for n in item.axes]
    tensors = [item for item in items if item.is_tensor]
    return len(set(axes)) == len(axes) and len(tensors) <= 1


def _default_hint(op: Op) -> bool:
    """Whether the value has no name of its own, only that of its function or operand."""
    hint = op.result.hint
    return hint in ("v", op.attrs.get("fn")) or any(hint == v.hint for v in op.operands)
