"""Localization: measures whether saliency maps lie on a mask, such as that of the object."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.attribution.controls import CONVOLUTION
from fg_lightning.metrics.concentration import pixel_shares
from fg_lightning.metrics.sample_mean_metric import SampleMeanMetric
from fg_lightning.removal.pixel_ranking import check_maps


def pointing_game(maps: Float[Tensor, "n 1 *s"], mask: Bool[Tensor, "n 1 *s"], *, tolerance: int = 0) -> Float[Tensor, " n"]:
    """Whether the most salient pixel of every map lies on the mask (Zhang et al. 2018): 1 or 0.

    If several pixels are equally the most salient, it is the share of them that lies on the mask.

    Args:
        maps: [N, 1, *S], floating-point.
        mask: True where the object is, bool [N, 1, *S].
        tolerance: pixels at most so far from the mask count, too; the Euclidean distance in pixels. The paper uses 15. Default: 0.

    Returns:
        [N], 0 to 1.

    Raises:
        TypeError: if the maps are not floating-point or the mask is not boolean.
        ValueError: if shapes do not fit, the maps hold NaN, a mask is empty, or the tolerance is negative.

    Examples:
        >>> maps = torch.tensor([[[[0.1, 0.9], [0.2, 0.3]]]])
        >>> pointing_game(maps, torch.tensor([[[[False, True], [False, False]]]]))
        tensor([1.])
    """
    check_maps(maps)
    mask = _check_mask(mask, maps)
    if tolerance < 0:
        raise ValueError(f"tolerance must be a number of pixels, at least 0, but is {tolerance}")
    near = _dilate(mask, tolerance).flatten(1)
    saliency = maps.detach().flatten(1)
    peaks = saliency == saliency.amax(1, keepdim=True)
    return (peaks & near).sum(1) / peaks.sum(1)


def relevance_mass(maps: Float[Tensor, "n 1 *s"], mask: Bool[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The share of every map's sum that lies on the mask (Arras et al. 2022, relevance mass accuracy).

    Args:
        maps: [N, 1, *S], floating-point, at least 0. A map of zeros counts as a flat one.
        mask: True where the object is, bool [N, 1, *S].

    Returns:
        [N], 0 to 1.

    Raises:
        TypeError: if the maps are not floating-point or the mask is not boolean.
        ValueError: if shapes do not fit, the maps hold NaN, infinite or negative values, or a mask is empty.

    Examples:
        >>> maps = torch.tensor([[[[1.0, 3.0], [2.0, 2.0]]]])
        >>> relevance_mass(maps, torch.tensor([[[[False, True], [False, False]]]]))
        tensor([0.3750])
    """
    shares = pixel_shares(maps)
    mask = _check_mask(mask, maps)
    return (shares * mask.flatten(1)).sum(1)


class PointingGame(SampleMeanMetric):
    """The share of images whose most salient pixel lies on their mask: `pointing_game`.

    `update(maps, mask)` has its arguments. `compute()` returns a dict with "pointing_game".

    Args:
        tolerance: as in `pointing_game`. Default: 0.
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.
    """

    names = ("pointing_game",)
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, tolerance: int = 0, **settings: Any) -> None:
        super().__init__(tolerance, **settings)
        self.tolerance = tolerance

    def update(self, maps: Float[Tensor, "n 1 *s"], mask: Bool[Tensor, "n 1 *s"]) -> None:
        """Adds a batch. It has the arguments and errors of `pointing_game`."""
        self._add(pointing_game(maps, mask, tolerance=self.tolerance))


class RelevanceMass(SampleMeanMetric):
    """The mean share of a map's sum that lies on its mask: `relevance_mass`.

    `update(maps, mask)` has its arguments. `compute()` returns a dict with "relevance_mass".

    Args:
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.
    """

    names = ("relevance_mass",)
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, maps: Float[Tensor, "n 1 *s"], mask: Bool[Tensor, "n 1 *s"]) -> None:
        """Adds a batch. It has the arguments and errors of `relevance_mass`."""
        self._add(relevance_mass(maps, mask))


def _check_mask(mask: Tensor, maps: Tensor) -> Tensor:
    """The mask on the device of the maps."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        got = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor, True where the object is, not {got}; compare it first, e.g. mask > 0")
    if mask.shape != maps.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, but must have the shape of the maps, {tuple(maps.shape)}")
    empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(mask)} masks are empty, first that of image {empty[0]} of the batch: "
            "no map can agree with them, so leave such images out"
        )
    return mask.to(maps.device)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """The mask and every pixel within a Euclidean distance of `radius` pixels."""
    if radius == 0:
        return mask
    axes = mask.ndim - 2
    offsets = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * axes, indexing="ij")
    ball = torch.stack(offsets).square().sum(0) <= radius**2
    return CONVOLUTION[axes](mask.float(), ball.to(mask.device).float()[None, None], padding=radius) > 0.5
