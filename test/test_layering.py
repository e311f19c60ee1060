"""Imports only go down: the floors of the package, read from the text of its files."""

from __future__ import annotations

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "torch_helion"

# Lowest first. Packages of one floor are siblings and never import each other; the single modules
# of the first and the last floor may import those that stand before them in their row.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_C", "exc", "source_location", "settings", "config_spec", "config", "_logging", "_hardware"),
    ("ir",),
    ("language", "lowering", "passes", "runtime", "weights"),
    ("frontend", "codegen"),
    ("compiler",),
    ("autotuner",),
    ("kernel",),
    ("capture",),
    (
        "explain",
        "experimental",
        "tuning",
        "testing",
        "_unittest",
        "_testing",
        "_compat",
        "_elsewhere",
        "__init__",
        "cli",
        "__main__",
    ),
)
ORDERED_ROWS = (0, len(FLOORS) - 1)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# The one file that knows Inductor's internals.
INDUCTOR_FILE = "capture/inductor_compat.py"


def part_of(path: str) -> str:
    """``"ir/graph.py"`` → ``"ir"``, ``"exc.py"`` → ``"exc"``."""
    return path.split("/")[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of everything imported, at any depth; relative ones start with a dot."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def attribute_chains(tree: ast.AST) -> list[tuple[int, str]]:
    """``torch._inductor`` written as an attribute, not as an import."""
    return [
        (node.lineno, f"{node.value.id}.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]


def may_import(source: str, target: str) -> bool:
    """May a module of part ``source`` import one of part ``target``?"""
    if source == target:
        return True
    low, high = FLOOR_OF[target], FLOOR_OF[source]
    if low == high and low in ORDERED_ROWS:
        row = FLOORS[low]
        return row.index(target) < row.index(source)
    return low < high


def violations(files: dict[str, str]) -> list[str]:
    """One sentence per forbidden import in ``files`` (path below the package → text)."""
    found = []
    for path, text in sorted(files.items()):
        tree = ast.parse(text)
        source = part_of(path)
        if source not in FLOOR_OF:
            found.append(f"{path}: {source!r} has no floor")
            continue
        for line, name in imported_modules(tree):
            if problem := _problem(path, source, name):
                found.append(f"{path}:{line}: {problem}")
        for line, name in imported_modules(tree) + attribute_chains(tree):
            if name.startswith("torch._inductor") and path != INDUCTOR_FILE:
                found.append(f"{path}:{line}: torch._inductor belongs to {INDUCTOR_FILE}")
        only_text = all(isinstance(s, ast.Expr | ast.ImportFrom) for s in tree.body)
        if path.endswith("/__init__.py") and not (only_text and len(tree.body) <= 2):
            found.append(f"{path}: the __init__ of a package holds its docstring only")
    return found


def _problem(path: str, source: str, name: str) -> str | None:
    if name.startswith("."):
        return f"relative import {name}"
    parts = name.split(".")
    if parts[0] != "torch_helion":
        return None
    if len(parts) == 1:
        return "import of the whole package"
    target = parts[1]
    if target not in FLOOR_OF:
        return f"{target!r} has no floor"
    if not may_import(source, target):
        return f"{source} (floor {FLOOR_OF[source]}) imports {target} (floor {FLOOR_OF[target]})"
    # A target of codegen never sees another one, and what targets share sees none.
    here = path.split("/")
    of_target = (
        source == target == "codegen" and (PACKAGE / "codegen" / "/".join(parts[2:3])).is_dir()
    )
    if of_target and len(parts) > 2 and here[1] != parts[2]:
        return f"codegen/{here[1]} imports the target {parts[2]}"
    return None


def test_imports_go_down() -> None:
    files = {
        path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    assert files
    assert violations(files) == []


# What the checker must find, planted.


def test_allowed_imports_pass() -> None:
    assert violations({"ir/graph.py": "from torch_helion import exc\nimport torch\n"}) == []
    assert violations({"ir/graph.py": "from torch_helion.ir.types import Axis\n"}) == []
    assert violations({"settings.py": "from torch_helion import exc\n"}) == []
    assert violations({"capture/inductor_compat.py": "import torch._inductor.ir\n"}) == []
    assert violations({"ir/__init__.py": '"""Docstring."""\n'}) == []
    assert violations({"ir/__init__.py": ""}) == []


def test_planted_upward_import_is_found() -> None:
    for text in (
        "from torch_helion.capture import backend",
        "from torch_helion import capture",
        "import torch_helion.capture.backend",
        "def f():\n    from torch_helion.capture.backend import helion",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch_helion.capture.x",
    ):
        (problem,) = violations({"ir/graph.py": text})
        assert "imports capture" in problem


def test_planted_sideways_import_is_found() -> None:
    assert violations({"passes/a.py": "from torch_helion.runtime import launcher"})
    assert violations({"exc.py": "from torch_helion import settings"})
    assert violations({"explain.py": "from torch_helion import cli"})


def test_planted_relative_and_whole_imports_are_found() -> None:
    assert "relative" in violations({"ir/a.py": "from . import graph"})[0]
    assert "relative" in violations({"ir/a.py": "from .graph import Kernel"})[0]
    assert "whole" in violations({"ir/a.py": "import torch_helion"})[0]


def test_planted_unknown_part_is_found() -> None:
    assert "no floor" in violations({"helpers.py": ""})[0]
    assert "no floor" in violations({"ir/a.py": "import torch_helion.helpers"})[0]


def test_planted_inductor_import_is_found() -> None:
    for text in (
        "import torch._inductor.config",
        "from torch._inductor import ir",
        "import torch\ntorch._inductor.config",
    ):
        (problem,) = violations({"capture/backend.py": text})
        assert "inductor_compat" in problem


def test_planted_target_import_is_found() -> None:
    text = "from torch_helion.codegen.llvm import engine"
    assert "target llvm" in violations({"codegen/target.py": text})[0]
    assert "target llvm" in violations({"codegen/triton/kernel.py": text})[0]
    assert violations({"codegen/llvm/kernel.py": text}) == []


def test_planted_code_in_an_init_is_found() -> None:
    assert "docstring only" in violations({"ir/__init__.py": "x = 1"})[0]
    assert "docstring only" in violations({"ir/__init__.py": "import os"})[0]
