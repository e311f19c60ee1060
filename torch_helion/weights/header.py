"""The header of a safetensors file, read strictly: every rule of the format and those it forgot.

What flows in: the JSON text of a header and the size of the data behind it. What flows out: a
:class:`Header`, or a :class:`WeightsError` that names the file, the tensor and the broken rule.
Nothing is allocated for a length that was not compared with the file's size first.

Beyond the reference: a name, field or metadata key may occur once only; a tensor has exactly the
fields ``dtype``, ``shape``, ``data_offsets``; numbers are plain non-negative integers; the product
of a shape must not overflow even where another dimension is 0; names are non-empty text without
control characters. So whatever is accepted here, other readers understand in the same way.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch_helion.weights.dtypes import DTYPES
from torch_helion.weights.errors import WeightsError, listed, quoted
from torch_helion.weights.strict_json import Duplicated, kind_of, parse_json, plain_object

MAX_HEADER = 100_000_000  # bytes of JSON, as in the reference
MAX_INT = 2**63 - 1
MAX_RANK = 64
MAX_NAME = 4096  # characters
METADATA = "__metadata__"
_FIELDS = frozenset(("dtype", "shape", "data_offsets"))
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BITS = {name: row.bits for name, row in DTYPES.items()}


class TensorInfo(NamedTuple):
    """One entry of a header; the offsets count from the beginning of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What a file holds: entries by name in the order of their data, and its own metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    """where the data begins in the file"""
    alignment: str
    """what the places of all tensors in the file are multiples of: "64", "16", "8", "element"
    (of their own element) or "none" """

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return max((info.end for info in self.tensors.values()), default=0)


def parse_length(first: bytes, file_size: int, file: str) -> int:
    """Length of the JSON text, from a file's first eight bytes; fits the file and the limit."""
    if len(first) < 8:
        raise WeightsError(f"ends within the first eight bytes (it has {file_size})", file)
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER:
        hint = _what_it_may_be(first)
        raise WeightsError(
            f"header of {length} bytes: at most {MAX_HEADER} are allowed{hint}", file
        )
    if 8 + length > file_size:
        hint = _what_it_may_be(first) or ": cut short?"
        raise WeightsError(f"header of {length} bytes in a file of {file_size}{hint}", file)
    return length


def parse_header(text: bytes, data_size: int, file: str = "<bytes>") -> Header:
    """The header whose JSON text is ``text``, in front of ``data_size`` bytes of data."""
    with _no_collection():
        root = parse_json(text, file, "the header", _object)
        if not isinstance(root, dict):
            found = "the entry of one" if isinstance(root, TensorInfo) else kind_of(root)
            raise WeightsError(f"the header must be a JSON object of tensors, not {found}", file)
        _refuse_duplicates(root, file)
        metadata = _checked_metadata(root.pop(METADATA, {}), file)
        # Without these bytes no control character and no surrogate can have come in.
        odd = b"\\" in text or b"\x7f" in text or b"\xc2" in text
        if odd or "" in root or max(map(len, root), default=0) > MAX_NAME:
            _check_names(root, file)
        if set(map(type, root.values())) - {TensorInfo}:
            root = {name: _entry(name, raw, file) for name, raw in root.items()}
        tensors = _in_order(root)
        data_start = 8 + len(text)
        positions = _check_places(tensors, data_start, data_size, file)
    return Header(tensors, metadata, data_start, _alignment(positions))


def odd_names(header: Header) -> list[str]:
    """Names that a tool which makes files or attributes of them should not trust."""
    return [name for name in header.tensors if "/" in name or "\\" in name or ".." in name]


def address_alignment(position: int) -> int:
    """The largest power of two, at most 4096, that divides a place in a file."""
    return min(position & -position, 4096) if position else 4096


# ---------------------------------------------------------------------- rules


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """What an object of the text becomes: a good entry at once, anything else a dict.

    Objects come innermost first and without their name, so a refusal waits until the name is known.
    """
    if len(pairs) == 3 and pairs[0][0] == "dtype":  # in this order almost always
        (_, dtype), (second, shape), (third, offsets) = pairs
        if second == "shape" and third == "data_offsets" and type(offsets) is list:
            info = _plain_entry(dtype, shape, offsets)
            if info is not None:
                return info
    return plain_object(pairs)


