# ruff: noqa: RUF009  # `_setting` only makes dataclass fields
"""Every switch of the package and every setting of a kernel: one field, one environment variable,
one default, one help text.

What flows in: ``TORCH_HELION_<NAME>`` variables (``HELION_<NAME>`` is an alias), arguments of
``@kernel``, and :func:`patch`. What flows out: :func:`current`, the frozen switches in force in
this process, and :class:`Settings`, what one kernel was decorated with. Floor 0: anything may
import this module.

    from torch_helion import settings
    if settings.current().strict: ...
    with settings.patch(strict=True, dump="/tmp/stages"): ...

    @torch_helion.kernel(static_shapes=False)      # a field of Settings

Switches say how the package works, settings how a kernel is compiled and tuned; what may be *tuned*
about a kernel is a Config. A new one is one line in a class: everything else (environment name,
parsing, help text, error messages) follows.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import json
import logging
import os
import pathlib
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch_helion import exc

PREFIX = "TORCH_HELION_"
ALIAS = "HELION_"
# Variables that are read where they matter, and those of other tools of the project.
FLAGS = (
    "AUTOTUNER",
    "SKIP_CACHE",
    "ASSERT_CACHE_HIT",
    "DISALLOW_AUTOTUNING",
    "KEEP_CACHE",
    "BENCHMARK_CUDAGRAPH",
    "AOT_MODE",
    "REMOTE_CACHE_BACKEND",
)
NOT_SWITCHES = frozenset({"TORCH_HELION_VENV", *(PREFIX + name for name in FLAGS)})
_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False, "": False}


def _default_cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(base) / "torch_helion")


def switch(default: Any, help: str) -> Any:
    """A field of :class:`Switches`. A callable default is evaluated when the object is made."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """The values of all switches; immutable. Types may be bool, int, float or str."""

    strict: bool = switch(False, "raise an error of the backend instead of falling back")
    interpret: bool = switch(False, "run kernels by the tile IR's interpreter (reference mode)")
    check: bool = switch(True, "compare each new kernel with a float64 evaluation first")
    verify: bool = switch(False, "verify the tile IR after every pass, not only at the ends")
    cache_dir: str = switch(_default_cache_dir, "folder of the artifact cache (made private, 0700)")
    cache_limit_mb: int = switch(1024, "size of the cache above which old entries are removed")
    tune_budget: float = switch(2.0, "seconds of a search for each kernel in mode max-autotune")
    logs: str = switch("", "artefacts to log: capture,+code,-launch,all (see _logging)")
    dump: str = switch("", "folder that receives each stage of each kernel as a numbered file")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Switches:
        """The defaults, overridden by the variables in ``environ``."""
        environ = os.environ if environ is None else environ
        values = {}
        for name in fields():
            variable = _variable_of(name, environ)
            if variable is not None:
                values[name] = parse(name, environ[variable], variable)
        return cls(**values)

    def replace(self, **values: Any) -> Switches:
        """A copy with these fields changed; unknown names and wrong types raise."""
        return dataclasses.replace(self, **{name: _checked(name, v) for name, v in values.items()})


def fields() -> Mapping[str, type]:
    """Each switch and its type, in order of declaration."""
    global _fields
    if _fields is None:
        hints = typing.get_type_hints(Switches)
        names = [f.name for f in dataclasses.fields(Switches)]
        _fields = types.MappingProxyType({name: hints[name] for name in names})
    return _fields


def env_name(name: str) -> str:
    """The environment variable of a switch or setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The value, now, of a variable that is no field (a row of FLAGS); empty if it is not set."""
    return os.environ.get(PREFIX + name, os.environ.get(ALIAS + name, ""))


def parse(name: str, text: str, variable: str = "") -> Any:
    """The value of switch ``name`` that the text of its environment variable stands for."""
    return _value_of_text(_kind(name), text, variable or env_name(name))


def current() -> Switches:
    """The settings in force here: the innermost :func:`patch`, else the process's environment."""
    return _patched.get() or _process_settings()


def reload() -> Switches:
    """Forget what was read from the environment and read it again (for tests and notebooks)."""
    global _process
    with _lock:
        _process = None
    return _process_settings()


@contextlib.contextmanager
def patch(**values: Any) -> Iterator[Switches]:
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
    for cls in (Switches, Settings):
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            default = "" if f.default is dataclasses.MISSING else repr(f.default)
            rows.append(f"{env_name(f.name):32} {default:8} {f.metadata['help']}")
    return "\n".join(rows)


# ---------------------------------------------------------------------- settings of a kernel


class RefMode(enum.Enum):
    """Whether kernels are compiled (OFF) or run by the interpreter of the tile IR (EAGER)."""

    OFF = "off"
    EAGER = "eager"


