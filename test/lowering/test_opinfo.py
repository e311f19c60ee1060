"""The samples of PyTorch's own operator database: every ATen call that eager makes for them.

Each sample is run eagerly (with its backward for float32) while the calls beneath it are recorded;
each recorded call that has a compute rule becomes a kernel of its own and is compared. Calls that
only repeat an overload with the same dtypes and sizes are compared once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo

from test.lowering.eager_check import Call, check, recorded
from torch_helion import exc

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
SAMPLES = 2

# Families that make few calls of ours and many of libraries.
SKIPPED = (
    "linalg",
    "fft",
    "conv",
    "svd",
    "lstsq",
    "cholesky",
    "qr",
    "lu",
    "pinv",
    "pool",
    "interpolate",
    "upsample",
    "grid",
    "attention",
    "sparse",
    "lobpcg",
    "matrix",
    "stft",
    "multinomial",
    "lstm",
    "embedding_bag",
    "polynomial",
    "bessel",
    "rnn",
    "geqrf",
    "ormqr",
    "unique",
    "cov",
    "corrcoef",
    "det",
    "einsum",
    "triangular",
    "masked.",
    "histogram",
    "ctc_loss",
    "tensorsolve",
)

# Overloads whose result nobody may look at, or that eager itself draws at random.
UNSPECIFIED = ("empty",)

REFUSED = {
    "complex": "complex numbers have no tiles",
    "aten.nextafter.default": "half types",
    "aten.linspace.default": "integer ranges",
    "aten.hardtanh.default": "fractional bounds of integers",
    "aten.native_group_norm.default": "channels that do not stand as (group, channel)",
    "aten.scatter": "more than one element of a row, or part of the rows",
    "aten.native_layer_norm_backward.default": "the weight's gradient is a sum over blocks",
}

OPS = [op for op in op_db if not any(word in op.full_name for word in SKIPPED)]
_compared: set[str] = set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.full_name)
def test_samples(op: OpInfo) -> None:
    for dtype in DTYPES:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for call in calls_of(op, dtype):
            if any(word in str(call.overload) for word in UNSPECIFIED):
                continue
            try:
                check(call, blocks=7)
            except exc.LoweringError as refusal:
                assert any(word in str(refusal) for word in REFUSED), str(refusal)


def calls_of(op: OpInfo, dtype: torch.dtype) -> list[Call]:
    """The calls under the samples of `op` that were not compared before."""
    grad = dtype is torch.float32 and op.supports_autograd
    found = []
    for _, sample in zip(
        range(SAMPLES), op.sample_inputs("cpu", dtype, requires_grad=grad), strict=False
    ):
        try:
            calls = recorded(lambda sample=sample: run_sample(op, sample, grad))
        except (RuntimeError, NotImplementedError, AssertionError):
            continue  # what eager refuses, or cannot run under a dispatch mode
        for call in calls:
            key = signature(call)
            if key not in _compared:
                _compared.add(key)
                found.append(call)
    return found


def run_sample(op: OpInfo, sample: Any, grad: bool) -> None:
    result = op(sample.input, *sample.args, **sample.kwargs)
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    for output in outputs if grad else ():
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.sum().backward(retain_graph=True)


def signature(call: Call) -> str:
    def describe(x: Any) -> Any:
        return (x.dtype, tuple(x.shape)) if isinstance(x, torch.Tensor) else x

    arguments = [describe(a) for a in call.args], {k: describe(v) for k, v in call.kwargs.items()}
    return f"{call.overload} {arguments}"
