"""The way from dynamo into a compiled inference program, without the calls between the two.

What flows in: the callable that AOTAutograd made of a graph. What flows out: one that gives the
same results and skips what has nothing to do for such a program: no input changes, no output is a
view of another value, nothing requires a gradient, all sizes are numbers. Otherwise five Python
frames of 2 to 3 µs a call stand between dynamo's call and the program's first line, as much as a
small kernel takes. Floor 7; called by :mod:`torch_helion.capture.hosting` only.

Whether a wrapper has nothing to do is decided twice: by its form
(``inductor_compat.direct_program``), and by the first call, which goes the long way and must hand
the program the very arguments it got and return the very tensors that the program returned. In any
doubt the long way stays.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from torch_helion.capture import inductor_compat as inductor

_set_grad_enabled = torch._C._set_grad_enabled


def shortened(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled`` itself, or a callable of the same results with less on the way."""
    program = inductor.direct_program(compiled)
    if program is None:
        return compiled
    profiler = torch.autograd.profiler
    is_grad_enabled = torch.is_grad_enabled
    first_call = threading.Lock()
    run: Callable[[list[Any]], Any] | None = None

    def long_way(args: tuple[Any, ...]) -> Any:
        """Also the first call of all, which shows whether the wrapper passes everything on."""
        nonlocal run
        if run is not None or not first_call.acquire(blocking=False):
            return compiled(*args)
        # the lock is never given back: one call decides
        with program.watched() as seen:
            results = compiled(*args)
        if _passed_on(args, results, seen):
            run = program.current_callable
        return results

    @functools.wraps(compiled)
    def call(*args: Any) -> Any:
        if run is None or profiler._is_profiler_enabled:  # a profile shows the names of all steps
            return long_way(args)
        if not is_grad_enabled():
            return run(list(args))
        _set_grad_enabled(False)
        try:
            return run(list(args))
        finally:
            _set_grad_enabled(True)

    return call


def _passed_on(args: tuple[Any, ...], results: Any, seen: list[tuple[list[Any], Any]]) -> bool:
    """Whether one call was seen, which got ``args`` and returned ``results``, object by object."""
    if len(seen) != 1:
        return False
    given, returned = seen[0]
    return _same(args, given) and _same(results, returned)


def _same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
