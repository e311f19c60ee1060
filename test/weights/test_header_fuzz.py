"""Mutated files: what is accepted here is accepted by the reference, with the same bytes."""

from __future__ import annotations

import json
import random
import struct

import pytest
import safetensors

from test.weights.weight_files import entry, raw_bytes
from torch_helion import weights
from torch_helion.weights.header import parse_header, parse_length

WORDS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"\t", b"\0", b"\xff",
    b"\xc2\x80", b"0", b"1", b"2", b"-", b"-0", b".", b"e1", b"true", b"null", b"NaN", b"\\u0061",
    b"\\ud800", b'"U8"', b'"F32"', b'"F4"', b'"F6_E2M3"', b'"dtype"', b'"shape"',
    b'"data_offsets"', b'"a"', b'"__metadata__"', b"18446744073709551615", b"9223372036854775807",
    b'"a":{},', b"[0,0]",
)  # fmt: skip


def seeds() -> list[bytes]:
    data = bytes(range(64))
    return [
        raw_bytes({"a": entry("U8", [2, 2], 0, 4), "b": entry("F32", [3], 4, 16)}, data[:16]),
        raw_bytes({"__metadata__": {"k": "v"}, "a": entry("BF16", [4], 0, 8)}, data[:8], pad=3),
        raw_bytes({"z": entry("F4", [2, 2], 0, 2), "e": entry("F64", [0], 2, 2)}, data[:2]),
        raw_bytes({}, b""),
        raw_bytes({f"t{i}": entry("I8", [i], i * (i - 1) // 2, i * (i + 1) // 2) for i in range(6)},
                  data[:15]),
    ]  # fmt: skip


def mutated(random_: random.Random, file: bytes) -> bytes:
    """Some change of the header's text; the length is mended most times, so that it is read."""
    (count,) = struct.unpack_from("<Q", file)
    text, data = bytearray(file[8 : 8 + count]), bytearray(file[8 + count :])
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        at = random_.randrange(len(text) + 1)
        kind = random_.randrange(6)
        if kind == 0 and text:
            text[at % len(text)] = random_.randrange(256)
        elif kind == 1:
            text[at:at] = random_.choice(WORDS)
        elif kind == 2:
            del text[at : at + random_.randrange(1, 6)]
        elif kind == 3:
            other = random_.randrange(len(text) + 1)
            text[at:at] = text[other : other + random_.randrange(40)]
        elif kind == 4:
            digits = [i for i, c in enumerate(text) if 48 <= c <= 57]
            if digits:
                text[random_.choice(digits)] = random_.randrange(48, 58)
        else:
            data = data[: random_.randrange(len(data) + 1)] + bytes(random_.randrange(3))
    if random_.random() < 0.05:
        count = random_.choice((0, len(text) + 1, 2**63, 2**64 - 1, len(text) - 1 if text else 0))
    else:
        count = len(text)
    return struct.pack("<Q", count) + bytes(text) + bytes(data)


def ours(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        count = parse_length(file[:8], len(file), "fuzz")
        header = parse_header(file[8 : 8 + count], len(file) - 8 - count, "fuzz")
    except weights.WeightsError:
        return None
    start = header.data_start
    return {
        name: (info.dtype, list(info.shape), file[start + info.begin : start + info.end])
        for name, info in header.tensors.items()
    }


def theirs(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        found = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return None
    return {name: (v["dtype"], list(v["shape"]), bytes(v["data"])) for name, v in found}


@pytest.mark.parametrize("part", range(4))
def test_our_accept_set_is_a_subset(part: int) -> None:
    random_ = random.Random(part)
    files = seeds()
    accepted = 0
    for _ in range(5_000):
        file = mutated(random_, random_.choice(files))
        if (mine := ours(file)) is not None:
            accepted += 1
            assert mine == theirs(file), file
    assert accepted > 250, "the mutations must not all be nonsense"


def test_honest_files_are_taken_by_both() -> None:
    random_ = random.Random(7)
    sizes = {"U8": 1, "F32": 4, "BF16": 2, "F64": 8, "F8_E4M3": 1}
    for _ in range(200):
        header, at = {}, 0
        for n in range(random_.randrange(8)):
            dtype = random_.choice(list(sizes))
            shape = [random_.randrange(5) for _ in range(random_.randrange(4))]
            count = sizes[dtype]
            for size in shape:
                count *= size
            header[f"n{n}"] = entry(dtype, shape, at, at + count)
            at += count
        items = list(header.items())
        random_.shuffle(items)
        text = json.dumps(dict(items)).encode() + b" " * random_.randrange(9)
        file = raw_bytes(text, random_.randbytes(at))
        assert ours(file) == theirs(file) is not None
