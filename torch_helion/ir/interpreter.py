"""Runs a kernel op by op on eager CPU tensors: the oracle for every target, written for clarity.

In: a kernel, its tensors, its sizes, block sizes. Out: the output tensors, written in place. Used
by tests, by the accuracy check and by the reference mode; it imports only `ir` and `exc`.

A value is a tensor with one dimension per axis of its type, in the type's order. The last tile of
an axis is simply shorter: no lane ever lies outside its axis. Meanings that the tables of `ops.py`
leave open are decided here:

- `iota` and arg reductions count along the whole axis, also when only a tile of it is present;
  the indices of `sort` and `take` count within the tile;
- a reduction over several axes runs over their row-major product in the order of the type's axes;
- a reduction over nothing gives `identity_of` (arg reductions: position 0);
- a reversed scan is the scan of the flipped axis, flipped back;
- a sort puts NaN last (first when descending) and keeps the order of equal values;
- the quotient of the smallest integer by -1 wraps, its remainder is 0;
- the lanes of an atomic act one after another, row-major; cas compares bits; half types are added
  in float32;
- an access outside a buffer is IndexError where `checked`, and a broken program otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch

from torch_helion import exc
from torch_helion.ir.graph import Kernel, Op
from torch_helion.ir.interpreter_control import CONTROL_ROWS
from torch_helion.ir.interpreter_joins import JOIN_ROWS
from torch_helion.ir.interpreter_memory import MEMORY_ROWS
from torch_helion.ir.interpreter_state import Blocks, Machine, Precise, Results
from torch_helion.ir.interpreter_values import VALUE_ROWS

__all__ = ["Blocks", "Precise", "Sizes", "run"]

Sizes = Mapping[Any, int] | Sequence[int]


def run(
    kernel: Kernel,
    tensors: Sequence[torch.Tensor],
    sizes: Sizes,
    blocks: Blocks = None,
    precise: Precise = False,
    unique_stores: bool = False,
) -> None:
    """Execute `kernel` on `tensors` (one for each of `kernel.arguments`), writing the outputs.

    `sizes`: by symbol or name, or in the order of `kernel.sizes`. `blocks`: block size by name
    (`kernel.block_names`), or one for all; a missing one means the whole axis in one tile.
    `precise=True` evaluates every floating dtype in float64; casts to half types still round (they
    are part of the program) unless `precise="all"`. Floating buffers may then be given as float64.
    `unique_stores`: a store of several lanes to one place raises exc.DuplicateStoreIndicesError.
    """
    machine = Machine(kernel, kernel.axes(), _bind_sizes(kernel, sizes), precise, _OPS)
    machine.unique_stores = unique_stores
    machine.bind_blocks(blocks)
    machine.bind_buffers(tensors)
    with torch.no_grad():
        machine.run_region(kernel.body)


def _bind_sizes(kernel: Kernel, sizes: Sizes) -> dict[sympy.Symbol, int]:
    if isinstance(sizes, Mapping):
        by_name = {str(symbol): int(value) for symbol, value in sizes.items()}
        missing = [s.name for s in kernel.sizes if s.name not in by_name]
        if missing:
            raise exc.InvalidValue("sizes", sorted(by_name), f"values for {missing} too")
        return {s: by_name[s.name] for s in kernel.sizes}
    if len(sizes) != len(kernel.sizes):
        raise exc.InvalidValue("sizes", list(sizes), f"{len(kernel.sizes)} of them")
    return {s: int(value) for s, value in zip(kernel.sizes, sizes, strict=True)}


_OPS: Mapping[str, Callable[[Machine, Op], Results]] = {
    **CONTROL_ROWS,
    **MEMORY_ROWS,
    **VALUE_ROWS,
    **JOIN_ROWS,
}
