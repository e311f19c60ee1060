"""Kernels of the tile IR as text, read by the front end again; a normal form to compare both.

    again = read_back(kernel)                # through to_source and the front end, sizes left open
    assert normal_form(again) == normal_form(kernel)

The normal form says what a kernel does in the order of its effects: values where they are first
needed, equal values once, axes and values numbered in the order of first sight. It leaves out what
has no meaning: names of values and axes, places of pure ops, unused values, unused buffers.
"""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from torch_helion.frontend.host import HostFunction, split
from torch_helion.frontend.trace import Traced, trace
from torch_helion.ir.graph import Kernel, Op, Region, Value, loop_blocks
from torch_helion.ir.ops import OP_KINDS
from torch_helion.ir.printer import HEADER, to_source
from torch_helion.ir.types import Affine, Axis, Buffer, begin_symbol, block_symbol, id_symbol
from torch_helion.ir.verifier import verify
from torch_helion.kernel import arguments
from torch_helion.kernel.example import Example
from torch_helion.passes import pass_manager
from torch_helion.passes.pipeline import KEEP_AXES
from torch_helion.settings import Settings

_count = iter(range(10**9))


def load_text(source: str, name: str, **names: Any) -> Any:
    """The kernel `name` of a text, as if the text were a file with imports (and `names`)."""
    file, text = f"<{name} {next(_count)}>", f"{HEADER}\n\n{source}"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = dict(names)
    exec(compile(text, file, "exec"), space)
    return space[name]


def host_of(source: str, name: str) -> HostFunction:
    return split(load_text(source, name).fn)


def read_back(kernel: Kernel) -> Kernel:
    """What the front end makes of the kernel's text, with the names of the kernel's sizes."""
    source = to_source(kernel)
    host, found = host_of(source, kernel.name), list[Kernel]()
    example = Example(static=False)
    with example.mode():
        numbers = {s: _open(example, 37 + 2 * i) for i, s in enumerate(kernel.sizes)}
        inputs = [_fake(b, numbers) for b in kernel.arguments if b.is_input]
        names = [p.strip(" \n") for p in source.split(") -> ")[0].split("\n")]
        free = [n for s, n in numbers.items() if any(f"{s}: int" in line for line in names)]
        floats = [
            example.opened((1.5,), {(0,)})[0]
            for s in kernel.sizes
            if any(f"{s}: float" in line for line in names)
        ]

        def launch(*values: Any) -> None:
            traced = trace(host, values, Settings(static_shapes=False))
            verify(traced.kernel)
            found.append(_renamed(traced, values, numbers))

        host.with_launch(launch)(*inputs, *_in_order(kernel, names, free, floats))
    names = [b.name for b in kernel.arguments]
    made = [b if b.name in names else _workspace(b) for b in found[0].buffers]
    return dataclasses.replace(found[0], buffers=tuple(made))


def _workspace(buffer: Buffer) -> Buffer:
    """A tensor that the host part makes for one call."""
    return dataclasses.replace(buffer, role="workspace")


def _renamed(traced: Traced, values: Any, numbers: Mapping[sympy.Symbol, Any]) -> Kernel:
    """The kernel with sizes as what they are of the sizes that it was read with."""
    names = {n.node.expr: s for s, n in numbers.items() if isinstance(n, torch.SymInt)}
    new: dict[Any, Any] = {}
    for symbol, source in zip(traced.kernel.sizes, traced.sizes, strict=True):
        kind, path, *dim = source
        leaf = arguments.get(values, path)
        number = getattr(leaf, kind)(*dim) if kind in ("size", "stride") else leaf
        if isinstance(number, torch.SymInt):
            new[symbol] = number.node.expr.subs(names)
    return _with_sizes(traced.kernel, new)


def _with_sizes(kernel: Kernel, new: Mapping[Any, Any]) -> Kernel:
    def change(x: Any) -> Any:
        if isinstance(x, sympy.Expr):
            x = x.subs(new)
            return int(x) if x.is_Integer else x
        if isinstance(x, tuple):
            return tuple(map(change, x))
        if isinstance(x, Axis):
            return dataclasses.replace(x, size=change(x.size))
        if isinstance(x, Affine):
            return Affine(change(x.terms), change(x.offset))
        return x

    types: dict[Value, Value] = {}

    def value(v: Value) -> Value:
        if v not in types:
            types[v] = Value(dataclasses.replace(v.type, axes=change(v.type.axes)), v.hint)
        return types[v]

    def region(r: Region) -> Region:
        return Region(tuple(map(value, r.args)), tuple(map(op, r.ops)))

    def op(o: Op) -> Op:
        return dataclasses.replace(
            o,
            operands=tuple(map(value, o.operands)),
            attrs={k: change(v) for k, v in o.attrs.items()},
            results=tuple(map(value, o.results)),
            regions=tuple(map(region, o.regions)),
        )

    buffers = tuple(
        dataclasses.replace(b, shape=change(b.shape), strides=change(b.strides))
        for b in kernel.buffers
    )
    symbols = {s for n in new.values() for s in n.free_symbols}
    sizes = tuple(s for s in kernel.sizes if s not in new) + tuple(symbols)
    return dataclasses.replace(kernel, buffers=buffers, sizes=sizes, body=region(kernel.body))


