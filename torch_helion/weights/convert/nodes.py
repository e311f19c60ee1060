"""What a pickle becomes here: inert nodes that say what would have been called, and call nothing.

What flows in: opcodes (``opcodes``). What flows out: a tree of these nodes and of plain ints,
floats, strings, bytes, tuples and lists. Nothing in it can run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """An object that a call would have made."""

    function: Any
    args: Any
    state: Any = None
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    """items that would have been set: of an OrderedDict, a defaultdict, ..."""
    items: list[Any] = field(default_factory=list)
    """items that would have been appended"""

    def __str__(self) -> str:
        return f"<call {self.function if isinstance(self.function, Global) else '?'}>"


@dataclass(slots=True, eq=False)
class DictNode:
    """A dict; its keys may be nodes, so it is a list of pairs."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The last value of a string key, as in a dict; None if there is none."""
        return next((v for k, v in reversed(self.pairs) if type(k) is str and k == key), None)


@dataclass(slots=True, eq=False)
class SetNode:
    """A set or frozenset."""

    items: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Persistent:
    """A reference to something outside of the pickle: a storage."""

    id: Any


class Mark:
    """The mark on the stack; one object."""
