"""Methods that are one gradient, or an integral of it: Captum's, drawn as the sum of magnitudes over channels."""

from __future__ import annotations

from typing import Union

from captum.attr import InputXGradient, Saliency
from captum.attr import IntegratedGradients as CaptumsIntegratedGradients
from jaxtyping import Float
from torch import Tensor

from fg_lightning.attribution.method import Scores, channel_sum


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
    n_steps: int = 50,
    internal_batch_size: int = 16,
) -> Float[Tensor, "n 1 *s"]:
    """|x - x0| times the mean gradient on the way from the baseline x0 to the image, Sundararajan et al. 2017.

    Args:
        baseline: x0, in the images' units: a number or a tensor that goes with the images.
        n_steps: how many gradients the integral is computed from, by Gauss and Legendre's rule.
        internal_batch_size: so many images at most go through the model at once, or the batch where it is larger.
    """
    size = max(internal_batch_size, len(images))
    attribution = CaptumsIntegratedGradients(scores)
    return channel_sum(attribution.attribute(images, baselines=baseline, n_steps=n_steps, internal_batch_size=size))
