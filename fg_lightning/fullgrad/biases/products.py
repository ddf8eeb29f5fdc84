"""Products of two operands, plus an addend: convolution, linear, matrix products, multiplication."""

from __future__ import annotations

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.linearisation import Bias, Pointwise, Rule, reads_overwritten


def bilinear_plus(*, addend: tuple[int, str] | None, factors: tuple[tuple[int, str], tuple[int, str]]) -> Rule:
    """factor_1 * factor_2 + addend, with `*` any bilinear product: convolution, linear, matrix products."""

    def rule(call: Call) -> list[Bias]:
        degree = sum(call.depends(call.argument(*factor)) for factor in factors)
        added = None if addend is None else call.argument(*addend)
        biases = []
        if added is not None:
            shift = _as_added(call, added)
            if not call.depends(added):
                biases.append(Bias("explicit", shift))
        if degree != 1:
            y = call.result()
            product = y if added is None else y - call.value(shift)
            biases.append(Bias("implicit" if degree else "explicit", lambda: (1 - degree) * product))
        return biases

    return rule


def _as_added(call: Call, addend: Tensor) -> Tensor:
    """The addend as the operation adds it: along the channels for a convolution, times beta for a matrix product."""
    if call.name.startswith("conv"):
        return addend.reshape(-1, *(1,) * (call.argument(1, "weight").ndim - 2))  # the image may have no batch dimension
    beta = call.kwargs.get("beta", 1)
    return addend if beta == 1 else beta * addend


@reads_overwritten(lambda call: all(call.depends(factor) for factor in call.args[:2]))
def multiply(call: Call) -> list[Bias]:
    """x * y with both dependent has b = -x y; made again from the factors, which the backward pass keeps anyway."""
    a, b = call.args[:2]
    if not (call.depends(a) and call.depends(b)):
        return []
    a, b = call.value(a), call.value(b)
    return [Bias("implicit", Pointwise(_minus_product, (a, b)))]


def _minus_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(a, b).neg_()
