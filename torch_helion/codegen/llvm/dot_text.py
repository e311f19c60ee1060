"""Writing one LLVM function by hand: names, blocks, counted loops with carried registers.

In: instructions as text. Out: the lines of a function. Used by the ``dot_*`` files only, whose
functions are loops around register tiles and have no tile values or scopes (what emit.py is for).

Loops carry registers as phis, so that accumulators need no stack slots that LLVM would have to
promote. Arithmetic on numbers known here is folded, so that texts stay short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch_helion.codegen.llvm.text import Names


def is_number(operand: str) -> bool:
    return operand.lstrip("-").isdigit()


def vector(element: str, width: int) -> str:
    return element if width == 1 else f"<{width} x {element}>"


@dataclass
class Counted:
    """Inside of a loop: its index, what it carries, and (set by the body) what goes on."""

    index: str
    values: list[str]
    next: list[str] = field(default_factory=list)


class FunctionText:
    """State of writing one function; operands are i64 unless said otherwise."""

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]], inline: str) -> None:
        """``parameters``: (type with attributes, name without %)."""
        self.name = name
        self.parameters = parameters
        self.inline = inline
        self.names = Names({n: 1 for _, n in parameters})
        self.lines: list[str] = []
        self.allocas: list[str] = []
        self.block = "%entry"

    def text(self, comment: str = "", kind: str = "internal void", result: str = "void") -> str:
        """The function's text; ``kind``: linkage and type, ``result``: what it returns."""
        arguments = ", ".join(f"{t} %{n}" for t, n in self.parameters)
        head = f"define {kind} {self.name}({arguments}) {self.inline} nounwind {{"
        lines = [head, "entry:", *self.allocas, *self.lines, f"  ret {result}", "}", ""]
        return "\n".join([f"; {comment}", *lines] if comment else lines)

    # -- instructions ----------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def let(self, text: str, hint: str = "v") -> str:
        name = self.names.fresh(hint)
        self.lines.append(f"  {name} = {text}")
        return name

    def call(self, result: str, symbol: str, *arguments: tuple[str, str], hint: str = "v") -> str:
        text = f"call {result} {symbol}({', '.join(f'{t} {v}' for t, v in arguments)})"
        if result == "void":
            self.line(text)
            return ""
        return self.let(text, hint)

    def add(self, a: str, b: str | int, hint: str = "n") -> str:
        b = str(b)
        if is_number(a) and is_number(b):
            return str(int(a) + int(b))
        if a == "0" or b == "0":
            return b if a == "0" else a
        return self.let(f"add nsw i64 {a}, {b}", hint)

    def sub(self, a: str, b: str | int, hint: str = "n") -> str:
        b = str(b)
        if is_number(a) and is_number(b):
            return str(int(a) - int(b))
        return a if b == "0" else self.let(f"sub nsw i64 {a}, {b}", hint)

    def mul(self, a: str, b: str | int, hint: str = "n") -> str:
        b = str(b)
        if is_number(a) and is_number(b):
            return str(int(a) * int(b))
        if "0" in (a, b):
            return "0"
        if a == "1" or b == "1":
            return b if a == "1" else a
        return self.let(f"mul nsw i64 {a}, {b}", hint)

    def div(self, a: str, b: int, hint: str = "n") -> str:
        """a / b for a >= 0."""
        if is_number(a):
            return str(int(a) // b)
        return a if b == 1 else self.let(f"udiv i64 {a}, {b}", hint)

    def ceil_div(self, a: str, b: int, hint: str = "n") -> str:
        return self.div(self.add(a, b - 1), b, hint) if b > 1 else a

    def round_down(self, a: str, b: int, hint: str = "n") -> str:
        return self.mul(self.div(a, b), b, hint)

    def odd(self, a: str, hint: str = "n") -> str:
        """a, or a + 1 where a is even."""
        return str(int(a) | 1) if is_number(a) else self.let(f"or i64 {a}, 1", hint)

    def min(self, a: str, b: str | int, hint: str = "n") -> str:
        b = str(b)
        if is_number(a) and is_number(b):
            return str(min(int(a), int(b)))
        return self.call("i64", "@llvm.smin.i64", ("i64", a), ("i64", b), hint=hint)

    def compare(self, how: str, a: str, b: str | int, hint: str = "is") -> str:
        return self.let(f"icmp {how} i64 {a}, {b}", hint)

    def select(self, test: str, type: str, a: str, b: str, hint: str = "v") -> str:
        return self.let(f"select i1 {test}, {type} {a}, {type} {b}", hint)

    def at(self, pointer: str, bytes: str | int, hint: str = "p") -> str:
        """The pointer that many bytes further."""
        if str(bytes) == "0":
            return pointer
        return self.let(f"getelementptr i8, ptr {pointer}, i64 {bytes}", hint)

    def load(self, type: str, pointer: str, align: int, hint: str = "x") -> str:
        return self.let(f"load {type}, ptr {pointer}, align {align}", hint)

    def store(self, type: str, value: str, pointer: str, align: int) -> None:
        self.line(f"store {type} {value}, ptr {pointer}, align {align}")

    def prefetch(self, pointer: str, write: bool = False, level: int = 1) -> None:
        """Ask for a line; ``level``: the nearest cache that it should come to."""
        where = f"i32 {int(write)}, i32 {4 - level}, i32 1"
        self.line(f"call void @llvm.prefetch.p0(ptr {pointer}, {where})")

    def copy_bytes(self, to: str, source: str, bytes: str) -> None:
        self.line(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {source}, i64 {bytes}, i1 false)"
        )

    def clear_bytes(self, to: str, bytes: str) -> None:
        self.line(f"call void @llvm.memset.p0.i64(ptr {to}, i8 0, i64 {bytes}, i1 false)")

    def splat(self, scalar: str, element: str, width: int, hint: str = "w") -> str:
        if width == 1:
            return scalar
        type = vector(element, width)
        one = self.let(f"insertelement {type} poison, {element} {scalar}, i64 0", hint)
        return self.let(
            f"shufflevector {type} {one}, {type} poison, <{width} x i32> zeroinitializer", hint
        )

    def shuffle(self, type: str, a: str, b: str, lanes: Sequence[int], hint: str = "s") -> str:
        order = ", ".join(f"i32 {i}" for i in lanes)
        return self.let(
            f"shufflevector {type} {a}, {type} {b}, <{len(lanes)} x i32> <{order}>", hint
        )

    # -- blocks ----------------------------------------------------------------------------------

    def label(self, name: str) -> None:
        """Start a block (the one before must have ended)."""
        self.lines.append(f"{name[1:]}:")
        self.block = name

    @contextmanager
    def loop(
        self,
        lo: str,
        hi: str,
        step: str | int,
        carried: Sequence[tuple[str, str]] = (),
        hint: str = "i",
    ) -> Iterator[Counted]:
        """A counted loop; ``carried``: (type, first value). After it ``values`` are the last."""
        head, body, done = (self.names.fresh(f"{hint}_{part}") for part in ("head", "body", "done"))
        before = self.block
        self.line(f"br label {head}")
        self.label(head)
        state = Counted(self.names.fresh(hint), [self.names.fresh("c") for _ in carried])
        place = len(self.lines)
        test = self.let(f"icmp slt i64 {state.index}, {hi}", "more")
        self.line(f"br i1 {test}, label {body}, label {done}")
        self.label(body)
        yield state
        following = self.let(f"add nsw i64 {state.index}, {step}", "next")
        last = self.block
        self.line(f"br label {head}")
        phis = [f"  {state.index} = phi i64 [ {lo}, {before} ], [ {following}, {last} ]"]
        for name, (type, first), after in zip(state.values, carried, state.next, strict=True):
            phis.append(f"  {name} = phi {type} [ {first}, {before} ], [ {after}, {last} ]")
        self.lines[place:place] = phis
        self.label(done)

    @contextmanager
    def when(self, test: str, hint: str = "if") -> Iterator[None]:
        """Code that runs where an i1 holds; nothing comes out of it."""
        then, done = self.names.fresh(f"{hint}_then"), self.names.fresh(f"{hint}_done")
        self.line(f"br i1 {test}, label {then}, label {done}")
        self.label(then)
        yield
        self.line(f"br label {done}")
        self.label(done)

    def choose(self, test: str, then, otherwise, type: str) -> list[str]:  # type: ignore[no-untyped-def]
        """Registers from one of two pieces of code (functions that return lists of operands)."""
        labels = [self.names.fresh(f"pick_{part}") for part in ("then", "else", "done")]
        self.line(f"br i1 {test}, label {labels[0]}, label {labels[1]}")
        ends = []
        for label, part in zip(labels, (then, otherwise), strict=False):
            self.label(label)
            values = part()
            ends.append((values, self.block))
            self.line(f"br label {labels[2]}")
        self.label(labels[2])
        (a, from_a), (b, from_b) = ends
        return [
            self.let(f"phi {type} [ {x}, {from_a} ], [ {y}, {from_b} ]", "c")
            for x, y in zip(a, b, strict=True)
        ]


