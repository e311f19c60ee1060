"""sin, cos, tan and their inverses.

Arguments are reduced by π (or π/2) in three parts with exact fused steps while that keeps full
accuracy; the rare larger ones go to libm, lane by lane, behind one test for the whole vector.
Errors and coefficients as in ``vector_math_exponential``.
"""

from __future__ import annotations

import math

from torch_helion.codegen.llvm.vector_math_emitter import BITS, MANTISSA, Emitter, Value

# π in three parts of full precision each
_PI = {
    "f32": (3.1415927410125732, -8.742277657347586e-08, -3.4302490200117637e-15),
    "f64": (3.141592653589793, 1.2246467991473532e-16, -2.9947698097183397e-33),
}
# Where the reduction stays exact to the last place.
_LARGE = {"f32": 1e5, "f64": 1e8}

# sin(r) = r + r·z·s(z), z = r², |r| ≤ π/2
_SIN = {
    # among sets of equal error one with which sin(π/2) = cos(0) = 1
    "f32": (-0.16666656732559204, 0.008333052508533001, -0.00019809628429356962,
            2.606081807243754e-06),
    "f64": (-0.16666666666666666, 0.008333333333333207, -0.0001984126984121248,
            2.7557319211569486e-06, -2.505210690442401e-08, 1.6058941002474797e-10,
            -7.643019382889873e-13, 2.721419811700829e-15),
}  # fmt: skip
# the same, |r| ≤ π/4
_SIN_QUARTER = {
    "f32": (-0.16666655242443085, 0.008332188241183758, -0.00019518093904480338),
    "f64": (-0.16666666666666666, 0.008333333333333042, -0.0001984126984096216,
            2.7557319073623213e-06, -2.5052070776459668e-08, 1.6054286493924393e-10,
            -7.387922572359715e-13),
}  # fmt: skip
# cos(r) = 1 - z/2 + z²·c(z), |r| ≤ π/4
_COS_QUARTER = {
    "f32": (0.04166664555668831, -0.0013887309469282627, 2.4432367354165763e-05),
    "f64": (0.041666666666666595, -0.0013888888888873325, 2.4801587288983126e-05,
            -2.7557314209712444e-07, 2.0875704193733407e-09, -1.1358677952845551e-11),
}  # fmt: skip
# atan(t) = t + t·z·p(z), |t| ≤ tan(π/8)
_ATAN = {
    "f32": (-0.3333294987678528, 0.19977733492851257, -0.13877904415130615, 0.08054384589195251),
    "f64": (-0.333333333333332, 0.19999999999953674, -0.1428571428019996, 0.1111111078352463,
            -0.09090897758708971, 0.07692060235526883, -0.06663104423691729, 0.05847893402994052,
            -0.05039330106008284, 0.038065391152133664, -0.017908324373018876),
}  # fmt: skip
# asin(s) = s + s·z·p(z), z = s² ≤ 1/4
_ASIN = {
    "f32": (0.16666753590106964, 0.07495258003473282, 0.04547508433461189, 0.024156801402568817,
            0.04220465198159218),
    "f64": (0.16666666666666763, 0.07499999999970215, 0.04464285717513695, 0.03038194268328607,
            0.022372215670233644, 0.01735159977194675, 0.013980967905576009, 0.01139769715549909,
            0.010787132609106307, 0.003680114832205172, 0.02177224889658258,
            -0.021092018560149462, 0.03268757629854343),
}  # fmt: skip

_HALF_PI = math.pi / 2
# what π/2 has beyond its nearest number
_HALF_PI_LOW = {"f32": -4.371139000186243e-08, "f64": 6.123233995736766e-17}


def _subtract_multiple(e: Emitter, x: Value, n: Value, scale: float) -> Value:
    """x - n·π·scale; n·π need not be representable, the steps are fused."""
    for part in _PI[x.kind]:
        x = e.exact_fma(n, -part * scale, x)
    return x


def sin_half_turn(e: Emitter, r: Value) -> Value:
    """sin(r) for |r| ≤ π/2."""
    z = r * r
    return e.fma(r, z * e.horner(z, _SIN[r.kind]), r)


def _bounded_sin(e: Emitter, r: Value) -> Value:
    """sin(r) for |r| ≤ π/2, never beyond ±1, where rounding alone could bring it."""
    return e.min(e.max(sin_half_turn(e, r), -1.0), 1.0)


def _with_sign(e: Emitter, value: Value, *signs: Value) -> Value:
    """The value with its sign bit flipped by the top bit of each of ``signs``."""
    total = signs[0]
    for sign in signs[1:]:
        total = total ^ sign
    top = 1 << (BITS[value.kind] - 1)
    return e.from_bits(e.bits(value) ^ (total & top))


def _lift(e: Emitter, a: Value, scale: float, offset: float = 0.0) -> tuple[Value, Value]:
    """n = nearest integer of a·scale + offset, and integer bits whose lowest ones are n's."""
    magic = 1.5 * 2.0 ** MANTISSA[a.kind]
    if offset:
        lifted = e.fma(a, scale, offset) + magic
    else:
        lifted = e.fma(a, scale, magic)
    return lifted - magic, e.bits(lifted)


def sin(e: Emitter, x: Value) -> Value:
    """Sine: |x| = n·π + r, the sign from n and x. Error: f32 1.9 ulp, f64 1.4 ulp."""
    a = e.abs(x)
    n, bits = _lift(e, a, 1.0 / math.pi)
    r = _subtract_multiple(e, a, n, 1.0)
    y = _with_sign(e, _bounded_sin(e, r), bits << (BITS[x.kind] - 1), e.bits(x))
    return e.patch(a > _LARGE[x.kind], y, "sin", x)


