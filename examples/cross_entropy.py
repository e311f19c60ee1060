"""Cross-entropy of rows of logits: one gather for the target, one log-sum-exp."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel(ignore_warnings=[helion.exc.TensorOperationInWrapper])
def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    n, v = logits.size()
    losses = torch.empty([n], dtype=torch.float32, device=logits.device)
    flat = logits.view(-1)
    for tile_n in hl.tile(n):
        at_label = hl.load(flat, [tile_n.index * v + labels[tile_n]]).to(torch.float32)
        row = logits[tile_n, :].to(torch.float32)
        top = torch.amax(row, dim=-1)
        total = torch.sum(torch.exp(row - top[:, None]), dim=-1)
        losses[tile_n] = top + torch.log(total) - at_label
    return losses.mean()


def reference(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for n, v in ((1, 1), (13, 257), (40, 64)):
        yield cross_entropy, reference, (torch.randn(n, v), torch.randint(v, (n,)))


def main(size: int = 4096) -> None:
    logits = torch.randn(size, 8 * size, device=DEVICE)
    labels = torch.randint(8 * size, (size,), device=DEVICE)
    run_example(cross_entropy, reference, (logits, labels))


if __name__ == "__main__":
    main()
