"""The reference random numbers: known answers, ranges, distribution, independence of order."""

from __future__ import annotations

import torch

from torch_helion.ir import philox


def test_known_answers_of_philox_4x32_10():
    """Published with the algorithm, for counter and key zero."""
    zero = philox.words(0, torch.tensor([0]))
    assert [w.item() for w in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def slow_words(seed: int, index: int) -> list[int]:
    """The algorithm on Python's integers."""
    mask = 2**32 - 1
    key = [seed & mask, seed >> 32 & mask]
    c = [index & mask, index >> 32 & mask, 0, 0]
    for _ in range(10):
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [right >> 32 ^ c[1] ^ key[0], right & mask, left >> 32 ^ c[3] ^ key[1], left & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return c


def test_words_are_those_of_exact_integers():
    indices = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -1, -(2**63)]
    for seed in (0, 1, -1, 2**40 + 3, -(2**63)):
        words = torch.stack(philox.words(seed, torch.tensor(indices)), 1).tolist()
        assert words == [slow_words(seed, i) for i in indices]


def test_seed_may_be_a_tensor():
    index = torch.arange(10)
    assert torch.equal(philox.uniform(torch.tensor(7), index), philox.uniform(7, index))


def test_uniform_range_and_moments():
    x = philox.uniform(1, torch.arange(200_000))
    assert x.dtype is torch.float32 and x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 3e-3 and abs(x.var() - 1 / 12) < 1e-3
    assert torch.equal(x * 2**24, (x * 2**24).round())


def test_normal_moments():
    x = philox.normal(1, torch.arange(200_000))
    assert x.dtype is torch.float32 and x.isfinite().all()
    assert abs(x.mean()) < 1e-2 and abs(x.var() - 1) < 2e-2
    assert abs((x**3).mean()) < 5e-2 and abs((x**4).mean() - 3) < 0.15


def test_randint_is_uniform_and_in_range():
    index = torch.arange(60_000)
    x = philox.randint(3, index, -2, 4)
    counts = torch.bincount(x + 2, minlength=6)
    assert counts.numel() == 6 and (counts - 10_000).abs().max() < 500
    for low, high in ((-(2**63), 2**63 - 1), (0, 2**62 + 1), (5, 6)):
        y = philox.randint(3, index[:6000], low, high)
        assert y.min() >= low and y.max() < high


def test_randint_is_the_high_half_of_the_exact_product():
    for low, high in ((0, 10), (-(2**62), 2**62 - 5), (-(2**63), 2**63 - 1)):
        got = philox.randint(9, torch.arange(50), low, high).tolist()
        for index, value in enumerate(got):
            words = slow_words(9, index)
            assert value == low + ((words[1] << 32 | words[0]) * (high - low) >> 64)


def test_numbers_depend_on_the_index_alone():
    index = torch.randperm(1000)
    assert torch.equal(philox.uniform(5, index), philox.uniform(5, torch.arange(1000))[index])
    assert torch.equal(
        philox.uniform(5, index.view(10, 100)), philox.uniform(5, index).view(10, 100)
    )
    assert philox.uniform(5, torch.empty(0, dtype=torch.int64)).numel() == 0
