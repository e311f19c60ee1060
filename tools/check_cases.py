"""Run a cases script with the helion backend and compare its verdicts with ``test/cases_required``.

What flows in: the path of a script that takes ``--backend``, ``--import``, ``--group`` and
``--json FILE`` (verdicts by id). What flows out: its output, then one line; exit status 1 only if
an id in ``test/cases_required`` (one a line, ``#`` starts a comment, ``[group]`` the ids of a
group) is wrong or was not run. Cases that are not required may fail. Without ``--group`` or
``--id`` every group runs.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIRED = ROOT / "test" / "cases_required"
FIRST_GROUP = "compile"


def required_ids(text: str) -> dict[str, list[str]]:
    """The ids named in the file's text, by group."""
    groups: dict[str, list[str]] = {FIRST_GROUP: []}
    group = FIRST_GROUP
    for line in text.splitlines():
        word = line.partition("#")[0].strip()
        if word.startswith("["):
            group = word.strip("[]")
            groups.setdefault(group, [])
        elif word:
            groups[group].append(word)
    return groups


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


def verdicts_of(script: str, group: str, rest: list[str]) -> dict[str, dict[str, object]]:
    """What the script says about the cases of a group."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "verdicts.json")
        command = [sys.executable, script, "--backend", "helion", "--import", "torch_helion"]
        command += ["--group", group, "--json", str(report), *rest]
        subprocess.run(command, cwd=ROOT, check=False)
        found: dict[str, dict[str, object]] = {}
        if report.exists():
            found = json.loads(report.read_text())
        return found


def main(arguments: list[str]) -> int:
    """Run the script given first with the remaining arguments."""
    script, *rest = arguments
    groups = required_ids(REQUIRED.read_text()) if REQUIRED.exists() else {FIRST_GROUP: []}
    if "--group" in rest or "--id" in rest:  # a part of the collection: one group
        group = rest[rest.index("--group") + 1] if "--group" in rest else FIRST_GROUP
        groups = {group: groups.get(group, [])}
    required, wrong = 0, []
    for group, ids in groups.items():
        if "--id" in rest:  # only what was asked for can be required
            ids = [case for case in ids if case in rest]
        required += len(ids)
        wrong += failures(ids, verdicts_of(script, group, rest))
    for sentence in wrong:
        print(f"required case failed: {sentence}")
    print(f"required cases: {required - len(wrong)} of {required} right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
