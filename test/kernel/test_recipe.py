"""Recipes of launches: checks, sources, text; keys and trees of arguments; stored keys."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any

import pytest
import torch

from torch_helion import exc
from torch_helion.kernel import arguments, integers, recipe, stored
from torch_helion.kernel.recipe import FLOAT, INT, SIZE, Leaf, Recipe


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


Named = collections.namedtuple("Named", "a b")


def closed_over(value: Any) -> Any:
    def inner(x: Any) -> Any:
        return x * value

    return inner


def test_trees_are_listed_and_fetched_and_rebuilt() -> None:
    t = torch.ones(2)
    tree = ([1, (t, "s")], {"k": Point(t, None)}, Named(2.0, t), closed_over(t))
    table = list(arguments.leaves(tree))
    assert sum(leaf is t for _, leaf in table) == 4
    for path, leaf in table:
        assert arguments.get(tree, path) is leaf
    doubled = arguments.replace_tensors(tree, lambda x: x * 2 if isinstance(x, torch.Tensor) else x)
    assert type(doubled[2]) is Named and type(doubled[1]["k"]) is Point
    assert torch.equal(doubled[3](torch.ones(2)), torch.full((2,), 2.0))
    assert [p for p, _ in arguments.leaves(doubled)] == [p for p, _ in table]


def test_keys() -> None:
    key = arguments.key_of
    assert key(1, True) == key(2, True) != key(1.0, True)
    assert key(1, True, True) != key(2, True, True)
    assert key(True, True) != key(False, True)
    assert key("a", True) != key("b", True)
    assert key([torch.ones(2)], True) == key([torch.zeros(2)], True) != key((torch.ones(2),), True)
    assert key([1], True) != key([1, 1], True)
    assert key(closed_over(1), True) == key(closed_over(2), True) != key(closed_over("a"), True)
    assert key(torch.nn.Parameter(torch.ones(2)), True) == key(torch.ones(2), True)
    a, b, one = torch.ones(3, 4), torch.ones(5, 6), torch.ones(3, 1)
    assert key(a, False) == key(b, False) != key(one, False)
    marked = torch.ones(3, 4)
    marked._dynamo_static_indices = {0}  # type: ignore[attr-defined]
    assert key(marked, False) != key(a, False)
    with pytest.raises(exc.UnsupportedPythonType, match="Random"):
        key(__import__("random").Random(), True)


def test_graphs_with_state_are_refused() -> None:
    plain = torch.fx.symbolic_trace(lambda x: x + 1)
    assert arguments.key_of(plain, True) == arguments.key_of(plain, True)
    with pytest.raises(exc.GraphModuleUnsupportedOps, match="call_module"):
        arguments.key_of(torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())), True)


def example() -> Recipe:
    return Recipe(
        (
            Leaf((0,), "tensor", torch.float32, (None, 4), (None, 1)),
            Leaf((1, "k"), "type", int),
            Leaf((2,), "value", 2.5),
            Leaf((3,), "value", torch.int8),
        ),
        (0,),
        (0,),
        ((SIZE, 0, 0), (INT, 1, 0), (FLOAT, 2, 0)),
        (((SIZE, 0, 0), (INT, 1, 0)),),
    )


def test_a_recipe_checks_values() -> None:
    made = example()
    good = [torch.ones(3, 4), {"k": 3}, 2.5, torch.int8]
    assert made.fits(good)
    for place, wrong in [
        (0, torch.ones(3, 5)),
        (0, torch.ones(4, 3).t()),
        (0, torch.ones(3, 4).double()),
        (0, torch.ones(5, 4)),
        (1, {"k": 3.0}),
        (2, 2.0),
        (3, torch.int16),
    ]:
        values = list(good)
        values[place] = wrong
        assert not made.fits(values), (place, wrong)
    tensors, ints = made.arguments(good)
    assert tensors == [good[0]] and ints == [3, 3, recipe.float_bits(2.5)]


def test_a_recipe_knows_which_tensors_are_one() -> None:
    def leaf(place: int) -> Leaf:
        return Leaf((place,), "tensor", torch.float32, (4,), (1,))

    apart = Recipe((leaf(0), leaf(1)), (0, 1), (1,), ())
    x = torch.ones(4)
    assert apart.fits([x, torch.ones(4)]) and not apart.fits([x, x]) and not apart.fits([x, x[:]])
    merged = Recipe((leaf(0), leaf(1)), (0,), (0,), (), same=((0, 1),))
    assert merged.fits([x, x[:]]) and not merged.fits([x, torch.ones(4)])
    assert recipe.from_json(recipe.to_json(merged)) == merged


def test_a_recipe_is_text() -> None:
    made = example()
    assert recipe.from_json(recipe.to_json(made)) == made
    odd = dataclasses.replace(made, leaves=(Leaf((0,), "value", object()),))
    with pytest.raises(exc.CacheError, match="no text"):
        recipe.to_json(odd)


def test_bits_of_floats() -> None:
    for value in (0.0, -0.0, 1.5, float("inf"), 5e-324):
        bits = torch.tensor(recipe.float_bits(value)).view(torch.float64)
        assert bits.item() == value and str(bits.item()) == str(value)


def test_seeds_follow_the_generator() -> None:
    torch.manual_seed(3)
    first = [recipe.draw_seed() for _ in range(3)]
    torch.manual_seed(3)
    assert [recipe.draw_seed() for _ in range(3)] == first and len(set(first)) == 3


def test_integer_helpers() -> None:
    import sympy

    n = sympy.Symbol("n", integer=True, positive=True)
    for value in (1, 2, 3, 7, 8, 9, 1000):
        assert integers.cdiv(value, 4) == -(-value // 4)
        want = 1 << (value - 1).bit_length()
        assert integers.next_power_of_2(value) == want
        assert integers.cdiv(n, 4).subs(n, value) == -(-value // 4)
        assert integers.next_power_of_2(n).subs(n, value) == want
    assert integers.next_power_of_2(0) == 1


# What stored kernels are found by.

FACTOR = 2


def helper(x: Any) -> Any:
    return x * FACTOR


def user(x: Any) -> Any:
    return helper(x) + torch.sin(x)


def parts_with(**changed: Any) -> list[str]:
    space = {**globals(), **changed}
    return stored.code_parts(types.FunctionType(user.__code__, space, "user"))


def test_keys_cover_what_the_code_refers_to() -> None:
    def with_factor(factor: int) -> Any:
        return types.FunctionType(helper.__code__, {"FACTOR": factor}, "helper")

    same = parts_with()
    assert parts_with() == same
    assert any("FACTOR: 2" in part for part in same)
    assert parts_with(helper=with_factor(3)) != parts_with(helper=with_factor(4))
    assert parts_with(helper=lambda x: x) != same
    with pytest.raises(stored.Unknown):
        parts_with(helper=object())
