"""From the device loops of a kernel to the tile IR.

In: a `HostFunction` and what a run of its host part hands to a launch (fake tensors, symbolic and
plain numbers). Out: `Traced`: the kernel, where its arguments are found again, what may be tuned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.utils._python_dispatch import _disable_current_modes

from torch_helion import exc
from torch_helion.config_spec import BlockSizeSpec, ConfigSpec
from torch_helion.frontend import advice, language_rows, scan_rows
from torch_helion.frontend.axes import FIRST_STAND_INS
from torch_helion.frontend.choices import Choices, spec_of
from torch_helion.frontend.functions import Interpreter
from torch_helion.frontend.host import UNSET, HostFunction
from torch_helion.frontend.scope import NotYet, Scope
from torch_helion.frontend.sizes import Path
from torch_helion.frontend.sizes import Source as SizeSource
from torch_helion.frontend.state import Program
from torch_helion.frontend.wrapping import block_name, wrap
from torch_helion.ir.graph import Kernel
from torch_helion.ir.overlap import serialised

assert language_rows is not None and scan_rows is not None  # they register their rows


@dataclasses.dataclass
class Traced:
    """A traced kernel."""

    kernel: Kernel
    tensors: tuple[Path, ...]
    """where each tensor argument is found among the launch's values"""
    sizes: tuple[SizeSource, ...]
    """where each int argument is found"""
    hints: dict[sympy.Symbol, int]
    config_spec: ConfigSpec
    choices: Choices
    assumed: tuple[Any, ...] = ()
    aliases: tuple[tuple[Path, Path], ...] = ()
    """paths of values that are one tensor, which something is stored to"""


def trace(host: HostFunction, values: Sequence[Any], settings: Any) -> Traced:
    """Trace the device part for values of these kinds."""
    advice.about_host(host, values, settings)
    with _disable_current_modes(), torch.no_grad():
        for first in FIRST_STAND_INS:
            try:
                return _with_stand_ins(host, values, settings, first)
            except (exc.TorchOpTracingError, exc.InternalError) as error:
                unlucky = "overflow" in str(error) or "is taken" in str(error)
                if not unlucky or first == FIRST_STAND_INS[-1]:
                    raise
        raise AssertionError


def _with_stand_ins(host: HostFunction, values: Sequence[Any], settings: Any, first: int) -> Traced:
    tracer = _Tracer(host, values, settings, first)
    try:
        return tracer.finished()
    except exc.Base:
        if not tracer.p.sizes.opened:
            raise
    return _Tracer(host, values, settings, first, closed=True).finished()


class _Tracer:
    def __init__(
        self,
        host: HostFunction,
        values: Sequence[Any],
        settings: Any,
        first: int,
        merged: bool = False,
        closed: bool = False,
    ) -> None:
        self.host, self.given, self.settings = host, values, settings
        self.values = dict(zip(host.values, enumerate(values), strict=True))
        self.p = Program(host.name, settings, first)
        self.p.merged, self.p.sizes.closed = merged, closed
        self.interpreter = Interpreter(self.p)
        self.p.lifted = {key: functools.partial(self.read, n) for key, n in host.lifted.items()}
        self._wrapped: dict[str, Any] = {}

    def read(self, name: str) -> Any:
        """A host value on the device."""
        if name not in self.values:
            raise NotYet(name)
        if name not in self._wrapped:
            number, value = self.values[name]
            if value is UNSET:
                raise exc.UndefinedVariable(name)
            plain = name.split(" ")[-1].replace(".", "_")  # a lifted one is "0 helper.NAME"
            self._wrapped[name] = wrap(self.p, value, (number,), plain)
        return self._wrapped[name]

    def finished(self) -> Traced:
        """The trace; once more where a tensor that is stored to has two names."""
        traced, pairs = self.trace(), self._aliases()
        if pairs:
            same = (self.p.axes.first, True, self.p.sizes.closed)
            again = _Tracer(self.host, self.given, self.settings, *same)
            traced = dataclasses.replace(again.trace(), aliases=pairs)
        return traced

    def trace(self) -> Traced:
        self._note_sizes([value for _, value in self.values.values()])
        blocks = self._registered_blocks()
        self.interpreter.registered = {block.name: block for block in blocks}
        self._run()
        if not self.p.effects:
            node = self.host.loops[0]
            raise exc.EmptyDeviceLoopAfterDCE().at(self.host.source.at(node.iter))
        return self._result([*blocks, *self.interpreter.specs.values()])

    def _note_sizes(self, value: Any) -> None:
        """Sizes of tensors are never negative, also where they come as integers."""
        if isinstance(value, torch.Tensor):
            shape: Sequence[Any] = value.shape
            sizes = (n for n in shape if isinstance(n, torch.SymInt))
            self.p.sizes.extents.update(n.node.expr for n in sizes)
        elif isinstance(value, list | tuple):
            for item in value:
                self._note_sizes(item)
        elif isinstance(value, dict):
            self._note_sizes(list(value.values()))

    def _registered_blocks(self) -> list[BlockSizeSpec]:
        found = []
        for block in self.host.last_run.blocks if self.host.registers else ():
            name = block_name(block.number)
            self.p.b.block(name)
            found.append(BlockSizeSpec(name, block.most, block.least, block.most))
        return found

    def _run(self) -> None:
        host, p = self.host, self.p
        for number, loop in enumerate(host.loops):
            if number in host.barriers:
                p.written.clear()
            p.stored.clear()
            self.interpreter.scope = Scope(
                host.source, host.fn.__globals__, self.read, host.host_names
            )
            self.interpreter.statement(loop, frozenset())
            p.written |= p.stored

    def _kernel(self) -> Kernel:
        kernel = self.p.b.build()
        loaded = _touched(kernel, "load", "atomic")
        stored = _touched(kernel, "store", "atomic")
        buffers = []
        for buffer in kernel.buffers:
            written = "inout" if buffer.name in loaded else "out"
            role: Any = written if buffer.name in stored else "in"
            buffers.append(dataclasses.replace(buffer, role=role))
        return serialised(dataclasses.replace(kernel, buffers=tuple(buffers)))

    def _aliases(self) -> tuple[tuple[Path, Path], ...]:
        hosts = [h for h in self.p.tensors.values() if h.buffer is not None]
        stored = _touched(self.p.b.build(), "store", "atomic")
        return tuple(
            (a.path, b.path)
            for a in hosts
            for b in hosts
            if a is not b and a.tensor is b.tensor and a.buffer and a.buffer.name in stored
        )

    def _result(self, specs: list[BlockSizeSpec]) -> Traced:
        p, host, kernel = self.p, self.host, self._kernel()
        by_name = {h.buffer.name: h for h in p.tensors.values() if h.buffer is not None}
        spec, choices = spec_of(
            kernel,
            list(self.interpreter.loops.values()),
            specs,
            host.last_run.tunables if host.registers else {},
            bool(host.barriers),
            self.interpreter.hint,
        )
        return Traced(
            kernel,
            tuple(by_name[b.name].path for b in kernel.arguments),
            tuple(p.sizes.sources[s] for s in kernel.sizes),
            dict(p.sizes.hints),
            spec,
            choices,
        )


def _touched(kernel: Kernel, *kinds: str) -> set[str]:
    return {op.attrs["buffer"] for op in kernel.body.walk() if op.kind in kinds}
