"""Vector math: error bounds, special values, all widths, several machines, exact conversions."""

from __future__ import annotations

import ctypes
import itertools
import math
import random
import re
from collections.abc import Callable
from functools import cache

import mpmath
import pytest
import torch
from torch import Tensor

from torch_helion.codegen.llvm import vector_math_emitter
from torch_helion.codegen.llvm.engine import (
    Machine,
    compile_object,
    emit_assembly,
    host_machine,
    load_object,
    machine_for,
)
from torch_helion.codegen.llvm.vector_math import FUNCTIONS, MathLibrary
from torch_helion.codegen.llvm.vector_math_emitter import ELEMENT, vector_type
from torch_helion.ir import philox

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
}
TORCH_NAMES = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sigmoid sinh cosh asinh acosh atanh asin "
    "acos atan erf erfc erfinv lgamma digamma i0 rsqrt sinc pow atan2 hypot nextafter"
)
REFERENCES: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in TORCH_NAMES.split()},
    "exp_fast": torch.exp,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
}
NAN, INF = math.nan, math.inf
SPECIALS = [
    0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 2.5, -2.5, 1e-40, -1e-40,
    1.17549435e-38, 3.4028234e38, -3.4028234e38, 1e30, -1e30, 88.0, 89.0, -88.0, -103.0, -104.0,
    1e-20, -1e-20, 16777216.0, 16777215.0, -16777217.0, 8.0, 10.0, -10.0, 1e6, -1e6, 0.1, -0.1,
    128.0, 127.0, -126.0, -149.0, -150.0,
]  # fmt: skip


# -- running a function over tensors -------------------------------------------------------------


def loop_text(name: str, dtype: str, width: int, machine: Machine) -> str:
    """A module whose @run(out, operands…, n) applies a function to n elements, width at a time."""
    library = MathLibrary(width, machine)
    kinds, result = FUNCTIONS[name].kinds(dtype)
    size = vector_math_emitter.BITS
    pointers = "".join(f", ptr %p{i}" for i in range(len(kinds)))
    lines = [f"define void @run(ptr %out{pointers}, i64 %n) {{", "entry:", "  br label %loop"]
    lines += ["loop:", "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]"]
    for i, kind in enumerate(kinds):
        lines.append(f"  %at{i} = getelementptr {ELEMENT.get(kind, kind)}, ptr %p{i}, i64 %i")
        vector = vector_type(kind, width)
        lines.append(f"  %a{i} = load {vector}, ptr %at{i}, align {size[kind] // 8}")
    lines.append(f"  %y = {library.call(name, dtype, [f'%a{i}' for i in range(len(kinds))])}")
    lines += [
        f"  %to = getelementptr {ELEMENT.get(result, result)}, ptr %out, i64 %i",
        f"  store {vector_type(result, width)} %y, ptr %to, align {size[result] // 8}",
        f"  %next = add i64 %i, {width}",
        "  %more = icmp slt i64 %next, %n",
        "  br i1 %more, label %loop, label %exit",
        "exit:",
        "  ret void",
        "}",
    ]
    return "\n".join([*lines, *library.definitions()])


@cache
def compiled(name: str, dtype: str, width: int, machine: Machine):
    loaded = load_object(compile_object(loop_text(name, dtype, width, machine), machine), ["run"])
    pointers = len(FUNCTIONS[name].operands) + 1
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, ctypes.c_int64)(loaded["run"])
    return function, loaded


