"""Manifests: what is verified are the bytes that land; whatever differs is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import pytest
import torch

from test.weights.test_index import shards
from test.weights.weight_files import assert_all_same, assert_same
from torch_helion import weights
from torch_helion.weights import file as weight_file
from torch_helion.weights.cli import main


@pytest.fixture
def signed(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file with its manifest."""
    path = tmp_path / "m.safetensors"
    tensors = {f"w{i}": torch.randn(50 + i, 30) for i in range(20)}
    tensors |= {"long": torch.randn(3_000_001), "none": torch.empty(0, 2), "x": torch.ones(1)}
    weights.save_file(tensors, path)
    assert main(["manifest", str(path)]) == 0
    return path


def manifest_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".manifest.json")


def test_its_contents(signed: pathlib.Path) -> None:
    text = manifest_of(signed).read_text()
    root = json.loads(text)
    canonical = json.dumps(root, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text == canonical + "\n"
    record = root["files"]["m.safetensors"]
    raw = signed.read_bytes()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    assert record["header_sha256"] == hashlib.sha256(raw[:4096]).hexdigest()
    assert (record["size"], record["data_start"]) == (len(raw), 4096)
    info = weights.read_header(signed).tensors["w3"]
    part = raw[4096 + info.begin : 4096 + info.end]
    assert record["tensors"]["w3"]["sha256"] == hashlib.sha256(part).hexdigest()
    assert record["tensors"]["w3"]["shape"] == [53, 30]
    assert record["tensors"]["w3"]["dtype"] == "F32"
    assert (4096 + info.begin) % record["tensors"]["w3"]["alignment"] == 0


@pytest.mark.parametrize("threads", [None, 1])
def test_a_good_file(signed: pathlib.Path, threads: int | None) -> None:
    plain = weights.load_file(signed)
    assert_all_same(weights.load_file(signed, verify=True, threads=threads), plain)
    assert_all_same(weights.load_file(signed, verify=manifest_of(signed)), plain)
    assert main(["verify", str(signed)]) == 0
    assert main(["verify", str(signed), "--deep"]) == 0


def flip(path: pathlib.Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("name", ["w0", "w19", "long", "x"])
def test_a_flipped_bit(signed: pathlib.Path, name: str) -> None:
    info = weights.read_header(signed).tensors[name]
    for at in (info.begin, info.end - 1):
        flip(signed, 4096 + at)
        for call in (
            lambda: weights.load_file(signed, verify=True),
            lambda: weights.load_file(signed, verify=True, plan={name: (slice(0, 1),)}),
        ):
            with pytest.raises(weights.WeightsError, match=rf"m\.safetensors: tensor '{name}'"):
                call()
        assert main(["verify", str(signed)]) == 1
        flip(signed, 4096 + at)
    assert main(["verify", str(signed)]) == 0


def test_a_changed_header(signed: pathlib.Path) -> None:
    """Even where it is only a blank more or less."""
    raw = signed.read_bytes()
    signed.write_bytes(raw[:4090] + b"\t" + raw[4091:])
    with pytest.raises(weights.WeightsError, match="sha256 of the header"):
        weights.load_file(signed, verify=True)


def test_another_shape_with_the_same_bytes(signed: pathlib.Path) -> None:
    raw = signed.read_bytes()
    signed.write_bytes(raw.replace(b"[53,30]", b"[30,53]"))
    with pytest.raises(weights.WeightsError, match="tensor 'w3': dtype, shape"):
        weights.load_file(signed, verify=True)


Change = Callable[[dict], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["files"].clear(), "does not list 'm.safetensors'"),
        (lambda r: r["files"]["m.safetensors"]["tensors"].pop("w1"), "tensor 'w1': is in the file"),
        (lambda r: r["files"]["m.safetensors"]["tensors"].update(y=r["files"]["m.safetensors"]
         ["tensors"]["w1"]), "tensor 'y': is in the manifest only"),
        (lambda r: r["files"]["m.safetensors"].update(size=5), "says 5"),
        (lambda r: r["files"]["m.safetensors"].update(size="5"), "size must be an integer"),
        (lambda r: r["files"]["m.safetensors"].update(sha256="0"), "64 hexadecimal"),
        (lambda r: r["files"]["m.safetensors"].update(header_sha256="0" * 64), "header differs"),
        (lambda r: r["files"]["m.safetensors"]["tensors"]["w1"].update(sha256="0" * 64), "'w1'"),
        (lambda r: r["files"]["m.safetensors"]["tensors"]["w1"].update(dtype="I32"), "dtype"),
        (lambda r: r["files"]["m.safetensors"]["tensors"]["w1"].pop("sha256"), "64 hexadecimal"),
        (lambda r: r["files"]["m.safetensors"].update(tensors=[]), "must be an object"),
        (lambda r: r.update(version=2), "no manifest of version 1"),
        (lambda r: r.update(format="x"), "no manifest"),
    ],
)  # fmt: skip
def test_a_changed_manifest(signed: pathlib.Path, change: Change, message: str) -> None:
    path = manifest_of(signed)
    root = json.loads(path.read_text())
    change(root)
    path.write_text(json.dumps(root))
    with pytest.raises(weights.WeightsError, match=message):
        weights.load_file(signed, verify=True)
    assert main(["verify", str(signed)]) == 1


