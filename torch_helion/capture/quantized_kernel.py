"""Quantised weights inside the kernel of a product, and in what the kernel is compared with.

In: the `Weight`s of a region's products. Out: an emitter that makes such an operand from its bytes
at the positions of a tile, and the region's program for small instances, in which the operand is
computed from what the match says (that this is what the operators do was tried when it was found).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from torch_helion.capture import axes, small_instance
from torch_helion.capture.axes import refusal
from torch_helion.capture.collapse import Dimension
from torch_helion.capture.emit import Emitter
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.quantized import Numbers, Weight, dequantise
from torch_helion.capture.sizes import shape_of, strides_of
from torch_helion.capture.trace import Instance
from torch_helion.ir.graph import Value
from torch_helion.ir.types import Affine, Gather
from torch_helion.lowering import quantized


class QuantizedEmitter(Emitter):
    """Builds a kernel some of whose products have a quantised weight."""

    weights: Mapping[fx.Node, Weight] = {}
    """By the product."""

    def _compute(self, instance: Instance) -> Any:
        if instance.kind == "weight":
            return self._weight(instance.node, self.weights[instance.node])
        return super()._compute(instance)

    def _weight(self, product: fx.Node, weight: Weight) -> Value:
        (_, _), (path, _) = self.trace.facts.operands(product)[-2:]
        use = (product, path)
        atoms = self.trace.space.leaves(self.trace.space.folded[product])
        if len(atoms) != 1:
            raise refusal(product, "the inputs of a quantised weight are no single axis")
        (axis,) = self.axes_of(atoms)
        column = self.trace.canonical(use)[1]
        extent = self.trace.shape(use)[1]

        def rows(stride: int) -> Dimension:
            return Dimension(column, weight.outputs, extent, stride)

        length = weight.inputs * weight.packing.bits // 8
        along = Dimension(self.trace.canonical(use)[0], length, length, 1)
        bytes = self._buffer(weight.bytes, [rows(weight.n_stride), along], "in")

        def read(place: Value | None) -> Value:
            if place is None:
                return self.b.load(bytes, [self.affine(column), Affine.of(axis)])
            return self.b.load(bytes, [self.affine(column), Gather(0)], [place])

        def numbers(given: Numbers | None) -> Value | None:
            if given is None:
                return None
            if given.group is None:
                buffer = self._buffer(given.node, [rows(given.n)], "in")
                return self.b.load(buffer, [self.affine(column)])
            count = weight.inputs // weight.group
            groups = Dimension(Affine(), count, count, given.group)
            buffer = self._buffer(given.node, [rows(given.n), groups], "in")
            place = quantized.group(self.b, weight.group, axis)
            return self.b.load(buffer, [self.affine(column), Gather(0)], [place])

        integer = quantized.integers(self.b, weight.packing, read, axis)
        return quantized.scaled(self.b, integer, numbers(weight.zero), numbers(weight.scale))


class QuantizedProgram(small_instance.Program):
    """A region's operators, where weights are computed from bytes of which there are few rows."""

    def __post_init__(self) -> None:
        region = self.region
        self.weights: dict[fx.Node, Weight] = dict(region.weights)
        self.roots = {w.nodes[-1]: (p, w) for p, w in self.weights.items()}
        self.hidden = {n for w in self.weights.values() for n in w.nodes}
        self.owners = {n: (p, w) for p, w in self.weights.items() for n in w.tensors}
        self.facts = Facts(self.lowerings, owned=region.outputs)
        try:
            self.space = axes.infer(self.facts, [n for n in region.nodes if n not in self.hidden])
        except axes.Conflict as error:
            raise small_instance.CannotShrink(str(error)) from error
        self.find_uses()

    def find_uses(self) -> None:
        super().find_uses()
        for node in self.owners:
            self.uses.pop(node, None)

    def shape(self, node: fx.Node, small: small_instance.Sizes) -> tuple[int, ...]:
        if node not in self.owners:
            return super().shape(node, small)
        product, weight = self.owners[node]
        columns = super().shape(product, small)[1]
        shape = [int(n) for n in shape_of(node)]
        shape[self._output(node, weight)] = columns
        return tuple(shape)

    def _output(self, node: fx.Node, weight: Weight) -> int:
        """The dimension of a tensor that outputs run along."""
        step = weight.n_stride
        for numbers in (weight.scale, weight.zero):
            if numbers is not None and numbers.node is node:
                step = numbers.n
        pairs = list(zip(shape_of(node), strides_of(node), strict=True))
        if (weight.outputs, step) not in pairs:
            raise small_instance.CannotShrink(f"{node}: outputs are no dimension of it")
        return pairs.index((weight.outputs, step))

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], precise: bool) -> Any:
        if node not in self.hidden:
            return super()._call(node, values, precise)
        if node not in self.roots:
            return None
        _, weight = self.roots[node]

        def of(tensor: fx.Node) -> torch.Tensor:
            value: torch.Tensor = values[tensor].movedim(self._output(tensor, weight), 0)
            return value.flatten(1) if value.dim() > 1 else value[:, None]

        numbers = (of(x.node) if x is not None else None for x in (weight.scale, weight.zero))
        found = dequantise(weight, of(weight.bytes), *numbers).t()
        return found if precise else found.to(node.meta["val"].dtype)

    def _operand(
        self, node: fx.Node, path: Any, operand: fx.Node, values: Mapping[fx.Node, Any]
    ) -> Any:
        if operand in self.hidden:
            return values[operand]
        return super()._operand(node, path, operand, values)
