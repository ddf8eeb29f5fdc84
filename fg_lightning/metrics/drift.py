"""Drift: how much saliency maps differ, from one snapshot to the next or from one method to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_lightning.metrics.concentration import check_finite
from fg_lightning.metrics.sample_mean_metric import SampleMeanMetric
from fg_lightning.removal.pixel_ranking import check_maps


def rank_correlation(maps: Float[Tensor, "n 1 *s"], others: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of two maps of each image: 1 for the same order of pixels, -1 for the reverse.

    Pixels of equal saliency share their mean rank. A flat map has no order, and its correlation is 0. torchmetrics'
    `spearman_corrcoef` takes one map at a time and adds the ranks of equal pixels in 32 bits, which is wrong for 65,536 of them or
    more.

    Args:
        maps: [N, 1, *S], floating-point.
        others: maps of the same images, [N, 1, *S], floating-point.

    Returns:
        [N], -1 to 1.

    Raises:
        TypeError: if either is not a floating-point tensor.
        ValueError: if they are not [N, 1, *S] of the same shape, or hold NaN.

    Examples:
        >>> maps = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> rank_correlation(maps, torch.tensor([[[1.0, 9.0, 4.0]]]))
        tensor([0.5000])
    """
    _check_pair(maps, others)
    return F.cosine_similarity(_center_ranks(maps.flatten(1)), _center_ranks(others.flatten(1)))


def cosine_drift(maps: Float[Tensor, "n 1 *s"], others: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """1 - cosine similarity of two maps of each image: 0 if one is a positive multiple of the other, at most 1 without negatives.

    Two maps that are zero everywhere have the distance 0, one of them and any other map the distance 1.

    Args:
        maps: [N, 1, *S], floating-point.
        others: maps of the same images, [N, 1, *S], floating-point.

    Returns:
        [N], 0 to 2; 0 to 1 for maps without negative values.

    Raises:
        TypeError: if either is not a floating-point tensor.
        ValueError: if they are not [N, 1, *S] of the same shape, or hold NaN or infinite values.

    Examples:
        >>> maps = torch.tensor([[[3.0, 4.0]]])
        >>> cosine_drift(maps, torch.tensor([[[1.0, 0.0]]]))
        tensor([0.4000])
    """
    _check_pair(maps, others)
    check_finite(maps)
    check_finite(others)
    are_zero = ~maps.flatten(1).any(1) & ~others.flatten(1).any(1)
    return (1 - F.cosine_similarity(_to_unit_scale(maps), _to_unit_scale(others))).clamp_min(0).masked_fill(are_zero, 0)


class Drift(SampleMeanMetric):
    """Mean `rank_correlation` and `cosine_drift` between two maps of each image.

    `update(maps, others)` has their arguments. `compute()` returns a dict with "rank_correlation" and "cosine_drift".

    Args:
        **settings: settings of every torchmetrics metric, such as `sync_on_compute`.

    Examples:
        >>> metric = Drift()
        >>> metric.update(torch.tensor([[[0.0, 3.0, 4.0]]]), torch.tensor([[[0.0, 4.0, 3.0]]]))
        >>> metric.compute()
        {'rank_correlation': tensor(0.5000), 'cosine_drift': tensor(0.0400)}
    """

    names = ("rank_correlation", "cosine_drift")

    def update(self, maps: Float[Tensor, "n 1 *s"], others: Float[Tensor, "n 1 *s"]) -> None:
        """Adds a batch. It has the arguments and errors of `cosine_drift`."""
        self._add(rank_correlation(maps, others), cosine_drift(maps, others))


def _check_pair(maps: Tensor, others: Tensor) -> None:
    check_maps(maps)
    check_maps(others)
    if maps.shape != others.shape:
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} cannot be compared with maps of shape {tuple(others.shape)}: "
            "expected two maps of each image, of the same size"
        )


def _to_unit_scale(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, "n p"]:
    """Each map divided by its largest magnitude: the squares of very small and very large numbers do not fit into 32 bits."""
    flat = maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest > 0, largest, 1)


def _center_ranks(values: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """(rank in its row - mean rank) / number of values, for every value. Equal values share their mean rank."""
    pixels = values.shape[1]
    ordered, order = values.detach().sort(1)
    places = torch.arange(pixels, device=values.device)
    rises = F.pad(ordered[:, 1:] > ordered[:, :-1], (1, 1), value=True)
    first = torch.where(rises[:, :-1], places, 0).cummax(1).values
    last = torch.where(rises[:, 1:], places, pixels).flip(1).cummin(1).values.flip(1)
    centred = (first + last - (pixels - 1)).float() / (2 * pixels)
    return torch.empty_like(centred).scatter_(1, order, centred)
