"""Map-reduce work: pointwise chains, norms, softmax, losses, column reductions, an optimiser's
update.

What flows in: the options of ``benchmarks/harness.py``. What flows out: its table. Each case states
the bytes that it cannot avoid to move, which is its limit. Where eager has a better form than the
plain one (the fused AdamW), that form is the peer.

    python benchmarks/operators/map_reduce.py --only norm --dtype float32 --size large
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import DTYPES, Case, parser, run_suite

if True:  # torch is imported by the harness first, in the process with the right allocator
    import torch
    from torch.nn import functional as F

aten = torch.ops.aten
Make = Callable[[torch.dtype], tuple[Callable[..., Any], tuple[Any, ...]]]


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


def gelu_erf(x):
    return F.gelu(x)


def silu_mul(x, y):
    return F.silu(x) * y


def bias_gelu_residual(x, bias, residual):
    return F.gelu(x + bias) + residual


def dropout_residual(x, residual):
    return F.dropout(x, 0.1, training=True) + residual


def softmax(x):
    return torch.softmax(x, -1)


def log_softmax(x):
    return torch.log_softmax(x, -1)


def layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias)


def rms_norm_residual(x, residual, weight):
    h = x + residual
    return F.rms_norm(h, weight.shape, weight, 1e-6), h


def layer_norm_backward(grad, x, mean, rstd, weight, bias):
    every = [True, True, True]
    return aten.native_layer_norm_backward(grad, x, weight.shape, mean, rstd, weight, bias, every)


def rms_norm_backward(grad, x, rstd, weight):
    # Written out: this is what autograd runs on a CPU, where the fused operator does not exist.
    scaled, normal = grad.float() * weight.float(), x.float() * rstd.float()
    dx = (scaled - normal * (scaled * normal).mean(-1, keepdim=True)) * rstd.float()
    return dx.to(x.dtype), (grad.float() * normal).sum(0).to(weight.dtype)


def column_sum(x):
    return x.sum(0)


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target)


def middle_mean(x):
    return x.mean(1)


def group_norm_silu(x, weight, bias):
    return F.silu(F.group_norm(x, 32, weight, bias))


def batch_norm_relu(x, mean, var, weight, bias):
    return F.relu(F.batch_norm(x, mean, var, weight, bias))


LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01


def adamw(params, grads, firsts, seconds, step: float = 10.0):
    """The plain update, in place, with constant hyperparameters."""
    for p, g, m, v in zip(params, grads, firsts, seconds, strict=True):
        p.mul_(1 - LR * DECAY)
        m.lerp_(g, 1 - BETA1)
        v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        denominator = (v.sqrt() / (1 - BETA2**step) ** 0.5).add_(EPS)
        p.addcdiv_(m, denominator, value=-LR / (1 - BETA1**step))


def fused_adamw(params, grads, firsts, seconds):
    steps = [torch.tensor(10.0)] * len(params)
    torch._fused_adamw_(
        params, grads, firsts, seconds, [], steps,
        lr=LR, beta1=BETA1, beta2=BETA2, weight_decay=DECAY, eps=EPS, amsgrad=False, maximize=False,
    )  # fmt: skip


def _tensors(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Make:
    """A case on normal random tensors of these shapes."""
    return lambda dtype: (function, tuple(torch.randn(s, dtype=dtype) for s in shapes))


def _case(
    name: str, size: str, dtype: str, make: Make, read: int, written: int, **more: Any
) -> Case:
    """`read` and `written` in elements of the case's dtype."""
    width = DTYPES[dtype].itemsize
    return Case(
        name, size, dtype, lambda: make(DTYPES[dtype]), read * width, written * width, **more
    )


