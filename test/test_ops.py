"""Every operator of PyTorch's own operator database through the backend: same numbers, dtype,
shape, strides.

Judged as everywhere (docs/accuracy.md): integers and bools exactly; floats close at the dtype's
tolerance, else no farther from a float64 run than 2x (half types 3x) eager's own error. The tensors
that go in, and the buffers that programs allocate, end or begin at an unmapped page with poison on
the other side (test/guarded.py).
"""

from __future__ import annotations

import itertools
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_flatten, tree_map_only

from test.guarded import guarded, guarded_empty
from torch_helion import _C

DTYPES = (torch.float32, torch.bfloat16, torch.int64)
SAMPLES = 2
TOLERANCE = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}
HALF = (torch.float16, torch.bfloat16)

# name: why numbers cannot be compared with eager's
RANDOM = {
    "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal",
    "rand_like", "randint", "randint_like", "randn", "randn_like", "uniform", "empty", "empty_like",
    "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "nn.functional.dropout",
    "nn.functional.dropout2d", "nn.functional.dropout3d", "nn.functional.alpha_dropout",
    "nn.functional.feature_alpha_dropout", "nn.functional.fractional_max_pool2d",
    "nn.functional.fractional_max_pool3d", "nn.functional.rrelu",
    "nn.functional.scaled_dot_product_attention", "nn.functional.multi_head_attention_forward",
    "torch.ops.aten._efficient_attention_forward", "torch.ops.aten._flash_attention_forward",
    "svd_lowrank", "pca_lowrank",
}  # fmt: skip


def is_random(op: OpInfo) -> bool:
    """Uninitialised or random results: only dtype, shape and strides are compared."""
    return op.name in RANDOM or op.name.startswith("normal")


def tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]


def judge(got: Any, want: Any, exact: Callable[[], Any] | None, where: str) -> None:
    """Fail unless `got` is `want` by the accuracy rule; `exact` gives the float64 evaluation."""
    got_flat, want_flat = tensors(got), tensors(want)
    assert len(got_flat) == len(want_flat), (
        f"{where}: {len(got_flat)} tensors instead of {len(want_flat)}"
    )
    for i, (g, w) in enumerate(zip(got_flat, want_flat, strict=True)):
        judge_tensor(g, w, lambda i=i: tensors(exact())[i] if exact else None, f"{where}[{i}]")


def judge_tensor(
    got: torch.Tensor, want: torch.Tensor, exact: Callable[[], Any], where: str
) -> None:
    assert got.dtype == want.dtype, f"{where}: {got.dtype} instead of {want.dtype}"
    assert got.shape == want.shape, f"{where}: {got.shape} instead of {want.shape}"
    if want.layout != torch.strided:
        got, want = got.to_dense(), want.to_dense()
    elif want.numel() > 0:
        real = [d for d in range(want.dim()) if want.shape[d] > 1]
        assert [got.stride(d) for d in real] == [want.stride(d) for d in real], f"{where}: strides"
    got, want = got.detach(), want.detach()
    if want.dtype is torch.complex32:  # PyTorch cannot compare it
        got, want = got.to(torch.complex64), want.to(torch.complex64)
    if want.dtype not in TOLERANCE:
        assert torch.equal(got, want), f"{where}: differs"
        return
    rtol, atol = TOLERANCE[want.dtype]
    if torch.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
        return
    reference = exact()
    assert reference is not None, f"{where}: not close ({(got - want).abs().max()})"
    finite = want.isfinite()
    assert torch.equal(finite, got.isfinite()), f"{where}: finite elsewhere than eager"
    wide = torch.complex128 if want.is_complex() else torch.float64
    reference = reference.detach().to(wide)

    def error(value: torch.Tensor) -> float:
        return float((value.to(wide) - reference)[finite].abs().square().mean().sqrt())

    limit = (3 if want.dtype in HALF else 2) * error(want) + atol / 10
    assert error(got) <= limit, f"{where}: error {error(got):.3g}, at most {limit:.3g} allowed"


def widen(value: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, value)


def samples_of(
    op: OpInfo, dtype: torch.dtype, requires_grad: bool = False
) -> Iterator[SampleInput]:
    """The first sample and a later one: the plainest, and one with options."""
    found = []
    for i, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=requires_grad)):
        if i in (0, 5) or (i < 5 and i == 1):
            found.append(sample)
        if i >= 5:
            break
    if len(found) > SAMPLES:
        found = [found[0], found[-1]]
    yield from found


def on_guarded_pages(sample: SampleInput, side: str) -> SampleInput:
    move = lambda t: guarded(t, side) if t.numel() < 1 << 20 else t  # noqa: E731
    return SampleInput(
        tree_map_only(torch.Tensor, move, sample.input),
        args=tree_map_only(torch.Tensor, move, sample.args),
        kwargs=tree_map_only(torch.Tensor, move, sample.kwargs),
    )


