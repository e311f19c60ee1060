"""Nothing of the package unpickles: its text says so, and an audit hook in the main flows."""

from __future__ import annotations

import ast
import pathlib
import re

import torch

from test.weights.test_index import shards
from test.weights.weight_files import ROOT, run
from torch_helion import weights

PACKAGE = ROOT / "torch_helion" / "weights"
MODULES = {"pickle", "cPickle", "_pickle", "pickletools", "dill", "marshal", "shelve", "runpy"}
CALLS = re.compile(
    r"torch\.load\b|weights_only|\beval\(|\bexec\(|__import__|import_module|Unpickler"
)


def unsafe(text: str) -> list[str]:
    """Imports of unpicklers, and code (not prose) that loads, evaluates or imports by name."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        found += [name for name in names if name in MODULES]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # a docstring
    found += CALLS.findall(ast.unparse(tree))
    return found


def test_no_file_of_the_package_unpickles() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    assert {f.name: unsafe(f.read_text()) for f in files if unsafe(f.read_text())} == {}


def test_the_search_finds_what_it_should() -> None:
    for text in (
        "import pickle",
        "from pickle import loads",
        "import pickletools as p",
        "torch.load(f)",
        "f(weights_only=True)",
        "eval(x)",
        "importlib.import_module(n)",
    ):
        assert unsafe(text), text
    assert unsafe('"""Never torch.load."""\nx = 1  # torch.load') == []


def test_the_package_stands_alone() -> None:
    """Of ours it imports floor 0 and itself, of others torch only."""
    allowed = {"torch", "torch_helion"}
    import sys

    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, (file.name, name)


FLOWS = """
import os, sys
import torch
from torch_helion import weights
from torch_helion.weights.cli import main

folder = sys.argv[1]
path = lambda name: os.path.join(folder, name)
events = []
def hook(event, arguments):
    if event in ("pickle.find_class", "exec", "compile", "os.system", "marshal.loads") or \\
            event.startswith(("subprocess", "socket", "os.exec", "os.fork", "os.posix_spawn")):
        events.append((event, str(arguments)[:99]))

model = torch.nn.Linear(30, 20)
def flows():
    weights.save_model(model, path("m.safetensors"))
    weights.save_file({"a": torch.ones(3)}, path("f.safetensors"))
    for mode in ("mmap", "read"):
        weights.load_file(path("f.safetensors"), mode=mode)
        weights.load_file(path("model.safetensors.index.json"), mode=mode)
    assert main(["manifest", path("m.safetensors")]) == 0
    assert main(["verify", path("m.safetensors"), "--deep"]) == 0
    assert main(["inspect", path("m.safetensors")]) == 0
    assert main(["convert", path("x.pt"), path("x.safetensors"), "--report", path("r")]) == 0
    assert main(["convert", path("old.pt"), path("x.safetensors")]) == 0
    weights.load_model(model, path("m.safetensors"), verify=True)
    made = weights.meta_model(lambda: torch.nn.Linear(30, 20), path("m.safetensors"))
    weights.load_model(made, path("m.safetensors"), wait=False).result(60)
    with weights.safe_open(path("f.safetensors")) as opened:
        opened.get_slice("a")[1:]
    weights.rank_plan(path("m.safetensors"), {"weight": 0}, 0, 2)

flows()  # so that what is imported lazily (code is then executed) is there
sys.addaudithook(hook)
flows()
assert not events, events
torch.load(path("x.pt"), weights_only=False)
assert any(event == "pickle.find_class" for event, _ in events), "the hook must work"
print("clean")
"""


def test_the_main_flows_under_an_audit_hook(tmp_path: pathlib.Path) -> None:
    shards(tmp_path)
    torch.save({"w": torch.ones(3), "p": torch.nn.Parameter(torch.ones(1))}, tmp_path / "x.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    status, output = run("-c", FLOWS, tmp_path)
    assert status == 0 and output.endswith("clean\n"), output


def test_the_public_names() -> None:
    names = (
        "load_file safe_open load_model save_file save_model read_header meta_model WeightsError"
    )
    assert all(hasattr(weights, name) for name in names.split())
    assert issubclass(weights.WeightsError, ValueError)
    error = weights.WeightsError("rule", "file", "tensor")
    assert str(error) == "file: tensor 'tensor': rule"


def test_logs_of_everything_do_not_break_torch() -> None:
    """torch imports every package below the names in TORCH_LOGS while it is being imported."""
    code = "import torch, torch_helion.weights as w; assert callable(w.load_file)"
    assert run("-c", code, TORCH_LOGS="+torch_helion")[0] == 0
