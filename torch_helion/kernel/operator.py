"""Kernels as operators of torch: what `torch.compile`, functorch, modes and autograd see.

In: a kernel and arguments, possibly fake. Out: a call of an operator `torch_helion::<name>_<hash>`,
defined once for each kind of arguments: its schema says which tensors are written, its fake
implementation runs the host part on fakes, its backward is an operator, too. The operator's node in
a graph is not opaque: :func:`bound_of` gives the kernel, and with it the tile IR.

Dynamo reaches this through `Kernel.__call__`: it puts the kernel's graph function
(:func:`in_graph`) into its graph, and the operator appears when that is traced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import exc
from torch_helion.kernel import arguments, derivative, stored
from torch_helion.kernel.arguments import Path

NAMESPACE = "torch_helion"
_library: torch.library.Library | None = None
_operators: dict[Any, Operator] = {}
_by_name: dict[str, Operator] = {}
_lock = threading.RLock()


def is_watched(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether somebody must see the call as an operator: fakes, wrappers, dispatch modes."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(_is_wrapped(t) for t in tensors)


def _is_wrapped(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if plain:
        return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor) or isinstance(
        tensor, torch._subclasses.FakeTensor | torch._subclasses.functional_tensor.FunctionalTensor
    )


@dataclasses.dataclass(eq=False)
class Operator:
    """One operator: a kernel with one kind of arguments."""

    kernel: Any
    name: str
    paths: list[Path]
    """where the tensors and numbers of the arguments are"""
    kinds: list[str]
    """"Tensor", "SymInt" or "float" of each"""
    constants: Any
    """the arguments with None in the place of each of these"""
    written: list[int]
    """numbers of the tensors that are written"""
    results: Any
    """tree of the results: a number for each that the operator returns, ("arg", i) for an argument
    that is returned as it is, ("value", x) for a constant"""
    overload: Any = None
    backward: Any = None

    def arguments(self, flat: Sequence[Any]) -> tuple[Any, ...]:
        """The kernel's own arguments."""
        if any(len(path) > 1 for path in self.paths):
            return derivative.put(self.constants, self.paths, list(flat))
        args = list(self.constants)
        for path, value in zip(self.paths, flat, strict=True):
            args[path[0]] = value
        return tuple(args)

    @property
    def tensors(self) -> list[int]:
        """Numbers of the inputs that are tensors."""
        return [i for i, kind in enumerate(self.kinds) if kind == "Tensor"]


def call(kernel: Any, args: tuple[Any, ...]) -> Any:
    """Run the kernel as an operator."""
    operator = operator_for(kernel, args)
    flat = [arguments.get(args, path) for path in operator.paths]
    if torch.is_grad_enabled():
        _refuse_written_gradients(operator, flat)
    found = operator.overload(*flat)

    def result(entry: Any) -> Any:
        kind, value = entry
        if kind == "out":
            return found[value]
        return flat[value] if kind == "arg" else value

    return pytree.tree_map(result, operator.results, is_leaf=_is_entry)


def _refuse_written_gradients(operator: Operator, flat: Sequence[Any]) -> None:
    """A store into a tensor whose history autograd keeps would make its gradient wrong."""
    for number in operator.written:
        if flat[number].requires_grad:
            names = list(operator.kernel.signature.parameters)
            raise exc.AutodiffNotSupported(
                f"kernel {operator.kernel.name!r}",
                f"it stores into its argument {names[operator.paths[number][0]]!r}, which "
                "requires grad",
            )


