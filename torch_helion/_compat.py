"""What programs ask about the hardware of Helion's backends. On a CPU the answer is no.

In: nothing. Out: bools. Floor 8; nothing of the package imports it.
"""

from __future__ import annotations

from typing import Any

import torch


def _no(*args: Any, **kwargs: Any) -> bool:
    """Not on a CPU."""
    return False


is_hip = supports_tensor_descriptor = supports_host_tensor_descriptor = _no
use_tileir_tunables = supports_amd_cdna_tunables = supports_mtia_tunables = _no
supports_maxnreg = requires_cuda_version = supports_torch_compile_fusion = _no


def supports_block_ptr(*args: Any) -> bool:
    """The config entry is accepted."""
    return True


def requires_torch_version(version: str) -> bool:
    """Whether torch is at least that version."""
    have, want = (_numbers(v) for v in (torch.__version__, version))
    return have >= want


def min_dot_size(*args: Any) -> tuple[int, int, int]:
    """Products here have no least size."""
    return (1, 1, 1)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.split("+")[0].split(".")[:3] if n.isdigit())
