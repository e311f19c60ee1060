"""Settings: environment names, parsing, patches, errors."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import threading
from collections.abc import Iterator

import pytest

from torch_helion import exc, settings


@pytest.fixture(autouse=True)
def _reread_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    settings.reload()


def test_every_field_has_type_help_and_a_derived_variable() -> None:
    for field in dataclasses.fields(settings.Switches):
        assert settings.fields()[field.name] in (bool, int, float, str)
        assert field.metadata["help"]
        assert settings.env_name(field.name) == "TORCH_HELION_" + field.name.upper()
        assert settings.env_name(field.name) in settings.describe()


def test_defaults_without_environment() -> None:
    default = settings.Switches.from_environment({})
    assert default.check and not default.strict and not default.dump
    assert default.cache_dir.endswith("torch_helion")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True),
        ("on", True),
        ("True", True),
        ("yes", True),
        ("0", False),
        ("", False),
        (" off ", False),
    ],
)
def test_words_for_booleans(text: str, value: bool) -> None:
    assert settings.Switches.from_environment({"TORCH_HELION_STRICT": text}).strict is value


def test_numbers_and_texts() -> None:
    made = settings.Switches.from_environment(
        {"TORCH_HELION_CACHE_LIMIT_MB": "7", "TORCH_HELION_DUMP": "/x y"}
    )
    assert made.cache_limit_mb == 7
    assert made.dump == "/x y"


@pytest.mark.parametrize(("name", "text"), [("STRICT", "maybe"), ("CACHE_LIMIT_MB", "1GB")])
def test_a_wrong_value_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(exc.InvalidValue, match=f"TORCH_HELION_{name} cannot be '{text}'"):
        settings.Switches.from_environment({f"TORCH_HELION_{name}": text})


def test_environment_is_read_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HELION_STRICT", "1")
    assert settings.reload().strict
    monkeypatch.setenv("TORCH_HELION_STRICT", "0")
    assert settings.current().strict, "read once"
    assert not settings.reload().strict


def test_an_unknown_variable_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HELION_STRIKT", "1")
    monkeypatch.setenv("TORCH_HELION_VENV", "/venv")
    with caplog.at_level(logging.WARNING, "torch_helion"):
        settings.reload()
    (record,) = caplog.records
    assert "did you mean 'TORCH_HELION_STRICT'?" in record.getMessage()


def test_patch_nests_and_restores(tmp_path: pathlib.Path) -> None:
    before = settings.current()
    with settings.patch(strict=True) as outer:
        assert outer is settings.current()
        with settings.patch(dump=tmp_path):
            assert settings.current().strict
            assert settings.current().dump == str(tmp_path)
        with pytest.raises(RuntimeError, match="boom"), settings.patch(strict=False):
            raise RuntimeError("boom")
        assert settings.current() == outer
    assert settings.current() == before


def test_patch_is_seen_by_its_own_thread_only() -> None:
    seen = []
    with settings.patch(cache_limit_mb=3):
        thread = threading.Thread(target=lambda: seen.append(settings.current().cache_limit_mb))
        thread.start()
        thread.join()
    assert seen == [settings.Switches().cache_limit_mb]


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(
        exc.InvalidOption, match=r"unknown setting 'stritc'; did you mean 'strict'\?"
    ):
        settings.current().replace(stritc=True)
    with pytest.raises(exc.InvalidOption, match="known: cache_dir"), settings.patch(zzzzzz=1):
        pass


def test_types_are_checked() -> None:
    with pytest.raises(exc.InvalidValue, match="strict cannot be 1"):
        settings.current().replace(strict=1)
    with pytest.raises(exc.InvalidValue, match="cache_limit_mb"):
        settings.current().replace(cache_limit_mb=True)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.current().strict = True  # type: ignore[misc]


def test_errors_carry_their_facts() -> None:
    import copy
    import pickle

    error = exc.LoweringError("erf", "int8", why="no row")
    assert (error.op, error.dtype, error.why) == ("erf", "int8", "no row")
    assert str(error) == "no lowering for erf (int8): no row"
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error) and type(again) is exc.LoweringError
    assert "any dtype" in str(exc.LoweringError("erf"))
    with pytest.raises(TypeError, match="needs 'op'"):
        exc.LoweringError()
    with pytest.raises(TypeError, match="no field"):
        exc.LoweringError("erf", reason="x")
    with pytest.raises(AttributeError):
        error.nothing  # noqa: B018


def test_every_error_is_a_base() -> None:
    classes = [c for c in vars(exc).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) >= 10
    for c in classes:
        assert issubclass(c, exc.Base) and issubclass(c, RuntimeError)
        assert c.__doc__


# ---------------------------------------------------------------------- settings of a kernel


def test_kernel_settings_have_defaults_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HELION_INTERPRET", "TORCH_HELION_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    made = settings.Settings()
    assert made.static_shapes and made.autotune_effort == "full" and made.ignore_warnings == []
    assert made.ref_mode is settings.RefMode.OFF and made.index_dtype is None
    assert len(dataclasses.fields(made)) >= 50
    for field in dataclasses.fields(made):
        assert field.metadata["help"] and settings.env_name(field.name) in settings.describe()
    assert made.to_dict()["fast_math"] is False
    assert made.copy(fast_math=True).fast_math and not made.fast_math


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELION_STATIC_SHAPES", "0")
    assert not settings.Settings().static_shapes
    assert settings.Settings(static_shapes=True).static_shapes
    monkeypatch.setenv("TORCH_HELION_STATIC_SHAPES", "1")
    assert settings.Settings().static_shapes, "our own name wins over the alias"


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, text in {
        "HELION_INTERPRET": "1",
        "HELION_INDEX_DTYPE": "int64",
        "HELION_AUTOTUNE_EFFORT": "none",
        "HELION_IGNORE_WARNINGS": "WrongDevice, TensorOperationInWrapper",
        "HELION_AUTOTUNE_CONFIG_OVERRIDES": '{"num_warps": 4}',
        "HELION_AUTOTUNE_BUDGET_SECONDS": "7",
        "HELION_AUTOTUNE_REBENCHMARK_THRESHOLD": "2.5",
        "TRITON_F32_DEFAULT": "ieee",
    }.items():
        monkeypatch.setenv(name, text)
    made = settings.Settings()
    assert made.ref_mode is settings.RefMode.EAGER and made.index_dtype is torch.int64
    assert made.autotune_effort == "none" and made.dot_precision == "ieee"
    assert made.ignore_warnings == ["WrongDevice", "TensorOperationInWrapper"]
    assert made.autotune_config_overrides == {"num_warps": 4}
    assert made.autotune_budget_seconds == 7 and made.autotune_rebenchmark_threshold == 2.5


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("HELION_STATIC_SHAPES", "maybe"),
        ("HELION_AUTOTUNE_EFFORT", "some"),
        ("HELION_INDEX_DTYPE", "int65"),
        ("HELION_AUTOTUNE_CONFIG_OVERRIDES", "[1]"),
        ("HELION_AUTOTUNE_BEST_OF_K", "x"),
    ],
)
def test_wrong_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match="cannot be"):
        settings.Settings()


def test_settings_can_be_changed_but_not_misspelt() -> None:
    made = settings.Settings(ignore_warnings=[exc.WrongDevice])
    made.static_shapes = False
    assert not made.static_shapes
    with pytest.raises(TypeError, match="did you mean 'static_shapes'"):
        made.static_shape = True
    with pytest.raises(ValueError, match="'none' or 'quick' or 'full'"):
        made.autotune_effort = "much"
    with pytest.raises(ValueError, match="ref_mode"):
        settings.Settings(ref_mode=True)
    with pytest.raises(ValueError, match="ignore_warnings"):
        settings.Settings(ignore_warnings=[ValueError])


def test_flags_and_switches_have_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.flag("SKIP_CACHE") == ""
    monkeypatch.setenv("HELION_SKIP_CACHE", "1")
    assert settings.flag("SKIP_CACHE") == "1"
    made = settings.Switches.from_environment({"HELION_CACHE_DIR": "/x", "HELION_LOGS": "all"})
    assert made.cache_dir == "/x" and made.logs == "all"
    both = {"HELION_CACHE_DIR": "/x", "TORCH_HELION_CACHE_DIR": "/y"}
    assert settings.Switches.from_environment(both).cache_dir == "/y"
