"""Each new kernel is compared once with what its region says, before it is used.

What flows in: a region, its kernel and the kernel's text. What flows out: a verdict in words, or
``exc.AccuracyError``. The kernel runs on a small instance with random numbers
(:mod:`torch_helion.capture.small_instance`); the region's operators run on ATen in float64, and as
they are.

Every output is judged by the accuracy rule (:mod:`torch_helion.ir.accuracy`). Verdicts are kept in
the artifact cache, so that a kernel is judged once per machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from torch_helion import _logging, exc
from torch_helion.capture import small_instance
from torch_helion.capture.region_to_kernel import structural_key
from torch_helion.capture.small_instance import CannotShrink, Instance
from torch_helion.compiler import kernel_key, load_kernel
from torch_helion.ir.accuracy import compare
from torch_helion.lowering.rows import graph_lowerings
from torch_helion.runtime import artifact_cache

log = _logging.get_logger("capture")

KIND = "verdict"
VERSION = 1
# Above this many elements (over all operators) a check at real sizes is not worth its time.
TOO_MANY = 1 << 24


def check_kernel(region: Any, made: Any, text: str) -> str:
    """Judge a kernel, or repeat what was judged before; raises ``exc.AccuracyError``."""
    key = _key(region, text)
    verdict = _remembered.get(key)
    if verdict is None:
        stored = artifact_cache.get(KIND, key)
        verdict = stored.decode() if stored is not None else _judge(region, made, text)
        if stored is None:
            artifact_cache.put(KIND, key, verdict.encode())
        _remembered[key] = verdict
    if not verdict.startswith(_GOOD):
        raise exc.AccuracyError(f"{made.kernel.name}: {verdict}")
    return verdict


_GOOD = ("right", "not checked")
_remembered: dict[str, str] = {}


def _key(region: Any, text: str) -> str:
    """The kernel, and what it stands for: equal texts of different regions are judged apart."""
    meaning = repr(structural_key(region))
    return hashlib.sha256(f"{VERSION}\n{kernel_key(text)}\n{meaning}".encode()).hexdigest()


def lowerings_of(region: Any) -> Any:
    """The rules that made a region's kernel: its own, or those of all regions."""
    return getattr(region, "lowerings", None) or graph_lowerings()


def _judge(region: Any, made: Any, text: str) -> str:
    kernel = load_kernel(text)
    lowerings = lowerings_of(region)
    try:
        small = small_instance.make(region, made, lowerings)
        verdict = run_and_compare(small, kernel)
        if verdict is None:
            return "right on a small instance"
        log.debug("%s: on a small instance: %s", made.kernel.name, verdict)
    except CannotShrink as error:
        verdict = None
        log.debug("%s: no small instance: %s", made.kernel.name, error)
    # A wrong small instance must not cost a right kernel: the real sizes have the last word.
    try:
        real = small_instance.make(region, made, lowerings, real=True)
    except CannotShrink as error:
        return verdict or f"not checked: {error}"
    if real.elements > TOO_MANY:
        return verdict or f"not checked: {real.elements} elements at real sizes"
    return run_and_compare(real, kernel) or "right at real sizes"


# ---------------------------------------------------------------------- one run


def run_and_compare(instance: Instance, kernel: Callable[..., None]) -> str | None:
    """What is wrong with the kernel's results; None if nothing is."""
    data, precise, plain = data_and_references(instance)
    arguments, nodes = data
    outputs = list(instance.region.outputs)
    for node, argument in zip(instance.made.tensors, arguments, strict=True):
        if node in outputs:
            spoil(argument)
    kernel(*arguments, *instance.sizes)
    for node in outputs:
        wrong = compare(nodes[node], precise[node], plain[node])
        if wrong is not None:
            return f"{node}: {wrong}"
    return None


def data_and_references(instance: Instance) -> tuple[Any, dict[fx.Node, Any], dict[fx.Node, Any]]:
    """Random data on which the region's operators give numbers, and what they give."""
    top = index_limit(instance)
    attempts = (
        (False, 0, top),
        (False, 1, max(top, 2)),
        (True, 0, top),
        (True, 0, 1),
        (True, 1, 2),
    )
    failure: Exception | None = None
    best: Any = None
    for positive, low, high in attempts:
        generator = torch.Generator().manual_seed(20)
        data = small_instance.fill(instance, generator, positive, low, high)
        inputs = {n: v.clone() for n, v in data[1].items() if n not in set(instance.region.outputs)}
        try:
            plain = instance.program.run(inputs, precise=False)
        except CannotShrink:
            raise
        except Exception as error:  # an index or a divisor that the operators do not take
            failure = error
            continue
        precise = _precise(instance, inputs, plain)
        best = best or (data, precise, plain)
        if _mostly_numbers([plain[n] for n in instance.region.outputs]):
            return data, precise, plain
    if best is None:
        raise CannotShrink(f"the operators take no random data: {failure}")
    return best


def _precise(
    instance: Instance, inputs: Mapping[fx.Node, torch.Tensor], plain: dict[fx.Node, Any]
) -> dict[fx.Node, Any]:
    try:
        return instance.program.run(inputs, precise=True)
    except Exception as error:  # bit patterns have no meaning in float64
        log.debug("no float64 evaluation: %s", error)
        return plain


def index_limit(instance: Instance) -> int:
    """Integers below this are in range wherever the region uses them as indices."""
    limit = 9
    for node in instance.region.nodes:
        if getattr(node.target, "_opname", "") in _GATHERS and node.args:
            table = node.args[0]
            if isinstance(table, fx.Node):
                limit = min(limit, *instance.program.shape(table, instance.program.small), limit)
    return max(limit, 1)


_GATHERS = frozenset({"index", "_unsafe_index", "gather", "index_select", "embedding"})


def _mostly_numbers(values: list[Any]) -> bool:
    floats = [v for v in values if v.is_floating_point() and v.numel()]
    return all(v.isfinite().float().mean() > 0.5 for v in floats)


def spoil(output: torch.Tensor) -> None:
    """What a kernel does not write must not look right."""
    if output.dtype.is_floating_point:
        output.fill_(float("nan"))
    else:
        output.fill_(1 if output.dtype is torch.bool else 111)
