"""The kernel under construction: builder, axes, sizes, buffers; numbers as values and as sizes.

In: what the front end's other modules ask for. Out: a `Program`, the state that they share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.frontend.axes import FIRST_STAND_INS, Axes
from torch_helion.frontend.sizes import Path, SizeTable
from torch_helion.frontend.values import HostTensor, Number, Tensor, integer
from torch_helion.ir.builder import Builder, Combine
from torch_helion.ir.graph import Value
from torch_helion.ir.ops import identity_of
from torch_helion.ir.types import Axis, Buffer, Size, begin_symbol


class MaskingBuilder(Builder):
    """A builder in whose reductions only real lanes take part.

    Lanes beyond a range do not exist in the IR; those of jagged tiles do, and are replaced by what
    leaves a result unchanged. Positions of extremes count within the tile, as the program sees it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.jagged: dict[str, Callable[[], Value]] = {}
        """for the axis of a jagged tile: its mask"""

    def reduce(self, fn: str, value: Value, axes: Sequence[Axis | str], hint: str = "") -> Value:
        names = [a if isinstance(a, str) else a.name for a in axes]
        value = self.only_real(value, names, identity_of(fn, value.type.dtype))
        result = super().reduce(fn, value, axes, hint)
        axis = self.axis_named(names[0])
        if fn in ("argmax", "argmin") and axis is not None and axis.kind == "block":
            return self.pointwise("sub", result, self.size_value(begin_symbol(axis)))
        return result

    def scan(
        self,
        fn: str,
        value: Value,
        axis: Axis | str,
        reverse: bool = False,
        exclusive: bool = False,
        hint: str = "",
    ) -> Value:
        name = axis if isinstance(axis, str) else axis.name
        value = self.only_real(value, [name], identity_of(fn, value.type.dtype))
        return super().scan(fn, value, axis, reverse, exclusive, hint)

    def dot(
        self,
        a: Value,
        b: Value,
        k: Axis | str,
        acc_dtype: torch.dtype,
        acc: Value | None = None,
        hint: str = "",
    ) -> Value:
        name = k if isinstance(k, str) else k.name
        return super().dot(self.only_real(a, [name], 0), b, k, acc_dtype, acc, hint)

    def custom_reduce(
        self,
        values: Sequence[Value],
        axes: Sequence[Axis | str],
        identity: Sequence[float | int | bool],
        combine: Combine,
    ) -> list[Value]:
        names = [a if isinstance(a, str) else a.name for a in axes]
        pairs = zip(values, identity, strict=True)
        real = [self.only_real(v, names, number) for v, number in pairs]
        return super().custom_reduce(real, axes, identity, combine)

    def expand(self, value: Value, axes: Sequence[Axis]) -> Value:
        """Rules of lowering see the axis of a tile as a whole one of the tile's size."""
        return super().expand(value, [self.axis_named(a.name) or a for a in axes])

    def iota(self, axis: Axis) -> Value:
        """Positions; those within the tile for an axis that a rule of lowering sees as whole."""
        declared = self.axis_named(axis.name) or axis
        value = super().iota(declared)
        if declared.kind == "block" and axis.kind != "block":
            return self.pointwise("sub", value, self.size_value(begin_symbol(declared)))
        return value

    def only_real(self, value: Value, names: Sequence[str], number: Any) -> Value:
        """The value, `number` in lanes that are not real along the axes `names`."""
        for name in names:
            axis = self.axis_named(name)
            make = self.jagged.get(axis.tile_name) if axis is not None else None
            if make is None:
                continue
            if axis is not None and axis.of:
                raise exc.InvalidJaggedTileUsage("it stands twice in one value")
            mask = make()
            missing = [n for n in mask.type.axis_names if n not in value.type.axis_names]
            if missing:
                raise exc.InvalidJaggedTileUsage(
                    "a value along it is reduced that does not depend on the parent's tiles"
                )
            dtype = value.type.dtype
            wide = torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
            other = self.cast(self.const(number, wide), dtype)
            value = self.pointwise("where", mask, value, other)
        return value


