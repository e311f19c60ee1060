"""A region of products and pointwise work as one kernel.

In: a `ContractionRegion`. Out: a `RegionKernel`, or `exc.LoweringError` with the reason. Rows and
columns are the kernel's grid, the dimension that is summed is whole inside a step (the code of a
product blocks it for the caches), and all sizes are arguments: layers of one structure share one
kernel, whatever their widths are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
from torch import fx
from torch._ops import OpOverload

from torch_helion import exc
from torch_helion.capture import axes as axis_inference
from torch_helion.capture.axes import Atom, Conflict, Space, refusal
from torch_helion.capture.collapse import Region as Traced
from torch_helion.capture.collapse import ordered_atoms, runs_of
from torch_helion.capture.contraction_choice import LIKELY_ROWS
from torch_helion.capture.emit import CollapseError, Emitted
from torch_helion.capture.node_facts import Facts, Path
from torch_helion.capture.quantized import Weight
from torch_helion.capture.quantized_kernel import QuantizedEmitter, QuantizedProgram
from torch_helion.capture.region_to_kernel import (
    Region,
    RegionKernel,
    Runs,
    graph_hints,
    structural_key,
)
from torch_helion.capture.template import Template
from torch_helion.capture.trace import Guards, Index, Instance, Trace
from torch_helion.lowering.product import PRODUCTS
from torch_helion.lowering.registry import Lowering, table

EXTENTS: tuple[int, tuple[int, ...]] = (83, (7, 13, 19))
"""Of small instances: more than one register tile, and more than a vector along what is summed."""
LIKELY_K = 1024
"""Stands for the length of every sum where blocks are chosen: it hardly matters to them, and
layers that only differ in it should share a kernel."""


@dataclass(frozen=True)
class ContractionRegion(Region):
    """A region that computes products."""

    products: tuple[fx.Node, ...] = ()
    prologue: frozenset[fx.Node] = frozenset()
    """Nodes that compute operands of products."""
    lowerings: Mapping[OpOverload, Lowering] = field(default_factory=dict)
    """Rows for all nodes, those of products among them."""
    weights: Mapping[fx.Node, Weight] = field(default_factory=dict)
    """Quantised weights, by the products whose second operand they are."""

    @property
    def hidden(self) -> frozenset[fx.Node]:
        """Nodes that have no axes here: they make quantised weights."""
        return frozenset(n for w in self.weights.values() for n in w.nodes)

    @property
    def bytes(self) -> frozenset[fx.Node]:
        """Tensors of which every byte has a meaning."""
        return frozenset(w.bytes for w in self.weights.values())

    @property
    def program(self) -> Any:
        """What a small instance evaluates; None: as for every region."""
        return QuantizedProgram if self.weights else None

    @property
    def extents(self) -> tuple[int, tuple[int, ...]]:
        """Extents of a small instance."""
        return EXTENTS


_tables: dict[int, tuple[Any, dict[OpOverload, Lowering]]] = {}


def lowerings_with_products(
    lowerings: Mapping[OpOverload, Lowering],
) -> Mapping[OpOverload, Lowering]:
    """The table with the rows of products; the same object for the same table."""
    if id(lowerings) not in _tables:
        _tables[id(lowerings)] = lowerings, table(lowerings.values(), PRODUCTS)
    return _tables[id(lowerings)][1]


def contraction_kernel(region: ContractionRegion) -> RegionKernel:
    """Build the kernel; regions that are equal up to names get the same one."""
    key = structural_key(region), _weights_key(region)
    nodes = (*region.inputs, *region.outputs)
    if key not in _built:
        hints = graph_hints(region.nodes)
        built = _build(region, hints)
        while len(_built) >= MAX_KEPT:
            _built.pop(next(iter(_built)))
        numbers = tuple(nodes.index(n) for n in built.tensors)
        _built[key] = built, numbers
    built, numbers = _built[key]
    return RegionKernel(built.kernel, tuple(nodes[n] for n in numbers), built.sizes, built.hints)


def _weights_key(region: ContractionRegion) -> Any:
    """Which of equal graphs' weights are taken to be quantised."""
    numbers = {n: i for i, n in enumerate(region.nodes)}
    return tuple((numbers[p], w.packing, w.group) for p, w in region.weights.items())


MAX_KEPT = 128
_built: dict[Any, tuple[Emitted, tuple[int, ...]]] = {}


