"""The check of a new kernel: it finds wrong ones, accepts right ones, and runs on few elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torch_helion import _testing, exc, settings
from torch_helion.capture import check, graph_pass, inductor_compat, small_instance
from torch_helion.capture.backend import helion
from torch_helion.compiler import load_kernel
from torch_helion.lowering.rows import graph_lowerings
from torch_helion.runtime import artifact_cache

Judge = Callable[[Any, Any, str], str]


@pytest.fixture
def judge_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Judge], None]]:
    """Replace the check of kernels (a region can only be evaluated while it is in its graph)."""
    stages = graph_pass.default_stages()

    def use(judge: Judge) -> None:
        changed = replace(stages, check=judge)
        monkeypatch.setattr(graph_pass, "default_stages", lambda: changed)

    with inductor_compat.without_caches(), settings.patch(strict=True):
        yield use


PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "pointwise": (lambda x: torch.exp(x) + 1, lambda: (torch.randn(1024, 2048),)),
    "softmax": (lambda x: F.softmax(x * 2, -1), lambda: (torch.randn(2048, 700),)),
    "norm": (
        lambda x, w: F.layer_norm(x, (768,), w),
        lambda: (torch.randn(8, 512, 768), torch.randn(768)),
    ),
    "columns": (lambda x: torch.tanh(x).sum(0), lambda: (torch.randn(3000, 500),)),
    "all": (lambda x: torch.tanh(x).sum(), lambda: (torch.randn(3000, 500),)),
    "heads": (
        lambda x: torch.exp(x.view(64, 128, 8, 32).transpose(1, 2)) * 2,
        lambda: (torch.randn(64, 128, 256),),
    ),
    "broadcast": (
        lambda x, y: torch.exp(x) * y, lambda: (torch.randn(900, 1), torch.randn(1, 1000)),
    ),
    "transposed": (lambda x: torch.exp(x.t()) + 1, lambda: (torch.randn(2000, 600),)),
    "integers": (lambda i: i * 3 + (i >> 1), lambda: (torch.arange(1_000_000),)),
    "division": (lambda i, j: i // j, lambda: (torch.arange(4000), torch.full((4000,), 3))),
    "bools": (lambda x: (x > 0) & (x < 1), lambda: (torch.randn(1000, 800),)),
    "gather": (
        lambda t, i: F.embedding(i, t) * 2,
        lambda: (torch.randn(5000, 64), torch.randint(0, 5000, (900,))),
    ),
    "half": (
        lambda x: F.softmax(x * 2, -1) * 512 + x, lambda: (torch.randn(1000, 512).bfloat16(),),
    ),
    "slices": (lambda x: torch.exp(x[:, 3:]) + x[:, :-3], lambda: (torch.randn(4000, 303),)),
    "joined": (
        lambda x, y: torch.cat([x.exp(), y], 1) * 2,
        lambda: (torch.randn(3000, 60), torch.randn(3000, 70)),
    ),
    "positive": (lambda x: torch.log(x) + torch.rsqrt(x), lambda: (torch.rand(2000, 300) + 1,)),
    "random": (lambda x: F.dropout(torch.exp(x), 0.3), lambda: (torch.randn(900, 1000),)),
    "mask": (
        lambda x: torch.where(
            torch.arange(600)[:, None] >= torch.arange(600), x, -math.inf
        ).softmax(-1),
        lambda: (torch.randn(8, 600, 600),),
    ),
}  # fmt: skip


def compile_program(name: str, **kwargs: Any) -> None:
    fn, arguments = PROGRAMS[name]
    with torch.no_grad():
        torch.compile(fn, backend=helion, **kwargs)(*arguments())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_right_kernels_pass_on_few_elements(
    judge_with: Callable[[Judge], None], name: str, dynamic: bool
) -> None:
    elements: list[int] = []

    def judge(region: Any, made: Any, text: str) -> str:
        instance = small_instance.make(region, made, graph_lowerings())
        elements.append(instance.elements)
        assert check.run_and_compare(instance, load_kernel(text)) is None
        return check.check_kernel(region, made, text)

    judge_with(judge)
    compile_program(name, dynamic=dynamic)
    assert elements or (dynamic and name == "slices"), "no kernel"
    assert max(elements, default=0) < 400_000


@pytest.mark.parametrize("name", ["softmax", "norm", "columns", "half", "broadcast", "heads"])
def test_wrong_kernels_are_found(judge_with: Callable[[Judge], None], name: str) -> None:
    """Each kernel with one kind of instruction changed: what changes a result is found."""
    found: list[str] = []

    def judge(region: Any, made: Any, text: str) -> str:
        for before, after in (("= fadd <", "= fsub <"), ("= fmul <", "= fadd <")):
            if before in text:
                with pytest.raises(exc.AccuracyError, match=made.kernel.name):
                    check.check_kernel(region, made, text.replace(before, after))
                found.append(before)
        return "not checked"

    judge_with(judge)
    compile_program(name)
    assert found


def test_a_verdict_is_kept(
    judge_with: Callable[[Judge], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_twice(region: Any, made: Any, text: str) -> str:
        assert check.check_kernel(region, made, text).startswith("right")
        monkeypatch.setattr(check, "_judge", _not_again)
        assert check.check_kernel(region, made, text).startswith("right")
        check._remembered.clear()
        assert check.check_kernel(region, made, text).startswith("right"), "from the artifact cache"
        key = check._key(region, text)
        assert artifact_cache.get(check.KIND, key) is not None
        assert check._key(region, text + "\n") != key
        return "right"

    judge_with(judge_twice)
    compile_program("softmax")


def _not_again(*unused: Any) -> str:
    raise AssertionError("judged again")


def test_equal_kernels_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = check._judge, []

    def count(*args: Any) -> str:
        calls.append(args)
        return judge(*args)

    monkeypatch.setattr(check, "_judge", count)
    monkeypatch.setattr(check, "_remembered", {})
    monkeypatch.setattr(artifact_cache, "get", lambda kind, key: None)

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.tanh(x @ w) * 1.25
        return x

    with _testing.recorded_graphs() as records, torch.no_grad():
        torch.compile(fn, backend=helion)(torch.randn(9, 8), torch.randn(8, 8))
    assert len(records[0].regions) == 4 and len(calls) == 1


# ---------------------------------------------------------------------- the rule


def verdict(
    got: list[float], truth: list[float], plain: list[float], dtype: Any = None
) -> str | None:
    dtype = dtype or torch.float32
    a, b, c = (torch.tensor(x, dtype=torch.float64) for x in (got, truth, plain))
    return check.compare(a.to(dtype), b, c.to(dtype))


def test_close_numbers_are_right() -> None:
    assert verdict([1.0, 2.0], [1.0, 2.000001], [1.0, 2.0]) is None
    assert verdict([1.0, 2.1], [1.0, 2.0], [1.0, 2.0]) is not None


def test_an_error_like_atens_own_is_right() -> None:
    truth, plain = [1000.0] * 50, [1000.5] * 50
    assert verdict([1000.9] * 50, truth, plain) is None
    assert verdict([1001.2] * 50, truth, plain) is not None
    assert verdict([1001.4] * 50, truth, plain, torch.float16) is None, "half types: three times"


def test_infinities_and_nans_stand_where_atens_do() -> None:
    inf, nan = math.inf, math.nan
    assert verdict([inf, nan, 1.0], [inf, nan, 1.0], [inf, nan, 1.0]) is None
    assert verdict([inf, 0.0, 1.0], [inf, nan, 1.0], [inf, nan, 1.0]) is not None
    assert verdict([-inf, 1.0], [inf, 1.0], [inf, 1.0]) is not None
    assert verdict([nan, 1.0], [2.0, 1.0], [2.0, 1.0]) is not None
    assert verdict([inf], [7e4], [inf], torch.float16) is None, "beyond the range of the dtype"


def test_integers_are_equal_or_wrong() -> None:
    a, b = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])
    assert check.compare(a, a, a) is None
    assert "1 of 3 integers differ" in str(check.compare(a, b, b))


def test_shapes_and_dtypes_count() -> None:
    a = torch.zeros(2, 3)
    assert check.compare(a, a.double(), torch.zeros(3, 2)) is not None
    assert check.compare(a, a.double(), a.half()) is not None
    assert check.compare(torch.zeros(0), torch.zeros(0).double(), torch.zeros(0)) is None


def test_assert_right_uses_the_rule() -> None:
    x = torch.randn(4)
    _testing.assert_right((x, 3), (x.clone(), 3))
    with pytest.raises(AssertionError, match="value 0"):
        _testing.assert_right(x + 1, x)
    with pytest.raises(AssertionError, match="strides"):
        _testing.assert_right(torch.zeros(2, 3), torch.zeros(3, 2).t())
