"""What a graph's nodes are to us: computations, moved data, free views, constants, or none of
our business.

In: an FX node of a post-grad graph and the lowering table. Out: its kind, its row, its tensor
operands, and for a node that is left alone, the reason. Everything is found once per node and
kept. Used by the modules of capture only.

Kinds:

`compute`  has a row that makes code; may be an output of a region.
`move`     copies elements from elsewhere (cat, pad, gather, a reshape that strides cannot express).
`view`     shares memory with an operand that is one of ours: an index map inside a region, free
outside. `constant` is made of nothing (full, iota), or of such by views and a few cheap
operations: made again wherever
           it is used.
`item`     takes one result of a `compute` node with several.
`outside`  everything else: an input of a region at most. A view of it is outside as well (it
costs nothing
           there), so a region reads it through the strides that it has.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from torch_helion.capture.sizes import shape_of, strides_of
from torch_helion.ir.types import Size
from torch_helion.lowering import view as view_rules
from torch_helion.lowering.registry import Lowering

aten = torch.ops.aten
prims = torch.ops.prims

Path = tuple[Any, ...]
"""Where an argument stands: (position,), (position, item in a list) or (keyword,)."""

DTYPES = frozenset(
    (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.bool,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
)
MAX_BYTES = 2**62
"""Sizes of tensors stay below this, so that no index overflows."""

# Rows for the front end: their operands do not align as broadcasting does; graphs hold their parts.
_NOT_ELEMENTWISE = frozenset(
    (
        aten._native_batch_norm_legit_no_training.default,
        aten.native_group_norm.default,
        aten.native_layer_norm_backward.default,
        aten._fused_rms_norm_backward.default,
    )
)

# One-for-one views through which a constant is still made again at each use.
_PLAIN = frozenset(
    (
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.permute.default,
        aten.alias.default,
        aten.detach.default,
    )
)


MAX_CONSTANT = 8
"""Calls in an integer expression of constants that is made again at each use."""

_FLOATS_OF_CONSTANTS = frozenset((prims.convert_element_type.default, aten.where.self))


class Facts:
    """Kinds, rows and operands of nodes, each found at its first use."""

    def __init__(
        self,
        lowerings: Mapping[OpOverload, Lowering],
        probe: Callable[[Facts, fx.Node], str | None] | None = None,
        owned: Iterable[fx.Node] = (),
        inside: Iterable[fx.Node] | None = None,
    ) -> None:
        self.lowerings = lowerings
        self._inside = None if inside is None else set(inside)
        """With a region given, every other node is outside, whatever it is."""
        self._owned = set(owned)
        """Nodes that are no constants, since their values are stored."""
        self.reasons: dict[fx.Node, str] = {}
        """Why a call that does work is `outside`."""
        self.view_spaces: dict[fx.Node, Any] = {}
        """Axis spaces of views that stand outside, made when two inputs have one origin."""
        self._probe = probe
        self._kinds: dict[fx.Node, str] = {}
        self._operands: dict[fx.Node, tuple[tuple[Path, fx.Node], ...]] = {}

    def row(self, node: fx.Node) -> Lowering:
        """The row of a node that is ours; of an item that is a view, that of the call that it
        belongs to.
        """
        return self.lowerings[self.call(node).target]  # type: ignore[index]

    def call(self, node: fx.Node) -> fx.Node:
        """The operator call that makes a node: itself, or what a `getitem` takes from."""
        source = node.args[0] if node.target is operator.getitem else node
        assert isinstance(source, fx.Node)
        return source

    def output_number(self, node: fx.Node) -> int:
        return int(node.args[1]) if node.target is operator.getitem else 0  # type: ignore[arg-type]

    def kind(self, node: fx.Node) -> str:
        found = self._kinds.get(node)
        if found is None:
            outside = self._inside is not None and node not in self._inside
            found = "outside" if outside else self._classify(node)
            self._kinds[node] = found
        return found

    def forget(self, nodes: Iterable[fx.Node]) -> None:
        """Classify these nodes again when they are next asked for."""
        for node in nodes:
            self._kinds.pop(node, None)

    def exclude(self, node: fx.Node, why: str) -> None:
        """Leave a node to the host from now on."""
        self._kinds[node] = "outside"
        self.reasons[node] = why

    def is_copying(self, node: fx.Node) -> bool:
        """Whether the node's value is memory of its own."""
        return self.kind(node) in ("compute", "move", "item")

    def is_view(self, node: fx.Node) -> bool:
        """Whether a node is a view, by a row of ours, of its one operand, wherever it stands."""
        row = self.lowerings.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
        if row is None or row.kind != "view" or not is_tensor(node) or _is_copy(node, row):
            return False
        return len(self.operands(node)) == 1 and shares_memory(node)

    def operands(self, node: fx.Node) -> tuple[tuple[Path, fx.Node], ...]:
        """The tensor operands of the call behind `node`, with the places of their arguments."""
        if node not in self._operands:
            call = self.call(node)
            found = [*_nodes_in(call.args), *_nodes_in(call.kwargs)]
            self._operands[node] = tuple((p, n) for p, n in found if is_tensor(n))
        return self._operands[node]

    # -- classification -----------------------------------------------------------------------

    def _classify(self, node: fx.Node) -> str:
        if node.op != "call_function":
            return "outside"
        if node.target is operator.getitem:
            return self._classify_item(node)
        why = self._unsupported(node)
        if why is not None:
            self.reasons[node] = why
            return "outside"
        row = self.row(node)
        if row.kind == "view" and not isinstance(node.meta["val"], torch.Tensor):
            return "outside" if self.kind(self.operands(node)[0][1]) == "outside" else "view"
        kind = self._kind_of_row(node, row)
        if kind in ("compute", "move") and self._probe is not None:
            why = self._probe(self, node)
            if why is not None:
                self.reasons[node] = why
                return "outside"
        return kind

    def _kind_of_row(self, node: fx.Node, row: Lowering) -> str:
        operands = self.operands(node)
        if row.kind == "creation" and not operands:
            return "constant"
        sources = {self.kind(n) for _, n in operands}
        constant = sources == {"constant"} and node not in self._owned
        if constant and (is_plain(node) or self._is_small_constant(node, row)):
            return "constant"
        if row.kind not in ("view", "gather"):
            return "compute"
        if row.kind == "gather" or _is_copy(node, row) or not shares_memory(node):
            return "move"
        return "outside" if sources == {"outside"} else "view"

    def _is_small_constant(self, node: fx.Node, row: Lowering) -> bool:
        """An integer or bool expression of constants of few calls: masks, positions."""
        if row.kind != "pointwise":
            return False
        value = node.meta["val"]
        floating = not isinstance(value, torch.Tensor) or value.dtype.is_floating_point
        if floating and node.target not in _FLOATS_OF_CONSTANTS:
            return False
        seen = {node}
        work = [node]
        while work:
            for _, operand in self.operands(work.pop()):
                if operand not in seen:
                    seen.add(operand)
                    work.append(operand)
        return sum(self.row(n).kind == "pointwise" for n in seen) <= MAX_CONSTANT

    def own(self, nodes: Iterable[fx.Node]) -> None:
        """These are no constants from now on: their values are needed in memory."""
        self._owned.update(nodes)
        self.forget(nodes)

    def _classify_item(self, node: fx.Node) -> str:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_function":
            return "outside"
        kind = self.kind(source)
        if kind == "compute":
            return "item" if is_tensor(node) else "outside"
        return "view" if kind == "view" else "outside"

    def _unsupported(self, node: fx.Node) -> str | None:
        target = node.target
        if not isinstance(target, OpOverload):
            return "not a call of an operator"
        if target._schema.is_mutable:
            return f"{target} changes its operands"
        if target not in self.lowerings:
            return f"no lowering for {target}"
        if target in _NOT_ELEMENTWISE:
            return f"{target} is expected in parts"
        values = node.meta.get("val")
        if values is None:
            return "its sizes are not known"
        for value in values if isinstance(values, tuple | list) else (values,):
            why = unsupported_tensor(value)
            if why is not None:
                return why
        for _, operand in self.operands(node):
            why = unsupported_tensor(operand.meta["val"])
            if why is not None:
                return f"operand {operand.name}: {why}"
        for argument in node.all_input_nodes:
            if isinstance(argument.meta.get("val"), torch.SymFloat | torch.SymBool):
                return f"{argument.name} is a symbolic float or bool"
        return None


