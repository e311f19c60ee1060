"""Heavy tensor operations of a host part, seen while it runs: also in functions that it calls.

In: a `HostFunction` that runs inside of a `Watch`. Out: warnings with the place in the kernel.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

from torch.overrides import TorchFunctionMode

from torch_helion import exc
from torch_helion.frontend import advice
from torch_helion.frontend.host import HostFunction
from torch_helion.frontend.source import place_in


class Watch(TorchFunctionMode):
    """Notes what PyTorch is asked for by a host part."""

    def __init__(self, host: HostFunction) -> None:
        super().__init__()
        self.host = host
        self.found: dict[tuple[int, str, bool], exc.BaseWarning] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if advice.is_heavy(name):
            self._note(name, sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, frame: types.FrameType | None) -> None:
        called: list[types.FrameType] = []
        for outer in _outwards(frame):
            code = outer.f_code
            if code.co_filename == self.host.source.file and code.co_name == self.host.name:
                inside = any(_is_users(f) for f in called)
                kind = exc.TensorOperationsInHostCall if inside else exc.TensorOperationInWrapper
                place = place_in(code, outer.f_lasti, outer.f_lineno)
                self.found.setdefault((place.line, name, inside), kind(name).at(place))
                return
            called.append(outer)

    def report(self, settings: Any) -> None:
        """Print what was found, but what the host part's own text has told already."""
        told = {(line, op) for line, op, _ in advice.operations(self.host)}
        for (line, name, inside), warning in self.found.items():
            if inside or (line, name) not in told:
                ignored = getattr(settings, "ignore_warnings", ())
                advice.warn_once(self.host, warning, name, ignored)


def _outwards(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_users(frame: types.FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return not name.startswith(("torch.", "torch_helion.frontend"))
