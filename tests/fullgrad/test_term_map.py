"""Terms reduced block by block, against psi of the whole term; and the biases that may be had in parts, against the whole ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad
from fg_lightning.fullgrad import PSI, Pointwise
from fg_lightning.fullgrad import term_map as blocks
from fg_lightning.fullgrad.linearization import real_product
from fg_lightning.fullgrad.postprocess import Rescaling, rescale_together
from fg_lightning.fullgrad.term_map import TermValues


def product(gradient: Tensor, bias: Tensor) -> Tensor:
    return bias * gradient


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_it_lies(t: Tensor) -> Tensor:
    return t


def channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", [1, 7, 40, 150, 10**6])
@pytest.mark.parametrize("lies", [as_it_lies, channels_last])
@pytest.mark.parametrize("psi", PSI.values())
def test_psi_of_blocks_is_psi_of_the_term(
    monkeypatch: pytest.MonkeyPatch, block: int, lies: Callable[[Tensor], Tensor], psi: Rescaling
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient, bias = lies(normal(5, 6, 4, 3)), normal(6, 1, 1, seed=1).expand(5, 6, 4, 3)
    reduced = TermValues(product, bias, gradient).reduce_in_blocks(psi)
    torch.testing.assert_close(reduced, psi(bias * gradient), rtol=1e-12, atol=1e-12)  # float64 sums in another order


@pytest.mark.parametrize("block", [7, 40, 10**6])
def test_a_pointwise_bias_is_computed_in_the_same_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient, z = normal(3, 6, 4, 3), normal(3, 6, 4, 3, seed=1)
    bias = Pointwise(torch.sin, (z,))
    reduced = TermValues(product, bias, gradient).reduce_in_blocks(PSI["absolute"])
    torch.testing.assert_close(reduced, PSI["absolute"](z.sin() * gradient), rtol=1e-12, atol=1e-12)  # as above


@pytest.mark.parametrize("block", [12, 48, 10**6])
@pytest.mark.parametrize("psi", ["absolute", "positive"])
def test_a_nearly_constant_term_does_not_drown(monkeypatch: pytest.MonkeyPatch, block: int, psi: str) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    gradient = (1000 + normal(2, 64, 4, 3)).float()
    reduced = TermValues(product, torch.ones(()).expand(gradient.shape), gradient).reduce_in_blocks(PSI[psi])
    expected = PSI[psi](gradient.double()).float()  # sums of 64 numbers of at most 1
    torch.testing.assert_close(reduced, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("psi", PSI.values())
@pytest.mark.parametrize("channels", [(1,), (4,), (3, 1, 5), (2, 2)])
def test_psi_of_terms_together_is_the_sum_of_psi_of_each(psi: Rescaling, channels: tuple[int, ...]) -> None:
    terms = [(normal(2, c, 4, 3, seed=c), normal(c, seed=7) if c % 2 else None) for c in channels]
    expected = sum(psi(values if factors is None else values * factors[:, None, None]) for values, factors in terms)
    others = [(5 * normal(2, 3, 2, 2, seed=9), None)]  # of another size
    together, of_others = rescale_together(psi, [terms, others])
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-12)  # float64 sums in another order
    torch.testing.assert_close(of_others, psi(others[0][0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("psi", ["absolute", "positive"])
def test_a_nearly_constant_term_does_not_drown_among_others(psi: str) -> None:
    terms = [(1000 + normal(2, 64, 4, 3)).float(), normal(2, 3, 4, 3, seed=1).float()]
    expected = sum(PSI[psi](term.double()) for term in terms)
    (together,) = rescale_together(PSI[psi], [[(term, None) for term in terms]])
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-5)  # sums of 67 numbers of at most 1


@pytest.mark.parametrize(("bias", "is_factor"), [((6, 1, 1), True), ((1, 6, 1, 1), True), ((), True), ((6, 4, 3), False)])
def test_a_bias_for_each_channel_is_a_factor(bias: tuple[int, ...], is_factor: bool) -> None:
    gradient, bias = normal(2, 6, 4, 3), normal(*bias, seed=1)
    values, factors = TermValues(real_product, bias, gradient).factorize()
    assert (factors is not None) == is_factor
    torch.testing.assert_close(values if factors is None else values * factors[:, None, None], gradient * bias, rtol=0, atol=0)


@pytest.mark.parametrize("waiting", [1, 100])
def test_maps_do_not_depend_on_how_many_terms_wait(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double().eval()
    images = normal(3, 3, 6, 5)
    whole = FullGrad(model).attribute(images, 1)
    monkeypatch.setattr(blocks, "BLOCK", waiting)
    monkeypatch.setattr(TermValues, "reduce_in_blocks", lambda values, psi: psi(values.compute()))
    torch.testing.assert_close(FullGrad(model).attribute(images, 1), whole, rtol=1e-10, atol=1e-12)  # order of sums


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
