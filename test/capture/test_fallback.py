"""Whatever fails, the program is right: regions, graphs, hosts and compilers that are not there."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torch_helion import _testing, exc, settings
from torch_helion.capture import graph_pass, hosting, inductor_compat
from torch_helion.capture.backend import helion


@pytest.fixture(autouse=True)
def _no_caches() -> Iterator[None]:
    with inductor_compat.without_caches():
        yield


def program(x: torch.Tensor) -> torch.Tensor:
    return F.softmax(torch.exp(x) + 1, -1) * x.sum(0)


def run(fn: Callable[..., Any] = program, *args: torch.Tensor, **kwargs: Any) -> Any:
    args = args or (torch.randn(6, 9),)
    got = torch.compile(fn, backend=helion, **kwargs)(*args)
    _testing.assert_right(got, fn(*args))
    return got


def fail(*unused: Any, **also_unused: Any) -> Any:
    raise RuntimeError("broken on purpose")


def replace_stage(monkeypatch: pytest.MonkeyPatch, **stages: Callable[..., Any]) -> None:
    from dataclasses import replace

    changed = replace(graph_pass.default_stages(), **stages)
    monkeypatch.setattr(graph_pass, "default_stages", lambda: changed)


# ---------------------------------------------------------------------- regions

STAGES = ("region_to_kernel", "compile_kernel", "check")


@pytest.mark.parametrize("stage", STAGES)
def test_a_region_that_fails_keeps_its_nodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    replace_stage(monkeypatch, **{stage: fail})
    with (
        caplog.at_level(logging.INFO, "torch_helion.capture"),
        _testing.recorded_graphs() as graphs,
    ):
        run()
    (record,) = graphs
    assert record.regions == [] and record.covered == 0
    assert record.left["ATen"]["aten.exp.default"] == 2
    assert any("broken on purpose" in node.reason for node in record.declined)
    assert "broken on purpose" in caplog.text


@pytest.mark.parametrize("stage", ("find_regions", *STAGES))
def test_strict_raises_it(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    replace_stage(monkeypatch, **{stage: fail})
    with settings.patch(strict=True), pytest.raises(Exception, match="broken on purpose"):
        run()


def test_one_region_of_several_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_kernel = graph_pass.default_stages().compile_kernel

    def fail_on_exp(kernel: Any, *args: Any) -> str:
        return fail() if "exp" in kernel.name else compile_kernel(kernel, *args)

    def two(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh((torch.exp(x) * 2) @ w) - 1

    replace_stage(monkeypatch, compile_kernel=fail_on_exp)
    with _testing.recorded_graphs() as graphs:
        run(two, torch.randn(4, 5), torch.randn(5, 3))
    assert [region.name for region in graphs[0].regions] == ["fused_tanh_sub"]


def test_without_regions_the_graph_is_still_hosted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_stage(monkeypatch, find_regions=fail)
    with caplog.at_level(logging.WARNING, "torch_helion.capture"):
        run()
    assert "no regions are sought" in caplog.text


def test_a_wrong_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs the kernel: one whose text computes something else is found out."""
    compile_kernel = graph_pass.default_stages().compile_kernel

    def wrong(kernel: Any, *args: Any) -> str:
        text = compile_kernel(kernel, *args)
        assert "fadd" in text
        return text.replace("fadd", "fsub")

    replace_stage(monkeypatch, compile_kernel=wrong)
    with _testing.recorded_graphs() as graphs:
        run(lambda x: torch.exp(x) + 1.5)
    assert graphs[0].regions == []
    assert any("float64" in node.reason for node in graphs[0].declined)


# ---------------------------------------------------------------------- graphs


def test_a_failure_of_ours_ends_in_plain_inductor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = []
    compile_plain = inductor_compat.compile_inner_plain

    def count(*args: Any, **kwargs: Any) -> Any:
        plain.append(kwargs.get("is_backward"))
        return compile_plain(*args, **kwargs)

    monkeypatch.setattr(inductor_compat, "compile_inner", fail)
    monkeypatch.setattr(inductor_compat, "compile_inner_plain", count)
    x = torch.randn(6, 9, requires_grad=True)
    with caplog.at_level(logging.WARNING, "torch_helion.capture"):
        got = run(program, x)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
    (want,) = torch.autograd.grad(program(x).square().sum(), x)
    _testing.assert_right(gradient, want)
    assert [bool(p) for p in plain] == [False, True], (
        "the backward, compiled later, falls back as well"
    )
    assert "hosted failed, plain Inductor is next: RuntimeError: broken on purpose" in caplog.text


