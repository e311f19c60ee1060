"""The command line: what it prints, and 0 for good, 1 for bad, 2 for could not check."""

from __future__ import annotations

import io
import json
import pathlib

import pytest
import torch

from test.weights.test_index import shards
from test.weights.weight_files import entry, raw_file, run
from torch_helion import weights
from torch_helion.weights.cli import main
from torch_helion.weights.progress import ProgressBar

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "m.safetensors"
    tensors = {"a.w": torch.ones(4, 4), "b/../c": torch.ones(2)}
    weights.save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_inspect(saved: pathlib.Path, capsys: Captured) -> None:
    assert main(["inspect", str(saved)]) == 0
    out = capsys.readouterr().out
    assert "2 tensors, 72 bytes, data at 4096" in out
    assert "a.w  F32 [4, 4]" in out and "'format' = 'pt'" in out
    assert "looks like a path" in out
    assert main(["inspect", str(saved), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    facts = found["files"]["m.safetensors"]
    assert found["status"] == 0 and facts["alignment"] == "64"
    assert facts["tensors"]["a.w"] == {
        "dtype": "F32", "shape": [4, 4], "offset": 0, "nbytes": 64, "alignment": 4096
    }  # fmt: skip


def test_inspect_an_index_and_a_folder(tmp_path: pathlib.Path, capsys: Captured) -> None:
    shards(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert main(["inspect", str(path)]) == 0
        assert capsys.readouterr().out.count("3 tensors") == 3


def test_names_cannot_write_to_the_terminal(tmp_path: pathlib.Path, capsys: Captured) -> None:
    header = {"__metadata__": {"k\x1b[2J": "v\x07"}, "a\u202eb": entry("U8", [1], 0, 1)}
    assert main(["inspect", str(raw_file(tmp_path / "x", header, b"\0"))]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out


def test_bad_files(tmp_path: pathlib.Path, capsys: Captured) -> None:
    bad = raw_file(tmp_path / "bad", {"a": entry("U8", [2], 0, 1)}, b"\0")
    for command in (["inspect"], ["verify"], ["manifest"]):
        assert main([*command, str(bad)]) == 1
        assert "needs 2 bytes" in capsys.readouterr().err
    assert main(["inspect", str(bad), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["file"], found["tensor"]) == (1, str(bad), "a")


def test_what_cannot_be_checked(saved: pathlib.Path, capsys: Captured) -> None:
    gone = str(saved.parent / "gone")
    for command in ("inspect", "verify", "manifest"):
        assert main([command, gone]) == 2
    assert main(["convert", gone, gone + ".st"]) == 2
    assert main(["verify", str(saved)]) == 2
    assert "could not check" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2


def test_manifest_and_verify(saved: pathlib.Path, capsys: Captured) -> None:
    other = saved.parent / "other.json"
    assert main(["manifest", str(saved), "-o", str(other)]) == 0
    assert main(["verify", str(saved), "--manifest", str(other)]) == 0
    assert "good: m.safetensors: header and 2 tensors agree" in capsys.readouterr().out
    weights.save_file({"a.w": torch.zeros(4, 4), "b/../c": torch.ones(2)}, saved)
    assert main(["verify", str(saved), "--manifest", str(other)]) == 1


def test_a_deep_look(tmp_path: pathlib.Path, capsys: Captured) -> None:
    nan, inf = float("nan"), float("inf")
    header = {"b": entry("BOOL", [3], 0, 3)}
    path = raw_file(tmp_path / "bools", header, b"\0\1\7")
    main(["manifest", str(path)])
    assert main(["verify", str(path), "--deep"]) == 0
    assert "1 values: bools that are neither 0 nor 1" in capsys.readouterr().out
    path = tmp_path / "values"
    tensors = {
        "x": torch.tensor([nan, inf, -inf, 1.0]).to(torch.bfloat16),
        "f8": torch.tensor([nan, 1.0]).to(torch.float8_e4m3fn),
        "hole": torch.zeros(1000),
        "fine": torch.ones(1000),
    }
    weights.save_file(tensors, path)
    main(["manifest", str(path)])
    capsys.readouterr()
    assert main(["verify", str(path), "--deep", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sorted(notes) == [
        "'f8': 1 values: NaN",
        "'hole': all of its 4000 bytes are 0",
        "'x': 1 values: NaN",
        "'x': 2 values: infinity",
    ]


def test_convert(tmp_path: pathlib.Path, capsys: Captured) -> None:
    torch.save({"w": torch.ones(2), "epoch": 3}, tmp_path / "x.pt")
    arguments = ["convert", str(tmp_path / "x.pt"), str(tmp_path / "x.safetensors")]
    assert main([*arguments, "--report", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "1 tensors from" in out and "skipped: epoch: int" in out
    assert "nothing of it was run): torch._utils._rebuild_tensor_v2" in out
    assert json.loads((tmp_path / "r.json").read_text())["globals"]
    torch.save({"w": torch.ones(2), "s": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").unlink()
    assert main(arguments) == 1
    assert "'s': tensors that cannot be converted" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
    assert main([*arguments, "--allow-lost"]) == 0


def test_as_a_program(saved: pathlib.Path) -> None:
    status, output = run("-m", "torch_helion.weights", "inspect", saved)
    assert status == 0 and "a.w" in output
    status, output = run("-m", "torch_helion.weights", "inspect", saved.parent / "gone")
    assert status == 2 and "Traceback" not in output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_for_people_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_helion.weights.progress._FIRST_AFTER", 0.0)
    monkeypatch.setattr("torch_helion.weights.progress._EVERY", 0.0)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with ProgressBar("verify", 100, stream) as bar:
            bar(50)
            bar(50)
        assert ("verify [###############               ]  50%" in stream.getvalue()) == shown
        assert ("100%" in stream.getvalue()) == shown
        assert stream.getvalue().endswith("\r\x1b[K" if shown else "")