def _refuse_duplicates(root: dict[str, Any], file: str) -> None:
    if isinstance(root, Duplicated):
        if root.key == METADATA:
            raise WeightsError(f"{METADATA} comes twice", file)
        raise WeightsError("the name comes twice", file, root.key)


def _checked_metadata(raw: object, file: str) -> dict[str, str]:
    if isinstance(raw, Duplicated):
        raise WeightsError(f"{METADATA}: the key {quoted(raw.key)} comes twice", file)
    if isinstance(raw, TensorInfo):
        raise WeightsError(f"{METADATA} must hold strings, not the entry of a tensor", file)
    if not isinstance(raw, dict):
        raise WeightsError(f"{METADATA} must be an object, not {kind_of(raw)}", file)
    for key, value in raw.items():
        if type(value) is not str:
            raise WeightsError(
                f"{METADATA}[{quoted(key)}] must be a string, not {kind_of(value)}", file
            )
        if _lone_surrogate(key) or _lone_surrogate(value):
            raise WeightsError(f"{METADATA}[{quoted(key)}] holds a lone surrogate", file)
    return raw


def _lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _check_names(root: dict[str, Any], file: str) -> None:
    for name in root:
        if not name:
            raise WeightsError("a tensor has an empty name", file)
        if len(name) > MAX_NAME:
            raise WeightsError(
                f"the name has {len(name)} characters, at most {MAX_NAME}", file, name
            )
        if _CONTROL.search(name):
            raise WeightsError("the name holds a control character or a lone surrogate", file, name)


def _plain_entry(dtype: Any, shape: Any, offsets: list[Any]) -> TensorInfo | None:
    """The entry if it keeps every rule that it can keep alone. No words: this is the hot loop."""
    if type(dtype) is not str or dtype not in _BITS or type(shape) is not list or len(offsets) != 2:
        return None
    begin, end = offsets
    size = total = _BITS[dtype]
    for n in shape:
        if type(n) is not int:
            return None
        size *= n
        total *= n or 1  # no stop at 0: other readers multiply in another order
    # Numbers are never negative here: those with a sign are no ints.
    if type(begin) is not int or type(end) is not int or total > MAX_INT or len(shape) > MAX_RANK:
        return None
    if begin > end or end > MAX_INT or size != (end - begin) * 8:
        return None
    return tuple.__new__(TensorInfo, (dtype, tuple(shape), begin, end))


def _entry(name: str, raw: Any, file: str) -> TensorInfo:
    """The entry that an object became, or made from a dict in another order; else its refusal."""
    if type(raw) is dict and raw.keys() == _FIELDS and type(raw["data_offsets"]) is list:
        raw = _plain_entry(raw["dtype"], raw["shape"], raw["data_offsets"]) or raw
    if type(raw) is not TensorInfo:
        raise WeightsError(_fault_of_fields(raw) or _fault_of_values(raw), file, name)
    return raw


def _fault_of_fields(raw: Any) -> str | None:
    if isinstance(raw, Duplicated):
        return f"the field {quoted(raw.key)} comes twice"
    if not isinstance(raw, dict):
        return f"an entry must be an object, not {kind_of(raw)}"
    if unknown := sorted(set(raw) - _FIELDS):
        return f"unknown field {listed(unknown, 3)}"
    if missing := sorted(_FIELDS - set(raw)):
        return f"field {listed(missing)} is missing"
    return None


