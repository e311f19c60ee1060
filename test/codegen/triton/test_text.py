"""What the triton target prints: one kernel for each family."""
# ruff: noqa: E501

from __future__ import annotations

from expecttest import assert_expected_inline

from test.codegen.triton.families import FAMILIES
from torch_helion import compiler
from torch_helion.codegen.triton.target import TRITON


def text_of(name: str, longest: int = 60) -> str:
    family = FAMILIES[name]
    text = compiler.compile_kernel(family.kernel, {}, family.config, TRITON)
    compile(text, name, "exec")
    assert text.count("\n") <= longest
    return text.replace('"""', "'''")


def test_pointwise() -> None:
    assert_expected_inline(
        text_of("pointwise"),
        """\
# torch_helion kernel {"name": "scaled_add", "tensors": ["bfloat16", "bfloat16", "bfloat16"], "ints": 3, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def scaled_add(x, y, out, m, n, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    n = tl.cast(n, tl.int64)
    scale = tl.cast(scale, tl.int64)
    m = tl.cast(m, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    pid_n = pid % tl.cdiv(n, 32)
    pid_m = pid // tl.cdiv(n, 32)
    begin_m = pid_m * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    begin_n = pid_n * BLOCK_N
    n_1 = begin_n + tl.arange(0, BLOCK_N)
    m_inside = m_1 < m
    n_inside = n_1 < n
    n_2 = scale.to(tl.float64, bitcast=True)
    n_3 = n_2.to(tl.float32)
    x_tile = tl.load(x + m_1[:, None] * n + n_1[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0.0)
    x_1 = x_tile.to(tl.float32)
    mul = x_1 * n_3
    y_tile = tl.load(y + n_1, mask=n_inside, other=0.0)
    y_1 = y_tile.to(tl.float32)
    add = mul + y_1[None, :]
    maximum = tl.maximum(add, 0.0, propagate_nan=tl.PropagateNan.ALL)
    maximum_1 = maximum.to(tl.bfloat16)
    tl.store(out + m_1[:, None] * n + n_1[None, :], maximum_1, mask=m_inside[:, None] & n_inside[None, :])


def launch(x, y, out, m, n, scale):
    scaled_add[(triton.cdiv(m, 4) * triton.cdiv(n, 32),)](x, y, out, m, n, scale, BLOCK_M=4, BLOCK_N=32)
""",
    )


def test_softmax() -> None:
    assert_expected_inline(
        text_of("softmax"),
        """\
# torch_helion kernel {"name": "softmax", "tensors": ["float32", "float32"], "ints": 2, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _maximum(a, b):
    '''NaN wins.'''
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def softmax(x, out, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    n_1 = tl.arange(0, BLOCK_N).to(tl.int64)
    n = tl.cast(n, tl.int64)
    m = tl.cast(m, tl.int64)
    n_inside = n_1 < n
    pid = tl.program_id(0).to(tl.int64)
    begin_m = pid * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m_1 < m
    x_tile = tl.load(x + m_1[:, None] * n + n_1[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0.0)
    x_1 = tl.where(n_inside[None, :], x_tile, float("-inf"))
    row_max = tl.reduce(x_1, 1, _maximum)
    sub = x_tile - row_max[:, None]
    exp = tl.exp(sub)
    exp_1 = tl.where(n_inside[None, :], exp, 0.0)
    row_sum = tl.sum(exp_1, axis=1)
    div = tl.div_rn(exp, row_sum[:, None])
    tl.store(out + m_1[:, None] * n + n_1[None, :], div, mask=m_inside[:, None] & n_inside[None, :])


def launch(x, out, m, n):
    softmax[(triton.cdiv(m, 2),)](x, out, m, n, BLOCK_M=2, BLOCK_N=max(1, triton.next_power_of_2(n)))
""",
    )


