"""What a user's functions read besides their arguments: data of modules, code of other functions.

In: a Python function. Out: the globals that it reads, also through functions that it calls, and a
digest of its code. Data is read again at each call of a kernel; code is part of the kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_LIBRARIES = frozenset(("torch", "torch_helion", "triton", "numpy", "sympy"))
_MOST_ITEMS = 256
"""Containers of more than these are taken for tables of the program, not for data of a kernel."""


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """One name of one module."""

    path: str
    """the names that lead to it from where it is read"""
    space: Mapping[str, Any]
    name: str

    @property
    def key(self) -> tuple[int, str]:
        return id(self.space), self.name

    def read(self) -> Any:
        return self.space[self.name]


def is_users(value: Any) -> bool:
    """Whether a function or module is no library's."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return _is_users(name or "")


@functools.lru_cache(maxsize=1024)
def _is_users(name: str) -> bool:
    top = name.split(".")[0]
    return top not in _LIBRARIES and top not in sys.stdlib_module_names


def is_data(value: Any) -> bool:
    """Whether a global is read at each call, and not a fixed part of the program."""
    if isinstance(value, list | tuple | dict | torch.Tensor):
        return True
    return isinstance(value, int | float) and not isinstance(value, type)


def is_small(value: Any) -> bool:
    """Whether a global of a helper holds nothing but data, and not much of it."""
    budget = [_MOST_ITEMS]

    def plain(item: Any) -> bool:
        budget[0] -= 1
        if budget[0] < 0:
            return False
        if isinstance(item, dict):
            return all(plain(v) for v in item.values())
        if isinstance(item, list | tuple):
            return all(map(plain, item))
        return item is None or isinstance(
            item, int | float | str | torch.Tensor | torch.dtype | torch.device
        )

    return plain(value)


COPIED = "__torch_helion_globals__"
"""Where a copy of a function holds what stands for its globals, in order."""


def global_of(fn: types.FunctionType, number: int, at: Global) -> Any:
    """The value of a global of a function, or what a copy of the function has in its place."""
    copied = getattr(fn, COPIED, None)
    return at.read() if copied is None else copied[number]


_known: dict[tuple[int, int], tuple[types.CodeType, Any, tuple[Global, ...]]] = {}
_digests: dict[tuple[int, str, str], tuple[types.CodeType, str]] = {}
# Looked up in every call that has functions as arguments: by the identity of what they hold on to,
# as the hash of a code object takes microseconds.
_MOST_KNOWN = 4096


def data_globals(fn: types.FunctionType) -> tuple[Global, ...]:
    """Data that a function and those that it calls read from modules."""
    code, space = fn.__code__, fn.__globals__
    found = _known.get((id(code), id(space)))
    if found is None:
        if len(_known) > _MOST_KNOWN:
            _known.clear()
        found = _known[id(code), id(space)] = (code, space, _data_globals(code, space))
    return found[2]


def _data_globals(code: types.CodeType, space: Mapping[str, Any]) -> tuple[Global, ...]:
    found: dict[tuple[int, str], Global] = {}
    seen: set[types.CodeType] = set()

    def note(value: Any, at: Global) -> None:
        fn = plain_function(value)
        if fn is not None:
            visit(fn.__code__, fn.__globals__, f"{at.path}.")
        elif is_data(value) and is_small(value):
            found.setdefault(at.key, at)

    def visit(code: types.CodeType, space: Mapping[str, Any], prefix: str) -> None:
        if code in seen:
            return
        seen.add(code)
        for at in _named(code, space, prefix):
            note(at.read(), at)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                visit(inner, space, prefix)

    visit(code, space, "")
    return tuple(found.values())


def _named(code: types.CodeType, space: Mapping[str, Any], prefix: str) -> Iterator[Global]:
    """Globals, and attributes of modules of the user's, that code may mean by its names."""
    for name in code.co_names:
        if name not in space:
            continue
        value = space[name]
        if not isinstance(value, types.ModuleType):
            yield Global(f"{prefix}{name}", space, name)
        elif is_users(value):
            inside = vars(value)
            for other in code.co_names:
                if other in inside and other not in ("__builtins__", "__spec__"):
                    yield Global(f"{prefix}{name}.{other}", inside, other)


def plain_function(value: Any) -> types.FunctionType | None:
    """A function of the user's (that of a kernel, too); None for anything else."""
    if hasattr(value, "fn") and hasattr(value, "settings") and hasattr(value, "bind"):
        value = value.fn
    return value if isinstance(value, types.FunctionType) and is_users(value) else None


def code_digest(fn: types.FunctionType) -> str:
    """A text that functions with other code or other defaults do not have."""
    defaults = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).items()]
    texts = list(map(_default_text, defaults)) if defaults else []
    code = fn.__code__
    key = (id(code), fn.__module__, " ".join(texts))
    found = _digests.get(key)
    if found is None:
        if len(_digests) > _MOST_KNOWN:
            _digests.clear()
        text = f"{fn.__module__} {_code_text(code)} {key[2]}"
        found = _digests[key] = (code, hashlib.sha256(text.encode()).hexdigest())
    return found[1]


def _default_text(value: Any) -> str:
    constants = (int, float, str, bool, type(None), torch.dtype, torch.device, tuple)
    return repr(value) if isinstance(value, constants) else f"{type(value)} {id(value)}"


@functools.lru_cache(maxsize=1024)
def _code_text(code: types.CodeType) -> str:
    consts = [_code_text(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars))
