"""Frames in rows and columns with words around them: the contact sheet of a snapshot, and the comparison of several methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TypeVar, Union

import numpy as np
from jaxtyping import Float
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fg_lightning.visualization.saliency_overlay import RGB, Normalization, any_negative, colour_bar, enlarge, overlay_rgb, to_rgb

T = TypeVar("T")

GAP = 6
"""Pixels between two frames."""

MAX_NAME_WIDTH = 160
"""Pixels of a row's name."""

LINE = 15
"""Pixels for a line of words."""

SPACING = 2
"""Pixels between two lines."""


def draw_grid(
    rows: Sequence[Sequence[RGB]],
    *,
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    title: str = "",
    is_signed: bool = False,
) -> Image.Image:
    """Draws frames on one canvas, with the colour bar of their maps at the right.

    Args:
        rows: frames of one size, [H, W, 3]; a row may be shorter than the first.
        column_names: above the columns.
        row_names: beside the rows.
        captions: below each frame, as rows of one for each frame.
        title: at the top.
        is_signed: whether the maps have negative values.
    """
    height, width = rows[0][0].shape[:2]
    lines = max((caption.count("\n") + 1 for row in captions for caption in row), default=0)
    pitch = height + LINE * lines + GAP
    row_names = [_shorten(name, MAX_NAME_WIDTH) for name in row_names]
    left = 12 + max((_width(name) for name in row_names), default=-8) + 8
    heading = LINE + 4 if title else 0
    top = 12 + heading + LINE * max((name.count("\n") + 1 for name in column_names), default=0)
    right = left + max(len(row) for row in rows) * (width + GAP)
    bar_width = 8 + 6 + max(_width("high"), _width("low"), _width("against")) + 12
    canvas = Image.new("RGB", (right + bar_width, top + len(rows) * pitch + GAP), "white")
    draw = ImageDraw.Draw(canvas)

    _write(canvas, (left, 6), title)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            canvas.paste(Image.fromarray(frame), (left + j * (width + GAP), top + i * pitch))
        for j, caption in enumerate(captions[i] if captions else ()):
            place = left + j * (width + GAP), top + i * pitch + height + 1
            _write(canvas, place, _shorten(caption, width))
    for j, name in enumerate(column_names):
        place = left + j * (width + GAP) + width // 2, 6 + heading
        draw.multiline_text(place, _shorten(name, width), "black", _font(), "ma", SPACING, "center")
    for i, name in enumerate(row_names):
        draw.multiline_text((left - 8, top + i * pitch + height // 2), name, "black", _font(), "rm", SPACING)

    canvas.paste(Image.fromarray(colour_bar(height, is_signed=is_signed)), (right, top))
    highest, lowest = ("for", "against") if is_signed else ("high", "low")
    _write(canvas, (right + 14, top), highest)
    _write(canvas, (right + 14, top + height - LINE), lowest)
    return canvas


def pil_to_rgb(picture: Image.Image) -> RGB:
    """A picture as [H, W, 3] in 0..255."""
    rgb: RGB = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return rgb


def _write(canvas: Image.Image, place: tuple[int, int], words: str) -> None:
    """What `multiline_text` draws, left-aligned; most lines were drawn before, for another image or an earlier snapshot."""
    for i, line in enumerate(words.split("\n") if words else ()):
        ink, left, top = _ink(line)
        canvas.paste("black", (place[0] + left, place[1] + i * _line_height() + top), ink)


@lru_cache(1000)
def _ink(line: str) -> tuple[Image.Image, int, int]:
    """How opaque a line of text is, and where that lies relative to the line's place."""
    left, top, right, bottom = (round(side) for side in _font().getbbox(line))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), line, 255, _font())
    return ink, left, top


@cache
def _line_height() -> int:
    """From one line to the next, as `multiline_text` has it."""
    return round(_font().getbbox("A")[3]) + SPACING


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), 11)


@cache
def _width(words: str) -> int:
    return max(round(_font().getlength(line)) for line in words.split("\n"))


@cache
def _shorten(words: str, width: int) -> str:
    """Cuts each line to so many pixels, with an ellipsis for what is cut off."""
    lines = words.split("\n")
    for i, line in enumerate(lines):
        while line and _width(lines[i]) > width:
            line = line[:-1]
            lines[i] = line.rstrip() + "…"
    return "\n".join(lines)


def contact_sheet(overlays: Sequence[RGB], captions: Sequence[str], *, title: str = "", is_signed: bool = False) -> Image.Image:
    """Draws overlays with their captions in a grid, as one picture.

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
    return draw_grid(_rows(overlays, columns), captions=_rows(captions, columns), title=title, is_signed=is_signed)


def _rows(items: Sequence[T], columns: int) -> list[Sequence[T]]:
    return [items[i : i + columns] for i in range(0, len(items), columns)]


MAX_COLUMNS = 6


def comparison(
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Union[Float[Tensor, "1 h w"], str]],
    *,
    caption: str = "image",
    notes: Mapping[str, str] | None = None,
    normalization: Normalization | None = None,
) -> Image.Image:
    """Draws an image and the map of each method over it, scaled by its own range.

    Args:
        image: in the model's units.
        maps: by the names of the methods, in the order to draw them. A method that has no map has the reason in its place, which is
            written into a grey frame.
        caption: below the image itself, such as what was predicted.
        notes: lines below the names of methods.
        normalization: of the image, undone if it fits.

    Raises:
        ValueError: if there is no map.
    """
    drawn = [saliency for saliency in maps.values() if not isinstance(saliency, str)]
    if not drawn:
        raise ValueError("a comparison needs the map of at least one method")
    picture = to_rgb(image, normalization)
    is_signed = any_negative(drawn)
    frames = [enlarge(picture)]
    for saliency in maps.values():
        is_missing = isinstance(saliency, str)
        frames.append(_notice(frames[0].shape, saliency) if is_missing else overlay_rgb(picture, saliency, is_signed=is_signed))
    captions = [caption, *("\n".join(filter(None, [name, (notes or {}).get(name)])) for name in maps)]
    columns = math.ceil(len(frames) / math.ceil(len(frames) / MAX_COLUMNS))
    return draw_grid(_rows(frames, columns), captions=_rows(captions, columns), is_signed=is_signed)


def _notice(shape: tuple[int, ...], words: str) -> RGB:
    """A grey frame with words in it, as many as there is room for."""
    height, width = shape[:2]
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if _width(longer) <= width - 12 else [*lines, word]
    room = (height - 12) // _line_height()
    if len(lines) > room:
        lines = [*lines[: room - 1], f"{lines[room - 1]} …"]
    canvas = Image.new("RGB", (width, height), "gainsboro")
    _write(canvas, (6, 6), "\n".join(_shorten(line, width - 12) for line in lines))
    return pil_to_rgb(canvas)
