"""Every error of the package: one class per mistake, its message template in the class.

What flows in: the facts of one mistake. What flows out: an exception whose text names those facts
and what to do. Floor 0: anything may import this module; it imports nothing of ours.

    Base (RuntimeError)
    ├── InvalidOption      a name that does not exist (option, mode, setting); says the nearest
    ├── InvalidValue       an option or setting that exists, with a value it cannot take
    ├── CaptureError       a part of a graph could not become a kernel; the graph keeps its nodes
    ├── LoweringError      an op or dtype without a row in the lowering tables
    ├── VerifierError      a kernel in the tile IR breaks a rule of the IR
    ├── CodegenError       a target could not print or build a kernel
    ├── AccuracyError      a built kernel failed the comparison with the float64 evaluation
    ├── CacheError         the artifact cache cannot be used (permissions, damage)
    └── TargetIncomplete   a target's record has no row for some op

A template's field names, in order of appearance, are the constructor's parameters; each may be
given by position or by name and is kept as an attribute: ``LoweringError("erf", torch.int8, "no
row").dtype``.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable
from typing import Any, ClassVar


class Base(RuntimeError):
    """Common base: ``except torch_helion.exc.Base`` catches this package's errors and no other."""

    message: ClassVar[str] = "{why}"
    defaults: ClassVar[dict[str, object]] = {}

    def __init__(self, *values: object, **named: object) -> None:
        names = _field_names(type(self).message)
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__} takes {names}, got {len(values)} values")
        given = {**dict(zip(names, values, strict=False)), **named}
        self.fields: dict[str, Any] = {}
        for name in names:
            if name not in given and name not in self.defaults:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
            self.fields[name] = given.pop(name, self.defaults.get(name))
        if given:
            raise TypeError(f"{type(self).__name__} has no field {sorted(given)}; it has {names}")
        super().__init__(*self.fields.values())  # so that pickling and copying rebuild it

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __str__(self) -> str:
        return type(self).message.format(**self.fields)


class InvalidOption(Base):
    """A name that does not exist. :func:`invalid_option` builds it from the right names."""

    message = "unknown {kind} {name!r}{hint}"
    defaults: ClassVar[dict[str, object]] = {"hint": ""}


class InvalidValue(Base):
    """A known option or setting with a value that it cannot take."""

    message = "{name} cannot be {value!r}: expected {expected}"


class CaptureError(Base):
    """A region cannot become a kernel. The backend then leaves its nodes to the host."""

    message = "{why}"


class LoweringError(Base):
    """No meaning in the tile IR for this op with this dtype."""

    message = "no lowering for {op} ({dtype}): {why}"
    defaults: ClassVar[dict[str, object]] = {
        "dtype": "any dtype",
        "why": "no row in the tables of lowering/",
    }


class VerifierError(Base):
    """The tile IR of a kernel breaks a rule: a fault of the stage that has just run."""

    message = "{why}"


class CodegenError(Base):
    """A target could not print, compile or load a kernel."""

    message = "{why}"


class AccuracyError(Base):
    """A built kernel is farther from the float64 evaluation than the accuracy rule allows."""

    message = "{why}"


class CacheError(Base):
    """The artifact cache cannot be used: wrong owner, open permissions, or a damaged entry."""

    message = "{why}"


class TargetIncomplete(Base):
    """A target's record has no rows for these ops and does not declare them unsupported."""

    message = "target {name!r} has no row for: {gaps}"


def invalid_option(kind: str, name: str, known: Iterable[str]) -> InvalidOption:
    """The error for a wrong ``name`` of some ``kind``: says the nearest right name, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    if near:
        right = next(n for n in names if n.lower() == near[0])
        return InvalidOption(kind, name, f"; did you mean {right!r}?")
    return InvalidOption(kind, name, f"; known: {', '.join(names)}" if names else "")


def _field_names(template: str) -> list[str]:
    found = (name for _, name, _, _ in string.Formatter().parse(template) if name)
    return list(dict.fromkeys(found))
