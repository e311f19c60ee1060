"""Rows of the triton target: loops inside of a step, branches, bound sizes, checks, prints.

In: a `Printer` and an op. Out: lines of the kernel. A carried value is a variable that is set
before the loop and at the end of its body; it always has all its dimensions, since a variable of
Triton keeps its type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from torch_helion import exc
from torch_helion.codegen.triton.state import Printer, Tile
from torch_helion.codegen.triton.values import check_lanes
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.types import Axis


def _start(p: Printer, values: Sequence[Value], args: Sequence[Value]) -> list[Tile]:
    """Variables for carried values, set to what they start with."""
    # A constant has no name of its own.
    hints = ["acc" if arg.hint == "c" else arg.hint for arg in args]
    return [_assign(p, p.names.fresh(h), v) for h, v in zip(hints, values, strict=True)]


def _assign(p: Printer, name: str, value: Value) -> Tile:
    dims = p.dims(value.type.axis_names)
    p.line(f"{name} = {p.full(p.tile(value), dims)}")
    return Tile(name, value.type.dtype, dims)


def _go_on(p: Printer, variables: Sequence[Tile], values: Sequence[Value]) -> None:
    """Set the variables to the values, all at once."""
    texts = [p.full(p.tile(v), t.axes) for v, t in zip(values, variables, strict=True)]
    names = [t.text for t in variables]
    for place, text in enumerate(texts):
        if p.tile(values[place]).text in names[:place]:  # will be overwritten before
            tile = p.tile(values[place])
            texts[place] = p.temporary(tile.text, text, tile.dtype, variables[place].axes).text
    for name, text in zip(names, texts, strict=True):
        if name != text:
            p.line(f"{name} = {text}")


def _loop(p: Printer, op: Op) -> None:
    kind, (body,) = op.attrs["kind"], op.regions
    if kind == "grid":
        raise exc.CodegenError("triton: a grid inside of a step")
    variables = _start(p, op.operands, body.args)
    p.tiles.update(zip(body.args, variables, strict=True))
    with ExitStack() as stack:
        if kind == "sequential":
            _open_counter(p, op, stack)
        else:
            for axis in op.attrs["axes"]:
                _open_tiles(p, axis, stack)
        _go_on(p, variables, p.region(body))
    p.tiles.update(zip(op.results, variables, strict=True))


def _open_counter(p: Printer, op: Op, stack: ExitStack) -> None:
    symbol = op.attrs["symbol"]
    begin, end, step = (p.size(op.attrs[name]) for name in ("begin", "end", "step"))
    turn = p.names.fresh(f"{symbol.name}_turn")
    by = "" if step == "1" else f", {step}"
    stack.enter_context(p.writer.block(f"for {turn} in tl.range({begin}, {end}{by}):"))
    slot = p.writer.slot()
    p.lazy("symbol", symbol.name, slot, symbol.name, lambda: f"tl.cast({turn}, tl.int64)")


def _open_tiles(p: Printer, axis: Axis, stack: ExitStack) -> None:
    turn = p.names.fresh(f"{axis.name}_turn")
    block = p.block_size(axis)
    by = "" if block == "1" else f", {block}"
    stack.enter_context(p.writer.block(f"for {turn} in tl.range(0, {p.size(axis.size)}{by}):"))
    # The counter of a loop between constants has 32 bits.
    p.open_tile(axis, p.writer.slot(), lambda: f"tl.cast({turn}, tl.int64)")


def _if(p: Printer, op: Op) -> None:
    (condition,), (then, otherwise) = op.operands, op.regions
    names = [p.names.fresh(v.hint) for v in op.results]
    with p.writer.block(f"if {p.typed(p.tile(condition))}:"):
        tiles = [_assign(p, n, v) for n, v in zip(names, p.region(then), strict=True)]
    if otherwise.ops:
        with p.writer.block("else:"):
            for name, value in zip(names, p.region(otherwise), strict=True):
                _assign(p, name, value)
    p.tiles.update(zip(op.results, tiles, strict=True))


def _while(p: Printer, op: Op) -> None:
    condition, body = op.regions
    variables = _start(p, op.operands, body.args)
    going = p.names.fresh("going")

    def ask() -> None:
        p.tiles.update(zip(condition.args, variables, strict=True))
        (proceed,) = p.region(condition)
        p.line(f"{going} = {p.typed(p.tile(proceed))}")

    ask()
    with p.writer.block(f"while {going}:"):
        p.tiles.update(zip(body.args, variables, strict=True))
        _go_on(p, variables, p.region(body))
        ask()
    p.tiles.update(zip(op.results, variables, strict=True))


def _bind(p: Printer, op: Op) -> None:
    symbol, tile = op.attrs["symbol"], p.tile(op.operands[0])
    name = p.names.fresh(symbol.name)
    p.line(f"{name} = {p.typed(tile)}")
    p.symbols[symbol] = name


def _assert(p: Printer, op: Op) -> None:
    tile = p.tile(op.operands[0])
    what = "index out of range" if op.attrs["status"] == 1 else "integer division by zero"
    check_lanes(p, p.typed(tile), tile.axes, what)


def _print(p: Printer, op: Op) -> None:
    values = [p.full(p.tile(v), p.dims(v.type.axis_names)) for v in op.operands]
    text = str(op.attrs["text"]).encode("ascii", "replace").decode()
    p.line(f"tl.device_print({', '.join([repr(text), *values])})")


CONTROL_ROWS: Mapping[str, Callable[[Printer, Op], None]] = {
    "loop": _loop,
    "if": _if,
    "while": _while,
    "bind": _bind,
    "assert": _assert,
    "print": _print,
}
