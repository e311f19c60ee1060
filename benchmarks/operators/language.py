"""Kernels of ``examples/`` with their default configs, against the same function in PyTorch.

What flows in: the options of ``benchmarks/harness.py``. What flows out: its table; the column
"helion" is the kernel, called as a user calls it, the peers are the plain function in eager mode
and compiled by Inductor.

    python benchmarks/operators/language.py --threads 2 --only softmax,rope
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from harness import DTYPES, Case, parser, run_suite

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch
    from torch.nn import functional as F

    from examples import (
        attention,
        cross_entropy,
        layer_norm,
        long_sum,
        matmul,
        rms_norm,
        rope,
        softmax,
        swiglu,
    )


def softmax_rows(x):
    return torch.softmax(x, -1)


def mean_cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels)


def gate(g, u):
    return F.silu(g) * u


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sum_rows(x):
    return x.sum(-1)


def norm(x, weight, bias):
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def rms(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight)


def bias_relu_product(x, y, bias):
    return torch.relu(x @ y + bias)


def bias_relu_kernel(x, y, bias):
    return matmul.matmul(x, y, matmul.bias_relu(bias))


def _case(
    name: str, function: Callable[..., Any], kernel: Callable[..., Any], dtype: str, *shapes: Any,
    written: int, flops: float = 0.0, train: bool = False, labels: int = 0,
) -> Case:  # fmt: skip
    size = DTYPES[dtype].itemsize

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        args: list[Any] = [torch.randn(s).to(DTYPES[dtype]).requires_grad_(train) for s in shapes]
        if labels:
            args.append(torch.randint(0, labels, (shapes[0][0],)))
        return function, tuple(args)

    read = size * sum(math.prod(s) for s in shapes)
    return Case(
        name, "large", dtype, make, read=read, written=size * written, flops=flops, train=train,
        kernel=kernel,
    )  # fmt: skip


def cases() -> list[Case]:
    made = []
    for dtype in DTYPES:
        rows, wide = (4096, 4096), 4096 * 4096
        made += [
            _case("softmax", softmax_rows, softmax.softmax, dtype, (4096, 1024), written=wide // 4),
            _case("softmax online", softmax_rows, softmax.softmax_two_pass, dtype, (512, 32768),
                  written=wide),
            _case("layer_norm training", norm, layer_norm.layer_norm, dtype, rows, (4096,), (4096,),
                  written=wide * 2, train=True),
            _case("rms_norm training", rms, rms_norm.rms_norm, dtype, rows, (4096,),
                  written=wide * 2, train=True),
            _case("cross_entropy", mean_cross_entropy, cross_entropy.cross_entropy, dtype,
                  (2048, 50257), written=2048, labels=50257),
            _case("rope", rope.reference, rope.rope, dtype, (4, 32, 1024, 128), (1024, 128),
                  (1024, 128), written=wide),
            _case("swiglu", gate, swiglu.swiglu, dtype, rows, rows, written=wide),
            _case("attention", causal, attention.attention, dtype, *[(1, 12, 1024, 64)] * 3,
                  written=12 * 1024 * 64, flops=2.0 * 12 * 1024**2 * 64),
            _case("long_sum", sum_rows, long_sum.long_sum, dtype, (64, 1 << 20), written=64),
            _case("matmul bias relu", bias_relu_product, bias_relu_kernel, dtype, (2048, 1024),
                  (1024, 4096), (4096,), written=2048 * 4096, flops=2.0 * 2048 * 1024 * 4096),
        ]  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(run_suite("language", cases(), parser(__doc__).parse_args()))