def test_a_failure_of_inductor_ends_in_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inductor_compat, "compile_inner", fail)
    monkeypatch.setattr(inductor_compat, "compile_inner_plain", fail)
    x = torch.randn(6, 9, requires_grad=True)
    with caplog.at_level(logging.WARNING, "torch_helion.capture"):
        got = run(program, x)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
    (want,) = torch.autograd.grad(program(x).square().sum(), x)
    _testing.assert_right(gradient, want)
    assert "plain Inductor failed, eager is next" in caplog.text


def test_a_failure_before_the_graphs_ends_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_compat, "compile_hosted", fail)
    run()
    monkeypatch.setattr(inductor_compat, "compile_plain", fail)
    torch._dynamo.reset()
    run()
    torch._dynamo.reset()
    with settings.patch(strict=True), pytest.raises(Exception, match="broken on purpose"):
        run()


def test_dynamic_sizes_in_an_eager_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_compat, "compile_inner", fail)
    monkeypatch.setattr(inductor_compat, "compile_inner_plain", fail)
    compiled = torch.compile(program, backend=helion, dynamic=True)
    for rows in (3, 8):
        x = torch.randn(rows, 5)
        _testing.assert_right(compiled(x), program(x))


def test_numbers_drawn_again_in_an_eager_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward with our kernels, backward eager: both draw the same mask from the seed."""
    compile_inner = inductor_compat.compile_inner

    def fail_backward(*args: Any, **kwargs: Any) -> Any:
        return fail() if kwargs.get("is_backward") else compile_inner(*args, **kwargs)

    monkeypatch.setattr(inductor_compat, "compile_inner", fail_backward)
    x = torch.randn(40, 30, requires_grad=True)
    y = torch.compile(lambda x: F.dropout(torch.exp(x), 0.4), backend=helion)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, y != 0)


def test_an_interrupt_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*unused: Any) -> Any:
        raise KeyboardInterrupt

    replace_stage(monkeypatch, check=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    torch._dynamo.reset()
    with _testing.recorded_graphs() as graphs:
        run()
    assert graphs[0].regions, "nothing of the interrupted compilation is left in the way"


def test_errors_of_the_program_stay_what_they_are() -> None:
    def fn(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return torch.exp(x)[i] * 2

    compiled = torch.compile(fn, backend=helion)
    x = torch.randn(5)
    _testing.assert_right(compiled(x, torch.tensor([0, 4])), fn(x, torch.tensor([0, 4])))
    with pytest.raises(IndexError):
        compiled(x, torch.tensor([0, 7]))


# ---------------------------------------------------------------------- hosts


def test_a_host_that_lacks_something(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inductor_compat, "unavailable", "no such thing in this version")
    monkeypatch.setattr(inductor_compat, "compile_hosted", fail)
    with caplog.at_level(logging.DEBUG, "torch_helion.capture"):
        run()
    assert "no such thing in this version" in caplog.text


def test_graphs_on_other_devices_are_the_hosts() -> None:
    from torch_helion.capture import options

    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    names = [[n for n, _ in hosting._rungs(graph, [x], options.read())] for x in
             (torch.ones(2), torch.ones(2, device="meta"))]  # fmt: skip
    assert names == [["hosted", "plain Inductor", "eager"], ["plain Inductor", "eager"]]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_modes_run(mode: str) -> None:
    with settings.patch(strict=True), _testing.recorded_graphs() as graphs:
        run(lambda x: torch.exp(x @ x.t()) + 1, mode=mode)
    assert graphs[0].regions


def test_lite_mode_is_the_hosts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torch_helion.capture"):
        run(mode="lite")
    assert "no kernels are sought" in caplog.text


@pytest.mark.slow
def test_a_cpp_wrapper_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torch_helion.capture"):
        run(options={"cpp_wrapper": True})
    assert "no kernels are placed in a program with cpp_wrapper" in caplog.text


def test_the_hosts_tables_are_restored() -> None:
    import torch._inductor.graph as host_graph
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.lowering import lowerings

    mm = torch.ops.aten.mm.default
    before = (lowerings[mm], host_graph.should_fallback_by_default, joint_graph.lazy_init)
    run()
    assert before == (lowerings[mm], host_graph.should_fallback_by_default, joint_graph.lazy_init)


WITHOUT_COMPILER = """
    import shutil
    assert not any(map(shutil.which, ("g++", "c++", "clang++", "cc", "gcc")))
    import torch, torch.nn as nn, torch.nn.functional as F
    from torch_helion import _testing
    from torch_helion.capture.backend import helion
    from torch_helion.capture import inductor_compat
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 5))
    x = torch.randn(6, 12, requires_grad=True)
    with _testing.recorded_graphs() as graphs:
        for dynamic in (False, True):
            torch._dynamo.reset()
            y, want = torch.compile(net, backend=helion, dynamic=dynamic)(x), net(x)
            _testing.assert_right(y, want)
            leaves = [x, *net.parameters()]
            ours, theirs = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, want))
            _testing.assert_right(ours, theirs)
    assert all(g.regions for g in graphs) and len(graphs) == 4
    def odd(x):  # operators that no kernel of ours takes
        y = torch.fft.rfft(x).abs().cumsum(-1)
        return y.sort(-1)[0], torch.tensor([1.0, 2.0, 3.0]) * 2, F.pad(y, (1, 2)), x.flip(0)
    _testing.assert_right(torch.compile(odd, backend=helion)(x.detach()), odd(x.detach()))
    print(inductor_compat.generated_cpp_kernels(), inductor_compat.has_cpp_compiler())
