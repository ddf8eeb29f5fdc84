"""Affine operations: the bias is the operation at zero, a constant that is added, filled in or put beside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call, tensors_in
from fg_lightning.fullgrad.linearisation import Bias, Rule, linearise, reads_overwritten


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
