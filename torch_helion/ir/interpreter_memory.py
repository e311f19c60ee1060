"""Rows of the interpreter: loads, stores, atomics.

In: a `Machine` and an op. Out: the tensors of the op's results. Used by `interpreter.py` only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from torch_helion import exc
from torch_helion.ir.graph import Op
from torch_helion.ir.interpreter_state import Machine, Memory, Results, align, bits, extent_of
from torch_helion.ir.ops import HALF
from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS
from torch_helion.ir.types import Axis, Gather, IndexExpr


@dataclass(frozen=True)
class _Lanes:
    """Where the lanes of an access lie, and which of them take part."""

    axes: tuple[Axis, ...]
    memory: Memory
    offset: torch.Tensor
    """In elements, from the beginning of the buffer."""
    mask: torch.Tensor
    pointer: torch.Tensor | None

    def parts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Flat storage, the lanes that lie in it, their places in it."""
        if self.pointer is None:
            yield self.memory.flat, self.mask, self.memory.offset + self.offset[self.mask]
            return
        for address in self.pointer[self.mask].unique().tolist():
            lanes = self.mask & (self.pointer == address)
            yield _at_address(self.memory, address), lanes, self.offset[lanes]


def _at_address(memory: Memory, address: int) -> torch.Tensor:
    """The elements of a tensor like the buffer whose data begin at `address`."""
    dtype = memory.buffer.dtype
    size = extent_of(memory.shape, memory.strides) * dtype.itemsize
    raw = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype)


def _lanes(m: Machine, op: Op, axes: tuple[Axis, ...]) -> _Lanes:
    memory, access = m.memory[op.attrs["buffer"]], op.access
    shape = [m.extent(a) for a in axes]
    mask = torch.ones((), dtype=torch.bool)
    if access.mask is not None:
        mask = m.aligned(access.mask, axes)
    mask = mask.expand(shape)
    offset = torch.zeros(shape, dtype=torch.int64)
    for dim, expr in enumerate(op.attrs["index"]):
        index = _index(m, op, expr, axes)
        _check_range(op, dim, memory.shape[dim], index.expand(shape)[mask])
        offset = offset + index * memory.strides[dim]
    pointer = None
    if access.pointer is not None:
        pointer = m.aligned(access.pointer, axes).expand(shape)
    return _Lanes(axes, memory, offset, mask, pointer)


def _index(m: Machine, op: Op, expr: IndexExpr, axes: tuple[Axis, ...]) -> torch.Tensor:
    if isinstance(expr, Gather):
        return m.aligned(op.access.gathered[expr.operand], axes)
    index = torch.full((1,) * len(axes), m.evaluate(expr.offset), dtype=torch.int64)
    by_name = {a.name: a for a in axes}
    for name, coefficient in expr.terms:
        if name in by_name:
            axis = by_name[name]
            term = align(m.positions(axis), (axis,), axes)
        else:
            term = torch.tensor(m.tile(m.axes[name.removesuffix(".id")]).number)
        index = index + term * m.evaluate(coefficient)
    return index


def _check_range(op: Op, dim: int, size: int, index: torch.Tensor) -> None:
    """`index`: the lanes that take part."""
    outside = (index < 0) | (index >= size)
    if not outside.any():
        return
    where = (
        f"index {int(index[outside][0])} is out of bounds for dimension {dim} of "
        f"{op.attrs['buffer']} with size {size}"
    )
    if op.attrs["checked"]:
        raise IndexError(where)
    raise exc.VerifierError(f"{where}, in an unchecked {op.kind}")


def _window(m: Machine, op: Op, axes: Sequence[Axis]) -> torch.Tensor | None:
    """The elements of an access as a view of the buffer, one dimension for each of the axes; None
    where the access is no such window (masked, gathered, backwards, outside).
    """
    memory, access = m.memory[op.attrs["buffer"]], op.access
    if access.mask is not None or access.pointer is not None:
        return None
    steps, offset = dict.fromkeys((a.name for a in axes), 0), memory.offset
    for dim, expr in enumerate(op.attrs["index"]):
        if isinstance(expr, Gather):
            return None
        first = last = m.evaluate(expr.offset)
        for name, coefficient in expr.terms:
            step = m.evaluate(coefficient)
            if step < 0:
                return None
            if name not in steps:
                number = m.tile(m.axes[name.removesuffix(".id")]).number
                first, last = first + step * number, last + step * number
                continue
            start, extent = m.start(m.axes[name]), m.extent(m.axes[name])
            if extent == 0:
                return None
            first, last = first + step * start, last + step * (start + extent - 1)
            steps[name] += step * memory.strides[dim]
        if first < 0 or last >= memory.shape[dim]:
            return None
        offset += first * memory.strides[dim]
    shape = [m.extent(a) for a in axes]
    return torch.as_strided(memory.flat, shape, [steps[a.name] for a in axes], offset)


