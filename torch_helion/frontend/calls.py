"""PyTorch's functions on values of the device: PyTorch runs them on meta tensors, we on the IR.

In: a callable of torch's and its arguments. Out: values of the device. Each ATen call that PyTorch
makes of it (after its own promotion, checks and decompositions) is caught and given to the rule of
`views`, of `joins`, or of the lowering table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from torch_helion import exc
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Dim, HostTensor, Number, Tensor, Tile, describe
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Axis
from torch_helion.lowering.registry import Context, Lowering, TensorSpec
from torch_helion.lowering.rows import LOWERINGS

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
"""rule(calls, func, args, kwargs) by overload, for what is done here and not by the table"""


def rule(*overloads: OpOverload) -> Callable[[Rule], Rule]:
    def register(fn: Rule) -> Rule:
        for overload in overloads:
            RULES[overload] = fn
        return fn

    return register


class Calls(TorchDispatchMode):
    """One call of a torch function: meta tensors, and the values that they stand for."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.p = program
        self._known: dict[int, tuple[torch.Tensor, Tensor]] = {}

    # -- meta tensors and values ------------------------------------------------------------------

    def meta(self, tensor: Tensor) -> torch.Tensor:
        """The meta tensor that stands for a value."""
        shape = [self.p.axes.stand_in(d) for d in tensor.dims]
        return self.stand(torch.empty(shape, dtype=tensor.dtype, device="meta"), tensor)

    def stand(self, meta: torch.Tensor, tensor: Tensor) -> torch.Tensor:
        found = tuple(self.p.axes.stand_in(d) for d in tensor.dims)
        if tuple(meta.shape) != found or meta.dtype != tensor.dtype:
            raise exc.InternalError("shape", f"{tuple(meta.shape)} {meta.dtype} is {tensor!r}")
        self._known[id(meta)] = (meta, tensor)
        return meta

    def of(self, meta: torch.Tensor) -> Tensor:
        """The value that a meta tensor stands for."""
        known = self._known.get(id(meta))
        if known is None:
            raise exc.TorchOpTracingError("tensor", "a tensor of the host in a device loop")
        return known[1]

    # -- ATen calls -------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = RULES.get(func)
        if own is not None:
            return own(self, func, args, kwargs)
        row = LOWERINGS.get(func)
        if row is not None and row.kind in ("pointwise", "reduction", "creation"):
            return self._lowered(row, func, args, kwargs)
        functional = _functional(func)
        if functional is not None:
            result = self.__torch_dispatch__(functional, types, args, kwargs)
            self._known[id(args[0])] = (args[0], self.of(result))
            return args[0]
        decomposed = _decompositions().get(func)
        with self:
            result = NotImplemented if decomposed is None else decomposed(*args, **kwargs)
            if result is NotImplemented:
                result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise exc.InductorLoweringError(
                f"{_name(func)} has no meaning on the device of this package"
            )
        return result

    def _lowered(self, row: Lowering, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        tensors = [self.of(a) for a in _tensors(args, kwargs)]
        dims = self.p.axes.joined([t.dims for t in tensors])
        try:
            fake = func(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise _refused(self.p, func, error, tensors) from error
        values = {
            id(a): self.p.axes.put(t.value, t.dims, dims)
            for a, t in zip(_tensors(args, kwargs), tensors, strict=True)
        }
        cx, results = self._context(row, func, args, kwargs, fake, dims)

        def given(x: Any) -> Any:
            return values[id(x)] if isinstance(x, torch.Tensor) else x

        try:
            made = row.rule(cx, *map_tree(given, args), **map_tree(given, kwargs))
        except exc.LoweringError as error:
            raise exc.InductorLoweringError(str(error)) from error
        return self._results(fake, made, results)

    def _context(
        self,
        row: Lowering,
        func: Any,
        args: Sequence[Any],
        kwargs: Any,
        fake: Any,
        dims: tuple[Dim, ...],
    ) -> tuple[Context, list[tuple[Dim, ...]]]:
        first = next(iter(_tensors(args, kwargs)), None)
        source = self.of(first).dims if first is not None else ()
        if len(source) == len(dims):
            source = dims
        fakes = fake if isinstance(fake, tuple | list) else (fake,)
        shapes = [self._result_dims(row, f, args, kwargs, source, dims) for f in fakes]
        inputs: list[TensorSpec | None] = []
        for a in args:
            if not isinstance(a, torch.Tensor):
                inputs.append(None)
                continue
            mine = source if a is first else dims[len(dims) - a.dim() :]
            inputs.append(self.spec(a, mine))
        outputs = tuple(self.spec(f, s) for f, s in zip(fakes, shapes, strict=True))
        return Context(self.p.b, func, tuple(args), kwargs, tuple(inputs), outputs), shapes

    def spec(self, meta: torch.Tensor, dims: Sequence[Dim]) -> TensorSpec:
        """Sizes and axes; rules see the axis of a tile as whole: it is in a grid step."""
        axes = self.p.axes
        shape = tuple(axes.count(d) for d in dims)
        seen = tuple(() if d is None else (self.within(d),) for d in dims)
        return TensorSpec(meta.dtype, shape, seen)

    def within(self, axis: Axis) -> Axis:
        """The axis of a tile as the rules see it: of the size of the tile, and whole."""
        if axis.kind != "block":
            return axis
        return Axis(axis.name, self.p.axes.count(axis), "full", axis.of)

    def _result_dims(
        self,
        row: Lowering,
        fake: torch.Tensor,
        args: Sequence[Any],
        kwargs: Any,
        source: tuple[Dim, ...],
        dims: tuple[Dim, ...],
    ) -> tuple[Dim, ...]:
        axes = self.p.axes
        if row.kind == "creation":
            if tuple(axes.stand_in(d) for d in source) == tuple(fake.shape):
                return source
            return self.new_dims(fake.shape)
        result = dims
        if row.kind == "reduction":
            first = next(iter(_tensors(args, kwargs)))
            fold = row.whole(first.dim(), *args, **kwargs) if row.whole else ()
            asked = kwargs.get("dim", args[1] if len(args) > 1 else None)
            named = any(a.name == "dim" for a in row.overload._schema.arguments[1:2])
            if named and isinstance(asked, list | tuple) and len(asked) > 1:
                raise exc.MultipleReductionDims()
            if fake.dim() == len(source):
                sizes = zip(source, fake.shape, strict=True)
                result = tuple(None if n == 1 else d for d, n in sizes)
            else:
                result = tuple(d for i, d in enumerate(source) if i not in fold)
        if tuple(axes.stand_in(d) for d in result) != tuple(fake.shape):
            raise exc.InductorLoweringError(
                f"{_name(row.overload)} gives another shape than its operands have"
            )
        return result

    def new_dims(self, shape: Sequence[int]) -> tuple[Dim, ...]:
        """The dimensions of a new tensor with this shape in stand-ins."""
        axes, dims = self.p.axes, list[Dim]()
        for number in shape:
            dims.append(axes.dim_of(axes.size_of(number), dims))
        return tuple(dims)

    def _results(self, fake: Any, made: Any, dims: Sequence[tuple[Dim, ...]]) -> Any:
        if not isinstance(fake, tuple | list):
            return self.stand(fake, Tensor(made, dims[0]))
        for meta, value, shape in zip(fake, made, dims, strict=True):
            if value is not None:
                self.stand(meta, Tensor(value, shape))
        return fake


def map_tree(fn: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return type(tree)(map_tree(fn, t) for t in tree)
    if isinstance(tree, dict):
        return {k: map_tree(fn, v) for k, v in tree.items()}
    return fn(tree)


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def visit(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            found.append(x)
        return x

    map_tree(visit, list(args))
    map_tree(visit, dict(kwargs))
    return found


@functools.cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions, decomposition_table

    return {**decomposition_table, **core_aten_decompositions()}


@functools.cache
def _functional(func: OpOverload) -> OpOverload | None:
    """add_ -> add."""
    name = func._schema.name.split("::")[1]
    if not name.endswith("_") or name.startswith("_") or name.endswith("__"):
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, func._overloadname, None) if packet is not None else None


def _name(func: Any) -> str:
    return (
        f"torch.{func._schema.name.split('::')[1]}" if isinstance(func, OpOverload) else str(func)
    )


def _refused(p: Program, func: Any, error: Exception, tensors: Sequence[Tensor]) -> exc.Base:
    """What PyTorch says of a call, as an error of ours."""
    text = p.axes.readable(str(error).split("\n")[0])
    if len(tensors) == 2 and "must match" in text:
        return exc.ShapeMismatch(repr(tensors[0]), repr(tensors[1]))
    return exc.TorchOpTracingError(_name(func), text)


# -- calling ------------------------------------------------------------------------------------

_SIZED = (
    "view reshape expand broadcast_to view_as zeros ones empty full new_zeros new_ones new_empty "
    "new_full tile repeat arange unflatten rand randn randint eye broadcast_shapes"
)
SHAPE_FUNCTIONS = frozenset(_SIZED.split())
"""Functions that take sizes: numbers among their arguments are sizes."""


def call(p: Program, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """fn(*args, **kwargs) for a function of torch and values of the device."""
    calls = Calls(p)
    name = getattr(fn, "__name__", str(fn))
    sized = name in SHAPE_FUNCTIONS
    wide = any(t.dtype is torch.float64 for t in _device_tensors((*args, *kwargs.values())))
    preferred, p.axes.preferred = p.axes.preferred, {}

    def given(x: Any) -> Any:
        return _argument(p, calls, x, sized, wide, name)

    try:
        meta_args, meta_kwargs = map_tree(given, list(args)), map_tree(given, dict(kwargs))
        with torch.device("meta"), calls:
            result = fn(*meta_args, **meta_kwargs)
        return tree_map(functools.partial(_result, p, calls), result)
    except exc.Base:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        tensors = _device_tensors((*args, *kwargs.values()))
        refused = _refused(p, fn, error, tensors)
        if isinstance(refused, exc.TorchOpTracingError):
            text = p.axes.readable(str(error).split("\n")[0])
            refused = exc.TorchOpTracingError(name, text)
        raise refused from error
    finally:
        p.axes.preferred = preferred


def _device_tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []

    def visit(x: Any) -> Any:
        if isinstance(x, Tensor):
            found.append(x)
        return x

    map_tree(visit, list(values))
    return found


def _argument(p: Program, calls: Calls, x: Any, sized: bool, wide: bool, name: str) -> Any:
    if isinstance(x, Tensor):
        return calls.meta(x)
    if isinstance(x, Number):
        if sized and x.kind is int:
            return p.axes.size_stand_in(p.size(x))
        dtype = {int: torch.int64, bool: torch.bool}.get(x.kind)
        dtype = dtype or (torch.float64 if wide else torch.float32)
        return calls.meta(Tensor(p.b.cast(p.value(x), dtype)))
    if isinstance(x, Tile):
        if not sized:
            raise exc.IncorrectTileUsage(f"it in torch.{name}")
        p.axes.preferred.setdefault(x.block, []).append(x.axis)
        return p.axes.size_stand_in(x.block)
    if isinstance(x, HostTensor):
        raise exc.HostTensorDirectUsage(x.name, name)
    if isinstance(x, torch.device):
        return torch.device("meta")
    if isinstance(x, torch.Tensor):
        raise exc.HostTensorDirectUsage(describe(x), name)
    return x


def _result(p: Program, calls: Calls, x: Any) -> Any:
    return calls.of(x) if isinstance(x, torch.Tensor) else x


def as_value(p: Program, tensor: Tensor) -> Value:
    """The value along all of its dimensions."""
    return p.b.expand(tensor.value, [d for d in tensor.dims if d is not None])
