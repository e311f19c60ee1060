"""The engine: machines, objects and assembly for this and other CPUs, loading, forks, errors."""

from __future__ import annotations

import ctypes
import gc
import os
import threading

import pytest

from torch_helion.codegen.llvm import engine
from torch_helion.codegen.llvm.engine import (
    CodegenError,
    compile_object,
    emit_assembly,
    host_machine,
    load_object,
    machine_for,
    machine_key,
)

CONSTANT = "define i64 @answer(i64 %x) {{\n  %r = add i64 %x, {value}\n  ret i64 %r\n}}\n"
VECTOR_ADD = """
define void @add(ptr %out, ptr %a, ptr %b) {
  %x = load <16 x float>, ptr %a, align 4
  %y = load <16 x float>, ptr %b, align 4
  %z = fadd <16 x float> %x, %y
  store <16 x float> %z, ptr %out, align 4
  ret void
}
"""


def call_answer(loaded: engine.LoadedObject, x: int) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded["answer"])(x)


def build_answer(value: int) -> engine.LoadedObject:
    return load_object(compile_object(CONSTANT.format(value=value), host_machine()), ["answer"])


def test_host_machine_is_cached_and_plausible():
    machine = host_machine()
    assert machine is host_machine()
    assert machine.vector_bits in (128, 256, 512)
    assert machine.registers in (16, 32)
    assert machine.triple and machine.cpu
    assert not machine.has("no-such-feature")


def test_two_objects_may_define_the_same_name():
    first, second = build_answer(1), build_answer(2)
    assert call_answer(first, 40) == 41
    assert call_answer(second, 40) == 42
    del first
    gc.collect()
    assert call_answer(second, 41) == 43


def test_a_loaded_object_outlives_thousands_of_collected_ones():
    kept = build_answer(7)
    obj = compile_object(CONSTANT.format(value=3), host_machine())
    for _ in range(200):
        assert call_answer(load_object(obj, ["answer"]), 1) == 4
    assert call_answer(kept, 1) == 8


def test_libm_and_memory_functions_resolve():
    text = """
    declare float @fmodf(float, float)
    declare double @lgamma(double)
    declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
    define float @f(float %x, float %y, ptr %p, i64 %n) {
      call void @llvm.memset.p0.i64(ptr %p, i8 7, i64 %n, i1 false)
      %r = call float @fmodf(float %x, float %y)
      %d = call double @lgamma(double 3.0)
      ret float %r
    }
    """
    loaded = load_object(compile_object(text, host_machine()), ["f"])
    function = ctypes.CFUNCTYPE(
        ctypes.c_float, ctypes.c_float, ctypes.c_float, ctypes.c_void_p, ctypes.c_int64
    )(loaded["f"])
    buffer = ctypes.create_string_buffer(1000)
    assert function(7.5, 2.0, ctypes.addressof(buffer), 1000) == 1.5
    assert buffer.raw == b"\x07" * 1000


def test_every_libm_name_that_an_object_may_need_is_known():
    library = engine._c_library()
    for name in ("memset", "memcpy", "memmove", "fmod", "fmodf", "sin", "cosf", "lgamma", "pow"):
        assert library.get(name), name


def test_errors_carry_the_words_of_llvm():
    with pytest.raises(CodegenError, match="parsing error"):
        compile_object("define void @f( {", host_machine())
    with pytest.raises(CodegenError, match="undefined value"):
        compile_object("define i32 @f() {\n ret i32 %x\n}", host_machine())
    with pytest.raises(CodegenError, match="dominate"):
        compile_object(
            "define i32 @f() {\n %y = add i32 %x, 1\n %x = add i32 %y, 1\n ret i32 %x\n}",
            host_machine(),
        )
    text = "declare i64 @no_such_function(i64)\n" + CONSTANT.format(value=1)
    text = text.replace("add i64 %x, 1", "call i64 @no_such_function(i64 %x)")
    with pytest.raises(CodegenError, match="answer"):  # LLVM names the missing one on stderr
        load_object(compile_object(text, host_machine()), ["answer"])
    with pytest.raises(CodegenError):
        load_object(b"not an object", ["answer"])
    assert call_answer(build_answer(5), 1) == 6  # the engine still works


