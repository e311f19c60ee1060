"""The host part of a kernel's source: signature, sizes, outputs, block sizes, results.

In: a `Printer`. Out: lines. Used by `printer.py` only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torch_helion.ir.graph import Kernel, Op, Value, loop_blocks
from torch_helion.ir.printer_state import WIDTH, Printer
from torch_helion.ir.source_text import annotation
from torch_helion.ir.types import Affine, Axis, Buffer, Size, block_symbol, contiguous_strides

_ANY_SIZE = 1024
"""The upper bound of a block whose axis has no size on the host."""


def float_arguments(kernel: Kernel) -> dict[str, list[Op]]:
    """Sizes that are only the bits of a float64, with the ops that take them as such."""
    uses: dict[str, list[Op]] = {s.name: [] for s in kernel.sizes}
    plain = _symbols_elsewhere(kernel)
    takers: dict[Value, list[Op]] = {}
    for op in kernel.body.walk():
        for value in op.operands:
            takers.setdefault(value, []).append(op)
    for op in kernel.body.walk():
        if op.kind != "size" or str(op.attrs["expr"]) not in uses:
            plain |= _names(_spoken_of(op))
            continue
        users = takers.get(op.result, [])
        bits = all(o.kind == "bitcast" and o.attrs["dtype"] is torch.float64 for o in users)
        if bits and users:
            uses[str(op.attrs["expr"])] += users
        else:
            plain.add(str(op.attrs["expr"]))
    return {name: found for name, found in uses.items() if found and name not in plain}


def _symbols_elsewhere(kernel: Kernel) -> set[str]:
    sizes: list[Size] = [s for b in kernel.buffers for s in (*b.shape, *b.strides)]
    return _names([*sizes, *(a.size for a in kernel.axes().values())])


def _names(sizes: Iterable[Size]) -> set[str]:
    symbols = (s for size in sizes for s in getattr(size, "free_symbols", ()))
    return {str(s) for s in symbols}


def _spoken_of(op: Op) -> list[Size]:
    """The sizes in an op's attributes."""
    sizes = [op.attrs[name] for name in ("expr", "begin", "end", "step") if name in op.attrs]
    for expr in op.attrs.get("index", ()):
        if isinstance(expr, Affine):
            sizes += [expr.offset, *(c for _, c in expr.terms)]
    return sizes


def signature(p: Printer) -> None:
    inputs = [b for b in p.kernel.arguments if b.is_input]
    p.float_arguments = float_arguments(p.kernel)
    arguments = [f"{b.name}: {annotation(b.dtype, b.shape)}" for b in inputs]
    for name in _size_names(p):
        if not _size_source(p, name):
            arguments.append(f"{name}: {'float' if name in p.float_arguments else 'int'}")
    outputs = [annotation(b.dtype, b.shape) for b in _outputs(p)]
    result = f"tuple[{', '.join(outputs)}]" if len(outputs) > 1 else (outputs or ["None"])[0]
    p.line("@torch_helion.kernel")
    text = f"def {p.kernel.name}({', '.join(arguments)}) -> {result}:"
    if len(text) <= WIDTH:
        p.line(text)
    else:
        p.line(f"def {p.kernel.name}(")
        for argument in arguments:
            p.line(f"    {argument},")
        p.line(f") -> {result}:")
    p.depth = 1


def _size_names(p: Printer) -> list[str]:
    return [s.name for s in p.kernel.sizes]


def _outputs(p: Printer) -> list[Buffer]:
    return [b for b in p.kernel.arguments if b.role == "out"]


def _size_source(p: Printer, name: str) -> str:
    """Where an argument shows the size: `x.size(0)`, `x.stride(1)`, or nowhere."""
    for method in ("size", "stride"):
        for buffer in p.kernel.arguments:
            sizes = buffer.shape if method == "size" else buffer.strides
            for dim, size in enumerate(sizes if buffer.is_input else ()):
                if str(size) == name:
                    return f"{buffer.name}.{method}({dim})"
    return ""


def preparations(p: Printer) -> None:
    """Sizes, outputs, block sizes that have names, workspaces."""
    for buffer in p.kernel.arguments:
        if buffer.is_input and not _is_contiguous(buffer):
            strides = ", ".join(map(p.size, buffer.strides))
            p.line(f"# {buffer.name} has strides ({strides})")
        if buffer.role == "inout":
            p.line(f"# {buffer.name} is written in place")
    extents = _names(a.size for a in p.axes.values() if a.kind == "full")
    for name in _size_names(p):
        source = _size_source(p, name)
        if source:
            p.line(f"{name} = {source}")
        elif name in extents:  # shapes on the device are constants or sizes of tensors
            p.line(f"{name} = hl.specialize({name})")
    for buffer in _outputs(p):
        p.line(f"{buffer.name} = {_new_tensor(p, buffer)}")
    for name in p.named_blocks:
        p.line(f"{block_symbol(name)} = hl.register_block_size({_upper_bound(p, name)})")
    for buffer in p.kernel.buffers:
        if buffer.role == "workspace":
            p.line(f"{buffer.name} = {_new_tensor(p, buffer)}", "workspace of this call")


def _upper_bound(p: Printer, name: str) -> str:
    """The size of an axis that the block cuts, as far as the host knows it."""
    for axis in _axes_with_block(p.kernel, name):
        if getattr(axis.size, "free_symbols", set()) <= set(p.kernel.sizes):
            return p.size(axis.size)
    return str(_ANY_SIZE)


def _axes_with_block(kernel: Kernel, name: str) -> list[Axis]:
    found = []
    for op in kernel.body.walk():
        if op.kind == "loop":
            pairs = zip(op.attrs["axes"], loop_blocks(op), strict=True)
            found += [axis for axis, block in pairs if block == block_symbol(name)]
    return found


def _new_tensor(p: Printer, buffer: Buffer) -> str:
    shape = ", ".join(map(p.size, buffer.shape))
    device = next((f", device={b.name}.device" for b in p.kernel.arguments if b.is_input), "")
    tail = f"dtype={buffer.dtype}{device})"
    if _is_contiguous(buffer):
        return f"torch.empty([{shape}], {tail}"
    strides = ", ".join(map(p.size, buffer.strides))
    return f"torch.empty_strided([{shape}], [{strides}], {tail}"


def _is_contiguous(buffer: Buffer) -> bool:
    """PyTorch's strides count a dimension as at least one element: `max(1, n)`."""
    strides = tuple(_without_maxima(s) for s in buffer.strides)
    return strides == contiguous_strides(buffer.shape)


def _without_maxima(size: Size) -> Size:
    if isinstance(size, int) or not size.args:
        return size
    args = [_without_maxima(a) for a in size.args]
    if type(size).__name__ == "Max" and len(args) == 2 and 1 in args:
        return args[1] if args[0] == 1 else args[0]
    return size.func(*args)


def results(p: Printer) -> None:
    names = [b.name for b in _outputs(p)]
    if names:
        p.line(f"return {', '.join(names)}")
