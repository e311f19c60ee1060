"""Honest checkpoints: every tensor bit for bit under the name that ``state_dict`` gives it."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from test.weights.pickle_bytes import (
    DATA,
    archive,
    dict_of,
    legacy,
    storage,
    tensor,
    text,
    tuple_of,
)
from test.weights.weight_files import assert_all_same, assert_same, run
from torch_helion import weights


class Attention(nn.Module):
    """A module of a class that the converter cannot import."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.register_buffer("mask", torch.ones(4, 4).tril())
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("no_bias", None)
        self.scale = 3.0


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.emb.weight


class Slotted:
    __slots__ = ("w",)

    def __init__(self) -> None:
        self.w = torch.ones(3)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as the converter should give them."""
    if isinstance(value, nn.Module):
        value = dict(value.state_dict())
    if isinstance(value, torch.Tensor):
        yield name[:-1], value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}{key}.")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from flat(item, f"{name}{place}.")


def optimizer() -> dict[str, Any]:
    model = nn.Linear(5, 3)
    chosen = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 5)).sum().backward()
    chosen.step()
    return {"model": model.state_dict(), "optimizer": chosen.state_dict(), "epoch": 3}


def every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "complex64",
    ]
    raw = torch.randint(0, 256, (3, 40), dtype=torch.uint8, generator=generator)
    found = {name: raw.clone().view(getattr(torch, name)) for name in names}
    return found | {"bool": raw > 99}


def newer_dtypes() -> dict[str, torch.Tensor]:
    names = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu uint16 uint32"
    raw = torch.arange(240, dtype=torch.uint8).reshape(3, 80)
    have = [n for n in [*names.split(), "uint64"] if hasattr(torch, n)]
    return {n: raw.clone().view(getattr(torch, n)) for n in have}


def views() -> dict[str, torch.Tensor]:
    base = torch.randn(50, 70)
    return {
        "whole": base,
        "turned": base.t(),
        "rows": base[7:20],
        "columns": base[:, 3:60:4],
        "expanded": base[:, :1].expand(50, 9),
        "permuted": torch.randn(3, 4, 5).permute(2, 0, 1),
        "overlapping": torch.arange(20.0).unfold(0, 6, 2),
        "scalar": base[3, 4],
        "empty": base[:0],
        "conj": torch.randn(5, dtype=torch.complex64).conj(),
        "negative": torch.randn(5, dtype=torch.complex64).conj().imag,
    }


class Subclass(torch.Tensor):
    pass


def with_attribute() -> torch.Tensor:
    made = nn.Parameter(torch.randn(3))
    made.tag = "kept"
    return made


HONEST: dict[str, Any] = {
    "state_dict": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)).state_dict(),
    "one_tensor_in_dict": lambda: {"w": torch.randn(3, 4)},
    "parameters": lambda: {
        "p": nn.Parameter(torch.randn(3)),
        "q": nn.Parameter(torch.ones(2), False),
    },
    "parameter_with_attribute": lambda: {"p": with_attribute()},
    "gradients_wanted": lambda: {"p": torch.randn(3, requires_grad=True)},
    "nested": lambda: {"a": {"b": {"c": torch.ones(2)}}, "d": [torch.zeros(1), (torch.ones(3),)]},
    "training_run": optimizer,
    "plain_list": lambda: [torch.ones(2), torch.zeros(3)],
    "plain_tuple": lambda: (torch.ones(2), {"x": torch.zeros(3)}),
    "ordered": lambda: collections.OrderedDict(b=torch.ones(1), a=torch.zeros(2)),
    "defaultdict": lambda: collections.defaultdict(list, k=[torch.ones(2)]),
    "whole_module": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Conv2d(2, 3, 3)),
    "own_module": Attention,
    "modules_inside": lambda: {"model": Attention(), "ema": nn.Linear(2, 2)},
    "module_list": lambda: nn.ModuleList([nn.Linear(2, 2), nn.ParameterList([torch.ones(3)])]),
    "deep_module": lambda: nn.Transformer(8, 2, 1, 1, 16),
    "tied_module": Tied,
    "tied_state_dict": lambda: Tied().state_dict(),
    "views": views,
    "large_view": lambda: {"t": torch.randn(900, 1100).t()},
    "dtypes": every_dtype,
    "specials": lambda: {"s": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])},
    "empties": lambda: {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "c": torch.tensor(1.5)},
    "unicode_names": lambda: {"größe": torch.ones(1), "重み": {"ü": torch.zeros(1)}},
    "integer_keys": lambda: {0: torch.ones(1), 7: {1: torch.zeros(1)}},
    "many": lambda: {f"layer.{i}.w": torch.full((3,), float(i)) for i in range(500)},
}
ZIP_ONLY: dict[str, Any] = {
    "newer_dtypes": newer_dtypes,
    "subclass": lambda: {"s": torch.randn(3).as_subclass(Subclass)},
}
FORMATS = [(zip_, protocol) for zip_ in (True, False) for protocol in (2, 4)]


def convert(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    target = path.with_suffix(".safetensors")
    report = weights.convert(path, target)
    return weights.load_file(target), report


def test_there_are_enough() -> None:
    assert len(HONEST) + len(ZIP_ONLY) >= 25


@pytest.mark.parametrize(("zip_", "protocol"), FORMATS)
@pytest.mark.parametrize("name", HONEST)
def test_honest(tmp_path: pathlib.Path, name: str, zip_: bool, protocol: int) -> None:
    value = HONEST[name]()
    torch.save(
        value, tmp_path / "x.pt", _use_new_zipfile_serialization=zip_, pickle_protocol=protocol
    )
    found, report = convert(tmp_path / "x.pt")
    assert_all_same(found, dict(flat(value)))
    assert report["format"] == ("zip" if zip_ else "legacy")
    assert report["lost"] == []


@pytest.mark.parametrize("name", ZIP_ONLY)
def test_honest_in_the_newer_format(tmp_path: pathlib.Path, name: str) -> None:
    value = ZIP_ONLY[name]()
    torch.save(value, tmp_path / "x.pt")
    found, _ = convert(tmp_path / "x.pt")
    assert_all_same(found, {n: t.as_subclass(torch.Tensor) for n, t in flat(value)})


def test_views_that_need_parts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_helion.weights import strided
    from torch_helion.weights.convert import convert as module

    monkeypatch.setattr(module, "_PART", 4096)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    monkeypatch.setattr(strided, "_COVER_LIMIT", 4096)
    value = {**views(), "large": torch.randn(200, 300).t(), "long": torch.randn(9999)[::3]}
    torch.save(value, tmp_path / "x.pt")
    assert_all_same(convert(tmp_path / "x.pt")[0], value)


def test_a_checkpoint_without_crc(tmp_path: pathlib.Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.randn(9)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    found, _ = convert(tmp_path / "x.pt")
    assert_same(found["a"], torch.load(tmp_path / "x.pt")["a"])


def test_the_oldest_views_of_storages(tmp_path: pathlib.Path) -> None:
    """(key of the view, offset, size) behind a storage's size, as files of 2017 have it."""
    view = tuple_of(text("v"), b"K\x01", b"K\x03")
    body = dict_of(a=tensor((2,), (1,), 1, storage("0", 4, "FloatStorage", view)))
    found, _ = convert(legacy(tmp_path / "x.pt", body))
    assert found["a"].tolist() == [3.0, 4.0]


