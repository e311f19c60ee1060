"""What may be tuned about one kernel, and the check of a config against it.

What flows in: facts of a traced kernel (its tunable block sizes, loops, reductions, tunables of its
own). What flows out: :class:`ConfigSpec`, which completes a config with defaults or says what is
wrong with it; and the fragments, the kinds of values that a search can vary. Floor 0: the language
takes fragments from users, the front end makes specs, the tuner reads both.

Keys fall into three groups: those that act here, those of other targets that any program may name
(ignored), and those of one vendor's hardware (refused: a program that sets them needs them).
"""

from __future__ import annotations

import dataclasses
import difflib
import random
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch_helion import exc

PID_TYPES = ("flat", "xyz", "persistent_blocked", "persistent_interleaved")
PERSISTENT = ("persistent_blocked", "persistent_interleaved")

# ---------------------------------------------------------------------- fragments


class ConfigSpecFragment:
    """A kind of value that a search can vary: a default, neighbours, random values."""

    def default(self) -> Any:
        raise NotImplementedError

    def values(self) -> tuple[Any, ...]:
        """Every value, or a spread of them where there are many."""
        raise NotImplementedError

    def random(self) -> Any:
        return random.choice(self.values())

    def pattern_neighbors(self, current: Any) -> list[Any]:
        """The values next to ``current``."""
        values = self.values()
        at = values.index(current) if current in values else 0
        return [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]

    def accepts(self, value: Any) -> bool:
        return value in self.values()


def _known(name: str, *numbers: Any) -> None:
    """Bounds are numbers: what a size is, only a specialised kernel knows."""
    if any(type(n).__name__ == "SymInt" for n in numbers):
        raise exc.ConfigSpecFragmentWithSymInt(f"{name}({', '.join(map(str, numbers))})")


class PowerOfTwoFragment(ConfigSpecFragment):
    """Powers of two from ``low`` to ``high``; the default is ``low`` unless given."""

    def __init__(self, low: int, high: int, default_val: int | None = None, **named: int) -> None:
        default_val = named.pop("default", default_val)
        _no_more(named)
        _known("PowerOfTwoFragment", low, high)
        if not (_power_of_two(low) and _power_of_two(high) and low <= high):
            raise exc.InvalidAPIUsage(
                f"PowerOfTwoFragment({low}, {high}): powers of two, ascending"
            )
        self.low, self.high = low, high
        self.default_val = low if default_val is None else default_val

    def default(self) -> int:
        return min(max(self.default_val, self.low), self.high)

    def values(self) -> tuple[int, ...]:
        return tuple(1 << k for k in range(self.low.bit_length() - 1, self.high.bit_length()))


class IntegerFragment(ConfigSpecFragment):
    """Integers from ``low`` to ``high``; the default is ``low`` unless given."""

    def __init__(self, low: int, high: int, default_val: int | None = None, **named: int) -> None:
        default_val = named.pop("default", default_val)
        _no_more(named)
        _known("IntegerFragment", low, high)
        if low > high:
            raise exc.InvalidAPIUsage(f"IntegerFragment({low}, {high}): the range is empty")
        self.low, self.high = low, high
        self.default_val = low if default_val is None else default_val

    def default(self) -> int:
        return min(max(self.default_val, self.low), self.high)

    def values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))

    def accepts(self, value: Any) -> bool:
        return _is_int(value) and self.low <= value <= self.high

    def random(self) -> int:
        return random.randint(self.low, self.high)

    def pattern_neighbors(self, current: int) -> list[int]:
        return [v for v in (current - 1, current + 1) if self.low <= v <= self.high]


class EnumFragment(ConfigSpecFragment):
    """One of ``choices``; the first is the default. Neighbours are all the others."""

    def __init__(self, choices: Sequence[Any]) -> None:
        if not choices:
            raise exc.InvalidAPIUsage("EnumFragment needs at least one choice")
        self.choices = tuple(choices)

    def default(self) -> Any:
        return self.choices[0]

    def values(self) -> tuple[Any, ...]:
        return self.choices

    def pattern_neighbors(self, current: Any) -> list[Any]:
        return [c for c in self.choices if c != current]


