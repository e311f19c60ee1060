"""Attention in a graph, found by structure: softmax(scores of Q·Kᵀ)·V, or ATen's own operator.

What flows in: a post-grad FX graph, the lowering table. What flows out: `Attention`s, each with the
nodes that one kernel stands for, and for those that look like attention and are none, the reason.

    bmm → pointwise nodes and views → amax, sub, exp, sum, div → casts and views → bmm

The nodes between the products are taken as they stand: what they compute is evaluated later, at the
positions of a tile of scores. Whether positions agree (nothing permuted, sliced or broadcast on the
way) is no question of this module: `attention_emit.py` pulls every value through the views and
refuses what is read at other places than its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.axes import refusal
from torch_helion.capture.node_facts import Facts, Path, is_tensor
from torch_helion.capture.region_to_kernel import Region

aten = torch.ops.aten
prims = torch.ops.prims

FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
PRODUCTS = (aten.bmm.default, aten.mm.default)
ADDED = aten.baddbmm.default
"""A product of scores with something added: beta · input + alpha · (a · b)."""
BEGINNINGS = frozenset((FLASH, BACKWARD, aten.div.Tensor))
"""What every attention has: ATen's operators, or the division that ends a softmax."""
MAX_SCORE_NODES = 24
"""Calls between the products that compute."""


@dataclass(frozen=True)
class Softmax:
    """The nodes of a softmax over one dimension."""

    scores: fx.Node
    """what it is taken of"""
    dim: int
    nodes: tuple[fx.Node, ...]
    weights: fx.Node
    """its result"""
    safe: bool
    """rows in which everything is -inf give 0, not NaN"""


@dataclass(frozen=True)
class Flash:
    """Arguments of ATen's operator."""

    scale: float
    causal: bool
    mask: Path | None
    backward: bool


@dataclass(frozen=True)
class Gradients:
    """The parts of a plain backward (:mod:`torch_helion.capture.attention_gradients`)."""

    weights: fx.Node
    """computed again: exp(scores - top) / total"""
    sub: fx.Node
    """scores - top"""
    source: fx.Node
    """the product that is the gradient of the weights"""
    ends: tuple[tuple[fx.Node, Path], ...]
    """products with something as large as the scores, and where that stands in them"""


@dataclass(frozen=True)
class Attention(Region):
    """A region: what its parts are."""

    first: fx.Node
    """the product that gives scores (or ATen's operator)"""
    second: fx.Node
    """the product with the values; `first` itself for ATen's operator"""
    weights: Path
    """where the softmax stands in `second`"""
    softmax: Softmax | None
    flash: Flash | None

    @property
    def mask_matters(self) -> bool:
        """Whether a key that is hidden still has a part in the result if it is NaN: 0 · NaN."""
        return self.flash is None or self.flash.mask is not None

    gradients: Gradients | None = None
    program: Any = None
    """what evaluates it on a small instance (:mod:`torch_helion.capture.small_instance`)"""


# -- ATen's operator ------------------------------------------------------------------------------


def match_flash(facts: Facts, node: fx.Node, number: dict[fx.Node, int]) -> Attention:
    """A call of `_scaled_dot_product_flash_attention_for_cpu`, or of its backward; raises
    `exc.LoweringError`.
    """
    given = _arguments(node)
    if given["dropout_p"] != 0:
        raise refusal(node, "dropout")
    backward = node.target is BACKWARD
    head = given["query"].meta["val"].shape[-1]
    scale = given["scale"] if given["scale"] is not None else _default_scale(node, given["query"])
    if not isinstance(scale, int | float) or not isinstance(head, int):
        raise refusal(node, "its scale or head size is not known when compiling")
    items = {int(user.args[1]): user for user in node.users}  # type: ignore[arg-type]
    needed = range(3) if backward else (0,)
    if any(i not in items for i in needed) or len(items) != len(node.users):
        raise refusal(node, "some of its results are not used")
    outputs = tuple(items[i] for i in sorted(items) if i in needed or items[i].users)
    mask = given["attn_mask"]
    path = next((p for p, n in facts.operands(node) if n is mask and p not in _OPERANDS), None)
    flash = Flash(float(scale), bool(given["is_causal"]), path, backward)
    core = {node, *items.values()}
    taken = absorb(facts, core, [] if mask is None else [mask], number, is_cheap)
    nodes = tuple(sorted(without_rim_views(facts, taken, core), key=number.__getitem__))
    inputs = inputs_of(facts, nodes)
    name = "attention_backward" if backward else "attention"
    return Attention(nodes, inputs, outputs, name, node, node, (), None, flash)


