"""How an elementwise rule is made from a formula over `Term`s, and rows from rules.

In: a formula, how many leading arguments it computes with, the promotion kind under which those
meet. Out: a rule for the tables. Used by pointwise.py, selection.py and activation.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import sympy
from torch._ops import OpOverload

from torch_helion.lowering.promotion import (
    DEFAULT,
    Argument,
    PromotionKind,
    Term,
    bind,
    promote,
    results,
)
from torch_helion.lowering.registry import Context, Lowering, Rule

Formula = Callable[..., Any]

# Arguments that say where a result lives, not what it holds.
PLACEMENT = frozenset(
    (
        "layout",
        "pin_memory",
        "non_blocking",
        "memory_format",
        "requires_grad",
        "copy",
        "device",
        "keepdim",
    )
)


def call_of(fn: str) -> Formula:
    """The formula that is the pointwise function `fn` itself."""

    def formula(x: Term, *others: Term) -> Term:
        return x.call(fn, *others)

    formula.__name__ = fn
    return formula


def accepted(cx: Context, formula: Formula, rest: dict[str, Argument]) -> dict[str, Any]:
    """The arguments that the formula has parameters for; the others must hold their defaults."""
    parameters = inspect.signature(formula).parameters
    defaults = {formal.name: formal.default_value for formal in cx.overload._schema.arguments}
    for name, argument in rest.items():
        if name not in parameters and name not in PLACEMENT and argument.given != defaults[name]:
            raise cx.refuse(f"argument {name}={argument.given} has no meaning here")
        if isinstance(argument.given, sympy.Expr):
            raise cx.refuse(f"argument {name} is an expression of the sizes")
    return {name: argument.given for name, argument in rest.items() if name in parameters}


def elementwise(
    formula: Formula,
    operands: int,
    kind: PromotionKind = DEFAULT,
    exact_scalars: Sequence[int] = (),
    move: bool = False,
) -> Rule:
    """A rule: the first `operands` arguments promoted together, the rest by name."""

    def rule(cx: Context, *args: Any, **kwargs: Any) -> Any:
        bound = bind(cx, args, kwargs)
        names = list(bound)
        terms = promote(cx, [bound[n] for n in names[:operands]], kind, exact_scalars, move)
        rest = accepted(cx, formula, {n: bound[n] for n in names[operands:]})
        return results(cx, formula(*terms, **rest))

    rule.__name__ = formula.__name__
    return rule


def rows(rule: Rule, *overloads: OpOverload) -> tuple[Lowering, ...]:
    return tuple(Lowering(overload, "pointwise", rule) for overload in overloads)


def family(
    formula: Formula,
    operands: int,
    kind: PromotionKind,
    *overloads: OpOverload,
    exact_scalars: Sequence[int] = (),
) -> tuple[Lowering, ...]:
    return rows(elementwise(formula, operands, kind, exact_scalars), *overloads)
