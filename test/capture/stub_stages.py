"""Stages that need no compiler: regions of a few operators, whose "kernel" replays them with ATen.

They test hosting by itself: what may be a region, and what a kernel computes, are tested elsewhere.
"""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion.capture.graph_pass import Stages

aten = torch.ops.aten
SUPPORTED = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.exp.default,
    aten.tanh.default, aten.relu.default, aten.neg.default, aten.sum.dim_IntList, aten.erf.default,
    aten.sigmoid.default, aten.sin.default, aten.cos.default, aten.amax.default, aten.rsqrt.default,
}  # fmt: skip


@dataclass
class Region:
    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    name: str


@dataclass(frozen=True)
class Buffer:
    name: str
    role: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Kernel:
    name: str
    arguments: tuple[Buffer, ...]
    program: tuple[Any, ...]


@dataclass(frozen=True)
class RegionKernel:
    kernel: Kernel
    tensors: tuple[Any, ...]
    sizes: tuple[Any, ...]
    hints: dict[Any, int]


def find_regions(length: int = 3, only: Any = None) -> Any:
    """A finder of runs of at most ``length`` supported operators that lie together in the graph."""

    def find(graph: Any, lowerings: Any, *, options: Any) -> tuple[list[Region], list[Any]]:
        regions: list[Region] = []
        run: list[Any] = []
        for node in [*graph.nodes, None]:
            supported = node is not None and node.target in (only or SUPPORTED)
            if supported and len(run) < length:
                run.append(node)
                continue
            if run:
                regions.append(_region(run, len(regions)))
            run = [node] if supported else []
        return regions, []

    return find


def _region(nodes: list[Any], number: int) -> Region:
    inside = set(nodes)
    inputs = list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside))
    outputs = [n for n in nodes if any(u not in inside for u in n.users)]
    return Region(nodes, inputs, outputs, f"stub{number}")


def region_to_kernel(region: Region, lowerings: Any) -> RegionKernel:
    places = {node: i for i, node in enumerate([*region.inputs, *region.nodes])}

    def encode(x: Any) -> Any:
        if isinstance(x, torch.fx.Node):
            return {"value": places[x]}
        return [encode(y) for y in x] if isinstance(x, list | tuple) else x

    program = tuple(
        [str(n.target), [encode(a) for a in n.args], {k: encode(v) for k, v in n.kwargs.items()}]
        for n in region.nodes
    )
    tensors = (*region.outputs[:1], *region.inputs, *region.outputs[1:])
    arguments = tuple(
        Buffer(f"b{i}", "out" if t in region.outputs else "in", t.meta["val"].dtype)
        for i, t in enumerate(tensors)
    )
    numel = tensors[0].meta["val"].numel()
    size = numel.node.expr if isinstance(numel, torch.SymInt) else numel
    kernel = Kernel(region.name, arguments, (program, [places[o] for o in region.outputs]))
    return RegionKernel(kernel, tensors, (size,), {})


def compile_kernel(kernel: Kernel, hints: Any = None, config: Any = None) -> str:
    program, outputs = kernel.program
    roles = [a.role for a in kernel.arguments]
    return json.dumps({"name": kernel.name, "roles": roles, "program": program, "outputs": outputs})


def check(region: Any, made: Any, text: str) -> str:
    return "stub"


def stages(**kwargs: Any) -> Stages:
    return Stages(find_regions(**kwargs), region_to_kernel, compile_kernel, check, {})


calls: list[str] = []
"""Names of the kernels that have run."""


def load(text: str) -> Any:
    """What the generated program calls to turn a kernel's text into a callable."""
    spec = json.loads(text)

    def run(*args: Any) -> None:
        calls.append(spec["name"])
        tensors = args[: len(spec["roles"])]
        assert isinstance(args[-1], int) and len(args) == len(tensors) + 1
        values = [t for t, role in zip(tensors, spec["roles"], strict=True) if role == "in"]
        targets = [t for t, role in zip(tensors, spec["roles"], strict=True) if role == "out"]

        def decode(x: Any) -> Any:
            if isinstance(x, dict):
                return values[x["value"]]
            return [decode(y) for y in x] if isinstance(x, list) else x

        for target, positional, named in spec["program"]:
            namespace, name, overload = target.split(".")
            op = operator.attrgetter(f"{namespace}.{name}.{overload}")(torch.ops)
            values.append(op(*decode(positional), **{k: decode(v) for k, v in named.items()}))
        for out, place in zip(targets, spec["outputs"], strict=True):
            assert out.shape == values[place].shape and out.stride() == values[place].stride()
            out.copy_(values[place])

    return run


def launch(*words: Any) -> None:
    """Several launches in one call, as the launcher of real kernels has them."""
    call: list[Any] = []
    for word in (*words, None):
        if callable(word) or word is None:
            if call:
                call[0](*call[1:])
            call = []
        call.append(word)
