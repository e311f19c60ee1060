"""Results that a graph copies into an input are written there by the kernel, where that is safe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._pytree import tree_leaves


def both(fn: Callable[..., Any], *args: torch.Tensor) -> str:
    """Run eagerly and compiled on copies, compare results and arguments; the generated program."""
    eager, compiled = copy.deepcopy(args), copy.deepcopy(args)
    want = fn(*eager)
    got, programs = run_and_get_code(torch.compile(fn, backend="helion"), *compiled)
    pairs = zip(tree_leaves((got, compiled)), tree_leaves((want, eager)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
    return "\n".join(programs)


def adamw(p, g, m, v):
    p.mul_(0.99)
    m.lerp_(g, 0.1)
    v.mul_(0.999).addcmul_(g, g, value=0.001)
    p.addcdiv_(m, v.sqrt().add_(1e-8), value=-0.01)


@pytest.mark.parametrize("size", [1, 17, 1000])
def test_an_update_copies_nothing(size: int) -> None:
    program = both(adamw, *(torch.randn(size) for _ in range(3)), torch.rand(size))
    call = program[program.index("def call") :]
    assert "copy_" not in call and "empty_strided_cpu(" not in call


def test_an_update_that_is_also_returned() -> None:
    def fn(p, g):
        p.add_(g)
        return p * 2

    both(fn, torch.randn(33), torch.randn(33))


def reads_a_view_before(p, g):
    old = p[1:] + 0
    p.mul_(2).add_(g)
    return old


def reads_after_a_reduction(p, g):
    old = p * 3
    p.copy_(g.softmax(-1))
    return old


def flips(p, g):
    p.copy_(p.flip(0) + g)


def transposes(p, g):
    p.copy_(p.t() * g)


def normalises(p, g):
    p.copy_(p.softmax(-1) + g)


def writes_two(p, g):
    p.add_(g)
    g.mul_(p)


def writes_a_row(p, g):
    p[2].mul_(g[0])
    return p.sum(0)


def writes_what_it_gathers(p, g):
    index = torch.tensor([3, 0, 1, 2, 4, 5, 6, 7])
    p.copy_(p[index] * g)


@pytest.mark.parametrize(
    "fn",
    [
        reads_a_view_before,
        reads_after_a_reduction,
        flips,
        transposes,
        normalises,
        writes_two,
        writes_a_row,
        writes_what_it_gathers,
    ],
)
def test_near_misses_keep_their_meaning(fn: Callable[..., Any]) -> None:
    both(fn, torch.randn(8, 8), torch.randn(8, 8))


def test_rejects_a_kernel_that_reads_elsewhere() -> None:
    for fn in (flips, transposes, normalises, writes_what_it_gathers):
        program = both(fn, torch.randn(8, 8), torch.randn(8, 8))
        assert "copy_" in program[program.index("def call") :], fn.__name__


def test_other_strides_are_not_written_in_place() -> None:
    def fn(p, g):
        p.copy_(g * 2)

    both(fn, torch.randn(6, 4).t(), torch.randn(4, 6))
    both(fn, torch.randn(8, 8)[:, ::2], torch.randn(8, 4))
