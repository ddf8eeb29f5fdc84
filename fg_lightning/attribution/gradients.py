"""Methods that use input gradients: Captum's methods, and averages over noisy copies of an image (SmoothGrad, VarGrad).

A map is the sum of the magnitudes over channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import torch
from captum.attr import InputXGradient, Saliency
from captum.attr import IntegratedGradients as CaptumsIntegratedGradients
from jaxtyping import Float
from torch import Tensor

from fg_lightning.attribution.method import Draw, Scores, channel_sum
from fg_lightning.sample_seeds import seeds_of


def gradient(scores: Scores, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """|grad f|, Simonyan et al. 2014."""
    return channel_sum(Saliency(scores).attribute(images))


def input_x_gradient(scores: Scores, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """|x * grad f|, Shrikumar et al. 2016."""
    return channel_sum(InputXGradient(scores).attribute(images))


def integrated_gradients(
    scores: Scores,
    images: Float[Tensor, "n c *s"],
    *,
    baseline: Union[float, Tensor] = 0.0,
    num_steps: int = 50,
    internal_batch_size: int = 16,
) -> Float[Tensor, "n 1 *s"]:
    """|(x - x0) * mean gradient| on the line from the baseline x0 to the image x, Sundararajan et al. 2017.

    Args:
        baseline: x0, in the images' units: a number, or a tensor that broadcasts to the images. Default: 0.
        num_steps: number of gradients in the integral, by the Gauss-Legendre rule. Default: 50.
        internal_batch_size: largest number of images that go through the model at once, but at least the batch itself. Default: 16.
    """
    size = max(internal_batch_size, len(images))
    baseline = baseline.to(images).expand_as(images) if isinstance(baseline, Tensor) else baseline
    attribution = CaptumsIntegratedGradients(scores)
    return channel_sum(attribution.attribute(images, baselines=baseline, n_steps=num_steps, internal_batch_size=size))


Statistic = Callable[[Tensor, Tensor], Tensor]
"""(mean, variance) of the gradient over noisy copies -> attributions; all are [N, C, *S]."""


def over_noisy_copies(statistic: Statistic) -> Draw:
    """A saliency method from a statistic of the gradient over noisy copies of the image.

    The method's settings are

        num_samples: number of noisy copies of each image. Default: 25.
        noise: standard deviation of the Gaussian noise, as a share of each image's range, max - min. Default: 0.15.
        seed: the noise of an image depends only on it and on the values of the image, not on the batch. Default: 0.
        internal_batch_size: largest number of images that go through the model at once, but at least the batch itself. Default: 16.
    """

    def draw(
        scores: Scores,
        images: Float[Tensor, "n c *s"],
        *,
        num_samples: int = 25,
        noise: float = 0.15,
        seed: int = 0,
        internal_batch_size: int = 16,
    ) -> Float[Tensor, "n 1 *s"]:
        return channel_sum(statistic(*_moments(scores, images, num_samples, noise, seed, internal_batch_size)))

    draw.__name__, draw.__qualname__, draw.__doc__ = statistic.__name__, statistic.__qualname__, statistic.__doc__
    return draw


@over_noisy_copies
def smoothgrad(mean: Tensor, variance: Tensor) -> Tensor:
    """|mean of grad f|, Smilkov et al. 2017."""
    return mean


@over_noisy_copies
def smoothgrad_squared(mean: Tensor, variance: Tensor) -> Tensor:
    """Mean of (grad f)^2, Hooker et al. 2019."""
    return mean.square() + variance


@over_noisy_copies
def vargrad(mean: Tensor, variance: Tensor) -> Tensor:
    """Variance of grad f, Adebayo et al. 2018."""
    return variance


def _moments(
    scores: Scores, images: Tensor, num_samples: int, noise: float, seed: int, internal_batch_size: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the gradient over noisy copies, [N, C, *S] each.

    Captum's NoiseTunnel is not used: it draws from the global generator, so its maps depend on the batch. It also has one standard
    deviation for all images.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    if noise < 0:
        raise ValueError(f"noise must be at least 0, a share of each image's range, not {noise}")
    everywhere = tuple(range(1, images.ndim))
    scale = noise * (images.detach().amax(everywhere, keepdim=True) - images.detach().amin(everywhere, keepdim=True))
    generators = [torch.Generator().manual_seed(own) for own in seeds_of(images, seed)]
    saliency = Saliency(scores)
    mean, squares = torch.zeros_like(images, requires_grad=False), torch.zeros_like(images, requires_grad=False)
    at_once = max(1, internal_batch_size // len(images))
    for done in range(0, num_samples, at_once):
        copies = min(at_once, num_samples - done)
        # Each copy has its own draw, so that the noise does not depend on how many copies go through at once.
        rows = [[torch.randn(images.shape[1:], generator=own) for own in generators] for _ in range(copies)]
        noisy = torch.cat([images.detach() + scale * torch.stack(row).to(images) for row in rows]).requires_grad_()
        gradients = saliency.attribute(noisy, abs=False).unflatten(0, (copies, len(images)))
        # Chan et al. 1983: sums of squared differences to the mean, which avoid cancellation.
        share = copies / (done + copies)
        shift = gradients.mean(0) - mean
        squares += (gradients - gradients.mean(0)).square().sum(0) + shift.square() * done * share
        mean += shift * share
    return mean, squares / num_samples
