"""The evaluation that autograd follows: the interpreter's results, eager's gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from test.ir import random_kernels, random_programs
from test.ir.programs import Program, program
from test.ir.test_programs import attention
from torch_helion.kernel import functional

SEEDS = range(60)


@pytest.mark.parametrize("maker", [random_kernels, random_programs])
def test_random_programs_give_what_the_interpreter_gives(maker: Any) -> None:
    tried = 0
    for seed in SEEDS:
        case = maker.make(seed)
        args = case.make_args(0)
        if functional.why_not(case.kernel) is not None:
            continue
        tried += 1
        want = case.expected(args)
        sizes = [case.sizes[s] for s in case.kernel.sizes]
        for number, tensor in functional.evaluate(case.kernel, args, sizes).items():
            args[number].copy_(tensor)
        case.check(args, want)
    assert tried >= 10


def gradients(
    body: Any, tensors: dict[str, torch.Tensor], name: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A program's output, and the gradients of its inputs for the sum of squares of it."""
    leaves = {n: x.clone().requires_grad_() for n, x in tensors.items()}
    kernel, p = program(body, dict(leaves))
    assert functional.why_not(kernel) is None
    args = [p.tensors[b.name] for b in kernel.arguments]
    names = [b.name for b in kernel.arguments]
    new = functional.evaluate(kernel, args, [])[names.index(name)]
    (new**2).sum().backward()
    return new.detach(), {n: x.grad for n, x in leaves.items()}  # type: ignore[misc]


def check(body: Any, tensors: dict[str, torch.Tensor], eager: Any, name: str = "out") -> None:
    out, grads = gradients(body, tensors, name)
    leaves = {n: x.clone().requires_grad_() for n, x in tensors.items()}
    want = eager(**leaves)
    (want**2).sum().backward()
    torch.testing.assert_close(out, want.detach())
    for n, leaf in leaves.items():
        torch.testing.assert_close(grads[n], leaf.grad, msg=lambda text, n=n: f"{n}: {text}")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).float()


def test_attention() -> None:
    tensors = {"q": randn(5, 4), "k": randn(7, 4), "v": randn(7, 3)}
    check(attention(*tensors.values()), tensors, lambda q, k, v: torch.softmax(q @ k.T, -1) @ v)


def test_matmul_with_epilogue() -> None:
    tensors = {"a": randn(5, 6), "b": randn(6, 3), "bias": randn(3)}

    def body(p: Program) -> None:
        m, n, k = p.axis("m", 5), p.axis("n", 3), p.axis("k", 6)
        with p.b.grid(m, n):
            start = [p.b.expand(p.const(0.0), [m, n])]
            with p.b.tile_loop(k, start) as loop:
                product = p.b.dot(p.load("a", m, k), p.load("b", k, n), k, torch.float32)
                loop.finish([p.op("add", loop.args[0], product)])
            p.out("out", p.op("tanh", p.op("add", loop.results[0], p.load("bias", n))), m, n)

    check(body, tensors, lambda a, b, bias: torch.tanh(a @ b + bias))


def test_rows_with_a_reduction() -> None:
    tensors = {"x": randn(4, 6), "w": randn(6)}

    def body(p: Program) -> None:
        m, n = p.axis("m", 4), p.axis("n", 6, "full")
        with p.b.grid(m):
            x = p.load("x", m, n)
            total = p.b.reduce("sum", p.op("mul", x, x), [n])
            mean = p.op("div", total, p.const(6.0))
            scale = p.op("rsqrt", p.op("add", mean, p.const(1e-5)))
            p.out("out", p.op("mul", p.op("mul", x, scale), p.load("w", n)), m, n)

    check(
        body,
        tensors,
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w,
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_gathers_and_few_rows(rows: int) -> None:
    tensors = {"table": randn(6, 4)}
    index = torch.arange(rows) * 2 % 6

    def body(p: Program) -> None:
        from torch_helion.ir.types import Affine, Gather

        p.tensors["index"] = index
        m, d = p.axis("m", rows), p.axis("d", 4, "full")
        with p.b.grid(m):
            places = p.load("index", m)
            value = p.load("table", Gather(0), Affine.of(d), gathered=[places])
            p.out("out", p.op("exp", value), m, d)

    check(body, tensors, lambda table: table[index].exp())
