"""Runs generated kernels by Triton's interpreter, in a process of its own.

python -m test.codegen.triton.check families NAME...
python -m test.codegen.triton.check kernels|programs FIRST END

Prints what went wrong; the exit status says whether something did.
"""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from collections.abc import Callable

import numpy as np
import torch

from test.codegen.triton import emulation
from test.codegen.triton.families import FAMILIES, Family
from test.codegen.triton.modules import module_of
from test.guarded import guarded
from test.ir import random_kernels, random_programs
from test.ir.random_kernels import Case
from torch_helion import compiler
from torch_helion.codegen.triton.roll_reductions import rollable_axes
from torch_helion.codegen.triton.target import TRITON
from torch_helion.config import Config

UNSUPPORTED = frozenset(("sort",))


def launch(case: Case, config: Config | None, args: list[torch.Tensor]) -> None:
    text = compiler.compile_kernel(case.kernel, case.sizes, config, TRITON)
    module_of(text).launch(*args, *(case.sizes[s] for s in case.kernel.sizes))


def check_family(family: Family) -> None:
    """By its own config and by the default one."""
    case = family.case
    for config in (family.config, None):
        args = family.args()
        want = case.expected(args)
        launch(case, config, args)
        case.check(args, want)
        if family.name.startswith("functions"):
            check_closely(family, args, want)


def check_closely(family: Family, got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """Lane by lane, signs of zeros included."""
    for buffer, a, b in zip(family.kernel.arguments, got, want, strict=True):
        a, b = (x.nan_to_num(nan=77.0) if x.is_floating_point() else x for x in (a, b))
        small = 2e-6 if buffer.dtype is torch.float32 else 2e-7
        near = torch.isclose(a, b, rtol=10 * small, atol=small)
        if buffer.dtype.is_floating_point:
            near &= a.signbit() == b.signbit()
        if not near.all():
            raise AssertionError(f"{buffer.name}: {a[~near]} instead of {b[~near]}")


def check_kernel(seed: int) -> None:
    check_case(random_kernels.make(seed), seed)


def check_program(seed: int) -> None:
    check_case(random_programs.make(seed, random_programs.FEATURES - UNSUPPORTED), seed)


def check_case(case: Case, seed: int) -> None:
    """By random blocks (not only powers of two), now and then with reductions in chunks."""
    rng = random.Random(seed)
    names = case.kernel.block_names
    blocks = [case.blocks.get(n, rng.choice((1, 2, 4, 16))) for n in names]
    chunks = [rng.choice((None, 2, 4)) for _ in rollable_axes(case.kernel)]
    config = Config(block_sizes=blocks, reduction_loops=chunks if rng.random() < 0.5 else [])
    args = case.make_args(seed)
    want = case.expected(args)
    # Whatever is read or written beside a tensor is poison, or no memory at all.
    args = [guarded(t, ("start", "end")[seed % 2]) for t in args]
    launch(case, config, args)
    case.check(args, want)


def main(what: str, *rest: str) -> int:
    checks: list[tuple[str, Callable[[], None]]] = []
    if what == "families":
        checks = [(name, lambda n=name: check_family(FAMILIES[n])) for name in rest]  # type: ignore[misc]
    else:
        check = {"kernels": check_kernel, "programs": check_program}[what]
        first, end = map(int, rest)
        checks = [(f"{what} {i}", lambda i=i: check(i)) for i in range(first, end)]  # type: ignore[misc]
    failed = 0
    for name, run in checks:
        try:
            run()
        except Exception:
            failed += 1
            print(f"---- {name}\n{traceback.format_exc(limit=-4)}")
    print(f"{len(checks) - failed} of {len(checks)} right")
    return 1 if failed else 0


if __name__ == "__main__":
    emulation.install()
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    sys.exit(main(*sys.argv[1:]))
