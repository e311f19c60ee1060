"""Checks a kernel against the rules of the tile IR; run at the pipeline's ends and after passes.

In: a kernel. Out: nothing, or `exc.VerifierError` that quotes the operation. The rules are tables:
one list for the kernel as a whole, one row per op kind. A rule is a small function that raises
through `scope.fail`. `docs/tile-ir.md` lists them in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.dump import op_text
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import OP_KINDS, POINTWISE, REDUCTIONS, RNG, in_domain
from torch_helion.ir.types import Affine, Axis, Buffer, Gather, Size, block_symbol

_HALF = (torch.float16, torch.bfloat16)
# Half types are moved, never computed in: lowering casts to float32 first.
_HALF_FUNCTIONS = ("where",)


def verify(kernel: Kernel) -> None:
    """Raise `exc.VerifierError` if the kernel breaks a rule."""
    scope = _Scope(kernel)
    for rule in _KERNEL_RULES:
        rule(scope)
    _check_phases(scope)


@dataclass
class _Scope:
    """What is known at one place of the program."""

    kernel: Kernel
    op: Op | None = None
    buffers: dict[str, Buffer] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    """Every axis seen so far, by name: one name, one axis."""
    loops: list[Op] = field(default_factory=list)
    """The loops around this place, outermost first."""
    defined: set[Value] = field(default_factory=set)
    symbols: frozenset[sympy.Symbol] = frozenset()
    pending: set[str] = field(default_factory=set)
    """Buffers stored to since the last barrier, by loops before this one."""
    written: set[str] = field(default_factory=set)
    """Buffers stored to by the current phase."""
    complete: set[str] = field(default_factory=set)
    """Buffers with a store before the last barrier."""

    def fail(self, why: str) -> NoReturn:
        where = f"\n  in: {op_text(self.op)}" if self.op is not None else ""
        origin = f"\n  from: {self.op.origin}" if self.op and str(self.op.origin) else ""
        raise exc.VerifierError(f"kernel {self.kernel.name}: {why}{where}{origin}")

    def require(self, condition: object, why: str) -> None:
        if not condition:
            self.fail(why)

    def block_axes(self) -> dict[str, Axis]:
        """Block axes with a tile here."""
        return {a.name: a for loop in self.loops for a in loop.attrs["axes"]}

    def check_size(self, size: Size, what: str) -> None:
        symbols: set[Any] = getattr(size, "free_symbols", set())
        # Texts of sizes are slow to make: only for an error.
        if not symbols <= self.symbols:
            names = ", ".join(sorted(str(s) for s in symbols - self.symbols))
            self.fail(f"{what} {size}: {names} is no size or block of this kernel")
        if not isinstance(size, int | sympy.Expr) or isinstance(size, bool):
            self.fail(f"{what} {size!r} is no size expression")

    def check_axis(self, axis: Axis) -> None:
        known = self.axes.setdefault(axis.name, axis)
        if known != axis:
            self.fail(f"two axes are named {axis.name!r}: {known} and {axis}")
        self.check_size(axis.size, "axis size")
        if axis.kind == "block":
            self.require(axis.name in self.block_axes(), f"no loop over {axis.name!r} around this")


# -- the kernel as a whole ----------------------------------------------------------------------


def _loop_axes(kernel: Kernel) -> Iterable[Axis]:
    for op in kernel.body.walk():
        if op.kind == "loop":
            yield from op.attrs["axes"]


def _check_symbols(s: _Scope) -> None:
    sizes = [symbol.name for symbol in s.kernel.sizes]
    s.require(len(set(sizes)) == len(sizes), f"a size is declared twice: {sizes}")
    blocks = {block_symbol(a.name) for a in _loop_axes(s.kernel) if a.kind == "block"}
    s.symbols = frozenset({*s.kernel.sizes, *blocks})


def _check_buffers(s: _Scope) -> None:
    taken = {symbol.name for symbol in s.kernel.sizes}
    for buffer in s.kernel.buffers:
        s.require(buffer.name not in taken, f"the name {buffer.name!r} is used twice")
        taken.add(buffer.name)
        s.buffers[buffer.name] = buffer
        s.require(len(buffer.shape) == len(buffer.strides), f"{buffer.name}: sizes and strides")
        for size, stride in zip(buffer.shape, buffer.strides, strict=True):
            s.check_size(size, f"size of {buffer.name}")
            s.check_size(stride, f"stride of {buffer.name}")
            if buffer.role != "in" and stride == 0:
                s.require(size in (0, 1), f"{buffer.name} is written through a stride of 0")


_KERNEL_RULES: tuple[Callable[[_Scope], None], ...] = (_check_symbols, _check_buffers)


def _check_phases(s: _Scope) -> None:
    for op in s.kernel.body.ops:
        s.op = op
        s.require(op.kind in ("loop", "barrier"), "only grid loops and barriers stand at the top")
        if op.kind == "loop":
            s.require(op.attrs.get("kind") == "grid", "a loop at the top is a grid loop")
            s.require(not op.operands and not op.results, "a grid loop carries no values")
        _check_op(s, op)
        if op.kind == "barrier":
            s.complete |= s.pending
            s.pending = set()
        else:
            _check_steps_apart(s, op)
            s.pending |= s.written
            s.written = set()


def _check_steps_apart(s: _Scope, loop: Op) -> None:
    """A step loads from a buffer that its phase stores to only what it stores itself."""
    ops = list(loop.regions[0].walk())
    stores = [op for op in ops if op.kind in ("store", "atomic")]
    for load in (op for op in ops if op.kind == "load" and op.attrs["buffer"] in s.written):
        s.op = load
        for store in (op for op in stores if op.attrs["buffer"] == load.attrs["buffer"]):
            pairs = zip(load.attrs["index"], store.attrs["index"], strict=True)
            same = {n for a, b in pairs if a == b and isinstance(a, Affine) for n in a.axis_names}
            for axis in loop.attrs["axes"]:
                apart = axis.size == 1 or axis.name in same or axis.id_name in same
                s.require(apart, f"other steps along {axis.name!r} store to what this reads")


def _check_region(s: _Scope, region: Region, results: Sequence[Value] | None) -> None:
    """`results`: what the region's yield must give; None where it ends without one."""
    outer = set(s.defined)
    for arg in region.args:
        s.require(arg not in s.defined, f"{arg!r} is defined twice")
        s.defined.add(arg)
    for op in region.ops:
        s.op = op
        s.require(op.kind != "yield" or op is region.ops[-1], "a yield ends its region")
        _check_op(s, op)
    yielded = [op for op in region.ops if op.kind == "yield"]
    if results is not None:
        given = yielded[0].operands if yielded else ()
        s.require([v.type for v in given] == [v.type for v in results], "what the region yields")
    else:
        s.require(not yielded, "this region yields nothing")
    s.defined = outer


