"""Mistakes raise their classes, and docs/errors.md shows what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.language import gallery
from test.language.misuse import MISUSES
from torch_helion import compiler, exc


@pytest.mark.parametrize(("error", "call"), MISUSES, ids=[f.__name__ for _, f in MISUSES])
def test_misuse(error: type[exc.Base], call: Callable[[], Any]) -> None:
    with pytest.raises(exc.Base) as caught:
        call()
    assert type(caught.value) is error, caught.value


@pytest.mark.skipif(sys.version_info < (3, 11), reason="columns of host code: Python 3.11")
def test_the_page_is_what_is_said() -> None:
    assert gallery.PAGE.read_text() == gallery.page(), (
        "docs/errors.md is old: python -m test.language.gallery"
    )


@helion.kernel
def negated(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = -x[tile]
    return out


def test_code_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise exc.CodegenError("no registers left")

    monkeypatch.setattr(compiler, "load_kernel", fails)
    with pytest.raises(exc.ErrorCompilingKernel, match="negated: no registers left"):
        helion.kernel(negated.fn)(torch.ones(3))


def test_faults_of_the_package() -> None:
    text = str(exc.InternalError("Axes", "two axes are one"))
    assert "please report it" in text
