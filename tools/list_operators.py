"""Write docs/operators.md: the ATen and prims overloads that have a lowering of ours.

In: the tables of torch_helion/lowering. Out: the page; with ``--check`` nothing is written and the
exit status says whether the page is current.
"""

from __future__ import annotations

import pathlib
import sys
from collections import defaultdict

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The prims of Inductor exist once it has been imported.
import torch._inductor.inductor_prims  # noqa: E402, F401

from torch_helion.lowering.registry import Lowering  # noqa: E402
from torch_helion.lowering.rows import graph_lowerings  # noqa: E402

LOWERINGS = graph_lowerings()
PAGE = ROOT / "docs" / "operators.md"

KINDS = {
    "pointwise": "one element of the result from the same element of each operand",
    "reduction": "folds some dimensions, or normalises along them",
    "creation": "from numbers and positions alone",
    "random": "from a seed that the graph carries",
    "view": "no code: where each element is read from",
    "gather": "elements read at places that an index tensor holds",
}

HEADER = """# Operators with a lowering of their own

Written by `tools/list_operators.py` from the tables in `torch_helion/lowering`; do not edit.

An operator of this list can be part of a fused kernel. What is not listed stays with Inductor or
ATen. A row may still refuse a call (complex numbers, for example); the refusal is a sentence that
`explain` shows.
"""


def page() -> str:
    """The whole text: one table a kind, one line an operator, its overloads behind it."""
    text = [HEADER]
    for kind, about in KINDS.items():
        rows = [row for row in LOWERINGS.values() if row.kind == kind]
        text += [f"## {kind} ({len(rows)} overloads)", "", f"{about.capitalize()}.", ""]
        text += ["| operator | overloads | kind | rule |", "| --- | --- | --- | --- |"]
        text += [line(name, found) for name, found in sorted(by_operator(rows).items())]
        text.append("")
    text.append(f"{len(LOWERINGS)} overloads.\n")
    return "\n".join(text)


def by_operator(rows: list[Lowering]) -> dict[str, list[Lowering]]:
    found: dict[str, list[Lowering]] = defaultdict(list)
    for row in rows:
        found[str(row.overload).rpartition(".")[0]].append(row)
    return found


def line(operator: str, rows: list[Lowering]) -> str:
    overloads = ", ".join(f"`{str(row.overload).rpartition('.')[2]}`" for row in rows)
    rules = ", ".join(dict.fromkeys(row.rule.__name__ for row in rows))
    return f"| `{operator}` | {overloads} | {rows[0].kind} | {rules} |"


def main(arguments: list[str]) -> int:
    """Write the page, or only compare."""
    text = page()
    if "--check" in arguments:
        current = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE.name} is current" if current else f"{PAGE.name} is old: run {sys.argv[0]}")
        return 0 if current else 1
    PAGE.write_text(text)
    print(f"{PAGE}: {len(LOWERINGS)} overloads")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
