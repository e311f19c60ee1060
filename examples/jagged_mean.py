"""Means over sequences of different lengths that lie one after the other, without padding.

``hl.jagged_tile`` runs to the longest sequence of a block and masks the others off behind their
ends. The mean of an empty sequence is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def jagged_mean(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """``x``: positions, features; sequence i takes the positions offsets[i] to offsets[i + 1]."""
    sequences, features = offsets.size(0) - 1, x.size(1)
    out = torch.empty([sequences, features], dtype=x.dtype, device=x.device)
    for tile_s in hl.tile(sequences):
        starts = offsets[tile_s]
        lengths = offsets[tile_s.index + 1] - starts
        for tile_f in hl.tile(features):
            total = hl.zeros([tile_s, tile_f], dtype=torch.float32)
            for tile_p in hl.jagged_tile(lengths):
                places = starts[:, None] + tile_p.index[None, :]
                total = total + x[places, tile_f].to(torch.float32).sum(dim=1)
            count = torch.clamp(lengths, min=1).to(torch.float32)
            out[tile_s, tile_f] = (total / count[:, None]).to(x.dtype)
    return out


def reference(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    parts = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return torch.stack([x[a:b].sum(0) / max(b - a, 1) for a, b in parts])


def inputs(sequences: int, longest: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.randint(0, longest + 1, (sequences,))
    lengths[-1] = longest
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.randn(int(offsets[-1]), features, device=DEVICE), offsets.to(DEVICE)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1), (9, 13, 17), (16, 8, 32)):
        yield jagged_mean, reference, inputs(*shape)


def main(size: int = 1024) -> None:
    run_example(jagged_mean, reference, inputs(size, 128, 128))


if __name__ == "__main__":
    main()
