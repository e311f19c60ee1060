"""Views of one tensor, one of which is written: results follow the order of the statements."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.kernel.shared_memory import interleaved


def transposed(x: torch.Tensor) -> torch.Tensor:
    y = x.t()
    for i, j in hl.tile(x.shape):
        v = x[i, j]
        x[i, j] = v + 1
        y[j, i] = y[j, i] * 2
    return x


def flattened(x: torch.Tensor) -> torch.Tensor:
    flat = x.view(-1)
    out = torch.empty_like(x)
    n = hl.specialize(x.size(1))
    for i in hl.grid(x.size(0)):
        x[i, :] = hl.zeros([n])
        out[i, :] = flat[i * n + hl.arange(n)] + 1
    return out


def every_other(x: torch.Tensor) -> torch.Tensor:
    even = x[:, ::2]
    out = torch.zeros_like(even)
    for i in hl.tile(x.size(0)):
        x[i, :] = x[i, :] * 0 + 5
        out[i, :] = even[i, :]
    return out


@pytest.mark.parametrize(
    ("fn", "expect"),
    [
        (transposed, lambda x: (x + 1) * 2),
        (flattened, torch.ones_like),
        (every_other, lambda x: torch.full((8, 4), 5.0)),
    ],
)
def test_views_that_overlap(
    fn: Callable[..., Any], expect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    kernel, x = helion.kernel(fn), torch.randn(8, 8)
    with caplog.at_level(logging.WARNING, "torch_helion"):
        for _ in range(3):
            torch.testing.assert_close(kernel(x.clone()), expect(x))
    assert sum("overlap" in record.message for record in caplog.records) <= 1


@helion.kernel
def shifted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for i in hl.grid(x.size(0)):
        x[i] = y[i] + 1
    return x


def test_arguments_that_overlap_in_some_calls() -> None:
    base = torch.arange(10.0)
    x, y = torch.zeros(9), torch.arange(9.0)
    torch.testing.assert_close(shifted(x, y), y + 1)
    shifted(base[1:], base[:-1])
    torch.testing.assert_close(base, torch.arange(10.0))
    torch.testing.assert_close(shifted(x, y * 2), y * 2 + 1)
    base = torch.zeros(10)
    shifted(base[1:], base[:-1])
    torch.testing.assert_close(base, torch.arange(10.0))


@helion.kernel
def halves(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    for i, j in hl.tile(low.shape):
        low[i, j] = x[i, j] * 2
        high[i, j] = x[i, j] + 1


def test_parts_that_interleave_are_compiled() -> None:
    x = torch.randn(6, 4)
    out = torch.empty(6, 8)
    for target in (out, torch.empty(6, 8)):
        halves(x, target[:, :4], target[:, 4:])
        torch.testing.assert_close(target, torch.cat([x * 2, x + 1], 1))
    (bound,) = halves._bound.values()
    assert type(bound.running.launch).__name__ == "Launch", "no detour for what is apart"
    apart = interleaved([x, out[:, :4], out[:, 4:]], (1, 2))
    assert apart == ((1, 2, 16),)


def test_what_meets() -> None:
    x = torch.zeros(8, 8)
    assert interleaved([x, torch.zeros(8, 8)], (0,)) == ()
    assert interleaved([x[:, 0], x[:, 1:]], (0,)) == ((0, 1, 4),)
    assert interleaved([x[::2], x[1::2]], (0, 1)) == ((0, 1, 32),)
    assert interleaved([x[:, ::2], x[:, 1::2]], (1,)) == ((1, 0, -4),)
    assert interleaved([x[:, :5], x[:, 4:]], (0,)) is None
    assert interleaved([x, x.t()], (1,)) is None
    assert interleaved([x[0], x[0].expand(3, 8)], (0,)) is None
    assert interleaved([x.view(torch.int32), x], (0,)) is None
    assert interleaved([x[:0], x], (0,)) == ()
    assert interleaved([x, x], ()) == ()
