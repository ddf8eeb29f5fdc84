"""Draws the two kinds of marks: a patch in a corner, and an image beside a decoy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]

Area = tuple[slice, slice]
"""Rows and columns."""

PATCH_SHARE = 3 / 28
"""Default side of a patch, as a share of the image's shorter side: 3 pixels of 28."""

MARGIN_SHARE = 1 / 7
"""Default margin around a patch, as a share of the image's shorter side: 4 pixels of 28."""


@dataclass(frozen=True)
class CornerPatch:
    """A square in a corner, whose brightness tells the class.

    The patch of class k of K has the value low + (high - low) (k + 1) / K in all channels.

    Args:
        shape: size of the images, (H, W).
        num_classes: number of classes, K.
        value_range: low and high, in the images' units.
        strength: opacity of the patch. 1: it replaces the pixels; between 0 and 1: it is blended with them; 0: it is invisible.
        size: side of the patch in pixels.
        corner: corner of the patch.
    """

    shape: tuple[int, int]
    num_classes: int
    value_range: tuple[float, float]
    strength: float
    size: int
    corner: Corner

    def area(self, margin: int = 0) -> Area:
        """The rows and columns of the patch and of `margin` pixels around it."""
        height, width = self.shape
        side = self.size + margin
        vertical, horizontal = self.corner.split("_")
        rows = slice(0, min(side, height)) if vertical == "top" else slice(max(height - side, 0), height)
        return rows, slice(0, min(side, width)) if horizontal == "left" else slice(max(width - side, 0), width)

    def draw(self, image: Float[Tensor, "c h w"], mark: int) -> Float[Tensor, "c h w"]:
        """The image with the patch of a class."""
        low, high = self.value_range
        value = low + (high - low) * (mark + 1) / self.num_classes
        rows, columns = self.area()
        drawn = image.clone()
        drawn[:, rows, columns] = (1 - self.strength) * image[:, rows, columns] + self.strength * value
        return drawn


@dataclass(frozen=True)
class DecoyPair:
    """Two images side by side, each at half its size: the mark at the left, the decoy at the right, on a background of low values.

    Args:
        shape: size of the images, (H, W).
        value_range: low and high, in the images' units. Low is the background.
        strength: opacity of the left image. 1: it is unchanged; between 0 and 1: it is blended with the background; 0: it is
            invisible.
    """

    shape: tuple[int, int]
    value_range: tuple[float, float]
    strength: float

    def area(self, margin: int = 0) -> Area:
        """The rows and columns of the left image and of `margin` pixels around it."""
        height, width = self.shape
        top = (height - height // 2) // 2
        return slice(max(top - margin, 0), min(top + height // 2 + margin, height)), slice(0, min(width // 2 + margin, width))

    def draw(self, mark: Float[Tensor, "c h w"], decoy: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """Draws two images into one of the same size."""
        low = self.value_range[0]
        rows, columns = self.area()
        half = (self.shape[0] // 2, self.shape[1] // 2)
        drawn = torch.full_like(mark, low)
        drawn[:, rows, columns] = (1 - self.strength) * low + self.strength * F.adaptive_avg_pool2d(mark, half)
        drawn[:, rows, self.shape[1] - half[1] :] = F.adaptive_avg_pool2d(decoy, half)
        return drawn
