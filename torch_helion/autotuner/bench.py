"""Admitting candidates and timing them against each other.

In: configs of a problem. Out: :class:`Candidate` with scores: time as a share of the default's. A
candidate is compiled and run once in a process of its own, its results and every byte around them
are judged, and only then it is timed, in turn with the best so far. Whatever fails is named and
costs one candidate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torch_helion import _logging, exc
from torch_helion.autotuner import machine_facts
from torch_helion.autotuner import runner as runners
from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.problem import Instance, Judge, Prepared, Problem
from torch_helion.autotuner.runner import ChildRunner, Failed, Hangs, Job, LocalRunner
from torch_helion.config import Config

log = _logging.get_logger("tune")

SAMPLE_SECONDS = 1e-3
"""Least time of one sample: short calls are repeated."""
ROUNDS = 7
"""Samples of each candidate of a contest."""
HOPELESS = 1.15
"""A candidate that is slower than the best by this factor in each of the first rounds leaves."""
MARGIN = 0.02
"""A better candidate is better by at least this share."""
MOST_ARENAS = 3
"""Arguments that are kept at a time, where each config has its own."""


@dataclasses.dataclass(eq=False)
class Candidate:
    """A config that works."""

    number: int
    config: Config
    text: str
    instance: Instance
    arena: int
    count: int = 1
    """calls of one sample"""
    first: float = math.inf
    """seconds of a call, roughly"""
    samples: list[float] = dataclasses.field(default_factory=list)
    score: float = math.inf
    """time as a share of the default config's"""


