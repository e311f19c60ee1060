"""The syntax tree of a Python function, and places in the user's file.

In: functions and lambdas. Out: `Source`: the tree, with the file's own line numbers and columns.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import linecache
import textwrap
import types
from collections.abc import Sequence
from typing import Any

from torch_helion import exc


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A function's tree. `node` is a FunctionDef or a Lambda."""

    node: ast.FunctionDef | ast.Lambda
    file: str
    name: str

    @property
    def parameters(self) -> ast.arguments:
        return self.node.args

    @property
    def body(self) -> list[ast.stmt]:
        if isinstance(self.node, ast.Lambda):
            value = ast.copy_location(ast.Return(self.node.body), self.node.body)
            return [value]
        return self.node.body

    def at(self, node: ast.AST) -> exc.SourceLocation:
        """Where a node of the tree stands."""
        line = getattr(node, "lineno", getattr(self.node, "lineno", 0))
        column = getattr(node, "col_offset", None)
        end = getattr(node, "end_col_offset", None)
        if getattr(node, "end_lineno", line) != line:
            end = None
        return exc.SourceLocation(self.file, line, column, end, self.name)


@functools.lru_cache(maxsize=1024)
def source_of(code: types.CodeType) -> Source | None:
    """The tree of the function with this code; None where there is no source."""
    found = _lines_of(code)
    if found is None:
        return None
    lines, first, file = found
    if code.co_name == "<lambda>":
        return _lambda_source(code, file)
    tree = _parsed(lines, first)
    node = (
        next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)), None) if tree else None
    )
    return None if node is None else Source(node, file, node.name)


def _lines_of(code: types.CodeType) -> tuple[list[str], int, str] | None:
    """The lines of a function, the number of the first, the file."""
    file, first = code.co_filename, code.co_firstlineno
    whole = linecache.getlines(file)
    if 0 < first <= len(whole):
        return inspect.getblock(whole[first - 1 :]), first, file
    try:  # slow: looks through all modules
        lines, first = inspect.getsourcelines(code)
        return lines, max(first, 1), inspect.getsourcefile(code) or file
    except (OSError, TypeError):
        return None


def _parsed(lines: list[str], first: int) -> ast.Module | None:
    text = "".join(lines)
    plain = textwrap.dedent(text)
    indent = len(lines[0]) - len(lines[0].lstrip())
    try:
        tree = ast.parse(plain)
    except SyntaxError:  # a comment or string further left: give the function a block to stand in
        try:
            tree = ast.parse("if 1:\n" + text)
        except SyntaxError:
            return None
        indent, first = 0, first - 1
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            _move(node, first - 1, indent)
    return tree


def _move(node: Any, lines: int, columns: int) -> None:
    node.lineno += lines
    node.col_offset += columns
    if node.end_lineno is not None:
        node.end_lineno += lines
        node.end_col_offset += columns


def _lambda_source(code: types.CodeType, file: str) -> Source | None:
    """The lambda of this code among those of its file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return None
    names = code.co_varnames[: code.co_argcount]
    found = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Lambda)
        and n.lineno <= code.co_firstlineno <= (n.end_lineno or n.lineno)
        and tuple(a.arg for a in n.args.args) == names
    ]
    exact = [n for n in found if _covers(n, code)]
    candidates = exact or found
    same = {ast.dump(n) for n in candidates}
    return Source(candidates[0], file, "<lambda>") if len(same) == 1 else None


def _covers(node: ast.Lambda, code: types.CodeType) -> bool:
    """Whether the code's positions are those of the lambda's body (Python 3.11 and later)."""
    positions = getattr(code, "co_positions", None)
    if positions is None:
        return False
    spans = {p for p in positions() if p[2] is not None and p[0] is not None}
    body = node.body
    return (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset) in spans


def place_in(code: types.CodeType, instruction: int, line: int) -> exc.SourceLocation:
    """Where an instruction of a code object comes from (columns: Python 3.11 and later)."""
    positions = getattr(code, "co_positions", None)
    column = end = None
    if positions is not None:
        _, last, column, end = next(itertools.islice(positions(), instruction // 2, None))
        end = end if last == line else None
    return exc.SourceLocation(code.co_filename, line, column, end, code.co_name)


def assigned_names(nodes: Sequence[ast.AST]) -> list[str]:
    """Names that statements assign, in the order of their first assignment."""
    found: dict[str, None] = {}
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
                found.setdefault(inner.id)
    for name in _comprehension_names(nodes):
        found.pop(name, None)
    return list(found)


def _comprehension_names(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that only comprehensions bind."""
    inside: set[str] = set()
    outside: set[str] = set()

    def visit(node: ast.AST, hidden: bool) -> None:
        if isinstance(node, ast.comprehension):
            visit(node.target, True)
            for child in (node.iter, *node.ifs):
                visit(child, hidden)
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            (inside if hidden else outside).add(node.id)
        for below in ast.iter_child_nodes(node):
            visit(below, hidden)

    for node in nodes:
        visit(node, False)
    return inside - outside


def read_names(nodes: Sequence[ast.AST]) -> list[str]:
    """Names that nodes read, in order."""
    found: dict[str, None] = {}
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                found.setdefault(inner.id)
            elif isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
                found.setdefault(inner.target.id)
    return list(found)


MISSING = object()


def static_value(node: ast.AST, space: Any) -> Any:
    """What a name or a chain of attributes means in the globals `space`; MISSING if nothing."""
    if isinstance(node, ast.Name):
        return space.get(node.id, MISSING)
    if isinstance(node, ast.Attribute):
        owner = static_value(node.value, space)
        if isinstance(owner, types.ModuleType):
            return getattr(owner, node.attr, MISSING)
    return MISSING
