"""Hand-written kernels for the tests of the runtime: a few lines of LLVM in, a Kernel out.

Written to the ABI of ``csrc/launcher.h`` and built by llvmlite alone, so that the runtime is tested
without the package's own code generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.binding as llvm
import torch  # noqa: F401  (before _C)

from torch_helion import _C
from torch_helion.runtime.launcher import KernelHeader, make_kernel

_serial = iter(range(1_000_000))
_machine: llvm.TargetMachine | None = None
_jit: llvm.ResourceTracker | None = None


@dataclass(frozen=True)
class Phase:
    """One phase. ``body`` sees %begin, %end, %scratch, %workspace, %t<i> and %n<i>, and must end in
    a ``ret i64``. Plan numbers are ints, or the name of an int argument ("n0")."""

    body: str
    steps: int | str = "n0"
    cost: int | str = 1
    scratch: int | str = 0


# 1 ms: far above every threshold of the launcher
SLOW = 1_000_000_000


def loop(body: str, status: int = 0) -> str:
    """A body that runs ``body`` for each step %i."""
    return f"""
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  {body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret i64 {status}
"""


def element(name: str, tensor: str, index: str = "%i", type: str = "float") -> str:
    """A line that names the address of one element."""
    return f"%{name} = getelementptr {type}, ptr {tensor}, i64 {index}"


def build(
    name: str,
    tensors: tuple[str, ...],
    phases: tuple[Phase, ...],
    ints: int = 1,
    workspace: int | str = 0,
    declarations: str = "",
) -> _C.Kernel:
    """Compile and wrap one kernel."""
    header = KernelHeader(name, tensors, ints, len(phases))
    numbers: list[int | str] = [workspace]
    for phase in phases:
        numbers += [phase.steps, phase.cost, phase.scratch]
    text = [
        header.text(),
        declarations,
        f"define void @{name}_plan(ptr %args, ptr %out) {{\nentry:",
        _load_arguments(len(tensors), ints),
    ]
    for i, number in enumerate(numbers):
        value = f"%{number}" if isinstance(number, str) else number
        text.append(element(f"out{i}", "%out", str(i), "i64"))
        text.append(f"store i64 {value}, ptr %out{i}")
    text.append("ret void\n}")
    for k, phase in enumerate(phases):
        text.append(
            f"define i64 @{name}_phase{k}"
            "(ptr %args, i64 %begin, i64 %end, ptr %scratch, ptr %workspace) {\nentry:"
        )
        text += [_load_arguments(len(tensors), ints), phase.body, "}"]
    addresses = _compile("\n".join(text), [header.plan_symbol, *header.phase_symbols])
    plan = addresses[header.plan_symbol]
    return make_kernel(name, plan, [addresses[s] for s in header.phase_symbols], header, addresses)


def add_kernel(cost: int = 1) -> _C.Kernel:
    """``t2[i] = t0[i] + t1[i]`` for float32."""
    body = loop(f"""
  {element("p0", "%t0")}
  {element("p1", "%t1")}
  {element("p2", "%t2")}
  %a = load float, ptr %p0
  %b = load float, ptr %p1
  %c = fadd float %a, %b
  store float %c, ptr %p2""")
    return build("add", ("float32",) * 3, (Phase(body, cost=cost),))


def ranges_kernel(cost: int = SLOW, scratch: int = 0, workspace: int = 0) -> _C.Kernel:
    """Each call of the phase writes at its begin: t0 its end, t1 and t2 its scratch and workspace.

    It also writes its whole scratch, so that too little of it is noticed.
    """
    body = f"""
  {element("p0", "%t0", "%begin", "i64")}
  {element("p1", "%t1", "%begin", "i64")}
  {element("p2", "%t2", "%begin", "i64")}
  store i64 %end, ptr %p0
  %s = ptrtoint ptr %scratch to i64
  store i64 %s, ptr %p1
  %w = ptrtoint ptr %workspace to i64
  store i64 %w, ptr %p2
  call void @llvm.memset.p0.i64(ptr %scratch, i8 7, i64 {scratch}, i1 false)
  ret i64 0"""
    return build(
        "ranges",
        ("int64",) * 3,
        (Phase(body, cost=cost, scratch=scratch),),
        workspace=workspace,
        declarations="declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
    )


def _load_arguments(tensors: int, ints: int) -> str:
    lines = []
    for i in range(tensors):
        lines += [element(f"a{i}", "%args", str(i), "i64"), f"%t{i} = load ptr, ptr %a{i}"]
    for i in range(ints):
        lines.append(element(f"b{i}", "%args", str(tensors + i), "i64"))
        lines.append(f"%n{i} = load i64, ptr %b{i}")
    return "\n".join(lines)


def _compile(text: str, symbols: list[str]) -> llvm.ResourceTracker:
    global _machine, _jit
    if _machine is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        _machine = target.create_target_machine(opt=2, reloc="pic", codemodel="small")
        _jit = llvm.create_lljit_compiler(_machine, use_jit_link=False)
    module = llvm.parse_assembly(text)
    module.verify()
    library = llvm.JITLibraryBuilder()
    library.add_object_img(_machine.emit_object(module)).add_current_process()
    for symbol in symbols:
        library.export_symbol(symbol)
    return library.link(_jit, f"test{next(_serial)}")
