"""Activation functions and their backward formulas, as ATen's CPU kernels write them.

In: one call. Out: one tile value (two for log_sigmoid_forward). All of them are formulas over
`Term`s; numbers among the arguments (slopes, thresholds) are read in float32 beside half types.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._ops import OpOverload

from torch_helion.lowering.elementwise import Formula, family, rows
from torch_helion.lowering.promotion import (
    DEFAULT,
    Number,
    Term,
    bind,
    converted,
    promote,
    results,
)
from torch_helion.lowering.registry import Context, Lowering
from torch_helion.lowering.selection import clamp_between

aten = torch.ops.aten

SQRT_HALF = math.sqrt(0.5)
TANH_SCALE = math.sqrt(2) * (2 / math.sqrt(math.pi)) * 0.5
TANH_CUBE = 0.044715
FLOAT32_SIXTH = 0.1666666716337204
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


# -- forward ----------------------------------------------------------------------------------


def relu(x: Term) -> Term:
    return (x < 0).where(0, x)  # keeps NaN and -0


def relu6(x: Term) -> Term:
    return clamp_between(x, 0, 6)


def hardtanh(x: Term, min_val: Number = -1, max_val: Number = 1) -> Term:
    return clamp_between(x, min_val, max_val)


def gelu(x: Term, approximate: str = "none") -> Term:
    if approximate == "tanh":
        inner = TANH_SCALE * (x + TANH_CUBE * (x * x * x))
        return 0.5 * x * (1 + inner.call("tanh"))
    return x * 0.5 * (1 + (x * SQRT_HALF).call("erf"))


def silu(x: Term) -> Term:
    return x / (1 + (-x).call("exp"))


def mish(x: Term) -> Term:
    return x * x.call("exp").call("log1p").call("tanh")


def softplus(x: Term, beta: Number = 1, threshold: Number = 20) -> Term:
    scaled = x * beta
    return (scaled > threshold).where(x, scaled.call("exp").call("log1p") / beta)


def elu(x: Term, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Term:
    # The rounding of ATen: one factor alpha * scale.
    negative = (x * input_scale).call("expm1") * (alpha * scale)
    return (x > 0).where(x * scale, negative)


def celu(x: Term, alpha: Number = 1.0) -> Term:
    return elu(x, alpha, 1, 1.0 / alpha)


def selu(x: Term) -> Term:
    return elu(x, SELU_ALPHA, SELU_SCALE)


def leaky_relu(x: Term, negative_slope: Number = 0.01) -> Term:
    return (x > 0).where(x, x * negative_slope)


def prelu(x: Term, weight: Term) -> Term:
    return (x > 0).where(x, weight * x)


def threshold(x: Term, threshold: Number, value: Number) -> Term:
    return (x <= threshold).where(value, x)


def hardsigmoid(x: Term) -> Term:
    return clamp_between(x + 3, 0, 6) / 6


def hardswish(x: Term) -> Term:
    return x * clamp_between(x + 3, 0, 6) / 6


def hardshrink(x: Term, lambd: Number = 0.5) -> Term:
    return inside(x, lambd).where(0, x)


def inside(x: Term, lambd: Number) -> Term:
    """-lambd <= x <= lambd, with lambd rounded to the result's dtype as ATen compares."""
    bound = converted(float(lambd), x.cx.dtype)
    return (x >= -bound) & (x <= bound)


def softshrink(x: Term, lambd: Number = 0.5) -> Term:
    inside = x.ne(x).where(x, x.constant(0))
    return (x > lambd).where(x - lambd, (x < -lambd).where(x + lambd, inside))


def log_sigmoid(x: Term) -> Term:
    return log_sigmoid_forward(x)[0]


def log_sigmoid_forward(x: Term) -> tuple[Term, Term]:
    """The second result is what the backward formula reads: exp(-|x|)."""
    decay = (-x.call("abs")).call("exp")
    return x.call("minimum", 0) - decay.call("log1p"), decay


# -- backward ---------------------------------------------------------------------------------


def sigmoid_backward(grad: Term, y: Term) -> Term:
    return grad * (1 - y) * y


def tanh_backward(grad: Term, y: Term) -> Term:
    return grad * (1 - y * y)


def threshold_backward(grad: Term, x: Term, threshold: Number) -> Term:
    return (x <= threshold).where(0, grad)


def gelu_backward(grad: Term, x: Term, approximate: str = "none") -> Term:
    if approximate == "tanh":
        square = x * x
        tanh = (TANH_SCALE * (x + TANH_CUBE * (square * x))).call("tanh")
        slope = 0.5 * x * (1 - tanh * tanh) * (TANH_SCALE * (1 + 3 * TANH_CUBE * square))
        return grad * (0.5 * (1 + tanh) + slope)
    density = (x * x * -0.5).call("exp") * (SQRT_HALF / math.sqrt(math.pi))
    return grad * (0.5 * (1 + (x * SQRT_HALF).call("erf")) + x * density)


def silu_backward(grad: Term, x: Term) -> Term:
    sigmoid = 1 / (1 + (-x).call("exp"))
    return grad * sigmoid * (1 + x * (1 - sigmoid))


