"""SwiGLU: the gate as a pointwise kernel, and fused with the two products that feed it.

The fused form keeps both accumulators of a tile, so that neither product is written to memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(gate)
    gate_flat, up_flat, out_flat = gate.view(-1), up.view(-1), out.view(-1)
    for tile in hl.tile(gate.numel()):
        value = gate_flat[tile].to(torch.float32)
        out_flat[tile] = (value * torch.sigmoid(value)).to(gate.dtype) * up_flat[tile]
    return out


@helion.kernel
def swiglu_matmul(
    x: torch.Tensor, gate_weight: torch.Tensor, up_weight: torch.Tensor
) -> torch.Tensor:
    m, k = x.size()
    _, n = gate_weight.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        gate = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        up = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            left = x[tile_m, tile_k]
            gate = torch.addmm(gate, left, gate_weight[tile_k, tile_n])
            up = torch.addmm(up, left, up_weight[tile_k, tile_n])
        out[tile_m, tile_n] = (gate * torch.sigmoid(gate) * up).to(x.dtype)
    return out


def reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def reference_matmul(
    x: torch.Tensor, gate_weight: torch.Tensor, up_weight: torch.Tensor
) -> torch.Tensor:
    return F.silu(x @ gate_weight) * (x @ up_weight)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1), (3, 7, 11), (16, 64)):
        yield swiglu, reference, (torch.randn(shape), torch.randn(shape))
    for m, k, n in ((1, 1, 1), (19, 33, 37)):
        weights = torch.randn(2, k, n)
        yield swiglu_matmul, reference_matmul, (torch.randn(m, k), weights[0], weights[1])


def main(size: int = 4096) -> None:
    gate, up = torch.randn(2, size, size, device=DEVICE)
    run_example(swiglu, reference, (gate, up))
    x = torch.randn(size // 8, size // 4, device=DEVICE)
    gate_weight, up_weight = torch.randn(2, size // 4, size // 4, device=DEVICE)
    run_example(swiglu_matmul, reference_matmul, (x, gate_weight, up_weight))


if __name__ == "__main__":
    main()