class Program:
    """What is known of the kernel while it is being traced."""

    def __init__(self, name: str, settings: Any, first: int = FIRST_STAND_INS[0]) -> None:
        self.b = MaskingBuilder(name)
        self.axes = Axes(self.b, first)
        self.sizes = SizeTable(self.b)
        self.settings = settings
        self.tensors: dict[Any, HostTensor] = {}
        """tensors of the host, by path (by identity where `merged`)"""
        self.merged = False
        """one buffer for the names of one tensor: something is stored to it"""
        self.lifted: dict[tuple[int, str], Callable[[], Any]] = {}
        """data that functions read from modules, by module and name"""
        self.stored: set[str] = set()
        """buffers written in this phase"""
        self.written: set[str] = set()
        """buffers written in earlier phases since the last barrier"""
        self.effects = 0
        self.seed_sites = 0
        self.counters: list[Size] = []
        """counters of the sequential loops around here"""
        self.ranges: dict[str, tuple[Size, Size]] = {}
        """first position and end of the range of a loop's axis"""
        self._regions = [0]
        self._next_region = 1
        self._buffer_names: set[str] = set()

    def global_of(self, space: Mapping[str, Any], name: str) -> Any:
        """What a module's name means to functions on the device."""
        known = self.lifted.get((id(space), name))
        return space[name] if known is None else known()

    # -- regions ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def region(self) -> Iterator[None]:
        """What is bound inside is not known outside."""
        self._regions.append(self._next_region)
        self._next_region += 1
        try:
            yield
        finally:
            self._regions.pop()

    def checkpoint(self) -> Callable[[], None]:
        """A function that takes back what is emitted in this region from now on."""
        ops, count = self.b.ops, len(self.b.ops)
        constants = dict(self.b._constants)

        def restore() -> None:
            del ops[count:]
            self.b._constants.clear()
            self.b._constants.update(constants)

        return restore

    @property
    def on_device(self) -> bool:
        return len(self._regions) > 1

    # -- numbers ----------------------------------------------------------------------------------

    def value(self, number: Any) -> Value:
        """A number as a rank-0 int64, float64 or bool."""
        if isinstance(number, Number):
            if number.value is not None:
                return number.value
            if number.bits is not None:
                return self.b.bitcast(self.b.size_value(number.bits), torch.float64)
            assert number.size is not None
            return self.b.size_value(number.size)
        if isinstance(number, bool):
            return self.b.const(number, torch.bool)
        if isinstance(number, int):
            return self.b.const(number, torch.int64)
        return self.b.const(float(number), torch.float64)

    def typed(self, number: Any, dtype: torch.dtype) -> Value:
        """A number as a rank-0 value of `dtype`, converted as PyTorch converts Python's."""
        if not isinstance(number, Number):
            return self.constant(number, dtype)
        return self.b.cast(self.value(number), dtype)

    def constant(self, number: Any, dtype: torch.dtype) -> Value:
        """A Python number as a value of `dtype`."""
        if dtype is torch.bool:
            return self.b.const(bool(number), dtype)
        if not dtype.is_floating_point:
            source = torch.tensor(
                number, dtype=torch.float64 if isinstance(number, float) else torch.int64
            )
            number = int(source.to(dtype))
            if dtype in (torch.uint16, torch.uint32, torch.uint64):
                return self.b.cast(self.b.const(number, torch.int64), dtype)
            return self.b.const(number, dtype)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        rounded = torch.tensor(float(number), dtype=torch.float64).to(wide).item()
        return self.b.cast(self.b.const(rounded, wide), dtype)

    def size(self, number: Any) -> Size:
        """An integer number as a size expression, valid to the end of this region."""
        if isinstance(number, Tensor):
            number = self.number_of(number)
        if not isinstance(number, Number):
            return int(number)
        if number.size is not None:
            return number.size
        if number.bound is not None and number.bound[0] in self._regions:
            return number.bound[1]
        if number.kind is float:
            raise exc.TypeInferenceError("an integer is needed, got a float")
        symbol = self.b.bind(self.b.cast(self.value(number), torch.int64), self.sizes.name("n"))
        number.bound = (self._regions[-1], symbol)
        return symbol

    def number_of(self, tensor: Tensor) -> Number:
        """A rank-0 tensor as a number."""
        if tensor.value.type.axes or any(d is not None for d in tensor.dims):
            raise exc.InvalidIndexingType(f"a value of {tensor!r} where one number is needed")
        dtype = tensor.dtype
        if dtype is torch.bool:
            return Number(bool, value=tensor.value)
        if dtype.is_floating_point:
            return Number(float, value=self.b.cast(tensor.value, torch.float64))
        region, number = tensor.__dict__.get("_number", (None, None))
        if region not in self._regions:
            number = Number(int, value=self.b.cast(tensor.value, torch.int64))
            tensor.__dict__["_number"] = (self._regions[-1], number)
        return number

    def python(self, size: Size) -> Number | int:
        return integer(size)

    # -- buffers ----------------------------------------------------------------------------------

    def host_tensor(self, tensor: torch.Tensor, path: Path, name: str) -> HostTensor:
        """The tensor at a path of the launch's values."""
        key = id(tensor) if self.merged else path
        if key not in self.tensors:
            self.tensors[key] = HostTensor(tensor, path, name)
        return self.tensors[key]

    def buffer(self, host: HostTensor) -> Buffer:
        """The buffer of a host tensor, declared at its first use."""
        if host.buffer is not None:
            return host.buffer
        tensor = host.tensor
        name = self._buffer_name(host.name)
        shape = [
            self.sizes.size(n, ("size", host.path, d), f"{name}_size{d}")
            for d, n in enumerate(tensor.shape)
        ]
        strides = self._strides(host, name, shape)
        host.buffer = self.b.buffer(name, tensor.dtype, shape, strides, "inout")
        return host.buffer

    def _strides(self, host: HostTensor, name: str, shape: Sequence[Size]) -> list[Size]:
        """Products of the sizes where the layout is dense, size arguments where it is not."""
        tensor = host.tensor
        given = list(tensor.stride())
        strides: list[Size] = [0] * len(given)
        dense: Any = 1
        step: Size = 1
        known = True
        for d in reversed(range(len(given))):
            if known and _same(given[d], dense):
                strides[d] = step
            else:
                strides[d] = self.sizes.size(
                    given[d], ("stride", host.path, d), f"{name}_stride{d}"
                )
            dense, step = dense * tensor.shape[d], step * shape[d]
        return strides

    def _buffer_name(self, wanted: str) -> str:
        text = "".join(c if c.isalnum() else "_" for c in wanted).strip("_") or "t"
        text = f"t_{text}" if text[0].isdigit() else text
        number, name = 0, text
        while name in self._buffer_names:
            number += 1
            name = f"{text}_{number}"
        self._buffer_names.add(name)
        return self.sizes.name(name)

    def shape(self, host: HostTensor, d: int) -> Size:
        """Size `d` of a host tensor."""
        if host.buffer is not None:
            return host.buffer.shape[d]
        name = f"{host.name}_size{d}"
        return self.sizes.size(host.tensor.shape[d], ("size", host.path, d), name)

    def stride(self, host: HostTensor, d: int) -> Size:
        """Stride `d` of a host tensor."""
        if host.buffer is not None:
            return host.buffer.strides[d]
        name = f"{host.name}_stride{d}"
        return self.sizes.size(host.tensor.stride(d), ("stride", host.path, d), name)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal by their expressions: nothing is decided by values."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return _expression(a) == _expression(b)


def _expression(number: Any) -> Any:
    return number.node.expr if isinstance(number, torch.SymInt) else sympy.Integer(number)
