"""The C++ launcher, by kernels written by hand: arguments, phases, memory, threads, failures."""

from __future__ import annotations

import copy
import gc
import json
import pathlib
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy
import pytest
import torch
from llvm_kernel import SLOW, Phase, add_kernel, build, element, loop, ranges_kernel

from torch_helion import _C
from torch_helion.runtime import launcher
from torch_helion.runtime.launcher import KernelHeader, make_kernel, parse_header


@pytest.fixture(scope="module")
def add() -> _C.Kernel:
    return add_kernel()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def floats(n: int = 5) -> list[torch.Tensor]:
    return [torch.randn(n), torch.randn(n), torch.full((n,), float("nan"))]


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("n", [0, 1, 5, 1000, 100_003])
@pytest.mark.parametrize("cost", [1, 1_000_000])
def test_result(n, cost):
    x, y, z = floats(n)
    assert add_kernel(cost)(x, y, z, n) is None
    assert torch.equal(z, x + y)


def test_special_values(add):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, nan, -0.0, -inf, 1e-45])
    y = torch.tensor([inf, 1.0, -0.0, inf, 0.0])
    z = torch.empty(5)
    add(x, y, z, 5)
    torch.testing.assert_close(z, x + y, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(z[2]) and z[4] > 0


def test_views_keep_their_offset(add):
    base = torch.arange(20.0)
    z = torch.zeros(20)
    add(base[3:8], base[10:15], z[5:10], 5)
    assert torch.equal(z[5:10], base[3:8] + base[10:15])
    assert z[:5].sum() == 0 and z[10:].sum() == 0


def test_zero_steps_run_nothing():
    kernel = build("never", ("float32",), (Phase("ret i64 1"),))
    kernel(torch.empty(0), 0)
    with pytest.raises(IndexError):
        kernel(torch.empty(1), 1)


def test_many_arguments():
    # More than fit on the launcher's stack: the last int decides.
    kernel = build("many", ("float32",) * 70, (Phase("ret i64 0", steps="n9"),), ints=10)
    tensors = [torch.zeros(1)] * 70
    assert kernel.plan(*tensors, *range(10))[1] == 9
    kernel(*tensors, *range(10))


def test_no_tensors_and_no_ints():
    kernel = build("bare", (), (Phase("ret i64 0", steps=3),), ints=0)
    kernel()
    with pytest.raises(TypeError, match="takes 0 arguments"):
        kernel(1)


def test_inputs_with_gradients_are_only_read(add):
    x, y, z = floats()
    add(torch.nn.Parameter(x), y.requires_grad_(), z, 5)
    assert torch.equal(z, x + y.detach())


def test_inference_tensors(add):
    with torch.inference_mode():
        x, y, z = floats()
    add(x, y, z, 5)
    assert torch.equal(z, x + y)


def test_copy_on_write_memory_is_separated(add):
    x, y, z = floats()
    clone = torch._lazy_clone(z)
    add(x, y, clone, 5)
    assert torch.equal(clone, x + y)
    assert z.isnan().all()


# ---------------------------------------------------------------------- refused arguments


class PlainSubclass(torch.Tensor):
    pass


def wrapper_tensor() -> torch.Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.ones(5), torch.ones(5))


def fake_tensor() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(5)


def freed_tensor() -> torch.Tensor:
    tensor = torch.ones(5)
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED = [
    (lambda: 3, TypeError, "must be a torch.Tensor, got int"),
    (lambda: None, TypeError, "must be a torch.Tensor, got NoneType"),
    (lambda: numpy.ones(5, numpy.float32), TypeError, "got numpy.ndarray"),
    (lambda: torch.ones(5).double(), TypeError, "must have dtype Float, got Double"),
    (lambda: torch.ones(5).bfloat16(), TypeError, "must have dtype Float, got BFloat16"),
    (lambda: torch.ones(5, device="meta"), TypeError, "meta tensor"),
    (fake_tensor, TypeError, "fake tensor"),
    (wrapper_tensor, TypeError, "wraps other tensors"),
    (lambda: torch.ones(5).to_sparse(), TypeError, "not a dense"),
    (lambda: torch.ones(5, 5).to_sparse_csc(), TypeError, "not a dense"),
    (lambda: torch.ones(5).to_mkldnn(), TypeError, "not a dense"),
    (lambda: torch.ones(5, dtype=torch.complex64).conj().imag, TypeError, "negated"),
    (lambda: torch._efficientzerotensor(5), TypeError, "zero tensor"),
    (freed_tensor, ValueError, "no memory"),
]


