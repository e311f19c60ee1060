"""Source of arithmetic, views of tiles, random numbers, reductions, scans, dots, sorts, takes.

In: a `Printer` and an op. Out: lines, or an expression. Used by `printer.py` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from torch_helion.ir.graph import Op
from torch_helion.ir.ops import CUSTOM, accumulators
from torch_helion.ir.printer_state import Printer, Row, with_axes
from torch_helion.ir.source_text import (
    ADD,
    ATOM,
    Expr,
    number_expr,
    pointwise_expr,
    reduction_expr,
)

_LONGEST_INDEX = 40


# -- arithmetic ---------------------------------------------------------------------------------


def _const(p: Printer, op: Op) -> None:
    p.values[op.result] = number_expr(op.attrs["value"], op.attrs["dtype"])


def _size(p: Printer, op: Op) -> None:
    p.values[op.result] = p.size_expr(op.attrs["expr"])


def _iota(p: Printer, op: Op) -> None:
    p.values[op.result] = p.positions(p.axes[op.attrs["axis"]])


def _pointwise(p: Printer, op: Op) -> None:
    axes = p.canonical(op.result)
    operands = [p.fitted(v, axes) for v in op.operands]
    p.define(op, pointwise_expr(op.attrs["fn"], operands, op.operands[-1].type.dtype))


def _cast(p: Printer, op: Op) -> None:
    (value,) = op.operands
    if value in p.float_numbers and op.attrs["dtype"] is torch.float32:
        p.values[op.result] = p.values[value]  # a Python float has no dtype of its own
        p.float_numbers.add(op.result)
        return
    receiver = p.tensor(value).at(ATOM)
    p.define(op, Expr(f"{receiver}.to({op.attrs['dtype']})"))


def _bitcast(p: Printer, op: Op) -> None:
    (value,) = op.operands
    name = p.values[value].text
    if any(op in users for users in p.float_arguments.values()):
        p.values[op.result] = Expr(name, literal=True)
        p.float_numbers.add(op.result)
        return
    p.define(op, Expr(f"{p.tensor(value).at(ATOM)}.view({op.attrs['dtype']})"))


def _rng(p: Printer, op: Op) -> None:
    seed, _, *bounds = (p.values[v].text for v in op.operands)
    index = p.tensor(op.operands[1]).text
    shape = ", ".join(map(p.extent, p.canonical(op.result)))
    arguments = [f"[{shape}]", *bounds, f"seed={seed}", f"offsets={index}"]
    word = op.attrs.get("word", 0)
    if word and op.attrs["fn"] == "rand":
        p.define(op, Expr(f"hl.rand4x({seed}, {index})[{word}]"))
        return
    arguments += [f"word={word}"] if word else []
    arguments += ["dtype=torch.int64"] if op.attrs["fn"] == "randint" else []
    p.define(op, Expr(f"hl.{op.attrs['fn']}({', '.join(arguments)})"))


# -- views --------------------------------------------------------------------------------------


def _expand(p: Printer, op: Op) -> None:
    (value,) = op.operands
    if p.in_helper:
        p.values[op.result] = p.values[value]
        return
    axes = p.canonical(op.result)
    extents = ", ".join(map(p.extent, axes))
    if p.values[value].literal:
        text = f"hl.full([{extents}], {p.values[value].text}, dtype={value.type.dtype})"
    else:
        text = f"{p.fitted(value, axes).at(ATOM)}.expand({extents})"
    p.define(op, Expr(text))


def _reaxis(p: Printer, op: Op) -> None:
    """The same tensor; where the new axis has another place, permuted."""
    (value,) = op.operands
    new = dict(op.attrs["axes"])
    have = [new[n].name if n in new else n for n in p.canonical(value)]
    want = p.canonical(op.result)
    if tuple(have) == want:
        p.values[op.result] = p.values[value]
    else:
        p.define(op, Expr(p.settled(p.values[value].at(ATOM), have, want)))


def _reshape(p: Printer, op: Op) -> None:
    (value,) = op.operands
    source, target = op.attrs["source"], [a.name for a in op.attrs["target"]]
    have, want = p.canonical(value), p.canonical(op.result)
    place = next((i for i in range(len(have)) if have[i : i + len(source)] == tuple(source)), None)
    if place is None:
        kept = [n for n in have if n not in source]
        have, place = (*kept, *source), len(kept)
    shape = [*have[:place], *target, *have[place + len(source) :]]
    text = f"{p.ordered(value, have)}.reshape({', '.join(map(p.extent, shape))})"
    p.define(op, Expr(p.settled(text, shape, want)))


# -- reductions and scans -----------------------------------------------------------------------


def _reduce(p: Printer, op: Op) -> None:
    if op.attrs["fn"] == CUSTOM:
        _custom_reduce(p, op)
        return
    (value,) = op.operands
    have = p.canonical(value)
    dims = [have.index(n) for n in op.attrs["axes"]]
    fn = op.attrs["fn"]
    expr = reduction_expr(fn, p.tensor(value), dims, len(have), value.type.dtype)
    axis = p.axes[op.attrs["axes"][0]]
    if fn in ("argmax", "argmin") and axis.kind == "block":  # positions are of the whole axis
        expr = Expr(f"{expr.text} + {p.tiles[axis.tile_name]}.begin", ADD)
    p.define(op, expr)


def _custom_reduce(p: Printer, op: Op) -> None:
    """One dimension a call, the innermost first."""
    fn = _combine(p, op)
    have = list(p.canonical(op.operands[0]))
    texts = [p.ordered(v, have) for v in op.operands]
    others = [
        number_expr(n, v.type.dtype).text
        for n, v in zip(op.attrs["identity"], op.operands, strict=True)
    ]
    for name in sorted(op.attrs["axes"], key=p.order.__getitem__, reverse=True):
        given, other = _tuple(texts), _tuple(others)
        names = [p.names.new(r.hint) for r in op.results]
        call = f"hl.reduce({fn}, {given}, dim={have.index(name)}, other={other})"
        p.line(f"{', '.join(names)} = {call}", p.note(op))
        have.remove(name)
        texts = names
    p.bind(op.results, texts)


def _tuple(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _combine(p: Printer, op: Op) -> str:
    """The op's region as a function before the kernel; its name."""
    (region,) = op.regions
    name = p.names.new("combine")
    arguments = [p.names.new(a.hint) for a in region.args]
    with p.helper(name, arguments):
        p.bind(region.args, arguments)
        for inner in region.ops:
            p.statement(inner)
    return name


