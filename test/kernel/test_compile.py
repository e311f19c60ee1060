"""Kernels inside `torch.compile`, as operators of torch, and found again in another process."""

from __future__ import annotations

import pathlib

import pytest
import torch

from test.kernel.kernels import add, applied, inc, make, scale
from torch_helion import _testing
from torch_helion.kernel import operator

BACKENDS = ["aot_eager", "inductor", "helion"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_graph_break(backend: str) -> None:
    added, scaled = make(add), make(scale)

    def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return scaled(added(x * 2, y), 3.0).relu()

    compiled = torch.compile(program, backend=backend, fullgraph=True)
    x, y = torch.randn(12), torch.randn(12)
    torch.testing.assert_close(compiled(x, y), program(x, y))
    torch.testing.assert_close(compiled(y, x), program(y, x))


def double(x):
    return x * 2


def test_functions_as_arguments() -> None:
    kernel = make(applied)

    def program(x: torch.Tensor) -> torch.Tensor:
        return kernel(kernel(x, double), lambda x: x + 1)

    x = torch.randn(7)
    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x * 2 + 1)
    torch.testing.assert_close(program(x), x * 2 + 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_written_arguments(backend: str) -> None:
    kernel = make(inc)

    def program(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        kernel(y)
        kernel(x)
        return y + x

    x = torch.randn(9)
    ours, theirs = x.clone(), x.clone()
    got = torch.compile(program, backend=backend, fullgraph=True)(ours)
    torch.testing.assert_close(got, program(theirs))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("static", [True, False])
def test_dynamic_shapes(static: bool) -> None:
    kernel = make(scale, static_shapes=static)
    graphs = []

    def backend(gm: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(gm)
        return gm

    compiled = torch.compile(
        lambda x: kernel(x + 1, 0.5) * x.size(0), backend=backend, dynamic=True, fullgraph=True
    )
    for n in (5, 8, 31):
        x = torch.randn(n)
        torch.testing.assert_close(compiled(x), (x + 1).sin() * 0.5 * n)
    assert len(graphs) == 1


def test_gradients_inside_a_compiled_function() -> None:
    kernel = make(scale)
    x = torch.randn(10)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled = torch.compile(
        lambda x: kernel(x * 2, 3.0).sum(), backend="aot_eager", fullgraph=True
    )
    compiled(ours).backward()
    ((theirs * 2).sin() * 3).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_node_keeps_its_kernel() -> None:
    kernel = make(add)
    x = torch.randn(4)
    found = []

    def backend(gm: torch.fx.GraphModule, inputs: object) -> object:
        from functorch.compile import make_boxed_func

        found.extend(n.target for n in gm.graph.nodes if n.op == "call_function")
        return make_boxed_func(gm.forward)

    from torch._dynamo.backends.common import aot_autograd

    torch.compile(lambda x: kernel(x, x), backend=aot_autograd(fw_compiler=backend))(x)
    (overload,) = [t for t in found if isinstance(t, torch._ops.OpOverload)]
    assert operator.bound_of(overload).kernel is kernel
    assert operator.bound_of(torch.ops.aten.add.Tensor) is None


@pytest.mark.parametrize(("fn", "args"), [(add, 2), (scale, 1), (inc, 1)])
def test_opcheck(fn: object, args: int) -> None:
    kernel = make(fn)
    flat: list[object] = [torch.randn(6) for _ in range(args)]
    flat += [2.0] if fn is scale else []
    made = operator.operator_for(kernel, tuple(flat))
    torch.library.opcheck(made.overload.overload, tuple(flat))
    if fn is not inc:
        grads = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in flat]
        torch.library.opcheck(made.overload.overload, tuple(grads))


def test_fakes_and_modes_see_an_operator() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    kernel = make(add)
    with FakeTensorMode():
        x = torch.empty(5)
        assert kernel(x, x).shape == (5,)
    graph = make_fx(lambda x: kernel(x, x))(torch.randn(3))
    x = torch.randn(3)
    assert torch.equal(graph(x), 2 * x)
    assert "torch_helion.add_" in graph.code


def test_names_of_operators_say_what_they_are() -> None:
    x = torch.randn(3)
    kernel = make(add)
    one = operator.operator_for(kernel, (x, x))
    assert operator.operator_for(kernel, (x + 1, x)) is one
    stem = "_".join(one.name.split("_")[:2])
    again = operator.operator_for(make(add), (x, x))
    assert again is not one and again.name.startswith(stem), "its code is the same"
    other = operator.operator_for(kernel, (x.double(), x.double()))
    assert not other.name.startswith(stem)


CODE = """
import sys, torch
import torch_helion as helion
from test.kernel.kernels import add, make
kernel = make(add, config=helion.Config(block_sizes=[64]))
x = torch.ones(100)
assert torch.equal(kernel(x, x), 2 * x)
(b,) = kernel._bound.values()
print(len(b.variants), "torch._dynamo" in sys.modules)
"""


def test_another_process_finds_the_kernel(tmp_path: pathlib.Path) -> None:
    env = {"TORCH_HELION_CACHE_DIR": str(tmp_path / "cache")}
    assert _testing.output_of(CODE, env=env) == "1 True"
    assert _testing.output_of(CODE, env=env) == "0 False", "no trace, no Dynamo"