def _is_entry(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and node[0] in ("out", "arg", "value")


def bound_of(overload: Any) -> Any:
    """The :class:`Operator` of an overload that stands in a graph; None if it is no kernel's."""
    name = str(getattr(overload, "name", lambda: "")())
    return _by_name.get(name.removeprefix(f"{NAMESPACE}::").removesuffix(".default"))


def in_graph(kernel: Any, fixed: Mapping[int, Any]) -> Callable[..., Any]:
    """A function that Dynamo puts into its graph as one node; ``fixed``: arguments by position."""

    if arguments.tensors_of(tuple(fixed.values())):
        raise exc.InvalidAPIUsage(
            f"kernel {kernel.name!r} in torch.compile: a function argument holds a tensor of an "
            "enclosing function. Pass the tensor as an argument of its own."
        )

    def helion_kernel(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for place in sorted(fixed):
            given.insert(place, fixed[place])
        return call(kernel, kernel.normalize_args(*given, **kwargs))

    helion_kernel.__name__ = helion_kernel.__qualname__ = f"helion_{kernel.name}"
    import torch._dynamo  # only reached while it is tracing

    return torch._dynamo.allow_in_graph(helion_kernel)


# ---------------------------------------------------------------------- making an operator


def operator_for(kernel: Any, args: tuple[Any, ...]) -> Operator:
    """The operator for arguments like these."""
    table = [(path, _kind(path, leaf, kernel), leaf) for path, leaf in arguments.leaves(args)]
    described = tuple(_described(path, kind, leaf) for path, kind, leaf in table)
    key = (kernel, described)
    with _lock:
        if key not in _operators:
            made = _operators[key] = _make(kernel, args, table, described)
            _by_name[made.name] = made
        return _operators[key]


def _kind(path: Path, leaf: Any, kernel: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return "Tensor"
    if path[0] in kernel.constant_positions or isinstance(leaf, bool):
        return ""
    if isinstance(leaf, int | torch.SymInt):
        return "SymInt"
    return "float" if isinstance(leaf, float | torch.SymFloat) else ""


def _described(path: Path, kind: str, leaf: Any) -> Any:
    if kind == "Tensor":
        return (path, kind, leaf.dtype, leaf.device.type, leaf.dim())
    return (path, kind, None if kind else arguments.key_of(leaf, True, True))


def _make(kernel: Any, args: tuple[Any, ...], table: Any, described: Any) -> Operator:
    chosen = [(path, kind) for path, kind, _ in table if kind]
    constants = arguments.replace_tensors(args, lambda leaf: None if _is_input(leaf) else leaf)
    constants = _keep_constants(args, constants, kernel)
    written, results = _facts(kernel, args, [path for path, _ in chosen])
    operator = Operator(
        kernel,
        _free_name(f"{kernel.name}_{_hash(kernel, described, written)}"),
        [path for path, _ in chosen],
        [kind for _, kind in chosen],
        constants,
        written,
        results,
    )
    _define(operator)
    return operator


def _free_name(name: str) -> str:
    """Equal functions may be decorated twice, with other configs."""
    found, count = name, 1
    while found in _by_name:
        count += 1
        found = f"{name}_{count}"
    return found


def _is_input(leaf: Any) -> bool:
    numbers = int | float | torch.SymInt | torch.SymFloat
    return isinstance(leaf, torch.Tensor) or (
        isinstance(leaf, numbers) and not isinstance(leaf, bool)
    )


def _keep_constants(args: tuple[Any, ...], emptied: Any, kernel: Any) -> tuple[Any, ...]:
    return tuple(
        arg if number in kernel.constant_positions else empty
        for number, (arg, empty) in enumerate(zip(args, emptied, strict=True))
    )


def _hash(kernel: Any, described: Any, written: list[int]) -> str:
    """The same in every process for the same code: graphs that name the operator are cached."""
    try:
        parts = [*stored.code_parts(kernel.fn), stored.text_of_key(described), str(written)]
        text = "\0".join(parts)
    except stored.Unknown:
        text = uuid.uuid4().hex
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _facts(kernel: Any, args: tuple[Any, ...], paths: list[Path]) -> tuple[list[int], Any]:
    """Which inputs are written, and what the results are, by a run on fakes."""
    bound = kernel._bound_for(_with_hints(args))
    fakes, values, results = bound.run_on_fakes()
    inputs = [arguments.get(fakes, path) for path in paths]
    storages: dict[int, int] = {}
    for number, x in enumerate(inputs):
        if isinstance(x, torch.Tensor):
            storages.setdefault(x.untyped_storage()._cdata, number)
    recipe = bound.example_variant().recipe
    touched = [arguments.get(values, recipe.leaves[recipe.tensors[i]].path) for i in recipe.written]
    written = {storages.get(t.untyped_storage()._cdata) for t in touched}
    # In-place operations of the host part on an argument.
    written |= {n for n, x in enumerate(inputs) if isinstance(x, torch.Tensor) and x._version > 0}
    return sorted(n for n in written if n is not None), _result_tree(results, inputs, storages)


def _result_tree(results: Any, inputs: list[Any], storages: dict[int, int]) -> Any:
    outs: dict[int, int] = {}

    def entry(leaf: Any) -> Any:
        for number, x in enumerate(inputs):
            if leaf is x and isinstance(x, torch.Tensor):
                return ("arg", number)
        if not isinstance(leaf, torch.Tensor):
            if isinstance(leaf, torch.SymInt | torch.SymFloat):
                raise exc.InvalidAPIUsage("a traced kernel cannot return a number that varies")
            return ("value", leaf)
        if leaf.untyped_storage()._cdata in storages:
            raise exc.InvalidAPIUsage(
                "a traced kernel cannot return a view of an argument: return a tensor of its own"
            )
        return ("out", outs.setdefault(id(leaf), len(outs)))

    return pytree.tree_map(entry, results)


def _with_hints(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Plain sizes and numbers in the place of symbolic ones."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, torch.SymInt | torch.SymFloat):
            return leaf.node.hint
        if isinstance(leaf, torch.Tensor):
            shape = tuple(_hint(n) for n in leaf.shape)
            strides = tuple(_hint(n) for n in leaf.stride())
            return arguments.TensorLike(shape, strides, leaf.dtype, leaf.device)
        return leaf

    return arguments.replace_tensors(args, plain)


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


# ---------------------------------------------------------------------- definition


def _define(operator: Operator) -> None:
    """Register the operator with everything that torch asks of one."""
    library = _the_library()
    name = operator.name
    count = len({e[1] for e in _entries(operator) if _is_out(e)})
    inputs = [_parameter(i, kind, i in operator.written) for i, kind in enumerate(operator.kinds)]
    returns = f"({', '.join(['Tensor'] * count)})" if count != 1 else "Tensor"
    library.define(f"{name}({', '.join(inputs)}) -> {returns}")
    qualified = f"{NAMESPACE}::{name}"

    def run(*flat: Any) -> Any:
        with torch.no_grad():
            return _outs(operator, operator.kernel.run(operator.arguments(flat)))

    def fake(*flat: Any) -> Any:
        args = operator.arguments(flat)
        host = operator.kernel._bound_for(_with_hints(args)).host_with(_no_launch)
        return _outs(operator, host(*args))

    torch.library.impl(qualified, "CompositeExplicitAutograd", lib=library)(run)
    torch.library.register_fake(qualified, fake, lib=library)
    operator.overload = _Tupled(getattr(getattr(torch.ops, NAMESPACE), name).default, count)
    if not operator.written:
        _define_backward(operator, library, count)


class _Tupled:
    """An overload that always returns a tuple."""

    def __init__(self, overload: Any, count: int) -> None:
        self.overload, self.count = overload, count

    def __call__(self, *flat: Any) -> tuple[Any, ...]:
        found = self.overload(*flat)
        return (found,) if self.count == 1 else tuple(found or ())


def _no_launch(*values: Any) -> None:
    return None


def _entries(operator: Operator) -> list[Any]:
    return pytree.tree_leaves(operator.results, is_leaf=_is_entry)


def _is_out(entry: Any) -> bool:
    return entry[0] == "out"


def _parameter(number: int, kind: str, written: bool) -> str:
    return f"Tensor(a{number}!) x{number}" if written else f"{kind} x{number}"


def _outs(operator: Operator, results: Any) -> Any:
    """Those of the kernel's results that the operator returns."""
    if type(operator.results) is tuple and operator.results == ("out", 0):
        return results
    pairs = zip(pytree.tree_leaves(results), _entries(operator), strict=True)
    outs = list({entry[1]: leaf for leaf, entry in pairs if _is_out(entry)}.values())
    if len(outs) == 1:
        return outs[0]
    return tuple(outs) or None  # as the schema says it


def _define_backward(operator: Operator, library: torch.library.Library, count: int) -> None:
    """The gradient as an operator, and how autograd calls it."""
    name = f"{operator.name}_backward"
    inputs = [_parameter(i, kind, False) for i, kind in enumerate(operator.kinds)]
    grads = [f"Tensor? g{i}" for i in range(count)]
    library.define(f"{name}({', '.join([*inputs, *grads])}, bool[] wanted) -> Tensor[]")
    n = len(operator.kinds)

    def run(*flat: Any) -> list[torch.Tensor]:
        wanted = [k for k, want in enumerate(flat[-1]) if want]
        args = operator.arguments(flat[:n])
        found = derivative.gradients(operator.kernel, args, wanted, flat[n:-1])
        return [g.contiguous() for g in found]

    def fake(*flat: Any) -> list[torch.Tensor]:
        chosen = [flat[i] for i, want in zip(operator.tensors, flat[-1], strict=True) if want]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in chosen]

    qualified = f"{NAMESPACE}::{name}"
    torch.library.impl(qualified, "CompositeExplicitAutograd", lib=library)(run)
    torch.library.register_fake(qualified, fake, lib=library)
    operator.backward = getattr(getattr(torch.ops, NAMESPACE), name).default

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.numbers = [None if isinstance(x, torch.Tensor) else x for x in inputs]
        ctx.save_for_backward(*(inputs[i] for i in operator.tensors))
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        flat = list(ctx.numbers)
        for i, tensor in zip(operator.tensors, ctx.saved_tensors, strict=True):
            flat[i] = tensor
        wanted = [bool(ctx.needs_input_grad[i]) for i in operator.tensors]
        found = iter(operator.backward(*flat, *grads, wanted))
        results: list[Any] = [None] * n
        for i, want in zip(operator.tensors, wanted, strict=True):
            results[i] = next(found) if want else None
        return tuple(results)

    torch.library.register_autograd(
        f"{NAMESPACE}::{operator.name}", backward, setup_context=keep, lib=library
    )


def _the_library() -> torch.library.Library:
    global _library
    if _library is None:
        _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    return _library
