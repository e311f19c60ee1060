"""Tensors of the pool: like torch's own in every respect, but with pages that are kept."""

from __future__ import annotations

import itertools
import random
import resource
import subprocess
import sys
import threading

import pytest
import torch

from torch_helion import _C

MIB = 1 << 20


@pytest.fixture(autouse=True)
def clean_pool():
    """An empty pool with the default limits, before and after."""
    _C.empty_cache()
    stats = _C.pool_stats()
    yield
    _C.set_pool_limit(stats["limit_bytes"])
    _C.set_pool_threshold(stats["threshold_bytes"])
    _C.empty_cache()


def new(size: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return _C.empty_strided((size,), (1,), dtype)


def change(before: _C.PoolStats) -> dict[str, int]:
    """What moved in the counters since ``before``, zeros left out."""
    after = _C.pool_stats()
    return {key: after[key] - before[key] for key in after if after[key] != before[key]}


# ---------------------------------------------------------------------- like torch.empty_strided


def random_spec(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    dims = rng.randrange(5)
    size = tuple(rng.choice((0, 1, 1, 2, 3, 17, 65)) for _ in range(dims))
    order = rng.sample(range(dims), dims)
    stride = [0] * dims
    step = rng.choice((1, 1, 2))
    for dim in order:
        stride[dim] = rng.choice((step, step, step, 0))
        step *= max(size[dim], 1)
    dtype = rng.choice((torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex128))
    return size, tuple(stride), dtype


@pytest.mark.parametrize("seed", range(60))
def test_same_as_torch(seed):
    size, stride, dtype = random_spec(random.Random(seed))
    ours = _C.empty_strided(size, stride, dtype)
    theirs = torch.empty_strided(size, stride, dtype=dtype)
    (also_ours,) = _C.allocate(((size, stride, dtype),))
    for tensor in (ours, also_ours):
        assert type(tensor) is torch.Tensor
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (size, stride, dtype)
        assert tensor.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
        assert tensor.is_contiguous() == theirs.is_contiguous()
        assert torch._C._dispatch_keys(tensor) == torch._C._dispatch_keys(theirs)
        assert not tensor.requires_grad and tensor.device.type == "cpu"
        assert tensor.storage_offset() == 0 and tensor._version == 0


def test_same_as_torch_in_inference_mode():
    with torch.inference_mode():
        assert new(8).is_inference() and new(MIB).is_inference()
    assert not new(8).is_inference()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 4097, 256 * 1024 - 1, 256 * 1024, 5 * MIB])
def test_memory_is_aligned_and_whole(size):
    tensors = [new(size) for _ in range(5)]
    for i, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    assert [int(t.min()) for t in tensors] == [int(t.max()) for t in tensors] == list(range(5))


def test_large_blocks_start_on_a_huge_page():
    assert new(4 * MIB).data_ptr() % (2 * MIB) == 0
    assert new(5 * MIB + 1).data_ptr() % (2 * MIB) == 0


def test_allocate_makes_separate_tensors():
    spec = ((4, 4), (4, 1), torch.float32)
    a, b, c = _C.allocate((spec, spec, ((MIB,), (1,), torch.int8)))
    assert len({a.data_ptr(), b.data_ptr(), c.data_ptr()}) == 3
    assert a.untyped_storage()._cdata != b.untyped_storage()._cdata
    assert c.dtype == torch.int8
    assert _C.allocate(()) == ()


