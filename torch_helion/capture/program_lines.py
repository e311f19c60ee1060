"""Lines of the program that Inductor writes: runs of allocations and launches become one call each.

What flows in: Inductor's lines after memory planning, as objects that write themselves. What flows
out: the same program with fewer lines. Knows lines by the names of their classes and by what they
write; used by :mod:`torch_helion.capture.inductor_compat` only.

Before → after:

    buf0 = empty_strided_cpu(...); k0(x, buf0, 8)        buf0, buf1 = allocate(spec)
    buf1 = empty_strided_cpu(...); k1(buf0, buf1, 8)  →  launch(k0, x, buf0, 8, k1, buf0, buf1, 8)
    del buf0                                             del buf0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import sympy

from torch_helion import exc

# Bytes: below, one call fewer is worth more than a buffer that lives a little longer.
BIG = 1 << 20

_ALLOCATION = re.compile(r"(\w+) = empty_strided_cpu\((\(.*\)), (\(.*\)), (torch\.\w+)\)")
_REUSE = re.compile(r"(\w+) = (\w+|reinterpret_tensor\(.*\)); ?(?:del (\w+))?;? *(?:#.*)?")
_FREES = ("FreeLine", "FreeIfNotReusedLine")


def merge(
    lines: Sequence[Any],
    merged: Callable[[Sequence[Any]], Any],
    bytes_of: Callable[[Any], int],
) -> list[Any]:
    """Runs with a launch and something else to merge become one line each, made by ``merged``.

    A run ends before an allocation that follows the end of a big buffer: its memory is wanted.
    """
    result: list[Any] = []
    run: list[Any] = []

    def close() -> None:
        comments: list[Any] = []
        while run and _is_comment(run[-1]):  # a trailing comment belongs to what follows
            comments.insert(0, run.pop())
        worth = sum(_kind(x) in ("LaunchLine", "AllocateLine") for x in run)
        launches = any(_kind(x) == "LaunchLine" for x in run)
        result.extend([merged(tuple(run))] if launches and worth > 1 else run)
        result.extend(comments)
        run.clear()

    freed_much = False
    for line in lines:
        if _kind(line) == "AllocateLine" and freed_much:
            close()
            freed_much = False
        if _may_merge(line):
            run.append(line)
            freed_much = freed_much or _frees_much(line, bytes_of)
        else:
            close()
            result.append(line)
            freed_much = False
    close()
    return result


def _kind(line: Any) -> str:
    return type(line).__name__


def _is_comment(line: Any) -> bool:
    """Whether a line is for readers only."""
    if isinstance(line, str):
        return line.lstrip().startswith("#")
    return _kind(line) in ("CommentLine", "LineContext")


def _may_merge(line: Any) -> bool:
    if _kind(line) == "AllocateLine":
        return not getattr(line, "comm_buffer", False) and line.node.get_device().type == "cpu"
    return _kind(line) in ("LaunchLine", "ReuseLine", "NullLine", *_FREES) or _is_comment(line)


def _frees_much(line: Any, bytes_of: Callable[[Any], int]) -> bool:
    if _kind(line) not in _FREES or getattr(line, "is_reused", False):
        return False
    return bytes_of(line.node) >= BIG


# ---------------------------------------------------------------------- text


def merged_text(lines: Sequence[Any], constant: Callable[[str], str], launcher: str) -> list[Any]:
    """Allocations, then aliases, then one launch, then one deletion.

    Right because every name is defined once, launches keep their order, and the memory of a buffer
    that is reused under a new name has both names until the end. ``constant`` gives an expression
    without sizes of run time a name that is evaluated once.
    """
    comments: list[Any] = []
    allocations: list[tuple[str, str]] = []
    aliases: list[str] = []
    launches: list[Any] = []
    deleted: list[str] = []
    static = True
    for line in lines:
        if _kind(line) == "LaunchLine":
            launches.append(line)
            continue
        if _is_comment(line):
            comments.append(getattr(line, "line", line))
            continue
        if _kind(line) == "AllocateLine":
            sizes = (*line.node.get_size(), *line.node.get_stride())
            static = static and all(sympy.sympify(s).is_Integer for s in sizes)
        for text in _texts_of(line):
            if found := _ALLOCATION.fullmatch(text):
                allocations.append((found[1], f"({found[2]}, {found[3]}, {found[4]})"))
            elif found := _REUSE.fullmatch(text):
                aliases.append(f"{found[1]} = {found[2]}")
                deleted.extend([found[3]] if found[3] else [])
            elif text.startswith("del "):
                deleted.append(text.removeprefix("del "))
            elif text:
                raise exc.CaptureError(f"a line that cannot be merged: {text!r}")
    result = [*comments, *_allocation_text(allocations, constant if static else str), *aliases]
    result += _launch_text(launches, launcher)
    return result + ([f"del {', '.join(deleted)}"] if deleted else [])


def _allocation_text(buffers: list[tuple[str, str]], constant: Callable[[str], str]) -> list[str]:
    if len(buffers) <= 1:
        return [f"{name} = empty_strided_cpu{spec}" for name, spec in buffers]
    names, specs = zip(*buffers, strict=True)
    spec = constant(f"({', '.join(specs)})")
    return [f"{', '.join(names)} = torch_helion_C.allocate({spec})"]


def _launch_text(launches: list[Any], launcher: str) -> list[str]:
    if len(launches) == 1:
        return [f"{launches[0].name}({', '.join(launches[0].arguments)})"]
    words = [word for line in launches for word in (line.name, *line.arguments)]
    return [f"{launcher}({', '.join(words)})"] if launches else []


def _texts_of(line: Any) -> list[str]:
    written: list[str] = []
    line.codegen(_Lines(written))
    return written


class _Lines:
    """As much of Inductor's text buffer as a line needs that writes itself."""

    def __init__(self, lines: list[str]) -> None:
        self.writeline = lambda line: lines.append(str(line))
