"""Plain attention in training: its backward computes the weights again, instead of reading them.

What flows in: the joint graph of a forward and its backward, before it is cut into two. What flows
out: the same graph, which computes the same, with marks for the cut. Saved weights are as large as
all scores; without them, both halves are attentions that become one kernel each. For each attention
whose backward has the structure that `attention_gradients.py` asks for:

- what lies between the product of scores and the weights is marked to be computed again, the two
  numbers of each row (its maximum and its sum) to be saved;
- the sum over the keys of weights times their gradient, which the backward of a softmax has,
  becomes the sum over the columns of the result times its gradient: they are equal, since the
  result is weights · values, and the weights' gradient is the result's gradient · valuesᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from torch_helion import _logging, exc, settings
from torch_helion.capture import inductor_compat as inductor
from torch_helion.capture.attention_gradients import Closure, closure_of
from torch_helion.capture.attention_match import (
    CARRIERS,
    Softmax,
    after_product,
    scores_path,
    scores_product,
    softmax_of,
)
from torch_helion.capture.axes import refusal
from torch_helion.capture.node_facts import Facts

aten, prims = torch.ops.aten, torch.ops.prims
log = _logging.get_logger("capture")

_RESHAPES = frozenset((aten.view.default, aten.reshape.default, aten._unsafe_view.default))
_IN_ORDER = _RESHAPES | {
    prims.convert_element_type.default, aten._to_copy.default, aten.clone.default,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip


class JointPass(inductor.GraphPass):
    """The pass that Inductor calls on joint graphs."""

    def __init__(self, key: Callable[[], Any]) -> None:
        """`key`: what generated code depends on."""
        self.key = key

    def __call__(self, graph: fx.Graph) -> None:
        try:
            prepare_attention(graph)
        except Exception as error:
            if settings.current().strict:
                raise
            log.warning("attention of a joint graph stays as it is: %s", error)

    def uuid(self) -> Any:
        return self.key()


@dataclass(frozen=True)
class Training:
    """A forward attention and what its backward has of it."""

    softmax: Softmax
    again: tuple[fx.Node, ...]
    """from the scores to the weights, with views of those"""
    second: fx.Node
    result: fx.Node
    """what is saved of the second product: itself, or the copy behind it"""
    after: tuple[fx.Node, ...]
    gradient: fx.Node
    """of the second product"""
    total: fx.Node
    """the sum of weights times their gradient"""
    sizes: tuple[Any, ...]
    """its shape, as arguments of a view"""


def prepare_attention(graph: fx.Graph) -> int:
    """Rewrite the attentions of a joint graph; how many there were."""
    nodes = list(graph.nodes)
    tangents = {n for n in nodes if n.op == "placeholder" and "tangents" in str(n.target)}
    if not tangents or not any(n.target is aten.div.Tensor for n in nodes):
        return 0
    from torch_helion.lowering import rows

    facts = Facts(rows.graph_lowerings())
    number = {node: i for i, node in enumerate(nodes)}
    backward = _of_backward(nodes, tangents)
    found: list[Training] = []
    for node in nodes:
        softmax = softmax_of(node) if node not in backward else None
        if softmax is None or softmax.safe:
            continue
        try:
            found.append(_match(facts, softmax, backward, number))
        except exc.LoweringError as error:
            log.debug("the weights of %s are saved: %s", node.name, error)
    for training in found:
        _rewrite(graph, training)
    return len(found)


def _of_backward(nodes: Sequence[fx.Node], tangents: set[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on a gradient, and those that only they use."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node in tangents or any(source in found for source in node.all_input_nodes):
            found.add(node)
    found = {n for n in found if n.op != "output"}
    for node in reversed(nodes):
        if node.op == "call_function" and node.users and all(u in found for u in node.users):
            found.add(node)
    return found


def _match(
    facts: Facts, softmax: Softmax, backward: set[fx.Node], number: dict[fx.Node, int]
) -> Training:
    weights = softmax.weights
    second, carriers = _second(facts, weights, backward)
    first = scores_product(facts, softmax.scores, number)
    if first is None or first.target is not aten.bmm.default:
        raise refusal(weights, "its scores are no product")
    path = scores_path(facts, first, softmax.scores, number)
    top, sub, exp, total, _ = softmax.nodes
    forward = {first, *path, *softmax.nodes, *carriers}
    if any("recompute" in node.meta for node in (*forward, second)):
        raise refusal(weights, "the user's checkpoints say what is saved")
    for node in forward - {top, total}:
        if any(u not in forward and u not in backward and u is not second for u in node.users):
            raise refusal(node, f"{node.name} is used elsewhere")
    closure = closure_of(facts, first, frozenset((top, total, second)))
    sizes, summed = _sum_of_weights(closure, softmax)
    (source,) = closure.sources
    gradient = _gradient(source, second)
    after = tuple(after_product(facts, second))
    after = () if any(n in backward for n in after) else after
    _require_invertible(second, after)
    again = (first, *path, sub, exp, weights, *carriers)
    return Training(
        softmax, again, second, after[-1] if after else second, after, gradient, summed, sizes
    )


def _second(
    facts: Facts, weights: fx.Node, backward: set[fx.Node]
) -> tuple[fx.Node, list[fx.Node]]:
    """The one product of the weights, and the views and casts of them."""
    found: set[fx.Node] = set()
    carriers: list[fx.Node] = []
    work = [weights]
    while work:
        node = work.pop()
        for user in node.users:
            if user in backward:
                continue
            if user.target is aten.bmm.default and user.args[0] is node:
                found.add(user)
            elif user.target in CARRIERS:
                carriers.append(user)
                work.append(user)
            else:
                raise refusal(weights, "its weights are used elsewhere")
    if len(found) != 1:
        raise refusal(weights, "its weights are in no product, or in several")
    (second,) = found
    if not _keeps_order(second.args[0], weights):
        raise refusal(second, "the weights are moved")
    return second, carriers


def _keeps_order(at: Any, origin: fx.Node) -> bool:
    """Whether a value is another's, with the elements in the same order."""
    while at is not origin:
        if not isinstance(at, fx.Node) or not at.args or not isinstance(at.args[0], fx.Node):
            return False
        below = at.args[0]
        same = tuple(at.meta["val"].shape) == tuple(below.meta["val"].shape)
        kept = at.target in _IN_ORDER or (at.target is aten.expand.default and same)
        if not kept and not (at.target is aten.permute.default and _moves_ones(at)):
            return False
        at = below
    return True


