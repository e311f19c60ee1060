"""The next token, drawn from the k likeliest: top-k, softmax, running sum and one random number."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def top_k_sample(
    logits: torch.Tensor, k: hl.constexpr, temperature: float, seed: int
) -> torch.Tensor:
    """One column of each row of ``logits``."""
    m, _ = logits.size()
    out = torch.empty([m], dtype=torch.int64, device=logits.device)
    for tile_m in hl.tile(m):
        values, columns = torch.topk(logits[tile_m, :], k, dim=-1)
        weights = torch.exp((values - values.amax(-1, keepdim=True)) / temperature)
        upto = torch.cumsum(weights, dim=-1)
        total = weights.sum(-1, keepdim=True)
        drawn = hl.rand([tile_m], seed=seed)[:, None] * total
        passed = (upto <= drawn).to(torch.int64).sum(-1, keepdim=True)
        place = torch.clamp(passed, max=k - 1)
        out[tile_m] = torch.gather(columns, 1, place).sum(-1)
    return out


def reference(logits: torch.Tensor, k: int, temperature: float, seed: int) -> torch.Tensor:
    """The same distribution; other random numbers."""
    values, columns = torch.topk(logits, k, dim=-1)
    place = torch.multinomial(torch.softmax(values / temperature, -1), 1)
    return columns.gather(1, place)[:, 0]


def cases() -> Iterator[tuple]:
    """Kernel, no reference (random numbers are the kernel's own), arguments."""
    for m, n, k in ((1, 1, 1), (13, 77, 5), (32, 64, 8)):
        yield top_k_sample, None, (torch.randn(m, n), k, 0.8, 99)


def main(size: int = 32768) -> None:
    # With k = 1 there is no choice, so that results can be compared.
    logits = torch.randn(16, size, device=DEVICE)
    run_example(top_k_sample, reference, (logits, 1, 1.0, 0))


if __name__ == "__main__":
    main()