def run(
    name: str,
    *operands: Tensor,
    dtype: str = "f32",
    width: int | None = None,
    machine: Machine | None = None,
) -> Tensor:
    machine = machine or host_machine()
    width = width or machine.vector_bits // vector_math_emitter.BITS[dtype]
    function, _ = compiled(name, dtype, width, machine)
    kinds, result = FUNCTIONS[name].kinds(dtype)
    n = operands[0].numel()
    padded = -(-n // width) * width
    inputs = []
    for kind, operand in zip(kinds, operands, strict=True):
        buffer = torch.ones(padded, dtype=DTYPES[kind])
        buffer[:n] = operand
        inputs.append(buffer)
    out = torch.empty(padded, dtype=DTYPES[result])
    function(out.data_ptr(), *(t.data_ptr() for t in inputs), padded)
    return out[:n]


def floats(count: int) -> Tensor:
    """f32 numbers of every sign and exponent, spread evenly over the bit patterns."""
    step = 2**32 // count | 1
    bits = torch.arange(0, 2**32, step) - 2**31
    return torch.cat([bits.to(torch.int32).view(torch.float32), torch.tensor(SPECIALS)])


def error_ulp(y: Tensor, reference: Tensor) -> Tensor:
    """Distance of f32 results from f64 references in units of the reference's last place."""
    exponent = torch.frexp(reference.abs().clamp(min=2.0**-126))[1] - 1
    ulp = torch.ldexp(torch.ones_like(reference), exponent - 23)
    error = (y.double() - reference).abs() / ulp
    rounded = reference.float()
    same = (y == rounded) | (y.isnan() & rounded.isnan())
    return torch.where(same & ~error.isfinite(), 0.0, error).nan_to_num(nan=INF, posinf=INF)


def stated_error(name: str, dtype: str) -> float:
    """The bound that a function's docstring states."""
    text = FUNCTIONS[name].formula.__doc__ or ""
    found = re.search(r"Error: f32 ([\d.]+) ulp, f64 ([\d.]+) ulp", text)
    assert found, f"{name} states no error"
    return float(found[1 if dtype == "f32" else 2])


def slack(machine: Machine) -> float:
    """What a function may err more where a·b + c is rounded twice."""
    return 0.0 if machine.has_fma else 1.5


def equal(a: Tensor, b: Tensor) -> bool:
    """The same values and signs of zero; any NaN is like another."""
    same = (a == b) & (torch.signbit(a) == torch.signbit(b)) | (a.isnan() & b.isnan())
    return bool(same.all())


def runnable(*names: str) -> list[Machine]:
    """The host, and those named machines whose instructions the host has."""
    host = host_machine()
    found = [host]
    for name in names:
        machine = machine_for(name)
        wanted = [feature[1:] for feature in machine.features.split(",") if feature]
        if machine.triple == host.triple and all(host.has(feature) for feature in wanted):
            found.append(machine)
    return found


MACHINES = runnable("x86-64-v3", "x86-64")
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)

# -- errors --------------------------------------------------------------------------------------

BOUNDED = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sigmoid sinh cosh asinh acosh atanh asin "
    "acos atan erf erfc erfinv i0 i0e i1 i1e rsqrt"
)


@cache
def error_points() -> Tensor:
    x = floats(150_000)
    return torch.cat([x, torch.linspace(-10, 10, 60_000), torch.linspace(0, 2, 40_000)])


@cache
def exact_values(name: str) -> Tensor:
    return REFERENCES[name](error_points().double())


@each_machine
@pytest.mark.parametrize("name", BOUNDED.split())
def test_f32_error(name: str, machine: Machine):
    """At every point on the host; the other machines compute the same formula: every fifth one."""
    check_f32_error(name, machine, 1 if machine == host_machine() else 5)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES[1:], ids=lambda m: m.name)
@pytest.mark.parametrize("name", BOUNDED.split())
def test_f32_error_at_every_point(name: str, machine: Machine):
    check_f32_error(name, machine, 1)


def check_f32_error(name: str, machine: Machine, step: int) -> None:
    x, reference = error_points()[::step], exact_values(name)[::step]
    error = error_ulp(run(name, x, machine=machine), reference)
    if name == "sigmoid":  # 1/(1 + inf) below -88.7, as PyTorch's own
        error = error[reference.abs() >= 2.0**-126]
    if name in ("i0", "i1"):  # PyTorch has inf/inf = NaN at inf and where its f64 overflows
        error = error[(x.abs() < 100) | x.isnan()]
    assert error.max() <= stated_error(name, "f32") + slack(machine)


