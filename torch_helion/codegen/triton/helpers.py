"""Functions that generated kernels call: their text, printed once in front of the kernels.

Triton's own operators differ from PyTorch's in a few corners (integer division truncates, maxima
lose NaN, reductions want commutative functions). What is right there is written once, here.
"""

from __future__ import annotations

from collections.abc import Iterable

_TEXTS = '''
def _maximum(a, b):
    """NaN wins."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)

def _minimum(a, b):
    """NaN wins."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)

def _product(a, b):
    return a * b

def _first_max(x, i, y, j):
    """The greater number with its position: NaN before all, of equal ones the first."""
    same = (x == y) | ((x != x) & (y != y))
    later = ((y > x) | (y != y)) & (x == x) | (same & (j < i))
    return tl.where(later, y, x), tl.where(later, j, i)

def _first_min(x, i, y, j):
    """The smaller number with its position: NaN before all, of equal ones the first."""
    same = (x == y) | ((x != x) & (y != y))
    later = ((y < x) | (y != y)) & (x == x) | (same & (j < i))
    return tl.where(later, y, x), tl.where(later, j, i)

def _truncdiv(a, b):
    """Rounds to zero; the smallest integer by -1 wraps."""
    return tl.where(b == -1, 0 - a, a // tl.where(b == -1, b + 2, b))

def _fmod(a, b):
    """The remainder of C; by -1 it is 0."""
    return a % tl.where(b == -1, b + 2, b)

def _floordiv(a, b):
    quotient = _truncdiv(a, b)
    rest = a - quotient * b
    return tl.where((rest != 0) & ((rest < 0) ^ (b < 0)), quotient - 1, quotient)

def _remainder(a, b):
    """The remainder of Python."""
    rest = _fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) ^ (b < 0)), rest + b, rest)

def _remainder_float(a, b):
    rest = libdevice.fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) ^ (b < 0)), rest + b, rest)

def _floordiv_float(a, b):
    rest = libdevice.fmod(a, b)
    quotient = tl.div_rn(a - rest, b)
    quotient = tl.where((rest != 0) & ((rest < 0) ^ (b < 0)), quotient - 1, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1, whole)
    whole = tl.where(quotient == 0, libdevice.copysign(quotient * 0, tl.div_rn(a, b)), whole)
    return tl.where(b == 0, tl.div_rn(a, b), whole)

def _floordiv_double(a, b):
    rest = libdevice.fmod(a, b)
    quotient = (a - rest) / b
    quotient = tl.where((rest != 0) & ((rest < 0) ^ (b < 0)), quotient - 1, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1, whole)
    whole = tl.where(quotient == 0, libdevice.copysign(quotient * 0, a / b), whole)
    return tl.where(b == 0, a / b, whole)

def _ipow(base, exponent):
    """By squaring, over all bits of the exponent; wraps."""
    result = base * 0 + 1
    for _ in tl.range(0, 63):
        result = tl.where((exponent & 1) != 0, result * base, result)
        base = base * base
        exponent = exponent >> 1
    return result

def _atomic_max(pointer, value, bits, mask):
    """NaN wins: the one of these bits is beyond all numbers; whoever finds a NaN puts it back."""
    nan = bits.to(value.dtype, bitcast=True)
    old = tl.atomic_max(pointer, tl.where(value != value, nan, value), mask=mask)
    words = pointer.to(tl.pointer_type(bits.dtype), bitcast=True)
    tl.atomic_xchg(words, bits, mask=mask & (old != old))
    return old

def _atomic_min(pointer, value, bits, mask):
    """NaN wins: the one of these bits is beyond all numbers; whoever finds a NaN puts it back."""
    nan = bits.to(value.dtype, bitcast=True)
    old = tl.atomic_min(pointer, tl.where(value != value, nan, value), mask=mask)
    words = pointer.to(tl.pointer_type(bits.dtype), bitcast=True)
    tl.atomic_xchg(words, bits, mask=mask & (old != old))
    return old

def _philox(seed, index):
    """The four words of Philox4x32-10, key = seed, counter = index."""
    low = index.to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, low * 0, low * 0)

def _uniform(word):
    """[0, 1) by the top 24 bits."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08

def _normal(first, second):
    """Box and Muller, in double."""
    u = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    angle = _uniform(second).to(tl.float64) * 6.283185307179586
    return (tl.sqrt(-2.0 * tl.log(u.to(tl.float64))) * tl.cos(angle)).to(tl.float32)

def _randint(first, second, low, high):
    """[low, high) by the upper half of a product with 64 bits."""
    word = (second.to(tl.uint64) << 32) | first.to(tl.uint64)
    return low + tl.umulhi(word, (high - low).to(tl.uint64)).to(tl.int64)
'''

HELPERS: dict[str, str] = {
    text.split("(")[0].removeprefix("def "): text for text in _TEXTS.strip().split("\n\n")
}


def helper_texts(names: Iterable[str]) -> list[str]:
    """The texts of these helpers and of what they call, in the table's order."""
    wanted = set(names)
    for name in reversed(HELPERS):  # a helper calls only those that stand before it
        if name in wanted:
            wanted |= {other for other in HELPERS if f"{other}(" in HELPERS[name]}
    return [f"@triton.jit\n{text}" for name, text in HELPERS.items() if name in wanted]