def test_softmax_looped() -> None:
    assert_expected_inline(
        text_of("softmax_looped"),
        """\
# torch_helion kernel {"name": "softmax", "tensors": ["float32", "float32"], "ints": 2, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _maximum(a, b):
    '''NaN wins.'''
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def softmax(x, out, n, BLOCK_N_0: tl.constexpr, BLOCK_N_1: tl.constexpr, BLOCK_N_2: tl.constexpr):
    n = tl.cast(n, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    row_max = tl.full([], float("-inf"), tl.float32)
    for n_0_turn in tl.range(0, n, BLOCK_N_0):
        begin_n_0 = tl.cast(n_0_turn, tl.int64)
        n_0 = begin_n_0 + tl.arange(0, BLOCK_N_0)
        n_0_inside = n_0 < n
        x_tile = tl.load(x + pid * n + n_0, mask=n_0_inside, other=0.0)
        x_1 = tl.where(n_0_inside, x_tile, float("-inf"))
        row_max_1 = tl.reduce(x_1, 0, _maximum)
        row_max_2 = tl.maximum(row_max, row_max_1, propagate_nan=tl.PropagateNan.ALL)
        row_max = row_max_2
    row_sum = tl.full([], 0.0, tl.float32)
    for n_1_turn in tl.range(0, n, BLOCK_N_1):
        begin_n_1 = tl.cast(n_1_turn, tl.int64)
        n_1 = begin_n_1 + tl.arange(0, BLOCK_N_1)
        n_1_inside = n_1 < n
        x_tile_1 = tl.load(x + pid * n + n_1, mask=n_1_inside, other=0.0)
        sub = x_tile_1 - row_max
        exp = tl.exp(sub)
        exp_1 = tl.where(n_1_inside, exp, 0.0)
        row_sum_1 = tl.sum(exp_1, axis=0)
        row_sum_2 = row_sum + row_sum_1
        row_sum = row_sum_2
    for n_2_turn in tl.range(0, n, BLOCK_N_2):
        begin_n_2 = tl.cast(n_2_turn, tl.int64)
        n_2 = begin_n_2 + tl.arange(0, BLOCK_N_2)
        n_2_inside = n_2 < n
        x_tile_2 = tl.load(x + pid * n + n_2, mask=n_2_inside, other=0.0)
        sub_1 = x_tile_2 - row_max
        exp_2 = tl.exp(sub_1)
        div = tl.div_rn(exp_2, row_sum)
        tl.store(out + pid * n + n_2, div, mask=n_2_inside)


def launch(x, out, m, n):
    softmax[(m,)](x, out, n, BLOCK_N_0=32, BLOCK_N_1=32, BLOCK_N_2=32)
""",
    )


def test_matmul() -> None:
    assert_expected_inline(
        text_of("matmul"),
        """\
# torch_helion kernel {"name": "matmul", "tensors": ["float32", "float32", "float32", "float32"], "ints": 3, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def matmul(x, y, out, bias, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    n = tl.cast(n, tl.int64)
    k = tl.cast(k, tl.int64)
    m = tl.cast(m, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    pid_n = pid % tl.cdiv(n, 32)
    pid_m = pid // tl.cdiv(n, 32)
    begin_n = pid_n * BLOCK_N
    n_1 = begin_n + tl.arange(0, BLOCK_N)
    n_inside = n_1 < n
    begin_m = pid_m * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m_1 < m
    acc = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for k_turn in tl.range(0, k, BLOCK_K):
        begin_k = tl.cast(k_turn, tl.int64)
        k_1 = begin_k + tl.arange(0, BLOCK_K)
        k_inside = k_1 < k
        y_tile = tl.load(y + k_1[None, :] * n + n_1[:, None], mask=n_inside[:, None] & k_inside[None, :], other=0.0)
        x_tile = tl.load(x + m_1[:, None] * k + k_1[None, :], mask=m_inside[:, None] & k_inside[None, :], other=0.0)
        dot = tl.dot(x_tile, tl.permute(y_tile, [1, 0]), acc, input_precision="ieee")
        acc = dot
    bias_tile = tl.load(bias + n_1, mask=n_inside, other=0.0)
    add = acc + bias_tile[None, :]
    mul = add * 1.702
    sigmoid = tl.sigmoid(mul)
    mul_1 = add * sigmoid
    tl.store(out + m_1[:, None] * n + n_1[None, :], mul_1, mask=m_inside[:, None] & n_inside[None, :])


def launch(x, y, out, bias, m, n, k):
    matmul[(triton.cdiv(m, 16) * triton.cdiv(n, 32),)](x, y, out, bias, m, n, k, BLOCK_M=16, BLOCK_N=32, BLOCK_K=16)
""",
    )


