"""psi, against loops over samples and channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_lightning import FullGrad
from fg_lightning.fullgrad import PSI
from fg_lightning.fullgrad.postprocess import upsample

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def by_channel(term: Tensor, psi: str, size: tuple[int, ...]) -> Tensor:
    """One sample and one channel at a time, every channel upsampled: [N, 1, *S]."""
    maps = torch.zeros(len(term), 1, *size, dtype=term.dtype)
    for n, sample in enumerate(term):
        magnitude = {"absolute": sample.abs(), "positive": sample.clamp(min=0), "signed": sample}[psi]
        if psi == "signed":
            scaled = magnitude / (sample.abs().max() + 1e-6)
        else:
            scaled = (magnitude - magnitude.min()) / (magnitude.max() - magnitude.min() + 1e-6)
        for channel in scaled:
            maps[n] += F.interpolate(channel[None, None], size, mode=MODES[len(size)], align_corners=True)[0]
    return maps


@pytest.mark.parametrize("psi", PSI)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 4, 5), (9,)), ((3, 4, 5, 6), (9, 8)), ((2, 3, 6, 6), (6, 6)), ((2, 3, 1, 1), (4, 4)), ((2, 2, 2, 3, 2), (4, 4, 5))],
)
def test_psi_is_the_sum_over_rescaled_and_upsampled_channels(psi: str, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    term = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = upsample(PSI[psi](term), size)
    # float64, and the order of a few sums
    torch.testing.assert_close(drawn, by_channel(term, psi, size), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("psi", PSI)
@pytest.mark.parametrize("value", [0.1, 1000.1])
def test_psi_of_a_flat_term_is_that_of_the_definition(psi: str, value: float) -> None:
    term = torch.full((2, 7, 3, 3), value)
    expected = by_channel(term, psi, (3, 3))
    # float32: seven numbers of at most 1 each
    torch.testing.assert_close(PSI[psi](term)[:, None], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("psi", ["absolute", "positive"])
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_psi_is_at_least_zero_and_at_most_one_a_channel(psi: str, offset: float) -> None:
    term = 1e-3 * torch.rand(4, 16, 5, 5, generator=torch.Generator().manual_seed(0)) + offset
    plane = PSI[psi](term)
    assert plane.min() >= 0
    assert plane.max() <= 16 * (1 + 1e-6)  # float32


def test_signed_keeps_signs_and_zeros() -> None:
    term = torch.tensor([[[-2.0, 0.0, 1.0]]])
    # 1e-6 is added to the divisor
    torch.testing.assert_close(PSI["signed"](term), torch.tensor([[-1.0, 0.0, 0.5]]), rtol=1e-5, atol=0)


def test_rescaling_is_by_sample() -> None:
    term = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scaled = term * torch.tensor([1.0, 1000.0]).reshape(2, 1, 1, 1)
    # 1e-6 is added to a range of about 1
    torch.testing.assert_close(PSI["absolute"](scaled), PSI["absolute"](term), rtol=1e-4, atol=1e-5)


def test_psi_may_be_a_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 3, bias=False))
    x = torch.randn(2, 1, 6, 6)
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), x)
    drawn = FullGrad(model, psi=lambda term: term.sum(1)).attribute(x.detach(), target=1)
    # float32 rounding of one product
    torch.testing.assert_close(drawn, (gradient * x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("psi", ["absolut", "", None, 3])
@pytest.mark.ill_typed
def test_an_unknown_psi_is_refused_with_the_known_ones(psi: object) -> None:
    with pytest.raises(ValueError, match=r"psi must be one of absolute, positive, signed"):
        FullGrad(nn.Flatten(), psi=psi)
