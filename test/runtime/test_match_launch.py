"""Match and Launch: what they take, what they refuse, what they hand to Python."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from llvm_kernel import add_kernel

from torch_helion import _C

SPEC = ("tensor", torch.float32, (4,), (1,))


def test_match_tensors() -> None:
    match = _C.Match((SPEC,))
    assert match((torch.ones(4),))
    assert match((torch.nn.Parameter(torch.ones(4), requires_grad=False),))
    for wrong in (
        torch.ones(5),
        torch.ones(4, 1),
        torch.ones(4).double(),
        torch.ones(8)[::2],
        torch.ones(4).to("meta"),
        torch.ones(4, dtype=torch.complex64).conj(),
        torch.ones(4).to_sparse(),
        None,
        3,
        [1.0] * 4,
    ):
        assert not match((wrong,)), wrong
    assert not match(()) and not match((torch.ones(4), torch.ones(4)))


def test_match_open_sizes_and_strides_that_mean_nothing() -> None:
    match = _C.Match((("tensor", torch.float32, (None, 1), (None, 7)),))
    assert match((torch.ones(3, 1),)) and match((torch.ones(9, 1),))
    assert not match((torch.ones(3, 2),))
    several = _C.Match((("tensor", torch.float32, (-2,), (None,)),))
    assert several((torch.ones(3),)) and several((torch.ones(0),)) and not several((torch.ones(1),))


def test_match_gradients_and_modes() -> None:
    match = _C.Match((SPEC,))
    x = torch.ones(4, requires_grad=True)
    assert not match((x,)) and not match((x * 2,))
    with torch.no_grad():
        assert match((x,))

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            return func(*args, **(kwargs or {}))

    with Mode():
        assert not match((torch.ones(4),))
    seen = []
    torch.func.vmap(lambda x: (seen.append(match((x,))), x)[1])(torch.ones(2, 4))
    assert seen == [False]


def test_match_values_and_types() -> None:
    match = _C.Match((("value", 2.5), ("value", "a"), ("type", int), ("value", None), None))
    assert match((2.5, "a", 7, None, object()))
    assert not match((2.0, "a", 7, None, 0))
    assert not match((2.5, "b", 7, None, 0))
    assert not match((2.5, "a", True, None, 0)), "a bool is no int here"
    assert not match((2.5, "a", 7, 0, 0))
    assert not _C.Match((("value", 1),))((1.0,)), "equal, but of another type"


@pytest.mark.parametrize(
    ("specs", "error"),
    [
        (("tensor",), TypeError),
        ((("tensor", torch.float32),), TypeError),
        ((("tensor", 3, (1,), (1,)),), TypeError),
        ((("tensor", torch.float32, [1], [1]),), TypeError),
        ((("colour", 1),), ValueError),
    ],
)
def test_specs_that_make_no_sense(specs: Any, error: type) -> None:
    with pytest.raises(error):
        _C.Match(specs)


def launch_of(miss: Any, **changes: Any) -> _C.Launch:
    spec = ("tensor", torch.float32, (None,), (1,))
    fields: dict[str, Any] = {
        "specs": (spec, spec, spec),
        "tensors": (0, 1, 2),
        "ints": ((1, 0, 0),),
        "ties": (((1, 0, 0), (1, 1, 0)), ((1, 0, 0), (1, 2, 0))),
        "written": (2,),
        "same": (),
        **changes,
    }
    return _C.Launch(add_kernel(), *fields.values(), miss)


def test_launch_runs_or_misses() -> None:
    missed: list[Any] = []
    launch = launch_of(lambda *values: missed.append(values) or "missed")
    x, y, out = torch.randn(5), torch.randn(5), torch.empty(5)
    version = out._version
    assert launch(x, y, out) is None
    assert torch.equal(out, x + y) and out._version == version + 1 and x._version == 0
    before = out.clone()
    for values in [
        (x, y, torch.empty(4)),
        (x, torch.randn(6), out),
        (x, y),
        (x, y, out, 1),
        (x, y, out.double()),
        (x, None, out),
        (x, y, torch.empty(5, device="meta")),
    ]:
        assert launch(*values) == "missed"
        assert missed[-1] == values or all(a is b for a, b in zip(missed[-1], values, strict=True))
    assert torch.equal(out, before), "a launch that is refused touches nothing"


def test_launch_misses_where_tensors_are_one() -> None:
    x, y = torch.randn(5), torch.randn(5)
    launch = launch_of(lambda *values: "missed")
    assert launch(x, x, torch.empty(5)) is None, "both are only read"
    assert launch(x, y, y) == launch(x, y, x) == "missed"
    none = torch.empty(0)
    assert launch(none, none, none) is None
    spec = ("tensor", torch.float32, (None,), (1,))
    merged = launch_of(
        lambda *values: "missed",
        specs=(spec, spec, spec, spec),
        ints=((0, 5, 0),),
        ties=(),
        same=((2, 3),),
    )
    out = torch.empty(5)
    assert merged(x, y, out, out) is None and torch.equal(out, x + y)
    assert merged(x, y, out, torch.empty(5)) == "missed"


def test_launch_takes_constants_and_numbers() -> None:
    x, y, out = torch.randn(5), torch.randn(5), torch.zeros(5)
    launch_of(None, ints=((0, 3, 0),), ties=())(x, y, out)
    assert torch.equal(out[:3], (x + y)[:3]) and torch.equal(out[3:], torch.zeros(2))
    spec = ("tensor", torch.float32, (None,), (1,))
    numbered = launch_of(
        lambda *v: "missed",
        specs=(spec, spec, spec, ("type", int)),
        ints=((3, 3, 0),),
        ties=(),
    )
    out.zero_()
    numbered(x, y, out, 2)
    assert torch.equal(out[:2], (x + y)[:2]) and torch.equal(out[2:], torch.zeros(3))
    assert numbered(x, y, out, 2.0) == numbered(x, y, out, 2**70) == "missed"


def test_errors_of_a_miss_are_the_callers() -> None:
    def miss(*values: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        launch_of(miss)(1, 2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": (0, 1)},
        {"tensors": (0, 1, 3)},
        {"tensors": (0, 1, -1)},
        {"ints": ()},
        {"ints": ((1, 9, 0),)},
        {"ints": ((1, 0, -1),)},
        {"ints": ((7, 0, 0),)},
        {"ties": (((1, 0, 0), (1, 8, 0)),)},
        {"same": ((0, 3),)},
    ],
)
def test_tables_that_do_not_fit_the_kernel(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Launch"):
        launch_of(None, **changes)


def test_a_launch_is_collected_with_what_it_refers_to() -> None:
    class Owner:
        def miss(self, *values: Any) -> None: ...

    owner = Owner()
    owner.launch = launch_of(owner.miss)  # type: ignore[attr-defined]
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