def test_attention() -> None:
    assert_expected_inline(
        text_of("attention"),
        """\
# torch_helion kernel {"name": "attention", "tensors": ["float16", "float16", "float16", "float16"], "ints": 0, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _maximum(a, b):
    '''NaN wins.'''
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def attention(q, k, v, out, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    e = tl.arange(0, BLOCK_E).to(tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    pid_m = pid % 3
    pid_h = pid // 3
    begin_m = pid_m * BLOCK_M
    m = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m < 37
    q_tile = tl.load(q + pid_h * 592 + m[:, None] * 16 + d[None, :], mask=m_inside[:, None], other=0.0)
    acc = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc_1 = tl.full([BLOCK_M], 0.0, tl.float32)
    acc_2 = tl.full([BLOCK_M, BLOCK_E], 0.0, tl.float32)
    for n_turn in tl.range(0, 37, BLOCK_N):
        begin_n = tl.cast(n_turn, tl.int64)
        n = begin_n + tl.arange(0, BLOCK_N)
        n_inside = n < 37
        k_tile = tl.load(k + pid_h * 592 + n[:, None] * 16 + d[None, :], mask=n_inside[:, None], other=0.0)
        dot = tl.dot(q_tile, tl.permute(k_tile, [1, 0]))
        mul = dot * 0.25
        ge = m[:, None] >= n[None, :]
        where = tl.where(ge, mul, float("-inf"))
        where_1 = tl.where(n_inside[None, :], where, float("-inf"))
        max_1 = tl.reduce(where_1, 1, _maximum)
        maximum = tl.maximum(acc, max_1, propagate_nan=tl.PropagateNan.ALL)
        sub = where - maximum[:, None]
        exp = tl.exp(sub)
        sub_1 = acc - maximum
        exp_1 = tl.exp(sub_1)
        mul_1 = acc_1 * exp_1
        exp_2 = tl.where(n_inside[None, :], exp, 0.0)
        sum = tl.sum(exp_2, axis=1)
        add = mul_1 + sum
        mul_2 = acc_2 * exp_1[:, None]
        v_tile = tl.load(v + pid_h * 592 + n[:, None] * 16 + e[None, :], mask=n_inside[:, None], other=0.0)
        exp_3 = exp.to(tl.float16)
        exp_4 = tl.where(n_inside[None, :], exp_3, tl.full([], 0.0, tl.float32).to(tl.float16))
        dot_1 = tl.dot(exp_4, v_tile, mul_2)
        acc = maximum
        acc_1 = add
        acc_2 = dot_1
    div = tl.div_rn(acc_2, acc_1[:, None])
    div_1 = div.to(tl.float16)
    tl.store(out + pid_h * 592 + m[:, None] * 16 + e[None, :], div_1, mask=m_inside[:, None])


def launch(q, k, v, out):
    attention[(6,)](q, k, v, out, BLOCK_M=16, BLOCK_D=16, BLOCK_E=16, BLOCK_N=16)
""",
    )


