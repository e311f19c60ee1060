"""Random programs are valid, and neither blocks nor passes change what they compute."""

from __future__ import annotations

import pytest

from test.ir import random_programs
from torch_helion.ir.verifier import verify
from torch_helion.passes.pass_manager import run as run_passes
from torch_helion.passes.pipeline import SIMPLIFY


def check(seed: int) -> None:
    case = random_programs.make(seed)
    verify(case.kernel)
    args = case.make_args()
    whole = case.expected(args)
    for blocks in (case.blocks, 3):
        case.check(case.expected(args, blocks=blocks), whole)
    case.kernel = run_passes(SIMPLIFY, case.kernel, verify_each=True)
    case.check(case.expected(args, blocks=2), whole)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_blocks_and_passes_change_nothing(first: int) -> None:
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(60, 400, 20))
def test_more_programs(first: int) -> None:
    test_blocks_and_passes_change_nothing(first)