@pytest.mark.filterwarnings("ignore:Sparse CS")
@pytest.mark.parametrize("make, error, message", REFUSED, ids=[row[2] for row in REFUSED])
@pytest.mark.parametrize("position", [0, 2])
def test_refused_tensor(add, make, error, message, position):
    args = [*floats(), 5]
    args[position] = make()
    with pytest.raises(error, match=f"^add: argument {position} .*{message}"):
        add(*args)
    if position == 0:
        assert args[2].isnan().all()  # nothing ran


def test_refused_under_transforms(add):
    x, y, z = floats()
    with pytest.raises(TypeError, match="functorch"):
        torch.vmap(lambda row: add(row, y, z, 5))(torch.ones(3, 5))
    with pytest.raises(TypeError, match="functorch"):
        torch.func.grad(lambda value: add(value, y, z, 5))(x)


def test_plain_subclass_is_taken(add):
    x, y, z = floats()
    add(x.as_subclass(PlainSubclass), y, z, 5)
    assert torch.equal(z, x + y)


@pytest.mark.parametrize(
    "value, error, message",
    [
        (1.0, TypeError, "must be an int, got float"),
        ("1", TypeError, "must be an int, got str"),
        (None, TypeError, "must be an int, got NoneType"),
        (2**63, ValueError, "does not fit in 64 bits"),
        (-(2**63) - 1, ValueError, "does not fit in 64 bits"),
    ],
)
def test_refused_int(add, value, error, message):
    with pytest.raises(error, match=f"^add: argument 3 {message}"):
        add(*floats(), value)


@pytest.mark.parametrize("value", [-1, 2**63 - 1, -(2**63), numpy.int64(7), True, torch.tensor(3)])
def test_taken_ints(add, value):
    assert add.plan(*floats(), value)[1] == int(value)


def test_an_error_of_index_is_kept(add):
    class Broken:
        def __index__(self):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        add(*floats(), Broken())


@pytest.mark.parametrize("n", [0, 3, 5])
def test_wrong_number_of_arguments(add, n):
    args = [*floats(), 5, 5][:n]
    with pytest.raises(TypeError, match=rf"^add: takes 4 arguments \(3 tensors, 1 ints\), got {n}"):
        add(*args)
    with pytest.raises(TypeError, match="takes 4 arguments"):
        add.plan(*args)


def test_keywords_are_refused(add):
    with pytest.raises(TypeError, match="no keyword arguments"):
        add(*floats(), n=5)
    add(*floats(), 5, **{})


# ---------------------------------------------------------------------- plans and memory


def test_plan_is_visible():
    kernel = build(
        "planned",
        ("float32",),
        (Phase("ret i64 0", "n0", 10, 64), Phase("ret i64 0", 2, "n1", 0)),
        ints=2,
        workspace=128,
    )
    assert kernel.plan(torch.empty(1), 3, 4) == [128, 3, 10, 64, 2, 4, 0]


