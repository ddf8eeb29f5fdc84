"""Shares of saliency maps at the border and in the corners. Networks that rely on frames, marks or timestamps look there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fg_lightning.metrics.localization import relevance_mass

BORDER = 10
"""The border is the outer tenth at every side."""

CORNER = 5
"""A corner has a fifth of the image's height and width.

This was measured on digits of 28 and 56 pixels with and without a corner patch of a tenth of the side (4 seeds each, FullGrad and
SmoothFullGrad). A corner of a tenth misses most peaks of the maps, because they lie beside the patch. A corner of a fifth or more
holds 87 to 100 % of the peaks in a corner of a third. In a corner of a quarter, the first peaks of healthy networks appear.
"""

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def border_mask(size: Sequence[int]) -> Bool[Tensor, "1 1 *s"] | None:
    """A mask of the outer tenth at every side, ceil(side / 10) pixels. In a volume: of every slice. In a signal: at both ends.

    Args:
        size: size of the images in pixels, one to three numbers. The last two are height and width.

    Returns:
        Bool [1, 1, *size], True in the border; None if the border would cover the whole image.

    Examples:
        >>> border_mask((3, 4)).int()[0, 0]
        tensor([[1, 1, 1, 1],
                [1, 0, 0, 1],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    for axis, side in list(enumerate(size, 2))[-2:]:
        width = -(-side // BORDER)
        if 2 * width >= side:
            return None
        mask.narrow(axis, 0, width).fill_(True)
        mask.narrow(axis, side - width, width).fill_(True)
    return mask


def corner_masks(size: Sequence[int]) -> dict[str, Bool[Tensor, "1 1 *s"]]:
    """A mask of each corner, ceil(height / 5) rows of ceil(width / 5) pixels. In a volume: of every slice.

    Args:
        size: size of the images in pixels, one to three numbers. The last two are height and width.

    Returns:
        Name in `CORNERS` -> bool [1, 1, *size], True in that corner. Empty for signals, which have no corners, and for images of
        less than 2 pixels a side.

    Examples:
        >>> corner_masks((3, 4))["bottom_right"].int()[0, 0]
        tensor([[0, 0, 0, 0],
                [0, 0, 0, 0],
                [0, 0, 0, 1]], dtype=torch.int32)
    """
    if len(size) < 2 or min(size[-2:]) < 2:
        return {}
    height, width = size[-2:]
    high, wide = -(-height // CORNER), -(-width // CORNER)
    masks = {}
    for name in CORNERS:
        vertical, horizontal = name.split("_")
        masks[name] = torch.zeros(1, 1, *size, dtype=torch.bool)
        rows = slice(0, high) if vertical == "top" else slice(height - high, height)
        columns = slice(0, wide) if horizontal == "left" else slice(width - wide, width)
        masks[name][..., rows, columns] = True
    return masks


def border_share(maps: Float[Tensor, "n 1 *s"]) -> Float[Tensor, " n"]:
    """The share of every map's sum that lies in the border of `border_mask`. A flat map has the border's share of the area.

    Args:
        maps: [N, 1, *S], floating-point, at least 0. A map of zeros counts as a flat one.

    Returns:
        [N], 0 to 1.

    Raises:
        TypeError: if the maps are not floating-point.
        ValueError: if they are not [N, 1, *S], are too small to have a border, or hold NaN, infinite or negative values.

    Examples:
        >>> border_share(torch.tensor([[[[0.0, 2.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 0.0]]]]))
        tensor([0.2500])
    """
    mask = border_mask(maps.shape[2:])
    if mask is None:
        raise ValueError(f"maps of {list(maps.shape[2:])} pixels are all border; they need at least 3 pixels a side")
    return relevance_mass(maps, mask.to(maps.device).expand_as(maps))


def corner_shares(maps: Float[Tensor, "n 1 *s"]) -> dict[str, Float[Tensor, " n"]]:
    """The share of every map's sum that lies in each corner of `corner_masks`.

    Args:
        maps: [N, 1, *S], floating-point, at least 0. A map of zeros counts as a flat one.

    Returns:
        Name in `CORNERS` -> [N], 0 to 1. Empty for signals, which have no corners, and for images of less than 2 pixels a side.

    Raises:
        TypeError: if the maps are not floating-point.
        ValueError: if they are not [N, 1, *S], or hold NaN, infinite or negative values.

    Examples:
        >>> {name: share.item() for name, share in corner_shares(torch.ones(1, 1, 4, 4)).items()}
        {'top_left': 0.0625, 'top_right': 0.0625, 'bottom_left': 0.0625, 'bottom_right': 0.0625}
    """
    return {name: relevance_mass(maps, mask.to(maps.device).expand_as(maps)) for name, mask in corner_masks(maps.shape[2:]).items()}
