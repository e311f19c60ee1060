"""Everything that we use of Inductor's internals; no other file imports them.

What flows in: calls of our graph nodes, graphs to compile. What flows out: Inductor's IR for our
kernels, lines of its output code, its compiled graphs. Read on torch 2.11 to 2.14: where a version
lacks a name, :data:`unavailable` says which, and graphs are compiled by plain Inductor.

How a graph is hosted (:func:`hosted`): while one of our graphs is lowered, three entries of
Inductor's are ours: which nodes go to ATen (:func:`runs_in_aten`: all but a few), how views and
matrix products are lowered (views stay views, products become calls with preallocated outputs), and
the set-up of pattern tables, which nothing uses when patterns are off.

File length: whatever knows Inductor stands here, so that a new version of it is one file to try.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from torch_helion import _logging
from torch_helion.capture import program_lines

log = _logging.get_logger("capture")
aten = torch.ops.aten

unavailable: str | None = None
"""Why graphs cannot be hosted in this version of torch; None if they can."""


def _internal(name: str) -> Any:
    """A module or a name in one (untyped: these are not public)."""
    module, _, attribute = name.partition(":")
    loaded = importlib.import_module(f"torch._inductor{module}")
    return getattr(loaded, attribute) if attribute else loaded


class _Template:
    """A template of Inductor's, compiled at its first use."""

    def __init__(self, compile_it: Callable[[str], Any], source: str) -> None:
        self._make = functools.cache(lambda: compile_it(source))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


@contextlib.contextmanager
def _templates_compiled_when_used() -> Iterator[None]:
    """While Inductor is imported: its 21 templates for GPUs took a third of the import, 0.3 s."""
    common = _internal(".codegen.common")
    owner: Any = getattr(common, "KernelTemplate", None)
    original = vars(owner).get("_template_from_string") if owner is not None else None
    if not isinstance(original, staticmethod) or common.jinja2_env() is None:
        yield  # another version: nothing is gained
        return
    owner._template_from_string = staticmethod(functools.partial(_Template, original.__func__))
    try:
        yield
    finally:
        owner._template_from_string = original


try:
    config = _internal(".config")
    with _templates_compiled_when_used():
        _graph = _internal(".graph")
    _lowering = _internal(".lowering")
    _prims = _internal(".inductor_prims")
    ir = _internal(".ir")
    _metrics = _internal(".metrics")
    _wrapper = _internal(".codegen.wrapper")
    _compile_fx = _internal(".compile_fx")
    _joint_graph = _internal(".fx_passes.joint_graph")
    V = _internal(".virtualized:V")
    _GraphPassBase: Any = _internal(".custom_graph_pass:CustomGraphPass")
    _ExternKernel: Any = ir.ExternKernel
    _InputsKernel: Any = ir.InputsKernel
    _WrapperLine: Any = _wrapper.WrapperLine
    for _name in ("post_grad_custom_post_pass", "fallback_by_default", "size_asserts"):
        if not hasattr(config, _name):
            raise AttributeError(f"Inductor has no option {_name!r}")
    for _owner, _name in (
        (_graph, "should_fallback_by_default"),
        (_graph, "fallback_handler"),
        (torch._library.utils, "mutates_and_returns_first_arg"),
        (_joint_graph, "lazy_init"),
        (_lowering, "fallback_handler"),
        (ir.ExternKernel, "require_exact_strides"),
        (ir, "ReinterpretView"),
        (_wrapper, "AllocateLine"),
        (_wrapper.PythonWrapperCodegen, "run_wrapper_ir_passes"),
    ):
        if not hasattr(_owner, _name):
            raise AttributeError(f"{_owner.__name__} has no {_name!r}")
except Exception as _error:  # whatever else goes wrong while a foreign version is imported
    unavailable = f"torch {torch.__version__} lacks what our nodes need: {_error}"
    _GraphPassBase = _ExternKernel = _InputsKernel = _WrapperLine = object

_hosting = threading.RLock()


# ---------------------------------------------------------------------- options


@functools.cache
def option_names() -> frozenset[str]:
    """Every option that ``torch.compile(options=...)`` takes for Inductor."""
    return frozenset(config.get_config_copy()) if unavailable is None else frozenset()


def option_type(name: str) -> Any:
    """The type of an option's values, None where this version does not say."""
    try:
        return config.get_type(name)
    except (AttributeError, KeyError):
        return None


