"""Lines of a kernel under construction, and names that are not taken twice.

Lines can be added later at a `Slot`: positions and masks of an axis are written where its tile
begins, and only once something uses them.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_TAKEN = {*keyword.kwlist, "float", "max", "tl", "triton", "torch", "libdevice", "launch"}
"""What generated text uses itself."""


class Names:
    """Gives each thing a name of its own, close to what a reader expects."""

    def __init__(self) -> None:
        self._taken: set[str] = set(_TAKEN)

    def fresh(self, hint: str) -> str:
        stem = re.sub(r"\W", "_", hint) or "v"
        stem = f"v{stem}" if stem[0].isdigit() or stem == "_" else stem
        stem = stem.lstrip("_") or "v"  # helpers begin with an underscore
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def copy(self) -> Names:
        other = Names()
        other._taken = set(self._taken)
        return other


@dataclass
class Slot:
    """A place for lines that are found to be needed later."""

    depth: int
    lines: list[str] = field(default_factory=list)


class Writer:
    def __init__(self) -> None:
        self._parts: list[str | Slot] = []
        self.depth = 1

    def line(self, text: str) -> None:
        self._parts.append("    " * self.depth + text)

    def slot(self) -> Slot:
        slot = Slot(self.depth)
        self._parts.append(slot)
        return slot

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A compound statement; `pass` stands in an empty one."""
        self.line(head)
        self.depth += 1
        before = len(self._parts)
        yield
        if not any(isinstance(p, str) or p.lines for p in self._parts[before:]):
            self.line("pass")
        self.depth -= 1

    def text(self) -> list[str]:
        lines: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                lines.append(part)
            else:
                lines += ["    " * part.depth + line for line in part.lines]
        return lines
