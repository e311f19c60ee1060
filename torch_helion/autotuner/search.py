"""Searches for the best config of a kernel on given arguments.

In: a bound kernel and arguments (or a :class:`~torch_helion.autotuner.problem.Problem`), configs to
start from. Out: a Config. All searches measure by :class:`~torch_helion.autotuner.bench.Bench` and
differ in which configs they try:

- ``FiniteSearch``: those that are given;
- ``RandomSearch``: any;
- ``PatternSearch``: neighbours of the best, until none is better;
- ``DifferentialEvolutionSearch``: differences within a population, added to its members;
- ``LFBOPatternSearch``, ``LFBOTreeSearch``: many neighbours, of which a model of the measurements
  chooses (nearest neighbours, randomised trees);
- ``DESurrogateHybrid``: the population's next members, of which a model chooses.

Every search begins with the default config, ends at its deadline, and gives the default config
unless something is clearly faster. Ctrl-C ends it with the best so far.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch_helion import _logging, exc, settings
from torch_helion.autotuner import runner, surrogate
from torch_helion.autotuner.bench import Bench
from torch_helion.autotuner.problem import Problem
from torch_helion.autotuner.progress import Progress
from torch_helion.autotuner.space import Point, Space
from torch_helion.config import Config

log = _logging.get_logger("tune")

BUDGET = {"none": 0.0, "quick": 2.0, "full": 5.0}
"""seconds of a search by effort, unless the settings say otherwise"""
BATCH = 6
"""configs between two looks at the clock and the progress"""
ELSEWHERE = 5
"""batches of random configs without a better one, after which a pattern search ends"""
POPULATION = 10
MUTATION, CROSSOVER = 0.8, 0.9


@dataclasses.dataclass(frozen=True)
class Result:
    """What a search found, and how."""

    config: Config
    seconds: float
    """of a call with the config"""
    default_seconds: float
    """of a call with the default config"""
    tried: int
    rejected: tuple[tuple[Config, str], ...]
    """configs that failed, with the reason"""
    noise: float
    interrupted: bool = False

    @property
    def speedup(self) -> float:
        """Over the default config."""
        return self.default_seconds / self.seconds if self.seconds else 1.0


class BaseSearch:
    """A search: ``Search(bound_kernel, args).autotune()`` gives the best config found."""

    def __init__(
        self,
        bound_kernel: Any,
        args: Sequence[Any] = (),
        configs: Iterable[Any] = (),
        *,
        budget: float | None = None,
        **options: Any,
    ) -> None:
        self.args = arguments_of(args, type(self).__name__ + "(kernel, (x, ...))")
        if not hasattr(bound_kernel, "tuning_problem") and hasattr(bound_kernel, "bind"):
            bound_kernel = bound_kernel.bind(self.args)
        self.kernel = self.bound_kernel = bound_kernel
        self.configs = configs_of(configs, "configs")
        self.settings: settings.Settings = bound_kernel.settings
        self.budget = _budget(self.settings) if budget is None else seconds_of(budget)
        self.most_generations = options.pop("max_generations", None)
        _say_unknown(options)
        self.result: Result | None = None
        self._filtered = 0
        self.bench: Bench
        self.progress: Progress
        self.rng = random.Random(self.settings.autotune_random_seed)

    @functools.cached_property
    def problem(self) -> Problem:
        """The kernel with these arguments."""
        if isinstance(self.kernel, Problem):
            return self.kernel
        made: Problem = self.kernel.tuning_problem(self.args)
        return made

    @property
    def space(self) -> Space:
        """What the search varies."""
        return self.problem.space

    # -- the frame of every search ----------------------------------------------------------------

    def autotune(self, *, skip_cache: bool = False) -> Config:
        """Measure, and return the best config."""
        start = time.perf_counter()
        if self.problem.isolated and self.settings.autotune_benchmark_subprocess:
            runner.server().start()
        self.bench = Bench(
            self.problem, start + self.budget, bool(self.settings.autotune_accuracy_check)
        )
        if self.settings.autotune_log_search_space:
            log.info("%s varies\n%s", self.problem.name, self.space.describe())
        interrupted = False
        with Progress(self.bench, self.settings, self.budget) as self.progress:
            try:
                for _ in range(max(1, self.settings.autotune_best_of_k)):
                    self.search()
                self.bench.confirm()
            except KeyboardInterrupt:
                interrupted = True
                log.warning("%s: interrupted, the best so far is kept", self.problem.name)
                if self.bench.best is None:
                    raise
            finally:
                self.bench.close()
            self.progress.update()
        self.result = self._result(interrupted)
        self._log()
        return self.result.config

    def search(self) -> None:
        """Measure what this kind of search measures."""
        raise NotImplementedError

    def _result(self, interrupted: bool) -> Result:
        bench, best = self.bench, self.bench.best
        if best is None:
            raise exc.NoConfigFound(_reasons(bench.rejected, self._filtered))
        return Result(
            best.config,
            bench.seconds * best.score,
            bench.seconds,
            len(bench.candidates),
            tuple(bench.rejected.items()),
            bench.noise,
            interrupted,
        )

    def _log(self) -> None:
        result = self.result
        assert result is not None
        log.info(
            "%s: %.1f us, %.2f times the default's speed, with %s (%d tried, %d rejected, noise "
            "%.1f %%)",
            self.problem.name, result.seconds * 1e6, result.speedup, result.config, result.tried,
            len(result.rejected), result.noise * 100,
        )  # fmt: skip
        if self.settings.autotune_log_level and self.progress._live is not None and result.rejected:
            for config, why in result.rejected[:3]:
                log.warning("%s: rejected: %s: %s", self.problem.name, config, why)

    # -- for the kinds ----------------------------------------------------------------------------

    def measure(self, configs: Sequence[Config], strict: bool = False) -> dict[Config, float]:
        """Scores of the configs that work and are allowed; 1 is the default's time."""
        wanted = [self._overridden(c) for c in configs]
        allowed = [c for c in wanted if self._allowed(c)]
        self._filtered += len(wanted) - len(allowed)
        found: dict[Config, float] = {}
        batch = BATCH if self.problem.shared else 1  # arguments of their own take memory
        for place in range(0, len(allowed), batch):
            found |= self.bench.measure(allowed[place : place + batch], strict)
            self.progress.update()
        return found

    def measure_points(self, points: Sequence[Point]) -> dict[Point, float]:
        """The same for points of the space."""
        configs = {point: self._overridden(self.space.config(point)) for point in points}
        scores = self.measure(list(configs.values()))
        return {point: scores[config] for point, config in configs.items() if config in scores}

    def seeds(self) -> list[Config]:
        """The configs to start with: default, given ones, those of similar problems."""
        mine = configs_of(self.settings.autotune_seed_configs or (), "autotune_seed_configs")
        most = self.settings.autotune_best_available_max_configs
        near = [] if self.settings.disable_autotuner_heuristics else list(self.problem.seeds)[:most]
        return list(dict.fromkeys([self.problem.default, *self.configs, *mine, *near]))

    def is_over(self, generation: int) -> bool:
        """Whether time, or the number of rounds that the settings allow, is used up; or whether
        the best config is as fast as memory.
        """
        most = self.most_generations
        if most is None:
            most = self.settings.autotune_max_generations
        if self.bench.is_over or (most is not None and generation >= most):
            return True
        if self.bench.is_at_limit:
            log.info("%s: memory is the limit, nothing is left to find", self.problem.name)
        return self.bench.is_at_limit

    def _overridden(self, config: Config) -> Config:
        overrides = self.settings.autotune_config_overrides
        return Config.from_dict({**config.config, **overrides}) if overrides else config

    def _allowed(self, config: Config) -> bool:
        allowed = self.settings.autotune_config_filter
        return allowed is None or bool(allowed(config))


