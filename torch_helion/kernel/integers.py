"""Integer helpers for the host part of kernels: work on ints, symbolic sizes and expressions.

In: ints, torch's symbolic ints, sympy expressions. Out: the same kind. Nothing of the package is
imported.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch

from torch_helion import config_spec


def cdiv(a: Any, b: Any) -> Any:
    """``a / b`` rounded up."""
    if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr):
        return (a + b - 1) // b
    return -(-a // b)


def next_power_of_2(n: Any) -> Any:
    """The smallest power of two that is not below ``n`` (1 for ``n`` <= 1)."""
    if isinstance(n, sympy.Expr) and not n.is_Integer:
        # floor(log2) of n - 1 is exact here: sympy works on integers.
        return sympy.Piecewise((1, n <= 1), (2 ** sympy.ceiling(sympy.log(n, 2)), True))
    if isinstance(n, torch.SymInt):
        n = int(n)  # a power of two of an open size: the size becomes a constant
    return config_spec.next_power_of_2(int(n))
