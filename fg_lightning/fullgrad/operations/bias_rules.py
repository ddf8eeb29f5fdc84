"""Bias rules for many operations: affine, homogeneous of some degree, elementwise.

If h is affine, the bias is h(0). If h is homogeneous of degree d, J z = d y and b = (1 - d) y. If h is elementwise, b = y - h'(z)
z, in closed form or by one elementwise derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import Bias, BiasRule, Deferred, Pointwise, linearize, reads_overwritten
from fg_lightning.fullgrad.operation import Operation, tensors_in
from fg_lightning.fullgrad.torch_internals import unrecorded


@reads_overwritten(lambda op: _overwrites_a_constant(op) or _combines(op))
def affine(op: Operation) -> list[Bias]:
    """For operations that are affine in all dependent operands together: b is the operation at zero."""
    if _combines(op):
        return linearize(op)
    constants = [t for t in tensors_in((op.args, op.kwargs)) if not op.depends(t)]
    if not constants and op.name in _BESIDE:
        return []
    return [Bias("explicit", _finite(op.at_zero()))]


_BESIDE = ("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack", "complex")


def _combines(op: Operation) -> bool:
    """Whether it combines values, such as scatter(..., reduce="multiply"), which is not affine."""
    return op.kwargs.get("reduce") is not None


def _overwrites_a_constant(op: Operation) -> bool:
    return not op.depends(op.args[0])


def _finite(constant: Tensor) -> Tensor:
    """Replaces infinite constants by 0: they are masks, whose gradient and term are exactly zero."""
    return constant.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)


def sum_of(first_sign: int, second_sign: int, *, alpha_on: int) -> BiasRule:
    """For a constant that is added to or subtracted from a dependent operand. `alpha` scales the operand at `alpha_on`."""

    def rule(op: Operation) -> list[Bias]:
        operands = op.args[0], op.argument(1, "other")
        constants = [i for i in (0, 1) if not op.depends(operands[i])]
        if not constants:
            return []
        (i,) = constants
        scale = (first_sign, second_sign)[i] * (op.kwargs.get("alpha", 1) if i == alpha_on else 1)
        y = op.outputs[0]
        operand = operands[i]
        if isinstance(operand, Tensor):
            constant = op.value(operand).to(y.device, y.dtype)
        else:
            with unrecorded():  # a constant rather than a copy from the CPU in each repetition
                constant = torch.tensor(operand, dtype=y.dtype, device=y.device)
        return [Bias("explicit", _finite(constant if scale == 1 else scale * constant))]

    return reads_overwritten(_overwrites_a_constant)(rule)


def pad(op: Operation) -> list[Bias]:
    """Padding is linear unless it fills in a constant other than zero."""
    if op.name == "pad" and op.argument(2, "mode", "constant") != "constant":
        return []
    fill = op.argument(2, "value", 0) if op.name == "constant_pad_nd" else op.argument(3, "value", 0)
    return affine(op) if fill else []


def no_bias(op: Operation) -> list[Bias]:
    """For operations that are linear, or homogeneous of degree 1: J z = y."""
    return []


def homogeneous(degree: Callable[[Operation], float | Tensor | None]) -> BiasRule:
    """For operations that are homogeneous of degree d in all dependent operands together: b = (1 - d) y. None: not homogeneous."""

    def rule(op: Operation) -> list[Bias]:
        d = degree(op)
        if d is None:
            return linearize(op)
        if isinstance(d, (int, float)) and d == 1:
            return []
        return _multiples_of_the_outputs(op, 1 - d)

    return reads_overwritten(lambda op: degree(op) is None)(rule)


def of_degree(d: float) -> BiasRule:
    """For operations that are homogeneous of a fixed degree. Only the output is read."""

    def rule(op: Operation) -> list[Bias]:
        return _multiples_of_the_outputs(op, 1 - d)

    return rule


def _multiples_of_the_outputs(op: Operation, multiple: float | Tensor) -> list[Bias]:
    if isinstance(multiple, Tensor):
        values = [Pointwise(torch.mul, (op.result(i), multiple)) for i in range(len(op.outputs))]
    else:
        values = [Pointwise(partial(torch.mul, other=multiple), (op.result(i),)) for i in range(len(op.outputs))]
    return [Bias("implicit", value, i) for i, value in enumerate(values)]


def quotient_degree(op: Operation) -> float | None:
    if op.argument(2, "rounding_mode") is not None:
        return None
    return float(op.depends(op.args[0])) - float(op.depends(op.argument(1, "other")))


def power_degree(op: Operation) -> float | Tensor | None:
    base, exponent = op.args[0], op.argument(1, "exponent")
    return None if op.depends(exponent) or not op.depends(base) else exponent


def extremum_degree(op: Operation) -> float | None:
    """Maximum and minimum are homogeneous unless one of two operands is a constant."""
    other = op.argument(1, "other")
    return None if isinstance(other, Tensor) and not (op.depends(op.args[0]) and op.depends(other)) else 1


def norm_degree(op: Operation) -> float:
    """0 for the norm of order 0, which counts, and 1 for all others."""
    return 0 if op.argument(1, "ord", 2) == 0 else 1


def prelu_degree(op: Operation) -> float | None:
    return None if op.depends(op.argument(1, "weight")) else 1


def count_dependent(op: Operation) -> float:
    """The degree of a product of several operands, such as einsum's."""
    return float(len(op.dependent))


