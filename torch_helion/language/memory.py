"""Reading and writing host tensors on the device: plain accesses, atomics, stacks of tensors.

All of these are device functions: `exc.DeviceAPIOnHost` on the host part of a kernel,
`exc.NotInsideKernel` outside of kernels. Errors of indices are those of a subscript:
`exc.RankMismatch`, `exc.InvalidIndexingType`, `exc.OverpackedTile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch_helion import exc
from torch_helion.language.context import device_only
from torch_helion.language.values import StackTensor


def load(
    tensor: Any, index: Sequence[Any], extra_mask: Any = None, eviction_policy: str | None = None
) -> Any:
    """`tensor[index]`; lanes where `extra_mask` is false hold 0 and touch no memory.

    `extra_mask`: a bool tensor that broadcasts to the result. The result has the tensor's dtype.
    """
    raise device_only("load")


def store(tensor: Any, index: Sequence[Any], value: Any, extra_mask: Any = None) -> None:
    """`tensor[index] = value` where `extra_mask` holds; the value is cast to the tensor's dtype.

    A number or a rank-0 value fills all places. Errors: `exc.ShapeMismatch`.
    """
    raise device_only("store")


def atomic_add(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """Add `value` to `target[index]`, each element as one step; gives what was there before.

    `target`: a host tensor of 4- or 8-byte numbers or a half type (`exc.AtomicOnDeviceTensor` for a
    value of the device). `sem`: relaxed, acquire, release or acq_rel; all act alike here.
    Lanes where `extra_mask` is false do nothing. Where several lanes meet, each one counts.
    """
    raise device_only("atomic_add")


def atomic_and(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """Bitwise and into `target[index]` (int32, int64); gives what was there before."""
    raise device_only("atomic_and")


def atomic_or(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """Bitwise or into `target[index]` (int32, int64); gives what was there before."""
    raise device_only("atomic_or")


def atomic_xor(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """Bitwise exclusive or into `target[index]` (int32, int64); gives what was there before."""
    raise device_only("atomic_xor")


def atomic_max(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """The maximum into `target[index]`; gives what was there before."""
    raise device_only("atomic_max")


def atomic_min(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """The minimum into `target[index]`; gives what was there before."""
    raise device_only("atomic_min")


def atomic_xchg(
    target: Any, index: Sequence[Any], value: Any, sem: str = "relaxed", extra_mask: Any = None
) -> Any:
    """Put `value` into `target[index]`; gives what was there before."""
    raise device_only("atomic_xchg")


def atomic_cas(
    target: Any,
    index: Sequence[Any],
    expected: Any,
    value: Any,
    sem: str = "relaxed",
    extra_mask: Any = None,
) -> Any:
    """Put `value` where `target[index]` holds `expected` (bits); gives what was there before."""
    raise device_only("atomic_cas")


def stacktensor_like(tensor_like: Any, dev_ptrs: Any) -> StackTensor:
    """A `StackTensor` of the tensors like `tensor_like` at the addresses `dev_ptrs`.

    Errors: `exc.StackTensorcOnHost`, `exc.StackTensorDevPtrOnHost`, `exc.StackTensorDevPtrDtype`,
    `exc.StackTensorExampleOnDevice`.
    """
    error = device_only("stacktensor_like")
    raise exc.StackTensorcOnHost() if isinstance(error, exc.DeviceAPIOnHost) else error
