"""Sizes of the graph and sizes of a kernel.

In: ints and SymInts of fake tensors. Out: *host* sizes (int or sympy over the graph's symbols),
their hints, and a `SizeTable` that gives a kernel its own size symbols. Used by the modules of
capture only.

Three kinds of size occur. Host sizes are facts of one graph. While a region is traced, an
axis's extent is a symbol of its own (so that index arithmetic never depends on a number), and a
host size that is no extent of an axis is a constant, or one more symbol. In the kernel each
symbol that is used becomes a size argument `n0`, `n1`, … with the host size as its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Size, size_symbol


def host_size(value: Any) -> Size:
    """An int or SymInt as int or sympy expression."""
    if type(value) is int:
        return value
    if isinstance(value, torch.SymInt):
        expr = value.node.expr
        return int(expr) if expr.is_Integer else expr
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else value
    return int(value)


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    shape = node.meta["val"].shape
    return (
        tuple(shape)
        if type(shape) is torch.Size and _static(shape)
        else tuple(map(host_size, shape))
    )


def _static(shape: Sequence[Any]) -> bool:
    return all(type(n) is int for n in shape)


def strides_of(node: fx.Node) -> tuple[Size, ...]:
    """Host strides. PyTorch writes Max(1, size) where a size might be 0: then nothing is read."""
    strides = node.meta["val"].stride()
    return tuple(s if type(s) is int else _without_max(host_size(s)) for s in strides)


def _without_max(size: Size) -> Size:
    if isinstance(size, int):
        return size

    def is_guard(e: sympy.Expr) -> bool:
        return type(e).__name__ == "Max" and len(e.args) == 2 and e.args[0] == 1

    return host_size(size.replace(is_guard, lambda e: e.args[1]))


class Hints(dict[sympy.Symbol, int]):
    """The likely value of each symbol of a graph, and what each is at least."""

    def __init__(
        self, hints: Mapping[sympy.Symbol, int], least: Mapping[sympy.Symbol, int]
    ) -> None:
        super().__init__(hints)
        self.least = least


def is_nonnegative(size: Size, hints: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a host size is known to be at least 0."""
    if isinstance(size, int):
        return size >= 0
    size = sympy.expand(size)
    if size.is_nonnegative:
        return True
    least = hints.least if isinstance(hints, Hints) else {}
    above = {s: least[s] + size_symbol(f"{s}_more") for s in size.free_symbols if s in least}
    return bool(sympy.expand(size.xreplace(above)).is_nonnegative) if above else False


def known_hints(values: Sequence[Any]) -> Hints:
    """The hint of every backed symbol of the graph that these fake tensors belong to."""
    for value in values:
        sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                env = size.node.shape_env
                new = hasattr(env, "backed_var_to_val")  # torch before 2.12 has the older name
                table = env.backed_var_to_val if new else env.var_to_val
                ranges = env.var_to_range.items()
                least = {s: int(r.lower) for s, r in ranges if r.lower.is_Integer}
                return Hints({symbol: int(hint) for symbol, hint in table.items()}, least)
    return Hints({}, {})


def hint_of(size: Size, hints: Mapping[sympy.Symbol, int]) -> int | None:
    """The number that a host size is likely to be; None where a symbol of it has no hint."""
    if isinstance(size, int):
        return size
    number = size.xreplace({s: sympy.Integer(n) for s, n in hints.items()})
    return int(number) if number.is_Integer else None


class SizeTable:
    """The size symbols of one region while it is traced, and of its kernel once it is emitted."""

    def __init__(self, hints: Mapping[sympy.Symbol, int]) -> None:
        self.graph_hints = hints
        self._host: dict[sympy.Symbol, Size] = {}
        self._of_host: dict[Size, sympy.Symbol] = {}
        self._final: dict[sympy.Symbol, Size] = {}
        self.values: dict[sympy.Symbol, Size] = {}
        """The kernel's symbols in order of declaration, and their host sizes."""

    # -- while tracing ------------------------------------------------------------------------

    def extent(self, name: str, host: Size) -> sympy.Symbol:
        """The symbol of an axis's extent."""
        symbol = size_symbol(name)
        self._host[symbol] = host
        return symbol

    def other(self, host: Size) -> Size:
        """A size that belongs to no axis: a constant, or the one symbol of its expression."""
        if isinstance(host, int):
            return host
        if host not in self._of_host:
            symbol = size_symbol(f"h{len(self._of_host)}")
            self._of_host[host] = symbol
            self._host[symbol] = host
        return self._of_host[host]

    def argument(self, host: Size) -> Size:
        """A size that is an argument of a call: unlike an extent it could be negative."""
        if not isinstance(host, int) and not is_nonnegative(host, self.graph_hints):
            raise exc.LoweringError("a size argument", "int64", f"{host} might be negative")
        return self.other(host)

    def to_host(self, size: Size) -> Size:
        """The host size that an expression over trace symbols stands for."""
        if isinstance(size, int):
            return size
        value = size.xreplace({s: sympy.sympify(self._host[s]) for s in self._known(size)})
        return int(value) if value.is_Integer else value

    def _known(self, size: sympy.Expr) -> list[sympy.Symbol]:
        return [s for s in size.free_symbols if s in self._host]

    # -- in the kernel ------------------------------------------------------------------------

    def declare(self, builder: Builder, host: Size, name: str | None = None) -> sympy.Symbol:
        """One more size argument."""
        symbol = builder.size(name or f"n{sum(str(s).startswith('n') for s in self.values)}")
        self.values[symbol] = host
        return symbol

    def bind(self, symbol: sympy.Symbol, final: Size) -> None:
        """What a trace symbol is in the kernel."""
        self._final[symbol] = final

    @property
    def bound(self) -> set[sympy.Symbol]:
        """Trace symbols that the kernel has."""
        return set(self._final)

    def final(self, builder: Builder, size: Size) -> Size:
        """An expression over trace symbols as one over the kernel's."""
        if isinstance(size, int):
            return size
        for symbol in sorted(self._known(size), key=str):
            if symbol not in self._final:
                self._final[symbol] = self.declare(builder, self._host[symbol])
        value = size.xreplace(
            {s: sympy.sympify(self._final[s]) for s in size.free_symbols if s in self._final}
        )
        return int(value) if value.is_Integer else value

    def hints(self) -> dict[sympy.Symbol, int]:
        """The likely value of every size argument."""
        found = {s: hint_of(host, self.graph_hints) for s, host in self.values.items()}
        return {s: 1 if n is None else n for s, n in found.items()}
