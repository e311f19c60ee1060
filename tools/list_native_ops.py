#!/usr/bin/env python3
"""Which operators of PyTorch's operator database run as kernels of ours: a list for the docs and
the tests.

Compiles the first sample of every operator with backend "helion" and looks whether the pass made a
kernel.

    python tools/list_native_ops.py           # writes docs/native-operators.md and
    test/native_ops.txt python tools/list_native_ops.py --check   # exit status 1 if fewer than 120
    are found
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST = 120


def native_dtypes(op, records: list) -> list[str]:
    """The dtypes in which a sample's graph held a kernel of ours."""
    import torch

    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        if not op.supports_dtype(dtype, "cpu"):
            continue
        sample = next(iter(op.sample_inputs("cpu", dtype)), None)
        if sample is None:
            continue

        def call(input, args, kwargs):
            return op.op(input, *args, **kwargs)

        records.clear()
        torch._dynamo.reset()
        try:
            torch.compile(call, backend="helion")(sample.input, sample.args, sample.kwargs)
        except Exception:  # eager refuses the sample too; the tests judge results
            continue
        if any(record.regions for record in records):
            found.append(str(dtype).removeprefix("torch."))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

    from torch_helion.capture import graph_pass

    records: list = []
    graph_pass.listeners.append(records.append)
    rows = {op.formatted_name: native_dtypes(op, records) for op in op_db}
    native = {name: dtypes for name, dtypes in rows.items() if dtypes}
    print(f"{len(native)} of {len(rows)} operators run as kernels of ours")
    if arguments.check:
        return 0 if len(native) >= LEAST else 1
    table = "\n".join(f"| {name} | {', '.join(dtypes)} |" for name, dtypes in native.items())
    (ROOT / "docs" / "native-operators.md").write_text(
        "# Operators that run as kernels of ours\n\n"
        f"{len(native)} of the {len(rows)} entries of PyTorch's operator database, by the first\n"
        "sample of each, forward on a CPU. Written by `tools/list_native_ops.py`. What is not\n"
        "listed runs in ATen, with the reason in `torch_helion.explain`.\n\n"
        f"| operator | dtypes |\n| --- | --- |\n{table}\n"
    )
    (ROOT / "test" / "native_ops.txt").write_text("\n".join(native) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
