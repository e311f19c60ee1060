"""Counter-based random numbers: Philox 4x32-10, the same as ``torch_helion.ir.philox``.

key = (low, high) of the seed, counter = (low, high, 0, 0) of the index.  The state is kept as
64-bit lanes with 32-bit contents: a multiplication is then one instruction and nothing moves
between lanes.
"""

from __future__ import annotations

import math

from torch_helion.codegen.llvm.vector_math_emitter import Emitter, Value
from torch_helion.codegen.llvm.vector_math_exponential import log
from torch_helion.codegen.llvm.vector_math_trigonometric import sin_half_turn

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox_words(e: Emitter, seed: Value, index: Value) -> tuple[Value, Value, Value, Value]:
    """The four random 32-bit words of (seed, index), in i64 lanes."""
    # Upper halves hold rubbish until a word is used: a multiplication or the end masks it.
    zero = e.value(0, "i64")
    start = (index, index >> 32, zero, zero, seed, seed >> 32)
    c0, c1, c2, c3, _, _ = e.repeat(10, start, _round)
    return c0 & _WORD, c1 & _WORD, c2 & _WORD, c3 & _WORD


def _round(c0: Value, c1: Value, c2: Value, c3: Value, key0: Value, key1: Value) -> list[Value]:
    left, right = (c0 & _WORD) * _MULTIPLIERS[0], (c2 & _WORD) * _MULTIPLIERS[1]
    first, third = (right >> 32) ^ c1 ^ key0, (left >> 32) ^ c3 ^ key1
    return [first, right, third, left, key0 + _KEY_STEPS[0], key1 + _KEY_STEPS[1]]


def _unit_interval(e: Emitter, word: Value) -> Value:
    """The top 24 bits of a word as an f32 in [0, 1)."""
    bits = e.convert("trunc", word >> 8, "i32")
    return e.convert("sitofp", bits, "f32") * 2.0**-24


def _two(e: Emitter, seed: Value, index: Value, word: int) -> tuple[Value, Value]:
    """Word `word` of the block and the one after it (word 0 after word 3)."""
    four = philox_words(e, seed, index)
    return four[word], four[(word + 1) % 4]


def rand(e: Emitter, seed: Value, index: Value, word: int = 0) -> Value:
    """Uniform f32 in [0, 1): multiples of 2^-24."""
    return _unit_interval(e, philox_words(e, seed, index)[word])


def randn(e: Emitter, seed: Value, index: Value, word: int = 0) -> Value:
    """Standard normal f32 by Box and Muller: √(-2·log u)·cos(2πv)."""
    first, second = _two(e, seed, index, word)
    u = e.convert("uitofp", e.convert("trunc", first, "i32"), "f32")
    u = e.fma(u, 2.0**-32, 2.0**-33)  # in (0, 1]
    radius = e.sqrt(log(e, u) * -2.0)
    # cos(2πv) = ±sin(π/2 - 2π·|v'|) with v' = v - 1/2 ∈ [-1/2, 1/2): cos(2πv) = -cos(2πv')
    centered = e.abs(_unit_interval(e, second) - 0.5)
    angle = (centered - 0.25) * (2.0 * math.pi)  # exact up to the product
    return radius * sin_half_turn(e, angle)


def randint(e: Emitter, seed: Value, index: Value, low: Value, high: Value, word: int = 0) -> Value:
    """Uniform i64 in [low, high): the upper half of a 64-bit random number times high - low."""
    first, second = _two(e, seed, index, word)
    span = high - low
    span0, span1 = span & _WORD, span >> 32
    # (second·2^32 + first)·(span1·2^32 + span0) >> 64, in 32-bit pieces
    carry = (first * span0) >> 32
    middle = first * span1 + carry  # below 2^64
    other = second * span0 + (middle & _WORD)
    return low + second * span1 + (middle >> 32) + (other >> 32)
