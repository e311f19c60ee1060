"""docs/errors.md: every common mistake, what is said of it, and what to do. Made from the tests.

``python -m test.language.gallery`` writes the page; a test compares it with what is made now.
"""

from __future__ import annotations

import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch

import torch_helion as helion
from test.frontend.broken import BROKEN
from test.frontend.harness import run
from test.language.misuse import MISUSES
from torch_helion import exc

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# Errors: what is said, and what to do

Each mistake has a class of its own in `torch_helion.exc`; all derive from `exc.Base`, which is a
`RuntimeError`. A message names the class of mistake, quotes your line with a caret below the place,
and ends with what to do. Below is one program for each, with the message as it is printed (this
page is made from tests: `python -m test.language.gallery`).

Warnings are printed, not raised; `ignore_warnings=[exc.TensorOperationInWrapper]` (or the base
class `exc.BaseWarning`) silences them for a kernel.
"""


def raised(error: type[exc.Base], call: Callable[[], Any]) -> exc.Base:
    """What a call raises."""
    try:
        call()
    except error as found:
        return found
    raise AssertionError(f"{error.__name__} was not raised")


def of_kernel(error: type[exc.Base], fn: Callable[..., Any], args: Any) -> exc.Base:
    """What a broken kernel raises."""
    if fn.__name__ in ("open_size", "tunable_up_to_argument"):
        return raised(error, lambda: helion.kernel(fn).bind(args))
    return raised(error, lambda: run(fn, *args))


def _source(fn: Callable[..., Any]) -> tuple[list[str], int]:
    """The lines of a function without its decorators and marks, and the number of the first."""
    lines, first = inspect.getsourcelines(fn)
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))
    plain = [re.sub(r"\s+# (noqa|here|type).*$", "", line.rstrip()) for line in lines[start:]]
    return textwrap.dedent("\n".join(plain)).split("\n"), first + start


def _spaced(lines: list[str]) -> list[str]:
    """The lines of a program of its own: two blank lines around functions and classes."""
    found: list[str] = []
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        outer = after[:1] not in ("", " ")
        opens = after.startswith(("def ", "class ", "@"))
        found += ["", ""] if not line and outer and (opens or before.startswith(" ")) else [line]
    return found


def _message(error: exc.Base, file: str, first: int) -> str:
    """The text of an error as if the program were a file of its own."""
    text = re.sub(r"\s+# (noqa|here|type).*", "", str(error))

    def place(found: re.Match[str]) -> str:
        return f'File "kernel.py", line {int(found[1]) - first + 1}'

    text = re.sub(rf'File "{re.escape(file)}", line (\d+)', place, text)
    return re.sub(r"\bs[0-9]+\b", "n", text)


def _entry(error: exc.Base, program: list[str], first: int, file: str) -> str:
    message = _message(error, file, first)
    return "\n".join(["```python", *program, "```", "", "```text", message, "```", ""])


def entries() -> Iterator[tuple[type[exc.Base], str]]:
    """Each class, and the text of one mistake."""
    torch.manual_seed(0)
    for error, fn, args in BROKEN:
        program, first = _source(fn)
        file = inspect.getsourcefile(fn) or ""
        found = of_kernel(error, fn, args)
        yield type(found), _entry(found, program, first, file)
    for error, call in MISUSES:
        program, first = _source(call)
        body = _spaced(textwrap.dedent("\n".join(program[1:])).split("\n"))
        file = inspect.getsourcefile(call) or ""
        found = raised(error, call)
        yield type(found), _entry(found, body, first + 1, file)


def page() -> str:
    """The text of the page."""
    found: dict[type[exc.Base], list[str]] = {}
    for error, text in entries():
        found.setdefault(error, []).append(text)
    parts = [HEAD]
    for error in sorted(found, key=lambda e: e.__name__):
        title = inspect.getdoc(error) or ""
        parts += [f"## `{error.__name__}`\n\n{title}\n", *found[error]]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
