"""Values in registers, the piece of the vector loop being printed, and scopes. Data only; see
emit.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from torch_helion.ir.graph import Value


@dataclass(frozen=True)
class Reg:
    """A value in registers: one name per vector of the piece, or one scalar (or literal)."""

    names: tuple[str, ...]
    dtype: torch.dtype
    vector: bool = False


@dataclass(frozen=True)
class Piece:
    """How the vector loop runs here: `count` vectors of `width` elements, under `mask` if given."""

    width: int
    count: int
    mask: str | None = None


@dataclass
class Scope:
    """The inside of one loop (or of the grid step, or of the function)."""

    axis: str | None
    code: list[str] = field(default_factory=list)
    values: dict[Value, Reg] = field(default_factory=dict)
    splats: dict[tuple[str, str], str] = field(default_factory=dict)
    memo: dict[object, str] = field(default_factory=dict)
