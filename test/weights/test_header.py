"""The strict header: each broken rule is refused, by name; each honest oddity is taken."""

from __future__ import annotations

import json
import pathlib
import struct
import time
from typing import Any

import pytest

from test.weights.weight_files import entry, raw_bytes, raw_file
from torch_helion import weights
from torch_helion.weights.header import parse_header

ONE = '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
TWO = b"\1\2"


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {**entry("U8", [2], 0, 2), **changes}}


def without(field: str) -> dict[str, Any]:
    return {"a": {k: v for k, v in entry("U8", [2], 0, 2).items() if k != field}}


def text(shape: str = "[2]", offsets: str = "[0,2]", dtype: str = '"U8"') -> bytes:
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'.encode()


def length(n: int, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", n) + rest


# The reference's own: (name, whole file, a piece of the message).
REFERENCE: list[tuple[str, bytes, str]] = [
    (
        "json_attack",
        raw_bytes({f"t{i}": entry("F32", [2, 2], 0, 16) for i in range(10)}, bytes(16)),
        "overlapping",
    ),
    ("incomplete_buffer_text_behind", raw_bytes(one(), TWO + b"extra"), "5 bytes behind"),
    ("incomplete_buffer_short", raw_bytes(one(), b""), "cut short"),
    ("header_too_large", length(0xFFFFFFFFFFFFFF3C, b"{}"), "at most 100000000"),
    ("header_too_small", b"", "first eight bytes"),
    ("invalid_header_length", length(60), "header of 60 bytes in a file of 8"),
    ("non_utf8", length(1, b"\xff"), "not UTF-8"),
    ("not_json", length(1, b"{"), "not JSON"),
    ("invalid_info", raw_bytes(one(dtype="I32", shape=[2, 2], data_offsets=[0, 4]), bytes(4)),
     "needs 16 bytes"),
    ("overflow_1", raw_bytes(one(shape=[2, 2**64 - 2])), "overflows"),
    ("overflow_2", raw_bytes(one(dtype="I32", shape=[2, 2**63 - 1])), "overflows"),
    ("fp4_misaligned", raw_bytes(one(dtype="F4", shape=[1, 3], data_offsets=[0, 1]), b"\0"),
     "no whole number of bytes"),
    ("fp4_wrong_size", raw_bytes(one(dtype="F4", shape=[1, 2], data_offsets=[0, 2]), TWO),
     "needs 1 bytes"),
    ("truncated_header", length(50, b'{"a":'), "cut short"),
    ("data_offset_overflow", raw_bytes(text(offsets=f"[0,{2**64 - 1}]")), "overflows"),
    ("huge_header_length", length(4 * 10**9, b"{}"), "at most"),
    ("overlap_small_file_huge_memory",
     raw_bytes({f"t{i}": entry("U8", [4], 0, 4) for i in range(999)}, bytes(4)), "overlapping"),
]  # fmt: skip

# Ours: (name, header, data, a piece of the message).
Case = tuple[str, "bytes | dict[str, Any]", bytes, str]
LENGTHS: list[tuple[str, bytes, str]] = [
    *((f"only_{n}_bytes", bytes(n), "first eight bytes") for n in range(8)),
    ("length_one_too_long", length(3, b"{}"), "cut short"),
    ("length_limit_plus_one", length(100_000_001, b"{}"), "at most"),
    ("length_negative_as_signed", length(2**63, b"{}"), "at most"),
    ("length_wraps", length(2**64 - 8, b"{}"), "at most"),
    ("length_zero", length(0), "not JSON"),
    ("zip_file", b"PK\x03\x04" + bytes(40), "convert"),
    ("pickle_file", b"\x80\x02}q\x00." + bytes(40), "convert"),
    ("html_page", b"<!doctype html><html></html>", "HTML"),
    ("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
]
JSON: list[Case] = [
    ("empty_text", b"", b"", "not JSON"),
    ("blanks_only", b"    ", b"", "not JSON"),
    ("array_root", b"[]", b"", "an array"),
    ("null_root", b"null", b"", "null"),
    ("number_root", b"12", b"", "the number 12"),
    ("string_root", b'"a"', b"", "a string"),
    ("true_root", b"true", b"", "true"),
    ("entry_as_root", ONE.encode(), TWO, "JSON object of tensors"),
    ("bom", b"\xef\xbb\xbf{}", b"", "not JSON"),
    ("nul_behind", b"{}\0", b"", "not JSON"),
    ("nul_before", b"\0{}", b"", "not JSON"),
    ("form_feed", b"\x0c{}", b"", "not JSON"),
    ("no_break_space", b"\xc2\xa0{}", b"", "not JSON"),
    ("two_documents", b"{}{}", b"", "not JSON"),
    ("garbage_behind", b"{} x", b"", "not JSON"),
    ("comment", b"/* */{}", b"", "not JSON"),
    ("line_comment", b"{} // x", b"", "not JSON"),
    ("trailing_comma", f'{{"a":{ONE},}}'.encode(), TWO, "not JSON"),
    ("trailing_comma_in_array", text("[2,]"), TWO, "not JSON"),
    ("single_quotes", b"{'a':1}", b"", "not JSON"),
    ("unquoted_key", b"{a:1}", b"", "not JSON"),
    ("missing_colon", b'{"a" 1}', b"", "not JSON"),
    ("unterminated_string", b'{"a', b"", "not JSON"),
    ("bad_escape", b'{"\\x41":1}', b"", "not JSON"),
    ("raw_newline_in_name", b'{"a\nb":1}', b"", "not JSON"),
    ("raw_tab_in_name", b'{"a\tb":1}', b"", "not JSON"),
    ("deep_arrays", b'{"a":' + b"[" * 100_000, b"", "nested too deeply"),
    ("deep_objects", b'{"a":' * 50_000, b"", "nested too deeply"),
    ("invalid_utf8", b'{"\xff":1}', b"", "not UTF-8"),
    ("overlong_utf8", b'{"\xc0\x80":1}', b"", "not UTF-8"),
    ("utf8_surrogate", b'{"\xed\xa0\x80":1}', b"", "not UTF-8"),
    ("utf16", '{"a":1}'.encode("utf-16"), b"", "not UTF-8"),
]
NUMBERS: list[Case] = [
    ("nan_dimension", text("[NaN]"), TWO, "NaN"),
    ("infinite_dimension", text("[Infinity]"), TWO, "Infinity"),
    ("minus_infinity", text("[-Infinity]"), TWO, "-Infinity"),
    ("bool_dimension", text("[true]"), TWO, "not true"),
    ("false_dimension", text("[false]"), b"", "not false"),
    ("null_dimension", text("[null]"), TWO, "not null"),
    ("float_dimension", text("[2.0]"), TWO, "number 2.0"),
    ("exponent_dimension", text("[2e0]"), TWO, "number 2e0"),
    ("string_dimension", text('["2"]'), TWO, "a string"),
    ("nested_dimension", text("[[2]]"), TWO, "an array"),
    ("object_dimension", text("[{}]"), TWO, "an object"),
    ("negative_dimension", text("[-2]"), TWO, "number -2"),
    ("two_negative_dimensions", text("[-1,-2]"), TWO, "number -1"),
    ("minus_zero_dimension", text("[-0]", "[0,0]"), b"", "number -0"),
    ("leading_zero", text("[02]"), TWO, "not JSON"),
    ("plus_sign", text("[+2]"), TWO, "not JSON"),
    ("hexadecimal", text("[0x2]"), TWO, "not JSON"),
    ("underscore", text("[0_2]"), TWO, "not JSON"),
    ("huge_dimension", text(f"[{2**63}]"), TWO, "overflows"),
    ("thousands_of_digits", text("[" + "9" * 3000 + "]"), TWO, "overflows"),
    ("too_many_digits", text("[" + "9" * 20_000 + "]"), TWO, "not JSON"),
    ("bool_offset", text(offsets="[false,2]"), TWO, "not false"),
    ("true_offset", text("[1]", "[0,true]"), b"\1", "not true"),
    ("float_offset", text(offsets="[0.0,2]"), TWO, "number 0.0"),
    ("float_end", text(offsets="[0,2.0]"), TWO, "number 2.0"),
    ("exponent_offset", text(offsets="[0,2E0]"), TWO, "number 2E0"),
    ("negative_begin", text("[3]", "[-1,2]"), TWO, "number -1"),
    ("minus_zero_begin", text(offsets="[-0,2]"), TWO, "number -0"),
    ("string_offsets", text(offsets='["0","2"]'), TWO, "a string"),
    ("null_offset", text(offsets="[null,2]"), TWO, "not null"),
    ("huge_begin", text(offsets=f"[{2**64},{2**64 + 2}]"), TWO, "overflows"),
    ("overflow_behind_zero", text(f"[0,{2**63 - 1},8]", "[0,0]"), b"", "overflows"),
    ("overflow_before_zero", text(f"[{2**63 - 1},8,0]", "[0,0]"), b"", "overflows"),
    ("overflow_by_bits", text(f"[{2**61}]", f"[0,{2**61}]"), b"", "overflows"),
    ("wraps_to_right_size", text(f"[{2**32},{2**32}]", "[0,0]"), b"", "overflows"),
]
FIELDS: list[Case] = [
    ("no_dtype", without("dtype"), TWO, "'dtype' is missing"),
    ("no_shape", without("shape"), TWO, "'shape' is missing"),
    ("no_offsets", without("data_offsets"), TWO, "'data_offsets' is missing"),
    ("empty_entry", {"a": {}}, TWO, "is missing"),
    ("null_entry", {"a": None}, TWO, "not null"),
    ("string_entry", {"a": "U8"}, TWO, "a string"),
    ("number_entry", {"a": 3}, TWO, "number 3"),
    ("array_entry", {"a": ["U8", [2], [0, 2]]}, TWO, "an array"),
    ("nested_entry", {"a": {"b": entry("U8", [2], 0, 2)}}, TWO, "unknown field 'b'"),
    ("unknown_field", one(evil={}), TWO, "unknown field 'evil'"),
    ("unknown_null_field", one(strides=None), TWO, "unknown field 'strides'"),
    ("field_in_capitals", {"a": {"DTYPE": "U8", "shape": [2], "data_offsets": [0, 2]}}, TWO,
     "unknown field 'DTYPE'"),
    ("dtype_number", one(dtype=8), TWO, "dtype must be a string"),
    ("dtype_null", one(dtype=None), TWO, "dtype must be a string"),
    ("dtype_object", one(dtype={"U8": None}), TWO, "dtype must be a string"),
    ("dtype_array", one(dtype=["U8"]), TWO, "dtype must be a string"),
    ("dtype_float", text(dtype="1.5"), TWO, "dtype must be a string"),
    ("dtype_lower", one(dtype="u8"), TWO, "unknown dtype 'u8'"),
    ("dtype_blank", one(dtype="U8 "), TWO, "unknown dtype 'U8 '"),
    ("dtype_empty", one(dtype=""), TWO, "unknown dtype ''"),
    ("dtype_torch", one(dtype="float32"), TWO, "unknown dtype 'float32'"),
    ("dtype_c128", one(dtype="C128"), TWO, "unknown dtype 'C128'"),
    ("shape_null", one(shape=None), TWO, "shape must be an array"),
    ("shape_number", one(shape=2), TWO, "shape must be an array"),
    ("shape_object", one(shape={"0": 2}), TWO, "shape must be an array"),
    ("shape_string", one(shape="2"), TWO, "shape must be an array"),
    ("shape_of_65", one(shape=[1] * 64 + [2]), TWO, "65 dimensions"),
    ("shape_of_1000", one(shape=[1] * 999 + [2]), TWO, "1000 dimensions"),
    ("offsets_null", one(data_offsets=None), TWO, "data_offsets must be an array"),
    ("offsets_object", one(data_offsets={"begin": 0, "end": 2}), TWO, "must be an array"),
    ("offsets_string", one(data_offsets="02"), TWO, "must be an array"),
    ("offsets_none", one(data_offsets=[]), TWO, "two numbers, not 0"),
    ("offsets_one", one(data_offsets=[2]), TWO, "two numbers, not 1"),
    ("offsets_three", one(data_offsets=[0, 1, 2]), TWO, "two numbers, not 3"),
    ("offsets_backwards", one(data_offsets=[2, 0]), TWO, "before they begin"),
    ("size_too_small", one(shape=[1]), TWO, "needs 1 bytes"),
    ("size_too_large", one(shape=[3]), TWO, "needs 3 bytes"),
    ("scalar_of_two_bytes", one(shape=[]), TWO, "needs 1 bytes"),
    ("empty_with_bytes", one(shape=[0]), TWO, "needs 0 bytes"),
    ("f6_misaligned", one(dtype="F6_E2M3", shape=[3], data_offsets=[0, 2]), TWO, "no whole number"),
    ("f4_scalar", one(dtype="F4", shape=[], data_offsets=[0, 0]), b"", "no whole number"),
]  # fmt: skip
TWICE: list[Case] = [
    ("same_name", f'{{"a":{ONE},"a":{ONE}}}'.encode(), TWO, "comes twice"),
    ("same_name_escaped", f'{{"a":{ONE},"\\u0061":{ONE}}}'.encode(), TWO, "comes twice"),
    ("same_name_survivors_cover",
     b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' + f'"a":{ONE}}}'.encode(), TWO,
     "comes twice"),
    ("same_field", b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', TWO,
     "field 'dtype' comes twice"),
    ("same_field_escaped", b'{"a":{"dtype":"U8","shape":[2],"sh\\u0061pe":[2],'
     b'"data_offsets":[0,2]}}', TWO, "field 'shape' comes twice"),
    ("same_metadata", f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{ONE}}}'.encode(), TWO,
     "__metadata__ comes twice"),
    ("same_metadata_key", f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{ONE}}}'.encode(), TWO,
     "key 'k' comes twice"),
]  # fmt: skip
METADATA: list[Case] = [
    ("metadata_null", {"__metadata__": None}, b"", "not null"),
    ("metadata_array", {"__metadata__": ["x"]}, b"", "an array"),
    ("metadata_string", {"__metadata__": "x"}, b"", "a string"),
    ("metadata_number_value", {"__metadata__": {"k": 1}}, b"", "['k'] must be a string"),
    ("metadata_float_value", {"__metadata__": {"k": 1.5}}, b"", "['k'] must be a string"),
    ("metadata_null_value", {"__metadata__": {"k": None}}, b"", "['k'] must be a string"),
    ("metadata_bool_value", {"__metadata__": {"k": True}}, b"", "['k'] must be a string"),
    ("metadata_nested_value", {"__metadata__": {"k": {"x": "y"}}}, b"", "['k'] must be a string"),
    ("metadata_list_value", {"__metadata__": {"k": ["x"]}}, b"", "['k'] must be a string"),
    ("metadata_is_a_tensor", {"__metadata__": entry("U8", [2], 0, 2)}, TWO, "entry of a tensor"),
    ("metadata_lone_surrogate", b'{"__metadata__":{"k":"\\ud800"}}', b"", "lone surrogate"),
    ("metadata_surrogate_key", b'{"__metadata__":{"\\udc00":"v"}}', b"", "lone surrogate"),
]
NAMES: list[Case] = [
    ("empty_name", {"": entry("U8", [2], 0, 2)}, TWO, "empty name"),
    ("nul_in_name", {"a\0b": entry("U8", [2], 0, 2)}, TWO, "control character"),
    ("newline_in_name", {"a\nb": entry("U8", [2], 0, 2)}, TWO, "control character"),
    ("escape_in_name", {"\x1b[31m": entry("U8", [2], 0, 2)}, TWO, "control character"),
    ("delete_in_name", {"a\x7f": entry("U8", [2], 0, 2)}, TWO, "control character"),
    ("raw_delete_in_name", b'{"a\x7f":' + ONE.encode() + b"}", TWO, "control character"),
    ("c1_in_name", '{"a\x85":'.encode() + ONE.encode() + b"}", TWO, "control character"),
    ("lone_surrogate", b'{"\\ud800":' + ONE.encode() + b"}", TWO, "surrogate"),
    ("low_surrogate", b'{"\\udfff":' + ONE.encode() + b"}", TWO, "surrogate"),
    ("swapped_surrogates", b'{"\\ude00\\ud83d":' + ONE.encode() + b"}", TWO, "surrogate"),
    ("very_long_name", {"n" * 5000: entry("U8", [2], 0, 2)}, TWO, "5000 characters"),
]
PLACES: list[Case] = [
    ("hole_at_start", one(data_offsets=[1, 3]), b"\0\1\2", "a hole before it"),
    ("hole_between", {**one(), "b": entry("U8", [1], 3, 4)}, bytes(4), "a hole before it"),
    ("hole_at_end", one(), bytes(4), "2 bytes behind"),
    ("overlap_by_one", {**one(), "b": entry("U8", [2], 1, 3)}, bytes(3), "overlapping"),
    ("same_range", {**one(), "b": entry("U8", [2], 0, 2)}, bytes(2), "overlapping"),
    ("inside_another",
     {"a": entry("U8", [4], 0, 4), "b": entry("U8", [1], 1, 2)}, bytes(4), "overlapping"),
    ("nothing_inside_another", {**one(), "b": entry("U8", [0], 1, 1)}, TWO, "overlapping"),
    ("nothing_beyond_the_end", {**one(), "b": entry("U8", [0], 3, 3)}, TWO, "a hole before it"),
    ("data_without_tensors", {}, TWO, "2 bytes behind"),
    ("one_byte_short", one(), b"\1", "cut short"),
    ("one_byte_more", one(), b"\1\2\3", "1 bytes behind"),
    ("second_cut_short", {**one(), "b": entry("U8", [2], 2, 4)}, b"\1\2\3", "cut short"),
]  # fmt: skip
OURS = JSON + NUMBERS + FIELDS + TWICE + METADATA + NAMES + PLACES


