"""LLVM in the process: machines, text to object, object to addresses.

In: the text of an LLVM module and a ``Machine``.  Out: a relocatable object (bytes, what the
artifact cache keeps), assembly text for reading, or the addresses of a loaded object's functions.
Used by the llvm target's build step and by its tests; knows nothing of tiles or tensors.

A text may end in parts (`part_text`): functions that other kernels call, too. Each is compiled as
a module of its own, once, and kept in this process and in the artifact cache; the kernel's object
then is a bundle of objects.

Everything runs under one lock.  llvmlite holds a lock of its own, so two threads would compile no
faster, and holding ours across ``fork`` leaves a child with an LLVM that no other thread was in.
Nothing here sets a fast-math option: the text alone says what may be contracted.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite.binding import ffi

from torch_helion.runtime import artifact_cache

_LOCK = threading.RLock()
_LLVMLITE_LOCK = getattr(ffi.lib, "_lock", None)  # private there; see _before_fork


class CodegenError(RuntimeError):
    """LLVM refused a text or an object; the message holds LLVM's own words."""


# -- machines ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A CPU to make code for: LLVM's names for it and what its vector registers are."""

    triple: str
    cpu: str
    features: str  # "+avx2,+fma,-avx512f": what LLVM is told beyond the cpu's name
    vector_bits: int
    registers: int  # vector registers that a program can name
    name: str

    def has(self, feature: str) -> bool:
        """Whether the feature (LLVM's name) is known to be there."""
        return feature in _feature_set(self.features)

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686"))

    @property
    def is_arm64(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def has_fma(self) -> bool:
        """Whether a fused multiply-add is an instruction; without it LLVM calls libm's."""
        return self.is_arm64 or self.has("fma")


@lru_cache(maxsize=64)
def _feature_set(features: str) -> frozenset[str]:
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


_AVX2 = "+sse4.1,+sse4.2,+avx,+avx2,+fma,+f16c"
_AVX512 = _AVX2 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"

# name: (architecture, LLVM's cpu, features, vector bits, registers)
_NAMED_MACHINES: dict[str, tuple[str, str, str, int, int]] = {
    "x86-64": ("x86_64", "x86-64", "", 128, 16),
    "x86-64-v2": ("x86_64", "x86-64-v2", "+sse4.1,+sse4.2", 128, 16),
    "x86-64-v3": ("x86_64", "x86-64-v3", _AVX2, 256, 16),
    "x86-64-v4": ("x86_64", "x86-64-v4", _AVX512, 512, 32),
    "haswell": ("x86_64", "haswell", _AVX2, 256, 16),
    "znver3": ("x86_64", "znver3", _AVX2, 256, 16),
    "znver4": ("x86_64", "znver4", _AVX512 + ",+avx512bf16,+avx512vnni", 512, 32),
    "skylake-avx512": ("x86_64", "skylake-avx512", _AVX512, 512, 32),
    "icelake-server": ("x86_64", "icelake-server", _AVX512 + ",+avx512vnni", 512, 32),
    "sapphirerapids": (
        "x86_64",
        "sapphirerapids",
        _AVX512 + ",+avx512bf16,+avx512vnni,+avx512fp16",
        512,
        32,
    ),
    "aarch64": ("aarch64", "generic", "+neon,+fp-armv8", 128, 32),
    "neoverse-n1": ("aarch64", "neoverse-n1", "+neon,+fp-armv8,+fullfp16", 128, 32),
    "neoverse-v1": ("aarch64", "neoverse-v1", "+neon,+fp-armv8,+fullfp16,+bf16", 128, 32),
    "apple-m1": ("arm64-apple-macosx", "apple-m1", "+neon,+fp-armv8,+fullfp16", 128, 32),
}


@lru_cache(maxsize=1)
def host_machine() -> Machine:
    """The machine that this process runs on."""
    with _LOCK:
        _initialize_native()
        triple = llvm.get_process_triple()
        cpu = llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features().flatten()
    bits, registers = _vector_shape(triple, _feature_set(features))
    return Machine(triple, cpu, features, bits, registers, name=f"{triple.split('-')[0]}-{cpu}")


def _vector_shape(triple: str, features: frozenset[str]) -> tuple[int, int]:
    if not triple.startswith(("x86_64", "i386", "i686")):
        return 128, 32  # NEON; SVE code is not generated
    if features >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"}:
        return 512, 32
    if features >= {"avx2", "fma"}:
        return 256, 16
    return 128, 16


def machine_for(name: str) -> Machine:
    """A machine by LLVM's name of its cpu (``"haswell"``, ``"aarch64"``), or ``"host"``.

    A machine of the host's own architecture has the host's triple, so its objects can also be
    loaded here as far as the host has the instructions.
    """
    if name == "host":
        return host_machine()
    if name not in _NAMED_MACHINES:
        raise ValueError(f"unknown machine {name!r}; known: host, {', '.join(_NAMED_MACHINES)}")
    architecture, cpu, features, bits, registers = _NAMED_MACHINES[name]
    host = llvm.get_process_triple()
    if host.startswith(architecture):
        triple = host
    else:
        triple = architecture if "-" in architecture else f"{architecture}-unknown-linux-gnu"
    return Machine(triple, cpu, features, bits, registers, name=name)


def machine_key(machine: Machine) -> str:
    """What the machine code depends on beside the text: part of every artifact's key."""
    version = ".".join(str(part) for part in llvm.llvm_version_info)
    return (
        f"llvmlite {llvmlite.__version__} llvm {version} {machine.triple} {machine.cpu} "
        f"{machine.vector_bits} {machine.features}"
    )


# -- parts ---------------------------------------------------------------------------------------

_PART = "; torch_helion part "
_BUNDLE = b"torch_helion objects "


def part_text(symbol: str, definitions: Sequence[str]) -> str:
    """Text of a part, to stand after a module's: it defines `symbol`, which the module declares.

    What it calls it defines itself, with internal linkage: no other part or module sees it.
    """
    return "\n".join([f"{_PART}{symbol}", *definitions]) + "\n"


def split_parts(text: str) -> tuple[str, ...]:
    """The module's own text, then those of its parts."""
    first, *parts = text.split(f"\n{_PART}")
    return first, *(f"{_PART}{part}" for part in parts)


def _bundle(objects: Sequence[bytes]) -> bytes:
    """One object as it is; several one after the other, after a line that says how long each is."""
    if len(objects) == 1:
        return objects[0]
    return _BUNDLE + json.dumps([len(o) for o in objects]).encode() + b"\n" + b"".join(objects)


def _unbundle(data: bytes) -> list[bytes]:
    if not data.startswith(_BUNDLE):
        return [data]
    head, _, rest = data.partition(b"\n")
    objects, at = [], 0
    for length in json.loads(head[len(_BUNDLE) :]):
        objects.append(rest[at : at + length])
        at += length
    return objects


# -- text to object ------------------------------------------------------------------------------


def compile_object(text: str, machine: Machine) -> bytes:
    """The relocatable object of an LLVM module's text, optimised for ``machine``."""
    with _LOCK:
        own, *parts = split_parts(text)
        return _bundle([_object(own, machine), *(_part_object(part, machine) for part in parts)])


def _object(text: str, machine: Machine) -> bytes:
    data: bytes = _emitted(text, machine, "emit_object")
    return data


def _emitted(text: str, machine: Machine, emit: str) -> Any:
    """What a method of LLVM's target machine makes of the optimised text."""
    module, target_machine = _optimized_module(text, machine)
    try:
        return getattr(target_machine, emit)(module)
    except RuntimeError as error:
        raise CodegenError(str(error)) from error
    finally:
        module.close()


@lru_cache(maxsize=128)
def _part_object(text: str, machine: Machine) -> bytes:
    key = hashlib.sha256(f"{machine_key(machine)}\n{text}".encode()).hexdigest()
    found = artifact_cache.get("part", key)
    if found is None:
        found = _object(text, machine)
        artifact_cache.put("part", key, found)
    return found


def emit_assembly(text: str, machine: Machine) -> str:
    """The assembly of an LLVM module's text, optimised for ``machine``: for people and tests."""
    with _LOCK:
        return "\n".join(_emitted(part, machine, "emit_assembly") for part in split_parts(text))


def optimize_text(text: str, machine: Machine) -> str:
    """The module's text after LLVM's passes: what a person reads when assembly is too low."""
    with _LOCK:
        found = []
        for part in split_parts(text):
            module, _ = _optimized_module(part, machine)
            found.append(str(module))
            module.close()
        return "\n".join(found)


def _optimized_module(text: str, machine: Machine) -> tuple[Any, Any]:
    target_machine = _target_machine(machine)
    try:
        # A context of its own: LLVM renames a type that an earlier module already used.
        module = llvm.parse_assembly(text, llvm.create_context())
        # The layout first: passes fold sizes and alignments with it.
        module.triple = machine.triple
        module.data_layout = str(target_machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CodegenError(str(error)) from error
    if text.startswith(_PART):
        _optimize_part(module, target_machine)
    else:
        _optimize(module, target_machine)
    return module, target_machine


def _optimize(module: Any, target_machine: Any) -> None:
    """Inline what must be, then simplify function by function.

    That is all that these texts need: 28 kernels of all kinds were as fast as with the whole of
    level 2, which takes one and a half to two times as long.
    """
    builder = _pass_builder(target_machine)
    _inlined(module, builder)
    passes = builder.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)


def _optimize_part(module: Any, target_machine: Any) -> None:
    """Less: what a part's loops do is explicit, and this takes a tenth of the time."""
    builder = _pass_builder(target_machine)
    _inlined(module, builder)
    passes = llvm.create_new_module_pass_manager()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.run(module, builder)


def _inlined(module: Any, builder: Any) -> None:
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def _pass_builder(target_machine: Any) -> Any:
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Vectors, tiles and unrolled stores are explicit in the text.
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    return llvm.create_pass_builder(target_machine, options)


@lru_cache(maxsize=16)
def _target_machine(machine: Machine) -> Any:
    # Never handed to an engine: MCJIT would take it over, and the next use would crash.
    _initialize_native()
    try:
        target = llvm.Target.from_triple(machine.triple)
    except RuntimeError:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, reloc="pic", codemodel="small"
    )


