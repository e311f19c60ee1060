"""A small instance of a region: few elements, the same program.

What flows in: a region, its kernel, the lowering table. What flows out: an :class:`Instance`:
concrete tensors for the kernel's arguments, values of its size arguments, and the region's
operators evaluated with ATen on the same numbers. Used by :mod:`torch_helion.capture.check` only.

The extents of a kernel's grid are arguments, so the kernel of a large graph can be run on a small
one. Which dimensions may shrink together is what axis inference found (``axes.py``): each *atom*
gets a small extent, unless something needs its real one (an axis that a slice, a gather or a
concatenation changes; an extent that is a constant in the kernel). What the kernel's size arguments
are then follows from the shapes of its buffers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion.capture import axes
from torch_helion.capture.node import new_random_numbers
from torch_helion.capture.node_facts import Facts
from torch_helion.capture.sizes import hint_of, host_size, known_hints
from torch_helion.lowering import view as view_rules

aten = torch.ops.aten

INNER = 83  # more than a vector, and no multiple of one
OUTER = (3, 5, 4)
_ATTEMPTS = 12


class CannotShrink(Exception):
    """Why there is no small instance of this region."""


@dataclass
class Sizes:
    """Small extents: of atoms, and of the graph's own symbols."""

    atoms: dict[int, int]
    symbols: dict[sympy.Symbol, int]


@dataclass
class Instance:
    """Everything that a check runs."""

    region: Any
    made: Any
    sizes: tuple[int, ...]
    """values of the kernel's size arguments"""
    shapes: dict[fx.Node, tuple[int, ...]]
    """of the kernel's tensors"""
    buffers: list[tuple[tuple[int, ...], tuple[int, ...]]]
    """size and strides of each of the kernel's tensor arguments"""
    program: Program
    elements: int = 0
    """elements that an evaluation of the region computes, over all operators"""


def make(region: Any, made: Any, lowerings: Any, real: bool = False) -> Instance:
    """The smallest instance that the kernel allows; with ``real`` sizes, the one of the graph."""
    program = Program(region, lowerings)
    fixed = set(program.atoms()) if real else program.bound_atoms()
    for _ in range(_ATTEMPTS):
        small = program.choose(fixed)
        shapes = {node: program.shape(node, small) for node in made.tensors}
        try:
            sizes = _kernel_sizes(made, shapes, small)
            buffers = _buffer_layouts(made, sizes, shapes)
        except _Constant as conflict:
            more = program.constant_atoms(conflict) - fixed
            if not more:
                raise CannotShrink(f"{conflict.node}: {conflict}") from None
            fixed |= more
            continue
        program.use(small)
        elements = sum(math.prod(program.shape(n, small)) for n in program.computed())
        return Instance(region, made, sizes, shapes, buffers, program, elements)
    raise CannotShrink("no consistent sizes were found")


class _Constant(Exception):
    """A buffer's extent is, or has as a factor, a number that stands in the kernel."""

    def __init__(self, node: fx.Node, places: Sequence[int], factor: int, why: str) -> None:
        super().__init__(why)
        self.node = node
        self.places = places
        """the node's dimensions that the extent covers"""
        self.factor = factor


def _kernel_sizes(
    made: Any, shapes: Mapping[fx.Node, tuple[int, ...]], small: Sizes
) -> tuple[int, ...]:
    """The size arguments that give the kernel's buffers these shapes; others keep their values."""
    known: dict[sympy.Symbol, int] = {}
    for symbol, host in zip(made.kernel.sizes, made.sizes, strict=True):
        if isinstance(host, sympy.Expr) and host.free_symbols <= set(small.symbols):
            known[symbol] = int(host.subs(small.symbols))
    equations: list[tuple[fx.Node, list[int], sympy.Expr]] = []
    for buffer, node in zip(made.kernel.arguments, made.tensors, strict=True):
        exprs = [sympy.sympify(e) for e in buffer.shape]
        places = list(range(len(shapes[node])))
        if len(exprs) != len(places):
            places = [d for d, repeated in enumerate(_repeats(node)) if not repeated]
        if len(exprs) == len(places):
            equations += [(node, [d], e) for d, e in zip(places, exprs, strict=True)]
        else:
            equations.append((node, places, sympy.Mul(*exprs)))
    changed = True
    while changed:
        changed = False
        for node, places, expr in equations:
            value = math.prod(shapes[node][d] for d in places)
            constant = expr.subs(dict.fromkeys(expr.free_symbols, 1))
            expr = expr.subs(known)
            free = list(expr.free_symbols)
            factor = expr.subs(dict.fromkeys(free, 1))
            if not (factor.is_Integer and constant.is_Integer) or (factor == 0 and value):
                raise CannotShrink(f"{node}: an extent {expr}")
            if not free and expr != value:
                raise _Constant(node, places, int(constant), f"{expr} in the kernel, not {value}")
            if len(free) == 1:
                if expr != factor * free[0]:
                    raise CannotShrink(f"{node}: an extent {expr}")
                if value % int(factor):
                    raise _Constant(node, places, int(constant), f"{expr} cannot be {value}")
                known[free[0]] = value // int(factor)
                changed = True
    return tuple(
        known.get(s, made.hints.get(s, 1) if isinstance(v, sympy.Expr) else int(v))
        for s, v in zip(made.kernel.sizes, made.sizes, strict=True)
    )


