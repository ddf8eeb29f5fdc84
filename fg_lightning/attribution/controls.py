"""Controls: maps that do not depend on the model, and blurred maps. A method should beat them."""

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

from fg_lightning.attribution.method import Factory, OneOrTuple, Scores, channel_sum, copy_name
from fg_lightning.fullgrad.target import Target
from fg_lightning.sample_seeds import seeds_of

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""Number of spatial dimensions -> convolution."""


def random(scores: Scores, images: Float[Tensor, "n c *s"], *, seed: int = 0) -> Float[Tensor, "n 1 *s"]:
    """Independent uniform numbers in [0, 1).

    Args:
        seed: the map of an image depends only on it and on the values of the image, not on the batch. Default: 0.
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

    It is a control for ROAR: on CIFAR-10, SVHN and CUB-200, ROAR's scores rose with the blurriness of the masks (Song et al. 2023,
    arXiv 2304.13836).

    Args:
        attribution: an attribution whose `attribute(images, target)` returns maps [N, 1, *S].
        sigma: the Gaussian's standard deviation in pixels. Default: None, the longest side divided by 28, such as 8 for 224.

    Raises:
        ValueError: if sigma is not more than 0.
    """

    def __init__(self, attribution: Attribution, sigma: float | None = None) -> None:
        if sigma is not None and sigma <= 0:
            raise ValueError(f"sigma must be more than 0 pixels, not {sigma}")
        super().__init__(attribution.forward_func)
        self.attribution = attribution
        self.sigma = sigma

    @log_usage()
    def attribute(  # type: ignore[override]
        self, inputs: OneOrTuple, target: Target = None, additional_forward_args: Any = None
    ) -> OneOrTuple:
        """The maps of the other method, blurred. It has the arguments and errors of the other method."""
        # The user's own attribution may not have the last argument.
        arguments = {} if additional_forward_args is None else {"additional_forward_args": additional_forward_args}
        maps = self.attribution.attribute(inputs, target=target, **arguments)
        plain = maps[0] if isinstance(maps, tuple) else maps
        smooth = blur(plain, max(plain.shape[2:]) / 28 if self.sigma is None else self.sigma)
        return (smooth,) if isinstance(maps, tuple) else smooth


def blur_method(factory: Factory) -> Factory:
    """The factory of the blurred version of a method. Its settings are `sigma` and those of the method."""

    def build(model: nn.Module, *, sigma: float | None = None, **settings: Any) -> Blurred:
        return Blurred(factory(model, **settings), sigma)

    return copy_name(factory, build, "blurred_")


def blur(maps: Float[Tensor, "n 1 *s"], sigma: float) -> Float[Tensor, "n 1 *s"]:
    """Blurs maps with a Gaussian along every axis in turn. It is mirrored at the borders and cut off at three sigma.

    Args:
        maps: [N, 1, *S].
        sigma: standard deviation in pixels. On a short axis, the Gaussian is cut off at the length of the axis.
    """
    for axis in range(2, maps.ndim):
        length = maps.shape[axis]
        radius = min(ceil(3 * sigma), length - 1)
        # One axis at a time, as images of one pixel width: torchvision can blur only images.
        lines = maps.movedim(axis, -1)
        with torch.autocast(maps.device.type, enabled=False):
            smooth = gaussian_blur(lines.reshape(-1, 1, 1, length), [2 * radius + 1, 1], [sigma, sigma])
        maps = smooth.reshape(lines.shape).movedim(-1, axis)
    return maps