def test_hand_written_files_are_read(tmp_path: pathlib.Path) -> None:
    """What the attacks vary is honest to begin with."""
    for make in (archive, legacy):
        found, report = convert(make(tmp_path / "x.pt", dict_of(a=tensor())))
        assert found["a"].tolist() == [1.0, 2.0, 3.0, 4.0]
        assert report["skipped"] == []
    assert len(DATA) == 16


def test_the_report(tmp_path: pathlib.Path) -> None:
    value = {
        "state_dict": Tied().state_dict(),
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "shape": torch.Size([3]),
        "rng": list(range(625)),
        "step": 5,
        "who": Slotted(),
        ("a", "tuple"): 1,
    }
    torch.save(value, tmp_path / "x.pt")
    report = weights.convert(tmp_path / "x.pt", tmp_path / "o", report=tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == report
    skipped = {entry["name"]: entry["what"] for entry in report["skipped"]}
    assert "<object argparse.Namespace>" in skipped["hyper_parameters"]
    assert skipped["rng"] == "625 plain values"
    assert skipped["step"] == "int" and skipped["hyper_parameters.lr"] == "float"
    assert "argparse.Namespace" in report["globals"]
    assert report["tied"] == [["state_dict.emb.weight", "state_dict.out.weight"]]
    assert set(report["tensors"]) == {"state_dict.emb.weight", "state_dict.out.weight", "who.w"}
    assert report["tensors"]["who.w"] == {
        "dtype": "F32", "shape": [3], "storage": report["tensors"]["who.w"]["storage"]
    }  # fmt: skip


LOST = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
    "complex128": lambda: torch.ones(2, dtype=torch.complex128),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LOST)