def _setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[Any] = (),
    parser: Callable[[str], Any] | None = None,
    variable: str = "",
) -> Any:
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "parser": parser,
        "variable": variable,
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _dtype(text: str) -> Any:
    import torch  # this module is imported before torch is

    found = getattr(torch, text.strip().removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(text)
    return found


def _interpret(text: str) -> RefMode:
    return RefMode.EAGER if _WORDS[text.strip().lower()] else RefMode.OFF


def _json_object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(text)
    return found


_EFFORTS = ("none", "quick", "full")
_PRECISIONS = ("tf32", "tf32x3", "ieee", "default", "high", "highest")
_BACKENDS = ("auto", "llvm", "triton", "pallas", "cute", "tileir", "metal")


@dataclasses.dataclass(kw_only=True, init=False)
class Settings:
    """What one kernel was decorated with: arguments first, then the environment, then defaults.

    The environment is read when the object is made. Fields may be changed later; a kernel that was
    bound before keeps what it was compiled with.
    """

    static_shapes: bool = _setting(True, "compile one kernel for each set of sizes and strides")
    autotune_effort: str = _setting("full", "how long to search for a config", choices=_EFFORTS)
    index_dtype: Any = _setting(None, "dtype of indices (None: as sizes need)", parser=_dtype)
    dot_precision: str = _setting(
        "tf32",
        "precision of float32 products on targets with a choice",
        choices=_PRECISIONS,
        variable="TRITON_F32_DEFAULT",
    )
    fast_math: bool = _setting(False, "allow less exact mathematical functions")
    ignore_warnings: list[Any] = _setting([], "warning classes not to print", parser=_names)
    print_output_code: bool = _setting(False, "print the code of each kernel to stderr")
    print_repro: bool = _setting(False, "print a script that repeats the first call")
    output_origin_lines: bool = _setting(True, "quote the user's lines in generated code")
    ref_mode: RefMode = _setting(
        RefMode.OFF,
        "run by the interpreter instead of compiling",
        parser=_interpret,
        variable="INTERPRET",
    )
    backend: str = _setting("auto", "target (auto: by the device)", choices=_BACKENDS)
    force_autotune: bool = _setting(False, "search even where a config is given")
    autotune_config_overrides: dict[str, Any] = _setting(
        {}, "keys that every config of a search has", parser=_json_object
    )
    autotune_seed_configs: Any = _setting(None, "configs that a search starts from")
    autotune_config_filter: Any = _setting(None, "function that says whether a config may be tried")
    autotune_accuracy_check: bool = _setting(True, "compare candidates with the baseline")
    autotune_baseline_fn: Any = _setting(None, "function whose results are right")
    autotune_baseline_atol: float | None = _setting(None, "absolute tolerance of the comparison")
    autotune_baseline_rtol: float | None = _setting(None, "relative tolerance of the comparison")
    autotune_baseline_accuracy_check_fn: Any = _setting(None, "the comparison itself")
    autotune_budget_seconds: int | None = _setting(None, "end of a search, in seconds")
    autotune_max_generations: int | None = _setting(None, "end of a search, in rounds")
    autotune_random_seed: int | None = _setting(None, "seed of a search")
    autotune_best_of_k: int = _setting(1, "searches of which the best is taken")
    autotune_log_level: int = _setting(20, "level of a search's log; 0 is silence")
    autotune_log: str | None = _setting(None, "stem of the files that a search logs to")
    autotune_log_details: bool = _setting(False, "log each measurement")
    autotune_log_search_space: bool = _setting(False, "log what a search varies")
    autotune_log_search_space_path: str | None = _setting(None, "where that is logged")
    autotune_log_search_space_verbose: bool = _setting(False, "log more of it")
    autotune_progress_bar: bool = _setting(True, "show the progress of a search")
    autotune_precompile: str | None = _setting(
        None, "compile candidates elsewhere", choices=("fork", "spawn", None)
    )
    autotune_precompile_jobs: int | None = _setting(None, "processes that compile candidates")
    autotune_compile_timeout: int = _setting(60, "seconds for compiling a candidate")
    autotune_adaptive_timeout: bool = _setting(True, "shorten timeouts as a search goes on")
    autotune_benchmark_subprocess: bool = _setting(True, "measure in a process of its own")
    autotune_benchmark_timeout: int = _setting(30, "seconds for measuring a candidate")
    autotune_ignore_errors: bool = _setting(False, "go on when a candidate fails")
    autotune_rebenchmark_threshold: float = _setting(1.5, "measure again within this factor")
    autotune_suspicious_rebenchmark_ratio: float = _setting(0.9, "measure again if faster by this")
    autotune_benchmark_fn: Any = _setting(None, "the measurement itself")
    autotuner_fn: Any = _setting(None, "function that makes the search")
    autotune_initial_population_strategy: str | None = _setting(None, "how a search starts")
    autotune_best_available_max_configs: int = _setting(20, "cached configs a search starts from")
    autotune_best_available_max_cache_scan: int = _setting(500, "cache entries looked at for them")
    disable_autotuner_heuristics: bool = _setting(False, "search without first guesses")
    autotune_search_acf: list[Any] = _setting([], "control files to try", parser=_names)
    autotune_force_persistent: bool = _setting(False, "try persistent kernels only")
    autotune_cache: str = _setting("LocalAutotuneCache", "where results of searches are kept")
    persistent_reserved_sms: int = _setting(0, "processors that persistent kernels leave free")
    allow_warp_specialize: bool = _setting(True, "allow warp specialisation where there is any")
    debug_dtype_asserts: bool = _setting(False, "check dtypes of values in generated code")
    triton_do_not_specialize: bool = _setting(False, "arguments are no constants in Triton code")
    distributed: bool = _setting(False, "the kernel talks to other processes")
    pallas_interpret: bool = _setting(False, "interpret Pallas code")
    torch_compile_fusion: bool = _setting(False, "fuse neighbours of a kernel in torch.compile")
    autotune_with_torch_compile_fusion: bool = _setting(False, "search with these neighbours")

    def __init__(self, **values: Any) -> None:
        known = {f.name: f for f in dataclasses.fields(self)}
        for name in values:
            if name not in known:
                raise exc.invalid_option("setting", name, known)
        for name, f in known.items():
            setattr(self, name, values[name] if name in values else _from_environment(f))

    def __setattr__(self, name: str, value: Any) -> None:
        f = type(self).__dataclass_fields__.get(name)
        if f is None:
            raise exc.invalid_option("setting", name, type(self).__dataclass_fields__)
        choices = f.metadata["choices"]
        if choices and value not in choices:
            raise exc.InvalidValue(name, value, " or ".join(map(repr, choices)))
        object.__setattr__(self, name, _plain_setting(name, value))

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def get_rebenchmark_threshold(self) -> float:
        """How far from the best a config may be to be measured once more, as a factor."""
        return float(self.autotune_rebenchmark_threshold)

    def check_autotuning_disabled(self) -> None:
        """Raise ``exc.AutotuningDisallowedInEnvironment`` where the environment forbids tuning."""
        if flag("DISALLOW_AUTOTUNING") not in ("", "0"):
            raise exc.AutotuningDisallowedInEnvironment()

    def copy(self, **changes: Any) -> Settings:
        """The same settings with some of them changed."""
        return Settings(**{**self.to_dict(), **changes})


def _plain_setting(name: str, value: Any) -> Any:
    """``value`` as the field holds it; raises ``exc.InvalidValue`` for a wrong kind."""
    if name == "ref_mode" and not isinstance(value, RefMode):
        raise exc.InvalidValue(name, value, "a RefMode")
    if name == "ignore_warnings":
        for warning in value:
            known = isinstance(warning, str) or (
                isinstance(warning, type) and issubclass(warning, exc.BaseWarning)
            )
            if not known:
                raise exc.InvalidValue(name, warning, "classes of exc.BaseWarning, or their names")
        return list(value)
    f = Settings.__dataclass_fields__[name]
    if isinstance(f.default, bool) and not isinstance(value, bool | int):
        raise exc.InvalidValue(name, value, "True or False")
    return bool(value) if isinstance(f.default, bool) else value


def _from_environment(f: dataclasses.Field[Any]) -> Any:
    variable = _variable_of(f.metadata["variable"] or f.name, os.environ)
    if variable is None:
        factory = f.default_factory
        return f.default if factory is dataclasses.MISSING else factory()
    text, parser = os.environ[variable], f.metadata["parser"]
    if parser is None:
        kinds = {"bool": bool, "int": int, "float": float}
        first = str(f.type).split(" | ")[0]
        return _value_of_text(kinds.get(first, str), text, variable)
    try:
        return parser(text)
    except (KeyError, ValueError):
        raise exc.InvalidValue(variable, text, f.metadata["help"]) from None


# ---------------------------------------------------------------------- details


def _variable_of(name: str, environ: Mapping[str, str]) -> str | None:
    """The variable that says the value of a field: ours, else the language's own, else None."""
    if name.startswith("TRITON_"):
        return name if name in environ else None
    for prefix in (PREFIX, ALIAS):
        if (variable := prefix + name.upper()) in environ:
            return variable
    return None


def _value_of_text(kind: type, text: str, variable: str) -> Any:
    try:
        return _WORDS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = "1 or 0" if kind is bool else f"a value of type {kind.__name__}"
        raise exc.InvalidValue(variable, text, expected) from None


_fields: Mapping[str, type] | None = None
_process: Switches | None = None
_lock = threading.Lock()
_patched: contextvars.ContextVar[Switches | None] = contextvars.ContextVar(
    "torch_helion_settings", default=None
)


def _process_settings() -> Switches:
    global _process
    if _process is None:
        with _lock:
            if _process is None:
                _warn_of_unknown_variables()
                _process = Switches.from_environment()
    return _process


def _warn_of_unknown_variables() -> None:
    ours = (*fields(), *(f.name for f in dataclasses.fields(Settings)))
    known = {env_name(name) for name in ours} | NOT_SWITCHES
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
