"""What a target is: one frozen record that checks itself when it is made.

In: tables and functions of a target's folder. Out: `Target`, a value that compiler.py is handed.
Nothing here or below names a particular target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion import exc
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel
from torch_helion.ir.ops import OP_KINDS, POINTWISE, REDUCTIONS
from torch_helion.ir.types import Axis


@dataclass(frozen=True)
class Target:
    """All that differs between targets; compiler.py holds all that does not."""

    name: str
    suffix: str
    device_types: tuple[str, ...]
    dtypes: Mapping[torch.dtype, str]
    """Type of an element in memory; no row: the dtype is not supported."""
    pointwise: Mapping[str, Callable[..., str]]
    reductions: frozenset[str]
    op_kinds: frozenset[str]
    default_config: Callable[..., Config]
    print_kernel: Callable[[Kernel, Config, Any], str]
    machine: Callable[[], Any]
    """The machine that code is made for when none is given."""
    machine_key: Callable[[Any], str]
    build: Callable[[str, Any], bytes]
    """Text to a relocatable object."""
    load: Callable[[bytes, Sequence[str]], Any]
    """Object to addresses by symbol."""
    rows: Callable[[Kernel], list[Axis]] = lambda kernel: []
    """Axes that the entries of a config's `reduction_loops` cut; [] where rows are never whole."""
    tunables: Callable[..., Mapping[str, Sequence[Any]]] | None = None
    """(kernel, typical sizes, machine) → values of the config's keys that a search may try, beside
    block sizes and a kernel's own tunables."""
    unsupported: frozenset[str] = frozenset()
    """Deliberate gaps, by op kind, pointwise or reduction name."""

    def __post_init__(self) -> None:
        wanted = set(OP_KINDS) | set(POINTWISE) | set(REDUCTIONS)
        have = set(self.pointwise) | self.reductions | self.op_kinds | self.unsupported
        if gaps := wanted - have:
            raise exc.TargetIncomplete(self.name, sorted(gaps))
