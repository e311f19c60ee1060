"""How a graph is compiled: hosted by Inductor, else by plain Inductor, else run eagerly.

What flows in: dynamo's graph and the validated request. What flows out: a callable that computes
what the graph says. Floor 7; called by :mod:`torch_helion.capture.backend` only.

Three rungs, for the whole program and, one by one, for its forward, backward and inference graphs:

1. Inductor with our pass: our kernels, the rest node by node in ATen.
2. Inductor as it is, when something outside of a region failed.
3. Eager, when Inductor failed too, or must not be asked.

Each step down logs its reason. None is taken when ``settings.strict`` is on.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_helion import _logging, exc, settings
from torch_helion.capture import entry, host_faults
from torch_helion.capture import inductor_compat as inductor
from torch_helion.capture import options as request_options
from torch_helion.capture.attention_joint import JointPass
from torch_helion.capture.graph_pass import (
    HelionPass,
    changed_settings,
    draw_numbers_eagerly,
    draws_numbers,
    graph_kind,
    untouchable,
)
from torch_helion.capture.options import Request

log = _logging.get_logger("capture")

_LONGEST_REASON = 400  # characters of a message that a user should read
_HOOK = "post_grad_custom_post_pass"
_JOINT_HOOK = "joint_custom_post_pass"
# Programs in which our nodes cannot stand: C++ is generated for the whole graph.
_WITHOUT_OUR_NODES = ("cpp_wrapper", "fx_wrapper")


def compile_graph(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    unknown: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend's body: a callable for ``gm``."""
    request = request_options.read(mode, options, unknown)
    with settings.patch(**changed_settings(request.settings)):
        reason = host_faults.refusal(example_inputs)
        if reason is not None:
            log.info("a graph runs eagerly: %s", reason)
            return gm.forward
        for name in host_faults.guard_program(gm.graph):
            log.debug("guard %s changed the program", name)
            gm.recompile()
        rungs = _rungs(gm, example_inputs, request)
        compiled = entry.shortened(_first_that_works(rungs, "graph"))
        inductor.quiet_runtime()
        return compiled


def reset() -> None:
    """What ``torch.compiler.reset()`` means for us: nothing is kept between compilations."""


def _rungs(
    gm: GraphModule, inputs: Sequence[Any], request: Request
) -> list[tuple[str, Callable[[], Any]]]:
    saved = _copy_of(gm)  # Inductor changes the graph that it is given
    rungs: list[tuple[str, Callable[[], Any]]] = []
    guards = inductor.known_options(host_faults.options())
    if devices := sorted({x.device.type for x in inputs if isinstance(x, torch.Tensor)} - {"cpu"}):
        log.info("kernels are made for CPUs, this graph is on %s", ", ".join(devices))
        guards = {}
    elif inductor.unavailable is not None:
        _logging.warn_once(log, "unavailable", "plain Inductor is used: %s", inductor.unavailable)
    elif request.mode == "lite":
        log.info("mode 'lite' has no graph passes: no kernels are sought")
    else:
        hosted = functools.partial(
            inductor.compile_hosted, gm, inputs, hosting_options(request), InnerCompiler(request)
        )
        rungs.append(("hosted", hosted))
    plain = functools.partial(_compile_plain, saved, inputs, {**guards, **request.host})
    return [*rungs, ("plain Inductor", plain), ("eager", lambda: saved.forward)]


