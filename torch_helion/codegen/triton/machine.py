"""The GPUs that text is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What `triton.compile` calls a GPUTarget."""

    backend: str = "cuda"
    arch: int | str = 90
    warp_size: int = 32


NVIDIA_H100 = Machine("cuda", 90, 32)
AMD_MI300 = Machine("hip", "gfx942", 64)
