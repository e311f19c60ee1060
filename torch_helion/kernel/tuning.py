"""A bound kernel as the tuner sees it, and its tuned configs as its calls see them.

In: a :class:`torch_helion.kernel.bound.BoundKernel` and arguments. Out: a
:class:`torch_helion.autotuner.problem.Problem`; the config of a search, kept for later processes;
the config that an earlier search has found for arguments of about these sizes.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import statistics
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torch_helion import _logging, exc, settings
from torch_helion.autotuner import ranks, reference, results
from torch_helion.autotuner.arena import Arena
from torch_helion.autotuner.bench import is_close
from torch_helion.autotuner.benchmark import copier
from torch_helion.autotuner.problem import Instance, Judge, Prepared, Problem
from torch_helion.autotuner.results import KernelId
from torch_helion.autotuner.search import BaseSearch, FiniteSearch, Result, search_named
from torch_helion.autotuner.space import Space
from torch_helion.config import Config
from torch_helion.frontend.source import source_of
from torch_helion.ir import interpreter
from torch_helion.ir.accuracy import compare
from torch_helion.kernel import arguments, stored
from torch_helion.kernel.arguments import TensorLike
from torch_helion.passes import pass_manager
from torch_helion.passes.pipeline import KEEP_AXES

log = _logging.get_logger("tune")

HOST_SECONDS = 5e-3
"""for measuring the host part of one config, where it depends on the config"""


# ---------------------------------------------------------------------- searching


def autotune(
    bound: Any,
    args: Sequence[Any],
    *,
    force: bool = True,
    budget: float | None = None,
    algorithm: str = "",
    **options: Any,
) -> Config:
    """The best config for these arguments: a stored one (unless ``force``), or by a search."""
    made = bound.settings.autotuner_fn
    if made is not None:
        own = made(bound, args, **options)
        if not hasattr(own, "autotune"):
            raise exc.InvalidAPIUsage(
                "autotuner_fn makes a search, an object with a method autotune() that returns a "
                f"config; it has returned {own!r}"
            )
        return Config.from_dict(own.autotune())
    forced = force or bound.settings.force_autotune
    if len(bound.configs) == 1 and not forced:
        return bound.configs[0]
    if not forced:
        known = exact_choice(bound, args)
        if known is not None and (not bound.configs or known in bound.configs):
            return known
        if settings.flag("ASSERT_CACHE_HIT") not in ("", "0"):
            raise exc.CacheAssertionError(bound.kernel.name)
    if settings.flag("DISALLOW_AUTOTUNING") not in ("", "0"):
        raise exc.AutotuningDisallowedInEnvironment(f" (kernel {bound.kernel.name!r})")
    more = options if budget is None else {**options, "budget": budget}
    if len(bound.configs) > 1 and not forced:
        return keep(bound, args, FiniteSearch(bound, args, bound.configs, **more))
    if bound.settings.autotune_effort == "none" and budget is None:
        return bound.implicit_config() or bound.default_config()
    return keep(bound, args, search_named(algorithm)(bound, args, bound.configs, **more))


def keep(bound: Any, args: Sequence[Any], search: BaseSearch) -> Config:
    """Run a search (one rank for all of a distributed job), and store what it finds."""
    with _without_advice(bound):
        found = ranks.run(search, identity(bound.kernel, args), sizes_of(args))
    bound.kernel.last_search = found
    store(bound, args, found)
    return found.config


def store(bound: Any, args: Sequence[Any], found: Result) -> None:
    """Keep what a search has found for arguments of these sizes."""
    kernel = identity(bound.kernel, args)
    if kernel is not None:
        config = Config() if found.config == bound.default_config() else found.config
        results.keep(kernel, sizes_of(args), config, found.seconds, found.default_seconds)
        bound.kernel.results_changed()


def nearest(bound: Any, args: Sequence[Any]) -> list[Config]:
    """What searches have found for this kernel, for the most similar sizes first."""
    kernel = _known_identity(bound.kernel, args)
    found = results.nearest(kernel, sizes_of(args)) if kernel is not None else []
    return list(dict.fromkeys(v.config for v in found if v.config))


@contextmanager
def _without_advice(bound: Any) -> Iterator[None]:
    """What there is to say of a kernel was said when it was bound, not once for each config."""
    ignored = bound.settings.ignore_warnings
    bound.settings.ignore_warnings = [exc.BaseWarning]
    try:
        yield
    finally:
        bound.settings.ignore_warnings = ignored


def exact_choice(bound: Any, args: Sequence[Any]) -> Config | None:
    """What was found for sizes of the same class."""
    kernel = _known_identity(bound.kernel, args)
    found = results.choose(kernel, sizes_of(args)) if kernel is not None else None
    if found is None:
        return None
    here = tuple(n.bit_length() for n in sizes_of(args))
    return (found.config or bound.default_config()) if found.shape_class == here else None


def is_known(bound: Any, args: Sequence[Any]) -> bool:
    """Whether a search has found something (perhaps the default) for about these sizes."""
    kernel = _known_identity(bound.kernel, args)
    return kernel is not None and results.choose(kernel, sizes_of(args)) is not None


def stored_choice(bound: Any, args: Sequence[Any]) -> Config | None:
    """The config that was found for arguments of about these sizes, if it still fits."""
    kernel = _known_identity(bound.kernel, args)
    found = results.choose(kernel, sizes_of(args)) if kernel is not None else None
    if found is None or not found.config:
        return None
    if stored.find(bound, found.config) is None:  # what is stored with it has been checked
        try:
            bound.config_spec.normalize(dict(found.config))
        except exc.InvalidConfig as error:
            log.warning("%s: its tuned config is not used: %s", bound.kernel.name, error)
            return None
    log.info("%s: %s, tuned for sizes %s", bound.kernel.name, found.config, found.sizes)
    return found.config


# ---------------------------------------------------------------------- one kernel for many sizes


def rule(kernel: Any, args: Sequence[Any]) -> str:
    """Which of several tuned variants of a kernel with open sizes these arguments take; "" if there
    are none to choose from.
    """
    if not _rules(kernel):
        return ""
    known = KernelId(_name(kernel), kernel.rules[1][0].code, _kind(kernel, args))
    found = results.choose(known, sizes_of(args))
    return found.config.to_json() if found is not None else "{}"


def has_rules(kernel: Any) -> bool:
    """Whether the sizes of a call decide about its config."""
    return not kernel.settings.static_shapes and bool(_rules(kernel))


def _rules(kernel: Any) -> list[results.Variant]:
    """The variants to choose from: empty unless there are several. Looked up once, and again when
    results were added.
    """
    if kernel.rules is None or kernel.rules[0] != results.generation:
        found: list[results.Variant] = []
        known = results.all_of(_name(kernel))
        if len(known) > 1:
            try:
                code = _code(kernel.fn)
                found = [v for v in known if v.code == code]
            except stored.Unknown:
                pass
        several = len({v.config for v in found}) > 1
        kernel.rules = (results.generation, found if several else [])
    rows: list[results.Variant] = kernel.rules[1]
    return rows


# ---------------------------------------------------------------------- what a result belongs to


def identity(kernel: Any, args: Sequence[Any]) -> KernelId | None:
    """The kernel and the kinds of its arguments; None for code that has no name."""
    try:
        return KernelId(_name(kernel), _code(kernel.fn), _kind(kernel, args))
    except stored.Unknown as error:
        log.debug("%s: results are not stored: %s", kernel.name, error)
        return None


def _known_identity(kernel: Any, args: Sequence[Any]) -> KernelId | None:
    """The same; None, too, where there is no result under the kernel's name."""
    return identity(kernel, args) if results.all_of(_name(kernel)) else None


