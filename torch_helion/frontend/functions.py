"""Calls on the device: who gives a call its meaning.

In: what is called, its arguments. Out: values. The language's functions, Python's builtins and
some of PyTorch's have rows (`rows.py`); other functions of PyTorch go through `calls`; the user's
are executed by their trees; anything that is known while tracing is called as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend import attributes, calls, indexing, numbers, selections, views
from torch_helion.frontend.loops import Loops
from torch_helion.frontend.values import (
    DEVICE,
    Function,
    HostTensor,
    Inline,
    Method,
    Record,
    Tensor,
    describe,
    holds,
)
from torch_helion.frontend.values import integer as as_integer

assert views is not None and selections is not None  # they register their rules
Row = Callable[..., Any]
ROWS: dict[Any, Row] = {}
"""row(interpreter, *args, **kwargs) by function"""
TORCH: dict[str, Row] = {}
"""the same by the name of a function or method of torch's"""
_CREATES = "zeros ones empty full arange rand randn randint eye scalar_tensor"
CREATES = frozenset(_CREATES.split())


def row(*functions: Any) -> Callable[[Row], Row]:
    def register(fn: Row) -> Row:
        for function in functions:
            ROWS[function] = fn
        return fn

    return register


class Interpreter(Loops):
    """Executes device code."""

    def call(self, fn: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if isinstance(fn, Method):
            return self._method(fn, args, kwargs)
        if isinstance(fn, Function):
            return self.inline(fn, args, kwargs)
        if isinstance(fn, Inline):
            return self._inline(fn, args)
        known = _row_of(fn)
        if known is not None:
            return known(self, *args, **kwargs)
        if isinstance(fn, functools.partial):
            return self.call(fn.func, [*fn.args, *args], {**fn.keywords, **kwargs})
        if is_kernel(fn):
            raise exc.NestedKernelCallsNotSupported(getattr(fn, "name", "kernel"))
        if _is_torch(fn):
            return self.torch_call(fn, args, kwargs)
        if isinstance(fn, types.FunctionType):
            if (fn.__module__ or "").startswith("torch_helion.language"):
                raise exc.BackendUnsupported("llvm", f"hl.{fn.__name__}")
            return self.inline(fn, args, kwargs)
        if isinstance(fn, types.MethodType):
            return self.call(fn.__func__, [fn.__self__, *args], kwargs)
        if isinstance(fn, torch.fx.GraphModule):
            return calls.call(self.p, fn.forward, args, kwargs)
        if isinstance(fn, type) or not holds([args, kwargs], DEVICE) or _of_container(fn):
            return fn(*args, **kwargs)
        if not callable(fn):
            raise exc.TypeInferenceError(f"{describe(fn)} cannot be called")
        raise exc.TypeInferenceError(f"{fn!r} cannot be called with values of the device")

    def _inline(self, fn: Inline, args: list[Any]) -> Any:
        if len(args) != len(fn.names):
            raise exc.TypeInferenceError(f"a lambda of {len(fn.names)} values is given {len(args)}")
        names = {**fn.scope.names, **dict(zip(fn.names, args, strict=True))}
        outer, self.scope = self.scope, dataclasses.replace(fn.scope, names=names)
        try:
            return self.eval(fn.node.body)
        finally:
            self.scope = outer

    def torch_call(self, fn: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """A function of PyTorch."""
        name = getattr(fn, "__name__", "")
        own = TORCH.get(name)
        if own is not None:
            return own(self, *args, **kwargs)
        if not holds([args, kwargs], DEVICE) and name not in CREATES:
            return fn(*args, **kwargs)
        args = [self.operand(a) for a in args]
        kwargs = {k: self.operand(v) for k, v in kwargs.items()}
        return calls.call(self.p, fn, args, kwargs)

    def operand(self, x: Any) -> Any:
        """An argument in which 0-D host tensors are read."""
        if isinstance(x, HostTensor) and x.tensor.dim() == 0:
            return indexing.load(self.p, x, ())
        if isinstance(x, list | tuple) and holds(x, (HostTensor,)):
            return type(x)([self.operand(i) for i in x])
        return x

    # -- methods ----------------------------------------------------------------------------------

    def _method(self, method: Method, args: list[Any], kwargs: dict[str, Any]) -> Any:
        owner, name = method.owner, method.name
        if isinstance(owner, Record):
            return self.inline(getattr(owner.kind, name), [owner, *args], kwargs)
        if isinstance(owner, HostTensor):
            return self._host_method(owner, name, args, kwargs)
        if name in ("size", "dim", "numel", "nelement", "ndimension"):
            return self._extents(owner, name, *args, **kwargs)
        if name in ("item", "tolist", "numpy"):
            raise exc.NotAllowedOnDevice(f".{name}()")
        if name in ("contiguous", "cpu", "cuda", "detach"):
            return owner
        if name == "to" and args and isinstance(args[0], torch.device | str):
            args = args[1:]
            if not args and "dtype" not in kwargs:
                return owner
        own = TORCH.get(name)
        if own is not None:
            return own(self, owner, *args, **kwargs)
        args = [self.operand(a) for a in args]
        kwargs = {k: self.operand(v) for k, v in kwargs.items() if k != "device"}
        return calls.call(self.p, getattr(torch.Tensor, name), [owner, *args], kwargs)

    def _extents(self, tensor: Tensor, name: str, dim: Any = None) -> Any:
        shape = attributes.get(self.p, tensor, "shape")
        if name in ("dim", "ndimension"):
            return tensor.rank
        if name == "size":
            return shape if dim is None else shape[dim]
        return self._product(shape)

    def _product(self, shape: Any) -> Any:
        return functools.reduce(lambda a, b: numbers.binary(self.p, "mul", a, b), shape, 1)

    def _host_method(
        self, host: HostTensor, name: str, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        shape = attributes.get(self.p, host, "shape")
        if name == "size":
            dim = args[0] if args else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if name in ("dim", "ndimension"):
            return len(shape)
        if name == "stride":
            strides = [as_integer(self.p.stride(host, d)) for d in range(len(shape))]
            return tuple(strides) if not args else strides[args[0]]
        if name in ("numel", "nelement"):
            return self._product(shape)
        if name in ("element_size", "is_floating_point", "is_complex", "get_device"):
            return getattr(host.tensor, name)()
        if name in ("new_zeros", "new_empty", "new_ones", "new_full"):
            kwargs = {"dtype": host.dtype, **kwargs}
            kwargs.pop("device", None)
            return self.torch_call(getattr(torch, name[4:]), args, kwargs)
        if name in ("item", "tolist", "numpy"):
            raise exc.NotAllowedOnDevice(f".{name}()")
        if len(shape) == 0:
            return self._method(Method(indexing.load(self.p, host, ()), name), args, kwargs)
        raise exc.HostTensorDirectUsage(host.name, name)


def _of_container(fn: Any) -> bool:
    owner = getattr(fn, "__self__", None)
    return isinstance(owner, list | dict | tuple | str | set)


def _row_of(fn: Any) -> Row | None:
    try:
        return ROWS.get(fn)
    except TypeError:  # not hashable
        return None


def is_kernel(fn: Any) -> bool:
    """Whether something is a decorated kernel."""
    return hasattr(fn, "fn") and hasattr(fn, "settings") and hasattr(fn, "bind")


def _is_torch(fn: Any) -> bool:
    if isinstance(fn, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    if isinstance(fn, type):
        return False
    module = getattr(fn, "__module__", None) or ""
    if module == "torch" or module.startswith(("torch.", "torch._")):
        return True
    owner = getattr(fn, "__objclass__", None)
    return owner is not None and issubclass(torch.Tensor, owner) and owner is not object
