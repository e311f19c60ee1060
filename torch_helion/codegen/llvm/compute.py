"""What one value is in LLVM: pointwise functions (a visible table), casts, constants, positions,
random numbers.

In: an operation and the emitter. Out: registers. Every row of `POINTWISE_ROWS` gets the emitter,
the operand dtype, the width of one vector (1: scalar) and operand texts, and returns a name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from torch_helion import exc
from torch_helion.codegen.llvm import bfloat, memory
from torch_helion.codegen.llvm.registers import Reg, Scope
from torch_helion.codegen.llvm.text import is_bits_only, is_signed, literal, register_type, splat
from torch_helion.ir.graph import Op, Value
from torch_helion.ir.ops import POINTWISE

if TYPE_CHECKING:
    from torch_helion.codegen.llvm.emit import PhaseEmitter

    Row = Callable[..., str]


def produce(em: PhaseEmitter, op: Op, scope: Scope) -> Reg:
    """The registers of `op`'s result in `scope`."""
    dtype = op.result.type.dtype
    if op.kind == "const":
        return em.constant(op.attrs["value"], dtype)
    if op.kind == "size":
        return Reg((em.sizes(op.attrs["expr"]),), dtype)
    if op.kind == "load":
        return memory.load(em, op, scope)
    if op.kind == "iota":
        return _iota(em, op.attrs["axis"], scope)
    if op.kind == "expand":
        return em.get(op.operands[0])
    if op.kind == "reduce":
        return _single_element(em, op)
    if op.kind == "cast":
        if dtype is torch.bfloat16 and op.operands[0].type.dtype is torch.float32:
            return bfloat.round_value(em, op.operands[0])
        return cast(em, em.get(op.operands[0]), dtype, scope)
    if op in em.short:
        return _short(em, op)
    operands = [em.get(o) for o in op.operands]
    vector = any(r.vector for r in operands)
    width = em.piece.width if vector and em.piece else 1
    columns = [em.widen(r, scope) if vector else r.names for r in operands]
    emit = {"pointwise": _pointwise, "bitcast": _bitcast, "rng": _rng}.get(op.kind)
    if emit is None:
        raise exc.CodegenError(f"llvm: no code for {op.kind}")
    return Reg(tuple(emit(em, op, width, row) for row in zip(*columns, strict=True)), dtype, vector)


def _single_element(em: PhaseEmitter, op: Op) -> Reg:
    """A reduction over tiles of one element is the element."""
    looped = {a.name for a in em.plan.loops}
    if looped & set(op.attrs["axes"]):
        raise exc.CodegenError(f"llvm: {op} is read outside of the loops that it was computed in")
    if op.attrs["fn"].startswith("arg"):
        return Reg((em.index[op.attrs["axes"][0]],), torch.int64)
    return em.get(op.operands[0])


def _iota(em: PhaseEmitter, axis: str, scope: Scope) -> Reg:
    if em.in_vector_scope(scope) and em.piece is not None and axis == em.plan.vector:
        return Reg(
            tuple(memory.lane_index(em, u) for u in range(em.piece.count)), torch.int64, True
        )
    return Reg((em.index[axis],), torch.int64)


def _pointwise(em: PhaseEmitter, op: Op, width: int, operands: tuple[str, ...]) -> str:
    fn = op.attrs["fn"]
    dtype = op.operands[-1].type.dtype
    if is_bits_only(dtype) and fn != "where":
        raise exc.CodegenError(f"llvm: {fn} of {dtype}: half types are computed in float32")
    return POINTWISE_ROWS[fn](em, dtype, width, *operands)


def _short(em: PhaseEmitter, op: Op) -> Reg:
    """An operation by the short function that `precision.py` found for it."""
    function, operand = em.short[op]
    reg = em.get(operand)
    width = em.piece.width if reg.vector and em.piece else 1
    names = tuple(em.call_math(function, reg.dtype, width, name) for name in reg.names)
    return Reg(names, torch.float32, reg.vector)


