"""What of a traced kernel a config may choose, and a config's choices as a target counts them.

In: the facts of a kernel's loops, its IR. Out: a `ConfigSpec`; a config with entries for what a
target knows: its grid loops and the rows that it can cut, where the language counts all loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_helion.config import Config
from torch_helion.config_spec import BlockSizeSpec, ConfigSpec
from torch_helion.frontend.loops import Facts
from torch_helion.ir.graph import Kernel
from torch_helion.ir.types import Axis, Size

_WHOLE = ("scan", "sort", "take", "reshape")
"""Ops that need all of a row at once."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """What entries of a config stand for."""

    rows: tuple[str, ...] = ()
    """axes that `reduction_loops` cut into chunks"""
    orders: tuple[int, ...] = ()
    """numbers of those `loop_orders` that are of grids"""

    def for_target(self, config: Config, rows: Callable[[], Sequence[Axis]]) -> Config:
        """The config with entries for grids alone, and for `rows()`, axes that a target can cut."""
        values: dict[str, Any] = dict(config)
        if "loop_orders" in values:
            values["loop_orders"] = [values["loop_orders"][n] for n in self.orders]
        chunks = values.pop("reduction_loops", None) or []
        if any(chunk is not None for chunk in chunks):
            by_name = dict(zip(self.rows, chunks, strict=False))
            values["reduction_loops"] = [by_name.get(axis.name) for axis in rows()]
        return Config(**values)


def rows_of(kernel: Kernel) -> list[Axis]:
    """Whole rows that are reduced, in program order, and that chunks can make up."""
    found: dict[str, Axis] = {}
    rigid: set[str] = set()
    for op in kernel.body.walk():
        axes = {a.name: a for v in (*op.operands, *op.results) for a in v.type.axes}
        rigid |= {a.of for a in axes.values() if a.of}
        if op.kind in _WHOLE or op.kind == "dot":
            rigid |= axes.keys()
        for name in op.attrs["axes"] if op.kind == "reduce" else ():
            if axes[name].kind == "full" and not axes[name].of:
                found.setdefault(name, axes[name])
    return [axis for name, axis in found.items() if name not in rigid]


def spec_of(
    kernel: Kernel,
    loops: Sequence[Facts],
    blocks: Sequence[BlockSizeSpec],
    tunables: Mapping[str, Any],
    barrier: bool,
    hint: Callable[[Size], int],
) -> tuple[ConfigSpec, Choices]:
    """The spec of a kernel, and what its entries mean."""
    several = [loop for loop in loops if loop.dims > 1]
    grids = tuple(n for n, loop in enumerate(several) if not loop.inner)
    inner = [loop for loop in loops if loop.inner]
    rows = rows_of(kernel)
    spec = ConfigSpec(
        list(blocks),
        loop_orders=[loop.dims for loop in several],
        flatten_loops=sum(loop.flattens for loop in several),
        l2_groupings=len(grids),
        reduction_loops=[hint(axis.size) for axis in rows],
        range_loops=len(inner),
        static_loops=sum(loop.constant for loop in inner),
        grid_loops=max(1, len(loops) - len(inner)),
        user_defined_tunables=dict(tunables),
        has_barrier=barrier,
    )
    return spec, Choices(tuple(a.name for a in rows), grids)
