"""Matrix products that become kernels, each with the pointwise work that follows it.

In: a post-grad graph and its map-reduce regions. Out: the regions, some of which now begin with a
product, regions of a product alone, and for every other product the reason why a library computes
it.

    mm = aten.mm(x, w); view = aten.view(mm, [8, 128, 768]); gelu...(view)  →  one region

A region takes the products that it reads when it is pointwise over exactly their rows and columns:
every value of it is then computed on the accumulators, before anything is stored. A product is a
reduction over its inner dimension to the pull evaluation (trace.py), and one `dot` in the kernel,
which blocks for the caches itself. Whether a product is worth a kernel is `contraction_choice`'s
answer; how the kernel is built stands in `contraction_kernel.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from torch_helion import exc
from torch_helion._logging import get_logger
from torch_helion.capture import quantized
from torch_helion.capture import regions as map_reduce
from torch_helion.capture.contraction_choice import (
    BYTES_ROWS,
    LIKELY_ROWS,
    Product,
    Tiles,
    library_is_as_fast,
)
from torch_helion.capture.contraction_kernel import (
    EXTENTS,
    ContractionRegion,
    contraction_kernel,
    lowerings_with_products,
)
from torch_helion.capture.mutation import Mutations
from torch_helion.capture.node_facts import Facts, is_tensor, unsupported_tensor
from torch_helion.capture.quantized import Weight
from torch_helion.capture.region_to_kernel import (
    Region,
    RegionKernel,
    graph_hints,
    kernel_name,
    region_to_kernel,
)
from torch_helion.capture.regions import Declined
from torch_helion.capture.sizes import Hints, hint_of, shape_of, strides_of
from torch_helion.capture.units import Units
from torch_helion.lowering import product as product_rules
from torch_helion.lowering.registry import Lowering

__all__ = ["EXTENTS", "ContractionRegion", "build_kernel", "find_regions"]

logger = get_logger("fusion")

aten, prims = torch.ops.aten, torch.ops.prims
CONVERSIONS = (prims.convert_element_type.default, aten._to_copy.default)
BYTES = (torch.int8, torch.uint8)
MAX_PRODUCTS = 2
"""Of one region: the gate and the input of a gated unit."""


def find_regions(
    graph: fx.Graph, lowerings: Mapping[OpOverload, Lowering], *, options: Any = None
) -> tuple[list[Region], list[Declined]]:
    """The regions of a graph in topological order of their last nodes, and what is left out."""
    weights = _worthwhile(graph, quantized.find(graph, _products(graph)))
    while True:
        hidden = {n for w in weights.values() for n in w.nodes}
        regions, declined = map_reduce.find_regions(
            graph, lowerings, options=options, excluded=hidden
        )
        finder = Finder(graph, lowerings, regions, weights)
        if not finder.products:
            return regions, declined
        found = finder.find()
        taken = {n for region in found for n in region.nodes}
        without = [product for product in weights if product not in taken]
        if not without:
            break
        for product in without:  # then what makes its weight is a region of its own
            del weights[product]
    others = [d for d in declined if d.node not in finder.products and d.node not in taken]
    left = [Declined(n, why) for n, why in finder.reasons.items() if n not in taken]
    return found, sorted([*others, *left], key=lambda d: finder.number[d.node])


def _products(graph: fx.Graph) -> list[fx.Node]:
    targets = {row.overload for row in product_rules.PRODUCTS}
    return [n for n in graph.nodes if n.target in targets]


def _worthwhile(graph: fx.Graph, weights: Mapping[fx.Node, Weight]) -> dict[fx.Node, Weight]:
    """Those of products with so few rows that a weight is not worth storing."""
    hints = graph_hints(graph.nodes)
    found = {}
    for product, weight in weights.items():
        rows = hint_of(shape_of(product)[0], hints)
        if weight.is_converted_only or not isinstance(shape_of(product)[0], int):
            continue  # products of any number of rows do that (`Finder._conversion`)
        if rows is not None and rows <= BYTES_ROWS:
            found[product] = weight
    return found


def build_kernel(region: Region, lowerings: Mapping[OpOverload, Lowering]) -> RegionKernel:
    """The kernel of a region of any kind."""
    if isinstance(region, ContractionRegion):
        return contraction_kernel(region)
    return region_to_kernel(region, lowerings)


@dataclass
class Finder:
    """The products of one graph, and the regions that they join."""

    graph: fx.Graph
    lowerings: Mapping[OpOverload, Lowering]
    regions: list[Region]
    weights: Mapping[fx.Node, Weight] = field(default_factory=dict)
    """Quantised weights, by the products that have them."""
    reasons: dict[fx.Node, str] = field(default_factory=dict)
    """Why a product is left to the library."""

    def __post_init__(self) -> None:
        self.number = {node: i for i, node in enumerate(self.graph.nodes)}
        self.rows = lowerings_with_products(self.lowerings)
        self.hints: Hints = graph_hints(self.graph.nodes)
        self.mutations = Mutations(self.graph)
        self.facts = Facts(self.rows)
        self.products = dict.fromkeys(_products(self.graph))
        self.conversions: dict[fx.Node, tuple[fx.Node, ...]] = {}
        """Of products that are to convert their second operand: that conversion, and views."""
        self.units = Units(self.graph)
        for region in self.regions:
            if own := self._own(region):
                self.units.join(own)

    def _own(self, region: Region) -> list[fx.Node]:
        """The nodes of a region that are no other region's: constants may be made again."""
        return [n for n in region.nodes if self.facts.kind(n) != "constant"]

    def find(self) -> list[Region]:
        """All regions, those with products among them."""
        wanted: dict[fx.Node, Product] = {}
        for node in self.products:
            found = self._product(node)
            if isinstance(found, Product):
                wanted[node] = found
            else:
                self.reasons[node] = found
        regions = [self._with_products(region, wanted) for region in self.regions]
        taken = {n for region in regions for n in region.nodes}
        for node, product in wanted.items():
            if node not in taken:
                regions += self._alone(node, product)
        return sorted(regions, key=lambda r: self.number[r.nodes[-1]])

    # -- one product ------------------------------------------------------------------------------

    def _product(self, node: fx.Node) -> Product | str:
        """What there is to know of a product, or why it is the library's."""
        why = self._unsupported(node)
        if why is not None:
            return why
        *_, (_, a), (_, b) = self.facts.operands(node)
        (m, k), (_, n) = shape_of(a), shape_of(b)
        sizes = tuple(hint_of(size, self.hints) for size in (m, n, k))
        if None in sizes:
            return "its sizes have no likely values"
        least = 1 if isinstance(m, int) else LIKELY_ROWS
        weight = self.weights.get(node)
        conversion = weight.nodes if weight else self._conversion(node, b)
        if conversion:
            self.conversions[node] = conversion
        return Product(
            node.meta["val"].dtype,
            max(sizes[0] or 0, least),
            sizes[1] or 0,
            sizes[2] or 0,
            _unit(strides_of(a), "mk"),
            _unit(strides_of(b), "kn"),
            bool(conversion),
        )

    def _conversion(self, product: fx.Node, operand: fx.Node) -> tuple[fx.Node, ...]:
        """The conversion of bytes that makes an operand of this product only, and views of it."""
        found: list[fx.Node] = []
        user = product
        while set(operand.users) == {user}:
            found.append(operand)
            if operand.target in CONVERSIONS:
                source = self.facts.operands(operand)[0][1]
                right = operand.meta["val"].dtype is product.meta["val"].dtype
                small = source.meta["val"].dtype in BYTES
                supported = self.facts.kind(operand) == "compute"
                lone = all(operand not in region.nodes for region in self.regions)
                return tuple(found) if right and small and supported and lone else ()
            if not self.facts.is_view(operand):
                return ()
            user, operand = operand, self.facts.operands(operand)[0][1]
        return ()

    def _unsupported(self, node: fx.Node) -> str | None:
        operands = [operand for _, operand in self.facts.operands(node)]
        dtypes = {n.meta["val"].dtype for n in (node, *operands)}
        if len(dtypes) > 1 or not dtypes <= set(product_rules.DTYPES):
            return f"products of {', '.join(sorted(map(str, dtypes)))} are the library's"
        for value in (node, *operands):
            why = unsupported_tensor(value.meta["val"])
            if why is not None:
                return why
        for factor in (node.kwargs.get(name, 1) for name in ("alpha", "beta")):
            if type(factor) not in (int, float):
                return "a factor that is no number"
        if node.kwargs.keys() - {"alpha", "beta"}:
            return f"its argument {', '.join(node.kwargs)}"
        if not _is_dense(node):
            return "its result is not laid out by rows"
        if len(operands) > 2 and len(shape_of(operands[0])) > 2:
            return "a bias of more than two dimensions"
        *_, a, b = operands
        if any(size == 1 for size in (*shape_of(b), shape_of(a)[1])):
            return "a product with a vector"
        for operand, names in ((a, "mk"), (b, "kn")):
            if not _unit(strides_of(operand), names):
                return f"{operand.name} has no dimension whose elements lie side by side"
        return self.mutations.forbids(node)

    # -- with what follows ------------------------------------------------------------------------

    def _with_products(self, region: Region, wanted: dict[fx.Node, Product]) -> Region:
        """The region with the products that it reads, as far as that can be and pays."""
        read = [n for n in self._read_products(region) if n in wanted]
        tried = [read[:MAX_PRODUCTS], *([n] for n in read)] if len(read) > 1 else [read]
        for nodes in filter(None, tried):
            joined = self._join(region, nodes, wanted)
            if isinstance(joined, Region):
                for node in nodes:
                    del wanted[node]
                return joined
            for node in nodes:
                self.reasons[node] = joined
        return region

    def _read_products(self, region: Region) -> dict[fx.Node, None]:
        """Products that the region reads, through views if need be, in graph order."""
        found = {self._base(n): None for n in region.inputs}
        return dict.fromkeys(sorted((n for n in found if n in self.products), key=self.number.get))  # type: ignore[arg-type]

    def _base(self, node: fx.Node) -> fx.Node:
        while self.facts.is_view(node):
            node = self.facts.operands(node)[0][1]
        return node

    def _views(self, region: Region, products: Sequence[fx.Node]) -> list[fx.Node]:
        """The views between products and a region."""
        found: dict[fx.Node, None] = {}
        for node in region.inputs:
            if self._base(node) in products:
                while node not in products:
                    found[node] = None
                    node = self.facts.operands(node)[0][1]
        return list(found)

    def _join(
        self, region: Region, products: Sequence[fx.Node], wanted: Mapping[fx.Node, Product]
    ) -> Region | str:
        """The region and these products as one, or why not."""
        tiles = Tiles(tuple(wanted[n] for n in products), len(region.nodes))
        why = library_is_as_fast(tiles)
        if why is not None:
            return why
        views = self._views(region, products)
        own = self._own(region)
        for view in views:
            self.units.join((self._base(view), view))
        for node in products:
            if self.units.would_cycle(self.units.of(node), self.units.of(own[0])):
                return "a path between it and what follows leads outside"
        joined = self._region((*region.nodes, *products, *views), products)
        if isinstance(joined, Region):
            self.units.join((*products, own[0]))
        return joined

    def _alone(self, node: fx.Node, product: Product) -> list[Region]:
        tiles = Tiles((product,), 0)
        why = library_is_as_fast(tiles)
        found = why if why is not None else self._region((node,), (node,))
        if isinstance(found, Region):
            return [found]
        self.reasons[node] = found
        return []

    def _region(self, nodes: Sequence[fx.Node], products: Sequence[fx.Node]) -> Region | str:
        """The region of these nodes if its kernel can be built."""
        prologue = [n for p in products for n in self.conversions.get(p, ())]
        ordered = tuple(sorted({*nodes, *prologue}, key=self.number.__getitem__))
        inside = set(ordered)
        constants = {n for n in inside if self.facts.kind(n) == "constant"}
        computed = [n for n in ordered if self.facts.kind(n) in ("compute", "move")]
        region = ContractionRegion(
            ordered,
            self._inputs(ordered, inside),
            tuple(n for n in self._outputs(ordered, inside) if n not in constants),
            kernel_name(computed),
            products=tuple(products),
            prologue=frozenset(prologue),
            lowerings=self.rows,
            weights={p: self.weights[p] for p in products if p in self.weights},
        )
        try:
            contraction_kernel(region)
        except exc.LoweringError as error:
            why = str(getattr(error, "why", None) or error)
            logger.debug("no kernel of %s: %s", ", ".join(n.name for n in products), why)
            return why
        return region

    def _inputs(self, nodes: Sequence[fx.Node], inside: set[fx.Node]) -> tuple[fx.Node, ...]:
        operands = (n for node in nodes for _, n in self.facts.operands(node))
        return tuple(dict.fromkeys(n for n in operands if n not in inside))

    def _outputs(self, nodes: Sequence[fx.Node], inside: set[fx.Node]) -> tuple[fx.Node, ...]:
        """Values with users outside; of a view of a value in the region, that value."""
        found: dict[fx.Node, None] = {}
        for node in nodes:
            if not is_tensor(node) or all(user in inside for user in node.users):
                continue
            while node in inside and self.facts.is_view(node):
                node = self.facts.operands(node)[0][1]
            if node in inside:
                found[node] = None
        return tuple(sorted(found, key=self.number.__getitem__))


def _unit(strides: Sequence[Any], names: str) -> str:
    """The dimension whose stride is one; "" for none."""
    for name, stride in zip(reversed(names), reversed(tuple(strides)), strict=True):
        if stride == 1:
            return name
    return ""


def _is_dense(node: fx.Node) -> bool:
    value: torch.Tensor = node.meta["val"]
    return bool(value.is_contiguous())
