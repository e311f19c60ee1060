"""Rules that no linter knows: lengths, docstrings, no pickles, no evaluated text, no hosts."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 800
FOLDERS = ("torch_helion", "csrc", "test", "tools", "benchmarks", "examples", "docs", ".ci")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cpp", ".h", ".cmake", ".json", ".cfg", ""}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
# Written in pieces, since this file is read as well.
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("anaconda", "org"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
    )
)


def text_files() -> list[pathlib.Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [
        path
        for path in sorted(found)
        if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
    ]


def python_files(*folders: str) -> list[pathlib.Path]:
    return [
        p for p in text_files() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in folders
    ]


def unsafe_uses(text: str) -> list[str]:
    """Imports of modules that execute what they read, and calls that evaluate text."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"line {node.lineno}: import {n}" for n in names if n in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "builtins.eval", "builtins.exec", "torch.load"):
                found.append(f"line {node.lineno}: {called}(...)")
    return found


def too_long(text: str) -> bool:
    lines = text.count("\n")
    return lines > LONGEST and not re.search(r"^\W*File length: \S", text, re.MULTILINE)


def named_hosts(text: str) -> list[str]:
    return [host for host in HOSTS if host in text]


@pytest.mark.parametrize("path", python_files("torch_helion"), ids=lambda p: p.name)
def test_package_is_documented_and_safe(path: pathlib.Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says what flows in and out"
    assert unsafe_uses(text) == []


def test_files_are_short_enough() -> None:
    code = [p for p in text_files() if p.suffix in (".py", ".cpp", ".h")]
    assert [str(p.relative_to(ROOT)) for p in code if too_long(p.read_text())] == []


def test_no_registry_is_named() -> None:
    named = {str(p.relative_to(ROOT)): named_hosts(p.read_text()) for p in text_files()}
    assert {path: hosts for path, hosts in named.items() if hosts} == {}


def test_scripts_are_strict() -> None:
    """Each shell script stops at its first error."""
    scripts = [p for p in text_files() if p.read_text().startswith("#!/usr/bin/env bash")]
    assert len(scripts) >= 4
    assert [p.name for p in scripts if "set -euo pipefail" not in p.read_text()] == []


def test_the_rules_find_what_they_should() -> None:
    assert unsafe_uses("import pickle") and unsafe_uses("from pickle import loads")
    assert unsafe_uses("def f():\n    import marshal")
    assert unsafe_uses("eval('1')") and unsafe_uses("exec(text)") and unsafe_uses("torch.load(f)")
    assert not unsafe_uses("model.eval()\nimport json\nself.exec(x)")
    assert too_long("\n" * 801) and not too_long("\n" * 800)
    assert not too_long('"""Table.\n\nFile length: one table of all ops.\n"""' + "\n" * 900)
    assert named_hosts("https://files." + "pythonhosted" + ".org/x")
