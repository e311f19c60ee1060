"""Whole kernels give what eager mode gives, by the interpreter and by the target."""

from __future__ import annotations

import pytest
import torch

import torch_helion as helion
from test.frontend import edges
from test.frontend.harness import BLOCKS, _copies, check
from test.frontend.kernels import KERNELS

assert edges is not None  # adds its rows


@pytest.mark.parametrize("name", list(KERNELS))
def test_interpreted(name: str) -> None:
    fn, args, expect, tolerance = KERNELS[name]
    check(fn, args, expect, BLOCKS, tolerance)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiled(name: str, static: bool) -> None:
    fn, args, expect, tolerance = KERNELS[name]
    options = {"rtol": tolerance, "atol": tolerance} if tolerance is not None else {}
    kernel = helion.kernel(fn, static_shapes=static)
    copies = _copies(args)
    torch.testing.assert_close(kernel(*copies), expect(*_copies(args)), **options)
