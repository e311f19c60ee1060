"""Products of tiles: every form, layout and dtype over ragged sizes, on page-guarded operands."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch

from test.guarded import guarded
from torch_helion.codegen.llvm import dot_module, engine
from torch_helion.codegen.llvm.dot import DotLibrary, DotSpec, default_blocks, scratch_bytes
from torch_helion.codegen.llvm.dot_module import Product
from torch_helion.codegen.llvm.dot_plan import plan

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
I8, U8, I32 = torch.int8, torch.uint8, torch.int32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
UNITS = list(itertools.product(("k", "m", ""), ("n", "k", "")))


def later(*values: Any) -> list[Any]:
    """More values of a parameter, for slow sweeps."""
    return [pytest.param(v, marks=pytest.mark.slow) for v in values]


@functools.cache
def kernel(product: Product, machine: engine.Machine | None = None) -> Any:
    return dot_module.load(product, machine)


def strided(x: torch.Tensor, unit: int | None, side: str) -> torch.Tensor:
    """A page-guarded copy whose stride is one along `unit` (None: along neither dimension)."""
    if unit is None:
        wide = torch.empty(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype)
        wide = guarded(wide[..., : max(0, x.shape[-1] * 2 - 1)], side)
        return wide[..., ::2].copy_(x) if x.numel() else x
    if unit == x.dim() - 1:
        return guarded(x.contiguous(), side)
    return guarded(x.transpose(-1, -2).contiguous(), side).transpose(-1, -2)


def operands(
    product: Product, a: torch.Tensor, b: torch.Tensor, side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    unit_a = {"m": 0, "k": 1}.get(product.a_unit)
    unit_b = {"k": 0, "n": 1}.get(product.b_unit)
    return strided(a, unit_a, side), strided(b, unit_b, side)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def wanted(a: torch.Tensor, b: torch.Tensor, acc: torch.dtype) -> torch.Tensor:
    if acc is I32:
        return (a.to(torch.int64) @ b.to(torch.int64)).to(I32)
    return a.to(F64) @ b.to(F64)


def check(product: Product, m: int, n: int, k: int, side: str = "end", seed: int = 0) -> None:
    a, b = numbers((m, k), product.a, seed), numbers((k, n), product.b, seed + 1)
    if product.a.itemsize == 1 and product.a.is_floating_point:
        a, b = a.to(F32).clamp(-4, 4).to(product.a), b.to(F32).clamp(-4, 4).to(product.b)
    result = guarded(torch.empty((m, n), dtype=product.out), side)
    dot_module.run(kernel(product), *operands(product, a, b, side), result)
    want = wanted(a, b, product.acc)
    if product.acc is I32:
        assert torch.equal(result, want)
        return
    scale = a.to(F64).abs() @ b.to(F64).abs() + 1e-30
    worst = ((result.to(F64) - want).abs() / scale).max().item() if result.numel() else 0.0
    limit = {F32: 3e-7, F64: 1e-15, BF16: 5e-3, F16: 6e-4}[product.out]
    assert worst <= limit, f"{product} at {m, n, k}: {worst:.1e}"


RAGGED = [(1, 1, 1), (3, 17, 5), (7, 47, 31), (8, 48, 32), (9, 49, 33), (13, 97, 64), (16, 61, 37)]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(
    "dtypes",
    [(F32, F32, F32, F32), (F64, F64, F64, F64), (BF16, BF16, F32, BF16), (I8, I8, I32, I32)],
    ids=lambda d: str(d[0]),
)
def test_panels(dtypes: tuple[torch.dtype, ...], units: tuple[str, str]) -> None:
    product = Product(*dtypes, (64, 64, 16), *units)
    for number, sizes in enumerate([*RAGGED, (65, 130, 33)]):
        check(product, *sizes, side=("end", "start")[number % 2], seed=number)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("dtypes", [(F32, F32, F32, F32), (BF16, BF16, F32, F32)])
@pytest.mark.parametrize("rows", [1, 3, 16, *later(2, 6)])
def test_few_rows(dtypes: tuple[torch.dtype, ...], units: tuple[str, str], rows: int) -> None:
    product = Product(*dtypes, (rows, 48, 128), *units)
    for number, (m, n, k) in enumerate(
        [(rows, 48, 128), (rows, 33, 70), (max(1, rows - 1), 50, 131)]
    ):
        check(product, m, n, k, side=("end", "start")[number % 2], seed=number)
    check(product, rows + 1, 5, 3)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("units", [("k", "n"), ("k", "k"), ("m", "n"), ("", "")])
@pytest.mark.parametrize("a", [F16, E4M3, E5M2, U8])
def test_dtypes_that_packing_converts(a: torch.dtype, units: tuple[str, str], rows: int) -> None:
    b, acc = (I8, I32) if a is U8 else (a, F32)
    product = Product(a, b, acc, acc, (rows, 64, 64), *units)
    check(product, rows, 50, 67)
    check(product, rows, 64, 64, side="start")


@pytest.mark.parametrize("units", [("k", "n"), ("k", "k")])
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F16, BF16), (F32, E4M3), (F32, I8), (BF16, U8)])
def test_mixed_dtypes(
    dtypes: tuple[torch.dtype, torch.dtype], rows: int, units: tuple[str, str]
) -> None:
    check(Product(*dtypes, F32, F32, (rows, 32, 32), *units), rows + 1, 40, 37)


@pytest.mark.parametrize("columns", [1, 4, 8])
def test_few_columns(columns: int) -> None:
    product = Product(F32, F32, F32, F32, (64, columns, 512), "k", "k")
    check(product, 65, columns, 300)
    check(product, 7, columns + 1, 520)


@pytest.mark.parametrize("dtypes", list(itertools.product((I8, U8), repeat=2)))
@pytest.mark.parametrize("rows", [1, 16, 32])
def test_integers_are_exact_at_their_extremes(
    dtypes: tuple[torch.dtype, torch.dtype], rows: int
) -> None:
    product = Product(*dtypes, I32, I32, (rows, 32, 256), "k", "k")
    lowest = [torch.iinfo(d).min for d in dtypes]
    highest = [torch.iinfo(d).max for d in dtypes]
    for x, y in ((lowest[0], lowest[1]), (highest[0], lowest[1]), (lowest[0], highest[1])):
        a = torch.full((rows, 259), x, dtype=dtypes[0])
        b = torch.full((259, 33), y, dtype=dtypes[1])
        result = torch.empty((rows, 33), dtype=I32)
        dot_module.run(kernel(product), *operands(product, a, b, "end"), result)
        assert torch.equal(result, wanted(a, b, I32))


FORMS = [
    Product(F32, F32, F32, F32, (64, 64, 64), "k", "n"),
    Product(F32, F32, F32, F32, (64, 64, 64), "m", "k"),
    Product(F32, F32, F32, F32, (8, 64, 64), "k", "n"),
    Product(F32, F32, F32, F32, (8, 64, 64), "k", "k"),
    Product(F32, F32, F32, F32, (1, 64, 64), "k", "n"),
    Product(BF16, BF16, F32, F32, (64, 64, 64), "k", "n"),
    Product(BF16, BF16, F32, F32, (8, 64, 64), "k", "k"),
]


@pytest.mark.parametrize("product", FORMS, ids=str)
def test_nan_and_inf_reach_their_row_and_column_only(product: Product) -> None:
    a, b = numbers((9, 71), product.a, 1), numbers((71, 53), product.b, 2)
    a[2, 70], a[4, 3] = math.nan, math.inf
    b[70, 52], b[0, 16] = math.inf, math.nan
    result = torch.empty(9, 53)
    dot_module.run(kernel(product), *operands(product, a, b, "end"), result)
    want = a.to(F64) @ b.to(F64)
    torch.testing.assert_close(result.to(F64), want, equal_nan=True, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("product", FORMS, ids=str)
def test_empty_extents(product: Product) -> None:
    for m, n, k in ((0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)):
        result = torch.full((m, n), math.nan)
        a, b = torch.empty(m, k, dtype=product.a), torch.empty(k, n, dtype=product.b)
        dot_module.run(kernel(product), a, b, result)
        assert (result == 0).all()


@pytest.mark.parametrize("product", [p for p in FORMS if p.a is F32], ids=str)
def test_denormals_are_kept(product: Product) -> None:
    a, b = torch.full((9, 3), 2.0**-70), torch.full((3, 17), 2.0**-70)
    a[1], b[:, 4] = 2.0**-140, 1.0
    result = torch.empty(9, 17)
    dot_module.run(kernel(product), *operands(product, a, b, "end"), result)
    assert torch.equal(result, (a.to(F64) @ b.to(F64)).to(F32))
    assert (result[0, 0] == 3 * 2.0**-140) and (result[1, 4] == 3 * 2.0**-140)


@pytest.mark.parametrize("sizes", [(70, 600, 1100), (150, 530, 513), (300, 40, 2000)])
@pytest.mark.parametrize("units", [("k", "n"), ("k", "k"), ("m", "n")])
@pytest.mark.parametrize(
    "dtypes", [(F32, F32, F32, F32), (I8, I8, I32, I32)], ids=lambda d: str(d[0])
)
def test_blocks_for_the_caches(
    dtypes: tuple[torch.dtype, ...], units: tuple[str, str], sizes: tuple[int, int, int]
) -> None:
    """A tile larger than the product's own blocks of k, n and m."""
    check(Product(*dtypes, (512, 1024, 4096), *units), *sizes)