"""


def test_no_compiler_is_needed(tmp_path: pathlib.Path) -> None:
    env = {
        **_testing.without_compilers(tmp_path / "bin"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TORCH_HELION_CACHE_DIR": str(tmp_path / "helion"),
    }
    assert _testing.output_of(WITHOUT_COMPILER, env=env) == "0 False"


def test_what_needs_a_compiler_runs_eagerly_without_one(tmp_path: pathlib.Path) -> None:
    code = """
        import torch
        from torch.nn.attention.flex_attention import flex_attention
        from torch_helion.capture.backend import helion
        q, k, v = (torch.randn(1, 2, 32, 16) for _ in range(3))
        def fn(q, k, v):
            return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (i - j) * 0.1) + 1
        with torch.no_grad():
            got = torch.compile(fn, backend=helion)(q, k, v)
            print(torch.allclose(got, fn(q, k, v), atol=1e-5))
    """
    env = {
        **_testing.without_compilers(tmp_path / "bin"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    assert _testing.output_of(code, env=env) == "True"


# ---------------------------------------------------------------------- what is left

LEFT_OVER: dict[str, Callable[[torch.Tensor], Any]] = {
    "constants": lambda x: x.cumsum(0) * torch.tensor(2.5) + torch.tensor([1.0] * x.shape[1]),
    "scalar_constant": lambda x: torch.where(x > 0, torch.tensor(1.0), torch.tensor(-1.0)).cumsum(
        0
    ),
    "convolution": lambda x: F.conv1d(x[None], torch.ones(3, x.shape[0], 2)).relu(),
    "sorting": lambda x: x.sort(-1),
    "top": lambda x: x.topk(2, -1).values * 2,
    "scatter": lambda x: x.clone().scatter_add_(1, (x > 0).long(), x.exp()),
    "assignment": lambda x: _assign(x.clone()),
    "products": lambda x: torch.addmm(x[:, :1], x, x.t(), beta=0.5, alpha=2),
    "batched": lambda x: torch.baddbmm(x[None], x[None], torch.eye(x.shape[1])[None]),
    "transposed_view": lambda x: (x.t().cumsum(0).reshape(-1) + 1).view(3, -1).cumsum(1),
    "strided": lambda x: x.cumsum(0).as_strided((2, 3), (1, 2), 1) * 2,
    "unfolded": lambda x: x.cumsum(1).unfold(1, 3, 2).sum(-1),
    "complex": lambda x: torch.view_as_real(torch.fft.fft(x)).cumsum(0),
    "bits": lambda x: x.cumsum(0).view(torch.int32) ^ 7,
    "items": lambda x: x.cumsum(0) * x.max().item(),
    "attention": lambda x: F.scaled_dot_product_attention(
        x[None], x[None], x[None], is_causal=True
    ),
    "unique": lambda x: (x > 0).long().unique(),
    "random": lambda x: (torch.rand_like(x) < 2).cumsum(0),
    "nothing": lambda x: x.t(),
}


def _assign(x: torch.Tensor) -> torch.Tensor:
    x[1:, ::2] = x[:-1, ::2].cumsum(0)
    x[[0, 2]] += 1
    return x


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_is_left_needs_no_generated_code(name: str, dynamic: bool) -> None:
    fn, x = LEFT_OVER[name], torch.randn(6, 9)
    before = inductor_compat.generated_cpp_kernels()
    with torch.no_grad(), settings.patch(strict=True):
        got = torch.compile(fn, backend=helion, dynamic=dynamic)(x)
    _testing.assert_right(got, fn(x))
    assert inductor_compat.generated_cpp_kernels() == before


@pytest.mark.parametrize(
    "name", ["convolution", "products", "transposed_view", "strided", "scatter"]
)
def test_gradients_of_what_is_left(name: str) -> None:
    fn, x = LEFT_OVER[name], torch.randn(6, 9, requires_grad=True)
    with settings.patch(strict=True):
        got = torch.compile(fn, backend=helion)(x)
        ours = torch.autograd.grad(got.square().sum(), x)
    _testing.assert_right(ours, torch.autograd.grad(fn(x).square().sum(), x))


def test_the_rungs_end_with_an_error_that_says_so() -> None:
    with pytest.raises(exc.CaptureError, match="nothing to try"):
        hosting._first_that_works([], "graph")
