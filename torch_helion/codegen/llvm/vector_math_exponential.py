"""exp, log, and what is made of them: powers, hyperbolic functions, sigmoid.

Each function takes an ``Emitter`` and values of one kind, f32 or f64, and returns a value.  The
error in its docstring is a bound that the tests hold it to, on machines with a fused multiply-add.
Coefficients are minimax fits (Remez in multiple precision, then rounded one after the other).
"""

from __future__ import annotations

import math

from torch_helion.codegen.llvm.vector_math_emitter import (
    BIAS,
    MANTISSA,
    MIN_NORMAL,
    Emitter,
    Rounded,
    Value,
)

LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453

# ln 2 in two parts.  With a fused multiply-add the first may have all bits; it is rounded down,
# so that the second is positive and log(0) = -inf · both stays -inf.  Without one, n · first
# must be exact, so it has few bits.
_LN2_FUSED = {
    "f32": (0.6931471228599548, 5.7699990475432857e-08),
    "f64": (0.6931471805599453, 2.3190468138462996e-17),
}
_LN2_SHORT = {
    "f32": (0.693359375, -0.00021219444005469058),
    "f64": (0.6931471803691238, 1.9082149292705878e-10),
}

# e^r = 1 + r + r²·q(r), |r| ≤ ln2/2, relative to e^r
_EXP = {
    "f32": (0.4999999403953552, 0.16666516661643982, 0.04166810214519501, 0.00836918130517006,
            0.0013838523300364614),
    "f64": (0.5000000000000011, 0.16666666666666435, 0.041666666666525784, 0.008333333333475806,
            0.0013888888944856284, 0.00019841269555097779, 2.4801491770595815e-05,
            2.7557536432430023e-06, 2.763073543619821e-07, 2.501771050547184e-08),
}  # fmt: skip
# the same, relative to e^r - 1
_EXPM1 = {
    "f32": (0.4999999701976776, 0.16666539013385773, 0.041667744517326355, 0.008367136120796204,
            0.00138366362079978),
    "f64": (0.5, 0.16666666666666677, 0.041666666666666685, 0.008333333333321768,
            0.0013888888888892103, 0.00019841269885456186, 2.480158728503803e-05,
            2.7557245005480257e-06, 2.755732215443488e-07, 2.5108747113651078e-08,
            2.089680490310835e-09),
}  # fmt: skip
_EXP_FAST = (1.0, 1.0, 0.499992311000824, 0.16669143736362457, 0.04189341515302658,
             0.008178253658115864)  # fmt: skip
# 2^r = 1 + r·p(r), |r| ≤ 1/2
_EXP2 = {
    "f32": (0.6931471824645996, 0.24022647738456726, 0.055503588169813156, 0.009618481621146202,
            0.0013391460524871945, 0.00015340448589995503),
    "f64": (0.6931471805599453, 0.2402265069591007, 0.05550410866482345, 0.009618129107630187,
            0.0013333558145992735, 0.0001540353038955623, 1.525273422505821e-05,
            1.3215490222266617e-06, 1.0177901903418073e-07, 7.0535612790232065e-09,
            4.4786048494259665e-10, 2.7636024986753304e-11),
}  # fmt: skip
_EXP2_SHORT = (
    0.9999280525262161,
    0.6932610284051042,
    0.24261147912927053,
    0.055171573182656614,
)  # to 2^-13
_EXP2_FOR_F32 = (0.9999999999616795, 0.6931471807279421, 0.24022651197692804,
                 0.055504103588927975, 0.009618027264203912, 0.0013333917573060503,
                 0.00015469296456449807, 1.5203119912782005e-05)  # fmt: skip
# log(1+f) = f + f²·(f·P(f) - 1/2), -1/4 ≤ f ≤ 1/2
_LOG_F32 = (0.33333462476730347, -0.2500019371509552, 0.19990374147891998, -0.16642577946186066,
            0.14475591480731964, -0.13209369778633118, 0.10590427368879318,
            -0.04602772369980812)  # fmt: skip
# 2·atanh(s) = 2s + s·z·R(z), z = s² ≤ 0.04
_LOG_F64 = (0.666666666666666, 0.4000000000005674, 0.28571428555805256, 0.22222224299589122,
            0.18181665668215677, 0.1539111922007773, 0.13173470371226745,
            0.13843950539035135)  # fmt: skip
