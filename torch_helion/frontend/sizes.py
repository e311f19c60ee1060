"""Sizes of the host as size expressions of the kernel.

In: ints, torch's symbolic ints and floats, each with the path under which a launch finds it again.
Out: `Size`s over the kernel's size symbols, and for each symbol where its value comes from.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch

from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Size

Path = tuple[Any, ...]
Source = tuple[Any, ...]
SEED = "seed"


class SizeTable:
    """The kernel's size arguments."""

    def __init__(self, builder: Builder) -> None:
        self.b = builder
        self.sources: dict[sympy.Symbol, Source] = {}
        self.hints: dict[sympy.Symbol, int] = {}
        self._known: dict[Any, sympy.Symbol] = {}
        self._names: set[str] = set()
        self.extents: set[Any] = set()
        """expressions that are the size of some tensor: never negative"""
        self.closed = False
        """sizes of tensors are taken as what they are in the example"""
        self.opened = False
        """whether some size of a tensor is no constant"""

    def name(self, wanted: str) -> str:
        """A name like `wanted` that no other size has."""
        number, name = 0, wanted
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def size(self, number: Any, source: Source, name: str) -> Size:
        """A size or stride (never negative): a constant, or a symbol that all its equals share."""
        constant = constant_of(number)
        if constant is not None:
            return int(constant)
        return self._symbol(number, source, name, signed=False)

    def integer(self, number: Any, path: Path, name: str) -> Size:
        """An integer argument."""
        constant = constant_of(number)
        if constant is not None:
            return int(constant)
        return self._symbol(number, ("int", path), name, signed=True)

    def float_bits(self, number: Any, path: Path, name: str) -> sympy.Symbol:
        """The bits of a float argument."""
        return self._declare(("float", path), ("float", path), name, True, 0)

    def seed(self) -> sympy.Symbol:
        """A number that is drawn for each call."""
        return self._declare(SEED, (SEED,), "seed", True, 0)

    def _symbol(self, number: Any, source: Source, name: str, signed: bool) -> Size:
        key = number.node.expr
        signed = signed and key not in self.extents
        if not signed and self.closed:
            return int(number)  # torch notes that this has decided something
        self.opened |= not signed
        hint = number.node.hint if number.node.has_hint() else 4096
        return self._declare(key, source, name, signed, int(hint))

    def _declare(
        self, key: Any, source: Source, name: str, signed: bool, hint: int
    ) -> sympy.Symbol:
        if key not in self._known:
            unique = self.name(name)
            symbol = self.b.scalar(unique) if signed else self.b.size(unique)
            self._known[key] = symbol
            self.sources[symbol], self.hints[symbol] = source, hint
        return self._known[key]


def constant_of(number: Any) -> Any:
    """The value of a number that is no open symbol, else None."""
    if isinstance(number, torch.SymInt):
        return number.node.maybe_as_int()
    if isinstance(number, torch.SymFloat):
        return number.node.maybe_as_float()
    if isinstance(number, torch.SymBool):
        return number.node.maybe_as_bool()
    return number


def plain(size: Any) -> Size:
    """sympy's integers as Python's."""
    if isinstance(size, sympy.Expr) and size.is_Integer:
        return int(size)
    return size