@pytest.mark.parametrize("units", [("k", "n"), ("k", "k"), ("m", "n")])
@pytest.mark.parametrize("rows", [1, 8, 256])
def test_parts_are_finished_once(units: tuple[str, str], rows: int) -> None:
    """C in scratch, one row tile high where that is enough, converted part by part."""
    product = Product(BF16, BF16, F32, BF16, (rows, 1024, 512), *units, strip=True)
    for m, n, k in ((rows, 60, 130), (rows + 3, 1030, 511), (2, 70, 512)):
        check(product, m, n, k)
    loops = Product(BF16, BF16, F32, BF16, (rows, 1024, 128), *units)
    check(loops, rows + 1, 1100, 300)


@pytest.mark.parametrize("units", [("k", "n"), ("k", "k"), ("m", "n")])
@pytest.mark.parametrize("rows", [2, 64])
def test_batches(units: tuple[str, str], rows: int) -> None:
    product = Product(F32, F32, F32, F32, (rows, 32, 32), *units)
    a, b = numbers((3, rows, 40), F32, 1), numbers((3, 40, 45), F32, 2)
    if units[0] == "m":
        a = a.transpose(1, 2).contiguous().transpose(1, 2)
    if units[1] == "k":
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    result = torch.empty(3, rows, 45)
    dot_module.run(kernel(product), a, b, result)
    torch.testing.assert_close(result, a @ b, rtol=1e-4, atol=1e-5)


