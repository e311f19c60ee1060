"""An interpreter of pickle opcodes that builds inert nodes: nothing is imported, nothing is called.

What flows in: bytes. What flows out: the value they describe, as ``nodes``, where they end, and
every global that they name. Everything is bounded: by the bytes there are, by the number of
opcodes, by the length of a name or an integer.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from torch_helion.weights.convert.nodes import Call, DictNode, Global, Mark, Persistent, SetNode
from torch_helion.weights.errors import WeightsError

MAX_OPCODES = 10_000_000
MAX_LINE = 1 << 20
MAX_INTEGER = 1024  # bytes
_MARK = Mark()


class Machine:
    """One pickle being read."""

    def __init__(self, data: bytes | memoryview, at: int, file: str) -> None:
        self.data = data
        self.at = at
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[Global] = set()

    def run(self) -> Any:
        """Up to the STOP opcode; the value on top. ``at`` is then behind it."""
        try:
            for _ in range(MAX_OPCODES):
                code = self.data[self.at]
                self.at += 1
                if code == 0x2E:  # STOP
                    return self.pop()
                handler = _HANDLERS.get(code)
                if handler is None:
                    raise self.fault(f"unknown opcode 0x{code:02x}")
                handler(self)
        except IndexError:
            raise self.fault("the pickle ends early") from None
        except (ValueError, TypeError, AttributeError, struct.error, RecursionError) as error:
            if isinstance(error, WeightsError):
                raise
            raise self.fault(f"malformed: {type(error).__name__}: {error}") from None
        raise self.fault(f"more than {MAX_OPCODES} opcodes")

    def fault(self, rule: str) -> WeightsError:
        return WeightsError(f"pickle, byte {self.at}: {rule}", self.file)

    # -------------------------------------------------------------- bytes

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise self.fault(f"{count} bytes are announced, {len(self.data) - self.at} are left")
        found = bytes(self.data[self.at : end])
        self.at = end
        return found

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> bytes:
        window = bytes(self.data[self.at : self.at + MAX_LINE])
        end = window.find(b"\n")
        if end < 0:
            raise self.fault("a line does not end")
        self.at += end + 1
        return window[:end]

    # -------------------------------------------------------------- stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise self.fault("a mark where a value is needed")
        return value

    def drop(self) -> None:
        self.stack.pop()

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise self.fault("a mark where a value is needed")
        return value

    def to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise self.fault("no mark on the stack")

    def see(self, module: str, name: str) -> Global:
        found = Global(module, name)
        self.globals.add(found)
        return found


def read_pickle(data: bytes | memoryview, at: int, file: str) -> Machine:
    """A machine that has run; its result is on top of its stack again."""
    machine = Machine(data, at, file)
    machine.push(machine.run())
    return machine


# ---------------------------------------------------------------------- handlers


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _integer_line(m: Machine) -> None:
    raw = m.line().rstrip(b"L")
    if raw in (b"00", b"01"):
        m.push(raw == b"01")
    elif len(raw) > MAX_INTEGER:
        raise m.fault(f"an integer of {len(raw)} digits")
    else:
        m.push(int(raw))


def _long(m: Machine, size: int) -> None:
    count = m.number(size)
    if count > MAX_INTEGER:
        raise m.fault(f"an integer of {count} bytes")
    m.push(int.from_bytes(m.take(count), "little", signed=True))


def _string_line(m: Machine) -> None:
    raw = m.line().strip()
    if len(raw) < 2 or raw[:1] not in b"'\"" or raw[-1:] != raw[:1]:
        raise m.fault("a string without quotes")
    m.push(codecs.escape_decode(raw[1:-1])[0].decode("latin-1"))  # type: ignore[attr-defined]


def _global_line(m: Machine) -> None:
    module, name = _text(m.line()), _text(m.line())
    m.push(m.see(module, name))


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.fault("a global's name is no string")
    m.push(m.see(module, name))


def _extension(m: Machine, size: int) -> None:
    m.push(m.see("copyreg extension", str(m.number(size))))


def _reduce(m: Machine) -> None:
    args, function = m.pop(), m.pop()
    m.push(Call(function, args))


def _new_object(m: Machine) -> None:
    args, cls = m.pop(), m.pop()
    m.push(Call(cls, args))


def _new_object_with_names(m: Machine) -> None:
    named, args, cls = m.pop(), m.pop(), m.pop()
    m.push(Call(cls, (*_tuple(m, args), named)))


def _instance(m: Machine) -> None:
    module, name = _text(m.line()), _text(m.line())
    m.push(Call(m.see(module, name), tuple(m.to_mark())))


def _object(m: Machine) -> None:
    cls, *args = m.to_mark()
    m.push(Call(cls, tuple(args)))


def _build(m: Machine) -> None:
    state, target = m.pop(), m.top()
    if isinstance(target, Call):
        target.state = state
    elif not isinstance(target, Persistent | Global | DictNode):
        raise m.fault(f"a state for a {type(target).__name__}")


def _tuple(m: Machine, value: Any) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise m.fault("arguments that are no tuple")
    return value


def _last(m: Machine, count: int) -> None:
    m.push(tuple(reversed([m.pop() for _ in range(count)])))


def _set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    _pairs_of(m, m.top()).append((key, value))


def _set_items(m: Machine) -> None:
    items = m.to_mark()
    if len(items) % 2:
        raise m.fault("a key without a value")
    _pairs_of(m, m.top()).extend(zip(items[::2], items[1::2], strict=True))


def _pairs_of(m: Machine, target: Any) -> list[tuple[Any, Any]]:
    if not isinstance(target, DictNode | Call):
        raise m.fault(f"items for a {type(target).__name__}")
    return target.pairs


def _items_of(m: Machine, target: Any) -> list[Any]:
    if isinstance(target, Call | SetNode):
        return target.items
    if type(target) is not list:
        raise m.fault(f"an append to a {type(target).__name__}")
    return target


def _append(m: Machine) -> None:
    value = m.pop()
    _items_of(m, m.top()).append(value)


def _append_many(m: Machine) -> None:
    items = m.to_mark()
    _items_of(m, m.top()).extend(items)


def _dict(m: Machine) -> None:
    items = m.to_mark()
    if len(items) % 2:
        raise m.fault("a key without a value")
    m.push(DictNode(list(zip(items[::2], items[1::2], strict=True))))


def _get(m: Machine, place: int) -> None:
    if place not in m.memo:
        raise m.fault(f"nothing was remembered as {place}")
    m.push(m.memo[place])


def _put(m: Machine, place: int) -> None:
    m.memo[place] = m.top()


def _frame(m: Machine) -> None:
    m.number(8)


def _protocol(m: Machine) -> None:
    if (version := m.number(1)) > 5:
        raise m.fault(f"protocol {version} is not known")


def _refused(what: str) -> Callable[[Machine], None]:
    def refuse(m: Machine) -> None:
        raise m.fault(f"{what} cannot be in a file")

    return refuse


def _short_bytes(m: Machine) -> None:
    m.push(m.take(m.number(1)))


_HANDLERS: dict[int, Callable[[Machine], None]] = {
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.drop(),
    ord("1"): lambda m: m.to_mark().clear(),
    ord("2"): lambda m: m.push(m.top()),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("I"): _integer_line,
    ord("J"): lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("L"): _integer_line,
    ord("M"): lambda m: m.push(m.number(2)),
    ord("N"): lambda m: m.push(None),
    ord("P"): lambda m: m.push(Persistent(_text(m.line()))),
    ord("Q"): lambda m: m.push(Persistent(m.pop())),
    ord("R"): _reduce,
    ord("S"): _string_line,
    ord("T"): lambda m: m.push(m.take(m.number(4)).decode("latin-1")),
    ord("U"): lambda m: m.push(m.take(m.number(1)).decode("latin-1")),
    ord("V"): lambda m: m.push(m.line().decode("raw-unicode-escape")),
    ord("X"): lambda m: m.push(_text(m.take(m.number(4)))),
    ord("a"): _append,
    ord("b"): _build,
    ord("c"): _global_line,
    ord("d"): _dict,
    ord("}"): lambda m: m.push(DictNode()),
    ord("e"): _append_many,
    ord("g"): lambda m: _get(m, int(m.line()[:20])),
    ord("h"): lambda m: _get(m, m.number(1)),
    ord("i"): _instance,
    ord("j"): lambda m: _get(m, m.number(4)),
    ord("l"): lambda m: m.push(m.to_mark()),
    ord("]"): lambda m: m.push([]),
    ord("o"): _object,
    ord("p"): lambda m: _put(m, int(m.line()[:20])),
    ord("q"): lambda m: _put(m, m.number(1)),
    ord("r"): lambda m: _put(m, m.number(4)),
    ord("s"): _set_item,
    ord("t"): lambda m: m.push(tuple(m.to_mark())),
    ord(")"): lambda m: m.push(()),
    ord("u"): _set_items,
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x80: _protocol,
    0x81: _new_object,
    0x82: lambda m: _extension(m, 1),
    0x83: lambda m: _extension(m, 2),
    0x84: lambda m: _extension(m, 4),
    0x85: lambda m: _last(m, 1),
    0x86: lambda m: _last(m, 2),
    0x87: lambda m: _last(m, 3),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x8A: lambda m: _long(m, 1),
    0x8B: lambda m: _long(m, 4),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    ord("C"): _short_bytes,
    0x8C: lambda m: m.push(_text(m.take(m.number(1)))),
    0x8D: lambda m: m.push(_text(m.take(m.number(8)))),
    0x8E: lambda m: m.push(m.take(m.number(8))),
    0x8F: lambda m: m.push(SetNode()),
    0x90: _append_many,
    0x91: lambda m: m.push(SetNode(m.to_mark())),
    0x92: _new_object_with_names,
    0x93: _stack_global,
    0x94: lambda m: _put(m, len(m.memo)),
    0x95: _frame,
    0x96: lambda m: m.push(m.take(m.number(8))),
    0x97: _refused("an out-of-band buffer"),
    0x98: _refused("an out-of-band buffer"),
}
