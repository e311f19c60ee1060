"""Source of loops, branches, bound sizes, checks, prints.

In: a `Printer` and an op. Out: lines. Used by `printer.py` only.

A carried value is a variable that is set before the loop and at the end of its body; where nothing
else uses the value that it starts with, it is that value's variable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch_helion.ir.graph import Op, Region, Value, loop_blocks
from torch_helion.ir.ops import ASSERTED
from torch_helion.ir.printer_state import Printer, Row
from torch_helion.ir.types import Axis, Size, block_symbol


def _loop(p: Printer, op: Op) -> None:
    (region,) = op.regions
    names = _carry(p, op, region.args)
    p.line(f"for {_loop_head(p, op)}:", "steps in this order" if op.attrs.get("serial") else "")
    p.origin = ""
    _inside(p, region, names)
    p.bind(op.results, names)


def _loop_head(p: Printer, op: Op) -> str:
    """`tile_m, tile_n in hl.tile([n0, n1])` and its like."""
    if op.attrs["kind"] == "sequential":
        symbol = op.attrs["symbol"]
        p.symbols[symbol] = p.names.new(symbol.name)
        return f"{p.symbols[symbol]} in hl.grid({_range(p, op)})"
    axes: tuple[Axis, ...] = op.attrs["axes"]
    if not axes:
        return "_ in hl.grid(1)"
    variables = [p.tiles[a.name] for a in axes]
    sizes = [p.size(_end(a.size)) for a in axes]
    extents = sizes[0] if len(axes) == 1 else f"[{', '.join(sizes)}]"
    if all(a.name in p.index_axes for a in axes):
        return f"{', '.join(variables)} in hl.grid({extents})"
    blocks = [_block(p, a, b) for a, b in zip(axes, loop_blocks(op), strict=True)]
    text = blocks[0] if len(axes) == 1 else f"[{', '.join(blocks)}]"
    given = f", block_size={text}" if any(b != "None" for b in blocks) else ""
    return f"{', '.join(variables)} in hl.tile({extents}{given})"


def _end(size: Size) -> Size:
    """A range that ends before it begins is empty: that needs no words."""
    if isinstance(size, int) or type(size).__name__ != "Max":
        return size
    if len(size.args) == 2 and 0 in size.args:
        return size.args[1] if size.args[0] == 0 else size.args[0]
    return size


def _range(p: Printer, op: Op) -> str:
    begin, end, step = (op.attrs[name] for name in ("begin", "end", "step"))
    texts = [p.size(end)]
    if begin != 0 or step != 1:
        texts.insert(0, p.size(begin))
    return ", ".join(texts) + (f", {p.size(step)}" if step != 1 else "")


def _block(p: Printer, axis: Axis, block: Size) -> str:
    if block == block_symbol(axis.name) and axis.name not in p.named_blocks:
        return "None"
    return p.size(block)


def _carry(p: Printer, op: Op, args: Sequence[Value]) -> list[str]:
    """Variables for carried values, set to where they start."""
    names = []
    for operand in op.operands:
        expr = p.values[operand]
        if operand in p.owners and p.uses[operand] == 1 and _same_region(p, operand, op):
            names.append(expr.text)
            continue
        names.append(p.names.new(p.hint(operand)))
        p.line(f"{names[-1]} = {p.tensor(operand).text}")
    p.bind(args, names)
    return names


def _same_region(p: Printer, value: Value, op: Op) -> bool:
    return p.made_in[value] is p.region_of[op]


def _inside(p: Printer, region: Region, names: list[str]) -> None:
    """A region whose yield sets the variables `names`."""
    outer, p.carried = p.carried, names
    p.body(region)
    p.carried = outer


def _if(p: Printer, op: Op) -> None:
    names = [p.names.new(r.hint) for r in op.results]
    then, otherwise = op.regions
    p.line(f"if {p.values[op.operands[0]].text}:", p.note(op))
    _inside(p, then, names)
    if otherwise.ops:
        p.line("else:")
        _inside(p, otherwise, names)
    p.bind(op.results, names)


def _while(p: Printer, op: Op) -> None:
    condition, body = op.regions
    names = _carry(p, op, condition.args)
    p.bind(body.args, names)
    test = p.inline_region(condition)
    if test is not None:
        p.line(f"while {test.text}:")
        _inside(p, body, names)
    else:  # asked before the first turn and at the end of each
        proceed = p.names.new("proceed")
        p.depth -= 1
        _inside(p, condition, [proceed])
        p.depth += 1
        p.line(f"while {proceed}:")
        _inside(p, body, names)
        _inside(p, condition, [proceed])
    p.bind(op.results, names)


def _yield(p: Printer, op: Op) -> None:
    values = [p.tensor(v).text for v in op.operands]
    if p.in_helper:
        p.line(f"return {', '.join(values)}")
        return
    # A variable that stays what it is needs no words.
    pairs = [(n, v) for n, v in zip(p.carried, values, strict=True) if n != v]
    if pairs:
        p.line(f"{', '.join(n for n, _ in pairs)} = {', '.join(v for _, v in pairs)}")


def _bind(p: Printer, op: Op) -> None:
    (value,), symbol = op.operands, op.attrs["symbol"]
    text = p.values[value].text
    if not text.isidentifier():
        name = p.names.new(symbol.name)
        p.line(f"{name} = {text}", p.note(op))
        text = name
    p.symbols[symbol] = text


def _assert(p: Printer, op: Op) -> None:
    error = ASSERTED[op.attrs["status"]]
    p.line(f'hl.device_assert({p.tensor(op.operands[0]).text}, "{error}")')


def _print(p: Printer, op: Op) -> None:
    values = [p.tensor(v).text for v in op.operands]
    p.line(f"hl.device_print({', '.join([json.dumps(op.attrs['text']), *values])})", p.note(op))


def _barrier(p: Printer, op: Op) -> None:
    p.line("hl.barrier()")


CONTROL_ROWS: Mapping[str, Row] = {
    "loop": _loop,
    "if": _if,
    "while": _while,
    "yield": _yield,
    "bind": _bind,
    "assert": _assert,
    "print": _print,
    "barrier": _barrier,
}