def _name(kernel: Any) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__qualname__}"


def sizes_of(args: Sequence[Any]) -> tuple[int, ...]:
    """Extents of all tensors, in order."""
    tensors = (x for _, x in _leaves(args) if isinstance(x, torch.Tensor | TensorLike))
    return tuple(int(n) for t in tensors for n in t.shape)


def _leaves(args: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(arguments.leaves(tuple(args)))


def _kind(kernel: Any, args: Sequence[Any]) -> str:
    """dtypes, ranks, layouts and constants."""
    found = []
    for path, leaf in _leaves(args):
        if isinstance(leaf, torch.Tensor | TensorLike):
            steps = leaf.stride()
            order = sorted(range(len(steps)), key=lambda d: (-steps[d], d))
            found.append(f"{str(leaf.dtype).removeprefix('torch.')}{order}")
        elif path[0] not in kernel.constant_positions and type(leaf) in (int, float):
            found.append(type(leaf).__name__)
        else:
            found.append(stored.text_of_key(leaf))
    return "; ".join(found)


def _code(fn: types.FunctionType) -> str:
    """A hash of the source: the same under every version of Python."""
    parts = stored.code_parts(fn, _source_text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _source_text(code: types.CodeType) -> str:
    if code.co_name.startswith("<") and code.co_name != "<lambda>":
        return ""  # part of the function around it
    source = source_of(code)
    if source is None:
        raise stored.Unknown(f"the source of {code.co_name}")
    node = copy.copy(source.node)
    if isinstance(node, ast.FunctionDef):
        node.decorator_list = []
    return ast.unparse(node)


# ---------------------------------------------------------------------- the problem


def problem_of(bound: Any, args: Sequence[Any]) -> Problem:
    """The kernel with these arguments, to be tuned. The arguments are not touched."""
    view = _View(bound, bound.kernel.normalize_args(*args))
    kernel = pass_manager.run(KEEP_AXES, bound.ir)
    hints = bound.example_variant().traced.hints
    tunables = bound.target.tunables
    knobs = tunables(kernel, hints, bound.target.machine()) if tunables is not None else {}
    return Problem(
        name=bound.kernel.name,
        space=Space(bound.config_spec, bound.default_config(), knobs),
        settings=bound.settings,
        prepare=view.prepare,
        shared=not bound.registers,
        isolated=not _reads_addresses(kernel),
        seeds=nearest(bound, args),
    )


def _reads_addresses(kernel: Any) -> bool:
    """Whether tensors hold addresses, which mean nothing in another process."""
    return any(op.attrs.get("stacked") for op in kernel.body.walk())


class _View:
    """What :class:`Problem` needs of a bound kernel with arguments."""

    def __init__(self, bound: Any, args: tuple[Any, ...]) -> None:
        self.bound, self.args = bound, args
        self._shared: tuple[Any, Instance] | None = None
        self._wanted: Any = None

    def prepare(self, config: Config) -> Prepared:
        """Text and arguments of the kernel with one config."""
        compiled = self.bound.candidate(config)
        if self.bound.registers:
            variant, instance = self._instance(config, compiled.complete)
        else:
            if self._shared is None:
                self._shared = self._instance(config, None)
            variant, instance = self._shared
        return Prepared(variant.text(compiled.acting()), instance)

    def _instance(self, config: Config, choices: Any) -> tuple[Any, Instance]:
        with _repeatable():
            values = launch_values(self.bound, self.args, choices)
            variant = self.bound.variant_for(values)
            tensors, ints = variant.recipe.arguments(values)
        buffers = variant.kernel.arguments
        instance = Instance(
            tensors=[t.detach() for t in tensors],
            ints=ints,
            written=variant.recipe.written,
            names=[b.name for b in buffers],
            updated=any(b.role == "inout" for b in buffers),
        )
        if self._by_host():
            instance.make_judge = lambda arena: self._host_judge(choices)
        else:
            sizes = dict(zip(variant.kernel.block_names, self._default_blocks(), strict=False))
            instance.make_judge = lambda arena: self._judge(variant, arena, ints, sizes)
        if choices is not None:
            instance.host_seconds = self._host_seconds(choices)
        return variant, instance

    def _default_blocks(self) -> list[int]:
        return list(self.bound.default_config().block_sizes)

    def _by_host(self) -> bool:
        """Whether the results of the host part are judged, not those of the kernel."""
        chosen = self.bound.settings
        given = (
            chosen.autotune_baseline_fn,
            chosen.autotune_baseline_accuracy_check_fn,
            chosen.autotune_baseline_atol,
            chosen.autotune_baseline_rtol,
        )
        return self.bound.registers or any(g is not None for g in given)

    def _judge(self, variant: Any, arena: Arena, ints: Any, sizes: Any) -> Judge | None:
        try:
            return reference.make_judge(variant.kernel, arena, ints, sizes)
        except (exc.Base, RuntimeError, IndexError, MemoryError) as error:
            log.info("%s: not interpreted: %s", self.bound.kernel.name, error)
            return None

    # -- kernels whose host part has a say --------------------------------------------------------

    def _host_judge(self, choices: Any) -> Judge:
        def judge(outputs: Sequence[torch.Tensor]) -> str | None:
            def launch(*values: Any) -> None:
                recipe = self.bound.variant_for(values).recipe
                tensors, _ = recipe.arguments(values)
                for number, output in zip(recipe.written, outputs, strict=True):
                    tensors[number].detach().copy_(output)

            copies = cloned(self.args)
            with _repeatable():
                got = self.bound.host_with(launch, choices)(*copies)
            return self._compare(got, copies)

        return judge

    def _compare(self, got: Any, copies: Any) -> str | None:
        chosen = self.bound.settings
        if self._wanted is None:
            self._wanted = self._baseline() or ((got, copies), None)
        plain, precise = self._wanted
        own = chosen.autotune_baseline_accuracy_check_fn
        if own is not None:
            try:
                own(got, plain[0])
            except AssertionError as error:
                return str(error).strip() or "the check of the settings says so"
            return None
        ours, theirs = _tensors((got, copies)), _tensors(plain)
        if len(ours) != len(theirs):
            return f"{len(ours)} tensors instead of {len(theirs)}"
        tolerances = (chosen.autotune_baseline_atol, chosen.autotune_baseline_rtol)
        if precise is None or any(t is not None for t in tolerances):
            close = all(is_close(a, b, *tolerances) for a, b in zip(ours, theirs, strict=True))
            return None if close else "they are not those of the baseline"
        for a, truth, b in zip(ours, _tensors(precise), theirs, strict=True):
            wrong = None if reference.is_close(a, truth) else compare(a, truth, b)
            if wrong is not None:
                return wrong
        return None

    def _baseline(self) -> tuple[Any, Any] | None:
        """Right results with the arguments after the call: plain ones, and in float64 if known.

        None: nobody knows; the first results count as right.
        """
        function = self.bound.settings.autotune_baseline_fn
        if function is not None:
            copies = cloned(self.args)
            with _repeatable():
                return (function(*copies), copies), None
        choices = self._choices_to_interpret()
        if choices is None:
            return None
        return self._interpreted(False, choices), self._interpreted(True, choices)

    def _choices_to_interpret(self) -> dict[str, Any] | None:
        """The default config with blocks that suit the interpreter; None: it takes too long."""
        variant = self.bound.example_variant()
        choices = self.bound.config_spec.default_config()
        sizes = dict(zip(variant.kernel.block_names, choices["block_sizes"], strict=False))
        blocks = reference.blocks_to_interpret(variant.kernel, variant.traced.hints, sizes)
        if blocks is None:
            return None
        return {**choices, "block_sizes": [blocks[name] for name in sizes]}

    def _interpreted(self, precise: bool, choices: dict[str, Any]) -> Any:
        def launch(*values: Any) -> None:
            variant = self.bound.variant_for(values)
            tensors, ints = variant.recipe.arguments(values)
            given = [_wide(t) if precise and t.is_floating_point() else t for t in tensors]
            blocks = self.bound.registered_blocks(variant, choices)
            interpreter.run(
                variant.kernel, [t.detach() for t in given], ints, blocks, precise=precise
            )
            for number in variant.recipe.written:
                if given[number] is not tensors[number]:
                    tensors[number].copy_(given[number])

        copies = cloned(self.args)
        with _repeatable():
            return self.bound.host_with(launch, lambda: choices)(*copies), copies

    def _host_seconds(self, choices: Any) -> float:
        """Of the host part without its kernel: what it does may depend on the config, too."""
        host = self.bound.host_with(lambda *values: None, choices)
        copies = cloned(self.args)
        found: list[float] = []
        end = time.perf_counter() + HOST_SECONDS
        with _repeatable():
            while len(found) < 5 or (len(found) < 100 and time.perf_counter() < end):
                start = time.perf_counter()
                host(*copies)
                found.append(time.perf_counter() - start)
        return statistics.median(found)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.float64)
    return wide.copy_(tensor)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor)]


