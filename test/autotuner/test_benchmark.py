"""Copies of arguments, and measurements in this process."""

from __future__ import annotations

import time

import torch

from torch_helion.autotuner.benchmark import cloned, do_bench, interleaved


def test_copies_have_values_and_strides_but_other_memory() -> None:
    x, y = torch.randn(4, 6).t(), torch.randn(3, requires_grad=True)
    given = (x, [y, 3], {"a": torch.Size([2]), "b": None})
    copy = cloned(given)
    assert torch.equal(copy[0], x) and copy[0].stride() == x.stride()
    assert copy[0].data_ptr() != x.data_ptr()
    assert torch.equal(copy[1][0], y) and not copy[1][0].requires_grad
    assert copy[1][1] == 3 and copy[2] == given[2]


def test_shared_memory_is_shared_by_the_copies() -> None:
    base = torch.arange(12.0)
    a, b, other = base[:8], base[4:].view(2, 4), torch.zeros(3)
    first, second, third = cloned((a, b, other))
    first[5] = -1
    assert second[0, 1] == -1 and base[5] == 5
    assert third.untyped_storage().nbytes() == 12
    wide = torch.randn(5, 1).expand(5, 7)
    assert torch.equal(cloned(wide), wide) and cloned(wide).stride() == wide.stride()


def test_the_slower_one_is_told() -> None:
    times = interleaved([lambda: None, lambda: time.sleep(2e-3)], rounds=3)
    assert times[0] < times[1]
    assert do_bench(lambda: time.sleep(1e-3), rep=2) >= 1.0
