"""Linear and homogeneous operations: by Euler's theorem J z = d y for those of degree d, so that b = (1 - d) y."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fg_lightning.fullgrad.call import Call
from fg_lightning.fullgrad.linearisation import Bias, Pointwise, Rule, linearise, reads_overwritten


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
