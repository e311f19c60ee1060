"""``torch.compile(model, backend="helion")``: the backend function, and how torch finds it by name.

What flows in: a graph of dynamo with example inputs, ``mode`` and ``options``. What flows out: the
compiled callable. torch calls :func:`helion`; ``import torch_helion`` calls :func:`register`, so
that the name also resolves where the package lies on the path without being installed.

Importing this module loads neither torch nor Inductor; the first compilation does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

NAMES = ("helion", "torch_helion")
_GROUP = "torch_dynamo_backends"
_TARGET = "torch_helion.capture.backend:helion"
_REGISTRY = "torch._dynamo.backends.registry"


def helion(
    gm: Any,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile one graph: our kernels inside the program that Inductor makes of the rest.

    A wrong mode or option raises ``exc.InvalidOption``; any other failure becomes a fallback
    (plain Inductor, else eager) with a logged reason, unless ``settings.strict`` is on.
    """
    # Inductor takes a second to import: a process that compiles nothing does not pay for it.
    from torch_helion.capture import hosting

    return hosting.compile_graph(gm, example_inputs, mode, options, unknown)


def _reset() -> None:
    hosting = sys.modules.get("torch_helion.capture.hosting")
    if hosting is not None:
        hosting.reset()


helion.reset = _reset  # type: ignore[attr-defined]  # torch.compiler.reset() calls it


def register() -> None:
    """Make ``backend="helion"`` known to torch, installed or not; may be called again."""
    registry = sys.modules.get(_REGISTRY)
    if registry is None:  # torch asks for entry points later, at the first name it does not know
        if not any(isinstance(finder, _EntryPointFinder) for finder in sys.meta_path):
            sys.meta_path.append(_EntryPointFinder())
        return
    for name in NAMES:
        if name not in registry._BACKENDS and name not in registry._COMPILER_FNS:
            registry.register_backend(helion, name=name)


class _EntryPointFinder:
    """Shows our entry points to ``importlib.metadata`` as an installed distribution would.

    An installed copy comes first on ``sys.meta_path`` and wins, since both have one name.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: Any = None) -> Iterable[Any]:
        if getattr(context, "name", None) is not None:
            return []  # we are not installed: a query by name must say so
        return [_distribution()]


def _distribution() -> Any:
    from importlib import metadata  # slow to import, and torch has loaded it when it asks

    class Distribution(metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            if filename == "entry_points.txt":
                return f"[{_GROUP}]\n" + "".join(f"{name} = {_TARGET}\n" for name in NAMES)
            if filename in ("METADATA", "PKG-INFO", ""):
                return "Metadata-Version: 2.1\nName: torch-helion\nVersion: 0\n"
            return None

        def locate_file(self, path: Any) -> Any:
            return path

    return Distribution()
