"""Matrix products with what stands around them in models: linear layers, gated units, projections.

What flows in: the options of ``benchmarks/harness.py``. What flows out: its table. The limit is the
arithmetic at the FMA peak or the traffic at the measured bandwidth, whichever takes longer.

    python benchmarks/operators/products.py --only linear --dtype float32 --threads 2
    python benchmarks/operators/products.py --sweep float32 kn     # single products, for the rules
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import DTYPES, Case, parser, run_suite, time_interleaved

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch
    from torch.nn import functional as F

    from torch_helion.capture.contraction_measure import own_product

LINEAR = [
    (1024, 384, 1536),
    (512, 768, 3072),
    (2048, 1024, 4096),
    (64, 768, 3072),
    (16, 768, 3072),
    (1, 768, 3072),
]
"""Rows, inputs, outputs."""
WIDE = [(1, 4096, 4096), (1, 4096, 11008), (16, 4096, 4096)]
"""Weights that no cache holds."""
GATED = [(512, 768, 2048), (2048, 1024, 2816), (16, 768, 2048)]


def linear_gelu(x, w, b):
    return F.gelu(F.linear(x, w, b))


def linear(x, w, b):
    return F.linear(x, w, b)


def linear_residual(x, w, b, residual):
    return F.linear(x, w, b) + residual


def gated(x, w, u):
    return F.silu(F.linear(x, w)) * F.linear(x, u)


def mlp(x, w, b, v, c):
    return F.linear(F.gelu(F.linear(x, w, b)), v, c)


def _linear(function: Callable[..., Any], m: int, k: int, n: int, dtype: str, **more: Any) -> Case:
    size = DTYPES[dtype].itemsize

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x, w, b = (torch.randn(s) for s in ((m, k), (n, k), (n,)))
        args = [t.to(DTYPES[dtype]) for t in (x, w / k**0.5, b)]
        if function is linear_residual:
            args.append(torch.randn(m, n).to(DTYPES[dtype]))
        if more.get("train"):
            args = [t.requires_grad_() for t in args]
        return function, tuple(args)

    passes = 3 if more.get("train") else 1
    return Case(
        f"{function.__name__} {m}x{k}x{n}",
        "small" if m < 128 else "large",
        dtype,
        make,
        read=size * (m * k + k * n),
        written=size * m * n,
        flops=2.0 * m * k * n * passes,
        **more,
    )


def _gated(m: int, k: int, n: int, dtype: str) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x, w, u = torch.randn(m, k), torch.randn(n, k) / k**0.5, torch.randn(n, k) / k**0.5
        return gated, tuple(t.to(DTYPES[dtype]) for t in (x, w, u))

    size = DTYPES[dtype].itemsize
    return Case(
        f"gated {m}x{k}x{n}",
        "small" if m < 128 else "large",
        dtype,
        make,
        read=size * (m * k + 2 * k * n),
        written=size * m * n,
        flops=4.0 * m * k * n,
    )


def _mlp(m: int, k: int, n: int, dtype: str, train: bool) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        shapes = ((m, k), (n, k), (n,), (k, n), (k,))
        args = [torch.randn(s) * 0.05 for s in shapes]
        return mlp, tuple(t.to(DTYPES[dtype]).requires_grad_(train) for t in args)

    size = DTYPES[dtype].itemsize
    return Case(
        f"mlp {'training ' if train else ''}{m}x{k}x{n}",
        "large",
        dtype,
        make,
        read=size * (m * k + 2 * k * n),
        written=size * m * k,
        flops=4.0 * m * k * n * (3 if train else 1),
        train=train,
    )


def bytes_linear(x, q, scale):
    return F.linear(x, q.to(x.dtype)) * scale


def _bytes(m: int, k: int, n: int, dtype: str) -> Case:
    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x, scale = torch.randn(m, k), torch.rand(n) * 0.01
        q = torch.randint(-127, 128, (n, k)).to(torch.int8)
        return bytes_linear, (x.to(DTYPES[dtype]), q, scale.to(DTYPES[dtype]))

    size = DTYPES[dtype].itemsize
    return Case(
        f"linear of bytes {m}x{k}x{n}",
        "small",
        dtype,
        make,
        read=size * m * k + k * n,
        written=size * m * n,
        flops=2.0 * m * k * n,
    )


GROUP = 128
"""Neighbours along the inputs that share a scale."""


def byte_weights(x, q, s):
    w = q.view(q.shape[0], -1, GROUP).to(x.dtype) * s[:, :, None]
    return F.linear(x, w.view(q.shape))


def nibble_weights(x, p, s):
    q = torch.stack([p & 0xF, p >> 4], -1).to(torch.int8) - 8
    w = q.view(p.shape[0], -1, GROUP).to(x.dtype) * s[:, :, None]
    return F.linear(x, w.view(p.shape[0], -1))


def _quantized(bits: int, m: int, k: int, n: int, dtype: str) -> Case:
    function = byte_weights if bits == 8 else nibble_weights

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        x, s = torch.randn(m, k).to(DTYPES[dtype]), torch.rand(n, k // GROUP) * 0.01
        low, small = (-128, torch.int8) if bits == 8 else (0, torch.uint8)
        q = torch.randint(low, low + 256, (n, k * bits // 8)).to(small)
        return function, (x, q, s.to(DTYPES[dtype]))

    size = DTYPES[dtype].itemsize
    return Case(
        f"linear int{bits} {m}x{k}x{n}",
        "small",
        dtype,
        make,
        read=size * (m * k + k * n // GROUP) + k * n * bits // 8,
        written=size * m * n,
        flops=2.0 * m * k * n,
    )


def cases() -> list[Case]:
    found = []
    for dtype in DTYPES:
        found += [_linear(linear_gelu, *shape, dtype) for shape in LINEAR]
        found += [_linear(linear, *shape, dtype) for shape in (*LINEAR, *WIDE)]
        found += [_linear(linear_residual, *shape, dtype) for shape in LINEAR[:2]]
        found += [_gated(*shape, dtype) for shape in GATED]
        found += [_bytes(m, 4096, 4096, dtype) for m in (1, 16)]
        found += [_quantized(b, 1, 4096, n, dtype) for b in (8, 4) for n in (4096, 11008)]
        found += [_quantized(b, 16, 4096, 4096, dtype) for b in (8, 4)]
        found += [_mlp(512, 768, 3072, dtype, train) for train in (False, True)]
    return found


# -- single products, against the library -----------------------------------------------------

ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
MATRICES = ((64, 64), (64, 256), (256, 64), (256, 256), (768, 768), (768, 3072), (3072, 768))


def sweep(dtype: str, layout: str) -> None:
    """What the rules of ``capture/contraction_choice.py`` are derived from.

    ``layout``: the dimension whose elements lie side by side, of A (k or m), then of B (k or n).
    """
    for m in ROWS:
        for k, n in MATRICES:
            a = torch.randn(m, k) if layout[0] == "k" else torch.randn(k, m).t()
            b = torch.randn(k, n) if layout[1] == "n" else torch.randn(n, k).t()
            a, b = (t.to(DTYPES[dtype]) for t in (a, b))
            out, other = torch.empty(2, m, n, dtype=DTYPES[dtype])
            ours = own_product(a, b, other)
            library = functools.partial(torch.mm, a, b, out=out)
            samples = time_interleaved({"library": library, "ours": ours}, 0.1)
            low = {name: sorted(times)[len(times) // 10] for name, times in samples.items()}
            rates = " ".join(f"{w} {2e-9 * m * n * k / t:4.0f}" for w, t in low.items())
            ratio = low["library"] / low["ours"]
            print(f"{dtype} {layout} {m:5} {k:5} {n:5}  {rates} GFLOP/s  {ratio:.2f}", flush=True)


def main() -> int:
    options: argparse.ArgumentParser = parser(__doc__ or "")
    options.add_argument("--sweep", nargs=2, metavar=("DTYPE", "LAYOUT"), help="single products")
    args = options.parse_args()
    if args.sweep:
        sweep(*args.sweep)
        return 0
    return run_suite("products", cases(), args)


if __name__ == "__main__":
    sys.exit(main())
