"""Matrix products, for regions that are one product and what is computed from it.

In: one call of mm or addmm with tiles of its operands. Out: the tile of its result. The rows are
not in `rows.LOWERINGS`: a product is no part of a map-reduce region. Sums are made in float32 and
rounded once, after the bias, as the libraries do.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_helion.lowering.promotion import Number, Term, convert, results
from torch_helion.lowering.registry import Context, Lowering

aten = torch.ops.aten

DTYPES = (torch.float32, torch.bfloat16)


def product(cx: Context, *operands: Any, beta: Number = 1, alpha: Number = 1) -> Any:
    """alpha * (a · b) + beta * bias; the bias is not read where beta is 0."""
    *start, a, b = operands
    if cx.dtype not in DTYPES:
        raise cx.refuse("products of this dtype are the library's")
    axes = cx.reduced_axes(len(start), 1)
    if len(axes) != 1:
        raise cx.refuse("the dimension that it sums is no single axis")
    if b.type.dtype is torch.float32:  # a weight that is computed in it
        a = cx.b.cast(a, torch.float32)
    total = Term(cx, cx.b.dot(a, b, axes[0], torch.float32))
    if alpha != 1:
        total = total * alpha
    if start and beta != 0:
        bias = convert(cx, start[0], torch.float32)
        total = total + (bias if beta == 1 else bias * beta)
    return results(cx, total)


PRODUCTS = (
    Lowering(aten.mm.default, "product", product),
    Lowering(aten.addmm.default, "product", product),
)
