"""Runs the text that `printer.to_source` makes: just enough of the tile language, on eager tensors.

It knows nothing of the IR. Names are aligned by position here, so a `None` or `.permute` that the
printer puts in the wrong place changes the result (or fails).
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torch_helion.ir import philox


class Tile:
    """One tile of a range; in a list of sizes it stands for how many positions it has."""

    def __init__(self, number: int, begin: int, end: int) -> None:
        self.id, self.begin, self.end = number, begin, end
        self.index = torch.arange(begin, end)

    def __index__(self) -> int:
        return self.end - self.begin

    def __add__(self, offset: int) -> torch.Tensor:
        return self.index + offset

    def __sub__(self, offset: int) -> torch.Tensor:
        return self.index - offset


class Host:
    """A tensor of the host part: subscripts read and write it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.device = tensor, tensor.device
        self.size, self.stride = tensor.size, tensor.stride

    def __getitem__(self, items: Any) -> torch.Tensor:
        return load(self, items if isinstance(items, tuple) else (items,))

    def __setitem__(self, items: Any, value: torch.Tensor) -> None:
        store(self, items if isinstance(items, tuple) else (items,), value)


def positions(host: Host, items: Sequence[Any]) -> list[torch.Tensor]:
    """Index tensors that broadcast to the shape of the result."""
    assert len(items) == host.tensor.dim(), "one item for each dimension"
    vectors = []
    for dim, item in enumerate(items):
        if isinstance(item, slice):
            item = torch.arange(host.size(dim))[item]
        item = item.index if isinstance(item, Tile) else torch.as_tensor(item)
        vectors.append(item)
    given = [t for t in items if isinstance(t, torch.Tensor) and t.dim() > 0]
    if len(given) > 1:
        return vectors
    rank, after = sum(v.dim() for v in vectors), 0
    outer = []
    for vector in vectors:
        after += vector.dim()
        outer.append(vector.reshape([*vector.shape, *[1] * (rank - after)]))
    return outer


def load(host: Host, items: Sequence[Any], extra_mask: torch.Tensor | None = None) -> torch.Tensor:
    index = positions(host, items)
    mask = torch.tensor(True) if extra_mask is None else extra_mask
    *index, mask = torch.broadcast_tensors(*index, mask)
    for dim, i in enumerate(index):
        assert bool(((i[mask] >= 0) & (i[mask] < host.size(dim))).all()), "index outside"
    result = torch.zeros(mask.shape, dtype=host.tensor.dtype)
    result[mask] = host.tensor[tuple(i[mask] for i in index)] if index else host.tensor
    return result


def store(host: Host, items: Sequence[Any], value: Any, extra_mask: Any = None) -> None:
    index = positions(host, items)
    shape = torch.broadcast_shapes(*(i.shape for i in index))
    mask = torch.tensor(True) if extra_mask is None else extra_mask
    value, mask = torch.as_tensor(value).expand(shape), mask.expand(shape)
    if index:
        host.tensor[tuple(i.expand(shape)[mask] for i in index)] = value[mask]
    else:
        host.tensor.copy_(value)


def run(source: str, inputs: Sequence[torch.Tensor], sizes: Sequence[int], block: int) -> Any:
    """Call the function in `source`; every block size is `block`. Gives the tensors it returns."""
    space: dict[str, Any] = {}
    exec(compile(source, "<kernel>", "exec"), _names(block, space))
    (function,) = (v for v in space.values() if isinstance(v, types.FunctionType))
    result = function(*map(Host, inputs), *sizes)
    results = result if isinstance(result, tuple) else (result,)
    return [r.tensor for r in results if r is not None]


def _names(block: int, space: dict[str, Any]) -> dict[str, Any]:
    def one(size: int, step: int | None) -> Iterator[Tile]:
        step = step or block
        return (Tile(i, b, min(b + step, size)) for i, b in enumerate(range(0, size, step)))

    def tile(sizes: Any, block_size: Any = None) -> Any:
        if not isinstance(sizes, list):
            return one(sizes, block_size)
        steps = block_size or [None] * len(sizes)
        return itertools.product(*(list(one(n, s)) for n, s in zip(sizes, steps, strict=True)))

    def kernel(function: types.FunctionType) -> types.FunctionType:
        space[function.__name__] = function
        return function

    def empty(shape: Sequence[int], **options: Any) -> Host:
        return Host(torch.full(list(shape), 77, **options))

    def empty_strided(shape: Sequence[int], strides: Sequence[int], **options: Any) -> Host:
        return Host(torch.empty_strided(shape, strides, **options).fill_(77))

    def noise(fn: Any) -> Any:
        def call(shape: Sequence[Any], *bounds: int, seed: int, offsets: Any) -> torch.Tensor:
            index = torch.as_tensor(offsets).expand([int(n) for n in shape])
            return fn(seed, index, *bounds)

        return call

    hl = types.SimpleNamespace(
        rand=noise(philox.uniform),
        randn=noise(philox.normal),
        randint=noise(philox.randint),
        tile=tile,
        grid=range,
        load=load,
        store=store,
        arange=torch.arange,
        full=lambda shape, value, dtype: torch.full([int(n) for n in shape], value, dtype=dtype),
        barrier=lambda: None,
        register_block_size=lambda size: block,
    )
    proxy = types.SimpleNamespace(**{**vars(torch), "empty": empty, "empty_strided": empty_strided})
    own = types.SimpleNamespace(kernel=kernel, cdiv=lambda a, b: -(-a // b))
    return {"torch": proxy, "torch_helion": own, "hl": hl}
