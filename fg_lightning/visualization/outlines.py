"""Lines around the places where a network should look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from fg_lightning.visualization.saliency_overlay import RGB, planar

OUTLINE, CASING = (0, 220, 255), (0, 0, 0)
"""The line is light and of a hue that the colour maps do not have; around it lies a dark one, so that it is seen on any image."""

SIDE_PER_PIXEL = 150
"""The lines of a picture of so many pixels a side are one pixel thick, those of larger pictures in proportion."""


def draw_outlines(pictures: Sequence[RGB], masks: Bool[Tensor, "n 1 *s"] | None) -> list[RGB]:
    """Draws a line around the true pixels of each mask, inside of it, and a dark one outside.

    Args:
        pictures: [H, W, 3], of any size: masks are scaled to it.
        masks: one for each picture; of a volume the middle slice. None: the pictures are returned as they are.
    """
    if masks is None:
        return list(pictures)
    return [_outline(picture, mask) for picture, mask in zip(pictures, planar(masks), strict=True)]


def _outline(picture: RGB, mask: Bool[Tensor, "1 h w"]) -> RGB:
    size = picture.shape[:2]
    inside = F.interpolate(mask[None].float().cpu(), size, mode="nearest-exact")[0, 0].numpy() > 0.5
    if not inside.any():
        return picture
    width = max(1, round(min(size) / SIDE_PER_PIXEL))
    outlined = picture.copy()
    outlined[_dilate(inside, 1) & ~inside] = CASING
    outlined[inside & _dilate(~np.pad(inside, width), width)[width:-width, width:-width]] = OUTLINE
    return outlined


def _dilate(mask: npt.NDArray[np.bool_], num_pixels: int) -> npt.NDArray[np.bool_]:
    """The mask and all pixels that lie at most so many rows and columns from it."""
    for axis in (0, 1):
        for _ in range(num_pixels):
            grown = mask.copy()
            forth, back = [slice(None), slice(None)], [slice(None), slice(None)]
            forth[axis], back[axis] = slice(1, None), slice(None, -1)
            grown[tuple(forth)] |= mask[tuple(back)]
            grown[tuple(back)] |= mask[tuple(forth)]
            mask = grown
    return mask
