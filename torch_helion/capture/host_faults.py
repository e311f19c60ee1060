"""Guards against wrong answers of the host: each row names one fault, what keeps it out, and why.

What flows in: nothing, or a post-grad graph. What flows out: patches of Inductor's options
(:data:`OPTION_GUARDS`), changes of a graph (:data:`PROGRAM_GUARDS` before it is traced,
:data:`GRAPH_GUARDS` after), refusals of whole graphs (:data:`INPUT_GUARDS`). Every row has a test
in ``test/capture/test_host_faults.py``. A fault that only code of Inductor's own shows (its C++
arithmetic) needs no row: that code is not generated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from torch_helion.capture import inductor_compat
from torch_helion.capture.node import PromiseCall

aten = torch.ops.aten


@dataclass(frozen=True)
class OptionGuard:
    """Options of Inductor that keep a fault out; the user's own options win."""

    name: str
    why: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class GraphGuard:
    """A change of the graph; ``apply`` returns how many places it changed."""

    name: str
    why: str
    apply: Callable[[Graph], int]


@dataclass(frozen=True)
class ProgramGuard:
    """A change of dynamo's graph before it is traced; ``apply``: how many places changed."""

    name: str
    why: str
    apply: Callable[[Graph], int]


@dataclass(frozen=True)
class InputGuard:
    """A graph that goes to eager; ``refuses`` says why, or returns None."""

    name: str
    why: str
    refuses: Callable[[Sequence[Any]], str | None]


OPTION_GUARDS: tuple[OptionGuard, ...] = (
    OptionGuard(
        "patterns",
        "attention patterns take a permuted key for a transposed one (silently wrong numbers) and"
        " crash on a scale that is a tensor; others fold x + 0, which turns -0.0 into 0.0",
        {"pattern_matcher": False},
    ),
    OptionGuard(
        "constant_folding",
        "folding in the joint graph gives wrong gradients where heads share a key",
        {"joint_graph_constant_folding": False},
    ),
    OptionGuard(
        "precision_casts",
        "casts to half types that stand in the graph are dropped",
        {"emulate_precision_casts": True},
    ),
    OptionGuard(
        "layout_optimisation",
        "strides that differ from those in the graph make copies around every operator that is not"
        " Inductor's own",
        {"layout_optimization": False},
    ),
)


def options() -> dict[str, Any]:
    """What all rows of :data:`OPTION_GUARDS` set."""
    return {name: value for row in OPTION_GUARDS for name, value in row.options.items()}


def guard_graph(graph: Graph) -> list[str]:
    """Apply :data:`GRAPH_GUARDS`; the names of those that changed something."""
    return [row.name for row in GRAPH_GUARDS if row.apply(graph)]


def guard_program(graph: Graph) -> list[str]:
    """Apply :data:`PROGRAM_GUARDS`; the names of those that changed something."""
    return [row.name for row in PROGRAM_GUARDS if row.apply(graph)]


def refusal(inputs: Sequence[Any]) -> str | None:
    """Why a graph with these inputs must not be compiled at all; None if it may."""
    for row in INPUT_GUARDS:
        reason = row.refuses(inputs)
        if reason is not None:
            return reason
    return None


# ---------------------------------------------------------------------- aliases and mutation


def _clone_overlapping_sources(graph: Graph) -> int:
    """A tensor operand that shares memory with what the operator writes is copied first.

    Before → after: slice_scatter(x, slice(x)) → slice_scatter(x, clone(slice(x)))
    """
    changed = 0
    for node in list(graph.nodes):
        if not _may_be_made_in_place(node):
            continue
        target = node.args[0]
        shared = [
            source
            for source in node.all_input_nodes
            if source is not target and _share_storage(source, target)
        ]
        for source in shared:
            node.replace_input_with(source, _clone_before(node, source))
        changed += len(shared)
    return changed


