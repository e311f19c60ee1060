"""Generated text as a module."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import tempfile
from types import ModuleType

_numbers = itertools.count()
_folder = tempfile.TemporaryDirectory(prefix="torch_helion_triton_")


def module_of(text: str) -> ModuleType:
    """The text as a module with a file of its own: Triton reads the source of its functions."""
    path = pathlib.Path(_folder.name) / f"generated_{next(_numbers)}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
