"""Searches for the best config of a bound kernel on given arguments.

In: a bound kernel (as :mod:`torch_helion.kernel.bound` makes it), arguments, configs. Out: a
Config. Every candidate is compiled, its results are compared with those of the baseline, and the
candidates that are right take turns on the clock.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import _logging, exc, settings
from torch_helion.autotuner import benchmark
from torch_helion.config import Config
from torch_helion.config_spec import ConfigSpec

log = _logging.get_logger("tune")

BUDGET = {"none": 0.0, "quick": 2.0, "full": 5.0}
"""seconds of a search by effort, unless the settings say otherwise"""


class BaseSearch:
    """A search: ``Search(bound_kernel, args).autotune()`` gives the best config found."""

    def __init__(
        self, bound_kernel: Any, args: Sequence[Any], configs: Iterable[Any] = (), **options: Any
    ) -> None:
        self.kernel = bound_kernel
        self.bound_kernel = bound_kernel
        self.args = tuple(args)
        self.settings: settings.Settings = bound_kernel.settings
        self.configs = [Config.from_dict(c) for c in configs]
        self.failures: list[str] = []
        self._reference: Any = None

    def candidates(self) -> list[Config]:
        """The configs to start with."""
        return self.configs

    def autotune(self, *, skip_cache: bool = False) -> Config:
        """Measure, and return the best config."""
        times = self._first_times()
        return min(times, key=lambda config: times[config])

    # -- measuring --------------------------------------------------------------------------------

    def _first_times(self) -> dict[Config, float]:
        """Seconds of the candidates; raises exc.NoConfigFound if none of them is right."""
        times = self.measure(self.candidates())
        if not times:
            raise exc.NoConfigFound(f": {'; '.join(self.failures)}" if self.failures else "")
        return times

    def measure(self, configs: Sequence[Config]) -> dict[Config, float]:
        """Seconds of each config that compiles and is right."""
        configs = list(dict.fromkeys(self._overridden(c) for c in configs))
        run: dict[Config, Callable[[], Any]] = {}
        for config in configs:
            function = self._checked(config)
            if function is not None:
                run[config] = function
        if self.settings.autotune_benchmark_fn is not None:
            measured = self.settings.autotune_benchmark_fn(list(run.values()))
        else:
            measured = benchmark.interleaved(list(run.values()))
        times = dict(zip(run, measured, strict=True))
        for config, seconds in times.items():
            log.debug("%s: %.1f us with %s", self.kernel.kernel.name, seconds * 1e6, config)
        return times

    def _overridden(self, config: Config) -> Config:
        overrides = self.settings.autotune_config_overrides
        return Config.from_dict({**config.config, **overrides}) if overrides else config

    def _checked(self, config: Config) -> Callable[[], Any] | None:
        """A call of the kernel with this config on copies; None if it fails or is wrong."""
        args = benchmark.cloned(self.args)
        try:
            compiled = self.kernel.compile_config(config)
            results = compiled(*args)
        except Exception as error:
            if isinstance(error, exc.InvalidConfig) or not _may_fail(error):
                raise
            self.failures.append(f"{config}: {error}")
            log.info("%s fails: %s", config, error)
            return None
        if self.settings.autotune_accuracy_check and not self._is_right(results, args):
            self.failures.append(f"{config}: wrong results")
            log.warning("%s gives other results than the baseline and is left out", config)
            return None
        return functools.partial(compiled, *args)

    def _is_right(self, results: Any, args: Any) -> bool:
        if self._reference is None:
            self._reference = self._baseline()
        if self.settings.autotune_baseline_accuracy_check_fn is not None:
            try:
                self.settings.autotune_baseline_accuracy_check_fn(results, self._reference[0])
            except AssertionError:
                return False
            return True
        atol, rtol = self.settings.autotune_baseline_atol, self.settings.autotune_baseline_rtol
        return _close((results, args), self._reference, atol, rtol)

    def _baseline(self) -> Any:
        """Results and arguments after a call of what is right by definition."""
        args = benchmark.cloned(self.args)
        function = self.settings.autotune_baseline_fn
        if function is None:
            function = self.kernel.compile_config(self.kernel.default_config())
        return function(*args), args


class FiniteSearch(BaseSearch):
    """The best of the given configs."""

    def __init__(
        self, bound_kernel: Any, args: Sequence[Any], configs: Iterable[Any] = (), **options: Any
    ) -> None:
        super().__init__(bound_kernel, args, configs or bound_kernel.configs, **options)
        if len(self.configs) < 2:
            raise exc.NotEnoughConfigs(len(self.configs))


class PatternSearch(BaseSearch):
    """From the default config to better neighbours until none is better or time is up."""

    def candidates(self) -> list[Config]:
        seeds = [Config.from_dict(c) for c in self.settings.autotune_seed_configs or ()]
        return [self.kernel.default_config(), *self.configs, *seeds]

    def autotune(self, *, skip_cache: bool = False) -> Config:
        deadline = time.perf_counter() + _budget(self.settings)
        times = self._first_times()
        best = min(times, key=lambda config: times[config])
        generations = self.settings.autotune_max_generations
        tried = set(times)
        while time.perf_counter() < deadline and (generations is None or generations > 0):
            near = [c for c in neighbours(self.kernel.config_spec, best) if c not in tried]
            near = [c for c in near if self._allowed(c)]
            if not near:
                break
            tried |= set(near)
            round_times = self.measure([best, *near[:8]])
            leader = min(round_times, key=lambda config: round_times[config])
            if round_times[leader] >= 0.98 * round_times.get(best, math.inf):
                break
            best = leader
            generations = None if generations is None else generations - 1
        return best

    def _allowed(self, config: Config) -> bool:
        allowed = self.settings.autotune_config_filter
        return allowed is None or bool(allowed(config))


class RandomSearch(PatternSearch):
    """The default config and random ones."""

    def candidates(self) -> list[Config]:
        spec: ConfigSpec = self.kernel.config_spec
        start = self.kernel.default_config()
        made = [start]
        for _ in range(12):
            changes = {key: fragment.random() for key, fragment in spec.fragments().items()}
            made.append(_with(start, changes))
        return [*made, *self.configs]

    def autotune(self, *, skip_cache: bool = False) -> Config:
        if self.settings.autotune_random_seed is not None:
            random.seed(self.settings.autotune_random_seed)
        return BaseSearch.autotune(self, skip_cache=skip_cache)


class LFBOPatternSearch(PatternSearch):
    """The pattern search, under the name of one that learns which neighbours to try."""


class LFBOTreeSearch(PatternSearch):
    """The pattern search, under the name of one that learns which neighbours to try."""


class DifferentialEvolutionSearch(PatternSearch):
    """The pattern search, under the name of one that keeps a population."""


class DESurrogateHybrid(DifferentialEvolutionSearch):
    """The pattern search, under the name of one that keeps a population and a model of it."""


SEARCHES: dict[str, type[BaseSearch]] = {
    cls.__name__: cls
    for cls in (
        PatternSearch,
        RandomSearch,
        FiniteSearch,
        LFBOPatternSearch,
        LFBOTreeSearch,
        DifferentialEvolutionSearch,
        DESurrogateHybrid,
    )
}


def autotune(bound: Any, args: Sequence[Any], *, force: bool = True, **options: Any) -> Config:
    """The best config for these arguments by the search that the settings ask for."""
    made = bound.settings.autotuner_fn
    if made is not None:
        return made(bound, args, **options).autotune()
    if len(bound.configs) == 1 and not (force or bound.settings.force_autotune):
        return bound.configs[0]
    if settings.flag("DISALLOW_AUTOTUNING") not in ("", "0"):
        raise exc.AutotuningDisallowedInEnvironment(f" (kernel {bound.kernel.name!r})")
    if len(bound.configs) > 1:
        return FiniteSearch(bound, args, bound.configs).autotune()
    if bound.settings.autotune_effort == "none":
        return bound.implicit_config() or bound.default_config()
    name = settings.flag("AUTOTUNER") or "PatternSearch"
    if name not in SEARCHES:
        raise exc.invalid_option("search (HELION_AUTOTUNER)", name, SEARCHES)
    return SEARCHES[name](bound, args).autotune()


def autotune_multi(
    bounds: Sequence[Any], sets: Sequence[Sequence[Any]], aggregation: str, **options: Any
) -> Config:
    """The config that is best over several sets of arguments."""
    if aggregation not in ("geomean", "max"):
        raise exc.InvalidValue("aggregation", aggregation, "'geomean' or 'max'")
    candidates = bounds[0].configs or [bound.default_config() for bound in bounds]
    totals: dict[Config, list[float]] = {}
    for bound, args in zip(bounds, sets, strict=True):
        times = PatternSearch(bound, args).measure(candidates)
        fastest = min(times.values(), default=1.0)
        for config, seconds in times.items():
            totals.setdefault(config, []).append(seconds / fastest)
    whole = {c: rows for c, rows in totals.items() if len(rows) == len(bounds)}
    if not whole:
        raise exc.NoConfigFound(": no config works for all sets of arguments")
    score = max if aggregation == "max" else _geomean
    return min(whole, key=lambda config: score(whole[config]))


def neighbours(spec: ConfigSpec, config: Config) -> list[Config]:
    """Configs that differ from this one in one place."""
    found = []
    for key, fragment in spec.fragments().items():
        name, _, place = key.partition("[")
        current = config[name][int(place[:-1])] if place else config[name]
        found += [_with(config, {key: v}) for v in fragment.pattern_neighbors(current)]
    return found


def _with(config: Config, changes: dict[str, Any]) -> Config:
    values = config.config
    for key, value in changes.items():
        name, _, place = key.partition("[")
        if place:
            values[name][int(place[:-1])] = value
        else:
            values[name] = value
    return Config.from_dict(values)


def _geomean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _budget(chosen: settings.Settings) -> float:
    if chosen.autotune_budget_seconds is not None:
        return float(chosen.autotune_budget_seconds)
    return BUDGET[chosen.autotune_effort]


def _may_fail(error: Exception) -> bool:
    """Whether a candidate may fail in this way without ending the search."""
    return isinstance(error, exc.Base | RuntimeError | MemoryError)


def _close(got: Any, want: Any, atol: float | None, rtol: float | None) -> bool:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if b.dtype.is_floating_point:
            relative = 1e-2 if rtol is None else rtol
            absolute = 1e-2 if atol is None else atol
            if not torch.allclose(a.double(), b.double(), relative, absolute, equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True
