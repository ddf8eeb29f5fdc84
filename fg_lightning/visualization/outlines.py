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
"""Colours of the line and of the dark line around it. They are visible on every image, and the colour maps do not have this hue."""

SIDE_PER_PIXEL = 150
"""In a picture with this side in pixels, lines are one pixel wide. In larger pictures they are wider in proportion."""


def draw_outlines(pictures: Sequence[RGB], masks: Bool[Tensor, "n 1 *s"] | None) -> list[RGB]:
    """Draws a light line along the inner edge of each mask, and a dark line outside of it.

    Args:
        pictures: [H, W, 3] in 0..255, of any size. The masks are scaled to it.
        masks: bool [N, 1, *S], one for each picture; of a volume, the middle slice is drawn. None: the pictures are returned
            unchanged.

    Returns:
        Pictures of the same sizes. The given pictures are not changed.
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
    """The mask and all pixels that are at most `num_pixels` rows and columns away from it."""
    for axis in (0, 1):
        for _ in range(num_pixels):
            grown = mask.copy()
            forth, back = [slice(None), slice(None)], [slice(None), slice(None)]
            forth[axis], back[axis] = slice(1, None), slice(None, -1)
            grown[tuple(forth)] |= mask[tuple(back)]
            grown[tuple(back)] |= mask[tuple(forth)]
            mask = grown
    return mask
