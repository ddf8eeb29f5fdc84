"""Frames in rows and columns on white, with words around them.

The contact sheet: the overlays of one moment, each with what the network says of it.

One image as several methods explain it, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fg_lightning.visualization.overlay import RGB, Normalization, any_negative, colour_bar, displayed, enlarged, overlaid

GAP = 6
"""Pixels between two frames."""

WIDEST_NAME = 160
"""Pixels of a row's name."""

LINE = 15
"""Pixels from one line of words to the next."""


def mounted(
    rows: Sequence[Sequence[RGB]],
    *,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    title: str = "",
    is_signed: bool = False,
) -> Image.Image:
    """All frames on one canvas, the colour bar of their maps at its right.

    Args:
        rows: frames of one size, [H, W, 3]; a row may be shorter than the first.
        column_names: above the columns.
        row_names: beside the rows.
        captions: below each frame; for each row one for each of its frames.
        title: above everything.
        is_signed: whether the maps have negative values.
    """
    height, width = rows[0][0].shape[:2]
    lines = max((caption.count("\n") + 1 for row in captions for caption in row), default=0)
    pitch = height + LINE * lines + GAP
    row_names = [_fitted(name, WIDEST_NAME) for name in row_names]
    left = 12 + max((_width(name) for name in row_names), default=-8) + 8
    heading = LINE + 4 if title else 0
    top = 12 + heading + LINE * max((name.count("\n") + 1 for name in column_names), default=0)
    right = left + max(len(row) for row in rows) * (width + GAP)
    bar_width = 8 + 6 + max(_width("high"), _width("low"), _width("against")) + 12
    canvas = Image.new("RGB", (right + bar_width, top + len(rows) * pitch + GAP), "white")
    draw = ImageDraw.Draw(canvas)

    _write(draw, (left, 6), title)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            canvas.paste(Image.fromarray(frame), (left + j * (width + GAP), top + i * pitch))
        for j, caption in enumerate(captions[i] if captions else ()):
            place = left + j * (width + GAP), top + i * pitch + height + 1
            _write(draw, place, _fitted(caption, width))
    for j, name in enumerate(column_names):
        _write(draw, (left + j * (width + GAP) + width // 2, 6 + heading), _fitted(name, width), anchor="ma", align="center")
    for i, name in enumerate(row_names):
        _write(draw, (left - 8, top + i * pitch + height // 2), name, anchor="rm")

    canvas.paste(Image.fromarray(colour_bar(height, is_signed=is_signed)), (right, top))
    highest, lowest = ("for", "against") if is_signed else ("high", "low")
    _write(draw, (right + 14, top), highest)
    _write(draw, (right + 14, top + height - LINE), lowest)
    return canvas


def pixels(picture: Image.Image) -> RGB:
    """A picture as [H, W, 3] in 0..255."""
    rgb: RGB = np.asarray(picture.convert("RGB"))
    return rgb


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, **options: str) -> None:
    draw.multiline_text(place, words, fill="black", font=_font(), spacing=2, **options)  # type: ignore[arg-type]


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 11)


@cache
def _width(words: str) -> int:
    return max(round(_font().getlength(line)) for line in words.split("\n"))


@cache
def _fitted(words: str, width: int) -> str:
    """Lines of words that fit into so many pixels, with an ellipsis for what does not."""
    lines = words.split("\n")
    for i, line in enumerate(lines):
        while line and _width(lines[i]) > width:
            line = line[:-1]
            lines[i] = line.rstrip() + "…"
    return "\n".join(lines)


def contact_sheet(overlays: Sequence[RGB], captions: Sequence[str], *, title: str = "", is_signed: bool = False) -> Image.Image:
    """Draws overlays in a grid, for viewers that show one picture and no caption.

    Args:
        overlays: of one size, [H, W, 3].
        captions: one for each, of any number of lines.
        title: above all of them.
        is_signed: whether the maps have negative values.

    Raises:
        ValueError: if there is nothing to show, or not one caption for every overlay.
    """
    if not overlays or len(captions) != len(overlays):
        raise ValueError(f"a contact sheet needs overlays and a caption for each, not {len(captions)} captions for {len(overlays)}")
    columns = min(len(overlays), max(4, math.ceil(math.sqrt(len(overlays)))))
    starts = range(0, len(overlays), columns)
    return mounted(
        [overlays[i : i + columns] for i in starts],
        captions=[captions[i : i + columns] for i in starts],
        title=title,
        is_signed=is_signed,
    )


MOST_COLUMNS = 6


def comparison(
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Float[Tensor, "1 h w"]],
    *,
    caption: str = "image",
    normalization: Normalization | None = None,
) -> Image.Image:
    """Draws an image and what each method says of it, every map over the image and scaled by its own range.

    Args:
        image: in whatever units the model takes.
        maps: by the names of the methods, in the order in which they are drawn.
        caption: below the image itself, such as what was predicted.
        normalization: of the image, undone where it fits.

    Raises:
        ValueError: if there is no map.
    """
    if not maps:
        raise ValueError("a comparison needs the map of at least one method")
    picture = displayed(image, normalization)
    is_signed = any_negative(maps.values())
    frames = [enlarged(picture), *(overlaid(picture, saliency, is_signed=is_signed) for saliency in maps.values())]
    captions = [caption, *maps]
    columns = math.ceil(len(frames) / math.ceil(len(frames) / MOST_COLUMNS))
    starts = range(0, len(frames), columns)
    return mounted(
        [frames[i : i + columns] for i in starts],
        captions=[captions[i : i + columns] for i in starts],
        is_signed=is_signed,
    )
