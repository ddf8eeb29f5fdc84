"""Concentration: measures whether a saliency map is spread over few or many pixels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fg_lightning.metrics.sample_mean_metric import SampleMeanMetric
from fg_lightning.removal.pixel_ranking import check_maps


def gini_index(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The Gini index of every map (Hurley & Rickard 2009): 0 if it is flat, 1 - 1 / number of pixels if it is one pixel.

    Args:
        maps: [N, 1, *S], floating-point, at least 0. A map of zeros counts as a flat one.

    Returns:
        [N].

    Raises:
        TypeError: if the maps are not a floating-point tensor.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.

    Examples:
        >>> gini_index(torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 5.0]]]))
        tensor([0.0000, 0.7500])
    """
    shares = pixel_shares(maps).sort(1).values
    pixels = shares.shape[1]
    weights = torch.arange(pixels - 0.5, 0, -1, device=shares.device) / pixels
    return 1 - 2 * shares @ weights


def entropy(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The entropy of every map's pixel shares, relative to the largest possible: 1 if it is flat, 0 if it is one pixel.

    Args:
        maps: [N, 1, *S], floating-point, at least 0. A map of zeros counts as a flat one.

    Returns:
        [N], 0 to 1.

    Raises:
        TypeError: if the maps are not a floating-point tensor.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.

    Examples:
        >>> entropy(torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]]]))
        tensor([1.0000, 0.5000])
    """
    shares = pixel_shares(maps)
    return torch.special.entr(shares).sum(1) / max(math.log(shares.shape[1]), 1e-12)


class Concentration(SampleMeanMetric):
    """Mean `gini_index` and `entropy` of maps.

    `update(maps)` has their argument. `compute()` returns a dict with "gini_index" and "entropy".

    Args:
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Examples:
        >>> metric = Concentration()
        >>> metric.update(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))
        >>> metric.compute()
        {'gini_index': tensor(0.5000), 'entropy': tensor(0.5000)}
    """

    names = ("gini_index", "entropy")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, maps: Float[Tensor, "n 1 *s"]) -> None:
        """Adds a batch. It has the argument and errors of `gini_index`."""
        self._add(gini_index(maps), entropy(maps))


def check_finite(maps: Float[Tensor, "n 1 *s"]) -> None:
    """Raises ValueError if a value is infinite."""
    infinite = int(maps.isinf().sum())
    if infinite:
        raise ValueError(
            f"{infinite} of {maps.numel()} saliency values are infinite, so pixels have no share of the sum; "
            "compute maps in float32, or clamp them"
        )


def pixel_shares(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, "n p"]:
    """The share of every pixel in the sum of its map, [N, P]. In a map of zeros all shares are equal.

    Raises:
        TypeError: if the maps are not a floating-point tensor.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.
    """
    check_maps(maps)
    check_finite(maps)
    saliency = maps.detach().flatten(1).float()
    negative = int((saliency < 0).sum())
    if negative:
        raise ValueError(
            f"{negative} of {saliency.numel()} saliency values are negative, but the shares of a map need values of at least 0; "
            "use maps.abs(), or maps.clamp_min(0) for only the parts that support the output"
        )
    # Otherwise sums of the largest values overflow, and sums of the smallest vanish.
    saliency = saliency / saliency.amax(1, keepdim=True).clamp_min(torch.finfo(saliency.dtype).tiny)
    total = saliency.sum(1, keepdim=True)
    return torch.where(total > 0, saliency / total, 1 / saliency.shape[1])
