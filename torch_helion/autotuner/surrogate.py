"""A small model of a search's measurements: which untried configs are worth the time.

In: features and scores of what was measured. Out: a predicted score for what was not. Two kinds:
nearest neighbours (smooth), and randomised trees (sharp steps). Both fit in well under a
millisecond on the few dozen points of a search.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

Features = Sequence[float]


class Neighbours:
    """Mean of the nearest measurements, weighed by distance."""

    def __init__(self, rows: Sequence[Features], scores: Sequence[float], count: int = 4) -> None:
        self.rows, self.scores, self.count = list(rows), list(scores), count

    def predict(self, row: Features) -> float:
        """The expected score."""
        near = sorted((math.dist(row, r), s) for r, s in zip(self.rows, self.scores, strict=True))
        near = near[: self.count]
        weights = [1 / (d + 1e-3) for d, _ in near]
        total = sum(weights)
        return sum(w * s for w, (_, s) in zip(weights, near, strict=True)) / total if total else 1.0


class Trees:
    """Trees with random cuts, each fitted to a random part of the measurements."""

    def __init__(
        self, rows: Sequence[Features], scores: Sequence[float], rng: random.Random, count: int = 16
    ) -> None:
        pairs = list(zip(rows, scores, strict=True))
        self.trees = [_grow([rng.choice(pairs) for _ in pairs], rng) for _ in range(count)]

    def predict(self, row: Features) -> float:
        """The expected score."""
        return statistics.fmean(_leaf(tree, row) for tree in self.trees)


_Pairs = list[tuple[Features, float]]


def _grow(pairs: _Pairs, rng: random.Random) -> object:
    scores = [s for _, s in pairs]
    if len(pairs) <= 2 or max(scores) - min(scores) < 1e-6:
        return statistics.fmean(scores)
    best = min((_cut(pairs, rng) for _ in range(4)), key=lambda c: c[0])
    _, place, value = best
    low = [p for p in pairs if p[0][place] <= value]
    high = [p for p in pairs if p[0][place] > value]
    if not low or not high:
        return statistics.fmean(scores)
    return (place, value, _grow(low, rng), _grow(high, rng))


def _cut(pairs: _Pairs, rng: random.Random) -> tuple[float, int, float]:
    """A random cut, and the spread that is left on its two sides."""
    place = rng.randrange(len(pairs[0][0]))
    values = [row[place] for row, _ in pairs]
    value = rng.uniform(min(values), max(values))
    sides = ([s for r, s in pairs if r[place] <= value], [s for r, s in pairs if r[place] > value])
    return sum(len(s) * statistics.pvariance(s) for s in sides if s), place, value


def _leaf(tree: object, row: Features) -> float:
    while isinstance(tree, tuple):
        place, value, low, high = tree
        tree = low if row[place] <= value else high
    assert isinstance(tree, float)
    return tree
