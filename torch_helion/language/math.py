"""Products, reductions and scans with functions of the user's, views of values. On the device only:
`exc.DeviceAPIOnHost` and `exc.NotInsideKernel` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_helion.language.context import device_only


def dot(mat1: Any, mat2: Any, acc: Any = None, out_dtype: torch.dtype | None = None) -> Any:
    """The matrix product of two 2-D values, or of two 3-D batches of equal (or one) size.

    dtypes: float16, bfloat16, float32, float64, int8, float8. The sum is kept in float32 (int8:
    int32). The result has the dtype of `acc`, which is added to it, else `out_dtype`, else that of
    the sum. Errors: ValueError for inner sizes, TypeError for dtypes,
    `exc.DotBatchDimensionMismatch`.
    """
    raise device_only("dot")


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32 or float64 values (numbers beside them), rounded once."""
    raise device_only("fma")


def dot_scaled(
    mat1: Any,
    mat1_scale: Any,
    mat1_format: str,
    mat2: Any,
    mat2_scale: Any,
    mat2_format: str,
    acc: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """Products in block-scaled formats: refused here, with `exc.BackendUnsupported`."""
    raise device_only("dot_scaled")


def reduce(
    combine_fn: Callable[..., Any],
    input_tensor: Any,
    dim: int | None = None,
    other: Any = 0,
    keep_dims: bool = False,
) -> Any:
    """Reduce a value, or a tuple of values of one shape, by an associative function.

    `combine_fn(left, right)` for a value; for a tuple, of two tuples or of 2n values. `dim` None:
    over all dimensions. `other`: the number (or one a value) that takes the place of lanes that are
    masked.
    """
    raise device_only("reduce")


def associative_scan(
    combine_fn: Callable[..., Any],
    input_tensor: Any,
    dim: int,
    reverse: bool = False,
    exclusive: bool = False,
) -> Any:
    """The inclusive scan of a value, or of a tuple of values, by an associative function.

    `exclusive`: each position without its own value; for `torch.add`, `torch.mul`,
    `torch.maximum` and `torch.minimum` of one value, whose identities are known.
    """
    raise device_only("associative_scan")


def cumsum(input_tensor: Any, dim: int, reverse: bool = False, exclusive: bool = False) -> Any:
    """Running sums along `dim`, from the end where `reverse`; without the own value where
    `exclusive`.
    """
    raise device_only("cumsum")


def cumprod(input_tensor: Any, dim: int, reverse: bool = False, exclusive: bool = False) -> Any:
    """Running products along `dim`, as `cumsum`."""
    raise device_only("cumprod")


def split(tensor: Any) -> Any:
    """The two values in a last dimension of size 2."""
    raise device_only("split")


def join(tensor0: Any, tensor1: Any) -> Any:
    """Two values in a new last dimension of size 2."""
    raise device_only("join")


def subscript(tensor: Any, index: Sequence[Any]) -> Any:
    """`tensor[index]` of a value of the device: new dimensions, slices, constants."""
    raise device_only("subscript")
