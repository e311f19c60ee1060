"""The error function's family, gamma's, and modified Bessel functions.

Errors and coefficients as in ``vector_math_exponential``.
"""

from __future__ import annotations

import math

from torch_helion.codegen.llvm.vector_math_emitter import Emitter, Value
from torch_helion.codegen.llvm.vector_math_exponential import (
    exp2_short,
    exp_polynomial,
    expm1_polynomial,
    log,
    reduce_exp,
)
from torch_helion.codegen.llvm.vector_math_trigonometric import sin_half_turn

# erfc(a) = e^(-a·G(a)), 0 ≤ a; G's first coefficient, 2/√π, in two parts, then the others
_ERF = {
    "f32": (0.636619508266449, 0.10277687758207321, -0.019149981439113617,
            -0.00016545940889045596, 0.001671552425250411, -0.0006350471521727741,
            0.0001181907719001174, -9.310115274274722e-06),
    "f64": (0.6366197723675876, 0.10277260330144239, -0.01912844699532823,
            -0.0002091948316614095, 0.0016962075288822287, -0.0005901318204484133,
            2.5902609269071833e-05, 6.442482253754528e-05, -2.9583286910970365e-05,
            3.1800156904344512e-06, 3.1219302706538036e-06, -2.0278589024766897e-06,
            5.643395936452181e-07, -8.314050539568412e-09, -6.719640655219217e-08,
            3.5086477296131934e-08, -1.0909025934391849e-08, 2.389046269543225e-09,
            -3.806318293572673e-10, 4.355248375617459e-11, -3.407630973048921e-12,
            1.636467566741643e-13, -3.642194562795559e-15),
}  # fmt: skip
_ERF_FIRST = {
    "f32": (1.128379225730896, -5.86353834221976e-08),
    "f64": (1.1283791670955126, 1.5335459613165881e-17),
}
_ERF_ONE = {"f32": 4.0, "f64": 6.0}  # erf rounds to one from here
# erfc(a) = 2^(a·H(a)), 0 ≤ a ≤ 4, to 2^-15 of it
_ERF_SHORT = (
    -1.6273140141486582,
    -0.9205983214567023,
    -0.14685026881491214,
    0.029809333081483654,
    -0.003693065835706456,
    0.0002043273955431904,
)
# erfc(a) = e^(-a²)·P(q)/(1 + 2a), q = (a - K)/(a + K)
_ERFC_K = {"f32": 2.0, "f64": 4.0}
_ERFC = {
    "f32": (1.2769783983650231, -0.09276401736113267, -0.16603176586417237, 0.16405601049545923,
            -0.054200473065534834, -0.008061940088119838, 0.008617535356477054,
            0.0013110378563488314, -0.00121330161228047, -0.0003906801016301562),
    "f64": (1.2329951186255526, -0.1396211168405629, 0.015379652102619767, 0.06809705425473661,
            -0.1010390660363013, 0.09373283499682342, -0.06633036581256134, 0.03716751556185805,
            -0.01619773404844736, 0.005031969763526267, -0.0007577734047401873,
            -0.0001992555610511015, 0.00015062247117334337, -2.4402942200680917e-05,
            -1.122528224259424e-05, 5.717296729406244e-06, 3.019555146703281e-07,
            -8.342423914595367e-07, 6.238945509884794e-08, 1.1456282172602842e-07,
            -7.778680876197132e-09, -1.3386759115144918e-08, -1.7178114821467834e-09),
}  # fmt: skip
# erfinv(y) = y·P(w - shift) up to the first limit of w = -log(1 - y²), y·P(√w - shift) from it
_ERFINV = {
    "f32": (
        (0.0, 2.5, (1.5014094218180831, 0.24664072652481964, -0.004177707933960176,
                    -0.0012537079200356255, 0.00021860229080632038, -4.396674377694598e-06,
                    -3.528886345679339e-06, 3.437184550246567e-07, 2.8537182811337776e-08)),
        (5.0, 3.0, (2.8329769899308905, 1.0016741841519134, 0.009435620818524197,
                    -0.007625310089496786, 0.005761809150736078, -0.003660133158435985,
                    0.0013002116201484748, 8.611116410496683e-05, -0.0001654263708192257)),
    ),
    "f64": (
        (0.0, 3.125, (1.6536545626831027, 0.24015818242559042, -0.006033670871429158,
                      -0.0007407025341727715, 0.00018673420802867562, -1.3882523347478674e-05,
                      -1.365469189558073e-06, 4.234787618950491e-07, -2.907038003448923e-08,
                      -4.112624405199314e-09, 1.0512177313855298e-09, -5.415746589112882e-11,
                      -1.2976936951163842e-11, 2.6342385672708436e-12, -8.114262788669456e-14,
                      -4.064565732401998e-14, 6.587714124740575e-15, 2.935186978419627e-17,
                      -1.2924869471544228e-16, 1.0766011292678124e-17, 1.0999492557005183e-18,
                      -1.606706740258854e-19)),
        (6.25, 3.25, (3.0838856104922208, 1.0052589676941572, 0.005370914553583363,
                      -0.0037512085073770165, 0.0024914420965774027, -0.0016882755612152556,
                      0.0009532893685792064, -0.00035503745808777225, 2.4031234613567625e-05,
                      6.828445885786621e-05, -4.731897419403728e-05, 1.247669822946647e-05,
                      2.925997036939202e-06, -4.016668270678882e-06, 1.497750212679261e-06,
                      2.1210675870898348e-08, -2.6999365036833297e-07, 8.946443844717541e-08)),
        (16.0, 5.0, (4.849906401408584, 1.0103004648645242, -0.00013871931843286911,
                     -0.00021503011892869337, 7.599527916891926e-05, -1.968178198204783e-05,
                     4.52604494431541e-06, -9.92965029312368e-07, 2.2907532831654326e-07,
                     -6.775329422639238e-08, 2.899657684161149e-08, -1.4908574546092664e-08,
                     7.79448175380979e-09, -3.82206206735985e-09, 1.398248153177318e-09,
                     -2.473078535402619e-10)),
    ),
}  # fmt: skip
# I0(x) = P(x²/4), I1(x) = x/2·P(x²/4) up to 8; then e^x/√x·Q(8/x)
_BESSEL = {
    ("f32", 0): (
        (1.000000000280257, 0.9999999918587472, 0.2500000345967249, 0.027777725560324033,
         0.0017361486504215754, 6.942960960566897e-05, 1.932492029607303e-06,
         3.886514537321073e-08, 6.599172618063692e-10, 5.22023071762965e-12,
         1.4225306909837226e-13),
        (0.3989422769675077, 0.006233698229532273, 0.00043591894351263703,
         6.598614160244417e-05, -3.381083850008655e-06, 1.1839664313847915e-05),
    ),
    ("f32", 1): (
        (1.00000000005997, 0.49999999858344985, 0.0833333384608383, 0.0069444376301228,
         0.00034722664407400866, 1.1572466779356575e-05, 2.759250540855083e-07,
         4.872983683013682e-09, 7.24217742807489e-11, 5.51982807034813e-13,
         1.2514474903511834e-14),
        (0.39894228442886237, -0.018700680947333275, -0.0007277462233083377,
         -9.014957935356379e-05, 2.3684962860011136e-06, -1.3805734732849647e-05),
    ),
    ("f64", 0): (
        (1.0, 0.9999999999999972, 0.2500000000000196, 0.027777777777725613,
         0.0017361111111802248, 6.94444443915267e-05, 1.9290123712264125e-06,
         3.9367590679073355e-08, 6.151205511022623e-10, 7.593775789231249e-12,
         7.597160271805725e-14, 6.252235185539071e-16, 4.483486300174927e-18,
         2.1560376708459128e-20, 2.1259440298945477e-22),
        (0.39894228040143276, 0.006233473131235375, 0.00043829108294112206,
         5.7069043621323925e-05, 1.092443172888017e-05, 2.781557618257935e-06,
         2.6917560064804644e-07, 8.72345294630666e-06, -7.177995840605233e-05,
         0.0004252303263237365, -0.001825163928015017, 0.0058468676422298305,
         -0.014175237030952522, 0.02614958026782908, -0.036629698873895625,
         0.03859029252502049, -0.03000714828383415, 0.016671697781462866,
         -0.006253233364505699, 0.001417901860856439, -0.00014677888664421998),
    ),
    ("f64", 1): (
        (1.0, 0.4999999999999996, 0.0833333333333357, 0.0069444444444388,
         0.00034722222222904664, 1.157407406923803e-05, 2.755731944251052e-07,
         4.9209491979466335e-09, 6.834666564829671e-11, 7.593850389653526e-13,
         6.905886827531749e-15, 5.2137376092057886e-17, 3.435746687095616e-19,
         1.568337933371015e-21, 1.390108882514485e-23),
        (0.3989422804014326, -0.018700419393779814, -0.0007304851358414223,
         -7.989671773569406e-05, -1.4044852644469972e-05, -3.407925140452297e-06,
         -2.6415189064927894e-07, -1.0300843532623815e-05, 8.19708408742805e-05,
         -0.0004756888480192991, 0.0020132235697712863, -0.00638260283515969,
         0.01534906241542975, -0.02812931385745947, 0.03918703941171737,
         -0.041091352613262376, 0.031821943994371917, -0.01761655057005802,
         0.006586483900293349, -0.001489163171605808, 0.00015375299239069515),
    ),
}  # fmt: skip
# lgamma(u) = (u - 1)·(u - 2)·P(u - 2), 1 ≤ u ≤ 3
_LGAMMA_MIDDLE = (
    0.4227843355819601, -0.1003173036870462, 0.03296494886947776, -0.012384116820925516,
    0.004999465219599183, -0.0021089313080387456, 0.0009105569262557351, -0.00040201137990422166,
    0.00019571752175918142, -9.169334702664855e-05, 2.031340490951577e-05, -7.3110042989631155e-06,
    1.9289426443398044e-05, -9.669601765085026e-06,
)  # fmt: skip
# lgamma(a) = (a - 1/2)·(log a - 1) + constant + w·S(w²), w = 1/a ≤ 1/3
_STIRLING_CONSTANT = 0.41893853320467275
_STIRLING = (0.08333326587884533, -0.0027727269283031064, 0.0006967139777348361)
# digamma(x) = log x - 1/(2x) - z·B(z), z = 1/x²: Bernoulli numbers over 2k
_DIGAMMA = {
    "f32": (1 / 12, -1 / 120, 1 / 252),
    "f64": (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12),
}