def _in_order(kernel: Kernel, lines: list[str], ints: list[Any], floats: list[Any]) -> list[Any]:
    kinds = [
        kind
        for s in kernel.sizes
        for kind in ("int", "float")
        if any(f"{s}: {kind}" in line for line in lines)
    ]
    given = {"int": iter(ints), "float": iter(floats)}
    return [next(given[kind]) for kind in kinds]


def _open(example: Example, hint: int) -> Any:
    source = ConstantSource(f"__size_{next(_count)}")
    symbol = example.shape_env.create_unspecified_symbol(hint, source, DimDynamic.DYNAMIC)
    return example.shape_env.create_symintnode(symbol, hint=hint, source=source)


def _fake(buffer: Buffer, numbers: Mapping[sympy.Symbol, Any]) -> torch.Tensor:
    shape, strides = (
        [sympy.lambdify(list(numbers), s)(*numbers.values()) for s in sizes]
        for sizes in (buffer.shape, buffer.strides)
    )
    return torch.empty_strided(shape, strides, dtype=buffer.dtype)


def same_words(kernel: Kernel) -> bool:
    """Whether the language has words for all that the kernel does, so that it reads back as it is.

    Not so: products without one axis of rows and one of columns, atomics with more lanes than
    places, reductions of several axes by a function; tests for infinities (which PyTorch takes
    apart); axes of size 1 (which are none); whole axes of a size that no tensor shows.
    """
    shown = [s for b in kernel.arguments if b.is_input for s in (*b.shape, *b.strides)]
    known = {s for s in shown if getattr(s, "is_Symbol", False)}
    for axis in kernel.axes().values():
        symbols = getattr(axis.size, "free_symbols", set())
        if axis.size in (0, 1) or (axis.kind == "full" and not symbols <= known):
            return False
    return all(_same_words(op) for op in kernel.body.walk())


def _same_words(op: Op) -> bool:
    if op.kind == "dot":
        left, right = (set(v.type.axis_names) - {op.attrs["k"]} for v in op.operands[:2])
        return len(left & right) < 2 and len(left - right) == len(right - left) == 1
    if op.kind == "atomic":
        moving = {n for e in op.attrs["index"] for n in getattr(e, "axis_names", ())}
        moving |= {n for v in op.access.gathered for n in v.type.axis_names}
        return all(set(v.type.axis_names) <= moving for v in op.operands)
    if op.kind == "reduce" and op.attrs["fn"] == "custom":
        return len(op.attrs["axes"]) == 1
    return op.kind != "pointwise" or op.attrs["fn"] not in ("isfinite", "isinf")


# -- the normal form ----------------------------------------------------------------------------

_EFFECTS = frozenset(("store", "atomic", "print", "assert", "barrier", "yield", "bind"))


def normal_form(kernel: Kernel) -> str:
    """The same text for kernels that do the same in the same order."""
    return "\n".join(_Form(pass_manager.run(KEEP_AXES, _unchecked(kernel))).lines)


def _unchecked(kernel: Kernel) -> Kernel:
    """Without the checks of indices, which the front end makes wherever it knows no better."""

    def region(r: Region) -> Region:
        return Region(r.args, tuple(map(op, r.ops)))

    def op(o: Op) -> Op:
        attrs = {k: False if k == "checked" else v for k, v in o.attrs.items()}
        return dataclasses.replace(o, attrs=attrs, regions=tuple(map(region, o.regions)))

    return dataclasses.replace(kernel, body=region(kernel.body))


def _without_maxima(expr: Any) -> Any:
    """Strides of PyTorch count a dimension without elements as one of one element; a range whose
    bound comes from memory is empty where that is negative.
    """
    args = [_without_maxima(a) for a in expr.args]
    if type(expr).__name__ == "Max" and (0 in args or 1 in args):
        return sympy.prod(a for a in args if a not in (0, 1))
    return expr.func(*args) if args else expr


