"""The printed source of random kernels computes what they do, by position instead of by name."""

from __future__ import annotations

import pytest
import torch

from test.ir import random_kernels, run_source
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


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_runs(first: int) -> None:
    for seed in range(first, first + 20):
        check(random_kernels.make(seed, paired=seed % 5 == 4))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 400, 50))
def test_runs_more(first: int) -> None:
    for seed in range(first, first + 50):
        check(random_kernels.make(seed, paired=seed % 5 == 4))