def test_cross_entropy() -> None:
    assert_expected_inline(
        text_of("cross_entropy"),
        """\
# torch_helion kernel {"name": "cross_entropy", "tensors": ["float32", "int64", "float32"], "ints": 0, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _maximum(a, b):
    '''NaN wins.'''
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def cross_entropy(logits, labels, out, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    begin_m = pid * BLOCK_M
    m = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m < 13
    acc = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc_1 = tl.full([BLOCK_M], 0.0, tl.float32)
    for n_turn in tl.range(0, 101, BLOCK_N):
        begin_n = tl.cast(n_turn, tl.int64)
        n = begin_n + tl.arange(0, BLOCK_N)
        n_inside = n < 101
        logits_tile = tl.load(logits + m[:, None] * 101 + n[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0.0)
        logits_1 = tl.where(n_inside[None, :], logits_tile, float("-inf"))
        max_1 = tl.reduce(logits_1, 1, _maximum)
        maximum = tl.maximum(acc, max_1, propagate_nan=tl.PropagateNan.ALL)
        sub = acc - maximum
        exp = tl.exp(sub)
        sub_1 = logits_tile - maximum[:, None]
        exp_1 = tl.exp(sub_1)
        exp_2 = tl.where(n_inside[None, :], exp_1, 0.0)
        sum = tl.sum(exp_2, axis=1)
        mul = acc_1 * exp
        add = mul + sum
        acc = maximum
        acc_1 = add
    labels_tile = tl.load(labels + m, mask=m_inside, other=0)
    valid = (labels_tile >= 0) & (labels_tile < 101)
    tl.device_assert(valid, "index out of range for dimension 1 of logits", mask=m_inside)
    logits_tile_1 = tl.load(logits + m * 101 + labels_tile, mask=m_inside & valid, other=0.0)
    log = tl.log(acc_1)
    add_1 = log + acc
    sub_2 = add_1 - logits_tile_1
    tl.store(out + m, sub_2, mask=m_inside)


def launch(logits, labels, out):
    cross_entropy[(4,)](logits, labels, out, BLOCK_M=4, BLOCK_N=32)
""",
    )


def test_histogram() -> None:
    assert_expected_inline(
        text_of("histogram"),
        """\
# torch_helion kernel {"name": "histogram", "tensors": ["int64", "float32", "int32", "float32", "float32"], "ints": 1, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _atomic_max(pointer, value, bits, mask):
    '''NaN wins: the one of these bits is beyond all numbers; whoever finds a NaN puts it back.'''
    nan = bits.to(value.dtype, bitcast=True)
    old = tl.atomic_max(pointer, tl.where(value != value, nan, value), mask=mask)
    words = pointer.to(tl.pointer_type(bits.dtype), bitcast=True)
    tl.atomic_xchg(words, bits, mask=mask & (old != old))
    return old


@triton.jit
def _atomic_min(pointer, value, bits, mask):
    '''NaN wins: the one of these bits is beyond all numbers; whoever finds a NaN puts it back.'''
    nan = bits.to(value.dtype, bitcast=True)
    old = tl.atomic_min(pointer, tl.where(value != value, nan, value), mask=mask)
    words = pointer.to(tl.pointer_type(bits.dtype), bitcast=True)
    tl.atomic_xchg(words, bits, mask=mask & (old != old))
    return old


@triton.jit
def histogram(bins, x, counts, top, low, n, BLOCK_N: tl.constexpr):
    n = tl.cast(n, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    begin_n = pid * BLOCK_N
    n_1 = begin_n + tl.arange(0, BLOCK_N)
    n_inside = n_1 < n
    bins_tile = tl.load(bins + n_1, mask=n_inside, other=0)
    x_tile = tl.load(x + n_1, mask=n_inside, other=0.0)
    valid = (bins_tile >= 0) & (bins_tile < 8)
    tl.device_assert(valid, "index out of range for dimension 0 of counts", mask=n_inside)
    tl.atomic_add(counts + bins_tile, tl.full([BLOCK_N], 1, tl.int32), mask=n_inside & valid)
    _atomic_max(top + bins_tile, x_tile, tl.full([], 2147483647, tl.int32), n_inside)
    _atomic_min(low + bins_tile, x_tile, tl.full([], -1, tl.int32), n_inside)


def launch(bins, x, counts, top, low, n):
    histogram[(triton.cdiv(n, 32),)](bins, x, counts, top, low, n, BLOCK_N=32)
""",
    )


