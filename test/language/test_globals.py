"""Data of modules is read again at each call, wherever the device part reads it."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.language import helper_data
from test.language.helper_data import scaled, shifted, wide

OWN = 1.0


def with_own(x):
    return x + OWN


@helion.kernel
def direct(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = with_own(shifted(x[tile], tile)) + helper_data.FACTOR
    return out


@helion.kernel
def by_argument(x: torch.Tensor, f) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = f(x[tile], tile)
    return out


@helion.kernel
def as_a_size(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile, :] = wide(x[tile, :])
    return out


def expected(x):
    factor = helper_data.FACTOR
    return x * factor + helper_data.SHIFT + OWN + factor


def test_helpers_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5)
    torch.testing.assert_close(direct(x), expected(x))
    for factor in (3.0, -1.0, 5):
        monkeypatch.setattr(helper_data, "FACTOR", factor)
        torch.testing.assert_close(direct(x), expected(x))
    monkeypatch.setattr(helper_data, "SHIFT", torch.randn(5))
    torch.testing.assert_close(direct(x), expected(x))
    helper_data.SHIFT.add_(1)
    monkeypatch.setitem(globals(), "OWN", 7.0)
    torch.testing.assert_close(direct(x), expected(x))
    eager = helion.kernel(direct.fn, ref_mode=helion.RefMode.EAGER)
    torch.testing.assert_close(eager(x), expected(x))


def test_functions_as_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5)
    for factor in (2.0, 3.0, 4.0):
        monkeypatch.setattr(helper_data, "FACTOR", factor)
        torch.testing.assert_close(by_argument(x, shifted), x * factor + 1)
        torch.testing.assert_close(by_argument(x, lambda v, tile: scaled(v) - 1), x * factor - 1)
    monkeypatch.setattr(helper_data, "SHIFT", torch.zeros(5))
    torch.testing.assert_close(by_argument(x, shifted), x * 4)


def test_equal_lambdas_are_one_kernel() -> None:
    x = torch.randn(5)
    by_argument.reset()
    for n in (1, 2, 3):
        torch.testing.assert_close(by_argument(x, lambda v, tile: v * 3), x * 3, msg=str(n))
    (bound,) = by_argument._bound.values()
    assert len(bound.variants) == 1
    torch.testing.assert_close(by_argument(x, lambda v, tile: v * 4), x * 4)
    assert len(by_argument._bound) == 2


def test_closures_of_one_kind_with_other_code() -> None:
    a, b = torch.randn(5), torch.randn(5)
    table = [lambda v, tile: v + a[tile], lambda v, tile: v * b[tile]]

    @helion.kernel
    def chosen(x: torch.Tensor, fs: list, n: int) -> torch.Tensor:
        f = fs[n]
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0)):
            out[tile] = f(x[tile], tile)
        return out

    x = torch.randn(5)
    torch.testing.assert_close(chosen(x, table, 0), x + a)
    torch.testing.assert_close(chosen(x, table, 1), x * b)


def test_numbers_that_are_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 4)
    torch.testing.assert_close(as_a_size(x), x + torch.arange(4))
    monkeypatch.setattr(helper_data, "WIDTH", 1)
    torch.testing.assert_close(as_a_size(x), x)
