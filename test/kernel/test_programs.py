"""Programs of every family through the whole surface: specialisations, configs, gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import torch_helion as helion
from test.frontend.programs import PROGRAMS
from torch_helion import exc
from torch_helion.autotuner.benchmark import cloned

derivative = importlib.import_module("torch_helion.kernel.derivative")

NO_GRADIENT = {"in_place": "stores into its argument"}


def compare(got: Any, want: Any, tolerance: float | None) -> None:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        half = b.dtype in (torch.float16, torch.bfloat16)
        limit = tolerance if tolerance is not None else 1e-2 if half else 1e-4
        torch.testing.assert_close(a, b.to(a.dtype), rtol=limit, atol=limit, equal_nan=True)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_every_config_gives_what_eager_gives(name: str, static: bool) -> None:
    fn, args, expect, tolerance = PROGRAMS[name]
    want = expect(*cloned(args))
    kernel = helion.kernel(fn, static_shapes=static)
    for _ in range(2):
        compare(kernel(*cloned(args)), want, tolerance)
    bound = kernel.bind(args)
    entries = len(bound.config_spec.block_sizes)
    for size in (1, 16, 64):
        compiled = bound.compile_config({"block_sizes": [size] * entries})
        compare(compiled(*cloned(args)), want, tolerance)
    compare(bound.run_ref(*cloned(args)), want, tolerance)


def with_gradients(args: Sequence[Any]) -> Any:
    def leaf(x: Any) -> Any:
        floating = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype.itemsize > 1
        return x.detach().clone().requires_grad_() if floating else x

    return pytree.tree_map(leaf, cloned(tuple(args)))


def gradients(function: Callable[..., Any], args: Any) -> list[torch.Tensor] | None:
    leaves = pytree.tree_leaves(function(*args))
    results = [r for r in leaves if isinstance(r, torch.Tensor) and r.requires_grad]
    if not results:
        return None
    weighted = (
        (r.float() * torch.linspace(-1, 1, r.numel()).reshape(r.shape)).sum() for r in results
    )
    torch.stack(list(weighted)).sum().backward()
    inputs = [x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs if x.requires_grad]


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_gradients_are_those_of_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In eager mode: that a compiled backward is the same, a few kernels show elsewhere.
    monkeypatch.setattr(derivative, "_compile", lambda bound, function, example: function)
    fn, args, expect, _ = PROGRAMS[name]
    try:
        want = gradients(expect, with_gradients(args))
    except RuntimeError:  # eager cannot either
        want = None
    kernel = helion.kernel(fn)
    if name in NO_GRADIENT:
        with pytest.raises(exc.AutodiffNotSupported, match=NO_GRADIENT[name]):
            gradients(kernel, with_gradients(args))
        return
    if want is None:
        return
    got = gradients(kernel, with_gradients(args))
    assert got is not None
    for a, b in zip(got, want, strict=True):
        limit = 3e-2 if a.dtype in (torch.float16, torch.bfloat16) else 2e-3
        torch.testing.assert_close(a, b, rtol=limit, atol=limit, equal_nan=True)
