"""Each mistake raises its class and quotes the user's line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_helion as helion
from test.frontend.broken import BROKEN
from test.frontend.harness import run
from torch_helion import exc


@pytest.mark.parametrize(
    ("error", "fn", "args"), BROKEN, ids=[f"{e.__name__}-{f.__name__}" for e, f, _ in BROKEN]
)
def test_mistake(error: type[exc.Base], fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    arguments = args
    if fn.__name__ in (
        "open_size",
        "tunable_up_to_argument",
    ):  # a number that is open: only a kernel's call makes it one
        with pytest.raises(error) as caught:
            helion.kernel(fn).bind(arguments)
    else:
        with pytest.raises(error) as caught:
            run(fn, *arguments)
    lines, first = inspect.getsourcelines(fn)
    marked = [i for i, line in enumerate(lines) if line.rstrip().endswith("# here")]
    if marked and caught.value.location is not None:
        assert caught.value.location.line == first + marked[0], str(caught.value)
        assert lines[marked[0]].strip() in str(caught.value)
    elif marked:
        # Raised by host code: Python's own traceback shows the line.
        names = [entry.name for entry in caught.traceback]
        assert fn.__name__ in names


def test_closure_mutation_and_globals() -> None:
    def changes(x: torch.Tensor) -> torch.Tensor:
        global CHANGED
        CHANGED = 1
        return x

    with pytest.raises(exc.GlobalMutation, match="CHANGED"):
        run(changes, torch.ones(3))
