"""SmoothFullGrad: the terms of noisy images are averaged before psi."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fg_lightning import FullGrad, SmoothFullGrad
from fg_lightning.fullgrad import PSI
from tests.helpers.saliency_networks import LessTheMean, residual_net


def noisy_versions(images: Tensor, noise: float, seed: int, num_samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ranges = torch.stack([image.max() - image.min() for image in images])
    return [
        images + noise * ranges.reshape(-1, 1, 1, 1) * torch.randn(images.shape[1:], generator=generator).to(images)
        for _ in range(num_samples)
    ]


def test_smooth_fullgrad_averages_terms_before_psi() -> None:
    """On a net of one convolution, whose terms can be written down."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(75, 4)).double().eval()
    images = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    input_terms, bias_terms = [], []
    for noisy in noisy_versions(images, 0.3, 7, 5):
        x = noisy.requires_grad_()
        z = model[0](x)
        gradients = torch.autograd.grad(model[1:](z)[:, 2].sum(), (x, z))
        input_terms.append(gradients[0] * noisy.detach())
        bias_terms.append(gradients[1] * model[0].bias.detach()[:, None, None])
    expected = PSI["absolute"](torch.stack(input_terms).mean(0)) + PSI["absolute"](torch.stack(bias_terms).mean(0))
    drawn = SmoothFullGrad(model, num_samples=5, noise=0.3, seed=7).attribute(images, 2)
    torch.testing.assert_close(drawn[:, 0], expected, rtol=1e-10, atol=1e-10)  # float64 sums in another order


def test_smooth_fullgrad_without_noise_is_fullgrad() -> None:
    model, images = residual_net(), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    smooth = SmoothFullGrad(model, num_samples=2, noise=0.0).attribute(images)
    torch.testing.assert_close(smooth, FullGrad(model).attribute(images), rtol=1e-10, atol=1e-10)


def test_smooth_maps_and_terms_do_not_depend_on_the_batch_or_the_random_state() -> None:
    model, images, method = residual_net(), torch.randn(5, 2, 8, 8, dtype=torch.float64), {"num_samples": 3, "noise": 0.5}
    before = torch.get_rng_state()
    maps, terms = SmoothFullGrad(model, **method).attribute_with_terms(images, [0, 1, 2, 3, 4])
    assert torch.equal(torch.get_rng_state(), before)
    assert terms.completeness_error.max() < 1e-10  # float64
    for internal_batch_size in (1, 2, 5):
        alike = SmoothFullGrad(model, internal_batch_size=internal_batch_size, **method).attribute(images, [0, 1, 2, 3, 4])
        torch.testing.assert_close(alike, maps, rtol=1e-10, atol=1e-10)
    alone = SmoothFullGrad(model, **method).attribute(images[3:4], 3)
    torch.testing.assert_close(alone, maps[3:4], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(SmoothFullGrad(model, seed=1, **method).attribute(images[3:4], 3), alone)


class Windows(nn.Module):
    """Ends in an operation of which it is not known that it keeps samples apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(2, 2, 2).unfold(3, 2, 2).square().mean((-1, -2)).flatten(1)


def test_smooth_fullgrad_takes_images_one_by_one_where_they_cannot_be_told_apart() -> None:
    images = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    method = SmoothFullGrad(Windows(), num_samples=2)
    alone = torch.cat([method.attribute(images[i : i + 1], 1) for i in range(6)])
    torch.testing.assert_close(method.attribute(images, 1), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_smooth_fullgrad_refuses_a_model_that_mixes_samples(n: int) -> None:
    with pytest.raises(ValueError, match="depends on the other images"):
        SmoothFullGrad(LessTheMean(), num_samples=2).attribute(torch.randn(n, 2, 4, 4), 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"num_samples": 0}, "num_samples"), ({"noise": -0.1}, "noise"), ({"internal_batch_size": 0}, "internal_batch_size")],
)
def test_settings_of_smooth_fullgrad_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothFullGrad(nn.Flatten(), **setting)
