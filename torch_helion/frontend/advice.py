"""Warnings about kernels that work, but not as their authors will have meant.

In: a `HostFunction` and the values of a launch, or a statement of the device part. Out: text on
stderr, unless the settings ignore it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torch_helion import exc
from torch_helion.frontend.host import HostFunction
from torch_helion.frontend.source import MISSING, static_value
from torch_helion.lowering.rows import LOWERINGS

_SILENT = (
    "like new broadcast promote view reshape expand permute strided transpose contiguous unsqueeze "
    "squeeze zero rand full fill clone copy type_as to empty"
)
_PRODUCTS = "matmul mm bmm addmm baddbmm mv dot linear einsum cumsum cumprod sort topk gather"
_METHODS = frozenset(
    f"{_PRODUCTS} sum mean amax amin prod std var norm softmax log_softmax exp log sigmoid".split()
)
"""Names that only tensors have as methods."""


@functools.cache
def _heavy() -> frozenset[str]:
    """Names of functions of torch's that compute."""
    kinds = ("pointwise", "reduction")
    rows = (o for o, row in LOWERINGS.items() if row.kind in kinds)
    names = {o._schema.name.split("::")[1] for o in rows} | set(_PRODUCTS.split())
    return frozenset(n for n in names if not any(s in n for s in _SILENT.split()))


def about_host(host: HostFunction, values: Sequence[Any], settings: Any) -> None:
    """What the host part does that a kernel would do better, or on another device."""
    ignored = getattr(settings, "ignore_warnings", ())
    for _, op, node in operations(host):
        warn_once(host, exc.TensorOperationInWrapper(op).at(host.source.at(node)), op, ignored)
    tensors = [(n, v) for n, v in zip(host.values, values, strict=True) if _is_tensor(v)]
    for name, tensor in tensors[1:]:
        if tensor.device.type != tensors[0][1].device.type:
            expected = tensors[0][1].device
            exc.warn(exc.WrongDevice(name, tensor.device, expected), ignored)


def warn_once(host: HostFunction, warning: exc.BaseWarning, op: str, ignored: Any) -> None:
    """Warn of an operation of a host part, unless that was said for another trace of it."""
    line = warning.location.line if warning.location is not None else 0
    key = (type(warning).__name__, line, op)
    if key not in host.told:
        host.told.add(key)
        exc.warn(warning, ignored)


def is_heavy(name: str) -> bool:
    """Whether a function or method of torch's of this name computes."""
    return name in _heavy() or name in _METHODS


def operations(host: HostFunction) -> list[tuple[int, str, ast.AST]]:
    """Heavy operations in the text of a host part: line, name, expression."""
    found = []
    for node in (n for s in (*host.prologue, *host.epilogue) for n in _own(s)):
        op = _operation(node, host.fn.__globals__)
        if op is not None:
            found.append((getattr(node, "lineno", 0), op, node))
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what is in it; functions that it defines left out."""
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _own(child)


def _operation(node: ast.AST, space: Any) -> str | None:
    """The heavy operation that an expression is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return "@"
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    name = node.func.attr
    found = static_value(node.func, space)
    if found is MISSING:
        owner = static_value(node.func.value, space)
        return name if owner is MISSING and name in _METHODS else None
    module = getattr(found, "__module__", None) or "torch"
    if not module.startswith("torch") or module.startswith("torch_helion"):
        return None
    return name if name in _heavy() and found is not getattr(exc, name, None) else None


def about_accumulation(node: ast.AugAssign, value: Any) -> exc.BaseWarning | None:
    """acc += a @ b, where the product has been rounded to a half type."""
    product = node.value
    called = getattr(getattr(product, "func", None), "attr", None)
    is_product = isinstance(product, ast.BinOp) and isinstance(product.op, ast.MatMult)
    is_product |= called in ("matmul", "mm", "bmm")
    half = getattr(value, "dtype", None) in (torch.float16, torch.bfloat16)
    if isinstance(node.op, ast.Add) and is_product and half:
        return exc.TiledKMatmulAccumulationWarning()
    return None
