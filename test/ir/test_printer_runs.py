"""The printed source of random kernels computes what they do, by position instead of by name."""

from __future__ import annotations

import pytest
import torch

from test.ir import random_kernels, random_programs, run_source
from torch_helion.ir.printer import to_source


def outputs(case: random_kernels.Case, args: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t for b, t in zip(case.kernel.arguments, args, strict=True) if b.role == "out"]


def with_outputs(
    case: random_kernels.Case, args: list[torch.Tensor], number: int
) -> list[torch.Tensor]:
    """The outputs of a run of the interpreter that began with `number` in all of them."""
    for tensor in outputs(case, args):
        tensor.fill_(number)
    return outputs(case, case.expected(args, blocks=3))


def check(case: random_kernels.Case) -> None:
    if 0 in case.sizes.values():
        return  # PyTorch has no maximum of nothing
    args = case.make_args()
    source = to_source(case.kernel)
    free = [n for s, n in case.sizes.items() if f"{s}: int" in source]
    inputs = [t for b, t in zip(case.kernel.arguments, args, strict=True) if b.role == "in"]
    got = run_source.run(source, inputs, free, block=3)
    zeros, ones = (with_outputs(case, args, number) for number in (0, 1))
    for result, zero, one in zip(got, zeros, ones, strict=True):
        written = (zero == one) | (zero != zero)
        torch.testing.assert_close(
            result[written],
            zero[written],
            rtol=1e-6,
            atol=1e-6,
            equal_nan=True,
            msg=lambda m: f"{m}\n{source}",
        )


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_runs(first: int) -> None:
    for seed in range(first, first + 20):
        check(random_kernels.make(seed, paired=seed % 5 == 4))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(50, 400, 50))
def test_runs_more(first: int) -> None:
    for seed in range(first, first + 50):
        check(random_kernels.make(seed, paired=seed % 5 == 4))


# -- programs -----------------------------------------------------------------------------------


def merges_blocks(case: random_kernels.Case) -> bool:
    """Whether some block axis is reshaped: its tiles count as whole blocks then."""
    for op in case.kernel.body.walk():
        if op.kind == "reshape" and any(a.kind == "block" for a in op.operands[0].type.axes):
            return True
    return False


def check_program(case: random_kernels.Case) -> None:
    if 0 in case.sizes.values():
        return
    source = to_source(case.kernel)
    free = [n for s, n in case.sizes.items() if f"{s}: int" in source]
    want = case.expected(_blank(case), blocks=3)
    for block in (64,) if merges_blocks(case) else (3, 64):
        args, buffers = _blank(case), case.kernel.arguments
        inputs = [t for b, t in zip(buffers, args, strict=True) if b.is_input]
        try:
            results = iter(run_source.run(source, inputs, free, block))
            pairs = zip(buffers, args, strict=True)
            case.check([next(results) if b.role == "out" else t for b, t in pairs], want)
        except Exception as error:
            raise AssertionError(f"seed {case.seed}: {error}\n{source}") from error


def _blank(case: random_kernels.Case) -> list[torch.Tensor]:
    """Arguments whose outputs hold what the text's new tensors hold."""
    args = case.make_args()
    for buffer, tensor in zip(case.kernel.arguments, args, strict=True):
        if buffer.role == "out":
            tensor.fill_(77)
    return args


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_programs_run(first: int) -> None:
    for seed in range(first, first + 20):
        check_program(random_programs.make(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(60, 400, 20))
def test_programs_run_more(first: int) -> None:
    test_programs_run(first)
