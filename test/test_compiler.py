"""The list of stages: repeated kernels are printed once, and loaded once by whoever comes first."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any

import pytest
import torch

from torch_helion import compiler, exc
from torch_helion.codegen.llvm.target import LLVM
from torch_helion.config import Config
from torch_helion.ir.builder import Builder
from torch_helion.ir.graph import Kernel
from torch_helion.ir.types import Affine


def doubled(name: str = "doubled", factor: float = 2.0) -> Kernel:
    b = Builder(name)
    m = b.axis("m", b.size("n0"))
    x = b.buffer("x", torch.float32, [m.size], [1])
    out = b.buffer("out", torch.float32, [m.size], [1], "out")
    with b.grid(m):
        value = b.pointwise("mul", b.load(x, [Affine.of(m)]), b.const(factor, torch.float32))
        b.store(out, [Affine.of(m)], value)
    return b.build()


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A target like LLVM's that notes each call of one of its functions."""
    calls: list[Any] = []
    original = getattr(LLVM, name)

    def call(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    return dataclasses.replace(LLVM, **{name: call}), calls


def test_a_repeated_kernel_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_printed", compiler.OrderedDict())
    target, calls = counting(monkeypatch, "print_kernel")
    texts = {compiler.compile_kernel(doubled("again"), {}, None, target) for _ in range(3)}
    assert len(texts) == len(calls) == 1
    different = [
        (doubled("another"), {}, None),
        (doubled("again", 3.0), {}, None),
        (doubled("again", -0.0), {}, None),
        (doubled("again", 0.0), {}, None),
        (doubled("again"), {}, Config(block_sizes=[64])),
        (doubled("again"), {}, Config(block_sizes=[128])),
        (doubled("again"), {doubled().sizes[0]: 7}, None),
    ]
    for kernel, hints, config in different:
        before = len(calls)
        compiler.compile_kernel(kernel, hints, config, target)
        assert len(calls) == before + 1
    assert compiler.compile_kernel(doubled("again"), {}, None, target) in texts


def test_few_texts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_printed", compiler.OrderedDict())
    monkeypatch.setattr(compiler, "_MOST_PRINTED", 3)
    for i in range(6):
        compiler.compile_kernel(doubled(f"kept{i}"))
    assert len(compiler._printed) == 3


def fresh_text(name: str) -> str:
    return compiler.compile_kernel(doubled(f"{name}_{os.getpid()}_{threading.get_ident()}"))


def test_threads_that_ask_at_once_build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target, builds = counting(monkeypatch, "build")
    text = fresh_text("at_once").replace("%result", "%outcome")
    start = threading.Barrier(6)
    found: list[Any] = []

    def ask() -> None:
        start.wait()
        found.append(compiler.load_kernel(text, target))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(kernel) for kernel in found}) == 1
    assert len(builds) <= 1  # none if an earlier run left it in the cache


def test_a_failure_is_reported_to_each_that_asks() -> None:
    text = fresh_text("broken").replace("ret i64", "ret nonsense")
    with compiler.loading_ahead() as load:
        load(text)
        for _ in range(2):
            with pytest.raises(exc.CodegenError):
                compiler.load_kernel(text)


def test_what_is_loaded_ahead_is_found() -> None:
    text = fresh_text("ahead")
    with compiler.loading_ahead() as load:
        load(text).result()  # type: ignore[attr-defined]
        assert compiler.kernel_key(text) in compiler._loaded
        kernel = compiler.load_kernel(text)
    x, out = torch.randn(37), torch.empty(37)
    kernel(x, out, 37)
    torch.testing.assert_close(out, x * 2)


def test_a_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    text = fresh_text("child")
    key = compiler.kernel_key(text)
    compiler._loaded[key] = compiler.Future()  # as if another thread were at it
    try:
        pid = os.fork()
        if pid == 0:
            done = key not in compiler._loaded
            os._exit(0 if done else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        del compiler._loaded[key]
