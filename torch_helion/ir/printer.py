"""A kernel as tile-language source: `to_source`; as exact SSA text: `dump` (from `dump.py`).

In: a kernel. Out: text for people (explain, export, dumps) that the front end reads back. What the
text does where the IR has no positions:

- Tensors in the text have their dimensions in one order everywhere, the *canonical* one: block axes
  in the order of the loops, then the others in the order of their first use. An operand that lacks
  an axis gets a `None` in its place; `.permute` stands only where a buffer, a dot or a reshape has
  another order.
- An axis that is another one renamed is the same tensor: the place of its dimension tells.
- A value that is used once, in its own region, and has no name of its own is written where it is
  used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel
from torch_helion.ir.printer_control import CONTROL_ROWS
from torch_helion.ir.printer_host import preparations, results, signature
from torch_helion.ir.printer_memory import MEMORY_ROWS
from torch_helion.ir.printer_state import Printer, Row
from torch_helion.ir.printer_values import VALUE_ROWS

__all__ = ["HEADER", "dump", "to_source"]

HEADER = "import torch\nimport torch_helion\nimport torch_helion.language as hl\n"
"""What the text of kernels needs in front of it."""


def to_source(kernel: Kernel) -> str:
    """The kernel as one function of the tile language (without imports, see `HEADER`).

    Functions that combine values of a reduction or a scan stand before it.
    """
    p = Printer(kernel, _ROWS)
    signature(p)
    preparations(p)
    for op in kernel.body.ops:
        p.statement(op)
    results(p)
    return "\n".join([*p.helpers, *p.lines]) + "\n"


_ROWS: Mapping[str, Row] = {**CONTROL_ROWS, **MEMORY_ROWS, **VALUE_ROWS}
