"""Calling kernels: results, specialisations, settings, the check in front of the fast path."""

from __future__ import annotations

import functools
import sys
import threading

import pytest
import torch

import torch_helion as helion
import torch_helion.language as hl
from test.kernel.kernels import add, inc, make, pair, rowsum, scale, shifted_into, upto
from torch_helion import exc


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("n", [64, 0, 1, 2, 65, 1000])
def test_sizes(n: int, static: bool) -> None:
    kernel = make(add, static_shapes=static)
    for _ in range(3):  # the first call, the second through the table, the third through C++
        x, y = torch.randn(n), torch.randn(n)
        assert torch.equal(kernel(x, y), x + y)


@pytest.mark.parametrize("static", [True, False])
def test_one_kernel_for_many_sizes(static: bool) -> None:
    kernel = make(rowsum, static_shapes=static)
    for shape in [(3, 5), (8, 8), (1, 7), (7, 1), (5, 3), (0, 4), (3, 5), (4, 0)]:
        x = torch.randn(shape)
        torch.testing.assert_close(kernel(x), x.sum(-1))
    if not static:
        x = torch.randn(9, 11)
        assert kernel.specialization_key((x,)) == kernel.specialization_key((torch.randn(3, 5),))
        bound = kernel.bind((x,))
        assert len(bound.variants) == 1 and len(bound.ir.sizes) >= 2


def test_special_values_pass_through() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
    got = make(add)(x, torch.zeros(5))
    assert got.isnan().tolist() == x.isnan().tolist()
    assert torch.equal(got[1:], (x + torch.zeros(5))[1:])


def test_dtypes_and_strides_are_told_apart() -> None:
    kernel = make(add)
    for dtype in (torch.float32, torch.float64, torch.float32):
        x, y = torch.randn(6, dtype=dtype), torch.randn(6, dtype=dtype)
        assert torch.equal(kernel(x, y), x + y)
    keys = {kernel.specialization_key((torch.ones(4, dtype=d),)) for d in (torch.int32, torch.int8)}
    assert len(keys) == 2
    wide = torch.randn(12)
    assert kernel.specialization_key((wide[::2],)) != kernel.specialization_key((wide[:6],))


def test_a_number_is_a_value_of_run_time() -> None:
    kernel = make(scale)
    x = torch.randn(33)
    for s in (2.5, 0.0, -1.0, 1e-30, float("inf")):
        torch.testing.assert_close(kernel(x, s), x.sin() * s, equal_nan=True)
    assert len(kernel._bound) == 1
    (bound,) = kernel._bound.values()
    assert len(bound.variants) <= 1, "a new number is no new trace"


def test_defaults_and_keywords() -> None:
    kernel = make(scale)
    x = torch.randn(8)
    torch.testing.assert_close(kernel(x), x.sin() * 2)
    torch.testing.assert_close(kernel(x=x, s=3.0), x.sin() * 3)
    assert kernel.normalize_args(x, s=4.0)[1] == 4.0
    with pytest.raises(TypeError, match="Too many arguments"):
        kernel(x, 1.0, 2.0)
    with pytest.raises(TypeError, match="missing a required argument"):
        kernel()


def test_arguments_in_containers() -> None:
    kernel = make(pair)
    for n in (5, 5, 9):
        xs = [torch.randn(n), torch.randn(n)]
        out, size = kernel(xs)
        assert torch.equal(out, xs[0] + xs[1]) and size == n


def test_arguments_that_are_written() -> None:
    kernel = make(inc)
    x = torch.zeros(5)
    version = x._version
    for count in (1, 2, 3):
        assert kernel(x) is x
        assert torch.equal(x, torch.full((5,), float(count)))
    assert x._version >= version + 3, "what autograd saved of it is void"


@pytest.mark.parametrize("first", ["apart", "one"])
def test_one_tensor_as_two_arguments(first: str) -> None:
    """What is stored through one argument is read through the other."""
    kernel = make(shifted_into)
    for kind in (first, "one", "apart", "view", "one", "apart"):
        x = torch.randn(37)
        out = {"one": x, "apart": torch.empty(37), "view": x.view(37)}[kind]
        want, target = x.clone(), torch.empty(37)
        shifted_eagerly(want, want if kind != "apart" else target)
        got = kernel(x, out)
        assert torch.equal(got, want if kind != "apart" else target), kind