@pytest.mark.parametrize(
    "args, error, message",
    [
        (((2,), (1,)), TypeError, "takes 3 arguments"),
        (([2], (1,), torch.float32), TypeError, "size must be a tuple of ints, got list"),
        (((2,), [1], torch.float32), TypeError, "stride must be a tuple of ints, got list"),
        (((2,), (1,), "float32"), TypeError, "dtype must be a torch.dtype, got str"),
        (((2,), (1, 1), torch.float32), ValueError, "size has 1 entries but stride has 2"),
        (((-2,), (1,), torch.float32), ValueError, "size must not be negative, got -2"),
        (((2,), (-1,), torch.float32), ValueError, "stride must not be negative, got -1"),
        (((2.0,), (1,), torch.float32), TypeError, "int"),
        (((2**70,), (1,), torch.float32), OverflowError, "too big|too large"),
        (((2**62, 2**62), (1, 1), torch.float64), RuntimeError, "overflow"),
        (((2**60,), (1,), torch.uint8), RuntimeError, "can't allocate memory"),
    ],
)
def test_refused(args, error, message):
    before = _C.pool_stats()
    with pytest.raises(error, match=message):
        _C.empty_strided(*args)
    if len(args) == 3:
        with pytest.raises(error, match=message):
            _C.allocate((((MIB,), (1,), torch.uint8), args))
    after = _C.pool_stats()
    assert after["live_blocks"] == before["live_blocks"]


@pytest.mark.parametrize("specs", [[], 3, ((1, 2),), (3,), (((1,), (1,)),)])
def test_allocate_refuses(specs):
    with pytest.raises(TypeError, match="allocate"):
        _C.allocate(specs)


# ---------------------------------------------------------------------- reuse


def test_pages_are_reused():
    first = new(16 * MIB)
    first.zero_()
    address = first.data_ptr()
    before = _C.pool_stats()
    assert before["live_bytes"] >= 16 * MIB
    del first
    assert _C.pool_stats()["cached_bytes"] == 16 * MIB
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    second = new(16 * MIB)
    second.fill_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    assert second.data_ptr() == address
    assert change(before) == {"hits": 1}
    assert faults < 1000  # 4096 pages were there already


def test_small_tensors_are_not_pooled():
    before = _C.pool_stats()
    small = new(256 * 1024 - 1)
    assert change(before) == {}
    del small
    large = new(256 * 1024)
    assert change(before) == {"misses": 1, "live_blocks": 1, "live_bytes": 256 * 1024}
    del large


def test_threshold():
    _C.set_pool_threshold(8 * MIB)
    before = _C.pool_stats()
    first = new(8 * MIB - 1)
    assert change(before) == {}
    _C.set_pool_threshold(0)  # never below a page
    assert _C.pool_stats()["threshold_bytes"] == 4096
    second = new(4096)
    assert change(before)["misses"] == 1
    del first, second  # each goes back to where it came from
    assert _C.pool_stats()["cached_bytes"] == 4096


@pytest.mark.parametrize("seed", range(5))
def test_at_most_an_eighth_is_wasted(seed):
    rng = random.Random(seed)
    for _ in range(40):
        size = int(2 ** rng.uniform(18, 27))
        before = _C.pool_stats()["live_bytes"]
        tensor = new(size)
        used = _C.pool_stats()["live_bytes"] - before
        assert size <= used <= size + size // 8
        del tensor


