"""Which products are worth a kernel of ours: what was measured on a kind of machine, as rules.

In: the likely sizes, dtype and layouts of the products of a region, and how much follows them. Out:
None, or why the library is as fast.

The table here was derived from sweeps of `benchmarks/operators/products.py`: single products
against the library in the same process, interleaved; a class is ours where no size of it was
slower. Other machines leave products to the library until `contraction_measure` was run on one of
their kind: its rules are in the artifact cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from torch_helion import _hardware
from torch_helion.codegen.llvm.engine import Machine, host_machine, machine_key
from torch_helion.runtime import artifact_cache

VERSION = 1
"""Of the code of products: rules of another version are not used."""

SMALL = 1 << 18
"""Below so many operations a call is a few microseconds by either, and not worth compiling for."""
LIKELY_ROWS = 128
"""Least rows that a kernel is made for where their number is not known."""
BYTES_ROWS = 32
"""Rows up to which a converted B is not worth storing: it is read once, and a quarter as long."""
MOST_CORES = 16
"""Nobody measured more."""


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
    bytes: bool = False
    """Whether B is converted from integers of eight bits, by an operation of the graph."""


@dataclass(frozen=True)
class Tiles:
    """The products of one region, and how many operations follow them."""

    products: tuple[Product, ...]
    following: int


@dataclass(frozen=True)
class Class:
    """Products that are ours: of up to so many rows, or of a small B, or with work behind them."""

    rows: int = 0
    matrix: int = 0
    """Elements of B."""
    inner: int = 0
    """Length of the sums."""
    followed: bool = False
    """Whatever the sizes, where pointwise work follows."""

    def holds(self, product: Product, following: int) -> bool:
        return (
            product.m <= self.rows
            or product.n * product.k <= self.matrix
            or product.k <= self.inner
            or (self.followed and following > 0)
        )


Key = tuple[torch.dtype, str, str]
"""A dtype, and the dimension that lies side by side in A and in B."""
ALL = Class(rows=1 << 40)
ZEN4: Mapping[Key, Class] = {
    (torch.float32, "k", "k"): ALL,
    (torch.float32, "k", "n"): ALL,
    (torch.float32, "m", "k"): Class(inner=512),
    (torch.float32, "m", "n"): Class(inner=512),
    (torch.bfloat16, "k", "k"): Class(rows=96, matrix=1 << 16, inner=64, followed=True),
    (torch.bfloat16, "k", "n"): Class(rows=16, matrix=1 << 16, inner=64, followed=True),
    (torch.bfloat16, "m", "k"): Class(rows=8, matrix=1 << 14),
    (torch.bfloat16, "m", "n"): Class(rows=8, matrix=1 << 14),
}
"""Measured on 2 cores, against MKL and oneDNN."""
MEASURED = {"znver4": ZEN4, "znver5": ZEN4}


def library_is_as_fast(tiles: Tiles) -> str | None:
    """Why these products should stay with the library; None if a kernel of ours is faster."""
    rules = _rules(host_machine())
    if rules is None:
        return "products were not measured on this kind of machine"
    for product in tiles.products:
        why = _why_not(product, tiles.following, rules)
        if why is not None:
            return why
    return None


def choice_key() -> tuple[str, str]:
    """What the choice depends on beside our sources and the machine, for caches of programs."""
    return library_precision(), repr(recorded())


def library_precision() -> str:
    """What the library may compute products of float32 in ("none": in float32)."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return str(getattr(matmul, "fp32_precision", "none"))


def _rules(machine: Machine) -> Mapping[Key, Class] | None:
    known = MEASURED.get(_hardware.llvm_cpu())
    if known is not None and machine.vector_bits == 512 and _hardware.cores() <= MOST_CORES:
        return known
    return recorded()


# -- rules that were measured here ----------------------------------------------------------------

_KIND = "products"


def record(rules: Mapping[Key, Class]) -> None:
    """Keep rules for machines of this kind."""
    rows = [[str(d).removeprefix("torch."), a, b, asdict(c)] for (d, a, b), c in rules.items()]
    artifact_cache.put(_KIND, _machine_key(), json.dumps(rows).encode())
    recorded.cache_clear()


@functools.cache
def recorded() -> Mapping[Key, Class] | None:
    """What was kept; None if nothing was, or something that is no such rules."""
    data = artifact_cache.get(_KIND, _machine_key())
    if data is None:
        return None
    try:
        rows = json.loads(data)
        return {(getattr(torch, d), a, b): Class(**c) for d, a, b, c in rows}
    except (ValueError, TypeError, AttributeError):
        return None


def _machine_key() -> str:
    """What the speed of products depends on: the machine, the library, our code's version."""
    facts = (machine_key(host_machine()), _hardware.cores(), torch.__version__, VERSION)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _why_not(product: Product, following: int, rules: Mapping[Key, Class]) -> str | None:
    if product.dtype is torch.bfloat16 and not host_machine().has("avx512bf16"):
        return "this machine has no products of bfloat16"
    if product.dtype is torch.float32 and library_precision() not in ("none", "ieee"):
        return f"the library may compute products of float32 in {library_precision()}"
    if 2 * product.m * product.n * product.k < SMALL:
        return "a small product"
    if product.bytes:
        return None if product.m <= BYTES_ROWS else "many rows: a converted matrix is stored once"
    found = rules.get((product.dtype, product.a_unit, product.b_unit))
    if found is not None and found.holds(product, following):
        return None
    return "the library is as fast for these sizes"