@lru_cache(maxsize=1)
def _initialize_native() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


# -- object to addresses -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LoadedObject:
    """Functions of an object in memory.

    Keep it for as long as an address of it may be called: when it is collected its code is
    unmapped and the addresses are given to others.
    """

    addresses: dict[str, int]
    tracker: Any

    def __getitem__(self, symbol: str) -> int:
        return self.addresses[symbol]


_library_numbers = itertools.count()


def load_object(obj: bytes, symbols: Sequence[str]) -> LoadedObject:
    """Load an object and look up ``symbols``; each object is a library of its own.

    Two objects may define the same names.  What an object needs from outside (``memset``,
    ``fmodf``) comes from the C libraries of this process.
    """
    builder = llvm.JITLibraryBuilder()
    for one in _unbundle(obj):
        builder.add_object_img(one)
    builder.add_current_process()
    for symbol in symbols:
        builder.export_symbol(symbol)
    for name, address in _c_library().items():
        if _mentions(obj, name):
            builder.import_symbol(name, address)
    with _LOCK:
        library = f"torch_helion.{os.getpid()}.{next(_library_numbers)}"
        try:
            tracker = builder.link(_jit(), library)
        except RuntimeError as error:
            raise CodegenError(str(error)) from error
        return LoadedObject({symbol: tracker[symbol] for symbol in symbols}, tracker)