def test_dropout() -> None:
    assert_expected_inline(
        text_of("dropout"),
        """\
# torch_helion kernel {"name": "dropout", "tensors": ["float32", "float32"], "ints": 3, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _philox(seed, index):
    '''The four words of Philox4x32-10, key = seed, counter = index.'''
    low = index.to(tl.uint32)
    high = (index >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, low * 0, low * 0)


@triton.jit
def _uniform(word):
    '''[0, 1) by the top 24 bits.'''
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def dropout(x, out, m, n, seed, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    n = tl.cast(n, tl.int64)
    seed = tl.cast(seed, tl.int64)
    m = tl.cast(m, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    pid_n = pid % tl.cdiv(n, 32)
    pid_m = pid // tl.cdiv(n, 32)
    begin_m = pid_m * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    begin_n = pid_n * BLOCK_N
    n_1 = begin_n + tl.arange(0, BLOCK_N)
    m_inside = m_1 < m
    n_inside = n_1 < n
    mul = m_1 * n
    add = mul[:, None] + n_1[None, :]
    word0, word1, word2, word3 = _philox(seed, add)
    rand = _uniform(word2)
    lt = rand < 0.75
    x_tile = tl.load(x + m_1[:, None] * n + n_1[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0.0)
    div = tl.div_rn(x_tile, 0.75)
    where = tl.where(lt, div, 0.0)
    tl.store(out + m_1[:, None] * n + n_1[None, :], where, mask=m_inside[:, None] & n_inside[None, :])


def launch(x, out, m, n, seed):
    dropout[(triton.cdiv(m, 2) * triton.cdiv(n, 32),)](x, out, m, n, seed, BLOCK_M=2, BLOCK_N=32)
""",
    )


def test_control() -> None:
    assert_expected_inline(
        text_of("control"),
        """\
# torch_helion kernel {"name": "control", "tensors": ["float32", "int64", "float32"], "ints": 1, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def control(x, limits, out, m, BLOCK_M: tl.constexpr):
    m = tl.cast(m, tl.int64)
    pid = tl.program_id(0).to(tl.int64)
    begin_m = pid * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m_1 < m
    limits_tile = tl.load(limits)
    last = limits_tile
    acc = tl.full([BLOCK_M], 0.0, tl.float32)
    for i_turn in tl.range(0, last):
        i = tl.cast(i_turn, tl.int64)
        x_tile = tl.load(x + m_1 * 4 + i, mask=m_inside, other=0.0)
        add = acc + x_tile
        acc = add
    limits_tile_1 = tl.load(limits + 1)
    acc_1 = tl.full([], 0, tl.int64)
    acc_2 = acc
    lt = acc_1 < limits_tile_1
    going = lt
    while going:
        mul = acc_2 * 2.0
        add_1 = acc_1 + 1
        acc_1 = add_1
        acc_2 = mul
        lt_1 = acc_1 < limits_tile_1
        going = lt_1
    gt = limits_tile_1 > 1
    if gt:
        neg_1 = acc_2 * -1.0
        neg = neg_1
    else:
        neg = tl.full([BLOCK_M], 7.0, tl.float32)
    tl.store(out + m_1, neg, mask=m_inside)


def launch(x, limits, out, m):
    control[(triton.cdiv(m, 4),)](x, limits, out, m, BLOCK_M=4)
""",
    )


