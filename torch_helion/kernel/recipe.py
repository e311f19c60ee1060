"""From the values of a host function to the arguments of a kernel: checked, fetched, launched.

In: what the front end says about a traced kernel, and the values that it was traced with. Out: a
:class:`Recipe`, plain data that a launch is made of (in this process or, read back from JSON, in
another one).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from torch_helion import _C, exc
from torch_helion.kernel import arguments
from torch_helion.kernel.arguments import Path
from torch_helion.kernel.shared_memory import Apart
from torch_helion.language.values import BlockSize

# Kinds of sources, as `_C.Launch` numbers them; a seed is drawn for each call.
CONSTANT, SIZE, STRIDE, INT, FLOAT, SEED = range(6)
_KINDS = {"const": CONSTANT, "size": SIZE, "stride": STRIDE, "int": INT, "float": FLOAT}
_KINDS["seed"] = SEED

Source = tuple[int, Any, int]
"""kind, number of a leaf (or the constant), dimension"""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What one leaf of the values must be."""

    path: Path
    kind: str
    """"tensor", "type" (of a number), "value", or "any\""""
    value: Any = None
    """dtype of a tensor; the type; the value"""
    sizes: tuple[int | None, ...] = ()
    strides: tuple[int | None, ...] = ()

    def fits(self, value: Any) -> bool:
        """Whether a value is as this says."""
        if self.kind == "tensor":
            return (
                isinstance(value, torch.Tensor)
                and value.dtype == self.value
                and _fit(value.shape, self.sizes)
                and _fit(value.stride(), self.strides, value.shape)
            )
        if self.kind == "type":
            return type(value) is self.value
        if self.kind == "value":
            same = value is self.value
            return same or (type(value) is type(self.value) and value == self.value)
        return True

    def is_like(self, value: Any) -> bool:
        """Whether a value that does not fit differs in its size, or its number, only."""
        if self.kind == "tensor":
            return (
                isinstance(value, torch.Tensor)
                and value.dtype == self.value
                and value.dim() == len(self.sizes)
            )
        return self.kind == "value" and type(value) is type(self.value) in (int, float)

    @property
    def spec(self) -> tuple[Any, ...] | None:
        """As `_C` reads it."""
        if self.kind == "tensor":
            return ("tensor", self.value, self.sizes, self.strides)
        return None if self.kind == "any" else (self.kind, self.value)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a kernel is launched from the values of its host function."""

    leaves: tuple[Leaf, ...]
    tensors: tuple[int, ...]
    """number of the leaf of each tensor argument"""
    written: tuple[int, ...]
    """tensor arguments that the kernel writes"""
    ints: tuple[Source, ...]
    ties: tuple[tuple[Source, Source], ...] = ()
    exact: bool = False
    """made for exactly these sizes, though they were symbols"""
    same: tuple[tuple[int, int], ...] = ()
    """leaves that are one tensor: what is written through one is read through the other"""

    def arguments(self, values: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """The kernel's tensors and ints for these values; nothing is checked."""
        found = [arguments.get(values, leaf.path) for leaf in self.leaves]
        return [found[i] for i in self.tensors], [_read(source, found) for source in self.ints]

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether the values are as they must be."""
        found = [arguments.get(values, leaf.path) for leaf in self.leaves]
        if not all(leaf.fits(value) for leaf, value in zip(self.leaves, found, strict=True)):
            return False
        if len(list(arguments.leaves(tuple(values)))) != len(found):
            return False
        return self._aliases_fit(found) and all(_tied(a, b, found) for a, b in self.ties)

    def _aliases_fit(self, found: Sequence[Any]) -> bool:
        """Whether exactly those tensors are one that were one when the kernel was traced."""
        for number in self.written:
            place = self.tensors[number]
            others = (p for p in self.tensors if p != place)
            if any(one_tensor(found[place], found[p]) for p in others):
                return False
        return all(found[a].numel() == 0 or one_tensor(found[a], found[b]) for a, b in self.same)

    def differences(self, values: Sequence[Any]) -> set[Path]:
        """Paths of numbers and tensors that differ in value or size only; empty if more differs."""
        found = set()
        table = list(arguments.leaves(tuple(values)))
        if [path for path, _ in table] != [leaf.path for leaf in self.leaves]:
            return set()
        for leaf, (path, value) in zip(self.leaves, table, strict=True):
            if leaf.fits(value):
                continue
            if not leaf.is_like(value):
                return set()
            found.add(path)
        return found

    def launch(
        self, kernel: _C.Kernel, miss: Callable[..., Any], apart: Sequence[Apart] = ()
    ) -> Callable[..., Any]:
        """A callable of the values: runs the kernel if they are as they must be, else ``miss``.

        ``apart``: tensors whose memory interleaves without an element in common.
        """
        plain = all(len(leaf.path) == 1 for leaf in self.leaves)
        in_order = [leaf.path for leaf in self.leaves] == [(i,) for i in range(len(self.leaves))]
        seeded = any(kind == SEED for kind, _, _ in self.ints)
        if plain and in_order and not seeded:
            specs = tuple(leaf.spec for leaf in self.leaves)
            return self._checked(kernel, specs, self.ints, miss, apart)
        return self._wrapped(kernel, miss, apart)

    def _checked(
        self, kernel: _C.Kernel, specs: Any, ints: Any, miss: Any, apart: Sequence[Apart]
    ) -> _C.Launch:
        rest = (self.ties, self.written, self.same, miss, tuple(apart))
        return _C.Launch(kernel, specs, self.tensors, ints, *rest)

    def _wrapped(
        self, kernel: _C.Kernel, miss: Callable[..., Any], apart: Sequence[Apart]
    ) -> Callable[..., Any]:
        """The same for values that hold leaves inside, and for kernels that draw numbers."""
        seeds = sum(kind == SEED for kind, _, _ in self.ints)
        place = iter(range(len(self.leaves), len(self.leaves) + seeds))
        ints = tuple((INT, next(place), 0) if row[0] == SEED else row for row in self.ints)
        specs = (*(leaf.spec for leaf in self.leaves), *(("type", int),) * seeds)
        inner = self._checked(kernel, specs, ints, _missed, apart)
        paths = [leaf.path for leaf in self.leaves]

        def launch(*values: Any) -> Any:
            try:
                found = [arguments.get(values, path) for path in paths]
            except (LookupError, AttributeError, TypeError):
                return miss(*values)
            found += [draw_seed() for _ in range(seeds)]
            return miss(*values) if inner(*found) is _MISSED else None

        return launch


def one_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same elements in the same places."""
    if a is b:
        return True
    layout = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return layout and a.numel() > 0 and a.data_ptr() == b.data_ptr()


