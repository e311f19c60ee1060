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
    for field in dataclasses.fields(settings.Settings):
        assert settings.fields()[field.name] in (bool, int, float, str)
        assert field.metadata["help"]
        assert settings.env_name(field.name) == "TORCH_HELION_" + field.name.upper()
        assert settings.env_name(field.name) in settings.describe()


def test_defaults_without_environment() -> None:
    default = settings.Settings.from_environment({})
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
    assert settings.Settings.from_environment({"TORCH_HELION_STRICT": text}).strict is value


def test_numbers_and_texts() -> None:
    made = settings.Settings.from_environment(
        {"TORCH_HELION_CACHE_LIMIT_MB": "7", "TORCH_HELION_DUMP": "/x y"}
    )
    assert made.cache_limit_mb == 7
    assert made.dump == "/x y"


@pytest.mark.parametrize(("name", "text"), [("STRICT", "maybe"), ("CACHE_LIMIT_MB", "1GB")])
def test_a_wrong_value_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(exc.InvalidValue, match=f"TORCH_HELION_{name} cannot be '{text}'"):
        settings.Settings.from_environment({f"TORCH_HELION_{name}": text})


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
    assert seen == [settings.Settings().cache_limit_mb]


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
        assert c.__name__ in (exc.__doc__ or "") and c.__doc__