def _moves_ones(permute: fx.Node) -> bool:
    """Whether a permutation moves dimensions of extent 1 only."""
    shape = permute.args[0].meta["val"].shape  # type: ignore[union-attr]
    order = [int(d) % len(shape) for d in permute.args[1]]  # type: ignore[union-attr,arg-type]
    moved = [d for d in order if not (isinstance(shape[d], int) and shape[d] == 1)]
    return moved == sorted(moved)


def _sum_of_weights(closure: Closure, softmax: Softmax) -> tuple[tuple[Any, ...], fx.Node]:
    """The sum of weights times their gradient, and its shape as arguments of a view."""
    weights = softmax.weights
    if len(closure.sources) != 1 or len(closure.others) != 1:
        raise refusal(weights, "its backward is another one")
    (source,), (total,) = closure.sources, closure.others
    rank = weights.meta["val"].dim()
    if total.target is not aten.sum.dim_IntList or len(total.args) != 3 or total.kwargs:
        raise refusal(weights, "its backward is another one")
    product, dims, keep = total.args
    if not keep or [int(d) % rank for d in dims] != [softmax.dim] or softmax.dim != rank - 1:  # type: ignore[union-attr,arg-type]
        raise refusal(weights, "its backward sums over other axes")
    if product.target is not aten.mul.Tensor:  # type: ignore[union-attr]
        raise refusal(weights, "its backward is another one")
    parts = [n for n in product.args if isinstance(n, fx.Node)]  # type: ignore[union-attr]
    if len(parts) != 2 or not _keeps_order(parts[0], weights):
        parts.reverse()
    if len(parts) != 2 or not _keeps_order(parts[0], weights) or not _keeps_order(parts[1], source):
        raise refusal(weights, "its backward is another one")
    at: Any = parts[1]
    sizes: tuple[Any, ...] = tuple(weights.meta["val"].shape)
    while at is not source:
        if at.target in _RESHAPES:
            sizes = tuple(at.args[1])
            break
        at = at.args[0]
    if any(not isinstance(n, int | fx.Node) for n in sizes) or len(sizes) != rank:
        raise refusal(weights, "its shape is not known when compiling")
    return (*sizes[:-1], 1), total


