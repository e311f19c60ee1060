"""The passes that every kernel goes through before a target sees it, in order."""

from __future__ import annotations

from torch_helion.passes.canonicalize import CANONICALIZE
from torch_helion.passes.collapse_axes import COLLAPSE_AXES
from torch_helion.passes.eliminate_dead_code import ELIMINATE_DEAD_CODE
from torch_helion.passes.pass_manager import Pass

SIMPLIFY: tuple[Pass, ...] = (
    CANONICALIZE,
    # Dead loads would forbid collapsing; what collapsing leaves needs no second round.
    ELIMINATE_DEAD_CODE,
    COLLAPSE_AXES,
)

KEEP_AXES: tuple[Pass, ...] = tuple(p for p in SIMPLIFY if p is not COLLAPSE_AXES)
"""The same for a kernel whose axes a config already has block sizes for."""