def _load(m: Machine, op: Op) -> Results:
    window = _window(m, op, op.result.type.axes)
    if window is not None:
        return (window.to(m.held(op.result.type.dtype), copy=True),)
    lanes = _lanes(m, op, op.result.type.axes)
    dtype = op.result.type.dtype
    other = torch.tensor(op.attrs["other"], dtype=torch.float32 if _scalar_needs(dtype) else dtype)
    tile = other.to(m.held(dtype)).repeat(lanes.mask.shape)
    for flat, mask, places in lanes.parts():
        read = bits(flat)[places].view(flat.dtype)
        bits(tile)[mask] = bits(read.to(tile.dtype))
    return (tile,)


def _scalar_needs(dtype: torch.dtype) -> bool:
    """Whether PyTorch makes no scalars of this dtype."""
    return dtype.is_floating_point and dtype.itemsize == 1


def _store_axes(m: Machine, op: Op) -> tuple[Axis, ...]:
    """Axes of the stored value, the gathered indices, the mask, and block axes of the index."""
    names = [n for v in op.operands for n in v.type.axis_names]
    names += [n for e in op.attrs["index"] if not isinstance(e, Gather) for n in e.axis_names]
    return tuple(m.axes[n] for n in dict.fromkeys(names) if n in m.axes)


def _store(m: Machine, op: Op) -> Results:
    axes = _store_axes(m, op)
    window = _window(m, op, axes)
    if window is not None and _is_once_each(window):
        window.copy_(m.aligned(op.operands[0], axes).expand(window.shape))
        return ()
    lanes = _lanes(m, op, axes)
    tile = m.aligned(op.operands[0], lanes.axes).expand(lanes.mask.shape)
    for flat, mask, places in lanes.parts():
        if m.unique_stores and op.access.gathered and places.unique().numel() != places.numel():
            raise exc.DuplicateStoreIndicesError(op.attrs["buffer"])
        bits(flat)[places] = bits(tile.to(flat.dtype))[mask]
    return ()


def _is_once_each(window: torch.Tensor) -> bool:
    """Whether no element of the buffer occurs twice."""
    reach = 0
    pairs = zip(window.stride(), window.shape, strict=True)
    for step, extent in sorted((s, n) for s, n in pairs if n > 1):
        if step <= reach:
            return False
        reach += step * (extent - 1)
    return True


# -- atomics ------------------------------------------------------------------------------------


def _atomic(m: Machine, op: Op) -> Results:
    axes = op.result.type.axes if op.results else _store_axes(m, op)
    lanes, fn = _lanes(m, op, axes), op.attrs["fn"]
    stored = [m.aligned(v, axes).expand(lanes.mask.shape) for v in op.access.values]
    before = torch.zeros(lanes.mask.shape, dtype=stored[0].dtype)
    for flat, mask, places in lanes.parts():
        operands = [t[mask].to(flat.dtype) for t in stored]
        if fn in _AT_ONCE and not op.results and flat.dtype not in HALF:
            flat.scatter_reduce_(0, places, operands[0], _AT_ONCE[fn])
        else:
            before[mask] = _one_by_one(fn, flat, places, operands).to(before.dtype)
    return (before,) if op.results else ()


def _one_by_one(
    fn: str, flat: torch.Tensor, places: torch.Tensor, operands: list[torch.Tensor]
) -> torch.Tensor:
    """Apply the lanes in their order; what each one found."""
    found = torch.empty(len(places), dtype=flat.dtype)
    for lane, place in enumerate(places.tolist()):
        found[lane] = flat[place]
        flat[place] = _ATOMICS[fn](found[lane], *(t[lane] for t in operands))
    return found


def _combined(name: str) -> Callable[..., torch.Tensor]:
    """A pointwise function; half types are computed in float32."""

    def call(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if old.dtype in HALF:
            return POINTWISE_FUNCTIONS[name](old.float(), value.float()).to(old.dtype)
        return POINTWISE_FUNCTIONS[name](old, value)

    return call


def _cas(old: torch.Tensor, expected: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compares bits: NaN is found, and -0.0 is not 0.0."""
    same = old.reshape(1).view(torch.uint8).equal(expected.reshape(1).view(torch.uint8))
    return value if same else old


_AT_ONCE = {"add": "sum", "max": "amax", "min": "amin"}
"""What PyTorch does for all lanes, in their order, in one call."""

_ATOMICS: Mapping[str, Callable[..., torch.Tensor]] = {
    "add": _combined("add"),
    "max": _combined("maximum"),
    "min": _combined("minimum"),
    "and": _combined("and"),
    "or": _combined("or"),
    "xor": _combined("xor"),
    "xchg": lambda old, value: value,
    "cas": _cas,
}


MEMORY_ROWS: Mapping[str, Callable[[Machine, Op], Results]] = {
    "load": _load,
    "store": _store,
    "atomic": _atomic,
}
