"""A kernel as exact SSA text: one operation a line, every attribute, the same text every time.

In: a kernel, or one op. Out: text for stage dumps, error messages and golden tests. For a text that
reads as a program see `printer.py`, which also exports `dump`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, IndexExpr, Size


class Names:
    """A unique name for each value, from its hint: `x`, `x.1`, `x.2` in order of first sight."""

    def __init__(self) -> None:
        self._of: dict[Value, str] = {}
        self._used: dict[str, int] = {}

    def __getitem__(self, value: Value) -> str:
        if value not in self._of:
            hint = value.hint or "v"
            count = self._used.get(hint, 0)
            self._used[hint] = count + 1
            self._of[value] = f"%{hint}.{count}" if count else f"%{hint}"
        return self._of[value]


def dump(kernel: Kernel) -> str:
    """The whole kernel: buffers, axes, operations."""
    sizes = ", ".join(s.name for s in kernel.sizes)
    lines = [f"kernel {kernel.name}({sizes})"]
    lines += [f"  {_buffer(b)}" for b in kernel.buffers]
    lines += [f"  axis {_axis(a)}" for a in kernel.axes().values()]
    lines += [f"  blocks {', '.join(kernel.blocks)}"] if kernel.blocks else []
    names = Names()
    lines += [f"  {line}" for line in _region(kernel.body, names)]
    return "\n".join(lines) + "\n"


def op_text(op: Op, names: Names | None = None) -> str:
    """One operation on one line, without its regions."""
    names = Names() if names is None else names
    operands = [names[v] for v in op.operands]
    try:
        text = _ROWS.get(op.kind, _other)(op, operands)
    except (
        KeyError,
        IndexError,
        AttributeError,
        ValueError,
        TypeError,
    ):  # an op that the verifier is about to refuse
        text = _other(op, operands)
    results = ", ".join(f"{names[r]}: {r.type}" for r in op.results)
    return f"{results} = {text}" if results else text


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def index_text(expr: IndexExpr) -> str:
    """`2*m + 1` for an affine map, `@0` for the first gathered index."""
    if isinstance(expr, Gather):
        return f"@{expr.operand}"
    parts = [_factor(c) + name for name, c in expr.terms]
    if expr.offset != 0 or not parts:
        parts.append(str(expr.offset))
    return " + ".join(parts).replace("+ -", "- ")


def _factor(size: Size) -> str:
    if size in (1, -1):
        return "" if size == 1 else "-"
    return f"({size})*" if getattr(size, "is_Add", False) else f"{size}*"


def _buffer(buffer: Buffer) -> str:
    shape, strides = (", ".join(map(str, sizes)) for sizes in (buffer.shape, buffer.strides))
    dtype = dtype_name(buffer.dtype)
    return f"{buffer.role} {buffer.name}: {dtype}[{shape}] strides [{strides}]"


def _axis(axis: Axis) -> str:
    return f"{axis.name}: {axis.kind} {axis.size}" + (f" of {axis.of}" if axis.of else "")


def _region(region: Region, names: Names) -> Iterator[str]:
    for op in region.ops:
        origin = f"  # {op.origin}" if str(op.origin) else ""
        yield op_text(op, names) + (":" if op.regions else "") + origin
        for number, inner in enumerate(op.regions):
            if number or inner.args:
                args = ", ".join(f"{names[a]}: {a.type}" for a in inner.args)
                yield f"  region({args})"
            yield from (f"  {line}" for line in _region(inner, names))


def _loop(op: Op, operands: list[str]) -> str:
    carried = f" carrying {', '.join(operands)}" if operands else ""
    if op.attrs["kind"] == "sequential":
        begin, end, step = (op.attrs[name] for name in ("begin", "end", "step"))
        return f"sequential {op.attrs['symbol']} from {begin} to {end} step {step}{carried}"
    text = f"{op.attrs['kind']} ({', '.join(a.name for a in op.attrs['axes'])})"
    if op.attrs.get("blocks"):
        text += f" blocks ({', '.join(map(str, op.attrs['blocks']))})"
    return text + (" serial" if op.attrs.get("serial") else "") + carried


def _bind(op: Op, operands: list[str]) -> str:
    return f"bind {op.attrs['symbol']} = {operands[0]}"


def _access(op: Op, operands: list[str]) -> str:
    """`x[m, @0] at %p gather %i mask %k other 0.0 checked`."""
    index = ", ".join(index_text(e) for e in op.attrs["index"])
    text = f"{op.attrs['buffer']}[{index}]"
    operands = list(operands)
    mask = f" mask {operands.pop()}" if op.attrs["masked"] else ""
    if op.attrs.get("stacked"):
        text += f" at {operands.pop(0)}"
    if operands:
        text += f" gather {', '.join(operands)}"
    if mask:
        text += mask + (f" other {op.attrs['other']!r}" if "other" in op.attrs else "")
    return text + (" checked" if op.attrs["checked"] else "")


def _load(op: Op, operands: list[str]) -> str:
    return f"load {_access(op, operands)}"


def _store(op: Op, operands: list[str]) -> str:
    fn = f" {op.attrs['fn']}" if op.kind == "atomic" else ""
    if op.attrs.get("fn") == "cas":
        expected, value, *rest = operands
        return f"atomic cas {_access(op, rest)} = {value} where {expected}"
    return f"{op.kind}{fn} {_access(op, operands[1:])} = {operands[0]}"


def _pointwise(op: Op, operands: list[str]) -> str:
    return f"{op.attrs['fn']}({', '.join(operands)})"


def _cast(op: Op, operands: list[str]) -> str:
    return f"{op.kind} {operands[0]}"


def _reduce(op: Op, operands: list[str]) -> str:
    text = f"reduce {op.attrs['fn']} {', '.join(operands)} over ({', '.join(op.attrs['axes'])})"
    if "identity" in op.attrs:
        text += f" identity ({', '.join(map(repr, op.attrs['identity']))})"
    return text


def _const(op: Op, operands: list[str]) -> str:
    return f"const {op.attrs['value']!r}"


def _size(op: Op, operands: list[str]) -> str:
    return f"size {op.attrs['expr']}"


def _iota(op: Op, operands: list[str]) -> str:
    return f"iota {op.attrs['axis']}"


def _scan(op: Op, operands: list[str]) -> str:
    flags = "".join(f" {name}" for name in ("reverse", "exclusive") if op.attrs[name])
    return f"scan {op.attrs['fn']} {', '.join(operands)} along {op.attrs['axis']}{flags}"


def _dot(op: Op, operands: list[str]) -> str:
    left, right, *acc = operands
    return f"dot {left}, {right} over {op.attrs['k']}" + "".join(f" onto {c}" for c in acc)


def _sort(op: Op, operands: list[str]) -> str:
    text = f"sort {operands[0]} along {op.attrs['axis']}"
    text += "".join(f" {name}" for name in ("descending", "stable") if op.attrs[name])
    first = f" first {op.attrs['k']} as {op.attrs['out_axis'].name}"
    return text + (first if op.attrs["k"] is not None else "")


def _take(op: Op, operands: list[str]) -> str:
    return f"take {operands[0]} at {operands[1]} along {op.attrs['axis']}"


def _reaxis(op: Op, operands: list[str]) -> str:
    pairs = ", ".join(f"{old} to {new.name}" for old, new in op.attrs["axes"])
    return f"reaxis {operands[0]} {pairs}"


def _reshape(op: Op, operands: list[str]) -> str:
    target = ", ".join(a.name for a in op.attrs["target"])
    return f"reshape {operands[0]} ({', '.join(op.attrs['source'])}) to ({target})"


def _print(op: Op, operands: list[str]) -> str:
    return ", ".join([f"print {op.attrs['text']!r}", *operands])


def _other(op: Op, operands: list[str]) -> str:
    attrs = "".join(f" {key}={_attr(value)}" for key, value in op.attrs.items())
    return f"{op.kind} {', '.join(operands)}{attrs}".rstrip().replace("  ", " ")


def _attr(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, Axis):
        return value.name
    if isinstance(value, Affine | Gather):
        return index_text(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_attr, value))})"
    return str(value)


_ROWS: dict[str, Callable[[Op, list[str]], str]] = {
    "loop": _loop,
    "bind": _bind,
    "load": _load,
    "store": _store,
    "atomic": _store,
    "pointwise": _pointwise,
    "cast": _cast,
    "bitcast": _cast,
    "reduce": _reduce,
    "const": _const,
    "size": _size,
    "iota": _iota,
    "scan": _scan,
    "dot": _dot,
    "sort": _sort,
    "take": _take,
    "reaxis": _reaxis,
    "reshape": _reshape,
    "print": _print,
}
