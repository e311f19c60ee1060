"""One kernel for one specialisation: traced once, compiled for any number of configs.

In: a :class:`torch_helion.kernel.decorator.Kernel` and arguments. Out: :class:`BoundKernel`, which
chooses a config, compiles and runs; :class:`CompiledKernel`, the callable of one config.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torch_helion import _C, _logging, compiler, exc, settings
from torch_helion.codegen.llvm.target import LLVM
from torch_helion.codegen.target import Target
from torch_helion.codegen.triton.target import TRITON
from torch_helion.config import Config
from torch_helion.config_spec import ACTING, ConfigSpec
from torch_helion.frontend import trace as frontend
from torch_helion.frontend.watch import Watch
from torch_helion.ir import interpreter
from torch_helion.kernel import arguments, shared_memory, stored, tuning
from torch_helion.kernel.arguments import TensorLike
from torch_helion.kernel.recipe import Recipe, make_recipe
from torch_helion.passes import pass_manager
from torch_helion.passes.pipeline import KEEP_AXES

log = _logging.get_logger("code")


@dataclasses.dataclass(frozen=True)
class OutputCodeOptions:
    """Options of :meth:`BoundKernel.to_code`; they say nothing about the code made here."""

    allow_helion_deps: bool = True
    jax_fn: bool = False


@dataclasses.dataclass(eq=False)
class Variant:
    """The device part, traced with one kind of values."""

    traced: Any
    recipe: Recipe
    target: Target = LLVM

    @property
    def kernel(self) -> Any:
        """The tile IR."""
        return self.traced.kernel

    def defaults(self) -> dict[str, Any]:
        """The target's own choice for this kernel."""
        kernel = pass_manager.run(KEEP_AXES, self.kernel)
        config = self.target.default_config(kernel, self.traced.hints, self.target.machine())
        return dict(config)

    def text(self, config: Config | None, target: Target | None = None) -> str:
        """The kernel's text; None: with the target's defaults."""
        target = target or self.target
        if config is not None:
            run = functools.partial(pass_manager.run, KEEP_AXES, self.kernel)
            config = self.traced.choices.for_target(config, lambda: target.rows(run()))
        return compiler.compile_kernel(self.kernel, self.traced.hints, config, target)

    def interpret(
        self, values: Sequence[Any], blocks: Mapping[str, int], unique_stores: bool = False
    ) -> None:
        """Run by the interpreter, each tile as large as its range where ``blocks`` say no size."""
        tensors, ints = self.recipe.arguments(values)
        plain = [t.detach() for t in tensors]
        interpreter.run(self.kernel, plain, ints, dict(blocks), unique_stores=unique_stores)
        for number in self.recipe.written:
            count_write(tensors[number])


