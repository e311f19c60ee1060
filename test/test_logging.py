"""Loggers by artefact, warnings said once, stage dumps."""

from __future__ import annotations

import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torch_helion import _logging, exc, settings


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    _logging.configure("")


def run_python(code: str, **environment: str) -> tuple[str, str]:
    """Standard output and error of ``code`` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout, done.stderr


SPEAK = (
    "from torch_helion import _logging\n"
    "for a in ('capture', 'code', 'launch'):\n"
    "    log = _logging.get_logger(a)\n"
    "    log.debug('%s debug', a); log.info('%s info', a); log.warning('%s warning', a)\n"
)


def test_levels_of_words() -> None:
    assert _logging.levels_of("capture,+code,-launch") == {
        "capture": logging.INFO,
        "code": logging.DEBUG,
        "launch": logging.ERROR,
    }
    everything = _logging.levels_of("+all, -launch")
    assert set(everything) == set(_logging.ARTEFACTS)
    assert everything["launch"] == logging.ERROR and everything["tune"] == logging.DEBUG
    assert _logging.levels_of("") == {}


def test_unknown_artefacts_say_the_nearest() -> None:
    with pytest.raises(exc.InvalidOption, match="did you mean 'capture'"):
        _logging.levels_of("captur")
    with pytest.raises(exc.InvalidOption, match="log artefact 'cods'"):
        _logging.get_logger("cods")


def test_only_warnings_by_default() -> None:
    out, err = run_python(SPEAK, TORCH_HELION_LOGS="")
    assert out == ""
    assert "info" not in err and "debug" not in err
    assert "capture warning" in err


def test_variable_turns_artefacts_on() -> None:
    out, err = run_python(SPEAK, TORCH_HELION_LOGS="capture,+code,-launch")
    assert out == ""
    lines = [line.split(": ", 1)[1] for line in err.splitlines()]
    assert lines == [
        "capture info",
        "capture warning",
        "code debug",
        "code info",
        "code warning",
    ]


def test_a_wrong_variable_warns_and_goes_on() -> None:
    _, err = run_python(SPEAK, TORCH_HELION_LOGS="captur")
    assert "TORCH_HELION_LOGS: unknown log artefact 'captur'; did you mean 'capture'?" in err
    assert "capture warning" in err


def test_torch_logs_work_and_nothing_is_said_twice() -> None:
    code = "import torch\n" + SPEAK
    _, err = run_python(code, TORCH_LOGS="+torch_helion", TORCH_HELION_LOGS="")
    assert err.count("capture debug") == 1
    _, err = run_python(code, TORCH_LOGS="+torch_helion", TORCH_HELION_LOGS="+capture")
    assert err.count("capture debug") == 1


def test_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    log = _logging.get_logger("cache")
    with caplog.at_level(logging.DEBUG, "torch_helion.cache"):
        for _ in range(3):
            _logging.warn_once(log, ("test_warn_once", "a"), "said %d", 1)
        _logging.warn_once(log, ("test_warn_once", "b"), "other")
    levels = [r.levelname for r in caplog.records]
    assert levels == ["WARNING", "DEBUG", "DEBUG", "WARNING"]
    assert caplog.records[0].funcName == "test_warn_once"


def test_dump_numbers_stages_by_scope(tmp_path: pathlib.Path) -> None:
    with settings.patch(dump=str(tmp_path)):
        assert _logging.dump("graph.py", "a") == tmp_path / "00_graph.py"
        assert _logging.dump("fused", "b") == tmp_path / "01_fused.txt"
        with _logging.dump_scope("graph 0"), _logging.dump_scope("k/1"):
            assert _logging.dump("kernel.ll", lambda: "c") == tmp_path / "graph_0/k_1/00_kernel.ll"
        assert _logging.dump("../../escape.txt", "d") == tmp_path / "02__.._escape.txt"
    assert (tmp_path / "graph_0/k_1/00_kernel.ll").read_text() == "c"


def test_dump_does_nothing_unless_asked(tmp_path: pathlib.Path) -> None:
    def text() -> str:
        raise AssertionError("printed for nothing")

    with settings.patch(dump=""):
        assert _logging.dump("kernel", text) is None


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with settings.patch(dump=str(tmp_path / "file" / "below")):
        assert _logging.dump("kernel", "x") is None
    assert "cannot write stage dumps" in caplog.text