class Bench:
    """The measurements of one search."""

    def __init__(self, problem: Problem, deadline: float = math.inf, check: bool = True) -> None:
        self.problem = problem
        self.deadline = deadline
        self.check = check
        isolated = problem.isolated and runners.can_fork()
        isolated &= problem.settings.autotune_benchmark_fn is None
        isolated &= problem.settings.autotune_benchmark_subprocess
        self.runner: ChildRunner | LocalRunner = ChildRunner() if isolated else LocalRunner()
        self.candidates: dict[Config, Candidate] = {}
        self.rejected: dict[Config, str] = {}
        self.baseline: Candidate | None = None
        """the default config, or the first that works"""
        self.best: Candidate | None = None
        self.seconds = math.nan
        """of a call with the baseline"""
        self.noise = 0.0
        """relative deviation of repeated measurements"""
        self._by_text: dict[tuple[str, int], Candidate] = {}
        self._numbers = itertools.count()
        self._arenas: dict[Instance, int] = {}
        self._judges: dict[Instance, Judge | None] = {}
        if isolated:
            runners.server().start()

    def close(self) -> None:
        """End the process of this search."""
        self.runner.close()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self.deadline

    @property
    def is_at_limit(self) -> bool:
        """Whether the best candidate is as fast as memory."""
        best = self.best
        if best is None:
            return False
        instance, seconds = best.instance, self.seconds * best.score
        return machine_facts.memory_is_the_limit(
            seconds, instance.tensors, instance.written, instance.updated
        )

    # -- admission --------------------------------------------------------------------------------

    def admit(self, config: Config, strict: bool = False) -> Candidate | None:
        """The candidate of a config; None if it fails. ``strict``: an invalid config raises."""
        if config in self.candidates or config in self.rejected:
            return self.candidates.get(config)
        try:
            prepared = self.problem.prepare(config)
        except exc.InvalidConfig as error:
            if strict:
                raise
            self._reject(config, str(error))
            return None
        except (exc.Base, RuntimeError, MemoryError) as error:
            self._reject(config, f"{type(error).__name__}: {error}")
            return None
        arena = self._arena(prepared.instance)
        known = self._by_text.get((prepared.text, arena))
        if known is None:
            known = self._by_text[prepared.text, arena] = self._new(config, prepared, arena)
            try:
                self._try(known)
            except Failed as error:
                del self._by_text[prepared.text, arena]
                self.runner.drop([known.number])
                if not self._is_late(error):
                    self._reject(config, str(error))
                return None
        self.candidates[config] = known
        return known

    def _new(self, config: Config, prepared: Prepared, arena: int) -> Candidate:
        number = next(self._numbers)
        return Candidate(number, config, prepared.text, prepared.instance, arena)

    def _arena(self, instance: Instance) -> int:
        if instance not in self._arenas:
            if len(self._arenas) >= MOST_ARENAS:
                self._drop_an_arena()
            number = next(self._numbers)
            self.runner.attach(number, Arena(instance.tensors, instance.written))
            self._arenas[instance] = number
        return self._arenas[instance]

    def _drop_an_arena(self) -> None:
        """Where each config has arguments of its own: those of the best two stay."""
        kept = {c.arena for c in (self.best, self.baseline) if c is not None}
        for instance, number in list(self._arenas.items()):
            if number not in kept:
                gone = [c for c in self._by_text.values() if c.arena == number]
                for candidate in gone:
                    del self._by_text[candidate.text, number]
                self.runner.drop([c.number for c in gone], [number])
                del self._arenas[instance]
                return

    def _try(self, candidate: Candidate) -> None:
        chosen = self.problem.settings
        judge = self._judge_of(candidate) if self.check else None
        job = Job(candidate.number, candidate.text, candidate.arena, tuple(candidate.instance.ints))
        try:
            self.runner.load(job, self._limit(chosen.autotune_compile_timeout, 10.0))
        except runners.Unavailable as error:
            self._stay_here(error)
            self.runner.load(job, 0.0)
        self.deadline += self.runner.starting  # no part of the search: once for a process
        self.runner.starting = 0.0
        self.runner.run(candidate.number, self._run_limit())
        self._judge(candidate, judge)
        first = self._time(candidate, 1)
        candidate.count = max(1, min(1000, int(SAMPLE_SECONDS / max(first, 1e-7))))
        candidate.first = min(first, self._time(candidate, candidate.count))
        candidate.count = max(1, min(1000, int(SAMPLE_SECONDS / max(candidate.first, 1e-7))))

    def _stay_here(self, error: Exception) -> None:
        """Measure in this process: where no other can be had, that is better than not at all."""
        log.warning("%s is measured in this process: %s", self.problem.name, error)
        local = LocalRunner()
        for number, arena in self.runner.arenas.items():
            local.attach(number, arena)
        self.runner = local

    def _judge_of(self, candidate: Candidate) -> Judge | None:
        """Made at the first use, while the other process is starting."""
        instance = candidate.instance
        if instance not in self._judges and instance.make_judge is not None:
            arena = self.runner.arenas[candidate.arena]
            self._judges[instance] = instance.make_judge(arena)
        return self._judges.get(instance)

    def _judge(self, candidate: Candidate, judge: Judge | None) -> None:
        """Raise Failed unless the last run gave the right results and touched nothing else."""
        arena, instance = self.runner.arenas[candidate.arena], candidate.instance
        outputs = arena.outputs()
        stray = arena.stray_write(instance.names)
        if stray is not None:
            raise Failed(stray)
        if judge is not None:
            wrong = judge(outputs)
            if wrong is not None:
                raise Failed(f"wrong results: {wrong}")
        elif self.check:  # nobody knows better: what follows must agree with the first one
            log.info("%s: judged by the results of %s", self.problem.name, candidate.config)
            self._judges[instance] = agreement(outputs)

    def _reject(self, config: Config, why: str) -> None:
        """Name a config that fails; the first line says it all, a log gets the rest."""
        first, _, rest = why.strip().partition("\n")
        self.rejected[config] = first
        log.info("%s: rejected: %s: %s", self.problem.name, config, first)
        if rest:
            log.debug("%s", why)

    def _run_limit(self) -> float:
        limit = float(self.problem.settings.autotune_benchmark_timeout)
        if self.baseline is None or not self.problem.settings.autotune_adaptive_timeout:
            return limit
        return self._limit(limit, max(1.5, 30 * self.baseline.first))

    def _limit(self, most: float, usual: float) -> float:
        """Seconds for a step: ``usual`` once there is something better to fall back to."""
        if self.baseline is None or not self.problem.settings.autotune_adaptive_timeout:
            return float(most)
        left = max(self.deadline - time.perf_counter(), 0.0)
        return min(float(most), usual, left + 1.0)

    # -- timing -----------------------------------------------------------------------------------

    def _time(self, candidate: Candidate, count: int) -> float:
        own = self.problem.settings.autotune_benchmark_fn
        updated = candidate.instance.updated
        if own is not None:
            return float(own([lambda: self.runner.run(candidate.number, 60.0)])[0])
        limit = self._run_limit()
        seconds = self.runner.time(candidate.number, count, updated, limit)
        return seconds + candidate.instance.host_seconds

    def contest(
        self, challengers: Iterable[Candidate], rounds: int = ROUNDS
    ) -> dict[Candidate, float]:
        """Time candidates in turn with the best so far; their times as shares of its time."""
        best = self.best
        assert best is not None
        active = [c for c in dict.fromkeys(challengers) if c is not best]
        for candidate in (best, *active):
            candidate.samples = []
        lost: dict[Candidate, float] = {}
        gone: set[Candidate] = set()
        for turn in range(rounds):
            for candidate in (best, *active):
                with self._failing(candidate, gone):
                    candidate.samples.append(self._time(candidate, candidate.count))
            if turn >= 1:
                for candidate in [c for c in active if self._is_hopeless(c, best)]:
                    active.remove(candidate)
                    lost[candidate] = _ratio(candidate, best)
            active = [c for c in active if c not in gone]
            if not active or (turn >= 2 and self.is_over):
                break
        if len(best.samples) > 2:
            self.noise = _spread(best.samples)
        return {**lost, **{c: _ratio(c, best) for c in active}}

    @contextlib.contextmanager
    def _failing(self, candidate: Candidate, gone: set[Candidate]) -> Any:
        try:
            yield
        except Failed as error:
            if candidate is self.best:
                raise exc.AutotuneError(f"{self.problem.name}: the best config {error}") from None
            gone.add(candidate)
            for config in [c for c, known in self.candidates.items() if known is candidate]:
                del self.candidates[config]
                if not self._is_late(error):
                    self._reject(config, str(error))

    def _is_late(self, error: Failed) -> bool:
        """Whether a candidate was stopped because the search is over: that is no fault of its."""
        return isinstance(error, Hangs) and self.best is not None and self.is_over

    def _is_hopeless(self, candidate: Candidate, best: Candidate) -> bool:
        return min(candidate.samples, default=0.0) > HOPELESS * statistics.median(best.samples)

    # -- what a search asks for -------------------------------------------------------------------

    def measure(self, configs: Sequence[Config], strict: bool = False) -> dict[Config, float]:
        """Scores of those configs that work; changes the best so far if one is better."""
        found: dict[Config, Candidate] = {}
        for config in configs:
            if self.best is not None and self.is_over:
                break
            candidate = self.admit(config, strict)
            if candidate is not None:
                found[config] = candidate
                if self.best is None:
                    self._begin(candidate)
        fresh = [c for c in dict.fromkeys(found.values()) if c.score == math.inf]
        if fresh:
            self._rank(fresh)
        return {config: c.score for config, c in found.items() if config in self.candidates}

    def _begin(self, candidate: Candidate) -> None:
        """The first that works is what all others are measured against."""
        self.best = self.baseline = candidate
        candidate.score = 1.0
        samples = [self._time(candidate, candidate.count) for _ in range(3)]
        self.seconds = statistics.median(samples)

    def _rank(self, fresh: list[Candidate]) -> None:
        best = self.best
        assert best is not None
        threshold = self.problem.settings.autotune_rebenchmark_threshold
        close = [c for c in fresh if c.first <= threshold * best.first]
        for candidate in fresh:
            candidate.score = best.score * candidate.first / best.first
        ratios = self.contest(close) if close else {}
        for candidate, ratio in ratios.items():
            candidate.score = best.score * ratio
        leader = min(ratios, key=lambda c: ratios[c], default=best)
        if leader is not best and ratios[leader] < 1 - self.margin:
            self.best = leader

    @property
    def margin(self) -> float:
        """By how much a candidate must be faster to count as faster."""
        return max(MARGIN, self.noise / math.sqrt(ROUNDS))

    def confirm(self, rounds: int = 9) -> float:
        """Time the best against the default once more; without a clear win the default is best."""
        best, default = self.best, self.baseline
        if best is None or default is None or best is default:
            return 1.0
        self.best = default
        ratio = self.contest([best], rounds).get(best, math.inf)
        if ratio < 1 - self.margin:
            self.best = best
            best.score = ratio
        return min(ratio, 1.0)


def agreement(wanted: Sequence[torch.Tensor]) -> Judge:
    """A judge that knows results of another config only."""

    def judge(outputs: Sequence[torch.Tensor]) -> str | None:
        close = all(is_close(a, b) for a, b in zip(outputs, wanted, strict=True))
        return None if close else "they differ from those of the config before"

    return judge


def is_close(
    got: torch.Tensor, want: torch.Tensor, atol: float | None = None, rtol: float | None = None
) -> bool:
    """Whether floats are close, at loose tolerances unless given, and all else is equal."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if not got.dtype.is_floating_point:
        return torch.equal(got, want)
    relative, absolute = 1e-2 if rtol is None else rtol, 1e-2 if atol is None else atol
    return torch.allclose(got.double(), want.double(), relative, absolute, equal_nan=True)


def _ratio(candidate: Candidate, best: Candidate) -> float:
    """Median of the ratios within each round: drift of the machine hits both sides alike."""
    pairs = zip(candidate.samples, best.samples, strict=False)
    return statistics.median([a / b for a, b in pairs] or [math.inf])


def _spread(samples: Sequence[float]) -> float:
    middle = statistics.median(samples)
    return 1.4826 * statistics.median(abs(s - middle) for s in samples) / max(middle, 1e-12)