def inputs_of(facts: Facts, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    inside = set(nodes)
    operands = (o for n in nodes for _, o in facts.operands(n))
    return tuple(dict.fromkeys(o for o in operands if o not in inside))


def _default_scale(node: fx.Node, query: fx.Node) -> float:
    size = query.meta["val"].shape[-1]
    if not isinstance(size, int) or size == 0:
        raise refusal(node, "its head size is not known when compiling")
    return 1.0 / math.sqrt(size)


def _arguments(node: fx.Node) -> dict[str, Any]:
    formals = node.target._schema.arguments  # type: ignore[union-attr]
    found = {f.name: f.default_value for f in formals}
    found.update(zip((f.name for f in formals), node.args, strict=False))
    return {**found, **node.kwargs}


_OPERANDS: tuple[Path, ...] = tuple((i,) for i in range(5))
"""Of ATen's operators, before their masks."""


def factors(product: fx.Node) -> tuple[Path, Path]:
    """Where a product has what it multiplies."""
    return ((1,), (2,)) if product.target is ADDED else ((0,), (1,))


def operand_at(node: fx.Node, path: Path) -> fx.Node:
    (place,) = path
    found = node.args[place] if isinstance(place, int) else node.kwargs[place]
    assert isinstance(found, fx.Node)
    return found


# -- the plain spelling ---------------------------------------------------------------------------


def match_softmax(facts: Facts, div: fx.Node, number: dict[fx.Node, int]) -> Attention | None:
    """The attention around a division that ends a softmax; None where there is no such thing.

    Raises `exc.LoweringError` where two products stand around it and yet it is none of ours.
    """
    softmax = softmax_of(div)
    if softmax is None:
        return None
    after = _to_product(softmax.weights)
    if after is None:
        return None
    *between, second = after
    first = scores_product(facts, softmax.scores, number)
    if first is None:
        return None
    (path,) = [p for p, n in facts.operands(second) if n is (between or [softmax.weights])[-1]]
    return _assemble(facts, softmax, between, first, second, path, number)


def softmax_of(div: fx.Node) -> Softmax | None:
    if div.target is not aten.div.Tensor or len(div.args) != 2:
        return None
    exp, total = div.args
    if not _is(exp, aten.exp.default) or not _is(total, aten.sum.dim_IntList):
        return None
    sub = exp.args[0]  # type: ignore[union-attr]
    if total.args[0] is not exp or not _is(sub, aten.sub.Tensor) or sub.kwargs:  # type: ignore[union-attr]
        return None
    scores, top = sub.args  # type: ignore[union-attr]
    if not _is(top, aten.amax.default) or top.args[0] is not scores:  # type: ignore[union-attr]
        return None
    rank = scores.meta["val"].dim()  # type: ignore[union-attr]
    dims = [_single_dim(n, rank) for n in (top, total)]  # type: ignore[arg-type]
    if dims[0] is None or dims[0] != dims[1]:
        return None
    nodes = (top, sub, exp, total, div)
    found = Softmax(scores, dims[0], nodes, div, False)  # type: ignore[arg-type]
    return _made_safe(found, rank) or found


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _single_dim(node: fx.Node, rank: int) -> int | None:
    """The dimension that a reduction folds and keeps; None where there is not exactly one."""
    if len(node.args) != 3 or node.args[2] is not True or node.kwargs:
        return None
    dims = node.args[1]
    if not isinstance(dims, list | tuple) or len(dims) != 1:
        return None
    return int(dims[0]) % rank  # type: ignore[arg-type]


def _made_safe(softmax: Softmax, rank: int) -> Softmax | None:
    """where(not any(not (x == -inf)), 0, softmax(x)): rows without a key give 0."""
    if len(softmax.weights.users) != 1:
        return None
    (where,) = softmax.weights.users
    if where.target is not aten.where.self or where.args[2] is not softmax.weights:
        return None
    none, zero = where.args[:2]
    chain: list[fx.Node] = []
    at: Any = none
    for target in (aten.logical_not, aten.any, aten.logical_not, aten.eq):
        if not isinstance(at, fx.Node) or getattr(at.target, "overloadpacket", None) is not target:
            return None
        chain.append(at)
        at = at.args[0]
    any_, equal = chain[1], chain[3]
    dim = any_.args[1] if len(any_.args) == 3 and any_.args[2] is True else None
    if not isinstance(dim, int) or dim % rank != softmax.dim or at is not softmax.scores:
        return None
    if equal.args[1] != -math.inf or not _is(zero, aten.full.default) or zero.args[1] != 0:  # type: ignore[union-attr]
        return None
    nodes = (*softmax.nodes, *reversed(chain), where)
    return Softmax(softmax.scores, softmax.dim, nodes, where, True)  # type: ignore[arg-type]


CARRIERS = frozenset({
    prims.convert_element_type.default, aten._to_copy.default, aten.expand.default,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.clone.default, aten.alias.default,
    aten.detach.default,
})  # fmt: skip


def _to_product(weights: fx.Node) -> list[fx.Node] | None:
    """Casts and views from the weights to the product that is their only use, and that product."""
    found: list[fx.Node] = []
    at = weights
    while True:
        if len(at.users) != 1:
            return None
        (at,) = at.users
        found.append(at)
        if at.target in PRODUCTS:
            return found
        if at.target not in CARRIERS:
            return None


def scores_product(facts: Facts, scores: fx.Node, number: dict[fx.Node, int]) -> fx.Node | None:
    """The one product that the scores are computed from, through pointwise nodes and views."""
    found: set[fx.Node] = set()
    seen = {scores}
    work = [scores]
    while work:
        node = work.pop()
        if node.target in (*PRODUCTS, ADDED):
            found.add(node)
            continue
        row = facts.lowerings.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
        if row is None or row.kind not in ("pointwise", "view", "creation"):
            continue
        for operand in node.all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                work.append(operand)
    # Others (a bias that is a product itself) are read from memory.
    return max(found, key=lambda n: _elements(n), default=None) if found else None


def _elements(node: fx.Node) -> int:
    shape = node.meta["val"].shape
    return math.prod(n if isinstance(n, int) else 1 for n in shape)


# -- what belongs to it ---------------------------------------------------------------------------


def _assemble(
    facts: Facts,
    softmax: Softmax,
    between: Sequence[fx.Node],
    first: fx.Node,
    second: fx.Node,
    weights: Path,
    number: dict[fx.Node, int],
) -> Attention:
    path = scores_path(facts, first, softmax.scores, number)
    core = {first, second, *softmax.nodes, *between, *path}
    after = after_product(facts, second)
    core |= set(after)
    output = after[-1] if after else second
    numbers = [n for n in (softmax.nodes[0], softmax.nodes[3]) if set(n.users) - core]
    for node in core - {output, *numbers}:
        if any(user not in core for user in node.users):
            raise refusal(node, f"{node.name} is used elsewhere")
    chains = [n for _, n in facts.operands(first)]
    chains += [n for p, n in facts.operands(second) if p != weights]
    taken = absorb(facts, core, chains, number, is_carried)
    scores = [n for p in (*path, *softmax.nodes) for _, n in facts.operands(p)]
    taken = absorb(facts, taken, scores, number, is_cheap)
    nodes = sorted(without_rim_views(facts, taken, core), key=number.__getitem__)
    if sum(facts.kind(n) == "compute" for n in path) > MAX_SCORE_NODES:
        raise refusal(first, "too many nodes between the products")
    return Attention(
        tuple(nodes),
        inputs_of(facts, nodes),
        (output, *numbers),
        _name(softmax),
        first,
        second,
        weights,
        softmax,
        None,
    )


def _name(softmax: Softmax) -> str:
    return "attention" if not softmax.safe else "attention_safe"


def scores_path(
    facts: Facts, first: fx.Node, scores: fx.Node, number: dict[fx.Node, int]
) -> tuple[fx.Node, ...]:
    """Nodes from the product to the scores that depend on it: pointwise ones and views."""
    depends: dict[fx.Node, bool] = {first: True}

    def on_first(node: fx.Node) -> bool:
        if node not in depends:
            early = number[node] < number[first]
            depends[node] = not early and any([on_first(n) for n in node.all_input_nodes])
        return depends[node]

    try:
        on_first(scores)
    except RecursionError:
        raise refusal(first, "too many nodes between the products") from None
    path = tuple(sorted((n for n, d in depends.items() if d and n is not first), key=number.get))  # type: ignore[arg-type]
    for node in path:
        row = facts.lowerings.get(node.target)  # type: ignore[call-overload]
        if row is None or row.kind not in ("pointwise", "view"):
            raise refusal(node, f"{node.name} stands between the scores and their softmax")
    return path


def after_product(facts: Facts, second: fx.Node) -> list[fx.Node]:
    """Views and copies behind the product, as long as each is the only use of the one before."""
    found: list[fx.Node] = []
    kept = 0
    at = second
    while len(at.users) == 1:
        (at,) = at.users
        if at.target not in CARRIERS or not is_tensor(at):
            break
        found.append(at)
        row = facts.lowerings.get(at.target)  # type: ignore[call-overload]
        if row is None:
            break
        if _owns_memory(facts, at):
            kept = len(found)
    return found[:kept]


def _owns_memory(facts: Facts, node: fx.Node) -> bool:
    """Whether the node's value is a copy (or a cast), not a view."""
    return not facts.is_view(node)


def is_carried(facts: Facts, node: fx.Node) -> bool:
    """Whether an operand of a product may be made in the kernel: moved, cast, scaled by a number.

    It is made again for every tile of queries.
    """
    row = facts.lowerings[node.target]  # type: ignore[index]
    if row.kind == "view":
        return True
    if row.kind != "pointwise" or len(facts.operands(node)) != 1:
        return False
    return node.target in CARRIERS or node.target in (aten.mul.Tensor, aten.mul.Scalar)


def is_cheap(facts: Facts, node: fx.Node) -> bool:
    """Whether a part of the mask or bias may be computed again for every head and every tile."""
    return facts.lowerings[node.target].kind in ("view", "pointwise")  # type: ignore[index]


def absorb(
    facts: Facts,
    core: set[fx.Node],
    roots: Iterable[fx.Node],
    number: dict[fx.Node, int],
    may: Any,
) -> set[fx.Node]:
    """`core` with what only it uses, and with constants."""
    taken = set(core)
    waiting = {n for n in roots if n not in taken}
    while waiting:
        node = max(waiting, key=number.__getitem__)
        waiting.discard(node)
        if node in taken or node.op != "call_function" or node.target not in facts.lowerings:
            continue
        kind = facts.kind(node)
        constant = kind == "constant"
        if not constant:
            if kind not in ("view", "move", "compute", "outside") or facts.call(node) is not node:
                continue
            if kind == "outside" and not facts.is_view(node):
                continue
            if any(user not in taken for user in node.users) or not may(facts, node):
                continue
        taken.add(node)
        waiting |= {n for _, n in facts.operands(node) if n not in taken}
    return taken


def without_rim_views(facts: Facts, taken: set[fx.Node], core: set[fx.Node]) -> set[fx.Node]:
    """Views of values from outside stay outside, where they are free."""
    kept = set(taken)
    changed = True
    while changed:
        changed = False
        for node in list(kept - core):
            if facts.is_view(node) and facts.kind(node) != "constant":
                (source,) = (n for _, n in facts.operands(node))
                if source not in kept:
                    kept.discard(node)
                    changed = True
    return kept


def candidates(
    facts: Facts, nodes: Sequence[fx.Node], plain: Sequence[Any]
) -> tuple[list[Attention], list[tuple[fx.Node, str]]]:
    """Every attention of a graph, and what looks like one with the reason why it is none.

    `plain`: what finds one around a division that ends a softmax.
    """
    number = {node: i for i, node in enumerate(nodes)}
    found: list[Attention] = []
    declined: list[tuple[fx.Node, str]] = []
    for node in nodes:
        try:
            match = None
            if node.target in (FLASH, BACKWARD):
                match = match_flash(facts, node, number)
            elif node.target is aten.div.Tensor:
                tries = (find(facts, node, number) for find in plain)
                match = next((m for m in tries if m is not None), None)
            if match is not None:
                found.append(match)
        except exc.LoweringError as error:
            declined.append((node, str(getattr(error, "why", None) or error)))
    return found, declined
