"""Affine operations: the bias is the operation at zero, a constant that is added, filled in or put beside.

Linear and homogeneous operations: by Euler's theorem J z = d y for those of degree d, so that b = (1 - d) y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import Bias, Pointwise, Rule, linearise, reads_overwritten
from fg_lightning.fullgrad.operation import Call, tensors_in


@reads_overwritten(lambda call: _overwrites_a_constant(call) or _combines(call))
def affine(call: Call) -> list[Bias]:
    """Affine in its dependent operands together: b is the operation at zero."""
    if _combines(call):
        return linearise(call)
    constants = [t for t in tensors_in((call.args, call.kwargs)) if not call.depends(t)]
    if not constants and call.name in _BESIDE:
        return []
    return [Bias("explicit", _finite(call.at_zero()))]


_BESIDE = ("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack", "complex")


def _combines(call: Call) -> bool:
    """scatter(..., reduce="multiply") is not affine."""
    return call.kwargs.get("reduce") is not None


def _overwrites_a_constant(call: Call) -> bool:
    return not call.depends(call.args[0])


def _finite(constant: Tensor) -> Tensor:
    """An infinite constant masks something out: its gradient is exactly zero, and so is its term."""
    return constant.nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)


def sum_of(first_sign: int, second_sign: int, *, alpha_on: int) -> Rule:
    """A constant added to, or subtracted from, what depends on the input; `alpha` scales the operand at `alpha_on`."""

    def rule(call: Call) -> list[Bias]:
        operands = call.args[0], call.argument(1, "other")
        constants = [i for i in (0, 1) if not call.depends(operands[i])]
        if not constants:
            return []
        (i,) = constants
        scale = (first_sign, second_sign)[i] * (call.kwargs.get("alpha", 1) if i == alpha_on else 1)
        y = call.outputs[0]
        operand = operands[i]
        constant = call.value(operand).to(y.dtype) if isinstance(operand, Tensor) else torch.tensor(operand, dtype=y.dtype)
        return [Bias("explicit", _finite(scale * constant.to(y.device)))]

    return reads_overwritten(_overwrites_a_constant)(rule)


def padding(call: Call) -> list[Bias]:
    """Padding is linear unless it fills in a constant other than zero."""
    if call.name == "pad" and call.argument(2, "mode", "constant") != "constant":
        return []
    fill = call.argument(2, "value", 0) if call.name == "constant_pad_nd" else call.argument(3, "value", 0)
    return affine(call) if fill else []


def no_bias(call: Call) -> list[Bias]:
    """Linear, or homogeneous of degree 1: J z = y."""
    return []


def homogeneous(degree: Callable[[Call], float | Tensor | None]) -> Rule:
    """Homogeneous of some degree d in its dependent operands together, b = (1 - d) y; None where it is not homogeneous."""

    def rule(call: Call) -> list[Bias]:
        d = degree(call)
        if d is None:
            return linearise(call)
        if isinstance(d, (int, float)) and d == 1:
            return []
        return _multiples_of_the_outputs(call, 1 - d)

    return reads_overwritten(lambda call: degree(call) is None)(rule)


def of_degree(d: float) -> Rule:
    """Homogeneous of a fixed degree, so that only the output is read."""

    def rule(call: Call) -> list[Bias]:
        return _multiples_of_the_outputs(call, 1 - d)

    return rule


def _multiples_of_the_outputs(call: Call, multiple: float | Tensor) -> list[Bias]:
    if isinstance(multiple, Tensor):
        values = [Pointwise(torch.mul, (call.result(i), multiple)) for i in range(len(call.outputs))]
    else:
        values = [Pointwise(partial(torch.mul, other=multiple), (call.result(i),)) for i in range(len(call.outputs))]
    return [Bias("implicit", value, i) for i, value in enumerate(values)]


def quotient_degree(call: Call) -> float | None:
    if call.argument(2, "rounding_mode") is not None:
        return None
    return float(call.depends(call.args[0])) - float(call.depends(call.argument(1, "other")))


def power_degree(call: Call) -> float | Tensor | None:
    base, exponent = call.args[0], call.argument(1, "exponent")
    return None if call.depends(exponent) or not call.depends(base) else exponent


def extremum_degree(call: Call) -> float | None:
    """Maximum and minimum are homogeneous unless one of two operands is a constant."""
    other = call.argument(1, "other")
    return None if isinstance(other, Tensor) and not (call.depends(call.args[0]) and call.depends(other)) else 1


def norm_degree(call: Call) -> float:
    """The norm of order 0 counts, every other one measures."""
    return 0 if call.argument(1, "ord", 2) == 0 else 1


def prelu_degree(call: Call) -> float | None:
    return None if call.depends(call.argument(1, "weight")) else 1


def count_dependent(call: Call) -> float:
    """The degree of a product of several operands, such as einsum's."""
    return float(len(call.dependent))