@pytest.mark.parametrize("n", [1, 7, 4096])
def test_phases_run_in_order_and_share_the_workspace(n, two_threads):
    # phase 0: workspace[i] = 2 * t0[i]; phase 1: t1[i] = workspace[n - 1 - i]
    first = loop(f"""
  {element("p", "%t0")}
  {element("q", "%workspace")}
  %a = load float, ptr %p
  %b = fadd float %a, %a
  store float %b, ptr %q""")
    second = loop(f"""
  %last = sub i64 %n0, 1
  %j = sub i64 %last, %i
  {element("p", "%workspace", "%j")}
  {element("q", "%t1")}
  %a = load float, ptr %p
  store float %a, ptr %q""")
    kernel = build(
        "reverse",
        ("float32", "float32"),
        (Phase(first, cost=SLOW), Phase(second, cost=SLOW)),
        ints=2,
        workspace="n1",
    )
    x = torch.randn(n)
    y = torch.empty(n)
    kernel(x, y, n, (4 * n + 63) // 64 * 64)
    assert torch.equal(y, 2 * x.flip(0))


def run_ranges(n: int, **options: int) -> dict[int, tuple[int, int, int]]:
    """begin → (end, scratch, workspace) of each part of the grid."""
    out = torch.full((3, n), -1, dtype=torch.int64)
    ranges_kernel(**options)(out[0], out[1], out[2], n)
    return {i: tuple(out[:, i].tolist()) for i in range(n) if out[0, i] >= 0}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
def test_grid_is_split_evenly(n, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = run_ranges(n, scratch=128)
    finally:
        torch.set_num_threads(before)
    assert len(parts) == min(n, threads)
    begins = sorted(parts)
    assert begins[0] == 0 and max(end for end, _, _ in parts.values()) == n
    assert [parts[b][0] for b in begins[:-1]] == begins[1:]
    sizes = [parts[b][0] - b for b in begins]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("scratch", [64, 4096, 100_032, 8 << 20])
def test_each_thread_has_its_own_aligned_scratch(scratch, two_threads):
    parts = run_ranges(2, scratch=scratch, workspace=192)
    scratches = sorted(part[1] for part in parts.values())
    workspaces = {part[2] for part in parts.values()}
    assert len(parts) == 2 and len(workspaces) == 1
    assert all(address % 64 == 0 for address in [*scratches, *workspaces])
    assert scratches[1] - scratches[0] >= scratch
    workspace = workspaces.pop()
    assert workspace + 192 <= scratches[0] or workspace >= scratches[1] + scratch


def test_small_scratch_is_kept_and_large_goes_back_to_the_pool():
    assert run_ranges(1, scratch=4096)[0][1] == run_ranges(1, scratch=4096)[0][1]
    _C.empty_cache()
    before = _C.pool_stats()
    run_ranges(1, scratch=32 << 20)
    after = _C.pool_stats()
    assert after["misses"] == before["misses"] + 1
    assert after["live_bytes"] == before["live_bytes"]
    assert after["cached_bytes"] >= 32 << 20
    run_ranges(1, scratch=32 << 20)
    assert _C.pool_stats()["hits"] == after["hits"] + 1
    _C.empty_cache()


def test_debug_fill_marks_fresh_memory():
    # t0[0] = scratch[0], t0[1] = workspace[0]
    body = f"""
  %a = load i64, ptr %scratch
  %b = load i64, ptr %workspace
  {element("p", "%t0", "1", "i64")}
  store i64 %a, ptr %t0
  store i64 %b, ptr %p
  ret i64 0"""
    kernel = build("peek", ("int64",), (Phase(body, steps=1, scratch=64),), ints=0, workspace=64)
    out = torch.zeros(2, dtype=torch.int64)
    _C.set_debug_fill(True)
    try:
        kernel(out)
        assert _C.empty_strided((3,), (1,), torch.float32).isnan().all()
    finally:
        _C.set_debug_fill(False)
    assert out.tolist() == [-1, -1]


@pytest.mark.parametrize("plan", [(-1, 1, 0), (0, -1, 0), (0, 1, -64), (0, 1, 1 << 60)])
def test_impossible_plans_are_refused(plan):
    workspace, steps, scratch = plan
    phase = Phase("ret i64 0", steps=steps, scratch=scratch)
    kernel = build("broken", (), (phase,), ints=0, workspace=workspace)
    with pytest.raises(RuntimeError, match="broken: its plan asks for an impossible"):
        kernel()


def test_no_memory_is_an_error():
    kernel = build("greedy", (), (Phase("ret i64 0", steps=1, scratch=1 << 46),), ints=0)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        kernel()
    assert run_ranges(1)  # and the next launch works


# ---------------------------------------------------------------------- status


FAIL_AT_N1 = """
  %after = icmp sge i64 %n1, %begin
  %before = icmp slt i64 %n1, %end
  %hit = and i1 %after, %before
  %status = select i1 %hit, i64 %n2, i64 0
  ret i64 %status"""


@pytest.mark.parametrize("cost", [0, SLOW])
@pytest.mark.parametrize(
    "status, error, message",
    [
        (1, IndexError, "index out of range in kernel fail"),
        (2, RuntimeError, "^ZeroDivisionError$"),
        (7, RuntimeError, "kernel fail failed with status 7"),
        (-3, RuntimeError, "kernel fail failed with status -3"),
    ],
)
def test_status(status, error, message, cost):
    kernel = build("fail", (), (Phase(FAIL_AT_N1, cost=cost),), ints=3)
    for where in (0, 5, 9):
        with pytest.raises(error, match=message):
            kernel(10, where, status)
    kernel(10, 10, status)


def test_the_smallest_status_of_all_threads_wins(two_threads):
    # the first half fails with 2, the second with 1
    body = """
  %first = icmp eq i64 %begin, 0
  %status = select i1 %first, i64 2, i64 1
  ret i64 %status"""
    kernel = build("both", (), (Phase(body, cost=SLOW),))
    for _ in range(20):
        with pytest.raises(IndexError):
            kernel(2)


def test_a_failed_phase_ends_the_launch():
    count = """
  %old = load i64, ptr %t0
  %new = add i64 %old, 1
  store i64 %new, ptr %t0
  ret i64 0"""
    kernel = build(
        "stops", ("int64",), (Phase(count, 1), Phase("ret i64 5", 1), Phase(count, 1)), ints=0
    )
    counter = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="status 5"):
        kernel(counter)
    assert counter.item() == 1


# ---------------------------------------------------------------------- launch


def test_launch_runs_in_order(add):
    x, y, z = floats()
    w = torch.empty(5)
    assert _C.launch(add, x, y, z, 5, add, z, y, w, 5) is None
    assert torch.equal(z, x + y) and torch.equal(w, x + y + y)
    _C.launch()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda k, a: (5,), "argument 0 must be a Kernel, got int"),
        (lambda k, a: (k, *a, *a), "argument 5 must be a Kernel, got Tensor"),
        (lambda k, a: (k, *a[:2]), "add: takes 4 arguments .* got 2"),
        (lambda k, a: (k, *a, k), "add: takes 4 arguments .* got 0"),
        (lambda k, a: (k, *a, add_kernel, *a), "argument 5 must be a Kernel, got function"),
        (lambda k, a: (k, a[0], a[1], k, a[2], 5), "add: argument 2 must be a torch.Tensor"),
    ],
)
def test_launch_refuses(add, make, message):
    with pytest.raises(TypeError, match=message):
        _C.launch(*make(add, [*floats(), 5]))


