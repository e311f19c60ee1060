"""``explain(fn, *args)``: what was fused into which kernel, what was not, and why.

What flows in: a function or module and arguments for one call. What flows out: an
:class:`ExplainReport`: every graph with its kernels, what is left and who runs it, graph breaks,
fallbacks. The program is compiled afresh, past all caches, and run once; what the user has compiled
stays as it is. Floor 8.

    report = torch_helion.explain(model, x)
    print(report)                       # the short story
    report.coverage                     # share of the calls that kernels could take
    print(report.regions[0].source)     # a kernel in the tile language
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch_helion import _logging
from torch_helion.capture import graph_pass, inductor_compat
from torch_helion.capture.graph_pass import DeclinedNode, GraphRecord, TakenRegion
from torch_helion.ir.printer import to_source


@dataclass(frozen=True)
class ExplainedRegion:
    """One kernel and what it stands for."""

    name: str
    operators: tuple[str, ...]
    code: str
    """the generated code"""
    verdict: str
    """how the kernel was checked"""
    _taken: TakenRegion

    @property
    def source(self) -> str:
        """The kernel in the tile language."""
        return to_source(self._taken.kernel)


@dataclass(frozen=True)
class ExplainedGraph:
    """One forward, backward or inference graph."""

    kind: str
    regions: tuple[ExplainedRegion, ...]
    declined: tuple[DeclinedNode, ...]
    left: Mapping[str, Counter[str]]
    """who runs it ("ATen", "Inductor") → operators outside of kernels"""
    eligible: int
    covered: int
    guards: tuple[str, ...]
    """guards against faults of the host that changed the graph"""


@dataclass(frozen=True)
class ExplainReport:
    """The whole program."""

    graphs: tuple[ExplainedGraph, ...]
    breaks: tuple[str, ...]
    """why dynamo split the program: distinct reasons"""
    fallbacks: tuple[str, ...]
    """what was logged when something was not compiled as intended"""
    cpp_kernels: int
    """kernels that Inductor generated in C++"""
    output: Any = field(default=None, repr=False)
    """what the program returned"""

    @property
    def regions(self) -> tuple[ExplainedRegion, ...]:
        """All kernels of all graphs."""
        return tuple(region for graph in self.graphs for region in graph.regions)

    @property
    def declined(self) -> tuple[DeclinedNode, ...]:
        """All calls that were left, with reasons."""
        return tuple(node for graph in self.graphs for node in graph.declined)

    @property
    def coverage(self) -> float:
        """Share of calls inside kernels, of those that are neither products nor views."""
        eligible = sum(graph.eligible for graph in self.graphs)
        return sum(graph.covered for graph in self.graphs) / eligible if eligible else 1.0

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(
    fn: Callable[..., Any],
    *args: Any,
    compile_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> ExplainReport:
    """Compile ``fn`` afresh with our backend, call it once with these arguments, and report.

    ``compile_options``: further arguments of ``torch.compile`` (``dynamic=True``, ``mode=...``). If
    an output needs gradients, its backward is compiled and run as well (``.grad`` stays untouched).
    """
    records: list[tuple[str, GraphRecord]] = []
    counters = torch._dynamo.utils.counters
    breaks_before = Counter(counters["graph_break"])
    kernels_before = inductor_compat.generated_cpp_kernels()

    def listen(record: GraphRecord) -> None:
        records.append((graph_pass.graph_kind.get(), record))

    with (
        _listening(listen),
        _collected_warnings() as fallbacks,
        inductor_compat.without_caches(),
        torch.random.fork_rng(devices=[]),
    ):
        compiled = _compiled_apart(fn, dict(compile_options or {}))
        output = compiled(*args, **kwargs)
        _run_backward(output, fn, args, kwargs)
    breaks = Counter(counters["graph_break"]) - breaks_before
    return ExplainReport(
        graphs=tuple(_explained(kind, record) for kind, record in records),
        breaks=tuple(breaks),  # an inlined function's break is counted at each level
        fallbacks=tuple(fallbacks),
        cpp_kernels=inductor_compat.generated_cpp_kernels() - kernels_before,
        output=output,
    )


# ---------------------------------------------------------------------- running


def _compiled_apart(fn: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """``fn`` compiled under a code object of its own, so that nothing compiled before is used."""
    inner = getattr(fn, "_orig_mod", None) or getattr(fn, "_torchdynamo_orig_callable", None) or fn

    def explained(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    explained.__code__ = explained.__code__.replace(co_name="explained_program")
    return torch.compile(explained, backend="helion", **options)


def _run_backward(output: Any, fn: Any, args: Any, kwargs: Any) -> None:
    outputs = [t for t in pytree.tree_leaves(output) if _needs_gradient(t)]
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if _needs_gradient(t)]
    if isinstance(fn, torch.nn.Module):
        leaves += [p for p in fn.parameters() if p.requires_grad]
    if outputs and leaves:
        torch.autograd.grad(
            outputs, leaves, [torch.ones_like(t) for t in outputs], allow_unused=True
        )


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


@contextlib.contextmanager
def _listening(listener: graph_pass.Listener) -> Iterator[None]:
    graph_pass.listeners.append(listener)
    try:
        yield
    finally:
        graph_pass.listeners.remove(listener)


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Messages of the capture logger from WARNING on, in a list."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = _logging.get_logger("capture")
    handler = Collector(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


# ---------------------------------------------------------------------- reporting


def _explained(kind: str, record: GraphRecord) -> ExplainedGraph:
    regions = tuple(
        ExplainedRegion(taken.name, taken.nodes, taken.text, taken.verdict, taken)
        for taken in record.regions
    )
    return ExplainedGraph(
        kind, regions, tuple(record.declined), dict(record.left), record.eligible, record.covered,
        tuple(record.faults),
    )  # fmt: skip


def _lines(report: ExplainReport) -> Iterator[str]:
    eligible = sum(graph.eligible for graph in report.graphs)
    covered = sum(graph.covered for graph in report.graphs)
    yield (
        f"{_count(len(report.graphs), 'graph')}, {_count(len(report.breaks), 'graph break')};"
        f" kernels cover {covered} of {eligible} calls ({report.coverage:.0%})"
    )
    for graph in report.graphs:
        yield from _graph_lines(graph)
    if report.cpp_kernels:
        yield f"Inductor generated {_count(report.cpp_kernels, 'kernel')} in C++"
    for title, reasons in (("graph breaks", report.breaks), ("fallbacks", report.fallbacks)):
        if reasons:
            yield f"{title}:"
            yield from (f"  {_first_line(reason)}" for reason in dict.fromkeys(reasons))


def _graph_lines(graph: ExplainedGraph) -> Iterator[str]:
    yield f"{graph.kind} graph: {_count(len(graph.regions), 'kernel')}"
    for (name, count, verdict), times in Counter(
        (r.name, len(r.operators), r.verdict) for r in graph.regions
    ).items():
        repeated = f"{times} x " if times > 1 else ""
        yield f"  {repeated}{name}: {_count(count, 'call')}, {verdict}"
    for who, operators in graph.left.items():
        names = ", ".join(f"{n} x {name}" for name, n in operators.most_common())
        yield f"  left to {who}: {names}"
    reasons: dict[str, Counter[str]] = {}
    for node in graph.declined:
        if graph_pass.is_product(node.target):
            continue  # as intended: libraries compute them
        reasons.setdefault(node.reason, Counter())[node.target] += 1
    if reasons:
        yield "  not taken:"
    for reason, targets in reasons.items():
        names = ", ".join(f"{n} x {name}" for name, n in targets.most_common())
        yield f"    {names}: {_first_line(reason)}"
    if graph.guards:
        yield f"  guards against faults of the host: {', '.join(graph.guards)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