def check(em: PhaseEmitter, op: Op, scope: Scope) -> None:
    """An assertion: report its status where a lane that counts is false."""
    reg = em.get(op.operands[0])
    width = em.piece.width if reg.vector and em.piece else 1
    flags = register_type(torch.bool, width)
    for name in reg.names:
        bad = em.let(f"xor {flags} {name}, {number(True, torch.bool, width)}", "bad")
        if width > 1:
            if em.piece is not None and em.piece.mask is not None:
                bad = em.let(f"and {flags} {bad}, {em.piece.mask}")
            bad = em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (flags, bad))
        em.set_status(op.attrs["status"], bad)


# -- helpers for rows -----------------------------------------------------------------------------


def number(value: float | int | bool, dtype: torch.dtype, width: int) -> str:
    """A constant operand of the given width."""
    text = literal(value, dtype)
    return text if width == 1 else splat(text, register_type(dtype))


def intrinsic(em: PhaseEmitter, name: str, dtype: torch.dtype, width: int, *operands: str) -> str:
    """An overloaded LLVM intrinsic whose operands and result have one type."""
    type = register_type(dtype, width)
    element = {"float": "f32", "double": "f64"}.get(register_type(dtype), register_type(dtype))
    suffix = element if width == 1 else f"v{width}{element}"
    return em.call(
        type, f"llvm.{name}.{suffix}", *((type, o) for o in operands), hint=name.replace(".", "_")
    )


