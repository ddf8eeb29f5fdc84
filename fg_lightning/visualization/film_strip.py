"""The film strip: a row per image, a column per look.

The film strip in motion: a sheet of all images for every look, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fg_lightning.atomic_files import replacing
from fg_lightning.visualization.grid import contact_sheet, mounted
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


LARGEST_FRAME = 160
"""Larger overlays are reduced: a GIF of many frames is heavy."""

SECONDS, LAST = 8.0, 2.0
"""How long all frames take together, and the last one besides."""

FASTEST, SLOWEST = 0.08, 0.8
"""Seconds of a frame."""

FORMATS = {".gif": "GIF", ".png": "PNG"}


def animation(
    images: Tensor,
    looks: Sequence[tuple[str, Tensor]],
    *,
    captions: Sequence[Sequence[str]] = (),
    normalization: Normalization | None = None,
    max_frames: int = 60,
) -> list[Image.Image]:
    """Draws a frame for every moment: the maps over their images, side by side.

    Args:
        images: [N, C, H, W], in whatever units the model takes.
        looks: a title and the maps [N, 1, H, W] for every moment, in order.
        captions: for every moment what stands below each of its N overlays, such as the prediction.
        normalization: of the images, undone where it fits.
        max_frames: of more moments than this, as many evenly spaced ones are shown, the first and the last among them.

    Returns:
        Pictures of one size; see `save_animation`.

    Raises:
        ValueError: if there is nothing to show, or a moment has not one map for every image.
    """
    check_looks("an animation", images, looks)
    pictures = [displayed(image, normalization) for image in images]
    is_signed = any_negative(maps for _, maps in looks)
    frames = []
    for k in evenly_spaced(len(looks), max_frames):
        title, maps = looks[k]
        overlays = [
            reduced(overlaid(picture, saliency, is_signed=is_signed), LARGEST_FRAME)
            for picture, saliency in zip(pictures, maps, strict=True)
        ]
        frames.append(contact_sheet(overlays, captions[k] if captions else [""] * len(images), title=title, is_signed=is_signed))
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    return [_padded(frame, size) for frame in frames]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes frames that repeat for ever, the last one staying longer.

    Args:
        frames: of one size.
        path: .gif (256 colours a frame, shown by everything), or .png (APNG: all colours, larger).

    Raises:
        ValueError: if there are no frames, or the path ends otherwise.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    if path.suffix not in FORMATS:
        raise ValueError(f"an animation is written to {' or '.join(FORMATS)}, not {path.name}")
    seconds = min(SLOWEST, max(FASTEST, SECONDS / len(frames)))
    durations = [round(1000 * seconds)] * len(frames)
    durations[-1] += round(1000 * LAST)
    written = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames] if path.suffix == ".gif" else list(frames)
    with replacing(path) as file:
        written[0].save(
            file,
            FORMATS[path.suffix],
            save_all=True,
            append_images=written[1:],
            duration=durations,
            loop=0,
            optimize=path.suffix == ".gif",
        )


def _padded(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    if frame.size == size:
        return frame
    canvas = Image.new("RGB", size, "white")
    canvas.paste(frame)
    return canvas
