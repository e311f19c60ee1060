"""``benchmarks/models``: its cases, the roofline's counting, and one small row from end to end."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models import run, work, zoo

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    labels = capsys.readouterr().out.split("\n")[:-1]
    cases = zoo.models()
    assert labels == [case.label for case in cases] and len(set(labels)) == len(labels)
    assert len({(case.name, case.kind) for case in cases}) >= 12
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    assert {case.kind for case in cases} == {"forward", "decode", "training"}


class Tiny(nn.Module):
    """A network with dropout; returns a loss when training."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.down(self.dropout(torch.relu(self.up(x))))
        return out.square().mean() if self.training else out


def tiny(kind: str) -> zoo.Model:
    def make() -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(0)
        return Tiny().train(kind == "training"), {"x": torch.randn(4, 8)}

    return zoo.Model("tiny", kind, 4, "float32", make)


@pytest.mark.parametrize("kind", ["forward", "training"])
def test_a_row(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(run, "models", lambda: [tiny(kind)])
    monkeypatch.setattr(run.harness, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "limits_of", lambda threads: FakeLimits())
    assert run.main(["--backends", "eager,helion", "--seconds", "0.01"]) == 0
    saved = json.loads(
        next((tmp_path / "benchmarks" / "results").glob("*models*.json")).read_text()
    )
    (row,) = saved["rows"]
    assert set(row["times"]) == {"eager", "helion"} and row["problems"] == {}
    assert row["ratio"] > 0 and row["limit"] > 0 and row["first"]["helion"] > 0


class FakeLimits:
    def best_with(self, other: FakeLimits) -> FakeLimits:
        return self

    def describe(self) -> str:
        return "one byte and one operation a second"

    def seconds(self, read: int, written: int, flops: float, dtype: str) -> float:
        return max(read + written, flops)


def test_a_wrong_candidate_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: nn.Module, backend: str) -> Any:
        return module if backend == "eager" else lambda x: module(x) + 1

    monkeypatch.setattr(run, "compiled", wrong)
    measured = run.measure(tiny("forward"), ["eager", "helion"], 0.01)
    assert "AssertionError" in measured.timings["helion"].problem
    assert measured.timings["eager"].samples and not measured.timings["helion"].samples


def test_the_roofline_counts_what_operators_do() -> None:
    module, inputs = tiny("forward").make()
    with torch.no_grad():
        calls = work.work_of(lambda: module(**inputs))
    by_op = {c.op: c for c in calls}
    assert set(by_op) == {"aten.addmm.default", "aten.relu.default"}  # no views, no dropout
    assert by_op["aten.addmm.default"].flops == 2 * 4 * 8 * 16
    assert (by_op["aten.relu.default"].read, by_op["aten.relu.default"].written) == (256, 256)
    assert work.roofline(calls, FakeLimits().seconds) == 2 * 1024 + 512


def test_the_roofline_sees_shared_and_expanded_memory() -> None:
    x = torch.ones(1, 4).expand(8, 4)
    (call,) = work.work_of(lambda: torch.add(x, x))
    assert (call.read, call.written) == (16, 128)
