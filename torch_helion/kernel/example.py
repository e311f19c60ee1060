"""Runs of a host function that stop where its kernel would start: what the kernel is traced with.

In: a host function and arguments. Out: the values that the device part reads, as fake tensors and
symbolic numbers where the host part can work with them, so that no memory is needed and numbers
that vary from call to call are not taken for constants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils._python_dispatch import _disable_current_modes

from torch_helion.kernel import arguments
from torch_helion.kernel.arguments import Path, TensorLike

# What a host function raises on fakes although it works on real tensors.
NEEDS_DATA: tuple[type[Exception], ...] = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
)


class _Reached(BaseException):
    """Not an Exception: a host function may catch those."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        super().__init__()
        self.values = values


def values_at_launch(bound: Any, args: Sequence[Any]) -> tuple[Any, ...] | None:
    """What the host function hands to its kernel; None if it ends without one."""

    def reached(*values: Any) -> None:
        raise _Reached(values)

    try:
        bound.host.with_launch(reached)(*args)
    except _Reached as found:
        return found.values
    return None


class Example:
    """Fake copies of values, and the shape environment that their open sizes live in."""

    def __init__(self, static: bool) -> None:
        self.static = static
        self.shape_env = ShapeEnv(specialize_zero_one=False)
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        self._names = 0
        self._made: dict[Any, Any] = {}

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Everything made inside is fake, and no other mode sees it; nothing has gradients."""
        with _disable_current_modes(), self.fake_mode, torch.no_grad():
            yield

    def copies(self, values: Sequence[Any], open_numbers: bool) -> tuple[Any, ...]:
        """Fake copies; numbers become symbols if ``open_numbers``. Aliases stay aliases."""
        make = self._open if open_numbers else self._closed
        return tuple(arguments.replace_tensors(v, make) for v in values)

    def opened(self, values: Sequence[Any], opened: Collection[Path]) -> tuple[Any, ...]:
        """Fake copies in which only the numbers and tensors at these paths are open."""
        paths = iter([path for path, _ in arguments.leaves(tuple(values))])

        def make(leaf: Any) -> Any:
            if next(paths) not in opened:
                return self._closed(leaf)
            if isinstance(leaf, torch.Tensor):
                return self._once(leaf, static=False)
            return self._open(leaf)

        return tuple(arguments.replace_tensors(v, make) for v in values)

    def _closed(self, leaf: Any) -> Any:
        return self.fake(leaf) if isinstance(leaf, torch.Tensor | TensorLike) else leaf

    def _open(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor | TensorLike):
            return self.fake(leaf)
        finite = type(leaf) is float and leaf == leaf
        if type(leaf) is not int and not finite:
            return leaf
        source = self._source()
        symbol = self.shape_env.create_unspecified_symbol(leaf, source, DimDynamic.DYNAMIC)
        if finite:
            return self.shape_env.create_symfloatnode(symbol, hint=leaf, source=source)
        return self.shape_env.create_symintnode(symbol, hint=leaf, source=source)

    def fake(self, tensor: torch.Tensor | TensorLike) -> torch.Tensor:
        """A fake copy; open sizes where they are not static, but 1 stays 1."""
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.fake_mode:
            return tensor
        return self._once(tensor, self.static or isinstance(tensor, FakeTensor))

    def _once(self, tensor: torch.Tensor | TensorLike, static: bool) -> torch.Tensor:
        """The fake copy of a tensor; the same for the same elements in the same layout."""
        key = arguments.identity_of(tensor)
        if key not in self._made:
            self._made[key] = (self._new_fake(tensor, static), tensor)  # keeps its number taken
        return self._made[key][0]

    def _new_fake(self, tensor: torch.Tensor | TensorLike, static: bool) -> torch.Tensor:
        if static:
            with self.fake_mode:
                return torch.empty_strided(
                    [int(n) for n in tensor.shape],
                    [int(n) for n in tensor.stride()],
                    dtype=tensor.dtype,
                    device=tensor.device,
                )
        with unset_fake_temporarily():
            if isinstance(tensor, TensorLike):  # memory that nobody touches
                tensor = torch.empty_strided(
                    tensor.shape, tensor.strides, dtype=tensor.dtype, device=tensor.device
                )
            tensor = tensor.detach()
        marked: set[int] = getattr(tensor, "_dynamo_static_indices", set())
        dims = [
            DimDynamic.STATIC if n == 1 or d in marked else DimDynamic.DUCK
            for d, n in enumerate(tensor.shape)
        ]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dims)
        return self.fake_mode.from_tensor(tensor, symbolic_context=context, source=self._source())

    def _source(self) -> ConstantSource:
        self._names += 1
        return ConstantSource(f"__value_{self._names}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """``with example.watched() as decided``: whether sizes have decided something inside."""
        before = len(self.shape_env.guards)
        yield lambda: len(self.shape_env.guards) > before
