"""Where tensors go in a new file, and the header that says so.

What flows in: name, dtype and shape of each tensor, and metadata. What flows out: the header's
bytes and the order of the data. Tensors whose size is a multiple of the alignment come first: each
then begins on such an address, without a hole. The rest follows, widest elements first, so that
each lies at a multiple of its element. Blanks behind the JSON let the data begin at a page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch_helion.weights.dtypes import DTYPES
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.header import MAX_HEADER, METADATA, parse_header

DATA_START = 4096


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def order_of(entries: Sequence[Entry], align: int) -> list[Entry]:
    """The order of the data: aligned without holes."""
    if align < 1 or align & (align - 1) or align > DATA_START:
        raise ValueError(f"align must be a power of two up to {DATA_START}, not {align}")
    return sorted(entries, key=lambda e: (e.nbytes % align != 0, -DTYPES[e.dtype].bits, e.name))


def build_header(ordered: Sequence[Entry], metadata: Mapping[str, str] | None, file: str) -> bytes:
    """Length and JSON of the header, padded; checked by the same rules that a reader applies."""
    root: dict[str, object] = {}
    if metadata:
        root[METADATA] = _checked_metadata(metadata)
    at = 0
    for name, dtype, shape, nbytes in ordered:
        if name in root or name == METADATA:
            raise WeightsError("the name comes twice, or is reserved", file, name)
        root[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + nbytes)}
        at += nbytes
    try:
        text = json.dumps(root, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise WeightsError("a name or the metadata hold a lone surrogate", file) from None
    text += b" " * (-(8 + len(text)) % DATA_START)
    if len(text) > MAX_HEADER:
        raise WeightsError(f"the header would have {len(text)} bytes, at most {MAX_HEADER}", file)
    parse_header(text, at, file)
    return len(text).to_bytes(8, "little") + text


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map strings to strings, not {key!r} to {value!r}")
    return dict(metadata)
