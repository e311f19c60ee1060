"""The tuned values of one kernel: block sizes, unrolling, streaming stores.

In: JSON or keyword arguments. Out: a frozen, hashable mapping. Floor 0: imports nothing of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, (list, tuple)) else value


class Config(Mapping[str, Any]):
    """Immutable record of choices; an absent key means the default."""

    __slots__ = ("_values",)

    def __init__(self, **values: Any) -> None:
        self._values = {k: _freeze(v) for k, v in sorted(values.items()) if v is not None}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values == other._values

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"

    def to_json(self) -> str:
        return json.dumps(self._values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Config:
        return cls(**json.loads(text))
