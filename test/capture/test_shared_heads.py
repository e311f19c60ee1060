"""Keys that are repeated over heads reach attention unrepeated, and only where that is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_helion.capture.shared_heads import share_heads

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
HEADS, FEW, N, D = 6, 2, 7, 8


def repeat(x: torch.Tensor, groups: int = HEADS // FEW, dim: int = 2) -> torch.Tensor:
    b, few, n, d = x.shape
    shape = (b, few, groups, n, d) if dim == 2 else (b, groups, few, n, d)
    wide = aten.expand.default(aten.unsqueeze.default(x, dim), shape)
    copy = aten.clone.default(wide, memory_format=torch.contiguous_format)
    return aten.view.default(copy, (b, few * groups, n, d))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return FLASH(q, k, v)[0]


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, repeat(k), repeat(v))


def interleaved_otherwise(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Head i of the queries reads head i modulo the heads of the keys: another operator."""
    return attention(q, repeat(k, dim=1), repeat(v, dim=1))


def only_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, repeat(k), aten.clone.default(aten.repeat.default(v, (1, 3, 1, 1))))


def changed_between(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    many = repeat(k)
    aten.copy_.default(k, aten.mul.Tensor(k, 2.0))
    return attention(q, many, repeat(v))


def also_returned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    many = repeat(k)
    return attention(q, many, repeat(v)), many


@pytest.mark.parametrize(
    ("program", "rewritten"),
    [
        (plain, 1),
        (interleaved_otherwise, 0),
        (only_keys, 0),
        (changed_between, 0),
        (also_returned, 1),
    ],
)
def test_programs(program: Callable[..., torch.Tensor], rewritten: int) -> None:
    torch.manual_seed(0)
    args = [torch.randn(2, HEADS, 3, D), torch.randn(2, FEW, N, D), torch.randn(2, FEW, N, D)]
    expected = program(*[a.clone() for a in args])
    gm = make_fx(program, tracing_mode="fake")(*[a.clone() for a in args])
    assert share_heads(gm.graph) == rewritten
    gm.graph.lint()
    gm.recompile()
    torch.testing.assert_close(gm(*[a.clone() for a in args]), expected, rtol=0, atol=0)
    clones = gm.graph.find_nodes(op="call_function", target=aten.clone.default)
    if rewritten:
        assert len(clones) == (1 if program is also_returned else 0)
