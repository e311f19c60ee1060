"""The public names of the language, and what they do where they have no meaning."""

from __future__ import annotations

import inspect

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion import exc
from torch_helion.frontend import language_rows, scan_rows
from torch_helion.frontend.functions import ROWS

assert language_rows is not None and scan_rows is not None  # they register their rows

NAMES = [
    "tile",
    "grid",
    "static_range",
    "jagged_tile",
    "barrier",
    "tile_index",
    "tile_begin",
    "tile_end",
    "tile_id",
    "tile_block_size",
    "tile_count",
    "load",
    "store",
    "atomic_add",
    "atomic_and",
    "atomic_or",
    "atomic_xor",
    "atomic_max",
    "atomic_min",
    "atomic_xchg",
    "atomic_cas",
    "StackTensor",
    "stacktensor_like",
    "zeros",
    "full",
    "arange",
    "register_block_size",
    "register_tunable",
    "specialize",
    "constexpr",
    "ProcessGroupName",
    "dot",
    "dot_scaled",
    "reduce",
    "associative_scan",
    "cumsum",
    "cumprod",
    "rand",
    "randint",
    "randn",
    "rand4x",
    "split",
    "join",
    "subscript",
    "float4_e2m1fn_x2_to_float32",
    "load_float4_e2m1fn_x16_to_float16",
    "load_bfloat16_x16_to_float16",
    "inline_triton",
    "triton_kernel",
    "inline_asm_elementwise",
    "device_print",
    "device_assert",
    "fma",
    "breakpoint",
    "make_async_remote_copy",
    "AsyncCopyDescriptor",
    "remote_barrier",
    "Tile",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_exists_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(hl, name))


@pytest.mark.parametrize("name", [n for n in NAMES if n[0].islower() and n != "constexpr"])
def test_outside_of_kernels(name: str) -> None:
    fn = getattr(hl, name)
    count = sum(
        p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(fn).parameters.values()
    )
    with pytest.raises(exc.NotInsideKernel, match=rf"inside a kernel \(hl\.{name}\)"):
        fn(*[1] * count)


def test_device_functions_on_the_host() -> None:
    @helion.kernel
    def early(x: torch.Tensor) -> torch.Tensor:
        out = hl.zeros([8])
        for tile in hl.tile(8):
            out[tile] = x[tile]
        return out

    with pytest.raises(exc.DeviceAPIOnHost, match=r"hl\.zeros"):
        early(torch.ones(8))


def test_constexpr_holds_a_value() -> None:
    assert hl.constexpr(3).value == 3 and [0, 1, 2, 3][hl.constexpr(3)] == 3


PARAMETERS = {
    "dot": "mat1 mat2 acc out_dtype",
    "reduce": "combine_fn input_tensor dim other keep_dims",
    "associative_scan": "combine_fn input_tensor dim reverse",
    "cumsum": "input_tensor dim reverse",
    "cumprod": "input_tensor dim reverse",
    "split": "tensor",
    "join": "tensor0 tensor1",
    "subscript": "tensor index",
    "load": "tensor index extra_mask eviction_policy",
    "store": "tensor index value extra_mask",
    "atomic_add": "target index value sem",
    "atomic_cas": "target index expected value sem",
    "zeros": "shape dtype device",
    "full": "shape value dtype device",
    "rand": "shape seed device offsets",
    "randint": "shape low high seed device",
    "rand4x": "seed offsets device",
    "tile_index": "tile",
    "stacktensor_like": "tensor_like dev_ptrs",
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters_have_their_names(name: str) -> None:
    """A call by keywords means the same on the device as the signature says.

    Parameters of this package's own come behind those that programs know.
    """
    function, known = getattr(hl, name), PARAMETERS[name].split()
    declared = list(inspect.signature(function).parameters)
    assert declared[: len(known)] == known
    meaning = list(inspect.signature(ROWS[function]).parameters)
    assert meaning[1:] == declared
