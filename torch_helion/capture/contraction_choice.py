"""Which products are worth a kernel of ours: what was measured, as rules.

In: the likely sizes, dtype and layouts of the products of a region, and how much follows them. Out:
None, or why the library is as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_helion.codegen.llvm.engine import host_machine


@dataclass(frozen=True)
class Product:
    """C[m, n] = A[m, k] · B[k, n]: likely sizes, and the dimension of each operand whose elements
    lie side by side.
    """

    dtype: torch.dtype
    m: int
    n: int
    k: int
    a_unit: str
    b_unit: str

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k


@dataclass(frozen=True)
class Tiles:
    """The products of one region, and how many operations follow them."""

    products: tuple[Product, ...]
    following: int

    @property
    def likely(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.products[0].m, self.products[0].n


def library_is_as_fast(tiles: Tiles) -> str | None:
    """Why these products should stay with the library; None if a kernel of ours is faster."""
    machine = host_machine()
    if machine.vector_bits != 512:
        return "on this machine the library is as fast"
    return None