class BooleanFragment(ConfigSpecFragment):
    """True or False; False is the default."""

    def default(self) -> bool:
        return False

    def values(self) -> tuple[bool, ...]:
        return (False, True)

    def pattern_neighbors(self, current: bool) -> list[bool]:
        return [not current]


class ListOf(ConfigSpecFragment):
    """A list of ``length`` values of one kind; neighbours differ in one place."""

    def __init__(self, inner: ConfigSpecFragment, length: int) -> None:
        self.inner, self.length = inner, length

    def default(self) -> list[Any]:
        return [self.inner.default() for _ in range(self.length)]

    def values(self) -> tuple[list[Any], ...]:
        return tuple([value] * self.length for value in self.inner.values())

    def random(self) -> list[Any]:
        return [self.inner.random() for _ in range(self.length)]

    def pattern_neighbors(self, current: Sequence[Any]) -> list[list[Any]]:
        found = []
        for place, value in enumerate(current):
            for other in self.inner.pattern_neighbors(value):
                found.append([*current[:place], other, *current[place + 1 :]])
        return found

    def accepts(self, value: Any) -> bool:
        fits = isinstance(value, list | tuple) and len(value) == self.length
        return fits and all(self.inner.accepts(v) for v in value)


# ---------------------------------------------------------------------- keys

ACTING = (
    "block_sizes",
    "loop_orders",
    "flatten_loops",
    "l2_groupings",
    "reduction_loops",
    "pid_type",
    "unroll",
    "streaming_stores",
)
"""Keys that change the code made here."""

IGNORED = (
    "range_unroll_factors",
    "range_num_stages",
    "range_multi_buffers",
    "range_flattens",
    "range_warp_specializes",
    "static_ranges",
    "num_warps",
    "num_stages",
    "num_sm_multiplier",
    "maxnreg",
    "indexing",
    "atomic_indexing",
    "load_eviction_policies",
    "load_cache_modifiers",
    "store_cache_modifiers",
    "epilogue_subtile",
    "host_tensor_descriptors",
    "reduction_fusion",
    "cross_loop_pipeline",
)
"""Keys that any program may set; a target that does not know one drops it."""

LAUNCH = {"num_warps": 4, "num_stages": 1, "indexing": "pointer"}
"""What a launch on a GPU has where a config says nothing."""

RANGES: dict[str, Any] = {
    "range_unroll_factors": 0,
    "range_num_stages": 0,
    "range_multi_buffers": None,
    "range_flattens": None,
    "range_warp_specializes": None,
    "static_ranges": False,
}
"""Options of loops inside, one entry for each loop → what an entry is by default."""

VENDOR = (
    "advanced_controls_file",
    "xcd_remap",
    "num_threads",
    "waves_per_eu",
    "matrix_instr_nonkdim",
    "num_ctas",
    "occupancy",
)
VENDOR_PREFIXES = ("pallas_", "cute_", "tcgen05_")

SINGULAR = {
    "block_size": "block_sizes",
    "loop_order": "loop_orders",
    "reduction_loop": "reduction_loops",
    "l2_grouping": "l2_groupings",
    "flatten_loop": "flatten_loops",
    "range_unroll_factor": "range_unroll_factors",
    "range_warp_specialize": "range_warp_specializes",
    "range_num_stage": "range_num_stages",
    "range_multi_buffer": "range_multi_buffers",
    "range_flatten": "range_flattens",
    "static_range": "static_ranges",
}
"""Spelling for a list of one entry → the key."""

RESERVED = frozenset((*ACTING, *IGNORED, *VENDOR, *SINGULAR))
"""Names that a tunable of a kernel cannot have."""


