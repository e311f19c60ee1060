"""Arguments of kernels seen as trees of leaves: what they are, their keys, getters of their leaves.

In: any value that a kernel takes. Out: paths and leaves, the specialisation key, and functions that
fetch a leaf again from another value of the same structure.

A path is a position followed by steps: an index of a sequence, a key of a dict, ``("attr", name)``
of a dataclass; of a user's function ``("code", "")``, ``("cell", i)``, ``("global", names)``.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from torch_helion import exc
from torch_helion.frontend import helpers

Path: TypeAlias = tuple[Any, ...]

_NUMBERS = (int, float, bool, complex)
_CONSTANTS = (str, bytes, torch.dtype, torch.device, type(None), torch.layout, torch.memory_format)
INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TensorLike:
    """What a kernel depends on of a tensor: all but its elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorLike:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def numel(self) -> int:
        return math.prod(self.shape)


def identity_of(tensor: torch.Tensor | TensorLike) -> Any:
    """Equal for two tensors with the same elements in the same layout."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not plain or tensor.numel() == 0 or not isinstance(tensor, torch.Tensor):
        return id(tensor)
    dense = tensor.layout is torch.strided and tensor.device.type != "meta"
    if not dense or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Steps and values one level down; None for a leaf."""
    if isinstance(value, torch.Tensor | TensorLike):
        return None
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(("attr", f.name), getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, types.FunctionType) and helpers.is_users(value):
        return _parts(value)
    return None


def _parts(fn: types.FunctionType) -> list[tuple[Any, Any]]:
    """A digest of a function's code, and the data that it reads."""
    cells = [(i, c) for i, c in enumerate(fn.__closure__ or ()) if not _is_empty(c)]
    found = [(("cell", i), c.cell_contents) for i, c in cells if c.cell_contents is not fn]
    data = enumerate(helpers.data_globals(fn))
    named = [(("global", at.path), helpers.global_of(fn, n, at)) for n, at in data]
    return [(("code", ""), helpers.code_digest(fn)), *found, *named]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path, in a fixed order."""
    below = children(value)
    if below is None:
        yield path, value
        return
    for step, child in below:
        yield from leaves(child, (*path, step))


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors among the leaves."""
    return [leaf for _, leaf in leaves(values) if isinstance(leaf, torch.Tensor)]


def get(values: Sequence[Any], path: Path) -> Any:
    """The leaf at ``path`` (whose first step is a position in ``values``)."""
    found: Any = values
    for step in path:
        if isinstance(step, tuple):
            found = _part(found, *step)
        else:
            found = found[step]
    return found


def _part(owner: Any, kind: str, name: Any) -> Any:
    if kind == "attr":
        return getattr(owner, name)
    if kind == "cell":
        return owner.__closure__[name].cell_contents
    if kind == "code":
        return helpers.code_digest(owner)
    for number, at in enumerate(helpers.data_globals(owner)):
        if at.path == name:
            return helpers.global_of(owner, number, at)
    raise LookupError(name)


def replace_tensors(value: Any, make: Callable[[Any], Any]) -> Any:
    """A copy of a tree with ``make(leaf)`` in the place of each leaf; functions are kept."""
    if isinstance(value, types.FunctionType):
        return _copy_function(value, make) if helpers.is_users(value) else value
    if isinstance(value, torch.Size):
        return torch.Size([make(v) for v in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replace_tensors(v, make) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(replace_tensors(v, make) for v in value)
    if isinstance(value, Mapping):
        return type(value)((k, replace_tensors(v, make)) for k, v in value.items())  # type: ignore[call-arg]
    if isinstance(value, TensorLike):
        return make(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            f.name: replace_tensors(getattr(value, f.name), make)
            for f in dataclasses.fields(value)
            if f.init
        }
        return dataclasses.replace(value, **changed)
    return make(value)


def _copy_function(fn: types.FunctionType, make: Callable[[Any], Any]) -> types.FunctionType:
    make(helpers.code_digest(fn))  # a leaf like any other, but none that can be replaced

    def copied(cell: types.CellType) -> types.CellType:
        if _is_empty(cell) or cell.cell_contents is fn:
            return cell
        return types.CellType(replace_tensors(cell.cell_contents, make))

    cells = tuple(copied(cell) for cell in fn.__closure__ or ())
    data = enumerate(helpers.data_globals(fn))
    named = [replace_tensors(helpers.global_of(fn, n, at), make) for n, at in data]
    copy = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, cells)
    copy.__kwdefaults__ = fn.__kwdefaults__
    copy.__qualname__ = fn.__qualname__
    copy.__module__ = fn.__module__
    setattr(copy, helpers.COPIED, named)
    return copy


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


# ---------------------------------------------------------------------- keys


def key_of(value: Any, static: bool, by_value: bool = False) -> Any:
    """What of one argument a specialisation depends on; numbers only ``by_value`` by their value.

    Raises ``exc.UnsupportedPythonType`` for what no kernel takes.
    """
    if isinstance(value, torch.Tensor | TensorLike):
        return tensor_key(value, static)
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, _NUMBERS):
        return (type(value), value) if by_value else type(value)
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(value)
    below = children(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        inner = tuple(key_of(child, static, by_value) for _, child in below or ())
        return (getattr(value, "__code__", value), inner)
    if below is not None:
        keys = tuple((_step_key(step), key_of(child, static, by_value)) for step, child in below)
        return (type(value), keys)
    if isinstance(value, torch.fx.GraphModule):
        refuse_graph(value)
    if callable(value) or isinstance(value, type):
        return (type(value), value)
    if _is_process_group(value):
        return ("group", value)
    raise exc.UnsupportedPythonType(type(value).__name__)


def tensor_key(tensor: torch.Tensor | TensorLike, static: bool) -> Hashable:
    """dtype, device, and sizes and strides: exact, or only whether a size is 1."""
    base = ("tensor", tensor.dtype, tensor.device.type)
    if static:
        return (*base, tuple(tensor.shape), tuple(tensor.stride()))
    marked: set[int] = getattr(tensor, "_dynamo_static_indices", set())
    sizes = tuple(n if d in marked or n == 1 else -1 for d, n in enumerate(tensor.shape))
    return (*base, sizes, tensor.numel() > INT32_MAX)


def refuse_graph(module: torch.fx.GraphModule) -> None:
    """Raise ``exc.GraphModuleUnsupportedOps`` for a graph that reads more than its inputs."""
    kinds = ("get_attr", "call_module")
    names = [f"{n.op} {n.target}" for n in module.graph.nodes if n.op in kinds]
    if names:
        raise exc.GraphModuleUnsupportedOps(", ".join(names))


def _step_key(step: Any) -> Hashable:
    return step if isinstance(step, str | int | tuple) else str(step)


def _is_process_group(value: Any) -> bool:
    return type(value).__name__ == "ProcessGroup"
