"""Writing a vector function as a formula: values with operators that print LLVM instructions.

In: a vector width and a ``Machine``.  Out: the lines of one function's body, and what it needs from
outside (libm declarations, helper functions).  Used by the ``vector_math_*`` files only.

Nothing printed here carries a fast-math flag, so a kernel's own flags never reach into a formula:
error-free steps stay error-free.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch_helion.codegen.llvm.engine import Machine

BITS = {"f64": 64, "f32": 32, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 1, "f16": 16}
ELEMENT = {"f32": "float", "f64": "double", "f16": "half"}
INT_OF = {"f32": "i32", "f64": "i64"}
MANTISSA = {"f32": 23, "f64": 52}
BIAS = {"f32": 127, "f64": 1023}
MIN_NORMAL = {"f32": 2.0**-126, "f64": 2.0**-1022}

_QUIET_NAN_TABLE = 0x22  # fixupimm's answers: the operand made quiet for both kinds of NaN

Number = float | int


def vector_type(kind: str, width: int) -> str:
    """LLVM's name of a vector (a scalar for width 1) of ``kind``: "f32", 16 → "<16 x float>"."""
    element = ELEMENT.get(kind, kind)
    return element if width == 1 else f"<{width} x {element}>"


def round_to_f32(value: float) -> float:
    if math.isinf(value) or math.isnan(value):
        return value
    return struct.unpack("<f", struct.pack("<f", value))[0]


def constant(value: Number, kind: str, width: int) -> str:
    """A (splat) constant as LLVM reads it; floats are the hex digits of a double."""
    if kind in ELEMENT:
        number = round_to_f32(float(value)) if kind == "f32" else float(value)
        text = "0x" + struct.pack(">d", number).hex().upper()
    elif kind == "i1":
        text = "true" if value else "false"
    else:
        bits = BITS[kind]
        wrapped = int(value) & ((1 << bits) - 1)
        text = str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
    return text if width == 1 else f"splat ({ELEMENT.get(kind, kind)} {text})"


@dataclass(frozen=True, eq=False)
class Value:
    """One SSA value (or splat constant): ``kind`` is its element, ``ref`` its text."""

    emitter: Emitter
    kind: str
    ref: str

    @property
    def is_float(self) -> bool:
        return self.kind in ELEMENT

    def _binary(self, other: Operand, floating: str, integer: str, swap: bool = False) -> Value:
        right = self.emitter.value(other, self.kind)
        first, second = (right, self) if swap else (self, right)
        return self.emitter.binary(floating if self.is_float else integer, first, second)

    def __add__(self, other: Operand) -> Value:
        return self._binary(other, "fadd", "add")

    def __radd__(self, other: Operand) -> Value:
        return self._binary(other, "fadd", "add", swap=True)

    def __sub__(self, other: Operand) -> Value:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Operand) -> Value:
        return self._binary(other, "fsub", "sub", swap=True)

    def __mul__(self, other: Operand) -> Value:
        return self._binary(other, "fmul", "mul")

    def __rmul__(self, other: Operand) -> Value:
        return self._binary(other, "fmul", "mul", swap=True)

    def __truediv__(self, other: Operand) -> Value:
        return self._binary(other, "fdiv", "sdiv")

    def __rtruediv__(self, other: Operand) -> Value:
        return self._binary(other, "fdiv", "sdiv", swap=True)

    def __neg__(self) -> Value:
        return self.emitter.unary("fneg", self) if self.is_float else 0 - self

    def __and__(self, other: Operand) -> Value:
        return self._binary(other, "and", "and")

    def __or__(self, other: Operand) -> Value:
        return self._binary(other, "or", "or")

    def __xor__(self, other: Operand) -> Value:
        return self._binary(other, "xor", "xor")

    def __lshift__(self, other: Operand) -> Value:
        return self._binary(other, "shl", "shl")

    def __rshift__(self, other: Operand) -> Value:  # zeros move in
        return self._binary(other, "lshr", "lshr")

    # Comparisons of floats are false where an operand is NaN, but ``ne``.
    def __lt__(self, other: Operand) -> Value:
        return self._compare(other, "olt", "slt")

    def __le__(self, other: Operand) -> Value:
        return self._compare(other, "ole", "sle")

    def __gt__(self, other: Operand) -> Value:
        return self._compare(other, "ogt", "sgt")

    def __ge__(self, other: Operand) -> Value:
        return self._compare(other, "oge", "sge")

    def eq(self, other: Operand) -> Value:
        return self._compare(other, "oeq", "eq")

    def ne(self, other: Operand) -> Value:
        return self._compare(other, "une", "ne")

    def ult(self, other: Operand) -> Value:
        """Less, or NaN (floats); less as unsigned (integers)."""
        return self._compare(other, "ult", "ult")

    def ugt(self, other: Operand) -> Value:
        return self._compare(other, "ugt", "ugt")

    def uge(self, other: Operand) -> Value:
        return self._compare(other, "uge", "uge")

    def is_nan(self) -> Value:
        return self._compare(self, "uno", "")

    def _compare(self, other: Operand, floating: str, integer: str) -> Value:
        right = self.emitter.value(other, self.kind)
        head = f"fcmp {floating}" if self.is_float else f"icmp {integer}"
        return self.emitter.emit("i1", f"{head} {self.emitter.typed(self)}, {right.ref}")


