"""The stages of an attention in a graph: find it, build its kernel, decide whether it pays.

What flows in: a post-grad graph and the lowering table. What flows out: regions that the graph pass
plans, checks and places like any other, and reasons for what is left to ATen. The steps:

    match nodes (attention_match.py) → infer axes (attention_space.py) → emit (attention_emit.py)

Every attention that is proposed has been built once here, so that nothing is taken that cannot be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion import _hardware, exc
from torch_helion._logging import get_logger
from torch_helion.capture import attention_emit
from torch_helion.capture.attention_gradients import match_gradients
from torch_helion.capture.attention_match import (
    BEGINNINGS,
    Attention,
    candidates,
    match_softmax,
    operand_at,
)
from torch_helion.capture.attention_space import Program
from torch_helion.capture.axes import refusal
from torch_helion.capture.mutation import Mutations
from torch_helion.capture.node_facts import Facts, unsupported_tensor
from torch_helion.capture.probe import Probe
from torch_helion.capture.region_to_kernel import RegionKernel, graph_hints, structural_key
from torch_helion.capture.regions import Declined
from torch_helion.capture.sizes import hint_of

logger = get_logger("fusion")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_KEPT = 64
_built: dict[Any, Any] = {}


def find_attention(
    graph: fx.Graph, lowerings: Mapping[Any, Any], *, options: Any = None
) -> tuple[list[Attention], list[Declined]]:
    """The attentions of a graph that become kernels, and why others do not."""
    nodes = list(graph.nodes)
    if not any(node.target in BEGINNINGS for node in nodes):
        return [], []
    mutations = Mutations(graph)
    probe = Probe()
    facts = Facts(lowerings, lambda f, n: mutations.forbids(n) or probe(f, n))
    matches, refused = candidates(facts, nodes, (match_softmax, match_gradients))
    declined = [Declined(node, why) for node, why in refused]
    found: list[Attention] = []
    for match in matches:
        match = dataclasses.replace(match, program=Program)
        try:
            _require_supported(match, mutations)
            made = attention_kernel(match, lowerings)
            if (why := _loses(match, made)) is not None:
                raise refusal(match.second, why)
            found.append(match)
        except exc.LoweringError as error:
            why = str(getattr(error, "why", None) or error)
            logger.debug("%s is left to ATen: %s", match.second.name, why)
            declined.append(Declined(match.second, why))
    return found, declined


def _require_supported(match: Attention, mutations: Mutations) -> None:
    dtype = match.outputs[0].meta["val"].dtype
    if dtype not in DTYPES:
        raise refusal(match.second, f"attention in {dtype}")
    for node in match.nodes:
        if (why := mutations.forbids(node)) is not None:
            raise refusal(node, why)
    for node in (*match.inputs, *match.outputs):
        if (why := unsupported_tensor(node.meta["val"])) is not None:
            raise refusal(match.second, f"{node.name}: {why}")
    path = match.flash.mask if match.flash is not None else None
    if path is not None and not operand_at(match.first, path).meta["val"].is_floating_point():
        raise refusal(match.first, "a mask that is not added")


def _loses(match: Attention, made: RegionKernel) -> str | None:
    """Why ATen is faster: measured, forward kernels never lose; a backward one gives a thread to
    each head of the keys, where ATen gives one to each head of the queries.
    """
    if match.flash is None or not match.flash.backward:
        return None
    query, key = (match.first.args[place].meta["val"] for place in (1, 2))  # type: ignore[union-attr]
    shared = query.shape[1] != key.shape[1]
    steps = math.prod(n for s, n in made.hints.items() if str(s).startswith("n_h"))
    if shared and steps < _hardware.cores():
        return f"{steps} heads of keys for {_hardware.cores()} cores"
    return None


def attention_kernel(region: Attention, lowerings: Mapping[Any, Any]) -> RegionKernel:
    """Build the kernel of an attention; equal ones share it."""
    key = structural_key(region)
    hints = graph_hints(region.nodes)
    nodes = (*region.inputs, *region.outputs)
    if key not in _built:
        emitted = attention_emit.build(region, lowerings, hints)
        while len(_built) >= MAX_KEPT:
            _built.pop(next(iter(_built)))
        numbers = tuple(nodes.index(n) for n in emitted.tensors)
        _built[key] = (emitted.kernel, numbers, emitted.sizes, emitted.kernel.sizes)
    kernel, numbers, sizes, names = _built[key]
    return RegionKernel(
        kernel, tuple(nodes[n] for n in numbers), sizes, _hints(names, sizes, hints)
    )


def _hints(
    names: Sequence[sympy.Symbol], sizes: Sequence[Any], hints: Mapping[sympy.Symbol, int]
) -> dict[sympy.Symbol, int]:
    found = {s: hint_of(n, hints) for s, n in zip(names, sizes, strict=True)}
    return {s: 1 if n is None else n for s, n in found.items()}
