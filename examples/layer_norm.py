"""Layer norm with its gradients: two kernels behind one ``torch.autograd.Function``.

The backward kernel sums the gradients of weight and bias over the rows of one block, without
atomics, into a row of partial sums for each block; the host adds those up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@helion.kernel
def layer_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> Triple:
    m, _ = x.size()
    out = torch.empty_like(x)
    means = torch.empty([m], dtype=torch.float32, device=x.device)
    rstds = torch.empty([m], dtype=torch.float32, device=x.device)
    for tile_m in hl.tile(m):
        row = x[tile_m, :].to(torch.float32)
        mean = torch.mean(row, dim=-1)
        centered = row - mean[:, None]
        rstd = torch.rsqrt(torch.mean(centered * centered, dim=-1) + eps)
        normal = centered * rstd[:, None]
        scaled = normal * weight[:].to(torch.float32) + bias[:].to(torch.float32)
        out[tile_m, :] = scaled.to(x.dtype)
        means[tile_m] = mean
        rstds[tile_m] = rstd
    return out, means, rstds


@helion.kernel(ignore_warnings=[helion.exc.TensorOperationInWrapper])
def layer_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
) -> Triple:
    m, n = x.size()
    n = hl.specialize(n)
    block_m = hl.register_block_size(m)
    blocks = helion.cdiv(m, block_m)
    grad_x = torch.empty_like(x)
    weight_parts = torch.empty([blocks, n], dtype=torch.float32, device=x.device)
    bias_parts = torch.empty([blocks, n], dtype=torch.float32, device=x.device)
    for rows in hl.tile(m, block_size=block_m):
        weight_sum = hl.zeros([n], dtype=torch.float32)
        bias_sum = hl.zeros([n], dtype=torch.float32)
        for tile_m in hl.tile(rows.begin, rows.end):
            dy = grad[tile_m, :].to(torch.float32)
            scale = rstd[tile_m][:, None]
            normal = (x[tile_m, :].to(torch.float32) - mean[tile_m][:, None]) * scale
            weight_sum += torch.sum(dy * normal, dim=0)
            bias_sum += torch.sum(dy, dim=0)
            scaled = dy * weight[:].to(torch.float32)
            along = torch.mean(scaled * normal, dim=-1)[:, None]
            level = torch.mean(scaled, dim=-1)[:, None]
            grad_x[tile_m, :] = ((scaled - normal * along - level) * scale).to(x.dtype)
        weight_parts[rows.id, :] = weight_sum
        bias_parts[rows.id, :] = bias_sum
    return grad_x, weight_parts.sum(0).to(weight.dtype), bias_parts.sum(0).to(weight.dtype)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        out, mean, rstd = layer_norm_forward(x, weight, bias)
        ctx.save_for_backward(x, mean, rstd, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Triple:  # type: ignore[override]
        x, mean, rstd, weight = ctx.saved_tensors
        return layer_norm_backward(grad.contiguous(), x, mean, rstd, weight)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return LayerNorm.apply(x, weight, bias)


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def reference_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Triple:
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.to(wide).mean(-1)
    rstd = torch.rsqrt(x.to(wide).var(-1, correction=0) + 1e-5)
    return reference(x, weight, bias), mean, rstd


def reference_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
) -> Triple:
    saved = (mean.to(rstd.dtype)[:, None], rstd[:, None])
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, weight.shape, *saved, weight, torch.zeros_like(weight), [True, True, True]
    )


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for m, n in ((1, 1), (37, 65), (16, 128)):
        x, weight, bias = torch.randn(m, n), torch.randn(n), torch.randn(n)
        yield layer_norm_forward, reference_forward, (x, weight, bias)
        saved = reference_forward(x, weight, bias)[1:]
        yield layer_norm_backward, reference_backward, (torch.randn(m, n), x, *saved, weight)


def main(size: int = 4096) -> None:
    x, weight, bias = torch.randn(size, size), torch.randn(size), torch.randn(size)
    args = tuple(t.to(DEVICE).requires_grad_() for t in (x, weight, bias))
    run_example(layer_norm, reference, args, bwd=True)


if __name__ == "__main__":
    main()
