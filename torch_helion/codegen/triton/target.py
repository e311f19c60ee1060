"""The triton target: GPUs of NVIDIA and AMD, as text that Triton compiles.

`compiler.compile_kernel(kernel, hints, config, TRITON)` gives the text of a module whose `launch`
takes the tensors and sizes of the kernel. Nothing here imports triton: the text does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch_helion import exc
from torch_helion.codegen.target import Target
from torch_helion.codegen.triton.defaults import default_config
from torch_helion.codegen.triton.dtypes import NAMES
from torch_helion.codegen.triton.kernel import ROWS, print_kernel
from torch_helion.codegen.triton.machine import NVIDIA_H100
from torch_helion.codegen.triton.pointwise import POINTWISE_ROWS, UNSUPPORTED
from torch_helion.codegen.triton.roll_reductions import rollable_axes
from torch_helion.ir.ops import REDUCTIONS


def _no_build(text: str, machine: Any) -> bytes:
    raise exc.CodegenError("the triton target gives text; Triton itself compiles and launches it")


def _no_load(data: bytes, symbols: Sequence[str]) -> Any:
    raise exc.CodegenError("the triton target gives text; Triton itself compiles and launches it")


_OWN_KINDS = frozenset(("yield", "barrier"))
"""Kinds that need no row: the end of a region, the border between two launches."""

_NO_KINDS = frozenset(("sort",))

TRITON = Target(
    name="triton",
    suffix="py",
    device_types=("cuda",),
    dtypes=NAMES,
    pointwise=POINTWISE_ROWS,
    reductions=frozenset(REDUCTIONS),
    op_kinds=(frozenset(ROWS) | _OWN_KINDS) - _NO_KINDS,
    default_config=default_config,
    print_kernel=print_kernel,
    machine=lambda: NVIDIA_H100,
    machine_key=repr,
    build=_no_build,
    load=_no_load,
    rows=rollable_axes,
    unsupported=UNSUPPORTED | _NO_KINDS,
)