def is_vendor_key(key: str) -> bool:
    """Whether a key belongs to one vendor's hardware."""
    return key in VENDOR or key.startswith(VENDOR_PREFIXES)


# ---------------------------------------------------------------------- the spec


@dataclasses.dataclass
class BlockSizeSpec:
    """One tunable block size: its name, a typical extent, and its bounds."""

    name: str
    size_hint: int = 4096
    min_size: int = 1
    max_size: int | None = None

    @property
    def largest(self) -> int:
        """No block is larger: it would only hold masked lanes."""
        limit = self.size_hint if self.max_size is None else min(self.max_size, self.size_hint)
        return max(next_power_of_2(max(limit, 1)), self.min_size)

    def fragment(self) -> PowerOfTwoFragment:
        low = next_power_of_2(max(self.min_size, 1))
        return PowerOfTwoFragment(low, max(self.largest, low))


@dataclasses.dataclass
class ConfigSpec:
    """What may be tuned about one kernel. Lists have one entry for each entry of the config."""

    block_sizes: list[BlockSizeSpec] = dataclasses.field(default_factory=list)
    loop_orders: list[int] = dataclasses.field(default_factory=list)
    """number of dimensions of each loop with several"""
    flatten_loops: int = 0
    l2_groupings: int = 0
    reduction_loops: list[int] = dataclasses.field(default_factory=list)
    """typical extent of each whole-row dimension that can be cut into chunks"""
    range_loops: int | None = None
    """number of loops inside of the grid; None: not counted"""
    static_loops: int = 0
    """number of those whose bounds are constants"""
    grid_loops: int = 1
    """number of loops at the top: persistent kernels have an entry for each of these, too"""
    user_defined_tunables: dict[str, ConfigSpecFragment] = dataclasses.field(default_factory=dict)
    has_barrier: bool = False
    target: str = "llvm"
    defaults: Callable[[], Mapping[str, Any]] | None = None
    """the target's own choice of defaults"""

    def default_config(self) -> dict[str, Any]:
        """A complete set of values that is always valid."""
        values = dict(self.defaults()) if self.defaults is not None else {}
        return self.complete(values)

    def normalize(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config completed and checked; a mutable mapping is changed in place, too."""
        given = {k: v for k, v in config.items() if v is not None}
        plain = self.complete(_without_singulars(given), self._target_defaults)
        if isinstance(config, MutableMapping):
            config.clear()
            config.update(plain)
        return plain

    def _target_defaults(self) -> Mapping[str, Any]:
        return self.defaults() if self.defaults is not None else {}

    def complete(
        self,
        given: Mapping[str, Any],
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> dict[str, Any]:
        """``given`` with a value for every key of this kernel; raises ``exc.InvalidConfig``."""
        self._refuse_unknown(given)
        values = {**LAUNCH, **{k: v for k, v in given.items() if k in IGNORED}}
        _check_ignored(values)
        if self.block_sizes or "block_sizes" in given:
            sizes = given.get("block_sizes")
            if sizes is None:
                sizes = more().get("block_sizes")
            values["block_sizes"] = self._block_sizes(sizes)
        for key in ("unroll", "streaming_stores"):
            if key in given:
                values[key] = given[key]
        self._complete_loops(given, values)
        values["pid_type"] = self._pid_type(given.get("pid_type"))
        self._complete_ranges(given, values)
        for name, fragment in self.user_defined_tunables.items():
            value = given.get(name, fragment.default())
            if not fragment.accepts(value):
                raise exc.InvalidConfig(f"{name}: {value!r} is not one of its values")
            values[name] = value
        return values

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        known = {*ACTING, *IGNORED, *self.user_defined_tunables}
        for key in given:
            if is_vendor_key(key) and key not in known:
                raise exc.InvalidConfig(
                    f"{key} is a key of other hardware: target {self.target!r} does not have it. "
                    "Remove it from the config."
                )
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known | set(SINGULAR)), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise exc.InvalidConfig(f"Unknown config key {key!r}{hint}")

    def _block_sizes(self, sizes: Any) -> list[int]:
        if sizes is None:
            sizes = [default_block_size(self, spec) for spec in self.block_sizes]
        sizes = _list("block_sizes", sizes, len(self.block_sizes))
        found = []
        for spec, size in zip(self.block_sizes, sizes, strict=True):
            if not _is_int(size) or size < 1 or not _power_of_two(size):
                raise exc.InvalidConfig(
                    f"block_sizes: {size!r} for {spec.name!r} is not a positive power of two"
                )
            found.append(min(max(size, spec.min_size), spec.largest))
        return found

    def _complete_loops(self, given: Mapping[str, Any], values: dict[str, Any]) -> None:
        orders = [list(range(dims)) for dims in self.loop_orders]
        values["loop_orders"] = _list("loop_orders", given.get("loop_orders", orders), len(orders))
        for order, identity in zip(values["loop_orders"], orders, strict=True):
            if not isinstance(order, list | tuple) or sorted(order) != identity:
                raise exc.InvalidConfig(f"loop_orders: {order!r} is no permutation of {identity}")
        flat = given.get("flatten_loops", [False] * self.flatten_loops)
        values["flatten_loops"] = _list("flatten_loops", flat, self.flatten_loops)
        groups = given.get("l2_groupings", [1] * self.l2_groupings)
        values["l2_groupings"] = _list("l2_groupings", groups, self.l2_groupings)
        if any(not _is_int(g) or g < 1 for g in values["l2_groupings"]):
            raise exc.InvalidConfig(f"l2_groupings: {groups!r} must be positive integers")
        values["reduction_loops"] = self._reduction_loops(given)
        for key in ("loop_orders", "flatten_loops", "l2_groupings", "reduction_loops"):
            if not values[key]:
                del values[key]

    def _complete_ranges(self, given: Mapping[str, Any], values: dict[str, Any]) -> None:
        """Options of the loops inside; of the grid's own ones, in front, where it is a loop."""
        if self.range_loops is None:
            return
        grid = self.grid_loops if values["pid_type"] in PERSISTENT else 0
        counts = dict.fromkeys(RANGES, grid + self.range_loops)
        counts["static_ranges"] = self.static_loops
        for key, count in counts.items():
            entries = given.get(key, ())
            entries = list(entries) if isinstance(entries, list | tuple) else [entries]
            most = max(count, self.grid_loops + self.range_loops)
            if len(entries) > most:
                raise exc.InvalidConfig(
                    f"{key}: expected {count} {'entry' if count == 1 else 'entries'}, "
                    f"got {len(entries)}: {entries!r}"
                )
            if any(not _fits_range(key, e) for e in entries):
                raise exc.InvalidConfig(f"{key}: {entries!r} holds what it cannot be")
            entries += [RANGES[key]] * (count - len(entries))
            if entries and (key in given or key != "range_warp_specializes"):
                values[key] = entries

    def _reduction_loops(self, given: Mapping[str, Any]) -> list[int | None]:
        count = len(self.reduction_loops)
        loops = given.get("reduction_loops", [None] * count)
        if isinstance(loops, int):  # the singular spelling stands for all of them
            loops = [loops] * count
        loops = _list("reduction_loops", loops, count)
        found: list[int | None] = []
        for chunk, extent in zip(loops, self.reduction_loops, strict=True):
            if chunk is not None and (not _is_int(chunk) or chunk < 1 or not _power_of_two(chunk)):
                raise exc.InvalidConfig(f"reduction_loops: {chunk!r} is no power of two or None")
            found.append(None if chunk is None or chunk >= extent else chunk)
        return found

    def _pid_type(self, pid_type: Any) -> str:
        if pid_type is None:
            return "persistent_blocked" if self.has_barrier else "flat"
        if pid_type not in PID_TYPES:
            raise exc.InvalidConfig(f"pid_type: {pid_type!r} is not one of {list(PID_TYPES)}")
        if self.has_barrier and pid_type not in PERSISTENT:
            raise exc.BarrierRequiresPersistent(pid_type)
        return pid_type

    def fragments(self) -> dict[str, ConfigSpecFragment]:
        """What a search varies, by key; ``block_sizes`` as ``block_sizes[0]`` and so on."""
        found: dict[str, ConfigSpecFragment] = {}
        for place, spec in enumerate(self.block_sizes):
            found[f"block_sizes[{place}]"] = spec.fragment()
        found.update(self.user_defined_tunables)
        return found


def default_block_size(spec: ConfigSpec, block: BlockSizeSpec) -> int:
    """A block size that is valid on every machine, where no target says a better one."""
    tiled = len(spec.block_sizes)
    rows = 1
    for extent in spec.reduction_loops:
        rows *= next_power_of_2(max(extent, 1))
    if tiled <= 2 and rows <= 128:
        size = 32
    elif tiled <= 2 and rows <= 256:
        size = 16
    else:
        size = 16 if rows == 1 else 1
    return min(max(size, block.min_size), block.largest)


# ---------------------------------------------------------------------- helpers


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below ``n``; 1 for ``n`` < 1."""
    return 1 if n <= 1 else 1 << (int(n) - 1).bit_length()


def _without_singulars(given: Mapping[str, Any]) -> dict[str, Any]:
    """Singular spellings (of a plain dict; a Config has none any more) replaced."""
    found = dict(given)
    for singular, key in SINGULAR.items():
        if singular in found:
            value = found.pop(singular)
            if key in found:
                raise exc.InvalidConfig(f"Cannot specify both {singular} and {key}")
            found[key] = value if singular == "reduction_loop" else [value]
    return found


def _list(key: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise exc.InvalidConfig(f"{key}: expected a list of {count} entries, got {value!r}")
    if len(value) != count:
        raise exc.InvalidConfig(
            f"{key}: expected {count} {'entry' if count == 1 else 'entries'}, got {len(value)}: "
            f"{list(value)!r}"
        )
    return list(value)


def _check_ignored(values: Mapping[str, Any]) -> None:
    """Ignored keys may not hold what is wrong on every target."""
    for key in ("num_warps", "num_stages", "num_sm_multiplier"):
        if key in values and (not _is_int(values[key]) or values[key] < 1):
            raise exc.InvalidConfig(f"{key}: {values[key]!r} is no positive integer")
    if "num_warps" in values and not _power_of_two(values["num_warps"]):
        raise exc.InvalidConfig(f"num_warps: {values['num_warps']!r} is no power of two")
    for key, known in _NAMED.items():
        given = values.get(key, ())
        for name in given if isinstance(given, list | tuple) else (given,):
            if name not in known:
                raise exc.InvalidConfig(f"{key}: {name!r} is not one of {list(known)}")


_INDEXING = ("pointer", "block_ptr", "tensor_descriptor")
_NAMED: dict[str, tuple[Any, ...]] = {
    "indexing": _INDEXING,
    "atomic_indexing": _INDEXING,
    "load_eviction_policies": ("", "first", "last"),
    "load_cache_modifiers": ("", ".cg"),
    "store_cache_modifiers": ("", ".cs", ".wt"),
    "epilogue_subtile": (None, 2, 4),
}
"""Values of ignored keys that are names."""


def _fits_range(key: str, entry: Any) -> bool:
    if key in ("range_unroll_factors", "range_num_stages"):
        return _is_int(entry) and entry >= 0
    return entry is None or isinstance(entry, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _no_more(named: Mapping[str, Any]) -> None:
    if named:
        raise TypeError(f"unexpected arguments: {sorted(named)}")
