"""Pickles written opcode by opcode, and checkpoints around them: for attacks no library writes."""

from __future__ import annotations

import io
import pathlib
import struct
import zipfile
import zlib
from typing import Any

MAGIC = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", *more: bytes) -> bytes:
    parts = (text("storage"), named("torch", kind), text(key), text("cpu"), number(count), *more)
    return tuple_of(*parts) + b"Q"


def ints(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    where: bytes | None = None,
) -> bytes:
    hooks = call(named("collections", "OrderedDict"))
    where = storage() if where is None else where
    arguments = (where, number(offset), ints(*shape), ints(*strides), b"\x89", hooks)
    return call(named("torch._utils", "_rebuild_tensor_v2"), *arguments)


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


DATA = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)


def archive(
    path: pathlib.Path,
    body: bytes,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> pathlib.Path:
    """A checkpoint of the newer format."""
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("archive/data.pkl", pickled(body))
        out.writestr("archive/byteorder", "little")
        for key, data in ({"0": DATA} if storages is None else storages).items():
            out.writestr(f"archive/data/{key}", data)
        for name, data in (more or {}).items():
            out.writestr(name, data)
    return path


def legacy(
    path: pathlib.Path,
    body: bytes,
    storages: dict[str, tuple[int, bytes]] | None = None,
    keys: bytes | None = None,
) -> pathlib.Path:
    """A checkpoint of the older format; storages are (count, bytes)."""
    storages = {"0": (4, DATA)} if storages is None else storages
    system = pickled(dict_of(protocol_version=number(233), little_endian=b"\x88"))
    if keys is None:
        keys = b"](" + b"".join(text(k) for k in storages) + b"e"
    parts = [MAGIC, pickled(b"M\xe9\x03"), system, pickled(body), pickled(keys)]
    parts += [struct.pack("<q", count) + data for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def raw_zip(members: list[dict[str, Any]]) -> bytes:
    """A zip archive whose every field may lie. Keys: name, data, and fields to override."""
    out, directory = io.BytesIO(), b""
    for m in members:
        name, data = m["name"].encode(), m["data"]
        header = m.get("header", out.tell())
        crc = m.get("crc", zlib.crc32(data))
        size = m.get("size", len(data))
        method, flags = m.get("method", 0), m.get("flags", 0)
        local_name = m.get("local_name", m["name"]).encode()
        local = struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, flags, m.get("local_method", method), 0, 0,
            m.get("local_crc", crc), m.get("local_size", size), m.get("local_size", size),
            len(local_name), 0,
        )  # fmt: skip
        if "header" not in m:
            out.write(local + local_name + data)
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, method, 0, 0, crc, m.get("packed", size),
            size, len(name), 0, 0, 0, 0, 0, header,
        ) + name  # fmt: skip
    at = out.tell()
    end = struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), at, 0
    )
    return out.getvalue() + directory + end
