"""Saving tensors and models as safetensors files.

What flows in: tensors by name, or a model. What flows out: a file that any reader of the format
takes, aligned for kernels and direct I/O, and always whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO

import torch

from torch_helion.weights.atomic import replacing
from torch_helion.weights.dtypes import NAME_OF, format_shape
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.layout import Entry, build_header, order_of
from torch_helion.weights.memory import bytes_of

_BLOCK = 32 << 20


def save_file(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    align: int = 64,
) -> None:
    """Write tensors to one file. Views are written by value; other devices by way of the host.

    Each tensor whose size is a multiple of ``align`` begins at one. The file replaces an old one in
    one step, so ``path`` may be the very file that the tensors are mapped from.
    """
    file = os.fspath(path)
    entries = [_entry(name, tensor, file) for name, tensor in tensors.items()]
    ordered = order_of(entries, align)
    header = build_header(ordered, metadata, file)
    with replacing(file) as out:
        out.write(header)
        for entry in ordered:
            write_tensor(out, tensors[entry.name])


def save_model(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    align: int = 64,
) -> None:
    """Write a model's state. Tied tensors are written once; the metadata name the others."""
    tensors: dict[str, torch.Tensor] = {}
    notes = dict(metadata or {})
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in state_of(model).items():
        key = identity(tensor)
        kept = first.setdefault(key, name) if key else name
        if kept == name:
            tensors[name] = tensor
        else:
            notes.setdefault(name, kept)
    save_file(tensors, path, notes or None, align=align)


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model's ``state_dict``, the very ones that it holds."""
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, torch.Tensor)}


def identity(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Equal for tensors that are the same elements of the same memory; None: cannot be shared."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or not tensor.numel():
        return None
    if tensor.device.type == "meta":
        return (id(tensor),)
    where = (str(tensor.device), tensor.data_ptr(), tensor.dtype)
    return (*where, tuple(tensor.shape), tensor.stride())


def write_tensor(out: BinaryIO, tensor: torch.Tensor) -> None:
    """The bytes of a tensor in row-major order, in blocks if it is no plain host memory."""
    t = tensor.detach().resolve_conj().resolve_neg()
    if t.numel() == 0:
        return
    if t.device.type == "cpu" and t.is_contiguous():
        out.write(bytes_of(t))
        return
    if t.dim() == 0 or t.numel() * t.element_size() <= _BLOCK:
        out.write(bytes_of(t.cpu().contiguous()))
        return
    rows = max(1, _BLOCK * t.shape[0] // (t.numel() * t.element_size()))
    for begin in range(0, t.shape[0], rows):
        write_tensor(out, t[begin : begin + rows].cpu().contiguous())


def _entry(name: str, tensor: torch.Tensor, file: str) -> Entry:
    if not isinstance(name, str):
        raise TypeError(f"names must be strings, not {name!r}")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name!r} must be a tensor, not {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        what = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise WeightsError(f"the format has no {what} tensors", file, name)
    if tensor.device.type == "meta":
        raise WeightsError("a meta tensor has no data to save", file, name)
    if tensor.dtype not in NAME_OF:
        raise WeightsError(f"the format has no dtype for {tensor.dtype}", file, name)
    shape = format_shape(tensor.dtype, tuple(tensor.shape))
    return Entry(name, NAME_OF[tensor.dtype], shape, tensor.numel() * tensor.element_size())
