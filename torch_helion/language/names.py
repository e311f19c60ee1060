"""The public names of the language, by the modules that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_helion.language.creation import arange, full, rand, rand4x, randint, randn, zeros
from torch_helion.language.escape import (
    AsyncCopyDescriptor,
    breakpoint,
    device_assert,
    device_print,
    float4_e2m1fn_x2_to_float32,
    inline_asm_elementwise,
    inline_triton,
    load_bfloat16_x16_to_float16,
    load_float4_e2m1fn_x16_to_float16,
    make_async_remote_copy,
    remote_barrier,
    triton_kernel,
)
from torch_helion.language.loops import (
    barrier,
    grid,
    jagged_tile,
    static_range,
    tile,
    tile_begin,
    tile_block_size,
    tile_count,
    tile_end,
    tile_id,
    tile_index,
)
from torch_helion.language.math import (
    associative_scan,
    cumprod,
    cumsum,
    dot,
    dot_scaled,
    fma,
    join,
    reduce,
    split,
    subscript,
)
from torch_helion.language.memory import (
    atomic_add,
    atomic_and,
    atomic_cas,
    atomic_max,
    atomic_min,
    atomic_or,
    atomic_xchg,
    atomic_xor,
    load,
    stacktensor_like,
    store,
)
from torch_helion.language.tunables import register_block_size, register_tunable, specialize
from torch_helion.language.values import ConstExpr, ProcessGroupName, StackTensor, Tile

if TYPE_CHECKING:  # an argument of this annotation is used as the value that it is
    from typing import Any as constexpr
else:
    constexpr = ConstExpr

__all__ = [
    "AsyncCopyDescriptor",
    "ConstExpr",
    "ProcessGroupName",
    "StackTensor",
    "Tile",
    "arange",
    "associative_scan",
    "atomic_add",
    "atomic_and",
    "atomic_cas",
    "atomic_max",
    "atomic_min",
    "atomic_or",
    "atomic_xchg",
    "atomic_xor",
    "barrier",
    "breakpoint",
    "constexpr",
    "cumprod",
    "cumsum",
    "device_assert",
    "device_print",
    "dot",
    "dot_scaled",
    "float4_e2m1fn_x2_to_float32",
    "fma",
    "full",
    "grid",
    "inline_asm_elementwise",
    "inline_triton",
    "jagged_tile",
    "join",
    "load",
    "load_bfloat16_x16_to_float16",
    "load_float4_e2m1fn_x16_to_float16",
    "make_async_remote_copy",
    "rand",
    "rand4x",
    "randint",
    "randn",
    "reduce",
    "register_block_size",
    "register_tunable",
    "remote_barrier",
    "specialize",
    "split",
    "stacktensor_like",
    "static_range",
    "store",
    "subscript",
    "tile",
    "tile_begin",
    "tile_block_size",
    "tile_count",
    "tile_end",
    "tile_id",
    "tile_index",
    "triton_kernel",
    "zeros",
]
