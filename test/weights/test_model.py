"""Live models: filled in place, refused as a whole, compiled before their weights come."""

from __future__ import annotations

import pathlib
import threading
import time

import pytest
import torch
from torch import nn

from test.weights.weight_files import assert_all_same, assert_same
from torch_helion import weights
from torch_helion.weights import file as weight_file
from torch_helion.weights import model as weight_model


def make() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Sequential(nn.ReLU(), nn.Linear(30, 7))
    )


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> tuple[pathlib.Path, nn.Sequential]:
    model = make()
    model[1].running_mean.normal_()
    path = tmp_path / "m.safetensors"
    weights.save_model(model, path)
    return path, model


def addresses(model: nn.Module) -> dict[str, int]:
    return {name: t.data_ptr() for name, t in model.state_dict().items()}


def test_in_place(saved: tuple[pathlib.Path, nn.Sequential]) -> None:
    path, model = saved
    other = make()
    where, parameters = addresses(other), list(other.parameters())
    assert weights.load_model(other, path) == ([], [])
    assert_all_same(dict(other.state_dict()), dict(model.state_dict()))
    assert addresses(other) == where
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert all(p.requires_grad for p in parameters)


def test_autograd_sees_the_change(saved: tuple[pathlib.Path, nn.Sequential]) -> None:
    other = make()
    out = other(torch.randn(3, 20)).sum()
    weights.load_model(other, saved[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_cast(
    saved: tuple[pathlib.Path, nn.Sequential], dtype: torch.dtype
) -> None:
    path, model = saved
    other, want = make().to(dtype), make().to(dtype)
    weights.load_model(other, path)
    want.load_state_dict(model.state_dict())
    assert_all_same(dict(other.state_dict()), dict(want.state_dict()))


def test_layouts_that_are_not_the_files(tmp_path: pathlib.Path) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weights.save_model(conv, tmp_path / "x")
    other = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strides = other.weight.stride()
    weights.load_model(other, tmp_path / "x")
    assert_same(other.weight, conv.weight)
    assert other.weight.stride() == strides


def test_parameters_that_are_views_of_one_memory(tmp_path: pathlib.Path) -> None:
    flat = torch.zeros(30)
    model = nn.Module()
    model.a = nn.Parameter(flat[:10])
    model.b = nn.Parameter(flat[10:].view(4, 5))
    want = {"a": torch.randn(10), "b": torch.randn(4, 5)}
    weights.save_file(want, tmp_path / "x")
    weights.load_model(model, tmp_path / "x")
    assert_same(flat, torch.cat([want["a"], want["b"].reshape(-1)]))


def test_assign(saved: tuple[pathlib.Path, nn.Sequential]) -> None:
    path, model = saved
    other = make().to(torch.bfloat16)
    other[0].weight.requires_grad = False
    old = other[0].weight
    assert weights.load_model(other, path, assign=True) == ([], [])
    assert_all_same(dict(other.state_dict()), dict(model.state_dict()))
    assert isinstance(other[0].weight, nn.Parameter) and not other[0].weight.requires_grad
    assert other[0].weight is not old and other[0].bias.requires_grad


def test_assign_keeps_ties_and_fills_meta(tmp_path: pathlib.Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        return model

    model = tied()
    weights.save_model(model, tmp_path / "x")
    with torch.device("meta"):
        other = tied()
    with pytest.raises(weights.WeightsError, match=r"no memory for a\.weight"):
        weights.load_model(other, tmp_path / "x")
    weights.load_model(other, tmp_path / "x", assign=True)
    assert other["a"].weight is other["b"].weight
    assert_all_same(dict(other.state_dict()), dict(model.state_dict()))
    with torch.device("meta"):
        third = tied()
    weights.load_model(third, tmp_path / "x", device="cpu")
    assert third["a"].weight is third["b"].weight
    assert_all_same(dict(third.state_dict()), dict(model.state_dict()))


# ---------------------------------------------------------------------- refusals


def test_every_fault_is_listed_and_nothing_changes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    state = dict(make().state_dict())
    del state["0.weight"], state["2.1.bias"]
    state |= {"extra": torch.ones(1), "more": torch.ones(1)}
    state |= {"0.bias": torch.ones(31), "2.1.weight": torch.ones(30, 7)}
    weights.save_file(state, path)
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for assign in (False, True):
        with pytest.raises(weights.WeightsError) as caught:
            weights.load_model(model, path, assign=assign)
        text = str(caught.value)
        assert "missing in the file: 0.weight, 2.1.bias" in text
        assert "extra" in text and "more" in text and str(path) in text
        assert "0.bias: file [31], model [30]" in text
        assert "2.1.weight: file [30, 7], model [7, 30]" in text
        assert_all_same(dict(model.state_dict()), before)
    with pytest.raises(weights.WeightsError, match="other shapes"):
        weights.load_model(model, path, strict=False)
    assert_all_same(dict(model.state_dict()), before)
    with pytest.raises(weights.WeightsError):
        weights.load_model(model, path, wait=False)


def test_not_strict_returns_what_pytorch_returns(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    state = dict(make().state_dict())
    del state["0.weight"]
    state["extra"] = torch.ones(1)
    weights.save_file(state, path)
    ours, theirs = make(), make()
    missing, unexpected = weights.load_model(ours, path, strict=False)
    want = theirs.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (want.missing_keys, want.unexpected_keys)
    assert_same(ours[2][1].weight, state["2.1.weight"])


def test_a_counter_of_batches_may_be_missing(tmp_path: pathlib.Path) -> None:
    state = dict(make().state_dict())
    del state["1.num_batches_tracked"]
    weights.save_file(state, tmp_path / "x")
    assert weights.load_model(make(), tmp_path / "x") == ([], [])


def test_lazy_modules_are_refused(tmp_path: pathlib.Path) -> None:
    weights.save_model(nn.Linear(3, 2), tmp_path / "x")
    with pytest.raises(weights.WeightsError, match="not initialised"):
        weights.load_model(nn.LazyLinear(2), tmp_path / "x")


# ---------------------------------------------------------------------- before the weights


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.ones(16))
        self.twin = self.scale
        self.register_buffer("freq", torch.arange(16.0) / 7, persistent=False)
        self.register_buffer("offset", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) * self.scale + self.offset) * self.freq


def test_meta_model(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    model = WithBuffers().to(torch.bfloat16)
    model.offset.normal_()
    weights.save_model(model, path)
    made = weights.meta_model(WithBuffers, path)
    assert made.inner.weight.dtype == torch.bfloat16, "the file's dtype"
    assert made.twin is made.scale, "ties stay"
    assert torch.equal(made.freq, torch.arange(16.0) / 7), "buffers of no file are computed"
    where = addresses(made)
    weights.load_model(made, path)
    assert addresses(made) == where
    assert_same(made.inner.weight, model.inner.weight)
    with pytest.raises(weights.WeightsError, match=r"missing in the file: 2\.1\.bias|missing"):
        weights.meta_model(make, path)
    assert not nn.modules.module._global_parameter_registration_hooks


def test_meta_model_allocates_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    weights.save_model(nn.Linear(4096, 8192), path)
    before = resident_bytes()
    made = weights.meta_model(lambda: nn.Linear(4096, 8192), path)
    assert resident_bytes() - before < 30 << 20, "128 MB of parameters, none of them touched"
    assert made.weight.shape == (8192, 4096)


def resident_bytes() -> int:
    text = pathlib.Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * 4096


@pytest.mark.parametrize("backend", ["eager", "helion"])
def test_compiled_before_the_weights_came(tmp_path: pathlib.Path, backend: str) -> None:
    path = tmp_path / "m.safetensors"
    model = WithBuffers()
    weights.save_model(model, path)
    made = weights.meta_model(WithBuffers, path)
    compiled = torch.compile(made, backend=backend)
    x = torch.randn(5, 16)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        compiled(x)
        counters = torch._dynamo.utils.counters["stats"]
        graphs = counters["unique_graphs"]
        handle = weights.load_model(made, path, wait=False)
        assert handle.result(60) == ([], [])
        assert handle.done()
        torch.testing.assert_close(compiled(x), model(x))
    assert counters["unique_graphs"] == graphs == 1, "no recompilation"


def test_the_handle_waits_and_raises(
    saved: tuple[pathlib.Path, nn.Sequential], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = saved
    go = threading.Event()
    real = weight_file.WeightFile.read_exact

    def slow(self: weight_file.WeightFile, offset: int, views: list[memoryview]) -> None:
        if offset >= 4096:
            go.wait(30)
            if offset == 4096:
                raise weights.WeightsError("gone", self.path)
        real(self, offset, views)

    monkeypatch.setattr(weight_file.RegularFile, "read_exact", slow)
    handle = weights.load_model(make(), path, wait=False)
    assert isinstance(handle, weights.LoadHandle)
    assert not handle.done()
    with pytest.raises(TimeoutError):
        handle.result(0.01)
    go.set()
    with pytest.raises(weights.WeightsError, match="gone"):
        handle.result(30)
    with pytest.raises(weights.WeightsError, match="gone"):
        handle.result(30)


def test_parameters_made_by_other_threads_are_theirs(tmp_path: pathlib.Path) -> None:
    """While one thread builds a model without memory, another builds a usual one."""
    found: list[nn.Linear] = []
    with weight_model._parameters_on_meta():
        thread = threading.Thread(target=lambda: found.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        here = nn.Linear(2, 2)
    assert here.weight.is_meta and not found[0].weight.is_meta


def test_loading_goes_on_while_python_works(saved: tuple[pathlib.Path, nn.Sequential]) -> None:
    began = time.monotonic()
    handles = [weights.load_model(make(), saved[0], wait=False) for _ in range(8)]
    assert all(handle.result(30) == ([], []) for handle in handles)
    assert time.monotonic() - began < 30