def pointwise(bias: Callable[..., Tensor], *, of_output: bool = False) -> BiasRule:
    """For non-linearities, by their implicit bias as a function of the operand, and also of the output if `of_output`."""

    def rule(op: Operation) -> list[Bias]:
        operand = op.value(op.args[0])
        return [Bias("implicit", Pointwise(bias, (operand, op.result()) if of_output else (operand,)))]

    return reads_overwritten()(rule)


@reads_overwritten()
def elementwise(op: Operation) -> list[Bias]:
    """For any elementwise function of one dependent operand: b = y - h'(z) z, by one elementwise derivative."""
    if len(op.dependent) != 1 or not op.depends(op.args[0]) or op.args[0].is_complex():
        return linearize(op)
    (z, *rest), kwargs = op.at_values()
    repeat, in_place = op.repeat, op.in_place

    def implicit(z: Tensor, *_: Tensor) -> Tensor:
        with torch.enable_grad():
            operand = (z.clone() if in_place else z.detach()).requires_grad_()
            y = repeat((operand.clone() if in_place else operand, *rest), kwargs)
            (slope_times_z,) = torch.autograd.grad(y, operand, z.detach())
        return y.detach() - slope_times_z

    others = tensors_in((rest, kwargs))
    return [Bias("implicit", Deferred(implicit, (z, *others)) if others else Pointwise(implicit, (z,)))]


def from_history(op: Operation) -> list[Bias]:
    """For elementwise operations that change their buffers and must not run again: b by the derivative in the graph."""
    y, z = op.outputs[0], op.args[0]
    if len(op.dependent) != 1:
        return linearize(op)
    (slope_times_z,) = torch.autograd.grad(y, z, op.value(z), retain_graph=True)
    return [Bias("implicit", y.detach() - slope_times_z)]


def hardtanh(op: Operation) -> list[Bias]:
    low, high = (0.0, 6.0) if op.name == "relu6" else (op.argument(1, "min_val", -1.0), op.argument(2, "max_val", 1.0))
    is_zero = partial(_stays_between, low=low, high=high)
    return [Bias("implicit", Pointwise(partial(_saturation, low=low, high=high), (op.result(),), is_zero))]


def _stays_between(y: Tensor, low: float, high: float) -> bool:
    return bool(y.amax() < high) and (low == 0 or bool(y.amin() > low))


def _saturation(y: Tensor, low: float, high: float) -> Tensor:
    """The implicit bias of clamping to [low, high]: the output at a bound, zero between."""
    between = torch.ops.aten.hardtanh_backward  # (g, z, low, high): g if z lies between, otherwise 0
    if low == 0:
        just_below = high * (1 - torch.finfo(y.dtype).eps / 2)  # the largest smaller number in y's precision
        return between(_number(float(high), y.dtype, y.device), y, just_below, math.inf)
    return y - between(y, y, low, high)


@cache
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor on the operation's device, since not all kernels of CUDA take numbers from the CPU."""
    return torch.tensor(value, dtype=dtype, device=device)


def sigmoid_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - y * (1 - y) * z


def tanh_bias(z: Tensor, y: Tensor) -> Tensor:
    return y - (1 - y * y) * z


def silu_bias(z: Tensor, y: Tensor) -> Tensor:
    """b = -s (1 - s) z^2 = (y - z) y, with the gate s = sigmoid(z) and y = s z."""
    return (y - z).mul_(y)


def gelu(op: Operation) -> list[Bias]:
    if op.argument(1, "approximate", "none") != "none":
        return elementwise(op)
    return [Bias("implicit", Pointwise(_gelu_bias, (op.value(op.args[0]),)))]


def _gelu_bias(z: Tensor) -> Tensor:
    """-z^2 times the density of the normal distribution."""
    square = z * z
    return torch.mul(square, -0.5).exp_().mul_(square).mul_(-1 / math.sqrt(2 * math.pi))


def hardswish_bias(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 3, z * z / -6, torch.zeros((), dtype=z.dtype, device=z.device))