def test_tensors_without_a_place_are_never_lost_silently(tmp_path: pathlib.Path, kind: str) -> None:
    torch.save({"good": torch.ones(2), "odd": {"t": LOST[kind]()}}, tmp_path / "x.pt")
    target = tmp_path / "o"
    with pytest.raises(weights.WeightsError, match=r"x\.pt: tensor 'odd\.t'.*cannot be converted"):
        weights.convert(tmp_path / "x.pt", target, report=tmp_path / "r.json")
    assert not target.exists()
    assert [e["name"] for e in json.loads((tmp_path / "r.json").read_text())["lost"]] == ["odd.t"]
    report = weights.convert(tmp_path / "x.pt", target, allow_lost=True)
    assert [entry["name"] for entry in report["lost"]] == ["odd.t"]
    assert list(weights.load_file(target)) == ["good"]


def test_two_tensors_of_one_name(tmp_path: pathlib.Path) -> None:
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(weights.WeightsError, match=r"'a\.b': two tensors"):
        weights.convert(tmp_path / "x.pt", tmp_path / "o")


def test_nothing_to_convert(tmp_path: pathlib.Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(weights.WeightsError, match="no tensors"):
        weights.convert(tmp_path / "x.pt", tmp_path / "o")
    with pytest.raises(weights.WeightsError, match="itself"):
        weights.convert(tmp_path / "x.pt", tmp_path / "x.pt")
    assert not (tmp_path / "o").exists()


MEASURE = """
import pathlib, sys, torch
from torch_helion import weights
weights.convert(sys.argv[1], sys.argv[2])
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def test_memory_is_constant(tmp_path: pathlib.Path) -> None:
    """300 MB, half of them in a view that is turned; the bound is far below that."""
    peak = {}
    for name, n in (("tiny", 4), ("large", 5000)):
        value = {"a": torch.zeros(n, 2 * n).to(torch.bfloat16)}
        value["t"] = torch.zeros(n, 2 * n).to(torch.bfloat16).t()
        value["b"] = torch.zeros(n, 2 * n).to(torch.bfloat16)
        torch.save(value, tmp_path / f"{name}.pt")
        del value
        status, output = run("-c", MEASURE, tmp_path / f"{name}.pt", tmp_path / f"{name}.st")
        assert status == 0, output
        peak[name] = int(output)
    assert peak["large"] - peak["tiny"] < 100_000, "kilobytes"
    found = weights.load_file(tmp_path / "large.st")
    assert found["t"].shape == (10_000, 5000)