_SCANS = {"prod": "torch.mul", "max": "torch.maximum", "min": "torch.minimum", "sum": "torch.add"}


def _scan(p: Printer, op: Op) -> None:
    have = p.canonical(op.operands[0])
    fn, dim = op.attrs["fn"], have.index(op.attrs["axis"])
    flags = "".join(f", {name}=True" for name in ("reverse", "exclusive") if op.attrs[name])
    if fn == CUSTOM:
        given = _tuple([p.ordered(v, have) for v in op.operands])
        call = f"hl.associative_scan({_combine(p, op)}, {given}, {dim}{flags})"
        p.define_all(op, call)
        return
    (value,) = op.operands
    text, dtype = p.tensor(value).text, value.type.dtype
    wide = dtype.is_floating_point or dtype is torch.int64  # the others would be widened
    if fn in ("sum", "prod") and wide:
        p.define(op, Expr(f"hl.cum{fn}({text}, {dim}{flags})"))
    else:
        p.define(op, Expr(f"hl.associative_scan({_SCANS[fn]}, {text}, {dim}{flags})"))


# -- products, order, selection -----------------------------------------------------------------


def _dot(p: Printer, op: Op) -> None:
    a, b, *acc = op.operands
    k = op.attrs["k"]
    left, right = (set(v.type.axis_names) - {k} for v in (a, b))
    batch, rows, columns = map(p.layout, (left & right, left - right, right - left))
    if len(batch) > 1 or len(rows) != 1 or len(columns) != 1:
        _dot_of_products(p, op)
        return
    here = (*batch, *rows, *columns)
    arguments = [p.ordered(a, (*batch, *rows, k)), p.ordered(b, (*batch, k, *columns))]
    if acc:
        arguments.append(f"acc={p.ordered(acc[0], here)}")
    elif op.attrs["acc"] is not accumulators(a.type.dtype, b.type.dtype)[0]:
        arguments.append(f"out_dtype={op.attrs['acc']}")
    call = f"hl.dot({', '.join(arguments)})"
    p.define(op, Expr(p.settled(call, here, p.canonical(op.result))))


