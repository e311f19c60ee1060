"""Hostile checkpoints: nothing runs, is imported or opened beside them, and no bound is passed.

All files are converted in one child process under an audit hook that notes every forbidden event.
"""

from __future__ import annotations

import json
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch

from test.weights.pickle_bytes import (
    DATA,
    MAGIC,
    archive,
    call,
    dict_of,
    ints,
    legacy,
    named,
    number,
    pickled,
    raw_zip,
    storage,
    tensor,
    text,
    tuple_of,
)
from test.weights.weight_files import run

Make = Callable[[pathlib.Path], object]
TOUCH = text("touch PWNED")


def with_payload(payload: bytes) -> Make:
    """An honest tensor beside a payload."""
    return lambda path: archive(path, dict_of(a=tensor(), evil=payload))


def body(content: bytes) -> Make:
    return lambda path: archive(path, content)


def tensors(*arguments: Any, **named_arguments: Any) -> Make:
    return body(dict_of(bad=tensor(*arguments, **named_arguments)))


def raw(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def zipped(**change: Any) -> Make:
    """An archive whose storage's member has fields that lie."""
    members = [
        {"name": "archive/data.pkl", "data": pickled(dict_of(a=tensor()))},
        {"name": "archive/data/0", "data": DATA, **change},
    ]
    return lambda path: path.write_bytes(raw_zip(members))


def members(*more: dict[str, Any]) -> Make:
    honest = [
        {"name": "archive/data.pkl", "data": pickled(dict_of(a=tensor()))},
        {"name": "archive/data/0", "data": DATA},
    ]
    return lambda path: path.write_bytes(raw_zip([*honest, *more]))


def compressed(path: pathlib.Path) -> None:
    archive(path, dict_of(a=tensor()), compression=zipfile.ZIP_DEFLATED)


def appended(content: bytes) -> Make:
    def make(path: pathlib.Path) -> None:
        archive(path, dict_of(a=tensor()))
        path.write_bytes(path.read_bytes() + content)

    return make


def nested_list(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


def laughs(levels: int) -> bytes:
    """Each level holds the one below ten times: 10 ** levels leaves in a few bytes."""
    content = b"](" + number(1) * 10 + b"eq\x00"
    for level in range(levels):
        content += b"](" + b"h" + bytes([level])
        content += (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    return content


# Payloads beside an honest tensor: it is converted, and what was named is in the report.
# (name, file, a global that the report lists)
NAMED: list[tuple[str, Make, str]] = [
    ("system", with_payload(call(named("posix", "system"), TOUCH)), "posix.system"),
    ("os_system", with_payload(call(named("os", "system"), TOUCH)), "os.system"),
    ("eval", with_payload(call(named("builtins", "eval"), text("open('PWNED','w')"))),
     "builtins.eval"),
    ("exec", with_payload(call(named("builtins", "exec"), text("open('PWNED','w')"))),
     "builtins.exec"),
    ("python_2_names", with_payload(call(named("__builtin__", "execfile"), text("x"))),
     "__builtin__.execfile"),
    ("popen", with_payload(call(named("subprocess", "Popen"), TOUCH)), "subprocess.Popen"),
    ("resolve_name", with_payload(call(call(named("pkgutil", "resolve_name"), text("os:system")),
     TOUCH)), "pkgutil.resolve_name"),
    ("import_module", with_payload(call(named("importlib", "import_module"), text("this"))),
     "importlib.import_module"),
    ("dunder_import", with_payload(call(named("builtins", "__import__"), text("antigravity"))),
     "builtins.__import__"),
    ("runpy", with_payload(call(named("runpy", "run_path"), text("evil.py"))), "runpy.run_path"),
    ("getattr_chain", with_payload(call(call(named("builtins", "getattr"), named("os", "path"),
     text("system")), TOUCH)), "builtins.getattr"),
    ("socket", with_payload(call(named("socket", "create_connection"),
     tuple_of(text("127.0.0.1"), number(9)))), "socket.create_connection"),
    ("pickle_in_pickle", with_payload(call(named("pickle", "loads"), b"C\x03cos")), "pickle.loads"),
    ("torch_load", with_payload(call(named("torch", "load"), text("other.pt"))), "torch.load"),
    ("open_file", with_payload(call(named("builtins", "open"), text("PWNED"), text("w"))),
     "builtins.open"),
    ("unknown_module", with_payload(call(named("no_such_module_anywhere", "f"))),
     "no_such_module_anywhere.f"),
    ("instance_opcode", with_payload(b"(" + TOUCH + b"iposix\nsystem\n"), "posix.system"),
    ("object_opcode", with_payload(b"(" + named("posix", "system") + TOUCH + b"o"),
     "posix.system"),
    ("new_object", with_payload(named("subprocess", "Popen") + tuple_of(TOUCH) + b"\x81"),
     "subprocess.Popen"),
    ("new_object_with_names", with_payload(named("subprocess", "Popen") + b")}\x92"),
     "subprocess.Popen"),
    ("stack_global", with_payload(text("posix") + text("system") + b"\x93" + tuple_of(TOUCH)
     + b"R"), "posix.system"),
    ("extension", with_payload(call(b"\x82\x05")), "copyreg extension.5"),
    ("state", with_payload(call(named("codecs", "Codec")) + dict_of(__setstate__=named("os",
     "system")) + b"b"), "codecs.Codec"),
    ("hidden_by_pop", body(call(named("posix", "system"), TOUCH) + b"0" + dict_of(a=tensor())),
     "posix.system"),
    ("hidden_by_pop_mark", body(b"(" + call(named("posix", "system"), TOUCH) + b"1"
     + dict_of(a=tensor())), "posix.system"),
    ("hidden_in_memo", body(call(named("posix", "system"), TOUCH) + b"q\x090"
     + dict_of(a=tensor())), "posix.system"),
    ("key_of_a_dict", body(b"}(" + text("a") + tensor() + call(named("posix", "system"), TOUCH)
     + number(1) + b"u"), "posix.system"),
    ("dotted_name", with_payload(named("torch.serialization", "os.system")),
     "torch.serialization.os.system"),
    ("holds_itself", with_payload(b"]q\x07h\x07a"), "torch.FloatStorage"),
    ("module_reference", with_payload(tuple_of(text("module"), named("os", "system"), text("f"),
     text("import os")) + b"Q"), "os.system"),
    ("legacy_system", lambda p: legacy(p, dict_of(a=tensor(), e=call(named("posix", "system"),
     TOUCH))), "posix.system"),
]  # fmt: skip

# Refused as a whole: (name, file, a piece of the message).
OUT = storage("0", 4)
REFUSED: list[tuple[str, Make, str]] = [
    # the pickle
    ("empty", raw(b""), "is empty"),
    ("text", raw(b"<!doctype html>"), "HTML page"),
    ("seven_zip", raw(b"7z\xbc\xaf\x27\x1c" + bytes(90)), "7z archive"),
    ("tar", raw(bytes([1] * 257) + b"ustar" + bytes(300)), "tar archive"),
    ("plain_pickle", raw(pickled(dict_of(a=number(1)))), "no checkpoint of torch"),
    ("ends_early", body(b"}("), "a mark where a value is needed"),
    ("unknown_opcode", body(b"\xfe"), "unknown opcode 0xfe"),
    ("protocol_9", body(b"\x80\x09}"), "protocol 9"),
    ("stack_underflow", body(b"0000"), "ends early|malformed"),
    ("no_mark", body(b"}u"), "no mark"),
    ("odd_items", body(b"}(" + number(1) + b"u"), "a key without a value"),
    ("items_for_a_number", body(number(1) + b"(" + ints(1) + ints(1) + b"u"), "items for a int"),
    ("append_to_a_dict", body(b"}" + number(1) + b"a"), "an append"),
    ("state_for_a_number", body(number(1) + b"}b"), "a state for a int"),
    ("unknown_memo", body(b"h\x09"), "nothing was remembered"),
    ("long_string", body(b"X\xff\xff\xff\xff"), "are announced"),
    ("long_bytes", body(b"\x8e" + struct.pack("<Q", 2**63)), "are announced"),
    ("huge_integer", body(b"\x8b" + struct.pack("<I", 2**31)), "an integer of"),
    ("huge_decimal", body(b"L" + b"9" * 5000 + b"\n"), "an integer of 5000 digits"),
    ("line_without_end", body(b"c" + b"a" * 100), "a line does not end"),
    ("bad_number", body(b"Iten\n"), "malformed"),
    ("out_of_band_buffer", body(b"\x97"), "out-of-band"),
    ("bytes_behind", body(dict_of(a=tensor()) + b"." + b"cos\nsystem\n"), "behind the end"),
    ("deep_lists", body(nested_list(5000)), "nested too deeply"),
    ("billion_laughs", body(laughs(9)), "nested too deeply or too widely"),
    # tensors
    ("offset_beyond", tensors((4,), (1,), 1), "reaches element 4 of a storage of 16 bytes"),
    ("stride_beyond", tensors((4,), (2,)), "reaches element 6"),
    ("size_beyond", tensors((5,), (1,)), "reaches element 4"),
    ("negative_stride", tensors((4,), (-1,), 3), "sizes and strides"),
    ("negative_size", tensors((-4,), (1,)), "sizes and strides"),
    ("negative_offset", tensors((4,), (1,), -1), "its offset"),
    ("overflowing_size", tensors((2**40, 2**40), (0, 0)), "overflows"),
    ("overflow_behind_zero", tensors((0, 2**62, 8), (0, 0, 0)), "overflows"),
    ("wrapping_stride", tensors((2,), (2**62,)), "reaches element"),
    ("expansion_bomb", tensors((2**36,), (0,)), "repeats 16 bytes"),
    ("ranks_differ", tensors((4,), (1, 1)), "sizes and strides"),
    ("rank_65", tensors((1,) * 65, (1,) * 65), "sizes and strides"),
    ("bool_sizes", body(dict_of(bad=call(named("torch._utils", "_rebuild_tensor_v2"), storage(),
     number(0), tuple_of(b"\x88"), ints(1), b"\x89", b"N"))), "sizes and strides"),
    ("few_arguments", body(dict_of(bad=call(named("torch._utils", "_rebuild_tensor_v2"),
     storage()))), "too few arguments"),
    ("no_storage", tensors(where=number(1)), "no storage"),
    ("storage_is_missing", tensors(where=storage("1")), "storage '1' is not there"),
    ("storage_leads_out", tensors(where=storage("../../etc/passwd")), "is not there"),
    ("storage_absolute", tensors(where=storage("/etc/passwd")), "is not there"),
    ("storage_too_long", tensors(where=storage("0", 5)), "has 16 bytes, not 20"),
    ("storage_too_short", tensors((2,), (1,), 0, storage("0", 2)), "has 16 bytes, not 8"),
    ("storage_negative", tensors(where=storage("0", -4)), "key or size"),
    ("storage_of_odd_kind", tensors(where=tuple_of(text("storage"), named("os", "system"),
     text("0"), text("cpu"), number(4)) + b"Q"), "unknown kind of storage: os.system"),
    ("storage_of_odd_class", tensors(where=storage("0", 4, "PwnStorage")), "unknown kind"),
    ("dtype_is_a_function", body(dict_of(bad=call(named("torch._utils", "_rebuild_tensor_v3"),
     storage("0", 16, "UntypedStorage"), number(0), ints(4), ints(1), b"\x89", b"N",
     named("torch", "load")))), "dtype"),
    ("subclass_of_nothing", body(dict_of(bad=call(named("torch._tensor", "_rebuild_from_type_v2"),
     named("os", "system"), named("os", "system"), tuple_of(TOUCH), b"}"))), "unknown subclass"),
    ("tensors_in_a_call", body(dict_of(bad=call(named("evil", "wrap"), tensor()))),
     "1 tensors in its arguments"),
    ("name_with_newline", body(b"}(" + text("a\nb") + tensor() + b"u"), "control characters"),
    ("name_of_metadata", body(dict_of(__metadata__=tensor())), "no such name"),
    ("empty_name", body(b"}(" + text("") + tensor() + b"u"), "no such name"),
    # the archive
    ("compressed", compressed, "is compressed"),
    ("encrypted", zipped(flags=1), "is encrypted"),
    ("twice", members({"name": "archive/data/0", "data": bytes(16)}), "comes twice"),
    ("two_pickles", members({"name": "other/data.pkl", "data": pickled(b"}")}), "no single"),
    ("overlapping", members({"name": "archive/data/1", "data": DATA, "header": 0,
     "local_name": "archive/data.pkl"}), "differs|overlaps"),
    ("local_name_differs", zipped(local_name="archive/data/9"), "differs from the directory"),
    ("local_size_differs", zipped(local_size=8), "differs from the directory"),
    ("local_crc_differs", zipped(local_crc=1), "differs from the directory"),
    ("local_method_differs", zipped(local_method=8), "differs from the directory"),
    ("packed_size_differs", zipped(packed=8), "sizes of the member"),
    ("size_beyond_file", zipped(size=2**31, local_size=2**31), "is damaged"),
    ("damaged_bytes", zipped(crc=7, local_crc=7), "damaged (CRC)"),
    ("wide_size_missing", zipped(size=0xFFFFFFFF, local_size=16), "lacks its 64-bit sizes"),
    ("trailing_bytes", appended(b"x"), "no directory at the very end"),
    ("zip_cut_short", raw(b"PK\x03\x04" + bytes(40)), "no directory"),
    ("zip_of_nothing", raw(b"PK\x03\x04"), "too short"),
    ("no_pickle", lambda p: p.write_bytes(raw_zip([{"name": "a/b", "data": b"x"}])), "no single"),
    ("torch_script", lambda p: archive(p, dict_of(a=tensor()),
     more={"archive/code/__torch__.py": b"x"}), "TorchScript"),
    ("big_endian", lambda p: p.write_bytes(raw_zip([
        {"name": "archive/data.pkl", "data": pickled(dict_of(a=tensor()))},
        {"name": "archive/byteorder", "data": b"big"},
        {"name": "archive/data/0", "data": DATA}])), "byte order 'big'"),
    # the older format
    ("legacy_magic_only", raw(MAGIC), "ends before"),
    ("legacy_long_count", lambda p: legacy(p, dict_of(a=tensor()), {"0": (2**60, DATA)}),
     "does not fit"),
    ("legacy_negative_count", lambda p: legacy(p, dict_of(a=tensor()), {"0": (-1, DATA)}),
     "does not fit"),
    ("legacy_other_count", lambda p: legacy(p, dict_of(a=tensor()), {"0": (3, DATA[:12])}),
     "has 12 bytes, not 16"),
    ("legacy_unknown_key", lambda p: legacy(p, dict_of(a=tensor()), {"9": (4, DATA)}),
     "no tensor says"),
    ("legacy_key_twice", lambda p: legacy(p, dict_of(a=tensor()),
     keys=b"](" + text("0") * 2 + b"e"), "comes twice"),
    ("legacy_bytes_behind", lambda p: legacy(p, dict_of(a=tensor()), {"0": (4, DATA + b"x")}),
     "1 bytes behind"),
    ("legacy_keys_no_list", lambda p: legacy(p, dict_of(a=tensor()), keys=b"}"), "malformed"),
    ("legacy_view_beyond", lambda p: legacy(p, dict_of(a=tensor((2,), (1,), 0, storage("0", 4,
     "FloatStorage", tuple_of(text("v"), number(3), number(2)))))), "view of its storage"),
]  # fmt: skip

CHILD = """
import json, os, sys
import torch
from torch_helion import weights

folder = sys.argv[1]
os.chdir(folder)
allowed, events, watching = set(), [], [False]
FORBIDDEN = ("exec", "compile", "import", "subprocess", "os.system", "os.exec", "os.posix_spawn",
             "os.spawn", "os.fork", "os.kill", "socket", "pickle.find_class", "marshal",
             "ctypes.dlopen", "ctypes.dlsym", "webbrowser", "urllib", "ftplib", "smtplib", "pty",
             "os.putenv", "code.", "builtins.input", "tempfile", "shutil", "os.chmod", "os.link",
             "os.symlink", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "glob")

def hook(event, arguments):
    if not watching[0]:
        return
    if event == "open":
        path = arguments[0]
        if isinstance(path, str):
            path = os.path.abspath(path)
            mine = path in allowed or os.path.dirname(path) == folder and ".tmp-" in path
            if not mine and path != folder:
                events.append(f"open {path}")
    elif event == "os.remove" and ".tmp-" not in str(arguments[0]):
        events.append(f"remove {arguments[0]}")
    elif event.startswith(FORBIDDEN):
        events.append(f"{event} {str(arguments)[:80]}")

sys.addaudithook(hook)

def convert(name):
    source, target, report = (os.path.join(folder, name + e) for e in (".pt", ".st", ".json"))
    allowed.clear()
    allowed.update((source, target, report))
    events.clear()
    watching[0] = True
    try:
        found = weights.convert(source, target, report=report)
        outcome = {"tensors": list(found["tensors"]), "globals": found["globals"],
                   "skipped": found["skipped"]}
    except weights.WeightsError as error:
        outcome = {"refused": str(error)}
    except BaseException as error:
        outcome = {"crashed": repr(error)}
    watching[0] = False
    return {**outcome, "events": list(events)}

names = json.loads(sys.argv[2])
convert(names[0])  # what an honest conversion imports lazily is there from now on
events.clear()
watching[0] = True
exec("pass")
watching[0] = False
assert events, "the hook must work"
print(json.dumps({name: convert(name) for name in names}))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each file, and the folder in which they were converted."""
    folder = tmp_path_factory.mktemp("attacks")
    names = ["honest", "honest_legacy"]
    torch.save({"a": torch.ones(4)}, folder / "honest.pt")
    legacy(folder / "honest_legacy.pt", dict_of(a=tensor()))
    for name, make, _ in [*NAMED, *REFUSED]:
        make(folder / f"{name}.pt")
        names.append(name)
    status, output = run("-c", CHILD, folder, json.dumps(names))
    assert status == 0, output
    return {"folder": folder, **json.loads(output.splitlines()[-1])}


def test_there_are_enough() -> None:
    names = [case[0] for case in (*NAMED, *REFUSED)]
    assert len(set(names)) == len(names) >= 25


@pytest.mark.parametrize("name", ["honest", "honest_legacy", *(c[0] for c in (*NAMED, *REFUSED))])
def test_nothing_ran(outcomes: dict[str, Any], name: str) -> None:
    assert outcomes[name]["events"] == []
    assert "crashed" not in outcomes[name], outcomes[name]
    assert not (outcomes["folder"] / "PWNED").exists()
    left = [p.name for p in outcomes["folder"].iterdir() if ".tmp-" in p.name]
    assert left == []


@pytest.mark.parametrize(("name", "expected"), [(c[0], c[2]) for c in NAMED])
def test_payloads_are_reported(outcomes: dict[str, Any], name: str, expected: str) -> None:
    outcome = outcomes[name]
    assert outcome.get("tensors") == ["a"], outcome
    assert expected in outcome["globals"]
    assert (outcomes["folder"] / f"{name}.st").exists()


@pytest.mark.parametrize(("name", "expected"), [(c[0], c[2]) for c in REFUSED])
def test_refusals(outcomes: dict[str, Any], name: str, expected: str) -> None:
    message = outcomes[name].get("refused", str(outcomes[name]))
    assert any(words in message for words in expected.split("|")), message
    assert f"{name}.pt" in message, "the file is named"
    assert not (outcomes["folder"] / f"{name}.st").exists(), "nothing was written"