def _without_repeats(node: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without dimensions along which the tensor repeats: kernels leave them out."""
    return tuple(n for n, d in zip(shape, _repeats(node), strict=True) if not d)


def _repeats(node: fx.Node) -> list[bool]:
    value = node.meta["val"]
    return [
        (isinstance(s, int) and s == 0) or (isinstance(n, int) and n == 1)
        for n, s in zip(value.shape, value.stride(), strict=True)
    ]


def _buffer_layouts(
    made: Any, sizes: tuple[int, ...], shapes: Mapping[fx.Node, tuple[int, ...]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Concrete sizes and strides of the buffers, checked against the shapes of their nodes."""
    values = dict(zip(made.kernel.sizes, sizes, strict=True))
    found = []
    for buffer, node in zip(made.kernel.arguments, made.tensors, strict=True):
        shape = tuple(int(sympy.sympify(e).subs(values)) for e in buffer.shape)
        strides = tuple(int(sympy.sympify(e).subs(values)) for e in buffer.strides)
        want = shapes[node]
        if math.prod(shape) not in (math.prod(want), math.prod(_without_repeats(node, want))):
            raise CannotShrink(f"{node}: a buffer of {shape} for a tensor of {want}")
        if any(s < 0 for s in strides):
            raise CannotShrink(f"{buffer.name}: negative strides")
        found.append((shape, strides))
    return found


# ---------------------------------------------------------------------- the region's own program


@dataclass
class Program:
    """A region's operators, to be evaluated at the sizes of an instance."""

    region: Any
    lowerings: Any
    facts: Facts = field(init=False)
    space: axes.Space = field(init=False)
    small: Sizes = field(init=False)
    hints: dict[sympy.Symbol, int] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = Facts(self.lowerings, owned=self.region.outputs)
        try:
            self.space = axes.infer(self.facts, self.region.nodes)
        except axes.Conflict as error:
            raise CannotShrink(str(error)) from error
        self.uses: dict[fx.Node, Any] = {}
        for node in self.region.nodes:
            for path, operand in self.facts.operands(node):
                if (node, path) in self.space.dims:
                    self.uses.setdefault(operand, (node, path))
        values = [n.meta.get("val") for n in (*self.region.nodes, *self.region.inputs)]
        self.hints = known_hints([v for v in values if isinstance(v, torch.Tensor)])

    # -- sizes

    def key(self, node: fx.Node) -> Any:
        """Under which the space knows a value: itself, or one of its uses; None for constants."""
        return node if node in self.space.dims else self.uses.get(node)

    def atoms(self) -> set[int]:
        return {a for key in self.space.dims for a in self.space.atoms(key)}

    def constant_atoms(self, conflict: _Constant) -> set[int]:
        """The innermost atoms of an extent, until a number that stands in the kernel is reached."""
        key = self.key(conflict.node)
        if key is None:
            return set()
        dims = self.space.of(key)
        found: set[int] = set()
        product = 1
        for atom in reversed([a for d in conflict.places for a in dims[d]]):
            if product >= conflict.factor and conflict.factor > 1:
                break
            found.add(atom)
            product *= self._real_extent(atom)
        return found

    def bound_atoms(self) -> set[int]:
        """Atoms whose real extent something in the region needs."""
        bound: set[int] = set()
        for node in self.region.nodes:
            if node not in self.space.dims:
                continue
            own = set(self.space.atoms(node))
            used = {
                a
                for path, _ in self.facts.operands(node)
                if (node, path) in self.space.dims
                for a in self.space.atoms((node, path))
            }
            if self.facts.row(node).kind in ("view", "gather") and not _is_reshape(node):
                # dimensions that are sliced, gathered, joined or made: extents are in the arguments
                bound |= own ^ used if node.target is not aten.expand.default else used - own
        return bound

    def choose(self, fixed: set[int]) -> Sizes:
        """A small extent for every atom that is not fixed."""
        inner = {dims[-1][-1] for dims in self._output_dims() if dims and dims[-1]}
        small = Sizes({}, {})
        for symbol in self._symbols(fixed):
            small.symbols[symbol] = self.hints.get(symbol, 7)
        free = 0
        for atom in sorted(self.atoms()):
            extent = self.space.extents[atom]
            wanted = INNER if atom in inner else OUTER[free % len(OUTER)]
            if isinstance(extent, sympy.Symbol) and extent not in small.symbols:
                small.symbols[extent] = wanted
                free += 1
            if not isinstance(extent, int):
                continue
            small.atoms[atom] = extent if atom in fixed else min(extent, wanted)
            free += atom not in fixed
        for atom in self.atoms():
            extent = self.space.extents[atom]
            if not isinstance(extent, int):
                value = extent.subs(small.symbols)
                number = int(value) if value.is_Integer else hint_of(extent, self.hints)
                if number is None:
                    raise CannotShrink(f"no value for {extent}")
                small.atoms[atom] = number
        return small

    def _symbols(self, fixed: set[int]) -> set[sympy.Symbol]:
        """The graph's symbols that keep their hints: those that fixed or composed extents hold."""
        kept: set[sympy.Symbol] = set()
        for atom in self.atoms():
            extent = self.space.extents[atom]
            if isinstance(extent, sympy.Expr) and (atom in fixed or not extent.is_Symbol):
                kept |= extent.free_symbols
        return kept

    def _output_dims(self) -> list[Any]:
        return [self.space.of(n) for n in self.region.outputs if n in self.space.dims]

    def shape(self, node: fx.Node, small: Sizes) -> tuple[int, ...]:
        """The node's shape in the instance."""
        key = self.key(node)
        if key is None:
            return self.real_shape(node)
        return tuple(math.prod(small.atoms[a] for a in dim) for dim in self.space.of(key))

    def real_shape(self, node: fx.Node) -> tuple[int, ...]:
        shape = [hint_of(host_size(n), self.hints) for n in node.meta["val"].shape]
        if any(n is None for n in shape):
            raise CannotShrink(f"{node}: no number for its shape")
        return tuple(n for n in shape if n is not None)

    def use(self, small: Sizes) -> None:
        self.small = small

    def computed(self) -> list[fx.Node]:
        """Nodes that compute elements."""
        return [n for n in self.region.nodes if n in self.space.dims]

    # -- evaluation

    def run(self, inputs: Mapping[fx.Node, torch.Tensor], precise: bool) -> dict[fx.Node, Any]:
        """The value of every node, on ATen; ``precise``: all floating dtypes are float64."""
        values: dict[fx.Node, Any] = {
            node: value.double() if precise and value.is_floating_point() else value
            for node, value in inputs.items()
        }
        with torch.no_grad():
            for node in self.region.nodes:
                values[node] = self._call(node, values, precise)
        return values

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], precise: bool) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            return values[source][index]  # type: ignore[index]

        def argument(x: Any, path: tuple[Any, ...]) -> Any:
            if isinstance(x, fx.Node):
                return self._operand(node, path, x, values)
            if isinstance(x, list | tuple):
                return [argument(y, (*path, i)) for i, y in enumerate(x)]
            if isinstance(x, torch.dtype) and x.is_floating_point and precise:
                return torch.float64
            return x

        args = [argument(x, (i,)) for i, x in enumerate(node.args)]
        kwargs = {name: argument(x, (name,)) for name, x in node.kwargs.items()}
        return self._run(node, args, kwargs, precise)

    def _run(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any], precise: bool) -> Any:
        target: Any = node.target
        in_space = node in self.space.dims
        name = target._opname
        if in_space and _is_reshape(node):
            return args[0].reshape(self.shape(node, self.small))
        if in_space and target is aten.expand.default:
            return args[0].expand(self.shape(node, self.small))
        if name == "inductor_random":
            size = self.shape(node, self.small)
            value = new_random_numbers(args[2], size, args[1], dtype=torch.float32)
            return value.double() if precise else value
        if name == "inductor_randint":
            size = self.shape(node, self.small)
            return new_random_numbers("randint", size, args[3], args[0], args[1], dtype=torch.int64)
        if in_space and self.facts.row(node).kind == "creation":
            args = self._with_size(node, args, kwargs)
        if name == "_softmax" or name == "_log_softmax":
            args = [*args[:2], False] if precise else args
        return target(*args, **kwargs)

    def _with_size(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        schema = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        if "size" not in schema:
            return args
        place = schema.index("size")
        size = list(self.shape(node, self.small))
        if place < len(args):
            return [*args[:place], size, *args[place + 1 :]]
        kwargs["size"] = size
        return args

    def _operand(
        self, node: fx.Node, path: tuple[Any, ...], operand: fx.Node, values: Mapping[fx.Node, Any]
    ) -> Any:
        value = operand.meta.get("val")
        if not isinstance(value, torch.Tensor):
            if operand in values:
                return values[operand]
            number = sympy.sympify(host_size(value)).subs(self.small.symbols)
            number = hint_of(number, self.hints)
            if number is None:
                raise CannotShrink(f"no number for {operand}")
            return number
        found = values[operand]
        if (node, path) in self.space.dims and self.key(operand) != operand:
            found = self._shrunk(found, self.space.of((node, path)))
        return found

    def _shrunk(self, value: torch.Tensor, dims: Sequence[Sequence[int]]) -> torch.Tensor:
        """A constant of real sizes, cut to the small extents of its dimensions."""
        want = tuple(math.prod(self.small.atoms[a] for a in dim) for dim in dims)
        if tuple(value.shape) == want:
            return value
        split = [n for dim in dims for n in map(self._real_extent, dim)]
        value = value.reshape(split)
        for d, atom in enumerate(a for dim in dims for a in dim):
            value = value.narrow(d, 0, self.small.atoms[atom])
        return value.reshape(want)

    def _real_extent(self, atom: int) -> int:
        number = hint_of(self.space.extents[atom], self.hints)
        if number is None:
            raise CannotShrink("an extent has no number")
        return number


def _is_reshape(node: fx.Node) -> bool:
    return node.target in view_rules.RESHAPES and node.target is not aten.as_strided.default


# ---------------------------------------------------------------------- data


def fill(
    instance: Instance, generator: torch.Generator, positive: bool, low: int, high: int
) -> tuple[list[torch.Tensor], dict[fx.Node, torch.Tensor]]:
    """Random tensors for the kernel's arguments, and the same memory as the nodes see it."""
    storages: dict[fx.Node, torch.Tensor] = {}
    arguments: list[torch.Tensor] = []
    nodes: dict[fx.Node, torch.Tensor] = {}
    layouts = list(zip(instance.made.tensors, instance.buffers, strict=True))
    for node, (shape, strides) in layouts:
        need = _span(shape, strides)
        storages[node] = torch.empty(0) if node not in storages else storages[node]
        if storages[node].numel() < need or need == 0:
            storages[node] = _numbers(node, need, generator, positive, low, high)
    for node, (shape, strides) in layouts:
        tensor = storages[node].as_strided(shape, strides)
        arguments.append(tensor)
        if node not in nodes:
            nodes[node] = as_node(node, tensor, instance.shapes[node])
    return arguments, nodes


def as_node(node: fx.Node, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A buffer of the kernel as the graph sees it."""
    if tensor.numel() == math.prod(shape):
        if tensor.is_contiguous():
            return tensor.view(shape)
        return tensor if tuple(tensor.shape) == shape else tensor.reshape(shape)
    tensor = tensor.reshape(_without_repeats(node, shape))
    for d, repeated in enumerate(_repeats(node)):
        if repeated:
            tensor = tensor.unsqueeze(d)
    return tensor.expand(shape)


def _span(shape: Iterable[int], strides: Iterable[int]) -> int:
    pairs = list(zip(shape, strides, strict=True))
    if any(n == 0 for n, _ in pairs):
        return 0
    return 1 + sum((n - 1) * s for n, s in pairs)


def _numbers(
    node: fx.Node, count: int, generator: torch.Generator, positive: bool, low: int, high: int
) -> torch.Tensor:
    dtype = node.meta["val"].dtype
    if dtype is torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).to(torch.bool)
    if not dtype.is_floating_point:
        return torch.randint(low, high, (count,), generator=generator).to(dtype)
    if positive:
        return (torch.rand((count,), generator=generator) + 0.5).to(dtype)
    return torch.randn((count,), generator=generator).to(dtype)
