"""One call of an ATen overload as a kernel, run by the interpreter and compared with eager PyTorch.

In: an overload with concrete arguments. Out: nothing, or an AssertionError. The kernel gives every
dimension an axis of its own: those that the rule folds are whole, the others are cut into blocks
and have run-time sizes. Buffers are contiguous.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._inductor.inductor_prims  # registers the prims that graph_lowerings has rows for
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Value
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, Axis, Buffer, Size, contiguous_strides
from torch_helion.ir.verifier import verify
from torch_helion.lowering.registry import Context, Lowering, TensorSpec
from torch_helion.lowering.rows import graph_lowerings

LOWERINGS = graph_lowerings()

Dims = tuple[tuple[Axis, ...], ...]


# -- calls ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call with copies of its tensors, and what eager PyTorch gave for it."""

    overload: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.overload}({', '.join(map(_text, (*self.args, *self.kwargs.items())))})"


def call_of(overload: OpOverload, *args: Any, **kwargs: Any) -> Call:
    """Run the call eagerly."""
    args, kwargs = tree_map(_copy, (args, kwargs))
    result = overload(*tree_map(_copy, args), **tree_map(_copy, kwargs))
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    return Call(overload, args, kwargs, tuple(outputs))


def recorded(function: Callable[[], Any]) -> list[Call]:
    """Every call that `function` makes of an overload that has a compute rule."""
    with _Recorder() as recorder:
        function()
    return recorder.calls


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        row = LOWERINGS.get(func)
        wanted = row is not None and row.kind not in ("view", "gather")
        args, kwargs = args, kwargs or {}
        before = tree_map(_copy, (args, kwargs)) if wanted else None
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if before is not None and _is_plain(before) and _is_plain(outputs):
            self.calls.append(Call(func, before[0], before[1], tuple(_copy(o) for o in outputs)))
        return result