def test_scans() -> None:
    assert_expected_inline(
        text_of("scans"),
        """\
# torch_helion kernel {"name": "scans", "tensors": ["float32", "int64", "float32", "float32", "float32", "float32"], "ints": 2, "phases": 1, "format": 1}
import triton
import triton.language as tl


@triton.jit
def _maximum(a, b):
    '''NaN wins.'''
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def join_flags_x(flags_l, x_l, left_is, flags_r, x_r, right_is):
    ne = flags_r != 0
    or_1 = flags_l | flags_r
    add = x_l + x_r
    where = tl.where(ne, x_r, add)
    return tl.where(right_is != 0, tl.where(left_is != 0, or_1, flags_r), flags_l), tl.where(right_is != 0, tl.where(left_is != 0, where, x_r), x_l), left_is | right_is


@triton.jit
def scans(x, flags, out0, out1, out2, out3, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    n_1 = tl.arange(0, BLOCK_N).to(tl.int64)
    n = tl.cast(n, tl.int64)
    m = tl.cast(m, tl.int64)
    n_inside = n_1 < n
    pid = tl.program_id(0).to(tl.int64)
    begin_m = pid * BLOCK_M
    m_1 = begin_m + tl.arange(0, BLOCK_M)
    m_inside = m_1 < m
    x_tile = tl.load(x + m_1[:, None] * n + n_1[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0.0)
    flags_tile = tl.load(flags + m_1[:, None] * n + n_1[None, :], mask=m_inside[:, None] & n_inside[None, :], other=0)
    cumsum = tl.cumsum(x_tile, 1)
    cumsum_1 = tl.cumsum(x_tile, 1)
    lane = tl.arange(0, BLOCK_N)
    before = tl.maximum(lane - 1, 0)
    exists = lane > 0
    cumsum_2 = tl.where(exists[None, :], tl.gather(cumsum_1, tl.broadcast_to(before[None, :], [BLOCK_M, BLOCK_N]), 1), tl.full([], 0.0, tl.float32))
    x_1 = tl.where(n_inside[None, :], x_tile, float("-inf"))
    cummax = tl.associative_scan(x_1, 1, _maximum, reverse=True)
    inside = n_inside.to(tl.int32)
    flags_1, x_2, any_inside = tl.associative_scan((flags_tile, x_tile, tl.broadcast_to(inside[None, :], [BLOCK_M, BLOCK_N])), 1, join_flags_x, reverse=True)
    tl.store(out0 + m_1[:, None] * n + n_1[None, :], cumsum, mask=m_inside[:, None] & n_inside[None, :])
    tl.store(out1 + m_1[:, None] * n + n_1[None, :], cumsum_2, mask=m_inside[:, None] & n_inside[None, :])
    tl.store(out2 + m_1[:, None] * n + n_1[None, :], cummax, mask=m_inside[:, None] & n_inside[None, :])
    tl.store(out3 + m_1[:, None] * n + n_1[None, :], x_2, mask=m_inside[:, None] & n_inside[None, :])


def launch(x, flags, out0, out1, out2, out3, m, n):
    scans[(triton.cdiv(m, 2),)](x, flags, out0, out1, out2, out3, m, n, BLOCK_M=2, BLOCK_N=max(1, triton.next_power_of_2(n)))
""",
    )


def test_layer_norm_backward() -> None:
    """Two phases: two kernels, and a workspace between them."""
    text = text_of("layer_norm_backward", longest=70)
    assert_expected_inline(
        text[text.index("def layer_norm_backward_phase1") :],
        """\
def layer_norm_backward_phase1(dw, db, part_w, part_b, m, n, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    t = tl.arange(0, BLOCK_T).to(tl.int64)
    n = tl.cast(n, tl.int64)
    m = tl.cast(m, tl.int64)
    t_inside = t < tl.cdiv(m, 4)
    pid = tl.program_id(0).to(tl.int64)
    begin_k = pid * BLOCK_K
    k = begin_k + tl.arange(0, BLOCK_K)
    k_inside = k < n
    part_w_tile = tl.load(part_w + t[:, None] * n + k[None, :], mask=t_inside[:, None] & k_inside[None, :], other=0.0)
    sum = tl.sum(part_w_tile, axis=0)
    tl.store(dw + k, sum, mask=k_inside)
    part_b_tile = tl.load(part_b + t[:, None] * n + k[None, :], mask=t_inside[:, None] & k_inside[None, :], other=0.0)
    sum_1 = tl.sum(part_b_tile, axis=0)
    tl.store(db + k, sum_1, mask=k_inside)


def launch(x, dy, w, mean, rstd, dx, dw, db, m, n):
    part_w = torch.empty_strided((triton.cdiv(m, 4), n,), (n, 1,), dtype=torch.float32, device=x.device)
    part_b = torch.empty_strided((triton.cdiv(m, 4), n,), (n, 1,), dtype=torch.float32, device=x.device)
    layer_norm_backward_phase0[(triton.cdiv(m, 4),)](x, dy, w, mean, rstd, dx, part_w, part_b, m, n, BLOCK_M=4, BLOCK_N=max(1, triton.next_power_of_2(n)))
    layer_norm_backward_phase1[(triton.cdiv(n, 8),)](dw, db, part_w, part_b, m, n, BLOCK_T=max(1, triton.next_power_of_2(triton.cdiv(m, 4))), BLOCK_K=8)
""",
    )