def _saved_for_norm(x: torch.Tensor, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    mean = wide.mean(-1, keepdim=True) if centred else torch.zeros(1)
    rstd = ((wide - mean).square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return mean.to(x.dtype), rstd.to(x.dtype)


def _norm_backward(rows: int, columns: int, centred: bool) -> Make:
    def make(dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        grad, x = torch.randn(2, rows, columns, dtype=dtype)
        weight = torch.randn(columns, dtype=dtype)
        mean, rstd = _saved_for_norm(x, centred)
        if centred:
            bias = torch.randn(columns, dtype=dtype)
            return layer_norm_backward, (grad, x, mean, rstd, weight, bias)
        return rms_norm_backward, (grad, x, rstd, weight)

    return make


def _loss(rows: int, columns: int, train: bool) -> Make:
    def make(dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        logits = torch.randn(rows, columns, dtype=dtype, requires_grad=train)
        return cross_entropy, (logits, torch.randint(columns, (rows,)))

    return make


def _batch_norm(*shape: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        mean, weight, bias = torch.randn(3, shape[1], dtype=dtype)
        var = torch.rand(shape[1], dtype=dtype) + 0.5
        return batch_norm_relu, (torch.randn(shape, dtype=dtype), mean, var, weight, bias)

    return make


def _adamw(count: int, elements: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        state = [[torch.randn(elements, dtype=dtype) for _ in range(count)] for _ in range(3)]
        seconds = [torch.rand(elements, dtype=dtype) for _ in range(count)]
        return adamw, (*state, seconds)

    return make


def _rows_and_columns(size: str, rows: int, columns: int, dtype: str) -> list[Case]:
    n, shape, column = rows * columns, (rows, columns), (columns,)

    def case(name: str, make: Make, read: int, written: int, **more: Any) -> Case:
        return _case(name, size, dtype, make, read, written, **more)

    return [
        case("gelu_tanh", _tensors(gelu_tanh, shape), n, n),
        case("gelu_erf", _tensors(gelu_erf, shape), n, n),
        case("silu_mul", _tensors(silu_mul, shape, shape), 2 * n, n),
        case("bias_gelu_residual", _tensors(bias_gelu_residual, shape, column, shape), 2 * n, n),
        case("dropout_residual", _tensors(dropout_residual, shape, shape), 2 * n, n, check=False),
        case("layer_norm", _tensors(layer_norm, shape, column, column), n, n),
        case("rms_norm_residual", _tensors(rms_norm_residual, shape, shape, column), 2 * n, 2 * n),
        case("layer_norm_backward", _norm_backward(rows, columns, True), 2 * n, n),
        case("rms_norm_backward", _norm_backward(rows, columns, False), 2 * n, n),
        case("column_sum", _tensors(column_sum, shape), n, columns),
    ]


def _softmaxes(size: str, short: tuple[int, int], long: tuple[int, int], dtype: str) -> list[Case]:
    n, m = short[0] * short[1], long[0] * long[1]
    return [
        _case("softmax", size, dtype, _tensors(softmax, short), n, n),
        _case("softmax_long", size, dtype, _tensors(softmax, long), m, m),
        _case("log_softmax", size, dtype, _tensors(log_softmax, short), n, n),
    ]


def _others(size: str, dtype: str) -> list[Case]:
    large = size == "large"
    rows, classes = (2048, 50257) if large else (64, 1000)
    middle = (16, 512, 1024) if large else (8, 64, 96)
    group = (8, 320, 64, 64) if large else (2, 64, 16, 16)
    batch = (16, 256, 56, 56) if large else (1, 64, 28, 28)
    count, elements = 20, (1 << 20 if large else 4096)

    def size_of(shape: tuple[int, ...]) -> int:
        return torch.Size(shape).numel()

    def case(name: str, make: Make, read: int, written: int, **more: Any) -> Case:
        return _case(name, size, dtype, make, read, written, **more)

    n, channels, total = rows * classes, (group[1],), count * elements
    return [
        case("cross_entropy", _loss(rows, classes, False), n, 0),
        case("cross_entropy_train", _loss(rows, classes, True), 2 * n, n, train=True),
        case("middle_mean", _tensors(middle_mean, middle), size_of(middle), middle[0] * middle[2]),
        case(
            "group_norm_silu",
            _tensors(group_norm_silu, group, channels, channels),
            size_of(group),
            size_of(group),
        ),
        case("batch_norm_relu", _batch_norm(*batch), size_of(batch), size_of(batch)),
        case("adamw", _adamw(count, elements), 4 * total, 3 * total, check=False, peer=fused_adamw),
    ]


def cases() -> list[Case]:
    """Every case, in the order of the file."""
    found = []
    for dtype in DTYPES:
        found += _rows_and_columns("large", 4096, 4096, dtype)
        found += _rows_and_columns("small", 64, 768, dtype)
        found += _softmaxes("large", (4096, 1024), (512, 32768), dtype)
        found += _softmaxes("small", (64, 768), (8, 32768), dtype)
        found += _others("large", dtype) + _others("small", dtype)
    return found


if __name__ == "__main__":
    sys.exit(run_suite("map_reduce", cases(), parser(__doc__.split("\n")[0]).parse_args()))
