"""Counter-based random numbers on plain tensors: the meaning of the ``rng`` op.

A number depends on (seed, index) alone, never on block sizes or threads: Philox 4x32-10 with
key = (low, high) of the seed and counter = (low, high, 0, 0) of the index.  In: a seed and a tensor
of int64 indices.  Out: a tensor of the index's shape.  The interpreter runs this; targets print
code that gives the same bits (``uniform``, ``randint``) or the same number within a few ulp
(``normal``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def _high(product: Tensor) -> Tensor:
    """Bits 32 to 63 of an int64 as a number: the shift alone would bring copies of the sign."""
    return (product >> 32) & _WORD


def words(seed: int | Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random 32-bit words of each index, as int64 in [0, 2^32)."""
    index = index.to(torch.int64)
    key = torch.as_tensor(seed, dtype=torch.int64, device=index.device)
    key0, key1 = key & _WORD, _high(key)
    c0, c1 = index & _WORD, _high(index)
    c2 = c3 = torch.zeros_like(index)
    for step in range(10):
        if step:
            key0, key1 = (key0 + _KEY_STEPS[0]) & _WORD, (key1 + _KEY_STEPS[1]) & _WORD
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wrap: the bits are those of u64
        c0, c1 = _high(right) ^ c1 ^ key0, right & _WORD
        c2, c3 = _high(left) ^ c3 ^ key1, left & _WORD
    return c0, c1, c2, c3


def uniform(seed: int | Tensor, index: Tensor, word: int = 0) -> Tensor:
    """float32 in [0, 1): the top 24 bits of word `word`."""
    return _unit_interval(words(seed, index)[word])


def _two(seed: int | Tensor, index: Tensor, word: int) -> tuple[Tensor, Tensor]:
    """Word `word` and the one after it (word 0 after word 3)."""
    four = words(seed, index)
    return four[word], four[(word + 1) % 4]


def _unit_interval(word: Tensor) -> Tensor:
    return (word >> 8).to(torch.float32) * 2.0**-24


def normal(seed: int | Tensor, index: Tensor, word: int = 0) -> Tensor:
    """float32, standard normal: Box and Muller on two words, evaluated in double."""
    first, second = _two(seed, index, word)
    u = first.to(torch.float32) * 2.0**-32 + 2.0**-33  # in (0, 1]
    angle = _unit_interval(second).double() * (2.0 * math.pi)
    return (torch.sqrt(-2.0 * torch.log(u.double())) * torch.cos(angle)).float()


def randint(
    seed: int | Tensor,
    index: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    word: int = 0,
) -> Tensor:
    """int64 in [low, high): the upper half of two words (the first is lower) times high - low."""
    first, second = _two(seed, index, word)
    start = torch.as_tensor(low, dtype=torch.int64, device=index.device)
    span = torch.as_tensor(high, dtype=torch.int64, device=index.device) - start
    span0, span1 = span & _WORD, _high(span)
    carry = _high(first * span0)
    middle = first * span1 + carry
    other = second * span0 + (middle & _WORD)
    return start + second * span1 + _high(middle) + _high(other)
