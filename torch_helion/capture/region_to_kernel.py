"""One region of a graph becomes one kernel of the tile IR.

In: a `Region` (nodes of a post-grad FX graph with fake values) and the lowering table. Out: a
`RegionKernel`: the kernel, the graph's nodes for its tensors (inputs and outputs, in the order
of `kernel.arguments`), and the host sizes for its size arguments. Raises `exc.LoweringError`
with a reason. Called by the backend for every region, and by `regions.find_regions` to make
sure that what it proposes can be built.

    infer axes (axes.py) → choose a template (template.py) → trace what is computed where (trace.py)
    → join axes that run together (collapse.py) → emit (emit.py)

Outer extents are size arguments, so that one kernel serves every batch; extents that a
reduction folds inside a step are constants where the graph knows them. Regions that are equal
up to names share one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload

from torch_helion import exc
from torch_helion.capture import axes as axis_inference
from torch_helion.capture.axes import Atom, Conflict, Space, refusal
from torch_helion.capture.collapse import Region as Traced
from torch_helion.capture.collapse import ordered_atoms, runs_of
from torch_helion.capture.emit import CollapseError, Emitted, Emitter
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import Hints, hint_of, host_size, known_hints
from torch_helion.capture.template import Limits, Shape, Template, templates
from torch_helion.capture.trace import Instance, Trace
from torch_helion.ir.graph import Kernel
from torch_helion.ir.types import Size
from torch_helion.lowering.registry import Lowering

MAX_NAMES = 4


@dataclass(frozen=True)
class Region:
    """Nodes that become one kernel.

    `nodes`: in topological order, all that the kernel computes. `inputs`: tensors read from
    outside. `outputs`: values used outside; each is stored by the kernel in the layout of its
    fake value. A node of `nodes` that is used outside and is no output (a view of an output, a
    constant) stays in the graph as well.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    name: str


@dataclass(frozen=True)
class RegionKernel:
    """A kernel and what to call it with: `kernel(*tensors, *sizes)`."""

    kernel: Kernel
    tensors: tuple[fx.Node, ...]
    """nodes for `kernel.arguments`, in order; those in `Region.outputs` are written. A node may
    occur twice.
    """
    sizes: tuple[Size, ...]
    """ints, or expressions over the graph's symbols, for `kernel.sizes`, in order"""
    hints: dict[sympy.Symbol, int] = field(default_factory=dict)
    """a likely value of each size argument"""


def region_to_kernel(region: Region, lowerings: Mapping[OpOverload, Lowering]) -> RegionKernel:
    """Build the kernel of a region; `exc.LoweringError` says why it cannot be."""
    key = structural_key(region)
    kept = _built.setdefault(id(lowerings), (lowerings, {}))[1]
    nodes = (*region.inputs, *region.outputs)
    hints = graph_hints(region.nodes)
    if key in kept:
        kernel, numbers, sizes, names = kept[key]
        found = {s: hint_of(n, hints) for s, n in zip(names, sizes, strict=True)}
        return RegionKernel(
            kernel,
            tuple(nodes[n] for n in numbers),
            sizes,
            {s: 1 if n is None else n for s, n in found.items()},
        )
    facts = Facts(lowerings, owned=region.outputs, inside=region.nodes)
    built = build(facts, region, hints)
    while len(kept) >= MAX_KEPT:
        kept.pop(next(iter(kept)))
    numbers = tuple(nodes.index(n) for n in built.tensors)
    kept[key] = (built.kernel, numbers, built.sizes, built.kernel.sizes)
    return RegionKernel(built.kernel, built.tensors, built.sizes, built.hints)


MAX_KEPT = 512
_built: dict[int, tuple[Any, dict[Any, Any]]] = {}


def kernel_name(nodes: Iterable[fx.Node]) -> str:
    """`fused_` and up to four distinct names of what is computed."""
    names: dict[str, None] = {}
    for node in nodes:
        target = node.target
        if isinstance(target, OpOverload):
            names[target._schema.name.split("::")[-1].strip("_").lower()] = None
    return "_".join(["fused", *list(names)[:MAX_NAMES]])


def graph_hints(nodes: Iterable[fx.Node]) -> Hints:
    for node in nodes:
        values = node.meta.get("val")
        hints = known_hints(values if isinstance(values, tuple | list) else [values])
        if hints:
            return hints
    return Hints({}, {})


# -- building -----------------------------------------------------------------------------------


