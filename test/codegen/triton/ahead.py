"""Compiles generated text for GPUs that are not there, in a process of its own.

python -m test.codegen.triton.ahead families|programs sm_90|gfx942 NAME|NUMBER...
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import sympy
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from test.codegen.triton.families import FAMILIES
from test.codegen.triton.modules import module_of
from test.ir import random_programs
from torch_helion import compiler
from torch_helion.codegen.triton.machine import AMD_MI300, NVIDIA_H100
from torch_helion.codegen.triton.target import TRITON
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel

MACHINES = {"sm_90": NVIDIA_H100, "gfx942": AMD_MI300}
TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
BY_DEFAULT = ("softmax", "layer_norm_backward", "matmul_half", "attention", "product_batch")
"""Families that are compiled with the target's own config as well."""
BINARIES = {"sm_90": "cubin", "gfx942": "hsaco"}

_NAMES = {
    torch.bool: "i1",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}


class _Recorder:
    """Takes the place of a function and remembers what it is started with."""

    def __init__(self, function: JITFunction) -> None:
        self.function = function
        self.starts: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self.starts.append((args, options))


def _type(value: Any) -> str:
    return f"*{_NAMES[value.dtype]}" if isinstance(value, torch.Tensor) else "i64"


def compile_ahead(
    kernel: Kernel, sizes: Mapping[sympy.Symbol, int], config: Config | None, target: str
) -> list[bytes]:
    """The binary of each phase: by starting `launch` with functions that only look."""
    made_for = dataclasses.replace(TRITON, machine=lambda: MACHINES[target])
    module = module_of(compiler.compile_kernel(kernel, sizes, config, made_for))
    names = [n for n, f in vars(module).items() if isinstance(f, JITFunction)]
    recorders = {n: _Recorder(getattr(module, n)) for n in names if n.startswith(kernel.name)}
    vars(module).update(recorders)
    tensors = [torch.empty(0, dtype=b.dtype) for b in kernel.arguments]
    module.launch(*tensors, *(sizes[s] for s in kernel.sizes))
    vars(module).update({n: r.function for n, r in recorders.items()})
    return [
        _compile(recorder.function, args, dict(options), target)
        for recorder in recorders.values()
        for args, options in recorder.starts
    ]


def _compile(
    function: JITFunction, args: tuple[Any, ...], options: dict[str, Any], target: str
) -> bytes:
    launch = {k: options.pop(k) for k in ("num_warps", "num_stages") if k in options}
    signature = {n: _type(a) for n, a in zip(function.arg_names, args, strict=False)}
    signature |= dict.fromkeys(options, "constexpr")
    source = ASTSource(function, signature, options)
    return triton.compile(source, target=TARGETS[target], options=launch).asm[BINARIES[target]]


def check_family(name: str, target: str) -> None:
    family = FAMILIES[name]
    if target not in family.targets:
        return
    for config in (family.config, None) if name in BY_DEFAULT else (family.config,):
        binaries = compile_ahead(family.kernel, family.case.sizes, config, target)
        assert len(binaries) == len(family.kernel.phases)
        assert all(b[:4] == b"\x7fELF" for b in binaries)


def check_program(number: str, target: str) -> None:
    case = random_programs.make(int(number), random_programs.FEATURES - {"sort"})
    blocks = [case.blocks[n] for n in case.kernel.block_names]
    compile_ahead(case.kernel, case.sizes, Config(block_sizes=blocks), target)


def main(what: str, target: str, *names: str) -> int:
    failed = 0
    for name in names:
        try:
            {"families": check_family, "programs": check_program}[what](name, target)
        except Exception:
            failed += 1
            print(f"---- {name} for {target}\n{traceback.format_exc(limit=-3)}")
    print(f"{len(names) - failed} of {len(names)} compiled")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
