"""Concentration: on how few pixels a saliency map lies."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fg_lightning.metrics.sample_means import SampleMeans
from fg_lightning.removal.pixel_ranking import check_maps


def gini_index(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The Gini index of every map (Hurley & Rickard 2009): 0 if it is flat, 1 - 1 / number of pixels if it is one pixel.

    Args:
        maps: [N, 1, *S], at least 0. A map of zeros is taken for a flat one.

    Raises:
        TypeError: if the maps are no floating-point tensor.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.

    Examples:
        >>> gini_index(torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0, 5.0]]]))
        tensor([0.0000, 0.7500])
    """
    shares = shares_of(maps).sort(1).values
    pixels = shares.shape[1]
    weights = torch.arange(pixels - 0.5, 0, -1, device=shares.device) / pixels
    return 1 - 2 * shares @ weights


def entropy(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The entropy of every map's shares of its sum, relative to the largest there can be: 1 if it is flat, 0 if it is one pixel.

    Takes and raises what `gini_index` does.

    Examples:
        >>> entropy(torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]]]))
        tensor([1.0000, 0.5000])
    """
    shares = shares_of(maps)
    return torch.special.entr(shares).sum(1) / max(math.log(shares.shape[1]), 1e-12)


class Concentration(SampleMeans):
    """Mean `gini_index` and `entropy` of maps.

    `update(maps)` takes what they do; `compute()` gives both by name.

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
        self._add(gini_index(maps), entropy(maps))


def check_finite(maps: Float[Tensor, "n 1 *s"]) -> None:
    """
    Raises:
        ValueError: if a value is infinite: nothing is a share of it.
    """
    infinite = int(maps.isinf().sum())
    if infinite:
        raise ValueError(
            f"{infinite} of {maps.numel()} saliency values are infinite, and nothing is a share of infinity; "
            "compute maps in float32, or clamp them"
        )


def shares_of(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, "n p"]:
    """What share of its map's sum every pixel holds; the same for all pixels of a map of zeros.

    Raises:
        TypeError: if the maps are no floating-point tensor.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.
    """
    check_maps(maps)
    check_finite(maps)
    saliency = maps.detach().flatten(1).float()
    negative = int((saliency < 0).sum())
    if negative:
        raise ValueError(
            f"{negative} of {saliency.numel()} saliency values are negative, but shares of a map are of what is at least 0; "
            "take maps.abs(), or maps.clamp_min(0) for what speaks for the output alone"
        )
    # Sums of the largest values would overflow, and of the smallest vanish.
    saliency = saliency / saliency.amax(1, keepdim=True).clamp_min(torch.finfo(saliency.dtype).tiny)
    total = saliency.sum(1, keepdim=True)
    return torch.where(total > 0, saliency / total, 1 / saliency.shape[1])
