"""Host values as the device part sees them.

In: what a launch receives, with the path to each. Out: `HostTensor`s, `Number`s where a number is
known at run time only, containers of these; anything else is itself.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from torch_helion.frontend.helpers import data_globals, global_of, is_users
from torch_helion.frontend.sizes import Path, constant_of
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Function, Number, Record
from torch_helion.ir.types import block_symbol
from torch_helion.language.values import BlockSize


def block_name(number: int) -> str:
    """The name of a registered block size."""
    return f"registered{number}"


def wrap(p: Program, value: Any, path: Path, name: str) -> Any:
    """The value of the device part for a value of the host."""
    if isinstance(value, torch.Tensor):
        return p.host_tensor(value, path, name)
    if isinstance(value, BlockSize):
        return Number(int, size=block_symbol(block_name(value.number)))
    if isinstance(value, torch.SymInt):
        return p.python(p.sizes.integer(value, path, name))
    if isinstance(value, torch.SymFloat):
        return _float(p, value, path, name)
    if isinstance(value, torch.SymBool):
        return bool(value)
    if isinstance(value, torch.Size):
        return tuple(_wrap_items(p, value, path, name))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*_wrap_items(p, value, path, name))
    if isinstance(value, list | tuple):
        return type(value)(_wrap_items(p, value, path, name))
    if isinstance(value, dict):
        return {k: wrap(p, v, (*path, k), f"{name}_{k}") for k, v in value.items()}
    if isinstance(value, types.FunctionType) and is_users(value):
        return _function(p, value, path, name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: wrap(p, getattr(value, f.name), (*path, ("attr", f.name)), f"{name}_{f.name}")
            for f in dataclasses.fields(value)
        }
        return Record(type(value), fields, value)
    return value


def _wrap_items(p: Program, value: Any, path: Path, name: str) -> list[Any]:
    return [wrap(p, v, (*path, i), f"{name}_{i}") for i, v in enumerate(value)]


def _float(p: Program, value: torch.SymFloat, path: Path, name: str) -> Any:
    constant = constant_of(value)
    if constant is not None:
        return float(constant)
    return Number(float, bits=p.sizes.float_bits(value, path, name))


def _function(p: Program, fn: types.FunctionType, path: Path, name: str) -> Any:
    cells = {}
    for i, (variable, cell) in enumerate(
        zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    ):
        try:
            inner = cell.cell_contents
        except ValueError:
            continue
        cells[variable] = inner if inner is fn else wrap(p, inner, (*path, ("cell", i)), variable)
    for n, found in enumerate(data_globals(fn)):
        step = (*path, ("global", found.path))
        p.lifted.setdefault(found.key, _reader(p, global_of(fn, n, found), step, found.name))
    return Function(fn, cells, fn.__defaults__)


def _reader(p: Program, value: Any, path: Path, name: str) -> Callable[[], Any]:
    """A function that gives the wrapped value; it is made when it is first asked for."""
    return functools.cache(lambda: wrap(p, value, path, name))
