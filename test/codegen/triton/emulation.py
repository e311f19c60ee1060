"""Triton's interpreter, made to compute what its compiled code computes.

Importing this module starts the interpreter, so it is imported in a process of its own. What is
changed, and why:

- casts to bfloat16 and 8-bit floats truncate there: PyTorch's rounding takes their place;
- `dot` of bfloat16 multiplies the bits as integers: operands are converted first;
- `fma` rounds twice; reductions and scans by functions go lane by lane, in one order, and take
  seconds: here whole halves are joined, which also shows a function that must not be reordered;
- functions of libdevice do not exist: PyTorch's take their place;
- 3.9 takes the result of a comparison for a number as wide as what was compared when it is spread
  over a block, and refuses it as a mask: it stays a truth value;
- assertions are on, as in code that is compiled with debug=True.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter as ti

from torch_helion.ir.pointwise_functions import POINTWISE_FUNCTIONS

_RAW = {  # held as integers there
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
_BITS = {1: (np.uint8, torch.uint8), 2: (np.uint16, torch.int16)}
_PLAIN = {tl.float16: torch.float16, tl.float32: torch.float32, tl.float64: torch.float64}


def _to_torch(handle: ti.TensorHandle) -> torch.Tensor:
    dtype = handle.dtype.scalar
    data = np.ascontiguousarray(handle.data)
    if dtype in _RAW:
        width = data.dtype.itemsize
        signed = data.view(np.int16 if width == 2 else np.uint8)
        return torch.from_numpy(signed.copy()).view(_RAW[dtype])
    return torch.from_numpy(data.copy())


def _from_torch(tensor: torch.Tensor, dtype: tl.dtype) -> ti.TensorHandle:
    dtype = dtype.scalar
    if dtype in _RAW:
        array, bits = _BITS[tensor.element_size()]
        data = tensor.contiguous().view(bits).numpy().view(array)
    else:
        data = tensor.numpy()
    return ti.TensorHandle(data, dtype)


def _cast(self, source, dst_type, *rest):  # type: ignore[no-untyped-def]
    src, dst = source.dtype.scalar, dst_type.scalar
    if src in _RAW or dst in _RAW:
        target = _RAW.get(dst) or _PLAIN[dst]
        return _from_torch(_to_torch(source).to(target), dst)
    return ti.TensorHandle(source.data.astype(ti._get_np_dtype(dst_type)), dst)


def _dot(self, a, b, d, *rest):  # type: ignore[no-untyped-def]
    wide = torch.int32 if d.dtype.scalar == tl.int32 else _PLAIN[d.dtype.scalar]
    left, right = (_to_torch(x).to(wide) for x in (a, b))
    return _from_torch(torch.matmul(left, right) + _to_torch(d), d.dtype)


def _fma(self, x, y, z):  # type: ignore[no-untyped-def]
    return _from_torch(POINTWISE_FUNCTIONS["fma"](*map(_to_torch, (x, y, z))), z.dtype)


def _joined(combine, dtypes, left, right):  # type: ignore[no-untyped-def]
    """The function on arrays."""

    def tensors(arrays):  # type: ignore[no-untyped-def]
        return [
            tl.tensor(ti.TensorHandle(a, t.scalar), tl.block_type(t.scalar, list(a.shape)))
            for a, t in zip(arrays, dtypes, strict=True)
        ]

    results = combine.fn(*tensors(left), *tensors(right))
    results = results if isinstance(results, tuple) else (results,)
    return [r.handle.data for r in results]


def _reduce(self, values):  # type: ignore[no-untyped-def]
    """Lane i with lane i + half, as threads do: only for functions that commute."""
    dtypes = [v.dtype for v in values]
    arrays = [np.moveaxis(v.handle.data, self.axis, 0) for v in values]
    while len(arrays[0]) > 1:
        half = len(arrays[0]) // 2
        halves = [a[:half] for a in arrays], [a[half:] for a in arrays]
        arrays = _joined(self.combine_fn, dtypes, *halves)
    arrays = [a[0] for a in arrays]
    if self.keep_dims:
        arrays = [np.expand_dims(a, self.axis) for a in arrays]
    return [self.to_tensor(a, t.scalar) for a, t in zip(arrays, dtypes, strict=True)]


def _scan(self, values):  # type: ignore[no-untyped-def]
    dtypes = [v.dtype for v in values]
    arrays = [np.moveaxis(v.handle.data, self.axis, 0).copy() for v in values]
    step = 1
    while step < len(arrays[0]):
        before = [np.roll(a, step, 0) for a in arrays]
        new = _joined(self.combine_fn, dtypes, before, arrays)
        for array, part in zip(arrays, new, strict=True):
            array[step:] = part[step:]
        step *= 2
    arrays = [np.moveaxis(a, 0, self.axis) for a in arrays]
    return [self.to_tensor(a, t.scalar) for a, t in zip(arrays, dtypes, strict=True)]


_SAME_NAME = """
expm1 log10 log1p tan tanh sinh cosh asin acos atan asinh acosh atanh erfc erfinv lgamma pow atan2
hypot trunc copysign nextafter fmod
"""
_LIBDEVICE = {
    **{name: name for name in _SAME_NAME.split()},
    "nearbyint": "round",
    "cyl_bessel_i0": "i0",
    "cyl_bessel_i1": "i1",
}


def _device_function(name: str):  # type: ignore[no-untyped-def]
    def call(*operands):  # type: ignore[no-untyped-def]
        operands = [ti.interpreter_semantic.to_tensor(x) for x in operands]
        dtype = operands[0].dtype
        values = torch.broadcast_tensors(*(_to_torch(x.handle) for x in operands))
        result = POINTWISE_FUNCTIONS[name](*values)
        shaped = next((x.type for x in operands if x.shape), operands[0].type)
        if any(x.shape for x in operands):
            shaped = tl.block_type(dtype.scalar, list(result.shape))
        return tl.tensor(_from_torch(result, dtype), shaped)

    return call


def _all_ones(self, type):  # type: ignore[no-untyped-def]
    """-1 of unsigned integers, too."""
    dtype = ti._get_np_dtype(type)
    return ti.TensorHandle(np.array([-1], np.int64).astype(dtype), type.scalar)


_splat = ti.InterpreterBuilder.create_splat


def _splat_of_bools(self, ret_ty, arg):  # type: ignore[no-untyped-def]
    if arg.data.dtype == np.bool_:
        arg = ti.TensorHandle(arg.data, tl.int1)
    return _splat(self, ret_ty, arg)


def install() -> None:
    builder = ti.InterpreterBuilder
    for name in dir(builder):
        if name in ("create_fp_ext", "create_fp_trunc", "create_fp_to_fp", "cast_impl"):
            setattr(builder, name, _cast)
    builder.create_splat = _splat_of_bools
    builder.create_dot = _dot
    builder.create_fma = _fma
    builder.get_all_ones_value = _all_ones
    ti.ReduceOps.generic_reduce = _reduce
    ti.ScanOps.generic_scan = _scan
    options = ti.InterpreterOptions(debug=True, sanitize_overflow=False)
    ti.interpreter_builder.options = options
    for name, function in _LIBDEVICE.items():
        setattr(libdevice, name, _device_function(function))


install()
assert triton.knobs.runtime.interpret
