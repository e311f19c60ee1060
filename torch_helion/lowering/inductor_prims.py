"""Rows of the prims that Inductor registers: they exist only once Inductor has been imported.

In: nothing. Out: rows, as a function, so that a program without compiled graphs never imports
Inductor. Called by rows.graph_lowerings.
"""

from __future__ import annotations

import torch

from torch_helion.lowering.composite import prepare_softmax
from torch_helion.lowering.composite import rows as reductions
from torch_helion.lowering.elementwise import family
from torch_helion.lowering.pointwise import fma
from torch_helion.lowering.promotion import DEFAULT
from torch_helion.lowering.random import inductor_randint, inductor_random
from torch_helion.lowering.registry import Lowering
from torch_helion.lowering.view import lookup_seed


def inductor_rows() -> tuple[Lowering, ...]:
    """The family; an AttributeError where Inductor has not been imported."""
    prims = torch.ops.prims
    return (
        *family(fma, 3, DEFAULT, prims.fma.default),
        *reductions(prepare_softmax, prims.prepare_softmax_online.default),
        Lowering(prims.inductor_random.default, "random", inductor_random),
        Lowering(prims.inductor_randint.default, "random", inductor_randint),
        Lowering(prims.inductor_lookup_seed.default, "view", lookup_seed),
    )