# log2(m) = s·P(z), s = (m - 1)/(m + 1), to 2^-42 of it: for results that are rounded to f32
_LOG2_FOR_F32 = (2.885390081777417, 0.9617966948360994, 0.5770777532403601, 0.41222635342997627,
                 0.31927945990392564, 0.2908913876337427)  # fmt: skip
# 2·atanh(s) = 2s + s·z·(2/3 + z·R(z))
_POW_F64 = (0.3999999999999972, 0.2857142857157993, 0.2222222219078177, 0.1818182156808405,
            0.1538440453433706, 0.1334120459755376, 0.11591456017049924,
            0.12576991030494938)  # fmt: skip
# sinh(x) = x + x·z·p(z), z = x² ≤ 1
_SINH = {
    "f32": (0.1666666716337204, 0.00833331048488617, 0.0001984289410756901, 2.782230239972705e-06),
    "f64": (0.16666666666666669, 0.008333333333332912, 0.00019841269841593684,
            2.755731910654401e-06, 2.5052131055827925e-08, 1.605665277401071e-10,
            7.77685509663751e-13),
}  # fmt: skip

# Arguments beyond which e^x is surely inf, or surely rounds to zero.
_EXP_HIGH = {"f32": 89.0, "f64": 710.0}
_EXP_LOW = {"f32": -104.0, "f64": -746.0}
# From here down e^x is below half an ulp of one, and still a normal number.
_EXP_LOW_NORMAL = {"f32": -86.0, "f64": -706.0}


def _ln2(e: Emitter, kind: str) -> tuple[float, float]:
    return (_LN2_FUSED if e.machine.has_fma else _LN2_SHORT)[kind]


def reduce_exp(e: Emitter, x: Value) -> tuple[Rounded, Value]:
    """x = n·ln2 + r with |r| ≤ ln2/2."""
    high, low = _ln2(e, x.kind)
    n = e.round_scaled(x, LOG2_E)
    r = e.fma(n.number, -high, x)
    return n, e.fma(n.number, -low, r)


def exp_polynomial(e: Emitter, r: Value) -> Value:
    return e.horner(r, (1.0, 1.0, *_EXP[r.kind]))


def expm1_polynomial(e: Emitter, r: Value) -> Value:
    return e.fma(r * r, e.horner(r, _EXPM1[r.kind]), r)


def exp(e: Emitter, x: Value) -> Value:
    """e^x, subnormal results rounded once. Error: f32 0.9 ulp, f64 0.8 ulp."""
    x = e.min(e.max(x, _EXP_LOW[x.kind]), _EXP_HIGH[x.kind])
    n, r = reduce_exp(e, x)
    return e.ldexp(exp_polynomial(e, r), n)


def exp_fast(e: Emitter, x: Value) -> Value:
    """e^x within 1e-6 of it, for results that are rounded to half types."""
    if x.kind == "f64":
        return exp(e, x)
    x = e.min(e.max(x, _EXP_LOW["f32"]), _EXP_HIGH["f32"])
    n = e.round_scaled(x, LOG2_E)
    r = e.fma(n.number, -LN2, x)
    return e.ldexp(e.horner(r, _EXP_FAST), n)


def exp2(e: Emitter, x: Value) -> Value:
    """2^x; exact for integers. Error: f32 0.9 ulp, f64 0.8 ulp."""
    high, low = {"f32": (129.0, -151.0), "f64": (1025.0, -1076.0)}[x.kind]
    x = e.min(e.max(x, low), high)
    n = e.round_scaled(x, 1.0)
    return e.ldexp(e.horner(x - n.number, (1.0, *_EXP2[x.kind])), n)


def exp2_short(e: Emitter, x: Value) -> Value:
    """2^x within 2^-13 of it, for -126 < x < 128 and NaN."""
    n = e.round_scaled(x, 1.0)
    return e.horner(x - n.number, _EXP2_SHORT) * n.power


def sigmoid_short(e: Emitter, x: Value) -> Value:
    """1 / (1 + e^-x) within 2^-13 of it; f32 only."""
    clamped = e.min(e.max(x, -_EXP_HIGH["f32"]), -_EXP_LOW_NORMAL["f32"])
    n = e.round_scaled(clamped, -LOG2_E)
    r = e.fma(clamped, -LOG2_E, -n.number)
    return 1.0 / (1.0 + e.ldexp_up(e.horner(r, _EXP2_SHORT), n))