def _check_op(s: _Scope, op: Op) -> None:
    s.op = op
    s.require(op.kind in OP_KINDS, f"unknown kind {op.kind!r}")
    for operand in op.operands:
        if operand not in s.defined:
            s.fail(f"{operand!r} is used before its definition")
    needed = _ATTRIBUTES.get(op.kind, ())
    missing = [name for name in needed if name not in op.attrs]
    s.require(not missing, f"attributes {missing} are missing")
    if not OP_KINDS[op.kind].has_region:
        s.require(not op.regions, "an op of this kind has no regions")
    for result in op.results:
        names = result.type.axis_names
        if len(set(names)) != len(names):
            s.fail(f"an axis occurs twice in {result.type}")
        for axis in result.type.axes:
            s.check_axis(axis)
    _RULES[op.kind](s, op)
    s.op = op
    for result in op.results:
        if result in s.defined:
            s.fail(f"{result!r} is defined twice")
        s.defined.add(result)


# -- helpers of the rows ------------------------------------------------------------------------


def _counts(s: _Scope, op: Op, operands: int, results: int) -> None:
    s.require(len(op.operands) == operands, f"{len(op.operands)} operands, {operands} expected")
    s.require(len(op.results) == results, f"{len(op.results)} results, {results} expected")


def _has_type(s: _Scope, value: Value, dtype: torch.dtype, axes: Iterable[str]) -> None:
    if value.type.dtype != dtype:
        s.fail(f"the result is {value.type}, {dtype} expected")
    names = set(axes)
    if set(value.type.axis_names) != names:
        s.fail(f"the result is {value.type}, axes {sorted(names)} expected")