def _dot_of_products(p: Printer, op: Op) -> None:
    """Where an operand has no axis of its own, or several: the sum of the products."""
    a, b, *acc = op.operands
    want = (*p.canonical(op.result), op.attrs["k"])
    factors = []
    for value in (a, b):
        expr = p.tensor(value)
        if value.type.dtype is not op.attrs["acc"]:
            expr = Expr(f"{expr.at(ATOM)}.to({op.attrs['acc']})")
        have = p.canonical(value)
        own = tuple(n for n in want if n in have)
        expr = Expr(p.settled(expr.at(ATOM), have, own)) if own != have else expr
        factors.append(with_axes(expr, own, want))
    product = pointwise_expr("mul", factors, op.attrs["acc"])
    total = reduction_expr("sum", product, [len(want) - 1], len(want), op.attrs["acc"])
    for value in acc:
        total = pointwise_expr("add", [p.fitted(value, want[:-1]), total], op.attrs["acc"])
    p.define(op, total)


def _sort(p: Printer, op: Op) -> None:
    (value,) = op.operands
    have = p.canonical(value)
    name, k, down = (op.attrs[n] for n in ("axis", "k", "descending"))
    text, dim = p.tensor(value).text, have.index(name)
    if k is None:
        call = f"torch.sort({text}, dim={dim}, descending={bool(down)}, stable=True)"
    else:
        call = f"torch.topk({text}, {k}, dim={dim}, largest={bool(down)})"
    here = tuple(op.attrs["out_axis"].name if n == name else n for n in have)
    p.define_all(op, call, [here] * 2)


def _take(p: Printer, op: Op) -> None:
    """torch.gather, whose operands have the same dimensions but for the one that is taken."""
    value, index = op.operands
    name, want = op.attrs["axis"], p.canonical(op.result)
    others = [n for n in p.canonical(value) if n != name]
    own = [n for n in p.canonical(index) if n not in others]
    slot = own.pop() if own else None  # the others are dimensions that the value lacks
    around = p.layout([*others, *own])
    missing = [n for n in around if n not in p.canonical(index)]
    place = len([n for n in around if p.order[n] < p.order[slot or name]])
    table = [*around[:place], name, *around[place:]]
    here = [*around[:place], *([slot] if slot else []), *around[place:]]
    shown = p.spread(value, table)
    at = p.arranged(index, here)
    if slot is None:
        dims = [":" if n in p.canonical(index) else "None" for n in around]
        dims.insert(place, "None")
        at = Expr(f"{p.tensor(index).at(ATOM)}[{', '.join(dims)}]")
    text = at.text
    if missing:
        shape = [p.extent(n) for n in here]
        shape[place:place] = [] if slot else ["1"]
        text = f"{at.at(ATOM)}.expand({', '.join(shape)})"
    if len(text) > _LONGEST_INDEX:
        name = p.names.new("index")
        p.line(f"{name} = {text}")
        text = name
    call = f"torch.gather({shown}, {place}, {text})"
    call = call if slot else f"{call}.squeeze({place})"
    p.define(op, Expr(p.settled(call, here, want)))


VALUE_ROWS: Mapping[str, Row] = {
    "const": _const,
    "size": _size,
    "iota": _iota,
    "pointwise": _pointwise,
    "cast": _cast,
    "bitcast": _bitcast,
    "rng": _rng,
    "expand": _expand,
    "reaxis": _reaxis,
    "reshape": _reshape,
    "reduce": _reduce,
    "scan": _scan,
    "dot": _dot,
    "sort": _sort,
    "take": _take,
}
