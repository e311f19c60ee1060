"""What is tuned: a kernel as a search sees it, whoever made it.

In: functions of the layers above (the language's kernels, regions of graphs). Out:
:class:`Problem`: configs in, texts and arguments out, and a judge of results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.space import Space
from torch_helion.config import Config
from torch_helion.settings import Settings

Judge = Callable[[Sequence[torch.Tensor]], str | None]
"""Outputs of a run → what is wrong with them; None: nothing."""
JudgeMaker = Callable[[Arena], Judge | None]
"""The image of the arguments → a judge; None: nobody knows the right results."""


@dataclasses.dataclass(eq=False)
class Instance:
    """The arguments of a launch. Configs share one, unless the host part depends on them."""

    tensors: Sequence[torch.Tensor]
    ints: Sequence[int]
    written: Sequence[int]
    """which of the tensors are written"""
    names: Sequence[str]
    updated: bool
    """whether a written tensor is read as well: each call then needs it as it was"""
    make_judge: JudgeMaker | None = None
    host_seconds: float = 0.0
    """what the host part takes beyond what every config has"""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One config of a problem, ready to be compiled."""

    text: str
    instance: Instance


@dataclasses.dataclass(eq=False)
class Problem:
    """A kernel with arguments, to be tuned."""

    name: str
    space: Space
    settings: Settings
    prepare: Callable[[Config], Prepared]
    """raises an exception of the package for a config that does not compile"""
    shared: bool = True
    """whether all configs have the same arguments"""
    isolated: bool = True
    """whether the kernel can run in another process"""
    seeds: Sequence[Config] = ()
    """configs of similar problems, best first"""

    @property
    def default(self) -> Config:
        """The default config."""
        return self.space.default
