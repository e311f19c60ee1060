"""The pass over a post-grad graph: regions become calls of our kernels, the rest is put in order.

What flows in: the functional ATen graph of a forward, backward or inference program, as Inductor
has it before it lowers it. What flows out: the same graph, changed in place; and a
:class:`GraphRecord` of what was done and what was not, with reasons, for logs and ``explain``.

Before → after, for a region of three nodes with one input and one output:

    exp = aten.exp(x); sum_1 = aten.sum(exp, [-1], True); div = aten.div(exp, sum_1)
    helion_softmax = helion_softmax(x)

A region that fails at any step keeps its nodes. On a cache hit no pass runs: what the program needs
is in its text.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import importlib.metadata
import operator
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from torch_helion import _hardware, _logging, exc, settings
from torch_helion.capture import host_faults
from torch_helion.capture import inductor_compat as inductor
from torch_helion.capture.contraction_choice import choice_key
from torch_helion.capture.in_place import fold_copies
from torch_helion.capture.node import KernelCall, RandomCall, new_random_numbers
from torch_helion.capture.options import Request
from torch_helion.capture.shared_heads import share_heads

log = _logging.get_logger("capture")
aten, prims = torch.ops.aten, torch.ops.prims


# ---------------------------------------------------------------------- what is reported


@dataclass(frozen=True)
class TakenRegion:
    """A region that became a kernel."""

    name: str
    nodes: tuple[str, ...]
    """the operators, in order"""
    kernel: Any
    """the tile IR (:class:`torch_helion.ir.graph.Kernel`)"""
    text: str
    """the code, as it stands in Inductor's output"""
    verdict: str = ""
    """how the kernel was checked"""


@dataclass(frozen=True)
class DeclinedNode:
    """A node that stayed, and why."""

    node: str
    target: str
    reason: str


@dataclass
class GraphRecord:
    """What the pass did with one graph."""

    regions: list[TakenRegion] = field(default_factory=list)
    declined: list[DeclinedNode] = field(default_factory=list)
    left: dict[str, Counter[str]] = field(default_factory=dict)
    """who runs them ("ATen", "Inductor") → operators outside of kernels that compute"""
    faults: list[str] = field(default_factory=list)
    """guards of :mod:`host_faults` that changed the graph"""
    eligible: int = 0
    """calls of ATen that a kernel could take: neither views, products, convolutions nor sizes"""
    covered: int = 0
    """those of them that are inside kernels"""


graph_kind: contextvars.ContextVar[str] = contextvars.ContextVar("graph_kind", default="forward")
"""What the graph being compiled is: forward, backward or inference."""

untouchable: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "untouchable", default=frozenset()
)
"""``id`` of graph modules in which our nodes cannot stand: Inductor writes code of its own for them
(the score function of an attention), or traces them again (the body of a scan)."""

Listener = Callable[[GraphRecord], None]
listeners: list[Listener] = []
"""Called with the record of every graph that the pass has seen (``explain`` adds one)."""


# ---------------------------------------------------------------------- what the pass uses


def _load_when_checked() -> contextlib.AbstractContextManager[Callable[[str], object]]:
    return contextlib.nullcontext(lambda text: None)


@dataclass(frozen=True)
class Stages:
    """The stages between a graph and a kernel's text, as values."""

    find_regions: Callable[..., tuple[Sequence[Any], Sequence[Any]]]
    region_to_kernel: Callable[..., Any]
    compile_kernel: Callable[..., str]
    check: Callable[..., str]
    """(region, region kernel, text) → verdict; raises ``exc.AccuracyError``"""
    lowerings: Mapping[Any, Any]
    tuning: Any = None
    """:mod:`torch_helion.capture.tuning`; None: default configs only"""
    loading_ahead: Callable[[], Any] = _load_when_checked
    """a context whose function takes texts that the check will ask for"""


@functools.cache
def default_stages() -> Stages:
    """The package's own stages."""
    from torch_helion.capture import check, contraction, tuning
    from torch_helion.compiler import compile_kernel, loading_ahead
    from torch_helion.lowering import rows

    return Stages(
        find_regions=contraction.find_regions,
        region_to_kernel=contraction.build_kernel,
        compile_kernel=compile_kernel,
        check=check.check_kernel,
        lowerings=rows.graph_lowerings(),
        tuning=tuning,
        loading_ahead=loading_ahead,
    )


