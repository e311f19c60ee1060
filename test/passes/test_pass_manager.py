"""Running passes: order, verification, dumps; and all passes on random kernels."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch

from test.ir import random_kernels
from torch_helion import exc, settings
from torch_helion.ir.graph import Kernel
from torch_helion.ir.printer import dump
from torch_helion.ir.verifier import verify
from torch_helion.passes import pass_manager
from torch_helion.passes.pass_manager import Pass
from torch_helion.passes.pipeline import SIMPLIFY


def drop_buffers(kernel: Kernel) -> Kernel:
    return replace(kernel, buffers=())


BREAK = Pass("break_it", drop_buffers)


def test_passes_run_in_order() -> None:
    seen: list[str] = []
    steps = [Pass(n, lambda k, n=n: seen.append(n) or k) for n in ("first", "second")]  # type: ignore
    kernel = random_kernels.make(1).kernel
    assert pass_manager.run(steps, kernel) is kernel
    assert seen == ["first", "second"]


def test_verification_is_a_choice() -> None:
    kernel = random_kernels.make(1).kernel
    pass_manager.run([BREAK], kernel)
    with pytest.raises(exc.VerifierError):
        pass_manager.run([BREAK], kernel, verify_each=True)
    with settings.patch(verify=True), pytest.raises(exc.VerifierError):
        pass_manager.run([BREAK], kernel)
    with settings.patch(verify=True):
        pass_manager.run([BREAK], kernel, verify_each=False)


def test_the_dump_of_a_failing_pass_is_written(tmp_path: pathlib.Path) -> None:
    kernel = random_kernels.make(1).kernel
    with settings.patch(dump=str(tmp_path), verify=True), pytest.raises(exc.VerifierError):
        pass_manager.run([*SIMPLIFY, BREAK], kernel)
    files = sorted(p.name for p in tmp_path.iterdir())
    names = ["canonicalize", "eliminate_dead_code", "collapse_axes", "break_it"]
    assert files == [f"{i:02d}_{name}.txt" for i, name in enumerate(names)]
    text = (tmp_path / files[0]).read_text()
    assert text.startswith("# after canonicalize (") and f"kernel {kernel.name}(" in text


def check(seed: int) -> None:
    """Every pass alone keeps each result to the bit, the sign of zero included."""
    case = random_kernels.make(seed, paired=seed % 2 == 1)
    args = case.make_args()
    want = case.expected(args)
    for step in SIMPLIFY:
        kernel = step.apply(case.kernel)
        verify(kernel)
        changed = replace(case, kernel=kernel)
        for a, b in zip(changed.expected(args), want, strict=True):
            context = f"{step.name}, seed {seed}\n{dump(case.kernel)}\n{dump(kernel)}"
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=context)
            if a.dtype.is_floating_point:
                number = ~a.isnan()
                assert torch.equal(a[number].signbit(), b[number].signbit()), context
        case = changed


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_results_stay(first: int) -> None:
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(80, 480, 50))
def test_results_stay_more(first: int) -> None:
    for seed in range(first, first + 50):
        check(seed)


def test_passes_find_something_to_do() -> None:
    """The property above is not empty: kernels of each kind do change."""
    counts = dict.fromkeys((p.name for p in SIMPLIFY), 0)
    for seed in range(40):
        kernel = random_kernels.make(seed, paired=seed % 2 == 1).kernel
        for step in SIMPLIFY:
            before, kernel = kernel, step.apply(kernel)
            counts[step.name] += dump(before) != dump(kernel)
    assert min(counts.values()) >= 8, counts
