"""Non-linearities that act on each entry: b = y - h'(z) z, in closed form or by one elementwise derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import Bias, Pointwise, Rule, linearise, reads_overwritten
from fg_lightning.fullgrad.operation import Call, tensors_in


def pointwise(bias: Callable[[Tensor], Tensor]) -> Rule:
    """A non-linearity given by its implicit bias as a function of its operand."""

    def rule(call: Call) -> list[Bias]:
        return [Bias("implicit", Pointwise(bias, (call.value(call.args[0]),)))]

    return reads_overwritten()(rule)


def pointwise_with_output(bias: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """A non-linearity given by its implicit bias as a function of its operand and its output."""

    def rule(call: Call) -> list[Bias]:
        return [Bias("implicit", Pointwise(bias, (call.value(call.args[0]), call.result())))]

    return reads_overwritten()(rule)


@reads_overwritten()
def elementwise(call: Call) -> list[Bias]:
    """Any elementwise function of one dependent operand: one elementwise derivative, b = y - h'(z) z."""
    if len(call.dependent) != 1 or not call.depends(call.args[0]) or call.args[0].is_complex():
        return linearise(call)
    (z, *rest), kwargs = call.at_values()
    repeat, in_place = call.repeat, call.in_place

    def implicit(z: Tensor) -> Tensor:
        with torch.enable_grad():
            operand = (z.clone() if in_place else z.detach()).requires_grad_()
            y = repeat((operand.clone() if in_place else operand, *rest), kwargs)
            (slope_times_z,) = torch.autograd.grad(y, operand, z.detach())
        return y.detach() - slope_times_z

    alone = not tensors_in((rest, kwargs))
    return [Bias("implicit", Pointwise(implicit, (z,)) if alone else partial(implicit, z))]


def from_history(call: Call) -> list[Bias]:
    """Elementwise, by the derivative in the graph, for an operation that changes its buffers and must not run again."""
    y, z = call.outputs[0], call.args[0]
    if len(call.dependent) != 1:
        return linearise(call)
    (slope_times_z,) = torch.autograd.grad(y, z, call.value(z), retain_graph=True)
    return [Bias("implicit", y.detach() - slope_times_z)]


def relu6(call: Call) -> list[Bias]:
    return [Bias("implicit", Pointwise(partial(_saturation, low=0.0, high=6.0), (call.result(),)))]


def hardtanh(call: Call) -> list[Bias]:
    low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    return [Bias("implicit", Pointwise(partial(_saturation, low=low, high=high), (call.result(),)))]


def _saturation(y: Tensor, low: float, high: float) -> Tensor:
    """The implicit bias of clamping to [low, high]: the output where it is a bound, nothing between."""
    between = torch.ops.aten.hardtanh_backward  # (g, z, low, high): g where z lies between, 0 elsewhere
    if low == 0:
        just_below = high * (1 - torch.finfo(y.dtype).eps / 2)  # the next number of y's precision
        return between(torch.tensor(float(high), dtype=y.dtype), y, just_below, math.inf)
    return y - between(y, y, low, high)


def sigmoid_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - y * (1 - y) * z


def tanh_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - (1 - y * y) * z


def silu_bias(z: Tensor, y: Tensor) -> Tensor:
    """With the gate s = sigmoid(z), y = s z and b = -s (1 - s) z^2."""
    return (y - z).mul_(y)


def gelu(call: Call) -> list[Bias]:
    if call.argument(1, "approximate", "none") != "none":
        return elementwise(call)
    return [Bias("implicit", Pointwise(_gelu_bias, (call.value(call.args[0]),)))]


def _gelu_bias(z: Tensor) -> Tensor:
    """-z^2 times the density of the normal distribution."""
    square = z * z
    return torch.mul(square, -0.5).exp_().mul_(square).mul_(-1 / math.sqrt(2 * math.pi))


def hardswish_bias(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 3, z * z / -6, torch.zeros((), dtype=z.dtype, device=z.device))