def pointers_to(f: FunctionText, base: str, step: str, count: str, largest: int) -> list[str]:
    """Pointers to rows or columns; those that do not exist point to the last one that does."""
    if largest == 1:
        return [base]
    last = f.sub(count, 1)
    return [base] + [f.at(base, f.mul(f.min(last, i), step)) for i in range(1, largest)]


def lanes_below(f: FunctionText, count: str, width: int) -> str:
    """A mask of the lanes before an i64 `count` (0 to `width`)."""
    wide = f.splat(f.let(f"trunc i64 {count} to i32"), "i32", width)
    numbers = ", ".join(f"i32 {i}" for i in range(width))
    return f.let(f"icmp ult <{width} x i32> <{numbers}>, {wide}", "mask")


def masked_where(f: FunctionText, mask: str, width: int, test: str) -> str:
    """The mask, or no lane where the i1 does not hold (as integers: a select would be a branch)."""
    flags, bits = f"<{width} x i1>", f"i{width}"
    number = f.let(f"bitcast {flags} {mask} to {bits}")
    number = f.let(f"and {bits} {number}, {f.let(f'sext i1 {test} to {bits}')}")
    return f.let(f"bitcast {bits} {number} to {flags}", "mask")


def _suffix(element: str, width: int) -> str:
    return f"v{width}" + {"float": "f32", "double": "f64"}.get(element, element)


def masked_load(
    f: FunctionText, element: str, width: int, pointer: str, mask: str, align: int
) -> str:
    """A vector of which masked-off lanes are zero and not read."""
    type = vector(element, width)
    return f.call(
        type,
        f"@llvm.masked.load.{_suffix(element, width)}.p0",
        ("ptr", pointer),
        ("i32", str(align)),
        (f"<{width} x i1>", mask),
        (type, "zeroinitializer"),
    )


def masked_store(
    f: FunctionText, element: str, width: int, value: str, pointer: str, mask: str, align: int
) -> None:
    type = vector(element, width)
    f.call(
        "void",
        f"@llvm.masked.store.{_suffix(element, width)}.p0",
        (type, value),
        ("ptr", pointer),
        ("i32", str(align)),
        (f"<{width} x i1>", mask),
    )
