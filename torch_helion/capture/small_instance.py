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

# Extents of an output's innermost dimension (more than a vector, no multiple of one) and of the
# others in turn.
EXTENTS: tuple[int, tuple[int, ...]] = (83, (3, 5, 4))
FEWER: tuple[int, tuple[int, ...]] = (37, (2,))
# ATen runs operators on so many elements in the calling thread alone: on a busy machine, waiting
# for other threads would cost more than the whole check.
SERIAL = 1 << 15
_COMPARABLE = 200_000  # elements
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
    strides: dict[fx.Node, tuple[int, ...]]
    buffers: list[tuple[tuple[int, ...], tuple[int, ...]]]
    """size and strides of each of the kernel's tensor arguments"""
    program: Program
    elements: int = 0
    """elements that an evaluation of the region computes, over all operators"""


def make(region: Any, made: Any, lowerings: Any, real: bool = False) -> Instance:
    """The smallest instance that the kernel allows; with ``real`` sizes, the one of the graph."""
    program = (getattr(region, "program", None) or Program)(region, lowerings)
    fixed = set(program.atoms()) if real else program.bound_atoms()
    first: tuple[int, tuple[int, ...]] = getattr(region, "extents", EXTENTS)
    extents = first
    for _ in range(_ATTEMPTS):
        small = program.choose(fixed, *extents)
        shapes = {node: program.shape(node, small) for node in made.tensors}
        try:
            sizes = _kernel_sizes(made, program, shapes, small)
        except _Constant as conflict:
            more = program.constant_atoms(conflict) - fixed
            if not more:
                raise CannotShrink(f"{conflict.node}: {conflict}") from None
            fixed |= more
            continue
        if not real and extents is first and max(map(math.prod, shapes.values())) > SERIAL:
            extents = FEWER
            continue
        program.use(small)
        strides = {node: program.strides(node, shape) for node, shape in shapes.items()}
        buffers = _layouts(made, sizes)
        for node, layout in zip(made.tensors, buffers, strict=True):
            _require_same_memory(node, (shapes[node], strides[node]), layout)
        elements = sum(math.prod(program.shape(n, small)) for n in program.computed())
        return Instance(region, made, sizes, shapes, strides, buffers, program, elements)
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
    made: Any, program: Program, shapes: Mapping[fx.Node, tuple[int, ...]], small: Sizes
) -> tuple[int, ...]:
    """The size arguments that give the kernel's buffers these shapes; others keep their values."""
    known: dict[sympy.Symbol, int] = {}
    for symbol, host in zip(made.kernel.sizes, made.sizes, strict=True):
        if isinstance(host, sympy.Expr) and host.free_symbols <= set(small.symbols):
            known[symbol] = int(host.subs(small.symbols))
    given = program.size_arguments(small)
    known.update((s, given[s.name]) for s in made.kernel.sizes if s.name in given)
    real = tuple(
        made.hints.get(s, 1) if isinstance(v, sympy.Expr) else int(v)
        for s, v in zip(made.kernel.sizes, made.sizes, strict=True)
    )
    equations: list[tuple[fx.Node, list[int], sympy.Expr]] = []
    layouts = zip(made.kernel.arguments, made.tensors, _layouts(made, real), strict=True)
    for buffer, node, layout in layouts:
        groups = _groups(layout, program.real_shape(node), program.real_strides(node))
        if groups is None:
            raise CannotShrink(f"{node}: the kernel sees {layout}")
        exprs = map(sympy.sympify, buffer.shape)
        equations += [(node, places, e) for places, e in zip(groups, exprs, strict=True)]
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
    return tuple(known.get(s, value) for s, value in zip(made.kernel.sizes, real, strict=True))


Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides."""


def _layouts(made: Any, sizes: tuple[int, ...]) -> list[Layout]:
    """The buffers of the kernel with these size arguments."""
    values = dict(zip(made.kernel.sizes, sizes, strict=True))
    found = []
    for buffer in made.kernel.arguments:
        shape = tuple(int(sympy.sympify(e).subs(values)) for e in buffer.shape)
        strides = tuple(int(sympy.sympify(e).subs(values)) for e in buffer.strides)
        if any(s < 0 for s in strides):
            raise CannotShrink(f"{buffer.name}: negative strides")
        found.append((shape, strides))
    return found


def _groups(
    buffer: Layout, shape: tuple[int, ...], strides: tuple[int, ...]
) -> list[list[int]] | None:
    """Which of a tensor's dimensions each dimension of a kernel's buffer runs over, by strides.

    A kernel may see a tensor with fewer dimensions, and in another order, than the graph does.
    """
    free = {d for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1 and s > 0}
    groups: list[list[int]] = []
    for extent, stride in zip(*buffer, strict=True):
        group: list[int] = []
        covered = 1
        while covered < extent:
            outer = [d for d in free if strides[d] == stride * covered]
            if not outer:
                return None
            group.insert(0, outer[0])
            free.discard(outer[0])
            covered *= shape[outer[0]]
        if covered != extent and extent != 0:
            return None
        groups.append(group)
    return groups


def _require_same_memory(node: fx.Node, tensor: Layout, buffer: Layout) -> None:
    """The tensor of the graph and the buffer of the kernel are the same elements."""
    if max(math.prod(tensor[0]), math.prod(buffer[0])) > _COMPARABLE:
        return
    span = max(_span(*tensor), _span(*buffer))
    if not torch.equal(_marked(tensor, span), _marked(buffer, span)):
        raise CannotShrink(f"{node}: {tensor} in the graph, {buffer} in the kernel")


def _marked(layout: Layout, span: int) -> torch.Tensor:
    """Which elements of a memory a layout reaches."""
    marks = torch.zeros(span, dtype=torch.bool)
    if math.prod(layout[0]):
        marks.as_strided(*layout).fill_(True)
    return marks


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
        self.find_uses()

    def find_uses(self) -> None:
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
            if node not in self.space.dims or not self.has_rule(node):
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
            if node.target in (aten.select_scatter.default, aten.slice_scatter.default):
                dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
                bound |= set(self.space.of(node)[dim])  # type: ignore[index]
        return bound

    def size_arguments(self, small: Sizes) -> dict[str, int]:
        """Size arguments of the kernel, by name, that the shapes of its buffers do not tell."""
        return {}

    def has_rule(self, node: fx.Node) -> bool:
        """Whether a lowering says what the node does with its axes."""
        return True

    def wanted(self, atom: int, usual: int, free: int) -> int:
        """The extent that an atom would best have; `free`: how many were chosen before."""
        return usual

    def choose(self, fixed: set[int], innermost: int, others: Sequence[int]) -> Sizes:
        """A small extent for every atom that is not fixed."""
        inner = {dims[-1][-1] for dims in self._output_dims() if dims and dims[-1]}
        small = Sizes({}, {})
        for symbol in self._symbols(fixed):
            small.symbols[symbol] = self.hints.get(symbol, 7)
        free = 0
        for atom in sorted(self.atoms()):
            extent = self.space.extents[atom]
            wanted = innermost if atom in inner else others[free % len(others)]
            wanted = self.wanted(atom, wanted, free)
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

    def real_strides(self, node: fx.Node) -> tuple[int, ...]:
        strides = [hint_of(host_size(s), self.hints) for s in node.meta["val"].stride()]
        if any(s is None for s in strides):
            raise CannotShrink(f"{node}: no number for its strides")
        return tuple(s for s in strides if s is not None)

    def strides(self, node: fx.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Strides for a small shape: dimensions that follow each other densely still do."""
        real_shape, real = self.real_shape(node), self.real_strides(node)
        strides = list(real)
        inner: int | None = None
        for d in sorted(range(len(real)), key=lambda d: (real[d], real_shape[d])):
            if real[d] == 0 or real_shape[d] == 1:
                continue
            if inner is not None and real[d] == real[inner] * real_shape[inner]:
                strides[d] = strides[inner] * shape[inner]
            inner = d
        return tuple(strides)

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
    spans: dict[fx.Node, int] = {}
    for node, layout in zip(instance.made.tensors, instance.buffers, strict=True):
        own = _span(instance.shapes[node], instance.strides[node])
        spans[node] = max(spans.get(node, 0), own, _span(*layout))
    bytes: frozenset[fx.Node] = getattr(instance.region, "bytes", frozenset())
    for node, span in spans.items():
        ends = (low, high)
        if node in bytes:
            ends = (-128, 128) if node.meta["val"].dtype is torch.int8 else (0, 256)
        storages[node] = _numbers(node, span, generator, positive, *ends)
    layouts = zip(instance.made.tensors, instance.buffers, strict=True)
    arguments = [storages[node].as_strided(*layout) for node, layout in layouts]
    nodes = {
        node: storage.as_strided(instance.shapes[node], instance.strides[node])
        for node, storage in storages.items()
    }
    return arguments, nodes


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
