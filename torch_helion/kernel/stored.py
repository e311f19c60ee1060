"""Traced kernels that outlive the process: recipe and text, found again without tracing.

In: a bound kernel and a config. Out: what :mod:`torch_helion.kernel.recipe` and the compiler need,
or None. An entry is found by everything that a trace depends on: the source of the kernel and of
whatever it refers to, the specialisation, settings, versions. Where that cannot be told, nothing is
stored. What is read is checked against the values of the call before it is used.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torch_helion import _logging, exc, settings
from torch_helion.config import Config
from torch_helion.kernel import recipe as recipes
from torch_helion.kernel.recipe import Recipe
from torch_helion.runtime import artifact_cache

log = _logging.get_logger("cache")
KIND = "traced"
_SETTINGS = ("static_shapes", "dot_precision", "fast_math", "index_dtype", "backend")
_LIBRARIES = ("torch", "torch_helion", "math", "builtins", "typing", "collections", "operator")


class Unknown(Exception):
    """Something that a key cannot name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one kernel with one config needs in order to run."""

    recipe: Recipe
    text: str
    choices: dict[str, Any]
    """the complete config, where the host part asks for it"""


def find(bound: Any, config: Config | None) -> Entry | None:
    """The kernel with this config, as an earlier process stored it."""
    if settings.flag("SKIP_CACHE") not in ("", "0"):
        return None
    key = _key(bound, config)
    data = artifact_cache.get(KIND, key) if key else None
    if data is None:
        return None
    try:
        values = json.loads(data)
        return Entry(recipes.from_json(values["recipe"]), values["text"], values["choices"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: a stored trace cannot be read (%s)", bound.kernel.name, error)
        return None


def keep(bound: Any, config: Config | None, entry: Entry) -> None:
    """Store it for other processes."""
    key = _key(bound, config)
    if not key:
        return
    try:
        recipe = recipes.to_json(entry.recipe)
        data = json.dumps({"recipe": recipe, "text": entry.text, "choices": entry.choices})
    except (exc.CacheError, TypeError) as error:
        log.debug("%s is not stored: %s", bound.kernel.name, error)
        return
    artifact_cache.put(KIND, key, data.encode())


def _key(bound: Any, config: Config | None) -> str | None:
    try:
        parts = [
            *_versions(),
            bound.target.name,
            bound.target.machine_key(bound.target.machine()),
            *code_parts(bound.kernel.fn),
            text_of_key(bound.key),
            str({name: getattr(bound.settings, name) for name in _SETTINGS}),
            "" if config is None else config.to_json(),
        ]
    except (Unknown, exc.InvalidConfig) as error:
        log.debug("%s is not stored: %s", bound.kernel.name, error)
        return None
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, ...]:
    """Python, torch and this package, whose files may be edited."""
    folder = pathlib.Path(__file__).parent.parent
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for name in sorted(n for n in names if n.endswith(".py")):
            status = os.stat(os.path.join(place, name))
            files.append(f"{name}:{status.st_size}:{status.st_mtime_ns}")
    ours = hashlib.sha256("\n".join(files).encode()).hexdigest()
    return (sys.version, torch.__version__, ours)


# ---------------------------------------------------------------------- what code refers to


def code_parts(
    fn: types.FunctionType, text_of_code: Callable[[types.CodeType], str] | None = None
) -> list[str]:
    """Text of a function and of everything that it refers to by name.

    ``text_of_code``: how code is told apart; its instructions, unless given.
    """
    text_of_code = text_of_code or _code_text
    parts: list[str] = []
    seen: set[int] = set()

    def visit(value: Any, name: str) -> None:
        value = getattr(value, "fn", value) if _is_kernel(value) else value
        if isinstance(value, types.FunctionType):
            if not _is_library(value.__module__) and id(value) not in seen:
                seen.add(id(value))
                parts.append(f"{name}: {value.__qualname__} {_defaults(value)}")
                visit_code(value.__code__, value)
            return
        if isinstance(value, types.ModuleType):
            parts.append(f"{name}: module {value.__name__}")
            return
        parts.append(f"{name}: {_text(value)}")

    def visit_code(code: types.CodeType, owner: types.FunctionType) -> None:
        parts.append(text_of_code(code))
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                visit_code(inner, owner)
        for name in code.co_names:
            for at, found in _resolve(name, code, owner):
                visit(found, at)
        for cell, name in zip(owner.__closure__ or (), owner.__code__.co_freevars, strict=True):
            visit(cell.cell_contents, name)

    visit(fn, "kernel")
    return parts


def _resolve(
    name: str, code: types.CodeType, owner: types.FunctionType
) -> Iterator[tuple[str, Any]]:
    """What a name in code may mean: a global, or an attribute of a module of the user's."""
    space = owner.__globals__
    if name in space:
        yield name, space[name]
    for other in code.co_names:
        module = space.get(other)
        of_user = isinstance(module, types.ModuleType) and not _is_library(module.__name__)
        if of_user and name in vars(module):
            yield f"{other}.{name}", vars(module)[name]


def _code_text(code: types.CodeType) -> str:
    consts = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    return repr((code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars))


def _defaults(fn: types.FunctionType) -> str:
    values = (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).items())
    notes = {k: str(v) for k, v in fn.__annotations__.items()}
    return f"{[_text(v) for v in values]} {notes}"


def _text(value: Any) -> str:
    """A text that only equal values have."""
    if value is None or isinstance(value, bool | int | float | str | bytes | complex):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.layout):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return "tensor"  # read at each call; the recipe says what it must be
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({[_text(v) for v in value]})"
    if isinstance(value, dict):
        return repr({_text(k): _text(v) for k, v in value.items()})
    if (
        isinstance(value, types.BuiltinFunctionType)
        or getattr(builtins, "__dict__", {}).get(getattr(value, "__name__", "")) is value
    ):
        return repr(getattr(value, "__name__", value))
    if isinstance(value, types.FunctionType | type) and _is_library(value.__module__):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _text(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return f"{type(value).__qualname__}({fields})"
    raise Unknown(f"a value of type {type(value).__qualname__}")


def text_of_key(key: Any) -> str:
    """The specialisation key as text that another process gives as well."""
    if isinstance(key, tuple):
        return f"({', '.join(text_of_key(k) for k in key)})"
    if isinstance(key, types.CodeType):
        return _code_text(key)
    if isinstance(key, types.FunctionType):
        return "\0".join(code_parts(key))
    return _text(key)


def _is_kernel(value: Any) -> bool:
    return type(value).__name__ == "Kernel" and _is_library(type(value).__module__)


def _is_library(module: str | None) -> bool:
    name = (module or "").split(".")[0]
    return name in _LIBRARIES or name in sys.stdlib_module_names