def _compile_plain(saved: GraphModule, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    return inductor.compile_plain(_copy_of(saved), inputs, options)


def hosting_options(request: Request) -> dict[str, Any]:
    """The patches of Inductor's options for a hosted graph."""
    hooks = request.host.get(_HOOK, inductor.option(_HOOK))
    hooks = tuple(hooks) if isinstance(hooks, list | tuple) else (hooks,) if hooks else ()
    ours = {
        "fallback_by_default": True,
        "size_asserts": request.settings.strict,
        "alignment_asserts": False,
        "always_keep_tensor_constants": True,  # else small ones are written by C++ of Inductor's
        **host_faults.options(),
    }
    patches = {**inductor.known_options(ours), **request.host}
    patches[_HOOK] = post = HelionPass(request, hooks)
    if not (request.host.get(_JOINT_HOOK) or inductor.option(_JOINT_HOOK)):
        patches[_JOINT_HOOK] = JointPass(post.uuid)
    return patches


class InnerCompiler:
    """Compiles one forward, backward or inference graph; Inductor calls it in place of its own."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __call__(self, gm: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        kind = "backward" if kwargs.get("is_backward") else "forward"
        kind = "inference" if kwargs.get("is_inference") else kind
        what = f"{kind} graph"
        saved = _copy_of(gm)
        rungs: list[tuple[str, Callable[[], Any]]] = []
        wrapper = next((name for name in _WITHOUT_OUR_NODES if kwargs.get(name)), None)
        wrapper = wrapper or _other_device(gm)
        if wrapper is not None:
            log.info("%s: no kernels are placed in a program with %s", what, wrapper)
        else:
            rungs.append(
                ("hosted", functools.partial(inductor.compile_inner, gm, inputs, **kwargs))
            )
        if not draws_numbers(saved.graph):
            # Inductor's own random numbers differ from ours, and a backward graph may draw again
            # what the forward drew: such graphs are never given to it.
            rungs.append(("plain Inductor", functools.partial(self._plain, saved, inputs, kwargs)))
        rungs.append(("eager", functools.partial(_run_eagerly, saved)))
        tokens = graph_kind.set(kind), untouchable.set(frozenset(_untouchable(gm)))
        try:
            with settings.patch(**changed_settings(self.request.settings)):
                return _first_that_works(rungs, what)
        finally:
            graph_kind.reset(tokens[0])
            untouchable.reset(tokens[1])

    def _plain(self, saved: GraphModule, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        options = {
            **host_faults.options(),
            "fallback_by_default": False,
            "size_asserts": True,
            _HOOK: self.request.host.get(_HOOK),
            **{name: value for name, value in self.request.host.items() if name != _HOOK},
        }
        return inductor.compile_inner_plain(_copy_of(saved), inputs, options, **kwargs)


def _first_that_works(rungs: Sequence[tuple[str, Callable[[], Any]]], what: str) -> Any:
    """The result of the first rung that does not fail; each failure but the last is logged."""
    strict = settings.current().strict
    for number, (name, attempt) in enumerate(rungs):
        try:
            return attempt()
        except Exception as error:
            if strict or number + 1 == len(rungs) or _belongs_to_dynamo(error):
                raise
            log.warning(
                "%s: %s failed, %s is next: %s", what, name, rungs[number + 1][0], _reason(error)
            )
            log.debug("the failure", exc_info=True)
    raise exc.CaptureError("nothing to try")


def _belongs_to_dynamo(error: BaseException) -> bool:
    """Whether the exception tells dynamo what to do next, and is no failure."""
    from torch._dynamo import exc as dynamo_exc

    names = ("RestartAnalysis", "SkipFrame", "TensorifyScalarRestartAnalysis", "UserError")
    kinds = tuple(getattr(dynamo_exc, name) for name in names if hasattr(dynamo_exc, name))
    inner = getattr(error, "inner_exception", None)
    return isinstance(error, kinds) or isinstance(inner, kinds)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", None) or error
    lines = str(inner).strip().splitlines()
    return f"{type(inner).__name__}: {lines[0] if lines else ''}"[:_LONGEST_REASON]


def _other_device(gm: GraphModule) -> str | None:
    """A device that is no CPU on which the graph makes a tensor."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            return f"tensors on {value.device.type}"
    return None


# Operators whose graphs Inductor lowers as it lowers the whole: our nodes may stand in them.
_WITH_GRAPHS = frozenset({"cond", "while_loop", "invoke_subgraph"})


def _untouchable(gm: GraphModule, inside: bool = False) -> Iterator[int]:
    """``id`` of the graph modules below ``gm`` in which our nodes cannot stand."""
    for node in gm.graph.find_nodes(op="get_attr"):
        below = _graph_below(gm, node)
        if below is None:
            continue
        refused = inside or any(
            getattr(user.target, "_name", "") not in _WITH_GRAPHS for user in node.users
        )
        if refused:
            yield id(below)
        yield from _untouchable(below, refused)


def _graph_below(gm: GraphModule, node: Node) -> GraphModule | None:
    found = getattr(gm, str(node.target), None)
    return found if isinstance(found, GraphModule) else None


def _copy_of(gm: GraphModule) -> GraphModule:
    """Graphs of their own over the same tensors and modules; nodes share what is in their meta."""
    graph = copy.deepcopy(gm.graph)  # copies nodes and codegen, not values
    copied = GraphModule(gm, graph)
    for node in graph.find_nodes(op="get_attr"):
        below = _graph_below(gm, node)
        if below is not None:
            setattr(copied, str(node.target), _copy_of(below))
    copied.meta.update(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(gm, name):
            setattr(copied, name, getattr(gm, name))
    for old, new in zip(gm.graph.nodes, graph.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):  # dynamo keeps it beside the meta
            new._dynamo_source = old._dynamo_source
    return copied


def _run_eagerly(gm: GraphModule) -> Callable[[list[Any]], Any]:
    """The graph, interpreted; empties the list of its arguments, as compiled ones do."""
    draw_numbers_eagerly(gm.graph)
    gm.recompile()

    def run(args: list[Any]) -> Any:
        values = list(args)
        args.clear()
        with torch.no_grad():
            return gm.forward(*values)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run