class _Form:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lines: list[str] = []
        self.depth = self.depth_inside = 0
        self.axes: dict[str, str] = {}
        self.sizes: dict[str, str] = {}
        self.texts: dict[Any, str] = {}
        """What stands for a value, by the value and what its axes are called instead."""
        self.instead: dict[str, Axis] = {}
        """Axes in the place of others, while a value of renamed axes is written."""
        self.known: dict[str, str] = {}
        self.makers: dict[Value, Op] = {}
        self.stored = {
            o.attrs["buffer"] for o in kernel.body.walk() if o.kind in ("store", "atomic")
        }
        self.steps: set[str] = set()
        """Axes of loops in steps of 1: a position, no axis."""
        for op in kernel.body.walk():
            self.makers.update(dict.fromkeys(op.results, op))
            if op.kind == "loop":
                pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
                self.steps |= {a.name for a, b in pairs if b == 1}
        self.fixed: dict[Any, tuple[str, list[Axis]]] = {}
        """What effects and loops give, with its axes."""
        self.place = {name: n for n, name in enumerate(kernel.axes())}
        self.region(kernel.body)
        used = {word for line in self.lines for word in line.split("[")[0].split()}
        shown = [b for b in kernel.arguments if f"buffer={b.name}" in used]
        buffers = sorted(self.buffer(b) for b in shown)
        self.lines = [*buffers, *self.lines]
        names = ", ".join(kernel.block_names and map(self.block, kernel.block_names))
        self.lines.append(f"blocks {names}")

    def buffer(self, buffer: Buffer) -> str:
        sizes = (", ".join(map(self.size, s)) for s in (buffer.shape, buffer.strides))
        return f"buffer {buffer.role} {buffer.name} {buffer.dtype} {' strides '.join(sizes)}"

    # -- names ----------------------------------------------------------------------------------

    def axis(self, axis: Axis) -> str:
        axis = self.instead.get(axis.name, axis)
        if axis.name not in self.axes:
            self.axes[axis.name] = f"a{len(self.axes)}"
            tile = self.axes.get(axis.of, "") if axis.kind == "block" else ""
            self.line(f"axis {self.axes[axis.name]} {axis.kind} {self.size(axis.size)} {tile}")
        return self.axes[axis.name]

    def block(self, name: str) -> str:
        for op in self.kernel.body.walk():
            if op.kind == "loop":
                for axis, size in zip(op.attrs["axes"], loop_blocks(op), strict=True):
                    if size == block_symbol(name) and axis.name in self.axes:
                        return f"block of {self.axes[axis.name]}"
        return "no block"

    def size(self, size: Any) -> str:
        expr = sympy.expand(sympy.sympify(size))
        names = {}
        for symbol in expr.free_symbols:
            kind, _, name = symbol.name.partition("_")
            if kind == "block":
                names[symbol] = sympy.Symbol(self.block(name), integer=True, positive=True)
            elif kind in ("begin", "id") and name in self.axes:
                text = f"{kind} of {self.axes[name]}"
                names[symbol] = sympy.Symbol(text, integer=True, nonnegative=True)
            elif symbol.name in self.sizes:
                names[symbol] = sympy.Symbol(self.sizes[symbol.name], integer=True)
        return str(sympy.expand(_without_maxima(expr)).subs(names))

    def fresh(self) -> None:
        """A new statement: values are written again, and whole axes have no names yet."""
        self.known, self.texts = {}, {}
        axes = self.kernel.axes()
        loops = [n for n in self.axes if n in axes and axes[n].kind == "block"]
        self.axes = {n: self.axes[n] for n in loops if not axes[n].of}

    def fix(self, value: Value) -> str:
        text = f"r{len(self.fixed)}"
        axes = [a for a in value.type.axes if a.name not in self.steps]
        axes.sort(key=lambda a: (a.kind, self.place[a.name]))
        self.fixed[value] = (text, axes)
        return f"{text}: {value.type.dtype} {' '.join(map(self.axis, axes))}"

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    # -- values ---------------------------------------------------------------------------------

    def value(self, value: Value) -> str:
        if value in self.fixed:
            text, axes = self.fixed[value]
            return f"({text} over {' '.join(map(self.axis, axes))})"
        key = (value, tuple(self.renamed(value)))
        if key not in self.texts:
            self.texts[key] = self.pure(self.makers[value], value)
        return self.texts[key]

    def renamed(self, value: Value) -> list[tuple[str, str]]:
        names = value.type.axis_names
        return sorted((n, self.instead[n].name) for n in names if n in self.instead)

    def pure(self, op: Op, value: Value) -> str:
        """Where the value is first needed. Only a value with one result comes here."""
        if op.kind == "const":
            return self.number(op.attrs["value"], op.attrs["dtype"])
        if op.kind == "iota" and op.attrs["axis"] in self.steps:
            return f"(size {self.size(begin_symbol(op.attrs['axis']))})"
        if op.kind == "size":
            return f"(size {self.size(op.attrs['expr'])})"
        if op.kind == "reduce" and op.attrs["fn"] not in ("custom", "argmax", "argmin"):
            axes = tuple(n for n in op.attrs["axes"] if n not in self.steps)
            if not axes:
                return self.value(op.operands[0])
            op = dataclasses.replace(op, attrs={**op.attrs, "axes": axes})
        if op.kind in ("reduce", "dot", "take", "sort"):
            return self.consuming(op, value)
        return self.joined(op, value)

    def consuming(self, op: Op, value: Value) -> str:
        """An op whose operands have axes that its results lack: these have no names outside."""
        op = self.merged(op)
        kept = {n for r in op.results for n in r.type.axis_names}
        axes = {a.name: a for v in op.operands for a in v.type.axes if a.name not in kept}
        outer, self.depth_inside = self.instead, self.depth_inside + 1
        ordered = sorted(axes.values(), key=lambda a: self.place[a.name])
        new = {
            a.name: dataclasses.replace(a, name=f"inside {self.depth_inside} {n}", of=a.tile_name)
            for n, a in enumerate(ordered)
        }
        self.instead = {**outer, **new}
        text = self.joined(op, value)
        self.instead, self.depth_inside = outer, self.depth_inside - 1
        return text

    def joined(self, op: Op, value: Value) -> str:
        if op.kind == "expand":
            return self.value(op.operands[0])  # what it joins has the axes
        if op.kind == "reaxis":
            outer = self.instead
            new = {old: outer.get(axis.name, axis) for old, axis in op.attrs["axes"]}
            self.instead = {**outer, **new}
            text = self.value(op.operands[0])
            self.instead = outer
            return text
        if op.kind == "cast":
            made = self.makers.get(op.operands[0])
            if made is not None and made.kind == "const":
                return self.number(made.attrs["value"], op.attrs["dtype"])
            kept = self.cast_back(op)
            if kept is not None:
                return self.value(kept)
        operands = [self.value(v) for v in op.operands]
        if op.kind == "load" and op.attrs.get("other"):  # as a choice
            found = self.named(op, value, operands)
            other = self.number(op.attrs["other"], value.type.dtype)
            choice = [operands[-1], found, other]
            return self.named(Op("pointwise", (), {"fn": "where"}, op.results), value, choice)
        return self.named(op, value, operands)

    def number(self, number: Any, dtype: torch.dtype) -> str:
        exact = torch.tensor(number, dtype=dtype).item()
        return f"({exact!r} {dtype})"

    def unexpanded(self, value: Value) -> Value:
        op = self.makers.get(value)
        return self.unexpanded(op.operands[0]) if op and op.kind == "expand" else value

    def cast_back(self, op: Op) -> Value | None:
        """What a cast of a wider copy of a half gives back."""
        half = op.attrs["dtype"]
        inner = self.makers.get(self.unexpanded(op.operands[0]))
        if half not in (torch.float16, torch.bfloat16) or inner is None or inner.kind != "cast":
            return None
        value = self.unexpanded(inner.operands[0])
        return value if value.type.dtype is half else None

    def merged(self, op: Op) -> Op:
        """Reductions of a reduction as one."""
        while op.kind == "reduce" and op.attrs["fn"] not in ("custom", "argmax", "argmin"):
            inner = self.makers.get(op.operands[0])
            if inner is None or inner.kind != "reduce" or inner.attrs["fn"] != op.attrs["fn"]:
                break
            axes = (*op.attrs["axes"], *inner.attrs["axes"])
            attrs = {**op.attrs, "axes": axes}
            op = dataclasses.replace(op, operands=inner.operands, attrs=attrs)
        return op

    def named(self, op: Op, value: Value, operands: list[str]) -> str:
        inner = self.combine(op) if op.regions else ""
        text = f"{op.kind} {self.attrs(op)} {', '.join(operands)}{inner}"
        if text not in self.known:
            base = f"v{len(self.known)}"
            self.known[text] = base
            self.line(f"{base} = {text} : {[str(r.type.dtype) for r in op.results]}")
        number = op.results.index(value)
        return self.known[text] + (f".{number}" if number else "")

    def combine(self, op: Op) -> str:
        """The region of a custom reduction as an expression of its arguments."""
        (region,) = op.regions
        for number, arg in enumerate(region.args):
            self.fixed[arg] = (f"arg{number}", [])
        lines, self.lines, known = self.lines, [], dict(self.known)
        results = [self.value(v) for v in region.yielded]
        inner, self.lines, self.known = self.lines, lines, known
        return f" by ({'; '.join(line.strip() for line in inner)} -> {', '.join(results)})"

    def attrs(self, op: Op) -> str:
        left_out = ("checked", "masked", "other")
        shown = sorted((k, v) for k, v in op.attrs.items() if v and k not in left_out)
        return " ".join(f"{k}={self.attr(k, v)}" for k, v in shown)

    def attr(self, key: str, value: Any) -> str:
        axes = self.kernel.axes()
        if isinstance(value, str) and value in axes and key in ("axis", "k"):
            return self.axis(axes[value])
        if isinstance(value, Axis):
            return self.axis(value)
        if isinstance(value, Affine):
            terms = [(n, c) for n, c in value.terms if not n.endswith(".id")]
            numbers = [(n.removesuffix(".id"), c) for n, c in value.terms if n.endswith(".id")]
            ones = [(n, c) for n, c in terms if n in self.steps]
            terms = [(n, c) for n, c in terms if n not in self.steps]
            offset = value.offset + sum(c * id_symbol(n) for n, c in numbers)
            offset += sum(c * begin_symbol(n) for n, c in ones)
            shown = sorted(f"{self.size(c)}*{self.axis(axes[n])}" for n, c in terms)
            return " + ".join([*shown, self.size(offset)])
        if isinstance(value, tuple):
            parts = [self.attr("axis", v) for v in value]
            return f"({', '.join(sorted(parts) if key == 'axes' else parts)})"
        return self.size(value) if isinstance(value, sympy.Expr) else str(value)

    # -- effects --------------------------------------------------------------------------------

    def region(self, region: Region) -> None:
        self.depth += 1
        for op in region.ops:
            if op.kind == "loop" or op.kind in ("if", "while"):
                self.control(op)
            elif op.kind in _EFFECTS:
                self.effect(op)
            elif self.in_order(op):
                self.pure_now(op)
        self.depth -= 1

    def in_order(self, op: Op) -> bool:
        """Loads that must stay where they are."""
        if op.kind == "load":
            return op.attrs["buffer"] in self.stored
        return not OP_KINDS[op.kind].pure

    def pure_now(self, op: Op) -> None:
        self.fresh()
        operands = [self.value(v) for v in op.operands]
        self.line(f"{op.kind} {self.attrs(op)} {', '.join(operands)}")
        for result in op.results:
            self.line(self.fix(result))

    def effect(self, op: Op) -> None:
        self.fresh()
        operands = [self.value(v) for v in op.operands]
        if op.kind == "bind":
            self.sizes[op.attrs["symbol"].name] = f"bound {operands[0]}"
            return
        self.line(f"{op.kind} {self.attrs(op)} {', '.join(operands)}")
        for result in op.results:
            self.line(self.fix(result))

    def control(self, op: Op) -> None:
        self.fresh()
        head = [self.value(v) for v in op.operands]
        if op.kind == "loop":
            pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
            pairs = [(a, b) for a, b in pairs if a.size != 1]
            names = ", ".join(self.axis(a) for a, _ in pairs)
            blocks = ", ".join(self.size(b) for _, b in pairs)
            counter = op.attrs.get("symbol")
            if counter is not None:
                self.sizes[counter.name] = f"counter{len(self.sizes)}"
            bounds = " ".join(self.size(op.attrs[k]) for k in ("begin", "end", "step") if counter)
            serial = op.attrs.get("serial", False)
            self.line(f"{op.attrs['kind']} {names} {blocks} {bounds} {serial} {', '.join(head)}")
        else:
            self.line(f"{op.kind} {', '.join(head)}")
        for inner in op.regions:
            self.line("region")
            for arg in inner.args:
                self.line(self.fix(arg))
            self.region(inner)
        for result in op.results:
            self.line(self.fix(result))


def differences(a: str, b: str) -> Iterator[str]:
    """The first lines in which two forms differ."""
    left, right = a.split("\n"), b.split("\n")
    for one, other in zip(left, right, strict=False):
        if one != other:
            yield f"- {one}\n+ {other}"
