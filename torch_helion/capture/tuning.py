"""Configs of the kernels of regions: stored ones, and with ``mode="max-autotune"`` searched ones.

In: a region, its kernel. Out: a Config, or None for the default. The tuner measures the kernel at
the sizes of the graph on random numbers, and judges it by the region's operators in float64.
Kernels of the language that the graph calls are tuned at their next call, on its own arguments.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from torch_helion import _logging, compiler, exc
from torch_helion import settings as switches
from torch_helion.autotuner import ranks, results
from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.problem import Instance, Judge, Prepared, Problem
from torch_helion.autotuner.results import KernelId
from torch_helion.autotuner.search import BaseSearch, search_named
from torch_helion.autotuner.space import Space
from torch_helion.capture import check, race, small_instance
from torch_helion.capture.small_instance import CannotShrink
from torch_helion.codegen.llvm.target import LLVM
from torch_helion.config import Config
from torch_helion.config_spec import BlockSizeSpec, ConfigSpec
from torch_helion.ir.accuracy import compare
from torch_helion.ir.dump import dump
from torch_helion.passes import pass_manager
from torch_helion.passes.pipeline import KEEP_AXES
from torch_helion.settings import Settings

log = _logging.get_logger("tune")

NAME = "region of a graph"
TOO_SMALL = 1 << 12
"""A kernel for fewer elements is over before a config could matter."""
found: list[Any] = []
"""(kernel's name, Result) of every search in this process, for reports"""


anew: contextvars.ContextVar[bool] = contextvars.ContextVar("anew", default=False)
"""Whether to search and race also where there are results: the user has asked for it."""


@contextlib.contextmanager
def searching_anew() -> Iterator[None]:
    """Within this, compilations with ``max-autotune`` measure whatever is known already."""
    before = anew.set(True)
    try:
        yield
    finally:
        anew.reset(before)


def config_for(region: Any, made: Any, search: bool) -> Config | None:
    """The config of a region's kernel: what was found for sizes like these, or is found now."""
    if not search and not results.family_state(NAME):
        return None
    known = results.choose(identity(made), _sizes(made))
    if known is not None and not (search and anew.get()):
        return known.config or None
    if not search or switches.current().tune_budget <= 0:
        return None
    with _search_may_fail(made.kernel.name):
        return tune(region, made, switches.current().tune_budget)
    return None


def lost(region: Any, made: Any, text: str, search: bool) -> str | None:
    """Why ATen should keep a region: its kernel is slower. Measured once, in ``max-autotune``."""
    if switches.current().tune_budget <= 0:
        return None
    return race.lost(region, made, text, identity(made), search, anew.get())


@contextlib.contextmanager
def _search_may_fail(name: str) -> Iterator[None]:
    try:
        yield
    except (exc.Base, CannotShrink, RuntimeError, OSError) as error:
        if switches.current().strict and not isinstance(error, CannotShrink):
            raise
        log.info("%s keeps its default config: %s", name, error)


def tune(region: Any, made: Any, budget: float) -> Config | None:
    """Search, keep what is found, and return it; None for the default config."""
    problem = problem_of(region, made)
    if problem is None:
        return None
    search: BaseSearch = search_named()(problem, budget=budget)
    result = ranks.run(search, identity(made), _sizes(made))
    best = Config() if result.config == problem.default else result.config
    results.keep(identity(made), _sizes(made), best, result.seconds, result.default_seconds)
    found.append((made.kernel.name, result))
    return best or None


def tune_language_kernels(graph: fx.Graph) -> None:
    """Have the kernels that the graph calls tuned when they are called next."""
    operator = sys.modules.get("torch_helion.kernel.operator")
    if operator is None:  # then the graph calls none
        return
    for node in graph.nodes:
        called = operator.bound_of(node.target) if node.op == "call_function" else None
        if called is not None:
            called.kernel.tune_at_next_call(switches.current().tune_budget)


def fingerprint() -> str:
    """Changes whenever a result for a region does: generated code depends on it."""
    return f"{results.family_state(NAME)} {results.family_state(race.NAME)}"


# ---------------------------------------------------------------------- the problem


def identity(made: Any) -> KernelId:
    """What results for a region's kernel belong to."""
    code = hashlib.sha256(dump(made.kernel).encode()).hexdigest()[:16]
    return KernelId(f"{NAME}: {code}", code, made.kernel.name, NAME)


def _sizes(made: Any) -> tuple[int, ...]:
    return tuple(int(made.hints.get(s, 1)) for s in made.kernel.sizes)


def default_config(made: Any) -> Config:
    """The complete default config, of the kernel with its own axes."""
    kernel = pass_manager.run(KEEP_AXES, made.kernel)
    return Config(**_spec(made).normalize(LLVM.default_config(kernel, made.hints, LLVM.machine())))


def _spec(made: Any) -> ConfigSpec:
    extents = {a.name: a.size for a in made.kernel.axes().values()}
    hints = made.hints
    blocks = []
    for name in made.kernel.block_names:
        size = extents.get(name, 4096)
        number = size if isinstance(size, int) else size.subs(hints)
        blocks.append(BlockSizeSpec(name, int(number) if getattr(number, "is_number", 1) else 4096))
    return ConfigSpec(blocks)


def problem_of(region: Any, made: Any) -> Problem | None:
    """The region's kernel, to be tuned at the graph's sizes; None where that is not worth it."""
    lowerings = check.lowerings_of(region)
    instance = small_instance.make(region, made, lowerings, real=True)
    if instance.elements < TOO_SMALL:
        return None
    data, judge = _data(instance)
    written = [i for i, node in enumerate(made.tensors) if node in region.outputs]
    for number in written:
        check.spoil(data[number])
    shared = Instance(
        tensors=data,
        ints=instance.sizes,
        written=written,
        names=[b.name for b in made.kernel.arguments],
        updated=False,
        make_judge=judge,
    )
    kernel = pass_manager.run(KEEP_AXES, made.kernel)
    knobs = LLVM.tunables(kernel, made.hints, LLVM.machine()) if LLVM.tunables is not None else {}
    default = default_config(made)

    def prepare(config: Config) -> Prepared:
        chosen = None if config == default else config
        return Prepared(compiler.compile_kernel(made.kernel, made.hints, chosen), shared)

    return Problem(
        name=made.kernel.name,
        space=Space(_spec(made), default, knobs),
        settings=Settings(),
        prepare=prepare,
        seeds=[v.config for v in results.nearest(identity(made), _sizes(made)) if v.config],
    )


def _data(instance: Any) -> tuple[Sequence[torch.Tensor], Any]:
    """Random arguments, and what makes a judge of outputs for them."""
    if instance.elements > check.TOO_MANY:  # the operators would take too long
        generator = torch.Generator().manual_seed(20)
        return small_instance.fill(instance, generator, True, 0, 1)[0], None
    (arguments, nodes), precise, plain = check.data_and_references(instance)
    outputs = list(instance.region.outputs)
    numbers = [i for i, node in enumerate(instance.made.tensors) if node in outputs]

    def judge(results_: Sequence[torch.Tensor]) -> str | None:
        for number, result in zip(numbers, results_, strict=True):
            arguments[number].copy_(result)  # the graph's tensors share their memory
        for node in outputs:
            wrong = compare(nodes[node], precise[node], plain[node])
            if wrong is not None:
                return f"{node}: {wrong}"
        return None

    def make_judge(arena: Arena) -> Judge:
        return judge

    return arguments, make_judge
