"""Products of two operands, plus an addend: convolution, linear, matrix products, multiplication."""

from __future__ import annotations

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.linearisation import Bias, Pointwise, Rule, reads_overwritten


def bilinear_plus(*, addend: tuple[int, str] | None, factors: tuple[tuple[int, str], tuple[int, str]]) -> Rule:
    """factor_1 * factor_2 + addend, with `*` any bilinear product: convolution, linear, matrix products."""

    def degree_of(call: Call) -> int:
        return sum(call.depends(call.argument(*factor)) for factor in factors)

    def addend_read(call: Call) -> Tensor | None:
        """Not where beta is 0, since torch then reads not even a NaN, nor where the sum is linear in all that depends."""
        added = None if addend is None or call.kwargs.get("beta", 1) == 0 else call.argument(*addend)
        return None if call.depends(added) and degree_of(call) == 1 else added

    @reads_overwritten(lambda call: addend_read(call) is not None)
    def rule(call: Call) -> list[Bias]:
        degree, added = degree_of(call), addend_read(call)
        shift = None if added is None else _as_added(call, call.value(added))
        biases = []
        if shift is not None and not call.depends(added):
            biases.append(Bias("explicit", shift))
        if degree != 1:
            y = call.result()
            product = y if shift is None else y - shift
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
