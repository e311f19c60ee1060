"""From a traced region to a kernel: axes, buffers, phases, and calls of the lowering rules.

In: a `Trace`, the instances to store, the runs of atoms that are one axis. Out: an `ir.Kernel`
with the graph's nodes for its buffers and host sizes for its size arguments. Names depend on
roles and positions only, so that equal regions give the same kernel, letter by letter.

A reduction over grid axes is emitted in three parts (`ASSOCIATIVE`): prepare each element and
fold the tile in phase 1, fold the partial results and finish in phase 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from torch_helion import exc
from torch_helion.capture.axes import Atom, Atoms, Key, outputs_of, refusal
from torch_helion.capture.collapse import (
    UNIFORM,
    Dimension,
    access_of,
    flat_place,
    is_random,
    reachable,
)
from torch_helion.capture.node_facts import is_tensor
from torch_helion.capture.sizes import SizeTable, hint_of, host_size
from torch_helion.capture.trace import Gathered, Index, Instance, Trace
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel, Origin, Value
from torch_helion.ir.types import (
    Affine,
    Axis,
    Buffer,
    Gather,
    IndexExpr,
    Size,
    block_symbol,
    contiguous_strides,
    size_symbol,
)
from torch_helion.lowering.promotion import Term, bind, convert, results
from torch_helion.lowering.reduction import ASSOCIATIVE
from torch_helion.lowering.registry import Context, TensorSpec
from torch_helion.lowering.view import Fill, Within, plus, product, same, times

_UNUSED = size_symbol("unused")
"""Stands for a size in a spec that no rule should compute with."""

_DIVISIONS = frozenset(("truncdiv", "floordiv", "remainder", "fmod"))


class CollapseError(Exception):
    """Something needs one axis of a run by itself."""


@dataclass(frozen=True)
class Emitted:
    kernel: Kernel
    tensors: tuple[fx.Node, ...]
    sizes: tuple[Size, ...]
    hints: dict[sympy.Symbol, int]


@dataclass
class Phase:
    """The axes of one grid loop: which axis each run is, by the name of the run's last atom."""

    number: int
    axes: dict[str, Axis]
    values: dict[Instance, Value]