Operand = Value | float | int


@dataclass(frozen=True)
class Rounded:
    """An integer-valued float and 2 to its power as far as that is a normal number."""

    number: Value
    power: Value


class Emitter:
    """Prints the instructions of one function; ``width`` lanes of whatever kinds it uses."""

    def __init__(self, width: int, machine: Machine, need: Callable[[str, str, int], str]) -> None:
        self.width = width
        self.machine = machine
        self.lines: list[str] = []
        self.block = "entry"
        self._need = need  # (helper's name, kind, width) -> its symbol
        self._count = 0

    # -- instructions ----------------------------------------------------------------------------

    def type(self, kind: str) -> str:
        return vector_type(kind, self.width)

    def typed(self, value: Value) -> str:
        return f"{self.type(value.kind)} {value.ref}"

    def fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def emit(self, kind: str, instruction: str) -> Value:
        name = f"%{self.fresh()}"
        self.lines.append(f"  {name} = {instruction}")
        return Value(self, kind, name)

    def value(self, operand: Operand, kind: str) -> Value:
        if isinstance(operand, Value):
            if operand.kind != kind:
                raise TypeError(f"expected {kind}, got {operand.kind} {operand.ref}")
            return operand
        return Value(self, kind, constant(operand, kind, self.width))

    def binary(self, opcode: str, a: Value, b: Value) -> Value:
        return self.emit(a.kind, f"{opcode} {self.typed(a)}, {b.ref}")

    def unary(self, opcode: str, a: Value) -> Value:
        return self.emit(a.kind, f"{opcode} {self.typed(a)}")

    def ashr(self, a: Value, count: int) -> Value:
        return self.binary("ashr", a, self.value(count, a.kind))

    def convert(self, opcode: str, a: Value, kind: str) -> Value:
        """bitcast, zext, sext, trunc, fpext, fptrunc, sitofp, uitofp, fptosi."""
        return self.emit(kind, f"{opcode} {self.typed(a)} to {self.type(kind)}")

    def bits(self, a: Value) -> Value:
        return self.convert("bitcast", a, INT_OF[a.kind])

    def from_bits(self, a: Value) -> Value:
        return self.convert("bitcast", a, {"i32": "f32", "i64": "f64"}[a.kind])

    def select(self, mask: Value, a: Operand, b: Operand) -> Value:
        kind = a.kind if isinstance(a, Value) else b.kind  # type: ignore[union-attr]
        first, second = self.value(a, kind), self.value(b, kind)
        return self.emit(
            kind, f"select {self.typed(mask)}, {self.typed(first)}, {self.typed(second)}"
        )

    def not_(self, mask: Value) -> Value:
        return mask ^ 1

    # -- intrinsics ------------------------------------------------------------------------------

    def intrinsic(self, name: str, *operands: Value) -> Value:
        """``llvm.<name>`` of operands of one kind; LLVM declares its own intrinsics."""
        kind = operands[0].kind
        suffix = kind if self.width == 1 else f"v{self.width}{kind}"
        arguments = ", ".join(self.typed(v) for v in operands)
        return self.emit(kind, f"call {self.type(kind)} @llvm.{name}.{suffix}({arguments})")

    def abs(self, a: Value) -> Value:
        return self.intrinsic("fabs", a)

    def copysign(self, magnitude: Operand, sign: Value) -> Value:
        return self.intrinsic("copysign", self.value(magnitude, sign.kind), sign)

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("sqrt", a)

    def floor(self, a: Value) -> Value:
        return self.intrinsic("floor", a)

    def trunc(self, a: Value) -> Value:
        return self.intrinsic("trunc", a)

    def round(self, a: Value) -> Value:
        return self.intrinsic("roundeven", a)

    def exact_fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a·b + c rounded once on every machine (libm's function where no instruction does it)."""
        kind = next(v.kind for v in (a, b, c) if isinstance(v, Value))
        return self.intrinsic("fma", *(self.value(v, kind) for v in (a, b, c)))

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a·b + c, rounded once where that is an instruction: for polynomials."""
        if self.machine.has_fma:
            return self.exact_fma(a, b, c)
        kind = next(v.kind for v in (a, b, c) if isinstance(v, Value))
        return self.value(a, kind) * b + c

    def min(self, a: Value, bound: Operand) -> Value:
        """The smaller one, ``a`` where it is NaN: one instruction."""
        return self.select(self.value(bound, a.kind) < a, bound, a)

    def max(self, a: Value, bound: Operand) -> Value:
        return self.select(self.value(bound, a.kind) > a, bound, a)

    # -- building stones of formulas -------------------------------------------------------------

    def horner(self, x: Value, coefficients: Sequence[float]) -> Value:
        """c0 + x·(c1 + x·(c2 + …))."""
        total = self.value(coefficients[-1], x.kind)
        for coefficient in reversed(coefficients[:-1]):
            total = self.fma(total, x, coefficient)
        return total

    def round_scaled(self, x: Value, scale: float) -> Rounded:
        """n = nearest integer of x·scale, with 2^n; |n| < 2^22 (f32), 2^51 (f64).

        Adding 1.5·2^23 leaves the integer in the low bits of the sum; with the exponent's bias
        added as well, one shift makes 2^n.  A NaN goes through.
        """
        biased = self.fma(x, scale, self._magic(x.kind))
        return self._rounded(biased)

    def _magic(self, kind: str) -> float:
        return 1.5 * 2.0 ** MANTISSA[kind] + BIAS[kind]

    def _rounded(self, biased: Value) -> Rounded:
        kind = biased.kind
        number = biased - self._magic(kind)
        power = self.from_bits(self.bits(biased) << MANTISSA[kind])
        return Rounded(number, power)

    def power_of_two(self, n: Value) -> Value:
        """2^n of an integer-valued n, while 2^n is normal."""
        return self._rounded(n + self._magic(n.kind)).power

    def ldexp(self, p: Value, n: Rounded) -> Value:
        """p·2^n with one rounding, over the whole range; |n| ≤ 2 · 126 (f32), 2 · 1022 (f64)."""
        if self.has_avx512:
            return self.x86_avx512("scalef", p, n.number)
        half = self.fma(n.number, 0.5, self._magic(p.kind))
        first = self._rounded(half)
        second = self.power_of_two(n.number - first.number)
        return p * first.power * second

    def ldexp_up(self, p: Value, n: Rounded) -> Value:
        """p·2^n as ``ldexp``, for n from -125 (f32), -1021 (f64): nothing gets subnormal."""
        if self.has_avx512:
            return self.x86_avx512("scalef", p, n.number)
        step = self.from_bits(self.bits(n.power) - (1 << MANTISSA[p.kind]))
        return p * step * 2.0

    @property
    def has_avx512(self) -> bool:
        return self.machine.vector_bits >= 512 and self.machine.has("avx512vl")

    def x86_avx512(self, name: str, *operands: Value, immediate: int | None = None) -> Value:
        """An AVX-512 instruction on each legal piece of the operands: scalef, getexp, getmant."""
        kind = operands[0].kind
        lanes = min(512 // BITS[kind], max(128 // BITS[kind], self.width))
        pieces = [self._split(v, lanes) for v in operands]
        results = [
            self._avx512_piece(name, kind, lanes, p, immediate) for p in zip(*pieces, strict=True)
        ]
        return self._join(results, kind, lanes)

    def _avx512_piece(
        self, name: str, kind: str, lanes: int, operands: Sequence[str], immediate: int | None
    ) -> str:
        bits = lanes * BITS[kind]
        vector = vector_type(kind, lanes)
        arguments = [f"{vector} {ref}" for ref in operands]
        if immediate is not None:
            arguments.append(f"i32 {immediate}")
        arguments += [f"{vector} zeroinitializer", f"i{max(lanes, 8)} -1"]
        if bits == 512:
            arguments.append("i32 4")  # the current rounding mode
        suffix = "ps" if kind == "f32" else "pd"
        function = f"@llvm.x86.avx512.mask.{name}.{suffix}.{bits}"
        return self._raw(f"call {vector} {function}({', '.join(arguments)})")

    def quiet_nan(self, a: Value, x: Value) -> Value:
        """``a``, but x (made quiet) in the lanes where x is NaN."""
        if self.has_avx512 and self.width == 16 and x.kind == "f32":
            arguments = (
                f"{self.typed(a)}, {self.typed(x)}, <16 x i32> splat (i32 {_QUIET_NAN_TABLE}), "
                "i32 0, i16 -1, i32 4"
            )
            name = "@llvm.x86.avx512.mask.fixupimm.ps.512"
            return self.emit("f32", f"call <16 x float> {name}({arguments})")
        return self.select(x.is_nan(), math.nan, a)

    def _raw(self, instruction: str) -> str:
        return self.emit("", instruction).ref

    def _split(self, value: Value, lanes: int) -> list[str]:
        """The value as vectors of ``lanes``: a short one is padded, a long one cut."""
        width, vector = self.width, self.type(value.kind)
        if width == lanes:
            return [value.ref]
        if width == 1:
            padded = vector_type(value.kind, lanes)
            return [
                self._raw(f"insertelement {padded} zeroinitializer, {vector} {value.ref}, i64 0")
            ]
        starts = range(0, width, lanes) if width > lanes else [0]
        return [
            self._raw(
                f"shufflevector {vector} {value.ref}, {vector} zeroinitializer, <{lanes} x i32> "
                f"{_lane_numbers(min(s + i, width) for i in range(lanes))}"
            )
            for s in starts
        ]

    def _join(self, pieces: list[str], kind: str, lanes: int) -> Value:
        vector = vector_type(kind, lanes)
        if self.width == lanes:
            return Value(self, kind, pieces[0])
        if self.width == 1:
            return self.emit(kind, f"extractelement {vector} {pieces[0]}, i64 0")
        while len(pieces) > 1:  # pairs, then pairs of pairs
            numbers = f"<{2 * lanes} x i32> {_lane_numbers(range(2 * lanes))}"
            pieces = [
                self._raw(f"shufflevector {vector} {a}, {vector} {b}, {numbers}")
                for a, b in zip(pieces[::2], pieces[1::2], strict=True)
            ]
            lanes *= 2
            vector = vector_type(kind, lanes)
        if self.width == lanes:
            return Value(self, kind, pieces[0])
        numbers = f"<{self.width} x i32> {_lane_numbers(range(self.width))}"
        return self.emit(
            kind, f"shufflevector {vector} {pieces[0]}, {vector} {pieces[0]}, {numbers}"
        )

    def widen(self, x: Value) -> Value:
        return x if x.kind == "f64" else self.convert("fpext", x, "f64")

    def narrow(self, x: Value, kind: str) -> Value:
        return x if x.kind == kind else self.convert("fptrunc", x, kind)

    def repeat(
        self, count: int, start: Sequence[Value], step: Callable[..., Sequence[Value]]
    ) -> list[Value]:
        """``step`` applied ``count`` times to the values: a loop, short to compile."""
        before, head = self.block, self.fresh("repeat")
        carried = [Value(self, v.kind, f"%{self.fresh()}") for v in start]
        number, following = f"%{self.fresh()}", f"%{self.fresh()}"
        self.lines += [f"  br label %{head}", f"{head}:"]
        at = len(self.lines)
        self.block = head
        after = list(step(*carried))
        end = self.block
        phis = [
            f"  {c.ref} = phi {self.type(c.kind)} [ {a.ref}, %{before} ], [ {b.ref}, %{end} ]"
            for c, a, b in zip(carried, start, after, strict=True)
        ]
        phis.append(f"  {number} = phi i32 [ 0, %{before} ], [ {following}, %{end} ]")
        self.lines[at:at] = phis
        more, done = self.fresh("more"), self.fresh("done")
        self.lines += [
            f"  {following} = add i32 {number}, 1",
            f"  %{more} = icmp ult i32 {following}, {count}",
            f"  br i1 %{more}, label %{head}, label %{done}",
            f"{done}:",
        ]
        self.block = done
        return after

    # -- rare lanes ------------------------------------------------------------------------------

    def any(self, mask: Value) -> str:
        """The name of an i1 that says whether a lane of the mask is true; expected not to be."""
        bit = mask.ref
        if self.width > 1:
            number = f"i{self.width}"
            word = self._raw(f"bitcast {self.typed(mask)} to {number}")
            bit = self._raw(f"icmp ne {number} {word}, 0")
        return self._raw(f"call i1 @llvm.expect.i1(i1 {bit}, i1 false)")

    def patch(self, mask: Value, fast: Value, libm: str, *operands: Value) -> Value:
        """``fast``, but ``libm(operands)`` in the lanes of the mask; nothing but a test without.

        ``libm`` is C's name of the double function; f32 lanes go through it in double precision.
        """
        helper = self._need(libm, fast.kind, self.width)
        rare, after = self.fresh("rare"), self.fresh("after")
        self.lines.append(f"  br i1 {self.any(mask)}, label %{rare}, label %{after}")
        self.lines.append(f"{rare}:")
        arguments = ", ".join(self.typed(v) for v in (mask, fast, *operands))
        slow = self.emit(fast.kind, f"call {self.type(fast.kind)} {helper}({arguments})")
        self.lines.append(f"  br label %{after}")
        self.lines.append(f"{after}:")
        before, self.block = self.block, after
        return self.emit(
            fast.kind,
            f"phi {self.type(fast.kind)} [ {fast.ref}, %{before} ], [ {slow.ref}, %{rare} ]",
        )

    def everywhere(self, libm: str, *operands: Value) -> Value:
        """``libm(operands)`` lane by lane: rare functions whose accuracy libm already has."""
        kind = operands[0].kind
        helper = self._need(libm, kind, self.width)
        mask = self.value(1, "i1")
        arguments = ", ".join(self.typed(v) for v in (mask, operands[0], *operands))
        return self.emit(kind, f"call {self.type(kind)} {helper}({arguments})")


def _lane_numbers(numbers: Iterable[int]) -> str:
    return "<" + ", ".join(f"i32 {n}" for n in numbers) + ">"


def lane_call_text(symbol: str, libm: str, kind: str, width: int, arity: int) -> list[str]:
    """A function (mask, otherwise, operands…) that calls libm in each lane of the mask.

    Never inlined: a kernel pays for this only where it happens.  Never optimised: it is all calls,
    and passes over it would take longer than those over the function that it serves.
    """
    vector, element = vector_type(kind, width), ELEMENT[kind]
    operands = [f"%x{i}" for i in range(arity)]
    head = ", ".join([f"{vector_type('i1', width)} %mask", f"{vector} %fast"])
    head += "".join(f", {vector} {name}" for name in operands)
    attributes = "noinline optnone cold nounwind"
    lines = [f"define internal {vector} {symbol}({head}) {attributes} {{", "entry:"]
    slots = {"%fast": "%out"} | {name: f"{name}.at" for name in operands}
    number = f"i{width}"
    for value, slot in slots.items():
        lines.append(f"  {slot} = alloca {vector}, align 64")
        lines.append(f"  store {vector} {value}, ptr {slot}, align 64")
    lines += [
        f"  %bits = bitcast {vector_type('i1', width)} %mask to {number}",
        f"  %word = {'zext' if width < 64 else 'bitcast'} {number} %bits to i64",
        "  br label %loop",
        "loop:",
        "  %lane = phi i64 [ 0, %entry ], [ %next, %latch ]",
        "  %shifted = lshr i64 %word, %lane",
        "  %bit = trunc i64 %shifted to i1",
        "  br i1 %bit, label %call, label %latch",
        "call:",
    ]
    lines += _one_lane(libm, kind, element, operands)
    lines += [
        "  br label %latch",
        "latch:",
        "  %next = add i64 %lane, 1",
        f"  %more = icmp ult i64 %next, {width}",
        "  br i1 %more, label %loop, label %exit",
        "exit:",
        f"  %result = load {vector}, ptr %out, align 64",
        f"  ret {vector} %result",
        "}",
    ]
    return lines


def _one_lane(libm: str, kind: str, element: str, operands: list[str]) -> list[str]:
    lines, arguments = [], []
    for name in operands:
        lines.append(f"  {name}.p = getelementptr {element}, ptr {name}.at, i64 %lane")
        lines.append(f"  {name}.e = load {element}, ptr {name}.p, align 4")
        if kind == "f32":
            lines.append(f"  {name}.d = fpext float {name}.e to double")
        arguments.append(f"double {name}.{'d' if kind == 'f32' else 'e'}")
    lines.append(f"  %y = call double @{libm}({', '.join(arguments)}) nobuiltin")
    if kind == "f32":
        lines.append("  %y32 = fptrunc double %y to float")
    lines.append(f"  %out.p = getelementptr {element}, ptr %out, i64 %lane")
    lines.append(f"  store {element} %y{'32' if kind == 'f32' else ''}, ptr %out.p, align 4")
    return lines
