"""Weights of products that a graph makes out of bytes: integers of 8 or 4 bits, zeros and scales.

In: a post-grad graph. Out: for each product, the `Weight` that its second operand is, if it is one:

    (integer - zero) * scale        zero, scale: for each output, or each output and group of inputs

No spelling is looked for. The operand is followed upwards element by element: views, reshapes,
permutations and concatenations only say which element of what is read, as digits of the numbers of
the output and of the input (`_Digit`). What is computed from one byte is a function of 256 values:
it is evaluated on all of them, and is a weight's integer if the 256 results are those of a
`Packing`. So a shift by another amount, a mask of other bits or a wrapping subtraction need no
rules of their own. In the end the operators themselves are run on a few rows of random numbers and
compared with what was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch_helion.capture.mutation import Mutations
from torch_helion.capture.node_facts import is_tensor, unsupported_tensor
from torch_helion.capture.sizes import shape_of, strides_of
from torch_helion.lowering.quantized import Packing

aten, prims = torch.ops.aten, torch.ops.prims
BYTES = (torch.int8, torch.uint8)
NUMBERS = (torch.float32, torch.bfloat16, torch.float16)
WIDE = (torch.int16, torch.int32, torch.int64)
"""In which differences of bytes do not wrap."""
LEAST_GROUP = 32
ROWS = 3
"""Of the weight on which a match is tried."""


@dataclass(frozen=True)
class Numbers:
    """A tensor of zeros or scales: its strides along outputs and groups."""

    node: fx.Node
    n: int
    group: int | None
    """None: one number for each output."""


@dataclass(frozen=True)
class Weight:
    """The second operand of a product."""

    nodes: tuple[fx.Node, ...]
    """What computes it, in order; the last one is the operand."""
    bytes: fx.Node
    n_stride: int
    outputs: int
    inputs: int
    packing: Packing
    group: int
    """Neighbours along the inputs that share numbers; as many as inputs: all."""
    scale: Numbers | None = None
    zero: Numbers | None = None

    @property
    def is_converted_only(self) -> bool:
        """Whether it is the bytes themselves."""
        return self.scale is None and self.zero is None and self.packing == Packing()

    @property
    def tensors(self) -> tuple[fx.Node, ...]:
        """What a kernel reads."""
        return (self.bytes, *(x.node for x in (self.scale, self.zero) if x is not None))


class NoWeight(Exception):
    """Why an operand is no quantised weight."""


def find(graph: fx.Graph, products: Sequence[fx.Node]) -> dict[fx.Node, Weight]:
    """The products of a graph whose second operand is a quantised weight."""
    found: dict[fx.Node, Weight] = {}
    mutations = Mutations(graph)
    for product in products:
        try:
            found[product] = _weight(product, mutations)
        except NoWeight:
            continue
    return found


def _weight(product: fx.Node, mutations: Mutations) -> Weight:
    root = product.args[-1]
    if not isinstance(root, fx.Node) or root.op != "call_function" or root in product.args[:-1]:
        raise NoWeight("nothing is computed")
    if root.meta["val"].dtype not in (torch.float32, torch.bfloat16):
        raise NoWeight("another dtype")
    shape = shape_of(root)
    if not all(isinstance(n, int) and n > 1 for n in shape):
        raise NoWeight("sizes that are not known")
    inputs, outputs = (int(n) for n in shape)
    chain = _chain(product, root)
    for node in chain:
        if mutations.forbids(node) or unsupported_tensor(node.meta["val"]):
            raise NoWeight("changed in place, or of another kind")
    pull = _Pull(chain)
    index = ((_Digit("k", 1, inputs),), (_Digit("n", 1, outputs),))
    value = pull.value(root, index)
    match = _Reader(inputs, outputs).weight(value)
    nodes = tuple(node for node in product.graph.nodes if node in chain)
    weight = Weight(nodes, *match)
    if any(unsupported_tensor(node.meta["val"]) for node in weight.tensors):
        raise NoWeight("a tensor of another kind")
    _check(weight, pull)
    return weight


def _chain(product: fx.Node, root: fx.Node) -> dict[fx.Node, None]:
    """The operators that serve this operand only."""
    chain: dict[fx.Node, None] = {}
    before = product.prev
    while before.op != "root":
        mine = before is root or (before.users and all(u in chain for u in before.users))
        if mine and set(before.users) <= {*chain, product} and _is_read(before):
            chain[before] = None
        before = before.prev
    if root not in chain:
        raise NoWeight("others need it as well, or it is an operator that is not read")
    return chain


# -- which element is read ----------------------------------------------------------------


@dataclass(frozen=True)
class _Digit:
    """(number of the output or input // step) % extent."""

    axis: str
    step: int
    extent: int


_Place = tuple[_Digit, ...]
"""Digits, outer to inner; none: the only element."""
_Index = tuple[_Place, ...]


@dataclass(frozen=True)
class _Load:
    node: fx.Node
    index: _Index


@dataclass(frozen=True)
class _Apply:
    node: fx.Node
    operands: tuple[Any, ...]
    """Values of its tensor operands, in order."""


@dataclass(frozen=True)
class _Select:
    """One of two values, by a digit that is 0 or 1."""

    digit: _Digit
    parts: tuple[Any, Any]


def _extent(place: _Place) -> int:
    return math.prod(d.extent for d in place)


def _split(place: _Place, sizes: Sequence[int]) -> _Index:
    """The digits of a row-major number as those of its coordinates in a shape."""
    left = list(place)
    found: list[_Place] = []
    for size in reversed(sizes):
        taken: list[_Digit] = []
        while _extent(tuple(taken)) < size:
            if not left:
                raise NoWeight("a reshape of other elements")
            digit, needed = left.pop(), size // _extent(tuple(taken))
            if needed % digit.extent == 0:
                taken.insert(0, digit)
            elif digit.extent % needed == 0:
                taken.insert(0, _Digit(digit.axis, digit.step, needed))
                left.append(_Digit(digit.axis, digit.step * needed, digit.extent // needed))
            else:
                raise NoWeight("a reshape that cuts across")
        if _extent(tuple(taken)) != size:
            raise NoWeight("a reshape that cuts across")
        found.insert(0, _joined(taken))
    if left:
        raise NoWeight("a reshape of other elements")
    return tuple(found)


def _joined(digits: Sequence[_Digit]) -> _Place:
    """Neighbouring digits of one number as one."""
    out: list[_Digit] = []
    for digit in digits:
        if digit.extent == 1:
            continue
        last = out[-1] if out else None
        if last and last.axis == digit.axis and last.step == digit.step * digit.extent:
            out[-1] = _Digit(digit.axis, digit.step, digit.extent * last.extent)
        else:
            out.append(digit)
    return tuple(out)


_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_SAME = (aten.clone.default, aten.alias.default, aten.detach.default)
_CONVERSIONS = (prims.convert_element_type.default, aten._to_copy.default)
_PERMUTATIONS = (aten.permute.default, aten.t.default, aten.transpose.int)
_SQUEEZES = (aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
_VIEWS = (
    *_RESHAPES,
    *_SAME,
    *_PERMUTATIONS,
    *_SQUEEZES,
    aten.unsqueeze.default,
    aten.expand.default,
)
_POINTWISE = frozenset((
    *_CONVERSIONS,
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.add.Scalar, aten.sub.Scalar,
    aten.mul.Scalar, aten.neg.default,
    aten.bitwise_and.Scalar, aten.bitwise_or.Scalar, aten.bitwise_xor.Scalar,
    aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor,
    aten.__rshift__.Scalar, aten.__lshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar,
    aten.bitwise_left_shift.Tensor_Scalar, aten.__and__.Scalar,
    aten.remainder.Scalar, aten.div.Tensor_mode, aten.floor_divide.default,
))  # fmt: skip


def _is_read(node: fx.Node) -> bool:
    known = node.target in _VIEWS or node.target in _POINTWISE or node.target is aten.cat.default
    return node.op == "call_function" and is_tensor(node) and known


class _Pull:
    """Follows elements through the operators of a chain."""

    def __init__(self, chain: Mapping[fx.Node, None]) -> None:
        self.chain = chain
        self.index: dict[fx.Node, _Index] = {}

    def value(self, node: fx.Node, index: _Index) -> Any:
        if self.index.setdefault(node, index) != index:
            raise NoWeight("one tensor is read at two places")
        if node not in self.chain:
            return _Load(node, index)
        if node.target in _VIEWS:
            (source,) = (n for n in node.all_input_nodes if is_tensor(n))
            return self.value(source, self._through(node, source, index))
        if node.target is aten.cat.default:
            return self._cat(node, index)
        operands = [n for n in node.args if isinstance(n, fx.Node)]
        shape = shape_of(node)
        return _Apply(node, tuple(self._aligned(n, shape, index) for n in operands))

    def _aligned(self, node: fx.Node, shape: Sequence[Any], index: _Index) -> Any:
        own = shape_of(node)
        tail = index[len(shape) - len(own) :]
        return self.value(node, tuple(() if n == 1 else p for n, p in zip(own, tail, strict=True)))

    def _through(self, node: fx.Node, source: fx.Node, index: _Index) -> _Index:
        """Where a view reads its operand."""
        shape: tuple[Any, ...] = shape_of(source)
        target = node.target
        if target in _SAME:
            return index
        if target in _RESHAPES:
            return _split(tuple(d for place in index for d in place), shape)
        rank = len(shape)
        if target is aten.unsqueeze.default:
            at = int(node.args[1]) % (rank + 1)  # type: ignore[arg-type]
            return (*index[:at], *index[at + 1 :])
        if target is aten.expand.default:
            tail = index[len(index) - rank :]
            return tuple(() if n == 1 else p for n, p in zip(shape, tail, strict=True))
        if target in _SQUEEZES:
            places = iter(index)
            dropped = _squeezed(node, shape)
            return tuple(() if d in dropped else next(places) for d in range(rank))
        order = list(range(rank))
        if target is aten.permute.default:
            order = [int(d) % rank for d in node.args[1]]  # type: ignore[arg-type, union-attr, misc]
        elif rank == 2 and target is aten.t.default:
            order = [1, 0]
        elif target is aten.transpose.int:
            i, j = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
            order[i], order[j] = order[j], order[i]
        return tuple(index[order.index(d)] for d in range(rank))

    def _cat(self, node: fx.Node, index: _Index) -> Any:
        """Two parts of equal length: which one, and where in it."""
        parts: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim = int(dim) % len(index)
        sizes = {shape_of(part) for part in parts}
        if len(parts) != 2 or len(sizes) != 1:
            raise NoWeight("a concatenation of other than two equal parts")
        length = sizes.pop()[dim]
        which, inner = _split(index[dim], (2, length))
        if len(which) != 1:
            raise NoWeight("parts that are no digit")
        below = (*index[:dim], inner, *index[dim + 1 :])
        return _Select(which[0], tuple(self.value(part, below) for part in parts))  # type: ignore[arg-type]


def _squeezed(node: fx.Node, shape: Sequence[Any]) -> set[int]:
    rank = len(shape)
    if node.target is aten.squeeze.default:
        return {d for d in range(rank) if shape[d] == 1}
    given: Any = node.args[1]
    dims = given if isinstance(given, list | tuple) else [given]
    return {int(d) % rank for d in dims if shape[int(d) % rank] == 1}


# -- what it is ----------------------------------------------------------------


def _dtype(value: Any) -> torch.dtype:
    if isinstance(value, _Select):
        return _dtype(value.parts[0])
    return value.node.meta["val"].dtype  # type: ignore[no-any-return]


def _leaves(value: Any) -> Iterator[_Load]:
    if isinstance(value, _Load):
        yield value
    for part in value.operands if isinstance(value, _Apply) else ():
        yield from _leaves(part)
    for part in value.parts if isinstance(value, _Select) else ():
        yield from _leaves(part)


class _Reader:
    """Reads a value as (integer - zero) * scale."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.inputs, self.outputs = inputs, outputs

    def weight(self, value: Any) -> tuple[Any, ...]:
        """The fields of a `Weight` behind its nodes."""
        value = _unconverted(value)
        scale = zero = None
        parts = self._apart(value, aten.mul.Tensor)
        if parts is not None:
            value, scale = _unconverted(parts[0]), parts[1]
        inner = _exact(value)
        parts = self._apart(inner, aten.sub.Tensor)
        if parts is not None:
            value, zero = _exact(parts[0]), parts[1]
        groups = {x[1] for x in (scale, zero) if x is not None}
        if len(groups) > 1:
            raise NoWeight("zeros and scales of different groups")
        bytes, n_stride, packing = self._integers(value)
        group = groups.pop() if groups else self.inputs
        if group < LEAST_GROUP or (group % LEAST_GROUP and group != self.inputs):
            raise NoWeight("groups of other than a few vectors")
        if packing.halves and group < self.inputs and self.inputs // 2 % group:
            raise NoWeight("a group in both halves")
        numbers = (x[0] if x is not None else None for x in (scale, zero))
        return (bytes, n_stride, self.outputs, self.inputs, packing, group, *numbers)

    def _apart(self, value: Any, target: Any) -> tuple[Any, tuple[Numbers, int]] | None:
        """A value as another one and numbers, joined by an operator."""
        if not isinstance(value, _Apply) or value.node.target is not target:
            return None
        if len(value.operands) != 2 or value.node.kwargs:
            return None
        left, right = value.operands
        dtype = _dtype(value)
        if not dtype.is_floating_point and dtype not in WIDE:
            return None
        for inner, other in ((left, right), (right, left))[: 1 if target is aten.sub.Tensor else 2]:
            numbers = self._numbers(_exact(other))
            if numbers is None:
                continue
            if dtype.is_floating_point or numbers[0].node.meta["val"].dtype in BYTES:
                return inner, numbers
        return None

    def _numbers(self, value: Any) -> tuple[Numbers, int] | None:
        """Numbers of each output (and group), and the length of a group."""
        if not isinstance(value, _Load) or _dtype(value) not in (*NUMBERS, *BYTES, torch.int32):
            return None
        strides = strides_of(value.node)
        n = step = None
        group = self.inputs
        for place, stride in zip(value.index, strides, strict=True):
            for digit in place:
                if len(place) != 1 or not isinstance(stride, int):
                    return None
                whole = digit.step * digit.extent
                if digit == _Digit("n", 1, self.outputs) and n is None:
                    n = stride
                elif digit.axis == "k" and step is None and whole == self.inputs and digit.step > 1:
                    group, step = digit.step, stride
                else:
                    return None
        return (Numbers(value.node, n, step), group) if n is not None else None

    # -- integers ----------------------------------------------------------------

    def _integers(self, value: Any) -> tuple[fx.Node, int, Packing]:
        leaves = set(_leaves(value))
        if len(leaves) != 1 or _dtype(next(iter(leaves))) not in BYTES:
            raise NoWeight("no integers of one tensor of bytes")
        (leaf,) = leaves
        digits = {d for d in _selectors(value)}
        if len(digits) > 1:
            raise NoWeight("parts of parts")
        digit = digits.pop() if digits else None
        offsets = self._strides(leaf)
        tables = [_table(value, leaf, part) for part in ((0, 1) if digit else (0,))]
        bits = 4 if digit else 8
        halves = False
        if digit is None:
            want = {1: self.inputs}
        elif digit == _Digit("k", 1, 2):
            want = {2: self.inputs // 2}
        elif digit == _Digit("k", self.inputs // 2, 2):
            want, halves = {1: self.inputs // 2}, True
        else:
            raise NoWeight("nibbles in another order")
        ((first, length),) = want.items()
        n_stride = offsets.pop("n", None)
        at, done = first, 1
        while done < length:
            step = offsets.pop((at,), None)  # type: ignore[arg-type]
            if step is None or step[0] * first != at:
                raise NoWeight("bytes in another order")
            at, done = at * step[1], done * step[1]
        if offsets or n_stride is None or done != length:
            raise NoWeight("bytes in another order")
        return leaf.node, n_stride, _packing(tables, bits, halves, _dtype(leaf))

    def _strides(self, leaf: _Load) -> dict[Any, Any]:
        """Of bytes: the stride of outputs at "n"; of each digit of inputs, by its step, its stride
        and extent.
        """
        found: dict[Any, Any] = {}
        for place, stride in zip(leaf.index, strides_of(leaf.node), strict=True):
            for digit in reversed(place):
                key: Any = (digit.step,)
                entry: Any = (stride, digit.extent)
                if digit.axis == "n":
                    if digit != _Digit("n", 1, self.outputs):
                        raise NoWeight("outputs in another order")
                    key, entry = "n", stride
                if key in found or not isinstance(stride, int):
                    raise NoWeight("bytes in another order")
                found[key] = entry
                stride = stride * digit.extent
        return found


def _selectors(value: Any) -> Iterator[_Digit]:
    if isinstance(value, _Select):
        yield value.digit
        for part in value.parts:
            yield from _selectors(part)
    for part in value.operands if isinstance(value, _Apply) else ():
        yield from _selectors(part)


def _unconverted(value: Any) -> Any:
    """What is converted between floats: a half type only rounds."""
    while isinstance(value, _Apply) and value.node.target in _CONVERSIONS:
        (inner,) = value.operands
        if not {_dtype(inner), _dtype(value)} <= {torch.float32, torch.bfloat16}:
            break  # float16 has no room for all of them
        value = inner
    return value


def _exact(value: Any) -> Any:
    """What is converted to a dtype that holds all values of its own, or rounds floats."""
    while isinstance(value, _Apply) and value.node.target in _CONVERSIONS:
        (inner,) = value.operands
        before, after = _dtype(inner), _dtype(value)
        small = before in BYTES and (after in WIDE or after in NUMBERS)
        wide = before in WIDE and after in NUMBERS
        floats = {before, after} <= {torch.float32, torch.bfloat16}
        floats = floats or (before is torch.float16 and after is torch.float32)
        if not (small or wide or floats) or isinstance(inner, _Select):
            break
        if not floats and not isinstance(inner, _Apply | _Load):
            break
        value = inner
    return value


def _table(value: Any, leaf: _Load, part: int) -> list[float]:
    """What a value is for each of the 256 bytes, in the part of this number."""
    low = -128 if _dtype(leaf) is torch.int8 else 0
    bytes = torch.arange(low, low + 256).to(_dtype(leaf))

    def of(x: Any) -> torch.Tensor:
        if isinstance(x, _Load):
            return bytes
        if isinstance(x, _Select):
            return of(x.parts[part])
        operands = iter([of(o) for o in x.operands])
        args = [next(operands) if isinstance(a, fx.Node) else a for a in x.node.args]
        return x.node.target(*args, **x.node.kwargs)  # type: ignore[no-any-return]

    try:
        found = of(value)
    except Exception as error:
        raise NoWeight(f"its operators do not run: {error}") from error
    return [float(v) for v in found.roll(-128 if low else 0).tolist()]  # by unsigned byte


def _packing(tables: Sequence[list[float]], bits: int, halves: bool, dtype: torch.dtype) -> Packing:
    """The packing whose integers these tables (by unsigned byte) are."""
    if bits == 8:
        (table,) = tables
        offset = -table[0]
        signed = dtype is torch.int8
        numbers = [(v ^ 128) - 128 if signed else v for v in range(256)]
        if offset.is_integer() and table == [v - offset for v in numbers]:
            return Packing(8, offset=int(offset))
        raise NoWeight("another function of a byte")
    for signed in (False, True):
        offset = -tables[0][0]
        if not offset.is_integer():
            break
        for high_first in (False, True):
            found = Packing(4, halves, high_first, signed, int(offset))
            low, high = ([found.value(v >> s & 15) for v in range(256)] for s in (0, 4))
            if list(tables) == ([high, low] if high_first else [low, high]):
                return found
    raise NoWeight("another function of a byte")


# -- the proof ----------------------------------------------------------------


def dequantise(
    weight: Weight, bytes: torch.Tensor, scale: torch.Tensor | None, zero: torch.Tensor | None
) -> torch.Tensor:
    """The weight in float64, [outputs, inputs], of tensors of the shapes (outputs, bytes) and
    (outputs, groups).
    """
    packing, count = weight.packing, bytes.shape[0]
    if packing.bits == 8:
        integer = bytes.to(torch.int64)
    else:
        wide = bytes.to(torch.int64)
        parts = [wide & 15, wide >> 4 & 15]
        parts = parts[::-1] if packing.high_first else parts
        integer = torch.cat(parts, 1) if packing.halves else torch.stack(parts, 2)
        integer = (integer ^ 8) - 8 if packing.signed else integer
    found = (integer - packing.offset).double().reshape(count, -1, weight.group)
    if zero is not None:
        found = found - zero.double()[:, :, None]
    if scale is not None:
        found = found * scale.double()[:, :, None]
    return found.reshape(count, -1)


def _check(weight: Weight, pull: _Pull) -> None:
    """Run the operators on a few outputs, in float64."""
    count = min(ROWS, weight.outputs)
    values: dict[fx.Node, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(7)
    given: dict[fx.Node, torch.Tensor] = {}
    for node in weight.tensors:
        shape = _cut(pull.index[node], count)
        values[node] = random_numbers(node, shape, generator)
    for node in pull.index:
        if node not in pull.chain and node not in values:
            raise NoWeight("it reads something else")

    def argument(x: Any) -> Any:
        if isinstance(x, fx.Node):
            return values[x]
        if isinstance(x, list | tuple):
            return [argument(y) for y in x]
        if isinstance(x, torch.dtype) and x.is_floating_point:
            return torch.float64
        return x

    for node in weight.nodes:
        if node not in pull.index:
            continue
        if node.target in (*_RESHAPES, aten.expand.default):
            source = argument(node.args[0])
            shape = _cut(pull.index[node], count)
            same = node.target is aten.expand.default
            values[node] = source.expand(shape) if same else source.reshape(shape)
            continue
        kwargs = {k: argument(v) for k, v in node.kwargs.items()}
        values[node] = node.target(*map(argument, node.args), **kwargs)  # type: ignore[operator]
    for node in weight.tensors:
        given[node] = _by_output(values[node], pull.index[node], count)
    tensors = [given.get(x.node) if x is not None else None for x in (weight.scale, weight.zero)]
    want = dequantise(weight, given[weight.bytes], *tensors)
    if not torch.allclose(values[weight.nodes[-1]].double().t(), want, rtol=1e-9, atol=1e-12):
        raise NoWeight("the operators compute something else")


def random_numbers(node: fx.Node, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Of a tensor that a weight is made of; bytes of all values."""
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point:
        return torch.rand(tuple(shape), generator=generator).double() + 0.5
    low, high = (-128, 128) if dtype is torch.int8 else (0, 256)
    return torch.randint(low, high, tuple(shape), generator=generator).to(dtype)


def _cut(index: _Index, count: int) -> tuple[int, ...]:
    """The shape of a value of which there are so many outputs."""

    def extent(digit: _Digit) -> int:
        return count if digit.axis == "n" else digit.extent

    return tuple(math.prod(map(extent, place)) for place in index)


def _by_output(value: torch.Tensor, index: _Index, count: int) -> torch.Tensor:
    """[outputs, the rest in the order of the inputs]."""
    at = next(d for d, place in enumerate(index) if any(x.axis == "n" for x in place))
    moved = value.movedim(at, 0).flatten(1) if value.dim() > 1 else value[:, None]
    return moved.reshape(count, -1)


__all__ = ["Numbers", "Weight", "dequantise", "find", "random_numbers"]