def build(
    facts: Facts, region: Region, hints: Mapping[sympy.Symbol, int], limits: Limits | None = None
) -> Emitted:
    """Try the templates in order of preference; the first reason of the last one is the answer."""
    try:
        space = axis_inference.infer(facts, region.nodes)
    except Conflict as error:
        raise refusal(region.nodes[-1], str(error)) from None
    shape = Shape(facts, space, region.nodes, region.outputs, hints, lambda node: 0)
    choices, why = templates(shape, limits or Limits())
    if not choices:
        raise refusal(region.nodes[-1], why)
    first: exc.LoweringError | None = None
    for template in choices:
        try:
            return _build(facts, space, region, template, hints)
        except exc.LoweringError as error:
            first = first or error
    assert first is not None
    raise first


def _build(
    facts: Facts,
    space: Space,
    region: Region,
    template: Template,
    hints: Mapping[sympy.Symbol, int],
) -> Emitted:
    for collapses in (True, False):
        trace, stores, folds, runs = trace_region(facts, space, region, template, hints, collapses)
        try:
            return _emit(trace, region, stores, folds, runs)
        except CollapseError:
            if not collapses:
                raise refusal(
                    region.nodes[-1], "an axis is needed that the kernel has not"
                ) from None
    raise AssertionError("unreachable")


def _emit(trace: Trace, region: Region, stores: Instances, folds: Instances, runs: Runs) -> Emitted:
    try:
        return Emitter(trace, region.name, runs).emit(stores, folds)
    except (exc.VerifierError, RecursionError) as error:
        raise refusal(region.nodes[-1], str(error)) from error


Runs = list[tuple[Atom, ...]]
Instances = dict[fx.Node, Instance]


def trace_region(
    facts: Facts,
    space: Space,
    region: Region,
    template: Template,
    hints: Mapping[sympy.Symbol, int],
    collapses: bool = True,
    with_runs: bool = True,
) -> tuple[Trace, Instances, Instances, Runs]:
    """The trace, the instances of the outputs, those of the reductions over grid axes, and the
    axes.

    `with_runs` False: the axes only as far as they say whether the template is possible.
    """
    trace = Trace(facts, space, region.nodes, template, hints)
    folds = {}
    for call in template.outer:
        (output,) = axis_inference.outputs_of(call)
        folds[call] = trace.output(output)
    stores = {output: trace.output(output) for output in region.outputs}
    if len(template.over) <= 1 and not with_runs:
        return trace, stores, folds, []
    runs = _runs(Traced.of(trace, stores, folds.values()), template, collapses)
    if sum(bool(template.over & set(run)) for run in runs) > 1:
        raise refusal(template.outer[0], "it reduces several grid axes that are not one")
    return trace, stores, folds, runs


def _runs(traced: Traced, template: Template, collapses: bool) -> Runs:
    grid = ordered_atoms(traced, template.grid)
    full = ordered_atoms(traced, template.full)
    if not collapses:
        return [(a,) for a in (*grid, *full)]

    def together(role: frozenset[Atom]) -> Callable[[Atom, Atom], bool]:
        def same(a: Atom, b: Atom) -> bool:
            return all((a in s) == (b in s) for s in (role, template.kept, template.over))

        return same

    return [
        *runs_of(traced, grid, together(template.grid)),
        *runs_of(traced, full, together(template.full)),
    ]


# -- equal regions ------------------------------------------------------------------------------


def structural_key(region: Region) -> Any:
    """Equal for regions that differ in names only."""
    numbers: dict[fx.Node, Any] = {n: ("in", i) for i, n in enumerate(region.inputs)}
    numbers.update((n, i) for i, n in enumerate(region.nodes))

    def part(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            if argument in numbers:
                return numbers[argument]
            value = argument.meta.get("val")
            return (
                ("size", str(value))
                if not isinstance(value, torch.Tensor)
                else ("?", argument.name)
            )
        if isinstance(argument, list | tuple):
            return tuple(part(a) for a in argument)
        if isinstance(argument, dict):
            return tuple((k, part(v)) for k, v in argument.items())
        return (type(argument).__name__, repr(argument))

    nodes = tuple(
        (str(n.target), part(n.args), part(dict(n.kwargs)), _layout(n.meta.get("val")))
        for n in region.nodes
    )
    return (
        region.name,
        nodes,
        tuple(_layout(n.meta["val"]) for n in region.inputs),
        tuple(numbers[n] for n in region.outputs),
        # What is known of the symbols decides which tests a kernel makes.
        tuple(sorted((s.name, n) for s, n in graph_hints(region.nodes).least.items())),
    )


def _layout(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(str(host_size(n)) for n in value.shape),
            tuple(str(host_size(n)) for n in value.stride()),
        )
    if isinstance(value, tuple | list):
        return tuple(_layout(v) for v in value)
    return str(value)
