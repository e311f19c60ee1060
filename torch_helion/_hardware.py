"""What this machine is: cores, caches, instruction sets, memory; probed once, on first use.

What flows in: ``/proc``, ``/sys`` and LLVM's view of the host. What flows out: :func:`probe`, a
frozen record that cost models, launchers, cache keys and reports read. Floor 0: anything may import
this module. Nothing is probed at import, and a fact that the system does not tell has a cautious
default.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import platform
import re

_CPU0_CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # Windows and macOS spellings
_CPUINFO = pathlib.Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Facts about the host; sizes in bytes."""

    cores: int  # that this process may use
    l1d: int  # data cache of one core
    l2: int  # of one core
    llc: int  # last level, as shared by `llc_sharers` of our logical processors
    llc_sharers: int
    line: int
    memory: int
    architecture: str  # "x86_64", "aarch64", ...
    flags: frozenset[str]  # as the kernel names them: "avx2", "avx512f", "asimd", ...

    @property
    def vector_bytes(self) -> int:
        """Width of the widest vector registers that code for this host should use."""
        if "avx512f" in self.flags:
            return 64
        return 32 if "avx2" in self.flags else 16


@functools.cache
def probe() -> Hardware:
    """The host's facts."""
    caches = _caches(_CPU0_CACHES)
    l1d, l2 = caches.get(1, (32 << 10, 1))[0], caches.get(2, (512 << 10, 1))[0]
    llc, sharers = caches[max(caches)] if caches else (8 << 20, 1)
    return Hardware(
        cores=cores(),
        l1d=l1d,
        l2=l2,
        llc=llc,
        llc_sharers=sharers,
        line=_number(_CPU0_CACHES / "index0" / "coherency_line_size", 64),
        memory=_memory(),
        architecture=_ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower()),
        flags=_flags(),
    )


def cores() -> int:
    """Logical processors that this process may run on (affinity respected; not cached)."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The processor's model, for reports."""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read(_CPUINFO), re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return f"{name} ({llvm_cpu()})" if llvm_cpu() else name


@functools.cache
def llvm_cpu() -> str:
    """LLVM's name of the host processor ("znver4"); empty without llvmlite."""
    binding = _llvm_binding()
    return binding.get_host_cpu_name() if binding else ""


@functools.cache
def llvm_features() -> str:
    """LLVM's feature string of the host ("+avx2,-avx512f,..."); empty without llvmlite."""
    binding = _llvm_binding()
    return binding.get_host_cpu_features().flatten() if binding else ""


def _llvm_binding():  # type: ignore[no-untyped-def]
    # Imported here, not above: 40 to 80 ms and 48 MB that a process without kernels does not pay.
    try:
        import llvmlite.binding
    except ImportError:
        return None
    return llvmlite.binding


def _caches(folder: pathlib.Path) -> dict[int, tuple[int, int]]:
    """Level → (bytes, how many processors share it) of the data and unified caches."""
    found = {}
    for index in sorted(folder.glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
        if size and _read(index / "type") != "Instruction":
            scale = {"": 0, "K": 10, "M": 20, "G": 30}[size.group(2)]
            sharers = _count_of_list(_read(index / "shared_cpu_list"))
            found[_number(index / "level", 0)] = (int(size.group(1)) << scale, sharers)
    return found


def _count_of_list(text: str) -> int:
    """``"0-3,8"`` → 5."""
    total = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        total += int(last or first) - int(first) + 1
    return total or 1


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def _flags() -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(_CPUINFO), re.MULTILINE)
    if found:
        return frozenset(found.group(1).split())
    # No /proc (macOS, Windows): LLVM's names are near enough for the few that are asked about.
    return frozenset(f[1:] for f in llvm_features().split(",") if f.startswith("+"))


def _number(path: pathlib.Path, default: int) -> int:
    text = _read(path)
    return int(text) if text.isdigit() else default


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
