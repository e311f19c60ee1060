"""Properties of the language: random kernels as text compute what the tile IR does, through the
whole way from the decorator to machine code; and text and IR are two forms of one program.

Random kernels of the IR become text by the printer. The text is compiled for a random config and
run on inputs whose padding is poison and whose pages end where they do: what is read beyond an
input is seen as a wrong number or ends the process.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from test.frontend.read_back import load_text, normal_form, read_back, same_words
from test.guarded import guarded
from test.ir import random_kernels, random_programs
from torch_helion import exc
from torch_helion._testing import assert_right
from torch_helion.config import Config
from torch_helion.explain import explain
from torch_helion.ir import interpreter
from torch_helion.ir.graph import Kernel
from torch_helion.ir.printer import HEADER, to_source

Case = random_kernels.Case
MAKERS: dict[str, Callable[[int], Case]] = {
    "kernels": random_kernels.make,
    "programs": random_programs.make,
}


def refused(case: Case, error: exc.Base) -> bool:
    """Whether the language says no as it should: two axes of one loop share a registered block
    size; PyTorch knows no maximum of nothing; the shape of a value is checked on numbers that stand
    for its sizes, and more than four open ones are too many."""
    if isinstance(error, exc.NestedDeviceLoopsConflict) or "overflow" in str(error):
        return True
    return "zero-size dimension" in str(error) and 0 in case.sizes.values()


# -- text to machine code -------------------------------------------------------------------------


def arguments(case: Case, side: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All arguments at the edge of a page, outputs with what the text's new tensors hold; and what
    the interpreter makes of them."""
    args = case.make_args()
    for buffer, tensor in zip(case.kernel.arguments, args, strict=True):
        if buffer.role == "out":
            tensor.fill_(77)
    return [guarded(t, side) for t in args], case.expected(args)


def runs_as_text(case: Case, seed: int) -> None:
    rng = random.Random(seed)
    source = to_source(case.kernel).replace("torch.empty", "new.empty")
    kernel = load_text(source, case.kernel.name, new=_Filled)
    args, want = arguments(case, rng.choice(("start", "end")))
    free = [n for s, n in case.sizes.items() if re.search(rf"\b{s}: int\b", source)]
    inputs = [t for b, t in zip(case.kernel.arguments, args, strict=True) if b.is_input]
    bound = kernel.bind((*inputs, *free))
    count = len(bound.config_spec.block_sizes)
    sizes = [rng.choice((1, 2, 4, 16, 64)) for _ in range(count)]
    bound.set_config(Config(block_sizes=sizes))
    result = bound(*inputs, *free)
    results = iter(result if isinstance(result, tuple) else (result,))
    pairs = zip(case.kernel.arguments, args, strict=True)
    case.check([next(results) if b.role == "out" else t for b, t in pairs], want)


class _Filled:
    """torch.empty and its like, with a number that tells what a kernel has left alone."""

    @staticmethod
    def empty(*args: Any, **options: Any) -> torch.Tensor:
        return torch.full(*args, 77, **options)

    @staticmethod
    def empty_strided(*args: Any, **options: Any) -> torch.Tensor:
        return torch.empty_strided(*args, **options).fill_(77)


def run_range(kind: str, first: int, count: int) -> None:
    for seed in range(first, first + count):
        case = MAKERS[kind](seed)
        try:
            runs_as_text(case, seed)
        except exc.Base as error:
            if not refused(case, error):
                raise AssertionError(f"{kind} {seed}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{kind} {seed}: {error}\n{to_source(case.kernel)}") from error


@pytest.mark.parametrize("first", range(2000, 2030, 10))
@pytest.mark.parametrize("kind", MAKERS)
def test_text_runs(kind: str, first: int) -> None:
    run_range(kind, first, 10)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3000, 3340, 20))
@pytest.mark.parametrize("kind", MAKERS)
def test_text_runs_more(kind: str, first: int) -> None:
    run_range(kind, first, 20)


# -- text to IR ---------------------------------------------------------------------------------


def same_again(kernel: Kernel) -> None:
    """The text reads back as the kernel, where the language has its words; as a valid one, else."""
    again = read_back(kernel)
    if not same_words(kernel):
        return
    want, got = normal_form(kernel), normal_form(again)
    assert got == want, f"{first_difference(want, got)}\n{to_source(kernel)}"


