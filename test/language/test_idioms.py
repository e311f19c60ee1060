"""Idioms of the documentation give what eager mode gives: compiled, and by the interpreter."""

from __future__ import annotations

import pytest

import torch_helion as helion
from test.kernel.test_programs import compare
from test.language import idioms_forms, idioms_outside, idioms_values
from test.language.idioms import IDIOMS
from torch_helion.autotuner.benchmark import cloned

ROWS = (idioms_forms, idioms_outside, idioms_values)  # they add their rows

SLOW = ("manyops", "pointwise_functions", "funcs")
"""compiled for one kind of shapes only: these kernels are long"""


@pytest.mark.parametrize("name", list(IDIOMS))
def test_idiom(name: str) -> None:
    fn, args, expect, tolerance = IDIOMS[name]
    want = expect(*args)
    given = args if name == "stack_of_tensors" else cloned(args)
    modes = [{}, {"static_shapes": False}, {"ref_mode": helion.RefMode.EAGER}]
    for settings in modes[::2] if name in SLOW else modes:
        kernel = helion.kernel(fn, **settings)
        compare(kernel(*given), want, tolerance)
    text = helion.kernel(fn).bind(args).to_triton_code()
    assert isinstance(text, str) and len(text) > 100


def test_text_without_triton_says_why() -> None:
    fn, args, _, _ = IDIOMS["sorted_rows"]
    text = helion.kernel(fn).bind(args).to_triton_code()
    assert text.startswith("; No Triton code: ") and "sort" in text.splitlines()[0]
    assert "define" in text
