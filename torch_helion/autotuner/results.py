"""Results of searches: kept on disk, shared as files, found again by kernel and size.

In: what a search found for a kernel and sizes. Out: the config for other sizes of the same kernel:
that of the nearest ones, so that a new batch size never starts a search. What is read, from the
cache or from a file, is JSON that is checked field by field; a config that was found for other code
is refused, with the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import torch

from torch_helion import _hardware, _logging, exc, settings
from torch_helion.config import Config
from torch_helion.runtime import artifact_cache

log = _logging.get_logger("tune")

KIND = "tuned"
FORMAT, VERSION = "torch_helion configs", 1
MOST_VARIANTS = 64
"""Configs of one kernel that are kept."""
FARTHEST = 4.0
"""A size that differs by more than this many doublings makes it another matter."""
LARGEST_FILE = 64 << 20


@dataclasses.dataclass(frozen=True)
class KernelId:
    """What a result belongs to: sizes are not part of it."""

    name: str
    code: str
    """hash of the source and of what it refers to"""
    kind: str
    """dtypes, ranks, layouts and constants of the arguments"""
    family: str = ""
    """of many kernels that are looked after together (:func:`family_state`)"""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One result."""

    code: str
    kind: str
    sizes: tuple[int, ...]
    config: Config
    """empty: nothing is better than the default, whatever that is for other sizes"""
    seconds: float
    default_seconds: float

    @property
    def shape_class(self) -> tuple[int, ...]:
        """Equal for sizes of the same order of magnitude: one result is kept for each."""
        return tuple(n.bit_length() for n in self.sizes)

    def to_json(self) -> dict[str, Any]:
        """As files hold it."""
        values = dataclasses.asdict(self)
        return {**values, "sizes": list(self.sizes), "config": json.loads(self.config.to_json())}


def machine_class() -> str:
    """Machines of one class share results."""
    hardware = _hardware.probe()
    return (
        f"{hardware.architecture} {_hardware.llvm_cpu()} {hardware.vector_bytes * 8} bit "
        f"L2 {hardware.l2 >> 10}K threads {torch.get_num_threads()}"
    )


# ---------------------------------------------------------------------- finding


def nearest(kernel: KernelId, sizes: Sequence[int]) -> list[Variant]:
    """Results for this kernel, those for the most similar sizes first."""
    found = [v for v in _known(kernel.name) if v.kind == kernel.kind]
    fitting = [v for v in found if v.code == kernel.code and len(v.sizes) == len(sizes)]
    if found and not fitting:
        _logging.warn_once(
            log,
            ("code", kernel.name, kernel.code),
            "%s: its tuned configs are not used: they were found for other code (the function, or "
            "something that it refers to, was changed). Tune it again.",
            kernel.name,
        )
    return sorted(fitting, key=lambda v: distance(v.sizes, sizes))


def choose(kernel: KernelId, sizes: Sequence[int]) -> Variant | None:
    """The result for the nearest sizes, unless they are far away."""
    found = nearest(kernel, sizes)
    near = (v for v in found if all(distance([a], [b]) <= FARTHEST for a, b in _pairs(v, sizes)))
    return next(near, None)


def all_of(name: str) -> list[Variant]:
    """Every result for kernels of this name."""
    return list({_place(v): v for v in reversed(_known(name))}.values())


def family_state(family: str) -> str:
    """Changes whenever a result of this family does; "" where there is none."""
    with _lock:
        here = [
            repr(v.to_json())
            for name, found in sorted(_session.items())
            if name.startswith(f"{family}: ")
            for v in found.values()
        ]
    stored = None
    if settings.flag("SKIP_CACHE") in ("", "0"):
        stored = artifact_cache.get(KIND, _key(f"{family} state"))
    if not here and stored is None:
        return ""
    return hashlib.sha256("\n".join(here).encode() + (stored or b"")).hexdigest()


def _pairs(variant: Variant, sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(variant.sizes, sizes, strict=True))


def distance(a: Sequence[int], b: Sequence[int]) -> float:
    """How many doublings lie between two tuples of sizes."""
    return sum(abs(math.log2(max(x, 0.5) / max(y, 0.5))) for x, y in zip(a, b, strict=True))


def _known(name: str) -> list[Variant]:
    with _lock:
        here = list(_session.get(name, {}).values())
    if settings.flag("SKIP_CACHE") not in ("", "0"):
        return here
    return here + _from_cache(name)


def _from_cache(name: str) -> list[Variant]:
    data = artifact_cache.get(KIND, _key(name))
    if data is None:
        return []
    try:
        return _entry(json.loads(data), name)
    except (ValueError, exc.InvalidConfig, RecursionError) as error:
        log.warning("%s: stored results cannot be read: %s", name, error)
        return []