def mode_options(mode: str) -> Mapping[str, Any]:
    """Inductor's options of a mode of ``torch.compile``; those it does not know change nothing."""
    return _internal(":list_mode_options")().get(mode, {})


def option(name: str) -> Any:
    """The value in force."""
    return functools.reduce(getattr, name.split("."), config)


def known_options(patches: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``patches`` that this version of Inductor has."""
    return {name: value for name, value in patches.items() if name in option_names()}


# ---------------------------------------------------------------------- compiling


def compile_plain(gm: GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The graph as Inductor alone compiles it."""
    compile_fx = _internal(".compile_fx:compile_fx")
    return compile_fx(gm, list(inputs), config_patches=dict(options) or None)


def compile_hosted(
    gm: GraphModule,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    inner: Callable[..., Any],
) -> Any:
    """The graph compiled by Inductor with ``inner`` in the place of its ``compile_fx_inner``."""
    with config.patch(dict(options)):  # the table depends on them
        table = decompositions()
    with _without_pattern_tables():
        return _compile_fx.compile_fx(
            gm,
            list(inputs),
            inner_compile=inner,
            config_patches=dict(options),
            decompositions=table,
        )


# Decomposed, these lose a check of their arguments that the program relies on.
_KEPT_WHOLE = (aten.binary_cross_entropy.default, aten.binary_cross_entropy_backward.default)

# ATen rounds these once, at their end; their rules in Inductor's table round after every step.
_ROUNDED_ONCE = (*(aten.lerp.Scalar, aten.lerp.Tensor, aten.addcmul.default, aten.addcdiv.default),)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Inductor's table without what must stay whole.

    Inductor's cache keys do not hold the table: it may only depend on our sources and on options,
    both of which the key of our pass and the options themselves bring into it.
    """
    table = _internal(".decomposition:select_decomp_table")()
    kept = {op: rule for op, rule in table.items() if op not in _KEPT_WHOLE}
    return {op: _rounded_once(rule) if op in _ROUNDED_ONCE else rule for op, rule in kept.items()}


def _rounded_once(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule, in float32 between where all tensors are of one half type."""

    @functools.wraps(rule)
    def rounded_once(*args: Any, **kwargs: Any) -> Any:
        dtypes = {a.dtype for a in args if isinstance(a, torch.Tensor)}
        if len(dtypes) != 1 or not dtypes <= {torch.bfloat16, torch.float16}:
            return rule(*args, **kwargs)
        wide = (a.float() if isinstance(a, torch.Tensor) else a for a in args)
        return rule(*wide, **kwargs).to(dtypes.pop())

    return rounded_once


def compile_inner(gm: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
    """One forward, backward or inference graph, hosted."""
    if "get_decomp_fn" in kwargs:  # a part of the cache key, which our table's functions cannot be
        kwargs["get_decomp_fn"] = _internal(".decomposition:select_decomp_table")
    with _without_pattern_tables(), hosted(), _constants_allowed(inputs):
        return _compile_fx.compile_fx_inner(gm, inputs, **kwargs)


def compile_inner_plain(
    gm: GraphModule, inputs: Sequence[Any], options: Mapping[str, Any], **kwargs: Any
) -> Any:
    """One forward, backward or inference graph by Inductor alone, with these options."""
    with config.patch(known_options(options)):
        return _compile_fx.compile_fx_inner(gm, inputs, **kwargs)


@contextlib.contextmanager
def hosted() -> Iterator[None]:
    """Our lowerings in Inductor's tables, for one graph that is lowered inside."""
    table = _lowering.lowerings
    ours = lowered_by_us()
    with (
        _hosting,
        _replaced(_graph, "should_fallback_by_default", runs_in_aten),
        _replaced(_graph, "fallback_handler", _call_of_aten),
        _replaced(_wrapper.PythonWrapperCodegen, "run_wrapper_ir_passes", _run_wrapper_passes),
    ):
        theirs = {op: table.get(op) for op in ours}
        table.update(ours)
        try:
            yield
        finally:
            for op, lower in theirs.items():
                if lower is None:
                    table.pop(op, None)
                else:
                    table[op] = lower


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def _without_pattern_tables() -> Iterator[None]:
    """Where patterns are off, their tables are not set up (0.7 s, once per process)."""
    set_up = _joint_graph.lazy_init

    def set_up_if_used(*args: Any, **kwargs: Any) -> Any:
        return set_up(*args, **kwargs) if config.pattern_matcher else None

    with _hosting, _replaced(_joint_graph, "lazy_init", set_up_if_used):
        yield


@contextlib.contextmanager
def _constants_allowed(inputs: Sequence[Any]) -> Iterator[None]:
    """Inductor runs fake implementations on real constants, which the fake mode must allow."""
    mode = torch._guards.detect_fake_mode(list(inputs))
    if mode is None:
        yield
        return
    allowed, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = allowed


@contextlib.contextmanager
def without_caches() -> Iterator[None]:
    """Graphs compiled inside are neither taken from Inductor's caches nor put there."""
    functorch_config = importlib.import_module("torch._functorch.config")
    with (
        config.patch({"fx_graph_cache": False, "fx_graph_remote_cache": False}),
        functorch_config.patch({"enable_autograd_cache": False}),  # type: ignore[attr-defined]
    ):
        yield


@contextlib.contextmanager
def written_programs() -> Iterator[list[str]]:
    """The text of every program that Inductor writes inside."""
    programs: list[str] = []
    original = _graph.GraphLowering.save_output_code
    _graph.GraphLowering.save_output_code = staticmethod(programs.append)
    try:
        yield programs
    finally:
        _graph.GraphLowering.save_output_code = original


def quiet_runtime() -> None:
    """No profiler records around the calls that dynamo generates now (1.5 to 1.9 µs a call).

    dynamo reads the option after the backend has returned, so it is put back when dynamo says that
    the compilation has ended.
    """
    from torch._dynamo import callback
    from torch._dynamo import config as dynamo_config

    handler = getattr(callback, "callback_handler", None)
    if handler is None or not getattr(dynamo_config, "record_runtime_overhead", False):
        return
    dynamo_config.record_runtime_overhead = False

    def put_back(*unused: Any) -> None:
        dynamo_config.record_runtime_overhead = True
        # dynamo iterates over the live list: it is replaced, not changed
        handler.end_callbacks = [c for c in handler.end_callbacks if c is not put_back]

    handler.register_end_callback(put_back)


class DirectProgram:
    """A compiled inference program below a wrapper of AOTAutograd that passes everything on."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    @property
    def current_callable(self) -> Callable[[list[Any]], Any]:
        return self._graph.current_callable

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[tuple[list[Any], Any]]]:
        """The arguments and results of the calls that this thread makes inside."""
        program, thread = self._graph.current_callable, threading.get_ident()
        seen: list[tuple[list[Any], Any]] = []

        def watch(inputs: list[Any]) -> Any:
            given = list(inputs)  # the program empties its list
            returned = program(inputs)
            if threading.get_ident() == thread:
                seen.append((given, returned))
            return returned

        with _replaced(self._graph, "current_callable", watch):
            yield seen


# What AOTAutograd's generated wrapper names where it only turns gradients off and counts outputs.
_PLAIN_WRAPPER = {"torch", "_C", "is_grad_enabled", "_set_grad_enabled", "isinstance", "tuple"}
_PLAIN_WRAPPER |= {"list", "len", "AssertionError"}


def direct_program(compiled: Any) -> DirectProgram | None:
    """The program that ``compiled`` (a result of ``compile_hosted``) calls, if nothing but a plain
    wrapper stands between the two."""
    graph_type = _internal(".output_code:CompiledFxGraph")
    below, plain = compiled, False
    for _ in range(8):
        if isinstance(below, graph_type):
            return DirectProgram(below) if plain and _runs_as_it_is(below) else None
        cells = inspect.getclosurevars(below).nonlocals if inspect.isfunction(below) else {}
        wrapper = cells.get("_codegen_runtime_wrapper")
        if wrapper is not None:
            names = {*wrapper.__code__.co_names, *(wrapper.__globals__.keys() - {"__builtins__"})}
            plain = names <= _PLAIN_WRAPPER
        if cells.get("params_buffers_flat"):
            return None
        below = getattr(below, "__wrapped__", None) or getattr(below, "compiled_fn", None)
    return None


def _runs_as_it_is(graph: Any) -> bool:
    """Whether a call of the graph is a call of its program, up to records of profilers."""
    return (
        getattr(graph, "current_callable", None) is not None
        and not getattr(graph, "_wrap_compiled_regions", True)
        and not _internal(".debug").RECORD_GRAPH_EXECUTION
    )


def has_cpp_compiler() -> bool:
    """Whether Inductor would find a C++ compiler."""
    names = option("cpp.cxx")
    names = names if isinstance(names, tuple | list) else (names,)
    return any(name and shutil.which(str(name).split()[0]) for name in names)


def generated_cpp_kernels() -> int:
    """How many kernels Inductor has generated itself in this process."""
    return int(getattr(_metrics, "generated_kernel_count", 0))


# ---------------------------------------------------------------------- who runs a node


def _call_of_aten(op: Any, add_to_fallback_set: bool = True) -> Callable[..., Any]:
    """The lowering of a node that goes to ATen.

    What an operator returns that writes its first argument *is* that argument. Inductor's own
    handler makes a buffer of it that memory planning takes for another one: the memory would be
    reused while the result is still read.
    """
    call = _lowering.fallback_handler(op, add_to_fallback_set)
    if not isinstance(op, torch._ops.OpOverload):
        return call
    if not torch._library.utils.mutates_and_returns_first_arg(op):
        return call

    def call_and_return_argument(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        return args[0] if args else kwargs["self"]

    return call_and_return_argument


_LOWERED_BY_INDUCTOR: tuple[str, ...] = (
    # sizes and numbers, not tensors: no code is generated for them
    "aten.sym_size.int",
    "aten.sym_stride.int",
    "aten.sym_numel.default",
    "aten.sym_storage_offset.default",
    "aten._local_scalar_dense.default",
    "aten._assert_scalar.default",
    # calls with preallocated outputs
    "prims.inductor_seeds.default",
    # their lowerings know of storages and process groups
    "aten.set_.source_Tensor",
    "inductor.resize_storage_bytes_.default",
    "fsdp.copy_.default",
)


@functools.cache
def _kept_by_inductor() -> frozenset[Any]:
    found = set(lowered_by_us())
    for name in _LOWERED_BY_INDUCTOR:
        namespace, op, overload = name.split(".")
        try:
            found.add(getattr(getattr(getattr(torch.ops, namespace), op), overload))
        except AttributeError:  # not in this version, or its library is not loaded
            continue
    return frozenset(found)


def runs_in_aten(node: Node) -> bool:
    """Whether a node is a call of ATen, not lowered further.

    The rule: every operator is, except views and matrix products (lowered by us below), sizes and
    numbers, collectives, and higher-order operators, whose graphs Inductor must see.
    """
    if not config.fallback_by_default:
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return node.target is getattr(
            torch.ops.higher_order, "triton_kernel_wrapper_functional", None
        )
    if node.target in _kept_by_inductor():
        return False
    return getattr(node.target, "namespace", "") != "_c10d_functional"


# ---------------------------------------------------------------------- views and products

_VIEWS: tuple[Any, ...] = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.as_strided.default,
    aten.diagonal.default,
    aten.unfold.default,
    aten.alias.default,
    aten.detach.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
)


@functools.cache
def lowered_by_us() -> dict[Any, Callable[..., Any]]:
    """Lowerings that replace Inductor's in hosted graphs."""
    rows: dict[Any, Callable[..., Any]] = {op: _lower_view(op) for op in _VIEWS}
    rows[aten.mm.default] = _product("extern_kernels.mm", aten.mm.out)
    rows[aten.bmm.default] = _product("extern_kernels.bmm", aten.bmm.out)
    rows[aten.addmm.default] = _product("extern_kernels.addmm", aten.addmm.out)
    rows[aten.baddbmm.default] = _product("extern_kernels.baddbmm", aten.baddbmm.out)
    rows[_prims.lookup_seed] = _lookup_seed
    rows[aten.lift_fresh_copy.default] = _lift_fresh_copy
    # Inductor's own passes write it without an overload when they take scatters apart.
    rows[aten.clone] = _clone
    return rows


def _lower_view(op: Any) -> Callable[..., Any]:
    """A view as exactly the sizes, strides and offset that PyTorch gives it: never a copy.

    Inductor's own lowering composes index functions, and copies where it cannot turn them back into
    strides (merged dimensions of a transposed tensor, dynamic sizes).
    """

    def lower(x: Any, *args: Any, **kwargs: Any) -> Any:
        node = V.current_node
        source = node.args[0] if node.args else node.kwargs["self"]
        before, after = source.meta["val"], node.meta["val"]
        views = after if isinstance(after, list | tuple) else (after,)
        if not all(_is_view_of(view, before) for view in views):  # a reshape that copies
            return _lowering.fallback_handler(op, add_to_fallback_set=False)(x, *args, **kwargs)
        base, offset = _storage_of(x, before)
        results = [_view_of(base, offset, view, before) for view in views]
        return results if isinstance(after, list | tuple) else results[0]

    lower.__name__ = f"view_{op.name().split('::')[-1].replace('.', '_')}"
    return lower


def _is_view_of(view: torch.Tensor, base: torch.Tensor) -> bool:
    if view.dtype != base.dtype:
        return False
    return view.untyped_storage()._cdata == base.untyped_storage()._cdata


def _storage_of(x: Any, value: torch.Tensor) -> tuple[Any, Any]:
    """The realised storage under ``x``, laid out as its fake tensor says, and the offset in it."""
    x = _with_strides(x, value)
    x = ir.ExternKernel.realize_input(x)
    while isinstance(x, ir.TensorBox):
        x = x.data
    offset: Any = sympy.S.Zero
    if isinstance(x, ir.ReinterpretView):
        offset, x = x.layout.offset, x.data
    if not isinstance(x, ir.StorageBox):
        x = ir.StorageBox(x)
    return x, offset


def _view_of(base: Any, offset: Any, view: torch.Tensor, before: torch.Tensor) -> Any:
    delta = expr_of(view.storage_offset()) - expr_of(before.storage_offset())
    layout = _layout_of(view, offset + delta)
    return ir.TensorBox(ir.ReinterpretView(data=base, layout=layout))


def _product(name: str, out: Any) -> Callable[..., Any]:
    """A matrix product as a call that writes the buffer which Inductor planned for it."""

    def lower(*args: Any, **kwargs: Any) -> Any:
        node = V.current_node
        inputs = [
            ir.ExternKernel.realize_input(_with_strides(x, _value_of(a)))
            for x, a in zip(args, node.args, strict=True)
        ]
        kernel = ir.ExternKernelOut(
            layout=_layout_of(node.meta["val"]),
            inputs=inputs,
            kwargs=dict(kwargs),
            python_kernel_name=name,
            op_overload=out,
        )
        return ir.TensorBox.create(kernel)

    lower.__name__ = name.replace(".", "_")
    return lower


def _lift_fresh_copy(x: Any) -> Any:
    """A constant's copy, or the constant itself where nothing could change or keep it."""
    node = V.current_node
    if all(_only_reads(user) for user in node.users):
        return x
    return _clone(x)


def _clone(x: Any, **unused: Any) -> Any:
    """A realised copy: what is written into it later must be seen by every reader."""
    kernel = ir.ExternKernelOut(
        layout=_layout_of(V.current_node.meta["val"]),
        inputs=[ir.ExternKernel.realize_input(x)],
        python_kernel_name="aten.clone.out",
        op_overload=aten.clone.out,
    )
    return ir.TensorBox.create(kernel)


def _only_reads(node: Node) -> bool:
    """Whether a node's results are new tensors and its arguments stay as they are."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema
        return not schema.is_mutable and all(r.alias_info is None for r in schema.returns)
    return node.op == "call_function" and hasattr(target, "_inductor_lowering_function")


def _lookup_seed(seeds: Any, index: int) -> Any:
    """One seed as a view of all of them."""
    node = V.current_node
    base, offset = _storage_of(seeds, _value_of(node.args[0]))
    return ir.TensorBox(
        ir.ReinterpretView(data=base, layout=_layout_of(node.meta["val"], offset + index))
    )


def _value_of(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, Node) else None


def expr_of(size: Any) -> Any:
    """The sympy expression of an int or a symbolic int."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.sympify(size)


def _layout_of(value: torch.Tensor, offset: Any = sympy.S.Zero) -> Any:
    return ir.FixedLayout(
        value.device,
        value.dtype,
        [expr_of(s) for s in value.size()],
        [expr_of(s) for s in value.stride()],
        offset,
    )


def _with_strides(x: Any, value: torch.Tensor | None) -> Any:
    """``x`` with the strides of its fake tensor (a copy only if Inductor chose others)."""
    if value is None or not isinstance(x, ir.TensorBox):
        return x
    return ir.ExternKernel.require_exact_strides(x, [expr_of(s) for s in value.stride()])


# ---------------------------------------------------------------------- our kernels

LOADER = "torch_helion_load"
LAUNCHER = "torch_helion_C.launch"
LOADER_IMPORT = f"from torch_helion.compiler import load_kernel as {LOADER}"
_RUNTIME_IMPORT = "from torch_helion import _C as torch_helion_C"
_PHILOX_IMPORT = "from torch_helion.capture.node import random_numbers as torch_helion_random"
_PROMISE_IMPORT = "from torch_helion.capture.node import promised_strides as torch_helion_promised"


def lower_kernel(call: Any, args: Sequence[Any]) -> Any:
    """IR of one kernel call: ``call`` is a :class:`torch_helion.capture.node.KernelCall`."""
    inputs = [
        ir.InputsKernel.unwrap_storage_for_input(
            ir.ExternKernel.realize_input(_with_strides(x, value))
        )
        for x, value in zip(args, call.input_values, strict=True)
    ]
    layouts = {i: _layout_of(v) for i, v in enumerate(call.output_values) if i not in call.updates}
    kernel = HelionKernel(call, inputs, layouts)
    made = {i: ir.TensorBox.create(buffer) for i, buffer in kernel.made.items()}
    boxes = [
        made[i] if i in made else args[call.updates[i]] for i in range(len(call.output_values))
    ]
    return boxes if call.many else boxes[0]


def lower_random(name: str, args: Sequence[Any]) -> Any:
    """IR of a call of our random numbers outside of any kernel (``name``: rand, randn, randint)."""
    node = V.current_node
    kernel = HelionRandom(name, args, _layout_of(node.meta["val"]))
    return ir.TensorBox.create(kernel)


def lower_promise(value: torch.Tensor, x: Any) -> Any:
    """IR of a check that a tensor of ATen has the strides of the graph (else it is copied)."""
    source = ir.InputsKernel.unwrap_storage_for_input(ir.ExternKernel.realize_input(x))
    return ir.TensorBox.create(HelionPromise(source, _layout_of(value)))


class GraphPass(_GraphPassBase):
    """Base of our graph pass: Inductor calls it, and :meth:`uuid` is part of its cache keys."""

    def __call__(self, graph: Graph) -> None:
        raise NotImplementedError

    def uuid(self) -> Any:
        raise NotImplementedError


class HelionKernel(_ExternKernel):
    """A kernel of ours in Inductor's graph. Its outputs are buffers that Inductor allocates.

    The node itself is the first output; further ones are plain buffers that name it as the
    operation which defines them, so that scheduling and memory planning see all of them. Outputs
    that the call writes into an input are mutations of that input.
    """

    def __init__(self, call: Any, inputs: Sequence[Any], layouts: Mapping[int, Any]) -> None:
        own = list(layouts.items())
        first = own[0][1] if own else ir.NoneLayout(device=call.output_values[0].device)
        super().__init__(
            None,
            first,
            list(inputs),
            constant_args=tuple(call.sizes),
            python_kernel_name=call.name,
        )
        self.call = call
        self.allocates = bool(own)
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)
        self.made: dict[int, Any] = {i: self for i, _ in own[:1]}
        self.made.update({i: FurtherOutput(layout, self) for i, layout in own[1:]})
        self.mutation_outputs = [
            ir.MutationOutput(ir.NoneLayout(device=inputs[j].get_device()), inputs[j], self)
            for j in call.updates.values()
        ]

    def should_allocate(self) -> bool:
        return self.allocates

    def get_outputs(self) -> list[Any]:
        further = [buffer for buffer in self.made.values() if buffer is not self]
        return [self, *further, *self.mutation_outputs]

    def codegen(self, wrapper: Any) -> None:
        with contextlib.suppress(Exception):  # a comment must not cost the kernel
            self.codegen_comment(wrapper)
        name = _define(wrapper, self.call.name, self.call.text)
        references = [x.codegen_reference() for x in self.inputs]
        for i in range(len(self.call.output_values)):
            if i in self.made:
                references.append(_output_reference(wrapper, self.made[i]))
            else:
                references.append(references[self.call.updates[i]])
        arguments = [references[i] for i in self.call.order]
        arguments += [wrapper.codegen_sizevar(sympy.sympify(s)) for s in self.call.sizes]
        wrapper.writeline(LaunchLine(wrapper, name, tuple(arguments)))


class FurtherOutput(_InputsKernel):
    """Another output of a kernel than its first: a realised buffer, but no operation of its own."""

    def __init__(self, layout: Any, kernel: HelionKernel) -> None:
        super().__init__(name=None, layout=layout, inputs=[])
        self.kernel = kernel
        self.name = V.graph.register_buffer(self)

    def get_defining_op(self) -> Any:
        return self.kernel

    def should_allocate(self) -> bool:
        return True


class HelionRandom(_ExternKernel):
    """Random numbers of ours where no kernel could be made of them."""

    def __init__(self, function: str, args: Sequence[Any], layout: Any) -> None:
        seed = ir.InputsKernel.unwrap_storage_for_input(ir.ExternKernel.realize_input(args[0]))
        super().__init__(None, layout, [seed], constant_args=tuple(args[1:]))
        self.function = function
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)

    def should_allocate(self) -> bool:
        return True

    def codegen(self, wrapper: Any) -> None:
        prepare(wrapper)
        wrapper.add_import_once(_PHILOX_IMPORT)
        bounds = "".join(
            f", {wrapper.codegen_sizevar(sympy.sympify(b))}" for b in self.constant_args
        )
        seed = self.inputs[0].codegen_reference()
        wrapper.writeline(
            f"torch_helion_random({self.function!r}, {self.get_name()}, {seed}{bounds})"
        )


