"""PyTorch's operators on values of the device: each gives what eager mode gives, or nearly so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_helion.language as hl
from test.frontend.harness import run

POINTWISE: dict[str, Callable[..., Any]] = {
    "exp2": torch.exp2,
    "log1p": lambda x: torch.log1p(x.abs()),
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "sign": torch.sign,
    "round": torch.round,
    "trunc": lambda x: x.trunc(),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5),
    "clamp_min": lambda x: x.clamp(min=0.1),
    "pow": lambda x: x**3,
    "rpow": lambda x: 2.0**x,
    "rsub": lambda x: 1 - x,
    "rdiv": lambda x: 1 / (x.abs() + 1),
    "floordiv": lambda x: x // 0.3,
    "mod": lambda x: x % 0.3,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "where": lambda x: torch.where(x > 0, x, -1.0),
    "where_number": lambda x: torch.where(x > 0, 1.0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 3.0),
    "isnan": torch.isnan,
    "logical": lambda x: torch.logical_and(x > 0, x < 1),
    "not": lambda x: ~(x > 0),
    "bits": lambda x: (x > 0) & (x < 1) | (x < -1),
    "nan_to_num": torch.nan_to_num,
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "relu": F.relu,
    "relu_inplace": lambda x: torch.relu_(x * 1),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": F.hardswish,
    "elu": F.elu,
    "tanh": torch.tanh,
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "to": lambda x: x.to(torch.float64),
    "type_as": lambda x: x.type_as(x.double()),
    "int": lambda x: (x * 10).to(torch.int32),
    "bitcast": lambda x: x.float().view(torch.int32),
    "in_place": lambda x: (x + 1).mul_(2).add_(1),
    "square": lambda x: x.square(),
    "maximum": lambda x: torch.maximum(x, x * 0.5),
    "zeros_like": torch.zeros_like,
    "full_like": lambda x: torch.full_like(x, 2.5),
    "compare": lambda x: (x >= 0.5) == (x < 2),
    "atan2": lambda x: torch.atan2(x, x + 3),
    "copysign": lambda x: torch.copysign(x, -x),
    "remainder": lambda x: torch.remainder(x, 0.4),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "neg": lambda x: -x,
    "abs": abs,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "logaddexp": lambda x: torch.logaddexp(x, x * 2),
    "dtype_of": lambda x: x.to(x.dtype) + torch.finfo(torch.float32).eps,
}

ROWS: dict[str, Callable[..., Any]] = {
    "sum": lambda x: x.sum(-1),
    "sum_keepdim": lambda x: x.sum(dim=1, keepdim=True),
    "sum_dtype": lambda x: x.sum(-1, dtype=torch.float64),
    "mean": lambda x: x.mean(-1),
    "amax": lambda x: torch.amax(x, dim=-1),
    "amin": lambda x: torch.amin(x, -1),
    "max_dim": lambda x: torch.max(x, dim=1)[0],
    "max_indices": lambda x: x.max(dim=1).indices,
    "prod": lambda x: torch.prod(x, -1),
    "var": lambda x: torch.var(x, -1),
    "std": lambda x: x.std(-1, unbiased=False),
    "var_mean": lambda x: torch.var_mean(x, -1)[1],
    "argmax": lambda x: torch.argmax(x, -1),
    "argmin": lambda x: x.argmin(dim=-1),
    "any": lambda x: (x > 1).any(-1),
    "all": lambda x: (x > -1).all(-1),
    "norm": lambda x: torch.norm(x, dim=-1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, dim=1),
    "normalize": lambda x: x / x.norm(dim=-1, keepdim=True),
    "cumsum": lambda x: torch.cumsum(x, -1),
    "cumprod": lambda x: torch.cumprod(x, 1),
    "sort": lambda x: torch.sort(x, -1)[0],
    "sort_descending": lambda x: torch.sort(x, dim=1, descending=True).values,
    "argsort": lambda x: torch.argsort(x, -1),
    "topk": lambda x: torch.topk(x, 3, -1)[0],
    "topk_smallest": lambda x: torch.topk(x, 2, largest=False)[1],
    "gather": lambda x: torch.gather(x, 1, torch.argsort(x, -1)),
    "layer_norm": lambda x: F.layer_norm(x, (x.size(1),)),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1) + x[:, None, :].sum(1),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 4).sum(-1),
    "flip_sign": lambda x: x * torch.where(x.sum(-1, keepdim=True) > 0, 1.0, -1.0),
    "outer": lambda x: (x[:, :, None] * x[:, None, :]).sum(-1),
    "outer_amax": lambda x: (x[:, :, None] - x[:, None, :]).amax(2),
    "transposed": lambda x: x.T.sum(0),
    "permuted": lambda x: x.permute(1, 0).amax(0),
    "stack": lambda x: torch.stack([x, x * 2], dim=-1).sum(-1),
    "count": lambda x: torch.count_nonzero(x > 0, dim=1),
    "softmin": lambda x: F.softmin(x, dim=-1),
    "glu_like": lambda x: torch.sigmoid(x) * x.mean(-1, keepdim=True),
    "cosine": lambda x: F.cosine_similarity(x, x + 1, dim=-1),
    "mse": lambda x: F.mse_loss(x, x * 2, reduction="none").sum(-1),
    "triu": lambda x: (x[:, :, None] * x[:, None, :]).triu().sum(-1),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def _fill(out: torch.Tensor, x: torch.Tensor, fn: Any) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        out[tile] = fn(x[tile])
    return out


def _fill_rows(out: torch.Tensor, x: torch.Tensor, fn: Any) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        out[tile, ...] = fn(x[tile, :])
    return out


def _input(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x.to(dtype)


def _close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    tolerance = 2e-2 if wanted.dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(POINTWISE))
def test_pointwise(name: str, dtype: torch.dtype) -> None:
    fn, x = POINTWISE[name], _input(21, dtype=dtype)
    x[3], x[5] = float("nan"), float("inf")
    if name in ("int", "bitcast", "round"):
        x[3] = x[5] = 0
    if name == "gelu":  # eager's vectors and its tail disagree about infinity
        x[5] = 0
    wanted = fn(x)
    _close(run(_fill, torch.empty_like(wanted), x, fn, blocks=8), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ROWS))
def test_rows(name: str, dtype: torch.dtype) -> None:
    fn, x = ROWS[name], _input(5, 7, dtype=dtype)
    wanted = fn(x)
    _close(run(_fill_rows, torch.empty_like(wanted), x, fn, blocks=2), wanted)


def _promote(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor, n: Any) -> torch.Tensor:
    for tile in hl.tile(x.size(0)):
        out[tile] = (x[tile] * n + y[tile]) * 2
    return out


TYPES = [torch.bool, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32]


@pytest.mark.parametrize("number", [True, 3, 0.25])
@pytest.mark.parametrize("left", TYPES)
def test_promotion(left: torch.dtype, number: Any) -> None:
    for right in TYPES:
        x, y = torch.tensor([0, 1, 1, 0, 1]).to(left), torch.tensor([1, 1, 0, 0, 1]).to(right)
        wanted = (x * number + y) * 2
        got = run(_promote, torch.empty_like(wanted), x, y, number, blocks=2)
        torch.testing.assert_close(got, wanted)
