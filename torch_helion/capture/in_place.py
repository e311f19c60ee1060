"""Kernels that write a graph's input where the graph copies their result into it.

In: a graph whose regions are kernel calls already. Out: the same graph, where a result that is only
copied into an input is written there by the kernel itself.

    v_new = helion_update(v, g); aten.copy_(v, v_new)     →     helion_update(v, g)  # writes v

An optimiser's update reads and writes each state once that way, instead of three times. It is right
when nothing reads the old value later, and when the kernel reads each element of it only where, and
before, it writes that element: pointwise kernels that use one index for both.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from torch_helion.capture.node import KernelCall
from torch_helion.ir.graph import Kernel

aten = torch.ops.aten


def fold_copies(graph: Graph) -> int:
    """Fold the copies that can be; returns how many."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    folded = 0
    for copy in list(graph.find_nodes(op="call_function", target=aten.copy_.default)):
        source = _kernel_output(copy.args[1])
        if source is None or copy.users or len(copy.args) != 2:
            continue
        call_node, output = source
        target = copy.args[0]
        if isinstance(target, Node) and _may_write(call_node, output, target, copy, place):
            _write_in_place(call_node, output, target)
            graph.erase_node(copy)
            folded += 1
    return folded


def _kernel_output(value: object) -> tuple[Node, int] | None:
    """The kernel call and the number of the output that `value` is, if it is one."""
    if not isinstance(value, Node):
        return None
    if isinstance(value.target, KernelCall):
        return (value, 0) if not value.target.many else None
    if value.target is operator.getitem and isinstance(value.args[0], Node):
        call_node, output = value.args
        if isinstance(call_node.target, KernelCall):  # type: ignore[union-attr]
            return call_node, output  # type: ignore[return-value]
    return None


def _may_write(
    call_node: Node, output: int, target: Node, copy: Node, place: dict[Node, int]
) -> bool:
    call: KernelCall = call_node.target  # type: ignore[assignment]
    result = copy.args[1]
    if target.op != "placeholder" or set(result.users) != {copy}:  # type: ignore[union-attr]
        return False
    if output in call.updates or any(
        call_node.args[j] is target for i, j in call.updates.items() if i != output
    ):
        return False
    before, after = target.meta.get("val"), call.output_values[output]
    if not isinstance(before, torch.Tensor) or before.dtype != after.dtype:
        return False
    if before.shape != after.shape or before.stride() != after.stride():
        return False
    others = set(target.users) - {call_node, copy}
    if any(_is_alias(user) or place[user] > place[call_node] for user in others):
        return False
    return _reads_before_it_writes(call, output, call_node, target)


def _is_alias(node: Node) -> bool:
    """Whether a node's value may share memory with its operands."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return not isinstance(node.target, KernelCall)
    return any(r.alias_info is not None for r in node.target._schema.returns)


def _reads_before_it_writes(call: KernelCall, output: int, node: Node, target: Node) -> bool:
    kernel: Kernel | None = call.kernel
    if kernel is None or len(kernel.phases) != 1:
        return False
    inputs = len(call.input_values)
    names = [b.name for b in kernel.arguments]
    written = {n for n, k in zip(names, call.order, strict=True) if k == inputs + output}
    read = {
        n for n, k in zip(names, call.order, strict=True) if k < inputs and node.args[k] is target
    }
    ops = list(kernel.body.walk())
    if any(op.kind in ("reduce", "dot") for op in ops):
        return False
    stores = [op for op in ops if op.kind == "store" and op.attrs["buffer"] in written]
    loads = [op for op in ops if op.kind == "load" and op.attrs["buffer"] in read]
    if len(stores) != 1 or stores[0].attrs["masked"] or len(stores[0].operands) != 1:
        return False
    index = stores[0].attrs["index"]
    shape = kernel.buffer(stores[0].attrs["buffer"])
    return all(
        op.attrs["index"] == index
        and not op.operands
        and kernel.buffer(op.attrs["buffer"]).strides == shape.strides
        for op in loads
    )


def _write_in_place(call_node: Node, output: int, target: Node) -> None:
    """Make the call write `target`, which becomes one of its inputs if it is none yet."""
    call: KernelCall = call_node.target  # type: ignore[assignment]
    arguments = list(call_node.args)
    inputs = len(arguments)
    if target not in arguments:
        arguments.append(target)
        call.input_values = [*call.input_values, target.meta["val"]]
        call.order = [k if k < inputs else k + 1 for k in call.order]
        call_node.args = tuple(arguments)
    call.updates[output] = arguments.index(target)
