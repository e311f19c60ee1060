"""Checkpoints in several files: what the index says is what is read, and nothing else."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
import torch

from test.weights.weight_files import assert_all_same
from torch_helion import weights


def shards(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    tensors = {f"l{i}.w": torch.randn(20 + i, 7) for i in range(9)}
    weight_map = {}
    for n in range(3):
        name = f"model-{n + 1:05}-of-00003.safetensors"
        part = {k: t for i, (k, t) in enumerate(tensors.items()) if i % 3 == n}
        weights.save_file(part, folder / name, metadata={"format": "pt", "part": str(n)})
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map)
    return tensors


def write_index(folder: pathlib.Path, weight_map: Any, **more: Any) -> pathlib.Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 5}, "weight_map": weight_map, **more}))
    return path


@pytest.mark.parametrize("mode", ["auto", "mmap", "read"])
def test_all_shards(tmp_path: pathlib.Path, mode: str) -> None:
    tensors = shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    assert_all_same(weights.load_file(index, mode=mode), tensors)
    assert_all_same(weights.load_file(tmp_path, mode=mode), tensors)
    with weights.safe_open(index, mode=mode) as opened:
        assert opened.keys() == sorted(tensors)
        assert opened.metadata() == {"format": "pt"}, "what the shards agree on"
        assert_all_same(opened.get_tensors(), tensors)
        assert torch.equal(opened.get_slice("l4.w")[2:9:2, -3:], tensors["l4.w"][2:9:2, -3:])


def test_transformers_checkpoint(tmp_path: pathlib.Path) -> None:
    """Made by ``save_pretrained(max_shard_size=...)``, loaded without transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        vocab_size=99,
    )  # fmt: skip
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_all_same(
        weights.load_file(tmp_path / "model.safetensors.index.json"), dict(model.state_dict())
    )
    other = transformers.BertModel(config)
    assert weights.load_model(other, tmp_path) == ([], [])
    assert_all_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    "name",
    ["../s.safetensors", "/etc/passwd", "x/../../s", "sub/s", "..", ".", "", "a\\b", "c:s", "a\0b",
     "s\n", " s", "s|t"],
)  # fmt: skip
def test_shards_elsewhere_are_refused(tmp_path: pathlib.Path, name: str) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    weights.save_file({"a": torch.ones(2)}, tmp_path / "s.safetensors")
    index = write_index(inside, {"a": name})
    with pytest.raises(weights.WeightsError, match="no plain file name") as caught:
        weights.load_file(index)
    assert str(index) in str(caught.value)


def test_an_absolute_path_is_refused(tmp_path: pathlib.Path) -> None:
    weights.save_file({"a": torch.ones(2)}, tmp_path / "s")
    with pytest.raises(weights.WeightsError, match="no plain file name"):
        weights.load_file(write_index(tmp_path, {"a": str(tmp_path / "s")}))


def test_a_link_out_is_refused(tmp_path: pathlib.Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    weights.save_file({"a": torch.ones(2)}, tmp_path / "secret")
    (inside / "s").symlink_to(tmp_path / "secret")
    with pytest.raises(weights.WeightsError, match="link out of"):
        weights.load_file(write_index(inside, {"a": "s"}))


def test_a_link_inside_is_followed(tmp_path: pathlib.Path) -> None:
    weights.save_file({"a": torch.ones(2)}, tmp_path / "real")
    (tmp_path / "s").symlink_to("real")
    assert list(weights.load_file(write_index(tmp_path, {"a": "s"}))) == ["a"]


def test_a_cache_that_links_everything_to_one_folder(tmp_path: pathlib.Path) -> None:
    """snapshots/REVISION/NAME → ../../blobs/HASH, for the index as for its shards."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "r1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    tensors = shards(blobs)
    for n, path in enumerate(sorted(blobs.iterdir())):
        os.rename(path, blobs / f"hash{n}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{n}")
    assert_all_same(weights.load_file(snapshot), tensors)


BAD: list[tuple[str, Any, str]] = [
    ("not_json", b"{", "not JSON"),
    ("array", b"[]", "must be a JSON object"),
    ("no_map", b"{}", "missing"),
    ("null_map", b'{"weight_map":null}', "null"),
    ("list_map", b'{"weight_map":["a"]}', "an array"),
    ("number_shard", b'{"weight_map":{"a":1}}', "number 1"),
    ("null_shard", b'{"weight_map":{"a":null}}', "not null"),
    ("name_twice", b'{"weight_map":{"a":"s1","a":"s1"}}', "twice"),
    ("map_twice", b'{"weight_map":{"a":"s1"},"weight_map":{"a":"s1"}}', "twice"),
    ("not_utf8", b'{"weight_map":{"\xff":"s1"}}', "not UTF-8"),
    ("nested", b'{"weight_map":' + b"[" * 100_000, "nested"),
    ("tensor_absent", {"a": "s1", "b": "s1", "c": "s2"}, "'b' in the shard 's1', which lacks"),
    ("tensor_not_listed", {"a": "s1"}, None),
    ("shard_absent", {"a": "s1", "x": "s3"}, "'s3' is not there"),
    ("extra_tensor", {"a": "s1", "b": "s2"}, "holds 'c', which"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_index(tmp_path: pathlib.Path, name: str, content: Any, message: str | None) -> None:
    weights.save_file({"a": torch.ones(2)}, tmp_path / "s1")
    weights.save_file({"b": torch.ones(2), "c": torch.ones(3)}, tmp_path / "s2")
    index = tmp_path / "model.safetensors.index.json"
    if isinstance(content, bytes):
        index.write_bytes(content)
    else:
        write_index(tmp_path, content)
    if message is None:
        assert list(weights.load_file(index)) == ["a"], "a stray shard is not read"
        return
    with pytest.raises(weights.WeightsError) as caught:
        weights.load_file(index)
    assert message in str(caught.value) and str(index) in str(caught.value)


def test_one_file_under_two_names_is_refused(tmp_path: pathlib.Path) -> None:
    weights.save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "s1")
    (tmp_path / "s2").symlink_to("s1")
    with pytest.raises(weights.WeightsError, match="'b'"):
        weights.load_file(write_index(tmp_path, {"a": "s1", "b": "s2"}))


def test_a_tensor_in_two_shards_is_refused(tmp_path: pathlib.Path) -> None:
    weights.save_file({"a": torch.ones(2)}, tmp_path / "s1")
    weights.save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "s2")
    with pytest.raises(weights.WeightsError, match="'a'"):
        weights.load_file(write_index(tmp_path, {"a": "s1", "b": "s2"}))
