"""Matrix products of values of the device.

In: two values of rank 2 or 3 (or more batches), an accumulator. Out: one `dot`. dtype rules are
those of `torch.matmul` (result of the operands' dtype) and of `hl.dot` (result of the sum's).
"""

from __future__ import annotations

from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import Dim, Tensor, describe
from torch_helion.ir.graph import Value
from torch_helion.ir.ops import FLOAT8, accumulators
from torch_helion.ir.types import Axis

_SMALL = (torch.int8, torch.uint8)


def matmul(p: Program, a: Tensor, b: Tensor) -> Tensor:
    """a @ b, with the result in the operands' dtype."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise exc.TypeInferenceError(f"@ of {describe(a)} and {describe(b)}")
    if a.dtype != b.dtype:
        text = f"expected operands of one dtype, got {a.dtype} and {b.dtype}"
        raise exc.TorchOpTracingError("torch.matmul", text)
    left, right = a, b
    if a.rank == 1:
        left = Tensor(a.value, (None, *a.dims))
    if b.rank == 1:
        right = Tensor(b.value, (*b.dims, None))
    if not left.rank or not right.rank:
        raise exc.TorchOpTracingError("torch.matmul", "both arguments need at least 1 dimension")
    result = product(p, left, right, a.dtype)
    dims = list(result.dims)
    if b.rank == 1:
        dims.pop()
    if a.rank == 1:
        dims.pop(-2 if b.rank > 1 else -1)
    return Tensor(result.value, tuple(dims))


def dot(p: Program, a: Any, b: Any, acc: Any = None, out_dtype: Any = None) -> Tensor:
    """hl.dot."""
    for x in (a, b):
        if not isinstance(x, Tensor):
            raise exc.TypeInferenceError(f"hl.dot needs tensors of the device, got {describe(x)}")
    if a.rank not in (2, 3) or b.rank not in (2, 3):
        raise TypeError(f"hl.dot: tensors of 2 or 3 dimensions are needed, got {a!r} and {b!r}")
    dtypes = accumulators(a.dtype, b.dtype)
    if not dtypes:
        raise TypeError(f"hl.dot: {a.dtype} and {b.dtype} cannot be multiplied")
    if a.rank == 3 and b.rank == 3:
        x, y = p.axes.stand_in(a.dims[0]), p.axes.stand_in(b.dims[0])
        if x != y and 1 not in (x, y):
            left, right = (p.axes.shape_text(t.dims[0]) for t in (a, b))
            raise exc.DotBatchDimensionMismatch(left, right)
    dtype = acc.dtype if isinstance(acc, Tensor) else out_dtype or dtypes[0]
    if dtypes[0] is torch.int32 and dtype is not torch.int32:
        raise TypeError(f"hl.dot: products of {a.dtype} are summed in int32, got {dtype}")
    return product(p, a, b, dtype, acc)


def product(p: Program, a: Tensor, b: Tensor, dtype: torch.dtype, acc: Any = None) -> Tensor:
    """acc + a @ b in `dtype`, summed in the widest type that both have."""
    dims, left, right, k = _aligned(p, a, b)
    sum_dtype = _sum_dtype(a.dtype, b.dtype, dtype)
    if sum_dtype is None:
        value = _integers(p, left, right, k, dtype)
    elif k is None:
        x, y = (p.b.cast(v, sum_dtype) for v in (left, right))
        value = p.b.pointwise("mul", x, y)
    else:
        return _with_dot(p, dims, left, right, k, sum_dtype, dtype, acc)
    result = Tensor(p.b.cast(value, dtype), dims)
    return result if acc is None else _added(p, acc, Tensor(value, dims), dtype)


def _with_dot(
    p: Program,
    dims: tuple[Dim, ...],
    left: Value,
    right: Value,
    k: Axis,
    sum_dtype: torch.dtype,
    dtype: torch.dtype,
    acc: Any,
) -> Tensor:
    axes = [x for x in (*left.type.axes, *right.type.axes) if x.name != k.name]
    start = None
    if isinstance(acc, Tensor):
        target = p.axes.joined([acc.dims, dims])
        if [d.name if d else "" for d in target] == [d.name if d else "" for d in dims]:
            value = p.axes.put(acc.value, acc.dims, dims)
            if {n.name for n in axes} >= set(value.type.axis_names) and acc.dtype == sum_dtype:
                start = p.b.expand(value, list(dict.fromkeys(axes)))
    value = p.b.dot(left, right, k, sum_dtype, start)
    if acc is None or start is not None:
        return Tensor(p.b.cast(value, dtype), dims)
    return _added(p, acc, Tensor(value, dims), dtype)


def _added(p: Program, acc: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
    """acc + value in value's dtype, rounded to `dtype`."""
    wide = value.dtype
    if not isinstance(acc, Tensor):
        return Tensor(
            p.b.cast(p.b.pointwise("add", value.value, p.typed(acc, wide)), dtype), value.dims
        )
    dims = p.axes.joined([acc.dims, value.dims])
    x = p.b.cast(p.axes.put(acc.value, acc.dims, dims), wide)
    y = p.axes.put(value.value, value.dims, dims)
    return Tensor(p.b.cast(p.b.pointwise("add", x, y), dtype), dims)


def _sum_dtype(a: torch.dtype, b: torch.dtype, result: torch.dtype) -> torch.dtype | None:
    dtypes = accumulators(a, b)
    if a in _SMALL and result is not torch.int32:
        return None
    if not dtypes:
        return None
    return result if result in dtypes else dtypes[0]


def _integers(p: Program, left: Value, right: Value, k: Axis | None, dtype: torch.dtype) -> Value:
    """Products of dtypes that no dot has: element by element, then summed."""
    if left.type.dtype in FLOAT8 or right.type.dtype in FLOAT8:
        left, right = (p.b.cast(v, torch.float32) for v in (left, right))
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    wide = (
        torch.float32 if left.type.dtype is torch.float32 and not wide.is_floating_point else wide
    )
    value = p.b.pointwise("mul", p.b.cast(left, wide), p.b.cast(right, wide))
    return value if k is None else p.b.reduce("sum", value, [k])


def _aligned(p: Program, a: Tensor, b: Tensor) -> tuple[tuple[Dim, ...], Value, Value, Axis | None]:
    """Both values along common axes: batches, rows (a only), columns (b only), and k."""
    axes = p.axes
    inner = [a.dims[-1], b.dims[-2]]
    if axes.stand_in(inner[0]) != axes.stand_in(inner[1]):
        left, right = (axes.shape_text(d) for d in inner)
        raise _inner_mismatch(a, b, left, right)
    batch = axes.joined([a.dims[:-2], b.dims[:-2]])
    (k,) = axes.joined([[inner[0]], [inner[1]]])
    taken: list[Dim] = list(batch)
    k = axes.free(k, taken) if k is not None and k in taken else k
    taken.append(k)
    row = a.dims[-2]
    row = axes.free(row, taken) if row is not None and row in taken else row
    taken.append(row)
    column = b.dims[-1]
    column = axes.free(column, taken) if column is not None and column in taken else column
    x = axes.put(a.value, a.dims, (*batch[len(batch) - a.rank + 2 :], row, k))
    y = axes.put(b.value, b.dims, (*batch[len(batch) - b.rank + 2 :], k, column))
    if k is not None:
        x, y = p.b.expand(x, [k]), p.b.expand(y, [k])
    return (*batch, row, column), x, y, k


def _inner_mismatch(a: Tensor, b: Tensor, left: str, right: str) -> Exception:
    return exc.ShapeMismatch(f"{a!r} (inner dimension {left})", f"{b!r} (inner dimension {right})")