def _copy(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def _is_plain(tree: Any) -> bool:
    tensors: list[torch.Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, tree)
    return all(t.layout is torch.strided and t.device.type == "cpu" for t in tensors)


def _text(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
    return str(x)


# -- kernels ----------------------------------------------------------------------------------


@dataclass
class Built:
    """A kernel of one call, the input tensors and the sizes to run it with."""

    kernel: Kernel
    inputs: list[torch.Tensor]
    sizes: list[int]


@dataclass
class _Maker:
    """Axes and buffers of the kernel under construction."""

    b: Builder
    call: Call
    row: Lowering
    inputs: list[torch.Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    shape: list[Size] = field(default_factory=list)
    dims: Dims = ()

    def declare(self, shape: tuple[int, ...], whole: tuple[int, ...], cut: dict[int, int]) -> None:
        """Axes of the iteration space. `cut[d]`: dimension d becomes (cut[d], rest) axes."""
        dims = []
        for d, extent in enumerate(shape):
            axes: tuple[Axis, ...] = ()
            if d in cut:
                kinds = ("block", "full" if d in whole else "block")
                parts = zip((cut[d], extent // cut[d]), kinds, strict=True)
                axes = tuple(
                    self.b.axis(f"d{d}_{i}", n, kind) for i, (n, kind) in enumerate(parts) if n != 1
                )
            elif extent != 1:
                axes = (self.axis(f"d{d}", extent, d in whole),)
            dims.append(axes)
        self.dims = tuple(dims)

    def axis(self, name: str, extent: int, full: bool) -> Axis:
        if full:
            return self.b.axis(name, extent, "full")
        self.sizes.append(extent)
        return self.b.axis(name, self.b.size(f"n_{name}"))

    def spec(self, tensor: torch.Tensor, dims: Dims) -> TensorSpec:
        shape = []
        for extent, axes in zip(tensor.shape, dims, strict=True):
            size: Size = 1
            for axis in axes:
                size = size * axis.size
            shape.append(size if axes else extent)
        return TensorSpec(tensor.dtype, tuple(shape), dims)

    def output(self, i: int, tensor: torch.Tensor, dims: Dims) -> tuple[Buffer, TensorSpec]:
        spec = self.spec(tensor, dims)
        strides = contiguous_strides(spec.shape)
        return self.b.buffer(f"y{i}", tensor.dtype, spec.shape, strides, "out"), spec


def build(call: Call, cut: dict[int, int] | None = None) -> Built:
    """The kernel of `call`: load each tensor, apply the rule, store each result."""
    row = LOWERINGS[call.overload]
    m = _Maker(Builder("one_call"), call, row)
    first = next((a for a in call.args if isinstance(a, torch.Tensor)), None)
    by_input = row.whole is not None and first is not None
    space = tuple(first.shape) if by_input else tuple(_widest(call.outputs).shape)
    whole = row.whole(len(space), *call.args, **call.kwargs) if by_input else ()
    m.declare(space, whole, cut or {})
    out_dims = [
        None if o is None else _output_dims(m, o, whole if by_input else None) for o in call.outputs
    ]
    grid = [a for dim in m.dims for a in dim if a.kind == "block"]
    args: list[Any] = []
    specs: list[TensorSpec | None] = []
    loads = []
    for i, (name, value) in enumerate(_named_arguments(call)):
        unread = row.kind == "creation" and not any(
            n in str(call.overload) for n in ("tri", "scatter")
        )
        if not isinstance(value, torch.Tensor) or unread:
            loads.append((name, value))
            specs.append(None)
            continue
        dims = _input_dims(m, value, by_input)
        spec = m.spec(value, dims)
        specs.append(spec)
        buffer = m.b.buffer(f"x{i}", value.dtype, spec.shape, contiguous_strides(spec.shape))
        m.inputs.append(value.contiguous())
        loads.append((name, (buffer, _index(dims))))
    outs = [
        None if dims is None else (*m.output(i, tensor, dims), dims, tensor.numel() > 0)
        for i, (tensor, dims) in enumerate(zip(call.outputs, out_dims, strict=True))
    ]
    with m.b.grid(*grid):
        kwargs: dict[str, Any] = {}
        for name, value in loads:
            given = m.b.load(*value) if _is_load(value) else value
            if name in call.kwargs:
                kwargs[name] = given
            else:
                args.append(given)
        cx = Context(
            m.b,
            call.overload,
            call.args,
            call.kwargs,
            tuple(specs[: len(call.args)]),
            tuple(o and o[1] for o in outs),
        )  # type: ignore[misc]
        result = row.rule(cx, *args, **kwargs)
        values = result if isinstance(result, tuple) else (result,)
        for value, out in zip(values, outs, strict=True):
            if out is None:
                assert value is None
                continue
            buffer, spec, dims, any_elements = out
            assert isinstance(value, Value) and value.type.dtype == spec.dtype, (value, spec.dtype)
            if not any_elements:
                continue
            value = m.b.expand(value, [axis for axes in dims for axis in axes])
            m.b.store(buffer, _index(dims), value)
    kernel = m.b.build()
    verify(kernel)
    return Built(kernel, m.inputs, m.sizes)


def _is_load(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "role")


def _named_arguments(call: Call) -> Iterator[tuple[str, Any]]:
    formals = call.overload._schema.arguments
    for formal, value in zip(formals, call.args, strict=False):
        yield formal.name, value
    yield from call.kwargs.items()


def _widest(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return max((o for o in outputs if o is not None), key=lambda o: (o.dim(), o.numel()))


def _index(dims: Dims) -> tuple[Affine, ...]:
    places = []
    for axes in dims:
        terms, stride = [], 1
        for axis in reversed(axes):
            terms.append((axis.name, stride))
            stride = stride * axis.size  # type: ignore[assignment]
        places.append(Affine(tuple(reversed(terms))))
    return tuple(places)


def _input_dims(m: _Maker, tensor: torch.Tensor, by_input: bool) -> Dims:
    """Right-aligned with the iteration space; vectors of group and batch norm with channels."""
    if by_input and "group_norm" in str(m.call.overload) and tensor.dim() == 1:
        return (m.dims[1],)
    if "batch_norm" in str(m.call.overload) and tensor.dim() == 1:
        return (m.dims[1],)
    tail = m.dims[len(m.dims) - tensor.dim() :]
    return tuple(axes if n != 1 else () for n, axes in zip(tensor.shape, tail, strict=True))


def _output_dims(m: _Maker, tensor: torch.Tensor, whole: tuple[int, ...] | None) -> Dims:
    name = str(m.call.overload)
    if "group_norm" in name and tensor.dim() == 2 and len(m.dims) != 2:
        return (m.dims[0], m.dims[1][:1] if tensor.shape[1] != 1 else ())
    if tensor.numel() == 0 and tensor.dim() == 1 and "batch_norm" in name:
        return ((m.b.axis(f"none{id(tensor)}", 0, "full"),),)
    if whole is None or tensor.dim() == len(m.dims):
        return _input_dims(m, tensor, False)
    if tensor.dim() == len(m.dims) - len(whole) and "norm_backward" not in name:
        return tuple(axes for d, axes in enumerate(m.dims) if d not in whole)
    return _input_dims(m, tensor, False)  # the gradient of a weight: trailing dimensions


# -- comparison -------------------------------------------------------------------------------


def run_built(
    built: Built, outputs: tuple[torch.Tensor, ...], blocks: int | None
) -> list[torch.Tensor]:
    results = [
        torch.full(o.shape, _POISON[o.dtype], dtype=o.dtype) for o in outputs if o is not None
    ]
    run(built.kernel, [*built.inputs, *results], built.sizes, blocks)
    return results


_POISON = {
    d: math.nan if d.is_floating_point else d is torch.bool or 77
    for d in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}


def check(
    call: Call, blocks: int | None = 3, cut: dict[int, int] | None = None, exact: bool = False
) -> Built:
    """Assert that the kernel of `call` gives what eager PyTorch gave."""
    built = build(call, cut)
    wanted = [o for o in call.outputs if o is not None]
    for got, want in zip(run_built(built, call.outputs, blocks), wanted, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if exact or not want.dtype.is_floating_point:
            same = (got == want) | ((got != got) & (want != want))
            assert bool(same.all()), _difference(call, got, want, same)
            if exact and want.dtype.is_floating_point:
                signs = (got.signbit() == want.signbit()) | want.isnan()
                assert bool(signs.all()), _difference(call, got, want, signs)
        else:
            assert_close(call, got, want)
    return built


def assert_close(call: Call, got: torch.Tensor, want: torch.Tensor) -> None:
    """Close at the dtype's tolerance, else as near to the float64 evaluation as eager (times 3)."""
    close = torch.isclose(got, want, *_TOLERANCE[want.dtype], equal_nan=True)
    if bool(close.all()):
        return
    truth = _float64(call, want)
    if truth is not None:
        error, eager = ((x.double() - truth).abs() for x in (got, want))
        near = (error <= 3 * eager) | (error.isnan() & eager.isnan())
        close = close | near
    assert bool(close.all()), _difference(call, got, want, close)


_TOLERANCE = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-6),
    torch.float64: (1e-9, 1e-12),
}


def _float64(call: Call, want: torch.Tensor) -> torch.Tensor | None:
    def widen(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return x.double()
        return torch.float64 if isinstance(x, torch.dtype) and x.is_floating_point else x

    position = next(i for i, o in enumerate(call.outputs) if o is want)
    try:
        result = call.overload(*tree_map(widen, call.args), **tree_map(widen, call.kwargs))
    except RuntimeError:
        return None
    return (result if isinstance(result, (tuple, list)) else (result,))[position].double()


def _difference(call: Call, got: torch.Tensor, want: torch.Tensor, same: torch.Tensor) -> str:
    where = torch.nonzero(~same)[0].tolist() if same.dim() else []
    at = tuple(where)
    operands = [
        x.broadcast_to(got.shape)[at].item()
        for x in call.args
        if isinstance(x, torch.Tensor) and _broadcasts(x.shape, got.shape)
    ]
    count = int((~same).sum())
    return (
        f"{call}: {count} of {same.numel()} differ; at {where} got {got[at].item()!r}, "
        f"eager {want[at].item()!r}, operands {operands}"
    )


def _broadcasts(a: torch.Size, b: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(a, b) == b
    except RuntimeError:
        return False


@functools.cache
def special_values(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, ones, halves, extremes, NaN and infinities, as far as `dtype` has them."""
    if dtype is torch.bool:
        return torch.tensor([True, False])
    if dtype.is_floating_point:
        big = torch.finfo(dtype).max
        values = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            3.0,
            -3.0,
            6.0,
            0.1,
            -0.1,
            7.3,
            -7.3,
            88.5,
            -90.0,
            1e3,
            -1e3,
            3e4,
            1e-5,
            -1e-5,
            big,
            -big,
            math.inf,
            -math.inf,
            math.nan,
        ]
        return torch.tensor(values, dtype=torch.float64).to(dtype)
    info = torch.iinfo(dtype)
    values = [
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        31,
        63,
        64,
        100,
        info.max,
        info.max - 1,
        info.min,
        info.min + 1,
    ]
    values += [] if dtype is torch.uint8 else [-1, -2, -3, -7, -100]
    return torch.tensor(values, dtype=torch.int64).to(dtype)


def special_calls(overload: OpOverload, dtype: torch.dtype) -> Iterator[Call]:
    """Calls of an elementwise overload over all pairs of special values, as far as eager runs."""
    for number in _numbers(overload, dtype):
        args, kwargs = special_arguments(overload, dtype, number)
        try:
            yield call_of(overload, *args, **kwargs)
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            continue


# Numbers with a default that are worth varying; the others keep it.
_VARIED = ("alpha", "value", "beta", "lambd", "negative_slope", "min", "max", "rounding_mode")


def _numbers(overload: OpOverload, dtype: torch.dtype) -> list[Any]:
    formals = overload._schema.arguments
    if not any("number" in str(f.type) or "float" in str(f.type) for f in formals):
        return [None]
    if dtype is torch.bool:
        return [True, False]
    return [0.0, -1.7, 0.1, 2.0] if dtype.is_floating_point else [0, 2, -1, 2.5]


def special_arguments(
    overload: OpOverload, dtype: torch.dtype, number: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Each tensor varies along a dimension of its own; `number` stands for every number."""
    formals = overload._schema.arguments
    tensors = [f.name for f in formals if "Tensor" in str(f.type)]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for formal in formals:
        kind = str(formal.type)
        value: Any
        if "Tensor" in kind:
            value = _special_tensor(overload, formal.name, tensors, dtype)
        elif formal.has_default_value() and formal.name not in _VARIED:
            continue
        elif "dtype" in formal.name or "ScalarType" in kind:
            value = torch.float32
        elif "str" in kind:
            value = "floor" if formal.name == "rounding_mode" else "tanh"
        else:
            value = {"number": number, "float": float(number or 0), "int": 2, "bool": False}[
                kind.removeprefix("Optional[").removesuffix("]")
            ]
        if formal.kwarg_only:
            kwargs[formal.name] = value
        else:
            args.append(value)
    return args, kwargs


def _special_tensor(
    overload: OpOverload, name: str, tensors: list[str], dtype: torch.dtype
) -> torch.Tensor:
    if name == "value":
        return special_values(dtype)[1]  # fills want a single element
    parts = [_special_part(n, i, dtype) for i, n in enumerate(tensors)]
    place = tensors.index(name)
    values = parts[place].view([-1 if i == place else 1 for i in range(len(tensors))])
    if overload.namespace == "prims" or overload is torch.ops.aten.copy.default:  # no broadcasting
        values = values.expand([len(part) for part in parts])
    return values.contiguous()


def _special_part(name: str, place: int, dtype: torch.dtype) -> torch.Tensor:
    if name in ("condition", "mask", "pred"):
        return torch.tensor([True, False])
    return special_values(dtype)[: 6 if place > 1 else None]