def expm1(e: Emitter, x: Value) -> Value:
    """e^x - 1. Error: f32 1.6 ulp, f64 1.7 ulp."""
    low = {"f32": -18.0, "f64": -40.0}[x.kind]  # where it rounds to -1
    clamped = e.min(e.max(x, low), _EXP_HIGH[x.kind])
    n, r = reduce_exp(e, clamped)
    # (p + (1 - 2^-n))·2^n: for n = 0 this is p itself, so tiny results keep all bits.
    inverse = e.power_of_two(-e.min(n.number, BIAS[x.kind] - 2.0))
    p = expm1_polynomial(e, r) + (1.0 - inverse)
    return e.copysign(e.ldexp(p, n), x)


def sigmoid(e: Emitter, x: Value) -> Value:
    """1 / (1 + e^-x). Error: f32 2.4 ulp, f64 2.0 ulp."""
    clamped = e.min(e.max(x, -_EXP_HIGH[x.kind]), -_EXP_LOW_NORMAL[x.kind])
    n, r = reduce_exp(e, -clamped)
    return 1.0 / (1.0 + e.ldexp_up(exp_polynomial(e, r), n))


# -- logarithms ----------------------------------------------------------------------------------


def split_exponent(e: Emitter, x: Value) -> tuple[Value, Value]:
    """x = m·2^k with 3/4 ≤ m < 3/2, for positive x (subnormal ones too).

    With AVX-512, k is -inf for zero and inf for inf, and m is NaN below zero: formulas then need
    no ``log_specials``.
    """
    if e.has_avx512:
        m = e.x86_avx512("getmant", x, immediate=0b1011)  # NaN if negative; [3/4, 3/2)
        return m, e.x86_avx512("getexp", x) - e.x86_avx512("getexp", m)
    kind, mantissa, bias = x.kind, MANTISSA[x.kind], BIAS[x.kind]
    tiny = x < MIN_NORMAL[kind]
    scaled = e.select(tiny, x * 2.0 ** (mantissa + 1), x)
    three_quarters = ((bias << mantissa) - (1 << (mantissa - 1))) & ((1 << 63) - 1)
    offset = e.bits(scaled) - three_quarters
    m = e.from_bits((offset & ((1 << mantissa) - 1)) + three_quarters)
    # The biased exponent as the low bits of a float, which needs no conversion.
    exponent = (offset + (bias << mantissa)) >> mantissa
    magic = 2.0**mantissa
    lifted = e.from_bits(exponent | ((bias + mantissa) << mantissa))
    return m, lifted - e.select(
        tiny, e.value(magic + bias + mantissa + 1.0, kind), e.value(magic + bias, kind)
    )


def log_specials(e: Emitter, x: Value, result: Value) -> Value:
    """log's results for 0, inf, and below zero, where ``split_exponent`` did not make them."""
    if e.has_avx512:
        return result
    result = e.select(x.eq(math.inf), x, result)
    result = e.select(x.ult(0.0), math.nan, result)
    return e.select(x.eq(0.0), -math.inf, result)


def log1p_tail(e: Emitter, f: Value) -> Value:
    """t with log(1 + f) = f + t, for -1/4 ≤ f ≤ 1/2."""
    square = f * f
    if f.kind == "f32":
        return square * e.fma(f, e.horner(f, _LOG_F32), -0.5)
    s = f / (f + 2.0)
    z = s * s
    half = square * 0.5
    return s * e.fma(z, e.horner(z, _LOG_F64), half) - half


def _log_of_parts(e: Emitter, k: Value, f: Value) -> Value:
    high, low = _ln2(e, f.kind)
    return e.fma(k, high, f + e.fma(k, low, log1p_tail(e, f)))


def log(e: Emitter, x: Value) -> Value:
    """Natural logarithm. Error: f32 1.0 ulp, f64 0.9 ulp."""
    m, k = split_exponent(e, x)
    return log_specials(e, x, _log_of_parts(e, k, m - 1.0))


def log2(e: Emitter, x: Value) -> Value:
    """Logarithm to the base 2; exact for powers of two. Error: f32 1.7 ulp, f64 1.5 ulp."""
    high, low = {
        "f32": (1.4426950216293335, 1.9259629911266175e-08),
        "f64": (1.4426950408889634, 2.0355273740931032e-17),
    }[x.kind]
    m, k = split_exponent(e, x)
    f = m - 1.0
    small = e.fma(f, low, log1p_tail(e, f) * high)
    return log_specials(e, x, e.fma(f, high, small) + k)


