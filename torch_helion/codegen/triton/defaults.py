"""The default config of a kernel: always valid; sizes that are usual on GPUs.

In: a kernel, hints (typical values of its sizes), a machine. Out: a `Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from torch_helion.config import Config
from torch_helion.config_spec import next_power_of_2
from torch_helion.ir.graph import Kernel, Op, loop_blocks
from torch_helion.ir.types import Axis, Size

TILE = 1024
"""Lanes of a tile."""
PRODUCT = 64
"""Rows and columns of a tile of a product; half as many positions of what it sums over."""


def default_config(kernel: Kernel, hints: Mapping[sympy.Symbol, int], machine: Any) -> Config:
    sizes = dict.fromkeys(kernel.block_names, 1)
    wanted = _loops(kernel)
    inner = max([1, *(_rows(kernel, loop, hints) for loop, _ in wanted)])
    products = _product_axes(kernel)
    budget = max(1, TILE // next_power_of_2(min(inner, TILE)))
    for name in reversed(list(sizes)):  # the last axis is mostly the one that lies in a row
        axes = [a for _, pairs in wanted for a, n in pairs if n == name]
        extent = max([1, *(_estimate(a.size, hints) for a in axes)])
        if any(a.name in products for a in axes):
            most = max(products.get(a.name, 1) for a in axes)
            sizes[name] = min(most, max(16, next_power_of_2(extent)))
        else:
            sizes[name] = min(budget, next_power_of_2(extent))
            budget = max(1, budget // sizes[name])
    return Config(block_sizes=[sizes[n] for n in kernel.block_names], num_warps=4)


def _loops(kernel: Kernel) -> list[tuple[Op, list[tuple[Axis, str]]]]:
    """Each loop with its axes whose block size is a symbol, and the symbol's name."""
    found = []
    for op in kernel.body.walk():
        if op.kind == "loop" and op.attrs["axes"]:
            pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
            names = [(a, str(b).removeprefix("block_")) for a, b in pairs]
            found.append((op, [(a, n) for a, n in names if n in kernel.block_names]))
    return found


def _product_axes(kernel: Kernel) -> dict[str, int]:
    """Axes of products with the block sizes for them: batches have 1."""
    found: dict[str, int] = {}
    for op in kernel.body.walk():
        if op.kind == "dot":
            left, right = (set(v.type.axis_names) for v in op.operands[:2])
            found |= dict.fromkeys(left ^ right, PRODUCT)
            found |= dict.fromkeys(left & right, 1)
            found[op.attrs["k"]] = PRODUCT // 2
    return found


def _rows(kernel: Kernel, loop: Op, hints: Mapping[sympy.Symbol, int]) -> int:
    """Lanes of the largest tile without the block axes."""
    most = 1
    for op in loop.regions[0].walk():
        for value in op.results:
            lanes = 1
            for axis in value.type.axes:
                if axis.kind != "block":
                    lanes *= next_power_of_2(_estimate(axis.size, hints))
            most = max(most, lanes)
    return most


def _estimate(size: Size, hints: Mapping[sympy.Symbol, int]) -> int:
    """A typical value of a size (4096 for what nobody knows)."""
    expr = sympy.sympify(size)
    values = {s: sympy.Integer(hints.get(s, 4096)) for s in expr.free_symbols}
    number = expr.xreplace(values)
    return int(number) if number.is_Integer else 4096