@each_machine
def test_f32_error_of_two_operands(machine: Machine):
    x = torch.exp(torch.randn(100_000) * 2)
    y = torch.randn(100_000) * 20
    near_one = 1 + (torch.rand(100_000) - 0.5) * 0.01
    for a, b in ((x, y), (near_one, y * 100)):
        reference = torch.pow(a.double(), b.double())
        normal = (reference > 2.0**-126) & (reference < 3e38)
        error = error_ulp(run("pow", a, b, machine=machine), reference)[normal]
        assert error.max() <= stated_error("pow", "f32")
    a = torch.randn(100_000) * torch.exp(torch.randn(100_000) * 3)
    for name in ("atan2", "hypot"):
        reference = REFERENCES[name](a.double(), y.double())
        bound = stated_error(name, "f32") + slack(machine)
        assert error_ulp(run(name, a, y, machine=machine), reference).max() <= bound


def test_gamma_functions_against_f64():
    x = torch.cat([torch.linspace(-50, 50, 100_001), torch.logspace(-30, 30, 20_000)])
    for name in ("lgamma", "digamma"):
        reference = REFERENCES[name](x.double())
        y = run(name, x).double()
        error = (y - reference).abs() / reference.abs().clamp(min=1.0)
        finite = reference.float().isfinite()
        assert error[finite].max() < 3e-6
        assert equal(y[~finite].float(), reference[~finite].float())


def test_exp_fast():
    x = torch.linspace(-86, 88, 100_000)
    reference = torch.exp(x.double())
    assert ((run("exp_fast", x) - reference).abs() / reference).max() < 1e-6
    assert run("exp_fast", torch.tensor([0.0, INF, -INF, NAN])).tolist()[:3] == [1.0, INF, 0.0]


def test_no_cosine_exceeds_one():
    x = torch.cat(
        [floats(100_000), torch.linspace(0, 1e-2, 50_000), torch.logspace(-14, -6, 50_000)]
    )
    for name in ("sin", "cos"):
        for dtype in ("f32", "f64"):
            y = run(name, x, dtype=dtype)
            assert y.nan_to_num().abs().max() <= 1.0
            assert run("cos", torch.zeros(1), dtype=dtype).item() == 1.0


def logarithmic(low: float, high: float, count: int = 250) -> list[float]:
    source = random.Random(7)
    span = (math.log10(low), math.log10(high))
    return [10 ** source.uniform(*span) * source.choice((-1, 1)) for _ in range(count)]


def uniform(low: float, high: float, count: int = 250) -> list[float]:
    source = random.Random(8)
    return [source.uniform(low, high) for _ in range(count)]


PRECISE: dict[str, tuple[Callable, list[float]]] = {
    "exp": (mpmath.exp, logarithmic(1e-5, 700)),
    "exp2": (lambda x: mpmath.mpf(2) ** x, logarithmic(1e-5, 1000)),
    "expm1": (mpmath.expm1, logarithmic(1e-8, 700)),
    "log": (mpmath.log, uniform(0.3, 1.7) + [abs(x) for x in logarithmic(1e-300, 1e300)]),
    "log2": (lambda x: mpmath.log(x, 2), uniform(0.3, 1.7)),
    "log10": (mpmath.log10, uniform(0.3, 1.7)),
    "log1p": (mpmath.log1p, uniform(-1, 2) + [abs(x) for x in logarithmic(1e-10, 1e20)]),
    "sin": (mpmath.sin, logarithmic(1e-8, 1e10)),
    "cos": (mpmath.cos, logarithmic(1e-8, 1e10)),
    "tan": (mpmath.tan, logarithmic(1e-8, 1e10)),
    "tanh": (mpmath.tanh, logarithmic(1e-8, 25)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), logarithmic(1e-3, 600)),
    "sinh": (mpmath.sinh, logarithmic(1e-6, 700)),
    "cosh": (mpmath.cosh, logarithmic(1e-6, 700)),
    "asinh": (mpmath.asinh, logarithmic(1e-8, 1e30)),
    "acosh": (mpmath.acosh, [1 + abs(x) for x in logarithmic(1e-8, 1e30)]),
    "atanh": (mpmath.atanh, uniform(-1, 1)),
    "asin": (mpmath.asin, uniform(-1, 1)),
    "acos": (mpmath.acos, uniform(-1, 1)),
    "atan": (mpmath.atan, logarithmic(1e-8, 1e8)),
    "erf": (mpmath.erf, logarithmic(1e-5, 7)),
    "erfc": (mpmath.erfc, logarithmic(1e-5, 26)),
    "erfinv": (
        mpmath.erfinv,
        uniform(-1, 1, 100) + [1 - abs(x) for x in logarithmic(1e-14, 0.1, 50)],
    ),
    "i0": (lambda x: mpmath.besseli(0, x), logarithmic(1e-3, 650, 100)),
    "i0e": (lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x)), logarithmic(1e-3, 900, 100)),
    "i1": (lambda x: mpmath.besseli(1, x), logarithmic(1e-3, 650, 100)),
    "i1e": (lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x)), logarithmic(1e-3, 900, 100)),
}  # fmt: skip


