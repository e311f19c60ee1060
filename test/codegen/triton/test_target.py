"""The triton target's record, its refusals, sizes as text, reductions in chunks."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import random

import pytest
import sympy
import torch

import torch_helion
from test.codegen.llvm import kernels
from test.codegen.llvm.tile_programs import buffer
from test.ir import random_kernels, random_programs
from test.ir.random_kernels import copy_of
from torch_helion import compiler, exc
from torch_helion.codegen.triton.roll_reductions import roll_reductions, rollable_axes
from torch_helion.codegen.triton.sizes import SizeText
from torch_helion.codegen.triton.target import TRITON
from torch_helion.config import Config
from torch_helion.ir.builder import Builder
from torch_helion.ir.dump import dump
from torch_helion.ir.graph import Kernel
from torch_helion.ir.interpreter import run
from torch_helion.ir.size_value import size_value
from torch_helion.ir.types import Affine, begin_symbol, scalar_symbol, size_symbol
from torch_helion.ir.verifier import verify

F32 = torch.float32
PACKAGE = pathlib.Path(torch_helion.__file__).parent
at = Affine.of


def text_of(kernel: Kernel, **config: object) -> str:
    return compiler.compile_kernel(kernel, {}, Config(**config) if config else None, TRITON)


def test_nothing_imports_triton() -> None:
    for path in (PACKAGE / "codegen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "triton" for n in names), path


def test_record_names_its_gaps() -> None:
    assert TRITON.unsupported == {"sort", "digamma", "i0e", "i1e"}
    with pytest.raises(exc.TargetIncomplete, match="sort"):
        dataclasses.replace(TRITON, unsupported=frozenset(("digamma", "i0e", "i1e")))


# -- refusals -----------------------------------------------------------------------------------


def unary(fn: str) -> Kernel:
    b = Builder("unary")
    n = b.size("n")
    x, out = buffer(b, "x", (n,)), buffer(b, "out", (n,), F32, "out")
    axis = b.axis("n", n)
    with b.grid(axis):
        b.store(out, [at(axis)], b.pointwise(fn, b.load(x, [at(axis)])))
    return b.build()


def sorted_rows() -> Kernel:
    b = Builder("sorted_rows")
    x, out = buffer(b, "x", (4, 8)), buffer(b, "out", (4, 8), F32, "out")
    m, n = b.axis("m", 4), b.axis("n", 8, "full")
    with b.grid(m):
        b.store(out, [at(m), at(n)], b.sort(b.load(x, [at(m), at(n)]), n)[0])
    return b.build()


def half_maximum() -> Kernel:
    b = Builder("half_maximum")
    x = buffer(b, "x", (8,), torch.float16)
    out = buffer(b, "out", (8,), torch.float16, "inout")
    n = b.axis("n", 8)
    with b.grid(n):
        b.atomic("max", out, [at(n)], b.load(x, [at(n)]))
    return b.build()


def masked_exchange() -> Kernel:
    b = Builder("masked_exchange")
    n = b.size("n")
    x, out = buffer(b, "x", (n,), torch.int32), buffer(b, "out", (n,), torch.int32, "inout")
    axis = b.axis("n", n)
    with b.grid(axis):
        expected = b.expand(b.const(0, torch.int32), [axis])
        b.atomic("cas", out, [at(axis)], b.load(x, [at(axis)]), expected=expected)
    return b.build()


def long_rows() -> Kernel:
    b = Builder("long_rows")
    x, out = buffer(b, "x", (4, 1 << 21)), buffer(b, "out", (4,), F32, "out")
    m, n = b.axis("m", 4), b.axis("n", 1 << 21, "full")
    with b.grid(m):
        b.store(out, [at(m)], b.reduce("sum", b.load(x, [at(m), at(n)]), [n]))
    return b.build()


REFUSED = {
    "digamma": (lambda: unary("digamma"), {}, "digamma is not supported"),
    "sort": (sorted_rows, {}, "sort is not supported"),
    "half_maximum": (half_maximum, {}, "atomic max of torch.float16"),
    "masked_exchange": (masked_exchange, {"block_sizes": [4]}, "cas has no mask"),
    "long_rows": (long_rows, {}, "smaller block_sizes or reduction_loops"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    make, config, why = REFUSED[name]
    with pytest.raises(exc.CodegenError, match=why):
        text_of(make(), **config)


def test_chunks_make_room_for_long_rows() -> None:
    assert "tl.range(0, 2097152, BLOCK_N_0)" in text_of(
        long_rows(), block_sizes=[1], reduction_loops=[1024]
    )


def test_config_must_fit() -> None:
    with pytest.raises(exc.InvalidConfig, match="3 entries for 1 block sizes"):
        text_of(kernels.softmax(), block_sizes=[1, 2, 3])


def test_launch_options() -> None:
    text = text_of(kernels.softmax(), block_sizes=[1], num_warps=8, num_stages=3)
    assert text.rstrip().endswith(", num_warps=8, num_stages=3)")


def test_barriers_between_threads() -> None:
    """A program that reads what it has stored waits for its own threads."""
    b = Builder("twice")
    x = buffer(b, "x", (8,), F32, "inout")
    n = b.axis("n", 8)
    with b.grid(n):
        first = b.load(x, [at(n)])
        b.store(x, [at(n)], b.pointwise("neg", first))
        b.store(x, [at(n)], b.pointwise("exp", b.load(x, [at(n)])))
    assert text_of(b.build()).count("tl.debug_barrier()") == 4
    assert "debug_barrier" not in text_of(kernels.softmax())


# -- sizes --------------------------------------------------------------------------------------


def _expressions() -> list[sympy.Expr]:
    n, m, s = size_symbol("n"), size_symbol("m"), scalar_symbol("s")
    return [
        n,
        2 * n - 3,
        n * m + m,
        (n + 3) * (m + 2),
        n**2,
        sympy.ceiling(n / 64),
        sympy.floor((n + 5) / 4) * m,
        sympy.Min(n, m, 7),
        sympy.Max(n - 3, 0),
        sympy.Mod(n, 5),
        sympy.floor(s / 3),
        sympy.ceiling(s / 3),
        sympy.Abs(s),
        n * m - begin_symbol("m"),
    ]


@pytest.mark.parametrize("expr", _expressions(), ids=str)
def test_sizes_as_text(expr: sympy.Expr) -> None:
    """The launcher's text, evaluated by the parts that it may consist of."""
    text = SizeText(lambda symbol: symbol.name, device=False)(expr)
    numbers = {"n": 37, "m": 5, "s": -7, "begin_m": 4}
    want = size_value(expr, {s: numbers[s.name] for s in expr.free_symbols})
    assert _evaluated(ast.parse(text, mode="eval").body, numbers) == want