@pytest.mark.parametrize(
    "name, register",
    [("haswell", "ymm"), ("x86-64-v4", "zmm"), ("sapphirerapids", "zmm"), ("x86-64", "xmm"),
     ("aarch64", "v0.4s"), ("neoverse-v1", "v0.4s"), ("apple-m1", "fadd.4s")],
)  # fmt: skip
def test_assembly_for_other_machines(name: str, register: str):
    machine = machine_for(name)
    text = emit_assembly(VECTOR_ADD, machine)
    assert register in text
    assert len(compile_object(VECTOR_ADD, machine)) > 100


def test_unknown_machine_is_named():
    with pytest.raises(ValueError, match=r"unknown machine 'pdp11'.*haswell"):
        machine_for("pdp11")


def test_machine_key_tells_machines_apart():
    keys = {machine_key(machine_for(name)) for name in engine._NAMED_MACHINES}
    assert len(keys) == len(engine._NAMED_MACHINES)
    assert "llvmlite" in machine_key(host_machine())


def test_threads_compile_and_load_at_once():
    results: dict[int, int] = {}

    def work(value: int) -> None:
        results[value] = call_answer(build_answer(value), 100)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {value: 100 + value for value in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs_old_code_and_compiles_new():
    old = build_answer(1)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            build_answer(9)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):  # while another thread is inside LLVM
            child = os.fork()
            if child == 0:
                good = call_answer(old, 1) == 2 and call_answer(build_answer(4), 1) == 5
                os._exit(0 if good else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        thread.join()


# -- parts ---------------------------------------------------------------------------------------

SHARED = engine.part_text(
    "@twice",
    [
        "define internal i64 @inner(i64 %x) alwaysinline {\n  %r = add i64 %x, %x\n  ret i64 %r\n}",
        "define void @twice(ptr %x) {\n  %a = load i64, ptr %x\n  %b = call i64 @inner(i64 %a)\n"
        "  store i64 %b, ptr %x\n  ret void\n}",
    ],
)
CALLER = """declare void @twice(ptr)
define i64 @answer(i64 %x) {{
  %place = alloca i64
  store i64 %x, ptr %place
  call void @twice(ptr %place)
  %y = load i64, ptr %place
  %r = add i64 %y, {value}
  ret i64 %r
}}
"""


def test_modules_share_a_part_that_is_compiled_once(monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    own = engine._object

    def counted(text: str, machine: engine.Machine) -> bytes:
        compiled.append(text)
        return own(text, machine)

    monkeypatch.setattr(engine, "_object", counted)
    engine._part_object.cache_clear()
    texts = [f"{CALLER.format(value=value)}{SHARED}" for value in (1, 2)]
    loaded = [load_object(compile_object(t, host_machine()), ["answer"]) for t in texts]
    assert [call_answer(one, 20) for one in loaded] == [41, 42]
    assert sum("@twice" in t and "@answer" not in t for t in compiled) <= 1  # or from the cache
    engine._part_object.cache_clear()
    compiled.clear()
    again = load_object(compile_object(texts[0], host_machine()), ["answer"])
    del loaded
    gc.collect()
    assert call_answer(again, 1) == 3
    assert len(compiled) == 1  # the part came from the artifact cache


def test_parts_are_seen_in_assembly_and_optimised_text():
    text = f"{CALLER.format(value=1)}{SHARED}"
    assembly = emit_assembly(text, host_machine())
    assert "answer" in assembly and assembly.count("twice:") == 1
    optimised = engine.optimize_text(text, host_machine())
    assert "define void @twice" in optimised and "@inner" not in optimised


def test_two_parts_with_helpers_of_one_name():
    other = SHARED.replace("twice", "thrice").replace("add i64 %x, %x", "mul i64 %x, 3")
    caller = CALLER.format(value=0).replace("declare", "declare void @thrice(ptr)\ndeclare", 1)
    caller = caller.replace("  %y =", "  call void @thrice(ptr %place)\n  %y =")
    text = f"{caller}{SHARED}{other}"
    assert engine.split_parts(text)[1:] == (SHARED.rstrip("\n"), other)
    assert call_answer(load_object(compile_object(text, host_machine()), ["answer"]), 5) == 30


def test_a_part_that_llvm_refuses_is_an_error():
    with pytest.raises(CodegenError):
        compile_object(f"{CALLER.format(value=1)}{SHARED.replace('ret void', 'ret i64')}",
                       host_machine())  # fmt: skip
    with pytest.raises(CodegenError):  # nobody defines what is called
        load_object(compile_object(CALLER.format(value=1), host_machine()), ["answer"])
