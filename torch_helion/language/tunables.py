"""What a config decides, and sizes that become constants: functions of the host part of a kernel.

`exc.NotInsideKernel` outside of kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_helion import exc
from torch_helion.config_spec import RESERVED, ConfigSpecFragment, next_power_of_2
from torch_helion.language.context import host_run
from torch_helion.language.values import BlockSize

_LARGEST = 1 << 30
_DEFAULT = 32


def register_block_size(min_or_max: Any, max_or_none: Any = None, /) -> BlockSize:
    """A block size to use in several places: `hl.tile(n, block_size=block)`, in shapes, in sizes of
    host tensors.

    `register_block_size(max)` or `register_block_size(min, max)`. It has an entry of its own in a
    config's `block_sizes`, before those of the loops. On the host it is that number.
    """
    run = host_run("register_block_size")
    least, most = (1, min_or_max) if max_or_none is None else (min_or_max, max_or_none)
    least = next_power_of_2(_number(least, "min"))
    most = max(min(next_power_of_2(_number(most, "max")), _LARGEST), least)
    number, sizes = len(run.blocks), run.choices.get("block_sizes") or ()
    size = sizes[number] if number < len(sizes) else _DEFAULT
    block = BlockSize.of(min(max(int(size), least), most), number, least, most)
    run.blocks.append(block)
    return block


def _number(bound: Any, what: str) -> int:
    if isinstance(bound, torch.SymInt):
        # A bound only limits a search: what it is in the example is good enough.
        bound = bound.node.hint if bound.node.has_hint() else _LARGEST
    if isinstance(bound, bool) or not isinstance(bound, int):
        raise exc.InvalidAPIUsage(
            f"register_block_size: {what} must be an int, got {type(bound).__name__}"
        )
    return bound


def register_tunable(name: str, fragment: ConfigSpecFragment) -> Any:
    """An int, float or bool that a config holds under `name`; `fragment` says its values.

    Errors: `exc.RegisterTunableArgTypes`, `exc.TunableNameConflict`, `exc.TunableTypeNotSupported`.
    """
    run = host_run("register_tunable")
    if not isinstance(name, str) or not isinstance(fragment, ConfigSpecFragment):
        raise exc.RegisterTunableArgTypes(type(name).__name__, type(fragment).__name__)
    if name in RESERVED or name in run.tunables:
        raise exc.TunableNameConflict(name)
    value = run.choices.get(name, fragment.default())
    if not isinstance(value, int | float):
        raise exc.TunableTypeNotSupported(type(value).__name__)
    run.tunables[name] = fragment
    return value


def specialize(value: Any) -> Any:
    """A size or stride, or a sequence of them, as constants of the compiled kernel.

    Errors: `exc.SpecializeOnDevice` in a loop, `exc.SpecializeArgType`.
    """
    host_run("specialize")
    return _constant(value, value)


def _constant(value: Any, whole: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_constant(v, whole) for v in value]
        if isinstance(value, torch.Size):
            return torch.Size(items)
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise exc.SpecializeArgType(type(whole).__name__)
    return int(value)
