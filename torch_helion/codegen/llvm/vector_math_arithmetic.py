"""Exact remainders and quotients, roots, and the conversions between float formats.

Formats narrower than f32 travel as integers here (i16, i8) except half, which LLVM has.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from torch_helion.codegen.llvm.vector_math_emitter import BIAS, MANTISSA, Emitter, Value


def rsqrt(e: Emitter, x: Value) -> Value:
    """1/√x, both steps correctly rounded. Error: f32 1.5 ulp, f64 1.5 ulp."""
    return 1.0 / e.sqrt(x)


def hypot(e: Emitter, x: Value, y: Value) -> Value:
    """√(x² + y²) without overflow between; inf wins over NaN. Error: f32 0.6 ulp, f64 1.1 ulp."""
    if x.kind == "f32":
        a, b = e.widen(x), e.widen(y)
        result = e.narrow(e.sqrt(e.fma(a, a, b * b)), "f32")
    else:
        result = _hypot_scaled(e, e.abs(x), e.abs(y))
    infinite = e.abs(x).eq(math.inf) | e.abs(y).eq(math.inf)
    return e.select(infinite, math.inf, result)


def _hypot_scaled(e: Emitter, a: Value, b: Value) -> Value:
    large = e.select(a < b, b, a)
    up, down = e.value(2.0**600, a.kind), e.value(2.0**-600, a.kind)
    factor = e.select(large > 2.0**500, down, e.select(large < 2.0**-400, up, 1.0))
    inverse = e.select(large > 2.0**500, up, e.select(large < 2.0**-400, down, 1.0))
    a, b = a * factor, b * factor
    return e.sqrt(e.fma(a, a, b * b)) * inverse


def fmod(e: Emitter, x: Value, y: Value) -> Value:
    """C's fmod, exact: the sign of x; NaN for y = 0 or infinite x.

    While the quotient is below 2^22 (f32) its integer part is at most one too large, and
    x - q·y is then representable, so one fused step is exact.  Other lanes go to libm.
    """
    a, b = e.abs(x), e.abs(y)
    ratio = a / b
    q = e.trunc(ratio)
    r = e.exact_fma(-q, b, a)
    r = e.select(r < 0.0, r + b, r)
    r = e.select(q.eq(0.0), a, r)  # also for infinite y
    r = e.select(y.is_nan(), y, r)
    return e.patch(ratio.uge(2.0 ** (MANTISSA[x.kind] - 1)), e.copysign(r, x), "fmod", x, y)


def remainder(e: Emitter, x: Value, y: Value) -> Value:
    """Python's remainder as PyTorch rounds it: the sign of y."""
    modulo = fmod(e, x, y)
    return e.select(_signs_differ(e, modulo, y), modulo + y, modulo)


def _signs_differ(e: Emitter, modulo: Value, y: Value) -> Value:
    return modulo.ne(0.0) & ((modulo < 0.0) ^ (y < 0.0))


def floordiv(e: Emitter, x: Value, y: Value) -> Value:
    """floor(x/y) as PyTorch rounds it: from the exact remainder."""
    modulo = fmod(e, x, y)
    quotient = (x - modulo) / y
    quotient = e.select(_signs_differ(e, modulo, y), quotient - 1.0, quotient)
    floor = e.floor(quotient)
    floor = e.select(quotient - floor > 0.5, floor + 1.0, floor)
    plain = x / y
    floor = e.select(quotient.eq(0.0), e.copysign(0.0, plain), floor)
    return e.select(y.eq(0.0), plain, floor)


def nextafter(e: Emitter, x: Value, y: Value) -> Value:
    """The next number after x towards y."""
    bits = e.bits(x)
    away = (x < y) ^ (x < 0.0)
    one = e.value(1, bits.kind)
    stepped = e.from_bits(bits + e.select(away, one, -1))
    from_zero = e.copysign(e.from_bits(one), y)
    result = e.select(x.eq(0.0), from_zero, stepped)
    result = e.select(x.eq(y), y, result)
    return e.select(x.is_nan() | y.is_nan(), math.nan, result)


# -- bfloat16 ------------------------------------------------------------------------------------


def bf16_above(e: Emitter, x: Value, plain: bool = False) -> Value:
    """The f32's bits with bf16's rounding, to even, in the upper half.

    A number in the middle is pushed up where its upper half is odd; then everything above a middle
    carries. NaN stays NaN; ``plain``: no NaN has bits in its lower half, and none needs care.
    """
    bits = e.bits(x)
    rounded = (bits | ((bits >> 16) & 1)) + 0x7FFF
    return rounded if plain else e.bits(e.quiet_nan(e.from_bits(rounded), x))


def f32_to_bf16(e: Emitter, x: Value, plain: bool = False) -> Value:
    """f32 to the bits of bfloat16; subnormal numbers are kept (x86's instruction drops them)."""
    return e.convert("trunc", bf16_above(e, x, plain) >> 16, "i16")


def bf16_to_f32(e: Emitter, x: Value) -> Value:
    """Bits of bfloat16 to f32."""
    return e.from_bits(e.convert("zext", x, "i32") << 16)