def test_a_slightly_larger_block_serves():
    kept = new(9 * MIB)
    address = kept.data_ptr()
    del kept
    assert new(8 * MIB + MIB // 2).data_ptr() == address
    before = _C.pool_stats()
    part = new(8 * MIB - MIB // 2)  # would waste more than an eighth: a part of it serves
    assert part.data_ptr() == address
    moved = change(before)
    assert moved["live_bytes"] == 15 * MIB // 2
    assert moved["cached_bytes"] == -15 * MIB // 2


def test_free_memory_of_other_sizes_serves():
    """Neighbours are joined, and cut where less is asked for: no page is mapped anew."""
    kept = new(30 * MIB)
    base = kept.data_ptr()
    del kept
    before = _C.pool_stats()
    parts = [new(size * MIB) for size in (2, 5, 12, 3)]
    assert [p.data_ptr() - base for p in parts] == [0, 2 * MIB, 7 * MIB, 19 * MIB]
    for i, part in enumerate(parts):
        part.fill_(i)
    assert [int(p[-1]) for p in parts] == [int(p[0]) for p in parts] == [0, 1, 2, 3]
    del parts[1:3]
    whole = new(16 * MIB)  # where 5 and 12 were
    assert whole.data_ptr() == base + 2 * MIB
    whole.fill_(9)
    assert int(parts[0].max()) == 0 and int(parts[1].min()) == 3
    del parts, part, whole
    assert new(30 * MIB).data_ptr() == base
    assert "misses" not in change(before)
    assert change(before).get("cached_bytes", 0) == 0


def test_small_requests_do_not_cut_large_blocks():
    kept = new(160 * MIB)
    base = kept.data_ptr()
    del kept
    small = new(MIB)
    assert not base <= small.data_ptr() < base + 160 * MIB
    part = new(80 * MIB)
    assert part.data_ptr() == base
    del small, part
    assert new(160 * MIB).data_ptr() == base


@pytest.mark.parametrize("seed", range(4))
def test_what_is_live_never_overlaps(seed):
    rng = random.Random(seed)
    _C.set_pool_limit(120 * MIB)
    held: list[tuple[int, torch.Tensor]] = []
    for turn in range(400):
        size = int(2 ** rng.uniform(18, 25.5))
        mark = turn % 251
        tensor = new(size)
        tensor.fill_(mark)
        held.append((mark, tensor))
        while len(held) > rng.randrange(3, 12):
            mark, tensor = held.pop(rng.randrange(len(held)))
            assert int(tensor.min()) == int(tensor.max()) == mark
        if turn % 90 == 60:
            _C.empty_cache()
        stats = _C.pool_stats()
        assert stats["cached_bytes"] <= 120 * MIB
        assert stats["live_bytes"] >= sum(t.numel() for _, t in held)
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for _, t in held)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_a_view_keeps_the_block():
    tensor = new(MIB)
    view = tensor[10:20]
    del tensor
    before = _C.pool_stats()
    assert before["live_bytes"] == MIB and before["cached_bytes"] == 0
    view.fill_(3)
    assert view.sum() == 30
    del view
    assert _C.pool_stats()["cached_bytes"] == MIB


def test_other_threads_may_drop_tensors():
    box = [new(MIB) for _ in range(10)]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert _C.pool_stats()["cached_bytes"] == 10 * MIB


# ---------------------------------------------------------------------- limits


def test_the_default_limit_is_sane():
    assert 0 < _C.pool_stats()["limit_bytes"] <= 8 << 30


def test_over_the_limit_the_oldest_goes():
    _C.set_pool_limit(3 * MIB)
    tensors = [new(MIB) for _ in range(4)]
    addresses = [t.data_ptr() for t in tensors]
    before = _C.pool_stats()
    while tensors:
        del tensors[0]
    moved = change(before)
    assert moved["released_blocks"] == 1 and moved["cached_bytes"] == 3 * MIB
    again = [new(MIB) for _ in range(3)]
    assert {t.data_ptr() for t in again} == set(addresses[1:])


def test_a_block_larger_than_the_limit_is_not_kept():
    _C.set_pool_limit(MIB)
    small, large = new(MIB), new(2 * MIB)
    del small
    del large
    assert _C.pool_stats()["cached_bytes"] == MIB  # the small one was not driven out


def test_lowering_the_limit_releases():
    tensors = [new(MIB) for _ in range(4)]
    tensors.clear()
    _C.set_pool_limit(2 * MIB)
    assert _C.pool_stats()["cached_bytes"] == 2 * MIB
    _C.set_pool_limit(0)
    assert _C.pool_stats()["cached_bytes"] == 0
    new(MIB)
    assert _C.pool_stats()["cached_bytes"] == 0


@pytest.mark.parametrize("set_it", [_C.set_pool_limit, _C.set_pool_threshold])
def test_limits_refuse(set_it):
    with pytest.raises(ValueError, match="negative"):
        set_it(-1)
    with pytest.raises(TypeError):
        set_it("1")
    with pytest.raises(OverflowError):
        set_it(2**70)


def test_empty_cache_keeps_what_is_in_use():
    used, dropped = new(MIB), new(2 * MIB)
    used.fill_(7)
    del dropped
    _C.empty_cache()
    stats = _C.pool_stats()
    assert (stats["cached_bytes"], stats["live_bytes"]) == (0, MIB)
    assert (used == 7).all()


# ---------------------------------------------------------------------- what users do to storages


@pytest.mark.parametrize("start", [1000, MIB])
@pytest.mark.parametrize("end", [2000, 3 * MIB])
def test_resize(start, end):
    tensor = new(start)
    tensor.fill_(5)
    tensor.resize_(end)
    assert (tensor[:start] == 5).all()
    tensor.fill_(6)
    tensor.resize_(100)
    assert (tensor == 6).all()


@pytest.mark.parametrize("size", [1000, MIB])
def test_freed_and_regrown_storage(size):
    tensor = new(size)
    tensor.untyped_storage().resize_(0)
    assert _C.pool_stats()["live_bytes"] == 0
    tensor.untyped_storage().resize_(size)
    tensor.fill_(9)
    assert (tensor == 9).all()


@pytest.mark.parametrize("size", [1000, MIB])
def test_shared_memory_copy_on_write_and_set(size):
    tensor = new(size)
    tensor.fill_(4)
    clone = torch._lazy_clone(tensor)
    clone.add_(1)
    assert (tensor == 4).all() and (clone == 5).all()
    tensor.share_memory_()
    assert tensor.is_shared() and (tensor == 4).all()
    clone.set_(new(3))
    assert clone.shape == (3,)
    clone.data = new(size)
    assert clone.shape == (size,)


def test_numpy_keeps_the_block():
    array = new(MIB).numpy()
    array[:] = 2
    assert _C.pool_stats()["live_bytes"] == MIB
    assert array.sum(dtype=int) == 2 * MIB


def test_the_profiler_sees_the_memory():
    with torch.profiler.profile(profile_memory=True) as profile:
        new(16 * MIB)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert {16 * MIB, -16 * MIB} <= {e.nbytes() for e in events}


# ---------------------------------------------------------------------- threads and processes


def test_eight_threads_at_once():
    _C.set_pool_limit(16 * MIB)
    wrong = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[tuple[int, torch.Tensor]] = []
        for turn in range(300):
            size = rng.choice((100, 5000, MIB // 4, MIB, 5 * MIB))
            tensor = new(size)
            mark = (seed * 31 + turn) % 251
            tensor[:64] = mark
            tensor[-36:] = mark
            held.append((mark, tensor))
            if len(held) > 4:
                mark, tensor = held.pop(rng.randrange(len(held)))
                if tensor[0] != mark or tensor[-1] != mark:
                    wrong.append((seed, turn))
            if turn % 100 == 50:
                _C.empty_cache()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong
    stats = _C.pool_stats()
    assert stats["live_bytes"] == 0 and stats["cached_bytes"] <= 16 * MIB


def test_small_blocks_of_ended_threads_are_usable():
    box: list[torch.Tensor] = []

    def make() -> None:
        for size in (10, 1000, 100_000):
            new(size)  # into the thread's free list, which ends with it
            box.append(new(size).fill_(size % 251))

    for _ in range(20):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    for tensor in box:
        assert (tensor == tensor.numel() % 251).all()
    box.clear()


FORK = """
import os, signal, threading, warnings
warnings.simplefilter("ignore")
import torch
from torch_helion import _C
stop = False
def hammer():
    while not stop:
        _C.empty_strided((1 << 20,), (1,), torch.uint8)
threads = [threading.Thread(target=hammer) for _ in range(3)]
[t.start() for t in threads]
kept = _C.empty_strided((1 << 20,), (1,), torch.uint8)
kept.numpy()[:] = 1
failed = 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        for size in (1 << 20, 1 << 24, 100):
            _C.empty_strided((size,), (1,), torch.uint8).numpy()[:] = 2
        kept.numpy()[:] = 3
        os._exit(0)
    failed += os.waitpid(child, 0)[1] != 0
stop = True
[t.join() for t in threads]
assert (kept.numpy() == 1).all()
print(failed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_fork_while_other_threads_allocate():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"]


def test_tensors_may_outlive_the_module():
    code = """
import torch
from torch_helion import _C
import builtins
builtins.kept = [_C.empty_strided((n,), (1,), torch.uint8) for n in (10, 1 << 20)]
torch.kept = builtins.kept[:]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
