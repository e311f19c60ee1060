"""Run a cases script with the helion backend and compare its verdicts with ``test/cases_required``.

What flows in: the path of a script that takes ``--backend``, ``--import`` and ``--json FILE``
(verdicts by id). What flows out: its output, then one line; exit status 1 only if an id in
``test/cases_required`` (one a line, ``#`` starts a comment) is wrong or was not run. Cases that are
not required may fail.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIRED = ROOT / "test" / "cases_required"


def required_ids(text: str) -> list[str]:
    """The ids named in the file's text."""
    return [word for line in text.splitlines() if (word := line.partition("#")[0].strip())]


def failures(required: list[str], verdicts: dict[str, dict[str, object]]) -> list[str]:
    """One sentence per required id that is wrong or was not run (null means: not applicable)."""
    found = []
    for case in required:
        verdict = verdicts.get(case)
        if verdict is None:
            found.append(f"{case}: was not run")
        elif verdict.get("ok") is False:
            found.append(f"{case}: {verdict.get('why')}")
    return found


def main(arguments: list[str]) -> int:
    """Run the script given first with the remaining arguments."""
    script, *rest = arguments
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "verdicts.json")
        command = [sys.executable, script, "--backend", "helion", "--import", "torch_helion"]
        subprocess.run([*command, "--json", str(report), *rest], cwd=ROOT, check=False)
        verdicts = json.loads(report.read_text()) if report.exists() else {}
    required = required_ids(REQUIRED.read_text()) if REQUIRED.exists() else []
    if "--id" in rest:  # a part of the collection: only what was asked for can be required
        required = [case for case in required if case in rest]
    wrong = failures(required, verdicts)
    for sentence in wrong:
        print(f"required case failed: {sentence}")
    right = len(required) - len(wrong)
    print(f"required cases: {right} of {len(required)} right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
