"""Post-grad graphs of small programs, and the check of their regions against eager evaluation.

A graph comes from Inductor itself (`post_grad_graphs`: the graph that the pass sees) or, where
that makes no difference, straight from the tracer (`traced`: a hundred times faster).
`check_graph` evaluates it node by node in eager mode and runs the kernel of every region in the
IR's interpreter, with whole axes in one tile and with ragged tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch._inductor.inductor_prims  # registers prims.iota and the random prims
from torch import fx
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes

from torch_helion.capture.region_to_kernel import RegionKernel, graph_hints, region_to_kernel
from torch_helion.capture.regions import Declined, Limits, Region, find_regions
from torch_helion.capture.sizes import host_size
from torch_helion.ir import philox
from torch_helion.ir.graph import Kernel
from torch_helion.ir.interpreter import run
from torch_helion.ir.verifier import verify
from torch_helion.lowering.rows import graph_lowerings

aten = torch.ops.aten
prims = torch.ops.prims

BLOCKS: tuple[int | None, ...] = (None, 3)


@dataclass
class Outcome:
    """What was found in one graph."""

    graph: fx.Graph
    regions: list[Region]
    kernels: list[RegionKernel]
    declined: list[Declined]

    @property
    def kernel(self) -> Kernel:
        """The kernel of the only region."""
        assert len(self.regions) == 1, [region.name for region in self.regions]
        return self.kernels[0].kernel

    def left(self) -> list[str]:
        """Calls outside of every region that are no views and no items, by name."""
        taken = {n for region in self.regions for n in region.nodes}
        return [str(d.node.target) for d in self.declined if d.node not in taken]

    def reason(self, target: Any) -> str:
        """Why the only declined call of `target` was declined."""
        (declined,) = [d for d in self.declined if d.node.target is target]
        return declined.reason


def traced(fn: Callable[..., Any], *args: Any, symbolic: bool = False) -> fx.Graph:
    """The decomposed graph of a function of tensors."""
    mode = "symbolic" if symbolic else "fake"
    module = make_fx(fn, decomposition_table=select_decomp_table(), tracing_mode=mode)(*args)
    module.graph.eliminate_dead_code()
    return module.graph


def check_traced(
    fn: Callable[..., Any], *args: Any, symbolic: bool = False, limits: Limits | None = None
) -> Outcome:
    graph = traced(fn, *args, symbolic=symbolic)
    return check_graph(graph, list(args), limits=limits)


def check_compiled(
    fn: Callable[..., Any], *args: Any, grad: bool = False, dynamic: bool | None = None
) -> list[Outcome]:
    """The outcomes for the graphs that Inductor hands to a post-grad pass: forward, then
    backward.
    """
    outcomes: list[Outcome] = []
    failures: list[BaseException] = []

    class Pass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            try:
                with _disable_current_modes():
                    outcomes.append(check_graph(graph))
            except BaseException as error:  # Inductor would wrap it
                failures.append(error)

        def uuid(self) -> None:
            return None

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        patches = {"post_grad_custom_post_pass": Pass(), "fallback_by_default": True}
        return compile_fx(gm, inputs, config_patches=patches)

    torch._dynamo.reset()
    out = torch.compile(fn, backend=backend, dynamic=dynamic)(*args)
    if grad:
        results = out if isinstance(out, tuple | list) else (out,)
        sum(r.float().sum() for r in results).backward()
    if failures:
        raise failures[0]
    return outcomes


# -- eager evaluation -----------------------------------------------------------------------------


class Recorder(fx.Interpreter):
    """Evaluates a graph and keeps every value. Random numbers are those of our own prims."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return ()
        value = self._evaluate(n)
        self.env[n] = self.values[n] = value
        return value

    def _evaluate(self, n: fx.Node) -> Any:
        args = self.fetch_args_kwargs_from_env(n)[0] if n.op == "call_function" else ()
        if n.target is prims.inductor_seeds.default:
            return torch.arange(7, 7 + args[0])
        if n.target is prims.inductor_lookup_seed.default:
            return args[0][args[1]]
        if n.target is prims.inductor_random.default:
            size, seed, mode = args
            numbers = {"rand": philox.uniform, "randn": philox.normal}[mode]
            count = int(torch.Size(size).numel())
            return numbers(int(seed), torch.arange(count)).reshape(size)
        if n.target is aten.copy_.default:
            return args[1]  # the inputs are compared with, too
        return super().run_node(n)


def number(size: Any, hints: dict[sympy.Symbol, int]) -> int:
    expr = host_size(size)
    if isinstance(expr, int):
        return expr
    return int(expr.xreplace({s: sympy.Integer(n) for s, n in hints.items()}))


def random_like(value: Any, hints: dict[sympy.Symbol, int]) -> Any:
    """A random value of a placeholder's layout (integers are 0 or 1)."""
    if not isinstance(value, torch.Tensor):
        return number(value, hints)
    shape = [number(n, hints) for n in value.shape]
    strides = [number(n, hints) for n in value.stride()]
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if value.dtype.is_floating_point:
        flat = torch.randn(extent, dtype=torch.float32).to(value.dtype)
    else:
        flat = torch.randint(0, 2, (extent,)).to(value.dtype)
    return torch.as_strided(flat, shape, strides)


def check_graph(
    graph: fx.Graph, inputs: Sequence[Any] | None = None, limits: Limits | None = None
) -> Outcome:
    """Find the regions of a graph, and compare every kernel with eager evaluation."""
    lowerings = graph_lowerings()
    regions, declined = find_regions(graph, lowerings, options=limits)
    kernels = [region_to_kernel(region, lowerings) for region in regions]
    hints = graph_hints(graph.nodes)
    if inputs is None:
        holders = [n for n in graph.nodes if n.op == "placeholder"]
        inputs = [random_like(n.meta["val"], hints) for n in holders]
    recorder = Recorder(fx.GraphModule(graph.owning_module or torch.nn.Module(), graph))
    with torch.no_grad():
        recorder.run(*inputs)
    for region, kernel in zip(regions, kernels, strict=True):
        verify(kernel.kernel)
        for block in BLOCKS:
            check_kernel(region, kernel, recorder.values, hints, block)
    return Outcome(graph, regions, kernels, declined)


def check_kernel(
    region: Region,
    built: RegionKernel,
    values: dict[fx.Node, Any],
    hints: dict[sympy.Symbol, int],
    block: int | None,
) -> None:
    outputs = {n: _filled_like(n.meta["val"], hints) for n in region.outputs}
    tensors = [outputs.get(n, values[n]) for n in built.tensors]
    sizes = [number(n, hints) for n in built.sizes]
    run(built.kernel, tensors, sizes, block)
    for node, result in outputs.items():
        expected = values[node]
        assert result.dtype == expected.dtype
        tolerance = 2e-2 if result.dtype in (torch.bfloat16, torch.float16) else 2e-5
        torch.testing.assert_close(
            result,
            expected,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, node=node: f"{region.name}, {node.name}, block {block}: {text}",
        )


def _filled_like(value: torch.Tensor, hints: dict[sympy.Symbol, int]) -> torch.Tensor:
    shape = [number(n, hints) for n in value.shape]
    strides = [number(n, hints) for n in value.stride()]
    out = torch.empty_strided(shape, strides, dtype=value.dtype)
    return out.fill_(float("nan")) if out.is_floating_point() else out.zero_()