def _clone_sources_written_before(graph: Graph) -> int:
    """What is copied out of an input is read before that input is written.

    Before → after: copy_(a, new); copy_(b, a) → c = clone(a); copy_(a, new); copy_(b, c)
    """
    changed = 0
    written: dict[int, Node] = {}  # storage → first node that writes it
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.copy_.default:
            target, source = node.args[:2]
            first = written.get(_storage(source) or 0)
            if first is not None:
                node.replace_input_with(source, _clone_before(first, source))
                changed += 1
            storage = _storage(target)
            if storage is not None:
                written.setdefault(storage, node)
    return changed


def _may_be_made_in_place(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not (node.args and isinstance(node.args[0], Node)):
        return False
    name = node.target._opname
    return "scatter" in name or name in _MADE_IN_PLACE


_MADE_IN_PLACE = frozenset({
    "index_put", "_unsafe_index_put", "_index_put_impl", "index_add", "index_copy", "index_reduce",
    "index_fill", "copy", "copy_", "masked_scatter",
})  # fmt: skip


def _share_storage(a: Node, b: Any) -> bool:
    return isinstance(b, Node) and _storage(a) is not None and _storage(a) == _storage(b)


def _storage(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except NotImplementedError:  # sparse and opaque tensors
        return None


def _clone_before(place: Node, source: Node) -> Node:
    graph = place.graph
    with graph.inserting_before(place):
        clone = graph.call_function(aten.clone.default, (source,))
    value = source.meta["val"]
    clone.meta["val"] = torch.empty_like(value) if _is_dense(value) else value.clone()
    return clone


def _is_dense(value: torch.Tensor) -> bool:
    return not value.is_sparse


# ---------------------------------------------------------------------- strides


def _promise_strides(graph: Graph) -> int:
    """Tensors whose strides only their operator knows are laid out as the graph says.

    Before → after: y = aten.f(x); kernel(y) → y = aten.f(x); p = promised(y); kernel(p)
    """
    changed = 0
    for node in list(graph.nodes):
        if not _may_break_its_promise(node) or not any(map(_relies_on_strides, node.users)):
            continue
        users = list(node.users)
        with graph.inserting_after(node):
            promise = graph.call_function(PromiseCall(node.meta["val"]), (node,))
        promise.meta.update(node.meta)
        for user in users:
            user.replace_input_with(node, promise)
        changed += 1
    return changed


def _may_break_its_promise(node: Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else node
    target = getattr(source, "target", None)
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_sparse or value.is_quantized:
        return False
    if not isinstance(target, torch._ops.OpOverload) or target in inductor_compat.lowered_by_us():
        return False
    return not (_TRUSTED_TAGS & set(target.tags)) and target._opname not in _TRUSTED


def _relies_on_strides(user: Node) -> bool:
    if user.op == "output" or hasattr(user.target, "_inductor_lowering_function"):
        return True
    return user.target in inductor_compat.lowered_by_us()


_TRUSTED_TAGS = {torch.Tag.pointwise} | (
    {torch.Tag.reduction} if hasattr(torch.Tag, "reduction") else set()
)
_TRUSTED = frozenset({
    "_to_copy", "arange", "argmax", "argmin", "amax", "amin", "any", "all", "cat", "clone", "copy",
    "copy_", "cumsum", "cumprod", "embedding", "empty", "empty_strided", "full", "full_like",
    "gather", "index", "index_put", "index_select", "max", "mean", "min", "ones", "prod",
    "rand", "randint", "randn", "scalar_tensor", "scatter", "scatter_add", "select_scatter",
    "slice_scatter", "sum", "topk", "var", "var_mean", "where", "zeros", "zeros_like",
})  # fmt: skip


GRAPH_GUARDS: tuple[GraphGuard, ...] = (
    GraphGuard(
        "overlapping_sources",
        "a copy between overlapping views of one tensor is made in place without the clone that"
        " the program has between them",
        _clone_overlapping_sources,
    ),
    GraphGuard(
        "sources_written_before",
        "a copy out of an input is made after that input has been written",
        _clone_sources_written_before,
    ),
    GraphGuard(
        "promised_strides",
        "an operator returns strides that its fake implementation does not tell",
        _promise_strides,
    ),
)


# ---------------------------------------------------------------------- programs


def _inactive_dropout(graph: Graph) -> int:
    """Dropout that does nothing is its argument: the same tensor, not a copy.

    Before → after: y = dropout(x, 0.5, training=False); y.add_(1) → x.add_(1)
    """
    changed = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUTS:
            continue
        given = dict(zip(_DROPOUTS[node.target], node.args, strict=False)) | dict(node.kwargs)
        inactive = given.get("training", True) is False or given.get("p", 0.5) == 0
        if inactive and isinstance(given.get("input"), Node):
            node.replace_all_uses_with(given["input"])
            graph.erase_node(node)
            changed += 1
    return changed


_DROPOUTS = {
    torch.nn.functional.dropout: ("input", "p", "training", "inplace"),
    torch.dropout: ("input", "p", "training"),
}


def _product_and_sum_of_halves(graph: Graph) -> int:
    """Updates of half types that dynamo has cut into two steps, each of them rounded.

    Before → after: product = a * b; fma(product, 0.1, x) → addcmul(x, a, b, value=0.1)
    """
    changed = 0
    for node in list(graph.nodes):
        if str(node.target) != "prims.fma.default" or not _is_cut_update(*node.args):
            continue
        product, value, start = node.args
        if node.prev is not product or set(product.users) != {node}:
            continue
        with graph.inserting_before(node):
            whole = graph.call_function(
                _UPDATES[product.target], (start, *product.args), {"value": value}
            )
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
        graph.erase_node(product)
        changed += 1
    return changed


def _is_cut_update(product: Any, value: Any, start: Any) -> bool:
    """Whether these operands of a multiply-add are a product of tensors, a number, a tensor."""
    if not isinstance(product, Node) or not isinstance(start, Node) or isinstance(value, Node):
        return False
    if product.target not in _UPDATES or product.kwargs or len(product.args) != 2:
        return False
    nodes = (*product.args, start)
    examples = [n.meta.get("example_value") for n in nodes if isinstance(n, Node)]
    dtypes = {x.dtype for x in examples if isinstance(x, torch.Tensor)}
    same = len(dtypes) == 1 and dtypes <= {torch.bfloat16, torch.float16}
    return (
        same and len(examples) == len(nodes) and all(isinstance(x, torch.Tensor) for x in examples)
    )


_UPDATES = {torch.mul: torch.addcmul, torch.div: torch.addcdiv}

PROGRAM_GUARDS: tuple[ProgramGuard, ...] = (
    ProgramGuard(
        "inactive_dropout",
        "dropout outside of training returns its argument itself; traced, it returns a copy, and"
        " what is written into it is lost",
        _inactive_dropout,
    ),
    ProgramGuard(
        "product_and_sum_of_halves",
        "addcmul_ and addcdiv_ with a number become a product and a sum; in half types both are"
        " rounded, where PyTorch rounds once",
        _product_and_sum_of_halves,
    ),
)


# ---------------------------------------------------------------------- inputs


def _zero_tensor(inputs: Sequence[Any]) -> str | None:
    if any(isinstance(x, torch.Tensor) and x._is_zerotensor() for x in _plain(inputs)):
        return "an argument is a zero tensor, which has no memory"
    return None


def _plain(inputs: Iterable[Any]) -> Iterable[Any]:
    return (x for x in inputs if type(x) in (torch.Tensor, torch.nn.Parameter))


INPUT_GUARDS: tuple[InputGuard, ...] = (
    InputGuard(
        "zero_tensors",
        "compiled code reads the memory that an efficient zero tensor does not have",
        _zero_tensor,
    ),
)
