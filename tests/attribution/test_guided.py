"""Guided backpropagation, where Captum alone is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.attribution_cases import TARGETS, assert_close, maps_of, net


class Functional(nn.Module):
    """Convolutions with a ReLU between them, however it is called."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(96, 5)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.head(self.relu(self.second(x)).flatten(1))


def overwritten(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


@pytest.mark.parametrize("relu", [F.relu, torch.relu, Tensor.relu, Tensor.relu_, overwritten])
def test_guided_backprop_guides_functional_relus_like_modules(relu: Callable[[Tensor], Tensor]) -> None:
    _, x = net()
    model = Functional(nn.ReLU()).eval()
    expected = captum.attr.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=TARGETS).abs().sum(1, keepdim=True)
    assert_close(maps_of("guided_backprop", Functional(relu), x, TARGETS), expected)


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.clamp_min(0) * (x > 0)


def test_guided_backprop_leaves_the_gradient_of_a_skip_connection_alone() -> None:
    _, x = net()
    model, guided = Functional(lambda x: x + F.relu(x)), Functional(lambda x: x + GuidedReLU.apply(x))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guided(leaf)[range(3), TARGETS].sum(), leaf)
    assert_close(maps_of("guided_backprop", model, x, TARGETS), gradient.abs().sum(1, keepdim=True))


def test_guided_backprop_warns_where_there_is_nothing_to_guide() -> None:
    _, x = net()
    with pytest.warns(UserWarning, match="found no ReLU"):
        drawn = maps_of("guided_backprop", Functional(F.silu), x, TARGETS)
    assert_close(drawn, maps_of("gradient", Functional(F.silu), x, TARGETS))


@pytest.mark.filterwarnings("error")
def test_captums_warning_about_its_hooks_is_not_passed_on() -> None:
    model, x = net()
    maps_of("guided_backprop", model, x, 1)
