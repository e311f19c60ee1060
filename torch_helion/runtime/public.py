"""``torch_helion.runtime`` as programs know it: names of other modules, resolved on first use.

In: a name. Out: the object, from the module that defines it; and what the host part of a kernel
may ask about the device. Nothing above this floor is imported before somebody asks for it.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch_helion import _hardware

_NAMES = {
    "Config": "torch_helion.config:Config",
    "Settings": "torch_helion.settings:Settings",
    "Kernel": "torch_helion.kernel.decorator:Kernel",
    "kernel": "torch_helion.kernel.decorator:kernel",
    "BoundKernel": "torch_helion.kernel.bound:BoundKernel",
    "RefMode": "torch_helion.settings:RefMode",
    "settings": "torch_helion.settings:",
    "ref_mode": "torch_helion.settings:",
}


def get_num_sm(device: Any = None, *, reserved_sms: int = 0) -> int:
    """How many blocks run at once: on a CPU the processors that this process may use."""
    return max(1, _hardware.cores() - reserved_sms)


def __getattr__(name: str) -> Any:
    try:
        module, _, attribute = _NAMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module 'torch_helion.runtime' has no attribute {name!r}") from None
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