def log10(e: Emitter, x: Value) -> Value:
    """Logarithm to the base 10. Error: f32 1.1 ulp, f64 1.2 ulp."""
    high, low = {
        "f32": (0.4342944920063019, -1.0103050052231684e-08),
        "f64": (0.4342944819032518, 1.0983196502167651e-17),
    }[x.kind]
    high2, low2 = {  # log10(2), the first part rounded down
        "f32": (0.3010299801826477, 1.5481333490135614e-08),
        "f64": (0.30102999566398114, 5.2707423103472657e-17),
    }[x.kind]
    m, k = split_exponent(e, x)
    f = m - 1.0
    small = e.fma(f, low, e.fma(log1p_tail(e, f), high, k * low2))
    return log_specials(e, x, e.fma(k, high2, e.fma(f, high, small)))


def log1p(e: Emitter, x: Value) -> Value:
    """log(1 + x). Error: f32 0.9 ulp, f64 0.9 ulp."""
    u = x + 1.0
    lost = x - (u - 1.0)  # what rounding took from 1 + x; meaningless and harmless for large x
    m, k = split_exponent(e, u)
    f = e.fma(lost, e.power_of_two(-e.min(k, 100.0)), m - 1.0)
    result = log_specials(e, u, _log_of_parts(e, k, f))
    return e.copysign(e.select(x.eq(math.inf), x, result), x)


# -- powers --------------------------------------------------------------------------------------


def pow_(e: Emitter, x: Value, y: Value) -> Value:
    """x^y with all of IEEE 754's special cases. Error: f32 0.6 ulp, f64 1.0 ulp."""
    magnitude = e.abs(x)
    if x.kind == "f32":
        result = _pow_in_double(e, magnitude, y)
    else:
        result = _pow_in_two_doubles(e, magnitude, y)
    whole = e.trunc(y).eq(y)
    half = y * 0.5
    odd = whole & e.trunc(half).ne(half)
    result = e.select(odd, e.copysign(result, x), result)
    undefined = (x < 0.0) & (x > -math.inf) & e.not_(whole)
    result = e.select(undefined, math.nan, result)
    return e.select(x.eq(1.0) | y.eq(0.0), 1.0, result)


def _pow_in_double(e: Emitter, magnitude: Value, y: Value) -> Value:
    x, exponent = e.widen(magnitude), e.widen(y)
    m, k = split_exponent(e, x)
    s = (m - 1.0) / (m + 1.0)
    logarithm = e.fma(s, e.horner(s * s, _LOG2_FOR_F32), k)
    if not e.has_avx512:
        logarithm = e.select(x.eq(math.inf), x, logarithm)
        logarithm = e.select(x.eq(0.0), -math.inf, logarithm)
        logarithm = e.select(x.is_nan(), x, logarithm)
    # A finite bound on y, so that 0 · y is zero: |x| = 1 with an infinite exponent gives 1.
    exponent = e.min(e.max(exponent, -1e40), 1e40)
    t = e.min(e.max(exponent * logarithm, -300.0), 300.0)
    n = e.round_scaled(t, 1.0)
    return e.narrow(e.horner(t - n.number, _EXP2_FOR_F32) * n.power, "f32")


def _two_product(e: Emitter, a: Value, b: Value | float) -> tuple[Value, Value]:
    product = a * b
    return product, e.exact_fma(a, b, -product)


def _log2_in_two(e: Emitter, m: Value, k: Value) -> tuple[Value, Value]:
    """log2(m·2^k) as high + low, good to about 2^-68 of it."""
    f = m - 1.0
    sum_high = m + 1.0
    sum_low = m - (sum_high - 1.0)
    reciprocal = 1.0 / sum_high
    s = f * reciprocal
    s_low = e.fma(-s, sum_low, e.exact_fma(-s, sum_high, f)) * reciprocal
    z, z_low = _two_product(e, s, s)
    z_low = e.fma(s * s_low, 2.0, z_low)
    # w = 2/3 + z·R(z)
    rest = z * e.horner(z, _POW_F64)
    two_thirds, two_thirds_low = 2.0 / 3.0, 3.7007434154171885e-17
    w = rest + two_thirds
    w_low = (rest - (w - two_thirds)) + two_thirds_low
    # v = 2 + z·w
    p, p_low = _two_product(e, z, w)
    p_low = e.fma(z, w_low, e.fma(z_low, w, p_low))
    v = p + 2.0
    v_low = (p - (v - 2.0)) + p_low
    # ln m = s·v, then times log2(e), then plus k
    ln, ln_low = _two_product(e, s, v)
    ln_low = e.fma(s, v_low, e.fma(s_low, v, ln_low))
    q, q_low = _two_product(e, ln, LOG2_E)
    q_low = e.fma(ln, 2.0355273740931032e-17, e.fma(ln_low, LOG2_E, q_low))
    high = k + q
    low = (q - (high - k)) + q_low  # |k| > |q| or k = 0
    total = high + low
    return total, low - (total - high)