class HelionPromise(_ExternKernel):
    """A tensor with promised strides; may be its input, so memory planning keeps both alive."""

    def __init__(self, source: Any, layout: Any) -> None:
        super().__init__(None, layout, [source])
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)

    def should_allocate(self) -> bool:
        return False

    def get_inputs_that_alias_output(self) -> Sequence[str]:
        return [self.inputs[0].get_name()]

    def codegen(self, wrapper: Any) -> None:
        wrapper.add_import_once(_PROMISE_IMPORT)
        stride = wrapper.codegen_python_shape_tuple(self.get_stride())
        source = self.inputs[0].codegen_reference()
        wrapper.writeline(f"{self.get_name()} = torch_helion_promised({source}, {stride})")


class LaunchLine(_WrapperLine):
    """One launch; several in a row are merged (:mod:`torch_helion.capture.program_lines`)."""

    def __init__(self, wrapper: Any, name: str, arguments: tuple[str, ...]) -> None:
        self.wrapper = wrapper
        self.name = name
        self.arguments = arguments

    def codegen(self, code: Any) -> None:
        code.writeline(f"{self.name}({', '.join(self.arguments)})")


class MergedLines(_WrapperLine):
    """A run of allocations, launches and frees as one allocation, one launch, one deletion."""

    def __init__(self, lines: Sequence[Any], constant: Callable[[str], str]) -> None:
        self.lines = lines
        self.constant = constant

    def codegen(self, code: Any) -> None:
        for line in program_lines.merged_text(self.lines, self.constant, LAUNCHER):
            code.writeline(line)


