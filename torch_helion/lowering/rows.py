"""Every lowering, in one visible tuple of families.

In: nothing. Out: `LOWERINGS`, by overload, for any program; `graph_lowerings()`, for the graphs
that Inductor hosts, with the rows of its own prims. A family is one file; two rows for one overload
raise.
"""

from __future__ import annotations

import functools

from torch._ops import OpOverload

from torch_helion.lowering.activation import ACTIVATION
from torch_helion.lowering.composite import COMPOSITE
from torch_helion.lowering.creation import CREATION
from torch_helion.lowering.indexing import GATHERS
from torch_helion.lowering.inductor_prims import inductor_rows
from torch_helion.lowering.pointwise import POINTWISE
from torch_helion.lowering.random import RANDOM
from torch_helion.lowering.reduction import REDUCTION
from torch_helion.lowering.registry import Lowering, table
from torch_helion.lowering.scatter import SCATTER
from torch_helion.lowering.selection import SELECTION
from torch_helion.lowering.view import VIEWS

LOWERINGS = table(
    POINTWISE,
    SELECTION,
    ACTIVATION,
    REDUCTION,
    CREATION,
    RANDOM,
    COMPOSITE,
    VIEWS,
    GATHERS,
    SCATTER,
)


@functools.cache
def graph_lowerings() -> dict[OpOverload, Lowering]:
    """`LOWERINGS` and the prims of Inductor, which must have been imported."""
    return table(LOWERINGS.values(), inductor_rows())
