"""What a lowering rule is, and the context that it is called with.

In: an ATen overload, operands that are tile values already aligned by axis name, Python scalars and
sizes. Out: tile values. Capture (from FX nodes) and the front end (from Python calls) both go
through here.

Three kinds of rules:

`compute`   rule(cx, *args, **kwargs) -> Value | tuple[Value, ...]. Pointwise, reductions, creation,
random.
            A tensor argument arrives as a `Value`; scalars as Python numbers; symbolic sizes as
            sympy expressions; lists as lists. The result's dtype must be `cx.outputs[i].dtype`.
`view`      rule(cx, out_index) -> tuple[Read, ...]: no code, only where each element is read from.
A rule that cannot do a call raises `exc.LoweringError` with a sentence: the node is then left to
the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._ops import OpOverload

from torch_helion import exc
from torch_helion.ir.builder import Builder
from torch_helion.ir.types import Affine, Axis, Size

Kind = Literal["pointwise", "reduction", "creation", "random", "view", "gather", "product"]


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor operand or result: dtype, sizes, and the kernel axes of each
    dimension.

    `dims[d]` are the axes whose row-major product is dimension d, outer to inner; () where the
    extent is 1. `index[d]`, where given, is the position along dimension d that is asked for: what
    a rule that depends on positions (arange, tril, random numbers) reads. Without it the position
    is the row-major number in `dims[d]`.
    """

    dtype: torch.dtype
    shape: tuple[Size, ...]
    dims: tuple[tuple[Axis, ...], ...] = ()
    index: tuple[Affine, ...] = ()


@dataclass
class Context:
    """One call of a rule: the builder, the operands' and results' specs, the arguments as PyTorch
    sees them.

    `args`/`kwargs` hold fake (or meta) tensors in the place of tile values, for dtype promotion by
    PyTorch's own rules; `inputs[i]` is the spec of the i-th *positional* argument where that is a
    tensor, else None.
    """

    b: Builder
    overload: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the first result."""
        return self.outputs[0].dtype

    def reduced_axes(self, argument: int, dims: Sequence[int] | int | None) -> tuple[Axis, ...]:
        """The kernel axes of dimensions `dims` (None or empty: all) of positional tensor argument
        `argument`.
        """
        spec = self.inputs[argument]
        assert spec is not None, f"argument {argument} of {self.overload} is not a tensor"
        rank = len(spec.shape)
        if dims is None or (not isinstance(dims, int) and len(dims) == 0):
            dims = range(rank)
        elif isinstance(dims, int):
            dims = (dims,)
        return tuple(axis for d in dims for axis in (spec.dims[d % rank] if rank else ()))

    def reduced_count(self, argument: int, dims: Sequence[int] | int | None) -> Size:
        """How many elements `reduced_axes` covers, as a size expression."""
        count: Size = 1
        for axis in self.reduced_axes(argument, dims):
            count = count * axis.size
        return count

    def refuse(self, why: str) -> exc.LoweringError:
        """The exception to raise when this call cannot be lowered."""
        dtypes = dict.fromkeys(
            spec.dtype for spec in (*self.inputs, *self.outputs) if spec is not None
        )
        return exc.LoweringError(
            self.overload, ", ".join(str(d) for d in dtypes) or "no tensor", why
        )


Rule = Callable[..., Any]


@dataclass(frozen=True)
class Lowering:
    """One row: an overload, what kind of rule it has, the rule.

    `whole`, called with the rank of the first tensor and the call's arguments, names the dimensions
    of that tensor that a rule folds: their axes must be whole inside one grid step (not cut into
    blocks).
    """

    overload: OpOverload
    kind: Kind
    rule: Rule
    whole: Callable[..., tuple[int, ...]] | None = None


def table(*families: Iterable[Lowering]) -> dict[OpOverload, Lowering]:
    """Join rows into one table; two rows for one overload are a mistake."""
    rows: dict[OpOverload, Lowering] = {}
    for family in families:
        for row in family:
            if row.overload in rows:
                raise exc.LoweringError(f"two lowerings for {row.overload}")
            rows[row.overload] = row
    return rows
