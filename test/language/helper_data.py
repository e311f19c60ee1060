"""Data that helpers of kernels read from their module."""

from __future__ import annotations

import torch

FACTOR = 2.0
SHIFT = torch.ones(5)
WIDTH = 4


def scaled(x):
    return x * FACTOR


def shifted(x, tile):
    return scaled(x) + SHIFT[tile]


def wide(x):
    return x + torch.arange(WIDTH)
