"""``@torch_helion.kernel``: the decorator, and the object that a decorated function becomes.

In: a Python function, configs, settings. Out: :class:`Kernel`, called like the function. A call
whose arguments are as those of the call before is checked in C++ and goes straight to the host
function; any other one looks up, or makes, the bound kernel of its specialisation.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from torch_helion import _C, exc
from torch_helion.autotuner import search
from torch_helion.config import Config
from torch_helion.frontend import host as frontend
from torch_helion.frontend.source import static_value
from torch_helion.kernel import arguments, operator, tuning
from torch_helion.kernel.bound import BoundKernel, CompiledKernel, needs_data
from torch_helion.settings import RefMode, Settings

RECENT = 8
"""specialisations that are tried in C++ before the key of a call is made"""
all_kernels: weakref.WeakSet[Kernel] = weakref.WeakSet()
"""every kernel of this process"""
NOT_ONE = -2
"""what `_C.Match` takes for a size that may be anything but 1"""


class Kernel:
    """A kernel as the user holds it. ``fn`` is the plain Python function."""

    def __init__(
        self,
        fn: types.FunctionType,
        *,
        configs: Sequence[Config | Mapping[str, Any]] = (),
        key: Callable[..., Any] | None = None,
        settings: Settings | None = None,
    ) -> None:
        if isinstance(fn, Kernel):
            fn = fn.fn
        if not isinstance(fn, types.FunctionType):
            raise TypeError(f"@kernel takes a Python function, got {type(fn).__name__}")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name: str = fn.__name__
        self.signature = inspect.signature(fn)
        _check_signature(self.signature, self.name)
        self.settings = settings or Settings()
        self.configs = [Config.from_dict(c) for c in configs]
        self.key = key
        self.constant_positions = _constant_positions(self.signature)
        self._bound: dict[Any, BoundKernel] = {}
        self._recent: list[tuple[_C.Match, CompiledKernel]] = []
        self._graph_numbers: dict[Any, int] = {}
        self._names = tuple(self.signature.parameters)
        all_kernels.add(self)
        self.tuning_budget: float | None = None
        """seconds of a search at the first call with arguments of a new kind; None: no search"""
        self.tunes_anew = False
        """whether it searches also where an earlier search has found something"""
        self.rules: Any = None
        """tuned variants that calls choose from by size (see :mod:`torch_helion.kernel.tuning`)"""
        self.last_search: Any = None
        """what the last search found (:class:`torch_helion.autotuner.search.Result`)"""

    @functools.cached_property
    def host(self) -> Any:
        """The host part and the device part of the function, split once."""
        if inspect.unwrap(self.fn) is not self.fn:
            raise exc.DecoratorAfterHelionKernelDecorator(self.name)
        if self.fn.__closure__:
            raise exc.ClosuresNotSupported(", ".join(self.fn.__code__.co_freevars))
        host = frontend.split(self.fn)
        _check_decorators(host, self.fn)
        return host

    # -- calls ------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the kernel, like the function that it was made of."""
        if is_dynamo_compiling():
            places = tuple(i for i, a in enumerate(args) if isinstance(a, types.FunctionType))
            number = self._make_graph_function(places, *(args[i] for i in places))
            given = [a for i, a in enumerate(args) if i not in places]
            return getattr(self, f"_graph_function_{number}")(*given, **kwargs)
        if not kwargs:
            for match, compiled in self._recent:
                if match(args):
                    return compiled.run(*args)
        return self._call(self.normalize_args(*args, **kwargs))

    def run(self, args: tuple[Any, ...]) -> Any:
        """Run on normalised arguments; gradients are not recorded."""
        for match, compiled in self._recent:
            if match(args):
                return compiled.run(*args)
        bound = self._bound_for(args)
        result = bound(*args)
        self._remember(args, bound)
        return result

    def _call(self, args: tuple[Any, ...]) -> Any:
        tensors = arguments.tensors_of(args)
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if operator.is_watched(tensors):
            return operator.call(self, args)
        if grad:
            try:
                return operator.call(self, args)
            except needs_data():
                pass  # the host part cannot run twice: no gradients, as in the language
        return self.run(args)

    def _make_graph_function(self, places: tuple[int, ...], *functions: Any) -> int:
        """Number of what Dynamo calls in the place of the kernel. A graph holds no functions as
        arguments: those at ``places`` are part of it.
        """
        key = (places, functions)
        if key not in self._graph_numbers:
            number = self._graph_numbers[key] = len(self._graph_numbers)
            fixed = dict(zip(places, functions, strict=True))
            # An attribute each: Dynamo would not see that a list has grown.
            setattr(self, f"_graph_function_{number}", operator.in_graph(self, fixed))
        return self._graph_numbers[key]

    # Dynamo runs this method while it traces, and takes its result for a constant.
    _make_graph_function._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def normalize_args(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Arguments in the order of the parameters, defaults filled in."""
        if not kwargs and len(args) == len(self._names):
            return args
        if len(args) > len(self._names):
            raise TypeError(
                f"Too many arguments passed to the kernel {self.name}, expected: "
                f"{len(self._names)} got: {len(args)}."
            )
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def _remember(self, args: tuple[Any, ...], bound: BoundKernel) -> None:
        """Let later calls with arguments like these be recognised in C++."""
        compiled = bound.running
        if compiled is None or self.key is not None or tuning.has_rules(self):
            return
        specs = _specs(args, self.settings.static_shapes, self.constant_positions)
        if specs is None:
            return
        self._recent = [row for row in self._recent if row[1].bound is not bound]
        self._recent = [(_C.Match(specs), compiled), *self._recent[: RECENT - 1]]

    def installed(self, bound: BoundKernel) -> None:
        """A bound kernel has got another config: what was remembered of it is void."""
        self._recent = [row for row in self._recent if row[1].bound is not bound]

    # -- specialisations --------------------------------------------------------------------------

    def bind(self, args: Sequence[Any]) -> BoundKernel:
        """The kernel for arguments like these, traced; the same object for the same key."""
        bound = self._bound_for(self.normalize_args(*args))
        if self.settings.ref_mode is RefMode.OFF:
            try:
                bound.example_variant()
            except needs_data():
                bound.trace_real(self.normalize_args(*args))
        return bound

    def _bound_for(self, args: tuple[Any, ...]) -> BoundKernel:
        key = self.specialization_key(args)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = BoundKernel(self, args, key)
        return bound

    def is_bound(self, args: Sequence[Any]) -> bool:
        """Whether the kernel was bound or called with arguments like these."""
        return self.specialization_key(self.normalize_args(*args)) in self._bound

    def specialization_key(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """What of these arguments a compiled kernel depends on."""
        static, constants = self.settings.static_shapes, self.constant_positions
        keys = [arguments.key_of(arg, static, i in constants) for i, arg in enumerate(args)]
        if self.key is not None:
            keys.append(self.key(*args))
        if not static and (rule := tuning.rule(self, args)):
            keys.append(rule)
        return tuple(keys)

    def tune_at_next_call(self, budget: float, anew: bool = False) -> None:
        """Search for a config when the kernel is called next, where none was chosen by the user,
        nor (unless ``anew``) found before for about these sizes.
        """
        self.tuning_budget, self.tunes_anew = budget, anew
        for bound in self._bound.values():
            bound.choose_again()

    def results_changed(self) -> None:
        """There are tuned configs that were not there: calls that are recognised look again."""
        if not self.settings.static_shapes:
            self._recent.clear()

    def reset(self) -> None:
        """Forget all bound kernels."""
        self._bound.clear()
        self._recent.clear()

    def autotune(self, args: Sequence[Any], *, force: bool = True, **options: Any) -> Config:
        """Search for the best config for arguments like these, and use it from now on."""
        args = search.arguments_of(args, f"{self.name}.autotune((x, ...))")
        args = self.normalize_args(*args)
        return self._bound_for(args).autotune(args, force=force, **options)

    def autotune_multi(
        self,
        arg_sets: Sequence[Sequence[Any]],
        *,
        aggregation: str = "geomean",
        relative_to: str | None = None,
        cache_tag: str | None = None,
        force: bool = True,
        **options: Any,
    ) -> Config:
        """One config for several sets of arguments: the best by ``aggregation`` over them."""
        sets = [self.normalize_args(*args) for args in arg_sets]
        bounds = [self._bound_for(args) for args in sets]
        problems = [bound.tuning_problem(args) for bound, args in zip(bounds, sets, strict=True)]
        candidates = self.configs or [bound.default_config() for bound in bounds]
        best = search.autotune_multi(problems, candidates, aggregation)
        for bound in bounds:
            bound.set_config(best)
        return best

    def jax_fn(self, *args: Any, **kwargs: Any) -> Any:
        """There is no JAX target."""
        raise exc.BackendImplementationMissing("pallas", "jax_fn")

    def __repr__(self) -> str:
        return f"<kernel {self.fn.__module__}.{self.fn.__qualname__}>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __deepcopy__(self, memo: object) -> Kernel:
        return self


def kernel(
    fn: Any = None,
    *,
    config: Config | Mapping[str, Any] | None = None,
    configs: Sequence[Config | Mapping[str, Any]] | None = None,
    key: Callable[..., Any] | None = None,
    settings: Settings | None = None,
    **named: Any,
) -> Any:
    """Make a kernel of a function: ``@kernel``, ``@kernel(config=...)`` or ``kernel(fn, ...)``.

    ``config``: used as it is. ``configs``: the best of them is measured at the first call. ``key``:
    a function of the arguments; another result is another specialisation. All other arguments are
    fields of :class:`torch_helion.settings.Settings`, or one ``settings=`` object.
    """
    if config is not None and configs is not None:
        raise exc.InvalidAPIUsage("config and configs cannot both be given")
    if settings is not None and named:
        raise exc.InvalidAPIUsage(f"settings= stands alone: remove {', '.join(sorted(named))}")
    chosen = search.configs_of(configs or (), "configs") if config is None else [config]
    made = settings if settings is not None else Settings(**named)
    if fn is None:
        return lambda fn: Kernel(fn, configs=chosen, key=key, settings=made)
    return Kernel(fn, configs=chosen, key=key, settings=made)


def _check_decorators(host: Any, fn: types.FunctionType) -> None:
    """Nothing may stand between the kernel's decorator and the function."""
    source: Any = getattr(host, "source", None)
    nodes = source.node.decorator_list if source is not None else []
    ours = [_is_ours(node, fn.__globals__) for node in nodes]
    if True in ours and not ours[-1]:
        error = exc.DecoratorAfterHelionKernelDecorator(ast.unparse(nodes[-1]))
        raise error.at(source.at(nodes[-1]))


def _is_ours(node: ast.expr, space: Mapping[str, Any]) -> bool:
    """Whether a decorator makes a kernel, as far as globals tell."""
    found = static_value(node.func if isinstance(node, ast.Call) else node, space)
    return getattr(found, "__module__", "") in (__name__, "torch_helion.kernel.experimental")


def _check_signature(signature: inspect.Signature, name: str) -> None:
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise exc.InvalidAPIUsage(
                f"kernel {name}: parameter {parameter} is not a plain one (no *args, **kwargs, "
                "keyword-only or positional-only parameters)"
            )


def _constant_positions(signature: inspect.Signature) -> frozenset[int]:
    """Parameters annotated as compile-time constants."""
    return frozenset(
        number
        for number, parameter in enumerate(signature.parameters.values())
        if _says_constexpr(parameter.annotation)
    )


def _says_constexpr(annotation: Any) -> bool:
    if annotation is inspect.Parameter.empty:
        return False
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return "constexpr" in f"{text}{annotation}".lower()


def _specs(
    args: tuple[Any, ...], static: bool, constants: frozenset[int]
) -> tuple[Any, ...] | None:
    """The arguments as `_C.Match` checks them; None where it cannot."""
    found: list[Any] = []
    for number, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            if type(arg) not in (torch.Tensor, torch.nn.Parameter):
                return None
            if static:
                found.append(("tensor", arg.dtype, tuple(arg.shape), tuple(arg.stride())))
            elif hasattr(arg, "_dynamo_static_indices") or arg.numel() > arguments.INT32_MAX:
                return None
            else:
                sizes = tuple(1 if n == 1 else NOT_ONE for n in arg.shape)
                found.append(("tensor", arg.dtype, sizes, (None,) * arg.dim()))
        elif type(arg) in (int, float) and number not in constants:
            found.append(("type", type(arg)))
        elif arg is None or isinstance(arg, int | float | str | torch.dtype | torch.device):
            found.append(("value", arg))
        else:
            return None
    return tuple(found)