# ---------------------------------------------------------------------- arguments of a launch


class _Launched(BaseException):
    """Not an Exception: a host function may catch those."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        super().__init__()
        self.values = values


def launch_values(
    bound: Any, args: tuple[Any, ...], choices: Callable[[], Any] | None
) -> tuple[Any, ...]:
    """What the host part hands to its kernel, made from copies of the arguments; memory that it
    leaves open is full of NaN.
    """

    def launch(*values: Any) -> None:
        raise _Launched(values)

    try:
        with _Poison():
            bound.host_with(launch, choices)(*cloned(args))
    except _Launched as reached:
        return reached.values
    raise exc.NoDeviceLoopsInKernel()


@contextmanager
def _repeatable() -> Iterator[None]:
    """Each run of the host part draws the same random numbers, and leaves none undrawn for others;
    gradients are not recorded.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(20)
        yield


class _Poison(TorchDispatchMode):
    """Fills what `torch.empty` and its kin return."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._opname in ("empty", "empty_like", "empty_strided", "new_empty", "empty_permuted",
                            "new_empty_strided"):  # fmt: skip
            if result.dtype.is_floating_point:
                result.fill_(float("nan"))
            elif result.dtype is not torch.bool:
                result.fill_(111)
        return result


def cloned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of a kernel's arguments, whatever holds their tensors."""
    copied = copier(arguments.tensors_of(args))
    return tuple(arguments.replace_tensors(arg, copied) for arg in args)