def binary(float_op: str, int_op: str) -> Row:
    def row(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
        op = float_op if dtype.is_floating_point else int_op
        return em.let(f"{op} {register_type(dtype, width)} {a}, {b}", op)

    return row


def compare(float_op: str, signed_op: str, unsigned_op: str) -> Row:
    def row(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
        op = (
            f"fcmp {float_op}"
            if dtype.is_floating_point
            else f"icmp {signed_op if is_signed(dtype) else unsigned_op}"
        )
        return em.let(f"{op} {register_type(dtype, width)} {a}, {b}", "is")

    return row


def via_intrinsic(name: str) -> Row:
    return lambda em, dtype, width, *operands: intrinsic(em, name, dtype, width, *operands)


def via_math(name: str) -> Row:
    return lambda em, dtype, width, *operands: em.call_math(name, dtype, width, *operands)


def select(em: PhaseEmitter, dtype: torch.dtype, width: int, condition: str, a: str, b: str) -> str:
    type = register_type(dtype, width)
    return em.let(
        f"select {register_type(torch.bool, width)} {condition}, {type} {a}, {type} {b}", "pick"
    )


# -- rows that are more than one instruction ------------------------------------------------------


def _extreme(name: str) -> Row:
    """minimum / maximum: NaN wins; bool is and / or."""

    def row(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
        if dtype.is_floating_point:
            return intrinsic(em, name, dtype, width, a, b)
        if dtype is torch.bool:
            return em.let(
                f"{'or' if name == 'maximum' else 'and'} {register_type(dtype, width)} {a}, {b}"
            )
        kind = ("s" if is_signed(dtype) else "u") + name[:3]
        return intrinsic(em, kind, dtype, width, a, b)

    return row


def _neg(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    type = register_type(dtype, width)
    return em.let(
        f"fneg {type} {a}"
        if dtype.is_floating_point
        else f"sub {type} {number(0, dtype, width)}, {a}"
    )


def _abs(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    if dtype.is_floating_point:
        return intrinsic(em, "fabs", dtype, width, a)
    if not is_signed(dtype):
        return a
    type = register_type(dtype, width)
    element = register_type(dtype)
    suffix = element if width == 1 else f"v{width}{element}"
    return em.call(type, f"llvm.abs.{suffix}", (type, a), ("i1", "false"))


def _sign(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    """-1, 0 or 1; a NaN or a zero of either sign gives 0, as in PyTorch."""
    if dtype is torch.bool:
        return a
    one, zero, minus = (number(v, dtype, width) for v in (1, 0, -1 if is_signed(dtype) else 0))
    positive = POINTWISE_ROWS["gt"](em, dtype, width, a, zero)
    out = select(em, dtype, width, positive, one, zero)
    if not is_signed(dtype):
        return out
    return select(em, dtype, width, POINTWISE_ROWS["lt"](em, dtype, width, a, zero), minus, out)


def _safe_divisor(em: PhaseEmitter, dtype: torch.dtype, width: int, b: str) -> str:
    """The divisor with zeros replaced by one; a zero in a lane that counts is reported."""
    type, flags = register_type(dtype, width), register_type(torch.bool, width)
    zero = em.let(f"icmp eq {type} {b}, {number(0, dtype, width)}", "zero")
    counted = zero
    if width > 1:
        if em.piece is not None and em.piece.mask is not None:
            counted = em.let(f"and {flags} {zero}, {em.piece.mask}")
        counted = em.call("i1", f"llvm.vector.reduce.or.v{width}i1", (flags, counted))
    em.set_status(2, counted)
    return select(em, dtype, width, zero, number(1, dtype, width), b)


def _truncdiv(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    return _quotient(em, dtype, width, a, _safe_divisor(em, dtype, width, b))


def _quotient(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    """a / b to zero for b != 0; min / -1 wraps instead of trapping."""
    type = register_type(dtype, width)
    if not is_signed(dtype):
        return em.let(f"udiv {type} {a}, {b}")
    is_minus = em.let(f"icmp eq {type} {b}, {number(-1, dtype, width)}")
    safe = select(em, dtype, width, is_minus, number(1, dtype, width), b)
    quotient = em.let(f"sdiv {type} {a}, {safe}")
    return select(em, dtype, width, is_minus, _neg(em, dtype, width, a), quotient)


def _int_remainders(
    em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str
) -> tuple[str, str, str]:
    """(safe divisor, truncated quotient, remainder with the sign of a)."""
    type = register_type(dtype, width)
    safe = _safe_divisor(em, dtype, width, b)
    quotient = _quotient(em, dtype, width, a, safe)
    product = em.let(f"mul {type} {quotient}, {safe}")
    return safe, quotient, em.let(f"sub {type} {a}, {product}")


def _needs_floor(em: PhaseEmitter, dtype: torch.dtype, width: int, rest: str, b: str) -> str:
    """Whether a truncated quotient is one above the floored one: rest != 0 and of the other sign
    than b.
    """
    type, flags = register_type(dtype, width), register_type(torch.bool, width)
    zero = number(0, dtype, width)
    other = em.let(f"icmp slt {type} {em.let(f'xor {type} {rest}, {b}')}, {zero}")
    return em.let(f"and {flags} {other}, {em.let(f'icmp ne {type} {rest}, {zero}')}")


def _floordiv(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    if dtype.is_floating_point:
        return _float_floordiv(em, dtype, width, a, b)
    safe, quotient, rest = _int_remainders(em, dtype, width, a, b)
    if not is_signed(dtype):
        return quotient
    down = _needs_floor(em, dtype, width, rest, safe)
    less = em.let(f"sub {register_type(dtype, width)} {quotient}, {number(1, dtype, width)}")
    return select(em, dtype, width, down, less, quotient)


def _float_floordiv(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    """ATen's div_floor_floating: from the exact remainder, so that (a // b) * b + a % b is a."""
    rows, type = POINTWISE_ROWS, register_type(dtype, width)

    def const(value: float) -> str:
        return number(value, dtype, width)

    rest = rows["fmod"](em, dtype, width, a, b)
    quotient = em.let(f"fdiv {type} {em.let(f'fsub {type} {a}, {rest}')}, {b}")
    flags = register_type(torch.bool, width)
    inexact = em.let(f"fcmp une {type} {rest}, {const(0.0)}")
    b_negative = em.let(f"fcmp olt {type} {b}, {const(0.0)}")
    rest_negative = em.let(f"fcmp olt {type} {rest}, {const(0.0)}")
    down = em.let(f"and {flags} {inexact}, {em.let(f'xor {flags} {b_negative}, {rest_negative}')}")
    quotient = select(
        em, dtype, width, down, em.let(f"fsub {type} {quotient}, {const(1.0)}"), quotient
    )
    floor = intrinsic(em, "floor", dtype, width, quotient)
    up = em.let(f"fcmp ogt {type} {em.let(f'fsub {type} {quotient}, {floor}')}, {const(0.5)}")
    rounded = select(em, dtype, width, up, em.let(f"fadd {type} {floor}, {const(1.0)}"), floor)
    plain = em.let(f"fdiv {type} {a}, {b}")
    signed_zero = intrinsic(em, "copysign", dtype, width, const(0.0), plain)
    is_zero = em.let(f"fcmp oeq {type} {quotient}, {const(0.0)}")
    rounded = select(em, dtype, width, is_zero, signed_zero, rounded)
    by_zero = em.let(f"fcmp oeq {type} {b}, {const(0.0)}")
    return select(em, dtype, width, by_zero, plain, rounded)


def _remainder(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    """The sign of the divisor, as Python's %."""
    type = register_type(dtype, width)
    if not dtype.is_floating_point:
        safe, _, rest = _int_remainders(em, dtype, width, a, b)
        if not is_signed(dtype):
            return rest
        down = _needs_floor(em, dtype, width, rest, safe)
        return select(em, dtype, width, down, em.let(f"add {type} {rest}, {safe}"), rest)
    flags = register_type(torch.bool, width)
    rest = POINTWISE_ROWS["fmod"](em, dtype, width, a, b)
    zero = number(0.0, dtype, width)
    inexact = em.let(f"fcmp une {type} {rest}, {zero}")
    b_negative = em.let(f"fcmp olt {type} {b}, {zero}")
    rest_negative = em.let(f"fcmp olt {type} {rest}, {zero}")
    wrong = em.let(f"and {flags} {inexact}, {em.let(f'xor {flags} {b_negative}, {rest_negative}')}")
    return select(em, dtype, width, wrong, em.let(f"fadd {type} {rest}, {b}"), rest)


def _fmod(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    if dtype.is_floating_point:
        return em.call_math("fmod", dtype, width, a, b)
    return _int_remainders(em, dtype, width, a, b)[2]


def _ipow(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    """Integer power by squaring, wrapping; a negative exponent gives 1, -1 or 0, as in ATen."""
    type = register_type(dtype, width)

    def const(value: int) -> str:
        return number(value, dtype, width)

    result, base, exponent = const(1), a, b
    bits = dtype.itemsize * 8
    for bit in range(bits):  # powers beyond 2**63 wrap, so every bit of the exponent counts
        odd = em.let(f"icmp ne {type} {em.let(f'and {type} {exponent}, {const(1)}')}, {const(0)}")
        result = select(em, dtype, width, odd, em.let(f"mul {type} {result}, {base}"), result)
        if bit + 1 < bits:
            base = em.let(f"mul {type} {base}, {base}")
            exponent = em.let(f"lshr {type} {exponent}, {const(1)}")
    if not is_signed(dtype):
        return result
    negative = em.let(f"icmp slt {type} {b}, {const(0)}")
    is_one = em.let(f"icmp eq {type} {a}, {const(1)}")
    is_minus = em.let(f"icmp eq {type} {a}, {const(-1)}")
    odd = em.let(f"icmp ne {type} {em.let(f'and {type} {b}, {const(1)}')}, {const(0)}")
    sign = select(em, dtype, width, odd, const(-1), const(1))
    special = select(
        em, dtype, width, is_one, const(1), select(em, dtype, width, is_minus, sign, const(0))
    )
    return select(em, dtype, width, negative, special, result)


def _rsqrt(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    root = intrinsic(em, "sqrt", dtype, width, a)
    return em.let(
        f"fdiv {register_type(dtype, width)} {number(1.0, dtype, width)}, {root}", "rsqrt"
    )


def _not(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    ones = number(True, torch.bool, width) if dtype is torch.bool else number(-1, dtype, width)
    return em.let(f"xor {register_type(dtype, width)} {a}, {ones}", "not")


def _isnan(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    return em.let(
        f"fcmp uno {register_type(dtype, width)} {a}, {number(0.0, dtype, width)}", "isnan"
    )


def _isinf(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    return POINTWISE_ROWS["eq"](
        em, dtype, width, _abs(em, dtype, width, a), number(float("inf"), dtype, width)
    )


def _isfinite(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    return POINTWISE_ROWS["lt"](
        em, dtype, width, _abs(em, dtype, width, a), number(float("inf"), dtype, width)
    )


def _signbit(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str) -> str:
    type = register_type(dtype, width)
    if not is_signed(dtype):
        return number(False, torch.bool, width)
    if not dtype.is_floating_point:
        return em.let(f"icmp slt {type} {a}, {number(0, dtype, width)}")
    bits_dtype = torch.int32 if dtype is torch.float32 else torch.int64
    bits = em.let(f"bitcast {type} {a} to {register_type(bits_dtype, width)}")
    return em.let(
        f"icmp slt {register_type(bits_dtype, width)} {bits}, {number(0, bits_dtype, width)}"
    )


def _shift(name: str) -> Row:
    """Shift counts outside of [0, bits) give ATen's results: 0, or the sign for an arithmetic right
    shift.
    """

    def row(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
        type = register_type(dtype, width)
        bits = dtype.itemsize * 8
        wide = em.let(f"icmp uge {type} {b}, {number(bits, dtype, width)}")
        if name == "shl":
            count = select(em, dtype, width, wide, number(0, dtype, width), b)
            return select(
                em, dtype, width, wide, number(0, dtype, width), em.let(f"shl {type} {a}, {count}")
            )
        count = select(em, dtype, width, wide, number(bits - 1, dtype, width), b)
        if is_signed(dtype):
            return em.let(f"ashr {type} {a}, {count}")
        return select(
            em, dtype, width, wide, number(0, dtype, width), em.let(f"lshr {type} {a}, {count}")
        )

    return row


def _nextafter(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str) -> str:
    """One step of the bits toward b."""
    bits_dtype = torch.int32 if dtype is torch.float32 else torch.int64
    itype, type = register_type(bits_dtype, width), register_type(dtype, width)
    rows = POINTWISE_ROWS
    bits = em.let(f"bitcast {type} {a} to {itype}")
    zero, one = number(0, bits_dtype, width), number(1, bits_dtype, width)
    toward_up = em.let(f"fcmp olt {type} {a}, {b}")
    negative = em.let(f"icmp slt {itype} {bits}, {zero}")
    grow = em.let(f"xor {register_type(torch.bool, width)} {toward_up}, {negative}")
    step = select(em, bits_dtype, width, grow, one, number(-1, bits_dtype, width))
    moved = em.let(f"bitcast {itype} {em.let(f'add {itype} {bits}, {step}')} to {type}")
    tiny = em.let(f"bitcast {itype} {one} to {type}")
    from_zero = intrinsic(em, "copysign", dtype, width, tiny, b)
    moved = select(
        em,
        dtype,
        width,
        rows["eq"](em, dtype, width, a, number(0.0, dtype, width)),
        from_zero,
        moved,
    )
    moved = select(em, dtype, width, rows["eq"](em, dtype, width, a, b), b, moved)
    nan = em.let(f"fcmp uno {type} {a}, {b}")
    return select(em, dtype, width, nan, em.let(f"fadd {type} {a}, {b}"), moved)


def _where(em: PhaseEmitter, dtype: torch.dtype, width: int, condition: str, a: str, b: str) -> str:
    return select(em, dtype, width, condition, a, b)


def _fma(em: PhaseEmitter, dtype: torch.dtype, width: int, a: str, b: str, c: str) -> str:
    return intrinsic(em, "fma", dtype, width, a, b, c)


_MATH = """
    exp exp2 expm1 log log2 log10 log1p sigmoid sin cos tan tanh sinh cosh erf asin acos atan
    asinh acosh atanh erfc erfinv lgamma digamma i0 i0e i1 i1e pow atan2 hypot
"""

POINTWISE_ROWS: dict[str, Row] = {
    "add": binary("fadd", "add"),
    "sub": binary("fsub", "sub"),
    "mul": binary("fmul", "mul"),
    "div": binary("fdiv", "sdiv"),
    "minimum": _extreme("minimum"),
    "maximum": _extreme("maximum"),
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "truncdiv": _truncdiv,
    "floordiv": _floordiv,
    "remainder": _remainder,
    "fmod": _fmod,
    "ipow": _ipow,
    "sqrt": via_intrinsic("sqrt"),
    "rsqrt": _rsqrt,
    "floor": via_intrinsic("floor"),
    "ceil": via_intrinsic("ceil"),
    "trunc": via_intrinsic("trunc"),
    "round": via_intrinsic("roundeven"),
    "copysign": via_intrinsic("copysign"),
    "nextafter": _nextafter,
    "fma": _fma,
    "isnan": _isnan,
    "isinf": _isinf,
    "isfinite": _isfinite,
    "signbit": _signbit,
    "eq": compare("oeq", "eq", "eq"),
    "ne": compare("une", "ne", "ne"),
    "lt": compare("olt", "slt", "ult"),
    "le": compare("ole", "sle", "ule"),
    "gt": compare("ogt", "sgt", "ugt"),
    "ge": compare("oge", "sge", "uge"),
    "and": binary("and", "and"),
    "or": binary("or", "or"),
    "xor": binary("xor", "xor"),
    "not": _not,
    "shl": _shift("shl"),
    "shr": _shift("shr"),
    "where": _where,
    **{name: via_math(name) for name in _MATH.split()},
}

assert set(POINTWISE_ROWS) == set(POINTWISE), set(POINTWISE) ^ set(POINTWISE_ROWS)


# -- casts ----------------------------------------------------------------------------------------


def cast(em: PhaseEmitter, reg: Reg, dtype: torch.dtype, scope: Scope) -> Reg:
    """PyTorch's conversion of a register to `dtype`."""
    width = em.piece.width if reg.vector and em.piece else 1
    return Reg(
        tuple(convert(em, name, reg.dtype, dtype, width) for name in reg.names), dtype, reg.vector
    )


def convert(
    em: PhaseEmitter, name: str, source: torch.dtype, target: torch.dtype, width: int
) -> str:
    if source == target:
        return name
    if is_bits_only(source):
        return convert(em, _from_bits(em, name, source, width), torch.float32, target, width)
    if is_bits_only(target):
        if source is torch.float64 or not source.is_floating_point:
            name = convert(em, name, source, torch.float32, width)  # PyTorch rounds twice, too
        return _to_bits(em, name, target, width)
    if target is torch.bool:
        zero = number(0, source, width)
        different = "fcmp une" if source.is_floating_point else "icmp ne"
        return em.let(
            f"{different} {register_type(source, width)} {name}, {zero}",
            "b",
        )
    a, b = register_type(source, width), register_type(target, width)
    if source.is_floating_point and target.is_floating_point:
        return em.let(f"{'fpext' if target is torch.float64 else 'fptrunc'} {a} {name} to {b}", "f")
    if source.is_floating_point:
        return _float_to_int(em, name, source, target, width)
    if target.is_floating_point:
        op = "sitofp" if is_signed(source) else "uitofp"
        return em.let(f"{op} {a} {name} to {b}", "f")
    if source is torch.bool or target.itemsize > source.itemsize:
        op = "sext" if is_signed(source) else "zext"
        return em.let(f"{op} {a} {name} to {b}", "i")
    return name if target.itemsize == source.itemsize else em.let(f"trunc {a} {name} to {b}", "i")


def load_array(em: PhaseEmitter, value: Value, scope: Scope) -> Reg:
    """A finished array reduction or kept value, read at the current position."""
    op = em.plan.producer[value]
    part, held = memory.array_parts(em.plan, op)[-1]
    names = memory.read_part(em, value, part, held, scope)
    return cast(
        em,
        Reg(names, held, em.in_vector_scope(scope) and em.piece is not None),
        value.type.dtype,
        scope,
    )


def _float_to_int(
    em: PhaseEmitter, name: str, source: torch.dtype, target: torch.dtype, width: int
) -> str:
    """Truncation. Out of range is undefined in C; like x86's cvtt for int64 and its low bits for
    narrower types.
    """
    if target is torch.uint64:
        return _float_to_uint64(em, name, source, width)
    a = register_type(source, width)
    wide = torch.int64 if target.itemsize > 4 or target is torch.uint32 else torch.int32
    element = {torch.float32: "f32", torch.float64: "f64"}[source]
    ielement = "i64" if wide is torch.int64 else "i32"
    out = register_type(wide, width)
    shape = "" if width == 1 else f"v{width}"
    low = float(torch.iinfo(wide).min)
    raw = em.call(out, f"llvm.fptosi.sat.{shape}{ielement}.{shape}{element}", (a, name), hint="i")
    outside = em.let(
        f"fcmp uge {a} {em.call(a, f'llvm.fabs.{shape}{element}', (a, name))}, "
        f"{number(-low, source, width)}"
    )
    raw = select(em, wide, width, outside, number(torch.iinfo(wide).min, wide, width), raw)
    return convert(em, raw, wide, target, width)


def _float_to_uint64(em: PhaseEmitter, name: str, source: torch.dtype, width: int) -> str:
    """As an int64, numbers from 2^63 on after 2^63 is taken off."""
    a, out = register_type(source, width), register_type(torch.int64, width)
    half = number(2.0**63, source, width)
    high = em.let(f"fcmp oge {a} {name}, {half}", "high")
    low = select(em, source, width, high, em.let(f"fsub {a} {name}, {half}"), name)
    raw = _float_to_int(em, low, source, torch.int64, width)
    top = number(torch.iinfo(torch.int64).min, torch.int64, width)
    return select(em, torch.int64, width, high, em.let(f"xor {out} {raw}, {top}"), raw)


def _from_bits(em: PhaseEmitter, name: str, source: torch.dtype, width: int) -> str:
    """A half or 8-bit float, given as its bits, to float32 (exact)."""
    if source is torch.bfloat16:
        itype = register_type(torch.int32, width)
        wide = em.let(f"zext {register_type(source, width)} {name} to {itype}")
        shifted = em.let(f"shl {itype} {wide}, {number(16, torch.int32, width)}")
        return em.let(f"bitcast {itype} {shifted} to {register_type(torch.float32, width)}")
    return _call_half(
        em,
        f"{HALF_NAMES[source]}_to_f32",
        register_type(torch.float32, width),
        register_type(source, width),
        name,
        width,
    )


def _to_bits(em: PhaseEmitter, name: str, target: torch.dtype, width: int) -> str:
    """float32 rounded to a narrower float, as its bits."""
    return _call_half(
        em,
        f"f32_to_{HALF_NAMES[target]}",
        register_type(target, width),
        register_type(torch.float32, width),
        name,
        width,
    )


HALF_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float8_e4m3fn: "e4m3fn",
    torch.float8_e5m2: "e5m2",
}


def _call_half(
    em: PhaseEmitter, function: str, result: str, argument: str, name: str, width: int
) -> str:
    symbol = em.math.use(function, "f32", width)
    return em.let(f"call {result} {symbol}({argument} {name})", "h")


def _bitcast(em: PhaseEmitter, op: Op, width: int, operands: tuple[str, ...]) -> str:
    source, target = op.operands[0].type.dtype, op.attrs["dtype"]
    a, b = register_type(source, width), register_type(target, width)
    if torch.bool in (source, target):
        raise exc.CodegenError("llvm: bitcast of bool")
    return operands[0] if a == b else em.let(f"bitcast {a} {operands[0]} to {b}", "bits")


def _rng(em: PhaseEmitter, op: Op, width: int, operands: tuple[str, ...]) -> str:
    """Philox keyed by (seed, index); see ir/philox.py for the reference."""
    fn, dtype = op.attrs["fn"], op.result.type.dtype
    i64 = register_type(torch.int64, width)
    symbol = em.math.use(f"{fn}{op.attrs.get('word') or ''}", "f32", width)
    result = i64 if fn == "randint" else register_type(torch.float32, width)
    arguments = ", ".join(f"{i64} {o}" for o in operands)
    name = em.let(f"call {result} {symbol}({arguments})", fn)
    return convert(em, name, torch.int64 if fn == "randint" else torch.float32, dtype, width)