def shifted_eagerly(x: torch.Tensor, out: torch.Tensor) -> None:
    out[:] = x + 1
    out[:] = out * x


def test_no_device_is_an_error() -> None:
    with pytest.raises(exc.NoTensorArgs, match="no tensor or device args"):
        make(scale)(1.0, 2.0)


def test_unsupported_arguments_are_named() -> None:
    with pytest.raises(exc.UnsupportedPythonType, match="object is not supported"):
        make(scale)(torch.ones(3), object())


def test_closures_are_refused() -> None:
    factor = 3.0

    def closed(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    with pytest.raises(exc.ClosuresNotSupported, match="factor"):
        helion.kernel(closed)(torch.ones(3))


def identity(fn: object) -> object:
    return fn


def wrapped(fn):
    @functools.wraps(fn)
    def inner(x):
        return fn(x)

    return inner


@helion.kernel
@identity
def decorated_below(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile]
    return out


@helion.kernel()
@wrapped
def wrapped_below(x: torch.Tensor) -> torch.Tensor:
    return x


@wrapped
@helion.kernel
def decorated_above(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile]
    return out


def test_decorators_stand_above() -> None:
    x = torch.ones(3)
    with pytest.raises(exc.DecoratorAfterHelionKernelDecorator, match="@identity"):
        decorated_below(x)
    with pytest.raises(exc.DecoratorAfterHelionKernelDecorator, match="wrapped_below"):
        wrapped_below(x)
    assert torch.equal(decorated_above(x), x)


def test_signatures_that_no_kernel_has() -> None:
    def star(*xs: torch.Tensor) -> None: ...
    def named(x: torch.Tensor, *, y: int = 0) -> None: ...

    for fn in (star, named):
        with pytest.raises(exc.InvalidAPIUsage, match="is not a plain one"):
            helion.kernel(fn)


def test_ways_to_decorate() -> None:
    x = torch.randn(4)
    for kernel in (
        helion.kernel(add),
        helion.kernel()(add),
        helion.jit(add),
        helion.kernel(config=helion.Config(block_sizes=[16]))(add),
        helion.kernel(config={"block_sizes": [16]}, static_shapes=False)(add),
        helion.kernel(settings=helion.Settings(static_shapes=False))(add),
    ):
        assert isinstance(kernel, helion.Kernel)
        assert kernel.name == kernel.__name__ == "add" and kernel.fn is add
        assert torch.equal(kernel(x, x), 2 * x)
    with pytest.raises(exc.InvalidAPIUsage, match="config and configs"):
        helion.kernel(config=helion.Config(), configs=[helion.Config()])(add)
    with pytest.raises(TypeError, match="did you mean 'static_shapes'"):
        helion.kernel(static_shape=True)
    with pytest.raises(exc.InvalidAPIUsage, match="settings= stands alone"):
        helion.kernel(settings=helion.Settings(), static_shapes=True)


def test_user_keys_make_specialisations() -> None:
    kernel = make(scale, key=lambda x, s: s > 1)
    x = torch.randn(4)
    for s in (0.5, 0.7, 3.0):
        torch.testing.assert_close(kernel(x, s), x.sin() * s)
    assert len(kernel._bound) == 2


def test_bind_gives_one_object_for_one_key() -> None:
    kernel = make(add)
    x = torch.randn(8)
    bound = kernel.bind((x, x))
    assert kernel.bind((x + 1, x)) is bound
    assert kernel.bind((torch.randn(9), torch.randn(9))) is not bound
    assert torch.equal(bound(x, x), 2 * x)
    assert bound.kernel is kernel and bound.host_function.device_ir is bound.ir
    kernel.reset()
    assert kernel.bind((x, x)) is not bound


def test_binding_runs_nothing() -> None:
    kernel = make(inc)
    x = torch.zeros(4)
    kernel.bind((x,))
    assert torch.equal(x, torch.zeros(4))


def test_interpret_mode() -> None:
    kernel = make(scale, ref_mode=helion.RefMode.EAGER)
    x = torch.randn(10)
    torch.testing.assert_close(kernel(x, 3.0), x.sin() * 3)
    with pytest.raises(exc.RefEagerModeCodePrintError, match="No generated code"):
        kernel.bind((x, 3.0)).to_code()
    torch.testing.assert_close(make(scale).bind((x, 3.0)).run_ref(x, 3.0), x.sin() * 3)


def test_interpret_mode_says_what_it_ignores(capsys: pytest.CaptureFixture[str]) -> None:
    config = helion.Config(block_sizes=[16])
    eager = helion.RefMode.EAGER
    make(add, config=config, ref_mode=eager)(torch.ones(3), torch.ones(3))
    assert "BlockSizeIgnoredInInterpretMode" in capsys.readouterr().err
    ignored = [exc.BlockSizeIgnoredInInterpretMode]
    make(add, config=config, ref_mode=eager, ignore_warnings=ignored)(torch.ones(3), torch.ones(3))
    assert capsys.readouterr().err == ""


def test_two_interpreters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELION_INTERPRET", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(exc.IncompatibleInterpretModes):
        make(add)(torch.ones(3), torch.ones(3))


def test_printed_code(capsys: pytest.CaptureFixture[str]) -> None:
    make(add, print_output_code=True)(torch.ones(3), torch.ones(3))
    assert "; torch_helion kernel" in capsys.readouterr().err


def test_other_backends_are_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(exc.CuteBackendUnavailable):
        make(add, backend="cute")(x, x)
    with pytest.raises(exc.BackendImplementationMissing, match="pallas"):
        make(add, backend="pallas")(x, x)


def test_narrow_indices_are_checked() -> None:
    big = torch.empty(1, dtype=torch.int8).expand(2**31)
    with pytest.raises(exc.InputTensorNumelExceedsIndexType, match="int32"):
        make(add, index_dtype=torch.int32)(big, big)
    x = torch.ones(3)
    assert torch.equal(make(add, index_dtype=torch.int32)(x, x), 2 * x)


def test_threads_share_a_kernel() -> None:
    kernel = make(add)
    failures: list[object] = []

    def work(n: int) -> None:
        x = torch.full((n,), float(n))
        for _ in range(50):
            if not torch.equal(kernel(x, x), 2 * x):
                failures.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 4, 5, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_results_follow_the_host_part_of_each_call() -> None:
    kernel = make(add)
    x = torch.randn(6)
    kernel(x, x)
    first, second = kernel(x, x), kernel(x, x)
    assert first.data_ptr() != second.data_ptr()
    with torch.inference_mode():
        assert torch.equal(kernel(x, x), 2 * x)


def test_what_is_read_by_the_device_part_is_checked_at_each_call() -> None:
    """The host part may make something else than in the call before."""
    kernel = make(add)
    x = torch.randn(6)
    kernel(x, x)
    with pytest.raises(Exception):  # noqa: B017  sizes that do not fit, never a wild read
        kernel(x, torch.randn(6).to_sparse())
    assert torch.equal(kernel(x, x), 2 * x)


def test_sizes_that_only_the_data_tell() -> None:
    """The host part cannot run on fakes; a second size opens what differs."""
    kernel = make(upto)
    for n in (5, 9, 3, 12, 5, 1, 0, 30):
        assert torch.equal(kernel(torch.tensor([2, n, 0])), torch.ones(max(n, 2)))
    (bound,) = kernel._bound.values()
    assert len(bound.variants) <= 3
    kernel.bind((torch.tensor([1, 2, 3]),))


def test_breakpoints_stop_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        for tile in hl.tile(x.size(0), block_size=2):
            hl.breakpoint()
            out[tile] = x[tile] + 1
            breakpoint()
        return out

    stopped: list[int] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: stopped.append(1))
    x = torch.ones(6)
    eager = helion.kernel(stops, ref_mode=helion.RefMode.EAGER)
    assert torch.equal(eager(x), x + 1) and len(stopped) == 6
    with pytest.raises(exc.BreakpointInDeviceLoopRequiresInterpret):
        helion.kernel(stops)(x)
