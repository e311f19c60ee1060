"""Python face of the C++ launcher: from a kernel's header and addresses to a callable.

What flows in: the text of a kernel (its first line says name and signature) and the addresses of
its entry points in this process. What flows out: a :class:`torch_helion._C.Kernel`, called with
tensors, then ints. Floor 2: imported by whatever loads compiled code; knows no IR.

``import torch`` stands before ``_C`` on purpose: torch's libraries must be loaded first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion import _C

FORMAT = 1
HEADER_PREFIX = "; torch_helion kernel "
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class KernelHeader:
    """Line 1 of a kernel's text: what a caller must know to load and launch it."""

    name: str
    tensors: tuple[str, ...]
    """dtype of each tensor argument, as in ``torch.<name>``"""
    ints: int
    phases: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"kernel header: name must be a C identifier, got {self.name!r}")
        if self.format != FORMAT:
            raise ValueError(
                f"kernel header of {self.name}: format {self.format!r} is not known here "
                f"(this version reads format {FORMAT})"
            )
        for field, least in (("ints", 0), ("phases", 1)):
            value = getattr(self, field)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"kernel header of {self.name}: {field} must be an int of at least {least}, "
                    f"got {value!r}"
                )
        for dtype in self.tensors:
            _dtype_of(self.name, dtype)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """dtype of each tensor argument."""
        return tuple(_dtype_of(self.name, dtype) for dtype in self.tensors)

    @property
    def plan_symbol(self) -> str:
        """Name of the exported plan function."""
        return f"{self.name}_plan"

    @property
    def phase_symbols(self) -> tuple[str, ...]:
        """Names of the exported phase functions, in the order in which they run."""
        return tuple(f"{self.name}_phase{k}" for k in range(self.phases))

    def text(self) -> str:
        """The line that :func:`parse_header` reads back."""
        values = {
            "name": self.name,
            "tensors": list(self.tensors),
            "ints": self.ints,
            "phases": self.phases,
            "format": self.format,
        }
        return HEADER_PREFIX + json.dumps(values)


def parse_header(text: str) -> KernelHeader:
    """The header of a kernel's text; ``ValueError`` says what is wrong with it."""
    line = text.split("\n", 1)[0].rstrip("\r")
    if not line.startswith(HEADER_PREFIX):
        raise ValueError(
            f"kernel header: line 1 must start with {HEADER_PREFIX.strip()!r}, got {line[:80]!r}"
        )
    try:
        values = json.loads(line[len(HEADER_PREFIX) :])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"kernel header: line 1 holds no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"kernel header: expected a JSON object, got {type(values).__name__}")
    fields = ("name", "tensors", "ints", "phases", "format")
    missing = [field for field in fields if field not in values]
    if missing:
        raise ValueError(f"kernel header: {', '.join(missing)} missing in {line[:200]!r}")
    if not isinstance(values["tensors"], list):
        raise ValueError(f"kernel header: tensors must be a list, got {values['tensors']!r}")
    return KernelHeader(**_chosen(values, fields))


def make_kernel(
    name: str,
    plan: int,
    phases: Sequence[int],
    header: KernelHeader,
    keepalive: object,
) -> _C.Kernel:
    """A callable of the code at these addresses.

    ``keepalive`` is whatever keeps the code mapped (the JIT's tracker); it lives as long as the
    kernel. ``name`` is what errors and ``repr`` show; symbols carry ``header.name``.
    """
    if len(phases) != header.phases:
        raise ValueError(f"{name}: expected {header.phases} phases, got {len(phases)} addresses")
    return _C.Kernel(name, plan, tuple(phases), header.dtypes, header.ints, keepalive)


def empty_cache() -> None:
    """Give the memory that the pool keeps for reuse back to the system."""
    _C.empty_cache()


def pool_stats() -> _C.PoolStats:
    """Counters and sizes of the pool of large tensors."""
    return _C.pool_stats()


def _chosen(values: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    chosen = {field: values[field] for field in fields}
    return chosen | {"tensors": tuple(chosen["tensors"])}


def _dtype_of(kernel: str, name: object) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"kernel header of {kernel}: {name!r} is no dtype of torch")
    return dtype
