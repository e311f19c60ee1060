"""New values of the device. Sizes are ints, specialised sizes, tiles or block sizes.

Device functions: `exc.DeviceAPIOnHost` and `exc.NotInsideKernel` elsewhere. A size that is no
constant and no tile: `exc.ShapeSpecializingAllocation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_helion.language.context import device_only


def zeros(shape: Sequence[Any], dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
    """A value of zeros."""
    raise device_only("zeros")


def full(
    shape: Sequence[Any], value: Any, dtype: torch.dtype = torch.float32, device: Any = None
) -> Any:
    """A value that is `value`, a number or a rank-0 value, everywhere."""
    raise device_only("full")


def arange(*args: Any, dtype: torch.dtype | None = None, device: Any = None, **named: Any) -> Any:
    """The integers of a range, as `torch.arange`; of a tile's length for a tile or block size."""
    raise device_only("arange")


def rand(shape: Sequence[Any], seed: Any, device: Any = None, offsets: Any = None) -> Any:
    """float32 numbers in [0, 1): Philox, keyed by `seed` and each element's place in the whole.

    The place is the row-major number in the product of the tiles' whole ranges, so that block sizes
    change nothing; or what `offsets` (int64) says.
    """
    raise device_only("rand")


def randn(shape: Sequence[Any], seed: Any, device: Any = None, offsets: Any = None) -> Any:
    """Normally distributed float32 numbers, keyed as `rand`."""
    raise device_only("randn")


def randint(
    shape: Sequence[Any],
    low: int,
    high: int,
    seed: Any,
    device: Any = None,
    offsets: Any = None,
    dtype: torch.dtype = torch.int32,
) -> Any:
    """Integers in [low, high), keyed as `rand`."""
    raise device_only("randint")


def rand4x(seed: Any, offsets: Any, device: Any = None) -> Any:
    """Four independent float32 tensors in [0, 1), for the places `offsets`."""
    raise device_only("rand4x")
