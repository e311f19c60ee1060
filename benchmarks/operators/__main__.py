"""Every operator suite, one after the other: ``python -m benchmarks.operators --list``.

What flows in: the options of ``benchmarks/harness.py``, for all suites alike. What flows out: what
each suite prints and saves; with ``--list`` the labels of all cases and their number.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from harness import parser, run_suite  # noqa: E402

SUITES = ("map_reduce", "products", "attention", "language")


def main() -> int:
    args = parser(__doc__.split("\n")[0]).parse_args()
    total = 0
    for suite in SUITES:
        cases = importlib.import_module(f"benchmarks.operators.{suite}").cases()
        if not args.list:
            run_suite(suite, cases, args)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as listed:
            run_suite(suite, cases, args)
        labels = listed.getvalue().split("\n")
        print("\n".join(f"{suite}: {label}" for label in labels if label))
        total += sum(map(bool, labels))
    if args.list:
        print(f"{total} cases in {len(SUITES)} suites")
    return 0


if __name__ == "__main__":
    sys.exit(main())