class FiniteSearch(BaseSearch):
    """The best of the given configs. All of them are measured, however long that takes."""

    def __init__(
        self, bound_kernel: Any, args: Sequence[Any] = (), configs: Iterable[Any] = (), **more: Any
    ) -> None:
        chosen = list(configs) or list(getattr(bound_kernel, "configs", ()))
        super().__init__(bound_kernel, args, chosen, **more)
        if "budget" not in more and self.settings.autotune_budget_seconds is None:
            self.budget = math.inf
        if len(self.configs) < 2:
            raise exc.NotEnoughConfigs(len(self.configs))

    def search(self) -> None:
        self.measure(self.configs, strict=True)


class RandomSearch(BaseSearch):
    """Random configs until the time is up, or ``count`` of them were measured."""

    def __init__(
        self, bound_kernel: Any, args: Sequence[Any] = (), count: int | None = None, **options: Any
    ) -> None:
        super().__init__(bound_kernel, args, **options)
        self.count = count

    def search(self) -> None:
        self.measure(self.seeds(), strict=True)
        seen = {self.space.point(c) for c in self.bench.candidates}
        generation = misses = 0
        while not self.is_over(generation) and misses < 200:
            points: list[Point] = []
            room = BATCH if self.count is None else self.count - len(seen)
            if room <= 0:
                break
            while len(points) < min(BATCH, room) and misses < 200:
                point = self.space.random(self.rng)
                misses = misses + 1 if point in seen else 0
                if point not in seen:
                    seen.add(point)
                    points.append(point)
            self.measure_points(points)
            generation += 1