def first_difference(want: str, got: str) -> str:
    pairs = itertools.zip_longest(want.split("\n"), got.split("\n"))
    return next((f"- {a}\n+ {b}" for a, b in pairs if a != b), "")


@pytest.mark.parametrize("first", range(0, 40, 20))
@pytest.mark.parametrize("kind", MAKERS)
def test_text_reads_back(kind: str, first: int) -> None:
    for seed in range(first, first + 20):
        case = MAKERS[kind](seed)
        try:
            same_again(case.kernel)
        except exc.Base as error:
            if not refused(case, error):
                raise AssertionError(f"{kind} {seed}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 180, 20))
@pytest.mark.parametrize("kind", MAKERS)
def test_text_reads_back_more(kind: str, first: int) -> None:
    test_text_reads_back(kind, first)


def test_the_normal_form_tells_kernels_apart() -> None:
    """No two of these do the same."""
    forms = {normal_form(random_kernels.make(seed).kernel) for seed in range(60)}
    assert len(forms) == 60


# -- kernels of graphs ----------------------------------------------------------------------------


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def gelu_dropout(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.dropout(F.gelu(x * 2 + y), 0.3, True)


def loss(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, target)


def graphs() -> dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:
    x, row = torch.randn(33, 70), torch.randn(70)
    return {
        "softmax": (lambda x: torch.softmax(x, -1), (x,)),
        "softmax_half": (lambda x: torch.softmax(x, -1), (x.bfloat16(),)),
        "layer_norm": (layer_norm, (x, row, row + 1)),
        "gelu_dropout": (gelu_dropout, (x, row)),
        "cross_entropy": (loss, (x.requires_grad_(), torch.randint(0, 70, (33,)))),
    }


@pytest.mark.parametrize("name", graphs())
def test_kernels_of_graphs(name: str) -> None:
    """What `explain` shows is read back as the same IR, and runs, pasted into a file."""
    fn, args = graphs()[name]
    for dynamic in (False, True):
        regions = explain(fn, *args, compile_options={"dynamic": dynamic}).regions
        assert regions
        for region in regions:
            kernel = region._taken.kernel
            if not any("block_" in str(a.size) for a in kernel.axes().values()):
                same_again(kernel)
            pasted(region.source, kernel)


def pasted(source: str, kernel: Kernel) -> None:
    """The text as a kernel of a file gives the numbers of the IR."""
    tensors = example_arguments(kernel)
    fn = load_text(source, kernel.name)
    inputs = [t for b, t in zip(kernel.arguments, tensors, strict=True) if b.is_input]
    free = [37 for s in kernel.sizes if re.search(rf"\b{s}: (int|float)\b", source)]
    got = fn(*[t.clone() for t in inputs], *free)
    wanted = [[t.clone() for t in tensors] for _ in range(2)]
    sizes = dict.fromkeys(kernel.sizes, 37)
    interpreter.run(kernel, wanted[0], sizes)
    exact = [t.double() if t.is_floating_point() else t for t in wanted[1]]
    interpreter.run(kernel, exact, sizes, precise=True)
    results = [n for n, b in enumerate(kernel.arguments) if b.role == "out"]
    got = got if isinstance(got, tuple) else (got,)
    assert_right(list(got), [wanted[0][n] for n in results], [exact[n] for n in results])


def example_arguments(kernel: Kernel) -> list[torch.Tensor]:
    torch.manual_seed(0)
    tensors = []
    for buffer in kernel.arguments:
        shape, strides = ([_number(s) for s in sizes] for sizes in (buffer.shape, buffer.strides))
        tensor = torch.empty_strided(shape, strides, dtype=buffer.dtype)
        floats = buffer.dtype.is_floating_point
        tensors.append(tensor.normal_() if floats else tensor.random_(0, 2))
    return tensors


def _number(size: Any) -> int:
    return int(size if isinstance(size, int) else size.subs(dict.fromkeys(size.free_symbols, 37)))


def test_the_text_is_a_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header and the text in a file can be imported."""
    (region,) = explain(torch.softmax, torch.randn(6, 50), -1).regions
    (tmp_path / "pasted_softmax.py").write_text(f"{HEADER}\n\n{region.source}")
    monkeypatch.syspath_prepend(tmp_path)
    kernel = getattr(__import__("pasted_softmax"), region.name)
    x = torch.randn(5, 50)
    torch.testing.assert_close(kernel(x), torch.softmax(x, -1))
