"""From a tile-IR kernel to a callable: the flat list of stages.

In: a `Kernel`, typical sizes, perhaps a `Config`. Out: the kernel's text (what Inductor's output
code holds and what the artifact cache is keyed by) and, from text, a callable. Capture and the
language both go through here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import sympy

from torch_helion import _logging, exc
from torch_helion.codegen.llvm.engine import CodegenError as BuildError
from torch_helion.codegen.llvm.target import LLVM
from torch_helion.codegen.target import Target
from torch_helion.config import Config
from torch_helion.ir.graph import Kernel
from torch_helion.ir.structure import structure_of
from torch_helion.ir.verifier import verify
from torch_helion.passes import pass_manager
from torch_helion.passes.pipeline import KEEP_AXES, SIMPLIFY
from torch_helion.runtime import artifact_cache, launcher

log = _logging.get_logger("code")

_lock = threading.Lock()
_loaded: dict[str, Future[Any]] = {}
_printed: OrderedDict[Any, str] = OrderedDict()
_MOST_PRINTED = 256  # texts kept for kernels that repeat


def compile_kernel(
    kernel: Kernel,
    hints: Mapping[sympy.Symbol, int] | None = None,
    config: Config | None = None,
    target: Target = LLVM,
) -> str:
    """The text of `kernel` for `target`'s own machine. Raises exc.VerifierError or
    exc.CodegenError.

    `hints` are typical values of the kernel's size symbols: they choose a default config, never the
    result.
    """
    structure = structure_of(kernel)
    if structure is None:
        return _print(kernel, hints or {}, config, target)
    machine = target.machine_key(target.machine())
    key = (structure, tuple((hints or {}).items()), config, target.name, machine)
    text = _printed.get(key)
    if text is None:
        text = _print(kernel, hints or {}, config, target)
        with _lock:
            _printed[key] = text
            if len(_printed) > _MOST_PRINTED:
                _printed.popitem(last=False)
    return text


def _print(
    kernel: Kernel, hints: Mapping[sympy.Symbol, int], config: Config | None, target: Target
) -> str:
    machine = target.machine()
    verify(kernel)
    # A config's block sizes are those of the kernel's own axes, so they must not be merged then.
    names = kernel.block_names
    kernel = pass_manager.run(SIMPLIFY if config is None else KEEP_AXES, kernel)
    if config is not None and kernel.block_names != names:  # a loop is gone: its entry stays
        kernel = dataclasses.replace(kernel, blocks=names)
    config = config or target.default_config(kernel, hints, machine)
    text = target.print_kernel(kernel, config, machine)
    log.debug("%s with %s:\n%s", kernel.name, config, text)
    return text


def kernel_key(text: str, target: Target = LLVM) -> str:
    """The artifact cache's key of a kernel's text on this machine."""
    return hashlib.sha256(f"{target.machine_key(target.machine())}\n{text}".encode()).hexdigest()


def load_kernel(text: str, target: Target = LLVM) -> Any:
    """A callable `_C.Kernel` of a kernel's text: from this process, the cache, or LLVM."""
    key = kernel_key(text, target)
    with _lock:
        made = _loaded.get(key)
        first = made is None
        if made is None:
            made = _loaded[key] = Future()
    if first:  # others that ask meanwhile wait for this thread
        try:
            made.set_result(_load(text, key, target))
        except BaseException as error:
            with _lock:
                del _loaded[key]
            made.set_exception(error)
    return made.result()


@contextlib.contextmanager
def loading_ahead() -> Iterator[Callable[[str], object]]:
    """A function that takes texts whose kernels will be asked for: they are made in the background.

    LLVM works without Python's lock, so that the second core compiles while the first one captures.
    What fails there fails again, and is reported, where the kernel is asked for.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="torch_helion")
    try:
        yield lambda text: worker.submit(load_kernel, text)
    finally:
        worker.shutdown(wait=False, cancel_futures=True)


def _after_fork() -> None:
    """In a child: what another thread was about to load is nobody's work now."""
    global _lock
    _lock = threading.Lock()
    for key in [key for key, made in _loaded.items() if not made.done()]:
        del _loaded[key]


os.register_at_fork(after_in_child=_after_fork)


def build_kernel(text: str, target: Target = LLVM) -> Any:
    """The same, compiled now and kept nowhere: for candidates of a search."""
    try:
        return _link(launcher.parse_header(text), target.build(text, target.machine()), target)
    except BuildError as error:
        raise exc.CodegenError(str(error)) from error


def _load(text: str, key: str, target: Target) -> Any:
    header = launcher.parse_header(text)
    data = artifact_cache.get("object", key)
    if data is not None:
        try:
            return _link(header, data, target)
        except BuildError as error:
            log.warning("%s: cached object does not load, compiling again (%s)", header.name, error)
    try:
        data = target.build(text, target.machine())
        kernel = _link(header, data, target)
    except BuildError as error:
        raise exc.CodegenError(f"{header.name}: {error}") from error
    artifact_cache.put("object", key, data)
    return kernel


def _link(header: launcher.KernelHeader, data: bytes, target: Target) -> Any:
    loaded = target.load(data, [header.plan_symbol, *header.phase_symbols])
    phases = [loaded[symbol] for symbol in header.phase_symbols]
    return launcher.make_kernel(header.name, loaded[header.plan_symbol], phases, header, loaded)