def error_ulp_f64(got: float, exact: mpmath.mpf) -> float:
    nearest = float(exact)
    if nearest == 0 or math.isinf(nearest):
        return 0.0 if got == nearest else INF
    return float(abs(mpmath.mpf(got) - exact) / mpmath.mpf(2) ** (math.frexp(nearest)[1] - 53))


@pytest.mark.parametrize("name", PRECISE)
def test_f64_error(name: str):
    exact, points = PRECISE[name]
    y = run(name, torch.tensor(points, dtype=torch.float64), dtype="f64").tolist()
    with mpmath.workdps(40):
        errors = [error_ulp_f64(a, exact(mpmath.mpf(x))) for a, x in zip(y, points, strict=True)]
    assert max(errors) <= stated_error(name, "f64")


@each_machine
def test_f64_power(machine: Machine):
    source = random.Random(5)
    x = [abs(v) for v in logarithmic(1e-3, 1e3)] + uniform(0.5, 1.5)
    y = [source.uniform(-700, 700) / max(0.01, abs(math.log(v))) for v in x]
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (x, y)]
    got = run("pow", *tensors, dtype="f64", machine=machine).tolist()
    with mpmath.workdps(40):
        errors = [
            error_ulp_f64(g, mpmath.mpf(a) ** mpmath.mpf(b))
            for g, a, b in zip(got, x, y, strict=True)
            if 1e-300 < g < 1e300
        ]
    assert len(errors) > 400 and max(errors) <= stated_error("pow", "f64") + slack(machine)


# -- special values ------------------------------------------------------------------------------

UNARY = [name for name in REFERENCES if FUNCTIONS[name].operands == ("T",)]


def assert_close_and_signed(name: str, y: Tensor, reference: Tensor, *operands: Tensor) -> None:
    close = (y == reference) | (y.isnan() & reference.isnan())
    close |= (y - reference).abs() <= 1e-5 * reference.abs()
    signed = (y != 0) | (reference != 0) | (torch.signbit(y) == torch.signbit(reference))
    for i in (~(close & signed)).nonzero().flatten().tolist():
        points = [operand[i].item() for operand in operands]
        pytest.fail(f"{name}{points} = {y[i].item()}, PyTorch has {reference[i].item()}")


@each_machine
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_special_values_of_one_operand(dtype: str, machine: Machine):
    x = torch.tensor(SPECIALS, dtype=DTYPES[dtype])
    for name in UNARY:
        y = run(name, x, dtype=dtype, machine=machine)
        assert_close_and_signed(name, y, REFERENCES[name](x), x)


@each_machine
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_special_values_of_two_operands(dtype: str, machine: Machine):
    pairs = torch.tensor(list(itertools.product(SPECIALS, SPECIALS)), dtype=DTYPES[dtype])
    x, y = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    for name in ("pow", "atan2", "hypot", "nextafter"):
        got = run(name, x, y, dtype=dtype, machine=machine)
        assert_close_and_signed(name, got, REFERENCES[name](x, y), x, y)


