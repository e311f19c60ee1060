"""The accuracy rule: when a result is as right as its dtype allows.

In: a result, the same computed in float64, and what the plain program gives. Out: what is wrong, in
words, or None. Kernels of regions, candidates of a search and tests are judged by it:

- integers and bools are equal;
- floats are close at the dtype's tolerance, else
  RMSE(result, float64) <= m * RMSE(plain, float64) + tolerance / 10,   m = 2, half types 3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """When two numbers of a dtype are close."""

    rtol: float
    atol: float
    factor: float
    """by how much the error may exceed ATen's own"""


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-7, 1e-7, 2),
    torch.float32: Tolerance(1.3e-6, 1e-5, 2),
    torch.float16: Tolerance(1e-3, 1e-3, 3),
    torch.bfloat16: Tolerance(1.6e-2, 1e-2, 3),
}


def compare(got: torch.Tensor, precise: torch.Tensor, plain: torch.Tensor) -> str | None:
    """What is wrong with ``got``, given the float64 evaluation and ATen's own; None if nothing."""
    if got.shape != plain.shape or got.dtype != plain.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {plain.dtype}{list(plain.shape)}"
    if got.numel() == 0:
        return None
    tolerance = TOLERANCES.get(got.dtype)
    if tolerance is None:
        if torch.equal(got, plain) or torch.equal(got, precise.to(got.dtype)):
            return None
        return f"{int((got != plain).sum())} of {got.numel()} integers differ"
    truth, got64 = precise.double(), got.double()
    if torch.allclose(
        got64, truth, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True
    ):  # the usual case, in one pass
        return None
    plain64 = plain.double()
    finite = truth.isfinite() & plain64.isfinite()
    if bool((got64.isfinite() != plain64.isfinite())[truth.isfinite() == plain64.isfinite()].any()):
        return "infinities or NaNs at other places"
    same_kind = (got64 == plain64) | (got64.isnan() & plain64.isnan())
    if not bool(same_kind[~finite & (truth.isfinite() == plain64.isfinite())].all()):
        return "other infinities or NaNs"
    return _compare_numbers(got64[finite], truth[finite], plain64[finite], tolerance)


def _compare_numbers(
    got: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor, tolerance: Tolerance
) -> str | None:
    if torch.allclose(got, truth, rtol=tolerance.rtol, atol=tolerance.atol):
        return None  # but for infinities and NaNs, which are judged by now
    scale = _rms(truth)
    error, own = _rms(got - truth), _rms(plain - truth)
    allowed = tolerance.factor * own + 0.1 * (tolerance.atol + tolerance.rtol * scale)
    if error <= allowed:
        return None
    return f"error {error:.3g} against float64, at most {allowed:.3g} allowed"


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
