"""A whole kernel that is one product: what tests and measurements of the ``dot_*`` files run.

In: dtypes, layouts, blocks. Out: the text of a module in the kernels' format (one phase over a grid
of tiles, a loop over blocks of k inside, operands read in place), and the same loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from torch_helion.codegen.llvm import dot, engine
from torch_helion.codegen.llvm.dot_plan import DotSpec
from torch_helion.codegen.llvm.dot_text import FunctionText, vector
from torch_helion.codegen.llvm.engine import Machine
from torch_helion.codegen.llvm.text import storage_type
from torch_helion.codegen.llvm.vector_math import MathLibrary
from torch_helion.runtime import launcher

_PHASE = (
    ("ptr", "args"),
    ("i64", "begin"),
    ("i64", "end"),
    ("ptr", "scratch"),
    ("ptr", "workspace"),
)
_INTS = ("g", "m", "n", "k", "a_g", "a_m", "a_k", "b_g", "b_k", "b_n", "c_g", "c_m")


@dataclass(frozen=True)
class Product:
    """C[g, m, n] = A[g, m, k] · B[g, k, n]; `blocks`: of m, n and k."""

    a: torch.dtype
    b: torch.dtype
    acc: torch.dtype
    out: torch.dtype
    blocks: tuple[int, int, int]
    a_unit: str = "k"
    b_unit: str = "n"
    strip: bool = False
    """Whether all of k is one block, and C in scratch only as high as a row tile."""

    @property
    def spec(self) -> DotSpec:
        return DotSpec(self.a, self.b, self.acc, *self.blocks, self.a_unit, self.b_unit)

    @property
    def converts(self) -> bool:
        """Whether C goes through scratch: its parts are converted when they are complete."""
        return self.out is not self.acc


class _Phase:
    """What `emit_dot` needs of a phase's emitter."""

    def __init__(self, f: FunctionText) -> None:
        self.f = f
        self.let = f.let
        self.line = f.line

    def slot(self, type: str, hint: str) -> str:
        return ""

    @contextmanager
    def loop(
        self, counter: str, lo: str, hi: str, step: str, axis: str | None, hint: str
    ) -> Iterator[str]:
        with self.f.loop(lo, hi, step, hint=hint) as at:
            yield at.index


def module_text(product: Product, machine: Machine) -> str:
    """The kernel `product`: tensors A, B, C; ints as in `run`."""
    math = MathLibrary(16, machine)
    dots = dot.DotLibrary(machine)
    names = [str(d).removeprefix("torch.") for d in (product.a, product.b, product.out)]
    header = launcher.KernelHeader("product", tuple(names), len(_INTS), 1)
    parts = [header.text(), _phase(product, dots), _plan(product, machine)]
    if product.converts:
        parts.append(_finish(product, math))
    parts += [*dots.declarations(), *math.definitions()]
    return "\n".join([*parts, *dots.parts()]) + "\n"


def _arguments(f: FunctionText) -> dict[str, str]:
    known = {}
    for number, name in enumerate(("a", "b", "c", *_INTS)):
        type = "ptr" if number < 3 else "i64"
        known[name] = f.load(type, f.at("%args", 8 * number), 8, name)
    return known


