"""Random numbers keyed by a seed that the graph carries, and dropout where nothing is random.

In: a call with a seed tensor (Inductor's random prims). Out: tile values, a function of the seed
and of an element's row-major number alone, hence the same for every block size and target.

Operators that draw from PyTorch's generator (rand, bernoulli, prims.inductor_seeds) have no rows:
the generator is the host's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.lowering.creation import row_major
from torch_helion.lowering.promotion import Term, bind, constant, convert, results, wide
from torch_helion.lowering.registry import Context, Lowering, Rule

aten = torch.ops.aten


def seed_of(cx: Context, given: Any) -> Term:
    seed = convert(cx, given, torch.int64)
    if seed.value.type.axes:
        raise cx.refuse("one seed is needed for all elements")
    return seed


def inductor_random(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    mode = bound["mode"].given
    if mode not in ("rand", "randn"):
        raise cx.refuse(f"mode {mode!r} does not exist")
    seed, index = seed_of(cx, bound["seed"].given), row_major(cx, cx.outputs[0])
    return results(cx, Term(cx, cx.b.rng(mode, seed.value, index.value)))


def inductor_randint(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    seed, index = seed_of(cx, bound["seed"].given), row_major(cx, cx.outputs[0])
    low, high = (convert(cx, bound[name].given, torch.int64) for name in ("low", "high"))
    value = cx.b.rng("randint", seed.value, index.value, low.value, high.value)
    return results(cx, Term(cx, value))


def native_dropout(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
    x = convert(cx, bound["input"], wide(cx.dtype))
    if bound["train"] is False:
        return results(cx, (x, constant(cx, True, torch.bool)))
    if bound["p"] == 1:
        return results(cx, (x.constant(0), constant(cx, False, torch.bool)))
    raise cx.refuse("its numbers come from PyTorch's generator")


def inactive_dropout(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = {name: argument.given for name, argument in bind(cx, args, kwargs).items()}
    if bound["train"] and bound["p"] != 0:
        raise cx.refuse("its numbers come from PyTorch's generator")
    return results(cx, convert(cx, bound["input"], cx.dtype))


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(overload, "random", rule) for overload in overloads)


RANDOM: tuple[Lowering, ...] = (
    *rows(native_dropout, aten.native_dropout.default),
    *rows(inactive_dropout, aten.dropout.default),
)