def _define(wrapper: Any, name: str, text: str) -> str:
    """Put the kernel's text into the module's header, once; returns its name there."""
    prepare(wrapper)
    root = _root(wrapper)
    known = root.src_to_kernel.get(text)
    if known is not None:
        return known
    if LOADER_IMPORT not in root.src_to_kernel:
        root.src_to_kernel[LOADER_IMPORT] = LOADER
        root.header.writeline(LOADER_IMPORT)
    unique = f"{name}_{root.next_kernel_suffix()}"
    root.src_to_kernel[text] = unique
    raw = "'''" not in text and not text.endswith(("\\", "'"))
    literal = f"r'''{text}'''" if raw else repr(text)
    root.header.writeline(f"{unique} = {LOADER}({literal})")
    return unique


def _root(wrapper: Any) -> Any:
    """The wrapper of the whole module, for one that may be a subgraph's."""
    while hasattr(wrapper, "parent_wrapper"):
        wrapper = wrapper.parent_wrapper
    return wrapper


_RUN_WRAPPER_PASSES: Any = (
    _wrapper.PythonWrapperCodegen.run_wrapper_ir_passes if unavailable is None else None
)


def _run_wrapper_passes(wrapper: Any, is_inference: bool) -> None:
    """Inductor's memory planning, then ours: operators by their fastest name, merged lines."""
    _RUN_WRAPPER_PASSES(wrapper, is_inference)
    if V.graph.cpp_wrapper:
        return
    prepare(wrapper)
    try:
        root = _root(wrapper)
        _bind_operators(root, wrapper.lines)
        merge = functools.partial(_merged, root)
        wrapper.lines = program_lines.merge(wrapper.lines, merge, _bytes_of)
    except Exception as error:  # lines as they are, are right as well
        log.warning("lines of the graph's program are not merged: %s", error)


