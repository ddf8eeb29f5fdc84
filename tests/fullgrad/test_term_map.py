"""Terms reduced block by block, against psi of the whole term; and the biases that may be had in parts, against the whole ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad
from fg_lightning.fullgrad import PSI, Pointwise, Psi
from fg_lightning.fullgrad import term_map as blocks
from fg_lightning.fullgrad.term_map import TermValues


def product(gradient: Tensor, bias: Tensor) -> Tensor:
    return bias * gradient


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_it_lies(t: Tensor) -> Tensor:
    return t


def channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last)


def twice_the_mean(term: Tensor) -> Tensor:
    return 2 * term.mean(1)


@pytest.mark.parametrize("block", [1, 7, 40, 150, 10**6])
@pytest.mark.parametrize("lies", [as_it_lies, channels_last])
@pytest.mark.parametrize("psi", [*PSI.values(), twice_the_mean])
def test_psi_of_blocks_is_psi_of_the_term(
    monkeypatch: pytest.MonkeyPatch, block: int, lies: Callable[[Tensor], Tensor], psi: Psi
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient, bias = lies(normal(5, 6, 4, 3)), normal(6, 1, 1, seed=1).expand(5, 6, 4, 3)
    reduced = TermValues(product, bias, gradient).reduce(psi)
    torch.testing.assert_close(reduced, psi(bias * gradient), rtol=1e-12, atol=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("block", [7, 40, 10**6])
def test_a_pointwise_bias_is_computed_in_the_same_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient, z = normal(3, 6, 4, 3), normal(3, 6, 4, 3, seed=1)
    bias = Pointwise(torch.sin, (z,))
    reduced = TermValues(product, bias, gradient).reduce(PSI["absolute"])
    torch.testing.assert_close(reduced, PSI["absolute"](z.sin() * gradient), rtol=1e-12, atol=1e-12)  # as above


@pytest.mark.parametrize("block", [12, 48, 10**6])
@pytest.mark.parametrize("psi", ["absolute", "positive"])
def test_a_nearly_constant_term_does_not_drown(monkeypatch: pytest.MonkeyPatch, block: int, psi: str) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient = (1000 + normal(2, 64, 4, 3)).float()
    reduced = TermValues(product, torch.ones(()).expand(gradient.shape), gradient).reduce(PSI[psi])
    expected = PSI[psi](gradient.double()).float()  # sums of 64 numbers of at most 1
    torch.testing.assert_close(reduced, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [5, 100])
@pytest.mark.parametrize("kind", [FullGrad, SmoothFullGrad])
def test_maps_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch, kind: type[FullGrad], block: int) -> None:
    torch.manual_seed(0)
    activations = nn.SiLU(inplace=True), nn.GELU(), nn.Hardswish(inplace=True), nn.ReLU6(inplace=True), nn.Tanh(), nn.Sigmoid()
    layers = [layer for a in activations for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), a)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double().eval()
    images = 4 * normal(3, 3, 6, 5)
    settings = {} if kind is FullGrad else {"num_samples": 3}
    whole = kind(model, **settings).attribute(images, 1)
    monkeypatch.setattr(blocks, "BLOCK", block)
    torch.testing.assert_close(kind(model, **settings).attribute(images, 1), whole, rtol=1e-10, atol=1e-12)  # order of sums
