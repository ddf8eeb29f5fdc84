"""The film strip: a row per image, a column per epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fg_lightning.visualization.overlay import RGB, displayed, enlarged, overlay

GAP = 6
"""Pixels between two frames."""


def film_strip(
    images: Tensor, looks: Sequence[tuple[str, Tensor]], *, row_names: Sequence[str] | None = None, max_columns: int = 24
) -> Figure:
    """Draws how the maps of some images changed.

    Args:
        images: [N, C, H, W], in whatever units the model takes.
        looks: a title and the maps [N, 1, H, W] for every moment, in order.
        row_names: what stands beside each row, such as the label.
        max_columns: of more moments than this, as many evenly spaced ones are shown, the first and the last among them.

    Returns:
        A matplotlib figure: the image itself, then one overlay for every moment.

    Raises:
        ValueError: if there is nothing to show, or a moment has not one map for every image.
    """
    if not looks or not len(images):
        raise ValueError("a film strip needs at least one image and one moment")
    if any(len(maps) != len(images) for _, maps in looks):
        raise ValueError(f"every moment must have {len(images)} maps, one for each image")
    if len(looks) > max_columns:
        looks = [looks[i] for i in np.linspace(0, len(looks) - 1, max_columns).round().astype(int)]
    rows = [[enlarged(displayed(image)), *(overlay(image, maps[i]) for _, maps in looks)] for i, image in enumerate(images)]
    canvas, tops, lefts = _mounted(rows)
    height, width = rows[0][0].shape[:2]

    dpi = 100
    lines = max(title.count("\n") for title, _ in looks) + 1
    margin_left, margin_top = (90 if row_names else 12), 16 + 16 * lines
    size = ((canvas.shape[1] + margin_left + 12) / dpi, (canvas.shape[0] + margin_top + 12) / dpi)
    figure = Figure(figsize=size, dpi=dpi, facecolor="white")
    box = (margin_left / dpi / size[0], 12 / dpi / size[1], canvas.shape[1] / dpi / size[0], canvas.shape[0] / dpi / size[1])
    axes = figure.add_axes(box)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks([left + width / 2 for left in lefts], ["image", *(title for title, _ in looks)])
    axes.set_yticks([top + height / 2 for top in tops] if row_names else [], row_names or [])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _mounted(rows: list[list[RGB]]) -> tuple[RGB, list[int], list[int]]:
    """All frames on one white canvas, and where their rows and columns begin."""
    height, width = rows[0][0].shape[:2]
    tops = [i * (height + GAP) for i in range(len(rows))]
    lefts = [j * (width + GAP) for j in range(len(rows[0]))]
    canvas = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, dtype=np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for left, frame in zip(lefts, row, strict=True):
            canvas[top : top + height, left : left + width] = frame
    return canvas, tops, lefts
