"""The judge: what the interpreter says in float64, and how much worse a tiled sum may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_helion as helion
from test.frontend.programs import PROGRAMS
from test.kernel.kernels import make, rowsum
from torch_helion import exc
from torch_helion.autotuner import reference
from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.problem import Judge


def judged(kernel: helion.Kernel, *args: Any) -> tuple[Judge, list[torch.Tensor]]:
    """The judge of a kernel, and right outputs."""
    problem = kernel.bind(args).tuning_problem(args)
    instance = problem.prepare(problem.default).instance
    arena = Arena(instance.tensors, instance.written)
    assert instance.make_judge is not None
    judge = instance.make_judge(arena)
    arena.close()
    assert judge is not None
    return judge, [kernel(*args)]


def test_errors_of_the_default_and_of_others() -> None:
    x = torch.randn(50, 4000) + 1
    judge, (right,) = judged(make(rowsum), x)
    assert judge([right]) is None
    truth = x.double().sum(-1)
    error = float((x.sum(-1).double() - truth).square().mean().sqrt())
    noise = torch.randn(50).double()
    noise /= noise.square().mean().sqrt()

    def off(factor: float) -> list[torch.Tensor]:
        return [(truth + factor * max(error, 2e-3) * noise).float()]

    for first, accepted in ((1.0, True), (50.0, False)):
        fresh, _ = judged(make(rowsum), x)
        assert (fresh(off(first)) is None) == accepted
    assert judge(off(50.0)) is not None, "others get no slack"
    assert judge([right]) is None, "and do not change the judge"


def test_wrong_places_types_and_nans() -> None:
    x = torch.randn(50, 40)
    judge, (right,) = judged(make(rowsum), x)
    assert judge([right.flip(0)]) is not None
    assert judge([right.half()]) is not None
    spoiled = right.clone()
    spoiled[7] = float("nan")
    assert judge([spoiled]) is not None
    assert judge([right]) is None
    x[3, 3] = float("nan")
    x[5, 5] = float("inf")
    judge, (right,) = judged(make(rowsum), x)
    assert judge([right]) is None
    assert judge([right.nan_to_num()]) is not None


def test_close_is_close() -> None:
    a = torch.randn(100_000)
    assert reference.is_close(a, a.double())
    b = a.clone()
    b[-1] += 1e-3
    assert not reference.is_close(b, a.double())
    assert not reference.is_close(a, a.double()[:-1])
    assert not reference.is_close(a.long(), a.long()), "integers are equal or not"
    assert reference.is_close(torch.zeros(0), torch.zeros(0).double())


def test_what_takes_too_long_is_not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    fn, args, _, _ = PROGRAMS["attention"]
    kernel = make(fn, ignore_warnings=[exc.BaseWarning])
    problem = kernel.bind(args).tuning_problem(args)
    instance = problem.prepare(problem.default).instance
    arena = Arena(instance.tensors, instance.written)
    assert instance.make_judge is not None
    monkeypatch.setattr(reference, "LONGEST", 1e-6)
    assert instance.make_judge(arena) is None
    arena.close()
    kernel.autotune(args, budget=1.0)
    assert kernel.last_search.rejected == ()


def seconds(fn: Any, *args: Any) -> float:
    """Estimated for the judge of a kernel."""
    bound = make(fn, ignore_warnings=[exc.BaseWarning]).bind(args)
    names, sizes = bound.ir.block_names, bound.default_config().block_sizes
    blocks = reference._Blocks(bound.ir, {}, dict(zip(names, sizes, strict=True)))
    blocks.grow()
    return blocks.seconds()


def test_estimates_know_what_is_slow() -> None:
    x = torch.randn(2000, 1000)
    assert 0.005 < seconds(rowsum, x) < 0.5
    assert seconds(rowsum, torch.randn(200, 10)) < 0.01
    ids = torch.zeros(4000, dtype=torch.int64)
    lanes_one_by_one = seconds(PROGRAMS["segments"][0], ids, torch.randn(4000, 32))
    assert lanes_one_by_one > 4, "128000 lanes of an atomic that gives results"