def round_to_bf16(e: Emitter, x: Value) -> Value:
    """An f32 rounded to what bfloat16 can hold, still an f32."""
    return e.from_bits(bf16_above(e, x) & 0xFFFF0000)


# -- half ----------------------------------------------------------------------------------------


def _to_small_float(e: Emitter, x: Value, exponent: int, mantissa: int) -> tuple[Value, Value]:
    """|x| rounded to the format's grid as if it had no largest number, and x's sign bit."""
    a = e.abs(x)
    bits = e.bits(a)
    bias, drop = (1 << (exponent - 1)) - 1, 23 - mantissa
    # Adding a power of two whose last place is the smallest subnormal's rounds to that grid.
    anchor = BIAS["f32"] - bias + drop + 1
    small = e.bits(a + 2.0 ** (anchor - BIAS["f32"])) - (anchor << 23)
    half = (1 << (drop - 1)) - 1
    normal = (bits + (((bits >> drop) & 1) + (((bias - BIAS["f32"]) << 23) + half))) >> drop
    return e.select(a < 2.0 ** (1 - bias), small, normal), e.bits(x) & (1 << 31)


def _has_half_conversion(e: Emitter) -> bool:
    return e.machine.is_arm64 or e.machine.has("f16c")


def f32_to_f16(e: Emitter, x: Value) -> Value:
    """f32 to the bits of half: to even, subnormal numbers kept."""
    if _has_half_conversion(e):
        return e.convert("bitcast", e.convert("fptrunc", x, "f16"), "i16")
    return _f32_to_f16_by_integers(e, x)


def _f32_to_f16_by_integers(e: Emitter, x: Value) -> Value:
    result, sign = _to_small_float(e, x, exponent=5, mantissa=10)
    result = e.select(e.abs(x) >= 65520.0, 0x7C00, result)
    result = e.select(x.is_nan(), 0x7E00, result)
    return e.convert("trunc", result | (sign >> 16), "i16")


def f16_to_f32(e: Emitter, x: Value) -> Value:
    """Bits of half to f32."""
    if _has_half_conversion(e):
        return e.convert("fpext", e.convert("bitcast", x, "f16"), "f32")
    bits = e.convert("zext", x, "i32")
    return _small_float_to_f32(e, bits, exponent=5, mantissa=10)


def _small_float_to_f32(e: Emitter, bits: Value, exponent: int, mantissa: int) -> Value:
    """An IEEE-like format with inf and NaN: shifted into place and rescaled."""
    width = 1 + exponent + mantissa
    magnitude = (bits & ((1 << (width - 1)) - 1)) << (23 - mantissa)
    bias = (1 << (exponent - 1)) - 1
    scaled = e.from_bits(magnitude) * 2.0 ** (BIAS["f32"] - bias)
    top = ((1 << exponent) - 1) << 23
    special = e.from_bits(magnitude | 0x7F800000)
    result = e.select(magnitude.uge(top), special, scaled)
    sign = (bits >> (width - 1)) << 31
    return e.from_bits(e.bits(result) | sign)


def round_to_f16(e: Emitter, x: Value) -> Value:
    """An f32 rounded to what half can hold, still an f32."""
    return f16_to_f32(e, f32_to_f16(e, x))


# -- float8 --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def e4m3fn_saturates() -> bool:
    """Whether this PyTorch turns large finite numbers into ±448; older ones make them NaN."""
    return not bool(torch.tensor([1e9]).to(torch.float8_e4m3fn).isnan().any())


def f32_to_e4m3fn(e: Emitter, x: Value) -> Value:
    """f32 to the bits of float8_e4m3fn, as PyTorch's ``to``."""
    result, sign = _to_small_float(e, x, exponent=4, mantissa=3)
    a = e.abs(x)
    if e4m3fn_saturates():
        result = e.select(a >= 448.0, 0x7E, result)
        result = e.select(x.is_nan(), 0x7F, result)
    else:
        result = e.select(a.uge(480.0), 0x7F, result)
    return e.convert("trunc", result | (sign >> 24), "i8")


def e4m3fn_to_f32(e: Emitter, x: Value) -> Value:
    """Bits of float8_e4m3fn to f32: no inf, one NaN."""
    bits = e.convert("zext", x, "i32")
    magnitude = bits & 0x7F
    scaled = e.from_bits(magnitude << 20) * 2.0**120
    result = e.select(magnitude.eq(0x7F), math.nan, scaled)
    return e.from_bits(e.bits(result) | ((bits >> 7) << 31))


def f32_to_e5m2(e: Emitter, x: Value) -> Value:
    """f32 to the bits of float8_e5m2, as PyTorch's ``to``: large numbers become inf."""
    result, sign = _to_small_float(e, x, exponent=5, mantissa=2)
    result = e.select(e.abs(x) >= 65536.0, 0x7C, result)
    result = e.select(x.is_nan(), 0x7F, result)
    return e.convert("trunc", result | (sign >> 24), "i8")


def e5m2_to_f32(e: Emitter, x: Value) -> Value:
    """Bits of float8_e5m2 to f32."""
    return _small_float_to_f32(e, e.convert("zext", x, "i32"), exponent=5, mantissa=2)