def _tied(left: Source, right: Source, leaves: Sequence[Any]) -> bool:
    """Whether two sources are equal, or one is a stride that no element is reached by."""
    for kind, number, dim in (left, right):
        if kind == STRIDE and (leaves[number].numel() == 0 or leaves[number].shape[dim] == 1):
            return True
    return _read(left, leaves) == _read(right, leaves)


def _fit(found: Sequence[int], wanted: Sequence[int | None], sizes: Sequence[int] = ()) -> bool:
    """Strides (``sizes`` are given) of one element, and of none, mean nothing."""
    if len(found) != len(wanted):
        return False
    return all(
        w is None or n == w or (bool(sizes) and (sizes[d] == 1 or 0 in sizes))
        for d, (n, w) in enumerate(zip(found, wanted, strict=True))
    )


_MISSED = object()


def _missed(*values: Any) -> object:
    return _MISSED


def draw_seed() -> int:
    """A seed from torch's generator: `torch.manual_seed` decides what kernels draw."""
    return int(torch.empty((), dtype=torch.int64).random_())


def _read(source: Source, leaves: Sequence[Any]) -> int:
    kind, value, dim = source
    if kind == CONSTANT:
        return value
    if kind == SEED:
        return draw_seed()
    leaf = leaves[value]
    if kind == INT:
        return int(leaf)
    if kind == FLOAT:
        return float_bits(float(leaf))
    return int(leaf.shape[dim] if kind == SIZE else leaf.stride(dim))


def float_bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    return int(torch.tensor(value, dtype=torch.float64).view(torch.int64))


# ---------------------------------------------------------------------- making one


def make_recipe(traced: Any, values: Sequence[Any], exact: bool = False) -> Recipe:
    """The recipe of a traced kernel; ``values`` are those that it was traced with."""
    table = list(arguments.leaves(tuple(values)))
    numbers = {path: number for number, (path, _) in enumerate(table)}
    first: dict[sympy.Expr, Source] = {}
    ties: list[tuple[Source, Source]] = []
    leaves = []
    for number, (path, value) in enumerate(table):
        leaf, opened = _leaf(number, path, value)
        leaves.append(leaf)
        for source, expression in opened:
            if not expression.is_Symbol:
                exact = True
            elif expression in first:
                ties.append((source, first[expression]))
            else:
                first[expression] = source
    if exact:
        leaves = [_exact(leaf, value) for leaf, (_, value) in zip(leaves, table, strict=True)]
        ties = []
    kernel = traced.kernel
    written = tuple(i for i, b in enumerate(kernel.arguments) if b.is_output)
    tensors = tuple(numbers[tuple(path)] for path in traced.tensors)
    ints = tuple(_source(row, numbers) for row in traced.sizes)
    same = tuple((numbers[tuple(a)], numbers[tuple(b)]) for a, b in getattr(traced, "aliases", ()))
    return Recipe(tuple(leaves), tensors, written, ints, tuple(ties), exact, same)