def _minus_log_erfc(e: Emitter, a: Value) -> Value:
    """-y of erfc(a) = e^-y, y = a·G(a)."""
    first, first_low = _ERF_FIRST[a.kind]
    return e.fma(a, -first, -(a * e.horner(a, (first_low, *_ERF[a.kind]))))


def erf(e: Emitter, x: Value) -> Value:
    """Error function: 1 - e^-y as one e^-y - 1, without cancellation near zero.

    Error: f32 1.7 ulp, f64 1.6 ulp.
    """
    a = e.min(e.abs(x), _ERF_ONE[x.kind])
    n, r = reduce_exp(e, _minus_log_erfc(e, a))
    p = expm1_polynomial(e, r)
    return e.copysign(e.fma(-n.power, p, 1.0 - n.power), x)


def one_plus_erf_short(e: Emitter, x: Value) -> Value:
    """1 + erf(x) within 2^-13 of it, without cancellation below zero; f32 only.

    Zero below -4, where 1 + erf(x) in f32 is.
    """
    a = e.min(e.abs(x), 4.0)
    tail = exp2_short(e, a * e.horner(a, _ERF_SHORT))
    below = e.select(x > -4.0, tail, 0.0)
    return e.select(x < 0.0, below, 2.0 - tail)


def erfc(e: Emitter, x: Value) -> Value:
    """1 - erf(x): e^-y as in ``erf`` up to 1, then e^(-x²) times a polynomial.

    Error: f32 3.7 ulp, f64 3.0 ulp.
    """
    center = _ERFC_K[x.kind]
    a = e.min(e.abs(x), {"f32": 11.0, "f64": 28.0}[x.kind])
    q = (a - center) / (a + center)
    ratio = e.horner(q, _ERFC[x.kind]) / e.fma(a, 2.0, 1.0)
    square = a * a
    lost = e.exact_fma(-a, a, square)  # square - a², which the exponent must not lose
    near = a < 1.0
    n, r = reduce_exp(e, e.select(near, _minus_log_erfc(e, a), -square))
    scaled = exp_polynomial(e, r)
    far = scaled * ratio
    tail = e.ldexp(e.select(near, scaled, e.fma(far, lost, far)), n)
    return e.select(x < 0.0, 2.0 - tail, tail)


