"""Addition with broadcasting: the smallest kernel, on tensors of any rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = torch.broadcast_tensors(x, y)
    dtype = torch.promote_types(x.dtype, y.dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    for tile in hl.tile(out.size()):
        out[tile] = x[tile] + y[tile]
    return out


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for left, right in (((1,), (1,)), ((1001,), (1001,)), ((5, 7, 33), (7, 1)), ((0, 4), (4,))):
        yield add, torch.add, (torch.randn(left), torch.randn(right))
    yield add, torch.add, (torch.randn(9, 20).to(torch.bfloat16), torch.randn(20, 9).t())


def main(size: int = 4096) -> None:
    x, y = torch.randn(2, size, size, device=DEVICE)
    run_example(add, torch.add, (x, y))


if __name__ == "__main__":
    main()