def _scratch(product: Product, machine: Machine) -> tuple[int, int]:
    """Bytes of the accumulator and of both."""
    rows = dot.strip_rows(product.spec, machine) if _strip(product, machine) else product.blocks[0]
    accumulator = rows * _row(product) * product.acc.itemsize
    accumulator = -(-accumulator // 64) * 64 if product.converts else 0
    return accumulator, accumulator + dot.scratch_bytes(product.spec, machine)


def _strip(product: Product, machine: Machine) -> bool:
    return product.strip and dot.strip_rows(product.spec, machine) > 0


def _row(product: Product) -> int:
    return -(-product.blocks[1] // 16) * 16


def _plan(product: Product, machine: Machine) -> str:
    f = FunctionText("@product_plan", [("ptr", "args"), ("ptr", "out")], "")
    known = _arguments(f)
    bm, bn, _ = product.blocks
    steps = f.mul(f.ceil_div(known["m"], bm), f.ceil_div(known["n"], bn))
    steps = f.mul(steps, known["g"])
    cost = f.mul(known["k"], 20 * bm * bn)
    for slot, value in enumerate(("0", steps, cost, str(_scratch(product, machine)[1]))):
        f.store("i64", value, f.at("%out", 8 * slot), 8)
    return f.text(kind="void")


def _phase(product: Product, dots: dot.DotLibrary) -> str:
    f = FunctionText("@product_phase0", _PHASE, "")
    f.allocas.append("  %environment = alloca [4 x i64], align 8")
    f.names.fresh("environment")
    known = _arguments(f)
    bm, bn, bk = product.blocks
    size_a, size_b = product.a.itemsize, product.b.itemsize
    a_m = "1" if product.a_unit == "m" else known["a_m"]
    a_k = "1" if product.a_unit == "k" else known["a_k"]
    b_k = "1" if product.b_unit == "k" else known["b_k"]
    b_n = "1" if product.b_unit == "n" else known["b_n"]
    rows, columns = f.ceil_div(known["m"], bm), f.ceil_div(known["n"], bn)
    with f.loop("%begin", "%end", 1, hint="step") as step:
        row = f.let(f"urem i64 {step.index}, {rows}", "row")
        rest = f.let(f"udiv i64 {step.index}, {rows}", "rest")
        column = f.let(f"urem i64 {rest}, {columns}", "column")
        g = f.let(f"udiv i64 {rest}, {columns}", "g")
        i, j = f.mul(row, bm), f.mul(column, bn)
        m, n = f.min(f.sub(known["m"], i), bm), f.min(f.sub(known["n"], j), bn)
        a = _moved(f, known["a"], size_a, (g, known["a_g"]), (i, a_m))
        b = _moved(f, known["b"], size_b, (g, known["b_g"]), (j, b_n))
        c = _moved(
            f, known["c"], product.out.itemsize, (g, known["c_g"]), (i, known["c_m"]), (j, "1")
        )
        acc = dot.Accumulator(c, known["c_m"])
        strip = _strip(product, dots.machine)
        if product.converts:
            acc = dot.Accumulator("%scratch", str(_row(product)))
            for slot, (type, word) in enumerate(
                (("ptr", "%scratch"), ("ptr", c), ("i64", known["c_m"]))
            ):
                f.store(type, word, f.at("%environment", 8 * slot), 8)
        room = f.at("%scratch", _scratch(product, dots.machine)[0])
        none = f.compare("slt", known["k"], 1)
        last = f.select(none, "i64", "1", known["k"])  # one empty block where there is no k
        with f.loop("0", last, bk, hint="k") as k:
            depth = f.min(f.sub(known["k"], k.index), bk)
            end = f.compare("sge", f.add(k.index, bk), known["k"])
            function = f.select(end, "ptr", "@product_finish", "null") if product.converts else ""
            dot.emit_dot(
                _Phase(f),  # type: ignore[arg-type]
                dots,
                product.spec,
                dot.Operand(_moved(f, a, size_a, (k.index, a_k)), a_m, a_k),
                dot.Operand(_moved(f, b, size_b, (k.index, b_k)), b_n, b_k),
                acc,
                (m, n, depth),
                f.compare("eq", k.index, 0),
                room,
                finish=dot.Finish(function, "%environment", strip) if function else None,
            )
    return f.text(kind="i64", result="i64 0")


def _moved(f: FunctionText, pointer: str, size: int, *steps: tuple[str, str]) -> str:
    for index, stride in steps:
        pointer = f.at(pointer, f.mul(f.mul(index, stride), size))
    return pointer


def _finish(product: Product, math: MathLibrary) -> str:
    """Convert a part of the accumulator and store it to the output."""
    parameters = [("ptr", "environment"), *(("i64", n) for n in ("i", "rows", "j", "columns"))]
    f = FunctionText("@product_finish", parameters, "")
    acc, c = (f.load("ptr", f.at("%environment", 8 * slot), 8) for slot in (0, 1))
    c_m = f.load("i64", f.at("%environment", 16), 8)
    strip = _strip(product, math.machine)
    acc = _moved(f, acc, 4, ("0" if strip else "%i", str(_row(product))), ("%j", "1"))
    size = product.out.itemsize
    c = _moved(f, c, size, ("%i", c_m), ("%j", "1"))
    stored = storage_type(product.out)
    conversion = {torch.bfloat16: "f32_to_bf16", torch.float16: "f32_to_f16"}[product.out]
    lanes = 16
    whole = f.round_down("%columns", lanes)
    with f.loop("0", "%rows", 1, hint="row") as row:
        source = _moved(f, acc, 4, (row.index, str(_row(product))))
        target = _moved(f, c, size, (row.index, c_m))
        ahead = _moved(f, target, size, ("%rows", c_m))
        with f.loop("0", "%columns", 64 // size, hint="line") as line:
            f.prefetch(f.at(ahead, f.mul(line.index, size)), write=True)
        for lo, hi, width in (("0", whole, lanes), (whole, "%columns", 1)):
            with f.loop(lo, hi, width, hint="at") as at:
                type = vector("float", width)
                x = f.load(type, f.at(source, f.mul(at.index, 4)), 4)
                symbol = math.use(conversion, "f32", width)
                x = f.call(vector(stored, width), symbol, (type, x))
                place = f.at(target, f.mul(at.index, size))
                f.store(vector(stored, width), x, place, size)
    return f.text(kind="internal void")


def load(product: Product, machine: Machine | None = None) -> Any:
    """The kernel, compiled and ready to be called by `run`."""
    machine = machine or engine.host_machine()
    text = module_text(product, machine)
    header = launcher.parse_header(text)
    loaded = engine.load_object(
        engine.compile_object(text, machine), [header.plan_symbol, *header.phase_symbols]
    )
    phases = [loaded[symbol] for symbol in header.phase_symbols]
    return launcher.make_kernel(header.name, loaded[header.plan_symbol], phases, header, loaded)


def run(kernel: Any, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """c = a @ b for two or three dimensions; c's columns lie side by side."""
    if a.dim() == 2:
        a, b, c = a[None], b[None], c[None]
    groups, m, k = a.shape
    kernel(a, b, c, groups, m, c.shape[2], k, *a.stride(), *b.stride(), *c.stride()[:2])