def erfinv(e: Emitter, x: Value) -> Value:
    """Inverse error function; ±inf at ±1, NaN beyond. Error: f32 3.5 ulp, f64 3.5 ulp."""
    a = e.abs(x)
    w = -log(e, (1.0 - a) * (a + 1.0))
    pieces = _ERFINV[x.kind]
    total = e.horner(w - pieces[0][1], pieces[0][2])
    root = e.sqrt(w)
    for limit, shift, coefficients in pieces[1:]:
        total = e.select(w < limit, total, e.horner(root - shift, coefficients))
    return e.select(a.eq(1.0), e.copysign(math.inf, x), total * x)


def lgamma(e: Emitter, x: Value) -> Value:
    """Logarithm of |Γ(x)|; f64 is libm's, lane by lane."""
    if x.kind == "f64":
        return e.everywhere("lgamma", x)
    a = e.abs(x)
    low, high = a < 1.0, a > 3.0
    # On [1, 3], and on [0, 1) one higher: both zeros as exact factors, no cancellation.
    zero1, zero2 = e.select(low, a, a - 1.0), e.select(low, a - 1.0, a - 2.0)
    middle = zero1 * zero2 * e.horner(zero2, _LGAMMA_MIDDLE)
    logarithm = log(e, a)
    middle = e.select(low, middle - logarithm, middle + 0.0)  # no -0 at one
    w = 1.0 / a
    rest = e.fma(w, e.horner(w * w, _STIRLING), _STIRLING_CONSTANT)
    large = e.fma(a - 0.5, logarithm - 1.0, rest)
    result = e.select(high, large, middle)
    # |Γ(-a)| = π / (a·|sin πa|·Γ(a)); inf at integers
    r = (a - e.round(a)) * math.pi
    sine = log(e, e.abs(sin_half_turn(e, r)))
    reflected = math.log(math.pi) - sine - logarithm - result
    result = e.select(x < 0.0, reflected, result)
    infinite = a.eq(math.inf) | ((x < 0.0) & r.eq(0.0))
    return e.select(infinite, math.inf, result)