class PatternSearch(BaseSearch):
    """From the best of the seeds to better neighbours, until none is better; then from better ones
    among some random configs, until there are none.
    """

    def search(self) -> None:
        self.measure(self.seeds(), strict=True)
        self._seen: set[Point] = {self.space.point(c) for c in self.bench.candidates}
        generation = misses = 0
        while not self.is_over(generation) and misses < ELSEWHERE:
            if not self._step():
                misses = 0 if self._look_elsewhere() else misses + 1
            generation += 1

    def _look_elsewhere(self) -> bool:
        """Try a few random configs; whether one is better than the best so far."""
        best = self.bench.best
        points = {self.space.random(self.rng) for _ in range(BATCH)} - self._seen
        self._seen |= points
        self.measure_points(sorted(points))
        return self.bench.best is not best

    def _step(self) -> bool:
        """Try around the best so far; whether there was anything to try."""
        best = self.bench.best
        here = self.space.point(self.problem.default if best is None else best.config)
        for ring in self.rings(here):
            points = [p for p in ring if p not in self._seen]
            for place in range(0, len(points), BATCH):
                if self.bench.is_over:
                    return False
                chosen = points[place : place + BATCH]
                self._seen |= set(chosen)
                self.measure_points(chosen)
            if self.bench.best is not best:
                return True
        return False

    def rings(self, here: Point) -> Iterable[list[Point]]:
        """Groups of points around one, nearer ones first; a later group needs no better earlier."""
        near = self.space.neighbours(here)
        yield near
        yield self.space.diagonals(here)
        far = {p for n in near for p in self.space.neighbours(n)} - {here, *near}
        yield self.rng.sample(sorted(far), min(len(far), 3 * BATCH))


class LFBOPatternSearch(PatternSearch):
    """The pattern search where a model chooses among neighbours and their neighbours."""

    def rings(self, here: Point) -> Iterable[list[Point]]:
        for _ in range(3):
            near = self.space.neighbours(here)
            wide = {*near, *(p for n in near for p in self.space.neighbours(n))}
            fresh = sorted(wide - self._seen)
            if not fresh:
                return
            model = self.model()
            fresh.sort(key=lambda p: model.predict(self.space.features(p)))
            yield fresh[:BATCH]

    def model(self) -> Any:
        """What predicts scores from those measured so far."""
        return surrogate.Neighbours(*self.measured())

    def measured(self) -> tuple[list[list[float]], list[float]]:
        """Features and scores; what failed counts as slow."""
        scores = {self.space.point(c): k.score for c, k in self.bench.candidates.items()}
        scores |= {self.space.point(c): 4.0 for c in self.bench.rejected}
        rows = [(self.space.features(p), min(s, 4.0)) for p, s in scores.items()]
        return [r for r, _ in rows], [s for _, s in rows]


class LFBOTreeSearch(LFBOPatternSearch):
    """The same with randomised trees as the model."""

    def model(self) -> Any:
        return surrogate.Trees(*self.measured(), self.rng)


class DifferentialEvolutionSearch(BaseSearch):
    """A population of configs whose differences, added to members, make the next ones."""

    def search(self) -> None:
        self.measure(self.seeds(), strict=True)
        members = {self.space.point(c): k.score for c, k in self.bench.candidates.items()}
        fresh = {self.space.random(self.rng) for _ in range(max(0, POPULATION - len(members)))}
        members |= self.measure_points(sorted(fresh - members.keys()))
        seen = set(members)
        generation = misses = 0
        while not self.is_over(generation) and len(members) >= 4 and misses < 5:
            trials = self.trials(members, seen)
            misses = 0 if trials else misses + 1
            seen |= set(trials.values())
            scores = self.measure_points(list(trials.values()))
            for parent, child in trials.items():
                if scores.get(child, math.inf) < members[parent]:
                    del members[parent]
                    members[child] = scores[child]
            generation += 1

    def trials(self, members: dict[Point, float], seen: set[Point]) -> dict[Point, Point]:
        """A child for each member, where there is one that was not tried."""
        found: dict[Point, Point] = {}
        for parent in members:
            child = self.child(parent, list(members))
            if child not in seen and child not in found.values():
                found[parent] = child
        return found

    def child(self, parent: Point, members: list[Point]) -> Point:
        """One member with the difference of two others added, in some places."""
        a, b, c = self.rng.sample([m for m in members if m != parent], 3)
        forced = self.rng.randrange(max(1, len(parent)))
        moved = list(parent)
        for place, dimension in enumerate(self.space.dimensions):
            if place != forced and self.rng.random() > CROSSOVER:
                continue
            step = MUTATION * (b[place] - c[place])
            number = round(a[place] + step + self.rng.uniform(-0.5, 0.5))
            moved[place] = min(max(number, 0), len(dimension.values) - 1)
        return tuple(moved)