def cos(e: Emitter, x: Value) -> Value:
    """Cosine: |x| = (n - 1/2)·π + r, so that it is ±sin(r). Error: f32 2.0 ulp, f64 1.7 ulp."""
    a = e.abs(x)
    n, bits = _lift(e, a, 1.0 / math.pi, 0.5)
    r = _subtract_multiple(e, a, e.fma(n, 2.0, -1.0), 0.5)
    y = _with_sign(e, _bounded_sin(e, r), bits << (BITS[x.kind] - 1))
    return e.patch(a > _LARGE[x.kind], y, "cos", x)


def tan(e: Emitter, x: Value) -> Value:
    """Tangent: sin/cos of the reduced argument, or -cos/sin in odd quadrants.

    Error: f32 2.9 ulp, f64 2.4 ulp.
    """
    a = e.abs(x)
    n, bits = _lift(e, a, 2.0 / math.pi)
    r = _subtract_multiple(e, a, n, 0.5)
    z = r * r
    s = e.fma(r, z * e.horner(z, _SIN_QUARTER[x.kind]), r)
    c = e.fma(z, e.fma(z, e.horner(z, _COS_QUARTER[x.kind]), -0.5), 1.0)
    odd = (bits & 1).ne(0)
    y = _with_sign(e, e.select(odd, -c, s) / e.select(odd, s, c), e.bits(x))
    return e.patch(a > _LARGE[x.kind], y, "tan", x)


def sinc(e: Emitter, x: Value) -> Value:
    """sin(πx)/(πx) with the product rounded first, as PyTorch does; 1 at zero."""
    product = x * math.pi
    return e.select(x.eq(0.0), 1.0, sin(e, product) / product)


# -- inverses ------------------------------------------------------------------------------------


def _asin_parts(e: Emitter, a: Value) -> tuple[Value, Value]:
    """For a = |x|: whether a > 1/2, and asin(a), or asin of sqrt((1-a)/2) where it is."""
    big = a > 0.5
    z = e.select(big, e.fma(a, -0.5, 0.5), a * a)
    s = e.select(big, e.sqrt(z), a)
    return big, e.fma(s * z, e.horner(z, _ASIN[a.kind]), s)


def asin(e: Emitter, x: Value) -> Value:
    """Inverse sine; NaN beyond ±1. Error: f32 1.9 ulp, f64 2.0 ulp."""
    big, p = _asin_parts(e, e.abs(x))
    from_top = e.fma(p, -2.0, _HALF_PI) + _HALF_PI_LOW[x.kind]
    return e.copysign(e.select(big, from_top, p), x)


def acos(e: Emitter, x: Value) -> Value:
    """Inverse cosine; NaN beyond ±1. Error: f32 1.1 ulp, f64 1.1 ulp."""
    low = _HALF_PI_LOW[x.kind]
    big, p = _asin_parts(e, e.abs(x))
    signed = e.copysign(p, x)
    middle = _HALF_PI - (signed - low)
    twice = p + p
    outer = e.select(x < 0.0, math.pi - (twice - 2.0 * low), twice)
    return e.select(big, outer, middle)


def _atan_small(e: Emitter, t: Value) -> Value:
    z = t * t
    return e.fma(t * z, e.horner(z, _ATAN[t.kind]), t)


def atan(e: Emitter, x: Value) -> Value:
    """Inverse tangent. Error: f32 2.3 ulp, f64 2.0 ulp."""
    a, low = e.abs(x), _HALF_PI_LOW[x.kind]
    large, middle = a > 2.414213562373095, a > 0.41421356237309503
    one = e.value(1.0, x.kind)
    numerator = e.select(large, -one, e.select(middle, a - 1.0, a))
    denominator = e.select(large, a, e.select(middle, a + 1.0, one))
    angle = _atan_small(e, numerator / denominator)
    base = e.select(large, _HALF_PI, e.select(middle, one * (_HALF_PI / 2), 0.0))
    base_low = e.select(large, low, e.select(middle, one * (low / 2), 0.0))
    return e.copysign(base + (angle + base_low), x)


def atan2(e: Emitter, y: Value, x: Value) -> Value:
    """Angle of the point (x, y), with all of C's special cases.

    Error: f32 2.3 ulp, f64 1.6 ulp.
    """
    kind, low = x.kind, _HALF_PI_LOW[x.kind]
    a, b = e.abs(y), e.abs(x)
    steep = a > b
    small, large = e.select(steep, b, a), e.select(steep, a, b)
    # Away from the ends of the range, where sums overflow and quotients lose bits.
    far = 2.0 ** (100 if kind == "f32" else 1000)
    up, down = e.value(far**0.5, kind), e.value(far**-0.5, kind)
    factor = e.select(large > far, down, e.select(large < 1.0 / far, up, 1.0))
    small, large = small * factor, large * factor
    diagonal = (small > large * 0.41421356237309503) | small.eq(math.inf)
    difference = e.select(small.eq(large), 0.0, small - large)  # inf - inf as well
    numerator = e.select(diagonal, difference, small)
    denominator = e.select(diagonal, small + large, e.select(large.eq(0.0), 1.0, large))
    angle = _atan_small(e, numerator / denominator)
    angle = e.select(diagonal, angle + low / 2 + _HALF_PI / 2, angle)
    angle = e.select(steep, _HALF_PI - (angle - low), angle)
    negative = e.copysign(1.0, x) < 0.0
    angle = e.select(negative, math.pi - (angle - 2.0 * low), angle)
    angle = e.select(_either_nan(e, x, y), math.nan, angle)
    return e.copysign(angle, y)


def _either_nan(e: Emitter, x: Value, y: Value) -> Value:
    return e.emit("i1", f"fcmp uno {e.typed(x)}, {y.ref}")
