"""Every lowering, in one visible tuple of families.

In: nothing. Out: `LOWERINGS`, by overload. A family is one file; two rows for one overload raise.
"""

from __future__ import annotations

from torch_helion.lowering.activation import ACTIVATION
from torch_helion.lowering.composite import COMPOSITE
from torch_helion.lowering.creation import CREATION
from torch_helion.lowering.indexing import GATHERS
from torch_helion.lowering.pointwise import POINTWISE
from torch_helion.lowering.random import RANDOM
from torch_helion.lowering.reduction import REDUCTION
from torch_helion.lowering.registry import table
from torch_helion.lowering.view import VIEWS

LOWERINGS = table(
    POINTWISE,
    ACTIVATION,
    REDUCTION,
    CREATION,
    RANDOM,
    COMPOSITE,
    VIEWS,
    GATHERS,
)
