"""The tuned values of one kernel: block sizes, loop orders, and everything else that may be chosen.

In: keyword arguments, a dict, JSON. Out: a frozen, hashable mapping that looks like the dict it was
made of. Floor 0. Whether a config fits a kernel is said by its
:class:`torch_helion.config_spec.ConfigSpec`, not here.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch_helion import exc
from torch_helion.config_spec import SINGULAR

# What an attribute of a config says where the key is absent.
_DEFAULTS: dict[str, Any] = {
    "block_sizes": (),
    "loop_orders": (),
    "flatten_loops": (),
    "l2_groupings": (),
    "reduction_loops": (),
    "range_unroll_factors": (),
    "range_num_stages": (),
    "range_multi_buffers": (),
    "range_flattens": (),
    "range_warp_specializes": (),
    "static_ranges": (),
    "load_eviction_policies": (),
    "load_cache_modifiers": (),
    "store_cache_modifiers": (),
    "num_warps": 4,
    "num_stages": 1,
    "num_sm_multiplier": 1,
    "maxnreg": None,
    "epilogue_subtile": None,
    "pid_type": "flat",
    "indexing": "pointer",
    "atomic_indexing": "pointer",
    "advanced_controls_file": None,
}


class Config(Mapping[str, Any]):
    """Immutable record of choices; an absent key means the default.

    Keys are those of the tile language (``block_sizes``, ``loop_orders``, …) and the names of the
    kernel's own tunables. A list with one entry may be given in the singular:
    ``Config(block_size=64)``.
    """

    __slots__ = ("_hash", "_values")
    _values: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        plain = _without_singulars(values)
        frozen = {k: _freeze(v) for k, v in sorted(plain.items()) if v is not None}
        object.__setattr__(self, "_values", frozen)
        object.__setattr__(self, "_hash", None)

    # -- mapping ---------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        return _thaw(self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash(self.to_json()))
        return self._hash  # type: ignore[return-value]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values == other._values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._values:
            value = self[name]
            return [value] if name == "reduction_loops" and isinstance(value, int) else value
        if name in _DEFAULTS:
            return _thaw(_DEFAULTS[name])
        raise AttributeError(f"this Config has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Config cannot be changed: make another one with {name}={value!r}")

    def __str__(self) -> str:
        return f"Config({', '.join(f'{k}={_thaw(v)!r}' for k, v in self._values.items())})"

    def __repr__(self) -> str:
        return f"helion.{self}"

    def __copy__(self) -> Config:
        return self

    def __deepcopy__(self, memo: object) -> Config:
        return self

    def __reduce__(self) -> Any:
        return (Config.from_dict, (self.config,))

    @property
    def config(self) -> dict[str, Any]:
        """The values as a dict of its own."""
        return {key: self[key] for key in self}

    # -- other forms -----------------------------------------------------------------------------

    def to_json(self) -> str:
        """The config as one line of JSON with sorted keys."""
        try:
            return json.dumps(self._values, sort_keys=True)
        except TypeError as error:
            raise exc.InvalidConfig(f"a value of {self!r} cannot be written: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The config that :meth:`to_json` wrote; raises ``exc.InvalidConfig``."""
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise exc.InvalidConfig(f"a config's JSON cannot be read: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The config with these keys (a Config is returned as it is)."""
        if isinstance(values, Config):
            return values
        if not isinstance(values, Mapping) or not all(isinstance(k, str) for k in values):
            raise exc.InvalidConfig(f"a config is a mapping of names to values, got {values!r}")
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the config to a file, whole or not at all."""
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        aside.write_text(json.dumps(self._values, sort_keys=True, indent=2) + "\n")
        os.replace(aside, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """The config of a file that :meth:`save` wrote."""
        return cls.from_json(pathlib.Path(path).read_text())

    def minimize(self, config_spec: Any) -> Config:
        """The same choices without those that ``config_spec`` would make by itself."""
        default = {k: _freeze(v) for k, v in config_spec.default_config().items()}
        kept = {k: v for k, v in self._values.items() if k not in default or default[k] != v}
        return Config(**kept)


def _without_singulars(values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for singular, key in SINGULAR.items():
        if singular not in found:
            continue
        value = found.pop(singular)
        if value is None:
            continue
        if found.get(key) is not None:
            raise exc.InvalidConfig(f"Cannot specify both {singular} and {key}")
        # One number for every row: how many there are, only the kernel knows. Sizes of several
        # axes under the singular name are taken as they are meant.
        several = singular == "block_size" and isinstance(value, list | tuple)
        found[key] = value if several or singular == "reduction_loop" else [value]
    return found


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    return value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value