NARROW = ["x86-64-v3", "x86-64", "icelake-server"]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("rows", [1, 16, *later(3, 64)])
@pytest.mark.parametrize("units", [("k", "n"), ("k", "k"), ("m", "n")])
def test_other_x86_machines(name: str, rows: int, units: tuple[str, str]) -> None:
    """Code for narrower vectors and older instructions computes the same (run on this host)."""
    machine = engine.machine_for(name)
    host = engine.host_machine()
    if not host.is_x86 or host.vector_bits < machine.vector_bits:
        pytest.skip("needs the instructions of " + name)
    for dtypes in ((F32, F32, F32, F32), (BF16, BF16, F32, F32), (I8, I8, I32, I32)):
        product = Product(*dtypes, (rows, 64, 128), *units)
        a, b = numbers((rows, 137), product.a, 3), numbers((137, 75), product.b, 4)
        result = guarded(torch.empty((rows, 75), dtype=product.out), "end")
        run = dot_module.load(product, machine)
        dot_module.run(run, *operands(product, a, b, "end"), result)
        want = wanted(a, b, product.acc)
        torch.testing.assert_close(result, want.to(product.out), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["aarch64", "neoverse-v1"])
def test_arm_code_is_made(name: str) -> None:
    machine = engine.machine_for(name)
    for dtypes in ((F32, F32, F32, F32), (BF16, BF16, F32, F32), (I8, I8, I32, I32)):
        for rows in (1, 8, 64):
            product = Product(*dtypes, (rows, 64, 128), "k", "k")
            assembly = engine.emit_assembly(dot_module.module_text(product, machine), machine)
            assert "fmla" in assembly or dtypes[2] is I32


