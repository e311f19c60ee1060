"""The C++ half: launching kernels and pooling memory (sources in ``csrc/``).

Built by ``setup.py``. ``import torch`` must come first: its libraries are found because they are
already loaded.
"""

from typing import TypedDict, final, type_check_only

import torch

@type_check_only
class PoolStats(TypedDict):
    hits: int
    misses: int
    released_blocks: int
    live_blocks: int
    live_bytes: int
    cached_blocks: int
    cached_bytes: int
    limit_bytes: int
    threshold_bytes: int

@type_check_only
class ParallelInfo(TypedDict):
    threads: int
    openmp: bool
    serial_after_fork: bool

@final
class Kernel:
    """Machine code with its signature; called with its tensors, then its ints."""

    @property
    def name(self) -> str: ...
    @property
    def __name__(self) -> str: ...
    @property
    def dtypes(self) -> tuple[torch.dtype, ...]: ...
    @property
    def keepalive(self) -> object: ...
    @property
    def n_tensors(self) -> int: ...
    @property
    def n_ints(self) -> int: ...
    @property
    def n_phases(self) -> int: ...
    def __new__(
        cls,
        name: str,
        plan: int,
        phases: tuple[int, ...],
        dtypes: tuple[torch.dtype, ...],
        n_ints: int,
        keepalive: object,
    ) -> Kernel: ...
    def __call__(self, *args: torch.Tensor | int) -> None: ...
    def plan(self, *args: torch.Tensor | int) -> list[int]: ...
    def __copy__(self) -> Kernel: ...
    def __deepcopy__(self, memo: object, /) -> Kernel: ...

@final
class Match:
    """Whether a tuple of values is as its specs say: what a specialisation was made for.

    A spec is None (anything), ``("type", type)``, ``("value", value)``, or ``("tensor", dtype,
    sizes, strides)`` with None for what may be anything and -2 for what may be anything but 1.
    """

    def __new__(cls, specs: tuple[tuple[object, ...] | None, ...]) -> Match: ...
    def __call__(self, values: tuple[object, ...], /) -> bool: ...

@final
class Launch:
    """A kernel with the way from a function's values to its arguments.

    Sources of ints and ties are rows ``(kind, position or constant, dim)``: 0 a constant, 1 a size,
    2 a stride, 3 an int, 4 the bits of a float. ``same``: values that must be one tensor; no other
    tensor may share memory with one that is written. ``apart``: pairs of tensor arguments whose
    memory interleaves, and how many bytes the second lies behind the first.
    """

    @property
    def kernel(self) -> Kernel: ...
    @property
    def miss(self) -> object: ...
    def __new__(
        cls,
        kernel: Kernel,
        specs: tuple[tuple[object, ...] | None, ...],
        tensors: tuple[int, ...],
        ints: tuple[tuple[int, int, int], ...],
        ties: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...],
        written: tuple[int, ...],
        same: tuple[tuple[int, int], ...],
        miss: object,
        apart: tuple[tuple[int, int, int], ...] = (),
    ) -> Launch: ...
    def __call__(self, *values: object) -> object: ...

def launch(*kernels_and_args: Kernel | torch.Tensor | int) -> None: ...
def empty_strided(
    size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, /
) -> torch.Tensor: ...
def allocate(
    specs: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...], /
) -> tuple[torch.Tensor, ...]: ...
def empty_cache() -> None: ...
def pool_stats() -> PoolStats: ...
def set_pool_limit(bytes: int, /) -> None: ...
def set_pool_threshold(bytes: int, /) -> None: ...
def set_debug_fill(on: bool, /) -> None: ...
def parallel_info() -> ParallelInfo: ...
