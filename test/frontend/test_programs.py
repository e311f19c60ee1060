"""Kernels of every family give what eager mode gives, at every block size."""

from __future__ import annotations

import pytest

from test.frontend import programs_loops
from test.frontend.harness import BLOCKS, check
from test.frontend.programs import PROGRAMS

assert programs_loops is not None  # adds its rows


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_program(name: str) -> None:
    fn, args, expect, tolerance = PROGRAMS[name]
    check(fn, args, expect, BLOCKS, tolerance)


@pytest.mark.parametrize("name", ["add", "row_sum", "softmax", "matmul", "columns", "rows"])
def test_blocks_of_one(name: str) -> None:
    fn, args, expect, tolerance = PROGRAMS[name]
    check(fn, args, expect, [1], tolerance)
