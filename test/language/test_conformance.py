"""docs/conformance.md tells the truth: its tests exist, its names are in the package."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
from typing import Any

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.frontend.broken import BROKEN
from test.frontend.harness import run
from test.frontend.kernels import KERNELS
from test.frontend.programs import PROGRAMS
from test.language.misuse import MISUSES
from test.language.test_idioms import IDIOMS
from test.language.test_names import NAMES
from torch_helion import autotuner, exc
from torch_helion.config import _DEFAULTS
from torch_helion.config_spec import VENDOR

TESTS = pathlib.Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "conformance.md"
ROWS: dict[str, Any] = {
    "language/test_idioms": IDIOMS,
    "frontend/test_programs": PROGRAMS,
    "frontend/test_kernels": KERNELS,
    "frontend/test_errors": {fn.__name__ for _, fn, _ in BROKEN},
    "language/test_gallery": {fn.__name__ for _, fn in MISUSES},
}
REFUSED = [
    "dot_scaled",
    "float4_e2m1fn_x2_to_float32",
    "load_float4_e2m1fn_x16_to_float16",
    "load_bfloat16_x16_to_float16",
    "inline_triton",
    "triton_kernel",
    "inline_asm_elementwise",
    "make_async_remote_copy",
    "remote_barrier",
]
FUNCTION: Any = None


@dataclasses.dataclass
class Entry:
    """One row of a table."""

    section: str
    names: list[str]
    mark: str
    status: str
    test: str


def entries() -> list[Entry]:
    found, section = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].replace("`", "")
        cells = [c.strip() for c in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[1] not in ("mark", "---"):
            names = re.findall(r"`([A-Za-z_0-9.*…]+)`", cells[0])
            found.append(Entry(section, names, cells[1], cells[2], cells[3].strip(" `|")))
    return found


ENTRIES = entries()


@pytest.mark.parametrize("test", sorted({e.test for e in ENTRIES}))
def test_the_test_exists(test: str) -> None:
    path, function = re.split(r"::|\[", test.rstrip("]"))
    file = TESTS / f"{path}.py"
    assert file.is_file(), file
    if "[" in test:
        assert function in ROWS[path]
    else:
        assert f"def {function}(" in file.read_text()


def test_every_row_has_a_mark_and_a_status() -> None:
    assert len(ENTRIES) > 200
    assert {e.mark for e in ENTRIES} <= {"C", "M", "R", "M/R", "–"}
    for entry in ENTRIES:
        if "refused" in entry.status:
            for name in re.findall(r"`([A-Z][A-Za-z0-9]+(?:Error)?)`", entry.status):
                known = hasattr(exc, name) or name in ("AttributeError", "ModuleNotFoundError")
                assert known, name


def listed(section: str) -> set[str]:
    return {n for e in ENTRIES if e.section.startswith(section) for n in e.names}


def test_names_exist() -> None:
    private = {"_compat", "_utils", "_testing"}
    for name in listed("Top level") - private:
        if "." in name:
            assert importlib.import_module(f"torch_helion.{name}") is not None
        else:
            assert getattr(helion, name) is not None
    assert hasattr(importlib.import_module("torch_helion._testing"), "run_example")
    for name in listed("torch_helion.autotuner"):
        assert hasattr(autotuner, name)
    gone = {"signal", "wait", "gather", "register_reduction_dim"}
    names = {n for n in listed("torch_helion.language") if not n.startswith(".")}
    assert names - gone == set(NAMES) and gone <= names
    assert {f.name for f in dataclasses.fields(helion.Settings)} <= listed("Settings")


def test_every_class_is_listed() -> None:
    ours = "CaptureError LoweringError VerifierError CodegenError AccuracyError CacheError "
    ours += "NoResultFromRank"
    inside = {"Base", "BaseError", "BaseWarning", "KernelError", "InvalidOption", "InvalidValue"}
    inside |= {"TargetIncomplete", *ours.split()}
    classes = {
        name
        for name, value in vars(exc).items()
        if isinstance(value, type) and issubclass(value, exc.Base)
    }
    assert listed("torch_helion.exc") == classes - inside
    page = (PAGE.parent / "errors.md").read_text()
    for entry in ENTRIES:
        shown = entry.test.startswith(("frontend/test_errors[", "language/test_gallery["))
        if entry.section == "torch_helion.exc" and shown:
            assert f"## `{entry.names[0]}`" in page


def test_config_fields_are_listed() -> None:
    assert {*_DEFAULTS, *VENDOR} <= listed("Config")


def test_what_is_refused_is_not_there() -> None:
    for name in ("signal", "wait", "gather", "register_reduction_dim"):
        assert not hasattr(hl, name)
    with pytest.raises(exc.BackendImplementationMissing):
        helion.kernel(identity).jax_fn(torch.ones(2))
    with pytest.raises(exc.BackendImplementationMissing):
        autotuner.RemoteAutotuneCache(None)


def identity(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile]
    return out


@pytest.mark.parametrize("name", REFUSED)
def test_refused_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FUNCTION", getattr(hl, name))

    def calls(x: torch.Tensor) -> torch.Tensor:
        for tile in hl.tile(4):
            x[tile] = FUNCTION(x[tile])
        return x

    with pytest.raises(exc.BackendUnsupported, match=name):
        run(calls, torch.ones(4))


def test_attributes_of_bound_kernels() -> None:
    x = torch.randn(5)
    kernel = helion.kernel(identity)
    bound = kernel.bind((x,))
    assert bound.kernel is kernel and bound.configs == []
    assert bound.settings is kernel.settings and bound.env.config_spec is bound.config_spec
    assert len(bound.config_spec.block_sizes) == 1
    assert helion.Config(**bound.config_spec.default_config()).block_sizes
    assert bound.host_function.device_ir is not None
    assert bound.get_cached_path(None) is None
    assert torch.equal(bound.run_ref(x), x) and torch.equal(bound(x), x)
    assert kernel.specialization_key((x,)) != kernel.specialization_key((x.double(),))
