"""The public names of ``torch_helion.autotuner``, gathered from the modules that define them.

In: nothing. Out: fragments, searches, caches, and :func:`autotune` for callables that are not
kernels of this package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_helion import exc
from torch_helion.autotuner import benchmark
from torch_helion.autotuner.benchmark import do_bench
from torch_helion.autotuner.search import (
    DESurrogateHybrid,
    DifferentialEvolutionSearch,
    FiniteSearch,
    LFBOPatternSearch,
    LFBOTreeSearch,
    PatternSearch,
    RandomSearch,
)
from torch_helion.config_spec import (
    BooleanFragment,
    ConfigSpecFragment,
    EnumFragment,
    IntegerFragment,
    ListOf,
    PowerOfTwoFragment,
)

__all__ = [
    "AOTAutotuneCache",
    "BooleanFragment",
    "ConfigSpecFragment",
    "DESurrogateHybrid",
    "DifferentialEvolutionSearch",
    "EnumFragment",
    "FiniteSearch",
    "IntegerFragment",
    "LFBOPatternSearch",
    "LFBOTreeSearch",
    "ListOf",
    "LocalAutotuneCache",
    "PatternSearch",
    "PowerOfTwoFragment",
    "RandomSearch",
    "RemoteAutotuneCache",
    "RemoteCacheBackend",
    "StrictLocalAutotuneCache",
    "autotune",
    "do_bench",
]


class LocalAutotuneCache:
    """A search whose result is looked up before it is made: ``LocalAutotuneCache(search)``."""

    def __init__(self, search: Any) -> None:
        self.autotuner = search

    def autotune(self, *, skip_cache: bool = False) -> Any:
        """The config that an earlier search has found; else that of the search, which is kept."""
        bound, args = self.autotuner.kernel, self.autotuner.args
        known = None if skip_cache else bound.stored_config(args)
        if known is not None:
            return known
        config = self.autotuner.autotune(skip_cache=skip_cache)
        bound.keep_result(args, self.autotuner.result)
        return config


class StrictLocalAutotuneCache(LocalAutotuneCache):
    """The same, with a key that also covers the versions of compiler and libraries."""


class AOTAutotuneCache(LocalAutotuneCache):
    """The same, for kernels that are tuned ahead of time."""


class RemoteCacheBackend:
    """Where a remote cache keeps its entries: to be derived from."""

    def get(self, key: str) -> bytes | None:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError


class RemoteAutotuneCache(LocalAutotuneCache):
    """A cache that several machines share. There is no backend for it here."""

    def __init__(self, search: Any) -> None:
        raise exc.BackendImplementationMissing("llvm", "RemoteAutotuneCache")


def autotune(
    tunables: Mapping[str, ConfigSpecFragment],
    compile_fn: Callable[[Mapping[str, Any]], Callable[..., Any]],
    args: Sequence[Any],
    *,
    baseline_fn: Callable[..., Any] | None = None,
    algorithm: str = "PatternSearch",
    device: Any = None,
    **unused: Any,
) -> dict[str, Any]:
    """The values of ``tunables`` whose callable, made by ``compile_fn``, is fastest on ``args``."""
    best = {name: fragment.default() for name, fragment in tunables.items()}
    while True:
        near = [best]
        for name, fragment in tunables.items():
            near += [{**best, name: v} for v in fragment.pattern_neighbors(best[name])]
        runs, kept = [], []
        for values in near:
            try:
                function = compile_fn(values)
                copies = benchmark.cloned(tuple(args))
                function(*copies)
            except Exception as error:
                if values is best:
                    raise exc.AutotuneError(f"the default {values} fails: {error}") from error
                continue
            runs.append(functools.partial(function, *copies))
            kept.append(values)
        times = benchmark.interleaved(runs)
        leader = min(range(len(kept)), key=times.__getitem__)
        if kept[leader] is best or times[leader] >= 0.98 * times[0]:
            return best
        best = kept[leader]