def test_forms() -> None:
    machine = engine.machine_for("znver4")

    def form(dtype: torch.dtype, m: int, a_unit: str, b_unit: str) -> tuple[str, str]:
        acc = I32 if dtype is I8 else F32
        chosen = plan(DotSpec(dtype, dtype, acc, m, 256, 1024, a_unit, b_unit), machine)
        return chosen.form, chosen.how.kind

    assert form(F32, 256, "k", "n") == ("panels", "fma")
    assert form(BF16, 256, "k", "k") == ("panels", "bf16")
    assert form(I8, 256, "k", "n") == ("panels", "vnni")
    assert form(F32, 16, "k", "k") == ("inner", "fma")
    assert form(F32, 16, "k", "n") == ("direct", "fma")
    assert form(BF16, 1, "k", "n") == ("rows", "fma")
    assert form(BF16, 1, "k", "k") == ("inner", "bf16")


def test_tiles_of_many_sizes_share_a_function() -> None:
    dots = DotLibrary(engine.machine_for("znver4"))
    for units in UNITS:
        many = {
            dots.use(DotSpec(F32, F32, F32, m, n, k, *units))
            for m, n, k in ((64, 64, 1024), (512, 256, 1 << 20), (1000, 512, 4096))
        }
        assert len(many) == 1
    few = {dots.use(DotSpec(F32, F32, F32, m, 256, 4096, "k", "k")) for m in (9, 16, 25, 32)}
    assert len(few) == 1
    sizes = ((64, 100, 1024), (20, 256, 1024), (64, 256, 300))
    assert len({dots.use(DotSpec(F32, F32, F32, *s, "m", "n")) for s in sizes}) == 3


def test_scratch_is_bounded() -> None:
    machine = engine.machine_for("znver4")
    for units in UNITS:
        spec = DotSpec(F32, F32, F32, 4096, 4096, 65536, *units)
        assert scratch_bytes(spec, machine) < 1 << 20
    assert scratch_bytes(DotSpec(F32, F32, F32, 1, 4096, 4096), machine) <= 64 << 10


def test_default_blocks() -> None:
    machine = engine.machine_for("znver4")
    for m, n, k in itertools.product(
        (1, 16, 64, 500, 2048), (1, 64, 768, 4096), (1, 64, 1024, 9000)
    ):
        for dtype in (F32, BF16):
            blocks = default_blocks(m, n, k, dtype, machine)
            assert all(b & (b - 1) == 0 for b in blocks)
            assert all(b < 2 * size or b == 1 for b, size in zip(blocks, (m, n, k), strict=True))


def test_units_are_read_from_strides() -> None:
    spec = DotSpec.of(F32, F32, F32, (4, 5, 6), ("%row", "1"), ("1", "%column"))
    assert (spec.a_unit, spec.b_unit) == ("k", "k")
    spec = DotSpec.of(F32, F32, F32, (4, 5, 6), ("1", "%k"), ("%k", "%n"))
    assert (spec.a_unit, spec.b_unit) == ("m", "")