def prepare(wrapper: Any) -> None:
    """Our pool, once per generated module."""
    root = _root(wrapper)
    if "torch_helion" not in root.src_to_kernel:
        root.src_to_kernel["torch_helion"] = _RUNTIME_IMPORT
        root.header.writeline(_RUNTIME_IMPORT)
        root.header.writeline("empty_strided_cpu = torch_helion_C.empty_strided")


def _output_reference(wrapper: Any, buffer: Any) -> str:
    """An output's name; memory of its own where Inductor found that nobody reads it."""
    if buffer.get_name() not in V.graph.removed_buffers:
        return buffer.codegen_reference()
    size = wrapper.codegen_python_shape_tuple(buffer.get_size())
    stride = wrapper.codegen_python_shape_tuple(buffer.get_stride())
    return f"empty_strided_cpu({size}, {stride}, {buffer.get_dtype()})"


# ---------------------------------------------------------------------- lines of the program


def _bind_operators(root: Any, lines: Sequence[Any]) -> None:
    """Calls of ATen by a global name of their fastest form: 1 µs less each than by their path."""
    for line in lines:
        if type(line).__name__ != "ExternKernelAllocLine":
            continue
        path = line.node.python_kernel_name or ""
        if not re.fullmatch(r"torch\.ops\.aten\.\w+\.\w+", path):
            continue
        function = _function_of(line.node) or f"{path}._op"
        key = f"operator {function}"
        if key not in root.src_to_kernel:
            root.src_to_kernel[key] = f"aten_{len(root.src_to_kernel)}_{path.split('.')[3]}"
            root.header.writeline(f"{root.src_to_kernel[key]} = {function}")
        line.node.python_kernel_name = root.src_to_kernel[key]


