"""Gradients of kernels: the backward of one call, derived from the tile IR.

In: a kernel, the arguments of a call, gradients of its results. Out: gradients of its arguments.
The forward is evaluated again in ATen (:mod:`torch_helion.kernel.functional`) and differentiated by
autograd; where the whole of it can be written down as a graph, that graph is compiled once for each
specialisation by the backend, so that the backward consists of fused kernels as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import _logging, exc
from torch_helion.kernel import arguments, functional

log = _logging.get_logger("code")

MOST_GRAPHS = 8
"""compiled for one specialisation: a number that differs in each call must not compile each time"""


def check(kernel: Any, args: tuple[Any, ...]) -> None:
    """Raise ``exc.AutodiffNotSupported`` if the kernel has no derivative."""
    bound = kernel._bound_for(args)
    ir = bound.ir
    op = functional.why_not(ir)
    if op is not None:
        raise functional.refuse(ir, op)


def gradients(
    kernel: Any,
    args: tuple[Any, ...],
    wanted: Sequence[int],
    grads: Sequence[torch.Tensor | None],
    compiled: bool = True,
) -> list[torch.Tensor]:
    """Gradients of the ``wanted`` tensor leaves of ``args`` for gradients of the tensor results."""
    check(kernel, args)
    tensors = [t.detach() for t in arguments.tensors_of(args)]
    given = [g for g in grads if g is not None]
    present = tuple(g is not None for g in grads)
    bound = kernel._bound_for(args)
    function = _function(bound, args, tuple(wanted), present)
    if not compiled or torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        return function(*tensors, *given)
    # A graph holds sizes and numbers as constants.
    whole = tuple(arguments.key_of(value, True, by_value=True) for value in (*args, *given))
    key = (tuple(wanted), present, whole)
    table = bound.derivatives
    if key not in table:
        if len(table) >= MOST_GRAPHS:
            return function(*tensors, *given)
        table[key] = _compile(bound, function, [*tensors, *given])
    return table[key](*tensors, *given)


def _function(
    bound: Any, args: tuple[Any, ...], wanted: tuple[int, ...], present: tuple[bool, ...]
) -> Callable[..., list[torch.Tensor]]:
    """The backward as a function of the argument tensors and the gradients that are there."""
    count = len(arguments.tensors_of(args))
    constants = arguments.replace_tensors(
        args, lambda leaf: None if isinstance(leaf, torch.Tensor) else leaf
    )
    paths = [p for p, leaf in arguments.leaves(args) if isinstance(leaf, torch.Tensor)]

    def backward(*values: torch.Tensor) -> list[torch.Tensor]:
        with torch.enable_grad():
            fresh = [
                t.detach().requires_grad_(number in wanted)
                for number, t in enumerate(values[:count])
            ]
            results = evaluate(bound, put(constants, paths, fresh))
            chosen = [r for r, there in zip(results, present, strict=True) if there]
            pairs = [(r, g) for r, g in zip(chosen, values[count:], strict=True) if r.requires_grad]
            inputs = [fresh[number] for number in wanted]
            if not pairs:
                return [torch.zeros_like(x) for x in inputs]
            outputs, seeds = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, inputs, seeds, allow_unused=True, materialize_grads=True
            )
        return [g.detach() for g in found]

    return backward


def evaluate(bound: Any, args: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensor results of the kernel, computed so that autograd can follow."""

    def launch(*values: Any) -> None:
        variant = bound.variant_for([_detached(v) for v in values])
        tensors, ints = variant.recipe.arguments(values)
        choices = bound.config_spec.default_config() if bound.registers else {}
        blocks = bound.registered_blocks(variant, choices)
        for number, new in functional.evaluate(variant.kernel, tensors, ints, blocks).items():
            tensors[number].copy_(new)

    results = bound.host_with(launch)(*args)
    return [r for r in pytree.tree_leaves(results) if isinstance(r, torch.Tensor)]


def _detached(value: Any) -> Any:
    return arguments.replace_tensors(
        value, lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
    )


def put(args: Any, paths: Sequence[arguments.Path], tensors: Sequence[torch.Tensor]) -> Any:
    """``args`` with these tensors at these paths."""
    table = dict(zip(paths, tensors, strict=True))
    order = [path for path, _ in arguments.leaves(args)]
    leaves = iter([table.get(path) for path in order])
    # Leaves are visited in the same order as they are listed.
    return arguments.replace_tensors(args, lambda leaf: _first(next(leaves), leaf))


def _first(tensor: torch.Tensor | None, leaf: Any) -> Any:
    return leaf if tensor is None else tensor


def _compile(
    bound: Any, function: Callable[..., Any], example: Sequence[torch.Tensor]
) -> Callable[..., Any]:
    """The function as one compiled graph; as it is where it cannot be written down."""
    from torch.fx.experimental.proxy_tensor import make_fx  # a second to import: on first use

    name = bound.kernel.name
    try:
        graph = make_fx(function, tracing_mode="real")(*example)
        compiled = torch.compile(graph, backend="helion", dynamic=False)
        compiled(*example)
        return compiled
    except exc.AutodiffNotSupported:
        raise
    except Exception as error:  # what can fail here is not ours to list; eager is always right
        log.info("backward of %s runs in eager mode, since %s", name, error)
        return function