@each_machine
@pytest.mark.parametrize("width", [1, 4, 16])
def test_large_arguments_of_sine(width: int, machine: Machine):
    x = torch.tensor([1e5, 100001.0, 3e5, 1e10, 3.4e38, -1e20, 0.5, INF, NAN, 2.0] * 8)
    for name in ("sin", "cos", "tan"):
        y = run(name, x, width=width, machine=machine)
        assert error_ulp(y, REFERENCES[name](x.double())).max() <= 2.6
        wide = run(name, x, dtype="f64", width=width, machine=machine)
        assert torch.allclose(wide, REFERENCES[name](x.double()), rtol=1e-14, equal_nan=True)


def test_results_that_are_subnormal_are_rounded_once():
    x = torch.linspace(-104, -86, 100_000)
    assert error_ulp(run("exp", x), torch.exp(x.double())).max() < 0.9
    x = torch.linspace(-151, -125, 100_000)
    assert error_ulp(run("exp2", x), torch.exp2(x.double())).max() < 0.9


# -- remainders ----------------------------------------------------------------------------------


def c_fmod(x: float, y: float) -> float:
    if math.isnan(x) or math.isnan(y) or math.isinf(x) or y == 0:
        return NAN
    return math.fmod(x, y)


@each_machine
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_remainders_are_exact(dtype: str, machine: Machine):
    count = 20_000
    x = torch.randn(count) * 10.0 ** torch.randint(-20, 31, (count,))
    y = torch.randn(count) * 10.0 ** torch.randint(-12, 31, (count,))
    whole = torch.randint(-50, 50, (2, 2000)).float()
    special = torch.tensor(list(itertools.product(SPECIALS, SPECIALS)))
    x = torch.cat([x, torch.tensor([1e30]), whole[0], special[:, 0]]).to(DTYPES[dtype])
    y = torch.cat([y, torch.tensor([3e-12]), whole[1], special[:, 1]]).to(DTYPES[dtype])
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    expected = torch.tensor([c_fmod(a, b) for a, b in pairs], dtype=DTYPES[dtype])
    assert equal(run("fmod", x, y, dtype=dtype, machine=machine), expected)
    moved = (expected != 0) & ((expected < 0) != (y < 0)) & ~expected.isnan()
    expected = torch.where(moved, expected + y, expected)
    assert equal(run("remainder", x, y, dtype=dtype, machine=machine), expected)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_floor_division_as_pytorch(dtype: str):
    numbers = [*SPECIALS, *torch.linspace(-9, 9, 37).tolist()]
    pairs = torch.tensor(list(itertools.product(numbers, numbers)), dtype=DTYPES[dtype])
    x, y = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    # PyTorch's own vector code makes NaN of quotients that overflow in between: leave those out.
    sane = ((x / y).abs() < 1e6) | (y == 0) | ~x.isfinite() | ~y.isfinite()
    x, y = x[sane], y[sane]
    assert equal(run("floordiv", x, y, dtype=dtype), torch.div(x, y, rounding_mode="floor"))


@each_machine
@pytest.mark.parametrize("width", [1, 16])
def test_short_functions_are_good_to_13_bits(width: int, machine: Machine):
    halves = patterns(torch.bfloat16).view(torch.bfloat16).float()
    x = torch.cat([halves, torch.linspace(-6, 6, 100_001)])
    for name, exact, low in (
        ("one_plus_erf_short", lambda x: torch.special.erfc(-x), -4.0),
        ("sigmoid_short", torch.sigmoid, -86.0),
    ):
        got, wanted = run(name, x, width=width, machine=machine).double(), exact(x.double())
        inside = x > low
        assert ((got - wanted).abs() <= 2.0**-13 * wanted)[inside].all()
        assert (got[x < low] <= 1e-37).all() and (got[x < low] >= 0).all()
        assert torch.equal(got.isnan(), x.isnan())


# -- conversions ---------------------------------------------------------------------------------

FORMATS = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def patterns(dtype: torch.dtype) -> Tensor:
    integers = torch.int8 if dtype.itemsize == 1 else torch.int16
    return torch.arange(2 ** (8 * dtype.itemsize)).to(integers)