# ---------------------------------------------------------------------- threads


def test_eight_threads_at_once():
    kernel = add_kernel(cost=2_000)  # split from 2500 elements on
    reverse = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for n in (3, 4_000, 40_000) * 10:
            x = torch.randn(n, generator=generator)
            y = torch.randn(n, generator=generator)
            z = torch.empty(n)
            kernel(x, y, z, n)
            reverse.append(torch.equal(z, x + y))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(reverse) == 240 and all(reverse)


def test_scratch_is_not_shared_between_calling_threads():
    # Writes n0 all over its scratch, sleeps without the GIL, and counts what is not n0 any more.
    body = f"""
  br label %fill
fill:
  %i = phi i64 [ 0, %entry ], [ %next, %fill ]
  {element("p", "%scratch", "%i", "i64")}
  store i64 %n0, ptr %p
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, 512
  br i1 %more, label %fill, label %sleep
sleep:
  %ignored = call i32 @usleep(i32 2000)
  br label %check
check:
  %j = phi i64 [ 0, %sleep ], [ %jnext, %check ]
  %bad = phi i64 [ 0, %sleep ], [ %newbad, %check ]
  {element("q", "%scratch", "%j", "i64")}
  %v = load volatile i64, ptr %q
  %differs = icmp ne i64 %v, %n0
  %one = zext i1 %differs to i64
  %newbad = add i64 %bad, %one
  %jnext = add i64 %j, 1
  %again = icmp slt i64 %jnext, 512
  br i1 %again, label %check, label %done
done:
  store i64 %newbad, ptr %t0
  ret i64 0"""
    kernel = build(
        "private",
        ("int64",),
        (Phase(body, steps=1, cost=SLOW, scratch=4096),),
        declarations="declare i32 @usleep(i32)",
    )
    outs = [torch.full((1,), -1, dtype=torch.int64) for _ in range(8)]

    def work(i: int) -> None:
        for _ in range(5):
            kernel(outs[i], i)
            if outs[i].item() != 0:
                return

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [out.item() for out in outs] == [0] * 8