def test_a_manifest_with_a_key_twice(signed: pathlib.Path) -> None:
    path = manifest_of(signed)
    path.write_text(path.read_text().replace('{"files":', '{"files":{},"files":'))
    with pytest.raises(weights.WeightsError, match="'files' comes twice"):
        weights.load_file(signed, verify=True)


def test_the_digest_of_the_whole_file_is_compared_when_asked(signed: pathlib.Path) -> None:
    path = manifest_of(signed)
    root = json.loads(path.read_text())
    root["files"]["m.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(root))
    assert main(["verify", str(signed), "--deep"]) == 1


def test_no_manifest_is_an_error(signed: pathlib.Path) -> None:
    os.remove(manifest_of(signed))
    model = torch.nn.Linear(1, 1)
    for call in (
        lambda: weights.load_file(signed, verify=True),
        lambda: weights.load_file(signed, verify="elsewhere.json"),
        lambda: weights.load_model(model, signed, verify=True),
    ):
        with pytest.raises(FileNotFoundError, match="manifest"):
            call()
    assert main(["verify", str(signed)]) == 2


def test_a_mapping_is_not_verified(signed: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="cannot be verified"):
        weights.load_file(signed, mode="mmap", verify=True)


def test_what_was_hashed_is_what_landed(
    signed: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes right behind each read: the tensors are those that were verified."""
    want = weights.load_file(signed, mode="read")
    real = os.preadv

    def changing(descriptor: int, views: list[memoryview], offset: int, *flags: int) -> int:
        got = real(descriptor, views, offset, *flags)
        if offset >= 4096 and not flags:
            flip(signed, offset)
        return got

    monkeypatch.setattr(weight_file.os, "preadv", changing)
    found = weights.load_file(signed, verify=True)
    monkeypatch.undo()
    assert_all_same(found, want)
    with pytest.raises(weights.WeightsError):
        weights.load_file(signed, verify=True)


def test_an_index(tmp_path: pathlib.Path) -> None:
    tensors = shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(FileNotFoundError):
        weights.load_file(index, verify=True)
    assert main(["manifest", str(tmp_path)]) == 0
    assert (tmp_path / "torch_helion.manifest.json").exists()
    assert_all_same(weights.load_file(index, verify=True), tensors)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(weights.WeightsError, match="00002-of-00003"):
        weights.load_file(index, verify=True)
    flip(shard, shard.stat().st_size - 1)
    index.write_text(index.read_text() + " ")
    with pytest.raises(weights.WeightsError, match=r"index\.json: sha256 differs"):
        weights.load_file(index, verify=True)


def test_a_refused_model_is_unchanged(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    weights.save_model(model, path)
    main(["manifest", str(path)])
    other = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 20))
    before = {name: t.clone() for name, t in other.state_dict().items()}
    flip(path, path.stat().st_size - 1)
    for assign in (False, True):
        with pytest.raises(weights.WeightsError, match="sha256"):
            weights.load_model(other, path, verify=True, assign=assign)
        assert_all_same(dict(other.state_dict()), before)
    flip(path, path.stat().st_size - 1)
    weights.load_model(other, path, verify=True)
    assert_same(other[1].bias, model[1].bias)
