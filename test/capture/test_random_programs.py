"""Random programs: whatever regions are found, their kernels give what eager evaluation gives.

Broadcasts, permutations, reshapes, slices, moved data, gathers and reductions in any order. A
failure names its seed; `check(seed, symbolic)` repeats it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from region_testing import check_traced

from torch_helion.capture.regions import Limits

Tensor = torch.Tensor
Step = Callable[[random.Random, Tensor, list[Tensor]], Tensor]


def binary(r: random.Random, x: Tensor, others: list[Tensor]) -> Tensor:
    fn = r.choice([torch.add, torch.mul, torch.maximum])
    result: Tensor = fn(x, r.choice(others))
    return result


def some_dim(r: random.Random, x: Tensor) -> int:
    return r.randrange(x.dim())


def narrow(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    d = some_dim(r, x)
    start = r.randint(0, x.shape[d] - 1)
    part = x.narrow(d, start, r.randint(start + 1, int(x.shape[d])) - start)
    return part * 2 if r.random() < 0.5 else part


def reshape(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    if x.dim() < 2 or r.random() < 0.3:
        return x.reshape(-1)
    if r.random() < 0.5:
        return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return x.reshape(*x.shape[:-2], -1)


def split(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    n = int(x.numel())
    factor = r.choice([q for q in range(2, n + 1) if n % q == 0] or [1])
    return x.reshape(n // factor, factor)


def take(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    d = some_dim(r, x)
    index = torch.arange(int(x.shape[d]) - 1, -1, -1) if r.random() < 0.5 else torch.tensor([0, 0])
    return x.index_select(d, index) if r.random() < 0.5 else x[(slice(None),) * d + (index,)]


def outer_difference(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    return x[:, None] - x[None, :] if x.dim() == 1 else F.layer_norm(x, x.shape[-1:])


def permute(r: random.Random, x: Tensor, _: list[Tensor]) -> Tensor:
    return x.permute(*r.sample(range(x.dim()), x.dim()))


STEPS: tuple[Step, ...] = (
    lambda r, x, _: torch.exp(-x.abs()),
    lambda r, x, _: torch.tanh(x),
    lambda r, x, _: torch.where(x > 0, x, 0.5 * x),
    binary,
    binary,
    binary,
    lambda r, x, _: x.sum(some_dim(r, x), keepdim=r.random() < 0.5),
    lambda r, x, _: x.amax(some_dim(r, x), keepdim=r.random() < 0.5),
    lambda r, x, _: x.mean(tuple(r.sample(range(x.dim()), r.randint(1, x.dim())))),
    lambda r, x, _: torch.softmax(x, some_dim(r, x)),
    lambda r, x, _: torch.var_mean(x, some_dim(r, x), correction=0, keepdim=True)[r.randint(0, 1)],
    permute,
    reshape,
    split,
    narrow,
    take,
    lambda r, x, _: x.unsqueeze(r.randint(0, x.dim())),
    lambda r, x, _: torch.cat([x, x.flip(some_dim(r, x))], some_dim(r, x)),
    lambda r, x, _: F.pad(x, (r.randint(0, 2), r.randint(0, 2)), value=1.0),
    lambda r, x, _: x.flip(some_dim(r, x)),
    lambda r, x, _: x.roll(r.randint(1, 3), some_dim(r, x)),
    lambda r, x, _: x.select(some_dim(r, x), 0),
    outer_difference,
)


def program(seed: int) -> Callable[..., tuple[Tensor, ...]]:
    """The same random steps at every call; steps that a shape does not allow are left out."""

    def fn(*args: Tensor) -> tuple[Tensor, ...]:
        r = random.Random(seed)
        values = list(args)
        for _ in range(r.randint(2, 12)):
            try:
                value = r.choice(STEPS)(r, r.choice(values[-4:]), values)
            except (RuntimeError, IndexError, ValueError, TypeError):
                continue
            if 0 < value.numel() < 5000 and value.dim() <= 5:
                values.append(value)
        made = values[len(args) :] or [values[0] * 2]
        return tuple(r.sample(made[:-1], min(2, len(made) - 1)) + made[-1:])

    return fn


def arguments(seed: int) -> list[Tensor]:
    r = random.Random(seed)
    a, b, c = (r.choice([2, 3, 4, 5, 6]) for _ in range(3))
    shapes = [(a, b, c), (a, 1, c), (c,), (b, c), (a * b, c), (a, b, 1)]
    args = [
        torch.randn(shapes[0]),
        *(torch.randn(r.choice(shapes)) for _ in range(r.randint(0, 2))),
    ]
    if r.random() < 0.3:
        args[0] = torch.randn(c, b, a).permute(2, 1, 0)
    return args


def check(seed: int, symbolic: bool) -> Any:
    # Odd seeds: no shortcut for short columns or small wholes, so that everything takes two phases.
    limits = Limits(short_fold=1, max_single_step=0) if seed % 2 else None
    return check_traced(program(seed), *arguments(seed), symbolic=symbolic, limits=limits)


@pytest.mark.parametrize("seed", range(40))
def test_static_sizes(seed: int) -> None:
    check(seed, symbolic=False)


@pytest.mark.parametrize("seed", range(100, 115))
def test_symbolic_sizes(seed: int) -> None:
    check(seed, symbolic=True)
