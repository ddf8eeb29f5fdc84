"""The film strip: a row per image, a column per look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from fg_lightning.visualization.mounted import mounted
from fg_lightning.visualization.overlay import RGB, Normalization, any_negative, displayed, enlarged, overlaid, reduced

LARGEST_SIDE = 224
"""Larger frames are reduced: a strip is looked at as a whole."""


def film_strip(
    images: Tensor,
    looks: Sequence[tuple[str, Tensor]],
    *,
    row_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    normalization: Normalization | None = None,
    max_columns: int = 24,
) -> Image.Image:
    """Draws how the maps of some images changed.

    Args:
        images: [N, C, H, W], in whatever units the model takes.
        looks: a title and the maps [N, 1, H, W] for every moment, in order.
        row_names: what stands beside each row, such as the label.
        captions: for every moment what stands below each of its N frames, such as the prediction.
        normalization: of the images, undone where it fits.
        max_columns: of more moments than this, as many evenly spaced ones are shown, the first and the last among them.

    Returns:
        A picture: the image itself, then one overlay for every moment.

    Raises:
        ValueError: if there is nothing to show, or a moment has not one map for every image.
    """
    check_looks("a film strip", images, looks)
    chosen = evenly_spaced(len(looks), max_columns)
    is_signed = any_negative(maps for _, maps in looks)

    def row(i: int, picture: RGB) -> list[RGB]:
        overlays = (overlaid(picture, looks[k][1][i], is_signed=is_signed) for k in chosen)
        return [reduced(shown, LARGEST_SIDE) for shown in (enlarged(picture), *overlays)]

    return mounted(
        [row(i, displayed(image, normalization)) for i, image in enumerate(images)],
        column_names=["image", *(looks[k][0] for k in chosen)],
        row_names=row_names,
        captions=[["", *(captions[k][i] for k in chosen)] for i in range(len(images))] if captions else (),
        is_signed=is_signed,
    )


def check_looks(what: str, images: Tensor, looks: Sequence[tuple[str, Tensor]]) -> None:
    """
    Raises:
        ValueError: if there is nothing to show, or a moment has not one map for every image.
    """
    if not looks or not len(images):
        raise ValueError(f"{what} needs at least one image and one moment")
    if any(len(maps) != len(images) for _, maps in looks):
        raise ValueError(f"every moment must have {len(images)} maps, one for each image")


def evenly_spaced(count: int, at_most: int) -> list[int]:
    """Which of `count` things to show where there is room for so many, the first and the last among them."""
    if count <= at_most:
        return list(range(count))
    return np.linspace(0, count - 1, at_most).round().astype(int).tolist()