def families() -> tuple[Stages, ...]:
    """What kernels are sought for, in order: each family sees what the one before left."""
    from torch_helion.capture import attention

    regions = default_stages()
    attentions = dataclasses.replace(
        regions, find_regions=attention.find_attention, region_to_kernel=attention.attention_kernel
    )
    return attentions, regions


# ---------------------------------------------------------------------- the pass


class HelionPass(inductor.GraphPass):
    """The graph pass that Inductor calls after its own post-grad passes."""

    def __init__(
        self,
        request: Request,
        before: Sequence[Callable[[Graph], None]] = (),
        stages: Stages | None = None,
    ) -> None:
        self.request = request
        self.before = tuple(before)
        self.stages = stages

    def __call__(self, graph: Graph) -> None:
        for user_pass in self.before:
            user_pass(graph)
        if id(graph.owning_module) in untouchable.get():
            return
        with settings.patch(**changed_settings(self.request.settings)):
            record = GraphRecord()
            try:
                self._run(graph, record)
            finally:
                for listener in list(listeners):
                    listener(record)

    def uuid(self) -> Any:
        """What the generated code depends on; None (no caching) if a user's pass has none."""
        users = []
        for user_pass in self.before:
            key = user_pass.uuid() if hasattr(user_pass, "uuid") else None
            if key is None:
                return None
            users.append(key)
        # With a search of its own, a program holds what that has found.
        tuned = "searched" if self.tunes else default_stages().tuning.fingerprint()
        key = self.request.key
        return ("torch_helion", fingerprint(), key, tuned, tuple(users), choice_key())

    @property
    def tunes(self) -> bool:
        """Whether kernels are tuned while the graph is compiled."""
        return self.request.mode.startswith("max-autotune")

    def _run(self, graph: Graph, record: GraphRecord) -> None:
        share_heads(graph)
        eligible = {node for node in graph.nodes if is_eligible(node)}
        record.eligible = len(eligible)
        if self.tunes and not self.stages:
            default_stages().tuning.tune_language_kernels(graph)
        covered: set[Node] = set()
        for stages in (self.stages,) if self.stages else families():
            covered |= self._take(graph, stages, record) & eligible
        fold_copies(graph)
        record.covered = len(covered)
        record.faults += host_faults.guard_graph(graph)
        rewrite_left_over(graph)
        for node in graph.nodes:
            if is_eligible(node) and node.users:
                who = "ATen" if inductor.runs_in_aten(node) else "Inductor"
                record.left.setdefault(who, Counter())[str(node.target)] += 1
        graph.lint()
        left = ", ".join(f"{sum(n.values())} calls left to {who}" for who, n in record.left.items())
        log.info(
            "%s graph: %d of %d calls in %d kernels; %s",
            graph_kind.get(), record.covered, record.eligible, len(record.regions),
            left or "none left",
        )  # fmt: skip

    def _take(self, graph: Graph, stages: Stages, record: GraphRecord) -> set[Node]:
        """Put kernels of one family in the places of their regions; the nodes that are gone."""
        try:
            regions, declined = stages.find_regions(graph, stages.lowerings, options={})
            record.declined += [_declined(d.node, d.reason) for d in declined]
        except Exception as error:
            if settings.current().strict:
                raise
            log.warning("no regions are sought in this graph: %s", _sentence(error))
            regions = ()
        drafts, plans = [], []
        with stages.loading_ahead() as load:
            for region in regions:  # every region is read before the graph changes
                with self._region_may_fail(region, record):
                    drafts.append(draft_region(region, stages, self.tunes))
                    load(drafts[-1].call.text)
            for draft in drafts:
                with self._region_may_fail(draft.region, record):
                    plans.append(check_region(draft, stages, self.tunes))
        placed = Placed()
        covered: set[Node] = set()
        for plan in plans:
            with self._region_may_fail(plan.region, record):
                place(graph, plan, placed)
                record.regions.append(plan.taken)
                covered.update(plan.nodes)
        return covered

    @contextlib.contextmanager
    def _region_may_fail(self, region: Any, record: GraphRecord) -> Iterator[None]:
        try:
            yield
        except Slower as error:
            log.info("region %s stays as it is: %s", region.name, error)
            record.declined += [_declined(node, str(error)) for node in region.nodes]
        except Exception as error:
            if settings.current().strict:
                raise
            log.info("region %s stays as it is: %s", region.name, _sentence(error))
            log.debug("the failure", exc_info=True)
            record.declined += [_declined(node, _sentence(error)) for node in region.nodes]


