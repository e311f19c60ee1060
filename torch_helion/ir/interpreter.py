"""Runs a kernel op by op on eager CPU tensors: the oracle for every target, written for clarity.

In: a kernel, its tensors, its sizes, block sizes. Out: the output tensors, written in place. Used
by tests, by the accuracy check and by the reference mode; it imports only `ir` and `exc`.

A value is a tensor with one dimension per axis of its type, in the type's order. The last tile of
an axis is simply shorter: no lane ever lies outside its axis. Meanings that the tables of `ops.py`
leave open are decided here:

- `iota` and arg reductions count along the whole axis, also when only a tile of it is present;
- a reduction over several axes runs over their row-major product in the order of the type's axes;
- a reduction over nothing gives `identity_of` (arg reductions: position 0);
- the quotient of the smallest integer by -1 wraps, its remainder is 0;
- an access outside a buffer is IndexError where `checked`, and a broken program otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch

from torch_helion import exc
from torch_helion.ir import philox
from torch_helion.ir.graph import Kernel, Op, Region, Value
from torch_helion.ir.ops import identity_of
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS, wide_integer
from torch_helion.ir.types import Axis, Buffer, Gather, IndexExpr, Size, block_symbol

Sizes = Mapping[Any, int] | Sequence[int]
Blocks = Mapping[str, int] | int | None
Precise = bool | Literal["all"]

_HALF = (torch.float16, torch.bfloat16)


def run(
    kernel: Kernel,
    tensors: Sequence[torch.Tensor],
    sizes: Sizes,
    blocks: Blocks = None,
    precise: Precise = False,
) -> None:
    """Execute `kernel` on `tensors` (one for each of `kernel.arguments`), writing the outputs.

    `sizes`: by symbol or name, or in the order of `kernel.sizes`. `blocks`: block size by axis
    name, or one for all axes; a missing one means the whole axis in one tile. `precise=True`
    evaluates every floating dtype in float64; casts to half types still round (they are part of
    the program) unless `precise="all"`. Floating buffers may then be given as float64 tensors.
    """
    machine = _Machine(kernel, kernel.axes(), _bind_sizes(kernel, sizes), precise)
    machine.bind_blocks(blocks)
    machine.bind_buffers(tensors)
    with torch.no_grad():
        machine.run_region(kernel.body)


def _bind_sizes(kernel: Kernel, sizes: Sizes) -> dict[sympy.Symbol, int]:
    if isinstance(sizes, Mapping):
        by_name = {str(symbol): int(value) for symbol, value in sizes.items()}
        missing = [s.name for s in kernel.sizes if s.name not in by_name]
        if missing:
            raise exc.InvalidValue("sizes", sorted(by_name), f"values for {missing} too")
        return {s: by_name[s.name] for s in kernel.sizes}
    if len(sizes) != len(kernel.sizes):
        raise exc.InvalidValue("sizes", list(sizes), f"{len(kernel.sizes)} of them")
    return {s: int(value) for s, value in zip(kernel.sizes, sizes, strict=True)}


@dataclass(frozen=True)
class _Memory:
    """A buffer bound to storage: the flat storage, where the buffer begins, sizes and strides."""

    buffer: Buffer
    flat: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Tile:
    """What a grid step (or a turn of an inner loop) covers of one block axis: [start, stop)."""

    number: int
    start: int
    stop: int


@dataclass
class _Machine:
    """The state of one run: sizes, memory, the tiles of the current step, the values so far."""

    kernel: Kernel
    axes: Mapping[str, Axis]
    sizes: dict[sympy.Symbol, int]
    precise: Precise
    memory: dict[str, _Memory] = field(default_factory=dict)
    tiles: dict[str, _Tile] = field(default_factory=dict)
    values: dict[Value, torch.Tensor] = field(default_factory=dict)
    _evaluated: dict[Any, int] = field(default_factory=dict)

    # -- binding --------------------------------------------------------------------------------

    def bind_blocks(self, blocks: Blocks) -> None:
        """Give every block axis its block size, as the value of its symbol."""
        for op in self.kernel.body.walk():
            for axis in op.attrs["axes"] if op.kind == "loop" else ():
                size = max(self.evaluate(axis.size), 1)
                block = blocks.get(axis.name, size) if isinstance(blocks, Mapping) else blocks
                self.sizes[block_symbol(axis.name)] = size if block is None else int(block)
                if self.block_size(axis) < 1:
                    raise exc.InvalidValue(f"block size of {axis.name}", block, "at least 1")

    def bind_buffers(self, tensors: Sequence[torch.Tensor]) -> None:
        arguments = self.kernel.arguments
        if len(tensors) != len(arguments):
            raise exc.InvalidValue("tensors", f"{len(tensors)} tensors", f"{len(arguments)}")
        given = dict(zip((b.name for b in arguments), tensors, strict=True))
        for buffer in self.kernel.buffers:
            shape = tuple(self.evaluate(s) for s in buffer.shape)
            strides = tuple(self.evaluate(s) for s in buffer.strides)
            if buffer.role == "workspace":
                flat, offset = self._workspace(buffer, shape, strides), 0
            else:
                tensor = given[buffer.name]
                self._check_argument(buffer, tensor, shape, strides)
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                flat = torch.as_strided(tensor.detach(), (elements,), (1,), 0)
                offset = int(tensor.storage_offset())
            self.memory[buffer.name] = _Memory(buffer, flat, offset, shape, strides)

    def _workspace(
        self, buffer: Buffer, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> torch.Tensor:
        """Fresh memory full of a value that spoils every result which uses it unwritten."""
        dtype = self.held(buffer.dtype)
        poison: Any = True if dtype is torch.bool else float("nan")
        if not dtype.is_floating_point and dtype is not torch.bool:
            poison = torch.iinfo(dtype).max
        return torch.full((_extent(shape, strides),), poison, dtype=dtype)

    def _check_argument(
        self,
        buffer: Buffer,
        tensor: torch.Tensor,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        wide = self.precise and buffer.dtype.is_floating_point and tensor.dtype is torch.float64
        if tensor.dtype != buffer.dtype and not wide:
            raise exc.InvalidValue(f"tensor {buffer.name}", tensor.dtype, str(buffer.dtype))
        if tensor.device.type != "cpu":
            raise exc.InvalidValue(f"tensor {buffer.name}", str(tensor.device), "a CPU tensor")
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.storage_offset() + _extent(shape, strides) > elements:
            raise exc.InvalidValue(
                f"tensor {buffer.name}",
                (tuple(tensor.shape), tensor.stride()),
                f"storage for sizes {shape} with strides {strides}",
            )

    # -- sizes, axes, values --------------------------------------------------------------------

    def evaluate(self, expr: Size) -> int:
        """The number that a size expression stands for in this run."""
        if isinstance(expr, int):
            return expr
        if expr not in self._evaluated:
            number = sympy.sympify(expr).subs(self.sizes)
            if not number.is_Integer:
                raise exc.VerifierError(f"size {expr} is {number}: no integer in this kernel")
            # Sizes are complete only once every block is bound: no expression with a free symbol
            # gets here, so what is remembered stays right.
            self._evaluated[expr] = int(number)
        return self._evaluated[expr]

    def block_size(self, axis: Axis) -> int:
        return self.sizes[block_symbol(axis.name)]

    def extent(self, axis: Axis) -> int:
        """How many positions of `axis` a value of this step holds."""
        if axis.kind != "block":
            return self.evaluate(axis.size)
        tile = self.tile(axis.name)
        return tile.stop - tile.start

    def positions(self, axis: Axis) -> torch.Tensor:
        start = self.tile(axis.name).start if axis.kind == "block" else 0
        return torch.arange(start, start + self.extent(axis))

    def tile(self, name: str) -> _Tile:
        if name not in self.tiles:
            raise exc.VerifierError(f"{name!r} is no block axis of a loop around this use")
        return self.tiles[name]

    def held(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the tensors that stand for values of `dtype`."""
        return torch.float64 if self.precise and dtype.is_floating_point else dtype

    def convert(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """PyTorch's conversion to `dtype`, in the form in which this run holds such values."""
        rounds = self.precise != "all" and dtype in _HALF
        if not self.precise or rounds or not dtype.is_floating_point:
            tensor = tensor.to(dtype)
        return tensor.to(self.held(dtype))

    def aligned(self, value: Value, axes: Sequence[Axis]) -> torch.Tensor:
        """The tensor of `value` with one dimension for each of `axes`, of size 1 where absent."""
        return _align(self.values[value], value.type.axes, axes)

    # -- control --------------------------------------------------------------------------------

    def run_region(self, region: Region) -> tuple[torch.Tensor, ...]:
        """Run the region's ops; the operands of its final yield, if there is one."""
        for op in region.ops:
            if op.kind == "yield":
                return tuple(self.values[v] for v in op.operands)
            row = _OPS.get(op.kind)
            if row is None:
                raise exc.TargetIncomplete("interpreter", [op.kind])
            for value, tensor in zip(op.results, row(self, op), strict=True):
                self.values[value] = tensor
        return ()

    def steps(self, op: Op) -> Iterator[None]:
        """Every combination of tiles of the loop's axes; `tiles` holds the current one."""
        axes: tuple[Axis, ...] = op.attrs["axes"]
        for tiles in itertools.product(*(self._tiles(op, axis) for axis in axes)):
            self.tiles.update(zip((a.name for a in axes), tiles, strict=True))
            yield
        for axis in axes:
            self.tiles.pop(axis.name, None)

    def _tiles(self, op: Op, axis: Axis) -> list[_Tile]:
        size = self.evaluate(axis.size)
        block = 1 if op.attrs["kind"] == "sequential" else self.block_size(axis)
        starts = range(0, size, block)
        return [_Tile(i, start, min(start + block, size)) for i, start in enumerate(starts)]


Results = Sequence[torch.Tensor]


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to one past the last of a strided buffer."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _align(tensor: torch.Tensor, have: Sequence[Axis], want: Sequence[Axis]) -> torch.Tensor:
    names = [a.name for a in have]
    order = [names.index(a.name) for a in want if a.name in names]
    tensor = tensor.permute(order)
    for dim, axis in enumerate(want):
        if axis.name not in names:
            tensor = tensor.unsqueeze(dim)
    return tensor


# -- control ------------------------------------------------------------------------------------


def _loop(m: _Machine, op: Op) -> Results:
    if op.attrs["kind"] not in ("grid", "tile", "sequential"):
        raise exc.TargetIncomplete("interpreter", [f"loop of kind {op.attrs['kind']}"])
    (body,) = op.regions
    carried: Results = [m.values[v] for v in op.operands]
    for _ in m.steps(op):
        m.values.update(zip(body.args, carried, strict=True))
        carried = m.run_region(body)
    return carried


def _if(m: _Machine, op: Op) -> Results:
    condition, *_ = op.operands
    then, otherwise = op.regions
    return m.run_region(then if bool(m.values[condition]) else otherwise)


def _while(m: _Machine, op: Op) -> Results:
    condition, body = op.regions
    carried: Results = [m.values[v] for v in op.operands]
    while True:
        m.values.update(zip(condition.args, carried, strict=True))
        (proceed,) = m.run_region(condition)
        if not bool(proceed):
            return carried
        m.values.update(zip(body.args, carried, strict=True))
        carried = m.run_region(body)


def _assert(m: _Machine, op: Op) -> Results:
    if not bool(m.values[op.operands[0]].all()):
        if op.attrs["status"] == 1:
            raise IndexError(f"index out of range: {op}")
        raise RuntimeError("ZeroDivisionError")
    return ()


def _barrier(m: _Machine, op: Op) -> Results:
    return ()  # phases run one after another here


# -- memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Access:
    """Where the lanes of a load or store lie in flat storage, and which of them take part."""

    axes: tuple[Axis, ...]
    address: torch.Tensor
    mask: torch.Tensor


def _access(m: _Machine, op: Op, first: int, axes: tuple[Axis, ...]) -> _Access:
    """Addresses over `axes`. Gathered indices begin at operand `first`; the mask is last."""
    memory = m.memory[op.attrs["buffer"]]
    shape = [m.extent(a) for a in axes]
    mask = torch.ones((), dtype=torch.bool)
    if op.attrs["masked"]:
        mask = m.aligned(op.operands[-1], axes)
    mask = mask.expand(shape)
    address = torch.full(shape, memory.offset, dtype=torch.int64)
    for dim, expr in enumerate(op.attrs["index"]):
        index = _index(m, op, expr, first, axes)
        _check_range(op, expr, dim, memory.shape[dim], index.expand(shape)[mask])
        address = address + index * memory.strides[dim]
    return _Access(axes, address, mask)


def _index(
    m: _Machine, op: Op, expr: IndexExpr, first: int, axes: tuple[Axis, ...]
) -> torch.Tensor:
    if isinstance(expr, Gather):
        return m.aligned(op.operands[first + expr.operand], axes)
    index = torch.full((1,) * len(axes), m.evaluate(expr.offset), dtype=torch.int64)
    by_name = {a.name: a for a in axes}
    for name, coefficient in expr.terms:
        if name in by_name:
            axis = by_name[name]
            term = _align(m.positions(axis), (axis,), axes)
        else:
            term = torch.tensor(m.tile(name.removesuffix(".id")).number)
        index = index + term * m.evaluate(coefficient)
    return index


def _check_range(op: Op, expr: IndexExpr, dim: int, size: int, index: torch.Tensor) -> None:
    """`index`: the lanes that take part."""
    outside = (index < 0) | (index >= size)
    if not outside.any():
        return
    where = (
        f"index {int(index[outside][0])} is out of bounds for dimension {dim} of "
        f"{op.attrs['buffer']} with size {size}"
    )
    if op.attrs["checked"] and isinstance(expr, Gather):
        raise IndexError(where)
    raise exc.VerifierError(f"{where}, in an unchecked {op.kind}")


def _load(m: _Machine, op: Op) -> Results:
    access = _access(m, op, 0, op.result.type.axes)
    dtype = m.held(op.result.type.dtype)
    lanes = _bits(m.memory[op.attrs["buffer"]].flat)[access.address[access.mask]]
    tile = torch.full(access.address.shape, op.attrs["other"], dtype=dtype)
    _bits(tile)[access.mask] = lanes.to(_bits(tile).dtype)
    return (tile,)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, seen in a dtype that PyTorch can index (not all unsigned ones are)."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    return tensor.view(signed.get(tensor.dtype, tensor.dtype))


def _store_axes(m: _Machine, op: Op) -> tuple[Axis, ...]:
    """Axes of the stored value, the gathered indices, the mask, and block axes of the index."""
    names = [n for v in op.operands for n in v.type.axis_names]
    names += [n for e in op.attrs["index"] if not isinstance(e, Gather) for n in e.axis_names]
    return tuple(m.axes[n] for n in dict.fromkeys(names) if n in m.axes)


def _store(m: _Machine, op: Op) -> Results:
    access = _access(m, op, 1, _store_axes(m, op))
    flat = m.memory[op.attrs["buffer"]].flat
    tile = m.aligned(op.operands[0], access.axes).expand(access.address.shape)
    lanes = _bits(tile.to(flat.dtype))[access.mask]
    _bits(flat)[access.address[access.mask]] = lanes
    return ()


def _atomic(m: _Machine, op: Op) -> Results:
    if op.attrs["fn"] != "add":
        raise exc.TargetIncomplete("interpreter", [f"atomic {op.attrs['fn']}"])
    access = _access(m, op, 1, _store_axes(m, op))
    flat = m.memory[op.attrs["buffer"]].flat
    tile = m.aligned(op.operands[0], access.axes).expand(access.address.shape)
    lanes = tile[access.mask].to(flat.dtype)
    flat.index_put_((access.address[access.mask],), lanes, accumulate=True)
    return ()


# -- arithmetic ---------------------------------------------------------------------------------


def _pointwise(m: _Machine, op: Op) -> Results:
    fn = op.attrs["fn"]
    operands = [m.aligned(v, op.result.type.axes) for v in op.operands]
    dtype = op.operands[-1].type.dtype
    if m.precise and dtype.is_floating_point:
        if fn == "nextafter":  # a neighbour in the program's dtype, not in float64
            return (torch.nextafter(*(x.to(dtype) for x in operands)).to(torch.float64),)
        if fn == "fma":  # float64 stands for exact arithmetic here
            return (operands[0] * operands[1] + operands[2],)
    return (POINTWISE_FUNCTIONS[fn](*operands),)


def _cast(m: _Machine, op: Op) -> Results:
    return (m.convert(m.values[op.operands[0]], op.attrs["dtype"]),)


def _bitcast(m: _Machine, op: Op) -> Results:
    (value,) = op.operands
    bits = m.values[value].to(value.type.dtype).contiguous().view(op.attrs["dtype"])
    return (bits.to(m.held(op.attrs["dtype"])),)


def _const(m: _Machine, op: Op) -> Results:
    value, dtype = op.attrs["value"], op.attrs["dtype"]
    if dtype.is_floating_point:
        return (m.convert(torch.tensor(float(value), dtype=torch.float64), dtype),)
    return (torch.tensor(value, dtype=dtype),)


def _size(m: _Machine, op: Op) -> Results:
    return (torch.tensor(m.evaluate(op.attrs["expr"]), dtype=torch.int64),)


def _iota(m: _Machine, op: Op) -> Results:
    (axis,) = op.result.type.axes
    return (m.positions(axis),)


def _expand(m: _Machine, op: Op) -> Results:
    axes = op.result.type.axes
    return (m.aligned(op.operands[0], axes).expand([m.extent(a) for a in axes]),)


def _reshape(m: _Machine, op: Op) -> Results:
    return (m.values[op.operands[0]].reshape([m.extent(a) for a in op.result.type.axes]),)


def _rng(m: _Machine, op: Op) -> Results:
    seed, index, *bounds = (m.values[v] for v in op.operands)
    axes = op.result.type.axes
    shape = [m.extent(a) for a in axes]
    index = m.aligned(op.operands[1], axes).expand(shape)
    fn, dtype = op.attrs["fn"], op.result.type.dtype
    if fn == "randint":
        return (philox.randint(int(seed), index, *(int(b) for b in bounds)),)
    numbers = {"rand": philox.uniform, "randn": philox.normal}[fn](int(seed), index)
    return (m.convert(numbers, dtype),)


# -- reductions, scans, products ----------------------------------------------------------------


def _sum(x: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    return x.sum(-1, dtype=wide)


def _prod(x: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    return x.prod(-1, dtype=wide)


def _first_extreme(x: torch.Tensor, extreme: torch.Tensor) -> torch.Tensor:
    """Position of the first lane that is NaN, else of the first that equals `extreme`."""
    hit = x == extreme.unsqueeze(-1)
    if x.dtype.is_floating_point:
        nan = x.isnan()
        hit = torch.where(nan.any(-1, keepdim=True), nan, hit)
    places = torch.arange(x.shape[-1]).expand(x.shape)
    return torch.where(hit, places, x.shape[-1]).amin(-1)


_REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "sum": _sum,
    "prod": _prod,
    "max": lambda x, _: x.amax(-1),
    "min": lambda x, _: x.amin(-1),
    "any": lambda x, _: x.any(-1),
    "all": lambda x, _: x.all(-1),
    "argmax": lambda x, _: _first_extreme(x, x.amax(-1)),
    "argmin": lambda x, _: _first_extreme(x, x.amin(-1)),
}


def _reduce(m: _Machine, op: Op) -> Results:
    (value,) = op.operands
    fn, names = op.attrs["fn"], op.attrs["axes"]
    kept = op.result.type.axes
    gone = tuple(a for a in value.type.axes if a.name in names)
    x = m.aligned(value, kept + gone)
    x = x.reshape(*x.shape[: len(kept)], -1) if x.numel() else x.flatten(len(kept))
    positional = fn in ("argmax", "argmin")
    if x.shape[-1] == 0:
        dtype = torch.int64 if positional else x.dtype
        nothing = 0 if positional else identity_of(fn, value.type.dtype)
        return (torch.full(x.shape[:-1], nothing, dtype=dtype),)
    if x.numel() == 0:
        return (torch.empty(x.shape[:-1], dtype=torch.int64 if positional else x.dtype),)
    wide = wide_integer(x.dtype)
    result = _REDUCTIONS[fn](x.to(wide), wide)
    if positional:
        return (result + (m.tile(gone[0].name).start if gone[0].kind == "block" else 0),)
    return (result.to(x.dtype),)


_SCANS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "sum": lambda x, dim: x.cumsum(dim, dtype=x.dtype),
    "prod": lambda x, dim: x.cumprod(dim, dtype=x.dtype),
    "max": lambda x, dim: x.cummax(dim).values,
    "min": lambda x, dim: x.cummin(dim).values,
}


def _scan(m: _Machine, op: Op) -> Results:
    (value,) = op.operands
    fn, name = op.attrs["fn"], op.attrs["axis"]
    if fn not in _SCANS:
        raise exc.TargetIncomplete("interpreter", [f"scan {fn}"])
    dim = value.type.axis_names.index(name)
    if value.type.axes[dim].kind == "block":
        raise exc.TargetIncomplete("interpreter", [f"scan over block axis {name}"])
    x = m.values[value]
    x = x.flip(dim) if op.attrs["reverse"] else x
    if op.attrs["exclusive"] and x.shape[dim]:
        first = torch.full_like(x.narrow(dim, 0, 1), identity_of(fn, value.type.dtype))
        x = torch.cat([first, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    x = _SCANS[fn](x, dim)
    return (x.flip(dim) if op.attrs["reverse"] else x,)


def _dot(m: _Machine, op: Op) -> Results:
    acc = m.held(op.attrs["acc"])
    letters = {n: chr(ord("a") + i) for i, n in enumerate(_all_names(op))}
    spec = ",".join("".join(letters[n] for n in v.type.axis_names) for v in op.operands)
    out = "".join(letters[n] for n in op.result.type.axis_names)
    operands = [m.values[v].to(acc) for v in op.operands]
    return (torch.einsum(f"{spec}->{out}", *operands),)


def _all_names(op: Op) -> list[str]:
    return list(dict.fromkeys(n for v in op.operands for n in v.type.axis_names))


def _sort(m: _Machine, op: Op) -> Results:
    (value,) = op.operands
    if op.attrs.get("k") is not None:
        raise exc.TargetIncomplete("interpreter", ["sort with k"])
    dim = value.type.axis_names.index(op.attrs["axis"])
    descending = bool(op.attrs["descending"])
    result = torch.sort(m.values[value], dim=dim, descending=descending, stable=True)
    return (result.values, result.indices)


_OPS: dict[str, Callable[[_Machine, Op], Results]] = {
    "loop": _loop,
    "if": _if,
    "while": _while,
    "assert": _assert,
    "barrier": _barrier,
    "load": _load,
    "store": _store,
    "atomic": _atomic,
    "pointwise": _pointwise,
    "cast": _cast,
    "bitcast": _bitcast,
    "reduce": _reduce,
    "scan": _scan,
    "dot": _dot,
    "reshape": _reshape,
    "expand": _expand,
    "iota": _iota,
    "const": _const,
    "size": _size,
    "rng": _rng,
    "sort": _sort,
}
