"""The short way into inference programs: taken where nothing stands between, and only there."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_helion  # noqa: F401  (names the backend)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion", fullgraph=True, **options)


def goes_the_long_way(call: Callable[[], Any]) -> bool:
    """Whether a call passes AOTAutograd's wrapper."""
    names: list[str] = []

    def note(frame: Any, event: str, unused: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return "_runtime_wrapper" in names


def scaled(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * 2, -1)


@pytest.mark.parametrize("grad", [False, True])
def test_an_inference_program_is_called_at_once(grad: bool) -> None:
    run = compiled(scaled)
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            x = torch.randn(5, 40)
            torch.testing.assert_close(run(x), scaled(x))
        assert not goes_the_long_way(lambda: run(x))
        assert torch.is_grad_enabled() == grad
        assert not run(x).requires_grad


def test_rejects_sizes_of_run_time() -> None:
    """The wrapper marks the outputs' dimensions as dynamic."""
    run = compiled(scaled, dynamic=True)
    for rows in (5, 9, 33):
        x = torch.randn(rows, 40)
        out = run(x)
        torch.testing.assert_close(out, scaled(x))
    assert goes_the_long_way(lambda: run(x))


def test_a_program_from_the_cache_is_called_at_once() -> None:
    x = torch.randn(6, 48)
    compiled(scaled)(x)
    run = compiled(scaled)
    run(x)
    assert not goes_the_long_way(lambda: run(x))


def test_errors_leave_the_gradient_mode_as_it_was() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return x[torch.tensor([7])] * 2  # out of range: ATen says so

    run = compiled(call)
    good = torch.randn(9, 3)
    run(good)
    run(good)
    with pytest.raises(Exception):  # noqa: B017  (dynamo compiles again for four rows)
        run(torch.randn(4, 3))
    assert torch.is_grad_enabled()


def adds_in_place(x: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x * 2


def gives_a_view(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.view(-1), x * 2


def gives_its_input(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x, x * 2


def gives_two_views_of_one(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = x * 2
    return y.view(-1), y[0]


@pytest.mark.parametrize(
    "function", [adds_in_place, gives_a_view, gives_its_input, gives_two_views_of_one]
)
def test_rejects_programs_with_work_around_them(function: Callable[..., Any]) -> None:
    run = compiled(function)
    for _ in range(3):
        x = torch.randn(4, 6)
        y = x.clone()
        got, expected = run(x), function(y)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(x, y)
        assert x._version == y._version
        if isinstance(got, tuple):
            for a, b in zip(got, expected, strict=True):
                assert (a is x) == (b is y)
                shares = a.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
                assert shares == (b.untyped_storage().data_ptr() == y.untyped_storage().data_ptr())


def test_training_goes_the_long_way() -> None:
    run = compiled(scaled)
    x = torch.randn(4, 16, requires_grad=True)
    for _ in range(3):
        out = run(x)
        assert out.requires_grad
        out.sum().backward()
    with torch.no_grad():
        run(x)
        run(x)
        assert not goes_the_long_way(lambda: run(x))
    assert run(x).requires_grad  # dynamo guards the mode: this is the first program again


def test_one_tensor_twice() -> None:
    run = compiled(lambda x, y: torch.softmax(x + y, -1))
    x, y = torch.randn(4, 16), torch.randn(4, 16)
    for pair in ((x, x), (x, x), (x, y), (x, y), (x, x)):
        torch.testing.assert_close(run(*pair), torch.softmax(pair[0] + pair[1], -1))


def test_random_programs_draw_anew() -> None:
    run = compiled(lambda x: torch.nn.functional.dropout(x, 0.5, training=True))
    x = torch.ones(64, 64)
    drawn = [run(x) for _ in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(drawn))


def test_profiles_show_every_step() -> None:
    run = compiled(scaled)
    x = torch.randn(4, 16)
    run(x)
    run(x)
    with torch.profiler.profile() as profile:
        run(x)
    assert any("CompiledFxGraph" in event.key for event in profile.key_averages())
    assert not goes_the_long_way(lambda: run(x))


def test_first_calls_race() -> None:
    run = compiled(scaled)
    inputs = [torch.randn(4, 16) for _ in range(8)]
    results: list[Any] = [None] * 8
    start = threading.Barrier(8)

    def work(i: int) -> None:
        start.wait()
        for _ in range(20):
            results[i] = run(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, got in zip(inputs, results, strict=True):
        torch.testing.assert_close(got, scaled(x))
