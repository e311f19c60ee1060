"""The zip container of a checkpoint, read strictly: one meaning, no decompression, no overlap.

What flows in: an opened file. What flows out: its members by name: where their bytes lie, how many,
and their CRC. The central directory and each local header must agree; a compressed, encrypted,
repeated or overlapping member refuses the whole file.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from torch_helion.weights.errors import WeightsError, quoted
from torch_helion.weights.file import RegularFile

MAX_MEMBERS = 1_000_000
MAX_DIRECTORY = 256 << 20
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_BLOCK = 4 << 20


class Member(NamedTuple):
    """Bytes stored in the archive as they are."""

    name: str
    offset: int
    size: int
    crc: int


def read_members(file: RegularFile) -> dict[str, Member]:
    """Every member, after all checks that need no data."""
    count, size, offset = _end_of_directory(file)
    directory = file.read_bytes(offset, size)
    members: dict[str, Member] = {}
    spans: list[tuple[int, int, str]] = []
    at = 0
    for _ in range(count):
        member, header, at = _central(file, directory, at)
        if member.name in members:
            raise WeightsError(f"zip: the member {quoted(member.name)} comes twice", file.path)
        member = _local(file, member, header)
        members[member.name] = member
        spans.append((header, member.offset + member.size, member.name))
    if at != size:
        raise WeightsError("zip: bytes behind the directory's last entry", file.path)
    _check_spans(spans, offset, file.path)
    return members


def check_crc(file: RegularFile, member: Member) -> None:
    """Read a member's bytes and compare their CRC; 0 says that the writer computed none."""
    if member.crc == 0:
        return
    crc, at, end = 0, member.offset, member.offset + member.size
    buffer = memoryview(bytearray(min(_BLOCK, member.size)))
    while at < end:
        view = buffer[: min(len(buffer), end - at)]
        file.read_exact(at, [view])
        crc = zlib.crc32(view, crc)
        at += len(view)
    if crc != member.crc:
        raise WeightsError(f"zip: the bytes of {quoted(member.name)} are damaged (CRC)", file.path)


def _end_of_directory(file: RegularFile) -> tuple[int, int, int]:
    """Number of entries, size and offset of the central directory."""
    end = file.size - _END.size
    if end < 0:
        raise WeightsError("zip: too short for a directory", file.path)
    mark, disk, disk2, here, count, size, offset, comment = _END.unpack(
        file.read_bytes(end, _END.size)
    )
    if mark != b"PK\x05\x06" or comment:
        raise WeightsError(
            "zip: no directory at the very end (cut short, or bytes added)", file.path
        )
    locator = end - _END64_LOCATOR.size
    if locator >= 0:
        mark, _, where, _ = _END64_LOCATOR.unpack(file.read_bytes(locator, _END64_LOCATOR.size))
        if mark == b"PK\x06\x07":
            if where + _END64.size != locator:
                raise WeightsError("zip: the 64-bit directory end is misplaced", file.path)
            fields = _END64.unpack(file.read_bytes(where, _END64.size))
            mark, _, _, _, disk, disk2, here, count, size, offset = fields
            if mark != b"PK\x06\x06":
                raise WeightsError("zip: the 64-bit directory end is damaged", file.path)
            end = where
    if disk or disk2 or here != count or count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise WeightsError("zip: several volumes, or too large a directory", file.path)
    if offset + size != end:
        raise WeightsError("zip: the directory does not lie right before its end", file.path)
    return count, size, offset


def _central(file: RegularFile, data: bytes, at: int) -> tuple[Member, int, int]:
    """One entry of the directory, the place of its local header, and where the next one begins."""
    if at + _CENTRAL.size > len(data):
        raise WeightsError("zip: the directory ends early", file.path)
    fields = _CENTRAL.unpack_from(data, at)
    mark, _, _, flags, method, _, _, crc, packed, size, n, x, c, disk, _, _, header = fields
    at += _CENTRAL.size
    if mark != b"PK\x01\x02" or at + n + x + c > len(data):
        raise WeightsError("zip: a damaged entry of the directory", file.path)
    name = _name(data[at : at + n], file)
    if flags & 0x41:
        raise WeightsError(f"zip: the member {quoted(name)} is encrypted", file.path)
    if method != 0:
        raise WeightsError(f"zip: the member {quoted(name)} is compressed", file.path)
    size, packed, header = _wide(data[at + n : at + n + x], size, packed, header, name, file)
    if packed != size or disk not in (0, 0xFFFF):
        raise WeightsError(f"zip: the sizes of the member {quoted(name)} differ", file.path)
    return Member(name, 0, size, crc), header, at + n + x + c


def _wide(
    extra: bytes, size: int, packed: int, header: int, name: str, file: RegularFile
) -> tuple[int, int, int]:
    """The 64-bit values of an entry's extra field, where the short ones say that they are there."""
    values = [size, packed, header]
    if 0xFFFFFFFF not in values:
        return size, packed, header
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            for place, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    if len(field) < 8:
                        break
                    values[place], field = int.from_bytes(field[:8], "little"), field[8:]
            return values[0], values[1], values[2]
        at += 4 + length
    raise WeightsError(f"zip: the member {quoted(name)} lacks its 64-bit sizes", file.path)


def _local(file: RegularFile, member: Member, header: int) -> Member:
    """The member with the place of its data, if its local header says the same."""
    name = member.name
    if header + _LOCAL.size > file.size:
        raise WeightsError(f"zip: the member {quoted(name)} lies beyond the file's end", file.path)
    fields = _LOCAL.unpack(file.read_bytes(header, _LOCAL.size))
    mark, _, flags, method, _, _, crc, _, size, n, x = fields
    data = header + _LOCAL.size + n + x
    if mark != b"PK\x03\x04" or data + member.size > file.size:
        raise WeightsError(f"zip: the local header of {quoted(name)} is damaged", file.path)
    local_name = _name(file.read_bytes(header + _LOCAL.size, n), file)
    streamed = flags & 8  # sizes and CRC then stand behind the data
    sizes_agree = streamed or (size in (member.size, 0xFFFFFFFF) and crc == member.crc)
    if local_name != name or method != 0 or flags & 0x41 or not sizes_agree:
        rule = f"zip: the local header of {quoted(name)} differs from the directory's entry"
        raise WeightsError(rule, file.path)
    return member._replace(offset=data)


def _name(raw: bytes, file: RegularFile) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WeightsError("zip: a member's name is not UTF-8", file.path) from None


def _check_spans(spans: list[tuple[int, int, str]], directory: int, path: str) -> None:
    spans.sort()
    for (_, end, name), (begin, _, other) in zip(
        spans, [*spans[1:], (directory, 0, "")], strict=True
    ):
        if end > begin:
            what = f"the member {quoted(other)}" if other else "the directory"
            raise WeightsError(f"zip: the member {quoted(name)} overlaps {what}", path)