def _source(row: Sequence[Any], numbers: dict[Path, int]) -> Source:
    kind = _KINDS[row[0]]
    if kind == CONSTANT:
        return (kind, int(row[1]), 0)
    if kind == SEED:
        return (kind, 0, 0)
    return (kind, numbers[tuple(row[1])], int(row[2]) if len(row) > 2 else 0)


def _leaf(number: int, path: Path, value: Any) -> tuple[Leaf, list[tuple[Source, sympy.Expr]]]:
    """What a leaf must be, and the open sizes in it."""
    opened: list[tuple[Source, sympy.Expr]] = []

    def extent(kind: int, dim: int, size: Any) -> int | None:
        known = constant(size)
        if known is None:
            opened.append(((kind, number, dim), size.node.expr))
        return known

    if isinstance(value, torch.Tensor):
        sizes = tuple(extent(SIZE, d, n) for d, n in enumerate(value.shape))
        strides = tuple(constant(s) for s in value.stride())
        for d, s in enumerate(value.stride()):
            if isinstance(s, torch.SymInt) and strides[d] is None and s.node.expr.is_Symbol:
                extent(STRIDE, d, s)
        return Leaf(path, "tensor", value.dtype, sizes, strides), opened
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        known = constant(value)
        if known is not None:
            return Leaf(path, "value", known), opened
        if isinstance(value, torch.SymInt):
            opened.append(((INT, number, 0), value.node.expr))
        kind = {torch.SymInt: int, torch.SymFloat: float}.get(type(value), bool)
        return Leaf(path, "type", kind), opened
    if type(value) is BlockSize:  # another number is another config, and no other kernel
        return Leaf(path, "type", BlockSize), opened
    return Leaf(path, "value", value), opened


def _exact(leaf: Leaf, value: Any) -> Leaf:
    """The leaf with the sizes of the example in the place of open ones."""
    if isinstance(value, torch.Tensor):
        sizes, strides = tuple(map(hint, value.shape)), tuple(map(hint, value.stride()))
        return dataclasses.replace(leaf, sizes=sizes, strides=strides)
    if leaf.kind == "type" and leaf.value is not BlockSize:
        return Leaf(leaf.path, "value", hint(value))
    return leaf


def constant(value: Any) -> Any:
    """The value of a number that is no open symbol, else None."""
    if isinstance(value, torch.SymInt):
        return value.node.maybe_as_int()
    if isinstance(value, torch.SymFloat):
        return value.node.maybe_as_float()
    if isinstance(value, torch.SymBool):
        return value.node.maybe_as_bool()
    return value


def hint(value: Any) -> Any:
    """The value of a number in the example that it was traced with."""
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value


# ---------------------------------------------------------------------- text


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON; raises ``exc.CacheError`` where a leaf's value has no text."""
    rows = [
        [_path_text(leaf.path), leaf.kind, _value_text(leaf), leaf.sizes, leaf.strides]
        for leaf in recipe.leaves
    ]
    rest = (recipe.tensors, recipe.written, recipe.ints, recipe.ties, recipe.exact, recipe.same)
    return json.dumps([rows, *rest])


def from_json(text: str) -> Recipe:
    """The recipe that :func:`to_json` wrote."""
    rows, tensors, written, ints, ties, exact, same = json.loads(text)
    leaves = tuple(
        Leaf(_path_of(path), kind, _value_of(kind, value), tuple(sizes), tuple(strides))
        for path, kind, value, sizes, strides in rows
    )
    return Recipe(
        leaves,
        tuple(tensors),
        tuple(written),
        tuple(tuple(row) for row in ints),
        tuple((tuple(a), tuple(b)) for a, b in ties),
        exact,
        tuple((a, b) for a, b in same),
    )


_TYPES = {"int": int, "float": float, "bool": bool, "BlockSize": BlockSize}


def _value_text(leaf: Leaf) -> Any:
    value = leaf.value
    if leaf.kind == "tensor":
        return str(value).removeprefix("torch.")
    if leaf.kind == "type":
        return value.__name__
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise exc.CacheError(f"a value of type {type(value).__name__} has no text")


def _value_of(kind: str, value: Any) -> Any:
    if kind == "tensor":
        return getattr(torch, value)
    if kind == "type":
        return _TYPES[value]
    if isinstance(value, dict):
        ((name, text),) = value.items()
        if name == "float":
            return float.fromhex(text)
        return getattr(torch, text) if name == "dtype" else torch.device(text)
    return value


def _path_text(path: Path) -> list[Any]:
    for step in path:
        if not isinstance(step, int | str | tuple):
            raise exc.CacheError(f"a key of type {type(step).__name__} has no text")
    return [list(step) if isinstance(step, tuple) else step for step in path]


def _path_of(steps: list[Any]) -> Path:
    return tuple(tuple(step) if isinstance(step, list) else step for step in steps)
