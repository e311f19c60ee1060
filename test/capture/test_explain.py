"""What ``explain`` says: graphs, kernels, what is left and why, breaks, fallbacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import torch_helion
from torch_helion import _testing
from torch_helion.capture import graph_pass
from torch_helion.capture.backend import register
from torch_helion.explain import ExplainReport


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def explain(*args: Any, **kwargs: Any) -> ExplainReport:
    return torch_helion.explain(*args, **kwargs)


def test_a_covered_program() -> None:
    x = torch.randn(5, 16)
    report = explain(lambda x: F.softmax(F.gelu(x), -1), x)
    assert [graph.kind for graph in report.graphs] == ["inference"]
    assert report.coverage == 1.0
    assert report.breaks == () and report.fallbacks == () and report.cpp_kernels == 0
    (region,) = report.regions
    assert "aten.exp.default" in region.operators
    assert region.code.startswith("; torch_helion kernel")
    assert "@torch_helion.kernel" in region.source and "torch.exp" in region.source
    assert region.verdict.startswith("right")
    torch.testing.assert_close(report.output, F.softmax(F.gelu(x), -1))
    assert "100%" in str(report) and region.name in str(report)


def test_what_is_left_has_a_reason() -> None:
    report = explain(lambda x: torch.exp(x).cumsum(-1) * 2, torch.randn(5, 16))
    assert 0 < report.coverage < 1
    assert report.graphs[0].left["ATen"] == {"aten.cumsum.default": 1}
    (reason,) = {n.reason for n in report.declined if n.target == "aten.cumsum.default"}
    assert reason and reason in str(report)


def test_backward_is_explained_and_gradients_stay() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16))
    report = explain(net, torch.randn(4, 8))
    assert [graph.kind for graph in report.graphs] == ["forward", "backward"]
    assert all(graph.regions for graph in report.graphs)
    assert all(p.grad is None for p in net.parameters())


def test_it_sees_through_caches_and_what_is_compiled() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + 1

    x = torch.randn(7)
    compiled = torch.compile(fn, backend="helion")
    compiled(x)
    first, second, third = explain(fn, x), explain(fn, x), explain(compiled, x)
    assert len(first.graphs) == len(second.graphs) == len(third.graphs) == 1
    with _testing.recorded_graphs() as records:
        compiled(x)
    assert records == [], "what the user compiled is still there"


def test_breaks_are_listed() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x)
        torch._dynamo.graph_break()
        return y + 1

    report = explain(fn, torch.randn(3))
    assert len(report.graphs) == 2
    assert len(report.breaks) == 1
    assert "graph breaks:" in str(report)


def test_fallbacks_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*unused: Any, **also: Any) -> Any:
        raise RuntimeError("broken on purpose")

    from torch_helion.capture import inductor_compat

    monkeypatch.setattr(inductor_compat, "compile_hosted", broken)
    report = explain(lambda x: torch.exp(x), torch.randn(3))
    assert any("broken on purpose" in reason for reason in report.fallbacks)
    assert "fallbacks:" in str(report)
    assert report.graphs == ()
    assert report.coverage == 1.0


def test_options_are_passed_on() -> None:
    x = torch.randn(6, 4)
    report = explain(lambda x: torch.exp(x), x, compile_options={"dynamic": True})
    assert "n0" in report.regions[0].source
    unchecked = explain(
        lambda x: torch.exp(x), x, compile_options={"options": {"helion.check": False}}
    )
    assert unchecked.regions[0].verdict == "not checked"


def test_equal_kernels_are_told_once() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.tanh(x @ w) + 1
        return x

    report = explain(fn, torch.randn(4, 4), torch.randn(4, 4))
    assert len(report.regions) == 3
    assert "3 x fused" in str(report)
    assert len({region.code for region in report.regions}) == 1, "layers share one kernel"


def test_nothing_of_it_stays_behind() -> None:
    before = list(graph_pass.listeners)
    with pytest.raises(ZeroDivisionError):
        explain(lambda x: 1 // 0, torch.randn(3))
    assert graph_pass.listeners == before
