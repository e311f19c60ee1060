"""Searching for the config of a kernel: what can vary, measuring, searching."""

from torch_helion.autotuner.names import (  # noqa: F401
    AOTAutotuneCache,
    BooleanFragment,
    ConfigSpecFragment,
    DESurrogateHybrid,
    DifferentialEvolutionSearch,
    EnumFragment,
    FiniteSearch,
    IntegerFragment,
    LFBOPatternSearch,
    LFBOTreeSearch,
    ListOf,
    LocalAutotuneCache,
    PatternSearch,
    PowerOfTwoFragment,
    RandomSearch,
    RemoteAutotuneCache,
    RemoteCacheBackend,
    StrictLocalAutotuneCache,
    autotune,
    do_bench,
)
