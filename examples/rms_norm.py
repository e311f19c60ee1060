"""RMS norm with its gradients: two kernels behind one ``torch.autograd.Function``.

The backward of a block of rows leaves one row of partial sums for the gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def rms_norm_forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    m, _ = x.size()
    out = torch.empty_like(x)
    scales = torch.empty([m], dtype=torch.float32, device=x.device)
    for tile_m in hl.tile(m):
        row = x[tile_m, :].to(torch.float32)
        scale = torch.rsqrt(torch.mean(row * row, dim=-1) + eps)
        normal = row * scale[:, None]
        out[tile_m, :] = (normal * weight[:].to(torch.float32)).to(x.dtype)
        scales[tile_m] = scale
    return out, scales


@helion.kernel(ignore_warnings=[helion.exc.TensorOperationInWrapper])
def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    m, n = x.size()
    n = hl.specialize(n)
    block_m = hl.register_block_size(m)
    grad_x = torch.empty_like(x)
    parts = torch.empty([helion.cdiv(m, block_m), n], dtype=torch.float32, device=x.device)
    for rows in hl.tile(m, block_size=block_m):
        total = hl.zeros([n], dtype=torch.float32)
        for tile_m in hl.tile(rows.begin, rows.end):
            dy = grad[tile_m, :].to(torch.float32)
            scale = scales[tile_m][:, None]
            normal = x[tile_m, :].to(torch.float32) * scale
            total += torch.sum(dy * normal, dim=0)
            scaled = dy * weight[:].to(torch.float32)
            along = torch.mean(scaled * normal, dim=-1)[:, None]
            grad_x[tile_m, :] = ((scaled - normal * along) * scale).to(x.dtype)
        parts[rows.id, :] = total
    return grad_x, parts.sum(0).to(weight.dtype)


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out, scales = rms_norm_forward(x, weight)
        ctx.save_for_backward(x, scales, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return rms_norm_backward(grad.contiguous(), *ctx.saved_tensors)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return RMSNorm.apply(x, weight)


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-5)


def reference_forward(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reference(x, weight), torch.rsqrt((x * x).mean(-1) + 1e-5)


def reference_backward(
    grad: torch.Tensor, x: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = scales[:, None]
    normal, scaled = x * scale, grad * weight
    grad_x = (scaled - normal * (scaled * normal).mean(-1, keepdim=True)) * scale
    return grad_x, (grad * normal).sum(0)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for m, n in ((1, 1), (37, 65), (16, 128)):
        x, weight = torch.randn(m, n), torch.randn(n)
        yield rms_norm_forward, reference_forward, (x, weight)
        scales = reference_forward(x, weight)[1]
        yield rms_norm_backward, reference_backward, (torch.randn(m, n), x, scales, weight)


def main(size: int = 4096) -> None:
    x, weight = torch.randn(size, size), torch.randn(size)
    args = tuple(t.to(DEVICE).requires_grad_() for t in (x, weight))
    run_example(rms_norm, reference, args, bwd=True)


if __name__ == "__main__":
    main()
