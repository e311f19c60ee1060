"""How much a model must move and compute, operator by operator: the roofline of one step.

What flows in: a call that runs the step eagerly. What flows out: :func:`work_of`, for every ATen
operator the bytes that it reads and writes and its floating point operations; and
:func:`roofline`, the sum over operators of the longer of their traffic at the measured bandwidth
for their footprint and their arithmetic at the measured peak.

A compiler that fuses operators moves less than they do one by one: it may come below this time
where a model is bound by memory. Products dominate whole models, and for them it is a limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Work:
    """One call of an operator."""

    op: str
    read: int
    written: int
    flops: float
    dtype: str


def work_of(step: Callable[[], object]) -> list[Work]:
    """Every computing operator of one eager step, in order; views and sizes cost nothing."""
    with _Recorder() as recorder:
        step()
    return recorder.calls


def roofline(calls: Sequence[Work], seconds: Callable[[int, int, float, str], float]) -> float:
    """`seconds` is ``Limits.seconds``."""
    return sum(seconds(c.read, c.written, c.flops, c.dtype) for c in calls)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _is_free(func):
            inputs = _tensors((args, kwargs))
            outputs = _tensors(out)
            dtype = next((t.dtype for t in inputs if t.is_floating_point()), torch.float32)
            self.calls.append(
                Work(
                    op=str(func),
                    read=sum(_bytes(t) for t in _distinct(_read_by(func, inputs))),
                    written=sum(_bytes(t) for t in _distinct(outputs)),
                    flops=_flops(func, args, kwargs or {}, out),
                    dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
                )
            )
        return out


_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}


def _is_free(func: Any) -> bool:
    """Views, and operators that only make or name memory."""
    schema = func._schema
    returned = schema.returns[0].alias_info if schema.returns else None
    if returned is not None and not returned.is_write:
        return True
    return schema.name.split("::")[1] in _EMPTY or not schema.returns


def _read_by(func: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """An embedding reads as much of its table as it writes: the indices stand for it."""
    name = func._schema.name.split("::")[1]
    return inputs[1:] if name in ("embedding", "index", "gather", "index_select") else inputs


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]


def _distinct(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    seen: dict[Any, torch.Tensor] = {}
    for tensor in tensors:
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape)
        seen.setdefault(key, tensor)
    return list(seen.values())


def _bytes(tensor: torch.Tensor) -> int:
    """What of the memory is touched: an expanded dimension lies in memory once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride != 0 else min(size, 1)
    return count * tensor.element_size()


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    packet = func.overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    name = func._schema.name.split("::")[1]
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _attention_flops(args[0], args[1], args[2], 2, _causal(args, kwargs, 4))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return _attention_flops(args[1], args[2], args[3], 5, _causal(args, kwargs, 7))
    return 0.0


def _causal(args: Any, kwargs: Any, place: int) -> bool:
    return bool(args[place] if len(args) > place else kwargs.get("is_causal", False))


def _attention_flops(q: Any, k: Any, v: Any, products: int, causal: bool) -> float:
    """`products` matrix products of queries by keys; a causal mask hides half of each."""
    batch, heads, queries, width = q.shape
    keys = k.shape[-2]
    seen = queries * keys / 2 if causal and queries == keys else queries * keys
    return products * 2.0 * batch * heads * seen * width
