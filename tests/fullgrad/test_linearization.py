"""The general fallback, either way, against the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fg_lightning.fullgrad.linearization import (
    NotDifferentiable,
    Summed,
    _double_reverse_mode,
    _forward_mode,
    _reverse_mode,
    linearize,
)
from fg_lightning.fullgrad.operation import Operation, tensors_in
from tests.helpers.operations.definition import TOLERANCE, Operand, const, z

# torch itself says so when forward-mode differentiation is first used.

ONE_CALL = {
    "sin": (torch.sin, (z(2, 3),), {}),
    "mul": (torch.mul, (z(2, 3), z(3)), {}),
    "softmax": (torch.softmax, (z(2, 3), 1), {}),
    "atan2": (torch.atan2, (z(2, 3), const(2, 3)), {}),
    "layer_norm": (torch.layer_norm, (z(2, 3), (3,), const(3), const(3)), {}),
    "cat": (torch.cat, ([z(2, 3), const(2, 3)], 1), {}),
    "var_mean": (torch.var_mean, (z(2, 3),), {"dim": 1}),
    "mul_": (torch.Tensor.mul_, (z(2, 3), z(3)), {}),
    "sigmoid_": (torch.Tensor.sigmoid_, (z(2, 3),), {}),
    "max": (torch.max, (z(2, 3),), {"dim": 1}),
    "cdist": (torch.cdist, (z(2, 3), const(4, 3)), {}),
}

ONE_REVERSE_PASS_ONLY = {"cdist"}  # torch has neither a forward-mode nor a double-backward formula that reaches its operands


def call_of(name: str) -> tuple[Operation, list[Tensor]]:
    """A call as the tape builds it, and the outputs minus Jacobian times operands."""
    function, args, kwargs = ONE_CALL[name]
    torch.manual_seed(4)

    def built(tree: Any) -> Any:
        if isinstance(tree, Operand):
            leaf = torch.randn(tree.shape, dtype=torch.float64, requires_grad=True)
            leaves.append(leaf)
            return leaf.clone()
        return [built(item) for item in tree] if isinstance(tree, list) else tree

    leaves: list[Tensor] = []
    op = Operation.meet(function, tuple(built(arg) for arg in args), kwargs)
    overwritten = op.args[0].detach().clone() if op.in_place else None
    op = op.with_outputs(tensors_in(function(*op.args, **op.kwargs)), overwritten=overwritten)
    expected = []
    for y in op.outputs:
        rows = [torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) for value in y.flatten()]
        product = [sum((g * leaf).sum() for g, leaf in zip(row, leaves, strict=True) if g is not None) for row in rows]
        expected.append((y - torch.stack(product).reshape(y.shape)).detach())
    return op, expected


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name not in ONE_REVERSE_PASS_ONLY])
@pytest.mark.parametrize("mode", [_forward_mode, _double_reverse_mode])
def test_either_way_to_a_jacobian_product_gives_the_bias(mode: Callable[[Operation], list[Tensor]], name: str) -> None:
    op, expected = call_of(name)
    for bias, value in zip(mode(op), expected, strict=True):
        torch.testing.assert_close(bias, value, **TOLERANCE)


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_reverse_pass_gives_what_the_bias_contributes(name: str) -> None:
    op, expected = call_of(name)
    for bias, value in zip(_reverse_mode(op), expected, strict=True):
        gradient = torch.randn(value.shape, dtype=torch.float64)
        of_output, *of_operands = bias.contributions(gradient)
        assert [t.shape for t in of_operands] == [t.shape for t in op.dependent]
        torch.testing.assert_close(of_output.sum() - sum(t.sum() for t in of_operands), (gradient * value).sum(), **TOLERANCE)


@pytest.mark.parametrize("name", [name for name in ONE_CALL if name not in ONE_REVERSE_PASS_ONLY])
def test_fallback_gives_one_bias_for_each_output(name: str) -> None:
    op, expected = call_of(name)
    biases = linearize(op)
    assert [bias.output for bias in biases] == list(range(len(expected)))
    for bias, value in zip(biases, expected, strict=True):
        torch.testing.assert_close(bias.value, value, **TOLERANCE)


class Cube(torch.autograd.Function):
    """Can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_fallback_takes_the_one_reverse_pass_where_there_is_no_second() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).clone()
    op = Operation.meet(Cube.apply, (x,), {}).with_outputs([Cube.apply(x)])
    (bias,) = linearize(op)
    assert isinstance(bias.value, Summed)
    of_output, of_operand = bias.value.contributions(torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close((of_output - of_operand).sum(), (-2 * x.detach() ** 3).sum(), **TOLERANCE)


def test_fallback_says_when_an_operation_cannot_be_run_again() -> None:
    runs = iter([True])

    class Once(Cube):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if not next(runs, False):
                raise RuntimeError("once only")
            return Cube.forward(ctx, x)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True).clone()
    op = Operation.meet(Once.apply, (x,), {}).with_outputs([Once.apply(x)])
    with pytest.raises(NotDifferentiable, match="once only"):
        linearize(op)


def test_an_operation_is_frozen() -> None:
    op, _ = call_of("sin")
    with pytest.raises(AttributeError):
        op.outputs = ()  # type: ignore[misc]