@lru_cache(maxsize=1)
def _jit() -> Any:
    _initialize_native()
    return llvm.create_lljit_compiler(use_jit_link=False)


# What the emitters call by name, and what LLVM itself may call for an instruction that the CPU
# lacks or for a loop that it recognised.
_UNARY_LIBM = (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh "
    "atanh erf erfc lgamma tgamma cbrt floor ceil trunc round rint nearbyint roundeven sqrt fabs"
)
_BINARY_LIBM = "pow atan2 fmod remainder hypot copysign fmin fmax fdim nextafter ldexp fma"
_MEMORY = "memset memcpy memmove memcmp bcmp printf fflush"


@lru_cache(maxsize=1)
def _c_library() -> dict[str, int]:
    """Addresses of the C functions that an object may need, by name."""
    names = _MEMORY.split()
    for stem in (_UNARY_LIBM + " " + _BINARY_LIBM).split():
        names += [stem, stem + "f"]
    found: dict[str, int] = {}
    for library in _c_library_handles():
        for name in names:
            function = None if name in found else getattr(library, name, None)
            address = ctypes.cast(function, ctypes.c_void_p).value if function else None
            if address:
                found[name] = address
    return found


def _c_library_handles() -> list[ctypes.CDLL]:
    if sys.platform == "win32":
        return [ctypes.CDLL("ucrtbase"), ctypes.CDLL("vcruntime140")]
    handles = [ctypes.CDLL(None)]
    if path := ctypes.util.find_library("m"):  # a static Python may have no libm of its own
        handles.append(ctypes.CDLL(path))
    return handles


def _mentions(obj: bytes, name: str) -> bool:
    # String tables of objects end each name with a zero; Mach-O puts an underscore before it.
    # Linkers share the tails of names, so "sinf" may also be found inside "th_sinf": a needless
    # import does no harm.
    return name.encode() + b"\0" in obj


# -- fork ----------------------------------------------------------------------------------------


def _before_fork() -> None:
    # llvmlite's lock as well: it alone is held while a collected object is unmapped.
    _LOCK.acquire()
    if _LLVMLITE_LOCK is not None:
        _LLVMLITE_LOCK.__enter__()


def _after_fork() -> None:
    if _LLVMLITE_LOCK is not None:
        _LLVMLITE_LOCK.__exit__(None, None, None)
    _LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