def test_there_are_enough_cases() -> None:
    names = [case[0] for case in (*REFERENCE, *LENGTHS, *OURS)]
    assert len(set(names)) == len(names)
    assert len(LENGTHS) + len(OURS) >= 100


def refuse(path: pathlib.Path, message: str) -> weights.WeightsError:
    for call in (weights.read_header, weights.load_file, weights.safe_open):
        with pytest.raises(weights.WeightsError) as caught:
            call(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value), "the file is named"
    return caught.value


@pytest.mark.parametrize(
    ("name", "file", "message"), REFERENCE + LENGTHS, ids=[c[0] for c in REFERENCE + LENGTHS]
)
def test_bad_file(tmp_path: pathlib.Path, name: str, file: bytes, message: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(file)
    refuse(path, message)


@pytest.mark.parametrize(
    ("name", "header", "data", "message"), OURS, ids=[case[0] for case in OURS]
)
def test_bad_header(
    tmp_path: pathlib.Path, name: str, header: Any, data: bytes, message: str
) -> None:
    refuse(raw_file(tmp_path / "bad.safetensors", header, data), message)


def test_the_tensor_is_named(tmp_path: pathlib.Path) -> None:
    header = {"good.w": entry("U8", [1], 0, 1), "bad.w": entry("F32", [1], 1, 3)}
    path = raw_file(tmp_path / "x.safetensors", header, bytes(3))
    error = refuse(path, "tensor 'bad.w'")
    assert (error.tensor, error.file) == ("bad.w", str(path))
    assert "needs 4 bytes" in error.rule


GOOD: list[tuple[str, bytes | dict[str, Any], bytes]] = [
    ("no_tensors", {}, b""),
    ("blanks_behind", b"{}    ", b""),
    ("blanks_before", b" \t\r\n{}", b""),
    ("zero_sized", {"a": entry("F32", [0], 0, 0)}, b""),
    ("zero_sized_many", {"a": entry("F32", [2, 0], 0, 0), "b": entry("I8", [0], 0, 0)}, b""),
    ("zero_between", {**one(), "z": entry("F32", [0], 2, 2), "b": entry("U8", [1], 2, 3)},
     b"\1\2\3"),
    ("scalar", {"a": entry("F32", [], 0, 4)}, bytes(4)),
    ("other_field_order", b'{"a":{"data_offsets":[0,2],"shape":[2],"dtype":"U8"}}', TWO),
    ("other_tensor_order", {"b": entry("U8", [1], 2, 3), "a": entry("U8", [2], 0, 2)}, b"\1\2\3"),
    ("blanks_inside", b'{ "a" :{ "dtype" : "U8" , "shape" : [ 2 ] , "data_offsets":[0 , 2]}}', TWO),
    ("emoji_name", {"\U0001f600": entry("U8", [2], 0, 2)}, TWO),
    ("escaped_pair", b'{"\\ud83d\\ude00":' + ONE.encode() + b"}", TWO),
    ("name_with_minus", {"a-1": entry("U8", [2], 0, 2)}, TWO),
    ("name_like_a_path", {"../a/b": entry("U8", [2], 0, 2)}, TWO),
    ("names_of_fields", {"dtype": entry("U8", [1], 0, 1), "shape": entry("U8", [1], 1, 2)}, TWO),
    ("metadata_empty", {"__metadata__": {}, **one()}, TWO),
    ("metadata_strings", {"__metadata__": {"k": "v", "": "\n"}, **one()}, TWO),
    ("sixty_four_dimensions", one(shape=[1] * 63 + [2]), TWO),
    ("nan_values", {"a": entry("F32", [1], 0, 4)}, b"\xff\xff\xff\x7f"),
    ("f4", {"a": entry("F4", [1, 2], 0, 1)}, b"\x12"),
    ("odd_length", b'{"a":' + ONE.encode() + b"} ", TWO),
]  # fmt: skip


@pytest.mark.parametrize(("name", "header", "data"), GOOD, ids=[case[0] for case in GOOD])
def test_good_header(tmp_path: pathlib.Path, name: str, header: Any, data: bytes) -> None:
    import safetensors.torch

    path = raw_file(tmp_path / "good.safetensors", header, data)
    found = weights.load_file(path)
    reference = safetensors.torch.load_file(path)
    assert found.keys() == reference.keys()
    for mode in ("mmap", "read"):
        for key, tensor in weights.load_file(path, mode=mode).items():
            assert tensor.dtype == reference[key].dtype
            assert tensor.shape == reference[key].shape


def test_f6_is_listed_but_not_loaded(tmp_path: pathlib.Path) -> None:
    path = raw_file(tmp_path / "f6.safetensors", {"q": entry("F6_E3M2", [4], 0, 3)}, bytes(3))
    assert weights.read_header(path).tensors["q"].shape == (4,)
    with pytest.raises(weights.WeightsError, match=r"'q'.*no dtype for F6_E3M2"):
        weights.load_file(path)


@pytest.mark.parametrize(
    ("pad", "entries", "alignment"),
    [
        (64 - 8, [("F32", 16)], "64"),
        (16 - 8, [("F32", 16)], "16"),
        (8, [("F64", 1)], "16"),
        (0, [("F64", 1)], "8"),
        (4, [("F32", 1)], "element"),
        (2, [("F32", 1)], "none"),
        (1, [("U8", 1)], "element"),
        (4, [("F32", 1), ("F64", 1)], "element"),
        (0, [], "64"),
    ],
)
def test_alignment_is_reported(pad: int, entries: list[tuple[str, int]], alignment: str) -> None:
    """``pad`` is where the data begin, modulo 64, in a text padded to a multiple of 64 first."""
    size = {"F32": 4, "F64": 8, "U8": 1}
    header, at = {}, 0
    for dtype, n in entries:
        header[f"{dtype}{at}"] = entry(dtype, [n], at, at + n * size[dtype])
        at += n * size[dtype]
    body = json.dumps(header).encode()
    body += b" " * (-(8 + len(body)) % 64 + pad % 64)
    if (8 + len(body)) % 64 == 0 and alignment == "8":
        body += b" " * 8
    where = {"64": 0, "16": 16, "8": 8}.get(alignment)
    while where is not None and (8 + len(body)) % 64 != where:
        body += b" "
    assert parse_header(body, at).alignment == alignment


def test_twenty_thousand_tensors_are_fast(tmp_path: pathlib.Path) -> None:
    """60 ms on the machine that it was made for; here only that nothing is quadratic."""
    header = {f"layers.{i}.w": entry("F32", [4, 4], 64 * i, 64 * i + 64) for i in range(20_000)}
    path = raw_file(tmp_path / "many.safetensors", header, bytes(64 * 20_000))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert len(weights.read_header(path).tensors) == 20_000
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5


def test_the_collector_is_on_again() -> None:
    import gc

    assert gc.isenabled()
    with pytest.raises(weights.WeightsError):
        parse_header(b"[]", 0)
    assert gc.isenabled()
