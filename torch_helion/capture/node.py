"""Our nodes in FX graphs: callables that Inductor calls with its IR when it lowers the graph.

What flows in: a kernel's text, fake tensors of its arguments, size expressions. What flows out: the
target of an FX node. Inductor takes any callable with ``_inductor_lowering_function`` as a target;
no operator, fake implementation or dispatcher is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from torch_helion import exc
from torch_helion.capture import inductor_compat


@dataclass(eq=False, repr=False)
class KernelCall:
    """One call of one kernel. The node's arguments are the kernel's tensor inputs, in its order."""

    name: str
    text: str
    """the kernel, as its loader reads it"""
    input_values: Sequence[torch.Tensor]
    """fake tensors of the inputs: their strides are what the kernel was made for"""
    output_values: Sequence[torch.Tensor]
    order: Sequence[int]
    """the kernel's i-th tensor is number ``order[i]`` of inputs, then outputs"""
    sizes: Sequence[Any]
    """ints and expressions over the graph's symbols, in the order of the kernel's int arguments"""
    many: bool = False
    """whether the node's value is a tuple"""
    kernel: Any = None
    """the tile IR, for passes that come after (:class:`torch_helion.ir.graph.Kernel`)"""
    updates: dict[int, int] = field(default_factory=dict)
    """outputs that are written into an input: number of the output → number of the input"""
    _inductor_lowering_function: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.__name__ = self.__qualname__ = f"helion_{self.name}"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, *args: Any) -> Any:
        if _are_fake(args):
            return self._inductor_lowering_output_metadata_fn(*args)
        return inductor_compat.lower_kernel(self, args)

    def _inductor_lowering_output_metadata_fn(self, *unused: Any) -> Any:
        """Fake results (the name is Inductor's: from torch 2.14 on it asks for them)."""
        results = tuple(_new_like(value) for value in self.output_values)
        return results if self.many else results[0]


@dataclass(eq=False, repr=False)
class RandomCall:
    """Random numbers of ours outside of any kernel: the numbers that a kernel would have drawn.

    The node's arguments are the seed, then the bounds of ``randint``.
    """

    function: str
    value: torch.Tensor
    """a fake tensor of the numbers"""
    _inductor_lowering_function: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.__name__ = self.__qualname__ = f"helion_{self.function}"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, *args: Any) -> Any:
        if _are_fake(args):
            return _new_like(self.value)
        return inductor_compat.lower_random(self.function, args)

    def _inductor_lowering_output_metadata_fn(self, *unused: Any) -> Any:
        return _new_like(self.value)


@dataclass(eq=False, repr=False)
class PromiseCall:
    """Its argument, laid out as the graph says; the same tensor wherever that is already so."""

    value: torch.Tensor
    """the fake tensor whose strides are promised"""
    _inductor_lowering_function: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.__name__ = self.__qualname__ = "helion_promised_strides"

    def __repr__(self) -> str:
        return self.__name__

    def __call__(self, x: Any) -> Any:
        if _are_fake((x,)):
            return _new_like(self.value)
        return inductor_compat.lower_promise(self.value, x)

    def _inductor_lowering_output_metadata_fn(self, *unused: Any) -> Any:
        return _new_like(self.value)


def _are_fake(args: Sequence[Any]) -> bool:
    """Whether a node is run to learn its shapes (inside a branch of control flow), not lowered."""
    if not any(isinstance(x, torch.Tensor) for x in args):
        return False
    if get_proxy_mode() is not None:  # what it returns would be taken for what it computes
        raise exc.CaptureError("a graph with kernels cannot be traced again")
    return True


def _new_like(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def promised_strides(x: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """``x`` with these strides: itself, or a copy."""
    found = x.stride()
    if found == stride:
        return x
    if all(a == b or n <= 1 for a, b, n in zip(found, stride, x.shape, strict=True)):
        return x
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


def random_numbers(function: str, out: torch.Tensor, seed: torch.Tensor, *bounds: int) -> None:
    """Fill ``out`` with the numbers of stream ``seed``, element i by its row-major position i."""
    from torch_helion.ir import philox

    index = torch.arange(out.numel(), dtype=torch.int64)
    start = int(seed)
    if function == "randint":
        numbers = philox.randint(start, index, *(int(b) for b in bounds))
    elif function == "rand":
        numbers = philox.uniform(start, index)
    elif function == "randn":
        numbers = philox.normal(start, index)
    else:
        raise exc.CaptureError(f"no random numbers called {function!r}")
    out.copy_(numbers.view(out.shape))


def new_random_numbers(
    function: str, size: Sequence[int], seed: torch.Tensor, *bounds: int, dtype: torch.dtype
) -> torch.Tensor:
    """The same in a tensor of its own."""
    out = torch.empty(tuple(size), dtype=dtype)
    random_numbers(function, out, seed, *bounds)
    return out
