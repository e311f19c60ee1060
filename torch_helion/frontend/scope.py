"""Names while device code is being traced.

In: a function's globals and cells, or the values of a launch. Out: `Scope`: what each name means
now.
"""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch_helion import exc
from torch_helion.frontend.source import Source


class NotYet(Exception):
    """A name has no value in a scope."""


@dataclasses.dataclass(eq=False)
class Scope:
    """The names of one function on the device (or of the loops of a kernel)."""

    source: Source
    space: Mapping[str, Any]
    """the function's globals"""
    host: Callable[[str], Any] | None = None
    """for a kernel's loops: a value of the host; raises NotYet"""
    host_names: frozenset[str] = frozenset()
    cells: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    loop_names: frozenset[str] = frozenset()
    """names that are defined in a loop or an arm that does not reach here"""
    lifted: Callable[[Mapping[str, Any], str], Any] | None = None
    """for a function: what a name of a module means"""

    @property
    def is_helper(self) -> bool:
        return self.host is None

    def get(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name in self.cells:
            return self.cells[name]
        if self.host is not None:
            try:
                return self.host(name)
            except NotYet:
                pass
        if name in self.space:
            return self.lifted(self.space, name) if self.lifted else self.space[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise exc.UndefinedVariable(name)

    def set(self, name: str, value: Any) -> None:
        if name in self.host_names:
            raise exc.CannotModifyHostVariableOnDevice(name)
        self.names[name] = value

    def knows(self, name: str) -> bool:
        """Whether the device part has given the name a value."""
        return name in self.names