@pytest.mark.parametrize("cost, released", [(SLOW, True), (1, False)])
def test_long_kernels_release_the_gil(cost, released):
    kernel = build(
        "sleep",
        (),
        (Phase("%x = call i32 @usleep(i32 100000)\nret i64 0", steps=1, cost=cost),),
        ints=0,
        declarations="declare i32 @usleep(i32)",
    )
    ticks = []
    stop = threading.Event()
    ready = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            ready.set()
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    ready.wait(10)
    begin = time.perf_counter()
    kernel()
    end = time.perf_counter()
    stop.set()
    thread.join()
    inside = [t for t in ticks if begin + 0.02 < t < end - 0.02]
    assert bool(inside) == released


# ---------------------------------------------------------------------- processes


def run_python(code: str, timeout: float = 120.0) -> str:
    """Standard output of a fresh process; its failure is ours."""
    folder = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_s_openmp_is_shared():
    out = run_python(
        """
import os, torch
from llvm_kernel import SLOW, add_kernel
from torch_helion import _C
torch.set_num_threads(2)
x = torch.randn(1 << 20)
torch.exp(x)  # starts torch's pool
before = len(os.listdir("/proc/self/task"))
kernel = add_kernel(SLOW)
z = torch.empty_like(x)
kernel(x, x, z, x.numel())
torch.exp(x)
after = len(os.listdir("/proc/self/task"))
assert torch.equal(z, x + x)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}
print(_C.parallel_info()["openmp"], after - before, len(libraries))
"""
    )
    assert out.split() == ["True", "0", "1"]


FORK = """
import os, signal, sys, torch
from llvm_kernel import SLOW, add_kernel
from torch_helion import _C
torch.set_num_threads(2)
kernel = add_kernel(SLOW)
x = torch.randn(1000)
z = torch.empty(1000)
def run():
    z.zero_()
    kernel(x, x, z, 1000)
    assert torch.equal(z, x + x)
    big = _C.empty_strided((1 << 20,), (1,), torch.float32)
    big.numpy()[:] = 1  # torch's own loops over it would hang in a child
PARENT
threads = len(os.listdir("/proc/self/task"))
child = os.fork()
if child == 0:
    signal.alarm(30)  # a hang ends the child with a signal
    run()
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(20)
        run()
        os._exit(0)
    assert os.waitpid(grandchild, 0)[1] == 0
    print(_C.parallel_info()["serial_after_fork"], flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
run()
assert not _C.parallel_info()["serial_after_fork"]
print(threads, status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
@pytest.mark.parametrize("parent", ["run()", ""], ids=["after-a-region", "before-any-region"])
def test_fork(parent):
    out = run_python(
        "import warnings; warnings.simplefilter('ignore')\n" + FORK.replace("PARENT", parent)
    )
    serial, threads, status = out.split()
    assert status == "0"
    # Only a parent without other threads can have left nothing behind.
    assert (serial == "True") == (int(threads) > 1)
    if parent:
        assert int(threads) > 1


def test_importing_the_extension_first_or_last_is_the_same():
    assert run_python("import torch_helion.runtime.launcher as l; print(l.pool_stats()['hits'])")


def test_another_torch_than_at_build_time_is_refused():
    out = run_python(
        """
import torch
torch.__version__ = "2.1.0"
try:
    import torch_helion._C
except ImportError as error:
    print(error)