def _gradient(source: fx.Node, second: fx.Node) -> fx.Node:
    """The gradient of the result, in the product with the values that the result is made of."""
    gradient, values = source.args
    moved = isinstance(values, fx.Node) and values.target in (
        aten.permute.default,
        aten.transpose.int,
    )
    if source.target is not aten.bmm.default or not moved:
        raise refusal(second, "its backward multiplies other values")
    given: Any = values.args[1:] if len(values.args) > 2 else values.args[1]  # type: ignore[union-attr]
    dims = tuple(given)
    if values.args[0] is not second.args[1] or dims not in ((0, 2, 1), (1, 2), (2, 1), (-2, -1)):  # type: ignore[union-attr]
        raise refusal(second, "its backward multiplies other values")
    assert isinstance(gradient, fx.Node)
    if tuple(gradient.meta["val"].shape) != tuple(second.meta["val"].shape):
        raise refusal(second, "its backward multiplies other values")
    return gradient


def _require_invertible(second: fx.Node, after: Sequence[fx.Node]) -> None:
    for node in after:
        if node.target in _RESHAPES:
            before = node.args[0].meta["val"].shape  # type: ignore[union-attr]
            if all(isinstance(n, int) for n in before):
                continue
        elif node.target in (aten.permute.default, aten.clone.default):
            continue
        raise refusal(second, f"{node.name} stands behind it")


# -- rewriting ------------------------------------------------------------------------------------


def _rewrite(graph: fx.Graph, found: Training) -> None:
    with graph.inserting_before(found.total):
        result: fx.Node = found.result
        for node in reversed(found.after):
            if node.target in _RESHAPES:
                shape = [int(n) for n in node.args[0].meta["val"].shape]  # type: ignore[union-attr]
                result = _call(graph, aten.reshape.default, result, shape)
            elif node.target is aten.permute.default:
                order = [int(d) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
                back = [order.index(d) for d in range(len(order))]
                result = _call(graph, aten.permute.default, result, back)
        dtype = found.total.meta["val"].dtype
        pair = [result, found.gradient]
        for place, node in enumerate(pair):
            if node.meta["val"].dtype is not dtype:
                pair[place] = _call(graph, prims.convert_element_type.default, node, dtype)
        product = _call(graph, aten.mul.Tensor, *pair)
        total = _call(graph, aten.sum.dim_IntList, product, [-1], True)
        total = _call(graph, aten.view.default, total, list(found.sizes))
    found.total.replace_all_uses_with(total)
    graph.erase_node(found.total)
    again = (*found.again, *_repeated(found))
    for node in (*again, *_constants(found.again)):
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    top, _, _, total, _ = found.softmax.nodes
    for node in (top, total, found.result):
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _repeated(found: Training) -> list[fx.Node]:
    """Copies of keys and values for the heads that share them: both halves read the few."""
    chains: list[fx.Node] = []
    for operand in (*found.again[0].all_input_nodes, found.second.args[1]):
        chain: list[fx.Node] = []
        at: Any = operand
        while at.target in CARRIERS and isinstance(at.args[0], fx.Node):
            chain.append(at)
            below = at.args[0]
            if at.target is aten.expand.default and below.meta["val"].shape != at.meta["val"].shape:
                chains += chain
                break
            at = below
    return chains


def _constants(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Operands that depend on no input: masks by position are proved from what they are made of."""
    free: dict[fx.Node, bool] = {}

    def is_free(node: fx.Node) -> bool:
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            return True
        if node not in free:
            free[node] = node.op == "call_function" and all(
                [is_free(n) for n in node.all_input_nodes]
            )
        return free[node]

    for node in nodes:
        for operand in node.all_input_nodes:
            is_free(operand)
    return {
        n
        for n, yes in free.items()
        if yes and isinstance(n.meta.get("val"), torch.Tensor) and n not in nodes
    }


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """A call with the value that it has for the fake mode of the graph."""
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda n: n.meta["val"])
    tensor = next(v for v in values if isinstance(v, torch.Tensor))
    with tensor.fake_mode:  # type: ignore[attr-defined]
        node.meta["val"] = target(*values)
    return node