class Emitter:
    """Builds one kernel."""

    def __init__(self, trace: Trace, name: str, runs: Sequence[Atoms]) -> None:
        self.trace = trace
        self.template = trace.template
        self.sizes: SizeTable = trace.sizes
        self.b = _GuardedBuilder(name)
        self.runs = [tuple(trace.name(a) for a in run) for run in runs]
        self.run_of = {name: run for run in self.runs for name in run}
        self.tensors: list[fx.Node] = []
        self.phase = Phase(0, {}, {})
        self.partials: dict[fx.Node, tuple[Buffer, str, dict[str, Any]]] = {}
        self._tiles: Axis
        """Of phase 2: the tiles of the axis that was folded."""
        self._buffers: dict[Any, Buffer] = {}
        self._lonely: set[sympy.Symbol] = set()

    # -- the kernel -----------------------------------------------------------------------------

    def emit(
        self, stores: Mapping[fx.Node, Instance], folds: Mapping[fx.Node, Instance]
    ) -> Emitted:
        """`stores`: outputs in order. `folds`: the calls of reductions over grid axes."""
        second = self._second(stores)
        grid = self._declare_phase_axes()
        first = [i for node, i in stores.items() if node not in second]
        with self.b.grid(*grid):
            for instance in reachable([*first, *(p for i in folds.values() for p in i.parts())]):
                self.value(instance)  # operands first: no deep recursion
            for node, instance in stores.items():
                if node not in second:
                    self._store(node, instance)
            for call, instance in folds.items():
                self._fold_tile(call, instance)
        if folds:
            self._finish(stores, second)
        kernel = self.b.build()
        outer = tuple(self.sizes.values[s] for s in kernel.sizes)
        order = {b.name: n for b, n in zip(self._arguments(), self.tensors, strict=True)}
        tensors = tuple(order[b.name] for b in kernel.arguments)
        return Emitted(kernel, tensors, outer, self.sizes.hints())

    def _second(self, stores: Mapping[fx.Node, Instance]) -> set[fx.Node]:
        nodes = {*self.template.outer, *self.template.finish}
        return {n for n in stores if n in nodes or self.trace.facts.call(n) in nodes}

    def _arguments(self) -> list[Buffer]:
        return [b for b in self._buffers.values() if b.role != "workspace"]

    def _declare_phase_axes(self) -> list[Axis]:
        grid: list[Axis] = []
        whole = 0
        for run in self.runs:
            atoms = [self.trace.atoms[name] for name in run]
            size = self._run_size(run)
            if atoms[0] in self.template.grid:
                axis = self.b.axis(f"i{len(grid)}", size)
                grid.append(axis)
            else:
                axis = self.b.axis(f"r{whole}", size, "full")
                whole += 1
            self.phase.axes[run[-1]] = axis
        return grid

    def _run_size(self, run: Sequence[str]) -> Size:
        """The extent of a run: one number, or one size argument; its atoms by themselves have
        none.
        """
        extents = [self.trace.extents[name] for name in run]
        symbols = [e for e in extents if isinstance(e, sympy.Symbol)]
        if not symbols:
            return product(extents)
        size = self.sizes.declare(self.b, self.sizes.to_host(product(extents)))
        first, *others = symbols
        for other in others:
            lonely = size_symbol(f"{other}_alone")
            self._lonely.add(lonely)
            self.sizes.bind(other, lonely)
        rest = product(self.sizes.final(self.b, e) for e in extents if e is not first)
        self.sizes.bind(first, size / rest)
        return size

    def final(self, size: Size) -> Size:
        """A trace size in the kernel's symbols."""
        value = self.sizes.final(self.b, size)
        if isinstance(value, sympy.Expr) and value.free_symbols & self._lonely:
            raise CollapseError
        return value

    # -- places ---------------------------------------------------------------------------------

    def affine(self, place: Affine) -> Affine:
        """A place over trace axes as one over the phase's."""
        coefficients = dict(place.terms)
        terms = []
        for name, coefficient in place.terms:
            run = self.run_of.get(name)
            if run is None or run[-1] not in self.phase.axes:
                raise CollapseError
            if name != run[-1]:
                self._check_run(run, name, coefficients)
                continue
            if any(n not in coefficients for n in run):
                raise CollapseError
            terms.append((self.phase.axes[name].name, self.final(coefficient)))
        return Affine(tuple(terms), self.final(place.offset))

    def _check_run(self, run: Sequence[str], name: str, coefficients: Mapping[str, Size]) -> None:
        follower = run[run.index(name) + 1]
        step = coefficients.get(follower)
        if step is None or not same(coefficients[name], step * self.trace.extents[follower]):
            raise CollapseError

    def axes_of(self, atoms: Sequence[Atom]) -> tuple[Axis, ...]:
        """The axes of a product of atoms; a run counts at its last atom."""
        names = [self.trace.name(a) for a in atoms]
        return tuple(self.phase.axes[n] for n in names if n in self.phase.axes)

    def position(self, place: Affine) -> Value:
        """The number of a place, int64."""
        b, kernel_place = self.b, self.affine(place)
        total: Value | None = None
        for name, coefficient in kernel_place.terms:
            value = b.iota(next(a for a in self.phase.axes.values() if a.name == name))
            if coefficient != 1:
                value = b.pointwise("mul", value, b.size_value(coefficient))
            total = value if total is None else b.pointwise("add", total, value)
        if total is None:
            return b.size_value(kernel_place.offset)
        if kernel_place.offset == 0:
            return total
        return b.pointwise("add", total, b.size_value(kernel_place.offset))

    def condition(self, where: Sequence[Within]) -> Value | None:
        """The conjunction of conditions as a bool; None where there is nothing to ask."""
        tests: list[Value] = []
        for c in where:
            open_ends = self.trace.open_ends(c)
            place = self.position(c.place) if any(open_ends) else None
            for fn, limit, is_open in zip(("ge", "lt"), (c.low, c.high), open_ends, strict=True):
                if is_open and place is not None:
                    bound = self.b.size_value(self.final(limit))
                    tests.append(self.b.pointwise(fn, place, bound))
        result: Value | None = None
        for test in tests:
            result = test if result is None else self.b.pointwise("and", result, test)
        return result

    # -- memory ---------------------------------------------------------------------------------

    def _buffer(self, node: fx.Node, dims: Sequence[Dimension], role: str) -> Buffer:
        shape = tuple(self.final(d.extent) for d in dims)
        key = (node, role, shape, tuple(d.stride for d in dims))
        if key not in self._buffers:
            prefix = "arg" if role == "in" else "out"
            name = f"{prefix}{sum(b.name.startswith(prefix) for b in self._buffers.values())}"
            strides = self._strides(name, dims, shape)
            dtype = node.meta["val"].dtype
            self._buffers[key] = self.b.buffer(name, dtype, shape, strides, role)  # type: ignore[arg-type]
            self.tensors.append(node)
        return self._buffers[key]

    def _strides(
        self, name: str, dims: Sequence[Dimension], shape: Sequence[Size]
    ) -> tuple[Size, ...]:
        """Products of the sizes where the layout is dense, a size argument where it is not."""

        def likely(d: int) -> tuple[int, int]:
            return hint_of(dims[d].stride, self.sizes.graph_hints) or 0, -d

        strides: list[Size] = [0] * len(dims)
        host: Size = 1
        step: Size = 1
        for d in sorted(range(len(dims)), key=likely):
            if dims[d].stride == 0:
                continue
            if not same(dims[d].stride, host):
                host = dims[d].stride
                step = self.sizes.declare(self.b, host, f"stride_{name}_{d}")
            strides[d] = step
            host, step = host * dims[d].host, step * shape[d]
        return tuple(strides)

    def _dimensions(self, node: fx.Node, key: Key, index: Index) -> list[Dimension]:
        """The dimensions of an access, those that one run spans made one."""
        dims = list(access_of(self.trace, node, key, index).dimensions)
        for run in self.runs:
            at = [
                d
                for d in dims
                if isinstance(d.place, Affine) and set(d.place.axis_names) & set(run)
            ]
            while len(at) > 1:
                by_place = sorted(at, key=lambda d: self._first_in_run(d, run))
                outer, inner = by_place[0], by_place[1]
                joined = _joined(outer, inner)
                dims = [joined if d is inner else d for d in dims if d is not outer]
                at = [joined, *by_place[2:]]
        return dims

    def _first_in_run(self, dimension: Dimension, run: Sequence[str]) -> int:
        assert isinstance(dimension.place, Affine)
        return min(run.index(n) for n in dimension.place.axis_names if n in run)

    def _index(self, dims: Sequence[Dimension]) -> tuple[list[IndexExpr], list[Value]]:
        index: list[IndexExpr] = []
        gathered: list[Value] = []
        for d in dims:
            if isinstance(d.place, Gathered):
                index.append(Gather(len(gathered)))
                gathered.append(self._gathered(d.place))
            else:
                index.append(self.affine(d.place))
        return index, gathered

    def _gathered(self, place: Gathered) -> Value:
        value = self.b.cast(self.value(place.index), torch.int64)
        if not place.wrap:
            return value
        negative = self.b.pointwise("lt", value, self.b.const(0, torch.int64))
        end = self.b.pointwise("add", value, self.b.size_value(self.final(place.size)))
        return self.b.pointwise("where", negative, end, value)

    def _load(self, instance: Instance) -> Value:
        dims = self._dimensions(instance.node, instance.use, instance.index)
        buffer = self._buffer(instance.node, dims, "in")
        index, gathered = self._index(dims)
        mask = self.condition(instance.guards)
        return self.b.load(buffer, index, gathered, mask, checked=bool(gathered))

    def _store(self, node: fx.Node, instance: Instance) -> None:
        self.store_value(node, self.value(instance))

    def store_value(self, node: fx.Node, value: Value) -> None:
        """Write an output of the region, at its canonical index."""
        dims = self._dimensions(node, node, self.trace.canonical(node))
        _check_dense(node, dims)
        buffer = self._buffer(node, dims, "out")
        index, _ = self._index(dims)
        axes = [
            a
            for a in self.phase.axes.values()
            if any(a.name in e.axis_names for e in index if isinstance(e, Affine))
        ]
        self.b.origin = Origin()
        self.b.store(buffer, index, self.b.expand(value, axes))

    # -- values ---------------------------------------------------------------------------------

    def value(self, instance: Instance) -> Any:
        """The value of an instance in the current phase (a tuple for calls with several
        results).
        """
        if instance not in self.phase.values:
            self.phase.values[instance] = self._compute(instance)
        return self.phase.values[instance]

    def _compute(self, instance: Instance) -> Any:
        if instance.kind == "load":
            return self._load(instance)
        if instance.kind == "item":
            results_ = self.value(instance.operands[()])
            number = self.trace.facts.output_number(instance.node)
            return results_[number] if isinstance(results_, tuple | list) else results_
        if instance.kind == "select":
            return self._select(instance)
        if instance.node in self.template.outer:
            return self._finished(instance)
        return self._call(instance)

    def _select(self, instance: Instance) -> Value:
        dtype = instance.node.meta["val"].dtype

        def chosen(source: Instance | Fill) -> Value:
            if isinstance(source, Fill):
                return self.b.cast(self.b.const(_number(source.value, dtype), _wide(dtype)), dtype)
            return self.value(source)

        *tested, (_, last) = instance.branches
        result = chosen(last)
        for where, source in reversed(tested):
            test = self.condition(where)
            result = (
                chosen(source)
                if test is None
                else self.b.pointwise("where", test, chosen(source), result)
            )
        return result

    def _call(self, instance: Instance) -> Any:
        """Call the lowering rule of a node."""
        node = instance.node
        row = self.trace.facts.row(node)
        values = {path: self.value(operand) for path, operand in instance.operands.items()}
        cx = self.context(instance)
        self.b.origin = Origin(str(node.target))
        self.b.guarded = bool(instance.guards)
        try:
            return row.rule(
                cx, *self._arguments_of(node, values), **self._keywords_of(node, values)
            )
        except CollapseError:
            raise
        except Exception as error:  # a rule that fails in any way leaves its node to the host
            raise refusal(node, _sentence(error)) from error
        finally:
            self.b.guarded = False
            self.b.origin = Origin()

    def _arguments_of(self, node: fx.Node, values: Mapping[Any, Value]) -> list[Any]:
        return [self._argument(a, (i,), values) for i, a in enumerate(node.args)]

    def _keywords_of(self, node: fx.Node, values: Mapping[Any, Value]) -> dict[str, Any]:
        return {name: self._argument(a, (name,), values) for name, a in node.kwargs.items()}

    def _argument(
        self, argument: Any, path: tuple[Any, ...], values: Mapping[Any, Value] | None
    ) -> Any:
        """An argument as a rule takes it (values None: as PyTorch sees it, with fakes)."""
        if isinstance(argument, fx.Node):
            if is_tensor(argument):
                return argument.meta["val"] if values is None else values[path]
            value = argument.meta["val"]
            if isinstance(value, torch.SymInt):
                return self.final(self.sizes.argument(host_size(value)))
            return value
        if isinstance(argument, list | tuple):
            return [self._argument(a, (*path, i), values) for i, a in enumerate(argument)]
        return argument

    # -- contexts -------------------------------------------------------------------------------

    def context(self, instance: Instance) -> Context:
        node = instance.node
        operands = dict(self.trace.facts.operands(node))
        folds = node in self.trace.space.folded
        inputs = tuple(
            self._spec(operands[(i,)], (node, (i,)), folds) if (i,) in operands else None
            for i in range(len(node.args))
        )
        outputs = tuple(self._result_specs(instance, folds))
        return Context(
            self.b,
            node.target,  # type: ignore[arg-type]
            tuple(self._argument(a, (i,), None) for i, a in enumerate(node.args)),
            {name: self._argument(a, (name,), None) for name, a in node.kwargs.items()},
            inputs,
            outputs,
        )

    def _result_specs(self, instance: Instance, folds: bool) -> list[TensorSpec]:
        node = instance.node
        if is_random(self.trace, instance):
            flat = self.affine(flat_place(self.trace, instance))
            total = self._spec_size(product(self.trace.shape(node)))
            return [TensorSpec(node.meta["val"].dtype, (total,), ((),), (flat,))]
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            spec = self._spec(node, node, folds)
            return [self._positioned(spec, instance)]
        items = {self.trace.facts.output_number(n): n for n in outputs_of(node)}
        specs = []
        for number, fake in enumerate(value):
            key = items.get(number)
            if key is None:
                specs.append(TensorSpec(fake.dtype, (_UNUSED,) * fake.dim()))
            else:
                specs.append(self._spec(key, key, folds))
        return specs

    def _positioned(self, spec: TensorSpec, instance: Instance) -> TensorSpec:
        """With the position along each dimension, for rules that compute from positions."""
        row = self.trace.facts.row(instance.node)
        if row.kind not in ("creation", "random") or instance.node.target in UNIFORM:
            return spec
        places = []
        for place in instance.index:
            if not isinstance(place, Affine):
                raise refusal(instance.node, "its position is read from memory")
            places.append(self.affine(place))
        return TensorSpec(spec.dtype, spec.shape, spec.dims, tuple(places))

    def _spec(self, node: fx.Node, key: Key, folds: bool) -> TensorSpec:
        """Sizes and axes of an operand or result. Axes only mean something where a reduction
        asks.
        """
        dtype = node.meta["val"].dtype
        shape = tuple(self._spec_size(n) for n in self.trace.shape(key))
        if not folds or key not in self.trace.space.dims:
            return TensorSpec(dtype, shape)
        return TensorSpec(
            dtype, shape, tuple(self.axes_of(atoms) for atoms in self.trace.space.of(key))
        )

    def _spec_size(self, size: Size) -> Size:
        """A size in the kernel's symbols if it has any there; a rule that computes with another
        is refused.
        """
        if isinstance(size, int) or size.free_symbols <= set(self.sizes.bound):
            value = self.sizes.final(self.b, size)
            if isinstance(value, int) or not value.free_symbols & self._lonely:
                return value
        return _UNUSED

    # -- two phases -----------------------------------------------------------------------------

    def _fold_tile(self, call: fx.Node, instance: Instance) -> None:
        """Phase 1 of a reduction over grid axes: the partial result of this step's tile."""
        steps, cx = ASSOCIATIVE[call.target], self.context(instance)  # type: ignore[index]
        values = {path: self.value(operand) for path, operand in instance.operands.items()}
        args, kwargs = self._arguments_of(call, values), self._keywords_of(call, values)
        self.b.origin = Origin(str(call.target))
        options = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
        element = steps.prepare(cx, convert(cx, args[0], args[0].type.dtype), options).value
        axes = self.axes_of(self.trace.space.leaves(self.trace.space.folded[call]))
        cut = [a for a in axes if a.kind == "block"]
        if len(cut) != 1:
            raise refusal(call, "a reduction over several grid axes that are not one")
        fn = steps.fold_name(options)
        partial = self.b.reduce(fn, self.b.expand(element, axes), axes, hint="partial")
        kept = [a for n, a in self.phase.axes.items() if self.trace.atoms[n] in self.template.kept]
        tiles = sympy.ceiling(cut[0].size / block_symbol(cut[0].name))
        shape = (tiles, *(a.size for a in kept))
        name = f"partial{len(self.partials)}"
        dtype = partial.type.dtype
        buffer = self.b.buffer(name, dtype, shape, contiguous_strides(shape), "workspace")
        index = [Affine.of(cut[0].id_name), *(Affine.of(a) for a in kept)]
        self.b.store(buffer, index, self.b.expand(partial, kept))
        self.partials[call] = (buffer, fn, options)
        self.b.origin = Origin()

    def _finish(self, stores: Mapping[fx.Node, Instance], second: set[fx.Node]) -> None:
        """Phase 2: fold the partial results over the tiles, then everything that depends on
        them.
        """
        first = self.phase
        self.phase = Phase(1, {}, {})
        grid: list[Axis] = []
        for last, axis in first.axes.items():
            if self.trace.atoms[last] in self.template.kept:
                grid.append(self.b.axis(f"o{len(grid)}", axis.size))
                self.phase.axes[last] = grid[-1]
        self._tiles = self.b.axis("t", next(iter(self.partials.values()))[0].shape[0], "full")
        with self.b.grid(*grid):
            for node, instance in stores.items():
                if node in second:
                    self._store(node, instance)

    def _finished(self, instance: Instance) -> Value:
        call = instance.node
        buffer, fn, options = self.partials[call]
        kept = [Affine.of(a) for a in self.phase.axes.values()]
        parts = self.b.load(buffer, [Affine.of(self._tiles), *kept])
        total = self.b.reduce(fn, parts, [self._tiles], hint="total")
        cx = self.context(instance)
        folded = self.trace.space.leaves(self.trace.space.folded[call])
        count = self.final(product(self.trace.size(a) for a in folded))
        steps = ASSOCIATIVE[call.target]  # type: ignore[index]
        value: Value = results(cx, steps.finish(cx, Term(cx, total), count, options))
        return value


