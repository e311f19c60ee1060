"""Messages between the tuner and its measuring processes: a length, then JSON, perhaps files.

In: a connected socket. Out: dicts. Everything that arrives is read as coming from a program that
may have gone wild: a message that is no message is an error, never more.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

LONGEST = 1 << 26
_LENGTH = struct.Struct("<I")


class Closed(Exception):
    """The other side is gone."""


class Malformed(Exception):
    """What arrived is no message."""


def send(sock: socket.socket, values: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send one message; raises Closed."""
    data = json.dumps(values).encode()
    header = _LENGTH.pack(len(data))
    try:
        if files:
            socket.send_fds(sock, [header], list(files))
        else:
            sock.sendall(header)
        sock.sendall(data)
    except (BrokenPipeError, ConnectionError) as error:
        raise Closed(str(error)) from None


def receive(sock: socket.socket, files: int = 0) -> tuple[dict[str, Any], list[int]]:
    """One message and up to so many files; raises Closed, Malformed, TimeoutError."""
    try:
        header, found = _header(sock, files)
        (length,) = _LENGTH.unpack(header)
        if length > LONGEST:
            raise Malformed(f"a message of {length} bytes")
        data = _exactly(sock, length)
    except ConnectionError as error:
        raise Closed(str(error)) from None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        values = error
    if not isinstance(values, dict):
        for file in found:
            os.close(file)
        raise Malformed(f"{data[:80]!r}")
    return values, found


def _header(sock: socket.socket, files: int) -> tuple[bytes, list[int]]:
    if not files:
        return _exactly(sock, _LENGTH.size), []
    space = socket.CMSG_LEN(files * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(_LENGTH.size, space)
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    if not data:
        raise Closed("end of file")
    return data + _exactly(sock, _LENGTH.size - len(data)), list(found)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 20))
        if not part:
            raise Closed("end of file")
        data += part
    return bytes(data)