"""
    )
    assert "was built for torch 2." in out and "but torch 2.1.0 is installed" in out


# ---------------------------------------------------------------------- the object


def test_attributes(add):
    assert (add.name, add.__name__, add.n_tensors, add.n_ints, add.n_phases) == (
        "add", "add", 3, 1, 1
    )  # fmt: skip
    assert add.dtypes == (torch.float32,) * 3
    assert repr(add) == "<torch_helion kernel add: 3 tensors, 1 ints, 1 phases>"
    with pytest.raises(AttributeError):
        add.name = "other"


def test_copies_are_the_kernel_and_pickles_are_refused(add):
    assert copy.copy(add) is add and copy.deepcopy([add])[0] is add
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(add)


def test_keepalive_lives_as_long_as_the_kernel():
    class Code:
        pass

    code = Code()
    gone = weakref.ref(code)
    kernel = _C.Kernel("k", 1, (1,), (), 0, code)
    del code
    gc.collect()
    assert gone() is not None
    kernel_gone = weakref.ref(kernel)
    del kernel
    assert gone() is None and kernel_gone() is None


def test_cycles_through_keepalive_are_collected():
    box: list[object] = []
    kernel = _C.Kernel("k", 1, (1,), (), 0, box)
    box.append(kernel)
    gone = weakref.ref(kernel)
    del kernel, box
    gc.collect()
    assert gone() is None


def test_no_references_are_lost(add):
    x, y, z = floats()
    counts = [sys.getrefcount(value) for value in (x, y, z, add, None)]
    for _ in range(1000):
        add(x, y, z, 5)
        _C.launch(add, x, y, z, 5)
        add.plan(x, y, z, 5)
        for args in ((x, y, 3, 5), (x, y, z, 1.5), (x,)):
            with pytest.raises(TypeError):
                add(*args)
    del args
    after = [sys.getrefcount(value) for value in (x, y, z, add)]
    assert after == counts[:4]
    assert abs(sys.getrefcount(None) - counts[4]) < 500


@pytest.mark.parametrize(
    "args, error, message",
    [
        (("k", 0, (1,), (), 0, None), ValueError, "address is 0"),
        (("k", 1, (0,), (), 0, None), ValueError, "address is 0"),
        (("k", "x", (1,), (), 0, None), TypeError, "address must be an int"),
        (("k", 1, [1], (), 0, None), TypeError, "tuple"),
        (("k", 1, (1,), ("float32",), 0, None), TypeError, "entry 0 of dtypes"),
        (("k", 1, (1,), (), -1, None), ValueError, "n_ints"),
        ((3, 1, (1,), (), 0, None), TypeError, "str"),
        (("k", 1, (1,)), TypeError, "argument"),
    ],
)
def test_constructor_refuses(args, error, message):
    with pytest.raises(error, match=message):
        _C.Kernel(*args)


# ---------------------------------------------------------------------- headers


VALUES = {"name": "k", "tensors": ["float32", "bool"], "ints": 2, "phases": 1, "format": 1}


def line(**changes: object) -> str:
    values = {**VALUES, **changes}
    return "; torch_helion kernel " + json.dumps({k: v for k, v in values.items() if v is not ...})


def test_header_round_trip():
    header = parse_header(line(more="ignored") + "\ndefine void @k_plan() { ret void }")
    assert header == KernelHeader("k", ("float32", "bool"), 2, 1)
    assert header.dtypes == (torch.float32, torch.bool)
    assert (header.plan_symbol, header.phase_symbols) == ("k_plan", ("k_phase0",))
    assert parse_header(header.text()) == header
    assert hash(header) == hash(parse_header(line()))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1 must start with"),
        ("define void @f()", "line 1 must start with"),
        ("; torch_helion kernel {", "no valid JSON"),
        ("; torch_helion kernel [1]", "expected a JSON object, got list"),
        (line(name=...), "name missing"),
        (line(ints=..., phases=...), "ints, phases missing"),
        (line(name="a b"), "C identifier"),
        (line(name=3), "C identifier"),
        (line(name="k\n"), "C identifier"),
        (line(tensors="float32"), "tensors must be a list"),
        (line(tensors=["float33"]), "'float33' is no dtype"),
        (line(tensors=["nn"]), "'nn' is no dtype"),
        (line(tensors=[3]), "3 is no dtype"),
        (line(ints=-1), "ints must be an int of at least 0"),
        (line(ints=True), "ints must be an int"),
        (line(ints=1.0), "ints must be an int"),
        (line(phases=0), "phases must be an int of at least 1"),
        (line(format=2), "format 2 is not known"),
    ],
)
def test_header_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse_header(text)


def test_make_kernel_wants_every_phase():
    header = KernelHeader("k", (), 0, 2)
    with pytest.raises(ValueError, match="expected 2 phases, got 1"):
        make_kernel("k", 1, [1], header, None)


def test_pool_functions():
    launcher.empty_cache()
    assert launcher.pool_stats()["cached_bytes"] == 0