def _axis_names(values: Iterable[Value]) -> set[str]:
    return {n for v in values for n in v.type.axis_names}


def _in_domain(s: _Scope, what: str, dtype: torch.dtype, domain: Any) -> None:
    s.require(in_domain(dtype, domain), f"{what} takes {domain} dtypes, not {dtype}")


# -- control ------------------------------------------------------------------------------------


def _check_loop(s: _Scope, op: Op) -> None:
    s.require(len(op.regions) == 1, "a loop has one region")
    kinds = ("grid", "tile", "sequential", "jagged", "unrolled")
    s.require(op.attrs["kind"] in kinds, f"loop of kind {op.attrs['kind']!r}")
    around = s.block_axes()
    for axis in op.attrs["axes"]:
        s.require(axis.kind == "block", f"a loop runs over block axes, not over {axis}")
        s.require(axis.name not in around, f"a loop around this already runs over {axis.name!r}")
    if s.loops:
        s.require(op.attrs["kind"] != "grid", "a grid loop inside another loop")
    (body,) = op.regions
    types = [v.type for v in op.operands]
    s.require([a.type for a in body.args] == types, "loop-carried values change their types")
    s.require([r.type for r in op.results] == types, "loop results have other types than carried")
    s.loops.append(op)
    for axis in op.attrs["axes"]:
        s.check_axis(axis)
    _check_region(s, body, op.results if op.results else None)
    s.loops.pop()


def _check_if(s: _Scope, op: Op) -> None:
    s.require(len(op.operands) == 1 and len(op.regions) == 2, "one operand and two regions")
    _scalar(s, op.operands[0], torch.bool)
    for region in op.regions:
        s.require(not region.args, "the regions of an if take no values")
        _check_region(s, region, op.results if op.results else None)


def _check_while(s: _Scope, op: Op) -> None:
    s.require(len(op.regions) == 2, "a while has two regions, condition and body")
    types = [v.type for v in op.operands]
    s.require([r.type for r in op.results] == types, "results have other types than the operands")
    condition, body = op.regions
    for region in op.regions:
        s.require([a.type for a in region.args] == types, "carried values change their types")
    last = condition.ops[-1] if condition.ops else None
    if last is None or last.kind != "yield" or len(last.operands) != 1:
        s.fail("the condition yields one value")
    _scalar(s, last.operands[0], torch.bool)
    _check_region(s, condition, last.operands)
    _check_region(s, body, op.results)


def _scalar(s: _Scope, value: Value, dtype: torch.dtype) -> None:
    if value.type.dtype != dtype or value.type.axes:
        s.fail(f"{value!r} must be a rank-0 {dtype}")


def _check_yield(s: _Scope, op: Op) -> None:
    s.require(not op.results, "a yield has no results")


def _check_assert(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 0)
    if op.operands[0].type.dtype != torch.bool:
        s.fail(f"{op.operands[0]!r} must be a bool")
    s.require(op.attrs["status"] in (1, 2), f"no error status {op.attrs['status']!r}")


def _check_barrier(s: _Scope, op: Op) -> None:
    s.require(not s.loops, "a barrier inside a loop")
    _counts(s, op, 0, 0)


# -- memory -------------------------------------------------------------------------------------


