"""Runs kernels by the interpreter of the tile IR, on real tensors, at several block sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_helion.frontend.host import split
from torch_helion.frontend.trace import Traced, trace
from torch_helion.ir import interpreter
from torch_helion.ir.verifier import verify
from torch_helion.kernel import arguments
from torch_helion.kernel.recipe import draw_seed, float_bits
from torch_helion.settings import Settings

BLOCKS: tuple[Any, ...] = (None, 4, 16)


def run(fn: Callable[..., Any], *args: Any, blocks: Any = None, **settings: Any) -> Any:
    """The result of a kernel whose blocks are `blocks` (one size for all; None: whole ranges)."""
    choices = {"block_sizes": [blocks or 64] * 9}

    def launch(*values: Any) -> None:
        traced = trace(host, values, Settings(**settings))
        verify(traced.kernel)
        tensors = [arguments.get(values, path) for path in traced.tensors]
        ints = [_number(source, values) for source in traced.sizes]
        interpreter.run(traced.kernel, tensors, ints, blocks)

    host = split(fn)
    return host.with_launch(launch, choices)(*args)


def traced(fn: Callable[..., Any], *args: Any, **settings: Any) -> Traced:
    """What tracing a kernel on real values gives."""
    found: list[Traced] = []
    host = split(fn)
    host.with_launch(lambda *values: found.append(trace(host, values, Settings(**settings))))(*args)
    return found[0]


def _number(source: Sequence[Any], values: Sequence[Any]) -> int:
    kind = source[0]
    if kind == "seed":
        return draw_seed()
    if kind == "const":
        return int(source[1])
    leaf = arguments.get(values, source[1])
    if kind in ("size", "stride"):
        return int(getattr(leaf, kind)(source[2]))
    return float_bits(leaf) if kind == "float" else int(leaf)


def check(
    fn: Callable[..., Any],
    args: Sequence[Any],
    expected: Any,
    blocks: Sequence[Any] = BLOCKS,
    tolerance: float | None = None,
    **settings: Any,
) -> None:
    """Equal to `expected` (a value, or a function of the same arguments) at every block size."""
    wanted = expected(*_copies(args)) if callable(expected) else expected
    for block in blocks:
        got = run(fn, *_copies(args), blocks=block, **settings)
        options = {} if tolerance is None else {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(got, wanted, equal_nan=True, **options)


def _copies(args: Sequence[Any]) -> list[Any]:
    return [arguments.replace_tensors(a, _clone) for a in args]


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