def _pow_in_two_doubles(e: Emitter, x: Value, y: Value) -> Value:
    m, k = split_exponent(e, x)
    # An infinite k would make NaNs of the low parts; finite k are at most 1024.
    bounded = e.min(e.max(k, -1100.0), 1100.0)
    high, low = _log2_in_two(e, m, bounded)
    high = e.select(x.eq(0.0), -math.inf, e.select(x.eq(math.inf), math.inf, high))
    high = e.select(x.is_nan(), math.nan, high)
    exponent = e.min(e.max(y, -1e300), 1e300)
    t, t_low = _two_product(e, exponent, high)
    t_low = e.fma(exponent, low, t_low)
    t_low = e.select(e.abs(t) < 1100.0, t_low, 0.0)
    t = e.min(e.max(t, -1100.0), 1100.0)
    n = e.round_scaled(t, 1.0)
    r = (t - n.number) + t_low
    return e.ldexp(e.horner(r, (1.0, *_EXP2["f64"])), n)


# -- hyperbolic functions ------------------------------------------------------------------------


def tanh(e: Emitter, x: Value) -> Value:
    """Hyperbolic tangent: q = E / (E + 2) with E = e^2|x| - 1; E/2·(1 - q) while E is small.

    Error: f32 1.8 ulp, f64 1.7 ulp.
    """
    saturated = {"f32": 20.0, "f64": 44.0}[x.kind]
    n, r = reduce_exp(e, e.min(e.abs(x) * 2.0, saturated))
    # The sum is made from the rounded E: its error then hardly matters where tanh is near one.
    growth = e.fma(n.power, expm1_polynomial(e, r), n.power - 1.0)
    q = growth / (growth + 2.0)
    half = growth * 0.5
    return e.copysign(e.select(growth < 0.9, e.fma(-half, q, half), q), x)


def _half_exp(e: Emitter, a: Value) -> Value:
    """e^a / 2 for a ≥ 0, finite wherever sinh and cosh are."""
    n, r = reduce_exp(e, e.min(a, _EXP_HIGH[a.kind] + 1.0))
    return e.ldexp(exp_polynomial(e, r) * 0.5, n)


def sinh(e: Emitter, x: Value) -> Value:
    """Hyperbolic sine. Error: f32 1.6 ulp, f64 1.4 ulp."""
    a = e.abs(x)
    half = _half_exp(e, a)
    z = x * x
    small = e.fma(x * z, e.horner(z, _SINH[x.kind]), x)
    return e.select(a.ugt(1.0), e.copysign(half - 0.25 / half, x), small)


def cosh(e: Emitter, x: Value) -> Value:
    """Hyperbolic cosine. Error: f32 1.3 ulp, f64 1.3 ulp."""
    half = _half_exp(e, e.abs(x))
    return half + 0.25 / half


def asinh(e: Emitter, x: Value) -> Value:
    """Inverse hyperbolic sine. Error: f32 1.7 ulp, f64 1.5 ulp."""
    a = e.abs(x)
    big = a > {"f32": 1e9, "f64": 1e18}[x.kind]  # log(2a) from here, and a² may overflow
    z = a * a
    argument = e.select(big, a, a + z / (e.sqrt(z + 1.0) + 1.0))
    return e.copysign(log1p(e, argument) + e.select(big, e.value(LN2, x.kind), 0.0), x)


def acosh(e: Emitter, x: Value) -> Value:
    """Inverse hyperbolic cosine; NaN below 1. Error: f32 2.1 ulp, f64 1.6 ulp."""
    t = x - 1.0
    big = x > {"f32": 1e9, "f64": 1e18}[x.kind]
    argument = e.select(big, x, t + e.sqrt(e.fma(t, t, t * 2.0)))
    result = log1p(e, argument) + e.select(big, e.value(LN2, x.kind), 0.0)
    return e.select(x < 1.0, math.nan, result)


def atanh(e: Emitter, x: Value) -> Value:
    """Inverse hyperbolic tangent; inf at ±1, NaN beyond. Error: f32 2.0 ulp, f64 1.5 ulp."""
    a = e.abs(x)
    return e.copysign(log1p(e, (a + a) / (1.0 - a)) * 0.5, x)
