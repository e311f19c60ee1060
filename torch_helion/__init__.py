"""Tile kernels: ``@torch_helion.kernel``, and ``torch.compile(model, backend="helion")``.

Public names are resolved on first use (PEP 562), so that importing this package neither imports
torch's compiler nor logs, probes or compiles anything. What flows in: a user's ``import
torch_helion``. What flows out: the names in ``__all__``, each from the one module that defines it.
Nothing inside the package imports from here.

Importing the package is not needed for the backend's name where the distribution is installed:
torch finds ``"helion"`` through the ``torch_dynamo_backends`` entry points.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING

from torch_helion import _elsewhere
from torch_helion.capture import backend as _backend

if TYPE_CHECKING:  # what type checkers and editors see; at run time `__getattr__` does this work
    from torch_helion import autotuner as autotuner
    from torch_helion import exc as exc
    from torch_helion import experimental as experimental
    from torch_helion import language as language
    from torch_helion import runtime as runtime
    from torch_helion import settings as settings
    from torch_helion import testing as testing
    from torch_helion import weights as weights
    from torch_helion.config import Config as Config
    from torch_helion.explain import explain as explain
    from torch_helion.kernel.bound import OutputCodeOptions as OutputCodeOptions
    from torch_helion.kernel.decorator import Kernel as Kernel
    from torch_helion.kernel.decorator import kernel as jit
    from torch_helion.kernel.decorator import kernel as kernel
    from torch_helion.kernel.experimental import aot_kernel as aot_kernel
    from torch_helion.kernel.experimental import from_cache as from_cache
    from torch_helion.kernel.integers import cdiv as cdiv
    from torch_helion.kernel.integers import next_power_of_2 as next_power_of_2
    from torch_helion.runtime.launcher import empty_cache as empty_cache
    from torch_helion.settings import RefMode as RefMode
    from torch_helion.settings import Settings as Settings
    from torch_helion.tuning import load_configs as load_configs
    from torch_helion.tuning import save_configs as save_configs
    from torch_helion.tuning import tune as tune

__version__ = "0.1.0"

# name -> (module, attribute; "" = the module itself). One row per public name.
_PUBLIC: dict[str, tuple[str, str]] = {
    "Config": ("torch_helion.config", "Config"),
    "Kernel": ("torch_helion.kernel.decorator", "Kernel"),
    "OutputCodeOptions": ("torch_helion.kernel.bound", "OutputCodeOptions"),
    "RefMode": ("torch_helion.settings", "RefMode"),
    "Settings": ("torch_helion.settings", "Settings"),
    "aot_kernel": ("torch_helion.kernel.experimental", "aot_kernel"),
    "autotuner": ("torch_helion.autotuner", ""),
    "cdiv": ("torch_helion.kernel.integers", "cdiv"),
    "empty_cache": ("torch_helion.runtime.launcher", "empty_cache"),
    "exc": ("torch_helion.exc", ""),
    "experimental": ("torch_helion.experimental", ""),
    "explain": ("torch_helion.explain", "explain"),
    "from_cache": ("torch_helion.kernel.experimental", "from_cache"),
    "jit": ("torch_helion.kernel.decorator", "kernel"),
    "kernel": ("torch_helion.kernel.decorator", "kernel"),
    "language": ("torch_helion.language", ""),
    "load_configs": ("torch_helion.tuning", "load_configs"),
    "next_power_of_2": ("torch_helion.kernel.integers", "next_power_of_2"),
    "runtime": ("torch_helion.runtime", ""),
    "save_configs": ("torch_helion.tuning", "save_configs"),
    "settings": ("torch_helion.settings", ""),
    "testing": ("torch_helion.testing", ""),
    "tune": ("torch_helion.tuning", "tune"),
    "weights": ("torch_helion.weights", ""),
}

__all__ = [
    "Config",
    "Kernel",
    "OutputCodeOptions",
    "RefMode",
    "Settings",
    "__version__",
    "aot_kernel",
    "autotuner",
    "cdiv",
    "empty_cache",
    "exc",
    "experimental",
    "explain",
    "from_cache",
    "jit",
    "kernel",
    "language",
    "load_configs",
    "next_power_of_2",
    "runtime",
    "save_configs",
    "settings",
    "testing",
    "tune",
    "weights",
]


def __getattr__(name: str) -> object:
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'torch_helion' has no attribute {name!r}") from None
    found: object = importlib.import_module(module)
    if attribute:
        found = getattr(found, attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """A public function may have its module's name (`explain`): the function keeps it.

    The import system binds a submodule as an attribute of its package, whoever imports it first.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and _PUBLIC.get(name, ("", ""))[1]):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

_elsewhere.install()
_backend.register()  # so that torch finds the name in a checkout that is not installed, too