def digamma(e: Emitter, x: Value) -> Value:
    """Derivative of log Γ: reflected below zero, lifted to 10, then its asymptotic series."""
    y = e.select(x < 0.0, 1.0 - x, x)
    numerator, denominator, y = _sum_of_reciprocals(e, y)
    z = 1.0 / (y * y)
    series = e.fma(-z, e.horner(z, _DIGAMMA[x.kind]), log(e, y) - 0.5 / y)
    positive = series - numerator / denominator
    # -π·cot(πx), of the distance to the nearest integer
    fraction = x - e.round(x)
    r = fraction * math.pi
    cosine = sin_half_turn(e, math.pi / 2 - e.abs(r))
    reflected = positive - math.pi * cosine / sin_half_turn(e, r)
    result = e.select(x < 0.0, reflected, positive)
    result = e.select((x < 0.0) & fraction.eq(0.0), math.nan, result)
    result = e.select(x.eq(-math.inf), math.nan, result)
    return e.select(x.eq(0.0), e.copysign(math.inf, -x), result)


def _sum_of_reciprocals(e: Emitter, y: Value) -> tuple[Value, Value, Value]:
    """1/y + 1/(y+1) + … up to 10 as a quotient, and the y that is then at least 10."""
    numerator, denominator = e.value(0.0, y.kind), e.value(1.0, y.kind)
    for _ in range(10):
        low = y < 10.0
        numerator = e.select(low, e.fma(numerator, y, denominator), numerator)
        denominator = e.select(low, denominator * y, denominator)
        y = e.select(low, y + 1.0, y)
    return numerator, denominator, y


def _bessel(e: Emitter, x: Value, order: int, scaled: bool) -> Value:
    near, far = _BESSEL[x.kind, order]
    a = e.abs(x)
    big = a > 8.0
    z = e.min(a, 8.0) * 0.5
    small = e.horner(z * z, near)
    if order == 1:
        small = small * z
    base = e.select(big, a, 8.0)
    large = e.horner(8.0 / base, far) / e.sqrt(base)
    if scaled:
        n, r = reduce_exp(e, -e.min(a, 8.0))
        result = e.select(big, large, exp_polynomial(e, r) * n.power * small)
    else:
        limit = {"f32": 150.0, "f64": 1300.0}[x.kind]  # past overflow
        n, r = reduce_exp(e, e.min(a, limit))
        result = e.select(big, e.ldexp(exp_polynomial(e, r) * large, n), small)
        result = e.select(a.eq(math.inf), math.nan, result)  # inf/inf in PyTorch
    return e.select(x < 0.0, -result, result) if order == 1 else result


def i0(e: Emitter, x: Value) -> Value:
    """Modified Bessel function of order 0. Error: f32 3.9 ulp, f64 4.2 ulp."""
    return _bessel(e, x, 0, scaled=False)


def i0e(e: Emitter, x: Value) -> Value:
    """e^-|x|·I0(x). Error: f32 3.5 ulp, f64 3.6 ulp."""
    return _bessel(e, x, 0, scaled=True)


def i1(e: Emitter, x: Value) -> Value:
    """Modified Bessel function of order 1. Error: f32 4.1 ulp, f64 3.3 ulp."""
    return _bessel(e, x, 1, scaled=False)


def i1e(e: Emitter, x: Value) -> Value:
    """e^-|x|·I1(x). Error: f32 3.5 ulp, f64 3.0 ulp."""
    return _bessel(e, x, 1, scaled=True)