def _check_access(s: _Scope, op: Op, gathered: Sequence[Value]) -> set[str]:
    """Rules of loads and stores alike. Gives the axes of which the index is a function."""
    buffer = s.buffers.get(op.attrs["buffer"])
    if buffer is None:
        s.fail(f"no buffer {op.attrs['buffer']!r}")
    index = op.attrs["index"]
    rank = len(buffer.shape)
    s.require(len(index) == rank, f"{len(index)} indices for {rank} dimensions")
    s.require(all(isinstance(e, Affine | Gather) for e in index), "an index is Affine or Gather")
    if op.attrs["masked"]:
        s.require(gathered and gathered[-1].type.dtype is torch.bool, "the mask is no bool")
        gathered = gathered[:-1]
    used = sorted(e.operand for e in index if isinstance(e, Gather))
    s.require(used == list(range(len(gathered))), "gathered indices do not match their operands")
    for value in gathered:
        if value.type.dtype is not torch.int64:
            s.fail(f"gathered index {value!r} is no int64")
    axes = _axis_names(gathered)
    for expr in index:
        if isinstance(expr, Affine):
            axes |= _check_affine(s, expr)
    return axes


def _check_affine(s: _Scope, expr: Affine) -> set[str]:
    """Axes of the map's terms; a term on the number of a tile gives none."""
    s.check_size(expr.offset, "offset")
    axes = set()
    for name, coefficient in expr.terms:
        s.check_size(coefficient, f"coefficient of {name}")
        owner = name.removesuffix(".id")
        if owner != name:
            s.require(owner in s.block_axes(), f"no loop over {owner!r} around this")
        else:
            axes.add(name)
    return axes


def _check_load(s: _Scope, op: Op) -> None:
    s.require(len(op.results) == 1, "a load has one result")
    axes = _check_access(s, op, op.operands) | _axis_names(op.operands)
    buffer = s.buffers[op.attrs["buffer"]]
    _has_type(s, op.result, buffer.dtype, axes)
    _fits(s, op.attrs["other"], buffer.dtype, "what masked-off lanes hold")
    s.require(buffer.role != "out", f"{buffer.name} is an output: nothing to load")
    if buffer.role == "workspace":
        s.require(
            buffer.name in s.complete,
            f"workspace {buffer.name} is read before it is written"
            ", with a barrier after its writes",
        )
    s.require(buffer.name not in s.pending, f"no barrier since {buffer.name} was written")
    same_phase = buffer.role == "workspace" and buffer.name in s.written
    s.require(not same_phase, f"workspace {buffer.name} is written in this phase, too")


def _check_store(s: _Scope, op: Op) -> None:
    s.require(op.operands and not op.results, "a store has a value and no results")
    value, *rest = op.operands
    index_axes = _check_access(s, op, rest)
    buffer = s.buffers[op.attrs["buffer"]]
    if value.type.dtype != buffer.dtype:
        s.fail(f"{value!r} is stored into {buffer.dtype} {buffer.name}")
    s.require(buffer.role != "in", f"{buffer.name} is an input: nothing may be stored to it")
    if op.kind == "store":
        _check_store_covers(s, op, index_axes, _axis_names(op.operands))
    here = {**s.block_axes(), **{a.name: a for v in op.operands for a in v.type.axes}}
    for name in sorted(index_axes):
        s.require(name in here, f"the index has axis {name!r}: expand the stored value along it")
    s.written.add(buffer.name)


def _check_store_covers(s: _Scope, op: Op, index_axes: set[str], lanes: set[str]) -> None:
    """No two lanes, and no two steps, write the same place."""
    affine = [e for e in op.attrs["index"] if isinstance(e, Affine)]
    moving = {name for e in affine for name, c in e.terms if c != 0}
    gathered = {n for v in op.operands[1:] for n in v.type.axis_names} & index_axes
    for name in sorted(lanes - moving - gathered):
        one = s.axes[name].size == 1
        s.require(one, f"lanes along {name!r} write the same place: reduce it or index by it")
    for axis in s.loops[0].attrs["axes"] if s.loops else ():
        covered = axis.name in moving | gathered or axis.id_name in moving
        s.require(
            covered or axis.size == 1,
            f"all steps along {axis.name!r} write the same place: index by {axis.name} or its id",
        )


