"""`object.name` on the device: properties of tensors, tiles and records.

In: a value and a name. Out: a value, or a `Method` that waits for its call.
"""

from __future__ import annotations

import types
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.frontend import calls
from torch_helion.frontend.sizes import plain
from torch_helion.frontend.state import Program
from torch_helion.frontend.values import (
    Function,
    HostTensor,
    Method,
    Number,
    Offset,
    Record,
    Stack,
    Tensor,
    Tile,
    integer,
)
from torch_helion.ir.types import Affine, Size, begin_symbol, id_symbol

_CPU = torch.device("cpu")


def get(p: Program, owner: Any, name: str) -> Any:
    if isinstance(owner, HostTensor):
        return _of_host(p, owner, name)
    if isinstance(owner, Tensor):
        return _of_tensor(p, owner, name)
    if isinstance(owner, Tile):
        return _of_tile(p, owner, name)
    if isinstance(owner, Record):
        return _of_record(owner, name)
    if isinstance(owner, Stack):
        return _of_host(p, owner.like, name)
    if isinstance(owner, Function):
        return getattr(owner.fn, name)
    if isinstance(owner, types.ModuleType):
        return p.global_of(vars(owner), name) if name in vars(owner) else getattr(owner, name)
    if isinstance(owner, Number | Offset):
        raise exc.CantReadOnDevice(f".{name} of a number")
    return getattr(owner, name)


def _of_record(owner: Record, name: str) -> Any:
    if name in owner.fields:
        return owner.fields[name]
    found = getattr(owner.kind, name, None)
    if isinstance(found, property):
        return Method(owner, f"property:{name}")
    return Method(owner, name) if callable(found) else getattr(owner.original, name)


def _of_host(p: Program, host: HostTensor, name: str) -> Any:
    tensor = host.tensor
    if name == "shape":
        return tuple(p.python(p.shape(host, d)) for d in range(tensor.dim()))
    if name in ("dtype", "layout", "requires_grad", "is_sparse", "is_cuda"):
        return getattr(tensor, name)
    if name == "device":
        return _CPU
    if name == "ndim":
        return tensor.dim()
    if not hasattr(tensor, name):
        raise exc.CantReadOnDevice(f"attribute {name!r} of tensor {host.name}")
    if name in ("T", "mT", "H", "mH", "data"):
        raise exc.HostTensorDirectUsage(host.name, name)
    return Method(host, name)


def _of_tensor(p: Program, tensor: Tensor, name: str) -> Any:
    if name == "shape":
        return tuple(integer(p.axes.extent(d)) for d in tensor.dims)
    if name == "dtype":
        return tensor.dtype
    if name == "device":
        return _CPU
    if name == "ndim":
        return tensor.rank
    if name in ("T", "mT", "H", "mH"):
        return calls.call(p, lambda x: getattr(x, name), [tensor], {})
    if not hasattr(torch.Tensor, name):
        raise exc.CantReadOnDevice(f"attribute {name!r} of a tensor")
    return Method(tensor, name)


# -- tiles --------------------------------------------------------------------------------------


def tile_begin(p: Program, tile: Tile) -> Size:
    return plain(tile.begin + begin_symbol(tile.axis))


def tile_end(p: Program, tile: Tile) -> Size:
    last = sympy.Min(tile.axis.size, begin_symbol(tile.axis) + tile.block)
    if tile.block == 1:
        last = begin_symbol(tile.axis) + 1
    return plain(tile.begin + last)


def tile_index(p: Program, tile: Tile) -> Tensor:
    """The positions of a tile, int64."""
    axis, b = tile.axis, p.b
    if p.axes.block(axis) == 1:
        size = tile_begin(p, tile)
        return Tensor(b.size_value(size), (None,), Affine((), size))
    value = b.iota(axis)
    if tile.begin != 0:
        value = b.pointwise("add", value, b.size_value(tile.begin))
    return Tensor(value, (axis,), Affine.of(axis, 1, tile.begin))


def tile_count(p: Program, tile: Tile) -> Size:
    if tile.block == 1:
        return tile.axis.size
    return plain(sympy.floor(sympy.sympify(tile.axis.size + tile.block - 1) / tile.block))


def _of_tile(p: Program, tile: Tile, name: str) -> Any:
    tile.uses.add(name)
    if name == "index":
        return tile_index(p, tile)
    if name == "begin":
        return integer(tile_begin(p, tile))
    if name == "end":
        return integer(tile_end(p, tile))
    if name == "id":
        return integer(id_symbol(tile.axis))
    if name == "block_size":
        return integer(tile.block)
    if name == "count":
        return integer(tile_count(p, tile))
    raise exc.IncorrectTileUsage(f"attribute {name!r} of a tile")