class HostView:
    """A host function together with the tile IR of its device part."""

    def __init__(self, host: Any, device_ir: Any) -> None:
        self._host = host
        self.device_ir = device_ir

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class BoundKernel:
    """A kernel with everything about it that depends on arguments, but not on a config."""

    def __init__(self, kernel: Any, args: tuple[Any, ...], key: Any) -> None:
        self.kernel = kernel
        self.key = key
        self.settings: settings.Settings = kernel.settings
        self.host: Any = kernel.host
        self.device = _device_of(args)
        self.target = _target_for(self.settings.backend, self.device)
        _check_index_dtype(self.settings.index_dtype, args)
        self.args = _without_memory(args)
        """the first arguments without their memory: what a look at the kernel is traced with"""
        self.derivatives: dict[Any, Callable[..., Any]] = {}
        """compiled backwards"""
        self.variants: list[Variant] = []
        self._config: Config | None = None
        self._run: CompiledKernel | None = None
        self._compiled: dict[Config | None, CompiledKernel] = {}
        self._spec: ConfigSpec | None = None

    # -- what the kernel is -----------------------------------------------------------------------

    @property
    def env(self) -> BoundKernel:
        """What tracing knows (its device and settings)."""
        return self

    @property
    def configs(self) -> list[Config]:
        """The configs that the kernel was decorated with."""
        return self.kernel.configs

    @property
    def host_function(self) -> Any:
        """The host part; ``.device_ir`` is the tile IR of the device part."""
        return HostView(self.host, self.ir)

    @property
    def ir(self) -> Any:
        """The tile IR of the device part."""
        return self.example_variant().kernel

    @property
    def config_spec(self) -> ConfigSpec:
        """What may be tuned."""
        if self._spec is None:
            variant = self.example_variant()
            self._spec = variant.traced.config_spec
            if self._spec.defaults is None:
                self._spec.defaults = variant.defaults
        return self._spec

    def example_variant(self) -> Variant:
        """A variant of the device part, traced on fake arguments if no call has made one yet."""
        return self.variants[0] if self.variants else self.trace_example()

    def trace_example(self) -> Variant:
        """Run the host part on fake arguments and trace what it would launch."""
        made = _examples().Example(self.settings.static_shapes)
        constants = self.kernel.constant_positions
        with made.mode():
            args = [
                made.copies((arg,), open_numbers=i not in constants)[0]
                for i, arg in enumerate(self.args)
            ]
            with Watch(self.host) as watch:
                values = _examples().values_at_launch(self, args)
            if values is None:
                raise exc.NoDeviceLoopsInKernel()
            watch.report(self.settings)
            return self._trace(made, values)

    def trace_real(self, args: tuple[Any, ...]) -> Variant:
        """Trace on what the host part makes of copies of real arguments: it reads their data."""
        copies: dict[Any, Any] = {}

        def copy(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return copies.setdefault(arguments.identity_of(leaf), leaf.detach().clone())

        values = _examples().values_at_launch(self, arguments.replace_tensors(args, copy))
        if values is None:
            raise exc.NoDeviceLoopsInKernel()
        return self.variant_for(values)

    def run_on_fakes(self) -> tuple[Any, Any, Any]:
        """Fake arguments, what the host part launches with, and what it returns for them."""
        launched: list[tuple[Any, ...]] = []
        made = _examples().Example(static=True)
        with made.mode():
            args = made.copies(self.args, open_numbers=False)
            results = self.host_with(lambda *values: launched.append(values))(*args)
        if not launched:
            raise exc.NoDeviceLoopsInKernel()
        return args, launched[0], results

    def variant_for(self, values: Sequence[Any]) -> Variant:
        """The variant for real values at a launch; traced if it is not there yet."""
        for variant in self.variants:
            if fits(variant.recipe, values):
                return variant
        if not self.variants:
            try:
                variant = self.trace_example()
                if fits(variant.recipe, values):
                    return variant
            except needs_data() as error:
                log.debug("%s: traced on real values, since %s", self.kernel.name, error)
        varying = set() if self.registers else self._varying(values)
        if varying:
            try:
                return self._trace_opened(values, varying)
            except exc.Base as error:  # the device part needs them as constants
                log.debug("%s: one kernel for each size, since %s", self.kernel.name, error)
        return self._trace_opened(values, set())

    def _varying(self, values: Sequence[Any]) -> set[arguments.Path]:
        """Where the values differ in nothing but numbers and sizes from those of a variant."""
        for variant in reversed(self.variants):
            found = variant.recipe.differences(values)
            if found:
                return found
        return set()

    def _trace_opened(self, values: Sequence[Any], opened: set[arguments.Path]) -> Variant:
        made = _examples().Example(self.settings.static_shapes)
        with made.mode():
            return self._trace(made, made.opened(values, opened))

    def _trace(self, made: Any, values: tuple[Any, ...]) -> Variant:
        values = made.copies(values, open_numbers=False)  # globals may be real tensors
        with made.watched() as decided:
            traced = frontend.trace(self.host, values, self.settings)
            exact = decided()
        variant = Variant(traced, make_recipe(traced, values, exact), self.target)
        self.variants.append(variant)
        return variant

    # -- configs ----------------------------------------------------------------------------------

    def compile_config(
        self, config: Config | Mapping[str, Any] | None = None, **unused: Any
    ) -> CompiledKernel:
        """A callable with the kernel's own signature that runs with this config."""
        if config is None:
            config = self._config or self.implicit_config()
        if config is not None:
            self.config_spec.normalize(dict(Config.from_dict(config)))  # raises if it does not fit
        return self._with(None if config is None else Config.from_dict(config))

    def _with(self, config: Config | None) -> CompiledKernel:
        if config not in self._compiled:
            self._compiled[config] = CompiledKernel(self, config)
        return self._compiled[config]

    def implicit_config(self) -> Config | None:
        """The config that needs no search: the only one given, or None for the default."""
        return self.configs[0] if len(self.configs) == 1 else None

    def set_config(self, config: Config | Mapping[str, Any] | None) -> None:
        """Use this config from now on."""
        self._install(self.compile_config(config))

    def _install(self, compiled: CompiledKernel) -> CompiledKernel:
        self._run = compiled
        self._config = compiled.config
        self.kernel.installed(self)
        return compiled

    @property
    def running(self) -> CompiledKernel | None:
        """What runs with the config in use, if one was chosen."""
        return self._run

    def default_config(self) -> Config:
        """The complete default config."""
        return Config(**self.config_spec.default_config())

    def autotune(self, args: Sequence[Any], *, force: bool = True, **options: Any) -> Config:
        """Search for the best config on these arguments, and use it from now on."""
        args = self.kernel.normalize_args(*args)
        if not force and self._config is not None:
            return self._config
        best = tuning.autotune(self, args, force=force, **options)
        self.set_config(best)
        return best

    def tuning_problem(self, args: Sequence[Any]) -> Any:
        """What a search of the tuner works on."""
        return tuning.problem_of(self, args)

    def stored_config(self, args: Sequence[Any]) -> Config | None:
        """What a search has found for arguments of these sizes, in this process or another."""
        return tuning.exact_choice(self, self.kernel.normalize_args(*args))

    def keep_result(self, args: Sequence[Any], result: Any) -> None:
        """Store what a search has found."""
        tuning.store(self, self.kernel.normalize_args(*args), result)

    def candidate(self, config: Config) -> CompiledKernel:
        """The kernel with a config that is only tried; raises ``exc.InvalidConfig``."""
        self.config_spec.normalize(dict(config))
        return CompiledKernel(self, config)

    def choose_again(self) -> None:
        """Forget a default config: the next call looks for another one."""
        if self._run is not None and self._config is None:
            self._run = None
            self.kernel.installed(self)

    def _choose(self, args: tuple[Any, ...]) -> None:
        """Install a config for a call that finds none."""
        if self.settings.ref_mode is settings.RefMode.EAGER:
            self._choose_eager()
            return
        plain = not self.settings.force_autotune
        effort = self.settings.autotune_effort
        if plain and len(self.configs) == 1:
            self._install(self._with(self.configs[0]))
        elif len(self.configs) > 1 or self.settings.autotuner_fn is not None or not plain:
            try:
                self.autotune(args, force=False)
            except (exc.TooLargeToTune, exc.NoResultFromRank) as error:  # the call can go on
                log.warning("%s runs with the first of its configs: %s", self.kernel.name, error)
                self._install(self._with(self.configs[0] if self.configs else None))
        elif effort == "none":
            self._install(self._with(None))
            self._say_implicit_config()
        elif self._searches_now(args):
            self._tune_for_call(args, self.kernel.tuning_budget or 0.0)
        elif (tuned := tuning.stored_choice(self, args)) is not None:
            self._install(self._with(tuned))
        elif settings.flag("DISALLOW_AUTOTUNING") not in ("", "0"):
            raise exc.AutotuningDisallowedInEnvironment(f" (kernel {self.kernel.name!r})")
        else:
            self._install(self._with(None))

    def _searches_now(self, args: tuple[Any, ...]) -> bool:
        """Whether this call searches: told to, and nothing is known for about these sizes."""
        if self.kernel.tuning_budget is None:
            return False
        return self.kernel.tunes_anew or not tuning.is_known(self, args)

    def _tune_for_call(self, args: tuple[Any, ...], budget: float) -> None:
        """Search within a call, which must succeed whatever becomes of the search."""
        try:
            self.autotune(args, force=self.kernel.tunes_anew, budget=budget)
        except (exc.AutotuneError, OSError) as error:
            log.warning("%s keeps its default config: %s", self.kernel.name, error)
            self._install(self._with(None))

    def _choose_eager(self) -> None:
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise exc.IncompatibleInterpretModes()
        config = self.implicit_config()
        if config is not None and config.block_sizes:
            warning = exc.BlockSizeIgnoredInInterpretMode(config.block_sizes)
            exc.warn(warning, self.settings.ignore_warnings)
        self._install(self._with(config))

    def _say_implicit_config(self) -> None:
        if self.settings.autotune_log_level:
            print(
                f"Using default config: @helion.kernel(config={self.default_config()!r}, "
                f"static_shapes={self.settings.static_shapes})",
                file=sys.stderr,
            )

    # -- text -------------------------------------------------------------------------------------

    def to_code(self, config: Config | Mapping[str, Any] | None = None, **options: Any) -> str:
        """The text that is compiled for this config."""
        if self.settings.ref_mode is settings.RefMode.EAGER:
            raise exc.RefEagerModeCodePrintError()
        return self.compile_config(config).text()

    def to_triton_code(self, config: Any = None, **options: Any) -> str:
        """The kernel as Triton code; where there is none of it, what is compiled here."""
        plain = self.to_code(config, **options)
        compiled = self.compile_config(config)
        chosen = Config(**compiled.complete()) if compiled.config is not None else None
        try:
            return self.example_variant().text(chosen, TRITON)
        except exc.Base as error:
            log.info("%s has no Triton code: %s", self.kernel.name, error)
            why = str(error).partition("\n")[0]
            return f"; No Triton code: {why}\n; What follows is compiled here.\n{plain}"

    def get_cached_path(self, config: Any = None) -> str | None:
        """There is no file of source text: it lives in the artifact cache."""
        return None

    def maybe_log_repro(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to log: a kernel's text is complete by itself."""

    # -- running ----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on these arguments, choosing a config first if there is none yet."""
        if kwargs:
            args = self.kernel.normalize_args(*args, **kwargs)
        if self._run is None:
            self._choose(args)
        assert self._run is not None
        return self._run.run(*args)

    def run_ref(self, *args: Any) -> Any:
        """Run by the interpreter of the tile IR."""
        choices = self.config_spec.default_config() if self.registers else {}
        host = self.host_with(lambda *values: self.interpret(values, choices), lambda: choices)
        return host(*args)

    def interpret(
        self, values: Sequence[Any], choices: Mapping[str, Any], unique_stores: bool = False
    ) -> None:
        """Run the device part by the interpreter."""
        variant = self.variant_for(values)
        variant.interpret(values, self.registered_blocks(variant, choices), unique_stores)

    @property
    def registers(self) -> bool:
        """Whether the host part asks for values of the config."""
        return getattr(self.host, "registers", False)

    def host_with(
        self, launch: Callable[..., Any], choices: Callable[[], Mapping[str, Any]] | None = None
    ) -> Callable[..., Any]:
        """The host part with a launch in it; ``choices``: of a config, else of the default one."""
        if not self.registers:
            return self.host.with_launch(launch)
        if choices is None:
            choices = self.config_spec.default_config
        return self.host.with_launch(launch, choices)

    def registered_blocks(self, variant: Variant, choices: Mapping[str, Any]) -> dict[str, int]:
        """Block sizes that the host part knows, by name: an interpreter must not choose others."""
        if not self.registers:
            return {}
        count = len(self.host.last_run.blocks)
        return dict(zip(variant.kernel.block_names[:count], choices["block_sizes"], strict=False))


class CompiledKernel:
    """A bound kernel with one config: a plain callable with the kernel's signature."""

    def __init__(self, bound: BoundKernel, config: Config | None) -> None:
        self.bound = bound
        self.config = config
        self.listeners: list[Callable[[], None]] = []
        self._loaded: list[tuple[Recipe, _C.Kernel]] = []
        self._told = False
        """whether overlapping tensors were spoken of"""
        eager = bound.settings.ref_mode is settings.RefMode.EAGER
        self._relaunch(self._interpret if eager else self._miss)

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def _relaunch(self, launch: Callable[..., Any]) -> None:
        """``run``: the host part with this launch in it."""
        self.launch = launch
        self.run: Callable[..., Any] = self.bound.host_with(launch, self._choices)
        for listener in self.listeners:
            listener()

    def _choices(self) -> dict[str, Any]:
        """What the host part may ask the config for."""
        if self._stored is not None:
            return self._stored.choices
        return self.complete()

    def complete(self) -> dict[str, Any]:
        """The config with a value for every key; raises ``exc.InvalidConfig``."""
        spec = self.bound.config_spec
        return spec.default_config() if self.config is None else spec.normalize(dict(self.config))

    def _interpret(self, *values: Any) -> None:
        """The launch of the reference mode."""
        choices = self.complete() if self.bound.registers else {}
        self.bound.interpret(values, choices, unique_stores=True)

    def _in_order(self, values: Sequence[Any]) -> None:
        """Run one operation after the other: what is written is read under another name as well."""
        if not self._told:
            log.warning(
                "%s: tensors overlap and one of them is written; such calls are run by the "
                "interpreter, which is slow. Pass tensors that are apart.",
                self.bound.kernel.name,
            )
        self._told = True
        self.bound.interpret(values, self.complete() if self.bound.registers else {})

    def acting(self) -> Config | None:
        """The keys of the complete config that change code, and the kernel's own tunables."""
        if self.config is None and not self.bound.registers:
            return None
        spec, complete = self.bound.config_spec, self.complete()
        if not self.bound.registers and complete == spec.default_config():
            return None  # nothing was chosen: passes may change the axes that blocks are for
        own = spec.user_defined_tunables
        return Config(**{k: v for k, v in complete.items() if k in ACTING or k in own})

    def text(self) -> str:
        """The kernel's text."""
        return self.bound.example_variant().text(self.acting())

    def _miss(self, *values: Any) -> None:
        """A launch for values that the last one was not made for."""
        recipe, kernel = self._kernel_for(values)
        tensors, ints = recipe.arguments(values)
        apart = shared_memory.interleaved(tensors, recipe.written)
        if apart is None:
            self._in_order(values)
            return
        for number in recipe.written:
            count_write(tensors[number])
        self._relaunch(recipe.launch(kernel, self._miss, apart))
        kernel(*tensors, *ints)

    def _kernel_for(self, values: Sequence[Any]) -> tuple[Recipe, _C.Kernel]:
        for recipe, kernel in self._loaded:
            if fits(recipe, values):
                return recipe, kernel
        try:
            recipe, text = self._text_for(values)
            kernel = compiler.load_kernel(text, self.bound.target)
        except exc.CodegenError as error:
            raise exc.ErrorCompilingKernel(f"{self.bound.kernel.name}: {error}") from error
        if self.bound.settings.print_output_code:
            print(text, file=sys.stderr)
        self._loaded.append((recipe, kernel))
        return recipe, kernel

    def _text_for(self, values: Sequence[Any]) -> tuple[Recipe, str]:
        entry = None if self._loaded else self._stored
        if entry is not None and fits(entry.recipe, values):
            return entry.recipe, entry.text
        variant = self.bound.variant_for(values)
        text = variant.text(self.acting())
        if not self._loaded:
            choices = self.complete() if self.bound.registers else {}
            entry = stored.Entry(variant.recipe, text, choices)
            stored.keep(self.bound, self.config, entry)
        return variant.recipe, text

    @functools.cached_property
    def _stored(self) -> stored.Entry | None:
        """What an earlier process found out about the kernel with this config."""
        return stored.find(self.bound, self.config)


def fits(recipe: Recipe, values: Sequence[Any]) -> bool:
    """Whether a kernel of this recipe may run on these values."""
    try:
        return recipe.fits(values)
    except (LookupError, AttributeError, TypeError):
        return False


def count_write(tensor: torch.Tensor) -> None:
    """What autograd has saved of the tensor is no longer what it holds."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def needs_data() -> tuple[type[Exception], ...]:
    """What tracing on fakes raises where only a real call can tell."""
    return _examples().NEEDS_DATA


def _examples() -> Any:
    # Imports Dynamo, which takes a second: a process that finds its kernels stored never needs it.
    from torch_helion.kernel import example

    return example


def _without_memory(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with descriptions in the place of tensors; one tensor has one description."""
    made: dict[Any, TensorLike] = {}

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return made.setdefault(arguments.identity_of(leaf), TensorLike.of(leaf))

    return arguments.replace_tensors(args, describe)


def _device_of(args: Sequence[Any]) -> torch.device:
    for _, leaf in arguments.leaves(tuple(args)):
        if isinstance(leaf, torch.Tensor | TensorLike):
            return leaf.device
    for _, leaf in arguments.leaves(tuple(args)):
        if isinstance(leaf, torch.device):
            return leaf
    raise exc.NoTensorArgs()


def _check_index_dtype(index_dtype: Any, args: Sequence[Any]) -> None:
    """A user who asks for narrow indices must have tensors that they can reach all of."""
    if index_dtype is None or torch.iinfo(index_dtype).max > arguments.INT32_MAX:
        return
    most = torch.iinfo(index_dtype).max
    for _, leaf in arguments.leaves(tuple(args)):
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.numel() > most:
            raise exc.InputTensorNumelExceedsIndexType(index_dtype)
        if sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True)) > most:
            raise exc.IndexOffsetOutOfRangeForInt32(index_dtype)


def _target_for(backend: str, device: torch.device) -> Target:
    if backend == "cute":
        raise exc.CuteBackendUnavailable()
    if backend not in ("auto", "llvm", "triton"):
        raise exc.BackendImplementationMissing(backend, "this language")
    if device.type in LLVM.device_types:
        return LLVM
    raise exc.BackendUnsupported("llvm", f"the device {device}")