def changed_settings(values: settings.Switches) -> dict[str, Any]:
    """The fields of ``values`` that differ from those in force here."""
    now = settings.current()
    return {
        name: getattr(values, name)
        for name in settings.fields()
        if getattr(values, name) != getattr(now, name)
    }


class Slower(Exception):
    """A kernel that works, but whose operators are faster without it."""


@dataclass(frozen=True)
class Draft:
    """A region whose kernel is written, and that is still in the graph."""

    region: Any
    nodes: tuple[Node, ...]
    made: Any
    call: KernelCall
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


@dataclass(frozen=True)
class Plan:
    """A region whose kernel is made and checked, and that is still in the graph."""

    region: Any
    nodes: tuple[Node, ...]
    call: KernelCall
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    taken: TakenRegion


def draft_region(region: Any, stages: Stages, search: bool = False) -> Draft:
    """Write a region's kernel; raises if that fails. The graph is not changed.

    ``search``: for the best config, where none is stored.
    """
    nodes = tuple(region.nodes)
    if not nodes:
        raise exc.CaptureError("a region without nodes")
    _staying(nodes, region.outputs)
    made = stages.region_to_kernel(region, stages.lowerings)
    call, inputs, outputs = _kernel_call(region, made)
    config = stages.tuning.config_for(region, made, search) if stages.tuning else None
    call.text = stages.compile_kernel(made.kernel, made.hints, config)
    _logging.dump(f"{call.name}.ll", call.text)
    return Draft(region, nodes, made, call, tuple(inputs), tuple(outputs))


def check_region(draft: Draft, stages: Stages, search: bool = False) -> Plan:
    """Check a region's kernel; raises if it is not right, or :class:`Slower` if it is not worth it.

    ``search``: for whether it is, where that is not stored. The graph is not changed.
    """
    text = draft.call.text
    checked = settings.current().check
    verdict = stages.check(draft.region, draft.made, text) if checked else "not checked"
    tuning = stages.tuning
    why = tuning.lost(draft.region, draft.made, text, search) if tuning else None
    if why is not None:
        raise Slower(why)
    log.debug(
        "region %s: %d nodes in kernel %s (%s)",
        draft.region.name, len(draft.nodes), draft.call.name, verdict,
    )  # fmt: skip
    operators = tuple(str(node.target) for node in draft.nodes)
    taken = TakenRegion(draft.region.name, operators, draft.made.kernel, text, verdict)
    return Plan(draft.region, draft.nodes, draft.call, draft.inputs, draft.outputs, taken)