def mish_backward(grad: Term, x: Term) -> Term:
    sigmoid = 1 / (1 + (-x).call("exp"))
    tanh = x.call("exp").call("log1p").call("tanh")
    return grad * (tanh + x * sigmoid * (1 - tanh * tanh))


def softplus_backward(grad: Term, x: Term, beta: Number, threshold: Number) -> Term:
    scaled = x * beta
    power = scaled.call("exp")
    return (scaled > threshold).where(grad, grad * power / (power + 1))


def elu_backward(cx: Context, *args: Any, **kwargs: Any) -> Any:
    bound = bind(cx, args, kwargs)
    grad, y = promote(cx, [bound["grad_output"], bound["self_or_result"]])
    scale, input_scale = bound["scale"].given, bound["input_scale"].given
    factor = bound["alpha"].given * scale
    if bound["is_result"].given:
        negative = grad * input_scale * (y + factor)
    else:
        negative = grad * (input_scale * factor) * (y * input_scale).call("exp")
    return results(cx, (y <= 0).where(negative, grad * scale))


def leaky_relu_backward(
    grad: Term, x: Term, negative_slope: Number, self_is_result: bool = False
) -> Term:
    return (x > 0).where(grad, grad * negative_slope)


def hardtanh_backward(grad: Term, x: Term, min_val: Number, max_val: Number) -> Term:
    return ((x <= min_val) | (x >= max_val)).where(0, grad)


def hardsigmoid_backward(grad: Term, x: Term) -> Term:
    return ((x > -3) & (x < 3)).where(grad * FLOAT32_SIXTH, 0)


def hardswish_backward(grad: Term, x: Term) -> Term:
    middle = (x < 3).where(grad * (x / 3 + 0.5), grad)
    return (x <= -3).where(0, middle)


def hardshrink_backward(grad: Term, x: Term, lambd: Number) -> Term:
    return inside(x, lambd).where(0, grad)


def log_sigmoid_backward(grad: Term, x: Term, decay: Term) -> Term:
    negative = x < 0
    slope = negative.where(1, x.constant(0))
    side = negative.where(1, x.constant(-1))
    return grad * (slope - side * (decay / (1 + decay)))


def logit_backward(grad: Term, x: Term, eps: float | None = None) -> Term:
    slope = (x.eq(0) | x.eq(1)).where(grad * math.inf, grad / (x * (1 - x)))
    if eps is None or eps < 0:
        return ((x < 0) | (x > 1)).where(math.nan, slope)
    return ((x < eps) | (x > 1 - eps)).where(0, slope)


def dropout_backward(grad: Term, mask: Term, scale: Term) -> Term:
    return grad * (mask * scale)


# -- rows -------------------------------------------------------------------------------------

UNARY: dict[OpOverload, Formula] = {
    aten.relu.default: relu,
    aten.relu6.default: relu6,
    aten.hardtanh.default: hardtanh,
    aten.gelu.default: gelu,
    aten.silu.default: silu,
    aten.mish.default: mish,
    aten.softplus.default: softplus,
    aten.elu.default: elu,
    aten.celu.default: celu,
    aten.selu.default: selu,
    aten.leaky_relu.default: leaky_relu,
    aten.threshold.default: threshold,
    aten.hardsigmoid.default: hardsigmoid,
    aten.hardswish.default: hardswish,
    aten.hardshrink.default: hardshrink,
    aten.softshrink.default: softshrink,
    aten.log_sigmoid.default: log_sigmoid,
    aten.log_sigmoid_forward.default: log_sigmoid_forward,
}

BINARY: dict[OpOverload, Formula] = {
    aten._prelu_kernel.default: prelu,
    aten.sigmoid_backward.default: sigmoid_backward,
    aten.tanh_backward.default: tanh_backward,
    aten.threshold_backward.default: threshold_backward,
    aten.gelu_backward.default: gelu_backward,
    aten.silu_backward.default: silu_backward,
    aten.mish_backward.default: mish_backward,
    aten.softplus_backward.default: softplus_backward,
    aten.leaky_relu_backward.default: leaky_relu_backward,
    aten.hardtanh_backward.default: hardtanh_backward,
    aten.hardsigmoid_backward.default: hardsigmoid_backward,
    aten.hardswish_backward.default: hardswish_backward,
    aten.hardshrink_backward.default: hardshrink_backward,
    aten.softshrink_backward.default: hardshrink_backward,
    aten.logit_backward.default: logit_backward,
}

ACTIVATION: tuple[Lowering, ...] = (
    *(row for overload, formula in UNARY.items() for row in family(formula, 1, DEFAULT, overload)),
    *(row for overload, formula in BINARY.items() for row in family(formula, 2, DEFAULT, overload)),
    *family(dropout_backward, 3, DEFAULT, aten.native_dropout_backward.default),
    *family(log_sigmoid_backward, 3, DEFAULT, aten.log_sigmoid_backward.default),
    *rows(elu_backward, aten.elu_backward.default),
)