# -- arithmetic ---------------------------------------------------------------------------------


def _check_pointwise(s: _Scope, op: Op) -> None:
    row = POINTWISE.get(op.attrs["fn"])
    if row is None:
        s.fail(f"no pointwise function {op.attrs['fn']!r}")
    _counts(s, op, row.arity, 1)
    typed = op.operands
    if row.result == "where":
        condition, typed = op.operands[0], op.operands[1:]
        if condition.type.dtype is not torch.bool:
            s.fail(f"the condition is {condition.type}")
    dtypes = {v.type.dtype for v in typed}
    if len(dtypes) != 1:
        s.fail(f"operands of different dtypes: {[str(v.type) for v in typed]}")
    (dtype,) = dtypes
    _in_domain(s, row.name, dtype, row.domain)
    _not_half(s, dtype, row.name)
    out = torch.bool if row.result == "bool" else dtype
    _has_type(s, op.result, out, _axis_names(op.operands))


def _not_half(s: _Scope, dtype: torch.dtype, what: str) -> None:
    allowed = dtype not in _HALF or what in _HALF_FUNCTIONS
    s.require(allowed, f"{what} computes in {dtype}: cast to float32 first")


def _check_cast(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 1)
    _has_type(s, op.result, op.attrs["dtype"], op.operands[0].type.axis_names)


def _check_bitcast(s: _Scope, op: Op) -> None:
    _check_cast(s, op)
    width = op.operands[0].type.dtype.itemsize
    s.require(width == op.attrs["dtype"].itemsize, "a bitcast keeps the width")


def _check_const(s: _Scope, op: Op) -> None:
    _counts(s, op, 0, 1)
    _has_type(s, op.result, op.attrs["dtype"], ())
    _fits(s, op.attrs["value"], op.attrs["dtype"], "the constant")


def _fits(s: _Scope, value: Any, dtype: torch.dtype, what: str) -> None:
    """Whether the Python number `value` is one of `dtype` (floats: up to rounding)."""
    if dtype is torch.bool:
        right = isinstance(value, bool) or value in (0, 1)
    elif dtype.is_floating_point:
        right = isinstance(value, float | int)
    else:
        info = torch.iinfo(dtype)
        right = int(value) == value and info.min <= value <= info.max
    s.require(right, f"{what} {value!r} is no {dtype}")


def _check_size_op(s: _Scope, op: Op) -> None:
    _counts(s, op, 0, 1)
    s.check_size(op.attrs["expr"], "size")
    _has_type(s, op.result, torch.int64, ())


def _check_iota(s: _Scope, op: Op) -> None:
    _counts(s, op, 0, 1)
    _has_type(s, op.result, torch.int64, (op.attrs["axis"],))


def _check_expand(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 1)
    (value,) = op.operands
    for axis in op.attrs["axes"]:
        s.check_axis(axis)
    names = {a.name for a in op.attrs["axes"]} | set(value.type.axis_names)
    _has_type(s, op.result, value.type.dtype, names)


def _check_reshape(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 1)
    (value,) = op.operands
    _has_type(s, op.result, value.type.dtype, (a.name for a in op.attrs["axes"]))
    before, after = (
        sympy.prod([a.size for a in axes]) for axes in (value.type.axes, op.attrs["axes"])
    )
    s.require(sympy.expand(before - after) == 0, f"{before} elements become {after}")


