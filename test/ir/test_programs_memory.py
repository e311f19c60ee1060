"""Memory, numbers and outputs of programs run by the interpreter, against eager PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from test.ir.programs import Program, place, run_program
from torch_helion import exc
from torch_helion.ir import ops, philox
from torch_helion.ir.graph import Op, Region
from torch_helion.ir.interpreter import run
from torch_helion.ir.types import Affine, Axis, Gather, block_symbol

NAN, INF = float("nan"), float("inf")
F32, F64, I64, I32 = torch.float32, torch.float64, torch.int64, torch.int32


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, equal_nan=True)


# -- memory -------------------------------------------------------------------------------------

ATOMICS: dict[str, Any] = {
    "add": lambda old, new: old + new,
    "max": lambda old, new: max(old, new),
    "min": lambda old, new: min(old, new),
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "xchg": lambda old, new: new,
}


@pytest.mark.parametrize("dtype", [F32, F64, I32, I64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fn", ATOMICS)
@pytest.mark.parametrize("want_result", [False, True])
def test_atomics(fn: str, dtype: torch.dtype, want_result: bool) -> None:
    if dtype.is_floating_point and fn in ("and", "or", "xor"):
        return
    added, start = torch.randint(-9, 9, (7,)), torch.randint(-9, 9, (3,))
    places = torch.tensor([0, 2, 2, 1, 0, 2, 0])

    def body(p: Program) -> None:
        m = p.axis("m", 7)
        with p.b.grid(m):
            keep = p.op("ne", p.b.iota(m), p.const(3, I64))
            y, x, at = p.buffer("y", "inout"), p.load("x", m), p.load("places", m)
            old = p.b.atomic(
                fn, y, [Gather(0)], x, [at], keep, checked=True, want_result=want_result
            )
            if old is not None:
                p.out("old", old, m)

    tensors = {"x": added.to(dtype), "y": start.to(dtype), "places": places}
    got = run_program(body, tensors, 3)
    want, found = start.tolist(), [0] * 7
    for i, at in enumerate(places.tolist()):
        if i != 3:
            found[i] = want[at]
            want[at] = ATOMICS[fn](want[at], int(added[i]))
    assert got["y"].tolist() == want
    if want_result:
        assert got["old"].tolist() == found


def test_compare_and_swap_compares_bits() -> None:
    start = torch.tensor([1.0, NAN, -0.0, 4.0])
    expected = torch.tensor([1.0, NAN, 0.0, 5.0])

    def body(p: Program) -> None:
        m = p.axis("m", 4)
        with p.b.grid(m):
            y, found = p.buffer("y", "inout"), p.load("expected", m)
            old = p.b.atomic(
                "cas", y, [Affine.of(m)], p.const(9.0), expected=found, want_result=True
            )
            assert old is not None
            p.out("old", old, m)

    got = run_program(body, {"y": start, "expected": expected}, 3)
    equal(got["y"], torch.tensor([9.0, 9.0, -0.0, 4.0]))
    equal(got["old"], start)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, I64])
def test_stacks_of_tensors(dtype: torch.dtype) -> None:
    parts = [torch.arange(6 * i, 6 * i + 6).reshape(2, 3).to(dtype) for i in range(4)]
    outs = [torch.zeros_like(x) for x in parts]
    addresses = torch.tensor([x.data_ptr() for x in parts])

    def body(p: Program) -> None:
        s, i, j = p.axis("s", 4), p.axis("i", 2, "full"), p.axis("j", 3, "full")
        with p.b.grid(s):
            keep = p.op("ne", p.b.iota(j), p.const(1, I64))
            pointer = p.load("addresses", s)
            tile = p.b.load(
                p.buffer("like"), place([i, j]), mask=keep, other=5, pointer=pointer, checked=True
            )
            p.out("out", tile, s, i, j)
            target = p.load("targets", s)
            p.b.store(p.buffer("like_out", "inout"), place([i, j]), tile, pointer=target)

    tensors = {"addresses": addresses, "like": parts[0], "like_out": parts[0]}
    tensors["targets"] = torch.tensor([x.data_ptr() for x in outs])
    got = run_program(body, tensors, 3)["out"]
    want = torch.stack(parts)
    want[:, :, 1] = 5
    equal(got, want)
    equal(torch.stack(outs), want)


@pytest.mark.parametrize("dtype", [*ops.FLOAT8, *ops.WIDE_UNSIGNED])
def test_types_that_are_only_stored(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 2.5, 3.0, 240.0, 7.0]).to(dtype)

    def body(p: Program) -> None:
        m = p.axis("m", 6)
        with p.b.grid(m):
            keep = p.op("lt", p.b.iota(m), p.const(5, I64))
            tile = p.load("x", m, mask=keep, other=1)
            p.out("wide", p.b.cast(tile, F32), m)
            p.out("back", p.b.cast(p.b.cast(tile, F32), dtype), m)
            p.out("chosen", p.op("where", keep, tile, p.b.cast(p.const(2.0), dtype)), m)

    got = run_program(body, {"x": x}, 4)
    want = x.float()
    want[5] = 1
    equal(got["wide"], want)
    equal(got["back"].float(), want)
    want[5] = 2
    equal(got["chosen"].float(), want)
    if dtype.is_floating_point:
        close(run_program(body, {"x": x}, 4, precise=True)["wide"][:5], x.float()[:5])


def test_checked_accesses_look_at_every_dimension() -> None:
    def body(p: Program, checked: bool, masked: bool) -> None:
        m = p.axis("m", 5)
        with p.b.grid(m):
            keep = p.op("lt", p.b.iota(m), p.const(4, I64)) if masked else None
            p.out("out", p.load("x", Affine.of(m, 1, 1), mask=keep, checked=checked), m)

    x = torch.randn(5)
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        run_program(lambda p: body(p, True, False), {"x": x}, 2)
    with pytest.raises(exc.VerifierError, match="in an unchecked load"):
        run_program(lambda p: body(p, False, False), {"x": x}, 2)
    equal(run_program(lambda p: body(p, True, True), {"x": x}, 2)["out"][:4], x[1:])


# -- the rest -----------------------------------------------------------------------------------


def test_floats_travel_as_bits() -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            bits = p.b.size_value(p.b.scalar("scale"))
            p.out("out", p.b.cast(p.b.bitcast(bits, F64), F32))

    for number in (1.5, -2.25, -INF):
        bits = int(torch.tensor(number, dtype=F64).view(I64))
        assert run_program(body, {}, sizes={"scale": bits})["out"].item() == number


def test_words_of_random_blocks() -> None:
    def body(p: Program) -> None:
        m = p.axis("m", 5)
        with p.b.grid(m):
            seed = p.const(7, I64)
            for word in range(4):
                p.out(f"u{word}", p.b.rng("rand", seed, p.b.iota(m), word=word), m)
            bounds = (p.const(0, I64), p.const(2**32, I64))
            p.out("i3", p.b.rng("randint", seed, p.b.iota(m), *bounds, word=3), m)

    got = run_program(body, {}, 2)
    words = philox.words(7, torch.arange(5))
    for word in range(4):
        equal(got[f"u{word}"], (words[word] >> 8).float() * 2.0**-24)
    equal(got["i3"], words[0])  # the upper word of two is the one after


def test_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def body(p: Program) -> None:
        with p.b.grid():
            p.b.print("x is", p.load("x"), p.const(2, I64))

    run_program(body, {"x": torch.tensor(1.5)})
    assert capsys.readouterr().out == "x is 1.5 2\n"


def test_a_kind_without_a_meaning_is_named() -> None:
    kernel = Program({}).b.build()
    loop = Op("loop", (), {"kind": "grid", "axes": ()}, (), (Region((), (Op("new"),)),))
    with pytest.raises(exc.TargetIncomplete, match="new"):
        run(replace(kernel, body=Region((), (loop,))), [], {})


def test_block_names() -> None:
    p = Program({})
    m, n = p.axis("m", 4), p.axis("n", 4)
    with p.b.grid(m), p.b.tile_loop(n):
        p.out("out", p.b.iota(n), m, n)
    assert p.b.build().block_names == ("m", "n")
    assert block_symbol("m").name == "block_m"
    assert Axis("m_1", 4, "block", "m").tile_name == "m"