class DESurrogateHybrid(DifferentialEvolutionSearch):
    """The same with several children for each member, of which a model keeps the most promising."""

    def trials(self, members: dict[Point, float], seen: set[Point]) -> dict[Point, Point]:
        rows = [self.space.features(p) for p in members]
        model = surrogate.Neighbours(rows, list(members.values()))
        found: dict[Point, Point] = {}
        for parent in members:
            children = {self.child(parent, list(members)) for _ in range(6)}
            fresh = sorted(children - seen - set(found.values()))
            if fresh:
                found[parent] = min(fresh, key=lambda p: model.predict(self.space.features(p)))
        most = sorted(found, key=lambda p: model.predict(self.space.features(found[p])))
        return {p: found[p] for p in most[: max(2, len(most) // 2)]}


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
DEFAULT = "PatternSearch"


def search_named(name: str = "") -> type[BaseSearch]:
    """The class of this name; of the one that the environment names; the default one."""
    chosen = name or settings.flag("AUTOTUNER") or DEFAULT
    if chosen not in SEARCHES:
        raise exc.invalid_option(
            "search" if name else "search (HELION_AUTOTUNER)", chosen, SEARCHES
        )
    return SEARCHES[chosen]


def autotune_multi(
    problems: Sequence[Problem], configs: Sequence[Config], aggregation: str
) -> Config:
    """The config that is best over several problems of one kernel."""
    if aggregation not in ("geomean", "max"):
        raise exc.InvalidValue("aggregation", aggregation, "'geomean' or 'max'")
    totals: dict[Config, list[float]] = {}
    for problem in problems:
        bench = Bench(problem, check=bool(problem.settings.autotune_accuracy_check))
        try:
            scores = bench.measure(list(configs))
        finally:
            bench.close()
        fastest = min(scores.values(), default=1.0)
        for config, score in scores.items():
            totals.setdefault(config, []).append(score / fastest)
    whole = {c: rows for c, rows in totals.items() if len(rows) == len(problems)}
    if not whole:
        raise exc.NoConfigFound(": no config works for all sets of arguments")
    joined = max if aggregation == "max" else _geomean
    return min(whole, key=lambda config: joined(whole[config]))


def _geomean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


# ---------------------------------------------------------------------- what users hand over


def arguments_of(args: Any, usage: str) -> tuple[Any, ...]:
    """The arguments of a kernel, which are given as one tuple."""
    if not isinstance(args, list | tuple):
        kind = type(args).__name__
        raise exc.InvalidAPIUsage(f"the arguments are a tuple, not a {kind}: {usage}")
    return tuple(args)


def configs_of(configs: Any, name: str) -> list[Config]:
    """Several configs, as users write them; one stands for itself."""
    if isinstance(configs, Config):
        return [configs]
    if isinstance(configs, Mapping | str):
        raise exc.InvalidConfig(f"{name}: a list of configs, got {configs!r}")
    return [Config.from_dict(c) for c in configs]


def seconds_of(budget: Any) -> float:
    """A budget in seconds."""
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not number or not budget >= 0:
        raise exc.InvalidValue("budget", budget, "seconds, at least 0")
    return float(budget)


OPTIONS = ("algorithm", "budget", "force", "max_generations", "skip_cache")


def _say_unknown(options: Mapping[str, Any]) -> None:
    """Options that have no effect: a misspelt one is an error, others are of other searches."""
    for name in options:
        if difflib.get_close_matches(name, OPTIONS, cutoff=0.75):
            raise exc.invalid_option("option of a search", name, OPTIONS)
        log.warning("the option %r of a search has no effect here", name)


def _reasons(rejected: Mapping[Config, str], filtered: int) -> str:
    """Why nothing is left: each reason once, with the first config that it was found for."""
    groups: dict[str, list[Config]] = {}
    for config, why in rejected.items():
        groups.setdefault(why, []).append(config)
    lines = [
        f"{why} ({len(found)} configs, the first: {found[0]})" if len(found) > 1
        else f"{why} ({found[0]})"
        for why, found in groups.items()
    ]  # fmt: skip
    if filtered:
        lines.append(f"autotune_config_filter allows none of {filtered} configs")
    return ": " + "; ".join(lines) if lines else ""


def _budget(chosen: settings.Settings) -> float:
    if chosen.autotune_budget_seconds is not None:
        return float(chosen.autotune_budget_seconds)
    return BUDGET[chosen.autotune_effort]
