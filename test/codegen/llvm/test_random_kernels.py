"""Random kernels: the llvm target computes what the interpreter does, for any block size, unroll
and vector width.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from test.guarded import guarded
from test.ir import random_kernels
from torch_helion import compiler
from torch_helion.codegen.llvm import engine
from torch_helion.codegen.llvm.kernel import grid_axes
from torch_helion.codegen.llvm.target import LLVM
from torch_helion.config import Config

MACHINES = {
    "host": engine.host_machine(),
    # Scalar tails, as on machines without masked accesses; the instructions are a subset of the
    # host's.
    "narrow": dataclasses.replace(engine.host_machine(), vector_bits=256),
}


def target_for(machine: str):
    return dataclasses.replace(LLVM, machine=lambda: MACHINES[machine])


def run_case(seed: int, machine: str, config: Config, side: str) -> None:
    case = random_kernels.make(seed)
    target = target_for(machine)
    text = compiler.compile_kernel(case.kernel, config=config, target=target)
    kernel = compiler.load_kernel(text, target)
    args = case.make_args(seed)
    want = case.expected(args)
    args = [guarded(t, side) for t in args]
    kernel(*args, *(case.sizes[s] for s in case.kernel.sizes))
    case.check(args, want)


def random_config(seed: int, case: random_kernels.Case) -> Config:
    rng = random.Random(seed)
    sizes = [case.blocks.get(a, rng.choice((1, 2, 4, 16, 64))) for a in grid_axes(case.kernel)]
    return Config(block_sizes=sizes, unroll=rng.choice((1, 2, 4)))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_matches_interpreter(first: int, machine: str) -> None:
    for seed in range(first, first + 10):
        run_case(
            seed,
            machine,
            random_config(seed, random_kernels.make(seed)),
            ("start", "end")[seed % 2],
        )


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 1000, 20))
def test_matches_interpreter_more(first: int) -> None:
    for seed in range(first, first + 20):
        machine = ("host", "narrow")[seed % 2]
        run_case(
            seed,
            machine,
            random_config(seed, random_kernels.make(seed)),
            ("start", "end")[seed // 2 % 2],
        )


def test_guard_is_a_guard() -> None:
    """The padding of a guarded tensor is poison, so a read of it would be seen."""
    t = guarded(torch.ones(3))
    assert torch.isnan(torch.as_strided(t, (1,), (1,), t.storage_offset() - 1)).all()
