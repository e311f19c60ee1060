"""Every switch of the package: one field, one environment variable, one default, one help text.

What flows in: ``TORCH_HELION_<NAME>`` variables, read at the first use, and :func:`patch`. What
flows out: :func:`current`, the frozen values in force. Floor 0: anything may import this module.

    from torch_helion import settings
    if settings.current().strict: ...
    with settings.patch(strict=True, dump="/tmp/stages"): ...

Switches say how the package works; what may be *tuned* about a kernel is not here. A new switch is
one line in :class:`Settings`: everything else (environment name, parsing, help text, error
messages) follows.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import os
import pathlib
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from torch_helion import exc

PREFIX = "TORCH_HELION_"
# Variables with our prefix that other tools of the project read; they are not switches.
NOT_SWITCHES = frozenset({"TORCH_HELION_VENV"})
_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False, "": False}


def _default_cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(base) / "torch_helion")


def switch(default: Any, help: str) -> Any:
    """A field of :class:`Settings`. A callable default is evaluated when the settings are made."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of all switches; immutable. Types may be bool, int, float or str."""

    strict: bool = switch(False, "raise an error of the backend instead of falling back")
    interpret: bool = switch(False, "run kernels by the tile IR's interpreter (reference mode)")
    check: bool = switch(True, "compare each new kernel with a float64 evaluation first")
    verify: bool = switch(False, "verify the tile IR after every pass, not only at the ends")
    cache_dir: str = switch(_default_cache_dir, "folder of the artifact cache (made private, 0700)")
    cache_limit_mb: int = switch(1024, "size of the cache above which old entries are removed")
    logs: str = switch("", "artefacts to log: capture,+code,-launch,all (see _logging)")
    dump: str = switch("", "folder that receives each stage of each kernel as a numbered file")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The defaults, overridden by the variables in ``environ``."""
        environ = os.environ if environ is None else environ
        values = {
            name: parse(name, environ[env_name(name)])
            for name in fields()
            if env_name(name) in environ
        }
        return cls(**values)

    def replace(self, **values: Any) -> Settings:
        """A copy with these fields changed; unknown names and wrong types raise."""
        return dataclasses.replace(self, **{name: _checked(name, v) for name, v in values.items()})


def fields() -> Mapping[str, type]:
    """Each switch and its type, in order of declaration."""
    global _fields
    if _fields is None:
        hints = typing.get_type_hints(Settings)
        names = [f.name for f in dataclasses.fields(Settings)]
        _fields = types.MappingProxyType({name: hints[name] for name in names})
    return _fields


def env_name(name: str) -> str:
    """The environment variable of a switch."""
    return PREFIX + name.upper()


def parse(name: str, text: str) -> Any:
    """The value of switch ``name`` that the text of its environment variable stands for."""
    kind = _kind(name)
    try:
        return _WORDS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = "1 or 0" if kind is bool else f"a value of type {kind.__name__}"
        raise exc.InvalidValue(env_name(name), text, expected) from None


def current() -> Settings:
    """The settings in force here: the innermost :func:`patch`, else the process's environment."""
    return _patched.get() or _process_settings()


def reload() -> Settings:
    """Forget what was read from the environment and read it again (for tests and notebooks)."""
    global _process
    with _lock:
        _process = None
    return _process_settings()


@contextlib.contextmanager
def patch(**values: Any) -> Iterator[Settings]:
    """Change switches for this context (thread or task) only; nests, and restores at the end."""
    changed = current().replace(**values)
    token = _patched.set(changed)
    try:
        yield changed
    finally:
        _patched.reset(token)


def describe() -> str:
    """A table of all switches for ``--help`` and the documentation."""
    rows = []
    for f in dataclasses.fields(Settings):
        default = "" if f.default is dataclasses.MISSING else repr(f.default)
        rows.append(f"{env_name(f.name):32} {default:8} {f.metadata['help']}")
    return "\n".join(rows)


_fields: Mapping[str, type] | None = None
_process: Settings | None = None
_lock = threading.Lock()
_patched: contextvars.ContextVar[Settings | None] = contextvars.ContextVar(
    "torch_helion_settings", default=None
)


def _process_settings() -> Settings:
    global _process
    if _process is None:
        with _lock:
            if _process is None:
                _warn_of_unknown_variables()
                _process = Settings.from_environment()
    return _process


def _warn_of_unknown_variables() -> None:
    known = {env_name(name) for name in fields()} | NOT_SWITCHES
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            error = exc.invalid_option("environment variable", variable, known)
            logging.getLogger("torch_helion").warning("%s", error)


def _kind(name: str) -> type:
    try:
        return fields()[name]
    except KeyError:
        raise exc.invalid_option("setting", name, fields()) from None


def _checked(name: str, value: Any) -> Any:
    kind = _kind(name)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is not kind:
        raise exc.InvalidValue(name, value, f"a value of type {kind.__name__}")
    return value
