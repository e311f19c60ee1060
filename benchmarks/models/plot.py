"""A picture of a result: how much faster each model is than its best peer.

What flows in: the rows of ``run.py``. What flows out: a PNG file beside the JSON. Needs matplotlib
(``pip install "torch-helion[bench]"``), which is imported here only.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any


def draw(rows: Sequence[Any], path: pathlib.Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted((r for r in rows if r.ratio == r.ratio), key=lambda r: r.ratio)
    labels = [f"{r.name} {r.kind} {r.batch}" for r in rows]
    colours = ["tab:blue" if r.dtype == "float32" else "tab:orange" for r in rows]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(rows)))
    axes.barh(range(len(rows)), [r.ratio for r in rows], color=colours)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("time of the best peer / time of helion (blue float32, orange bfloat16)")
    axes.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
