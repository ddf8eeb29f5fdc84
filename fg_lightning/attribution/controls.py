"""Maps that know nothing of the model, and blurred ones: what a method has to beat."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from fg_lightning.attribution.method import Factory, OneOrTuple, Scores, channel_sum, named_after
from fg_lightning.fullgrad.target import Target
from fg_lightning.sample_seeds import seeds_of

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""By the number of spatial dimensions."""


def random(scores: Scores, images: Float[Tensor, "n c *s"], *, seed: int = 0) -> Float[Tensor, "n 1 *s"]:
    """Independent uniform numbers in [0, 1).

    Args:
        seed: an image draws its map from it and from what the image holds, whatever the batch around it.
    """
    generators = [torch.Generator().manual_seed(own) for own in seeds_of(images, seed)]
    return torch.stack([torch.rand(1, *images.shape[2:], generator=own) for own in generators]).to(images)


def edges(scores: Scores, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n 1 *s"]:
    """Magnitude of the image's gradient by Sobel's filter: the model-blind control of Hooker et al. 2019."""
    axes = images.ndim - 2
    planes = images.detach().flatten(0, 1).unsqueeze(1)
    padded = F.pad(planes, (1, 1) * axes, mode="replicate")
    squares = torch.zeros_like(planes)
    for axis in range(axes):
        kernel = torch.ones((), dtype=images.dtype, device=images.device)
        for other in range(axes):
            kernel = kernel.unsqueeze(-1) * kernel.new_tensor([-1, 0, 1] if other == axis else [1, 2, 1])
        squares += CONVOLUTION[axes](padded, kernel[None, None]).square()
    return channel_sum(squares.sqrt().reshape(images.shape))


class Blurred(Attribution):
    """The maps of another method under a Gaussian blur.

    ROAR's scores rise with the blurriness of the maps alone (Song et al. 2023, arXiv 2304.13836): this is the control for it.

    Args:
        attribution: whose `attribute(images, target)` gives maps [N, 1, *S].
        sigma: the Gaussian's standard deviation in pixels; None for a 28th of the longest side, 8 for 224.
    """

    def __init__(self, attribution: Attribution, sigma: float | None = None) -> None:
        if sigma is not None and sigma <= 0:
            raise ValueError(f"sigma must be more than 0 pixels, not {sigma}")
        super().__init__(attribution.forward_func)
        self.attribution = attribution
        self.sigma = sigma

    @log_usage()
    def attribute(self, inputs: OneOrTuple, target: Target = None) -> OneOrTuple:  # type: ignore[override]
        """The maps of the other method, blurred; takes and raises what it does."""
        maps = self.attribution.attribute(inputs, target=target)
        return (self._blurred(maps[0]),) if isinstance(maps, tuple) else self._blurred(maps)

    def _blurred(self, maps: Tensor) -> Tensor:
        sigma = max(maps.shape[2:]) / 28 if self.sigma is None else self.sigma
        return blur(maps, sigma)


def blurred(factory: Factory) -> Factory:
    """The factory of the blurred version of a method; it takes `sigma` beside the method's own settings."""

    def build(model: nn.Module, *, sigma: float | None = None, **settings: Any) -> Blurred:
        return Blurred(factory(model, **settings), sigma)

    return named_after(factory, build, "blurred_")


def blur(maps: Float[Tensor, "n 1 *s"], sigma: float) -> Float[Tensor, "n 1 *s"]:
    """A Gaussian blur along every axis in turn, mirrored at the borders, cut off at three sigma or where the axis ends."""
    for axis in range(2, maps.ndim):
        length = maps.shape[axis]
        radius = min(ceil(3 * sigma), length - 1)
        # An axis at a time, as pictures one pixel high: torchvision blurs pictures only.
        lines = maps.movedim(axis, -1)
        with torch.autocast(maps.device.type, enabled=False):
            smooth = gaussian_blur(lines.reshape(-1, 1, 1, length), [2 * radius + 1, 1], [sigma, sigma])
        maps = smooth.reshape(lines.shape).movedim(-1, axis)
    return maps
