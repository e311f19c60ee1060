"""JSON as strict as it is written down: what two parsers could read in two ways is kept visible.

What flows in: the bytes of a JSON text. What flows out: its values, where an object with a repeated
key is a :class:`Duplicated`, and a number that is no plain non-negative integer is a
:class:`NotPlain`. Both are refused where they matter, by who knows the place's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torch_helion.weights.errors import WeightsError


class Duplicated(dict[str, Any]):
    """An object in which a key came twice."""

    key = ""


class NotPlain(str):
    """The text of a number with a sign, a fraction or an exponent."""


def plain_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict, or a :class:`Duplicated` that remembers the first repeated key."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice, seen = Duplicated(found), set()
    for key, _ in pairs:
        if key in seen:
            twice.key = key
            break
        seen.add(key)
    return twice


def parse_json(
    text: bytes,
    file: str,
    what: str,
    make_object: Callable[[list[tuple[str, Any]]], Any] = plain_object,
) -> Any:
    """The value of a text that is one JSON document in UTF-8 with nothing around but blanks."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{what} is not UTF-8: byte {error.start} of it", file) from None
    signed = b"-" in text  # only then can there be -0 or -1, and the slower way is taken
    try:
        return json.loads(
            decoded,
            object_pairs_hook=make_object,
            parse_float=NotPlain,
            parse_int=_integer if signed else None,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise WeightsError(f"{what} is nested too deeply", file) from None
    except ValueError as error:
        raise WeightsError(f"{what} is not JSON: {error}", file) from None


def kind_of(value: object) -> str:
    """What a JSON value is called, in messages."""
    if value is None or value is True or value is False:
        return "null" if value is None else str(value).lower()
    if isinstance(value, NotPlain):
        return f"the number {value[:40]}"
    if isinstance(value, int):
        return f"the number {value}" if abs(value) < 10**40 else "a huge number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _integer(text: str) -> int | NotPlain:
    return NotPlain(text) if text[0] == "-" else int(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON value")
