"""The selective scan of a state-space model: a recurrence whose decay depends on the input.

The state of a block of channels stays in the kernel for the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import torch_helion as helion
import torch_helion.language as hl
from torch_helion.testing import DEVICE, run_example


@helion.kernel
def selective_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    decay: torch.Tensor,
    into: torch.Tensor,
    out_of: torch.Tensor,
    skip: torch.Tensor,
) -> torch.Tensor:
    """``x``, ``delta``: batch, time, channels; ``decay``: channels, states; ``into``, ``out_of``:
    batch, time, states."""
    batch, time, channels = x.size()
    states = hl.specialize(decay.size(1))
    out = torch.empty_like(x)
    for tile_b, tile_c in hl.tile([batch, channels], block_size=[1, None]):
        b = tile_b.begin
        rates = decay[tile_c, :]
        state = hl.zeros([tile_c, states], dtype=torch.float32)
        for t in hl.grid(time):
            step = delta[b, t, tile_c]
            value = x[b, t, tile_c]
            state = torch.exp(step[:, None] * rates) * state
            state = state + (step * value)[:, None] * into[b, t, :][None, :]
            seen = (state * out_of[b, t, :][None, :]).sum(-1)
            out[b, t, tile_c] = seen + skip[tile_c] * value
    return out


def reference(
    x: torch.Tensor,
    delta: torch.Tensor,
    decay: torch.Tensor,
    into: torch.Tensor,
    out_of: torch.Tensor,
    skip: torch.Tensor,
) -> torch.Tensor:
    state = x.new_zeros([x.size(0), *decay.shape])
    rows = []
    for t in range(x.size(1)):
        step = delta[:, t, :, None]
        state = torch.exp(step * decay) * state + step * x[:, t, :, None] * into[:, t, None, :]
        rows.append((state * out_of[:, t, None, :]).sum(-1))
    return torch.stack(rows, 1) + skip * x


def inputs(batch: int, time: int, channels: int, states: int) -> tuple[torch.Tensor, ...]:
    x = torch.randn(batch, time, channels)
    delta = torch.rand(batch, time, channels) / 4
    decay = -torch.rand(channels, states)
    into, out_of = torch.randn(2, batch, time, states)
    found = (x, delta, decay, into, out_of, torch.randn(channels))
    return tuple(t.to(DEVICE) for t in found)


def cases() -> Iterator[tuple]:
    """Kernel, reference, arguments."""
    for shape in ((1, 1, 1, 1), (2, 19, 37, 5), (1, 16, 32, 16)):
        yield selective_scan, reference, inputs(*shape)


def main(size: int = 512) -> None:
    run_example(selective_scan, reference, inputs(2, size, size, 16))


if __name__ == "__main__":
    main()