def _evaluated(node: ast.expr, numbers: dict[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_evaluated(node.operand, numbers)
    if isinstance(node, ast.Call):
        args = [_evaluated(a, numbers) for a in node.args]
        functions = {"min": min, "max": max, "abs": abs, "triton.cdiv": lambda a, b: -(-a // b)}
        return functions[ast.unparse(node.func)](*args)
    assert isinstance(node, ast.BinOp)
    a, b = _evaluated(node.left, numbers), _evaluated(node.right, numbers)
    return {
        ast.Add: a + b,
        ast.Sub: a - b,
        ast.Mult: a * b,
        ast.FloorDiv: a // b if b else 0,
        ast.Mod: a % b if b else 0,
    }[type(node.op)]


# -- reductions in chunks -----------------------------------------------------------------------


def _roll(case: random_kernels.Case, seed: int) -> bool:
    """Whether something was rolled; what it computes must stay."""
    axes = rollable_axes(case.kernel)
    rng = random.Random(seed)
    rolled = roll_reductions(case.kernel, [rng.choice((1, 2, 4)) for _ in axes])
    if dump(rolled) == dump(case.kernel):
        return False
    verify(rolled)
    args = case.make_args(seed)
    want = case.expected(args)
    got = [copy_of(t) for t in args]
    run(rolled, got, case.sizes, case.blocks)
    case.check(got, want)
    return True


def test_rolled_kernels_compute_the_same() -> None:
    assert sum(_roll(random_kernels.make(seed), seed) for seed in range(120)) > 40


def test_rolled_programs_compute_the_same() -> None:
    assert sum(_roll(random_programs.make(seed), seed) for seed in range(120)) > 5


def test_rows_that_are_changed_in_place_elsewhere_stay_whole() -> None:
    b = Builder("reverse")
    x = buffer(b, "x", (3, 8), F32, "inout")
    m, n = b.axis("m", 3), b.axis("n", 8, "full")
    with b.grid(m, blocks=[1]):
        value = b.load(x, [at(m), at(n)])
        total = b.reduce("sum", value, [n])
        b.store(x, [at(m), at(n, -1, 7)], b.pointwise("div", value, total))
    kernel = b.build()
    assert dump(roll_reductions(kernel, [2])) == dump(kernel)
