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

    def __init__(self, number: int, begin: int, end: int, block_size: int) -> None:
        self.id, self.begin, self.end, self.block_size = number, begin, end, block_size
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


# -- what joins lanes ---------------------------------------------------------------------------


def dot(a: torch.Tensor, b: torch.Tensor, acc: Any = None, out_dtype: Any = None) -> torch.Tensor:
    default = torch.float32 if a.dtype.is_floating_point else torch.int32
    dtype = acc.dtype if acc is not None else out_dtype or default
    product = torch.matmul(a.to(dtype), b.to(dtype))
    return product if acc is None else acc + product


def _joined(fn: Any, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> Any:
    joined = fn(*left, *right)
    return joined if isinstance(joined, tuple) else (joined,)


def associative_scan(
    fn: Any, x: Any, dim: int, reverse: bool = False, exclusive: bool = False
) -> Any:
    """One position after another."""
    values = x if isinstance(x, tuple) else (x,)
    count = values[0].shape[dim]
    order = list(reversed(range(count))) if reverse else list(range(count))
    lanes = [[v.select(dim, i) for v in values] for i in order]
    found = [tuple(lanes[0])] if lanes else []
    for lane in lanes[1:]:
        found.append(_joined(fn, found[-1], lane))
    if exclusive:
        found = [tuple(map(_first(fn), values[0:1]))] * bool(found) + found[:-1]
        found = [tuple(t.expand(lanes[0][0].shape) for t in f) for f in found]
    found = list(reversed(found)) if reverse else found
    results = tuple(torch.stack(part, dim) for part in zip(*found, strict=True)) or values
    return results if isinstance(x, tuple) else results[0]


def _first(fn: Any) -> Any:
    """What an exclusive scan begins with."""

    def identity(x: torch.Tensor) -> torch.Tensor:
        floating = x.dtype.is_floating_point
        low = -float("inf") if floating else torch.iinfo(x.dtype).min
        high = float("inf") if floating else torch.iinfo(x.dtype).max
        numbers = {torch.add: 0, torch.mul: 1, torch.maximum: low, torch.minimum: high}
        return torch.tensor(numbers[fn], dtype=x.dtype)

    return identity


def scan_of(fn: Any) -> Any:
    def scan(x: torch.Tensor, dim: int, **flags: bool) -> torch.Tensor:
        return associative_scan(fn, x, dim, **flags)

    return scan


def reduce(fn: Any, x: Any, dim: int, other: Any = 0) -> Any:
    values = x if isinstance(x, tuple) else (x,)
    others = other if isinstance(other, tuple) else (other,)
    lanes = [tuple(v.select(dim, i) for v in values) for i in range(values[0].shape[dim])]
    if not lanes:
        lanes = [
            tuple(v.new_full(v.sum(dim).shape, o) for v, o in zip(values, others, strict=True))
        ]
    found = lanes[0]
    for lane in lanes[1:]:
        found = _joined(fn, found, lane)
    return found if isinstance(x, tuple) else found[0]


def topk(x: torch.Tensor, k: int, dim: int, largest: bool) -> Any:
    """Of equal values the first ones, in their order."""
    values, order = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), order.narrow(dim, 0, k)


def atomic(fn: Any) -> Any:
    def call(host: Host, items: Sequence[Any], value: Any, extra_mask: Any = True) -> None:
        index = positions(host, items)
        value, mask = torch.as_tensor(value), torch.as_tensor(extra_mask)
        shapes = [*(i.shape for i in index), value.shape, mask.shape]
        shape = torch.broadcast_shapes(*shapes)
        places = torch.broadcast_shapes(*(i.shape for i in index))
        assert shape == places or not index, "lanes without a place"
        rows = zip(*(t.expand(shape).flatten().tolist() for t in (*index, mask)), strict=True)
        for place, lane in zip(rows, value.expand(shape).flatten(), strict=True):
            *at, keep = place
            if keep:
                host.tensor[tuple(at)] = fn(host.tensor[tuple(at)], lane)

    return call


# -- the whole ----------------------------------------------------------------------------------


def run(source: str, inputs: Sequence[torch.Tensor], sizes: Sequence[int], block: int) -> Any:
    """Call the function in `source`; every block size is `block`. Gives the tensors it returns."""
    space: dict[str, Any] = {}
    exec(compile(source, "<kernel>", "exec"), _names(block, space))
    (function,) = space.values()
    result = function(*map(Host, inputs), *sizes)
    results = result if isinstance(result, tuple) else (result,)
    return [r.tensor for r in results if r is not None]


def _names(block: int, space: dict[str, Any]) -> dict[str, Any]:
    def one(size: int, step: int | None) -> Iterator[Tile]:
        size, step = int(size), step or block
        starts = enumerate(range(0, size, step))
        return (Tile(i, b, min(b + step, size), step) for i, b in starts)

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
        def call(
            shape: Sequence[Any], *bounds: int, seed: int, offsets: Any, dtype: Any = None
        ) -> torch.Tensor:
            index = torch.as_tensor(offsets).expand([int(n) for n in shape])
            return fn(seed, index, *bounds)

        return call

    hl = types.SimpleNamespace(
        rand=noise(philox.uniform),
        randn=noise(philox.normal),
        randint=noise(philox.randint),
        tile=tile,
        grid=range,
        specialize=lambda size: size,
        load=load,
        store=store,
        arange=torch.arange,
        full=lambda shape, value, dtype: torch.full([int(n) for n in shape], value, dtype=dtype),
        barrier=lambda: None,
        register_block_size=lambda size: max(min(block, size), 1),
        rand4x=lambda seed, offsets: [philox.uniform(seed, offsets, word) for word in range(4)],
        dot=dot,
        cumsum=scan_of(torch.add),
        cumprod=scan_of(torch.mul),
        associative_scan=associative_scan,
        reduce=reduce,
        atomic_add=atomic(torch.add),
        atomic_max=atomic(torch.maximum),
        atomic_min=atomic(torch.minimum),
    )
    own = {"empty": empty, "empty_strided": empty_strided, "topk": topk}
    proxy = types.SimpleNamespace(**{**vars(torch), **own})
    public = types.SimpleNamespace(kernel=kernel, cdiv=lambda a, b: -(-a // b))
    return {"torch": proxy, "torch_helion": public, "hl": hl}