def _fault_of_values(raw: dict[str, Any]) -> str:
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if type(dtype) is not str:
        return f"dtype must be a string, not {kind_of(dtype)}"
    if dtype not in DTYPES:
        return f"unknown dtype {quoted(dtype)}"
    for field, values in (("shape", shape), ("data_offsets", offsets)):
        if type(values) is not list:
            return f"{field} must be an array, not {kind_of(values)}"
        for value in values:
            if type(value) is not int:
                return f"{field} must hold non-negative integers, not {kind_of(value)}"
            if value > MAX_INT:
                return f"{field} holds {kind_of(value)}, which overflows (at most 2^63-1)"
    if len(offsets) != 2:
        return f"data_offsets must hold two numbers, not {len(offsets)}"
    if len(shape) > MAX_RANK:
        return f"shape has {len(shape)} dimensions, at most {MAX_RANK}"
    if offsets[0] > offsets[1]:
        return f"data_offsets end at {offsets[1]}, before they begin at {offsets[0]}"
    return _fault_of_size(dtype, shape, offsets[1] - offsets[0])


def _fault_of_size(dtype: str, shape: list[int], given: int) -> str:
    bits = total = _BITS[dtype]
    for n in shape:
        bits *= n
        total *= n or 1
    if total > MAX_INT:
        return f"the size of shape {_shown(shape)} overflows (at most 2^63-1 bits)"
    if bits % 8:
        return f"{dtype} of shape {_shown(shape)} fills no whole number of bytes ({bits} bits)"
    return f"{dtype} of shape {_shown(shape)} needs {bits // 8} bytes, data_offsets give {given}"


def _shown(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, …]"


def _in_order(root: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Entries by the place of their data; writers mostly list them so."""
    places = [(info[2], info[3]) for info in root.values()]
    if all(map(operator.le, places, places[1:])):
        return root
    return dict(sorted(root.items(), key=lambda item: item[1][2:4]))


def _check_places(
    tensors: dict[str, TensorInfo], data_start: int, data_size: int, file: str
) -> dict[str, int]:
    """The tensors cover the data without holes and overlaps; per dtype, all positions or-ed."""
    at, last = 0, ""
    positions: dict[str, int] = {}
    for name, (dtype, _, begin, end) in tensors.items():
        if begin != at:
            raise WeightsError(_fault_of_place(begin, at, last), file, name)
        if end != begin:
            positions[dtype] = positions.get(dtype, 0) | (data_start + begin)
        at, last = end, name
    if at > data_size:
        rule = f"ends at byte {at} of the data, which has {data_size}: the file is cut short"
        raise WeightsError(rule, file, last)
    if at < data_size:
        rule = f"{data_size - at} bytes behind the last tensor's end belong to no tensor"
        raise WeightsError(rule, file)
    return positions


def _fault_of_place(begin: int, at: int, last: str) -> str:
    if begin > at:
        return f"bytes {at} to {begin} of the data belong to no tensor: a hole before it"
    return f"begins at {begin}, inside of tensor {quoted(last)}: overlapping data"


def _alignment(positions: dict[str, int]) -> str:
    """In words, from the or of all positions of each dtype: its lowest bit divides them all."""
    common = min((p & -p for p in positions.values()), default=64)
    for step in (64, 16, 8):  # no element needs more than 8
        if common >= step:
            return str(step)
    natural = all(p & -p >= DTYPES[dtype].alignment for dtype, p in positions.items())
    return "element" if natural else "none"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of small containers wake the collector, which then walks all of torch's objects.

    Counted, since threads may parse side by side: the first switches it off, the last on again.
    """
    global _parsing, _was_enabled
    with _collector_lock:
        if _parsing == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _parsing += 1
    try:
        yield
    finally:
        with _collector_lock:
            _parsing -= 1
            if _parsing == 0 and _was_enabled:
                gc.enable()


_collector_lock = threading.Lock()
_parsing = 0
_was_enabled = False


def _what_it_may_be(first: bytes) -> str:
    """A hint where the first bytes tell what was given instead of a safetensors file."""
    if first.startswith(b"PK\x03\x04") or first.startswith(b"\x80"):
        return " (a pickle checkpoint? `python -m torch_helion.weights convert` migrates those)"
    if first.lstrip()[:1] == b"<":
        return " (an HTML page?)"
    if first.startswith(b"version "):
        return " (a Git LFS pointer, not the file itself?)"
    return ""
