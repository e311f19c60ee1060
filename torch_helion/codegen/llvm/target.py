"""The llvm target: every CPU, compiled in the process."""

from __future__ import annotations

from torch_helion.codegen.llvm import defaults, engine
from torch_helion.codegen.llvm.compute import POINTWISE_ROWS
from torch_helion.codegen.llvm.kernel import print_kernel
from torch_helion.codegen.llvm.text import STORAGE
from torch_helion.codegen.target import Target
from torch_helion.ir.ops import OP_KINDS, REDUCTIONS

LLVM = Target(
    name="llvm",
    suffix="ll",
    device_types=("cpu",),
    dtypes=STORAGE,
    pointwise=POINTWISE_ROWS,
    reductions=frozenset(REDUCTIONS),
    op_kinds=frozenset(OP_KINDS),
    default_config=defaults.default_config,
    print_kernel=print_kernel,
    machine=engine.host_machine,
    machine_key=engine.machine_key,
    build=engine.compile_object,
    load=engine.load_object,
    tunables=defaults.tunables,
)