def _key(name: str) -> str:
    return hashlib.sha256(f"{VERSION}\0{name}\0{machine_class()}".encode()).hexdigest()


# ---------------------------------------------------------------------- keeping

_lock = threading.Lock()
generation = 0
"""Grows whenever results are added or forgotten in this process."""
_session: dict[str, dict[Any, Variant]] = {}
"""By kernel, then by everything that tells results apart: found or loaded in this process."""


def keep(
    kernel: KernelId, sizes: Sequence[int], config: Config, seconds: float, default_seconds: float
) -> None:
    """Remember a result, here and on disk."""
    variant = Variant(
        kernel.code, kernel.kind, tuple(sizes), config, float(seconds), float(default_seconds)
    )
    _remember(kernel.name, [variant])
    if settings.flag("SKIP_CACHE") not in ("", "0"):
        return
    others = {_place(v): v for v in _from_cache(kernel.name) if v.code == kernel.code}
    others.pop(_place(variant), None)
    kept = [variant, *others.values()][:MOST_VARIANTS]
    data = json.dumps({"kernel": kernel.name, "variants": [v.to_json() for v in kept]})
    artifact_cache.put(KIND, _key(kernel.name), data.encode())
    if kernel.family:
        place = _key(f"{kernel.family} state")
        before = artifact_cache.get(KIND, place) or b""
        artifact_cache.put(KIND, place, hashlib.sha256(before + data.encode()).digest())


def forget() -> None:
    """Forget what this process has found and loaded; what is on disk stays."""
    global generation
    with _lock:
        _session.clear()
        generation += 1


def _place(variant: Variant) -> Any:
    return (variant.code, variant.kind, variant.shape_class)


def _remember(name: str, variants: Sequence[Variant]) -> None:
    global generation
    with _lock:
        _session.setdefault(name, {}).update({_place(v): v for v in variants})
        generation += 1


# ---------------------------------------------------------------------- files


def save(path: str | os.PathLike[str]) -> int:
    """Write all results of this process (found or loaded) to a file; how many."""
    with _lock:
        entries = [
            {"kernel": name, "variants": [v.to_json() for v in found.values()]}
            for name, found in sorted(_session.items())
        ]
    values = {"format": FORMAT, "version": VERSION, "machine": machine_class(), "kernels": entries}
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(aside, target)
    return sum(len(e["variants"]) for e in entries)


def load(path: str | os.PathLike[str]) -> list[str]:
    """Read a file that :func:`save` wrote; names of the kernels in it. Nothing is executed."""
    source = pathlib.Path(path)
    if source.stat().st_size > LARGEST_FILE:
        raise exc.InvalidConfig(f"{source}: too large for a file of configs")
    try:
        values = json.loads(source.read_text())
    except (ValueError, RecursionError) as error:
        raise exc.InvalidConfig(f"{source} is no file of configs: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise exc.InvalidConfig(f"{source} is no file of configs: its format is not {FORMAT!r}")
    if values.get("version") != VERSION:
        raise exc.InvalidConfig(f"{source}: version {values.get('version')!r} is not known here")
    if values.get("machine") != machine_class():
        log.info("%s was tuned on %s", source, values.get("machine"))
    entries = _rows(values.get("kernels"), "kernels")
    read = {_text(e.get("kernel"), "kernel"): e for e in entries}
    checked = {name: _entry(e, name) for name, e in read.items()}
    for name, variants in checked.items():
        _remember(name, variants)
    return sorted(checked)


# ---------------------------------------------------------------------- strict reading


def _entry(values: Any, name: str) -> list[Variant]:
    if not isinstance(values, dict) or values.get("kernel") != name:
        raise exc.InvalidConfig(f"results of another kernel stand where those of {name} should")
    return [_variant(row) for row in _rows(values.get("variants"), "variants")]


def _variant(row: dict[str, Any]) -> Variant:
    wanted = {f.name for f in dataclasses.fields(Variant)}
    if set(row) != wanted:
        raise exc.InvalidConfig(
            f"a result has the fields {sorted(row)} instead of {sorted(wanted)}"
        )
    sizes = row["sizes"]
    if not isinstance(sizes, list) or not all(_is_size(n) for n in sizes):
        raise exc.InvalidConfig(f"sizes: {sizes!r} is no list of sizes")
    return Variant(
        _text(row["code"], "code"),
        _text(row["kind"], "kind"),
        tuple(sizes),
        Config.from_dict(row["config"]),
        _seconds(row["seconds"]),
        _seconds(row["default_seconds"]),
    )


def _rows(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise exc.InvalidConfig(f"{name}: no list of objects")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise exc.InvalidConfig(f"{name}: {value!r} is no text")
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _seconds(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise exc.InvalidConfig(f"{value!r} is no time")
    return float(value)