@cache
def rounding_points(dtype: torch.dtype) -> Tensor:
    """All numbers of a format, all midpoints between them, and the f32 on either side of each."""
    numbers = patterns(dtype).view(dtype).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middles = ((numbers[1:].double() + numbers[:-1].double()) / 2).float()
    points = torch.cat([numbers, middles])
    up, down = torch.full_like(points, INF), torch.full_like(points, -INF)
    return torch.cat([points, torch.nextafter(points, up), torch.nextafter(points, down)])


@each_machine
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("name", FORMATS)
def test_conversions_are_those_of_pytorch(name: str, width: int, machine: Machine):
    dtype = FORMATS[name]
    x, wanted = converted_points(dtype)
    got = run(f"f32_to_{name}", x, width=width, machine=machine).view(dtype)
    assert equal(got.float(), wanted)
    back = run(f"{name}_to_f32", patterns(dtype), width=width, machine=machine)
    assert equal(back, patterns(dtype).view(dtype).float())
    if dtype.itemsize == 2:
        rounded = run(f"round_to_{name}", x, width=width, machine=machine)
        assert equal(rounded, wanted)


@cache
def converted_points(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers, and what PyTorch makes of them."""
    x = torch.cat([floats(50_000), rounding_points(dtype), torch.tensor([NAN, -NAN])])
    return x, x.to(dtype).float()


@each_machine
@pytest.mark.parametrize("width", [1, 16])
def test_bf16_nan_is_quiet(width: int, machine: Machine):
    bits = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    got = run("f32_to_bf16", bits.view(torch.float32), width=width, machine=machine)
    assert {v & 0x7FC0 for v in got.tolist()} == {0x7FC0}
    rounded = run("round_to_bf16", bits.view(torch.float32), width=width, machine=machine)
    assert rounded.isnan().all()


@each_machine
@pytest.mark.parametrize("width", [1, 16])
def test_bf16_of_numbers_whose_nans_are_plain(width: int, machine: Machine):
    x, wanted = converted_points(torch.bfloat16)
    every = patterns(torch.bfloat16).view(torch.bfloat16).float()
    number = ~x.isnan()
    x, wanted = torch.cat([x[number], every]), torch.cat([wanted[number], every])
    got = run("f32_to_bf16_plain", x, width=width, machine=machine).view(torch.bfloat16)
    assert equal(got.float(), wanted)


def test_half_needs_no_library():
    for name in ("haswell", "x86-64", "aarch64"):
        machine = machine_for(name)
        for function in ("f32_to_f16", "f16_to_f32"):
            text = emit_assembly(loop_text(function, "f32", 8, machine), machine)
            assert "hf2" not in text and "sf2" not in text  # __truncsfhf2, __extendhfsf2


# -- random numbers ------------------------------------------------------------------------------


@each_machine
@pytest.mark.parametrize("width", [1, 4, 16])
def test_random_numbers_are_those_of_the_reference(width: int, machine: Machine):
    index = torch.cat([torch.arange(3000), torch.randint(-(2**63), 2**63 - 1, (1000,))])
    for seed in (0, 123456789012345, -5):
        seeds = torch.full_like(index, seed)
        uniform_numbers = run("rand", seeds, index, width=width, machine=machine)
        assert torch.equal(uniform_numbers, philox.uniform(seed, index))
        normal_numbers = run("randn", seeds, index, width=width, machine=machine)
        assert (normal_numbers - philox.normal(seed, index)).abs().max() < 2e-6
        for low, high in ((0, 10), (-5, 7), (-(2**62), 2**62), (-(2**63), 2**63 - 1), (3, 4)):
            bounds = torch.full_like(index, low), torch.full_like(index, high)
            got = run("randint", seeds, index, *bounds, width=width, machine=machine)
            assert torch.equal(got, philox.randint(seed, index, low, high))


# -- widths, machines, the library ---------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_width_gives_the_same_bits(name: str):
    kinds, result = FUNCTIONS[name].kinds("f32")
    if kinds[0] == "i64":
        operands = [torch.arange(37) * (2**33 + 5) + 1000 * i for i in range(len(kinds))]
    elif kinds[0] in ("i8", "i16"):
        operands = [torch.arange(37).to(DTYPES[kinds[0]])]
    else:
        x = torch.cat([torch.randn(40) * 3, torch.tensor(SPECIALS), torch.rand(40)])
        operands = [x, x.flip(0).contiguous()][: len(kinds)]
    expected = run(name, *operands, width=4)
    for width in (1, 2, 8, 16, 32):
        got = run(name, *operands, width=width)
        assert equal(got, expected) if result == "f32" else torch.equal(got, expected)


ALLOWED_CALLS = {"sin", "cos", "tan", "fmod", "lgamma", "run"}


@pytest.mark.parametrize("target", ["haswell", "x86-64-v4", "sapphirerapids", "aarch64"])
def test_no_call_but_to_named_functions(target: str):
    machine = machine_for(target)
    for dtype, width in (("f32", machine.vector_bits // 32), ("f64", machine.vector_bits // 64)):
        library = MathLibrary(width, machine)
        for function in FUNCTIONS.values():
            if dtype == "f32" or "T" in function.operands:
                library.use(function.name, dtype)
        text = "\n".join(library.definitions()).replace("define internal", "define")
        text = text.replace("alwaysinline", "")  # keep each as a function of its own
        assembly = emit_assembly(text, machine)
        called = set(re.findall(r"\b(?:callq?|bl|b)\s+([A-Za-z_]\w*)", assembly))
        strangers = {name for name in called if not name.startswith("th_")} - ALLOWED_CALLS
        assert strangers == set()


def test_avx512_scales_by_one_instruction():
    machine = machine_for("sapphirerapids")
    assert "vscalefps" in emit_assembly(loop_text("exp", "f32", 16, machine), machine)
    assert "zmm" in emit_assembly(loop_text("tanh", "f32", 16, machine), machine)
    haswell = machine_for("haswell")
    assert "vscalef" not in emit_assembly(loop_text("exp", "f32", 8, haswell), haswell)


def test_library_prints_what_was_used_once_and_in_order():
    def filled(names: list[str]) -> MathLibrary:
        library = MathLibrary(16, host_machine())
        for name in names:
            library.use(name, "f32")
        return library

    names = ["sin", "exp", "fmod", "cos", "exp"]
    text = filled(names).definitions()
    assert text == filled(names[::-1]).definitions()
    joined = "\n".join(text)
    assert joined.count("define internal <16 x float> @th_exp_f32_v16(") == 1
    assert joined.count("declare double @sin(double)") == 1
    assert "fast" not in re.sub("%fast", "", joined) and "contract" not in joined


def test_library_serves_several_widths_in_one_module():
    library = MathLibrary(8, host_machine())
    assert library.use("exp", "f32") == "@th_exp_f32_v8"
    assert library.use("exp", "f64", 4) == "@th_exp_f64_v4"
    assert library.call("sin", "f32", ["%x"], 1) == "call float @th_sin_f32_v1(float %x)"
    compile_object("\n".join(library.definitions()), host_machine())


def test_library_can_leave_functions_out_of_line():
    text = "\n".join(_use_exp(MathLibrary(8, host_machine(), inline=False)))
    assert "noinline" in text and "alwaysinline" not in text


def _use_exp(library: MathLibrary) -> list[str]:
    library.use("exp", "f32")
    return library.definitions()


def test_library_refuses_what_it_cannot_do():
    library = MathLibrary(8, host_machine())
    with pytest.raises(KeyError, match="no_such"):
        library.use("no_such", "f32")
    with pytest.raises(ValueError, match="width 12"):
        library.use("exp", "f32", 12)
    with pytest.raises(ValueError, match="f32 only"):
        library.use("f32_to_bf16", "f64")


def test_constants():
    assert vector_math_emitter.constant(0.1, "f32", 1) == "0x3FB99999A0000000"
    assert vector_math_emitter.constant(-INF, "f64", 2) == "splat (double 0xFFF0000000000000)"
    assert vector_math_emitter.constant(0xFFFF0000, "i32", 4) == "splat (i32 -65536)"
    assert vector_math_emitter.constant(1, "i1", 1) == "true"