def _function_of(node: Any) -> str | None:
    """The function of ``torch`` that makes exactly this call, if there is one.

    Overloads are resolved by the types of the arguments: that it is the same operator with the same
    arguments is found by trying it on fake tensors, once for these types.
    """
    op = node.op_overload
    if not hasattr(torch._C._VariableFunctions, op._opname) or op._schema.is_mutable:
        return None
    call = node.unflatten_args(["tensor"] * len(node.inputs), _types(node.constant_args))
    key = f"{op} {call}"
    if key not in _same_operator:
        _same_operator[key] = _reaches(op, node)
    return f"torch._C._VariableFunctions.{op._opname}" if _same_operator[key] else None


_same_operator: dict[str, bool] = {}


def _types(values: Any) -> Any:
    if isinstance(values, list | tuple):
        return [_types(value) for value in values]
    return type(values).__name__


def _reaches(op: Any, node: Any) -> bool:
    function = getattr(torch._C._VariableFunctions, op._opname)
    try:
        tensors = [ir.ir_node_to_tensor(x) for x in node.inputs]
        args, kwargs = node.unflatten_args(tensors, node.constant_args)
        with V.fake_mode, _Recorder() as calls:
            function(*args, **kwargs)
    except Exception:  # an argument that the function does not take in this form
        return False
    if len(calls.seen) != 1:
        return False
    seen, seen_args, seen_kwargs = calls.seen[0]
    return bool(seen is op and _same(seen_args, args) and _same(seen_kwargs, kwargs))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


class _Recorder(TorchDispatchMode):
    """Keeps the calls that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _merged(root: Any, lines: Sequence[Any]) -> MergedLines:
    def constant(text: str) -> str:
        """A module-level name of a constant expression."""
        key = f"constant {text}"
        if key not in root.src_to_kernel:
            root.src_to_kernel[key] = f"torch_helion_spec{root.next_kernel_suffix()}"
            root.header.writeline(f"{root.src_to_kernel[key]} = {text}")
        return root.src_to_kernel[key]

    return MergedLines(lines, constant)


def _bytes_of(node: Any) -> int:
    """Size of a buffer, 0 where a node is none, a guess where the size is not known."""
    if not isinstance(getattr(node, "layout", None), ir.Layout):
        return 0
    size = V.graph.sizevars.optimization_hint(node.get_numel(), fallback=program_lines.BIG)
    return int(size) * node.get_dtype().itemsize
