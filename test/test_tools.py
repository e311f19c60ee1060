"""The scripts under ``tools/``: what they decide, without running what they run."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Stands in for the collection: writes verdicts, as the real script does with --json.
COLLECTION = """
import json, sys
verdicts = {"good": {"ok": True}, "bad": {"ok": False, "why": "wrong by 3"}, "other": {"ok": None}}
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(verdicts))
print("arguments:", json.dumps(sys.argv[1:]))
sys.exit(1)
"""


def run_check(tmp_path: pathlib.Path, required: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of ``check_cases.py`` in a checkout made of two files."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "test").mkdir()
    script = tmp_path / "tools" / "check_cases.py"
    script.write_text((ROOT / "tools" / "check_cases.py").read_text())
    (tmp_path / "test" / "cases_required").write_text(required)
    collection = tmp_path / "run_cases.py"
    collection.write_text(COLLECTION)
    command = [sys.executable, str(script), str(collection), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_cases_that_are_not_required_may_fail(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "# all right\ngood  # since the start\n\nother\n")
    assert status == 0
    assert "required cases: 2 of 2 right" in output


def test_a_required_case_that_is_wrong_fails(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "good\nbad\n")
    assert status == 1
    assert "required case failed: bad: wrong by 3" in output
    assert "required cases: 1 of 2 right" in output


def test_a_required_case_that_was_not_run_fails(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "gone\n")
    assert status == 1
    assert "gone: was not run" in output


def test_arguments_reach_the_collection(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "good\nbad\n", "--id", "good")
    assert status == 0, "only what was asked for can be required"
    line = next(line for line in output.splitlines() if line.startswith("arguments:"))
    arguments = json.loads(line.removeprefix("arguments: "))
    assert arguments[:4] == ["--backend", "helion", "--import", "torch_helion"]
    assert arguments[-2:] == ["--id", "good"]


def test_each_group_runs_by_itself(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "good\n[weights]\nother\nbad\n")
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("arguments:")]
    groups = [json.loads(line.removeprefix("arguments: "))[5] for line in lines]
    assert groups == ["compile", "weights"]
    assert "required cases: 2 of 3 right" in output


def test_one_group_can_be_asked_for(tmp_path: pathlib.Path) -> None:
    status, output = run_check(tmp_path, "bad\n[weights]\ngood\n", "--group", "weights")
    assert status == 0
    assert "required cases: 1 of 1 right" in output


def test_setup_prints_nothing_but_the_python() -> None:
    """The other scripts take its standard output as a path; messages go to standard error."""
    lines = (ROOT / "tools" / "setup_env").read_text().splitlines()
    printing = [line.strip() for line in lines if line.strip().startswith(("printf", "echo"))]
    to_standard_output = [line for line in printing if ">" not in line]
    paths = [f"printf '%s\\n' \"{path}\"" for path in ("$venv/bin/python", "$python")]
    allowed = (*paths, "echo all", "echo sources")  # the last two: a function's answer
    assert [line for line in to_standard_output if line not in allowed] == []
