"""Module paths under which programs written for Helion look for public names.

In: an import of a path of :data:`PATHS`. Out: a module that has the names of the module here. The
names themselves live in one place; nothing is imported before somebody asks for it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_RUNTIME = "config kernel ref_mode settings"
_AUTOTUNER = """
base_search benchmarking config_fragment config_generation differential_evolution finite_search
local_cache pattern_search random_search
"""

PATHS = {
    **{f"torch_helion.runtime.{n}": "torch_helion.runtime.public" for n in _RUNTIME.split()},
    **{f"torch_helion.autotuner.{n}": "torch_helion.autotuner.names" for n in _AUTOTUNER.split()},
    "torch_helion.autotuner.config_spec": "torch_helion.config_spec",
    "torch_helion._utils": "torch_helion.kernel.integers",
}


class _Stand(types.ModuleType):
    """Called where a function has the module's name (`helion.runtime.kernel`)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(PATHS[self.__name__]), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in PATHS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stand(spec.name, f"Names of {PATHS[spec.name]}.")

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Make the paths importable; once."""
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.append(_Finder())