def with_its_storage_copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at the same place of a copy of the storage (as_strided may look beyond a view)."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized:
        return tensor.clone()
    empty = torch.empty(0, dtype=tensor.dtype)
    storage = tensor.untyped_storage().clone()
    copy = empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    copy = copy.conj() if tensor.is_conj() else copy
    return copy._neg_view() if tensor.is_neg() else copy


def cases() -> list[Any]:
    rows = []
    for op in op_db:
        for dtype in DTYPES:
            if op.supports_dtype(dtype, "cpu"):
                name = f"{op.formatted_name}-{str(dtype).removeprefix('torch.')}"
                rows.append(pytest.param(op, dtype, id=name))
    return rows


def run_both(op: OpInfo, sample: SampleInput, side: str) -> None:
    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return op.op(input, *args, **kwargs)

    if "as_strided" not in op.name:  # its offsets count from the start of the storage
        sample = on_guarded_pages(sample, side)
    copy = tree_map_only(
        torch.Tensor, with_its_storage_copied, (sample.input, sample.args, sample.kwargs)
    )
    try:
        torch.manual_seed(0)
        want = call(*copy)
    except Exception as error:
        pytest.skip(f"eager refuses the sample: {type(error).__name__}")
    torch._dynamo.reset()
    torch.manual_seed(0)
    got = torch.compile(call, backend="helion")(sample.input, sample.args, sample.kwargs)
    if is_random(op):
        for g, w in zip(tensors(got), tensors(want), strict=True):
            assert (g.dtype, g.shape) == (w.dtype, w.shape)
        return

    def exact() -> Any:
        try:
            return call(*widen((sample.input, sample.args, sample.kwargs)))
        except Exception:  # no float64 kernel: eager's own result is the only measure
            return None

    judge(got, want, exact, op.name)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(autouse=True)
def outputs_on_guarded_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of compiled programs begin, or end, at an unmapped page and hold poison at first."""
    sides = itertools.cycle(("end", "start"))
    plain = _C.empty_strided

    def empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
        if dtype.is_complex or math.prod(size) >= 1 << 20:
            return plain(size, stride, dtype)
        return guarded_empty(tuple(size), tuple(stride), dtype, next(sides))

    def allocate(wanted: Any) -> tuple[torch.Tensor, ...]:
        return tuple(empty_strided(*one) for one in wanted)

    monkeypatch.setattr(_C, "empty_strided", empty_strided)
    monkeypatch.setattr(_C, "allocate", allocate)


@pytest.mark.parametrize("op,dtype", cases())
def test_forward(op: OpInfo, dtype: torch.dtype) -> None:
    for number, sample in enumerate(samples_of(op, dtype)):
        run_both(op, sample, ("end", "start")[number % 2])


NATIVE = pathlib.Path(__file__).with_name("native_ops.txt").read_text().split()
"""Operators whose forward is a kernel of ours (written by tools/list_native_ops.py)."""


def differentiable() -> list[Any]:
    known = {op.formatted_name: op for op in op_db}
    return [
        pytest.param(op, id=name)
        for name in NATIVE
        if (op := known.get(name)) is not None
        and op.supports_autograd
        and op.supports_dtype(torch.float32, "cpu")
        and not is_random(op)
    ]


def gradients(op: OpInfo, sample: SampleInput, call: Callable[..., Any]) -> tuple[Any, Any]:
    """The outputs of `call` on the sample, and the gradients of a fixed weighting of them."""
    leaves = [t for t in tensors((sample.input, sample.args, sample.kwargs)) if t.requires_grad]
    out = call(sample.input, sample.args, sample.kwargs)
    if op.output_process_fn_grad is not None:
        out = op.output_process_fn_grad(out)
    generator = torch.Generator().manual_seed(2)
    total = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype)).sum()
        for o in tensors(out)
        if o.requires_grad
    )
    if not isinstance(total, torch.Tensor):
        pytest.skip("no output of the sample depends on an input that has a gradient")
    return out, torch.autograd.grad(total, leaves, allow_unused=True)


@pytest.mark.parametrize("op", differentiable())
def test_backward(op: OpInfo) -> None:
    def call(input: Any, args: Any, kwargs: Any) -> Any:
        return op.op(input, *args, **kwargs)

    for sample in samples_of(op, torch.float32, requires_grad=True):
        try:
            _, want = gradients(op, sample, call)
        except Exception as error:
            pytest.skip(f"eager refuses the sample: {type(error).__name__}")
        torch._dynamo.reset()
        _, got = gradients(op, sample, torch.compile(call, backend="helion"))

        def exact(sample: SampleInput = sample) -> Any:
            wide = SampleInput(
                *(
                    tree_map_only(
                        torch.Tensor,
                        lambda t: (
                            t.detach().double().requires_grad_(t.requires_grad)
                            if t.is_floating_point()
                            else t
                        ),
                        part,
                    )
                    for part in (sample.input, sample.args, sample.kwargs)
                )
            )
            return gradients(op, wide, call)[1]

        assert [g is None for g in got] == [w is None for w in want]
        judge(
            [g for g in got if g is not None],
            [w for w in want if w is not None],
            lambda exact=exact: [g for g in exact() if g is not None],
            op.name,
        )
