"""The functions of the language on the device: memory, creation, loops, products, views.

In: arguments of a call. Out: values. Each function here is the meaning of the public function of
the same name in `torch_helion.language`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import torch

from torch_helion import exc, language
from torch_helion.frontend import attributes, indexing, operators, products
from torch_helion.frontend.builtin_rows import device_print, scalar
from torch_helion.frontend.calls import Calls
from torch_helion.frontend.functions import ROWS, TORCH, Interpreter, Row, row
from torch_helion.frontend.values import (
    Dim,
    HostTensor,
    Number,
    Stack,
    Tensor,
    Tile,
    describe,
    is_number,
)
from torch_helion.frontend.views import stacked
from torch_helion.ir.ops import ASSERTED
from torch_helion.ir.types import Affine, begin_symbol
from torch_helion.language.values import StackTensor

# -- memory -------------------------------------------------------------------------------------


def _host(i: Interpreter, tensor: Any, name: str) -> Any:
    if isinstance(tensor, HostTensor | Stack):
        return tensor
    if isinstance(tensor, Tensor):
        raise exc.TypeInferenceError(f"hl.{name} of a value of the device: it has no memory")
    raise exc.TypeInferenceError(f"hl.{name} of {describe(tensor)}")


_EVICTIONS = (None, "", "first", "last", "evict_first", "evict_last")


@row(language.load)
def load(
    i: Interpreter, tensor: Any, index: Any, extra_mask: Any = None, eviction_policy: Any = None
) -> Any:
    if eviction_policy not in _EVICTIONS:
        names = ", ".join(filter(None, _EVICTIONS))
        raise exc.InvalidAPIUsage(f"eviction_policy is one of {names}, got {eviction_policy!r}")
    return indexing.load(i.p, _host(i, tensor, "load"), i.index(_index(index)), extra_mask)


@row(language.store)
def store(i: Interpreter, tensor: Any, index: Any, value: Any, extra_mask: Any = None) -> None:
    value = i.operand(value)
    indexing.store(i.p, _host(i, tensor, "store"), i.index(_index(index)), value, extra_mask)


def _index(index: Any) -> Any:
    return tuple(index) if isinstance(index, list | tuple) else (index,)


_SEMANTICS = ("relaxed", "acquire", "release", "acq_rel")


def _atomic(fn: str) -> Row:
    def call(
        i: Interpreter,
        target: Any,
        index: Any,
        value: Any,
        sem: str = "relaxed",
        extra_mask: Any = None,
    ) -> Any:
        if sem not in _SEMANTICS:
            raise exc.InvalidAPIUsage(f"sem is one of {', '.join(_SEMANTICS)}, got {sem!r}")
        place, value = i.index(_index(index)), i.operand(value)
        return indexing.atomic(i.p, fn, target, place, value, extra_mask=extra_mask)

    return call


for _name in ("add", "and", "or", "xor", "max", "min", "xchg"):
    ROWS[getattr(language, f"atomic_{_name}")] = _atomic(_name)


@row(language.atomic_cas)
def _cas(
    i: Interpreter,
    target: Any,
    index: Any,
    expected: Any,
    value: Any,
    sem: str = "relaxed",
    extra_mask: Any = None,
) -> Any:
    expected, value = i.operand(expected), i.operand(value)
    place = i.index(_index(index))
    return indexing.atomic(i.p, "cas", target, place, value, expected, extra_mask)


@row(StackTensor, language.stacktensor_like)
def stack_tensor(i: Interpreter, tensor_like: Any, dev_ptrs: Any) -> Stack:
    if not isinstance(tensor_like, HostTensor):
        raise exc.StackTensorExampleOnDevice()
    if not isinstance(dev_ptrs, Tensor):
        raise exc.StackTensorDevPtrOnHost()
    if dev_ptrs.dtype not in (torch.int64, torch.uint64):
        raise exc.StackTensorDevPtrDtype(dev_ptrs.dtype)
    value = i.p.b.bitcast(dev_ptrs.value, torch.int64)
    return Stack(tensor_like, Tensor(value, dev_ptrs.dims))


# -- creation -----------------------------------------------------------------------------------


def dims_of(i: Interpreter, shape: Any, what: str) -> tuple[Dim, ...]:
    """The dimensions of a shape of tiles, block sizes and constants."""
    dims: list[Dim] = []
    items = shape if isinstance(shape, list | tuple) else [shape]
    for item in items:
        dims.append(_dim(i, item, what, dims))
    return tuple(dims)


def _dim(i: Interpreter, item: Any, what: str, taken: Sequence[Dim] = ()) -> Dim:
    axes = i.p.axes
    if isinstance(item, Tile):
        return None if axes.block(item.axis) == 1 else axes.free(item.axis, taken)
    item = scalar(i, item)
    if not is_number(item) or isinstance(item, float | bool):
        raise exc.TypeInferenceError(f"{what}: a size must be an integer, got {describe(item)}")
    size = item.size if isinstance(item, Number) else int(item)
    if size is None or not all(_is_extent(i, s) for s in getattr(size, "free_symbols", ())):
        raise exc.ShapeSpecializingAllocation(f" (in {what})")
    if isinstance(size, int) and size < 0:
        raise exc.TypeInferenceError(f"{what}: negative size {size}")
    return axes.dim_of(size, taken)


def _is_extent(i: Interpreter, symbol: Any) -> bool:
    """Whether a symbol is a block size, or the size of some tensor."""
    if symbol.name.startswith("block_"):
        return True
    kind = i.p.sizes.sources.get(symbol, ("",))[0]
    return kind == "size" or (kind == "int" and bool(symbol.is_nonnegative))


def _filled(i: Interpreter, shape: Any, value: Any, dtype: Any, what: str) -> Tensor:
    dims = dims_of(i, shape, what)
    value = i.operand(value)
    if isinstance(value, Tensor):
        scalar(i, value)
        return Tensor(i.p.b.cast(value.value, dtype or value.dtype), dims)
    if dtype is None:
        kind = value.kind if isinstance(value, Number) else type(value)
        dtype = {bool: torch.bool, int: torch.int64}.get(kind, torch.get_default_dtype())
    return Tensor(i.p.typed(value, dtype), dims)


@row(language.zeros)
def _zeros(
    i: Interpreter, shape: Any, dtype: torch.dtype = torch.float32, device: Any = None
) -> Tensor:
    return _filled(i, shape, 0, dtype, "hl.zeros")


@row(language.full)
def _full(
    i: Interpreter,
    shape: Any,
    value: Any,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Tensor:
    return _filled(i, shape, value, dtype, "hl.full")


def _torch_filled(name: str, number: Any) -> Row:
    def call(i: Interpreter, *size: Any, dtype: Any = None, **ignored: Any) -> Tensor:
        shape = ignored.pop("size", size)
        if len(size) == 1 and isinstance(size[0], list | tuple):
            shape = size[0]
        dtype = dtype or torch.get_default_dtype()
        return _filled(i, shape, number, dtype, f"torch.{name}")

    return call


for _name, _number in (("zeros", 0), ("ones", 1), ("empty", 0)):
    TORCH[_name] = _torch_filled(_name, _number)


def _torch_full(
    i: Interpreter, size: Any, fill_value: Any, dtype: Any = None, **ignored: Any
) -> Tensor:
    return _filled(i, size, fill_value, dtype, "torch.full")


TORCH["full"] = _torch_full


def _new(name: str, number: Any) -> Row:
    def call(i: Interpreter, x: Any, *size: Any, dtype: Any = None, **ignored: Any) -> Tensor:
        if number is None:
            shape, value = size if len(size) == 2 else (size[0], ignored["fill_value"])
        else:
            value = number
            shape = size[0] if len(size) == 1 and isinstance(size[0], list | tuple) else size
        return _filled(i, shape, value, dtype or x.dtype, f"torch.Tensor.{name}")

    return call


for _name, _value in (("zeros", 0), ("ones", 1), ("empty", 0), ("full", None)):
    TORCH[f"new_{_name}"] = _new(f"new_{_name}", _value)


@row(language.arange)
def arange(
    i: Interpreter, *args: Any, dtype: Any = None, device: Any = None, **named: Any
) -> Tensor:
    """Positions of a new axis, or of those of a tile, from 0."""
    bounds = list(args)
    step = named.get("step", bounds.pop() if len(bounds) == 3 else 1)
    start = named.get("start", bounds.pop(0) if len(bounds) == 2 else 0)
    end = named.get("end", bounds[0] if bounds else None)
    dim = _range_dim(i, start, end, step)
    floating = any(isinstance(x, float) for x in (start, end, step))
    dtype = dtype or (torch.get_default_dtype() if floating else torch.int64)
    return _ramp(i, dim, start, step, torch.float64 if floating else torch.int64, dtype)


def _range_dim(i: Interpreter, start: Any, end: Any, step: Any) -> Dim:
    """The dimension of the numbers from `start` to `end`."""
    if isinstance(end, Tile):
        if isinstance(start, int) and start == 0 and step == 1:
            return _dim(i, end, "hl.arange")
        end = i.p.python(end.block)
    known = [x for x in (start, end, step) if isinstance(x, int | float)]
    if len(known) == 3:
        first, last, stride = known
        return _dim(i, max(0, math.ceil((last - first) / stride)), "hl.arange")
    if not isinstance(step, int) or step != 1:
        raise exc.ShapeSpecializingAllocation(" (in hl.arange)")
    return _dim(i, operators.binary(i.p, ast.Sub, end, start), "hl.arange")


def _ramp(
    i: Interpreter, dim: Dim, start: Any, step: Any, wide: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """start + step * position, rounded once."""
    b = i.p.b
    found = Tensor(b.const(0, torch.int64), (None,)) if dim is None else _positions(i, dim)
    value = b.cast(found.value, wide)
    if step != 1:
        value = b.pointwise("mul", value, i.p.typed(step, wide))
    if not (isinstance(start, int | float) and start == 0):
        value = b.pointwise("add", value, i.p.typed(scalar(i, start), wide))
    place = None
    plain_bounds = isinstance(start, int) and isinstance(step, int)
    if plain_bounds and found.place is not None and dtype is torch.int64:
        terms = tuple((n, c * step) for n, c in found.place.terms)
        place = Affine(terms, found.place.offset * step + start)
    return Tensor(b.cast(value, dtype), (dim,), place)


def _positions(i: Interpreter, axis: Any) -> Tensor:
    """Positions along an axis; within the tile for the axis of a loop."""
    value = i.p.b.iota(axis)
    if axis.kind == "block":
        begin = begin_symbol(axis)
        value = i.p.b.pointwise("sub", value, i.p.b.size_value(begin))
        return Tensor(value, (axis,), Affine.of(axis, 1, -begin))
    return Tensor(value, (axis,), Affine.of(axis))


TORCH["arange"] = arange


# -- what only the host does, tiles ---------------------------------------------------------------


@row(language.specialize)
def _specialize(i: Interpreter, value: Any) -> Any:
    raise exc.SpecializeOnDevice()


@row(language.register_block_size, language.register_tunable)
def _register(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
    raise exc.InvalidAPIUsage("block sizes and tunables are registered outside of device loops")


@row(language.barrier)
def _barrier(i: Interpreter) -> None:
    raise exc.BarrierOnlyAllowedAtTopLevel()


def _loop_name(name: str) -> Row:
    def fn(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
        raise exc.LoopFunctionNotInFor(f"hl.{name}")

    return fn


for _name in ("tile", "grid", "jagged_tile"):
    ROWS[getattr(language, _name)] = _loop_name(_name)


@row(language.static_range)
def _static_range(i: Interpreter, *args: Any, **kwargs: Any) -> Any:
    return list(range(*args, *kwargs.values()))


def _tile_property(name: str) -> Row:
    def fn(i: Interpreter, tile: Any) -> Any:
        if not isinstance(tile, Tile):
            raise exc.IncorrectTileUsage(f"{describe(tile)} in hl.tile_{name}")
        return attributes.get(i.p, tile, name)

    return fn


for _name in ("index", "begin", "end", "id", "block_size", "count"):
    ROWS[getattr(language, f"tile_{_name}")] = _tile_property(_name)


# -- products and views ---------------------------------------------------------------------------


@row(language.dot)
def _dot(i: Interpreter, mat1: Any, mat2: Any, acc: Any = None, out_dtype: Any = None) -> Tensor:
    return products.dot(i.p, mat1, mat2, acc, out_dtype)


@row(language.fma)
def _fma(i: Interpreter, a: Any, b: Any, c: Any) -> Tensor:
    p, operands = i.p, [i.operand(x) for x in (a, b, c)]
    tensors = [x for x in operands if isinstance(x, Tensor)]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        got = ", ".join(map(describe, operands))
        raise exc.TypeInferenceError(f"hl.fma needs float32 or float64 values, got {got}")
    dims, (dtype,) = p.axes.joined([t.dims for t in tensors]), dtypes
    values = [
        p.axes.put(x.value, x.dims, dims) if isinstance(x, Tensor) else p.typed(x, dtype)
        for x in operands
    ]
    return Tensor(p.b.pointwise("fma", *values), dims)


@row(language.split)
def split(i: Interpreter, tensor: Any) -> tuple[Tensor, Tensor]:
    x = tensor
    if not isinstance(x, Tensor) or not x.rank or i.p.axes.extent(x.dims[-1]) != 2:
        raise exc.TypeInferenceError(f"hl.split needs a last dimension of size 2, got {x!r}")
    axis = x.dims[-1]
    assert axis is not None
    parts = []
    for number in range(2):
        value = x.value
        if axis.name in value.type.axis_names:
            value = i.p.b.take(value, i.p.b.const(number, torch.int64), axis)
        parts.append(Tensor(value, x.dims[:-1]))
    return parts[0], parts[1]


@row(language.join)
def join(i: Interpreter, tensor0: Any, tensor1: Any) -> Tensor:
    tensors: Sequence[Any] = [i.operand(x) for x in (tensor0, tensor1)]
    if not all(isinstance(t, Tensor) for t in tensors):
        raise exc.TypeInferenceError("hl.join needs two tensors of the device")
    dtype = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    rank = max(t.rank for t in tensors)
    return stacked(Calls(i.p), tensors, rank, dtype)


@row(language.subscript)
def _subscript(i: Interpreter, tensor: Any, index: Any) -> Tensor:
    x = tensor
    if not isinstance(x, Tensor):
        raise exc.TypeInferenceError(f"hl.subscript of {describe(x)}")
    return indexing.subscript(i.p, x, index)


ROWS[language.device_print] = device_print


@row(language.device_assert)
def device_assert(i: Interpreter, condition: Any, error: Any) -> None:
    status = next((s for s, text in ASSERTED.items() if text == error), None)
    if status is None:
        known = " or ".join(map(repr, ASSERTED.values()))
        raise exc.InvalidAPIUsage(f"hl.device_assert: the error is {known}, got {error!r}")
    condition = i.operand(condition)
    value = condition.value if isinstance(condition, Tensor) else i.p.value(condition)
    if value.type.dtype is not torch.bool:
        raise exc.TypeInferenceError(f"hl.device_assert of {describe(condition)}: not a bool")
    i.p.b.check(value, status)
    i.p.effects += 1
