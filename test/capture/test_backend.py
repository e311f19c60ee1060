"""Hosting: a graph with our nodes, compiled by Inductor, in every form of graph that there is."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import stub_stages
import torch
import torch.nn as nn
import torch.nn.functional as F

from torch_helion import _testing, settings
from torch_helion.capture import graph_pass, inductor_compat
from torch_helion.capture.backend import helion, register

STUB_IMPORT = (
    f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); "
    f"from stub_stages import launch as stub_launch, load as {inductor_compat.LOADER}"
)


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with _testing.strict():
        yield


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stub regions and kernels (one launch each); yields the names of the kernels that have run."""
    use_stubs(monkeypatch, length=3)
    stub_stages.calls.clear()
    with inductor_compat.without_caches():
        yield stub_stages.calls


def use_stubs(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> None:
    monkeypatch.setattr(graph_pass, "default_stages", lambda: stub_stages.stages(**kwargs))
    monkeypatch.setattr(inductor_compat, "LOADER_IMPORT", STUB_IMPORT)
    monkeypatch.setattr(inductor_compat, "LAUNCHER", "stub_launch")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = torch.tanh(self.linear(x)) + x
        b = torch.exp(-a) * 2
        return a.sum(-1), b, (a + b).t(), a.view(-1)


def both(fn: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What ``fn`` returns compiled by us, and uncompiled."""
    return torch.compile(fn, backend=helion, **kwargs)(*args), fn(*args)


def gradients(outputs: Any, leaves: Any) -> Any:
    return torch.autograd.grad(sum((o * o).sum() for o in outputs), leaves)


# ---------------------------------------------------------------------- stub kernels


@pytest.mark.parametrize("dynamic", [False, True])
def test_forward_and_backward(stubs: list[str], dynamic: bool) -> None:
    net = Net()
    x = torch.randn(4, 8, requires_grad=True)
    got, want = both(net, x, dynamic=dynamic)
    _testing.assert_right(got, want)
    leaves = [x, *net.parameters()]
    _testing.assert_right(gradients(got, leaves), gradients(want, leaves))
    assert len(stubs) >= 6, "kernels ran in both graphs"


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_regions_of_every_size(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    use_stubs(monkeypatch, length=length)
    with inductor_compat.without_caches(), torch.no_grad():
        net = Net()
        _testing.assert_right(*both(net, torch.randn(3, 8)))


def test_one_program_serves_dynamic_sizes(stubs: list[str]) -> None:
    net = Net()
    compiled = torch.compile(net, backend=helion, dynamic=True)
    with torch.no_grad(), _testing.recorded_graphs() as records:
        for rows in (4, 5, 17, 2):
            x = torch.randn(rows, 8)
            _testing.assert_right(compiled(x), net(x))
    assert len(records) == 1


def test_unbacked_sizes(stubs: list[str]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        rows = x.nonzero().float()
        return torch.exp(rows) + torch.tanh(rows)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for x in (torch.tensor([0.0, 1.0, 2.0]), torch.zeros(3)):
            _testing.assert_right(*both(fn, x, fullgraph=True))
    assert stubs


def test_inputs_of_all_layouts(stubs: list[str]) -> None:
    def fn(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.exp(a) * b, torch.tanh(b) + c, (a - c).sum(-1)

    base = torch.randn(6, 9)
    _testing.assert_right(
        *both(fn, base[:, 1:7], torch.randn(6, 6).t(), torch.randn(1, 6).expand(6, 6))
    )


def test_views_of_kernels_are_views(stubs: list[str]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.exp(x)
        parts = y.split(3, 1)
        return y[1:, ::2], y.t().unsqueeze(1), y.diagonal(), torch.tanh(parts[1]), y.unfold(1, 3, 2)

    x = torch.randn(6, 9)
    with torch.no_grad():
        got, want = both(fn, x)
    _testing.assert_right(got, want)
    assert got[0].untyped_storage().data_ptr() == got[1].untyped_storage().data_ptr()


def test_mutated_inputs(stubs: list[str]) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        before = torch.exp(x)
        x.mul_(2).add_(y)
        y[1:] = x[:-1].sigmoid()
        return before + x

    def arguments() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [torch.randn(5, 4), torch.randn(5, 4)]

    ours, theirs = arguments(), arguments()
    got = torch.compile(fn, backend=helion)(*ours)
    _testing.assert_right((got, *ours), (fn(*theirs), *theirs))


def test_empty_tensors(stubs: list[str]) -> None:
    net = Net()
    with torch.no_grad():
        _testing.assert_right(*both(net, torch.randn(0, 8)))


def test_control_flow(stubs: list[str]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x)
        return torch.cond(
            y.sum() > 3, lambda t: torch.tanh(t) * 2, lambda t: torch.sigmoid(t) - 1, (y,)
        )

    for x in (torch.zeros(5), torch.full((5,), -3.0)):
        _testing.assert_right(*both(fn, x, fullgraph=True))


def test_users_pass_runs_first(stubs: list[str]) -> None:
    seen: list[int] = []

    class Pass(inductor_compat.GraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            seen.append(sum(node.target is torch.ops.aten.exp.default for node in graph.nodes))

        def uuid(self) -> Any:
            return "a user's pass"

    options = {"post_grad_custom_post_pass": Pass()}
    with torch.no_grad():
        _testing.assert_right(*both(torch.exp, torch.randn(4), options=options))
    assert seen == [1], "it sees the operators, not our kernels"
    assert stubs


def test_keys_of_the_pass() -> None:
    from torch_helion.capture import options as options_module

    class Keyed(inductor_compat.GraphPass):
        def __init__(self, key: Any) -> None:
            self.key = key

        def __call__(self, graph: torch.fx.Graph) -> None:
            pass

        def uuid(self) -> Any:
            return self.key

    request = options_module.read()
    key = graph_pass.HelionPass(request).uuid()
    assert key == graph_pass.HelionPass(request).uuid()
    assert graph_pass.HelionPass(request, [Keyed("a")]).uuid() != key
    assert graph_pass.HelionPass(request, [Keyed(None)]).uuid() is None, "no caching"
    assert graph_pass.HelionPass(request, [lambda graph: None]).uuid() is None
    other = options_module.read(options={"check": not settings.current().check})
    assert graph_pass.HelionPass(other).uuid() != key


def test_launches_and_allocations_are_merged(stubs: list[str]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.exp(x + i) for i in range(6))

    with torch.no_grad():
        code = code_of(fn, torch.randn(7))
    assert code.count("stub_launch(") == 1
    assert code.count(".allocate(") == 1
    assert "empty_strided_cpu((" not in code


def test_big_buffers_are_not_kept_for_a_merged_line(stubs: list[str]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        for i in range(3):  # sizes differ: no buffer is reused by the host
            x = torch.cat([torch.exp(x), x[:1]]) * (i + 1)
        return x

    with torch.no_grad():
        code = code_of(fn, torch.randn(600_000))
        x = torch.randn(5)
        _testing.assert_right(*both(fn, x))
    lines = code.splitlines()
    assert sum(line.strip().startswith("del ") for line in lines) >= 2


def code_of(fn: Any, *args: Any) -> str:
    """The program that Inductor wrote."""
    with _testing.generated_code() as programs:
        torch.compile(fn, backend=helion)(*args)
    return "\n".join(programs)


# ---------------------------------------------------------------------- real kernels


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.softmax(F.gelu(F.layer_norm(x @ w, (16,))) + x, -1)


def test_real_kernels_in_all_graphs() -> None:
    x, w = torch.randn(6, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    with _testing.recorded_graphs() as records:
        got, want = both(block, x, w)
        _testing.assert_right(got, want)
        _testing.assert_right(gradients([got], [x, w]), gradients([want], [x, w]))
    assert len(records) == 2
    assert all(record.regions for record in records)
    assert all(record.covered == record.eligible for record in records)


CACHED = """
    import torch, torch.nn.functional as F
    from torch_helion import _testing
    from torch_helion.capture import graph_pass, inductor_compat
    from torch_helion.capture.backend import helion
    from torch._dynamo.utils import counters
    seen = []
    graph_pass.listeners.append(seen.append)
    torch.manual_seed(0)
    def fn(x, w):
        return F.softmax(F.gelu(x @ w) + x, -1)
    x, w = torch.randn(6, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    options = {{"helion.strict": True}}
    y = torch.compile(fn, backend=helion, dynamic={dynamic}, options=options)(x, w)
    y.square().sum().backward()
    g = w.grad.clone()
    w.grad = None
    want = fn(x, w)
    want.square().sum().backward()
    assert torch.allclose(y, want, atol=1e-6) and torch.allclose(g, w.grad, atol=1e-4)
    hits = counters["aot_autograd"]["autograd_cache_hit"]
    print(len(seen), hits)
"""


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_second_process_runs_no_pass(tmp_path: pathlib.Path, dynamic: bool) -> None:
    env = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TORCH_HELION_CACHE_DIR": str(tmp_path / "helion"),
    }
    code = CACHED.format(dynamic=dynamic)
    assert _testing.output_of(code, env=env) == "2 0"
    assert _testing.output_of(code, env=env) == "0 1", "both graphs come from the caches"


def test_kernels_load_where_only_our_cache_was_lost(tmp_path: pathlib.Path) -> None:
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    code = CACHED.format(dynamic=False)
    first = _testing.output_of(code, env={**env, "TORCH_HELION_CACHE_DIR": str(tmp_path / "a")})
    second = _testing.output_of(code, env={**env, "TORCH_HELION_CACHE_DIR": str(tmp_path / "b")})
    assert (first, second) == ("2 0", "0 1")


def test_random_numbers_are_the_same_in_forward_and_backward() -> None:
    x = torch.randn(40, 33, requires_grad=True)
    compiled = torch.compile(lambda x: F.dropout(torch.exp(x), 0.4), backend=helion)
    with inductor_compat.without_caches():
        y = compiled(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    kept = y != 0
    assert 0.5 < kept.float().mean() < 0.7
    assert torch.equal(kept, gradient != 0)


def test_random_numbers_do_not_depend_on_who_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.rand_like(x) + x, torch.randn_like(x) * x, torch.randint_like(x, 3, 9).exp()

    def draw() -> Any:
        torch._dynamo.reset()
        torch.manual_seed(5)
        with inductor_compat.without_caches(), torch.no_grad():
            return torch.compile(fn, backend=helion)(torch.ones(7, 9))

    inside = draw()
    use_stubs(monkeypatch, length=4)
    _testing.assert_right(draw(), inside)


def test_fallback_random_draws_what_eager_draws() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(torch.tanh(x), 0.3)

    x = torch.randn(30, 20)
    torch.manual_seed(9)
    got = torch.compile(fn, backend=helion, options={"fallback_random": True})(x)
    torch.manual_seed(9)
    _testing.assert_right(got, fn(x))


# ---------------------------------------------------------------------- names


def test_the_name_is_registered_without_an_installation(tmp_path: pathlib.Path) -> None:
    """In a process whose path holds the package but no distribution of it."""
    code = """
        import sys
        sys.path[:] = [p for p in sys.path if p != ""]
        from torch_helion.capture.backend import register
        assert "torch" not in sys.modules
        register(); register()
        import torch
        y = torch.compile(lambda x: x.exp() + 1, backend="helion")(torch.zeros(3))
        assert torch.equal(y, torch.full((3,), 2.0))
        z = torch.compile(lambda x: x.exp() + 2, backend="torch_helion")(torch.zeros(3))
        assert torch.equal(z, torch.full((3,), 3.0))
        assert {"helion", "torch_helion"} <= set(torch._dynamo.list_backends())
        print("right")
    """
    assert _testing.output_of(code) == "right"


def test_registering_late_works_too() -> None:
    code = """
        import torch
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
        try:
            torch.compile(lambda x: x + 1, backend="helion_unknown")(torch.ones(1))
        except Exception:
            pass  # the names have been looked up once
        from torch_helion.capture.backend import register
        register()
        print(torch.compile(lambda x: x + 1, backend="torch_helion")(torch.ones(2)).tolist())
    """
    assert _testing.output_of(code) == "[2.0, 2.0]"


def test_registering_is_light() -> None:
    code = """
        import sys
        from torch_helion.capture.backend import register
        register()
        heavy = {"torch", "numpy", "sympy", "llvmlite", "importlib.metadata"} & set(sys.modules)
        print(sorted(heavy))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", _dedent(code)], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(_testing.PACKAGE_FOLDER)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def _dedent(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


def test_reset_is_called_by_torch() -> None:
    torch.compile(lambda x: x + 1, backend=helion)(torch.ones(1))
    register()
    torch.compiler.reset()


def test_dynamo_records_nothing_around_our_calls() -> None:
    from torch._dynamo import config

    before = config.record_runtime_overhead
    compiled = torch.compile(lambda x: torch.exp(x) + 1, backend=helion)
    compiled(torch.ones(2))
    assert config.record_runtime_overhead is before, "the option is put back"
