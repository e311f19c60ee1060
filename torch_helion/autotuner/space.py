"""What a search varies: one dimension for each choice, a point for each config.

In: a kernel's :class:`ConfigSpec`, its default config, the target's own knobs. Out: :class:`Space`,
which gives neighbours, random points and the config of a point.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch_helion.config import Config
from torch_helion.config_spec import PERSISTENT, ConfigSpec, PowerOfTwoFragment, next_power_of_2

Point = tuple[int, ...]
"""Number of the chosen value in each dimension."""

GROUPINGS = (1, 2, 4, 8, 16)
MOST_ORDERS = 6
"""Permutations of one loop's dimensions that are tried."""


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One choice: a key of the config, perhaps a place in its list, and what can stand there."""

    key: str
    place: int | None
    values: tuple[Any, ...]
    ordered: bool
    """whether values next to each other are alike"""

    @property
    def name(self) -> str:
        """As a log shows it."""
        return self.key if self.place is None else f"{self.key}[{self.place}]"


class Space:
    """All configs of a kernel that a search may try."""

    def __init__(
        self, spec: ConfigSpec, default: Config, knobs: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self.spec = spec
        self.default = default
        rows = _dimensions(spec, dict(knobs or {}))
        self.dimensions = [d for d in (_with_default(d, default) for d in rows) if d is not None]

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(d.values) for d in self.dimensions)

    def config(self, point: Point) -> Config:
        """The config of a point."""
        values = self.default.config
        for dimension, number in zip(self.dimensions, point, strict=True):
            value = dimension.values[number]
            if dimension.place is None:
                values[dimension.key] = value
            else:
                values[dimension.key][dimension.place] = value
        return Config.from_dict({k: v for k, v in values.items() if v is not None})

    def point(self, config: Config) -> Point:
        """The point of a config; what the space does not have is replaced by the nearest value."""
        complete = {**self.default.config, **config.config}
        found = []
        for dimension in self.dimensions:
            value = complete[dimension.key]
            if dimension.place is not None:
                value = value[dimension.place]
            found.append(_nearest(dimension, value))
        return tuple(found)

    def neighbours(self, point: Point) -> list[Point]:
        """Points that differ in one place, by one step where steps mean something."""
        found = []
        for place, dimension in enumerate(self.dimensions):
            for number in _beside(dimension, point[place]):
                found.append((*point[:place], number, *point[place + 1 :]))
        return found

    def diagonals(self, point: Point) -> list[Point]:
        """Points that differ by one step in two ordered places: larger one way, smaller another."""
        found = []
        ordered = [i for i, d in enumerate(self.dimensions) if d.ordered]
        for a, b in itertools.combinations(ordered, 2):
            for up, down in itertools.product((-1, 1), repeat=2):
                moved = list(point)
                moved[a] += up
                moved[b] += down
                if all(0 <= moved[i] < len(self.dimensions[i].values) for i in (a, b)):
                    found.append(tuple(moved))
        return found

    def random(self, rng: random.Random) -> Point:
        """Any point."""
        return tuple(rng.randrange(len(d.values)) for d in self.dimensions)

    def points(self) -> Iterator[Point]:
        """All points."""
        return itertools.product(*(range(len(d.values)) for d in self.dimensions))

    def features(self, point: Point) -> list[float]:
        """The point as numbers for a model: positions of ordered values, flags of the others."""
        found: list[float] = []
        for dimension, number in zip(self.dimensions, point, strict=True):
            if dimension.ordered:
                found.append(number / max(1, len(dimension.values) - 1))
            else:
                found += [float(number == i) for i in range(1, len(dimension.values))]
        return found

    def describe(self) -> str:
        """The dimensions, one a line."""
        lines = [f"{d.name}: {', '.join(map(str, d.values))}" for d in self.dimensions]
        return "\n".join([*lines, f"{self.size} configs"])


def _dimensions(spec: ConfigSpec, knobs: Mapping[str, Sequence[Any]]) -> Iterator[Dimension]:
    for place, block in enumerate(spec.block_sizes):
        yield Dimension("block_sizes", place, block.fragment().values(), True)
    if "loop_orders" in knobs:
        for place, dims in enumerate(spec.loop_orders):
            orders = itertools.islice(itertools.permutations(range(dims)), MOST_ORDERS)
            yield Dimension("loop_orders", place, tuple(map(list, orders)), False)
    if "l2_groupings" in knobs:
        for place in range(spec.l2_groupings):
            yield Dimension("l2_groupings", place, GROUPINGS, True)
    for place, extent in enumerate(spec.reduction_loops):
        chunks = [1 << k for k in range(4, next_power_of_2(max(extent, 1)).bit_length() - 1)]
        yield Dimension("reduction_loops", place, (*chunks, None), True)
    for key in ("pid_type", "unroll", "streaming_stores"):
        if key in knobs:
            values = [v for v in knobs[key] if not _needs_other(spec, key, v)]
            yield Dimension(key, None, tuple(values), key == "unroll")
    for name, fragment in spec.user_defined_tunables.items():
        yield Dimension(name, None, fragment.values(), isinstance(fragment, PowerOfTwoFragment))


def _needs_other(spec: ConfigSpec, key: str, value: Any) -> bool:
    """Whether the kernel cannot have this value."""
    return key == "pid_type" and spec.has_barrier and value not in PERSISTENT


def _with_default(dimension: Dimension, default: Config) -> Dimension | None:
    """The dimension with the default's value among its values; None if there is no choice."""
    value = default.get(dimension.key)
    if dimension.place is not None:
        value = value[dimension.place] if value else None
    values = dimension.values
    if value not in values and value is not None:
        values = (*values, value)
        if dimension.ordered and all(isinstance(v, int) for v in values):
            values = tuple(sorted(values))
    return dataclasses.replace(dimension, values=values) if len(values) > 1 else None


def _nearest(dimension: Dimension, value: Any) -> int:
    values = dimension.values
    if value in values:
        return values.index(value)
    if dimension.ordered and isinstance(value, int):
        numbers = [i for i, v in enumerate(values) if isinstance(v, int)]
        return min(numbers, key=lambda i: abs(math.log2(values[i] / max(value, 1))))
    return 0


def _beside(dimension: Dimension, number: int) -> list[int]:
    if not dimension.ordered:
        return [i for i in range(len(dimension.values)) if i != number]
    return [i for i in (number - 1, number + 1) if 0 <= i < len(dimension.values)]
