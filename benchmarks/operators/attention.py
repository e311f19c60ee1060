"""Attention: ATen's operator and plain spellings of it; long, short, causal, biased, one query.

What flows in: the options of ``benchmarks/harness.py``. What flows out: its table. The peer of a
plain spelling is the best other form of it: ATen's operator where that can express it, else
``flex_attention`` compiled by Inductor (the spelling itself is measured with Inductor anyway). A
case's limit counts the multiply-adds that are needed (half of them where the mask is causal).

    python benchmarks/operators/attention.py --only causal --dtype float32
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import DTYPES, Case, parser, run_suite

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch
    from torch.nn import functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

Make = Callable[[torch.dtype], tuple[Callable[..., Any], tuple[Any, ...]]]
WINDOW = 256


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_grouped(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def sdpa_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_mask(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def scores(q, k):
    return (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))


def plain(q, k, v):
    return torch.softmax(scores(q, k), -1) @ v


def difference(q, k):
    return torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])[None, :]


def plain_causal(q, k, v):
    return torch.softmax(scores(q, k).masked_fill(difference(q, k) < 0, -math.inf), -1) @ v


def plain_window(q, k, v):
    distance = difference(q, k)
    hidden = (distance < 0) | (distance > WINDOW)
    return torch.softmax(scores(q, k).masked_fill(hidden, -math.inf), -1) @ v


def plain_alibi(q, k, v, slopes):
    biased = scores(q, k) - slopes[:, None, None] * difference(q, k)
    return torch.softmax(biased, -1).to(v.dtype) @ v


def plain_softcap(q, k, v):
    return torch.softmax(30 * torch.tanh(scores(q, k) / 30), -1) @ v


def flex(make_score: Callable[..., Any] | None, block_mask: bool = False) -> Callable[..., Any]:
    compiled: dict[Any, Any] = {}

    def run(q, k, v, *more):
        if (key := (q.shape, q.dtype)) not in compiled:
            mask = None
            if block_mask:
                inside = lambda b, h, m, n: (n <= m) & (m - n <= WINDOW)  # noqa: E731
                mask = create_block_mask(inside, None, None, q.shape[2], k.shape[2], device="cpu")
            score = make_score(*more) if make_score else None

            def call(q, k, v):
                return flex_attention(q, k, v, score_mod=score, block_mask=mask)

            compiled[key] = torch.compile(call)
        return compiled[key](q, k, v)

    return run


def alibi_score(slopes):
    return lambda s, b, h, m, n: s - slopes[h] * (m - n)


def softcap_score():
    return lambda s, b, h, m, n: 30 * torch.tanh(s / 30)


# name, function, peer, whether half is hidden, heads of the keys, sizes, more arguments
Spec = tuple[str, Callable[..., Any], Callable[..., Any] | None, bool]
FORMS: tuple[Spec, ...] = (
    ("sdpa", sdpa, None, False),
    ("sdpa causal", sdpa_causal, None, True),
    ("sdpa mask", sdpa_mask, None, False),
    ("plain", plain, sdpa, False),
    ("plain causal", plain_causal, sdpa_causal, True),
    ("plain window", plain_window, flex(None, block_mask=True), True),
    ("plain alibi", plain_alibi, flex(alibi_score), False),
    ("plain softcap", plain_softcap, flex(softcap_score), False),
)


def case(spec: Spec, size: str, dtype: str, batch: int, heads: int, length: int) -> Case:
    name, function, peer, half = spec
    width = 64

    def make():
        q, k, v = (torch.randn(batch, heads, length, width, dtype=DTYPES[dtype]) for _ in "qkv")
        more = []
        if name.endswith("mask"):
            more = [torch.randn(length, length, dtype=DTYPES[dtype])]
        if name.endswith("alibi"):
            more = [torch.pow(2.0, -torch.arange(1, heads + 1) / 2)]
        return function, (q, k, v, *more)

    seen = WINDOW * length if name.endswith("window") else length * length / (2 if half else 1)
    flops = 4.0 * batch * heads * seen * width
    bytes_ = batch * heads * length * width * DTYPES[dtype].itemsize
    return Case(name, size, dtype, make, 3 * bytes_, bytes_, flops, peer=peer)


def few_queries(
    name: str, dtype: str, batch: int, heads: int, shared: int, queries: int, keys: int
) -> Case:
    width = 64

    def make():
        q = torch.randn(batch, heads, queries, width, dtype=DTYPES[dtype])
        k, v = (torch.randn(batch, shared, keys, width, dtype=DTYPES[dtype]) for _ in "kv")
        return (sdpa if shared == heads else sdpa_grouped), (q, k, v)

    read = 2 * batch * shared * keys * width * DTYPES[dtype].itemsize
    flops = 4.0 * batch * heads * queries * keys * width
    return Case(name, "small", dtype, make, read, 0, flops)


def training(name: str, dtype: str, heads: int, length: int) -> Case:
    function = sdpa_causal if name.endswith("causal") else sdpa

    def make():
        shape = (1, heads, length, 64)
        q, k, v = (torch.randn(shape, dtype=DTYPES[dtype]).requires_grad_() for _ in "qkv")
        return function, (q, k, v)

    flops = 14.0 * heads * length * length * 64 / (2 if name.endswith("causal") else 1)
    bytes_ = heads * length * 64 * DTYPES[dtype].itemsize
    return Case(name, "large", dtype, make, 8 * bytes_, 5 * bytes_, flops, train=True)


def cases() -> list[Case]:
    found = []
    for dtype in DTYPES:
        found += [training("training", dtype, 12, 1024)]
        found += [training("training causal", dtype, 12, 1024)]
        for spec in FORMS:
            found.append(case(spec, "large", dtype, 1, 12, 1024))
            if spec[0] in ("sdpa", "sdpa causal", "plain window", "plain softcap"):
                found.append(case(spec, "huge", dtype, 1, 4, 4096))
            if spec[0] in ("sdpa", "sdpa causal", "plain"):
                found.append(case(spec, "small", dtype, 8, 12, 128))
        found += [
            few_queries("decode", dtype, 1, 12, 12, 1, 4096),
            few_queries("decode grouped", dtype, 1, 32, 8, 1, 4096),
            few_queries("decode batch", dtype, 8, 12, 12, 1, 512),
            few_queries("decode one head", dtype, 1, 8, 1, 1, 8192),
            few_queries("grouped", dtype, 1, 16, 4, 512, 512),
        ]
    return found


if __name__ == "__main__":
    sys.exit(run_suite("attention", cases(), parser(__doc__.split("\n")[0]).parse_args()))