class ProductTrace(Trace):
    """A trace whose whole axes are size arguments, too, and whose operands may be quantised."""

    weights: Mapping[fx.Node, Weight] = {}

    def operand(self, consumer: fx.Node, path: Path, index: Index, guards: Guards) -> Instance:
        weight = self.weights.get(consumer)
        if weight is None or dict(self.facts.operands(consumer))[path] is not weight.nodes[-1]:
            return super().operand(consumer, path, index, guards)
        return Instance("weight", consumer, index)

    def name(self, atom: Atom) -> str:
        if atom not in self.names:
            name = f"a{len(self.names)}"
            self.names[atom], self.atoms[name] = name, atom
            host = self.space.extents[atom]
            fixed = any(atom in self.space.leaves(self.space.folded[p]) for p in self.weights)
            # Which byte an input is in depends on how many there are.
            self.extents[name] = host if fixed else self.sizes.extent(name, host)
        return self.names[atom]


def _build(region: ContractionRegion, hints: Mapping[sympy.Symbol, int]) -> Emitted:
    facts = Facts(region.lowerings, owned=region.outputs, inside=region.nodes)
    last = region.nodes[-1]
    try:
        hidden = region.hidden
        space = axis_inference.infer(facts, [n for n in region.nodes if n not in hidden])
    except Conflict as error:
        raise refusal(last, str(error)) from None
    template = _template(region, facts, space)
    for collapses in (True, False):
        trace = ProductTrace(facts, space, region.nodes, template, hints)
        trace.weights = region.weights
        stores = {output: trace.output(output) for output in region.outputs}
        runs = _runs(Traced.of(trace, stores, ()), template, collapses)
        _check_runs(region, space, runs)
        try:
            emitter = QuantizedEmitter(trace, region.name, runs)
            emitter.weights = region.weights
            emitted = emitter.emit(stores, {})
        except CollapseError:
            continue
        except (exc.VerifierError, RecursionError) as error:
            raise refusal(last, str(error)) from error
        return _with_likely_sizes(emitted)
    raise refusal(last, "an axis is needed that the kernel has not")


def _template(region: ContractionRegion, facts: Facts, space: Space) -> Template:
    """Rows and columns of the products are the grid; every output has them all, and no other."""
    grid = frozenset(space.atoms(region.products[0]))
    full: frozenset[Atom] = frozenset()
    nodes = [n for n in region.nodes if n not in region.hidden]
    for node in nodes:
        if node in region.products:
            full |= frozenset(space.leaves(space.folded[node]))
        elif node in space.folded:
            raise refusal(node, "a reduction beside a product")
        elif facts.kind(node) == "move":
            raise refusal(node, "elements are moved after a product")
    for node in nodes:
        if node in region.prologue:
            continue
        atoms = frozenset(space.atoms(node)) if node in space.dims else frozenset()
        if not atoms <= grid:
            raise refusal(node, "it has an axis that the product has not")
        if atoms != grid and (node in region.outputs or node in region.products):
            raise refusal(node, "it lacks an axis of the product")
    if grid & full:
        raise refusal(region.products[0], "an axis is both summed and kept")
    return Template(grid, full)


def _runs(traced: Traced, template: Template, collapses: bool) -> Runs:
    grid = ordered_atoms(traced, template.grid)
    full = ordered_atoms(traced, template.full)
    if not collapses:
        return [(a,) for a in (*grid, *full)]

    def together(a: Atom, b: Atom) -> bool:
        return (a in template.grid) == (b in template.grid)

    return [*runs_of(traced, grid, together), *runs_of(traced, full, together)]


def _check_runs(region: ContractionRegion, space: Space, runs: Runs) -> None:
    """Rows are one axis of the kernel, columns another, and each sum has one."""
    for product in region.products:
        sides = (*space.of(product), space.leaves(space.folded[product]))
        for side in sides:
            at = {i for i, run in enumerate(runs) if set(run) & set(side)}
            if len(at) > 1 or any(set(runs[i]) != set(side) for i in at):
                raise refusal(product, "its rows or columns are not one axis in memory")


def _with_likely_sizes(emitted: Emitted) -> Emitted:
    """With one likely length for every sum, and many rows where their number is not known."""
    axes = emitted.kernel.axes()
    sums = {op.attrs["k"] for op in emitted.kernel.body.walk() if op.kind == "dot"}
    lengths = {axes[name].size for name in sums}
    hints = dict(emitted.hints)
    for symbol, host in zip(emitted.kernel.sizes, emitted.sizes, strict=True):
        if symbol in lengths:
            hints[symbol] = LIKELY_K
        elif not isinstance(host, int):
            hints[symbol] = max(hints[symbol], LIKELY_ROWS)
    return Emitted(emitted.kernel, emitted.tensors, emitted.sizes, hints)
