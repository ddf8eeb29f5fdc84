"""An operation, its operands, and the sum of its biases in two ways: as the tape has it, and by definition, b = h(z) - J_h(z) z."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fg_lightning import full_gradients
from fg_lightning.fullgrad.operation import tensors_in

# Both sides are float64 sums of at most some hundred numbers of size one, or a few hundred in the products.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}

MASK = torch.tensor([[True, False, True], [False, True, False]])
INDEX = torch.tensor([[0, 2, 1], [1, 0, 2]])


class Operand(NamedTuple):
    """An operand that depends on the input."""

    shape: tuple[int, ...]
    values: Callable[[Tensor], Tensor] = lambda normal: normal


def z(*shape: int) -> Operand:
    return Operand(shape)


def positive(*shape: int) -> Operand:
    return Operand(shape, lambda normal: normal.abs() + 0.5)


def within_one(*shape: int) -> Operand:
    return Operand(shape, lambda normal: 0.9 * torch.tanh(normal))


def eighths(*shape: int) -> Operand:
    """Numbers that every floating-point type holds exactly, so that a cast does not round."""
    return Operand(shape, lambda normal: (normal * 8).round() / 8)


@lru_cache
def const(*shape: int, seed: int = 7) -> Tensor:
    """A constant; the same at each run of an operation."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case(NamedTuple):
    function: Callable[..., Any]
    operands: tuple[Operand, ...]


def cases(table: dict[str, tuple[Any, ...]]) -> dict[str, Case]:
    return {name: Case(row[0], tuple(row[1:])) for name, row in table.items()}


class Operation(nn.Module):
    """An operation on operands cut out of one input, weighed by random numbers and summed up.

    A bias that is wrong anywhere is wrong in such a sum, but for weights that happen to be orthogonal to the error.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        super().__init__()
        self.case = case
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        flat, operands, start = x.flatten(), [], 0
        for operand in self.case.operands:
            size = math.prod(operand.shape)
            operands.append(flat[start : start + size].reshape(operand.shape).clone())
            start += size
        torch.manual_seed(5)  # for the operations that draw random numbers
        results = self.case.function(*operands)
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros((), dtype=torch.float64)
        for y in tensors_in(results):
            if y.requires_grad:
                y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
                # Quarters, so that a cast to half precision does not round the gradient.
                weights = torch.randint(-8, 9, y.shape, generator=generator).to(torch.float64) / 4 + 0.125
                total = total + (weights * y).masked_fill(~y.isfinite(), 0).sum()
        return total.reshape(1)


def values_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    parts = [
        operand.values(torch.randn(operand.shape, generator=generator, dtype=torch.float64)).flatten() for operand in case.operands
    ]
    return torch.cat(parts).reshape(1, 1, -1)


def sum_of_biases(case: Case) -> Tensor:
    terms = full_gradients(Operation(case), values_of(case), lambda output: output)
    assert not terms.missing_ops
    return sum([*terms.bias_terms.values(), *terms.implicit_terms.values()], torch.zeros(1, dtype=torch.float64)).squeeze()


def bias_by_definition(case: Case) -> Tensor:
    x, model = values_of(case), Operation(case)
    jacobian = torch.autograd.functional.jacobian(model, x)
    return (model(x.clone().requires_grad_()) - (jacobian * x).sum()).detach().squeeze()


def check(case: Case) -> None:
    torch.testing.assert_close(sum_of_biases(case), bias_by_definition(case), **TOLERANCE)


def in_place(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The operand after a change, which has been used before it as well."""

    def function(x: Tensor, *others: Tensor) -> Tensor:
        changed = x * 1.5
        before = torch.sin(changed.clone())
        change(changed, *others)
        return changed + before

    return function