def _check_rng(s: _Scope, op: Op) -> None:
    fn = op.attrs["fn"]
    s.require(fn in RNG, f"no random function {fn!r}")
    _counts(s, op, 4 if fn == "randint" else 2, 1)
    for value in op.operands:
        if value.type.dtype is not torch.int64:
            s.fail(f"{value!r} is no int64")
    for value in (op.operands[0], *op.operands[2:]):
        _scalar(s, value, torch.int64)
    dtype = op.result.type.dtype
    right = dtype is torch.int64 if fn == "randint" else dtype.is_floating_point
    s.require(right, f"{fn} of dtype {dtype}")
    _has_type(s, op.result, dtype, _axis_names(op.operands))


# -- reductions, scans, products ----------------------------------------------------------------


def _check_reduce(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 1)
    row = REDUCTIONS.get(op.attrs["fn"])
    if row is None:
        s.fail(f"no reduction {op.attrs['fn']!r}")
    (value,) = op.operands
    names = op.attrs["axes"]
    s.require(names and len(set(names)) == len(names), f"reduction over axes {names}")
    absent = [n for n in names if n not in value.type.axis_names]
    s.require(not absent, f"the operand has no axis {absent}")
    s.require(row.result != "index" or len(names) == 1, f"{row.name} over more than one axis")
    _in_domain(s, row.name, value.type.dtype, row.domain)
    _not_half(s, value.type.dtype, row.name)
    dtype = torch.int64 if row.result == "index" else value.type.dtype
    _has_type(s, op.result, dtype, set(value.type.axis_names) - set(names))


def _check_scan(s: _Scope, op: Op) -> None:
    _counts(s, op, 1, 1)
    (value,) = op.operands
    s.require(op.attrs["axis"] in value.type.axis_names, f"the operand has no {op.attrs['axis']!r}")
    s.require(op.attrs["fn"] in REDUCTIONS, f"no reduction {op.attrs['fn']!r}")
    _has_type(s, op.result, value.type.dtype, value.type.axis_names)


def _check_dot(s: _Scope, op: Op) -> None:
    _counts(s, op, 2, 1)
    k = op.attrs["k"]
    for value in op.operands:
        if k not in value.type.axis_names:
            s.fail(f"{value!r} has no axis {k!r}")
    _has_type(s, op.result, op.attrs["acc"], _axis_names(op.operands) - {k})


def _check_sort(s: _Scope, op: Op) -> None:
    s.require(len(op.operands) == 1 and len(op.results) == 2, "one operand, values and indices")
    axis = op.attrs["axis"]
    s.require(axis in op.operands[0].type.axis_names, f"the operand has no axis {axis!r}")


# -- the tables ---------------------------------------------------------------------------------

_RULES: Mapping[str, Callable[[_Scope, Op], None]] = {
    "loop": _check_loop,
    "if": _check_if,
    "while": _check_while,
    "yield": _check_yield,
    "load": _check_load,
    "store": _check_store,
    "atomic": _check_store,
    "pointwise": _check_pointwise,
    "cast": _check_cast,
    "bitcast": _check_bitcast,
    "reduce": _check_reduce,
    "scan": _check_scan,
    "dot": _check_dot,
    "reshape": _check_reshape,
    "expand": _check_expand,
    "iota": _check_iota,
    "const": _check_const,
    "size": _check_size_op,
    "rng": _check_rng,
    "sort": _check_sort,
    "assert": _check_assert,
    "barrier": _check_barrier,
}

_ACCESS = ("buffer", "index", "masked", "checked")
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "loop": ("kind", "axes"),
    "load": (*_ACCESS, "other"),
    "store": _ACCESS,
    "atomic": ("fn", *_ACCESS),
    "pointwise": ("fn",),
    "cast": ("dtype",),
    "bitcast": ("dtype",),
    "reduce": ("fn", "axes"),
    "scan": ("fn", "axis", "reverse", "exclusive"),
    "dot": ("k", "acc"),
    "reshape": ("axes",),
    "expand": ("axes",),
    "iota": ("axis",),
    "assert": ("status",),
    "const": ("value", "dtype"),
    "size": ("expr",),
    "rng": ("fn",),
    "sort": ("axis", "descending"),
}