def _kernel_call(region: Any, made: Any) -> tuple[KernelCall, list[Node], list[Node]]:
    """The call of a region's kernel, without its text; its tensor inputs and outputs in order."""
    inputs: list[Node] = []
    outputs: list[Node] = []
    order: list[tuple[str, int]] = []
    written = set(region.outputs)
    for buffer, node in zip(made.kernel.arguments, made.tensors, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype != buffer.dtype:
            raise exc.CaptureError(f"{buffer.name}: {value!r} for a buffer of {buffer.dtype}")
        if buffer.role not in ("in", "out") or (buffer.role == "out") > (node in written):
            raise exc.CaptureError(f"{buffer.name}: a kernel that updates an input in place")
        side, name = (outputs, "out") if node in written else (inputs, "in")
        if node not in side:  # a tensor may be read in several ways
            side.append(node)
        order.append((name, side.index(node)))
    if set(outputs) != written:
        raise exc.CaptureError("the kernel's outputs are not those of the region")
    if set(inputs) & set(region.nodes):
        raise exc.CaptureError("the kernel reads a node of its own region")
    call = KernelCall(
        name=made.kernel.name,
        text="",
        input_values=[node.meta["val"] for node in inputs],
        output_values=[node.meta["val"] for node in outputs],
        order=[i if side == "in" else len(inputs) + i for side, i in order],
        sizes=tuple(made.sizes),
        many=len(outputs) > 1,
        kernel=made.kernel,
    )
    return call, inputs, outputs


def _staying(nodes: Sequence[Node], outputs: Sequence[Node]) -> set[Node]:
    """Nodes of a region that are used outside without being outputs: views of those, constants."""
    inside, written = set(nodes), set(outputs)
    staying: set[Node] = set()
    for node in reversed(nodes):
        users = set(node.users)
        if node not in written and (users - inside or users & staying):
            staying.add(node)
    for node in staying:
        for source in node.all_input_nodes:
            if source in inside and source not in staying and source not in written:
                raise exc.CaptureError(f"{node} is used outside of its region, but is no output")
    return staying


def _require_convex(in_order: Sequence[Node], staying: set[Node]) -> None:
    """No path leads out of the region and back into it: else one call cannot stand for it.

    Constants that stay in the graph are computed by the call as well: no path begins at them.
    """
    again: set[Node] = set()
    region = set(in_order)
    for node in in_order:
        if node in staying and all(s in again for s in node.all_input_nodes if s in region):
            again.add(node)
    inside = region - again
    if not inside:
        raise exc.CaptureError("a region without nodes")
    tainted: set[Node] = set()
    for node in _nodes_between(in_order[0], in_order[-1]):
        sources = node.all_input_nodes
        depends = any(source in tainted for source in sources)
        if node in inside:
            if depends:
                raise exc.CaptureError(f"a path leaves the region and comes back at {node}")
        elif depends or any(source in inside for source in sources):
            tainted.add(node)


@dataclass
class Placed:
    """What the regions placed so far did to the graph: stand-ins of outputs, erased nodes."""

    replaced: dict[Node, Node] = field(default_factory=dict)
    erased: set[Node] = field(default_factory=set)


def place(graph: Graph, plan: Plan, placed: Placed) -> None:
    """Put the kernel's call in the place of its region.

    It stands behind the region's last node, and what used the outputs before that behind it.
    Several regions may compute one constant: it may be gone already, which changes nothing here.
    """
    nodes = [node for node in plan.nodes if node not in placed.erased]
    staying = _staying(nodes, plan.outputs)
    in_order = sorted(nodes)  # nodes compare by their place in the graph
    _require_convex(in_order, staying)
    leaving = set(in_order) - staying
    between = [n for n in _nodes_between(in_order[0], in_order[-1]) if n not in leaving]
    inputs = tuple(placed.replaced.get(node, node) for node in plan.inputs)
    with graph.inserting_after(in_order[-1]):
        new = graph.call_function(plan.call, inputs)  # type: ignore[arg-type]
    new.meta.update(_meta_of(plan.outputs[0]))
    results, cursor = [new], new
    if plan.call.many:
        new.meta["val"] = tuple(node.meta["val"] for node in plan.outputs)
        results = []
        for i, output in enumerate(plan.outputs):
            with graph.inserting_after(cursor):
                cursor = graph.call_function(operator.getitem, (new, i))
            cursor.meta.update(_meta_of(output))
            results.append(cursor)
    for output, result in zip(plan.outputs, results, strict=True):
        output.replace_all_uses_with(result)
        placed.replaced[output] = result
    late = {new, *results}
    for node in between:  # in graph order: whatever depends on the call now stands behind it
        if any(source in late for source in node.all_input_nodes):
            cursor.append(node)
            cursor = node
            late.add(node)
    for node in reversed(in_order):
        if node in leaving:
            graph.erase_node(node)
    placed.erased |= leaving


def _nodes_between(first: Node, last: Node) -> list[Node]:
    """The nodes from ``first`` to ``last``, both of which are in the graph."""
    found = [first]
    while found[-1] is not last:
        found.append(found[-1].next)
        if found[-1].op == "root":  # the ring of nodes has no other end
            raise exc.CaptureError(f"{last} is not behind {first} in the graph")
    return found


def _meta_of(node: Node) -> dict[str, Any]:
    kept = ("val", "stack_trace", "nn_module_stack", "original_aten", "source_fn_stack")
    return {key: node.meta[key] for key in kept if key in node.meta}


# ---------------------------------------------------------------------- what is left

_PRODUCTS = frozenset({
    "aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.addmv", "aten.mv", "aten.dot",
    "aten._int_mm", "aten._scaled_mm", "aten.convolution", "aten.convolution_backward",
})  # fmt: skip
_ATTENTION = "aten._scaled_dot_product"
_NOT_COMPUTING = frozenset({
    "aten.sym_size", "aten.sym_stride", "aten.sym_numel", "aten.sym_storage_offset",
    "aten._local_scalar_dense", "aten._assert_scalar", "aten._assert_async", "aten.copy_",
    "prims.inductor_seeds", "prims.inductor_lookup_seed", "aten.lift_fresh_copy",
    "aten._assert_tensor_metadata",
})  # fmt: skip


def is_eligible(node: Node) -> bool:
    """Whether a kernel of ours could take this call: it computes, and no library owns it."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    name = f"{target.namespace}.{target._opname}"
    if target.namespace not in ("aten", "prims") or name in _PRODUCTS | _NOT_COMPUTING:
        return False
    if name.startswith(_ATTENTION) or isinstance(node.meta.get("val"), torch.SymInt | int):
        return False
    return not is_view(target)


def is_product(target: str) -> bool:
    """Whether the operator of this name is a matrix product or convolution: a library's."""
    return target.rpartition(".")[0] in _PRODUCTS or target.startswith(_ATTENTION)


@functools.cache
def is_view(target: Any) -> bool:
    """Whether an operator returns a view of its first argument."""
    if target in (aten._unsafe_view.default, aten.reshape.default):
        return True
    returns = target._schema.returns
    info = returns[0].alias_info if returns else None
    return info is not None and not info.is_write


def rewrite_left_over(graph: Graph) -> None:
    """Operators that no kernel took and ATen cannot run well, as ones that it can."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        rewrite = _REWRITES.get(getattr(node.target, "_name", ""))
        if rewrite is not None:
            rewrite(node)


def _convert_element_type(node: Node) -> None:
    # prims are written in Python when they run eagerly: 50 µs instead of 2
    node.target = aten._to_copy.default
    node.args, node.kwargs = node.args[:1], {"dtype": node.args[1]}


def _rev(node: Node) -> None:
    node.target = aten.flip.default


def _iota(node: Node) -> None:
    """prims.iota(length, start, step, dtype, device) → aten.arange."""
    length: Any = node.args[0]
    start, step = node.kwargs["start"], node.kwargs["step"]
    if not all(isinstance(x, int) for x in (length, start, step)):
        return
    end = start + length * step
    node.target = aten.arange.start_step
    node.args = (start, end, step)
    node.kwargs = {"dtype": node.kwargs["dtype"], "device": node.kwargs["device"]}


def _random(node: Node) -> None:
    function, *arguments = _random_call(node)
    node.target = RandomCall(function, node.meta["val"])
    node.args, node.kwargs = tuple(arguments), {}


def _random_call(node: Any) -> tuple[Any, ...]:
    """Function, seed and bounds of a node that Inductor put in the place of a random operator."""
    if node.target._opname == "inductor_random":  # (size, seed, mode)
        return str(node.args[2]), node.args[1]
    low, high, _, seed = node.args
    return "randint", seed, low, high


def draws_numbers(graph: Graph) -> bool:
    """Whether the graph draws numbers from a seed, which another graph may draw again."""
    return any(getattr(node.target, "_name", "") in _RANDOM for node in graph.nodes)


def draw_numbers_eagerly(graph: Graph) -> None:
    """For a graph that is interpreted: the numbers that our kernels would have drawn."""
    for node in list(graph.nodes):
        if getattr(node.target, "_name", "") in _RANDOM:
            function, seed, *bounds = _random_call(node)
            value = node.meta["val"]
            size: Any = node.args[0] if function != "randint" else node.args[2]
            node.target, node.kwargs = new_random_numbers, {"dtype": value.dtype}
            node.args = (function, size, seed, *bounds)


_RANDOM = frozenset({"prims::inductor_random", "prims::inductor_randint"})

_REWRITES: dict[str, Callable[[Node], None]] = {
    "prims::convert_element_type": _convert_element_type,
    "prims::iota": _iota,
    "prims::rev": _rev,
    **dict.fromkeys(_RANDOM, _random),
}


# ---------------------------------------------------------------------- details


@functools.cache
def fingerprint() -> str:
    """A hash of the package's sources and of the machine: what all generated code depends on."""
    digest = hashlib.sha256()
    folder = pathlib.Path(__file__).resolve().parent.parent
    for path in sorted([*folder.rglob("*.py"), *folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        digest.update(f"\0{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    machine = _hardware.probe()
    digest.update(
        repr(
            (
                machine.architecture,
                sorted(machine.flags),
                machine.cores,
                machine.l1d,
                machine.l2,
                machine.llc,
            )
        ).encode()
    )
    try:
        digest.update(importlib.metadata.version("llvmlite").encode())
    except importlib.metadata.PackageNotFoundError:
        pass
    return digest.hexdigest()


def _declined(node: Any, reason: str) -> DeclinedNode:
    return DeclinedNode(str(node), str(getattr(node, "target", "")), reason)


def _sentence(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return text if isinstance(error, exc.Base) else f"{type(error).__name__}: {text}"