def _joined(outer: Dimension, inner: Dimension) -> Dimension:
    """Two neighbouring dimensions of one dense block as one."""
    assert isinstance(outer.place, Affine) and isinstance(inner.place, Affine)
    if not same(outer.stride, inner.stride * inner.host):
        raise CollapseError
    place = plus(times(outer.place, inner.extent), inner.place)
    return Dimension(place, outer.host * inner.host, outer.extent * inner.extent, inner.stride)


def _check_dense(node: fx.Node, dims: Sequence[Dimension]) -> None:
    """An output's elements must fill its memory one by one."""
    total: Size = 1
    left = list(dims)
    while left:
        found = next((d for d in left if same(d.stride, total)), None)
        if found is None:
            raise refusal(node, f"its strides {[d.stride for d in dims]} leave gaps or overlap")
        total = total * found.host
        left.remove(found)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _number(value: float | int | bool, dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float(value)
    return bool(value) if dtype is torch.bool else int(value)


def _sentence(error: Exception) -> str:
    if isinstance(error, exc.Base):
        return str(getattr(error, "why", None) or error)
    return f"{type(error).__name__}: {error}"


class _GuardedBuilder(Builder):
    """Refuses code that could fail on lanes which only exist because a condition is tested
    later.
    """

    guarded = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._nonzero: set[Value] = set()

    def const(self, value: float | int | bool, dtype: torch.dtype) -> Value:
        result = super().const(value, dtype)
        if value:
            self._nonzero.add(result)
        return result

    def size_value(self, expr: Size) -> Value:
        if isinstance(expr, sympy.Expr) and _UNUSED in expr.free_symbols:
            raise exc.VerifierError("a rule computes with a size that the kernel has not")
        return super().size_value(expr)

    def pointwise(self, fn: str, *operands: Value, hint: str = "") -> Value:
        risky = fn in _DIVISIONS and not operands[0].type.dtype.is_floating_point
        if self.guarded and risky and operands[1] not in self._nonzero:
            raise exc.VerifierError(f"an integer {fn} whose operands are read under a condition")
        return super().pointwise(fn, *operands, hint=hint)
