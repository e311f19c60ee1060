"""Where a language function is being called: outside of kernels, in a host part, or nowhere.

In: the front end, which announces each run of a host part. Out: for host functions, the run that
they belong to; for device functions, the error to raise (on the device the front end gives them
their meaning, their bodies never run there).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch_helion import exc
from torch_helion.config_spec import ConfigSpecFragment
from torch_helion.language.values import BlockSize


@dataclasses.dataclass
class HostRun:
    """One run of the host part of a kernel. `choices`: the values of a config, by key."""

    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    blocks: list[BlockSize] = dataclasses.field(default_factory=list)
    """registered block sizes, in the order of the calls"""
    tunables: dict[str, ConfigSpecFragment] = dataclasses.field(default_factory=dict)


_current: contextvars.ContextVar[HostRun | None] = contextvars.ContextVar("host", default=None)


@contextlib.contextmanager
def running(run: HostRun) -> Iterator[None]:
    """Host functions that are called inside belong to `run`."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def host_run(name: str) -> HostRun:
    """The run that a host function belongs to."""
    run = _current.get()
    if run is None:
        raise exc.NotInsideKernel(f" (hl.{name})")
    return run


def device_only(name: str) -> exc.Base:
    """The error for a device function whose body runs."""
    if _current.get() is None:
        return exc.NotInsideKernel(f" (hl.{name})")
    return exc.DeviceAPIOnHost(f"hl.{name}")


def loop_only(name: str) -> exc.Base:
    """The error for a loop function that does not stand in a `for` of a kernel."""
    if _current.get() is None:
        return exc.NotInsideKernel(f" (hl.{name})")
    return exc.LoopFunctionNotInFor(f"hl.{name}")