def is_plain(node: fx.Node) -> bool:
    """Whether a view only permutes and repeats dimensions, or adds and drops those of extent 1."""
    if node.target in view_rules.RESHAPES and node.target is not aten.as_strided.default:
        (source,) = (n for n in node.all_input_nodes if is_tensor(n))
        groups = view_rules.dimension_groups(shape_of(source), shape_of(node))
        return groups is not None and all(len(a) == len(b) == 1 for a, b in groups)
    return node.target in _PLAIN


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _nodes_in(arguments: Any) -> Iterator[tuple[Path, fx.Node]]:
    """Nodes among positional or keyword arguments, lists of them looked into."""
    pairs = arguments.items() if isinstance(arguments, Mapping) else enumerate(arguments)
    for place, argument in pairs:
        if isinstance(argument, fx.Node):
            yield (place,), argument
        elif isinstance(argument, list | tuple):
            for number, item in enumerate(argument):
                if isinstance(item, fx.Node):
                    yield (place, number), item


def unsupported_tensor(value: Any) -> str | None:
    """Why a fake tensor cannot be read or written by a kernel; None if it can."""
    if value is None:
        return None
    if not isinstance(value, torch.Tensor):
        return f"a result of type {type(value).__name__}"
    if value.layout is not torch.strided or value.is_quantized:
        return f"layout {value.layout}"
    if value.device.type != "cpu":
        return f"device {value.device}"
    if value.dtype not in DTYPES:
        return f"dtype {value.dtype}"
    if value.is_neg() or value.is_conj():
        return "a lazily negated or conjugated tensor"
    if _is_subclass(value):
        return f"a tensor of type {type(value).__name__}"
    shape = value.shape
    static = all(type(n) is int for n in shape)
    if not static and free_unbacked_symbols(value):
        return "a size that depends on data"
    if 0 in shape if static else any(type(n) is int and n == 0 for n in shape):
        return "a tensor without elements"
    if static:
        extent = 1 + sum(
            (n - 1) * s for n, s in zip(shape, value.stride(), strict=True) if isinstance(s, int)
        )
        if extent * value.element_size() >= MAX_BYTES:
            return "a tensor beyond 64-bit addresses"
    return None


def _is_subclass(value: torch.Tensor) -> bool:
    plain = (torch.Tensor, torch.nn.Parameter)
    from torch._subclasses.fake_tensor import FakeTensor

    return type(value) not in plain and not isinstance(value, FakeTensor)


def _is_copy(node: fx.Node, row: Lowering) -> bool:
    return node.target in view_rules.COPIES or row.rule is view_rules.lookup_seed


def shares_memory(node: fx.Node) -> bool:
    """Whether a view-like call gives a view: a reshape does where the operand's strides allow."""
    if node.target is not aten.reshape.default:
        return True
    (source,) = (n for n in node.all_input_nodes if is_tensor(n))
    return viewable(shape_of(source), strides_of(source), shape_of(node))


def viewable(shape: tuple[Size, ...], strides: tuple[Size, ...], out: tuple[Size, ...]) -> bool:
    """Whether a strided tensor has a view of another shape."""
    groups = view_rules.dimension_groups(shape, out)
    if groups is None:
        return False
    for ins, outs in groups:
        if len(outs) == 1 and len(ins) == 1:
            continue
        for outer, inner in itertools.pairwise(ins):
            if not view_rules.same(strides[outer], strides[inner] * shape[inner]):
                return False
    return True
